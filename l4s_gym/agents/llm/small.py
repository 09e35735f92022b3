"""Small GPT-2 models deciding for a few queues on a CPU: the whole step compiled, in float32.

A step of a small model is a hundred operations of a few microseconds each, most of which PyTorch spends on getting
there. Here it is one call. It computes queue by queue, so queues that began at different times need no mask; large
models and large batches are faster in PyTorch's matrix products (`fits` says where).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l4s_gym.agents.llm.encoders import MAGNITUDE, FoldedEncoder
from l4s_gym.compiled import kept

if TYPE_CHECKING:
    from l4s_gym.agents.llm.model import DecisionModel

Array = npt.NDArray[Any]
_LIMIT: Final = 256
"""Of queues times width: beyond it PyTorch's matrix products are as fast."""
_MATHS: Final = {"reassoc", "contract", "nsz"}  # sums in any order, so that they can be vectors
_EPSILON: Final = 1e-5
_LOG: Final = 1 / math.asinh(MAGNITUDE)


def _inner(function: Any) -> Any:
    """Compile what `_step` calls. Whole arrays are copied by loops: their assignments take seconds to compile."""
    return numba.njit(function, error_model="numpy", fastmath=_MATHS, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@_inner
def _linear(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """(M, K), (K, N), (N,) -> (M, N); the weight is read once, four rows at a time."""
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
    """Layer normalisation of rows (M, W) with scale and shift (2, W); `out` may be `x`."""
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
    """Attention.

    Args:
        both: Queries, keys and values of the step's tokens (N, 3 * W).
        keys: Of all tokens (S, W), those of the step from row `first` on.
        values: Likewise.
        heads: Number of heads.
        first: See `keys`. A token of the step does not see those after it.
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
    """All layers on tokens (N, W), in place; keys and values (layers, S, W)."""
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
def _encode(seen: Array, encoder: Any, missing: bool, tokens: Array) -> None:
    """Channels (F, 1, 3 * length) to the tokens of a state, one or F of them (N, W); what is there is added to."""
    weight, bias, projection, projection_bias, may_miss, unknown = encoder
    code = np.empty((1, weight.shape[2]), np.float32)
    token = np.empty((1, tokens.shape[1]), np.float32)
    for f in range(len(seen)):
        at = f if len(tokens) > 1 else 0
        _linear(seen[f], weight[f], bias[f], code)
        for h in range(code.shape[1]):
            code[0, h] *= np.float32(0.5 * (1.0 + math.erf(code[0, h] * math.sqrt(0.5))))
        _linear(code, projection[f], projection_bias[f], token)
        _add(tokens[at : at + 1], unknown if missing and may_miss[f] else token)


@_inner
def _logarithm(value: float) -> np.float32:
    """As that of the encoders."""
    return np.float32(math.asinh(MAGNITUDE * value) * _LOG)


@_inner
def _look(seen: Array, observation: Array, lacks: Array, missing: bool) -> None:
    """Move the channels (F, 1, 3 * length) on by one step: value, logarithm, whether it is known."""
    length = seen.shape[2] // 3
    for f in range(len(seen)):
        row = seen[f, 0]
        for at in range(len(row) - 1):
            row[at] = row[at + 1]
        known = not (missing and lacks[f])
        value = observation[f] if known else np.float32(0.0)
        row[length - 1], row[2 * length - 1], row[3 * length - 1] = value, _logarithm(value), np.float32(known)


@partial(kept, nogil=True, error_model="numpy", fastmath=_MATHS)
def _step(
    sizes: Any, embeddings: Any, encoder: Any, layers: Any, memory: Any,
    to_go: Array, observations: Array, previous: Array, missing: Array, logits: Array,
) -> None:  # fmt: skip
    """One step of each queue; arguments as in `Small`."""
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
        _look(channels[i], observations[i], encoder[4], missing[i])
        _encode(channels[i], encoder, missing[i], x[2:])
        _normalize(x, norm, x)
        _add(x, places[place : place + tokens])
        length, first = min(age + 1, window) * tokens, age % window * tokens
        _layers(x, heads, layers, keys[i, :, :length], values[i, :, :length], first)
        _normalize(x[tokens - 1 :], last_norm, end)
        _linear(end, head, head_bias, logits[i : i + 1])
        ages[i] += 1


def fits(model: DecisionModel, n: int) -> bool:
    """Whether `Small` can decide for so many queues with a model that was made fast, and is faster at it."""
    bone = model.backbone
    if getattr(bone, "precision", "") != "float32" or not isinstance(model.encoder.encoders[0], FoldedEncoder):
        return False
    here = model.head.weight.device.type == "cpu" and bone.norm.eps == model.norm.eps == _EPSILON
    return bool(here and n * bone.width <= _LIMIT)


def _numpy(tensor: Tensor, dtype: Any = np.float32) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype)


class Small:
    """What a few queues remember, and their next step."""

    def __init__(self, model: DecisionModel, n: int) -> None:
        """Start `n` queues of a model that `fits`; the first time on a machine this takes seconds."""
        config, blocks, encoder = model.config, list(model.backbone.blocks), model.encoder
        folded: Any = encoder.encoders[0]
        features, tokens, width = len(config.encoder.features), config.step_tokens, model.backbone.width

        def stack(*names: str) -> tuple[Array, ...]:
            """Weights (layers, in, out) and biases of linear layers, or scales and shifts (layers, 2, W) of norms."""
            found: list[Array] = []
            for name in names:
                parts = [getattr(block, name) for block in blocks]
                if "norm" in name:
                    found.append(np.stack([_pair(part) for part in parts]))
                else:
                    found += [np.stack([_numpy(part.weight.T) for part in parts])]
                    found += [np.stack([_numpy(part.bias) for part in parts])]
            return tuple(found)

        self._sizes = model.backbone.heads, config.window, len(model.places), np.float32(1 / config.return_scale)
        tables = model.embed_action.weight, model.embed_time.weight, model.backbone.places, model.embed_return.weight.T
        self._embeddings = (
            *map(_numpy, tables), _numpy(model.embed_return.bias), _pair(model.norm), _pair(model.backbone.norm),
            _numpy(model.head.weight.T), _numpy(model.head.bias),
        )  # fmt: skip
        unknown = torch.zeros(width) if encoder.unknown is None else encoder.unknown
        self._encoder = (
            _numpy(folded.weight), _numpy(folded.bias[:, 0]), _numpy(encoder.projection),
            _numpy(encoder.projection_bias), _numpy(encoder.may_miss, np.bool_), _numpy(unknown[None]),
        )  # fmt: skip
        self._layers = stack("first_norm", "attend", "project", "second_norm", "widen", "narrow")
        room = n, len(blocks), config.window * tokens, width
        memory: tuple[Array, ...] = (
            np.zeros(n, np.int64), np.zeros((n, features, 1, folded.weight.shape[1]), np.float32),
            np.empty(room, np.float32), np.empty(room, np.float32),
        )  # fmt: skip
        self._none = np.zeros(n, np.bool_)
        nothing, self._memory = torch.empty(0), tuple(part[:0] for part in memory)
        self.step(nothing, torch.empty(0, features), nothing)  # of no queue: compiles, or reads what was compiled
        self._memory = memory

    def step(
        self,
        returns: Tensor,
        observations: Tensor,
        previous: Tensor,
        reset: Tensor | None = None,
        missing: Tensor | None = None,
    ) -> Tensor:
        """Logits (n, actions), of arguments as those of `DecisionModel.step`."""
        ages, channels = self._memory[:2]
        if reset is not None:
            begun = _numpy(reset, np.bool_)
            ages[begun] = 0
            channels[begun] = 0.0
        logits = np.empty((len(ages), self._embeddings[-1].size), np.float32)
        _step(
            self._sizes, self._embeddings, self._encoder, self._layers, self._memory,
            _numpy(returns), _numpy(observations), _numpy(previous, np.int64),
            self._none if missing is None else _numpy(missing, np.bool_), logits,
        )  # fmt: skip
        return torch.from_numpy(logits)


def _pair(norm: Any) -> Array:
    """Scale and shift of a layer normalisation (2, W)."""
    return np.stack((_numpy(norm.weight), _numpy(norm.bias)))
