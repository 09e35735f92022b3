"""The environments keep Gymnasium's contract: every registered one, on every scenario."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, registry
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

import l4s_gym
from l4s_gym import rewards
from l4s_gym.data.causal import causal_observation
from l4s_gym.data.pools import load_rows
from l4s_gym.envs.dualpi2 import DualPI2Env
from l4s_gym.envs.prob import DualPI2ProbEnv
from l4s_gym.envs.replay import DualPI2ReplayEnv
from l4s_gym.envs.tune import DualPI2TuneEnv
from l4s_gym.envs.vector import DualPI2VectorEnv
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import native
from l4s_gym.schema import DROP, MARK, OBSERVED, scale_observation
from l4s_gym.sim import layout, measure, scenario
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.disciplines import AQMS

ENV_ID, PROB_ID, TUNE_ID = l4s_gym.ENV_IDS
REPLAY_ID = l4s_gym.REPLAY_ID
Plain = Callable[..., dict[str, Any]]


def make(env_id: str = ENV_ID, **kwargs: Any) -> Any:
    """The bare environment, without Gymnasium's wrappers."""
    return gym.make(env_id, disable_env_checker=True, **kwargs).unwrapped


def play(env: Any, seed: int | None, steps: int = 10**9) -> tuple[list[Any], float, dict[str, Any]]:
    """Random actions to the end of an episode: all that came back, the return, the last info."""
    obs, info = env.reset(seed=seed)
    rng = np.random.default_rng(0 if seed is None else seed)
    history: list[Any] = [obs.tobytes()]
    total, over = 0.0, False
    while not over and len(history) <= steps:
        space = env.action_space
        discrete = isinstance(space, gym.spaces.Discrete)
        action = int(rng.integers(3)) if discrete else rng.uniform(-1, 1, space.shape).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(obs)
        total += float(reward)
        over = terminated or truncated
        history.append((obs.tobytes(), float(reward), terminated, truncated))
    return history, total, info


# -- registration and Gymnasium's own checks


@pytest.mark.parametrize("name", scenario.names())
@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_gymnasium_checks(env_id: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(env_id, scenario=name), skip_render_check=True)


def test_registration_is_idempotent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(l4s_gym)
        importlib.reload(l4s_gym)
    registered = [env_id for env_id in registry if env_id.startswith("L4S-")]
    assert registered == [*l4s_gym.ENV_IDS, l4s_gym.REPLAY_ID, l4s_gym.LIVE_ID]


def fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_make_in_a_fresh_process() -> None:
    code = (
        "import gymnasium as gym\n"
        f"env = gym.make('l4s_gym:{ENV_ID}')\n"
        "obs, info = env.reset(seed=1)\n"
        "print(obs.shape, type(env.unwrapped).__name__)\n"
    )
    assert fresh_process(code) == "(8,) DualPI2Env"


def trajectory_digest(env_id: str) -> str:
    env = gym.make(f"l4s_gym:{env_id}", scenario="web").unwrapped
    return hashlib.sha256(repr(play(env, 7, 1500)[0]).encode()).hexdigest()


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_trajectories_are_the_same_in_another_process(env_id: str) -> None:
    code = (
        f"import runpy; names = runpy.run_path({str(Path(__file__))!r}); print(names['trajectory_digest']({env_id!r}))"
    )
    assert fresh_process(code) == trajectory_digest(env_id)


def test_arguments_are_json(finite: dict[str, Any]) -> None:
    env = gym.make(ENV_ID, scenario=finite, aqm="pie", decision_interval=10, reward="power", render_mode="ansi")
    assert env.spec is not None
    text = env.spec.to_json()
    again = gym.make(EnvSpec.from_json(text))
    assert again.spec is not None
    assert json.loads(text)["kwargs"]["scenario"] == finite
    assert again.spec.kwargs == env.spec.kwargs
    first, second = play(env.unwrapped, 3), play(again.unwrapped, 3)
    assert first[0] == second[0]


