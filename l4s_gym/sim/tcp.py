"""The sender's transport: loss recovery with SACK, timeouts, pacing, and the events for each congestion control.

Segments are numbered; `l4s_gym.sim.scoreboard` keeps a byte for each. Sources: RFC 6675 (recovery with SACK,
DupThresh 3), RFC 5681 (growth on ACKs of new data only), RFC 6298 (timeout), RFC 3465 (one packet an ACK after a
timeout), RFC 7323 (timestamps), RFC 3168. FreeBSD's senders recover as its base stack does
(`l4s_gym.sim.freebsd_tcp`), Prague as its reference (`l4s_gym.sim.prague`).
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.schema import CE, ECT_1, NOT_ECT
from l4s_gym.sim import congestion, freebsd_tcp, prague, scoreboard, slowstart
from l4s_gym.sim.congestion import PRAGUE
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import NEVER, RESENT
from l4s_gym.sim.memory import board_of, flow_at, packet_at
from l4s_gym.sim.packets import allocate, arm, release, renew

MAX_RTO_NS: Final = 60_000_000_000
LAG_NS: Final = 250_000
"""A paced TCP sender may catch up by this much (RFC 9331 section 4.3: bursts of at most 250 us)."""
PACED_FASTER: Final = 1.2
"""Linux paces at this times the window per RTT (`tcp_pacing_ca_ratio`), and twice in the first half of slow start."""


@jit
def restart(env: Any, i: int) -> None:
    """Set the state of a new connection."""
    f = flow_at(env, i)
    slowstart.restart(f)
    f.cwnd = f.initial_window
    f.ssthresh = f.initial_ssthresh
    f.srtt_ns = 0.0
    f.rttvar_ns = 0.0
    f.min_rtt_ns = 1 << 62
    f.backoff = 1
    f.packet_len = f.mss
    f.recovery = 0
    f.rexmit = 0
    f.fast_resend = 0
    f.loss_ns = 0
    f.lost_since = 0
    f.lost_late = 0
    f.ecn_recover = f.nxt - 1
    f.round_end = f.nxt
    f.pace_at = 0
    freebsd_tcp.restart(f)
    congestion.restart(f, env.now_ns)


@jit
def rto_ns(f: Any) -> int:
    """Return the retransmission timeout (RFC 6298), with its backoff."""
    if f.cc == PRAGUE and f.variant == prague.UDP:
        return prague.TIMEOUT_NS
    if f.srtt_ns == 0.0:
        base = 1e9
    elif f.freebsd:
        base = max(f.srtt_ns + 4.0 * f.rttvar_ns + f.slop_ns, f.min_rto_ns)
    else:  # Linux: the variation counts at least this (`tcp_rto_min`), else a full buffer causes timeouts
        base = f.srtt_ns + max(4.0 * f.rttvar_ns, f.min_rto_ns) + f.slop_ns
    return int(min(base * f.backoff, MAX_RTO_NS))


@jit
def _sample_rtt(f: Any, rtt_ns: int) -> None:
    f.rtt_sum_ns += rtt_ns
    f.rtt_count += 1
    f.min_rtt_ns = min(f.min_rtt_ns, rtt_ns)
    if f.srtt_ns == 0.0:
        f.srtt_ns = rtt_ns
        f.rttvar_ns = rtt_ns / 2.0
    else:
        f.rttvar_ns += 0.25 * (abs(f.srtt_ns - rtt_ns) - f.rttvar_ns)
        f.srtt_ns += 0.125 * (rtt_ns - f.srtt_ns)


@jit
def _react_to_ecn(f: Any, acked: int, marked: int, echo: bool, now_ns: int) -> None:
    """Reduce the window for marks: once a window, and not while losses are recovered."""
    if f.scalable:
        if not f.accurate:
            marked = acked if echo else 0
        congestion.on_marks(f, acked, marked)
        if marked > 0 and f.una > f.ecn_recover and f.recovery == 0:
            congestion.on_ecn(f, now_ns)
            f.ecn_recover = f.nxt
            f.send_cwr = 1
    elif (echo or marked > 0) and f.una > f.ecn_recover and f.ecn != NOT_ECT:
        if f.recovery == 0:
            congestion.on_ecn(f, now_ns)
        f.ecn_recover = f.nxt
        f.send_cwr = 1


@jit
def _on_ack_of_tcp(env: Any, i: int, advance: int, acked: int, marked: int, echo: bool, rtt_ns: int) -> None:
    """Process an ACK of all senders but Prague and FreeBSD's. `recovery` is 1 after a loss, 2 after a timeout.

    The window grows only if the ACK acknowledges new data: SACK news while `una` stands still is not
    progress. A loss beyond `recover` belongs to a later window, and is handled when the recovery ends.
    """
    f = flow_at(env, i)
    news = scoreboard.find_lost(env, i, f.sack3)  # three sacked segments above it: RFC 6675, IsLost
    if f.recovery != 0 and f.una >= f.recover:
        f.recovery = 0
        news += f.lost_late
    if news > 0 and f.recovery == 0:
        f.recovery = 1
        f.recover = f.nxt
        f.lost_late = 0
        f.resend_from = f.una
        f.fast_resend = 1
        congestion.on_loss(f, env.now_ns)
    _react_to_ecn(f, acked, marked, echo, env.now_ns)
    if advance == 0 or acked == 0 or f.recovery == 1 or f.limited == 0 or (f.holds and f.una <= f.ecn_recover):
        return
    if f.slow_start != slowstart.STANDARD and f.cwnd < f.ssthresh:
        slowstart.note_rtt(f, rtt_ns, env.now_ns)
    congestion.on_ack(f, 1 if f.recovery == 2 else acked, env.now_ns)


@jit
def _on_ack_of_prague(env: Any, i: int, advance: int, acked: int, marked: int, sent_ns: int) -> None:
    """Process an ACK of Prague: `udp` detects a loss by the first gap, also of resent packets; `tcp` as TCP does."""
    f = flow_at(env, i)
    news = 0
    if f.variant == prague.UDP:
        news = scoreboard.find_lost(env, i, f.sack1)
        if advance > 0 and f.una < f.nxt and board_of(env, i)[f.una & (env.window - 1)] & RESENT:
            f.hole_ns = env.now_ns
        if f.una < f.nxt and sent_ns > f.hole_ns:
            again = scoreboard.lose_again(env, i, f.una)
            if again:
                f.resend_from = f.una
            news += again
        if acked > 0 and f.nxt > f.una:
            f.rto_at = env.now_ns + prague.TIMEOUT_NS
    else:
        news = scoreboard.find_lost(env, i, f.sack3)
        if f.una >= f.recover:
            f.recovery = 0
    prague.on_ack(f, acked, marked, news, env.now_ns)


@jit
def on_ack(env: Any, i: int, p: int) -> None:
    """Process an ACK at its sender."""
    f = flow_at(env, i)
    a = packet_at(env, p)
    rtt_ns = env.now_ns - a.sent_ns
    _sample_rtt(f, rtt_ns)
    una, fack = f.una, f.sack1
    acked = scoreboard.take_ack(env, i, a)
    advance = f.una - una
    if advance > 0:
        f.backoff = 1
        f.rto_at = env.now_ns + rto_ns(f) if f.nxt > f.una else NEVER
        if f.rto_at < NEVER:
            arm(env, i, f.rto_at)
    marked = max(a.ce_count - f.ce_seen, 0)
    f.ce_seen = max(f.ce_seen, a.ce_count)
    if f.freebsd:
        if f.scalable:
            congestion.on_marks(f, acked, acked if a.echo else 0)
        freebsd_tcp.on_ack(env, i, advance, acked, fack, a)
    elif f.cc == PRAGUE:
        _on_ack_of_prague(env, i, advance, acked, min(marked, acked), a.sent_ns)
    else:
        _on_ack_of_tcp(env, i, advance, acked, marked, a.echo != 0, rtt_ns)
    f.window_sum += f.cwnd * acked
    f.window_count += acked
    release(env, p)


@jit
def on_timeout(env: Any, i: int) -> None:
    """Handle an expired retransmission timer: everything that is not sacked counts as lost (RFC 6298)."""
    f = flow_at(env, i)
    f.timeouts += 1
    if f.cc == PRAGUE:
        prague.on_timeout(f, env.now_ns)
    elif f.freebsd:
        freebsd_tcp.on_timeout(env, i)
    elif f.recovery != 2 or f.backoff == 1:  # not for the same segment again (RFC 5681, section 3.1)
        congestion.on_timeout(f, env.now_ns)
    else:
        f.cwnd = 1.0
    slowstart.restart(f)
    f.recovery = 2
    f.fast_resend = 0
    f.recover = f.nxt
    f.lost_late = 0
    scoreboard.lose_all(env, i)
    f.backoff = min(f.backoff * 2, 64)
    f.rto_at = env.now_ns + rto_ns(f)


@jit
def _pace_ns(f: Any, length: int, now_ns: int) -> float:
    """Return the time of a packet at the pacing rate; 0 before the rate is known."""
    if f.cc == PRAGUE:
        return prague.interval_ns(f, length, now_ns)
    return f.srtt_ns / (f.cwnd * (2.0 if f.cwnd < f.ssthresh / 2.0 else PACED_FASTER))


@jit
def _paced_out(env: Any, i: int, length: int) -> bool:
    """Return whether pacing holds the next packet back; if so, set the timer."""
    f = flow_at(env, i)
    now = env.now_ns
    if f.pace_at > now and f.burst_open <= 0:
        f.held_back = 1
        arm(env, i, f.pace_at)
        return True
    interval = int(_pace_ns(f, length, now))
    if f.pace_at > now:
        f.burst_open -= 1
        f.pace_at += interval
    elif f.cc == PRAGUE:
        f.burst_open = prague.burst_packets(f) - 1
        f.pace_at = now + interval
    else:
        f.pace_at = max(f.pace_at, now - LAG_NS) + interval
    return False


@jit
def _has_room(f: Any) -> bool:
    """Return whether the congestion window allows one more packet."""
    if f.cc == PRAGUE and (f.recovery != 2 or f.variant == prague.UDP):
        return f.pipe < prague.packet_window(f)
    if f.fast_resend and f.lost_out > 0:  # the first lost segment is sent at once (RFC 6675 section 5, step 4.3)
        return True
    window = f.cwnd if f.freebsd and f.recovery == 1 else max(f.cwnd, 1.0)
    return f.pipe + 1 <= window


@jit
def next_packet(env: Any, i: int) -> int:
    """Return the next packet that flow `i` may send now, or -1 (window, pacing or data exhausted)."""
    f = flow_at(env, i)
    board = board_of(env, i)
    if not _has_room(f):
        f.limited = 1
        return -1
    seq = scoreboard.next_lost(env, i) if f.lost_out > 0 else -1
    resent = seq >= 0
    if not resent:
        if f.nxt >= f.limit_seq or f.running == 0:
            # The sender is limited by its data (as in RFC 7661).
            f.limited = 0
            return -1
        if f.nxt - f.una >= f.rwnd:
            f.limited = 0
            return -1
        seq = f.nxt
    length = f.last_len if seq == f.limit_seq - 1 else f.packet_len
    if f.paced and _paced_out(env, i, length):
        f.limited = 1
        return -1
    p = allocate(env)
    renew(env, p, i, 0)
    a = packet_at(env, p)
    a.ecn = f.ecn
    if resent:
        board[seq & (env.window - 1)] |= RESENT
        f.lost_out -= 1
        f.resend_from = seq + 1
        f.resent += 1
        f.rexmit += 1
        f.fast_resend = 0
        if seq == f.una:  # the timer starts here (RFC 6298 section 5: also if recovery sends it again)
            f.hole_ns = env.now_ns
            f.rto_at = env.now_ns + rto_ns(f)
            arm(env, i, f.rto_at)
        if f.ect_resent == 0:
            a.ecn = NOT_ECT
    else:
        f.nxt += 1
        if f.send_cwr:
            a.cwr = 1
            f.send_cwr = 0
    f.pipe += 1
    f.sent_all += 1
    if f.recovery == 1 or f.recovery == 3:
        f.prr_out += 1
    a.len = length
    a.seq = seq
    a.sent_ns = env.now_ns
    if f.rto_at >= NEVER:
        f.rto_at = env.now_ns + rto_ns(f)
        arm(env, i, f.rto_at)
    return p


@jit
def is_l4s(ecn: int) -> bool:
    """Return whether a codepoint asks for L4S treatment (RFC 9331 section 5.1)."""
    return ecn == ECT_1 or ecn == CE
