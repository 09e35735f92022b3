"""Log lines of the testbed's kernel: a parser that never guesses, and a writer.

The kernel prints through syslog, so a log holds other messages, prefixes, torn records and gaps. A record
counts only if it is whole: start, all fields as plain decimal numbers within the schema's bounds, end.
Everything else is counted by reason in the `LogReport`.

Well-formed lines (all but a few of a log) are converted by compiled code (`l4s_gym.data.fast`); each other
line goes through `parse_line`. Both accept exactly the same records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.files import Meter, PathLike, compressed_write, line_blocks, map_ahead, order_rotation
from l4s_gym.data.report import OTHER, REPEATED, LogReport, Tally
from l4s_gym.data.stream import Blocks, RowStream, as_paths, join, take
from l4s_gym.errors import L4SError
from l4s_gym.schema import EXTENSION, LINE_END, LINE_START, PRINTED, RECORD

Records = npt.NDArray[np.void]
Progress = Callable[[float], None]

NO_END: Final = "start without end"
CUT: Final = "next start inside the record"
NO_START: Final = "end without start"
COUNT: Final = "wrong number of fields"
NOT_A_NUMBER: Final = "field is not a number"
RANGE: Final = "value out of range"
FORM: Final = "one field less or more than the rest of the file"

NAMES_24: Final = tuple(f.name for f in PRINTED)
NAMES_23: Final = tuple(name for name in NAMES_24 if name != "packet_length")
_BY_FORM: Final = {24: PRINTED, 23: tuple(f for f in PRINTED if f.name != "packet_length")}

_OFFSETS: Final = {name: place[1] for name, place in (RECORD.fields or {}).items()}
_PLACES: Final = np.array(
    [
        [
            (_OFFSETS[f.name], RECORD[f.name].itemsize, f.low, f.high, -(f.name == "action"))
            for f in (*form, form[-1])[:24]
        ]
        for form in _BY_FORM.values()
    ]
)
"""For `fast.scan`: place, size, smallest and largest value of each field of both forms, and the stored value of 0."""

_START: Final = LINE_START.encode()
_END: Final = LINE_END.encode()
_NUMBER: Final = re.compile(rb"0|[1-9][0-9]{0,18}")
_TAIL: Final = re.compile(rb"[0-9]" + re.escape(_END))
_SHORTEST: Final = len(_START) + 2 * len(NAMES_23) - 1 + len(_END)
"""Bytes of the shortest record."""
_BLOCK: Final = 1 << 20
"""Bytes read at a time: few, to stay in the processor's cache. A block has at most the same again and one line more, so
that it holds no more than `stream.BLOCK_ROWS` records."""
_FAST_FROM: Final = 1 << 18
"""Shorter blocks are parsed in less time than the compiled parser takes to load."""
_LEFT: Final = 1 << 12
"""Lines left to the general parser at a time."""


@dataclass
class _Parsed:
    """Content of a block of lines.

    Attributes:
        records: Records (r,) in the order of the lines.
        places: Their lines, from 0, and numbers of fields, (r, 2).
        lines: Number of lines.
        faults: What was skipped, by line from 0.
    """

    records: Records
    places: npt.NDArray[np.int64]
    lines: int
    faults: Tally


def _parse_body(body: bytes) -> tuple[int, ...] | str:
    """Return the numbers between start and end, or the reason why they are not a record."""
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
    """Parse one line of any content.

    Args:
        line: The line, with or without its newline.

    Returns:
        The records, each 24 or 23 numbers as printed (action 1, 2, 3), and the reasons for what was skipped.
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


def _to_records(found: Sequence[tuple[int, ...]]) -> Records:
    """Return records (r,) from printed numbers."""
    records = np.zeros(len(found), RECORD)
    for form, fields in _BY_FORM.items():
        index = [number for number, values in enumerate(found) if len(values) == form]
        if index:
            for printed, column in zip(fields, np.array([found[n] for n in index], np.int64).T, strict=True):
                records[printed.name][index] = column - (printed.name == "action")
    return records


def _parse_left(block: bytes, left: Iterable[Sequence[int]], tally: Tally) -> tuple[Records, npt.NDArray[np.int64]]:
    """Parse lines (number, first byte, newline) of any content: records, and their lines and field counts (r, 2)."""
    found, places = [], []
    for line, first, end in left:
        records, faults = parse_line(block[first:end])
        found += records
        places += [(line, len(record)) for record in records]
        for reason in faults:
            tally.skip("", line, reason)
    return _to_records(found), np.array(places, np.int64).reshape(-1, 2)


