"""Each check of the doctor: what it says of a healthy testbed, of a sick one, and of evidence that is not there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from l4s_gym.bridge import wire
from l4s_gym.bridge.client import Client
from l4s_gym.data.logs import NAMES_24
from l4s_gym.data.simulated import simulate_log
from l4s_gym.live import doctor, machine
from l4s_gym.live.doctor import Evidence, Finding
from l4s_gym.schema import BY_NAME
from l4s_gym.sim.scenario import load
from tests.bridge.conftest import Serve
from tests.bridge.server import log_of

ALL = frozenset(BY_NAME)
PRINTED = frozenset(NAMES_24)


@pytest.fixture(scope="module")
def vm() -> Any:
    """The testbed as its virtual machines ran it: every packet twice through the queue, hz = 100."""
    return simulate_log("l4s-llm-testbed-vm", seed=4, seconds=60)


def of(records: Any, present: frozenset[str] = ALL, **changes: Any) -> Evidence:
    """Evidence, with some fields set otherwise."""
    records = records.copy()
    for name, value in changes.items():
        records[name] = value
    return Evidence(records, present)


def worst(found: Sequence[Finding]) -> dict[str, str]:
    """Names of the checks that ask for something."""
    return {each.name: each.verdict for each in found if each.verdict in ("warn", "fail")}


# -- whole testbeds


def test_a_healthy_testbed(simulated: Any) -> None:
    found = doctor.examine(of(simulated))
    assert worst(found) == {} and doctor.healthy(found)
    by_name = {each.name: each for each in found}
    assert by_name["offered twice"].verdict == by_name["marks"].verdict == "ok"
    assert len(by_name) == len(found) == len(doctor.ROW_CHECKS) + 1


def test_the_virtual_machines(vm: Any) -> None:
    found = doctor.examine(of(vm))
    assert worst(found) == {"clock": "fail", "offered twice": "fail"}
    assert not doctor.healthy(found)
    assert all(each.remedy for each in found if each.verdict in ("warn", "fail"))


def test_a_text_log_tells_less(simulated: Any, vm: Any) -> None:
    found = {each.name: each for each in doctor.examine(of(simulated, PRINTED))}
    assert {name for name, each in found.items() if each.verdict == "unknown"} == {
        "ECN",
        "ECT(1)",
        "offered twice",
        "rows",
    }
    assert worst(doctor.examine(of(vm, PRINTED))) == {"clock": "fail"}


def test_no_rows_at_all() -> None:
    found = doctor.examine(of(log_of(0)))
    assert worst(found) == {"traffic": "fail"}
    assert {each.verdict for each in found[1:]} == {"unknown"}


def test_fields_that_a_source_lacks(simulated: Any) -> None:
    few = frozenset({"queue_type", "action", "current_queue_delay", "drop_probability", "length_in_bytes"})
    records = simulated.copy()
    for name in ALL - few:
        records[name] = 0
    found = {each.name: each.verdict for each in doctor.examine(Evidence(records, few))}
    assert [name for name, verdict in found.items() if verdict == "fail"] == []
    assert found["offloads"] == found["marking allowed"] == found["offered twice"] == "unknown"


# -- single checks of rows


def test_traffic() -> None:
    assert doctor.check_traffic(of(log_of(10))).verdict == "warn"
    assert doctor.check_traffic(of(log_of(100))).verdict == "ok"


def test_marks() -> None:
    assert doctor.check_marks(of(log_of(100))).verdict == "fail"
    assert doctor.check_marks(of(log_of(100), applied_action=2)).verdict == "ok"
    assert doctor.check_marks(of(log_of(100), PRINTED, action=2)).verdict == "ok"
    assert doctor.check_marks(of(log_of(10))).verdict == "unknown"


def test_ecn() -> None:
    assert doctor.check_ecn(of(log_of(100))).verdict == "ok"
    off = doctor.check_ecn(of(log_of(100), ecn=0))
    assert off.verdict == "fail" and "tcp_ecn=1" in off.remedy and "ecn.enable=1" in off.remedy
    assert doctor.check_ecn(of(log_of(100), ecn=0, packet_length=52)).verdict == "unknown"  # acknowledgments alone
    assert doctor.check_ecn(of(log_of(100), PRINTED)).verdict == "unknown"


def test_marking_allowed() -> None:
    fine: dict[str, Any] = {"flags": 19, "max_ecn_threshold": 819}
    assert doctor.check_aqm_ecn(of(log_of(100), **fine)).verdict == "ok"
    assert doctor.check_aqm_ecn(of(log_of(100), flags=18, max_ecn_threshold=819)).verdict == "fail"
    high: dict[str, Any] = {"drop_probability": 1 << 30, "action": 1, "queue_type": 0}
    assert doctor.check_aqm_ecn(of(log_of(100), **fine, **high)).verdict == "fail"
    some = of(log_of(100), **fine, **high)
    some.records["applied_action"][0] = 2
    assert doctor.check_aqm_ecn(some).verdict == "ok" and "100 of 100" in doctor.check_aqm_ecn(some).seen
    assert (
        doctor.check_aqm_ecn(of(log_of(100), **fine, **high, ecn=0)).verdict == "ok"
    )  # such packets are to be dropped
    assert doctor.check_aqm_ecn(of(log_of(100), **fine, action=1, drop_probability=5)).verdict == "ok"


def test_ect1() -> None:
    assert doctor.check_ect1(of(log_of(100))).verdict == "ok"
    none = doctor.check_ect1(of(log_of(100), ecn=2))
    assert none.verdict == "fail" and "dctcp.ect1=1" in none.remedy
    assert doctor.check_ect1(of(log_of(100), PRINTED)).verdict == "unknown"
    assert doctor.check_ect1(of(log_of(3), ecn=2)).verdict == "unknown"


def test_queue_l() -> None:
    assert doctor.check_l_queue(of(log_of(100))).verdict == "ok"
    assert "clears the ECN field" in doctor.check_l_queue(of(log_of(100), queue_type=0, ecn=2)).remedy
    assert "dual queue" in doctor.check_l_queue(of(log_of(100), queue_type=0, ecn=1)).remedy
    assert doctor.check_l_queue(of(log_of(5), queue_type=0)).verdict == "unknown"


def test_offloads() -> None:
    assert doctor.check_offloads(of(log_of(100))).verdict == "ok"
    records = log_of(100)
    records["packet_length"][3] = 2948
    found = doctor.check_offloads(of(records))
    assert found.verdict == "fail" and "ethtool -K" in found.remedy and "2948" in found.seen
    assert doctor.check_offloads(of(log_of(100), packet_length=1514)).verdict == "ok"


def test_bottleneck(simulated: Any) -> None:
    assert doctor.check_bottleneck(of(simulated)).verdict == "ok"
    never = doctor.check_bottleneck(of(simulated, drop_probability=0, length_in_bytes=0, current_queue_delay=0))
    assert never.verdict == "fail" and "never stands" in never.remedy
    short = doctor.check_bottleneck(of(simulated, drop_probability=0, current_queue_delay=2000))
    assert short.verdict == "fail" and "offer more load" in short.remedy
    deaf = doctor.check_bottleneck(of(simulated, drop_probability=0, current_queue_delay=50_000))
    assert deaf.verdict == "warn" and "does not answer" in deaf.remedy


def test_bottleneck_of_an_idle_link() -> None:
    source = {"kind": "cbr", "rate_mbps": 3.0, "stagger_s": 0.0}
    records = simulate_log(load({"horizon_s": 2.0, "sources": [source], "link": {"rate_mbps": 12.0}}))
    assert doctor.check_bottleneck(of(records)).verdict == "fail"


def test_overload(simulated: Any) -> None:
    assert doctor.check_overload(of(simulated)).verdict == "ok"
    source = {"kind": "cbr", "rate_mbps": 20.0, "ecn": "ect1", "stagger_s": 0.0}
    scenario = {"aqm": "dualpi2_rfc9332", "horizon_s": 6.0, "sources": [source], "link": {"rate_mbps": 8.0}}
    found = doctor.check_overload(of(simulate_log(load(scenario))))
    assert found.verdict == "fail" and "offer less" in found.remedy
    pushed_out = log_of(100)
    pushed_out["queue_type"], pushed_out["total_packets"] = 0, np.arange(100)
    pushed_out["total_drops"] = np.arange(100) // 2  # the rows say: queued
    assert doctor.check_overload(of(pushed_out)).verdict == "fail"
    assert doctor.check_overload(of(log_of(100), applied_action=1)).verdict == "fail"
    assert doctor.check_overload(of(log_of(10), applied_action=1)).verdict == "unknown"


def test_clock() -> None:
    rng = np.random.default_rng(0)
    ticks = rng.integers(1, 20, 200)
    assert doctor.check_hz(of(log_of(200), current_queue_delay=10_000 * ticks)).verdict == "fail"
    assert (
        doctor.check_hz(of(log_of(200), current_queue_delay=10_000 * ticks - 1)).verdict == "fail"
    )  # of a rounded stamp
    coarse = doctor.check_hz(of(log_of(200), current_queue_delay=1000 * ticks))
    assert coarse.verdict == "warn" and "1000 Hz" in coarse.seen
    assert doctor.check_hz(of(log_of(200), current_queue_delay=rng.integers(1, 30_000, 200))).verdict == "ok"
    assert doctor.check_hz(of(log_of(200), current_queue_delay=0)).verdict == "unknown"


# -- offered twice


def web(passes: int) -> Any:
    """Short transfers, each with a last packet of its own length."""
    records = simulate_log("web", seconds=8)
    if passes == 1:
        return records
    again = records.copy()
    again["time_us"] += 23_000
    again["ecn"] = np.where(records["applied_action"] == 2, 3, again["ecn"])
    both = np.concatenate([records, again[records["applied_action"] != 1]])
    both = both[np.argsort(both["time_us"], kind="stable")]
    both["sequence"] = np.arange(len(both))
    return both


def test_twice_by_lengths() -> None:
    once, twice = web(1), web(2)
    for present in (ALL - {"ecn"}, PRINTED):
        assert doctor.check_twice(of(once, present)).verdict == "ok"
        found = doctor.check_twice(of(twice, present))
        assert found.verdict == "fail" and "out recv" in found.remedy
    assert doctor.check_twice(of(twice)).verdict == "fail"
    assert doctor.check_twice(of(once)).verdict == "ok"


def test_twice_by_marks_that_come_back(simulated: Any, vm: Any) -> None:
    found = doctor.check_twice(of(vm))
    assert found.verdict == "fail" and "come as CE" in found.seen
    assert doctor.check_twice(of(simulated)).verdict == "ok"
    assert doctor.check_twice(of(vm[:5000])).verdict == "unknown"  # nothing was marked yet
    upstream = log_of(100)
    upstream["ecn"][7] = 3
    assert doctor.check_twice(of(upstream)).verdict == "warn"
    upstream["applied_action"] = 2
    assert doctor.check_twice(of(upstream)).verdict == "warn"


def test_acknowledgments_that_clock_a_flow_are_no_sign() -> None:
    records = log_of(6000)
    records["flow_id"], records["packet_length"] = np.arange(6000) % 3, 1500
    assert doctor.check_twice(of(records)).verdict == "unknown"


# -- a live queue


def status(**changes: Any) -> wire.Status:
    """Counters, 0 unless told."""
    entry = wire.entry(wire.STATUS)
    for name, value in changes.items():
        entry["status"][name] = value
    return wire.read_status(entry[0])


def test_controller() -> None:
    assert "nobody" in doctor.check_control(status()).seen
    assert "a loaded model" in doctor.check_control(status(model=1, interval=1)).seen
    busy = {"interval": 1, "agent": (900, 0)}
    assert doctor.check_control(status(**busy)).verdict == "ok"
    assert doctor.check_control(status(**busy, fallback=(0, 200))).verdict == "warn"
    assert doctor.check_control(status(**busy, trips=(1, 0))).verdict == "warn"
    held = doctor.check_control(status(**busy, held=2))
    assert held.verdict == "fail" and held.seen == "the shield holds L"


def test_rows_lost() -> None:
    records = log_of(100)
    assert doctor.check_lost(of(records), 3).verdict == "warn"
    assert doctor.check_lost(of(records[[0, 5, 6]]), 0).verdict == "ok"  # rows out of order leave gaps at the edges
    assert doctor.check_lost(of(records)).verdict == "ok"
    gap = doctor.check_lost(of(records[[0, 5, 6]]))
    assert gap.verdict == "warn" and "4 rows are missing" in gap.seen
    assert doctor.check_lost(of(records, PRINTED)).verdict == "unknown"


def test_rate(simulated: Any) -> None:
    def hello(rate_bps: int) -> wire.Hello:
        return wire.Hello(1, 0, rate_bps, "testbed", 1, "x")

    assert doctor.check_rate(hello(8_000_000), of(simulated)).verdict == "ok"
    assert doctor.check_rate(hello(100_000_000), of(simulated)).verdict == "warn"
    assert doctor.check_rate(hello(0), of(simulated)).verdict == "unknown"
    assert doctor.check_rate(hello(1), of(log_of(100), time_us=5)).verdict == "unknown"


def test_watching(serve: Serve, simulated: Any) -> None:
    server = serve(simulated)
    with Client(server.path) as client:
        looks = itertools.count(step=0.01)
        found = doctor.watch(client, 0.5, clock=lambda: next(looks))
        assert len(found) > 100 and found.present == ALL
        np.testing.assert_array_equal(found.records["ecn"][:100], simulated["ecn"][:100])
        assert client.status().packets[0] > 0


# -- settings of a machine


def runner(answers: dict[str, str]) -> machine.Runner:
    """Answers of commands; all others are not there."""
    return lambda command: answers.get(" ".join(command))


def settings(system: str, answers: dict[str, str], **kwargs: Any) -> dict[str, Finding]:
    """Findings of a machine, by name."""
    found = machine.local_checks(run=runner(answers), system=system, **kwargs)
    return {each.name: each for each in found}


@pytest.mark.parametrize(("value", "verdict"), [("1", "ok"), ("2", "warn"), ("0", "fail"), ("", "unknown")])
def test_linux_ecn(value: str, verdict: str) -> None:
    answers = {"ip netns exec router cat /proc/sys/net/ipv4/tcp_ecn": value} if value else {}
    found = settings("Linux", answers, namespace="router")
    assert found["sysctl tcp_ecn"].verdict == verdict
    assert settings("Linux", answers, namespace="router", ecn_seen=True) == {}


def test_linux_offloads() -> None:
    text = "Features for eth0:\ntcp-segmentation-offload: {}\n\ttx-tcp-segmentation: on\ngeneric-receive-offload: {}\n"
    for states, verdict in ((("off", "off"), "ok"), (("off", "on"), "fail"), (("on", "on"), "fail")):
        found = settings("Linux", {"ethtool -k eth0": text.format(*states)}, interface="eth0")["ethtool"]
        assert found.verdict == verdict
    assert "generic-receive-offload" in found.seen and found.remedy.startswith("ethtool -K eth0")
    assert settings("Linux", {}, interface="eth0")["ethtool"].verdict == "unknown"


RULES = "00050 0 0 allow ip from any to any via lo0\n{}65535 9 9 allow ip from any to any\n"


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("00100 9 9 queue 1 ip from any to any\n", "fail"),
        ("00100 9 9 queue 1 ip from any to any out recv em0 xmit em1\n", "ok"),
        ("00100 9 9 pipe 1 ip from any to any\n00200 9 9 queue 1 ip from any to any out\n", "fail"),
        ("", "fail"),
    ],
)
def test_freebsd_rules(rule: str, verdict: str) -> None:
    found = settings("FreeBSD", {"ipfw show": RULES.format(rule)})
    assert found["ipfw"].verdict == verdict


def test_freebsd_sysctls() -> None:
    for hz, ecn, verdicts in (
        ("1000", "1", ("ok", "ok")),
        ("100", "0", ("fail", "fail")),
        ("100", "2", ("fail", "warn")),
    ):
        found = settings("FreeBSD", {"sysctl -n kern.hz": hz, "sysctl -n net.inet.tcp.ecn.enable": ecn})
        assert (found["kern.hz"].verdict, found["sysctl ecn.enable"].verdict) == verdicts
    assert settings("FreeBSD", {}) == {}


def test_commands_that_are_not_there() -> None:
    assert machine.run_command(["l4s-no-such-program"]) is None
    assert machine.run_command(["sh", "-c", "exit 3"]) is None
    assert machine.run_command(["echo", "here"]) == "here\n"
    machine.local_checks()  # of this machine, whatever it is
