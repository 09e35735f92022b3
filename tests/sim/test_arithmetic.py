"""The arithmetic of the disciplines: published vectors, plain models with Python's integers, real rows.

The functions under test are pure and are called here by themselves, without an engine.
"""

from __future__ import annotations

import csv
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.schema import DROP, ECT_0, ECT_1, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim import codel, cubic, dualpi2_linux, fifo, pie, prague, red, sources
from l4s_gym.sim import dualpi2_freebsd as freebsd

MS = 1_000_000
PROBS = st.integers(0, MAX_PROB)
DELAYS_US = st.integers(0, 2_000_000)
LINUX_PROBS = st.integers(0, dualpi2_linux.MAX_PROB)
DELAYS_NS = st.integers(0, 4_000_000_000)
many = settings(max_examples=300, deadline=None)


# -- the testbed's kernel


@pytest.mark.parametrize(
    ("prob", "current_us", "old_us", "expected"),
    [
        (0, 120_000, 0, 171_048),
        (0, 10_000, 0, 12_451),
        (12_451, 10_000, 10_000, 9_830),
        (0, 30_000, 0, 41_287),
        (0, 40_000, 0, 55_705),
        (12_451, 0, 10_000, 0),
        (100_000, 0, 0, 67_473),
        (300_000_000, 20_000, 20_000, 301_342_177),
        (300_000_000, 400_000, 0, 342_949_672),
        (171_961_872, 140_000, 120_000, 215_582_633),
        (2_147_483_646, 500_000, 0, 2_147_483_647),
    ],
)
def test_freebsd_vectors(prob: int, current_us: int, old_us: int, expected: int) -> None:
    assert freebsd.update_probability(prob, current_us, old_us) == expected


def test_freebsd_constants() -> None:
    assert freebsd.STEP_FACTOR == 8_796_093
    assert math.floor(Fraction(85, 100) * MAX_PROB) == freebsd.DERANDOMISE_LOW
    assert math.floor(Fraction(85, 10) * MAX_PROB) == freebsd.DERANDOMISE_HIGH
    assert freebsd.ONE_THIRD == 1706


def model_freebsd(prob: int, current: int, old: int, capdrop: bool, autotune: bool, decay: bool) -> int:
    """`calculate_drop_prob` with unbounded integers, as it is described."""
    p = 1024 * (current - 15_000) + 10_240 * (current - old)
    negative = p < 0
    p = abs(p) * 8_796_093
    shift = 0
    if autotune:
        for bound, bits in ((2147, 11), (21_474, 9), (214_748, 7), (2_147_483, 5), (21_474_836, 3), (214_748_364, 1)):
            if prob < bound:
                shift = bits
                break
    p >>= 25 + shift
    if negative:
        new = prob - p
    else:
        new = prob + (min(p, 42_949_672) if capdrop and prob >= 214_748_364 else p)
    if new < 0:
        new = 0
    elif decay and current == 0 and old == 0:
        new -= new // 64
    return min(new, 2**31 - 1)


@many
@given(PROBS | st.integers(0, 1 << 22), DELAYS_US, DELAYS_US | st.just(0), st.booleans(), st.booleans(), st.booleans())
def test_freebsd_model(prob: int, current: int, old: int, capdrop: bool, autotune: bool, decay: bool) -> None:
    new = freebsd.update_probability(prob, current, old, 15_000, 1024, 10_240, capdrop, autotune, decay)
    assert new == model_freebsd(prob, current, old, capdrop, autotune, decay)
    assert 0 <= new <= MAX_PROB


@pytest.mark.parametrize("bound", [2147, 21_474, 214_748, 2_147_483, 21_474_836, 214_748_364])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_freebsd_model_at_the_thresholds(bound: int, offset: int) -> None:
    for current, old in ((0, 0), (0, 10_000), (20_000, 10_000), (400_000, 0)):
        args = (bound + offset, current, old)
        assert freebsd.update_probability(*args) == model_freebsd(*args, True, True, True)


def test_freebsd_long_delays_do_not_overflow() -> None:
    minute = 60_000_000
    assert freebsd.update_probability(0, minute, 0) == model_freebsd(0, minute, 0, True, True, True)
    assert freebsd.update_probability(MAX_PROB, 0, minute) == 0


