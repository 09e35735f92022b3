"""The sender's scoreboard: which segments have arrived, are lost, or were sent again (RFC 6675).

One byte per segment holds the bits SACKED, LOST and RESENT. `pipe` counts the segments in flight, `lost_out` those that
are lost and wait to be sent again.
"""

from __future__ import annotations

from typing import Any

from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import LOST, RECEIVED, RESENT, SACKED
from l4s_gym.sim.memory import board_of, flow_at


@jit
def _delivered(f: Any, bits: int, sent_ns: int) -> None:
    """Remove a segment, sent at `sent_ns` and known to have arrived, from the pipe or from the lost ones."""
    if bits & LOST and sent_ns < f.loss_ns:  # sent before the response to the loss: it was late, not lost (RFC 3522)
        f.lost_since -= 1
    if bits & LOST and not bits & RESENT:
        f.lost_out -= 1
    else:
        f.pipe -= 1
        if bits & RESENT:
            f.rexmit -= 1


@jit
def _mark_sacked(env: Any, i: int, seq: int, sent_ns: int) -> int:
    """Note a selectively acknowledged segment; return 1 if it is new."""
    f = flow_at(env, i)
    board = board_of(env, i)
    at = seq & (env.window - 1)
    bits = board[at]
    if bits & SACKED:
        return 0
    _delivered(f, bits, sent_ns)
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
def take_ack(env: Any, i: int, a: Any) -> int:
    """Note what an ACK acknowledges, cumulatively and selectively; return the number of segments that are new."""
    f = flow_at(env, i)
    board = board_of(env, i)
    mask = env.window - 1
    acked = 0
    if a.seq > f.una:
        for seq in range(f.una, a.seq):
            bits = board[seq & mask]
            if not bits & SACKED:
                acked += 1
                _delivered(f, bits, a.sent_ns)
            board[seq & mask] = 0
        f.una = a.seq
    if a.sack_seq >= f.una:
        acked += _mark_sacked(env, i, a.sack_seq, a.sent_ns)
        seq = a.sack_to - 1
        low = max(f.una, a.sack_from)
        while seq >= low and not board[seq & mask] & SACKED:
            acked += _mark_sacked(env, i, seq, a.sent_ns)
            seq -= 1
    return acked


@jit
def find_lost(env: Any, i: int, end: int) -> int:
    """Mark as lost all segments below `end` that are not sacked; return how many are new.

    `lost_late` records a loss beyond `recover`: it belongs to a later window than the one that is being recovered.
    """
    f = flow_at(env, i)
    board = board_of(env, i)
    mask = env.window - 1
    news = 0
    for seq in range(max(f.lost_scan, f.una), end):
        bits = board[seq & mask]
        if not bits & (SACKED | LOST):
            board[seq & mask] = bits | LOST
            f.pipe -= 1
            f.lost_out += 1
            news += 1
            if f.recovery != 0 and seq >= f.recover:
                f.lost_late = 1
    f.lost_scan = max(f.lost_scan, end)
    return news


@jit
def lose_again(env: Any, i: int, seq: int) -> int:
    """Mark a segment that was sent again as lost once more; return 1 if it had been sent again and has not arrived."""
    f = flow_at(env, i)
    board = board_of(env, i)
    at = seq & (env.window - 1)
    if not board[at] & RESENT or board[at] & SACKED:
        return 0
    board[at] = (board[at] & (0xFF ^ RESENT)) | LOST
    f.pipe -= 1
    f.rexmit -= 1
    f.lost_out += 1
    return 1


@jit
def lose_all(env: Any, i: int) -> None:
    """Mark everything that is not sacked as lost (RFC 6298)."""
    f = flow_at(env, i)
    board = board_of(env, i)
    mask = env.window - 1
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


@jit
def forget_sacked(env: Any, i: int) -> None:
    """Forget what was sacked (FreeBSD's `tcp_free_sackholes`): after a timeout everything is sent again."""
    f = flow_at(env, i)
    board = board_of(env, i)
    mask = env.window - 1
    for seq in range(f.una, f.nxt):
        board[seq & mask] &= 0xFF ^ SACKED
    f.sack1 = -1
    f.sack2 = -1
    f.sack3 = -1


@jit
def next_lost(env: Any, i: int) -> int:
    """Return the first lost segment that has not been sent again, or -1."""
    f = flow_at(env, i)
    board = board_of(env, i)
    mask = env.window - 1
    for seq in range(max(f.resend_from, f.una), f.lost_scan):
        bits = board[seq & mask]
        if bits & LOST and not bits & (SACKED | RESENT):
            f.resend_from = seq
            return seq
    f.resend_from = f.lost_scan
    return -1
