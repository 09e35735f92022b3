"""RFC 9332's discipline in fixed point: against the appendix's laws in exact fractions, and in the running engine.

How far the integers may be from the fractions is stated with each test; nowhere is it more than a few 2^-32.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.errors import L4SError
from l4s_gym.schema import DROP, ECT_0, ECT_1, ENQUEUE, MARK, MAX_PROB, NOT_ECT, RECORD
from l4s_gym.sim import dualpi2_rfc9332 as rfc
from l4s_gym.sim import layout, setup
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.disciplines import get
from l4s_gym.sim.dualpi2_rfc9332 import LONGEST_NS, ONE
from l4s_gym.sim.scenario import Scenario, from_dict, load

MS = 1_000_000
ALPHA, BETA = Fraction(45_036, 1 << 48), Fraction(900_720, 1 << 48)
PROBS = st.integers(0, ONE)
DELAYS_NS = st.integers(0, 4_000_000_000)
GAINS = st.integers(0, rfc.MOST_GAIN)
ECN = st.sampled_from([NOT_ECT, ECT_1])
many = settings(max_examples=300, deadline=None)


# -- the laws


def clamped(value: Fraction) -> Fraction:
    return min(max(value, Fraction(0)), Fraction(1))


def exact_update(prob: int, current: int, old: int, target: int, alpha: Fraction, beta: Fraction) -> Fraction:
    """The new p' in fractions; gains per ns."""
    current, old = min(current, LONGEST_NS), min(old, LONGEST_NS)
    return clamped(Fraction(prob, ONE) + alpha * (current - target) + beta * (current - old))


def test_gains_are_those_of_the_appendix() -> None:
    assert (rfc.scale_gain(0.16), rfc.scale_gain(3.2)) == (45_036, 900_720)
    for gain_hz, scaled in ((Fraction(16, 100), ALPHA), (Fraction(32, 10), BETA)):
        assert abs(scaled * 10**9 / gain_hz - 1) < Fraction(1, 90_000)


@many
@given(PROBS, DELAYS_NS, DELAYS_NS)
def test_update(prob: int, current: int, old: int) -> None:
    new = rfc.update_probability(prob, current, old)
    exact = exact_update(prob, current, old, 15 * MS, ALPHA, BETA)
    assert 0 <= exact * ONE - new < 1  # rounded down
    # And the law with its own gains: theirs are off by 2^-49 per ns at most.
    ideal = exact_update(prob, current, old, 15 * MS, Fraction(16, 10**11), Fraction(32, 10**10))
    moved = abs(current - 15 * MS) + abs(current - old)
    assert abs(new - ideal * ONE) <= 1 + Fraction(moved, 1 << 17)


