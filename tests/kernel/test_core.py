"""The C core against the simulator: every record of random traffic must be the same; and the core's own parts."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l4s_gym.live.router import parameters
from l4s_gym.schema import RECORD
from l4s_gym.sim import drive, layout
from l4s_gym.sim import dualpi2_freebsd as freebsd
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.drive import ARRIVAL, offer, open_loop
from l4s_gym.sim.dualpi2_freebsd import Options as FreeBSDOptions
from l4s_gym.sim.dualpi2_linux import Options as LinuxOptions
from l4s_gym.sim.dualpi2_rfc9332 import Options as RFC9332Options
from l4s_gym.sim.options import Options
from l4s_gym.sim.scenario import Scenario
from tests.kernel.core import AQMS, LINUX, RFC9332, TESTBED, UNSHIELDED, Core, Link

QUIRKS = [quirk.name.lower() for quirk in freebsd.Quirk if quirk.name]
RATES = (4.0, 8.0, 12.7, 40.0, 200.0, 1000.0)


SOME = st.sampled_from
QUIRKS_OFF = st.one_of(st.lists(SOME(QUIRKS), unique=True).map(tuple), st.just(("all",)))
EVERY: dict[str, Any] = {"target_ms": SOME([1.0, 5.0, 15.0, 40.0]), "tupdate_ms": SOME([1.0, 15.0, 16.0, 33.3])}
SCHEDULER: dict[str, Any] = {
    "scheduler": SOME(["wrr", "time_shifted"]),
    "classic_weight": SOME([1 / 16, 0.0, 0.1, 0.5, 1.0]),
    "shift_ms": SOME([1.0, 50.0]),
}
STEP: dict[str, Any] = {"step_ms": SOME([0.0, 1.0, 5.0])}
OPTIONS = {
    TESTBED: st.builds(
        FreeBSDOptions,
        **EVERY, **SCHEDULER, **STEP,
        max_burst_ms=SOME([0.0, 20.0, 150.0]),
        alpha=SOME([1024, 0, 1, 3, 10]),
        beta=SOME([10240, 0, 1, 3, 10]),
        max_ecn_threshold=SOME([0, 819, 4000, 8192]),
        quirks_off=QUIRKS_OFF,
        drr_weight=SOME([1, 2, 5]),
    ),
    RFC9332: st.builds(
        RFC9332Options,
        **EVERY, **SCHEDULER,
        alpha=SOME([0.16, 0.0, 1.0, 3.0, 10.0]),
        beta=SOME([3.2, 0.0, 1.0, 3.0, 10.0]),
        coupling=SOME([1.0, 1.7, 2.0, 4.0]),
        min_th_us=SOME([0.0, 800.0, 3000.0]),
        range_us=SOME([1.0, 400.0, 5000.0]),
        th_len=SOME([0, 1, 5]),
        p_c_max=SOME([0.0, 0.25, 1.0]),
    ),
    # The larger gains take updates past 32 bits, with long queues past 64.
    LINUX: st.builds(
        LinuxOptions,
        **EVERY, **STEP,
        alpha=SOME([41, 0, 819, 200_000, 1_000_000_000]),
        beta=SOME([819, 0, 41, 200_000, 1_000_000_000]),
        coupling=SOME([1, 2, 3, 255]),
        step_packets=SOME([0, 1, 5]),
        min_qlen_step=SOME([0, 1, 5]),
        classic_protection=SOME([0, 10, 50, 100]),
        drop_on_overload=st.booleans(),
    ),
}  # fmt: skip
"""Options of each variant, near their defaults and far from them."""


@st.composite
def scenarios(draw: st.DrawFn, variant: int) -> Scenario:
    limit_packets = draw(st.sampled_from([0, 3, 40, 10240]))
    options = msgspec.structs.replace(Options(), **{AQMS[variant]: draw(OPTIONS[variant])})
    return open_loop(draw(st.sampled_from(RATES)), options=options, limit_packets=limit_packets)


@st.composite
def traffic(draw: st.DrawFn, packets: int) -> tuple[npt.NDArray[Any], float]:
    """Phases of random arrivals: load, sizes, codepoints and gaps of each; the share of foreign decisions."""
    phases = draw(
        st.lists(
            st.tuples(
                st.sampled_from([0.3, 0.9, 1.0, 1.1, 2.0, 5.0]),  # load
                st.sampled_from([(1500,), (100, 1500), (100, 200, 300), (1500, 9000)]),
                st.lists(st.integers(0, 3), min_size=1, max_size=4),
                st.sampled_from(["even", "exponential", "bursts"]),
            ),
            min_size=1,
            max_size=6,
        )
    )
    foreign = draw(st.sampled_from([0.0, 0.0, 0.2, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    each = -(-packets // len(phases))
    parts = []
    for load, sizes, codepoints, gaps in phases:
        part = np.zeros(each, ARRIVAL)
        part["length"] = rng.choice(sizes, each)
        part["ecn"] = rng.choice(codepoints, each)
        part["flow"] = rng.integers(0, 256, each)
        part["action"] = np.where(rng.random(each) < foreign, rng.choice([0, 1, 2], each, p=[0.9, 0.04, 0.06]), -1)
        gap = part["length"] / load  # in bytes of link time
        if gaps == "exponential":
            gap = gap * rng.exponential(1.0, each)
        elif gaps == "bursts":
            gap = np.where(rng.random(each) < 0.05, 20.0 * gap, 0.0)
        part["time_ns"] = gap * 1000.0
        parts.append(part)
    arrivals = np.concatenate(parts)[:packets]
    return arrivals, foreign


def offer_by_probabilities(
    scenario: Scenario, arrivals: npt.NDArray[Any], aqm: str, seed: int, prob: Sequence[int]
) -> npt.NDArray[np.void]:
    """Rows of the simulator as `offer` makes them, by probabilities of C and L, 2^-31, as in `L4S-DualPI2-Prob-v0`."""
    rows = np.ascontiguousarray(arrivals, ARRIVAL)
    batch = Batch(scenario, aqm=aqm, log_rows=len(rows), decider=layout.PROBABILITY)
    batch.reset(0, np.random.default_rng(seed))
    record = batch.env
    record["rng"], record["guarded"] = seed, 1
    record["p_c"], record["p_l"] = prob[0] / 2.0**31, prob[1] / 2.0**31
    assert drive._offer(batch.address, rows.ctypes.data, len(rows)) == len(rows)
    return batch.drain_log(0, everything=True)


def both(
    core: Core,
    scenario: Scenario,
    arrivals: npt.NDArray[Any],
    variant: int,
    seed: int,
    prob: Sequence[int] | None = None,
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Rows of the core and of the simulator, for the same packets."""
    aqm, rate = AQMS[variant], scenario.link.rate_mbps
    packets = arrivals.copy()
    packets["time_ns"] = np.cumsum(arrivals["time_ns"] * (8.0 / rate)).astype(np.int64)
    values = parameters(scenario, aqm) | UNSHIELDED
    if prob is not None:
        packets["action"], values["law_lifetime_ms"] = -1, 60_000
        rows = core.drive(core.params(values["variant"], **values), packets, rate_mbps=rate, seed=seed, prob=prob)
        return rows, offer_by_probabilities(scenario, packets, aqm, seed, prob)
    rows = core.drive(core.params(values["variant"], **values), packets, rate_mbps=rate, seed=seed)
    # A decision that came before anything was asked was not used; the row says so.
    used = packets.copy()
    used["action"] = np.where(rows["decided_by"] == 1, packets["action"], -1)
    return rows, offer(scenario, used, aqm=aqm, seed=seed)


