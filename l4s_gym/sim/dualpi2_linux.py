"""DualPI2 of the Linux kernel (sch_dualpi2, 6.17): its integers, its random draws, decisions at dequeue.

Bytes are counted as in a qdisc on an Ethernet device of MTU 1500: each packet counts with its link header
(`LINK_HEADER`) in the backlog and in the round robin's credit, and `PSCHED_MTU` is a full frame.

Not modelled: drops at enqueue (`drop_enqueue`) and the splitting of GSO packets (each packet here is one segment); the
memory limit (`memlimit`, of socket buffers with their overhead: the buffer counts packets or IP bytes); other ways into
L than ECT(1) and CE (`any_ect`, priorities, filters with their class without AQM), so that L holds no Not-ECT packets;
times saturated at 2^32 ns; a timer that fires late; a parent qdisc that does not ask an empty one for packets (behind
`htb` the credit is not reset when both queues run empty); the second count of a packet that PI and step both mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from l4s_gym.schema import DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.discipline import Count, Discipline, Gain, Interval, NonNegative, Path, Tuned, records
from l4s_gym.sim.dualpi2_rfc9332 import ONE, classify
from l4s_gym.sim.events import head_delay_ns, random32
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import packet_at, queue_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `dualpi2_linux`.

    Attributes:
        target_ms: Target delay.
        tupdate_ms: Control interval.
        alpha: Integral gain, 1/256 Hz, as in netlink.
        beta: Proportional gain, 1/256 Hz.
        coupling: Coupling factor k.
        step_ms: Step threshold of L.
        step_packets: Step threshold of L in packets, instead of `step_ms`; 0: use `step_ms`.
        min_qlen_step: The step applies to packets that find at least this many in L.
        classic_protection: Share of C in the round robin, per cent; 0: L has strict priority.
        drop_on_overload: Drop L too in overload.
    """

    target_ms: NonNegative = 15.0
    tupdate_ms: Interval = 16.0
    alpha: Gain = 41
    beta: Gain = 819
    coupling: Annotated[int, Meta(ge=1, le=255)] = 2
    step_ms: NonNegative = 1.0
    step_packets: Count = 0
    min_qlen_step: Count = 0
    classic_protection: Annotated[int, Meta(ge=0, le=100)] = 10
    drop_on_overload: bool = True


STATE: Final = records(
    "dualpi2_linux",
    (
        ("prob", "i8", "1/(2^32 - 1)", "Base probability p'."),
        ("old_ns", "i8", "ns", "Queue delay at the last update."),
        ("coupling", "i8", "-", "Coupling factor k."),
        ("step_ns", "i8", "ns", "Step threshold of L."),
        ("step_packets", "i8", "packets", "Step threshold of L; 0: use `step_ns`."),
        ("min_qlen_step", "i8", "packets", "The step applies to packets that find at least this many in L."),
        ("classic_protection", "i8", "%", "Share of C in the round robin."),
        ("wrr_credit", "i8", "%B", "Credit of the round robin: L is served while it is at most 0."),
        ("drop_on_overload", "i1", "flag", "Whether overload drops L too."),
    ),
)
of_env = STATE.of_env

MAX_PROB: Final = (1 << 32) - 1
"""Probability 1 of this qdisc."""
LINK_HEADER: Final = 14
"""Bytes of a frame around the IP packet."""
PSCHED_MTU: Final = 1500 + LINK_HEADER
MOST_COUPLING: Final = 255


@public
def scale_gain(gain: int) -> int:
    """Convert iproute2's gain (1/256 Hz) to the kernel's units, as `dualpi2_scale_alpha_beta`: 41 -> 44, 819 -> 879."""
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
    """Compute one step of the PI controller (`calculate_probability`).

    The kernel keeps 32 bits of the sum and takes it for out of range where it lies on the wrong side of the old value;
    so a step of 2^32 and more (a delay that grows by 0.3 s within an interval) loses its upper bits.

    Args:
        prob: Base probability p', 1/(2^32 - 1).
        current_ns: The larger of the head delays of both queues, ns.
        previous_ns: The same at the last update, ns.
        target_ns: Target, ns.
        alpha: Integral gain from `scale_gain`.
        beta: Proportional gain from `scale_gain`.
        drop_overload: Whether overload drops; if not, p' is capped at 1/coupling.
        coupling: Coupling factor k.

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
    """Decide about a C packet: two draws against p' (its square), random numbers in [0, 2^32)."""
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
    """Decide about an L packet by the coupled probability: a Not-ECT packet passes unless overload drops."""
    if not overload:
        if random_1 <= prob * coupling:
            return DROP if ecn == NOT_ECT else MARK
        return ENQUEUE
    if drop_overload and random_1 <= prob and random_2 <= prob:
        return DROP
    return ENQUEUE if ecn == NOT_ECT else MARK


@public
def exceeds_step(sojourn_ns: int, packets: int, step_ns: int = 1_000_000, step_packets: int = 0) -> bool:
    """Return whether an L packet is over the step threshold.

    Args:
        sojourn_ns: Its sojourn, ns.
        packets: Packets in L without it.
        step_ns: Threshold by time, ns.
        step_packets: Threshold in packets; 0: use `step_ns`.
    """
    return packets > step_packets if step_packets > 0 else sojourn_ns > step_ns


