"""The simulator's fingerprint: it changes when a trajectory changes, and whatever the simulator made bears it.

Datasets, records, saved agents, entries of the board and result files say by which simulator they were made, so that
no command puts what an older one made beside what this one makes. What is simulated and says nothing is older than
the fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from l4s_gym.errors import L4SError

FINGERPRINT: Final = "7d2735b8f906"
"""Of the golden runs: `python tests/sim/test_golden.py --write` writes it with them."""
KERNEL_LOG: Final = "kernel log"
"""Stands where a fingerprint would, of what no simulator made: it is never stale."""
NONE: Final = "none"
"""Of what is simulated and bears no fingerprint."""

_passed: ContextVar[list[str] | None] = ContextVar("passed", default=None)


class StaleError(L4SError):
    """Something was made with another simulator than the installed one."""


def reason(simulator: str) -> str | None:
    """Why something is stale that bears this fingerprint (or `KERNEL_LOG`, or `NONE`); None: it is not."""
    if simulator in (FINGERPRINT, KERNEL_LOG):
        return None
    return f"is stale: made with simulator {simulator}, installed is {FINGERPRINT}"


def combined(simulators: Iterable[str]) -> str:
    """One for several: the first that is stale, else that of the simulator if any bears it."""
    found = list(simulators)
    stale = [each for each in found if reason(each)]
    return next(iter([*stale, *(each for each in found if each == FINGERPRINT)]), KERNEL_LOG)


def check(what: str, simulator: str, remedy: str) -> None:
    """Refuse what is stale, unless `allow_stale` lets it pass.

    Args:
        what: Its name, for the error.
        simulator: What it bears.
        remedy: What to do, for the error.

    Raises:
        StaleError: It is stale.
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
    """Use what is stale all the same within the block, in this process and thread.

    Args:
        allow: False: refuse it, as everywhere else.

    Yields:
        What passed, a line each; it grows.
    """
    passed: list[str] = []
    token = _passed.set(passed if allow else None)
    try:
        yield passed
    finally:
        _passed.reset(token)
