"""What an LLM agent is made of, as frozen structures from TOML files or plain dictionaries.

```toml
window = 20
layout = "fused"

[backbone]
family = "llama"
hidden = 256
layers = 6
heads = 8

[lora]
rank = 16
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from l4s_gym.data.files import PathLike
from l4s_gym.errors import L4SError, unknown
from l4s_gym.schema import ACTIONS, OBSERVED
from l4s_gym.tables import convert, read_toml

Positive = Annotated[int, Meta(ge=1, le=1 << 20)]
Count = Annotated[int, Meta(ge=0, le=1 << 20)]
_ACTIONS: Final = len(ACTIONS)
Share = Annotated[float, Meta(ge=0.0, lt=1.0)]

FAMILIES: Final = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "t5")
"""Backbones that are tested; any other causal model is named by its `model_type` in transformers."""
SCALARS: Final = ("queue_type", "burst_allowance", "total_drops", "packet_length")
"""Features that are encoded step by step by default; the others are time series."""
UNKNOWN: Final = "accumulated_probability"
"""The feature that may be missing in data from logs (`l4s_gym.data.causal`)."""


@dataclass(frozen=True)
class BackboneConfig:
    """The transformer.

    Attributes:
        family: One of `FAMILIES`, or another `model_type` of transformers.
        pretrained: Name on the hub or folder of a pretrained model; its size is then its own. Empty: random weights
            of the size below.
        revision: Commit, tag or branch on the hub; empty: the newest.
        hidden: Width.
        layers: Layers (of T5: in the encoder and, if there is one, in the decoder).
        heads: Attention heads.
        kv_heads: Heads of keys and values (Llama, Mistral, Qwen); 0: as `heads`.
        feedforward: Width of the feed-forward layers; 0: four times `hidden`.
        positions: Number of positions, in tokens.
        vocabulary: Tokens of the unused word embedding of a random backbone (the text head has its own).
        dropout: In training.
        exit_layer: Leave after this layer; 0: after the last.
        decoder: T5 only: use encoder and decoder, instead of the encoder alone.
        freeze: Keep the weights as they are (LoRA's, the encoders' and the head's are trained); None: those of
            pretrained backbones only.
        checkpointing: Recompute activations in the backward pass, to save memory.
        dtype: Of the backbone's weights.
        seed: Of random weights.
    """

    family: str = "gpt2"
    pretrained: str = ""
    revision: str = ""
    hidden: Positive = 128
    layers: Positive = 3
    heads: Positive = 4
    kv_heads: Count = 0
    feedforward: Count = 0
    positions: Positive = 1024
    vocabulary: Positive = 16
    dropout: Share = 0.1
    exit_layer: Count = 0
    decoder: bool = False
    freeze: bool | None = None
    checkpointing: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if not self.pretrained and self.hidden % self.heads:
            raise L4SError(f"backbone: hidden={self.hidden} is no multiple of heads={self.heads}: change one of them")
        if self.kv_heads and self.heads % self.kv_heads:
            raise L4SError(f"backbone: heads={self.heads} is no multiple of kv_heads={self.kv_heads}: change one")
        if self.decoder and self.family != "t5":
            raise L4SError(f"backbone: decoder is for T5, {self.family!r} is one already: leave it out")

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
        dropout: In training.
        targets: Names of the modules; empty: the family's own (`l4s_gym.agents.llm.lora.TARGETS`).
    """

    rank: Count = 0
    alpha: Count = 0
    dropout: Share = 0.05
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Feature:
    """A part of the observation.

    Attributes:
        name: Its name.
        kind: `scalar`, `series`, `image`, `graph`, or a kind that was added to the registry of encoders.
        shape: Of one value; its elements are consecutive columns of the observation.
    """

    name: str
    kind: str = "scalar"
    shape: tuple[Positive, ...] = ()

    @property
    def size(self) -> int:
        """Columns of the observation."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def l4s_features() -> tuple[Feature, ...]:
    """The eight of the observation: four scalars, four time series."""
    return tuple(Feature(name, "scalar" if name in SCALARS else "series") for name in OBSERVED)


@dataclass(frozen=True)
class EncoderConfig:
    """How states become embeddings.

    Attributes:
        features: Parts of the observation, in order.
        hidden: Width of what each encoder gives, before its projection.
        kernels: Lengths of the causal convolutions over time series, in steps.
        max_timestep: The embedding of the time step is that of the step modulo this number.
        unknown: Feature that may be missing; empty: none.
    """

    features: tuple[Feature, ...] = field(default_factory=l4s_features)
    hidden: Positive = 64
    kernels: tuple[Positive, ...] = (1, 3, 5, 9)
    max_timestep: Positive = 1024
    unknown: str = UNKNOWN

    def __post_init__(self) -> None:
        """Check what the types do not say."""
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
class LLMConfig:
    """The whole agent.

    Attributes:
        backbone: The transformer.
        lora: Adapters.
        encoder: States to embeddings.
        layout: `fused`: one token for the state, `features`: one for each feature.
        window: Steps that a token attends to, its own included.
        gamma: Discount of the return-to-go.
        return_scale: Returns are divided by it.
        head: `linear`: logits from the last state token; `text`: answers written token by token.
        actions: Number of actions.
    """

    backbone: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    encoder: EncoderConfig = EncoderConfig()
    layout: Literal["fused", "features"] = "fused"
    window: Positive = 20
    gamma: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    return_scale: Annotated[float, Meta(gt=0.0)] = 1.0
    head: Literal["linear", "text"] = "linear"
    actions: Positive = _ACTIONS

    @property
    def step_tokens(self) -> int:
        """Tokens of one step: previous action, return-to-go, state."""
        return 2 + (len(self.encoder.features) if self.layout == "features" else 1)


def to_dict(config: LLMConfig) -> dict[str, Any]:
    """As plain values, for JSON and TOML."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return {key: value for key, value in plain.items() if value is not None} | {"backbone": _known(plain["backbone"])}


def _known(plain: dict[str, Any]) -> dict[str, Any]:
    """Without values that are None, which TOML does not have."""
    return {key: value for key, value in plain.items() if value is not None}


def from_dict(values: Mapping[str, Any], place: str = "llm") -> LLMConfig:
    """From plain values.

    Args:
        values: Settings; what is left out has its default.
        place: Where they come from, for errors.

    Raises:
        L4SError: A setting does not exist, or has no fitting value.
    """
    return convert(LLMConfig, values, place)


def load(path: PathLike) -> LLMConfig:
    """From a TOML file.

    Raises:
        L4SError: The file cannot be read, is no TOML, or a setting is wrong.
    """
    return from_dict(read_toml(path), str(path))
