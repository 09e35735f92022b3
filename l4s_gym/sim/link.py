"""The bottleneck: packets in, queue discipline, link, packets out; and everything counted on the way.

`used_ns` is the time up to which the link is taken by what has left the queue: for a link of constant rate the end of
the packet that is being sent, to the fraction of a nanosecond; for one that serves at ticks, which lets packets go in
batches, the time at which the rate has paid for them; for a trace the delivery opportunity that was used last. So what
has left the queue but not yet crossed the link is known at any time (`Batch.carried_bytes`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.schema import CE, DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim import disciplines, receiver, record, router, tcp
from l4s_gym.sim.events import clock_ns, uniform
from l4s_gym.sim.jit import jit, shared
from l4s_gym.sim.layout import (
    CONSTANT,
    DUMMYNET,
    HIST_BINS,
    HIST_SHIFT,
    NEVER,
    PROBABILITY,
    SLOT_UPDATE_C,
    TICK,
    TRACE,
)
from l4s_gym.sim.memory import flow_at, hist_of, leading_zeros, log_at, packet_at, queue_at, trace_of
from l4s_gym.sim.packets import append, pop, push_transit, release

OPPORTUNITY_BYTES = 1504
"""What one delivery opportunity of a Mahimahi trace carries (packet and header of the emulator)."""


@jit
def delay_bin(delay_ns: int) -> int:
    """Bin of the delay histogram: of one 256 ns unit at first, then 2^`HIST_SHIFT` bins an octave."""
    units = delay_ns >> 8
    shift = max(63 - HIST_SHIFT - leading_zeros(units), 0)
    return min((shift << HIST_SHIFT) + (units >> shift), HIST_BINS - 1)


def bin_delays_ns() -> npt.NDArray[np.float64]:
    """Middle of each bin of the delay histogram, ns, (HIST_BINS,)."""
    bins = np.arange(HIST_BINS)
    shift = np.maximum((bins >> HIST_SHIFT) - 1, 0)
    return ((bins - (shift << HIST_SHIFT)) * 2.0**shift + 2.0**shift / 2.0) * 256.0


@jit
def ahead_bytes(env: Any) -> float:
    """What has left the queue and not yet crossed the link, bytes."""
    if env["link"] == TRACE:
        return float(env["left_bytes"]) if env["sending_packet"] >= 0 else 0.0
    return env["stalled_bytes"] + max(env["used_ns"] - env["now_ns"], 0.0) / env["ns_per_byte"]


@jit
def carried_bytes(env: Any, ahead: float) -> float:
    """What the link has carried since the counters were reset, bytes; `ahead` is not yet across."""
    return max(env["ahead_bytes"] + env["served_bytes"] - ahead, 0.0)


@jit
def drop(w: Any, index: int, p: int) -> None:
    """Drop a packet and count it."""
    q = queue_at(w, index)
    a = packet_at(w, p)
    q.drops += 1
    q.interval_drops += 1
    c = queue_at(w, a.cls)
    c.dropped += 1
    if a.ecn != NOT_ECT:
        c.dropped_ect += 1
    flow_at(w, a.flow).drops += 1
    w.dropped += 1
    release(w, p)


@jit
def mark(w: Any, p: int) -> None:
    """Set CE and count it (a packet that bears CE already counts again, as in the kernels)."""
    a = packet_at(w, p)
    a.ecn = CE
    queue_at(w, a.cls).marked += 1
    flow_at(w, a.flow).marks += 1


@jit
def _leave_queue(w: Any, index: int) -> int:
    """Take the head of a queue and account its sojourn."""
    q = queue_at(w, index)
    record.integrate(w)
    p = pop(w, q)
    a = packet_at(w, p)
    sojourn = clock_ns(w) - a.enqueued_ns
    q.delay_ns = sojourn
    c = queue_at(w, a.cls)
    c.class_packets -= 1
    c.class_delay_ns = sojourn
    relative = sojourn * (w.per_ref_l if a.cls == 1 else w.per_ref_c)
    c.normalised = relative / (1.0 + relative)
    return p


@shared
def dequeue(w: Any) -> int:
    """The next packet to send, or -1: the scheduler chooses, the discipline may mark or drop."""
    while True:
        index = disciplines.pick(w)
        if index < 0:
            return -1
        p = _leave_queue(w, index)
        a = packet_at(w, p)
        q = queue_at(w, index)
        action = ENQUEUE
        if a.decided == 0:
            action = disciplines.decide_at_dequeue(w, index, p)
            if action != ENQUEUE and a.record >= 0:
                log_at(w, a.record).action = action
                log_at(w, a.record).applied_action = action
        disciplines.after_dequeue(w, index, p, action)
        if action == DROP:
            drop(w, index, p)
            continue
        if action == MARK:
            mark(w, p)
        a.record = -1
        c = queue_at(w, a.cls)
        c.left += 1
        c.left_delay_ns += q.delay_ns
        c.max_delay_ns = max(c.max_delay_ns, q.delay_ns)
        hist_of(w, a.cls)[delay_bin(q.delay_ns)] += 1
        seconds = a.len * w.s_per_byte
        w.served_bytes += a.len
        w.served_s += seconds
        w.power_s += seconds * (1.0 - c.normalised)
        return p


@jit
def deliver(w: Any, p: int) -> None:
    """A packet has crossed the link."""
    w.delivered += 1
    _hand_on(w, p)


@jit
def _hand_on(w: Any, p: int) -> None:
    """On to the packet's next crossing, its receiver, or its sender."""
    a = packet_at(w, p)
    i = a.flow
    if a.ack or a.crossing < w.passes:
        push_transit(w, i, p)
    else:
        receiver.receive(w, i, p)


