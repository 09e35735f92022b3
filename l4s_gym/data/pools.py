"""The public experience pools (pickles) and csv extracts, and one loader for all kinds of rows.

The pools are read without running anything that they ask for (see `l4s_gym.data.pickles`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data import meaning
from l4s_gym.data.files import PathLike, atomic_write, printable, read_error
from l4s_gym.data.logs import Records, known_fields
from l4s_gym.data.names import field_of, unknown_field, without_index
from l4s_gym.data.pickles import Array, Instance, Machine
from l4s_gym.data.records import bounds
from l4s_gym.data.stream import Blocks, Progress, RowStream, RunSplitter, join, open_stream
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, FIELDS, MARK, RECORD

FEATURES: Final = meaning.FEATURES
"""Names of the features of the forms of the pools, in order."""
MAX_POOL_BYTES: Final = 1 << 28
_NULLABLE: Final = "accumulated_probability_before"
_UNKNOWN: Final = bounds(_NULLABLE)[1]
_ATTRIBUTES: Final = ("states", "actions", "rewards", "dones")


@dataclass(frozen=True)
class Rows:
    """Logged decisions from any source.

    Attributes:
        records: Records (T,); fields that the source lacks are 0.
        present: Names of the fields that the source bears.
        source: Where they come from.
        notes: What was decided when they were read, in words.
    """

    records: Records
    present: frozenset[str]
    source: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of rows T."""
        return len(self.records)

    @property
    def has_before(self) -> bool:
        """Whether the pre-decision accumulated probability was recorded, and need not be rebuilt."""
        return "accumulated_probability_before" in self.present


@dataclass(frozen=True)
class Pool:
    """An experience pool.

    Attributes:
        records: Records (T,); the fields that the pool lacks are 0.
        present: Names of the fields that the pool bears.
        observed: Logged actions 0, 1, 2, shape (T,) uint8.
        rewards: As stored, shape (T,) float64; their meaning differs from pool to pool.
        dones: As stored, shape (T,) bool.
        simulator: Fingerprint of the simulator whose decisions it holds; empty: it bears none.
        note: How the meaning of the columns was told, if the data had to tell it.
    """

    records: Records
    present: tuple[str, ...]
    observed: npt.NDArray[np.uint8]
    rewards: npt.NDArray[np.float64]
    dones: npt.NDArray[np.bool_]
    simulator: str = ""
    note: str | None = None


def _plain(values: object, name: str) -> npt.NDArray[np.float64]:
    """A list of numbers or short arrays, or one array, as float64."""
    if isinstance(values, Array):
        values = values.value
    elif isinstance(values, list):
        values = [value.value if isinstance(value, Array) else value for value in values]
        # Short ones only: a small file can name one large array very often.
        short = len(FIELDS)
        if not all(isinstance(v, int | float) or (isinstance(v, np.ndarray) and v.size <= short) for v in values):
            raise L4SError(f"{name} is not a table of numbers: fetch the file again")
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise L4SError(f"{name} is not a table of numbers: fetch the file again") from error


def _fill(columns: dict[str, npt.NDArray[np.float64]]) -> Records:
    """Records from columns in kernel units, with the schema's bounds checked."""
    records = np.zeros(len(next(iter(columns.values()))), RECORD)
    for name, column in columns.items():
        low, high = bounds(name)
        # The pools are float32: the largest probability is rounded up by 1.
        bad = np.flatnonzero(~((column >= low) & (column <= np.float32(high)) & (column == np.floor(column))))
        if bad.size:
            raise L4SError(
                f"row {bad[0]}: {name} is {column[bad[0]]:g}, not a whole number from {low} to {high}: "
                "rows must be in kernel units"
            )
        integers = np.minimum(column, np.nextafter(float(high), 0)).astype(np.int64)
        records[name] = np.where(column >= high, high, integers)
    return records


def _parse_pool(data: bytes, columns: Sequence[str] | None) -> Pool:
    root = Machine().run(data)
    if not isinstance(root, Instance) or root.attributes is None or set(root.attributes) != set(_ATTRIBUTES):
        raise L4SError(f"is not an experience pool with {', '.join(_ATTRIBUTES)}: fetch the file again")
    states, actions, rewards, dones = (_plain(root.attributes[name], name) for name in _ATTRIBUTES)
    if not len(states):
        raise L4SError("is an empty pool, it holds no step: give another one")
    if states.ndim != 2:
        raise L4SError(f"has states of shape {states.shape[1:]}: give a pool of rows of features")
    if any(column.shape != states.shape[:1] for column in (actions, rewards, dones)):
        raise L4SError(f"has {len(states)} states, but not as many actions, rewards and dones: fetch the file again")
    names, note = (
        meaning.columns_of(states) if columns is None else (meaning.named_columns(columns, states.shape[1]), None)
    )
    read = {name: states[:, column] for column, name in enumerate(names) if name != meaning.LEFT_OUT}
    records = _fill(read | {"action": actions})
    return Pool(records, (*read, "action"), records["action"].astype(np.uint8), rewards, dones != 0, note=note)


