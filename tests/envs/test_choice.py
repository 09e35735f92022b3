"""Which scenario an episode is of: one of a list, drawn by the episode's own generator, or named."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import seeding

import l4s_gym
from l4s_gym.envs.dualpi2 import DualPI2Env
from l4s_gym.envs.prob import DualPI2ProbEnv, DualPI2ProbVectorEnv
from l4s_gym.envs.tune import DualPI2TuneEnv, DualPI2TuneVectorEnv
from l4s_gym.envs.vector import DualPI2VectorEnv
from l4s_gym.errors import L4SError
from l4s_gym.sim import layout, measure
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.ranges import training
from l4s_gym.sim.scenario import load, load_all, suite

Plain = Callable[..., dict[str, Any]]
ENV_ID = l4s_gym.ENV_IDS[0]
NAMES = ["mixed", "lte", "web", "l4s-llm-testbed-vm"]
"""Of different sizes; fields that are drawn, a trace, and the testbed's router among them."""
SINGLE = (DualPI2Env, DualPI2ProbEnv, DualPI2TuneEnv)
VECTOR = (DualPI2VectorEnv, DualPI2ProbVectorEnv, DualPI2TuneVectorEnv)


def steps(env: Any, count: int) -> bytes:
    """Observations and rewards of some steps."""
    rng = np.random.default_rng(3)
    out = b""
    for _ in range(count):
        n = getattr(env, "num_envs", None)
        discrete = isinstance(env, DualPI2Env | DualPI2VectorEnv)
        action: Any = (
            rng.choice(3, n, p=[0.9, 0.05, 0.05]) if discrete else rng.uniform(-1, 0.5, env.action_space.shape)
        )
        obs, reward, *_ = env.step(action)
        out += obs.tobytes() + np.asarray(reward).tobytes()
    return out


@pytest.mark.parametrize("cls", [*SINGLE, *VECTOR])
def test_an_episode_is_what_it_is_alone(cls: type[Any]) -> None:
    """Arrays that are large enough for others, and what other episodes left in them, change nothing."""
    env = cls(scenario=NAMES)
    for name in [*NAMES, *NAMES]:
        alone = cls(scenario=name)
        first, info = env.reset(seed=6, options={"scenario": name})
        assert np.array_equal(first, alone.reset(seed=6)[0])
        assert np.all(info["scenario"] == name)
        assert steps(env, 400) == steps(alone, 400)


@pytest.mark.parametrize("cls", SINGLE)
def test_the_seed_draws(cls: type[Any]) -> None:
    env = cls(scenario=NAMES)
    drawn = [env.reset(seed=seed)[1]["scenario"] for seed in range(20)]
    assert set(drawn) == set(NAMES)
    assert [cls(scenario=NAMES).reset(seed=seed)[1]["scenario"] for seed in range(20)] == drawn
    assert env.scenario.name == drawn[-1]
    without = [env.reset()[1]["scenario"] for _ in range(20)]
    assert set(without) == set(NAMES)
    many = dict(zip(SINGLE, VECTOR, strict=True))[cls](20, NAMES)
    assert many.reset(seed=0)[1]["scenario"].tolist() == drawn


@pytest.mark.parametrize("cls", VECTOR)
def test_some_environments_of_one_scenario(cls: type[Any]) -> None:
    env = cls(3, NAMES, autoreset_mode="disabled")
    env.reset(seed=0)
    _, info = env.reset(options={"reset_mask": [False, True, True], "scenario": "lte"})
    assert info["scenario"][1:].tolist() == ["lte", "lte"]
    assert info["_scenario"].tolist() == [False, True, True]
    assert env.reset(options={"scenario": ["lte", "web", "lte"]})[1]["scenario"].tolist() == ["lte", "web", "lte"]
    with pytest.raises(L4SError, match="2 names for 3 environments"):
        env.reset(options={"scenario": ["lte", "web"]})


@pytest.mark.parametrize("cls", [*SINGLE, *VECTOR])
def test_random_scenarios(cls: type[Any]) -> None:
    """Each episode is of one of them, and a copy or a pickle goes on as the original."""
    env = cls(scenario="random:train", horizon_s=2.0)
    _, info = env.reset(seed=5)
    names = [str(np.ravel(info["scenario"])[0]), *(str(np.ravel(env.reset()[1]["scenario"])[0]) for _ in range(20))]
    assert set(names) <= {f"random-{seed}" for seed in range(64)} and len(set(names)) > 8
    copies = copy.deepcopy(env), pickle.loads(pickle.dumps(env))
    after = steps(env, 60)
    assert [steps(each, 60) for each in copies] == [after] * 2


def test_the_figures_are_those_of_the_scenario() -> None:
    """Capacity, flows and discipline of each environment of a batch, against a batch of its own."""
    chosen = [load(name).replace(horizon_s=2.0) for name in NAMES]
    chosen[2] = chosen[2].replace(aqm="pie")
    batch = Batch(chosen, 2 * len(chosen))
    for i in range(batch.n):
        batch.reset(i, seeding.np_random(i)[0], i % len(chosen))
    batch.advance()
    for i in range(batch.n):
        scenario = chosen[i % len(chosen)]
        alone = Batch(scenario)
        alone.reset(0, seeding.np_random(i)[0])
        alone.advance()
        assert batch.scenario_of(i) == scenario
        assert batch.aqm_of(i) == alone.aqm_of(0) == scenario.aqm
        assert batch.capacity_bytes(i) == alone.capacity_bytes(0)
        assert measure.summary(batch, i) == measure.summary(alone, 0)
    assert set(batch.status) == {layout.TRUNCATED}


