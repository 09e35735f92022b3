"""Every example runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = {
    "own_scenario": ("--seconds", "1"),
    "plot": ("--seconds", "1"),
    "offline_bc": ("--steps", "50", "--seconds", "2"),
    "ppo": ("--steps", "20000"),
    "sb3": ("--steps", "4096"),
    "real_queue": ("--seconds", "1"),
}
"""Arguments of the examples that are programs; those that l4s-gym is to load have tests of their own."""
NEEDS = {"plot": "matplotlib", "offline_bc": "d3rlpy", "ppo": "torch", "sb3": "stable_baselines3"}
FAST = ("own_scenario", "plot")


def run(folder: Path, *command: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SHORT])
def test_a_program_runs(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(NEEDS.get(name, "l4s_gym")) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    printed = run(tmp_path, str(EXAMPLES / f"{name}.py"), *SHORT[name])
    if printed.startswith("skipped:"):
        pytest.skip(printed.strip())
    assert printed


def test_the_agent_is_evaluated_and_enters_the_board(tmp_path: Path) -> None:
    spec = f"{EXAMPLES / 'own_agent.py'}:Ramp"
    printed = run(tmp_path, "-m", "l4s_gym.cli", "evaluate", spec, "--seeds", "0", "--seconds", "1")
    assert "ramp" in printed


def test_every_example_is_in_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for path in EXAMPLES.glob("*.py"):
        assert path.stem in SHORT or f"{path.stem}.py" in tests or f'"{path.stem}"' in tests, path
