"""How close an imitator comes to the discipline that it has seen, where that one's probabilities are known.

The testbed's kernel draws random numbers, so that the logged decision is one of several that were possible. What can be
learnt are the probabilities q behind it (`l4s_gym.data.behaviour`), and what an imitator p lacks is the excess of its
cross-entropy over the entropy of q: the mean of sum q ln(q / p), which is 0 for the kernel itself and for nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.agents.logged import Stretch, cut, split
from l4s_gym.agents.metrics import SMALLEST, calibration_error, reliability
from l4s_gym.data.simulated import episode_probabilities
from l4s_gym.data.trajectory import Ints, Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, DROP, MARK

Floats = npt.NDArray[np.float64]

BLOCKS: Final = 20
"""Neighbouring steps are alike: the interval of a mean over steps takes the means of so many blocks for its sample."""


@dataclass(frozen=True)
class HeldOut:
    """The part of a dataset that agents were not trained on, and who decided there.

    Attributes:
        logged: Its steps.
        probabilities: Of the behaviour at each of them (T, 3).
        stretches: Where they are in the dataset.
        shares: Of the actions in the part that was trained on (3,).
    """

    logged: Trajectory
    probabilities: Floats
    stretches: tuple[Stretch, ...]
    shares: Floats

    @classmethod
    def of(cls, episodes: Sequence[Trajectory], share: float = 0.2, seed: int = 0) -> HeldOut:
        """As all learners hold it out; the behaviour is simulated again.

        Args:
            episodes: Of a simulated dataset that `dualpi2_freebsd` decided.
            share: Of the episodes.
            seed: Of the training.

        Raises:
            L4SError: The behaviour is not known, or steps were left out.
        """
        train, held = split([len(episode) for episode in episodes], share, seed)
        logged = Trajectory.joined(cut(episodes, held))
        q = np.concatenate([episode_probabilities(episodes[s.episode])[s.start : s.stop] for s in held])
        if len(q) != len(logged):
            raise L4SError("held-out steps: some lack their accumulated probability: give a simulated dataset")
        actions = np.concatenate([episodes[s.episode].actions[s.start : s.stop] for s in train])
        return cls(logged, q, tuple(held), np.bincount(actions, minlength=len(ACTIONS)) / len(actions))

    def check(self, training: dict[str, Any], name: str) -> None:
        """Refuse an agent of another split.

        Raises:
            L4SError: It was trained with other steps held out.
        """
        if [tuple(stretch) for stretch in training.get("held_out", ())] != [tuple(s) for s in self.stretches]:
            raise L4SError(f"{name}: was trained with other steps held out: train it again with the same seed")


def mean_interval(values: npt.ArrayLike) -> tuple[float, float, float]:
    """Mean of a sample (n,), and its 95 % interval by Student's t; the mean thrice where n is 1."""
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, mean, mean
    from scipy.stats import t

    half = float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return mean, mean - half, mean + half


def divergence(p: npt.ArrayLike, q: npt.ArrayLike) -> Floats:
    """Kullback-Leibler divergence, sum q ln(q / p), of each step (T,), nats; smaller p than `SMALLEST` count as that.

    Args:
        p: Probabilities of the imitator (T, 3).
        q: Probabilities of the behaviour (T, 3).
    """
    p, q = np.maximum(np.asarray(p, np.float64), SMALLEST), np.asarray(q, np.float64)
    found: Floats = (q * (np.log(np.where(q > 0.0, q, 1.0)) - np.log(p))).sum(axis=1)
    return found


def compare(p: Floats, q: Floats, actions: Ints) -> dict[str, Any]:
    """An imitator beside the behaviour, step by step.

    Args:
        p: Probabilities of the imitator (T, 3).
        q: Probabilities of the behaviour (T, 3).
        actions: What was drawn (T,).

    Returns:
        Plain data:

        | key | meaning |
        |---|---|
        | `cross_entropy` | mean of -ln p(action), nats |
        | `entropy` | of the behaviour, nats: nobody's expected cross-entropy is less |
        | `excess` | their difference: an estimate of `kl`, with the luck of the draws in it |
        | `kl` | mean of sum q ln(q / p), and its 95 % interval |
        | `never` | share of the steps at which something was possible that the imitator rules out |
        | `mean_probabilities`, `behaviour` | mean of p and of q: calibrated in the large, they are equal |
        | `ece` | expected calibration error of drop and mark |
        | `reliability` | of drop and mark: mean prediction, share of hits, and steps, bin by bin |
    """
    each = divergence(p, q)
    entropy = -float(divergence(np.ones_like(q), q).mean())
    cross_entropy = float(-np.log(np.maximum(p[np.arange(len(p)), actions], SMALLEST)).mean())
    blocks = [block.mean() for block in np.array_split(each, min(BLOCKS, len(each)))]
    _, low, high = mean_interval(blocks)
    kinds = {ACTIONS[k]: (p[:, k], actions == k) for k in (DROP, MARK)}
    return {
        "steps": len(p),
        "cross_entropy": cross_entropy,
        "entropy": entropy,
        "excess": cross_entropy - entropy,
        "kl": float(each.mean()),
        "kl_interval": [low, high],
        "never": float(((p < SMALLEST) & (q > SMALLEST)).any(axis=1).mean()),
        "mean_probabilities": dict(zip(ACTIONS, p.mean(axis=0).tolist(), strict=True)),
        "behaviour": dict(zip(ACTIONS, q.mean(axis=0).tolist(), strict=True)),
        "ece": {name: calibration_error(*pair) for name, pair in kinds.items()},
        "reliability": {name: [column.tolist() for column in reliability(*pair)] for name, pair in kinds.items()},
    }
