"""Memory layout of the simulator: packed records, so that an environment is a few rows of arrays.

A batch of environments is a set of contiguous arrays of these records, which `l4s_gym.sim.batch.Batch`
owns. Each `ENV` record holds the addresses of its environment's rows in the other arrays, so that the compiled
functions pass only one pointer to each other (`l4s_gym.sim.memory` opens the records). Times are integer
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

# Rewards (`l4s_gym.rewards` has their names): a weighted sum of the components, or one of two others.
WEIGHTED, POWER, L4S_LLM = range(3)
COMPONENTS: Final = ("used", "evenness", "delay_c", "delay_l")
BUCKETS: Final = 16
BUCKET_NS: Final = 62_500_000
"""The evenness is that of the last second, in so many buckets of so many nanoseconds (`l4s_gym.sim.evenness`)."""

# Return status of `advance`.
RUNNING, DECISION, STOPPED, TERMINATED, TRUNCATED, LOG_FULL, POOL_EMPTY = range(7)

# In place of a logged packet's sojourn: the packet is still queued; or a full buffer dropped it from the queue.
WAITING, PUSHED_OUT = -1, -2

# Slots of the event tree; the link, half of all events, has its own time in `ENV`.
SLOT_UPDATE_C, SLOT_UPDATE_L, SLOT_RATE, SLOT_STOP, SLOT_FLOWS = range(5)

# Bits of the sender's and the receiver's scoreboard, one byte a segment.
SACKED, LOST, RESENT, RECEIVED = 1, 2, 4, 8

HIST_SHIFT: Final = 5
HIST_BINS: Final = 24 << HIST_SHIFT
"""Delay histogram: 32 bins per octave of delay in 256 ns units, so a quantile is within about 3 %."""


Row = tuple[str, str, str, str]
"""A field: name, NumPy type, unit, meaning.

