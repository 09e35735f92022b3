"""The LLM agent in use: one pass of the last step's tokens per decision, for a batch of queues.

It is asked for a target return, and later for what is left of it (`ReturnsToGo`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from l4s_gym.agents.llm import fast, saving, tasks
from l4s_gym.agents.llm.backbones import Counts, count, placed
from l4s_gym.agents.llm.data import (
    Correction,
    Floats,
    Ints,
    ReturnsToGo,
    Target,
    covering,
    logits_of,
    sequences,
    tensors,
)
from l4s_gym.agents.llm.exported import ExportedModel
from l4s_gym.agents.llm.intervals import IntervalAgent
from l4s_gym.agents.llm.network import DecisionModel
from l4s_gym.agents.llm.text import TextAgent
from l4s_gym.agents.protocol import Actions, DecisionRule, Observations, check_batch
from l4s_gym.agents.saved import Saved
from l4s_gym.data.files import PathLike
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError, unknown
from l4s_gym.forms import PACKET
from l4s_gym.tables import convert

DTYPES: Final = {"": "", "fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
"""Precisions, and their names in `fast.optimize`."""
OPTIONS: Final = ("rule", "target", "fixed", "dtype", "device", "compile", "correct")
"""Options of `open_agent`."""
_SEQUENCES: Final = 64
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")


class LLMAgent:
    """A trained decision transformer.

    Attributes:
        model: In `eval` mode.
        target: The return to reach.
        correction: Converts the model's probabilities to those of the data.
        training: Facts about its training.
        length: Steps of the sequences of logged data that it sees: as in its training.
    """

    def __init__(
        self,
        model: DecisionModel,
        target: Target,
        *,
        rule: str = "sample",
        correction: Correction | None = None,
        name: str = "llm",
        device: str = "cpu",
        compiled: bool = False,
        parameters: Counts | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: The model; `fast.optimize` it for speed.
            target: The return to reach.
            rule: `sample`, `argmax` or `diffuse`.
            correction: Converts the model's probabilities to those of the data; None: they are not changed.
            name: Name in results.
            device: PyTorch device.
            compiled: Whether to compile the step by `torch.compile`: the first decisions then take minutes.
            parameters: Number of parameters in training; None: those of the model.
            training: Facts about its training.
        """
        if model.config.head != "linear":
            raise L4SError(f"llm: head {model.config.head!r} writes its answers: use TextAgent")
        self._rule = DecisionRule(rule)
        self.rule, self.name, self.target = rule, name, target
        self.training, self._counts = training or {}, parameters or count(model)
        settings = self.training.get("config", {}).get("train", {})
        self.length = int(settings.get("length", 2 * model.config.window))
        self.correction = correction or Correction()
        self.model, self._device = placed(model, device), torch.device(device)
        self._compiled: Any = torch.compile(self.model.step, dynamic=True) if compiled else None
        self._step: fast.Step | None = None

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        self._rule.reset(n, seed)
        self.model.eval()
        self._step = fast.start(self.model, n, self._compiled)
        self._told = ReturnsToGo(self.target, n, self.model.config.gamma)
        self._previous = np.zeros(n, np.int64)

    def probabilities(self, obs: Observations, rewards: Floats) -> Floats:
        """Return probabilities of the actions (n, 3) at the next step; it then waits for `took`.

        Args:
            obs: Observations (n, 8).
            rewards: Rewards since the last decision (n,); those before the first are not part of the target.
        """
        return self.correction(torch.softmax(self._logits(obs, rewards), -1, dtype=torch.float64).cpu().numpy())

    def _logits(self, obs: Observations, rewards: Floats) -> torch.Tensor:
        """Return what the model tells of the next step (n, ...)."""
        if self._step is None:
            raise L4SError("llm: has not been started: call reset with the number of episodes")
        if self.model.config.task is None:
            check_batch(obs, len(self._previous))
        with torch.inference_mode():
            return self._step(
                torch.as_tensor(self._told.after(rewards), dtype=torch.float32, device=self._device),
                torch.from_numpy(np.array(obs, np.float32)).to(self._device),  # a copy: it belongs to the caller
                torch.from_numpy(self._previous).to(self._device),
            )

    def took(self, actions: Actions) -> None:
        """Record the decisions (n,)."""
        self._previous = np.array(actions, np.int64)

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Return actions (n,) by the decision rule."""
        actions = self._rule.decide(self.probabilities(obs, rewards), obs[:, 0])
        self.took(actions)
        return actions

    def logged_probabilities(self, logged: Trajectory, index: Ints) -> Floats:
        """Return probabilities at logged steps, given what was logged before them and the return that followed.

        Args:
            logged: The steps.
            index: Which of them (B,).

        Returns:
            Probabilities (B, 3).
        """
        ends, tile = covering(np.asarray(index), logged.starts, max(self.length // 2, 1))
        returns = logged.returns_to_go(self.model.config.gamma)
        found = np.zeros((len(ends), self.length, 3))
        self.model.eval()
        for at in range(0, len(ends), _SEQUENCES):
            batch = sequences(logged, returns, ends[at : at + _SEQUENCES], self.length)
            with torch.inference_mode():
                logits = logits_of(self.model, tensors(batch, self._device))
            found[at : at + _SEQUENCES] = torch.softmax(logits.double(), -1).cpu().numpy()
        return self.correction(found[tile, self.length - 1 - (ends[tile] - index)])

    def cost(self) -> dict[str, float]:
        """Return the numbers of parameters, and the number of steps that it remembers."""
        return self._counts.cost() | {"window": float(self.model.config.window)}


class TaskAgent(LLMAgent):
    """An agent of another task (`l4s_gym.agents.llm.tasks`), in none of the forms of queues."""

    form = "task"

    def act(self, obs: Any, rewards: Floats) -> Any:
        """Return actions (n, ...) by the decision rule, or the numbers as they are told.

        Args:
            obs: An observation of each of the n environments, as these give them.
            rewards: Rewards since the last decision (n,).
        """
        config, task = self.model.config, self.model.config.task
        assert task is not None
        told = self._logits(np.stack([tasks.flat(config.encoder.features, task.masked, each) for each in obs]), rewards)
        if task.head == "regression":
            return tasks.actions_of(task, told.cpu().numpy())
        chosen = self._rule.decide(torch.softmax(told, -1, dtype=torch.float64).cpu().numpy(), None)
        self.took(chosen)
        return tasks.actions_of(task, chosen)


def _number(target: str | float | None) -> float | None:
    try:
        return None if target is None else float(target)
    except ValueError:
        raise L4SError(f"llm: target={target}: give a return") from None


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in _TRUE + _FALSE:
        return str(value).lower() in _TRUE
    raise L4SError(f"llm: {name}={value}: give 1 or 0")


def open_agent(
    folder: PathLike | Saved,
    *,
    rule: str = "sample",
    target: str | float | None = None,
    fixed: str | bool = False,
    dtype: str = "",
    device: str = "cpu",
    compile: str | bool = False,
    correct: str | bool = True,
) -> Any:
    """Load a saved agent and make it fast: adapters are merged, and GPT-2 takes fewer operations.

    Args:
        folder: The folder, or what was read of it.
        rule: `sample`, `argmax` or `diffuse`; an agent that writes has no `diffuse`. This, `fixed`, `compile` and
            `correct` are for agents of packets.
        target: Return of an episode to reach, in the reward's unit (an imitator of control intervals: the discounted
            mean of the rewards from now on); None: a high quantile in its training (`quantile` in its configuration).
        fixed: Keep the target constant instead of subtracting the rewards.
        dtype: Type of the backbone: `fp32`, `bf16` or `int8` (on a CPU); empty: as saved.
        device: PyTorch device.
        compile: Compile the step; the first decisions then take minutes.
        correct: Undo the shift of a training that gave rare actions more weight.

    Returns:
        An `LLMAgent`; for the text head a `TextAgent`, which has no `dtype` and is not compiled; for forms other than
        `packet` an `IntervalAgent`; for another task a `TaskAgent`, whose rule is not `diffuse`.

    Raises:
        L4SError: The folder holds no such agent, or an option makes no sense.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, tuple(filter(None, DTYPES)))
    loaded = saving.load(folder)
    model, training = loaded.model, loaded.training
    parameters = count(model)
    if isinstance(model, ExportedModel):
        parameters = Counts(0, int(training["parameters"]))
        if dtype or device != "cpu":
            raise L4SError(
                "llm: a compressed agent has its own precision, and runs on the CPU: leave dtype, device out"
            )
    if "trainable_parameters" in training:
        parameters = parameters._replace(trainable=int(training["trainable_parameters"]))
    common: dict[str, Any] = {
        "name": f"llm:{loaded.path.resolve().name}", "device": device, "parameters": parameters, "training": training
    }  # fmt: skip
    if model.config.form != PACKET:
        if rule != "sample" or _flag("fixed", fixed) or _flag("compile", compile) or not _flag("correct", correct):
            raise L4SError("llm: rule, fixed, compile and correct are for agents of packets: leave them out")
        return IntervalAgent(model, target=_number(target), dtype=DTYPES[dtype], **common)
    returns = training.get("returns") or {"target": 0.0, "low": -np.inf, "high": np.inf}
    value = float(returns["target"]) if (asked := _number(target)) is None else asked
    # A target beyond all training returns is the user's wish, and sets a new bound.
    low, high = min(float(returns["low"]), value), max(float(returns["high"]), value)
    goal = Target(value, low, high, _flag("fixed", fixed))
    common["rule"] = rule
    if model.config.head == "text":
        if dtype or _flag("compile", compile):
            raise L4SError("llm: dtype and compile are not for an agent that writes text: leave them out")
        model.backbone.merge()
        return TextAgent(model, goal, **common)
    fast.optimize(model, DTYPES[dtype])
    shift = training.get("correction") if _flag("correct", correct) else None
    correction = None if shift is None else convert(Correction, shift, "correction")
    if model.config.task is not None and rule == "diffuse":
        raise L4SError("llm: rule 'diffuse' is for packets: choose sample or argmax")
    kind = LLMAgent if model.config.task is None else TaskAgent
    return kind(model, goal, correction=correction, compiled=_flag("compile", compile), **common)


def load(saved: Saved, **options: str) -> Any:
    """Load a saved agent of kind `llm`, with options as text."""
    for name in options:
        if name not in OPTIONS:
            raise unknown("option of an agent of kind 'llm'", name, OPTIONS)
    return open_agent(saved, **options)
