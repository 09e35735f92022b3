"""What `speed.py` measures of one source tree: a process that is asked for one sample at a time.

    PYTHONPATH=TREE python benchmarks/studies/speed/side.py

A line on stdin is a sample that is wanted, `[name, {arguments}]`; a line on stdout is what came of it. It uses only
what older trees have too, so that `speed.py --against COMMIT` can measure two of them in turn.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from l4s_gym.envs.vector import DualPI2VectorEnv
from l4s_gym.sim import batch as batches
from l4s_gym.sim import scenario
from l4s_gym.sim.batch import Batch

Sample = dict[str, float]
"""`work` done in `wall_s` and `cpu_s` (of all threads of the process)."""
_CORES = batches.PARALLEL_FROM


class Stopwatch:
    """Wall and CPU time of the blocks that it is entered for."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    def __enter__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.cpu_s += time.process_time() - self._cpu
        self.wall_s += time.perf_counter() - self._wall

    def sample(self, work: float) -> Sample:
        """What has been measured."""
        return {"work": work, "wall_s": self.wall_s, "cpu_s": self.cpu_s}


@functools.cache
def _batch(what: str, aqm: str | None) -> tuple[Batch, list[int]]:
    chosen = scenario.from_dict(json.loads(what)) if what.startswith("{") else scenario.load(what)
    return Batch(chosen, aqm=aqm), [0]


def native(what: str, aqm: str | None = None, least_s: float = 0.2) -> Sample:
    """Packets offered to the bottleneck in whole native episodes; each sample has other seeds."""
    batch, seeds = _batch(what, aqm)
    watch, packets = Stopwatch(), 0
    while watch.wall_s < least_s:
        batch.reset(0, seeding.np_random(seeds[0])[0])
        seeds[0] += 1
        with watch:
            batch.advance_one()
        packets += int(batch.env["sent"][0])
    return watch.sample(packets)


@functools.cache
def _single(env_id: str) -> gym.Env[Any, Any]:
    env = gym.make(env_id)
    env.reset(seed=1)
    return env


def steps(env_id: str, count: int = 100_000) -> Sample:
    """Steps of an environment of `gym.make` with its defaults, action 0, resets included."""
    env = _single(env_id)
    env.reset()
    step, reset = env.step, env.reset
    watch = Stopwatch()
    with watch:
        for _ in range(count):
            _, _, terminated, truncated, _ = step(0)
            if terminated or truncated:
                reset()
    return watch.sample(count)


@functools.cache
def _vector(n: int, threads: bool) -> DualPI2VectorEnv:
    batches.PARALLEL_FROM = _CORES if threads else sys.maxsize
    env = DualPI2VectorEnv(n, copy=False)
    _play(env, env.reset(seed=0)[0], 1000)  # the start-up of the flows
    return env


def _play(env: DualPI2VectorEnv, obs: Any, count: int) -> Stopwatch:
    watch = Stopwatch()
    for _ in range(count):
        delay, l4s = obs[:, 3], obs[:, 0] > 0.0
        actions = np.where(delay > np.where(l4s, 0.01, 0.15), 2, 0)  # 1 ms in L, 15 ms in C
        with watch:
            obs = env.step(actions)[0]
    return watch


def vector(n: int, threads: bool, count: int = 1000) -> Sample:
    """Decisions of the vector environment's `step`; the policy (a threshold marker) is not timed."""
    batches.PARALLEL_FROM = _CORES if threads else sys.maxsize
    env = _vector(n, threads)
    return _play(env, env.buffers["obs"], count).sample(n * count)


@functools.cache
def _intervals(n: int, vector: bool) -> Any:
    env_id = "l4s_gym:L4S-DualPI2-Prob-v0"
    return gym.make_vec(env_id, n) if vector else gym.make(env_id)


def intervals(n: int, vector: bool, count: int = 200) -> Sample:
    """Steps of control intervals, `n` environments side by side in a vector, or a single one."""
    env = _intervals(n, vector)
    env.reset(seed=0)
    action = np.full((n, 2) if vector else 2, 0.02, np.float32)
    watch = Stopwatch()
    with watch:
        for _ in range(count):
            env.step(action)
    return watch.sample(n * count)


SAMPLES: dict[str, Callable[..., Sample]] = {
    "native": native, "steps": steps, "vector": vector, "intervals": intervals
}  # fmt: skip


def disciplines() -> tuple[str, ...]:
    """Names of those of this tree."""
    try:
        from l4s_gym.sim import disciplines as found
    except ImportError:
        from l4s_gym.sim import layout

        return tuple(layout.AQMS)  # type: ignore[attr-defined]
    return found.AQMS


def main() -> None:
    """Answer until stdin ends; with `--compile` or `--disciplines`, do no more than that."""
    if "--compile" in sys.argv:
        batches.compile_engine()
        return
    if "--disciplines" in sys.argv:
        print(json.dumps(disciplines()))
        return
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(SAMPLES[name](**arguments)), flush=True)


if __name__ == "__main__":
    main()