@jit
def _take(w: Any, p: int, since_ns: float) -> None:
    """Packet `p` takes the link from `since_ns` on, at its rate."""
    w.used_ns = since_ns + packet_at(w, p).len * 8e9 / w.rate_bps


@jit
def start_sending(w: Any, since_ns: float) -> None:
    """Send the next packet over a link of constant rate, which is free since `since_ns`, or let the link rest."""
    w.sending_packet = -1
    w.link_at = NEVER
    if w.rate_bps == 0.0:  # an outage: the packets wait in the queue
        w.busy = int(w.packets > 0)
        return
    p = dequeue(w)
    w.sending_packet = p
    if p < 0:
        w.busy = 0
        return
    w.busy = 1
    _take(w, p, since_ns)
    w.link_at = math.ceil(w.used_ns)


@jit
def _accrue(w: Any) -> None:
    """Credit of a link that serves at ticks, bits, up to now."""
    w.credit += max(w.now_ns - w.sched_ns, 0) * 1e-9 * w.rate_bps
    w.sched_ns = max(w.sched_ns, w.now_ns)


@jit
def change_rate(w: Any, rate_bps: float) -> None:
    """The link has another rate from now on, also for the packet that is being sent; 0: it stands still."""
    w.capacity_bytes += (w.now_ns - w.capacity_ns) * 1e-9 * w.rate_bps / 8.0
    w.capacity_ns = w.now_ns
    if w.link == TICK or (w.link == DUMMYNET and w.busy):
        _accrue(w)
    rest = w.stalled_bytes + max(w.used_ns - w.now_ns, 0.0) / w.ns_per_byte
    w.rate_bps = rate_bps
    w.ns_per_byte = 8e9 / rate_bps
    w.stalled_bytes = rest if rate_bps == 0.0 else 0.0
    w.used_ns = w.now_ns + (0.0 if rate_bps == 0.0 else rest * w.ns_per_byte)
    if w.link != CONSTANT or w.busy == 0:
        return
    if w.sending_packet < 0:
        start_sending(w, w.now_ns)
    else:
        w.link_at = NEVER if rate_bps == 0.0 else math.ceil(w.used_ns)


@jit
def opportunity_ns(w: Any) -> int:
    """Time of the trace's next delivery opportunity."""
    return w.trace_cycle * w.trace_period_ns + trace_of(w)[w.trace_pos]


@jit
def _skip_to_now(w: Any) -> None:
    """Move to the first opportunity that is not past (opportunities with an empty queue are lost)."""
    cycle = w.now_ns // w.trace_period_ns
    if cycle > w.trace_cycle:
        w.trace_cycle = cycle
        w.trace_pos = 0
    offset = w.now_ns - w.trace_cycle * w.trace_period_ns
    low = w.trace_pos
    high = w.trace_len
    while low < high:
        middle = (low + high) >> 1
        if trace_of(w)[middle] < offset:
            low = middle + 1
        else:
            high = middle
    if low == w.trace_len:
        w.trace_cycle += 1
        low = 0
    w.trace_pos = low


