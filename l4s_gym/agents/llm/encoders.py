"""Encoders of states, one kind for each modality, and the registry for encoders from outside.

An encoder takes all features of its kind and shape at once, with separate weights for each: one operation
instead of eight small ones. It is causal: its output for a step depends on that step and on `reach` steps
before it. It reads `reach` steps more than it writes, so training (zeros before the start) and deciding step by step
(the last steps of the stream) are the same operation.

```python
class Spectrum(nn.Module):
    reach = 0
    def __init__(self, features, config): ...
    def forward(self, values, known):  # (B, K, G, *shape), (B, K, G) -> (B, K, G, config.hidden)
        ...

register("spectrum", Spectrum)
EncoderConfig(features=(Feature("load", "scalar"), Feature("radio", "spectrum", (64,))), unknown="")
```
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l4s_gym.agents.llm.settings import EncoderConfig, Feature
from l4s_gym.errors import L4SError, unknown

MAGNITUDE: Final = 1000.0
"""Values from about 1 / MAGNITUDE on are distinguished by their logarithm."""

Factory = Callable[[tuple[Feature, ...], EncoderConfig], nn.Module]
ENCODERS: Final[dict[str, Factory]] = {}
"""The registry: kind -> function from the features (all of one shape) and the configuration to an encoder."""


def register(kind: str, factory: Factory) -> None:
    """Add a kind of encoder; a model that uses it can only be loaded after this call.

    Raises:
        L4SError: The name is taken.
    """
    if ENCODERS.setdefault(kind, factory) is not factory:
        raise L4SError(f"encoder {kind!r}: is registered already: choose another name")


def expand(values: Tensor) -> Tensor:
    """Return values (...) on a linear and a logarithmic scale: (..., 2). Probabilities span orders of magnitude."""
    return torch.stack((values, _logarithm(values)), -1)


def _logarithm(values: Tensor) -> Tensor:
    """Return a scale that is logarithmic on both sides of 0, and linear near it; 1 stays 1."""
    return torch.asinh(MAGNITUDE * values) * (1 / math.asinh(MAGNITUDE))


def _channels(values: Tensor, known: Tensor) -> Tensor:
    """Return values (B, K, G) as (B, K, G, 3): the value on two scales, and whether it is known."""
    return torch.stack((values, _logarithm(values), known.to(values.dtype)), -1)


def _scalar_only(features: tuple[Feature, ...]) -> None:
    for feature in features:
        if feature.shape:
            raise L4SError(f"feature {feature.name!r}: shape {feature.shape}: a {feature.kind} has none, leave it out")


def _uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """Return a parameter with the initialisation of `nn.Linear`."""
    return nn.Parameter(torch.empty(shape).uniform_(-1, 1) / math.sqrt(fan_in))


class ScalarEncoder(nn.Module):
    """One fully connected path for each scalar."""

    reach = 0

    def __init__(self, features: tuple[Feature, ...], config: EncoderConfig) -> None:
        """Build the encoder."""
        super().__init__()
        _scalar_only(features)
        self.weight = _uniform((len(features), 3, config.hidden), 3)  # (G, channels, hidden)
        self.bias = _uniform((len(features), config.hidden), 3)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """Encode (B, K, G) as (B, K, G, hidden)."""
        return F.gelu(torch.einsum("bkgc,gch->bkgh", _channels(values, known), self.weight) + self.bias)


class SeriesEncoder(nn.Module):
    """Causal convolutions of several lengths over each time series.

    The channels are shared among the lengths. All of them are one convolution of the greatest length, in
    which the shorter ones have zeros for older steps.
    """

    mask: Tensor

    def __init__(self, features: tuple[Feature, ...], config: EncoderConfig) -> None:
        """Build the encoder.

        Raises:
            L4SError: There are fewer channels than lengths, or a feature is no single number.
        """
        super().__init__()
        _scalar_only(features)
        kernels, hidden = config.kernels, config.hidden
        if hidden < len(kernels):
            raise L4SError(f"encoder: hidden={hidden} is less than the {len(kernels)} kernels: raise it")
        self.length = max(kernels)
        self.reach = self.length - 1
        lengths = [kernels[channel * len(kernels) // hidden] for channel in range(hidden)]
        mask = torch.zeros(self.length, 3, hidden)
        for channel, length in enumerate(lengths):
            mask[self.length - length :, :, channel] = 1.0
        scale = mask.sum((0, 1)).rsqrt()  # from each channel's own fan-in
        self.register_buffer("mask", mask, persistent=False)
        self.weight = nn.Parameter(torch.empty(len(features), *mask.shape).uniform_(-1, 1) * scale)
        self.bias = nn.Parameter(torch.empty(len(features), hidden).uniform_(-1, 1) * scale)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """Encode (B, reach + K, G) as (B, K, G, hidden)."""
        windows = _channels(values, known).unfold(1, self.length, 1)  # (B, K, G, 3, length)
        return F.gelu(torch.einsum("bkgcl,glch->bkgh", windows, self.weight * self.mask) + self.bias)


class VectorEncoder(nn.Module):
    """One fully connected layer over each vector of shape (n,)."""

    reach = 0

    def __init__(self, features: tuple[Feature, ...], config: EncoderConfig) -> None:
        """Build the encoder.

        Raises:
            L4SError: The shape is not that of a vector.
        """
        super().__init__()
        if len(features[0].shape) != 1:
            raise L4SError(f"feature {features[0].name!r}: shape {features[0].shape}: give (length,)")
        size = 2 * features[0].size
        self.weight = _uniform((len(features), size, config.hidden), size)
        self.bias = _uniform((len(features), config.hidden), size)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """Encode (B, K, G, n) as (B, K, G, hidden)."""
        return F.gelu(torch.einsum("bkgc,gch->bkgh", expand(values).flatten(-2), self.weight) + self.bias)


class FoldedEncoder(nn.Module):
    """Scalars and time series in one operation, for inference only: a scalar's earlier steps have weights of 0."""

    def __init__(self, parts: list[tuple[ScalarEncoder | SeriesEncoder, Tensor]], features: int, reach: int) -> None:
        """Copy the weights.

        Args:
            parts: `ScalarEncoder` and `SeriesEncoder`, and the indices of their features.
            features: Number of features.
            reach: Largest number of earlier steps that an encoder uses.
        """
        super().__init__()
        self.reach = reach
        like = parts[0][0].weight.detach()
        weight = like.new_zeros(features, reach + 1, *like.shape[-2:])  # (G, length, channels, hidden)
        bias = like.new_zeros(features, 1, like.shape[-1])
        for part, members in parts:
            steps = part.weight[:, None] if isinstance(part, ScalarEncoder) else part.weight * part.mask
            weight[members, -steps.shape[1] :] = steps.detach()
            bias[members, 0] = part.bias.detach()
        self.weight = nn.Parameter(weight.transpose(1, 2).flatten(1, 2), False)  # as `forward` has its windows
        self.bias = nn.Parameter(bias, False)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """Encode (B, reach + K, G) as (B, K, G, hidden)."""
        batch, steps, count = values.shape
        windows = _channels(values, known).unfold(1, self.reach + 1, 1)  # (B, K, G, channels, length)
        windows = windows.permute(2, 0, 1, 3, 4).reshape(count, -1, self.weight.shape[1])
        code = F.gelu(torch.baddbmm(self.bias, windows, self.weight))
        return code.transpose(0, 1).view(batch, steps - self.reach, count, -1)


