"""The agent `es`: the actor of `onestep`, trained or tuned in closed loop by an evolution strategy.

Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning" (2017): the gradient of the
expected return is estimated from pairs of actors whose weights differ from the present ones by the same noise, plus and
minus, and followed by Adam. What differs: all actors of a generation run in the same scenarios with the same seeds, so
that the traffic cancels in their differences (common random numbers); a return counts by the native law's in the same
episode, which runs beside; and what is kept is the average of the weights over the later generations.

It begins with an agent that is trained offline on a dataset, or without one where it does nothing: with the native law.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from l4s_gym.agents import onestep, online, saved
from l4s_gym.agents import training as shared
from l4s_gym.agents.protocol import Floats
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.sim import layout
from l4s_gym.sim.scenario import OptionTables
from l4s_gym.tables import convert

KIND: Final = "es"
START: Final = f"{saved.CHECKPOINT}-onestep"
"""Name of the offline agent's folder in that of an unfinished training."""
LEAST: Final = 0.2
"""Least mean reward by which a return is divided: where the load is low, the native law's tells nothing."""
_BETAS: Final = 0.9, 0.99
"""Of Adam."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of a training; the defaults are the full setting.

    Attributes:
        seed: Seed of the weights, of the noise and of the episodes.
        generations: Steps of the strategy.
        pairs: Pairs of actors in a generation.
        episodes: Episodes of each of them, in scenarios and with seeds that all have in common.
        episode_s: Length of an episode, s.
        control_interval_ms: Length of a control interval, simulated ms; with a dataset, that of the data.
        sigma: Deviation of the noise on the weights.
        learning_rate: Of Adam.
        averaged: Share of the generations, the last ones, over which the weights are averaged.
        actor_hidden: Units of the actor's hidden layers, none for a linear one.
        memory_s: Time constants of the moving averages of the observations, s.
        reach: Largest number of an action.
        smoothing_s: Time constant of the moving average of the actions, s; 0: none.
        onestep: Configuration of the offline training (`l4s_gym.agents.onestep.Config`); with a dataset, its actor,
            memory, reach and smoothing are in place of those above.
    """

    seed: int = 0
    generations: int = 80
    pairs: int = 8
    episodes: int = 16
    episode_s: float = 20.0
    control_interval_ms: float = 100.0
    sigma: float = 0.1
    learning_rate: float = 0.03
    averaged: float = 0.5
    actor_hidden: tuple[int, ...] = ()
    memory_s: tuple[float, ...] = ()
    reach: float = 1.0
    smoothing_s: float = 1.0
    onestep: dict[str, Any] = {}


class EvolvedAgent(onestep.OneStepAgent):
    """A trained actor, which decides as `onestep` does."""

    kind = KIND
    config_type = Config


def configure(given: Mapping[str, Any]) -> Config:
    """Return the configuration, complete and checked.

    Raises:
        L4SError: A key or value makes no sense.
    """
    config = convert(Config, dict(given), KIND)
    onestep.configure(config.onestep)
    if min(config.generations, config.pairs, config.episodes, *config.actor_hidden) < 1 or config.seed < 0:
        raise L4SError(f"configuration of {KIND}: counts and sizes have to be 1 or more, and seed 0 or more")
    if min(config.episode_s, config.control_interval_ms, config.sigma, config.learning_rate) <= 0.0:
        raise L4SError(f"configuration of {KIND}: lengths, sigma and learning_rate have to be more than 0")
    if config.smoothing_s < 0.0 or not min(config.averaged, config.reach, *config.memory_s) > 0.0:
        raise L4SError(
            f"configuration of {KIND}: smoothing_s has to be 0 or more, averaged, reach and memory_s above 0"
        )
    if max(config.averaged, config.reach) > 1.0:
        raise L4SError(f"configuration of {KIND}: averaged and reach have to be at most 1")
    return config


