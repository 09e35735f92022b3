"""How well 1 to 1,000 workers are used on the whole board, by a schedule of measured times.

    python benchmarks/studies/schedule/run.py    # some minutes on one core

Each learner of the board is trained for some steps on simulated data, and its agent decides for some batches: so a step
and a decision are measured, in processor time of one core. Of a training, the steps of its configuration count; of a
cell, its packets and decisions. Then the jobs of a sweep are given to workers as `l4s_gym.evaluation.sweep` gives them:
trainings, then cells, of both the longest that can start. Left out are the start of processes, transfers and the
time to keep a result, which is measured by itself.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from l4s_gym.agents import Agent, AgentSpec, training
from l4s_gym.cli.arguments import command_line
from l4s_gym.data import minari_io
from l4s_gym.data.files import atomic_write
from l4s_gym.data.pools import make_rows
from l4s_gym.data.simulated import simulate_log
from l4s_gym.data.steps import episodes_from_rows
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import entry, harness, leaderboard, sweep, work
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.sim import scenario

RESULTS: Final = Path(__file__).resolve().parent / "results"
WORKERS: Final = (1, 8, 64, 1000)
GOAL: Final = 0.8
BATCHES: Final = (1, 10, 30, 64)
STEPS: Final = (20, 60)
"""Steps of the two trainings whose difference is measured."""


@dataclass(frozen=True)
class Measured:
    """What was measured of an agent, processor time of one core.

    Attributes:
        call_us: Of a decision for a batch of any size; 0 where the engine decides.
        episode_us: Of a decision for each of its episodes.
        training_s: Of a training.
    """

    call_us: float
    episode_us: float
    training_s: float = 0.0


@dataclass(frozen=True)
class Chain:
    """A training, s (0: none), and the cells of its agents, s each."""

    training_s: float
    cells_s: tuple[float, ...]

    @property
    def longest_s(self) -> float:
        """How long it takes on any number of workers."""
        return self.training_s + max(self.cells_s)


def make_dataset() -> str:
    """A dataset of 20,000 packets or so; its id."""
    name = "l4s/dualpi2/schedule-v0"
    logs = [simulate_log("l4s-llm-testbed", seed=seed, seconds=6.0) for seed in range(4)]
    episodes = [episode for log in logs for episode in episodes_from_rows(make_rows(log))]
    about: Any = {"env_kwargs": {"scenario": "l4s-llm-testbed"}, "algorithm_name": "dualpi2_freebsd"}
    minari_io.create(name, episodes, description="To measure trainings.", **about)
    return name


def in_engine(who: Any) -> float:
    """Processor time of a packet on which an agent or discipline decides in the engine, us, simulation included."""
    start = time.process_time()
    chosen = scenario.load("grid-12m-20ms").replace(horizon_s=20.0, warmup_s=0.0)
    results = harness.evaluate_many(who, [chosen], seeds=range(10), threads=1)
    packets = sum(counts["offered"] for result in results for counts in result.classes.values())
    return 1e6 * (time.process_time() - start) / packets


def asked(agent: Agent, calls: int = 100) -> tuple[float, float]:
    """Processor time of a decision, us: of the call, and of each episode (a line through `BATCHES`)."""
    rng, took = np.random.default_rng(0), []
    for n in BATCHES:
        agent.reset(n, 0)
        given = rng.random((n, 8), np.float32) * 0.01, np.zeros(n)
        for _ in range(30):
            agent.act(*given)
        start = time.process_time()
        for _ in range(calls):
            agent.act(*given)
        took.append(1e6 * (time.process_time() - start) / calls)
    each, fixed = np.polyfit(BATCHES, took, 1, w=1.0 / np.array(took))
    return max(float(fixed), 0.0), float(each)


def measure(how: entry.Training, dataset: str, folder: Path) -> Measured:
    """What a training costs and the decisions of its agent; of a learner that needs other data, `work.COSTS`."""
    try:
        return _measure(how, dataset, folder)
    except L4SError as error:
        print(f"{how.learner}: {error}: taken as estimated")
        cost = work.COSTS[work.kind_of(AgentSpec.of_folder(folder, kind=how.learner))]
        return Measured(cost.call_us, cost.episode_us, cost.training_s)


def _measure(how: entry.Training, dataset: str, folder: Path) -> Measured:
    config = training.load_config(how.learner, small=how.small, settings=how.settings)
    prefix = "train." if "train" in config else ""
    steps, took = (config["train"] if prefix else config)["steps"], []
    for count in STEPS:
        settings = [*how.settings, f"{prefix}steps={count}"]
        if prefix:
            settings += [f"train.warmup={STEPS[0] // 2}", f"train.eval_every={count}", "train.eval_steps=500"]
        short = training.load_config(how.learner, small=how.small, settings=settings)
        start = time.process_time()
        training.learner(how.learner).train(dataset, short, folder / str(count))
        took.append(time.process_time() - start)
    training_s = took[0] + (took[1] - took[0]) / (STEPS[1] - STEPS[0]) * (steps - STEPS[0])
    spec = AgentSpec.of_folder(folder / str(STEPS[1]), kind=how.learner)
    agent = spec.make()
    if work.COSTS[work.kind_of(spec)].call_us:
        return Measured(*asked(agent), training_s)
    return Measured(0.0, in_engine(agent), training_s)


def seconds(cell: work.Cell, cost: Measured, packet_us: float) -> float:
    """How long a cell takes, by what was measured."""
    packets = work.PACKETS * max(work.rate_mbps(name) for name in cell.names) * cell.seconds
    episodes = len(cell.names) * len(cell.seeds)
    if not cost.call_us:
        return 1e-6 * packets * episodes * cost.episode_us
    decision_us = (cost.call_us + episodes * cost.episode_us) / cell.decision_interval
    return 1e-6 * packets * (decision_us + episodes * packet_us)


def makespan(chains: Sequence[Chain], workers: int) -> float:
    """How long workers take, s, as `sweep.Sweep.run` gives them jobs."""
    queue: list[tuple[bool, float, int]] = []  # whether it is no training, less its time, the number of its chain

    def add(number: int) -> None:
        for cell in chains[number].cells_s:
            heapq.heappush(queue, (True, -cell, number))

    for number, chain in enumerate(chains):
        if chain.training_s:
            heapq.heappush(queue, (False, -chain.training_s, number))
        else:
            add(number)
    running: list[tuple[float, bool, int]] = []
    now = 0.0
    while queue or running:
        while queue and len(running) < workers:
            cell, less, number = heapq.heappop(queue)
            heapq.heappush(running, (now - less, cell, number))
        now, cell, number = heapq.heappop(running)
        if not cell:
            add(number)
    return now


def use(chains: Sequence[Chain], workers: int) -> dict[str, float]:
    """Makespan, s, and which share of the workers' time is used."""
    took, total = makespan(chains, workers), sum(chain.training_s + sum(chain.cells_s) for chain in chains)
    return {"workers": workers, "makespan_s": took, "used": total / (took * workers)}


