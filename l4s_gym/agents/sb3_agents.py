"""Agents that Stable-Baselines3 trains online: `ppo` and `sac_online`. It is not needed to decide.

In the forms of control intervals the action is the mean of the trained distribution, by the code of `onestep`; about
packets it is drawn (or chosen by another rule), inside the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from l4s_gym.agents import onestep, saved
from l4s_gym.agents.protocol import Floats
from l4s_gym.agents.rules import PolicyAgent
from l4s_gym.data.files import PathLike
from l4s_gym.data.trajectory import Ints, Trajectory
from l4s_gym.forms import PACKET
from l4s_gym.sim.policy import Network, Policy


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of a training; `agents/<name>/config.toml` holds the values that differ.

    Attributes:
        seed: Seed of weights, noise and episodes.
        form: The form in which the agent decides (`l4s_gym.forms`).
        control_interval_ms: Length of a control interval, simulated ms; not for packets.
        decision_interval: Of packets: the agent is asked at each n-th one.
        envs: Environments that run side by side.
        episode_s: Length of an episode, s.
        rounds: Parts of the training, in each of which all environments start anew; between them it can be stopped.
        round_steps: Steps of each environment in a round.
        hidden: Units of the hidden layers of the actor and of the critics.
        log_std: Logarithm of the deviation of PPO's actions at the start, in the forms of control intervals.
        rule: Decision rule for packets.
        algorithm: Arguments of the algorithm of Stable-Baselines3.
    """

    seed: int = 0
    form: str = "parameters"
    control_interval_ms: float = 100.0
    decision_interval: int = 10
    envs: int = 32
    episode_s: float = 20.0
    rounds: int = 200
    round_steps: int = 200
    hidden: tuple[int, ...] = (32, 32)
    log_std: float = -1.0
    rule: str = "sample"
    algorithm: dict[str, Any] = {}
    memory_s: ClassVar[tuple[float, ...]] = ()
    """As that of `onestep.Config`, whose agent's code decides; so the next two: no memory, no bound, no average."""
    reach: ClassVar[float] = 1.0
    smoothing_s: ClassVar[float] = 0.0


class SACAgent(onestep.OneStepAgent):
    """Sets probabilities or parameters; `onestep` decides so too, but with a moving average."""

    kind = "sac_online"
    config_type = Config

    def __init__(self, tensors: Mapping[str, Any], settings: Mapping[str, Any], training: Mapping[str, Any]) -> None:
        self.form = str(training["form"])
        super().__init__(tensors, settings, training)


class PPOAgent(SACAgent):
    """The same of PPO."""

    kind = "ppo"


class PPOPacketAgent(PolicyAgent):
    """Decides about packets.

    Attributes:
        training: How it was trained.
    """

    def __init__(
        self, tensors: Mapping[str, Any], settings: Mapping[str, Any], training: Mapping[str, Any], rule: str = ""
    ) -> None:
        self.training, self._settings, self._tensors = dict(training), dict(settings), dict(tensors)
        layers = tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in onestep.layers(tensors))
        mean, std = (tensors[name].numpy().astype(np.float32) for name in ("mean", "std"))
        super().__init__(Policy((Network(layers, "tanh", mean, std),), rule or settings["rule"]), PPOAgent.kind)

    def logged_probabilities(self, logged: Trajectory, index: Ints) -> Floats:
        """Return the probabilities (B, 3) at logged steps (B,)."""
        return self.policy.probabilities(logged.observations[index])

    def save(self, folder: PathLike) -> Path:
        """Write the agent to a folder, which is replaced as a whole or not at all."""
        return saved.write(
            folder, kind=PPOAgent.kind, config=self._settings, tensors=self._tensors, training=self.training
        )


def load_ppo(stored: saved.Saved, **options: str) -> PPOAgent | PPOPacketAgent:
    """Make the agent from what was saved, in its form.

    Raises:
        L4SError: The configuration is of another version, or an option is unknown.
    """
    if stored.training["form"] != PACKET:
        return PPOAgent.of(stored, **options)
    stored.check(options, "rule")
    return PPOPacketAgent(stored.tensors, stored.config, stored.training, **options)
