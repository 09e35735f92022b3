"""The client: deadlines on everything, entries whole and in order, errors that say what to do."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.bridge import wire
from l4s_gym.bridge.client import ADDRESS, BridgeError, Client, default_address
from l4s_gym.errors import L4SError
from tests.bridge.conftest import Serve
from tests.bridge.server import log_of


def gather(client: Client, count: int, kind: int = wire.ROW) -> Any:
    """The first entries of a kind, within ten seconds."""
    parts: list[Any] = []
    deadline = time.monotonic() + 10
    while sum(len(part) for part in parts) < count:
        assert time.monotonic() < deadline
        parts.append(wire.select(client.entries(0.2), kind))
    return wire.join(parts)


def test_rows(serve: Serve) -> None:
    records = log_of(500)
    server = serve(records, fragments=True)
    with Client(server.path) as client:
        assert client.hello.rate_bps == server.rate_bps and client.hello.name == "test"
        client.subscribe(True)
        rows = wire.records_of(gather(client, 2000))
        client.subscribe(False)
    assert rows["sequence"][:2000].tolist() == list(range(2000))
    np.testing.assert_array_equal(rows["current_queue_delay"][:500], records["current_queue_delay"])
    assert client.lost == 0 and not client.connected


def test_control(serve: Serve) -> None:
    server = serve(patience_s=None)
    with Client(server.path) as client:
        assert not client.status().controls
        status = client.attach(10)
        assert status.controls and status.interval == 10
        for _ in range(5):
            record = gather(client, 1, wire.ASK)[0]["row"]["record"]
            client.decide(int(record["sequence"]), int(record["queue_type"]), 2, int(record["time_us"]) + 50_000)
        status = client.status()
        assert server.queue.refused[0] == 5 and sum(status.refused.values()) == 0
        client.decide(0, 0, 9, 1)
        shielded = client.configure_shield(c_us=1, l_us=2, drops=0.5, window=64, hold_us=9)
        assert shielded.refused["malformed"] == 1
        assert server.queue.shield == [1, 2, 32768, 64, 9, 0]
        assert not client.detach().controls
    assert sum(server.queue.counts["agent"]) >= 4


def test_answers_do_not_disturb_the_order_of_entries(serve: Serve) -> None:
    server = serve()
    with Client(server.path) as client:
        client.subscribe(True)
        for _ in range(20):
            client.status()
        sequence = wire.records_of(gather(client, 3000))["sequence"]
    assert sequence.tolist() == list(range(len(sequence)))


def test_lost_entries_are_counted(tmp_path: Path) -> None:
    sent = wire.rows(log_of(4))
    sent["lost"][2] = 17
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as peer:
                peer.sendall(wire.hello_entry(wire.Hello(1, 0, 0, "testbed", 1, "x")).tobytes() + sent.tobytes())

        thread = threading.Thread(target=answer)
        thread.start()
        with Client(tmp_path / "s") as client:
            assert len(gather(client, 4)) == 4 and client.lost == 17
            with pytest.raises(BridgeError, match="has closed the connection"):
                client.entries(1.0)
            assert not client.connected
        thread.join()


# -- what can be wrong


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="no such socket: start it: `sudo l4s-gym live up`"), Client(tmp_path / "no"):
        pass
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "old"))
    with pytest.raises(BridgeError, match="nobody listens: start it"), Client(tmp_path / "old"):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(BridgeError, match="nobody listens"), Client(tmp_path / "file"):
        pass
    with pytest.raises(BridgeError, match="give the path of a Unix socket"), Client("x" * 200):
        pass


def test_a_server_that_says_nothing(serve: Serve) -> None:
    server = serve(first=b"")
    with pytest.raises(BridgeError, match=r"said no HELLO in 0\.3 s"), Client(server.path, timeout_s=0.3):
        pass


@pytest.mark.parametrize("first", [b"HTTP/1.1 400 Bad Request\r\n" * 20, wire.rows(log_of(1)).tobytes()])
def test_another_kind_of_server(serve: Serve, first: bytes) -> None:
    server = serve(first=first)
    with pytest.raises(BridgeError, match="give the socket of l4s-bridged"), Client(server.path):
        pass


@pytest.mark.parametrize(("name", "value"), [("version", 2), ("record_size", 1), ("layout", 1)])
def test_another_version(serve: Serve, name: str, value: int) -> None:
    entry = wire.hello_entry(wire.Hello(1, 0, 0, "testbed", 1, "x"))
    (entry if name == "version" else entry["hello"])[name] = value
    server = serve(first=entry.tobytes())
    with pytest.raises(BridgeError, match="install those that belong together"), Client(server.path):
        pass


def test_garbage_in_the_middle(serve: Serve) -> None:
    first = wire.hello_entry(wire.Hello(1, 0, 0, "testbed", 1, "x")).tobytes() + bytes(range(192))
    client = Client(serve(first=first).path)
    with pytest.raises(BridgeError, match="sent what is no entry") as caught, client:
        gather(client, 1)
    assert caught.value.closed and not client.connected


def test_a_server_that_stalls(serve: Serve) -> None:
    server = serve()
    with Client(server.path, timeout_s=0.3) as client:
        server.lock.acquire()
        try:
            with pytest.raises(BridgeError, match=r"did not answer GET_STATUS in 0\.3 s"):
                client.status()
            with pytest.raises(BridgeError, match="not connected"):
                client.status()
        finally:
            server.lock.release()


def test_a_server_that_takes_no_commands(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with socket.socket(socket.AF_UNIX) as never:
            never.connect(str(tmp_path / "s"))
        peers: list[socket.socket] = []

        def accept() -> None:
            for _ in range(2):
                peers.append(listener.accept()[0])
            peers[1].sendall(wire.hello_entry(wire.Hello(1, 0, 0, "testbed", 1, "x")).tobytes())

        thread = threading.Thread(target=accept)
        thread.start()
        with Client(tmp_path / "s", timeout_s=0.3) as client, pytest.raises(BridgeError, match="took no command"):
            while True:
                client.decide(1, 0, 0, 1)
        thread.join()
        for peer in peers:
            peer.close()


def test_two_controllers(serve: Serve) -> None:
    server = serve()
    with Client(server.path) as first, Client(server.path) as second:
        first.attach(1)
        with pytest.raises(BridgeError, match="somebody else controls the queue: end that") as caught:
            second.attach(1)
        assert caught.value.code == wire.E_BUSY and not caught.value.closed
        assert second.status().interval == 1  # reading is free
        first.detach()
        assert second.attach(3).interval == 3


@pytest.mark.parametrize(
    ("code", "remedy", "closed"),
    [
        (wire.E_MALFORMED, "install those that belong together", True),
        (wire.E_NOT_CONTROLLER, "attach first", False),
        (wire.E_REFUSED, "run as the user", True),
        (wire.E_NO_DEVICE, "start the router", False),
        (wire.E_TOO_MANY, "end one", True),
        (99, "see what the server says", False),
    ],
)
def test_refusals(serve: Serve, code: int, remedy: str, closed: bool) -> None:
    server = serve(errors={wire.ATTACH: (code, "because")})
    with Client(server.path) as client:
        with pytest.raises(BridgeError, match=rf"ATTACH was refused \(because\): .*{remedy}") as caught:
            client.attach(1)
        assert (caught.value.code, caught.value.closed, client.connected) == (code, closed, not closed)


def test_refused_at_the_door(serve: Serve) -> None:
    error = wire.entry(wire.ERROR)
    error["error"]["code"], error["error"]["text"] = wire.E_REFUSED, b"user 1000 may not"
    server = serve(first=error.tobytes())
    with pytest.raises(BridgeError, match=r"user 1000 may not.*run as the user"), Client(server.path):
        pass


def test_a_queue_started_anew(serve: Serve) -> None:
    server = serve()
    with Client(server.path) as client:
        client.subscribe(True)
        gather(client, 100)
        server.restart()
        hello = gather(client, 1, wire.HELLO)
        assert int(hello["hello"]["session"][0]) == client.hello.session == 2


def test_arguments() -> None:
    with pytest.raises(L4SError, match="timeout_s"):
        Client("x", timeout_s=0)
    client = Client("x")
    with pytest.raises(L4SError, match="interval 0"):
        client.attach(0)
    with pytest.raises(L4SError, match="drops=2"):
        client.configure_shield(c_us=1, l_us=1, drops=2)
    with pytest.raises(L4SError, match="shield_c_us=-1"):
        client.configure_shield(c_us=-1, l_us=1, drops=1)
    with pytest.raises(BridgeError, match="not connected"):
        client.entries()


def test_default_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("L4S_GYM_SOCKET", raising=False)
    assert default_address() == ADDRESS and default_address("here") == "here"
    monkeypatch.setenv("L4S_GYM_SOCKET", "/there")
    assert default_address() == "/there" and Client().address == "/there"
