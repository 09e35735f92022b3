"""The loss of a sequence, and how what is learnt is brought back to the probabilities of the data.

`l4s_gym.agents.imbalance` says what is done about rare actions and how its shift is undone. One thing differs here:
`sample` draws whole windows around drops and marks, and all their steps are part of the loss. So the labels that were
part of it are counted, and their shares by the data's take the place of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.schema import ACTIONS

Floats = npt.NDArray[np.float64]


def sequence_loss(
    logits: torch.Tensor,
    actions: torch.Tensor,
    counted: torch.Tensor,
    imbalance: Imbalance,
    *,
    normalised: bool = False,
) -> torch.Tensor:
    """The sum of the losses of the steps that count.

    Args:
        logits: (B, K, 3).
        actions: Labels (B, K) int64.
        counted: Steps that are part of the loss (B, K) bool.
        imbalance: Which loss, with the shares of the data.
        normalised: The logits are log-probabilities, of sum 1 or less: what is missing is another outcome's.
    """
    labels = actions[counted]  # (N,)
    log_p = logits.float()[counted] if normalised else torch.log_softmax(logits.float()[counted], -1)
    each = functional.nll_loss(log_p, labels, reduction="none")  # (N,)
    if imbalance.kind == "focal":
        # Not 0 at p = 1: the power's derivative there would be infinite or undefined.
        each = each * (-torch.expm1(-each)).clamp_min(1e-6) ** imbalance.gamma
    elif imbalance.kind == "weights":
        weights = torch.as_tensor(imbalance.weights, dtype=each.dtype, device=each.device)
        each = each * weights[labels]
    return each.sum()


@dataclass(frozen=True)
class Correction:
    """Brings the probabilities of a model back to those of the data.

    Attributes:
        imbalance: How it was trained, with the shares of the data.
        seen: Share of each action among the steps of the loss (3,).
    """

    imbalance: Imbalance
    seen: tuple[float, ...] = ()

    def __call__(self, probabilities: npt.ArrayLike) -> Floats:
        """Probabilities (..., 3) of the data, from those of the model."""
        p = np.asarray(probabilities, np.float64)
        if self.imbalance.kind != "sample" or not self.imbalance.correction:
            return self.imbalance.correct(p)
        shares, seen = np.array(self.imbalance.shares), np.array(self.seen)
        known = (shares > 0.0) & (seen > 0.0)
        raw = p * np.where(known, shares / np.where(known, seen, 1.0), 1.0)
        return np.asarray(raw / raw.sum(axis=-1, keepdims=True), np.float64)

    @classmethod
    def counted(cls, imbalance: Imbalance, counts: npt.ArrayLike) -> Correction:
        """From the labels (3,) that were part of the loss."""
        seen = np.asarray(counts, np.float64)
        return cls(imbalance, tuple((seen / max(seen.sum(), 1.0)).tolist()))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"imbalance": self.imbalance.as_dict(), "seen": list(self.seen)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Correction:
        """The inverse of `as_dict`."""
        return cls(Imbalance.of(given["imbalance"]), tuple(map(float, given["seen"])))


def no_correction() -> Correction:
    """For a model that was trained without any shift."""
    return Correction(Imbalance(shares=(1.0 / len(ACTIONS),) * len(ACTIONS)))
