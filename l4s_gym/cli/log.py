"""Work on decision logs: say what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from l4s_gym.cli.common import say

app = tyro.extras.SubcommandApp()
Paths = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PATH [PATH ...]")]


@app.command
def inspect(paths: Paths) -> None:
    """Say what is in decision logs: rows, what was skipped and why, shares and quantiles, leak of the label.

    Args:
        paths: Kernel logs (plain, .gz, .bz2, .xz, .zst; rotations are put in order), .npz records, .csv rows, or
            an experience pool (.pkl).
    """
    from l4s_gym.data.inspect import inspect_rows
    from l4s_gym.data.logs import read_log
    from l4s_gym.data.pools import load_rows, make_rows

    if len(paths) == 1 and paths[0].suffix in (".pkl", ".csv", ".npz"):
        rows = load_rows(paths[0])
    else:
        records, report = read_log(paths)
        say(report.summary())
        rows = make_rows(records, ", ".join(map(str, paths)), None)
    say(inspect_rows(rows))
