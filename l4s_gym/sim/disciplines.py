"""The seven queue disciplines behind one set of calls, for the engine."""

from __future__ import annotations

from typing import Any

from l4s_gym.schema import ENQUEUE, MAX_PROB
from l4s_gym.sim import codel, dualpi2_linux, dualpi2_rfc9332, fifo, pie, red, router
from l4s_gym.sim import dualpi2_freebsd as freebsd
from l4s_gym.sim.events import set_time
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import (
    CODEL,
    DUMMYNET,
    FREEBSD,
    LINUX,
    NEVER,
    PIE,
    RED,
    RFC9332,
    SLOT_UPDATE_C,
)
from l4s_gym.sim.memory import packet_at, queue_at


@jit
def clock_ns(env: Any) -> int:
    """The discipline's clock: the kernel's moves by whole ticks (AQM_UNOW), the others' is exact."""
    if env.tick_ns > 0:
        return env.clock_ns if env.link == DUMMYNET else env.now_ns - env.now_ns % env.tick_ns
    return env.now_ns


@jit
def classify(env: Any, ecn: int) -> int:
    """Queue of an arriving packet: 0 C (or the only queue), 1 L."""
    if env.aqm == FREEBSD:
        return freebsd.classify(ecn, env.quirks)
    if env.dual:
        return ecn & 1
    return 0


@jit
def decide_at_enqueue(env: Any, index: int, ecn: int) -> tuple[int, int]:
    """The discipline's own decision at arrival: (logged, applied)."""
    if env.aqm == FREEBSD:
        return freebsd.decide(env, index, ecn)
    action = ENQUEUE
    if env.aqm == PIE:
        action = pie.decide(env, queue_at(env, 0), ecn)
    elif env.aqm == RED:
        action = red.decide(env, queue_at(env, 0), ecn)
    return action, action


@jit
def decide_at_dequeue(w: Any, index: int, p: int, sojourn_ns: int) -> int:
    """The discipline's own decision for a packet that has just been taken from its queue."""
    a = packet_at(w, p)
    if w.aqm == RFC9332:
        return dualpi2_rfc9332.decide(w, queue_at(w, index), index, sojourn_ns, a.ecn)
    if w.aqm == LINUX:
        return dualpi2_linux.decide(w, index, sojourn_ns, a.ecn, a.step_ok != 0)
    if w.aqm == CODEL:
        return codel.decide(w, queue_at(w, 0), sojourn_ns, a.ecn)
    return ENQUEUE


@jit
def note_foreign_decision(env: Any, q: Any, action: int) -> None:
    """Somebody else has decided: the accumulated probability steps and is reset as for an own decision."""
    if env.aqm == FREEBSD:
        freebsd.step_accumulator(env, q)
        if action != ENQUEUE:
            q.accu_prob = 0
    elif env.aqm == PIE:
        q.accu = 0.0 if action != ENQUEUE or q.prob == 0.0 else q.accu + q.prob


