"""The bridge daemon between a device that is none and clients that behave, and do not; built with sanitizers."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.kernel import device as wire
from tests.kernel.conftest import Build
from tests.kernel.device import Client, Device, command, entry, event, hello, row

SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def eventually(happens: Callable[[], bool], what: str) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + wire.PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Daemon:
    """A running l4s-bridged and what belongs to it."""

    def __init__(self, program: Path, folder: Path, *options: str) -> None:
        self.program, self.folder, self.options = program, folder, options
        self.socket, self.log = folder / "bridge", folder / "log"
        self.device = Device(folder / "device")
        self.clients: list[Client] = []
        self.process: subprocess.Popen[bytes] | None = None

    def arguments(self, *options: str) -> list[str]:
        device = ["--device", f"unix:{self.device.path}", "--socket", str(self.socket)]
        return [str(self.program), *device, "--foreground", "--verbose", *self.options, *options]

    def start(self, *, device: bool = True) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.arguments(), stderr=log, env={**os.environ, **SANITIZERS})
        if device:
            self.device.accept()
        eventually(self.listens, f"the daemon does not listen: {self.log.read_text()}")

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.connect(str(self.socket))
            return True
        return False

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def client(self, *, settled: bool = True) -> Client:
        """A client that has said HELLO, and knows that there is a device."""
        made = Client(self.socket)
        self.clients.append(made)
        if settled and made.hello is not None and made.hello.session == 0:
            made.expect_event(wire.DEVICE_LOST)
            made.next(wire.HELLO)
            made.expect_event(wire.DEVICE_BACK)
        return made

    def reader(self) -> Client:
        """A client that reads rows, first or not."""
        made = self.client()
        made.send(command(wire.SUBSCRIBE, 1) + command(wire.GET_STATUS))
        first = self.device.get()
        if first is not None and first.kind == wire.SUBSCRIBE:
            assert first.args[0] == 1
            first = self.device.get()
        assert first is not None and first.kind == wire.GET_STATUS
        self.device.send(wire.status(first.tag))
        made.next(wire.STATUS)
        return made

    def controller(self, interval: int = 3) -> Client:
        made = self.client()
        self.attach(made, interval)
        return made

    def attach(self, who: Client, interval: int = 3) -> None:
        who.send(command(wire.ATTACH, interval, tag=21))
        got = self.device.answer(wire.ATTACH, interval=interval)
        assert got.args[0] == interval
        answer = who.next(wire.STATUS)
        assert answer.tag == 21 and answer.status["controls"] == 1
        assert who.expect_event(wire.CAME) == interval

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(wire.PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def end(self) -> None:
        """Everything away; the daemon must have been in health."""
        for client in self.clients:
            client.close()
        code = self.stop() if self.process is not None else 0
        self.device.close()
        log = self.log.read_text() if self.log.exists() else ""
        assert "Sanitizer" not in log and "runtime error" not in log, log
        assert code == 0, log


@contextlib.contextmanager
def answering(device: Device) -> Iterator[None]:
    """A device that answers each command by a STATUS, in the background, until the connection ends."""

    def work() -> None:
        with contextlib.suppress(ConnectionError):
            while (got := device.get()) is not None:
                device.send(wire.status(got.tag))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        device.link.shutdown(socket.SHUT_RDWR)
        thread.join()


Make = Callable[..., Daemon]


@pytest.fixture
def make(build: Build, tmp_path: Path) -> Iterator[Make]:
    """A function that makes a daemon with options; it is started, unless told not to."""
    made: list[Daemon] = []

    def one(*options: str, start: bool = True, device: bool = True) -> Daemon:
        daemon = Daemon(build(san=True) / "l4s-bridged", tmp_path, *options)
        made.append(daemon)
        if start:
            daemon.start(device=device)
        return daemon

    yield one
    for daemon in made:
        daemon.end()


def run(daemon: Daemon, *options: str) -> subprocess.CompletedProcess[str]:
    """The program with other options than those of the daemon, to its end."""
    command = [str(daemon.program), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=wire.PATIENCE_S, check=False)


# ---------------------------------------------------------------- command line and files


def test_help_and_wrong_usage(make: Make) -> None:
    daemon = make(start=False)
    shown = run(daemon, "--help")
    assert shown.returncode == 0 and "--allow-user" in shown.stdout and not shown.stderr
    for options, text in {
        ("--wrong",): "--wrong is not an option",
        ("-x",): "-x is not an option",
        ("spare",): "spare is not an option",
        ("--socket",): "--socket needs a value",
        ("--socket", "x" * 200): "characters",
        ("--device", "l4s"): "begins with /",
        ("--device", "unix:"): "characters",
        ("--device", "unix:/s", "--socket", "/s"): "a socket of its own",
        ("--mode", "1777"): "octal",
        ("--mode", "rw"): "octal",
        ("--group", "no such group"): "no such group",
        ("--allow-user", "no such user"): "no such user",
        ("--allow-user", "0") * 33: "use --group",
        ("--ring", "15"): "16 to 1048576",
        ("--ring", "-16"): "16 to 1048576",
        ("--clients", "0"): "1 to 250",
        ("--clients", "9x"): "1 to 250",
        ("--device", "/dev/null", "--socket", "relative"): "--foreground",
    }.items():
        done = run(daemon, *options)
        assert done.returncode == 2, options
        assert text in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_file_that_is_no_socket_is_left_alone(make: Make) -> None:
    daemon = make(start=False)
    daemon.socket.write_text("precious")
    done = run(daemon, *daemon.arguments()[1:])
    assert done.returncode == 1 and "is not a socket" in done.stderr
    assert daemon.socket.read_text() == "precious"


def test_a_socket_that_cannot_be_made(make: Make) -> None:
    daemon = make(start=False)
    done = run(daemon, *daemon.arguments("--socket", str(daemon.folder / "missing" / "socket"))[1:])
    assert done.returncode == 1 and "No such file" in done.stderr and done.stderr.count("\n") == 1


def test_a_living_daemon_is_not_replaced_and_a_dead_one_is(make: Make) -> None:
    daemon = make()
    done = run(daemon, *daemon.arguments()[1:])
    assert done.returncode == 1 and f"another daemon serves {daemon.socket}" in done.stderr
    assert daemon.client().hello is not None
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    assert daemon.socket.is_socket()
    daemon.device.drop()
    daemon.start()
    assert daemon.client().hello is not None


def test_the_end_by_signal_leaves_nothing(make: Make) -> None:
    daemon = make(start=False)
    daemon.options = ("--pidfile", str(daemon.folder / "pid"))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        daemon.start()
        assert (daemon.folder / "pid").read_text() == f"{daemon.pid}\n"
        controller = daemon.controller()
        assert daemon.stop(number) == 0
        daemon.device.next(wire.DETACH)
        assert daemon.device.get() is None
        assert controller.get() is None
        assert sorted(os.listdir(daemon.folder)) == ["device", "log"]
        daemon.device.drop()


def test_in_the_background(make: Make) -> None:
    daemon = make(start=False)
    pidfile = daemon.folder / "pid"
    options = [*daemon.arguments()[1:], "--pidfile", str(pidfile)]
    options.remove("--foreground")
    done = run(daemon, *options)
    assert done.returncode == 0, done.stderr
    pid = int(pidfile.read_text())  # is there when the parent has left
    try:
        daemon.device.accept()
        client = daemon.client()
        second = run(daemon, *options[:3], str(daemon.folder / "other"), "--pidfile", str(pidfile))
        assert second.returncode == 1 and "running daemon" in second.stderr
    finally:
        os.kill(pid, signal.SIGTERM)
    assert client.get() is None
    eventually(lambda: not pidfile.exists() and not daemon.socket.exists(), "the daemon did not end")


def test_a_removed_socket_comes_back(make: Make) -> None:
    daemon = make()
    reader = daemon.reader()
    daemon.socket.unlink()
    daemon.device.send(row(1))
    assert reader.next(wire.ROW).sequence == 1
    eventually(daemon.listens, "the socket did not come back")
    assert daemon.client().hello is not None
    daemon.socket.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(daemon.socket))
        other.listen()
        eventually(lambda: daemon.said("somebody else's now"), "the daemon did not notice")
        daemon.device.send(row(2))
        assert reader.next(wire.ROW).sequence == 2
    assert daemon.stop() == 0
    assert daemon.socket.is_socket()  # somebody else's
    daemon.socket.unlink()


def test_mode_and_group(make: Make) -> None:
    daemon = make("--mode", "0640")
    assert daemon.socket.stat().st_mode & 0o777 == 0o640
    assert daemon.stop() == 0
    group = os.getgid()
    daemon.device.drop()
    daemon.options = ("--group", str(group))
    daemon.start()
    found = daemon.socket.stat()
    assert found.st_mode & 0o777 == 0o660 and found.st_gid == group


# ---------------------------------------------------------------- who may connect

AS_NOBODY = """
import os, socket, sys
link = socket.socket(socket.AF_UNIX)
uid, gid, groups = int(sys.argv[2]), int(sys.argv[3]), [int(group) for group in sys.argv[4:]]
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
link.settimeout(30)
link.connect(sys.argv[1])
got = b""
while len(got) < 192 and (piece := link.recv(192)):
    got += piece
