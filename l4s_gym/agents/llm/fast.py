"""Fast forms of a trained model, for inference only: the same weights in fewer operations.

Small backbones spend most of a step on the library's overhead between operations; large ones spend it on reading
weights, which fewer bits make shorter. So there are two forms of GPT-2: in PyTorch (`FastGPT2`), for large models, many
queues, GPUs and low precision, and compiled (`Compiled`), for small models and a few queues on a CPU. Other families
stay models of transformers, in the precision that is asked for. Users of the lower precisions should measure how much
the decisions change.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l4s_gym.agents.llm.backbones import Backbone
from l4s_gym.agents.llm.encoders import MAGNITUDE, FoldedEncoder
from l4s_gym.agents.llm.network import DecisionModel
from l4s_gym.compiled import kept
from l4s_gym.errors import L4SError, unknown

Array = npt.NDArray[Any]
Step = Callable[[Tensor, Tensor, Tensor], Tensor]

PRECISIONS: Final = ("float32", "bfloat16", "int8")
_ROOM: Final = 3
"""A strip holds this many windows."""
_LIMIT: Final = 256
"""Queues times width: above it PyTorch's matrix products are as fast as compiled code."""
_MATHS: Final = {"reassoc", "contract", "nsz"}  # sums in any order, so that they can be vectors
_EPSILON: Final = 1e-5
_LOG: Final = 1 / math.asinh(MAGNITUDE)


def optimize(model: Any, precision: str = "") -> None:
    """Make inference fast: adapters merged, and GPT-2 in fewer operations; the model can then not be trained or saved.

    Args:
        model: A `DecisionModel` or `IntervalModel`, in any mode; it is changed.
        precision: Precision of the backbone, one of `PRECISIONS`; empty: as it is. `int8` is for a CPU.

    Raises:
        L4SError: There is no such precision, or not for this model.
    """
    if precision not in ("", *PRECISIONS):
        raise unknown("precision", precision, PRECISIONS)
    model.requires_grad_(False).eval()
    if isinstance(model, DecisionModel):
        model.encoder.fold()
    backbone = model.backbone
    backbone.merge()
    if backbone.family == "gpt2":
        now = "bfloat16" if backbone.dtype == torch.bfloat16 else "float32"
        model.backbone = FastGPT2(backbone, precision or now)
    elif precision == "int8":
        channels = torch.ao.quantization.per_channel_dynamic_qconfig
        linear = {name: module for name, module in backbone.model.named_modules() if isinstance(module, nn.Linear)}
        # Not those that narrow a wider layer: what they read has outliers, which leave the rest few of 256 levels.
        chosen = {name: channels for name, module in linear.items() if module.in_features <= backbone.width}
        backbone.model = _quantized(backbone.model.float(), chosen)
    elif precision:
        backbone.to(getattr(torch, precision))