class ImageEncoder(nn.Module):
    """A small convolutional network for each image of shape (height, width) or (channels, height, width)."""

    reach = 0

    def __init__(self, features: tuple[Feature, ...], config: EncoderConfig) -> None:
        """Build the encoder.

        Raises:
            L4SError: The shape is not that of an image.
        """
        super().__init__()
        shape = features[0].shape
        if len(shape) not in (2, 3):
            raise L4SError(f"feature {features[0].name!r}: shape {shape}: give (height, width) or (channels, ...)")
        self.shape = (1, *shape) if len(shape) == 2 else shape
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(self.shape[0], config.hidden, 3, 2, 1),
                nn.GELU(),
                nn.Conv2d(config.hidden, config.hidden, 3, 2, 1),
                nn.GELU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
            for _ in features
        )

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """Encode (B, K, G, *shape) as (B, K, G, hidden)."""
        batch, steps = values.shape[:2]
        images = values.reshape(batch * steps, len(self.nets), *self.shape)
        codes = [net(images[:, index]) for index, net in enumerate(self.nets)]
        return torch.stack(codes, 1).view(batch, steps, len(self.nets), -1)


class GraphEncoder(nn.Module):
    """Two rounds of messages on each graph of shape (nodes, nodes + values): adjacency, then the nodes' values."""

    reach = 0

    def __init__(self, features: tuple[Feature, ...], config: EncoderConfig) -> None:
        """Build the encoder.

        Raises:
            L4SError: The shape is not that of a graph.
        """
        super().__init__()
        shape = features[0].shape
        if len(shape) != 2 or shape[1] <= shape[0]:
            raise L4SError(f"feature {features[0].name!r}: shape {shape}: give (nodes, nodes + values of a node)")
        self.count = shape[0]
        size, hidden, count = shape[1] - shape[0], config.hidden, len(features)
        self.first = _uniform((count, size, hidden), size)
        self.second = _uniform((count, hidden, hidden), hidden)
        self.bias = nn.Parameter(torch.zeros(2, count, 1, hidden))

    def nodes(self, values: Tensor) -> Tensor:
        """Encode (B, K, G, nodes, nodes + values) as (B, K, G, nodes, hidden)."""
        adjacency, x = values[..., : self.count], values[..., self.count :]
        adjacency = adjacency + torch.eye(self.count, device=values.device)
        adjacency = adjacency / adjacency.sum(-1, keepdim=True).clamp_min(1e-6)
        x = F.gelu(torch.einsum("bkgnm,bkgmc,gch->bkgnh", adjacency, x, self.first) + self.bias[0])
        return F.gelu(torch.einsum("bkgnm,bkgmc,gch->bkgnh", adjacency, x, self.second) + self.bias[1])

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """Encode (B, K, G, nodes, nodes + values) as (B, K, G, hidden): the mean over the nodes."""
        return self.nodes(values).mean(-2)