def explained(prob: int, new: int) -> bool:
    """Whether delays on the clock's grid of 10 ms, up to 1 s, take `prob` to `new` (small ones are tried first)."""
    return any(
        np.float32(freebsd.update_probability(prob, current, old)) == np.float32(new)
        for top in (200_000, 1_000_000)
        for current in range(0, top + 1, 10_000)
        for old in range(0, top + 1, 10_000)
    )


def test_real_rows(pools_dir: Path) -> None:
    """Every change of the probability that took one update is an update for delays on the clock's grid.

    In consecutive rows of one queue, one step of the burst allowance (15 ms) is one update. The file went
    through float32, and the delays at the update are not logged: they are multiples of 10 ms.
    """
    last: dict[str, tuple[float, float]] = {}
    changes: set[tuple[int, int]] = set()
    with open(pools_dir / "consecutive_rows_first6000.csv", newline="") as file:
        for row in csv.DictReader(file):
            burst, prob = float(row["burst_allowance"]), float(row["drop_probability"])
            before = last.get(row["queue_type"])
            if before is not None and before[0] - burst == 15_000 and before[1] != prob:
                changes.add((int(before[1]), int(prob)))
            last[row["queue_type"]] = burst, prob
    assert len(changes) == 64
    assert [change for change in changes if not explained(*change)] == []


# -- Linux


@pytest.mark.parametrize(
    ("prob", "current_ms", "old_ms", "overload", "expected"),
    [
        (0, 20, 15, True, 72_109_375),
        (0, 16, 0, True, 220_437_500),
        (72_109_375, 12, 20, True, 0),
        (500_000_000, 15, 15, True, 500_000_000),
        (4_200_000_000, 500, 0, True, 4_294_967_295),
        (4_200_000_000, 500, 0, False, 2_147_483_647),
        (1_429_679_000, 308.734102, 2.186823, True, 1_546_889_184),  # the kernel keeps 32 bits of 5841856480
        (0, 6262.225158, 6262.225158, True, 0),  # nothing is left of a step of 2^32
    ],
)
def test_linux_vectors(prob: int, current_ms: float, old_ms: float, overload: bool, expected: int) -> None:
    current, old = round(current_ms * MS), round(old_ms * MS)
    assert dualpi2_linux.update_probability(prob, current, old, drop_overload=overload) == expected


def printed_gain(gain_hz: Fraction) -> float:
    """What `tc` prints for a gain: iproute2 truncates to 1/256 Hz, the kernel scales and scales back."""
    kernel = dualpi2_linux.scale_gain(int(gain_hz * 256))
    return 4 * kernel * 1_000_000_000 // dualpi2_linux.MAX_PROB / 256


@pytest.mark.parametrize(
    ("typical_ms", "largest_ms", "alpha", "beta"),
    [(20, 200, 0.042969, 1.496094), (50, 300, 0.050781, 0.996094)],
)
def test_linux_gains_as_tc_prints_them(typical_ms: int, largest_ms: int, alpha: float, beta: float) -> None:
    typical, largest = Fraction(typical_ms, 1000), Fraction(largest_ms, 1000)
    assert round(printed_gain(min(typical, largest / 3) / 10 / largest**2), 6) == alpha
    assert round(printed_gain(Fraction(3, 10) / largest), 6) == beta


def test_linux_default_gains() -> None:
    assert (dualpi2_linux.scale_gain(41), dualpi2_linux.scale_gain(819)) == (44, 879)
    assert (printed_gain(Fraction(41, 256)), printed_gain(Fraction(819, 256))) == (40 / 256, 818 / 256)


