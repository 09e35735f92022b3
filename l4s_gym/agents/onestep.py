"""The agent `onestep`: sets the parameters of a law by one step of policy improvement on logged data.

Critics are regressions on the returns that followed while the law's parameters were held, without bootstrapping; an
actor then climbs them, once (Brandfonbrener et al., "Offline RL without off-policy evaluation", NeurIPS 2021), and
pessimistically: what counts is the critics' gain over the law as it is, its mean minus a multiple of its deviation
(ensembles for pessimism: An et al., "Uncertainty-based offline reinforcement learning with diversified Q-ensemble",
NeurIPS 2021).

What scenario and seed do to a return is many times what an action does. So the data comes in groups, episodes of one
scenario and seed each of which holds another action, and the critics learn the difference of a return from the group's
mean: a regression with fixed effects. And what is seen in an episode tells the action that is held there, and so
nothing of what other actions would have earned. So the critics judge all actions of a group by what is seen in one of
its episodes, whichever: what is seen can then tell only what kind of traffic it is.

An actor that goes too far from what the law does leaves the states that the data has, so it has a reach.
PyTorch trains; NumPy decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from l4s_gym.agents import saved
from l4s_gym.agents import training as shared
from l4s_gym.agents.d3rlpy_agents import seeded
from l4s_gym.agents.protocol import NO_RULE, Floats, Observations, check_batch, check_count, control_interval_ms
from l4s_gym.data.files import PathLike
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import optional
from l4s_gym.forms import FORMS
from l4s_gym.tables import convert

if TYPE_CHECKING:
    import torch

KIND: Final = "onestep"
FORM: Final = "parameters"
BOUND: Final = 3.0
"""Most deviations from the mean that the networks see."""
_JUDGED: Final = 16384
"""About so many rows tell how good a critic is."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of a training; the defaults are the full setting.

    Attributes:
        seed: Seed of weights, batches and the held-out part.
        critics: Number of critics.
        critic_hidden: Units of their hidden layers.
        critic_steps: Gradient steps of each.
        groups: Groups in a batch of theirs.
        weight_decay: Of the critics.
        actor_hidden: Units of the actor's hidden layers.
        actor_steps: Gradient steps of the actor.
        batch_size: Observations in a batch of the actor.
        learning_rate: Learning rate of Adam at the start; it falls to 0.
        memory_s: Time constants of the moving averages of the observations that critics and actor see as well, s.
        horizon_s: Time constant of the discount, s.
        pessimism: Deviations of the critics' gains that the actor takes off their mean.
        reach: Largest number of an action.
        smoothing_s: Time constant of the moving average of the actions, s; 0: none.
        held_out: Share of the groups held out for the metrics.
    """

    seed: int = 0
    critics: int = 4
    critic_hidden: tuple[int, ...] = (128, 128)
    critic_steps: int = 3000
    groups: int = 64
    weight_decay: float = 0.1
    actor_hidden: tuple[int, ...] = (16,)
    actor_steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 2e-3
    memory_s: tuple[float, ...] = (2.0, 8.0)
    horizon_s: float = 12.5
    pessimism: float = 3.0
    reach: float = 0.5
    smoothing_s: float = 0.5
    held_out: float = 0.2


@dataclass(frozen=True)
class Groups:
    """N groups of G episodes of T steps. Those of a group have scenario and seed in common; each holds one action.

    Attributes:
        episodes: The episodes of each group.
        observations: What was observed before each step (N, G, T, F).
        actions: What was held (N, G, K).
        advantages: Discounted mean of the rewards from each step on, minus that of the group (N, G, S): of the first
            S steps, after which half a horizon or less is left.
    """

    episodes: Sequence[Sequence[Trajectory]]
    observations: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float64]

    @classmethod
    def of(cls, episodes: Sequence[Trajectory], horizon: float) -> Self:
        """Find the groups in a dataset.

        Args:
            episodes: The episodes.
            horizon: Time constant of the discount, steps.

        Raises:
            L4SError: There are no groups, or the actions of an episode change.
        """
        found: dict[tuple[str, ...], list[Trajectory]] = {}
        for episode in episodes:
            key = tuple(str(episode.about.get(name)) for name in ("scenario_json", "aqm", "seed"))
            found.setdefault(key, []).append(episode)
        size, steps = min(map(len, found.values())), min(map(len, episodes))
        if size < 2 or len(found) < 2:
            raise L4SError("no two groups of episodes with one scenario and seed: use one as `held` is")
        if any((each.actions != each.actions[0]).any() for each in episodes):
            raise L4SError("the actions of an episode change: use one in which each episode holds its own, as `held`")
        groups = [group[:size] for group in found.values()]
        gamma, usable = math.exp(-1.0 / horizon), max(steps - math.ceil(horizon / 2.0), 1)
        means = np.array([[means_to_go(each.cut(0, steps), gamma)[:usable] for each in group] for group in groups])
        return cls(
            groups,
            np.array([[each.observations[:steps] for each in group] for group in groups]),
            np.array([[each.actions[0] for each in group] for group in groups]),
            means - means.mean(axis=1, keepdims=True),
        )

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """What critics learn (N, G, S): the advantages, of deviation 1."""
        return np.asarray(self.advantages / (self.advantages.std() + 1e-12), np.float32)


def means_to_go(episode: Trajectory, gamma: float) -> Floats:
    """Return the discounted means of the rewards from each step on (T,)."""
    left = np.arange(len(episode), 0, -1)
    means: Floats = episode.returns_to_go(gamma) * (1.0 - gamma) / (1.0 - gamma**left)
    return means


def held_out(groups: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Draw which of some groups are held out (groups,)."""
    numbers = np.random.default_rng(seed).permutation(groups)
    return np.isin(np.arange(groups), numbers[: max(round(share * groups), 1)])


