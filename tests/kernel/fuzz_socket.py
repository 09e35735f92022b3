"""Fuzz the bridge daemon's socket, its device's end, and the router: malformed, truncated, oversized, mutated streams.

    python tests/kernel/fuzz_socket.py --seconds 600
    sudo python tests/kernel/fuzz_socket.py --seconds 600 --router    (the router instead, under packets)
    python tests/kernel/fuzz_socket.py --seconds 600 --socket PATH --connections 1    (a server that runs already)

Builds the daemon with sanitizers and starts it twice: once with a device that behaves, which checks every command
that reaches it, and once with a hostile one. Both get the same hostile clients, some of which get a controller's own
socket first and go on there. After each round a good client must be served as if nothing had happened; at the end no
sanitizer may have spoken, and nothing may have leaked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.kernel import device as wire  # noqa: E402
from tests.kernel.device import Client, Device, command  # noqa: E402

INTERESTING = (0, 1, 2, 3, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
PER_ROUND = 40


class Fault(AssertionError):
    """What the fuzzer looks for."""


def a_number(rng: random.Random, bits: int) -> int:
    """One that may hurt, or any."""
    return (rng.choice(INTERESTING) if rng.random() < 0.5 else rng.getrandbits(bits)) & ((1 << bits) - 1)


def a_command(rng: random.Random) -> bytes:
    """One that is well-formed in most cases."""
    kind = rng.choice((1, 1, 2, 2, 3, 4, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 10, rng.randrange(256)))
    shield = (*(rng.randrange(n) for n in (1000, 1000, 65537)), rng.randrange(16, 65537), 1000, rng.randrange(9))
    law = (*(rng.choice((65536, rng.randrange(1, 1 << 20))) for _ in range(5)), rng.choice((1, 100, a_number(rng, 32))))
    prob = (*(rng.choice((0, rng.randrange(1 << 31))) for _ in range(2)), law[-1])
    whole = {wire.CONFIGURE: shield, wire.SET_LAW: law, wire.SET_PROB: prob}
    args = whole.get(kind, (rng.choice((0, 1, 1, 1, 2, a_number(rng, 32))),))
    numbers = {"tag": a_number(rng, 64), "sequence": a_number(rng, 64), "expires_us": a_number(rng, 64)}
    return command(kind, *args, queue=rng.randrange(3), action=rng.randrange(4), **numbers)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """With bits flipped, and bytes taken out or put in."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(changed) + 1)
        what = rng.randrange(4)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[at:at] = rng.randbytes(rng.randrange(1, 80))
        elif what == 2:
            del changed[at : at + rng.randrange(1, 80)]
        elif at < len(changed):
            changed[at] = rng.choice((0, 1, 127, 128, 255))
    return bytes(changed)


def a_stream(rng: random.Random) -> bytes:
    """What a hostile client sends."""
    good = b"".join(a_command(rng) for _ in range(rng.randrange(1, 40)))
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(300))
    if kind < 0.4:
        return good
    if kind < 0.7:
        return mutated(rng, good)
    if kind < 0.8:
        return good[: rng.randrange(len(good))]
    if kind < 0.98:
        return command(rng.randrange(1, 10))[:4] + rng.randbytes(60)
    return rng.choice((good, rng.randbytes(64))) * rng.randrange(1, 500)  # oversized


def pass_sockets(link: socket.socket, data: bytes, count: int) -> None:
    """Send bytes, and with them one end each of so many pairs of sockets, the other end of which is closed."""
    with contextlib.ExitStack() as stack:
        pairs = [[stack.enter_context(each) for each in socket.socketpair()] for _ in range(count)]
        sent = socket.send_fds(link, [data], [pair[0].fileno() for pair in pairs]) if pairs else 0
        link.sendall(data[sent:])


