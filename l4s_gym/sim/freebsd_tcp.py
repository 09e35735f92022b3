"""Senders of FreeBSD 14's base stack: CUBIC in ticks, proportional rate reduction after losses and ECN signals.

Source: `tcp_input.c`, `tcp_output.c`, `tcp_sack.c` and `cc_cubic.c` of FreeBSD 14. The scoreboard is up to date when
these functions are called (`l4s_gym.sim.scoreboard`).
"""

from __future__ import annotations

import math
from typing import Any, Final

from l4s_gym.schema import NOT_ECT
from l4s_gym.sim import congestion, scoreboard
from l4s_gym.sim.congestion import CUBIC, DCTCP
from l4s_gym.sim.control import MIN_WINDOW
from l4s_gym.sim.cubic import cubic_window
from l4s_gym.sim.jit import jit
from l4s_gym.sim.memory import flow_at

SLOW_START: Final = 1
APP_LIMITED: Final = 2
TIMED_OUT: Final = 4
"""State of FreeBSD's CUBIC (`CUBICFLAG_*`) until it is in congestion avoidance again."""
TICK_NS: Final = 10_000_000
"""FreeBSD counts CUBIC's time in ticks; in a virtual machine hz is 100."""


@jit
def restart(f: Any) -> None:
    """Set the state of a new connection."""
    f.prr_delivered = 0
    f.prr_out = 0
    f.recover_fs = 0
    f.phase = 0
    f.epoch_acks = 0
    f.epoch_rtt_ns = 0.0
    f.mean_rtt_ns = 0.0


@jit
def _cubic_reduce(f: Any, now_ns: int) -> None:
    """Reduce the threshold (`cubic_ssthresh_update`): a share of the plateau after fast convergence."""
    plateau = f.cwnd * (1.0 + f.beta) / 2.0 if f.cwnd < f.w_max else f.cwnd
    first = f.prior == 0.0
    f.prior = f.cwnd
    f.w_max = plateau * f.beta if first else plateau
    f.ssthresh = max(plateau * (0.5 if first else f.beta), MIN_WINDOW)
    f.cwnd = f.ssthresh
    f.cubic_k = (f.w_max * (1.0 - f.beta) / f.cubic_c) ** (1.0 / 3.0)
    f.epoch_ns = now_ns


@jit
def _reduce(f: Any, beta: float, now_ns: int) -> None:
    """Reduce the window after a loss or an ECN signal of RFC 3168."""
    f.reductions += 1
    if f.cc == CUBIC:
        _cubic_reduce(f, now_ns)
    else:
        f.cwnd = max(f.cwnd * beta, MIN_WINDOW)
        f.ssthresh = f.cwnd


@jit
def _cubic(f: Any, now_ns: int) -> None:
    """Set the window (FreeBSD 14's `cubic_ack_received`) directly to the larger curve, in time of whole ticks.

    The epoch begins with the signal, and again at the end of slow start or of a full receive window. After a timeout
    the plateau is at once the window that slow start has reached (RFC 8312, section 4.7); here also where the
    threshold leaves no room for slow start. (FreeBSD then continues the old epoch, and a sender that was
    silent for seconds sets its window to hundreds of packets.)
    Until the first congestion signal (if the host cache has ended slow start) the plateau grows with the window,
    which increases without limit after K seconds.
    """
    if f.phase & TIMED_OUT:
        f.phase = f.phase & APP_LIMITED
        f.w_max = f.cwnd
        f.cubic_k = 0.0
        f.epoch_ns = now_ns
    elif f.phase & (SLOW_START | APP_LIMITED):
        f.phase &= TIMED_OUT
        f.cubic_k = (f.w_max * (1.0 - f.beta) / f.cubic_c) ** (1.0 / 3.0)
        f.epoch_ns = now_ns
    elapsed_s = (now_ns - f.epoch_ns) // TICK_NS * (TICK_NS * 1e-9)
    rtt_s = max(f.mean_rtt_ns, TICK_NS) * 1e-9
    friendly = f.w_max * f.beta + f.friendly * elapsed_s / rtt_s
    cubic = cubic_window(elapsed_s + rtt_s, f.cubic_k, f.w_max, f.cubic_c)
    f.cwnd = max(f.cwnd, friendly, cubic)
    if f.prior == 0.0 and f.w_max < f.cwnd:
        f.w_max = f.cwnd
        f.cubic_k = (f.w_max * (1.0 - f.beta) / f.cubic_c) ** (1.0 / 3.0)


@jit
def _grow(f: Any, acked: int, now_ns: int) -> None:
    """Grow the window (FreeBSD's `ack_received`) outside of recovery, only up to the receive window.

    The amount in flight does not matter (`net.inet.tcp.newcwv` is 0), and one step may pass the receive window. An ACK
    counts for two packets at most in slow start, and for one while everything is sent again after a timeout (RFC 3465,
    `net.inet.tcp.abc_l_var`).
    """
    if f.cwnd > f.rwnd:
        f.phase |= APP_LIMITED
    elif f.cwnd <= f.ssthresh:
        f.phase |= SLOW_START
        f.cwnd += min(acked, 1 if f.recovery == 2 else 2)
    elif f.cc == CUBIC:
        _cubic(f, now_ns)
    else:
        f.cwnd += min(acked / f.cwnd, 1.0)


