"""CUBIC (RFC 9438), as Linux has it; FreeBSD's is in `l4s_gym.sim.freebsd_tcp`."""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.sim.control import MIN_WINDOW, CongestionControl
from l4s_gym.sim.jit import jit, public


@public
def cubic_window(elapsed_s: float, k: float, w_max: float, c: float = 0.4) -> float:
    """Compute W_cubic(t) of RFC 9438 section 4.2, packets."""
    d = elapsed_s - k
    return c * d * d * d + w_max


@jit
def restart(f: Any, now_ns: int) -> None:
    """Set the state of a new connection."""
    f.w_max = 0.0
    f.w_est = 0.0
    f.epoch_ns = 0
    f.prior = 0.0


@jit
def _reduce(f: Any, beta: float) -> None:
    """Reduce the window (RFC 9438 sections 4.6 and 4.7, fast convergence)."""
    f.prior = f.cwnd
    f.w_max = f.cwnd * (1.0 + beta) / 2.0 if f.cwnd < f.w_max else f.cwnd
    f.cwnd = max(f.cwnd * beta, MIN_WINDOW)
    f.ssthresh = f.cwnd
    f.cubic_k = ((f.w_max - f.cwnd) / f.cubic_c) ** (1.0 / 3.0) if f.w_max > f.cwnd else 0.0
    f.w_est = f.cwnd
    f.epoch_ns = -1


@jit
def on_ack(f: Any, acked: int, now_ns: int) -> None:
    """Grow to the larger of the cubic and the Reno-friendly window (RFC 9438 sections 4.2 to 4.5)."""
    if f.epoch_ns <= 0:
        if f.epoch_ns == 0:  # slow start ended without a reduction
            f.w_max = f.cwnd
            f.cubic_k = 0.0
            f.w_est = f.cwnd
            f.prior = f.cwnd
        f.epoch_ns = now_ns
    elapsed_s = (now_ns - f.epoch_ns) * 1e-9
    slope = 1.0 if f.slope_one != 0 and f.w_est >= f.prior else f.friendly
    f.w_est += slope * acked / f.cwnd
    if cubic_window(elapsed_s, f.cubic_k, f.w_max, f.cubic_c) < f.w_est:
        f.cwnd = max(f.cwnd, f.w_est)
        return
    target = cubic_window(elapsed_s + f.srtt_ns * 1e-9, f.cubic_k, f.w_max, f.cubic_c)
    target = min(max(target, f.cwnd), 1.5 * f.cwnd)
    f.cwnd += (target - f.cwnd) / f.cwnd * acked


@jit
def on_loss(f: Any, now_ns: int) -> None:
    """Reduce by beta after a loss."""
    _reduce(f, f.beta)


@jit
def on_ecn(f: Any, now_ns: int) -> None:
    """Reduce as after a loss, or by beta_ecn (RFC 8511)."""
    _reduce(f, f.beta_ecn)


@jit
def on_timeout(f: Any, now_ns: int) -> None:
    """Start a fresh epoch with K = 0 (RFC 9438 section 4.8)."""
    _reduce(f, f.beta)
    f.epoch_ns = 0


CONTROL: Final = CongestionControl(
    "cubic",
    restart=restart,
    on_ack=on_ack,
    on_loss=on_loss,
    on_ecn=on_ecn,
    on_timeout=on_timeout,
    beta=0.7,
    holds=True,
    slow_start="hystart",
    freebsd=True,
)
