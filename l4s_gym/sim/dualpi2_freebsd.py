"""The DualPI2 of the testbed's FreeBSD 14 kernel (dummynet), in kernel integers and with its quirks.

Source: dn_sched_l4s.c / dn_sched_dualpi2.c of the L4S-LLM work and FreeBSD's dn_aqm_pie.h. Probabilities
are integers of 1/(2^31 - 1), delays microseconds. Each departure from RFC 9332 is a `Quirk` that can be
switched off by name (``quirks_off`` of `FreeBSDOptions`):

| quirk | with it (the testbed's kernel) | without it |
|---|---|---|
| `dead_coupling` | L uses its own probability only | L uses max(own, 2 x C's), RFC 9332 section 2.1 |
| `ce_in_classic` | only ECT(1) goes to L | ECT(1) and CE go to L, RFC 9331 section 5.1 |
| `no_l4s_step` | no native L marking | L marks when its delay is above `step_ns`, RFC 9332 section 2.3 |
| `burst_allowance` | nothing is done to packets for 150 ms after activation | no immunity |
| `derandomise` | no hit below an accumulated 0.85, always one from 8.5 on | only the random draw |
| `accu_kept` | a mark by the 8.5 rule keeps the accumulated sum | every hit resets it |
| `ecn_drop_threshold` | ECN packets are dropped from 10 % on | from p' = 0.5 on (p_C = 25 %), RFC 9332 appendix A |
| `autotune` | PIE's scaling of small steps | constant gains, RFC 9332 appendix A |
| `capdrop` | steps of at most 2 % above 10 % | no cap |
| `idle_decay` | probability decays by 1/64 an update while idle | no decay |
| `restart_on_drain` | a drained queue restarts its controller | state is kept |
| `small_queue_guard` | no action at <= 1600 bytes, or below half the target with p < 20 % | none |
| `per_queue_control` | each queue is controlled by its own delay | both by the larger delay, RFC 9332 appendix A |
| `drr` | deficit round robin, L : C = `drr_weight` : 1 | weighted round robin, 15 : 1 |
| `head_drop` | a full buffer drops the head of the longer queue | tail drop |

The log's kernel has weights 2 : 1; kernels of its authors with 1 : 1 exist too (`drr_weight` of `FreeBSDOptions`).
Not a quirk but a property of the module: decisions fall at enqueue (Linux offers both), and its clock
moves by kernel ticks (`link.hz` of a scenario).
"""

from __future__ import annotations

import enum
from typing import Any, Final

