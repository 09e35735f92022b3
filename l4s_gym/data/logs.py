"""Log lines of the testbed's kernel: a parser that never guesses, and a writer.

The kernel prints through syslog, so a log holds other messages, prefixes, torn records and gaps. A record
counts only if it is whole: start, all fields as plain decimal numbers within the schema's bounds, end.
Everything else is counted by reason in the `LogReport`.

Well-formed lines (all but a few of a log) are converted by whole blocks in NumPy; each other line goes
through `parse_line`. Both accept exactly the same records.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
import numpy.typing as npt

from l4s_gym.data.files import atomic_write, read_error
from l4s_gym.errors import L4SError
from l4s_gym.schema import EXTENSION, FIELDS, LINE_END, LINE_START, PRINTED, RECORD, SCHEMA_VERSION

Records = npt.NDArray[np.void]
PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]

NO_END: Final = "start without end"
CUT: Final = "next start inside the record"
NO_START: Final = "end without start"
COUNT: Final = "wrong number of fields"
NOT_A_NUMBER: Final = "field is not a number"
RANGE: Final = "value out of range"
FORM: Final = "one field less or more than the rest of the file"
REPEATED: Final = "last message repeated"
OTHER: Final = "other message"

NAMES_24: Final = tuple(f.name for f in PRINTED)
NAMES_23: Final = tuple(name for name in NAMES_24 if name != "packet_length")
_BY_FORM: Final = {24: PRINTED, 23: tuple(f for f in PRINTED if f.name != "packet_length")}

_START: Final = LINE_START.encode()
_END: Final = LINE_END.encode()
_NUMBER: Final = re.compile(rb"0|[1-9][0-9]{0,18}")
_TAIL: Final = re.compile(rb"[0-9]" + re.escape(_END))
_BLOCK: Final = 1 << 21
"""Bytes read at a time: the arrays of one block stay in the processor's cache."""
_LONGEST_LINE: Final = 1 << 20
_FAST_DIGITS: Final = 18
"""Numbers of more digits may overflow 64 bits and are left to `parse_line`."""
_EXAMPLES: Final = 5


@dataclass(frozen=True)
class LogReport:
    """What was found in a log.

    Attributes:
        files: The files, in the order in which they were read.
        lines: Lines read.
        records: Valid records returned.
        records_23: Those of the older form without `packet_length` (stored as 0).
        skipped: Number of skipped lines or fragments, by reason.
        examples: The first skipped ones that should have been records: (path, line number from 1, reason).
        gaps: Packets of queues C and L between two successive rows of the queue that have no row.
        restarts: Times that `total_packets` of queues C and L went back (a new run).
        duplicates: Times that it stood still.
    """

    files: tuple[str, ...]
    lines: int
    records: int
    records_23: int
    skipped: dict[str, int]
    examples: tuple[tuple[str, int, str], ...]
    gaps: tuple[int, int]
    restarts: tuple[int, int]
    duplicates: tuple[int, int]

    @property
    def fields(self) -> int:
        """23 if all records have the older form, else 24."""
        return 23 if self.records and self.records == self.records_23 else 24

    def summary(self) -> str:
        """The report as a few lines of text."""
        text = [f"{self.records} records ({self.fields} fields) in {self.lines} lines of {len(self.files)} file(s)"]
        if 0 < self.records_23 < self.records:
            text.append(f"  {self.records_23} of them have 23 fields (no packet_length)")
        text += [f"  skipped {count}: {reason}" for reason, count in sorted(self.skipped.items())]
        text += [f"    {path}:{line}: {reason}" for path, line, reason in self.examples]
        for name, counts in (("lost rows", self.gaps), ("restarts", self.restarts), ("repeated rows", self.duplicates)):
            if any(counts):
                text.append(f"  {name}: C {counts[0]}, L {counts[1]}")
        return "\n".join(text)


