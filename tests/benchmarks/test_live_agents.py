"""The study of agents on the live router: how agents are given, what a score is, and whether an order holds."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness

LIVE = Path(__file__).parents[2] / "benchmarks" / "studies" / "live"


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(LIVE)
        patch.delitem(sys.modules, "run", raising=False)
        yield runpy.run_path(str(LIVE / "agents.py"), run_name="script")
        patch.delitem(sys.modules, "run", raising=False)


def test_agents_are_read(script: dict[str, Any]) -> None:
    def read(text: str) -> tuple[Any, ...]:
        found = script["decider"](text)
        return found.name, found.spec, found.every, found.interval_ms

    assert read("a=runs/a") == ("a", "runs/a", 1, None)
    assert read("a=runs/a,rule=diffuse,every=10") == ("a", "runs/a,rule=diffuse", 10, None)
    assert read("z=zero:form=parameters,every=500ms") == ("z", "zero:form=parameters", 1, 500.0)
    free = script["decider"]("t=runs/t,every=10,free")
    assert (free.name, free.spec, free.every, free.free) == ("t-free", "runs/t", 10, True)
    for wrong in ("runs/a", "a=", "a=runs/a,every=0.5", "a=runs/a,every=x"):
        with pytest.raises(L4SError, match="give NAME=SPEC"):
            script["decider"](wrong)
    with pytest.raises(L4SError, match="give another name"):
        script["deciders"](["a=enqueue", "a=enqueue"])


def test_an_agent_gets_the_law_over_which_it_was_trained(script: dict[str, Any]) -> None:
    found = script["deciders"](["plain=zero:form=parameters", "own=tests.live.test_interval_control:Tuned"])
    targets = {each.name: each.scenario(8.0, 4.0).options.dualpi2_rfc9332.target_ms for each in found}
    assert targets["dualpi2_tuned"] == targets["own"] == 3.2 and targets["plain"] == targets["dualpi2_rfc9332"] == 15.0


def test_the_rate_falls_half_way(script: dict[str, Any]) -> None:
    scenario = script["decider"]("a=enqueue").scenario(8.0, 10.0)
    assert scenario.link.steps == ((5.0, 0.5),)
    assert script["study"].mean_mbps(scenario) == pytest.approx(6.0)


def test_the_score_is_use_times_evenness_less_delays(script: dict[str, Any]) -> None:
    who, seconds = script["decider"]("native=native:dualpi2_rfc9332"), 3.0
    found = script["simulated"](who, 8.0, seconds, 1)
    scenario = who.scenario(8.0, seconds)
    (delays,) = harness.evaluate(who.spec, scenario, seeds=(1,), reward={"delay_c": -0.25, "delay_l": -0.25})
    c, l4s = found["goodput_mbps"].values()
    even = 2.0 * (c * l4s) ** 0.5 / (c + l4s)
    wanted = found["utilisation"] * even + delays.episode_return / seconds
    assert found["score"] == pytest.approx(wanted, abs=0.01)


def test_pairs_in_the_same_order(script: dict[str, Any]) -> None:
    scores = {"live": {"a": 0.9, "b": 0.8, "c": 0.7}, "simulated": {"a": 0.9, "b": 0.6, "c": 0.7}}
    rows = [
        {"rate_mbps": 8.0, "who": who, "way": way, "runs": [{"score": score}]}
        for way, each in scores.items()
        for who, score in each.items()
    ]
    assert script["order"](rows, 8.0, "simulated") == ["a", "c", "b"]
    assert script["agreement"](rows, 8.0) == (2, 3)
    assert script["agreement"](rows, 8.0, 0.15) == (2, 2)