class Quiet(threading.Thread):
    """A device in the background, which goes on until it is told to stop."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.device = Device(path)
        self.stopped = threading.Event()
        self.connections = 0
        self.entries = 0
        self.fault: BaseException | None = None

    def run(self) -> None:
        """Serve one connection of the daemon after another."""
        assert self.device.server is not None
        self.device.server.settimeout(0.1)
        while not self.stopped.is_set():
            try:
                link, _ = self.device.server.accept()
            except TimeoutError:
                continue
            self.connections += 1
            with link, contextlib.suppress(ConnectionError, TimeoutError):
                link.settimeout(2)
                try:
                    self.serve(link)
                except Fault as fault:
                    self.fault = fault
        self.device.close()

    def serve(self, link: socket.socket) -> None:
        """One connection, to its end."""
        raise NotImplementedError

    def end(self) -> None:
        """Stop, and say what was wrong."""
        self.stopped.set()
        self.join()
        if self.fault is not None:
            raise self.fault


class GoodDevice(Quiet):
    """Answers, sends rows and asks, and checks that nothing malformed comes through the daemon."""

    def serve(self, link: socket.socket) -> None:
        """Rows while somebody wants them; an answer to each command that has one."""
        link.sendall(wire.hello())
        rows, attached, sequence = False, False, 0
        buffer = bytearray()
        while not self.stopped.is_set():
            if wire.ready(link, 0.002):
                got = link.recv(1 << 16)
                if not got:
                    return
                buffer += got
            for at in range(0, len(buffer) - 63, 64):
                magic, version, kind, _, _, reserved, tag, _, _, *args = wire.COMMAND_FORM.unpack_from(buffer, at)
                if (magic, version, reserved) != (wire.MAGIC, 1, 0) or not 1 <= kind <= wire.SET_PROB:
                    raise Fault(f"the device got {buffer[at : at + 64].hex()}")
                if kind == wire.SUBSCRIBE:
                    if args[0] > 1 or rows == bool(args[0]):
                        raise Fault(f"the device got SUBSCRIBE {args[0]} when rows were {rows}")
                    rows = bool(args[0])
                if kind in (wire.DECIDE, wire.DIRECT, wire.SET_LAW, wire.SET_PROB) and not attached:
                    raise Fault(f"the device got command {kind} without ATTACH")
                attached = kind == wire.ATTACH or (attached and kind != wire.DETACH)
                if kind == wire.DIRECT:
                    pass_sockets(link, wire.status(tag, interval=1), 1)
                elif kind in (wire.SET_LAW, wire.GET_LAW, wire.SET_PROB):
                    link.sendall(wire.entry(wire.LAW, tag=tag))
                elif kind not in (wire.SUBSCRIBE, wire.DECIDE):
                    link.sendall(wire.status(tag, interval=int(attached)))
            del buffer[: len(buffer) // 64 * 64]
            if attached:
                link.sendall(wire.row(sequence, kind=wire.ASK))
            if rows:
                link.sendall(b"".join(wire.row(sequence + i) for i in range(20)))
                sequence += 20
                self.entries += 20


class HostileDevice(Quiet):
    """Entries that have a valid head and nothing else, answers to what was not asked, and garbage in the end."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        super().__init__(path)
        self.rng = rng

    def an_entry(self, tags: list[int]) -> bytes:
        """One that the daemon takes."""
        rng = self.rng
        kind = rng.choice((wire.ROW, wire.ROW, wire.ASK, wire.EVENT, wire.STATUS, wire.STATUS, wire.ERROR, wire.LAW))
        tag = rng.choice([*tags[-50:], a_number(rng, 64), rng.getrandbits(10) << 8 | rng.getrandbits(4)])
        lost = a_number(rng, 32) if rng.random() < 0.05 else 0
        return wire.entry(kind, rng.randbytes(176), lost=lost, tag=tag)

    def serve(self, link: socket.socket) -> None:
        """Begin well (in most cases), go on with what is random, end with what is malformed."""
        rng = self.rng
        start = wire.hello(session=rng.getrandbits(64), clock_us=a_number(rng, 64))
        link.sendall(start if rng.random() < 0.9 else mutated(rng, start))
        tags: list[int] = []
        deaf = rng.random() < 0.2
        for _ in range(rng.randrange(1, 200)):
            if not deaf and wire.ready(link, 0):
                got = link.recv(1 << 16)
                tags += [int.from_bytes(got[at + 8 : at + 16], "little") for at in range(0, len(got) - 63, 64)]
                if not got:
                    return
            data = b"".join(self.an_entry(tags) for _ in range(rng.randrange(1, 30)))
            pass_sockets(link, data, rng.choice((0, 0, 0, 1, 3)))
            self.entries += len(data) // wire.ENTRY
            if self.stopped.wait(0.001):
                return
        link.sendall(mutated(rng, wire.row(0) * 3) + rng.randbytes(rng.randrange(1, 1000)))


