"""Replay buffers for d3rlpy, built from its own episodes so that steps and observations stay together.

For its decision transformer give `replay_buffer` a `ReturnSlicer`: d3rlpy's own sums the rewards to the end of the
episode again for each window, which takes most of the time, and its timesteps run past the model's `max_timestep`.

(`d3rlpy.datasets.get_minari` of 2.8 joins T + 1 observations per episode with T actions, which shifts the
k-th episode by k steps.)
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.data.minari_io import check_simulator, read_episodes
from l4s_gym.data.trajectory import Trajectory, returns_to_go, window_rows
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional, silence_gym
from l4s_gym.schema import ACTIONS


def import_d3rlpy() -> Any:
    """Import d3rlpy.

    Raises:
        L4SError: It is not installed.
    """
    silence_gym()
    return optional("d3rlpy", "baselines")


@contextmanager
def quiet() -> Iterator[None]:
    """Let d3rlpy log warnings only, until the block ends."""
    structlog = importlib.import_module("structlog")
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        yield
    finally:
        structlog.configure(**before)


class ReturnSlicer:
    """Windows of episodes for d3rlpy's decision transformers; returns-to-go are summed once per episode.

    Windows are those of `d3rlpy.dataset.BasicTrajectorySlicer`, but that the timesteps, which start at 1, start again
    after `max_timestep`: an episode may be longer than the model has embeddings. The number of a step that an agent
    gives the model has to be wrapped in the same way.

    Args:
        max_timestep: `max_timestep` of the algorithm's config.
    """

    def __init__(self, max_timestep: int) -> None:
        if max_timestep < 1:
            raise L4SError(f"max_timestep {max_timestep}: give 1 or more, as in the algorithm's config")
        self.max_timestep = max_timestep
        self._window = import_d3rlpy().dataset.PartialTrajectory
        # By identity; the episode is kept so that its identity is not reused.
        self._returns: dict[int, tuple[Any, npt.NDArray[np.float32]]] = {}

    def _returns_to_go(self, episode: Any) -> npt.NDArray[np.float32]:
        """Return the sum of the rewards from each step to the end of the episode (T, 1)."""
        held = self._returns.get(id(episode))
        if held is None:
            sums = returns_to_go(episode.rewards[:, 0], [0, len(episode.rewards)])
            held = self._returns[id(episode)] = episode, sums[:, None].astype(np.float32)
        return held[1]

    def __call__(self, episode: Any, end_index: int, size: int) -> Any:
        """Return the window of `size` steps up to step `end_index`: a `d3rlpy.dataset.PartialTrajectory`."""
        rows, mask = (each[0] for each in window_rows(np.array([end_index]), np.zeros(1, np.int64), size))

        def taken(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            found: npt.NDArray[Any] = array[rows]
            found[~mask] = 0
            return found

        terminals = np.zeros((size, 1), np.float32)
        terminals[-1] = episode.terminated and end_index + 1 == episode.size()
        return self._window(
            observations=taken(episode.observations),
            actions=taken(episode.actions),
            rewards=taken(episode.rewards),
            returns_to_go=taken(self._returns_to_go(episode)),
            terminals=terminals,
            timesteps=np.where(mask, rows % self.max_timestep + 1, 0),
            masks=mask.astype(np.float32),
            length=size,
        )


def replay_buffer(source: Any, *, drop_missing: bool = True, slicer: Any = None) -> Any:
    """Return a d3rlpy replay buffer: of three discrete actions, or continuous ones where steps are control intervals.

    d3rlpy keeps no final observation: the last step of a truncated episode has no transition.

    Args:
        source: A `minari.MinariDataset` of `minari_io.create`, or a list of episodes.
        drop_missing: Leave out steps whose accumulated probability is unknown. A run is cut there into episodes
            of d3rlpy; rows that are not consecutive are only thinned.
        slicer: Makes the windows of decision transformers: a `ReturnSlicer`; None: d3rlpy's.

    Returns:
        A `d3rlpy.dataset.ReplayBuffer` whose episodes have observations (n, 8) float32, actions (n, 1) int64 and
        rewards (n, 1) float32; of control intervals observations (n, F) and actions (n, K) float32.

    Raises:
        L4SError: d3rlpy is not installed, the dataset is stale, or no transition is left.
    """
    d3rlpy = import_d3rlpy()
    if not isinstance(source, Sequence):
        check_simulator(source)
    episodes = source if isinstance(source, Sequence) else list(read_episodes(source))
    made = [
        d3rlpy.dataset.Episode(
            observations=part.observations,
            actions=_columns(part.actions),
            rewards=part.rewards.astype(np.float32)[:, None],
            terminated=False,
        )
        for episode in episodes
        for part in episode.parts(drop_missing)
    ]
    if not made:
        hint = "; every step's accumulated probability is missing, try drop_missing=False" if drop_missing else ""
        raise L4SError(f"replay buffer: no episode has two steps in a row{hint}")
    discrete = made[0].actions.dtype.kind == "i"
    space = d3rlpy.ActionSpace.DISCRETE if discrete else d3rlpy.ActionSpace.CONTINUOUS
    with quiet():
        buffer = d3rlpy.dataset.ReplayBuffer(
            d3rlpy.dataset.InfiniteBuffer(),
            episodes=made,
            action_space=space,
            action_size=len(ACTIONS) if discrete else made[0].actions.shape[1],
            trajectory_slicer=slicer,
        )
    check_buffer(buffer, episodes, drop_missing=drop_missing)
    return buffer


def _columns(actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return actions (n,) or (n, K) as columns."""
    return actions.reshape(len(actions), -1)


def check_buffer(buffer: Any, episodes: Iterable[Trajectory], *, drop_missing: bool = True) -> None:
    """Check that a replay buffer holds exactly the steps of the episodes, and that its transitions are aligned.

    Args:
        buffer: A `d3rlpy.dataset.ReplayBuffer`.
        episodes: What it was built from.
        drop_missing: As it was built.

    Raises:
        L4SError: The first difference.
    """
    expected = [part for episode in episodes for part in episode.parts(drop_missing)]
    if len(expected) != len(buffer.episodes):
        raise L4SError(f"replay buffer: has {len(buffer.episodes)} episodes, not {len(expected)}")
    for number, (held, part) in enumerate(zip(buffer.episodes, expected, strict=True)):
        same = (
            np.array_equal(held.observations, part.observations)
            and np.array_equal(held.actions, _columns(part.actions))
            and np.array_equal(held.rewards[:, 0], part.rewards.astype(np.float32))
            and not held.terminated
        )
        for step in (0, held.transition_count - 1):
            got = buffer.transition_picker(held, step)
            same = same and (
                np.array_equal(got.observation, part.observations[step])
                and np.array_equal(got.next_observation, part.observations[step + 1])
                and np.array_equal(got.action, np.atleast_1d(part.actions[step]))
                and float(got.reward[0]) == np.float32(part.rewards[step])
            )
        if not same:
            raise L4SError(f"replay buffer: episode {number} differs from its source")
