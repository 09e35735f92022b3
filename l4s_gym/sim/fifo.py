"""A plain first-in-first-out queue: it never marks, and drops only when its buffer is full."""

from __future__ import annotations

from l4s_gym.sim.jit import public


@public
def is_full(packets: int, total_bytes: int, length: int, limit_packets: int, limit_bytes: int) -> bool:
    """Whether a packet of `length` bytes finds no room (a limit of 0 is none)."""
    if limit_packets > 0 and packets + 1 > limit_packets:
        return True
    return limit_bytes > 0 and total_bytes + length > limit_bytes
