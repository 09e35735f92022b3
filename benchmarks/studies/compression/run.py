"""What each step of compression saves and costs, alone and together, on LLM agents of control intervals.

python benchmarks/studies/compression/run.py --agents SmolLM2=runs/llm-parameters  # goes on where it was stopped
python benchmarks/studies/compression/run.py --agents SmolLM2=runs/llm-parameters --quick  # every path once
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from l4s_gym import agents, forms
from l4s_gym.agents.llm import compression
from l4s_gym.cli.arguments import command_line
from l4s_gym.cli.common import progress_bar
from l4s_gym.errors import L4SError, unknown
from l4s_gym.evaluation import statistics
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.markdown import table
from l4s_gym.tables import read_toml

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

from jobs import kept_row
from score import scores

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
TRAINED: Final = "as trained, PyTorch"
CALLS: Final = 200
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Options of the study.

    Attributes:
        agents: Agents, NAME=FOLDER each.
        recipes: A TOML file with a table for each recipe.
        only: Names of recipes; empty: all.
        quick: A few windows and optimiser steps, and a second of closed loop.
        work: Folder of what is done.
        out: Folder of the results.
    """

    agents: tuple[str, ...] = ()
    recipes: Path = HERE / "recipes.toml"
    only: tuple[str, ...] = ()
    quick: bool = False
    work: Path = Path("runs/compression")
    out: Path = RESULTS


def quickened(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that takes seconds."""
    brief: dict[str, dict[str, Any]] = {
        "distil": {"steps": 2},
        "search": {"trials": 2, "population": 2, "steps": 1, "limit": 100.0},
    }
    steps = [{**step, **brief.get(step["kind"], {})} for step in recipe["steps"]]
    return {"steps": steps}


@cache
def recorded(folder: Path, brief: bool) -> tuple[Any, ...]:
    """What an agent does in closed loop, once for all recipes."""
    sample = compression.Sample(envs=4, seconds=2.0) if brief else compression.Sample()
    agent: Any = agents.make(str(folder))
    return compression.record(agent, sample, 0)


def latency(agent: Any) -> tuple[float, float]:
    """Median and 99th percentile of the time of a decision with a full window, ms, on one thread."""
    rng, found = np.random.default_rng(0), []
    agent.reset(1, 0)
    for call in range(CALLS + 20):
        obs = rng.random((1, len(forms.get(agent.form).features))).astype(np.float32)
        began = time.perf_counter()
        agent.act(obs, np.zeros(1))
        if call >= 20:
            found.append(1e3 * (time.perf_counter() - began))
    p50, p99 = np.percentile(found, (50, 99))
    return round(float(p50), 3), round(float(p99), 3)


def measured(options: Options, folder: Path, name: str, recipe: Mapping[str, Any] | None) -> Row:
    """Compress an agent (None: not at all) and measure what is left, or read what was measured before."""
    chosen = quickened(recipe) if options.quick and recipe else recipe
    same = json.dumps([agents.AgentSpec.of_folder(folder).digest(), chosen, options.quick], sort_keys=True)
    path = options.work / f"{hashlib.sha256(same.encode()).hexdigest()[:16]}.json"
    small = folder if chosen is None else path.with_suffix("")

    def job() -> Row:
        row: Row = {"recipe": name}
        if chosen is not None:
            row |= compression.compress(folder, chosen, small, place=name, played=recorded(folder, options.quick))
        agent = agents.make(str(small))
        if chosen is None:
            size = int(agent.cost()["parameters"])
            row |= {"parameters": size, "bytes": 4 * size, "missed": 0.0}
        row["score"] = asdict(statistics.linear(scores(agent, options.quick)[None]).interval())
        return row

    return kept_row(path, job) | {"folder": str(small)}


def page(rows: Mapping[str, Sequence[Row]]) -> str:
    """The results as Markdown."""
    lines = ["# Compression, step by step", "", "Written by `benchmarks/studies/compression/run.py`.", ""]
    for name, found in rows.items():
        body = []
        for row in found:
            score, ends = row["score"], [row["score"]["low"], row["score"]["high"]]
            told = f"{score['value']:.1f}" + ("" if None in ends else f" [{ends[0]:.1f}, {ends[1]:.1f}]")
            size, smaller = row["bytes"] / 1e6, 100 * (1 - row["bytes"] / found[0]["bytes"])
            products = f"{row['products'] / 1e6:.1f}" if "products" in row else "-"
            cells = [f"{row['parameters']:,}", f"{size:.2f}", str(round(smaller)), products]
            cells += [
                f"{row['latency_p50_ms']:.2f}",
                f"{row['latency_p99_ms']:.2f}",
                f"{100 * row['missed']:.2f}",
                told,
            ]
            body.append([row["recipe"], *cells])
        head = ["", "parameters", "MB", "smaller %", "products, M", "p50 ms", "p99 ms", "missed %", "score"]
        lines += [f"## {name}", "", *table(head, body, right=range(1, len(head))), ""]
    lines += [
        "Missed: share of the variance of the agent's own held-out decisions. Score: mean over the board's size",
        "`quick`, 0 random decisions, 100 DualPI2 (RFC 9332), with a 95 % interval over the traffic, the same for all",
        "rows. Times are of one decision on one thread, with all around the model.",
    ]
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Do what is missing, and write."""
    torch.set_num_threads(1)
    recipes: dict[str, Any] = {TRAINED: None, **read_toml(options.recipes)}
    for name in options.only:
        if name not in recipes:
            raise unknown("recipe", name, tuple(recipes))
    if not options.agents or not all("=" in each for each in options.agents):
        raise L4SError("give agents, NAME=FOLDER each, such as --agents SmolLM2=runs/llm-parameters")
    chosen = {name: recipe for name, recipe in recipes.items() if name in (options.only or recipes)}
    rows: dict[str, list[Row]] = {}
    jobs = [(each.split("=", 1), item) for each in options.agents for item in chosen.items()]
    with progress_bar(f"{len(jobs)} compressions") as progress:
        for number, ((agent, folder), (name, recipe)) in enumerate(jobs, 1):
            rows.setdefault(agent, []).append(measured(options, Path(folder), name, recipe))
            progress(number / len(jobs))
    for row in itertools.chain.from_iterable(rows.values()):  # not kept: a machine that was busy then was slow
        row["latency_p50_ms"], row["latency_p99_ms"] = latency(agents.make(row["folder"]))
    run = origin() | {"options": asdict(options), "rows": rows}
    out = options.work / "quick" if options.quick and options.out == RESULTS else options.out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "compression.json"
    before = json.loads(path.read_text()) if path.is_file() else []
    shown = {name: each for one in before if one["simulator"] == run["simulator"] for name, each in one["rows"].items()}
    write_run(out, "compression", run, page(shown | rows))


if __name__ == "__main__":
    main(command_line(Options))
