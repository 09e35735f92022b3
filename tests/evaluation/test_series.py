"""A time series is the run that the harness measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness, series
from l4s_gym.sim import scenario as scenarios

SCENARIO = scenarios.load("l4s-llm-testbed").replace(horizon_s=4.0, warmup_s=0.0)


@pytest.mark.parametrize(("who", "interval"), [("native:dualpi2_rfc9332", 1), ("random", 1), ("threshold", 10)])
def test_it_is_the_run_of_the_harness(who: str, interval: int) -> None:
    found = series.record(who, SCENARIO, 3, interval=interval, step_ms=50.0)
    (result,) = harness.evaluate(who, SCENARIO, seeds=[3], interval=interval)
    assert (found.rule, found.scenario, found.seed) == (result.rule, result.scenario, result.seed)
    goodput = np.array([found.goodput_mbps[cls] for cls in "CL"], float)
    assert goodput.shape == (2, 80)
    assert goodput.mean(axis=1).sum() == pytest.approx(sum(result.goodput_mbps), rel=1e-3)
    for cls in "CL":
        delay = np.array(found.delay_ms[cls], float)
        assert 0.0 <= np.nanmin(delay) <= result.delay_ms[cls]["mean"] <= np.nanmax(delay)
        assert np.nanmax(delay) <= result.delay_ms[cls]["max"] * 1.001
        marks = np.array(found.mark_rate[cls], float)
        assert np.nanmin(marks) <= result.classes[cls]["mark_rate"] <= np.nanmax(marks)


def test_the_warm_up_leaves_no_step() -> None:
    plain = series.record("native:pie", SCENARIO, 0, step_ms=500.0)
    warmed = series.record("native:pie", SCENARIO.replace(warmup_s=1.5), 0, step_ms=500.0)
    assert plain == warmed


def test_nothing_left_is_not_no_delay() -> None:
    late = SCENARIO.replace(horizon_s=1.0, **{"sources.*.start_s": 0.5})
    found = series.record("native:fifo", late, 0)
    assert found.delay_ms["C"][0] is None and found.mark_rate["L"][0] is None
    assert found.goodput_mbps["C"][0] == 0.0


def test_read_gives_back_what_was_written(tmp_path: Path) -> None:
    found = [series.record("native:fifo", SCENARIO.replace(horizon_s=1.0), 0, name="fifo--plain")]
    series.write(tmp_path / "series.json", found)
    assert series.read(tmp_path / "series.json") == found
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(L4SError, match="no time series"):
        series.read(tmp_path / "other.json")
