"""Log lines: round trips, damage of all kinds with exact counts, rotation, atomic writing."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.data import files, logs
from l4s_gym.data.files import atomic_write, order_rotation
from l4s_gym.data.logs import (
    COUNT,
    CUT,
    FORM,
    NAMES_23,
    NAMES_24,
    NO_END,
    NO_START,
    NOT_A_NUMBER,
    RANGE,
    format_record,
    read_log,
    write_log,
)
from l4s_gym.data.report import OTHER, REPEATED
from l4s_gym.errors import L4SError
from l4s_gym.schema import LINE_END, LINE_START, PRINTED, RECORD

PREFIX = "Jul 10 12:00:00 router kernel: "


def lines_of(records: Any, fields: int = 24) -> list[str]:
    """A log line for each record."""
    return [format_record(record, fields) for record in records]


def read_text(folder: Path, text: str | bytes, **options: Any) -> Any:
    """Read a log of the given text by both paths, which must agree."""
    path = folder / "text.log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    fast = read_log(path, fast=True, **options)
    slow = read_log(path, fast=False, **options)
    np.testing.assert_array_equal(fast[0], slow[0])
    assert sorted(fast[1].examples) == sorted(slow[1].examples) or len(fast[1].examples) == 5
    assert {**vars(fast[1]), "examples": ()} == {**vars(slow[1]), "examples": ()}
    return fast


@st.composite
def valid_records(draw: st.DrawFn) -> Any:
    """A few records of arbitrary valid values."""
    records = np.zeros(draw(st.integers(1, 6)), RECORD)
    for record in records:
        for field in PRINTED:
            action = field.name == "action"
            record[field.name] = draw(st.integers(field.low - action, field.high - action))
    return records


@settings(max_examples=40, deadline=None)
@given(valid_records(), st.sampled_from([24, 23]), st.sampled_from(["", PREFIX, "a,b,end: "]))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, records: Any, fields: int, prefix: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    if LINE_END in prefix:
        with pytest.raises(L4SError, match="prefix"):
            write_log(folder / "round.log", records, prefix=prefix)
        return
    write_log(folder / "round.log", records, fields=fields, prefix=prefix)
    text = (folder / "round.log").read_text()
    assert text == "".join(f"{prefix}{line}\n" for line in lines_of(records, fields))
    found, report = read_text(folder, text)
    for name in NAMES_24 if fields == 24 else NAMES_23:
        np.testing.assert_array_equal(found[name], records[name])
    assert (report.fields, report.records, report.skipped) == (fields, len(records), {})
    if fields == 23:
        assert not found["packet_length"].any() and report.records_23 == len(records)


def test_the_printed_line() -> None:
    record = np.zeros(1, RECORD)
    for number, field in enumerate(PRINTED, 1):
        record[field.name] = number
    record["queue_type"], record["action"] = 1, 2
    numbers = [1, *range(2, 24), 3]
    assert format_record(record[0]) == LINE_START + ",".join(map(str, numbers)) + LINE_END


def test_several_records_on_a_line(tmp_path: Path, random_records: Any) -> None:
    records = random_records(12)
    lines = lines_of(records)
    text = "".join(lines[:3]) + "\n" + PREFIX + " ".join(lines[3:5]) + "\n" + "\r\n".join(lines[5:])
    found, report = read_text(tmp_path, text)
    np.testing.assert_array_equal(found, records)
    assert (report.lines, report.skipped) == (9, {})


def test_damage_is_counted(tmp_path: Path, random_records: Any) -> None:
    records = random_records(8, seed=1)
    good = lines_of(records)
    body = good[0].removeprefix(LINE_START).removesuffix(LINE_END).split(",")

    def changed(index: int, value: str) -> str:
        return LINE_START + ",".join([*body[:index], value, *body[index + 1 :]]) + LINE_END

    text = [
        PREFIX + good[0],
        PREFIX + "em0: link state changed to UP",  # other
        "",  # other
        PREFIX + "last message repeated 3 times",  # repeated
        good[1][:40],  # start without end
        good[1],
        good[1][:60] + good[2],  # next start inside the record, and a whole one
        good[1][-20:],  # end without start
        good[1][-20:] + good[3],  # end without start, and a whole one
        LINE_START + ",".join(body[:20]) + LINE_END,  # number of fields
        LINE_START + ",".join([*body, "1"]) + LINE_END,  # number of fields
        LINE_START + LINE_END[1:],  # start without end: the comma is missing
        LINE_START + LINE_END,  # number of fields: one, empty
        *(changed(3, value) for value in ("", "x", "-1", "+1", "1.0", " 1", "1_0", "01", "0x1", "\u0661", "9" * 20)),
        changed(3, good[1][:50]),  # next start inside; the rest has too few fields
        changed(0, "2"),  # range
        changed(2, "0"),
        changed(8, str(1 << 32)),
        changed(9, str(1 << 31)),
        changed(17, "9" * 19),
        changed(23, "0"),
        changed(23, "4"),
        good[4][:50] + "<6>em0: link state changed\n" + good[4][50:],  # start without end; end without start
        good[5] + " and more",
        good[6].replace("start,", "start;"),  # end without start
        good[7][:-1],  # start without end
        good[7],
    ]
    for ending in ("\n", ""):
        found, report = read_text(tmp_path, "\n".join(text) + ending)
        np.testing.assert_array_equal(found, records[[0, 1, 2, 3, 5, 7]])
        assert report.skipped == {
            OTHER: 2,
            REPEATED: 1,
            NO_END: 4,
            CUT: 2,
            NO_START: 4,
            COUNT: 4,
            NOT_A_NUMBER: 11,
            RANGE: 7,
        }
        assert report.lines == len(text) + 1
        assert report.examples[0] == (str(tmp_path / "text.log"), 5, NO_END)
        assert len(report.examples) == 20
    assert "skipped 11: field is not a number" in report.summary()


def test_a_lost_field_is_not_an_older_record(tmp_path: Path, random_records: Any) -> None:
    records = random_records(5)
    records["packet_length"], records["total_drops"] = 1500, 3
    short = lines_of(records, 23)[2]
    found, report = read_text(tmp_path, "\n".join([*lines_of(records), short]))
    np.testing.assert_array_equal(found, records)
    assert report.skipped == {FORM: 1} and report.records_23 == 0 and report.fields == 24
    assert report.examples[0][1] == 6
    found, report = read_text(tmp_path, "\n".join([*lines_of(records, 23), lines_of(records)[0]]))
    assert (len(found), report.records_23, report.skipped) == (5, 5, {FORM: 1})


@pytest.mark.parametrize("block", [1, 97, 1000])
def test_blocks(tmp_path: Path, random_records: Any, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    records = random_records(40)
    text = "\n".join(line if n % 5 else line[:30] + line for n, line in enumerate(lines_of(records)))
    whole, report = read_text(tmp_path, text)
    monkeypatch.setattr(logs, "_BLOCK", block)
    seen: list[float] = []
    parts, report_parts = read_text(tmp_path, text, progress=seen.append)
    np.testing.assert_array_equal(whole, parts)
    assert report == report_parts
    assert seen[-1] == 1.0
    assert report.skipped == {CUT: 8}


def test_no_newline_at_all(tmp_path: Path, random_records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(logs, "_BLOCK", 500)
    line = lines_of(random_records(1))[0]
    found, report = read_text(tmp_path, "x" * 5000 + "\n" + line)
    assert len(found) == 1 and report.skipped == {OTHER: report.lines - 1}


def test_gaps_and_restarts(tmp_path: Path, random_records: Any) -> None:
    records = random_records(9)
    records["queue_type"] = [0, 0, 1, 0, 1, 0, 1, 0, 1]
    records["total_packets"] = [0, 1, 5, 4, 6, 4, 9, 0, 10]
    _, report = read_text(tmp_path, "\n".join(lines_of(records)))
    assert (report.gaps, report.restarts, report.duplicates) == ((2, 2), (1, 0), (1, 0))
    assert "lost rows: C 2, L 2" in report.summary() and "restarts: C 1, L 0" in report.summary()


def test_rotation(tmp_path: Path, random_records: Any) -> None:
    records = random_records(40)
    parts: list[tuple[str, Any]] = [
        ("messages.10.bz2", bz2.compress),
        ("messages.1.gz", gzip.compress),
        ("messages.0.xz", lzma.compress),
    ]
    names = []
    for (name, pack), part in zip([*parts, ("messages", bytes)], np.split(records, 4), strict=True):
        (tmp_path / name).write_bytes(pack("".join(f"{line}\n" for line in lines_of(part)).encode()))
        names.append(tmp_path / name)
    assert order_rotation([names[3], names[1], names[0], names[2]]) == names
    found, report = read_log(order_rotation(names[::-1]))
    np.testing.assert_array_equal(found, records)
    assert report.files == tuple(map(str, names)) and report.lines == 40
    dated = [tmp_path / f"a.{stamp}" for stamp in ("20240709", "20240710.bz2")] + [tmp_path / "a"]
    assert order_rotation(dated[::-1]) == dated
    stamped = [tmp_path / f"a.{stamp}.gz" for stamp in ("20240709T235900", "20240710T000000")]
    assert order_rotation(stamped[::-1]) == stamped
    assert order_rotation(["b.1", "a", "b", "a.0"]) == [Path(n) for n in ("b.1", "b", "a.0", "a")]


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    cases = {
        "empty": (b"", "0 lines"),
        "other": (b"hello\n" * 3, "3 x other message"),
        "torn.gz": (gzip.compress(b"hello\n" * 1000)[:-20], "damaged|no valid"),
        "bad.xz": (b"\xfd7zXZ\x00" + b"x" * 50, "damaged"),
        "bad.bz2": (b"BZh9" + b"x" * 50, "cannot be read|damaged"),
        "packed.zst": (b"\x28\xb5\x2f\xfd" + b"x" * 50, "zstd|damaged|cannot"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(L4SError, match=message) as caught:
            read_log(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(L4SError, match="cannot be read"):
            read_log(path)
    with pytest.raises(L4SError, match="no file"):
        read_log([])


_PIECES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"\n", b",", b",end", LINE_START.encode(), b"1", b"0,1500,", b"9" * 19]),
    st.sampled_from([(LINE_START + ",".join(["1"] * n) + LINE_END).encode() for n in (22, 23, 24, 25)]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_PIECES, max_size=12))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    try:
        records, report = read_text(tmp_path_factory.getbasetemp(), b"".join(pieces))
    except L4SError as error:
        assert "text.log" in str(error)
    else:
        assert len(records) == report.records > 0


def test_writing_refuses_what_could_not_be_read(tmp_path: Path, random_records: Any) -> None:
    records = random_records(3)
    for name, value in (("tupdate", 0), ("action", 3), ("queue_type", 2), ("drop_probability", 1 << 31)):
        bad = records.copy()
        bad[name][1] = value
        with pytest.raises(L4SError, match=f"record 1: {name}"):
            write_log(tmp_path / "bad.log", bad)
    with pytest.raises(L4SError, match="22 fields"):
        write_log(tmp_path / "bad.log", records, fields=22)
    with pytest.raises(L4SError, match="cannot be written"):
        write_log(tmp_path / "absent" / "bad.log", records)
    with pytest.raises(L4SError, match="folder"):
        write_log(tmp_path, records)
    assert list(tmp_path.iterdir()) == []


def test_atomic_writing(tmp_path: Path, random_records: Any) -> None:
    path = tmp_path / "kept.log"
    records = random_records(100)
    write_log(path, records)
    old = path.read_bytes()
    bad = random_records(70_000)
    bad["tupdate"][-1] = 0  # found only after the first block was written
    with pytest.raises(L4SError):
        write_log(path, bad)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of")
        raise KeyboardInterrupt
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["kept.log"]
    (tmp_path / "link").symlink_to(path)
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
        assert path.read_bytes() == old
    assert path.read_bytes() == b"new" and (tmp_path / "link").is_symlink()


def test_line_numbers_are_those_of_the_file(tmp_path: Path, random_records: Any) -> None:
    lines = lines_of(random_records(4))
    for number in (0, 1):
        (tmp_path / f"log.{number}").write_text(f"{lines[0]}\n{lines[1]}\n{lines[2][:50]}\n{lines[3]}\n")
    _, report = read_log([tmp_path / "log.0", tmp_path / "log.1"])
    assert report.examples == ((str(tmp_path / "log.1"), 3, NO_END), (str(tmp_path / "log.0"), 3, NO_END))
    assert report.lines == 8 and report.files == (str(tmp_path / "log.1"), str(tmp_path / "log.0"))


def test_the_form_is_that_of_the_first_records(
    tmp_path: Path, random_records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the whole file, which may be longer than the memory; the older form is told before it is read."""
    monkeypatch.setattr(logs, "_BLOCK", 1000)
    records = random_records(30)
    text = "other\n" * 500 + "\n".join([*lines_of(records[:8], 23), *lines_of(records[8:])])
    found, report = read_text(tmp_path, text)
    assert len(found) == report.records_23 == 8 and report.skipped == {OTHER: 500, FORM: 22}
    assert report.examples[0][1:] == (509, FORM)
    assert logs.open_log(tmp_path / "text.log").present == set(NAMES_23)


def test_zstandard_needs_arrow(tmp_path: Path, random_records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "a.log.zst", random_records(3))
    assert len(read_log(tmp_path / "a.log.zst")[0]) == 3
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for action in (lambda: read_log(tmp_path / "a.log.zst"), lambda: write_log(tmp_path / "b.zst", random_records(3))):
        with pytest.raises(L4SError, match=r"l4s-gym\[data\]"):
            action()
    assert [path.name for path in tmp_path.iterdir()] == ["a.log.zst"]
