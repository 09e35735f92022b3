"""Training of `a3c` by the A2C of Stable-Baselines3: A3C whose workers step at the same time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from gymnasium import spaces
from stable_baselines3 import A2C

from l4s_gym import forms
from l4s_gym.agents import online, sb3_learners
from l4s_gym.agents.protocol import Observations
from l4s_gym.agents.published.a3c import A3CAgent, A3CConfig, applied, choices
from l4s_gym.agents.published.common import Learner

_PER_S: Final = 1e3 / forms.INTERVAL_MS
"""Intervals in a second."""


class _Envs(sb3_learners.Envs):
    """The environments of a training: logarithms of what is observed, and choices of the actor."""

    def __init__(self, scenarios: str, config: A3CConfig) -> None:
        env = online.environment(config.form, scenarios, config.envs, config.seconds, autoreset_mode="same_step")
        none = np.zeros(0)
        super().__init__(env, none, none, (1.0 - config.gamma) * _PER_S)  # so that values are of the order of 1
        self._form = config.form
        self.action_space = spaces.Box(-1.0, 1.0, (choices(config.form),), np.float32)

    def _seen(self, obs: Observations) -> Observations:
        return np.log1p(obs)

    def step_async(self, actions: Any) -> None:
        """Note what the actor chose."""
        super().step_async(applied(self._form, np.asarray(actions, np.float64)))


class A2CWork:
    """Rounds of A2C."""

    def __init__(self, scenarios: str, config: A3CConfig) -> None:
        self._config, self._envs = config, _Envs(scenarios, config)
        layers = [config.hidden, config.hidden]
        with sb3_learners.seeded_round(config.seed, 0):
            self._model: Any = A2C(
                "MlpPolicy",
                self._envs,
                config.learning_rate,
                n_steps=config.rollout,
                gamma=config.gamma,
                ent_coef=config.entropy,
                policy_kwargs={"net_arch": {"pi": layers, "vf": layers}, "log_std_init": config.log_std},
                device="cpu",
            )

    @property
    def steps(self) -> int:
        """Decisions so far."""
        return int(self._model.num_timesteps)

    def round(self, number: int) -> dict[str, float]:
        """Learn for a round; return the mean reward of the link, per second."""
        config = self._config
        earned = sb3_learners.learn(self._model, self._envs, config.envs * config.steps, config.seed, number)
        return {"reward_per_s": earned * _PER_S}

    def state(self) -> dict[str, Any]:
        """Return the state."""
        return sb3_learners.kept(self._model)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        sb3_learners.restore(self._model, state)

    def tensors(self) -> dict[str, Any]:
        """Return the layers of the actor."""
        return sb3_learners.actor(self._model)


LEARNER: Final = Learner(A3CAgent, A2CWork)
