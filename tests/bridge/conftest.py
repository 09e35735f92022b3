"""What the tests of the bridge share: servers on sockets in a temporary folder, and a log of the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from l4s_gym.data.simulated import simulate_log
from tests.bridge.server import Server, log_of

Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A function that starts a server: ``serve(records, **attributes)``."""
    with ExitStack() as stack:
        count = 0

        def start(records: Any = None, **options: Any) -> Server:
            nonlocal count
            count += 1
            chosen = log_of(500) if records is None else records
            return stack.enter_context(Server(tmp_path / f"{count}.sock", chosen, **options))

        yield start


@pytest.fixture(scope="session")
def simulated() -> Any:
    """Records of the testbed's scenario."""
    return simulate_log("l4s-llm-testbed", seconds=6)
