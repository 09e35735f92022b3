"""Congestion controls: what an acknowledgement, a mark and a loss do to the window (in packets)."""

from __future__ import annotations

import math
from typing import Any, Final

from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.layout import CUBIC, DCTCP, PRAGUE

SLOW_START: Final = 1
APP_LIMITED: Final = 2
TIMED_OUT: Final = 4
"""What FreeBSD's CUBIC remembers (`CUBICFLAG_*`) until it is in congestion avoidance again."""

MIN_WINDOW: Final = 2.0
FREEBSD_TICK_NS: Final = 10_000_000
"""FreeBSD counts CUBIC's time in ticks; in a virtual machine hz is 100."""
PRAGUE_REF_RTT_NS: Final = 25_000_000
"""Prague behaves as if its RTT were at least this (UDP Prague's reference RTT)."""
PRAGUE_MIN_RATE_BPS: Final = 100_000.0
"""UDP Prague's least pacing rate: no mark or loss takes the window below it."""
LARGE: Final = 1e9


@jit
def _least_window(f: Any) -> float:
    """Window that no reduction goes below, packets."""
    if f.cc != PRAGUE:
        return MIN_WINDOW
    return PRAGUE_MIN_RATE_BPS * f.srtt_ns * 1e-9 / (8.0 * f.mss)


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
    f.round_ns = 0
    f.reduced_ns = 0
    f.backoff = 1
    f.rexmit = 0
    f.prr_delivered = 0
    f.prr_out = 0
    f.recover_fs = 0
    f.phase = 0
    f.epoch_acks = 0
    f.epoch_rtt_ns = 0.0
    f.mean_rtt_ns = 0.0


@public
def cubic_window(elapsed_s: float, k: float, w_max: float, c: float = 0.4) -> float:
    """W_cubic(t) of RFC 9438 section 4.2, packets."""
    d = elapsed_s - k
    return c * d * d * d + w_max


@jit
def _cubic_reduce_of_freebsd(f: Any, now_ns: int) -> None:
    """`cubic_ssthresh_update`: the threshold is of the plateau that fast convergence has lowered."""
    plateau = f.cwnd * (1.0 + f.beta) / 2.0 if f.cwnd < f.w_max else f.cwnd
    first = f.prior == 0.0
    f.prior = f.cwnd
    f.w_max = plateau * f.beta if first else plateau
    f.ssthresh = max(plateau * (0.5 if first else f.beta), MIN_WINDOW)
    f.cwnd = f.ssthresh
    f.cubic_k = (f.w_max * (1.0 - f.beta) / f.cubic_c) ** (1.0 / 3.0)
    f.epoch_ns = now_ns


@jit
def _cubic_reduce(f: Any, beta: float, now_ns: int) -> None:
    """RFC 9438 sections 4.6 and 4.7 (fast convergence)."""
    if f.freebsd:
        _cubic_reduce_of_freebsd(f, now_ns)
        return
    f.prior = f.cwnd
    f.w_max = f.cwnd * (1.0 + beta) / 2.0 if f.cwnd < f.w_max else f.cwnd
    f.cwnd = max(f.cwnd * beta, MIN_WINDOW)
    f.ssthresh = f.cwnd
    f.cubic_k = ((f.w_max - f.cwnd) / f.cubic_c) ** (1.0 / 3.0) if f.w_max > f.cwnd else 0.0
    f.w_est = f.cwnd
    f.epoch_ns = -1