@dataclass
class _Tally:
    """The growing parts of a report."""

    lines: int = 0
    records_23: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, int, str]] = field(default_factory=list)

    def skip(self, path: str, line: int, reason: str, count: int = 1) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + count
        if reason not in (OTHER, REPEATED) and len(self.examples) < _EXAMPLES:
            self.examples.append((path, line, reason))


def _parse_body(body: bytes) -> tuple[int, ...] | str:
    """The numbers between start and end, or the reason why they are not a record."""
    texts = body.split(b",")
    fields = _BY_FORM.get(len(texts))
    if fields is None:
        return COUNT
    if not all(map(_NUMBER.fullmatch, texts)):
        return NOT_A_NUMBER
    values = tuple(map(int, texts))
    if not all(f.low <= value <= f.high for f, value in zip(fields, values, strict=True)):
        return RANGE
    return values


def parse_line(line: bytes) -> tuple[list[tuple[int, ...]], list[str]]:
    """Parse one line, whatever it holds.

    Args:
        line: The line, with or without its newline.

    Returns:
        The records, each 24 or 23 numbers as printed (action 1, 2, 3), and the reasons of what was skipped.
        One of the two lists has an entry.
    """
    head, *bodies = line.split(_START)
    records: list[tuple[int, ...]] = []
    faults = [NO_START] if _TAIL.search(head) else []
    if not bodies and not faults:
        faults.append(REPEATED if b"last message repeated" in line else OTHER)
    for number, body in enumerate(bodies, 1):
        text, end, rest = body.partition(_END)
        parsed = _parse_body(text) if end else (NO_END if number == len(bodies) else CUT)
        if isinstance(parsed, str):
            faults.append(parsed)
        else:
            records.append(parsed)
        if _TAIL.search(rest):
            faults.append(NO_START)
    return records, faults


def _digits(buffer: npt.NDArray[np.uint8], first: npt.NDArray[np.int64], stop: npt.NDArray[np.int64]) -> Any:
    """Convert decimal numbers at [first, stop) of the buffer.

    Returns:
        (values (n,) int64, valid (n,) bool).
    """
    length = stop - first
    valid = (length >= 1) & (length <= _FAST_DIGITS) & ~((length > 1) & (buffer[first] == 48))
    digit = buffer[stop - 1] - np.uint8(48)  # wraps around below "0"
    values = digit.astype(np.int64)
    valid &= digit <= 9
    left = np.flatnonzero(valid & (length > 1))
    place, power = 1, 10
    while left.size:
        digit = buffer[stop[left] - 1 - place] - np.uint8(48)
        valid[left[digit > 9]] = False
        values[left] += digit.astype(np.int64) * power
        place, power = place + 1, power * 10
        left = left[length[left] > place]
    return values, valid


def _clean_lines(block: bytes, stops: npt.NDArray[np.int64]) -> Iterator[tuple[int, Any, Any]]:
    """Find and convert the well-formed lines of a block.

    Args:
        block: Whole lines, each with its newline.
        stops: (n,) position of each newline.

    Yields:
        For each form (fields, lines (r,) index of the line, values (r, fields) int64), all valid.
    """
    buffer = np.frombuffer(block, np.uint8)
    commas = np.flatnonzero(buffer == ord(","))
    offsets = np.concatenate([[0], np.searchsorted(commas, stops)])
    starts = np.concatenate([[0], stops[:-1] + 1])
    mark, end = np.frombuffer(_START, np.uint8), np.frombuffer(_END, np.uint8)
    for form, fields in _BY_FORM.items():
        lines = np.flatnonzero(np.diff(offsets) == form + 1)
        at = commas[offsets[lines, None] + np.arange(form + 1)]
        # The start ends with the first comma of the line, and the newline follows on the end.
        ok = (at[:, 0] + 1 - mark.size >= starts[lines]) & (at[:, -1] + end.size == stops[lines])
        lines, at = lines[ok], at[ok]
        ok = (buffer[at[:, :1] + np.arange(1 - mark.size, 1)] == mark).all(1)
        ok &= (buffer[at[:, -1:] + np.arange(end.size)] == end).all(1)
        lines, at = lines[ok], at[ok]
        values, valid = _digits(buffer, (at[:, :-1] + 1).ravel(), at[:, 1:].ravel())
        values = values.reshape(-1, form)
        ok = valid.reshape(-1, form).all(1)
        ok &= (values >= [f.low for f in fields]).all(1) & (values <= [f.high for f in fields]).all(1)
        yield form, lines[ok], values[ok]


