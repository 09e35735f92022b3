"""Binary records: round trips, torn and damaged files with exact counts, and writing as a whole or not at all."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.data.logs import NAMES_23, NAMES_24, RANGE
from l4s_gym.data.records import TORN, RecordWriter, bounds, load_records, open_records, out_of_bounds, save_records
from l4s_gym.errors import L4SError
from l4s_gym.schema import FIELDS, RECORD

SIZE = RECORD.itemsize


def read(path: Path) -> tuple[Any, Any]:
    """All records of a file, and the report."""
    stream = open_records(path)
    return np.concatenate([np.zeros(0, RECORD), *stream.blocks()]), stream.report


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_round_trip(tmp_path: Path, random_records: Any, kernel_log: Any, suffix: str) -> None:
    path = tmp_path / f"log.rec{suffix}"
    log = kernel_log(0, 300)
    save_records(path, log)
    found, report = read(path)
    np.testing.assert_array_equal(found, log)
    assert (report.lines, report.records, report.skipped, report.unit) == (300, 300, {}, "rows")
    assert "accumulated_probability_before" in open_records(path).present
    assert "300 records in 300 rows" in report.summary()
    for names in (NAMES_24, NAMES_23):
        records = random_records(10)
        records["packet_length"] *= "packet_length" in names
        save_records(path, records)
        assert open_records(path).present == set(names)
        np.testing.assert_array_equal(load_records(path), records)


def test_a_plain_file_can_be_mapped(tmp_path: Path, random_records: Any) -> None:
    records = random_records(70_000)
    save_records(tmp_path / "log.rec", records)
    np.testing.assert_array_equal(np.memmap(tmp_path / "log.rec", RECORD, "r", 32), records)
    assert [len(block) for block in open_records(tmp_path / "log.rec").blocks()] == [1 << 16, 70_000 - (1 << 16)]


def test_fields_that_are_absent_are_zero(tmp_path: Path, random_records: Any) -> None:
    records = random_records(20)
    save_records(tmp_path / "log.rec", records, present=frozenset({"action", "drop_probability"}))
    found = load_records(tmp_path / "log.rec")
    for field in FIELDS:
        kept = field.name in ("action", "drop_probability")
        np.testing.assert_array_equal(found[field.name], records[field.name] if kept else 0)


def test_torn_at_every_byte(tmp_path: Path, random_records: Any) -> None:
    records = random_records(3)
    save_records(tmp_path / "log.rec", records)
    data = (tmp_path / "log.rec").read_bytes()
    path = tmp_path / "torn.rec"
    for size in range(32, len(data)):
        path.write_bytes(data[:size])
        whole, torn = divmod(size - 32, SIZE)
        found, report = read(path)
        np.testing.assert_array_equal(found, records[:whole])
        assert report.skipped == ({TORN: 1} if torn else {})
        assert report.examples == (((str(path), whole + 1, TORN),) if torn else ())
        assert report.lines == whole + (torn > 0)
    for size in range(32):
        path.write_bytes(data[:size])
        with pytest.raises(L4SError, match="not a file of binary records"):
            open_records(path)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: str(field.name))
def test_every_bound(tmp_path: Path, random_records: Any, field: Any) -> None:
    low, high = bounds(field.name)
    present = frozenset(f.name for f in FIELDS)
    records = random_records(4)
    records[field.name][:2] = low, high
    assert not out_of_bounds(records, present).any()
    save_records(tmp_path / "log.rec", records, present=present)
    for value in (low - 1, high + 1):
        if not 0 <= value <= np.iinfo(RECORD[field.name]).max:
            continue
        bad = records.copy()
        bad[field.name][2] = value
        assert out_of_bounds(bad, present).tolist() == [False, False, True, False]
        with pytest.raises(L4SError, match=f"record 2: {field.name} is {value}"):
            save_records(tmp_path / "other.rec", bad, present=present)
        head = (tmp_path / "log.rec").read_bytes()[:32]
        (tmp_path / "bad.rec").write_bytes(head + bad.tobytes())
        found, report = read(tmp_path / "bad.rec")
        np.testing.assert_array_equal(found, bad[[0, 1, 3]])
        assert report.skipped == {RANGE: 1} and report.examples[0][1:] == (3, RANGE)
    assert not (tmp_path / "other.rec").exists()


def test_files_that_are_no_records(tmp_path: Path, random_records: Any) -> None:
    path = tmp_path / "bad.rec"
    save_records(path, random_records(3))
    good = path.read_bytes()
    for at, message in (
        (0, "not a file"),
        (8, "layout"),
        (10, "version"),
        (12, "layout"),
        (23, "layout"),
        (31, "layout"),
    ):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1 :])
        with pytest.raises(L4SError, match=message):
            load_records(path)
    path.write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(L4SError, match="damaged"):
        load_records(path)
    for missing in (tmp_path / "absent.rec", tmp_path):
        with pytest.raises(L4SError, match="cannot be read"):
            load_records(missing)


def test_several_files_follow_each_other(tmp_path: Path, random_records: Any) -> None:
    records = random_records(9)
    for number in range(3):
        save_records(tmp_path / f"{number}.rec", records[3 * number : 3 * number + 3])
    stream = open_records([tmp_path / f"{number}.rec" for number in range(3)])
    np.testing.assert_array_equal(np.concatenate(list(stream.blocks())), records)
    assert stream.report is not None and len(stream.report.files) == 3 and stream.source == "0.rec, 1.rec, 2.rec"
    save_records(tmp_path / "9.rec", records, present=frozenset({"action"}))
    with pytest.raises(L4SError, match="same fields"):
        open_records([tmp_path / "0.rec", tmp_path / "9.rec"])


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path, random_records: Any) -> None:
    path = tmp_path / "kept.rec.gz"
    save_records(path, random_records(5))
    old = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), RecordWriter(path, frozenset(NAMES_24)) as writer:
        writer.write(random_records(7))
        raise KeyboardInterrupt
    assert path.read_bytes() == old and [each.name for each in tmp_path.iterdir()] == ["kept.rec.gz"]
    with pytest.raises(L4SError, match="cannot be written"):
        save_records(tmp_path / "absent" / "log.rec", random_records(5))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600), st.integers(0, 40), st.integers(0, (1 << 32) - 1))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int, mask: int) -> None:
    """Each row that comes back lies in the file, is whole, and is within the bounds."""
    from l4s_gym.data.records import _pack_header

    path = tmp_path_factory.getbasetemp() / "any.rec"
    present = frozenset(field.name for bit, field in enumerate(FIELDS) if mask >> bit & 1)
    path.write_bytes(_pack_header(present)[: max(cut, 8)] + data)
    try:
        stream = open_records(path)
    except L4SError as error:
        assert "any.rec" in str(error)
        return
    found = np.concatenate([np.zeros(0, RECORD), *stream.blocks()])
    body = path.read_bytes()[32:]
    rows = np.frombuffer(body[: len(body) // SIZE * SIZE], RECORD)
    np.testing.assert_array_equal(found, rows[~out_of_bounds(rows, stream.present)])
    assert stream.report is not None
    assert len(found) + sum(stream.report.skipped.values()) == stream.report.lines
