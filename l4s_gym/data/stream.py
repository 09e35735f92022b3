"""Logged decisions of any kind as a stream of blocks, so that a log never has to be in memory as a whole."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from l4s_gym.data.columns import known_header
from l4s_gym.data.evidence import REQUIRED, SUFFICIENT
from l4s_gym.data.files import PathLike, open_compressed, read_error
from l4s_gym.data.report import COUNTED, LogReport, Missing
from l4s_gym.errors import L4SError
from l4s_gym.schema import CLASSIC, L4S, RECORD

Records = npt.NDArray[np.void]
Progress = Callable[[float], None]
Blocks = Generator[Records, None, LogReport | None]
"""Blocks of records, and at the end the report."""

BLOCK_ROWS: Final = 1 << 16
PLAIN: Final = np.dtype((np.void, RECORD.itemsize))
"""A record as plain bytes. NumPy copies records field by field; plain bytes are several times faster."""

_PACKED: Final = (".gz", ".bz2", ".xz", ".zst")


class Format(NamedTuple):
    """A file format of logged decisions.

    Attributes:
        opens: The function that opens such files as a `RowStream`, module:name.
        suffixes: Endings of their names.
        writes: The function that writes a stream, and returns the number of rows and of runs; empty: none does.
        several: Whether several files may follow each other.
        packed: Whether a file may be written compressed.
    """

    opens: str
    suffixes: tuple[str, ...]
    writes: str = ""
    several: bool = False
    packed: bool = False

    @property
    def endings(self) -> tuple[str, ...]:
        """Possible endings of the name of a file to write."""
        packed = _PACKED if self.packed else ()
        return (*self.suffixes, *(suffix + packing for suffix in self.suffixes for packing in packed))


_DATA: Final = "l4s_gym.data"
FORMATS: Final = {
    "log": Format(f"{_DATA}.logs:open_log", (".log",), several=True),
    "rec": Format(
        f"{_DATA}.records:open_records", (".rec",), f"{_DATA}.records:write_records", several=True, packed=True
    ),
    "parquet": Format(f"{_DATA}.parquet:open_parquet", (".parquet",), f"{_DATA}.parquet:write_parquet"),
    "pool": Format(f"{_DATA}.jsonpool:open_pool", (".json",), f"{_DATA}.jsonpool:write_pool", packed=True),
    "pickle": Format(f"{_DATA}.pickles:open_pickle", (".pkl", ".pickle")),
    "csv": Format(f"{_DATA}.pools:open_csv", (".csv",), f"{_DATA}.pools:write_csv"),
}
"""All formats by name, which is their kind. A module is imported when a file needs it."""


@dataclass
class RowStream:
    """Logged decisions that are read once, from the first to the last.

    Attributes:
        source: Where the rows come from: names of the files.
        present: Names of the fields that the source has; the others are 0.
        content: What is read.
        simulator: Fingerprint of the simulator that wrote it; empty: the source has none, as a kernel's log.
        report: What was read and skipped and why, once the blocks were read to the end; None for kinds without.
        notes: Choices made when the source was opened, in words.
        missing: The rows whose accumulated probability before the decision is unknown, counted as they are
            read.
    """

    source: str
    present: frozenset[str]
    content: Blocks
    simulator: str = ""
    report: LogReport | None = None
    notes: tuple[str, ...] = ()
    missing: Missing = field(default_factory=Missing)
    _begun: bool = False

    @property
    def reduced(self) -> bool:
        """Whether the rows lack the fields to judge them one by one (see `evidence`), and must stay together."""
        rebuilt = self.present >= REQUIRED and "accumulated_probability_before" not in self.present
        return rebuilt and not self.present >= SUFFICIENT

    def blocks(self) -> Iterator[Records]:
        """Yield the rows in order, in blocks of at most `BLOCK_ROWS`; can be called once.

        Rows of pools and csv files (small, and `reduced`) come in one block.
        """
        if self._begun:
            raise RuntimeError("the blocks of a stream can be read once: open the files again")
        self._begun = True
        if self.reduced:
            parts = list(self._read())
            yield from [join(parts)] if parts else []
        else:
            yield from self._read()

    def _read(self) -> Iterator[Records]:
        self.report = yield from self.content


class _Open(Protocol):
    def __call__(self, paths: Sequence[Path], *, progress: Progress | None, **options: Any) -> RowStream: ...


def _by_content(path: Path) -> str:
    with open_compressed(path) as file:
        head = file.read(1 << 12)
    if head[:8] == b"L4S-REC\n":
        return "rec"
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:1] == b"\x80" and b"ExperiencePool" in head:
        return "pickle"
    if head.lstrip()[:1] == b"{" and b"experience pool" in head:
        return "pool"
    header = head.split(b"\n", 1)[0].strip().decode("utf-8", "replace").split(",")
    return "csv" if known_header(header) else "log"


def named_kind(path: Path) -> str | None:
    """Return the kind of a file by its suffix (before that of a compression), or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return next((kind for kind, form in FORMATS.items() if suffixes and suffixes[-1] in form.suffixes), None)


def kind_of(path: Path) -> str:
    """Return the kind of a file by its suffix, else by its first bytes.

    Raises:
        L4SError: The file cannot be read.
    """
    if path.is_dir():
        raise L4SError(f"{path}: cannot be read as rows, it is a folder: name the files in it")
    try:
        return named_kind(path) or _by_content(path)
    except OSError as error:
        raise read_error(path, error) from error


