"""The decision record: every field of the kernel's log line, defined once.

The testbed's FreeBSD kernel prints one line per packet that is offered to the bottleneck
(``l4s_ecn_marking-start,<24 fields>,end``; an older form lacks ``packet_length``). The table below is the source of
the log parser and writer, the observation space and its scaling, the metadata of the datasets, the
wire format and the documentation page (`markdown_table`).

The printed `accumulated_probability` is the kernel's value *after* the decision, and is 0 after a random drop or
mark: it reveals the label. Observations therefore use the value *before* the decision
(`accumulated_probability_before` in our extension, or rebuilt by `l4s_gym.data.causal`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION: Final = 1
MAX_PROB: Final = (1 << 31) - 1
"""Probability 1 in kernel integers (``PIE_MAX_PROB``)."""

ENQUEUE: Final = 0
DROP: Final = 1
MARK: Final = 2
ACTIONS: Final = ("enqueue", "drop", "mark")
"""Names of the actions 0, 1, 2. The kernel prints action + 1 (``ENQUE=1, DROP=2, MARKECN=3``)."""

CLASSIC: Final = 0
L4S: Final = 1

NOT_ECT: Final = 0
ECT_1: Final = 1
ECT_0: Final = 2
CE: Final = 3
"""ECN codepoints as in the IP header (RFC 3168 section 5, RFC 9331 section 2)."""

DECIDED_BY: Final = ("kernel", "agent", "fallback")

LINE_START: Final = "l4s_ecn_marking-start,"
LINE_END: Final = ",end"

_U32 = (1 << 32) - 1
_I64 = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the record.

    Attributes:
        name: Our name, in the terms of RFC 9332 and of the paper.
        kernel: The expression that the kernel prints.
        unit: Unit of the stored integer.
        dtype: NumPy type of the stored integer.
        low: Smallest valid value.
        high: Largest valid value.
        doc: Description in one sentence.
        scale: For observed fields, the divisor of the integer; else 0.
        obs_high: For observed fields, the upper bound after scaling (larger values are clipped).
    """

    name: str
    kernel: str
    unit: str
    dtype: str
    low: int
    high: int
    doc: str
    scale: float = 0.0
    obs_high: float = 0.0


PRINTED: Final[tuple[Field, ...]] = (
    Field(
        "queue_type",
        "q->queue_type",
        "0 = C, 1 = L",
        "u1",
        0,
        1,
        "Queue that the packet was classified into.",
        1.0,
        1.0,
    ),
    Field("qdelay_ref", "pprms->qdelay_ref", "us", "u4", 0, _U32, "Target delay of the controller."),
    Field("tupdate", "pprms->tupdate", "us", "u4", 1, _U32, "Time between two updates of the probability."),
    Field("max_burst", "pprms->max_burst", "us", "u4", 0, _U32, "Burst allowance granted to a fresh queue."),
    Field(
        "max_ecn_threshold",
        "pprms->max_ecnth",
        "1/8192",
        "u2",
        0,
        65535,
        "Probability from which ECN packets are dropped.",
    ),
    Field("alpha", "pprms->alpha", "1/8192", "u4", 0, _U32, "Integral gain of the controller."),
    Field("beta", "pprms->beta", "1/8192", "u4", 0, _U32, "Proportional gain of the controller."),
    Field(
        "flags",
        "pprms->flags",
        "bits",
        "u4",
        0,
        _U32,
        "1 ECN, 2 cap-drop, 4 on-off, 8 rate estimation, 16 derandomise.",
    ),
    Field(
        "burst_allowance",
        "pst->burst_allowance",
        "us",
        "u4",
        0,
        _U32,
        "Time left in which nothing is dropped.",
        150_000.0,
        10.0,
    ),
    Field(
        "drop_probability",
        "pst->drop_prob",
        "1/(2^31-1)",
        "u4",
        0,
        MAX_PROB,
        "Base probability of the controller.",
        float(MAX_PROB),
        1.0,
    ),
    Field(
        "current_queue_delay",
        "pst->current_qdelay",
        "us",
        "u4",
        0,
        _U32,
        "Sojourn of the packet that last left the queue.",
        100_000.0,
        100.0,
    ),
    Field("queue_delay_old", "pst->qdelay_old", "us", "u4", 0, _U32, "Delay at the last update of the probability."),
    Field(
        "accumulated_probability",
        "pst->accu_prob",
        "1/(2^31-1)",
        "u8",
        0,
        _I64,
        "Sum of probabilities since the last drop or mark (derandomisation).",
        8.5 * MAX_PROB,
        10.0,
    ),
    Field(
        "measurement_start", "pst->measurement_start", "us", "u4", 0, _U32, "Clock when the controller was activated."
    ),
    Field(
        "average_dequeue_time",
        "pst->avg_dq_time",
        "us",
        "u4",
        0,
        _U32,
        "Departure-rate estimate (unused with timestamps: 0).",
    ),
    Field("dequeue_count", "pst->dq_count", "B", "u4", 0, _U32, "Departure-rate estimate (unused with timestamps: 0)."),
    Field("status_flags", "pst->sflags", "bits", "u4", 0, _U32, "1 active, 2 in measurement."),
    Field(
        "total_packets", "q->stats.tot_pkts", "packets", "u8", 0, _I64, "Packets offered to the queue before this one."
    ),
    Field("total_bytes", "q->stats.tot_bytes", "B", "u8", 0, _I64, "Bytes offered to the queue before this packet."),
    Field("length_in_packets", "q->stats.length", "packets", "u4", 0, _U32, "Queue length before this packet."),
    Field(
        "length_in_bytes",
        "q->stats.len_bytes",
        "B",
        "u4",
        0,
        _U32,
        "Queue length before this packet.",
        150_000.0,
        1000.0,
    ),
    Field(
        "total_drops",
        "q->stats.drops",
        "packets",
        "u4",
        0,
        _U32,
        "Drops of the queue before this packet; observed: those in the current control interval.",
        10.0,
        100.0,
    ),
    Field("packet_length", "m->m_pkthdr.len", "B", "u4", 0, 65535, "IP length of this packet.", 1500.0, 44.0),
    Field("action", "t", "1, 2, 3", "u1", 1, 3, "Decision: 1 enqueue, 2 drop, 3 mark (stored as 0, 1, 2)."),
)
"""The 24 printed fields, in the order of the log line."""

