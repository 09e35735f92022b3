"""The bottleneck: packets in, queue discipline, link, packets out; and all counters.

`used_ns` is the time up to which packets that left the queue occupy the link: for a link of constant rate, the end of
the packet that is being sent, to the fraction of a nanosecond; for one that serves at ticks and sends packets in
batches, the time at which the rate has paid for them; for a trace, the last delivery opportunity that was used. So the
amount that has left the queue but not yet crossed the link is known at any time (`Batch.carried_bytes`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.schema import CE, DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim import disciplines, observation, receiver, router, tcp
from l4s_gym.sim.dualpi2_rfc9332 import ONE
from l4s_gym.sim.events import clock_ns, uniform
from l4s_gym.sim.jit import jit, shared
from l4s_gym.sim.layout import (
    CONSTANT,
    DUMMYNET,
    HIST_BINS,
    HIST_SHIFT,
    NEVER,
    PROBABILITY,
    PUSHED_OUT,
    SLOT_UPDATE_C,
    TICK,
    TRACE,
)
from l4s_gym.sim.memory import flow_at, hist_of, leading_zeros, log_at, packet_at, queue_at, sojourns_of, trace_of
from l4s_gym.sim.packets import append, pop, push_transit, release

OPPORTUNITY_BYTES = 1504
"""Bytes carried by one delivery opportunity of a Mahimahi trace (packet and header of the emulator)."""
OVERLOAD = 0.25
"""p_C from which an agent's probabilities drop ECN packets too: RFC 9332's p_Cmax, and p_L = 1 at k = 2."""


@jit
def delay_bin(delay_ns: int) -> int:
    """Return the bin of the delay histogram: first of one 256 ns unit each, then 2^`HIST_SHIFT` bins per octave."""
    units = delay_ns >> 8
    shift = max(63 - HIST_SHIFT - leading_zeros(units), 0)
    return min((shift << HIST_SHIFT) + (units >> shift), HIST_BINS - 1)


def bin_delays_ns() -> npt.NDArray[np.float64]:
    """Return the middle of each bin of the delay histogram, ns, (HIST_BINS,)."""
    bins = np.arange(HIST_BINS)
    shift = np.maximum((bins >> HIST_SHIFT) - 1, 0)
    return ((bins - (shift << HIST_SHIFT)) * 2.0**shift + 2.0**shift / 2.0) * 256.0


@jit
def ahead_bytes(env: Any) -> float:
    """Return the bytes that have left the queue but not yet crossed the link."""
    if env["link"] == TRACE:
        return float(env["left_bytes"]) if env["sending_packet"] >= 0 else 0.0
    return env["stalled_bytes"] + max(env["used_ns"] - env["now_ns"], 0.0) / env["ns_per_byte"]


@jit
def carried_bytes(env: Any, ahead: float) -> float:
    """Return the bytes carried since the counters were reset; `ahead` bytes have not yet crossed."""
    return max(env["ahead_bytes"] + env["served_bytes"] - ahead, 0.0)


@jit
def drop(env: Any, index: int, p: int) -> None:
    """Drop a packet and count it."""
    q = queue_at(env, index)
    a = packet_at(env, p)
    q.drops += 1
    q.interval_drops += 1
    c = queue_at(env, a.cls)
    c.dropped += 1
    if a.ecn != NOT_ECT:
        c.dropped_ect += 1
    flow_at(env, a.flow).drops += 1
    env.dropped += 1
    release(env, p)


@jit
def mark(env: Any, p: int) -> None:
    """Set CE and count it (a packet that carries CE already counts again, as in the kernels)."""
    a = packet_at(env, p)
    a.ecn = CE
    queue_at(env, a.cls).marked += 1
    flow_at(env, a.flow).marks += 1


@jit
def _leave_queue(env: Any, index: int) -> int:
    """Take the head of a queue and record its sojourn."""
    q = queue_at(env, index)
    observation.integrate(env)
    p = pop(env, q)
    a = packet_at(env, p)
    sojourn = clock_ns(env) - a.enqueued_ns
    q.delay_ns = sojourn
    c = queue_at(env, a.cls)
    c.class_packets -= 1
    c.class_delay_ns = sojourn
    relative = sojourn * (env.per_ref_l if a.cls == 1 else env.per_ref_c)
    c.normalised = relative / (1.0 + relative)
    return p


@jit
def _is_hit(env: Any, index: int, prob: float) -> bool:
    """Whether a probability that an agent has set hits the packet, evenly or at random."""
    if env.even == 0:
        return uniform(env) < prob
    count = (env.recur_l if index == 1 else env.recur_c) + prob
    hit = count > 1.0
    if hit:
        count -= 1.0
    if index == 1:
        env.recur_l = count
    else:
        env.recur_c = count
    return hit


@jit
def _guarded_l4s(env: Any, p: int) -> int:
    """Action for an L packet that leaves: p_L is at least its threshold's; overload drops by p_C, marks all else."""
    if env.p_c >= OVERLOAD:
        if _is_hit(env, 1, env.p_c):
            return DROP
    elif not _is_hit(env, 1, max(env.p_l, disciplines.threshold_l4s(env, p) / ONE)):
        return ENQUEUE
    return MARK if packet_at(env, p).ecn != NOT_ECT else DROP


