"""Jobs in several processes, whose results are kept: what was stopped goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.save(file, found)
    return np.asarray(np.load(path), np.float64)


def kept_row(path: Path, job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row of a job and the seconds of processor that it took, from its file where it was done before."""
    if not path.is_file():
        began = time.process_time()
        row = job() | {"processor_s": round(time.process_time() - began, 1)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(row).encode())
    found: dict[str, Any] = json.loads(path.read_text())
    return found


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