@jit
def _serve_opportunity(w: Any) -> None:
    """One delivery opportunity: up to `OPPORTUNITY_BYTES`, whole packets leave when their last byte is through."""
    w.used_ns = w.now_ns
    budget = OPPORTUNITY_BYTES
    while budget > 0:
        if w.sending_packet < 0:
            w.sending_packet = dequeue(w)
            if w.sending_packet < 0:
                break
            w.left_bytes = packet_at(w, w.sending_packet).len
        used = min(budget, w.left_bytes)
        budget -= used
        w.left_bytes -= used
        if w.left_bytes == 0:
            p = w.sending_packet
            w.sending_packet = -1
            deliver(w, p)
    w.trace_pos += 1
    if w.trace_pos == w.trace_len:
        w.trace_pos = 0
        w.trace_cycle += 1
    if w.sending_packet >= 0 or w.packets > 0:
        w.link_at = opportunity_ns(w)
    else:
        w.busy = 0
        w.link_at = NEVER


@jit
def _serve_tick(w: Any) -> None:
    """One kernel tick of dummynet: serve while there is credit (facts: dn_io's serve_sched).

    The credit is in bits; a packet may take it below zero and the next waits until it is paid off.
    """
    while w.credit >= 0.0:
        p = dequeue(w)
        if p < 0:
            w.busy = 0
            w.link_at = NEVER
            return
        w.credit -= packet_at(w, p).len * 8.0
        _take(w, p, max(w.used_ns, w.now_ns))
        deliver(w, p)
    next_tick = w.now_ns - w.now_ns % w.tick_ns + w.tick_ns
    w.link_at = next_tick


@jit
def _serve_pipe(w: Any) -> None:
    """dummynet's `serve_sched`: serve while there is credit, in bits; below zero, the pipe is busy until it is paid."""
    per_tick = w.tick_ns * 1e-9 * w.rate_bps
    w.credit += (w.clock_ns - w.sched_ns) / w.tick_ns * per_tick
    w.sched_ns = w.clock_ns
    last = -1
    while w.credit >= 0.0:
        last = dequeue(w)
        if last < 0:
            break
        w.credit -= packet_at(w, last).len * 8.0
        _take(w, last, max(w.used_ns, w.now_ns))
        router.enter_line(w, last)
        w.delivered += 1
    w.busy = 0
    if w.credit >= 0.0:
        w.idle_at = w.clock_ns
        return
    w.busy = 1
    ticks = math.ceil(-w.credit / per_tick) * w.tick_ns
    if last >= 0:
        packet_at(w, last).due_ns += ticks
    w.serve_at = w.clock_ns + ticks


@jit
def _run_task(w: Any) -> None:
    """dummynet's `dummynet_task`, and the controllers' updates that waited: `softclock` has the processor."""
    w.clock_ns = w.now_ns - w.now_ns % w.tick_ns
    w.task_at = w.clock_ns + w.tick_ns
    for index in range(2):
        if w.late & (1 << index):
            w.late &= ~(1 << index)
            if queue_at(w, index).active:
                disciplines.control(w, SLOT_UPDATE_C + index)
    if w.busy and w.serve_at <= w.clock_ns:
        _serve_pipe(w)
    router.transmit(w)


@jit
def _print_row(w: Any, p: int) -> None:
    """A packet enters the pipe: the processor is taken until its line is printed."""
    w.called = 2
    w.arriving = p
    w.link_at = w.now_ns + w.row_ns


@jit
def _next_work(w: Any) -> None:
    """What the router's processor does next (see `router`): up to the next line to print, or to sleep till the tick."""
    if w.called == 0:
        w.turn_ns = w.now_ns
    if w.now_ns >= w.pause_at:  # the machine stands still
        begun = w.pause_at >= 0
        w.pause_at = w.now_ns + int(-math.log(1.0 - uniform(w)) * w.pause_gap_ns)
        if begun:
            w.pause_at += w.pause_ns
            w.called = 1
            w.link_at = w.now_ns + w.pause_ns
            return
    while True:
        p = router.leave_out(w)
        while p >= 0:
            if packet_at(w, p).crossing < w.passes:
                _print_row(w, p)
                return
            _hand_on(w, p)
            p = router.leave_out(w)
        if w.task_at <= w.now_ns and (w.in_rings == 0 or w.now_ns - w.turn_ns >= w.slice_ns):
            _run_task(w)
            w.turn_ns = w.now_ns
            continue
        p = router.leave_ring(w)
        if p >= 0:
            _print_row(w, p)
            return
        w.called = 0
        w.link_at = w.task_at
        return


