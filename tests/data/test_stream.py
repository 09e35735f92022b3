"""Streams: every kind opens, memory is bounded, blocks and runs do not depend on where they are cut."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.data import files, logs
from l4s_gym.data.logs import write_log
from l4s_gym.data.pools import load_rows
from l4s_gym.data.records import RecordWriter, save_records
from l4s_gym.data.stream import BLOCK_ROWS, RunSplitter, join, kind_of, open_stream, regroup
from l4s_gym.errors import L4SError
from l4s_gym.schema import LINE_START, RECORD

COUNTERS = frozenset({"queue_type", "total_packets"})


def test_blocks_are_bounded_and_can_be_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even of the shortest lines there are."""
    records = np.zeros(150_000, RECORD)
    records["tupdate"] = 1
    write_log(tmp_path / "short.log", records, fields=23)
    shares: list[float] = []
    stream = open_stream(tmp_path / "short.log", progress=shares.append)
    assert stream.source == "short.log"
    sizes = [len(block) for block in stream.blocks()]
    assert sum(sizes) == 150_000 and max(sizes) <= BLOCK_ROWS
    assert stream.report is not None and stream.report.records == 150_000
    assert shares == sorted(shares) and shares[-1] == 1.0
    with pytest.raises(RuntimeError, match="once"):
        list(stream.blocks())


def test_several_files_are_put_in_order(tmp_path: Path, random_records: Any) -> None:
    records = random_records(30)
    for name, part in (("log.1.gz", records[:10]), ("log.0.zst", records[10:20]), ("log", records[20:])):
        write_log(tmp_path / name, part)
    rows = load_rows([tmp_path / name for name in ("log", "log.0.zst", "log.1.gz")])
    np.testing.assert_array_equal(rows.records, records)
    assert rows.source == "log.1.gz, log.0.zst, log"
    for name, part in (("log.1.gz", records[:10]), ("log.0.zst", records[10:20])):
        write_log(tmp_path / name, part, fields=23)
    assert "packet_length" not in load_rows([tmp_path / "log.1.gz", tmp_path / "log"]).present


def test_kinds(tmp_path: Path, random_records: Any) -> None:
    write_log(tmp_path / "messages", random_records(3))
    save_records(tmp_path / "stored", random_records(3))
    save_records(tmp_path / "a.rec.zst", random_records(3))
    (tmp_path / "packed").write_bytes((tmp_path / "a.rec.zst").read_bytes())
    kinds = {"messages": "log", "stored": "rec", "a.rec.zst": "rec", "packed": "rec"}
    for name, kind in kinds.items():
        assert kind_of(tmp_path / name) == kind
        assert len(load_rows(tmp_path / name)) == 3
    for wrong, message in (
        ([tmp_path], "folder"),
        ([], "no file"),
        ([tmp_path / "messages", tmp_path / "stored"], "several kinds"),
        ([tmp_path / "a.csv", tmp_path / "b.csv"], "one file"),
        ([tmp_path / "absent"], "cannot be read"),
    ):
        with pytest.raises(L4SError, match=message):
            open_stream(wrong)


