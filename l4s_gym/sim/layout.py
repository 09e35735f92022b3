"""Memory layout of the simulator: packed records, so that an environment is a few rows of arrays.

A batch of environments is a set of contiguous arrays of these records, which `l4s_gym.sim.batch.Batch`
owns. Each `ENV` record bears the addresses of its environment's rows in the other arrays, so that one
pointer is all that the compiled functions hand to each other (`l4s_gym.sim.memory` opens them). Times are integer
nanoseconds, packet numbers are indices into the environment's packet pool, -1 means none.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NEVER: Final = 1 << 62
"""A time that does not come."""

# Queue disciplines.
FIFO, RED, CODEL, PIE, FREEBSD, RFC9332, LINUX = range(7)
AQMS: Final = ("fifo", "red", "codel", "pie", "dualpi2_freebsd", "dualpi2_rfc9332", "dualpi2_linux")

# Congestion controls: each is the module of its name beside this one; NONE is unresponsive.
NONE: Final = 0
CCS: Final = ("none", "newreno", "cubic", "dctcp", "prague")

# Applications.
BULK, CBR, ONOFF, WEB = range(4)
APPS: Final = ("bulk", "cbr", "onoff", "web")

# Links.
CONSTANT, TRACE, TICK, DUMMYNET = range(4)
LEAST_MBPS: Final = 0.056
MOST_MBPS: Final = 400_000.0
"""Rates that a link may have: a modem's 56 kbit/s to 400 Gbit/s."""

# Who decides.
NATIVE, AGENT, PROBABILITY = range(3)

# Rewards.
BALANCE, POWER, L4S_LLM = range(3)
REWARDS: Final = ("balance", "power", "l4s_llm")
DELAY_WEIGHT: Final = 0.25
"""Of `balance`: what a second of normalised delay costs, in seconds of link time."""

# Why `advance` came back.
RUNNING, DECISION, STOPPED, TERMINATED, TRUNCATED, LOG_FULL, POOL_EMPTY = range(7)

# Slots of the event tree; the link, half of all events, has its own time in `ENV`.
SLOT_UPDATE_C, SLOT_UPDATE_L, SLOT_RATE, SLOT_STOP, SLOT_FLOWS = range(5)

# Bits of the sender's and the receiver's scoreboard, one byte a segment.
SACKED, LOST, RESENT, RECEIVED = 1, 2, 4, 8

HIST_SHIFT: Final = 5
HIST_BINS: Final = 24 << HIST_SHIFT
"""Delay histogram: 32 bins an octave of delay in 256 ns units, so a quantile is right to about 3 %."""


_ROWS: Final[dict[np.dtype[np.void], list[tuple[Any, ...]]]] = {}
"""Fields of each record as they are written here: name, type, and where they are told unit and words."""


def _record(rows: list[tuple[Any, ...]], padding: bool = True) -> np.dtype[np.void]:
    """A record; with `padding` it starts and ends on cache lines of 64 bytes."""
    plain = [row[:2] if len(row) == 4 else row for row in rows]
    if padding:
        plain.append(("padding", "u1", (-np.dtype(plain, align=True).itemsize % 64 or 64,)))
    made = np.dtype(plain, align=padding)
    _ROWS[made] = rows
    return made


def fields(record: np.dtype[np.void]) -> list[tuple[str, str, str, str]]:
    """The fields of a record: name, NumPy's type, unit, words.

    Units in the plural are counts of such things; `segment` is a segment's number, `packet` an index in the pool, `flag`
    0 or 1, `-` none.
    """
    return [row for row in _ROWS[record] if len(row) == 4]


def _packed(hot: list[tuple[Any, ...]], cold: list[tuple[Any, ...]]) -> np.dtype[np.void]:
    """A record on cache lines, with what is used together side by side."""
    return _record([*hot, *cold])


