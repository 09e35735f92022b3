"""The FreeBSD module in the simulated kernel: packets, statistics, sysctls, loading and unloading, lack of memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from l4s_gym.bridge import wire
from l4s_gym.data.logs import read_log
from l4s_gym.live.router import parameters
from l4s_gym.schema import CE, ECT_0, ECT_1, NOT_ECT, PRINTED, RECORD
from l4s_gym.sim import engine, layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.drive import ARRIVAL as OFFERED
from l4s_gym.sim.drive import offer, open_loop
from l4s_gym.sim.scenario import load
from tests.kernel.core import UNSHIELDED, Core
from tests.kernel.module import (
    ALLOCATION,
    ARRIVAL,
    INTERFACE,
    IP6,
    LAYER2,
    MAKE_DEV,
    MODEVENT,
    NOT_IP,
    SHORT,
    SPLIT,
    Module,
    command,
)

FORMS = [0, IP6, LAYER2, IP6 | LAYER2, SPLIT, IP6 | SPLIT, LAYER2 | SPLIT, INTERFACE]


# -- against the simulator


def closed_loop(
    name: str, seed: int, seconds: float
) -> tuple[npt.NDArray[Any], npt.NDArray[np.void], int, dict[str, int]]:
    """Arrivals of a closed loop at their exact times, the simulator's rows, the generator's seed, the parameters."""
    scenario = load(name).replace(horizon_s=seconds)
    batch = Batch(scenario, aqm="dualpi2_freebsd", log_rows=1)
    batch.reset(0, np.random.default_rng(seed))
    start = int(batch.env["rng"][0])
    env, packet, log = batch.env, batch.packet, batch.log
    arrivals, rows = np.zeros(1 << 17, ARRIVAL), np.zeros(1 << 17, RECORD)
    env["log_rows"] = 1  # so that it comes back before the first packet too
    now, waiting, taken = env["now_ns"], env["arriving"], env["log_rows"]
    count = 0
    while True:
        engine.advance(batch.address, batch.stride, 0, 1, 0)
        if count:
            rows[count - 1] = log[0, 0]
        if batch.status[0] != layout.LOG_FULL:
            break
        one = packet[0, waiting[0]]
        arrivals[count] = (now[0], one["len"], one["flow"], one["ecn"], 0)
        taken[0] = 0
        count += 1
    return arrivals[:count], rows[:count], start, parameters(scenario, "dualpi2_freebsd")


def assert_same(library: Path, name: str, seed: int, seconds: float) -> npt.NDArray[np.void]:
    arrivals, expected, start, values = closed_loop(name, seed, seconds)
    with Module(library) as module:
        module.set_all(values | UNSHIELDED)
        module.random(start)
        module.config()
        rows = module.drive(arrivals, 8e9 / 8e6)
        assert module.calls(ALLOCATION) > 0
        module.delete()
    flows = set(zip(rows["flow_id"].tolist(), expected["flow_id"].tolist(), strict=True))
    assert len(flows) == len(set(expected["flow_id"])) == len(set(rows["flow_id"]))
    rows["flow_id"] = expected["flow_id"]  # a hash of addresses and ports, one for each flow
    wrong = np.flatnonzero(rows != expected)
    assert not wrong.size, f"{wrong.size} rows differ, first {wrong[0]}:\n{rows[wrong[0]]}\n{expected[wrong[0]]}"
    return rows


def test_rows_are_the_simulators(library: Path) -> None:
    rows = assert_same(library, "l4s-llm-testbed", 3, 20.0)
    assert len(rows) > 10_000 and set(rows["queue_type"]) == {0, 1}
    assert set(rows["applied_action"]) == {0, 1, 2}


@pytest.mark.slow
def test_a_million_rows_are_the_simulators(library: Path) -> None:
    count = sum(
        len(assert_same(library, name, seed, 60.0))
        for name, seeds in (("l4s-llm-testbed", range(24)), ("l4s-llm-testbed-prague", range(4)))
        for seed in seeds
    )
    assert count >= 1_000_000


@pytest.mark.parametrize("aqm", ["dualpi2_freebsd", "dualpi2_rfc9332", "dualpi2_linux"])
def test_rows_of_random_traffic_are_the_simulators(library: Path, aqm: str) -> None:
    rng = np.random.default_rng(11)
    scenario = open_loop(8.0, limit_packets=200)
    packets = np.zeros(8000, ARRIVAL)
    packets["time_ns"] = np.cumsum(rng.exponential(1e6, len(packets)))
    packets["time_ns"][0] = 0  # dummynet makes the instance, and its control law begins, with the first packet
    packets["length"] = rng.choice([100, 1500], len(packets), p=[0.2, 0.8])
    packets["flow"], packets["ecn"] = rng.integers(0, 9, len(packets)), rng.integers(0, 4, len(packets))
    offered = np.zeros(len(packets), OFFERED)
    for name in ("time_ns", "length", "flow", "ecn"):
        offered[name] = packets[name]
    offered["action"] = -1
    expected = offer(scenario, offered, aqm=aqm, seed=99)
    with Module(library) as module:
        module.set_all(parameters(scenario, aqm) | UNSHIELDED)
        module.random(99)
        module.config()
        rows = module.drive(packets, 8e9 / 8e6)  # where decisions fall at departure, rows are complete then
        module.delete()
    assert set(rows["applied_action"]) == {0, 1, 2}
    expected["flow_id"] = rows["flow_id"]
    assert (rows == expected).all()


# -- packets


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ecn", [NOT_ECT, ECT_1, ECT_0, CE])
def test_every_form_of_packet_is_read_and_sent(module: Module, form: int, ecn: int) -> None:
    module.config()
    device = module.open()
    device.write(command(wire.SUBSCRIBE, 1))
    assert module.arrive(1400, flow=300, ecn=ecn, form=form)
    assert module.arrive(1400, flow=300, ecn=ecn, form=form)
    assert module.arrive(1400, flow=301, ecn=ecn, form=form)
    rows = device.read_all()[1:]["row"]["record"]
    assert rows["ecn"].tolist() == [ecn] * 3
    assert rows["queue_type"].tolist() == [int(ecn == ECT_1)] * 3  # CE is classic in the testbed's kernel
    assert rows["packet_length"].tolist() == [1400] * 3
    assert rows["flow_id"][0] == rows["flow_id"][1] != rows["flow_id"][2]
    around = 14 if form & LAYER2 else 0
    for flow in (300, 300, 301):
        assert module.dequeue() == (1400 + around, flow, ecn, True)
    assert module.dequeue() is None
    device.close()
    module.delete()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ecn", [ECT_1, ECT_0])
def test_a_mark_at_arrival_sets_ce(module: Module, form: int, ecn: int) -> None:
    module.config()
    device = module.open()
    device.write(command(wire.ATTACH, 1))
    module.arrive(ecn=ecn, form=form)
    ask = device.read_all()[-1]
    record = ask["row"]["record"]
    sequence, expires_us = int(record["sequence"]), int(record["time_us"]) + 500_000
    queue = int(record["queue_type"])
    device.write(command(wire.DECIDE, sequence=sequence, expires_us=expires_us, queue=queue, action=2))
    module.arrive(ecn=ecn, form=form)
    first, second = module.dequeue(), module.dequeue()
    assert first is not None and second is not None
    assert (first.ecn, second.ecn) == (ecn, CE) and second.checksum_holds
    device.close()
    module.delete()


@pytest.mark.parametrize("form", FORMS)
def test_a_mark_at_departure_sets_ce(module: Module, form: int) -> None:
    module.set_all({"variant": 1, "min_th_ns": 1_000_000, "range_ns": 1000, "th_len": 0})
    module.config()
    for _ in range(3):
        module.arrive(ecn=ECT_1, form=form)
    module.advance(5_000_000)
    sent = list(iter(module.dequeue, None))
    assert [one.ecn for one in sent] == [ECT_1, CE, CE]  # hits are spread evenly: none for the first
    assert all(one.checksum_holds for one in sent)
    module.delete()


@pytest.mark.parametrize("form", [NOT_IP, SHORT, SHORT | IP6])
def test_what_is_no_ip_packet_passes_as_classic(module: Module, form: int) -> None:
    module.config()
    device = module.open()
    device.write(command(wire.SUBSCRIBE, 1))
    assert module.arrive(ecn=ECT_1, form=form)
    row = device.read_all()[-1]["row"]["record"]
    assert (row["queue_type"], row["ecn"], row["flow_id"]) == (0, NOT_ECT, 0)
    assert module.dequeue() is not None
    device.close()
    module.delete()


def test_a_packet_whose_interface_has_gone_is_dropped(module: Module) -> None:
    module.config()
    module.arrive(form=INTERFACE)
    module.arrive()
    module.interface(gone=True)
    sent = module.dequeue()
    module.interface(gone=False)
    assert sent is not None and module.dequeue() is None
    assert module.statistics().drops == 1 and module.statistics().queued == 0
    module.delete()


def test_statistics_are_dummynets(module: Module) -> None:
    module.set_all({"limit_packets": 3})
    module.config()
    before = module.statistics().io_pkt_drop if module.arrive(1000) else 0
    for length in (200, 300, 400):
        assert module.arrive(length)  # queued, and the oldest makes room
    counts = module.statistics()
    assert counts[:6] == (4, 1900, 3, 900, 1, 1)
    assert counts.io_pkt_drop == before + 1
    assert [sent.length for sent in iter(module.dequeue, None)] == [200, 300, 400]
    assert module.statistics()[2:6] == (0, 0, 1, 1)
    module.delete()


def test_a_packet_that_finds_no_room_is_dropped(module: Module) -> None:
    module.set_all({"variant": 1, "limit_packets": 2})
    module.config()
    assert [module.arrive() for _ in range(3)] == [True, True, False]
    assert module.statistics()[2:6] == (2, 3000, 1, 1)
    module.delete()


# -- sysctls


def test_every_parameter_is_a_sysctl_with_its_range(module: Module, build: Callable[..., Path]) -> None:
    ranges = Core(build("libl4s_core.so") / "libl4s_core.so").ranges
    status = {"packets", "rows", "rows_lost", "no_memory", "controlled"}
    assert module.sysctls() == set(ranges) | {"ring_entries", "instance", "log"} | status
    for name, (low, high) in ranges.items():
        normal = module.sysctl(name)
        for value in (low, high):
            module.sysctl(name, value)
            assert module.sysctl(name) == value
        wrong = [high + 1] if low == 0 else [low - 1, high + 1]
        for value in wrong:
            with pytest.raises(OSError, match="EINVAL"):
                module.sysctl(name, value)
        assert module.sysctl(name) == high
        module.sysctl(name, normal)
    for name in status:
        with pytest.raises(PermissionError):
            module.sysctl(name, 1)
    for name, value in (("ring_entries", 15), ("ring_entries", 1 << 20), ("log", 2)):
        with pytest.raises(OSError, match="EINVAL"):
            module.sysctl(name, value)


def test_a_change_under_traffic_keeps_the_packets(module: Module) -> None:
    module.config()
    for number in range(40):
        module.arrive(1000 + number, ecn=number % 2)
    module.advance(20_000_000)
    changes = ({"variant": 1}, {"variant": 2}, {"variant": 0, "quirks": 0}, {"quirks": 32767}, {"tupdate_us": 1000})
    for values in changes:
        module.set_all(values)
        module.config()  # the same scheduler once more, as ipfw does it
        module.advance(3_000_000)
        assert module.statistics().queued == 40
    lengths = sorted(sent.length for sent in iter(module.dequeue, None))
    assert lengths == [1000 + number for number in range(40)]
    module.delete()


def test_a_smaller_buffer_evicts_at_the_next_packet(module: Module) -> None:
    module.config()
    for _ in range(20):
        module.arrive()
    module.sysctl("limit_packets", 5)
    module.arrive()
    counts = module.statistics()
    assert (counts.queued, counts.drops, counts.same_in_queue) == (5, 16, 1)
    module.delete()


def test_parameters_reach_ipfw(module: Module) -> None:
    module.config()
    module.set_all({"target_us": 20000, "alpha": 7})
    name, par = module.getconfig()
    assert name == "L4S" and par == [20000, 15000, 150000, 819, 7, 10240, 19, 0, 10240, 0]
    module.delete()


def test_the_clock_has_ticks_if_asked(module: Module) -> None:
    module.sysctl("tick_ns", 10_000_000)
    module.config()
    module.advance(4_000_000)
    module.arrive(), module.arrive()
    module.advance(3_000_000)
    module.dequeue()
    device = module.open()
    device.write(command(wire.SUBSCRIBE, 1))
    module.arrive()
    module.advance(10_000_000)
    module.dequeue()
    module.arrive()
    delays = device.read_all()[1:]["row"]["record"]["current_queue_delay"]
    assert delays.tolist() == [0, 10_000]
    device.close()
    module.delete()


def test_time_does_not_run_backwards(module: Module) -> None:
    module.config()
    device = module.open()
    device.write(command(wire.SUBSCRIBE, 1))
    module.advance(50_000_000)
    module.arrive()
    module.jitter(20_000_000)
    module.arrive()
    assert device.read_all()[1:]["row"]["record"]["time_us"].tolist() == [50_000, 50_000]
    device.close()
    module.delete()


# -- the testbed's lines


def test_printed_lines_are_the_rows(module: Module, tmp_path: Path) -> None:
    module.config()
    module.sysctl("log", 1)
    device = module.open()
    device.write(command(wire.SUBSCRIBE, 1))
    for number in range(200):
        module.arrive(1500 if number % 3 else 52, ecn=number % 4, flow=number % 7)
        module.advance(2_000_000)
        if number % 3 == 0:
            module.dequeue()
    rows = device.read_all()[1:]["row"]["record"]
    path = tmp_path / "messages"
    path.write_bytes(module.log())
    parsed = read_log(path)[0]
    names = [field.name for field in PRINTED]
    assert len(parsed) == 200 and (parsed[names] == rows[names]).all()
    module.sysctl("log", 0)
    module.arrive()
    assert module.log() == b""
    device.close()
    module.delete()


# -- instances


def test_an_idle_instance_that_dummynet_forgets_goes_on(module: Module) -> None:
    module.config()
    device = module.open()
    device.write(command(wire.SUBSCRIBE, 1) + command(wire.ATTACH, 1))
    for _ in range(3):
        module.arrive(ecn=ECT_1)
        assert not module.expire()  # a packet waits
        module.dequeue()
        assert module.expire() and not module.expire()
        module.advance(100_000_000)
    entries = device.ask(wire.GET_STATUS)
    rows = entries[entries["kind"] == wire.ROW]["row"]["record"]
    asks = entries[entries["kind"] == wire.ASK]["row"]["record"]
    assert rows["sequence"].tolist() == asks["sequence"].tolist() == [0, 1, 2]
    assert rows["total_packets"].tolist() == [0, 1, 2]
    assert entries["kind"].tolist()[:3] == [wire.HELLO, wire.STATUS, wire.STATUS]  # answers first
    assert entries[2]["status"]["packets"].tolist() == [0, 3]
    module.delete()
    assert device.ask(wire.GET_STATUS)[0]["status"]["packets"].tolist() == [0, 0]
    device.close()


def test_the_device_speaks_of_the_chosen_instance(module: Module) -> None:
    for number in (1, 2):
        module.config(number)
        module.arrive(number=number)
    device = module.open()
    device.write(command(wire.SUBSCRIBE, 1))

    def seen() -> list[int]:
        for number in (1, 2):
            module.arrive(1000 + number, number=number)
        entries = device.read_all()
        rows = entries[entries["kind"] == wire.ROW]["row"]["record"]
        return [int(length) for length in rows["packet_length"]]

    assert seen() == [1001]
    module.sysctl("instance", 2)
    assert seen() == [1002]
    module.sysctl("instance", 3)
    assert seen() == []
    module.sysctl("instance", 0)
    assert seen() == [1001]
    module.delete(1)
    module.arrive(1005, number=2)
    assert device.read_all()["row"]["record"]["packet_length"].tolist() == [1005]
    device.close()
    module.delete(2)


def test_instances_of_two_vnets_have_their_own_queues(module: Module) -> None:
    for vnet in (0, 1):
        module.config(vnet=vnet)
        for number in range(30):
            module.arrive(500 + vnet, ecn=number % 2, vnet=vnet)
    module.advance(200_000_000)  # the control laws of both run, each in its vnet
    for vnet in (0, 1):
        assert module.statistics(vnet=vnet).queued == 30
        left = [module.dequeue(vnet=vnet) for _ in range(30)]
        assert {sent.length for sent in left if sent is not None} == {500 + vnet}
        assert module.dequeue(vnet=vnet) is None
        module.delete(vnet=vnet)


# -- loading, unloading, lack of memory


def test_load_and_unload(library: Path) -> None:
    for _ in range(3):
        with Module(library) as module:
            with pytest.raises(FileExistsError):
                module.load()
            with pytest.raises(FileNotFoundError):
                module.open(), module.open(), module.sysctl("nothing")
            for fd in (0, 1):
                module._lib.harness_close(fd)


@pytest.mark.parametrize("kind", [MAKE_DEV, MODEVENT])
def test_a_load_that_fails_leaves_nothing(library: Path, kind: int) -> None:
    module = Module(library)
    module.fail(kind)
    with pytest.raises(OSError):
        module.load()
    assert module.live() == (0, "")
    with module:
        module.config()
        module.delete()


def test_unload_is_refused_while_in_use(module: Module) -> None:
    module.config()  # no instance yet: the stock schedulers let themselves be unloaded here
    with pytest.raises(OSError, match="EBUSY"):
        module.unload()
    module.arrive()
    with pytest.raises(OSError, match="EBUSY"):
        module.unload()
    module.delete()
    device = module.open()
    number = device.kevent(-1)
    with pytest.raises(OSError, match="EBUSY"):
        module.unload()
    assert device.filter(number)[0] > 0 and len(device.read_all()) == 1
    device.close()
    module.fail(MODEVENT)
    with pytest.raises(OSError, match="EBUSY"):
        module.unload()
    module.open().close()  # and it works as before


def test_packets_that_wait_are_freed_with_their_scheduler(module: Module) -> None:
    module.config()
    for number in range(100):
        module.arrive(ecn=number % 4, form=FORMS[number % len(FORMS)])
    module.delete()


def traffic(module: Module) -> None:
    """Some of everything."""
    device = module.open()
    device.write(command(wire.SUBSCRIBE, 1))
    module.config()
    for number in range(24):
        module.arrive(ecn=number % 4, form=FORMS[number % len(FORMS)])
        if number % 3 == 0:
            module.advance(1_000_000)
            module.dequeue()
    module.sysctl("variant", 1)
    while module.dequeue():
        module.advance(1_000_000)
    module.expire()
    module.arrive()
    device.close()
    module.delete()


def test_each_allocation_may_fail(library: Path) -> None:
    with Module(library) as module:
        before = module.calls(ALLOCATION)
        traffic(module)
        count = module.calls(ALLOCATION) - before
    assert count > 30
    for nth in range(1, count + 1):
        with Module(library) as module:
            module.fail(ALLOCATION, nth)
            traffic(module)
            module.fail(ALLOCATION, 0)


def test_a_packet_without_memory_is_a_counted_drop(module: Module) -> None:
    module.config()
    assert module.arrive()
    module.fail(ALLOCATION)
    assert not module.arrive()
    module.fail(ALLOCATION, 2)
    assert not module.arrive(form=SPLIT)  # the pullup fails
    assert module.statistics()[4:6] == (2, 1)
    assert module.sysctl("no_memory") == 2 and module.sysctl("packets") == 1
    module.delete()


# -- the simulation itself


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ("lib.sim_dn_parms()", "V_dn_cfg without a vnet"),
        ("lib.sim_malloc(8, None, 2 | 1)", "neither or both"),
        ("m = lib.l4s_mtx; lib.harness_load(); lib.sim_mtx_lock(m); lib.sim_mtx_lock(m)", "l4s locked while l4s is"),
        ("m = lib.l4s_mtx; lib.harness_load(); lib.sim_mtx_lock(m); lib.sim_may_sleep(b'x')", "sleeps while l4s"),
        ("m = lib.l4s_mtx; lib.harness_load(); lib.sim_mtx_lock(m); lib.harness_config(1, 0, 8)", "dn_uh locked while"),
        ("lib.sim_mtx_lock(lib.l4s_mtx)", "a mutex that is not there"),
    ],
)
def test_the_simulated_kernel_panics(library: Path, calls: str, message: str) -> None:
    code = f"import ctypes; lib = ctypes.CDLL({str(library)!r}); {calls}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0 and message in done.stderr, done.stderr
