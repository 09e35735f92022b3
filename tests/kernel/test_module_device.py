"""/dev/l4s in the simulated kernel: descriptors, the ring, commands, decisions, the model, poll and kqueue."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.bridge import wire
from l4s_gym.bridge.fixed import MOST_BYTES
from l4s_gym.bridge.model import Model
from l4s_gym.bridge.wire import ASK, ERROR, EVENT, HELLO, ROW, STATUS
from l4s_gym.data.records import layout_digest
from l4s_gym.envs import tune
from l4s_gym.schema import ECT_1, RECORD
from tests.kernel.models import LENGTH, constant, leaf, split
from tests.kernel.module import (
    BY_OTHER,
    BY_PACKET,
    BY_SIGNAL,
    CDEVPRIV,
    COPY,
    POLLIN,
    POLLOUT,
    READ,
    READ_FILTER,
    WRITE_FILTER,
    Device,
    Module,
    command,
)

IN, OUT = 0x80000000, 0x40000000
DECIDE = IN | 64 << 16 | ord("L") << 8 | 1
GET_STATUS = OUT | wire.STATUS_BODY.itemsize << 16 | ord("L") << 8 | 2
LAW = IN | OUT | (64 + wire.LAW_BODY.itemsize) << 16 | ord("L") << 8 | 4
MODEL = IN | 16 << 16 | ord("L") << 8 | 3
FIONBIO = IN | 4 << 16 | ord("f") << 8 | 126
KEPT: list[Any] = []


@pytest.fixture
def module(module: Module) -> Iterator[Module]:
    """With one scheduler."""
    module.config()
    yield module
    module.delete()


@pytest.fixture
def device(module: Module) -> Iterator[Device]:
    """A descriptor whose HELLO has been read."""
    opened = module.open()
    assert opened.read()["kind"].tolist() == [HELLO]
    yield opened
    opened.close()


def kinds(device: Device) -> list[int]:
    return [int(kind) for kind in device.read_all()["kind"]]


def lengths(device: Device) -> list[int]:
    entries = device.read_all()
    return [int(length) for length in entries[entries["kind"] == ROW]["row"]["record"]["packet_length"]]


# -- reading


def test_the_greeting(module: Module) -> None:
    module.random(77)
    module.arrive()
    module.advance(3_000_000)
    device = module.open()
    entry = device.read()[0]
    hello = entry["hello"]
    assert (entry["magic"], entry["version"], entry["kind"], entry["lost"]) == (wire.MAGIC, 1, HELLO, 0)
    assert hello["layout"].tobytes() == layout_digest()
    assert (hello["record_size"], hello["entry_size"], hello["command_size"]) == (RECORD.itemsize, 192, 64)
    assert (hello["clock_us"], hello["rate_bps"], hello["ring_entries"]) == (3000, 8_000_000, 8192)
    assert hello["name"] == b"dn_sched_l4s"
    device.close()


def test_each_load_is_another_session(library: Path) -> None:
    seen = set()
    for number in (1, 2):
        module = Module(library)
        module.random(number)
        with module:
            device = module.open()
            seen.add(int(device.read()[0]["hello"]["session"]))
            device.close()
    assert seen == {1, 2}


def test_rows_come_to_subscribers_alone(module: Module, device: Device) -> None:
    module.arrive(101)
    assert kinds(device) == []
    device.write(command(wire.SUBSCRIBE, 1))
    module.arrive(102)
    device.write(command(wire.SUBSCRIBE, 1))
    module.arrive(103)
    device.write(command(wire.SUBSCRIBE, 0))
    module.arrive(104)
    device.write(command(wire.SUBSCRIBE, 1))
    module.arrive(105)
    assert lengths(device) == [105]  # what waited went with the subscription
    assert module.sysctl("rows") == 3


def test_a_row_has_the_totals_of_its_arrival(module: Module, device: Device) -> None:
    device.write(command(wire.SUBSCRIBE, 1))
    for _ in range(3):
        module.arrive(1000)
        module.advance(5_000_000)
        module.dequeue()
    rows = device.read_all()["row"]
    assert rows["served_bytes"].tolist() == [0, 1000, 2000]
    assert rows["power_bytes"].tolist() == sorted(set(rows["power_bytes"].tolist()))


def test_every_descriptor_has_its_own_place(module: Module, device: Device) -> None:
    other = module.open(READ)
    for each in (device, other):
        each.write(command(wire.SUBSCRIBE, 1))
    module.arrive(200)
    assert lengths(device) == [200]
    late = module.open()
    late.write(command(wire.SUBSCRIBE, 1))
    module.arrive(201)
    assert (lengths(device), lengths(other), lengths(late)) == ([201], [200, 201], [201])
    other.close()
    late.close()


def test_a_slow_reader_loses_the_oldest_and_is_told(module: Module, device: Device) -> None:
    module.sysctl("ring_entries", 16)
    quick = module.open()
    for each in (device, quick):
        each.write(command(wire.SUBSCRIBE, 1))
    for number in range(50):
        module.arrive(100 + number)
        entries = quick.read_all()
        assert entries["lost"].tolist() == [0] * len(entries)
    entries = device.read_all()
    assert entries["row"]["record"]["packet_length"].tolist() == list(range(134, 150))
    assert entries["lost"].tolist() == [34] + [0] * 15
    module.arrive(99)
    assert device.read()["lost"].tolist() == [0]
    assert device.ask(wire.GET_STATUS)[0]["status"]["lost"] == 34
    assert quick.ask(wire.GET_STATUS)[0]["status"]["lost"] == 0
    assert module.sysctl("rows_lost") == 34
    quick.close()


def test_another_ring_loses_what_is_unread(module: Module, device: Device) -> None:
    device.write(command(wire.SUBSCRIBE, 1))
    for number in range(5):
        module.arrive(100 + number)
    module.sysctl("ring_entries", 64)
    module.arrive(105)
    entries = device.read_all()
    assert entries["row"]["record"]["packet_length"].tolist() == [105] and entries["lost"].tolist() == [5]


def test_reads_give_whole_entries(module: Module, device: Device) -> None:
    device.write(command(wire.SUBSCRIBE, 1))
    for number in range(100):
        module.arrive(100 + number)
    for size in (0, 1, 191):
        with pytest.raises(OSError, match="EINVAL"):
            device.read(size)
    assert [len(device.read(size)) for size in (192, 383, 384)] == [1, 1, 2]
    assert len(device.read(1000 * 192)) == 64  # a batch
    assert len(device.read_all()) == 32


def test_a_reader_sleeps_until_something_comes(module: Module, device: Device) -> None:
    module.sleeper(BY_SIGNAL)
    with pytest.raises(InterruptedError):
        device.read(blocking=True)
    module.sleeper(BY_OTHER)  # a packet that it has not asked for
    with pytest.raises(InterruptedError):
        device.read(blocking=True)
    device.write(command(wire.SUBSCRIBE, 1))
    module.sleeper(BY_PACKET)
    assert device.read(blocking=True)["kind"].tolist() == [ROW]


def test_a_failing_copy_is_an_error(module: Module, device: Device) -> None:
    module.fail(COPY)
    with pytest.raises(OSError, match="EFAULT"):
        device.write(command(wire.SUBSCRIBE, 1))
    device.write(command(wire.SUBSCRIBE, 1))
    module.arrive()
    module.fail(COPY)
    with pytest.raises(OSError, match="EFAULT"):
        device.read()
    module.arrive()
    assert len(device.read_all()) == 1


def test_opening(module: Module) -> None:
    opened = [module.open() for _ in range(32)]
    with pytest.raises(OSError, match="EMFILE"):
        module.open()
    for each in opened:
        each.close()
    module.fail(CDEVPRIV)
    with pytest.raises(OSError, match="ENOENT"):
        module.open()
    module.open().close()


# -- poll and kqueue


def test_poll(module: Module, device: Device) -> None:
    assert device.poll(POLLIN | POLLOUT) == POLLOUT
    module.arrive()
    assert device.poll(POLLIN) == 0 and device.woken() == 0
    device.write(command(wire.SUBSCRIBE, 1))
    assert device.poll(POLLIN) == 0
    module.arrive()
    assert device.woken() == 1
    assert device.poll(POLLIN | POLLOUT) == POLLIN | POLLOUT
    module.arrive()
    assert device.woken() == 1  # nobody waits
    device.read_all()
    assert device.poll(POLLIN) == 0


def test_kqueue(module: Module, device: Device) -> None:
    reads, writes = device.kevent(READ_FILTER), device.kevent(WRITE_FILTER)
    with pytest.raises(OSError, match="EINVAL"):
        device.kevent(-3)
    assert device.filter(reads) == (-1, 0) and device.filter(writes)[0] == 64
    device.write(command(wire.SUBSCRIBE, 1))
    for fired in (1, 2):
        module.arrive()
        assert device.filter(reads) == (192 * fired, fired)
    device.read_all()
    assert device.filter(reads) == (-1, 2)


# -- commands


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x" * 63, b"x" * 64, b"x" * 65, command(99), command(0),
        command(wire.GET_STATUS, magic=1), command(wire.GET_STATUS, version=2),
        command(wire.GET_STATUS, reserved=1), command(wire.SUBSCRIBE, 2), command(11),
        command(wire.GET_STATUS) + b"x" * 64,
    ],
)  # fmt: skip
def test_malformed_commands_are_refused(device: Device, data: bytes) -> None:
    with pytest.raises(OSError, match="EINVAL"):
        device.write(data)
    assert device.ask(wire.GET_STATUS, tag=7)[-1]["tag"] == 7


def test_several_commands_in_one_write(device: Device) -> None:
    assert device.write(b"".join(command(wire.GET_STATUS, tag=tag) for tag in range(5))) == 320
    assert device.read_all()["tag"].tolist() == list(range(5))


def test_who_reads_no_answers_gets_no_more(device: Device) -> None:
    for _ in range(8):
        device.write(command(wire.GET_STATUS))
    with pytest.raises(OSError, match="ENOBUFS"):
        device.write(command(wire.GET_STATUS))
    device.write(command(wire.DECIDE))
    assert len(device.read_all()) == 8
    assert len(device.ask(wire.GET_STATUS)) == 1


def test_one_controls_at_a_time(module: Module, device: Device) -> None:
    other = module.open()
    other.read_all()
    answer = device.ask(wire.ATTACH, 2, tag=5)
    assert answer["kind"].tolist() == [STATUS] and answer["tag"].tolist() == [5]
    assert (answer[0]["status"]["controls"], answer[0]["status"]["interval"]) == (1, 2)
    assert module.sysctl("controlled") == 1
    for kind, code in (
        (wire.ATTACH, wire.E_BUSY),
        (wire.DETACH, wire.E_NOT_CONTROLLER),
        (wire.CONFIGURE, wire.E_NOT_CONTROLLER),
    ):
        error = other.ask(kind, 1, 1, 1, 20, 2000, tag=9)[0]
        assert (error["kind"], error["tag"]) == (ERROR, 9)
        assert (error["error"]["code"], error["error"]["command"]) == (code, kind) and error["error"]["text"]
    assert device.ask(wire.DETACH)[0]["status"]["interval"] == 0
    assert other.ask(wire.ATTACH, 1)[0]["kind"] == STATUS
    other.close()
    assert module.sysctl("controlled") == 0  # a close detaches
    assert device.ask(wire.ATTACH, 3)[0]["status"]["interval"] == 3


def test_each_nth_packet_is_asked_about(module: Module, device: Device) -> None:
    device.ask(wire.ATTACH, 3)
    for number in range(9):
        module.arrive(100 + number)
    asks = device.read_all()
    assert set(asks["kind"].tolist()) == {ASK}
    records = asks["row"]["record"]
    assert records["packet_length"].tolist() == [100, 103, 106]
    assert records["sequence"].tolist() == [0, 3, 6]
    assert not records["action"].any() and not records["decided_by"].any()
    device.write(command(wire.DETACH))
    module.arrive()
    assert kinds(device) == [STATUS]


def test_a_new_controller_gets_no_old_asks(module: Module, device: Device) -> None:
    first = module.open()
    first.ask(wire.ATTACH, 1)
    module.arrive()
    first.close()
    device.write(command(wire.ATTACH, 1))
    module.arrive(300)
    entries = device.read_all()
    assert entries["kind"].tolist() == [STATUS, ASK]
    assert entries[1]["row"]["record"]["packet_length"] == 300


# -- decisions


def last_ask(device: Device) -> Any:
    entries = device.read_all()
    return entries[entries["kind"] == ASK][-1]["row"]["record"]


def answer(record: Any, action: int, /, **changes: int) -> bytes:
    fields = {
        "sequence": int(record["sequence"]), "expires_us": int(record["time_us"]) + 100_000,
        "queue": int(record["queue_type"]), "action": action,
    }  # fmt: skip
    return command(wire.DECIDE, **(fields | changes))


@pytest.mark.parametrize("action", [0, 1, 2])
def test_a_decision_is_used_once_for_the_queues_next_packet(module: Module, device: Device, action: int) -> None:
    device.write(command(wire.ATTACH, 1) + command(wire.SUBSCRIBE, 1))
    module.arrive(ecn=ECT_1)
    device.write(answer(last_ask(device), action))
    module.arrive()  # the other queue's
    queued = [module.arrive(ecn=ECT_1), module.arrive(ecn=ECT_1)]
    entries = device.read_all()
    rows = entries[entries["kind"] == ROW]["row"]["record"]
    assert queued == [action != 1, True]
    assert rows["applied_action"].tolist() == [0, action, 0]
    assert rows["decided_by"].tolist() == [0, 1, 2]  # the kernel, the agent, and unanswered: fallback


REFUSED = {
    "expired": ({"expires_us": 0}, "ETIMEDOUT"),
    "malformed": ({"action": 3}, "EINVAL"),
    "unasked": ({"sequence": 99}, "ESRCH"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_decisions_are_counted_and_do_nothing(module: Module, device: Device, reason: str) -> None:
    changes, error = REFUSED[reason]
    device.write(command(wire.ATTACH, 1))
    module.arrive()
    wrong = answer(last_ask(device), 1, **changes)
    device.write(wrong)  # DECIDE is never answered
    with pytest.raises(OSError, match=error):
        device.ioctl(DECIDE, wrong)
    assert module.arrive()
    status = device.ask(wire.GET_STATUS)[0]["status"]
    expected = [2 * (name == reason) for name in wire.REFUSALS]
    assert status["refused"].tolist() == expected and not status["agent"].any()


def test_decisions_out_of_order_are_refused(module: Module, device: Device) -> None:
    device.write(command(wire.ATTACH, 1))
    module.arrive()
    old = last_ask(device)
    module.arrive()
    device.ioctl(DECIDE, answer(last_ask(device), 0))
    with pytest.raises(OSError, match="ESTALE"):
        device.ioctl(DECIDE, answer(old, 1))
    assert module.arrive()


def test_a_decision_grows_old(module: Module, device: Device) -> None:
    device.write(command(wire.ATTACH, 1))
    module.arrive()
    device.ioctl(DECIDE, answer(last_ask(device), 1))
    module.advance(100_000_001)
    assert module.arrive()


def test_only_the_controller_decides(module: Module, device: Device) -> None:
    other = module.open()
    device.write(command(wire.ATTACH, 1))
    module.arrive()
    drop = answer(last_ask(device), 1)
    with pytest.raises(PermissionError):
        other.ioctl(DECIDE, drop)
    other.write(drop)
    device.close()
    reopened = module.open()
    with pytest.raises(PermissionError):
        reopened.ioctl(DECIDE, drop)  # the decision was asked of a descriptor that is closed
    assert module.arrive()
    reader = module.open(READ)
    with pytest.raises(OSError, match="EBADF"):
        reader.ioctl(DECIDE, drop)
    module.delete()
    with pytest.raises(OSError, match="ENXIO"):
        reopened.ioctl(DECIDE, drop)
    module.config()
    for each in (other, reopened, reader):
        each.close()
    device.fd = module.open().fd  # for the fixture to close


def test_the_shield_takes_the_queue_back_and_says_so(module: Module, device: Device) -> None:
    module.sysctl("shield_hits", 0)
    device.write(command(wire.ATTACH, 1))
    status = device.ask(wire.CONFIGURE, 0, 0, 512, 128, 50_000)[-1]
    assert status["kind"] == STATUS and status["status"]["shield"].tolist() == [150_000, 50_000, 512, 128, 1_000_000, 0]
    with pytest.raises(OSError, match="EINVAL"):
        device.write(command(wire.CONFIGURE, 0, 0, 512, 1, 50_000))
    module.arrive()
    for queued in (False, True):  # one drop of 128 packets is allowed
        device.write(answer(last_ask(device), 1))
        assert module.arrive() == queued
    entries = device.ask(wire.GET_STATUS)
    event = entries[entries["kind"] == EVENT][0]["event"]
    assert (event["kind"], event["queue"]) == (2, 0)
    status = entries[0]["status"]
    assert status["held"] == 1 and status["trips"].tolist() == [1, 0] and status["agent"][0] == 1


def test_an_agent_can_only_tighten_the_shield(module: Module, device: Device) -> None:
    """Its bounds are of the instance that it controls and end with its control; the sysctls are the operator's."""
    operator = dict(zip(wire.SHIELD, (90_000, 40_000, 9000, 100, 50_000, 512), strict=True))
    module.set_all(operator)
    module.config(2)
    module.arrive()
    module.arrive(number=2)

    def in_force(kind: int, *args: int) -> list[int]:
        entries = device.ask(kind, *args)
        return list(entries[entries["kind"] == STATUS][-1]["status"]["shield"].tolist())

    normal, tight = list(operator.values()), [20_000, 10_000, 1, 16, 60_000, 256]
    in_force(wire.ATTACH, 1)
    assert in_force(wire.CONFIGURE, 0, 0, 65536, 65536, 1000, 0) == normal
    assert in_force(wire.CONFIGURE, *tight) == tight
    assert [module.sysctl(name) for name in operator] == normal
    module.sysctl("shield_c_us", 80_000)  # the operator's change leaves what is tighter
    assert in_force(wire.GET_STATUS) == tight
    module.sysctl("instance", 2)  # its control goes over to the other one, and its bounds with it
    assert in_force(wire.GET_STATUS) == tight
    module.sysctl("instance", 1)
    assert in_force(wire.DETACH) == [80_000, *normal[1:]]
    module.sysctl("instance", 2)
    assert in_force(wire.ATTACH, 1) == [80_000, *normal[1:]]
    module.delete(2)


