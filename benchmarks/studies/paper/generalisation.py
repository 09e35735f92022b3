"""NetLLM's comparison: who keeps the score that it has in settings as in training where settings are unseen?"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from figure import Figure, Place
from l4s_gym import shipped
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import entry, leaderboard, ranking, results, sweep
from l4s_gym.evaluation.entry import Entry, Size
from l4s_gym.evaluation.ranking import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

AGENTS: Final = ("native", "onestep", "bc", "dt", "llm")
SUITES: Final = {"test": ("#0072B2", "settings as in training (test)"), "shift": ("#D55E00", "unseen settings (shift)")}
_QUICK: Final = ("native/dualpi2_rfc9332", "native/fifo", "random/uniform")


def _entries(place: Place) -> list[Entry]:
    """The leaderboard's entries that can be compared; of a quick run, small ones of its own.

    Raises:
        L4SError: There are none.
    """
    if place.quick:
        size = Size(2.0, 2, ("test", "shift"), ("l4s-llm-testbed", "grid-12m-20ms", "grid-4m-20ms", "overload"))
        rules = msgspec.structs.replace(entry.read_protocol(), quick=size)
        return sweep.run(leaderboard.experiments(_QUICK), rules, "quick", place.work, jobs=0, progress=place.progress)
    folder = shipped.folder("benchmarks") / "results"
    found = results.read_all(folder)
    if not found:
        raise L4SError(f"generalisation: {folder} has no entries: run python benchmarks/leaderboard.py first")
    kept, refused = ranking.check(found)
    for each in refused:
        place.say(f"left out: {each.name}: {each.reason}")
    return kept


def compared(rows: list[Row]) -> list[Row]:
    """The agents of the comparison that have both scores, best first."""
    return [row for row in rows if row.agent in AGENTS and row.gap is not None]


def generalisation(place: Place) -> Figure:
    """Scores in settings as in training and in unseen ones, and the gap."""
    entries = _entries(place)
    rows = compared(ranking.rows(entries))
    keys = ("name", "title", "trainings", "rule", "decides", "lacks")
    data: dict[str, Any] = {"size": entries[0].size, "rows": [_plain(row, keys) for row in rows]}
    return Figure(
        name="generalisation",
        data=data,
        draw=partial(_draw, data=data),
        size=(11.0, 1.6 + 0.36 * len(rows)),
    )


def _plain(row: Row, keys: tuple[str, ...]) -> dict[str, Any]:
    assert row.gap is not None
    about = {key: getattr(row, key) for key in keys}
    return about | {"scores": {name: asdict(row.scores[name]) for name in SUITES}, "gap": asdict(row.gap)}


def _draw(picture: Picture, data: dict[str, Any]) -> None:
    left, right = picture.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    rows = data["rows"]
    for k, row in enumerate(rows):
        for shift, (suite, (colour, label)) in zip((-0.14, 0.14), SUITES.items(), strict=True):
            _bar(left, k + shift, row["scores"][suite], colour, label if k == 0 else "")
        _bar(right, k, row["gap"], "black", "")
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.invert_yaxis()
    left.set(xlabel="normalised score (0: random, 100: native DualPI2)", title="scores")
    left.legend(fontsize=8)
    right.axvline(0.0, color="grey", lw=0.8)
    right.set(xlabel="test - shift", title="gap")
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")


def _bar(axes: Any, y: float, found: dict[str, Any], colour: str, label: str) -> None:
    """A value with its interval, if it has one."""
    value = found["value"]
    low, high = (value if found[end] is None else found[end] for end in ("low", "high"))
    axes.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3, label=label or None)