def _to_records(values: npt.NDArray[np.int64], form: int) -> Records:
    records = np.zeros(len(values), RECORD)
    for column, printed in enumerate(_BY_FORM[form]):
        records[printed.name] = values[:, column]
    records["action"] -= 1
    return records


def _parse_block(block: bytes, path: str, tally: _Tally, fast: bool) -> tuple[Records, Any, Any]:
    """Parse whole lines.

    Returns:
        Records (r,), their forms (r,), and their line numbers (r,) from 1, in the order of the file.
    """
    stops = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    parts, forms, numbers = [], [], []
    slow = np.ones(len(stops), bool)
    if fast:
        for form, lines, values in _clean_lines(block, stops):
            parts.append(_to_records(values, form))
            forms.append(np.full(len(lines), form))
            numbers.append(lines)
            slow[lines] = False
    by_form: dict[int, list[tuple[tuple[int, ...], int]]] = {24: [], 23: []}
    for line in np.flatnonzero(slow).tolist():
        found, faults = parse_line(block[stops[line - 1] + 1 if line else 0 : stops[line]])
        for record in found:
            by_form[len(record)].append((record, line))
        for reason in faults:
            tally.skip(path, tally.lines + line + 1, reason)
    for form, rows in by_form.items():
        if rows:
            parts.append(_to_records(np.array([record for record, _ in rows], np.int64), form))
            forms.append(np.full(len(rows), form))
            numbers.append(np.array([line for _, line in rows]))
    tally.lines += len(stops)
    if not parts:
        return np.zeros(0, RECORD), np.zeros(0, np.int64), np.zeros(0, np.int64)
    records, form_of, number = np.concatenate(parts), np.concatenate(forms), np.concatenate(numbers)
    if sum(len(part) > 0 for part in parts) > 1:
        order = np.argsort(number, kind="stable")
        records, form_of, number = records[order], form_of[order], number[order]
    return records, form_of, number + (tally.lines - len(stops) + 1)


def open_log(path: PathLike) -> BinaryIO:
    """Open a log, plain or compressed by gzip, bzip2, xz or zstandard (told by its first bytes)."""
    file = open(path, "rb")  # noqa: SIM115
    magic = file.read(6)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if magic[:3] == b"BZh":
        return cast(BinaryIO, bz2.BZ2File(file))
    if magic == b"\xfd7zXZ\x00":
        return cast(BinaryIO, lzma.LZMAFile(file))
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        try:
            zstandard = importlib.import_module("zstandard")
        except ImportError:
            file.close()
            raise L4SError(f"{path}: is compressed by zstd: pip install zstandard, or decompress it") from None
        return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(file))
    return file


def _blocks(path: PathLike) -> Iterator[bytes]:
    """The file in blocks of whole lines, each line with its newline."""
    try:
        with open_log(path) as file:
            rest = b""
            while data := file.read(_BLOCK):
                head, newline, tail = (rest + data).rpartition(b"\n")
                if newline:
                    yield head + newline
                    rest = tail
                elif len(tail) > _LONGEST_LINE:  # not a text file: keep memory bounded
                    yield tail + b"\n"
                    rest = b""
                else:
                    rest = tail
            if rest:
                yield rest + b"\n"
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise L4SError(f"{path}: the compressed file is damaged ({error}): fetch it again") from error
    except OSError as error:
        raise read_error(path, error) from error


