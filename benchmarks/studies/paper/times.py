"""Figures 19 and 20: time of answers and of trainings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trials
from figure import Figure, Place
from pool import EPOCHS, read
from sizes import FULL_LLAMA, PAPER, REAL, Row, bars
from trials import ANSWERS, TRAINED

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture


def draw_answers(rows: Sequence[Row], picture: Picture) -> None:
    """Bars by shape and way."""
    axes = picture.subplots()
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    took = {(row["shape"], row["way"]): row["p50_ms"] for row in rows}
    bars(axes, shapes, {way: [took.get((shape, way)) for shape in shapes] for way in ANSWERS})
    low, high = min(PAPER["answer_ms"]), max(PAPER["answer_ms"])
    axes.axhspan(low, high, color="0.6", alpha=0.6, label="the paper's, adapted, on A40")
    axes.axhline(FULL_LLAMA["answer_ms"], color="0.3", ls=":", label="the paper's, Llama-2-7B trained as a whole")
    axes.set(ylabel="median time of a decision, ms")
    axes.legend(fontsize=8, ncols=2, loc="upper left")


def answer_time(place: Place) -> Figure:
    """Figure 19: time of an answer with and without adaptation."""
    rows = [{"shape": shape, "way": way, **a._asdict()} for (shape, way), a in trials.answers(place).items()]
    return Figure("19", {"rows": rows}, partial(draw_answers, rows), (10.0, 5.0))


def draw_training(rows: Sequence[Row], picture: Picture) -> None:
    """Left what was measured, right the paper's."""
    left, right = picture.subplots(1, 2, sharey=True, width_ratios=(1.6, 1))
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    hours = {(row["shape"], row["way"]): row["hours"] for row in rows}
    bars(
        left,
        [s.replace(", ", "\n") for s in shapes],
        {w: [hours.get((s, w)) for s in shapes] for w in TRAINED},
    )
    left.set(ylabel=f"hours for {EPOCHS} passes", title="here, one thread of a CPU")
    bars(right, list(REAL), {"the paper's": PAPER["training_h"]}, len(TRAINED))
    right.set(title="the paper, GPU")


def training_time(place: Place) -> Figure:
    """Figure 20: training time."""
    rows_of_pool = read(place.work / "paper", "causal").rows
    rows = [
        {
            "shape": shape,
            "way": way,
            **t._asdict(),
            "hours": EPOCHS * rows_of_pool / t.labels * t.step_s / 3600,
        }
        for (shape, way), t in trials.trainings(place).items()
    ]
    data = {"rows": rows, "passes": EPOCHS, "training_rows": rows_of_pool}
    return Figure("20", data, partial(draw_training, rows), (11.0, 4.5))


FIGURES: Final[dict[str, Callable[[Place], Figure]]] = {"19": answer_time, "20": training_time}
"""Number -> what makes it."""