@public
def is_small(packets: int, length: int) -> bool:
    """Return whether both queues together (IP bytes) are below two frames of the MTU: then p' is not applied."""
    return length + LINK_HEADER * packets < 2 * PSCHED_MTU


@public
def first_credit(classic_protection: int) -> int:
    """Return the round robin's credit when both queues are empty: in favour of L below 50 per cent for C."""
    return PSCHED_MTU * (2 * classic_protection - 100)


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record: the kernel's parameters."""
    o = options
    return {
        "target_us": round(1e3 * o.target_ms),
        "tupdate_us": round(1e3 * o.tupdate_ms),
        "alpha": scale_gain(o.alpha),
        "beta": scale_gain(o.beta),
        "coupling": o.coupling,
        "step_ns": round(1e6 * o.step_ms),
        "step_packets": o.step_packets,
        "min_qlen_step": o.min_qlen_step,
        "classic_protection": o.classic_protection,
        "wrr_credit": first_credit(o.classic_protection),
        "drop_on_overload": int(o.drop_on_overload),
    }


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide at dequeue (`must_drop` and `do_step_aqm`); the packet has been removed from its queue."""
    my, a = of_env(env), packet_at(env, p)
    action = ENQUEUE
    if not is_small(env.packets, env.bytes):
        random_1 = random32(env)
        random_2 = random32(env)
        overload = my.prob * my.coupling > MAX_PROB
        if index == 0:
            action = decide_classic(my.prob, a.ecn, overload, random_1, random_2)
        else:
            action = decide_l4s(my.prob, a.ecn, overload, random_1, random_2, my.coupling, my.drop_on_overload != 0)
    if index == 0 or action == DROP or a.step_ok == 0:
        return action
    q = queue_at(env, 1)
    if exceeds_step(q.delay_ns, q.packets, my.step_ns, my.step_packets):
        return DROP if a.ecn == NOT_ECT else MARK
    return action


@jit
def threshold_l4s(env: Any, p: int) -> int:
    """The step of L."""
    my, q = of_env(env), queue_at(env, 1)
    over = packet_at(env, p).step_ok != 0 and exceeds_step(q.delay_ns, q.packets, my.step_ns, my.step_packets)
    return ONE if over else 0


@jit
def after_enqueue(env: Any, index: int, p: int) -> None:
    """Note whether a packet has found enough others in its queue for the step."""
    packet_at(env, p).step_ok = 1 if queue_at(env, index).packets > of_env(env).min_qlen_step else 0


@jit
def pick(env: Any) -> int:
    """Pick by credit-based weighted round robin (`dequeue_packet`); if all is empty, reset the credit and return -1."""
    my = of_env(env)
    if queue_at(env, 1).packets > 0 and (queue_at(env, 0).packets == 0 or my.wrr_credit <= 0):
        return 1
    if queue_at(env, 0).packets > 0:
        return 0
    my.wrr_credit = first_credit(my.classic_protection)
    return -1


@jit
def after_dequeue(env: Any, index: int, p: int, action: int) -> None:
    """Charge a served packet: L adds wc x frame, C subtracts wl x frame (per cent), only while the other queue waits.

    With wc = 0 the credit never leaves its first value, and L has strict priority.
    """
    if action == DROP or queue_at(env, 1 - index).packets == 0:
        return
    my, frame = of_env(env), packet_at(env, p).len + LINK_HEADER
    if index == 1:
        my.wrr_credit += my.classic_protection * frame
    else:
        my.wrr_credit -= (100 - my.classic_protection) * frame


@jit
def update(env: Any, index: int) -> int:
    """Update the probability every `tupdate`, by the older of both heads."""
    my = of_env(env)
    current = max(head_delay_ns(env, 0), head_delay_ns(env, 1))
    my.prob = update_probability(
        my.prob, current, my.old_ns, env.target_us * 1000, env.alpha, env.beta, my.drop_on_overload != 0, my.coupling
    )
    my.old_ns = current
    return current


@jit
def base_probability(env: Any, index: int) -> int:
    """Return p', 1/(2^31 - 1)."""
    return of_env(env).prob >> 1


@jit
def old_delay_us(env: Any, index: int) -> int:
    """Return the queue delay at the last update, us."""
    return of_env(env).old_ns // 1000


DUALPI2_LINUX: Final = Discipline(
    name="dualpi2_linux",
    title="DualPI2 of the Linux kernel, sch_dualpi2",
    options=Options,
    records=STATE,
    setup=setup,
    dual=True,
    classify=classify,
    decide_at_dequeue=decide,
    after_enqueue=after_enqueue,
    pick=pick,
    after_dequeue=after_dequeue,
    update=update,
    base_probability=base_probability,
    old_delay_us=old_delay_us,
    threshold_l4s=threshold_l4s,
    tune=(
        Tuned("target_us", 0, (1 << 32) // 1000),
        # A second of delay that has grown by 16 ms since the last update is a step of p' below 2^32.
        Tuned("alpha", 0, 128),
        Tuned("beta", 0, 9_000),
        Tuned("coupling", 2, MOST_COUPLING),  # at k = 1 the qdisc takes nothing for overload
        Tuned("step_ns", 0, 1 << 31),
    ),
)
