"""Offline metrics against scikit-learn, and what they say of known cases."""

from __future__ import annotations

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.agents.metrics import calibration_error, classification, decisions, reliability
from l4s_gym.schema import ACTIONS

RNG = np.random.default_rng(0)
P = RNG.dirichlet([5.0, 0.5, 0.5], 4000)
A = (RNG.random(4000)[:, None] > np.cumsum(P, axis=1)).sum(axis=1)


def test_against_scikit_learn() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    found = classification(P, A)
    said = P.argmax(axis=1)
    assert found["cross_entropy"] == pytest.approx(sk.log_loss(A, P))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(A, said))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(A, said, average="macro"))
    assert list(found["recall"].values()) == pytest.approx(sk.recall_score(A, said, average=None))
    assert found["confusion"] == sk.confusion_matrix(A, said).tolist()
    assert found["majority"] == pytest.approx(np.bincount(A).max() / len(A))
    per_class = [sk.brier_score_loss(k == A, P[:, k]) for k in range(3)]
    assert found["brier"] == pytest.approx(sum(per_class))


def test_calibration() -> None:
    found = classification(P, A)
    assert max(found["ece"].values()) < 0.03
    assert found["cross_entropy"] < found["constant_cross_entropy"]
    shares = np.bincount(A) / len(A)
    constant = classification(np.tile(shares, (len(A), 1)), A)
    assert constant["cross_entropy"] == pytest.approx(constant["constant_cross_entropy"])
    assert constant["ece"] == pytest.approx(dict.fromkeys(ACTIONS, 0.0), abs=1e-9)
    wrong = classification(np.full((len(A), 3), 1 / 3), A)
    assert wrong["ece"]["enqueue"] == pytest.approx(shares[0] - 1 / 3)


def test_reliability_bins_have_equal_mass() -> None:
    means, shares, counts = reliability(P[:, 0], A == 0, bins=10)
    assert len(means) == len(shares) == 10
    assert counts.sum() == len(A)
    assert counts.max() - counts.min() <= 1
    assert (np.diff(means) > 0).all()
    by_hand = sum(c * abs(m - s) for m, s, c in zip(means, shares, counts, strict=True)) / len(A)
    assert calibration_error(P[:, 0], A == 0, bins=10) == pytest.approx(by_hand)


def test_missing_classes_and_certainty() -> None:
    sure = classification(np.eye(3)[[0, 0, 1]], [0, 0, 0])
    assert sure["recall"] == {"enqueue": pytest.approx(2 / 3), "drop": None, "mark": None}
    assert sure["majority"] == 1.0
    assert sure["macro_f1"] == pytest.approx((0.8 + 0.0) / 2)
    assert np.isfinite(sure["cross_entropy"]) and sure["cross_entropy"] > 9
    assert decisions([0, 1], [0, 1])["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("p", "a"),
    [
        (np.zeros((0, 3)), []),
        (np.full((2, 3), 1 / 3), [0]),
        (np.full((1, 2), 0.5), [0]),
        (np.array([[np.nan, 0.5, 0.5]]), [0]),
        (np.array([[0.5, 0.5, 0.5]]), [0]),
        (np.array([[1.5, -0.5, 0.0]]), [0]),
        (np.full((1, 3), 1 / 3), [3]),
    ],
)
def test_what_is_no_prediction_is_refused(p: np.ndarray, a: list[int]) -> None:
    with pytest.raises(L4SError, match="metrics"):
        classification(p, a)