@many
@given(LINUX_PROBS, DELAYS_NS, DELAYS_NS, st.booleans(), st.integers(1, 8))
def test_linux_model(prob: int, current: int, old: int, overload: bool, coupling: int) -> None:
    """With the kernel's types: the sum is kept in a u32, and out of range where it lies on the wrong side."""
    delta = (current - 15 * MS) * 44 + (current - old) * 879
    step = abs(delta) // 64
    if delta > 0:
        new = (prob + step) % 2**32
        new = 2**32 - 1 if new < prob else new
    else:
        new = (prob - step) % 2**32
        new = 0 if new > prob else new
    if not overload:
        new = min(new, (2**32 - 1) // coupling)
    got = dualpi2_linux.update_probability(prob, current, old, drop_overload=overload, coupling=coupling)
    assert got == new


@many
@given(LINUX_PROBS, st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1), st.booleans())
def test_linux_decisions(prob: int, first: int, second: int, ect: bool) -> None:
    overload = 2 * prob > dualpi2_linux.MAX_PROB
    both = first <= prob and second <= prob
    ecn = ECT_0 if ect else NOT_ECT
    classic = dualpi2_linux.decide_classic(prob, ecn, overload, first, second)
    assert classic == ((MARK if ect and not overload else DROP) if both else ENQUEUE)
    l4s = dualpi2_linux.decide_l4s(prob, ECT_1 if ect else NOT_ECT, overload, first, second)
    if overload:
        assert l4s == (DROP if both else MARK if ect else ENQUEUE)  # INET_ECN_set_ce leaves Not-ECT as it is
    else:
        assert l4s == ((MARK if ect else DROP) if first <= 2 * prob else ENQUEUE)


def test_linux_roll_hits_with_probability_zero() -> None:
    # `roll` compares with <=: one number of 2^32 hits.
    assert dualpi2_linux.decide_classic(0, NOT_ECT, False, 0, 0) == DROP
    assert dualpi2_linux.decide_classic(0, NOT_ECT, False, 0, 1) == ENQUEUE


def test_linux_overload_without_drops_marks_all() -> None:
    full = dualpi2_linux.MAX_PROB
    assert dualpi2_linux.decide_l4s(full, ECT_1, True, 0, 0, drop_overload=False) == MARK
    assert dualpi2_linux.decide_l4s(full, NOT_ECT, True, 0, 0, drop_overload=False) == ENQUEUE


@pytest.mark.parametrize(
    ("sojourn_us", "packets", "step_packets", "exceeds"),
    [(1000, 9, 0, False), (1000.001, 0, 0, True), (5000, 3, 3, False), (0, 4, 3, True)],
)
def test_linux_step(sojourn_us: float, packets: int, step_packets: int, exceeds: bool) -> None:
    assert dualpi2_linux.exceeds_step(round(sojourn_us * 1000), packets, step_packets=step_packets) == exceeds


def test_linux_spares_less_than_two_frames() -> None:
    assert dualpi2_linux.is_small(1, 3013) and not dualpi2_linux.is_small(1, 3014)
    assert dualpi2_linux.is_small(2, 2999) and not dualpi2_linux.is_small(2, 3000)  # two frames of 1514


def test_linux_first_credit() -> None:
    assert [dualpi2_linux.first_credit(wc) for wc in (0, 10, 50, 100)] == [-151_400, -121_120, 0, 151_400]


# -- PIE, RED, CoDel, FIFO


def model_pie(prob: float, current: int, old: int) -> float:
    step = 0.125 * (current - 15 * MS) / 1e9 + 1.25 * (current - old) / 1e9
    for bound, divisor in ((1e-6, 2048), (1e-5, 512), (1e-4, 128), (1e-3, 32), (1e-2, 8), (1e-1, 2)):
        if prob < bound:
            step /= divisor
            break
    if prob >= 0.1:
        step = min(step, 0.02)
    prob += step
    if current == 0 and old == 0:
        prob *= 0.98
    return min(max(prob, 0.0), 1.0)


@many
@given(st.floats(0, 1) | st.floats(0, 1e-4), DELAYS_NS | st.just(0), DELAYS_NS | st.just(0))
def test_pie_model(prob: float, current: int, old: int) -> None:
    assert pie.update_probability(prob, current, old) == pytest.approx(model_pie(prob, current, old), abs=1e-12)


@pytest.mark.parametrize(
    ("prob", "accu", "number", "derandomise", "hit", "after"),
    [
        (0.5, 0.0, 0.0, True, False, 0.5),  # below 0.85
        (0.5, 0.5, 0.4, True, True, 0.0),
        (0.5, 0.5, 0.6, True, False, 1.0),
        (0.5, 8.1, 0.99, True, True, 0.0),  # 8.5 is reached
        (0.5, 8.1, 0.99, False, False, 8.6),
        (0.5, 0.0, 0.4, False, True, 0.0),
        (0.0, 3.0, 0.0, True, False, 0.0),  # probability 0 clears the sum
    ],
)
def test_pie_draw(prob: float, accu: float, number: float, derandomise: bool, hit: bool, after: float) -> None:
    got, rest = pie.draw(prob, accu, number, derandomise)
    assert got == hit
    assert rest == pytest.approx(after)


