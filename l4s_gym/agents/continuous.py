"""Agents that d3rlpy trains for control intervals: `bc_continuous`, `cql_continuous`, `iql`, `td3_bc`, `dt_continuous`.

They take the form, `parameters` or `probability`, from the dataset. An agent decides at each n-th interval
(`decision_interval`) and holds its action until the next; its action is the mean of its policy, without noise. What
the networks see is scaled as for `onestep`: ln(1 + x), standardised and bounded.

The decision transformer is asked for a mean reward per second over the next `horizon_s` seconds, in place of a sum over
the rest of the episode, as a queue has no end: 1 is a full link, fairly shared, without delay. So the target stays the
same however long it runs, and timesteps count within the window.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.agents import saved
from l4s_gym.agents import training as shared
from l4s_gym.agents.d3rlpy_agents import number, restore
from l4s_gym.agents.d3rlpy_learners import Config, D3RLPyLearner
from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.agents.onestep import BOUND, MovingAverage, Perceptron, layers, scale_of, scaled
from l4s_gym.agents.protocol import NO_RULE, Floats, Observations, check_batch, check_count
from l4s_gym.data.d3rlpy_io import import_d3rlpy
from l4s_gym.data.files import PathLike
from l4s_gym.data.trajectory import Ints, Trajectory, window_rows
from l4s_gym.forms import PACKET

_AHEAD: Final = "ahead"
"""Column of the rewards per second that follow a step."""
_CHUNK: Final = 256
_SEEN: Final = 50_000
"""Most steps of which mean and deviation are taken."""


@functools.cache
def log_scaler() -> Any:
    """Return the class of d3rlpy's scalers that scales as `onestep.scaled`."""
    preprocessing = import_d3rlpy().preprocessing
    import torch

    @dataclass
    class LogObservationScaler(preprocessing.StandardObservationScaler):  # type: ignore[misc, name-defined]
        def transform(self, x: torch.Tensor) -> torch.Tensor:
            return torch.clamp(super().transform(torch.log1p(x)), -BOUND, BOUND)

        @staticmethod
        def get_type() -> str:
            return "l4s_gym_log"

    preprocessing.register_observation_scaler(LogObservationScaler)
    return LogObservationScaler


# -- agents


