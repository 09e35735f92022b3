"""Episodes: where runs start, what is aligned with what, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.data import simulated
from l4s_gym.data.causal import as_logged_observation, causal_observation
from l4s_gym.data.pools import Rows, load_rows, make_rows
from l4s_gym.data.simulated import simulate_log
from l4s_gym.data.steps import StepMaker, episodes_from_rows, logged_rewards
from l4s_gym.data.stream import RunSplitter
from l4s_gym.schema import BY_NAME, OBSERVED, RECORD, scale_observation

SCENARIO = "l4s-llm-testbed"


def _counted(totals: list[tuple[int, int]]) -> Rows:
    """Rows of the given (queue, total_packets)."""
    records = np.zeros(len(totals), RECORD)
    records["queue_type"], records["total_packets"] = np.array(totals).T
    return make_rows(records, present=["queue_type", "total_packets", "action"])


def test_steps_are_aligned(kernel_log: Any) -> None:
    rows = make_rows(kernel_log(1, 500), "a.log")
    (episode,) = episodes_from_rows(rows)
    records = rows.records
    assert len(episode) == 499
    assert episode.observations.shape == (500, 8)
    assert episode.observations.dtype == np.float32
    np.testing.assert_array_equal(episode.observations, scale_observation(causal_observation(rows)))
    np.testing.assert_array_equal(episode.actions, records["action"][:-1])
    np.testing.assert_array_equal(episode.applied, records["applied_action"][:-1])
    expected = records["packet_length"] / (records["current_queue_delay"] + 1000.0)
    np.testing.assert_allclose(episode.rewards, expected[:-1], rtol=1e-15)
    assert episode.actions.dtype == np.asarray(episode.applied).dtype == np.int64
    assert episode.rewards.dtype == np.float64
    assert episode.known.all()
    assert episode.consecutive
    assert (episode.source, episode.absent) == ("a.log", ())


def test_withheld_drops_are_told_from_a_printed_log(kernel_log: Any, printed_only: Any) -> None:
    log = kernel_log(2, load=1.5)
    (episode,) = episodes_from_rows(make_rows(printed_only(log)))
    assert np.any(episode.applied != episode.actions)
    np.testing.assert_array_equal(episode.applied, log["applied_action"][:-1])


def test_missing_is_zero_and_flagged(kernel_log: Any, printed_only: Any) -> None:
    log = printed_only(kernel_log(3))[np.random.default_rng(0).random(4000) > 0.2]
    (episode,) = episodes_from_rows(make_rows(log))
    column = OBSERVED.index("accumulated_probability")
    assert (episode.valid[:, column] == episode.known).all() and np.delete(episode.valid, column, axis=1).all()
    assert 0 < (~episode.known).mean() < 0.1
    assert (episode.observations[~episode.known, column] == 0).all()
    assert not episode.consecutive  # rows were lost


def test_as_logged(kernel_log: Any) -> None:
    rows = make_rows(kernel_log(4, 300))
    (episode,) = episodes_from_rows(rows, as_logged=True)
    np.testing.assert_array_equal(episode.observations, scale_observation(as_logged_observation(rows)))


def test_a_restart_of_both_queues_is_one_run() -> None:
    rows = _counted([(0, 5), (1, 7), (0, 6), (1, 0), (0, 0), (0, 1), (1, 1), (0, 0), (0, 1), (1, 0)])
    assert RunSplitter(rows.present).starts(rows.records) == [0, 3, 7]
    assert [len(e) for e in episodes_from_rows(rows)] == [2, 3, 2]


def test_the_sequence_number_goes_before_the_counters(kernel_log: Any) -> None:
    log = kernel_log(5, 60)
    log["sequence"] = np.concatenate([np.arange(20), np.arange(1), np.arange(39)])
    assert RunSplitter(make_rows(log).present).starts(log) == [0, 20, 21]
    episodes = episodes_from_rows(make_rows(log))
    assert [len(e) for e in episodes] == [19, 38]  # a run of one row has no step
    assert all(e.consecutive for e in episodes)
    log["sequence"][30:] += 5
    assert [e.consecutive for e in episodes_from_rows(make_rows(log))] == [True, False]


def test_several_sources_stay_apart(kernel_log: Any) -> None:
    sources = [make_rows(kernel_log(seed, 100), f"{seed}.log") for seed in (1, 2)]
    joined = make_rows(np.concatenate([s.records for s in sources]))
    for episodes in (episodes_from_rows(sources), episodes_from_rows(joined)):
        assert [len(e) for e in episodes] == [99, 99]
    assert [e.source for e in episodes_from_rows(sources)] == ["1.log", "2.log"]


def test_rows_without_a_step_are_refused() -> None:
    for records in (np.zeros(0, RECORD), np.zeros(1, RECORD)):
        with pytest.raises(L4SError, match="no run of two rows"):
            episodes_from_rows(make_rows(records, "short"))
    with pytest.raises(L4SError, match="no actions"):
        episodes_from_rows(make_rows(np.zeros(3, RECORD), "x", ["queue_type"]))


def test_the_public_pools(pools_dir: Path) -> None:
    paths = sorted(pools_dir.rglob("*.pkl"))
    assert paths
    for path in paths:
        rows = load_rows(path)
        (episode,) = episodes_from_rows(rows)
        assert not episode.consecutive
        assert len(episode) == len(rows) - 1
        assert ("total_drops" in episode.absent) == ("total_drops" not in rows.present)
        assert np.isfinite(episode.observations).all()


# -- logs of the simulator


def test_a_simulated_log_is_one_consecutive_run_with_nothing_missing() -> None:
    shares: list[float] = []
    log = simulate_log(SCENARIO, seconds=4.0, progress=shares.append)
    (episode,) = episodes_from_rows(make_rows(log))
    assert len(episode) == len(log) - 1 > 1000
    assert episode.consecutive
    assert episode.known.all()
    assert len(np.unique(episode.actions)) == 3
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 50


def test_a_simulated_log_is_that_of_the_seed() -> None:
    log = simulate_log(SCENARIO, seed=3, seconds=2.0)
    np.testing.assert_array_equal(log, simulate_log(SCENARIO, seed=3, seconds=2.0, progress=lambda share: None))
    assert not np.array_equal(log[:100], simulate_log(SCENARIO, seed=4, seconds=2.0)[:100])


@pytest.mark.parametrize("aqm", ["dualpi2_freebsd", "codel", "dualpi2_linux", "fifo"])
def test_a_small_log_is_drained_without_loss(monkeypatch: pytest.MonkeyPatch, aqm: str) -> None:
    whole = simulate_log(SCENARIO, aqm, seconds=4.0)
    monkeypatch.setattr(simulated, "LOG_ROWS", 700)
    blocks = list(simulated.simulate_blocks(SCENARIO, aqm, seconds=4.0))
    assert len(blocks) > 2
    assert max(map(len, blocks)) <= 700
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert (np.diff(whole["sequence"].astype(np.int64)) == 1).all()


def test_runs_of_the_simulator_are_split() -> None:
    logs = [simulate_log(SCENARIO, seed=seed, seconds=1.0) for seed in (0, 1)]
    episodes = episodes_from_rows(make_rows(np.concatenate(logs)))
    assert [len(e) + 1 for e in episodes] == [len(log) for log in logs]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(L4SError, match="unknown scenario"):
        simulate_log("l4s-llm-testbet")
    with pytest.raises(L4SError, match="unknown discipline"):
        simulate_log(SCENARIO, "dualpi3")


@pytest.mark.parametrize("aqm", ["dualpi2_freebsd", "dualpi2_rfc9332"])
def test_the_compiled_steps_are_those_of_numpy(aqm: str) -> None:
    """Rewards that are given come with recorded values, which take the compiled way."""
    log = simulate_log(SCENARIO, aqm, seconds=2.0)
    compiled = StepMaker(frozenset(BY_NAME)).make(log, logged_rewards(log))
    np.testing.assert_array_equal(compiled, StepMaker(frozenset(BY_NAME)).make(log))
