"""The event loop, compiled once for everything: native runs, single steps and batches.

`advance` takes the address of the batch's records: integers cost a Numba call next to nothing, arrays some
40 ns each. It runs environments [first, last) until each one needs an
action, reaches its stop time, ends, or has filled its log.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from l4s_gym.sim import disciplines, link, record, sources, tcp
from l4s_gym.sim.events import first_slot, first_time, set_time
from l4s_gym.sim.jit import entry, jit
from l4s_gym.sim.layout import (
    AGENT,
    DECISION,
    ENV,
    FLOW,
    LOG_FULL,
    NEVER,
    NONE,
    PACKET,
    POOL_EMPTY,
    QUEUE,
    RUNNING,
    SLOT_FLOWS,
    SLOT_RATE,
    SLOT_STOP,
    STOPPED,
    TERMINATED,
    TRUNCATED,
)
from l4s_gym.sim.memory import env_record, flow_at, packet_at, pointer, prefetch, prefetch_lines, trace_of
from l4s_gym.sim.pool import pop_transit

_ENV_SIZE, _QUEUE_SIZE, _FLOW_SIZE, _PACKET_SIZE = ENV.itemsize, QUEUE.itemsize, FLOW.itemsize, PACKET.itemsize
_HOT_FLOW_LINES = 6
AHEAD = 16
"""Batches (or slices of one) larger than this are worth looking ahead."""


@jit
def _change_rate(w: Any) -> None:
    """The next step of the link's rate: `trace` holds pairs (time ns, factor in 1e-6)."""
    env = w
    env.capacity_bytes += (env.now_ns - env.capacity_ns) * 1e-9 * env.rate_bps / 8.0
    env.capacity_ns = env.now_ns
    env.rate_bps = env.base_rate_bps * trace_of(w)[2 * env.trace_pos + 1] * 1e-6
    env.ns_per_byte = 8e9 / env.rate_bps
    env.trace_pos += 1
    set_time(w, SLOT_RATE, trace_of(w)[2 * env.trace_pos] if env.trace_pos < env.trace_len else NEVER)


@jit
def _on_transit(w: Any, i: int) -> None:
    """A packet of flow `i` ends a hop: at the bottleneck once more, or at its sender."""
    env = w
    p = pop_transit(w, i)
    a = packet_at(w, p)
    if not a.ack or (env.acks_queued and a.crossing < env.passes):
        env.arriving = p
        return
    f = flow_at(w, i)
    tcp.on_ack(w, i, p)
    if f.running and f.una >= f.limit_seq:
        sources.complete(w, i)
    else:
        env.sending = i


@jit
def _dispatch(w: Any, slot: int) -> None:
    """Handle the event of a slot."""
    if slot >= SLOT_FLOWS:
        i = (slot - SLOT_FLOWS) >> 1
        if (slot - SLOT_FLOWS) & 1:
            sources.timer(w, i)
        else:
            _on_transit(w, i)
    elif slot == SLOT_RATE:
        _change_rate(w)
    else:
        disciplines.update(w, slot)


@jit
def _next_of(w: Any, i: int) -> int:
    """The next packet of the flow that is sending, or -1."""
    if flow_at(w, i).cc == NONE:
        w.sending = -1
        return sources.unresponsive_packet(w, i)
    return tcp.next_packet(w, i)


