"""Fair queueing, FQ-CoDel and COBALT: their laws against plain models, and what they do in the closed loop."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import carray

from l4s_gym.evaluation.native import Run, simulate
from l4s_gym.schema import DROP, ECT_0, ECT_1, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim import cobalt, fq_codel
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.cobalt import COBALT
from l4s_gym.sim.drive import open_loop
from l4s_gym.sim.fq_codel import FQ_CODEL
from l4s_gym.sim.memory import env_record, packet_at, pointer, queue_at
from l4s_gym.sim.packets import allocate, append, pop, release, renew
from l4s_gym.sim.scenario import Scenario

Build = Callable[..., Scenario]
MS = 1_000_000
FAIR = ("fq_codel", "cobalt")
many = settings(max_examples=300, deadline=None, derandomize=True)


# -- the scheduler


def player(discipline: Any) -> Any:
    """Compiled: packets join their queues and are served; what each service took, as the flow, or -1."""
    classify, joined = discipline.classify, discipline.after_enqueue
    pick, left = discipline.pick, discipline.after_dequeue

    def play(address: int, steps_at: int, count: int) -> None:
        env = env_record(address)
        steps = carray(pointer(steps_at), (count, 3), np.int64)
        for k in range(count):
            if steps[k, 1] > 0:
                p = allocate(env)
                renew(env, p, steps[k, 0], 0)
                packet_at(env, p).len = steps[k, 1]
                index = classify(env, p)
                append(env, queue_at(env, index), p)
                joined(env, index, p)
                continue
            index = pick(env)
            steps[k, 2] = -1
            if index >= 0:
                p = pop(env, queue_at(env, index))
                left(env, index, p, ENQUEUE)
                steps[k, 2] = packet_at(env, p).flow
                release(env, p)

    return numba.njit(play)


PLAYERS = {"fq_codel": player(FQ_CODEL), "cobalt": player(COBALT)}


class Model:
    """Deficit round robin with new and old flows, in Python's lists."""

    def __init__(self, quantum: int, cake: bool) -> None:
        self.quantum, self.cake = quantum, cake
        self.queues: dict[int, deque[int]] = {}
        self.new: deque[int] = deque()
        self.old: deque[int] = deque()
        self.deficit: dict[int, int] = {}

    def arrive(self, flow: int, length: int) -> None:
        self.queues.setdefault(flow, deque()).append(length + 14)
        if flow not in self.new and flow not in self.old:
            self.new.append(flow)
            self.deficit[flow] = self.quantum

    def serve(self) -> int:
        if self.cake and not any(self.queues.values()):
            return -1
        while turn := self.new or self.old:
            flow = turn[0]
            if self.deficit[flow] <= 0:
                turn.popleft()
                self.deficit[flow] += self.quantum
                self.old.append(flow)
            elif not self.queues[flow]:
                once_more = turn is self.new and self.old and not self.cake
                turn.popleft()
                if once_more:
                    self.old.append(flow)
            else:
                length = self.queues[flow].popleft()
                self.deficit[flow] -= length
                return flow
        return -1


@pytest.mark.parametrize("aqm", [FAIR[0], *(pytest.param(each, marks=pytest.mark.slow) for each in FAIR[1:])])
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([0, 0, 0, 60, 500, 1500, 9000])), min_size=1, max_size=150
    )
)
@many
def test_the_scheduler_serves_in_the_order_of_the_model(aqm: str, steps: list[tuple[int, int]]) -> None:
    batch = idle(aqm)
    rows = np.array([(flow, length, 0) for flow, length in steps], np.int64)
    PLAYERS[aqm](batch.address, rows.ctypes.data, len(rows))
    model = Model(int(batch.own["quantum"][0]), aqm == "cobalt")
    for (flow, length), (_, _, served) in zip(steps, rows.tolist(), strict=True):
        if length:
            model.arrive(flow, length)
        else:
            assert served == model.serve()