# -- parameters of the law

SAME = wire.FACTOR
DOUBLE = (2 * SAME, SAME, SAME, SAME, SAME)
"""Twice the target; the variant of the testbed has neither coupling nor step."""


def law(device: Device, kind: int = wire.GET_LAW, *args: int) -> wire.Law:
    found = device.ask(kind, *args, tag=4)[-1]
    assert (found["kind"], found["tag"]) == (wire.LAW, 4)
    return wire.read_law(found)


def target_us(module: Module, device: Device) -> int:
    """By which the next packet is decided."""
    module.arrive()
    entries = device.read_all()
    assert entries["kind"].tolist() == [ROW]  # nothing is asked
    return int(entries["row"]["record"]["qdelay_ref"][0])


def test_a_law_holds_for_its_lifetime(module: Module, device: Device) -> None:
    module.arrive()
    device.write(command(wire.SUBSCRIBE, 1))
    assert device.ask(wire.ATTACH, 0)[0]["status"]["controls"] == 1
    set_ = law(device, wire.SET_LAW, *DOUBLE, 100)
    assert (set_.factors["target"], set_.lasts_ms, set_.sets) == (2.0, 100, 1)
    assert target_us(module, device) == 30_000
    module.advance(99_999_999)
    assert target_us(module, device) == 30_000 and law(device).lasts_ms == 1
    module.advance(1)
    assert target_us(module, device) == 15_000
    gone = law(device)
    assert (set(gone.factors.values()), gone.lasts_ms, gone.expired) == ({1.0}, 0, 1)
    assert law(device, wire.SET_LAW, *DOUBLE, 1 << 31).lasts_ms == 1000  # no longer than the operator lets it
    module.advance(500_000_000)
    law(device, wire.SET_LAW, *DOUBLE, 1000)  # each new one starts the lifetime anew
    module.advance(900_000_000)
    assert target_us(module, device) == 30_000


