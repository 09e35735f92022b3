"""The wire protocol spelled out once more, a queue's device that is none, and a client, for tests of the daemon.

Written against `kernel/core/l4s_wire.h` without `l4s_gym.bridge`, so that each is a check of the other.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from l4s_gym.data.records import layout_digest
from l4s_gym.schema import RECORD, SCHEMA_VERSION

MAGIC: Final = 0x344C
VERSION: Final = 1
ENTRY: Final = 192
COMMAND: Final = 64

HELLO, ROW, ASK, EVENT, STATUS, ERROR, LAW = range(1, 8)
SUBSCRIBE, ATTACH, DETACH, DECIDE, CONFIGURE, GET_STATUS, DIRECT, SET_LAW, GET_LAW, SET_PROB = range(1, 11)
CAME, LEFT, DEVICE_LOST, DEVICE_BACK = range(16, 20)
MALFORMED, BUSY, NOT_CONTROLLER, REFUSED, NO_DEVICE, TOO_MANY, NOT_OFFERED, OUT_OF_BOUNDS = range(1, 9)

_HEAD = struct.Struct("<HBBIQ")
_HELLO = struct.Struct("<HHHH8sQQQIBB2x32s5I5II2I")
_EVENT = struct.Struct("<QQBB")
_STATUS = struct.Struct("<Q2Q2Q2Q2Q2QQ7I2I3IBBBx")
_ERROR = struct.Struct("<HBx160s")
COMMAND_FORM = struct.Struct("<HBBBBHQQQ8I")
_SEQUENCE = int(RECORD.fields["sequence"][1]) if RECORD.fields else 0
ENTRY_DTYPE: Final = np.dtype(
    {
        "names": ["kind", "lost", "sequence"],
        "formats": ["u1", "<u4", "<u8"],
        "offsets": [3, 4, _HEAD.size + _SEQUENCE],
        "itemsize": ENTRY,
    }
)
PATIENCE_S: Final = 30.0
"""How long a test waits for what must come; a loaded machine may be slow."""

assert COMMAND_FORM.size == COMMAND
assert _STATUS.size == 148
assert _HELLO.size == 132


def entry(kind: int, body: bytes = b"", *, lost: int = 0, tag: int = 0, magic: int = MAGIC, version: int = 1) -> bytes:
    """One entry."""
    return (_HEAD.pack(magic, version, kind, lost, tag) + body).ljust(ENTRY, b"\0")


def hello(
    *, session: int = 7, clock_us: int = 1_000_000, record: int = RECORD.itemsize, layout: bytes | None = None,
    sizes: tuple[int, int] = (ENTRY, COMMAND), schema: int = SCHEMA_VERSION, version: int = VERSION, direct: int = 1,
    law_ms: int = 1000, prob_high: int = 65536,
) -> bytes:  # fmt: skip
    """The first entry of a device."""
    digest = layout_digest() if layout is None else layout
    numbers = (session, clock_us, 8_000_000, 4096, 0, direct)
    body = _HELLO.pack(schema, record, *sizes, digest, *numbers, b"fake queue", *[65536] * 10, law_ms, *[prob_high] * 2)
    return entry(HELLO, body, version=version)


def row(sequence: int, *, kind: int = ROW, lost: int = 0) -> bytes:
    """A row (or an ask) of which only the sequence is filled."""
    body = bytearray(168)
    struct.pack_into("<Q", body, _SEQUENCE, sequence)
    return entry(kind, bytes(body), lost=lost)


def event(kind: int, *, value: int = 0, queue: int = 0) -> bytes:
    """An event, as of the shield."""
    return entry(EVENT, _EVENT.pack(5, value, kind, queue))


def status(tag: int, *, packets: int = 11, lost: int = 99, interval: int = 0, controls: int = 0) -> bytes:
    """An answer. What the daemon must fill in itself is wrong here: `lost` and `controls`."""
    body = _STATUS.pack(5, packets, *[0] * 9, lost, *[0] * 9, interval, 0, 0, 0, 0, controls)
    return entry(STATUS, body, tag=tag)


def error(code: int, *, tag: int = 0, text: str = "no") -> bytes:
    """A refusal."""
    return entry(ERROR, _ERROR.pack(code, 0, text.encode()), tag=tag)


def command(
    kind: int, *args: int, tag: int = 0, queue: int = 0, action: int = 0, sequence: int = 0, expires_us: int = 0,
    reserved: int = 0, magic: int = MAGIC, version: int = VERSION,
) -> bytes:  # fmt: skip
    """One command."""
    arguments = [*args, *[0] * (8 - len(args))]
    return COMMAND_FORM.pack(magic, version, kind, queue, action, reserved, tag, sequence, expires_us, *arguments)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that came."""

    kind: int
    lost: int
    tag: int
    body: bytes

    @property
    def sequence(self) -> int:
        """Of a row or an ask."""
        return int.from_bytes(self.body[_SEQUENCE : _SEQUENCE + 8], "little")

    @property
    def session(self) -> int:
        """Of a HELLO."""
        return int(_HELLO.unpack_from(self.body)[5])

    @property
    def clock_us(self) -> int:
        """Of a HELLO."""
        return int(_HELLO.unpack_from(self.body)[6])

    @property
    def name(self) -> str:
        """Of a HELLO."""
        return str(_HELLO.unpack_from(self.body)[11].rstrip(b"\0").decode())

    @property
    def event(self) -> tuple[int, int]:
        """Kind and value of an event."""
        _, value, kind, _ = _EVENT.unpack_from(self.body)
        return kind, value

    @property
    def code(self) -> int:
        """Of an error."""
        return int(_ERROR.unpack_from(self.body)[0])

    @property
    def text(self) -> str:
        """Of an error."""
        return str(_ERROR.unpack_from(self.body)[2].rstrip(b"\0").decode())

    @property
    def status(self) -> dict[str, int]:
        """The parts of a status that the tests look at."""
        values = _STATUS.unpack_from(self.body)
        return {"packets": values[1], "lost": values[11], "interval": values[21], "controls": values[26]}


