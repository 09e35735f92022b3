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
    """What a `FastGPT2` remembers: a strip of memory in which the window moves on.

    Only when its end is reached is the window copied back to the start: not at every step, as by joining tensors.

    Attributes:
        start: First token that is remembered.
        end: First token that is not there yet.
    """

    def __init__(self) -> None:
        """Empty."""
        self._strip: Tensor | None = None  # (layers, 2, B, heads, room, D)
        self.start = self.end = 0

    def get_seq_length(self) -> int:
        """Tokens that are remembered."""
        return self.end - self.start

    def extend(self, count: int, *sizes: int, like: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Make room for tokens.

        Args:
            count: Number of tokens, N.
            sizes: Layers, queues B, heads, width D of a head.
            like: A tensor of the same device and type.

        Returns:
            Where each layer has to write its keys and values (2, B, heads, N, D); and where they then stand, with
            those before them: keys of the first layer, its values, keys of the second ..., each (B * heads, S, D).
        """
        strip, end = self._strip, self.end + count
        stale = strip is not None and strip.is_inference() and not torch.is_inference_mode_enabled()
        if strip is None or stale or end > strip.shape[4]:
            strip, end = self._move(count, *sizes, like=like), self.end + count
        layers, batch, heads, width = sizes
        kept = strip[..., self.start : end, :].view(2 * layers, batch * heads, end - self.start, width)
        fresh = strip[..., self.end : end, :]
        self.end = end
        return fresh.unbind(0), kept.unbind(0)

    def _move(self, count: int, layers: int, *sizes: int, like: Tensor) -> Tensor:
        """Copy the window to the start of a new strip."""
        length, (*batch, width) = self.get_seq_length(), sizes
        strip = like.new_empty(layers, 2, *batch, _ROOM * (length + count), width)
        if self._strip is not None:
            strip[..., :length, :] = self._strip[..., self.start : self.end, :]
        self._strip, self.start, self.end = strip, 0, length
        return strip


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

    def forward(self, x: Tensor, mask: Tensor, batch: int, memory: tuple[Tensor, ...]) -> Tensor:
        """Hidden states.

        Args:
            x: (B * N, width).
            mask: With memory (1 or B * heads, N, S), without (1 or B, 1, N, N).
            batch: B.
            memory: Where to write keys and values, all keys, all values, as `KeysValues.extend` has them; or nothing.
        """
        rows, width = x.shape
        both = self.attend(self.first_norm(x)).view(batch, -1, 3, self.heads, width // self.heads)
        both = both.permute(2, 0, 3, 1, 4)  # (3, B, heads, N, D)
        if memory:
            fresh, keys, values = memory
            fresh.copy_(both[1:])
            mixed = _attend(both[0].flatten(0, 1), keys, values, mask).view(both.shape[1:])
        else:
            mixed = F.scaled_dot_product_attention(both[0], both[1], both[2], mask)
        x = x + self.project(mixed.transpose(1, 2).reshape(rows, width))
        more: Tensor = self.narrow(F.gelu(self.widen(self.second_norm(x)), approximate="tanh"))
        return x + more


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of a few queries (B * heads, N, D): for them PyTorch's fused operation takes longer than its parts."""
    scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=queries.shape[2] ** -0.5)
    return torch.bmm(scores.softmax(-1), values)


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
        self.precision = precision
        self.width, self.limit = backbone.width, backbone.limit
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.places = nn.Parameter(core.wpe.weight.detach().clone(), requires_grad=False)
        self.heads = sizes.num_attention_heads
        self.blocks = nn.ModuleList(_Block(block, self.heads) for block in core.h)
        self.norm = core.ln_f
        self.requires_grad_(False)
        self.to(self.dtype).eval()
        if precision == "int8":
            self.blocks = _quantized(self.blocks)

    def new_cache(self) -> KeysValues:
        """An empty cache."""
        return KeysValues()

    def forward(self, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: KeysValues | None = None) -> Tensor:
        """Hidden states, as those of `Backbone.forward`."""
        batch, length, width = embeddings.shape
        x = (embeddings.to(self.dtype) + F.embedding(positions, self.places)).view(-1, width)
        memories: Any = [()] * len(self.blocks)
        if cache is not None:
            fresh, kept = cache.extend(length, len(self.blocks), batch, self.heads, width // self.heads, like=x)
            memories = zip(fresh, kept[::2], kept[1::2], strict=True)
            mask = mask[:, 0] if len(mask) == 1 else mask.expand(-1, self.heads, -1, -1).flatten(0, 1)
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, mask, batch, memory)
        hidden: Tensor = self.norm(x).float().view(embeddings.shape)
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
