"""`l4s-gym live up` as a process: it ends cleanly, and leaves nothing, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from l4s_gym.bridge.figures import read
from l4s_gym.errors import L4SError
from l4s_gym.live import testbed
from l4s_gym.live.router import UNSHAPED
from l4s_gym.live.testbed import LiveTestbed
from l4s_gym.sim import scenario

from .conftest import Build

# Real packets in real time, on cores that others use too: a test that fails is tried twice more.
pytestmark = [pytest.mark.usefixtures("namespaces"), pytest.mark.flaky(reruns=2, reruns_delay=2)]
Start = Callable[..., subprocess.Popen[str]]
TREE: dict[str, Any] = {
    "name": "short",
    "aqm": "dualpi2_rfc9332",
    "link": {"rate_mbps": 8.0},
    "sources": [{"kind": "cubic", "rtt_ms": 10.0}, {"kind": "prague", "rtt_ms": 10.0}],
}


def namespaces_of(pid: int) -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return re.findall(rf"^l4s-{pid}-\S+", done.stdout, re.MULTILINE)


def pids_in(name: str) -> list[str]:
    return subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()


def processes_of(pid: int) -> dict[int, str]:
    """Command lines that name something of the testbed of a process, by their process."""
    found = {}
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = each.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"l4s-{pid}-" in line:
            found[int(each.parent.name)] = line
    return found


def gone(pid: int, *paths: Path) -> bool:
    return not namespaces_of(pid) and not processes_of(pid) and not any(path.exists() for path in paths)


def until(ready: Any, seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit, "it does not come"
        time.sleep(0.05)


@pytest.fixture
def kernel(build: Build) -> Path:
    return build()


@pytest.fixture
def start(kernel: Path) -> Iterator[Start]:
    """Starts `live up`; what a failed test leaves is ended."""
    made = []

    def starts(*arguments: str) -> subprocess.Popen[str]:
        # A shell starts what runs in its background with SIGINT ignored.
        command = [
            "env",
            "--default-signal=INT",
            sys.executable,
            "-m",
            "l4s_gym.cli",
            "live",
            "up",
            "--kernel",
            str(kernel),
            *arguments,
        ]
        made.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return made[-1]

    yield starts
    for process in made:
        process.terminate()
        process.communicate(timeout=60)


def test_up_runs_prints_and_leaves_nothing(start: Start, tmp_path: Path) -> None:
    socket, out = tmp_path / "live.sock", tmp_path / "out"
    process = start("--seconds", "2", "--socket", str(socket), "--out", str(out))
    text, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "decided by" in text and "prague-like" in text and "cubic" in text
    result = json.loads((out / "live.json").read_text())
    figures = read(result["router"])
    assert all(c.packets > 0 and c.served_bytes > 0 for c in figures.classes)
    assert [flow["label"] for flow in result["flows"]].count("cubic") == 4
    # In so short a run a queue that is full at the start may let a connection or two not come about.
    assert sum(flow.get("goodput_mbps", 0.0) > 0.0 for flow in result["flows"]) >= 5
    assert {"versions", "host", "command"} <= set(result)
    assert gone(process.pid, socket)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_ends_it_and_leaves_nothing(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    socket = tmp_path / "live.sock"
    process = start("--seconds", "60", "--socket", str(socket))
    until(socket.exists)
    time.sleep(0.3)
    process.send_signal(number)
    text, err = process.communicate(timeout=60)
    # Ctrl-C is the usual way to end it: it prints its tables.
    assert process.returncode == (0 if number == signal.SIGINT else 128 + number), err
    assert ("decided by" in text) == (number == signal.SIGINT)
    assert gone(process.pid, socket)


def test_killed_it_still_leaves_nothing(start: Start, tmp_path: Path) -> None:
    socket = tmp_path / "live.sock"
    process = start("--seconds", "60", "--socket", str(socket))
    until(socket.exists)
    inside: list[str] = []

    def all_there() -> bool:
        inside[:] = [pid for name in namespaces_of(process.pid) for pid in pids_in(name)]
        return len(inside) == 3 + 9  # router, daemon, receiver; the scenario's flows

    until(all_there)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: gone(process.pid, socket) and not any(Path("/proc", pid).exists() for pid in inside))


def test_what_a_killed_testbed_left_is_removed_by_the_next() -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    name = f"l4s-{int(done.stdout)}-0-snd"  # of a process that has ended
    subprocess.run(["ip", "netns", "add", name], check=True)
    holder = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "60"])
    try:
        until(lambda: pids_in(name))
        assert name in testbed.leftovers()
        assert name in testbed.remove_leftovers()
        assert name not in testbed.leftovers()
        assert holder.wait(5.0) == -signal.SIGKILL
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.slow
def test_it_starts_again_after_it_and_its_watcher_were_killed(start: Start, tmp_path: Path) -> None:
    """The daemon that was left still serves the socket; namespaces, folder and socket are cleared by the next one."""
    socket = tmp_path / "live.sock"
    process = start("--seconds", "60", "--socket", str(socket))
    until(socket.exists)
    (folder,) = Path(tempfile.gettempdir()).glob(f"l4s-{process.pid}-*")
    watchers = [pid for pid in processes_of(process.pid) if "l4s-watcher" in processes_of(process.pid)[pid]]
    for pid in [*watchers, process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert len(watchers) == 1 and namespaces_of(process.pid) and socket.exists() and folder.exists()
    second = start("--seconds", "1", "--socket", str(socket))
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert gone(process.pid, socket, folder)


def test_a_leftover_is_known_by_more_than_the_number_of_its_process() -> None:
    mine = testbed.started(os.getpid())
    left, alive = f"l4s-{os.getpid()}-{int(mine) - 1}-7-snd", f"l4s-{os.getpid()}-{mine}-7-snd"
    folder = Path(tempfile.gettempdir(), f"l4s-{os.getpid()}-{int(mine) - 1}-7-0123abcd")
    for name in (left, alive):
        subprocess.run(["ip", "netns", "add", name], check=True)
    folder.mkdir()
    try:
        assert left in testbed.leftovers() and alive not in testbed.leftovers()
        removed = testbed.remove_leftovers()
        assert left in removed and str(folder) in removed and alive not in removed
        assert not folder.exists() and left not in testbed.leftovers()
    finally:
        folder.rmdir() if folder.exists() else None
        for name in (left, alive):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_a_killed_watcher_alone_leaves_nothing(kernel: Path) -> None:
    with LiveTestbed(scenario.from_dict(TREE), kernel=kernel) as bed:
        assert bed._watcher is not None
        bed._watcher.kill()
    assert gone(os.getpid(), bed.plan.names.folder, bed.socket)


def test_an_exception_inside_takes_it_down(kernel: Path) -> None:
    bed = LiveTestbed(scenario.from_dict(TREE), kernel=kernel)
    with pytest.raises(RuntimeError, match="on purpose"), bed:
        assert namespaces_of(os.getpid())
        raise RuntimeError("on purpose")
    assert gone(os.getpid(), bed.plan.names.folder)
    bed.close()  # again does nothing


def test_a_router_that_does_not_start_says_why(kernel: Path) -> None:
    bed = LiveTestbed(scenario.from_dict(TREE), kernel=kernel, values={"target_us": 0})
    with pytest.raises(ChildProcessError, match="target_us"), bed:
        pass
    assert gone(os.getpid(), bed.plan.names.folder)


def test_a_router_that_dies_is_told(kernel: Path) -> None:
    with LiveTestbed(scenario.from_dict(TREE), kernel=kernel) as bed:
        bed.processes["router"].kill()
        with pytest.raises(ChildProcessError, match="ended with status -9"):
            bed.wait(5.0)


def test_a_socket_that_another_testbed_serves_is_not_taken(kernel: Path, tmp_path: Path) -> None:
    where = tmp_path / "live.sock"
    with LiveTestbed(scenario.from_dict(TREE), kernel=kernel, address=where):
        second = LiveTestbed(scenario.from_dict(TREE), kernel=kernel, address=where)
        with pytest.raises(L4SError, match="in use"), second:
            pass
        assert where.exists()
    assert not where.exists()


def test_a_file_in_the_place_of_the_socket_stays(kernel: Path, tmp_path: Path) -> None:
    where = tmp_path / "precious"
    where.write_text("kept")
    with (
        pytest.raises(L4SError, match="no socket"),
        LiveTestbed(scenario.from_dict(TREE), kernel=kernel, address=where),
    ):
        pass
    assert where.read_text() == "kept"


def test_an_unshaped_router_carries_what_is_sent(kernel: Path) -> None:
    with LiveTestbed(scenario.from_dict(TREE), kernel=kernel, values={"rate_bps": UNSHAPED}) as bed:
        where = ("--to", f"{bed.receiver}:5201", "--seconds", "0.5")
        (flow,) = bed.traffic("blast", *where, "--pps", "2000", "--size", "200", "--ecn", "ect1", seconds=0.5)
        figures = read(bed.stats())
    assert flow["kind"] == "blast" and flow["sent"] == 1000
    assert figures.classes[1].packets > 500
    assert figures.classes[1].served_packets == figures.classes[1].packets
    assert figures.lost_outside == 0


@pytest.mark.slow
def test_the_benchmark_measures_and_writes(kernel: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "studies" / "live" / "run.py"
    command = [sys.executable, str(script), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads((tmp_path / "live.json").read_text())
    assert {row["aqm"] for row in run["shared"]} == {"dualpi2_rfc9332", "dualpi2_freebsd"}
    for row in run["shared"]:
        for who in ("live", "simulated"):
            assert all(rate > 0.0 for rate in row[who]["goodput_mbps"].values())
            assert 0.3 < row[who]["utilisation"] <= 1.05
    assert run["rows"]["rows"] == run["rows"]["offered"] > 10_000 and run["rows"]["missing"] == 0
    assert [row["interval"] for row in run["control"]] == [1, 10, 100]
    assert all(row["decided"]["agent"] > 0.0 for row in run["control"])
    text = (tmp_path / "live.md").read_text()
    assert text.count("| live |") == text.count("| simulated |") == 2


@pytest.mark.slow
def test_agents_are_measured_beside_the_simulator(kernel: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "studies" / "live" / "agents.py"
    who = ["zero=zero:form=parameters,every=500ms", "threshold=threshold,every=10"]
    command = [sys.executable, str(script), "--quick", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    for runs in (1, 2):  # the second time all runs are there
        done = subprocess.run([*command, "--agent", *who], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "work").iterdir())) == 2 * 5
        assert len(json.loads((tmp_path / "agents.json").read_text())) == runs
    rows = {
        (row["who"], row["way"]): row["runs"][0]
        for row in json.loads((tmp_path / "agents.json").read_text())[0]["rows"]
    }
    assert rows["zero", "live"]["control"]["law"]["sets"] > 4
    assert rows["threshold", "live"]["control"]["answered"] > 10
    assert rows["zero", "simulated"]["score"] == pytest.approx(rows["dualpi2_rfc9332", "simulated"]["score"])
    assert all(-0.5 < row["score"] < 1.0 for row in rows.values())
