"""The same function on many items, in local processes or on a Ray cluster; a process that dies loses only its item."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from l4s_gym.errors import L4SError
from l4s_gym.extras import optional

T = TypeVar("T")
R = TypeVar("R")
Done = tuple[int, R | BaseException]
"""Number of an item, and its result or exception."""


def _end_with_parent() -> None:
    """Let this process end when its parent does, even if the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _process() -> ProcessPoolExecutor:
    # Not forked: this process may hold threads. A pool for each process shows which item a dead process had.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)


def _end(pool: ProcessPoolExecutor) -> None:
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def on_processes(
    function: Callable[[T], R], items: Sequence[T], workers: int, *, fresh: bool = False
) -> Iterator[Done[R]]:
    """Call a function on each item, in order; results come in any order.

    Args:
        function: A function of a module, so that a new process can import it.
        items: Its arguments.
        workers: Number of processes; 0: run here, where an item that ends the process ends all.
        fresh: Use a new process for each item.

    Yields:
        The number of an item and what the function returned, or its exception: `BrokenProcessPool` for a process that
        died.
    """
    if workers == 0:
        yield from ((number, function(item)) for number, item in enumerate(items))
        return
    todo = deque(enumerate(items))
    running: dict[Future[R], tuple[int, ProcessPoolExecutor]] = {}

    def start(pool: ProcessPoolExecutor) -> None:
        number, item = todo.popleft()
        running[pool.submit(function, item)] = number, pool

    pools = [_process() for _ in range(min(workers, len(todo)))]
    try:
        for pool in pools:
            start(pool)
        while running:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                number, pool = running.pop(done)
                error = done.exception()
                if fresh or isinstance(error, BrokenProcessPool):
                    _end(pool)
                    pools.remove(pool)
                    pool = _process()
                    pools.append(pool)
                if todo:
                    start(pool)
                yield number, done.result() if error is None else error
    finally:
        for pool in pools:
            _end(pool)


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Connect Ray to a cluster, or start a local one (`local`); an existing connection is kept.

    Raises:
        L4SError: Ray is not installed, or there is no cluster at the address.
    """
    ray = optional("ray", "scale")
    ours = not ray.is_initialized()
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, SystemExit) as error:  # Ray exits where nothing answers
        remedy = "start one (`ray start --head`) and give its HOST:PORT, or give `local`"
        raise L4SError(f"ray: no cluster at {address!r} ({error}): {remedy}") from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def on_ray(function: Callable[[T], R], items: Sequence[T], address: str) -> Iterator[Done[R]]:
    """Call a function as `on_processes`, on a Ray cluster of machines with this package; no shared disk is needed."""
    with cluster(address) as ray:
        call = ray.remote(max_retries=1)(function)
        running = {call.remote(item): number for number, item in enumerate(items)}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            try:
                result: Any = ray.get(done)
            except ray.exceptions.RayError as error:
                result = error
            yield running.pop(done), result
