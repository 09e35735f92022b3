"""DualPI2 as RFC 9332 appendix A writes it: AQM at dequeue, `recur()` instead of a draw; in integers.

The appendix computes with real numbers. Here every value is a signed integer of 64 bits, so that another
implementation of the same arithmetic, in a kernel without floating point too, gives the same decisions to the last
packet: probabilities are multiples of 2^-32 (`ONE` is 1), gains 2^-48 per ns, k 1/256, the weight of C 1/65536.
Divisions and shifts round towards minus infinity; no intermediate value leaves 64 bits.
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.schema import DROP, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import packet_at, queue_at

ONE: Final = 1 << 32
"""Probability 1."""
LONGEST_NS: Final = (1 << 31) - 1
"""Longer delays (2.1 s) count as this long in the controller; the widest ramp of L too."""
MOST_GAIN: Final = 1 << 30
MOST_COUPLING: Final = 1 << 16
WEIGHT_ONE: Final = 1 << 16
MTU: Final = 1514


def scale_gain(gain_hz: float) -> int:
    """A gain in Hz in units of 2^-48 per ns, the nearest: 0.16 -> 45036, 3.2 -> 900720."""
    return round(gain_hz * (1 << 48) / 1e9)


@public
def update_probability(
    prob: int,
    current_ns: int,
    previous_ns: int,
    target_ns: int = 15_000_000,
    alpha: int = 45_036,
    beta: int = 900_720,
) -> int:
    """One step of the PI controller (RFC 9332 appendix A.1, figure 6).

    Args:
        prob: Base probability p', 2^-32, from 0 to `ONE`.
        current_ns: The larger of both queues' delays, ns; more than `LONGEST_NS` counts as that.
        previous_ns: The same at the last update, ns.
        target_ns: Target delay, ns.
        alpha: Integral gain as `scale_gain` gives it.
        beta: Proportional gain as `scale_gain` gives it.

    Returns:
        The new p', 2^-32, clamped to 0 and `ONE`.
    """
    current = min(current_ns, LONGEST_NS)
    previous = min(previous_ns, LONGEST_NS)
    step = (alpha * (current - target_ns) + beta * (current - previous)) >> 16
    return min(max(prob + step, 0), ONE)


@public
def square(prob: int) -> int:
    """The square of a probability, 2^-32; of the 33 bits the last is left out, so that 64 hold the product."""
    half = prob >> 1
    return (half * half) >> 30


@public
def laqm(delay_ns: int, min_th_ns: int = 800_000, range_ns: int = 400_000) -> int:
    """Native L4S marking probability, 2^-32: a ramp from 0 at `min_th_ns` to `ONE` at `min_th_ns + range_ns`."""
    if delay_ns <= min_th_ns:
        return 0
    if delay_ns >= min_th_ns + range_ns:
        return ONE
    return ((delay_ns - min_th_ns) << 32) // range_ns


@public
def recur(count: int, likelihood: int) -> tuple[bool, int]:
    """Evenly spread hits, both in 2^-32: (hit, new count); a hit when the sum exceeds `ONE` (strictly)."""
    count += likelihood
    if count > ONE:
        return True, count - ONE
    return False, count


@public
def decide_l4s(
    prob: int,
    delay_ns: int,
    queue_packets: int,
    count: int,
    ecn: int,
    coupling: int = 512,
    min_th_ns: int = 800_000,
    range_ns: int = 400_000,
    th_len: int = 1,
) -> tuple[int, int]:
    """Decision for an L packet at dequeue: (action, new count).

    Args:
        prob: Base probability p', 2^-32.
        delay_ns: Sojourn of this packet, ns.
        queue_packets: Packets in L when the packet was at its head (itself included).
        count: State of `recur`, 2^-32.
        ecn: ECN codepoint.
        coupling: k, 1/256.
        min_th_ns: Foot of the ramp, ns.
        range_ns: Width of the ramp, ns.
        th_len: No native mark while L holds at most this many packets.
    """
    coupled = (prob * coupling) >> 8
    if coupled < ONE:
        native = laqm(delay_ns, min_th_ns, range_ns) if queue_packets > th_len else 0
        hit, count = recur(count, max(native, coupled))
    else:
        hit, count = recur(count, square(prob))
        if hit:
            return DROP, count
        hit, count = recur(count, ONE)
    if not hit:
        return ENQUEUE, count
    return (MARK if ecn != NOT_ECT else DROP), count


@public
def decide_classic(prob: int, count: int, ecn: int, p_c_max: int = 1 << 30) -> tuple[int, int]:
    """Decision for a C packet at dequeue, by p_C = p'^2, all in 2^-32: (action, new count)."""
    p_c = square(prob)
    hit, count = recur(count, p_c)
    if not hit:
        return ENQUEUE, count
    return (DROP if ecn == NOT_ECT or p_c >= p_c_max else MARK), count


@public
def in_records(prob: int) -> int:
    """A probability or count of 2^-32 in the unit of the records, 1/(2^31 - 1), rounded down."""
    return (prob * MAX_PROB) >> 32


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
    return 1 if env.wrr_credit <= 0 else 0


@jit
def charge(env: Any, index: int, length: int) -> None:
    """Account a served packet to the round robin (1/65536 byte); the credit moves only while the other queue waits."""
    if queue_at(env, 0).packets == 0 and queue_at(env, 1).packets == 0:
        env.wrr_credit = -MTU * (WEIGHT_ONE - 2 * env.classic_weight)
    elif queue_at(env, 1 - index).packets > 0:
        if index == 1:
            env.wrr_credit += env.classic_weight * length
        else:
            env.wrr_credit -= (WEIGHT_ONE - env.classic_weight) * length


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
