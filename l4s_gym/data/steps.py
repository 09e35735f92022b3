"""Logged decisions as steps: observation, action and reward, one packed row a packet; and the runs that they make.

The form between the records of a log and the trajectories of a dataset. A step's row belongs to one
packet; a run of T steps is T + 1 rows, the last of which is the final observation only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.causal import CausalStream, observable
from l4s_gym.data.logs import Records
from l4s_gym.data.pools import Rows, single
from l4s_gym.data.report import COUNTED, Missing
from l4s_gym.data.stream import RowStream, RunSplitter
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.rewards import L4S_LLM, l4s_llm
from l4s_gym.schema import (
    BY_NAME,
    CLASSIC,
    DROP,
    ENQUEUE,
    L4S,
    OBS_HIGH,
    OBS_SCALE,
    OBSERVED,
    scale_observation,
)

Steps = npt.NDArray[np.void]

REWARD: Final = L4S_LLM
"""Name of the reward of logged rows."""
_ACTIVE: Final = 1
MISSING: Final = "accumulated_probability"
"""The only feature that may be unknown in some rows of a log; the others are known or absent throughout."""
_ACCUMULATED: Final = OBSERVED.index(MISSING)

EXTRAS: Final = ("decided_by", "time_us", "logged_accumulated_probability", "logged_total_drops")
"""What is kept beside the observations: who decided (`schema.DECIDED_BY`), the clock, and the logged values (kernel
units) of the two observed fields that the log prints otherwise than they were before the decision. 0 where the source
lacks them."""

STEP: Final[np.dtype[np.void]] = np.dtype(
    [
        ("observation", "f4", (len(OBSERVED),)),
        ("reward", "f8"),
        ("time_us", "i8"),
        ("logged_accumulated_probability", "i8"),
        ("logged_total_drops", "i8"),
        ("action", "i1"),
        ("applied", "i1"),
        ("decided_by", "i1"),
        ("missing", "?"),
    ]
)
"""One row: the scaled observation, the reward of the step, `EXTRAS`, what was decided, what was applied, and whether
the accumulated probability before the decision is unknown (and shown as 0)."""


def logged_rewards(records: Records) -> npt.NDArray[np.float64]:
    """Return `REWARD` of each record (T,)."""
    rewards: npt.NDArray[np.float64] = l4s_llm(records["packet_length"], records["current_queue_delay"])
    return rewards


def reward_warning(present: frozenset[str]) -> str | None:
    """Return a warning if a source lacks a field of `REWARD`, which then counts as 0."""
    absent = [name for name in ("packet_length", "current_queue_delay") if name not in present]
    if not absent:
        return None
    return f"warning: the source lacks {' and '.join(absent)}, so the rewards mean nothing: learn from the actions only"


def applied_actions(records: Records, present: frozenset[str]) -> npt.NDArray[np.uint8]:
    """Return what was done to the packets (T,): as recorded, else the logged action unless the kernel withheld a drop.

    A source without `burst_allowance` does not show whether a drop was withheld: it counts as done.
    """
    if "applied_action" in present:
        applied: npt.NDArray[np.uint8] = records["applied_action"]
        return applied
    active = (records["status_flags"] & _ACTIVE > 0) | ("status_flags" not in present)
    withheld = (records["action"] == DROP) & ((records["burst_allowance"] > 0) | ~active)
    return np.where(withheld, np.uint8(ENQUEUE), records["action"])


class StepMaker:
    """Turns the records of one source into steps, block by block.

    Args:
        present: Names of the fields that the source has.
        as_logged: Observe the fields as printed, which reveal most drops, instead of those before the decision.
        source: Where the records come from, for errors.
        missing: Counts the rows whose accumulated probability is unknown.
    """

    def __init__(
        self,
        present: frozenset[str],
        *,
        as_logged: bool = False,
        source: str = "records",
        missing: Missing | None = None,
    ) -> None:
        if "action" not in present:
            raise L4SError(f"{source}: has no actions: give logged decisions")
        self.present = present
        self._causal = CausalStream(present, as_logged, missing)
        self._recorded = present >= set(BY_NAME) and not as_logged

    def make(self, records: Records, rewards: npt.NDArray[np.float64] | None = None) -> Steps:
        """Make steps of the next records.

        Args:
            records: Records (T,) that follow those of the last call.
            rewards: Reward of each step (T,); None: `REWARD`, from the step's own row.

        Returns:
            `STEP` (T,).
        """
        steps = np.zeros(len(records), STEP)
        if self._recorded and rewards is not None:
            from l4s_gym.data.fast import fill_steps

            fill_steps(records, rewards, OBS_SCALE, OBS_HIGH.astype(np.float64), steps)
            return steps
        raw = self._causal.observe(records)  # (T, 8)
        steps["missing"] = np.isnan(raw[:, _ACCUMULATED])
        np.nan_to_num(raw, copy=False)
        steps["observation"] = scale_observation(raw)
        if rewards is None:
            rewards = logged_rewards(records)
        steps["reward"] = rewards
        steps["action"] = records["action"]
        steps["applied"] = applied_actions(records, self.present)
        for name in ("decided_by", "time_us"):
            steps[name] = records[name]
        steps["logged_accumulated_probability"] = records["accumulated_probability"]
        steps["logged_total_drops"] = records["total_drops"]
        return steps


def absent_features(present: frozenset[str], as_logged: bool = False) -> tuple[str, ...]:
    """Return the observed fields that a source lacks."""
    told = observable(present, as_logged)
    return tuple(name for name in OBSERVED if name not in told)


class Continuity:
    """Checks whether any row of a run is lost or repeated, as far as the counters show.

    Attributes:
        whole: Whether no row is lost or repeated so far; False without counters.
    """

    def __init__(self, present: frozenset[str]) -> None:
        self.whole = "sequence" in present or present >= COUNTED
        self._by = "sequence" if "sequence" in present else "total_packets"
        self._last: dict[int, int] = {}

    def see(self, records: Records) -> None:
        """Look at the next rows."""
        if not self.whole:
            return
        for queue in (CLASSIC, L4S) if self._by == "total_packets" else (0,):
            count = records[self._by]
            if self._by == "total_packets":
                count = count[records["queue_type"] == queue]
            if not len(count):
                continue
            steps = np.diff(count.astype(np.int64), prepend=self._last.get(queue, int(count[0]) - 1))
            self.whole = self.whole and bool((steps == 1).all())
            self._last[queue] = int(count[-1])


@dataclass(frozen=True)
class StreamRun:
    """A run that is read once, in its stored form: `about` is complete after all `rows` were read."""

    about: dict[str, Any]
    rows: Iterator[Steps]

    def blocks(self) -> Iterator[Steps]:
        """Return rows `STEP` in order."""
        return self.rows


def runs_of_stream(stream: RowStream, *, as_logged: bool = False) -> Iterator[StreamRun]:
    """Yield the runs of a stream one by one as they are read; each must be read before the next."""

    def pieces() -> Iterator[tuple[int, Records, Steps]]:
        maker = StepMaker(stream.present, as_logged=as_logged, source=stream.source, missing=stream.missing)
        splitter = RunSplitter(stream.present)
        number = 0
        for records in stream.blocks():
            steps = maker.make(records)
            cuts = splitter.starts(records)
            for first, end in zip([0, *cuts], [*cuts, len(records)], strict=True):
                number += first in cuts
                if end > first:
                    yield number, records[first:end], steps[first:end]

    def watched(run: Iterable[tuple[int, Records, Steps]], about: dict[str, Any]) -> Iterator[Steps]:
        order = Continuity(stream.present)
        for _, records, steps in run:
            order.see(records)
            about["consecutive"] = order.whole
            yield steps

    absent = ",".join(absent_features(stream.present, as_logged))
    for _, run in groupby(pieces(), itemgetter(0)):
        about: dict[str, Any] = {"consecutive": False, "source": stream.source, "absent": absent}
        yield StreamRun(about, watched(run, about))


def trajectory_of(rows: Steps, **about: Any) -> Trajectory:
    """Convert rows `STEP` of a run (T + 1,) to columns; `about`: further attributes of `Trajectory`."""
    return Trajectory(
        observations=rows["observation"].copy(),
        actions=rows["action"][:-1].astype(np.int64),
        rewards=rows["reward"][:-1].copy(),
        missing={MISSING: rows["missing"].copy()},
        applied=rows["applied"][:-1].astype(np.int64),
        extras={name: rows[name].copy() for name in EXTRAS},
        **about,
    )


def rows_of_trajectory(run: Trajectory) -> Steps:
    """Undo `trajectory_of`: return rows `STEP` (T + 1,); what the trajectory lacks is 0."""
    rows = np.zeros(len(run) + 1, STEP)
    rows["observation"], rows["missing"] = run.observations, ~run.known
    applied = run.actions if run.applied is None else run.applied
    for name, values in (("action", run.actions), ("applied", applied), ("reward", run.rewards)):
        rows[name][:-1] = values
    for name, values in run.extras.items():
        rows[name] = values
    return rows


def episodes_from_rows(rows: Rows | Sequence[Rows], *, as_logged: bool = False) -> list[Trajectory]:
    """Cut logged decisions into episodes, one per run; the last row of a run is its final observation.

    The reward is that of the public pools, `REWARD`, from the step's own row. Rows of a pool are not
    consecutive: a pool is one episode that says so.

    Args:
        rows: Logged decisions, of one source or of several.
        as_logged: Observe the fields as printed, which reveal most drops, instead of those before the decision.

    Returns:
        The episodes, in the order of the rows; runs of a single row are left out.

    Raises:
        L4SError: A source has no actions, or no run has two rows.
    """
    sources = [rows] if isinstance(rows, Rows) else list(rows)
    episodes = []
    for source in sources:
        absent = absent_features(source.present, as_logged)
        for run in runs_of_stream(single(source), as_logged=as_logged):
            steps = np.concatenate(list(run.blocks()))
            if len(steps) > 1:  # one row is an observation without a step
                whole = bool(run.about["consecutive"])
                episodes.append(trajectory_of(steps, consecutive=whole, source=source.source, absent=absent))
    if not episodes:
        names = ", ".join(source.source for source in sources) or "rows"
        raise L4SError(f"{names}: no run of two rows or more: an episode needs a step and what follows it")
    return episodes
