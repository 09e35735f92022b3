"""`l4s-gym live ...`: what is printed and written, exit status, and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import cli
from l4s_gym.bridge import client
from l4s_gym.cli.common import console
from l4s_gym.data.logs import write_log
from l4s_gym.data.records import load_records, save_records
from l4s_gym.live import machine
from l4s_gym.live.doctor import Finding
from tests.bridge.conftest import Serve
from tests.bridge.server import log_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are printed whole, whatever the terminal of the tests."""
    monkeypatch.setattr(console, "width", 200)


def run(capsys: Capture, *args: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    code = cli.main(["live", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("command", [(), ("control",), ("record",), ("doctor",), ("model",)])
def test_help(command: tuple[str, ...], capsys: Capture) -> None:
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "") and "usage: " + " ".join(("l4s-gym live", *command)) in out


def test_the_groups_name_it(capsys: Capture) -> None:
    assert cli.main(["--help"]) == 0
    assert "live" in capsys.readouterr().out


def test_control(serve: Serve, tmp_path: Path, capsys: Capture) -> None:
    server, out = serve(), tmp_path / "run.json"
    code, said, err = run(
        capsys,
        "control",
        "threshold",
        "--socket",
        server.path,
        "--seconds",
        0.3,
        "--decision-interval",
        10,
        "--out",
        out,
    )
    assert (code, err) == (0, "")
    for words in (
        "threshold, each 10. packet",
        "decided by agent",
        "decided by fallback",
        "40 us, 90 us",
        "shield trips",
        "asked by the common socket: this queue gave none of its own",
    ):
        assert words in said
    data = json.loads(out.read_text())
    assert data["agent"] == "threshold" and data["shares"]["by_agent"] > 0 and "versions" in data
    assert server.queue.interval == 0


@pytest.mark.parametrize("option", ["--direct", "--no-direct"])
def test_control_by_the_queues_own_socket(serve: Serve, capsys: Capture, option: str) -> None:
    server = serve(direct="passed")
    code, said, _ = run(capsys, "control", "threshold", "--socket", server.path, "--seconds", 0.2, option)
    assert code == 0 and "gave none of its own" not in said
    assert ("a socket of the queue's own" in said) == (server.asked_directly > 0) == (option == "--direct")


def test_record(serve: Serve, tmp_path: Path, capsys: Capture) -> None:
    code, said, err = run(capsys, "record", tmp_path / "a.rec", "--socket", serve().path, "--rows", 300)
    assert (code, err) == (0, "") and "300 rows" in said and "0 lost on the way" in said
    assert len(load_records(tmp_path / "a.rec")) == 300


def test_doctor_of_a_live_queue(serve: Serve, capsys: Capture, simulated: Any) -> None:
    code, said, err = run(capsys, "doctor", "--socket", serve(simulated).path, "--seconds", 0.4)
    assert err == "" and "controller" in said and "rate" in said and "marking allowed" in said
    assert code in (0, 1)  # by the settings of this machine


def test_doctor_of_logs(tmp_path: Path, capsys: Capture, simulated: Any) -> None:
    save_records(tmp_path / "a.rec", simulated)
    code, said, err = run(capsys, "doctor", "--log", tmp_path / "a.rec")
    assert (code, err) == (0, "") and "offered twice" in said and "tcp_ecn" not in said
    sick = simulated.copy()
    sick["current_queue_delay"] = sick["current_queue_delay"] // 10_000 * 10_000
    write_log(tmp_path / "a.log", sick)
    code, said, err = run(capsys, "doctor", "--log", tmp_path / "a.log")
    assert (code, err) == (1, "") and "kern.hz=1000" in said


def test_doctor_without_a_socket_examines_the_machine(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(client.VARIABLE, raising=False)
    monkeypatch.setattr(client, "ADDRESS", str(tmp_path / "live.sock"))
    monkeypatch.setattr(machine, "local_checks", lambda **_: [])
    monkeypatch.setattr(console, "width", 1000)  # so that no cell is folded
    code, said, err = run(capsys, "doctor")
    assert (code, err) == (0, "") and "only this machine was examined" in said
    monkeypatch.setattr(machine, "local_checks", lambda **_: [Finding("sysctl", "fail", "off", "switch it on")])
    code, said, _ = run(capsys, "doctor")
    assert code == 1 and "switch it on" in said


def test_mistakes(tmp_path: Path, capsys: Capture) -> None:
    for args, said in (
        (("control", "threshold", "--socket", tmp_path / "no"), "no such socket"),
        (("control", "nobody", "--socket", tmp_path / "no"), "unknown agent"),
        (("control", "random", "--seconds", 0), "--seconds 0"),
        (("control", "random", "--out", tmp_path / "no" / "x"), "there is no folder"),
        (("record", tmp_path / "x.rec", "--socket", tmp_path / "no"), "no such socket"),
        (("record", tmp_path / "x.txt"), "name a .rec or .log file"),
        (("doctor", "--socket", tmp_path / "no"), "no such socket"),
        (("doctor", "--seconds", -1), "--seconds -1"),
        (("doctor", "--log", tmp_path / "no.log"), "cannot be read"),
        (("model", tmp_path / "no.rec", "--out", tmp_path / "m"), "cannot be read"),
    ):
        code, out, err = run(capsys, *args)
        assert (code, out) == (2, "") and err.count("\n") == 1 and said in err


def test_the_socket_of_the_environment(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L4S_GYM_SOCKET", str(serve().path))
    assert cli.main(["live", "record", str(tmp_path / "a.rec"), "--rows", "10"]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["record", "control"])
def test_signals(serve: Serve, tmp_path: Path, command: str, number: signal.Signals) -> None:
    server = serve(log_of(500))
    out = tmp_path / "a.rec"
    args = ["record", str(out)] if command == "record" else ["control", "enqueue"]
    program = [sys.executable, "-m", "l4s_gym.cli", "live", *args, "--socket", str(server.path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while server.queue.sequence < 500 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, number)
        said, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    if command == "record":
        assert "stopped" in said and len(load_records(out)) >= 500
    else:
        assert "decided by agent" in said
        assert server.queue.interval == 0