def assert_equal(rows: npt.NDArray[np.void], expected: npt.NDArray[np.void]) -> None:
    rows = rows.copy()
    rows["decided_by"][rows["decided_by"] == 2] = 0  # asked about without an answer: the native law
    for name in RECORD.names or ():
        wrong = np.flatnonzero(rows[name] != expected[name])
        where = wrong[:1]
        assert not wrong.size, f"{name} differs in {wrong.size} rows, first {where}: {rows[where]} {expected[where]}"


@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX], ids=AQMS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**63 - 1))
def test_every_record_is_the_simulators(core: Core, variant: int, data: st.DataObject, seed: int) -> None:
    scenario, (arrivals, _) = data.draw(scenarios(variant)), data.draw(traffic(4000))
    assert_equal(*both(core, scenario, arrivals, variant, seed))


@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX], ids=AQMS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**63 - 1))
def test_every_record_by_probabilities_is_the_simulators(
    core: Core, variant: int, data: st.DataObject, seed: int
) -> None:
    scenario, (arrivals, _) = data.draw(scenarios(variant)), data.draw(traffic(4000))
    prob = data.draw(st.tuples(*[st.sampled_from([0, 1, 1 << 24, ALL // 4 - 1, ALL // 4, ALL // 2, ALL])] * 2))
    rows, expected = both(core, scenario, arrivals, variant, seed, prob)
    assert_equal(rows, expected)
    assert (rows["decided_by"] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX], ids=AQMS)
def test_ten_million_records_are_the_simulators(core: Core, variant: int) -> None:
    counts = {"rows": 0, "drop": 0, "mark": 0}

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(data=st.data(), seed=st.integers(0, 2**63 - 1))
    def compare(data: st.DataObject, seed: int) -> None:
        scenario, (arrivals, _) = data.draw(scenarios(variant)), data.draw(traffic(100_000))
        rows, expected = both(core, scenario, arrivals, variant, seed)
        assert_equal(rows, expected)
        counts["rows"] += len(rows)
        counts["drop"] += int((rows["applied_action"] == 1).sum())
        counts["mark"] += int((rows["applied_action"] == 2).sum())

    while counts["rows"] < 10_000_000:
        compare()
    print(AQMS[variant], counts)
    assert min(counts["drop"], counts["mark"]) > 100_000, counts


def test_defaults_are_the_simulators(core: Core) -> None:
    for variant, aqm in enumerate(AQMS):
        values = parameters(open_loop(8.0, limit_packets=10240), aqm)
        unread = {"alpha", "beta"} if variant == RFC9332 else set()
        defaults = dict(zip(core.ranges, core.params(variant).tolist(), strict=True))
        assert values == {name: defaults[name] for name in values} | dict.fromkeys(unread, 0)


def test_parameters_out_of_range_are_found(core: Core) -> None:
    for index, (name, (low, high)) in enumerate(core.ranges.items()):
        for value in (low, high):
            assert core.check(core.params(TESTBED, **{name: value})) == -1, name
        for value in {low - 1, high + 1, 2**64 - 1} - {-1}:
            assert core.check(core.params(TESTBED, **{name: value})) == index


def test_core_calls_nothing(build: Callable[..., Path]) -> None:
    shown = subprocess.run(["nm", "-u", build("core.o") / "core.o"], capture_output=True, text=True, check=True)
    asks_for_avx2 = {"__cpu_model", "_GLOBAL_OFFSET_TABLE_"}  # in user space alone
    assert set(shown.stdout.replace("U ", "").split()) <= {"memcpy", "memset"} | asks_for_avx2


def test_core_has_no_floating_point(build: Callable[..., Path]) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("reads x86-64 instructions")
    flags = ["-mno-sse", "-mno-mmx", "-mno-80387"]
    sources = sorted((Path(__file__).parents[2] / "kernel" / "core").glob("*.c"))
    for source in sources:
        command = [
            "cc",
            "-std=c11",
            "-O2",
            "-ffreestanding",
            *flags,
            "-I",
            str(source.parent),
            "-S",
            "-o",
            "-",
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not any(word in done.stdout for word in ("xmm", "%st", "__float", "__add", "__mul", "__div"))


def test_a_target_too_far_for_the_gain_is_refused(core: Core) -> None:
    far = {"target_us": 10_000_000}
    assert core.check(core.params(RFC9332, **far)) == -1
    assert core.check(core.params(RFC9332, **far, alpha_q=1 << 30)) == list(core.ranges).index("target_us")


# -- decisions from outside, through the structs of the C headers


ACCEPTED, DETACHED, MALFORMED, EXPIRED, OUT_OF_ORDER, UNASKED, SHIELDED = range(7)
FREE = UNSHIELDED


def test_a_decision_is_used_once_for_the_next_packet_of_its_queue(core: Core) -> None:
    link = Link(core, **FREE)
    link.attach()
    first = link.offer()
    assert link.decide(int(first["sequence"]), 2) == ACCEPTED
    other = link.offer(ecn=1)  # of L: not its queue
    assert (other["decided_by"], other["action"]) == (0, 0)
    assert (link.offer()["decided_by"], link.offer()["decided_by"]) == (1, 2)


def test_answers_wait_in_line(core: Core) -> None:
    """Packets that come close upon each other have an answer each, from before; the oldest is used first."""
    link = Link(core, **FREE)
    link.attach()
    for actions in ((0, 2), (2, 0, 2, 0)):
        for sequence, action in [(int(link.offer()["sequence"]), action) for action in actions]:
            assert link.decide(sequence, action) == ACCEPTED
        rows = [link.offer(after_ns=0) for _ in actions]
        assert [(row["decided_by"], row["action"]) for row in rows] == [(1, action) for action in actions]
        assert link.offer()["decided_by"] == 2
        link.attach()


def test_where_too_many_answers_wait_the_oldest_goes(core: Core) -> None:
    link = Link(core, **FREE)
    link.attach()
    for sequence in [int(link.offer()["sequence"]) for _ in range(6)]:
        assert link.decide(sequence, 2 if sequence > 1 else 0) == ACCEPTED
    assert [link.offer(after_ns=0)["action"] for _ in range(4)] == [2] * 4
    assert link.offer()["decided_by"] == 2


def test_an_answer_that_expires_in_line_makes_way(core: Core) -> None:
    link = Link(core, **FREE)
    link.attach()
    rows = [link.offer() for _ in range(2)]
    assert link.decide(int(rows[0]["sequence"]), 1, lives_ns=500_000) == ACCEPTED
    assert link.decide(int(rows[1]["sequence"]), 2) == ACCEPTED
    assert link.offer()["action"] == 2


def test_what_waits_goes_with_the_controller(core: Core) -> None:
    link = Link(core, **FREE)
    link.attach()
    for sequence in [int(link.offer()["sequence"]) for _ in range(3)]:
        assert link.decide(sequence, 2) == ACCEPTED
    link.detach()
    link.attach()
    assert link.offer()["decided_by"] == 0


def test_decisions_that_are_refused(core: Core) -> None:
    link = Link(core, **FREE)
    assert link.decide(0, 1) == DETACHED
    link.attach()
    row = link.offer()
    at = int(row["sequence"])
    assert link.decide(at, 3) == MALFORMED
    assert link.decide(at, 0, queue=2) == MALFORMED
    assert link.decide(at + 1, 0) == UNASKED
    assert link.decide(at, 0, queue=1) == UNASKED
    assert link.decide(at, 0, lives_ns=0) == EXPIRED
    assert link.decide(at, 0) == ACCEPTED
    assert link.decide(at, 0) == OUT_OF_ORDER
    later = link.offer()
    assert later["decided_by"] == 1
    link.detach()
    assert link.decide(int(later["sequence"]), 1) == DETACHED
    link.attach()
    assert link.decide(int(later["sequence"]), 1) == OUT_OF_ORDER  # asked of the controller before


def test_a_decision_that_expires_in_its_slot_is_not_used(core: Core) -> None:
    link = Link(core, **FREE)
    link.attach()
    row = link.offer()
    assert link.decide(int(row["sequence"]), 1, lives_ns=500_000) == ACCEPTED
    late = link.offer()
    assert (late["decided_by"], late["action"]) == (0, 0)


def test_a_decision_lives_no_longer_than_lifetime(core: Core) -> None:
    link = Link(core, **FREE, lifetime_us=400)
    link.attach()
    assert link.decide(int(link.offer()["sequence"]), 1, lives_ns=10**12) == ACCEPTED
    assert link.offer()["decided_by"] == 0


def test_latency_is_that_of_the_controller_that_is_there(core: Core) -> None:
    link = Link(core, **FREE)
    latency = core._lib.l4s_latency_us
    latency.restype = ctypes.c_uint64
    for delay_us in (5000, 100):
        link.attach()
        for _ in range(20):
            row = link.offer()
            link.now += delay_us * 1000
            assert link.decide(int(row["sequence"]), 0) == ACCEPTED
        assert 0.85 * delay_us < latency(link.core, ctypes.c_uint64(500)) <= delay_us
    link.detach()
    assert latency(link.core, ctypes.c_uint64(990)) > 0  # who asks afterwards is told too


@pytest.mark.parametrize(("before_us", "told_us"), [(4000, 1000), (5000, 0), (6000, 5000), (-1000, 5000)])
def test_latency_is_to_when_a_decision_was_given_if_that_can_be(core: Core, before_us: int, told_us: int) -> None:
    link = Link(core, **FREE)
    latency = core._lib.l4s_latency_us
    latency.restype = ctypes.c_uint64
    link.attach()
    row = link.offer()
    link.now += 5_000_000
    assert link.decide(int(row["sequence"]), 0, given_ns=-1000 * before_us) == ACCEPTED
    assert 0.85 * told_us <= latency(link.core, ctypes.c_uint64(500)) <= told_us


def test_interval_asks_about_each_nth_packet(core: Core) -> None:
    link = Link(core, **FREE)
    link.attach(10)
    rows = [link.offer() for _ in range(31)]
    assert [k for k, row in enumerate(rows) if row["decided_by"] == 2] == [10, 20, 30]  # 0 was the first ask
    assert link.decide(int(rows[-1]["sequence"]), 2) == ACCEPTED
    after = [link.offer()["decided_by"] for _ in range(11)]
    assert after == [1] + [0] * 10


def test_shield_bounds_the_drops_of_an_agent(core: Core) -> None:
    link = Link(core, shield_hits=0, shield_c_us=0, shield_window=16, shield_drops=65536 // 4, shield_hold_us=50_000)
    link.attach()
    rows = [link.offer()]
    for _ in range(12):
        link.decide(int(rows[-1]["sequence"]), 1)
        rows.append(link.offer())
    assert sum(int(row["applied_action"] == 1) for row in rows) == 4  # a quarter of sixteen
    assert link.decide(int(rows[-1]["sequence"]), 1) == SHIELDED
    held = link.offer(after_ns=60_000_000)  # its time is over
    assert link.decide(int(held["sequence"]), 1) == ACCEPTED


def test_shield_bounds_the_delay_under_an_agent(core: Core) -> None:
    link = Link(core, shield_c_us=20_000, shield_hits=0)
    link.attach()
    row = link.offer()
    seen = []
    for _ in range(40):  # nothing leaves: the head grows old
        seen.append(link.decide(int(row["sequence"]), 0))
        row = link.offer()
    assert seen[0] == ACCEPTED and seen[-1] == SHIELDED
    assert seen.index(SHIELDED) in range(19, 24)


def bounds(c_us: int, l_us: int, drops: int, window: int, hold_us: int, hits: int) -> Any:
    """`struct l4s_bounds`."""
    return np.array([c_us, l_us, drops, window, hold_us, hits], np.uint64).ctypes.data_as(ctypes.c_void_p)


def test_what_an_agent_may_drop_does_not_grow_by_coming_again(core: Core) -> None:
    link = Link(core, shield_hits=0, shield_c_us=0, shield_window=64, shield_drops=65536 // 8, shield_hold_us=1000)
    for _ in range(8):  # all in one window
        link.attach()
        link.decide(int(link.offer()["sequence"]), 1)
        link.offer(after_ns=10_000)
        link.detach()
    link.attach()
    assert link.decide(int(link.offer()["sequence"]), 1) == ACCEPTED
    assert link.offer(after_ns=10_000)["applied_action"] != 1


def test_the_next_agent_is_held_for_as_long_as_the_operator_says(core: Core) -> None:
    link = Link(core, shield_hits=0, shield_c_us=0, shield_hold_us=5_000)
    link.attach()
    core._lib.l4s_tighten(link.core, bounds(0, 0, 0, 16, 600_000_000, 0))
    row = link.offer()
    assert link.decide(int(row["sequence"]), 1) == ACCEPTED
    row = link.offer()
    assert link.decide(int(row["sequence"]), 1) == SHIELDED
    link.detach()
    link.attach()
    row = link.offer(after_ns=6_000_000)
    assert link.decide(int(row["sequence"]), 1) == ACCEPTED


@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX], ids=AQMS)
@pytest.mark.parametrize("action", [1, 2])
def test_an_agent_hits_no_more_than_the_law_and_its_factor(core: Core, variant: int, action: int) -> None:
    def share(hits: int) -> tuple[float, float]:
        """Hits of an agent that always wants to, of all packets; and the law's probability for C."""
        link = Link(core, variant=variant, shield_hits=hits, shield_c_us=0, shield_drops=65536, quirks=0)
        for _ in range(400):
            link.offer()
            link.take()
        link.attach()
        rows = []
        for turn in range(4000):
            row = link.offer()
            link.decide(int(row["sequence"]), action)
            rows.append(row)
            if turn % 40:  # a little more comes than goes
                link.take()
        hit = np.mean([row["decided_by"] == 1 and row["action"] == action for row in rows[2000:]])
        return float(hit), float(np.mean([(row["drop_probability"] / 2.0**31) ** 2 for row in rows[2000:]]))

    for factor in (1, 4):
        hit, likely = share(256 * factor)
        assert 0.0 < hit <= 1.05 * min(factor * likely, 1.0) + 0.002
    assert share(0)[0] > 0.9


@pytest.mark.parametrize("how", ["shield", "detach"])
@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX], ids=AQMS)
def test_the_law_gets_its_queue_back_as_it_was(core: Core, variant: int, how: str) -> None:
    link = Link(core, quirks=0, shield_c_us=300_000, shield_hold_us=2_000, variant=variant)

    def offer() -> int:
        row = link.offer()
        decided.append(link.decide(int(row["sequence"]), 0))
        if len(decided) % 2:
            link.take()  # one of two: the queue grows, and the law's probability rises
        return int(row["drop_probability"])

    decided: list[int] = []
    calm = [offer() for _ in range(60)][-1]
    link.attach()
    while decided[-1] != SHIELDED and len(decided) < (300 if how == "detach" else 1000):
        wound_up = offer()
    if how == "detach":
        link.detach()
    back = offer()
    assert 0 < calm < wound_up / 3
    assert calm / 2 < back < wound_up / 2


def test_a_controller_that_decides_little_leaves_the_law_alone(core: Core) -> None:
    link = Link(core, variant=RFC9332, shield_c_us=0)
    link.attach(10)
    for _ in range(300):
        row = link.offer()
        link.decide(int(row["sequence"]), 0)
    link.detach()
    assert link.offer()["drop_probability"] >= row["drop_probability"]


ALL = 1 << 31


# -- parameters of the law, set for a while

LAWS: dict[str, tuple[int, dict[str, int], tuple[str | None, ...]]] = {
    "rfc9332": (RFC9332, {}, ("target_us", "alpha_q", "beta_q", "coupling", "min_th_ns")),
    "linux": (LINUX, {}, ("target_us", "pi2_alpha", "pi2_beta", "coupling_factor", "step_ns")),
    "linux, step by packets": (
        LINUX, {"step_packets": 3}, ("target_us", "pi2_alpha", "pi2_beta", "coupling_factor", None),
    ),
    "testbed": (TESTBED, {}, ("target_us", "alpha", "beta", None, None)),
    "testbed with a step": (TESTBED, {"quirks": 0x7FFB}, ("target_us", "alpha", "beta", None, "step_ns")),
}  # fmt: skip
"""Of each variant, what the five factors are those of; None: it has none."""
SAME = 65536


class ModelOfTheLaw:
    """What `l4s_set_law` must do, in Python: bounds, scaling, expiry."""

    def __init__(self, core: Core, own: dict[str, int], names: tuple[str | None, ...]) -> None:
        self.ranges, self.own, self.names = core.ranges, own, names
        self.until_ns: int | None = None
        self.force = own

    def bounds(self) -> list[tuple[int, int]]:
        each = ("target", "alpha", "beta", "coupling", "threshold")
        all_ = [(self.own[f"law_{name}_low"], self.own[f"law_{name}_high"]) for name in each]
        return [(SAME, SAME) if name is None else pair for name, pair in zip(self.names, all_, strict=True)]

    def set(self, factors: Sequence[int], lifetime_ms: int, now_ns: int) -> bool:
        self.tick(now_ns)
        if any(not low <= f <= high for f, (low, high) in zip(factors, self.bounds(), strict=True)):
            return False
        force = dict(self.own)
        for name, factor in zip(self.names, factors, strict=True):
            if name is not None and factor != SAME:
                low, high = self.ranges[name]
                force[name] = min(max((force[name] * factor + SAME // 2) // SAME, low), high)
        if force["alpha_q"] * force["target_us"] > (1 << 62) // 1000:
            return False
        self.force, self.until_ns = force, now_ns + min(lifetime_ms, self.own["law_lifetime_ms"]) * 1_000_000
        return True

    def tick(self, now_ns: int) -> None:
        if self.until_ns is not None and now_ns >= self.until_ns:
            self.end()

    def end(self) -> None:
        self.until_ns, self.force = None, self.own


@pytest.mark.parametrize("law", LAWS)
def test_parameters_that_are_set_are_those_of_the_model(core: Core, law: str) -> None:
    variant, values, names = LAWS[law]
    rng = np.random.default_rng(1)
    values = {"variant": variant, "law_lifetime_ms": 300, **values}
    own = dict(zip(core.ranges, core.params(variant, **values).tolist(), strict=True))
    link, model = Link(core, **values), ModelOfTheLaw(core, own, names)
    done = {True: 0, False: 0}
    expired = 0
    for _ in range(2000):
        kind = rng.random()
        if kind < 0.4:
            bounds = model.bounds()
            factors = [int(rng.integers(low, high + 1)) for low, high in bounds]
            if rng.random() < 0.4:
                at = int(rng.integers(5))
                factors[at] = [0, bounds[at][0] - 1, bounds[at][0], bounds[at][1], bounds[at][1] + 1][rng.integers(5)]
            lifetime_ms = int(rng.integers(1, 500))
            taken = link.set_law(factors, lifetime_ms)
            assert taken == model.set(factors, lifetime_ms, link.now)
            done[taken] += 1
        elif kind < 0.95:
            before = model.until_ns
            link.offer(ecn=int(rng.integers(4)), after_ns=int(rng.integers(0, 200_000_000)))
            link.take()
            model.tick(link.now)
            expired += before is not None and model.until_ns is None
        elif kind < 0.98:
            link.detach()
            model.end()
        else:
            model.own = model.own | {"target_us": int(rng.integers(1000, 40_000))}
            link.configure(np.array(list(model.own.values()), np.uint64))
            model.end()
        assert link.params(core) == model.force
    assert min(*done.values(), expired) > 50


def test_a_law_ends_to_the_nanosecond(core: Core) -> None:
    link = Link(core, variant=RFC9332)
    assert link.set_law([2 * SAME, *[SAME] * 4], 100)
    assert link.offer(after_ns=99_999_999)["qdelay_ref"] == 30_000
    assert link.offer(after_ns=1)["qdelay_ref"] == 15_000
    assert not link.set_law([2 * SAME, *[SAME] * 4], 0)  # what never holds


@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX])
def test_factors_of_one_change_no_decision(core: Core, variant: int) -> None:
    rng = np.random.default_rng(2)
    plain, set_ = Link(core, variant=variant), Link(core, variant=variant)
    for packet in range(2000):
        ecn, after_ns = int(rng.integers(4)), int(rng.integers(0, 3_000_000))
        if packet % 50 == 0:
            assert set_.set_law([SAME] * 5, 1000)
        assert plain.offer(ecn, after_ns=after_ns) == set_.offer(ecn, after_ns=after_ns)
        if packet % 3:
            plain.take()
            set_.take()
        assert plain.packets[-1].raw[28:] == set_.packets[-1].raw[28:]


def test_gains_too_high_for_the_target_are_refused(core: Core) -> None:
    most = {"law_target_high": 256 * SAME, "law_alpha_high": 256 * SAME}
    link = Link(core, variant=RFC9332, alpha_q=1 << 26, target_us=1_000_000, **most)
    assert link.set_law([SAME, *[SAME] * 4])
    assert not link.set_law([256 * SAME, 16 * SAME, *[SAME] * 3])
    assert link.params(core)["target_us"] == 1_000_000


# -- probabilities, set for a while


def fate(link: Link, ecn: int = 2) -> tuple[int, int]:
    """Who decided about a packet that comes and goes, and what."""
    link.offer(ecn)
    link.take()
    row = link.row()
    return int(row["decided_by"]), int(row["applied_action"])


@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX], ids=AQMS)
def test_probabilities_hold_for_their_lifetime(core: Core, variant: int) -> None:
    link = Link(core, variant=variant, law_lifetime_ms=200, **FREE)
    link.attach(0)
    assert fate(link) == fate(link, 1) == (0, 0)
    assert link.set_prob(0.2499, 1.0)
    assert fate(link, 1) == (1, 2)
    assert link.set_prob(1.0, 0.0, 1000)  # no longer than the operator lets it
    assert fate(link) == fate(link, 1) == (1, 1)  # ECT is dropped in overload, in L too
    link.now += 197_999_999
    link.offer(after_ns=0)
    assert link.row()["decided_by"] == 1
    link.offer(after_ns=1)
    assert link.row()["decided_by"] == 0
    link.take()
    link.take()
    for end in (link.detach, lambda: link.set_law([SAME] * 5), lambda: link.configure(core.params(variant))):
        assert link.set_prob(0.0, 1.0)
        assert fate(link, 1) == (1, 2)
        end()
        assert fate(link, 1)[0] == 0
    assert link.set_law([2 * SAME, *[SAME] * 4]) and link.set_prob(0.0, 0.0)
    assert link.params(core)["target_us"] == core.params(variant)[1]  # the later one holds


def test_probabilities_are_bounded_by_the_operator(core: Core) -> None:
    link = Link(core, prob_c_high=0, prob_l_high=16384, **FREE)
    assert not link.set_prob(1 / ALL, 0.0) and not link.set_prob(0.0, 0.25 + 1 / ALL) and not link.set_prob(0.0, 0.0, 0)
    assert fate(link)[0] == 0
    assert link.set_prob(0.0, 0.25)


@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX], ids=AQMS)
def test_a_packet_of_l_that_was_to_be_decided_when_the_lifetime_ended(core: Core, variant: int) -> None:
    link = Link(core, variant=variant, **FREE)
    assert link.set_prob(0.0, 1.0, 1)
    link.offer(1, after_ns=0)
    link.now += 1_000_000
    assert link.take() == 0  # the law's own decision
    assert link.row()["decided_by"] == 2


