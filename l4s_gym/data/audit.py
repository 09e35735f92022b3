"""Check whether the actions of a log or dataset can be read off its features.

The kernel prints some fields after its decision: in the row of a random drop or mark the accumulated probability is
already 0. A model trained on such rows learns to read the label, and fails on a live queue, where it is not 0 yet.

A good classifier alone does not prove a leak: probability and accumulated probability, known before the decision, make
a drop or mark (a "hit") more likely for some packets than for others. But most hits depend on a random draw, which
cannot be predicted with certainty. So the measure uses only rows whose outcome is random, those in which the
accumulated probability is below 8.5 (from there on every packet is hit) and the probability at most 0.5:

    told = share of the hits that the classifier predicts with a probability of 90 % or more
           - share of the enqueued packets for which it predicts a hit with the same certainty

It is near 0 for features known before the decision, and near 1 where a feature was written after it. A value above 0.5
is called a leak, and the report names the features whose removal ends it. (A discipline without any random draw, such
as a fixed threshold, can be read off honest features too: the audit then names those.)

A missing value also tells the action, if it is missing because of the decision: a model sees a mask, or 0, in its
place. So all rows are judged. A feature that is missing in some rows gets a second one that says so; in its own place
stands a value drawn from the known ones, which tells nothing. For each second feature the same measure is computed
without a classifier, as hits are rare: the share of hits in which the value is missing, minus that of the enqueued
packets. (A row whose accumulated probability is not known counts as random.)

Every figure is for rows that the classifier (gradient boosting) has not seen: five contiguous blocks are held out one
after another. A random split would leave the neighbours of a row in the training set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from l4s_gym.data.behaviour import HIGH
from l4s_gym.data.inspect import NAMES, Floats, Ints, Sample
from l4s_gym.data.report import Missing
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.schema import ACTIONS, ENQUEUE, MAX_PROB, OBSERVED

Bools = npt.NDArray[np.bool_]
_T = TypeVar("_T")

SURE: Final = 0.9
"""A hit predicted with this probability or more counts as predicted with certainty."""
LEAK: Final = 0.5
"""A leak is `told` above this."""
FEWEST: Final = 20
"""Fewest random hits (drops or marks) for a verdict."""
_FOLDS: Final = 5
_FEWEST_ROWS: Final = 50
_MOST_NAMED: Final = 3
MISSING: Final = ": missing"
"""Suffix of the name of a feature that says whether another one is missing."""
_PROBABILITY: Final = OBSERVED.index("drop_probability")
_ACCUMULATED: Final = OBSERVED.index("accumulated_probability")


@dataclass(frozen=True)
class Feature:
    """What one feature tells about the actions.

    Attributes:
        name: Its name.
        alone: Macro-F1 of a small decision tree that sees this feature only.
        shuffled: `told` of all features when this one is shuffled among the held-out rows.
    """

    name: str
    alone: float
    shuffled: float


@dataclass(frozen=True)
class Findings:
    """What a set of features tells about the actions; shares are from 0 to 1.

    Attributes:
        rows: Number of rows; all are judged.
        missing: Share of the rows of each action in which a feature is missing.
        uneven: Whether that differs between the actions by more than chance (see `report.Missing`).
        missing_told: For each feature that is missing in some rows, what that tells (see the module).
        majority: Accuracy of always taking the most frequent action.
        accuracy: Accuracy on held-out rows.
        macro_f1: Mean F1 over the three actions.
        recall: Recall of each action; NaN without such rows.
        chance_hits: Hits (drops or marks) that depend on a random draw.
        told: See the module.
        given_away_by: Features without which `told` is no longer a leak, the most telling first.
        told_without: `told` without these.
        features: What each feature tells.
    """

    rows: int
    missing: Mapping[str, float]
    uneven: bool
    missing_told: Mapping[str, float]
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
        return self.chance_hits >= FEWEST and max(self.told, *self.missing_told.values(), 0.0) > LEAK

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.chance_hits < FEWEST:
            return f"cannot tell: {self.chance_hits} hits are left to chance, {FEWEST} are needed"
        foreseen = f"told {self.told:.3f} of {self.chance_hits} hits left to chance"
        if self.leaks:
            names = " and ".join(self.given_away_by)
            them = "it" if len(self.given_away_by) == 1 else "them"
            told = f"{foreseen}, without {them} {self.told_without:.3f}"
            shares = ", ".join(f"{name} {share:.3f}" for name, share in self.missing_told.items() if share > LEAK)
            return f"LEAK: the labels can be read off {names} ({told}{f'; {shares}' if shares else ''})"
        note = f"; but {self._missing_text}: leave such rows out" if self.uneven else ""
        return f"no leak: no feature gives the label away ({foreseen}){note}"

    @property
    def _missing_text(self) -> str:
        shares = (f"{share:.2%} of {action}" for action, share in self.missing.items() if not np.isnan(share))
        return f"a value is missing in {', '.join(shares)}"


@dataclass(frozen=True)
class Audit:
    """What the sets of features of a source tell about its actions."""

    source: str
    findings: Mapping[str, Findings]

    @property
    def verdict(self) -> str:
        """The verdict in words, a line for each set."""
        return "\n".join(f"{name}: {found.verdict}" for name, found in self.findings.items())

    def table(self) -> str:
        """Return all figures and the verdict as text."""
        lines = [f"{self.source}: can the actions be read off the features?"]
        for name, f in self.findings.items():
            recall = ", ".join(f"{action} {share:.3f}" for action, share in f.recall.items())
            missing = ", ".join(f"{action} {share:.2%}" for action, share in f.missing.items() if not np.isnan(share))
            lines += [
                f"{name}: {f.rows} rows; a value is missing in: {missing}",
                f"  accuracy {f.accuracy:.3f} (majority {f.majority:.3f}), macro-F1 {f.macro_f1:.3f}, recall: {recall}",
                f"  hits left to chance {f.chance_hits}, told {f.told:.3f} (above {LEAK:g}: a leak)",
                f"  {'':32}{'macro-F1 alone':>16}{'told if shuffled':>18}",
                *(f"  {each.name:32}{each.alone:16.3f}{each.shuffled:18.3f}" for each in f.features),
            ]
        return "\n".join([*lines, self.verdict])

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as plain values, for JSON; None for shares of no rows."""
        findings = {name: {**asdict(f), "leaks": f.leaks, "verdict": f.verdict} for name, f in self.findings.items()}
        for found in findings.values():
            for name in ("missing", "recall"):
                found[name] = {action: None if np.isnan(share) else share for action, share in found[name].items()}
        return {"source": self.source, "findings": findings}


