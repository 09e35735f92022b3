"""Memory layout of the simulator: packed records, so that an environment is a few rows of arrays.

A batch of environments is a set of contiguous arrays of these records, which `l4s_gym.sim.batch.Batch`
owns. Each `ENV` record bears the addresses of its environment's rows in the other arrays, so that one
pointer is all that the compiled functions hand to each other (`l4s_gym.sim.memory` opens them). Times are integer
nanoseconds, packet numbers are indices into the environment's packet pool, -1 means none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NEVER: Final = 1 << 62
"""Never: a time that is not reached."""

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
NATIVE, AGENT, POLICY, PROBABILITY = range(4)

# How a policy's probabilities become decisions (`l4s_gym.agents.protocol.DecisionRule`).
SAMPLE, ARGMAX, DIFFUSE = range(3)
RULES: Final = ("sample", "argmax", "diffuse")

# Rewards.
BALANCE, POWER, L4S_LLM = range(3)
REWARDS: Final = ("balance", "power", "l4s_llm")
DELAY_WEIGHT: Final = 0.25
"""Of `balance`: what a second of normalised delay costs, in seconds of link time."""

# Why `advance` came back.
RUNNING, DECISION, STOPPED, TERMINATED, TRUNCATED, LOG_FULL, POOL_EMPTY = range(7)

# In place of a logged packet's sojourn: it has not left the queue; it was dropped from the queue by a full buffer.
WAITING, PUSHED_OUT = -1, -2

# Slots of the event tree; the link, half of all events, has its own time in `ENV`.
SLOT_UPDATE_C, SLOT_UPDATE_L, SLOT_RATE, SLOT_STOP, SLOT_FLOWS = range(5)

# Bits of the sender's and the receiver's scoreboard, one byte a segment.
SACKED, LOST, RESENT, RECEIVED = 1, 2, 4, 8

HIST_SHIFT: Final = 5
HIST_BINS: Final = 24 << HIST_SHIFT
"""Delay histogram: 32 bins an octave of delay in 256 ns units, so a quantile is right to about 3 %."""


Row = tuple[str, str, str, str]
"""A field: its name, NumPy type, unit, and what it is.

