"""Several scenarios decided for in one batch are what each is alone; bad agents are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.agents import RandomAgent
from l4s_gym.evaluation import harness
from l4s_gym.sim import scenario
from l4s_gym.tables import timeless

NAMES = ("web", "l4s-llm-testbed", "overload")


def short(name: str) -> scenario.Scenario:
    return scenario.load(name).replace(horizon_s=0.6)


@pytest.mark.parametrize("who", ["random", "threshold", "native:pie"])
@pytest.mark.parametrize("interval", [1, 10])
def test_batch_of_many_is_batch_of_one(who: str, interval: int) -> None:
    seeds = (3, 4)
    together = harness.evaluate_many(
        who, [short(n) for n in NAMES], seeds=seeds, agent_seed=50, decision_interval=interval
    )
    alone = [
        harness.evaluate_many(who, [short(name)], seeds=[seed], agent_seed=50 + 2 * k + i, decision_interval=interval)[
            0
        ]
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
