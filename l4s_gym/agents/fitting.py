"""Students of labelled episodes: a tree, a forest, a perceptron or a linear rule, in integers.

A student sees what a kernel can compute (`l4s_gym.bridge.model.Memory`). The number of leaves, and when a perceptron's
training stops, are chosen on held-out episodes. A leaf counts one row more, the mean of all labels: few rows would be
too sure. Weights are rounded to int8 in each step of a training, and the gradients pass through the rounding (Bengio
et al., "Estimating or propagating gradients through stochastic neurons for conditional computation", 2013).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from l4s_gym.agents.d3rlpy_agents import seeded
from l4s_gym.agents.logged import split
from l4s_gym.agents.protocol import Floats
from l4s_gym.agents.student import actions_of
from l4s_gym.agents.teaching import Lessons, whole
from l4s_gym.bridge.fixed import MOST_BYTES, ONE, UNIT, Integers, observed, raw_of
from l4s_gym.bridge.layers import Cells, Layers, Lines, shifts_of
from l4s_gym.bridge.model import Inputs, Memory, Model, Trees
from l4s_gym.data.causal import CausalStream
from l4s_gym.data.stream import Records, RunSplitter
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.schema import ACTIONS, DECIDED_BY, DROP

if TYPE_CHECKING:
    import torch

    from l4s_gym.agents.distil import Config

MOST_ROWS: Final = 500_000
"""Rows of a log that are read."""
_ROWS: Final = 20
"""Least rows of a leaf."""
_LEAST: Final = 1e-9
"""Least probability in a logarithm."""
_RARE: Final = 1e-5
"""Least probability of an action with which a training begins."""
_LOOKS: Final = 20
"""How often a training looks at what is held out."""


@dataclass(frozen=True)
class Rows:
    """Labelled rows: what is seen (T, D), and labels (T, K)."""

    seen: Integers
    labels: Floats


@dataclass(frozen=True)
class Fitted:
    """A student.

    Attributes:
        model: The model.
        size: Leaves of a tree, or hidden units.
        loss: On the rows held out: the mean square of the differences of an action; of probabilities the
            Kullback-Leibler divergence, nat.
    """

    model: Model
    size: int
    loss: float


def rows_of(lessons: Lessons, form: str, averages_s: Sequence[float], interval_ms: float) -> list[Rows]:
    """Return the rows of each episode, as a kernel sees them."""
    memory = Memory(form, averages_s, interval_ms)
    seen, there = memory.all(raw_of(lessons.observations, form)), lessons.there
    return [Rows(s[t], y[t]) for s, t, y in zip(seen, there, lessons.labels, strict=True)]


def logged_rows(
    blocks: Iterable[Records], present: frozenset[str], decided_by: str = DECIDED_BY[0], most: int = MOST_ROWS
) -> list[Rows]:
    """Return the rows of each run of a log of packets, as a kernel sees them; a label is the action that was decided.

    Logged rows may lack the accumulated probability (`l4s_gym.data.causal`), and a student must not learn to tell such
    rows apart: they are left out.

    Args:
        blocks: The log.
        present: Names of the fields that it has.
        decided_by: Whose decisions, one of `DECIDED_BY`.
        most: At most so many rows, the first ones.

    Raises:
        L4SError: There are none.
    """
    if "action" not in present:
        raise L4SError("model: the rows bear no actions: give logged decisions")
    causal, runs, left = CausalStream(present), RunSplitter(present), most
    found: list[list[Rows]] = [[]]
    for records in blocks:
        raw, starts = causal.observe(records), runs.starts(records)
        known = ~np.isnan(raw).any(axis=1) & (records["decided_by"] == DECIDED_BY.index(decided_by))
        known &= np.cumsum(known) <= left
        left -= int(known.sum())
        labels = np.eye(len(ACTIONS))[records["action"]][:, DROP:]
        for number, part in enumerate(np.split(np.arange(len(records)), starts)):
            found += [[]] if number else []
            chosen = part[known[part]]
            found[-1].append(Rows(observed(raw[chosen].astype(np.int64)), labels[chosen]))
    rows = [joined(each) for each in found if each]
    if left == most:
        raise L4SError(f"model: no row bears all features and a decision of the {decided_by}: give complete records")
    return [each for each in rows if len(each.seen)]


def parted(runs: Sequence[Rows], share: float) -> tuple[Rows, Rows]:
    """Split runs into what is learned from and what is held out: whole runs, or the end of a single one."""
    parts = split([len(each.seen) for each in runs], share)
    cut = [[Rows(runs[k].seen[a:b], runs[k].labels[a:b]) for k, a, b in stretches] for stretches in parts]
    return joined(cut[0]), joined(cut[1])


def joined(rows: Sequence[Rows]) -> Rows:
    """Join rows."""
    return Rows(np.concatenate([each.seen for each in rows]), np.concatenate([each.labels for each in rows]))


def told(model: Model, seen: Integers) -> Floats:
    """Return what a model says (n, K), in the terms of a label."""
    return model.decide(seen) / ONE if model.form == PACKET else actions_of(model, seen)


def loss_of(model: Model, rows: Rows) -> float:
    """Return the loss of a model, see `Fitted`."""
    found = told(model, rows.seen)
    if model.form != PACKET:
        return float(((found - rows.labels) ** 2).mean())
    return divergence(rows.labels, found)


def divergence(labels: Floats, found: Floats) -> float:
    """Return the mean Kullback-Leibler divergence of labels (n, 2) from other probabilities (n, 2), nat."""
    p, q = (np.maximum(whole(each), _LEAST) for each in (labels, found))
    return float((p * np.log(p / q)).sum(1).mean())


def fit(config: Config, form: str, interval_ms: float, rows: Rows, held: Rows, *, choose: bool = True) -> Fitted:
    """Fit a student.

    Args:
        config: `to` and its settings.
        form: Of the decisions.
        interval_ms: Length of a control interval; 0 in the packet form.
        rows: What it learns from.
        held: What is held out.
        choose: Whether the number of leaves is chosen; else it is the largest that fits. A perceptron or linear rule
            has the full number of steps then, else a fourth.

    Raises:
        L4SError: It does not fit into the file of a model.
    """
    averages = () if form == PACKET else config.memory_s
    if config.to in ("mlp", "linear"):
        steps = config.steps if choose else -(-config.steps // 4)
        return _network(config, form, averages, interval_ms, rows, held, steps)
    count = config.trees if config.to == "forest" else 1
    sizes = [size for size in sorted(config.leaves) if bytes_of(count, size, rows.labels.shape[1]) <= MOST_BYTES]
    if not sizes:
        raise L4SError(f"leaves: {count} trees of {min(config.leaves)} are more than {MOST_BYTES} bytes: give fewer")
    best: Fitted | None = None
    for size in sizes if choose else sizes[-1:]:
        model = Model(form, Inputs(averages), Trees.of(grown(config, form, rows, count, size), form), interval_ms)
        found = Fitted(model, size, loss_of(model, held))
        if best is None or found.loss < best.loss:
            best = found
    assert best is not None
    return best


def bytes_of(trees: int, leaves: int, outputs: int) -> int:
    """Return the most bytes that some trees take in the file of a model, its head included."""
    return 200 + trees * (8 * (2 * leaves - 1) + 4 * outputs * leaves)


def grown(config: Config, form: str, rows: Rows, count: int, leaves: int) -> Any:
    """Return a fitted tree or forest of scikit-learn, with smooth leaves."""
    module = optional("sklearn.ensemble" if count > 1 else "sklearn.tree", "data")
    how: dict[str, Any] = {"max_leaf_nodes": leaves, "random_state": config.seed}
    if count > 1:
        how |= {"n_estimators": count, "max_features": 1 / 3}
    kind = ("RandomForest" if count > 1 else "DecisionTree") + ("Classifier" if form == PACKET else "Regressor")
    how["min_weight_fraction_leaf"] = min(_ROWS / len(rows.seen), 0.5)
    if form == PACKET:  # a row of each action, by its probability
        shares = whole(rows.labels)
        at, action = np.nonzero(shares)
        fitted = getattr(module, kind)(criterion="log_loss", **how).fit(rows.seen[at], action, shares[at, action])
    else:
        fitted = getattr(module, kind)(**how).fit(rows.seen, rows.labels)
    for each in getattr(fitted, "estimators_", [fitted]):
        smooth(each.tree_)
    return fitted


def smooth(tree: Any) -> None:
    """Count one row more in each node of a tree: the mean of all."""
    n = tree.weighted_n_node_samples[:, None, None]
    tree.value[:] = (n * tree.value + tree.value[:1]) / (n + 1.0)


def _network(
    config: Config,
    form: str,
    averages: tuple[float, ...],
    interval_ms: float,
    rows: Rows,
    held: Rows,
    steps: int,
) -> Fitted:
    torch = optional("torch", "baselines", "llm")
    scaled = Cells.fitted(rows.seen) if form == PACKET else Lines.fitted(rows.seen)
    sizes = [rows.seen.shape[1], *([] if config.to == "linear" else config.hidden)]
    outputs = len(ACTIONS) if form == PACKET else rows.labels.shape[1]
    x = torch.tensor(scaled(rows.seen).astype(np.float32) / UNIT)
    y = torch.tensor(whole(rows.labels) if form == PACKET else rows.labels, dtype=torch.float32)
    best: Fitted | None = None
    with seeded(config.seed):
        layers: list[Any] = []
        for wide, narrow in pairwise(sizes):
            layers += [torch.nn.Linear(wide, narrow), torch.nn.ReLU()]
        module = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], outputs))
        mean = y.mean(0)
        module[-1].bias.data = mean.clamp(min=_RARE).log() if form == PACKET else mean  # it begins with the mean label
        optimiser = torch.optim.AdamW(module.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for step in range(1, steps + 1):
            batch = torch.randint(len(x), (config.batch_size,))
            found = forward(module, x[batch], form)
            if form == PACKET:
                loss = torch.nn.functional.cross_entropy(found, y[batch])
            else:
                loss = ((found - y[batch]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % max(steps // _LOOKS, 1) == 0:
                model = Model(form, Inputs(averages, scaled), Layers.of(module, form), interval_ms)
                made = Fitted(model, sum(sizes[1:]), loss_of(model, held))
                if best is None or made.loss < best.loss:
                    best = made
    assert best is not None
    return best


def forward(module: Any, x: torch.Tensor, form: str) -> torch.Tensor:
    """Return the outputs (n, K) of a perceptron as `Layers` computes them, but for the rounding of the outputs."""
    import torch

    def rounded(value: torch.Tensor, unit: torch.Tensor | float, how: Any = torch.round) -> torch.Tensor:
        found: torch.Tensor = value + (how(value / unit) * unit - value).detach()
        return found

    linear = [each for each in module if isinstance(each, torch.nn.Linear)]
    for each in linear:
        last = each is linear[-1]
        base = math.log(2.0) if last and form == PACKET else 1.0
        shifts = shifts_of(each.weight.detach().numpy() / base, each.bias.detach().numpy() / base)
        unit = base * 2.0 ** -torch.tensor(shifts, dtype=torch.float32)
        x = torch.nn.functional.linear(x, rounded(each.weight, unit[:, None]), rounded(each.bias, unit / UNIT))
        if not last:
            x = rounded(torch.relu(x), 1.0 / UNIT, torch.floor).clamp(max=65535 / UNIT)
    return x
