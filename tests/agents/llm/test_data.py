"""Augmentation does what it says, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'l4s-gym[llm]'")

from l4s_gym import L4SError
from l4s_gym.agents.llm.data import CONTINUOUS, augment
from l4s_gym.agents.llm.settings import Augment
from l4s_gym.schema import OBS_HIGH


def _batch(sequences: int = 400, length: int = 10) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    mask = np.arange(length) >= rng.integers(0, length, sequences)[:, None]
    observations = rng.random((sequences, length, 8)).astype(np.float32)
    observations[:, ::2, 4] = 0.0
    observations[..., 0] = rng.integers(0, 2, (sequences, length))
    return {
        "observations": observations * mask[..., None],
        "actions": rng.integers(0, 3, (sequences, length)),
        "returns_to_go": rng.random((sequences, length)).astype(np.float32),
        "timesteps": np.where(mask, np.cumsum(mask, axis=1) + 40, 0),
        "mask": mask,
        "missing": np.zeros((sequences, length), bool),
    }


def _same(changed: dict[str, Any], batch: dict[str, Any], *but: str) -> None:
    for name, values in batch.items():
        if name not in but:
            np.testing.assert_array_equal(changed[name], values)


def test_nothing_is_changed_by_default() -> None:
    batch = _batch()
    _same(augment(batch, Augment(), np.random.default_rng(0)), batch)


def test_noise_scales_the_continuous_features() -> None:
    batch = _batch()
    kept = {name: values.copy() for name, values in batch.items()}
    changed = augment(batch, Augment(noise=0.1), np.random.default_rng(0))
    _same(changed, batch, "observations")
    _same(batch, kept)  # the batch itself is not touched
    before, after = batch["observations"], changed["observations"]
    np.testing.assert_array_equal(after[..., ~CONTINUOUS], before[..., ~CONTINUOUS])
    np.testing.assert_array_equal(after[before == 0.0], 0.0)
    middle = (before > 0.2) & (before < 0.6) & CONTINUOUS  # far from the bounds, so never clipped
    factors = after[middle] / before[middle]
    assert abs(factors.mean() - 1.0) < 0.005
    assert abs(factors.std() - 0.1) < 0.005
    assert after.dtype == np.float32
    wild = augment(batch, Augment(noise=50.0), np.random.default_rng(0))["observations"]
    assert (wild >= 0).all()
    assert (wild <= OBS_HIGH).all()
    assert (wild == OBS_HIGH).any()


def test_offset_shifts_each_sequence_as_a_whole() -> None:
    batch = _batch()
    changed = augment(batch, Augment(offset=6), np.random.default_rng(0))
    _same(changed, batch, "timesteps")
    shift = changed["timesteps"] - batch["timesteps"]
    for row, mask in zip(shift, batch["mask"], strict=True):
        assert len(set(row[mask])) == 1
        assert not row[~mask].any()
    assert set(shift[batch["mask"]]) == set(range(7))


def test_dropout_hides_steps_but_not_the_last() -> None:
    batch = _batch()
    changed = augment(batch, Augment(dropout=0.3), np.random.default_rng(0))
    _same(changed, batch, "mask")
    assert not (changed["mask"] & ~batch["mask"]).any()
    np.testing.assert_array_equal(changed["mask"][:, -1], batch["mask"][:, -1])
    before = batch["mask"][:, :-1]
    hidden = (before & ~changed["mask"][:, :-1]).sum() / before.sum()
    assert abs(hidden - 0.3) < 0.04


def test_draws_are_those_of_the_generator() -> None:
    batch, config = _batch(20), Augment(noise=0.1, offset=5, dropout=0.2)
    one, same, other = (augment(batch, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    _same(one, same)
    assert not np.array_equal(one["observations"], other["observations"])


@pytest.mark.parametrize("wrong", [{"noise": -1.0}, {"offset": -1}, {"dropout": 1.0}])
def test_senseless_amounts_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(L4SError, match="0 or more"):
        Augment(**wrong)
