"""What few runs say of a population: robust means, their 95 % intervals, comparisons, profiles.

Scores are arrays (trainings, runs, tasks): a task is a scenario, a run is an episode of it with a seed of its own, and
an agent that is not trained has one training. The measures are those of Agarwal et al., "Deep reinforcement learning at
the edge of the statistical precipice" (NeurIPS 2021); for trained agents they are averaged over the trainings.

What is drawn anew, and why. The tasks are the benchmark's own, so they are strata, never drawn. The seed of an episode
fixes its traffic, which is the same for everybody, so runs of one seed stay together: those of all trainings, and those
of whatever they are compared with. A trained agent plays all tasks, so its tasks are not independent (in Agarwal et al.
each training has one task): the training is an outer unit. Hence

    variance = that of the traffic that all trainings share (stratified bootstrap, less the noise of single trainings)
             + that of the mean over trainings, which is at least the noise of their episodes.

To draw n runs of n understates the variance by (n - 1) / n, so n - 1 are drawn (Rao & Wu 1988). Half the width of the
interval is Student's t times the root of the variance (of 3 trainings there are but 10 resamples, and their percentiles
cannot cover), with the degrees of freedom of the traffic from what each episode does to the statistic. Of a sum of two
variances no exact interval is known: with Satterthwaite's (1946) degrees of freedom it is too narrow if there are three
trainings (92 to 95 % where 95 % is asked, as their part grows), Howe's (1974) is too wide (95 to 98 %); the square of
ours is the mean of theirs. How often the intervals cover is measured by `benchmarks/studies/intervals/run.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError

Floats = npt.NDArray[np.float64]
Statistic = Callable[..., Floats]
"""Of one or several arrays (..., runs, tasks) to an array (..., or, for a curve, ..., points)."""

RESAMPLES: Final = 2000
LEVEL: Final = 0.95


@dataclass(frozen=True)
class Interval:
    """A value, and the interval of confidence around it; without one where there is but one run.

    Attributes:
        value: Estimate.
        low: Lower end of the interval; None: unknown.
        high: Upper end; None: unknown.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def sure(self) -> bool:
        """Whether it is known, and 0 is outside."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high

    def less(self, other: Interval) -> Interval:
        """The difference as if both were independent: of the same traffic, it is too wide rather than too narrow."""
        value = self.value - other.value
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return Interval(value)
        half = math.hypot(self.high - self.low, other.high - other.low) / 2.0
        return Interval(value, value - half, value + half)

    def within(self, least: float, most: float) -> Interval:
        """The part of it that is possible for a quantity with bounds; the value stays inside."""
        if self.low is None or self.high is None:
            return self
        return Interval(self.value, min(max(self.low, least), self.value), max(min(self.high, most), self.value))


def mean(scores: Floats) -> Floats:
    """Mean over runs and tasks (..., runs, tasks) -> (...)."""
    return np.asarray(scores.mean((-2, -1)))


def iqm(scores: Floats) -> Floats:
    """Mean of the middle half of the scores of all runs and tasks (..., runs, tasks) -> (...).

    A quarter of the scores, rounded down, is cut at either end.
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    cut = flat.shape[-1] // 4
    if cut == 0:
        return np.asarray(flat.mean(-1))
    parts = np.partition(flat, (cut, flat.shape[-1] - cut - 1), -1)
    return np.asarray(parts[..., cut : flat.shape[-1] - cut].mean(-1))


def median(scores: Floats) -> Floats:
    """Median over tasks of the mean over runs (..., runs, tasks) -> (...)."""
    return np.asarray(np.median(scores.mean(-2), -1))


def optimality_gap(scores: Floats, optimum: float = 100.0) -> Floats:
    """How far scores fall short of an optimum on average; more than it counts as it (..., runs, tasks) -> (...)."""
    return np.asarray(np.maximum(optimum - scores, 0.0).mean((-2, -1)))


def normalised(scores: Floats, low: Floats, high: Floats) -> Floats:
    """Scores by task, 0 being the mean over the runs of `low` and 100 that of `high`; all (..., runs, tasks)."""
    start = low.mean(-2, keepdims=True)
    return np.asarray(100.0 * (scores - start) / (high.mean(-2, keepdims=True) - start))


