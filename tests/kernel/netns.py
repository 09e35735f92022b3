"""The Linux router between two network namespaces, and a plain client of its socket, for the tests.

The client reads the wire by a NumPy type of its own, so that the protocol's Python end is not its own witness.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.schema import RECORD

SENDER: Final = "10.77.1.1"
SECOND_SENDER: Final = "10.77.1.2"
RECEIVER: Final = "10.77.2.1"
SENDER6: Final = "fd77:1::1"
RECEIVER6: Final = "fd77:2::1"
PORT: Final = 5201
HAS_IPV6: Final = Path("/proc/sys/net/ipv6").exists()
WAIT_S: Final = 20.0
"""Longest wait for anything: a bound, not a timing that is tested."""

HELLO, ROW, ASK, EVENT, STATUS, ERROR, LAW = range(1, 8)
SUBSCRIBE, ATTACH, DETACH, DECIDE, CONFIGURE, GET_STATUS, DIRECT, SET_LAW, GET_LAW, SET_PROB = range(1, 11)
MALFORMED, BUSY, NOT_CONTROLLER, REFUSED = range(1, 5)
ENTRY: Final = np.dtype(
    [
        ("magic", "<u2"),
        ("version", "u1"),
        ("kind", "u1"),
        ("lost", "<u4"),
        ("tag", "<u8"),
        ("record", RECORD),
        ("reserved", "u1"),
        ("totals", "<u8", (4,)),
        ("rest", "V8"),
    ]
)
Entries = npt.NDArray[np.void]
_STATUS: Final = struct.Struct("<Q2Q2Q2Q2Q2QQ7I2IIIIBBBB6I")
SHIELD: Final = tuple(f"shield_{name}" for name in ("c_us", "l_us", "drops", "window", "hold_us", "hits"))
_numbers = itertools.count()


class Device:
    """A connection to the router's socket, or one that it gave."""

    def __init__(self, where: Path | int) -> None:
        if isinstance(where, int):
            self.socket = socket.socket(fileno=where)
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WAIT_S)
        if isinstance(where, Path):
            self.socket.connect(str(where))
        self._rest = b""
        self.closed = False

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, kind: int, *args: int, tag: int = 0, **fields: int) -> None:
        numbers = [*args, *[0] * (8 - len(args))]
        head = struct.pack("<HBBBBH", 0x344C, 1, kind, fields.get("queue", 0), fields.get("action", 0), 0)
        body = struct.pack("<QQQ8I", tag, fields.get("sequence", 0), fields.get("expires_us", 0), *numbers)
        self.socket.sendall(head + body)

    def read(self, wait_s: float = WAIT_S) -> Entries:
        """What has come, at least one entry unless nothing comes in time or the connection ends."""
        limit = time.monotonic() + wait_s
        data = self._rest
        while len(data) < ENTRY.itemsize and not self.closed:
            left = limit - time.monotonic()
            if left <= 0.0 or not select.select([self.socket], [], [], left)[0]:
                break
            try:
                more = self.socket.recv(1 << 18)
            except ConnectionResetError:  # it was closed with something unread
                more = b""
            self.closed = not more
            data += more
        whole = len(data) // ENTRY.itemsize * ENTRY.itemsize
        self._rest = data[whole:]
        return np.frombuffer(data[:whole], ENTRY)

    def until(self, enough: Callable[[Entries], bool]) -> Entries:
        """Everything that comes until `enough` says so of all of it."""
        got = [self.read()]
        limit = time.monotonic() + WAIT_S
        while not enough(np.concatenate(got)):
            assert not self.closed and time.monotonic() < limit, "it does not come"
            got.append(self.read(1.0))
        return np.concatenate(got)

    def direct(self) -> Device:
        """The controller's own connection; entries that come before it are lost."""
        self.send(DIRECT, tag=98)
        passed: list[int] = []
        limit = time.monotonic() + WAIT_S
        while not passed:
            assert time.monotonic() < limit, "no descriptor comes"
            data, passed, _, _ = socket.recv_fds(self.socket, 1 << 18, 1)
            self._rest += data
        self.until(lambda all_: bool((all_["tag"] == 98).any()))
        return Device(passed[0])

    def status(self) -> dict[str, Any]:
        """The counters; entries that come before them are lost."""
        self.send(GET_STATUS, tag=99)
        entries = self.until(lambda all_: bool((all_["kind"] == STATUS).any()))
        return read_status(entries[entries["kind"] == STATUS][-1])


def body(entry: Any) -> bytes:
    """Bytes of the entry behind its head."""
    return bytes(entry.tobytes()[16:])


def read_status(entry: Any) -> dict[str, Any]:
    n = _STATUS.unpack_from(body(entry))
    return {
        "packets": n[1] + n[2],
        "agent": n[3] + n[4],
        "fallback": n[5] + n[6],
        "lost": n[11],
        "refused": n[12:19],
        "trips": n[19] + n[20],
        "interval": n[21],
        "held": n[24],
        "model": n[25],
        "controls": n[26],
        "shield": n[28:34],
    }