def enough(chains: Sequence[Chain], workers: int) -> int:
    """How many times as many trainings of each row would use the workers to `GOAL`."""
    trained = [chain for chain in chains if chain.training_s]
    rest = [chain for chain in chains if not chain.training_s]
    times = 1
    while use([*rest, *trained * times], workers)["used"] < GOAL:
        times = math.ceil(times * 1.1)
    return times


def named(how: entry.Training) -> str:
    """Name of a learner with its settings."""
    return " ".join((how.learner, *how.settings))


def board(size: str, costs: dict[str, Measured]) -> list[Chain]:
    """The jobs of a size of the board."""
    found: dict[str, Chain] = {}
    planner = sweep.Sweep(entry.read_protocol(), size, Path("nowhere"), jobs=0, ray="")
    for experiment in leaderboard.experiments(()):
        how = experiment.training
        if how is not None:
            planner.datasets[how.dataset] = "-"
        cost = costs["native" if experiment.native else "rule" if how is None else named(how)]
        for part in planner.parts(experiment):
            key = experiment.id if part.job is None else part.job.key
            cells = [seconds(cell, cost, costs["native"].episode_us) for cell in part.cells]
            old = found.get(key, Chain(cost.training_s, ()))
            found[key] = Chain(cost.training_s, (*old.cells_s, *cells))
    return list(found.values())