@jit
def _cubic_of_freebsd(f: Any, now_ns: int) -> None:
    """FreeBSD 14's `cubic_ack_received`: the window is set straight to the larger curve, in time of whole ticks.

    The epoch begins with the signal, and again where slow start or a full receive window has ended. After a timeout
    the plateau is the window that slow start has reached, at once (RFC 8312, section 4.7).
    Until the first congestion signal (a slow start that the host cache has ended) the window draws its own plateau
    along, and runs away after K seconds.
    """
    if f.phase & SLOW_START and f.phase & TIMED_OUT:
        f.phase = f.phase & APP_LIMITED
        f.w_max = f.cwnd
        f.cubic_k = 0.0
        f.epoch_ns = now_ns
    elif f.phase & (SLOW_START | APP_LIMITED):
        f.phase &= TIMED_OUT
        f.cubic_k = (f.w_max * (1.0 - f.beta) / f.cubic_c) ** (1.0 / 3.0)
        f.epoch_ns = now_ns
    elapsed_s = (now_ns - f.epoch_ns) // FREEBSD_TICK_NS * (FREEBSD_TICK_NS * 1e-9)
    rtt_s = max(f.mean_rtt_ns, FREEBSD_TICK_NS) * 1e-9
    friendly = f.w_max * f.beta + f.friendly * elapsed_s / rtt_s
    cubic = cubic_window(elapsed_s + rtt_s, f.cubic_k, f.w_max, f.cubic_c)
    f.cwnd = max(f.cwnd, friendly, cubic)
    if f.prior == 0.0 and f.w_max < f.cwnd:
        f.w_max = f.cwnd
        f.cubic_k = (f.w_max * (1.0 - f.beta) / f.cubic_c) ** (1.0 / 3.0)


@jit
def on_ack_of_freebsd(f: Any, acked: int, now_ns: int) -> None:
    """FreeBSD's `ack_received` outside of recovery: growth only while the window is not above the receiver's.

    What is in flight does not matter (`net.inet.tcp.newcwv` is 0), and the window may grow over the receiver's.
    """
    if f.cwnd > f.rwnd:
        f.phase |= APP_LIMITED
    elif f.cwnd <= f.ssthresh:
        f.phase |= SLOW_START
        f.cwnd += acked
    elif f.cc == CUBIC:
        _cubic_of_freebsd(f, now_ns)
    else:
        f.cwnd += acked / f.cwnd


@jit
def note_rtt_of_freebsd(f: Any) -> None:
    """`cubic_record_rtt`: the mean of an epoch's smoothed RTTs; in the first epoch the least one."""
    f.epoch_rtt_ns += f.srtt_ns
    f.epoch_acks += 1
    if f.mean_rtt_ns == 0.0:
        f.mean_rtt_ns = f.srtt_ns


@jit
def after_recovery_of_freebsd(f: Any, pipe: int, after_loss: bool) -> None:
    """`post_recovery`: with less in flight than the threshold, the window is that and one packet more (RFC 6582)."""
    if after_loss:
        if pipe < f.ssthresh:
            f.cwnd = max(pipe, 1) + 1.0
        elif f.cc == CUBIC:
            f.cwnd = max(f.w_max * f.beta, MIN_WINDOW)
        else:
            f.cwnd = f.ssthresh
    if f.epoch_acks > 0:
        f.mean_rtt_ns = f.epoch_rtt_ns / f.epoch_acks
    f.epoch_acks = 0
    f.epoch_rtt_ns = 0.0
    if f.cc == DCTCP:  # `dctcp_post_recovery`: one more step of the average, mostly over nothing
        f.ce_alpha += f.gain * (min(f.marked_in_round / max(f.acked_in_round, 1), 1.0) - f.ce_alpha)
        f.acked_in_round = 0
        f.marked_in_round = 0
        f.round_end = f.nxt
    f.prr_delivered = 0
    f.prr_out = 0


@jit
def proportional_rate(f: Any, pipe: int, delivered: int, new_loss: bool) -> int:
    """`tcp_do_prr_ack` (RFC 6937): how many packets an ACK in recovery lets go.

    What is in flight at the start, `recover_fs`, is that of the last loss: an ECN signal does not set it, and what
    was sent (`prr_out`) is reset at the end of a recovery only, not by a timeout and not at the start of the next.
    """
    f.prr_delivered += delivered
    if pipe >= f.ssthresh:
        if f.recover_fs == 0:
            f.recover_fs = max(f.nxt - f.una, 1)
        return max(math.ceil(f.prr_delivered * f.ssthresh / f.recover_fs - f.prr_out), 0)
    limit = f.prr_delivered - f.prr_out
    if not new_loss and delivered > 0:
        limit = max(limit, delivered) + 1
    return max(min(int(f.ssthresh) - pipe, limit), 0)


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