class Bed:
    """Two namespaces and the router between them, from entry to exit; at the exit the router must end cleanly."""

    def __init__(self, programs: Path, folder: Path, config: Mapping[str, Any], *options: str) -> None:
        tag = f"l4s-t{os.getpid()}-{next(_numbers)}"
        self.senders, self.receivers = f"{tag}-s", f"{tag}-r"
        self.programs, self.folder, self.options = programs, folder, options
        self.socket = folder / "device.sock"
        self.stats_path = folder / "stats.json"
        self.config = folder / "router.conf"
        self.config.write_text("".join(f"{key} {value}\n" for key, value in config.items()))
        self.started: list[subprocess.Popen[str]] = []
        self.router: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        ends = ["--senders", f"{self.senders}:l4s0", "--receivers", f"/run/netns/{self.receivers}:l4s0"]
        paths = ["--config", str(self.config), "--device", str(self.socket), "--stats", str(self.stats_path)]
        return [str(self.programs / "l4s-router"), *paths, *ends, *self.options]

    def __enter__(self) -> Bed:
        for name in (self.senders, self.receivers):
            subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            self.start_router()
        except BaseException:
            self._take_down()
            raise
        return self

    def start_router(self) -> None:
        """Start it, and give its devices their addresses."""
        with (self.folder / "router.err").open("w") as err:
            self.router = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=err, text=True)
        assert self.router.stdout is not None
        said = self.router.stdout.readline()
        assert said == "ready\n", (self.folder / "router.err").read_text()
        ends = (
            (self.senders, (SENDER, SECOND_SENDER), SENDER6),
            (self.receivers, (RECEIVER,), RECEIVER6),
        )
        for name, addresses, address6 in ends:
            lines = [f"addr add {address}/32 dev l4s0" for address in addresses]
            lines += ["link set lo up", "link set l4s0 mtu 1500 txqueuelen 10000 up"]
            lines += ["route add default dev l4s0"]
            if HAS_IPV6:
                lines += [f"addr add {address6}/128 dev l4s0 nodad", "route add fd77::/16 dev l4s0"]
            subprocess.run(["ip", "-n", name, "-batch", "-"], input="\n".join(lines), text=True, check=True)
            subprocess.run(self.inside(name, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/tcp_ecn"), check=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            status = self.stop_router() if self.router is not None else 0
        finally:
            self._take_down()
        if error is None:
            said = (self.folder / "router.err").read_text()
            assert status == 0 and not said, said

    def stop_router(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.router is not None and self.router.stdout is not None
        self.router.send_signal(how)
        status = self.router.wait(WAIT_S)
        self.router.stdout.close()
        self.router = None
        return status

    def _take_down(self) -> None:
        if self.router is not None:
            self.stop_router(signal.SIGKILL)
        for process in self.started:
            with suppress(ProcessLookupError):
                process.kill()
            process.communicate()
        for name in (self.senders, self.receivers):
            subprocess.run(["ip", "netns", "del", name], check=False)

    @staticmethod
    def inside(name: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", name, *command]

    def start(self, *arguments: str, receivers: bool = False) -> subprocess.Popen[str]:
        """Start `l4s-traffic`."""
        command = self.inside(self.receivers if receivers else self.senders, str(self.programs / "l4s-traffic"))
        self.started.append(subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True))
        return self.started[-1]

    def sink(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the receiver, and wait until it listens."""
        process = self.start("sink", "--bind", f"{RECEIVER}:{PORT}", *arguments, receivers=True)
        limit = time.monotonic() + WAIT_S
        listens = self.inside(self.receivers, "cat", "/proc/net/tcp")
        while f":{PORT:04X} " not in subprocess.run(listens, capture_output=True, text=True, check=True).stdout:
            assert time.monotonic() < limit and process.poll() is None, "no receiver"
            time.sleep(0.01)
        return process

    def send(self, kind: str, seconds: float, *arguments: str) -> subprocess.Popen[str]:
        """Start a sender."""
        return self.start(kind, "--to", f"{RECEIVER}:{PORT}", "--seconds", str(seconds), *arguments)

    @staticmethod
    def result(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
        """What it says at its end."""
        said = process.communicate(timeout=WAIT_S)[0]
        assert process.returncode == 0, said
        return [json.loads(line) for line in said.splitlines()]

    def traffic(self, kind: str, seconds: float, *arguments: str) -> list[dict[str, Any]]:
        """Run a sender to its end."""
        return self.result(self.send(kind, seconds, *arguments))

    def stats(self) -> dict[str, Any]:
        """The router's statistics now."""
        assert self.router is not None
        self.stats_path.unlink(missing_ok=True)
        self.router.send_signal(signal.SIGUSR1)
        limit = time.monotonic() + WAIT_S
        while not self.stats_path.exists():
            assert time.monotonic() < limit and self.router.poll() is None, "no statistics"
            time.sleep(0.005)
        return dict(json.loads(self.stats_path.read_text()))

    def drained(self) -> dict[str, Any]:
        """The statistics, once everything that came in has left."""
        limit = time.monotonic() + WAIT_S
        while True:
            found = self.stats()
            way = found["forward"]
            gone = sum(way[name] for name in ("delivered", "malformed", "oversized", "pool_missed", "write_failed"))
            if gone + found["classic"]["drops"] + found["l4s"]["drops"] == way["packets"]:
                return found
            assert time.monotonic() < limit, "packets stay in the router"
            time.sleep(0.01)

    def udp(self, name: str, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A UDP socket in a namespace: a socket stays where it was made."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{name}") as there:
            assert libc.setns(there.fileno(), 0) == 0
            try:
                made = socket.socket(family, socket.SOCK_DGRAM)
            finally:
                assert libc.setns(home.fileno(), 0) == 0
        made.settimeout(WAIT_S)
        return made
