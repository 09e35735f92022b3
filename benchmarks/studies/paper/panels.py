"""The panels of the figures: lines, boxes, distributions, and means with intervals; each drawn from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from captions import interval
from l4s_gym.evaluation.harness import QUANTILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT: Final = "as the authors compare: replay of logged rows"
RIGHT: Final = "closed loop"
BOX: Final = {"whislo": 0.05, "q1": 0.2, "med": 0.5, "q3": 0.8, "whishi": 0.95}
BOX_WORDS: Final = "boxes: 20 to 80 %, whiskers: 5 to 95 %"
_COLOURS: Final = {
    "native": "#0072B2",
    "LLM every 10": "#D55E00",
    "LLM every 100": "#CC79A7",
    "always enqueue every 10": "#009E73",
    "always enqueue every 100": "#117733",
    "random every 10": "#999999",
    "random every 100": "#666666",
}
"""Okabe and Ito's and Tol's, which the colour-blind can tell apart."""


_MORE: Final = ("#000000", "#882255", "#44AA99", "#DDCC77")
_others: Final[dict[str, str]] = {}
"""Colours of who is not in `_COLOURS`, as they came."""


def colour(label: str) -> str:
    """Of whom, whatever follows the name."""
    known = [(name, c) for name, c in _COLOURS.items() if label.startswith(name)]
    if known:
        return max(known)[1]
    name = label.removesuffix(" C").removesuffix(" L")
    return _others.setdefault(name, _MORE[len(_others) % len(_MORE)])


def style(label: str) -> dict[str, Any]:
    """How a curve is drawn: who always enqueues lies dashed over the LLM, the queue L dotted beside C."""
    if label.endswith(" L"):
        return {"color": colour(label), "ls": ":", "lw": 1.1}
    known = label.startswith("always")
    return {"color": colour(label), "ls": "--" if known else "-", "lw": 1.0 if known else 1.3}


def lines(axes: Axes, curves: Mapping[str, tuple[Sequence[float], Sequence[float | None]]], **words: str) -> None:
    """Curves by label, as x and y; a gap where y is None."""
    for label, (x, y) in curves.items():
        axes.plot(x, np.array(y, float), label=label, **style(label))
    axes.set(**words)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper right", framealpha=0.9)


def boxes(axes: Axes, quantiles: Mapping[str, Sequence[float]], **words: str) -> None:
    """Boxes by label, from quantiles at `harness.QUANTILES`."""
    at = {name: QUANTILES.index(p) for name, p in BOX.items()}
    stats = [{"label": label, **{name: q[i] for name, i in at.items()}} for label, q in quantiles.items()]
    drawn = axes.bxp(stats, showfliers=False, patch_artist=True, widths=0.6, medianprops={"color": "black"})
    for box, label in zip(drawn["boxes"], quantiles, strict=True):
        box.set(facecolor=colour(label), alpha=0.75)
    _labels(axes, list(quantiles))
    axes.set(title=BOX_WORDS, **words)
    axes.grid(alpha=0.3, axis="y")


def cdf(axes: Axes, quantiles: Mapping[str, Sequence[float]], **words: str) -> None:
    """Distributions by label, from quantiles at `harness.QUANTILES`."""
    for label, q in quantiles.items():
        axes.plot(q, QUANTILES, label=label, **style(label))
    axes.set(ylabel="share below", **words)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")


def means(
    axes: Axes,
    values: Mapping[str, Sequence[float]],
    bounds: tuple[float, float] = (-np.inf, np.inf),
    **words: str,
) -> None:
    """By label the seeds as dots, their mean, and its 95 % interval between the bounds of what is possible."""
    for k, (label, each) in enumerate(values.items()):
        found = interval(np.asarray(each)).within(*bounds)
        axes.plot(np.full(len(each), k + 0.15), each, ".", color=colour(label), alpha=0.5)
        low, high = (found.value if end is None else end for end in (found.low, found.high))
        error = [[found.value - low], [high - found.value]]
        axes.errorbar(k, found.value, error, fmt="o", color=colour(label), capsize=4)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xticks(range(len(values)))
    _labels(axes, list(values))
    axes.set(title="seeds, mean and 95 % interval", **words)
    axes.grid(alpha=0.3, axis="y")


def _labels(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_xticks(axes.get_xticks(), [label.replace(" every", "\nevery") for label in labels], fontsize=7)
