"""Integer models: what a student that a kernel runs computes, and the one file format of all of them.

A kernel has no floating point, so a model is integers alone, and so small that it needs no memory but its own bytes.
`kernel/core/l4s_model.c` computes the same numbers; here is the slow reference, in NumPy.

| form | raw features (T, F) | outputs (T, K) |
|---|---|---|
| `packet` | those of `schema.OBSERVED` in the record's units | probabilities of drop and mark, in 2^-31 |
| `probability` | the observation of an interval in 2^-20 | probabilities of C and L, in 2^-31 |
| `parameters` | likewise | factors of the law's five parameters, in 1/65536 |

A model works in three steps.

1. What is seen (T, D). In the packet form it is the raw features. In the interval forms it is log2(1 + x) of each
   feature in 2^-20, and moving averages of these.
2. The body. `Trees` compare what is seen with thresholds and add the values of their leaves. `Layers` are a perceptron
   with ReLU, or linear without a hidden layer; their inputs are made of what is seen by `Inputs`.
3. Outputs. In the packet form three scores go through a softmax; a body of two values tells drop and mark itself. In
   the interval forms the values are an action, from -1 to 1, and mean what it means in the form's environment.

An agent in the simulator sees float32: `raw_of` makes raw features of it. Above 2^23 several raw features of the kernel
have one float32. Thresholds of the packet form lie between such groups, so that both sides decide the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.bridge.fixed import (
    FINER,
    LEAST_S,
    MAGIC,
    MOST_AVERAGES,
    MOST_BYTES,
    MOST_LAYERS,
    MOST_NUMBER,
    ONE,
    REMEDY,
    SAME,
    SEEN_BITS,
    SHARE_BITS,
    VERSION,
    ZERO,
    Integers,
    log2,
    observed,
    power,
    raw_of,
)
from l4s_gym.bridge.forest import Trees
from l4s_gym.bridge.layers import Cells, Layers, Lines
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET
from l4s_gym.schema import DROP, MARK, OBS_SCALE

__all__ = ("Cells", "Inputs", "Layers", "Lines", "Memory", "Model", "Trees", "observed", "raw_of")

_HEAD: Final = np.dtype(
    [
        ("magic", "<u4"), ("version", "<u2"), ("form", "u1"), ("layers", "u1"), ("size", "<u4"),
        ("interval_us", "<u4"), ("features", "u1"), ("averages", "u1"), ("outputs", "u1"), ("reserved", "u1"),
        ("roots", "<u2"), ("nodes", "<u2"), ("leaves", "<u2"), ("bound", "<u2"),
        ("average_us", "<u4", (MOST_AVERAGES,)), ("span", "<i4", (5, 2)), ("width", "<u2", (MOST_LAYERS,)),
        ("cells", "<u2", (8,)), ("rest", "<u4"),
    ]
)  # fmt: skip
"""`struct l4s_model`; then the body."""


class Memory:
    """What a model sees of the raw features until now (D).

    An average is that of all until now, as long as these are less than its time constant.

    Args:
        form: The form.
        averages_s: Time constants of the moving averages, s.
        interval_ms: From one observation to the next.
    """

    def __init__(self, form: str, averages_s: Sequence[float] = (), interval_ms: float = 0.0) -> None:
        self._plain = form == PACKET
        interval_us = round(1e3 * interval_ms)
        self._shares = [min((interval_us << SHARE_BITS) // round(1e6 * each), 1 << SHARE_BITS) for each in averages_s]
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._seen, self._averages = 0, [np.zeros((), np.int64) for _ in self._shares]

    def __call__(self, raw: Integers) -> Integers:
        """Return what is seen (..., D) with the next raw features (..., F)."""
        if self._plain:
            return raw
        logs = log2((1 << SEEN_BITS) + np.clip(raw, 0, 1 << 30)) - (SEEN_BITS << SEEN_BITS)
        self._seen += 1
        first = (1 << SHARE_BITS) // self._seen
        self._averages = [
            old + (((logs << FINER) - old) * max(share, first) >> SHARE_BITS)
            for old, share in zip(self._averages, self._shares, strict=True)
        ]
        return np.concatenate((logs, *(each >> FINER for each in self._averages)), axis=-1)

    def all(self, raw: Integers) -> Integers:
        """Return what is seen at each step (..., T, D) of episodes (..., T, F)."""
        self.reset()
        if self._plain or not self._shares:
            return self(raw)
        return np.stack([self(raw[..., step, :]) for step in range(raw.shape[-2])], axis=-2)


@dataclass(frozen=True)
class Inputs:
    """What a body works on.

    Attributes:
        averages_s: Time constants of the moving averages of an interval form, s, at most `MOST_AVERAGES`.
        scaled: How layers get small integers of what is seen; trees take what is seen: None.
    """

    averages_s: tuple[float, ...] = ()
    scaled: Cells | Lines | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """An integer model.

    Attributes:
        form: One of `forms.FORMS`.
        inputs: What the body works on.
        body: The body.
        interval_ms: From one observation to the next, in whole microseconds; 0 in the packet form.
    """

    form: str
    inputs: Inputs
    body: Trees | Layers
    interval_ms: float = 0.0

    def __post_init__(self) -> None:
        packet = forms.get(self.form) is forms.FORMS[PACKET]
        if packet == bool(self.interval_ms) or (packet and self.inputs.averages_s):
            raise L4SError(f"model: interval_ms={self.interval_ms:g} in the form {self.form!r}, or averages in it")
        if not packet and not LEAST_S <= self.interval_ms / 1e3 <= 60.0:
            raise L4SError(f"model: interval_ms={self.interval_ms:g}: give 1 to 60000")
        averages_s = self.inputs.averages_s
        if len(averages_s) > MOST_AVERAGES or any(not LEAST_S <= each <= 4000.0 for each in averages_s):
            raise L4SError(f"model: averages over {averages_s}: give at most {MOST_AVERAGES} of 0.001 to 4000 s")
        layers = isinstance(self.body, Layers)
        if not isinstance(self.inputs.scaled, (Cells if packet else Lines) if layers else type(None)):
            raise L4SError("model: layers need Inputs.scaled: Cells in the packet form, else Lines; trees need none")
        fitting = ((3,) if layers else (2, 3)) if packet else (len(forms.get(self.form).low),)
        if self.outputs_of_body not in fitting:
            raise L4SError(f"model: a body of {self.outputs_of_body} values: the form {self.form!r} takes {fitting}")
        self.body.check(self.seen)
        self._check_scaled()

    @property
    def outputs_of_body(self) -> int:
        """Numbers that the body gives."""
        return self.body.values.shape[1] if isinstance(self.body, Trees) else len(self.body.biases[-1])

    @property
    def features(self) -> int:
        """Number of raw features, F."""
        return len(forms.get(self.form).features) or len(OBS_SCALE)

    @property
    def seen(self) -> int:
        """Number of what is seen, D."""
        return self.features * (1 + len(self.inputs.averages_s))

    def _check_scaled(self) -> None:
        scaled = self.inputs.scaled
        if isinstance(scaled, Cells):
            cuts, values = scaled.thresholds, scaled.values
            if len(cuts) != self.seen or any(
                len(cut) > 255 or len(value) != len(cut) + 1 or (np.diff(cut) <= 0).any() or (cut < 0).any()
                for cut, value in zip(cuts, values, strict=True)
            ):
                raise L4SError("model: give each feature at most 255 rising thresholds, and a value more")
        elif scaled is not None and not (
            len(scaled.offset) == len(scaled.scale) == self.seen
            and max(abs(scaled.offset.astype(np.int64)).max(), abs(scaled.scale.astype(np.int64)).max()) <= MOST_NUMBER
            and 0 < scaled.bound < 1 << 15
        ):
            raise L4SError(f"model: give {self.seen} offsets and scales within +-2^30, and a bound of 1 to 32767")

    def memory(self) -> Memory:
        """Return what sees for it: call it with raw features (n, F) for what is seen (..., D)."""
        return Memory(self.form, self.inputs.averages_s, self.interval_ms)

    def small(self, seen: Integers) -> npt.NDArray[np.int16]:
        """Return the inputs of layers (..., D) of what is seen (..., D)."""
        assert self.inputs.scaled is not None
        found: npt.NDArray[np.int16] = self.inputs.scaled(seen)
        return found

    def values(self, seen: Integers) -> Integers:
        """Return what the body gives (..., K) of what is seen (..., D)."""
        return self.body(seen) if isinstance(self.body, Trees) else self.body(self.small(seen))

    def decide(self, seen: Integers) -> Integers:
        """Return the outputs (..., K) of what is seen (..., D)."""
        values = self.values(seen)
        if self.form == PACKET:
            return _shares(values) if values.shape[-1] == 3 else _cut(values)
        actions = np.clip(values, -SAME, SAME)
        if self.form == "probability":
            return _probabilities(actions)
        span = _span()
        return power(np.where(actions > 0, actions * span[:, 1], -actions * span[:, 0]) >> 16) + (1 << 14) >> 15

    def outputs(self, raw: Integers) -> Integers:
        """Return what the kernel computes (..., T, K) of raw features (..., T, F), in interval forms of episodes."""
        return self.decide(self.memory().all(raw))

    def pack(self) -> bytes:
        """Return the file's bytes.

        Raises:
            L4SError: They are too many.
        """
        head = np.zeros(1, _HEAD)
        head["magic"], head["version"], head["form"] = MAGIC, VERSION, list(forms.FORMS).index(self.form)
        head["interval_us"] = round(1e3 * self.interval_ms)
        head["features"], head["averages"] = self.features, len(self.inputs.averages_s)
        head["outputs"] = self.outputs_of_body
        head["average_us"][0, : len(self.inputs.averages_s)] = np.rint(1e6 * np.array(self.inputs.averages_s))
        if self.form == "parameters":
            head["span"] = _span()
        if isinstance(self.body, Trees):
            body = self.body.pack()
            head["roots"], head["nodes"], head["leaves"] = self.body.roots, len(self.body.low), self.body.leaves
        else:
            head["layers"] = len(self.body.weights)
            head["width"][0, : len(self.body.weights)] = [len(each) for each in self.body.biases]
            body = self._pack_scaled(head) + self.body.pack()
        head["size"] = _HEAD.itemsize + len(body)
        if head["size"] > MOST_BYTES:
            raise L4SError(f"model: {int(head['size'][0])} bytes, at most {MOST_BYTES} fit: make it smaller")
        return head.tobytes() + body

    def _pack_scaled(self, head: Any) -> bytes:
        scaled = self.inputs.scaled
        if isinstance(scaled, Lines):
            head["bound"] = scaled.bound
            return np.stack([scaled.offset, scaled.scale], axis=1).astype("<i4").tobytes()
        assert scaled is not None
        head["cells"] = [len(each) for each in scaled.thresholds]
        cuts, values = np.concatenate(scaled.thresholds), np.concatenate(scaled.values).astype(np.int64) + ZERO
        data = cuts.astype("<u8").tobytes() + values.astype("<u2").tobytes()
        return data + bytes(-len(data) % 4)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The reverse of `pack`.

        Raises:
            L4SError: The bytes are no model.
        """
        if len(data) < _HEAD.itemsize or int.from_bytes(data[:4], "little") != MAGIC:
            raise L4SError(f"model: not a model's file: {REMEDY}")
        head = np.frombuffer(data, _HEAD, 1)[0]
        if head["version"] != VERSION:
            raise L4SError(f"model: version {head['version']}, not {VERSION}: {REMEDY} of this release")
        if head["size"] != len(data) or len(data) > MOST_BYTES:
            raise L4SError(f"model: {len(data)} bytes, not the {head['size']} that it tells, or too many: {REMEDY}")
        known = list(forms.FORMS)
        averages = tuple((head["average_us"][: head["averages"]] / 1e6).tolist())
        form = known[head["form"]] if head["form"] < len(known) else ""
        try:
            rest = data[_HEAD.itemsize :]
            if not head["layers"]:
                body: Trees | Layers = Trees.unpack(head, rest)
                made = cls(form, Inputs(averages), body, head["interval_us"] / 1e3)
            else:
                scaled, used = _unpack_scaled(head, form, rest)
                body = Layers.unpack(head, int(head["features"]) * (1 + len(averages)), rest[used:])
                made = cls(form, Inputs(averages, scaled), body, head["interval_us"] / 1e3)
        except (ValueError, IndexError) as error:  # L4SError too
            raise L4SError(
                str(error) if isinstance(error, L4SError) else f"model: its size is wrong: {REMEDY}"
            ) from None
        if made.pack() != data:
            raise L4SError(f"model: its head is wrong: {REMEDY}")
        return made

    def __str__(self) -> str:
        """Return the form, the kind of body and a checksum."""
        kind = type(self.body).__name__.lower()
        return f"{self.form} {kind} {hashlib.sha256(self.pack()).hexdigest()[:12]}"


