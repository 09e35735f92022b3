"""DualPI2 by RFC 9332 appendix A: decisions at dequeue by `recur()`, without random draws; in integers.

The appendix computes in floating point. Here every value is a signed integer of 64 bits, so that another
implementation of the same arithmetic, in a kernel without floating point too, gives the same decisions to the last
packet: probabilities are multiples of 2^-32 (`ONE` is 1), gains 2^-48 per ns, k 1/256, the weight of C 1/65536.
Divisions and shifts round towards minus infinity; no intermediate value leaves 64 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from l4s_gym.errors import L4SError
from l4s_gym.schema import DROP, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim import fifo
from l4s_gym.sim.discipline import Count, Discipline, Fraction, Interval, NonNegative, Path, Positive, Tuned, records
from l4s_gym.sim.events import head_delay_ns
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.layout import Row
from l4s_gym.sim.memory import packet_at, queue_at

Scheduler = Literal["wrr", "time_shifted"]


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `dualpi2_rfc9332`.

    Attributes:
        target_ms: Target delay.
        tupdate_ms: Control interval.
        alpha: Integral gain, Hz (rounded to 2^-48 per ns).
        beta: Proportional gain, Hz (rounded to 2^-48 per ns).
        coupling: Coupling factor k (rounded to 1/256).
        min_th_us: Delay at which the L ramp starts.
        range_us: Width of the L ramp.
        th_len: No native L mark while L holds at most this many packets.
        p_c_max: Overload threshold on p_C.
        scheduler: `wrr` or `time_shifted`.
        classic_weight: Share of C in the round robin (rounded to 1/65536).
        shift_ms: Time shift of the `time_shifted` scheduler.
    """

    target_ms: NonNegative = 15.0
    tupdate_ms: Interval = 16.0
    alpha: NonNegative = 0.16
    beta: NonNegative = 3.2
    coupling: Positive = 2.0
    min_th_us: NonNegative = 800.0
    range_us: Positive = 400.0
    th_len: Count = 1
    p_c_max: Fraction = 0.25
    scheduler: Scheduler = "wrr"
    classic_weight: Fraction = 1 / 16
    shift_ms: Positive = 50.0


SCHEDULER: Final[tuple[Row, ...]] = (
    ("wrr_credit", "i8", "B/65536", "Credit of the round robin: L is served while it is at most 0."),
    ("classic_weight", "i8", "1/65536", "Share of C in the round robin."),
    ("shift_ns", "i8", "ns", "Time shift of the time-shifted FIFO; 0: the round robin."),
)
STATE: Final = records(
    "dualpi2_rfc9332",
    (
        ("prob", "i8", "2^-32", "Base probability p'."),
        ("old_ns", "i8", "ns", "Queue delay at the last update."),
        ("alpha_q", "i8", "2^-48/ns", "Integral gain."),
        ("beta_q", "i8", "2^-48/ns", "Proportional gain."),
        ("coupling", "i8", "1/256", "Coupling factor k."),
        ("p_c_max", "i8", "2^-32", "p_C from which ECN packets of C are dropped."),
        ("min_th_ns", "i8", "ns", "Delay at which the L ramp starts."),
        ("range_ns", "i8", "ns", "Width of the L ramp."),
        ("th_len", "i8", "packets", "No native L mark while L holds at most this many."),
        *SCHEDULER,
    ),
    (("recur", "i8", "2^-32", "Sum of the likelihoods since the last drop or mark."),),
)
of_env, of_queue = STATE.of_env, STATE.of_queue

ONE: Final = 1 << 32
"""Probability 1."""
LONGEST_NS: Final = (1 << 31) - 1
"""Longer delays count as this long in the controller (2.1 s); also the widest ramp of L."""
MOST_GAIN: Final = 1 << 30
MOST_COUPLING: Final = 1 << 16
WEIGHT_ONE: Final = 1 << 16
MTU: Final = 1514


def scale_gain(gain_hz: float) -> int:
    """Convert a gain in Hz to the nearest in units of 2^-48 per ns: 0.16 -> 45036, 3.2 -> 900720."""
    return round(gain_hz * (1 << 48) / 1e9)


