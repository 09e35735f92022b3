"""DualPI2 of the Linux kernel (sch_dualpi2, 6.17): its integers, its random draws, AQM at dequeue."""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.schema import DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.events import random32
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import queue_at

MAX_PROB: Final = (1 << 32) - 1
"""Probability 1 of this qdisc."""
PSCHED_MTU: Final = 1514


@public
def scale_gain(gain: int) -> int:
    """A gain of iproute2 (1/256 Hz) in the kernel's units, as `dualpi2_scale_alpha_beta`: 41 -> 44, 819 -> 879."""
    return (gain * MAX_PROB // 4) // 1_000_000_000


@public
def update_probability(
    prob: int,
    current_ns: int,
    previous_ns: int,
    target_ns: int = 15_000_000,
    alpha: int = 44,
    beta: int = 879,
    drop_overload: bool = True,
    coupling: int = 2,
) -> int:
    """One step of the PI controller (`calculate_probability`).

    Args:
        prob: Base probability p', 1/(2^32 - 1).
        current_ns: The larger of both queues' head delays, ns.
        previous_ns: The same at the last update, ns.
        target_ns: Target, ns.
        alpha: Integral gain as `scale_gain` gives it.
        beta: Proportional gain as `scale_gain` gives it.
        drop_overload: Whether overload drops; if not, p' is capped at 1/coupling.
        coupling: k.

    Returns:
        The new p', 1/(2^32 - 1), saturated at 0 and 1.
    """
    delta = (current_ns - target_ns) * alpha + (current_ns - previous_ns) * beta
    if delta > 0:
        prob += delta >> 6
    else:
        prob -= (-delta) >> 6
    prob = min(max(prob, 0), MAX_PROB)
    if not drop_overload:
        prob = min(prob, MAX_PROB // coupling)
    return prob


@public
def decide_classic(prob: int, ecn: int, overload: bool, random_1: int, random_2: int) -> int:
    """Decision for a C packet: two rolls against p' (the square), random numbers in [0, 2^32)."""
    if random_1 <= prob and random_2 <= prob:
        return DROP if overload or ecn == NOT_ECT else MARK
    return ENQUEUE


@public
def decide_l4s(
    prob: int,
    ecn: int,
    overload: bool,
    random_1: int,
    random_2: int,
    coupling: int = 2,
    drop_overload: bool = True,
) -> int:
    """Decision for an L packet by the coupled probability (the step threshold is tested apart)."""
    if not overload:
        if random_1 <= prob * coupling:
            return DROP if ecn == NOT_ECT else MARK
        return ENQUEUE
    if drop_overload and random_1 <= prob and random_2 <= prob:
        return DROP
    return DROP if ecn == NOT_ECT else MARK


@jit
def decide(env: Any, index: int, sojourn_ns: int, ecn: int, step_ok: bool, length: int) -> int:
    """The engine's call at dequeue (`must_drop` and the step; the packet has been removed)."""
    random_1 = random32(env)
    random_2 = random32(env)
    action = ENQUEUE
    # The kernel tests the backlog before the packet leaves it.
    if queue_at(env, 0).bytes + queue_at(env, 1).bytes + length >= 2 * PSCHED_MTU:
        overload = env.prob_fixed * env.coupling > MAX_PROB
        if index == 0:
            action = decide_classic(env.prob_fixed, ecn, overload, random_1, random_2)
        else:
            action = decide_l4s(
                env.prob_fixed, ecn, overload, random_1, random_2, env.coupling, env.drop_on_overload != 0
            )
    if index == 1 and action != DROP and step_ok and sojourn_ns > env.step_ns:
        action = DROP if ecn == NOT_ECT else MARK
    return action


@jit
def pick(env: Any) -> int:
    """Credit-based weighted round robin (`dequeue_packet`); -1 where all is empty."""
    if queue_at(env, 1).packets > 0 and (queue_at(env, 0).packets == 0 or env.wrr_credit <= 0):
        return 1
    if queue_at(env, 0).packets > 0:
        return 0
    return -1


@jit
def charge(env: Any, index: int, length: int) -> None:
    """Account a served packet: L adds wc x len, C subtracts wl x len (percent), only while the other queue waits."""
    wc = env.classic_weight
    if queue_at(env, 1 - index).packets > 0:
        if index == 1:
            env.wrr_credit += wc * length
        else:
            env.wrr_credit -= (100 - wc) * length


@jit
def reset_credit(env: Any) -> None:
    """Both queues are empty: the credit starts anew, in favour of L."""
    env.wrr_credit = PSCHED_MTU * (2 * env.classic_weight - 100)
