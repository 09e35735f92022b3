"""Trees of integers, made of those that scikit-learn or LightGBM has fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.bridge.fixed import LARGEST, LEAF, MOST_AVERAGES, MOST_BYTES, ONE, REMEDY, SAME, Integers, clean
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET
from l4s_gym.schema import DROP, ENQUEUE, MARK, OBS_SCALE


@dataclass(frozen=True, eq=False)
class Trees:
    """Trees whose leaves' values are added; one tree or a forest.

    Attributes:
        feature: Of what is seen, that a node compares (N,); `LEAF`: the node is a leaf.
        threshold: The way goes to node `low` if what is seen <= threshold, else to node `low` + 1 (N,), 0 to 2^40 - 1.
        low: Number of a node's first child (N,): the children of all nodes are, in their order, all nodes but the
            roots. Of a leaf the number of its values.
        values: Of each leaf (L, K) int32. With K = 2 in the packet form drop and mark in 2^-30; with K = 3 scores of
            enqueue, drop and mark in 2^-16, base 2. In the interval forms the numbers of an action, in 2^-16.
        roots: Number of trees: the first so many nodes are their roots.
    """

    feature: npt.NDArray[np.uint8]
    threshold: Integers
    low: npt.NDArray[np.uint16]
    values: npt.NDArray[np.int32]
    roots: int = 1

    @classmethod
    def of(cls, fitted: Any, form: str = PACKET) -> Self:
        """Make the trees of a fitted model, whose inputs were what is seen (T, D).

        Args:
            fitted: A classifier of scikit-learn (packet form; classes among 0, 1, 2), one tree or a forest; a regressor
                of it with K outputs, actions (interval forms); a booster of LightGBM with three classes (packet form);
                or a list of K boosters, one for each number of an action.
            form: The form.

        Raises:
            L4SError: It does not fit the form, or the file.
        """
        found = _boosted(fitted, form) if _is_boosted(fitted) else _of_sklearn(fitted, form)
        features = len(forms.get(form).features) * (1 + MOST_AVERAGES) or 8
        if max((each.feature.max(initial=0) for each in found), default=0) >= features:
            raise L4SError(f"model: a tree of other features than those of the form {form!r}: fit it on what is seen")
        return cls(*_joined(found, form), roots=len(found))

    @property
    def parameters(self) -> int:
        """Number of nodes."""
        return len(self.low)

    @property
    def leaves(self) -> int:
        """Number of leaves."""
        return len(self.values)

    def __call__(self, seen: Integers) -> Integers:
        """Return the sums of the values (..., K) of what is seen (..., D)."""
        total = np.zeros((*seen.shape[:-1], self.values.shape[1]), np.int64)
        for root in range(self.roots):
            at = np.full(seen.shape[:-1], root)
            while (inner := self.feature[at] != LEAF).any():
                feature = np.where(inner, self.feature[at], 0)
                value = np.take_along_axis(seen, feature[..., None], -1)[..., 0]
                at = np.where(inner, self.low[at] + (value > self.threshold[at]), at)
            total += self.values[self.low[at]]
        return total

    def pack(self) -> bytes:
        """Return the body's bytes: a node is threshold + low x 2^40 + feature x 2^56."""
        nodes = self.threshold.astype(np.uint64)
        nodes |= self.low.astype(np.uint64) << np.uint64(40) | self.feature.astype(np.uint64) << np.uint64(56)
        return nodes.astype("<u8").tobytes() + self.values.astype("<i4").tobytes()

    @classmethod
    def unpack(cls, head: Any, data: bytes) -> Self:
        """The reverse of `pack`."""
        count, leaves, outputs = int(head["nodes"]), int(head["leaves"]), int(head["outputs"])
        nodes = np.frombuffer(data, "<u8", count)
        values = np.frombuffer(data, "<i4", leaves * outputs, 8 * count).reshape(leaves, outputs)
        feature, low = (nodes >> np.uint64(56)).astype(np.uint8), (nodes >> np.uint64(40)).astype(np.uint16)
        return cls(feature, (nodes & np.uint64(LARGEST)).astype(np.int64), low, values, int(head["roots"]))

    def check(self, inputs: int) -> None:
        """Check all numbers.

        Raises:
            L4SError: A node is wrong.
        """
        inner = self.feature != LEAF
        low, count = self.low.astype(np.int64), len(self.low)
        wanted = self.roots + 2 * (np.cumsum(inner) - 1)
        wrong = inner & ((self.feature >= inputs) | (low != wanted) | (low <= np.arange(count)))
        wrong |= ~inner & (low >= len(self.values))
        if not 1 <= self.roots <= count or wrong.any() or self.roots + 2 * inner.sum() != count:
            raise L4SError(f"model: node {wrong.argmax()} of {count} is wrong: {REMEDY}")


@dataclass(frozen=True)
class _Tree:
    """A tree as its library has it; a leaf has no left child (-1).

    Attributes:
        feature, left, right: (N,).
        threshold: The way goes left at <= (N,).
        values: Of each node, (N, K), in the unit of the file.
    """

    feature: Integers
    threshold: npt.NDArray[np.float64]
    left: Integers
    right: Integers
    values: Integers


