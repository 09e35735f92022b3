"""The Python end with the real daemon between it and the queue, and with a real queue in network namespaces."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import l4s_gym
from l4s_gym import agents
from l4s_gym.agents.protocol import options_of
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.bridge.recorder import Recorder
from l4s_gym.data.records import load_records
from l4s_gym.data.stream import RunSplitter
from l4s_gym.errors import L4SError
from l4s_gym.live import doctor
from l4s_gym.live.control import Controller
from l4s_gym.live.interval_control import IntervalController
from l4s_gym.live.testbed import LiveTestbed
from l4s_gym.schema import BY_NAME
from l4s_gym.sim.scenario import load
from l4s_gym.tables import option_paths
from tests.bridge.conftest import Serve
from tests.bridge.server import Server, log_of
from tests.kernel.conftest import Build, build, namespaces  # noqa: F401  (fixtures)
from tests.live.test_interval_control import Tuned

# Real packets in real time, on cores that others use too: a test that fails is tried twice more.
pytestmark = pytest.mark.flaky(reruns=2, reruns_delay=2)

Daemon = Callable[[Server], Path]


def until(ready: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    """Wait for something that must come."""
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def answers(path: Path) -> bool:
    """Whether a daemon is there that has its queue."""
    try:
        with Client(path, timeout_s=1.0) as client:
            client.status()
    except BridgeError:
        return False
    return True


@contextmanager
def bridged(program: Path, device: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running daemon."""
    command = [str(program), "--device", f"unix:{device}", "--socket", str(path), "--foreground"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(path), "the daemon does not answer")
            yield process
        finally:
            process.kill()


@pytest.fixture
def program(build: Build) -> Path:  # noqa: F811
    """The daemon's program."""
    return build("l4s-bridged") / "l4s-bridged"


