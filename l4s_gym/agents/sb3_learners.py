"""Online training by Stable-Baselines3's PPO and SAC, in the native vector environments of all three forms.

The algorithms are Stable-Baselines3's. What is ours: observations are scaled by fixed statistics of a short run, and
rewards so that values are of the order of 1; the mean of PPO's actions lies within their bounds; and a training goes by
rounds, in each of which the environments start anew, so that it can be stopped between them and go on as if it had not.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from l4s_gym import forms
from l4s_gym.agents import onestep, online
from l4s_gym.agents import training as shared
from l4s_gym.agents.d3rlpy_agents import seeded
from l4s_gym.agents.protocol import RULES, Floats, Observations
from l4s_gym.agents.sb3_agents import Config, PPOAgent, PPOPacketAgent, SACAgent
from l4s_gym.errors import L4SError, unknown
from l4s_gym.forms import PACKET
from l4s_gym.tables import convert

_PER_ROUND: Final = 1000
"""Seeds of PyTorch that a training has for its rounds."""


class Envs(VecEnv):
    """A native vector environment as Stable-Baselines3 wants it, with scaled observations and rewards."""

    def __init__(self, env: Any, mean: Floats, std: Floats, reward_scale: float) -> None:
        self.env, self._scale = env, reward_scale
        self.mean, self.std = mean, std
        box = spaces.Box(-np.inf, np.inf, env.single_observation_space.shape, np.float32)
        super().__init__(env.num_envs, box, env.single_action_space)
        self.rng = np.random.default_rng(0)
        self.earned: list[float] = []
        """Mean rewards of the steps since `reset`."""
        self._actions: Any = None

    def _seen(self, obs: Observations) -> Observations:
        if isinstance(self.action_space, spaces.Discrete):  # as the engine's policy sees it
            return ((obs - self.mean) / self.std).astype(np.float32)
        return onestep.scaled(obs, self.mean, self.std).astype(np.float32)

    def reset(self) -> Observations:
        """Start all episodes, with seeds of `rng`."""
        self.earned = []
        return self._seen(self.env.reset(seed=online.seeds(self.rng, self.num_envs).tolist())[0])

    def step_async(self, actions: Any) -> None:
        """Note the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> tuple[Observations, Any, Any, list[dict[str, Any]]]:
        """Take the step."""
        obs, rewards, terminated, truncated, infos = self.env.step(self._actions)
        self.earned.append(float(rewards.mean()))
        told: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(terminated | truncated):
            last = self._seen(infos["final_obs"][i][None])[0]
            told[i] = {"terminal_observation": last, "TimeLimit.truncated": bool(truncated[i] and not terminated[i])}
        return self._seen(obs), (rewards * self._scale).astype(np.float32), terminated | truncated, told

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute, which all environments have in common."""
        return [getattr(self.env, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: the environments are no objects of their own."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **more: Any) -> list[Any]:
        """Refused, as `set_attr`."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return whether each is wrapped: none is."""
        return [False] * self.num_envs


@contextmanager
def seeded_round(seed: int, number: int) -> Iterator[None]:
    """Seed PyTorch and NumPy, both of which the algorithms draw from, until the block ends."""
    before = np.random.get_state()  # noqa: NPY002  # the library uses this generator
    np.random.seed([seed, number])  # noqa: NPY002
    try:
        with seeded(_PER_ROUND * seed + number):
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