def probabilities_of(model: Any, values: Floats) -> Floats:
    """Return the probabilities of all actions (n, 3), of those too that the model has not seen."""
    found = np.zeros((len(values), len(ACTIONS)))
    found[:, model.classes_] = model.predict_proba(values)
    return found


def _each_fold(rows: int, work: Callable[[Bools], _T]) -> list[_T]:
    """Call `work` with the held-out rows (T,) of each fold; folds run in parallel, each on one thread."""
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
    """Return probabilities of the actions (T, 3) on held-out rows: of all columns, then with each of the d shuffled."""
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
        found = [probabilities_of(model, test[:, useful])]
        rng = np.random.default_rng(0)
        for column in range(values.shape[1]) if shuffle else ():
            mixed = test.copy()
            mixed[:, column] = rng.permutation(mixed[:, column])
            found.append(probabilities_of(model, mixed[:, useful]))
        return found

    return [np.concatenate(parts) for parts in zip(*_each_fold(len(values), work), strict=True)]


def _alone(values: Floats, actions: Ints) -> list[float]:
    """Return the macro-F1 of a small tree on each of the d columns."""
    tree = optional("sklearn.tree", "data").DecisionTreeClassifier

    def work(held: Bools) -> list[Ints]:
        models = (tree(max_depth=4, random_state=0).fit(column[~held], actions[~held]) for column in columns)
        return [model.predict(column[held]) for model, column in zip(models, columns, strict=True)]

    columns = [values[:, [i]] for i in range(values.shape[1])]
    parts = _each_fold(len(values), work)
    return [macro_f1(actions, np.concatenate(predicted)) for predicted in zip(*parts, strict=True)]


