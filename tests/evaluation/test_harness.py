"""Several scenarios decided for in one batch are what each is alone; bad agents are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.agents import RandomAgent, make
from l4s_gym.agents.rules import ZeroAgent
from l4s_gym.evaluation import harness
from l4s_gym.forms import FORMS
from l4s_gym.sim import scenario
from l4s_gym.tables import timeless

NAMES = ("web", "l4s-llm-testbed", "overload")


def short(name: str) -> scenario.Scenario:
    return scenario.load(name).replace(horizon_s=0.6)


INTERVAL_FORMS = [name for name, form in FORMS.items() if form.low]


@pytest.mark.parametrize(
    ("who", "how"),
    [
        *((who, {"decision_interval": n}) for who in ("random", "threshold", "native:pie") for n in (1, 10)),
        *((f"random:form={form}", {"control_interval_ms": ms}) for form in INTERVAL_FORMS for ms in (16, 100)),
    ],
)
def test_batch_of_many_is_batch_of_one(who: str, how: dict[str, Any]) -> None:
    seeds = (3, 4)
    together = harness.evaluate_many(who, [short(n) for n in NAMES], seeds=seeds, agent_seed=50, **how)
    alone = [
        harness.evaluate_many(who, [short(name)], seeds=[seed], agent_seed=50 + 2 * k + i, **how)[0]
        for k, name in enumerate(NAMES)
        for i, seed in enumerate(seeds)
    ]
    assert [(r.scenario, r.seed) for r in together] == [(name, seed) for name in NAMES for seed in seeds]
    assert [timeless(r.as_dict()) for r in together] == [timeless(r.as_dict()) for r in alone]


def test_return_of_an_episode_is_that_of_the_environment() -> None:
    import gymnasium as gym

    import l4s_gym  # noqa: F401

    (result,) = harness.evaluate("enqueue", short("web"), seeds=[7])
    env = gym.make("l4s_gym:L4S-DualPI2-v0", scenario=short("web"))
    env.reset(seed=7)
    total, ended = 0.0, False
    while not ended:
        _, reward, terminated, truncated, _ = env.step(0)
        total += float(reward)
        ended = terminated or truncated
    assert result.episode_return == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("form", INTERVAL_FORMS)
def test_intervals_are_the_steps_of_the_environment(form: str) -> None:
    """Return, statistics and number of decisions, to the bit; episodes that end earlier wait for the others."""
    import gymnasium as gym

    shorter = scenario.load("overload").replace(horizon_s=0.3)
    both = [short("web"), shorter]
    found = harness.evaluate_many(
        f"random:form={form}", both, seeds=[7, 8], agent_seed=20, aqm="dualpi2_linux", control_interval_ms=25.0
    )
    for k, result in enumerate(found):
        env = gym.make(FORMS[form].env_id, scenario=both[k // 2], aqm="dualpi2_linux", control_interval_ms=25.0)
        agent: Any = make(f"random:form={form}")
        agent.reset(1, 20 + k)
        obs, _ = env.reset(seed=7 + k % 2)
        total, reward, now_ms, ended = 0.0, 0.0, 0.0, False
        starts: list[float] = []
        info: dict[str, Any] = {}
        while not ended:
            starts.append(now_ms)
            obs, earned, terminated, truncated, info = env.step(agent.act(obs[None], np.array([reward]))[0])
            reward = float(earned)
            total += reward
            now_ms += 25.0
            ended = terminated or truncated
        assert result.episode_return == total
        expected = info["statistics"]
        assert (result.utilisation, result.delay_ms) == (expected["utilisation"], expected["delay_ms"])
        assert (result.aqm, result.goodput_mbps) == ("dualpi2_linux", expected["goodput_mbps"])
        warmup_ms = 1e3 * both[k // 2].horizon_s / 2
        assert result.decisions == sum(start >= warmup_ms for start in starts)


def test_the_agent_that_changes_no_parameter_is_the_native_law() -> None:
    """Where the warm-up ends with an interval, so that the statistics are of the same time."""
    native = harness.evaluate("native:dualpi2_rfc9332", short("web"), seeds=[5, 6])
    idle = harness.evaluate("zero:form=parameters", short("web"), seeds=[5, 6], control_interval_ms=20.0)
    for law, agent in zip(native, idle, strict=True):
        assert agent.aqm == "dualpi2_rfc9332"  # the scenario has the testbed's, which cannot be tuned
        assert agent.episode_return == pytest.approx(law.episode_return, rel=1e-12)  # a sum in another order
        other = ("agent", "decisions", "episode_return", "latency_us", "cost", "wall_s")
        mine, theirs = agent.as_dict(), law.as_dict()
        assert {k: v for k, v in mine.items() if k not in other} == {k: v for k, v in theirs.items() if k not in other}


def test_the_probability_of_zero_leaves_only_the_marks_of_l() -> None:
    (result,) = harness.evaluate("zero:form=probability", short("grid-12m-20ms"), seeds=[1], aqm="dualpi2_rfc9332")
    assert result.classes["C"]["marked"] == 0 < result.classes["L"]["marked"]


def test_the_control_interval_is_that_of_the_training() -> None:
    agent = ZeroAgent()
    agent.training = {"control_interval_ms": 50.0}  # type: ignore[attr-defined]
    assert harness.evaluate(agent, short("web"), seeds=[0])[0].decisions == 6
    assert harness.evaluate(agent, short("web"), seeds=[0], control_interval_ms=100)[0].decisions == 3


def test_a_slow_agent_is_timed_in_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, ticks, calls = ZeroAgent(), iter(range(0, 10**15, 4 * 10**7)), 0

    def act(obs: Any, rewards: Any) -> Any:
        nonlocal calls
        calls += 1

    monkeypatch.setattr(agent, "act", act)
    monkeypatch.setattr("time.perf_counter_ns", ticks.__next__)  # 40 ms from one look to the next
    assert harness.latency_us(agent, np.zeros((1, 8), np.float32)) == {"p50": 40_000.0, "p99": 40_000.0}
    assert calls == 26


@pytest.mark.parametrize(
    ("who", "how", "text"),
    [
        ("random", {"control_interval_ms": 16.0}, "control_interval_ms: agent random decides in the form 'packet'"),
        ("zero", {"decision_interval": 2}, "decision_interval: agent zero:.* decides in the form 'parameters'"),
        ("zero", {"control_interval_ms": 0}, "control_interval_ms=0: give a positive number"),
        ("zero", {"aqm": "pie"}, "aqm: pie: give one whose parameters can be scaled"),
    ],
)
def test_intervals_of_another_form_are_refused(who: str, how: dict[str, Any], text: str) -> None:
    with pytest.raises(L4SError, match=text):
        harness.evaluate(who, short("web"), seeds=[0], **how)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda n: np.zeros((n, 2)), "shape (2, 2)"),
        (lambda n: np.zeros((n, 5), np.int64), "int64"),
        (lambda n: np.full((n, 5), 1.5), "1.5 to 1.5"),
        (lambda n: np.full((n, 5), np.nan), "nan"),
        (lambda n: None, "object"),
    ],
)
def test_numbers_that_are_no_action(answer: Callable[[int], Any], text: str) -> None:
    class Bad(ZeroAgent):
        def act(self, obs: Any, rewards: Any) -> Any:
            return answer(len(obs))

    with pytest.raises(L4SError, match=r"return floats of shape \(2, 5\), from -1 to 1") as caught:
        harness.evaluate(Bad(), short("web"), seeds=(0, 1))
    assert text in str(caught.value)


def test_quantiles_are_of_the_delays() -> None:
    result = harness.evaluate("native:dualpi2_rfc9332", short("web"), seeds=[1])[0]
    for name in ("C", "L"):
        values = result.delay_quantiles[name]
        assert len(values) == len(harness.QUANTILES) and values == sorted(values)
        for q in (0.5, 0.95, 0.99):
            exact = result.delay_ms[name][f"p{100 * q:.0f}"]  # type: ignore[literal-required]
            assert values[harness.QUANTILES.index(q)] == pytest.approx(exact, rel=1e-3)
        assert 0.0 < result.delay_sd_ms[name] < result.delay_ms[name]["max"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda n: np.zeros(n + 1, np.int64), "shape"),
        (lambda n: np.full(n, 3), "3 to 3"),
        (lambda n: np.full(n, -1), "-1"),
        (np.zeros, "float64"),
        (lambda n: 0, "shape ()"),
    ],
)
def test_actions_that_are_none(answer: Callable[[int], Any], text: str) -> None:
    class Bad(RandomAgent):
        def act(self, obs: Any, rewards: Any) -> Any:
            return answer(len(obs))

    with pytest.raises(L4SError, match=r"return 2 integers from 0 to 2") as caught:
        harness.evaluate(Bad(), short("web"), seeds=(0, 1))
    assert text in str(caught.value)
