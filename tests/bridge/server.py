"""A live queue made of logged rows, behind a Unix socket: what a router or the daemon would be to a client."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from l4s_gym.bridge import wire
from l4s_gym.schema import ENQUEUE, MARK, RECORD

RATE_BPS = 8_000_000
ACCEPTED, DETACHED, MALFORMED, EXPIRED, OUT_OF_ORDER, UNASKED, SHIELDED = range(7)


class Queue:
    """Counters and decisions, by the rules of `l4s_core.h`; the rows are those of a log, over and over.

    Of each row only who decided, and what, follows from the answers.
    """

    def __init__(self, records: Any, session: int = 1) -> None:
        self.log, self.session = records, session
        self.at = self.sequence = self.clock_us = 0
        self.interval = self.until_ask = 0
        self.totals = np.zeros(4, np.uint64)  # served, power, delay of C and L
        self.counts = {name: [0, 0] for name in ("packets", "agent", "fallback", "drops", "marks")}
        self.refused = [0] * 7
        self.asked = [-1, -1]
        self.waits = [False, False]
        self.answers = [deque[tuple[int, int]](maxlen=wire.ANSWERS) for _ in range(2)]
        self.answered = [-1, -1]
        self.decisions: list[tuple[int, int, int, int]] = []
        self.shield: list[int] = []
        self.laws: list[list[int]] = []  # arguments of SET_LAW
        self.probabilities: list[list[int]] = []  # of SET_PROB
        self.bytes = [0, 0]
        self._turns = 0

    def next(self) -> tuple[Any, Any | None]:
        """The next finished row, and the ask about it if it is its turn: entries (1,)."""
        if self.at == len(self.log):
            self.at, self._turns = 0, self._turns + 1
        record = self.log[self.at : self.at + 1].copy()
        self.at += 1
        span_us = int(self.log["time_us"][-1]) + 1000
        record["time_us"] += self._turns * span_us
        record["sequence"] = self.sequence
        self.sequence += 1
        self.clock_us = int(record["time_us"][0])
        queue, length = int(record["queue_type"][0]), int(record["packet_length"][0])
        ask = None
        if self.interval:
            self.until_ask -= 1
            if self.until_ask <= 0:
                self.until_ask = self.interval
                before = record.copy()
                before["action"], before["applied_action"], before["accumulated_probability"] = ENQUEUE, ENQUEUE, 0
                ask = self._entry(before, wire.ASK)
        self._decide(record, queue)
        if ask is not None:
            self.asked[queue], self.waits[queue] = self.sequence - 1, True
        self.counts["packets"][queue] += 1
        self.bytes[queue] += length
        self.counts["marks"][queue] += int(record["applied_action"][0] == MARK)
        row = self._entry(record, wire.ROW)
        self.totals += np.array([length, length << 15, 1000 * (queue == 0), 500 * (queue == 1)], np.uint64)
        return row, ask

    def _decide(self, record: Any, queue: int) -> None:
        answer = None
        while self.answers[queue] and answer is None:
            first = self.answers[queue].popleft()
            answer = first if first[1] > self.clock_us else None
        record["decided_by"] = 0
        if answer is not None:
            record["decided_by"], record["action"], record["applied_action"] = 1, answer[0], answer[0]
            self.counts["agent"][queue] += 1
        elif self.waits[queue] and self.interval and self.until_ask == self.interval:
            record["decided_by"] = 2
            self.counts["fallback"][queue] += 1

    def _entry(self, record: Any, kind: int) -> Any:
        entry = wire.rows(record, kind)
        for name, total in zip(("served_bytes", "power_bytes", "delay_c_ns", "delay_l_ns"), self.totals, strict=True):
            entry["row"][name] = total
        return entry

    def decide(self, command: Any) -> None:
        sequence, queue, action = int(command["sequence"]), int(command["queue"]), int(command["action"])
        expires_us = int(command["expires_us"])
        self.decisions.append((sequence, queue, action, expires_us))
        reason = ACCEPTED
        if not self.interval:
            reason = DETACHED
        elif queue > 1 or action > 2:
            reason = MALFORMED
        elif expires_us <= self.clock_us:
            reason = EXPIRED
        elif sequence <= self.answered[queue]:
            reason = OUT_OF_ORDER
        elif sequence > self.asked[queue]:
            reason = UNASKED
        self.refused[reason] += 1
        if reason == ACCEPTED:
            self.answered[queue] = sequence
            self.answers[queue].append((action, expires_us))
            self.waits[queue] = False

    def law(self) -> Any:
        """What GET_LAW says: each time a hundred packets have come and gone, each 2 ms after it came."""
        for _ in range(100):
            self.next()
        entry = wire.entry(wire.LAW)
        body = entry["law"]
        body["clock_us"], body["rate_bps"] = self.clock_us, RATE_BPS
        for name in ("offered", "left"):
            body[name] = self.counts["packets"]
        body["offered_bytes"], body["marks"] = self.bytes, self.counts["marks"]
        body["left_ns"] = [2_000_000 * count for count in self.counts["packets"]]
        for name, total in zip(("served_bytes", "power_bytes", "delay_c_ns", "delay_l_ns"), self.totals, strict=True):
            body[name] = total
        body["queued_bytes"], body["prob"], body["sets"] = (15_000, 1000), 1 << 30, len(self.laws + self.probabilities)
        body["factor"] = self.laws[-1][:5] if self.laws else [wire.FACTOR] * 5
        body["set_prob"] = self.probabilities[-1][:2] if self.probabilities else [wire.NO_PROB] * 2
        body["flows"] = 3, 1
        return entry

    def status(self, controls: bool) -> Any:
        entry = wire.entry(wire.STATUS)
        body = entry["status"]
        body["clock_us"], body["interval"], body["controls"] = self.clock_us, self.interval, controls
        for name, pair in self.counts.items():
            body[name] = pair
        body["refused"], body["latency_p50_us"], body["latency_p99_us"] = [0, *self.refused[1:]], 40, 90
        return entry


class _Connection(threading.Thread):
    def __init__(self, server: Server, peer: socket.socket) -> None:
        super().__init__(daemon=True)
        self.server, self.peer = server, peer
        self.rows = self.controls = False
        self._unanswered = 0
        self._bytes: dict[socket.socket, bytes] = {peer: b""}
        self._session = 0
        self.direct: socket.socket | None = None

    def run(self) -> None:
        try:
            with self.peer:
                self.peer.settimeout(10.0)
                first = self.server.hello()
                self._session = self.server.queue.session
                if first:
                    self.peer.sendall(first)
                while not self.server.over.is_set() and self._turn():
                    pass
        except (OSError, ConnectionError):
            pass
        finally:
            self._end_direct()
            if self.controls:
                self.server.controller, self.server.queue.interval = None, 0

    def _turn(self) -> bool:
        waits = not self.rows and not (self.asked and self._unanswered < self.server.asks_at_once)
        wait_s = 0.02 if waits or self.server.stalled.is_set() else 0.0
        ready = select.select(list(self._bytes), [], [], wait_s)[0]
        for link in ready:
            if link not in self._bytes:
                continue
            data = b""
            with suppress(ConnectionResetError):  # who closed it had not read all asks
                data = link.recv(65536)
            if not data and link is self.peer:
                return False
            if not data:
                self._end_direct()
                continue
            self._bytes[link] += data
            while len(self._bytes.get(link, b"")) >= wire.COMMAND_SIZE:
                command = np.frombuffer(self._bytes[link][: wire.COMMAND_SIZE], wire.COMMAND)[0]
                self._bytes[link] = self._bytes[link][wire.COMMAND_SIZE :]
                assert link is self.peer or command["kind"] == wire.DECIDE
                if not self._take(command):
                    return False
        if not ready and wait_s and self.server.patience_s is not None and self._unanswered:
            time.sleep(self.server.patience_s)  # an agent that does not answer: traffic goes on
            self._unanswered = 0
        if self.server.stalled.is_set():
            return True
        with self.server.lock:
            return self._stream()

    @property
    def asked(self) -> bool:
        return self.controls and self.server.queue.interval > 0

    def _end_direct(self) -> None:
        if self.direct is not None:
            self._bytes.pop(self.direct, None)
            self.direct.close()
            self.direct = None

    def _open_direct(self, answer: Any) -> None:
        self._end_direct()
        self.direct, theirs = socket.socketpair()
        self.direct.settimeout(10.0)
        self._bytes[self.direct] = b""
        passed = [theirs.fileno()] if self.server.direct == "passed" else []
        socket.send_fds(self.peer, [answer.tobytes()], passed)
        theirs.close()
        if not passed:
            self._end_direct()

    def _stream(self) -> bool:
        server = self.server
        if server.queue.session != self._session:
            self._session = server.queue.session
            self.peer.sendall(server.hello())
            self.controls = False
            self._end_direct()
        if server.limit is not None and server.queue.sequence >= server.limit:
            server.at_limit(server)
            return not server.closes.is_set()
        out = []
        for _ in range(server.batch):
            if not self.rows and not (self.asked and self._unanswered < server.asks_at_once):
                break
            row, ask = server.queue.next()
            if ask is not None and self.controls:
                if self.direct is None:
                    out.append(ask)
                else:
                    with suppress(BrokenPipeError):  # closed a moment ago: the next turn sees it
                        self.direct.sendall(ask.tobytes())
                        server.asked_directly += 1
                self._unanswered += 1
            if self.rows:
                server.pending.append(row)
                if len(server.pending) > server.disorder:
                    pick = int(server.rng.integers(len(server.pending))) if server.disorder else 0
                    server.pending.rotate(-pick)
                    out.append(server.pending.popleft())
                    server.pending.rotate(pick)
            if self.controls and self._unanswered >= server.asks_at_once:
                break
        if out:
            data = b"".join(entry.tobytes() for entry in out)
            if server.fragments:  # cut anywhere
                for start in range(0, len(data), 1000):
                    self.peer.sendall(data[start : start + 1000])
            else:
                self.peer.sendall(data)
        return True

    def _take(self, command: Any) -> bool:
        server, kind, tag = self.server, int(command["kind"]), int(command["tag"])
        server.commands.append(kind)
        with server.lock:
            if kind in server.errors:
                code, text = server.errors[kind]
                return self._error(command, code, text)
            if kind == wire.SUBSCRIBE:
                self.rows = bool(command["args"][0])
                return True
            if kind == wire.DECIDE:
                self._unanswered = 0
                if not self.controls:
                    return self._error(command, wire.E_NOT_CONTROLLER, "attach first")
                server.queue.decide(command)
                return True
            if kind == wire.ATTACH:
                if server.controller not in (None, self):
                    return self._error(command, wire.E_BUSY, "somebody else controls")
                server.controller, self.controls, self._unanswered = self, True, 0
                server.queue.interval, server.queue.until_ask = int(command["args"][0]), 1
            elif kind == wire.DETACH:
                if not self.controls:
                    return self._error(command, wire.E_NOT_CONTROLLER, "attach first")
                server.controller, self.controls, server.queue.interval = None, False, 0
                self._end_direct()
            elif kind == wire.CONFIGURE:
                server.queue.shield = command["args"][:6].tolist()
            elif kind == wire.SET_LAW:
                if not self.controls:
                    return self._error(command, wire.E_NOT_CONTROLLER, "attach first")
                server.queue.laws.append(command["args"][:6].tolist())
            elif kind == wire.SET_PROB:
                server.queue.probabilities.append(command["args"][:3].tolist())
            gives_law = kind in (wire.SET_LAW, wire.GET_LAW, wire.SET_PROB)
            answer = server.queue.law() if gives_law else server.queue.status(self.controls)
            answer["tag"] = tag
            if kind == wire.DIRECT:
                self._open_direct(answer)
                return True
            self.peer.sendall(answer.tobytes())
        return True

    def _error(self, command: Any, code: int, text: str) -> bool:
        entry = wire.entry(wire.ERROR, tag=int(command["tag"]))
        entry["error"]["code"], entry["error"]["text"] = code, text.encode()
        entry["error"]["command"] = command["kind"]
        self.peer.sendall(entry.tobytes())
        return code not in (wire.E_MALFORMED, wire.E_REFUSED, wire.E_TOO_MANY)


class Server:
    """Listens until the ``with`` block ends.

    Attributes:
        queue: What is behind the socket; `restart` puts another one there.
        asks_at_once: An agent is asked so often before it must answer.
        patience_s: Traffic goes on after so long without an answer; None: it waits.
        batch: Packets in one go.
        disorder: Rows that are held back at random, as where the law decides at departure.
        limit: At this sequence number `at_limit` is called (for ever).
        errors: Code and text with which commands of a kind are answered.
        fragments: Cut what is sent anywhere.
        law: Bounds of SET_LAW.
        prob_high: Bounds of SET_PROB.
        law_values: Parameters of the law.
        direct: Offer DIRECT: "passed", or "forgotten" as by SSH, which forwards no descriptor.
    """

    def __init__(self, path: Path, records: Any, **options: Any) -> None:
        self.path, self.records = path, records
        self.queue = Queue(records)
        self.lock, self.over = threading.Lock(), threading.Event()
        self.stalled, self.closes = threading.Event(), threading.Event()
        self.controller: _Connection | None = None
        self.commands: list[int] = []
        self.pending: deque[Any] = deque()
        self.rng = np.random.default_rng(0)
        self.rate_bps, self.variant = RATE_BPS, wire.VARIANTS[0]
        self.asks_at_once, self.patience_s, self.batch, self.disorder = 1, 0.0, 64, 0
        self.limit: int | None = None
        self.at_limit: Callable[[Server], None] = lambda server: None
        self.errors: dict[int, tuple[int, str]] = {}
        self.fragments = False
        self.law = dict(zip(wire.LAW_PARAMETERS, [(0.25, 4.0)] * 3 + [(0.5, 8.0), (1.0, 1.0)], strict=True))
        self.law_lifetime_ms = 1000
        self.prob_high = (1.0, 1.0)
        self.law_values: dict[str, int] = {}
        self.direct, self.asked_directly = "", 0
        self.first: bytes | None = None
        for name, value in options.items():
            assert hasattr(self, name)
            setattr(self, name, value)

    def hello(self) -> bytes:
        if self.first is not None:
            return self.first
        numbers = self.queue.session, self.queue.clock_us, self.rate_bps
        bounds: tuple[Any, ...] = (self.law, self.law_lifetime_ms, self.prob_high, self.law_values)
        hello = wire.Hello(*numbers, self.variant, 4096, "test", bool(self.direct), *bounds)
        return wire.hello_entry(hello).tobytes()

    def restart(self) -> None:
        """The queue is started anew: other numbers, and nobody controls."""
        self.queue = Queue(self.records, self.queue.session + 1)
        self.controller = None
        self.pending.clear()

    def __enter__(self) -> Server:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self._socket.listen()
        self._socket.settimeout(0.02)
        self._connections: list[_Connection] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                peer, _ = self._socket.accept()
            except TimeoutError:
                continue
            connection = _Connection(self, peer)
            self._connections.append(connection)
            connection.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._thread.join()
        for connection in self._connections:
            with suppress(OSError):
                connection.peer.shutdown(socket.SHUT_RDWR)
            connection.join()
        self._socket.close()
        self.path.unlink()


def log_of(count: int, seed: int = 0) -> Any:
    """Records (count,) that are valid and told apart by their numbers alone."""
    rng = np.random.default_rng(seed)
    records = np.zeros(count, RECORD)
    records["sequence"] = np.arange(count)
    records["time_us"] = 1000 * np.arange(count)
    records["queue_type"] = rng.integers(0, 2, count)
    records["packet_length"], records["tupdate"], records["qdelay_ref"] = 1500, 15_000, 15_000
    records["current_queue_delay"] = rng.integers(0, 30_000, count)
    records["length_in_bytes"] = rng.integers(0, 50, count) * 1500
    records["accumulated_probability_before"] = rng.integers(0, 1 << 30, count)
    records["interval_drops"] = rng.integers(0, 4, count)
    records["ecn"] = np.where(records["queue_type"] == 1, 1, 2)
    return records