@many
@given(PROBS, st.integers(0, 1 << 60), st.integers(0, 1 << 60), GAINS, GAINS, st.data())
def test_update_stays_in_64_bits(prob: int, current: int, old: int, alpha: int, beta: int, data: Any) -> None:
    target = data.draw(st.integers(0, (1 << 62) // max(alpha, 1)))  # what the setup lets pass
    step = alpha * (min(current, LONGEST_NS) - target) + beta * (min(current, LONGEST_NS) - min(old, LONGEST_NS))
    assert abs(step) < 1 << 63
    new = rfc.update_probability(prob, current, old, target, alpha, beta)
    assert type(new) is int
    assert new == min(max(prob + step // 65_536, 0), ONE)


def test_update_clamps() -> None:
    assert rfc.update_probability(0, 0, 0) == 0
    assert rfc.update_probability(ONE // 100, 0, 50 * MS) == 0
    assert rfc.update_probability(ONE - 1000, 900 * MS, 0) == ONE
    assert rfc.update_probability(12_345, 15 * MS, 15 * MS) == 12_345
    assert (
        rfc.update_probability(0, 1 << 60, 1 << 60)
        == rfc.update_probability(0, LONGEST_NS, LONGEST_NS)
        == 1_465_431_724
    )


@pytest.mark.parametrize(
    ("prob", "current_ms", "old_ms", "expected"),
    [
        (0, 16, 0, 220_589_538),
        (0, 20, 15, 72_155_456),
        (72_155_456, 12, 20, 0),
        (2_147_483_648, 15, 16, 2_133_739_751),
        (100, 15, 15, 100),
    ],
)
def test_update_vectors(prob: int, current_ms: int, old_ms: int, expected: int) -> None:
    assert rfc.update_probability(prob, current_ms * MS, old_ms * MS) == expected


@many
@given(PROBS)
def test_square(prob: int) -> None:
    exact = Fraction(prob, ONE) ** 2 * ONE
    assert -1 < rfc.square(prob) - exact <= 0 or prob & 1
    assert -3 < rfc.square(prob) - exact <= 0  # an odd number loses its last bit: 2 p' more
    assert (rfc.square(ONE), rfc.square(ONE // 2), rfc.square(0)) == (ONE, ONE // 4, 0)


@pytest.mark.parametrize(
    ("delay_us", "quarters"),
    [(0, 0), (799, 0), (800, 0), (900, 1), (1000, 2), (1100, 3), (1200, 4), (9000, 4)],
)
def test_laqm(delay_us: int, quarters: int) -> None:
    assert rfc.laqm(delay_us * 1000) == quarters * ONE // 4


@many
@given(DELAYS_NS, st.integers(0, 10_000_000_000), st.integers(0, LONGEST_NS))
def test_laqm_is_a_ramp(delay: int, foot: int, width: int) -> None:
    exact = clamped(Fraction(delay - foot, width)) if width else Fraction(delay > foot)
    got = rfc.laqm(delay, foot, width)
    assert type(got) is int
    assert 0 <= exact * ONE - got < 1
    assert got <= rfc.laqm(delay + 1, foot, width)


def test_recur_is_strict() -> None:
    half = ONE // 2
    assert rfc.recur(half, half) == (False, ONE)
    assert rfc.recur(ONE, 0) == (False, ONE)
    assert rfc.recur(half + 1, half) == (True, 1)
    assert rfc.recur(ONE, ONE) == (True, ONE)


@settings(max_examples=60, deadline=None)
@given(PROBS, st.integers(1, 2000))
def test_recur_share_is_the_likelihood(likelihood: int, packets: int) -> None:
    rest, at = 0, []
    for number in range(packets):
        hit, rest = rfc.recur(rest, likelihood)
        if hit:
            at.append(number)
    assert len(at) * ONE + rest == likelihood * packets  # nothing is lost
    # Evenly spread: two gaps differ by one packet at most.
    gaps = {later - earlier for earlier, later in pairwise(at)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@many
@given(
    PROBS | st.integers(0, ONE // 100), st.integers(0, 3 * MS), st.integers(0, 5), PROBS, ECN, st.integers(1, 65_536)
)
def test_l4s_decision(prob: int, delay: int, packets: int, count: int, ecn: int, coupling: int) -> None:
    action, rest = rfc.decide_l4s(prob, delay, packets, count, ecn, coupling)
    coupled = Fraction(prob, ONE) * Fraction(coupling, 256)
    if coupled < 1:
        likelihood = max(rfc.laqm(delay) if packets > 1 else 0, int(coupled * ONE))
        assert rest in (count + likelihood, count + likelihood - ONE)
        assert action == ((MARK if ecn else DROP) if count + likelihood > ONE else ENQUEUE)
    else:  # saturated: drops by p_C, all survivors that add up are marked
        dropped, after = rfc.recur(count, rfc.square(prob))
        if dropped:
            assert (action, rest) == (DROP, after)
        else:
            assert (action, rest) == ((MARK if ecn else DROP) if after > 0 else ENQUEUE, after or ONE)
    assert type(rest) is int
    assert 0 <= rest <= ONE


@pytest.mark.parametrize(
    ("tenths", "ecn", "expected"),
    [(4, ECT_0, MARK), (4, NOT_ECT, DROP), (5, ECT_0, DROP), (6, ECT_0, DROP)],
)
def test_classic_decision(tenths: int, ecn: int, expected: int) -> None:
    prob = tenths * ONE // 10
    action, rest = rfc.decide_classic(prob, ONE, ecn)
    assert action == expected
    assert rest == rfc.square(prob)
    assert rfc.decide_classic(prob, 0, ecn) == (ENQUEUE, rfc.square(prob))


@many
@given(PROBS)
def test_unit_of_the_records(prob: int) -> None:
    assert rfc.in_records(prob) == prob * MAX_PROB // ONE
    assert (rfc.in_records(0), rfc.in_records(ONE)) == (0, MAX_PROB)


# -- the parameters


RFC: Any = "dualpi2_rfc9332"


def _scenario(aqm: str, **options: Any) -> Scenario:
    return from_dict({"name": "x", "aqm": aqm, "sources": [{"kind": "cubic"}], "options": {aqm: options}})


def _built(aqm: str = "dualpi2_rfc9332", **options: Any) -> Any:
    return setup.build(_scenario(aqm, **options), aqm, 1).own[0]


def test_default_parameters() -> None:
    env = _built()
    names = ("alpha_q", "beta_q", "coupling", "p_c_max", "classic_weight", "min_th_ns", "range_ns", "wrr_credit")
    assert [int(env[name]) for name in names] == [45_036, 900_720, 512, 1 << 30, 4096, 800_000, 400_000, 0]
    linux = _built("dualpi2_linux")
    assert (linux["classic_protection"], linux["wrr_credit"], linux["coupling"]) == (10, -80 * 1514, 2)
    assert _built("dualpi2_linux", classic_protection=0)["wrr_credit"] == -100 * 1514
    assert _built("dualpi2_freebsd", classic_weight=0.5)["classic_weight"] == 1 << 15


@pytest.mark.parametrize("aqm", ["dualpi2_rfc9332", "dualpi2_linux"])
def test_state_is_integer(aqm: str) -> None:
    own = get(aqm).records
    assert {own.env[name].kind for name in own.env.names or () if name != "padding"} == {"i"}
    assert aqm == "dualpi2_linux" or own.queue["recur"].kind == "i"
    assert _built(aqm)["prob"] == 0


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("alpha", 3814.0, 3815.0),
        ("beta", 3814.0, 3815.0),
        ("coupling", 256.0, 256.01),
        ("coupling", 0.004, 0.001),
        ("range_us", 2_147_483.0, 2_147_484.0),
        ("target_ms", 1.02e8, 1.03e8),
    ],
)
def test_limits_of_the_parameters(name: str, good: float, bad: float) -> None:
    setup.build(_scenario(RFC, **{name: good}), "dualpi2_rfc9332", 1)
    with pytest.raises(L4SError, match=rf"options\.dualpi2_rfc9332\.{name} = .*: give (at most|1/256)"):
        setup.build(_scenario(RFC, **{name: bad}), "dualpi2_rfc9332", 1)
    setup.build(_scenario(RFC, **{name: bad}), "pie", 1)  # the limits are those of this discipline's arithmetic


def test_target_is_limited_with_the_gain() -> None:
    _built(alpha=3814.0, target_ms=4294.0)
    with pytest.raises(L4SError, match=r"\.target_ms = 4300: give at most 429\d ms with this alpha"):
        _built(alpha=3814.0, target_ms=4300.0)


# -- the engine


def _updates(scenario: str, horizon_s: float) -> tuple[Batch, list[tuple[int, int]]]:
    """State after each update: p' and the delay that the controller saw."""
    batch = Batch(load(scenario).replace(horizon_s=horizon_s), aqm="dualpi2_rfc9332")
    batch.reset(0, np.random.default_rng(3))
    seen = []
    for k in range(1, int(horizon_s / 0.016)):
        batch.stop_at(0, 16 * MS * k + 1)
        assert batch.advance_one() == layout.STOPPED
        seen.append((int(batch.own["prob"][0]), int(batch.own["old_ns"][0])))
    return batch, seen


@pytest.mark.parametrize("scenario", ["l4s-llm-testbed", "overload"])
def test_engine_updates_are_the_integers_law(scenario: str) -> None:
    """Each p' of a run, from the delays that the controller saw, with Python's unbounded integers."""
    _, seen = _updates(scenario, 10.0)
    prob = old = 0
    for new, current in seen:
        step = (45_036 * (current - 15 * MS) + 900_720 * (current - old)) // 65_536
        prob, old = min(max(prob + step, 0), ONE), current
        assert new == prob
    assert max(prob for prob, _ in seen) > ONE // 20


@pytest.mark.parametrize("scenario", ["l4s-llm-testbed", "overload", "web"])
def test_engine_logs_the_count_of_each_queue(scenario: str) -> None:
    """The rows have p' and `recur`'s count rounded down to the records' unit, and both stay in [0, 1]."""
    batch = Batch(load(scenario).replace(horizon_s=5.0), aqm="dualpi2_rfc9332", log_rows=1 << 15)
    batch.reset(0, np.random.default_rng(4))
    seen = []
    for k in range(1, 300):
        batch.stop_at(0, 16 * MS * k + 1)
        assert batch.advance_one() == layout.STOPPED
        rows = batch.log[0][: int(batch.env["log_rows"][0])]
        seen.append((len(rows), rfc.in_records(int(batch.own["prob"][0]))))
    rows = batch.log[0][: int(batch.env["log_rows"][0])].view(RECORD)
    for (first, prob), (last, _) in pairwise(seen):
        assert (rows["drop_probability"][first:last] == prob).all()
    assert (rows["accumulated_probability_before"] <= MAX_PROB).all()
    assert rows["drop_probability"].max() > 0 < rows["accumulated_probability_before"].max()


@pytest.mark.parametrize(
    ("aqm", "weight"),
    [
        ("dualpi2_rfc9332", 0.0625),
        ("dualpi2_rfc9332", 0.3),
        ("dualpi2_linux", 0.25),
        ("dualpi2_linux", 0.0),
        ("dualpi2_freebsd", 0.3),
    ],
)
def test_engine_round_robin_keeps_the_shares(aqm: str, weight: float) -> None:
    """Two unresponsive senders that fill both queues: C gets its weight of the bytes."""
    source = {"kind": "cbr", "rate_mbps": 20.0, "rtt_ms": 10.0, "stagger_s": 0.0}
    tree = {
        "name": "both", "aqm": aqm, "horizon_s": 3.0, "link": {"rate_mbps": 20.0, "buffer_ms": 20_000.0},
        "sources": [{**source, "ecn": "ect0"}, {**source, "ecn": "ect1"}],
        "options": {
            "dualpi2_rfc9332": {"classic_weight": weight, "alpha": 0.0, "beta": 0.0, "min_th_us": 1e9},
            "dualpi2_linux": {"classic_protection": round(100 * weight), "alpha": 0, "beta": 0, "step_ms": 1e9},
            "dualpi2_freebsd": {"classic_weight": weight, "alpha": 0, "beta": 0, "quirks_off": ["drr"]},
        },
    }  # fmt: skip
    batch = Batch(from_dict(tree))
    batch.reset(0, np.random.default_rng(5))
    batch.stop_at(0, 500 * MS)
    batch.advance_one()
    batch.reset_counters(0)
    batch.advance_one()
    assert batch.env["dropped"][0] == 0
    left = batch.queue[0]["left"]
    assert left[0] / left.sum() == pytest.approx(weight, abs=0.001)
    assert abs(int(batch.own["wrr_credit"][0])) <= 1514 * (100 if aqm == "dualpi2_linux" else rfc.WEIGHT_ONE)