def _unpack_scaled(head: Any, form: str, data: bytes) -> tuple[Cells | Lines, int]:
    """The inputs of layers, and their bytes."""
    if form != PACKET:
        seen = int(head["features"]) * (1 + int(head["averages"]))
        pairs = np.frombuffer(data, "<i4", 2 * seen).reshape(seen, 2)
        return Lines(pairs[:, 0], pairs[:, 1], int(head["bound"])), 8 * seen
    counts = head["cells"].astype(np.int64)
    total = int(counts.sum())
    cuts = np.frombuffer(data, "<u8", total).astype(np.int64)
    values = (np.frombuffer(data, "<u2", total + len(counts), 8 * total).astype(np.int64) - ZERO).astype(np.int16)
    size = 8 * total + 2 * (total + len(counts))
    every = np.split(cuts, np.cumsum(counts)[:-1]), np.split(values, np.cumsum(counts + 1)[:-1])
    return Cells(tuple(every[0]), tuple(every[1])), size + -size % 4


def _shares(scores: Integers) -> Integers:
    """Drop and mark (..., 2) in 2^-31 by the softmax, base 2, of three scores (..., 3) in 2^-16."""
    below = scores - scores.max(axis=-1, keepdims=True)
    powers = np.where(below > -(31 << 16), power(np.maximum(below, -(31 << 16))), 0)
    found: Integers = (powers[..., [DROP, MARK]] << 31) // powers.sum(axis=-1, keepdims=True)
    return found


def _cut(values: Integers) -> Integers:
    """Drop and mark (..., 2) in 2^-31 of those in 2^-30, not above 1 together."""
    drop = np.clip(2 * values[..., 0], 0, ONE)
    return np.stack([drop, np.clip(2 * values[..., 1], 0, ONE - drop)], axis=-1)


_DECADE: Final = round(math.log2(10.0) * SAME)


def _probabilities(actions: Integers) -> Integers:
    """Probabilities (..., 2) in 2^-31 of actions in 2^-16: 10^(2a - 2), and 0 at -1."""
    found = power(2 * (actions - SAME) * _DECADE >> 16)
    return np.where(actions > -SAME, found, np.int64(0))


def _span() -> Integers:
    """log2 of the factors at -1 and at 1 (5, 2), in 2^-16."""
    from l4s_gym.envs.tune import HIGHEST, LOWEST

    found: Integers = np.rint(np.log2(np.stack([LOWEST, HIGHEST], axis=1)) * SAME).astype(np.int64)
    return found
