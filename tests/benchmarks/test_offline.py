"""Blocks that are held out whole, controls, and intervals that know that rows are not independent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import offline
from l4s_gym import L4SError
from l4s_gym.data.pools import Rows, load_rows, make_rows
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.schema import ACTIONS, MAX_PROB, RECORD

ROWS, BLOCKS = 203, 5


@pytest.fixture(scope="module")
def blocks() -> Trajectory:
    """Rows whose first feature gives the action away; the second is the number of the row."""
    rng = np.random.default_rng(0)
    actions = rng.choice(3, ROWS, p=[0.7, 0.2, 0.1])
    observations = rng.random((ROWS, 8), np.float32)
    observations[:, 0], observations[:, 1] = actions, np.arange(ROWS)
    starts = np.searchsorted(offline.block_of_rows(ROWS, BLOCKS), np.arange(BLOCKS + 1))
    return Trajectory(observations, actions, rng.random(ROWS), starts, consecutive=False, source="test")


def kernel_rows(count: int = 40) -> Rows:
    """Rows with what was known before the decision."""
    records = np.zeros(count, RECORD)
    records["drop_probability"] = MAX_PROB // 10
    records["length_in_bytes"] = 10_000
    records["packet_length"] = np.arange(count)
    records["accumulated_probability_before"] = MAX_PROB * np.linspace(0.0, 10.0, count)
    return make_rows(records, present=[name for name in RECORD.names or () if name != "applied_action"])


def test_blocks_are_contiguous_and_of_one_size() -> None:
    block = offline.block_of_rows(ROWS, BLOCKS)
    assert (np.diff(block) >= 0).all()
    assert np.ptp(np.bincount(block)) <= 1
    with pytest.raises(L4SError, match="blocks of 203 rows"):
        offline.block_of_rows(ROWS, 1)


def test_no_window_reaches_into_another_block(blocks: Trajectory) -> None:
    logged = blocks.select([0, 1, 3])
    seen = logged.windows(np.arange(len(logged)), 20)
    row = np.where(seen["mask"], seen["observations"][..., 1], np.nan).astype(np.float64)  # (T, 20)
    of = np.where(seen["mask"], blocks.run_of_step[np.nan_to_num(row).astype(int)], -1)
    assert all(len(set(each[each >= 0].tolist())) == 1 for each in of)
    assert set(of[of >= 0].tolist()) == {0, 1, 3}
    assert [logged.observations[at, 1] for at in logged.starts[:-1]] == [0, 40, 121]


def test_an_episode_is_its_block(blocks: Trajectory) -> None:
    episode = offline.episode_of(blocks, 2)
    rows = np.flatnonzero(blocks.run_of_step == 2)
    assert episode.observations[:, 1].tolist() == [*rows.tolist(), rows[-1]]
    assert episode.actions.tolist() == blocks.actions[rows].tolist()
    assert not episode.consecutive


def test_ends_of_others_have_no_row_of_the_block_held_out(blocks: Trajectory) -> None:
    inner = offline.ends_of_others(blocks, 1)
    assert len(inner.starts) - 1 == 2 * (BLOCKS - 1)
    rows = inner.observations[:, 1].astype(int)
    assert (blocks.run_of_step[rows] != 1).all() and len(rows) == (blocks.run_of_step != 1).sum()
    for half in range(BLOCKS - 1):
        start, end = rows[inner.run_of_step == 2 * half], rows[inner.run_of_step == 2 * half + 1]
        assert start.max() < end.min()
        assert len(end) == round((len(start) + len(end)) * 0.2)


def test_copies_in_another_block_are_left_out() -> None:
    rows = kernel_rows()
    rows.records[3] = rows.records[35]  # another block
    rows.records[1] = rows.records[0]  # the same block
    rows.records["accumulated_probability_before"][20] = np.iinfo(np.int64).max
    found = offline.left_out(rows, BLOCKS)
    assert np.flatnonzero(found["copied"]).tolist() == [3, 35]
    assert len(offline.read_blocks(rows, BLOCKS, as_logged=False).actions) == len(rows) - sum(
        map(np.sum, found.values())
    )


def test_rows_of_the_public_pool(pools_dir: Path) -> None:
    rows = load_rows(pools_dir / "exp_pool_l4s_train_7feat.pkl")
    assert {reason: which.sum() for reason, which in offline.left_out(rows, 5).items()} == {"unknown": 39, "copied": 13}
    logged, causal = (offline.read_blocks(rows, 5, as_logged=as_logged) for as_logged in (True, False))
    assert len(causal.actions) == 2490 - 39 - 13
    assert (logged.actions == causal.actions).all() and (logged.run_of_step == causal.run_of_step).all()
    different = (logged.observations != causal.observations).any(axis=0)
    assert np.flatnonzero(different).tolist() == [4]


def test_past_actions(blocks: Trajectory) -> None:
    found = offline.past_actions(blocks, 3)
    for row in range(ROWS):
        for back in range(1, 4):
            inside = row >= back and blocks.run_of_step[row - back] == blocks.run_of_step[row]
            assert found[row, back - 1] == blocks.actions[row - back] if inside else np.isnan(found[row, back - 1])


def test_a_row_is_answered_by_a_model_that_did_not_see_its_block(blocks: Trajectory) -> None:
    pytest.importorskip("sklearn")
    for kind in offline.TABULAR[1:]:
        found = offline.tabular_probabilities(kind, blocks.observations, blocks)
        assert (found.argmax(axis=1) == blocks.actions).mean() > 0.95  # the first feature tells it
    alone = offline.tabular_probabilities("gradient boosting", blocks.observations[:, 2:], blocks)
    assert (alone.argmax(axis=1) == blocks.actions).mean() < 0.75  # noise: with its own rows it would know them
    shares = offline.tabular_probabilities("majority", blocks.observations, blocks)
    held = blocks.run_of_step == 4
    assert shares[held][0] == pytest.approx(np.bincount(blocks.actions[~held]) / (~held).sum())


def test_unknown_models_are_named() -> None:
    with pytest.raises(L4SError, match="gradient boosting"):
        offline.tabular("gradient bosting")


def test_the_kernels_rule() -> None:
    rows = kernel_rows()
    rows.records["action"][:] = np.arange(len(rows)) % 3
    rows.records["length_in_bytes"][-1] = 1000
    keep = np.ones(len(rows), bool)
    found = offline.kernel_rule(rows, keep, offline.read_blocks(rows, BLOCKS, as_logged=False, keep=keep))
    total = rows.records["accumulated_probability_before"] / MAX_PROB + 0.1
    expected = np.where(total < 0.85, 0.0, np.where(total >= 8.5, 1.0, 0.1))
    expected[-1] = 0.0  # guarded
    assert 1.0 - found[:, 0] == pytest.approx(expected, abs=1e-6)
    assert found.sum(axis=1) == pytest.approx(1.0)


def test_figures_against_the_majority(blocks: Trajectory) -> None:
    base = np.tile([0.7, 0.2, 0.1], (ROWS, 1))
    same = offline.figures(base, blocks.actions, base)
    assert same["accuracy_gain"] == same["cross_entropy_gain"] == 0.0
    told = offline.figures(np.eye(3)[blocks.actions], blocks.actions, base)
    assert told["accuracy_gain"] == pytest.approx((blocks.actions != 0).mean())
    assert told["cross_entropy_gain"] == pytest.approx(same["cross_entropy"])
    assert [told[f"recall_{name}"] for name in ACTIONS] == [1.0, 1.0, 1.0]


def test_resampled_rows_are_stretches() -> None:
    rows = offline.resampled_rows(103, 10, np.random.default_rng(1))
    assert len(rows) == 103 and rows.min() >= 0 and rows.max() < 103
    inside = np.diff(rows)[np.arange(1, 103) % 10 != 0]
    assert set(inside.tolist()) <= {1, -102}  # after the end comes the start


def interval(p: np.ndarray, actions: np.ndarray, length: int) -> tuple[float, float, float]:
    base = np.tile([0.5, 0.3, 0.2], (len(actions), 1))
    rng = np.random.default_rng(0)
    found = offline.with_intervals(p, actions, base, length=length, draws=100, rng=rng)["accuracy"]
    return found["mean"], found["low"], found["high"]


def test_intervals_know_that_neighbours_are_alike() -> None:
    actions = np.repeat(np.random.default_rng(0).integers(0, 2, 20), 50)  # stretches of 50 equal rows
    p = np.tile([0.9, 0.05, 0.05], (1, len(actions), 1))
    rows, stretches = interval(p, actions, 1), interval(p, actions, 50)
    assert rows[0] == stretches[0] == (actions == 0).mean()
    assert stretches[1] < rows[1] < rows[0] < rows[2] < stretches[2]
    assert stretches[2] - stretches[1] > 3 * (rows[2] - rows[1])


def test_intervals_know_that_seeds_differ() -> None:
    actions = np.zeros(100, np.int64)
    right, wrong = np.tile([1.0, 0.0, 0.0], (100, 1)), np.tile([0.0, 1.0, 0.0], (100, 1))
    assert interval(np.stack([right] * 5), actions, 10) == (1.0, 1.0, 1.0)
    mean, low, high = interval(np.stack([right, right, wrong, wrong, wrong]), actions, 10)
    assert mean == pytest.approx(0.4) and low < 0.2 and high > 0.6
