"""Trees for the kernel: the same decisions as scikit-learn's, in integers."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import cli
from l4s_gym.bridge import trees
from l4s_gym.bridge.header import header_path
from l4s_gym.data.causal import UNKNOWN
from l4s_gym.data.records import save_records
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, OBSERVED
from tests.bridge.server import log_of

pytest.importorskip("sklearn", reason="needs l4s-gym[data]")
CORE = header_path().parent
ALL = frozenset(BY_NAME)


@pytest.fixture(scope="module")
def rows(simulated: Any) -> Any:
    """Features and actions of a simulated log."""
    return trees.training_rows([simulated], ALL)


@pytest.fixture(scope="module")
def tree(rows: Any) -> Any:
    """A tree of them."""
    return trees.distil(*rows, max_leaf_nodes=200)


def random_features(tree: Any, count: int = 10_000, seed: int = 0) -> Any:
    """Features (count, 8): of all sizes, and around the thresholds of a tree."""
    rng = np.random.default_rng(seed)
    raw = np.exp(rng.uniform(0, np.log(1 << 36), (count, 8))).astype(np.uint64)
    raw[:, 0] = rng.integers(0, 2, count)
    inner = tree.tree_
    for row, node in zip(range(0, count, 2), rng.choice(np.flatnonzero(inner.feature >= 0), count // 2), strict=True):
        near = inner.threshold[node] + rng.integers(-3, 4)
        raw[row, inner.feature[node]] = max(int(near), 0)
    return raw


def test_the_same_as_scikit_learn(tree: Any, rows: Any) -> None:
    packed = trees.Model.unpack(trees.export_tree(tree).pack())
    for raw in (random_features(tree), rows[0][:10_000]):
        found = packed.probabilities(raw)
        expected = np.zeros((len(raw), 3))
        expected[:, tree.classes_.astype(int)] = tree.predict_proba(raw)
        np.testing.assert_allclose(found / trees.ONE, expected[:, 1:], atol=2.0**-31)
        assert len(np.unique(found, axis=0)) > 5


def test_shares_of_the_actions_are_kept(tree: Any, rows: Any) -> None:
    raw, actions = rows
    drop, mark = trees.export_tree(tree).probabilities(raw).mean(axis=0) / trees.ONE
    assert drop == pytest.approx((actions == 1).mean(), rel=1e-6)
    assert mark == pytest.approx((actions == 2).mean(), rel=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0, 15_000.5, 2.0**24, 2.0**24 + 1.5, 2.0**31 * 8.5, 1e12])
def test_thresholds(threshold: float) -> None:
    last = trees._last_low(threshold)
    assert float(np.float32(last)) <= threshold < float(np.float32(last + 1))


def test_thresholds_below_everything() -> None:
    assert trees._last_low(-1.0) == -1


def test_layout_is_that_of_the_core(tmp_path: Path) -> None:
    core = (CORE / "l4s_core.h").read_text()
    defines = {name: int(value) for name, value in re.findall(r"#define L4S_(\w+) (\d+)\s", core)}
    assert (defines["MODEL_NODES"], defines["LEAF"], defines["FEATURES"]) == (4096, trees.LEAF, len(OBSERVED))
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    lines = ['printf(". %zu %zu\\n", offsetof(struct l4s_model, node), sizeof(struct l4s_node));']
    for name in trees.NODE.names or ():
        lines.append(f'printf("{name} %zu %zu\\n", offsetof(struct l4s_node, {name}), (size_t)0);')
    source = tmp_path / "layout.c"
    body = "\n".join(lines)
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "l4s_core.h"\nint main(void) {{\n{body}\n}}\n'
    )
    subprocess.run([compiler, "-std=c11", f"-I{CORE}", "-o", tmp_path / "layout", source], check=True)
    told = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout
    found = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in told.splitlines()}
    fields: Any = trees.NODE.fields
    assert found == {".": (8, trees.NODE.itemsize)} | {name: (fields[name][1], 0) for name in fields}


def test_the_core_takes_it(tree: Any, tmp_path: Path) -> None:
    """The core's own check, compiled from its sources."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    sources = sorted(map(str, CORE.glob("*.c")))
    library = tmp_path / "core.so"
    command = [compiler, "-std=c11", "-O1", "-shared", "-fPIC", "-Wl,-z,undefs", f"-I{CORE}", "-o", str(library)]
    done = subprocess.run([*command, *sources], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not sources:
        pytest.skip(f"the core does not compile: {done.stderr[-500:]}")
    check = ctypes.CDLL(str(library)).l4s_model_check
    packed = trees.export_tree(tree).pack()
    whole = packed + bytes(8 + 4096 * trees.NODE.itemsize - len(packed))
    assert check(ctypes.create_string_buffer(whole)) == -1
    broken = bytearray(whole)
    broken[8 + 16 : 8 + 18] = b"\x00\x00"  # the root's low child is the root
    assert check(ctypes.create_string_buffer(bytes(broken))) == 0


def test_rows_that_are_left_out(simulated: Any) -> None:
    records = simulated[:1000].copy()
    records["decided_by"][10:20] = 1
    records["accumulated_probability_before"][30:35] = UNKNOWN
    raw, actions = trees.training_rows([records[:600], records[600:]], ALL)
    assert len(raw) == len(actions) == 985
    assert len(trees.training_rows([records], ALL, rows=100)[0]) == 100
    np.testing.assert_array_equal(raw[:10, 4], records["accumulated_probability_before"][:10])
    with pytest.raises(L4SError, match="give complete records"):
        trees.training_rows([records[:0]], ALL)


def test_trees_that_do_not_fit(rows: Any) -> None:
    from sklearn.tree import DecisionTreeClassifier

    with pytest.raises(L4SError, match="8 features"):
        trees.export_tree(DecisionTreeClassifier(max_depth=2).fit(rows[0][:, :3], rows[1]))
    with pytest.raises(L4SError, match="leaves=1"):
        trees.distil(*rows, max_leaf_nodes=1)
    with pytest.raises(L4SError, match="leaves=5000"):
        trees.distil(*rows, max_leaf_nodes=5000)
    noise = np.random.default_rng(0)
    many = DecisionTreeClassifier().fit(noise.integers(0, 1 << 30, (9000, 8)), noise.integers(0, 3, 9000))
    with pytest.raises(L4SError, match="at most 4096 fit"):
        trees.export_tree(many)
    with pytest.raises(L4SError, match="below 0"):
        trees.export_tree(DecisionTreeClassifier(max_depth=2).fit(-rows[0].astype(np.float64) - 1, rows[1]))


def test_one_action_alone(rows: Any) -> None:
    model = trees.export_tree(trees.distil(rows[0], np.full(len(rows[0]), 2)))
    assert model.leaves == 1 and model.probabilities(rows[0][:3]).tolist() == [[0, trees.ONE]] * 3


def test_damaged_models(tree: Any) -> None:
    packed = trees.export_tree(tree).pack()
    for data in (b"", packed[:8], packed[:-1], bytes(8) + packed[8:], b"\xff\xff" + packed[2:]):
        with pytest.raises(L4SError, match="does not fit its count"):
            trees.Model.unpack(data)
    for at, value in ((8 + 16, b"\x00\x00"), (8 + 18, b"\xff\xff"), (8 + 20, b"\x08")):
        broken = packed[:at] + value + packed[at + len(value) :]
        with pytest.raises(L4SError, match="node 0 is wrong"):
            trees.Model.unpack(broken)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], simulated: Any) -> None:
    save_records(tmp_path / "a.rec", simulated)
    out = tmp_path / "tree.bin"
    assert cli.main(["live", "model", str(tmp_path / "a.rec"), "--out", str(out), "--leaves", "32"]) == 0
    said = capsys.readouterr().out
    model = trees.Model.unpack(out.read_bytes())
    assert model.leaves == 32 and len(model.nodes) == 63 and "63 nodes, 32 leaves" in said
    save_records(tmp_path / "b.rec", log_of(10), present=frozenset({"queue_type", "action"}))
    assert cli.main(["live", "model", str(tmp_path / "b.rec"), "--out", str(out)]) == 2