class ContinuousAgent:
    """A trained policy that decides for control intervals.

    Attributes:
        name: Name in results.
        settings: Configuration of the training, plain.
        training: How it was trained.
    """

    rule = NO_RULE

    def __init__(self, kind: str, settings: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> None:
        self.kind, self.name = kind, kind
        self.settings, self.training = dict(settings), dict(training or {})
        self.n = 0

    @property
    def form(self) -> str:
        """Action form of the training."""
        return str(self.training["form"])

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes.

        Raises:
            L4SError: `n` is not positive.
        """
        check_count(n)
        self.n, self._step = n, 0
        self._average = MovingAverage(self.training["control_interval_ms"], self.settings["smoothing_s"])

    def act(self, obs: Observations, rewards: Floats) -> Floats:
        """Return actions (n, K); rewards are not used."""
        check_batch(obs, self.n, self.form)
        if self._step % self.settings["decision_interval"] == 0:
            self._chosen = self.choose(obs)
        self._step += 1
        return self._average(self._chosen)

    def choose(self, obs: Observations) -> Floats:
        """Return what the policy chooses (n, K)."""
        raise NotImplementedError

    def logged_actions(self, logged: Trajectory, index: Ints) -> Floats:
        """Return what the policy chooses (B, K) at logged steps (B,)."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Any]:
        """Return the weights by name, as PyTorch tensors."""
        raise NotImplementedError

    def extra_config(self) -> dict[str, Any]:
        """Return what the loader needs beside settings and weights."""
        return {}

    def cost(self) -> dict[str, float]:
        """Return the number of parameters that decide."""
        count = float(sum(tensor.numel() for name, tensor in self.tensors().items() if name not in ("mean", "std")))
        return {"parameters": count, "trainable_parameters": count}

    def save(self, folder: PathLike) -> Path:
        """Write the agent to a folder, which is replaced as a whole or not at all.

        Raises:
            L4SError: The folder cannot be written.
        """
        config = {"settings": self.settings, **self.extra_config()}
        return saved.write(folder, kind=self.kind, config=config, tensors=self.tensors(), training=self.training)


class ActorAgent(ContinuousAgent):
    """A perceptron with ReLU between its layers and tanh at the end; NumPy decides, d3rlpy is not needed."""

    def __init__(self, tensors: Mapping[str, Any], *about: Any) -> None:
        super().__init__(*about)
        self._tensors = dict(tensors)
        self._mean, self._std = (tensors[name].numpy().astype(np.float64) for name in ("mean", "std"))
        self._layers = layers(tensors)

    @classmethod
    def of_algorithm(cls, algo: Any, *about: Any) -> Self:
        """Make the agent of a trained algorithm of d3rlpy."""
        import torch

        modules = algo.impl.modules.get_torch_modules()
        linear = [
            layer
            for name, layer in modules["imitator" if "imitator" in modules else "policy"].named_modules()
            if isinstance(layer, torch.nn.Linear) and name != "_logstd"
        ]
        scaler = algo.observation_scaler
        tensors = {"mean": torch.tensor(scaler.mean), "std": torch.tensor(scaler.std + scaler.eps)}
        for k, layer in enumerate(linear):
            tensors |= {f"actor.{k}.weight": layer.weight.detach(), f"actor.{k}.bias": layer.bias.detach()}
        return cls(tensors, *about)

    @classmethod
    def of(cls, stored: saved.Saved, **options: str) -> Self:
        """Make the agent from what was saved.

        Raises:
            L4SError: There are options, or the configuration is of another version.
        """
        stored.check(options)
        return cls(stored.tensors, stored.kind, stored.config["settings"], stored.training)

    def choose(self, obs: Observations) -> Floats:
        """Return what the policy chooses (n, K)."""
        x = scaled(obs, self._mean, self._std)
        for k, (weight, bias) in enumerate(self._layers):
            x = np.matmul((np.maximum(x, 0.0) if k else x)[:, None], weight.T)[:, 0] + bias  # each row for itself
        return np.tanh(x)

    def perceptron(self) -> Perceptron:
        """Return what its slopes depend on."""
        share = MovingAverage(self.training["control_interval_ms"], self.settings["smoothing_s"]).share
        return Perceptron(self._std, tuple(weight for weight, _ in self._layers), (1.0,), 1.0, share)

    def logged_actions(self, logged: Trajectory, index: Ints) -> Floats:
        """Return what the policy chooses (B, K) at logged steps (B,)."""
        return self.choose(logged.observations[index])

    def tensors(self) -> dict[str, Any]:
        """Return the weights by name."""
        return self._tensors


class ContinuousDTAgent(ContinuousAgent):
    """A trained decision transformer; PyTorch decides, for one episode after another.

    Attributes:
        target_return: The mean reward per second to aim for; the option `target`.
    """

    parts: ClassVar[tuple[str, ...]] = ("transformer",)

    def __init__(self, algo: Any, target: float, *about: Any) -> None:
        super().__init__(*about)
        self.algo, self.target_return = algo, target
        self._model = algo.impl.modules.transformer.eval()
        self.length: int = algo.config.context_size

    @classmethod
    def of(cls, stored: saved.Saved, target: str | None = None, **options: str) -> Self:
        """Make the agent from what was saved.

        Raises:
            L4SError: It does not fit the installed d3rlpy, or an option makes no sense.
        """
        stored.check(options, "target")
        log_scaler()
        observed, actions = forms.get(stored.training["form"]).spaces
        algo = restore(stored, cls.parts, observed.shape[0], actions.shape[0])
        aim = stored.config["target_return"] if target is None else number(stored.kind, "target", target)
        return cls(algo, float(aim), stored.kind, stored.config["settings"], stored.training)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        import torch

        torch.set_num_threads(1)  # more are slower for such small batches
        super().reset(n, seed)
        observed, actions = forms.get(self.form).spaces
        self._held = np.zeros((n, self.length, *observed.shape), np.float32)
        self._taken = np.zeros((n, self.length, *actions.shape), np.float32)

    def choose(self, obs: Observations) -> Floats:
        """Return what the policy chooses (n, K); it remembers the window."""
        self._held = np.concatenate([self._held[:, 1:], obs[:, None]], axis=1)
        self._taken = np.concatenate([self._taken[:, 1:], np.zeros_like(self._taken[:, :1])], axis=1)
        count = self._step // self.settings["decision_interval"] + 1
        mask = np.arange(self.length) >= self.length - count
        ahead = np.full(self.length, self.target_return, np.float32)
        pairs = zip(self._held, self._taken, strict=True)  # each row for itself: its result depends on no other
        chosen = np.concatenate(
            [self._predict(seen[None], taken[None], ahead[None], mask[None]) for seen, taken in pairs]
        )
        self._taken[:, -1] = chosen
        return chosen.astype(np.float64)

    def _predict(self, *window: Any) -> npt.NDArray[np.float32]:
        """Return the actions (B, K) at the last step of windows (B, L, ...) of `windows`."""
        import torch

        batch = batch_of(*window)
        x = {name: torch.from_numpy(getattr(batch, name)) for name in ("observations", "actions", "returns_to_go")}
        times, masks = torch.from_numpy(batch.timesteps).long(), torch.from_numpy(batch.masks)
        seen = self.algo.observation_scaler.transform(x["observations"])
        with torch.no_grad():
            found = self._model(seen, x["actions"], x["returns_to_go"], times, 1.0 - masks)
        last: npt.NDArray[np.float32] = found[:, -1].numpy()
        return last

    def logged_actions(self, logged: Trajectory, index: Ints) -> Floats:
        """Return what the policy chooses (B, K) at logged steps (B,), given what was earned after them."""
        parts = (index[at : at + _CHUNK] for at in range(0, len(index), _CHUNK))
        return np.concatenate([self._predict(*windows(logged, part, self.length)) for part in parts])

    def tensors(self) -> dict[str, Any]:
        """Return the weights by name."""
        return {f"transformer.{name}": tensor for name, tensor in self._model.state_dict().items()}

    def extra_config(self) -> dict[str, Any]:
        """Return the algorithm, and the return to aim for."""
        from d3rlpy.base import LearnableConfigWithShape

        impl = self.algo.impl
        described = LearnableConfigWithShape(impl.observation_shape, impl.action_size, self.algo.config)
        return {"d3rlpy": json.loads(described.serialize()), "target_return": self.target_return}


# -- windows of the decision transformer


def windows(logged: Trajectory, index: Ints, length: int) -> tuple[npt.NDArray[Any], ...]:
    """Return the windows (B, L, ...) that end at steps (B,): observations, actions, rewards per second ahead, mask."""
    first = logged.starts[np.searchsorted(logged.starts, index, side="right") - 1]
    rows, mask = window_rows(index, first, length)
    return logged.observations[rows], logged.actions[rows], logged.extras[_AHEAD][rows], mask


def batch_of(
    observations: npt.NDArray[np.float32],
    actions: npt.NDArray[np.float32],
    ahead: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
) -> Any:
    """Return windows (B, L, ...) as a batch of d3rlpy's; what is before an episode is 0."""
    shown = mask[..., None]
    length = mask.shape[1]
    return import_d3rlpy().dataset.TrajectoryMiniBatch(
        observations=observations * shown,
        actions=actions * shown,
        rewards=np.zeros((*mask.shape, 1), np.float32),
        returns_to_go=ahead[..., None] * shown,
        terminals=np.zeros((*mask.shape, 1), np.float32),
        timesteps=(np.arange(1, length + 1) * mask).astype(np.float32),
        masks=mask.astype(np.float32),
        length=length,
    )


def rewards_ahead(logged: Trajectory, steps: int) -> npt.NDArray[np.float32]:
    """Return the mean of the rewards from each step on, over at most `steps` steps of its run (T,)."""
    total = np.concatenate([[0.0], np.cumsum(logged.rewards)])
    start = np.arange(len(logged))
    stop = np.minimum(start + steps, np.repeat(logged.starts[1:], np.diff(logged.starts)))
    means: npt.NDArray[np.float32] = ((total[stop] - total[start]) / (stop - start)).astype(np.float32)
    return means


# -- learners


class ContinuousLearner(D3RLPyLearner):
    """Trains one of d3rlpy's algorithms for continuous actions."""

    never: ClassVar[tuple[str, ...]] = (*("rule", "imbalance", "drop_missing", "allow_gaps", "temperature", "epsilon"),)

    def form(self, dataset_id: str) -> str:
        """Return the form of the dataset, one of control intervals."""
        found = shared.form_of(dataset_id)
        return "parameters" if found == PACKET else found  # which `read_dataset` then refuses

    def imbalance(self, logged: Trajectory, config: Config) -> Imbalance:
        """Return none: no action is rare."""
        return Imbalance()

    def observation_scaler(self, logged: Trajectory) -> Any:
        """Return how observations are scaled."""
        mean, std = scale_of(np.log1p(logged.observations[logged.some(_SEEN)].astype(np.float64)))
        return log_scaler()(mean.astype(np.float32), std.astype(np.float32))

    def outputs(self, logged: Trajectory) -> int:
        """Return the numbers of an action."""
        return int(logged.actions.shape[1])

    def agent(self, algo: Any, config: Config, imbalance: Imbalance, logged: Trajectory) -> Any:
        """Return the agent of a trained algorithm."""
        return ActorAgent.of_algorithm(algo, self.kind, self.plain(config))

    def asked(self, config: Config, form: str, interval_s: float) -> dict[str, Any]:
        """Return the form and the control interval."""
        return {"form": form, "control_interval_ms": 1e3 * interval_s}

    def judged(self, agent: Any, logged: Trajectory, index: Ints) -> dict[str, Any]:
        """Return how far chosen actions are from logged ones: mean squares, and the share of the variance explained."""
        logged_ = logged.actions[index].astype(np.float64)
        error = float(((agent.logged_actions(logged, index) - logged_) ** 2).mean())
        constant = float(logged_.var(axis=0).mean())
        return {
            "steps": len(index),
            "squared_error": error,
            "constant_squared_error": constant,
            "r2": 1.0 - error / max(constant, 1e-12),
        }


class _DTLearner(ContinuousLearner):
    """Trains a decision transformer."""

    def prepared(self, logged: Trajectory, config: Config, interval_s: float) -> Trajectory:
        between_s = interval_s * config.decision_interval
        strided = super().prepared(logged, config, interval_s)
        steps = max(round(config.horizon_s / between_s), 1)
        return replace(strided, extras={_AHEAD: rewards_ahead(strided, steps) / np.float32(between_s)})

    def steps_to_draw(self, logged: Trajectory) -> Ints:
        return np.arange(len(logged))

    def batch(self, logged: Trajectory, index: Ints, config: Config) -> Any:
        return batch_of(*windows(logged, index, config.algorithm["context_size"]))

    def more_fields(self, logged: Trajectory, config: Config) -> dict[str, Any]:
        return {"max_timestep": config.algorithm["context_size"]}

    def agent(self, algo: Any, config: Config, imbalance: Imbalance, logged: Trajectory) -> Any:
        best = float(logged.extras[_AHEAD].max())
        target = best if config.target_return is None else config.target_return
        return ContinuousDTAgent(algo, target, self.kind, self.plain(config))


_INTERVAL: Final = 30
"""Control intervals for which an action is held: 0.48 s of 16 ms each."""
_ACTOR_CRITIC: Final[dict[str, Any]] = {"actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4, "gamma": 0.9}


def _learner(kind: str, name: str, steps: int, algorithm: dict[str, Any], batch_size: int = 256) -> ContinuousLearner:
    defaults = Config(
        steps=steps, batch_size=batch_size, hidden=(64, 64), decision_interval=_INTERVAL, algorithm=algorithm
    )
    return ContinuousLearner(kind, name, defaults, lacks=("target_return", "horizon_s"))


BC = _learner("bc_continuous", "BCConfig", 20_000, {"learning_rate": 1e-3})
CQL = _learner(
    "cql_continuous", "CQLConfig", 10_000, {**_ACTOR_CRITIC, "conservative_weight": 5.0, "n_action_samples": 4}, 128
)
IQL = _learner("iql", "IQLConfig", 20_000, {**_ACTOR_CRITIC, "expectile": 0.7, "weight_temp": 3.0})
TD3_BC = _learner("td3_bc", "TD3PlusBCConfig", 20_000, {**_ACTOR_CRITIC, "alpha": 2.5})
DT = _DTLearner(
    "dt_continuous",
    "DecisionTransformerConfig",
    Config(
        steps=5000,
        batch_size=64,
        hidden=(64,),
        decision_interval=_INTERVAL,
        target_return=0.95,
        algorithm={
            "learning_rate": 6e-4,
            "context_size": 6,
            "num_layers": 2,
            "num_heads": 1,
            "attn_dropout": 0.1,
            "resid_dropout": 0.1,
            "embed_dropout": 0.1,
        },
    ),
    lacks=(),
)
