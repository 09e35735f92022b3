"""TCP's transport machinery: selective acknowledgements, loss recovery, timeouts, delayed ACKs, ECN echo.

Segments are numbered. The scoreboard holds a byte a segment: the sender's knowledge (SACKED, LOST,
RESENT) and the receiver's (RECEIVED). Sources: RFC 6675 (recovery with SACK, DupThresh 3), RFC 6298
(timeout), RFC 7323 (timestamps), RFC 5681 (delayed ACKs), RFC 3168 section 6.1 (latched echo),
RFC 9768 (accurate echo: here a running count of CE packets), RFC 8257 section 3.2 (an ACK at once when
the CE state changes). A sender of FreeBSD 14 recovers as its base stack does (`_recover_as_freebsd`; read in
`tcp_input.c`, `tcp_output.c` and `cc_cubic.c` of 14): proportional rate reduction after losses and ECN signals alike.
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.schema import CE, ECT_1, NOT_ECT
from l4s_gym.sim import congestion
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import DCTCP, LOST, NEVER, PRAGUE, RECEIVED, RESENT, SACKED
from l4s_gym.sim.memory import board_of, flow_at, packet_at
from l4s_gym.sim.pool import allocate, arm, push_transit, release, renew

ACK_LEN: Final = 52
"""IP length of a pure ACK with timestamps, bytes."""
HEADER_LEN: Final = 52
MAX_RTO_NS: Final = 60_000_000_000
BURST_NS: Final = 250_000
"""A paced sender may send early by this much (RFC 9331 section 4.3: bursts of at most 250 us)."""


# -- receiver


@jit
def _fill_ack(w: Any, i: int, p: int, sent_ns: int, sack_seq: int) -> None:
    """Turn packet `p` into an ACK of flow `i` and send it."""
    f = flow_at(w, i)
    renew(w, p, i, 1)
    a = packet_at(w, p)
    a.len = ACK_LEN + (f.sack_length if f.held > 0 else 0)
    a.ecn = NOT_ECT
    a.seq = f.rcv_nxt
    a.sent_ns = sent_ns
    a.echo = f.echo
    a.ce_count = f.ce_count
    a.sack_seq = sack_seq
    a.sack_from = f.block_start
    a.sack_to = f.block_end
    f.pending = 0
    f.delack_at = NEVER
    push_transit(w, i, p)


@jit
def acknowledge_delayed(w: Any, i: int) -> None:
    """The delayed-ACK timer has expired."""
    _fill_ack(w, i, allocate(w), flow_at(w, i).pending_sent_ns, -1)


@jit
def _extend_block(w: Any, i: int, seq: int) -> None:
    """Keep the block of the latest out-of-order segment (RFC 2018: the first block of an ACK)."""
    f = flow_at(w, i)
    board = board_of(w, i)
    mask = w.window - 1
    start = seq
    if f.block_start <= seq <= f.block_end:
        start = f.block_start
    else:
        while start > f.rcv_nxt and board[(start - 1) & mask] & RECEIVED:
            start -= 1
    end = max(seq + 1, f.block_end if f.block_start == start else 0)
    while end < f.nxt and board[end & mask] & RECEIVED:
        end += 1
    f.block_start = start
    f.block_end = end


@jit
def _grow_window(w: Any, f: Any) -> None:
    """FreeBSD's `tcp_autorcvbuf`: half as much again where half an RTT brought more than 3/8 of the buffer."""
    if w.now_ns - f.filled_ns <= f.min_rtt_ns // 2:
        f.filled += 1
        return
    if 8 * f.filled > 3 * f.rwnd:
        f.rwnd = min(f.rwnd + f.rwnd // 2, f.largest_rwnd)
    f.filled = 0
    f.filled_ns = w.now_ns


@jit
def receive(w: Any, i: int, p: int) -> None:
    """A data packet has reached its receiver."""
    f = flow_at(w, i)
    board = board_of(w, i)
    a = packet_at(w, p)
    mask = w.window - 1
    f.received += 1
    if f.cc == 0:
        f.goodput_bytes += a.len - HEADER_LEN
        release(w, p)
        return
    ce = a.ecn == CE
    if ce:
        f.ce_count += 1
    toggled = f.accurate != 0 and ce != (f.ce_state != 0)
    f.ce_state = 1 if ce else 0
    if a.cwr:
        f.echo = 0
    if ce:
        f.echo = 1
    if f.accurate:
        f.echo = f.ce_state
    seq = a.seq
    sent_ns = a.sent_ns
    sack_seq = -1
    at_once = toggled
    if seq == f.rcv_nxt:
        f.goodput_bytes += a.len - HEADER_LEN
        f.rcv_nxt += 1
        if f.rwnd < f.largest_rwnd and f.held == 0:
            _grow_window(w, f)
        if f.held > 0:
            at_once = True
            while f.held > 0 and board[f.rcv_nxt & mask] & RECEIVED:
                board[f.rcv_nxt & mask] &= 0xFF ^ RECEIVED
                f.rcv_nxt += 1
                f.held -= 1
        if f.pending == 0:
            f.pending_sent_ns = sent_ns
        f.pending += 1
        sent_ns = f.pending_sent_ns
    else:
        at_once = True
        if seq > f.rcv_nxt and not board[seq & mask] & RECEIVED:
            f.goodput_bytes += a.len - HEADER_LEN
            board[seq & mask] |= RECEIVED
            f.held += 1
            _extend_block(w, i, seq)
            sack_seq = seq
    if at_once or f.pending >= f.ack_every:
        _fill_ack(w, i, p, sent_ns, sack_seq)
        return
    release(w, p)
    f.delack_at = w.now_ns + f.delack_ns
    arm(w, i, f.delack_at)


# -- sender


@jit
def rto_ns(f: Any) -> int:
    """Retransmission timeout (RFC 6298), with its backoff."""
    base = 1e9 if f.srtt_ns == 0.0 else f.srtt_ns + 4.0 * f.rttvar_ns + f.slop_ns
    return int(min(max(base, f.min_rto_ns) * f.backoff, MAX_RTO_NS))


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
def _delivered(f: Any, bits: int) -> None:
    """A segment is known to have arrived: take it out of the pipe, or out of what is lost."""
    if bits & LOST and not bits & RESENT:
        f.lost_out -= 1
    else:
        f.pipe -= 1
        if bits & RESENT:
            f.rexmit -= 1


@jit
def _mark_sacked(w: Any, i: int, seq: int) -> int:
    """Note a selectively acknowledged segment; 1 where that is news."""
    f = flow_at(w, i)
    board = board_of(w, i)
    at = seq & (w.window - 1)
    bits = board[at]
    if bits & SACKED:
        return 0
    _delivered(f, bits)
    board[at] = bits | SACKED
    if seq > f.sack1:
        f.sack3 = f.sack2
        f.sack2 = f.sack1
        f.sack1 = seq
    elif seq > f.sack2:
        f.sack3 = f.sack2
        f.sack2 = seq
    elif seq > f.sack3:
        f.sack3 = seq
    return 1


@jit
def _find_lost(w: Any, i: int, end: int) -> int:
    """Mark as lost what is not sacked below `end`; how many are news."""
    f = flow_at(w, i)
    board = board_of(w, i)
    mask = w.window - 1
    news = 0
    for seq in range(max(f.lost_scan, f.una), end):
        bits = board[seq & mask]
        if not bits & (SACKED | LOST):
            board[seq & mask] = bits | LOST
            f.pipe -= 1
            f.lost_out += 1
            news += 1
    f.lost_scan = max(f.lost_scan, end)
    return news


@jit
def _react_to_ecn(w: Any, i: int, acked: int, marked: int, echo: bool) -> None:
    f = flow_at(w, i)
    now = w.now_ns
    if f.cc == DCTCP or f.cc == PRAGUE:
        if not f.accurate:
            marked = acked if echo else 0
        congestion.count_marks(f, acked, marked, now)
        react = marked > 0 and f.una > f.ecn_recover and f.recovery == 0
        if react and congestion.on_scalable_ecn(f, now):
            f.ecn_recover = f.nxt
            f.send_cwr = 1
    elif (echo or marked > 0) and f.una > f.ecn_recover and f.ecn != NOT_ECT:
        if f.recovery == 0:
            congestion.on_classic_ecn(f, now)
        f.ecn_recover = f.nxt
        f.send_cwr = 1


@jit
def _start_recovery_of_freebsd(w: Any, i: int) -> None:
    """Three segments are sacked above a hole: the first hole is sent at once, the rest as `proportional_rate` allows.

    In the reduction after an ECN signal, the window is not reduced again. After a timeout, too, recovery may start:
    then every hole is sent again.
    """
    f = flow_at(w, i)
    board = board_of(w, i)
    mask = w.window - 1
    sent = f.nxt - f.una
    if f.recovery == 2 and f.lost_out > 0:
        sent = max(f.resend_from - f.una, 1)
    if f.recovery != 3:
        congestion.on_loss(f, w.now_ns)
    for seq in range(f.una, f.sack1):
        bits = board[seq & mask]
        if bits & RESENT and not bits & SACKED:
            board[seq & mask] = (bits & (0xFF ^ RESENT)) | LOST
            f.pipe -= 1
            f.rexmit -= 1
            f.lost_out += 1
    f.recovery = 1
    f.recover = f.nxt
    f.send_cwr = 1
    f.resend_from = f.una
    _find_lost(w, i, f.sack1)
    f.prr_delivered = 1
    f.recover_fs = sent
    f.cwnd = f.pipe + 1.0


@jit
def _recover_as_freebsd(w: Any, i: int, advance: int, acked: int, fack: int, a: Any) -> None:
    """What an ACK means to a sender of FreeBSD 14 (`tcp_do_segment`), its scoreboard being up to date.

    `recovery` is 1 after a loss, 2 after a timeout (which FreeBSD does not count as recovery), 3 after an ECN signal.
    `pipe` is RFC 6675's; FreeBSD's own (`tcp_compute_pipe`) counts what is lost as in flight, and twice what was sent
    again. `advance` is what the ACK acknowledges cumulatively, `acked` what is news, `fack` the highest sacked before.
    """
    f = flow_at(w, i)
    congestion.note_rtt_of_freebsd(f)
    has_sack = a.sack_to > a.seq
    new_loss = a.sack_seq >= 0 and a.sack_from > max(fack + 1, f.una)
    if a.echo and f.ecn != NOT_ECT and (f.recovery == 0 or (f.recovery == 3 and f.una >= f.recover)):
        if f.cc == DCTCP:
            congestion.on_scalable_ecn(f, w.now_ns)
        else:
            congestion.on_classic_ecn(f, w.now_ns)
        f.recovery = 3
        f.recover = f.nxt + 1
        f.send_cwr = 1
    pipe = f.pipe + f.lost_out + f.rexmit
    if f.recovery == 1:
        if f.una >= f.recover:
            congestion.after_recovery_of_freebsd(f, pipe, True)
            f.recovery = 0
        elif acked > 0:
            _find_lost(w, i, min(f.sack1, f.recover))
            pipe = f.pipe + f.lost_out + f.rexmit
            if advance > 0 and not has_sack:  # `tcp_sack_partialack`
                f.cwnd = f.pipe + min(advance, 2)
            else:
                f.cwnd = f.pipe + congestion.proportional_rate(f, pipe, acked, new_loss)
        return
    if has_sack and acked > 0 and f.sack3 > f.una:
        _start_recovery_of_freebsd(w, i)
    elif f.recovery == 3:
        if f.una >= f.recover:
            congestion.after_recovery_of_freebsd(f, pipe, False)
            f.recovery = 0
        elif advance > 0:
            f.cwnd = pipe + congestion.proportional_rate(f, pipe + advance, advance, False)
    elif advance > 0:
        if f.recovery == 2 and f.una >= f.recover:
            f.recovery = 0
        congestion.on_ack_of_freebsd(f, advance, w.now_ns)


@jit
def on_ack(w: Any, i: int, p: int) -> None:
    """An ACK has reached its sender."""
    f = flow_at(w, i)
    board = board_of(w, i)
    a = packet_at(w, p)
    mask = w.window - 1
    _sample_rtt(f, w.now_ns - a.sent_ns)
    acked = 0
    advance = max(a.seq - f.una, 0)
    fack = f.sack1
    if a.seq > f.una:
        for seq in range(f.una, a.seq):
            bits = board[seq & mask]
            if not bits & SACKED:
                acked += 1
                _delivered(f, bits)
            board[seq & mask] = 0
        f.una = a.seq
        f.backoff = 1
        f.rto_at = w.now_ns + rto_ns(f) if f.nxt > f.una else NEVER
        if f.rto_at < NEVER:
            arm(w, i, f.rto_at)
    if a.sack_seq >= f.una:
        acked += _mark_sacked(w, i, a.sack_seq)
        seq = a.sack_to - 1
        low = max(f.una, a.sack_from)
        while seq >= low and not board[seq & mask] & SACKED:
            acked += _mark_sacked(w, i, seq)
            seq -= 1
    if f.freebsd:
        if f.cc == DCTCP:
            congestion.count_marks(f, acked, acked if a.echo else 0, w.now_ns)
        _recover_as_freebsd(w, i, advance, acked, fack, a)
        f.window_sum += f.cwnd * acked
        f.window_count += acked
        release(w, p)
        return
    news = _find_lost(w, i, f.sack3)  # three sacked segments above it: RFC 6675, IsLost
    if f.recovery != 0 and f.una >= f.recover:
        f.recovery = 0
    if news > 0 and f.recovery == 0:
        f.recovery = 1
        f.recover = f.nxt
        f.resend_from = f.una
        congestion.on_loss(f, w.now_ns)
    marked = a.ce_count - f.ce_seen
    f.ce_seen = max(f.ce_seen, a.ce_count)
    _react_to_ecn(w, i, acked, max(marked, 0), a.echo != 0)
    if acked > 0 and f.recovery != 1 and f.limited != 0:
        congestion.on_ack(f, acked, max(marked, 0), w.now_ns)
    f.window_sum += f.cwnd * acked
    f.window_count += acked
    release(w, p)


@jit
def _forget_sacked(w: Any, i: int) -> None:
    """`tcp_free_sackholes`: after a timeout everything is sent again."""
    f = flow_at(w, i)
    board = board_of(w, i)
    mask = w.window - 1
    for seq in range(f.una, f.nxt):
        board[seq & mask] &= 0xFF ^ SACKED
    f.sack1 = -1
    f.sack2 = -1
    f.sack3 = -1


@jit
def on_timeout(w: Any, i: int) -> None:
    """The retransmission timer has expired: everything that is not sacked counts as lost (RFC 6298)."""
    f = flow_at(w, i)
    board = board_of(w, i)
    mask = w.window - 1
    f.timeouts += 1
    if f.freebsd:
        _forget_sacked(w, i)
        if f.recovery == 1:  # `snd_cwnd` in recovery: what was sent again, and what is new since
            f.cwnd = max(f.nxt - f.recover + f.rexmit, 1.0)
        congestion.on_timeout(f)
    elif f.recovery != 2 or f.backoff == 1:  # not for the same segment again (RFC 5681, section 3.1)
        congestion.on_timeout(f)
    f.cwnd = 1.0
    f.recovery = 2
    f.recover = f.nxt
    f.lost_out = 0
    for seq in range(f.una, f.nxt):
        bits = board[seq & mask]
        if not bits & SACKED:
            board[seq & mask] = (bits & RECEIVED) | LOST
            f.lost_out += 1
    f.pipe = 0
    f.rexmit = 0
    f.lost_scan = f.nxt
    f.resend_from = f.una
    f.backoff = min(f.backoff * 2, 64)
    f.rto_at = w.now_ns + rto_ns(f)


@jit
def _next_lost(w: Any, i: int) -> int:
    """The first lost segment that has not been sent again, or -1."""
    f = flow_at(w, i)
    board = board_of(w, i)
    mask = w.window - 1
    for seq in range(max(f.resend_from, f.una), f.lost_scan):
        bits = board[seq & mask]
        if bits & LOST and not bits & (SACKED | RESENT):
            f.resend_from = seq
            return seq
    f.resend_from = f.lost_scan
    return -1


@jit
def _paced_out(w: Any, i: int) -> bool:
    """Whether pacing holds the next packet back; if so the timer is set."""
    f = flow_at(w, i)
    now = w.now_ns
    if f.srtt_ns == 0.0:
        return False
    if f.pace_at > now:
        f.burst_left = 1
        arm(w, i, f.pace_at)
        return True
    rate = f.cwnd * (2.0 if f.cwnd < f.ssthresh else 1.03)
    f.pace_at = max(f.pace_at, now - BURST_NS) + int(f.srtt_ns / rate)
    return False


@jit
def next_packet(w: Any, i: int) -> int:
    """The next packet that flow `i` may send now, or -1 (window, pacing or data exhausted)."""
    f = flow_at(w, i)
    board = board_of(w, i)
    window = f.cwnd if f.freebsd and f.recovery == 1 else max(f.cwnd, 1.0)
    if f.pipe + 1 > window:
        f.limited = 1
        return -1
    seq = _next_lost(w, i) if f.lost_out > 0 else -1
    resent = seq >= 0
    if not resent:
        if f.nxt >= f.limit_seq or f.running == 0:
            # What stops the sender is its data, unless a full window is out (RFC 7661's question).
            f.limited = 1 if f.pipe + 1 > window else 0
            return -1
        if f.nxt - f.una >= f.rwnd:
            f.limited = 0
            return -1
        seq = f.nxt
    if f.paced and _paced_out(w, i):
        f.limited = 1
        return -1
    p = allocate(w)
    renew(w, p, i, 0)
    a = packet_at(w, p)
    a.ecn = f.ecn
    if resent:
        board[seq & (w.window - 1)] |= RESENT
        f.lost_out -= 1
        f.resend_from = seq + 1
        f.resent += 1
        f.rexmit += 1
        if f.ect_resent == 0:
            a.ecn = NOT_ECT
    else:
        f.nxt += 1
        if f.send_cwr:
            a.cwr = 1
            f.send_cwr = 0
    f.pipe += 1
    if f.recovery == 1 or f.recovery == 3:
        f.prr_out += 1
    a.len = f.last_len if seq == f.limit_seq - 1 else f.mss
    a.seq = seq
    a.sent_ns = w.now_ns
    if f.rto_at >= NEVER:
        f.rto_at = w.now_ns + rto_ns(f)
        arm(w, i, f.rto_at)
    return p


@jit
def is_l4s(ecn: int) -> bool:
    """Whether a codepoint asks for L4S treatment (RFC 9331 section 5.1)."""
    return ecn == ECT_1 or ecn == CE
