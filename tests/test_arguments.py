"""Options that are given again."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import tyro

from l4s_gym import cli
from l4s_gym.cli.arguments import accumulated, command_line, several

COMMANDS = {
    f"{group} {name}".strip(): target
    for group, app in {
        "": cli.app,
        **{each: importlib.import_module(cli.GROUPS[each]).app for each in cli.GROUPS},
    }.items()
    for name, target in app.targets().items()
}


def fill(option: str) -> str:
    return "7" if option == "--seeds" else "x=1"


@pytest.mark.parametrize(
    ("command", "option"), [(name, option) for name, target in COMMANDS.items() for option in sorted(several(target))]
)
def test_every_repeated_list_takes_all_values(command: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tyro is handed is what one option with all values would be."""
    seen: list[list[str]] = []
    monkeypatch.setattr(tyro.extras.SubcommandApp, "cli", lambda self, *, args, **more: seen.append(list(args)))
    value = fill(option)
    group, _, name = command.rpartition(" ")
    start = [group] if group else []
    for given in (
        [option, value, value, value],
        [option, value, option, value, value],
        [option, value, "--other", "1", option, value, f"{option}={value}"],
    ):
        cli.main([*start, name, *given])
    assert seen[0] == seen[1] == [name, option, value, value, value]
    assert seen[2] == [name, option, value, value, value, "--other", "1"]


def test_which_options_take_several() -> None:
    found = {name: several(target) for name, target in COMMANDS.items() if several(target)}
    assert found["train"] == {"--set"}
    assert {"--seeds"} < found["evaluate"] | {""} and "--seeds" in found["test"]
    assert found["leaderboard"] >= {"--add", "--check"}
    assert found["live doctor"] == {"--log"}


def test_the_values_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(a: tuple[int, ...] = (), b: str = "") -> tuple[tuple[int, ...], str]:
        return a, b

    monkeypatch.setattr(sys, "excepthook", None)
    monkeypatch.setattr(sys, "argv", ["x", "--a", "1", "--b", "z", "--a=2", "--a", "-3", "4"])
    assert command_line(command) == ((1, 2, -3, 4), "z")


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ("L4SError('no such agent')", "error: no such agent\n"),
        ("KeyboardInterrupt", "interrupted\n"),
        ("ValueError('ours')", "Traceback"),
    ],
)
def test_a_script_ends_in_one_line(ends: str, told: str) -> None:
    lines = ["from l4s_gym.cli.arguments import command_line", "from l4s_gym.errors import L4SError"]
    lines += ["def main() -> None:", f"    raise {ends}", "command_line(main)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.startswith(told) if told == "Traceback" else done.stderr == told


@pytest.mark.parametrize("args", [("simulate", "--seed", "1", "--seed", "2"), ("simulate", "--seed=1", "--seed=1")])
def test_one_value_given_twice_is_refused(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    assert capsys.readouterr().err == "l4s-gym: --seed: is given twice: give it once\n"


def test_what_follows_two_dashes_is_left_alone() -> None:
    assert accumulated(["--a", "1", "--", "--a", "2", "--a"], frozenset({"--a"})) == [
        "--a",
        "1",
        "--",
        "--a",
        "2",
        "--a",
    ]


def test_fields_of_a_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*settings: str) -> str:
        assert cli.main(["simulate", "--seconds", "1", *(word for each in settings for word in ("--set", each))]) == 2
        return capsys.readouterr().err

    options = ("link.rate_mbps=40", "options.dualpi2_linux.alpha=82")
    assert cli.main(["simulate", "--seconds", "1", "--aqm", "fifo", "--set", options[0], "--set", options[1]]) == 0
    capsys.readouterr()
    assert "did you mean 'alpha'" in refused("options.dualpi2_linux.alhpa=82")
    said = refused("options.alpha=1")
    assert "options.alpha: each discipline has options of its own: write options.pie.alpha or options.dualpi2" in said
    assert "options.dualpi2_linux.alpha: Expected `int`" in refused(
        "options.pie.alpha=0.2", "options.dualpi2_linux.alpha=0.16"
    )
    assert "'kind'" in refused("link.knd=tick") and "give key=value" in refused("link")
