"""The Linux router: real packets of this kernel through the core, and its socket."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.bridge.model import Model
from l4s_gym.schema import CE, ECT_0, ECT_1, NOT_ECT

from . import netns
from .conftest import Build
from .models import QUEUE, constant, leaf, split
from .netns import (
    ASK,
    ATTACH,
    CONFIGURE,
    DECIDE,
    DETACH,
    DIRECT,
    ERROR,
    EVENT,
    GET_STATUS,
    HELLO,
    RECEIVER,
    RECEIVER6,
    ROW,
    SHIELD,
    STATUS,
    SUBSCRIBE,
    Bed,
    Device,
    Entries,
    body,
)

# Real packets in real time, on cores that others use too: a test that fails is tried twice more.
pytestmark = pytest.mark.flaky(reruns=2, reruns_delay=2)

TESTBED: dict[str, Any] = {"variant": 0, "rate_bps": 8_000_000, "delay default": 5_000_000}
RFC9332: dict[str, Any] = TESTBED | {"variant": 1}
LINUX: dict[str, Any] = TESTBED | {"variant": 2, "min_qlen_step": 1}
UNSHAPED: dict[str, Any] = {"variant": 1, "rate_bps": 0}
LATER_US = 1 << 60


@pytest.fixture
def bed(request: pytest.FixtureRequest, namespaces: None, build: Build, tmp_path: Path) -> Iterator[Bed]:
    """A bed of the configuration given by the test, the router with sanitizers."""
    config: dict[str, Any] = getattr(request, "param", RFC9332)
    with Bed(build(san=True), tmp_path, config) as made:
        yield made


def configured(config: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bed", [config], indirect=True, ids=[""])


def hello(device: Device) -> None:
    assert device.read()["kind"][0] == HELLO


def errors(entries: Entries) -> list[tuple[int, str]]:
    bodies = [body(entry) for entry in entries[entries["kind"] == ERROR]]
    return [(struct.unpack_from("<H", each)[0], each[4:164].rstrip(b"\0").decode()) for each in bodies]


def ended(device: Device) -> Entries:
    """Everything up to the end of the connection."""
    got = []
    while not device.closed:
        got.append(device.read())
        assert device.closed or len(got[-1]), "the connection does not end"
    return np.concatenate(got)


# -- packets


@pytest.mark.parametrize("bed", [TESTBED, RFC9332, LINUX], indirect=True, ids=["testbed", "rfc9332", "linux"])
def test_cubic_gets_the_rate_and_hears_its_marks(bed: Bed) -> None:
    bed.sink()
    (flow,) = bed.traffic("tcp", 1.5, "--cc", "cubic")
    classic = bed.stats()["classic"]
    assert flow["ecn"] and 4.0 < flow["goodput_mbps"] < 8.0
    assert flow["delivered_ce"] > 0 and classic["marks"] > 0
    assert 0.5e6 < classic["sojourn_ns"]["mean"] < 100e6
    assert classic["served_bytes"] * 8 / 1.5 < 8.3e6  # what the link can carry, and what is under way


@pytest.mark.parametrize(
    "bed",
    [pytest.param(TESTBED, marks=pytest.mark.slow), RFC9332, LINUX],
    indirect=True,
    ids=["testbed", "rfc9332", "linux"],
)
def test_prague_like_is_in_l(bed: Bed) -> None:
    sink = bed.sink()
    (flow,) = bed.traffic("prague-like", 2.0 if bed.config.read_text().startswith("variant 0") else 1.0)
    stats = bed.drained()
    sink.send_signal(signal.SIGINT)
    (heard,) = bed.result(sink)
    assert stats["l4s"]["packets"] >= flow["sent"] * 0.99 > 100 and 0.2 < flow["goodput_mbps"] < 8.0
    assert stats["l4s"]["marks"] == heard["ce"] >= flow["delivered_ce"] > 0
    if stats["variant"] != 0:
        assert stats["l4s"]["sojourn_ns"]["p50"] < 15e6  # far below Classic's target on an idle machine


def model_file(folder: Path, model: Model) -> str:
    path = folder / "model"
    path.write_bytes(model.pack())
    return str(path)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_marks_in_the_header(namespaces: None, build: Build, tmp_path: Path, family: socket.AddressFamily) -> None:
    """Packets arrive whole (IPv4's checksum fits), and a mark changes the two bits alone; a model marks all of L."""
    v6 = family == socket.AF_INET6
    if v6 and not netns.HAS_IPV6:
        pytest.skip("this kernel has no IPv6")
    level, name, ask = (
        (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, socket.IPV6_RECVTCLASS)
        if v6
        else (socket.IPPROTO_IP, socket.IP_TOS, socket.IP_RECVTOS)
    )
    sent = [NOT_ECT, ECT_1, ECT_0, ECT_1, NOT_ECT, CE, ECT_1, ECT_0]
    model = model_file(tmp_path, split(QUEUE, 0, (0.0, 0.0), (0.0, 1.0)))
    with (
        Bed(build(san=True), tmp_path, UNSHAPED | {"shield_hits": 0}, "--model", model) as bed,
        bed.udp(bed.senders, family) as sender,
        bed.udp(bed.receivers, family) as receiver,
    ):
        receiver.setsockopt(level, ask, 1)
        receiver.bind((RECEIVER6 if v6 else RECEIVER, 7000))
        heard = []
        for index, ecn in enumerate(sent):
            sender.setsockopt(level, name, 0xB8 | ecn)
            sender.sendto(bytes([index]) * 1000, (RECEIVER6 if v6 else RECEIVER, 7000))
            data, extra, *_ = receiver.recvmsg(2000, 64)
            assert data == bytes([index]) * 1000
            (value,) = [int.from_bytes(each[2], "little") for each in extra if each[:2] == (level, name)]
            assert value & ~3 == 0xB8
            heard.append(value & 3)
        assert heard == [NOT_ECT, CE, ECT_0, CE, NOT_ECT, CE, CE, ECT_0]
        assert bed.stats()["l4s"]["marks"] == 4


@configured(TESTBED | {"alpha": 0, "beta": 0, "delay default": 0})
def test_the_link_keeps_its_rate_however_late_the_router_wakes(bed: Bed) -> None:
    """8 Mbit/s is a byte in each microsecond, also for a router that is stopped again and again."""
    bed.sink()
    assert bed.router is not None
    with Device(bed.socket) as device:
        device.send(SUBSCRIBE, 1)
        flow = bed.send("blast", 0.6, "--pps", "3000", "--size", "1000")
        time.sleep(0.2)
        for _ in range(4):
            bed.router.send_signal(signal.SIGSTOP)
            time.sleep(0.03)
            bed.router.send_signal(signal.SIGCONT)
            time.sleep(0.03)
        entries = device.until(lambda all_: (all_["kind"] == ROW).sum() >= 1800)
        flow.wait()
    rows = entries[entries["kind"] == ROW]
    rows = rows[(rows["record"]["packet_length"] == 1000) & (rows["record"]["length_in_packets"] > 20)]
    time_us, served = rows["record"]["time_us"].astype(np.int64), rows["totals"][:, 0].astype(np.int64)
    assert len(rows) > 1000 and np.diff(time_us).max() >= 25_000
    assert np.abs((served - served[0]) - (time_us - time_us[0])).max() <= 1001


@configured({"variant": 0, "rate_bps": 0, "delay default": 20_000_000, f"delay {netns.SECOND_SENDER}": 40_000_000})
def test_delays_by_address(bed: Bed) -> None:
    bed.sink()
    for address, least_us in ((netns.SENDER, 40_000), (netns.SECOND_SENDER, 80_000)):
        (found,) = bed.traffic("ping", 0.1, "--bind", address, "--interval-us", "5000")
        assert found["received"] == found["sent"] == 20
        assert found["rtt_p50_us"] >= least_us


@configured(TESTBED | {"rate_at 50000000": 4_000_000, "rate_at 150000000": 2_000_000})
def test_rate_steps(bed: Bed) -> None:
    bed.sink()
    bed.traffic("ping", 0.25)
    assert bed.stats()["rate_bps"] == 2_000_000
    with Device(bed.socket) as device:  # agents are told what is configured, as in the simulator
        assert struct.unpack_from("<4H8sQQQ", body(device.read()[0]))[7] == 8_000_000
    with Client(bed.socket) as client:
        assert client.law().rate_bps == 8_000_000


@configured(TESTBED | {"rate_bps": 200_000, "packets": 64})
def test_an_empty_pool_is_a_tail_drop(bed: Bed) -> None:
    bed.sink()
    bed.traffic("blast", 0.3, "--pps", "2000", "--size", "500")
    found = bed.stats()["forward"]
    assert found["pool_missed"] > 400 and found["packets"] >= 600


@configured(TESTBED | {"rate_bps": 400_000, "limit_packets": 20, "delay default": 0})
def test_a_full_buffer_pushes_packets_out(bed: Bed) -> None:
    bed.sink()
    with Device(bed.socket) as device:
        device.send(SUBSCRIBE, 1)
        device.send(GET_STATUS)
        device.until(lambda all_: bool((all_["kind"] == STATUS).any()))
        bed.traffic("blast", 0.3, "--pps", "1000", "--size", "500")
        rows = device.until(lambda all_: (all_["kind"] == ROW).sum() >= 300)
        assert len(np.unique(rows["record"]["sequence"])) == len(rows)  # one row a packet, those pushed out too
    found = bed.stats()["classic"]
    assert found["drops"] > 150


@configured({"variant": 1, "rate_bps": 0, "mtu": 600})
def test_packets_that_do_not_fit_are_counted(bed: Bed) -> None:
    bed.sink()
    bed.traffic("blast", 0.1, "--pps", "100", "--size", "1200")
    bed.traffic("blast", 0.1, "--pps", "100", "--size", "600")
    found = bed.stats()["forward"]
    assert found["oversized"] == 10 and found["delivered"] >= 10


# -- the socket: rows


@pytest.mark.parametrize(
    "bed", [pytest.param(TESTBED, marks=pytest.mark.slow), RFC9332], indirect=True, ids=["testbed", "rfc9332"]
)
def test_rows_stream_without_gaps(bed: Bed) -> None:
    bed.sink()
    with Device(bed.socket) as device:
        hello(device)
        device.send(SUBSCRIBE, 1)
        device.status()
        flow = bed.send("tcp", 0.7)
        entries = device.until(lambda _: flow.poll() is not None)
        entries = np.concatenate([entries, device.read(0.5)])
    rows = np.sort(entries[entries["kind"] == ROW], order="tag")
    assert (rows["magic"] == 0x344C).all() and (rows["lost"] == 0).all() and len(rows) > 200
    records = rows["record"][np.argsort(rows["record"]["sequence"])]
    totals = rows["totals"][np.argsort(rows["record"]["sequence"])].astype(np.int64)
    assert (np.diff(records["sequence"].astype(np.int64)) == 1).all()
    assert (np.diff(records["time_us"].astype(np.int64)) >= 0).all()
    assert (np.diff(totals, axis=0) >= 0).all() and totals[-1, 0] > 200_000
    assert (records["packet_length"] == 1500).sum() > len(rows) // 2
    assert (records["ecn"] == ECT_0).sum() > len(rows) // 2 and (records["queue_type"] == 0).all()
    assert (records["decided_by"] == 0).all() and set(records["action"]) <= {0, 1, 2}
    assert records["flow_id"].max() < 8 and (records["total_packets"] == records["sequence"]).all()


@configured({"variant": 1, "rate_bps": 0, "ring": 64})
def test_a_reader_that_does_not_read_loses_rows_only(bed: Bed) -> None:
    sink = bed.sink()
    with Device(bed.socket) as device:
        device.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        device.send(SUBSCRIBE, 1)
        device.send(GET_STATUS)
        device.until(lambda all_: bool((all_["kind"] == STATUS).any()))
        (flow,) = bed.traffic("blast", 0.5, "--pps", "6000", "--size", "200", "--ecn", "ect1")
        assert flow["sent"] == 3000
        bed.drained()
        sink.send_signal(signal.SIGINT)
        (heard,) = bed.result(sink)
        found = bed.stats()
        assert heard["blast"] == 3000
        assert found["device"]["rows_lost"] > 0
        rows = device.until(lambda all_: (all_["kind"] == ROW).sum() + all_["lost"].sum() >= 3000)
        status = device.status()
    sequence = rows["record"]["sequence"].astype(np.int64)
    gaps = np.diff(sequence) - 1
    assert (gaps == rows["lost"][1:]).all() and status["lost"] == rows["lost"].sum() > 0
    assert len(rows) + rows["lost"].sum() == found["forward"]["packets"] - sequence[0] + rows["lost"][0]


@pytest.mark.slow
def test_no_row_is_lost_at_twenty_thousand_a_second(namespaces: None, build: Build, tmp_path: Path) -> None:
    """Without sanitizers."""
    with Bed(build(), tmp_path, UNSHAPED) as bed:
        assert_complete(*blasted(bed, 20_000, 1.0))


def assert_complete(rows: Entries, sent: int) -> None:
    sequence = rows["record"]["sequence"].astype(np.int64)
    assert (rows["lost"] == 0).all() and (np.diff(sequence) == 1).all()
    assert (rows["record"]["ecn"] == ECT_1).sum() == sent > 0


def blasted(bed: Bed, pps: int, seconds: float) -> tuple[Entries, int]:
    """Rows of a stream of small packets, and their number."""
    bed.sink()
    got: list[Entries] = []
    done = threading.Event()
    with Device(bed.socket) as device:
        device.send(SUBSCRIBE, 1)
        hello(device)
        device.status()

        def read() -> None:
            while not done.is_set():
                got.append(device.read(0.2))

        reader = threading.Thread(target=read)
        reader.start()
        (flow,) = bed.traffic("blast", seconds, "--pps", str(pps), "--size", "76", "--ecn", "ect1")
        bed.drained()
        done.set()
        reader.join()
        while len(more := device.read(0.3)):
            got.append(more)
    entries = np.concatenate(got)
    return entries[entries["kind"] == ROW], int(flow["sent"])


# -- the socket: decisions


def answer_all(device: Device, action: int, asks: int) -> Entries:
    """Answer so many asks by one action; everything that came meanwhile."""
    got: list[Entries] = []
    answered = 0
    while answered < asks:
        got.append(device.read())
        assert len(got[-1]), "no asks come"
        for ask in got[-1][got[-1]["kind"] == ASK]["record"]:
            fields = {"sequence": int(ask["sequence"]), "queue": int(ask["queue_type"])}
            device.send(DECIDE, action=action, expires_us=int(ask["time_us"]) + 1_000_000, **fields)
            answered += 1
    return np.concatenate(got)


# One window holds all packets of the test, however few of the answers come in time: 512 / 65536 of 4096 are 32 drops.
@configured(TESTBED | {"shield_hold_us": 600_000_000, "shield_window": 4096, "shield_drops": 512, "shield_hits": 0})
def test_an_agent_that_drops_everything_meets_the_shield(bed: Bed) -> None:
    bed.sink()
    with Device(bed.socket) as device:
        hello(device)
        device.send(SUBSCRIBE, 1)
        device.send(ATTACH, 1, tag=5)
        device.until(lambda all_: bool((all_["tag"] == 5).any()))
        flow = bed.send("blast", 5.0, "--pps", "400", "--size", "500")
        entries = answer_all(device, 1, 300)
        status = device.status()
        flow.kill()
    asks, rows = entries[entries["kind"] == ASK]["record"], entries[entries["kind"] == ROW]["record"]
    assert (asks["action"] == 0).all() and (asks["applied_action"] == 0).all() and (asks["decided_by"] == 0).all()
    assert (asks["accumulated_probability"] == asks["accumulated_probability_before"]).all()
    agent = rows[rows["decided_by"] == 1]
    assert (agent["action"] == 1).all() and (agent["applied_action"] == 1).all()
    assert 0 < len(agent) <= 32
    events = [struct.unpack_from("<QQBB", body(each)) for each in entries[entries["kind"] == EVENT]]
    assert [(value, kind, queue) for _, value, kind, queue in events] == [(33, 2, 0)]
    assert status["trips"] == 1 and status["held"] == 1 and status["controls"] == 1 and status["interval"] == 1
    assert status["refused"][6] > 0 and bed.stats()["decisions"]["refused"]["shielded"] >= status["refused"][6]


@configured(TESTBED)
def test_decisions_that_cannot_be_used_are_counted(bed: Bed) -> None:
    bed.sink()
    with Device(bed.socket) as device:
        hello(device)
        device.send(DECIDE, sequence=0, expires_us=LATER_US)  # nobody controls
        assert device.status()["refused"] == (0, 1, 0, 0, 0, 0, 0)
        device.send(ATTACH, 1)
        flow = bed.send("blast", 10.0, "--pps", "100", "--size", "500")
        asks = device.until(lambda all_: (all_["kind"] == ASK).sum() >= 3)
        first, *_, last = asks[asks["kind"] == ASK]["record"]["sequence"].tolist()
        device.send(DECIDE, sequence=last, queue=7, expires_us=LATER_US)
        device.send(DECIDE, sequence=last, action=3, expires_us=LATER_US)
        device.send(DECIDE, sequence=last, expires_us=1)
        device.send(DECIDE, sequence=last + 1_000_000, expires_us=LATER_US)
        device.send(DECIDE, sequence=last, expires_us=(1 << 64) - 1)  # this one is good
        device.send(DECIDE, sequence=first, expires_us=LATER_US)
        status = device.status()
        assert status["refused"] == (1, 1, 2, 1, 1, 1, 0)
        flow.kill()
        flow.wait()
    assert bed.stats()["decisions"]["agent"] <= 1


@configured(TESTBED)
def test_a_silent_agent_leaves_the_queue_to_the_native_law(bed: Bed) -> None:
    sink = bed.sink()
    with Device(bed.socket) as device:
        hello(device)
        device.send(ATTACH, 4, tag=1)
        (came,) = device.until(lambda all_: bool((all_["tag"] == 1).any()))
        bed.traffic("blast", 0.5, "--pps", "200", "--size", "500")
        status = device.status()
    assert status["interval"] == 4 and status["agent"] == 0
    asks = -(-(status["packets"] - netns.read_status(came)["packets"]) // 4)
    assert status["fallback"] == asks - 1 >= 24  # the last one may still be answered
    bed.drained()
    sink.send_signal(signal.SIGINT)
    assert bed.result(sink)[0]["blast"] == 100
    with Device(bed.socket) as device:
        hello(device)
        assert device.status()["interval"] == 0  # it went with its connection
        device.send(DETACH, tag=3)
        device.send(CONFIGURE, 1, 1, 1, 16, 1000, tag=4)
        refused = device.until(lambda all_: (all_["kind"] == ERROR).sum() == 2)
        assert [code for code, _ in errors(refused)] == [netns.NOT_CONTROLLER] * 2
        assert refused["tag"].tolist() == [3, 4]


# -- parameters of the law

AGENT = """
import sys, time
from l4s_gym.bridge.client import Client
with Client(sys.argv[1]) as client:
    client.attach(None)
    for turn in range(10**6):
        client.set_law(target=(0.2, 4.0)[turn % 2], coupling=2.0, lifetime_ms=300)
        time.sleep(0.1)
"""
"""Sets parameters each 100 ms."""
FIVE: dict[str, Any] = {"target": 0.5, "alpha": 2.0, "beta": 0.5, "coupling": 4.0, "threshold": 3.0}


@pytest.mark.parametrize("bed", [TESTBED, RFC9332, LINUX], indirect=True, ids=["testbed", "rfc9332", "linux"])
def test_a_law_is_set_within_the_operators_bounds(bed: Bed) -> None:
    with Client(bed.socket) as client:
        bounds = client.hello.law
        client.attach(None)
        can: dict[str, Any] = {name: value for name, value in FIVE.items() if bounds[name] != (1.0, 1.0)}
        assert {len(can), len(FIVE) - len(can)} == ({3, 2} if bed.stats()["variant"] == 0 else {5, 0})
        law = client.set_law(**can)
        assert {name: law.factors[name] for name in can} == can and 0 < law.lasts_ms <= 500
        for name, (low, high) in bounds.items():
            for wrong in ({name: low - 1 / 65536}, {name: high + 1 / 65536}):
                with pytest.raises(BridgeError, match="out of the operator's bounds") as error:
                    client.set_law(**wrong)  # type: ignore[arg-type]
                assert error.value.code == wire.E_OUT_OF_BOUNDS and not error.value.closed
        after = client.law()
        assert (after.sets, after.refused) == (1, 10) and after.rate_bps == 8_000_000
        client.attach(None)
        assert set(client.law().factors.values()) == {1.0}
        client.detach()
        with pytest.raises(BridgeError, match="attach first"):
            client.set_law()


PROBABILITIES = AGENT.replace(
    "client.set_law(target=(0.2, 4.0)[turn % 2], coupling=2.0,", "client.set_probabilities(0.01 * (turn % 2), 0.2,"
)


@pytest.mark.parametrize("what", [AGENT, PROBABILITIES], ids=["parameters", "probabilities"])
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_the_operators_law_goes_on_without_the_agent(bed: Bed, how: str, what: str) -> None:
    bed.sink()
    flow = bed.send("tcp", 60.0, "--cc", "cubic")
    with subprocess.Popen([sys.executable, "-c", what, str(bed.socket)]) as agent:
        while bed.stats()["law"]["sets"] < 5:
            assert agent.poll() is None
            time.sleep(0.05)
        before = bed.stats()
        assert before["law"]["expired"] == 0  # each came in time
        agent.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        limit = time.monotonic() + netns.WAIT_S
        while how == "stopped" and bed.stats()["law"]["expired"] == 0:
            assert time.monotonic() < limit
        agent.kill()
    with Client(bed.socket) as client:  # the next one finds the operator's
        client.subscribe(True)
        law = client.law()
        assert set(law.factors.values()) == {1.0} and law.set_prob is None and law.lasts_ms == 0
        rows = np.concatenate([client.entries(1.0) for _ in range(5)])
    rows = rows[rows["kind"] == ROW]["row"]["record"]
    assert len(rows) and (rows["qdelay_ref"][-1] == 15_000) and not rows["decided_by"].any()
    assert flow.poll() is None and bed.stats()["forward"]["delivered"] > before["forward"]["delivered"]
    flow.kill()


# -- the controller's own socket


def attached(bed: Bed, device: Device) -> Device:
    """The controller's own socket, under packets."""
    device.send(ATTACH, 1)
    direct = device.direct()
    bed.sink()
    bed.send("blast", 30.0, "--pps", "400", "--size", "500")
    return direct


def answered(direct: Device, count: int, action: int = 0) -> None:
    """Answer so many asks."""
    while count > 0:
        asks = direct.read()
        assert len(asks) and (asks["kind"] == ASK).all()
        for ask in asks["record"]:
            fields = {"sequence": int(ask["sequence"]), "queue": int(ask["queue_type"])}
            direct.send(DECIDE, action=action, expires_us=int(ask["time_us"]) + 1_000_000, **fields)
        count -= len(asks)


@configured(TESTBED)
def test_a_controller_has_a_socket_of_its_own(bed: Bed) -> None:
    with Device(bed.socket) as device, attached(bed, device) as direct:
        device.send(SUBSCRIBE, 1)
        before = device.status()
        answered(direct, 300)
        rows = device.until(lambda all_: (all_["kind"] == ROW).sum() >= 200)
        assert not (rows["kind"] == ASK).any() and (rows["record"]["decided_by"] == 1).sum() > 100
        after = device.status()
        assert after["refused"][0] - before["refused"][0] > 200 and not any(after["refused"][1:])
        assert after["controls"] and after["agent"] > 100
        device.send(DETACH, tag=7)
        ended(direct)  # with the control
        assert device.status()["interval"] == 0
    assert bed.stats()["device"]["connections"] == 1


@configured(TESTBED)
def test_the_own_socket_is_the_controllers(bed: Bed) -> None:
    with Device(bed.socket) as device:
        hello(device)
        device.send(DIRECT, tag=3)
        refused = device.until(lambda all_: bool((all_["kind"] == ERROR).any()))
        assert [code for code, _ in errors(refused)] == [netns.NOT_CONTROLLER] and refused["tag"][-1] == 3
        with attached(bed, device) as first, device.direct() as second:  # another one instead
            ended(first)
            answered(second, 5)
    with Device(bed.socket) as device:  # it goes with its connection
        hello(device)
        assert device.status()["interval"] == 0


HOSTILE = {
    "noise": bytes(range(64)) * 40,
    "another command": struct.pack("<HBBI56x", 0x344C, 1, DETACH, 0),
    "another version": struct.pack("<HBBI56x", 0x344C, 2, DECIDE, 0),
    "a piece": b"\x4c\x34\x01",
}


@configured(TESTBED)
def test_what_is_no_decision_ends_the_own_socket_alone(bed: Bed) -> None:
    with Device(bed.socket) as device, attached(bed, device) as first:
        for name, data in HOSTILE.items():
            direct = first if name == "noise" else device.direct()
            direct.socket.sendall(data)
            direct.socket.shutdown(socket.SHUT_WR)
            ended(direct)
            direct.socket.close()
            asks = device.until(lambda all_: (all_["kind"] == ASK).sum() >= 5)  # as before
            assert device.status()["controls"] and (asks["record"]["decided_by"] == 0).all(), name
        assert device.status()["agent"] == 0


@configured(TESTBED)
def test_a_controller_that_does_not_read_loses_asks_alone(bed: Bed) -> None:
    with Device(bed.socket) as device, attached(bed, device) as direct:
        limit = time.monotonic() + netns.WAIT_S
        while device.status()["lost"] < 20:
            assert time.monotonic() < limit, "it has room for everything"
        before = bed.stats()
        asks = direct.until(lambda all_: bool((all_["lost"] > 0).any()))
        gaps = np.diff(asks["record"]["sequence"].astype(int)) - 1
        assert (gaps == asks["lost"][1:]).all() and gaps.max() >= 20
        answered(direct, 10)
        assert device.status()["refused"][0] >= 10
        after = bed.stats()
        assert after["forward"]["delivered"] > before["forward"]["delivered"]
        assert after["decisions"]["fallback"] > 0


@configured(TESTBED | {"shield_hits": 0, "shield_drops": 65536})
def test_the_compiled_agent(bed: Bed) -> None:
    bed.sink()
    bed.send("blast", 30.0, "--pps", "400", "--size", "500")
    command = [str(bed.programs / "l4s-agent"), "--socket", str(bed.socket), "--seconds", "1"]
    for options in (["--c-us", "1000000"], ["--action", "2", "--daemon"], ["--action", "1", "--spin"]):
        before = bed.stats()
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=netns.WAIT_S, check=True)
        found = json.loads(done.stdout)
        after = bed.stats()
        assert found["direct"] == ("--daemon" not in options) and found["asks"] > 20
        assert after["decisions"]["agent"] - before["decisions"]["agent"] > 20
        drops = after["classic"]["drops"] - before["classic"]["drops"]
        assert drops > 20 if "--action" in options else drops == 0  # not-ECT packets: a mark is a drop
    shield = ["--shield", "0,0,0,16,1000,0", "--action", "1"]
    before = bed.stats()["classic"]["drops"]
    subprocess.run([*command, *shield], capture_output=True, timeout=netns.WAIT_S, check=True)
    assert bed.stats()["classic"]["drops"] == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--socket is needed"),
        (["--socket", "/nowhere/s"], "No such file"),
        (["--socket", "x" * 200], "too long"),
        (["--socket", "x", "--action", "4"], "a whole number that fits"),
        (["--socket", "x", "--shield", "1,2"], "give six numbers"),
    ],
)
def test_what_the_compiled_agent_says(build: Build, options: list[str], says: str) -> None:
    done = subprocess.run([build(san=True) / "l4s-agent", *options], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and says in done.stderr


OPERATOR = (30_000, 20_000, 16384, 64, 600_000_000, 0)
"""Bounds of the shield that the operator sets."""


@configured(TESTBED | dict(zip(SHIELD, OPERATOR, strict=True)))
def test_an_agent_can_only_tighten_the_shield(bed: Bed) -> None:
    bed.sink()

    def in_force(device: Device, kind: int, *args: int) -> tuple[int, ...]:
        device.send(kind, *args, tag=77)
        entries = device.until(lambda all_: bool((all_["tag"] == 77).any()))
        return tuple(netns.read_status(entries[entries["tag"] == 77][0])["shield"])

    with Device(bed.socket) as device:
        hello(device)
        assert in_force(device, ATTACH, 1) == OPERATOR
        assert in_force(device, CONFIGURE, 0, 0, 65536, 65536, 1000, 0) == OPERATOR
        tight = (20_000, 10_000, 0, 16, 600_000_000, 256)
        assert in_force(device, CONFIGURE, *tight) == tight
        assert in_force(device, CONFIGURE, 0, 0, 65536, 65536, 1000, 0) == OPERATOR  # of the one that asks last
        assert in_force(device, CONFIGURE, *tight) == tight
        assert in_force(device, ATTACH, 1) == OPERATOR
        assert in_force(device, CONFIGURE, *tight) == tight
        assert in_force(device, DETACH) == OPERATOR
        assert in_force(device, ATTACH, 1) == OPERATOR
        assert in_force(device, CONFIGURE, *tight) == tight
    with Device(bed.socket) as device:  # the next client
        hello(device)
        assert in_force(device, ATTACH, 1) == OPERATOR
        assert in_force(device, CONFIGURE, 0, 0, 65536, 65536, 1000, 0) == OPERATOR
        flow = bed.send("blast", 5.0, "--pps", "400", "--size", "500")
        answer_all(device, 1, 300)
        status = device.status()
        flow.kill()
        assert status["trips"] == 1 and status["held"] == 1 and status["agent"] <= 16  # a quarter of 64
        device.send(CONFIGURE, 0, 0, 65537, 16, 1000)
        assert [code for code, _ in errors(ended(device))] == [netns.MALFORMED]


def test_bounds_of_the_shield_on_the_command_line(namespaces: None, build: Build, tmp_path: Path) -> None:
    config = TESTBED | {"shield_c_us": 7, "shield_hits": 8}
    options = ("--shield", "c_us=9000", "--shield", "drops=5")
    with Bed(build(san=True), tmp_path, config, *options) as bed, Device(bed.socket) as device:
        hello(device)
        assert device.status()["shield"] == (9000, 50_000, 5, 128, 1_000_000, 8)
    for wrong in ("c_us", "speed=3", "drops=65537", "c_us=x"):
        done = start_with(build, tmp_path, "variant 1\n", "--shield", wrong)
        assert done.returncode == 1 and "--shield" in done.stderr


@pytest.mark.parametrize("what", ["marks", "drops"])
def test_a_model_decides(what: str, namespaces: None, build: Build, tmp_path: Path) -> None:
    model = model_file(tmp_path, leaf(1.0, 0.0) if what == "drops" else leaf(0.0, 1.0))
    with Bed(build(san=True), tmp_path, UNSHAPED | {"shield_drops": 65536, "shield_hits": 0}, "--model", model) as bed:
        bed.sink()
        with Device(bed.socket) as device:
            hello(device)
            assert device.status()["model"] == 1
        bed.traffic("blast", 0.2, "--pps", "200", "--size", "500", "--ecn", "ect1")
        found = bed.stats()
    assert found["l4s"][what] == 40
    assert found["decisions"]["agent"] >= 40


def test_a_model_is_replaced_and_a_wrong_one_refused(namespaces: None, build: Build, tmp_path: Path) -> None:
    """By SIGHUP, under traffic: a wrong file changes nothing."""
    model = Path(model_file(tmp_path, constant("parameters", 1.0, 0.0, 0.0, 0.0, 0.0)))
    with Bed(build(san=True), tmp_path, TESTBED | {"variant": 1}, "--model", str(model)) as bed:
        bed.sink()

        def factor() -> float:
            bed.traffic("blast", 0.2, "--pps", "200", "--size", "500", "--ecn", "ect1")
            with Client(bed.socket) as client:
                return client.law().factors["target"]

        def load(data: bytes) -> None:
            model.write_bytes(data)
            assert bed.router is not None
            bed.router.send_signal(signal.SIGHUP)

        assert factor() == 4.0
        good = constant("parameters", -1.0, 0.0, 0.0, 0.0, 0.0).pack()
        for wrong in (good[:4] + b"\2" + good[5:], good + bytes(200_000), good[:126] + b"\1" + good[127:], b""):
            load(wrong)
            assert factor() == 4.0
        load(good)
        assert factor() == pytest.approx(0.13, rel=1e-3)
        said = (tmp_path / "router.err").read_text()
        for reason in ("another version", "wrong size", "out of range", "not a model"):
            assert reason in said
        os.truncate(tmp_path / "router.err", 0)


# -- the socket: who, and what


def test_one_connection_at_a_time(bed: Bed) -> None:
    with Device(bed.socket) as first:
        hello(first)
        with Device(bed.socket) as second:
            entries = ended(second)
            assert entries["kind"].tolist() == [HELLO, ERROR]
            assert errors(entries)[0][0] == netns.BUSY and "l4s-bridged" in errors(entries)[0][1]
        assert first.status()["interval"] == 0
    with Device(bed.socket) as third:
        hello(third)
        assert third.status()["controls"] == 0


def test_other_users_are_refused(bed: Bed) -> None:
    assert bed.socket.stat().st_mode & 0o7777 == 0o600
    bed.socket.chmod(0o666)
    home = os.open(".", os.O_RDONLY)
    device = socket.socket(socket.AF_UNIX)
    with device:
        os.chdir(bed.folder)  # no folder above the socket must be open to that user
        bed.folder.chmod(0o755)
        os.seteuid(65534)
        try:
            device.settimeout(netns.WAIT_S)
            device.connect(bed.socket.name)
        finally:
            os.seteuid(0)
            os.fchdir(home)
            os.close(home)
        data = b""
        while more := device.recv(4096):
            data += more
    assert errors(np.frombuffer(data, netns.ENTRY)) == [(netns.REFUSED, "not your device")]


BAD_COMMANDS = {
    "magic": {0: 0x00},
    "version": {2: 2},
    "kind 0": {3: 0},
    "kind 11": {3: 11},
    "reserved": {6: 1},
    "subscribe 2": {3: SUBSCRIBE, 32: 2},
}


def test_a_malformed_command_ends_the_connection(bed: Bed) -> None:
    for name, changes in BAD_COMMANDS.items():
        command = bytearray(struct.pack("<HBBI56x", 0x344C, 1, GET_STATUS, 0))
        for place, value in changes.items():
            command[place] = value
        with Device(bed.socket) as device:
            device.socket.sendall(command)
            assert [code for code, _ in errors(ended(device))] == [netns.MALFORMED], name
        with Device(bed.socket) as device:
            hello(device)
            assert device.status()["packets"] >= 0


def test_garbage_does_not_stop_the_path(bed: Bed) -> None:
    """Random bytes, random fields in good commands, commands cut short."""
    rng = random.Random(1)
    bed.sink()
    flow = bed.send("blast", 60.0, "--pps", "500", "--size", "200", "--ecn", "ect1")
    for _ in range(300):
        with Device(bed.socket) as device:
            data = bytearray(rng.randbytes(rng.randrange(1, 1000)))
            for place in range(0, len(data) - 4, 64):
                if rng.random() < 0.9:
                    data[place : place + 4] = struct.pack("<HBB", 0x344C, 1, rng.randrange(1, 10))
                    data[place + 6 : place + 8] = b"\0\0"
            device.socket.sendall(data)
            if rng.random() < 0.5:
                device.read(0.01)
    before = bed.stats()["forward"]["delivered"]
    with Device(bed.socket) as device:  # the router comes to it when it has taken all others
        device.send(SUBSCRIBE, 1)
        device.until(lambda all_: (all_["kind"] == ROW).sum() > 20)
        found = bed.stats()
    assert flow.poll() is None and found["device"]["connections"] == 301 and found["device"]["refused"] == 0
    flow.kill()
    assert found["forward"]["delivered"] > before


def test_a_reader_that_only_writes_is_left_unread(bed: Bed) -> None:
    """It asks and never takes the answers: no memory grows, packets go on, and in the end all are answered."""
    bed.sink()
    with Device(bed.socket) as device:
        device.socket.setblocking(False)
        command = struct.pack("<HBBI56x", 0x344C, 1, GET_STATUS, 0)
        asked = 0
        while True:  # until nothing more goes in
            try:
                asked += device.socket.send(command)
            except BlockingIOError:
                bed.traffic("ping", 0.1)
                try:
                    asked += device.socket.send(command)
                except BlockingIOError:
                    break
        device.socket.setblocking(True)
        device.until(lambda all_: (all_["kind"] == STATUS).sum() == asked // 64)


# -- start and end


def test_a_killed_router_leaves_nothing_in_the_way(bed: Bed) -> None:
    bed.stop_router(signal.SIGKILL)
    assert bed.socket.exists()
    for name in (bed.senders, bed.receivers):
        links = subprocess.run(["ip", "-n", name, "link"], capture_output=True, text=True, check=True).stdout
        assert "l4s0" not in links
    bed.start_router()
    bed.sink()
    (found,) = bed.traffic("ping", 0.1, "--interval-us", "10000")
    assert found["received"] == 10


def test_the_end_of_a_router_is_clean(bed: Bed) -> None:
    with Device(bed.socket) as device:
        hello(device)
        assert bed.stop_router(signal.SIGINT) == 0
        assert len(ended(device)) == 0
    assert not bed.socket.exists() and bed.stats_path.exists()


def test_a_socket_that_is_served_is_not_taken(bed: Bed, tmp_path: Path) -> None:
    second = Bed(bed.programs, tmp_path, RFC9332)
    command = [part.replace("l4s0", "l4s1") for part in second.command()]
    command = [part.replace(second.senders, bed.senders).replace(second.receivers, bed.receivers) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "another program serves this socket" in done.stderr
    with Device(bed.socket) as device:
        hello(device)


def test_a_device_that_goes_ends_the_router(bed: Bed) -> None:
    subprocess.run(["ip", "-n", bed.senders, "link", "del", "l4s0"], check=True)
    assert bed.router is not None and bed.router.wait(netns.WAIT_S) == 1
    said = (bed.folder / "router.err").read_text()
    assert "a TUN device has gone" in said
    bed.router.stdout.close()  # type: ignore[union-attr]
    bed.router = None
    (bed.folder / "router.err").write_text("")


CONFIGS = {
    "unknown key": ("variant 1\n\nspeed 3\n", ":3: speed: no such key"),
    "range": ("coupling 0\n", ":1: coupling: must be a whole number from 1 to 65536"),
    "negative": ("target_us -1\n", ":1: target_us: must be a whole number"),
    "no value": ("rate_bps\n", ":1: rate_bps (0: unshaped): must be a whole number"),
    "two values": ("seed 1 2\n", ":1: seed: too many values"),
    "text": ("seed 1x\n", ":1: seed: must be a whole number"),
    "huge": ("seed 99999999999999999999\n", ":1: seed: must be a whole number"),
    "acks": ("acks_in_queue 1\n", ":1: acks_in_queue: only 0"),
    "address": ("delay 10.0.0 5\n", ":1: 10.0.0: neither an IPv4 address nor `default`"),
    "delay twice": ("delay 10.0.0.1 5\n# x\ndelay 10.0.0.1 6\n", ":3: 10.0.0.1: has a delay already"),
    "delay alone": ("delay\n", ":1: delay: needs an IPv4 address or `default`"),
    "steps fall": ("rate_at 5 2000\nrate_at 5 3000\n", ":2: rate_at: times must rise"),
    "rate 0 in steps": ("rate_at 5 0\n", ":1: rate_at, bit/s: must be a whole number"),
    "long line": ("#" * 600 + "\n", ":1: line: too long"),
}


@pytest.mark.parametrize(("text", "says"), CONFIGS.values(), ids=CONFIGS.keys())
def test_configurations_that_are_wrong(build: Build, tmp_path: Path, text: str, says: str) -> None:
    done = start_with(build, tmp_path, text)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{tmp_path / 'router.conf'}{says}" in done.stderr


def start_with(build: Build, folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    bed = Bed(build(san=True), folder, {}, *options)
    bed.config.write_text(text)
    return subprocess.run(bed.command(), capture_output=True, text=True, check=False)


GOOD = leaf(0.0, 0.0).pack()
MODELS = {
    "empty": (b"", "not a model"),
    "head": (GOOD[:100], "not a model"),
    "short": (GOOD[:-1], "wrong size"),
    "too large": (GOOD + bytes(200_000), "wrong size"),
    "version": (GOOD[:4] + b"\2" + GOOD[5:], "another version"),
    "leaf": (GOOD[:126] + b"\1" + GOOD[127:], "out of range"),
}


@pytest.mark.parametrize(("data", "says"), MODELS.values(), ids=MODELS.keys())
def test_models_that_are_wrong(build: Build, tmp_path: Path, data: bytes, says: str) -> None:
    model = tmp_path / "model"
    model.write_bytes(data)
    done = start_with(build, tmp_path, "variant 1\n", "--model", str(model))
    assert done.returncode == 1 and says in done.stderr


def test_what_the_command_line_says(build: Build, tmp_path: Path) -> None:
    router = str(build(san=True) / "l4s-router")
    shown = subprocess.run([router, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and "usage: l4s-router" in shown.stdout
    for arguments in ([], ["--config", "x"], ["--nonsense"]):
        done = subprocess.run([router, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "l4s-router" in done.stderr
    done = start_with(build, tmp_path, "variant 1\n")
    assert done.returncode == 1 and "cannot enter the network namespace" in done.stderr


# -- long


@pytest.mark.slow
def test_both_queues_under_load_for_long(namespaces: None, build: Build, tmp_path: Path) -> None:
    """TCP and prague-like share the link, a reader and controller come and go, under sanitizers."""
    with Bed(build(san=True), tmp_path, RFC9332 | {"rate_bps": 40_000_000}) as bed:
        bed.sink()
        flows = [bed.send("tcp", 12, "--flows", "2"), bed.send("prague-like", 12, "--flows", "2")]
        end = time.monotonic() + 9.0
        while time.monotonic() < end:
            with Device(bed.socket) as device:
                device.send(SUBSCRIBE, 1)
                device.send(ATTACH, 10)
                answer_all(device, 0, 50)
        results = [each for flow in flows for each in bed.result(flow)]
        assert len(results) == 4 and sum(each["goodput_mbps"] for each in results) > 15.0
        assert all(each["delivered_ce"] > 0 for each in results)


@pytest.mark.slow
def test_fuzzed_for_a_while(namespaces: None) -> None:
    script = [sys.executable, str(Path(__file__).with_name("fuzz_socket.py")), "--router", "--seconds", "3"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120.0, check=False)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("no fault"), done.stdout + done.stderr


@pytest.mark.slow
def test_throughput_of_small_packets(namespaces: None, build: Build, tmp_path: Path) -> None:
    """100,000 packets a second for 3 s: `benchmarks/studies/live/run.py` tells what comes out; no row may be lost."""
    with Bed(build(), tmp_path, UNSHAPED | {"ring": 65536}) as bed:
        assert_complete(*blasted(bed, 100_000, 3.0))
