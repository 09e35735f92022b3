"""What the pictures of the report are drawn from: plain data, put into the page as JSON."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from l4s_gym.evaluation.board import NATIVE, Row
from l4s_gym.evaluation.entry import Entry
from l4s_gym.evaluation.harness import QUANTILES
from l4s_gym.evaluation.ranking import THRESHOLDS
from l4s_gym.evaluation.series import Series
from l4s_gym.evaluation.statistics import Interval
from l4s_gym.sim.measure import CLASSES

Plain = dict[str, Any]

KINDS: Final = {
    "native": "Native AQM",
    "rule": "Untrained rule",
    "learned": "Learned",
    "llm": "Language model",
}
SUITES: Final = {
    "test": "Test (seeds of its own)",
    "shift": "Shift (unseen scenarios)",
    "dyn": "Dyn (rate, load or capacity vary)",
    "train": "Train",
}
"""The held-out ones first."""
COMPARED: Final = 5
_GRID: Final = re.compile(r"grid-(\d+)m-(\d+)ms")


def kind(entry: Entry) -> str:
    """Key in `KINDS`."""
    if entry.experiment.native:
        return "native"
    if entry.experiment.learned == "none":
        return "rule"
    training = entry.experiment.training
    return "llm" if training and training.learner == "llm" else "learned"


def suites(rows: Sequence[Row]) -> list[str]:
    """The suites that somebody has a score in, held-out ones first."""
    return [name for name in SUITES if any(name in row.scores for row in rows)]


def score(row: Row) -> float:
    """Score on the first suite that the row has; less than any other without one."""
    return next((row.scores[name].value for name in SUITES if name in row.scores), -np.inf)


def rounded(value: float | None, digits: int = 4) -> float | None:
    """To significant digits; None for what is no finite number."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.{digits}g}")


def triple(interval: Interval | None) -> list[float | None] | None:
    """Value, low, high."""
    if interval is None:
        return None
    return [rounded(each) for each in (interval.value, interval.low, interval.high)]


def by_cell(entry: Entry) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The results of an entry by suite and scenario."""
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for result in entry.results:
        cells[result["suite"], result["scenario"]].append(result)
    return cells


def grid(entry: Entry) -> dict[tuple[int, int], float | None]:
    """Median L/C goodput ratio over the runs of each grid scenario, held out: (Mbit/s, ms) -> ratio.

    None where no run has one.
    """
    found: dict[tuple[int, int], float | None] = {}
    for (suite, scenario), results in by_cell(entry).items():
        match = _GRID.fullmatch(scenario)
        if match and suite != "train":
            ratios = [r["goodput_ratio"] for r in results if r["goodput_ratio"] is not None]
            found[int(match[1]), int(match[2])] = float(np.median(ratios)) if ratios else None
    return found


def delay_curves(entries: Iterable[Entry]) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """Quantiles of the delay at `QUANTILES`, averaged over the runs: "suite/scenario" -> entry -> class -> ms.

    A class is left out where no packet of it came through in any run.
    """
    curves: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for entry in entries:
        for (suite, scenario), results in by_cell(entry).items():
            found = curves.setdefault(f"{suite}/{scenario}", {})[entry.id] = {}
            for cls in CLASSES:
                counts = [result["classes"][cls] for result in results]
                runs = [
                    result["delay_quantiles"][cls]
                    for result, count in zip(results, counts, strict=True)
                    if count["offered"] > count["dropped"]
                ]
                if runs:
                    found[cls] = [rounded(x) for x in np.mean(runs, axis=0).tolist()]
    return curves


def compared(rows: Sequence[Row], kinds: Mapping[str, str]) -> list[str]:
    """Entries that the reader sees compared at first: the reference, the best of each kind, then the next best."""
    best = sorted((row for row in rows if row.failed is None), key=score, reverse=True)
    names = [row.name for row in best]
    firsts = [next((name for name in names if kinds[name] == each), None) for each in KINDS]
    order = [NATIVE if NATIVE in names else None, *firsts, *names]
    return list(dict.fromkeys(name for name in order if name is not None))[:COMPARED]


def page_data(
    entries: Sequence[Entry], rows: Sequence[Row], series: Sequence[Series], oracle: Mapping[str, Interval]
) -> Plain:
    """All that the page's script draws.

    Args:
        entries: Of the board.
        rows: Of the board, best first.
        series: Time series; their names are those of entries.
        oracle: Scores by suite, drawn as dotted lines.
    """
    kinds = {entry.id: kind(entry) for entry in entries}
    agents = [
        {
            "id": row.name,
            "kind": kinds[row.name],
            "scores": {suite: triple(value) for suite, value in row.scores.items()},
            "metrics": {
                suite: {name: triple(value) for name, value in metrics.items()}
                for suite, metrics in row.metrics.items()
            },
            "profiles": {
                suite: [[rounded(share) for share in part] for part in profile]
                for suite, profile in row.profiles.items()
            },
            "latency_us": row.latency_us["p50"] if row.latency_us else None,
            "parameters": row.parameters,
        }
        for row in rows
        if row.failed is None
    ]
    curves = delay_curves(entries)
    return {
        "kinds": KINDS,
        "suites": {name: SUITES[name] for name in suites(rows)},
        "agents": agents,
        "compared": compared(rows, kinds),
        "thresholds": THRESHOLDS,
        "quantiles": QUANTILES,
        "curves": dict(sorted(curves.items(), key=lambda item: (list(SUITES).index(item[0].split("/")[0]), item[0]))),
        "series": [each.as_dict() for each in series],
        "oracle": {suite: triple(score) for suite, score in oracle.items()},
    }