@dataclass(frozen=True, slots=True)
class Command:
    """A command that the device got."""

    kind: int
    tag: int
    queue: int
    action: int
    sequence: int
    expires_us: int
    args: tuple[int, ...]


class _Stream:
    """Fixed-size pieces from a socket, with a deadline."""

    def __init__(self, link: socket.socket, size: int) -> None:
        self.link = link
        self.size = size
        self._buffer = bytearray()

    def piece(self, patience_s: float) -> bytes | None:
        """The next piece; None at the end of the stream. Raises TimeoutError."""
        deadline = time.monotonic() + patience_s
        while len(self._buffer) < self.size:
            self.link.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                got = self.link.recv(1 << 18)
            except ConnectionError:
                return None
            if not got:
                return None
            self._buffer += got
        piece = bytes(self._buffer[: self.size])
        del self._buffer[: self.size]
        return piece


class Client:
    """A reader or controller."""

    def __init__(self, path: Path, *, greeted: bool = True) -> None:
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.link.settimeout(PATIENCE_S)
            self.link.connect(str(path))
        except OSError:
            self.link.close()
            raise
        self._stream = _Stream(self.link, ENTRY)
        self.hello: Entry | None = self.next(HELLO) if greeted else None

    def send(self, data: bytes) -> None:
        """Bytes, as they are."""
        self.link.settimeout(PATIENCE_S)
        self.link.sendall(data)

    def get(self, patience_s: float = PATIENCE_S) -> Entry | None:
        """The next entry; None when the daemon has closed the connection."""
        piece = self._stream.piece(patience_s)
        if piece is None:
            return None
        magic, version, kind, lost, tag = _HEAD.unpack_from(piece)
        assert (magic, version) == (MAGIC, VERSION)
        return Entry(kind, lost, tag, piece[_HEAD.size :])

    def next(self, kind: int) -> Entry:
        """The next entry, which must be of this kind."""
        found = self.get()
        assert found is not None, "the daemon closed the connection"
        assert found.kind == kind, found
        return found

    def until(self, kind: int) -> tuple[Entry, list[Entry]]:
        """The next entry of a kind, and those before it."""
        before: list[Entry] = []
        while True:
            found = self.get()
            assert found is not None, "the daemon closed the connection"
            if found.kind == kind:
                return found, before
            before.append(found)

    def expect_event(self, kind: int) -> int:
        """The next entry must be this event; its value."""
        found, value = self.next(EVENT).event
        assert found == kind
        return value

    def expect_error(self, code: int) -> Entry:
        """The next entry must be this error."""
        found = self.next(ERROR)
        assert found.code == code, found.text
        return found

    def expect_silence(self, seconds: float = 0.2) -> None:
        """Nothing comes for a while."""
        with contextlib.suppress(TimeoutError):
            raise AssertionError(self.get(seconds))

    def close(self) -> None:
        """Leave."""
        self.link.close()


