"""A connection to a live queue: the daemon `l4s-bridged`, or the router's own socket.

The socket is a Unix socket, guarded by the permissions of its file. Across machines SSH forwards it:
``ssh -N -L /tmp/live.sock:/run/l4s-gym/live.sock router``, and then connect to `/tmp/live.sock`.

```python
with Client("/run/l4s-gym/live.sock") as client:
    client.subscribe(True)
    rows = wire.records_of(wire.select(client.entries(timeout_s=1.0), wire.ROW))
```
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.bridge import wire
from l4s_gym.bridge.wire import Entries, Hello, Law, Status
from l4s_gym.errors import L4SError

ADDRESS: Final = "/run/l4s-gym/live.sock"
"""Where the daemon listens unless told otherwise."""
VARIABLE: Final = "L4S_GYM_SOCKET"
TIMEOUT_S: Final = 5.0
LAW_LIFETIME_MS: Final = 500

_CHUNK: Final = 1 << 18
_FEW: Final = 1 << 12
_MOST: Final = 1 << 22
"""Bytes taken in one go, of the socket and of the queue's own, and bytes that wait in this process: a reader that is
slower loses rows at the server."""
_START: Final = "start it: `sudo l4s-gym live up`, or the daemon `l4s-bridged`"

_REMEDIES: Final = {
    wire.E_MALFORMED: "l4s_gym and the server are of different versions: install those that belong together",
    wire.E_BUSY: "somebody else controls the queue: end that controller first (reading is free for all)",
    wire.E_NOT_CONTROLLER: "attach first",
    wire.E_REFUSED: "run as the user that the socket is for, or change who may use it (l4s-bridged --help)",
    wire.E_NO_DEVICE: "the daemon has no queue now: start the router, or load the kernel module",
    wire.E_TOO_MANY: "too many clients: end one",
    wire.E_NOT_OFFERED: "this queue has no socket of its own to give, or takes no parameters or probabilities: update "
    "it, or let prob_c_high and prob_l_high of the queue be above 0",
    wire.E_OUT_OF_BOUNDS: "stay within the operator's bounds, `hello.law` and `hello.prob_high`, or let them be wider "
    "(law_* and prob_* of the queue)",
}
_ANSWERS: Final = (wire.STATUS, wire.LAW, wire.ERROR)
_FATAL: Final = (wire.E_MALFORMED, wire.E_REFUSED, wire.E_TOO_MANY)


class BridgeError(L4SError):
    """An error of a live queue or of the connection to it.

    Attributes:
        code: Error code of the server (`wire.E_BUSY`, ...); 0 if it sent none.
        closed: Whether the connection is closed.
    """

    def __init__(self, text: str, code: int = 0, *, closed: bool = False) -> None:
        super().__init__(text)
        self.code, self.closed = code, closed


def default_address(address: str | os.PathLike[str] | None = None) -> str:
    """Return the path of the socket: the given one, else `$L4S_GYM_SOCKET`, else `ADDRESS`."""
    return os.fspath(address) if address is not None else os.environ.get(VARIABLE) or ADDRESS


def _check_lifetime(lifetime_ms: int) -> None:
    if not 1 <= lifetime_ms < 1 << 32:
        raise L4SError(f"lifetime_ms={lifetime_ms!r}: give a whole number of milliseconds, 1 or more")


def _connect_error(address: str, error: OSError) -> BridgeError:
    if error.errno == errno.ENOENT:
        return BridgeError(f"{address}: no such socket: {_START}", closed=True)
    if error.errno == errno.ECONNREFUSED:
        return BridgeError(f"{address}: nobody listens: {_START}", closed=True)
    if error.errno == errno.EACCES:
        return BridgeError(f"{address}: permission denied: {_REMEDIES[wire.E_REFUSED]}", closed=True)
    if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
        return BridgeError(f"{address}: takes no connection in time: is the server stopped or overrun?", closed=True)
    reason = error.strerror or str(error)
    return BridgeError(f"{address}: cannot connect ({reason}): give the path of a Unix socket", closed=True)


class Client:
    """One connection to a live queue; no call waits longer than the timeout.

    Args:
        address: Path of the socket; None: `default_address`.
        timeout_s: Longest wait for the server: to accept, to say HELLO, to take a command, to answer it.
        direct: When controlling, talk to the queue by a socket of its own instead of through the daemon, if it offers
            one; `attach` asks for it.

    Attributes:
        address: Path of the socket.
        hello: The latest HELLO of the server; there is a new one after the queue is restarted.
        lost: Entries that the server dropped because this reader was too slow.

    Raises:
        BridgeError: In `connect`: there is no server, or one of another version. In any method: the connection is
            closed, or the server refused.
    """

    hello: Hello

    def __init__(
        self, address: str | os.PathLike[str] | None = None, *, timeout_s: float = TIMEOUT_S, direct: bool = True
    ) -> None:
        if not timeout_s > 0:
            raise L4SError(f"timeout_s={timeout_s!r}: give a positive number of seconds")
        self.address, self.timeout_s = default_address(address), timeout_s
        self.lost = 0
        self._socket: socket.socket | None = None
        self._bytes = bytearray()
        self._waiting: list[Entries] = []  # entries that came while an answer was waited for
        self._failure: BridgeError | None = None
        self._tag = 0
        self._wants_direct = direct
        self._direct: socket.socket | None = None
        self._number = -1  # of its descriptor
        self._ready: select.poll  # both sockets
        self._rest = b""  # of an entry that came by the queue's own
        self._passed: list[int] | None = None  # descriptors, while one may come

    def __enter__(self) -> Client:
        self.connect()
        return self

    def connect(self) -> None:
        """Connect and wait for HELLO; a ``with`` block does so on entry."""
        if self._socket is not None:
            raise RuntimeError("the client is connected already")
        self._bytes.clear()
        self._waiting.clear()
        self._failure = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(self.timeout_s)
            try:
                self._socket.connect(self.address)
            except OSError as error:
                raise _connect_error(self.address, error) from error
            first = self._until(lambda entries: np.ones(len(entries), bool), "said no HELLO")
            if first["kind"] != wire.HELLO:
                raise self._over("does not speak the protocol: give the socket of l4s-bridged or l4s-router")
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a controller that goes is a controller that has detached."""
        self._close_direct()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def connected(self) -> bool:
        """Whether the connection is open, as far as known."""
        return self._socket is not None

    @property
    def direct(self) -> bool:
        """Whether questions and answers use the queue's own socket, not the daemon's."""
        return self._direct is not None

    # -- commands

    def subscribe(self, rows: bool) -> None:
        """Ask for each finished row, or for none; then take them from `entries`."""
        self._send(wire.command(wire.SUBSCRIBE, int(rows)))

    def attach(self, decision_interval: int | None) -> Status:
        """Become the controller: get an ASK for each n-th packet; None: for none, where `set_law` is all it does."""
        if decision_interval is None:
            self._needs_law()
            return wire.read_status(self._ask(wire.ATTACH, 0))
        if not 1 <= decision_interval < 1 << 32:
            raise L4SError(f"decision_interval {decision_interval!r}: give a whole number of packets, 1 or more")
        status = wire.read_status(self._ask(wire.ATTACH, decision_interval))
        if self._wants_direct and self.hello.direct:
            self._open_direct()
        return status

    def _open_direct(self) -> None:
        self._close_direct()
        passed: list[int] = []
        self._passed = passed
        try:
            self._ask(wire.DIRECT)
        except BridgeError as error:
            if error.code != wire.E_NOT_OFFERED:
                raise
        finally:
            self._passed = None
            sockets = [socket.socket(fileno=each) for each in passed]
        if self._socket is None or not sockets:  # SSH, for one, forwards no descriptors
            return
        self._direct = sockets[-1]
        self._number = self._direct.fileno()
        self._direct.setblocking(False)
        self._rest = b""
        self._ready = select.poll()
        for each in (self._socket, self._direct):
            self._ready.register(each, select.POLLIN)

    def _close_direct(self) -> None:
        if self._direct is not None:
            self._direct.close()
            self._direct = None

    def detach(self) -> Status:
        """Stop controlling; the native law decides again."""
        self._close_direct()
        return wire.read_status(self._ask(wire.DETACH))

    def decide(self, sequence: int, queue: int, action: int, expires_us: int) -> None:
        """Answer an ASK: what to do with the next packet of its queue. Never answered; `status` counts refusals.

        Args:
            sequence: Of the ASK.
            queue: Of the ASK, 0 C or 1 L.
            action: 0 enqueue, 1 drop, 2 mark.
            expires_us: On the queue's clock: the ASK's `time_us` plus a lifetime.
        """
        tag = 0 if self._direct is None else time.monotonic_ns()  # there it tells when, for the latency in STATUS
        data = wire.command(wire.DECIDE, tag=tag, sequence=sequence, queue=queue, action=action, expires_us=expires_us)
        if self._direct is not None:
            try:
                if self._direct.send(data) == len(data):
                    return
            except BlockingIOError:
                return  # it takes none now, and will not miss one
            except OSError:
                pass
            self._close_direct()  # what is left is the way of everything else
        self._send(data)

    def status(self) -> Status:
        """Return the counters of the queue."""
        return wire.read_status(self._ask(wire.GET_STATUS))

    def configure_shield(
        self,
        *,
        c_us: int = 0,
        l_us: int = 0,
        drops: float = 1.0,
        window: int = 65536,
        hold_us: int = 1000,
        hits: float = 0.0,
    ) -> Status:
        """Make the bounds on what a controller may do tighter, for as long as this one controls.

        In force are the tighter ones of these and the operator's (`status().shield`); the defaults leave the
        operator's as they are.

        Args:
            c_us: Delay of queue C from which the native law takes it back, us; 0: no bound.
            l_us: The same of L.
            drops: Share of the packets that an agent may drop, 0 to 1 (1: all).
            window: Packets over which that share is counted.
            hold_us: Time for which the native law then decides, us.
            hits: Drops and marks of an agent, as a multiple of those of the native law; 0: no bound.
        """
        if not 0 <= drops <= 1:
            raise L4SError(f"drops={drops!r}: give a share from 0 to 1")
        args = (c_us, l_us, round(drops * 65536), window, hold_us, round(hits * 256))
        for name, value in zip(wire.SHIELD, args, strict=True):
            if not 0 <= value < 1 << 32:
                raise L4SError(f"{name}={value!r}: give a whole number from 0 to {(1 << 32) - 1}")
        return wire.read_status(self._ask(wire.CONFIGURE, *args))

    def set_law(
        self,
        *,
        target: float = 1.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        coupling: float = 1.0,
        threshold: float = 1.0,
        lifetime_ms: int = LAW_LIFETIME_MS,
    ) -> Law:
        """Set parameters of the native law for a while, as factors of the operator's (in steps of 1/65536).

        The law decides each packet. After the lifetime without another call, and when this controller goes, the
        operator's parameters hold again.

        Args:
            target: Of the target delay.
            alpha: Of the integral gain.
            beta: Of the proportional gain.
            coupling: Of the coupling k; the variant `linux` rounds k to whole numbers.
            threshold: Of the foot of L's ramp, or of its step.
            lifetime_ms: For how long, ms; a longer one is cut to the operator's, `hello.law_lifetime_ms`.

        Raises:
            BridgeError: Somebody else controls; or a factor is out of the operator's bounds, `hello.law` (code
                `wire.E_OUT_OF_BOUNDS`), and all stays as it was.
        """
        factors = (target, alpha, beta, coupling, threshold)
        for name, value in zip(wire.LAW_PARAMETERS, factors, strict=True):
            if not 0 < value < 1 << 16:
                raise L4SError(f"{name}={value!r}: give a factor above 0, below {1 << 16}")
        _check_lifetime(lifetime_ms)
        steps = (round(value * wire.FACTOR) for value in factors)
        return self._law(wire.SET_LAW, *steps, lifetime_ms)

    def set_probabilities(self, p_c: float, p_l: float, *, lifetime_ms: int = LAW_LIFETIME_MS) -> Law:
        """Set the probabilities by which packets are marked or dropped for a while, in place of the native law.

        Packets of L are decided as they leave, and marked also where L's own ramp or step asks for it. From
        p_c = 25 % on, packets that can be marked are dropped too, in both queues; what is left of L is marked. The
        shield's bounds are in force as for decisions (`configure_shield`): what it does not let pass is the native
        law's to decide. After the lifetime without another call, and when this controller goes, that law decides all.

        Args:
            p_c: Of C, 0 to 1.
            p_l: Of L, 0 to 1.
            lifetime_ms: For how long, ms; a longer one is cut to the operator's, `hello.law_lifetime_ms`.

        Raises:
            BridgeError: Somebody else controls; or a probability is above the operator's bound, `hello.prob_high` (code
                `wire.E_OUT_OF_BOUNDS`), and all stays as it was.
        """
        for name, value in (("p_c", p_c), ("p_l", p_l)):
            if not 0 <= value <= 1:
                raise L4SError(f"{name}={value!r}: give a probability from 0 to 1")
        _check_lifetime(lifetime_ms)
        if self.connected and not any(self.hello.prob_high):
            raise self._not_offered()
        return self._law(wire.SET_PROB, round(p_c * wire.CERTAIN), round(p_l * wire.CERTAIN), lifetime_ms)

    def law(self) -> Law:
        """Return what a controller has set that is in force, and counters."""
        return self._law(wire.GET_LAW)

    def _needs_law(self) -> None:
        if self.connected and not self.hello.law:
            raise self._not_offered()

    def _not_offered(self) -> BridgeError:
        return BridgeError(f"{self.address}: {_REMEDIES[wire.E_NOT_OFFERED]}", wire.E_NOT_OFFERED)

    def _law(self, kind: int, *args: int) -> Law:
        self._needs_law()
        return wire.read_law(self._ask(kind, *args))

    # -- entries

    def entries(self, timeout_s: float = 0.0) -> Entries:
        """What has come, in order: ROW, ASK, EVENT, HELLO of a queue started anew, and answers nobody waits for.

        Args:
            timeout_s: How long to wait where nothing has come yet.

        Returns:
            Entries (n,); none where the time is over.
        """
        deadline = time.monotonic() + timeout_s
        found = self._waiting
        self._waiting = []
        try:
            found.append(self._take(0.0 if found else timeout_s))
        except BridgeError as error:
            if not found:
                raise
            self._failure = error  # told by the next call
        while not any(map(len, found)) and (left := deadline - time.monotonic()) > 0:
            found.append(self._take(left))
        return wire.join(found)

    def asks(self, timeout_s: float = 0.0) -> bytes | None:
        """Bytes of the ASK entries that have come by the queue's own socket, in a fraction of the time of `entries`.

        Args:
            timeout_s: How long to wait where nothing has come yet.

        Returns:
            None where there is no such socket, or something else has come: take all from `entries`.
        """
        if self._direct is None or self._waiting or self._failure is not None:
            return None
        ready = self._ready.poll(math.ceil(1e3 * timeout_s))
        if len(ready) == 1 and ready[0][0] == self._number:
            return self._take_directly()
        return None if ready else b""

    def _ask(self, kind: int, *args: int) -> Any:
        """Send a command and wait for its answer; other entries are kept for `entries`."""
        self._tag += 1
        tag = self._tag
        self._send(wire.command(kind, *args, tag=tag))
        name = wire.COMMANDS[kind]

        def answers(entries: Entries) -> npt.NDArray[np.bool_]:
            kinds = entries["kind"]
            mine: npt.NDArray[np.bool_] = (entries["tag"] == tag) & np.isin(kinds, _ANSWERS)
            return mine

        found = self._until(answers, f"did not answer {name}")
        if found["kind"] == wire.ERROR:
            raise self._refused(found, name)
        return found

    def _until(self, which: Callable[[Entries], npt.NDArray[np.bool_]], fault: str) -> Any:
        """Return the first entry that `which` selects; all others are kept for `entries`."""
        deadline = time.monotonic() + self.timeout_s
        while (left := deadline - time.monotonic()) > 0:
            came = self._take(left)
            chosen = np.flatnonzero(which(came))
            others = np.arange(len(came)) != (chosen[0] if len(chosen) else -1)
            if others.any():
                self._waiting.append(wire.take(came, others))
            if len(chosen):
                return came[chosen[0]]
        raise self._over(f"{fault} in {self.timeout_s:g} s: is the server stopped or overrun?")

    # -- bytes

    def _over(self, text: str, code: int = 0) -> BridgeError:
        self.close()
        return BridgeError(f"{self.address}: {text}", code, closed=True)

    def _refused(self, entry: Any, name: str) -> BridgeError:
        code = int(entry["error"]["code"])
        said = wire.text_of(entry["error"]["text"]) or f"error {code}"
        text = f"{name} was refused ({said}): {_REMEDIES.get(code, 'see what the server says')}"
        return self._over(text, code) if code in _FATAL else BridgeError(f"{self.address}: {text}", code)

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            raise BridgeError(f"{self.address}: not connected: use `with Client(...)`", closed=True)
        try:
            self._socket.settimeout(self.timeout_s)
            self._socket.sendall(data)
        except TimeoutError as error:
            raise self._over(f"took no command in {self.timeout_s:g} s: is the server stopped or overrun?") from error
        except OSError as error:
            self._last_words()
            raise self._over(f"the server has closed the connection ({error.strerror}): {_START}") from error

    def _last_words(self) -> None:
        """Return the reason that the server gave before it closed the connection, if any."""
        try:
            while len(self._take(0.1)):
                pass
        except BridgeError as error:
            if error.code:
                raise

    def _take(self, timeout_s: float) -> Entries:
        """Return the complete entries (n,) that have arrived, checked; wait for the first byte up to a time."""
        if self._direct is None or self._failure is not None or self._socket is None:
            return self._take_from_server(timeout_s)
        parts = []
        for number, _ in self._ready.poll(max(math.ceil(1e3 * timeout_s), 0)):
            own = number == self._number
            parts.append(wire.decode(self._take_directly()) if own else self._take_from_server(0.0))
        return wire.join(parts)

    def _take_directly(self) -> bytes:
        assert self._direct is not None
        try:
            data = self._direct.recv(_FEW)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._close_direct()
        data = self._rest + data
        whole = len(data) // wire.ENTRY_SIZE * wire.ENTRY_SIZE
        data, self._rest = data[:whole], data[whole:]
        for head, lost in wire.HEADS(data):
            if head != wire.ASK_HEAD:
                raise self._over("sent what is no ask")
            self.lost += lost
        return data

    def _receive(self) -> bytes:
        assert self._socket is not None
        if self._passed is None:
            return self._socket.recv(_CHUNK)
        data, passed, _, _ = socket.recv_fds(self._socket, _CHUNK, 1)
        self._passed += passed
        return data

    def _take_from_server(self, timeout_s: float) -> Entries:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._socket is None:
            raise BridgeError(f"{self.address}: not connected: use `with Client(...)`", closed=True)
        fault: str | None = None
        try:
            self._socket.settimeout(max(timeout_s, 0.0))
            while len(self._bytes) < _MOST:
                data = self._receive()
                if not data:
                    fault = f"the server has closed the connection: {_START}"
                    break
                self._bytes += data
                self._socket.settimeout(0.0)
        except (BlockingIOError, TimeoutError):
            pass
        except OSError as error:
            fault = f"the connection was lost ({error.strerror}): {_START}"
        whole = len(self._bytes) // wire.ENTRY_SIZE * wire.ENTRY_SIZE
        if fault is not None and not whole:
            raise self._over(fault)
        found = wire.decode(bytes(memoryview(self._bytes)[:whole]))
        del self._bytes[:whole]
        return self._checked(found)

    def _checked(self, found: Entries) -> Entries:
        if not len(found):
            return found
        kinds = found["kind"]
        # A HELLO of another version may have another layout: it comes before the check of the rest.
        for hello in wire.select(found, wire.HELLO) if (kinds == wire.HELLO).any() else ():
            if (fault := wire.hello_fault(hello)) is not None:
                raise self._over(f"the server {fault}: {_REMEDIES[wire.E_MALFORMED]}")
            self.hello = wire.read_hello(hello)
        if ((found["magic"] != wire.MAGIC) | (found["version"] != wire.VERSION)).any():
            raise self._over("sent what is no entry: give the socket of l4s-bridged or l4s-router")
        self.lost += int(found["lost"].sum())
        for entry in wire.select(found, wire.ERROR) if (kinds == wire.ERROR).any() else ():
            code = int(entry["error"]["code"])
            if code in _FATAL and entry["tag"] == 0:
                kind = int(entry["error"]["command"])
                raise self._refused(entry, wire.COMMANDS[kind if kind < len(wire.COMMANDS) else 0])
        return found
