"""Pools and csv files: the real ones, and crafted ones of which nothing may run."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.data.columns import FEATURES
from l4s_gym.data.logs import write_log
from l4s_gym.data.pickles import load_pickle
from l4s_gym.data.pools import load_rows, load_rows_csv, make_rows
from l4s_gym.data.records import save_records
from l4s_gym.errors import L4SError
from l4s_gym.schema import MAX_PROB


class ExperiencePool:
    """Stands for the class of the same name that the pools were pickled from."""


def dump(attributes: dict[str, Any], protocol: int = 4, module: str = "utils.exp_pool") -> bytes:
    """A pickle like those of the public pools, of a class of that module (`__main__`: of a notebook)."""
    pool = ExperiencePool()
    pool.__dict__.update(attributes)

    ExperiencePool.__module__ = module
    made = types.ModuleType(module)
    vars(made)["ExperiencePool"] = ExperiencePool
    with pytest.MonkeyPatch.context() as patch:  # pickle looks the class up by its name
        patch.setitem(sys.modules, module.partition(".")[0], types.ModuleType("utils"))
        patch.setitem(sys.modules, module, made)
        return pickle.dumps(pool, protocol)


def attributes(count: int = 4, features: int = 7, **change: Any) -> dict[str, Any]:
    """Attributes of a valid pool."""
    states = np.zeros((count, features), np.float32)
    states[:, 2] = MAX_PROB  # rounded up to 2^31 by float32
    states[:, -1] = 1500
    made = {"states": list(states), "actions": [np.int64(n % 3) for n in range(count)], "rewards": [0.5] * count}
    return made | {"dones": [0] * count} | change


def save(path: Path, data: bytes) -> Path:
    """Write bytes."""
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("features", "name"), [(7, "exp_pool_l4s_train_7feat.pkl"), (9, "exp_pool_l4s_train_9feat.pkl")]
)
def test_real_pool(pools_dir: Path, features: int, name: str) -> None:
    pool = load_pickle(pools_dir / name)
    assert pool.present == {*FEATURES[features], "action"}
    assert len(pool) == 2490
    assert np.bincount(pool.records["action"]).tolist() == [2061, 369, 60]


def test_real_pools_are_the_same_steps(pools_dir: Path) -> None:
    seven, nine = (load_pickle(pools_dir / f"exp_pool_l4s_train_{n}feat.pkl").records for n in (7, 9))
    for name in (*FEATURES[7], "action"):
        np.testing.assert_array_equal(seven[name], nine[name])
    assert nine["total_drops"].any() and not seven["total_drops"].any()


def test_real_csv(pools_dir: Path) -> None:
    rows = load_rows_csv(pools_dir / "consecutive_rows_first6000.csv")
    assert len(rows) == 6000 and not rows.records["action"].any()
    assert rows.records["length_in_bytes"][-1] == 10500 or rows.records["length_in_bytes"].max() > 0
    assert "qdelay_ref" not in rows.present


@pytest.mark.parametrize("features", [7, 9])
@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("module", ["utils.exp_pool", "__main__"])
def test_own_pool(tmp_path: Path, features: int, protocol: int, module: str) -> None:
    pool = load_pickle(save(tmp_path / "pool.pkl", dump(attributes(5, features), protocol, module)))
    assert pool.records["drop_probability"].tolist() == [MAX_PROB] * 5
    assert pool.records["action"].tolist() == [0, 1, 2, 0, 1]
    assert load_rows(tmp_path / "pool.pkl").present == {*FEATURES[features], "action"}
    (tmp_path / "pool.pkl").rename(tmp_path / "pool")
    assert len(load_rows(tmp_path / "pool")) == 5  # told by its content


class _Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_malicious_pickles(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    command = f"touch {witness}"
    crafted: dict[str, bytes] = {
        "system": pickle.dumps(_Evil(os.system, command)),
        "old protocol": pickle.dumps(_Evil(os.system, command), 0),
        "in a state": dump(attributes(states=[_Evil(os.system, command)])),
        "eval": pickle.dumps(_Evil(eval, f"open({str(witness)!r}, 'w')")),
        "getattr": pickle.dumps(_Evil(getattr, "text", "format")),
        "numpy": b"cnumpy\nsave\n(S'" + str(witness).encode() + b"'\nI1\ntR.",
        "inst": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + command.encode() + b"'\no.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0df.os.system.x\x93.",
        "state of a global": b"cnumpy\nndarray\n}S'kind'\nS'dtype'\nsb.",
        "slots of a global": b"cutils.exp_pool\nExperiencePool\n(N}S'build'\nI1\nstb.",
        "call an array": b"cnumpy\nndarray\n(I1\ntR.",
        "attribute by build": b"cutils.exp_pool\nExperiencePool\n)\x81}S'build'\nI1\nsb.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Pname\n.",
        "object array": dump(attributes(states=np.array([None, 1], object))),
        "module as a class": b"cutils.exp_pool\nos\n.",
    }
    for name, data in crafted.items():
        with pytest.raises(L4SError) as caught:
            load_pickle(save(tmp_path / "evil.pkl", data))
        assert "\n" not in str(caught.value) and "evil.pkl" in str(caught.value), name
        assert not witness.exists(), name
    with pytest.raises(L4SError, match=r"posix\.system|nt\.system"):
        load_pickle(save(tmp_path / "evil.pkl", crafted["system"]))


def test_messages_are_one_printable_line(tmp_path: Path) -> None:
    """Whatever a file holds: names with line ends and escapes of terminals, too."""
    crafted: dict[str, bytes] = {
        "global.pkl": b"\x80\x04\x8c\x05os\x1b[2\x8c\x05a\nb\nc\x93.",
        "dtype.pkl": b"cnumpy\ndtype\n(\x8c\x06a\nb\x1b[2tR.",
        "rows.csv": b"queue_type\n0\n'\x1b[2J\x07'\n",
        "names.csv": b"queue_type,\x1b[2J\n0,0\n",
        "pool.json": b'{"format": "l4s-gym experience pool", "a\x7fb": 1}',
    }
    for name, data in crafted.items():
        with pytest.raises(L4SError, match=name) as caught:
            load_rows(save(tmp_path / name, data))
        assert str(caught.value).isprintable()


def test_bombs(tmp_path: Path) -> None:
    huge = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\nt\x8c\x01btR."
    memo = b"\x80\x02K\x01r\xff\xff\xff\xff0."
    short = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x."
    row = np.zeros(100_000, np.float32)
    for data in (
        huge,
        memo,
        short,
        dump(attributes(states=[row] * 2000)),
        b"(" * 100_000,
        b"I" + b"9" * 10_000 + b"\n.",
    ):
        with pytest.raises(L4SError):
            load_pickle(save(tmp_path / "bomb.pkl", data))
    with pytest.raises(L4SError, match="max_bytes"):
        load_pickle(save(tmp_path / "large.pkl", dump(attributes(1000))), max_bytes=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": []}, "bad.pkl: is an empty pool, it holds no step"),
        ({"states": [np.zeros(8)] * 4}, "cannot tell whether column 7"),
        ({"states": [np.zeros(6)] * 4}, "7, 8 or 9 features are known, others need --columns"),
        ({"states": [np.zeros(7)] * 3 + [np.zeros(6)]}, "not a table"),
        ({"states": [np.full(7, 0.5)] * 4}, "whole number"),
        ({"states": [np.full(7, np.nan)] * 4}, "whole number"),
        ({"actions": [0, 1, 2, 3]}, "action is 3"),
        ({"actions": [0, 1]}, "not as many"),
        ({"actions": ["0"] * 4}, "not a table"),
        ({"rewards": None}, "not as many"),
        ({"more": 1}, "not an experience pool"),
    ],
)
def test_bad_pools(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(L4SError, match=message):
        load_pickle(save(tmp_path / "bad.pkl", dump(attributes(**change))))


_VALID = dump(attributes())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(_VALID) - 1), st.binary(min_size=0, max_size=3))
def test_damaged_pools(tmp_path_factory: pytest.TempPathFactory, at: int, inserted: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(_VALID[:at] + inserted + _VALID[at + len(inserted) :])
    try:
        load_pickle(path)
    except L4SError as error:
        assert "damaged.pkl" in str(error)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    for suffix in (".pkl", ".csv", ".rec", ".json", ".parquet", ".log", ""):
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        path.write_bytes(data)
        with pytest.raises(L4SError):
            load_rows(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column"),
        ("queue_type,action\n", "no rows"),
        ("queue_typ,action\n0,0\n", "queue_type"),
        ("queue_type,queue_type\n0,0\n", "twice"),
        ("queue_type,action\n0,0,0\n", "names"),
        ("queue_type,action\n0,0\n1\n", "needs 2 numbers"),
        ("queue_type,action\n0,x\n", "needs 2 numbers"),
        ("queue_type,action\n0,3\n", "action is 3"),
        ("queue_type,action\n0,0\n1.5,0\n", "row 1: queue_type"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(L4SError, match=message):
        load_rows(path)


def test_load_rows_by_content(tmp_path: Path, random_records: Any) -> None:
    records = random_records(50)
    write_log(tmp_path / "messages", records)
    save_records(tmp_path / "stored", records, present=frozenset({"action"}))
    (tmp_path / "table").write_text("queue_type,action\n0,2\n")
    np.testing.assert_array_equal(load_rows(tmp_path / "messages").records, records)
    assert load_rows(tmp_path / "stored").present == {"action"}
    assert load_rows(tmp_path / "table").records["action"].tolist() == [2]
    for name in ("wrong.pkl", "wrong.rec", "wrong.csv", "wrong.json", "wrong.parquet"):
        (tmp_path / name).write_bytes((tmp_path / "messages").read_bytes())
        with pytest.raises(L4SError, match=name):
            load_rows(tmp_path / name)
    with pytest.raises(L4SError, match="cannot be read"):
        load_rows(tmp_path / "absent")
    with pytest.raises(L4SError, match="schema lacks"):
        make_rows(records, present=("nonsense",))
