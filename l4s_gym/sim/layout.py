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
"""A time that does not come."""

# Congestion controls; NONE is unresponsive.
NONE, NEWRENO, CUBIC, DCTCP, PRAGUE = range(5)
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


Row = tuple[str, str, str, str]
"""A field: its name, NumPy type, unit (`-`: none), and what it is."""


def dtype_of(rows: Sequence[Row]) -> np.dtype[np.void]:
    """A record of some fields that starts and ends on cache lines of 64 bytes."""
    bare = np.dtype([row[:2] for row in rows], align=True)
    return np.dtype([*(row[:2] for row in rows), ("padding", "u1", (-bare.itemsize % 64 or 64,))], align=True)


def _packed(hot: list[tuple[str, str]], cold: list[tuple[Any, ...]]) -> np.dtype[np.void]:
    """A record that starts and ends on cache lines of 64 bytes, with what is used together side by side."""
    bare = np.dtype(hot + cold, align=True)
    return np.dtype([*hot, *cold, ("padding", "u1", (-bare.itemsize % 64 or 64,))], align=True)


ENV_ROWS: Final[tuple[Row, ...]] = (
    *(
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
        ("bytes", "i8", "B", "Queued in all."),
        ("limit_bytes", "i8", "B", "Buffer; 0: no limit in bytes."),
        ("own_at", "i8", "address", "Of the discipline's own record."),
        ("own_queue_at", "i8", "address", "Of the discipline's own records of the queues."),
        ("target_us", "i8", "us", "Target delay of the discipline."),
        ("sent", "i8", "packets", "Offered to the queues."),
        ("delivered", "i8", "packets", "That have crossed the link."),
        ("decisions", "i8", "-", "Taken by the agent."),
        ("events", "i8", "-", "Handled."),
        ("served_bytes", "i8", "B", "Taken from the queues to be sent."),
        ("hist_at", "i8", "address", "Of the delay histograms."),
        ("log_capacity", "i8", "rows", "Of the decision log; 0: no log."),
        ("last_reward_len", "i8", "B", "Length of the packet that was decided last, for the reward `l4s_llm`."),
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
        ("decider", "i1", "-", "Who decides: `NATIVE`, `AGENT`, `PROBABILITY`."),
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
    ),
    *(
        # -- the rest of the link, what the log shows of the discipline, measurement, the router (`l4s_gym.sim.router`)
        ("p_l", "f8", "1", "Probability of L that an agent has set."),
        ("p_c", "f8", "1", "Probability of C that an agent has set."),
        ("recur_l", "f8", "1", "Sum of L's probabilities since its last hit, where hits are even."),
        ("recur_c", "f8", "1", "Sum of C's probabilities since its last hit, where hits are even."),
        ("rate_bps", "f8", "bit/s", "Of the link now."),
        ("base_rate_bps", "f8", "bit/s", "Of the link at the start."),
        ("left_bytes", "i8", "B", "Of the packet that a trace's opportunities are sending."),
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
        ("capacity_bytes", "f8", "B", "That the link could have carried, up to the last change of its rate."),
        ("capacity_ns", "i8", "ns", "Time of that change."),
        ("updates", "i8", "-", "Of the discipline's controller."),
        ("update_delay_ns", "f8", "ns", "Sum of the delays at these updates."),
        ("log_rows", "i8", "rows", "In the decision log."),
        ("sequence", "i8", "-", "Number of the next row."),
        ("log_at", "i8", "address", "Of the decision log."),
        ("rewards_at", "i8", "address", "Of the rewards at its rows."),
        ("trace_row", "i8", "address", "Of the trace."),
        ("hooks_at", "i8", "address", "Of the addresses of a discipline's functions that came from outside."),
        ("taken", "f8", "-", "Reward that was taken since the start."),
        ("explore", "f8", "1", "Share of the native decisions that is drawn instead."),
        ("stalled_bytes", "f8", "B", "Of the packet that waits for an outage's end."),
        ("ahead_bytes", "f8", "B", "Between queue and the link's far end when the measurement began."),
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
        ("called", "i1", "-", "Whether the processor has work (1), or has printed its line (2)."),
        ("late", "i1", "bits", "Queues whose update waits for the processor."),
    ),
)
QUEUE_ROWS: Final[tuple[Row, ...]] = (
    *(
        # -- touched at nearly every packet
        ("delay_ns", "i8", "ns", "Sojourn of the packet that left last."),
        ("packets", "i8", "packets", "Queued."),
        ("bytes", "i8", "B", "Queued."),
        ("head", "i8", "packet", "First in the queue, or -1."),
        ("tail", "i8", "packet", "Last in the queue, or -1."),
        ("total_packets", "i8", "packets", "Offered to the queue."),
        ("total_bytes", "i8", "B", "Offered to the queue."),
        ("class_delay_ns", "i8", "ns", "Sojourn of the class's packet that left last."),
        ("normalised", "f8", "1", "That delay / (itself + the class's reference)."),
        ("class_packets", "i8", "packets", "Of the class, queued."),
        ("offered", "i8", "packets", "Of the class, since the measurement began (as all counts of the class)."),
        ("offered_bytes", "i8", "B", "Of the class."),
        ("left", "i8", "packets", "Of the class, that left the queues to be sent."),
        ("left_delay_ns", "f8", "ns", "Sum of their sojourns."),
        ("max_delay_ns", "i8", "ns", "Longest of them."),
        ("interval_drops", "i8", "packets", "Dropped in this control interval."),
        ("idle_ns", "i8", "ns", "Time at which the queue became empty."),
        ("active", "i1", "flag", "Whether the queue's controller runs, where each has its own."),
    ),
    *(
        # -- drops and marks
        ("drops", "i8", "packets", "Dropped from the queue since the start."),
        ("measurement_start_us", "i8", "us", "Start of the controller, for the log."),
        ("dropped", "i8", "packets", "Of the class."),
        ("marked", "i8", "packets", "Of the class."),
        ("dropped_ect", "i8", "packets", "Of the class, with ECN."),
    ),
)
ENV: Final = dtype_of(ENV_ROWS)
QUEUE: Final = dtype_of(QUEUE_ROWS)

