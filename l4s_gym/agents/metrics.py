"""Offline metrics: how well probabilities predict logged decisions, beside those of a constant prediction.

Accuracy says little where 99 of 100 rows are "enqueue": it is shown with the share of the majority class,
cross-entropy, macro-F1, recall per class and calibration.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS: Final = 15
SMALLEST: Final = 1e-12
"""Smaller probabilities count as this in the cross-entropy."""


def _checked(probabilities: npt.ArrayLike, actions: npt.ArrayLike) -> tuple[Floats, Ints]:
    p, a = np.asarray(probabilities, np.float64), np.asarray(actions, np.int64)
    if a.ndim != 1 or not len(a) or p.shape != (len(a), len(ACTIONS)):
        raise L4SError(f"metrics: probabilities {p.shape} for actions {a.shape}: give (T, {len(ACTIONS)}) and (T,)")
    if not np.isfinite(p).all() or (p < -1e-9).any() or (np.abs(p.sum(axis=1) - 1.0) > 1e-4).any():
        raise L4SError("metrics: the probabilities are not finite, not negative and of sum 1: was the training stable?")
    if (a < 0).any() or (a >= len(ACTIONS)).any():
        raise L4SError(f"metrics: actions of {a.min()} to {a.max()}: give 0 to {len(ACTIONS) - 1}")
    return p, a


def reliability(p: npt.ArrayLike, hit: npt.ArrayLike, bins: int = BINS) -> tuple[Floats, Floats, Ints]:
    """Compute a reliability diagram with bins of equal mass.

    Args:
        p: Predicted probabilities (T,).
        hit: Whether it happened (T,).
        bins: Most bins; equal probabilities share a bin.

    Returns:
        Mean prediction, share of events, and number of steps of each bin that is not empty.
    """
    p, hit = np.asarray(p, np.float64), np.asarray(hit, np.float64)
    edges = np.unique(np.quantile(p, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
    number = np.searchsorted(edges, p, side="left")
    counts = np.bincount(number, minlength=len(edges) + 1)
    some = counts > 0
    means = np.bincount(number, p, len(edges) + 1)[some] / counts[some]
    shares = np.bincount(number, hit, len(edges) + 1)[some] / counts[some]
    return means, shares, counts[some].astype(np.int64)


def calibration_error(p: npt.ArrayLike, hit: npt.ArrayLike, bins: int = BINS) -> float:
    """Return the expected calibration error of a class: mean gap of the reliability diagram, weighted by steps."""
    means, shares, counts = reliability(p, hit, bins)
    return float(np.abs(means - shares) @ counts / counts.sum())


def confusion(predicted: npt.ArrayLike, actions: npt.ArrayLike) -> Ints:
    """Return counts (3, 3): the logged action by the predicted one."""
    table = np.zeros((len(ACTIONS), len(ACTIONS)), np.int64)
    np.add.at(table, (np.asarray(actions, np.int64), np.asarray(predicted, np.int64)), 1)
    return table


def decisions(predicted: npt.ArrayLike, actions: npt.ArrayLike) -> dict[str, Any]:
    """Compute the metrics of decisions alone: `classification` without those that need probabilities."""
    table = confusion(predicted, actions)
    steps, hits = table.sum(), np.diag(table)
    logged, said = table.sum(axis=1), table.sum(axis=0)
    there = (logged + said) > 0
    f1 = 2.0 * hits[there] / (logged + said)[there]
    return {
        "steps": int(steps),
        "accuracy": float(hits.sum() / steps),
        "majority": float(logged.max() / steps),
        "macro_f1": float(f1.mean()),
        "recall": {name: float(hits[k] / logged[k]) if logged[k] else None for k, name in enumerate(ACTIONS)},
        "shares": {name: float(logged[k] / steps) for k, name in enumerate(ACTIONS)},
        "predicted_shares": {name: float(said[k] / steps) for k, name in enumerate(ACTIONS)},
        "confusion": table.tolist(),
    }


def classification(probabilities: npt.ArrayLike, actions: npt.ArrayLike) -> dict[str, Any]:
    """Compute all offline metrics; the prediction is the most probable action.

    Args:
        probabilities: Probabilities of the three actions (T, 3).
        actions: What was decided (T,).

    Returns:
        Plain data:

        | key | meaning |
        |---|---|
        | `steps` | T |
        | `cross_entropy` | mean of -ln p(logged action), nats |
        | `constant_cross_entropy` | that of a constant prediction of the actions' shares in these steps |
        | `accuracy`, `majority` | share of steps predicted, and the share of the most frequent action |
        | `macro_f1` | mean F1 over the actions that were logged or predicted |
        | `recall` | by action; None where it was not logged |
        | `shares`, `predicted_shares` | how often each action was logged, and is the most probable |
        | `mean_probabilities` | mean probability of each action: equal to `shares` if calibrated on average |
        | `confusion` | logged action (rows) by most probable action |
        | `ece` | expected calibration error by action, in bins of equal mass |
        | `brier` | mean squared distance between the probabilities and the logged action |

    Raises:
        L4SError: Shapes do not fit, or the probabilities are not valid.
    """
    p, a = _checked(probabilities, actions)
    logged = np.eye(len(ACTIONS))[a]  # (T, 3)
    shares = logged.mean(axis=0)
    some = shares[shares > 0.0]
    return {
        "cross_entropy": float(-np.log(np.maximum(p[np.arange(len(a)), a], SMALLEST)).mean()),
        "constant_cross_entropy": float(-(some * np.log(some)).sum()),
        **decisions(p.argmax(axis=1), a),
        "mean_probabilities": dict(zip(ACTIONS, p.mean(axis=0).tolist(), strict=True)),
        "ece": {name: calibration_error(p[:, k], a == k) for k, name in enumerate(ACTIONS)},
        "brier": float(((p - logged) ** 2).sum(axis=1).mean()),
    }