@pytest.mark.parametrize("how", ["killed", "detached", "attached again", "operator", "expired by dummynet"])
def test_a_law_ends_with_its_agent(module: Module, device: Device, how: str) -> None:
    device.write(command(wire.SUBSCRIBE, 1))
    agent = module.open()
    agent.read_all()
    module.arrive()
    module.dequeue()
    device.read_all()
    agent.ask(wire.ATTACH, 0)
    law(agent, wire.SET_LAW, *DOUBLE, 1000)
    assert law(device).factors["target"] == 2.0  # everybody may know
    if how == "killed":
        agent.close()
    elif how == "detached":
        agent.ask(wire.DETACH)
    elif how == "attached again":
        agent.ask(wire.ATTACH, 0)
    elif how == "operator":
        module.sysctl("tupdate_us", 20_000)
    else:
        assert module.expire()
        agent.close()
    assert set(law(device).factors.values()) == {1.0}
    assert target_us(module, device) == 15_000
    if how not in ("killed", "expired by dummynet"):
        agent.close()


def test_a_law_out_of_bounds_is_refused(module: Module, device: Device) -> None:
    other = module.open()
    other.read_all()
    module.arrive()
    device.ask(wire.ATTACH, 0)
    module.sysctl("law_target_high", 3 * SAME)
    law(device, wire.SET_LAW, *DOUBLE, 1000)
    wrong = {
        "target": (3 * SAME + 1, *DOUBLE[1:], 1000), "beta": (SAME, SAME, 1, SAME, SAME, 1000),
        "coupling": (*DOUBLE[:3], SAME + 1, SAME, 1000), "lifetime": (*DOUBLE, 0), "all": (0,) * 6,
    }  # fmt: skip
    for args in wrong.values():
        error = device.ask(wire.SET_LAW, *args, tag=9)[0]
        assert (error["kind"], error["tag"], error["error"]["code"]) == (ERROR, 9, wire.E_OUT_OF_BOUNDS)
    assert (now := law(device)).factors["target"] == 2.0 and now.refused == len(wrong)
    assert other.ask(wire.SET_LAW, *DOUBLE, 1000)[0]["error"]["code"] == wire.E_NOT_CONTROLLER
    other.close()


