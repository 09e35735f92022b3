"""The event loop, compiled once for all uses: native runs, single steps and batches.

`advance` takes the address of the batch's records: integers cost a Numba call next to nothing, arrays some
40 ns each. It runs environments [first, last) until each one needs an
action, reaches its stop time, ends, or has filled its log. A policy in the engine (`l4s_gym.sim.policy`) takes its
decisions on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, int64

from l4s_gym import compiled
from l4s_gym.sim import disciplines, evenness, link, observation, policy, router, sources, tcp
from l4s_gym.sim.events import first_slot, first_time, set_time, uniform
from l4s_gym.sim.jit import address_of, entry, jit, shared, short_entry
from l4s_gym.sim.layout import (
    AGENT,
    DECISION,
    DUMMYNET,
    ENV,
    FLOW,
    LOG_FULL,
    NEVER,
    NONE,
    PACKET,
    POLICY,
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
from l4s_gym.sim.memory import (
    atomic_load64,
    atomic_store64,
    env_record,
    flow_at,
    packet_at,
    pointer,
    prefetch,
    queue_at,
    rule_of,
    store64,
    trace_of,
)
from l4s_gym.sim.packets import pop_transit
from l4s_gym.sim.plugin import call_int

SPINS = 500_000
"""Reads of a control word before a thread sleeps, about half a millisecond: waking one takes 50 to 100 us."""
_ENV_SIZE, _QUEUE_SIZE, _FLOW_SIZE, _PACKET_SIZE = (kind.itemsize for kind in (ENV, QUEUE, FLOW, PACKET))


@jit
def _change_rate(env: Any) -> None:
    """Take the next step of the link's rate: see `setup.trace_array`; the steps of a trace repeat."""
    value = trace_of(env)[2 * env.trace_pos + 1]
    env.trace_pos += 1
    if env.trace_period_ns > 0:
        link.change_rate(env, value * 1.0)
        if env.trace_pos == env.trace_len:
            env.trace_pos = 0
            env.trace_cycle += 1
    else:
        link.change_rate(env, env.base_rate_bps * value * 1e-6)
    due = NEVER
    if env.trace_pos < env.trace_len:
        due = env.trace_cycle * env.trace_period_ns + trace_of(env)[2 * env.trace_pos]
    set_time(env, SLOT_RATE, due)


@jit
def _on_transit(env: Any, i: int) -> None:
    """Handle a packet of flow `i` at the end of a hop: at the bottleneck once more, or at its sender."""
    p = pop_transit(env, i)
    a = packet_at(env, p)
    if not a.ack or (env.acks_queued and a.crossing < env.passes):
        env.arriving = p
        return
    f = flow_at(env, i)
    tcp.on_ack(env, i, p)
    if f.running and f.una >= f.limit_seq:
        sources.complete(env, i)
    else:
        env.sending = i


@jit
def _dispatch(env: Any, slot: int) -> None:
    """Handle the event of a slot."""
    if slot >= SLOT_FLOWS:
        i = (slot - SLOT_FLOWS) >> 1
        if (slot - SLOT_FLOWS) & 1:
            sources.timer(env, i)
        else:
            _on_transit(env, i)
    elif slot == SLOT_RATE:
        _change_rate(env)
    else:
        disciplines.update(env, slot)


@jit
def _next_of(env: Any, i: int) -> int:
    """Return the next packet of the flow that is sending, or -1."""
    if flow_at(env, i).cc == NONE:
        env.sending = -1
        return sources.unresponsive_packet(env, i)
    return tcp.next_packet(env, i)


@shared
def run(env: Any, action: int) -> int:
    """Run one environment; return its status. `action` is for the packet that waits, if there is one."""
    if env.status == TERMINATED or env.status == TRUNCATED:
        return env.status
    if env.status == DECISION:
        p = env.arriving
        env.arriving = -1
        env.decisions += 1
        observation.note_decided(env, p)
        link.enqueue_or_drop(env, p, action)
    env.status = RUNNING
    spare = env.pool - env.n_flows - 2
    while True:
        if env.arriving >= 0:
            if env.log_capacity > 0 and env.log_rows >= env.log_capacity:
                env.status = LOG_FULL
                return LOG_FULL
            if env.link == DUMMYNET and router.waits_in_ring(env):
                continue
            if env.decider == AGENT or env.decider == POLICY:
                env.until_decision -= 1
                if env.until_decision <= 0:
                    env.until_decision = env.interval
                    p = env.arriving
                    observation.observe(env, disciplines.classify(env, p), p)
                    env.status = DECISION
                    return DECISION
            p = env.arriving
            env.arriving = -1
            action = -1
            if env.explore > 0.0 and uniform(env) < env.explore:
                action = int(3.0 * uniform(env))
            link.enqueue_or_drop(env, p, action)
            continue
        if env.sending >= 0:
            if env.in_flight >= spare:
                env.status = POOL_EMPTY
                return POOL_EMPTY
            p = _next_of(env, env.sending)
            if p < 0:
                env.sending = -1
            else:
                flow_at(env, packet_at(env, p).flow).packets += 1
                env.arriving = p
            continue
        if env.finite and env.unfinished == 0:
            env.status = TERMINATED
            return TERMINATED
        time_ns = first_time(env)
        link_first = env.link_at <= time_ns
        if link_first:
            time_ns = env.link_at
        if time_ns >= env.bucket_end_ns:
            if time_ns >= env.horizon_ns:
                env.now_ns = env.horizon_ns
                observation.integrate(env)
                env.status = TRUNCATED
                return TRUNCATED
            evenness.turn(env, time_ns)
        env.now_ns = time_ns
        env.events += 1
        if link_first:
            link.on_link(env)
            continue
        slot = first_slot(env)
        if slot == SLOT_STOP:
            set_time(env, SLOT_STOP, NEVER)
            observation.integrate(env)
            env.status = STOPPED
            return STOPPED
        _dispatch(env, slot)