@pytest.mark.parametrize("name", ["a.log", "a.log.gz", "a.rec", "a.rec.zst"])
def test_memory_is_bounded(tmp_path: Path, random_records: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Five times the rows do not need more memory."""
    monkeypatch.setattr(logs, "_BLOCK", 1 << 14)
    monkeypatch.setattr(logs, "_FAST_FROM", 0)
    monkeypatch.setattr(files, "_BUFFER", 1 << 12)
    monkeypatch.setattr("l4s_gym.data.records.BLOCK_ROWS", 256)
    records = random_records(1000)
    peaks = []
    for times in (1, 2, 10):
        many = np.tile(records, times)
        (save_records if "rec" in name else write_log)(tmp_path / name, many)
        del many
        tracemalloc.start()
        count = sum(len(block) for block in open_stream(tmp_path / name).blocks())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == 1000 * times
    assert peaks[2] < 1.5 * peaks[1]


def test_torn_by_an_interleaved_message(tmp_path: Path, random_records: Any) -> None:
    """A record that is cut at any byte, in the middle of a log, is dropped and counted; the rows around it stay."""
    records = random_records(3, seed=4)
    records["packet_length"] = 1500
    lines = [logs.format_record(record).encode() + b"\n" for record in records]
    path = tmp_path / "torn.log"
    torn = lines[1]
    for fast in (False, True):
        for at in range(1, len(torn) - 1, 1 if fast else 3):
            path.write_bytes(lines[0] + torn[:at] + b"\n<6>em0: link up\n" + torn[at:] + lines[2])
            found, report = logs.read_log(path, fast=fast)
            np.testing.assert_array_equal(found, records[[0, 2]])
            assert report.records == 2 and 2 <= sum(report.skipped.values()) <= 3
            path.write_bytes(lines[0] + torn[:at] + lines[2])
            found, report = logs.read_log(path, fast=fast)
            np.testing.assert_array_equal(found, records[[0, 2]])
            # Less than a whole start could be any message; the queue's counter tells that a row is lost.
            assert sum(report.skipped.values()) == (at >= len(LINE_START))


def test_a_flipped_byte_makes_no_wrong_row(tmp_path: Path, random_records: Any) -> None:
    """A byte of a row that is changed leaves a row of other valid numbers, or none: never a shifted one."""
    records = random_records(1, seed=2)
    line = logs.format_record(records[0]).encode()
    path = tmp_path / "flipped.log"
    for at in range(len(line)):
        path.write_bytes(line[:at] + bytes([line[at] ^ 0x08]) + line[at + 1 :] + b"\n" + line + b"\n")
        found, report = logs.read_log(path, fast=True)
        assert found[-1] == records[0]
        if len(found) == 2:
            assert sum(found[0][name] != records[0][name] for name in RECORD.names or ()) == 1
        else:
            assert sum(report.skipped.values()) == 1


# -- runs


def whole_starts(records: Any) -> list[int]:
    """Runs by the counters, from the whole log at once."""
    starts = [0]
    back: list[tuple[int, int]] = []
    for queue in (0, 1):
        index = np.flatnonzero(records["queue_type"] == queue)
        fell = np.flatnonzero(np.diff(records["total_packets"][index].astype(np.int64)) < 0)
        back += zip(index[fell + 1].tolist(), index[fell].tolist(), strict=True)
    for row, before in sorted(back):
        if before >= starts[-1]:
            starts.append(row)
    return starts


def cut_starts(records: Any, cuts: list[int], present: frozenset[str]) -> list[int]:
    """Starts found block by block."""
    splitter, found, at = RunSplitter(present), [], 0
    for block in np.split(records, sorted(cuts)):
        found += [at + start for start in splitter.starts(block)]
        at += len(block)
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40),
    st.lists(st.integers(0, 40), max_size=6),
    st.booleans(),
)
def test_runs_do_not_depend_on_the_blocks(rows: list[tuple[int, int, int]], cuts: list[int], numbered: bool) -> None:
    records = np.zeros(len(rows), RECORD)
    records["queue_type"], records["total_packets"], sequence = zip(*rows, strict=True)
    records["sequence"] = sequence if numbered else 0
    present = COUNTERS | {"sequence"}
    whole = RunSplitter(present).starts(records)
    assert cut_starts(records, [min(cut, len(records)) for cut in cuts], present) == whole
    if not any(records["sequence"]):
        assert whole == whole_starts(records)
        assert RunSplitter(COUNTERS).starts(records) == whole
    elif records["sequence"][0]:
        assert whole == [0, *(np.flatnonzero(np.diff(records["sequence"].astype(int)) <= 0) + 1)]


def test_rows_without_counters_are_one_run() -> None:
    splitter = RunSplitter(frozenset({"action"}))
    assert [splitter.starts(np.zeros(count, RECORD)) for count in (0, 3, 0, 2)] == [[], [0], [], []]


@given(st.lists(st.integers(0, 9), max_size=10), st.integers(1, 7))
def test_regroup(sizes: list[int], rows: int) -> None:
    records = np.zeros(sum(sizes), RECORD)
    records["sequence"] = np.arange(len(records))
    blocks = np.split(records, np.cumsum(sizes)[:-1]) if sizes else []
    found = list(regroup(blocks, rows))
    assert all(len(block) == rows for block in found[:-1]) and all(0 < len(block) <= rows for block in found)
    np.testing.assert_array_equal(join(found), records)


def test_a_damaged_end_is_told_after_the_whole_blocks(
    tmp_path: Path, random_records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 1 << 17)
    write_log(tmp_path / "a.log", random_records(4000))
    data = gzip.compress((tmp_path / "a.log").read_bytes(), 1)
    (tmp_path / "a.log.gz").write_bytes(data[:-1000])
    blocks = open_stream(tmp_path / "a.log.gz").blocks()
    assert len(next(blocks)) > 0
    with pytest.raises(L4SError, match="damaged"):
        list(blocks)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".log", ".rec"])
def test_memory_of_a_large_log(tmp_path: Path, random_records: Any, suffix: str) -> None:
    records = random_records(1 << 16)
    present = frozenset(logs.NAMES_24)
    peaks = []
    for times in (2, 8):
        path = tmp_path / f"large{suffix}"
        if suffix == ".rec":
            with RecordWriter(path, present) as writer:
                for _ in range(times):
                    writer.write(records)
        else:
            write_log(path, np.tile(records, times))
        tracemalloc.start()
        assert sum(len(block) for block in open_stream(path).blocks()) == len(records) * times
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
