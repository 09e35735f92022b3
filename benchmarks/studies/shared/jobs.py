"""Jobs in several processes, whose results are kept: what was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from l4s_gym.cli.common import progress_bar
from l4s_gym.data.files import atomic_write
from l4s_gym.parallel import on_processes

Floats = npt.NDArray[np.float64]
T = TypeVar("T")


def kept(path: Path, job: Callable[[], Floats]) -> Floats:
    """What a job gives, from its file where it was done before."""
    if not path.is_file():
        found = job()
        with atomic_write(path) as file:
            np.save(file, found)
    return np.asarray(np.load(path), np.float64)


def _call(job: Callable[[], T]) -> T:
    return job()


def spread(what: str, jobs: Sequence[Callable[[], T]], processes: int) -> list[T]:
    """Results of jobs, in their order; the first that fails ends all.

    Args:
        what: Of what, for the progress bar.
        jobs: Without arguments; for other processes they have to be picklable.
        processes: How many; 1: this one.
    """
    found: dict[int, T] = {}
    with progress_bar(f"{len(jobs)} {what}") as progress:
        for number, result in on_processes(_call, jobs, processes if processes > 1 else 0):
            if isinstance(result, BaseException):
                raise result
            found[number] = result
            progress(len(found) / len(jobs))
    return [found[number] for number in range(len(jobs))]
