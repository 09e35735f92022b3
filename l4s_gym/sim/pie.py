"""PIE as RFC 8033 writes it: real numbers, decision at enqueue, delay from timestamps (section 5.2)."""

from __future__ import annotations

from typing import Any

from l4s_gym.schema import DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.events import uniform
from l4s_gym.sim.jit import jit, public


@public
def update_probability(
    prob: float,
    current_ns: int,
    previous_ns: int,
    target_ns: int = 15_000_000,
    alpha_hz: float = 0.125,
    beta_hz: float = 1.25,
) -> float:
    """One update of the drop probability (RFC 8033 section 4.2 and appendix A).

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
    """Whether a packet is hit, and the accumulated probability afterwards (RFC 8033 section 5.4).

    Args:
        prob: Drop probability.
        accu: Accumulated probability before this packet.
        number: Uniform in [0, 1).
        derandomise: No hit below an accumulated 0.85, always one from 8.5 on.
    """
    accu = 0.0 if prob == 0.0 else accu + prob
    if derandomise and accu < 0.85:
        return False, accu
    hit = number < prob or (derandomise and accu >= 8.5)
    return hit, 0.0 if hit else accu


@jit
def decide(env: Any, q: Any, ecn: int) -> int:
    """The engine's call at enqueue (RFC 8033 section 4.1)."""
    number = uniform(env)
    if q.burst_ns > 0:
        return ENQUEUE
    if (env.qdelay_old_ns < env.target_us * 500 and q.prob < 0.2) or q.bytes <= 2 * 1500:
        return ENQUEUE
    hit, q.accu = draw(q.prob, q.accu, number, env.derandomise != 0)
    if not hit:
        return ENQUEUE
    return MARK if ecn != NOT_ECT and q.prob <= env.ecn_threshold else DROP


@jit
def update(env: Any, q: Any) -> None:
    """The engine's call every T_UPDATE."""
    current = q.delay_ns if q.packets > 0 else 0
    q.prob = update_probability(q.prob, current, env.qdelay_old_ns, env.target_us * 1000, env.alpha_hz, env.beta_hz)
    half = env.target_us * 500
    if q.burst_ns > 0:
        q.burst_ns = max(q.burst_ns - env.tupdate_us * 1000, 0)
    elif q.prob == 0.0 and current < half and env.qdelay_old_ns < half:
        q.burst_ns = env.max_burst_us * 1000
    env.qdelay_old_ns = current
