"""Jobs in several processes, whose results are kept: what was stopped goes on where it was."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from l4s_gym.cli.common import progress_bar
from l4s_gym.data.files import atomic_write

Floats = npt.NDArray[np.float64]
T = TypeVar("T")


def kept(path: Path, job: Callable[[], Floats]) -> Floats:
    """What a job gives, from its file where it was done before."""
    if not path.is_file():
        found = job()
        with atomic_write(path) as file:
            np.save(file, found)
    return np.asarray(np.load(path), np.float64)


@contextmanager
def workers(processes: int) -> Iterator[Executor | None]:
    """Processes that jobs are given to; None for a single one. Ctrl-C ends them at once."""
    if processes == 1:
        yield None
        return
    # Not by fork: PyTorch's threads do not survive it.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException:
            for child in multiprocessing.active_children():
                child.kill()
            raise


def spread(what: str, jobs: Sequence[Callable[[], T]], pool: Executor | None) -> list[T]:
    """Results of jobs, in their order.

    Args:
        what: Of what, for the progress bar.
        jobs: Without arguments; with a pool they have to be picklable.
        pool: Of `workers`.
    """
    with progress_bar(f"{len(jobs)} {what}") as progress:
        if pool is None:
            found = []
            for job in jobs:
                found.append(job())
                progress(len(found) / len(jobs))
            return found
        waiting = [pool.submit(job) for job in jobs]
        for number, done in enumerate(as_completed(waiting), 1):
            done.result()
            progress(number / len(jobs))
    return [each.result() for each in waiting]
