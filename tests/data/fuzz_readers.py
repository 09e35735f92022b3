"""Fuzz the readers of logs, binary records, pools and csv files with libFuzzer, against independent readings.

    pip install atheris
    python tests/data/fuzz_readers.py -max_total_time=600 [CORPUS]

The first byte of an input chooses the reader, the second one the size of the blocks. No reader may raise anything
but `L4SError`, and what it returns must be what a simple, independent reading finds in the same bytes.
"""

from __future__ import annotations

import importlib
import json
import math
import pickle
import re
import struct
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

from l4s_gym.errors import L4SError
from l4s_gym.schema import FIELDS, LINE_END, LINE_START, PRINTED, RECORD

atheris: Any = importlib.import_module("atheris")  # without types, and not installed everywhere

with atheris.instrument_imports(include=["l4s_gym.data"], exclude=["l4s_gym.data.fast"]):
    from l4s_gym.data import jsonpool, logs, pickles, pools, records

_NUMBER = rb"(?:0|[1-9][0-9]{0,18})"
_LINE = re.compile(LINE_START.encode() + rb"(" + _NUMBER + rb"(?:," + _NUMBER + rb"){22,23})" + LINE_END.encode())
_SHORT = [field for field in PRINTED if field.name != "packet_length"]
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-readers-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
UNKNOWN = (1 << 63) - 1
BLOCKS = (0, 0, 0, 37, 200, 1000)


def rows_of_text(data: bytes) -> list[tuple[int, ...]]:
    """What a regular expression finds."""
    found = []
    for match in _LINE.finditer(data):
        values = tuple(map(int, match[1].split(b",")))
        form = PRINTED if len(values) == 24 else _SHORT
        if all(field.low <= value <= field.high for field, value in zip(form, values, strict=True)):
            found.append(values)
    return found


def printed(rows: Any, form: int) -> list[tuple[int, ...]]:
    """Rows as they are printed."""
    names = [field.name for field in (PRINTED if form == 24 else _SHORT)]
    return [tuple(int(row[name]) + (name == "action") for name in names) for row in rows]


def text(path: Path, data: bytes, block: int) -> None:
    """Both parsers, in blocks of any size, find what the expression finds."""
    path.write_bytes(data)
    expected = rows_of_text(data)
    results: list[Any] = []
    logs._BLOCK = BLOCKS[block % len(BLOCKS)] or 3 << 20  # type: ignore[misc]
    for fast in (True, False):
        try:
            found, report = logs.read_log(path, fast=fast)
        except L4SError:
            results.append(None)
        else:
            results.append((found.tobytes(), report.skipped, report.lines, report.examples))
            assert report.fields in (23, 24)
            assert report.lines == data.count(b"\n") + (data[-1:] != b"\n")
            rows = printed(found, report.fields)
            assert rows == [values for values in expected if len(values) == report.fields]
            other = [values for values in expected if len(values) != report.fields]
            assert report.skipped.get(logs.FORM, 0) == len(other)
            if block % len(BLOCKS) < 3 and data[-1:] == b"\n":  # one block: a last line that is not ended is another
                assert len(rows) >= len(other)
    assert results[0] == results[1], results
    assert (results[0] is None) == (not expected)


def binary(path: Path, data: bytes, mask: int) -> None:
    """Whole rows within the bounds come back, and nothing else."""
    present = frozenset(field.name for bit, field in enumerate(FIELDS) if (mask | 1) >> (bit % 8) & 1)
    if mask & 128:
        data = records._pack_header(present) + data
    path.write_bytes(data)
    stream = records.open_records(path)
    found = np.concatenate([np.zeros(0, RECORD), *stream.blocks()])
    whole, torn = divmod(len(data) - 32, RECORD.itemsize)
    expected = []
    for row in range(whole):
        piece = data[32 + row * RECORD.itemsize :][: RECORD.itemsize]
        values = dict(zip(RECORD.names or (), struct.unpack("<" + _CODES, piece), strict=True))
        valid = all(
            field.low <= values[field.name] + (field.name == "action") <= field.high
            if field.name in stream.present
            else values[field.name] == 0
            for field in FIELDS
        )
        if valid:
            expected.append(piece)
    assert found.tobytes() == b"".join(expected)
    assert stream.report is not None
    assert stream.report.records == len(expected)
    assert stream.report.lines == whole + (torn > 0)
    assert sum(stream.report.skipped.values()) == whole - len(expected) + (torn > 0)


