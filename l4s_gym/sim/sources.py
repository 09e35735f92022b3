"""Applications: bulk transfers, constant and on/off senders, and users who fetch short pages."""

from __future__ import annotations

import math
from typing import Any

from l4s_gym.sim import evenness, receiver, tcp
from l4s_gym.sim.events import host_uniform, set_time
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.layout import BULK, CBR, NEVER, NONE, ONOFF, SLOT_FLOWS, WEB
from l4s_gym.sim.memory import flow_at, packet_at
from l4s_gym.sim.packets import allocate, arm, renew
from l4s_gym.sim.receiver import HEADER_LEN


@jit
def exponential(env: Any, mean_ns: float) -> int:
    """Draw an exponentially distributed time, ns."""
    return int(-math.log(1.0 - host_uniform(env)) * mean_ns)


@public
def bounded_pareto(number: float, shape: float, low: float, high: float) -> float:
    """Return the inverse distribution function of the bounded Pareto distribution (flow sizes of the web)."""
    if high <= low:
        return low
    ratio = (low / high) ** shape
    return low / (1.0 - number * (1.0 - ratio)) ** (1.0 / shape)


@jit
def _offer(f: Any, size_bytes: int) -> None:
    """Give the transport `size_bytes` more to send."""
    payload = f.mss - HEADER_LEN
    segments = (size_bytes + payload - 1) // payload
    f.limit_seq = f.nxt + segments
    f.last_len = f.mss if segments == 0 else size_bytes - (segments - 1) * payload + HEADER_LEN


@jit
def start(env: Any, i: int) -> None:
    """Start a flow, a page or a burst."""
    f = flow_at(env, i)
    f.app_at = NEVER
    f.running = 1
    f.began_ns = env.now_ns
    if f.cc == NONE:
        f.app_at = env.now_ns
        f.on_until_ns = NEVER
        if f.app == ONOFF:
            f.on_until_ns = env.now_ns + exponential(env, f.mean_on_ns)
        arm(env, i, f.app_at)
        return
    tcp.restart(env, i)
    evenness.note_flow(env, f, 1)
    if f.app == WEB:
        _offer(f, int(bounded_pareto(host_uniform(env), f.size_shape, f.size_min, f.size_max)))
    elif f.finite:
        _offer(f, int(f.size_min))
    if f.nxt >= f.limit_seq and f.una >= f.limit_seq:
        complete(env, i)
    else:
        env.sending = i


@jit
def complete(env: Any, i: int) -> None:
    """Complete a finite transfer: record its time; a web user thinks, then fetches the next page."""
    f = flow_at(env, i)
    f.running = 0
    f.completed += 1
    f.completion_s += (env.now_ns - f.began_ns) * 1e-9
    f.rto_at = NEVER
    if f.app == WEB:
        f.app_at = env.now_ns + exponential(env, f.mean_off_ns)
        arm(env, i, f.app_at)
    elif f.app == BULK and f.done == 0:
        evenness.note_flow(env, f, -1)
        f.done = 1
        env.unfinished -= 1


@jit
def unresponsive_packet(env: Any, i: int) -> int:
    """Return the packet that a constant or on/off sender sends now, and set the time of the next one."""
    f = flow_at(env, i)
    if env.now_ns >= f.on_until_ns:
        f.running = 0
        f.app_at = env.now_ns + exponential(env, f.mean_off_ns)
        arm(env, i, f.app_at)
        return -1
    p = allocate(env)
    renew(env, p, i, 0)
    a = packet_at(env, p)
    a.len = f.mss
    a.ecn = f.ecn
    a.seq = f.nxt
    a.sent_ns = env.now_ns
    f.nxt += 1
    f.app_at = env.now_ns + max(int(f.mss * 8e9 / f.rate_bps), 1)
    arm(env, i, f.app_at)
    return p


@jit
def timer(env: Any, i: int) -> None:
    """Handle the flow's timer: do what is due, and set the next deadline."""
    f = flow_at(env, i)
    now = env.now_ns
    set_time(env, SLOT_FLOWS + 2 * i + 1, NEVER)
    if f.delack_at <= now:
        receiver.acknowledge_delayed(env, i)
    if f.rto_at <= now:
        if f.una < f.nxt:
            tcp.on_timeout(env, i)
            env.sending = i
        else:
            f.rto_at = NEVER
    if f.held_back and f.pace_at <= now:
        f.held_back = 0
        env.sending = i
    if f.app_at <= now:
        if f.running and (f.app == CBR or f.app == ONOFF):
            env.sending = i
        else:
            start(env, i)
    deadline = min(f.delack_at, f.rto_at)
    if f.held_back:
        deadline = min(deadline, f.pace_at)
    if f.app_at > now:
        deadline = min(deadline, f.app_at)
    arm(env, i, deadline)
