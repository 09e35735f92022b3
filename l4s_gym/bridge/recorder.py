"""Record the rows of a live queue to files: binary records, or log lines of the testbed's kernel.

A row is sent when it is complete. Where the law decides at departure (RFC 9332, Linux), packets of L overtake those of
C, so rows arrive out of order, and packets are queued when the recording starts and stops. Files are in the order of
arrival nevertheless: a row is kept in memory until as many rows came after it as a queue can hold. Rows of packets that
arrived before the recording are left out, and so are, at the end, rows after a packet whose row is missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.bridge.wire import Entries
from l4s_gym.data.files import PathLike, compressed_write
from l4s_gym.data.logs import log_lines
from l4s_gym.data.records import RecordWriter, out_of_bounds
from l4s_gym.data.stream import Records, join, named_kind, take
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, RECORD

Progress = Callable[[float], None]
Write = Callable[[Records], Any]

WINDOW: Final = 1 << 15
"""Rows that wait for earlier ones where rows come out of order: more than the buffer holds by default (10,240)."""
_BATCH: Final = 1 << 12
"""Number of rows written at a time."""
_WAIT_S: Final = 0.2
"""Seconds between two checks of whether the recording should end."""
_ALL: Final = frozenset(BY_NAME)


@dataclass
class Recording:
    """Result of a recording.

    Attributes:
        files: The files, in order.
        rows: Rows in them.
        lost: Entries that were lost on the way because this process was slow, as the server counts.
        missing: Sequence numbers between the first row and the last of a session that have no row.
        edges: Rows left out at the start and the end of a session, because their neighbours were not recorded, or
            because they came too late to be put in order.
        faulty: Rows left out because a value is out of the schema's bounds.
        sessions: How often the queue was started, the first included: each is a run of its own.
        seconds: For how long.
        ended: Why it ended.
        failed: Whether the connection was lost.
    """

    files: list[Path] = field(default_factory=list)
    rows: int = 0
    lost: int = 0
    missing: int = 0
    edges: int = 0
    faulty: int = 0
    sessions: int = 1
    seconds: float = 0.0
    ended: str = ""
    failed: bool = False

    def summary(self) -> str:
        """Return the result in two lines of text."""
        rate = self.rows / self.seconds if self.seconds > 0 else 0.0
        files = ", ".join(map(str, self.files))
        text = f"{self.rows} rows in {self.seconds:.1f} s ({rate:.0f}/s), {self.lost} lost on the way, "
        text += f"{self.missing} missing, {self.edges} left out at the edges, {self.faulty} faulty"
        if self.sessions > 1:
            text += f", {self.sessions} sessions"
        return f"{text}\n{self.ended}: {files or 'no file, for want of rows'}"


class Sorter:
    """Sorts the rows of one session by arrival.

    Args:
        window: Rows that wait for earlier ones; 0: rows come in order.
        since_us: Rows of packets that arrived before are left out, where rows wait.

    Attributes:
        waiting: Rows that are held.
        missing: Numbers between the first row given out and the last that had no row.
        edges: Rows left out.
    """

    def __init__(self, window: int, since_us: int) -> None:
        self._window, self._since_us = window, since_us
        self._parts: list[Records] = []
        self._next: int | None = None
        self.waiting = self.missing = self.edges = 0

    def push(self, records: Records) -> Records:
        """Take rows (n,) as they came; those (m,) whose turn it is, in order: none, or many at once."""
        self._parts.append(records)
        self.waiting += len(records)
        if self.waiting < self._window + max(self._window, _BATCH):
            return records[:0]
        held = self._sorted()
        ready = len(held) - self._window
        self._hold(held[ready:])
        return self._out(held[:ready])

    def whole(self) -> int:
        """How many of the rows that wait `finish` would give out."""
        held = self._sorted()
        self._hold(held)
        return self._end(held)

    def finish(self, whole: bool) -> Records:
        """The rows that wait still; where nothing was lost on the way (`whole`), up to the first gap."""
        held = self._sorted()
        self._hold(held[:0])
        end = self._end(held) if whole else len(held)
        self.edges += len(held) - end
        return self._out(held[:end])

    def _sorted(self) -> Records:
        held = join(self._parts)
        if not self._window:
            return held
        late = held["time_us"] < self._since_us
        if self._next is not None:
            late |= held["sequence"].astype(np.int64) < self._next
        self.edges += int(late.sum())
        held = take(held, ~late)
        return take(held, np.argsort(held["sequence"], kind="stable"))

    def _hold(self, records: Records) -> None:
        self._parts, self.waiting = [records], len(records)

    def _end(self, held: Records) -> int:
        if not self._window or not len(held):
            return len(held)
        first = int(held["sequence"][0]) if self._next is None else self._next
        gaps = np.flatnonzero(held["sequence"].astype(np.int64) - first != np.arange(len(held)))
        return int(gaps[0]) if len(gaps) else len(held)

    def _out(self, records: Records) -> Records:
        if len(records):
            sequence = records["sequence"].astype(np.int64)
            before = int(sequence[0]) - 1 if self._next is None else self._next - 1
            self.missing += int(np.maximum(np.diff(sequence, prepend=before) - 1, 0).sum())
            self._next = int(sequence[-1]) + 1
        return records


@contextmanager
def _records_file(path: Path) -> Iterator[Write]:
    with RecordWriter(path, _ALL) as writer:
        yield writer.write


@contextmanager
def _log_file(path: Path) -> Iterator[Write]:
    with compressed_write(path) as file:
        yield lambda records: file.write(log_lines(records))


class _Output:
    """The files of a recording: each appears as a whole when it is finished."""

    def __init__(self, path: Path, rotate_bytes: int | None, done: Recording) -> None:
        kind = named_kind(path)
        if kind not in ("rec", "log"):
            raise L4SError(f"{path}: is not written by a recording: name a .rec or .log file (packed too: .rec.zst)")
        if not path.absolute().parent.is_dir():
            raise L4SError(f"{path}: cannot be written, there is no folder {path.parent}: make it first")
        self._path, self._rotate_bytes, self._done = path, rotate_bytes, done
        self._make = _records_file if kind == "rec" else _log_file
        self._open: AbstractContextManager[Write] | None = None
        self._write: Write | None = None
        self._bytes = 0

    def _name(self) -> Path:
        if self._rotate_bytes is None:
            return self._path
        stem, dot, suffixes = self._path.name.partition(".")
        return self._path.with_name(f"{stem}-{len(self._done.files) + 1:04d}{dot}{suffixes}")

    def write(self, records: Records) -> None:
        """Append rows; rows with invalid values are left out."""
        bad = out_of_bounds(records, _ALL)
        if bad.any():
            self._done.faulty += int(bad.sum())
            records = take(records, ~bad)
        if not len(records):
            return
        if self._write is None:
            self._open = self._make(self._name())
            self._write = self._open.__enter__()
        self._write(records)
        self._done.rows += len(records)
        self._bytes += len(records) * RECORD.itemsize
        if self._rotate_bytes is not None and self._bytes >= self._rotate_bytes:
            self.close()

    def close(self) -> None:
        """Finish the file."""
        if self._open is not None:
            path, opened = self._name(), self._open
            self._open, self._write, self._bytes = None, None, 0
            opened.__exit__(None, None, None)
            self._done.files.append(path)

    def abandon(self, error: BaseException) -> None:
        """Remove a file that could not be completed."""
        if self._open is not None:
            opened, self._open = self._open, None
            opened.__exit__(type(error), error, error.__traceback__)


class Recorder:
    """Records a live queue.

    Args:
        client: Not connected yet: `run` does that.
        path: The file, .rec or .log, compressed if it ends in .gz, .bz2, .xz or .zst. A .log has the 24 fields of the
            kernel's line alone.
        rotate_mb: Start another file (OUT-0001.rec, ...) after so many MB of records.
        window: Rows that wait for earlier ones; None: `WINDOW` for a law that decides at departure, else none.
        clock: Tells the time, s, by which `run` ends.
    """

    def __init__(
        self,
        client: Client,
        path: PathLike,
        *,
        rotate_mb: float | None = None,
        window: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if rotate_mb is not None and not rotate_mb > 0:
            raise L4SError(f"rotate_mb={rotate_mb!r}: give a positive number of MB")
        self.done = Recording()
        self._client, self._window, self._clock = client, window, clock
        rotate = None if rotate_mb is None else max(round(rotate_mb * 1e6), 1)
        self._output = _Output(Path(os.fspath(path)), rotate, self.done)
        self._sorter = Sorter(0, 0)
        self._lost_before = 0
        self._rows: int | None = None
        self._stopped = False
        self._session = 0

    def stop(self) -> None:
        """Make `run` finish the file and return soon; for signal handlers and other threads."""
        self._stopped = True

    def run(self, seconds: float | None = None, rows: int | None = None, progress: Progress | None = None) -> Recording:
        """Record until the time is over, so many rows are there, the server goes, or `stop`: all leave a good file.

        Args:
            seconds: For how long; None: without end.
            rows: How many rows at most; None: without end.
            progress: Called with the share that is done.

        Raises:
            BridgeError: There is no server.
            L4SError: The file cannot be written.
        """
        for name, value in (("seconds", seconds), ("rows", rows)):
            if value is not None and not value > 0:
                raise L4SError(f"{name}={value!r}: give a positive number")
        self._rows = rows
        with self._client as client:
            client.subscribe(True)
            self._open_session(client.status().clock_us)
            self._session = client.hello.session
            started = self._clock()
            try:
                self._record(started, seconds, progress)
                self._finish()
                self._output.close()
            except BaseException as error:
                self._output.abandon(error)
                raise
            finally:
                self.done.seconds = self._clock() - started
                self.done.lost = client.lost
        return self.done

    def _record(self, started: float, seconds: float | None, progress: Progress | None) -> None:
        look_at = started + _WAIT_S
        while not self._stopped:
            now = self._clock()
            left = _WAIT_S if seconds is None else started + seconds - now
            if left <= 0:
                self.done.ended = "the time is over"
                return
            if now >= look_at:
                look_at = now + _WAIT_S
                if progress is not None and seconds is not None:
                    progress((now - started) / seconds)
                elif progress is not None and self._rows is not None:
                    progress((self.done.rows + self._sorter.waiting) / self._rows)
                if self._enough():
                    self.done.ended = "all rows are there"
                    return
            try:
                entries = self._client.entries(min(left, _WAIT_S))
            except BridgeError as error:
                self.done.ended, self.done.failed = str(error), True
                return
            self._take(entries)  # of a queue started anew the daemon sends rows without being asked again
        self.done.ended = "stopped"

    def _take(self, entries: Entries) -> None:
        hellos = np.flatnonzero(entries["kind"] == wire.HELLO)
        anew = [at for at in hellos.tolist() if self._begins(int(entries[at]["hello"]["session"]))]
        first, *others = np.split(np.arange(len(entries)), anew)
        self._put(wire.take(entries, first))
        for part in others:
            self._finish()
            self.done.sessions += 1
            self._open_session(0)
            self._put(wire.take(entries, part))

    def _begins(self, session: int) -> bool:
        """Whether a HELLO tells of a queue that was started anew: not of a daemon that has found it again."""
        before, self._session = self._session, session
        return session != before

    def _open_session(self, since_us: int) -> None:
        window = self._window
        if window is None:
            window = 0 if self._client.hello.variant in wire.AT_ARRIVAL else WINDOW
        self._sorter = Sorter(window, since_us)
        self._lost_before = self._client.lost

    def _put(self, entries: Entries) -> None:
        rows = wire.select(entries, wire.ROW)
        if len(rows):
            self._write(self._sorter.push(wire.records_of(rows)))

    def _finish(self) -> None:
        self._write(self._sorter.finish(self._client.lost == self._lost_before))
        self.done.missing += self._sorter.missing
        self.done.edges += self._sorter.edges

    def _write(self, records: Records) -> None:
        if self._rows is not None:
            records = records[: max(self._rows - self.done.rows, 0)]
        self._output.write(records)

    def _enough(self) -> bool:
        if self._rows is None or self.done.rows + self._sorter.waiting < self._rows:
            return False
        return self.done.rows + self._sorter.whole() >= self._rows
