"""Control intervals of a batch: run for one, and observe what happened in it.

`FEATURES` describes the observation once: the observation spaces, their bounds in the compiled code, and the tables of
the environments' pages are made from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym import markdown
from l4s_gym.sim import disciplines, link
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.events import set_time
from l4s_gym.sim.jit import entry, jit
from l4s_gym.sim.layout import COMPONENTS, LEAST_MBPS, SLOT_STOP, STOPPED
from l4s_gym.sim.memory import env_record, flow_at, queue_at


class Feature(NamedTuple):
    """One number of the observation; features of both queues stand side by side, C before L.

    Attributes:
        name: With the queue at its end, `_c` or `_l`, where there is one of each.
        doc: What it is.
        unit: What the value 1 stands for.
        high: Upper bound; larger values are clipped. The lower one is 0.
    """

    name: str
    doc: str
    unit: str
    high: float


def _both(name: str, doc: str, unit_c: str, unit_l: str, high: float) -> tuple[Feature, Feature]:
    return Feature(f"{name}_c", doc, unit_c, high), Feature(f"{name}_l", doc, unit_l, high)


_CAPACITY: Final = "the link's mean capacity in the interval"
INTERVAL: Final = (
    *_both("delay", "mean sojourn of the packets that left", "15 ms", "1 ms", 100.0),
    *_both("queued", "bytes queued at the end, at the link's mean rate", "15 ms", "1 ms", 100.0),
    *_both("offered", "bytes offered", _CAPACITY, _CAPACITY, 100.0),
    *_both("marked", "share of the offered packets that was marked", "1", "1", 1.0),
    *_both("dropped", "share of the offered packets that was dropped", "1", "1", 1.0),
    Feature("used", "bytes served", _CAPACITY, 10.0),
    Feature("probability", "base probability of the discipline", "1", 1.0),
)
"""What is seen of the last interval alone."""
AVERAGES_S: Final = (0.25, 0.5)
"""Time constants of the moving averages."""
SEEN_S: Final = 0.5
"""A flow is seen for so long after its last packet was offered."""
_AVERAGED: Final = tuple(
    k
    for k, each in enumerate(INTERVAL)
    if each.name in ("used", *(f"{n}_{q}" for n in ("delay", "offered", "marked") for q in "cl"))
)
FEATURES: Final = (
    *INTERVAL,
    *(
        INTERVAL[k]._replace(
            name=f"{INTERVAL[k].name}_{1e3 * tau_s:.0f}ms",
            doc=f"{INTERVAL[k].doc.split(',')[0]}, moving average over {tau_s:g} s",
        )
        for tau_s in AVERAGES_S
        for k in _AVERAGED
    ),
    *_both("flows", f"ln(1 + flows that have offered packets in the last {SEEN_S:g} s)", "1", "1", 10.0),
    Feature("rate", "ln(mean rate of the link / 56 kbit/s)", "1", 16.0),
)
"""All that is seen."""
_HIGH: Final = np.array([each.high for each in FEATURES])
_SOURCES: Final = np.array(_AVERAGED)
_WEIGHTS_NS: Final = np.array([1e9 * tau_s for tau_s in AVERAGES_S])
_LEAST_BPS: Final = 1e6 * LEAST_MBPS
_PLAIN: Final = len(INTERVAL)
_COUNTERS: Final = 14
"""Six counters of each queue, time, bytes carried."""
_TIME: Final = 12


def high(features: Sequence[Feature]) -> npt.NDArray[np.float32]:
    """Upper bounds of some features (F,)."""
    return np.array([each.high for each in features], np.float32)


def markdown_table(features: Sequence[Feature]) -> str:
    """The features as a Markdown table, for the environments' pages."""
    rows: list[Sequence[object]] = []
    waiting = iter(enumerate(features))
    for k, each in waiting:
        number, name, unit = str(k), f"`{each.name}`", each.unit
        if "_c" in each.name:
            _, other = next(waiting)
            number, name = f"{k}, {k + 1}", f"{name}, `{other.name}`"
            unit = unit if unit == other.unit else f"{unit}, {other.unit}"
        rows.append((number, name, each.doc, unit, f"{each.high:g}"))
    return "\n".join(markdown.table(("#", "feature", "what it is", "unit of 1", "at most"), rows))


@entry
def _stop(address: int, stride: int, n: int, after_ns: int) -> None:
    """Make all environments return after a time."""
    for k in range(n):
        env = env_record(address + k * stride)
        set_time(env, SLOT_STOP, env.now_ns + after_ns)


@jit
def _grown(before: Any, k: int, counter: int, value: float) -> float:
    """Return the growth of a counter of environment `k` since the last look."""
    grown = value - before[k, counter]
    before[k, counter] = value
    return grown


@jit
def _put(obs: Any, k: int, feature: int, value: float) -> None:
    obs[k, feature] = min(max(value, 0.0), _HIGH[feature])


@jit
def _see_flows(env: Any, k: int, obs: Any, offered: Any, seen_ns: Any) -> None:
    """Count the flows of each class that have offered packets lately."""
    flows_c, flows_l = 0, 0
    for i in range(env.n_flows):
        f = flow_at(env, i)
        if f.packets != offered[k, i]:
            offered[k, i] = f.packets
            seen_ns[k, i] = env.now_ns
        if seen_ns[k, i] >= 0 and env.now_ns - seen_ns[k, i] < 1e9 * SEEN_S:
            flows_l += f.ecn & 1
            flows_c += 1 - (f.ecn & 1)
    last = len(_HIGH) - 1
    _put(obs, k, last - 2, math.log(1.0 + flows_c))
    _put(obs, k, last - 1, math.log(1.0 + flows_l))
    _put(obs, k, last, math.log(env.base_rate_bps / _LEAST_BPS))


