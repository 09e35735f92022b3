"""The packet pool and the linked lists on it: queues, and each flow's packets between two hops."""

from __future__ import annotations

from typing import Any

from l4s_gym.sim.events import get_time, host_uniform, set_time
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import SLOT_FLOWS
from l4s_gym.sim.memory import flow_at, packet_at


@jit
def allocate(w: Any) -> int:
    """A free packet; the caller has made sure that there is one."""
    w.in_flight += 1
    p = w.free
    if p >= 0:
        w.free = packet_at(w, p).next
    else:
        p = w.fresh
        w.fresh += 1
    return p


@jit
def release(w: Any, p: int) -> None:
    """Give a packet back; the last one released is used first, while it is still in the cache."""
    w.in_flight -= 1
    packet_at(w, p).next = w.free
    w.free = p


@jit
def renew(w: Any, p: int, flow: int, ack: int) -> None:
    """Make a packet a flow's that has not crossed the link, and that nothing has been decided about."""
    a = packet_at(w, p)
    a.flow = flow
    a.ack = ack
    a.cwr = 0
    a.crossing = 0
    a.decided = 0
    a.record = -1


@jit
def append(w: Any, q: Any, p: int) -> None:
    """Append a packet to a queue."""
    a = packet_at(w, p)
    a.next = -1
    if q.tail >= 0:
        packet_at(w, q.tail).next = p
    else:
        q.head = p
    q.tail = p
    q.packets += 1
    q.bytes += a.len
    w.packets += 1
    w.bytes += a.len


@jit
def pop(w: Any, q: Any) -> int:
    """Remove the head of a queue that is not empty."""
    p = q.head
    a = packet_at(w, p)
    q.head = a.next
    if q.head < 0:
        q.tail = -1
        q.idle_ns = w.now_ns
    q.packets -= 1
    q.bytes -= a.len
    w.packets -= 1
    w.bytes -= a.len
    return p


@jit
def push_transit(w: Any, i: int, p: int) -> None:
    """Let a packet travel for one hop of its flow's delay, and its host's jitter; packets keep their order."""
    f = flow_at(w, i)
    a = packet_at(w, p)
    a.due_ns = w.now_ns + f.hop_ns
    if f.jitter_ns > 0:
        a.due_ns = max(a.due_ns + int(host_uniform(w) * f.jitter_ns), f.last_due_ns)
        f.last_due_ns = a.due_ns
    a.next = -1
    if f.transit_tail >= 0:
        packet_at(w, f.transit_tail).next = p
    else:
        f.transit_head = p
        set_time(w, SLOT_FLOWS + 2 * i, a.due_ns)
    f.transit_tail = p


@jit
def pop_transit(w: Any, i: int) -> int:
    """The packet of a flow that arrives now; the next one's time is set."""
    from_ = flow_at(w, i)
    p = from_.transit_head
    head = packet_at(w, p).next
    from_.transit_head = head
    if head >= 0:
        set_time(w, SLOT_FLOWS + 2 * i, packet_at(w, head).due_ns)
    else:
        from_.transit_tail = -1
        set_time(w, SLOT_FLOWS + 2 * i, 1 << 62)
    return p


@jit
def arm(w: Any, i: int, time_ns: int) -> None:
    """Make sure that the flow's timer slot fires no later than `time_ns` (later deadlines are lazy)."""
    slot = SLOT_FLOWS + 2 * i + 1
    if time_ns < get_time(w, slot):
        set_time(w, slot, time_ns)