def _quantized(module: nn.Module, which: Any) -> Any:
    """Return a module with parts of it (`qconfig_spec`) in int8, for the CPU: activations are quantized on the fly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch recommends torchao instead, which is no faster on CPUs
        quantization: Any = torch.ao.quantization
        return quantization.quantize_dynamic(module, which, dtype=torch.qint8, inplace=True)


def start(model: DecisionModel, n: int, step: Callable[..., Tensor] | None = None) -> Step:
    """Start `n` queues, all at timestep 0.

    Args:
        model: In `eval` mode.
        n: Number of queues.
        step: `DecisionModel.step` compiled by `torch.compile`; None: as it is, or compiled code where the model `fits`.

    Returns:
        A function that returns the logits of the next actions (n, 3), see `DecisionModel.step`.
    """
    if step is None and fits(model, n):
        return Compiled(model, n)
    return partial(step or model.step, model.start(n))


# -- GPT-2 in PyTorch


class KeysValues:
    """Keys and values of a `FastGPT2`: a strip of memory in which the window moves on.

    The window is copied back to the start only when the end is reached, not at every step as with joined tensors.

    Attributes:
        start: First remembered token.
        end: One past the last remembered token.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._strip: Tensor | None = None  # (layers, 2, B, heads, room, D)
        self.start = self.end = 0

    def extend(self, count: int, *sizes: int, like: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Make room for tokens.

        Args:
            count: Number of tokens, N.
            sizes: Layers, queues B, heads, width D of a head.
            like: A tensor of the same device and type.

        Returns:
            Where each layer has to write its keys and values (2, B, heads, N, D); and where they are afterwards, with
            those before them: keys of the first layer, its values, keys of the second ..., each (B * heads, S, D).
        """
        strip, (layers, batch, heads, width) = self._strip, sizes
        stale = strip is not None and strip.is_inference() and not torch.is_inference_mode_enabled()
        if strip is None or stale or self.end + count > strip.shape[4]:
            length = self.end - self.start
            new = like.new_empty(layers, 2, batch, heads, _ROOM * (length + count), width)
            if strip is not None:
                new[..., :length, :] = strip[..., self.start : self.end, :]
            self._strip = strip = new
            self.start, self.end = 0, length
        first, self.end = self.end, self.end + count
        stored = strip[..., self.start : self.end, :].view(2 * layers, batch * heads, self.end - self.start, width)
        return strip[..., first : self.end, :].unbind(0), stored.unbind(0)


def as_linear(layer: Any) -> nn.Linear:
    """Return a `Conv1D` of transformers as a linear layer: its weight is stored transposed."""
    rows, columns = layer.weight.shape
    made = nn.Linear(rows, columns)
    made.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
    made.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return made


class _Block(nn.Module):
    """One layer of GPT-2."""

    def __init__(self, block: Any, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = block.ln_1, block.ln_2
        self.attend, self.project = as_linear(block.attn.c_attn), as_linear(block.attn.c_proj)
        self.widen, self.narrow = as_linear(block.mlp.c_fc), as_linear(block.mlp.c_proj)

    def forward(self, x: Tensor, mask: Tensor, batch: int, memory: tuple[Tensor, ...]) -> Tensor:
        """Compute the hidden states.

        Args:
            x: (B * N, width).
            mask: (1, N, S) with memory, else (1 or B, 1, N, N).
            batch: B.
            memory: Where to write keys and values, all keys, all values, as `KeysValues.extend` has them; or nothing.
        """
        rows, width = x.shape
        both = self.attend(self.first_norm(x)).view(batch, -1, 3, self.heads, width // self.heads)
        both = both.permute(2, 0, 3, 1, 4)  # (3, B, heads, N, D)
        if memory:
            fresh, keys, values = memory
            fresh.copy_(both[1:])
            mixed = _mix(both[0].flatten(0, 1), keys, values, mask).view(both.shape[1:])
        else:
            mixed = F.scaled_dot_product_attention(both[0], both[1], both[2], mask)
        x = x + self.project(mixed.transpose(1, 2).reshape(rows, width))
        more: Tensor = self.narrow(F.gelu(self.widen(self.second_norm(x)), approximate="tanh"))
        return x + more


def _mix(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Compute attention of a few queries (B * heads, N, D), for which PyTorch's fused operation is slower."""
    scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=queries.shape[2] ** -0.5)
    return torch.bmm(scores.softmax(-1), values)


class FastGPT2(nn.Module):
    """Replaces a `Backbone` and has the same attributes."""

    family = "gpt2"
    positions = "learned"

    def __init__(self, backbone: Backbone, precision: str = "float32") -> None:
        """Copy the weights.

        Args:
            backbone: A GPT-2 whose adapters are merged.
            precision: Precision of the weights.

        Raises:
            L4SError: It is another family, or uses options of GPT-2 that are not supported here.
        """
        super().__init__()
        sizes = backbone.core.config
        plain = sizes.model_type == "gpt2" and sizes.activation_function == "gelu_new" and sizes.scale_attn_weights
        if not plain or sizes.scale_attn_by_inverse_layer_idx:
            raise L4SError(f"llm: no fast form of {backbone.family!r} with its options: leave `optimize` out")
        core = backbone.core
        self.precision = precision
        self.width, self.limit = backbone.width, backbone.limit
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.places = nn.Parameter(core.wpe.weight.detach().clone(), requires_grad=False)
        self.heads = sizes.num_attention_heads
        self.blocks: Any = nn.ModuleList(_Block(block, self.heads) for block in core.h)
        self.norm = core.ln_f
        self.requires_grad_(False)
        self.to(self.dtype).eval()
        if precision == "int8":
            self.blocks = _quantized(self.blocks, {nn.Linear})

    def new_cache(self) -> KeysValues:
        """Return an empty cache."""
        return KeysValues()

    def forward(self, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: KeysValues | None = None) -> Tensor:
        """Compute the hidden states, as `Backbone.forward` does."""
        batch, length, width = embeddings.shape
        x = (embeddings.to(self.dtype) + F.embedding(positions, self.places)).view(-1, width)
        memories: Any = [()] * len(self.blocks)
        if cache is not None:
            fresh, stored = cache.extend(length, len(self.blocks), batch, self.heads, width // self.heads, like=x)
            memories, mask = zip(fresh, stored[::2], stored[1::2], strict=True), mask[:, 0]
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, mask, batch, memory)
        hidden: Tensor = self.norm(x).float().view(embeddings.shape)
        return hidden

    def forget(self, cache: KeysValues, keep: int) -> KeysValues:
        """Return the cache with its last `keep` tokens."""
        cache.start = max(cache.start, cache.end - keep)
        return cache


