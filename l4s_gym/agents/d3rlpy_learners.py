"""Training of d3rlpy's algorithms: our own mini-batches, checkpoints, and metrics on held-out steps.

d3rlpy's `fit` draws each batch step by step in Python, which takes as long as the gradient, and cannot be resumed.
Here a batch is drawn by indexing whole arrays, and handed to the algorithm's `update`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from l4s_gym.agents import training as shared
from l4s_gym.agents.d3rlpy_agents import BCAgent, BCQAgent, SACAgent, ValueAgent, seeded
from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.agents.logged import Stretch, cut, split
from l4s_gym.agents.metrics import classification
from l4s_gym.agents.protocol import RULES
from l4s_gym.data.d3rlpy_io import import_d3rlpy, quiet
from l4s_gym.data.trajectory import Ints, Trajectory
from l4s_gym.errors import L4SError, unknown
from l4s_gym.forms import PACKET
from l4s_gym.schema import ACTIONS
from l4s_gym.tables import convert

Report = Callable[[int, Mapping[str, float]], None]
_LINES: Final = 10
_LEAST: Final = 1e-9


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of a training; `agents/<name>/config.toml` holds the values that differ.

    Attributes:
        steps: Gradient steps.
        batch_size: Steps, or windows, in a batch.
        seed: Seed of weights, batches and the held-out part.
        hidden: Units of the layers of the perceptron.
        rule: Decision rule of the agent, unless it is loaded with another.
        imbalance: As `l4s_gym.agents.imbalance.Imbalance`.
        held_out: Share of the episodes held out for the metrics.
        held_out_steps: Most steps that the metrics use.
        drop_missing: Leave out steps whose accumulated probability is unknown.
        allow_gaps: Allow episodes that are not consecutive.
        decision_interval: Train on every n-th step (`Trajectory.strided`), for an agent that is asked at every n-th
            packet; one that decides for control intervals is asked at each, and holds its action for n of them.
        checkpoint_every: Steps between checkpoints.
        algorithm: Fields of d3rlpy's configuration.
        temperature: For value-based agents; see `d3rlpy_agents`.
        epsilon: For value-based agents; see `d3rlpy_agents`.
        target_return: For `dt`: the return to aim for; None: the largest of the training episodes. For
            `dt_continuous`: the mean reward per second.
        horizon_s: For `dt_continuous`: time over which that mean is taken, s.
        smoothing_s: Of control intervals: time constant of the moving average of the actions, s; 0: none.
    """

    steps: int
    batch_size: int = 256
    seed: int = 0
    hidden: tuple[int, ...] = (256, 256)
    rule: str = "argmax"
    imbalance: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "none"})
    held_out: float = 0.2
    held_out_steps: int = 20_000
    drop_missing: bool = True
    allow_gaps: bool = False
    decision_interval: int = 1
    checkpoint_every: int = 1000
    algorithm: dict[str, Any] = msgspec.field(default_factory=dict)
    temperature: float = 1.0
    epsilon: float = 0.0
    target_return: float | None = None
    horizon_s: float = 5.0
    smoothing_s: float = 0.0


_IMITATORS: Final = ("DiscreteBCConfig", "BCConfig")