@jit
def _note_rtt(f: Any) -> None:
    """Record an RTT sample (`cubic_record_rtt`): the mean of an epoch's smoothed RTTs; in the first epoch the least."""
    f.epoch_rtt_ns += f.srtt_ns
    f.epoch_acks += 1
    if f.mean_rtt_ns == 0.0:
        f.mean_rtt_ns = f.srtt_ns


@jit
def _after_recovery(f: Any, pipe: int, after_loss: bool) -> None:
    """End the recovery (`post_recovery`): with little in flight, the window is that plus one packet (RFC 6582)."""
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
    if f.cc == DCTCP:  # `dctcp_post_recovery`: one more step of the average, mostly over 0 packets
        f.ce_alpha += f.gain * (min(f.marked_in_round / max(f.acked_in_round, 1), 1.0) - f.ce_alpha)
        f.acked_in_round = 0
        f.marked_in_round = 0
        f.round_end = f.nxt
    f.prr_delivered = 0
    f.prr_out = 0


@jit
def _proportional_rate(f: Any, pipe: int, delivered: int, new_loss: bool) -> int:
    """Return how many packets an ACK in recovery allows to send (`tcp_do_prr_ack`, RFC 6937).

    The amount in flight at the start, `recover_fs`, is that of the last loss: an ECN signal does not set it, and the
    amount sent (`prr_out`) is reset only at the end of a recovery, not by a timeout and not at the start of the next.
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
def _start_recovery(env: Any, i: int) -> None:
    """Start a recovery after three sacked segments above a hole: resend it, then others as `_proportional_rate` allows.

    During the reduction after an ECN signal, the window is not reduced again. Recovery may also start after a timeout:
    then every hole is sent again.
    """
    f = flow_at(env, i)
    sent = f.nxt - f.una
    if f.recovery == 2 and f.lost_out > 0:
        sent = max(f.resend_from - f.una, 1)
    if f.recovery != 3:
        _reduce(f, f.beta, env.now_ns)
    for seq in range(f.una, f.sack1):
        scoreboard.lose_again(env, i, seq)
    f.recovery = 1
    f.recover = f.nxt
    f.send_cwr = 1
    f.resend_from = f.una
    scoreboard.find_lost(env, i, f.sack1)
    f.prr_delivered = 1
    f.recover_fs = sent
    f.cwnd = f.pipe + 1.0


@jit
def on_ack(env: Any, i: int, advance: int, acked: int, fack: int, a: Any) -> None:
    """Process an ACK at a sender of FreeBSD 14 (`tcp_do_segment`), with an up-to-date scoreboard.

    `recovery` is 1 after a loss, 2 after a timeout (which FreeBSD does not count as recovery), 3 after an ECN signal.
    `pipe` is RFC 6675's; FreeBSD's own (`tcp_compute_pipe`) counts lost segments as in flight, and resent ones
    twice. `advance` is what the ACK acknowledges cumulatively, `acked` what is new, `fack` the highest sacked before.
    """
    f = flow_at(env, i)
    _note_rtt(f)
    has_sack = a.sack_to > a.seq
    new_loss = a.sack_seq >= 0 and a.sack_from > max(fack + 1, f.una)
    if a.echo and f.ecn != NOT_ECT and (f.recovery == 0 or (f.recovery == 3 and f.una >= f.recover)):
        if f.cc == DCTCP:
            congestion.on_ecn(f, env.now_ns)
        else:
            _reduce(f, f.beta_ecn, env.now_ns)
        f.recovery = 3
        f.recover = f.nxt + 1
        f.send_cwr = 1
    pipe = f.pipe + f.lost_out + f.rexmit
    if f.recovery == 1:
        if f.una >= f.recover:
            _after_recovery(f, pipe, True)
            f.recovery = 0
        elif acked > 0:
            scoreboard.find_lost(env, i, min(f.sack1, f.recover))
            pipe = f.pipe + f.lost_out + f.rexmit
            if advance > 0 and not has_sack:  # `tcp_sack_partialack`
                f.cwnd = f.pipe + min(advance, 2)
            else:
                f.cwnd = f.pipe + _proportional_rate(f, pipe, acked, new_loss)
        return
    if has_sack and acked > 0 and f.sack3 > f.una:
        _start_recovery(env, i)
    elif f.recovery == 3:
        if f.una >= f.recover:
            _after_recovery(f, pipe, False)
            f.recovery = 0
        elif advance > 0:
            f.cwnd = pipe + _proportional_rate(f, pipe + advance, advance, False)
    elif advance > 0:
        if f.recovery == 2 and f.una >= f.recover:
            f.recovery = 0
        _grow(f, advance, env.now_ns)


@jit
def on_timeout(env: Any, i: int) -> None:
    """Send everything again; CUBIC's threshold has no lower bound, and its plateau is set at the end of slow start."""
    f = flow_at(env, i)
    scoreboard.forget_sacked(env, i)
    if f.recovery == 1:  # `snd_cwnd` in recovery: segments sent again, and new ones since
        f.cwnd = max(f.nxt - f.recover + f.rexmit, 1.0)
    if f.cc == CUBIC:
        f.ssthresh = f.cwnd * f.beta
        f.prior = f.cwnd
        f.phase |= TIMED_OUT
    else:
        f.ssthresh = max(float(int(min(f.cwnd, float(f.rwnd)) * f.beta)), MIN_WINDOW)
    f.cwnd = 1.0
