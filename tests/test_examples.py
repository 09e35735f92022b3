"""Every example runs."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from l4s_gym.cli import main
from l4s_gym.evaluation.harness import evaluate
from l4s_gym.sim.scenario import load

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


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_program_runs(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(NEEDS.get(name, "l4s_gym")) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *SHORT[name]]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("skipped:"):
        pytest.skip(done.stdout.strip())
    assert done.stdout


def test_the_scenario_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["own_scenario.py", "--seconds", "1"])
    runpy.run_path(str(EXAMPLES / "own_scenario.py"), run_name="__main__")
    assert "dualpi2_linux" in capsys.readouterr().out


def test_the_agent_decides() -> None:
    (result,) = evaluate(f"{EXAMPLES / 'own_agent.py'}:Ramp", load("l4s-llm-testbed").replace(horizon_s=1.0), seeds=[0])
    assert result.agent == "ramp"
    assert 0.0 < result.mark_rate < 1.0


@pytest.mark.slow
def test_the_agent_enters_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["leaderboard", "--add", f"{EXAMPLES / 'own_agent.py'}:Ramp", "--size", "quick", "--out", "board"]
    assert main(command) == 0
    assert "ramp" in (tmp_path / "board" / "leaderboard.md").read_text().lower()


def test_every_example_is_in_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for path in EXAMPLES.glob("*.py"):
        assert path.stem in SHORT or f"{path.stem}.py" in tests or f'"{path.stem}"' in tests, path