def _joined(trees: Sequence[_Tree], form: str) -> tuple[Any, Any, Any, Any]:
    """The fields of `Trees`: roots first, children side by side."""
    order: list[tuple[int, int]] = [(k, 0) for k in range(len(trees))]
    first: list[int] = []
    at = 0
    while at < len(order):  # breadth first
        k, node = order[at]
        left, right = int(trees[k].left[node]), int(trees[k].right[node])
        first.append(-1 if left < 0 else len(order))
        if left >= 0:
            order += [(k, left), (k, right)]
        at += 1
    low, inner = np.array(first), np.array(first) >= 0
    if len(low) > 65_535 or 8 * len(low) > MOST_BYTES:
        raise L4SError(f"model: {len(low)} nodes are too many for {MOST_BYTES} bytes: give fewer leaves or trees")
    of = np.array(order)
    feature = np.array([trees[k].feature[node] for k, node in order], np.int64)
    cut = np.array([trees[k].threshold[node] for k, node in order])
    threshold = np.zeros(len(low), np.int64)
    for each in np.unique(feature[inner]):
        chosen = inner & (feature == each)
        threshold[chosen] = clean(cut[chosen], int(each), plain=form != PACKET)
    if (threshold < 0).any():
        raise L4SError("model: a threshold is below 0: fit the trees on what is seen, which is never negative")
    values = np.array([trees[k].values[node] for k, node in of[~inner]]).reshape(int((~inner).sum()), -1)
    low[~inner] = np.arange(len(values))
    feature[~inner] = LEAF
    return feature.astype(np.uint8), threshold, low.astype(np.uint16), values.astype(np.int32)


def _of_sklearn(fitted: Any, form: str) -> list[_Tree]:
    every = list(np.ravel(getattr(fitted, "estimators_", [fitted])))
    found = []
    for each in every:
        inner = each.tree_
        values = inner.value[:, 0, :] if form == PACKET else inner.value[:, :, 0]
        if form == PACKET:
            classes = [int(c) for c in getattr(fitted, "classes_", ())]
            if fitted.n_features_in_ != len(OBS_SCALE) or not classes or not set(classes) <= {ENQUEUE, DROP, MARK}:
                raise L4SError("model: the tree is not one of 8 features and the actions 0, 1, 2: fit it on such rows")
            shares = np.zeros((len(values), 3))
            shares[:, classes] = values / values.sum(axis=1, keepdims=True)
            values = np.floor(shares[:, 1:] * (ONE >> 1) / len(every))
        else:
            values = np.rint(values * SAME / len(every))
        threshold = inner.threshold.astype(np.float64)
        parts = (inner.feature, threshold, inner.children_left, inner.children_right, values)
        found.append(_Tree(*(np.asarray(part) for part in parts)))
    return found


def _is_boosted(fitted: Any) -> bool:
    first = fitted[0] if isinstance(fitted, list | tuple) and fitted else fitted
    return hasattr(first, "dump_model") or (isinstance(first, dict) and "tree_info" in first)


def _boosted(fitted: Any, form: str) -> list[_Tree]:
    """Trees of LightGBM: of class k where the k-th is of three classes, of number k where it is the k-th of a list."""
    every = list(fitted) if isinstance(fitted, list | tuple) else [fitted]
    dumps = [each if isinstance(each, dict) else each.dump_model() for each in every]
    outputs = 3 if form == PACKET else len(forms.get(form).low)
    unit = SAME / math.log(2.0) if form == PACKET else SAME
    classes = dumps[0].get("num_class", 1) if form == PACKET else len(dumps)
    if classes != outputs:
        raise L4SError(f"model: boosted trees for {classes} numbers: the form {form!r} takes {outputs}")
    found = []
    for place, dump in enumerate(dumps):
        for number, info in enumerate(dump["tree_info"]):
            column = number % 3 if form == PACKET else place
            found.append(_boosted_tree(info["tree_structure"], column, outputs, unit))
    return found


def _boosted_tree(structure: dict[str, Any], column: int, outputs: int, unit: float) -> _Tree:
    rows: list[tuple[int, float, int, int]] = []
    values: list[list[float]] = []
    waiting = [(structure, -1, 0)]
    while waiting:
        node, parent, side = waiting.pop()
        at = len(rows)
        if parent >= 0:
            rows[parent] = (*rows[parent][: 2 + side], at, *rows[parent][3 + side :])  # type: ignore[assignment]
        told = [0.0] * outputs
        if "split_feature" in node:
            if node.get("decision_type", "<=") != "<=":
                raise L4SError("model: a tree splits by categories: give no categorical features")
            rows.append((int(node["split_feature"]), float(node["threshold"]), -1, -1))
            waiting += [(node["left_child"], at, 0), (node["right_child"], at, 1)]
        else:
            told[column] = round(unit * float(node["leaf_value"]))
            rows.append((0, 0.0, -1, -1))
        values.append(told)
    feature, threshold, left, right = (np.array(column) for column in zip(*rows, strict=True))
    return _Tree(feature, threshold.astype(np.float64), left, right, np.array(values))
