"""What is seen of an interval, and how a probability for one queue becomes one for each of C and L."""

from __future__ import annotations

from typing import Final

import numpy as np

from l4s_gym.agents.protocol import Floats, Observations
from l4s_gym.sim.intervals import INTERVAL

AT: Final = {each.name: k for k, each in enumerate(INTERVAL)}
"""Where each feature of the last interval is in an observation, of both interval forms."""
DELAY_C_S: Final = 0.015
"""What a delay of C, or a backlog of C, of 1 stands for."""
COUPLING: Final = 2.0
"""Of RFC 9332."""


def coupled(probability: Floats) -> Floats:
    """Return actions of the form `probability` (n, 2): that for C (n,), and `COUPLING` times its root for L."""
    both = np.stack([probability, np.minimum(COUPLING * np.sqrt(probability), 1.0)], axis=1)
    return np.where(both >= 1e-4, 1.0 + 0.5 * np.log10(np.maximum(both, 1e-4)), -1.0)


def traffic(obs: Observations) -> Floats:
    """Return the bytes offered to both queues in the last interval, in units of the link's capacity (n,)."""
    found: Floats = obs[:, AT["offered_c"]].astype(np.float64) + obs[:, AT["offered_l"]]
    return found
