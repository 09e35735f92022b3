"""Statistics of few runs: closed forms, arithmetic, the established library, and how often the intervals cover."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l4s_gym.errors import L4SError
from l4s_gym.evaluation import statistics
from l4s_gym.evaluation.statistics import Floats, Interval

POINT = [statistics.iqm, statistics.mean, statistics.median, statistics.optimality_gap]
SCORES = hnp.arrays(
    float,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=6),
    elements=st.floats(-1e3, 1e3).map(lambda value: round(value, 3)),
)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def gaussian(*shape: int) -> Floats:
    return np.random.default_rng(1).normal(size=shape)


def ends(interval: Interval) -> tuple[float, float]:
    """Lower and upper end, which are there."""
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def test_point_measures_of_known_scores() -> None:
    scores = np.array([[0.0, 10.0, 20.0, 1000.0], [4.0, 10.0, 40.0, -1000.0]])
    assert statistics.iqm(scores) == (4 + 10 + 10 + 20) / 4
    assert statistics.mean(scores) == 84 / 8
    assert statistics.median(scores) == np.median([2.0, 10.0, 30.0, 0.0])
    assert statistics.optimality_gap(scores, 10.0) == (10 + 6 + 1010) / 8


@given(SCORES)
@settings(deadline=None, max_examples=40)
def test_point_measures_work_on_leading_axes(scores: Floats) -> None:
    for measure in POINT:
        assert measure(scores) == pytest.approx([float(measure(one)) for one in scores], abs=1e-9)


@given(SCORES, st.floats(0.1, 10.0), st.floats(-100.0, 100.0))
@settings(deadline=None, max_examples=40)
def test_location_and_scale_pass_through(scores: Floats, scale: float, shift: float) -> None:
    for measure in (statistics.iqm, statistics.mean, statistics.median):
        assert measure(scale * scores + shift) == pytest.approx(scale * measure(scores) + shift, abs=1e-6)


@given(SCORES)
@settings(deadline=None, max_examples=40)
def test_iqm_does_not_feel_the_order_and_lies_between_the_quartiles(scores: Floats) -> None:
    iqm = statistics.iqm(scores)
    assert statistics.iqm(scores[:, ::-1, ::-1]) == pytest.approx(iqm, abs=1e-9)
    flat = np.sort(scores.reshape(len(scores), -1), 1)
    cut = flat.shape[1] // 4
    assert np.all(iqm >= flat[:, cut] - 1e-9)
    assert np.all(iqm <= flat[:, -1 - cut] + 1e-9)


@given(SCORES)
@settings(deadline=None, max_examples=40)
def test_improvement_is_antisymmetric_and_even_with_oneself(scores: Floats) -> None:
    others = scores[:, ::-1]
    for measure in (statistics.probability_of_improvement, lambda a, b: statistics.wins(a, b).mean((-2, -1))):
        assert measure(scores, others) + measure(others, scores) == pytest.approx(1.0)
        assert measure(scores, scores) == pytest.approx(0.5)


def test_improvement_counts_pairs_by_task() -> None:
    ours, theirs = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 0.0], [2.0, 9.0], [0.0, 5.0]])
    # First task: 1 beats one of three, 3 all three. Second: 5 beats one, ties with one, twice.
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx((4 / 6 + (1.5 * 2) / 6) / 2)


def test_normalised_scores_of_the_references_average_to_0_and_100() -> None:
    low, high = gaussian(5, 3), gaussian(5, 3) + 7.0
    assert statistics.normalised(low, low, high).mean(0) == pytest.approx(0.0, abs=1e-9)
    assert statistics.normalised(high, low, high).mean(0) == pytest.approx(100.0)


@pytest.mark.parametrize("freedom", [1.0, 1.5, 2.0, 3.7, 9.0, 11.0, 60.0, 1e3, 1e9])
def test_quantiles_of_student_are_those_of_scipy(freedom: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    for probability in (0.5, 0.9, 0.975, 0.995):
        expected = stats.t.ppf(probability, freedom)
        assert statistics.quantile_t(probability, freedom) == pytest.approx(expected, rel=2e-4, abs=1e-9)


def test_interval_of_one_task_is_the_t_interval() -> None:
    runs = gaussian(10, 1)
    half = 2.2622 * runs.std(ddof=1) / math.sqrt(10)  # 97.5 % point of 9 degrees of freedom
    assert ends(statistics.linear(runs).interval()) == pytest.approx((runs.mean() - half, runs.mean() + half), 1e-3)


def test_trained_agents_without_traffic_noise_give_the_t_interval_of_the_trainings() -> None:
    trainings = np.array([1.0, 2.0, 6.0])
    scores = np.broadcast_to(trainings[:, None, None], (3, 10, 5))
    half = 4.3027 * trainings.std(ddof=1) / math.sqrt(3)  # 97.5 % point of 2 degrees of freedom
    for found in (statistics.linear(scores), statistics.bootstrap(scores, rng=generator(), resamples=50)):
        assert ends(found.interval()) == pytest.approx((3.0 - half, 3.0 + half), 1e-3)


@pytest.mark.parametrize("shape", [(1, 10, 15), (3, 10, 15)])
def test_bootstrap_of_a_mean_comes_to_its_closed_form(shape: tuple[int, int, int]) -> None:
    scores = gaussian(*shape) * np.geomspace(0.1, 10.0, shape[-1]) + gaussian(shape[0], 1, 1)
    drawn = statistics.bootstrap(scores, statistics.mean, rng=generator(), resamples=10_000)
    closed = statistics.linear(scores)
    assert drawn.each == pytest.approx(closed.each)
    assert drawn.traffic == pytest.approx(closed.traffic, rel=0.06)
    assert drawn.noise == pytest.approx(closed.noise, rel=0.06)
    assert drawn.freedom == pytest.approx(closed.freedom)


def test_runs_of_one_seed_are_drawn_together() -> None:
    ours = gaussian(10, 15)
    found = statistics.bootstrap(
        [ours, ours - 1.0], lambda a, b: statistics.iqm(a) - statistics.iqm(b), rng=generator(), resamples=200
    )
    assert ends(found.interval()) == pytest.approx((1.0, 1.0))
    low, high = ends(statistics.bootstrap(ours, rng=generator(), resamples=200).interval())
    assert high - low > 0.1


def test_draws_come_from_the_generator_alone() -> None:
    first, again = (statistics.bootstrap(gaussian(10, 5), rng=generator()).interval() for _ in range(2))
    assert first == again
    assert statistics.bootstrap(gaussian(10, 5), rng=np.random.default_rng(5)).interval() != first


def test_one_run_has_no_interval() -> None:
    scores = gaussian(3, 1, 4)
    assert statistics.bootstrap(scores, rng=generator()).interval().low is None
    assert statistics.linear(scores).interval().high is None
    assert statistics.linear(np.ones((1, 4))).share_interval() == Interval(1.0)
    assert np.isnan(statistics.performance_profile(scores, np.zeros(2))[1]).all()


def test_shares_stay_within_0_and_1_and_never_shrink_to_nothing() -> None:
    sure = statistics.linear(np.ones((10, 15))).share_interval()
    assert sure.value == sure.high == 1.0
    few = statistics.linear(np.ones((3, 10, 15))).share_interval()
    assert 0.7 < ends(few)[0] < ends(sure)[0] < 1.0  # Three trainings say less than many episodes of one agent.


def test_difference_of_two_suites_adds_the_variances_of_their_traffic() -> None:
    ours, theirs = statistics.linear(gaussian(10, 5)), statistics.linear(gaussian(10, 5) * 2.0)
    difference = ours - theirs
    assert difference.traffic == pytest.approx(ours.traffic + theirs.traffic)
    assert 9.0 <= difference.freedom <= ours.freedom + theirs.freedom
    # What a training does to both suites alike is no part of the difference.
    both = np.array([0.0, 50.0, -50.0])[:, None, None]
    gap = statistics.linear(gaussian(3, 10, 5) + both) - statistics.linear(gaussian(3, 10, 4) + both)
    low, high = ends(gap.interval())
    assert high - low < 3.0


@pytest.mark.parametrize(
    "scores", [np.zeros((0, 4)), np.full((2, 4), np.nan), [np.zeros((2, 4)), np.zeros((2, 5))], np.zeros(4)]
)
def test_scores_that_cannot_be_used_are_refused(scores: Any) -> None:
    with pytest.raises(L4SError, match="statistics: scores"):
        statistics.bootstrap(scores, rng=generator())


def test_performance_profile_is_the_share_above_each_threshold() -> None:
    scores, thresholds = gaussian(10, 15), np.array([-9.0, -1.0, 0.0, 1.0, 9.0])
    share, low, high = statistics.performance_profile(scores, thresholds)
    assert share == pytest.approx([(scores > threshold).mean() for threshold in thresholds])
    assert np.all(low <= share) and np.all(share <= high)
    assert np.all(np.diff(share) <= 0.0) and low[0] < 1.0 and high[-1] > 0.0


def test_expected_online_performance_is_the_mean_best_of_all_choices() -> None:
    scores = [3.0, -1.0, 7.0, 7.0, 0.5]
    for n, found in enumerate(statistics.expected_online_performance(scores), start=1):
        assert found == pytest.approx(np.mean([max(chosen) for chosen in itertools.combinations(scores, n)]))
    assert len(statistics.expected_online_performance(scores, 2)) == 2
    with pytest.raises(L4SError, match="budget 6 of 5"):
        statistics.expected_online_performance(scores, 6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_expected_online_performance_grows_from_the_mean_to_the_best(scores: list[float]) -> None:
    found = statistics.expected_online_performance(scores)
    assert found[0] == pytest.approx(np.mean(scores), abs=1e-6)
    assert found[-1] == pytest.approx(max(scores), abs=1e-6)
    assert np.all(np.diff(found) >= -1e-6)


def test_agrees_with_rliable() -> None:
    try:
        import rliable.library as rly
        from rliable import metrics
    except ImportError as error:
        pytest.skip(f"rliable does not import (it needs pandas < 3): {error}")
    ours, theirs = gaussian(10, 15) + 0.3, np.random.default_rng(2).normal(size=(8, 15))
    assert statistics.iqm(ours) == pytest.approx(metrics.aggregate_iqm(ours))
    assert statistics.mean(ours) == pytest.approx(metrics.aggregate_mean(ours))
    assert statistics.median(ours) == pytest.approx(metrics.aggregate_median(ours))
    assert statistics.optimality_gap(ours, 1.0) == pytest.approx(metrics.aggregate_optimality_gap(ours, 1.0))
    improvement = metrics.probability_of_improvement(ours, theirs)
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(improvement)
    thresholds = np.linspace(-2.0, 2.0, 9)
    profile, _ = rly.create_performance_profile({"ours": ours}, thresholds, reps=10)
    assert statistics.performance_profile(ours, thresholds)[0] == pytest.approx(profile["ours"])
    # Its percentile interval draws all runs: narrower by sqrt(9 / 10), give or take the draws.
    np.random.seed(0)  # noqa: NPY002 - it uses NumPy's global generator
    _, theirs = rly.get_interval_estimates({"ours": ours}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=4000)
    low, high = ends(statistics.bootstrap(ours, rng=generator()).interval())
    assert np.diff(theirs["ours"][:, 0])[0] / (high - low) == pytest.approx(math.sqrt(0.9), rel=0.05)


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "studies" / "intervals" / "run.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_intervals", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "standard, not trained",
        "standard, not trained, shift",
        "standard, 3 trainings",
        "standard, 5 trainings unlike, skewed",
    ],
)
def test_intervals_hold_the_truth_in_95_of_100_boards(coverage: Any, case: str) -> None:
    found = coverage.measure(coverage.CASES[case], boards=1000, resamples=200, seed=1)["coverage"]
    assert 0.93 <= found["score"] <= 0.97
    assert 0.93 <= found["over native"] <= 0.97
    assert found["improvement"] >= 0.93  # More where most scenarios are won or lost in every run.


def test_the_difference_of_two_intervals() -> None:
    one, other = statistics.Interval(5.0, 2.0, 8.0), statistics.Interval(3.0, -1.0, 7.0)
    assert one.less(other) == statistics.Interval(2.0, -3.0, 7.0)
    assert one.less(statistics.Interval(1.0)) == statistics.Interval(4.0)
