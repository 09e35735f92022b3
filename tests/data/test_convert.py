"""Conversions: nothing is lost on the way, runs stay apart, files appear as a whole or not at all."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.data import jsonpool
from l4s_gym.data.causal import UNKNOWN, as_logged_observation, causal_observation
from l4s_gym.data.convert import Target, convert
from l4s_gym.data.jsonpool import load_json_pool, write_pool
from l4s_gym.data.logs import NAMES_23, NAMES_24, RANGE, write_log
from l4s_gym.data.parquet import write_parquet
from l4s_gym.data.pools import load_rows, make_rows, single, write_csv
from l4s_gym.data.records import save_records, write_records
from l4s_gym.data.stream import RowStream, RunSplitter, open_stream
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, OBSERVED, RECORD
from tests.data.conftest import make_kernel_log

pq: Any = importlib.import_module("pyarrow.parquet")
OUT: dict[Target, str] = {"pool": "out.json", "parquet": "out.parquet", "rec": "out.rec", "csv": "out.csv"}


def as_stream(records: Any, present: frozenset[str] | None = None, block: int = 0) -> RowStream:
    """Records as a stream of blocks of some rows."""
    rows = make_rows(records, "made", None if present is None else tuple(present))
    if not block:
        return single(rows, None)

    def blocks() -> Any:
        for start in range(0, len(records), block):
            yield records[start : start + block]
        return None

    return RowStream("made", rows.present, blocks())


@pytest.fixture
def runs_log(kernel_log: Any) -> Any:
    """Three runs of a complete log."""
    return np.concatenate([kernel_log(seed, 800, load=1.5) for seed in range(3)])


def starts(rows: Any) -> list[int]:
    """First rows of the runs."""
    return RunSplitter(rows.present).starts(rows.records)


@pytest.mark.parametrize("target", ["parquet", "rec", "csv"])
@pytest.mark.parametrize("names", [tuple(BY_NAME), NAMES_24, NAMES_23, ("queue_type", "action")])
def test_all_fields_come_back(tmp_path: Path, runs_log: Any, target: Target, names: tuple[str, ...]) -> None:
    runs_log["accumulated_probability_before"][5] = UNKNOWN
    for name in BY_NAME:
        if name not in names:
            runs_log[name] = 0
    save_records(tmp_path / "in.rec", runs_log, present=frozenset(names))
    done = convert(tmp_path / "in.rec", target, tmp_path / OUT[target])
    rows = load_rows(tmp_path / OUT[target])
    np.testing.assert_array_equal(rows.records, runs_log)
    assert rows.present == set(names)
    assert (done.rows, done.runs, done.path) == (2400, 1 if len(names) == 2 else 3, tmp_path / OUT[target])
    assert done.report is not None and done.report.records == 2400


def test_from_a_text_log(tmp_path: Path, random_records: Any) -> None:
    records = random_records(50)
    write_log(tmp_path / "in.log", records)
    with (tmp_path / "in.log").open("a") as file:
        file.write("something else\n")
    shares: list[float] = []
    done = convert(tmp_path / "in.log", "rec", tmp_path / "out.rec.zst", progress=shares.append)
    assert done.report is not None and done.report.skipped == {"other message": 1} and shares[-1] == 1.0
    convert(tmp_path / "out.rec.zst", "parquet", tmp_path / "out.parquet")
    np.testing.assert_array_equal(load_rows(tmp_path / "out.parquet").records, records)


# -- Parquet


def test_parquet_for_other_tools(tmp_path: Path, runs_log: Any) -> None:
    runs_log["accumulated_probability_before"][5] = UNKNOWN
    save_records(tmp_path / "in.rec", runs_log)
    convert(tmp_path / "in.rec", "parquet", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == [*BY_NAME, "run"]
    assert table["run"].to_numpy().tolist() == [0] * 800 + [1] * 800 + [2] * 800
    assert table["accumulated_probability_before"].null_count == 1
    delay = table.schema.field("current_queue_delay")
    assert delay.metadata[b"unit"] == b"us" and b"Sojourn" in delay.metadata[b"doc"]
    np.testing.assert_array_equal(load_rows(tmp_path / "out.parquet").records, runs_log)


def test_parquet_row_groups(tmp_path: Path, random_records: Any) -> None:
    records = random_records(150_000)
    save_records(tmp_path / "in.rec", records)
    convert(tmp_path / "in.rec", "parquet", tmp_path / "out.parquet")
    with pq.ParquetFile(tmp_path / "out.parquet") as file:
        groups = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert groups == [1 << 16, 1 << 16, 150_000 - (1 << 17)]


def test_parquet_files_are_checked(tmp_path: Path, runs_log: Any) -> None:
    path = tmp_path / "out.parquet"
    save_records(tmp_path / "in.rec", runs_log)
    convert(tmp_path / "in.rec", "parquet", path)
    table = pq.read_table(path)
    queue = table.column("queue_type").to_numpy().copy()
    queue[3] = 2
    pa: Any = importlib.import_module("pyarrow")
    bad = table.set_column(0, table.schema.field(0), pa.array(queue))
    pq.write_table(bad, path)
    stream = open_stream(path)
    assert sum(map(len, stream.blocks())) == 2399
    assert stream.report is not None and stream.report.skipped == {RANGE: 1}
    assert stream.report.examples == ((str(path), 4, RANGE),)
    for wrong, message in (
        (table.replace_schema_metadata({}), "not of version"),
        (table.drop_columns(["run"]), "other names or types"),
        (table.append_column("more", table["run"]), "other names or types"),
        (table.cast(pa.schema([f.with_type(pa.int64()) for f in table.schema], table.schema.metadata)), "other names"),
    ):
        pq.write_table(wrong, path)
        with pytest.raises(L4SError, match=message):
            open_stream(path)
    pq.write_table(table, path)
    data = path.read_bytes()
    for damaged in (data[:-9], data[: len(data) // 2], b"PAR1", b"", data[:2000] + bytes(5000) + data[7000:]):
        path.write_bytes(damaged)
        with pytest.raises(L4SError, match=r"out.parquet: cannot be read as Parquet"):
            load_rows(path)


# -- JSON pools


@pytest.mark.parametrize("as_logged", [False, True])
@pytest.mark.parametrize("names", [tuple(BY_NAME), NAMES_24, NAMES_23, (*OBSERVED, "action")])
@pytest.mark.parametrize("block", [0, 7])
def test_pool_round_trip(tmp_path: Path, runs_log: Any, names: tuple[str, ...], as_logged: bool, block: int) -> None:
    lost = runs_log[np.random.default_rng(0).random(len(runs_log)) > 0.3]
    for name in BY_NAME:
        if name not in names:
            lost[name] = 0
    source = make_rows(lost, present=names)
    rows, runs = write_pool(as_stream(lost, frozenset(names), block), tmp_path / "pool.json", as_logged=as_logged)
    found = load_rows(tmp_path / "pool.json")
    observe = as_logged_observation if as_logged else causal_observation
    np.testing.assert_array_equal(observe(found), observe(source))
    np.testing.assert_array_equal(found.records["action"], lost["action"])
    assert rows == len(lost) and runs == len(starts(source))
    assert starts(found) == starts(source)
    if not as_logged and "accumulated_probability_before" not in names:
        assert np.isnan(observe(found)[:, 4]).any()  # null stays missing
    raw = json.loads((tmp_path / "pool.json").read_text())
    assert sum(raw["dones"]) == runs and raw["dones"][-1]
    expected = lost["packet_length"] / (lost["current_queue_delay"] + 1000.0)
    assert raw["rewards"] == expected.tolist()
    assert raw["format"] == "l4s-gym experience pool" and raw["as_logged"] is as_logged
    # Once more: a pool of a pool is the same file.
    convert(tmp_path / "pool.json", "pool", tmp_path / "again.json", as_logged=as_logged)
    assert (tmp_path / "again.json").read_bytes() == (
        tmp_path / "pool.json"
    ).read_bytes() or "packet_length" not in names


def test_a_pool_of_any_values(tmp_path: Path, random_records: Any) -> None:
    records = random_records(300)
    for as_logged in (False, True):
        write_pool(as_stream(records), tmp_path / "pool.json.gz", as_logged=as_logged)
        found = load_rows(tmp_path / "pool.json.gz")
        observe = as_logged_observation if as_logged else causal_observation
        np.testing.assert_array_equal(observe(found), observe(make_rows(records)))


def test_the_authors_pool(tmp_path: Path, pools_dir: Path) -> None:
    path = pools_dir / "exp_pool_l4s_train_9feat.pkl"
    convert(path, "pool", tmp_path / "pool.json")
    found, source = load_rows(tmp_path / "pool.json"), load_rows(path)
    np.testing.assert_array_equal(causal_observation(found), causal_observation(source))


def valid_pool(**change: Any) -> dict[str, Any]:
    """A small pool as JSON."""
    made = {"format": jsonpool.FORMAT, "schema_version": 1, "features": ["queue_type", "accumulated_probability"]}
    made |= {"as_logged": False, "states": [[0, None], [1, 7]], "actions": [0, 2], "rewards": [0.5, 1]}
    return made | {"dones": [False, True]} | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "pool"}, "format"),
        ({"schema_version": 2}, "version 2"),
        ({"features": ["queue_typ"]}, "features"),
        ({"features": []}, "features"),
        ({"features": ["accumulated_probability", "queue_type"]}, "features"),
        ({"states": []}, "no step"),
        ({"states": [[0, None]]}, "not as many"),
        ({"states": [[0, None], [1]]}, "other than 2"),
        ({"states": [[None, 1], [1, 1]]}, "queue_type is null"),
        ({"states": [[0, 1], [2, 1]]}, "row 1: queue_type is 2"),
        ({"states": [[0, 1], [0.5, 1]]}, "int"),
        ({"states": [[0, 1], [-1, 1]]}, ">= 0"),
        ({"states": [[0, 1 << 63], [0, 1]]}, r"\$.states"),
        ({"states": [[0, 10**40], [0, 1]]}, r"\$.states"),
        ({"as_logged": True}, "accumulated_probability is null"),
        ({"actions": [0, 3]}, "action is 3"),
        ({"actions": [0, "1"]}, r"\$.actions"),
        ({"rewards": [0.5]}, "not as many"),
        ({"dones": [0, 1]}, r"\$.dones"),
        ({"more": 1}, "more"),
    ],
)
def test_bad_pools(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "pool.json"
    path.write_text(json.dumps(valid_pool()))
    assert len(load_rows(path)) == 2
    path.write_text(json.dumps(valid_pool(**change)))
    with pytest.raises(L4SError, match=message) as caught:
        load_rows(path)
    assert "pool.json" in str(caught.value)


def test_large_and_deep_pools_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text(json.dumps(valid_pool()))
    with pytest.raises(L4SError, match="max_bytes"):
        load_json_pool(path, max_bytes=20)
    for text in (
        json.dumps(valid_pool())[:-1],
        "[" * 100_000,
        '{"states":' * 50_000,
        "\ud800".encode("utf-8", "replace"),
    ):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(L4SError, match=r"pool\.json"):
            load_rows(path)
    with pytest.raises(L4SError, match="no actions"):
        write_pool(as_stream(np.zeros(3, RECORD), frozenset({"queue_type"})), path)
    with pytest.raises(L4SError, match="no row"):
        write_pool(as_stream(np.zeros(0, RECORD)), path)


_VALID = json.dumps(valid_pool()).encode()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(_VALID) - 1), st.binary(max_size=4))
def test_damaged_pools(tmp_path_factory: pytest.TempPathFactory, at: int, inserted: bytes) -> None:
    """A file that was changed is refused, or says what the standard library reads."""
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(_VALID[:at] + inserted + _VALID[at + len(inserted) :])
    try:
        pool = load_json_pool(path)
    except L4SError as error:
        assert "damaged.json" in str(error)
        return
    raw = json.loads(path.read_bytes())
    assert pool.records["action"].tolist() == raw["actions"]
    assert pool.records["queue_type"].tolist() == [row[0] for row in raw["states"]]


# -- what must not happen


@pytest.mark.parametrize("target", ["pool", "parquet", "rec", "csv"])
def test_refusals(tmp_path: Path, random_records: Any, target: Target) -> None:
    save_records(tmp_path / "in.rec", random_records(5))
    out = tmp_path / OUT[target]
    out.write_text("old")
    with pytest.raises(L4SError, match="--overwrite"):
        convert(tmp_path / "in.rec", target, out)
    with pytest.raises(L4SError, match="is not the name of a"):
        convert(tmp_path / "in.rec", target, tmp_path / "out.txt")
    if target != "pool":
        with pytest.raises(L4SError, match="as-logged"):
            convert(tmp_path / "in.rec", target, tmp_path / f"new{out.suffix}", as_logged=True)
    with pytest.raises(L4SError, match="cannot be written"):
        convert(tmp_path / "in.rec", target, tmp_path / "absent" / out.name)
    assert out.read_text() == "old"
    assert convert(tmp_path / "in.rec", target, out, overwrite=True).rows == 5
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted({"in.rec", out.name})


def test_a_file_can_be_converted_onto_itself(tmp_path: Path, random_records: Any) -> None:
    records = random_records(5)
    save_records(tmp_path / "in.rec", records)
    convert(tmp_path / "in.rec", "rec", tmp_path / "in.rec", overwrite=True)
    np.testing.assert_array_equal(load_rows(tmp_path / "in.rec").records, records)


_KILLED = """
import os, signal, sys
from l4s_gym.data.convert import convert
convert(sys.argv[1], sys.argv[2], sys.argv[3], overwrite=True,
        progress=lambda share: os.kill(os.getpid(), signal.SIGKILL) if share > 0.5 else None)
"""


@pytest.mark.parametrize("target", ["pool", "parquet", "rec", "csv"])
def test_a_killed_conversion_leaves_the_old_file(tmp_path: Path, target: Target) -> None:
    save_records(tmp_path / "in.rec", np.tile(make_kernel_log(0, 2000), 50))
    out = tmp_path / OUT[target]
    out.write_text("old")
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "in.rec"), target, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert out.read_text() == "old"


@pytest.mark.parametrize("target", ["pool", "parquet", "rec", "csv"])
def test_memory_is_bounded(tmp_path: Path, target: Target) -> None:
    """Three times the rows do not need more memory."""
    records = make_kernel_log(0, 4000 if target == "parquet" else 400)
    peaks = []
    for times in (40, 120) if target == "parquet" else (8, 24):

        def blocks(times: int = times) -> Any:
            for _ in range(times):
                yield records
            return None

        stream = RowStream("made", frozenset(BY_NAME), blocks())
        out = tmp_path / OUT[target]
        tracemalloc.start()
        {"pool": write_pool, "parquet": write_parquet, "rec": write_records, "csv": write_csv}[target](stream, out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
