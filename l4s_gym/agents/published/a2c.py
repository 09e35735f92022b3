"""Training of `a3c` by the A2C of Stable-Baselines3: A3C whose workers step at the same time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv

from l4s_gym import forms
from l4s_gym.agents.d3rlpy_agents import seeded
from l4s_gym.agents.published.a3c import A3CAgent, A3CConfig, applied, choices
from l4s_gym.agents.published.common import Learner, first_seed


class _Envs(VecEnv):
    """The native vector environment for Stable-Baselines3: logarithms of what is seen, choices of the actor."""

    def __init__(self, scenarios: str, config: A3CConfig) -> None:
        self._form = forms.get(config.form)
        self._env = self._form.vector_class(
            config.envs,
            scenarios,
            aqm="dualpi2_rfc9332" if config.form == "parameters" else None,
            horizon_s=config.seconds,
            autoreset_mode="same_step",
        )
        seen = spaces.Box(0.0, np.inf, (len(self._form.features),), np.float32)
        super().__init__(config.envs, seen, spaces.Box(-1.0, 1.0, (choices(config.form),), np.float32))
        self.first = 0
        """Seed of the first episode."""
        self.earned: list[float] = []
        """Mean reward of each step since `reset`, per second."""
        self._scale = (1.0 - config.gamma) * 1e3 / forms.INTERVAL_MS  # so that values are of the order of 1
        self._chosen: Any = None

    def reset(self) -> Any:
        """Start the episodes of a round."""
        self.earned = []
        return np.log1p(self._env.reset(seed=self.first)[0])

    def step_async(self, actions: Any) -> None:
        """Note what the actor chose."""
        self._chosen = applied(self._form.name, np.asarray(actions, np.float64))

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Take the step."""
        obs, rewards, terminated, truncated, infos = self._env.step(self._chosen)
        self.earned.append(float(rewards.mean()) * 1e3 / forms.INTERVAL_MS)
        told: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(terminated | truncated):
            told[i] = {"terminal_observation": np.log1p(infos["final_obs"][i]), "TimeLimit.truncated": truncated[i]}
        return np.log1p(obs), (rewards * self._scale).astype(np.float32), terminated | truncated, told

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute, which all have in common."""
        return [getattr(self._env, attr_name)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return that none is wrapped."""
        return [False] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: the environments are no objects of their own."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **more: Any) -> list[Any]:
        """Refused, as `set_attr`."""
        raise NotImplementedError


class A2CWork:
    """Rounds of A2C."""

    def __init__(self, scenarios: str, config: A3CConfig) -> None:
        self._config, self.steps = config, 0
        self._envs = _Envs(scenarios, config)
        layers = [config.hidden, config.hidden]
        with seeded(config.seed):
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

    def round(self, number: int) -> dict[str, float]:
        """Learn for a round; return the mean reward of the link, per second."""
        config = self._config
        self._envs.first = first_seed(config, number)
        self._model._last_obs = None  # so that it starts the environments anew
        before = np.random.get_state()  # noqa: NPY002  # the library shuffles by this generator
        np.random.seed([config.seed, number])  # noqa: NPY002
        try:
            with seeded(1_000_000 * config.seed + number):
                self._model.learn(config.envs * config.steps, log_interval=None)
        finally:
            np.random.set_state(before)  # noqa: NPY002
        self.steps += config.envs * config.steps
        return {"reward_per_s": float(np.mean(self._envs.earned))}

    def state(self) -> dict[str, Any]:
        """Return the state."""
        return {"model": self._model.get_parameters(), "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self._model.set_parameters(state["model"])
        self.steps = int(state["steps"])

    def tensors(self) -> dict[str, Any]:
        """Return the layers of the actor."""
        policy = self._model.policy
        linear = [each for each in policy.mlp_extractor.policy_net if isinstance(each, torch.nn.Linear)]
        parts = (each.state_dict().items() for each in (*linear, policy.action_net))
        return {f"{k}.{name}": part.detach().clone() for k, items in enumerate(parts) for name, part in items}


LEARNER: Final = Learner(A3CAgent, A2CWork)
