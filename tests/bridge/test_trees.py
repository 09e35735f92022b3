"""A tree of logged decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import cli
from l4s_gym.bridge import trees
from l4s_gym.bridge.fixed import ONE
from l4s_gym.bridge.model import Inputs, Model, Trees
from l4s_gym.data.causal import UNKNOWN
from l4s_gym.data.records import save_records
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME
from tests.bridge.server import log_of

pytest.importorskip("sklearn", reason="needs l4s-gym[data]")
ALL = frozenset(BY_NAME)


@pytest.fixture(scope="module")
def rows(simulated: Any) -> Any:
    """Features and actions of a simulated log."""
    return trees.training_rows([simulated], ALL)


def model_of(tree: Any) -> Model:
    """The model of a fitted tree."""
    return Model("packet", Inputs(), Trees.of(tree))


def test_the_same_as_scikit_learn(rows: Any) -> None:
    tree = trees.distil(*rows, max_leaf_nodes=200)
    found = model_of(tree).outputs(rows[0])
    expected = np.zeros((len(rows[0]), 3))
    expected[:, tree.classes_.astype(int)] = tree.predict_proba(rows[0])
    np.testing.assert_allclose(found / ONE, expected[:, 1:], atol=2.0**-30)
    assert len(np.unique(found, axis=0)) > 5


def test_shares_of_the_actions_are_kept(rows: Any) -> None:
    raw, actions = rows
    drop, mark = model_of(trees.distil(raw, actions)).outputs(raw).mean(axis=0) / ONE
    assert drop == pytest.approx((actions == 1).mean(), rel=1e-6)
    assert mark == pytest.approx((actions == 2).mean(), rel=1e-6)


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
        Trees.of(DecisionTreeClassifier(max_depth=2).fit(rows[0][:, :3], rows[1]))
    for leaves in (1, 5000):
        with pytest.raises(L4SError, match=f"leaves={leaves}"):
            trees.distil(*rows, max_leaf_nodes=leaves)
    noise = np.random.default_rng(0)
    many = DecisionTreeClassifier().fit(noise.integers(0, 1 << 30, (20_000, 8)), noise.integers(0, 3, 20_000))
    with pytest.raises(L4SError, match="give fewer leaves"):
        Trees.of(many)
    with pytest.raises(L4SError, match="below 0"):
        Trees.of(DecisionTreeClassifier(max_depth=2).fit(-rows[0].astype(np.float64) - 1, rows[1]))


def test_the_largest_tree_fits() -> None:
    noise = np.random.default_rng(0)
    raw = noise.integers(0, 60_000, (200_000, 8))
    tree = trees.distil(raw, noise.integers(0, 3, len(raw)), max_leaf_nodes=trees.MOST_LEAVES)
    model = model_of(tree)
    assert isinstance(model.body, Trees) and model.body.leaves == trees.MOST_LEAVES and len(model.pack()) < 100_000


def test_one_action_alone(rows: Any) -> None:
    model = model_of(trees.distil(rows[0], np.full(len(rows[0]), 2)))
    assert model.outputs(rows[0][:3]).tolist() == [[0, ONE]] * 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], simulated: Any) -> None:
    save_records(tmp_path / "a.rec", simulated)
    out = tmp_path / "tree.bin"
    assert cli.main(["live", "model", str(tmp_path / "a.rec"), "--out", str(out), "--leaves", "32"]) == 0
    said = capsys.readouterr().out
    body = Model.unpack(out.read_bytes()).body
    assert isinstance(body, Trees) and body.leaves == 32 and "63 nodes, 32 leaves" in said
    save_records(tmp_path / "b.rec", log_of(10), present=frozenset({"queue_type", "action"}))
    assert cli.main(["live", "model", str(tmp_path / "b.rec"), "--out", str(out)]) == 2
