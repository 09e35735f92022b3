"""The engine's decision log is a log of the kernel: rebuilt sums, the text form, and no label in the observation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils import seeding

from l4s_gym.data.causal import as_logged_observation, causal_observation, leak_share
from l4s_gym.data.logs import read_log, write_log
from l4s_gym.data.pools import load_rows
from l4s_gym.evaluation.native import simulate
from l4s_gym.schema import DROP, ENQUEUE, EXTENSION, MARK, OBSERVED, PRINTED, scale_observation
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.disciplines import AQMS
from l4s_gym.sim.dualpi2_freebsd import DERANDOMISE_LOW
from l4s_gym.sim.scenario import load
from tests.data.conftest import rebuild_accumulated

RUNS = {"l4s-llm-testbed": 60.0, "l4s-llm-testbed-vm": 60.0, "overload": 30.0, "web": 20.0}


@pytest.fixture(scope="module", params=RUNS)
def log(request: pytest.FixtureRequest) -> Any:
    """A native run's log (T,)."""
    name: str = request.param
    return simulate(load(name).replace(horizon_s=RUNS[name]), seed=11, log=True).records


def printed(records: Any) -> Any:
    """What a text log keeps: our own extension is cleared."""
    bare = records.copy()
    for field in EXTENSION:
        bare[field.name] = 0
    return bare


def test_rebuilt_sum_is_the_engines(log: Any) -> None:
    before, missing = rebuild_accumulated(printed(log))
    truth = log["accumulated_probability_before"].astype(np.int64)
    assert np.array_equal(before[~missing], truth[~missing])
    assert missing.mean() < 0.02
    assert (truth[~missing] > 0).sum() > 100


