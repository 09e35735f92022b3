"""What the published agents that are trained share: saving and loading, and training in rounds of episodes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.agents import online, saved
from l4s_gym.agents import training as shared
from l4s_gym.agents.protocol import NO_RULE, Floats, Observations, check_count
from l4s_gym.data.files import PathLike
from l4s_gym.errors import L4SError
from l4s_gym.rewards import DEFAULT
from l4s_gym.tables import convert


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all configurations have; the defaults are the full setting.

    Attributes:
        seed: Seed of everything that is drawn.
        rounds: Rounds of episodes.
        envs: Episodes in a round, side by side.
        seconds: Length of each.
    """

    seed: int = 0
    rounds: int = 40
    envs: int = 32
    seconds: float = 20.0


def configure(kind: type[Any], given: Mapping[str, Any], name: str) -> Any:
    """Return the configuration of a kind of agent, complete and checked.

    Raises:
        L4SError: A key or value makes no sense.
    """
    config = convert(kind, dict(given), name)
    if config.seed < 0:
        raise L4SError(f"configuration of {name}: seed = {config.seed}: give 0 or more")
    for key, value in msgspec.to_builtins(config).items():
        if key not in ("seed", "log_std") and isinstance(value, int | float) and not value > 0:
            raise L4SError(f"configuration of {name}: {key} = {value}: give more than 0")
    return config


def seeds(config: Config, number: int) -> list[int]:
    """Return the seeds of the episodes of a round."""
    return [int(seed) for seed in online.seeds(np.random.default_rng([config.seed, number]), config.envs)]


class Published:
    """An agent that decides for control intervals, from tensors.

    Attributes:
        kind: Name in `l4s_gym.agents.registry.KINDS`.
        form: In which it decides.
        configuration: Type of its configuration.
        name: Name in results.
        training: How it was trained.
        config: Configuration of the training.
    """

    kind: ClassVar[str]
    form: str
    configuration: ClassVar[type[Any]]
    rule = NO_RULE

    def __init__(self, tensors: Mapping[str, Any], settings: Mapping[str, Any], training: Mapping[str, Any]) -> None:
        self.name, self.training, self._settings, self._tensors = self.kind, dict(training), dict(settings), tensors
        self.config = configure(self.configuration, settings, self.kind)
        self.arrays = {name: value.numpy().astype(np.float64) for name, value in tensors.items()}
        self.interval_s = 1e-3 * float(training.get("control_interval_ms", forms.INTERVAL_MS))
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

    def act(self, obs: Observations, rewards: Floats) -> npt.NDArray[Any]:
        """Return actions, as `l4s_gym.agents.protocol.Agent` describes them."""
        raise NotImplementedError

    def cost(self) -> dict[str, float]:
        """Return the number of learned numbers that it decides by."""
        count = float(sum(part.size for part in self.arrays.values()))
        return {"parameters": count, "trainable_parameters": count}

    def save(self, folder: PathLike) -> Path:
        """Write the agent to a folder, which is replaced as a whole or not at all.

        Raises:
            L4SError: The folder cannot be written.
        """
        return saved.write(
            folder, kind=self.kind, config=self._settings, tensors=dict(self._tensors), training=self.training
        )


class Work(Protocol):
    """A training in rounds; a round depends on its number and on the state alone.

    Attributes:
        steps: Decisions so far, or samples that were learned from.
    """

    steps: int

    def round(self, number: int) -> dict[str, float]:
        """Do a round; return figures of it."""
        ...

    def state(self) -> shared.Plain:
        """Return the state: tensors and plain data."""
        ...

    def restore(self, state: shared.Plain) -> None:
        """Go back to a state."""
        ...

    def tensors(self) -> dict[str, Any]:
        """Return what was learned so far."""
        ...


class Episodes:
    """Episodes side by side in which an interval form decides, a new set for each round.

    Attributes:
        env: The native vector environment.
    """

    def __init__(self, form: str, scenarios: str, config: Config, reward: str = DEFAULT) -> None:
        self.env = online.environment(
            form, scenarios, config.envs, config.seconds, reward=reward, autoreset_mode="disabled"
        )
        self._config = config

    def play(self, number: int, decide: Any) -> Iterator[tuple[Observations, npt.NDArray[np.float64]]]:
        """Play the episodes of a round.

        Args:
            number: Number of the round, which sets scenarios and traffic.
            decide: Called with observations (n, F); returns actions (n, K).

        Yields:
            After each interval what was then observed (n, F), and the rewards (n,).
        """
        obs, _ = self.env.reset(seed=seeds(self._config, number))
        over = False
        while not over:
            obs, rewards, terminated, truncated, _ = self.env.step(decide(obs))
            over = bool((terminated | truncated).any())
            yield obs, rewards


class Learner:
    """Trains a published agent as `l4s_gym.agents.training.Learner` describes; Ctrl-C stops it after the round."""

    def __init__(self, agent: type[Published], work: Any) -> None:
        """Set the agent, and what makes a `Work`, called with the scenarios and the configuration."""
        self._agent, self._work = agent, work

    def configure(self, given: Mapping[str, Any]) -> Any:
        """Return the configuration, complete and checked; errors as `configure`."""
        return configure(self._agent.configuration, given, self._agent.kind)

    def train(
        self,
        source: str,
        config: Mapping[str, Any],
        out: Path,
        *,
        resume: bool = False,
        progress: shared.Progress | None = None,
        say: shared.Say | None = None,
    ) -> dict[str, Any]:
        """Train in the scenarios `source`."""
        chosen = self.configure(config)
        settings = msgspec.to_builtins(chosen)
        told = online.about(source, getattr(chosen, "form", "") or self._agent.form, chosen.seed)
        about = {"kind": self._agent.kind, "config": settings, **told}
        path = shared.start_folder(out, resume=resume)
        state: shared.Plain = {"round": 0, "figures": {}, "seconds": 0.0}
        if resume:
            state = shared.load_checkpoint(path, **about)
        begun = time.monotonic() - float(state["seconds"])
        work: Work = self._work(source, chosen)
        if resume:
            work.restore(state["work"])

        def do(number: int) -> str:
            state.update(figures=work.round(number), round=number + 1)
            return ", ".join(f"{name} {value:.4g}" for name, value in state["figures"].items())

        def keep() -> None:
            now = {"work": work.state(), "seconds": time.monotonic() - begun}
            shared.save_checkpoint(path, {**about, **state, **now})

        online.rounds(do, keep, state["round"], chosen.rounds, progress=progress, say=say)
        done = {
            **told,
            "control_interval_ms": forms.INTERVAL_MS,
            "steps": work.steps,
            "seconds": round(time.monotonic() - begun, 3),
            "metrics": {"steps": work.steps, **state["figures"]},
        }
        self._agent(work.tensors(), settings, done).save(out)
        return done