class Memory:
    """What the networks see of the observations until now: ln(1 + x), and moving averages of it.

    An average is that of all until now, as long as these are less than its time constant.

    Args:
        interval_ms: From one observation to the next.
        time_constants_s: One for each average.
    """

    def __init__(self, interval_ms: float, time_constants_s: Sequence[float]) -> None:
        self.shares = [min(1.0, 1e-3 * interval_ms / each) for each in time_constants_s]
        self.reset()

    def reset(self) -> None:
        """Forget all observations."""
        self._seen, self._averages = 0, [np.zeros(()) for _ in self.shares]

    def __call__(self, observations: Observations) -> Floats:
        """Return what is seen (..., D) with the next observations (..., F)."""
        logs = np.log1p(observations.astype(np.float64))
        self._seen += 1
        self._averages = [
            old + max(share, 1.0 / self._seen) * (logs - old)
            for old, share in zip(self._averages, self.shares, strict=True)
        ]
        return np.concatenate((logs, *self._averages), axis=-1)

    def all(self, observations: Observations) -> npt.NDArray[np.float32]:
        """Return what is seen at each step (..., T, D) of episodes (..., T, F)."""
        self.reset()
        steps = range(observations.shape[-2])
        return np.stack([self(observations[..., step, :]).astype(np.float32) for step in steps], axis=-2)


def network(sizes: Sequence[int], *end: Any) -> Any:
    """Return a perceptron with tanh between its layers, and `end` after the last."""
    from torch import nn

    layers: list[Any] = [nn.Linear(sizes[0], sizes[1])]
    for wide, narrow in pairwise(sizes[1:]):
        layers += [nn.Tanh(), nn.Linear(wide, narrow)]
    return nn.Sequential(*layers, *end)


def _descend(module: Any, steps: int, rate: float, decay: float, loss: Any) -> None:
    """Minimise `loss()` of a module by gradient steps with a falling learning rate.

    Raises:
        L4SError: The loss is not finite.
    """
    from torch import optim

    optimiser = optim.AdamW(module.parameters(), rate, weight_decay=decay)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
    if not value.isfinite():
        raise L4SError(f"train {KIND}: the loss is not finite: lower the learning rate")


