"""Control intervals of a batch: run for one, and see what happened in it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.sim import disciplines, link
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.events import set_time
from l4s_gym.sim.jit import entry, jit
from l4s_gym.sim.layout import SLOT_STOP
from l4s_gym.sim.memory import env_record, queue_at

HIGH: Final = np.array([100, 100, 100, 100, 100, 100, 1, 1, 1, 1, 10, 1], np.float32)
"""Upper bounds of what is seen; `L4S-DualPI2-Prob-v0` describes the features."""
_HIGH: Final = HIGH.astype(np.float64)
_COUNTERS: Final = 14
"""Time, bytes carried, and six of each queue."""


@entry
def _stop(address: int, stride: int, n: int, after_ns: int) -> None:
    """Let all environments come back after a time."""
    for k in range(n):
        w = env_record(address + k * stride)
        set_time(w, SLOT_STOP, w.now_ns + after_ns)


@jit
def _count(w: Any, counters: Any) -> None:
    """Write the counters of an environment: (14,) float64."""
    counters[0] = w.now_ns
    counters[1] = link.carried_bytes(w, link.ahead_bytes(w))
    for cls in range(2):
        q = queue_at(w, cls)
        counters[2 + cls] = q.left_delay_ns
        counters[4 + cls] = q.left
        counters[6 + cls] = q.offered_bytes
        counters[8 + cls] = q.offered
        counters[10 + cls] = q.marked
        counters[12 + cls] = q.dropped


@entry
def _observe(address: int, stride: int, before: npt.NDArray[np.float64], obs: npt.NDArray[np.float32]) -> None:
    """What has happened in each environment since `before` (n, 14), which becomes now; to `obs` (n, 12)."""
    now = np.empty(_COUNTERS)
    seen = np.empty(len(_HIGH))
    for k in range(len(obs)):
        w = env_record(address + k * stride)
        _count(w, now)
        since = before[k]
        capacity = max(w.base_rate_bps * (now[0] - since[0]) / 8e9, 1.0)
        for cls in range(2):
            reference_ns = 1.0 / (w.per_ref_l if cls else w.per_ref_c)
            packets = max(now[8 + cls] - since[8 + cls], 1.0)
            left = max(now[4 + cls] - since[4 + cls], 1.0)
            seen[cls] = (now[2 + cls] - since[2 + cls]) / left / reference_ns
            seen[2 + cls] = queue_at(w, cls).bytes / (w.base_rate_bps * reference_ns / 8e9)
            seen[4 + cls] = (now[6 + cls] - since[6 + cls]) / capacity
            seen[6 + cls] = (now[10 + cls] - since[10 + cls]) / packets
            seen[8 + cls] = (now[12 + cls] - since[12 + cls]) / packets
        seen[10] = (now[1] - since[1]) / capacity
        seen[11] = disciplines.probability(w, queue_at(w, 0), queue_at(w, 1))
        for feature in range(len(_HIGH)):
            obs[k, feature] = min(max(seen[feature], 0.0), _HIGH[feature])
        since[:] = now


class Intervals:
    """Steps of a batch that are control intervals.

    Attributes:
        obs: (n, 12) float32, what was seen in the last interval.
    """

    def __init__(self, batch: Batch, interval_ns: int) -> None:
        """Of a batch that asks for no packet's decision, and so many nanoseconds."""
        self._batch, self._interval_ns = batch, interval_ns
        self.obs = np.zeros((batch.n, len(HIGH)), np.float32)
        self._before = np.zeros((batch.n, _COUNTERS))

    def start(self, index: int) -> None:
        """An environment has been reset: all that is counted begins at 0."""
        self.obs[index] = 0.0
        self._before[index] = 0.0

    def advance(self) -> None:
        """Run each environment for one interval, or to its end; one that has ended stays as it is."""
        batch = self._batch
        _stop(batch.address, batch.stride, batch.n, self._interval_ns)
        batch.advance()
        _observe(batch.address, batch.stride, self._before, self.obs)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What a snapshot keeps."""
        return {"obs": self.obs.copy(), "before": self._before.copy()}

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Go back to a state."""
        self.obs[:], self._before[:] = state["obs"], state["before"]
