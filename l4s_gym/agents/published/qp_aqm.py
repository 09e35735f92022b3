"""QP-AQM: adaptive RED on a queue that a Q-learning predictor of the traffic foresees.

J. Liu, D. Wei: Active queue management based on Q-learning traffic predictor. ICCSI 2022.
See `agents/qp_aqm/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec
import numpy as np
import numpy.typing as npt

from l4s_gym.agents.protocol import Floats, Observations, check_batch
from l4s_gym.agents.published.common import Config, Episodes, Learner, Published
from l4s_gym.agents.published.coupling import AT, DELAY_C_S, coupled, traffic
from l4s_gym.extras import optional

MOST: Final = 2.0
"""Traffic of the highest level, in units of the link's capacity."""


class QPConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration; the defaults are the full setting.

    Attributes:
        levels: Levels of traffic.
        target_ms: Delay of C in the middle between the thresholds, ms; these are at half of it and one and a half.
        average_s: Time constant of the average backlog, s.
    """

    rounds: int = 10
    levels: int = 12
    target_ms: float = 15.0
    average_s: float = 0.05


class QPAgent(Published):
    """Adaptive RED about C, whose average backlog is the predicted one; L is coupled."""

    kind, form = "qp_aqm", "probability"
    configuration: ClassVar[type[Any]] = QPConfig
    adapt_s: ClassVar[float] = 0.5
    """Time between two changes of the highest probability below the upper threshold, as in adaptive RED."""

    def __init__(self, tensors: Mapping[str, Any], settings: Mapping[str, Any], training: Mapping[str, Any]) -> None:
        super().__init__(tensors, settings, training)
        self._best = self.arrays["q"].argmax(axis=-1)  # (before, now) -> the next level

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes; errors as `Published.reset`."""
        super().reset(n, seed)
        self._before = np.zeros(n, np.int64)
        self._average_s, self._most = np.zeros(n), np.full(n, 0.1)
        self._waited_s = 0.0

    def act(self, obs: Observations, rewards: Floats) -> Floats:
        """Return actions (n, 2); rewards are not used."""
        check_batch(obs, self.n, self.form)
        now = level(traffic(obs), self.config.levels)
        foreseen = MOST * (self._best[self._before, now] + 0.5) / self.config.levels
        self._before = now
        backlog_s = DELAY_C_S * obs[:, AT["queued_c"]].astype(np.float64)
        queue_s = np.maximum(backlog_s + (foreseen - 1.0) * self.interval_s, 0.0)
        self._average_s += min(self.interval_s / self.config.average_s, 1.0) * (queue_s - self._average_s)
        return coupled(self._red(1e-3 * self.config.target_ms))

    def _red(self, target_s: float) -> Floats:
        """Return the probability of adaptive RED, gentle above the upper threshold (n,)."""
        average, low, high = self._average_s, 0.5 * target_s, 1.5 * target_s
        self._waited_s += self.interval_s
        if self._waited_s >= self.adapt_s:
            self._waited_s = 0.0
            up = (average > 0.6 * high + 0.4 * low) & (self._most <= 0.5)
            down = (average < 0.4 * high + 0.6 * low) & (self._most >= 0.01)
            raised = self._most + np.minimum(0.01, self._most / 4.0)
            self._most = np.where(up, raised, np.where(down, 0.9 * self._most, self._most))
        between = self._most * (average - low) / (high - low)
        above = self._most + (1.0 - self._most) * (average - high) / high
        return np.clip(np.where(average < high, between, above), 0.0, 1.0)


def level(amount: Floats, levels: int) -> npt.NDArray[np.int64]:
    """Return the level of some traffic, in units of the link's capacity, (n,) each."""
    return np.minimum((amount / MOST * levels).astype(np.int64), levels - 1)


class QPWork:
    """Q-learning of the predictor, while the agent decides by what it has learned so far.

    The state is the level of traffic in the last two intervals, the action the level that is foreseen, the reward minus
    its distance from the one that came. As that tells the reward of every action, all of them are learned from.
    """

    def __init__(self, scenarios: str, config: QPConfig) -> None:
        self._torch = optional("torch", "baselines", "llm")
        self._config, self._episodes = config, Episodes(QPAgent.form, scenarios, config)
        self._levels = np.arange(config.levels)
        self._visits = np.ones((config.levels, config.levels, 1))
        stay = -np.abs(self._levels[:, None] - self._levels).astype(np.float64)
        self._sums = np.tile(stay, (config.levels, 1, 1))  # before anything is known, traffic stays what it is
        self.steps = 0

    def round(self, number: int) -> dict[str, float]:
        """Play the episodes; return the mean distance, in levels, and the mean reward of the link, per second."""
        agent = QPAgent(self.tensors(), msgspec.to_builtins(self._config), {})
        agent.reset(self._config.envs, 0)
        before = now = np.zeros(self._config.envs, np.int64)
        missed, earned, count = 0.0, 0.0, 0
        for obs, rewards in self._episodes.play(number, lambda obs: agent.act(obs, rewards=np.zeros(len(obs)))):
            came = level(traffic(obs), self._config.levels)
            missed += float(np.abs(agent._best[before, now] - came).mean())
            np.add.at(self._sums, (before, now), -np.abs(self._levels - came[:, None]))
            np.add.at(self._visits, (before, now), 1.0)
            before, now = now, came
            earned, count = earned + float(rewards.mean()), count + 1
        self.steps += count * self._config.envs
        return {"error_levels": missed / count, "reward_per_s": earned / count / agent.interval_s}

    def state(self) -> dict[str, Any]:
        """Return the state."""
        return {name: self._torch.tensor(getattr(self, name)) for name in ("_sums", "_visits")} | {"steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self._sums, self._visits, self.steps = state["_sums"].numpy(), state["_visits"].numpy(), int(state["steps"])

    def tensors(self) -> dict[str, Any]:
        """Return the table of values."""
        return {"q": self._torch.tensor(self._sums / self._visits)}


LEARNER: Final = Learner(QPAgent, QPWork)