# -- seeds


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_everything_random_comes_from_the_seed(env_id: str) -> None:
    env = make(env_id, scenario="mixed")
    first = play(env, 5, 300)[0]
    assert play(env, 5, 300)[0] == first
    assert play(make(env_id, scenario="mixed"), 5, 300)[0] == first
    assert play(env, 6, 300)[0] != first
    # Without a seed the generator goes on: another episode, which the first seed fixes too.
    env.reset(seed=5)
    second = play(env, None, 300)[0]
    np.random.seed(1)  # noqa: NPY002  (the global generator is not used)
    env.reset(seed=5)
    assert play(env, None, 300)[0] == second != first


# -- misuse


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_step_needs_a_reset(env_id: str, finite: dict[str, Any]) -> None:
    env = make(env_id, scenario=finite)
    action = env.action_space.sample()
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) first"):
        env.step(action)
    play(env, 0)
    with pytest.raises(gym.error.ResetNeeded, match="ended"):
        env.step(action)
    env.reset()
    env.step(action)


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_it_checks_by_itself_what_gymnasiums_wrappers_would(env_id: str) -> None:
    env: Any = gym.make(env_id, render_mode="ansi")
    assert env is env.unwrapped
    for call in (lambda: env.step(env.action_space.sample()), env.render):
        with pytest.raises(gym.error.ResetNeeded, match=r"has not been started.*; call reset\(\) first"):
            call()
    (obs, info), (again, later) = env.reset(seed=0), env.step(env.action_space.sample())[::4]
    assert info is not later and not np.shares_memory(obs, again)
    assert isinstance(env.render(), str)
    env.close()
    env.close()


@pytest.mark.parametrize(
    "action", [3, -1, 0.5, math.nan, None, "drop", [1], (0,), np.array([0, 1]), np.array([1]), np.array(7), math.inf]
)
def test_bad_actions(action: Any) -> None:
    env = make()
    env.reset(seed=0)
    before = env.batch.env.copy()
    with pytest.raises(L4SError, match="give 0"):
        env.step(action)
    assert np.array_equal(before, env.batch.env)


@pytest.mark.parametrize("action", [1, np.int64(1), np.uint8(1), np.array(1), True])
def test_good_actions(action: Any) -> None:
    env = make()
    env.reset(seed=0)
    assert env.step(action)[4]["applied_action"] == DROP


