"""Look at the stability of an agent or a discipline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from l4s_gym.cli.common import console, progress_bar, say


def certify(
    agent: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="AGENT")],
    out: Path | None = None,
    quick: bool = False,
    seeds: int | None = None,
) -> None:
    """Measure an agent's stability: bounds, drift, chances and margins; run it again after an interruption to continue.

    Args:
        agent: native:AQM, the folder of a saved agent or any other agent, or the TOML file of an experiment that trains
            nothing.
        out: Folder for the report (index.html) and its numbers (certify.json); default: runs/certify/AGENT.
        quick: A small measurement, of about a minute.
        seeds: Episodes of each scenario; default: 20, with --quick 5.
    """
    from dataclasses import replace

    from l4s_gym.errors import L4SError
    from l4s_gym.evaluation.certify import page, run, statements
    from l4s_gym.extras import optional

    optional("matplotlib", "report")
    size = run.SIZES["quick" if quick else "standard"]
    if seeds is not None:
        if not 1 <= seeds <= run.SEEDS:
            raise L4SError(f"--seeds {seeds}: give 1 to {run.SEEDS}")
        size = replace(size, seeds=seeds)
    subject = run.Subject.of(agent)
    folder = out or Path("runs/certify") / re.sub(r"[^\w.-]+", "-", subject.name)
    with progress_bar(f"certifying {subject.name}") as show:
        found = run.certify(subject, size, folder, show, say)
    table = Table("equation", "statement", "verdict", "number", title=f"stability of {subject.name}")
    for each in statements.all_of(found.parts):
        table.add_row(each.equation or "PI2", each.says, each.verdict, each.number)
    console.print(table)
    say(f"report: {page.write(folder)}")
