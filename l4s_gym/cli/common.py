"""What the commands share: where they print, and how they show progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Into a file or a pipe a table may be as wide as it needs.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def say(text: str) -> None:
    """Print a line as it is: no markup, no colours, no line breaks of our own."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, where stderr is a terminal; the function it yields takes the share that is done.

    What is printed meanwhile stands above it, where stdout is a terminal too.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    err = Console(stderr=True)
    above = sys.stdout.isatty()  # else lines that go into a file would land on the terminal
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
        redirect_stdout=above,
    ) as bar:
        task = bar.add_task(text, total=1.0)
        yield lambda share: bar.update(task, completed=min(share, 1.0))
