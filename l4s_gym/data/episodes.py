"""Episodes from logged decisions: one per run, with what the kernel knew before each decision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.data.causal import observable
from l4s_gym.data.logs import Records
from l4s_gym.data.pools import Rows
from l4s_gym.data.report import COUNTED
from l4s_gym.data.steps import EXTRAS, StepMaker, Steps
from l4s_gym.data.stream import RowStream, RunSplitter
from l4s_gym.errors import L4SError
from l4s_gym.schema import CLASSIC, L4S, OBSERVED

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Episode:
    """A run of decisions. Step t saw observation t, took action t, and led to observation t + 1.

    Attributes:
        observations: Scaled as the environment's, shape (T + 1, 8) float32.
        actions: What was decided: 0 enqueue, 1 drop, 2 mark, shape (T,) int64.
        rewards: Shape (T,) float64.
        missing: Whether the accumulated probability is unknown, and shown as 0, shape (T + 1,) bool.
        consecutive: Whether each row is the packet right after the one before.
        source: Where the rows come from.
        applied: What was done to the packets, shape (T,) int64.
        absent: Observed fields that the source lacks; they are 0 throughout.
        extras: `steps.EXTRAS` by name, shape (T + 1,) each; those that are not there are 0 throughout.
        about: Metadata of the episode (plain values), such as scenario, behaviour and seed.
    """

    observations: npt.NDArray[np.float32]
    actions: Ints
    rewards: Floats
    missing: Bools
    consecutive: bool
    source: str
    applied: Ints
    absent: tuple[str, ...] = ()
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of steps T."""
        return len(self.actions)


def run_starts(rows: Rows) -> list[int]:
    """Indices of the rows with which runs start, the first included.

    A run starts where the sequence number does not go up, or else where `total_packets` of a queue goes back.
    Rows without these fields are one run.
    """
    records = rows.records
    if "sequence" in rows.present and records["sequence"].any():
        return [0, *(np.flatnonzero(np.diff(records["sequence"].astype(np.int64)) <= 0) + 1).tolist()]
    starts = [0]
    if not rows.present >= COUNTED:
        return starts
    back: list[tuple[int, int]] = []  # (row that went back, row of the same queue before it)
    for queue in (CLASSIC, L4S):
        index = np.flatnonzero(records["queue_type"] == queue)
        fell = np.flatnonzero(np.diff(records["total_packets"][index].astype(np.int64)) < 0)
        back += zip(index[fell + 1].tolist(), index[fell].tolist(), strict=True)
    for row, before in sorted(back):
        if before >= starts[-1]:  # else it is the other queue's first row of the same run
            starts.append(row)
    return starts


class Continuity:
    """Watches whether no row of a run is lost or repeated, as far as its counters tell.

    Attributes:
        whole: Whether that holds for the rows seen; False without counters.
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


class StreamRun:
    """One run of a stream, read as it is stored: `blocks` once, then `about` is complete."""

    def __init__(self, stream: RowStream, pieces: Iterable[tuple[int, Records, Steps]], as_logged: bool) -> None:
        self._stream, self._pieces, self._as_logged = stream, pieces, as_logged
        self._order = Continuity(stream.present)

    @property
    def about(self) -> Mapping[str, Any]:
        """Attributes of the episode."""
        absent = ",".join(absent_features(self._stream.present, self._as_logged))
        return {"consecutive": self._order.whole, "source": self._stream.source, "absent": absent}

    def blocks(self) -> Iterator[Steps]:
        """Rows `steps.STEP` in order."""
        for _, records, steps in self._pieces:
            self._order.see(records)
            yield steps


def runs_of_stream(stream: RowStream, *, as_logged: bool = False) -> Iterator[StreamRun]:
    """The runs of a stream, one after the other as they are read; each must be read before the next."""

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

    for _, group in groupby(pieces(), itemgetter(0)):
        yield StreamRun(stream, group, as_logged)


def _split(rows: Rows, as_logged: bool) -> Iterator[Episode]:
    steps = StepMaker(rows.present, as_logged=as_logged, source=rows.source).make(rows.records)
    if not len(rows):
        return
    absent = absent_features(rows.present, as_logged)
    starts = run_starts(rows)
    for first, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        if end - first < 2:  # one row is an observation without a step
            continue
        run = steps[first:end]
        order = Continuity(rows.present)
        order.see(rows.records[first:end])
        yield Episode(
            observations=run["observation"].copy(),
            actions=run["action"][:-1].astype(np.int64),
            rewards=run["reward"][:-1].copy(),
            missing=run["missing"].copy(),
            consecutive=order.whole,
            source=rows.source,
            applied=run["applied"][:-1].astype(np.int64),
            absent=absent,
            extras={name: run[name].copy() for name in EXTRAS},
        )


def absent_features(present: frozenset[str], as_logged: bool = False) -> tuple[str, ...]:
    """Observed fields that a source lacks."""
    told = observable(present, as_logged)
    return tuple(name for name in OBSERVED if name not in told)


def episodes_from_rows(rows: Rows | Sequence[Rows], *, as_logged: bool = False) -> list[Episode]:
    """Cut logged decisions into episodes, one per run; the last row of a run is its final observation.

    The reward is that of the public pools, `REWARD`, from the step's own row. Rows of a pool are not
    consecutive: a pool is one episode that says so.

    Args:
        rows: Logged decisions, of one source or of several.
        as_logged: Observe the fields as printed, which give most drops away, instead of those before the decision.

    Returns:
        The episodes, in the order of the rows; runs of a single row are left out.

    Raises:
        L4SError: A source bears no actions, or no run has two rows.
    """
    sources = [rows] if isinstance(rows, Rows) else list(rows)
    episodes = [episode for source in sources for episode in _split(source, as_logged)]
    if not episodes:
        names = ", ".join(source.source for source in sources) or "rows"
        raise L4SError(f"{names}: no run of two rows or more: an episode needs a step and what follows it")
    return episodes