@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX], ids=AQMS)
@pytest.mark.parametrize("ecn", [0, 1, 2])
def test_the_shield_bounds_set_probabilities(core: Core, variant: int, ecn: int) -> None:
    def hit(hits: int) -> tuple[float, float]:
        """Hits of an agent by all packets; and the law's probability for C."""
        link = Link(core, variant=variant, shield_hits=hits, shield_c_us=0, shield_l_us=0, shield_drops=65536, quirks=0)
        for turn in range(3000):
            link.set_prob(0.2, 1.0)
            link.offer(ecn)
            if turn % 40:  # a little more comes than goes
                link.take()
        rows = [link.row(packet) for packet in range(1500, 3000)]
        agent = np.mean([row["decided_by"] == 1 and row["applied_action"] > 0 for row in rows])
        return float(agent), float(np.mean([(row["drop_probability"] / 2.0**31) ** 2 for row in rows]))

    free, _ = hit(0)
    assert free == pytest.approx(1.0 if ecn == 1 else 0.2, abs=0.06)
    if ecn != 1:
        bounded, likely = hit(256)
        assert bounded <= 1.05 * likely + 0.003


def test_the_shield_takes_a_queue_back_from_set_probabilities(core: Core) -> None:
    link = Link(core, variant=RFC9332, shield_c_us=20_000, shield_hold_us=5_000_000, law_lifetime_ms=60_000)
    calm = int(link.offer()["drop_probability"])
    assert link.set_prob(0.0, 0.0, 60_000)
    rows = [link.offer() for _ in range(60)]
    assert [int(row["decided_by"]) for row in rows[:15]] == [1] * 15 and rows[-1]["decided_by"] == 2
    assert link.offer(1)["decided_by"] == 1  # L is not held
    held = Link(core, variant=RFC9332, shield_c_us=0)
    held.set_prob(0.0, 0.0)
    wound_up = [int(held.offer()["drop_probability"]) for _ in range(90)][-1]
    back = int(held.offer(after_ns=20_000_000)["drop_probability"])
    assert calm <= back < wound_up / 2  # the law has its queue as it was
