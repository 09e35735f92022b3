"""What many episodes say of a queue: how likely it is above a bound, and where it is drawn back to its target.

What is independent. Episodes are: each has a seed of its own. Looks within one are not. So a probability is that of one
yes or no an episode, with exact bounds (Clopper & Pearson 1934): whether the delay is above the bound at one moment,
which the seed draws, or whether any packet of the episode ever waited longer. The scenarios are fixed and each has
equally many episodes; then the mean probability is meant, and the bounds hold for it too, as the sum of yes or no of
different probabilities varies less than a binomial number with their mean (Hoeffding 1956).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.evaluation.statistics import LEVEL, quantile_t

Floats = npt.NDArray[np.float64]
EDGES: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0, np.inf)
"""Of the bands of delay, in targets."""
LEAST: Final = 5
"""Episodes that a band must be met in."""


@dataclass(frozen=True)
class Chance:
    """A probability.

    Attributes:
        hits: How often yes.
        trials: Of how many.
        low: Lower bound.
        high: Upper bound.
    """

    hits: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Share of yes."""
        return self.hits / self.trials


def clopper_pearson(hits: int, trials: int, level: float = LEVEL) -> Chance:
    """Return the exact two-sided bounds of a probability.

    Args:
        hits: How often yes.
        trials: Of how many independent trials.
        level: Confidence.
    """
    half = (1.0 - level) / 2.0
    low = _root(lambda p: _at_most(trials - hits, trials, 1.0 - p) - half) if hits else 0.0
    high = _root(lambda p: half - _at_most(hits, trials, p)) if hits < trials else 1.0
    return Chance(hits, trials, low, high)


def _at_most(hits: int, trials: int, p: float) -> float:
    """Return the probability of so many hits or fewer."""
    if p in (0.0, 1.0):
        return float(p == 0.0 or hits >= trials)
    k = np.arange(hits + 1)
    ways = [math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in k.tolist()]
    return float(np.exp(ways + k * math.log(p) + (trials - k) * math.log1p(-p)).sum())


def _root(rising: Callable[[float], float]) -> float:
    """Return where a rising function of a probability is 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rising(middle) < 0.0 else (low, middle)
    return 0.5 * (low + high)


@dataclass(frozen=True)
class Band:
    """The drift of V in a band of delay.

    Attributes:
        low: Lower edge, in targets.
        high: Upper edge.
        share: Of all looks, how many are in it.
        episodes: In how many episodes it was met.
        drift: Mean of V(t + dt) - V(t).
        drift_low: Lower end of its interval; NaN: too few episodes.
        drift_high: Upper end.
    """

    low: float
    high: float
    share: float
    episodes: int
    drift: float
    drift_low: float
    drift_high: float

    @property
    def falls(self) -> bool:
        """Whether V surely falls."""
        return bool(self.drift_high < 0.0)


def ratio_interval(sums: Floats, counts: Floats, level: float) -> tuple[float, float, float]:
    """Return the mean of what was met, and its interval, episodes being drawn (E,): sums over counts of each."""
    met = counts > 0
    total, n = counts.sum(), int(met.sum())
    if not total:
        return np.nan, np.nan, np.nan
    mean = float(sums.sum() / total)
    if n < LEAST:
        return mean, np.nan, np.nan
    parts = (sums - mean * counts)[met] / total
    half = quantile_t((1.0 + level) / 2.0, n - 1.0) * float(np.sqrt(n / (n - 1.0) * (parts**2).sum()))
    return mean, mean - half, mean + half


def tally(delay: Floats, lag: int, edges: Sequence[float] = EDGES) -> tuple[Floats, Floats]:
    """Return the sum of V(t + dt) - V(t) by band of the delay at t, and how many there are; V = (delay / target - 1)^2.

    Args:
        delay: Of an episode (T,), in targets.
        lag: Looks from t to t + dt.
        edges: Of the bands.
    """
    now, later = delay[:-lag], delay[lag:]
    there = np.isfinite(now) & np.isfinite(later)
    now, later, count = now[there], later[there], len(edges) - 1
    which = np.clip(np.searchsorted(edges, now, side="right") - 1, 0, count - 1)
    changes = (later - 1.0) ** 2 - (now - 1.0) ** 2
    counts = np.bincount(which, minlength=count)
    return np.bincount(which, changes, minlength=count).astype(np.float64), counts.astype(np.float64)


def bands(sums: Floats, counts: Floats, edges: Sequence[float] = EDGES, level: float = LEVEL) -> list[Band]:
    """Return the drift of V by band; the intervals hold for all bands together (Bonferroni).

    Args:
        sums: Of `tally`, for each episode (E, bands).
        counts: Likewise.
        edges: Of the bands.
        level: Confidence.
    """
    each, found = 1.0 - (1.0 - level) / (len(edges) - 1), []
    for k in range(len(edges) - 1):
        interval = ratio_interval(sums[:, k], counts[:, k], each)
        share = float(counts[:, k].sum() / max(counts.sum(), 1.0))
        found.append(Band(float(edges[k]), float(edges[k + 1]), share, int((counts[:, k] > 0).sum()), *interval))
    return found


def falls_from(bands: Sequence[Band]) -> float | None:
    """Return the delay, in targets, from which on V surely falls in all bands that are met; None: from none on."""
    found = None
    for band in reversed([band for band in bands if band.episodes]):
        if not band.falls:
            break
        found = band.low
    return found


def at_a_moment(delay: Floats, from_step: int, seed: int) -> float:
    """Return the delay of an episode (T,) at a moment that its seed draws, from a step on."""
    there = np.flatnonzero(np.isfinite(delay[from_step:])) + from_step
    return float(delay[np.random.default_rng([seed, 0x7175]).choice(there)]) if there.size else np.nan
