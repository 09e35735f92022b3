"""A tree of logged decisions: the rows that it may learn from, and its fitting.

The tree sees the features of `schema.OBSERVED` before the decision, as an agent in the simulator does. The kernel knows
all of them at any time. Logged rows may lack the accumulated probability (`causal`), and a tree must not learn to tell
such rows apart: they are left out, as are rows that an agent decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from l4s_gym.bridge.fixed import Integers, observed
from l4s_gym.data.causal import CausalStream
from l4s_gym.data.stream import Records
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional

MOST_LEAVES: Final = 4096
"""More do not fit a model."""
ROWS: Final = 500_000
"""Largest number of rows that `distil` uses."""


def training_rows(blocks: Iterable[Records], present: frozenset[str], rows: int = ROWS) -> tuple[Integers, Integers]:
    """Features (T, 8) and logged actions (T,) of the rows that a tree may learn from, the first `rows` of them."""
    if "action" not in present:
        raise L4SError("model: the rows bear no actions: give logged decisions")
    causal = CausalStream(present)
    parts: list[tuple[Integers, Integers]] = []
    count = 0
    for records in blocks:
        raw = causal.observe(records)
        known = ~np.isnan(raw).any(axis=1) & (records["decided_by"] == 0)
        if count < rows:  # the stream is read to its end all the same: its report is complete then
            known[np.cumsum(known) > rows - count] = False
            parts.append((observed(raw[known]), records["action"][known].astype(np.int64)))
            count += int(known.sum())
    if not count:
        raise L4SError("model: no row bears all features and a decision of the native law: give complete records")
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def distil(raw: Integers, actions: Integers, *, max_leaf_nodes: int = 256) -> Any:
    """Fit a tree whose leaves hold the shares of the logged actions.

    Args:
        raw: Features (T, 8) in the record's units.
        actions: What was decided (T,).
        max_leaf_nodes: At most so many leaves, 2 to `MOST_LEAVES`.

    Returns:
        The fitted `sklearn.tree.DecisionTreeClassifier`.
    """
    if not 2 <= max_leaf_nodes <= MOST_LEAVES:
        raise L4SError(f"leaves={max_leaf_nodes}: give 2 to {MOST_LEAVES}")
    # Leaves of some size: a share of few rows is no probability.
    tree = optional("sklearn.tree", "data").DecisionTreeClassifier(
        criterion="log_loss", max_leaf_nodes=max_leaf_nodes, min_samples_leaf=20, random_state=0
    )
    return tree.fit(raw, actions)
