"""Copies, pickles and snapshots go on bit for bit, in this process and in another one, and leave the original alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import l4s_gym
from l4s_gym.envs.dualpi2 import DualPI2Env
from l4s_gym.envs.prob import DualPI2ProbEnv, DualPI2ProbVectorEnv
from l4s_gym.envs.tune import DualPI2TuneVectorEnv
from l4s_gym.envs.vector import DualPI2VectorEnv
from l4s_gym.errors import L4SError
from l4s_gym.sim import layout, scenario
from l4s_gym.sim.batch import PARALLEL_FROM, Batch
from l4s_gym.sim.disciplines import AQMS

ENV_ID, PROB_ID, TUNE_ID = l4s_gym.ENV_IDS
Plain = Callable[..., dict[str, Any]]
BEFORE, STEPS = 120, 200


def content(what: Any) -> bytes:
    """Bytes that are equal where observations, rewards and infos are."""
    if isinstance(what, dict):
        return b"".join(key.encode() + content(what[key]) for key in sorted(what))
    if isinstance(what, tuple):
        return b"".join(content(part) for part in what)
    if isinstance(what, np.ndarray) and what.dtype != object:
        return what.tobytes()
    return repr(what).encode()


def go_on(env: Any, steps: int = STEPS, seed: int = 3) -> str:
    """Digest of all that comes back from some steps; ended episodes are started anew, without a seed."""
    rng = np.random.default_rng(seed)
    digest = hashlib.sha256()
    count = getattr(env, "num_envs", 0)
    space = env.action_space
    discrete = isinstance(getattr(env, "single_action_space", space), gym.spaces.Discrete)
    for _ in range(steps):
        if discrete:
            action: Any = rng.choice(3, count or None, p=[0.94, 0.03, 0.03])
        else:
            action = rng.uniform(-1.0, 0.5, space.shape).astype(np.float32)
        came = env.step(action)
        digest.update(content(came))
        if not count and (came[2] or came[3]):
            digest.update(env.reset()[0].tobytes())
    if env.render_mode is not None:
        digest.update(np.asarray(env.render()).tobytes())
    return digest.hexdigest()


def go_on_from(path: str) -> list[str]:
    """`go_on` of each pickled environment of a file; of a pair of environment and snapshot, from the snapshot."""
    digests = []
    for what in pickle.loads(Path(path).read_bytes()):
        env = what
        if isinstance(what, tuple):
            env, snapshot = what
            env.reset(seed=99)
            env.unwrapped.restore_state(snapshot)
        digests.append(go_on(env))
    return digests


def in_another_process(things: list[Any], folder: Path) -> list[str]:
    """`go_on_from` in a fresh interpreter."""
    (folder / "things.pickle").write_bytes(pickle.dumps(things))
    code = (
        f"import json, runpy; names = runpy.run_path({__file__!r}); "
        f"print(json.dumps(names['go_on_from']({str(folder / 'things.pickle')!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    digests: list[str] = json.loads(done.stdout)
    return digests


@pytest.fixture(scope="module")
def makers(plain: Plain, log_path: Path) -> dict[str, Callable[[], Any]]:
    """Every registered environment but the live one: single, and as vector environments."""
    short = plain("mixed", horizon_s=1.2)  # what is randomised is drawn anew in each episode
    several: list[Any] = [short, "lte", plain("l4s-llm-testbed-vm", horizon_s=0.5)]
    log = str(log_path)
    sync = functools.partial(gym.vector.SyncVectorEnv)
    return {
        "packets": functools.partial(gym.make, ENV_ID, scenario=short, info_record=True),
        "packets, Linux, with pictures": functools.partial(
            gym.make, ENV_ID, scenario="l4s-llm-testbed", aqm="dualpi2_linux", render_mode="rgb_array"
        ),
        "packets of the virtual machines": functools.partial(gym.make, ENV_ID, scenario="l4s-llm-testbed-vm"),
        "packets of a trace": functools.partial(gym.make, ENV_ID, scenario="lte", decision_interval=10),
        "intervals": functools.partial(gym.make, PROB_ID, scenario=short, even=True, render_mode="ansi"),
        "packets, several scenarios": functools.partial(gym.make, ENV_ID, scenario=several, horizon_s=0.3),
        "intervals, several scenarios": functools.partial(gym.make, PROB_ID, scenario=several, horizon_s=0.3),
        "parameters": functools.partial(gym.make, TUNE_ID, scenario=several, horizon_s=0.3),
        "parameters, Linux": functools.partial(gym.make, TUNE_ID, scenario=short, aqm="dualpi2_linux"),
        "replay": functools.partial(gym.make, l4s_gym.REPLAY_ID, log=log, mode="nearest", decision_interval=10),
        "vector": functools.partial(DualPI2VectorEnv, 3, short, autoreset_mode="same_step"),
        "vector, intervals": functools.partial(DualPI2ProbVectorEnv, 3, several, horizon_s=0.3, copy=False),
        "vector, parameters": functools.partial(DualPI2TuneVectorEnv, 3, several, control_interval_ms=8.0),
        "vector with threads": functools.partial(DualPI2VectorEnv, PARALLEL_FROM, "mixed", copy=False),
        "vector of intervals": functools.partial(
            sync, [functools.partial(gym.make, PROB_ID, scenario=short, control_interval_ms=4.0)] * 2
        ),
        "vector of replays": functools.partial(sync, [functools.partial(gym.make, l4s_gym.REPLAY_ID, log=log)] * 2),
    }


def started(make: Callable[[], Any]) -> Any:
    """An environment in the middle of an episode."""
    env = make()
    env.reset(seed=5)
    go_on(env, BEFORE, seed=1)
    return env


NAMES = (
    *("packets", "packets, Linux, with pictures", "packets of the virtual machines", "packets of a trace"),
    *("packets, several scenarios", "intervals", "intervals, several scenarios", "replay"),
    *("parameters", "parameters, Linux", "vector, parameters"),
    *("vector", "vector, intervals", "vector with threads", "vector of intervals", "vector of replays"),
)


@pytest.mark.parametrize("name", NAMES)
def test_copies(name: str, makers: dict[str, Callable[[], Any]]) -> None:
    env = started(makers[name])
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    copies += [copy.deepcopy(copies[0]), copy.copy(env.unwrapped)] if "of " not in name else []
    digests = [go_on(one) for one in copies]
    assert digests == [go_on(env)] * len(copies)  # and the original has not moved meanwhile


@pytest.mark.slow
def test_copies_in_another_process(makers: dict[str, Callable[[], Any]], tmp_path: Path) -> None:
    assert set(makers) == set(NAMES)
    envs = [started(make) for make in makers.values()]
    digests = in_another_process(envs, tmp_path)
    assert digests == [go_on(env) for env in envs]


def test_an_environment_that_has_not_been_started(makers: dict[str, Callable[[], Any]]) -> None:
    env = makers["packets"]().unwrapped
    copied = pickle.loads(pickle.dumps(env))
    with pytest.raises(gym.error.ResetNeeded):
        copied.step(0)
    for one in (env, copied):
        one.reset(seed=8)
    assert go_on(env) == go_on(copied)


def test_a_copy_has_memory_of_its_own(makers: dict[str, Callable[[], Any]]) -> None:
    env = started(makers["packets"]).unwrapped
    copied = copy.deepcopy(env)
    batch = copied.batch
    assert batch.address != env.batch.address
    places = {"queue_at": batch.queues, "flow_at": batch.flow, "packet_at": batch.packet, "obs_at": batch.obs}
    for name, array in places.items():
        assert batch.env[name][0] == array.ctypes.data
    assert batch.env["trace_row"][0] == batch._prepared[0].trace.ctypes.data
    assert not np.shares_memory(batch.env, env.batch.env)
    assert np.shares_memory(batch.first_obs, batch.obs) and np.shares_memory(batch.first_env, batch.env)
    for name in ("action", "reward", "applied"):
        assert np.shares_memory(np.asarray(getattr(batch, f"{name}_view")), getattr(batch, name))


def test_whatever_a_batch_is_made_of_goes_with_it() -> None:
    """Each argument, and each array whose address the engine knows."""
    batch = Batch(scenario.load("web"))
    assert {*batch._options, "self", "scenario", "outputs"} == set(inspect.signature(Batch.__init__).parameters)
    known = batch._memory[1]
    assert set(known) == set(batch._places)
    assert all(any(np.shares_memory(array, part) for part in batch._bytes.values()) for array in known.values())


def test_a_batch_with_its_log() -> None:
    """What stands in the decision log goes with it; a copy writes into a log of its own."""
    batch = Batch(scenario.load("l4s-llm-testbed").replace(horizon_s=2.0), log_rows=10_000)
    batch.reset(0, np.random.default_rng(0))
    batch.stop_at(0, 10**9)
    assert batch.advance_one() == layout.STOPPED
    copied = pickle.loads(pickle.dumps(batch))
    found = []
    for one in (batch, copied):
        one.stop_at(0, layout.NEVER)
        assert one.advance_one() == layout.TRUNCATED
        records, rewards = one.drain(0, everything=True)
        found.append((records.tobytes(), rewards.tobytes()))
    assert found[0] == found[1]


# -- snapshots


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("vector of")])
def test_snapshots(name: str, makers: dict[str, Callable[[], Any]]) -> None:
    env = started(makers[name])
    snapshot = env.unwrapped.clone_state()
    expected = go_on(env)
    for _ in range(2):  # once is not the last time
        env.unwrapped.restore_state(snapshot)
        assert go_on(env) == expected
    other = makers[name]()
    other.reset(seed=77)
    go_on(other, 50)
    other.unwrapped.restore_state(pickle.loads(pickle.dumps(snapshot)))
    assert go_on(other) == expected


@pytest.mark.slow
def test_snapshots_in_another_process(makers: dict[str, Callable[[], Any]], tmp_path: Path) -> None:
    names = ("packets, several scenarios", "intervals", "replay", "vector", "vector, intervals")
    envs = [started(makers[name]) for name in names]
    snapshots = [env.unwrapped.clone_state() for env in envs]
    fresh = [makers[name]() for name in names]
    assert in_another_process(list(zip(fresh, snapshots, strict=True)), tmp_path) == [go_on(env) for env in envs]


def test_a_snapshot_of_an_ended_episode(finite: dict[str, Any]) -> None:
    env = DualPI2Env(finite)
    env.reset(seed=0)
    alive = env.clone_state()
    while not env.step(0)[2]:
        pass
    ended = env.clone_state()
    env.restore_state(alive)
    env.step(0)
    env.restore_state(ended)
    with pytest.raises(gym.error.ResetNeeded, match="ended"):
        env.step(0)


def test_a_snapshot_bears_no_address() -> None:
    """Equal states are equal bytes, wherever they lie."""
    first, second = (DualPI2Env("web") for _ in range(2))
    for env in (first, second):
        env.reset(seed=4)
        go_on(env, 100)
    ours, theirs = (env.clone_state().parts["batch"] for env in (first, second))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_other_snapshots_are_refused() -> None:
    env = DualPI2Env("web")
    env.reset(seed=0)
    others: dict[str, Any] = {
        "scenario": DualPI2Env("mixed"),
        "aqm": DualPI2Env("web", aqm="dualpi2_linux"),
        "reward": DualPI2Env("web", reward="power"),
        "interval": DualPI2Env("web", decision_interval=10),
        "environment": DualPI2ProbEnv("web"),
    }
    for name, other in others.items():
        other.reset(seed=0)
        with pytest.raises(L4SError, match=f"^the snapshot: made with {name} ") as caught:
            env.restore_state(other.clone_state())
        assert "\n" not in str(caught.value)
    good = env.clone_state()
    old = dataclasses.replace(good, identity={**good.identity, "version": "0.0.1"})
    with pytest.raises(L4SError, match=r"made with version 0\.0\.1, here it is"):
        env.restore_state(old)
    with pytest.raises(L4SError, match="dict is no snapshot"):
        env.restore_state({})  # type: ignore[arg-type]
    for n in (2, 3):
        vector = DualPI2VectorEnv(n, "web")
        vector.reset(seed=0)
        if n == 2:
            small = vector.clone_state()
    with pytest.raises(L4SError, match="made with n 2, here it is 3"):
        vector.restore_state(small)


def test_a_pickle_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = DualPI2Env("web").batch.__getstate__()
    state["identity"] = {**state["identity"], "layout": "other"}
    with pytest.raises(L4SError, match="the pickled simulation: made with layout other"):
        Batch.__new__(Batch).__setstate__(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", scenario.names())
@pytest.mark.parametrize("aqm", AQMS)
def test_every_scenario_and_discipline(name: str, aqm: str) -> None:
    env = started(functools.partial(gym.make, ENV_ID, scenario=name, aqm=aqm))
    snapshot = env.unwrapped.clone_state()
    digests = [go_on(one) for one in (copy.deepcopy(env), pickle.loads(pickle.dumps(env)), env)]
    env.unwrapped.restore_state(snapshot)
    assert digests == [go_on(env)] * 3
