"""Changes to a batch of sequences that make the model depend less on what does not matter.

- *Offset*: a sequence's timesteps are counted from a random number more. A discipline does not know how old its
  episode is, and an evaluation may run longer than the training data.
- *Noise*: the continuous features are multiplied by 1 + noise * z. A feature that is 0 stays 0: an empty queue stays
  an empty queue. `queue_type` is never changed.
- *Dropout*: timesteps are hidden (masked), so that the model copes with records that are lost. The last step of a
  sequence stays; hidden steps are not part of the loss.

The labels, rewards and returns are never changed.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.agents.llm.schedule import Augment
from l4s_gym.schema import OBS_HIGH, OBSERVED

Batch = dict[str, npt.NDArray[Any]]

CONTINUOUS: Final = np.array([name != "queue_type" for name in OBSERVED])
"""Features that noise is put on (8,)."""


def augment(batch: Batch, config: Augment, rng: np.random.Generator) -> Batch:
    """A changed copy of a batch of `Windows` (B, K, ...); what is not changed is shared with it.

    Args:
        batch: `observations` (B, K, 8), `timesteps` (B, K), `mask` (B, K), and more.
        config: How much.
        rng: Where the changes are drawn from.
    """
    changed = dict(batch)
    mask = batch["mask"].astype(bool)  # (B, K)
    if config.noise:
        factor = 1.0 + config.noise * rng.standard_normal(batch["observations"].shape)  # (B, K, 8)
        factor[..., ~CONTINUOUS] = 1.0
        noisy = batch["observations"].astype(np.float64) * factor
        changed["observations"] = np.clip(noisy, 0.0, OBS_HIGH).astype(np.float32)
    if config.offset:
        offset = rng.integers(config.offset + 1, size=(len(mask), 1))
        changed["timesteps"] = np.where(mask, batch["timesteps"].astype(np.int64) + offset, 0)
    if config.dropout:
        hidden = rng.random(mask.shape) < config.dropout
        hidden[:, -1] = False
        changed["mask"] = mask & ~hidden
    return changed
