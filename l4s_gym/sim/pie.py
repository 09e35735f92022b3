"""PIE by RFC 8033: floating point, decision at enqueue, delay from timestamps (section 5.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from l4s_gym.schema import DROP, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim.discipline import Discipline, Fraction, Interval, NonNegative, Path, records
from l4s_gym.sim.events import head_delay_ns, uniform
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import packet_at, queue_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `pie`.

    Attributes:
        target_ms: Target delay.
        tupdate_ms: Control interval.
        max_burst_ms: Burst allowance: time without drops after activation.
        alpha: Integral gain, Hz.
        beta: Proportional gain, Hz.
        derandomise: Whether to spread drops and marks evenly (section 5.4).
        ecn_threshold: Probability above which ECN packets are dropped.
    """

    target_ms: NonNegative = 15.0
    tupdate_ms: Interval = 15.0
    max_burst_ms: NonNegative = 150.0
    alpha: NonNegative = 0.125
    beta: NonNegative = 1.25
    derandomise: bool = True
    ecn_threshold: Fraction = 0.1


STATE: Final = records(
    "pie",
    (
        ("alpha_hz", "f8", "Hz", "Integral gain."),
        ("beta_hz", "f8", "Hz", "Proportional gain."),
        ("derandomise", "i1", "flag", "Whether drops and marks are spread evenly (section 5.4)."),
        ("ecn_threshold", "f8", "1", "Probability above which ECN packets are dropped."),
        ("prob", "f8", "1", "Drop probability."),
        ("accu", "f8", "1", "Sum of the probabilities since the last drop or mark."),
        ("burst_ns", "i8", "ns", "Remaining burst allowance."),
        ("old_ns", "i8", "ns", "Queue delay at the last update."),
    ),
)
of_env = STATE.of_env


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record, times in ns, gains in Hz."""
    burst_us = round(1e3 * options.max_burst_ms)
    return {
        "target_us": round(1e3 * options.target_ms),
        "tupdate_us": round(1e3 * options.tupdate_ms),
        "max_burst_us": burst_us,
        "burst_ns": 1000 * burst_us,
        "alpha_hz": options.alpha,
        "beta_hz": options.beta,
        "derandomise": int(options.derandomise),
        "ecn_threshold": options.ecn_threshold,
    }


@public
def update_probability(
    prob: float,
    current_ns: int,
    previous_ns: int,
    target_ns: int = 15_000_000,
    alpha_hz: float = 0.125,
    beta_hz: float = 1.25,
) -> float:
    """Compute one update of the drop probability (RFC 8033 section 4.2 and appendix A).

    Args:
        prob: Drop probability in [0, 1].
        current_ns: Queue delay, ns.
        previous_ns: Queue delay at the last update, ns.
        target_ns: QDELAY_REF, ns.
        alpha_hz: Integral gain, Hz.
        beta_hz: Proportional gain, Hz.
    """
    step = alpha_hz * (current_ns - target_ns) * 1e-9 + beta_hz * (current_ns - previous_ns) * 1e-9
    if prob < 0.000001:
        step /= 2048.0
    elif prob < 0.00001:
        step /= 512.0
    elif prob < 0.0001:
        step /= 128.0
    elif prob < 0.001:
        step /= 32.0
    elif prob < 0.01:
        step /= 8.0
    elif prob < 0.1:
        step /= 2.0
    if prob >= 0.1 and step > 0.02:
        step = 0.02
    prob += step
    if current_ns == 0 and previous_ns == 0:
        prob *= 0.98
    return min(max(prob, 0.0), 1.0)


@public
def draw(prob: float, accu: float, number: float, derandomise: bool = True) -> tuple[bool, float]:
    """Draw whether to drop or mark a packet; return it and the accumulated probability afterwards (section 5.4).

    Args:
        prob: Drop probability.
        accu: Accumulated probability before this packet.
        number: Uniform in [0, 1).
        derandomise: No drop or mark below an accumulated 0.85, always one from 8.5 on.
    """
    accu = 0.0 if prob == 0.0 else accu + prob
    if derandomise and accu < 0.85:
        return False, accu
    hit = number < prob or (derandomise and accu >= 8.5)
    return hit, 0.0 if hit else accu


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide at enqueue (RFC 8033 section 4.1)."""
    my = of_env(env)
    number = uniform(env)
    if my.burst_ns > 0:
        return ENQUEUE
    if (my.old_ns < env.target_us * 500 and my.prob < 0.2) or queue_at(env, index).bytes <= 2 * 1500:
        return ENQUEUE
    hit, my.accu = draw(my.prob, my.accu, number, my.derandomise != 0)
    if not hit:
        return ENQUEUE
    return MARK if packet_at(env, p).ecn != NOT_ECT and my.prob <= my.ecn_threshold else DROP


@jit
def note_foreign_decision(env: Any, index: int, action: int) -> None:
    """Update the accumulated probability as for a decision of the discipline itself."""
    my = of_env(env)
    my.accu = 0.0 if action != ENQUEUE or my.prob == 0.0 else my.accu + my.prob


@jit
def update(env: Any, index: int) -> int:
    """Update the probability every T_UPDATE; return the age of the head (the controller uses the last sojourn)."""
    my, q = of_env(env), queue_at(env, 0)
    current = q.delay_ns if q.packets > 0 else 0
    my.prob = update_probability(my.prob, current, my.old_ns, env.target_us * 1000, my.alpha_hz, my.beta_hz)
    half = env.target_us * 500
    if my.burst_ns > 0:
        my.burst_ns = max(my.burst_ns - env.tupdate_us * 1000, 0)
    elif my.prob == 0.0 and current < half and my.old_ns < half:
        my.burst_ns = env.max_burst_us * 1000
    my.old_ns = current
    return head_delay_ns(env, 0)


@jit
def base_probability(env: Any, index: int) -> int:
    """Return the drop probability, 1/(2^31 - 1)."""
    return int(of_env(env).prob * MAX_PROB)


@jit
def accumulated_probability(env: Any, index: int) -> int:
    """Return the accumulated probability, 1/(2^31 - 1)."""
    return int(of_env(env).accu * MAX_PROB)


@jit
def burst_allowance_us(env: Any, index: int) -> int:
    """Return the remaining burst allowance, us."""
    return of_env(env).burst_ns // 1000


@jit
def old_delay_us(env: Any, index: int) -> int:
    """Return the queue delay at the last update, us."""
    return of_env(env).old_ns // 1000


PIE: Final = Discipline(
    name="pie",
    title="PIE, RFC 8033",
    options=Options,
    records=STATE,
    setup=setup,
    decide_at_enqueue=decide,
    note_foreign_decision=note_foreign_decision,
    update=update,
    base_probability=base_probability,
    accumulated_probability=accumulated_probability,
    burst_allowance_us=burst_allowance_us,
    old_delay_us=old_delay_us,
)
