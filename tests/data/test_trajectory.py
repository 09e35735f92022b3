"""The one container of logged decisions: parts of it, what is unknown, and other spaces than those of packets."""

from __future__ import annotations

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.data.trajectory import Trajectory, returns_to_go, window_rows

NAMES = ("delay", "rate", "loss")


def interval_run(steps: int, seed: int = 0, unknown: tuple[int, ...] = ()) -> Trajectory:
    """A run of control intervals: three features, of which the loss is absent, and actions in a box of two."""
    rng = np.random.default_rng(seed)
    observations = rng.random((steps + 1, 3), np.float32)
    observations[:, 2] = 0.0
    rates = np.isin(np.arange(steps + 1), unknown)
    observations[rates, 1] = 0.0
    actions, rewards = rng.random((steps, 2), np.float32), rng.random(steps)
    return Trajectory(observations, actions, rewards, missing={"rate": rates}, absent=("loss",), features=NAMES)


def test_absent_is_not_zero() -> None:
    run = interval_run(9, unknown=(3, 9))
    assert run.valid[:, 0].all() and not run.valid[:, 2].any()
    assert np.flatnonzero(~run.valid[:, 1]).tolist() == np.flatnonzero(~run.known).tolist() == [3, 9]


def test_parts_of_a_run() -> None:
    run = interval_run(9, unknown=(3, 5, 9))
    assert [len(part) for part in run.parts()] == [3, 3]  # step 4 stands alone
    assert [len(part) for part in run.parts(drop_missing=False)] == [9]
    np.testing.assert_array_equal(run.parts()[1].actions, run.actions[6:])
    cut = run.cut(2, 6)
    assert (len(cut), len(cut.observations), len(cut.known)) == (4, 5, 5)
    assert cut.runs == [(0, 4)]


def test_runs_that_are_joined_keep_what_is_unknown() -> None:
    runs = [interval_run(6, seed, unknown=(seed,)) for seed in (1, 2)]
    whole = Trajectory.joined(runs, drop_missing=False)
    assert whole.runs == [(0, 6), (6, 12)] and whole.absent == ("loss",) and whole.features == NAMES
    assert np.flatnonzero(~whole.known).tolist() == [1, 8]
    assert whole.run_of_step.tolist() == [0] * 6 + [1] * 6
    assert Trajectory.joined(runs).runs == [(0, 4), (4, 6), (6, 9)]
    np.testing.assert_array_equal(whole.select([1]).actions, runs[1].actions)
    assert whole.select([1, 0]).runs == whole.runs
    with pytest.raises(L4SError, match="no episode has two steps"):
        Trajectory.joined([interval_run(1)])


def test_windows_of_actions_in_a_box() -> None:
    whole = Trajectory.joined([interval_run(6, seed) for seed in (1, 2)])
    seen = whole.windows(np.array([7, 11]), 4)
    assert seen["actions"].shape == (2, 4, 2) and seen["observations"].shape == (2, 4, 3)
    assert seen["mask"].tolist() == [[False, False, True, True], [True] * 4]
    assert not seen["actions"][0, :2].any() and not seen["rewards"][0, :2].any()
    np.testing.assert_array_equal(seen["actions"][0, 2:], whole.actions[6:8])
    assert seen["returns_to_go"][1, -1] == np.float32(whole.rewards[-1])


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_returns_end_with_their_run(gamma: float) -> None:
    rewards, starts = np.random.default_rng(0).random(9), [0, 4, 4, 9]
    expected = [sum(gamma ** (k - step) * rewards[k] for k in range(step, 4 if step < 4 else 9)) for step in range(9)]
    np.testing.assert_allclose(returns_to_go(rewards, starts, gamma), expected, rtol=1e-12)


def test_rows_of_windows() -> None:
    rows, mask = window_rows(np.array([5, 9]), np.array([3, 0]), 3, stride=2)
    assert rows.tolist() == [[3, 3, 5], [5, 7, 9]]
    assert mask.tolist() == [[False, True, True], [True, True, True]]


def test_other_widths_are_refused() -> None:
    with pytest.raises(L4SError, match="give \\(T, 8\\)"):
        Trajectory(np.zeros((3, 5), np.float32), np.zeros(3, np.int64), np.zeros(3))
