"""A run as tables for other programs, CSV or Parquet: what happened in each step of time, and to each packet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.files import atomic_write, compressed_write
from l4s_gym.evaluation.native import Run, mean_delay_ms
from l4s_gym.extras import optional
from l4s_gym.sim.measure import CLASSES, UNUSED

ENDINGS: Final = (".csv", ".csv.gz", ".parquet")
"""How the name of a table may end."""
BLOCK_ROWS: Final = 1 << 16
Table = Mapping[str, npt.NDArray[Any]]
"""Columns of one length; NaN where there is no value."""
Meanings = Mapping[str, tuple[str, Callable[[Any], npt.NDArray[Any]]]]
"""Column -> what it is, and how it is made."""


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def _mbps(size_bytes: npt.NDArray[Any], steps: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    elapsed_s = steps["elapsed_s"] if size_bytes.ndim == 1 else steps["elapsed_s"][:, None]
    return _share(size_bytes * 8e-6, elapsed_s)


STEP: Final[Meanings] = {
    "time_s": ("end of the step, from the start of the run", lambda s: s["time_s"]),
    "step_s": ("length of the step; the first and the last may be shorter", lambda s: s["elapsed_s"]),
    "measured": ("1: the statistics count the step; 0: it belongs to the warm-up", lambda s: s["measured"].astype(int)),
    "capacity_mbps": ("rate that the link could carry", lambda s: _mbps(s["capacity_bytes"], s)),
    "carried_mbps": ("rate that the link carried, headers included", lambda s: s["served_mbps"]),
    "utilisation": (
        "`carried_mbps` / `capacity_mbps`, 0 to 1",
        lambda s: np.minimum(_share(s["served_mbps"], _mbps(s["capacity_bytes"], s)), 1.0),
    ),
    "probability": ("base probability of the discipline at the end of the step, 0 to 1", lambda s: s["prob"]),
}
"""Columns of a step: of `native.SAMPLES` (K,)."""
CLASS: Final[Meanings] = {
    "delay_mean_ms": ("mean sojourn time of the packets that left the queue", mean_delay_ms),
    "delay_p99_ms": (
        "99th percentile of these sojourn times, exact to about 3 %",
        lambda s: np.where(s["left"] > 0, s["p99_ms"], np.nan),
    ),
    "offered_packets": ("packets that arrived at the queue, dropped ones included", lambda s: s["offered"]),
    "offered_bytes": ("their size", lambda s: s["offered_bytes"]),
    "left_packets": ("packets that left the queue to be sent", lambda s: s["left"]),
    "marked_packets": ("packets that were marked with CE", lambda s: s["marked"]),
    "dropped_packets": ("packets that were dropped", lambda s: s["dropped"]),
    "queued_packets": ("packets in the queue at the end of the step", lambda s: s["packets"]),
    "goodput_mbps": (
        "payload that arrived at the receivers of the Classic (`c_`) or L4S (`l_`) flows, each segment once",
        lambda s: _mbps(s["goodput_bytes"], s),
    ),
}
"""Columns of each class, after `c_` and `l_`: (K, 2)."""
FLOW: Final[Mapping[str, str]] = {
    "goodput_mbps": "payload that arrived at the receiver, each segment once",
    "cwnd_packets": "congestion window at the end of the step; empty for traffic without one",
    "srtt_ms": "smoothed round-trip time at the end of the step; empty before the first sample",
    "marked_packets": "packets of the flow that were marked",
    "dropped_packets": "packets of the flow that were dropped",
}
"""Columns of each flow, after its name."""
PACKET: Final[Mapping[str, str]] = {
    "time_us": "arrival at the queue, from the start of the run",
    "flow": "name of the flow; an ACK that crosses the queue bears the name of the flow that it acknowledges",
    "queue": "C or L; of a discipline with one queue, the class of the packet: L for ECT(1) and CE",
    "size_bytes": "IP length",
    "sojourn_us": "time from arrival to departure; empty where the packet was not sent, or is still queued at the end",
    "marked": "1: marked with CE",
    "dropped": "1: dropped, on arrival or later",
}
"""Columns of a packet."""


def series(run: Run) -> Table:
    """What happened in each step of time, K rows; the columns are those of `STEP`, `CLASS` and `FLOW`."""
    steps, flows = run.samples, run.flows
    table = {name: make(steps) for name, (_, make) in STEP.items()}
    for k, prefix in enumerate(CLASSES):
        table |= {f"{prefix.lower()}_{name}": make(steps)[:, k] for name, (_, make) in CLASS.items()}
    for k, flow in enumerate(run.summary["flows"]):
        if flow.startswith(UNUSED):
            continue
        own = flows[:, k]
        window = own["cwnd"] if run.batch.flow[0]["cc"][k] else np.full(len(own), np.nan)
        srtt_ms = np.where(own["srtt_ns"] > 0, own["srtt_ns"] * 1e-6, np.nan)
        values = (_mbps(own["goodput_bytes"], steps), window, srtt_ms, own["marks"], own["drops"])
        table |= {f"{flow}_{name}": column for name, column in zip(FLOW, values, strict=True)}
    return table


def packets(run: Run) -> Table:
    """What became of each packet that arrived at the queues, in the order of arrival; the columns are `PACKET`."""
    p = run.packets
    sojourn_us = np.where((p["sojourn_ns"] >= 0) & ~p["dropped"], p["sojourn_ns"] * 1e-3, np.nan)
    flow, queue = np.array(run.summary["flows"])[p["flow"]], np.array(CLASSES)[p["l4s"].astype(int)]
    values = (p["time_us"], flow, queue, p["size_bytes"], sojourn_us, p["marked"].astype(int), p["dropped"].astype(int))
    return dict(zip(PACKET, values, strict=True))


def write(path: Path, table: Table) -> None:
    """Write a table as the ending of the name says; the file is replaced as a whole or not at all."""
    if path.name.endswith(".parquet"):
        pa, pq = optional("pyarrow", "data"), optional("pyarrow.parquet", "data")
        columns = {name: pa.array(column, from_pandas=True) for name, column in table.items()}
        with atomic_write(path) as file:
            pq.write_table(pa.table(columns), file, compression="zstd")
        return
    with compressed_write(path) as file:
        file.write((",".join(table) + "\n").encode())
        for start in range(0, len(next(iter(table.values()))), BLOCK_ROWS):
            words = [_words(column[start : start + BLOCK_ROWS]) for column in table.values()]
            file.write("".join(f"{','.join(row)}\n" for row in zip(*words, strict=True)).encode())


def _words(column: npt.NDArray[Any]) -> list[str]:
    """The values of a column as CSV has them."""
    if column.dtype.kind == "f":
        return ["" if math.isnan(value) else f"{value:.10g}" for value in column.tolist()]
    return [str(value) for value in column.tolist()]