def test_what_a_list_may_hold(tmp_path: Path, plain: Plain) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('sources = [{kind = "cubic"}]\n')
    found = load_all([str(path), {"sources": [{"kind": "prague"}]}, plain("web"), load("mixed"), "suite:shift"])
    assert [each.name for each in found] == ["mine", "given", "web", "mixed", *suite("shift")]
    assert load_all("suite:train") == tuple(load(name) for name in suite("train"))
    assert load_all(["random:train:3", "web"]) == (*(training().draw(seed) for seed in range(3)), load("web"))
    assert [each.name for each in load_all("random:train")] == [f"random-{seed}" for seed in range(64)]


@pytest.mark.parametrize("cls", [*SINGLE, *VECTOR])
@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ([], "the list is empty"),
        (["web", "wbe"], "did you mean 'web'"),
        (["web", "lte", "web"], "two are called 'web'"),
        ([{"sources": [{"kind": "cubic"}]}] * 2, "two are called 'given'"),
        ("suite:trian", "did you mean 'train'"),
        ("random:trian", "did you mean 'random:train'"),
        ("random:train:0", "give a number from 1 to 99999"),
        ("random:train:3:4", "give a number from 1 to 99999"),
        (5, "scenario 5: give a name"),
        (None, "scenario None: give a name"),
        ([["web"]], r"scenario \['web'\]: give a name"),
    ],
)
def test_bad_scenarios(cls: type[Any], scenario: Any, message: str) -> None:
    with pytest.raises(L4SError, match=message) as caught:
        cls(scenario=scenario)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", [*SINGLE, *VECTOR])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "steps"}, "unknown scenario in options 'steps': choose one of lte, web"),
        ({"scenario": "wbe"}, "did you mean 'web'"),
        ({"scenario": None}, "choose one of lte, web"),
        ({"scenaro": "web"}, "unknown option of reset 'scenaro': did you mean 'scenario'"),
        ("web", "options='web': give a dictionary"),
    ],
)
def test_bad_options(cls: type[Any], options: Any, message: str) -> None:
    env = cls(scenario=["web", "lte"])
    first = env.reset(seed=1)[0]
    with pytest.raises(L4SError, match=message):
        env.reset(seed=2, options=options)
    assert np.array_equal(env.reset(seed=1, options={})[0], first)
    with pytest.raises(L4SError, match=r"choose one of web$"):
        cls(scenario="web").reset(options={"scenario": "lte"})


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_through_gymnasium(env_id: str) -> None:
    """The options and the arguments pass Gymnasium's wrappers, and its own vector environment."""
    env = gym.make(env_id, scenario=NAMES, horizon_s=0.1)
    assert env.reset(seed=0, options={"scenario": "web"})[1]["scenario"] == "web"
    vector: Any = gym.vector.SyncVectorEnv([lambda: gym.make(env_id, scenario="suite:train")] * 2)
    names = vector.reset(seed=0)[1]["scenario"]
    assert set(names) <= set(suite("train"))


# -- the horizon


@pytest.mark.parametrize("cls", SINGLE)
def test_horizon(cls: type[Any], plain: Plain) -> None:
    drawn = plain("web") | {"randomise": {"horizon_s": {"low": 5.0, "high": 9.0}}, "name": "drawn"}
    for scenario in ("web", drawn):
        env = cls(scenario=scenario, horizon_s=0.25)
        env.reset(seed=0)
        over = False
        while not over:
            *_, over, info = env.step(env.action_space.sample())
        assert env.batch.env["now_ns"][0] == 250_000_000
        # half of it is warm-up, which ends with a control interval where there are any
        assert 0.125 - 0.016 < info["statistics"]["duration_s"] <= 0.125


@pytest.mark.parametrize("cls", [*SINGLE, *VECTOR])
@pytest.mark.parametrize("horizon_s", [0, -1.0, float("nan"), float("inf"), "long", True])
def test_bad_horizons(cls: type[Any], horizon_s: Any) -> None:
    with pytest.raises(L4SError, match="horizon_s"):
        cls(horizon_s=horizon_s)


# -- options of the discipline


@pytest.mark.parametrize("cls", [*SINGLE, *VECTOR])
def test_options_replace_the_scenarios(cls: type[Any], plain: Plain) -> None:
    tables = {"dualpi2_rfc9332": {"target_ms": 3.2}}
    env = cls(scenario=[*NAMES, plain("web") | {"name": "given"}], aqm="dualpi2_rfc9332", options=tables)
    env.reset(seed=0)
    own = env.batch.scenario_of(0).options
    assert (own.dualpi2_rfc9332.target_ms, own.dualpi2_linux.target_ms) == (3.2, 15.0)
    for wrong, message in (
        ({"dualpi2_rfc9332": {"targt_ms": 3.2}}, "did you mean 'target_ms'"),
        ({"dualpi3": {"target_ms": 3.2}}, "dualpi3"),
        ({"target_ms": 3.2}, "give a table for each discipline"),
        ("target_ms=3", "give a table for each discipline"),
    ):
        with pytest.raises(L4SError, match=message):
            cls(options=wrong)