Units in the plural are counts of such things; `segment` is a segment's number, `packet` an index in the pool, `flag`
0 or 1, `-` none.
"""


def dtype_of(rows: Sequence[Row], padding: bool = True) -> np.dtype[np.void]:
    """A record of some fields; with `padding` it starts and ends on cache lines of 64 bytes."""
    plain: list[tuple[Any, ...]] = [row[:2] for row in rows]
    if padding:
        plain.append(("padding", "u1", (-np.dtype(plain, align=True).itemsize % 64 or 64,)))
    return np.dtype(plain, align=padding)


ENV_ROWS: Final[tuple[Row, ...]] = (
    # -- touched at nearly every packet
    ("now_ns", "i8", "ns", "Simulated time."),
    ("link_at", "i8", "ns", "Time of the link's next event."),
    ("horizon_ns", "i8", "ns", "End of the episode."),
    ("tree_at", "i8", "address", "Of the tree of event times."),
    ("queue_at", "i8", "address", "Of the queues."),
    ("flow_at", "i8", "address", "Of the flows."),
    ("packet_at", "i8", "address", "Of the packets."),
    ("score_at", "i8", "address", "Of the flows' scoreboards."),
    ("obs_at", "i8", "address", "Of the observation."),
    ("rng", "u8", "-", "State of the generator of whoever decides about packets."),
    ("host_rng", "u8", "-", "State of the hosts' generator."),
    ("integrated_ns", "i8", "ns", "Time up to which the reward's integrals go."),
    ("served_s", "f8", "s", "Link time used since the reward was last taken."),
    ("delay_c_s", "f8", "s", "Integral of C's normalised delay since then."),
    ("delay_l_s", "f8", "s", "Integral of L's normalised delay since then."),
    ("power_s", "f8", "s", "Link time used since then, each packet's share divided by 1 + its normalised delay."),
    ("per_ref_c", "f8", "1/ns", "1 / reference delay of C."),
    ("per_ref_l", "f8", "1/ns", "1 / reference delay of L."),
    ("s_per_byte", "f8", "s", "Link time of a byte at the first rate."),
    ("ns_per_byte", "f8", "ns", "Link time of a byte at the rate now."),
    ("used_ns", "f8", "ns", "Time up to which the link is taken by what has left the queues."),
    ("bytes", "i8", "bytes", "Queued in all."),
    ("limit_bytes", "i8", "bytes", "Buffer; 0: no limit in bytes."),
    ("own_at", "i8", "address", "Of the discipline's own record."),
    ("own_queue_at", "i8", "address", "Of the discipline's own records of the queues."),
    ("target_us", "i8", "us", "Target delay of the discipline."),
    ("sent", "i8", "packets", "Offered to the queues."),
    ("delivered", "i8", "packets", "That have crossed the link."),
    ("decisions", "i8", "-", "Taken by the agent."),
    ("events", "i8", "-", "Handled."),
    ("served_bytes", "i8", "bytes", "Taken from the queues to be sent."),
    ("hist_at", "i8", "address", "Of the delay histograms."),
    ("log_capacity", "i8", "rows", "Of the decision log; 0: no log."),
    ("last_reward_len", "i8", "bytes", "Length of the packet that was decided last, for the reward `l4s_llm`."),
    ("last_reward_delay_us", "i8", "us", "Delay of its queue."),
    ("action_at", "i8", "address", "Of the action."),
    ("reward_at", "i8", "address", "Of the reward."),
    ("status_at", "i8", "address", "Of the status."),
    ("applied_at", "i8", "address", "Of the applied action."),
    ("tick_ns", "i8", "ns", "A tick of the kernel; 0: its clock is exact."),
    ("free", "i4", "packet", "Head of the list of packets that were given back."),
    ("fresh", "i4", "packet", "First packet that has never been under way."),
    ("in_flight", "i4", "packets", "Under way."),
    ("pool", "i4", "packets", "In the pool."),
    ("window", "i4", "segments", "Size of a scoreboard, a power of two."),
    ("leaves", "i4", "-", "Of the tree of event times, a power of two."),
    ("packets", "i4", "packets", "Queued in all."),
    ("limit_packets", "i4", "packets", "Buffer; 0: no limit in packets."),
    ("arriving", "i4", "packet", "That arrives at the queues now."),
    ("sending", "i4", "flow", "That may send now."),
    ("until_decision", "i4", "packets", "Until the agent is asked again."),
    ("sending_packet", "i4", "packet", "That is being sent."),
    ("n_flows", "i4", "-", "Flows."),
    ("n_queues", "i4", "-", "Queues."),
    ("unfinished", "i4", "flows", "Finite transfers that are not done."),
    ("interval", "i4", "packets", "From one of the agent's decisions to the next."),
    ("status", "i1", "-", "Why the engine came back."),
    ("decider", "i1", "-", "Who decides: `NATIVE`, `AGENT`, `POLICY`, `PROBABILITY`."),
    ("aqm", "i1", "-", "Number of the discipline in `disciplines.BUILT_IN`."),
    ("dual", "i1", "flag", "Whether the discipline has the queues C and L."),
    ("link", "i1", "-", "Kind of the link: `CONSTANT`, `TRACE`, `TICK`, `DUMMYNET`."),
    ("busy", "i1", "flag", "Whether the link sends."),
    ("finite", "i1", "flag", "Whether all flows are finite transfers."),
    ("passes", "i1", "-", "Crossings of each packet."),
    ("acks_queued", "i1", "flag", "Whether the ACKs cross the same queues."),
    ("applied", "i1", "action", "Done to the packet that arrived last."),
    ("logged", "i1", "action", "That the log shows where it is not what was done, else -1."),
    ("reward_kind", "i1", "-", "`BALANCE`, `POWER`, `L4S_LLM`."),
    ("queue_timers", "i1", "flag", "Whether each queue has a control timer of its own."),
    # -- the rest of the link, what the log shows of the discipline, measurement, the router (`l4s_gym.sim.router`)
    ("p_l", "f8", "1", "Probability of L that an agent has set."),
    ("p_c", "f8", "1", "Probability of C that an agent has set."),
    ("recur_l", "f8", "1", "Sum of L's probabilities since its last hit, where hits are even."),
    ("recur_c", "f8", "1", "Sum of C's probabilities since its last hit, where hits are even."),
    ("rate_bps", "f8", "bit/s", "Of the link now."),
    ("base_rate_bps", "f8", "bit/s", "Of the link at the start."),
    ("left_bytes", "i8", "bytes", "Of the packet that a trace's opportunities are sending."),
    ("credit", "f8", "bit", "Of a link that serves at ticks."),
    ("trace_len", "i8", "-", "Opportunities of the trace, or steps of the rate."),
    ("trace_pos", "i8", "-", "The next of them."),
    ("trace_cycle", "i8", "-", "Times that the trace has ended."),
    ("trace_period_ns", "i8", "ns", "Length of the trace; 0: it does not repeat."),
    ("tupdate_us", "i8", "us", "Control interval of the discipline."),
    ("max_burst_us", "i8", "us", "Burst allowance, for the log."),
    ("max_ecn_threshold", "i8", "1/8192", "Probability from which ECN packets are dropped, for the log."),
    ("alpha", "i8", "-", "Integral gain in the unit of the discipline, for the log."),
    ("beta", "i8", "-", "Proportional gain in the unit of the discipline, for the log."),
    ("flags", "i8", "-", "Of the kernel's parameters, for the log."),
    ("dropped", "i8", "packets", "Dropped in all."),
    ("since_ns", "i8", "ns", "Time at which the measurement began."),
    ("capacity_bytes", "f8", "bytes", "That the link could have carried, up to the last change of its rate."),
    ("capacity_ns", "i8", "ns", "Time of that change."),
    ("updates", "i8", "-", "Of the discipline's controller."),
    ("update_delay_ns", "f8", "ns", "Sum of the delays at these updates."),
    ("log_rows", "i8", "rows", "In the decision log."),
    ("sequence", "i8", "-", "Number of the next row."),
    ("log_at", "i8", "address", "Of the decision log."),
    ("rewards_at", "i8", "address", "Of the rewards at its rows."),
    ("sojourns_at", "i8", "address", "Of the sojourns of its packets."),
    ("trace_row", "i8", "address", "Of the trace."),
    ("hooks_at", "i8", "address", "Of the addresses of a discipline's functions that came from outside."),
    ("taken", "f8", "-", "Reward that was taken since the start."),
    ("explore", "f8", "1", "Share of the native decisions that is drawn instead."),
    ("stalled_bytes", "f8", "bytes", "Of the packet that waits for an outage's end."),
    ("ahead_bytes", "f8", "bytes", "Between queue and the link's far end when the measurement began."),
    ("row_ns", "i8", "ns", "Processor time of the router for each packet."),
    ("slice_ns", "i8", "ns", "Longest time that the network card's thread runs while others wait."),
    ("pause_ns", "i8", "ns", "Length of the router's pauses."),
    ("pause_gap_ns", "i8", "ns", "Mean time between them."),
    ("pause_at", "i8", "ns", "Next pause; -1: not drawn yet."),
    ("pipe_ns", "i8", "ns", "Delay of the pipe."),
    ("clock_ns", "i8", "ns", "The kernel's clock at its last tick."),
    ("sched_ns", "i8", "ns", "Time up to which the link's credit is counted."),
    ("idle_at", "i8", "ns", "Since when the pipe rests."),
    ("serve_at", "i8", "ns", "When the pipe serves next."),
    ("task_at", "i8", "ns", "When dummynet's task is due."),
    ("turn_ns", "i8", "ns", "When the running thread's turn began."),
    ("list_head", "(6,)i4", "packet", "Heads of the router's lists of packets (`l4s_gym.sim.router`)."),
    ("list_tail", "(6,)i4", "packet", "Their tails."),
    ("ring_size", "(4,)i4", "packets", "In the rings of the network cards."),
    ("in_rings", "i4", "packets", "In all rings."),
    ("card", "i4", "-", "Network card whose turn it is."),
    ("budget", "i4", "packets", "That it may still hand on."),
    ("even", "i1", "flag", "Whether an agent's probabilities hit evenly instead of at random."),
    ("guarded", "i1", "flag", "Whether they keep L's own threshold, and drop ECN packets in overload."),
    ("called", "i1", "-", "Whether the processor has work (1), or has printed its line (2)."),
    ("late", "i1", "bits", "Queues whose update waits for the processor."),
    ("policy_at", "i8", "address", "Of the policy that decides in the engine (`l4s_gym.sim.policy`)."),
    ("rule_at", "i8", "address", "Of the state of its decision rule."),
)
QUEUE_ROWS: Final[tuple[Row, ...]] = (
    # -- touched at nearly every packet
    ("delay_ns", "i8", "ns", "Sojourn of the packet that left last."),
    ("packets", "i8", "packets", "Queued."),
    ("bytes", "i8", "bytes", "Queued."),
    ("head", "i8", "packet", "First in the queue, or -1."),
    ("tail", "i8", "packet", "Last in the queue, or -1."),
    ("total_packets", "i8", "packets", "Offered to the queue."),
    ("total_bytes", "i8", "bytes", "Offered to the queue."),
    ("class_delay_ns", "i8", "ns", "Sojourn of the class's packet that left last."),
    ("normalised", "f8", "1", "That delay / (itself + the class's reference)."),
    ("class_packets", "i8", "packets", "Of the class, queued."),
    ("offered", "i8", "packets", "Of the class, since the measurement began (as all counts of the class)."),
    ("offered_bytes", "i8", "bytes", "Of the class."),
    ("left", "i8", "packets", "Of the class, that left the queues to be sent."),
    ("left_delay_ns", "f8", "ns", "Sum of their sojourns."),
    ("max_delay_ns", "i8", "ns", "Longest of them."),
    ("interval_drops", "i8", "packets", "Dropped in this control interval."),
    ("idle_ns", "i8", "ns", "Time at which the queue became empty."),
    ("active", "i1", "flag", "Whether the queue's controller runs, where each has its own."),
    # -- drops and marks
    ("drops", "i8", "packets", "Dropped from the queue since the start."),
    ("measurement_start_us", "i8", "us", "Start of the controller, for the log."),
    ("dropped", "i8", "packets", "Of the class."),
    ("marked", "i8", "packets", "Of the class."),
    ("dropped_ect", "i8", "packets", "Of the class, with ECN."),
)
FLOW_ROWS: Final[tuple[Row, ...]] = (
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
)

RULE_ROWS: Final[tuple[Row, ...]] = (
    ("generator", "4u8", "-", "PCG64 as NumPy's: low and high half of the state, then of the increment."),
    ("debt", "4f8", "1", "Debts of drop and mark of C, then of L."),
    ("left", "i8", "decisions", "Before the engine comes back."),
    ("step", "i8", "decisions", "Noted in the trajectory."),
    ("width", "i8", "-", "Environments beside each other in the trajectory's arrays."),
    ("obs_at", "i8", "address", "Of this environment's first row of observations; 0: no trajectory."),
    ("action_at", "i8", "address", "Of its actions."),
    ("reward_at", "i8", "address", "Of its rewards."),
    ("probabilities_at", "i8", "address", "Of its probabilities."),
)
PACKET_ROWS: Final[tuple[Row, ...]] = (
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
)
ENV: Final = dtype_of(ENV_ROWS)
QUEUE: Final = dtype_of(QUEUE_ROWS)
FLOW: Final = dtype_of(FLOW_ROWS)
RULE: Final = dtype_of(RULE_ROWS)
PACKET: Final = dtype_of(PACKET_ROWS, padding=False)
"""One cache line."""
ROWS: Final = {
    "environment": ENV_ROWS,
    "queue": QUEUE_ROWS,
    "flow": FLOW_ROWS,
    "packet": PACKET_ROWS,
    "rule": RULE_ROWS,
}


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