def scheduler_fields(scheduler: Scheduler, classic_weight: float, shift_ms: float) -> dict[str, int]:
    """Return the values of the fields `SCHEDULER`."""
    return {
        "classic_weight": round(WEIGHT_ONE * classic_weight),
        "shift_ns": round(1e6 * shift_ms) if scheduler == "time_shifted" else 0,
    }


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record, within the range of the fixed-point arithmetic.

    Raises:
        L4SError: A parameter is out of range.
    """
    o = options
    fields = {
        "target_us": round(1e3 * o.target_ms),
        "tupdate_us": round(1e3 * o.tupdate_ms),
        "alpha_q": scale_gain(o.alpha),
        "beta_q": scale_gain(o.beta),
        "coupling": round(256 * o.coupling),
        "p_c_max": round(ONE * o.p_c_max),
        "min_th_ns": round(1e3 * o.min_th_us),
        "range_ns": round(1e3 * o.range_us),
        "th_len": o.th_len,
        **scheduler_fields(o.scheduler, o.classic_weight, o.shift_ms),
    }
    most_hz = int(MOST_GAIN * 1e9 / (1 << 48))
    most_ms = (1 << 62) / max(fields["alpha_q"], 1) * 1e-6  # so that both products together stay below 2^63
    for name, fits, remedy in (
        ("alpha", fields["alpha_q"] <= MOST_GAIN, f"at most {most_hz} Hz"),
        ("beta", fields["beta_q"] <= MOST_GAIN, f"at most {most_hz} Hz"),
        ("coupling", 1 <= fields["coupling"] <= MOST_COUPLING, "1/256 to 256"),
        ("range_us", fields["range_ns"] <= LONGEST_NS, f"at most {LONGEST_NS // 1000} us"),
        ("target_ms", o.target_ms <= most_ms, f"at most {most_ms:.0f} ms with this alpha"),
    ):
        if not fits:
            raise L4SError(f"{name} = {getattr(o, name):g}: give {remedy}")
    return fields


@public
def update_probability(
    prob: int,
    current_ns: int,
    previous_ns: int,
    target_ns: int = 15_000_000,
    alpha: int = 45_036,
    beta: int = 900_720,
) -> int:
    """Compute one step of the PI controller (RFC 9332 appendix A.1, figure 6).

    Args:
        prob: Base probability p', 2^-32, from 0 to `ONE`.
        current_ns: The larger of both queues' delays, ns; at most `LONGEST_NS` counts.
        previous_ns: The same at the last update, ns.
        target_ns: Target delay, ns.
        alpha: Integral gain from `scale_gain`.
        beta: Proportional gain from `scale_gain`.

    Returns:
        The new p', 2^-32, clamped to 0 and `ONE`.
    """
    current = min(current_ns, LONGEST_NS)
    previous = min(previous_ns, LONGEST_NS)
    step = (alpha * (current - target_ns) + beta * (current - previous)) >> 16
    return min(max(prob + step, 0), ONE)


@public
def square(prob: int) -> int:
    """Return the square of a probability, 2^-32; the last of 33 bits is left out, so that 64 hold the product."""
    half = prob >> 1
    return (half * half) >> 30


@public
def laqm(delay_ns: int, min_th_ns: int = 800_000, range_ns: int = 400_000) -> int:
    """Return the native L4S marking probability, 2^-32: from 0 at `min_th_ns` up to `ONE` at `min_th_ns + range_ns`."""
    if delay_ns <= min_th_ns:
        return 0
    if delay_ns >= min_th_ns + range_ns:
        return ONE
    return ((delay_ns - min_th_ns) << 32) // range_ns


@public
def recur(count: int, likelihood: int) -> tuple[bool, int]:
    """Spread drops or marks evenly, in 2^-32: (drop or mark, new count); one when the sum exceeds `ONE` (strictly)."""
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
    """Decide about an L packet at dequeue: (action, new count).

    Args:
        prob: Base probability p', 2^-32.
        delay_ns: Sojourn of this packet, ns.
        queue_packets: Packets in L when the packet was at its head (itself included).
        count: State of `recur`, 2^-32.
        ecn: ECN codepoint.
        coupling: Coupling factor k, 1/256.
        min_th_ns: Delay at which the ramp starts, ns.
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
    """Decide about a C packet at dequeue, by p_C = p'^2, all in 2^-32: (action, new count)."""
    p_c = square(prob)
    hit, count = recur(count, p_c)
    if not hit:
        return ENQUEUE, count
    return (DROP if ecn == NOT_ECT or p_c >= p_c_max else MARK), count


@public
def in_records(prob: int) -> int:
    """Convert a probability or count of 2^-32 to the unit of the records, 1/(2^31 - 1), rounded down."""
    return (prob * MAX_PROB) >> 32


@jit
def classify(env: Any, p: int) -> int:
    """Put ECT(1) and CE into L."""
    return packet_at(env, p).ecn & 1


@jit
def has_room(env: Any, p: int) -> int:
    """Return whether there is room for one MTU."""
    return int(not fifo.is_full(env.packets, env.bytes, 1500, env.limit_packets, env.limit_bytes))