class Improvement:
    """One step of policy improvement: critics of what is seen in some episodes at some steps, and an actor.

    Args:
        groups: The data.
        x: What is seen (M, D), as the networks see it.
        group: In which group (M,).
        step: At which step (M,), less than S.
        held: Which groups are held out (N,).
        config: Configuration of the training.
        form: Of the actions.
    """

    def __init__(
        self,
        groups: Groups,
        x: npt.ArrayLike,
        group: npt.NDArray[np.int64],
        step: npt.NDArray[np.int64],
        held: npt.NDArray[np.bool_],
        config: Config,
        form: str = FORM,
    ) -> None:
        import torch

        self.config, self.form = config, form
        self.x = torch.as_tensor(np.asarray(x, np.float32))
        self.u = torch.tensor(groups.actions)
        self.y = torch.tensor(groups.labels)
        self._group, self._step = torch.tensor(group), torch.tensor(step)
        self.train, self.held = (torch.tensor(np.flatnonzero(part[group])) for part in (~held, held))

    def _told(self, module: Any, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the advantages (B, G) of a group's actions that a critic tells in some rows (B,), and the true."""
        import torch

        group = self._group[rows]
        actions = self.u[group]
        seen = self.x[rows, None].expand(-1, actions.shape[1], -1)
        values: torch.Tensor = module(torch.cat([seen, actions], -1))[..., 0]
        return values - values.mean(1, keepdim=True), self.y[group, :, self._step[rows]]

    def critic(self, number: int) -> Any:
        """Train the critic of a number."""
        import torch

        config, seed = self.config, 1000 * self.config.seed + number
        with seeded(seed):
            module = network((self.x.shape[-1] + self.u.shape[-1], *config.critic_hidden, 1))

            def loss() -> torch.Tensor:
                told, true = self._told(module, self.train[torch.randint(len(self.train), (config.groups,))])
                return ((told - true) ** 2).mean()

            _descend(module, config.critic_steps, config.learning_rate, config.weight_decay, loss)
        return module.requires_grad_(False)

    def r2(self, critics: Sequence[Any]) -> float:
        """Return the share of the variance within held-out groups that the mean of some critics explains."""
        import torch

        missed = total = 0.0
        for rows in torch.split(self.held[:: len(self.held) // _JUDGED + 1], 1024):
            told, (_, true) = sum(self._told(each, rows)[0] for each in critics), self._told(critics[0], rows)
            missed += float(((told / len(critics) - true) ** 2).sum())
            total += float((true**2).sum())
        return 1.0 - missed / total

    def actor(self, critics: Sequence[Any]) -> Any:
        """Train the actor."""
        import torch

        config = self.config
        idle = torch.tensor(FORMS[self.form].idle)
        with seeded(1000 * config.seed + 999):
            module = network((self.x.shape[-1], *config.actor_hidden, self.u.shape[-1]), torch.nn.Tanh())

            def loss() -> torch.Tensor:
                x = self.x[self.train[torch.randint(len(self.train), (config.batch_size,))]]
                chosen = torch.cat([x, config.reach * module(x)], 1)
                plain = torch.cat([x, idle.expand(len(x), -1)], 1)
                gains = torch.cat([each(chosen) - each(plain) for each in critics], 1)
                return (config.pessimism * gains.std(1, correction=0) - gains.mean(1)).mean()

            _descend(module, config.actor_steps, config.learning_rate, 0.0, loss)
        return module


def improvement(
    groups: Groups, interval_ms: float, held: npt.NDArray[np.bool_], config: Config
) -> tuple[Improvement, tuple[Floats, Floats]]:
    """Return the improvement on all that is seen in all episodes, and its scale (D,), (D,): that of the data."""
    x = Memory(interval_ms, config.memory_s).all(groups.observations[:, :, : groups.advantages.shape[-1]])
    scale, (group, _, step) = scale_of(x), np.indices(x.shape[:3]).reshape(3, -1)
    return Improvement(groups, standardised(x, *scale).reshape(-1, x.shape[-1]), group, step, held, config), scale


def tensors_of(actor: Any, scale: tuple[Floats, Floats]) -> dict[str, torch.Tensor]:
    """Return what an agent needs: the layers of an actor, and the scale of what it sees."""
    import torch

    layers = {f"actor.{name}": value for name, value in actor.state_dict().items()}
    return layers | {name: torch.tensor(part) for name, part in zip(("mean", "std"), scale, strict=True)}


def scale_of(seen: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Return mean and deviation (D,) of what is seen (..., D)."""
    rows = tuple(range(seen.ndim - 1))
    return seen.mean(rows, np.float64), seen.std(rows, np.float64) + 1e-6


def standardised(x: npt.NDArray[Any], mean: npt.NDArray[Any], std: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return numbers (..., D) with mean 0 and deviation 1, and bounded."""
    found: npt.NDArray[Any] = np.clip((x - mean) / std, -BOUND, BOUND)
    return found


def scaled(observations: Observations, mean: Floats, std: Floats) -> Floats:
    """Return observations (..., F) as ln(1 + x), standardised and bounded."""
    return standardised(np.log1p(observations.astype(np.float64)), mean, std)


class MovingAverage:
    """The moving average of the actions that were chosen, from the first on.

    Args:
        interval_ms: From one action to the next.
        smoothing_s: Time constant; 0: the actions themselves.
    """

    def __init__(self, interval_ms: float, smoothing_s: float) -> None:
        self.share = min(1.0, 1e-3 * interval_ms / smoothing_s) if smoothing_s else 1.0
        self.reset()

    def reset(self) -> None:
        """Forget all actions."""
        self._action: Floats | None = None

    def __call__(self, chosen: Floats) -> Floats:
        """Return the average (n, K) with what was chosen now."""
        self._action = chosen if self._action is None else self._action + self.share * (chosen - self._action)
        return self._action.copy()


def layers(tensors: Mapping[str, torch.Tensor]) -> list[tuple[Floats, Floats]]:
    """Return weights (..., outputs, inputs) and biases (..., outputs) of the layers of a saved actor."""
    names = sorted({name.rpartition(".")[0] for name in tensors if "." in name}, key=lambda name: int(name[6:]))
    arrays = {name: value.numpy().astype(np.float64) for name, value in tensors.items()}
    return [(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names]


@dataclass(frozen=True)
class Perceptron:
    """How an actor gets from observations to actions, as far as its slopes go.

    What it sees are 1 + M copies of ln(1 + observation), as it is and averaged, divided by deviations and bounded.

    Attributes:
        std: Deviations (D,), D = (1 + M) F.
        weights: Of each layer (outputs, inputs); the functions between them and at the end have slopes of 1 at most.
        shares: With which the newest observation enters each copy, once an episode runs (1 + M,).
        factor: Of the last layer's outputs in what is chosen.
        share: With which what is chosen now enters the action.
    """

    std: Floats
    weights: tuple[Floats, ...]
    shares: tuple[float, ...]
    factor: float
    share: float


class OneStepAgent:
    """A trained actor; each action is the moving average of what it chose.

    Attributes:
        name: Name in results.
        training: How it was trained.
    """

    form = FORM
    rule = NO_RULE
    kind: ClassVar[str] = KIND
    config_type: ClassVar[type[Any]] = Config
    """Of the configuration, which has `memory_s`, `reach` and `smoothing_s`."""

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], training: Mapping[str, Any]
    ) -> None:
        self.name, self.training = self.kind, dict(training)
        self._settings, self._tensors = dict(settings), dict(tensors)
        self.config: Any = convert(self.config_type, self._settings, self.kind)
        self._mean, self._std = (tensors[name].numpy().astype(np.float64) for name in ("mean", "std"))
        self._layers = layers(tensors)
        interval_ms = control_interval_ms(self)
        self._memory = Memory(interval_ms, self.config.memory_s)
        self._average = MovingAverage(interval_ms, self.config.smoothing_s)
        self.reset(1, 0)

    @classmethod
    def of(cls, stored: saved.Saved, **options: str) -> Self:
        """Make the agent from what was saved.

        Raises:
            L4SError: The configuration is of another version, or there are options.
        """
        stored.check(options)
        return cls(stored.tensors, stored.config, stored.training)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes.

        Raises:
            L4SError: `n` is not positive.
        """
        check_count(n)
        self.n = n
        self._memory.reset()
        self._average.reset()

    def act(self, obs: Observations, rewards: Floats) -> Floats:
        """Return actions (n, K); rewards are not used."""
        check_batch(obs, self.n, self.form)
        x = standardised(self._memory(obs), self._mean, self._std)
        for weight, bias in self._layers:
            x = np.tanh((x[:, None, :] * weight).sum(axis=-1) + bias)  # each row for itself, however many there are
        return self._average(self.config.reach * x)

    def perceptron(self) -> Perceptron:
        """Return what its slopes depend on."""
        weights, shares = tuple(weight for weight, _ in self._layers), (1.0, *self._memory.shares)
        return Perceptron(self._std, weights, shares, self.config.reach, self._average.share)

    def cost(self) -> dict[str, float]:
        """Return the number of the actor's parameters."""
        count = float(sum(part.size for layer in self._layers for part in layer))
        return {"parameters": count, "trainable_parameters": count}

    def save(self, folder: PathLike) -> Path:
        """Write the agent to a folder, which is replaced as a whole or not at all.

        Raises:
            L4SError: The folder cannot be written.
        """
        return saved.write(folder, kind=self.kind, config=self._settings, tensors=self._tensors, training=self.training)


def configure(given: Mapping[str, Any]) -> Config:
    """Return the configuration, complete and checked.

    Raises:
        L4SError: A key or value makes no sense.
    """
    for name in given:
        if name not in Config.__struct_fields__:
            raise unknown(f"key of the configuration of {KIND}", name, Config.__struct_fields__)
    return check(convert(Config, dict(given), KIND))


def check(config: Config) -> Config:
    """Return a configuration whose values make sense.

    Raises:
        L4SError: One makes none.
    """
    counts = config.critics, config.critic_steps, config.groups, config.actor_steps, config.batch_size
    sizes = *config.critic_hidden, *config.actor_hidden
    if min(*counts, *sizes) < 1 or config.seed < 0:
        raise L4SError(f"configuration of {KIND}: counts and sizes have to be 1 or more, and seed 0 or more")
    if not 0.0 < config.reach <= 1.0 or not 0.0 < config.held_out < 1.0:
        raise L4SError(f"configuration of {KIND}: reach and held_out have to be between 0 and 1")
    if not min(config.learning_rate, config.horizon_s, *config.memory_s) > 0.0:
        raise L4SError(f"configuration of {KIND}: learning_rate, horizon_s and memory_s have to be more than 0")
    if min(config.weight_decay, config.pessimism, config.smoothing_s) < 0.0:
        raise L4SError(f"configuration of {KIND}: weight_decay, pessimism and smoothing_s have to be 0 or more")
    return config


def train(
    dataset_id: str,
    config: Mapping[str, Any],
    out: Path,
    *,
    resume: bool = False,
    progress: shared.Progress | None = None,
    say: shared.Say | None = None,
) -> dict[str, Any]:
    """Train the agent as `l4s_gym.agents.training.Learner` describes; Ctrl-C stops it after the critic in work."""
    chosen, settings = configure(config), msgspec.to_builtins(configure(config))
    optional("torch", "baselines", "llm")
    episodes = shared.read_dataset(dataset_id, FORM)
    interval_ms = float(episodes[0].about["control_interval_ms"])
    try:
        groups = Groups.of(episodes, 1e3 * chosen.horizon_s / interval_ms)
        law = shared.options_of(episodes)
    except L4SError as error:
        raise L4SError(f"dataset {dataset_id!r}: {error}") from error
    held = held_out(len(groups.actions), chosen.held_out, chosen.seed)
    work, scale = improvement(groups, interval_ms, held, chosen)
    path = shared.start_folder(out, resume=resume)
    about = {"kind": KIND, "dataset": dataset_id, "simulator": shared.simulator_of(dataset_id), "config": settings}
    state: shared.Plain = shared.load_checkpoint(path, **about) if resume else {"critics": [], "seconds": 0.0}
    start, critics = time.monotonic() - float(state["seconds"]), []
    with shared.interruptible() as stop:
        for number in range(chosen.critics):
            if number < len(state["critics"]):
                with seeded(0):
                    module = network((work.x.shape[-1] + work.u.shape[-1], *chosen.critic_hidden, 1))
                module.load_state_dict(state["critics"][number])
                critics.append(module.requires_grad_(False))
                continue
            critics.append(work.critic(number))
            if say is not None:
                say(f"critic {number + 1}/{chosen.critics}: R2 {work.r2(critics[-1:]):.3f} on held-out groups")
            if progress is not None:
                progress((number + 1) / (chosen.critics + 1))
            if stop.asked:
                weights = [each.state_dict() for each in critics]
                shared.save_checkpoint(path, {**about, "critics": weights, "seconds": time.monotonic() - start})
                raise KeyboardInterrupt
        actor = work.actor(critics)
    done = {
        "dataset": dataset_id,
        "simulator": about["simulator"],
        "dataset_steps": sum(map(len, episodes)),
        "form": FORM,
        "control_interval_ms": interval_ms,
        "options": law,
        "steps": chosen.critics * chosen.critic_steps + chosen.actor_steps,
        "seed": chosen.seed,
        "seconds": round(time.monotonic() - start, 3),
        "metrics": {
            "steps": int(held.sum()) * math.prod(groups.advantages.shape[1:]),
            "r2": work.r2(critics),
            "r2_of_each": [work.r2([each]) for each in critics],
        },
    }
    OneStepAgent(tensors_of(actor, scale), settings, done).save(out)
    if progress is not None:
        progress(1.0)
    return done