class _Training:
    """The environments of a training, and the actors of a generation in them."""

    def __init__(self, scenarios: str, config: Config, options: OptionTables) -> None:
        self.config = config
        self.actors = 2 * config.pairs + 1
        interval = {"control_interval_ms": config.control_interval_ms, "autoreset_mode": "disabled"}
        self.env = online.environment(
            onestep.FORM, scenarios, self.actors * config.episodes, config.episode_s, options, **interval
        )
        self.names = [each.name for each in self.env.batch.scenarios]

    def begin(self) -> dict[str, Any]:
        """Return the tensors of an actor that does nothing yet: its last layer is zero."""
        import torch

        rng = np.random.default_rng([self.config.seed, 0])
        steps = round(1e3 * self.config.episode_s / self.config.control_interval_ms) - 1
        mean, std, _ = online.statistics(self.env, onestep.FORM, steps, rng)
        mean, std = (np.tile(part, 1 + len(self.config.memory_s)) for part in (mean, std))
        form = self.env.form
        sizes = [len(mean), *self.config.actor_hidden, len(form.low)]
        found: dict[str, Any] = {"mean": torch.tensor(mean), "std": torch.tensor(std)}
        for number, (n, m) in enumerate(pairwise(sizes)):
            last = number == len(sizes) - 2
            weight = np.zeros((m, n)) if last else rng.normal(size=(m, n)) / np.sqrt(n)
            found[f"actor.{2 * number}.weight"] = torch.tensor(weight, dtype=torch.float32)
            found[f"actor.{2 * number}.bias"] = torch.zeros(m)
        return found

    def generation(self, tensors: Mapping[str, Any], weights: Floats, number: int) -> tuple[Floats, float]:
        """Return the estimated gradient (P,) at some weights (P,), and the mean score of the actors."""
        config = self.config
        rng = np.random.default_rng([config.seed, 1 + number])
        noise = rng.normal(size=(config.pairs, len(weights)))
        members = weights + config.sigma * np.concatenate([noise, -noise, np.zeros((1, len(weights)))])
        returns = self.returns(tensors, members, rng)
        least = LEAST * config.episode_s
        gains = ((returns[:-1] - returns[-1]) / np.maximum(returns[-1], least)).mean(axis=1)  # (2 * pairs,)
        differences = gains[: config.pairs] - gains[config.pairs :]
        return differences @ noise / (2.0 * config.sigma * config.pairs), 100.0 * float(1.0 + gains.mean())

    def returns(self, tensors: Mapping[str, Any], members: Floats, rng: np.random.Generator) -> Floats:
        """Return the returns (actors, episodes) in the same episodes; the last actor does nothing."""
        config, env, n = self.config, self.env, self.config.episodes
        every = {name: each.repeat_interleave(n, 0) for name, each in unflat(tensors, members).items()}
        training = {"control_interval_ms": config.control_interval_ms}
        agent = EvolvedAgent({**tensors, **every}, msgspec.to_builtins(config), training)
        agent.reset(env.num_envs, 0)
        times = -(-n // len(self.names))
        names = np.concatenate([rng.permutation(self.names) for _ in range(times)])[:n].tolist()
        seeds = online.seeds(rng, n).tolist()
        obs, _ = env.reset(seed=seeds * self.actors, options={"scenario": names * self.actors})
        reward, status = env.buffers["reward"], env.buffers["status"]
        total, open_ = np.zeros(env.num_envs), np.ones(env.num_envs, bool)
        while open_.any():
            actions = agent.act(obs, reward)
            actions[-n:] = env.form.idle
            env.go_on(actions)
            np.add(total, reward, out=total, where=open_)
            np.less(status, layout.TERMINATED, out=open_)
        return total.reshape(self.actors, n)


def flat(tensors: Mapping[str, Any]) -> Floats:
    """Return the actor's weights in one row (P,)."""
    return np.concatenate([each.numpy().astype(np.float64).ravel() for name, each in tensors.items() if "." in name])


def unflat(tensors: Mapping[str, Any], rows: npt.ArrayLike) -> dict[str, Any]:
    """Return rows (..., P) as the tensors of actors (..., shape of the tensor)."""
    import torch

    given, found, at = torch.tensor(np.asarray(rows), dtype=torch.float32), {}, 0
    for name, each in tensors.items():
        if "." in name:
            found[name] = given[..., at : at + each.numel()].reshape(*given.shape[:-1], *each.shape)
            at += each.numel()
    return found


def _offline(dataset: str, config: Config, folder: Path, say: shared.Say | None) -> saved.Saved:
    """Train the offline agent in a folder, or take the one that is there."""
    if not (folder / saved.ABOUT).is_file():
        resume = (folder / shared.CHECKPOINT).is_file()
        onestep.train(dataset, {"seed": config.seed, **config.onestep}, folder, resume=resume, say=say)
    return saved.read(folder, onestep.KIND)


def train(
    scenarios: str,
    config: Mapping[str, Any],
    out: Path,
    *,
    dataset: str = "",
    resume: bool = False,
    progress: shared.Progress | None = None,
    say: shared.Say | None = None,
) -> dict[str, Any]:
    """Train the agent as `l4s_gym.agents.training.Learner` describes; Ctrl-C stops it after the present generation."""
    torch, chosen = optional("torch", "baselines", "llm"), configure(config)
    path = shared.start_folder(out, resume=resume)
    told = {**online.about(scenarios, onestep.FORM, chosen.seed), **({"dataset": dataset} if dataset else {})}
    about = {"kind": KIND, "config": msgspec.to_builtins(chosen), **told}
    state: shared.Plain = {"start": {}, "offline": {}, "options": {}, "seconds": 0.0, "scores": []}
    if resume:
        state = shared.load_checkpoint(path, **about)
    begun = time.monotonic() - float(state["seconds"])

    def keep() -> None:
        shared.save_checkpoint(path, {**about, **state, "seconds": time.monotonic() - begun})

    if dataset and not state["start"]:
        keep()
        offline = _offline(dataset, chosen, out / START, say)
        state["start"], state["options"] = offline.tensors, offline.training["options"]
        state["offline"] = {name: offline.config[name] for name in ("actor_hidden", "memory_s", "reach", "smoothing_s")}
        state["offline"]["control_interval_ms"] = offline.training["control_interval_ms"]
    chosen = msgspec.structs.replace(chosen, **state["offline"])
    work = _Training(scenarios, chosen, state["options"])
    if not state["start"]:
        state["start"] = work.begin()
    start = state["start"]
    if "rows" not in state:  # weights, their sum over the later generations, and the moments of Adam
        state["rows"] = torch.zeros((4, len(flat(start))), dtype=torch.float64)
        state["rows"][0] = torch.tensor(flat(start))
    rows, first = state["rows"].numpy(), round((1.0 - chosen.averaged) * chosen.generations)
    first = min(first, chosen.generations - 1)

    def do(number: int) -> str:
        gradient, score = work.generation(start, rows[0], number)
        _climb(rows, gradient, number, chosen.learning_rate)
        if number >= first:
            rows[1] += rows[0] / (chosen.generations - first)
        state["scores"].append(score)
        return f"{score:.1f}, where the native law has 100"

    done_before = len(state["scores"])
    online.rounds(do, keep, done_before, chosen.generations, progress=progress, say=say, name="generation")
    steps = work.env.num_envs * chosen.generations * chosen.episode_s * 1e3 / chosen.control_interval_ms
    done = {
        **told,
        "control_interval_ms": chosen.control_interval_ms,
        "options": state["options"],
        "steps": chosen.generations,
        "seconds": round(time.monotonic() - begun, 3),
        "metrics": {"steps": round(steps), "scores": state["scores"]},
    }
    EvolvedAgent({**start, **unflat(start, rows[1])}, msgspec.to_builtins(chosen), done).save(out)
    return done


def _climb(rows: Floats, gradient: Floats, number: int, rate: float) -> None:
    """Take a step of Adam up the gradient (P,); `rows` (4, P) are weights, another, and the two moments."""
    betas = np.array(_BETAS)[:, None]
    rows[2:] += (1.0 - betas) * (np.stack([gradient, gradient**2]) - rows[2:])
    mean, square = rows[2:] / (1.0 - betas ** (number + 1))
    rows[0] += rate * mean / (np.sqrt(square) + 1e-12)
