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

# Slots of the event tree; the link, half of all events, has its own time in `ENV`.
SLOT_UPDATE_C, SLOT_UPDATE_L, SLOT_RATE, SLOT_STOP, SLOT_FLOWS = range(5)

# Bits of the sender's and the receiver's scoreboard, one byte a segment.
SACKED, LOST, RESENT, RECEIVED = 1, 2, 4, 8

HIST_SHIFT: Final = 5
HIST_BINS: Final = 24 << HIST_SHIFT
"""Delay histogram: 32 bins an octave of delay in 256 ns units, so a quantile is right to about 3 %."""


def _packed(hot: list[tuple[Any, ...]], cold: list[tuple[Any, ...]]) -> np.dtype[np.void]:
    """A record that starts and ends on cache lines of 64 bytes, with what is used together side by side."""
    bare = np.dtype(hot + cold, align=True)
    return np.dtype([*hot, *cold, ("padding", "u1", (-bare.itemsize % 64 or 64,))], align=True)


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
        # -- the policy, where it decides in the engine (`l4s_gym.sim.policy`): packed, and its `RULE`
        ("policy_at", "i8"), ("rule_at", "i8"),
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

RULE: Final = _packed(
    [
        # -- PCG64 as NumPy's: low and high half of the state, then of the increment; by queue, the debts of drop and mark
        ("generator", "u8", (4,)), ("debt", "f8", (4,)),
    ],
    [
        # -- decisions before the engine comes back; steps noted; environments beside each other in the trajectory's
        # arrays; where this environment's first row in them lies, 0: no trajectory
        ("left", "i8"), ("step", "i8"), ("width", "i8"), ("obs_at", "i8"), ("action_at", "i8"), ("reward_at", "i8"),
        ("probabilities_at", "i8"),
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
