"""Logged decisions in memory, as learners draw them and as offline metrics ask for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym.agents.protocol import Agent
from l4s_gym.data.d3rlpy_io import expected_steps
from l4s_gym.data.episodes import Episode
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, OBSERVED

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Stretch(NamedTuple):
    """Steps `start` to `stop` (excluded) of an episode."""

    episode: int
    start: int
    stop: int


def split(steps: Sequence[int], share: float = 0.2, seed: int = 0) -> tuple[list[Stretch], list[Stretch]]:
    """Split episodes into those to train on and those held out, never by row.

    Neighbouring rows are nearly equal: a row held out from among others would be known already. Whole episodes are
    drawn; of a single one its end is held out.

    Args:
        steps: Steps of each episode (E,).
        share: Of the episodes (or of the single one's steps); at least one is held out, and one is left.
        seed: Of the drawing.

    Returns:
        What to train on, and what is held out; each in the order of the dataset.

    Raises:
        L4SError: The share makes no sense, or there are too few steps.
    """
    if not 0.0 < share < 1.0:
        raise L4SError(f"held_out = {share}: give a share between 0 and 1")
    if not steps:
        raise L4SError("split: there are no episodes: build the dataset again")
    if len(steps) == 1:
        cut = steps[0] - max(round(steps[0] * share), 1)
        if cut < 2:
            raise L4SError(f"split: an episode of {steps[0]} steps cannot be split: give a longer one")
        return [Stretch(0, 0, cut)], [Stretch(0, cut, steps[0])]
    count = min(max(round(len(steps) * share), 1), len(steps) - 1)
    held = set(np.random.default_rng(seed).permutation(len(steps))[:count].tolist())
    every = [Stretch(number, 0, length) for number, length in enumerate(steps)]
    return [s for s in every if s.episode not in held], [s for s in every if s.episode in held]


def cut(episodes: Sequence[Episode], stretches: Sequence[Stretch]) -> list[Episode]:
    """The stretches as episodes of their own."""
    found = []
    for number, start, stop in stretches:
        episode = episodes[number]
        if (start, stop) == (0, len(episode)):
            found.append(episode)
            continue
        found.append(
            replace(
                episode,
                observations=episode.observations[start : stop + 1],
                actions=episode.actions[start:stop],
                rewards=episode.rewards[start:stop],
                missing=episode.missing[start : stop + 1],
                applied=episode.applied[start:stop],
                extras={name: values[start : stop + 1] for name, values in episode.extras.items()},
            )
        )
    return found


@dataclass(frozen=True)
class Logged:
    """Steps of episodes, one after the other.

    Attributes:
        observations: Scaled as the environment's (T, 8) float32.
        actions: What was decided (T,) int64.
        rewards: Of each step (T,) float64.
        starts: Index of the first step of each episode, and T at the end (E + 1,).
    """

    observations: npt.NDArray[np.float32]
    actions: Ints
    rewards: Floats
    starts: Ints

    def __post_init__(self) -> None:
        if self.observations.shape != (len(self.actions), len(OBSERVED)):
            raise L4SError(f"logged steps: observations {self.observations.shape}: give (T, {len(OBSERVED)})")

    @classmethod
    def of(cls, episodes: Sequence[Episode], *, drop_missing: bool = True, allow_gaps: bool = True) -> Logged:
        """The steps that `l4s_gym.data.d3rlpy_io.replay_buffer` would hold.

        Args:
            episodes: Of a dataset.
            drop_missing: Leave out steps whose accumulated probability is unknown, and cut the episode there.
            allow_gaps: Take episodes that are not consecutive too, as if each row followed the one before.

        Raises:
            L4SError: No step is left, or an episode is not consecutive.
        """
        if not allow_gaps and not all(episode.consecutive for episode in episodes):
            raise L4SError(
                "rows are missing within an episode, so that a row's neighbour is not what came before: "
                "use another dataset, or allow_gaps = true"
            )
        parts = [part for part in expected_steps(episodes, drop_missing) if len(part[1]) > 1]
        if not parts:
            hint = ": every step's accumulated probability is unknown, try drop_missing = false" if drop_missing else ""
            raise L4SError(f"no episode has two steps in a row{hint}")
        observations, actions, rewards = (np.concatenate([part[k] for part in parts]) for k in range(3))
        starts = np.cumsum([0, *(len(part[1]) for part in parts)])
        return cls(
            np.ascontiguousarray(observations, np.float32),
            actions.astype(np.int64),
            rewards.astype(np.float64),
            starts.astype(np.int64),
        )

    def strided(self, stride: int) -> Logged:
        """What is seen and earned where only every n-th step is decided: the others' rewards go to the one before.

        Each first step of the stride gives an episode of its own, so that all steps are still there.
        """
        if stride == 1:
            return self
        total = np.concatenate([[0.0], np.cumsum(self.rewards)])
        rows, stops = [], []
        for start, stop in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            found = [np.arange(first, stop, stride) for first in range(start, min(start + stride, stop))]
            rows += found
            stops += [stop] * len(found)
        ends = np.repeat(stops, [len(each) for each in rows])
        index = np.concatenate(rows)
        rewards = total[np.minimum(index + stride, ends)] - total[index]
        starts = np.cumsum([0, *(len(each) for each in rows)])
        return Logged(self.observations[index], self.actions[index], rewards, starts)

    def __len__(self) -> int:
        """Number of steps T."""
        return len(self.actions)

    @cached_property
    def followed(self) -> Ints:
        """Indices of the steps after which another one of the same episode comes."""
        return np.setdiff1d(np.arange(len(self)), self.starts[1:] - 1)

    @cached_property
    def returns(self) -> Floats:
        """Return-to-go of each step: the sum of the rewards from it to the end of its episode (T,)."""
        found = np.empty(len(self))
        for start, stop in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            found[start:stop] = np.cumsum(self.rewards[start:stop][::-1])[::-1]
        return found

    def windows(self, index: Ints, length: int) -> dict[str, npt.NDArray[Any]]:
        """The windows of `length` steps that end at steps (B,), within their episodes.

        Returns:
            `observations` (B, K, 8), `actions`, `rewards`, `returns_to_go`, `timesteps` (from 0) and `mask` (B, K), as
            `l4s_gym.data.windows.Windows` gives them: before the start of an episode mask is False, all else 0.
        """
        first = self.starts[np.searchsorted(self.starts, index, side="right") - 1]
        rows = np.asarray(index)[:, None] + np.arange(1 - length, 1)  # (B, K)
        mask = rows >= first[:, None]
        rows = np.where(mask, rows, first[:, None])
        return {
            "observations": self.observations[rows] * mask[..., None].astype(np.float32),
            "actions": self.actions[rows] * mask,
            "rewards": (self.rewards[rows] * mask).astype(np.float32),
            "returns_to_go": (self.returns[rows] * mask).astype(np.float32),
            "timesteps": (rows - first[:, None]) * mask,
            "mask": mask,
        }

    def some(self, most: int) -> Ints:
        """Indices of at most so many steps, evenly spaced in pieces of up to 100 in a row."""
        if most >= len(self):
            return np.arange(len(self))
        piece = min(100, most)
        starts = np.linspace(0, len(self) - piece, most // piece).astype(np.int64)
        return np.unique(starts[:, None] + np.arange(piece))


def offline_probabilities(agent: Any, logged: Logged, index: Ints) -> Floats | None:
    """What an agent would do at logged steps, given what was logged before them.

    Args:
        agent: Any agent. One that knows its probabilities has the method ``logged_probabilities(logged, index)``.
        logged: The steps.
        index: Which of them (B,).

    Returns:
        Probabilities (B, 3); None: the agent has no such method (see `offline_decisions`).
    """
    method = getattr(agent, "logged_probabilities", None)
    if method is None:
        return None
    found = np.asarray(method(logged, index), np.float64)
    if found.shape != (len(index), len(ACTIONS)):
        raise L4SError(f"{agent.name}: logged_probabilities gives {found.shape}: expected {(len(index), len(ACTIONS))}")
    return found


def offline_decisions(agent: Agent, logged: Logged, most: int) -> tuple[Ints, Ints]:
    """Decisions of any agent, asked step by step along the first steps of every episode.

    Returns:
        What it decided, and what was logged; at most so many steps in all, (T,) each.
    """
    each = math.ceil(most / (len(logged.starts) - 1))
    taken, index = [], []
    for number, (start, stop) in enumerate(zip(logged.starts[:-1].tolist(), logged.starts[1:].tolist(), strict=True)):
        agent.reset(1, number)
        reward = np.zeros(1)
        for step in range(start, min(stop, start + each)):
            taken.append(int(agent.act(logged.observations[step][None], reward)[0]))
            index.append(step)
            reward = logged.rewards[step][None]
    return np.array(taken, np.int64)[:most], logged.actions[index][:most]
