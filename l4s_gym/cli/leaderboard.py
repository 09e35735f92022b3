"""Run the benchmark, enter an agent, check an entry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from l4s_gym.cli.common import progress_bar, say
from l4s_gym.errors import L4SError


def leaderboard(
    experiments: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[EXPERIMENT ...]")] = (),
    size: Literal["quick", "standard", "full"] = "standard",
    add: tuple[str, ...] = (),
    results: Path | None = None,
    out: Path = Path("runs/leaderboard"),
    work: Path | None = None,
    jobs: int | None = None,
    ray: str = "",
    check: tuple[Path, ...] = (),
    protocol: Path | None = None,
) -> None:
    """Run what is missing on the leaderboard, and write it; what is interrupted goes on when it is run again.

    Args:
        experiments: As agent/variant, agent, or a TOML file, to which come those that the scores refer to; all of
            benchmarks/experiments by default, with --add none.
        size: quick (a first look), standard (the one that is compared), or full.
        add: Agents of your own: MODULE:ATTRIBUTE, FILE.py:ATTRIBUTE, or the folder of a saved agent.
        results: Folder of entries; those that are there are not run again. OUT/entries by default.
        out: Folder of the report.
        work: Folder of trained agents and finished cells; OUT/work by default.
        jobs: Processes; one a core by default; 0: in this one.
        ray: Address of a Ray cluster, or local, to run on.
        check: Do not run the benchmark; check these entries, and run one cell of each again.
        protocol: Another protocol than benchmarks/protocol.toml.
    """
    from l4s_gym.evaluation import entry
    from l4s_gym.evaluation import leaderboard as boards
    from l4s_gym.evaluation.results import read

    rules = entry.read_protocol(protocol)
    folder = work or out / "work"
    if check:
        for path in check:
            each = read(path)
            boards.check_training(each.experiment)
            entry.validate(each, rules, boards.datasets([each]))
            boards.rerun(each, rules, folder, say=say)
        return
    if jobs is not None and jobs < 0:
        raise L4SError(f"--jobs {jobs}: give 0 (in this process) or more")
    own = [boards.added(spec) for spec in add]
    wanted = boards.experiments((*experiments, *boards.REFERENCES) if experiments or own else ())
    boards.produce(
        [*wanted, *own],
        rules,
        size,
        out,
        results=results,
        work=folder,
        jobs=jobs,
        ray=ray,
        say=say,
        progress=progress_bar,
    )
