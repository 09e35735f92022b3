"""The vector environment is the single one, many times: same seeds and actions, same numbers."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import l4s_gym
from l4s_gym.envs.intervals import Applied, IntervalEnv, IntervalVectorEnv
from l4s_gym.envs.prob import DualPI2ProbVectorEnv
from l4s_gym.envs.tune import DualPI2TuneVectorEnv
from l4s_gym.envs.vector import DualPI2VectorEnv
from l4s_gym.errors import L4SError
from l4s_gym.forms import Form
from l4s_gym.sim import layout
from l4s_gym.sim.batch import PARALLEL_FROM

Plain = Callable[..., dict[str, Any]]
ENV_ID, PROB_ID, TUNE_ID = l4s_gym.ENV_IDS
COUNT, SEED = 4, 21
SHORT = {"mixed": 0.4, "web": 0.15, "l4s-llm-testbed": 1.0, "lte": 0.5}
"""Horizons (s) so short that every episode ends several times."""
SEVERAL = "several"
STEPS = {ENV_ID: 3000, PROB_ID: 300, TUNE_ID: 300}
CASES = [
    *((ENV_ID, name) for name in ("mixed", "web", "l4s-llm-testbed", SEVERAL)),
    *((PROB_ID, name) for name in ("mixed", "lte", SEVERAL)),
    (TUNE_ID, SEVERAL),
]
KINDS = getattr(gym.vector, "AutoresetMode", None)


def short(name: str, plain: Plain) -> Any:
    """A scenario, or a list of all of `SHORT`, as `gym.make(scenario=)` takes it."""
    if name == SEVERAL:
        return [plain(each, horizon_s=seconds) for each, seconds in SHORT.items()]
    return plain(name, horizon_s=SHORT[name])


def vector(scenario: Any, mode: str = "next_step", env_id: str = ENV_ID, **arguments: Any) -> Any:
    return gym.make_vec(
        env_id,
        num_envs=COUNT,
        vectorization_mode="vector_entry_point",
        scenario=scenario,
        autoreset_mode=mode,
        **arguments,
    )


def single(env_id: str, **arguments: Any) -> Any:
    """The bare environment, without Gymnasium's wrappers."""
    return gym.make(env_id, disable_env_checker=True, **arguments).unwrapped


def actions(count: int = COUNT, steps: int = STEPS[ENV_ID], env_id: str = ENV_ID) -> Any:
    """Of the steps, (steps, count), or (steps, count, K) of intervals."""
    rng = np.random.default_rng(8)
    if env_id != ENV_ID:
        return rng.uniform(-1.0, 0.7, (steps, count, 2 if env_id == PROB_ID else 5)).astype(np.float32)
    return rng.choice(3, (steps, count), p=[0.9, 0.05, 0.05])