register("scalar", ScalarEncoder)
register("series", SeriesEncoder)
register("vector", VectorEncoder)
register("image", ImageEncoder)
register("graph", GraphEncoder)


class StateEncoder(nn.Module):
    """All features of a step: each goes through the encoder of its kind, then through its own projection.

    Attributes:
        reach: Number of earlier steps that it uses.
    """

    feature_of_column: Tensor
    may_miss: Tensor
    order: Tensor

    def __init__(self, config: EncoderConfig, width: int) -> None:
        """Build the encoder.

        Args:
            config: Features and sizes.
            width: Width of the embeddings.

        Raises:
            L4SError: A kind is not in the registry.
        """
        super().__init__()
        features = config.features
        owner = [index for index, feature in enumerate(features) for _ in range(feature.size)]
        self.register_buffer("feature_of_column", torch.tensor(owner), persistent=False)
        starts = [sum(feature.size for feature in features[:index]) for index in range(len(features))]
        self.encoders: Any = nn.ModuleList()
        self.reach = 0
        self._shapes: list[tuple[int, ...]] = []
        order = sorted(range(len(features)), key=lambda index: (features[index].kind, features[index].shape))
        for (kind, shape), found in groupby(order, key=lambda index: (features[index].kind, features[index].shape)):
            members = list(found)
            if kind not in ENCODERS:
                raise unknown("kind of encoder (register it first)", kind, tuple(ENCODERS))
            encoder: Any = ENCODERS[kind](tuple(features[index] for index in members), config)
            self.encoders.append(encoder)
            self.reach = max(self.reach, int(encoder.reach))
            columns = [start + offset for start in (starts[index] for index in members)
                       for offset in range(features[members[0]].size)]  # fmt: skip
            index = len(self._shapes)
            self.register_buffer(f"members{index}", torch.tensor(members), persistent=False)
            self.register_buffer(f"columns{index}", torch.tensor(columns), persistent=False)
            self._shapes.append(shape)
        self.register_buffer("order", torch.tensor(order).argsort(), persistent=False)
        may_miss = torch.tensor([feature.name == config.unknown for feature in features])
        self.register_buffer("may_miss", may_miss, persistent=False)
        self.projection = _uniform((len(features), config.hidden, width), config.hidden)
        self.projection_bias = nn.Parameter(torch.zeros(len(features), width))
        self.unknown = nn.Parameter(torch.randn(width) * 0.02) if config.unknown else None

    def fold(self) -> None:
        """Combine scalars and time series into one operation, if there is nothing else; then training is over."""
        parts = [
            (encoder, cast(Tensor, getattr(self, f"members{index}")))
            for index, encoder in enumerate(self.encoders)
            if isinstance(encoder, ScalarEncoder | SeriesEncoder)
        ]
        if len(parts) == len(self.encoders):
            self.encoders = nn.ModuleList([FoldedEncoder(parts, len(self.order), self.reach)])

    def known(self, mask: Tensor, missing: Tensor | None) -> Tensor:
        """Return which features are known (..., features) at visible steps (...); `missing` steps (...) lack one."""
        if missing is None:
            return mask[..., None].expand(*mask.shape, len(self.order))
        return mask[..., None] & ~(missing[..., None] & self.may_miss)

    def clean(self, values: Tensor, known: Tensor) -> Tensor:
        """Return the values (..., F) with 0 where they are not known."""
        return torch.where(known.index_select(-1, self.feature_of_column), values, 0.0)

    def _codes(self, values: Tensor, known: Tensor) -> Tensor:
        """Return the outputs of the encoders (B, K, features, hidden)."""
        first = self.encoders[0]
        if isinstance(first, FoldedEncoder):
            folded: Tensor = first(values, known)
            return folded
        codes = []
        for index, (encoder, shape) in enumerate(zip(self.encoders, self._shapes, strict=True)):
            skip = self.reach - int(encoder.reach)
            members, columns = getattr(self, f"members{index}"), getattr(self, f"columns{index}")
            part = values[:, skip:].index_select(2, columns)
            part = part.view(values.shape[0], -1, len(members), *shape)
            codes.append(encoder(part, known[:, skip:].index_select(2, members)))
        return torch.cat(codes, 2).index_select(2, self.order)

    def forward(self, values: Tensor, known: Tensor, missing: Tensor | None = None) -> Tensor:
        """Compute the embeddings of the features.

        Args:
            values: (B, reach + K, F), from `clean`.
            known: (B, reach + K, features).
            missing: Steps with a missing feature (B, K); None: no step.

        Returns:
            (B, K, features, width).
        """
        code = self._codes(values, known)
        rows = code.flatten(0, 1).transpose(0, 1)  # (features, B * K, hidden)
        embedded = torch.bmm(rows, self.projection).transpose(0, 1).view(*code.shape[:3], -1) + self.projection_bias
        if self.unknown is not None and missing is not None:
            embedded = torch.where((missing[..., None] & self.may_miss)[..., None], self.unknown, embedded)
        return embedded