def idle(aqm: str) -> Batch:
    """A batch at the start of an episode."""
    batch = Batch(open_loop(100.0, limit_packets=1000), aqm=aqm)
    batch.reset(0, np.random.default_rng(0))
    return batch


def test_a_new_flow_is_served_before_old_ones() -> None:
    arrivals = [(0, 1500)] * 3 + [(1, 1500)] * 3
    rows = np.array([(*each, 0) for each in [*arrivals, (0, 0), (0, 0), (0, 0), (2, 100), *[(0, 0)] * 6]], np.int64)
    batch = idle("fq_codel")
    PLAYERS["fq_codel"](batch.address, rows.ctypes.data, len(rows))
    assert [flow for _, length, flow in rows.tolist() if not length] == [0, 1, 0, 2, 1, 0, 1, -1, -1]


@given(st.lists(st.integers(60, 9000), min_size=1, max_size=200))
@many
def test_the_longest_queue_gives_half_of_its_bytes(lengths: list[int]) -> None:
    """The loop of sch_fq_codel: until half of the bytes are gone, or 64 packets."""
    gone, dropped = 0, 0
    while True:
        gone += lengths[dropped]
        dropped += 1
        if not (dropped < 64 and gone < sum(lengths) // 2):
            break
    total, lost = sum(lengths), 1
    while fq_codel.loses_more(lost, sum(lengths[lost:]), total - (total >> 1)):
        lost += 1
    assert lost == dropped


def test_ce_threshold_is_for_ect1_alone() -> None:
    marked = [ecn for ecn in range(4) if fq_codel.exceeds_ce_threshold(ecn, 2 * MS, MS)]
    assert marked == [ECT_1]
    assert not fq_codel.exceeds_ce_threshold(ECT_1, MS, MS) and not fq_codel.exceeds_ce_threshold(ECT_1, MS, 0)


# -- COBALT


def model_cobalt(
    count: int, due_ns: int, dropping: bool, now: int, sojourn: int, ecn: int, blue: bool, target: int, frame: int
) -> tuple[int, int, int, bool]:
    """One packet, as sch_cake describes it: `schedule` has the sign of "is the next signal past?"."""

    def later(time_ns: int, k: int) -> int:
        return time_ns + int(100 * MS / math.sqrt(max(k, 1)))

    schedule = now - due_ns
    is_due = count > 0 and schedule >= 0
    over = sojourn > max(target, 4 * frame)
    if over and not dropping:
        due_ns = later(now, count)
    if over and count == 0:
        count = 1
    dropping = over
    action = ENQUEUE
    if is_due and dropping:
        action = DROP if ecn == NOT_ECT else MARK
        count += 1
        due_ns = later(due_ns, count)
        schedule = now - due_ns
    else:
        while is_due:
            count -= 1
            due_ns = later(due_ns, count)
            schedule = now - due_ns
            is_due = count > 0 and schedule >= 0
    action = DROP if blue else action
    if count == 0:
        due_ns = now + 100 * MS
    elif schedule > 0 and action != DROP:
        due_ns = now
    return action, count, due_ns, dropping


@given(
    st.tuples(st.integers(0, 40), st.integers(0, 2_000 * MS), st.booleans(), st.integers(0, 2_000 * MS)),
    st.tuples(st.integers(0, 40 * MS), st.sampled_from([NOT_ECT, ECT_0, ECT_1, 3]), st.booleans()),
    st.sampled_from([0, MS, 3 * MS]),
)
@many
def test_cobalt_is_the_model(state: tuple[Any, ...], packet: tuple[Any, ...], frame: int) -> None:
    given = [*state, *packet, 5 * MS]
    assert cobalt.serve(*[*given, 100 * MS, frame]) == model_cobalt(*[*given, frame])


def signals(sojourn_ns: int, seconds: float, count: int = 0) -> tuple[list[int], int]:
    """Times of the signals (ms) where a packet leaves each ms with this sojourn, and the count at the end."""
    times, next_ns, dropping = [], 100 * MS, False
    for now in range(0, round(seconds * 1e9), MS):
        action, count, next_ns, dropping = cobalt.serve(count, next_ns, dropping, now, sojourn_ns, ECT_0, False)
        if action == MARK:
            times.append(now // MS)
    return times, count


@pytest.mark.slow
def test_cobalt_signals_ever_more_often_above_the_target_and_forgets_below() -> None:
    times, count = signals(6 * MS, 1.0)
    expected = np.cumsum([100.0, *(100.0 / math.sqrt(k) for k in range(2, len(times) + 1))])
    assert np.abs(np.array(times) - expected).max() <= 2.0
    assert signals(5 * MS, 10.0) == ([], 0)
    assert count == len(times) + 1
    decayed = [signals(0, seconds, count)[1] for seconds in (0.0, 0.2, 0.5, 10.0)]
    assert decayed[0] == count > decayed[1] > decayed[2] > decayed[3] == 0


def test_blue_drops_whatever_ecn_says() -> None:
    assert cobalt.serve(0, 0, False, 0, 0, ECT_1, True)[0] == DROP


def test_cobalt_rests_step_by_step() -> None:
    assert cobalt.rest(4, 10, 9) == (4, 10)
    assert cobalt.rest(4, 10, 10) == (3, 10 + int(100 * MS / math.sqrt(3)))
    assert cobalt.rest(1, 10, 10) == (0, 10 + 100 * MS)
    assert cobalt.rest(0, 10, 10) == (0, 10)


@pytest.mark.parametrize(
    ("rate_mbps", "target_ms", "interval_ms", "frame_ms", "quantum"),
    [(1.0, 18.168, 113.168, 12.112, 300), (4.0, 5.0, 100.0, 3.028, 300), (20.0, 5.0, 100.0, 0.6056, 610),
     (1000.0, 5.0, 100.0, 0.012112, 1514), (0.1, 181.68, 363.36, 121.12, 300)],
)  # fmt: skip
def test_cobalt_is_tuned_to_the_rate(
    rate_mbps: float, target_ms: float, interval_ms: float, frame_ms: float, quantum: int
) -> None:
    got = cobalt.tune(5 * MS, 100 * MS, rate_mbps * 1e6)
    assert got == (*(pytest.approx(each * MS, abs=2) for each in (target_ms, interval_ms, frame_ms)), quantum)


# -- in the closed loop


def run(build: Build, aqm: str, *sources: dict[str, Any], log: bool = False, **fields: Any) -> Run:
    link = {"rate_mbps": 20.0, **fields.pop("link", {})}
    tree = {"horizon_s": 30.0, "warmup_s": 10.0, **fields}
    return simulate(build(*sources, link=link, **tree), aqm, seed=1, log=log, sample_ms=100.0)


UNEQUAL = (
    {"kind": "cubic", "rtt_ms": 10.0, "count": 2},
    {"kind": "cubic", "rtt_ms": 80.0, "count": 2},
    {"kind": "newreno", "rtt_ms": 40.0, "ecn": "not-ect"},
    {"kind": "dctcp", "rtt_ms": 20.0},
    {"kind": "prague", "rtt_ms": 20.0},
    {"kind": "cbr", "rate_mbps": 6.0, "rtt_ms": 10.0},
    {"kind": "cbr", "rate_mbps": 4.0, "rtt_ms": 10.0, "ecn": "ect1"},
)


def test_nine_unequal_flows_get_equal_rates(scenario: Build) -> None:
    jain = {aqm: run(scenario, aqm, *UNEQUAL).summary["jain"] for aqm in ("fifo", *FAIR)}
    assert jain["fq_codel"] > 0.98 and jain["cobalt"] > 0.98
    assert jain["fifo"] < 0.8


@pytest.mark.parametrize("aqm", FAIR)
def test_the_delay_stays_near_the_target(aqm: str, scenario: Build) -> None:
    summary = run(scenario, aqm, {"kind": "cubic", "rtt_ms": 30.0, "count": 4}).summary
    assert 3.0 < summary["delay_ms"]["C"]["mean"] < 7.0
    assert summary["utilisation"] > 0.99


def test_a_flow_alone_meets_codel(scenario: Build) -> None:
    runs = [run(scenario, aqm, {"kind": "cubic", "rtt_ms": 30.0}).summary for aqm in ("codel", "fq_codel")]
    assert runs[0] == runs[1]


def test_ce_threshold_keeps_the_delay_of_l4s_flows_low(scenario: Build) -> None:
    flows = ({"kind": "prague", "rtt_ms": 20.0}, {"kind": "cubic", "rtt_ms": 20.0})
    plain = run(scenario, "fq_codel", *flows).summary
    marked = run(scenario, "fq_codel", *flows, options={"fq_codel": {"ce_threshold_ms": 1.0}}).summary
    assert marked["delay_ms"]["L"]["mean"] < 0.5 * plain["delay_ms"]["L"]["mean"]
    assert marked["delay_ms"]["C"]["mean"] == pytest.approx(plain["delay_ms"]["C"]["mean"], rel=0.3)
    assert marked["jain"] > 0.98


def test_blue_stops_what_marks_do_not(scenario: Build) -> None:
    """Unresponsive L4S traffic of 1.5 x the link: CoDel only marks it, so that its buffer stays full."""
    flood = {"kind": "cbr", "rate_mbps": 30.0, "ecn": "ect1"}
    codel, blue = (run(scenario, aqm, flood) for aqm in ("codel", "cobalt"))
    assert codel.summary["delay_ms"]["L"]["p50"] > 200.0
    assert blue.summary["delay_ms"]["L"]["p50"] < 50.0
    assert blue.summary["utilisation"] > 0.98
    assert 0.2 < blue.batch.base_probability(0) < 0.6
    assert blue.batch.own_queue["prob"][0].argmax() == 2


@pytest.mark.parametrize("aqm", FAIR)
@pytest.mark.parametrize("link", [{"limit_packets": 100}, {"buffer_ms": 60.0}])
def test_a_full_buffer_takes_from_the_longest_queue(aqm: str, link: dict[str, Any], scenario: Build) -> None:
    flood = {"kind": "cbr", "rate_mbps": 60.0, "ecn": "ect1", "packet_length": 1500}
    thin = {"kind": "cbr", "rate_mbps": 0.5, "packet_length": 200}
    got = run(scenario, aqm, flood, thin, link=link, horizon_s=4.0, log=True)
    env, flow, rows = got.batch.env[0], got.batch.flow[0], got.records
    assert flow["drops"][1] == 0 < flow["drops"][0]
    assert env["packets"] <= env["limit_packets"] or env["bytes"] <= env["limit_bytes"]
    assert got.summary["delay_ms"]["C"]["max"] < 2.0  # the thin flow does not wait for the flood
    # The log has each drop, those from heads of queues too.
    assert (rows["applied_action"] == DROP).sum() == pytest.approx(int(env["dropped"]), abs=int(env["packets"]))
    assert (rows["flow_id"][rows["applied_action"] == DROP] == 0).all()


def test_acks_have_queues_of_their_own(scenario: Build) -> None:
    link = {"rate_mbps": 4.0, "acks_in_queue": True}
    batch = run(scenario, "fq_codel", {"kind": "cubic", "rtt_ms": 20.0, "count": 3}, link=link).batch
    offered = batch.queues["total_packets"][0]
    assert (offered[:2] == 0).all() and (offered[2:8] > 100).all()
    assert batch.queued(0, "bytes").tolist() == [batch.env["bytes"][0], 0]


def test_marks_and_drops_by_ecn(scenario: Build) -> None:
    flows = ({"kind": "cubic", "rtt_ms": 20.0}, {"kind": "newreno", "rtt_ms": 20.0, "ecn": "not-ect"})
    for aqm in FAIR:
        flow = run(scenario, aqm, *flows).batch.flow[0]
        assert flow["marks"][0] > 0 == flow["drops"][0]
        assert flow["drops"][1] > 0 == flow["marks"][1]
