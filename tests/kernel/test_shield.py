"""What a hostile agent can do to a queue: the shield's bounds are the operator's, and the link keeps its goodput."""

from __future__ import annotations

from pathlib import Path

import pytest

from l4s_gym.bridge import wire

from .loop import Choice, Loop, Share
from .module import Module, command

WIDEST = (0, 0, 65536, 65536, 1000, 0)
"""CONFIGURE's arguments with which an agent would switch the shield off."""
SECONDS = 5.0
HOSTILE: dict[str, Choice] = {
    "enqueue all": lambda _now, _queue: 0,
    "drop all": lambda _now, _queue: 1,
    "mark all": lambda _now, _queue: 2,
    "alternating": lambda now, _queue: 1 if now % 0.5 > 0.25 else 0,
}
RFC: dict[str, int] = {"variant": 1, "limit_packets": 0, "limit_bytes": 625_000}


def figures(shares: tuple[Share, Share], seconds: float = SECONDS) -> tuple[float, float, float, float]:
    """Mbit/s of C and L, mean delays of C and L in ms."""
    c, l4s = shares
    return c.mbps(seconds), l4s.mbps(seconds), c.mean_ms, l4s.mean_ms


def attacked(library: Path, choose: Choice | None, **values: int) -> list[tuple[float, float, float, float]]:
    """Figures of two instances while an agent that has tried to switch the shield off decides about the first one."""
    with Module(library) as module:
        module.set_all(RFC | values)
        module.random(1)
        loop = Loop(module)
        loop.run(4.0)
        device = module.open()
        if choose is not None:
            device.write(command(wire.ATTACH, 1))
            device.ask(wire.CONFIGURE, *WIDEST)
        found = [figures(shares) for shares in loop.run(SECONDS, device if choose else None, choose)]
        device.close()
        for each in loop.instances:
            module.delete(each.number)
    return found


@pytest.fixture(scope="module")
def native(library: Path) -> list[tuple[float, float, float, float]]:
    return attacked(library, None)


@pytest.mark.parametrize(
    "name", ["drop all", *(pytest.param(each, marks=pytest.mark.slow) for each in HOSTILE if each != "drop all")]
)
def test_a_hostile_agent_leaves_the_link_its_goodput(
    library: Path, native: list[tuple[float, float, float, float]], name: str
) -> None:
    first, second = attacked(library, HOSTILE[name])
    assert sum(first[:2]) >= 0.9 * sum(native[0][:2]), (first, native[0])
    assert first[2] <= 150.0 and first[3] <= 50.0
    assert second == pytest.approx(native[1], rel=0.1)  # the other instance goes its own way
