"""The receiver: reordering, delayed and selective ACKs, and the echo of congestion marks.

Sources: RFC 5681 (delayed ACKs), RFC 2018 (SACK), RFC 7323 (timestamps), RFC 3168 section 6.1 (latched echo),
RFC 9768 (accurate echo: here a running count of CE packets), RFC 8257 section 3.2 (an ACK at once when the CE state
changes).
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.schema import CE, NOT_ECT
from l4s_gym.sim import evenness
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import NEVER, NONE, RECEIVED
from l4s_gym.sim.memory import board_of, flow_at, packet_at
from l4s_gym.sim.packets import allocate, arm, push_transit, release, renew

ACK_LEN: Final = 52
"""IP length of a pure ACK with timestamps, bytes."""
HEADER_LEN: Final = 52


@jit
def _fill_ack(env: Any, i: int, p: int, sent_ns: int, sack_seq: int) -> None:
    """Turn packet `p` into an ACK of flow `i` and send it."""
    f = flow_at(env, i)
    renew(env, p, i, 1)
    a = packet_at(env, p)
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
    push_transit(env, i, p)


@jit
def acknowledge_delayed(env: Any, i: int) -> None:
    """Send the ACK because the delayed-ACK timer has expired."""
    _fill_ack(env, i, allocate(env), flow_at(env, i).pending_sent_ns, -1)


@jit
def _extend_block(env: Any, i: int, seq: int) -> None:
    """Update the block of the latest out-of-order segment (RFC 2018: the first block of an ACK)."""
    f = flow_at(env, i)
    board = board_of(env, i)
    mask = env.window - 1
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
def _grow_window(env: Any, f: Any) -> None:
    """Grow the receive window (FreeBSD's `tcp_autorcvbuf`) by half if half an RTT brought over 3/8 of the buffer."""
    if env.now_ns - f.filled_ns <= f.min_rtt_ns // 2:
        f.filled += 1
        return
    if 8 * f.filled > 3 * f.rwnd:
        f.rwnd = min(f.rwnd + f.rwnd // 2, f.largest_rwnd)
    f.filled = 0
    f.filled_ns = env.now_ns


@jit
def receive(env: Any, i: int, p: int) -> None:
    """Process a data packet at its receiver."""
    f = flow_at(env, i)
    board = board_of(env, i)
    a = packet_at(env, p)
    mask = env.window - 1
    f.received += 1
    if f.cc == NONE:
        f.goodput_bytes += a.len - HEADER_LEN
        release(env, p)
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
    payload_bytes = 0  # that has come for the first time
    if seq == f.rcv_nxt:
        payload_bytes = a.len - HEADER_LEN
        f.rcv_nxt += 1
        if f.rwnd < f.largest_rwnd and f.held == 0:
            _grow_window(env, f)
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
            payload_bytes = a.len - HEADER_LEN
            board[seq & mask] |= RECEIVED
            f.held += 1
            _extend_block(env, i, seq)
            sack_seq = seq
    if payload_bytes > 0:
        f.goodput_bytes += payload_bytes
        evenness.note_goodput(env, f, payload_bytes)
    if at_once or f.pending >= f.ack_every:
        _fill_ack(env, i, p, sent_ns, sack_seq)
        return
    release(env, p)
    f.delack_at = env.now_ns + f.delack_ns
    arm(env, i, f.delack_at)