@jit
def after_decision(w: Any, index: int, applied: int) -> None:
    """What the testbed's kernel does after each decision (activation, burst allowance, lists)."""
    if w.aqm != FREEBSD:
        return
    q = queue_at(w, index)
    if freebsd.after_decision(w, q, clock_ns(w) // 1000, applied):
        w.late &= ~(1 << index)
        set_time(w, SLOT_UPDATE_C + index, w.now_ns + w.tupdate_us * 1000)


@jit
def enlist(env: Any, q: Any, index: int) -> None:
    """A packet has joined a queue that the scheduler had forgotten."""
    if env.aqm == FREEBSD and q.listed == 0:
        if env.quirks & freebsd.DRR:
            freebsd.list_queue(env, q, index)
        else:
            q.listed = 1


@jit
def no_room(env: Any, length: int) -> bool:
    """Whether the buffer is full before the enqueue (RFC 9332 keeps one MTU free; the kernel looks later)."""
    if env.aqm == FREEBSD and env.quirks & freebsd.HEAD_DROP:
        return False
    reserve = 1500 if env.aqm == RFC9332 else length
    return fifo.is_full(env.packets, env.bytes, reserve, env.limit_packets, env.limit_bytes)


@jit
def pick(w: Any) -> int:
    """Queue to serve next, or -1; the testbed's controllers stop when their queue is found empty."""
    if w.aqm == FREEBSD:
        if w.quirks & freebsd.DRR:
            index = freebsd.pick(w)
        else:
            index = dualpi2_rfc9332.pick(w)
            for i in range(2):
                if queue_at(w, i).packets == 0 and queue_at(w, i).listed:
                    queue_at(w, i).listed = 0
                    queue_at(w, i).active = 0
        for i in range(2):
            if queue_at(w, i).active == 0:
                set_time(w, SLOT_UPDATE_C + i, NEVER)
        return index
    if w.aqm == LINUX:
        return dualpi2_linux.pick(w)
    if w.aqm == RFC9332:
        return dualpi2_rfc9332.pick(w)
    return 0 if queue_at(w, 0).packets > 0 else -1


@jit
def charge(env: Any, index: int, length: int, dropped: bool) -> None:
    """Account a packet to the scheduler; a packet dropped at dequeue costs nothing in RFC 9332 and Linux."""
    if env.aqm == FREEBSD:
        if env.quirks & freebsd.DRR:
            queue_at(env, index).deficit -= length
        else:
            dualpi2_rfc9332.charge(env, index, length)
    elif env.aqm == RFC9332:
        if not dropped:
            dualpi2_rfc9332.charge(env, index, length)
    elif env.aqm == LINUX and not dropped:
        dualpi2_linux.charge(env, index, length)


@jit
def head_delay_ns(w: Any, index: int) -> int:
    """Age of the head of a queue, 0 where it is empty."""
    head = queue_at(w, index).head
    return 0 if head < 0 else clock_ns(w) - packet_at(w, head).enqueued_ns


@jit
def update(w: Any, slot: int) -> None:
    """The control timer has fired: an update now, or as soon as the router's `softclock` has the processor."""
    if w.link == DUMMYNET and router.is_occupied(w):
        w.late |= 1 << (slot - SLOT_UPDATE_C)
        set_time(w, slot, NEVER)
    else:
        control(w, slot)


@jit
def control(w: Any, slot: int) -> None:
    """One update of the probability, and a new control interval."""
    index = slot - SLOT_UPDATE_C
    current = 0
    if w.aqm == FREEBSD:
        freebsd.update(w, index)
        current = queue_at(w, index).qdelay_us * 1000
    else:
        current = max(head_delay_ns(w, 0), head_delay_ns(w, 1))
        if w.aqm == RFC9332:
            w.prob = dualpi2_rfc9332.update_probability(
                w.prob, current, w.qdelay_old_ns, w.target_us * 1000, w.alpha_q, w.beta_q
            )
            w.qdelay_old_ns = current
        elif w.aqm == LINUX:
            w.prob_fixed = dualpi2_linux.update_probability(
                w.prob_fixed,
                current,
                w.qdelay_old_ns,
                w.target_us * 1000,
                w.alpha,
                w.beta,
                w.drop_on_overload != 0,
                w.coupling,
            )
            w.qdelay_old_ns = current
        elif w.aqm == PIE:
            pie.update(w, queue_at(w, 0))
        queue_at(w, 0).interval_drops = 0
        queue_at(w, 1).interval_drops = 0
    w.updates += 1
    w.update_delay_ns += current
    set_time(w, slot, w.now_ns + w.tupdate_us * 1000)


@jit
def base_probability(env: Any, q: Any) -> int:
    """The controller's probability in the record's unit, 1/(2^31 - 1)."""
    if env.aqm == FREEBSD:
        return q.drop_prob
    if env.aqm == LINUX:
        return env.prob_fixed >> 1
    if env.aqm == RFC9332:
        return dualpi2_rfc9332.in_records(env.prob)
    if env.aqm == PIE or env.aqm == RED:
        return int(q.prob * MAX_PROB)
    return 0


@jit
def probability(env: Any, c: Any, l4s: Any) -> float:
    """The controller's probability, 0 to 1, for the queue (C or L) with the larger one."""
    if env["aqm"] == FREEBSD:
        return max(c["drop_prob"], l4s["drop_prob"]) / MAX_PROB
    if env["aqm"] == LINUX:
        return env["prob_fixed"] / (2**32 - 1)
    if env["aqm"] == RFC9332:
        return env["prob"] / 2**32
    return max(c["prob"], l4s["prob"])


@jit
def accumulated_probability(env: Any, q: Any) -> int:
    """The accumulated probability (or `recur` count) in the record's unit, 1/(2^31 - 1)."""
    if env.aqm == FREEBSD:
        return q.accu_prob
    if env.aqm == RFC9332:
        return dualpi2_rfc9332.in_records(q.recur)
    if env.aqm == PIE:
        return int(q.accu * MAX_PROB)
    return 0


@jit
def burst_allowance_us(env: Any, q: Any) -> int:
    """Time left in which nothing is dropped, us."""
    if env.aqm == FREEBSD:
        return q.burst_us
    return q.burst_ns // 1000


@jit
def old_delay_us(env: Any, q: Any) -> int:
    """Delay at the last update of the probability, us."""
    if env.aqm == FREEBSD:
        return q.qdelay_old_us
    return env.qdelay_old_ns // 1000


@jit
def current_delay_us(env: Any, q: Any) -> int:
    """Sojourn of the packet that last left the queue, us."""
    if env.aqm == FREEBSD:
        return q.qdelay_us
    return q.delay_ns // 1000