class Target:
    """A server under fire, and the connections that were left open to it."""

    def __init__(self, path: Path, rng: random.Random, connections: int) -> None:
        self.path, self.rng, self.connections = path, rng, connections
        self.open: list[socket.socket] = []
        self.streams = 0
        self.owned = 0
        self.bytes = 0

    def attack(self) -> None:
        """One stream on a connection of its own, which may stay open for a while."""
        while len(self.open) >= self.connections:
            self.open.pop(self.rng.randrange(len(self.open))).close()
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.open.append(link)
        link.settimeout(0.05)
        data = a_stream(self.rng)
        self.streams += 1
        with contextlib.suppress(ConnectionError, TimeoutError, BlockingIOError):
            link.connect(str(self.path))
            if self.rng.random() < 0.3 and (own := self.own(link)) is not None:
                link = own
            at = 0
            while at < len(data):
                size = self.rng.choice((1, 7, 63, 64, 65, 4096, 1 << 20))
                link.sendall(data[at : at + size])
                self.bytes += len(data[at : at + size])
                at += size
            if self.rng.random() < 0.3:
                link.shutdown(socket.SHUT_WR)
            if self.rng.random() < 0.4:
                link.recv(1 << 16)
        if self.rng.random() < 0.5:
            self.open.pop().close()

    def own(self, link: socket.socket) -> socket.socket | None:
        """The socket that a controller gets, if this one does."""
        link.sendall(command(wire.ATTACH, 1) + command(wire.DIRECT))
        for _ in range(3):
            _, passed, _, _ = socket.recv_fds(link, 1 << 16, 1)
            if passed:
                self.owned += 1
                self.open.append(socket.socket(fileno=passed[0]))
                self.open[-1].settimeout(0.05)
                return self.open[-1]
        return None

    def leave(self) -> None:
        """Close everything."""
        while self.open:
            self.open.pop().close()

    def serves(self, check: Callable[[Client], None]) -> None:
        """A good client must be served."""
        if self.connections == 1:
            self.leave()
        deadline = time.monotonic() + wire.PATIENCE_S
        while True:
            try:
                client = Client(self.path, greeted=False)
                with contextlib.closing(client):
                    first = client.get()
                    if first is not None and first.kind == wire.HELLO:
                        check(client)
                        return
            except OSError as error:  # not there yet, or the table is full
                if time.monotonic() > deadline:
                    raise Fault(f"{self.path} serves nobody any more: {error}") from None
            if time.monotonic() > deadline:
                raise Fault(f"{self.path} serves nobody any more")
            time.sleep(0.01)  # those who were there may not have left yet


def answers(client: Client) -> None:
    """GET_STATUS is answered."""
    client.send(command(wire.GET_STATUS, tag=5))
    while (found := client.get()) is not None:
        if found.kind in (wire.STATUS, wire.ERROR) and found.tag == 5:
            return
    raise Fault("a good client was closed")


def reads_rows(client: Client) -> None:
    """Rows come, and none is missing without a word."""
    answers(client)
    client.send(command(wire.SUBSCRIBE, 1))
    place = -1
    for _ in range(60):
        found, before = client.until(wire.ROW)
        lost = found.lost + sum(one.lost for one in before)
        if place >= 0 and found.sequence != place + lost:
            raise Fault(f"row {found.sequence} came where {place} + {lost} was due")
        place = found.sequence + 1


def greets(_client: Client) -> None:
    """HELLO came: all that can be asked for behind a hostile device."""


class Daemon:
    """The daemon with sanitizers, behind a device."""

    def __init__(self, program: Path, folder: Path, device: Quiet, check: Callable[[Client], None]) -> None:
        self.device, self.check, self.log = device, check, folder / "log"
        self.socket = folder / "bridge"
        arguments = ["--foreground", "--device", f"unix:{device.device.path}", "--socket", str(self.socket)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(program), *arguments, "--ring", "256", "--clients", "12"],
                stderr=log,
                env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1"},
            )
        device.start()

    def descriptors(self) -> int:
        """How many the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self) -> None:
        """Stop it, and look at what it leaves."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(wire.PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.device.end()
        log = self.log.read_text()
        if code != 0 or "Sanitizer" in log or "runtime error" in log or self.socket.exists():
            raise Fault(f"the daemon ended with {code}:\n{log[-6000:]}")


@contextlib.contextmanager
def daemons(program: Path, rng: random.Random) -> Iterator[list[Daemon]]:
    """One with a good device, one with a hostile one."""
    with tempfile.TemporaryDirectory(prefix="l4s-fuzz-") as name:
        folders = [Path(name) / "good", Path(name) / "hostile"]
        for folder in folders:
            folder.mkdir()
        running = [
            Daemon(program, folders[0], GoodDevice(folders[0] / "device"), reads_rows),
            Daemon(program, folders[1], HostileDevice(folders[1] / "device", rng), greets),
        ]
        try:
            yield running
        finally:
            with contextlib.ExitStack() as last:
                for daemon in running:
                    last.callback(daemon.end)


