"""The learner `onestep`: what it learns from a dataset whose best action is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'l4s-gym[baselines]'")

from l4s_gym import L4SError
from l4s_gym.agents.onestep import Config, Improvement, OneStepAgent, configure, draws, scale_of, scaled
from l4s_gym.agents.training import load_config
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.envs.tune import DualPI2TuneEnv
from l4s_gym.forms import FORMS

FEATURES = tuple(each.name for each in FORMS["parameters"].features)
BEST = np.array([0.5, -0.5, 0.0, 0.8, -0.8])
STEPS, HELD = 40, 20


def group(number: int, members: int, rng: np.random.Generator) -> list[Trajectory]:
    """Episodes whose rewards fall with the distance from `BEST`, and differ much more from group to group."""
    found = []
    level = 10.0 * rng.normal()
    for _ in range(members):
        actions = np.repeat(rng.uniform(-1.0, 1.0, (STEPS // HELD, 5)), HELD, axis=0).astype(np.float32)
        rewards = level - ((actions - BEST) ** 2).sum(axis=1)
        seen = np.full((STEPS + 1, len(FEATURES)), abs(level), np.float32)
        seen[:, 0] = rng.random(STEPS + 1)
        about = {"scenario_json": "{}", "aqm": "dualpi2_rfc9332", "seed": number, "control_interval_ms": 16.0}
        found.append(Trajectory(seen, actions, rewards, about=about, features=FEATURES))
    return found


@pytest.fixture(scope="module")
def episodes() -> list[Trajectory]:
    rng = np.random.default_rng(0)
    return [episode for number in range(200) for episode in group(number, 4, rng)]


def test_draws_are_compared_within_their_group(episodes: list[Trajectory]) -> None:
    found = draws(episodes, 0.5)
    assert found.observations.shape == (400, 4, len(FEATURES)) and found.actions.shape == (400, 4, 5)
    np.testing.assert_allclose(found.advantages.mean(axis=1), 0.0, atol=1e-9)
    worth = -((found.actions - BEST) ** 2).sum(axis=-1)
    np.testing.assert_allclose(found.advantages, worth - worth.mean(axis=1, keepdims=True), atol=1e-4)
    assert found.group.tolist() == np.repeat(np.arange(200), 2).tolist()
    assert found.steps.tolist() == [0, HELD] * 200


def test_the_actor_goes_to_what_is_best(episodes: list[Trajectory]) -> None:
    config = Config(critics=2, critic_steps=600, actor_steps=300, learning_rate=1e-2, pessimism=0.1)
    found = draws(episodes, 0.5)
    work = Improvement(found, scaled(found.observations, *scale_of(found.observations)), config)
    critics = [work.critic(number) for number in range(config.critics)]
    assert work.r2(critics) > 0.95
    chosen = work.actor(critics)(work.x[work.held].flatten(0, 1)).detach().numpy()
    assert (np.sign(chosen[:, [0, 1, 3, 4]]) == np.sign(BEST[[0, 1, 3, 4]])).all()
    assert ((chosen - BEST) ** 2).sum(axis=1).mean() < 0.2 * (BEST**2).sum()


def test_without_groups_nothing_is_learned(episodes: list[Trajectory]) -> None:
    with pytest.raises(L4SError, match="no two groups of episodes with one scenario and seed"):
        draws(episodes[::4], 0.5)


def agent(**settings: Any) -> OneStepAgent:
    """An agent whose actor always chooses tanh(1)."""
    import torch

    tensors = {"actor.0.weight": torch.zeros(5, len(FEATURES)), "actor.0.bias": torch.ones(5)}
    tensors |= {"mean": torch.zeros(len(FEATURES)), "std": torch.ones(len(FEATURES))}
    tensors["actor.0.weight"][0, 0] = -1e3  # to -1 as soon as the first feature is seen
    return OneStepAgent(tensors, settings, {"control_interval_ms": 16.0})


def test_actions_move_slowly() -> None:
    obs, rewards = np.zeros((1, len(FEATURES)), np.float32), np.zeros(1)
    for smoothing_s, share in ((1.6, 0.01), (0.0, 1.0)):
        made = agent(smoothing_s=smoothing_s)
        first = made.act(obs, rewards)
        np.testing.assert_allclose(first, np.tanh(1.0))
        obs[0, 0] = 1.0
        np.testing.assert_allclose(made.act(obs, rewards)[0, 0], first[0, 0] + share * (-1.0 - first[0, 0]))
        made.reset(1, 0)
        np.testing.assert_allclose(made.act(obs, rewards)[0, 0], -1.0)
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
        ({"gamma": 1.0}, "between 0 and 1"),
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