def test_a_law_without_a_scheduler(library: Path) -> None:
    with Module(library) as module:
        device = module.open()
        bounds = wire.read_hello(device.read()[0])
        assert bounds.law["coupling"] == bounds.law["threshold"] == (1.0, 1.0) and bounds.law_lifetime_ms == 1000
        assert bounds.law["target"] == pytest.approx((0.13, 4.0), abs=1e-5)
        device.ask(wire.ATTACH, 0)
        for kind in (wire.SET_LAW, wire.GET_LAW):
            assert device.ask(kind, *DOUBLE, 1000)[0]["error"]["code"] == wire.E_NO_DEVICE
        module.sysctl("variant", 1)
        reopened = module.open()
        bounds = wire.read_hello(reopened.read()[0])
        for name, low, high in zip(tune.PARAMETERS, tune.LOWEST, tune.HIGHEST, strict=True):
            assert bounds.law[name] == pytest.approx((low, high), abs=1e-5)  # those of `L4S-DualPI2-Tune-v0`
        for each in (device, reopened):
            each.close()


def test_the_greeting_tells_the_parameters_of_the_law(module: Module) -> None:
    for number, variant in enumerate(wire.VARIANTS):
        module.sysctl("variant", number)
        wanted = {name: module.sysctl(name) for name in wire.LAW_VALUES[variant]}
        for name in set(wanted) - {"drop_on_overload", "classic_protection", "quirks"}:  # each another value
            wanted[name] += len(name) + number
            module.sysctl(name, wanted[name])
        device = module.open()
        assert wire.read_hello(device.read()[0]).law_values == wanted
        device.close()
    module.sysctl("step_ns", 10_000_000_000)
    device = module.open()
    assert wire.read_hello(device.read()[0]).law_values["step_ns"] == 2**32 - 1
    device.close()


