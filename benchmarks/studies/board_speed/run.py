"""Run time of the board of the native disciplines, and the overhead of the harness over simulation and inference.

    python benchmarks/studies/board_speed/run.py                   # all disciplines, 3 suites, 10 seeds, 60 s
        python benchmarks/studies/board_speed/run.py --agents runs/bc  # and the overhead for your own agent

The first part is `sweep.run` in the size `full`, without cached results. The second measures, in one process,
the share of the time of `evaluate_many` that is neither the engine nor the agent, where the agent is asked. The third
is the time of a decision in `evaluate_many` on one thread, simulation included, in the engine and where the agent is
asked, and the time of one `act` for a single queue; networks have random weights. Figures of a shared machine vary
between runs. There are no assertions: targets are shown beside the figures.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from l4s_gym import agents
from l4s_gym.cli.arguments import command_line
from l4s_gym.evaluation import entry, harness, leaderboard, sweep
from l4s_gym.evaluation.origin import append_run, origin
from l4s_gym.schema import ACTIONS, ENQUEUE, OBSERVED
from l4s_gym.sim import scenario
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.policy import Network, Policy

HERE = Path(__file__).resolve().parent
GROUP = ("grid-40m-10ms", "grid-40m-20ms", "grid-40m-50ms", "steps", "web")


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    seconds: float = 60.0
    """Length of the episodes of the board."""
    jobs: int | None = None
    """Processes; by default one per core."""
    agents: tuple[str, ...] = ("enqueue", "threshold")
    """Agents whose overhead is measured."""
    repeats: int = 5
    """Measurements of each agent."""
    out: Path = HERE / "results" / "board_speed.json"
    """File for the figures."""


def native_board(options: Options) -> dict[str, Any]:
    """Return the wall time of the whole board, and the engine's share of it."""
    rules = entry.read_protocol()
    rules = msgspec.structs.replace(rules, full=msgspec.structs.replace(rules.full, seconds=options.seconds))
    jobs = options.jobs or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        entries = sweep.run(leaderboard.experiments(["native"]), rules, "full", Path(work), jobs=jobs)
        wall_s = time.perf_counter() - start
    packets = sum(row["decisions"] for each in entries for row in each.results)
    engine_s = sum(each.wall_s for each in entries)
    return {
        "entries": len(entries),
        "episodes": sum(len(each.results) for each in entries),
        "seconds": options.seconds,
        "packets_after_warmup": packets,
        "jobs": jobs,
        "wall_s": wall_s,
        "engine_s": engine_s,
        "overhead": 1.0 - engine_s / (wall_s * jobs),
        "target_wall_s": 300.0,
    }


class Clock:
    """Measures the time of calls."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0

    def of(self, function: Any) -> Any:
        """Return the function with its time measured."""

        def timed(*given: Any) -> Any:
            start = time.perf_counter()
            found = function(*given)
            self.seconds += time.perf_counter() - start
            self.calls += 1
            return found

        return timed


def clock_s() -> float:
    """Return the time that the measurement adds to a call, which is not the harness's."""
    clock, calls = Clock(), 20_000
    nothing = clock.of(lambda: None)
    start = time.perf_counter()
    for _ in range(calls):
        nothing()
    return (time.perf_counter() - start - clock.seconds) / calls


def overhead(spec: str, repeats: int) -> dict[str, Any]:
    """Return the share of time outside engine and agent in a batch of 5 scenarios x 10 seeds: the least, and all."""
    shares, inference = [], []
    advance = Batch.advance_unchecked
    chosen = [scenario.load(name).replace(horizon_s=2.0) for name in GROUP]
    for _ in range(repeats):
        engine, asked = Clock(), Clock()
        agent = agents.make(spec)
        agent.act = asked.of(agent.act)  # type: ignore[method-assign]
        Batch.advance_unchecked = engine.of(advance)  # type: ignore[method-assign]
        try:
            wall_s = harness.evaluate_many(agent, chosen, seeds=range(10))[0].wall_s
        finally:
            Batch.advance_unchecked = advance  # type: ignore[method-assign]
        after_s = asked.seconds * harness.LATENCY_CALLS / asked.calls  # the calls after the run, approximately
        asked.seconds -= min(after_s, harness.LATENCY_S)
        wall_s -= clock_s() * (engine.calls + asked.calls)
        shares.append(1.0 - (engine.seconds + asked.seconds) / wall_s)
        inference.append(asked.seconds / wall_s)
    return {"agent": spec, "overhead": min(shares), "all": shares, "inference": min(inference), "target": 0.1}


def network(*hidden: int) -> agents.Agent:
    """Return an agent with random weights, which enqueues most packets."""
    rng, sizes = np.random.default_rng(0), (len(OBSERVED), *hidden, len(ACTIONS))
    layers = [
        (rng.normal(0.0, m**-0.5, (n, m)).astype(np.float32), np.zeros(n, np.float32))
        for m, n in itertools.pairwise(sizes)
    ]
    layers[-1][1][ENQUEUE] = 6.0
    return agents.PolicyAgent(Policy((Network(tuple(layers)),)), "-".join(map(str, hidden)))


def decision(agent: agents.Agent, repeats: int, target_us: float) -> dict[str, Any]:
    """Return the processor time of a decision, us, least of some runs: in the engine, in a batch of 50, and alone."""
    chosen = [scenario.load(name).replace(horizon_s=2.0, warmup_s=0.0) for name in GROUP]
    act = agent.act
    took: dict[str, list[float]] = {"engine_us": [], "asked_us": []}
    for _ in range(repeats):
        for name, times in took.items():
            if name == "asked_us":
                agent.act = act  # type: ignore[method-assign]  # so that the harness does not use the policy
            start = time.process_time()
            results = harness.evaluate_many(agent, chosen, seeds=range(10), threads=1)
            times.append(1e6 * (time.process_time() - start) / sum(result.decisions for result in results))
        del agent.act
    least = {name: min(times) for name, times in took.items()}
    return {"agent": agent.name, **least, "act_us": (results[0].latency_us or {})["p50"], "target_us": target_us}


def main(options: Options) -> None:
    found: dict[str, Any] = {"decision": []}
    for agent, target in ((network(256, 256), 3.0), (network(64, 64), 0.6), (agents.ThresholdAgent(), 0.6)):
        found["decision"].append(row := decision(agent, options.repeats, target))
        print(
            f"{row['agent']}: a decision takes {row['engine_us']:.2f} us in the engine (target {target:g}), "
            f"{row['asked_us']:.2f} us where the agent is asked for 50 queues, {row['act_us']:.1f} us for one"
        )
    found["overhead"] = [overhead(spec, options.repeats) for spec in options.agents]
    for each in found["overhead"]:
        print(f"{each['agent']}: harness {100 * each['overhead']:.1f} % of the time (target 10 %)")
    found["native"] = board = native_board(options)
    print(
        f"native board: {board['episodes']} episodes of {options.seconds:g} s in {board['wall_s']:.0f} s on "
        f"{board['jobs']} processes (target {board['target_wall_s']:.0f} s for 60 s), harness and start "
        f"{100 * board['overhead']:.1f} %"
    )
    append_run(options.out, {**origin(), **found})


if __name__ == "__main__":
    main(command_line(Options, description=__doc__))