sys.stdout.buffer.write(got)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become another user")
def test_other_users_are_refused(make: Make) -> None:
    nobody, nogroup, members = 65534, 65534, 54321
    with contextlib.ExitStack() as last:
        folder = Path("/tmp") / f"l4s-daemon-{os.getpid()}"
        folder.mkdir(mode=0o755)
        last.callback(folder.rmdir)
        last.callback(lambda: (folder / "bridge").unlink(missing_ok=True))
        daemon = make(start=False)
        daemon.socket = folder / "bridge"

        def kind_and_code(*groups: int) -> tuple[int, int]:
            numbers = [str(number) for number in (nobody, nogroup, *groups)]
            arguments = [sys.executable, "-I", "-S", "-c", AS_NOBODY, str(daemon.socket), *numbers]
            done = subprocess.run(arguments, capture_output=True, check=True, timeout=wire.PATIENCE_S)
            assert len(done.stdout) == wire.ENTRY
            return done.stdout[3], int.from_bytes(done.stdout[16:18], "little")

        for options, groups, expected in (
            (("--mode", "0666"), (), (wire.ERROR, wire.REFUSED)),
            (("--mode", "0666", "--group", str(members)), (), (wire.ERROR, wire.REFUSED)),
            (("--mode", "0666", "--allow-user", str(nobody)), (), (wire.HELLO, 1)),
            (("--group", str(members)), (members,), (wire.HELLO, 1)),
            (("--mode", "0666", "--group", str(nogroup)), (), (wire.HELLO, 1)),
        ):
            daemon.options = options
            daemon.start()
            assert kind_and_code(*groups) == expected, options
            assert daemon.client().hello is not None  # root always may
            assert daemon.stop() == 0
            daemon.device.drop()


