"""Components of the reward in `info`, rewards made of weights, and rewards as vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import l4s_gym
from l4s_gym import L4SError, rewards
from l4s_gym.envs.multi import MultiObjective
from l4s_gym.envs.prob import DualPI2ProbVectorEnv

ENV_ID, PROB_ID, _ = l4s_gym.ENV_IDS
Plain = Callable[..., dict[str, Any]]
MIX = {"used": 0.5, "evenness": 0.5, "delay_c": -0.1, "delay_l": -0.25}
SCALED = {"balance": (1, 0, 0.25, 0.25), "fair": (0, 1, 0.25, 0.25), "mix": (0.5, 0.5, 0.1, 0.25)}


def episode(env: Any, seed: int = 3) -> tuple[list[Any], dict[str, Any]]:
    """Rewards of an episode of drawn actions, and its last info."""
    env.reset(seed=seed)
    rng, earned, over = np.random.default_rng(0), [], False
    while not over:
        _, reward, terminated, truncated, info = env.step((0.1 * rng.random(2)).astype(np.float32))
        earned.append(reward)
        over = terminated or truncated
    return earned, info


@pytest.mark.parametrize("name", SCALED)
def test_a_vector_scaled_to_a_number_is_the_reward(name: str, plain: Plain) -> None:
    tree = plain("mixed", horizon_s=2.0)
    reward: Any = MIX if name == "mix" else name
    vectors, _ = episode(MultiObjective(gym.make(PROB_ID, scenario=tree)))
    numbers, info = episode(gym.make(PROB_ID, scenario=tree, reward=reward))
    np.testing.assert_allclose(np.array(vectors) @ SCALED[name], numbers, rtol=0, atol=1e-12)
    weights = rewards.weights_of(reward)
    assert weights is not None
    assert rewards.total(weights, info["statistics"]["components"]) == pytest.approx(sum(numbers), rel=1e-9)
    assert info["statistics"]["components_per_s"]["used"] == info["statistics"]["components"]["used"] / 2.0


def test_the_vector_keeps_the_convention(plain: Plain) -> None:
    env = MultiObjective(gym.make(PROB_ID, scenario=plain("web", horizon_s=1.0)))
    inner: Any = env.unwrapped
    assert env.reward_space == inner.reward_space and env.reward_dim == inner.reward_dim == 4
    vectors, info = episode(env)
    assert all(env.reward_space.contains(vector) for vector in vectors)
    np.testing.assert_array_equal(np.abs(vectors[-1]), list(info["components"].values()))
    assert list(info["components"]) == list(rewards.COMPONENTS)
    with pytest.raises(L4SError, match="has no control intervals"):
        MultiObjective(gym.make(ENV_ID))


def test_snapshots_tell_weights_apart(plain: Plain) -> None:
    tree = plain("web", horizon_s=1.0)
    made: list[Any] = [gym.make(PROB_ID, scenario=tree, reward=each).unwrapped for each in ("balance", "fair", MIX)]
    for env in made:
        env.reset(seed=0)
    assert len({env.batch.identity["reward"] for env in made}) == 3
    with pytest.raises(L4SError, match=r"made with reward balance, here it is used=0\.5,evenness=0\.5"):
        made[2].restore_state(made[0].clone_state())


def test_the_evenness_is_copied(plain: Plain) -> None:
    env = gym.make(PROB_ID, scenario=plain("web", horizon_s=3.0), reward="fair")
    env.reset(seed=0)
    for _ in range(100):
        env.step(np.full(2, 0.02, np.float32))
    other = copy.deepcopy(env)
    for _ in range(80):
        ours, theirs = (each.step(np.full(2, 0.02, np.float32)) for each in (env, other))
        assert ours[1] == theirs[1] and ours[4] == theirs[4]
    inner: Any = env.unwrapped
    assert inner.batch.env["evenness"][0] not in (0.0, 1.0)
    env.reset(seed=0)
    assert inner.batch.env["evenness"][0] == 1.0 and not inner.batch.env["past_bytes"].any()


def test_weights_in_a_vector_environment(plain: Plain) -> None:
    env = DualPI2ProbVectorEnv(2, plain("web", horizon_s=1.0), reward=MIX)
    _, infos = env.reset(seed=0)
    assert "components" not in infos
    *_, infos = env.step(np.zeros((2, 2), np.float32))
    _, reward, *_, infos = env.step(np.zeros((2, 2), np.float32))
    found = sum(weight * infos["components"][name] for name, weight in MIX.items())
    np.testing.assert_allclose(found, reward, rtol=0, atol=1e-12)
    assert infos["_components"].all()
