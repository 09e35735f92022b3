"""Threads of a batch: results do not depend on them, and the faster way is found and found again."""

from __future__ import annotations

import os

import numpy as np
import pytest

from l4s_gym.sim import layout, scenario, workers
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.workers import Choice, Workers

N, STEPS = 192, 60


def run(count: int, monkeypatch: pytest.MonkeyPatch, step_ns: int = 0) -> tuple[list[bytes], set[bool]]:
    """What comes of some steps on so many threads, each of which takes `step_ns`; and which ways were taken."""
    monkeypatch.setattr(workers, "cores", lambda: count)
    batch = Batch(scenario.load("web"), N, decider=layout.AGENT)
    for i in range(N):
        batch.reset(i, np.random.default_rng(i))
    now_ns = iter(range(0, 1 << 62, max(step_ns, 1)))
    batch._workers = Workers(batch.address, batch.stride, N, batch._memory, clock=lambda: next(now_ns))
    found, ways = [], set()
    for k in range(STEPS):
        batch.action[:] = np.random.default_rng(k).choice(3, N, p=[0.9, 0.05, 0.05])
        ways.add(batch._workers.choice.threads)
        batch.advance()
        found.append(batch.obs.tobytes() + batch.reward.tobytes() + batch.status.tobytes() + batch.applied.tobytes())
    return found, ways


def test_results_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, _ = run(1, monkeypatch)
    for count in (2, 3):
        assert run(count, monkeypatch) == (alone, {True})
        assert run(count, monkeypatch, Choice.LOOK_NS) == (alone, {True, False})


def played(choice: Choice, threads_ns: int, one_ns: int, steps: int) -> list[bool]:
    """Which way each step goes where they take so long."""
    ways = []
    for _ in range(steps):
        ways.append(choice.threads)
        choice.note(threads_ns if choice.threads else one_ns)
    return ways


def test_the_faster_way_is_chosen() -> None:
    for threads_ns, one_ns in ((500_000, 1_000_000), (4_000_000, 1_000_000)):
        share = np.mean(played(Choice(), threads_ns, one_ns, 20_000))
        assert share > 0.95 if threads_ns < one_ns else share < 0.02


def test_another_load_is_noticed() -> None:
    choice = Choice()
    assert all(played(choice, 500_000, 1_000_000, 20_000)[-100:])  # a free machine
    busy = played(choice, 4_000_000, 1_000_000, 20_000)
    assert not any(busy[-100:])
    assert all(played(choice, 500_000, 1_000_000, 40_000)[-100:])
    assert busy.index(False) <= 2 * max(Choice.LOOK_NS // 4_000_000, Choice.LOOK_STEPS)  # at once


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin a process")
def test_only_cores_that_may_be_used_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert workers.cores() == 1
