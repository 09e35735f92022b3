"""`L4S-DualPI2-Replay-v0`: logged decisions played back."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, Literal, SupportsFloat, get_args

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from l4s_gym import __version__, rewards
from l4s_gym.data.causal import as_logged_observation, causal_observation
from l4s_gym.data.pools import Rows, load_rows
from l4s_gym.envs.dualpi2 import Observation, check_interval, observation_space
from l4s_gym.envs.simulated import read_options
from l4s_gym.envs.snapshots import Snapshots
from l4s_gym.errors import L4SError, unknown
from l4s_gym.schema import ACTIONS, DROP, OBSERVED, scale_observation

Mode = Literal["follow", "nearest"]
Column = Literal["length_in_bytes", "packet_length"]


class ReplaySource:
    """Logged rows, stepped through one decision at a time.

    A log cannot answer what would have happened after another action. Two conventions:

    | mode | next row |
    |---|---|
    | `follow` | the next logged row, whatever the action |
    | `nearest` | every `decision_interval`-th decision (the first included) a jump, else the next logged row |

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
        decision_interval: int = 1,
        observe: Literal["causal", "as_logged"] = "causal",
    ) -> None:
        """Prepare the observations and, for the mode `nearest`, the index of candidates.

        Args:
            rows: Logged decisions, at least one.
            mode: `follow` or `nearest`.
            column: Column of the nearest row.
            decision_interval: With `nearest`, a jump at every n-th decision.
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
        if decision_interval < 1:
            raise L4SError(f"decision_interval={decision_interval}: is not positive: jump every 1, 10 or 100 decisions")
        if "action" not in rows.present:
            raise L4SError(f"{rows.source}: bears no actions: give logged decisions")
        if mode == "nearest" and not {"queue_type", "length_in_bytes", "packet_length"} <= rows.present:
            raise L4SError(f"{rows.source}: lacks the queue, or its or the packet's length: use the mode 'follow'")
        self.rows, self.mode, self.column, self.decision_interval = rows, mode, column, decision_interval
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
        """Sort the rows of each queue and action by (value, index): values (n,) and indices (n,)."""
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

    def state(self) -> tuple[int, int, int, bool]:
        """Return the position in the log."""
        return self.index, self.decisions, self.no_candidate, self.done

    def restore(self, state: tuple[int, int, int, bool]) -> None:
        """Return to a state of a source with the same rows and arguments."""
        self.index, self.decisions, self.no_candidate, self.done = state

    @property
    def missing(self) -> bool:
        """Whether the accumulated probability of the current row is unknown, and shown as 0."""
        return bool(self._missing[self.index])

    def observation(self) -> npt.NDArray[np.float32]:
        """Return the observation of the current row, (8,) float32; unknown fields are 0."""
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
        """Return the reward of the public pools, `l4s_llm`, for the current row.

        It means nothing where the rows lack one of the two (`steps.reward_warning`).
        """
        delay_us = int(self.rows.records["current_queue_delay"][self.index])
        return float(rewards.l4s_llm(float(self._packet[self.index]), delay_us))

    def nearest(self, action: int) -> int | None:
        """Return the row to which a jump from the current row goes; the first of several that are equally near.

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
        """Return the index of the next row."""
        jumps = self.mode == "nearest" and self.decisions % self.decision_interval == 0
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