ENV: Final = _packed(
    [
        # -- touched at nearly every packet
        ("now_ns", "i8"), ("link_at", "i8"), ("horizon_ns", "i8"), ("tree_at", "i8"), ("queue_at", "i8"),
        ("flow_at", "i8"), ("packet_at", "i8"), ("score_at", "i8"), ("obs_at", "i8"), ("rng", "u8"), ("host_rng", "u8"),
        ("integrated_ns", "i8"), ("served_s", "f8"), ("delay_c_s", "f8"), ("delay_l_s", "f8"), ("power_s", "f8"),
        ("per_ref_c", "f8"), ("per_ref_l", "f8"), ("s_per_byte", "f8"), ("ns_per_byte", "f8"), ("used_ns", "f8"), ("bytes", "i8"),
        ("limit_bytes", "i8"), ("quirks", "i8"), ("target_us", "i8"), ("sent", "i8"), ("delivered", "i8"),
        ("decisions", "i8"), ("events", "i8"), ("served_bytes", "i8"), ("hist_at", "i8"), ("wrr_credit", "i8"),
        ("prob", "i8"), ("prob_fixed", "i8"), ("qdelay_old_ns", "i8"), ("log_capacity", "i8"),
        ("last_reward_len", "i8"), ("last_reward_delay_us", "i8"), ("action_at", "i8"), ("reward_at", "i8"),
        ("status_at", "i8"), ("applied_at", "i8"), ("min_qlen_step", "i8"), ("tick_ns", "i8"), ("free", "i4"),
        ("fresh", "i4"), ("in_flight", "i4"), ("pool", "i4"), ("window", "i4"), ("leaves", "i4"), ("packets", "i4"),
        ("limit_packets", "i4"), ("arriving", "i4"), ("sending", "i4"), ("until_decision", "i4"),
        ("sending_packet", "i4"), ("n_flows", "i4"), ("unfinished", "i4"), ("interval", "i4"), ("new0", "i4"),
        ("new1", "i4"), ("old0", "i4"), ("old1", "i4"), ("status", "i1"), ("decider", "i1"), ("aqm", "i1"),
        ("dual", "i1"), ("link", "i1"), ("busy", "i1"), ("finite", "i1"), ("passes", "i1"), ("acks_queued", "i1"),
        ("applied", "i1"), ("reward_kind", "i1"), ("drop_on_overload", "i1"),
    ],
    [
        # -- the rest of the link, the parameters of the disciplines (each module says which it reads), measurement
        ("p_l", "f8"), ("p_c", "f8"), ("recur_l", "f8"), ("recur_c", "f8"), ("rate_bps", "f8"),
        ("base_rate_bps", "f8"), ("left_bytes", "i8"), ("credit", "f8"), ("trace_len", "i8"),
        ("trace_pos", "i8"), ("trace_cycle", "i8"), ("trace_period_ns", "i8"), ("tupdate_us", "i8"),
        ("max_burst_us", "i8"), ("max_ecn_threshold", "i8"), ("alpha", "i8"), ("beta", "i8"), ("flags", "i8"),
        ("step_ns", "i8"), ("coupling", "i8"), ("alpha_hz", "f8"), ("beta_hz", "f8"), ("min_th_ns", "i8"),
        ("range_ns", "i8"), ("th_len", "i8"), ("p_c_max", "i8"), ("classic_weight", "i8"), ("shift_ns", "i8"),
        ("drr_weight", "i8"), ("classic_protection", "i8"), ("step_packets", "i8"),
        ("alpha_q", "i8"), ("beta_q", "i8"), ("red_min", "f8"), ("red_max", "f8"), ("red_max_p", "f8"),
        ("red_weight", "f8"), ("interval_ns", "i8"), ("ecn_threshold", "f8"), ("dropped", "i8"), ("since_ns", "i8"),
        ("capacity_bytes", "f8"), ("capacity_ns", "i8"), ("updates", "i8"), ("update_delay_ns", "f8"),
        ("log_rows", "i8"), ("sequence", "i8"), ("log_at", "i8"), ("rewards_at", "i8"), ("trace_row", "i8"),
        ("taken", "f8"), ("explore", "f8"), ("stalled_bytes", "f8"), ("ahead_bytes", "f8"),
        # -- the router of the testbed (`l4s_gym.sim.router`)
        ("row_ns", "i8"), ("slice_ns", "i8"), ("pause_ns", "i8"), ("pause_gap_ns", "i8"), ("pause_at", "i8"), ("pipe_ns", "i8"), ("clock_ns", "i8"), ("sched_ns", "i8"),
        ("idle_at", "i8"), ("serve_at", "i8"), ("task_at", "i8"), ("turn_ns", "i8"), ("list_head", "i4", (6,)),
        ("list_tail", "i4", (6,)), ("ring_size", "i4", (4,)), ("in_rings", "i4"), ("card", "i4"), ("budget", "i4"),
        ("even", "i1"), ("derandomise", "i1"), ("called", "i1"), ("late", "i1"),
    ],
)  # fmt: skip

