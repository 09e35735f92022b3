"""Logged decisions played back: a source of observations that an environment can wrap."""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from l4s_gym.data.causal import as_logged_observation, causal_observation
from l4s_gym.data.pools import Rows
from l4s_gym.errors import L4SError, unknown
from l4s_gym.schema import ACTIONS, DROP, OBSERVED, scale_observation

Mode = Literal["follow", "nearest"]
Column = Literal["length_in_bytes", "packet_length"]

REWARD_DELAY_US: Final = 1000
"""Added to the delay in the reward of the public pools, us."""


class ReplaySource:
    """Logged rows, stepped through one decision at a time.

    A log cannot answer what would have happened after another action. Two conventions:

    | mode | next row |
    |---|---|
    | `follow` | the next logged row, whatever the action |
    | `nearest` | every `nearest_every`-th decision (the first included) a jump, else the next logged row |

    A jump goes to a logged row of the same queue and of the chosen action that is nearest, in one column, to
    the length that the queue has after the action (`length_in_bytes`, plus `packet_length` unless dropped):

    | column | compared with | jumps | lands on |
    |---|---|---|---|
    | `packet_length` | the rows' *packet* length (the published comparison's mistake) | always | that row |
    | `length_in_bytes` | the rows' queue length | only if the action is not the logged one | the row after that row |

    Neither is a closed loop: delays and lengths are those of the log.

    Attributes:
        index: Current row.
        decisions: Decisions since the reset.
        no_candidate: Jumps since the reset for which the log has no row of that queue and action; they follow.
        done: Whether the end was reached: the last row, or as many decisions as there are rows.
    """

    def __init__(
        self,
        rows: Rows,
        mode: Mode = "follow",
        *,
        column: Column = "length_in_bytes",
        nearest_every: int = 1,
        observe: Literal["causal", "as_logged"] = "causal",
    ) -> None:
        """Prepare the observations and, for the mode `nearest`, the index of candidates.

        Args:
            rows: Logged decisions, at least one.
            mode: `follow` or `nearest`.
            column: Column of the nearest row.
            nearest_every: A jump every so many decisions.
            observe: `causal` (what the kernel knew before it decided) or `as_logged` (gives the action away).

        Raises:
            L4SError: An argument is not among the choices, or there are no rows.
        """
        for kind, value, choices in (
            ("replay mode", mode, get_args(Mode)),
            ("replay column", column, get_args(Column)),
            ("observation", observe, ("causal", "as_logged")),
        ):
            if value not in choices:
                raise unknown(kind, value, choices)
        if not len(rows):
            raise L4SError(f"{rows.source}: has no rows: a replay needs at least one")
        if nearest_every < 1:
            raise L4SError(f"nearest_every={nearest_every}: is not positive: jump every 1, 10 or 100 decisions")
        if "action" not in rows.present:
            raise L4SError(f"{rows.source}: bears no actions: give logged decisions")
        if mode == "nearest" and not {"queue_type", "length_in_bytes", "packet_length"} <= rows.present:
            raise L4SError(f"{rows.source}: lacks the queue, or its or the packet's length: use the mode 'follow'")
        self.rows, self.mode, self.column, self.nearest_every = rows, mode, column, nearest_every
        raw = causal_observation(rows) if observe == "causal" else as_logged_observation(rows)
        self._missing = np.isnan(raw[:, OBSERVED.index("accumulated_probability")])  # (T,)
        self._observations = scale_observation(np.nan_to_num(raw, nan=0.0))  # (T, 8)
        self._queue = rows.records["queue_type"].astype(np.int64)
        self._logged = rows.records["action"].astype(np.int64)
        self._length = rows.records["length_in_bytes"].astype(np.int64)
        self._packet = rows.records["packet_length"].astype(np.int64)
        self._candidates = self._sort() if mode == "nearest" else {}
        self.reset()

    def _sort(self) -> dict[tuple[int, int], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """For each queue and action the rows by (value, index): values (n,) and indices (n,)."""
        values = self.rows.records[self.column].astype(np.int64)
        groups = {}
        for queue in (0, 1):
            for action in range(len(ACTIONS)):
                index = np.flatnonzero((self._queue == queue) & (self._logged == action))
                index = index[np.argsort(values[index], kind="stable")]
                if index.size:
                    groups[queue, action] = values[index], index
        return groups

    def reset(self, start: int = 0) -> None:
        """Go to a row and forget the decisions.

        Args:
            start: The row, in [0, T).

        Raises:
            L4SError: There is no such row.
        """
        if not 0 <= start < len(self.rows):
            raise L4SError(f"start={start}: there is no such row: choose 0 to {len(self.rows) - 1}")
        self.index = start
        self.decisions = 0
        self.no_candidate = 0
        self.done = False

    @property
    def missing(self) -> bool:
        """Whether the accumulated probability of the current row is unknown, and shown as 0."""
        return bool(self._missing[self.index])

    def observation(self) -> npt.NDArray[np.float32]:
        """The observation of the current row, shape (8,) float32; fields that the log cannot tell are 0."""
        row: npt.NDArray[np.float32] = self._observations[self.index].copy()
        return row

    def record(self) -> np.void:
        """The current row (a view: do not write)."""
        record: np.void = self.rows.records[self.index]
        return record

    def logged_action(self) -> int:
        """What the kernel decided in the current row: 0, 1 or 2."""
        return int(self._logged[self.index])

    def reward(self) -> float:
        """The reward of the public pools for the current row: packet length (B) / (queue delay (us) + 1000).

        It means nothing where the rows lack one of the two (`steps.reward_warning`).
        """
        delay_us = int(self.rows.records["current_queue_delay"][self.index])
        return float(self._packet[self.index]) / (delay_us + REWARD_DELAY_US)

    def nearest(self, action: int) -> int | None:
        """The row to which a jump from the current row goes; of equally near ones the first.

        Args:
            action: 0, 1 or 2.

        Returns:
            Its index, or None if no row of this queue has that action.
        """
        group = self._candidates.get((int(self._queue[self.index]), action))
        if group is None:
            return None
        values, rows = group
        target = int(self._length[self.index]) + (0 if action == DROP else int(self._packet[self.index]))
        above = int(np.searchsorted(values, target))
        found: list[tuple[int, int]] = []
        if above < len(values):
            found.append((int(values[above]) - target, int(rows[above])))
        if above > 0:
            below = int(np.searchsorted(values, values[above - 1]))
            found.append((target - int(values[below]), int(rows[below])))
        return min(found)[1]

    def _next(self, action: int) -> int:
        """Index of the next row."""
        jumps = self.mode == "nearest" and self.decisions % self.nearest_every == 0
        if jumps and (self.column == "packet_length" or action != self.logged_action()):
            row = self.nearest(action)
            if row is not None:
                return row if self.column == "packet_length" else row + 1
            self.no_candidate += 1
        return self.index + 1

    def step(self, action: int | np.integer[Any]) -> bool:
        """Decide on the packet of the current row and go to the next row.

        Args:
            action: 0 enqueue, 1 drop, 2 mark.

        Returns:
            Whether the end was reached; the current row stays the last one.

        Raises:
            L4SError: There is no such action, or the end was reached before.
        """
        if action not in range(len(ACTIONS)):
            raise L4SError(f"action {action!r}: is none of 0, 1, 2: choose one of {', '.join(ACTIONS)}")
        if self.done:
            raise L4SError("step: the replay is at its end: call reset first")
        following = self._next(int(action))
        self.decisions += 1
        if following >= len(self.rows):
            self.done = True
        else:
            self.index = following
            self.done = self.mode == "nearest" and self.decisions >= len(self.rows)
        return self.done
