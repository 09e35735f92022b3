"""The servers and the log of the tests of the bridge."""

from __future__ import annotations

from tests.bridge.conftest import serve, simulated

__all__ = ["serve", "simulated"]