QUEUE: Final = _packed(
    [
        # -- touched at nearly every packet
        ("drop_prob", "i8"), ("accu_prob", "i8"), ("qdelay_us", "i8"), ("qdelay_old_us", "i8"), ("burst_us", "i8"),
        ("delay_ns", "i8"), ("packets", "i8"), ("bytes", "i8"), ("head", "i8"), ("tail", "i8"),
        ("total_packets", "i8"), ("total_bytes", "i8"), ("class_delay_ns", "i8"), ("normalised", "f8"),
        ("class_packets", "i8"), ("offered", "i8"), ("offered_bytes", "i8"), ("left", "i8"), ("left_delay_ns", "f8"),
        ("max_delay_ns", "i8"), ("deficit", "i8"), ("interval_drops", "i8"), ("recur", "i8"), ("idle_ns", "i8"),
        ("active", "i1"), ("listed", "i1"),
    ],
    [
        # -- drops and marks, then the states of single disciplines
        ("drops", "i8"), ("measurement_start_us", "i8"), ("average", "f8"), ("since_action", "i8"), ("prob", "f8"),
        ("accu", "f8"), ("burst_ns", "i8"), ("first_above_ns", "i8"), ("drop_next_ns", "i8"), ("count", "i8"),
        ("last_count", "i8"), ("dropped", "i8"), ("marked", "i8"), ("dropped_ect", "i8"), ("dropping", "i1"),
    ],
)  # fmt: skip

