"""`L4S-DualPI2-Live-v0` with the interval forms, on a queue made of logged rows."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from inspect import signature
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import l4s_gym
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.errors import L4SError
from l4s_gym.forms import FORMS
from l4s_gym.live import parameters as live
from l4s_gym.live.environment import DualPI2LiveEnv
from l4s_gym.live.parameters import DualPI2LiveLawEnv, factors_of, live_env
from tests.bridge.conftest import Serve, serve  # noqa: F401
from tests.bridge.server import RATE_BPS, Server, log_of


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes bare environments of a server, and closes them."""
    with ExitStack() as stack:

        def made(server: Server, **kwargs: Any) -> Any:
            kwargs = {"form": "parameters", "control_interval_ms": 1.0, "socket": str(server.path), **kwargs}
            env = gym.make(l4s_gym.LIVE_ID, disable_env_checker=True, **kwargs).unwrapped
            stack.callback(env.close)
            return env

        yield made


@pytest.mark.parametrize("form", ["probability", "parameters"])
def test_gymnasium_checks(serve: Serve, make: Any, form: str) -> None:  # noqa: F811
    env = make(serve(), form=form)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
    with gym.make(FORMS[form].env_id) as simulated:
        assert env.observation_space == simulated.observation_space and env.action_space == simulated.action_space
    for how in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            how(env)


def test_actions_are_factors_of_the_operators_values() -> None:
    bounds = dict(
        zip(wire.LAW_PARAMETERS, [(0.25, 4.0), (0.09, 11.0), (0.5, 2.0), (0.24, 4.2), (1.0, 1.0)], strict=True)
    )
    assert set(factors_of(np.zeros(5), bounds).values()) == {1.0}
    for sign, at in ((-1.0, 0), (1.0, 1)):
        assert factors_of(np.full(5, sign), bounds) == {name: pair[at] for name, pair in bounds.items()}
    half = factors_of(np.array([-0.5, 0.5, 0.5, 0.0, 0.7]), bounds)
    assert list(half.values()) == pytest.approx([0.5, 11.0**0.5, 2.0**0.5, 1.0, 1.0])


