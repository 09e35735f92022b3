"""Agents of d3rlpy: an imitator (`bc`), and value-based agents (`cql`, `bcq`, `dqn`, `double_dqn`, `sac`).

An imitator gives probabilities, which a decision rule turns into decisions; `sample` by default. Value-based agents
decide greedily by default (`argmax`), as d3rlpy does. With ``rule=sample`` or ``rule=diffuse`` their values
become probabilities: ``(1 - epsilon) * softmax(Q / temperature) + epsilon / 3``; these say which action is better,
not how often the discipline took it. `bcq` gives 0 to an action that its imitator finds too unlikely, and `sac` has
a policy instead of the softmax. Decisions are made by `l4s_gym.sim.policy`, inside the engine and
outside; PyTorch only trains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from l4s_gym.agents import saved
from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.agents.protocol import Actions, DecisionRule, Floats, Observations, check_batch
from l4s_gym.data.d3rlpy_io import import_d3rlpy, quiet
from l4s_gym.data.files import PathLike
from l4s_gym.data.trajectory import Ints, Trajectory
from l4s_gym.errors import L4SError, unknown
from l4s_gym.schema import ACTIONS, OBSERVED
from l4s_gym.sim.policy import Network, Policy


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch and let it run on one thread (faster for such small batches), until the block ends."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def number(spec: str, name: str, value: object) -> float:
    """Return the value of an option as a finite number.

    Raises:
        L4SError: It is not one.
    """
    try:
        found = float(str(value))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise L4SError(f"{spec}: {name}={value}: give a number")
    return found


class D3RLPyAgent:
    """A trained algorithm of d3rlpy that decides from the observation alone.

    Attributes:
        algo: The algorithm, built.
        kind: Kind of the saved agent.
        rule: Decision rule.
        name: Name in results.
        imbalance: How rare actions were treated in training; undone in the probabilities of imitators.
        training: How it was trained.
        settings: Configuration of the training, plain.
        parts: Parts of the algorithm that take part in decisions: they are saved and counted.
        options: Options beside `rule`.
        default_rule: The decision rule where none is given.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    default_rule: ClassVar[str] = "sample"

    def __init__(
        self,
        algo: Any,
        kind: str,
        rule: str | None = None,
        *,
        imbalance: Imbalance | None = None,
        settings: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if algo.impl is None:
            raise L4SError(f"{kind}: the algorithm is not built: train it or load it")
        for option in options or {}:
            if option not in self.options:
                raise unknown(f"option of {kind}", option, ("rule", *self.options))
        self.rule = rule or self.default_rule
        self._rule = DecisionRule(self.rule)
        self.algo, self.kind, self.name = algo, kind, kind
        self.imbalance = imbalance or Imbalance()
        self.settings, self.training = dict(settings or {}), dict(training or {})
        self._modules = {name: algo.impl.modules.get_torch_modules()[name] for name in self.parts}

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        self._rule.reset(n, seed)

    @cached_property
    def _learnt(self) -> Policy:
        return self._describe()

    def _describe(self) -> Policy:
        """Return the learned policy as plain arrays."""
        raise NotImplementedError

    def as_policy(self) -> Policy:
        """Return its policy, for the engine."""
        return self._learnt

    def probabilities(self, obs: Observations) -> Floats:
        """Return the probabilities of the actions (n, 3) for observations (n, 8)."""
        return self._learnt.probabilities(obs)

    def logged_probabilities(self, logged: Trajectory, index: Ints) -> Floats:
        """Return the probabilities (B, 3) at logged steps (B,)."""
        return self.probabilities(logged.observations[index])

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Return actions (n,) by the decision rule; rewards are not used."""
        check_batch(obs, self._rule.n)
        return self._rule.decide(self.probabilities(obs), obs[:, 0])

    def _network(self, module: Any) -> Network:
        """Return a perceptron of d3rlpy as plain arrays; observations are standardised as d3rlpy does.

        Raises:
            L4SError: It has other layers than linear ones with one activation, or other scaling.
        """
        scaler = self.algo.observation_scaler
        if not hasattr(scaler, "std"):
            raise L4SError(f"{self.kind}: scaler {type(scaler).__name__}: build it with a StandardObservationScaler")
        mean, std = (np.asarray(part, np.float32) for part in (scaler.mean, scaler.std))
        return Network.of(module, mean, std + np.float32(scaler.eps))

    def cost(self) -> dict[str, float]:
        """Return the number of parameters of the parts that decide."""
        held = {id(p): p for module in self._modules.values() for p in module.parameters()}.values()
        return {
            "parameters": float(sum(p.numel() for p in held)),
            "trainable_parameters": float(sum(p.numel() for p in held if p.requires_grad)),
        }

    def extra_config(self) -> dict[str, Any]:
        """Return what the loader needs beside the algorithm."""
        return {}

    def save(self, folder: PathLike) -> Path:
        """Write the agent to a folder, which is replaced as a whole or not at all.

        Returns:
            The folder.

        Raises:
            L4SError: The folder cannot be written.
        """
        from d3rlpy.base import LearnableConfigWithShape

        described = LearnableConfigWithShape(
            observation_shape=self.algo.impl.observation_shape,
            action_size=self.algo.impl.action_size,
            config=self.algo.config,
        )
        config = {
            "d3rlpy": json.loads(described.serialize()),
            "imbalance": self.imbalance.as_dict(),
            "rule": self.rule,
            "settings": self.settings,
            **self.extra_config(),
        }
        tensors = {
            f"{name}.{key}": value
            for name, module in self._modules.items()
            for key, value in module.state_dict().items()
        }
        text = card(self.kind, self.training, self.cost(), self.rule)
        return saved.write(folder, kind=self.kind, config=config, tensors=tensors, training=self.training, card=text)

    @classmethod
    def of(cls, stored: saved.Saved, rule: str | None = None, **options: Any) -> Self:
        """Make the agent from what was saved.

        Raises:
            L4SError: It does not fit the installed d3rlpy, or an option makes no sense.
        """
        return cls(
            restore(stored, cls.parts),
            stored.kind,
            rule or stored.config.get("rule"),
            imbalance=Imbalance.of(stored.config["imbalance"]),
            settings=stored.config["settings"],
            training=stored.training,
            options=options,
        )


class BCAgent(D3RLPyAgent):
    """A trained imitator, `d3rlpy.algos.DiscreteBC`."""

    parts: ClassVar[tuple[str, ...]] = ("imitator",)

    def __init__(self, algo: Any, kind: str = "bc", rule: str | None = None, **more: Any) -> None:
        super().__init__(algo, kind, rule, **more)

    def _describe(self) -> Policy:
        return Policy((self._network(self._modules["imitator"]),), self.rule)

    def as_policy(self) -> Policy:
        """Return its policy, for the engine."""
        return replace(self._learnt, **self.imbalance.as_policy())

    def probabilities(self, obs: Observations) -> Floats:
        """Return the probabilities of the actions (n, 3) for observations (n, 8), calibrated to the data."""
        return self.imbalance.correct(super().probabilities(obs))

    @classmethod
    def load(cls, folder: PathLike, rule: str = "sample") -> BCAgent:
        """Read an agent that was saved; nothing in the folder is executed.

        Args:
            folder: Its folder.
            rule: `sample`, `argmax` or `diffuse`.

        Raises:
            L4SError: There is no such agent, it is damaged, or d3rlpy is not installed.
        """
        agent = saved.load(folder, {"rule": rule}, kind="bc")
        assert isinstance(agent, BCAgent)
        return agent


class ValueAgent(D3RLPyAgent):
    """A trained value-based agent.

    Attributes:
        temperature: Temperature of the softmax over the values, in units of the scaled rewards.
        epsilon: Share of the decisions that is drawn evenly.
    """

    parts: ClassVar[tuple[str, ...]] = ("q_funcs",)
    options: ClassVar[tuple[str, ...]] = ("temperature", "epsilon")
    default_rule: ClassVar[str] = "argmax"

    def __init__(self, algo: Any, kind: str, rule: str | None = None, **more: Any) -> None:
        super().__init__(algo, kind, rule, **more)
        given = {"temperature": 1.0, "epsilon": 0.0}
        given |= {name: self.settings[name] for name in given if name in self.settings}
        given |= {name: number(kind, name, value) for name, value in (more.get("options") or {}).items()}
        self.temperature, self.epsilon = given["temperature"], given["epsilon"]
        if not self.temperature > 0.0 or not 0.0 <= self.epsilon <= 1.0:
            raise L4SError(
                f"{kind}: temperature={self.temperature:g}, epsilon={self.epsilon:g}: give more than 0, and 0 to 1"
            )

    def extra_config(self) -> dict[str, Any]:
        """Return the settings that turn values into probabilities."""
        return {"temperature": self.temperature, "epsilon": self.epsilon}

    def _describe(self) -> Policy:
        critics = tuple(map(self._network, self._modules["q_funcs"]))
        return Policy(critics, self.rule, temperature=self.temperature, epsilon=self.epsilon)


class BCQAgent(ValueAgent):
    """A value-based agent that gives 0 to an action which its imitator finds too unlikely."""

    parts: ClassVar[tuple[str, ...]] = ("q_funcs", "imitator")

    def _describe(self) -> Policy:
        mask = self._network(self._modules["imitator"])
        return replace(super()._describe(), mask=mask, flexibility=self.algo.config.action_flexibility)


class SACAgent(ValueAgent):
    """A value-based agent whose own policy replaces the softmax."""

    parts: ClassVar[tuple[str, ...]] = ("policy",)

    def _describe(self) -> Policy:
        return Policy((self._network(self._modules["policy"]),), self.rule, epsilon=self.epsilon)


def restore(
    stored: saved.Saved, parts: Sequence[str], features: int = len(OBSERVED), outputs: int = len(ACTIONS)
) -> Any:
    """Load the algorithm of d3rlpy, for so many features and outputs, with the weights of its parts.

    Raises:
        L4SError: It does not fit the installed d3rlpy.
    """
    import_d3rlpy()
    import torch
    from d3rlpy.base import LearnableConfigWithShape

    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            algo = LearnableConfigWithShape.deserialize(json.dumps(stored.config["d3rlpy"])).create(device=False)
        shape, size = tuple(algo.impl.observation_shape), algo.impl.action_size
        if shape != (features,) or size != outputs:
            raise L4SError(f"{stored.path}: is for {shape} features and {size} actions: train it again")
        modules = algo.impl.modules.get_torch_modules()
        for name in parts:
            prefix = f"{name}."
            own = {key.removeprefix(prefix): v for key, v in stored.tensors.items() if key.startswith(prefix)}
            modules[name].load_state_dict(own)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, L4SError):
            raise
        reason = str(error).splitlines()[0]
        raise L4SError(f"{stored.path}: does not fit the installed d3rlpy ({reason}): train it again") from error
    return algo


def card(kind: str, training: Mapping[str, Any], cost: Mapping[str, float], rule: str) -> str:
    """Return the card of a saved agent."""
    lines = [f"# {kind}", 'An agent of l4s-gym: `agents.make("FOLDER")`, or `l4s-gym evaluate FOLDER`.', ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {training[name]} |" for name in ("dataset", "steps", "seed", "seconds") if name in training]
    lines += [f"| {name.replace('_', ' ')} | {value:,.0f} |" for name, value in cost.items()]
    lines += [f"| decision rule | {rule} |"]
    metrics = training.get("metrics")
    if metrics:
        lines += ["", f"On {metrics['steps']:,} held-out steps ({training.get('held_out_by', 'by episode')}):", ""]
        lines += ["| | |", "|---|---|"]
        lines += [
            f"| {name.replace('_', ' ')} | {metrics[name]:.4f} |"
            for name in ("cross_entropy", "constant_cross_entropy", "accuracy", "majority", "macro_f1", "brier")
            if name in metrics
        ]
        recalls = {name: value for name, value in metrics["recall"].items() if value is not None}
        lines += [f"| recall of {name} | {value:.4f} |" for name, value in recalls.items()]
    return "\n".join(lines) + "\n"
