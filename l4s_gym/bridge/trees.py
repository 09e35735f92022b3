"""An integer decision tree for the kernel: distilled from logged decisions, packed as `struct l4s_model`.

A kernel has no floating point, so the thresholds are integers in the record's units, and the probabilities of drop and
mark integers in 2^-31. A tree of scikit-learn compares float32 values; here a threshold is the largest integer that it
would send the same way, so that both agree on every integer (below 2^53).

The tree sees the features of `schema.OBSERVED` before the decision. The kernel knows all of them at any time. Logged
rows may lack the accumulated probability (`causal`), and a tree must not learn to tell such rows apart: they are left
out, as are rows that an agent decided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.causal import CausalStream
from l4s_gym.data.stream import Records
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.schema import DROP, ENQUEUE, MARK, OBSERVED

MAX_NODES: Final = 4096
LEAF: Final = 255
ONE: Final = 1 << 31
"""Probability 1."""
NODE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("threshold", "<u8"), ("drop", "<u4"), ("mark", "<u4"), ("low", "<u2"), ("high", "<u2"), ("feature", "u1"),
        ("reserved", "u1", (3,)),
    ]
)  # fmt: skip
"""`struct l4s_node`."""
ROWS: Final = 500_000
"""Largest number of rows that `distil` uses."""
_LARGEST: Final = (1 << 63) - 1
_HEAD: Final = np.dtype([("count", "<u4"), ("reserved", "<u4")])


@dataclass(frozen=True)
class Model:
    """A packed tree.

    Attributes:
        nodes: `NODE` (n,); children have larger numbers than their parents.
    """

    nodes: npt.NDArray[np.void]

    def pack(self) -> bytes:
        """Return the bytes of `struct l4s_model`, up to the last used node."""
        head = np.zeros(1, _HEAD)
        head["count"] = len(self.nodes)
        return head.tobytes() + self.nodes.tobytes()

    @classmethod
    def unpack(cls, data: bytes) -> Model:
        """The reverse of `pack`.

        Raises:
            L4SError: The bytes are no such tree.
        """
        count = int(np.frombuffer(data[: _HEAD.itemsize], _HEAD)["count"][0]) if len(data) >= _HEAD.itemsize else 0
        if not 1 <= count <= MAX_NODES or len(data) < _HEAD.itemsize + count * NODE.itemsize:
            raise L4SError("model: its size does not fit its count of nodes: make it by `l4s-gym live model`")
        model = cls(np.frombuffer(data, NODE, count, _HEAD.itemsize))
        at = np.arange(count)
        inner = model.nodes["feature"] != LEAF
        low, high = model.nodes["low"].astype(np.int64), model.nodes["high"].astype(np.int64)
        wrong = inner & ((model.nodes["feature"] >= len(OBSERVED)) | (np.minimum(low, high) <= at))
        wrong |= inner & (np.maximum(low, high) >= count)
        wrong |= ~inner & (model.nodes["drop"].astype(np.int64) + model.nodes["mark"] > ONE)
        if wrong.any():
            raise L4SError(f"model: node {wrong.argmax()} is wrong: make it by `l4s-gym live model`")
        return model

    def probabilities(self, raw: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
        """Drop and mark (T, 2) in 2^-31 for features (T, 8) in the record's units: what the kernel computes."""
        at = np.zeros(len(raw), np.int64)
        rows = np.arange(len(raw))
        while (inner := self.nodes["feature"][at] != LEAF).any():
            node = self.nodes[at]
            value = raw[rows, np.where(inner, node["feature"], 0)]
            step = np.where(value <= node["threshold"], node["low"], node["high"])
            at = np.where(inner, step, at)
        return np.stack([self.nodes["drop"][at], self.nodes["mark"][at]], axis=1)

    @property
    def leaves(self) -> int:
        """Number of leaves."""
        return int((self.nodes["feature"] == LEAF).sum())