def test_too_many_clients(make: Make) -> None:
    daemon = make("--clients", "2")
    eventually(lambda: daemon.said("connection 0 ends"), "the probe stays")
    first, second = daemon.client(), daemon.client()
    third = Client(daemon.socket, greeted=False)
    daemon.clients.append(third)
    assert third.expect_error(wire.TOO_MANY).text
    assert third.get() is None
    second.close()
    eventually(lambda: daemon.log.read_text().count("ends") >= 2, "the second stays")
    assert daemon.client().hello is not None
    first.expect_silence()


# ---------------------------------------------------------------- rows


def test_hello_tells_of_the_device(make: Make) -> None:
    daemon = make()
    first = daemon.client()
    daemon.device.send(event(1, value=4242))  # both have settled, then
    first.expect_event(1)
    found = daemon.client().hello
    assert found is not None and found.session == 7 and found.name == "l4s-bridged/fake queue"
    assert 1_000_000 < found.clock_us < 1_000_000 + 60_000_000


def test_rows_only_to_those_who_want_them(make: Make) -> None:
    daemon = make()
    quiet = daemon.client()
    daemon.device.expect_silence()
    first = daemon.reader()
    second = daemon.reader()
    daemon.device.send(b"".join(row(i) for i in range(1000)))
    for reader in (first, second):
        got = list(wire.rows_until(reader, 999))
        assert [one.sequence for one in got] == list(range(1000)) and not any(one.lost for one in got)
    second.send(command(wire.SUBSCRIBE, 0) + command(wire.GET_STATUS))
    daemon.device.answer(wire.GET_STATUS)
    second.next(wire.STATUS)
    daemon.device.send(row(1000))
    assert first.next(wire.ROW).sequence == 1000
    second.expect_silence(0.05)
    first.close()
    assert daemon.device.next(wire.SUBSCRIBE).args[0] == 0
    quiet.expect_silence(0.05)


def test_entries_split_anywhere(make: Make) -> None:
    daemon = make()
    reader = daemon.reader()
    stream = b"".join(row(i) for i in range(40))
    for at in range(0, len(stream), 77):
        daemon.device.send(stream[at : at + 77])
    assert [one.sequence for one in wire.rows_until(reader, 39)] == list(range(40))


def test_losses_of_the_device_reach_the_readers(make: Make) -> None:
    daemon = make()
    reader, quiet = daemon.reader(), daemon.client()
    daemon.device.send(row(1) + row(5, lost=3) + entry(wire.EVENT, lost=2) + row(8))
    assert [(one.sequence, one.lost) for one in (reader.next(wire.ROW), reader.next(wire.ROW))] == [(1, 0), (5, 3)]
    assert reader.next(wire.EVENT).lost == 0
    assert reader.next(wire.ROW).lost == 2
    assert quiet.next(wire.EVENT).lost == 0
    reader.send(command(wire.GET_STATUS))
    daemon.device.answer(wire.GET_STATUS)
    assert reader.next(wire.STATUS).status["lost"] == 5


def test_a_slow_reader_loses_the_oldest_and_is_told_exactly(make: Make) -> None:
    daemon = make("--ring", "64")
    slow, fast = daemon.reader(), daemon.reader()
    sent = 0
    for part in range(40):  # more than the kernel holds for the slow one; no more than the ring at a time
        for _ in range(4):
            daemon.device.send(b"".join(row(i) for i in range(sent, sent + 50)))
            sent += 50
            got = list(wire.rows_until(fast, sent - 1))
            assert not any(one.lost for one in got)
        daemon.device.send(event(1, value=part))
        fast.expect_event(1)
    daemon.device.send(row(sent))
    assert fast.next(wire.ROW).sequence == sent
    place, told, received, events = 0, 0, 0, []
    while place <= sent:
        found = slow.get()
        assert found is not None
        told += found.lost
        if found.kind == wire.EVENT:
            place += found.lost
            events.append(found.event[1])
            assert place == (found.event[1] + 1) * 200  # what was lost is told just behind where it was
            continue
        place += found.lost
        assert found.sequence == place  # what was told is what is missing, where it is missing
        place += 1
        received += 1
    assert received + told == sent + 1
    assert told > 0
    assert events == list(range(40))  # rows push out no events
    slow.send(command(wire.GET_STATUS))
    daemon.device.answer(wire.GET_STATUS)
    assert slow.next(wire.STATUS).status["lost"] == told


def test_entries_stay_whole_where_the_socket_takes_parts(make: Make) -> None:
    daemon = make()
    slow, fast = daemon.reader(), daemon.reader()
    for at in range(0, 6000, 500):
        daemon.device.send(b"".join(row(i) for i in range(at, at + 500)) + event(3, value=at))
        assert not any(one.lost for one in wire.rows_until(fast, at + 499))
        fast.expect_event(3)
    for at in range(0, 6000, 500):
        got = list(wire.rows_until(slow, at + 499))
        assert [one.sequence for one in got] == list(range(at, at + 500)) and not any(one.lost for one in got)
        assert slow.expect_event(3) == at


