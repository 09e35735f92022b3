"""Small integer models, made by hand."""

from __future__ import annotations

from typing import Final

import numpy as np

from l4s_gym.bridge.fixed import LEAF, ONE, SAME
from l4s_gym.bridge.model import Inputs, Model, Trees

LENGTH: Final = 7
QUEUE: Final = 0
"""Numbers of features."""


def leaf(*values: float) -> Model:
    """A model of packets that tells drop and mark, or from three scores, whatever it sees."""
    unit = SAME if len(values) == 3 else ONE >> 1
    return _leaf("packet", [round(unit * each) for each in values], 0.0)


def constant(form: str, *actions: float, interval_ms: float = 16.0) -> Model:
    """A model of an interval form that wants an action, whatever it sees."""
    return _leaf(form, [round(SAME * each) for each in actions], interval_ms)


def _leaf(form: str, values: list[int], interval_ms: float) -> Model:
    body = Trees(np.array([LEAF], np.uint8), np.array([0]), np.array([0], np.uint16), np.array([values], np.int32))
    return Model(form, Inputs(), body, interval_ms)


def split(feature: int, threshold: int, low: tuple[float, float], high: tuple[float, float]) -> Model:
    """A model of packets that tells drop and mark for a feature up to a threshold, and above it."""
    values = np.rint((ONE >> 1) * np.array([low, high])).astype(np.int32)
    body = Trees(
        np.array([feature, LEAF, LEAF], np.uint8), np.array([threshold, 0, 0]), np.array([1, 0, 1], np.uint16), values
    )
    return Model("packet", Inputs(), body)