class Singles:
    """Single environments, stepped side by side."""

    def __init__(self, scenario: Any, env_id: str = ENV_ID) -> None:
        self.envs = [single(env_id, scenario=scenario) for _ in range(COUNT)]
        self.ends = 0

    def reset(self) -> Any:
        return np.stack([env.reset(seed=SEED + i)[0] for i, env in enumerate(self.envs)])

    def step(self, i: int, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.envs[i].step(action)
        self.ends += terminated or truncated
        return obs, float(reward), terminated, truncated, info


@pytest.mark.parametrize(("env_id", "name"), CASES)
def test_next_step(env_id: str, name: str, plain: Plain) -> None:
    scenario = short(name, plain)
    singles, env = Singles(scenario, env_id), vector(scenario, env_id=env_id)
    obs, _ = env.reset(seed=SEED)
    assert np.array_equal(obs, singles.reset())
    ended = np.zeros(COUNT, bool)
    for row in actions(steps=STEPS[env_id], env_id=env_id):
        obs, reward, terminated, truncated, info = env.step(row)
        for i in range(COUNT):
            if ended[i]:  # the step after the end starts anew and ignores the action
                first, about = singles.envs[i].reset()
                assert np.array_equal(obs[i], first)
                assert (reward[i], terminated[i], truncated[i]) == (0.0, False, False)
                assert info["_scenario"][i] and info["scenario"][i] == about["scenario"]
                continue
            expected = singles.step(i, row[i])
            assert np.array_equal(obs[i], expected[0])
            assert (reward[i], terminated[i], truncated[i]) == expected[1:4]
            if "applied_action" in expected[4]:
                assert info["applied_action"][i] == expected[4]["applied_action"]
            if "statistics" in expected[4]:
                assert info["_statistics"][i]
                assert info["statistics"]["utilisation"][i] == expected[4]["statistics"]["utilisation"]
        ended = terminated | truncated
    assert singles.ends > 2 * COUNT


@pytest.mark.parametrize(("env_id", "name"), CASES)
def test_same_step(env_id: str, name: str, plain: Plain) -> None:
    scenario = short(name, plain)
    singles, env = Singles(scenario, env_id), vector(scenario, "same_step", env_id)
    obs, _ = env.reset(seed=SEED)
    assert np.array_equal(obs, singles.reset())
    for row in actions(steps=STEPS[env_id], env_id=env_id):
        obs, reward, terminated, truncated, info = env.step(row)
        for i in range(COUNT):
            expected = singles.step(i, row[i])
            assert (reward[i], terminated[i], truncated[i]) == expected[1:4]
            if terminated[i] or truncated[i]:
                assert info["_final_obs"][i]
                assert np.array_equal(info["final_obs"][i], expected[0])
                assert info["_final_info"][i]
                final, lone = info["final_info"], expected[4]
                assert "applied_action" not in lone or final["applied_action"][i] == lone["applied_action"]
                assert final["statistics"]["utilisation"][i] == lone["statistics"]["utilisation"]
                assert final["statistics"]["goodput_mbps"][i] == lone["statistics"]["goodput_mbps"]
                first, about = singles.envs[i].reset()
                assert np.array_equal(obs[i], first) and info["scenario"][i] == about["scenario"]
            else:
                assert np.array_equal(obs[i], expected[0])
                assert "_final_info" not in info or not (info["_final_info"][i] or info["_final_obs"][i])
    assert singles.ends > 2 * COUNT


def same(ours: Any, theirs: Any) -> bool:
    """Whether two infos are the same, dictionaries within included."""
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and set(ours) == set(theirs) and all(same(ours[k], theirs[k]) for k in theirs)
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    if ours.dtype != object:
        return np.array_equal(ours, theirs)
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
@pytest.mark.parametrize(
    ("env_id", "name", "arguments"),
    [(ENV_ID, "web", {}), (ENV_ID, SEVERAL, {"info_record": True}), (PROB_ID, SEVERAL, {"even": True})],
)
def test_everything_is_as_gymnasiums_own(
    env_id: str, name: str, arguments: dict[str, Any], mode: str, plain: Plain
) -> None:
    """Observations, rewards, ends and infos of `SyncVectorEnv`, nested dictionaries and masks included."""
    if KINDS is None and mode == "same_step":
        pytest.skip("Gymnasium 1.0.0 has no other mode than the next step's")
    scenario = short(name, plain)
    options: Any = {} if KINDS is None else {"autoreset_mode": KINDS[mode.upper()]}
    theirs: Any = gym.vector.SyncVectorEnv([lambda: single(env_id, scenario=scenario, **arguments)] * COUNT, **options)
    ours = vector(scenario, mode, env_id, **arguments)
    (obs, info), (their_obs, their_info) = ours.reset(seed=SEED), theirs.reset(seed=SEED)
    assert np.array_equal(obs, their_obs) and same(info, their_info)
    ends = 0
    for row in actions(steps=1000 if env_id == ENV_ID else 100, env_id=env_id):
        got, expected = ours.step(row), theirs.step(row)
        assert all(np.array_equal(a, b) for a, b in zip(got[:4], expected[:4], strict=True))
        assert same(got[4], expected[4])
        ends += int((got[2] | got[3]).sum())
    assert ends > COUNT


@pytest.mark.parametrize(("env_id", "name"), CASES)
def test_disabled(env_id: str, name: str, plain: Plain) -> None:
    scenario = short(name, plain)
    singles, env = Singles(scenario, env_id), vector(scenario, "disabled", env_id)
    obs, _ = env.reset(seed=SEED)
    assert np.array_equal(obs, singles.reset())
    for row in actions(steps=STEPS[env_id], env_id=env_id):
        obs, reward, terminated, truncated, _ = env.step(row)
        for i in range(COUNT):
            expected = singles.step(i, row[i])
            assert np.array_equal(obs[i], expected[0])
            assert (reward[i], terminated[i], truncated[i]) == expected[1:4]
        ended = terminated | truncated
        if ended.any():
            with pytest.raises(gym.error.ResetNeeded, match="have ended"):
                env.step(row)
            kept = obs[~ended]
            obs, _ = env.reset(options={"reset_mask": ended})
            assert np.array_equal(obs[~ended], kept)
            for i in np.flatnonzero(ended).tolist():
                assert np.array_equal(obs[i], singles.envs[i].reset()[0])
    assert singles.ends > 2 * COUNT


def test_terminated_transfers(finite: dict[str, Any]) -> None:
    singles, env = Singles(finite), vector(finite)
    env.reset(seed=SEED)
    singles.reset()
    seen = 0
    for _ in range(60):
        _, _, terminated, truncated, _ = env.step(np.zeros(COUNT, np.int64))
        seen += int(terminated.sum())
        assert not truncated.any()
    for _ in range(400):
        _, _, terminated, _, _ = env.step(np.zeros(COUNT, np.int64))
        seen += int(terminated.sum())
    assert seen > COUNT


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_spaces_and_metadata(env_id: str) -> None:
    env, alone = vector("web", env_id=env_id), single(env_id, scenario="web")
    assert env.single_observation_space == alone.observation_space
    assert env.single_action_space == alone.action_space
    assert env.observation_space.shape == (COUNT, *alone.observation_space.shape)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert env.observation_space.contains(env.step(env.action_space.sample())[0])
    mode = env.metadata["autoreset_mode"]
    assert getattr(mode, "name", mode).lower() == "next_step"
    other = vector("web", "same_step").metadata["autoreset_mode"]
    assert getattr(other, "name", other).lower() == "same_step"


def test_buffers_are_the_engines_own() -> None:
    env = DualPI2VectorEnv(3, "web", copy=False)
    obs, _ = env.reset(seed=0)
    buffers = env.buffers
    assert obs is buffers["obs"]
    assert obs.shape == (3, 8) and obs.dtype == np.float32
    for array in buffers.values():
        assert array.flags.c_contiguous and array.flags.writeable
    before = obs.copy()
    again, reward, *_ = env.step(np.zeros(3, np.int64))
    assert again is obs and reward is buffers["reward"]
    assert not np.array_equal(obs, before)
    copied = DualPI2VectorEnv(3, "web")
    first, _ = copied.reset(seed=0)
    kept = first.copy()
    assert not np.shares_memory(first, copied.buffers["obs"])
    second, *_ = copied.step(np.zeros(3, np.int64))
    assert np.array_equal(first, kept)
    assert np.array_equal(second, obs)


def test_threads_give_the_serial_result(plain: Plain) -> None:
    """A batch large enough for threads, against two small ones with the same seeds."""
    scenario = plain("mixed", horizon_s=0.5)
    half = PARALLEL_FROM // 2
    large = DualPI2VectorEnv(PARALLEL_FROM, scenario)
    small = [DualPI2VectorEnv(half, scenario) for _ in range(2)]
    obs, _ = large.reset(seed=100)
    parts = [env.reset(seed=100 + k * half)[0] for k, env in enumerate(small)]
    assert np.array_equal(obs, np.concatenate(parts))
    ends = 0
    for row in actions(PARALLEL_FROM, 600):
        got: Any = large.step(row)
        expected: Any = [env.step(row[k * half : (k + 1) * half]) for k, env in enumerate(small)]
        for place in range(4):
            assert np.array_equal(got[place], np.concatenate([part[place] for part in expected]))
        ends += int(got[3].sum())
    assert [env.batch._workers is None for env in (large, *small)] == [False, True, True]
    assert ends > PARALLEL_FROM // 4


class Targets(Applied):
    """Another form of action: the factor of the discipline's target, which goes on deciding by itself."""

    form = Form("targets", "Targets-v0", (0.1,), (10.0,), observed="l4s_gym.sim.intervals:INTERVAL")
    asks, decider = "a factor from 0.1 to 10", layout.NATIVE

    def _begin(self, i: int) -> None:
        super()._begin(i)
        self.given = 15_000

    def _write(self, actions: Any) -> None:
        self.batch.env["target_us"] = self.given * actions[:, 0]


def test_another_form(plain: Plain) -> None:
    """A form brings what an action is and what it writes: all else is there, single and vector."""

    class Env(Targets, IntervalEnv):
        def __init__(self, scenario: Any) -> None:
            self._open(scenario, aqm=None, control_interval_ms=16.0, horizon_s=None, reward="balance")

    class VectorEnv(Targets, IntervalVectorEnv):
        def __init__(self, n: int, scenario: Any) -> None:
            rest: dict[str, Any] = {"aqm": None, "control_interval_ms": 16.0, "horizon_s": None, "reward": "balance"}
            self._open(n, scenario, None, "next_step", True, **rest)

    scenario = plain("overload", horizon_s=1.0, aqm="pie")
    many, alone = VectorEnv(2, scenario), Env(scenario)
    many.reset(seed=0)
    alone.reset(seed=1)
    delays = {0.2: 0.0, 4.0: 0.0}
    for _ in range(60):
        obs, reward, *_ = many.step(np.array([[0.2], [4.0]], np.float32))
        lone, earned, *_ = alone.step(np.array([4.0], np.float32))
        assert np.array_equal(obs[1], lone) and reward[1] == earned
        for factor, row in zip(delays, obs, strict=True):
            delays[factor] += row[0]
    assert delays[4.0] > 1.1 * delays[0.2]
    with pytest.raises(L4SError, match=r"give a factor from 0\.1 to 10"):
        alone.step([11.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_a_number_of_threads(env_id: str, plain: Plain) -> None:
    """Few environments on several threads, and many on one."""
    serial, threaded = (vector(short("web", plain), env_id=env_id, num_threads=count) for count in (1, 3))
    assert np.array_equal(serial.reset(seed=1)[0], threaded.reset(seed=1)[0])
    for row in actions(steps=200, env_id=env_id):
        got, expected = threaded.step(row), serial.step(row)
        assert all(np.array_equal(a, b) for a, b in zip(got[:4], expected[:4], strict=True))
    assert serial.unwrapped.batch._workers is None
    assert len(threaded.unwrapped.batch._workers._wake) == 2


# -- seeds and misuse


def test_seeds(plain: Plain) -> None:
    env = vector(plain("mixed"))
    first, _ = env.reset(seed=5)
    assert np.array_equal(env.reset(seed=[5, 6, 7, 8])[0], first)
    mixed, _ = env.reset(seed=[5, None, 7, None])
    assert np.array_equal(mixed[[0, 2]], first[[0, 2]])
    with pytest.raises(L4SError, match="2 seeds for 4 environments"):
        env.reset(seed=[1, 2])


@pytest.mark.parametrize(
    "given",
    [
        [0, 1, 2, 3], [0, 1, 2, -1], [0, 1, 2], [[0, 1, 2, 0]], 0, [0.0, 1.0, 2.0, 0.0], [0.0, np.nan, 0.0, 0.0],
        ["a", "b", "c", "d"], [None] * 4,
    ],
)  # fmt: skip
def test_bad_actions(given: Any) -> None:
    env = vector("web")
    env.reset(seed=0)
    before = env.unwrapped.batch.env.copy()
    with pytest.raises(L4SError, match="actions: give 4 integers"):
        env.step(given if isinstance(given, int) else np.array(given))
    assert np.array_equal(before, env.unwrapped.batch.env)


@pytest.mark.parametrize(
    "given",
    [[[0.5, 0.5]] * 3, [0.5, 0.5], [[0.5]] * 4, [[0.5, 1.5]] * 4, [[0.5, np.nan]] * 4, 0.5, None, [["a", "b"]] * 4],
)
def test_bad_actions_of_intervals(given: Any) -> None:
    env = vector("web", env_id=PROB_ID)
    env.reset(seed=0)
    before = env.unwrapped.batch.env.copy()
    with pytest.raises(L4SError, match=r"actions: give 4 rows, each of two numbers in \[-1, 1\], for C and for L"):
        env.step(given)
    assert np.array_equal(before, env.unwrapped.batch.env)


@pytest.mark.parametrize("cls", [DualPI2VectorEnv, DualPI2ProbVectorEnv, DualPI2TuneVectorEnv])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs=0"),
        ({"num_envs": "4"}, "num_envs='4'"),
        ({"autoreset_mode": "nextstep"}, "did you mean 'next_step'"),
        ({"render_mode": "ansi"}, "use gym.make"),
        ({"scenario": "wbe"}, "did you mean 'web'"),
        ({"aqm": "pi"}, "did you mean 'pie'"),
        ({"reward": "powr"}, "did you mean 'power'"),
        ({"num_threads": 0}, "num_threads=0"),
        ({"num_threads": 1.5}, "num_threads=1.5"),
        ({"copy": "no"}, "copy='no'"),
    ],
)
def test_bad_arguments(cls: type[Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(L4SError, match=message):
        cls(**arguments)


def test_bad_arguments_of_their_own() -> None:
    for cls, arguments in (
        (DualPI2VectorEnv, {"decision_interval": 0}),
        (DualPI2VectorEnv, {"info_record": "yes"}),
        (DualPI2ProbVectorEnv, {"control_interval_ms": 0}),
        (DualPI2ProbVectorEnv, {"control_interval_ms": "16"}),
        (DualPI2ProbVectorEnv, {"even": 2}),
        (DualPI2TuneVectorEnv, {"control_interval_ms": -1.0}),
    ):
        with pytest.raises(L4SError, match=f"{next(iter(arguments))}="):
            cls(**arguments)


def test_order_of_calls() -> None:
    env = DualPI2VectorEnv(2, "web")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(L4SError, match="start all environments once"):
        env.reset(options={"reset_mask": [True, False]})
    env.reset(seed=0)
    for mask in ([False, False], [True], [[True, True]]):
        with pytest.raises(L4SError, match="reset_mask"):
            env.reset(options={"reset_mask": mask})


def test_threads_end_with_their_batch() -> None:
    before = threading.active_count()
    env = DualPI2VectorEnv(256, scenario="l4s-llm-testbed")
    env.reset(seed=0)
    env.step(np.zeros(256, np.int64))
    assert env.batch._workers is not None
    del env
    gc.collect()
    deadline = time.monotonic() + 10.0
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
