"""DualPI2 of the testbed's FreeBSD 14 kernel (dummynet), in kernel integers and with its quirks.

Source: dn_sched_l4s.c / dn_sched_dualpi2.c of the L4S-LLM work and FreeBSD's dn_aqm_pie.h. Probabilities
are integers of 1/(2^31 - 1), delays microseconds. Each departure from RFC 9332 is a `Quirk` that can be
switched off by name (``quirks_off`` of `Options`):

| quirk | with it (the testbed's kernel) | without it |
|---|---|---|
| `dead_coupling` | L uses its own probability only | L uses max(own, 2 x C's), RFC 9332 section 2.1 |
| `ce_in_classic` | only ECT(1) goes to L | ECT(1) and CE go to L, RFC 9331 section 5.1 |
| `no_l4s_step` | no native L marking | L marks when its delay is above `step_ns`, RFC 9332 section 2.3 |
| `burst_allowance` | nothing is done to packets for 150 ms after activation | no immunity |
| `derandomise` | no drop or mark below an accumulated 0.85, always one from 8.5 on | only the random draw |
| `accu_kept` | a mark by the 8.5 rule keeps the accumulated sum | every drop or mark resets it |
| `ecn_drop_threshold` | ECN packets are dropped from 10 % on | from p' = 0.5 on (p_C = 25 %), RFC 9332 appendix A |
| `autotune` | PIE's scaling of small steps | constant gains, RFC 9332 appendix A |
| `capdrop` | steps of at most 2 % above 10 % | no cap |
| `idle_decay` | probability decays by 1/64 an update while idle | no decay |
| `restart_on_drain` | a drained queue restarts its controller | state is kept |
| `small_queue_guard` | no action at <= 1600 bytes, or below half the target with p < 20 % | none |
| `per_queue_control` | each queue is controlled by its own delay | both by the larger delay, RFC 9332 appendix A |
| `drr` | deficit round robin, L : C = `drr_weight` : 1 | weighted round robin, 15 : 1 |
| `head_drop` | a full buffer drops the head of the longer queue | tail drop |

The log's kernel has weights 2 : 1; kernels of its authors with 1 : 1 exist too (`drr_weight` of `Options`).
Not a quirk but a property of the module: decisions fall at enqueue (Linux offers both), and its clock
moves by kernel ticks (`link.hz` of a scenario).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from l4s_gym.errors import unknown
from l4s_gym.schema import CE, DROP, ECT_1, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim import dualpi2_rfc9332, fifo
from l4s_gym.sim.discipline import Discipline, Fraction, Gain, Interval, NonNegative, Path, Positive, records
from l4s_gym.sim.events import clock_ns, random31, set_time
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.layout import NEVER, SLOT_UPDATE_C
from l4s_gym.sim.memory import packet_at, queue_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `dualpi2_freebsd`.

    Attributes:
        target_ms: Target delay.
        tupdate_ms: Control interval.
        max_burst_ms: Burst allowance: time without drops after activation.
        alpha: Integral gain, 1/8192.
        beta: Proportional gain, 1/8192.
        max_ecn_threshold: Probability (1/8192) from which ECN packets are dropped.
        quirks_off: Names of `Quirk` to switch off; "all" for all of them.
        drr_weight: Bytes of L for each of C while both queues wait (2, or 1: there are kernels of both).
        step_ms: Step threshold of L, without the quirk `no_l4s_step`.
        scheduler: Without the quirk `drr`: `wrr` or `time_shifted`, as in `dualpi2_rfc9332`.
        classic_weight: Share of C in the round robin `wrr`.
        shift_ms: Time shift of the `time_shifted` scheduler.
    """

    target_ms: NonNegative = 15.0
    tupdate_ms: Interval = 15.0
    max_burst_ms: NonNegative = 150.0
    alpha: Gain = 1024
    beta: Gain = 10240
    max_ecn_threshold: Annotated[int, Meta(ge=0, le=8192)] = 819
    quirks_off: tuple[str, ...] = ()
    drr_weight: Annotated[int, Meta(ge=1, le=64)] = 2
    step_ms: NonNegative = 1.0
    scheduler: dualpi2_rfc9332.Scheduler = "wrr"
    classic_weight: Fraction = 1 / 16
    shift_ms: Positive = 50.0