class DualPI2ReplayEnv(Snapshots, gym.Env[Observation, int]):
    """
    ## Description

    Logged decisions of a queue, one row a step: what `L4S-DualPI2-v0` would show, from a kernel log, an experience
    pool, or records. No closed loop: delays and lengths are those of the log, whatever the agent does.

    ## Action space, observation space

    As `L4S-DualPI2-v0`: `Discrete(3)` (0 enqueue, 1 drop, 2 mark), and `Box(8,) float32` from the state before
    the decision; fields that the log cannot tell are 0. With `info_record=True`, `info["record"]` has the raw integers
    by name.

    ## Rewards

    packet_length / (current_queue_delay + 1000) of the packet that was decided, the paper's code (`l4s_llm`): pools bear
    no time, which the other rewards need.

    ## Starting state

    The first row, or that of `reset(options={"start": k})`. Nothing is random.

    ## Episode end

    Never `terminated`. `truncated` at the last row, and with `mode="nearest"` after as many decisions as there are rows.

    ## Info

    | key | meaning |
    |---|---|
    | `logged_action` | what the kernel decided about the packet that is observed |
    | `row` | its number in the log |

    ## Arguments

    | argument | meaning |
    |---|---|
    | `log` | path of a kernel log, binary records, a pool, Parquet or csv |
    | `mode` | `follow`: the next row, whatever the action. `nearest`: jumps to a row like the state after the action |
    | `column` | for `nearest`: `length_in_bytes`, or the authors' `packet_length` (`ReplaySource` tells what they do) |
    | `decision_interval` | for `nearest`: a jump at every n-th decision |
    | `render_mode` | None, `ansi` |
    | `info_record` | put the raw record into `info` |

    ## Version history

    - v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 25}
    _parts = ("_source",)
    _values = ("_np_random", "_np_random_seed", "_ready", "_chosen")

    def __init__(
        self,
        log: str | Path | None = None,
        mode: Mode = "follow",
        column: Column = "length_in_bytes",
        decision_interval: int = 1,
        render_mode: str | None = None,
        info_record: bool = False,
    ) -> None:
        if log is None:
            raise L4SError("the replay needs log=PATH: a kernel log, binary records, a pool, Parquet or csv")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise unknown("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.observation_space = observation_space()
        self.action_space = gym.spaces.Discrete(3)  # type: ignore[assignment]  # its elements are int64
        interval = check_interval(decision_interval)
        self._source = ReplaySource(load_rows(Path(log)), mode, column=column, decision_interval=interval)
        self._info_record = info_record
        self._ready = False
        self._chosen: int | None = None

    @functools.cached_property
    def _rows_digest(self) -> str:
        return hashlib.sha256(self._source.rows.records.tobytes()).hexdigest()[:12]

    def _identity(self) -> dict[str, str]:
        source = self._source
        arguments = {"mode": source.mode, "column": source.column, "decision_interval": str(source.decision_interval)}
        return {"version": __version__, "rows": self._rows_digest, **arguments}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Go to the first row, or to that of `options={"start": k}`."""
        start = read_options(options, ("start",)).get("start", 0)
        super().reset(seed=seed)
        self._source.reset(int(start))
        self._ready = True
        self._chosen = None
        return self._source.observation(), self._info()

    def step(
        self, action: int | np.integer | npt.NDArray[np.integer]
    ) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Decide on the packet of the row, and go to the next one."""
        if (isinstance(action, np.ndarray) and action.ndim > 0) or (action != 0 and action != 1 and action != 2):
            raise L4SError(f"action {action!r}: give 0 (enqueue), 1 (drop) or 2 (mark)")
        if not self._ready or self._source.done:
            what = "the episode has ended" if self._ready else "the environment has not been started"
            raise gym.error.ResetNeeded(f"step: {what}; call reset() first")
        self._chosen = int(action)
        reward = self._source.reward()
        done = self._source.step(self._chosen)
        return self._source.observation(), reward, False, done, self._info()

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"logged_action": self._source.logged_action(), "row": self._source.index}
        if self._info_record:
            info["record"] = self.record()
        return info

    def record(self) -> dict[str, int]:
        """The observed features of the row, as logged."""
        return {name: int(self._source.record()[name]) for name in OBSERVED}

    def render(self) -> Any:
        """`ansi`: a line on the row."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='ansi' in gym.make")
            return None
        row = self._source.record()
        last = "" if self._chosen is None else f"  last action {ACTIONS[self._chosen]}"
        return (
            f"row {self._source.index:7d}  {'CL'[int(row['queue_type'])]} {int(row['length_in_bytes']):7d} B "
            f"{int(row['current_queue_delay']) * 1e-3:8.2f} ms  logged {ACTIONS[int(row['action'])]}{last}"
        )