# -- a whole step, compiled


def _inner(function: Any) -> Any:
    """Compile a function that `_step` calls. Arrays are copied by loops: whole-array assignments compile slowly."""
    return numba.njit(function, error_model="numpy", fastmath=_MATHS, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@_inner
def _linear(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """Multiply (M, K) by (K, N) and add (N,), to (M, N); the weight is read once, four rows at a time."""
    inner, four = len(weight), len(weight) // 4 * 4
    for m in range(len(x)):
        for n in range(out.shape[1]):
            out[m, n] = bias[n]
    for k in range(0, four, 4):
        for m in range(len(x)):
            a, b, c, d = x[m, k], x[m, k + 1], x[m, k + 2], x[m, k + 3]
            for n in range(out.shape[1]):
                out[m, n] += a * weight[k, n] + b * weight[k + 1, n] + c * weight[k + 2, n] + d * weight[k + 3, n]
    for k in range(four, inner):
        for m in range(len(x)):
            a = x[m, k]
            for n in range(out.shape[1]):
                out[m, n] += a * weight[k, n]


@_inner
def _add(x: Array, more: Array) -> None:
    """Add rows (M, W) to others, in place."""
    for m in range(len(x)):
        for w in range(x.shape[1]):
            x[m, w] += more[m, w]


@_inner
def _normalize(x: Array, norm: Array, out: Array) -> None:
    """Apply layer normalisation to rows (M, W) with scale and shift (2, W); `out` may be `x`."""
    width = x.shape[1]
    for m in range(len(x)):
        mean = np.float32(0.0)
        for w in range(width):
            mean += x[m, w]
        mean /= np.float32(width)
        square = np.float32(0.0)
        for w in range(width):
            square += (x[m, w] - mean) * (x[m, w] - mean)
        scale = np.float32(1.0) / np.sqrt(square / np.float32(width) + np.float32(_EPSILON))
        for w in range(width):
            out[m, w] = (x[m, w] - mean) * scale * norm[0, w] + norm[1, w]


@_inner
def _attend(both: Array, keys: Array, values: Array, heads: int, first: int, scores: Array, out: Array) -> None:
    """Compute attention.

    Args:
        both: Queries, keys and values of the step's tokens (N, 3 * W).
        keys: Keys of all tokens (S, W), those of the step from row `first` on.
        values: Values in the same form.
        heads: Number of heads.
        first: See `keys`. A token of the step does not see later ones.
        scores: Scratch (S,).
        out: (N, W).
    """
    count, width = out.shape
    size, length = width // heads, len(keys)
    scale = np.float32(1.0 / math.sqrt(size))
    for m in range(count):
        for w in range(width):
            keys[first + m, w], values[first + m, w] = both[m, width + w], both[m, 2 * width + w]
            out[m, w] = np.float32(0.0)
    for m in range(count):
        for start in range(0, width, size):
            highest = np.float32(-np.inf)
            for s in range(length):
                total = np.float32(0.0)
                for w in range(start, start + size):
                    total += both[m, w] * keys[s, w]
                hidden = first + m < s < first + count
                scores[s] = np.float32(-np.inf) if hidden else total * scale
                highest = max(highest, scores[s])
            total = np.float32(0.0)
            for s in range(length):
                scores[s] = np.exp(scores[s] - highest)
                total += scores[s]
            for s in range(length):
                share = scores[s] / total
                for w in range(start, start + size):
                    out[m, w] += share * values[s, w]


@_inner
def _layers(x: Array, heads: int, layers: Any, keys: Array, values: Array, first: int) -> None:
    """Run all layers on tokens (N, W), in place; keys and values (layers, S, W)."""
    first_norms, attends, attend_biases, projects, project_biases = layers[:5]
    second_norms, widens, widen_biases, narrows, narrow_biases = layers[5:]
    normed, mixed = np.empty(x.shape, np.float32), np.empty(x.shape, np.float32)
    both = np.empty((len(x), 3 * x.shape[1]), np.float32)
    wide = np.empty((len(x), widens.shape[2]), np.float32)
    scores = np.empty(keys.shape[1], np.float32)
    for layer in range(len(attends)):
        _normalize(x, first_norms[layer], normed)
        _linear(normed, attends[layer], attend_biases[layer], both)
        _attend(both, keys[layer], values[layer], heads, first, scores, mixed)
        _linear(mixed, projects[layer], project_biases[layer], normed)
        _add(x, normed)
        _normalize(x, second_norms[layer], normed)
        _linear(normed, widens[layer], widen_biases[layer], wide)
        for m in range(len(x)):
            for w in range(wide.shape[1]):  # GELU by its usual approximation: x times the logistic of 1.6 x ...
                v = wide[m, w]
                u = np.float32(-2.0 * math.sqrt(2.0 / math.pi)) * (v + np.float32(0.044715) * v * v * v)
                wide[m, w] = v / (np.float32(1.0) + np.exp(u))
        _linear(wide, narrows[layer], narrow_biases[layer], normed)
        _add(x, normed)


@_inner
def _encode(seen: Array, encoder: Any, tokens: Array) -> None:
    """Add the encoding of channels (F, 1, 3 * length) to the tokens of a state, one or F of them (N, W)."""
    weight, bias, projection, projection_bias = encoder
    code = np.empty((1, weight.shape[2]), np.float32)
    token = np.empty((1, tokens.shape[1]), np.float32)
    for f in range(len(seen)):
        at = f if len(tokens) > 1 else 0
        _linear(seen[f], weight[f], bias[f], code)
        for h in range(code.shape[1]):
            code[0, h] *= np.float32(0.5 * (1.0 + math.erf(code[0, h] * math.sqrt(0.5))))
        _linear(code, projection[f], projection_bias[f], token)
        _add(tokens[at : at + 1], token)


@_inner
def _logarithm(value: float) -> np.float32:
    """Return the logarithm on the encoders' scale."""
    return np.float32(math.asinh(MAGNITUDE * value) * _LOG)


@_inner
def _look(seen: Array, observation: Array) -> None:
    """Move the channels (F, 1, 3 * length) on by one step: value, logarithm, and 1 for known."""
    length = seen.shape[2] // 3
    for f in range(len(seen)):
        row = seen[f, 0]
        for at in range(len(row) - 1):
            row[at] = row[at + 1]
        value = observation[f]
        row[length - 1], row[2 * length - 1], row[3 * length - 1] = value, _logarithm(value), np.float32(1.0)


@partial(kept, nogil=True, error_model="numpy", fastmath=_MATHS)
def _step(
    sizes: Any, embeddings: Any, encoder: Any, layers: Any, memory: Any,
    to_go: Array, observations: Array, previous: Array, logits: Array,
) -> None:  # fmt: skip
    """Run one step of each queue; arguments as in `Compiled`."""
    heads, window, cycle, scale = sizes
    actions, times, places, returns, returns_bias, norm, last_norm, head, head_bias = embeddings
    ages, channels, keys, values = memory
    tokens, width = keys.shape[2] // window, keys.shape[3]
    x, end = np.empty((tokens, width), np.float32), np.empty((1, width), np.float32)
    for i in range(len(ages)):
        age = ages[i]
        time, place = age % len(times), age % cycle * tokens
        action = previous[i] if age > 0 else len(actions) - 1
        left = to_go[i] * scale
        logarithm = _logarithm(left)
        for w in range(width):
            for t in range(tokens):
                x[t, w] = times[time, w]
            x[0, w] += actions[action, w]
            x[1, w] += left * returns[0, w] + logarithm * returns[1, w] + returns_bias[w]
        _look(channels[i], observations[i])
        _encode(channels[i], encoder, x[2:])
        _normalize(x, norm, x)
        _add(x, places[place : place + tokens])
        length, first = min(age + 1, window) * tokens, age % window * tokens
        _layers(x, heads, layers, keys[i, :, :length], values[i, :, :length], first)
        _normalize(x[tokens - 1 :], last_norm, end)
        _linear(end, head, head_bias, logits[i : i + 1])
        ages[i] += 1


def fits(model: DecisionModel, n: int) -> bool:
    """Return whether `Compiled` can decide for `n` queues with a model that was made fast, and is faster."""
    bone = model.backbone
    plain = model.config.task is None and isinstance(model.encoder.encoders[0], FoldedEncoder)
    if getattr(bone, "precision", "") != "float32" or not plain:
        return False
    here = model.head.weight.device.type == "cpu" and bone.norm.eps == model.norm.eps == _EPSILON
    return bool(here and n * bone.width <= _LIMIT)


def _numpy(tensor: Tensor, dtype: Any = np.float32) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype)


def _pair(norm: Any) -> Array:
    """Return scale and shift of a layer normalisation (2, W)."""
    return np.stack((_numpy(norm.weight), _numpy(norm.bias)))


class Compiled:
    """Memory of a few queues, and the function that runs their next step.

    A step of a small model is a hundred operations of a few microseconds each; most of this time is PyTorch's
    overhead. Here it is one call, which computes queue by queue.
    """

    def __init__(self, model: DecisionModel, n: int) -> None:
        """Start `n` queues of a model that `fits`; the first call on a machine takes seconds."""
        config, blocks, encoder = model.config, list(model.backbone.blocks), model.encoder
        folded: Any = encoder.encoders[0]
        features, tokens, width = len(config.encoder.features), config.step_tokens, model.backbone.width
        norms = [np.stack([_pair(getattr(block, name)) for block in blocks]) for name in ("first_norm", "second_norm")]
        linear = [
            np.stack([_numpy(part) for part in parts])
            for name in ("attend", "project", "widen", "narrow")
            for parts in zip(
                *((of.weight.T, of.bias) for of in (getattr(block, name) for block in blocks)), strict=True
            )
        ]
        self._sizes = model.backbone.heads, config.window, len(model.places), np.float32(1 / config.return_scale)
        tables = model.embed_action.weight, model.embed_time.weight, model.backbone.places, model.embed_return.weight.T
        self._embeddings = (
            *map(_numpy, tables), _numpy(model.embed_return.bias), _pair(model.norm), _pair(model.backbone.norm),
            _numpy(model.head.weight.T), _numpy(model.head.bias),
        )  # fmt: skip
        parts = folded.weight, folded.bias[:, 0], encoder.projection, encoder.projection_bias
        self._encoder = tuple(map(_numpy, parts))
        self._layers = (norms[0], *linear[:4], norms[1], *linear[4:])
        room = n, len(blocks), config.window * tokens, width
        memory: tuple[Array, ...] = (
            np.zeros(n, np.int64), np.zeros((n, features, 1, folded.weight.shape[1]), np.float32),
            np.empty(room, np.float32), np.empty(room, np.float32),
        )  # fmt: skip
        nothing, self._memory = torch.empty(0), tuple(part[:0] for part in memory)
        self(nothing, torch.empty(0, features), nothing)  # no queue: compiles, or reads what was compiled
        self._memory = memory

    def __call__(self, returns: Tensor, observations: Tensor, previous: Tensor) -> Tensor:
        """Return logits (n, actions), with the arguments of `DecisionModel.step`."""
        logits = np.empty((len(self._memory[0]), self._embeddings[-1].size), np.float32)
        _step(
            self._sizes, self._embeddings, self._encoder, self._layers, self._memory,
            _numpy(returns), _numpy(observations), _numpy(previous, np.int64), logits,
        )  # fmt: skip
        return torch.from_numpy(logits)
