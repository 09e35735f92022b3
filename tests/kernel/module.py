"""The FreeBSD module in the simulated kernel (`kernel/harness/kernel*.c`), through ctypes."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym.bridge import wire
from l4s_gym.schema import RECORD

ARRIVAL: Final = np.dtype(
    [("time_ns", "i8"), ("length", "u4"), ("flow", "u4"), ("ecn", "u4"), ("unused", "u4")], align=True
)
IP6, LAYER2, SPLIT, INTERFACE, NOT_IP, SHORT = 1, 2, 4, 8, 16, 32
"""Forms of packets."""
ALLOCATION, MAKE_DEV, CDEVPRIV, COPY, MODEVENT = range(5)
"""What can be made to fail."""
BY_SIGNAL, BY_PACKET, BY_OTHER = range(3)
"""What ends the sleep of a reader."""
POLLIN, POLLOUT = 1, 4
READ_FILTER, WRITE_FILTER = -1, -2
READ, WRITE = 1, 2
MOST: Final = 64 * wire.ENTRY_SIZE


class Sent(NamedTuple):
    """A packet that has left: bytes with what is around it, flow, ECN codepoint, whether its checksum holds."""

    length: int
    flow: int
    ecn: int
    checksum_holds: bool


class Statistics(NamedTuple):
    """What `ipfw sched show` and dummynet count."""

    packets: int
    bytes: int
    queued: int
    queued_bytes: int
    drops: int
    same_in_queue: int
    io_pkt_drop: int


def built(build: Callable[..., Path]) -> Path:
    """The library; the one that the environment names, such as a build with sanitizers."""
    named = os.environ.get("L4S_MODULE")
    return Path(named) if named else build("libl4s_module.so") / "libl4s_module.so"


def command(kind: int, *args: int, **fields: int) -> bytes:
    """A command, well-formed unless a field says otherwise."""
    one = np.zeros(1, wire.COMMAND)
    one["magic"], one["version"], one["kind"] = wire.MAGIC, wire.VERSION, kind
    one["args"][0, : len(args)] = args
    for name, value in fields.items():
        one[name] = value
    return one.tobytes()


def check(result: int) -> int:
    """The result, or the kernel's error as an exception."""
    if result < 0:
        raise OSError(-result, errno.errorcode.get(-result, "?"))
    return result


class Device:
    """An open descriptor of /dev/l4s."""

    def __init__(self, lib: ctypes.CDLL, flags: int = READ | WRITE) -> None:
        self._lib = lib
        self.fd = check(lib.harness_open(flags))

    def read(self, size: int = MOST, *, blocking: bool = False) -> npt.NDArray[np.void]:
        """Entries (n,); without any `BlockingIOError`."""
        room = ctypes.create_string_buffer(max(size, 1))
        got = check(self._lib.harness_read(self.fd, room, size, not blocking))
        return np.frombuffer(room.raw[:got], wire.ENTRY)

    def read_all(self) -> npt.NDArray[np.void]:
        """Everything that waits, (n,)."""
        parts = [np.zeros(0, wire.ENTRY)]
        while True:
            try:
                parts.append(self.read())
            except BlockingIOError:
                return np.concatenate(parts)

    def write(self, data: bytes) -> int:
        """Send commands."""
        return check(self._lib.harness_write(self.fd, data, len(data)))

    def ask(self, kind: int, *args: int, **fields: int) -> npt.NDArray[np.void]:
        """Send a command and read all that then waits, (n,)."""
        self.write(command(kind, *args, **fields))
        return self.read_all()

    def poll(self, events: int) -> int:
        """Which events are there."""
        return check(self._lib.harness_poll(self.fd, events))

    def woken(self) -> int:
        """How often a poll was woken."""
        return int(self._lib.harness_woken(self.fd))

    def kevent(self, kind: int) -> int:
        """Register a filter; its number."""
        return check(self._lib.harness_kevent(self.fd, kind))

    def filter(self, number: int) -> tuple[int, int]:
        """Bytes that a filter promises (-1: it is not ready), and how often it fired."""
        fired = ctypes.c_uint()
        data = self._lib.harness_kevent_data(number, ctypes.byref(fired))
        return int(data), fired.value

    def ioctl(self, request: int, data: Any = None) -> None:
        """An ioctl; `data` is read or written in place."""
        check(self._lib.harness_ioctl(self.fd, request, data))

    def close(self) -> None:
        """Close the descriptor."""
        check(self._lib.harness_close(self.fd))


_KERNELS: dict[Path, ctypes.CDLL] = {}
"""Simulated kernels in which nothing has been left."""


def _kernel(path: Path) -> ctypes.CDLL:
    """The library, or a copy of it with a state of its own where a failed test has left things in it."""
    if path not in _KERNELS:
        with tempfile.NamedTemporaryFile(suffix=".so") as copy:
            copy.write(path.read_bytes())
            copy.flush()
            _KERNELS[path] = ctypes.CDLL(copy.name)
    return _KERNELS[path]


