"""The main job end to end: kernel rows, Minari datasets, trained agents, closed-loop leaderboard, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from l4s_gym.agents.bc import BCAgent, train_bc
from l4s_gym.agents.protocol import Agent
from l4s_gym.data import minari_io, recipes
from l4s_gym.data.build import build
from l4s_gym.data.d3rlpy_io import replay_buffer
from l4s_gym.data.episodes import episodes_from_rows
from l4s_gym.data.inspect import inspect_rows
from l4s_gym.data.pools import Rows, load_rows
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness, report
from l4s_gym.sim import scenario as scenarios

SCENARIO = "l4s-llm-testbed"
POOL_FILES = ("exp_pool_l4s_train_7feat.pkl", "consecutive_rows_first6000.csv")
POOL_PLACES = (Path("../shared/data/freebsd_experience_pools"), Path("data/freebsd_experience_pools"))
NATIVE = ("dualpi2_rfc9332", "dualpi2_linux", "dualpi2_freebsd", "pie", "codel", "red", "fifo")
ShowProgress = Callable[[str], AbstractContextManager[Callable[[float], None]]]


def bundled_log() -> Path:
    """A log that the simulator wrote: 8 s of `l4s-llm-testbed`, seed 0."""
    return Path(str(resources.files("l4s_gym") / "data" / "bundled" / "sim-testbed.log.gz"))


def find_pools(given: Path | None) -> Path | None:
    """Folder of the authors' pools: the given one, `$L4S_GYM_POOLS`, or one of the usual places."""
    if given is not None and not (given / POOL_FILES[0]).is_file():
        raise L4SError(f"--pools {given}: no {POOL_FILES[0]} there; leave --pools out to use the bundled log")
    variable = os.environ.get("L4S_GYM_POOLS")
    places = [given] if given else [*([Path(variable)] if variable else []), *POOL_PLACES]
    return next((place for place in places if place and (place / POOL_FILES[0]).is_file()), None)


def _rows_dataset(name: str, rows: Sequence[Rows], algorithm: str, description: str, console: Console) -> Any:
    console.print(inspect_rows(rows[0]), markup=False, highlight=False)
    return minari_io.create(
        f"l4s/dualpi2/{name}-v0",
        episodes_from_rows(rows),
        env_kwargs={"scenario": SCENARIO, "aqm": "dualpi2_freebsd"},
        algorithm_name=algorithm,
        description=description,
        overwrite=True,
    )


def _recipe() -> recipes.Recipe:
    """The recipe `testbed`; without a checkout of the recipes, one of the same scenario and discipline."""
    try:
        return recipes.load("testbed")
    except L4SError:
        size = recipes.Size(episodes=3, seconds=60.0)
        behaviours = (recipes.BehaviourSpec("dualpi2_freebsd"),)
        return recipes.Recipe("The paper's testbed", "For the demo.", (SCENARIO,), behaviours, size, size, name="demo")


def _datasets(pools: Path | None, console: Console, progress: ShowProgress) -> Iterator[tuple[str, Any]]:
    """Name and dataset, one after the other."""
    if pools is not None:
        console.print(f"kernel rows: {pools}", highlight=False)
        rows = [load_rows(pools / name) for name in POOL_FILES if (pools / name).is_file()]
        text = "Rows of the testbed's kernel (authors' pools), read causally"
        yield "kernel-rows", _rows_dataset("kernel-rows", rows, "FreeBSD 14 dummynet l4s", text, console)
    else:
        console.print(
            "kernel rows: the authors' experience pools are not here (--pools FOLDER); "
            "a bundled log that the simulator wrote takes their place",
            highlight=False,
        )
        text = "A log written by the simulator"
        rows = [load_rows(bundled_log())]
        yield "bundled-log", _rows_dataset("bundled-log", rows, "dualpi2_freebsd", text, console)
    recipe = _recipe()
    with progress(f"building {recipe.dataset_id('small')}") as share:
        yield recipe.name, build(recipe, "small", overwrite=True, scores=False, progress=share)


def run_demo(
    out: Path,
    *,
    pools: Path | None,
    seeds: Sequence[int],
    steps: int,
    seconds: float | None,
    console: Console,
    progress: ShowProgress,
) -> list[harness.Result]:
    """Run it all; datasets, agents, results and the report lie in `out`."""
    start = time.monotonic()
    out = out.resolve()
    (out / "datasets").mkdir(parents=True, exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str(out / "datasets")
    chosen = scenarios.load(SCENARIO)
    if seconds is not None:
        chosen = chosen.replace(horizon_s=seconds)
    notes: list[str] = []
    agents: list[BCAgent] = []
    for name, dataset in _datasets(find_pools(pools), console, progress):
        minari_io.validate(dataset)
        buffer = replay_buffer(dataset)
        with progress(f"training bc on {name}") as show:
            agent = train_bc(buffer, steps=steps, seed=0, progress=lambda k, n, show=show: show(k / n))  # type: ignore[misc]
        agent.save(out / "agents" / f"bc-{name}")
        note = (
            f"bc-{name}: behaviour cloning (d3rlpy DiscreteBC) on {dataset.id}, "
            f"{buffer.transition_count} transitions, {steps} steps. {dataset.storage.metadata['description']}"
        )
        console.print(note, highlight=False)
        notes.append(note)
        for rule in ("sample", "argmax"):
            agents.append(BCAgent.load(out / "agents" / f"bc-{name}", rule=rule))
            agents[-1].name = f"bc-{name}"
    results: list[harness.Result] = []
    everybody: list[str | Agent] = [*(f"native:{aqm}" for aqm in NATIVE), "threshold", "random", *agents]
    for who in everybody:
        with progress(f"evaluating {who if isinstance(who, str) else who.name}") as share:
            results += harness.evaluate(who, chosen, seeds=seeds, progress=share)
    title = f"{SCENARIO}: closed loop, {len(seeds)} seeds, {chosen.horizon_s:g} s"
    console.print(report.table(results, title))
    report.write_json(out / "leaderboard.json", results, notes=notes)
    report.write_page(out / "report.html", results, title, notes)
    console.print(f"report: {out / 'report.html'}\nresults: {out / 'leaderboard.json'}", highlight=False)
    console.print(f"{time.monotonic() - start:.0f} s in all", highlight=False)
    return results
