"""A live queue on this machine: two network namespaces, the Linux router between them, the daemon, test traffic.

    with LiveTestbed("l4s-llm-testbed", seconds=10) as bed:
        bed.start_flows()
        bed.wait(10)
        result = bed.finish()

Needs Linux and root. Everything is removed when the block ends. If the process is killed, a watcher (a shell that waits
for the end of a pipe) removes it.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from l4s_gym.errors import L4SError
from l4s_gym.live import programs
from l4s_gym.live.plan import Names, Plan, inside
from l4s_gym.live.router import RECEIVER, LiveConfig, live_config
from l4s_gym.sim.scenario import Scenario, load

START_S: Final = 10.0
"""Longest wait for a program to start, s."""
STOP_S: Final = 5.0
SOCKET_NOTE: Final = "socket"
"""File in a testbed's folder with the path of the daemon's socket, for whoever has to clear up."""
_NAME: Final = re.compile(r"^l4s-(\d+)-(?:(\d+)-)?\d+-(?:snd|rcv|[0-9a-f]{8})$")
"""Namespaces and folders of testbeds: number of the process, its start."""
_numbers = itertools.count()


@dataclass(frozen=True)
class LiveResult:
    """Result of a run.

    Attributes:
        scenario: Its name.
        aqm: Discipline.
        seconds: From the start of the flows (without any: of the testbed) to the end.
        router: The router's statistics.
        flows: What each sender said at its end: `label`, `source`, and its own figures, or `error`.
        notes: What differs from the scenario.
        config: What the router was told.
    """

    scenario: str
    aqm: str
    seconds: float
    router: dict[str, Any]
    flows: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def check_host() -> None:
    """Raise an error if this machine cannot run a testbed."""
    if os.uname().sysname != "Linux":
        raise L4SError("a live testbed needs Linux; on FreeBSD the module and `l4s-bridged` are the live queue")
    if os.geteuid() != 0:
        raise L4SError("a live testbed needs root (network namespaces, TUN devices): run it with sudo")
    if not os.access("/dev/net/tun", os.W_OK):
        raise L4SError("/dev/net/tun: cannot be opened: `modprobe tun`, or give the container that device")
    if shutil.which("ip") is None:
        raise L4SError("ip: not found; install iproute2 (Debian: apt-get install iproute2)")


def check_free(path: Path) -> None:
    """Raise where somebody serves that socket, or something else is there: what is stale there is removed later."""
    if path.exists() and not path.is_socket():
        raise L4SError(f"{path}: is there, and is no socket: give another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise L4SError(f"{path}: no place for the socket ({error}): give another one") from None
    raise L4SError(f"{path}: in use by another testbed or daemon: end it, or give another socket")


def _stat(pid: int) -> list[str]:
    """What the kernel tells of a process (proc(5), stat), from its state on."""
    return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()


def started(pid: int) -> str:
    """Return the start time of a process, in ticks since boot; empty if it has ended.

    A number of a process is given again after a while; number and start are not.
    """
    try:
        return _stat(pid)[19]
    except (OSError, IndexError):
        return ""


def _is_left(name: str) -> bool:
    """Return whether a name belongs to a testbed whose process has ended."""
    match = _NAME.match(name)
    if match is None:
        return False
    now = started(int(match[1]))
    return not now or (match[2] is not None and match[2] != now)


def leftovers() -> list[str]:
    """Return the namespaces of testbeds whose process has ended."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    names = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    return [name for name in names if _is_left(name)]


def left_folders() -> list[Path]:
    """Temporary folders of testbeds whose process is gone: this user's own, and nobody's link to elsewhere."""
    found = []
    for path in Path(tempfile.gettempdir()).glob("l4s-*"):
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and _is_left(path.name):
                found.append(path)
    return found


def _remove_namespace(name: str) -> None:
    """Stop all processes in a namespace, and remove it."""
    for _ in range(100):
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout.split()
        if not pids:
            break
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _remove_folder(folder: Path) -> None:
    """Remove a folder, and the daemon's socket that it names, if nobody serves that any more."""
    with suppress(OSError, ValueError, L4SError):
        where = Path((folder / SOCKET_NOTE).read_text())
        check_free(where)
        where.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> list[str]:
    """Take down what a testbed without a watcher left: processes, namespaces, folders, sockets; what was removed."""
    names, folders = leftovers(), left_folders()
    for name in names:
        _remove_namespace(name)
    for folder in folders:
        _remove_folder(folder)
    return [*names, *map(str, folders)]


def failed(program: str, text: str) -> ChildProcessError:
    """Make the error for a program that failed."""
    return ChildProcessError(errno.ECHILD, text, program)


