"""DualPI2 as RFC 9332 appendix A writes it: real numbers, AQM at dequeue, `recur()` instead of a draw."""

from __future__ import annotations

from typing import Any

from l4s_gym.schema import DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import packet_at, queue_at


@public
def update_probability(
    prob: float,
    current_ns: int,
    previous_ns: int,
    target_ns: int = 15_000_000,
    alpha_hz: float = 0.16,
    beta_hz: float = 3.2,
) -> float:
    """One step of the PI controller (RFC 9332 appendix A.1, figure 6).

    Args:
        prob: Base probability p' in [0, 1].
        current_ns: The larger of both queues' delays, ns.
        previous_ns: The same at the last update, ns.
        target_ns: Target delay, ns.
        alpha_hz: Integral gain, Hz per update.
        beta_hz: Proportional gain, Hz per update.

    Returns:
        The new p', clamped to [0, 1].
    """
    step = alpha_hz * (current_ns - target_ns) * 1e-9 + beta_hz * (current_ns - previous_ns) * 1e-9
    return min(max(prob + step, 0.0), 1.0)


@public
def laqm(delay_ns: int, min_th_ns: int = 800_000, range_ns: int = 400_000) -> float:
    """Native L4S marking probability: a ramp from 0 at `min_th_ns` to 1 at `min_th_ns + range_ns`."""
    if delay_ns <= min_th_ns:
        return 0.0
    if delay_ns >= min_th_ns + range_ns:
        return 1.0
    return (delay_ns - min_th_ns) / range_ns


@public
def recur(count: float, likelihood: float) -> tuple[bool, float]:
    """Evenly spread hits: (hit, new count); a hit when the sum of likelihoods exceeds 1 (strictly)."""
    count += likelihood
    if count > 1.0:
        return True, count - 1.0
    return False, count


@public
def decide_l4s(
    prob: float,
    delay_ns: int,
    queue_packets: int,
    count: float,
    ecn: int,
    coupling: float = 2.0,
    min_th_ns: int = 800_000,
    range_ns: int = 400_000,
    th_len: int = 1,
) -> tuple[int, float]:
    """Decision for an L packet at dequeue: (action, new count).

    Args:
        prob: Base probability p'.
        delay_ns: Sojourn of this packet, ns.
        queue_packets: Packets in L when the packet was at its head (itself included).
        count: State of `recur`.
        ecn: ECN codepoint.
        coupling: k.
        min_th_ns: Foot of the ramp, ns.
        range_ns: Width of the ramp, ns.
        th_len: No native mark while L holds at most this many packets.
    """
    coupled = coupling * prob
    if coupled < 1.0:
        native = laqm(delay_ns, min_th_ns, range_ns) if queue_packets > th_len else 0.0
        hit, count = recur(count, max(native, coupled))
    else:
        hit, count = recur(count, prob * prob)
        if hit:
            return DROP, count
        hit, count = recur(count, min(coupled, 1.0))
    if not hit:
        return ENQUEUE, count
    return (MARK if ecn != NOT_ECT else DROP), count


@public
def decide_classic(prob: float, count: float, ecn: int, p_c_max: float = 0.25) -> tuple[int, float]:
    """Decision for a C packet at dequeue, by p_C = p'^2: (action, new count)."""
    hit, count = recur(count, prob * prob)
    if not hit:
        return ENQUEUE, count
    return (DROP if ecn == NOT_ECT or prob * prob >= p_c_max else MARK), count


@jit
def pick_time_shifted(env: Any) -> int:
    """Time-shifted FIFO (RFC 9332 section 4.1.1): serve L unless C's head has waited `shift_ns` longer."""
    l_delay = env.now_ns - packet_at(env, queue_at(env, 1).head).enqueued_ns
    c_delay = env.now_ns - packet_at(env, queue_at(env, 0).head).enqueued_ns
    return 1 if l_delay + env.shift_ns >= c_delay else 0


@jit
def pick(env: Any) -> int:
    """Conditional priority: weighted round robin with C's share `classic_weight`, or time-shifted FIFO."""
    if queue_at(env, 1).packets == 0:
        return 0 if queue_at(env, 0).packets > 0 else -1
    if queue_at(env, 0).packets == 0:
        return 1
    if env.shift_ns > 0:
        return pick_time_shifted(env)
    return 1 if env.wrr_credit <= 0.0 else 0


@jit
def charge(env: Any, index: int, length: int) -> None:
    """Account a served packet to the round robin; the credit moves only while the other queue waits."""
    if queue_at(env, 0).packets == 0 and queue_at(env, 1).packets == 0:
        env.wrr_credit = -1514.0 * (1.0 - 2.0 * env.classic_weight)
    elif queue_at(env, 1 - index).packets > 0:
        if index == 1:
            env.wrr_credit += env.classic_weight * length
        else:
            env.wrr_credit -= (1.0 - env.classic_weight) * length


@jit
def decide(env: Any, q: Any, index: int, sojourn_ns: int, ecn: int) -> int:
    """The engine's call at dequeue (the packet has been removed from its queue)."""
    if index == 1:
        action, q.recur = decide_l4s(
            env.prob, sojourn_ns, q.packets + 1, q.recur, ecn, env.coupling, env.min_th_ns, env.range_ns, env.th_len
        )
    else:
        action, q.recur = decide_classic(env.prob, q.recur, ecn, env.p_c_max)
    return action
