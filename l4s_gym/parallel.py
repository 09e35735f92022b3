"""The same function on many items, in local processes or on a Ray cluster; a process that dies loses only its item."""

from __future__ import annotations

import heapq
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

from l4s_gym.errors import L4SError
from l4s_gym.extras import optional

T = TypeVar("T")
R = TypeVar("R")
Done = tuple[int, R | BaseException]
"""Number of an item, and its result or exception."""
RETRIES: Final = 3
"""How often an item is run again on a Ray cluster whose machines or processes die."""


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


def never(_: object) -> bool:
    """Of an item: False."""
    return False


class _Waiting(Generic[T]):
    """The numbers of items that are not started, in the order of a key; more items may be appended."""

    def __init__(self, items: Sequence[T], key: Callable[[T], Any]) -> None:
        self.items, self.key = items, key
        self.seen = 0
        self.heap: list[tuple[Any, int]] = []

    def __len__(self) -> int:
        while self.seen < len(self.items):
            heapq.heappush(self.heap, (self.key(self.items[self.seen]), self.seen))
            self.seen += 1
        return len(self.heap)

    def pop(self) -> int:
        """The next number, of a queue whose length is not 0."""
        return heapq.heappop(self.heap)[1]


def on_processes(
    function: Callable[[T], R],
    items: Sequence[T],
    workers: int,
    *,
    fresh: Callable[[T], bool] = never,
    key: Callable[[T], Any] = never,
) -> Iterator[Done[R]]:
    """Call a function on each item; results come in any order.

    Args:
        function: A function of a module, so that a new process can import it.
        items: Its arguments; more may be appended while results are taken.
        workers: Number of processes; 0: run here, where an item that ends the process ends all.
        fresh: Whether the process of an item is not used again.
        key: What is started first: the item with the least key, of equal ones the first.

    Yields:
        The number of an item and what the function returned, or its exception: `BrokenProcessPool` for a process that
        died.
    """
    if workers == 0:
        yield from ((number, function(item)) for number, item in enumerate(items))
        return
    waiting = _Waiting(items, key)
    idle: list[ProcessPoolExecutor] = []
    running: dict[Future[R], tuple[int, ProcessPoolExecutor]] = {}

    def start() -> None:
        while len(waiting) and len(running) < workers:
            number, pool = waiting.pop(), idle.pop() if idle else _process()
            running[pool.submit(function, items[number])] = number, pool

    try:
        start()
        while running:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                number, pool = running.pop(done)
                error = done.exception()
                if isinstance(error, BrokenProcessPool) or fresh(items[number]):
                    _end(pool)
                else:
                    idle.append(pool)
                start()
                yield number, done.result() if error is None else error
            start()
    finally:
        for pool in [*idle, *(pool for _, pool in running.values())]:
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


Parcel = tuple[str, Callable[[], Any]]
"""What a function needs beside its item: its name, and a function that makes it."""


def on_ray(
    function: Callable[..., R],
    items: Sequence[T],
    address: str,
    *,
    parcel: Callable[[T], Parcel] | None = None,
    fresh: Callable[[T], bool] = never,
    key: Callable[[T], Any] = never,
) -> Iterator[Done[R]]:
    """Call a function as `on_processes`, on a Ray cluster of machines with this package; no shared disk is needed.

    An item whose machine or process dies is run again, `RETRIES` times. No more items wait on the cluster than run, so
    that they run in their order.

    Args:
        function: As in `on_processes`.
        items: As in `on_processes`.
        address: As in `cluster`.
        parcel: The second argument of the function for an item: it is sent once to each machine that needs it.
        fresh: As in `on_processes`.
        key: As in `on_processes`.

    Yields:
        As `on_processes`; for a process that died too often, Ray's exception.
    """
    with cluster(address) as ray:
        once = ray.remote(max_retries=RETRIES, max_calls=1)(function)
        often = ray.remote(max_retries=RETRIES)(function)
        sent: dict[str, Any] = {}
        running: dict[Any, int] = {}
        waiting = _Waiting(items, key)

        def more(item: T) -> list[Any]:
            if parcel is None:
                return []
            name, make = parcel(item)
            if name not in sent:
                sent[name] = ray.put(make())
            return [sent[name]]

        while running or len(waiting):
            room = max(2 * int(ray.cluster_resources().get("CPU", 0)), 1)
            while len(waiting) and len(running) < room:
                number = waiting.pop()
                item = items[number]
                running[(once if fresh(item) else often).remote(item, *more(item))] = number
            (done,), _ = ray.wait(list(running), num_returns=1)
            try:
                result: Any = ray.get(done)
            except ray.exceptions.RayError as error:
                result = error
            yield running.pop(done), result