from l4s_gym.schema import CE, DROP, ECT_1, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim.events import random31
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import queue_at

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
    """One update of the drop probability (``calculate_drop_prob``).

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
    """Whether the packet is enqueued without a look at the probability (uses the *last update's* delay)."""
    return (qdelay_old_us < qdelay_ref_us // 2 and prob < MAX_PROB // 5) or queue_bytes <= 1600


@public
def accumulate(prob: int, accu: int) -> int:
    """The accumulated probability after this packet's step: the sum since the last hit, 0 where prob is 0."""
    return 0 if prob == 0 else accu + prob


@public
def draw(
    prob: int, accu: int, is_l4s: bool, random_1: int, random_2: int, classic_prob: int = 0, quirks: int = ALL_QUIRKS
) -> tuple[bool, int]:
    """Whether the packet is hit, and the accumulated probability afterwards.

    Args:
        prob: The queue's own probability, 1/(2^31 - 1).
        accu: Accumulated probability after this packet's step, 1/(2^31 - 1).
        is_l4s: Queue L (one draw) or C (two draws: the probability is squared).
        random_1: Uniform in [0, 2^31).
        random_2: Uniform in [0, 2^31).
        classic_prob: Probability of C, for the coupling (unused while `dead_coupling` is on).
        quirks: `Quirk` bits.

    Returns:
        (hit, accumulated probability).
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
    """What a hit becomes: the action that is logged and the action that is applied.

    Returns:
        (logged, applied), each 0 enqueue, 1 drop, 2 mark. A hit during the burst allowance, or while the
        controller is inactive, is logged as a drop and not applied.
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
    """Queue of a packet: 1 (L) or 0 (C)."""
    return 1 if ecn == ECT_1 or (ecn == CE and not quirks & CE_IN_CLASSIC) else 0


# -- over the engine's state


@jit
def step_accumulator(env: Any, q: Any) -> bool:
    """Take this packet's step of the accumulated probability; whether the packet is open to a hit."""
    prob = q.drop_prob
    if env.quirks & SMALL_QUEUE_GUARD and guarded(prob, q.qdelay_old_us, q.bytes, env.target_us):
        return False
    q.accu_prob = accumulate(prob, q.accu_prob)
    return True


@jit
def decide(env: Any, index: int, ecn: int) -> tuple[int, int]:
    """The kernel's own decision for a packet at enqueue: (logged, applied)."""
    q = queue_at(env, index)
    is_l4s = index == 1
    if is_l4s and not env.quirks & NO_L4S_STEP and q.qdelay_us * 1000 > env.step_ns and q.packets >= 1:
        return MARK, MARK
    if not step_accumulator(env, q):
        return ENQUEUE, ENQUEUE
    # Both numbers are always taken, so that the generator does not depend on the outcome.
    random_1 = random31(env)
    random_2 = random31(env)
    hit, q.accu_prob = draw(
        q.drop_prob, q.accu_prob, is_l4s, random_1, random_2, queue_at(env, 0).drop_prob, env.quirks
    )
    return resolve(hit, q.active != 0, q.burst_us, ecn, q.drop_prob, is_l4s, env.max_ecn_threshold, env.quirks)


@jit
def after_decision(env: Any, q: Any, clock_us: int, applied: int) -> bool:
    """What follows a decision and its log line; whether the controller was activated now.

    A drop resets the accumulated probability (only now: the log shows its value before); an idle controller
    is activated; the burst allowance is renewed where there is no congestion.
    """
    if applied == DROP:
        q.accu_prob = 0
    activated = False
    if q.active == 0 and (q.bytes >= ONE_THIRD or q.listed == 0):
        restart = env.quirks & RESTART_ON_DRAIN or q.total_packets == 0
        q.active = 1
        activated = True
        if restart:
            q.drop_prob = 0
            q.qdelay_old_us = 0
            q.accu_prob = 0
            q.burst_us = env.max_burst_us
            q.measurement_start_us = clock_us
    half = env.target_us // 2
    if q.drop_prob == 0 and q.qdelay_us < half and q.qdelay_old_us < half:
        q.burst_us = env.max_burst_us
    return activated


@jit
def update(env: Any, index: int) -> None:
    """The update callout of one queue, every ``tupdate`` while its controller is active."""
    q = queue_at(env, index)
    if q.bytes == 0:
        q.qdelay_us = 0
    current = q.qdelay_us
    if not env.quirks & PER_QUEUE_CONTROL:
        current = max(queue_at(env, 0).qdelay_us, queue_at(env, 1).qdelay_us)
    q.drop_prob = update_probability(
        q.drop_prob,
        current,
        q.qdelay_old_us,
        env.target_us,
        env.alpha,
        env.beta,
        env.quirks & CAPDROP != 0,
        env.quirks & AUTOTUNE != 0,
        env.quirks & IDLE_DECAY != 0,
    )
    q.qdelay_old_us = current
    q.interval_drops = 0
    if q.burst_us > 0:
        q.burst_us = q.burst_us - env.tupdate_us if q.burst_us > env.tupdate_us else 0


@jit
def list_queue(env: Any, q: Any, index: int) -> None:
    """Put a queue that was idle at the end of the list of new queues (FQ-PIE's scheduler)."""
    q.listed = 1
    q.deficit = QUANTUM
    if env.new0 < 0:
        env.new0 = index
    else:
        env.new1 = index


@jit
def _to_old(env: Any, index: int) -> None:
    if env.old0 < 0:
        env.old0 = index
    else:
        env.old1 = index


@jit
def pick(env: Any) -> int:
    """Deficit round robin with lists of new and old queues, C's weight 1; -1 where all is empty."""
    while True:
        from_new = env.new0 >= 0
        index = env.new0 if from_new else env.old0
        if index < 0:
            return -1
        q = queue_at(env, index)
        if q.deficit >= 0 and q.packets > 0:
            return index
        if from_new:
            env.new0 = env.new1
            env.new1 = -1
        else:
            env.old0 = env.old1
            env.old1 = -1
        if q.deficit < 0:
            q.deficit += QUANTUM * (env.drr_weight if index else 1)
            _to_old(env, index)
        elif from_new:
            _to_old(env, index)
        else:
            q.listed = 0
            q.active = 0
