"""Binary records: all fields of the schema, as in memory, behind a header that describes them.

A file (`.rec`, also compressed: `.rec.gz`, `.rec.zst`, ...) is a header of 32 bytes, or of 48 where the simulator wrote
it, and then plain records, all little-endian, so that a plain file can be mapped:
``np.memmap(path, schema.RECORD, "r", offset=32)``.

| bytes | header |
|---|---|
| 0-7 | ``L4S-REC`` and a newline |
| 8-9 | size of the header |
| 10-11 | version of the schema |
| 12-15 | size of a record |
| 16-23 | which fields are present: bit n is the n-th of `schema.FIELDS`; the others are 0 in every record |
| 24-31 | digest of the layout: names, types and places of the fields |
| 32-47 | fingerprint of the simulator (`l4s_gym.sim.fingerprint`), filled up with zeros |

A record that was torn at the end of the file is dropped, and one with a value out of the schema's bounds is
skipped; both are counted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from types import TracebackType
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.files import Meter, PathLike, compressed_write, open_compressed, order_rotation, read_error
from l4s_gym.data.logs import RANGE, known_fields
from l4s_gym.data.report import COUNTED, Tally
from l4s_gym.data.stream import BLOCK_ROWS, Blocks, Progress, Records, RowStream, RunSplitter, as_paths, join, take
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, FIELDS, RECORD, SCHEMA_VERSION

MAGIC: Final = b"L4S-REC\n"
TORN: Final = "record torn at the end of the file"
_HEADER: Final = struct.Struct("<8sHHIQ8s")
_FINGERPRINT_BYTES: Final = 16
_LAYOUT: Final = ";".join(f"{name}:{RECORD[name].str}:{place[1]}" for name, place in (RECORD.fields or {}).items())
_DIGEST: Final = blake2b(_LAYOUT.encode(), digest_size=8).digest()


def layout_digest() -> bytes:
    """Return the 8-byte digest of the record's layout; a file or a live stream must have the same."""
    return _DIGEST


def bounds(name: str) -> tuple[int, int]:
    """Return the smallest and largest stored value of a field: actions are 0, 1, 2."""
    spec = BY_NAME[name]
    shift = name == "action"
    return spec.low - shift, spec.high - shift


def out_of_bounds(records: Records, present: frozenset[str]) -> npt.NDArray[np.bool_]:
    """Return which records (T,) have a value outside the schema's bounds, or one in a field that the source lacks."""
    bad = np.zeros(len(records), bool)
    for spec in FIELDS:
        column = records[spec.name]
        if spec.name not in present:
            bad |= column != 0
            continue
        low, high = bounds(spec.name)
        if low > 0:
            bad |= column < low
        if high < np.iinfo(column.dtype).max:
            bad |= column > high
    return bad


def _pack_header(present: frozenset[str], simulator: str = "") -> bytes:
    mask = sum(1 << bit for bit, spec in enumerate(FIELDS) if spec.name in present)
    more = simulator.encode("ascii").ljust(_FINGERPRINT_BYTES, b"\0") if simulator else b""
    return _HEADER.pack(MAGIC, _HEADER.size + len(more), SCHEMA_VERSION, RECORD.itemsize, mask, _DIGEST) + more


def _read_header(path: PathLike, file: BinaryIO) -> tuple[frozenset[str], str]:
    """Return the names of the fields in a file, and the fingerprint of the simulator that wrote it, or nothing."""
    data = file.read(_HEADER.size)
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise L4SError(f"{path}: not a file of binary records: write it by `l4s-gym log convert --to rec`")
    _, size, version, itemsize, mask, digest = _HEADER.unpack(data)
    if version != SCHEMA_VERSION:
        raise L4SError(f"{path}: has version {version} of the schema, not {SCHEMA_VERSION}: convert the log again")
    more = size - _HEADER.size
    if more not in (0, _FINGERPRINT_BYTES) or (itemsize, digest) != (RECORD.itemsize, _DIGEST) or mask >> len(FIELDS):
        raise L4SError(f"{path}: has records of another layout: convert the log again")
    simulator = file.read(more).rstrip(b"\0").decode("ascii", "replace")
    return frozenset(spec.name for bit, spec in enumerate(FIELDS) if mask >> bit & 1), simulator