FLOW: Final = _packed(
    [
        # -- touched at nearly every packet
        ("cwnd", "f8", "packets", "Congestion window."),
        ("ssthresh", "f8", "packets", "Slow-start threshold; 1e9: none."),
        ("srtt_ns", "f8", "ns", "Smoothed round-trip time (RFC 6298); 0 before the first sample."),
        ("rttvar_ns", "f8", "ns", "Variation of the round-trip time (RFC 6298)."),
        ("min_rtt_ns", "i8", "ns", "Least round-trip time of the connection."),
        ("rto_at", "i8", "ns", "When the retransmission timer expires; `NEVER` while it is off."),
        ("delack_at", "i8", "ns", "When the delayed ACK is due; `NEVER` where none waits."),
        ("hop_ns", "i8", "ns", "Delay of one hop: the path's, shared out among the crossings."),
        ("min_rto_ns", "i8", "ns", "What the variation adds to the timeout at least (Linux); least timeout (FreeBSD)."),
        ("pending_sent_ns", "i8", "ns", "When the oldest segment that waits for an ACK was sent: the timestamp to echo."),
        ("delack_ns", "i8", "ns", "Longest delay of an ACK."),
        ("goodput_bytes", "i8", "bytes", "Payload that has arrived, each segment once."),
        ("rtt_sum_ns", "f8", "ns", "Sum of the samples of the round-trip time."),
        ("window_sum", "f8", "packets", "Sum of the windows at the ACKs, weighted with what they acknowledged."),
        ("ce_alpha", "f8", "-", "Moving average of the marked fraction, 0 to 1 (DCTCP, Prague)."),
        ("transit_head", "i4", "packet", "First of the packets that travel; -1: none."),
        ("transit_tail", "i4", "packet", "Last of them."),
        ("una", "i4", "segment", "First that is not acknowledged cumulatively."),
        ("nxt", "i4", "segment", "Next new one to be sent."),
        ("limit_seq", "i4", "segment", "One past the last that the application has offered."),
        ("pipe", "i4", "packets", "In flight as RFC 6675 counts them."),
        ("sack1", "i4", "segment", "Highest selectively acknowledged; -1: none."),
        ("sack2", "i4", "segment", "Second highest."),
        ("sack3", "i4", "segment", "Third highest: what lies below counts as lost."),
        ("lost_scan", "i4", "segment", "Up to which losses have been looked for."),
        ("recover", "i4", "segment", "`nxt` when the recovery began: it ends there."),
        ("ecn_recover", "i4", "segment", "`nxt` at the last answer to marks: no other before it is acknowledged."),
        ("ce_seen", "i4", "packets", "CE count of the latest ACK."),
        ("rcv_nxt", "i4", "segment", "Next that the receiver expects."),
        ("ce_count", "i4", "packets", "Data packets that have arrived with CE."),
        ("received", "i4", "packets", "Data packets that have arrived."),
        ("packets", "i4", "packets", "Data packets that were sent since the counters were reset."),
        ("rtt_count", "i4", "samples", "Of the round-trip time, in `rtt_sum_ns`."),
        ("window_count", "i4", "packets", "Weights in `window_sum`."),
        ("rwnd", "i4", "packets", "Receive window."),
        ("acked_in_round", "i4", "packets", "Acknowledged in this round of the average of marks."),
        ("marked_in_round", "i4", "packets", "Among them, those that bore CE."),
        ("round_end", "i4", "segment", "`nxt` when this round of the average began (DCTCP)."),
        ("mss", "i4", "bytes", "IP length of a full packet."),
        ("ack_every", "i4", "segments", "That one ACK acknowledges."),
        ("lost_out", "i4", "segments", "Lost ones that wait to be sent again."),
        ("held", "i4", "segments", "That the receiver holds out of order."),
        ("pending", "i4", "segments", "That wait for a delayed ACK."),
        ("last_len", "i4", "bytes", "IP length of the transfer's last packet."),
        ("backoff", "i4", "-", "Factor of the timeout: doubles with each, up to 64."),
        ("app", "i1", "-", "Application: index in `APPS`."),
        ("cc", "i1", "-", "Congestion control: index in `CCS`; beyond: a user's own."),
        ("ecn", "i1", "-", "Codepoint of the packets that it sends."),
        ("accurate", "i1", "flag", "The receiver echoes each CE (RFC 9768), not until CWR (RFC 3168)."),
        ("ect_resent", "i1", "flag", "What is sent again is ECN-capable too."),
        ("paced", "i1", "flag", "Packets leave at a rate, not as ACKs come in."),
        ("running", "i1", "flag", "The application has something to send."),
        ("done", "i1", "flag", "A finite bulk transfer is complete."),
        ("recovery", "i1", "-", "0 none, 1 after a loss, 2 after a timeout, 3 after an ECN signal (FreeBSD)."),
        ("send_cwr", "i1", "flag", "The next new packet bears CWR."),
        ("limited", "i1", "flag", "The window or the pacing, not the data, has stopped the sender last."),
        ("held_back", "i1", "flag", "The flow's timer waits for `pace_at`."),
        ("ce_state", "i1", "flag", "The packet received last bore CE."),
        ("echo", "i1", "flag", "The next ACK bears the echo of CE."),
        ("finite", "i1", "flag", "A transfer of `size_min` bytes, once."),
        ("slope_one", "i1", "flag", "The slope `friendly` becomes 1 above the earlier window (RFC 9438 section 4.3)."),
        ("variant", "i1", "-", "Prague: index in `prague.VARIANTS`."),
        ("slow_start", "i1", "-", "How slow start ends: index in `slowstart.KINDS`."),
        ("lost_late", "i1", "flag", "A loss beyond `recover` was found: it is answered when the recovery ends."),
        ("fast_resend", "i1", "flag", "The first lost segment goes out whatever the window says (RFC 6675 section 5)."),
        ("holds", "i1", "flag", "The window stays for a round after the answer to a mark (Linux)."),
        ("shrinks", "i1", "flag", "Packets may become shorter (UDP Prague)."),
        ("scalable", "i1", "flag", "The congestion control answers to the share of marks (RFC 9331)."),
        ("packet_len", "i4", "bytes", "IP length of the packets that are sent now."),
        ("sent_all", "i4", "packets", "Data packets that the connection has sent, again or for the first time."),
        ("burst_open", "i4", "packets", "That may leave side by side before pacing holds the next (Prague)."),
        ("jitter_ns", "i4", "ns", "Longest addition to a hop (uniform)."),
        ("last_due_ns", "i8", "ns", "Arrival of the packet that set out last: none overtakes it."),
        ("hole_ns", "i8", "ns", "When the first hole was last sent again, or filled (UDP Prague's sign of another loss)."),
        ("loss_ns", "i8", "ns", "When a loss was last answered (Prague)."),
        ("lost_since", "i4", "packets", "Lost since, less those that came late (Prague)."),
    ],
    [
        # -- what the flow is, the states of single congestion controls, measurement
        ("start_ns", "i8", "ns", "Start of the flow."),
        ("initial_window", "f8", "packets", "Window of a new connection."),
        ("rate_bps", "f8", "bit/s", "Rate of `cbr`, and of `onoff` while on."),
        ("mean_on_ns", "f8", "ns", "Mean time on."),
        ("mean_off_ns", "f8", "ns", "Mean time off, or thinking time of a web user."),
        ("size_shape", "f8", "-", "Shape of the distribution of pages (bounded Pareto)."),
        ("size_min", "f8", "bytes", "Smallest page, or size of the finite transfer."),
        ("size_max", "f8", "bytes", "Largest page."),
        ("beta", "f8", "-", "Window after a loss, relative."),
        ("beta_ecn", "f8", "-", "Window after an ECN signal of RFC 3168, relative."),
        ("cubic_c", "f8", "packets/s^3", "C of RFC 9438."),
        ("friendly", "f8", "packets/round", "Slope of CUBIC's Reno-friendly window."),
        ("gain", "f8", "-", "Weight of a round in `ce_alpha`."),
        ("pace_at", "i8", "ns", "When pacing lets the next packet go."),
        ("app_at", "i8", "ns", "When the application acts next; `NEVER`: not by itself."),
        ("on_until_ns", "i8", "ns", "End of the burst of `onoff`."),
        ("w_max", "f8", "packets", "Plateau of the cubic curve."),
        ("w_est", "f8", "packets", "CUBIC's Reno-friendly window."),
        ("cubic_k", "f8", "s", "From the start of the epoch to the plateau (K of RFC 9438)."),
        ("epoch_ns", "i8", "ns", "Start of CUBIC's epoch; 0: none yet, -1: with the next ACK."),
        ("prior", "f8", "packets", "Window before CUBIC's last reduction; 0: none yet."),
        ("round_ns", "i8", "ns", "Start of Prague's round."),
        ("reduced_ns", "i8", "ns", "Prague's last reduction for marks."),
        ("resent", "i8", "packets", "Sent again since the counters were reset."),
        ("timeouts", "i8", "timeouts", "Since the counters were reset."),
        ("completed", "i8", "transfers", "Complete since the counters were reset."),
        ("completion_s", "f8", "s", "Sum of the times that they took."),
        ("began_ns", "i8", "ns", "Start of the present transfer."),
        ("drops", "i8", "packets", "Of the flow that the queue dropped."),
        ("marks", "i8", "packets", "Of the flow that the queue marked."),
        ("reductions", "i8", "reductions", "Of the window, without those after timeouts."),
        ("resend_from", "i4", "segment", "From which the next lost segment is looked for."),
        ("block_start", "i4", "segment", "First of the receiver's latest SACK block."),
        ("block_end", "i4", "segment", "One past its last."),
        ("slop_ns", "i8", "ns", "Added to the timeout of RFC 6298."),
        ("initial_ssthresh", "f8", "packets", "`ssthresh` of a new connection."),
        ("filled_ns", "i8", "ns", "Start of the receiver's measurement of how fast its buffer fills (FreeBSD)."),
        ("sack_length", "i4", "bytes", "That a SACK option adds to an ACK."),
        ("card", "i4", "-", "Network card of the router at which the source sits."),
        ("largest_rwnd", "i4", "packets", "Up to which the receive window grows; 0: it does not."),
        ("filled", "i4", "segments", "In order since `filled_ns`."),
        ("freebsd", "i1", "flag", "The sender is FreeBSD's base stack."),
        # -- Prague (`l4s_gym.sim.prague`)
        ("pace_bps", "f8", "bit/s", "Pacing rate."),
        ("undo", "f8", "packets or bit/s", "What the last loss took off, to be given back where the packets come late."),
        ("alpha_sent", "i4", "packets", "`sent_all` at the start of the round of `ce_alpha`."),
        ("loss_sent", "i4", "packets", "`sent_all` when the loss was answered."),
        ("cwr_sent", "i4", "packets", "`sent_all` when marks were answered."),
        ("growth_wait", "i4", "rounds", "That are to pass without a mark before it grows by time, not by packets."),
        ("undo_wait", "i4", "rounds", "Of it that the last loss has added."),
        ("rounds", "i4", "rounds", "Since slow start."),
        ("prague", "i1", "-", "State: `prague.AVOIDANCE`, `IN_LOSS` or `IN_CWR`."),
        ("rate_mode", "i1", "flag", "The rate is controlled, not the window."),
        ("undo_mode", "i1", "flag", "`rate_mode` when `undo` was taken off."),
        ("first_ack", "i1", "flag", "The first ACK has not come yet."),
        # -- the end of slow start (`l4s_gym.sim.slowstart`)
        ("ss_began_ns", "i8", "ns", "Start of the round."),
        ("ss_last_ns", "i8", "ns", "Latest ACK of the round's train."),
        ("ss_least_ns", "i8", "ns", "Least round-trip time of the round; `NEVER`: no sample."),
        ("ss_before_ns", "i8", "ns", "That of the round before."),
        ("css_base_ns", "i8", "ns", "Least round-trip time when the conservative phase began (RFC 9406)."),
        ("ss_end", "i4", "segment", "`nxt` when the round began."),
        ("ss_samples", "i4", "samples", "Of the round-trip time in the round."),
        ("css_rounds", "i4", "rounds", "Of the conservative phase, the present one included; 0: not in it."),
        # -- FreeBSD: proportional rate reduction, CUBIC's epochs
        ("rexmit", "i4", "packets", "Sent again and not yet acknowledged."),
        ("prr_delivered", "i4", "packets", "Delivered in the recovery (RFC 6937)."),
        ("prr_out", "i4", "packets", "Sent in the recovery."),
        ("recover_fs", "i4", "packets", "In flight when the recovery began."),
        ("phase", "i4", "-", "Bits `freebsd_tcp.SLOW_START`, `APP_LIMITED`, `TIMED_OUT`."),
        ("epoch_acks", "i4", "ACKs", "Of CUBIC's epoch."),
        ("epoch_rtt_ns", "f8", "ns", "Sum of the smoothed round-trip times at them."),
        ("mean_rtt_ns", "f8", "ns", "Their mean, of the epoch before."),
        # -- a user's own congestion control (`l4s_gym.sim.control`)
        ("law_at", "i8", "address", "Of the addresses of its functions."),
        ("own", "14f8", "-", "Its state, in units of its own."),
    ],
)  # fmt: skip