@jit
def run(w: Any, action: int) -> int:
    """Run one environment; why it came back. `action` is for the packet that waits, if one does."""
    env = w
    if env.status == TERMINATED or env.status == TRUNCATED:
        return env.status
    if env.status == DECISION:
        p = env.arriving
        env.arriving = -1
        env.decisions += 1
        record.note_decided(w, p)
        link.arrive(w, p, action)
    env.status = RUNNING
    spare = env.pool - env.n_flows - 2
    while True:
        if env.arriving >= 0:
            if env.log_capacity > 0 and env.log_rows >= env.log_capacity:
                env.status = LOG_FULL
                return LOG_FULL
            if env.decider == AGENT:
                env.until_decision -= 1
                if env.until_decision <= 0:
                    env.until_decision = env.interval
                    p = env.arriving
                    record.observe(w, disciplines.classify(env, packet_at(w, p).ecn), p)
                    env.status = DECISION
                    return DECISION
            p = env.arriving
            env.arriving = -1
            link.arrive(w, p, -1)
            continue
        if env.sending >= 0:
            if env.in_flight >= spare:
                env.status = POOL_EMPTY
                return POOL_EMPTY
            p = _next_of(w, env.sending)
            if p < 0:
                env.sending = -1
            else:
                flow_at(w, packet_at(w, p).flow).packets += 1
                env.arriving = p
            continue
        if env.finite and env.unfinished == 0:
            env.status = TERMINATED
            return TERMINATED
        time_ns = first_time(w)
        link_first = env.link_at <= time_ns
        if link_first:
            time_ns = env.link_at
        if time_ns >= env.horizon_ns:
            env.now_ns = env.horizon_ns
            record.integrate(w)
            env.status = TRUNCATED
            return TRUNCATED
        env.now_ns = time_ns
        env.events += 1
        if link_first:
            link.on_link(w)
            continue
        slot = first_slot(w)
        if slot == SLOT_STOP:
            set_time(w, SLOT_STOP, NEVER)
            record.integrate(w)
            env.status = STOPPED
            return STOPPED
        _dispatch(w, slot)


@jit
def _look_ahead(address: int, stride: int, n: int, last: int) -> None:
    """Ask for what the next environments will touch, each at the time when it is known where it lies.

    A large batch does not fit into the cache, and a decision touches some 40 lines: waiting for one after the
    other costs more than the work on them.
    """
    if n + 3 < last:
        prefetch_lines(address + (n + 3) * stride, _ENV_SIZE >> 6)
    if n + 2 < last:
        w = env_record(address + (n + 2) * stride)
        prefetch_lines(w.queue_at, (2 * _QUEUE_SIZE) >> 6)
        prefetch_lines(w.tree_at, w.leaves >> 2)
        prefetch(w.packet_at + w.arriving * _PACKET_SIZE)
        prefetch(w.packet_at + w.sending_packet * _PACKET_SIZE)
        prefetch(w.packet_at + w.free * _PACKET_SIZE)
    if n + 1 < last:
        w = env_record(address + (n + 1) * stride)
        if w.arriving >= 0:
            prefetch_lines(w.flow_at + packet_at(w, w.arriving).flow * _FLOW_SIZE, _HOT_FLOW_LINES)
        if w.sending_packet >= 0:
            prefetch_lines(w.flow_at + packet_at(w, w.sending_packet).flow * _FLOW_SIZE, _HOT_FLOW_LINES)
        slot = first_slot(w)
        if slot >= SLOT_FLOWS:
            i = (slot - SLOT_FLOWS) >> 1
            prefetch_lines(w.flow_at + i * _FLOW_SIZE, _HOT_FLOW_LINES)
            prefetch(w.packet_at + flow_at(w, i).transit_head * _PACKET_SIZE)


@entry
def advance(address: int, stride: int, first: int, last: int) -> None:
    """Run environments [first, last) of a batch.

    Args:
        address: Address of the first `ENV` record of the batch.
        stride: Bytes from one `ENV` record to the next.
        first: First environment.
        last: One past the last environment.

    Afterwards `status` (int64), `reward` (float64) and `obs` (8 float32) of each environment are new.
    """
    for n in range(first, last):
        if last - first > AHEAD:
            _look_ahead(address, stride, n, last)
        w = env_record(address + n * stride)
        action = carray(pointer(w.action_at), (1,), np.int64)
        status = carray(pointer(w.status_at), (1,), np.int64)
        reward = carray(pointer(w.reward_at), (1,), np.float64)
        applied = carray(pointer(w.applied_at), (1,), np.int64)
        status[0] = run(w, action[0])
        reward[0] = record.take_reward(w)
        applied[0] = w.applied
