"""The simulator's fingerprint: it changes with the trajectories, and all data of the simulator is labelled with it.

Datasets, records, saved agents, entries of the board and result files name the simulator that made them, so that no
command compares data of an older simulator with data of this one. Simulated data without a fingerprint is older than
the fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from l4s_gym.errors import L4SError

FINGERPRINT: Final = "cb7fe4bffeb0"
"""Computed from the golden runs: `python tests/sim/test_golden.py --write` writes both."""
KERNEL_LOG: Final = "kernel log"
"""Takes the place of a fingerprint for data that no simulator made: it is never stale."""
NONE: Final = "none"
"""Takes the place of a fingerprint for simulated data without one."""

_passed: ContextVar[list[str] | None] = ContextVar("passed", default=None)


class StaleError(L4SError):
    """Data was made with another simulator than the installed one."""


def reason(simulator: str) -> str | None:
    """Return why data with this fingerprint (or `KERNEL_LOG`, or `NONE`) is stale; None: it is not."""
    if simulator in (FINGERPRINT, KERNEL_LOG):
        return None
    return f"is stale: made with simulator {simulator}, installed is {FINGERPRINT}"


def combined(simulators: Iterable[str]) -> str:
    """Return one fingerprint for several: the first stale one, else the simulator's if any has it."""
    found = list(simulators)
    stale = [each for each in found if reason(each)]
    return next(iter([*stale, *(each for each in found if each == FINGERPRINT)]), KERNEL_LOG)


def check(what: str, simulator: str, remedy: str) -> None:
    """Refuse stale data, unless `allow_stale` permits it.

    Args:
        what: Name of the data, for the error.
        simulator: Its fingerprint.
        remedy: What the user should do, for the error.

    Raises:
        StaleError: The data is stale.
    """
    why = reason(simulator)
    if why is None:
        return
    passed = _passed.get()
    if passed is None:
        raise StaleError(f"{what}: {why}: {remedy}")
    if f"{what}: {why}" not in passed:
        passed.append(f"{what}: {why}")


@contextmanager
def allow_stale(allow: bool = True) -> Iterator[list[str]]:
    """Permit stale data within the block, in this process and thread.

    Args:
        allow: False: refuse it, as outside of the block.

    Yields:
        A list of what was permitted, a line each; it grows.
    """
    passed: list[str] = []
    token = _passed.set(passed if allow else None)
    try:
        yield passed
    finally:
        _passed.reset(token)