class Module:
    """`libl4s_module.so`: the module is loaded on entry and must leave nothing behind on exit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lib = lib = _kernel(path)
        lib.harness_log.restype = ctypes.c_char_p
        lib.harness_sysctl_name.restype = ctypes.c_char_p
        wide = ("now", "calls", "live", "read", "write", "kevent_data", "drive")
        for name in wide:
            getattr(lib, f"harness_{name}").restype = ctypes.c_int64
        lib.harness_fail.argtypes = [ctypes.c_int, ctypes.c_int64]
        lib.harness_advance.argtypes = [ctypes.c_int64]
        lib.harness_jitter.argtypes = [ctypes.c_int64]
        lib.harness_random.argtypes = [ctypes.c_uint64]
        lib.harness_read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
        lib.harness_write.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int64]
        lib.harness_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        lib.harness_drive.argtypes = [
            ctypes.c_uint32, ctypes.c_double, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip

    def load(self) -> None:
        """Like ``kldload``; the clock starts at 0."""
        check(self._lib.harness_load())

    def unload(self) -> None:
        """Like ``kldunload``."""
        check(self._lib.harness_unload())

    def live(self) -> tuple[int, str]:
        """Live objects of the kernel, and the kind of the one made last."""
        text = ctypes.create_string_buffer(64)
        return int(self._lib.harness_live(text, 64)), text.value.decode()

    def __enter__(self) -> Module:
        """Load it."""
        self.load()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Unload it; where that fails or the test has failed, what is left is nobody's any more."""
        _KERNELS.pop(self._path)
        if kind is None:
            self.unload()
            assert self.live() == (0, "")
            _KERNELS[self._path] = self._lib

    def fail(self, kind: int, nth: int = 1) -> None:
        """Let the n-th call from now on fail; 0: none."""
        self._lib.harness_fail(kind, nth)

    def calls(self, kind: int) -> int:
        """Calls of a kind so far."""
        return int(self._lib.harness_calls(kind))

    def random(self, value: int) -> None:
        """The next random number: the seed of the next instance."""
        self._lib.harness_random(value)

    def open(self, flags: int = READ | WRITE) -> Device:
        """Open /dev/l4s."""
        return Device(self._lib, flags)

    @property
    def now_ns(self) -> int:
        """The kernel's clock."""
        return int(self._lib.harness_now())

    def advance(self, ns: int) -> None:
        """Let time pass."""
        self._lib.harness_advance(self.now_ns + ns)

    def jitter(self, ns: int) -> None:
        """Let the clock go back for one look at it."""
        self._lib.harness_jitter(ns)

    def config(self, number: int = 1, *, vnet: int = 0, bandwidth: int = 8_000_000) -> None:
        """``ipfw sched N config pipe N type l4s``."""
        check(self._lib.harness_config(number, vnet, bandwidth))

    def delete(self, number: int = 1, *, vnet: int = 0) -> None:
        """``ipfw sched N delete``."""
        check(self._lib.harness_delete(number, vnet))

    def expire(self, number: int = 1) -> bool:
        """What dummynet does with an idle instance; whether there was one."""
        return bool(self._lib.harness_expire(number, 0))

    def getconfig(self, number: int = 1) -> tuple[str, list[int]]:
        """Name and parameters, as ipfw(8) gets them."""
        name, par = ctypes.create_string_buffer(16), (ctypes.c_int64 * 10)()
        check(self._lib.harness_getconfig(number, par, name))
        return name.value.decode(), list(par)

    def arrive(
        self, length: int = 1500, *, flow: int = 0, ecn: int = 0, form: int = 0, number: int = 1, vnet: int = 0
    ) -> bool:
        """A packet arrives; whether it was queued."""
        return check(self._lib.harness_arrive(number, vnet, length, flow, ecn, form)) == 0

    def dequeue(self, number: int = 1, *, vnet: int = 0) -> Sent | None:
        """The next packet leaves."""
        sent = (ctypes.c_uint32 * 4)()
        if not self._lib.harness_dequeue(number, vnet, sent):
            return None
        return Sent(sent[0], sent[1], sent[2], bool(sent[3]))

    def interface(self, *, gone: bool) -> None:
        """The interface that packets came from goes, or comes back."""
        self._lib.harness_interface(gone)

    def statistics(self, number: int = 1, *, vnet: int = 0) -> Statistics:
        """Counters of an instance."""
        out = (ctypes.c_uint64 * 8)()
        check(self._lib.harness_statistics(number, vnet, out))
        return Statistics(*out[:7])

    def sysctl(self, name: str, value: int | None = None) -> int:
        """Read a sysctl, and set it; the old value."""
        old, new = ctypes.c_uint64(), ctypes.c_uint64(value or 0)
        fresh = None if value is None else ctypes.byref(new)
        check(self._lib.harness_sysctl(name.encode(), fresh, ctypes.byref(old)))
        return old.value

    def sysctls(self) -> set[str]:
        """Names of all sysctls."""
        names: set[str] = set()
        while name := self._lib.harness_sysctl_name(len(names)):
            names.add(name.decode())
        return names

    def set_all(self, values: Mapping[str, int]) -> None:
        """Set many sysctls."""
        for name, value in values.items():
            self.sysctl(name, value)

    def sleeper(self, kind: int) -> None:
        """What ends the sleep of a reader."""
        self._lib.harness_sleeper(kind)

    def log(self) -> bytes:
        """The message buffer, which is then empty."""
        return bytes(self._lib.harness_log())

    def drive(self, arrivals: npt.NDArray[Any], ns_per_byte: float, *, first: int = 0) -> npt.NDArray[np.void]:
        """Rows (T,) `schema.RECORD` of packets (T,) `ARRIVAL` that are offered to scheduler 1 behind a link."""
        arrivals = np.ascontiguousarray(arrivals, ARRIVAL)
        rows = np.zeros(len(arrivals), RECORD)
        got = self._lib.harness_drive(1, ns_per_byte, arrivals.ctypes.data, len(arrivals), first, rows.ctypes.data)
        assert got == len(arrivals), f"{got} rows of {len(arrivals)} packets"
        return rows
