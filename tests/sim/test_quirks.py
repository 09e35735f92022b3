"""The quirks of the testbed's kernel, one by one: the pure functions, the engine's own log, and switched off."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from l4s_gym.errors import L4SError
from l4s_gym.evaluation.native import simulate
from l4s_gym.schema import CE, DROP, ECT_0, ECT_1, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim import dualpi2_freebsd as freebsd
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.dualpi2_freebsd import ALL_QUIRKS, Quirk
from l4s_gym.sim.scenario import Scenario, load

LOW, HIGH = freebsd.DERANDOMISE_LOW, freebsd.DERANDOMISE_HIGH
NEVER_HITS = MAX_PROB + 1
ECN_LIMIT = 214_695_936
"""9.998 %: from here on ECN packets are dropped."""

Build = Callable[..., Scenario]


def without(quirk: Quirk) -> int:
    return ALL_QUIRKS & ~int(quirk)


# -- pure functions


def test_documentation_lists_every_quirk() -> None:
    assert freebsd.__doc__ is not None
    documented = re.findall(r"^\| `(\w+)` \|", freebsd.__doc__, re.MULTILINE)
    assert documented == [quirk.lower() for quirk in Quirk.__members__]


@pytest.mark.parametrize(
    ("prob", "old_us", "queue_bytes", "guarded"),
    [
        (0, 7499, 10**6, True),
        (0, 7500, 10**6, False),
        (MAX_PROB // 5 - 1, 0, 10**6, True),
        (MAX_PROB // 5, 0, 10**6, False),
        (MAX_PROB, 10**6, 1600, True),
        (MAX_PROB, 10**6, 1601, False),
    ],
)
def test_guard(prob: int, old_us: int, queue_bytes: int, guarded: bool) -> None:
    assert freebsd.guarded(prob, old_us, queue_bytes) == guarded


@pytest.mark.parametrize(("prob", "accu", "after"), [(0, 5, 0), (7, 0, 7), (7, 5, 12), (7, HIGH, HIGH + 7)])
def test_accumulate(prob: int, accu: int, after: int) -> None:
    assert freebsd.accumulate(prob, accu) == after


@pytest.mark.parametrize("is_l4s", [False, True])
def test_derandomise(is_l4s: bool) -> None:
    prob, off = MAX_PROB // 2, without(Quirk.DERANDOMISE)
    assert freebsd.draw(prob, LOW - 1, is_l4s, 0, 0) == (False, LOW - 1)
    assert freebsd.draw(prob, LOW, is_l4s, 0, 0) == (True, 0)
    assert freebsd.draw(prob, HIGH - 1, is_l4s, NEVER_HITS, NEVER_HITS) == (False, HIGH - 1)
    assert freebsd.draw(prob, HIGH, is_l4s, NEVER_HITS, NEVER_HITS)[0]
    assert freebsd.draw(prob, 0, is_l4s, 0, 0, 0, off) == (True, 0)
    assert freebsd.draw(prob, HIGH, is_l4s, NEVER_HITS, NEVER_HITS, 0, off) == (False, HIGH)


def test_accu_kept() -> None:
    prob = MAX_PROB // 2
    assert freebsd.draw(prob, HIGH, False, NEVER_HITS, NEVER_HITS) == (True, HIGH)
    assert freebsd.draw(prob, HIGH, False, NEVER_HITS, NEVER_HITS, 0, without(Quirk.ACCU_KEPT)) == (True, 0)


def test_classic_probability_is_squared() -> None:
    prob = MAX_PROB // 2
    for first, second, hit in ((0, 0, True), (0, prob, False), (prob, 0, False), (prob - 1, prob - 1, True)):
        assert freebsd.draw(prob, LOW, False, first, second)[0] == hit
    assert freebsd.draw(prob, LOW, True, prob - 1, NEVER_HITS)[0]
    assert not freebsd.draw(prob, LOW, True, prob, 0)[0]


def test_dead_coupling() -> None:
    own, classic, number = MAX_PROB // 10, MAX_PROB // 4, MAX_PROB // 3
    assert not freebsd.draw(own, LOW, True, number, 0, classic)[0]
    assert freebsd.draw(own, LOW, True, number, 0, classic, without(Quirk.DEAD_COUPLING))[0]
    # Coupled to more than 1 the kernel's overload rule squares L's own probability.
    overload = MAX_PROB // 2 + 1
    assert not freebsd.draw(own, LOW, True, 0, number, overload, without(Quirk.DEAD_COUPLING))[0]
    assert freebsd.draw(own, LOW, True, 0, 0, overload, without(Quirk.DEAD_COUPLING))[0]


@pytest.mark.parametrize(
    ("ecn", "prob", "is_l4s", "kernel", "rfc"),
    [
        (ECT_0, ECN_LIMIT - 1, False, MARK, MARK),
        (ECT_0, ECN_LIMIT, False, DROP, MARK),
        (ECT_0, (MAX_PROB >> 1) + 1, False, DROP, DROP),
        (ECT_1, ECN_LIMIT - 1, True, MARK, MARK),
        (ECT_1, ECN_LIMIT, True, DROP, MARK),
        (ECT_1, MAX_PROB, True, DROP, MARK),
        (CE, 1, False, MARK, MARK),
        (NOT_ECT, 1, False, DROP, DROP),
        (NOT_ECT, 1, True, DROP, DROP),
    ],
)
def test_ecn_drop_threshold(ecn: int, prob: int, is_l4s: bool, kernel: int, rfc: int) -> None:
    assert freebsd.resolve(True, True, 0, ecn, prob, is_l4s) == (kernel, kernel)
    off = without(Quirk.ECN_DROP_THRESHOLD)
    assert freebsd.resolve(True, True, 0, ecn, prob, is_l4s, 819, off) == (rfc, rfc)
    assert freebsd.resolve(False, True, 0, ecn, prob, is_l4s) == (ENQUEUE, ENQUEUE)


def test_burst_allowance() -> None:
    off = without(Quirk.BURST_ALLOWANCE)
    assert freebsd.resolve(True, True, 1, ECT_0, 1) == (DROP, ENQUEUE)
    assert freebsd.resolve(True, True, 1, ECT_0, 1, False, 819, off) == (MARK, MARK)
    assert freebsd.resolve(True, False, 0, ECT_0, 1) == (DROP, ENQUEUE)  # an inactive controller


@pytest.mark.parametrize(("ecn", "kernel", "rfc"), [(NOT_ECT, 0, 0), (ECT_1, 1, 1), (ECT_0, 0, 0), (CE, 0, 1)])
def test_ce_in_classic(ecn: int, kernel: int, rfc: int) -> None:
    assert freebsd.classify(ecn) == kernel
    assert freebsd.classify(ecn, without(Quirk.CE_IN_CLASSIC)) == rfc


def test_controller_quirks() -> None:
    def change(prob: int, current_us: int, old_us: int, **off: bool) -> int:
        return freebsd.update_probability(prob, current_us, old_us, **off) - prob

    # Autotune: the same step is 2^11 times larger.
    assert change(0, 120_000, 0) == 171_048
    assert change(0, 120_000, 0, autotune=False) >> 11 == 171_048
    # Cap: 2 % a step from 10 % on.
    assert change(300_000_000, 400_000, 0) == MAX_PROB // 50
    assert change(300_000_000, 400_000, 0, capdrop=False) > MAX_PROB // 50
    # Decay: 1/64 while both delays are 0.
    step = change(MAX_PROB // 2, 0, 0, decay=False)
    kept = MAX_PROB // 2 + step
    assert change(MAX_PROB // 2, 0, 0) == step - (kept >> 6)


# -- the engine's log obeys the kernel's rules


@pytest.fixture(scope="module")
def log() -> Any:
    """Decisions of a run with marks, drops, random hits and hits by the 8.5 rule (T,)."""
    scenario = load("l4s-llm-testbed").replace(**{"horizon_s": 40.0, "link.buffer_ms": 1000.0})
    return simulate(scenario, seed=3, log=True).records


def columns(rows: Any, *names: str) -> list[Any]:
    return [rows[name].astype(np.int64) for name in names]


def test_log_covers_the_rules(log: Any) -> None:
    action, applied, after = columns(log, "action", "applied_action", "accumulated_probability")
    assert (action == MARK).sum() > 20
    assert ((action == DROP) & (applied == DROP)).sum() > 100
    assert ((action != ENQUEUE) & (after == 0)).sum() > 50
    assert ((action != ENQUEUE) & (after >= HIGH)).sum() > 5
    assert set(log["queue_type"].tolist()) == {0, 1}


def test_log_classification(log: Any) -> None:
    assert np.array_equal(log["queue_type"] == 1, log["ecn"] == ECT_1)


def test_log_accumulated_probability(log: Any) -> None:
    """The sum grows by the queue's own probability (no coupling), and every hit keeps to its bounds."""
    prob, old, size, before, after, action = columns(
        log, "drop_probability", "queue_delay_old", "length_in_bytes", "accumulated_probability_before",
        "accumulated_probability", "action",
    )  # fmt: skip
    guarded = ((old < 7500) & (prob < MAX_PROB // 5)) | (size <= 1600)
    assert (action[guarded] == ENQUEUE).all()
    assert (after[guarded] == before[guarded]).all()
    step = np.where(prob == 0, 0, before + prob)
    kept = ~guarded & ((action == ENQUEUE) | (step >= HIGH))
    assert (after[kept] == step[kept]).all()
    assert (action[~guarded & (step < LOW)] == ENQUEUE).all()
    assert (action[~guarded & (step >= HIGH)] != ENQUEUE).all()
    random_hit = ~guarded & (action != ENQUEUE) & (step < HIGH)
    assert (after[random_hit] == 0).all()
    classic_twice = (log["queue_type"] == 1) & (prob > 0) & ~guarded & (action == ENQUEUE)
    assert classic_twice.sum() > 100


def test_log_action(log: Any) -> None:
    prob, burst, status, action, applied, ecn = columns(
        log, "drop_probability", "burst_allowance", "status_flags", "action", "applied_action", "ecn"
    )
    hit = action != ENQUEUE
    live = hit & (burst == 0) & (status == 3)
    expected = np.where((ecn != NOT_ECT) & (prob < ECN_LIMIT), MARK, DROP)
    assert (action[live] == expected[live]).all()
    assert (applied[live] == action[live]).all()
    withheld = hit & ~live
    assert (action[withheld] == DROP).all()
    assert (applied[withheld] == ENQUEUE).all()


@pytest.mark.parametrize("queue", [0, 1])
def test_log_next_row(log: Any, queue: int) -> None:
    """What a row leaves behind is what the next row of the queue finds."""
    rows = log[log["queue_type"] == queue]
    before, after, applied, status, start, packets, size, length = columns(
        rows, "accumulated_probability_before", "accumulated_probability", "applied_action", "status_flags",
        "measurement_start", "total_packets", "total_bytes", "packet_length",
    )  # fmt: skip
    activated = status[:-1] == 0
    left = np.where((applied[:-1] == DROP) | activated, 0, after[:-1])
    # A packet that goes at the queue's head to make room does not reset the sum.
    assert (before[1:] == left).all()
    assert (np.diff(packets) == 1).all()  # offered packets, drops included
    assert (np.diff(size) == length[:-1]).all()
    assert activated.any()
    prob, old, burst, time_us = columns(rows, "drop_probability", "queue_delay_old", "burst_allowance", "time_us")
    fresh = np.flatnonzero(activated) + 1
    # Activation after the first packet's decision: everything starts anew, and 150 ms of immunity.
    assert (start[fresh] == time_us[fresh - 1]).all()
    soon = fresh[time_us[fresh] - time_us[fresh - 1] < 15_000]
    assert len(soon)
    assert (prob[soon] == 0).all() and (old[soon] == 0).all() and (burst[soon] == 150_000).all()
    moved = np.diff(burst)
    renewed = burst[1:] == 150_000
    assert ((moved[~renewed] <= 0) & (moved[~renewed] % 15_000 == 0)).all()


def test_head_drop_takes_from_the_longer_queue(scenario: Build) -> None:
    flood = scenario(
        {"kind": "cbr", "rate_mbps": 40.0, "ecn": "not-ect"},
        {"kind": "cbr", "rate_mbps": 2.0, "ecn": "ect1"},
        link={"rate_mbps": 8.0, "limit_packets": 40},
        horizon_s=0.2,  # within the immunity nothing else drops
    )
    run = simulate(flood, log=True)
    rows = run.records
    assert (rows["applied_action"] == ENQUEUE).all()
    queue = run.batch.queue[0]
    assert queue["drops"][0] > 100
    assert queue["drops"][1] == 0
    assert run.batch.env["packets"][0] == 40
    tail = simulate(flood.replace(**{"options.dualpi2_freebsd.quirks_off": ["head_drop"]}), log=True).records
    assert (tail["applied_action"] == DROP).sum() > 100
    assert tail["length_in_packets"].max() <= 40


def test_drr_serves_by_weight(scenario: Build) -> None:
    both = scenario(
        {"kind": "cbr", "rate_mbps": 40.0, "ecn": "not-ect"},
        {"kind": "cbr", "rate_mbps": 40.0, "ecn": "ect1"},
        link={"rate_mbps": 8.0, "limit_packets": 2000},
        horizon_s=5.0,
    )

    def ratio(chosen: Scenario) -> float:
        left = simulate(chosen).batch.queue[0]["left"]
        return float(left[1] / left[0])

    assert ratio(both) == pytest.approx(2.0, rel=0.02)
    for weight in (1, 2, 5):
        assert ratio(both.replace(**{"options.dualpi2_freebsd.drr_weight": weight})) == pytest.approx(weight, rel=0.02)
    assert ratio(both.replace(**{"options.dualpi2_freebsd.quirks_off": ["drr"]})) == pytest.approx(15.0, rel=0.03)


def test_restart_on_drain(scenario: Build) -> None:
    """Bursts with pauses: each drained queue starts without probability, or keeps it."""
    bursts = scenario(
        {"kind": "onoff", "rate_mbps": 30.0, "on_s": 0.5, "off_s": 0.5, "ecn": "not-ect"},
        link={"rate_mbps": 8.0, "limit_packets": 300},
    )
    for off, expected in ((False, True), (True, False)):
        chosen = bursts.replace(**{"options.dualpi2_freebsd.quirks_off": ["restart_on_drain"] if off else []})
        rows = simulate(chosen, log=True).records
        waking = np.flatnonzero(rows["status_flags"][:-1] == 0) + 1
        assert len(waking) > 3
        assert bool((rows["drop_probability"][waking] == 0).all()) == expected


def test_per_queue_control(scenario: Build) -> None:
    """A full C leaves the probability of L alone, unless both are controlled by the larger delay."""
    chosen = scenario(
        {"kind": "cbr", "rate_mbps": 12.0, "ecn": "not-ect"},
        {"kind": "cbr", "rate_mbps": 5.3, "ecn": "ect1"},
        link={"rate_mbps": 8.0},
        horizon_s=2.0,
    )
    for off, expected in (((), True), (("per_queue_control",), False)):
        # L gets 16/3 Mbit/s: that queue is short, and hardly ever empty.
        kept = chosen.replace(**{"options.dualpi2_freebsd.quirks_off": off})
        rows = simulate(kept, log=True).records
        prob = [int(rows["drop_probability"][rows["queue_type"] == queue].max()) for queue in (0, 1)]
        assert prob[0] > MAX_PROB // 100
        assert (prob[1] < MAX_PROB // 100_000) == expected


def test_no_l4s_step(scenario: Build) -> None:
    one = scenario({"kind": "prague", "rtt_ms": 10.0}, link={"rate_mbps": 40.0}, horizon_s=5.0)
    own = "options.dualpi2_freebsd"
    with_step = one.replace(**{f"{own}.quirks_off": ["no_l4s_step"], f"{own}.step_ms": 1.0})
    plain, stepped = simulate(one).summary["delay_ms"]["L"], simulate(with_step).summary["delay_ms"]["L"]
    assert stepped["p50"] < 2.0 < plain["p50"]


# -- switched off by name


def exercise(build: Build, quirk: Quirk) -> Scenario:
    """A scenario in which the quirk matters."""
    testbed = load("l4s-llm-testbed").replace(horizon_s=10.0)
    if quirk is Quirk.CE_IN_CLASSIC:  # a packet that was marked comes a second time
        sources = {"kind": "cubic", "count": 2}, {"kind": "dctcp", "count": 2}
        return build(*sources, link={"rate_mbps": 8.0, "passes": 2})
    if quirk is Quirk.BURST_ALLOWANCE:  # 150 ms pass before the sum reaches 0.85
        return testbed.replace(**{"options.dualpi2_freebsd.max_burst_ms": 3000.0})
    if quirk is Quirk.ACCU_KEPT:  # 8.5 without a random hit: a small probability for long, and marks
        return load("l4s-llm-testbed").replace(**{"horizon_s": 40.0, "link.buffer_ms": 1000.0})
    if quirk is Quirk.IDLE_DECAY:  # the queue is empty while a packet is sent for long
        bursts = {"kind": "onoff", "rate_mbps": 1.5, "on_s": 2.0, "off_s": 0.2}
        return build(bursts, link={"rate_mbps": 0.5, "limit_packets": 20}, horizon_s=120.0)
    return testbed


@pytest.mark.parametrize("quirk", list(Quirk), ids=lambda quirk: quirk.name.lower())
def test_switching_off_changes_a_run(
    quirk: Quirk, scenario: Build, native: Callable[..., Batch], counters: Callable[..., dict[str, int]]
) -> None:
    assert quirk.name is not None
    chosen = exercise(scenario, quirk)
    off = native(chosen.replace(**{"options.dualpi2_freebsd.quirks_off": [quirk.name.lower()]}))
    assert int(off.own["quirks"][0]) == without(quirk)
    assert counters(off) != counters(native(chosen))


def test_all_can_be_switched_off(native: Callable[..., Batch]) -> None:
    run = native(load("l4s-llm-testbed").replace(**{"options.dualpi2_freebsd.quirks_off": ["all"]}), seconds=5.0)
    assert run.own["quirks"][0] == 0


def test_unknown_quirk_is_refused() -> None:
    chosen = load("l4s-llm-testbed").replace(**{"options.dualpi2_freebsd.quirks_off": ["dead_couplin"]})
    with pytest.raises(L4SError, match="unknown quirk 'dead_couplin': did you mean 'dead_coupling'"):
        Batch(chosen).reset(0, np.random.default_rng(0))