@pytest.mark.parametrize(
    "action", [[0.5], [0.5, 1.5], [-1.1, 0.0], [math.nan, 0.0], [[0.1, 0.2]], 0.5, None, "ab", [0.1, 0.2, 0.3]]
)
@pytest.mark.parametrize(("env_id", "numbers"), [(PROB_ID, "two"), (TUNE_ID, "five")])
def test_bad_actions_of_intervals(env_id: str, numbers: str, action: Any) -> None:
    env = make(env_id)
    env.reset(seed=0)
    with pytest.raises(L4SError, match=rf"give {numbers} numbers in \[-1, 1\], for"):
        env.step(action)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scenario": "l4s-llm-testbd"}, "did you mean 'l4s-llm-testbed'"),
        (
            {"scenario": {"sources": [{"kind": "cubic"}], "horizont_s": 1.0}},
            "did you mean 'horizon_s'",
        ),
        ({"scenario": {"sources": []}}, "no flows"),
        ({"aqm": "dualpi2_linx"}, "did you mean 'dualpi2_linux'"),
        ({"reward": "balanced"}, "did you mean 'balance'"),
        ({"render_mode": "rgb_arry"}, "did you mean 'rgb_array'"),
        ({"render_mode": "rgb_array", "render_fps": 0}, "render_fps=0"),
    ],
)
@pytest.mark.parametrize("cls", [DualPI2Env, DualPI2ProbEnv, DualPI2TuneEnv])
def test_unknown_names(cls: type[Any], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(L4SError, match=message):
        cls(**kwargs)


@pytest.mark.parametrize("interval", [0, -1, 1.5, True, "10", None, math.nan])
def test_bad_decision_intervals(interval: Any) -> None:
    with pytest.raises(L4SError, match="decision_interval"):
        DualPI2Env(decision_interval=interval)


@pytest.mark.parametrize("interval", [0.0, -1.0, math.nan, math.inf, "16", None])
def test_bad_control_intervals(interval: Any) -> None:
    with pytest.raises(L4SError, match="control_interval_ms"):
        DualPI2ProbEnv(control_interval_ms=interval)


def test_bad_rewards() -> None:
    with pytest.raises(L4SError, match="belongs to decisions about single packets"):
        DualPI2ProbEnv(reward="l4s_llm")


@pytest.mark.parametrize("cls", [DualPI2Env, DualPI2VectorEnv])
@pytest.mark.parametrize(
    "old", [{"backend": "replay"}, {"backend": "replay", "log": "x.log"}, {"replay_mode": "nearest"}, {"log": "x.log"}]
)
def test_the_former_replay_names_the_new_one(cls: type[Any], old: dict[str, Any]) -> None:
    with pytest.raises(L4SError, match=f"gym.make\\('l4s_gym:{REPLAY_ID}', log=PATH"):
        cls(**old)


@pytest.mark.parametrize("cls", [DualPI2Env, DualPI2VectorEnv])
def test_unexpected_arguments(cls: type[Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'scenaro'"):
        cls(scenaro="web")


# -- what a step does


def test_applied_action() -> None:
    """A mark of a Not-ECT packet is a drop, a full buffer drops: the info says what was done."""
    env = make(scenario="overload")
    env.reset(seed=0)
    seen = set()
    for action in itertools.islice(itertools.cycle((0, 1, 2)), 6000):
        not_ect = env.batch.packet["ecn"][0, env.batch.env["arriving"][0]] == 0
        _, _, terminated, truncated, info = env.step(action)
        assert not (terminated or truncated)
        assert info["applied_action"] == (DROP if action == MARK and not_ect else action)
        seen.add((action, info["applied_action"]))
    assert seen == {(0, 0), (1, 1), (2, 2), (2, 1)}
    full = make(scenario={"sources": [{"kind": "cbr", "rate_mbps": 50.0}], "link": {"limit_packets": 5}}, aqm="fifo")
    full.reset(seed=0)
    assert {full.step(0)[4]["applied_action"] for _ in range(50)} == {0, 1}


def test_record_in_info() -> None:
    env = make(info_record=True)
    obs, info = env.reset(seed=2)
    for _ in range(2000):
        assert list(info["record"]) == list(OBSERVED)
        packet = env.batch.packet[0, env.batch.env["arriving"][0]]
        assert info["record"]["packet_length"] == packet["len"]
        raw = [info["record"][name] for name in OBSERVED]
        assert np.allclose(scale_observation(raw), obs, rtol=1e-5)
        obs, *_, info = env.step(0)
    assert "record" not in make().reset(seed=0)[1]


@pytest.mark.parametrize("interval", [1, 10, 100])
def test_decision_interval(interval: int, plain: Plain) -> None:
    """The agent is asked at packets 1, n + 1, 2 n + 1, ...; the discipline decides the others."""
    env = make(scenario=plain("l4s-llm-testbed", horizon_s=3.0), decision_interval=interval)
    env.reset(seed=1)
    steps, over = 0, False
    while not over:
        *_, terminated, truncated, _ = env.step(0)
        over = terminated or truncated
        steps += 1
    state = env.batch.env[0]
    assert steps == math.ceil(state["sent"] / interval) > state["decisions"]  # counted since the warm-up


def native_total(chosen: scenario.Scenario, aqm: str | None, reward: str, seed: int) -> tuple[float, measure.Summary]:
    batch = Batch(chosen, aqm=aqm, reward=reward)
    batch.reset(0, seeding.np_random(seed)[0])
    batch.stop_after_warmup(0)
    batch.advance_one()
    batch.leave_warmup()
    assert batch.status[0] in (layout.TRUNCATED, layout.TERMINATED)
    return float(batch.reward[0]), measure.summary(batch, 0)


def same_statistics(found: dict[str, Any], expected: measure.Summary) -> None:
    """Equal, up to the order in which the components of the reward were summed."""
    wanted: dict[str, Any] = {**expected}
    for name in ("components", "components_per_s"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-9)
    assert found | {name: wanted[name] for name in ("components", "components_per_s")} == wanted


@pytest.mark.parametrize("reward", ["balance", "fair", "power"])
@pytest.mark.parametrize("interval", [1, 100, 1_000_000])
def test_rewards_are_integrals(interval: int, reward: str, plain: Plain) -> None:
    """The return of a FIFO does not depend on how often the agent says what the FIFO does anyway."""
    tree = plain("l4s-llm-testbed", horizon_s=5.0)
    env = make(scenario=tree, aqm="fifo", decision_interval=interval, reward=reward)
    env.reset(seed=4)
    total, over = 0.0, False
    while not over:
        _, value, terminated, truncated, info = env.step(0)
        total += float(value)
        over = terminated or truncated
    expected, summary = native_total(scenario.from_dict(tree), "fifo", reward, 4)
    assert total == pytest.approx(expected, rel=1e-9)
    same_statistics(info["statistics"], summary)


# PIE draws for the first packet too; asked for, it leaves that number to the next.
@pytest.mark.parametrize("aqm", [aqm for aqm in AQMS if aqm != "pie"])
def test_rare_decisions_are_a_native_run(aqm: str, plain: Plain) -> None:
    """Only the first packet is asked for, and enqueued: the rest is the discipline's own run."""
    tree = plain("l4s-llm-testbed", horizon_s=5.0)
    env = make(scenario=tree, aqm=aqm, decision_interval=1_000_000)
    env.reset(seed=9)
    _, value, terminated, truncated, info = env.step(0)
    expected, summary = native_total(scenario.from_dict(tree), aqm, rewards.DEFAULT, 9)
    assert truncated and not terminated
    assert float(value) == pytest.approx(expected, rel=1e-9)
    same_statistics(info["statistics"], summary)


@pytest.mark.parametrize("reward", ["balance", "power"])
def test_an_idle_queue_earns_the_utilisation(reward: str, calm: dict[str, Any]) -> None:
    env = make(scenario=calm, reward=reward)
    env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        _, value, terminated, truncated, info = env.step(0)
        total += float(value)
        over = terminated or truncated
    assert total == pytest.approx(info["statistics"]["utilisation"] * 2.0, rel=1e-9)
    assert total == pytest.approx(0.25 * 2.0, rel=0.01)


def test_balance_costs_delay() -> None:
    """A standing queue costs a quarter of d / (d + reference) for each second."""
    flood = {"kind": "cbr", "rate_mbps": 100.0, "stagger_s": 0.0}
    tree = {"horizon_s": 3.0, "sources": [flood], "link": {"rate_mbps": 10.0, "limit_packets": 300}}
    total, summary = native_total(scenario.from_dict({"name": "x", **tree}), "fifo", "balance", 0)
    # 300 packets are 360 ms, 24 x 15 ms.
    assert summary["utilisation"] == pytest.approx(1.0, rel=1e-3)
    assert total == pytest.approx(3.0 * (1.0 - 0.25 * 24 / 25), rel=0.02)
    power, _ = native_total(scenario.from_dict({"name": "x", **tree}), "fifo", "power", 0)
    assert 3.0 / (1 + 360 / 15) < power < 0.3


def test_l4s_llm_reward() -> None:
    env = make(scenario="l4s-llm-testbed", reward="l4s_llm", info_record=True)
    _, info = env.reset(seed=0)
    for _ in range(3000):
        record = info["record"]
        _, reward, _, _, info = env.step(0)
        expected = rewards.l4s_llm(record["packet_length"], record["current_queue_delay"])
        assert reward == pytest.approx(expected, rel=1e-3)


def test_statistics_at_the_end(finite: dict[str, Any]) -> None:
    env = make(scenario=finite)
    env.reset(seed=0)
    over = False
    while not over:
        *_, terminated, truncated, info = env.step(0)
        over = terminated or truncated
        assert ("statistics" in info) == over
    assert terminated and not truncated
    assert list(info["statistics"]) == list(measure.Summary.__annotations__)
    assert env.batch.flow["goodput_bytes"][0].tolist() == [60_000, 60_000]
    json.dumps(info["statistics"])


def test_statistics_leave_the_warm_up_out(plain: Plain) -> None:
    """They are those of a run of the discipline that is measured from the end of the warm-up on; flows have names."""
    tree = plain("l4s-llm-testbed", horizon_s=4.0, warmup_s=1.5)
    env = make(scenario=tree, decision_interval=1_000_000)
    env.reset(seed=2)
    statistics = env.step(0)[-1]["statistics"]
    assert statistics["duration_s"] == pytest.approx(2.5)
    run = native.simulate(scenario.from_dict(tree), seed=2)
    same_statistics(statistics, run.summary)
    measured = run.samples[run.samples["measured"]]
    assert measured["offered"].sum(0).tolist() == [statistics["classes"][name]["offered"] for name in measure.CLASSES]
    assert run.samples["offered"].sum() > measured["offered"].sum()
    assert statistics["flows"] == [*(f"cubic{k}" for k in range(4)), *(f"newreno{k}" for k in range(4)), "dctcp0"]
    rates = dict(zip(statistics["flows"], statistics["goodput_mbps"], strict=True))
    classic = [rate for name, rate in rates.items() if name != "dctcp0"]
    assert statistics["goodput_ratio"] == pytest.approx(rates["dctcp0"] / np.mean(classic))


def test_a_picture_counts_on_through_the_warm_up(plain: Plain) -> None:
    """The engine counts from 0 again when it ends; the share of the link that is used stays what it is."""
    env = make(scenario=plain("overload", horizon_s=3.0, warmup_s=1.0), render_mode="rgb_array")
    env.reset(seed=0)
    while env.batch.env["now_ns"][0] < 2_000_000_000:
        env.step(0)
    samples = env._view._samples[: env._view._column]
    assert (np.diff(samples[:, 3:], axis=0) >= 0.0).all()
    assert samples[-1, 3] / samples[-1, 4] > 0.95


# -- probabilities


def asked(p_c: float, p_l: float) -> Any:
    """The action for two probabilities."""
    return np.array([1.0 + math.log10(p) / 2.0 if p else -1.0 for p in (p_c, p_l)], np.float32)


def test_probabilities(plain: Plain) -> None:
    """Both classes are hit as often as asked, L also by its own ramp."""
    tree = plain("l4s-llm-testbed", horizon_s=2.0)
    env = make(PROB_ID, scenario=tree)
    for probs in ((0.0, 0.0), (1.0, 1.0), (0.1, 0.3)):
        env.reset(seed=0)
        over, steps = False, 0
        while not over:
            obs, _, terminated, truncated, info = env.step(asked(*probs))
            steps += 1
            over = terminated or truncated
            if not over:
                assert env.batch.env["now_ns"][0] == steps * 16_000_000
            assert env.observation_space.contains(obs)
        assert steps == 125
        classes = info["statistics"]["classes"]
        queue = env.batch.queue[0]
        for cls, prob in (("C", probs[0]), ("L", probs[1])):
            hits = queue["marked"]["CL".index(cls)] + queue["dropped"]["CL".index(cls)]
            if prob == 0.0 and cls == "C":
                assert classes[cls]["mark_rate"] == 0.0  # full buffers drop
            elif prob in (0.0, 1.0):
                assert (classes[cls]["mark_rate"] > 0.1) if prob == 0.0 else hits >= classes[cls]["offered"] - 1
            else:
                share = hits / classes[cls]["offered"]
                assert share > prob if cls == "L" else share == pytest.approx(prob, abs=0.12)


def test_even_probabilities(calm: dict[str, Any]) -> None:
    env = make(PROB_ID, scenario=calm, even=True)
    env.reset(seed=0)
    for _ in range(100):
        env.step(asked(0.25, 0.0))
    # Every fourth packet once the sum has passed 1 for the first time.
    dropped, offered = int(env.batch.queue["dropped"][0, 0]), int(env.batch.queue["offered"][0, 0])
    assert abs(dropped - offered / 4) <= 1.0


@pytest.mark.parametrize("reward", ["balance", "power"])
def test_control_interval_does_not_change_the_return(reward: str, plain: Plain) -> None:
    totals = []
    for interval_ms in (4.0, 16.0, 250.0):
        env = make(
            PROB_ID, scenario=plain("web", horizon_s=2.0), control_interval_ms=interval_ms, reward=reward, even=True
        )
        env.reset(seed=3)
        total, over = 0.0, False
        while not over:
            _, value, terminated, truncated, _ = env.step(asked(0.02, 0.1))
            total += value
            over = terminated or truncated
        totals.append(total)
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-9)


# -- replay


def test_replay_follows_the_log(log_path: Path) -> None:
    rows = load_rows(log_path)
    expected = scale_observation(np.nan_to_num(causal_observation(rows)))
    env = make(REPLAY_ID, log=str(log_path))
    obs, info = env.reset(seed=0)
    for k in range(len(rows)):
        assert info["row"] == min(k, len(rows) - 1)
        assert np.array_equal(obs, expected[k])
        assert info["logged_action"] == rows.records["action"][k]
        obs, reward, terminated, truncated, info = env.step(k % 3)
        delay = int(rows.records["current_queue_delay"][k])
        assert reward == pytest.approx(int(rows.records["packet_length"][k]) / (delay + 1000))
        assert not terminated
        assert truncated == (k == len(rows) - 1)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    assert env.reset(options={"start": 5})[1]["row"] == 5


def test_replay_keeps_the_contract(log_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(REPLAY_ID, log=str(log_path)))
    env = make(REPLAY_ID, log=str(log_path), render_mode="ansi", info_record=True)
    with pytest.raises(gym.error.ResetNeeded, match="not been started"):
        env.step(0)
    _, info = env.reset()
    assert env.render().startswith("row       0") and "last action" not in env.render()
    assert set(info) == {"logged_action", "row", "record"} and list(info["record"]) == list(OBSERVED)
    env.step(DROP)
    assert env.render().startswith("row       1") and env.render().endswith("last action drop")
    for bad in (3, None, np.array([1])):
        with pytest.raises(L4SError, match="give 0"):
            env.step(bad)


@pytest.mark.parametrize("column", ["length_in_bytes", "packet_length"])
@pytest.mark.parametrize("interval", [1, 10])
def test_replay_nearest(column: str, interval: int, log_path: Path) -> None:
    kwargs = {"log": str(log_path), "mode": "nearest", "column": column}
    env = make(REPLAY_ID, decision_interval=interval, **kwargs)
    first, _, _ = play(env, 0)
    assert play(env, 0)[0] == first
    assert len(first) > 100
    rows: list[int] = []
    _, info = env.reset()
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows.append(info["row"])
        info = env.step(int(rng.integers(3)))[4]
    jumps = np.flatnonzero(np.diff(rows) != 1)
    assert len(jumps) > 5
    assert (jumps % interval == 0).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "nearst"}, "did you mean 'nearest'"),
        ({"column": "packet"}, "did you mean 'packet_length'"),
        ({"decision_interval": 0}, "decision_interval"),
        ({"render_mode": "rgb_array"}, "unknown render_mode"),
        ({"log": None}, "needs log=PATH"),
        ({"log": "none.log"}, r"none\.log"),
    ],
)
def test_bad_replays(kwargs: dict[str, Any], message: str, log_path: Path) -> None:
    with pytest.raises(L4SError, match=message):
        DualPI2ReplayEnv(**{"log": log_path, **kwargs})


def test_replay_options(log_path: Path) -> None:
    with pytest.raises(L4SError, match="unknown option of reset 'strat': did you mean 'start'"):
        DualPI2ReplayEnv(log_path).reset(options={"strat": 5})


@pytest.mark.parametrize("start", [-1, 10**9])
def test_replay_start_out_of_range(start: int, log_path: Path) -> None:
    with pytest.raises(L4SError, match="no such row"):
        DualPI2ReplayEnv(log_path).reset(options={"start": start})
