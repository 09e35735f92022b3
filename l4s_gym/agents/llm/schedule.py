"""How a training run is set up, and the learning rate over its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.errors import L4SError, unknown

PRECISIONS: Final = ("auto", "fp32", "bf16")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Augment:
    """What is done to a batch before the model sees it; see `augment.augment`.

    Attributes:
        noise: Standard deviation of the factor 1 + noise * z on the continuous features.
        offset: The steps of a sequence are counted from a random number of 0 to `offset` more.
        dropout: Share of the timesteps that are hidden.
    """

    noise: float = 0.0
    offset: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.noise < 0 or self.offset < 0 or not 0 <= self.dropout < 1:
            raise L4SError(f"{self}: give noise and offset of 0 or more, and a dropout of 0 to 1")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        steps: Optimiser steps.
        batch_size: Sequences of a step, on each process.
        accumulate: Parts that the batch is cut into, one after the other, to save memory; the gradient stays the same.
        length: Steps of a sequence. Longer than the model's window, so that it is trained with the banded attention
            with which it will run: a token then sees through others further back than the window.
        learning_rate: The highest, after the warm-up.
        weight_decay: Of AdamW, on matrices only.
        warmup: Steps over which the learning rate grows from 0.
        final: Learning rate at the end, as a share of the highest (cosine in between).
        clip: Largest norm of the gradient.
        precision: `fp32`, `bf16` (autocast), or `auto`: bf16 on a GPU that has it.
        held_out: Share of each dataset's episodes that is kept for the metrics, as `logged.split` does; 0: none.
        eval_every: Steps between two looks at the held-out episodes.
        eval_steps: At most so many steps of them are looked at.
        checkpoint_every: Steps between two checkpoints.
        quantile: The agent's target return is this quantile of the training episodes' returns.
        drop_missing: Leave steps whose accumulated probability is unknown out of the loss.
        allow_gaps: Take datasets too whose rows are not all consecutive.
        seed: Of weights, split, batches and noise.
        augment: What is done to a batch.
        imbalance: What is done about rare actions; `sample` draws windows around them, see `losses`.
    """

    steps: int = 2000
    batch_size: int = 32
    accumulate: int = 1
    length: int = 60
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 100
    final: float = 0.1
    clip: float = 1.0
    precision: str = "auto"
    held_out: float = 0.2
    eval_every: int = 500
    eval_steps: int = 20_000
    checkpoint_every: int = 250
    quantile: float = 0.9
    drop_missing: bool = True
    allow_gaps: bool = False
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    imbalance: Imbalance = field(default_factory=Imbalance)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        for name in ("steps", "batch_size", "accumulate", "length", "eval_every", "eval_steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise L4SError(f"train: {name}={getattr(self, name)}: give 1 or more")
        for name in ("warmup", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise L4SError(f"train: {name}={getattr(self, name)}: give 0 or more")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise L4SError(f"train: {name}={getattr(self, name)}: give more than 0")
        for name in ("final", "quantile"):
            if not 0 <= getattr(self, name) <= 1:
                raise L4SError(f"train: {name}={getattr(self, name)}: give 0 to 1")
        if not 0 <= self.held_out < 1:
            raise L4SError(f"train: held_out={self.held_out}: give 0 or more, and less than 1")
        if self.accumulate > self.batch_size:
            raise L4SError(f"train: accumulate={self.accumulate}: a batch has only {self.batch_size} sequences")


def from_dict(cls: type[_T], given: Mapping[str, Any], where: str) -> _T:
    """A config of plain values, such as a table of TOML.

    Args:
        cls: `TrainConfig` or a dataclass of its fields.
        given: The values; what is left out has its default.
        where: Names the table in errors.

    Raises:
        L4SError: An unknown name, a value of another type, or one that makes no sense.
    """
    hints = get_type_hints(cls)
    names = tuple(each.name for each in fields(cls))  # type: ignore[arg-type]  # a dataclass
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in names:
            raise unknown(f"setting of [{where}]", name, names)
        values[name] = _value(hints[name], value, f"{where}.{name}")
    return cls(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    if kind is Imbalance:
        return Imbalance.of(value)
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise L4SError(f"{where}: give a table, not {value!r}")
        return from_dict(kind, value, where)  # type: ignore[arg-type]  # a class, not an instance
    kind = (get_args(kind) or (kind,))[0] if get_origin(kind) is not None else kind
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise L4SError(f"{where}: give a value of type {kind.__name__}, not {value!r}")
    return value


def warmup_cosine(steps: int, warmup: int, final: float) -> Callable[[int], float]:
    """The learning rate at each step, as a share of the highest: a line up to 1, then half a cosine down to `final`."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))

    return share
