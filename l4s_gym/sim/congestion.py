"""NewReno, CUBIC and DCTCP: what an acknowledgement, a mark and a loss do to the window (in packets).

Prague has a module of its own (`l4s_gym.sim.prague`), and so have FreeBSD's senders (`l4s_gym.sim.freebsd_tcp`).
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.layout import CUBIC

MIN_WINDOW: Final = 2.0
LARGE: Final = 1e9


@jit
def restart(f: Any) -> None:
    """State of a new connection."""
    f.cwnd = f.initial_window
    f.ssthresh = f.initial_ssthresh
    f.srtt_ns = 0.0
    f.rttvar_ns = 0.0
    f.min_rtt_ns = 1 << 62
    f.w_max = 0.0
    f.w_est = 0.0
    f.epoch_ns = 0
    f.prior = 0.0
    f.ce_alpha = 1.0
    f.acked_in_round = 0
    f.marked_in_round = 0
    f.backoff = 1
    f.rexmit = 0
    f.prr_delivered = 0
    f.prr_out = 0
    f.recover_fs = 0
    f.phase = 0
    f.loss_ns = 0
    f.lost_since = 0
    f.lost_late = 0
    f.fast_resend = 0
    f.epoch_acks = 0
    f.epoch_rtt_ns = 0.0
    f.mean_rtt_ns = 0.0


@public
def cubic_window(elapsed_s: float, k: float, w_max: float, c: float = 0.4) -> float:
    """W_cubic(t) of RFC 9438 section 4.2, packets."""
    d = elapsed_s - k
    return c * d * d * d + w_max


@jit
def _cubic_reduce(f: Any, beta: float, now_ns: int) -> None:
    """RFC 9438 sections 4.6 and 4.7 (fast convergence)."""
    f.prior = f.cwnd
    f.w_max = f.cwnd * (1.0 + beta) / 2.0 if f.cwnd < f.w_max else f.cwnd
    f.cwnd = max(f.cwnd * beta, MIN_WINDOW)
    f.ssthresh = f.cwnd
    f.cubic_k = ((f.w_max - f.cwnd) / f.cubic_c) ** (1.0 / 3.0) if f.w_max > f.cwnd else 0.0
    f.w_est = f.cwnd
    f.epoch_ns = -1


@jit
def _cubic_increase(f: Any, acked: int, now_ns: int) -> None:
    """RFC 9438 sections 4.2 to 4.5: the larger of the cubic and the Reno-friendly window."""
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
def on_ack(f: Any, acked: int, now_ns: int) -> None:
    """Grow the window for `acked` packets that an ACK of new data has brought news of (RFC 5681 section 3.1).

    Slow start counts every packet, and a quarter of them in the conservative phase of RFC 9406; congestion avoidance
    is Reno's for NewReno and DCTCP (RFC 8257 section 3.5), RFC 9438's for CUBIC.
    """
    if f.cwnd < f.ssthresh:
        f.cwnd = min(f.cwnd + (0.25 * acked if f.css_rounds > 0 else acked), f.ssthresh)
    elif f.cc == CUBIC:
        _cubic_increase(f, acked, now_ns)
    else:
        f.cwnd += acked / f.cwnd
    f.cwnd = min(f.cwnd, float(f.rwnd))


@jit
def on_loss(f: Any, now_ns: int) -> None:
    """Multiplicative decrease on a loss, once per recovery (the caller sees to that)."""
    f.reductions += 1
    if f.cc == CUBIC:
        _cubic_reduce(f, f.beta, now_ns)
        return
    f.cwnd = max(f.cwnd * f.beta, MIN_WINDOW)
    f.ssthresh = f.cwnd


@jit
def on_timeout(f: Any) -> None:
    """RFC 5681 section 3.1: half the window as threshold, and start again from one packet."""
    if f.cc == CUBIC:
        _cubic_reduce(f, f.beta, 0)
        f.epoch_ns = 0  # RFC 9438 section 4.8: a fresh epoch with K = 0
    else:
        f.ssthresh = max(f.cwnd * f.beta, MIN_WINDOW)
    f.cwnd = 1.0


@jit
def on_classic_ecn(f: Any, now_ns: int) -> None:
    """A congestion signal of RFC 3168, once per round trip: as a loss, or with beta_ecn (RFC 8511)."""
    f.reductions += 1
    if f.cc == CUBIC:
        _cubic_reduce(f, f.beta_ecn, now_ns)
        return
    f.cwnd = max(f.cwnd * f.beta_ecn, MIN_WINDOW)
    f.ssthresh = f.cwnd


@jit
def count_marks(f: Any, acked: int, marked: int) -> None:
    """DCTCP's moving average of the marked fraction, once per window of data (RFC 8257 section 3.3)."""
    f.acked_in_round += acked
    f.marked_in_round += marked
    if f.una < f.round_end:
        return
    if f.acked_in_round > 0:
        fraction = min(f.marked_in_round / f.acked_in_round, 1.0)
        f.ce_alpha += f.gain * (fraction - f.ce_alpha)
    f.acked_in_round = 0
    f.marked_in_round = 0
    f.round_end = f.nxt


@jit
def on_scalable_ecn(f: Any) -> None:
    """DCTCP's decrease by alpha / 2 (the caller sees to it that it comes once per round)."""
    f.reductions += 1
    f.cwnd = max(f.cwnd * (1.0 - f.ce_alpha / 2.0), MIN_WINDOW)
    f.ssthresh = f.cwnd
