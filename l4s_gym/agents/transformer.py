"""The agent `dt`: d3rlpy's discrete decision transformer, for many environments at once.

It sees the last K steps as (return-to-go, observation, action), and is conditioned on a return: at each decision
`target_return` minus the rewards so far. d3rlpy's own stateful wrapper serves one environment;
here a batch of windows goes through the model in one pass. Timesteps start again after `max_timestep`, as in
`l4s_gym.data.d3rlpy_io.ReturnSlicer`.

d3rlpy's loss counts the padding before the start of an episode as "enqueue"; ours leaves it out. It counts each step
of a window, but with ``imbalance.kind = "sample"`` only the last one, which is the drawn one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from l4s_gym.agents import saved
from l4s_gym.agents.d3rlpy_agents import D3RLPyAgent, number, restore
from l4s_gym.agents.d3rlpy_learners import Config, D3RLPyLearner, imitation_loss
from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.agents.protocol import Actions, Floats, Observations, check_batch
from l4s_gym.data.d3rlpy_io import import_d3rlpy
from l4s_gym.data.trajectory import Ints, Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, OBSERVED

_CHUNK: Final = 256


class DTAgent(D3RLPyAgent):
    """A trained decision transformer.

    Attributes:
        target_return: The return to aim for; the option `target`.
    """

    parts: ClassVar[tuple[str, ...]] = ("transformer",)
    options: ClassVar[tuple[str, ...]] = ("target",)

    def __init__(self, algo: Any, kind: str = "dt", rule: str | None = None, *, target: float, **more: Any) -> None:
        super().__init__(algo, kind, rule, **more)
        given = (more.get("options") or {}).get("target")
        self.target_return = float(target) if given is None else number(kind, "target", given)
        self.length: int = algo.config.context_size
        self.max_timestep: int = algo.config.max_timestep
        self._model = self._modules["transformer"]
        self._start(1)

    @classmethod
    def of(cls, stored: saved.Saved, rule: str | None = None, **options: Any) -> Self:
        """Make the agent from what was saved; see `D3RLPyAgent.of`."""
        return cls(
            restore(stored, cls.parts),
            stored.kind,
            rule or stored.config.get("rule"),
            target=stored.config["target_return"],
            imbalance=Imbalance.of(stored.config["imbalance"]),
            settings=stored.config["settings"],
            training=stored.training,
            options=options,
        )

    def extra_config(self) -> dict[str, Any]:
        """Return the return to aim for."""
        return {"target_return": self.target_return}

    def _start(self, n: int) -> None:
        # Twice as long as a window: rows are appended, and moved to the front once in K steps.
        rows = 2 * self.length
        self._held: dict[str, npt.NDArray[Any]] = {
            "observations": np.zeros((n, rows, len(OBSERVED)), np.float32),
            "actions": np.zeros((n, rows), np.int64),
            "returns_to_go": np.zeros((n, rows), np.float32),
            "timesteps": np.zeros((n, rows), np.int64),
            "mask": np.zeros((n, rows), np.float32),
        }
        self._end = self.length  # the rows before it were seen; at first they are padding
        self._step = 0
        self._rest = np.full(n, self.target_return)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        import torch

        torch.set_num_threads(1)  # more are slower for such small batches
        self._model.eval()
        super().reset(n, seed)
        self._start(n)

    def logits(self, window: Mapping[str, Any]) -> Any:
        """Return the logits (B, K, 3) of windows (B, K, ...); timesteps are the model's, 0 for padding."""
        import torch

        scale = self.algo.config.reward_scaler.multiplier
        x = {name: torch.from_numpy(np.array(values)) for name, values in window.items()}
        _, found = self._model(
            self.algo.observation_scaler.transform(x["observations"]),
            x["actions"][..., None],
            x["returns_to_go"][..., None] * scale,
            x["timesteps"],
            1.0 - x["mask"].float(),
        )
        return found

    def _last(self, window: Mapping[str, Any]) -> Floats:
        """Return the probabilities (B, 3) at the last step of windows (B, K, ...)."""
        import torch

        with torch.no_grad():
            p = torch.softmax(self.logits(window)[:, -1].double(), dim=-1)
        return self.imbalance.correct(p.numpy())

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Return actions (n,) by the decision rule."""
        check_batch(obs, self._rule.n)
        if self._end == 2 * self.length:
            for array in self._held.values():
                array[:, : self.length] = array[:, self.length :]
            self._end = self.length
        at, held = self._end, self._held
        self._rest -= rewards
        held["observations"][:, at] = obs
        held["actions"][:, at] = 0  # not known yet; the model does not read it
        held["returns_to_go"][:, at] = self._rest
        held["timesteps"][:, at] = self._step % self.max_timestep + 1
        held["mask"][:, at] = 1.0
        self._step += 1
        self._end = at + 1
        window = {name: array[:, self._end - self.length : self._end] for name, array in held.items()}
        taken = self._rule.decide(self._last(window), obs[:, 0])
        held["actions"][:, at] = taken
        return taken

    def probabilities(self, obs: Observations) -> Floats:
        """Refuse: an observation alone does not define them.

        Raises:
            L4SError: Always.
        """
        raise L4SError("dt: decides by a window of steps, not by an observation: use act or logged_probabilities")

    def logged_probabilities(self, logged: Trajectory, index: Ints) -> Floats:
        """Return probabilities (B, 3) at logged steps (B,), given the returns that the log reached."""
        self._model.eval()
        found = [np.zeros((0, len(ACTIONS)))]
        for at in range(0, len(index), _CHUNK):
            window = logged.windows(index[at : at + _CHUNK], self.length)
            found.append(self._last(model_window(window, self.max_timestep)))
        return np.concatenate(found)


def model_window(window: Mapping[str, Any], max_timestep: int) -> dict[str, Any]:
    """Convert a window of `Trajectory` to the model's timesteps: from 1, wrapped after `max_timestep`; padding is 0."""
    timesteps = np.where(window["mask"], window["timesteps"] % max_timestep + 1, 0)
    return {name: values for name, values in window.items() if name != "rewards"} | {"timesteps": timesteps}


