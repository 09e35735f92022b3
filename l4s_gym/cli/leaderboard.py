"""Run the benchmark, add an agent to it, check an entry."""

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
    """Run the missing entries of the leaderboard and write the report; run it again after an interruption to continue.

    Args:
        experiments: agent/variant, agent, or a TOML file; the references of the scores are added. Default: all that
            the package has, or none with --add.
        size: quick (for a first look), standard (the published size), or full.
        add: Add your own agents: MODULE:ATTRIBUTE, FILE.py:ATTRIBUTE, or the folder of a saved agent.
        results: Folder of entries; entries that exist are not run again. Default: OUT/entries.
        out: Folder for the report.
        work: Folder for trained agents and intermediate results; default: OUT/work.
        jobs: Number of processes; 0: run in this process; default: one for each core.
        ray: Run on a Ray cluster: its address, or `local`.
        check: Do not run the benchmark: check these entries, and run a part of each again.
        protocol: TOML file of the protocol; default: the one that comes with the package.
    """
    from l4s_gym.evaluation import entry
    from l4s_gym.evaluation import leaderboard as boards
    from l4s_gym.evaluation.results import read

    folder = work or out / "work"
    if check:
        for path in check:
            each = read(path)
            rules = entry.read_protocol(protocol)
            boards.check_training(each.experiment, rules)
            entry.validate(each, rules, boards.datasets([each]))
            boards.rerun(each, rules, folder, say=say)
        return
    if jobs is not None and jobs < 0:
        raise L4SError(f"--jobs {jobs}: give 0 (in this process) or more")
    own = [boards.added(spec) for spec in add]
    wanted = boards.experiments((*experiments, *boards.REFERENCES) if experiments or own else ())
    boards.produce(
        [*wanted, *own],
        entry.read_protocol(protocol),
        size,
        out,
        results=results,
        work=folder,
        jobs=jobs,
        ray=ray,
        say=say,
        progress=progress_bar,
    )