@pytest.fixture
def daemon(program: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A function that puts a daemon before a server."""
    with ExitStack() as stack:

        def start(server: Server) -> Path:
            stack.enter_context(bridged(program, server.path, tmp_path / "bridge"))
            return tmp_path / "bridge"

        yield start


def test_rows_through_the_daemon(serve: Serve, daemon: Daemon, tmp_path: Path) -> None:
    records = log_of(2000)
    path = daemon(serve(records, batch=8))
    done = Recorder(Client(path), tmp_path / "a.rec").run(rows=1500)
    assert done.rows == 1500 and not done.failed
    got = load_records(tmp_path / "a.rec")
    lost = 0 if done.lost else done.missing  # a row is missing only where the daemon says so
    assert lost == 0
    at = got["sequence"].astype(int) % 2000
    np.testing.assert_array_equal(got["current_queue_delay"], records["current_queue_delay"][at])


def test_an_agent_through_the_daemon(serve: Serve, daemon: Daemon) -> None:
    server = serve(patience_s=0.005)
    path = daemon(server)
    done = Controller(Client(path), agents.make("threshold"), decision_interval=2).run(0.5)
    assert done.shares is not None and server.queue.refused[0] > 10 and done.shares.by_agent > 0 and done.sessions == 1
    assert server.queue.interval == 0
    with Client(path) as first, Client(path) as second:
        first.attach(1)
        with pytest.raises(BridgeError, match="somebody else controls"):
            second.attach(1)


def test_the_environment_through_the_daemon(serve: Serve, daemon: Daemon) -> None:
    path = daemon(serve(patience_s=0.2))
    env: Any = gym.make(l4s_gym.LIVE_ID, socket=str(path), horizon_s=0.05)
    for _ in range(2):
        env.reset()
        over, info = False, dict[str, Any]()
        while not over:
            over, info = env.step(0)[3:]
        assert info["reason"] == "horizon" and info["statistics"]["by_agent"] > 0
    env.close()


def test_the_daemon_is_killed_under_an_agent(serve: Serve, program: Path, tmp_path: Path) -> None:
    server = serve(patience_s=0.005)
    path, result = tmp_path / "bridge", []
    controller = Controller(Client(path), agents.make("enqueue"), patience_s=30)
    with bridged(program, server.path, path):
        thread = threading.Thread(target=lambda: result.append(controller.run()))
        thread.start()
        until(lambda: server.queue.refused[0] > 5, "no decisions")
    before = server.queue.refused[0]
    with bridged(program, server.path, path):
        until(lambda: server.queue.refused[0] > before + 5, "no decisions after the restart")
        controller.stop()
        thread.join()
    # Once more where it came back before the daemon had its queue again.
    assert 2 <= result[0].sessions <= 3 and result[0].shares is not None


def test_the_queue_is_started_anew_behind_the_daemon(program: Path, tmp_path: Path) -> None:
    device, path = tmp_path / "device", tmp_path / "bridge"
    first, second = Server(device, log_of(200), patience_s=0.005), Server(device, log_of(200), patience_s=0.005)
    second.queue.session = 77
    controller = Controller(Client(path), agents.make("enqueue"))
    recorder = Recorder(Client(path), tmp_path / "a.rec")
    threads = [threading.Thread(target=controller.run), threading.Thread(target=recorder.run)]
    with ExitStack() as stack:
        with first:
            stack.enter_context(bridged(program, device, path))
            for thread in threads:
                thread.start()
            until(lambda: first.queue.refused[0] > 5, "no decisions")
            with pytest.raises(BridgeError, match="somebody else controls"), Client(path) as other:
                other.attach(1)
        with second:
            until(lambda: second.queue.refused[0] > 5, "no decisions of the second queue")
            controller.stop()
            recorder.stop()
            for thread in threads:
                thread.join()
    assert controller.done.sessions >= 2 and recorder.done.sessions == 2
    rows = load_records(tmp_path / "a.rec")
    assert len(RunSplitter(frozenset(BY_NAME)).starts(rows)) == 2


def test_without_a_queue(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "bridge"
    command = [str(program), "--device", f"unix:{tmp_path / 'none'}", "--socket", str(path), "--foreground"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until(path.exists, "the daemon does not listen")
        with pytest.raises(BridgeError, match="the daemon has no queue now") as caught:
            Controller(Client(path), agents.make("enqueue")).run(1.0)
        assert caught.value.code == wire.E_NO_DEVICE
        process.kill()


# -- a real queue


@pytest.mark.slow
@pytest.mark.usefixtures("namespaces")
def test_an_agent_and_the_law_over_which_it_was_trained(build: Build) -> None:  # noqa: F811
    agent, kernel = Tuned(), build()
    trained = load("l4s-llm-testbed").replace(**option_paths(options_of(agent)))
    for scenario, fits in ((trained, True), (load("l4s-llm-testbed"), False)):
        with LiveTestbed(scenario, aqm="dualpi2_rfc9332", kernel=kernel) as bed:
            controller = IntervalController(Client(bed.socket), agent, control_interval_ms=50.0)
            if fits:
                done = controller.run(0.5)
                assert done.answered > 0 and done.law is not None and done.law["refused"] == 0
            else:
                with pytest.raises(L4SError, match="target_us is 15000, not 3200"):
                    controller.run(0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("aqm", ["dualpi2_freebsd", "dualpi2_rfc9332", "dualpi2_linux"])
def test_a_real_queue(build: Build, tmp_path: Path, aqm: str) -> None:  # noqa: F811
    kernel = build()
    with LiveTestbed("l4s-llm-testbed", aqm=aqm, seconds=60, kernel=kernel) as bed:
        bed.start_flows()
        time.sleep(3.0)
        done = Recorder(Client(bed.socket), tmp_path / "a.rec").run(3.0)
        assert done.rows > 500 and not done.failed
        if not done.lost:
            assert done.missing == 0
        rows = load_records(tmp_path / "a.rec")
        assert (np.diff(rows["sequence"].astype(int)) > 0).all() and (np.diff(rows["time_us"].astype(int)) >= 0).all()
        with Client(bed.socket) as client:
            found = doctor.examine(doctor.watch(client, 2.0), hello=client.hello, status=client.status())
        assert {each.name for each in found if each.verdict == "fail"} <= {"marking allowed"}
        assert {each.name: each.verdict for each in found}["ECN"] == "ok"

        for interval in (1, 10, 100):
            run = Controller(Client(bed.socket), agents.make("threshold"), decision_interval=interval).run(1.0)
            assert run.direct and run.shares is not None
            assert run.shares.by_agent + run.shares.refused["shielded"] > 0
        env: Any = gym.make(l4s_gym.LIVE_ID, socket=str(bed.socket), horizon_s=1.0)
        env.reset()
        over, info, total = False, dict[str, Any](), 0.0
        while not over:
            _, reward, _, over, info = env.step(0)
            total += float(reward)
        env.close()
        assert info["reason"] == "horizon" and -0.6 < total < 1.1
        assert info["statistics"]["decided_by"]["agent"] > 0 or info["statistics"]["shield_trips"] > 0