def function(place: str) -> Any:
    """Load a function by its module:name."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def as_paths(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    """Return one path or several, as a list.

    Raises:
        L4SError: There is none.
    """
    found = [Path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not found:
        raise L4SError("no file was named: name at least one")
    return found


def open_stream(
    paths: PathLike | Sequence[PathLike],
    *,
    columns: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> RowStream:
    """Open logged decisions of any kind.

    Args:
        paths: Kernel logs or binary records (.rec), plain or compressed (.gz, .bz2, .xz, .zst), one or several that
            follow each other (rotations are put in order); or one experience pool (.json, or the authors' .pkl),
            Parquet file (ours) or csv file.
        columns: Names of the features of a pickled pool, see `pickles.load_pickle`; None: by its form and data.
        progress: Called with the share of the files' bytes that was read.

    Returns:
        The stream, of which the first bytes were read.

    Raises:
        L4SError: A file cannot be read or is not what its name or its first bytes say.
    """
    chosen = as_paths(paths)
    kinds = {path: kind_of(path) for path in chosen}
    kind = kinds[chosen[0]]
    if len(set(kinds.values())) > 1:
        named = ", ".join(f"{path.name} ({what})" for path, what in kinds.items())
        raise L4SError(f"{named}: files of several kinds: give those of one kind at a time")
    if len(chosen) > 1 and not FORMATS[kind].several:
        raise L4SError(f"{', '.join(path.name for path in chosen)}: give one file of this kind at a time")
    opener: _Open = function(FORMATS[kind].opens)
    if columns is None:
        return opener(chosen, progress=progress)
    if kind != "pickle":
        raise L4SError(f"{chosen[0]}: names its columns itself: give --columns for pickled pools only")
    return opener(chosen, progress=progress, columns=columns)


class RunSplitter:
    """Splits a stream into runs, block by block.

    A run starts where the sequence number does not go up, or else (in a source that numbers nothing, or has counted
    0 so far) where `total_packets` of a queue goes back. The other queue's going back belongs to the same start, as
    long as it is that queue's first row since. Rows without these fields are one run.

    Args:
        present: Names of the fields that the source has.
    """

    def __init__(self, present: frozenset[str]) -> None:
        self._numbered, self._counted = "sequence" in present, present >= COUNTED
        self._seen = 0
        self._sequence: int | None = None
        self._any = False
        self._start = 0
        self._last: dict[int, tuple[int, int]] = {}  # queue: row, total packets

    def starts(self, records: Records) -> list[int]:
        """Return the indices of the rows that start a run, in records (T,) that follow those of the last call."""
        if not len(records):
            return []
        found = [] if self._seen else [0]
        first = len(records)  # the first row to which the sequence number applies
        if self._numbered:
            sequence = records["sequence"].astype(np.int64)
            nonzero = np.array([0]) if self._any else np.flatnonzero(sequence)[:1]
            first = int(nonzero[0]) if len(nonzero) else len(records)
            self._any = self._any or bool(len(nonzero))
        if self._counted:
            found += self._fallen(records[:first])
        if self._numbered:
            if first < len(records):
                before = self._sequence if self._sequence is not None else int(sequence[0]) - 1
                fell = np.flatnonzero(np.diff(sequence, prepend=before) <= 0)
                found += fell[fell >= first].tolist()
            self._sequence = int(sequence[-1])
        self._seen += len(records)
        return found

    def _fallen(self, records: Records) -> list[int]:
        """Return the indices where the counter of a queue decreases, the first one for each start."""
        back: list[tuple[int, int]] = []  # (row that went back, row of the same queue before it)
        for queue in (CLASSIC, L4S):
            index = np.flatnonzero(records["queue_type"] == queue)
            if not index.size:
                continue
            total = records["total_packets"][index].astype(np.int64)
            rows = index + self._seen
            if queue in self._last:
                row, count = self._last[queue]
                rows, total = np.concatenate([[row], rows]), np.concatenate([[count], total])
            self._last[queue] = int(rows[-1]), int(total[-1])
            fell = np.flatnonzero(np.diff(total) < 0)
            back += zip(rows[fell + 1].tolist(), rows[fell].tolist(), strict=True)
        found = []
        for row, before in sorted(back):
            if before >= self._start:  # else it is the other queue's first row of the same run
                self._start = row
                found.append(row - self._seen)
        return found


def join(blocks: Iterable[Records]) -> Records:
    """Concatenate blocks of records, as `np.concatenate`; there may be none."""
    return np.concatenate([np.empty(0, PLAIN), *(block.view(PLAIN) for block in blocks)]).view(RECORD)


def take(records: Records, index: npt.NDArray[Any]) -> Records:
    """Return ``records[index]`` for an array of indices or a mask."""
    taken: Records = records.view(PLAIN)[index].view(RECORD)
    return taken


def regroup(blocks: Iterable[Any], rows: int = BLOCK_ROWS) -> Iterator[Any]:
    """Yield the same rows in blocks of exactly `rows` rows; the last one may have fewer.

    Args:
        blocks: Records, or other arrays of one type.
        rows: Rows of a block.
    """
    parts: list[Any] = []
    count = 0
    for block in blocks:
        at = 0
        while count + len(block) - at >= rows:
            parts.append(block[at : at + rows - count])
            at += rows - count
            yield parts[0] if len(parts) == 1 else _merge(parts)
            parts, count = [], 0
        if at < len(block):
            parts.append(block[at:])
            count += len(block) - at
    if parts:
        yield _merge(parts)


def _merge(parts: list[Any]) -> Any:
    return join(parts) if parts[0].dtype == RECORD else np.concatenate(parts)
