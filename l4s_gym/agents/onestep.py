"""The agent `onestep`: sets the parameters of the native law by one step of policy improvement on logged data.

Critics are regressions on the returns that followed when the law's parameters were drawn, without bootstrapping: they
tell what the behaviour earns after an action, not what the best policy would. An actor then climbs the critics, once
(Brandfonbrener et al., "Offline RL without off-policy evaluation", NeurIPS 2021), and pessimistically: what counts is
their gain over the native law, its mean minus a multiple of its deviation (ensembles for pessimism: An et al.,
"Uncertainty-based offline reinforcement learning with diversified Q-ensemble", NeurIPS 2021).

What scenario and seed do to a return is many times what an action does. So the data comes in groups, episodes of one
scenario and seed that differ in their actions, and the critics learn the difference of a return from the group's mean:
a regression with fixed effects. Only steps at which actions were drawn are used, where an action tells nothing about
the past; later the state shows which action caused it.

An action is worth what it earns while it is held, so the agent moves slowly to the one that the actor chooses.
PyTorch trains; NumPy decides.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from l4s_gym.agents import saved
from l4s_gym.agents import training as shared
from l4s_gym.agents.d3rlpy_agents import seeded
from l4s_gym.agents.protocol import NO_RULE, Floats, Observations, check_batch, check_count
from l4s_gym.data.files import PathLike
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import optional
from l4s_gym.forms import FORMS, INTERVAL_MS
from l4s_gym.tables import convert

if TYPE_CHECKING:
    import torch

KIND: Final = "onestep"
FORM: Final = "parameters"
BOUND: Final = 3.0
"""Most deviations from the mean that the networks see."""


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
        gamma: Discount per step.
        pessimism: Deviations of the critics' gains that the actor takes off their mean.
        smoothing_s: Time constant of the moving average of the actions, s; 0: none.
        held_out: Share of the groups held out for the metrics.
    """

    seed: int = 0
    critics: int = 4
    critic_hidden: tuple[int, ...] = (64, 64)
    critic_steps: int = 3000
    groups: int = 64
    weight_decay: float = 0.3
    actor_hidden: tuple[int, ...] = (16,)
    actor_steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 2e-3
    gamma: float = 0.997
    pessimism: float = 2.0
    smoothing_s: float = 4.0
    held_out: float = 0.2


@dataclass(frozen=True)
class Draws:
    """Draws of actions: M times, each in G episodes of one scenario and seed.

    Attributes:
        observations: What was observed then (M, G, F).
        actions: What was drawn (M, G, K).
        advantages: Discounted mean of the rewards from then on, minus that of the group (M, G).
        group: Number of the group (M,).
    """

    observations: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float64]
    group: npt.NDArray[np.int64]