@dataclass(frozen=True)
class SB3Learner:
    """Trains agents of one kind.

    Attributes:
        kind: Kind of agent.
        algorithm: Class of Stable-Baselines3.
        agent: Class of its agents for control intervals.
        forms: The forms that it can decide in.
        arguments: Arguments of the algorithm where the configuration has none.
    """

    kind: str
    algorithm: Any
    agent: type[onestep.OneStepAgent]
    forms: tuple[str, ...]
    arguments: Mapping[str, Any]

    def configure(self, given: Mapping[str, Any]) -> Config:
        """Return the configuration, complete and checked.

        Raises:
            L4SError: A key or value makes no sense.
        """
        config = convert(Config, dict(given), self.kind)
        known = set(inspect.signature(self.algorithm).parameters) - {"policy", "env", "policy_kwargs", "seed", "device"}
        for name in config.algorithm:
            if name not in known:
                raise unknown(f"key of algorithm of {self.kind}", name, sorted(known))
        if config.form not in self.forms:
            raise unknown(f"form of {self.kind}", config.form, self.forms)
        if config.rule not in RULES:
            raise unknown("decision rule", config.rule, RULES)
        counts = config.decision_interval, config.envs, config.rounds, config.round_steps, *config.hidden
        if min(counts) < 1 or config.seed < 0 or min(config.control_interval_ms, config.episode_s) <= 0.0:
            raise L4SError(f"configuration of {self.kind}: counts and lengths have to be above 0, and seed 0 or more")
        return msgspec.structs.replace(config, algorithm=shared.merged(self.arguments, config.algorithm))

    def train(
        self,
        scenarios: str,
        config: Mapping[str, Any],
        out: Path,
        *,
        resume: bool = False,
        progress: shared.Progress | None = None,
        say: shared.Say | None = None,
    ) -> dict[str, Any]:
        """Train the agent as `l4s_gym.agents.training.Learner` describes; Ctrl-C stops it after the present round."""
        chosen = self.configure(config)
        path = shared.start_folder(out, resume=resume)
        told = online.about(scenarios, chosen.form, chosen.seed)
        about = {"kind": self.kind, "config": msgspec.to_builtins(chosen), **told}
        state: shared.Plain = shared.load_checkpoint(path, **about) if resume else {"rewards": [], "seconds": 0.0}
        begun = time.monotonic() - float(state["seconds"])
        with seeded_round(chosen.seed, 0):
            envs = _environments(scenarios, chosen)
            model = self._model(envs, chosen)
        if resume:
            restore(model, state["model"])
        rewards, steps = list(state["rewards"]), chosen.envs * chosen.round_steps

        def do(number: int) -> str:
            rewards.append(learn(model, envs, steps, chosen.seed, number))
            return f"mean reward of a step {rewards[-1]:.4g}"

        def keep() -> None:
            now = {"model": kept(model), "rewards": rewards, "seconds": time.monotonic() - begun}
            shared.save_checkpoint(path, {**about, **now})

        online.rounds(do, keep, len(rewards), chosen.rounds, progress=progress, say=say)
        steps *= chosen.rounds
        done = {
            **told,
            **_asked(chosen),
            "steps": steps,
            "seconds": round(time.monotonic() - begun, 3),
            "metrics": {"steps": steps, "rewards": rewards},
        }
        tensors = {**actor(model), "mean": torch.tensor(envs.mean), "std": torch.tensor(envs.std)}
        made = PPOPacketAgent if chosen.form == PACKET else self.agent
        made(tensors, about["config"], done).save(out)
        return done

    def _model(self, envs: Envs, config: Config) -> Any:
        """Return the algorithm, which has learnt nothing yet."""
        critics = "vf" if self.algorithm is stable_baselines3.PPO else "qf"
        policy: dict[str, Any] = {"net_arch": {"pi": [*config.hidden], critics: [*config.hidden]}}
        policy["activation_fn"] = nn.Tanh
        bounded = critics == "vf" and config.form != PACKET
        if bounded:
            policy["log_std_init"] = config.log_std
        try:
            model = self.algorithm("MlpPolicy", envs, policy_kwargs=policy, device="cpu", **config.algorithm)
        except (TypeError, ValueError, AssertionError) as error:
            raise L4SError(f"configuration of {self.kind}: algorithm: {error}") from error
        if bounded:
            model.policy.action_net = nn.Sequential(model.policy.action_net, nn.Tanh())
        return model


