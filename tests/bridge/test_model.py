"""Integer models: they compute what their teachers do, and a file is what it says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from l4s_gym.bridge import model as models
from l4s_gym.bridge.fixed import LARGEST, LEAF, MOST_BYTES, ONE, SAME, SEEN_BITS, UNIT, clean, log2, power
from l4s_gym.bridge.model import Cells, Inputs, Layers, Lines, Memory, Model, Trees
from l4s_gym.envs.prob import probabilities
from l4s_gym.envs.tune import HIGHEST, LOWEST, factors
from l4s_gym.errors import L4SError
from l4s_gym.forms import FORMS
from l4s_gym.schema import MAX_PROB, OBS_HIGH, OBS_SCALE, scale_observation

HIGH = np.rint(OBS_HIGH * OBS_SCALE).astype(np.int64)
AVERAGES = (2.0, 8.0)


def raw_rows(form: str, count: int, seed: int = 0) -> Any:
    """Raw features (count, F) of all sizes."""
    rng = np.random.default_rng(seed)
    if form == "packet":
        raw = np.expm1(rng.uniform(0.0, np.log1p(1.5 * HIGH), (count, 8))).astype(np.int64)
        raw[:, 0] = rng.integers(0, 2, count)
        raw[:, 2] = np.minimum(raw[:, 2], MAX_PROB)
        return raw
    high = [each.high for each in FORMS[form].features]
    return (np.expm1(rng.uniform(0.0, np.log1p(high), (count, len(high)))) * (1 << SEEN_BITS)).astype(np.int64)


def random_trees(form: str, leaves: int, roots: int = 1, seed: int = 0, scores: bool = False) -> Model:
    """A model of random trees."""
    rng = np.random.default_rng(seed)
    averages = () if form == "packet" else AVERAGES
    interval_ms = 0.0 if form == "packet" else 16.0
    seen = Memory(form, averages, interval_ms).all(raw_rows(form, 500, seed))
    cuts = [clean(seen[:, k].astype(float), k, plain=form != "packet") for k in range(seen.shape[1])]
    feature: list[int] = [0] * roots
    low: list[int] = [0] * roots
    threshold: list[int] = [0] * roots
    waiting = list(range(roots))
    while len(waiting) < leaves:
        at = waiting.pop(0)
        feature[at] = int(rng.integers(seen.shape[1]))
        threshold[at] = max(int(rng.choice(cuts[feature[at]])), 0)
        low[at] = len(feature)
        waiting += [len(feature), len(feature) + 1]
        for column in (feature, low, threshold):
            column += [0, 0]
    for number, at in enumerate(waiting):
        feature[at], low[at], threshold[at] = LEAF, number, 0
    outputs = 3 if scores else len(FORMS[form].low) or 2
    most = 4 * SAME if scores else SAME if form != "packet" else ONE >> 3
    least = 0 if form == "packet" and not scores else -most
    values = rng.integers(3 * least // roots, 3 * most // roots, (leaves, outputs))
    body = Trees(
        np.array(feature, np.uint8), np.array(threshold), np.array(low, np.uint16), values.astype(np.int32), roots
    )
    return Model(form, Inputs(averages), body, interval_ms)


def random_layers(form: str, *hidden: int, seed: int = 0) -> Model:
    """A model of random layers."""
    rng = np.random.default_rng(seed)
    averages = () if form == "packet" else AVERAGES
    interval_ms = 0.0 if form == "packet" else 16.0
    raw = raw_rows(form, 500, seed)
    seen = Memory(form, averages, interval_ms).all(raw)
    scaled = Cells.fitted(models.observed(raw)) if form == "packet" else Lines.fitted(seen)
    sizes = [seen.shape[1], *hidden, len(FORMS[form].low) or 3]
    pairs = itertools.pairwise(sizes)
    from l4s_gym.bridge.layers import rounded_layer

    rounded = [rounded_layer(rng.normal(0.0, 1.2 / np.sqrt(m), (n, m)), rng.normal(0.0, 0.3, n)) for m, n in pairs]
    return Model(form, Inputs(averages, scaled), Layers(*map(tuple, zip(*rounded, strict=True))), interval_ms)


def every_kind() -> Sequence[Model]:
    """Models of each form and body."""
    made = [random_trees("packet", 200), random_trees("packet", 300, 20), random_trees("packet", 300, 20, scores=True)]
    for form in ("probability", "parameters"):
        made += [random_trees(form, 100), random_trees(form, 200, 10), random_layers(form), random_layers(form, 64, 64)]
    return [*made, random_layers("packet"), random_layers("packet", 64, 64)]


KINDS = every_kind()
EVERY = pytest.mark.parametrize("model", KINDS, ids=[f"{k}-{str(m).rsplit(' ', 1)[0]}" for k, m in enumerate(KINDS)])


def test_logarithm_and_power() -> None:
    x = np.concatenate((np.arange(1, 5000), np.exp(np.linspace(0, np.log(2.0**40), 5000)).astype(np.int64)))
    np.testing.assert_allclose(log2(x) / (1 << SEEN_BITS), np.log2(x), atol=5e-5)
    assert (np.diff(log2(np.arange(1 << 20, 1 << 21, 7))) >= 0).all()
    e = np.arange(-31 << 16, 8 << 16, 331)
    np.testing.assert_allclose(power(e) / ONE, 2.0 ** (e / SAME), rtol=2e-5, atol=1.0 / ONE)
    assert power(np.array([0, SAME, -SAME])).tolist() == [ONE, 2 * ONE, ONE // 2]


@EVERY
def test_a_file_is_read_as_it_was_written(model: Model) -> None:
    data = model.pack()
    again = Model.unpack(data)
    raw = raw_rows(model.form, 500, 1)
    assert len(data) <= MOST_BYTES and again.pack() == data and str(again) == str(model)
    np.testing.assert_array_equal(again.outputs(raw), model.outputs(raw))
    assert len(np.unique(model.outputs(raw), axis=0)) > 5


@EVERY
def test_outputs_are_in_their_bounds(model: Model) -> None:
    found = model.outputs(raw_rows(model.form, 2000, 2))
    assert found.shape == (2000, {"packet": 2, "probability": 2, "parameters": 5}[model.form])
    low, high = (LOWEST * SAME, HIGHEST * SAME) if model.form == "parameters" else (0, ONE)
    assert (found >= 0.9999 * low).all() and (found <= 1.0001 * high).all()
    if model.form == "packet":
        assert (found.sum(axis=1) <= ONE).all()


@pytest.mark.parametrize("body", [pytest.param("trees", marks=pytest.mark.slow), "layers"])
def test_float32_hides_nothing(body: str) -> None:
    """What an agent in the simulator sees is less than what a kernel knows; both decide the same."""
    model = random_trees("packet", 2000) if body == "trees" else random_layers("packet", 16)
    raw = raw_rows("packet", 100_000, 3)
    nodes = np.flatnonzero(model.body.feature != LEAF) if isinstance(model.body, Trees) else np.zeros(0, int)
    for row, node in enumerate(np.resize(nodes, 2 * len(nodes))):  # around thresholds
        feature, cut = model.body.feature[node], model.body.threshold[node]  # type: ignore[union-attr]
        raw[row, feature] = np.clip(cut - 20 + row % 41, 0, LARGEST)
    seen = models.raw_of(scale_observation(raw), "packet")
    assert (seen != raw).any()
    np.testing.assert_array_equal(model.outputs(raw), model.outputs(seen))
    np.testing.assert_array_equal(models.observed(seen), seen)


def test_trees_of_scikit_learn() -> None:
    trees = pytest.importorskip("sklearn.tree", reason="needs l4s-gym[data]")
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    raw = models.observed(raw_rows("packet", 4000))
    actions = (raw[:, 3] > 20_000).astype(int) + (raw[:, 7] > 700)
    for fitted in (trees.DecisionTreeClassifier(max_leaf_nodes=200), RandomForestClassifier(10, max_leaf_nodes=50)):
        fitted.fit(raw, np.where(np.arange(len(raw)) % 7 == 0, 0, actions))
        model = Model("packet", Inputs(), Trees.of(fitted))
        np.testing.assert_allclose(model.outputs(raw) / ONE, fitted.predict_proba(raw)[:, 1:], atol=1e-8)
    wanted = np.random.default_rng(0).uniform(-1.2, 1.2, (4000, 5))
    seen = Memory("parameters", AVERAGES, 16.0).all(raw_rows("parameters", 4000))
    for fitted in (trees.DecisionTreeRegressor(max_leaf_nodes=100), RandomForestRegressor(5, max_leaf_nodes=50)):
        fitted.fit(seen, wanted)
        model = Model("parameters", Inputs(AVERAGES), Trees.of(fitted, "parameters"), 16.0)
        np.testing.assert_allclose(model.decide(seen) / SAME, factors(fitted.predict(seen).clip(-1, 1)), rtol=3e-4)


def boosted(feature: int, threshold: float, low: float, high: float) -> dict[str, Any]:
    """A tree as LightGBM dumps it."""
    return {
        "tree_structure": {
            "split_feature": feature, "threshold": threshold, "decision_type": "<=",
            "left_child": {"leaf_value": low}, "right_child": {"leaf_value": high},
        }
    }  # fmt: skip


def test_trees_of_lightgbm() -> None:
    first = [boosted(3, 1000.5, 0.1, 0.2), boosted(7, 999.99, -1.0, 2.0), boosted(0, 1e-35, 0.0, -3.0)]
    dump = {"num_class": 3, "tree_info": [*first, *first]}
    raw = np.zeros((4, 8), np.int64)
    raw[:, 3], raw[:, 7], raw[:, 0] = [1000, 1001, 0, 0], [999, 1000, 1000, 10], [0, 1, 0, 1]
    scores = 2 * np.array([[0.1, -1, 0], [0.2, 2, -3], [0.1, 2, 0], [0.1, -1, -3]])
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    found = Model("packet", Inputs(), Trees.of(dump)).outputs(raw)
    np.testing.assert_allclose(found / ONE, shares[:, 1:], rtol=2e-4)
    both = [{"num_class": 1, "tree_info": [boosted(k, 5.5, -0.5, 0.25)]} for k in range(2)]
    model = Model("probability", Inputs(), Trees.of(both, "probability"), 16.0)
    seen = np.array([[5, 5], [5, 6], [6, 5]])
    wanted = probabilities(np.where(seen > 5, 0.25, -0.5))
    np.testing.assert_allclose(model.decide(np.pad(seen, ((0, 0), (0, 10)))) / ONE, wanted, rtol=2e-4)
    with pytest.raises(L4SError, match="for 1 numbers"):
        Trees.of(both[0])


def test_layers_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="needs l4s-gym[llm]")
    from torch import nn

    torch.manual_seed(0)
    raw = models.observed(raw_rows("packet", 2000))
    cells = Cells.fitted(raw)
    module = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    found = Model("packet", Inputs(scaled=cells), Layers.of(module)).outputs(raw)
    wanted = torch.softmax(module(torch.tensor(cells(raw) / UNIT, dtype=torch.float32)), 1)
    np.testing.assert_allclose(found / ONE, wanted[:, 1:].detach(), atol=4e-3)
    seen = Memory("parameters", AVERAGES, 16.0).all(raw_rows("parameters", 2000))
    lines = Lines.fitted(seen)
    linear = nn.Linear(87, 5)
    model = Model("parameters", Inputs(AVERAGES, lines), Layers.of(linear, "parameters"), 16.0)
    actions = linear(torch.tensor(lines(seen) / UNIT, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(model.decide(seen) / SAME, factors(actions.clip(-1, 1)), rtol=0.05)
    with pytest.raises(L4SError, match="layers Linear, Tanh"):
        Layers.of(nn.Sequential(nn.Linear(8, 3), nn.Tanh()))


def test_averages_are_those_of_the_teacher() -> None:
    from l4s_gym.agents.onestep import Memory as Teacher

    obs = np.abs(np.random.default_rng(0).normal(0.0, 3.0, (500, 29))).astype(np.float32)
    wanted = Teacher(16.0, AVERAGES).all(obs) / np.log(2.0)
    found = Memory("parameters", AVERAGES, 16.0).all(models.raw_of(obs, "parameters")) / (1 << SEEN_BITS)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_files_that_are_none() -> None:
    model = random_trees("packet", 20)
    data = model.pack()
    changed = {"": b"", "not a model": b"x" + data[1:], "version 7": data[:4] + b"\7" + data[5:], "tells": data[:-1]}
    for says, wrong in changed.items():
        with pytest.raises(L4SError, match=says or "not a model"):
            Model.unpack(wrong)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        try:
            assert Model.unpack(bytes(damaged)).pack() == bytes(damaged)
        except L4SError as error:
            assert str(error).startswith(("model: ", "unknown form"))
    with pytest.raises(L4SError, match="at most 100000 fit"):
        random_layers("packet", 256, 256, 256).pack()