def load_pool(path: PathLike, *, columns: Sequence[str] | None = None, max_bytes: int = MAX_POOL_BYTES) -> Pool:
    """Read an experience pool without running anything that the file asks for.

    Args:
        path: Pickle of an ``ExperiencePool``, of ``utils.exp_pool`` or of a notebook.
        columns: Names of the features, in order, `meaning.LEFT_OUT` for one that is not read; None: those of
            `meaning`.
        max_bytes: Larger files are refused.

    Returns:
        The pool. Its numbers went through float32: probabilities are right to about 6e-8 of their size.

    Raises:
        L4SError: The file cannot be read, is too large, mentions any other global name, is no pool, or it cannot be
            told what its columns are.
    """
    try:
        size = os.path.getsize(path)
        if size > max_bytes:
            raise L4SError(f"{path}: has {size} bytes, more than {max_bytes}: raise max_bytes if you trust it")
        with open(path, "rb") as file:
            data = file.read(max_bytes)
    except OSError as error:
        raise read_error(path, error) from error
    try:
        return _parse_pool(data, columns)
    except L4SError as error:
        raise L4SError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise L4SError(f"{path}: is not a whole pickle of a pool ({printable(error)}): fetch it again") from error


# -- csv, and any source


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
        raise L4SError(f"{path}: rows of {table.shape[1]} numbers, but {len(heads)} names: mend the header")
    table = table[:, len(heads) - len(own) :]
    notes = []
    if "dequeue_action" in own:
        actions = table[:, own.index("dequeue_action")]
        if actions.min() == 1 and actions.max() <= MARK + 1:  # a log in which no packet was enqueued is none
            actions -= 1
            notes.append("dequeue_action is 1 enqueue, 2 drop, 3 mark, as the kernel prints it")
    try:
        records = _fill(dict(zip(names, table.T, strict=True)))
    except L4SError as error:
        raise L4SError(f"{path}: {error}") from error
    return Rows(records, frozenset(names), os.path.basename(path), tuple(notes))


def write_csv(stream: RowStream, path: PathLike) -> tuple[int, int]:
    """Write a stream as csv in kernel units that `load_rows_csv` reads; the file is replaced as a whole or not at all.

    Returns:
        Numbers of rows and of runs.
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


def single(rows: Rows, progress: Progress | None, simulator: str = "") -> RowStream:
    """Rows that are in memory anyway, as a stream of one block."""

    def blocks() -> Blocks:
        yield rows.records
        if progress is not None:
            progress(1.0)
        return None

    return RowStream(rows.source, rows.present, blocks(), simulator, notes=rows.notes)


def open_pickle(
    paths: Sequence[PathLike], *, progress: Progress | None = None, columns: Sequence[str] | None = None
) -> RowStream:
    """The pool of `load_pool` as a stream."""
    (path,) = paths
    pool = load_pool(path, columns=columns)
    notes = () if pool.note is None else (pool.note,)
    return single(Rows(pool.records, frozenset(pool.present), os.path.basename(path), notes), progress)


def open_csv(paths: Sequence[PathLike], *, progress: Progress | None = None) -> RowStream:
    """The rows of `load_rows_csv` as a stream."""
    (path,) = paths
    return single(load_rows_csv(path), progress)


def rows_of(stream: RowStream) -> Rows:
    """All rows of a stream, in memory."""
    return Rows(join(stream.blocks()), stream.present, stream.source, stream.notes)


def load_rows(paths: PathLike | Sequence[PathLike], *, columns: Sequence[str] | None = None) -> Rows:
    """Read logged decisions of any kind into memory: all of `stream.open_stream`, with its arguments and errors."""
    return rows_of(open_stream(paths, columns=columns))


def make_rows(records: Records, source: str = "records", present: Sequence[str] | None = None) -> Rows:
    """Rows from complete records, such as an engine's log.

    Args:
        records: Records (T,).
        source: Where they come from.
        present: Names of the fields that they bear; `known_fields` if None.
    """
    names = known_fields(records) if present is None else frozenset(present)
    if not {f.name for f in FIELDS} >= names:
        raise L4SError(f"{source}: names fields that the schema lacks: {', '.join(sorted(names - set(BY_NAME)))}")
    return Rows(records, names, source)