def macro_f1(actions: Ints, predicted: Ints) -> float:
    """Return the mean F1 over the actions that occur among the true ones (T,) or the predicted ones (T,)."""
    pairs = np.bincount(actions * len(ACTIONS) + predicted, minlength=len(ACTIONS) ** 2).reshape(len(ACTIONS), -1)
    both = pairs.sum(axis=0) + pairs.sum(axis=1)
    return float((2 * pairs.diagonal()[both > 0] / both[both > 0]).mean())


def _told(probabilities: Floats, actions: Ints, chance: Bools) -> float:
    """Return `told` as the module defines it; 0 without such rows."""
    return _more_in_hits(1 - probabilities[:, ENQUEUE] >= SURE, actions, chance)


def _more_in_hits(what: Bools, actions: Ints, chance: Bools) -> float:
    """Return the share of random hits for which `what` is true, minus that of the enqueued packets; at least 0."""
    hit = actions != ENQUEUE
    shares = [float(what[chance & rows].mean()) if (chance & rows).any() else 0.0 for rows in (hit, ~hit)]
    return max(shares[0] - shares[1], 0.0)


def _columns(values: Floats) -> tuple[list[str], Floats]:
    """Return names and columns (T, k) of what is known in some rows (see the module), the second features last."""
    rng = np.random.default_rng(0)
    unknown = np.isnan(values)
    names, columns, second = [], [], []
    for place in np.flatnonzero(~unknown.all(axis=0)).tolist():
        column, gaps = values[:, place].copy(), unknown[:, place]
        column[gaps] = rng.choice(column[~gaps], int(gaps.sum()))
        names.append(NAMES[place])
        columns.append(column)
        if gaps.any():
            second.append((NAMES[place] + MISSING, gaps.astype(np.float64)))
    return [*names, *(name for name, _ in second)], np.stack([*columns, *(column for _, column in second)], axis=1)


def _find(y: Ints, values: Floats) -> Findings:
    names, x = _columns(values)
    missing = Missing()
    missing.add(y, np.asarray(np.isnan(values[:, ~np.isnan(values).all(axis=0)]).any(axis=1)))
    settled = values[:, _ACCUMULATED] + values[:, _PROBABILITY] >= HIGH
    chance = ~settled & ~(values[:, _PROBABILITY] > MAX_PROB / 2)
    chance_hits = int((chance & (y != ENQUEUE)).sum())
    missing_told = {
        name: _more_in_hits(x[:, place] > 0, y, chance) for place, name in enumerate(names) if name.endswith(MISSING)
    }
    left = list(range(len(names)))
    whole, *shuffled = _held_out(x, y, True)
    told_shuffled = [_told(p, y, chance) for p in shuffled]
    told = without = _told(whole, y, chance)
    alone = _alone(x, y)
    features = tuple(Feature(*each) for each in zip(names, alone, told_shuffled, strict=True))
    given_away: list[str] = []

    def take(place: int) -> float:
        given_away.append(names[place])
        left.remove(place)
        return _told(_held_out(x[:, left], y, False)[0], y, chance)

    for place, name in enumerate(names):
        if chance_hits >= FEWEST and missing_told.get(name, 0.0) > LEAK:
            without = take(place)
            told_shuffled = []
    while without > LEAK and chance_hits >= FEWEST and len(given_away) < _MOST_NAMED and len(left) > 1:
        if len(told_shuffled) != len(left):
            told_shuffled = [_told(p, y, chance) for p in _held_out(x[:, left], y, True)[1:]]
        without = take(left[int(np.argmin(told_shuffled))])
    predicted = whole.argmax(axis=1)
    return Findings(
        rows=len(y),
        missing=missing.shares,
        uneven=missing.uneven,
        missing_told=missing_told,
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
    """Check whether the actions of a sample can be read off its features.

    Args:
        sample: The rows.

    Raises:
        L4SError: There are too few rows, or scikit-learn is not installed.
    """
    findings = {}
    for name, values in sample.tables.items():
        if len(values) < _FEWEST_ROWS:
            raise L4SError(f"{sample.source}: has {len(values)} rows, an audit needs {_FEWEST_ROWS}")
        if np.isnan(values).all():
            raise L4SError(f"{sample.source}: {name}: has none of {', '.join(NAMES)}: give logged decisions")
        findings[name] = _find(sample.actions, values)
    return Audit(sample.source, findings)