@jit
def _average(k: int, obs: Any, elapsed_ns: float) -> None:
    """Bring the moving averages up to now."""
    for w in range(len(_WEIGHTS_NS)):
        weight = 1.0 - math.exp(-elapsed_ns / _WEIGHTS_NS[w])
        for j in range(len(_SOURCES)):
            feature = _PLAIN + w * len(_SOURCES) + j
            obs[k, feature] += weight * (obs[k, _SOURCES[j]] - obs[k, feature])


@entry
def _observe(
    address: int,
    stride: int,
    before: npt.NDArray[np.float64],
    offered: npt.NDArray[np.int64],
    seen_ns: npt.NDArray[np.int64],
    obs: npt.NDArray[np.float32],
) -> None:
    """Write what happened in each environment since its last observation.

    Args:
        address: Of the environments' records.
        stride: From one to the next.
        before: Counters then, (n, 14); they become those of now.
        offered: Packets of each flow then, (n, F), likewise.
        seen_ns: When each flow was last seen to have offered some, (n, F); -1: never.
        obs: Written, (n, 12 or all `FEATURES`).
    """
    for k in range(len(obs)):
        env = env_record(address + k * stride)
        elapsed_ns = _grown(before, k, 12, env.now_ns)
        capacity = max(env.base_rate_bps * elapsed_ns / 8e9, 1.0)
        for cls in range(2):
            q = queue_at(env, cls)
            reference_ns = 1.0 / (env.per_ref_l if cls else env.per_ref_c)
            packets = max(_grown(before, k, cls, q.offered), 1.0)
            left = max(_grown(before, k, 2 + cls, q.left), 1.0)
            _put(obs, k, cls, _grown(before, k, 4 + cls, q.left_delay_ns) / left / reference_ns)
            queued = q.bytes if cls else env.bytes - queue_at(env, 1).bytes  # packets outside queue L count as C
            _put(obs, k, 2 + cls, queued / (env.base_rate_bps * reference_ns / 8e9))
            _put(obs, k, 4 + cls, _grown(before, k, 6 + cls, q.offered_bytes) / capacity)
            _put(obs, k, 6 + cls, _grown(before, k, 8 + cls, q.marked) / packets)
            _put(obs, k, 8 + cls, _grown(before, k, 10 + cls, q.dropped) / packets)
        carried = link.carried_bytes(env, link.ahead_bytes(env))
        _put(obs, k, 10, _grown(before, k, 13, carried) / capacity)
        _put(obs, k, 11, disciplines.probability(env))
        if obs.shape[1] > _PLAIN:
            _average(k, obs, elapsed_ns)
            _see_flows(env, k, obs, offered, seen_ns)


class Intervals:
    """Steps of a batch in control intervals.

    Attributes:
        obs: (n, F) float32, observation of the last interval.
        components: (n, 4) float64, components of the reward in it (`layout.COMPONENTS`), s.
    """

    def __init__(self, batch: Batch, interval_ns: int, features: Sequence[Feature] = INTERVAL) -> None:
        """Set the batch, which asks for no decision about a packet, the length of an interval, ns, and the features."""
        self._batch, self._interval_ns = batch, interval_ns
        self.obs = np.zeros((batch.n, len(features)), np.float32)
        self.components = np.zeros((batch.n, len(COMPONENTS)))
        self._offered = np.zeros(batch.flow.shape, np.int64)
        self._seen_ns = np.zeros(batch.flow.shape, np.int64)
        self._before = np.zeros((batch.n, _COUNTERS))
        self._warmup_ns = np.zeros(batch.n, np.int64)

    def start(self, index: int) -> None:
        """Reset all counters after a reset of environment `index`."""
        self.obs[index] = 0.0
        self._before[index] = 0.0
        self._offered[index] = 0
        self._seen_ns[index] = -1
        self._warmup_ns[index] = self._batch.warmup_ns(index)

    def advance(self) -> int:
        """Run each environment for one interval, or to its end, where it stays; return the highest status."""
        batch = self._batch
        self.components[:] = batch.env["totals"]
        _stop(batch.address, batch.stride, batch.n, self._interval_ns)
        highest = batch.advance()
        np.subtract(batch.env["totals"], self.components, out=self.components)
        _observe(batch.address, batch.stride, self._before, self._offered, self._seen_ns, self.obs)
        env = batch.env
        over = (env["since_ns"] < self._warmup_ns) & (self._warmup_ns <= env["now_ns"])
        for k in np.flatnonzero(over & (batch.status == STOPPED)).tolist():  # the statistics begin
            batch.reset_counters(k)
            self._before[k, :_TIME] = self._before[k, _TIME + 1 :] = 0.0
            self._offered[k] = 0
        return highest

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the state for a snapshot."""
        return {name: array.copy() for name, array in self._arrays().items()}

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Go back to a state."""
        for name, array in self._arrays().items():
            array[:] = state[name]

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        before = {"before": self._before, "offered": self._offered, "seen_ns": self._seen_ns}
        return {"obs": self.obs, **before, "warmup_ns": self._warmup_ns}
