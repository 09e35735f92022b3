"""Threads that run slices of a batch in parallel, while that is faster than one thread."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from l4s_gym.sim import engine


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Choice:
    """Choice between all threads and one: whichever is faster now.

    A step on all threads waits for the slowest, which other programs may slow down. So the mode not in
    use is tried from time to time for a short while, and the faster one is used from then on; the longer
    the same one has won, the later the next trial. If the threads become slow, a trial starts at once.
    """

    LOOK_NS: Final = 50_000_000
    LOOK_STEPS: Final = 16
    """Least time and steps of a measurement: several turns of a processor between programs."""
    FIRST: Final = 10
    LAST: Final = 160
    """Time between two trials, at first (0.5 s) and at most (8 s), in checks."""
    SLOW: Final = 3.0
    """Threads have become slow if a step takes this many times as long as after the last trial."""

    def __init__(self) -> None:
        self.threads = True
        self._trying = False
        self._between, self._left = self.FIRST, 1
        self._time_ns = self._steps = 0
        self._used_ns = self._usual_ns = math.inf

    def note(self, step_ns: int) -> None:
        """Record how long a step has taken in the chosen mode."""
        self._time_ns += step_ns
        self._steps += 1
        if self._time_ns < self.LOOK_NS or self._steps < self.LOOK_STEPS:
            return
        mean_ns = self._time_ns / self._steps
        self._time_ns = self._steps = 0
        if self._trying:
            won = mean_ns < self._used_ns
            self.threads = self.threads if won else not self.threads
            self._between = self.FIRST if won else min(2 * self._between, self.LAST)
            self._trying, self._left, self._usual_ns = False, self._between, math.inf
            return
        self._left -= 1
        if self._left > 0 and not (self.threads and mean_ns > self.SLOW * self._usual_ns):
            self._usual_ns = mean_ns if self._usual_ns == math.inf else self._usual_ns
            return
        self._used_ns = mean_ns
        self.threads, self._trying = not self.threads, True


class Workers:
    """Runs a batch on as many threads as there are cores (the engine holds no GIL); the caller's is the first.

    A thread waits for its next job inside the engine for a short while, and then sleeps on a semaphore.
    """

    def __init__(
        self,
        address: int,
        stride: int,
        n: int,
        memory: object,
        threads: int | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """Start the threads.

        Args:
            address: Address of the first `ENV` record.
            stride: Bytes from one record to the next.
            n: Number of environments.
            memory: Object to keep alive as long as a thread may write to it.
            threads: Most threads; None: one per core, each with 64 environments or more.
            clock: Clock, ns.
        """
        self._memory = memory
        self._clock = clock
        self.choice = Choice()
        self.pid = os.getpid()
        count = min(threads, n) if threads else max(min(cores(), n // 64), 1)
        bounds = [n * k // count for k in range(count + 1)]
        self._all = (address, stride, 0, n, 0)
        self._mine = (address, stride, 0, bounds[1], 0)
        # A cache line each: job given, job done, whether the thread waits inside the engine.
        self._control = np.zeros((count - 1, 8), np.int64)
        self._control_at = int(self._control.ctypes.data)
        self._wake = [threading.Semaphore(0) for _ in range(count - 1)]
        self._job = 0
        self._error: BaseException | None = None
        self._stopped = False
        for k in range(count - 1):
            place = self._control.ctypes.data + 64 * k
            args = (address, stride, bounds[k + 1], bounds[k + 2], place)
            threading.Thread(target=self._serve, args=(k, args), daemon=True).start()

    def _serve(self, k: int, args: tuple[int, int, int, int, int]) -> None:
        control = self._control[k]
        while True:
            self._wake[k].acquire()
            if self._stopped:
                return
            control[2] = 1
            try:
                engine.advance(*args)
            except BaseException as error:  # pass it to the caller, who waits
                self._error = error
                return

    def stop(self) -> None:
        """End the threads."""
        self._stopped = True
        for wake in self._wake:
            wake.release()

    def run(self) -> None:
        """Run all environments."""
        if not self._wake:
            engine.advance(*self._all)
            return
        begun = self._clock()
        if self.choice.threads:
            self._run_slices()
        else:
            engine.advance(*self._all)
        self.choice.note(self._clock() - begun)

    def _run_slices(self) -> None:
        control = self._control
        job = self._job = self._job + 1
        woken = np.zeros(len(control), bool)
        if engine.give_job(self._control_at, len(control), job):
            woken = control[:, 2] == 0
            for k in np.flatnonzero(woken).tolist():
                self._wake[k].release()
        engine.advance(*self._mine)
        while not engine.await_jobs(self._control_at, len(control), job):
            if self._error is not None:
                raise self._error
            for k in np.flatnonzero((control[:, 1] != job) & (control[:, 2] == 0) & ~woken).tolist():
                woken[k] = True  # it fell asleep just before it could see the job
                self._wake[k].release()
            time.sleep(0)