class LiveTestbed:
    """A context manager that runs namespaces, router, daemon and receiver.

    Attributes:
        config: The scenario as the live queue runs it.
        plan: Every command.
        socket: The daemon's socket.
        processes: Those that run, by name: `router`, `daemon`, `sink`, `flow 0`, ...
    """

    def __init__(
        self,
        scenario: str | Path | Scenario = "l4s-llm-testbed",
        *,
        aqm: str | None = None,
        seconds: float | None = None,
        seed: int = 1,
        address: Path | None = None,
        group: str = "",
        kernel: Path | None = None,
        spin: bool = False,
        values: Mapping[str, int] | None = None,
        model: Path | None = None,
        dry_run: bool = False,
    ) -> None:
        """Prepare the testbed without starting it.

        Args:
            scenario: Name, path, or scenario.
            aqm: `dualpi2_freebsd`, `dualpi2_rfc9332` or `dualpi2_linux`; None: the scenario's.
            seconds: For which the flows send; None: the scenario's horizon.
            seed: Of the scenario's draws, the starts of the flows, and the core.
            address: The daemon's socket; None: in a temporary folder.
            group: Name or number of the group that may open it; empty: root only.
            kernel: Folder of the programs; None: see `l4s_gym.live.programs`.
            spin: Let the router spin instead of sleeping: a whole core for the finest timing.
            values: Parameters of the core instead of the scenario's, and `rate_bps`.
            model: File of an integer model (`l4s_gym.bridge.model`) that decides in the router; None: the law.
            dry_run: Only for the plan: look for nothing.
        """
        self.config: LiveConfig = live_config(load(scenario), aqm, seed, **dict(values or {}))
        self.seconds = self.config.scenario.horizon_s if seconds is None else seconds
        if not 0.0 < self.seconds <= 86400.0:
            raise L4SError(f"seconds {self.seconds:g}: give a positive number, of at most a day")
        tag = f"l4s-{os.getpid()}-{started(os.getpid()) or 0}-{next(_numbers)}"
        if dry_run:
            paths = {name: name for name in programs.PROGRAMS}
        else:
            check_host()
            paths = {name: str(path) for name, path in programs.find(kernel).items()}
        folder = Path(tempfile.gettempdir(), tag if dry_run else f"{tag}-{secrets.token_hex(4)}")
        self.socket = (address or folder / "bridge.sock").absolute()
        self.plan = Plan(Names(tag, folder, self.socket), self.config, paths, spin, group, model and model.absolute())
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started = 0.0
        self._watcher: subprocess.Popen[bytes] | None = None

    # -- up and down

    def __enter__(self) -> LiveTestbed:
        names = self.plan.names
        remove_leftovers()  # a daemon that was left may serve the socket
        check_free(self.socket)
        names.folder.mkdir(mode=0o700)
        (names.folder / SOCKET_NOTE).write_text(str(self.socket))
        self._watcher = subprocess.Popen(
            self.plan.watcher(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            if group := self.plan.group:  # the folder holds the default socket
                shutil.chown(names.folder, group=int(group) if group.isdecimal() else group)
                names.folder.chmod(0o750)
            for command in self.plan.namespaces():
                self._run(command)
            names.config.write_text(self.config.router.text())
            self._start_router()
            for command in self.plan.network():
                self._run(command)
            self.start_daemon()
            self._start("sink", self.plan.sink())
            self._wait_for_sink()
            self._started = time.monotonic()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything; can be called again."""
        for name in [*reversed(list(self.processes))]:
            self.stop(name, wait_s=1.0)
        if self._watcher is not None:
            assert self._watcher.stdin is not None
            self._watcher.stdin.close()
            if self._watcher.wait() != 0:  # it was killed itself
                for name in (self.plan.names.senders, self.plan.names.receivers):
                    _remove_namespace(name)
                self.socket.unlink(missing_ok=True)
            self._watcher = None
        shutil.rmtree(self.plan.names.folder, ignore_errors=True)

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise failed(command[0], f"`{' '.join(command[:6])}` failed: {done.stderr.strip()}")

    def path(self, name: str, suffix: str) -> Path:
        """File for what a program prints: suffix `out` or `err`."""
        return self.plan.names.folder / f"{name.replace(' ', '-')}.{suffix}"

    def _start(self, name: str, command: Sequence[str], *, pipe: bool = False) -> subprocess.Popen[bytes]:
        """Start a program; what it prints goes to files."""
        with self.path(name, "err").open("ab") as err, self.path(name, "out").open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else out,
                stderr=err,
                start_new_session=True,  # Ctrl-C comes to this process only
            )
        self.processes[name] = process
        return process

    def _start_router(self) -> None:
        process = self._start("router", self.plan.router(), pipe=True)
        assert process.stdout is not None
        said = b""
        if select.select([process.stdout], [], [], START_S)[0]:
            said = process.stdout.readline()
        if said.strip() != b"ready":
            raise failed("l4s-router", f"did not start: {self.said('router') or 'no word from it'}")

    def start_daemon(self) -> None:
        """Start the daemon, and wait until its socket takes connections."""
        self.socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        self._start("daemon", self.plan.daemon())
        self._until(self.socket.exists, "daemon")

    def _wait_for_sink(self) -> None:
        """Until the receiver listens: its namespace's list of sockets says so."""
        command = inside(self.plan.names.receivers, "cat", "/proc/net/tcp")
        self._until(lambda: b":1451 " in subprocess.run(command, capture_output=True, check=False).stdout, "sink")

    def _until(self, ready: Any, name: str) -> None:
        limit = time.monotonic() + START_S
        while not ready():
            if self.processes[name].poll() is not None or time.monotonic() > limit:
                raise failed(f"l4s {name}", f"did not start: {self.said(name) or 'no word from it'}")
            time.sleep(0.005)

    def said(self, name: str) -> str:
        """Return the last output of a program on stderr, as one line."""
        try:
            return " | ".join(self.path(name, "err").read_text(errors="replace").strip().splitlines()[-5:])
        except FileNotFoundError:
            return ""

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM, wait_s: float = STOP_S) -> int:
        """Stop a program (kill it where it does not end in time); its exit status."""
        process = self.processes.pop(name)
        if process.poll() is None:
            process.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                process.wait(wait_s)
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode

    # -- a run

    def start_flows(self) -> None:
        """Start the scenario's senders."""
        self._started = time.monotonic()
        for index in self.plan.sending(self.seconds):
            self._start(f"flow {index}", self.plan.flow(index, self.seconds))

    def wait(self, seconds: float) -> None:
        """Wait while it runs; raise an error if router, daemon or receiver has ended."""
        limit = time.monotonic() + seconds
        while (left := limit - time.monotonic()) > 0.0:
            self.check()
            time.sleep(min(left, 0.1))
        self.check()

    def check(self) -> None:
        """Raise an error if router, daemon or receiver has ended."""
        for name in ("router", "daemon", "sink"):
            process = self.processes.get(name)
            if process is not None and process.poll() is not None:
                raise failed(f"l4s {name}", f"ended with status {process.returncode}: {self.said(name)}")

    def stats(self) -> dict[str, Any]:
        """Return the current statistics of the router."""
        path = self.plan.names.stats
        path.unlink(missing_ok=True)
        self.processes["router"].send_signal(signal.SIGUSR1)
        self._until(path.exists, "router")
        return dict(json.loads(path.read_bytes()))

    def cpu_s(self, name: str) -> float:
        """Processor time that a program has used, s."""
        user, system = _stat(self.processes[name].pid)[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def sender(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command where the senders are, and wait for it."""
        done = subprocess.run(
            inside(self.plan.names.senders, *command), capture_output=True, text=True, check=False, **options
        )
        if done.returncode != 0:
            raise failed(command[0], f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        return done

    def traffic(self, *arguments: str, seconds: float) -> list[dict[str, Any]]:
        """Send with `l4s-traffic` to the receiver, and return its report."""
        done = self.sender(self.plan.programs["l4s-traffic"], *arguments, timeout=seconds + 30.0)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def finish(self) -> LiveResult:
        """Stop flows and router, and return the results."""
        elapsed = time.monotonic() - self._started
        limit = time.monotonic() + STOP_S
        flows = []
        for index, flow in enumerate(self.config.flows):
            name = f"flow {index}"
            if name not in self.processes:
                continue
            if elapsed >= self.seconds:  # it ends by itself
                with suppress(subprocess.TimeoutExpired):
                    self.processes[name].wait(max(limit - time.monotonic(), 0.01))
            self.stop(name, signal.SIGINT)
            said = [line for line in self.path(name, "out").read_text().splitlines() if line.startswith("{")]
            figures = json.loads(said[-1]) if said else {"error": self.said(name) or "said nothing"}
            flows.append({"label": flow.label, "source": flow.source, "start_s": flow.start_s} | figures)
        router = self.stats()
        return LiveResult(
            self.config.scenario.name,
            self.config.aqm,
            elapsed,
            router,
            flows,
            self.config.notes,
            asdict(self.config.router),
        )

    @property
    def receiver(self) -> str:
        """Address of the receiver."""
        return RECEIVER