@pytest.mark.parametrize("reward", ["balance", "power"])
def test_an_episode(serve: Serve, make: Any, reward: str) -> None:  # noqa: F811
    server = serve(log_of(500))
    env = make(server, reward=reward, horizon_s=0.55, lifetime_ms=300.0)
    _, info = env.reset(seed=1)
    assert server.queue.interval == 0 and wire.DIRECT not in server.commands  # nobody is asked
    assert set(info["factors"].values()) == {1.0}
    action, over, turns = np.array([1.0, -1.0, 0.0, 0.5, 0.9], np.float32), False, 0
    served_s = 200 * 1500 * 8 / RATE_BPS  # SET_LAW and GET_LAW: a hundred packets each, of 1 ms
    while not over:
        before = {name: list(counts) for name, counts in server.queue.counts.items()}
        obs, value, terminated, over, info = env.step(action)
        offered = [new - old for new, old in zip(server.queue.counts["packets"], before["packets"], strict=True)]
        capacity = 0.2 * RATE_BPS / 8
        assert obs[:12] == pytest.approx(
            [2 / 15, 2.0, 1.0, 1.0, *(1500 * count / capacity for count in offered), 0, 0, 0, 0,
             200 * 1500 / capacity, 0.5], rel=1e-5,
        )  # fmt: skip
        weights = 1 - np.exp(-(0.3 + 0.2 * turns) / np.array([0.25, 0.5]))  # of what is constant since the reset
        assert obs[[12, 18, 19, 25]] == pytest.approx(
            [weights[0] * 2 / 15, weights[0] * obs[10], weights[1] * 2 / 15, weights[1] * obs[10]], rel=0.05
        )
        assert obs[26:] == pytest.approx([np.log(4), np.log(2), np.log(RATE_BPS / 56_000)], rel=1e-5)
        delay_s = 1e-9 * (1000 * offered[0] + 500 * offered[1])
        expected = {"balance": served_s - 0.25 * delay_s, "power": served_s / 2}[reward]
        assert value == pytest.approx(expected, rel=1e-3) and not terminated
        turns += 1
    law = [4 * wire.FACTOR, wire.FACTOR // 4, wire.FACTOR, round(8**0.5 * wire.FACTOR), wire.FACTOR, 300]
    assert server.queue.laws == [law] * turns and turns == 3
    assert info["factors"] == {
        name: value / wire.FACTOR for name, value in zip(wire.LAW_PARAMETERS, law[:5], strict=True)
    }
    assert info["reason"] == "horizon" and info["statistics"]["by_agent"] == 0
    assert info["statistics"]["law"] == {"sets": 3, "expired": 0, "refused": 0}
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step(action)
    env.reset()


def test_an_episode_of_probabilities(serve: Serve, make: Any) -> None:  # noqa: F811
    server = serve(prob_high=(0.25, 1.0))
    env = make(server, form="probability", lifetime_ms=300.0)
    _, info = env.reset()
    assert info["probabilities"] is None and server.queue.interval == 0
    for action in ([-1.0, 1.0], [0.0, 0.5], [1.0, -1.0]):
        obs, *_, info = env.step(np.array(action))
        assert obs.shape == (12,)
    parts = [[0, 1 << 31, 300], [round(0.01 * 2**31), round(0.1 * 2**31), 300], [1 << 29, 0, 300]]
    assert server.queue.probabilities == parts  # no more than the operator lets it
    assert info["probabilities"] == (0.25, 0.0)
    with pytest.raises(L4SError, match="give 2 numbers"):
        env.step(np.zeros(5))
    server.prob_high = (0.0, 0.0)
    env.reset()
    *_, over, info = env.step(np.zeros(2))
    assert over and "prob_c_high" in info["reason"]
    with Client(server.path) as client, pytest.raises(L4SError, match=r"p_l=1\.5: give a probability"):
        client.set_probabilities(0.0, 1.5)


def test_an_episode_ends_with_the_control(serve: Serve, make: Any) -> None:  # noqa: F811
    server = serve()
    env = make(server)
    env.reset()
    obs, *_ = env.step(np.zeros(5))
    with server.lock:
        server.restart()
    last, reward, _, over, info = env.step(np.zeros(5))
    assert over and "started anew" in info["reason"] and reward == 0.0
    np.testing.assert_array_equal(last, obs)
    env.reset()
    server.errors[wire.SET_LAW] = wire.E_OUT_OF_BOUNDS, "out of bounds"
    _, _, _, over, info = env.step(np.zeros(5))
    assert over and "operator's bounds" in info["reason"]
    del server.errors[wire.SET_LAW]
    server.law["target"] = (1.0, 2.0)  # the next episode has the new ones
    env.reset()
    env.step(np.ones(5))
    assert server.queue.laws[-1][0] == 2 * wire.FACTOR
    env.close()
    with pytest.raises(gym.error.ResetNeeded, match="not been started"):
        env.step(np.zeros(5))


def test_a_queue_that_takes_no_parameters(serve: Serve, make: Any) -> None:  # noqa: F811
    server = serve(law_lifetime_ms=0)
    with pytest.raises(BridgeError, match="takes no parameters or"):
        make(server).reset()
    with Client(server.path) as client, pytest.raises(BridgeError, match="takes no parameters"):
        client.law()
    assert set(server.commands) <= {wire.DETACH}


def test_misuse(serve: Serve, make: Any) -> None:  # noqa: F811
    server = serve()
    wrong: dict[str, dict[str, Any]] = {
        "single packets": {"reward": "l4s_llm"},
        "control_interval_ms=0.0": {"control_interval_ms": 0.0},
        "lifetime_ms=nan": {"lifetime_ms": float("nan")},
        "unknown form": {"form": "probabilities"},
    }
    for says, kwargs in wrong.items():
        with pytest.raises(L4SError, match=says):
            make(server, **kwargs)
    with pytest.raises(L4SError, match=r"holds for 1000 ms.*law_lifetime_ms"):
        make(server, control_interval_ms=2000.0).reset()
    env = make(server)
    env.reset()
    for action in (np.zeros(4), np.full(5, 1.5), np.full(5, np.nan)):
        with pytest.raises(L4SError, match="5 numbers from -1 to 1"):
            env.step(action)
    with Client(server.path) as other, pytest.raises(L4SError, match="target=0"):
        other.set_law(target=0)


def test_the_page_names_the_arguments() -> None:
    page = live_env.__doc__ or ""
    assert page == DualPI2LiveEnv.__doc__
    assert live.FORMS.keys() == FORMS.keys()
    for name in list(signature(DualPI2LiveLawEnv.__init__).parameters)[1:]:
        assert f"`{name}`" in page
