"""The LLM agent in use: one pass of the last step's tokens per decision, for a batch of queues.

It is asked for the return that it shall reach. From then on it is told what is left of it: after reward r, the
return-to-go R becomes (R - r) / gamma, as in the training data, and is kept within the returns-to-go that it was
trained on: an episode that goes worse or longer than any of them would else ask for something it has never seen.
With `fixed` the target stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from l4s_gym.agents.llm import storage
from l4s_gym.agents.llm.losses import Correction, no_correction
from l4s_gym.agents.llm.model import DecisionModel
from l4s_gym.agents.protocol import Actions, DecisionRule, Floats, Observations, check_batch
from l4s_gym.agents.saved import Saved
from l4s_gym.data.files import PathLike
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError, unknown

DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
"""Precisions, and their names in `DecisionModel.optimize`."""
_SEQUENCES: Final = 64
_Model = TypeVar("_Model", bound=torch.nn.Module)
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")


@dataclass(frozen=True)
class Target:
    """The return that the agent is to reach.

    Attributes:
        value: At the start of an episode, in the reward's unit.
        low: Smallest return-to-go that the model is told.
        high: Largest return-to-go that the model is told.
        fixed: Whether it stays as it is, whatever is received.
    """

    value: float
    low: float = -np.inf
    high: float = np.inf
    fixed: bool = False

    def __post_init__(self) -> None:
        if not np.isfinite(self.value):
            raise L4SError(f"llm: target={self.value}: give a finite return")

    def left(self, before: Floats, rewards: Floats, gamma: float) -> Floats:
        """Returns-to-go (n,) that the model is told next, after those `before` and the rewards since."""
        if self.fixed:
            return before
        left = (before - np.asarray(rewards, np.float64)) / gamma if gamma else before
        return np.clip(left, self.low, self.high)


class LLMAgent:
    """A trained decision transformer.

    Attributes:
        model: In `eval` mode.
        target: What it is to reach.
        correction: From the model's probabilities to the data's.
        training: What is known about its training.
        length: Steps of the sequences that it is shown of logged data: as in its training.
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
        parameters: tuple[int, int] | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: The model; merge its adapters for speed.
            target: What it is to reach.
            rule: `sample`, `argmax` or `diffuse`.
            correction: From the model's probabilities to the data's; None: they are taken as they are.
            name: Name in results.
            device: Of PyTorch.
            compiled: Whether `torch.compile` compiles the step: the first decisions then take minutes.
            parameters: How many it had in training, and how many of them were trained; None: those of the model.
            training: What is known about its training.
        """
        if model.config.head != "linear":
            raise L4SError(f"llm: head {model.config.head!r} writes its answers: use TextAgent")
        self._rule = DecisionRule(rule)
        self.rule, self.name, self.target = rule, name, target
        self.training = {} if training is None else training
        settings = self.training.get("config", {}).get("train", {})
        self.length = int(settings.get("length", 2 * model.config.window))
        self.correction = no_correction() if correction is None else correction
        self._parameters = (len_of(model), len_of(model, trained=True)) if parameters is None else parameters
        self.model = placed(model, device)
        self._device = torch.device(device)
        self._compiled = compiled
        self._step: Any = torch.compile(self.model.step, dynamic=True) if compiled else self.model.step
        self._state: Any = None

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        self._rule.reset(n, seed)
        self.model.eval()
        self._state = self.model.start(n, small=not self._compiled)
        self._left = np.full(n, self.target.value)
        self._previous = np.zeros(n, np.int64)
        self._first = True

    def probabilities(self, obs: Observations, rewards: Floats) -> Floats:
        """Probabilities of the actions (n, 3) at the next step; it then waits for `took`.

        Args:
            obs: Observations (n, 8).
            rewards: Since the last decision (n,); those before the first are not part of the target.
        """
        if self._state is None:
            raise L4SError("llm: has not been started: call reset with the number of episodes")
        check_batch(obs, len(self._left))
        if not self._first:
            self._left = self.target.left(self._left, rewards, self.model.config.gamma)
        self._first = False
        with torch.inference_mode():
            logits = self._step(
                self._state,
                torch.as_tensor(self._left, dtype=torch.float32, device=self._device),
                torch.from_numpy(np.array(obs, np.float32)).to(self._device),  # a copy: it belongs to the caller
                torch.from_numpy(self._previous).to(self._device),
            )
            p = torch.softmax(logits, -1, dtype=torch.float64).cpu().numpy()
        return self.correction(p)

    def took(self, actions: Actions) -> None:
        """Tell what was decided (n,)."""
        self._previous = np.array(actions, np.int64)

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Actions (n,) by the decision rule."""
        actions = self._rule.decide(self.probabilities(obs, rewards), obs[:, 0])
        self.took(actions)
        return actions

    def logged_probabilities(self, logged: Trajectory, index: npt.NDArray[np.int64]) -> Floats:
        """What it would do at logged steps, given what was logged before them and the return that followed.

        Args:
            logged: The steps.
            index: Which of them (B,).

        Returns:
            Probabilities (B, 3).
        """
        length = self.length
        ends, tile = _tiles(np.asarray(index), logged.starts, max(length // 2, 1))
        returns = logged.returns_to_go(self.model.config.gamma)
        found = np.zeros((len(ends), length, 3))
        self.model.eval()
        for at in range(0, len(ends), _SEQUENCES):
            batch = logged.windows(ends[at : at + _SEQUENCES], length)
            rows = np.maximum(ends[at : at + _SEQUENCES, None] + np.arange(1 - length, 1), 0)
            batch["returns_to_go"] = np.where(batch["mask"], returns[rows], 0.0).astype(np.float32)
            names = ("returns_to_go", "observations", "actions", "timesteps", "mask")
            with torch.inference_mode():
                logits = self.model(*(torch.from_numpy(batch[name]).to(self._device) for name in names))
            found[at : at + _SEQUENCES] = torch.softmax(logits.double(), -1).cpu().numpy()
        return self.correction(found[tile, length - 1 - (ends[tile] - index)])

    def cost(self) -> dict[str, float]:
        """Numbers of parameters, and the steps that it remembers."""
        parameters, trainable = self._parameters
        return {
            "parameters": float(parameters),
            "trainable_parameters": float(trainable),
            "window": float(self.model.config.window),
        }


def _tiles(
    index: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sequences that end with at most so many of the steps (B,): their last steps (n,), and which one each is of."""
    stops = starts[np.searchsorted(starts, index, side="right")] - 1
    ends, tile = [-1], np.zeros(len(index), np.int64)
    for place in np.argsort(index, kind="stable").tolist():
        step = int(index[place])
        if step > ends[-1]:
            ends.append(min(step + most - 1, int(stops[place])))
        tile[place] = len(ends) - 2
    return np.array(ends[1:], np.int64), tile


def placed(model: _Model, device: str) -> _Model:
    """A model that is ready to decide on a device.

    Raises:
        L4SError: There is no such device.
    """
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise L4SError(f"llm: device {device!r} cannot be used ({reason}): give another, such as cpu") from error


def len_of(model: torch.nn.Module, *, trained: bool = False) -> int:
    """Number of parameters; of those that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in _TRUE + _FALSE:
        return str(value).lower() in _TRUE
    raise L4SError(f"llm: {name}={value}: give 1 or 0")


def _make_fast(model: DecisionModel, dtype: str) -> None:
    """Merge the adapters, and bring the backbone into a precision."""
    if model.backbone.family == "gpt2" or dtype == "int8":
        now = "bf16" if model.backbone.dtype == torch.bfloat16 else "fp32"
        model.optimize(DTYPES[dtype or now])
        return
    model.optimize()
    if dtype:
        model.backbone.to(getattr(torch, DTYPES[dtype]))


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
    """Read a saved agent, made fast: its adapters are merged, and GPT-2 takes fewer operations.

    Args:
        folder: Where it is, or what was read of it.
        rule: `sample`, `argmax` or `diffuse`; an agent that writes has no `diffuse`.
        target: Return of an episode that it is to reach, in the reward's unit; None: a high quantile of its training
            episodes' (`quantile` in its configuration).
        fixed: Keep the target as it is, instead of taking off what is received.
        dtype: Of the backbone: `fp32`, `bf16` or `int8` (GPT-2 on a CPU); empty: as it was saved.
        device: Of PyTorch.
        compile: Compile the step; the first decisions then take minutes.
        correct: Undo the shift of a training that let rare actions count more.

    Returns:
        An `LLMAgent`, or of the text head a `TextAgent`, which has no `dtype` and is not compiled.

    Raises:
        L4SError: The folder holds no such agent, or an option makes no sense.
    """
    if dtype and dtype not in DTYPES:
        raise unknown("dtype", dtype, tuple(DTYPES))
    loaded = storage.load(folder)
    model, training = loaded.model, loaded.training
    parameters = len_of(model), int(training.get("trainable_parameters", len_of(model, trained=True)))
    returns = training.get("returns") or {"target": 0.0, "low": -np.inf, "high": np.inf}
    try:
        value = float(returns["target"] if target is None else target)
    except ValueError:
        raise L4SError(f"llm: target={target}: give a return") from None
    # A target beyond all that was seen is the user's wish, and bounds what follows.
    low, high = min(float(returns["low"]), value), max(float(returns["high"]), value)
    goal, name = Target(value, low, high, _flag("fixed", fixed)), f"llm:{loaded.path.resolve().name}"
    if model.config.head == "text":
        from l4s_gym.agents.llm.text_agent import TextAgent

        if dtype or _flag("compile", compile):
            raise L4SError("llm: dtype and compile are not for an agent that writes: leave them out")
        model.merge()
        return TextAgent(model, goal, rule=rule, name=name, device=device, parameters=parameters, training=training)
    _make_fast(model, dtype)
    correction = training.get("correction") if _flag("correct", correct) else None
    return LLMAgent(
        model,
        goal,
        rule=rule,
        correction=None if correction is None else Correction.from_dict(correction),
        name=name,
        device=device,
        compiled=_flag("compile", compile),
        parameters=parameters,
        training=training,
    )


OPTIONS: Final = ("rule", "target", "fixed", "dtype", "device", "compile", "correct")


def load(saved: Saved, **options: str) -> Any:
    """The loader of saved agents of kind `llm`, with options as written."""
    for name in options:
        if name not in OPTIONS:
            raise unknown("option of an agent of kind 'llm'", name, OPTIONS)
    return open_agent(saved, **options)
