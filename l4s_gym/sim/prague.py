"""Prague, by the L4S team's reference: UDP Prague (`prague_cc`), and TCP Prague as a variant.

Sources: github.com/L4STeam/udp_prague and the L4S team's Linux `tcp_prague.c`. One control law:
alpha is the moving average of the marked fraction; a mark reduces by alpha / 2 once a round, and each packet that
arrives without a mark adds so much that the rate grows by one packet per round. A round lasts one window of
packets and at least a virtual RTT of 25 ms, so that flows with shorter RTTs get equal shares.

`udp` starts at 100 kbit/s with alpha 0 and has no slow start; its packets shrink to 150 bytes, so that two are sent in
a virtual RTT at the least rate; if the RTT is too short to show a queue (2 ms, or less than a packet's interval)
it controls the rate instead of the window; after some rounds without marks it grows by a millisecond of queue a round.
`tcp` has slow start, alpha = 1 at the first mark, packets of full length, and keeps two of them in flight.

The state: `cwnd` is the fractional window in full packets, `pace_bps` the pacing rate, `packet_len` the length of the
packets that are sent now.
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.sim.control import LARGE, CongestionControl
from l4s_gym.sim.jit import jit, public

REF_RTT_NS: Final = 25_000_000
"""Prague behaves as if its RTT were at least this."""
MIN_RATE_BPS: Final = 100_000.0
"""Least pacing rate of `udp`, and its first one."""
MIN_LENGTH: Final = 150
"""Shortest packet of `udp`, bytes."""
MIN_PACKETS: Final = 2
"""Packets that `udp` sends in a virtual RTT, and that may always be in flight."""
RATE_MODE_NS: Final = 2_000_000
"""RTT up to which `udp` controls the rate instead of the window."""
GROWTH_NS: Final = 1e6
"""Queue that one round of growth may add."""
GROWTH_WAIT: Final = 7
"""Rounds without a mark before growth; one more for each `GROWTH_STEP_BPS` of rate."""
GROWTH_STEP_BPS: Final = 15.36e6
BURST_NS: Final = 250_000
"""Packets of this duration may be sent back to back (RFC 9331 section 4.3)."""
PROBE: Final = 1.03
"""The rate is higher by this factor in the first half of a round, and lower in the second."""
TIMEOUT_NS: Final = 1_000_000_000
"""`udp` restarts if no ACK arrives for this long."""
TRANSITION_ROUNDS: Final = 4
"""Rounds after slow start from which `tcp` does not depend on the RTT."""

AVOIDANCE, IN_LOSS, IN_CWR = range(3)
UDP, TCP = range(2)
VARIANTS: Final = ("udp", "tcp")


@public
def virtual_rtt_ns(srtt_ns: float) -> float:
    """Return the virtual RTT: the smoothed RTT, at least 25 ms."""
    return max(srtt_ns, REF_RTT_NS)


@jit
def restart(f: Any, now_ns: int) -> None:
    """Set the state of a new connection, and of `udp` after a timeout."""
    f.prague = AVOIDANCE
    f.rate_mode = 0
    f.undo = 0.0
    f.undo_wait = 0
    f.lost_since = 0
    f.rounds = 0
    f.round_ns = now_ns
    f.alpha_sent = f.sent_all
    f.acked_in_round = 0
    f.marked_in_round = 0
    f.growth_wait = GROWTH_WAIT
    f.burst_open = 0
    if f.variant == UDP:
        f.ce_alpha = 0.0
        f.pace_bps = MIN_RATE_BPS
        f.first_ack = 1
        _set_length(f)
    else:
        f.ce_alpha = 1.0
        f.pace_bps = 0.0
        f.packet_len = f.mss


@jit
def _set_length(f: Any) -> None:
    """Set the length of new packets: two in a virtual RTT; a finite transfer keeps full packets."""
    f.packet_len = f.mss
    if f.variant == UDP and f.shrinks:
        fits = int(f.pace_bps * virtual_rtt_ns(f.srtt_ns) / 8e9 / MIN_PACKETS)
        f.packet_len = min(max(fits, MIN_LENGTH), f.mss)


@jit
def packet_window(f: Any) -> int:
    """Return the packets that may be in flight: more than pacing fills, so that they never block it."""
    if f.variant == TCP:
        return max(int(f.cwnd + 1.0 - 1e-9), MIN_PACKETS)
    if f.first_ack:
        return int(f.initial_window)
    return max(int(f.cwnd * f.mss * PROBE / f.packet_len + 1.0), MIN_PACKETS)


@jit
def interval_ns(f: Any, length: int, now_ns: int) -> float:
    """Return the time of a packet of `length` bytes at the pacing rate; 0 before the rate is known."""
    if f.pace_bps <= 0.0:
        return 0.0
    interval = length * 8e9 / f.pace_bps
    if f.variant == TCP and f.cwnd < f.ssthresh / 2.0:
        return interval / 2.0
    if now_ns - f.round_ns >= 0.5 * virtual_rtt_ns(f.srtt_ns):
        return interval * PROBE
    return interval / PROBE


@jit
def burst_packets(f: Any) -> int:
    """Return the number of packets sent back to back."""
    return max(int(f.pace_bps * BURST_NS / 8e9 / f.packet_len), 1)


@jit
def _independent(f: Any) -> bool:
    """Return whether the flow behaves as if it had the virtual RTT."""
    return f.variant == UDP or (f.cwnd >= f.ssthresh and f.rounds >= TRANSITION_ROUNDS)


@jit
def _is_past(f: Any, since_ns: int, now_ns: int) -> bool:
    """Return whether a virtual RTT is over; a flow that depends on its RTT does not wait for one."""
    return not _independent(f) or now_ns - since_ns >= virtual_rtt_ns(f.srtt_ns)


@jit
def _is_over(f: Any, sent: int, since_ns: int, now_ns: int) -> bool:
    """Return whether a round is over: all that was sent before is accounted for, and a virtual RTT is over.

    In Linux the state after a loss or a mark lasts only one window of packets.
    """
    if f.sent_all - f.pipe <= sent:
        return False
    return f.variant == TCP or _is_past(f, since_ns, now_ns)


@jit
def _average_marks(f: Any, acked: int, marked: int, now_ns: int) -> None:
    """Update alpha, once a round."""
    f.acked_in_round += acked
    f.marked_in_round += marked
    if f.sent_all - f.pipe <= f.alpha_sent or not _is_past(f, f.round_ns, now_ns):
        return
    if f.acked_in_round > 0 and (f.variant == UDP or f.ssthresh < LARGE):
        fraction = min(f.marked_in_round / f.acked_in_round, 1.0)
        f.ce_alpha += f.gain * (fraction - f.ce_alpha)
    f.acked_in_round = 0
    f.marked_in_round = 0
    f.alpha_sent = f.sent_all
    f.round_ns = now_ns
    f.growth_wait = max(f.growth_wait - 1, 0)
    if f.cwnd >= f.ssthresh:
        f.rounds += 1


@jit
def _undo(f: Any) -> None:
    """Undo the reduction, once, if packets that counted as lost arrive late."""
    f.rate_mode = f.undo_mode
    if f.rate_mode:
        f.pace_bps += f.undo
    else:
        f.cwnd += f.undo
    f.undo = 0.0
    f.growth_wait = max(f.growth_wait - f.undo_wait, 0)
    f.undo_wait = 0
    f.prague = AVOIDANCE


@jit
def _reduce_for_loss(f: Any, lost: int, now_ns: int) -> None:
    """Halve the window, once a round; growth waits as long as a flow with an RTT of 25 ms takes to recover."""
    short = REF_RTT_NS / virtual_rtt_ns(f.srtt_ns)
    wait = int(f.pace_bps / 16.0 / f.mss * short * REF_RTT_NS * 1e-9)
    f.undo_wait = min(f.undo_wait + wait - f.growth_wait, wait)
    f.growth_wait = wait
    f.undo_mode = f.rate_mode
    if f.rate_mode:
        f.undo = 0.5 * f.pace_bps
        f.pace_bps -= f.undo
    else:
        f.undo = 0.5 * f.cwnd
        f.cwnd -= f.undo
    f.reductions += 1
    f.ssthresh = min(f.ssthresh, f.cwnd)
    f.lost_since = lost
    f.prague = IN_LOSS
    f.loss_sent = f.sent_all
    f.loss_ns = now_ns


@jit
def _grow(f: Any, unmarked: int) -> None:
    """Grow by one packet per round, or by a millisecond of queue if no mark has come for long."""
    if f.cwnd < f.ssthresh and f.variant == TCP:
        f.cwnd = min(f.cwnd + unmarked, f.ssthresh)
        return
    vrtt_ns = virtual_rtt_ns(f.srtt_ns)
    step = 1.0
    if f.growth_wait == 0 and f.variant == UDP:
        step = max(f.pace_bps * GROWTH_NS / 8e9 / f.mss, 1.0)
    if f.rate_mode:
        in_round = f.pace_bps * vrtt_ns / (8e9 * f.packet_len)
        f.pace_bps += unmarked * step * f.mss * 8e9 / vrtt_ns / in_round
        return
    share = f.srtt_ns / vrtt_ns if _independent(f) else 1.0
    f.cwnd += unmarked * f.packet_len / f.mss * step * share * share / f.cwnd


@jit
def _reduce_for_mark(f: Any, now_ns: int) -> None:
    """Reduce by alpha / 2, once a round; the first mark ends the slow start of `tcp` with half the window.

    Linux enters this state once a window, and does nothing in it if the last reduction was less than a virtual RTT
    ago: with an RTT of 20 ms the reductions are at least 40 ms apart.
    """
    f.prague = IN_CWR
    f.cwr_sent = f.sent_all
    if f.variant == TCP and not _is_past(f, f.reduced_ns, now_ns):
        return
    f.growth_wait = int(f.pace_bps / GROWTH_STEP_BPS) + GROWTH_WAIT
    if f.variant == TCP and f.ssthresh >= LARGE:
        f.ce_alpha = 1.0
    if f.rate_mode:
        f.pace_bps *= 1.0 - f.ce_alpha / 2.0
    else:
        f.cwnd *= 1.0 - f.ce_alpha / 2.0
    f.reductions += 1
    if f.variant == TCP:
        f.ssthresh = max(f.cwnd, float(MIN_PACKETS))
    f.reduced_ns = now_ns


@jit
def _follow(f: Any) -> None:
    """Compute the rate from the window or the window from the rate, within bounds, and all that depends on them."""
    per_window = f.mss * 8e9 / f.srtt_ns  # bit/s of a window of one packet
    if not f.rate_mode:
        f.pace_bps = f.cwnd * per_window
    if f.variant == UDP:
        f.pace_bps = min(max(f.pace_bps, MIN_RATE_BPS), max(f.rwnd * per_window, MIN_RATE_BPS))
        f.cwnd = f.pace_bps / per_window
    else:
        f.cwnd = min(max(f.cwnd, float(MIN_PACKETS)), float(f.rwnd))
        f.pace_bps = f.cwnd * per_window
    _set_length(f)


@jit
def on_ack(f: Any, acked: int, marked: int, lost: int, now_ns: int) -> None:
    """Process an ACK: packets that arrived, packets among them that carried CE, packets found to be lost."""
    if f.variant == UDP:
        if f.first_ack:
            f.cwnd = f.pace_bps * f.srtt_ns / (f.mss * 8e9)
            f.first_ack = 0
        rate_mode = f.srtt_ns <= RATE_MODE_NS or f.srtt_ns <= f.packet_len * 8e9 / f.pace_bps
        if f.rate_mode and not rate_mode:
            f.cwnd = f.pace_bps * f.srtt_ns / (f.mss * 8e9)
        f.rate_mode = 1 if rate_mode else 0
    _average_marks(f, acked, marked, now_ns)
    f.lost_since += lost
    if f.undo > 0.0 and f.lost_since <= 0:
        _undo(f)
    if f.prague == IN_LOSS and _is_over(f, f.loss_sent, f.loss_ns, now_ns):
        f.prague = AVOIDANCE
    if f.prague != IN_LOSS and lost > 0:
        _reduce_for_loss(f, lost, now_ns)
    unmarked = acked - marked
    if f.prague != IN_LOSS and unmarked > 0:
        _grow(f, unmarked)
    if f.prague == IN_CWR and _is_over(f, f.cwr_sent, f.reduced_ns, now_ns):
        f.prague = AVOIDANCE
    if f.prague == AVOIDANCE and marked > 0:
        _reduce_for_mark(f, now_ns)
    _follow(f)


@jit
def on_timeout(f: Any, now_ns: int) -> None:
    """Restart `udp`; for `tcp`, halve the threshold and start from one packet (RFC 5681 section 3.1)."""
    if f.variant == UDP:
        f.srtt_ns = 0.0
        restart(f, now_ns)
        return
    f.ssthresh = max(f.cwnd / 2.0, float(MIN_PACKETS))
    f.cwnd = 1.0


CONTROL: Final = CongestionControl("prague", restart=restart, scalable=True, paced=True, ect_resent=True)
"""The transport calls the other functions itself: they are not part of the interface."""
