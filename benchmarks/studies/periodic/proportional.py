"""Rules of the form `parameters`: a fixed setting of DualPI2, and one whose coupling follows what each class offers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from l4s_gym.agents.rules import ZeroAgent
from l4s_gym.sim.intervals import FEATURES

OFFERED, FLOWS = (
    [[each.name for each in FEATURES].index(name.format(q)) for q in "cl"] for name in ("offered_{}_500ms", "flows_{}")
)
FIXED: Final = (-0.5, 0.0, 0.5, 0.0, 0.0)
"""Target 0.36 and proportional gain 2.4 times the operator's."""


class Proportional(ZeroAgent):
    """Raises the coupling in proportion to ln(what an L flow offers by what a C flow offers): more marks for L."""

    def __init__(self, gain: float = 0.5) -> None:
        super().__init__("parameters")
        self.name = f"proportional:gain={gain:g}"
        self._gain = gain

    def act(self, obs: Any, rewards: Any) -> Any:
        """Return actions (n, 5)."""
        flows = np.expm1(obs[:, FLOWS])
        each = np.log(np.maximum(obs[:, OFFERED], 1e-3) / np.maximum(flows, 1.0))  # (n, 2), of C and of L
        ratio = np.where((flows > 0.5).all(axis=1), each[:, 1] - each[:, 0], 0.0)
        actions = np.tile(FIXED, (len(obs), 1))
        actions[:, 3] = np.clip(self._gain * ratio, -1.0, 1.0)
        return actions


fixed = Proportional(0.0)
proportional = Proportional()