def test_red_average_decays_while_idle() -> None:
    assert red.update_average(10.0, 20, 0.0, 0.1) == pytest.approx(11.0)
    idle = red.update_average(10.0, 0, 3.0, 0.1)
    assert idle == pytest.approx(10.0 * 0.9**3 * 0.9)


@pytest.mark.parametrize(
    ("average", "expected"), [(0, 0), (4.9, 0), (5, 0), (10, 0.05), (15, 0.1), (22.5, 0.55), (30, 1), (99, 1)]
)
def test_red_probability(average: float, expected: float) -> None:
    assert red.probability(average, 5.0, 15.0, 0.1) == pytest.approx(expected)


def test_red_spread_makes_gaps_uniform() -> None:
    # Floyd and Jacobson 1993: the gap between hits is uniform on 1 .. 1/p.
    prob, alive, chances = 0.1, 1.0, []
    for since in range(10):
        now = red.spread(prob, since)
        chances.append(alive * now)
        alive *= 1.0 - now
    assert chances == pytest.approx([0.1] * 10)
    assert red.spread(prob, 10) == 1.0


def test_codel_control_law() -> None:
    times = [codel.control_law(0, count) for count in (1, 4, 100)]
    assert times == [100 * MS, 50 * MS, 10 * MS]


def test_codel_needs_a_whole_interval_above_target() -> None:
    args = {"queue_bytes": 6000, "target_ns": 5 * MS, "interval_ns": 100 * MS}
    assert codel.ok_to_drop(5 * MS - 1, now_ns=0, first_above_ns=7, **args) == (False, 0)
    assert codel.ok_to_drop(5 * MS, now_ns=1, first_above_ns=0, **args) == (False, 1 + 100 * MS)
    above = 1 + 100 * MS
    assert codel.ok_to_drop(6 * MS, now_ns=above - 1, first_above_ns=above, **args) == (False, above)
    assert codel.ok_to_drop(6 * MS, now_ns=above, first_above_ns=above, **args) == (True, above)
    assert codel.ok_to_drop(6 * MS, 1500, above, above, 5 * MS, 100 * MS) == (False, 0)  # one packet left


@pytest.mark.parametrize(
    ("packets", "total", "limit_packets", "limit_bytes", "full"),
    [(9, 0, 10, 0, False), (10, 0, 10, 0, True), (0, 8500, 0, 10_000, False), (0, 8501, 0, 10_000, True),
     (10**6, 10**9, 0, 0, False)],
)  # fmt: skip
def test_fifo_limit(packets: int, total: int, limit_packets: int, limit_bytes: int, full: bool) -> None:
    assert fifo.is_full(packets, total, 1500, limit_packets, limit_bytes) == full


# -- senders


def test_cubic_window() -> None:
    k = (100.0 * 0.3 / 0.4) ** (1 / 3)
    assert cubic.cubic_window(0.0, k, 100.0) == pytest.approx(70.0)
    assert cubic.cubic_window(k, k, 100.0) == pytest.approx(100.0)
    assert cubic.cubic_window(k + 2.0, k, 100.0) == pytest.approx(103.2)


def test_prague_virtual_rtt() -> None:
    assert prague.virtual_rtt_ns(5e6) == 25e6
    assert prague.virtual_rtt_ns(80e6) == 80e6


@many
@given(st.floats(0, 1, exclude_max=True), st.floats(0.5, 3))
def test_bounded_pareto(number: float, shape: float) -> None:
    low, high = 5_000.0, 2_000_000.0
    size = sources.bounded_pareto(number, shape, low, high)
    assert low * (1 - 1e-9) <= size <= high * (1 + 1e-9)
    share = (1 - (low / size) ** shape) / (1 - (low / high) ** shape)
    assert share == pytest.approx(number, abs=1e-9)
    assert sources.bounded_pareto(number, shape, low, low) == low
