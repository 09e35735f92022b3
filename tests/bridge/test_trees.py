"""Models of logged decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import cli
from l4s_gym.agents import fitting
from l4s_gym.agents.distil import Config
from l4s_gym.agents.teaching import whole
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
def rows(simulated: Any) -> fitting.Rows:
    """Rows of a simulated log."""
    return fitting.joined(fitting.logged_rows([simulated], ALL))


def model_of(rows: fitting.Rows, leaves: int) -> Model:
    """The model of a tree of some rows."""
    return Model("packet", Inputs(), Trees.of(fitting.grown(Config(), "packet", rows, 1, leaves)))


def test_the_same_as_scikit_learn(rows: fitting.Rows) -> None:
    tree = fitting.grown(Config(), "packet", rows, 1, 200)
    found = Model("packet", Inputs(), Trees.of(tree)).outputs(rows.seen)
    expected = np.zeros((len(rows.seen), 3))
    expected[:, tree.classes_.astype(int)] = tree.predict_proba(rows.seen)
    np.testing.assert_allclose(found / ONE, expected[:, 1:], atol=2.0**-30)
    assert len(np.unique(found, axis=0)) > 5


def test_shares_of_the_actions_are_kept(rows: fitting.Rows) -> None:
    drop, mark = model_of(rows, 256).outputs(rows.seen).mean(axis=0) / ONE
    np.testing.assert_allclose([drop, mark], rows.labels.mean(axis=0), rtol=0.05)


def test_whose_rows_are_learned_from(simulated: Any) -> None:
    records = simulated[:1000].copy()
    records["decided_by"][10:20] = 1
    records["accumulated_probability_before"][30:35] = UNKNOWN
    (run,) = fitting.logged_rows([records[:600], records[600:]], ALL)
    assert len(run.seen) == len(run.labels) == 985
    (own,) = fitting.logged_rows([records], ALL, "agent")
    np.testing.assert_array_equal(own.seen[:, 4], records["accumulated_probability_before"][10:20])
    np.testing.assert_array_equal(own.labels, np.eye(3)[records["action"][10:20]][:, 1:])
    assert len(fitting.joined(fitting.logged_rows([records[:50], records[50:]], ALL, most=100)).seen) == 100
    np.testing.assert_array_equal(run.seen[:10, 4], records["accumulated_probability_before"][:10])
    for wrong in (([records[:0]], ALL), ([records], ALL, "fallback")):
        with pytest.raises(L4SError, match="give complete records"):
            fitting.logged_rows(*wrong)


def test_whole_runs_are_held_out(simulated: Any) -> None:
    """Where there are several; of a single one its end. A run begins where the sequence starts again."""
    records = simulated[:1000]
    runs = fitting.logged_rows([records[:300], records[300:], records[:500], records[:400]], ALL)
    assert [len(each.seen) for each in runs] == [1000, 500, 400]
    train, held = fitting.parted(runs, 0.3)
    assert sorted((len(train.seen), len(held.seen))) in ([400, 1500], [500, 1400], [900, 1000])
    train, held = fitting.parted(runs[:1], 0.3)
    np.testing.assert_array_equal(np.concatenate([train.seen, held.seen]), runs[0].seen)
    assert len(held.seen) == 300


def test_trees_that_do_not_fit(rows: fitting.Rows) -> None:
    from sklearn.tree import DecisionTreeClassifier

    actions = whole(rows.labels).argmax(axis=1)
    with pytest.raises(L4SError, match="8 features"):
        Trees.of(DecisionTreeClassifier(max_depth=2).fit(rows.seen[:, :3], actions))
    noise = np.random.default_rng(0)
    many = DecisionTreeClassifier().fit(noise.integers(0, 1 << 30, (20_000, 8)), noise.integers(0, 3, 20_000))
    with pytest.raises(L4SError, match="give fewer leaves"):
        Trees.of(many)
    with pytest.raises(L4SError, match="below 0"):
        Trees.of(DecisionTreeClassifier(max_depth=2).fit(-rows.seen.astype(np.float64) - 1, actions))


def test_one_action_alone(rows: fitting.Rows) -> None:
    model = model_of(fitting.Rows(rows.seen, np.tile([0.0, 1.0], (len(rows.seen), 1))), 8)
    assert model.outputs(rows.seen[:3]).tolist() == [[0, ONE]] * 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], simulated: Any) -> None:
    save_records(tmp_path / "a.rec", simulated)
    out = tmp_path / "tree.bin"
    words = ["live", "model", str(tmp_path / "a.rec"), "--out", str(out)]
    assert cli.main([*words, "--leaves", "32"]) == 0
    body = Model.unpack(out.read_bytes()).body
    assert isinstance(body, Trees) and body.leaves <= 32 and "tree of 32, divergence" in capsys.readouterr().out
    assert cli.main(words) == 0
    body = Model.unpack(out.read_bytes()).body
    assert isinstance(body, Trees) and body.leaves < 256  # few are best for what is held out
    assert cli.main([*words, "--decided-by", "agent"]) == 2
    assert "no row bears all features and a decision of the agent" in capsys.readouterr().err
    save_records(tmp_path / "b.rec", log_of(10), present=frozenset({"queue_type", "action"}))
    assert cli.main(["live", "model", str(tmp_path / "b.rec"), "--out", str(out)]) == 2
