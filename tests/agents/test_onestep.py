"""The learner `onestep`: what it learns from a dataset whose best action is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'l4s-gym[baselines]'")

from l4s_gym import L4SError
from l4s_gym.agents.onestep import (
    Config,
    Groups,
    Improvement,
    Memory,
    OneStepAgent,
    configure,
    held_out,
    scale_of,
    standardised,
)
from l4s_gym.agents.training import load_config, options_of
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.envs.tune import DualPI2TuneEnv
from l4s_gym.evaluation.harness import evaluate
from l4s_gym.forms import FORMS
from l4s_gym.sim.scenario import load
from l4s_gym.tables import option_paths

FEATURES = tuple(each.name for each in FORMS["parameters"].features)
BEST = np.array([0.4, -0.4, 0.0, 0.3, -0.3])
STEPS, INTERVAL_MS = 20, 16.0
SHORT: dict[str, Any] = {"memory_s": (), "horizon_s": 0.08, "critics": 2, "learning_rate": 1e-2, "pessimism": 0.1}


def group(number: int, members: int, rng: np.random.Generator) -> list[Trajectory]:
    """Episodes that hold an action: rewards fall with its distance from the best one, and differ much more by group.

    The best action is `BEST` where the first feature is near 1, and its opposite where it is near 0.
    """
    found = []
    level, side = 10.0 * rng.normal(), number % 2
    for _ in range(members):
        action = rng.uniform(-1.0, 1.0, 5).astype(np.float32)
        rewards = np.full(STEPS, level - ((action - (2 * side - 1) * BEST) ** 2).sum())
        seen = rng.random((STEPS + 1, len(FEATURES))).astype(np.float32)
        seen[:, 0], seen[:, 1:6] = side + 0.1 * seen[:, 0], 1.0 + action  # what is seen tells the action too
        about = {"scenario_json": b"{}", "aqm": "dualpi2_rfc9332", "seed": number, "control_interval_ms": INTERVAL_MS}
        found.append(Trajectory(seen, np.tile(action, (STEPS, 1)), rewards, about=about, features=FEATURES))
    return found


@pytest.fixture(scope="module")
def episodes() -> list[Trajectory]:
    rng = np.random.default_rng(0)
    return [episode for number in range(200) for episode in group(number, 4, rng)]


def test_returns_are_compared_within_their_group(episodes: list[Trajectory]) -> None:
    found = Groups.of(episodes, 5.0)
    assert found.observations.shape == (200, 4, STEPS, len(FEATURES)) and found.actions.shape == (200, 4, 5)
    assert found.advantages.shape == (200, 4, STEPS - 3)
    np.testing.assert_allclose(found.advantages.mean(axis=1), 0.0, atol=1e-9)
    worth = -((found.actions[1] - BEST) ** 2).sum(axis=-1)
    np.testing.assert_allclose(found.advantages[1, :, 2], worth - worth.mean(), atol=1e-4)


def test_the_actor_goes_to_what_is_best_in_a_state(episodes: list[Trajectory]) -> None:
    config = Config(**SHORT, critic_hidden=(32, 32), critic_steps=1000, actor_steps=300)
    groups = Groups.of(episodes, 5.0)
    x = Memory(INTERVAL_MS, ()).all(groups.observations[:, :, :17])
    number, _, step = np.indices(x.shape[:3]).reshape(3, -1)
    seen = standardised(x, *scale_of(x)).reshape(-1, x.shape[-1])
    work = Improvement(groups, seen, number, step, held_out(200, 0.2, 0), config)
    critics = [work.critic(each) for each in range(config.critics)]
    assert work.r2(critics) > 0.9
    chosen = config.reach * work.actor(critics)(work.x[work.held]).detach().numpy()
    best = np.where(work.x[work.held, :1].numpy() > 0.0, BEST, -BEST)
    assert ((chosen - best) ** 2).sum(axis=1).mean() < 0.2 * (BEST**2).sum()


def test_what_cannot_be_compared_is_refused(episodes: list[Trajectory]) -> None:
    with pytest.raises(L4SError, match="no two groups of episodes with one scenario and seed"):
        Groups.of(episodes[::4], 5.0)
    moved = replace(episodes[0], actions=np.linspace(0.0, 1.0, 5 * STEPS, dtype=np.float32).reshape(STEPS, 5))
    with pytest.raises(L4SError, match="actions of an episode change"):
        Groups.of([moved, *episodes[1:]], 5.0)


def test_the_memory_is_a_moving_average() -> None:
    seen = np.random.default_rng(0).random((3, 50, 2)).astype(np.float32)
    found, logs = Memory(100.0, (1.0,)).all(seen), np.log1p(seen)
    np.testing.assert_allclose(found[..., :2], logs, rtol=1e-6)
    np.testing.assert_allclose(found[:, 4, 2:], logs[:, :5].mean(axis=1), rtol=1e-5)  # of all, while there are few
    np.testing.assert_allclose(found[:, 40, 2:], 0.9 * found[:, 39, 2:] + 0.1 * logs[:, 40], rtol=1e-5)


def test_options_of_the_law_go_with_the_agent() -> None:
    """What it does is a factor of the parameters that the law had in its data."""
    own = {"dualpi2_rfc9332": {"target_ms": 3.0, "alpha": 0.05}}
    base = {"memory_s": (), "actor_hidden": (1,), "smoothing_s": 0.0}
    made = agent(**base)
    made.training["options"] = own
    (result,) = evaluate(made, "steps-early", seeds=[0], control_interval_ms=100.0)
    scenario = load("steps-early").replace(**option_paths(own))
    (same,) = evaluate(agent(**base), scenario, seeds=[0], control_interval_ms=100.0)
    (other,) = evaluate(agent(**base), "steps-early", seeds=[0], control_interval_ms=100.0)
    assert result.episode_return == same.episode_return != other.episode_return
    shape = {"scenario_json": msgspec.json.encode(scenario), "aqm": "dualpi2_rfc9332"}
    episode = Trajectory(np.zeros((2, 29), np.float32), np.zeros((1, 5)), np.zeros(1), about=shape, features=FEATURES)
    assert options_of([episode]) == own
    with pytest.raises(L4SError, match="options of the discipline differ"):
        options_of([episode, replace(episode, about=shape | {"scenario_json": msgspec.json.encode(load("steps"))})])


def agent(**settings: Any) -> OneStepAgent:
    """An agent whose actor always chooses tanh(1)."""
    import torch

    tensors = {"actor.0.weight": torch.zeros(5, len(FEATURES)), "actor.0.bias": torch.ones(5)}
    tensors |= {"mean": torch.zeros(len(FEATURES)), "std": torch.ones(len(FEATURES))}
    tensors["actor.0.weight"][0, 0] = -1e3  # to -1 as soon as the first feature is seen
    return OneStepAgent(tensors, {"memory_s": (), **settings}, {"control_interval_ms": INTERVAL_MS})


def test_actions_move_slowly() -> None:
    obs, rewards = np.zeros((1, len(FEATURES)), np.float32), np.zeros(1)
    for smoothing_s, share in ((1.6, 0.01), (0.0, 1.0)):
        made = agent(smoothing_s=smoothing_s)
        first = made.act(obs, rewards)
        np.testing.assert_allclose(first, made.config.reach * np.tanh(1.0))
        obs[0, 0] = 1.0
        np.testing.assert_allclose(made.act(obs, rewards)[0, 0], first[0, 0] + share * (-0.5 - first[0, 0]))
        made.reset(1, 0)
        np.testing.assert_allclose(made.act(obs, rewards)[0, 0], -0.5)
        obs[0, 0] = 0.0


def test_an_agent_decides_in_its_environment() -> None:
    env, made = DualPI2TuneEnv("l4s-llm-testbed", horizon_s=0.1), agent()
    obs, _ = env.reset(seed=0)
    made.reset(1, 0)
    over = False
    while not over:
        obs, _, _, over, _ = env.step(made.act(obs[None], np.zeros(1))[0].astype(np.float32))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"critics": 0}, "1 or more"),
        ({"reach": 0.0}, "between 0 and 1"),
        ({"memory_s": [0.0]}, "more than 0"),
        ({"pessimism": -1.0}, "0 or more"),
        ({"learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_bad_configurations(given: dict[str, Any], message: str) -> None:
    with pytest.raises(L4SError, match=message):
        configure(given)


def test_the_file_says_the_defaults() -> None:
    assert configure(load_config("onestep")) == Config()
    assert configure(load_config("onestep", small=True)) != Config()
