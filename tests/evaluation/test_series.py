"""A time series is the run that the harness measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.errors import L4SError
from l4s_gym.evaluation import entry, harness, series
from l4s_gym.evaluation.entry import Entry
from l4s_gym.sim import fingerprint
from l4s_gym.sim import scenario as scenarios

SCENARIO = scenarios.load("l4s-llm-testbed").replace(horizon_s=4.0, warmup_s=0.0)


@pytest.mark.parametrize(
    ("who", "how"),
    [
        *(
            (who, {"decision_interval": n})
            for who, n in (("native:dualpi2_rfc9332", 1), ("random", 1), ("threshold", 10))
        ),
        ("random:form=parameters", {"control_interval_ms": 25.0}),
    ],
)
def test_it_is_the_run_of_the_harness(who: str, how: dict[str, Any]) -> None:
    found = series.record(who, SCENARIO, 3, step_ms=50.0, **how)
    (result,) = harness.evaluate(who, SCENARIO, seeds=[3], **how)
    assert (found.rule, found.scenario, found.seed) == (result.rule, result.scenario, result.seed)
    goodput = np.array([found.goodput_mbps[cls] for cls in "CL"], float)
    assert goodput.shape == (2, 80)
    assert goodput.mean(axis=1).sum() == pytest.approx(sum(result.goodput_mbps), rel=1e-3)
    for cls in "CL":
        delay = np.array(found.delay_ms[cls], float)
        assert 0.0 <= np.nanmin(delay) <= result.delay_ms[cls]["mean"] <= np.nanmax(delay)
        assert np.nanmax(delay) <= result.delay_ms[cls]["max"] * 1.001
        for name, per_s in (("marked", found.marks_per_s), ("dropped", found.drops_per_s)):
            assert np.sum(np.array(per_s[cls], float)) * 0.05 == pytest.approx(result.classes[cls][name], rel=1e-3)  # type: ignore[literal-required]


def test_steps_are_whole_control_intervals() -> None:
    found = series.record("zero", SCENARIO, 0, control_interval_ms=16.0, step_ms=100.0)
    assert found.step_ms == 96.0 and len(found.marks_per_s["C"]) == 4000 // 96
    native = series.record("native:dualpi2_rfc9332", SCENARIO, 0, step_ms=96.0)
    assert (found.delay_ms, found.goodput_mbps) == (native.delay_ms, native.goodput_mbps)


def test_the_warm_up_leaves_no_step() -> None:
    plain = series.record("native:pie", SCENARIO, 0, step_ms=500.0)
    warmed = series.record("native:pie", SCENARIO.replace(warmup_s=1.5), 0, step_ms=500.0)
    assert plain == warmed


def test_nothing_left_is_not_no_delay() -> None:
    late = SCENARIO.replace(horizon_s=1.0, **{"sources.*.start_s": 0.5})
    found = series.record("native:fifo", late, 0)
    assert found.delay_ms["C"][0] is None and found.delay_ms["L"][0] is None
    assert found.goodput_mbps["C"][0] == found.marks_per_s["L"][0] == 0.0


def test_read_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "series.json"
    found = [series.record("native:fifo", SCENARIO.replace(horizon_s=1.0), 0, name="fifo--plain")]
    series.write(path, found, version="1")
    assert series.read(path, version="1") == found
    assert series.read(path, version="2") == []
    path.write_text("{}")
    with pytest.raises(L4SError, match="no time series"):
        series.read(path)


def test_a_board_keeps_the_runs_that_are_there(
    board_entries: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = entry.Size(1.0, 1, ("test",), ("l4s-llm-testbed", "web"))
    rules = entry.Protocol("balance", {"test": 1000}, size, size, size)
    whole = [each for each in board_entries if each.failed is None and each.agent != "random"]
    asked: list[str] = []

    @contextmanager
    def progress(text: str) -> Iterator[Callable[[float], None]]:
        asked.append(text)
        yield lambda _: None

    path = tmp_path / "entries" / "series.json"
    found = series.of_board(whole, rules, "quick", path, tmp_path, progress)
    # Trained ones are not in the work folder.
    assert [each.name for each in found] == [each.id for each in whole if each.agent in ("native", "zero")]
    assert {(each.scenario, each.seed, len(each.goodput_mbps["C"])) for each in found} == {
        ("l4s-llm-testbed", 1000, 10)
    }
    assert len(asked) == len(found) > 1
    assert series.of_board(whole, rules, "quick", path, tmp_path, progress) == found
    assert len(asked) == len(found)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "FINGERPRINT", "0123456789ab")
        assert series.of_board([], rules, "quick", path, tmp_path, progress) == []  # those of another simulator
    monkeypatch.setattr(series, "LONGEST_S", -1.0)
    path.unlink()
    assert series.of_board(whole, rules, "quick", path, tmp_path, progress) == []
