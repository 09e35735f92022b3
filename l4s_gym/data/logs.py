"""Log lines of the testbed's kernel: a parser that never guesses, and a writer.

The kernel prints through syslog, so a log holds other messages, prefixes, torn records and gaps. A record
counts only if it is whole: start, all fields as plain decimal numbers within the schema's bounds, end.
Everything else is counted by reason in the `LogReport`.

Well-formed lines (all but a few of a log) are converted by compiled code (`l4s_gym.data.scan`); each other
line goes through `parse_line`. Both accept exactly the same records.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.files import PathLike, atomic_write, line_blocks, read_error
from l4s_gym.errors import L4SError
from l4s_gym.schema import (
    EXTENSION,
    FIELDS,
    LINE_END,
    LINE_START,
    PRINTED,
    RECORD,
    SCHEMA_VERSION,
)

Records = npt.NDArray[np.void]
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

_BOUNDS: Final = np.array(
    [[[getattr(f, side) for f in (*form, form[-1])[:24]] for side in ("low", "high")] for form in _BY_FORM.values()]
)
"""Smallest and largest values of both forms, (2, 2, 24); the last column of the shorter one is not used."""

_START: Final = LINE_START.encode()
_END: Final = LINE_END.encode()
_NUMBER: Final = re.compile(rb"0|[1-9][0-9]{0,18}")
_TAIL: Final = re.compile(rb"[0-9]" + re.escape(_END))
_BLOCK: Final = 1 << 20
"""Bytes read at a time."""
_FAST_FROM: Final = 1 << 18
"""Shorter blocks are parsed sooner than the compiled parser is loaded."""
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


def _to_records(values: npt.NDArray[np.int64], form: int) -> Records:
    """Records (r,) from printed numbers (form, r)."""
    records = np.zeros(values.shape[1], RECORD)
    for column, printed in zip(values, _BY_FORM[form], strict=True):
        records[printed.name] = column
    records["action"] -= 1
    return records


def _scan(block: bytes, lines: int) -> Iterator[tuple[int, Records, npt.NDArray[np.int64]]]:
    """The well-formed lines of a block: for each form (fields, records (r,), index of their lines (r,))."""
    from l4s_gym.data.scan import scan

    buffer, start, end = (np.frombuffer(data, np.uint8) for data in (block, _START, _END))
    values, fields = np.empty((24, lines), np.int64), np.empty(lines, np.int64)
    scan(buffer, start, end, _BOUNDS, values, fields)
    for form in _BY_FORM:
        index = np.flatnonzero(fields == form)
        if index.size:
            whole = index.size == lines
            yield form, _to_records(values[:form] if whole else values[:form, index], form), index


def _parse_block(block: bytes, path: str, tally: _Tally, fast: bool) -> tuple[Records, Any, Any]:
    """Parse whole lines.

    Returns:
        Records (r,), their forms (r,), and their line numbers (r,) from 1, in the order of the file.
    """
    stops = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    parts: list[tuple[int, Records, npt.NDArray[np.int64]]] = list(_scan(block, len(stops))) if fast else []
    left = np.ones(len(stops), bool)
    for _, _, index in parts:
        left[index] = False
    slow: dict[int, list[tuple[tuple[int, ...], int]]] = {24: [], 23: []}
    for line in np.flatnonzero(left).tolist():
        found, faults = parse_line(block[stops[line - 1] + 1 if line else 0 : stops[line]])
        for record in found:
            slow[len(record)].append((record, line))
        for reason in faults:
            tally.skip(path, tally.lines + line + 1, reason)
    for form, rows in slow.items():
        if rows:
            values = np.array([record for record, _ in rows], np.int64).T
            parts.append((form, _to_records(values, form), np.array([line for _, line in rows])))
    before, tally.lines = tally.lines, tally.lines + len(stops)
    records = np.concatenate([np.zeros(0, RECORD), *(part for _, part, _ in parts)])
    forms = np.concatenate([np.zeros(0, np.int64), *(np.full(len(part), form) for form, part, _ in parts)])
    lines = np.concatenate([np.zeros(0, np.int64), *(index for _, _, index in parts)])
    if len(parts) > 1:
        order = np.argsort(lines, kind="stable")
        records, forms, lines = records[order], forms[order], lines[order]
    return records, forms, lines + before + 1


def _read_file(path: str, tally: _Tally, progress: Progress | None, fast: bool | None) -> list[Records]:
    """All records of one file, of the form that most of its records have.

    A 24-field record that lost one field in a torn line looks like a 23-field one; a kernel prints one form.
    """
    first: dict[int, int] = {}
    parts, forms = [], []
    for block in line_blocks(path, _BLOCK):
        compiled = len(block) >= _FAST_FROM if fast is None else fast
        records, form_of, numbers = _parse_block(block, path, tally, compiled)
        for form in _BY_FORM:
            seen = numbers[form_of == form]
            if seen.size:
                first.setdefault(form, int(seen[0]))
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
    paths: PathLike | Sequence[PathLike], *, progress: Progress | None = None, fast: bool | None = None
) -> tuple[Records, LogReport]:
    """Read one log, or several that follow each other (see `files.order_rotation`).

    Args:
        paths: Text files, plain or compressed, in the order of time.
        progress: Called after each block with the lines read and the records of the current file.
        fast: Whether to use the compiled parser; by the length of the log if None. The result is the same.

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
        columns.append(column.tolist())
    template = ",".join(["%d"] * fields)
    return (template % row for row in zip(*columns, strict=True))


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
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
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
