"""How fast the simulator and the environments are: medians and spread, with the peers measured in the same run.

    python benchmarks/speed.py                       # everything but ns-3
    python benchmarks/speed.py --ns3-python peers/bin/python   # and ns-3 (see peers/ns3.py)

Absolute figures of a shared machine vary by a factor of two between runs; the ratios are of one run, the two
sides measured in turn. Nothing here is asserted: targets are shown beside the figures.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from l4s_gym.cli.arguments import command_line
from l4s_gym.envs.prob import DualPI2ProbEnv, DualPI2ProbVectorEnv
from l4s_gym.envs.vector import DualPI2VectorEnv
from l4s_gym.evaluation.origin import append_run, origin
from l4s_gym.sim import scenario
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.disciplines import AQMS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "speed.json"
PAPER = "l4s-llm-testbed"
IMPORT = "import time; t = time.perf_counter(); "
FIRST_STEP = IMPORT + (
    "import gymnasium as gym; e = gym.make('l4s_gym:L4S-DualPI2-v0'); e.reset(seed=0); e.step(0); "
    "print(time.perf_counter() - t)"
)


def spread(values: list[float]) -> dict[str, Any]:
    """Median, least and greatest of some runs."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def native_rate(chosen: scenario.Scenario, aqm: str | None, repeats: int) -> dict[str, Any]:
    """Packets offered to the bottleneck per second of wall time, whole native episodes on one core."""
    batch = Batch(chosen, aqm=aqm)
    rates = []
    packets = 0
    for k in range(repeats + 1):
        batch.reset(0, seeding.np_random(k)[0])
        start = time.perf_counter()
        batch.advance_one()
        wall = time.perf_counter() - start
        packets = int(batch.env["sent"][0])
        if k:
            rates.append(packets / wall)
    return spread(rates) | {"packets": packets, "ns_per_packet": 1e9 / statistics.median(rates)}


def step_rate(env: gym.Env[Any, Any], steps: int) -> float:
    """Steps per second through `gym.make`, action 0, resets included."""
    env.reset(seed=1)
    step, reset = env.step, env.reset
    start = time.perf_counter()
    for _ in range(steps):
        _, _, terminated, truncated, _ = step(0)
        if terminated or truncated:
            reset()
    return steps / (time.perf_counter() - start)


def single_against_cartpole(steps: int, repeats: int) -> dict[str, Any]:
    """Single steps of both through `gym.make`, in turn."""
    ours, peer = gym.make("l4s_gym:L4S-DualPI2-v0"), gym.make("CartPole-v1")
    step_rate(ours, 1000), step_rate(peer, 1000)
    pairs = [(step_rate(ours, steps), step_rate(peer, steps)) for _ in range(repeats)]
    return {
        "ours": spread([a for a, _ in pairs]),
        "CartPole-v1": spread([b for _, b in pairs]),
        "ratio": spread([a / b for a, b in pairs]),
    }


def vector_rate(n: int, steps: int, repeats: int) -> dict[str, Any]:
    """Decisions per second of the vector environment's `step`; the policy (a threshold marker) is not timed."""
    env = DualPI2VectorEnv(n, copy=False)
    obs, _ = env.reset(seed=0)
    rates = []
    for k in range(repeats + 1):
        busy_s = 0.0
        for _ in range(steps):
            delay, l4s = obs[:, 3], obs[:, 0] > 0.0
            actions = np.where(delay > np.where(l4s, 0.01, 0.15), 2, 0)  # 1 ms in L, 15 ms in C
            start = time.perf_counter()
            obs = env.step(actions)[0]
            busy_s += time.perf_counter() - start
        if k:  # the first block is the start-up of the flows
            rates.append(n * steps / busy_s)
    return spread(rates)


def intervals_against_singles(n: int, steps: int, repeats: int) -> dict[str, Any]:
    """Steps of control intervals a second of CPU time: `n` as a vector environment, and as single ones, in turn."""
    vector, singles = DualPI2ProbVectorEnv(n), [DualPI2ProbEnv() for _ in range(n)]
    action = np.full((n, 2), 0.02, np.float32)

    def rate(envs: list[Any], given: Any) -> float:
        for k, env in enumerate(envs):
            env.reset(seed=k)
        start = time.process_time()
        for _ in range(steps):
            for env in envs:
                env.step(given)
        return n * steps / (time.process_time() - start)

    pairs = [(rate([vector], action), rate(singles, action[0])) for _ in range(repeats)]
    return {
        "vector": spread([a for a, _ in pairs]),
        "singles": spread([b for _, b in pairs]),
        "ratio": spread([a / b for a, b in pairs]),
    }