def wins(scores: Floats, others: Floats) -> Floats:
    """1 where a score is the better one, 0.5 for a tie, else 0.

    Runs of one place have the same traffic: the mean over runs and tasks is the probability of improvement under equal
    conditions.
    """
    return np.asarray((scores > others) + 0.5 * (scores == others))


def probability_of_improvement(scores: Floats, others: Floats) -> Floats:
    """As Agarwal et al. define it, for independent runs: any run of the one against any of the other.

    Args:
        scores: (..., runs, tasks).
        others: (..., runs, tasks); the number of runs may differ.

    Returns:
        Mean over the tasks (...).
    """
    return np.asarray(wins(scores[..., :, None, :], others[..., None, :, :]).mean((-3, -2, -1)))


@functools.lru_cache(10_000)
def quantile_t(probability: float, freedom: float) -> float:
    """Quantile of Student's distribution; `freedom` need not be whole.

    With t = sqrt(freedom) tan(angle), the density of the angle is proportional to cos(angle) ** (freedom - 1).
    """
    freedom = min(max(freedom, 1.0), 1e4)  # Beyond, it is the normal distribution's to 4 digits.
    reach = np.arctan(40.0 / np.sqrt(freedom)) if freedom > 10.0 else np.pi / 2
    angle = np.linspace(-reach, reach, 20_001)
    density = np.cos(angle) ** (freedom - 1.0)
    total = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(probability * total[-1], total, angle)))


def _quantiles(freedom: Floats, level: float) -> Floats:
    """Two-sided quantile of Student's distribution for each of some degrees of freedom."""
    found = [quantile_t((1.0 + level) / 2.0, round(float(each), 2)) for each in np.ravel(freedom)]
    return np.reshape(found, np.shape(freedom))


def _quotient(part: Floats, whole: Floats, otherwise: npt.ArrayLike) -> Floats:
    """Quotient where the denominator is not 0, else something else."""
    zero = whole == 0.0
    return np.where(zero, otherwise, part / np.where(zero, 1.0, whole))


