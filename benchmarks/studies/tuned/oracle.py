"""What the best static setting of DualPI2 for each scenario reaches, which no agent can know: a mark to aim at.

    python benchmarks/studies/tuned/oracle.py  # goes on where it was stopped

For each scenario of the protocol's size, CMA-ES goes on from the setting that `run.py` found on `train`. Of what it
finds, the setting it started from and the defaults of the RFC, the best on seeds that no search has seen is taken. All
this is done with seeds of `train`; then it is run as an entry of the board, on the board's seeds, by the protocol's
reward and by one with a lower weight of C's delay.

Appends to results/oracle.json, and writes results/oracle.md and the file that the report's dotted lines come from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation import board, leaderboard, sweep, work
from l4s_gym.evaluation.entry import Entry, Protocol, read_experiment, read_protocol
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.evaluation.ranking import Row
from l4s_gym.evaluation.site.data import triple
from l4s_gym.markdown import table
from search import AQM, CHECKED, DEFAULTS, PARAMETERS, Search, Task, search

BENCHMARKS: Final = Path(__file__).resolve().parents[2]
LIGHTER: Final = "evenness=1,delay_c=-0.1,delay_l=-0.25"
"""`fair` with a lower weight of C's delay."""
SURE: Final = 20
"""Episodes by which the best of three settings is chosen."""
Settings = Mapping[str, Mapping[str, float]]
"""Scenario -> setting."""


@dataclass(frozen=True)
class Options:
    """What is searched, and where."""

    protocol: Path | None = None
    """File of the protocol."""
    size: str = "standard"
    """Of the protocol."""
    seeds: int = 5
    """Episodes of a scenario, the same for each setting."""
    budget: int = 320
    """Settings that are tried for each scenario."""
    population: int = 16
    """Settings of a generation."""
    seed: int = 1
    """Of the search, 1 or more."""
    tuned: Path = BENCHMARKS / "experiments" / "native" / "dualpi2_tuned.toml"
    """The experiment whose setting is the start."""
    work: Path = Path("runs/oracle")
    """Folder of what was tried so far, and of finished cells: it goes on from them."""
    out: Path = Path(__file__).resolve().parent / "results"
    """Folder of the figures."""
    shipped: Path = BENCHMARKS / "oracle.json"
    """What the report's dotted lines come from."""


def best_for(name: str, options: Options, protocol: Protocol, tuned: Mapping[str, float]) -> dict[str, float]:
    """The setting for a scenario."""
    how = Search(
        protocol.reward,
        protocol.size(options.size).seconds,
        options.seeds,
        options.budget,
        options.population,
        options.seed,
    )
    first = protocol.first_seed["train"]
    found = search(Task([name], how, first), tuned, options.work / f"{name}.json")
    checked = Task([name], dataclasses.replace(how, seeds=SURE), first + CHECKED)
    return max([found, dict(tuned), DEFAULTS], key=lambda setting: float(checked.scores(setting)[0]))


def entry_of(settings: Settings, protocol: Protocol, native: Entry) -> Entry:
    """What the settings come to, each in its scenario, on the board's seeds."""
    (part,) = sweep.Sweep(protocol, native.size, Path(), jobs=0, ray="").parts(native.experiment)
    rows: list[dict[str, Any]] = []
    for cell in part.cells:  # of one scenario each
        made = work.evaluate(dataclasses.replace(cell, options={AQM: settings[cell.names[0]]}))
        rows += [{"suite": cell.suite, "train_seed": None, **row} for row in made["results"]]
    return msgspec.structs.replace(native, variant="dualpi2_oracle", results=tuple(rows))


def by_scenario(protocol: Protocol, entries: Mapping[str, Entry]) -> dict[str, dict[str, list[float]]]:
    """Mean normalised scores by suite and scenario: of the tuned setting and of the oracle."""

    def mean(who: str, cell: tuple[str, str]) -> float:
        rows = entries[who].results
        return float(np.mean([row["episode_return"] for row in rows if (row["suite"], row["scenario"]) == cell]))

    found: dict[str, dict[str, list[float]]] = {}
    for cell in protocol.cells(entries[board.NATIVE].size):
        low, high = mean("random--uniform", cell), mean(board.NATIVE, cell)
        scores = [100.0 * (mean(f"native--dualpi2_{who}", cell) - low) / (high - low) for who in ("tuned", "oracle")]
        found.setdefault(cell[0], {})[cell[1]] = scores
    return found


def markdown(boards: Mapping[str, list[Row]], scores: dict[str, dict[str, list[float]]], settings: Settings) -> str:
    """The page: a board by each reward, the scores by scenario, the settings."""
    parts = ["# What the best static setting for each scenario reaches"]
    for reward, rows in boards.items():
        parts += [f"## By the reward `{reward}`", board.brief(rows)]
    both = [
        [suite, name, f"{tuned:.1f}", f"{oracle:.1f}"]
        for suite, each in scores.items()
        for name, (tuned, oracle) in each.items()
    ]
    parts += ["## By scenario", "Mean normalised scores, by the protocol's reward."]
    parts.append("\n".join(table(["suite", "scenario", "tuned", "oracle"], both, right={2, 3}, wide=True)))
    lines = [[name, *(f"{setting[each]:g}" for each in PARAMETERS)] for name, setting in settings.items()]
    head = ["scenario", *PARAMETERS]
    parts += ["## The settings", "\n".join(table(head, lines, right=set(range(1, len(head))), wide=True))]
    return "\n\n".join(parts) + "\n"


def main(options: Options) -> None:
    protocol = read_protocol(options.protocol)
    tuned = read_experiment(options.tuned)
    start = tuned.options[AQM]
    settings = {}
    for name in dict.fromkeys(name for _, name in protocol.cells(options.size)):
        print(name, flush=True)
        settings[name] = best_for(name, options, protocol, start)
    wanted = [*leaderboard.experiments(leaderboard.REFERENCES), tuned]
    boards, runs = {}, {}
    for reward in (protocol.reward, LIGHTER):
        rules = msgspec.structs.replace(protocol, reward=reward)
        entries = {each.id: each for each in sweep.run(wanted, rules, options.size, options.work, jobs=0)}
        oracle = entry_of(settings, rules, entries[board.NATIVE])
        runs[reward] = entries | {oracle.id: oracle}
        boards[reward] = board.rows([*runs[reward].values()])
    scores = by_scenario(protocol, runs[protocol.reward])
    (row,) = (row for row in boards[protocol.reward] if row.name == "native--dualpi2_oracle")
    about = {"protocol": protocol.version, "size": options.size, "protocol_digest": protocol.digest(options.size)}
    about |= {"scores": {suite: triple(score) for suite, score in row.scores.items()}}
    with atomic_write(options.shipped) as file:
        file.write((json.dumps({**origin(), **about}, indent=1) + "\n").encode())
    figures = {
        reward: {row.name: {suite: triple(score) for suite, score in row.scores.items()} for row in rows}
        for reward, rows in boards.items()
    }
    how = {name: getattr(options, name) for name in ("seeds", "budget", "population", "seed")}
    run = {**origin(), **about, **how, "scores": figures, "by_scenario": scores, "settings": settings}
    write_run(options.out, "oracle", run, markdown(boards, scores, settings))


if __name__ == "__main__":
    main(command_line(Options, description=__doc__))