def _parse_block(block: bytes, fast: bool | None) -> _Parsed:
    """Parse whole lines; a function of the block alone, so that blocks can be parsed side by side."""
    tally = Tally()
    if not fast and (fast is not None or len(block) < _FAST_FROM):
        stops = [match.start() for match in re.finditer(rb"\n", block)]
        firsts = [0, *(stop + 1 for stop in stops[:-1])]
        every = zip(range(len(stops)), firsts, stops, strict=True)
        return _Parsed(*_parse_left(block, every, tally), len(stops), tally)
    from l4s_gym.data.fast import scan

    buffer, start, end = (np.frombuffer(data, np.uint8) for data in (block, _START, _END))
    rows = np.empty(len(block) // _SHORTEST + 1, RECORD)
    raw = rows.view(np.uint8).reshape(len(rows), RECORD.itemsize)
    places, left = np.empty((len(rows), 2), np.int64), np.empty((_LEFT, 3), np.int64)
    state, at, parts = np.zeros(3, np.int64), 0, []
    while at < len(block):
        at = scan(buffer, at, start, end, _PLACES, raw, places, left, state)
        if state[2]:
            parts.append(_parse_left(block, left[: state[2]].tolist(), tally))
            state[2] = 0
    records, places = rows[: state[1]], places[: state[1]]
    if any(len(more) for more, _ in parts):
        records = join([records, *(more for more, _ in parts)])
        places = np.concatenate([places, *(more for _, more in parts)])
        order = np.argsort(places[:, 0], kind="stable")
        records, places = take(records, order), places[order]
    return _Parsed(records, places, int(state[0]), tally)


def _form(path: str, fast: bool | None, tally: Tally) -> int:
    """Return the number of fields of most records in the first block with any; 0 without any, and count the faults."""
    for parsed in (_parse_block(block, fast) for block in line_blocks(path, _BLOCK)):
        if len(parsed.records):
            return 24 if 2 * (parsed.places[:, 1] == 24).sum() >= len(parsed.records) else 23
        tally.take_faults(parsed.faults, path, 1)
        tally.lines += parsed.lines
    return 0


def _blocks(paths: Sequence[str], forms: Sequence[int], fast: bool | None, progress: Progress | None) -> Blocks:
    tally, meter = Tally(), Meter(paths, progress)
    for path, form in zip(paths, forms, strict=True):
        before = tally.lines
        for parsed in map_ahead(partial(_parse_block, fast=fast), line_blocks(path, _BLOCK, meter)):
            first = tally.lines - before + 1
            tally.take_faults(parsed.faults, path, first)
            tally.lines += parsed.lines
            records, kept = parsed.records, parsed.places[:, 1] == form
            if not kept.all():
                tally.skip(path, first + int(parsed.places[np.argmin(kept), 0]), FORM, int((~kept).sum()))
                records = take(records, kept)
            tally.add(records)
            tally.records_23 += len(records) * (form == 23)
            if len(records):
                yield records
    return tally.report(paths)


def open_log(
    paths: PathLike | Sequence[PathLike], *, progress: Progress | None = None, fast: bool | None = None
) -> RowStream:
    """Open a log, or several logs in sequence, as a stream.

    The kernel prints one form of records; a record that lost a field in a torn line looks like the other
    form. So the form of a file is that of most records in its first block with any (some thousand lines), and
    records of the other form are skipped.

    Args:
        paths: Text files, plain or compressed; put in the order of time by `files.order_rotation`.
        progress: Called with the share of the files' bytes that has been read.
        fast: Whether to use the compiled parser; None: depends on the length of the blocks. The result is the same.

    Returns:
        The stream: `action` is 0, 1, 2, and our own extension 0. Without `packet_length` if a file lacks it.

    Raises:
        L4SError: A file cannot be read, or there is no valid record at all.
    """
    files = [os.fspath(path) for path in order_rotation(as_paths(paths))]
    tally = Tally()
    forms = [_form(path, fast, tally) for path in files]
    if not any(forms):
        found = ", ".join(f"{count} x {reason}" for reason, count in sorted(tally.skipped.items())) or "nothing"
        raise L4SError(
            f"{', '.join(files)}: no valid record in {tally.lines} lines (found {found}): "
            f"expected lines such as {LINE_START}<24 numbers>{LINE_END}"
        )
    names = ", ".join(os.path.basename(path) for path in files)
    return RowStream(names, frozenset(NAMES_23 if 23 in forms else NAMES_24), _blocks(files, forms, fast, progress))


def read_log(
    paths: PathLike | Sequence[PathLike], *, progress: Progress | None = None, fast: bool | None = None
) -> tuple[Records, LogReport]:
    """Read all of a log; the arguments and errors are those of `open_log`.

    Returns:
        The records (T,) in the order of the lines, and the report.
    """
    stream = open_log(paths, progress=progress, fast=fast)
    records = join(stream.blocks())
    assert stream.report is not None
    return records, stream.report


def _format_rows(records: Records, fields: int) -> Iterator[str]:
    """Return the printed numbers of each record, joined by commas."""
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
    """Return the log line of one record, without prefix and newline."""
    return f"{LINE_START}{next(_format_rows(np.asarray(record).reshape(1), fields))}{LINE_END}"


def log_lines(records: Records, *, fields: int = 24, prefix: str = "") -> bytes:
    """Return the log lines of records (T,), each with its newline; arguments and errors as `write_log`."""
    head = prefix + LINE_START
    return "".join(f"{head}{row}{LINE_END}\n" for row in _format_rows(records, fields)).encode()


def write_log(path: PathLike, records: Records, *, fields: int = 24, prefix: str = "") -> None:
    """Write records as log lines; ``path`` is replaced as a whole or not at all.

    Args:
        path: Text file; compressed if its name ends in .gz, .bz2, .xz or .zst.
        records: Records (T,). The extension fields are not in the printed line and are lost.
        fields: 24, or 23 for the older form without `packet_length`.
        prefix: Put before each line, such as ``"Jul 10 12:00:00 router kernel: "``.

    Raises:
        L4SError: A value is out of the schema's bounds, or the prefix would break the lines.
    """
    if "\n" in prefix or LINE_START in prefix or LINE_END in prefix:
        raise L4SError(f"prefix {prefix!r}: holds a newline or a part of a record: choose another")
    with compressed_write(path) as file:
        for start in range(0, len(records), 1 << 16):
            file.write(log_lines(records[start : start + (1 << 16)], fields=fields, prefix=prefix))


def known_fields(records: Records) -> frozenset[str]:
    """Return the names of the fields of complete records: the printed ones, and the extension if any of it is set.

    `packet_length` counts as absent if it is 0 throughout (the 23-field form).
    """
    names = set(NAMES_24 if not len(records) or records["packet_length"].any() else NAMES_23)
    if any(records[extra.name].any() for extra in EXTENSION):
        names |= {extra.name for extra in EXTENSION}
    return frozenset(names)
