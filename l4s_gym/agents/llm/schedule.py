"""How a training run is set up, and the learning rate over its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

from msgspec import Meta

from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.agents.llm.config import Share
from l4s_gym.errors import L4SError, unknown

PRECISIONS: Final = ("auto", "fp32", "bf16")
_Positive = Annotated[int, Meta(ge=1)]
_Count = Annotated[int, Meta(ge=0)]
_Above0 = Annotated[float, Meta(gt=0.0)]
_Part = Annotated[float, Meta(ge=0.0, le=1.0)]


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
        stride: Steps from one of a sequence to the next: n trains an agent that is asked at every n-th packet.
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

    steps: _Positive = 2000
    batch_size: _Positive = 32
    accumulate: _Positive = 1
    length: _Positive = 60
    stride: _Positive = 1
    learning_rate: _Above0 = 1e-3
    weight_decay: Annotated[float, Meta(ge=0.0)] = 0.01
    warmup: _Count = 100
    final: _Part = 0.1
    clip: _Above0 = 1.0
    precision: str = "auto"
    held_out: Share = 0.2
    eval_every: _Positive = 500
    eval_steps: _Positive = 20_000
    checkpoint_every: _Positive = 250
    quantile: _Part = 0.9
    drop_missing: bool = True
    allow_gaps: bool = False
    seed: _Count = 0
    augment: Augment = field(default_factory=Augment)
    imbalance: Imbalance = field(default_factory=Imbalance)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.accumulate > self.batch_size:
            raise L4SError(f"train: accumulate={self.accumulate}: a batch has only {self.batch_size} sequences")


def warmup_cosine(steps: int, warmup: int, final: float) -> Callable[[int], float]:
    """The learning rate at each step, as a share of the highest: a line up to 1, then half a cosine down to `final`."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))

    return share