@jit
def _foreign_action(env: Any, index: int, ecn: int) -> int:
    """The action that the given probabilities yield for a packet that arrives; a guarded L is decided as it leaves."""
    if env.guarded and index == 1:
        return ENQUEUE
    if not _is_hit(env, index, env.p_l if index == 1 else env.p_c):
        return ENQUEUE
    return DROP if ecn == NOT_ECT or (env.guarded and env.p_c >= OVERLOAD) else MARK


@shared
def dequeue(env: Any) -> int:
    """Return the next packet to send, or -1: the scheduler picks, the discipline may mark or drop."""
    while True:
        index = disciplines.pick(env)
        if index < 0:
            return -1
        p = _leave_queue(env, index)
        a = packet_at(env, p)
        q = queue_at(env, index)
        if a.record >= 0:
            sojourns_of(env)[a.record] = q.delay_ns
        action = ENQUEUE
        if a.decided == 0:
            action = disciplines.decide_at_dequeue(env, index, p)
        elif env.guarded and index == 1:
            action = _guarded_l4s(env, p)
        if action != ENQUEUE and a.record >= 0:
            log_at(env, a.record).action = action
            log_at(env, a.record).applied_action = action
        disciplines.after_dequeue(env, index, p, action)
        if action == DROP:
            drop(env, index, p)
            continue
        if action == MARK:
            mark(env, p)
        a.record = -1
        c = queue_at(env, a.cls)
        c.left += 1
        c.left_delay_ns += q.delay_ns
        c.max_delay_ns = max(c.max_delay_ns, q.delay_ns)
        hist_of(env, a.cls)[delay_bin(q.delay_ns)] += 1
        seconds = a.len * env.s_per_byte
        env.served_bytes += a.len
        env.served_s += seconds
        env.power_s += seconds * (1.0 - c.normalised)
        env.fair_s += seconds * env.evenness
        return p


@jit
def deliver(env: Any, p: int) -> None:
    """Deliver a packet that has crossed the link."""
    env.delivered += 1
    _hand_on(env, p)


@jit
def _hand_on(env: Any, p: int) -> None:
    """Pass a packet on to its next crossing, its receiver, or its sender."""
    a = packet_at(env, p)
    i = a.flow
    if a.ack or a.crossing < env.passes:
        push_transit(env, i, p)
    else:
        receiver.receive(env, i, p)


@jit
def _take(env: Any, p: int, since_ns: float) -> None:
    """Occupy the link with packet `p` from `since_ns` on, at its rate."""
    env.used_ns = since_ns + packet_at(env, p).len * 8e9 / env.rate_bps


@jit
def start_sending(env: Any, since_ns: float) -> None:
    """Send the next packet over a link of constant rate, which is free since `since_ns`, or make the link idle."""
    env.sending_packet = -1
    env.link_at = NEVER
    if env.rate_bps == 0.0:  # an outage: the packets wait in the queue
        env.busy = int(env.packets > 0)
        return
    p = dequeue(env)
    env.sending_packet = p
    if p < 0:
        env.busy = 0
        return
    env.busy = 1
    _take(env, p, since_ns)
    env.link_at = math.ceil(env.used_ns)


@jit
def _accrue(env: Any) -> None:
    """Add the credit of a link that serves at ticks, bits, up to now."""
    env.credit += max(env.now_ns - env.sched_ns, 0) * 1e-9 * env.rate_bps
    env.sched_ns = max(env.sched_ns, env.now_ns)


@jit
def change_rate(env: Any, rate_bps: float) -> None:
    """Set another rate from now on, also for the packet that is being sent; 0: the link stops."""
    env.capacity_bytes += (env.now_ns - env.capacity_ns) * 1e-9 * env.rate_bps / 8.0
    env.capacity_ns = env.now_ns
    if env.link == TICK or (env.link == DUMMYNET and env.busy):
        _accrue(env)
    rest = env.stalled_bytes + max(env.used_ns - env.now_ns, 0.0) / env.ns_per_byte
    env.rate_bps = rate_bps
    env.ns_per_byte = 8e9 / rate_bps
    env.stalled_bytes = rest if rate_bps == 0.0 else 0.0
    env.used_ns = env.now_ns + (0.0 if rate_bps == 0.0 else rest * env.ns_per_byte)
    if env.link != CONSTANT or env.busy == 0:
        return
    if env.sending_packet < 0:
        start_sending(env, env.now_ns)
    else:
        env.link_at = NEVER if rate_bps == 0.0 else math.ceil(env.used_ns)