PACKET: Final = _record(
    [
        ("next", "i4", "packet", "Behind this one in its list; -1: none."),
        ("flow", "i2", "-", "Index of its flow."),
        ("len", "i2", "bytes", "IP length."),
        ("ecn", "i1", "-", "Codepoint."),
        ("ack", "i1", "flag", "It is a pure ACK."),
        ("crossing", "i1", "crossings", "Of the bottleneck that are behind it."),
        ("cwr", "i1", "flag", "The sender has reduced its window (RFC 3168)."),
        ("echo", "i1", "flag", "Of an ACK: echo of CE."),
        ("decided", "i1", "flag", "Not the discipline but somebody else has decided about it."),
        ("cls", "i1", "-", "Traffic class: 0 C, 1 L, whatever queue it is in."),
        ("step_ok", "i1", "flag", "Linux: the L queue was long enough at its arrival for the step to apply."),
        ("record", "i4", "-", "Row of the log that is to be finished; -1: none."),
        ("ce_count", "i4", "packets", "Of an ACK: data packets that have arrived with CE."),
        ("seq", "i4", "segment", "Its number; of an ACK the next one expected."),
        ("sack_seq", "i4", "segment", "Of an ACK: the one out of order that it answers; -1: none."),
        ("sack_from", "i4", "segment", "Of an ACK: first of the latest block."),
        ("sack_to", "i4", "segment", "Of an ACK: one past the block's last."),
        ("sent_ns", "i8", "ns", "When its sender sent it; of an ACK the echo of that."),
        ("enqueued_ns", "i8", "ns", "When it joined its queue."),
        ("due_ns", "i8", "ns", "End of its hop."),
    ],
    padding=False,
)  # fmt: skip
"""One cache line."""


def arena(n: int, parts: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Zeroed arrays of `n` rows, row i of all of them side by side in memory.

    One environment's rows then lie on few pages: with an array a part, a large batch missed the processor's
    table of pages at every step, and lost half its speed to that.

    Args:
        n: Number of rows.
        parts: Name -> shape of one row, and type.

    Returns:
        Views (n, *shape); each part of a row starts on a cache line.
    """
    places = {}
    size = 0
    for name, (shape, dtype) in parts.items():
        places[name] = size
        size += -(-math.prod(shape) * dtype.itemsize // 64) * 64
    raw = np.zeros(n * size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = {}
    for name, (shape, dtype) in parts.items():
        inner = np.cumprod([dtype.itemsize, *shape[:0:-1]])[::-1] if shape else np.zeros(0, int)
        strides = (size, *(int(stride) for stride in inner))
        out[name] = np.ndarray((n, *shape), dtype, raw.data, start + places[name], strides)
    return out
