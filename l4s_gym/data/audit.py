"""Can the actions of a log or dataset be read off its features?

The kernel prints some fields after it decided: in the row of a random hit the accumulated probability is 0 already.
Who learns from such rows learns to read the label, and fails on a live queue, where the field is seen before.

A good classifier alone proves no leak: probability and accumulated probability, known before the decision, make some
packets more likely to be hit than others. But the rule of the kernel leaves most hits to a random draw, and that
cannot be foreseen with certainty. So the measure is taken over the rows that are left to chance, those in which the
accumulated probability is below 8.5 (from there on every packet is hit) and the probability at most 0.5:

    told = share of the hits (drop, mark) that are foreseen with 90 % or more
           - share of the enqueued packets of which the same is thought

It is near 0 for features known before the decision, and near 1 where a feature was written after it. Above 0.5 it is
called a leak, and the features are named without which it is gone. (A discipline that leaves nothing to chance, such
as a fixed threshold, can be read off honest features too: the audit then names those.)

Every figure is of rows that the classifier (gradient boosting) has not seen: five contiguous blocks are held out in
turn. A random split would leave the neighbours of a row in the training set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from l4s_gym.data.causal import HIGH
from l4s_gym.data.samples import NAMES, Floats, Ints, Sample
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.schema import ACTIONS, ENQUEUE, MAX_PROB, OBSERVED

Bools = npt.NDArray[np.bool_]
_T = TypeVar("_T")

SURE: Final = 0.9
"""Probability of a hit from which on it counts as foreseen."""
LEAK: Final = 0.5
"""A leak is `told` above this."""
FEWEST: Final = 20
"""Hits left to chance that are needed to tell."""
_FOLDS: Final = 5
_FEWEST_ROWS: Final = 50
_MOST_NAMED: Final = 3
_PROBABILITY: Final = OBSERVED.index("drop_probability")
_ACCUMULATED: Final = OBSERVED.index("accumulated_probability")


@dataclass(frozen=True)
class Feature:
    """What one feature tells.

    Attributes:
        name: Its name.
        alone: Macro-F1 of a small decision tree that sees this feature only.
        shuffled: `told` of the whole when this feature is shuffled among the rows held out.
    """

    name: str
    alone: float
    shuffled: float


@dataclass(frozen=True)
class Findings:
    """What a set of features tells about the actions; shares are 0 to 1.

    Attributes:
        rows: Rows in which all features are known.
        missing: Share of the rows of each action in which one is not.
        majority: Accuracy of always taking the most frequent action.
        accuracy: Accuracy on rows held out.
        macro_f1: Mean F1 over the three actions.
        recall: Of each action; NaN without such rows.
        chance_hits: Hits that the rule leaves to chance.
        told: See the module.
        given_away_by: Features without which `told` is no longer a leak, the most telling first.
        told_without: `told` without these.
        features: Of each feature.
    """

    rows: int
    missing: Mapping[str, float]
    majority: float
    accuracy: float
    macro_f1: float
    recall: Mapping[str, float]
    chance_hits: int
    told: float
    given_away_by: tuple[str, ...]
    told_without: float
    features: tuple[Feature, ...]

    @property
    def leaks(self) -> bool:
        """Whether the labels can be read off the features."""
        return self.chance_hits >= FEWEST and self.told > LEAK

    @property
    def verdict(self) -> str:
        """In words."""
        if self.chance_hits < FEWEST:
            return f"cannot tell: {self.chance_hits} hits are left to chance, {FEWEST} are needed"
        foreseen = f"told {self.told:.3f} of {self.chance_hits} hits left to chance"
        if self.leaks:
            names = " and ".join(self.given_away_by)
            them = "it" if len(self.given_away_by) == 1 else "them"
            return f"LEAK: the labels can be read off {names} ({foreseen}, without {them} {self.told_without:.3f})"
        shares = [share for action, share in self.missing.items() if action != ACTIONS[ENQUEUE]]
        uneven = max(shares, default=0.0) - self.missing[ACTIONS[ENQUEUE]] > 0.1
        note = "; but a value is missing mostly in hits: leave such rows out" if uneven else ""
        return f"no leak: no feature gives the label away ({foreseen}){note}"


@dataclass(frozen=True)
class Audit:
    """What the sets of features of a source tell about its actions."""

    source: str
    findings: Mapping[str, Findings]

    @property
    def verdict(self) -> str:
        """In words, a line for each set."""
        return "\n".join(f"{name}: {found.verdict}" for name, found in self.findings.items())

    def table(self) -> str:
        """All figures and the verdict as text."""
        lines = [f"{self.source}: can the actions be read off the features?"]
        for name, f in self.findings.items():
            recall = ", ".join(f"{action} {share:.3f}" for action, share in f.recall.items())
            missing = ", ".join(f"{action} {share:.2%}" for action, share in f.missing.items())
            lines += [
                f"{name}: {f.rows} rows; a value is missing in: {missing}",
                f"  accuracy {f.accuracy:.3f} (majority {f.majority:.3f}), macro-F1 {f.macro_f1:.3f}, recall: {recall}",
                f"  hits left to chance {f.chance_hits}, told {f.told:.3f} (above {LEAK:g}: a leak)",
                f"  {'':30}{'macro-F1 alone':>16}{'told if shuffled':>18}",
                *(f"  {each.name:30}{each.alone:16.3f}{each.shuffled:18.3f}" for each in f.features),
            ]
        return "\n".join([*lines, self.verdict])

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values, for JSON; None for shares of no rows."""
        findings = {name: {**asdict(f), "leaks": f.leaks, "verdict": f.verdict} for name, f in self.findings.items()}
        for found in findings.values():
            for name in ("missing", "recall"):
                found[name] = {action: None if np.isnan(share) else share for action, share in found[name].items()}
        return {"source": self.source, "findings": findings}