def _asked(config: Config) -> dict[str, Any]:
    """Return how often the agent is asked, by the names of the environments' arguments."""
    name = "decision_interval" if config.form == PACKET else "control_interval_ms"
    return {name: getattr(config, name)}


def _environments(scenarios: str, config: Config) -> Envs:
    """Return the environments, scaled by a run of as many steps as a round has."""
    env = online.environment(
        config.form, scenarios, config.envs, config.episode_s, autoreset_mode="same_step", **_asked(config)
    )
    rng = np.random.default_rng([config.seed, 0])
    mean, std, reward = online.statistics(env, config.form, config.round_steps, rng)
    gamma = float(config.algorithm.get("gamma", 0.99))
    return Envs(env, mean, std, (1.0 - gamma) / max(reward, 1e-9))


def learn(model: Any, envs: Envs, steps: int, seed: int, number: int) -> float:
    """Learn for a round of some steps, of all environments together; return the mean reward of a step."""
    envs.rng = np.random.default_rng([seed, 1 + number])
    model.action_space.seed(_PER_ROUND * seed + 1 + number)
    model._last_obs = None  # so that it starts the environments anew
    model.set_logger(Logger(None, []))  # its own makes a temporary folder in each round, and leaves it
    with seeded_round(seed, 1 + number):
        model.learn(steps, reset_num_timesteps=False, log_interval=None)
    return float(np.mean(envs.earned))


def actor(model: Any) -> dict[str, Any]:
    """Return the layers of the actor, by names that are sorted by their numbers."""
    policy = model.policy
    if hasattr(policy, "mlp_extractor"):
        parts = policy.mlp_extractor.policy_net, policy.action_net
    else:
        parts = policy.actor.latent_pi, policy.actor.mu
    linear = [each for part in parts for each in part.modules() if isinstance(each, nn.Linear)]
    found: dict[str, Any] = {}
    for number, each in enumerate(linear):
        found |= {f"actor.{number}.weight": each.weight.detach(), f"actor.{number}.bias": each.bias.detach()}
    return found


_BUFFER: Final = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def kept(model: Any) -> shared.Plain:
    """Return what a model has learnt and seen, for a checkpoint."""
    state = {"parameters": model.get_parameters(), "steps": model.num_timesteps}
    if hasattr(model, "replay_buffer"):
        buffer = model.replay_buffer
        state["entropy"] = model.log_ent_coef.detach()
        state["at"], state["full"] = buffer.pos, buffer.full
        rows = len(buffer.rewards) if buffer.full else buffer.pos
        state["buffer"] = {name: torch.tensor(getattr(buffer, name)[:rows]) for name in _BUFFER}
    return state


def restore(model: Any, state: shared.Plain) -> None:
    """Return a model to what `kept` has."""
    model.set_parameters(state["parameters"])
    model.num_timesteps = state["steps"]
    if "buffer" in state:
        buffer = model.replay_buffer
        with torch.no_grad():
            model.log_ent_coef.copy_(state["entropy"])
        buffer.pos, buffer.full = state["at"], state["full"]
        for name, rows in state["buffer"].items():
            getattr(buffer, name)[: len(rows)] = rows.numpy()


PPO: Final = SB3Learner(
    "ppo",
    stable_baselines3.PPO,
    PPOAgent,
    tuple(forms.FORMS),
    {"n_steps": 200, "batch_size": 800, "n_epochs": 5, "learning_rate": 1e-3, "gamma": 0.98, "gae_lambda": 0.95},
)
SAC: Final = SB3Learner(
    "sac_online",
    stable_baselines3.SAC,
    SACAgent,
    tuple(name for name in forms.FORMS if name != PACKET),
    {"buffer_size": 200_000, "learning_rate": 1e-3, "gamma": 0.98, "learning_starts": 6400, "gradient_steps": 2},
)