@jit
def opportunity_ns(env: Any) -> int:
    """Return the time of the trace's next delivery opportunity."""
    return env.trace_cycle * env.trace_period_ns + trace_of(env)[env.trace_pos]


@jit
def _skip_to_now(env: Any) -> None:
    """Move to the first opportunity that is not in the past (with an empty queue, opportunities are lost)."""
    cycle = env.now_ns // env.trace_period_ns
    if cycle > env.trace_cycle:
        env.trace_cycle = cycle
        env.trace_pos = 0
    offset = env.now_ns - env.trace_cycle * env.trace_period_ns
    low = env.trace_pos
    high = env.trace_len
    while low < high:
        middle = (low + high) >> 1
        if trace_of(env)[middle] < offset:
            low = middle + 1
        else:
            high = middle
    if low == env.trace_len:
        env.trace_cycle += 1
        low = 0
    env.trace_pos = low


@jit
def _serve_opportunity(env: Any) -> None:
    """Serve at one delivery opportunity: up to `OPPORTUNITY_BYTES`; a packet leaves after its last byte."""
    env.used_ns = env.now_ns
    budget = OPPORTUNITY_BYTES
    while budget > 0:
        if env.sending_packet < 0:
            env.sending_packet = dequeue(env)
            if env.sending_packet < 0:
                break
            env.left_bytes = packet_at(env, env.sending_packet).len
        used = min(budget, env.left_bytes)
        budget -= used
        env.left_bytes -= used
        if env.left_bytes == 0:
            p = env.sending_packet
            env.sending_packet = -1
            deliver(env, p)
    env.trace_pos += 1
    if env.trace_pos == env.trace_len:
        env.trace_pos = 0
        env.trace_cycle += 1
    if env.sending_packet >= 0 or env.packets > 0:
        env.link_at = opportunity_ns(env)
    else:
        env.busy = 0
        env.link_at = NEVER


@jit
def _serve_tick(env: Any) -> None:
    """Serve at one kernel tick of dummynet while there is credit (dn_io's serve_sched).

    The credit is in bits; a packet may make it negative, and the next one waits until it is paid off.
    """
    while env.credit >= 0.0:
        p = dequeue(env)
        if p < 0:
            env.busy = 0
            env.link_at = NEVER
            return
        env.credit -= packet_at(env, p).len * 8.0
        _take(env, p, max(env.used_ns, env.now_ns))
        deliver(env, p)
    next_tick = env.now_ns - env.now_ns % env.tick_ns + env.tick_ns
    env.link_at = next_tick


@jit
def _serve_pipe(env: Any) -> None:
    """Serve while there is credit, in bits (dummynet's `serve_sched`); if negative, the pipe is busy until paid."""
    per_tick = env.tick_ns * 1e-9 * env.rate_bps
    env.credit += (env.clock_ns - env.sched_ns) / env.tick_ns * per_tick
    env.sched_ns = env.clock_ns
    last = -1
    while env.credit >= 0.0:
        last = dequeue(env)
        if last < 0:
            break
        env.credit -= packet_at(env, last).len * 8.0
        _take(env, last, max(env.used_ns, env.now_ns))
        router.enter_line(env, last)
        env.delivered += 1
    env.busy = 0
    if env.credit >= 0.0:
        env.idle_at = env.clock_ns
        return
    env.busy = 1
    ticks = math.ceil(-env.credit / per_tick) * env.tick_ns
    if last >= 0:
        packet_at(env, last).due_ns += ticks
    env.serve_at = env.clock_ns + ticks


@jit
def _run_task(env: Any) -> None:
    """Run dummynet's `dummynet_task`, and the updates that waited: `softclock` has the processor."""
    env.clock_ns = env.now_ns - env.now_ns % env.tick_ns
    env.task_at = env.clock_ns + env.tick_ns
    for index in range(2):
        if env.late & (1 << index):
            env.late &= ~(1 << index)
            disciplines.control(env, SLOT_UPDATE_C + index)
    if env.busy and env.serve_at <= env.clock_ns:
        _serve_pipe(env)
    router.transmit(env)


@jit
def _print_row(env: Any, p: int) -> None:
    """Put a packet into the pipe: the processor is busy until its line is printed."""
    env.called = 2
    env.arriving = p
    env.link_at = env.now_ns + env.row_ns