def _probabilities(model: Any, values: Floats) -> Floats:
    """Probabilities of all actions (n, 3), of those too that the model has not seen."""
    found = np.zeros((len(values), len(ACTIONS)))
    found[:, model.classes_] = model.predict_proba(values)
    return found


def _each_fold(rows: int, work: Callable[[Bools], _T]) -> list[_T]:
    """Call `work` with the rows (T,) of each fold that are held out; folds in parallel, each on one thread."""
    limits = optional("threadpoolctl", "data").threadpool_limits

    def alone(fold: int) -> _T:
        held = np.zeros(rows, np.bool_)
        held[fold * rows // _FOLDS : (fold + 1) * rows // _FOLDS] = True
        # Threads that wait for each other lose much where the cores are shared.
        with limits(1):
            return work(held)

    with ThreadPoolExecutor(min(_FOLDS, os.cpu_count() or 1)) as pool:
        return list(pool.map(alone, range(_FOLDS)))


def _held_out(values: Floats, actions: Ints, shuffle: bool) -> list[Floats]:
    """Probabilities of the actions (T, 3) on rows held out: of the whole, then with each of the d columns shuffled."""
    boosting = optional("sklearn.ensemble", "data").HistGradientBoostingClassifier

    def work(held: Bools) -> list[Floats]:
        train, told = values[~held], actions[~held]
        counts = np.bincount(told)[np.unique(told)]
        if len(counts) < 2:
            return [np.eye(len(ACTIONS))[np.full(held.sum(), told[0])]] * (1 + shuffle * values.shape[1])
        useful = np.flatnonzero((train != train[0]).any(axis=0))
        # Early stopping, its default from 10,000 rows on, needs two rows of each action.
        stopping: Any = "auto" if counts.min() > 1 else False
        model = boosting(random_state=0, early_stopping=stopping).fit(train[:, useful], told)
        test = values[held]
        found = [_probabilities(model, test[:, useful])]
        rng = np.random.default_rng(0)
        for column in range(values.shape[1]) if shuffle else ():
            mixed = test.copy()
            mixed[:, column] = rng.permutation(mixed[:, column])
            found.append(_probabilities(model, mixed[:, useful]))
        return found

    return [np.concatenate(parts) for parts in zip(*_each_fold(len(values), work), strict=True)]


def _alone(values: Floats, actions: Ints) -> list[float]:
    """Macro-F1 of a small tree on each of the d columns."""
    tree = optional("sklearn.tree", "data").DecisionTreeClassifier

    def work(held: Bools) -> list[Ints]:
        models = (tree(max_depth=4, random_state=0).fit(column[~held], actions[~held]) for column in columns)
        return [model.predict(column[held]) for model, column in zip(models, columns, strict=True)]

    columns = [values[:, [i]] for i in range(values.shape[1])]
    parts = _each_fold(len(values), work)
    return [macro_f1(actions, np.concatenate(predicted)) for predicted in zip(*parts, strict=True)]


def macro_f1(actions: Ints, predicted: Ints) -> float:
    """Mean F1 over the actions that occur among the true ones (T,) or the predicted ones (T,)."""
    pairs = np.bincount(actions * len(ACTIONS) + predicted, minlength=len(ACTIONS) ** 2).reshape(len(ACTIONS), -1)
    both = pairs.sum(axis=0) + pairs.sum(axis=1)
    return float((2 * pairs.diagonal()[both > 0] / both[both > 0]).mean())


def _told(probabilities: Floats, actions: Ints, chance: Bools) -> float:
    """The measure of the module; 0 without such rows."""
    sure, hit = 1 - probabilities[:, ENQUEUE] >= SURE, actions != ENQUEUE
    shares = [float(sure[chance & rows].mean()) if (chance & rows).any() else 0.0 for rows in (hit, ~hit)]
    return max(shares[0] - shares[1], 0.0)


def _find(actions: Ints, values: Floats) -> Findings:
    there = ~np.isnan(values).all(axis=0)
    unknown = np.isnan(values[:, there]).any(axis=1)
    missing = {name: _share(unknown, actions == action) for action, name in enumerate(ACTIONS)}
    y, x = actions[~unknown], values[~unknown]
    settled = x[:, _ACCUMULATED] + x[:, _PROBABILITY] >= HIGH
    chance = ~settled & ~(x[:, _PROBABILITY] > MAX_PROB / 2)
    chance_hits = int((chance & (y != ENQUEUE)).sum())
    left = np.flatnonzero(there).tolist()
    whole, *shuffled = _held_out(x[:, left], y, True)
    told_shuffled = [_told(p, y, chance) for p in shuffled]
    told = without = _told(whole, y, chance)
    alone = _alone(x[:, left], y)
    features = tuple(Feature(NAMES[i], f, t) for i, f, t in zip(left, alone, told_shuffled, strict=True))
    given_away: list[str] = []
    while without > LEAK and chance_hits >= FEWEST and len(given_away) < _MOST_NAMED and len(left) > 1:
        if given_away:
            told_shuffled = [_told(p, y, chance) for p in _held_out(x[:, left], y, True)[1:]]
        given_away.append(NAMES[left.pop(int(np.argmin(told_shuffled)))])
        without = _told(_held_out(x[:, left], y, False)[0], y, chance)
    predicted = whole.argmax(axis=1)
    return Findings(
        rows=len(y),
        missing=missing,
        majority=float(np.bincount(y).max() / len(y)),
        accuracy=float((predicted == y).mean()),
        macro_f1=macro_f1(y, predicted),
        recall={name: _share(predicted == action, y == action) for action, name in enumerate(ACTIONS)},
        chance_hits=chance_hits,
        told=told,
        given_away_by=tuple(given_away),
        told_without=without,
        features=features,
    )


def _share(what: npt.ArrayLike, among: npt.ArrayLike) -> float:
    chosen = np.asarray(what)[np.asarray(among)]
    return float(chosen.mean()) if chosen.size else float("nan")


def audit(sample: Sample) -> Audit:
    """Tell whether the actions of a sample can be read off its features.

    Args:
        sample: The rows.

    Raises:
        L4SError: There are too few rows, or scikit-learn is not installed.
    """
    findings = {}
    for name, values in sample.tables.items():
        there = ~np.isnan(values).all(axis=0)
        known = int((~np.isnan(values[:, there]).any(axis=1)).sum())
        if known < _FEWEST_ROWS:
            raise L4SError(f"{sample.source}: has {known} rows with all values, an audit needs {_FEWEST_ROWS}")
        findings[name] = _find(sample.actions, values)
    return Audit(sample.source, findings)
