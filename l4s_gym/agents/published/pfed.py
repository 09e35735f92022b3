"""PFED: a probability that keeps the foreseen traffic at what brings the queue to its target.

W. Gao, J. Wang, J. Chen, S. Chen: PFED: a prediction-based fair active queue management algorithm. ICPP 2005. See
`agents/pfed/README.md`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from l4s_gym.agents.protocol import NO_RULE, Floats, Observations, check_batch, check_count
from l4s_gym.agents.published.coupling import AT, DELAY_C_S, coupled, traffic
from l4s_gym.errors import L4SError

ORDER: Final = 3
"""Intervals that the predictor looks back."""
MEMORY: Final = 64.0
"""Intervals over which it averages what it knows of the traffic."""


class PfedAgent:
    """Keeps the traffic that it foresees at what the link carries, and what the queue is short of its target.

    The predictor is the linear one of least mean square error (MMSE), whose covariances are estimated as traffic comes.
    """

    form, rule = "probability", NO_RULE

    def __init__(self, target_ms: float = 2.0, horizon_ms: float = 64.0) -> None:
        """Set the delay of C to reach, ms, and the time within which it should be reached, ms.

        Raises:
            L4SError: One of them is not positive.
        """
        if not (target_ms > 0.0 and horizon_ms > 0.0):
            raise L4SError(f"pfed: target_ms={target_ms:g}, horizon_ms={horizon_ms:g}: give more than 0 milliseconds")
        given = f":target_ms={target_ms:g},horizon_ms={horizon_ms:g}"
        self.name = "pfed" if (target_ms, horizon_ms) == (2.0, 64.0) else f"pfed{given}"
        self._target_s, self._horizon_s = 1e-3 * target_ms, 1e-3 * horizon_ms
        self.reset(1, 0)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        check_count(n)
        self.n = n
        self._mean = np.ones(n)
        self._past = np.zeros((n, ORDER))  # differences from the mean, the newest first
        self._covariance = np.tile(np.eye(ORDER + 1)[0], (n, 1))  # at lags 0 to ORDER

    def _foresee(self, amount: Floats) -> Floats:
        """Take in the traffic of an interval; return that of the next (n,)."""
        self._mean += (amount - self._mean) / MEMORY
        now = amount - self._mean
        lags = np.column_stack([now, self._past])
        self._covariance += (now[:, None] * lags - self._covariance) / MEMORY
        self._past = lags[:, :ORDER]
        steps = np.abs(np.arange(ORDER)[:, None] - np.arange(ORDER))
        left = self._covariance[:, steps] + 1e-3 * (1.0 + self._covariance[:, :1, None]) * np.eye(ORDER)
        weights = np.linalg.solve(left, self._covariance[:, 1:, None])[..., 0]
        return np.asarray(np.maximum(self._mean + (weights * self._past).sum(axis=1), 0.0))

    def act(self, obs: Observations, rewards: Floats) -> Floats:
        """Return actions (n, 2); rewards are not used."""
        check_batch(obs, self.n, self.form)
        foreseen = self._foresee(traffic(obs))
        short_s = self._target_s - DELAY_C_S * obs[:, AT["queued_c"]].astype(np.float64)
        allowed = np.maximum(1.0 + short_s / self._horizon_s, 0.0)
        return coupled(np.clip(1.0 - allowed / np.maximum(foreseen, 1e-9), 0.0, 1.0))

    def cost(self) -> dict[str, float]:
        """Return no parameters: nothing is learned before it decides."""
        return {"parameters": 0.0, "trainable_parameters": 0.0}
