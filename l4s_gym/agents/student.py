"""The agent `student`: an integer model that decides in the simulator as it does in a queue's kernel.

What it knows is in one file, `model.bin` (`l4s_gym.bridge.model`), which a router loads as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from l4s_gym.agents import saved
from l4s_gym.agents.protocol import NO_RULE, DecisionRule, Floats, Observations, check_batch, check_count
from l4s_gym.bridge.fixed import SAME, Integers, raw_of
from l4s_gym.bridge.model import Model
from l4s_gym.data.files import PathLike, read_error
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET
from l4s_gym.sim.policy import Integers as IntegerModel
from l4s_gym.sim.policy import Policy

KIND: Final = "student"


def actions_of(model: Model, seen: Integers) -> Floats:
    """Return the actions (n, K) of an interval form that a model takes where it sees (n, D)."""
    return np.clip(model.values(seen), -SAME, SAME) / SAME


class StudentAgent:
    """An integer model.

    Attributes:
        model: The model.
        name: Name in results.
        form: In which it decides.
        rule: Decision rule; a kernel always draws (`sample`).
        training: How it was trained.
    """

    def __init__(
        self, model: Model, settings: Mapping[str, Any], training: Mapping[str, Any], rule: str = "sample"
    ) -> None:
        self.model, self.form, self.name = model, model.form, KIND
        self.rule = rule if model.form == PACKET else NO_RULE
        self._rule = DecisionRule(rule)
        self.training, self._settings = dict(training), dict(settings)
        self._memory = model.memory()
        self.reset(1, 0)

    @classmethod
    def of(cls, stored: saved.Saved, **options: str) -> Self:
        """Make the agent from what was saved.

        Raises:
            L4SError: The model is damaged, or an option is not known.
        """
        path = stored.path / saved.MODEL
        try:
            model = Model.unpack(path.read_bytes())
        except OSError as error:
            raise read_error(path, error) from error
        except L4SError as error:
            raise L4SError(f"{path}: {error}") from error
        stored.check(options, *(["rule"] if model.form == PACKET else []))
        return cls(model, stored.config, stored.training, **options)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes.

        Raises:
            L4SError: `n` is not positive.
        """
        check_count(n)
        self.n = n
        self._rule.reset(n, seed)
        self._memory.reset()

    @cached_property
    def policy(self) -> Policy:
        """The model in the engine, of packets."""
        return Policy((IntegerModel(self.model),), self.rule, softmax=False)

    def as_policy(self) -> Policy | None:
        """Return its policy, for the engine; None: it decides for control intervals."""
        return self.policy if self.form == PACKET else None

    def probabilities(self, obs: Observations) -> Floats:
        """Return the probabilities of the actions (n, 3) for observations (n, 8) of packets."""
        return self.policy.probabilities(obs)

    def logged_probabilities(self, logged: Trajectory, index: npt.NDArray[np.int64]) -> Floats:
        """Return the probabilities (B, 3) at logged steps (B,)."""
        return self.probabilities(logged.observations[index])

    def act(self, obs: Observations, rewards: Floats) -> npt.NDArray[Any]:
        """Return actions, (n,) or (n, K); rewards are not used."""
        check_batch(obs, self.n, self.form)
        if self.form == PACKET:
            return self._rule.decide(self.probabilities(obs), obs[:, 0])
        return actions_of(self.model, self._memory(raw_of(obs, self.form)))

    def cost(self) -> dict[str, float]:
        """Return the number of nodes, or of weights and biases, and the bytes of the model."""
        count = float(self.model.body.parameters)
        return {"parameters": count, "trainable_parameters": count, "bytes": float(len(self.model.pack()))}

    def save(self, folder: PathLike) -> Path:
        """Write the agent to a folder, which is replaced as a whole or not at all.

        Raises:
            L4SError: The folder cannot be written.
        """

        def fill(new: Path) -> None:
            (new / saved.MODEL).write_bytes(self.model.pack())

        return saved.write(folder, kind=KIND, config=self._settings, tensors={}, training=self.training, fill=fill)