EXTENSION: Final[tuple[Field, ...]] = (
    Field("sequence", "-", "records", "u8", 0, _I64, "Number of the record since the start of the log."),
    Field("time_us", "-", "us", "u8", 0, _I64, "Time of the arrival."),
    Field("flow_id", "-", "index", "u4", 0, _U32, "Flow of the packet."),
    Field("ecn", "-", "codepoint", "u1", 0, 3, "ECN field on arrival: 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE."),
    Field("decided_by", "-", "index", "u1", 0, 2, "0 kernel, 1 agent, 2 fallback."),
    Field(
        "applied_action",
        "-",
        "0, 1, 2",
        "u1",
        0,
        2,
        "What was done to the packet (a logged drop may be withheld, a mark may become a drop).",
    ),
    Field(
        "accumulated_probability_before",
        "-",
        "1/(2^31-1)",
        "u8",
        0,
        _I64,
        "The accumulated probability before this decision; the largest value stands for unknown.",
    ),
    Field(
        "interval_drops",
        "-",
        "packets",
        "u4",
        0,
        _U32,
        "Drops of the queue in the current control interval, before this packet.",
    ),
)
"""Our extension: in binary records and datasets, never in the printed line."""

FIELDS: Final = PRINTED + EXTENSION
BY_NAME: Final = {field.name: field for field in FIELDS}

OBSERVED: Final = (
    "queue_type",
    "burst_allowance",
    "drop_probability",
    "current_queue_delay",
    "accumulated_probability",
    "length_in_bytes",
    "total_drops",
    "packet_length",
)
"""The eight features of the observation, in order (as in the paper)."""

RECORD: Final[np.dtype[np.void]] = np.dtype([(field.name, field.dtype) for field in FIELDS])
"""One record; `action` is stored as 0, 1, 2."""

OBS_SCALE: Final[npt.NDArray[np.float64]] = np.array([BY_NAME[name].scale for name in OBSERVED])
OBS_HIGH: Final[npt.NDArray[np.float32]] = np.array([BY_NAME[name].obs_high for name in OBSERVED], np.float32)


def scale_observation(raw: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Scale kernel units to observations.

    Args:
        raw: Kernel integers of the `OBSERVED` fields, shape (..., 8).

    Returns:
        ``clip(raw / OBS_SCALE, 0, OBS_HIGH)``, shape (..., 8), float32.
    """
    scaled = np.asarray(raw, np.float64) / OBS_SCALE
    return np.clip(scaled, 0.0, OBS_HIGH).astype(np.float32)


def unscale_observation(obs: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the inverse of `scale_observation` for values that were not clipped, shape (..., 8)."""
    return np.asarray(obs, np.float64) * OBS_SCALE


def markdown_table() -> str:
    """Return the record as a Markdown table, for the documentation."""
    rows = ["| # | field | kernel | unit | observed as | meaning |", "|---|---|---|---|---|---|"]
    for number, field in enumerate(FIELDS, 1):
        shown = f"/ {field.scale:g}, at most {field.obs_high:g}" if field.scale else "-"
        place = str(number) if number <= len(PRINTED) else "ext"
        rows.append(f"| {place} | `{field.name}` | `{field.kernel}` | {field.unit} | {shown} | {field.doc} |")
    return "\n".join(rows)
