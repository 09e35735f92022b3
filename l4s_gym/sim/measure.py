"""Statistics of an episode: utilisation, delays by class, marks, drops and goodput, from the counters of a batch."""

from __future__ import annotations

import functools
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from l4s_gym.schema import ECT_1
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.link import bin_delays_ns

CLASSES = ("C", "L")
UNUSED = "unused"


class Delay(TypedDict):
    """Sojourn times of the packets of a class, ms (0 if none left the queue)."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class ClassSummary(TypedDict):
    """Counts of a class and their rates."""

    offered: int
    dropped: int
    dropped_ect: int
    marked: int
    mark_rate: float
    drop_rate: float


class Summary(TypedDict):
    """Result of `summary`; the page of `L4S-DualPI2-v0` describes each field."""

    duration_s: float
    utilisation: float
    flows: list[str]
    goodput_mbps: list[float]
    goodput_ratio: float | None
    jain: float
    delay_ms: dict[str, Delay]
    mark_rate: float
    drop_rate: float
    classes: dict[str, ClassSummary]
    components: dict[str, float]
    components_per_s: dict[str, float]


@functools.cache
def _middles_ns() -> npt.NDArray[np.float64]:
    return bin_delays_ns()


def quantile(hist: npt.NDArray[np.integer], q: float) -> float:
    """Return the quantile of a delay histogram, ns (middle of its bin, so within about 3 %); 0 if it is empty.

    Args:
        hist: Counts of one class, (HIST_BINS,), or a sum of such rows.
        q: Probability in [0, 1].
    """
    cumulated = np.cumsum(hist, dtype=np.int64)
    total = int(cumulated[-1])
    if total == 0:
        return 0.0
    return float(_middles_ns()[np.searchsorted(cumulated, max(q * total, 1.0))])


def deviation(hist: npt.NDArray[np.integer]) -> float:
    """Return the standard deviation of a delay histogram, ns (from the middles of its bins); 0 if it is empty."""
    total = int(hist.sum())
    if total == 0:
        return 0.0
    shares = hist / total
    mean = float(shares @ _middles_ns())
    return float(np.sqrt(shares @ (_middles_ns() - mean) ** 2))


def jain(values: npt.ArrayLike) -> float:
    """Return Jain's fairness index of rates, in [1/n, 1]; 1 if all are zero."""
    rates = np.asarray(values, np.float64)
    squares = float(np.sum(rates * rates))
    return float(np.sum(rates)) ** 2 / (len(rates) * squares) if squares > 0.0 else 1.0


def flow_names(batch: Batch, index: int) -> list[str]:
    """Return the name of each flow of an environment, its kind and its number in the kind: `cubic0`, `prague0`.

    Flows that the episode's sources do not use are `unused0`, `unused1`, ...
    """
    kinds = [_kind(flow) for flow in batch.flow[index, : batch.env["n_flows"][index]]]
    return [f"{kind}{kinds[:k].count(kind)}" for k, kind in enumerate(kinds)]


def _kind(flow: npt.NDArray[np.void]) -> str:
    if not flow["mss"]:
        return UNUSED
    if flow["app"] == layout.WEB or not flow["cc"]:
        return layout.APPS[flow["app"]]
    return (*layout.CCS, "own")[flow["cc"]]


def goodput_ratio(batch: Batch, index: int) -> float | None:
    """Return the mean goodput of ECT(1) flows divided by that of all others; None if either is missing."""
    flow = batch.flow[index][batch.flow["mss"][index] > 0]
    scalable = flow["ecn"] == ECT_1
    if not scalable.any() or scalable.all():
        return None
    classic = float(flow["goodput_bytes"][~scalable].mean())
    return float(flow["goodput_bytes"][scalable].mean()) / classic if classic > 0.0 else None


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def summary(batch: Batch, index: int) -> Summary:
    """Return the statistics of environment `index` since its counters were reset; `components`: of the whole episode.

    Rates of marks and drops are fractions of the packets offered; goodput is payload received once, per flow.
    A packet that carried CE already and is marked again counts as marked.
    """
    env = batch.env[index]
    duration_s = float(env["now_ns"] - env["since_ns"]) * 1e-9
    capacity = batch.capacity_bytes(index)
    used = batch.carried_bytes(index) / capacity if capacity > 0.0 else 0.0
    goodput = batch.flow["goodput_bytes"][index, : env["n_flows"]] * (8e-6 / duration_s if duration_s > 0.0 else 0.0)
    delays: dict[str, Delay] = {}
    classes: dict[str, ClassSummary] = {}
    for cls, name in enumerate(CLASSES):
        q = batch.queue[index, cls]
        hist = batch.hist[index, cls]
        left = int(q["left"])
        delays[name] = {
            "mean": float(q["left_delay_ns"]) / left * 1e-6 if left else 0.0,
            "p50": quantile(hist, 0.5) * 1e-6,
            "p95": quantile(hist, 0.95) * 1e-6,
            "p99": quantile(hist, 0.99) * 1e-6,
            "max": float(q["max_delay_ns"]) * 1e-6,
        }
        offered, dropped, marked = int(q["offered"]), int(q["dropped"]), int(q["marked"])
        classes[name] = {
            "offered": offered,
            "dropped": dropped,
            "dropped_ect": int(q["dropped_ect"]),
            "marked": marked,
            "mark_rate": _ratio(marked, offered),
            "drop_rate": _ratio(dropped, offered),
        }
    offered = sum(c["offered"] for c in classes.values())
    components, elapsed_s = batch.components(index), float(env["now_ns"]) * 1e-9
    return {
        "duration_s": duration_s,
        "utilisation": min(used, 1.0),  # floating point may exceed 1 in its last digits
        "flows": flow_names(batch, index),
        "goodput_mbps": [float(rate) for rate in goodput],
        "goodput_ratio": goodput_ratio(batch, index),
        "jain": jain(goodput),
        "delay_ms": delays,
        "mark_rate": _ratio(sum(c["marked"] for c in classes.values()), offered),
        "drop_rate": _ratio(sum(c["dropped"] for c in classes.values()), offered),
        "classes": classes,
        "components": components,
        "components_per_s": {name: total / max(elapsed_s, 1e-9) for name, total in components.items()},
    }