class Device:
    """A Unix socket that greets and does what a test says: a router without packets."""

    def __init__(self, path: Path, greeting: bytes | None = None) -> None:
        self.path = path
        self.greeting = hello() if greeting is None else greeting
        self.server: socket.socket | None = None
        self._link: socket.socket | None = None
        self._stream: _Stream | None = None
        self.start()

    @property
    def link(self) -> socket.socket:
        """The connection to the daemon."""
        assert self._link is not None
        return self._link

    def start(self) -> None:
        """Listen."""
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(str(self.path))
        self.server.listen(8)

    def accept(self) -> None:
        """Wait for the daemon and greet it."""
        assert self.server is not None
        self.server.settimeout(PATIENCE_S)
        self._link, _ = self.server.accept()
        self._stream = _Stream(self._link, COMMAND)
        self.send(self.greeting)

    def send(self, data: bytes | bytearray) -> None:
        """Bytes, as they are."""
        assert self._link is not None
        self._link.settimeout(PATIENCE_S)
        self._link.sendall(data)

    def get(self, patience_s: float = PATIENCE_S) -> Command | None:
        """The next command, or None when the daemon has gone."""
        assert self._stream is not None
        piece = self._stream.piece(patience_s)
        if piece is None:
            return None
        magic, version, kind, queue, action, reserved, tag, sequence, expires_us, *args = COMMAND_FORM.unpack(piece)
        assert (magic, version, reserved) == (MAGIC, VERSION, 0)
        return Command(kind, tag, queue, action, sequence, expires_us, tuple(args))

    def next(self, kind: int) -> Command:
        """The next command, which must be of this kind."""
        found = self.get()
        assert found is not None, "the daemon closed the connection"
        assert found.kind == kind, found
        return found

    def expect_silence(self, seconds: float = 0.2) -> None:
        """No command comes for a while."""
        with contextlib.suppress(TimeoutError):
            raise AssertionError(self.get(seconds))

    def answer(self, kind: int, **values: int) -> Command:
        """Take a command of a kind and answer it by a STATUS."""
        got = self.next(kind)
        self.send(status(got.tag, **values))
        return got

    def drop(self) -> None:
        """End the connection, and keep listening."""
        if self._link is not None:
            self._link.close()
        self._link = None

    def close(self) -> None:
        """Die."""
        self.drop()
        if self.server is not None:
            self.server.close()
            self.path.unlink(missing_ok=True)
        self.server = None


def ready(link: socket.socket, seconds: float, what: int = selectors.EVENT_READ) -> bool:
    """Whether a socket can be read (or written) within some time."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(link, what)
        return bool(waiting.select(seconds))


def rows_until(client: Client, last: int) -> Iterator[Entry]:
    """Rows up to the one with sequence `last`."""
    while True:
        found = client.next(ROW)
        yield found
        if found.sequence == last:
            return
