"""An agent in control: what it answers, what is counted, and that it lets go whatever happens."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import agents
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.errors import L4SError
from l4s_gym.live.control import Asks, Controller, Run, asks_of, shares
from tests.bridge.conftest import Serve
from tests.bridge.server import Server, log_of


class Spy:
    """An agent that keeps what it sees, and may do something at some decisions."""

    name, rule = "spy", "-"

    def __init__(self, at: int = -1, then: Any = None, last: int = -1) -> None:
        self.seen: list[Any] = []
        self.rewards: list[float] = []
        self._at, self.then, self._last = at, then, last
        self.controller: Controller | None = None

    def reset(self, n: int, seed: int) -> None:
        assert n == 1

    def act(self, obs: Any, rewards: Any) -> Any:
        assert obs.shape == (1, 8) and rewards.shape == (1,)
        self.seen.append(obs[0].copy())
        self.rewards.append(float(rewards[0]))
        if len(self.seen) == self._at:
            self.then()
        if len(self.seen) == self._last and self.controller is not None:
            self.controller.stop()
        return np.array([len(self.seen) % 3])

    def cost(self) -> dict[str, float]:
        return {}


def decides(server: Server, spy: Spy, **options: Any) -> Run:
    """A run that ends with the last decision of the spy."""
    spy.controller = Controller(Client(server.path), spy, **options)
    return spy.controller.run()


def test_an_agent_controls(serve: Serve) -> None:
    records = log_of(300)
    server = serve(records, patience_s=None)
    spy = Spy(at=50)
    controller = Controller(Client(server.path), spy, decision_interval=4, lifetime_ms=30, reward="power")
    spy.then = controller.stop
    done = controller.run()
    assert (done.agent, done.asks, done.answered, done.sessions, done.lost) == ("spy", 50, 50, 1, 0)
    asked = asks_of(wire.encode(wire.rows(records[0:200:4], wire.ASK)))
    np.testing.assert_array_equal(spy.seen, [ask.observation[0] for ask in asked])
    assert spy.rewards[0] == 0 and spy.rewards[1] == pytest.approx(4 * 1500 * 8 / server.rate_bps / 2)
    sequences, queues, actions, expiries = zip(*server.queue.decisions, strict=True)
    assert sequences == tuple(range(0, 200, 4))
    assert queues == tuple(records["queue_type"][0:200:4].tolist())
    assert actions == tuple(n % 3 for n in range(1, 51))
    assert expiries == tuple(1000 * n + 30_000 for n in range(0, 200, 4))
    assert done.shares is not None and server.queue.refused[0] == 50 and done.shares.by_agent in (48, 49, 50)
    assert done.shares.decided_by["agent"] > 0.1
    assert server.queue.interval == 0 and server.controller is None


def test_only_the_newest_asks_of_each_queue_are_answered(serve: Serve) -> None:
    entries = wire.rows(log_of(10), wire.ASK)
    entries["row"]["record"]["queue_type"] = [0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    came, asks = asks_of(wire.encode(entries)), Asks()
    asks.add(came)
    assert [ask.sequence for ask in iter(asks.take, None)] == [1, 5, 6, 7, 8, 9] and asks.skipped == 4
    asks.add(came[:3])
    asks.add(came[3:6])
    assert [ask.sequence for ask in iter(asks.take, None)] == [0, 1, 2, 3, 4, 5] and asks.skipped == 4
    server = serve(asks_at_once=40, patience_s=None)
    spy = Spy(last=8)
    done = decides(server, spy)
    assert done.asks > done.answered == len(spy.seen) > 0
    assert done.shares is not None and done.shares.refused["out_of_order"] == 0


def test_an_agent_that_is_slow_costs_decisions_alone(serve: Serve) -> None:
    server = serve(patience_s=0.001)

    def dawdle() -> None:
        while server.queue.sequence < 20:
            time.sleep(0.01)

    done = decides(server, Spy(at=1, then=dawdle, last=2))
    assert done.shares is not None and done.shares.packets > done.answered
    assert done.shares.decided_by["fallback"] > 0


def test_an_agent_that_breaks_lets_go(serve: Serve) -> None:
    server = serve()
    client = Client(server.path)

    def fail() -> None:
        raise ZeroDivisionError("agent")

    with pytest.raises(ZeroDivisionError):
        Controller(client, Spy(at=5, then=fail)).run()
    assert not client.connected and server.queue.interval == 0


def test_a_queue_started_anew(serve: Serve) -> None:
    server = serve(patience_s=None)

    def restart() -> None:
        with server.lock:
            server.restart()

    done = decides(server, Spy(at=20, then=restart, last=60), reward="balance")
    assert done.sessions == 2 and done.answered > 20
    assert done.shares is not None and 0 < done.shares.by_agent < done.shares.packets


def test_the_daemon_is_restarted(tmp_path: Path) -> None:
    path = tmp_path / "s"
    result: list[Any] = []
    first, second = Server(path, log_of(50), patience_s=None), Server(path, log_of(50), patience_s=None)
    controller = Controller(Client(path), agents.make("threshold"), patience_s=20)
    with first:
        thread = threading.Thread(target=lambda: result.append(controller.run()))
        thread.start()
        while not first.queue.decisions:
            time.sleep(0.01)
    with second:
        while not second.queue.decisions:
            time.sleep(0.01)
        controller.stop()
        thread.join()
    assert result[0].sessions == 2 and result[0].shares.by_agent > 0


def test_a_server_that_stays_away(tmp_path: Path) -> None:
    server = Server(tmp_path / "s", log_of(50), patience_s=None)
    spy = Spy(at=3, then=lambda: server.__exit__(None, None, None))
    server.__enter__()
    controller = Controller(Client(tmp_path / "s"), spy, patience_s=0.2)
    with pytest.raises(BridgeError, match="no such socket"):
        controller.run()
    assert controller.done.shares is None and controller.done.answered >= 2


def test_a_daemon_that_loses_its_queue(serve: Serve) -> None:
    server = serve(patience_s=None)

    def lose() -> None:
        with server.lock:
            server.queue.interval = 0
            if server.controller is not None:
                server.controller.controls = False
            server.controller = None

    done = decides(server, Spy(at=10, then=lose, last=30))
    assert done.sessions == 2 and done.answered > 10  # told by an ERROR that it is the controller no more


def test_the_time_is_the_clocks(serve: Serve) -> None:
    """A quarter of a second for each look at it: as many turns, however long they take."""
    looks = itertools.count(step=0.25)
    done = Controller(Client(serve(patience_s=None).path), Spy(), clock=lambda: next(looks)).run(2.0)
    assert 2.0 <= done.seconds <= 2.5 and done.answered <= 8 * 2


def test_busy(serve: Serve) -> None:
    server = serve()
    with Client(server.path) as other:
        other.attach(1)
        with pytest.raises(BridgeError, match="somebody else controls"):
            Controller(Client(server.path), Spy()).run()


def test_arguments() -> None:
    with pytest.raises(L4SError, match="lifetime_ms=0"):
        Controller(Client("x"), Spy(), lifetime_ms=0)
    with pytest.raises(L4SError, match="unknown reward"):
        Controller(Client("x"), Spy(), reward="no")


def test_shares_of_a_new_session() -> None:
    def status(**changes: Any) -> wire.Status:
        entry = wire.entry(wire.STATUS)
        for name, value in changes.items():
            entry["status"][name] = value
        return wire.read_status(entry[0])

    old = status(packets=(900, 100), agent=(10, 0), refused=[5] * 7)
    new = status(packets=(10, 10), agent=(4, 1), fallback=(0, 5), marks=(1, 1), trips=(0, 3), refused=[1] * 7)
    found = shares(old, new)
    assert found.packets == 20 and found.decided_by == {"kernel": 0.5, "agent": 0.25, "fallback": 0.25}
    assert found.by_agent == 5 and found.refused["expired"] == 1 and found.shield_trips == 3 and found.marks == 0.1
    assert shares(old, old).packets == 0


# -- the queue's own socket


@pytest.mark.parametrize(("offer", "wanted"), [("passed", True), ("passed", False), ("forgotten", True), ("", True)])
def test_asks_by_the_queues_own_socket(serve: Serve, offer: str, wanted: bool) -> None:
    server = serve(patience_s=None, direct=offer)
    spy = Spy(last=40)
    spy.controller = Controller(Client(server.path, direct=wanted), spy, decision_interval=3)
    done = spy.controller.run()
    used = offer == "passed" and wanted
    assert done.direct == used and done.answered == 40 and done.sessions == 1
    assert server.queue.refused[0] in (39, 40)  # the last one and DETACH take different ways
    assert server.asked_directly >= 30 if used else server.asked_directly == 0
    assert (wire.DIRECT in server.commands) == (bool(offer) and wanted)
    assert done.shares is not None and done.shares.by_agent >= 38 and server.queue.interval == 0


def test_the_queues_own_socket_ends(serve: Serve) -> None:
    """What is left is the way of everything else."""
    server = serve(patience_s=None, direct="passed")

    def end() -> None:
        with server.lock:
            assert server.controller is not None and server.controller.direct is not None
            server.controller.direct.shutdown(socket.SHUT_RDWR)

    done = decides(server, Spy(at=20, then=end, last=60))
    assert done.sessions == 1 and done.answered == 60
    assert 19 <= server.asked_directly < 40


def test_a_queue_started_anew_gives_another_socket(serve: Serve) -> None:
    server = serve(patience_s=None, direct="passed")

    def restart() -> None:
        with server.lock:
            server.restart()

    done = decides(server, Spy(at=20, then=restart, last=60))
    assert done.sessions == 2 and done.direct and server.commands.count(wire.DIRECT) == 2


def test_a_refusal_leaves_the_other_way(serve: Serve) -> None:
    server = serve(patience_s=None, direct="passed", errors={wire.DIRECT: (wire.E_NOT_OFFERED, "no more descriptors")})
    done = decides(server, Spy(last=10))
    assert done.answered == 10 and not done.direct