def test_what_a_law_did_is_counted(module: Module, device: Device) -> None:
    for _ in range(3):
        module.arrive(1000)
    module.arrive(500, ecn=ECT_1)
    module.advance(2_000_000)
    assert module.dequeue() is not None
    seen = law(device)
    assert (seen.offered, seen.offered_bytes, seen.left) == ((3, 1), (3000, 500), (1, 0))
    assert (seen.left_ns, seen.queued_bytes, seen.rate_bps) == ((2_000_000, 0), (2000, 500), 8_000_000)
    assert (seen.marks, seen.drops, seen.prob) == ((0, 0), (0, 0), 0.0)
    assert seen.entry["law"]["served_bytes"] == 1000


# -- ioctl


def test_status_by_ioctl(module: Module, device: Device) -> None:
    module.arrive(ecn=ECT_1)
    room = ctypes.create_string_buffer(wire.STATUS_BODY.itemsize)
    device.ioctl(GET_STATUS, room)
    status = np.frombuffer(room.raw, wire.STATUS_BODY)[0]
    assert status["packets"].tolist() == [0, 1] and not status["controls"]
    device.ioctl(FIONBIO, ctypes.create_string_buffer(4))
    with pytest.raises(OSError, match="ENOTTY"):
        device.ioctl(IN | 4 << 16 | ord("L") << 8 | 77)


