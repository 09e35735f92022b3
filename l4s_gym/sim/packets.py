"""The packet pool and the linked lists on it: queues, and each flow's packets between two hops."""

from __future__ import annotations

from typing import Any

from l4s_gym.sim.events import get_time, host_uniform, set_time
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import SLOT_FLOWS
from l4s_gym.sim.memory import flow_at, packet_at


@jit
def allocate(env: Any) -> int:
    """Return a free packet; the caller has checked that there is one."""
    env.in_flight += 1
    p = env.free
    if p >= 0:
        env.free = packet_at(env, p).next
    else:
        p = env.fresh
        env.fresh += 1
    return p


@jit
def release(env: Any, p: int) -> None:
    """Release a packet; the last one released is used first, while it is still in the cache."""
    env.in_flight -= 1
    packet_at(env, p).next = env.free
    env.free = p


@jit
def renew(env: Any, p: int, flow: int, ack: int) -> None:
    """Initialise a packet for a flow: it has not crossed the link, and no decision about it was taken."""
    a = packet_at(env, p)
    a.flow = flow
    a.ack = ack
    a.cwr = 0
    a.crossing = 0
    a.decided = 0
    a.record = -1


@jit
def append(env: Any, q: Any, p: int) -> None:
    """Append a packet to a queue."""
    a = packet_at(env, p)
    a.next = -1
    if q.tail >= 0:
        packet_at(env, q.tail).next = p
    else:
        q.head = p
    q.tail = p
    q.packets += 1
    q.bytes += a.len
    env.packets += 1
    env.bytes += a.len


@jit
def pop(env: Any, q: Any) -> int:
    """Remove the head of a queue that is not empty."""
    p = q.head
    a = packet_at(env, p)
    q.head = a.next
    if q.head < 0:
        q.tail = -1
        q.idle_ns = env.now_ns
    q.packets -= 1
    q.bytes -= a.len
    env.packets -= 1
    env.bytes -= a.len
    return p


@jit
def push_transit(env: Any, i: int, p: int) -> None:
    """Put a packet in transit for one hop of its flow's delay plus its host's jitter; packets keep their order."""
    f = flow_at(env, i)
    a = packet_at(env, p)
    a.due_ns = env.now_ns + f.hop_ns
    if f.jitter_ns > 0:
        a.due_ns = max(a.due_ns + int(host_uniform(env) * f.jitter_ns), f.last_due_ns)
        f.last_due_ns = a.due_ns
    a.next = -1
    if f.transit_tail >= 0:
        packet_at(env, f.transit_tail).next = p
    else:
        f.transit_head = p
        set_time(env, SLOT_FLOWS + 2 * i, a.due_ns)
    f.transit_tail = p


@jit
def pop_transit(env: Any, i: int) -> int:
    """Return the packet of a flow that arrives now, and set the time of the next one."""
    from_ = flow_at(env, i)
    p = from_.transit_head
    head = packet_at(env, p).next
    from_.transit_head = head
    if head >= 0:
        set_time(env, SLOT_FLOWS + 2 * i, packet_at(env, head).due_ns)
    else:
        from_.transit_tail = -1
        set_time(env, SLOT_FLOWS + 2 * i, 1 << 62)
    return p


@jit
def arm(env: Any, i: int, time_ns: int) -> None:
    """Make the flow's timer slot fire no later than `time_ns` (later deadlines are handled when it fires)."""
    slot = SLOT_FLOWS + 2 * i + 1
    if time_ns < get_time(env, slot):
        set_time(env, slot, time_ns)
