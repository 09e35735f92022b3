"""What the tests of the environments share: scenarios as plain data, and random episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import l4s_gym  # noqa: F401  (registers the environments)
from l4s_gym.data.logs import write_log
from l4s_gym.evaluation.native import simulate
from l4s_gym.sim.scenario import load

Plain = Callable[..., dict[str, Any]]


def plain_scenario(name: str, **changes: Any) -> dict[str, Any]:
    """A shipped scenario with changes, as the plain data that `gym.make(scenario=)` takes."""
    tree: dict[str, Any] = msgspec.to_builtins(load(name).replace(**changes))
    return tree


@pytest.fixture(scope="session")
def plain() -> Plain:
    """`plain_scenario`."""
    return plain_scenario


@pytest.fixture(scope="session")
def calm() -> dict[str, Any]:
    """A quarter of the link is used, and nothing waits."""
    source = {"kind": "cbr", "rate_mbps": 3.0, "stagger_s": 0.0}
    return {"horizon_s": 2.0, "sources": [source], "link": {"rate_mbps": 12.0}}


@pytest.fixture(scope="session")
def finite() -> dict[str, Any]:
    """Two transfers that end."""
    source = {"kind": "newreno", "transfer_bytes": 60_000, "count": 2, "stagger_s": 0.01}
    return {"sources": [source], "link": {"rate_mbps": 8.0}}


@pytest.fixture(scope="session")
def log_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of the simulator, as text."""
    path = tmp_path_factory.mktemp("replay") / "run.log"
    write_log(path, simulate(load("l4s-llm-testbed").replace(horizon_s=6.0), seed=1, log=True).records)
    return path