def test_a_dead_reader_holds_no_memory(make: Make) -> None:
    daemon = make("--ring", "1024")
    fast, _dead = daemon.reader(), daemon.reader()
    block = b"".join(row(i) for i in range(500))

    def resident() -> int:
        return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    before = 0
    for turn in range(100):
        daemon.device.send(block)
        list(wire.rows_until(fast, 499))
        if turn == 20:
            before = resident()
    assert resident() - before < 1 << 20  # 80 turns more were 7.7 MB


def drain(client: Client, last: int, totals: list[int]) -> None:
    """Rows that came and rows that were told lost, in bulk, up to the one with sequence `last`."""
    rest, rows, lost, end = b"", 0, 0, -1
    while end != last:
        data = rest + client.link.recv(1 << 20)
        whole = len(data) // wire.ENTRY * wire.ENTRY
        entries = np.frombuffer(data[:whole], wire.ENTRY_DTYPE)
        rest = data[whole:]
        rows += int((entries["kind"] == wire.ROW).sum())
        lost += int(entries["lost"].sum())
        end = int(entries["sequence"][-1]) if len(entries) else end
    totals += [rows, lost]


@pytest.mark.slow
def test_a_million_rows_at_100000_a_second(build: Build, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what of a core the daemon (without sanitizers) needs for two readers; only the sums are asserted."""
    daemon = make(start=False)
    daemon.program = build() / "l4s-bridged"
    daemon.start()
    count, part = 1_000_000, 200
    stream = bytearray(row(0) * count)
    np.frombuffer(stream, wire.ENTRY_DTYPE)["sequence"] = np.arange(count)
    readers, totals = [daemon.reader() for _ in range(2)], [list[int](), list[int]()]
    jobs = [threading.Thread(target=drain, args=(r, count - 1, t)) for r, t in zip(readers, totals, strict=True)]
    for job in jobs:
        job.start()
    started = time.monotonic()
    for at in range(0, count, part):
        daemon.device.send(stream[at * wire.ENTRY : (at + part) * wire.ENTRY])
        time.sleep(max(0.0, started + (at + part) / 1e5 - time.monotonic()))
    seconds = time.monotonic() - started
    used = sum(map(int, Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    for job in jobs:
        job.join()
    with capsys.disabled():
        share = used / os.sysconf("SC_CLK_TCK") / seconds
        print(f" {count / seconds:.0f} rows/s to 2 readers: {share:.0%} of a core, lost {[t[1] for t in totals]}")
    assert [sum(total) for total in totals] == [count, count]


# ---------------------------------------------------------------- control


def test_asks_and_decisions(make: Make) -> None:
    daemon = make()
    reader = daemon.reader()
    controller = daemon.controller()
    assert reader.expect_event(wire.CAME) == 3
    daemon.device.send(row(10, kind=wire.ASK) + row(10))
    assert controller.next(wire.ASK).sequence == 10
    assert reader.next(wire.ROW).sequence == 10
    controller.send(command(wire.DECIDE, tag=9, queue=1, action=2, sequence=10, expires_us=777))
    got = daemon.device.next(wire.DECIDE)
    assert (got.queue, got.action, got.sequence, got.expires_us) == (1, 2, 10, 777)
    controller.send(command(wire.DECIDE, queue=9, action=9))  # the queue counts it
    assert daemon.device.next(wire.DECIDE).queue == 9
    controller.send(command(wire.CONFIGURE, 1000, 2000, 3000, 64, 1000, 6, 5, tag=4))
    assert daemon.device.answer(wire.CONFIGURE).args == (1000, 2000, 3000, 64, 1000, 6, 0, 0)
    assert controller.next(wire.STATUS).tag == 4
    controller.send(command(wire.ATTACH, 8, tag=5))  # another interval
    daemon.device.answer(wire.ATTACH, interval=8)
    assert controller.next(wire.STATUS).tag == 5
    controller.send(command(wire.DETACH, tag=6))
    daemon.device.answer(wire.DETACH)
    assert controller.expect_event(wire.LEFT) == 0
    answer = controller.next(wire.STATUS)
    assert answer.tag == 6 and answer.status["controls"] == 0
    reader.expect_event(wire.LEFT)
    daemon.device.send(row(11, kind=wire.ASK) + row(12))
    assert reader.next(wire.ROW).sequence == 12
    controller.expect_silence(0.05)


def direct(daemon: Daemon, client: Client) -> tuple[socket.socket, socket.socket]:
    """Both ends of the socket that a queue gives its controller."""
    ours, theirs = socket.socketpair()
    client.send(command(wire.DIRECT, tag=31))
    got = daemon.device.next(wire.DIRECT)
    with theirs:
        socket.send_fds(daemon.device.link, [wire.status(got.tag)], [theirs.fileno()])
    data, passed, _, _ = socket.recv_fds(client.link, wire.ENTRY, 1)
    assert len(data) == wire.ENTRY and data[3] == wire.STATUS and data[8] == 31
    return ours, socket.socket(fileno=passed[0])


def test_the_controllers_own_socket_is_passed_on(make: Make) -> None:
    daemon = make()
    before = daemon.descriptors()
    client = daemon.controller()
    for _ in range(20):
        for link in (ends := direct(daemon, client)):
            link.settimeout(wire.PATIENCE_S)
        ends[0].sendall(b"ask")
        ends[1].sendall(b"answer")
        assert (ends[0].recv(9), ends[1].recv(9)) == (b"answer", b"ask")
        for link in ends:
            link.close()
    eventually(lambda: daemon.descriptors() <= before + 1, "descriptors stay open")


def test_the_own_socket_is_for_the_controller(make: Make) -> None:
    daemon = make()
    client, other = daemon.controller(), daemon.client()
    other.send(command(wire.DIRECT, tag=4))
    assert other.expect_error(wire.NOT_CONTROLLER).tag == 4
    daemon.device.expect_silence()
    # It leaves before the answer: the descriptor is nobody's.
    ours, theirs = socket.socketpair()
    client.send(command(wire.DIRECT))
    got = daemon.device.next(wire.DIRECT)
    client.close()
    daemon.device.next(wire.DETACH)
    with theirs:
        socket.send_fds(daemon.device.link, [wire.status(got.tag)], [theirs.fileno()])
    other.expect_event(wire.LEFT)
    daemon.attach(other)
    for link in direct(daemon, other):
        link.close()
    ours.settimeout(wire.PATIENCE_S)
    assert ours.recv(1) == b""  # closed when the next one came
    ours.close()


def test_a_descriptor_that_nobody_asked_for(make: Make) -> None:
    daemon = make()
    client = daemon.controller()
    before = daemon.descriptors()
    for _ in range(50):
        with socket.socket() as one, socket.socket() as two:
            socket.send_fds(daemon.device.link, [row(1)], [one.fileno(), two.fileno()])
    client.send(command(wire.GET_STATUS, tag=9))
    daemon.device.answer(wire.GET_STATUS)
    data, passed, _, _ = socket.recv_fds(client.link, wire.ENTRY, 1)
    assert data[3] == wire.STATUS and not passed
    eventually(lambda: daemon.descriptors() <= before + 1, "descriptors stay open")


def test_a_queue_without_sockets_of_its_own(make: Make) -> None:
    daemon = make(start=False)
    daemon.device.greeting = hello(direct=0)
    daemon.start()
    client = daemon.controller()
    client.send(command(wire.DIRECT, tag=8))
    assert client.expect_error(wire.NOT_OFFERED).tag == 8
    daemon.device.expect_silence()


def test_bounds_of_the_daemon(make: Make) -> None:
    """They hold from the ATTACH on, and what a controller asks for can only be tighter."""
    daemon = make("--shield", "c_us=5000", "--shield", "hits=300", "--shield", "window=64")
    who = daemon.client()
    who.send(command(wire.ATTACH, 1, tag=21))
    daemon.device.answer(wire.ATTACH, interval=1)
    assert daemon.device.answer(wire.CONFIGURE).args == (5000, 0, 65536, 64, 1000, 300, 0, 0)
    assert who.next(wire.STATUS).tag == 21
    who.expect_event(wire.CAME)
    who.send(command(wire.CONFIGURE, 0, 0, 65536, 65536, 1000, 0, tag=4))
    assert daemon.device.answer(wire.CONFIGURE).args == (5000, 0, 65536, 64, 1000, 300, 0, 0)
    assert who.next(wire.STATUS).tag == 4
    who.send(command(wire.CONFIGURE, 4000, 7, 1, 16, 2000, 9))
    assert daemon.device.answer(wire.CONFIGURE).args == (4000, 7, 1, 16, 2000, 9, 0, 0)
    for wrong in ("c_us", "speed=3", "drops=65537", "c_us=x", "=3"):
        done = run(daemon, "--shield", wrong)
        assert done.returncode == 2 and "--shield" in done.stderr


def test_the_law_is_set_by_the_controller(make: Make) -> None:
    daemon = make()
    agent, other = daemon.client(), daemon.client()
    agent.send(command(wire.ATTACH, 0, tag=1))
    assert daemon.device.answer(wire.ATTACH).args[0] == 0
    agent.until(wire.EVENT)
    agent.send(command(wire.SET_LAW, 1, 2, 3, 4, 5, 600, 7, 8, tag=2))
    asked = daemon.device.next(wire.SET_LAW)
    assert asked.args == (1, 2, 3, 4, 5, 600, 0, 0)
    daemon.device.send(wire.entry(wire.LAW, b"x" * 160, tag=asked.tag))
    found = agent.next(wire.LAW)
    assert found.tag == 2 and found.body.startswith(b"x" * 160)
    agent.send(command(wire.SET_LAW, tag=3))
    daemon.device.send(wire.error(wire.OUT_OF_BOUNDS, tag=daemon.device.next(wire.SET_LAW).tag))
    assert agent.expect_error(wire.OUT_OF_BOUNDS).tag == 3
    other.expect_event(wire.CAME)
    other.send(command(wire.GET_LAW, tag=4))  # everybody may know
    daemon.device.send(wire.entry(wire.LAW, tag=daemon.device.next(wire.GET_LAW).tag))
    assert other.next(wire.LAW).tag == 4
    agent.close()
    daemon.device.next(wire.DETACH)


def test_a_queue_whose_law_cannot_be_set(make: Make) -> None:
    daemon = make(start=False)
    daemon.device.greeting = hello(law_ms=0)
    daemon.start()
    client = daemon.client()
    for kind in (wire.ATTACH, wire.GET_LAW):
        client.send(command(kind, tag=8))
        assert client.expect_error(wire.NOT_OFFERED).tag == 8
    daemon.device.expect_silence()
    daemon.attach(client)
    client.send(command(wire.SET_LAW, tag=9))
    assert client.expect_error(wire.NOT_OFFERED).tag == 9


def test_one_controller(make: Make) -> None:
    daemon = make()
    first = daemon.controller()
    second = daemon.client()
    second.send(command(wire.ATTACH, 1, tag=1))
    assert second.expect_error(wire.BUSY).tag == 1
    for kind in (wire.DETACH, wire.CONFIGURE, wire.SET_LAW):
        second.send(command(kind, 1000, 2000, 3000, 64, 1000, tag=2))
        assert second.expect_error(wire.NOT_CONTROLLER).tag == 2
    second.send(command(wire.DECIDE) * 1001 + command(wire.ATTACH, 1, tag=3))
    assert "1000" in second.expect_error(wire.NOT_CONTROLLER).text
    second.expect_error(wire.NOT_CONTROLLER)
    assert second.expect_error(wire.BUSY).tag == 3
    first.close()
    daemon.device.next(wire.DETACH)
    second.expect_event(wire.LEFT)
    daemon.attach(second)


def test_a_controller_that_is_killed(make: Make) -> None:
    daemon = make()
    reader = daemon.reader()
    code = "import sys, socket, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
    code += f"s.sendall({command(wire.ATTACH, 2)!r}); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code, str(daemon.socket)]) as agent:
        daemon.device.answer(wire.ATTACH, interval=2)
        reader.expect_event(wire.CAME)
        agent.kill()
        daemon.device.next(wire.DETACH)
    reader.expect_event(wire.LEFT)
    daemon.device.send(row(1))
    assert reader.next(wire.ROW).sequence == 1
    daemon.controller()


def test_the_queue_may_refuse_the_controller(make: Make) -> None:
    daemon = make()
    client = daemon.client()
    client.send(command(wire.ATTACH, 1, tag=8))
    daemon.device.send(wire.error(wire.BUSY, tag=daemon.device.next(wire.ATTACH).tag, text="not now"))
    found = client.expect_error(wire.BUSY)
    assert (found.tag, found.text) == (8, "not now")
    daemon.attach(client)


def test_a_stalled_controller_loses_only_asks(make: Make) -> None:
    daemon = make("--ring", "16")
    controller, reader = daemon.controller(), daemon.reader()
    for at in range(0, 4000, 8):
        daemon.device.send(b"".join(row(i, kind=wire.ASK) + row(i) for i in range(at, at + 8)))
        assert not any(one.lost for one in wire.rows_until(reader, at + 7))
    place = 0
    while place < 4000:
        ask = controller.next(wire.ASK)
        place += ask.lost
        assert ask.sequence == place
        place += 1


def test_status_finds_its_asker(make: Make) -> None:
    daemon = make()
    one, two = daemon.client(), daemon.client()
    one.send(command(wire.GET_STATUS, tag=1 << 63) + command(wire.GET_STATUS, tag=5))
    first, second = daemon.device.next(wire.GET_STATUS), daemon.device.next(wire.GET_STATUS)
    two.send(command(wire.GET_STATUS, tag=5))
    third = daemon.device.next(wire.GET_STATUS)
    for packets, asked in enumerate((third, second, first)):
        daemon.device.send(wire.status(asked.tag, packets=packets, controls=1))
    daemon.device.send(wire.status(first.tag) + wire.status(0) + wire.status(12345) + wire.status((1 << 64) - 1))
    got = [one.next(wire.STATUS), one.next(wire.STATUS), two.next(wire.STATUS)]
    assert [(found.tag, found.status["packets"]) for found in got] == [(5, 1), (1 << 63, 2), (5, 0)]
    assert all(found.status["controls"] == 0 and found.status["lost"] == 0 for found in got)
    one.expect_silence(0.05)


def test_a_question_of_somebody_who_left_is_not_answered_to_another(make: Make) -> None:
    daemon = make("--clients", "1")
    eventually(lambda: daemon.said("connection 0 ends"), "the probe stays")
    gone = daemon.client()
    gone.send(command(wire.GET_STATUS, tag=5))
    asked = daemon.device.next(wire.GET_STATUS)
    gone.close()
    eventually(lambda: daemon.log.read_text().count("connection 0 ends") == 2, "the client stays")
    other = daemon.client()
    daemon.device.send(wire.status(asked.tag))
    other.expect_silence()


def test_answers_wait_for_those_who_do_not_read(make: Make) -> None:
    daemon = make()
    client, other = daemon.client(), daemon.client()
    commands = b"".join(command(wire.GET_STATUS, tag=tag) for tag in range(30_000))
    with answering(daemon.device):
        client.link.setblocking(False)
        sent = 0
        while sent < len(commands) and wire.ready(client.link, 0.5, selectors.EVENT_WRITE):
            with contextlib.suppress(BlockingIOError):
                sent += client.link.send(commands[sent:])
        assert sent < len(commands)  # the daemon has stopped reading: its tables are full
        other.send(command(wire.GET_STATUS, tag=7))
        assert other.next(wire.STATUS).tag == 7
        for tag in range(sent // wire.COMMAND):
            found = client.next(wire.STATUS)
            assert (found.tag, found.lost) == (tag, 0)
        client.send(commands[sent : (sent // wire.COMMAND + 2) * wire.COMMAND])
        assert client.next(wire.STATUS).tag == sent // wire.COMMAND


# ---------------------------------------------------------------- clients that do not behave


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\0" * 64, "magic"),
        (b"GET / HTTP/1.1\r\n".ljust(64, b"\n"), "magic"),
        (command(wire.GET_STATUS, version=2), "version"),
        (command(wire.GET_STATUS, reserved=1), "reserved"),
        (command(0), "kind"),
        (command(11), "kind"),
        (command(wire.SUBSCRIBE, 2), "SUBSCRIBE"),
        (command(wire.CONFIGURE, 0, 0, 0, 0, 0), "shield_window"),
        (command(wire.CONFIGURE, 60_000_001, 0, 0, 64, 1000), "shield_c_us"),
    ],
    ids=["zeros", "http", "version", "reserved", "kind-0", "kind-11", "subscribe", "configure-0", "configure"],
)
def test_malformed_commands_end_the_connection(make: Make, data: bytes, text: str) -> None:
    daemon = make()
    other, bad = daemon.reader(), daemon.reader()
    bad.send(data + command(wire.GET_STATUS) * 50)
    assert text in bad.expect_error(wire.MALFORMED).text
    assert bad.get() is None
    daemon.device.send(row(1))
    assert other.next(wire.ROW).sequence == 1
    daemon.device.expect_silence(0.05)


def test_a_controller_that_sends_garbage_loses_control(make: Make) -> None:
    daemon = make()
    controller, other = daemon.controller(), daemon.client()
    controller.send(b"x" * 1000)
    daemon.device.next(wire.DETACH)
    other.expect_event(wire.LEFT)
    controller.until(wire.ERROR)
    assert controller.get() is None


def test_commands_split_anywhere_and_cut_short(make: Make) -> None:
    daemon = make()
    client = daemon.client()
    stream = b"".join(command(wire.GET_STATUS, tag=i) for i in range(8))
    for byte in stream:
        client.send(bytes([byte]))
    for tag in range(8):
        daemon.device.answer(wire.GET_STATUS)
        assert client.next(wire.STATUS).tag == tag
    client.send(command(wire.GET_STATUS)[:63])
    client.close()
    daemon.device.expect_silence(0.1)
    assert daemon.client().hello is not None


def test_many_commands_at_once(make: Make) -> None:
    daemon = make()
    controller = daemon.controller()
    decisions = 0
    controller.send(b"".join(command(wire.DECIDE, sequence=i) for i in range(20_000)) + command(wire.DETACH))
    last = -1
    while (got := daemon.device.get()) is not None and got.kind == wire.DECIDE:
        assert got.sequence > last  # none twice, none out of order
        last, decisions = got.sequence, decisions + 1
    assert got is not None and got.kind == wire.DETACH
    assert decisions > 0


def test_descriptors_stay_as_many(make: Make) -> None:
    daemon = make()
    daemon.client().close()
    eventually(lambda: daemon.log.read_text().count("ends") == 2, "the first ones stay")
    before = daemon.descriptors()
    for turn in range(200):
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.connect(str(daemon.socket))
        if turn % 2:
            link.sendall(command(wire.SUBSCRIBE, turn % 3) + b"\1\2\3")
        link.close()
    eventually(lambda: daemon.descriptors() == before, "descriptors stay open")


# ---------------------------------------------------------------- devices that come and go, or do not behave


def test_the_device_is_lost_and_comes_back(make: Make) -> None:
    daemon = make()
    controller = daemon.controller()
    reader = daemon.reader()
    daemon.device.send(row(1))
    assert reader.next(wire.ROW).sequence == 1
    controller.send(command(wire.GET_STATUS, tag=31))
    daemon.device.next(wire.GET_STATUS)
    daemon.device.close()
    assert controller.expect_error(wire.NO_DEVICE).tag == 31
    controller.expect_event(wire.DEVICE_LOST)
    reader.expect_event(wire.DEVICE_LOST)
    for kind in (wire.GET_STATUS, wire.ATTACH, wire.DETACH):
        controller.send(command(wire.DECIDE) + command(kind, 1, tag=32))
        assert controller.expect_error(wire.NO_DEVICE).tag == 32
    late = daemon.client(settled=False)
    assert late.hello is not None and late.hello.session == 0
    late.expect_event(wire.DEVICE_LOST)
    daemon.device.greeting = hello(session=8)
    daemon.device.start()
    daemon.device.accept()
    for client in (controller, reader, late):
        assert client.next(wire.HELLO).session == 8
        assert client.expect_event(wire.DEVICE_BACK) == 8
    assert daemon.device.next(wire.SUBSCRIBE).args[0] == 1
    daemon.device.send(row(2) + row(3, kind=wire.ASK))
    assert reader.next(wire.ROW).sequence == 2
    controller.send(command(wire.DECIDE, sequence=3))
    controller.expect_silence(0.1)  # no ask, and no error for what was on its way
    daemon.device.expect_silence(0.05)
    daemon.attach(controller)


def test_the_daemon_is_killed_and_started_again(make: Make) -> None:
    daemon = make()
    controller = daemon.controller()
    daemon.stop(signal.SIGKILL)
    assert daemon.device.get() is None and controller.get() is None
    daemon.device.drop()
    daemon.start()
    daemon.device.send(row(1))
    daemon.controller()


def test_it_starts_before_the_device(make: Make) -> None:
    daemon = make(start=False)
    daemon.device.close()
    daemon.start(device=False)
    client = daemon.client(settled=False)
    client.expect_event(wire.DEVICE_LOST)
    eventually(lambda: daemon.said("start the router"), "no remedy was told")
    daemon.device.start()
    daemon.device.accept()
    assert client.next(wire.HELLO).session == 7
    client.expect_event(wire.DEVICE_BACK)


@pytest.mark.parametrize(
    ("greeting", "text"),
    [
        (b"\0" * 192, "does not speak the protocol"),
        (hello(version=2), "version 2"),
        (hello(record=134), "layout"),
        (hello(schema=2), "layout"),
        (hello(layout=b"01234567"), "layout"),
        (hello(sizes=(196, 64)), "sizes"),
        (hello(sizes=(192, 65)), "sizes"),
        (row(1), "HELLO"),
        (wire.error(wire.BUSY, text="another\ndaemon is here"), "another?daemon is here"),
        (hello() + wire.error(wire.BUSY, text="one at a time"), "one at a time"),
    ],
    ids=["zeros", "version", "record", "schema", "digest", "entries", "commands", "row", "refusal", "hello-refusal"],
)
def test_a_wrong_device_is_named_and_tried_again(make: Make, greeting: bytes, text: str) -> None:
    daemon = make(start=False)
    daemon.device.greeting = greeting
    daemon.start()
    eventually(lambda: daemon.said(text), f"it is not said: {text}")
    daemon.device.drop()
    daemon.device.greeting = hello()
    daemon.device.accept()
    eventually(lambda: daemon.said("the queue is there"), "the right one was not taken")
    assert daemon.log.read_text().count(text) == 1
    assert daemon.log.read_text().count("the queue is there") == 1


def test_a_device_that_turns_bad(make: Make) -> None:
    daemon = make()
    reader = daemon.reader()
    for bad in (entry(9), entry(0), hello(), entry(wire.ROW, version=9), b"rubbish".ljust(192)):
        daemon.device.send(row(5) + bad + row(6))
        assert reader.next(wire.ROW).sequence == 5
        reader.expect_event(wire.DEVICE_LOST)
        daemon.device.drop()
        daemon.device.accept()
        reader.next(wire.HELLO)
        reader.expect_event(wire.DEVICE_BACK)
        assert daemon.device.next(wire.SUBSCRIBE).args[0] == 1


def test_a_character_device(make: Make) -> None:
    """A terminal that passes bytes as they are, in place of the module's device."""
    daemon = make(start=False)
    ours, theirs = os.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as device, os.fdopen(theirs, "r+b", buffering=0):
        tty.setraw(theirs)
        daemon.options = ("--device", os.ttyname(theirs))
        daemon.start(device=False)
        client = daemon.client(settled=False)
        client.expect_event(wire.DEVICE_LOST)
        device.write(hello())
        assert client.next(wire.HELLO).session == 7
        client.expect_event(wire.DEVICE_BACK)
        client.send(command(wire.SUBSCRIBE, 1) + command(wire.ATTACH, 1, tag=3))
        got = b""
        while len(got) < 2 * wire.COMMAND:
            got += device.read(2 * wire.COMMAND - len(got))
        assert [got[3], got[wire.COMMAND + 3]] == [wire.SUBSCRIBE, wire.ATTACH]
        device.write(row(4) + row(5))
        assert [client.next(wire.ROW).sequence for _ in range(2)] == [4, 5]
    client.expect_error(wire.NO_DEVICE)
    client.expect_event(wire.DEVICE_LOST)


def test_a_path_that_is_no_device(make: Make) -> None:
    daemon = make(start=False)
    plain = daemon.folder / "plain"
    plain.write_text("")
    daemon.options = ("--device", str(plain))
    daemon.start(device=False)
    eventually(lambda: daemon.said("this is no device"), "it is not said")


def test_a_device_that_takes_no_commands(make: Make) -> None:
    daemon = make()
    controller, reader = daemon.controller(), daemon.reader()
    controller.expect_silence(0.05)
    sent = 0
    for _ in range(100):  # far more than sockets and tables hold
        controller.send(command(wire.DECIDE, sequence=sent) * 200)
        sent += 200
    daemon.device.send(row(1))
    assert reader.next(wire.ROW).sequence == 1
    controller.send(command(wire.GET_STATUS, tag=77))
    got = daemon.device.get()
    while got is not None and got.kind == wire.DECIDE:
        got = daemon.device.get()
    assert got is not None and got.kind == wire.GET_STATUS
    daemon.device.send(wire.status(got.tag))
    assert controller.next(wire.STATUS).tag == 77


def test_fuzzed_for_a_while(build: Build) -> None:
    script = Path(__file__).with_name("fuzz_socket.py")
    program = str(build(san=True) / "l4s-bridged")
    done = subprocess.run(
        [sys.executable, str(script), "--seconds", "1", "--program", program],
        capture_output=True,
        text=True,
        timeout=4 * wire.PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("no fault") and int(done.stdout.splitlines()[1].split()[0]) > 33