def fuzz(targets: list[tuple[Target, Callable[[Client], None]]], seconds: float) -> None:
    """Rounds of attacks, each followed by a good client, until the time is over."""
    deadline = time.monotonic() + seconds
    for target, check in targets:
        target.serves(check)
    while time.monotonic() < deadline:
        for target, check in targets:
            for _ in range(PER_ROUND):
                target.attack()
            target.serves(check)
    for target, _ in targets:
        target.leave()


def settled(count: Callable[[], int], most: int) -> int:
    """Open descriptors, when there are `most` or after some time: connections that are to be closed have a second."""
    limit = time.monotonic() + wire.PATIENCE_S
    while (found := count()) > most and time.monotonic() < limit:
        time.sleep(0.1)
    return found


def fuzz_daemons(program: Path, rng: random.Random, seconds: float, connections: int) -> str:
    """Both daemons; what was done."""
    with daemons(program, rng) as running:
        targets = [(Target(one.socket, rng, connections), one.check) for one in running]
        for target, check in targets:
            target.serves(check)
        before = [one.descriptors() for one in running]
        fuzz(targets, seconds)
        for target, check in targets:
            target.serves(check)
        good, hostile = running
        after = [settled(one.descriptors, then + 2) for one, then in zip(running, before, strict=True)]
        if good.device.connections != 1:
            raise Fault(f"clients made the daemon lose its device {good.device.connections - 1} times")
        if any(now > then + 2 for now, then in zip(after, before, strict=True)):
            raise Fault(f"descriptors leak: {before} before, {after} after")
        streams, size = sum(t.streams for t, _ in targets), sum(t.bytes for t, _ in targets)
        owned = sum(t.owned for t, _ in targets)
        entries = hostile.device.entries
        parts = f"{hostile.device.connections} connections of a hostile device with {entries} entries"
    return f"{streams} streams of clients ({size / 1e6:.1f} MB, {owned} on a socket of their own), {parts}"


def fuzz_router(rng: random.Random, seconds: float) -> str:
    """The router, between two network namespaces and under packets; what was done."""
    from tests.kernel.netns import Bed

    with tempfile.TemporaryDirectory(prefix="l4s-fuzz-") as name:
        config = {"variant": 1, "rate_bps": 8_000_000, "delay default": 1_000_000, "ring": 256}
        with Bed(build("l4s-router", "l4s-traffic").parent, Path(name), config) as bed:
            assert bed.router is not None
            bed.sink()
            bed.send("blast", seconds + 600.0, "--pps", "500", "--size", "200", "--ecn", "ect1")
            target = Target(bed.socket, rng, 1)
            folder = Path(f"/proc/{bed.router.pid}/fd")
            target.serves(reads_rows)
            before = len(list(folder.iterdir()))
            delivered = bed.stats()["forward"]["delivered"]
            fuzz([(target, reads_rows)], seconds)
            target.serves(reads_rows)
            found = bed.stats()
            after = settled(lambda: len(list(folder.iterdir())), before + 2)
        if after > before + 2 or found["forward"]["delivered"] < delivered + 100 * seconds:
            raise Fault(f"descriptors {before} before, {after} after; {found['forward']}")
    return f"{target.streams} streams ({target.bytes / 1e6:.1f} MB), {target.owned} of them on a socket of their own"


def build(*programs: str) -> Path:
    """The first of these programs with sanitizers, built now."""
    targets = [f"build-asan/{program}" for program in programs]
    subprocess.run(["make", "-s", "-C", str(ROOT / "kernel"), "SAN=1", *targets], check=True)
    return ROOT / "kernel" / targets[0]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None, help="of the streams (timing stays what it is)")
    parser.add_argument("--program", type=Path, default=None, help="a built l4s-bridged instead of a new one")
    parser.add_argument("--socket", type=Path, default=None, help="a running server instead of a daemon")
    parser.add_argument("--router", action="store_true", help="the router instead of a daemon (Linux, root)")
    parser.add_argument("--connections", type=int, default=8, help="open at a time")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    rng = random.Random(seed)
    print(f"seed {seed}", flush=True)
    try:
        if options.socket is not None:
            target = Target(options.socket, rng, options.connections)
            fuzz([(target, answers)], options.seconds)
            done = f"{target.streams} streams of clients ({target.bytes / 1e6:.1f} MB)"
        elif options.router:
            done = fuzz_router(rng, options.seconds)
        else:
            done = fuzz_daemons(options.program or build("l4s-bridged"), rng, options.seconds, options.connections)
    except AssertionError as fault:
        print(f"FAULT: {fault}")
        return 1
    print(f"{done}: no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