STATE: Final = records(
    "dualpi2_freebsd",
    (
        ("quirks", "i8", "bits", "`Quirk` bits."),
        ("drr_weight", "i8", "-", "Bytes of L for each of C while both queues wait."),
        ("step_ns", "i8", "ns", "Step threshold of L."),
        ("new0", "i4", "queue", "First queue in the scheduler's list of new queues, or -1."),
        ("new1", "i4", "queue", "Second queue in it, or -1."),
        ("old0", "i4", "queue", "First queue in the list of old queues, or -1."),
        ("old1", "i4", "queue", "Second queue in it, or -1."),
        *dualpi2_rfc9332.SCHEDULER,
    ),
    (
        ("drop_prob", "i8", "1/(2^31 - 1)", "Drop probability."),
        ("accu_prob", "i8", "1/(2^31 - 1)", "Accumulated probability."),
        ("qdelay_us", "i8", "us", "Current queue delay."),
        ("qdelay_old_us", "i8", "us", "Queue delay at the last update."),
        ("burst_us", "i8", "us", "Remaining burst allowance."),
        ("deficit", "i8", "bytes", "Deficit of the deficit round robin."),
        ("listed", "i1", "flag", "Whether the queue is in one of the scheduler's lists."),
    ),
)
of_env, of_queue = STATE.of_env, STATE.of_queue
MOST_PACKETS: Final = 10240
"""Largest queue of dummynet, the kernel's default for this scheduler."""

QUANTUM: Final = 1514
DERANDOMISE_LOW: Final = 1825361099
DERANDOMISE_HIGH: Final = 18253610999
"""0.85 and 8.5 times `MAX_PROB`, truncated."""
ONE_THIRD: Final = 10240 // 2 // 3
STEP_FACTOR: Final = (MAX_PROB << 12) // 1_000_000


class Quirk(enum.IntFlag):
    """Departures of the testbed's kernel from RFC 9332 (see the module)."""

    DEAD_COUPLING = enum.auto()
    CE_IN_CLASSIC = enum.auto()
    NO_L4S_STEP = enum.auto()
    BURST_ALLOWANCE = enum.auto()
    DERANDOMISE = enum.auto()
    ACCU_KEPT = enum.auto()
    ECN_DROP_THRESHOLD = enum.auto()
    AUTOTUNE = enum.auto()
    CAPDROP = enum.auto()
    IDLE_DECAY = enum.auto()
    RESTART_ON_DRAIN = enum.auto()
    SMALL_QUEUE_GUARD = enum.auto()
    PER_QUEUE_CONTROL = enum.auto()
    DRR = enum.auto()
    HEAD_DROP = enum.auto()


ALL_QUIRKS: Final = int(~Quirk(0))
DEAD_COUPLING: Final = int(Quirk.DEAD_COUPLING)
CE_IN_CLASSIC: Final = int(Quirk.CE_IN_CLASSIC)
NO_L4S_STEP: Final = int(Quirk.NO_L4S_STEP)
BURST_ALLOWANCE: Final = int(Quirk.BURST_ALLOWANCE)
DERANDOMISE: Final = int(Quirk.DERANDOMISE)
ACCU_KEPT: Final = int(Quirk.ACCU_KEPT)
ECN_DROP_THRESHOLD: Final = int(Quirk.ECN_DROP_THRESHOLD)
AUTOTUNE: Final = int(Quirk.AUTOTUNE)
CAPDROP: Final = int(Quirk.CAPDROP)
IDLE_DECAY: Final = int(Quirk.IDLE_DECAY)
RESTART_ON_DRAIN: Final = int(Quirk.RESTART_ON_DRAIN)
SMALL_QUEUE_GUARD: Final = int(Quirk.SMALL_QUEUE_GUARD)
PER_QUEUE_CONTROL: Final = int(Quirk.PER_QUEUE_CONTROL)
DRR: Final = int(Quirk.DRR)
HEAD_DROP: Final = int(Quirk.HEAD_DROP)


@public
def update_probability(
    prob: int,
    current_us: int,
    previous_us: int,
    qdelay_ref_us: int = 15000,
    alpha: int = 1024,
    beta: int = 10240,
    capdrop: bool = True,
    autotune: bool = True,
    decay: bool = True,
) -> int:
    """Compute one update of the drop probability (``calculate_drop_prob``).

    Args:
        prob: Probability, 1/(2^31 - 1).
        current_us: Queue delay now, us.
        previous_us: Queue delay at the last update, us.
        qdelay_ref_us: Target, us.
        alpha: Integral gain, 1/8192.
        beta: Proportional gain, 1/8192.
        capdrop: Cap steps at 2 % once the probability is 10 % or more.
        autotune: Scale steps down while the probability is small.
        decay: Let the probability decay by 1/64 while both delays are 0.

    Returns:
        The new probability, 1/(2^31 - 1), in [0, 2^31 - 1].
    """
    step = alpha * (current_us - qdelay_ref_us) + beta * (current_us - previous_us)
    negative = step < 0
    if negative:
        step = -step
    step *= STEP_FACTOR
    shift = 25
    if autotune:
        if prob < MAX_PROB // 1_000_000:
            shift += 11
        elif prob < MAX_PROB // 100_000:
            shift += 9
        elif prob < MAX_PROB // 10_000:
            shift += 7
        elif prob < MAX_PROB // 1000:
            shift += 5
        elif prob < MAX_PROB // 100:
            shift += 3
        elif prob < MAX_PROB // 10:
            shift += 1
    step >>= shift
    if negative:
        prob -= step
    else:
        if capdrop and prob >= MAX_PROB // 10 and step > MAX_PROB // 50:
            step = MAX_PROB // 50
        prob += step
    if prob < 0:
        prob = 0
    elif decay and current_us == 0 and previous_us == 0:
        prob -= prob >> 6
    return min(prob, MAX_PROB)