def start_times(repeats: int) -> dict[str, Any]:
    """Seconds from the start of the imports to the first step: with an empty cache, and with a filled one."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "NUMBA_CACHE_DIR": folder}

        def first_step() -> float:
            done = subprocess.run(
                [sys.executable, "-c", FIRST_STEP], env=env, capture_output=True, text=True, check=True
            )
            return float(done.stdout)

        cold = first_step()
        return {"cold_s": cold, "warm_s": spread([first_step() for _ in range(repeats)])}


def against_ns3(ns3_python: Path, repeats: int) -> dict[str, Any]:
    """Bottleneck packets per second of both on the paper's flows at 8 Mbit/s under PIE, in turn."""
    spec = importlib.util.spec_from_file_location("peer", HERE / "peers" / "ns3.py")
    assert spec is not None
    assert spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = peer
    spec.loader.exec_module(peer)
    program, version = peer.build(ns3_python)
    case = peer.make_case("paper", 8, 20, "pie", {"cubic": 4, "linuxreno": 4, "dctcp": 1})
    peer.run_ours(case)
    ratios, ours, theirs = [], [], []
    for _ in range(repeats):
        a, b = peer.run_ours(case), peer.run_ns3(case, program)
        ours.append(a["bottleneck_packets"] / a["wall_s"])
        theirs.append(b["bottleneck_packets"] / b["wall_s"])
        ratios.append(ours[-1] / theirs[-1])
    return {"ours": spread(ours), "ns-3": spread(theirs), "ratio": spread(ratios), "ns-3 version": version}


def grid(repeats: int) -> dict[str, Any]:
    """Cost per packet over rates and numbers of flows (CUBIC and DCTCP in equal parts, 20 ms)."""
    out = {}
    for rate in (1, 10, 100, 1000):
        for flows in (1, 4, 16, 64):
            half = (flows + 1) // 2
            chosen = scenario.from_dict(
                {
                    "name": f"{rate} Mbit/s, {flows} flows",
                    "horizon_s": max(min(60.0, 600.0 / rate), 3.0),
                    "aqm": "dualpi2_rfc9332",
                    "link": {"rate_mbps": float(rate)},
                    "sources": [
                        {"kind": "cubic", "count": half, "rtt_ms": 20.0},
                        {"kind": "dctcp", "count": flows - half, "rtt_ms": 20.0},
                    ],
                }
            )
            out[chosen.name] = native_rate(chosen, None, repeats)
    return out


def show(name: str, figure: dict[str, Any], scale: float, unit: str, target: str = "") -> None:
    """One line of the report."""
    low, mid, high = (figure[key] / scale for key in ("min", "median", "max"))
    print(f"{name:<44} {mid:9.2f} {unit:<14} [{low:.2f} .. {high:.2f}]  {target}", flush=True)


def main(ns3_python: Path | None = None, repeats: int = 7, out: Path = RESULTS, quick: bool = False) -> None:
    """Measure and write the results.

    Args:
        ns3_python: Interpreter of an environment that has the package `ns3`; without it ns-3 is left out.
        repeats: Runs of each figure.
        out: JSON file to which this run is appended.
        quick: Fewer, shorter runs.
    """
    repeats = 3 if quick else repeats
    data: dict[str, Any] = origin()
    paper = scenario.load(PAPER)
    data["native"] = {}
    for aqm in AQMS:
        data["native"][aqm] = native_rate(paper, aqm, repeats)
        show(f"native episodes, {PAPER}, {aqm}", data["native"][aqm], 1e6, "M packets/s", "target 5")
    if ns3_python is not None:
        data["ns3"] = against_ns3(ns3_python, repeats)
        show("  ns-3, the paper's flows, PIE", data["ns3"]["ns-3"], 1e3, "k packets/s")
        show("  ratio to ns-3", data["ns3"]["ratio"], 1, "x", "target 200")
    data["single"] = single_against_cartpole(20_000 if quick else 100_000, repeats)
    show("gym.make single steps", data["single"]["ours"], 1e3, "k steps/s")
    show("  CartPole-v1", data["single"]["CartPole-v1"], 1e3, "k steps/s")
    show("  ratio", data["single"]["ratio"], 1, "x", "target 2")
    data["vector"] = {}
    for n in (64, 256, 1024):
        data["vector"][str(n)] = vector_rate(n, 300 if quick else 1000, repeats)
        show(f"vector environment, {n}", data["vector"][str(n)], 1e6, "M decisions/s", "target 5" if n == 1024 else "")
    data["intervals"] = intervals_against_singles(64, 200 if quick else 1000, repeats)
    show("vector of control intervals, 64", data["intervals"]["vector"], 1e3, "k steps/CPU s")
    show("  ratio to 64 single ones", data["intervals"]["ratio"], 1, "x")
    data["start"] = start_times(3 if quick else repeats)
    print(f"{'first step, cold cache (compiles)':<44} {data['start']['cold_s']:9.2f} s              target 30")
    show("first step, warm cache", data["start"]["warm_s"], 1, "s", "target 1.5")
    data["grid"] = grid(2 if quick else 3)
    for name, figure in data["grid"].items():
        print(f"  {name:<42} {figure['ns_per_packet']:9.0f} ns a packet")
    runs = append_run(out, data)
    print(f"run {len(runs)} in {out}")


if __name__ == "__main__":
    command_line(main)
