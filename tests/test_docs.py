"""The documentation says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from l4s_gym import schema
from l4s_gym.cli import main
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
    asked = words[:2] if words[0] in ("log", "datasets") else words[:1]
    assert main([*asked, "--help"]) == 0
    assert "usage: l4s-gym" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["benchmarks/speed.py", "benchmarks/fidelity.py", "benchmarks/peers/ns3.py"])
def test_the_readme_names_the_benchmarks(path: str) -> None:
    assert path in (ROOT / "README.md").read_text()
    assert (ROOT / path).is_file()
