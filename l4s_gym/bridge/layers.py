"""Perceptrons of int8 weights, and how their small inputs are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from l4s_gym.bridge.fixed import LARGEST, MOST_LAYERS, MOST_NUMBER, MOST_WIDTH, REMEDY, UNIT, ZERO, Integers, clean
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET

BLOCK: Final = 8
"""Outputs whose weights stand together in a file."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Inputs of layers in the packet form: each is the value of the cell in which the raw feature lies.

    Attributes:
        thresholds: Of each feature, rising integers (N,), at most 255; cell k has the raw features from threshold k - 1
            on and below threshold k.
        values: Of each feature, an int16 for each cell (N + 1,), in 1 / `UNIT`.
    """

    thresholds: tuple[Integers, ...]
    values: tuple[npt.NDArray[np.int16], ...]

    @classmethod
    def fitted(cls, raw: Integers, most: int = 255) -> Self:
        """Make cells for raw features (T, F) that are even in ln(1 + raw), with values of mean 0 and deviation 1."""
        thresholds, values = [], []
        for feature, column in enumerate(np.log1p(raw.astype(np.float64)).T):
            edges = np.linspace(column.min(), column.max(), most + 2)[1:-1]
            cut = np.unique(clean(np.expm1(edges), feature) + 1)
            cut = cut[cut <= LARGEST]
            middles = np.log1p((np.concatenate(([cut[0] - 1], cut)) + np.concatenate((cut - 1, [cut[-1]]))) / 2)
            thresholds.append(cut)
            values.append(_small(UNIT * (middles - column.mean()) / (column.std() + 1e-3)))
        return cls(tuple(thresholds), tuple(values))

    def __call__(self, seen: Integers) -> npt.NDArray[np.int16]:
        """Return the inputs (..., D) of what is seen (..., D)."""
        columns = zip(self.thresholds, self.values, np.moveaxis(seen, -1, 0), strict=True)
        return np.stack([value[np.searchsorted(cut, x, "right")] for cut, value, x in columns], axis=-1)


@dataclass(frozen=True, eq=False)
class Lines:
    """Inputs of layers in the interval forms: each is (what is seen - offset) x scale / 2^24, within +-bound.

    Attributes:
        offset: (D,) int32.
        scale: (D,) int32.
        bound: 1 to 32767, in 1 / `UNIT`.
    """

    offset: npt.NDArray[np.int32]
    scale: npt.NDArray[np.int32]
    bound: int = 3 * UNIT

    @classmethod
    def fitted(cls, seen: Integers, bound: float = 3.0) -> Self:
        """Make lines for what is seen (..., D) that give inputs of mean 0 and deviation 1 (`UNIT`), within a bound."""
        rows = seen.reshape(-1, seen.shape[-1])
        scale = np.rint(UNIT * (1 << 24) / (rows.std(axis=0) + 1000.0))
        return cls(np.rint(rows.mean(axis=0)).astype(np.int32), scale.astype(np.int32), round(bound * UNIT))

    def __call__(self, seen: Integers) -> npt.NDArray[np.int16]:
        """Return the inputs (..., D) of what is seen (..., D)."""
        found = (seen - self.offset) * self.scale + (1 << 23) >> 24
        return np.asarray(np.clip(found, -self.bound, self.bound), np.int16)


@dataclass(frozen=True, eq=False)
class Layers:
    """A perceptron with ReLU between its layers.

    Attributes:
        weights: Of each layer (outputs, inputs) int8.
        biases: Of each layer (outputs,), within +-2^30.
        shifts: Of each layer (outputs,) uint8, at most 20: an output's weights are in 2^-shift.
    """

    weights: tuple[npt.NDArray[np.int8], ...]
    biases: tuple[Integers, ...]
    shifts: tuple[npt.NDArray[np.uint8], ...]

    @classmethod
    def of(cls, module: Any, form: str = PACKET) -> Self:
        """Round the weights of a PyTorch module: its linear layers in order, with ReLU between them.

        Its inputs are those of `Inputs` / `UNIT`. Its outputs are three logits in the packet form, else the numbers of
        an action, which are cut to [-1, 1].

        Raises:
            L4SError: It has other layers, or weights that do not fit.
        """
        kinds = [type(each).__name__ for each in module.modules() if not any(True for _ in each.children())]
        if not set(kinds) <= {"Linear", "ReLU", "Identity", "Dropout"} or "Linear" not in kinds:
            raise L4SError(f"model: layers {', '.join(kinds)}: give linear ones with ReLU between them")
        linear = [each for each in module.modules() if type(each).__name__ == "Linear"]
        pairs = [
            tuple(part.detach().numpy().astype(np.float64) for part in (each.weight, each.bias)) for each in linear
        ]
        if form == PACKET:
            pairs[-1] = tuple(part / math.log(2.0) for part in pairs[-1])  # the kernel's softmax has the base 2
        rounded = [rounded_layer(*pair) for pair in pairs]
        return cls(*map(tuple, zip(*rounded, strict=True)))

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(weights.size + biases.size for weights, biases in zip(self.weights, self.biases, strict=True))

    def __call__(self, x: npt.NDArray[np.integer[Any]]) -> Integers:
        """Return outputs (..., K) in 2^-16 of inputs (..., D)."""
        for weights, biases, shifts in zip(self.weights, self.biases, self.shifts, strict=True):
            exact = x.astype(np.float64) @ weights.T.astype(np.float64)  # integers below 2^53
            sums, shift = exact.astype(np.int64) + biases, shifts.astype(np.int64)
            x = np.clip(sums >> shift, 0, 65535)
        return sums * 64 >> shift

    def pack(self) -> bytes:
        """Return the body's bytes. A kernel adds `ZERO` to the first inputs, and 128 to all weights."""
        parts, zero = [], ZERO
        for weights, biases, shifts in zip(self.weights, self.biases, self.shifts, strict=True):
            more = -len(weights) % BLOCK
            rows = np.pad(weights.astype(np.int64), ((0, more), (0, 0))) + 128
            blocks = rows.reshape(-1, BLOCK, rows.shape[1]).swapaxes(1, 2)  # (blocks, inputs, BLOCK)
            told = np.pad(biases - zero * weights.sum(axis=1, dtype=np.int64), (0, more))
            parts += [told.astype("<i4").tobytes(), shifts.tobytes() + bytes(more), blocks.astype(np.uint8).tobytes()]
            zero = 0
        return b"".join(parts)

    @classmethod
    def unpack(cls, head: Any, inputs: int, data: bytes) -> Self:
        """The reverse of `pack`."""
        parts, at, zero = [], 0, ZERO
        for m, n in pairwise([inputs, *head["width"][: head["layers"]].tolist()]):
            filled = n + -n % BLOCK
            told, shifts = np.frombuffer(data, "<i4", n, at), np.frombuffer(data, "u1", n, at + 4 * filled)
            rows = np.frombuffer(data, "u1", filled * m, at + 5 * filled).reshape(-1, m, BLOCK)
            weights = (rows.swapaxes(1, 2).reshape(filled, m)[:n].astype(np.int64) - 128).astype(np.int8)
            parts.append((weights, told + zero * weights.sum(axis=1, dtype=np.int64), shifts))
            at, zero = at + filled * (5 + m), 0
        return cls(*map(tuple, zip(*parts, strict=True)))

    def check(self, inputs: int) -> None:
        """Check all numbers.

        Raises:
            L4SError: A layer is wrong.
        """
        sizes = [inputs, *map(len, self.biases)]
        shapes = [each.shape for each in self.weights]
        wrong = shapes != list(zip(sizes[1:], sizes[:-1], strict=True)) or not 1 <= len(shapes) <= MOST_LAYERS
        wrong |= max(sizes) > MOST_WIDTH or min(sizes) < 1
        wrong |= any((each > 20).any() for each in self.shifts)
        wrong |= any((abs(each) > MOST_NUMBER).any() for each in self.biases)
        if wrong:
            raise L4SError(
                f"model: layers of shapes {shapes} on {inputs} inputs, or their numbers, are wrong: {REMEDY}"
            )


def shifts_of(weights: npt.NDArray[Any], biases: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return in which 2^-shift the weights (n, m) of each output of a layer are rounded (n,), from 0 to 20."""
    most = np.log2(127.0 / (abs(weights).max(axis=1) + 1e-12))
    room = np.log2(2.0**20 / (abs(biases) + 1e-12))
    return np.asarray(np.clip(np.floor(np.minimum(most, room)), 0, 20), np.int64)


def rounded_layer(
    weights: npt.NDArray[np.float64], biases: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int8], Integers, npt.NDArray[np.uint8]]:
    """Round a layer of weights (n, m) and biases (n,), which work on numbers of the unit 1.

    Raises:
        L4SError: They are too large.
    """
    if not (abs(weights).max(initial=0.0) <= 127.0 and abs(biases).max(initial=0.0) < 1 << 20):
        raise L4SError("model: weights above 127 or biases above 2^20: train with weight decay")
    shifts = shifts_of(weights, biases)
    small = np.rint(weights * 2.0 ** shifts[:, None]).astype(np.int8)
    return small, np.rint(biases * 2.0**shifts * UNIT).astype(np.int64), shifts.astype(np.uint8)


def _small(x: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    return np.asarray(np.clip(np.rint(x), -32767, 32767), np.int16)
