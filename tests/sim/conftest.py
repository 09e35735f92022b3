"""What the tests of the simulator share: short scenarios, native runs, the counters of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.utils import seeding

from l4s_gym.schema import ENQUEUE
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario, from_dict, load

Run = Callable[..., Batch]


def build(*sources: dict[str, Any], **fields: Any) -> Scenario:
    """A scenario of these sources; no warm-up, ten seconds, no stagger and no jitter unless given."""
    tree = {"name": "test", "warmup_s": 0.0, "horizon_s": 10.0, **fields}
    return from_dict({**tree, "sources": [{"stagger_s": 0.0, "jitter_us": 0.0, **source} for source in sources]})


def run_native(what: str | Scenario, aqm: str | None = None, seed: int = 0, seconds: float | None = None) -> Batch:
    """Run an episode with the discipline deciding by itself; the batch at its end."""
    scenario = load(what)
    if seconds is not None:
        scenario = scenario.replace(horizon_s=seconds)
    batch = Batch(scenario, aqm=aqm)
    batch.reset(0, seeding.np_random(seed)[0])
    assert batch.advance_one() in (layout.TERMINATED, layout.TRUNCATED)
    return batch


def with_actions(scenario: Scenario, actions: dict[int, int]) -> tuple[Batch, Any]:
    """Run with an agent that enqueues, but acts on the packets of these numbers; the batch and its log (T,)."""
    batch = Batch(scenario, decider=layout.AGENT, log_rows=20_000)
    batch.reset(0, np.random.default_rng(0))
    while batch.advance_one() == layout.DECISION:
        batch.action[0] = actions.get(int(batch.env["decisions"][0]), ENQUEUE)
    return batch, batch.drain_log(0, everything=True)


def count(batch: Batch, index: int = 0) -> dict[str, int]:
    """Integer counters of an environment: two runs that differ anywhere differ here."""
    env, queue = batch.env[index], batch.queue[index]
    totals = {name: int(env[name]) for name in ("events", "sent", "delivered", "dropped", "served_bytes")}
    for cls, name in enumerate("cl"):
        for field in ("marked", "dropped", "dropped_ect"):
            totals[f"{field}_{name}"] = int(queue[cls][field])
    return totals


@pytest.fixture(scope="session")
def scenario() -> Callable[..., Scenario]:
    """`build`."""
    return build


@pytest.fixture(scope="session")
def native() -> Run:
    """`run_native`."""
    return run_native


@pytest.fixture(scope="session")
def counters() -> Callable[..., dict[str, int]]:
    """`count`."""
    return count


@pytest.fixture(scope="session")
def acted() -> Callable[..., tuple[Batch, Any]]:
    """`with_actions`."""
    return with_actions
