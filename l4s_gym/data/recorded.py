"""Steps of records that bear what was known before the decision: compiled, one pass.

Of a log that was printed it has to be rebuilt (`l4s_gym.data.causal`); the simulator records it, and makes datasets of
tens of millions of rows, for which a pass of NumPy for each field is too slow.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.compiled import kept

Floats = npt.NDArray[np.float64]


@partial(kept, nogil=True)
def fill_steps(records: Any, rewards: Floats, scale: Floats, high: Floats, steps: Any) -> None:
    """Fill steps as `StepMaker.make` does.

    Args:
        records: `schema.RECORD` (T,).
        rewards: Rewards (T,).
        scale: `schema.OBS_SCALE` (8,).
        high: `schema.OBS_HIGH` (8,).
        steps: `steps.STEP` (T,), written.
    """
    raw = np.empty(8, np.float64)
    for i in range(len(records)):
        r = records[i]
        s = steps[i]
        raw[0] = r.queue_type
        raw[1] = r.burst_allowance
        raw[2] = r.drop_probability
        raw[3] = r.current_queue_delay
        raw[4] = r.accumulated_probability_before
        raw[5] = r.length_in_bytes
        raw[6] = r.interval_drops
        raw[7] = r.packet_length
        for k in range(8):
            s.observation[k] = min(raw[k] / scale[k], high[k])
        s.reward = rewards[i]
        s.time_us = r.time_us
        s.logged_accumulated_probability = r.accumulated_probability
        s.logged_total_drops = r.total_drops
        s.action = r.action
        s.applied = r.applied_action
        s.decided_by = r.decided_by
        s.missing = False