@jit
def _next_job(control: int) -> int:
    """Wait for a job number other than the one that is done; -1 if none comes for a while."""
    done = atomic_load64(control + 8)
    for _ in range(SPINS):
        job = atomic_load64(control)
        if job != done:
            return job
    # From here on the thread sleeps, unless a job came just before the other side could see that.
    atomic_store64(control + 16, 0)
    job = atomic_load64(control)
    if job == done:
        return -1
    atomic_store64(control + 16, 1)
    return job


@short_entry
def advance_one(address: int) -> int:
    """Run the environment of an `ENV` record by its address, and write its results; return its status.

    A policy in the engine takes as many decisions as are left to it.
    """
    env = env_record(address)
    action = carray(pointer(env.action_at), (1,), np.int64)[0]
    earned = 0.0
    while True:
        if env.decider == POLICY and env.status == DECISION:
            if rule_of(env).left <= 0:
                status = DECISION
                break
            action = policy.decide(env)
        status = run(env, action)
        if status == LOG_FULL:  # the log is emptied during a step, whose reward counts as a whole
            break
        reward = observation.take_reward(env)
        earned += reward
        if env.decider != POLICY:
            break
        policy.note_reward(env, reward)
        if status != DECISION:
            break
    store64(env.status_at, status)
    carray(pointer(env.reward_at), (1,), np.float64)[0] = earned
    store64(env.applied_at, env.applied)
    return status


@jit
def _prefetch_rows(address: int) -> None:
    """Prefetch the rows used at nearly every packet of an environment, at fixed distances (`layout`, `Batch`)."""
    prefetch(address, 512)
    prefetch(address + _ENV_SIZE, 192)
    prefetch(address + _ENV_SIZE + _QUEUE_SIZE, 192)
    prefetch(address + _ENV_SIZE + 2 * _QUEUE_SIZE, 512)  # the event tree


@jit
def _prefetch_packet(env: Any, p: int) -> None:
    if p >= 0:
        prefetch(env.packet_at + p * _PACKET_SIZE, 64)


@jit
def _prefetch_found(address: int) -> None:
    """Prefetch what those rows refer to: the flow of the next event, and the packets that move next."""
    env = env_record(address)
    slot = first_slot(env)
    if slot >= SLOT_FLOWS:
        prefetch(env.flow_at + ((slot - SLOT_FLOWS) >> 1) * _FLOW_SIZE, 384)
    _prefetch_packet(env, env.arriving)
    _prefetch_packet(env, env.sending_packet)
    for index in range(2):
        _prefetch_packet(env, queue_at(env, index).head)
        _prefetch_packet(env, queue_at(env, index).tail)


@entry
def _advance(address: int, stride: int, first: int, last: int, control: int, one: int) -> None:
    """Run `advance`; `one` is the address of `advance_one`, so that the engine is compiled once."""
    job = 0
    while True:
        if control != 0:
            job = _next_job(control)
            if job < 0:
                return
        for n in range(first, last):
            at = address + n * stride
            # A large batch outgrows the caches: prefetch the next environment meanwhile.
            _prefetch_rows(at + 2 * stride)
            if n + 1 < last:
                _prefetch_found(at + stride)
            call_int(one, (at,))
        if control == 0:
            return
        atomic_store64(control + 8, job)


def advance(address: int, stride: int, first: int, last: int, control: int) -> None:
    """Run environments [first, last) of a batch.

    Args:
        address: Address of the first `ENV` record of the batch.
        stride: Bytes from one `ENV` record to the next.
        first: First environment.
        last: One past the last environment.
        control: 0: run once. Else the address of three int64 (number of the job given, number of the job done,
            whether the caller waits here): serve jobs until none comes for a while.

    Afterwards `status`, `applied` (int64), `reward` (float64) and `obs` (8 float32) of each are new.
    """
    _advance(address, stride, first, last, control, address_of(advance_one, int64))


def is_kept() -> bool:
    """Return whether the compiled engine is on disk."""
    return all(map(compiled.is_kept, (_advance, advance_one)))


@short_entry
def accept(given: npt.NDArray[np.int64], actions: npt.NDArray[np.int64]) -> bool:
    """Copy actions (n,) to where the engine reads them; False, with nothing copied, if one is not 0, 1 or 2."""
    for each in given:
        if each < 0 or each > 2:
            return False
    actions[:] = given
    return True


@short_entry
def highest(status: npt.NDArray[np.int64]) -> int:
    """Return the highest of the statuses (n,), in a tenth of NumPy's time."""
    found = status[0]
    for each in status:
        found = max(found, each)
    return found


@short_entry
def give_job(control: int, count: int, job: int) -> int:
    """Give job number `job` to `count` serving threads; return how many of them are asleep."""
    asleep = 0
    for k in range(count):
        place = control + (k << 6)
        atomic_store64(place, job)
        asleep += atomic_load64(place + 16) == 0
    return asleep


@entry
def await_jobs(control: int, count: int, job: int) -> bool:
    """Wait, without the GIL, until `count` serving threads have done job number `job`.

    Returns:
        Whether all are done; False after a while, or if a thread fell asleep before it was.
    """
    for k in range(count):
        place = control + (k << 6)
        spins = 0
        while atomic_load64(place + 8) != job:
            spins += 1
            if spins > SPINS or (spins & 255 == 0 and atomic_load64(place + 16) == 0):
                return False
    return True
