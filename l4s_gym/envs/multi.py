"""Multi-objective form of the environments with control intervals, by the convention of MO-Gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from l4s_gym.envs.intervals import Floats, IntervalEnv
from l4s_gym.errors import L4SError
from l4s_gym.sim.layout import COMPONENTS

SIGNS = np.array([1.0, 1.0, -1.0, -1.0])
"""Of the components (4,): all objectives are to be maximised, so delays count negative."""


class MultiObjective(gym.Wrapper[Floats, Floats, Floats, Floats]):
    """Makes the reward a vector: `used`, `evenness`, -`delay_c`, -`delay_l` of the step, in seconds.

    `balance` is the sum with weights (1, 0, 0.25, 0.25), `fair` that with (0, 1, 0.25, 0.25). As in MO-Gymnasium,
    `reward_space` and `reward_dim` describe the vector, here and on the innermost environment, where wrappers of
    MO-Gymnasium such as `LinearReward` look for them.

    Args:
        env: An environment with control intervals, such as `L4S-DualPI2-Prob-v0`.

    Attributes:
        reward_space: Box(4,) float64.
        reward_dim: 4.

    Raises:
        L4SError: The environment has no control intervals.
    """

    def __init__(self, env: gym.Env[Floats, Floats]) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, IntervalEnv):
            raise L4SError(f"MultiObjective: {env} has no control intervals: wrap L4S-DualPI2-Prob-v0 or the like")
        low, high = np.where(SIGNS > 0, 0.0, -np.inf), np.where(SIGNS > 0, np.inf, 0.0)
        self.reward_space = gym.spaces.Box(low, high, dtype=np.float64)
        self.reward_dim = len(COMPONENTS)
        inner: Any = env.unwrapped
        inner.reward_space, inner.reward_dim = self.reward_space, self.reward_dim

    def step(self, action: Floats) -> tuple[Floats, Any, bool, bool, dict[str, Any]]:
        """Apply an action; the reward is (4,) float64."""
        obs, _, terminated, truncated, info = self.env.step(action)
        components = [info["components"][name] for name in COMPONENTS]
        return obs, SIGNS * components, terminated, truncated, info