def law_by_ioctl(device: Device, kind: int, *args: int) -> Any:
    """The body that answers."""
    room = ctypes.create_string_buffer(command(kind, *args), 64 + wire.LAW_BODY.itemsize)
    device.ioctl(LAW, room)
    return np.frombuffer(room.raw, wire.LAW_BODY, 1, 64)[0]


def test_the_law_by_ioctl(module: Module, device: Device) -> None:
    with pytest.raises(OSError, match="ENXIO"):
        law_by_ioctl(device, wire.GET_LAW)
    module.advance(1_000_000)
    module.arrive()
    with pytest.raises(OSError, match="EPERM"):
        law_by_ioctl(device, wire.SET_LAW, *DOUBLE, 100)
    device.ask(wire.ATTACH, 0)
    found = law_by_ioctl(device, wire.SET_LAW, *DOUBLE, 100)
    assert (found["factor"].tolist(), found["lasts_ms"], found["rate_bps"]) == (list(DOUBLE), 100, 8_000_000)
    assert set(found["set_prob"]) == {wire.NO_PROB} and found["flows"].tolist() == [1, 0]
    found = law_by_ioctl(device, wire.SET_PROB, 1 << 30, 1 << 31, 100)
    assert found["set_prob"].tolist() == [1 << 30, 1 << 31] and set(found["factor"]) == {SAME}
    module.sysctl("prob_c_high", SAME // 4)
    for wrong in ((wire.SET_LAW, 0), (wire.SET_PROB, (1 << 29) + 1, 0, 100), (wire.SET_PROB, 0, 0, 0)):
        with pytest.raises(OSError, match="ERANGE"):
            law_by_ioctl(device, *wrong)
    with pytest.raises(OSError, match="EINVAL"):
        law_by_ioctl(device, wire.DETACH)
    reader = module.open(READ)
    assert law_by_ioctl(reader, wire.GET_LAW)["refused"] == 3
    with pytest.raises(OSError, match="EBADF"):
        law_by_ioctl(reader, wire.SET_LAW, *DOUBLE, 100)
    reader.close()


def test_probabilities_by_the_device(module: Module, device: Device) -> None:
    module.arrive()
    device.ask(wire.ATTACH, 0)
    assert law(device, wire.SET_PROB, 1 << 29, 1 << 31, 100).set_prob == (0.25, 1.0)
    assert device.ask(wire.SET_PROB, 0, (1 << 31) + 1, 100)[0]["error"]["code"] == wire.E_OUT_OF_BOUNDS
    module.advance(100_000_000)
    assert law(device).set_prob is None


def request(model: Model | bytes, **changes: int) -> bytes:
    data = model if isinstance(model, bytes) else model.pack()
    held = ctypes.create_string_buffer(data, len(data))
    KEPT.append(held)  # the request has its address
    fields = {"address": ctypes.addressof(held), "size": len(data), "reserved": 0} | changes
    return struct.pack("<QII", fields["address"], fields["size"], fields["reserved"])


DROPS, PASSES = leaf(1.0, 0.0), leaf(0.0, 0.0)


def test_a_model_decides(module: Module, device: Device) -> None:
    module.set_all({"shield_drops": 65536, "shield_c_us": 0, "shield_hits": 0})
    device.ioctl(MODEL, request(split(LENGTH, 999, (0.0, 0.0), (1.0, 0.0))))
    assert [module.arrive(length) for length in (999, 1000, 500)] == [True, False, True]
    status = device.ask(wire.GET_STATUS)[0]["status"]
    assert status["model"] == 1 and status["agent"].tolist() == [3, 0]
    device.ioctl(MODEL, request(PASSES))  # another one
    assert module.arrive(1000)
    device.ioctl(MODEL, request(DROPS))
    while module.dequeue():
        pass
    module.expire()
    assert not module.arrive()  # of the next instance too
    device.ioctl(MODEL, request(b"", size=0))
    assert module.arrive()
    assert device.ask(wire.GET_STATUS)[0]["status"]["model"] == 0


def test_a_wrong_model_is_refused_and_the_old_one_stays(module: Module, device: Device) -> None:
    module.set_all({"shield_drops": 65536, "shield_hits": 0})
    device.ioctl(MODEL, request(DROPS))
    data = PASSES.pack()
    wrong = {
        "EFBIG": request(data, size=MOST_BYTES + 1),
        "EPROTONOSUPPORT": request(data[:4] + b"\2" + data[5:]),
        "ERANGE": request(data[:126] + b"\1" + data[127:]),  # values of a leaf that is not there
        "EINVAL": request(data, reserved=1),
    }
    for error, asked in [*wrong.items(), ("EINVAL", request(data[:-1])), ("EINVAL", request(b"x" + data[1:]))]:
        with pytest.raises(OSError, match=error):
            device.ioctl(MODEL, asked)
        assert not module.arrive()  # under traffic
    module.fail(COPY)
    with pytest.raises(OSError, match="EFAULT"):
        device.ioctl(MODEL, request(PASSES))
    other = module.open()
    other.ask(wire.ATTACH, 1)
    with pytest.raises(OSError, match="EBUSY"):
        device.ioctl(MODEL, request(PASSES))
    other.close()
    assert not module.arrive()


def test_a_model_sets_parameters_by_the_timer(module: Module, device: Device) -> None:
    """Of the law; the operator's hold again where it is unloaded, and the next instance has it too."""
    module.arrive()
    device.ioctl(MODEL, request(constant("parameters", 1.0, 0.0, 0.0, 0.0, 0.0, interval_ms=20.0)))
    assert law(device).sets == 0
    module.advance(45_000_000)
    found = law(device)
    assert found.sets == 2 and found.factors["target"] == 4.0
    module.set_all({"law_target_high": 131_072})
    module.advance(20_000_000)
    assert law(device).factors["target"] == 2.0
    device.ioctl(MODEL, request(PASSES))
    assert law(device).factors["target"] == 1.0
    device.ioctl(MODEL, request(constant("probability", 0.0, -1.0, interval_ms=20.0)))
    while module.dequeue():
        pass
    module.expire()
    module.arrive()
    module.advance(20_000_000)
    assert law(device).set_prob == pytest.approx((0.01, 0.0), rel=1e-4)
    device.ioctl(MODEL, request(b"", size=0))
    assert law(device).set_prob is None


def test_a_loaded_model_goes_with_the_module(library: Path) -> None:
    with Module(library) as module:
        device = module.open()
        device.ioctl(MODEL, request(PASSES))
        device.close()