@jit
def on_link(w: Any) -> None:
    """The link's slot has fired."""
    if w.link == DUMMYNET:
        _next_work(w)
        return
    if w.link == TRACE:
        _serve_opportunity(w)
    elif w.link == TICK:
        _accrue(w)
        _serve_tick(w)
    else:
        p = w.sending_packet
        deliver(w, p)
        start_sending(w, w.used_ns)


@jit
def _wake(w: Any) -> None:
    """A packet waits and the link rests."""
    if w.link == DUMMYNET:
        if w.idle_at < w.clock_ns:  # the tick's first packet
            w.sched_ns = w.clock_ns
            w.credit = 0.0
        _serve_pipe(w)
        return
    w.busy = 1
    if w.link == TRACE:
        _skip_to_now(w)
        w.link_at = opportunity_ns(w)
    elif w.link == TICK:
        # An idle pipe starts without credit: the first packet leaves at the next tick.
        w.credit = 0.0
        w.link_at = w.now_ns - w.now_ns % w.tick_ns + w.tick_ns
        w.sched_ns = w.link_at
    else:
        start_sending(w, w.now_ns)


@jit
def _foreign_action(w: Any, index: int, ecn: int) -> int:
    """The action that the given probabilities yield for a packet (`L4S-DualPI2-Prob-v0`)."""
    prob = w.p_l if index == 1 else w.p_c
    if w.even:
        count = (w.recur_l if index == 1 else w.recur_c) + prob
        hit = count > 1.0
        if hit:
            count -= 1.0
        if index == 1:
            w.recur_l = count
        else:
            w.recur_c = count
    else:
        hit = uniform(w) < prob
    if not hit:
        return ENQUEUE
    return MARK if ecn != NOT_ECT else DROP


@jit
def _drop_head(w: Any, index: int) -> None:
    """The buffer is over its limit: the head of a queue goes."""
    record.integrate(w)
    p = pop(w, queue_at(w, index))
    queue_at(w, packet_at(w, p).cls).class_packets -= 1
    drop(w, index, p)


@shared
def arrive(w: Any, p: int, action: int) -> None:
    """A packet arrives at the bottleneck and is decided: by `action`, or by the discipline where that is -1."""
    a = packet_at(w, p)
    index = disciplines.classify(w, p)
    q = queue_at(w, index)
    a.crossing += 1
    a.cls = index if w.dual else (1 if tcp.is_l4s(a.ecn) else 0)
    c = queue_at(w, a.cls)
    c.offered += 1
    c.offered_bytes += a.len
    w.sent += 1
    row = record.write_before(w, index, p)
    decided_by = 0
    if action >= 0 or w.decider == PROBABILITY:
        if action < 0:
            action = _foreign_action(w, index, a.ecn)
        logged = action
        applied = DROP if action == MARK and a.ecn == NOT_ECT else action
        disciplines.note_foreign_decision(w, index, applied)
        a.decided = 1
        decided_by = 1
    else:
        w.logged = -1
        applied = disciplines.decide_at_enqueue(w, index, p)
        logged = w.logged if w.logged >= 0 else applied
    if applied != DROP and not disciplines.has_room(w, p):
        applied = DROP
    w.applied = applied
    if row >= 0:
        record.write_after(w, row, index, logged, applied, decided_by)
    disciplines.after_decision(w, index, applied)
    q.total_packets += 1
    q.total_bytes += a.len
    if applied == DROP:
        drop(w, index, p)
        return
    if applied == MARK:
        mark(w, p)
    a.enqueued_ns = clock_ns(w)
    a.record = row
    if c.class_packets == 0:
        record.integrate(w)
    append(w, q, p)
    c.class_packets += 1
    disciplines.after_enqueue(w, index, p)
    over = disciplines.fullest(w)
    while over >= 0:
        _drop_head(w, over)
        over = disciplines.fullest(w)
    if w.busy == 0:
        _wake(w)