FLOW: Final = _packed(
    [
        # -- touched at nearly every packet
        ("cwnd", "f8"), ("ssthresh", "f8"), ("srtt_ns", "f8"), ("rttvar_ns", "f8"), ("min_rtt_ns", "i8"),
        ("rto_at", "i8"), ("delack_at", "i8"), ("hop_ns", "i8"), ("min_rto_ns", "i8"), ("pending_sent_ns", "i8"),
        ("delack_ns", "i8"), ("goodput_bytes", "i8"), ("rtt_sum_ns", "f8"), ("window_sum", "f8"), ("ce_alpha", "f8"),
        ("transit_head", "i4"), ("transit_tail", "i4"), ("una", "i4"), ("nxt", "i4"), ("limit_seq", "i4"),
        ("pipe", "i4"), ("sack1", "i4"), ("sack2", "i4"), ("sack3", "i4"), ("lost_scan", "i4"), ("recover", "i4"),
        ("ecn_recover", "i4"), ("ce_seen", "i4"), ("rcv_nxt", "i4"), ("ce_count", "i4"), ("received", "i4"),
        ("packets", "i4"), ("rtt_count", "i4"), ("window_count", "i4"), ("rwnd", "i4"), ("acked_in_round", "i4"),
        ("marked_in_round", "i4"), ("round_end", "i4"), ("mss", "i4"), ("ack_every", "i4"), ("lost_out", "i4"),
        ("held", "i4"), ("pending", "i4"), ("last_len", "i4"), ("backoff", "i4"), ("app", "i1"), ("cc", "i1"),
        ("ecn", "i1"), ("accurate", "i1"), ("ect_resent", "i1"), ("paced", "i1"), ("running", "i1"), ("done", "i1"),
        ("recovery", "i1"), ("send_cwr", "i1"), ("limited", "i1"), ("held_back", "i1"), ("ce_state", "i1"),
        ("echo", "i1"), ("finite", "i1"), ("slope_one", "i1"), ("variant", "i1"), ("slow_start", "i1"),
        ("lost_late", "i1"), ("fast_resend", "i1"), ("holds", "i1"), ("shrinks", "i1"), ("packet_len", "i4"), ("sent_all", "i4"), ("burst_open", "i4"),
        ("jitter_ns", "i4"), ("last_due_ns", "i8"), ("hole_ns", "i8"), ("loss_ns", "i8"), ("lost_since", "i4"),
    ],
    [
        # -- what the flow is, the states of single congestion controls, measurement
        ("start_ns", "i8"), ("initial_window", "f8"), ("rate_bps", "f8"), ("mean_on_ns", "f8"),
        ("mean_off_ns", "f8"), ("size_shape", "f8"), ("size_min", "f8"), ("size_max", "f8"), ("beta", "f8"),
        ("beta_ecn", "f8"), ("cubic_c", "f8"), ("friendly", "f8"), ("gain", "f8"), ("pace_at", "i8"),
        ("app_at", "i8"), ("on_until_ns", "i8"), ("w_max", "f8"), ("w_est", "f8"), ("cubic_k", "f8"),
        ("epoch_ns", "i8"), ("prior", "f8"), ("round_ns", "i8"), ("reduced_ns", "i8"), ("resent", "i8"),
        ("timeouts", "i8"), ("completed", "i8"), ("completion_s", "f8"), ("began_ns", "i8"), ("drops", "i8"),
        ("marks", "i8"), ("reductions", "i8"), ("resend_from", "i4"), ("block_start", "i4"), ("block_end", "i4"),
        ("slop_ns", "i8"), ("initial_ssthresh", "f8"), ("filled_ns", "i8"), ("sack_length", "i4"), ("card", "i4"),
        ("largest_rwnd", "i4"), ("filled", "i4"), ("freebsd", "i1"),
        # -- Prague (`l4s_gym.sim.prague`)
        ("pace_bps", "f8"), ("undo", "f8"), ("alpha_sent", "i4"), ("loss_sent", "i4"), ("cwr_sent", "i4"),
        ("growth_wait", "i4"), ("undo_wait", "i4"), ("rounds", "i4"), ("prague", "i1"), ("rate_mode", "i1"),
        ("undo_mode", "i1"), ("first_ack", "i1"),
        # -- the end of slow start (`l4s_gym.sim.slowstart`)
        ("ss_began_ns", "i8"), ("ss_last_ns", "i8"), ("ss_least_ns", "i8"), ("ss_before_ns", "i8"),
        ("css_base_ns", "i8"), ("ss_end", "i4"), ("ss_samples", "i4"), ("css_rounds", "i4"),
        # -- FreeBSD: proportional rate reduction, CUBIC's epochs
        ("rexmit", "i4"), ("prr_delivered", "i4"), ("prr_out", "i4"), ("recover_fs", "i4"), ("phase", "i4"),
        ("epoch_acks", "i4"), ("epoch_rtt_ns", "f8"), ("mean_rtt_ns", "f8"),
    ],
)  # fmt: skip

PACKET: Final = np.dtype(
    [
        ("next", "i4"), ("flow", "i2"), ("len", "i2"), ("ecn", "i1"), ("ack", "i1"), ("crossing", "i1"), ("cwr", "i1"),
        ("echo", "i1"), ("decided", "i1"), ("cls", "i1"), ("step_ok", "i1"), ("record", "i4"), ("ce_count", "i4"),
        ("seq", "i4"), ("sack_seq", "i4"), ("sack_from", "i4"), ("sack_to", "i4"),
        ("sent_ns", "i8"), ("enqueued_ns", "i8"), ("due_ns", "i8"),
    ]
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
