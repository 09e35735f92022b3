"""Logged decisions of any kind in memory, and csv files of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.columns import field_of, unknown_field, without_index
from l4s_gym.data.files import PathLike, atomic_write, printable, read_error
from l4s_gym.data.logs import Records, known_fields
from l4s_gym.data.records import bounds
from l4s_gym.data.stream import Blocks, Progress, RowStream, RunSplitter, join, open_stream
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, FIELDS, MARK, RECORD

MAX_POOL_BYTES: Final = 1 << 28
_NULLABLE: Final = "accumulated_probability_before"
_UNKNOWN: Final = bounds(_NULLABLE)[1]


@dataclass(frozen=True)
class Rows:
    """Logged decisions from any source.

    Attributes:
        records: Records (T,); fields that the source lacks are 0.
        present: Names of the fields that the source has.
        source: Where they come from.
        notes: Choices made while reading, in words.
        simulator: Fingerprint of the simulator that decided; empty: the source has none.
    """

    records: Records
    present: frozenset[str]
    source: str
    notes: tuple[str, ...] = ()
    simulator: str = ""

    def __len__(self) -> int:
        """Return the number of rows T."""
        return len(self.records)

    @property
    def has_before(self) -> bool:
        """Whether the accumulated probability before the decision was recorded, and need not be rebuilt."""
        return "accumulated_probability_before" in self.present


def to_records(columns: dict[str, npt.NDArray[np.float64]]) -> Records:
    """Convert columns in kernel units to records, within the schema's bounds."""
    records = np.zeros(len(next(iter(columns.values()))), RECORD)
    for name, column in columns.items():
        low, high = bounds(name)
        # The pools are float32: the largest probability was rounded up by 1.
        bad = np.flatnonzero(~((column >= low) & (column <= np.float32(high)) & (column == np.floor(column))))
        if bad.size:
            raise L4SError(
                f"row {bad[0]}: {name} is {column[bad[0]]:g}, not a whole number from {low} to {high}: "
                "rows must be in kernel units"
            )
        integers = np.minimum(column, np.nextafter(float(high), 0)).astype(np.int64)
        records[name] = np.where(column >= high, high, integers)
    return records


def load_rows_csv(path: PathLike) -> Rows:
    """Read consecutive rows from a csv file in kernel units whose header has the schema's names, or the authors'.

    A leading column without a name (or pandas' name of one) numbers the rows, and is not read. `action` is 0, 1, 2; the
    authors' `dequeue_action` is so too, or 1, 2, 3 as printed. Fields without a column are 0. An empty
    `accumulated_probability_before` is unknown.

    Raises:
        L4SError: The file cannot be read, has an unknown column, or a row is not of whole numbers in bounds.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            heads = [name.strip() for name in file.readline().split(",")]
            lines = [line for line in file if line.strip()]
    except OSError as error:
        raise read_error(path, error) from error
    except UnicodeDecodeError as error:
        raise L4SError(f"{path}: is not a text file: give a csv file with a header") from error
    own = without_index(heads)
    names = [field_of(name) for name in own]
    for name in names or heads:
        if name not in BY_NAME:
            error_name = unknown_field("column", name, BY_NAME)
            raise L4SError(f"{path}: {error_name}")
    if len(set(names)) != len(names) or not lines:
        raise L4SError(f"{path}: has {'no rows' if not lines else 'a column twice'}: give a csv file with a header")
    try:
        empty: dict[int | str, Callable[[str], float]] = {}
        if _NULLABLE in heads:
            empty[heads.index(_NULLABLE)] = lambda cell: float(cell or _UNKNOWN)
        table = np.loadtxt(lines, np.float64, delimiter=",", comments=None, ndmin=2, converters=empty)
    except ValueError as error:
        raise L4SError(f"{path}: {printable(error)}: each row needs {len(heads)} numbers") from error
    if table.shape[1] != len(heads):
        raise L4SError(f"{path}: rows of {table.shape[1]} numbers, but {len(heads)} names: correct the header")
    table = table[:, len(heads) - len(own) :]
    notes = []
    if "dequeue_action" in own:
        actions = table[:, own.index("dequeue_action")]
        if actions.min() == 1 and actions.max() <= MARK + 1:  # every packet dropped or marked: unlikely in a log
            actions -= 1
            notes.append("dequeue_action is 1 enqueue, 2 drop, 3 mark, as the kernel prints it")
    try:
        records = to_records(dict(zip(names, table.T, strict=True)))
    except L4SError as error:
        raise L4SError(f"{path}: {error}") from error
    return Rows(records, frozenset(names), os.path.basename(path), tuple(notes))


def write_csv(stream: RowStream, path: PathLike) -> tuple[int, int]:
    """Write a stream as csv in kernel units for `load_rows_csv`; the file is replaced as a whole or not at all.

    Returns:
        The number of rows and of runs.
    """
    names = [field.name for field in FIELDS if field.name in stream.present]
    splitter, rows, runs = RunSplitter(stream.present), 0, 0
    with atomic_write(path) as file:
        file.write((",".join(names) + "\n").encode())
        for block in stream.blocks():
            columns = [[str(value) for value in block[name].tolist()] for name in names]
            if _NULLABLE in names:
                k = names.index(_NULLABLE)
                columns[k] = ["" if word == str(_UNKNOWN) else word for word in columns[k]]
            file.write("".join(f"{','.join(row)}\n" for row in zip(*columns, strict=True)).encode())
            rows, runs = rows + len(block), runs + len(splitter.starts(block))
    return rows, runs


def single(rows: Rows, progress: Progress | None = None) -> RowStream:
    """Return rows in memory as a stream of one block."""

    def blocks() -> Blocks:
        yield rows.records
        if progress is not None:
            progress(1.0)
        return None

    return RowStream(rows.source, rows.present, blocks(), rows.simulator, notes=rows.notes)


def open_csv(paths: Sequence[PathLike], *, progress: Progress | None = None) -> RowStream:
    """Return the rows of `load_rows_csv` as a stream."""
    (path,) = paths
    return single(load_rows_csv(path), progress)


def rows_of(stream: RowStream) -> Rows:
    """Return all rows of a stream, in memory."""
    return Rows(join(stream.blocks()), stream.present, stream.source, stream.notes, stream.simulator)


def load_rows(paths: PathLike | Sequence[PathLike], *, columns: Sequence[str] | None = None) -> Rows:
    """Read logged decisions of any kind into memory: all of `stream.open_stream`, with its arguments and errors."""
    return rows_of(open_stream(paths, columns=columns))


def make_rows(records: Records, source: str = "records", present: Sequence[str] | None = None) -> Rows:
    """Make rows from complete records, such as an engine's log.

    Args:
        records: Records (T,).
        source: Where they come from.
        present: Names of the fields that the records have; None: `known_fields`.
    """
    names = known_fields(records) if present is None else frozenset(present)
    if not {f.name for f in FIELDS} >= names:
        raise L4SError(f"{source}: names fields that the schema lacks: {', '.join(sorted(names - set(BY_NAME)))}")
    return Rows(records, names, source)