@jit
def _next_work(env: Any) -> None:
    """Run the router's processor (see `router`): up to the next line to print, or until it sleeps."""
    if env.called == 0:
        env.turn_ns = env.now_ns
    if env.now_ns >= env.pause_at:  # the machine is paused
        begun = env.pause_at >= 0
        env.pause_at = env.now_ns + int(-math.log(1.0 - uniform(env)) * env.pause_gap_ns)
        if begun:
            env.pause_at += env.pause_ns
            env.called = 1
            env.link_at = env.now_ns + env.pause_ns
            return
    while True:
        p = router.leave_out(env)
        while p >= 0:
            if packet_at(env, p).crossing < env.passes:
                _print_row(env, p)
                return
            _hand_on(env, p)
            p = router.leave_out(env)
        if env.task_at <= env.now_ns and (env.in_rings == 0 or env.now_ns - env.turn_ns >= env.slice_ns):
            _run_task(env)
            env.turn_ns = env.now_ns
            continue
        p = router.leave_ring(env)
        if p >= 0:
            _print_row(env, p)
            return
        env.called = 0
        env.link_at = env.task_at
        return


@jit
def on_link(env: Any) -> None:
    """Handle the event of the link."""
    if env.link == DUMMYNET:
        _next_work(env)
        return
    if env.link == TRACE:
        _serve_opportunity(env)
    elif env.link == TICK:
        _accrue(env)
        _serve_tick(env)
    else:
        p = env.sending_packet
        deliver(env, p)
        start_sending(env, env.used_ns)


@jit
def _wake(env: Any) -> None:
    """Wake an idle link when a packet arrives."""
    if env.link == DUMMYNET:
        if env.idle_at < env.clock_ns:  # first packet of the tick
            env.sched_ns = env.clock_ns
            env.credit = 0.0
        _serve_pipe(env)
        return
    env.busy = 1
    if env.link == TRACE:
        _skip_to_now(env)
        env.link_at = opportunity_ns(env)
    elif env.link == TICK:
        # An idle pipe starts without credit: the first packet leaves at the next tick.
        env.credit = 0.0
        env.link_at = env.now_ns - env.now_ns % env.tick_ns + env.tick_ns
        env.sched_ns = env.link_at
    else:
        start_sending(env, env.now_ns)


@jit
def _drop_head(env: Any, index: int) -> None:
    """Drop the head of a queue because the buffer is over its limit."""
    observation.integrate(env)
    p = pop(env, queue_at(env, index))
    a = packet_at(env, p)
    if a.record >= 0:
        sojourns_of(env)[a.record] = PUSHED_OUT
    queue_at(env, a.cls).class_packets -= 1
    drop(env, index, p)


@shared
def enqueue_or_drop(env: Any, p: int, action: int) -> None:
    """Decide about a packet that arrives: by `action`, or by the discipline if it is -1."""
    a = packet_at(env, p)
    index = disciplines.classify(env, p)
    q = queue_at(env, index)
    a.crossing += 1
    a.cls = index if env.dual else (1 if tcp.is_l4s(a.ecn) else 0)
    c = queue_at(env, a.cls)
    c.offered += 1
    c.offered_bytes += a.len
    env.sent += 1
    row = observation.write_before(env, index, p)
    decided_by = 0
    if action >= 0 or env.decider == PROBABILITY:
        if action < 0:
            action = _foreign_action(env, index, a.ecn)
        logged = action
        applied = DROP if action == MARK and a.ecn == NOT_ECT else action
        disciplines.note_foreign_decision(env, index, applied)
        a.decided = 1
        decided_by = 1
    else:
        env.logged = -1
        applied = disciplines.decide_at_enqueue(env, index, p)
        logged = env.logged if env.logged >= 0 else applied
    if applied != DROP and not disciplines.has_room(env, p):
        applied = DROP
    env.applied = applied
    if row >= 0:
        observation.write_after(env, row, index, logged, applied, decided_by)
    disciplines.after_decision(env, index, applied)
    q.total_packets += 1
    q.total_bytes += a.len
    if applied == DROP:
        drop(env, index, p)
        return
    if applied == MARK:
        mark(env, p)
    a.enqueued_ns = clock_ns(env)
    a.record = row
    if c.class_packets == 0:
        observation.integrate(env)
    append(env, q, p)
    c.class_packets += 1
    disciplines.after_enqueue(env, index, p)
    over = disciplines.fullest(env)
    while over >= 0:
        _drop_head(env, over)
        over = disciplines.fullest(env)
    if env.busy == 0:
        _wake(env)