def _read_file(path: str, tally: _Tally, progress: Progress | None, fast: bool) -> list[Records]:
    """All records of one file, of the form that most of its records have.

    A 24-field record that lost one field in a torn line looks like a 23-field one; a kernel prints one form.
    """
    parts, forms, first = [], [], {24: 0, 23: 0}
    for block in _blocks(path):
        records, form_of, numbers = _parse_block(block, path, tally, fast)
        for form in first:
            seen = np.flatnonzero(form_of == form)
            if seen.size and not first[form]:
                first[form] = int(numbers[seen[0]])
        parts.append(records)
        forms.append(form_of)
        if progress is not None:
            progress(tally.lines, sum(map(len, parts)))
    count_23 = sum(int((form_of == 23).sum()) for form_of in forms)
    count_24 = sum(map(len, parts)) - count_23
    if count_23 and count_24:
        kept, other = (24, 23) if count_24 >= count_23 else (23, 24)
        tally.skip(path, first[other], FORM, min(count_23, count_24))
        parts = [records[form_of == kept] for records, form_of in zip(parts, forms, strict=True)]
    if count_23 > count_24:
        tally.records_23 += count_23
    return parts


def _steps(records: Records) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Gaps, restarts and duplicates of queues C and L, from `total_packets`."""
    counts = []
    for queue in (0, 1):
        step = np.diff(records["total_packets"][records["queue_type"] == queue].astype(np.int64))
        counts.append((int((step[step > 1] - 1).sum()), int((step < 0).sum()), int((step == 0).sum())))
    gaps, restarts, duplicates = zip(*counts, strict=True)
    return gaps, restarts, duplicates


def read_log(
    paths: PathLike | Sequence[PathLike], *, progress: Progress | None = None, fast: bool = True
) -> tuple[Records, LogReport]:
    """Read one log, or several that follow each other (see `order_rotation`).

    Args:
        paths: Text files, plain or compressed, in the order of time.
        progress: Called after each block with the lines read and the records of the current file.
        fast: Convert well-formed lines by blocks. The result is the same without, only slower.

    Returns:
        The records (T,) in the order of the lines, `action` as 0, 1, 2, our own extension 0; and the report.

    Raises:
        L4SError: A file cannot be read, or there is no valid record at all.
    """
    files = tuple(os.fspath(p) for p in ([paths] if isinstance(paths, (str, os.PathLike)) else paths))
    if not files:
        raise L4SError("log: no file was named: name at least one")
    tally = _Tally()
    parts = [part for path in files for part in _read_file(path, tally, progress, fast)]
    records = np.concatenate([np.zeros(0, RECORD), *parts])
    if not len(records):
        found = ", ".join(f"{count} x {reason}" for reason, count in sorted(tally.skipped.items())) or "nothing"
        raise L4SError(
            f"{', '.join(files)}: no valid record in {tally.lines} lines (found {found}): "
            f"expected lines such as {LINE_START}<24 numbers>{LINE_END}"
        )
    gaps, restarts, duplicates = _steps(records)
    skipped, examples = tally.skipped, tuple(tally.examples)
    return records, LogReport(
        files, tally.lines, len(records), tally.records_23, skipped, examples, gaps, restarts, duplicates
    )


def order_rotation(paths: Sequence[PathLike]) -> list[Path]:
    """Put rotated logs in the order of time.

    newsyslog counts up (``messages.1.bz2`` is older than ``messages.0.bz2``, and ``messages`` is the
    newest) or appends the time (``messages.20240710T120000.bz2``, smaller is older). Logs of other names
    keep the order in which their names come first.
    """

    def key(path: Path) -> tuple[int, int, int]:
        match = re.fullmatch(r"(.+?)(?:\.(\d+)|\.(\d{8}T\d{4,6}))?(?:\.(?:gz|bz2|xz|zst))?", path.name)
        base, number, stamp = match.groups() if match else (path.name, None, None)
        group = groups.setdefault(path.parent / str(base), len(groups))
        if stamp is not None:
            return group, 0, int(stamp.replace("T", "").ljust(14, "0"))
        if number is not None:
            # A number this large is a date, not a count.
            return group, 0, int(number) if len(number) >= 6 else -int(number)
        return group, 1, 0

    groups: dict[Path, int] = {}
    return sorted(map(Path, paths), key=key)


def _format_rows(records: Records, fields: int) -> Iterator[str]:
    """The printed numbers of each record, joined by commas."""
    if fields not in _BY_FORM:
        raise L4SError(f"log: there is no form with {fields} fields: choose 24 or 23")
    columns = []
    for printed in _BY_FORM[fields]:
        column = records[printed.name].astype(np.int64) + (printed.name == "action")
        bad = np.flatnonzero((column < printed.low) | (column > printed.high))
        if bad.size:
            raise L4SError(
                f"record {bad[0]}: {printed.name} is {column[bad[0]]}, outside {printed.low} to {printed.high}: "
                "only complete records can be written as a log"
            )
        columns.append(map(str, column.tolist()))
    return map(",".join, zip(*columns, strict=True))


def format_record(record: np.void, fields: int = 24) -> str:
    """The log line of one record, without prefix and newline."""
    return f"{LINE_START}{next(_format_rows(np.asarray(record).reshape(1), fields))}{LINE_END}"


def write_log(path: PathLike, records: Records, *, fields: int = 24, prefix: str = "") -> None:
    """Write records as log lines; ``path`` is replaced as a whole or not at all.

    Args:
        path: Text file.
        records: Records (T,). Our own extension is not in the printed line and is lost.
        fields: 24, or 23 for the older form without `packet_length`.
        prefix: Put before each line, such as ``"Jul 10 12:00:00 router kernel: "``.

    Raises:
        L4SError: A value is out of the schema's bounds, or the prefix would break the lines.
    """
    if "\n" in prefix or LINE_START in prefix or LINE_END in prefix:
        raise L4SError(f"prefix {prefix!r}: holds a newline or a part of a record: choose another")
    head = prefix + LINE_START
    with atomic_write(path) as file:
        for start in range(0, len(records), 1 << 16):
            rows = _format_rows(records[start : start + (1 << 16)], fields)
            file.write("".join(f"{head}{row}{LINE_END}\n" for row in rows).encode())


def known_fields(records: Records) -> frozenset[str]:
    """Names of the fields that complete records bear: the printed ones, and the extension if any of it is set.

    `packet_length` counts as absent if it is 0 throughout (the 23-field form).
    """
    names = set(NAMES_24 if not len(records) or records["packet_length"].any() else NAMES_23)
    if any(records[extra.name].any() for extra in EXTENSION):
        names |= {extra.name for extra in EXTENSION}
    return frozenset(names)


def save_records(path: PathLike, records: Records, *, present: frozenset[str] | None = None) -> None:
    """Write records with all their fields to an ``.npz`` file; it is replaced as a whole or not at all.

    Args:
        path: The file.
        records: Records (T,).
        present: Names of the fields that the records bear (the others are 0); `known_fields` if None.
    """
    names = sorted(known_fields(records) if present is None else present)
    with atomic_write(path) as file:
        np.savez_compressed(
            file, records=records, present=np.array(names, dtype=np.str_), schema_version=np.int64(SCHEMA_VERSION)
        )


def load_stored(path: PathLike) -> tuple[Records, frozenset[str]]:
    """Read a file of `save_records`: records (T,) and the names of the fields that they bear.

    Raises:
        L4SError: The file cannot be read or is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            version, records, names = int(archive["schema_version"]), archive["records"], archive["present"].tolist()
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise L4SError(f"{path}: not a file of records ({error}): write it by save_records") from error
    if version != SCHEMA_VERSION or records.dtype != RECORD or records.ndim != 1:
        raise L4SError(f"{path}: has version {version} of the schema, not {SCHEMA_VERSION}: convert the log again")
    if not {f.name for f in FIELDS}.issuperset(names):
        raise L4SError(f"{path}: names fields that the schema lacks: convert the log again")
    return records, frozenset(names)


def load_records(path: PathLike) -> Records:
    """Read the records (T,) of a file of `save_records`; errors as `load_stored`."""
    return load_stored(path)[0]
