"""Logged decisions: which are held out, and what agents would decide at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym.agents.protocol import Agent
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Stretch(NamedTuple):
    """Steps `start` to `stop` (excluded) of an episode."""

    episode: int
    start: int
    stop: int


def split(steps: Sequence[int], share: float = 0.2, seed: int = 0) -> tuple[list[Stretch], list[Stretch]]:
    """Split whole episodes into those to train on and those held out.

    Neighbouring rows are nearly equal: a row held out between two others would be known already. So whole episodes
    are drawn; of a single episode the end is held out.

    Args:
        steps: Steps of each episode (E,).
        share: Share of the episodes (or of the single one's steps) to hold out; at least one on each side.
        seed: Seed of the drawing.

    Returns:
        The stretches to train on, and those held out; each in the order of the dataset.

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


def cut(episodes: Sequence[Trajectory], stretches: Sequence[Stretch]) -> list[Trajectory]:
    """Cut the stretches out as episodes."""
    return [episodes[number].cut(start, stop) for number, start, stop in stretches]


def offline_probabilities(agent: Any, logged: Trajectory, index: Ints) -> Floats | None:
    """Return an agent's probabilities at logged steps, given what was logged before them.

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


def offline_decisions(agent: Agent, logged: Trajectory, most: int) -> tuple[Ints, Ints]:
    """Ask any agent for decisions step by step along the first steps of every episode.

    Returns:
        Its decisions, and the logged ones, (T,) each; T is at most `most`.
    """
    each = math.ceil(most / (len(logged.starts) - 1))
    taken, index = [], []
    for number, (start, stop) in enumerate(logged.runs):
        agent.reset(1, number)
        reward = np.zeros(1)
        for step in range(start, min(stop, start + each)):
            taken.append(int(agent.act(logged.observations[step][None], reward)[0]))
            index.append(step)
            reward = logged.rewards[step][None]
    return np.array(taken, np.int64)[:most], logged.actions[index][:most]