@dataclass(frozen=True)
class Estimate:
    """A statistic of each trained agent, and what makes it vary.

    Attributes:
        each: Of each trained agent (trainings, *points).
        traffic: Variance of the mean over trainings when the traffic is drawn anew (*points); NaN for one run.
        noise: Variance of what is one training's alone of that (*points), 0 for one training.
        freedom: Degrees of freedom of `traffic` and `noise` (*points).
        episodes: How many there are.
    """

    each: Floats
    traffic: Floats
    noise: Floats
    freedom: Floats
    episodes: int

    @property
    def value(self) -> Floats:
        """Mean over the trained agents (*points)."""
        return np.asarray(self.each.mean(0))

    def squared_half(self, level: float = LEVEL) -> Floats:
        """Square of half the width of the interval (*points)."""
        trainings = len(self.each)
        if trainings == 1:
            return np.asarray(_quantiles(self.freedom, level) ** 2 * self.traffic)
        shared = np.maximum(self.traffic - self.noise / trainings, 0.0)
        between = self.each.var(0, ddof=1)
        alone = np.maximum(between, self.noise) / trainings
        few = np.where(between < self.noise, self.freedom, trainings - 1)
        both = shared + alone
        freedom = _quotient(both**2, shared**2 / self.freedom + alone**2 / few, self.freedom)
        satterthwaite = _quantiles(freedom, level) ** 2 * both
        howe = _quantiles(self.freedom, level) ** 2 * shared + _quantiles(few, level) ** 2 * alone
        return np.asarray((satterthwaite + howe) / 2.0)

    def __getitem__(self, point: int) -> Estimate:
        """One of several points."""
        traffic, noise, freedom = (np.asarray(part[point]) for part in (self.traffic, self.noise, self.freedom))
        return Estimate(self.each[:, point], traffic, noise, freedom, self.episodes)

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference to another estimate of the same trained agents on other traffic."""
        traffic = self.traffic + other.traffic
        parts = self.traffic**2 / self.freedom + other.traffic**2 / other.freedom
        freedom = _quotient(traffic**2, parts, np.minimum(self.freedom, other.freedom))
        noise, episodes = self.noise + other.noise, self.episodes + other.episodes
        return Estimate(self.each - other.each, traffic, noise, freedom, episodes)

    def interval(self, level: float = LEVEL) -> Interval:
        """The value with its interval of confidence; with one trained agent it is of that agent alone."""
        half = float(np.sqrt(self.squared_half(level)))
        if np.isnan(half):
            return Interval(float(self.value))
        return Interval(float(self.value), float(self.value) - half, float(self.value) + half)

    def share(self, level: float = LEVEL) -> tuple[Floats, Floats, Floats]:
        """Shares of episodes and the ends of their intervals (*points).

        Wilson's interval at the effective number of episodes (Korn & Graubard 1998): it stays within 0 and 1, and does
        not shrink to nothing where all or none of the episodes count.
        """
        share, squared = self.value, self.squared_half(level)
        # z^2 / n of Wilson's interval: n such that its variance is the one found; all alike, the number of episodes.
        freedom = self.freedom if len(self.each) == 1 else np.full_like(self.freedom, len(self.each) - 1)
        binomial = share * (1.0 - share)
        alike = _quantiles(freedom, level) ** 2 / self.episodes + 0.0 * squared  # NaN stays NaN
        z2_n = _quotient(squared, np.where(squared == 0.0, 0.0, binomial), alike)
        middle = (share + z2_n / 2) / (1 + z2_n)
        half = np.sqrt(z2_n * share * (1 - share) + z2_n**2 / 4) / (1 + z2_n)
        # Rounding must leave neither the share nor the bounds.
        return share, np.clip(middle - half, 0.0, share), np.clip(middle + half, share, 1.0)

    def share_interval(self, level: float = LEVEL) -> Interval:
        """`share` of a single point."""
        value, low, high = (float(part) for part in self.share(level))
        return Interval(value, low, high) if np.isfinite(low) else Interval(value)


def _checked(arrays: Sequence[Floats]) -> list[Floats]:
    """Arrays (trainings or 1, runs, tasks) of the same runs and tasks."""
    scores = [np.asarray(array, float) for array in arrays]
    scores = [array[None] if array.ndim == 2 else array for array in scores]
    shapes = [array.shape for array in scores]
    if any(len(shape) != 3 or shape[1:] != shapes[0][1:] or shape[0] not in (1, shapes[0][0]) for shape in shapes):
        raise L4SError(f"statistics: scores of shapes {shapes}: give arrays of the same runs and tasks")
    if min(shapes[0]) == 0 or not all(np.isfinite(array).all() for array in scores):
        raise L4SError("statistics: scores are empty or not finite: leave out what lacks them")
    return scores


def _freedom(by_task: Floats, runs: int) -> Floats:
    """Satterthwaite's degrees of freedom of a sum of variances (tasks, *points), each of so many runs."""
    tasks = _quotient(by_task.sum(0) ** 2, (by_task**2).sum(0), len(by_task))
    return np.asarray(max(runs - 1, 1) * tasks)


def _influence(arrays: Sequence[Floats], statistic: Statistic, each: Floats) -> Floats:
    """What an episode that differs from the mean of its task does to a statistic (runs, tasks, *points).

    Its value for each training is given (trainings, *points).
    """
    runs, tasks = arrays[0].shape[1:]
    one = np.eye(runs * tasks, dtype=bool).reshape(-1, 1, runs, tasks)
    without = statistic(*(np.where(one, array.mean(1, keepdims=True), array) for array in arrays))
    found = (each - without).mean(1)  # over trainings
    return np.asarray(found.reshape(runs, tasks, *found.shape[1:]))


