"""Logged decisions as columns: the one type that datasets, learners and metrics share.

A log holds records of the schema (`stream`); a dataset file holds packed rows (`steps`). A trajectory holds
observations, actions and rewards, and marks unknown values as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError
from l4s_gym.schema import OBSERVED

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Trajectory:
    """Decisions of one run, or of several, one after the other: T steps and R rows of observations.

    Step t saw observation t, took action t, and earned reward t. A run as logged has one observation more than
    steps, the one after its last step (R = T + 1). Steps that were selected or joined lack it (R = T).
    A value that is not known is shown as 0, and `missing` or `absent` says so.

    Attributes:
        observations: Scaled as the environment's, (R, D) float32.
        actions: What was decided, (T, ...): int64 of a discrete space, float32 of a box.
        rewards: Reward of each step, (T,) float64.
        starts: Index of the first step of each run, and T at the end, (E + 1,); left out: one run.
        missing: Feature that is unknown in some rows -> in which rows, (R,) bool each.
        absent: Features that the source lacks: unknown in every row.
        consecutive: Whether each row is the one right after the row before.
        source: Where the rows come from.
        applied: What was done in the end, as `actions`; None: not known to differ.
        extras: Further columns of the rows by name, such as `steps.EXTRAS`, (R,) each.
        about: Metadata (plain values), such as scenario, behaviour and seed.
        features: Names of the D columns of the observations.
    """

    observations: npt.NDArray[np.float32]
    actions: npt.NDArray[Any]
    rewards: Floats
    starts: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    missing: Mapping[str, Bools] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    consecutive: bool = True
    source: str = ""
    applied: npt.NDArray[Any] | None = None
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    features: tuple[str, ...] = OBSERVED

    def __post_init__(self) -> None:
        if not len(self.starts):
            object.__setattr__(self, "starts", np.array([0, len(self)]))
        if self.observations.shape[1:] != (len(self.features),):
            raise L4SError(f"observations {self.observations.shape}: give (T, {len(self.features)})")

    def __len__(self) -> int:
        """Return the number of steps T."""
        return len(self.actions)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """First step of each run, and the step after its last one."""
        return list(pairwise(self.starts.tolist()))

    @property
    def run_of_step(self) -> Ints:
        """Number of the run of each step (T,)."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    @property
    def known(self) -> Bools:
        """Rows (R,) without any missing value, except features that the source lacks."""
        found = np.ones(len(self.observations), bool)
        for unknown in self.missing.values():
            found &= ~unknown
        return found

    @property
    def valid(self) -> Bools:
        """Which values of the observations are known (R, D); the others are 0."""
        found = np.ones(self.observations.shape, bool)
        for place, name in enumerate(self.features):
            if name in self.missing:
                found[:, place] = ~self.missing[name]
            found[:, place] &= name not in self.absent
        return found

    # -- parts of it

    def cut(self, start: int, stop: int) -> Trajectory:
        """Return steps `start` to `stop` (excluded) of a run as a run, with the observation after the last one."""
        rows = slice(start, stop + len(self.observations) - len(self))
        return replace(
            self,
            observations=self.observations[rows],
            actions=self.actions[start:stop],
            rewards=self.rewards[start:stop],
            starts=np.array([0, stop - start]),
            missing={name: values[rows] for name, values in self.missing.items()},
            applied=None if self.applied is None else self.applied[start:stop],
            extras={name: values[rows] for name, values in self.extras.items()},
        )

    def take(self, index: Ints, starts: Sequence[int] | Ints = ()) -> Trajectory:
        """Return some steps (n,), without `applied` and `extras`; `starts`: those of their runs, left out: one run."""
        return replace(
            self,
            observations=self.observations[index],
            actions=self.actions[index],
            rewards=self.rewards[index],
            starts=np.array(starts, np.int64),
            missing={name: values[index] for name, values in self.missing.items()},
            applied=None,
            extras={},
        )

    def select(self, runs: Sequence[int]) -> Trajectory:
        """Return some of the runs, in their order here, without `applied` and `extras`."""
        index = np.flatnonzero(np.isin(self.run_of_step, runs))
        return self.take(index, np.cumsum([0, *np.diff(self.starts)[sorted(runs)]]))

    def parts(self, drop_missing: bool = True) -> list[Trajectory]:
        """Return the stretches of two steps or more that remain when steps with a missing value are left out.

        In a run that is not consecutive, steps are only removed: a neighbour is not the next packet anyway.
        """
        steps = np.arange(len(self))
        if drop_missing:
            steps = steps[self.known[: len(self)]]
        cuts = np.flatnonzero(np.diff(steps) > 1) + 1
        parts = np.split(steps, cuts) if self.consecutive else [steps]
        return [self.take(part) for part in parts if len(part) > 1]

    @classmethod
    def joined(cls, runs: Sequence[Trajectory], *, drop_missing: bool = True, allow_gaps: bool = True) -> Trajectory:
        """Join the `parts` of runs, one after another.

        Args:
            runs: Runs of a dataset.
            drop_missing: Leave out steps with a missing value, and cut the run there.
            allow_gaps: Take runs that are not consecutive too, as if each row followed the one before.

        Raises:
            L4SError: No step is left, or a run is not consecutive.
        """
        if not allow_gaps and not all(run.consecutive for run in runs):
            raise L4SError(
                "rows are missing within an episode, so the row before is not always the packet before: "
                "use another dataset, or allow_gaps = true"
            )
        parts = [part for run in runs for part in run.parts(drop_missing)]
        if not parts:
            hint = ": every step's accumulated probability is unknown, try drop_missing = false" if drop_missing else ""
            raise L4SError(f"no episode has two steps in a row{hint}")
        return cls(
            observations=np.concatenate([part.observations for part in parts]),
            actions=np.concatenate([part.actions for part in parts]),
            rewards=np.concatenate([part.rewards for part in parts]),
            starts=np.cumsum([0, *map(len, parts)]),
            missing={
                name: np.concatenate([part.missing.get(name, np.zeros(len(part), bool)) for part in parts])
                for name in sorted({name for part in parts for name in part.missing})
            },
            absent=tuple(name for name in parts[0].features if any(name in part.absent for part in parts)),
            consecutive=all(part.consecutive for part in parts),
            features=parts[0].features,
        )

    def strided(self, stride: int) -> Trajectory:
        """Return what an agent sees and earns that decides every n-th step; rewards between go to the step before.

        Each first step of the stride makes a run of its own, so that all steps are still there.
        """
        if stride == 1:
            return self
        total = np.concatenate([[0.0], np.cumsum(self.rewards)])
        rows, stops = [], []
        for start, stop in self.runs:
            found = [np.arange(first, stop, stride) for first in range(start, min(start + stride, stop))]
            rows += found
            stops += [stop] * len(found)
        ends = np.repeat(stops, [len(each) for each in rows])
        index = np.concatenate(rows)
        taken = self.take(index, np.cumsum([0, *(len(each) for each in rows)]))
        return replace(taken, rewards=total[np.minimum(index + stride, ends)] - total[index])

    # -- as learners look at it

    @cached_property
    def followed(self) -> Ints:
        """Indices of the steps that another step of the same run follows."""
        inner = np.ones(len(self), bool)
        inner[self.starts[1:] - 1] = False
        return np.flatnonzero(inner)

    @cached_property
    def returns(self) -> Floats:
        """Return-to-go of each step (T,), not discounted."""
        return self.returns_to_go()

    def returns_to_go(self, gamma: float = 1.0) -> Floats:
        """Return the discounted sum of the rewards from each step to the end of its run (T,)."""
        return returns_to_go(self.rewards, self.starts, gamma)

    def windows(self, index: Ints, length: int) -> dict[str, npt.NDArray[Any]]:
        """Return the windows of `length` steps that end at steps (B,), within their runs.

        Returns:
            `observations` (B, K, D), `actions` (B, K, ...), `rewards`, `returns_to_go`, `timesteps` (from 0) and `mask`
            (B, K), as in `l4s_gym.data.windows.Windows`: before the start of a run the mask is False, all else 0.
        """
        first = self.starts[np.searchsorted(self.starts, index, side="right") - 1]
        rows, mask = window_rows(index, first, length)
        found: dict[str, npt.NDArray[Any]] = {
            "observations": self.observations[rows],
            "actions": self.actions[rows],
            "rewards": self.rewards[rows].astype(np.float32),
            "returns_to_go": self.returns[rows].astype(np.float32),
            "timesteps": rows - first[:, None],
        }
        for values in found.values():
            values[~mask] = 0
        return found | {"mask": mask}

    def some(self, most: int) -> Ints:
        """Return the indices of at most `most` steps, evenly spaced in pieces of up to 100 consecutive ones."""
        if most >= len(self):
            return np.arange(len(self))
        piece = min(100, most)
        starts = np.linspace(0, len(self) - piece, most // piece).astype(np.int64)
        return np.unique(starts[:, None] + np.arange(piece))


def returns_to_go(rewards: npt.NDArray[Any], starts: Sequence[int] | Ints, gamma: float = 1.0) -> Floats:
    """Return the discounted sum of the rewards (T,) from each step to the end of its run (T,).

    Args:
        rewards: Reward of each step (T,).
        starts: First steps of the runs, and T at the end (E + 1,).
        gamma: Discount per step.
    """
    found = rewards.astype(np.float64)
    for start, stop in pairwise(starts):
        if gamma == 1.0:
            found[start:stop] = np.cumsum(found[start:stop][::-1])[::-1]
            continue
        for step in range(stop - 2, start - 1, -1):
            found[step] += gamma * found[step + 1]
    return found


def window_rows(last: Ints, first: Ints, length: int, stride: int = 1) -> tuple[Ints, Bools]:
    """Return the rows of windows of a run.

    Args:
        last: Last row of each window (B,).
        first: First row of its run (B,).
        length: Rows of a window, K.
        stride: Rows from one to the next.

    Returns:
        Rows (B, K), and which of them are within the run (B, K); padding repeats the first row.
    """
    rows = np.asarray(last)[:, None] + stride * np.arange(1 - length, 1)
    mask = rows >= first[:, None]
    return np.where(mask, rows, first[:, None]), mask
