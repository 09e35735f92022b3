"""GPT-2 for deciding: the same weights in as few operations as it takes, in float32, bfloat16 or 8-bit integers.

Small backbones spend most of a step between the operations, in the library's generality; large ones spend it reading
weights, which fewer bits make shorter. What the lower precisions change in the decisions is for whoever uses them to
measure.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l4s_gym.agents.llm.backbones import Backbone
from l4s_gym.errors import L4SError

_ROOM: Final = 3
"""A strip holds this many windows."""
PRECISIONS: Final = ("float32", "bfloat16", "int8")


class KeysValues:
    """What a `FastGPT2` remembers: a strip of memory for each layer, in which the window moves on.

    Only when its end is reached is the window copied back to the start: not at every step, as by joining tensors.

    Attributes:
        start: First token that is remembered.
        end: First token that is not there yet.
    """

    def __init__(self, layers: int) -> None:
        """Empty."""
        self._strips: list[Tensor | None] = [None] * layers  # (2, B, heads, room, D)
        self.start = self.end = 0

    def get_seq_length(self) -> int:
        """Tokens that are remembered."""
        return self.end - self.start

    def extend(self, layer: int, fresh: Tensor) -> Tensor:
        """Keys and values of a layer (2, B, heads, S, D), the new ones (2, B, heads, N, D) last."""
        count, strip = fresh.shape[3], self._strips[layer]
        stale = strip is not None and strip.is_inference() and not torch.is_inference_mode_enabled()
        if strip is None or stale or self.end + count > strip.shape[3]:
            self._move(count, fresh)
            strip = self._strips[layer]
        assert strip is not None
        strip[:, :, :, self.end : self.end + count] = fresh
        return strip[:, :, :, self.start : self.end + count]

    def _move(self, count: int, like: Tensor) -> None:
        """Copy the window of every layer to the start of a new strip."""
        length = self.get_seq_length()
        for layer, strip in enumerate(self._strips):
            room = like.new_empty(*like.shape[:3], _ROOM * (length + count), like.shape[4])
            if strip is not None:
                room[:, :, :, :length] = strip[:, :, :, self.start : self.end]
            self._strips[layer] = room
        self.start, self.end = 0, length


def _linear(layer: Any) -> nn.Linear:
    """A `Conv1D` of transformers as a linear layer: its weight is stored the other way round."""
    rows, columns = layer.weight.shape
    made = nn.Linear(rows, columns)
    made.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
    made.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return made


class _Block(nn.Module):
    """One layer."""

    def __init__(self, block: Any, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = block.ln_1, block.ln_2
        self.attend, self.project = _linear(block.attn.c_attn), _linear(block.attn.c_proj)
        self.widen, self.narrow = _linear(block.mlp.c_fc), _linear(block.mlp.c_proj)

    def forward(self, x: Tensor, mask: Tensor, cache: KeysValues | None, index: int) -> Tensor:
        """Hidden states (B, N, width)."""
        batch, length, width = x.shape
        both = self.attend(self.first_norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        kept = both[1:] if cache is None else cache.extend(index, both[1:])
        mixed = F.scaled_dot_product_attention(both[0], kept[0], kept[1], mask)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        more: Tensor = self.narrow(F.gelu(self.widen(self.second_norm(x)), approximate="tanh"))
        return x + more


class FastGPT2(nn.Module):
    """Takes the place of a `Backbone`, for deciding only.

    Attributes:
        family: `gpt2`.
        width: Of embeddings and hidden states.
        positions: `learned`.
        limit: Number of positions.
        adapted: False: adapters are merged.
        dtype: Of embeddings and masks.
    """

    family = "gpt2"
    positions = "learned"
    adapted = False
    commit = ""

    def __init__(self, backbone: Backbone, precision: str = "float32") -> None:
        """Take over the weights.

        Args:
            backbone: A GPT-2; adapters are merged.
            precision: Of the weights; `int8` for the CPU only (activations are quantized as they come).

        Raises:
            L4SError: It is another family, or uses options of GPT-2 that are not here.
        """
        super().__init__()
        if precision not in PRECISIONS:
            raise L4SError(f"llm: precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
        sizes = backbone.core.config
        plain = sizes.model_type == "gpt2" and sizes.activation_function == "gelu_new" and sizes.scale_attn_weights
        if not plain or sizes.scale_attn_by_inverse_layer_idx:
            raise L4SError(f"llm: no fast form of {backbone.family!r} with its options: leave `optimize` out")
        backbone.merge()
        core = backbone.core
        self.width, self.limit = backbone.width, backbone.limit
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.places = nn.Parameter(core.wpe.weight.detach().clone(), requires_grad=False)
        self.blocks = nn.ModuleList(_Block(block, sizes.num_attention_heads) for block in core.h)
        self.norm = core.ln_f
        self.requires_grad_(False)
        self.to(self.dtype).eval()
        if precision == "int8":
            self.blocks = _quantized(self.blocks)

    def new_cache(self) -> KeysValues:
        """An empty cache."""
        return KeysValues(len(self.blocks))

    def forward(self, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: KeysValues | None = None) -> Tensor:
        """Hidden states, as those of `Backbone.forward`."""
        x = embeddings.to(self.dtype) + F.embedding(positions, self.places)
        for index, block in enumerate(self.blocks):
            x = block(x, mask, cache, index)
        if cache is not None:
            cache.end += embeddings.shape[1]
        hidden: Tensor = self.norm(x).float()
        return hidden

    def forget(self, cache: KeysValues, keep: int) -> KeysValues:
        """The cache with its last `keep` tokens."""
        cache.start = max(cache.start, cache.end - keep)
        return cache

    def merge(self) -> None:
        """Adapters are merged already."""


def _quantized(module: Any) -> Any:
    """Linear layers in 8-bit integers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch names torchao as the successor, which is no faster on CPUs
        quantization: Any = torch.ao.quantization
        return quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
