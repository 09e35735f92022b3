"""Class imbalance, handled in one place for every learner: 99 of 100 rows are "enqueue".

| kind | effect on training | what a perfect learner then gives |
|---|---|---|
| `none` | nothing | the probabilities of the data |
| `weights` | the loss of a step is multiplied by the weight of its action | probabilities times weights, normalised |
| `sample` | steps are drawn in proportion to the weight of their action | the same |
| `focal` | the loss is multiplied by (1 - p)^gamma (Lin et al. 2017) | probabilities pulled towards 1/3 |

The weight of an action is its share in the data to the power ``-power``: with 1 all actions count alike, with 0
nothing changes; the weights average 1 over the data. Rare actions are learned faster this way, but the result is
no longer calibrated: sampled, such an imitator would drop and mark far more often than the discipline did. `correct`
undoes exactly that (logit adjustment, Menon et al. 2021; for `focal` the inverse of its minimiser, Charoenphakdee et
al. 2021), and is on by default: ``correction = false`` leaves the probabilities as learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError, unknown
from l4s_gym.schema import ACTIONS
from l4s_gym.tables import convert

Floats = npt.NDArray[np.float64]

KINDS: Final = ("none", "weights", "focal", "sample")


@dataclass(frozen=True)
class Imbalance:
    """Treatment of rare actions by a learner; `fitted` adds the shares of the data.

    Attributes:
        kind: One of `KINDS`.
        power: For `weights` and `sample`: the weight of an action is its share to the power ``-power``.
        gamma: For `focal`: its exponent.
        correction: Whether `correct` undoes the shift.
        shares: Share of each action in the training data (3,); () before `fitted`.
    """

    kind: str = "none"
    power: float = 1.0
    gamma: float = 2.0
    correction: bool = True
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of imbalance", self.kind, KINDS)
        if not 0.0 <= self.power <= 2.0 or not 0.0 <= self.gamma <= 10.0:
            raise L4SError(f"imbalance: power={self.power}, gamma={self.gamma}: give 0 to 2, and 0 to 10")
        if self.shares and len(self.shares) != len(ACTIONS):
            raise L4SError(f"imbalance: {len(self.shares)} shares: give one for each of {', '.join(ACTIONS)}")

    @classmethod
    def of(cls, given: Imbalance | str | Mapping[str, Any]) -> Imbalance:
        """Make it from a name, or from a table of a configuration.

        Raises:
            L4SError: There is no such kind or option, or a value makes no sense.
        """
        return given if isinstance(given, Imbalance) else convert(cls, given, "imbalance")

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, which `of` takes."""
        return asdict(self) | {"shares": list(self.shares)}

    def fitted(self, actions: npt.ArrayLike) -> Imbalance:
        """Return a copy with the shares of the actions (T,) in the training data.

        Raises:
            L4SError: There are no actions.
        """
        counts = np.bincount(np.asarray(actions, np.int64).ravel(), minlength=len(ACTIONS))
        if not counts.sum():
            raise L4SError("imbalance: there are no actions: give a dataset with steps")
        return replace(self, shares=tuple((counts / counts.sum()).tolist()))

    @property
    def weights(self) -> Floats:
        """Return the weight of each action (3,), 1 on average over the data; 1 for an action that is not in the data.

        All are 1 for `none` and `focal`.
        """
        if self.kind not in ("weights", "sample"):
            return np.ones(len(ACTIONS))
        if not self.shares:
            raise L4SError("imbalance: the shares of the actions are unknown: use what `fitted` returns")
        shares = np.array(self.shares)
        raw = np.where(shares > 0.0, np.maximum(shares, 1e-12) ** -self.power, 0.0)
        return np.where(shares > 0.0, raw / (shares @ raw), 1.0)

    def step_probabilities(self, actions: npt.ArrayLike) -> Floats | None:
        """Return the probability with which each step (T,) is drawn; None: all equal."""
        if self.kind != "sample":
            return None
        weights = self.weights[np.asarray(actions, np.int64).ravel()]
        return np.asarray(weights / weights.sum(), np.float64)

    def correct(self, probabilities: npt.ArrayLike) -> Floats:
        """Convert the outputs of a learner (..., 3) to probabilities of the data (..., 3)."""
        p = np.asarray(probabilities, np.float64)
        if not self.correction or self.kind == "none":
            return p
        if self.kind == "focal":
            rest = np.maximum(1.0 - p, 1e-12)
            kept = np.maximum(p, 1e-300)
            raw = p / (rest**self.gamma - self.gamma * rest ** (self.gamma - 1.0) * kept * np.log(kept))
        else:
            raw = p / self.weights
        return np.asarray(raw / raw.sum(axis=-1, keepdims=True), np.float64)

    def as_policy(self) -> dict[str, Any]:
        """Return the effect of `correct` as fields of `l4s_gym.sim.policy.Policy`."""
        if not self.correction or self.kind == "none":
            return {}
        return {"gamma": self.gamma} if self.kind == "focal" else {"weights": tuple(self.weights.tolist())}

    def check(self, who: str, *kinds: str) -> None:
        """Refuse a kind that a learner cannot apply.

        Raises:
            L4SError: The kind is not one of `kinds`.
        """
        if self.kind not in kinds:
            able = " or ".join(repr(kind) for kind in kinds)
            raise L4SError(f"{who}: cannot apply imbalance kind {self.kind!r} to its loss: choose {able}")
