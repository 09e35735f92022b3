"""The documentation says what the code says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from l4s_gym import schema
from l4s_gym.cli import GROUPS, main
from l4s_gym.envs.dualpi2 import DualPI2Env

ROOT = Path(__file__).parents[1]


def test_the_record_is_documented_as_it_is() -> None:
    assert schema.markdown_table() in (ROOT / "datasets" / "README.md").read_text()


def test_the_page_of_the_environment_names_every_feature() -> None:
    page = DualPI2Env.__doc__ or ""
    for number, name in enumerate(schema.OBSERVED):
        assert f"| {number} | {name}" in page


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    lines = [
        line.strip() for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    return sorted({" ".join(line.split()[1:3]) for line in lines if line.startswith("l4s-gym ")})


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.split()
    asked = words[:2] if words[0] in GROUPS else words[:1]
    assert main([*asked, "--help"]) == 0
    assert "usage: l4s-gym" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("page", "title"), [("README.md", "Data"), ("datasets/README.md", "Load")])
def test_what_is_said_of_data_runs_as_written(page: str, title: str, tmp_path: Path) -> None:
    for extra in ("minari", "torch", "d3rlpy", "sklearn"):
        pytest.importorskip(extra, reason="needs all extras")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "MINARI_DATASETS_PATH": str(tmp_path / "datasets")}
    text = (ROOT / page).read_text()
    if title == "Load":
        text = "```sh\nl4s-gym datasets build testbed\n```\n" + text[text.index(f"## {title}") :]
    section = text[text.index("```sh") if title == "Load" else text.index(f"## {title}") :]
    end = section.find("\n## ", 200)
    script = []
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", section[:end], re.S):
        script.append((["bash", "-e", "-c"] if language == "sh" else [sys.executable, "-c"], block))
    assert {command[0] for command, _ in script} == {"bash", sys.executable}
    python = "".join(block for command, block in script if command[0] == sys.executable)
    for command, block in [*(each for each in script if each[0][0] == "bash"), ([sys.executable, "-c"], python)]:
        done = subprocess.run([*command, block], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "path",
    [
        "benchmarks/speed.py",
        "benchmarks/fidelity.py",
        "benchmarks/peers/ns3.py",
        "benchmarks/data_speed.py",
        "benchmarks/sim_to_real.py",
    ],
)
def test_the_readme_names_the_benchmarks(path: str) -> None:
    assert path in (ROOT / "README.md").read_text()
    assert (ROOT / path).is_file()
