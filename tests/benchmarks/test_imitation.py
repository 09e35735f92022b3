"""Distances from a known behaviour: closed forms, and the whole benchmark in little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distances import HeldOut, compare, divergence, mean_interval
from l4s_gym import L4SError
from l4s_gym.agents.logged import Stretch
from l4s_gym.agents.metrics import SMALLEST

pytest.importorskip("scipy", reason="needs SciPy: pip install 'l4s-gym[baselines]'")

ROOT = Path(__file__).parents[2]
ROWS = st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).filter(lambda row: sum(row) > 1e-3)


def normal(row: list[float]) -> Any:
    return np.array([row]) / sum(row)


@given(ROWS, ROWS)
def test_divergence_is_positive_but_for_the_behaviour_itself(first: list[float], second: list[float]) -> None:
    p, q = normal(first), normal(second)
    assert divergence(p, q)[0] >= -3 * SMALLEST
    assert divergence(q, q)[0] == pytest.approx(0.0, abs=3 * SMALLEST)
    # Pinsker: at least half the squared L1 distance.
    assert divergence(p, q)[0] >= 0.5 * np.abs(p - q).sum() ** 2 - 1e-9


def test_divergence_of_known_probabilities() -> None:
    q = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    p = np.array([[0.25, 0.25, 0.5], [0.0, 0.5, 0.5]])
    assert divergence(p, q) == pytest.approx([np.log(2.0), -np.log(SMALLEST)])


def test_what_is_compared() -> None:
    rng = np.random.default_rng(0)
    q = rng.dirichlet([8.0, 1.0, 0.5], 40_000)
    actions = (rng.random(len(q))[:, None] >= np.cumsum(q, axis=1)[:, :-1]).sum(axis=1)
    itself = compare(q, q, actions)
    assert itself["entropy"] == pytest.approx(-(q * np.log(q)).sum(axis=1).mean())
    assert itself["kl"] == pytest.approx(0.0, abs=1e-12)
    assert abs(itself["excess"]) < 0.01
    assert itself["ece"]["drop"] < 0.01
    p = np.tile([0.9, 0.1, 0.0], (len(q), 1))
    other = compare(p, q, actions)
    assert other["entropy"] == itself["entropy"]
    assert other["excess"] == pytest.approx(other["kl"], rel=0.05)
    low, high = other["kl_interval"]
    assert low < other["kl"] < high
    assert other["never"] == pytest.approx((q[:, 2] > SMALLEST).mean())
    assert other["mean_probabilities"]["drop"] == pytest.approx(0.1)
    assert other["behaviour"]["drop"] == pytest.approx(q[:, 1].mean())
    predicted, shares, counts = other["reliability"]["drop"]
    assert (predicted, counts) == ([pytest.approx(0.1)], [40_000])
    assert shares == [pytest.approx((actions == 1).mean())]


def test_intervals_are_students() -> None:
    middle, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (middle, low, high) == pytest.approx((3.0, 3.0 - 1.9632, 3.0 + 1.9632), abs=1e-4)
    assert mean_interval([7.0]) == (7.0, 7.0, 7.0)


@pytest.fixture
def episodes(simulated: Callable[[str, float], list[Any]]) -> list[Any]:
    """Three episodes of a simulated dataset."""
    return simulated('{aqm = "dualpi2_freebsd"}', 3.0)


def test_held_out_steps_bear_the_behaviours_probabilities(episodes: list[Any]) -> None:
    held = HeldOut.of(episodes)
    (stretch,) = held.stretches
    assert np.array_equal(held.logged.actions, episodes[stretch.episode].actions)
    assert held.probabilities[np.arange(len(held.logged)), held.logged.actions].min() > 0.0
    kept = np.concatenate([e.actions for number, e in enumerate(episodes) if number != stretch.episode])
    assert held.shares == pytest.approx(np.bincount(kept, minlength=3) / len(kept))
    held.check({"held_out": [list(stretch)]}, "agent")
    with pytest.raises(L4SError, match="agent: was trained with other steps held out"):
        held.check({"held_out": [list(Stretch(stretch.episode, 0, 5))]}, "agent")
    (last,) = HeldOut.of(episodes[:1]).stretches  # of a single episode, its end
    assert last.start > 0


@pytest.mark.slow
def test_the_benchmark_in_little(tmp_path: Path) -> None:
    """It trains, measures and reports; a second run measures nothing again, and appends."""
    pytest.importorskip("d3rlpy", reason="needs d3rlpy: pip install 'l4s-gym[baselines]'")
    pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'l4s-gym[report]'")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MINARI_DATASETS_PATH": str(tmp_path / "datasets")}
    script = [
        sys.executable,
        str(ROOT / "benchmarks" / "studies" / "imitation" / "run.py"),
        "--quick",
        "--datasets",
        "testbed",
    ]

    def run() -> str:
        done = subprocess.run(
            [*script, "--agents", "bc", "sac", "dt"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    assert first.count("training of") == 3 and "kept from before" not in first
    again = run()
    assert again.count("kept from before") == again.count("jobs left")
    out = tmp_path / "runs" / "imitation" / "quick"
    runs = json.loads((out / "imitation.json").read_text())
    assert len(runs) == 2
    assert runs[0]["datasets"] == runs[1]["datasets"]
    data = runs[0]["datasets"]["testbed"]
    assert set(data["offline"]) == {"constant", "the kernel itself", "bc", "sac", "dt"}
    assert data["offline"]["the kernel itself"]["kl"] == pytest.approx(0.0, abs=1e-9)
    assert all(row["kl"] > 0.0 for name, row in data["offline"].items() if name != "the kernel itself")
    assert {(found["agent"], found["rule"]) for found in data["loops"]} >= {("dt", "diffuse"), ("enqueue", "-")}
    text = (out / "imitation.md").read_text()
    assert "| distinguished by |" in text and "| sac |" in text
    assert (out / "imitation.png").read_bytes().startswith(b"\x89PNG")