def draws(episodes: Sequence[Trajectory], gamma: float) -> Draws:
    """Find where actions were drawn in a dataset.

    Args:
        episodes: The episodes, groups of which have scenario, discipline and seed in common.
        gamma: Discount per step.

    Raises:
        L4SError: There are no groups.
    """
    groups: dict[tuple[str, ...], list[Trajectory]] = {}
    for episode in episodes:
        key = tuple(str(episode.about[name]) for name in ("scenario_json", "aqm", "seed"))
        groups.setdefault(key, []).append(episode)
    size = min(map(len, groups.values()))
    if size < 2 or len(groups) < 2:
        raise L4SError("no two groups of episodes with one scenario and seed: use one as `tuned` is, with group = 8")
    horizon = round(1.0 / (1.0 - gamma))
    found: list[tuple[npt.NDArray[Any], ...]] = []
    for number, group in enumerate(groups.values()):
        members, steps = group[:size], min(map(len, group))
        actions = np.stack([each.actions[:steps] for each in members])  # (G, T, K)
        drawn = np.r_[True, (actions[:, 1:] != actions[:, :-1]).any(axis=(0, 2))]
        at = np.flatnonzero(drawn & (np.arange(steps) <= max(steps - horizon // 2, 0)))
        rewards = np.stack([each.cut(0, steps).returns_to_go(gamma)[at] for each in members], axis=1)  # (m, G)
        means = rewards * ((1.0 - gamma) / (1.0 - gamma ** (steps - at)))[:, None]
        seen = np.stack([each.observations[at] for each in members], axis=1)
        found.append(
            (seen, actions[:, at].swapaxes(0, 1), means - means.mean(axis=1, keepdims=True), np.full(len(at), number))
        )
    return Draws(*map(np.concatenate, zip(*found, strict=True)))


def _network(sizes: Sequence[int], *end: Any) -> Any:
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


class _Training:
    """The data of a training as tensors, and its two kinds of network."""

    def __init__(self, found: Draws, config: Config) -> None:
        import torch

        self.config = config
        seen = np.log1p(found.observations.astype(np.float64))
        self.mean, self.std = seen.mean(axis=(0, 1)), seen.std(axis=(0, 1)) + 1e-6
        self.x = torch.tensor(scaled(found.observations, self.mean, self.std), dtype=torch.float32)
        self.u = torch.tensor(found.actions)
        self.y = torch.tensor(found.advantages / (found.advantages.std() + 1e-12), dtype=torch.float32)
        groups = np.random.default_rng(config.seed).permutation(int(found.group.max()) + 1)
        held = np.isin(found.group, groups[: max(round(config.held_out * len(groups)), 1)])
        self.train, self.held = (torch.tensor(np.flatnonzero(part)) for part in (~held, held))

    def _drawn(self, module: Any, index: torch.Tensor) -> torch.Tensor:
        """Return the advantages (B, G) that a critic tells at some of the times (B,)."""
        import torch

        values: torch.Tensor = module(torch.cat([self.x[index], self.u[index]], -1))[..., 0]
        return values - values.mean(1, keepdim=True)

    def critic(self, number: int) -> Any:
        """Train the critic of a number."""
        import torch

        config, seed = self.config, 1000 * self.config.seed + number
        with seeded(seed):
            module = _network((self.x.shape[-1] + self.u.shape[-1], *config.critic_hidden, 1))

            def loss() -> torch.Tensor:
                index = self.train[torch.randint(len(self.train), (config.groups,))]
                return ((self._drawn(module, index) - self.y[index]) ** 2).mean()

            _descend(module, config.critic_steps, config.learning_rate, config.weight_decay, loss)
        return module.requires_grad_(False)

    def r2(self, critics: Sequence[Any]) -> float:
        """Return the share of the variance within held-out groups that the mean of some critics explains."""
        told, true = sum(self._drawn(each, self.held) for each in critics) / len(critics), self.y[self.held]
        return float(1.0 - ((told - true) ** 2).mean() / (true**2).mean())

    def actor(self, critics: Sequence[Any]) -> Any:
        """Train the actor."""
        import torch

        config, states = self.config, self.x[self.train].flatten(0, 1)
        idle = torch.tensor(FORMS[FORM].idle)
        with seeded(1000 * config.seed + 999):
            module = _network((states.shape[-1], *config.actor_hidden, self.u.shape[-1]), torch.nn.Tanh())

            def loss() -> torch.Tensor:
                x = states[torch.randint(len(states), (config.batch_size,))]
                chosen, plain = torch.cat([x, module(x)], 1), torch.cat([x, idle.expand(len(x), -1)], 1)
                gains = torch.cat([each(chosen) - each(plain) for each in critics], 1)
                return (config.pessimism * gains.std(1, correction=0) - gains.mean(1)).mean()

            _descend(module, config.actor_steps, config.learning_rate, 0.0, loss)
        return module


def scaled(observations: Observations, mean: Floats, std: Floats) -> Floats:
    """Return observations (..., F) as the networks see them: ln(1 + x), standardised and bounded."""
    return np.clip((np.log1p(observations.astype(np.float64)) - mean) / std, -BOUND, BOUND)


class OneStepAgent:
    """A trained actor; each action is the moving average of what it chose.

    Attributes:
        name: Name in results.
        training: How it was trained.
    """

    form = FORM
    rule = NO_RULE

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], training: Mapping[str, Any]
    ) -> None:
        self.name, self.training, self._settings, self._tensors = KIND, dict(training), dict(settings), dict(tensors)
        self.config = convert(Config, self._settings, KIND)
        arrays = {name: value.numpy().astype(np.float64) for name, value in tensors.items()}
        self._mean, self._std = arrays["mean"], arrays["std"]
        names = sorted({name.rpartition(".")[0] for name in arrays if "." in name}, key=lambda name: int(name[6:]))
        self._layers = [(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names]
        interval_s = 1e-3 * float(training.get("control_interval_ms", INTERVAL_MS))
        self._share = min(1.0, interval_s / self.config.smoothing_s) if self.config.smoothing_s else 1.0
        self.reset(1, 0)

    @classmethod
    def of(cls, stored: saved.Saved, **options: str) -> Self:
        """Make the agent from what was saved.

        Raises:
            L4SError: The configuration is of another version, or there are options.
        """
        for option in options:
            raise unknown(f"option of {KIND}", option, ())
        if not stored.config:
            raise L4SError(f"{stored.path}: has no configuration: train it again")
        return cls(stored.tensors, stored.config, stored.training)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes.

        Raises:
            L4SError: `n` is not positive.
        """
        check_count(n)
        self.n = n
        self._action: Floats | None = None

    def act(self, obs: Observations, rewards: Floats) -> Floats:
        """Return actions (n, K); rewards are not used."""
        check_batch(obs, self.n, self.form)
        x = scaled(obs, self._mean, self._std)
        for weight, bias in self._layers:
            x = np.tanh((x[:, None, :] * weight).sum(axis=-1) + bias)  # each row for itself, however many there are
        self._action = x if self._action is None else self._action + self._share * (x - self._action)
        return self._action.copy()

    def cost(self) -> dict[str, float]:
        """Return the number of the actor's parameters."""
        count = float(sum(part.size for layer in self._layers for part in layer))
        return {"parameters": count, "trainable_parameters": count}

    def save(self, folder: PathLike) -> Path:
        """Write the agent to a folder, which is replaced as a whole or not at all.

        Raises:
            L4SError: The folder cannot be written.
        """
        return saved.write(folder, kind=KIND, config=self._settings, tensors=self._tensors, training=self.training)


def configure(given: Mapping[str, Any]) -> Config:
    """Return the configuration, complete and checked.

    Raises:
        L4SError: A key or value makes no sense.
    """
    for name in given:
        if name not in Config.__struct_fields__:
            raise unknown(f"key of the configuration of {KIND}", name, Config.__struct_fields__)
    config = convert(Config, dict(given), KIND)
    counts = config.critics, config.critic_steps, config.groups, config.actor_steps, config.batch_size
    sizes = *config.critic_hidden, *config.actor_hidden
    if min(*counts, *sizes) < 1 or config.seed < 0:
        raise L4SError(f"configuration of {KIND}: counts and sizes have to be 1 or more, and seed 0 or more")
    if not 0.0 < config.gamma < 1.0 or not 0.0 < config.held_out < 1.0:
        raise L4SError(f"configuration of {KIND}: gamma and held_out have to be between 0 and 1")
    if min(config.weight_decay, config.pessimism, config.smoothing_s) < 0.0 or not config.learning_rate > 0.0:
        raise L4SError(f"configuration of {KIND}: learning_rate has to be more than 0, other numbers 0 or more")
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
    torch = optional("torch", "baselines", "llm")
    episodes = shared.read_dataset(dataset_id, FORM)
    try:
        work = _Training(draws(episodes, chosen.gamma), chosen)
    except L4SError as error:
        raise L4SError(f"dataset {dataset_id!r}: {error}") from error
    path = shared.start_folder(out, resume=resume)
    about = {"kind": KIND, "dataset": dataset_id, "simulator": shared.simulator_of(dataset_id), "config": settings}
    state: shared.Plain = shared.load_checkpoint(path, **about) if resume else {"critics": [], "seconds": 0.0}
    start, critics = time.monotonic() - float(state["seconds"]), []
    with shared.interruptible() as stop:
        for number in range(chosen.critics):
            if number < len(state["critics"]):
                with seeded(0):
                    module = _network((work.x.shape[-1] + work.u.shape[-1], *chosen.critic_hidden, 1))
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
    tensors = {f"actor.{name}": value for name, value in actor.state_dict().items()}
    tensors |= {"mean": torch.tensor(work.mean), "std": torch.tensor(work.std)}
    done = {
        "dataset": dataset_id,
        "simulator": about["simulator"],
        "dataset_steps": sum(map(len, episodes)),
        "form": FORM,
        "control_interval_ms": float(episodes[0].about["control_interval_ms"]),
        "steps": chosen.critics * chosen.critic_steps + chosen.actor_steps,
        "seed": chosen.seed,
        "seconds": round(time.monotonic() - start, 3),
        "metrics": {
            "steps": work.y[work.held].numel(),
            "r2": work.r2(critics),
            "r2_of_each": [work.r2([each]) for each in critics],
        },
    }
    OneStepAgent(tensors, settings, done).save(out)
    if progress is not None:
        progress(1.0)
    return done
