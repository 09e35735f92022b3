"""Shared by all commands: printing, progress bars, checks of output files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from l4s_gym.errors import L4SError

if TYPE_CHECKING:
    from l4s_gym.sim.scenario import Scenario

Settings = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="KEY=VALUE [KEY=VALUE ...]")]

STDOUT: Final = "stdout"


class _Console(Console):
    """A console whose errors say that stdout could not be written."""

    def print(self, *objects: Any, **more: Any) -> None:
        try:
            super().print(*objects, **more)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from None


_wide = (sys.stdout is not None and sys.stdout.isatty()) or "COLUMNS" in os.environ
# Into a file or a pipe a table may be as wide as it needs. Names are shown as they are, whatever brackets they bear.
console = _Console(markup=False, emoji=False, width=None if _wide else 160)


def say(text: str) -> None:
    """Print a line as it is: no markup, no colours, no line breaks of our own."""
    console.print(text, highlight=False, soft_wrap=True)


def check_output(path: Path, endings: tuple[str, ...] = ()) -> None:
    """Refuse a file that could not be written, before the work.

    Args:
        path: The file.
        endings: How its name may end, which decides its format; none: any name will do.

    Raises:
        L4SError: There is no folder for it, or its ending is not known.
    """
    if endings and not path.name.lower().endswith(endings):
        raise L4SError(f"{path}: unknown ending: end the name in {', '.join(endings[:-1])} or {endings[-1]}")
    if not path.absolute().parent.is_dir():
        raise L4SError(f"{path}: cannot be written, there is no folder {path.parent}: make it first")


EVERY_S: Final = 60.0
"""Seconds between two lines of progress when stderr is not a terminal."""


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar on stderr, or a line every minute if stderr is not a terminal.

    Yields a function to call with the share that is done, 0 to 1. Output printed meanwhile appears above the bar.
    """
    err = Console(stderr=True, markup=False, emoji=False)
    if not err.is_terminal:
        yield _lines(text)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    above = sys.stdout is not None and sys.stdout.isatty()  # else lines that go into a file would land on the terminal
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True, redirect_stdout=above) as bar:
        task = bar.add_task(text, total=1.0)
        yield lambda share: bar.update(task, completed=min(share, 1.0))


def _lines(text: str) -> Callable[[float], None]:
    start = last = time.monotonic()

    def show(share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY_S and share > 0.0:
            last = now
            left = (now - start) * (1.0 - min(share, 1.0)) / share
            print(f"{text}: {share:.0%}, about {left / 60:.0f} min left", file=sys.stderr, flush=True)

    return show


def chosen_scenario(name: str, seconds: float | None, settings: tuple[str, ...]) -> Scenario:
    """Load a scenario, set its length and other fields."""
    from l4s_gym.sim import scenario
    from l4s_gym.tables import parse_setting

    changes = dict(map(parse_setting, settings))
    return scenario.load(name).replace(**changes, **({} if seconds is None else {"horizon_s": seconds}))