@public
def guarded(prob: int, qdelay_old_us: int, queue_bytes: int, qdelay_ref_us: int = 15000) -> bool:
    """Return whether to enqueue the packet without a look at the probability (uses the *last update's* delay)."""
    return (qdelay_old_us < qdelay_ref_us // 2 and prob < MAX_PROB // 5) or queue_bytes <= 1600


@public
def accumulate(prob: int, accu: int) -> int:
    """Return the accumulated probability after this packet's step: the sum since the last reset, 0 if prob is 0."""
    return 0 if prob == 0 else accu + prob


@public
def draw(
    prob: int, accu: int, is_l4s: bool, random_1: int, random_2: int, classic_prob: int = 0, quirks: int = ALL_QUIRKS
) -> tuple[bool, int]:
    """Draw whether to drop or mark the packet, and return the accumulated probability afterwards.

    Args:
        prob: The queue's own probability, 1/(2^31 - 1).
        accu: Accumulated probability after this packet's step, 1/(2^31 - 1).
        is_l4s: Queue L (one draw) or C (two draws: the probability is squared).
        random_1: Uniform in [0, 2^31).
        random_2: Uniform in [0, 2^31).
        classic_prob: Probability of C, for the coupling (unused while `dead_coupling` is on).
        quirks: `Quirk` bits.

    Returns:
        (drop or mark, accumulated probability).
    """
    if quirks & DERANDOMISE:
        if accu < DERANDOMISE_LOW:
            return False, accu
        if accu >= DERANDOMISE_HIGH:
            return True, accu if quirks & ACCU_KEPT else 0
    if is_l4s:
        local = prob
        if not quirks & DEAD_COUPLING:
            local = max(prob, 2 * classic_prob)
        if local > MAX_PROB:
            hit = random_1 < prob and random_2 < prob
        else:
            hit = random_1 < local
    else:
        hit = random_1 < prob and random_2 < prob
    return hit, 0 if hit else accu


@public
def resolve(
    hit: bool,
    active: bool,
    burst_us: int,
    ecn: int,
    prob: int,
    is_l4s: bool = False,
    max_ecn_threshold: int = 819,
    quirks: int = ALL_QUIRKS,
) -> tuple[int, int]:
    """Convert a "hit" (drop or mark) to the logged action and the applied action.

    Returns:
        (logged, applied), each 0 enqueue, 1 drop, 2 mark. During the burst allowance, or while the
        controller is inactive, a hit is logged as a drop and not applied.
    """
    if not hit:
        return ENQUEUE, ENQUEUE
    if not active or (burst_us > 0 and quirks & BURST_ALLOWANCE):
        return DROP, ENQUEUE
    if quirks & ECN_DROP_THRESHOLD:
        may_mark = prob < max_ecn_threshold << 18
    else:
        may_mark = is_l4s or prob <= MAX_PROB >> 1
    if ecn != NOT_ECT and may_mark:
        return MARK, MARK
    return DROP, DROP


@public
def classify(ecn: int, quirks: int = ALL_QUIRKS) -> int:
    """Return the queue of a packet: 1 (L) or 0 (C)."""
    return 1 if ecn == ECT_1 or (ecn == CE and not quirks & CE_IN_CLASSIC) else 0


# -- over the engine's state


def _quirks(off: tuple[str, ...]) -> int:
    """Return the quirk bits without the named ones."""
    if "all" in off:
        return 0
    bits = ALL_QUIRKS
    for name in off:
        member = Quirk.__members__.get(name.upper())
        if member is None:
            raise unknown("quirk", name, [quirk.lower() for quirk in Quirk.__members__])
        bits &= ~int(member)
    return bits


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record: the kernel's parameters."""
    o = options
    return {
        "target_us": round(1e3 * o.target_ms),
        "tupdate_us": round(1e3 * o.tupdate_ms),
        "max_burst_us": round(1e3 * o.max_burst_ms),
        "alpha": o.alpha,
        "beta": o.beta,
        "max_ecn_threshold": o.max_ecn_threshold,
        "quirks": _quirks(o.quirks_off),
        "drr_weight": o.drr_weight,
        "step_ns": round(1e6 * o.step_ms),
        **dict.fromkeys(("new0", "new1", "old0", "old1"), -1),
        **dualpi2_rfc9332.scheduler_fields(o.scheduler, o.classic_weight, o.shift_ms),
    }


@jit
def classify_packet(env: Any, p: int) -> int:
    """Classify a packet that arrives, see `classify`."""
    return classify(packet_at(env, p).ecn, of_env(env).quirks)


@jit
def _step_accumulator(env: Any, index: int) -> bool:
    """Add this packet's step to the accumulated probability; return whether it may be dropped or marked."""
    mine = of_queue(env, index)
    prob = mine.drop_prob
    if of_env(env).quirks & SMALL_QUEUE_GUARD and guarded(
        prob, mine.qdelay_old_us, queue_at(env, index).bytes, env.target_us
    ):
        return False
    mine.accu_prob = accumulate(prob, mine.accu_prob)
    return True


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide as the kernel does at enqueue; `env.logged` is what it prints."""
    my, q, mine = of_env(env), queue_at(env, index), of_queue(env, index)
    is_l4s = index == 1
    if is_l4s and not my.quirks & NO_L4S_STEP and mine.qdelay_us * 1000 > my.step_ns and q.packets >= 1:
        return MARK
    if not _step_accumulator(env, index):
        return ENQUEUE
    # Both numbers are always drawn, so that the generator's state does not depend on the outcome.
    random_1 = random31(env)
    random_2 = random31(env)
    hit, mine.accu_prob = draw(
        mine.drop_prob, mine.accu_prob, is_l4s, random_1, random_2, of_queue(env, 0).drop_prob, my.quirks
    )
    env.logged, applied = resolve(
        hit,
        q.active != 0,
        mine.burst_us,
        packet_at(env, p).ecn,
        mine.drop_prob,
        is_l4s,
        env.max_ecn_threshold,
        my.quirks,
    )
    return applied


@jit
def note_foreign_decision(env: Any, index: int, action: int) -> None:
    """Update the accumulated probability as for a decision of the discipline itself."""
    _step_accumulator(env, index)
    if action != ENQUEUE:
        of_queue(env, index).accu_prob = 0


@jit
def after_decision(env: Any, index: int, action: int) -> None:
    """Update the state after a decision and its log line.

    A drop resets the accumulated probability (only now: the log shows its value before); an idle controller
    becomes active; the burst allowance is renewed if there is no congestion.
    """
    q, mine = queue_at(env, index), of_queue(env, index)
    if action == DROP:
        mine.accu_prob = 0
    activated = False
    if q.active == 0 and (q.bytes >= ONE_THIRD or mine.listed == 0):
        restart = of_env(env).quirks & RESTART_ON_DRAIN or q.total_packets == 0
        q.active = 1
        activated = True
        if restart:
            mine.drop_prob = 0
            mine.qdelay_old_us = 0
            mine.accu_prob = 0
            mine.burst_us = env.max_burst_us
            q.measurement_start_us = clock_ns(env) // 1000
    half = env.target_us // 2
    if mine.drop_prob == 0 and mine.qdelay_us < half and mine.qdelay_old_us < half:
        mine.burst_us = env.max_burst_us
    if activated:
        env.late &= ~(1 << index)
        set_time(env, SLOT_UPDATE_C + index, env.now_ns + env.tupdate_us * 1000)


@jit
def has_room(env: Any, p: int) -> int:
    """Always let the packet in: the kernel checks the buffer after the enqueue, and then drops a head."""
    return 1 if of_env(env).quirks & HEAD_DROP else fifo.has_room(env, p)


@jit
def update(env: Any, index: int) -> int:
    """Run the update callout of one queue, every ``tupdate`` while its controller is active."""
    my, q, mine = of_env(env), queue_at(env, index), of_queue(env, index)
    if q.bytes == 0:
        mine.qdelay_us = 0
    current = mine.qdelay_us
    if not my.quirks & PER_QUEUE_CONTROL:
        current = max(of_queue(env, 0).qdelay_us, of_queue(env, 1).qdelay_us)
    mine.drop_prob = update_probability(
        mine.drop_prob,
        current,
        mine.qdelay_old_us,
        env.target_us,
        env.alpha,
        env.beta,
        my.quirks & CAPDROP != 0,
        my.quirks & AUTOTUNE != 0,
        my.quirks & IDLE_DECAY != 0,
    )
    mine.qdelay_old_us = current
    if mine.burst_us > 0:
        mine.burst_us = mine.burst_us - env.tupdate_us if mine.burst_us > env.tupdate_us else 0
    return mine.qdelay_us * 1000


@jit
def after_enqueue(env: Any, index: int, p: int) -> None:
    """Put a queue that gets a packet at the end of the list of new queues, if it is in no list."""
    my, mine = of_env(env), of_queue(env, index)
    if mine.listed:
        return
    mine.listed = 1
    if not my.quirks & DRR:
        return
    mine.deficit = QUANTUM
    if my.new0 < 0:
        my.new0 = index
    else:
        my.new1 = index


@jit
def _to_old(my: Any, index: int) -> None:
    if my.old0 < 0:
        my.old0 = index
    else:
        my.old1 = index


@jit
def _pick_by_deficit(env: Any) -> int:
    """Pick by deficit round robin with lists of new and old queues (FQ-PIE's), C's weight 1; -1: all empty."""
    my = of_env(env)
    while True:
        from_new = my.new0 >= 0
        index = my.new0 if from_new else my.old0
        if index < 0:
            return -1
        q, mine = queue_at(env, index), of_queue(env, index)
        if mine.deficit >= 0 and q.packets > 0:
            return index
        if from_new:
            my.new0 = my.new1
            my.new1 = -1
        else:
            my.old0 = my.old1
            my.old1 = -1
        if mine.deficit < 0:
            mine.deficit += QUANTUM * (my.drr_weight if index else 1)
            _to_old(my, index)
        elif from_new:
            _to_old(my, index)
        else:
            mine.listed = 0
            q.active = 0


@jit
def pick(env: Any) -> int:
    """Return the scheduler's choice; stop the controllers of queues that it finds empty."""
    my = of_env(env)
    if my.quirks & DRR:
        index = _pick_by_deficit(env)
    else:
        index = dualpi2_rfc9332.schedule(env, my)
        for i in range(2):
            if queue_at(env, i).packets == 0 and of_queue(env, i).listed:
                of_queue(env, i).listed = 0
                queue_at(env, i).active = 0
    for i in range(2):
        if queue_at(env, i).active == 0:
            env.late &= ~(1 << i)
            set_time(env, SLOT_UPDATE_C + i, NEVER)
    return index


@jit
def after_dequeue(env: Any, index: int, p: int, action: int) -> None:
    """Set the queue's delay to that of the packet that leaves, and charge the scheduler."""
    my, mine, length = of_env(env), of_queue(env, index), packet_at(env, p).len
    mine.qdelay_us = queue_at(env, index).delay_ns // 1000
    if my.quirks & DRR:
        mine.deficit -= length
    else:
        dualpi2_rfc9332.charge(env, my, index, length)


@jit
def base_probability(env: Any, index: int) -> int:
    """Return the queue's drop probability, 1/(2^31 - 1)."""
    return of_queue(env, index).drop_prob


@jit
def accumulated_probability(env: Any, index: int) -> int:
    """Return the queue's accumulated probability, 1/(2^31 - 1)."""
    return of_queue(env, index).accu_prob


@jit
def burst_allowance_us(env: Any, index: int) -> int:
    """Return the remaining burst allowance, us."""
    return of_queue(env, index).burst_us


@jit
def current_delay_us(env: Any, index: int) -> int:
    """Return the delay that the controller uses, us."""
    return of_queue(env, index).qdelay_us


@jit
def old_delay_us(env: Any, index: int) -> int:
    """Return the delay at the last update, us."""
    return of_queue(env, index).qdelay_old_us


DUALPI2_FREEBSD: Final = Discipline(
    name="dualpi2_freebsd",
    title="DualPI2 of the testbed's FreeBSD 14 kernel",
    options=Options,
    records=STATE,
    setup=setup,
    dual=True,
    queue_timers=True,
    most_packets=MOST_PACKETS,
    classify=classify_packet,
    decide_at_enqueue=decide,
    note_foreign_decision=note_foreign_decision,
    after_decision=after_decision,
    after_enqueue=after_enqueue,
    has_room=has_room,
    pick=pick,
    after_dequeue=after_dequeue,
    update=update,
    base_probability=base_probability,
    accumulated_probability=accumulated_probability,
    burst_allowance_us=burst_allowance_us,
    current_delay_us=current_delay_us,
    old_delay_us=old_delay_us,
)
