"""DualPI2 of the Linux kernel (sch_dualpi2, 6.17): its integers, its random draws, AQM at dequeue.

Bytes are those of the qdisc behind an Ethernet device of MTU 1500: each packet counts with its link header
(`LINK_HEADER`) in the backlog and in the round robin's credit, and `PSCHED_MTU` is a full frame.

Not modelled: drops at enqueue (`drop_enqueue`) and the splitting of GSO packets (each packet here is one segment); the
memory limit (`memlimit`, of socket buffers with their overhead: the buffer counts packets or IP bytes); other ways into
L than ECT(1) and CE (`any_ect`, priorities, filters with their class without AQM), so that L holds no Not-ECT packets;
times saturated at 2^32 ns; a timer that fires late; a parent qdisc that does not ask an empty one for packets (behind
`htb` the credit is not reset when both queues run empty); the second count of a packet that PI and step both mark.
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.schema import DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.events import random32
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import queue_at

MAX_PROB: Final = (1 << 32) - 1
"""Probability 1 of this qdisc."""
LINK_HEADER: Final = 14
"""Bytes of a frame around the IP packet."""
PSCHED_MTU: Final = 1500 + LINK_HEADER
MOST_COUPLING: Final = 255


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

    The kernel keeps 32 bits of the sum and takes it for out of range where it lies on the wrong side of the old value;
    so a step of 2^32 and more (a delay that grows by 0.3 s within an interval) loses its upper bits.

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
        The new p', 1/(2^32 - 1).
    """
    delta = (current_ns - target_ns) * alpha + (current_ns - previous_ns) * beta
    step = abs(delta) >> 6
    if delta > 0:
        new = (prob + step) & MAX_PROB
        if new < prob:
            new = MAX_PROB
    else:
        new = (prob - step) & MAX_PROB
        if new > prob:
            new = 0
    if not drop_overload:
        new = min(new, MAX_PROB // coupling)
    return new


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
    """Decision for an L packet by the coupled probability: under overload Not-ECT passes where it is not dropped."""
    if not overload:
        if random_1 <= prob * coupling:
            return DROP if ecn == NOT_ECT else MARK
        return ENQUEUE
    if drop_overload and random_1 <= prob and random_2 <= prob:
        return DROP
    return ENQUEUE if ecn == NOT_ECT else MARK


@public
def exceeds_step(sojourn_ns: int, packets: int, step_ns: int = 1_000_000, step_packets: int = 0) -> bool:
    """Whether an L packet is over the step threshold.

    Args:
        sojourn_ns: Its sojourn, ns.
        packets: Packets in L without it.
        step_ns: Threshold by time, ns.
        step_packets: Threshold in packets; 0: by time.
    """
    return packets > step_packets if step_packets > 0 else sojourn_ns > step_ns


@public
def is_small(packets: int, length: int) -> bool:
    """Whether what both queues hold (IP bytes) is below two frames of the MTU: then p' is not applied."""
    return length + LINK_HEADER * packets < 2 * PSCHED_MTU


@jit
def decide(env: Any, index: int, sojourn_ns: int, ecn: int, step_ok: bool) -> int:
    """The engine's call at dequeue (`must_drop` and `do_step_aqm`); the packet has been removed from its queue."""
    action = ENQUEUE
    if not is_small(env.packets, env.bytes):
        random_1 = random32(env)
        random_2 = random32(env)
        overload = env.prob_fixed * env.coupling > MAX_PROB
        if index == 0:
            action = decide_classic(env.prob_fixed, ecn, overload, random_1, random_2)
        else:
            action = decide_l4s(
                env.prob_fixed, ecn, overload, random_1, random_2, env.coupling, env.drop_on_overload != 0
            )
    if index == 0 or action == DROP or not step_ok:
        return action
    if exceeds_step(sojourn_ns, queue_at(env, 1).packets, env.step_ns, env.step_packets):
        return DROP if ecn == NOT_ECT else MARK
    return action


@public
def first_credit(classic_protection: int) -> int:
    """Credit of the round robin when both queues have been empty, in favour of L below 50 per cent for C."""
    return PSCHED_MTU * (2 * classic_protection - 100)


@jit
def pick(env: Any) -> int:
    """Credit-based weighted round robin (`dequeue_packet`); -1 where all is empty, and the credit starts anew."""
    if queue_at(env, 1).packets > 0 and (queue_at(env, 0).packets == 0 or env.wrr_credit <= 0):
        return 1
    if queue_at(env, 0).packets > 0:
        return 0
    env.wrr_credit = first_credit(env.classic_protection)
    return -1


@jit
def charge(env: Any, index: int, length: int) -> None:
    """Account a served packet: L adds wc x frame, C subtracts wl x frame (per cent), only while the other queue waits.

    With wc = 0 the credit never leaves its first value, and L has strict priority.
    """
    wc = env.classic_protection
    if queue_at(env, 1 - index).packets > 0:
        if index == 1:
            env.wrr_credit += wc * (length + LINK_HEADER)
        else:
            env.wrr_credit -= (100 - wc) * (length + LINK_HEADER)
