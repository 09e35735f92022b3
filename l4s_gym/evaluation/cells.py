"""What is compared: the episodes that an entry of the benchmark must have, and the measures of an episode."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from l4s_gym.errors import L4SError
from l4s_gym.evaluation.entry import Entry
from l4s_gym.evaluation.statistics import Floats
from l4s_gym.sim.scenario import SUITES

NATIVE: Final = "native--dualpi2_rfc9332"
RANDOM: Final = "random--uniform"

Key = tuple[int | None, str, str, int]
"""Train seed, suite, scenario, seed."""
Cells = Mapping[Key, dict[str, Any]]
Measure = Callable[[dict[str, Any]], float | None]
"""Of a result; None where it has none."""


def _delay(traffic_class: str, quantile: str) -> Measure:
    def get(result: dict[str, Any]) -> float | None:
        counts = result["classes"][traffic_class]
        # A class of which nothing came through has no delay; its record says 0.
        return result["delay_ms"][traffic_class][quantile] if counts["offered"] > counts["dropped"] else None

    return get


def _field(name: str) -> Measure:
    return lambda result: result[name]


METRICS: Final[dict[str, Measure]] = {
    "episode_return": _field("episode_return"),
    "delay_c_p50_ms": _delay("C", "p50"),
    "delay_c_p99_ms": _delay("C", "p99"),
    "delay_l_p50_ms": _delay("L", "p50"),
    "delay_l_p99_ms": _delay("L", "p99"),
    **{name: _field(name) for name in ("utilisation", "goodput_ratio", "jain", "mark_rate", "drop_rate")},
}
"""Measures of an episode by name, whose means the file of an entry has."""
MOST_UNEQUAL: Final = 1000.0
"""A goodput ratio above it, or below its inverse, counts as it."""


def _log_ratio(result: dict[str, Any]) -> float | None:
    ratio = result["goodput_ratio"]
    return None if ratio is None else math.log(min(max(ratio, 1.0 / MOST_UNEQUAL), MOST_UNEQUAL))


def _imbalance(result: dict[str, Any]) -> float | None:
    log = _log_ratio(result)
    return None if log is None else abs(log)


MEASURES: Final[dict[str, Measure]] = METRICS | {"goodput_ratio": _log_ratio, "imbalance": _imbalance}
"""What the board averages: `METRICS`, but of the goodput ratio its logarithm (1/4 and 4 would pass for 2.1 together),
and how far that is from 0."""
SHARES: Final = ("utilisation", "jain", "mark_rate", "drop_rate")
"""Those of them that are at most 1."""


def bounds(metric: str) -> tuple[float, float]:
    """Between which values a metric is."""
    if metric in ("episode_return", "goodput_ratio"):
        return -np.inf, np.inf
    return 0.0, 1.0 if metric in SHARES else np.inf


@dataclass(frozen=True)
class Suite:
    """The episodes of a suite that everybody must have, and what the references did in them.

    Attributes:
        name: Name.
        scenarios: Its tasks.
        seeds: Its runs.
        native: `MEASURES` of native DualPI2 (runs, tasks), NaN where it has none.
        random: Returns of random decisions (runs, tasks).
    """

    name: str
    scenarios: tuple[str, ...]
    seeds: tuple[int, ...]
    native: dict[str, Floats] = field(default_factory=dict)
    random: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    def array(self, cells: Cells, train_seeds: Sequence[int | None], measure: Measure) -> Floats:
        """A measure of its episodes (trainings, runs, tasks); NaN where there is none."""

        def value(key: Key) -> float:
            found = measure(cells[key]) if key in cells else None
            return np.nan if found is None else found

        keys = [[[(k, self.name, task, seed) for task in self.scenarios] for seed in self.seeds] for k in train_seeds]
        return np.array([[[value(key) for key in run] for run in training] for training in keys])


def reference(entries: Sequence[Entry], name: str) -> Entry:
    """The entry of a reference.

    Raises:
        L4SError: It is missing, there twice, or failed.
    """
    found = [each for each in entries if each.id == name]
    if len(found) != 1 or found[0].failed is not None:
        state = "is missing" if not found else "is there twice" if len(found) > 1 else "failed"
        raise L4SError(f"board: {name}: {state}: run it, all scores are relative to it")
    return found[0]


def by_key(each: Entry) -> Cells:
    """The results of an entry by their keys.

    Raises:
        L4SError: An episode is there twice.
    """
    cells = {(r["train_seed"], r["suite"], r["scenario"], r["seed"]): r for r in each.results}
    if len(cells) != len(each.results):
        raise L4SError(f"board: {each.id}: has an episode twice: run it again")
    return cells


def suites(native: Entry, random: Entry) -> list[Suite]:
    """The suites of native DualPI2's entry.

    Raises:
        L4SError: The references lack episodes, or native DualPI2 is not better than random decisions on a scenario.
    """
    native_cells, random_cells = by_key(native), by_key(random)
    found = []
    for name in SUITES:
        keys = [key for key in native_cells if key[1] == name]
        if not keys:
            continue
        suite = Suite(name, tuple(sorted({key[2] for key in keys})), tuple(sorted({key[3] for key in keys})))
        metrics = {metric: suite.array(native_cells, (None,), get)[0] for metric, get in MEASURES.items()}
        returns = suite.array(random_cells, (None,), METRICS["episode_return"])[0]
        for who, array in ((native.id, metrics["episode_return"]), (random.id, returns)):
            if np.isnan(array).any():
                raise L4SError(f"board: {who}: lacks episodes of {name!r}: run it, all scores are relative to it")
        better = metrics["episode_return"].mean(0) > returns.mean(0)
        if not better.all():
            task = suite.scenarios[int(np.argmin(better))]
            raise L4SError(
                f"board: {name} {task}: native DualPI2 is not better than random decisions, so that scores have no "
                "scale: leave the scenario out of the protocol"
            )
        found.append(replace(suite, native=metrics, random=returns))
    return found