def _last_low(threshold: float) -> int:
    """The largest integer in 0 to 2^63 - 1 that float32 arithmetic sends to the low side; -1: none."""
    low, high = -1, _LARGEST
    while low < high:
        middle = low + (high - low + 1) // 2
        if float(np.float32(middle)) <= threshold:
            low = middle
        else:
            high = middle - 1
    return low


def export_tree(tree: Any) -> Model:
    """Pack a fitted `sklearn.tree.DecisionTreeClassifier` of the actions on raw features.

    Args:
        tree: Fitted on (T, 8) integers of `schema.OBSERVED` in the record's units; classes among 0, 1, 2.

    Raises:
        L4SError: It does not fit `struct l4s_model`.
    """
    inner = tree.tree_
    classes = [int(c) for c in tree.classes_]
    if tree.n_features_in_ != len(OBSERVED) or not set(classes) <= {ENQUEUE, DROP, MARK}:
        raise L4SError("model: the tree is not one of 8 features and the actions 0, 1, 2: fit it by `distil`")
    if inner.node_count > MAX_NODES:
        raise L4SError(f"model: {inner.node_count} nodes, at most {MAX_NODES} fit: give fewer leaves")
    shares = inner.value[:, 0, :] / inner.value[:, 0, :].sum(axis=1, keepdims=True)
    nodes = np.zeros(inner.node_count, NODE)
    nodes["feature"] = LEAF
    number, waiting = 1, deque([(0, 0)])  # node of the tree, and its number here
    while waiting:
        old, new = waiting.popleft()
        if inner.children_left[old] < 0:
            units = {c: round(float(share) * ONE) for c, share in zip(classes, shares[old], strict=True)}
            nodes[new]["drop"] = units.get(DROP, 0)
            nodes[new]["mark"] = min(units.get(MARK, 0), ONE - units.get(DROP, 0))
            continue
        last = _last_low(float(inner.threshold[old]))
        if last < 0:
            raise L4SError("model: a threshold is below 0: fit the tree on features in the record's units")
        nodes[new]["feature"], nodes[new]["threshold"] = inner.feature[old], last
        nodes[new]["low"], nodes[new]["high"] = number, number + 1
        waiting += [(int(inner.children_left[old]), number), (int(inner.children_right[old]), number + 1)]
        number += 2
    return Model(nodes)


def training_rows(
    blocks: Iterable[Records], present: frozenset[str], rows: int = ROWS
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Features (T, 8) and logged actions (T,) of the rows that a tree may learn from, the first `rows` of them."""
    if "action" not in present:
        raise L4SError("model: the rows bear no actions: give logged decisions")
    causal = CausalStream(present)
    parts: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]] = []
    count = 0
    for records in blocks:
        raw = causal.observe(records)
        known = ~np.isnan(raw).any(axis=1) & (records["decided_by"] == 0)
        if count < rows:  # the stream is read to its end all the same: its report is complete then
            known[np.cumsum(known) > rows - count] = False
            parts.append((raw[known].astype(np.uint64), records["action"][known].astype(np.int64)))
            count += int(known.sum())
    if not count:
        raise L4SError("model: no row bears all features and a decision of the native law: give complete records")
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def distil(raw: npt.NDArray[np.uint64], actions: npt.NDArray[np.int64], *, max_leaf_nodes: int = 256) -> Any:
    """Fit a tree whose leaves hold the shares of the logged actions.

    Args:
        raw: Features (T, 8) in the record's units.
        actions: What was decided (T,).
        max_leaf_nodes: At most so many leaves, 2 to 2048.

    Returns:
        The fitted `sklearn.tree.DecisionTreeClassifier`.
    """
    if not 2 <= max_leaf_nodes <= MAX_NODES // 2:
        raise L4SError(f"leaves={max_leaf_nodes}: give 2 to {MAX_NODES // 2}")
    # Leaves of some size: a share of few rows is no probability.
    tree = optional("sklearn.tree", "data").DecisionTreeClassifier(
        criterion="log_loss", max_leaf_nodes=max_leaf_nodes, min_samples_leaf=20, random_state=0
    )
    return tree.fit(raw, actions)