Units in the plural are counts of such things; `segment` is a segment's number, `packet` an index in the pool, `flag`
0 or 1, `-` none.
"""


def dtype_of(rows: Sequence[Row], padding: bool = True) -> np.dtype[np.void]:
    """Return a record of some fields; with `padding` it starts and ends on cache lines of 64 bytes."""
    plain: list[tuple[Any, ...]] = [row[:2] for row in rows]
    if padding:
        plain.append(("padding", "u1", (-np.dtype(plain, align=True).itemsize % 64 or 64,)))
    return np.dtype(plain, align=padding)


ENV_ROWS: Final[tuple[Row, ...]] = (
    # -- touched at nearly every packet
    ("now_ns", "i8", "ns", "Simulated time."),
    ("link_at", "i8", "ns", "Time of the link's next event."),
    ("horizon_ns", "i8", "ns", "End of the episode."),
    ("tree_at", "i8", "address", "Address of the tree of event times."),
    ("queue_at", "i8", "address", "Address of the queues."),
    ("flow_at", "i8", "address", "Address of the flows."),
    ("packet_at", "i8", "address", "Address of the packets."),
    ("score_at", "i8", "address", "Address of the flows' scoreboards."),
    ("obs_at", "i8", "address", "Address of the observation."),
    ("rng", "u8", "-", "State of the random generator for decisions about packets."),
    ("host_rng", "u8", "-", "State of the hosts' random generator."),
    ("integrated_ns", "i8", "ns", "Time up to which the reward's integrals are computed."),
    ("served_s", "f8", "s", "Link time used since the reward was last taken."),
    ("delay_c_s", "f8", "s", "Integral of C's normalised delay since then."),
    ("delay_l_s", "f8", "s", "Integral of L's normalised delay since then."),
    ("power_s", "f8", "s", "Link time used since then; each packet's share is divided by 1 + its normalised delay."),
    ("fair_s", "f8", "s", "Link time used since then, each packet's share times the evenness."),
    ("evenness", "f8", "1", "Evenness of the flows' goodputs over the last second (`l4s_gym.sim.evenness`)."),
    ("bucket_end_ns", "i8", "ns", "End of this bucket, or of the episode where that is earlier."),
    ("bulk_bytes", "(2,)i8", "bytes", "Payload that reached bulk flows of C and L in this bucket, each segment once."),
    ("per_ref_c", "f8", "1/ns", "1 / reference delay of C."),
    ("per_ref_l", "f8", "1/ns", "1 / reference delay of L."),
    ("s_per_byte", "f8", "s", "Link time of a byte at the first rate."),
    ("ns_per_byte", "f8", "ns", "Link time of a byte at the current rate."),
    ("used_ns", "f8", "ns", "Time up to which packets that left the queues occupy the link."),
    ("bytes", "i8", "bytes", "Bytes queued in all queues."),
    ("limit_bytes", "i8", "bytes", "Buffer size in bytes; 0: no limit in bytes."),
    ("own_at", "i8", "address", "Address of the discipline's own record."),
    ("own_queue_at", "i8", "address", "Address of the discipline's own records of the queues."),
    ("target_us", "i8", "us", "Target delay of the discipline."),
    ("sent", "i8", "packets", "Packets offered to the queues."),
    ("delivered", "i8", "packets", "Packets that have crossed the link."),
    ("decisions", "i8", "-", "Number of decisions taken by the agent."),
    ("events", "i8", "-", "Handled."),
    ("served_bytes", "i8", "bytes", "Bytes taken from the queues to be sent."),
    ("hist_at", "i8", "address", "Address of the delay histograms."),
    ("log_capacity", "i8", "rows", "Size of the decision log; 0: no log."),
    ("last_reward_len", "i8", "bytes", "Length of the packet that was decided last, for the reward `l4s_llm`."),
    ("last_reward_delay_us", "i8", "us", "Delay of that packet's queue."),
    ("action_at", "i8", "address", "Address of the action."),
    ("reward_at", "i8", "address", "Address of the reward."),
    ("status_at", "i8", "address", "Address of the status."),
    ("applied_at", "i8", "address", "Address of the applied action."),
    ("weights", "(4,)f8", "1", "Weights of `COMPONENTS` in the reward."),
    ("totals", "(4,)f8", "s", "`COMPONENTS` since the start, up to when the reward was last taken."),
    ("tick_ns", "i8", "ns", "Length of a kernel tick; 0: the clock is exact."),
    ("free", "i4", "packet", "Head of the list of released packets."),
    ("fresh", "i4", "packet", "First packet of the pool that has never been used."),
    ("in_flight", "i4", "packets", "Under way."),
    ("pool", "i4", "packets", "Size of the packet pool."),
    ("window", "i4", "segments", "Size of a scoreboard, a power of two."),
    ("leaves", "i4", "-", "Leaves of the tree of event times, a power of two."),
    ("packets", "i4", "packets", "Packets queued in all queues."),
    ("limit_packets", "i4", "packets", "Buffer size in packets; 0: no limit in packets."),
    ("arriving", "i4", "packet", "Packet that arrives at the queues now."),
    ("sending", "i4", "flow", "Flow that may send now."),
    ("until_decision", "i4", "packets", "Packets until the agent is asked again."),
    ("sending_packet", "i4", "packet", "Packet that is being sent."),
    ("n_flows", "i4", "-", "Flows."),
    ("n_queues", "i4", "-", "Queues."),
    ("unfinished", "i4", "flows", "Finite transfers that are not complete."),
    ("interval", "i4", "packets", "Packets from one decision of the agent to the next."),
    ("status", "i1", "-", "Return status of the engine."),
    ("decider", "i1", "-", "Who decides: `NATIVE`, `AGENT`, `POLICY`, `PROBABILITY`."),
    ("aqm", "i1", "-", "Number of the discipline in `disciplines.BUILT_IN`."),
    ("dual", "i1", "flag", "Whether the discipline has the queues C and L."),
    ("link", "i1", "-", "Kind of the link: `CONSTANT`, `TRACE`, `TICK`, `DUMMYNET`."),
    ("busy", "i1", "flag", "Whether the link is sending."),
    ("finite", "i1", "flag", "Whether all flows are finite transfers."),
    ("passes", "i1", "-", "Number of times that each packet crosses the bottleneck."),
    ("acks_queued", "i1", "flag", "Whether the ACKs cross the same queues."),
    ("applied", "i1", "action", "Action applied to the packet that arrived last."),
    ("logged", "i1", "action", "Action shown by the log where it differs from the applied one, else -1."),
    ("reward_kind", "i1", "-", "`WEIGHTED`, `POWER`, `L4S_LLM`."),
    ("queue_timers", "i1", "flag", "Whether each queue has a control timer of its own."),
    # -- the rest of the link, what the log shows of the discipline, measurement, the router (`l4s_gym.sim.router`)
    ("p_l", "f8", "1", "Probability of L that an agent has set."),
    ("p_c", "f8", "1", "Probability of C that an agent has set."),
    ("recur_l", "f8", "1", "Sum of L's probabilities since its last drop or mark, where these are evenly spread."),
    ("recur_c", "f8", "1", "Sum of C's probabilities since its last drop or mark, where these are evenly spread."),
    ("rate_bps", "f8", "bit/s", "Current rate of the link."),
    ("base_rate_bps", "f8", "bit/s", "Rate of the link at the start."),
    ("left_bytes", "i8", "bytes", "Bytes left to send of the packet that uses the trace's opportunities."),
    ("credit", "f8", "bit", "Credit of a link that serves at ticks."),
    ("trace_len", "i8", "-", "Opportunities in the trace, or steps of the rate."),
    ("trace_pos", "i8", "-", "Index of the next opportunity or step."),
    ("trace_cycle", "i8", "-", "Number of times that the trace has been repeated."),
    ("trace_period_ns", "i8", "ns", "Length of the trace; 0: it does not repeat."),
    ("tupdate_us", "i8", "us", "Control interval of the discipline."),
    ("max_burst_us", "i8", "us", "Burst allowance, for the log."),
    ("max_ecn_threshold", "i8", "1/8192", "Probability from which ECN packets are dropped, for the log."),
    ("alpha", "i8", "-", "Integral gain in the unit of the discipline, for the log."),
    ("beta", "i8", "-", "Proportional gain in the unit of the discipline, for the log."),
    ("flags", "i8", "-", "Flags of the kernel's parameters, for the log."),
    ("dropped", "i8", "packets", "Packets dropped in all."),
    ("since_ns", "i8", "ns", "Time at which the measurement began."),
    ("capacity_bytes", "f8", "bytes", "Bytes that the link could have carried, up to the last change of its rate."),
    ("capacity_ns", "i8", "ns", "Time of that change."),
    ("updates", "i8", "-", "Number of updates of the discipline's controller."),
    ("update_delay_ns", "f8", "ns", "Sum of the delays at these updates."),
    ("log_rows", "i8", "rows", "Rows in the decision log."),
    ("sequence", "i8", "-", "Sequence number of the next row."),
    ("log_at", "i8", "address", "Address of the decision log."),
    ("rewards_at", "i8", "address", "Address of the rewards at the rows of the log."),
    ("sojourns_at", "i8", "address", "Address of the sojourns of the logged packets."),
    ("trace_row", "i8", "address", "Address of the trace."),
    ("hooks_at", "i8", "address", "Address of the table of function addresses of a discipline from outside."),
    ("taken", "f8", "-", "Reward taken since the start."),
    ("explore", "f8", "1", "Share of the native decisions that are drawn at random instead."),
    ("stalled_bytes", "f8", "bytes", "Bytes left of the packet that waits for the end of an outage."),
    ("ahead_bytes", "f8", "bytes", "Bytes between queue and far end of the link when the measurement began."),
    ("row_ns", "i8", "ns", "Processor time of the router for each packet."),
    ("slice_ns", "i8", "ns", "Longest time that the network card's thread runs while others wait."),
    ("pause_ns", "i8", "ns", "Length of the router's pauses."),
    ("pause_gap_ns", "i8", "ns", "Mean time between them."),
    ("pause_at", "i8", "ns", "Time of the next pause; -1: not drawn yet."),
    ("pipe_ns", "i8", "ns", "Delay of the pipe."),
    ("clock_ns", "i8", "ns", "The kernel's clock at its last tick."),
    ("sched_ns", "i8", "ns", "Time up to which the link's credit is counted."),
    ("idle_at", "i8", "ns", "Time since which the pipe has been idle."),
    ("serve_at", "i8", "ns", "Time at which the pipe serves next."),
    ("task_at", "i8", "ns", "Time at which dummynet's task is due."),
    ("turn_ns", "i8", "ns", "Time at which the running thread's turn began."),
    ("list_head", "(6,)i4", "packet", "Heads of the router's lists of packets (`l4s_gym.sim.router`)."),
    ("list_tail", "(6,)i4", "packet", "Their tails."),
    ("ring_size", "(4,)i4", "packets", "Packets in the rings of the network cards."),
    ("in_rings", "i4", "packets", "Packets in all rings."),
    ("card", "i4", "-", "Network card that is served now."),
    ("budget", "i4", "packets", "Packets that this card may still pass on."),
    ("even", "i1", "flag", "Whether an agent's probabilities are spread evenly instead of drawn at random."),
    ("guarded", "i1", "flag", "Whether they keep L's own threshold, and drop ECN packets in overload."),
    ("called", "i1", "-", "State of the processor: 1 has work, 2 has printed its line."),
    ("late", "i1", "bits", "Queues whose update waits for the processor."),
    ("policy_at", "i8", "address", "Address of the policy that decides in the engine (`l4s_gym.sim.policy`)."),
    ("rule_at", "i8", "address", "Address of the state of its decision rule."),
    ("bulk_flows", "(2,)i8", "flows", "Bulk flows of C and L that run."),
    ("bulk_ns", "(2,)i8", "ns", "Time that they have run in this bucket, summed over the flows."),
    ("bulk_since_ns", "i8", "ns", "Time up to which that is counted."),
    ("bucket", "i8", "-", "Number of this bucket since the start."),
    ("second_bytes", "(2,)i8", "bytes", "Payload of the last second, up to this bucket."),
    ("second_ns", "(2,)i8", "ns", "Flow time of the last second, up to this bucket."),
    ("past_bytes", f"({BUCKETS}, 2)i8", "bytes", "`bulk_bytes` of each of its buckets."),
    ("past_ns", f"({BUCKETS}, 2)i8", "ns", "`bulk_ns` of each of its buckets."),
)
QUEUE_ROWS: Final[tuple[Row, ...]] = (
    # -- touched at nearly every packet
    ("delay_ns", "i8", "ns", "Sojourn of the packet that left last."),
    ("packets", "i8", "packets", "Queued."),
    ("bytes", "i8", "bytes", "Queued."),
    ("head", "i8", "packet", "First packet in the queue, or -1."),
    ("tail", "i8", "packet", "Last packet in the queue, or -1."),
    ("total_packets", "i8", "packets", "Packets offered to the queue."),
    ("total_bytes", "i8", "bytes", "Bytes offered to the queue."),
    ("class_delay_ns", "i8", "ns", "Sojourn of the class's packet that left last."),
    ("normalised", "f8", "1", "That delay / (itself + the class's reference)."),
    ("class_packets", "i8", "packets", "Queued packets of the class."),
    ("offered", "i8", "packets", "Packets of the class offered, since the measurement began (as all its counts)."),
    ("offered_bytes", "i8", "bytes", "Bytes of the class offered."),
    ("left", "i8", "packets", "Packets of the class that left the queues to be sent."),
    ("left_delay_ns", "f8", "ns", "Sum of the sojourns of these packets."),
    ("max_delay_ns", "i8", "ns", "Longest of these sojourns."),
    ("interval_drops", "i8", "packets", "Packets dropped in this control interval."),
    ("idle_ns", "i8", "ns", "Time at which the queue became empty."),
    ("active", "i1", "flag", "Whether the queue's own controller is active."),
    # -- drops and marks
    ("drops", "i8", "packets", "Packets dropped from the queue since the start."),
    ("measurement_start_us", "i8", "us", "Start of the controller, for the log."),
    ("dropped", "i8", "packets", "Dropped packets of the class."),
    ("marked", "i8", "packets", "Marked packets of the class."),
    ("dropped_ect", "i8", "packets", "Dropped packets of the class with ECN."),
)
FLOW_ROWS: Final[tuple[Row, ...]] = (
    # -- touched at nearly every packet
    ("cwnd", "f8", "packets", "Congestion window."),
    ("ssthresh", "f8", "packets", "Slow-start threshold; 1e9: none."),
    ("srtt_ns", "f8", "ns", "Smoothed round-trip time (RFC 6298); 0 before the first sample."),
    ("rttvar_ns", "f8", "ns", "Variation of the round-trip time (RFC 6298)."),
    ("min_rtt_ns", "i8", "ns", "Least round-trip time of the connection."),
    ("rto_at", "i8", "ns", "Time at which the retransmission timer expires; `NEVER` while it is off."),
    ("delack_at", "i8", "ns", "Time at which the delayed ACK is due; `NEVER` where none waits."),
    ("hop_ns", "i8", "ns", "Delay of one hop: the delay of the path, divided among the crossings."),
    ("min_rto_ns", "i8", "ns", "Linux: least value that the variation adds to the timeout; FreeBSD: least timeout."),
    ("pending_sent_ns", "i8", "ns", "Send time of the oldest segment that waits for an ACK: the timestamp to echo."),
    ("delack_ns", "i8", "ns", "Longest delay of an ACK."),
    ("goodput_bytes", "i8", "bytes", "Payload that has arrived; each segment counts once."),
    ("rtt_sum_ns", "f8", "ns", "Sum of the samples of the round-trip time."),
    ("window_sum", "f8", "packets", "Sum of the windows at the ACKs, weighted by the packets that they acknowledged."),
    ("ce_alpha", "f8", "-", "Moving average of the marked fraction, 0 to 1 (DCTCP, Prague)."),
    ("transit_head", "i4", "packet", "First of the packets in transit; -1: none."),
    ("transit_tail", "i4", "packet", "Last of the packets in transit."),
    ("una", "i4", "segment", "First segment that is not acknowledged cumulatively."),
    ("nxt", "i4", "segment", "Next new segment to send."),
    ("limit_seq", "i4", "segment", "One past the last segment that the application has offered."),
    ("pipe", "i4", "packets", "Packets in flight by the count of RFC 6675."),
    ("sack1", "i4", "segment", "Highest selectively acknowledged segment; -1: none."),
    ("sack2", "i4", "segment", "Second highest."),
    ("sack3", "i4", "segment", "Third highest: segments below it count as lost."),
    ("lost_scan", "i4", "segment", "Segment up to which losses have been looked for."),
    ("recover", "i4", "segment", "`nxt` at the start of the recovery: it ends there."),
    ("ecn_recover", "i4", "segment", "`nxt` at the last response to marks: no other one before it is acknowledged."),
    ("ce_seen", "i4", "packets", "CE count of the latest ACK."),
    ("rcv_nxt", "i4", "segment", "Next segment that the receiver expects."),
    ("ce_count", "i4", "packets", "Data packets that have arrived with CE."),
    ("received", "i4", "packets", "Data packets that have arrived."),
    ("packets", "i4", "packets", "Data packets sent since the counters were reset."),
    ("rtt_count", "i4", "samples", "Samples of the round-trip time in `rtt_sum_ns`."),
    ("window_count", "i4", "packets", "Sum of the weights in `window_sum`."),
    ("rwnd", "i4", "packets", "Receive window."),
    ("acked_in_round", "i4", "packets", "Packets acknowledged in this round of the average of marks."),
    ("marked_in_round", "i4", "packets", "Packets among them that carried CE."),
    ("round_end", "i4", "segment", "`nxt` when this round of the average began (DCTCP)."),
    ("mss", "i4", "bytes", "IP length of a full packet."),
    ("ack_every", "i4", "segments", "Segments acknowledged by one ACK."),
    ("lost_out", "i4", "segments", "Lost segments that wait to be sent again."),
    ("held", "i4", "segments", "Segments that the receiver holds out of order."),
    ("pending", "i4", "segments", "Segments that wait for a delayed ACK."),
    ("last_len", "i4", "bytes", "IP length of the transfer's last packet."),
    ("backoff", "i4", "-", "Factor of the timeout: doubles with each timeout, up to 64."),
    ("app", "i1", "-", "Application: index in `APPS`."),
    ("cc", "i1", "-", "Congestion control: index in `CCS`; beyond: a user's own."),
    ("ecn", "i1", "-", "ECN codepoint of the packets that it sends."),
    ("accurate", "i1", "flag", "The receiver echoes each CE (RFC 9768), instead of until CWR (RFC 3168)."),
    ("ect_resent", "i1", "flag", "Packets sent again are ECN-capable too."),
    ("paced", "i1", "flag", "Packets are sent at a rate, not as ACKs come in."),
    ("running", "i1", "flag", "The application has data to send."),
    ("done", "i1", "flag", "A finite bulk transfer is complete."),
    ("recovery", "i1", "-", "0 none, 1 after a loss, 2 after a timeout, 3 after an ECN signal (FreeBSD)."),
    ("send_cwr", "i1", "flag", "The next new packet carries CWR."),
    ("limited", "i1", "flag", "The window or pacing, not a lack of data, last stopped the sender."),
    ("held_back", "i1", "flag", "The flow's timer waits for `pace_at`."),
    ("ce_state", "i1", "flag", "The last packet received carried CE."),
    ("echo", "i1", "flag", "The next ACK carries the echo of CE."),
    ("finite", "i1", "flag", "The flow is one transfer of `size_min` bytes."),
    ("slope_one", "i1", "flag", "The slope `friendly` becomes 1 above the earlier window (RFC 9438 section 4.3)."),
    ("variant", "i1", "-", "Prague: index in `prague.VARIANTS`."),
    ("slow_start", "i1", "-", "How slow start ends: index in `slowstart.KINDS`."),
    ("lost_late", "i1", "flag", "A loss beyond `recover` was found: the sender responds when the recovery ends."),
    ("fast_resend", "i1", "flag", "The first lost segment is sent even if the window is full (RFC 6675 section 5)."),
    ("holds", "i1", "flag", "The window stays constant for a round after the response to a mark (Linux)."),
    ("shrinks", "i1", "flag", "Packets may become shorter (UDP Prague)."),
    ("scalable", "i1", "flag", "The congestion control responds to the share of marks (RFC 9331)."),
    ("packet_len", "i4", "bytes", "Current IP length of the packets sent."),
    ("sent_all", "i4", "packets", "Data packets that the connection has sent, including those sent again."),
    ("burst_open", "i4", "packets", "Packets that may be sent back to back before pacing holds the next (Prague)."),
    ("jitter_ns", "i4", "ns", "Largest extra delay of a hop (uniform)."),
    ("last_due_ns", "i8", "ns", "Arrival time of the last packet in transit: no packet overtakes it."),
    ("hole_ns", "i8", "ns", "Time when the first hole was last sent again or filled (UDP Prague: sign of a new loss)."),
    ("loss_ns", "i8", "ns", "Time of the last response to a loss (Prague)."),
    ("lost_since", "i4", "packets", "Packets lost since then, minus those that arrived late (Prague)."),
    # -- what the flow is, the states of single congestion controls, measurement
    ("start_ns", "i8", "ns", "Start of the flow."),
    ("initial_window", "f8", "packets", "Window of a new connection."),
    ("rate_bps", "f8", "bit/s", "Rate of `cbr`, and of `onoff` while on."),
    ("mean_on_ns", "f8", "ns", "Mean time on."),
    ("mean_off_ns", "f8", "ns", "Mean time off, or think time of a web user."),
    ("size_shape", "f8", "-", "Shape of the distribution of pages (bounded Pareto)."),
    ("size_min", "f8", "bytes", "Smallest page, or size of the finite transfer."),
    ("size_max", "f8", "bytes", "Largest page."),
    ("beta", "f8", "-", "Factor of the window after a loss."),
    ("beta_ecn", "f8", "-", "Factor of the window after an ECN signal of RFC 3168."),
    ("cubic_c", "f8", "packets/s^3", "C of RFC 9438."),
    ("friendly", "f8", "packets/round", "Slope of CUBIC's Reno-friendly window."),
    ("gain", "f8", "-", "Weight of a round in `ce_alpha`."),
    ("pace_at", "i8", "ns", "Time at which pacing allows the next packet."),
    ("app_at", "i8", "ns", "Time at which the application acts next; `NEVER`: not by itself."),
    ("on_until_ns", "i8", "ns", "End of the burst of `onoff`."),
    ("w_max", "f8", "packets", "Plateau of the cubic curve."),
    ("w_est", "f8", "packets", "CUBIC's Reno-friendly window."),
    ("cubic_k", "f8", "s", "Time from the start of the epoch to the plateau (K of RFC 9438)."),
    ("epoch_ns", "i8", "ns", "Start of CUBIC's epoch; 0: none yet, -1: with the next ACK."),
    ("prior", "f8", "packets", "Window before CUBIC's last reduction; 0: none yet."),
    ("round_ns", "i8", "ns", "Start of Prague's round."),
    ("reduced_ns", "i8", "ns", "Time of Prague's last reduction for marks."),
    ("resent", "i8", "packets", "Packets sent again since the counters were reset."),
    ("timeouts", "i8", "timeouts", "Number of timeouts since the counters were reset."),
    ("completed", "i8", "transfers", "Transfers completed since the counters were reset."),
    ("completion_s", "f8", "s", "Sum of the completion times of these transfers."),
    ("began_ns", "i8", "ns", "Start of the current transfer."),
    ("drops", "i8", "packets", "Packets of the flow that the queue dropped."),
    ("marks", "i8", "packets", "Packets of the flow that the queue marked."),
    ("reductions", "i8", "reductions", "Reductions of the window, without those after timeouts."),
    ("resend_from", "i4", "segment", "Segment from which the next lost segment is searched."),
    ("block_start", "i4", "segment", "First of the receiver's latest SACK block."),
    ("block_end", "i4", "segment", "One past the last segment of this block."),
    ("slop_ns", "i8", "ns", "Time added to the timeout of RFC 6298."),
    ("initial_ssthresh", "f8", "packets", "`ssthresh` of a new connection."),
    ("filled_ns", "i8", "ns", "Start of the receiver's measurement of its buffer's fill rate (FreeBSD)."),
    ("sack_length", "i4", "bytes", "Bytes that a SACK option adds to an ACK."),
    ("card", "i4", "-", "Network card of the router to which the source is connected."),
    ("largest_rwnd", "i4", "packets", "Largest receive window that it grows to; 0: it does not grow."),
    ("filled", "i4", "segments", "Segments received in order since `filled_ns`."),
    ("freebsd", "i1", "flag", "The sender is FreeBSD's base stack."),
    # -- Prague (`l4s_gym.sim.prague`)
    ("pace_bps", "f8", "bit/s", "Pacing rate."),
    ("undo", "f8", "packets or bit/s", "Amount that the last loss subtracted, given back if the packets arrive late."),
    ("alpha_sent", "i4", "packets", "`sent_all` at the start of the round of `ce_alpha`."),
    ("loss_sent", "i4", "packets", "`sent_all` at the response to the loss."),
    ("cwr_sent", "i4", "packets", "`sent_all` at the response to marks."),
    ("growth_wait", "i4", "rounds", "Rounds without a mark before growth by time replaces growth by packets."),
    ("undo_wait", "i4", "rounds", "Rounds of `growth_wait` that the last loss added."),
    ("rounds", "i4", "rounds", "Rounds since slow start."),
    ("prague", "i1", "-", "State: `prague.AVOIDANCE`, `IN_LOSS` or `IN_CWR`."),
    ("rate_mode", "i1", "flag", "The rate is controlled, not the window."),
    ("undo_mode", "i1", "flag", "`rate_mode` at the time of the loss of `undo`."),
    ("first_ack", "i1", "flag", "The first ACK has not arrived yet."),
    # -- the end of slow start (`l4s_gym.sim.slowstart`)
    ("ss_began_ns", "i8", "ns", "Start of the round."),
    ("ss_last_ns", "i8", "ns", "Latest ACK of the round's train of ACKs."),
    ("ss_least_ns", "i8", "ns", "Least round-trip time of the round; `NEVER`: no sample."),
    ("ss_before_ns", "i8", "ns", "Least round-trip time of the previous round."),
    ("css_base_ns", "i8", "ns", "Least round-trip time when the conservative phase began (RFC 9406)."),
    ("ss_end", "i4", "segment", "`nxt` when the round began."),
    ("ss_samples", "i4", "samples", "Samples of the round-trip time in the round."),
    ("css_rounds", "i4", "rounds", "Rounds of the conservative phase, including the current one; 0: not in it."),
    # -- FreeBSD: proportional rate reduction, CUBIC's epochs
    ("rexmit", "i4", "packets", "Packets sent again and not yet acknowledged."),
    ("prr_delivered", "i4", "packets", "Packets delivered in the recovery (RFC 6937)."),
    ("prr_out", "i4", "packets", "Packets sent in the recovery."),
    ("recover_fs", "i4", "packets", "Packets in flight at the start of the recovery."),
    ("phase", "i4", "-", "Bits `freebsd_tcp.SLOW_START`, `APP_LIMITED`, `TIMED_OUT`."),
    ("epoch_acks", "i4", "ACKs", "ACKs in CUBIC's epoch."),
    ("epoch_rtt_ns", "f8", "ns", "Sum of the smoothed round-trip times at these ACKs."),
    ("mean_rtt_ns", "f8", "ns", "Mean of them in the previous epoch."),
    # -- a user's own congestion control (`l4s_gym.sim.control`)
    ("law_at", "i8", "address", "Address of the table of its function addresses."),
    ("own", "14f8", "-", "Its state, in units that it chooses."),
)

RULE_ROWS: Final[tuple[Row, ...]] = (
    ("generator", "4u8", "-", "State of PCG64 as in NumPy: low and high half of the state, then of the increment."),
    ("debt", "4f8", "1", "Accumulated probabilities of drop and mark for C, then for L."),
    ("left", "i8", "decisions", "Decisions left before the engine returns."),
    ("step", "i8", "decisions", "Decisions written to the trajectory."),
    ("width", "i8", "-", "Number of environments side by side in the trajectory's arrays."),
    ("obs_at", "i8", "address", "Address of this environment's first row of observations; 0: no trajectory."),
    ("action_at", "i8", "address", "Address of its actions."),
    ("reward_at", "i8", "address", "Address of its rewards."),
    ("probabilities_at", "i8", "address", "Address of its probabilities."),
)
PACKET_ROWS: Final[tuple[Row, ...]] = (
    ("next", "i4", "packet", "Next packet in its list; -1: none."),
    ("flow", "i2", "-", "Index of its flow."),
    ("len", "i2", "bytes", "IP length."),
    ("ecn", "i1", "-", "Codepoint."),
    ("ack", "i1", "flag", "The packet is a pure ACK."),
    ("crossing", "i1", "crossings", "Number of crossings of the bottleneck that are done."),
    ("cwr", "i1", "flag", "The sender has reduced its window (RFC 3168)."),
    ("echo", "i1", "flag", "ACK: echo of CE."),
    ("decided", "i1", "flag", "An agent, not the discipline, has decided about it."),
    ("cls", "i1", "-", "Traffic class: 0 C, 1 L, in any queue."),
    ("step_ok", "i1", "flag", "Linux: at its arrival, the L queue was long enough for the step to apply."),
    ("record", "i4", "-", "Row of the log to be finished; -1: none."),
    ("ce_count", "i4", "packets", "ACK: data packets that have arrived with CE."),
    ("seq", "i4", "segment", "Segment number; ACK: the next segment expected."),
    ("sack_seq", "i4", "segment", "ACK: the out-of-order segment that it answers; -1: none."),
    ("sack_from", "i4", "segment", "ACK: first segment of the latest block."),
    ("sack_to", "i4", "segment", "ACK: one past the last segment of the block."),
    ("sent_ns", "i8", "ns", "Time at which its sender sent it; ACK: the echo of that."),
    ("enqueued_ns", "i8", "ns", "Time at which it joined its queue."),
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
    """Allocate zeroed arrays of `n` rows; row i of all of them is contiguous in memory.

    One environment's rows then lie on few pages: with an array for each part, a large batch missed the processor's
    page table cache at every step, and lost half its speed.

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