@jit
def _pick_time_shifted(env: Any, shift_ns: int) -> int:
    """Pick by time-shifted FIFO (RFC 9332 section 4.1.1): serve L unless C's head has waited `shift_ns` longer."""
    l_delay = env.now_ns - packet_at(env, queue_at(env, 1).head).enqueued_ns
    c_delay = env.now_ns - packet_at(env, queue_at(env, 0).head).enqueued_ns
    return 1 if l_delay + shift_ns >= c_delay else 0


@jit
def schedule(env: Any, my: Any) -> int:
    """Pick by weighted round robin with C's share `classic_weight`, or by time-shifted FIFO.

    `my` has the fields of `SCHEDULER`.
    """
    if queue_at(env, 1).packets == 0:
        return 0 if queue_at(env, 0).packets > 0 else -1
    if queue_at(env, 0).packets == 0:
        return 1
    if my.shift_ns > 0:
        return _pick_time_shifted(env, my.shift_ns)
    return 1 if my.wrr_credit <= 0 else 0


@jit
def charge(env: Any, my: Any, index: int, length: int) -> None:
    """Charge a served packet to the round robin (1/65536 byte); the credit moves only while the other queue waits."""
    if queue_at(env, 0).packets == 0 and queue_at(env, 1).packets == 0:
        my.wrr_credit = -MTU * (WEIGHT_ONE - 2 * my.classic_weight)
    elif queue_at(env, 1 - index).packets > 0:
        if index == 1:
            my.wrr_credit += my.classic_weight * length
        else:
            my.wrr_credit -= (WEIGHT_ONE - my.classic_weight) * length


@jit
def pick(env: Any) -> int:
    """Return the scheduler's choice."""
    return schedule(env, of_env(env))


@jit
def after_dequeue(env: Any, index: int, p: int, action: int) -> None:
    """Charge the round robin, except for a packet dropped at dequeue."""
    if action != DROP:
        charge(env, of_env(env), index, packet_at(env, p).len)


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide at dequeue (the packet has been removed from its queue)."""
    my, q, mine, ecn = of_env(env), queue_at(env, index), of_queue(env, index), packet_at(env, p).ecn
    if index == 1:
        action, mine.recur = decide_l4s(
            my.prob, q.delay_ns, q.packets + 1, mine.recur, ecn, my.coupling, my.min_th_ns, my.range_ns, my.th_len
        )
    else:
        action, mine.recur = decide_classic(my.prob, mine.recur, ecn, my.p_c_max)
    return action


@jit
def threshold_l4s(env: Any, p: int) -> int:
    """The ramp of L."""
    my, q = of_env(env), queue_at(env, 1)
    return laqm(q.delay_ns, my.min_th_ns, my.range_ns) if q.packets + 1 > my.th_len else 0


@jit
def update(env: Any, index: int) -> int:
    """Update the probability every T_UPDATE, by the older of both heads."""
    my = of_env(env)
    current = max(head_delay_ns(env, 0), head_delay_ns(env, 1))
    my.prob = update_probability(my.prob, current, my.old_ns, env.target_us * 1000, my.alpha_q, my.beta_q)
    my.old_ns = current
    return current


@jit
def base_probability(env: Any, index: int) -> int:
    """Return p', 1/(2^31 - 1)."""
    return in_records(of_env(env).prob)


@jit
def accumulated_probability(env: Any, index: int) -> int:
    """Return the sum of `recur`, 1/(2^31 - 1)."""
    return in_records(of_queue(env, index).recur)


@jit
def old_delay_us(env: Any, index: int) -> int:
    """Return the queue delay at the last update, us."""
    return of_env(env).old_ns // 1000


DUALPI2_RFC9332: Final = Discipline(
    name="dualpi2_rfc9332",
    title="DualPI2 of RFC 9332, appendix A",
    options=Options,
    records=STATE,
    setup=setup,
    dual=True,
    classify=classify,
    decide_at_dequeue=decide,
    has_room=has_room,
    pick=pick,
    after_dequeue=after_dequeue,
    update=update,
    base_probability=base_probability,
    accumulated_probability=accumulated_probability,
    old_delay_us=old_delay_us,
    threshold_l4s=threshold_l4s,
    tune=(
        Tuned("target_us", 0, (1 << 32) // 1000),  # times MOST_GAIN it stays below 2^62
        Tuned("alpha_q", 0, MOST_GAIN),
        Tuned("beta_q", 0, MOST_GAIN),
        Tuned("coupling", 1 << 8, MOST_COUPLING),  # below k = 1, p_L never reaches 1: overload would not drop L
        Tuned("min_th_ns", 0, LONGEST_NS),
    ),
)