_CODES = "".join({"u1": "B", "u2": "H", "u4": "I", "u8": "Q"}[field.dtype] for field in FIELDS)


def json_pool(path: Path, data: bytes, _: int) -> None:
    """What is read is what the standard library reads."""
    path.write_bytes(data)
    pool = jsonpool.load_json_pool(path)
    raw = json.loads(data)
    assert len(pool.records) == len(raw["states"]) > 0
    assert pool.records["action"].tolist() == raw["actions"]
    for name, column in zip(
        jsonpool._stored_names(raw["features"], raw["as_logged"]), zip(*raw["states"], strict=True), strict=True
    ):
        expected = [UNKNOWN if value is None else value for value in column]
        assert pool.records[name].tolist() == expected, name


def pickled(path: Path, data: bytes, _: int) -> None:
    """Nothing is imported, and what is read is a pool."""
    before = set(sys.modules)
    path.write_bytes(data)
    try:
        pool = pickles.load_pickle(path)
    finally:
        assert all(name.startswith("encodings.") for name in set(sys.modules) - before)
    assert len(pool) > 0


def csv(path: Path, data: bytes, _: int) -> None:
    """Rows are whole numbers within the bounds."""
    path.write_bytes(data)
    rows = pools.load_rows_csv(path)
    assert len(rows) > 0 and not records.out_of_bounds(rows.records, rows.present).any()


READERS = (text, binary, json_pool, pickled, csv)


def one(data: bytes) -> None:
    """One input."""
    if len(data) < 2 or data[2:].startswith(_PACKED):  # the independent readings do not unpack
        return
    reader = READERS[data[0] % len(READERS)]
    try:
        reader(FOLDER / "input", data[2:], data[1])
    except L4SError as error:
        assert "\n" not in str(error) and str(error).isprintable(), repr(error)


def write_corpus(folder: Path) -> None:
    """Some valid inputs to begin with."""
    rows = np.zeros(3, RECORD)
    rows["tupdate"], rows["packet_length"], rows["action"] = 15000, 1500, [0, 1, 2]
    line = logs.format_record(rows[1]).encode()
    short = logs.format_record(rows[1], 23).encode()
    feature = {"queue_type": 1, "accumulated_probability": None}
    pool = {
        **{"format": jsonpool.FORMAT, "schema_version": 1, "features": list(feature), "as_logged": False},
        **{"states": [[1, None], [0, 5]], "actions": [0, 2], "rewards": [0.5, 1.5], "dones": [True, False]},
    }
    inputs = {
        "text": b"\x00\x00Jul 10 kernel: " + line + b"\n" + line + line[:50] + b"\n" + short + b"\n",
        "blocks": b"\x00\x03" + (line + b"\n") * 4 + line[30:] + b"\nlast message repeated 2 times\n",
        "binary": b"\x01\x7f" + records._pack_header(frozenset(RECORD.names or ())) + rows.tobytes(),
        "rows": b"\x01\xff" + rows.tobytes()[:-9],
        "json": b"\x02\x00" + json.dumps(pool).encode(),
        "pickle": b"\x03\x00" + _pickle(),
        "csv": b"\x04\x00queue_type,packet_length,action\n1,1500,2\n0,52,0\n",
    }
    for name, data in inputs.items():
        (folder / name).write_bytes(data)


def _pickle() -> bytes:
    """A small pool of seven features."""
    module = types.ModuleType("utils.exp_pool")
    kind = type("ExperiencePool", (), {"__module__": "utils.exp_pool"})
    vars(module)["ExperiencePool"] = kind
    saved = {name: sys.modules.get(name) for name in ("utils", "utils.exp_pool")}
    sys.modules |= {"utils": types.ModuleType("utils"), "utils.exp_pool": module}
    try:
        pool: Any = kind()
        pool.states = [np.zeros(7, np.float32), np.ones(7, np.float32)]
        pool.actions, pool.rewards, pool.dones = [np.int64(1), np.int64(0)], [0.5, math.pi], [0, 1]
        return pickle.dumps(pool, 4)
    finally:
        for name, old in saved.items():
            del sys.modules[name]
            if old is not None:
                sys.modules[name] = old


def main() -> None:
    """Fuzz; with no folder named, from a small corpus of our own."""
    argv = list(sys.argv)
    if all(arg.startswith("-") for arg in argv[1:]):
        folder = FOLDER / "corpus"
        folder.mkdir()
        write_corpus(folder)
        argv.append(str(folder))
    atheris.Setup(argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