class RecordWriter:
    """Writes binary records block by block; the file appears as a whole when the ``with`` block ends, or not at all.

    Args:
        path: The file; compressed if its name ends in .gz, .bz2, .xz or .zst.
        present: Names of the fields that the records have; the others are written as 0.
        simulator: Fingerprint of the simulator that made the records; empty: no simulator did.
    """

    def __init__(self, path: PathLike, present: frozenset[str], simulator: str = "") -> None:
        self.path, self.present, self.simulator = path, present, simulator
        self.rows = 0
        self._absent = [spec.name for spec in FIELDS if spec.name not in present]
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> RecordWriter:
        self._file = self._stack.enter_context(compressed_write(self.path))
        self._file.write(_pack_header(self.present, self.simulator))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file = None
        self._stack.__exit__(kind, error, trace)

    def write(self, records: Records) -> None:
        """Append records (T,).

        Raises:
            L4SError: A value is outside the schema's bounds: a reader would skip it.
        """
        assert self._file is not None, "write within `with RecordWriter(...)`"
        if self._absent:
            records = join([records])  # a copy
            for name in self._absent:
                records[name] = 0
        bad = np.flatnonzero(out_of_bounds(records, self.present))
        if bad.size:
            record = records[bad[0]]
            for name, (low, high) in ((spec.name, bounds(spec.name)) for spec in FIELDS):
                if name in self.present and not low <= record[name] <= high:
                    where, value = f"{self.path}: record {self.rows + bad[0]}", record[name]
                    raise L4SError(f"{where}: {name} is {value}, outside {low} to {high}: correct the source")
        self._file.write(np.ascontiguousarray(records).data)
        self.rows += len(records)


def _read_file(path: str, meter: Meter, tally: Tally, present: frozenset[str]) -> Iterator[Records]:
    before = tally.lines
    try:
        with open_compressed(path, meter) as file:
            _read_header(path, file)
            while data := _read_whole(file, BLOCK_ROWS * RECORD.itemsize):
                first = tally.lines - before + 1
                torn = len(data) % RECORD.itemsize
                records = np.frombuffer(data, RECORD, (len(data) - torn) // RECORD.itemsize)
                tally.lines += len(records)
                bad = out_of_bounds(records, present)
                if bad.any():
                    for row in np.flatnonzero(bad).tolist():
                        tally.skip(path, first + row, RANGE)
                    records = take(records, ~bad)
                if torn:
                    tally.lines += 1
                    tally.skip(path, tally.lines - before, TORN)
                tally.add(records)
                if len(records):
                    yield records
    except OSError as error:
        raise read_error(path, error) from error


def _read_whole(file: BinaryIO, size: int) -> bytes:
    """Read ``size`` bytes, or fewer at the end of the file only."""
    data = file.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    while more := file.read(size - sum(map(len, parts))):
        parts.append(more)
    return b"".join(parts)


def open_records(paths: PathLike | Sequence[PathLike], *, progress: Progress | None = None) -> RowStream:
    """Open files of binary records, in sequence, as a stream.

    Raises:
        L4SError: A file cannot be read, is not such a file, or does not have the same fields as the first.
    """
    files = [os.fspath(path) for path in order_rotation(as_paths(paths))]
    found = []
    for path in files:
        try:
            with open_compressed(path) as file:
                found.append(_read_header(path, file))
        except OSError as error:
            raise read_error(path, error) from error
        if found[-1][1] != found[0][1]:
            raise L4SError(f"{path}: is of another simulator than {files[0]}: read it by itself")
        if found[-1] != found[0]:
            other = ", ".join(sorted(found[-1][0] ^ found[0][0]))
            raise L4SError(f"{path}: does not have the same fields as {files[0]} ({other}): read it by itself")

    def blocks() -> Blocks:
        tally, meter = Tally(found[0][0] >= COUNTED), Meter(files, progress)
        for path in files:
            yield from _read_file(path, meter, tally, found[0][0])
        return tally.report(files, "rows")

    present, simulator = found[0]
    return RowStream(", ".join(map(os.path.basename, files)), present, blocks(), simulator)


def write_records(stream: RowStream, path: PathLike) -> tuple[int, int]:
    """Write a stream as binary records; the file is replaced as a whole or not at all.

    Returns:
        The number of rows and of runs.
    """
    splitter, runs = RunSplitter(stream.present), 0
    with RecordWriter(path, stream.present, stream.simulator) as writer:
        for block in stream.blocks():
            runs += len(splitter.starts(block))
            writer.write(block)
    return writer.rows, runs


def save_records(
    path: PathLike, records: Records, *, present: frozenset[str] | None = None, simulator: str = ""
) -> None:
    """Write records with all their fields to a binary file; it is replaced as a whole or not at all.

    Args:
        path: The file; compressed if its name ends in .gz, .bz2, .xz or .zst.
        records: Records (T,).
        present: Names of the fields that the records have (the others are written as 0); `known_fields` if None.
        simulator: Fingerprint of the simulator that made the records; empty: no simulator did.
    """
    with RecordWriter(path, known_fields(records) if present is None else present, simulator) as writer:
        for start in range(0, len(records), BLOCK_ROWS):
            writer.write(records[start : start + BLOCK_ROWS])


def load_records(path: PathLike) -> Records:
    """Return all valid records (T,) of a binary file; errors as `open_records`."""
    return join(open_records(path).blocks())
