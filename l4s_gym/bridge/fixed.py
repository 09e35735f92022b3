"""The integers of which models of the kernel are made: units, bounds, logarithm and power, and what float32 hides."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.forms import PACKET
from l4s_gym.schema import OBS_SCALE, scale_observation

Integers = npt.NDArray[np.int64]

MAGIC: Final = 0x4D53344C
"""`L4SM`."""
VERSION: Final = 1
MOST_BYTES: Final = 100_000
ONE: Final = 1 << 31
"""Probability 1."""
SAME: Final = 1 << 16
"""Factor 1, action 1, score 1 (a factor 2 of a probability)."""
SEEN_BITS: Final = 20
"""Raw features of an interval, and what is seen of them, are in 2^-20."""
UNIT: Final = 1 << 10
"""Inputs of layers and what is between layers are in 2^-10; inputs are within +-32767."""
ZERO: Final = 1 << 15
"""An input of 0 in a file and in a kernel, whose inputs are from 0 to 65535."""
MOST_AVERAGES: Final = 4
MOST_LAYERS: Final = 8
MOST_WIDTH: Final = 256
"""Inputs or outputs of a layer: a kernel's sums then fit 32 bits."""
MOST_NUMBER: Final = 1 << 30
"""Of biases, offsets and scales."""
LEAST_S: Final = 1e-3
"""Shortest interval and time constant."""
LEAF: Final = 255
REMEDY: Final = "make it by `l4s-gym live model` or `l4s-gym distil`"
LARGEST: Final = (1 << 40) - 1
"""Largest threshold."""
SHARE_BITS: Final = 24
FINER: Final = 8
"""Averages are kept in 2^-28."""
STEPS: Final = 64
"""Steps of the tables, which are interpolated."""
_LOG: Final = np.rint(np.log2(1.0 + np.arange(STEPS + 1) / STEPS) * (1 << SEEN_BITS)).astype(np.int64)
"""log2 of 1 to 2, in 2^-20."""
POWERS: Final = np.rint(2.0 ** (-np.arange(STEPS + 1) / STEPS) * ONE).astype(np.int64)
"""2^0 to 2^-1, in 2^-31."""


def raw_of(obs: npt.NDArray[np.floating[Any]], form: str) -> Integers:
    """Make raw features (..., F) of an environment's observations (..., F)."""
    scale = OBS_SCALE if form == PACKET else float(1 << SEEN_BITS)
    return np.rint(np.asarray(obs, np.float64) * scale).astype(np.int64)


def observed(raw: npt.NDArray[np.integer[Any]]) -> Integers:
    """Make of a kernel's raw features of packets (..., 8) those that an agent in the simulator knows (..., 8).

    Fit trees and cells on these.
    """
    return raw_of(scale_observation(raw), PACKET)


def log2(x: Integers) -> Integers:
    """log2 of integers from 1 to 2^40, in 2^-20."""
    whole = np.frexp(x.astype(np.float64))[1].astype(np.int64) - 1
    part = (x << (40 - whole)) - (1 << 40)
    step, rest = part >> 34, part & ((1 << 34) - 1)
    low = _LOG[step]
    found: Integers = (whole << SEEN_BITS) + low + ((_LOG[step + 1] - low) * rest >> 34)
    return found


def power(e: Integers) -> Integers:
    """2^e of exponents in 2^-16 from -31 to 8, in 2^-31."""
    whole = -(-e >> 16)  # rounded up
    part = (whole << 16) - e
    step, rest = part >> 10, part & 1023
    high = POWERS[step]
    found = high - ((high - POWERS[step + 1]) * rest >> 10)
    down = np.maximum(-whole, 0)
    found = np.where(whole > 0, found << np.maximum(whole, 0), (found + (1 << down >> 1)) >> down)
    return np.asarray(found, np.int64)


def clean(thresholds: npt.NDArray[np.float64], feature: int, plain: bool = False) -> Integers:
    """The largest integers (N,) that are seen as at most thresholds (N,), by float32 where the form is packets.

    -1: none.

    Args:
        thresholds: Of raw features.
        feature: Number of the raw feature.
        plain: Nothing but the integer itself is seen.
    """

    def seen(raw: Integers) -> npt.NDArray[np.float64]:
        if plain:
            return raw.astype(np.float64)
        rows = np.zeros((len(raw), len(OBS_SCALE)))
        rows[:, feature] = raw
        return raw_of(scale_observation(rows), PACKET)[:, feature].astype(np.float64)

    low, high = np.full(len(thresholds), -1), np.full(len(thresholds), LARGEST)
    while (low < high).any():
        middle = low + (high - low + 1) // 2
        under = seen(middle) <= thresholds
        low, high = np.where(under, middle, low), np.where(under, high, middle - 1)
    return low
