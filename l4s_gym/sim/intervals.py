"""Control intervals of a batch: run for one, and observe what happened in it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.sim import disciplines, link
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.events import set_time
from l4s_gym.sim.jit import entry, jit
from l4s_gym.sim.layout import COMPONENTS, SLOT_STOP, STOPPED
from l4s_gym.sim.memory import env_record, queue_at

HIGH: Final = np.array([100, 100, 100, 100, 100, 100, 1, 1, 1, 1, 10, 1], np.float32)
"""Upper bounds of the observation; `L4S-DualPI2-Prob-v0` describes the features."""
_HIGH: Final = HIGH.astype(np.float64)
_COUNTERS: Final = 14
"""Six counters of each queue, time, bytes carried."""
_TIME: Final = 12


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


@entry
def _observe(address: int, stride: int, before: npt.NDArray[np.float64], obs: npt.NDArray[np.float32]) -> None:
    """Write what happened in each environment since `before` (n, 14) to `obs` (n, 12), and update `before`."""
    for k in range(len(obs)):
        env = env_record(address + k * stride)
        capacity = max(env.base_rate_bps * _grown(before, k, 12, env.now_ns) / 8e9, 1.0)
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


class Intervals:
    """Steps of a batch in control intervals.

    Attributes:
        obs: (n, 12) float32, observation of the last interval.
        components: (n, 4) float64, components of the reward in it (`layout.COMPONENTS`), s.
    """

    def __init__(self, batch: Batch, interval_ns: int) -> None:
        """Set the batch, which asks for no decision about a packet, and the length of an interval, ns."""
        self._batch, self._interval_ns = batch, interval_ns
        self.obs = np.zeros((batch.n, len(HIGH)), np.float32)
        self.components = np.zeros((batch.n, len(COMPONENTS)))
        self._before = np.zeros((batch.n, _COUNTERS))
        self._warmup_ns = np.zeros(batch.n, np.int64)

    def start(self, index: int) -> None:
        """Reset all counters after a reset of environment `index`."""
        self.obs[index] = 0.0
        self._before[index] = 0.0
        self._warmup_ns[index] = self._batch.warmup_ns(index)

    def advance(self) -> int:
        """Run each environment for one interval, or to its end, where it stays; return the highest status."""
        batch = self._batch
        self.components[:] = batch.env["totals"]
        _stop(batch.address, batch.stride, batch.n, self._interval_ns)
        highest = batch.advance()
        np.subtract(batch.env["totals"], self.components, out=self.components)
        _observe(batch.address, batch.stride, self._before, self.obs)
        env = batch.env
        over = (env["since_ns"] < self._warmup_ns) & (self._warmup_ns <= env["now_ns"])
        for k in np.flatnonzero(over & (batch.status == STOPPED)).tolist():  # the statistics begin
            batch.reset_counters(k)
            self._before[k, :_TIME] = self._before[k, _TIME + 1 :] = 0.0
        return highest

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the state for a snapshot."""
        return {"obs": self.obs.copy(), "before": self._before.copy(), "warmup_ns": self._warmup_ns.copy()}

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Go back to a state."""
        self.obs[:], self._before[:], self._warmup_ns[:] = state["obs"], state["before"], state["warmup_ns"]
