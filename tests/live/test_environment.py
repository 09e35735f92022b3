"""`L4S-DualPI2-Live-v0` keeps Gymnasium's contract on a queue that it does not own."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

import l4s_gym
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.data.causal import UNKNOWN, causal_observation
from l4s_gym.data.pools import make_rows
from l4s_gym.errors import L4SError
from l4s_gym.live.control import RewardMeter, asks_of
from l4s_gym.schema import OBSERVED, scale_observation
from tests.bridge.conftest import Serve
from tests.bridge.server import RATE_BPS, Server, log_of

_made: list[Any] = []


@pytest.fixture(autouse=True)
def close_all() -> Iterator[None]:
    """Close what a test has made, also where it fails."""
    yield
    while _made:
        _made.pop().close()


def make(server: Server, **kwargs: Any) -> Any:
    """The bare environment."""
    env = gym.make(l4s_gym.LIVE_ID, disable_env_checker=True, socket=str(server.path), **kwargs).unwrapped
    _made.append(env)
    return env


def observations(records: Any) -> Any:
    """What an agent sees where it is asked about these (n, 8)."""
    return np.concatenate([ask.observation for ask in asks_of(wire.encode(wire.rows(records, wire.ASK)))])


def test_gymnasium_checks(serve: Serve) -> None:
    env = make(serve())
    assert env.spec.nondeterministic
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_are_refused(serve: Serve, how: Any) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled: it controls a real queue"):
        how(make(serve()))


def test_spaces_are_those_of_the_simulator(serve: Serve) -> None:
    env = make(serve())
    with gym.make(l4s_gym.ENV_IDS[0]) as simulated:
        assert env.observation_space == simulated.observation_space and env.action_space == simulated.action_space


def test_arguments_are_json() -> None:
    env = gym.make(l4s_gym.LIVE_ID, socket="/x", decision_interval=10, reward="power", horizon_s=5.0)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec is not None and again.spec.kwargs == env.spec.kwargs


def test_observations_are_the_simulators(simulated: Any) -> None:
    expected = scale_observation(causal_observation(make_rows(simulated, "made")))
    np.testing.assert_array_equal(observations(simulated), expected)
    simulated = simulated[:2].copy()
    simulated["accumulated_probability_before"] = UNKNOWN
    assert (observations(simulated)[:, 4] == 0).all()


@pytest.mark.parametrize("reward", ["balance", "power", "l4s_llm", "used=0.5,delay_l=-2"])
def test_an_episode(serve: Serve, reward: str) -> None:
    records = log_of(500)
    server = serve(records, patience_s=None)
    env = make(server, decision_interval=5, reward=reward, horizon_s=0.5, lifetime_ms=20.0, info_record=True)
    obs, info = env.reset(seed=1)
    row, total, over, rows = 0, 0.0, False, [0]
    while not over:
        asked = records[row]
        assert info["record"]["queue_type"] == asked["queue_type"] == obs[0]
        assert info["record"]["accumulated_probability"] == asked["accumulated_probability_before"]
        assert info["record"]["total_drops"] == asked["interval_drops"]
        np.testing.assert_array_equal(obs, observations(records[row : row + 1])[0])
        assert info["skipped"] == 0 and info["lost"] == 0
        obs, value, terminated, over, info = env.step(1)
        assert not terminated
        nextrow = row + 5
        between = records[row:nextrow]
        in_c, in_l = int((between["queue_type"] == 0).sum()), int((between["queue_type"] == 1).sum())
        served_s = 5 * 1500 * 8 / RATE_BPS
        expected = {
            "balance": served_s - 0.25 * (in_c * 1000 + in_l * 500) * 1e-9,
            "power": served_s / 2,
            "used=0.5,delay_l=-2": served_s / 2 - 2 * in_l * 500 * 1e-9,
            "l4s_llm": 1500 / (int(asked["current_queue_delay"]) + 1000),
        }[reward]
        assert value == pytest.approx(expected)
        row, total = nextrow, total + value
        rows.append(row)
    assert row == 500 and info["reason"] == "horizon" and total > 0  # 1 ms a packet: the log once, and one more
    s = info["statistics"]
    assert server.queue.refused[0] == 100 and s["by_agent"] in (99, 100) and not any(s["refused"].values())
    assert sum(s["decided_by"].values()) == pytest.approx(1) and 0.1 < s["decided_by"]["agent"] <= 0.2
    assert (s["latency_p50_us"], s["latency_p99_us"]) == (40, 90)
    assert server.queue.decisions[1] == (5, int(records["queue_type"][5]), 1, 5000 + 20_000)
    assert server.queue.interval == 0  # between episodes the native law decides
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step(0)
    env.reset()
    assert server.queue.interval == 5
    env.close()
    with Client(server.path) as other:
        assert other.status().interval == 0


def test_asks_that_came_too_fast(serve: Serve) -> None:
    server = serve(asks_at_once=40, patience_s=None)
    env = make(server)
    skipped = env.reset()[1]["skipped"]
    for _ in range(20):  # forty more at each
        skipped += env.step(0)[4]["skipped"]
    env.close()  # the server has come to all of them
    answered = [decision[0] for decision in server.queue.decisions]
    assert skipped > 0 and len(answered) == 20 and answered == sorted(set(answered))


def test_a_queue_that_goes_silent(serve: Serve) -> None:
    server = serve(patience_s=None)
    env = make(server, timeout_s=0.3)
    obs, _ = env.reset()
    server.stalled.set()
    last, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated, info["reason"]) == (0.0, False, True, "no packet came in 0.3 s")
    np.testing.assert_array_equal(last, obs)
    with pytest.raises(BridgeError, match=r"no packet came.*l4s-gym live doctor"):
        env.reset()
    server.stalled.clear()
    env.reset()
    env.close()


def test_a_queue_started_anew(serve: Serve) -> None:
    server = serve(patience_s=None)
    env = make(server)
    env.reset()
    env.step(0)
    with server.lock:
        server.restart()
    truncated, info = False, {}
    while not truncated:
        _, _, _, truncated, info = env.step(0)
    assert "started anew" in info["reason"]
    env.reset()
    assert not env.step(2)[3]
    env.close()


def test_a_server_that_goes(serve: Serve, tmp_path: Path) -> None:
    server = Server(tmp_path / "gone", log_of(50), patience_s=None)
    env = make(server)
    with server:
        env.reset()
        env.step(0)
    truncated, info = False, {}
    while not truncated:
        _, _, _, truncated, info = env.step(0)
    assert "closed the connection" in info["reason"] and info["statistics"] is None
    with pytest.raises(BridgeError, match="no such socket"):
        env.reset()
    with Server(tmp_path / "gone", log_of(50), patience_s=None):
        env.reset()
        env.close()


def test_somebody_else_controls(serve: Serve) -> None:
    server = serve()
    env = make(server)
    with Client(server.path) as other:
        other.attach(1)
        with pytest.raises(BridgeError, match="somebody else controls"):
            env.reset()
    env.close()


def test_a_link_of_unknown_rate(serve: Serve) -> None:
    server = serve(rate_bps=0)
    env = make(server)
    with pytest.raises(L4SError, match=r"does not know the rate of the link.*l4s_llm"):
        env.reset()
    assert server.queue.interval == 0
    env.close()
    env = make(server, reward="l4s_llm")
    env.reset()
    assert env.step(0)[1] > 0
    env.close()


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"reward": "no"}, "unknown reward"),
        ({"decision_interval": 0}, "decision_interval=0"),
        ({"horizon_s": 0.0}, "horizon_s=0.0"),
        ({"lifetime_ms": -1.0}, "lifetime_ms=-1.0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(L4SError, match=said):
        gym.make(l4s_gym.LIVE_ID, **kwargs)


def test_misuse(serve: Serve) -> None:
    env = make(serve())
    with pytest.raises(gym.error.ResetNeeded, match="not been started"):
        env.step(0)
    with pytest.raises(gym.error.ResetNeeded):
        env.record()
    env.reset()
    for action in (3, -1, np.array([1]), None):
        with pytest.raises(L4SError, match="give 0"):
            env.step(action)
    env.close()
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_rewards_at_the_end_of_their_range() -> None:
    entries = wire.rows(log_of(2))
    entries["row"]["served_bytes"] = [(1 << 63) + 1, (1 << 63) + 1501]
    meter = RewardMeter("balance", 8_000_000)
    assert meter.between(entries[0], entries[1]) == pytest.approx(0.0015)


def test_the_page_names_the_arguments() -> None:
    from inspect import signature

    from l4s_gym.live.environment import DualPI2LiveEnv

    page = DualPI2LiveEnv.__doc__ or ""
    for name in list(signature(DualPI2LiveEnv.__init__).parameters)[1:]:
        assert f"| `{name}` |" in page
    assert len(OBSERVED) == 8