def keeping_ms(folder: Path) -> float:
    """Time to keep a result of 20 kB, ms."""
    start = time.perf_counter()
    for number in range(100):
        with atomic_write(folder / f"{number}.json") as file:
            file.write(bytes(20_000))
    return 10.0 * (time.perf_counter() - start)


def markdown(run: dict[str, Any]) -> str:
    """The page of a run."""
    lines = ["# The schedule of the board, by measured times", ""]
    lines += [f"Measured on {run['host']['cpu']}, {run['time'][:10]}. Processor time of one core.", ""]
    lines += ["| agent | a training, s | a decision: the call, us | and for each episode, us |", "|---|--|--|--|"]
    for name, cost in run["costs"].items():
        lines.append(f"| {name} | {cost['training_s']:.0f} | {cost['call_us']:.0f} | {cost['episode_us']:.3g} |")
    for size, each in run["sizes"].items():
        lines += ["", f"## Size `{size}`", ""]
        lines += [
            f"{each['trainings']} trainings and {each['cells']} cells take {each['total_s'] / 3600:.1f} hours of "
            "one core. "
            f"The longest training takes {each['longest_training_s']:.0f} s, the longest cell "
            f"{each['longest_cell_s']:.0f} s. A training and then the longest cell of its agent take up to "
            f"{each['longest_chain_s']:.0f} s, which no number of workers makes shorter.",
            "",
            "| workers | takes, s | workers are used |",
            "|--|--|--|",
        ]
        lines += [f"| {row['workers']} | {row['makespan_s']:.0f} | {100 * row['used']:.0f} % |" for row in each["use"]]
        lines += [
            "",
            f"{WORKERS[-1]:,} workers are used to {100 * GOAL:.0f} % with {each['enough']} times as many trainings of "
            f"each learner.",
        ]
    lines += ["", f"The machine that asks keeps a result in {run['keeping_ms']:.1f} ms."]
    return "\n".join(lines) + "\n"


def measured() -> dict[str, Any]:
    """What a step and a decision cost."""
    torch.set_num_threads(1)
    costs: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as place, minari_io.datasets_in(Path(place)):
        run: dict[str, Any] = {**origin(), "load": os.getloadavg()[0], "keeping_ms": keeping_ms(Path(place))}
        dataset = make_dataset()
        in_engine("native:dualpi2_rfc9332")  # compiles
        first = entry.Training("bc", dataset, settings=("steps=20", "hidden=[16]"))
        measure(first, dataset, Path(place) / "first")  # imports
        costs["native"] = Measured(0.0, in_engine("native:dualpi2_rfc9332"))
        costs["rule"] = Measured(0.0, in_engine("threshold"))
        for experiment in leaderboard.experiments(()):
            if (how := experiment.training) is not None and named(how) not in costs:
                costs[named(how)] = cost = measure(how, dataset, Path(place) / f"agent-{len(costs)}")
                print(named(how), cost, flush=True)
    return {**run, "costs": {name: vars(cost) for name, cost in costs.items()}}


def main(out: Path = RESULTS, *, again: bool = False) -> None:
    """Measure, simulate and write.

    Args:
        out: Folder of the results.
        again: Take the times that the last run measured.
    """
    if again:
        run = json.loads((out / "schedule.json").read_text())[-1] | {"again": origin()["time"]}
    else:
        run = measured()
    costs = {name: Measured(**cost) for name, cost in run["costs"].items()}
    run["sizes"] = {}
    for size in ("standard", "full"):
        chains = board(size, costs)
        run["sizes"][size] = {
            "trainings": sum(chain.training_s > 0.0 for chain in chains),
            "cells": sum(len(chain.cells_s) for chain in chains),
            "total_s": sum(chain.training_s + sum(chain.cells_s) for chain in chains),
            "longest_training_s": max(chain.training_s for chain in chains),
            "longest_cell_s": max(max(chain.cells_s) for chain in chains),
            "longest_chain_s": max(chain.longest_s for chain in chains),
            "use": [use(chains, workers) for workers in WORKERS],
            "enough": enough(chains, WORKERS[-1]),
        }
        print(size, run["sizes"][size], flush=True)
    write_run(out, "schedule", run, markdown(run))


if __name__ == "__main__":
    command_line(main)