def bootstrap(
    scores: Floats | Sequence[Floats],
    statistic: Statistic = iqm,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A statistic by stratified bootstrap.

    Args:
        scores: (runs, tasks) or (trainings, runs, tasks); or several such arrays, of the same runs and tasks, that the
            statistic takes together. Runs of one place are drawn together.
        statistic: Of arrays (..., runs, tasks) to (...), or to (..., points).
        rng: Where the resamples come from.
        resamples: How many.

    Raises:
        L4SError: Scores are empty, not finite, or of different shapes.
    """
    arrays = _checked([scores] if isinstance(scores, np.ndarray) else scores)
    trainings, runs, tasks = arrays[0].shape
    each = statistic(*arrays)  # (trainings, *points)
    points = each.shape[1:]
    freedom = _freedom((_influence(arrays, statistic, each) ** 2).sum(0), runs)
    if runs < 2:
        return Estimate(each, np.full(points, np.nan), np.zeros(points), freedom, trainings * tasks)
    picks = rng.integers(runs, size=(resamples, runs - 1, tasks))
    drawn = (np.stack([one[picks, np.arange(tasks)] for one in array], 1) for array in arrays)
    replicates = statistic(*drawn)  # (resamples, trainings, *points)
    middle = replicates.mean(1)
    noise = (replicates - middle[:, None]).var(0, ddof=1).sum(0) / max(trainings - 1, 1)
    return Estimate(each, middle.var(0, ddof=1), noise, freedom, trainings * runs * tasks)


def linear(values: Floats) -> Estimate:
    """The mean over runs and tasks, for which the limit of the bootstrap is known: no resamples are needed.

    Args:
        values: (runs, tasks), (trainings, runs, tasks) or (trainings, runs, tasks, points).

    Raises:
        L4SError: Values are empty or not finite.
    """
    values = np.asarray(values, float)
    values = values[None] if values.ndim == 2 else values
    if 0 in values.shape or not np.isfinite(values).all():
        raise L4SError("statistics: values are empty or not finite: leave out what lacks them")
    trainings, runs, tasks = values.shape[:3]
    each, middle = values.mean((1, 2)), values.mean(0)
    if runs < 2:
        nothing = np.full(each.shape[1:], np.nan)
        return Estimate(each, nothing, np.zeros_like(nothing), np.ones_like(nothing), trainings * tasks)
    by_task = middle.var(0, ddof=1)  # (tasks, *points)
    alone = (values - middle).var(1, ddof=1).sum((0, 1)) / max(trainings - 1, 1)
    scale = runs * tasks**2
    return Estimate(each, by_task.sum(0) / scale, alone / scale, _freedom(by_task, runs), trainings * runs * tasks)


def performance_profile(scores: Floats, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
    """Share of the episodes with a score above each threshold, averaged over tasks, and its pointwise 95 % band.

    Args:
        scores: (runs, tasks) or (trainings, runs, tasks).
        thresholds: (n,).

    Returns:
        Shares, lower and upper ends, each (n,); the ends are NaN for one run a task.
    """
    (checked,) = _checked([scores])
    return linear((checked[..., None] > thresholds).astype(float)).share()


def expected_online_performance(scores: npt.ArrayLike, budget: int | None = None) -> Floats:
    """Expected score of the best of n configurations, tried online, for n = 1 ... budget.

    Kurenkov & Kolesnikov, "Showing your offline reinforcement learning work: online evaluation budget matters" (ICML
    2022). Configurations are drawn without replacement, which makes the estimate unbiased for any budget up to their
    number; the score with which one is chosen is taken for its true one.

    Args:
        scores: Of each configuration that was tried (configurations,), all of them, the bad ones too.
        budget: Largest n; None: as many as there are.

    Raises:
        L4SError: No configurations, or fewer than the budget.
    """
    ordered = np.sort(np.asarray(scores, float))
    count = len(ordered)
    budget = count if budget is None else budget
    if not 1 <= budget <= count:
        raise L4SError(f"expected_online_performance: budget {budget} of {count} configurations: give 1 to {count}")
    # weight[i]: probability that the i-th best from below is the best of n, C(i, n - 1) / C(count, n).
    weight = np.full(count, 1.0 / count)
    best = [float(weight @ ordered)]
    for n in range(2, budget + 1):
        weight = weight * np.maximum(np.arange(count) - n + 2, 0) / (n - 1) * n / (count - n + 1)
        best.append(float(weight @ ordered))
    return np.array(best)
