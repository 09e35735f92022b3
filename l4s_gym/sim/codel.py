"""CoDel as RFC 8289 section 5 writes it, with ECN marking in place of drops; it acts at dequeue."""

from __future__ import annotations

import math
from typing import Any

from l4s_gym.schema import DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.jit import jit, public


@public
def control_law(time_ns: int, count: int, interval_ns: int = 100_000_000) -> int:
    """Time of the next drop: `time_ns + interval_ns / sqrt(count)`, ns."""
    return time_ns + int(interval_ns / math.sqrt(count))


@public
def ok_to_drop(
    sojourn_ns: int, queue_bytes: int, now_ns: int, first_above_ns: int, target_ns: int, interval_ns: int
) -> tuple[bool, int]:
    """Whether the delay has been above target for an interval: (ok, new first_above_time)."""
    if sojourn_ns < target_ns or queue_bytes <= 1500:
        return False, 0
    if first_above_ns == 0:
        return False, now_ns + interval_ns
    return now_ns >= first_above_ns, first_above_ns


@jit
def decide(env: Any, q: Any, sojourn_ns: int, ecn: int) -> int:
    """The engine's call for each packet it takes off the queue; after a drop it calls again with the next.

    RFC 8289's `dodequeue` and `deque` in one: the state machine advances by one packet.
    """
    now = env.now_ns
    ok, q.first_above_ns = ok_to_drop(sojourn_ns, q.bytes, now, q.first_above_ns, env.target_us * 1000, env.interval_ns)
    hit = False
    if q.dropping:
        if not ok:
            q.dropping = 0
        elif now >= q.drop_next_ns:
            hit = True
            q.count += 1
            q.drop_next_ns = control_law(q.drop_next_ns, q.count, env.interval_ns)
    elif ok:
        hit = True
        q.dropping = 1
        delta = q.count - q.last_count
        recent = now - q.drop_next_ns < 16 * env.interval_ns
        q.count = delta if delta > 1 and recent else 1
        q.drop_next_ns = control_law(now, q.count, env.interval_ns)
        q.last_count = q.count
    if not hit:
        return ENQUEUE
    return MARK if ecn != NOT_ECT else DROP