class D3RLPyLearner:
    """Trains one of d3rlpy's algorithms.

    Args:
        kind: Kind of the agent.
        algorithm: Name of the configuration class in `d3rlpy.algos`.
        defaults: The full setting.
        lacks: Keys of `Config` that have no meaning for it.
        able: Kinds of imbalance that it can apply.
        made: Class of its agents.

    Attributes:
        never: Keys of `Config` that have no meaning for any learner of this class.
    """

    never: ClassVar[tuple[str, ...]] = ("horizon_s", "smoothing_s")

    def __init__(
        self,
        kind: str,
        algorithm: str,
        defaults: Config,
        *,
        lacks: tuple[str, ...] = ("target_return",),
        able: tuple[str, ...] = ("none", "sample"),
        made: type[Any] = ValueAgent,
    ) -> None:
        self.kind, self.algorithm, self.defaults, self.able = kind, algorithm, defaults, able
        self._lacks, self.made, self.imitates = (*lacks, *self.never), made, algorithm in _IMITATORS

    # -- configuration

    def configure(self, given: Mapping[str, Any]) -> Config:
        """Return the configuration, complete and checked.

        Raises:
            L4SError: A key or value makes no sense.
        """
        keys = tuple(name for name in Config.__struct_fields__ if name not in self._lacks)
        for name in given:
            if name not in keys:
                raise unknown(f"key of the configuration of {self.kind}", name, keys)
        full = msgspec.to_builtins(self.defaults) | dict(given)
        full["algorithm"] = self._algorithm_table(given.get("algorithm", {}))
        if isinstance(full["imbalance"], str):
            full["imbalance"] = {"kind": full["imbalance"]}
        config = convert(Config, full, self.kind)
        Imbalance.of(config.imbalance).check(self.kind, *self.able)
        counts = (
            config.steps,
            config.batch_size,
            config.held_out_steps,
            config.checkpoint_every,
            config.decision_interval,
        )
        if min(*counts, *config.hidden) < 1 or not config.hidden or config.seed < 0:
            raise L4SError(f"configuration of {self.kind}: counts and sizes have to be 1 or more, and seed 0 or more")
        if config.rule not in RULES:
            raise unknown("decision rule", config.rule, RULES)
        return config

    def _algorithm_table(self, given: Any) -> dict[str, Any]:
        table = dict(self.defaults.algorithm)
        if not isinstance(given, Mapping):
            raise L4SError(f"configuration of {self.kind}: algorithm is a table, not {given!r}")
        for name, value in given.items():
            if name not in table:
                raise unknown(f"option of algorithm {self.kind}", name, tuple(table))
            table[name] = convert(type(table[name]), value, f"{self.kind}: algorithm.{name}")
        return table

    # -- what differs between the algorithms

    def steps_to_draw(self, logged: Trajectory) -> Ints:
        """Return the indices of the steps that a batch is drawn from."""
        return np.arange(len(logged)) if self.imitates else logged.followed

    def batch(self, logged: Trajectory, index: Ints, config: Config) -> Any:
        """Return a mini-batch of steps (B,)."""
        after = index if self.imitates else index + 1
        actions = logged.actions.reshape(len(logged), -1)
        return import_d3rlpy().dataset.TransitionMiniBatch(
            observations=logged.observations[index],
            actions=actions[index].astype(np.float32),
            rewards=logged.rewards[index, None].astype(np.float32),
            next_observations=logged.observations[after],
            next_actions=actions[after].astype(np.float32),
            terminals=np.zeros((len(index), 1), np.float32),  # an episode ends with its log, not in the network
            intervals=np.ones((len(index), 1), np.float32),
            transitions=[],
        )

    def more_fields(self, logged: Trajectory, config: Config) -> dict[str, Any]:
        """Return further fields of d3rlpy's configuration, which depend on the data."""
        d3rlpy = import_d3rlpy()
        if self.imitates:
            return {}
        mean = float(np.abs(logged.rewards).mean())
        return {"reward_scaler": d3rlpy.preprocessing.MultiplyRewardScaler(multiplier=1.0 / max(mean, _LEAST))}

    def set_loss(self, algo: Any, imbalance: Imbalance, config: Config) -> None:
        """Replace the algorithm's loss by a weighted one if `imbalance` asks for it."""
        if imbalance.kind not in ("weights", "focal"):
            return
        from d3rlpy.models.torch.imitators import ImitationLoss

        loss = imitation_loss(imbalance)
        policy = algo.impl.modules.imitator
        algo.impl.compute_loss = lambda x, action: ImitationLoss(loss=loss(policy(x).logits, action.view(-1)).mean())

    def agent(self, algo: Any, config: Config, imbalance: Imbalance, logged: Trajectory) -> Any:
        """Return the agent of a trained algorithm."""
        return self.made(algo, self.kind, config.rule, imbalance=imbalance, settings=self.plain(config))

    def outputs(self, logged: Trajectory) -> int:
        """Return the number of actions to choose from, or of numbers of an action."""
        return len(ACTIONS)

    def observation_scaler(self, logged: Trajectory) -> Any:
        """Return how observations are scaled: standardised with the training data."""
        return import_d3rlpy().preprocessing.StandardObservationScaler(
            mean=logged.observations.mean(axis=0, dtype=np.float64).astype(np.float32),
            std=logged.observations.std(axis=0, dtype=np.float64).astype(np.float32),
        )

    def imbalance(self, logged: Trajectory, config: Config) -> Imbalance:
        """Return the treatment of rare actions, with their shares in the data."""
        return Imbalance.of(config.imbalance).fitted(logged.actions)

    def form(self, dataset_id: str) -> str:
        """Return the form to train for.

        Raises:
            L4SError: The dataset is of a form that the learner cannot use.
        """
        return PACKET

    def prepared(self, logged: Trajectory, config: Config, interval_s: float) -> Trajectory:
        """Return the steps as the agent sees them, one for each of its decisions.

        Args:
            logged: The steps as logged.
            config: Configuration from `configure`.
            interval_s: Length of a control interval, s; 0 of packets.
        """
        return logged.strided(config.decision_interval)

    def judged(self, agent: Any, logged: Trajectory, index: Ints) -> dict[str, Any]:
        """Return the metrics of an agent on logged steps (B,)."""
        return classification(agent.logged_probabilities(logged, index), logged.actions[index])

    def asked(self, config: Config, form: str, interval_s: float) -> dict[str, Any]:
        """Return how often the agent is to be asked, for its `training`."""
        return {"decision_interval": config.decision_interval}

    # -- the same for all

    def plain(self, config: Config) -> dict[str, Any]:
        """Return a configuration as plain data."""
        found: dict[str, Any] = msgspec.to_builtins(config)
        return {name: value for name, value in found.items() if name not in self._lacks}

    def build(self, logged: Trajectory, config: Config) -> Any:
        """Build the algorithm with fresh weights."""
        d3rlpy = import_d3rlpy()
        kind = getattr(d3rlpy.algos, self.algorithm)
        encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=list(config.hidden))
        names = [each.name for each in dataclasses.fields(kind) if each.name.endswith("encoder_factory")]
        fields = {
            "batch_size": config.batch_size,
            "observation_scaler": self.observation_scaler(logged),
            **dict.fromkeys(names, encoder),
            **config.algorithm,
            **self.more_fields(logged, config),
        }
        algo = kind(**fields).create(device=False)
        algo.create_impl(logged.observations.shape[1:], self.outputs(logged))
        return algo

    def fit(
        self,
        logged: Trajectory,
        config: Config,
        *,
        report: Report | None = None,
        checkpoint: Path | None = None,
        state: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> tuple[Any, float]:
        """Train on the CPU; the same steps, configuration and seed give the same agent.

        Args:
            logged: The steps.
            config: Configuration from `configure`.
            report: Called after each gradient step with its number and its losses.
            checkpoint: File to write checkpoints to; None: none.
            state: Checkpoint to continue from.
            about: Further entries of the checkpoints.

        Returns:
            The agent, and the seconds of training (including those before the checkpoint).

        Raises:
            KeyboardInterrupt: Ctrl-C; the checkpoint is written.
            L4SError: The loss is not finite.
        """
        imbalance = self.imbalance(logged, config)
        steps = self.steps_to_draw(logged)
        chances = imbalance.step_probabilities(logged.actions[steps])
        edges = None if chances is None else np.cumsum(chances) / chances.sum()
        rng = np.random.default_rng(config.seed)
        with quiet(), seeded(config.seed), shared.interruptible() as stop:
            algo = self.build(logged, config)
            self.set_loss(algo, imbalance, config)
            done, seconds = 0, 0.0
            if state is not None:
                done, seconds = _restore(algo, rng, state)
            start = time.monotonic() - seconds
            for step in range(done + 1, config.steps + 1):
                if edges is None:
                    drawn = rng.integers(len(steps), size=config.batch_size)
                else:
                    drawn = np.searchsorted(edges, rng.random(config.batch_size), side="right")
                losses = algo.update(self.batch(logged, steps[drawn], config))
                if not all(np.isfinite(value) for value in losses.values()):
                    raise L4SError(f"train {self.kind}: the loss of step {step} is not finite: lower the learning rate")
                if report is not None:
                    report(step, losses)
                last = step == config.steps
                if checkpoint is not None and not last and (stop.asked or step % config.checkpoint_every == 0):
                    entries = _state(algo, rng, step, time.monotonic() - start) | dict(about or {})
                    shared.save_checkpoint(checkpoint, entries)
                if stop.asked and not last:
                    raise KeyboardInterrupt
            seconds = time.monotonic() - start
        return self.agent(algo, config, imbalance, logged), seconds

    def train(
        self,
        dataset_id: str,
        config: Mapping[str, Any],
        out: Path,
        *,
        resume: bool = False,
        progress: shared.Progress | None = None,
        say: shared.Say | None = None,
    ) -> dict[str, Any]:
        """Train the agent as `l4s_gym.agents.training.Learner` describes."""
        chosen = self.configure(config)
        import_d3rlpy()
        form = self.form(dataset_id)
        episodes = shared.read_dataset(dataset_id, form)
        interval_s = 1e-3 * float(episodes[0].about.get("control_interval_ms", 0.0))
        law = {} if form == PACKET else {"options": shared.options_of(episodes)}
        parts = split([len(episode) for episode in episodes], chosen.held_out, chosen.seed)
        try:
            options = {"drop_missing": chosen.drop_missing, "allow_gaps": chosen.allow_gaps}
            logged, held = (
                self.prepared(Trajectory.joined(cut(episodes, part), **options), chosen, interval_s) for part in parts
            )
        except L4SError as error:
            raise L4SError(f"dataset {dataset_id!r}: {error}") from error
        of = len(episodes)
        del episodes  # gigabytes
        path = shared.start_folder(out, resume=resume)
        simulator = shared.simulator_of(dataset_id)
        about = {"kind": self.kind, "dataset": dataset_id, "simulator": simulator, "config": self.plain(chosen)}
        state = shared.load_checkpoint(path, **about) if resume else None
        start, first = time.monotonic(), 0 if state is None else int(state["step"])

        def report(step: int, losses: Mapping[str, float]) -> None:
            if progress is not None:
                progress(step / chosen.steps)
            if say is not None and (step % max(chosen.steps // _LINES, 1) == 0 or step == chosen.steps):
                left_s = (time.monotonic() - start) / (step - first) * (chosen.steps - step)
                shown = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
                say(f"step {step}/{chosen.steps}, {shown}; {left_s:.0f} s left")

        agent, seconds = self.fit(logged, chosen, report=report, checkpoint=path, state=state, about=about)
        index = held.some(chosen.held_out_steps)
        done: dict[str, Any] = {
            "dataset": dataset_id,
            "simulator": simulator,
            "dataset_steps": len(logged),
            **self.asked(chosen, form, interval_s),
            **law,
            "steps": chosen.steps,
            "seed": chosen.seed,
            "seconds": round(seconds, 3),
            "held_out": [list(stretch) for stretch in parts[1]],
            "held_out_by": held_out_by(parts[1], of),
            "metrics": self.judged(agent, held, index),
        }
        agent.training = done
        agent.save(out)
        return done


def held_out_by(stretches: list[Stretch], episodes: int) -> str:
    """Describe how steps were held out."""
    if episodes == 1:
        return f"the last {stretches[0].stop - stretches[0].start:,} steps of the only episode"
    return f"{len(stretches)} of {episodes} episodes"


def imitation_loss(imbalance: Imbalance) -> Callable[[Any, Any], Any]:
    """Return the cross-entropy of each step (N,) from logits (N, 3) and actions (N,), weighted by `imbalance`."""
    import torch

    weights = torch.tensor(imbalance.weights if imbalance.kind == "weights" else np.ones(len(ACTIONS)))

    def loss(logits: Any, actions: Any) -> Any:
        chosen = actions.long()
        log_p = torch.log_softmax(logits, dim=-1).gather(1, chosen[:, None])[:, 0]
        found = -log_p * weights.to(log_p.dtype)[chosen]
        return found if imbalance.kind != "focal" else found * (1.0 - log_p.exp()).clamp(min=0.0) ** imbalance.gamma

    return loss


def _state(algo: Any, rng: np.random.Generator, step: int, seconds: float) -> dict[str, Any]:
    """Return the complete state of a training."""
    import torch

    modules = algo.impl.modules.create_checkpointer("cpu").modules
    return {
        "step": step,
        "seconds": seconds,
        "grad_step": algo.grad_step,
        "tokens": getattr(algo.impl, "_tokens", 0),
        "numpy": json.dumps(rng.bit_generator.state),
        "torch": torch.get_rng_state(),
        "modules": {name: module.state_dict() for name, module in modules.items()},
    }


def _restore(algo: Any, rng: np.random.Generator, state: Mapping[str, Any]) -> tuple[int, float]:
    """Restore the state of a training; return its step and seconds."""
    import torch

    try:
        for name, module in algo.impl.modules.create_checkpointer("cpu").modules.items():
            module.load_state_dict(state["modules"][name])
        algo.set_grad_step(state["grad_step"])
        if hasattr(algo.impl, "_tokens"):
            algo.impl._tokens = state["tokens"]  # counts for the learning rate; d3rlpy does not save it
        rng.bit_generator.state = json.loads(state["numpy"])
        torch.set_rng_state(state["torch"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise L4SError(f"checkpoint: does not fit ({str(error).splitlines()[0]}): remove it and start again") from error
    return int(state["step"]), float(state["seconds"])


_VALUES: Final[dict[str, Any]] = {"learning_rate": 3e-4, "gamma": 0.99, "n_critics": 1, "target_update_interval": 1000}

BC = D3RLPyLearner(
    "bc",
    "DiscreteBCConfig",
    Config(steps=20_000, rule="sample", allow_gaps=True, algorithm={"learning_rate": 1e-3, "beta": 0.0}),
    lacks=("target_return", "temperature", "epsilon"),
    able=("none", "weights", "focal", "sample"),
    made=BCAgent,
)
CQL = D3RLPyLearner("cql", "DiscreteCQLConfig", Config(steps=100_000, algorithm={**_VALUES, "alpha": 1.0}))
BCQ = D3RLPyLearner(
    "bcq",
    "DiscreteBCQConfig",
    Config(steps=100_000, algorithm={**_VALUES, "action_flexibility": 0.3, "beta": 0.0}),
    made=BCQAgent,
)
DQN = D3RLPyLearner("dqn", "DQNConfig", Config(steps=100_000, algorithm=_VALUES))
DOUBLE_DQN = D3RLPyLearner("double_dqn", "DoubleDQNConfig", Config(steps=100_000, algorithm=_VALUES))
SAC = D3RLPyLearner(
    "sac",
    "DiscreteSACConfig",
    Config(
        steps=100_000,
        algorithm={
            "actor_learning_rate": 3e-4,
            "critic_learning_rate": 3e-4,
            "temp_learning_rate": 3e-4,
            "gamma": 0.99,
            "n_critics": 2,
            "initial_temperature": 1.0,
            "target_update_interval": 1000,
        },
    ),
    made=SACAgent,
)
