"""A plain first-in-first-out queue: it never marks, and drops only when its buffer is full."""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.sim.discipline import Discipline, records
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import packet_at


@public
def is_full(packets: int, total_bytes: int, length: int, limit_packets: int, limit_bytes: int) -> bool:
    """Return whether a packet of `length` bytes finds no room (a limit of 0 means no limit)."""
    if limit_packets > 0 and packets + 1 > limit_packets:
        return True
    return limit_bytes > 0 and total_bytes + length > limit_bytes


@jit
def has_room(env: Any, p: int) -> int:
    """Return whether the packet fits into the buffer."""
    return int(not is_full(env.packets, env.bytes, packet_at(env, p).len, env.limit_packets, env.limit_bytes))


FIFO: Final = Discipline(name="fifo", title="first in, first out, with tail drop", records=records("fifo"))