def test_text_round_trip(log: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    write_log(path, log)
    records, report = read_log([path])
    assert report.records_23 == 0
    for field in PRINTED:
        assert np.array_equal(records[field.name], log[field.name]), field.name
    before, missing = rebuild_accumulated(records)
    truth = log["accumulated_probability_before"].astype(np.int64)
    assert np.array_equal(before[~missing], truth[~missing])


@pytest.mark.parametrize("aqm", AQMS)
def test_log_does_not_disturb(aqm: str) -> None:
    """A log that is drained as it fills holds every packet once, and the run is the one without a log."""
    scenario = load("l4s-llm-testbed").replace(horizon_s=5.0)
    plain = Batch(scenario, aqm=aqm)
    plain.reset(0, seeding.np_random(3)[0])
    plain.advance_one()
    logged = Batch(scenario, aqm=aqm, log_rows=700)
    logged.reset(0, seeding.np_random(3)[0])
    parts = []
    while logged.advance_one() == layout.LOG_FULL:
        parts.append(logged.drain_log(0))
    parts.append(logged.drain_log(0, everything=True))
    records = np.concatenate(parts)
    assert len(parts) > 3
    for name in ("sent", "delivered", "dropped", "events", "rng"):
        assert plain.env[name][0] == logged.env[name][0]
    assert np.array_equal(records["sequence"], np.arange(len(records)))
    assert len(records) == logged.env["sent"][0]
    queue = logged.queue[0]
    # A packet that the kernel drops at a queue's head was logged as enqueued.
    lost = (records["applied_action"] == DROP).sum()
    assert lost == queue["dropped"].sum() or (aqm == "dualpi2_freebsd" and lost < queue["dropped"].sum())
    waiting = int(logged.env["packets"][0])
    marks = (records["applied_action"] == MARK).sum()
    assert queue["marked"].sum() <= marks <= queue["marked"].sum() + waiting


# -- observation and label


def clone(batch: Batch) -> list[Any]:
    """The whole state of a batch: its arrays."""
    return [array.copy() for array in batch._bytes.values()]


def restore(batch: Batch, state: list[Any]) -> None:
    """Put a state back, in place: the engine knows the arrays by their addresses."""
    for array, saved in zip(batch._bytes.values(), state, strict=True):
        array[...] = saved


def states_under_pressure(count: int) -> Any:
    """A batch at several states in which the discipline's own draw decides (sum between its bounds)."""
    scenario = load("l4s-llm-testbed").replace(**{"link.buffer_ms": 1000.0})
    batch = Batch(scenario, decider=layout.AGENT, interval=7, log_rows=4)
    batch.reset(0, seeding.np_random(5)[0])
    found = 0
    while found < count:
        status = batch.advance_one()
        if status == layout.LOG_FULL:
            batch.drain_log(0, everything=True)
            continue
        assert status == layout.DECISION
        obs = batch.obs[0]
        if batch.env["now_ns"][0] > 5e9 and obs[2] > 0.05 and 0.1 < obs[4] < 0.9 and obs[5] > 0.1:
            found += 1
            yield batch
        batch.action[0] = ENQUEUE


def test_observation_does_not_know_the_draw() -> None:
    """At one state the native draw is forced both ways: the packet's observation is one and the same."""
    outcomes = set()
    for batch in states_under_pressure(20):
        state, seen = clone(batch), batch.obs[0].copy()
        for rng in range(40):  # other random numbers, one state
            restore(batch, state)
            batch.env["rng"] = rng * 0x1234567
            batch.env["status"] = layout.RUNNING  # the packet that waits is decided by the discipline
            batch.env["decider"] = layout.NATIVE
            batch.drain_log(0, everything=True)
            assert np.array_equal(batch.obs[0], seen)
            assert batch.advance_one() == layout.LOG_FULL
            row = batch.log[0, 0]
            raw = [row[name] for name in OBSERVED]
            raw[OBSERVED.index("accumulated_probability")] = row["accumulated_probability_before"]
            raw[OBSERVED.index("total_drops")] = row["interval_drops"]
            assert np.array_equal(scale_observation(raw), seen)
            outcomes.add(int(row["action"]))
        restore(batch, state)
    assert len(outcomes) > 1  # the draw did fall both ways


def test_observation_does_not_know_the_action() -> None:
    """From one state each action: the log shows what was observed before, whatever the action."""
    later = set()
    for batch in states_under_pressure(20):
        state, seen = clone(batch), batch.obs[0].copy()
        for action in (ENQUEUE, DROP, MARK):
            restore(batch, state)
            batch.drain_log(0, everything=True)
            batch.action[0] = action
            batch.env["until_decision"] = 1  # ask at the next packet
            batch.advance_one()
            row = batch.log[0, 0]
            raw = [row[name] for name in OBSERVED]
            raw[OBSERVED.index("accumulated_probability")] = row["accumulated_probability_before"]
            raw[OBSERVED.index("total_drops")] = row["interval_drops"]
            assert np.array_equal(scale_observation(raw), seen)
            assert row["action"] == action
            assert row["decided_by"] == 1
            later.add((action, batch.obs[0].tobytes()))
        restore(batch, state)
    assert len({obs for _, obs in later}) > 20  # but the next observation does


def test_reset_shows_in_the_log_only_after_the_decision() -> None:
    """As printed, the sum gives hits away; before the decision it does not."""
    scenario = load("l4s-llm-testbed").replace(**{"horizon_s": 60.0, "link.buffer_ms": 1000.0})
    records = simulate(scenario, seed=2, log=True).records
    printed_share = leak_share(records, records["accumulated_probability"])
    before_share = leak_share(records, records["accumulated_probability_before"].astype(float))
    assert printed_share["drop"] > 0.3
    assert printed_share["enqueue"] < 0.05
    assert before_share["drop"] < 0.5 * printed_share["drop"]
    hit = records["action"] != ENQUEUE
    reached = records["accumulated_probability_before"] + records["drop_probability"]
    assert (reached[hit] >= DERANDOMISE_LOW).all()


def test_leak_of_the_public_pools(pools_dir: Path) -> None:
    column = OBSERVED.index("accumulated_probability")
    for name in ("exp_pool_l4s_train_7feat.pkl", "exp_pool_l4s_train_9feat.pkl"):
        rows = load_rows(pools_dir / name)
        logged = leak_share(rows.records, as_logged_observation(rows)[:, column])
        causal = leak_share(rows.records, causal_observation(rows)[:, column])
        assert logged["drop"] > 0.5
        assert causal["drop"] < 0.01
        assert logged["enqueue"] < 0.01