class _DTLearner(D3RLPyLearner):
    """Trains a decision transformer."""

    def steps_to_draw(self, logged: Trajectory) -> Ints:
        return np.arange(len(logged))

    def batch(self, logged: Trajectory, index: Ints, config: Config) -> Any:
        length = config.algorithm["context_size"]
        window = logged.windows(index, length)
        seen = model_window(window, config.algorithm["max_timestep"])
        return import_d3rlpy().dataset.TrajectoryMiniBatch(
            observations=seen["observations"],
            actions=seen["actions"][..., None].astype(np.float32),
            rewards=window["rewards"][..., None],
            returns_to_go=seen["returns_to_go"][..., None],
            terminals=np.zeros((*seen["mask"].shape, 1), np.float32),
            timesteps=seen["timesteps"].astype(np.float32),
            masks=seen["mask"].astype(np.float32),
            length=length,
        )

    def more_fields(self, logged: Trajectory, config: Config) -> dict[str, Any]:
        d3rlpy = import_d3rlpy()
        largest = float(np.abs(logged.returns).max())
        tokens = config.steps * config.batch_size * config.algorithm["context_size"]
        return {
            "reward_scaler": d3rlpy.preprocessing.MultiplyRewardScaler(multiplier=1.0 / max(largest, 1e-9)),
            "warmup_tokens": max(tokens // 50, 1),
            "final_tokens": tokens,
        }

    def set_loss(self, algo: Any, imbalance: Imbalance, config: Config) -> None:
        each, model = imitation_loss(imbalance), algo.impl.modules.transformer
        only_last = imbalance.kind == "sample"

        def loss(batch: Any) -> Any:
            _, logits = model(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps, 1 - batch.masks)
            actions, mask = batch.actions[..., 0], batch.masks
            if only_last:
                logits, actions, mask = logits[:, -1:], actions[:, -1:], mask[:, -1:]
            found = each(logits.reshape(-1, len(ACTIONS)), actions.reshape(-1))
            return (found * mask.reshape(-1)).sum() / mask.sum()

        algo.impl.compute_loss = loss

    def agent(self, algo: Any, config: Config, imbalance: Imbalance, logged: Trajectory) -> D3RLPyAgent:
        best = float(logged.returns[logged.starts[:-1]].max())
        target = best if config.target_return is None else config.target_return
        settings = self.plain(config)
        return DTAgent(algo, self.kind, config.rule, target=target, imbalance=imbalance, settings=settings)


DT = _DTLearner(
    "dt",
    "DiscreteDecisionTransformerConfig",
    Config(
        steps=20_000,
        batch_size=64,
        hidden=(128,),
        rule="sample",
        algorithm={
            "learning_rate": 6e-4,
            "context_size": 20,
            "max_timestep": 1000,
            "num_layers": 3,
            "num_heads": 1,
            "attn_dropout": 0.1,
            "resid_dropout": 0.1,
            "embed_dropout": 0.1,
        },
    ),
    lacks=("temperature", "epsilon"),
    able=("none", "weights", "focal", "sample"),
)
