"""The choice against class imbalance: weights, draws, and the correction that undoes them exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.agents.imbalance import KINDS, Imbalance

ACTIONS = np.repeat([0, 1, 2], [900, 70, 30])
TRUE = np.array([[0.97, 0.02, 0.01], [0.5, 0.3, 0.2], [0.01, 0.09, 0.9], [1 / 3, 1 / 3, 1 / 3]])


def learnt(imbalance: Imbalance, p: Any) -> Any:
    """What a perfect learner gives where the data has probabilities p (3,): the minimiser of its loss, by descent."""
    from scipy.optimize import minimize

    w = imbalance.weights

    def loss(z: Any) -> float:
        q = np.exp(z - z.max())
        q /= q.sum()
        scale = (1 - q) ** imbalance.gamma if imbalance.kind == "focal" else 1.0
        return float(-(p * w * scale * np.log(q)).sum())

    z = minimize(loss, np.log(p), method="BFGS", options={"gtol": 1e-9}).x
    q = np.exp(z - z.max())
    return q / q.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_correction_gives_back_the_probabilities_of_the_data(kind: str, power: float) -> None:
    pytest.importorskip("scipy")
    imbalance = Imbalance(kind, power=power).fitted(ACTIONS)
    shifted = np.stack([learnt(imbalance, p) for p in TRUE])
    np.testing.assert_allclose(imbalance.correct(shifted), TRUE, atol=2e-4)
    if kind != "none":
        assert np.abs(shifted - TRUE).max() > 0.05
        plain = Imbalance(kind, power=power, correction=False).fitted(ACTIONS)
        np.testing.assert_array_equal(plain.correct(shifted), shifted)


def test_weights() -> None:
    full = Imbalance("weights").fitted(ACTIONS)
    np.testing.assert_allclose(full.weights * full.shares, 1 / 3)
    half = Imbalance("weights", power=0.5).fitted(ACTIONS)
    assert half.weights @ np.array(half.shares) == pytest.approx(1.0)
    assert half.weights[2] / half.weights[0] == pytest.approx(np.sqrt(30.0))
    assert Imbalance("weights").fitted(np.zeros(5, int)).weights.tolist() == [1, 1, 1]
    assert Imbalance("focal").fitted(ACTIONS).weights.tolist() == [1, 1, 1]


def test_draws() -> None:
    chances = Imbalance("sample").fitted(ACTIONS).step_probabilities(ACTIONS)
    assert chances is not None
    assert chances.sum() == pytest.approx(1.0)
    np.testing.assert_allclose([chances[action == ACTIONS].sum() for action in range(3)], 1 / 3)
    assert Imbalance("weights").fitted(ACTIONS).step_probabilities(ACTIONS) is None


def test_focal_correction_of_certainty() -> None:
    certain = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(Imbalance("focal").fitted(ACTIONS).correct(certain), certain, atol=1e-9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("weigths", "did you mean 'weights'"),
        ({"kind": "weights", "pover": 1}, "did you mean 'power'"),
        ({"power": "1"}, "imbalance: power: Expected `float`, got `str`"),
        ({"power": True}, "imbalance: power: Expected `float`, got `bool`"),
        ({"power": 9}, "0 to 2"),
        ({"gamma": -1.0}, "0 to 10"),
        ({"shares": [1.0]}, "one for each"),
    ],
)
def test_bad_choices(given: Any, message: str) -> None:
    with pytest.raises(L4SError, match=message):
        Imbalance.of(given)


def test_plain_data_and_misuse() -> None:
    fitted = Imbalance("sample", power=0.5).fitted(ACTIONS)
    assert Imbalance.of(fitted.as_dict()) == fitted
    assert Imbalance.of("focal") == Imbalance("focal")
    with pytest.raises(L4SError, match="fitted"):
        Imbalance("weights").weights  # noqa: B018
    with pytest.raises(L4SError, match="no actions"):
        Imbalance().fitted([])
    with pytest.raises(L4SError, match="cannot apply"):
        Imbalance("focal").check("cql", "none", "sample")