@public
def prague_vrtt_ns(srtt_ns: float) -> float:
    """Virtual RTT: the smoothed RTT, at least 25 ms."""
    return max(srtt_ns, PRAGUE_REF_RTT_NS)


@jit
def on_ack(f: Any, acked: int, marked: int, now_ns: int) -> None:
    """Grow the window for `acked` newly delivered packets, of which `marked` bore CE.

    Slow start counts every packet (RFC 3465 with L = unlimited); congestion avoidance is Reno's for
    NewReno and DCTCP (RFC 8257 section 3.5), RFC 9438's for CUBIC, and for Prague Reno's on unmarked
    packets, scaled by (srtt / vrtt)^2 for RTT independence.
    """
    if f.cwnd < f.ssthresh:
        f.cwnd += acked
        if f.cwnd > f.ssthresh:
            f.cwnd = f.ssthresh
    elif f.cc == CUBIC:
        _cubic_increase(f, acked, now_ns)
    elif f.cc == PRAGUE:
        ratio = f.srtt_ns / prague_vrtt_ns(f.srtt_ns)
        f.cwnd += max(acked - marked, 0) * ratio * ratio / f.cwnd
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
    f.cwnd = max(f.cwnd * f.beta, _least_window(f))
    f.ssthresh = f.cwnd
    f.reduced_ns = now_ns


@jit
def on_timeout(f: Any) -> None:
    """RFC 5681 section 3.1: half the window as threshold, and start again from one packet."""
    if f.freebsd:  # CUBIC's threshold has no floor there, and its plateau comes with the end of slow start
        if f.cc == CUBIC:
            f.ssthresh = f.cwnd * f.beta
            f.prior = f.cwnd
            f.phase |= TIMED_OUT
        else:
            f.ssthresh = max(float(int(min(f.cwnd, float(f.rwnd)) * f.beta)), MIN_WINDOW)
    elif f.cc == CUBIC:
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
    f.reduced_ns = now_ns


@jit
def count_marks(f: Any, acked: int, marked: int, now_ns: int) -> None:
    """DCTCP's and Prague's moving average of the marked fraction, once per round (RFC 8257 section 3.3).

    A round is a window; for Prague it also lasts at least a virtual RTT.
    """
    f.acked_in_round += acked
    f.marked_in_round += marked
    if f.una < f.round_end:
        return
    if f.cc == PRAGUE and now_ns - f.round_ns < prague_vrtt_ns(f.srtt_ns):
        return
    if f.acked_in_round > 0:
        fraction = min(f.marked_in_round / f.acked_in_round, 1.0)
        f.ce_alpha += f.gain * (fraction - f.ce_alpha)
    f.acked_in_round = 0
    f.marked_in_round = 0
    f.round_end = f.nxt
    f.round_ns = now_ns


@jit
def on_scalable_ecn(f: Any, now_ns: int) -> bool:
    """DCTCP's and Prague's decrease by alpha / 2, once per round; whether it was taken.

    Prague takes it at most once per virtual RTT; the first mark ends slow start and halves the window.
    """
    if f.cc == DCTCP:
        f.reductions += 1
        f.cwnd = max(f.cwnd * (1.0 - f.ce_alpha / 2.0), MIN_WINDOW)
        f.ssthresh = f.cwnd
        return True
    if f.ssthresh >= LARGE:
        f.ce_alpha = 1.0
    elif now_ns - f.reduced_ns < prague_vrtt_ns(f.srtt_ns):
        return False
    f.reductions += 1
    f.cwnd = max(f.cwnd * (1.0 - f.ce_alpha / 2.0), _least_window(f))
    f.ssthresh = f.cwnd
    f.reduced_ns = now_ns
    return True
