"""The test traffic: what each kind sends, hears and says."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import Build
from .netns import Bed

# Real packets in real time, on cores that others use too: a test that fails is tried twice more.
pytestmark = [pytest.mark.usefixtures("namespaces"), pytest.mark.flaky(reruns=2, reruns_delay=2)]
UNSHAPED: dict[str, Any] = {"variant": 1, "rate_bps": 0, "delay default": 2_000_000}
NARROW: dict[str, Any] = {"variant": 1, "rate_bps": 8_000_000, "delay default": 5_000_000}


def heard(bed: Bed, sink: subprocess.Popen[str]) -> dict[str, Any]:
    bed.drained()
    sink.send_signal(signal.SIGTERM)
    (said,) = bed.result(sink)
    return said


def test_blast_sends_what_it_was_told(build: Build, tmp_path: Path) -> None:
    with Bed(build(san=True), tmp_path, UNSHAPED) as bed:
        sink = bed.sink()
        for pps, ecn in ((1000, "ect1"), (500, "ect0"), (250, "none")):
            (said,) = bed.traffic("blast", 0.2, "--pps", str(pps), "--size", "300", "--ecn", ecn)
            assert said["sent"] == pps // 5 and said["failed"] == 0
        assert bed.stats()["forward"]["bytes"] >= 350 * 300
        got = heard(bed, sink)
        assert got["blast"] == got["udp"] == 350
        assert (got["ect1"], got["ect0"], got["not_ect"], got["ce"]) == (200, 100, 50, 0)


def test_ping_measures_the_round_trip(build: Build, tmp_path: Path) -> None:
    with Bed(build(san=True), tmp_path, UNSHAPED) as bed:
        bed.sink()
        (said,) = bed.traffic("ping", 0.2, "--interval-us", "2000", "--ecn", "ect1")
        assert said["received"] == said["sent"] == 100
        assert 4000 <= said["rtt_p50_us"] <= said["rtt_p99_us"] <= said["rtt_max_us"]
        assert bed.stats()["l4s"]["packets"] == 100


def test_tcp_says_what_the_kernel_knows(build: Build, tmp_path: Path) -> None:
    with Bed(build(san=True), tmp_path, NARROW) as bed:
        sink = bed.sink()
        flows = bed.traffic("tcp", 0.6, "--cc", "reno", "--flows", "2")
        assert [flow["flow"] for flow in flows] == [0, 1]
        assert all(flow["ecn"] and flow["cc"] == "reno" and flow["delivered"] > 10 for flow in flows)
        assert all(flow["srtt_us"] >= flow["min_rtt_us"] >= 10_000 for flow in flows)
        said = heard(bed, sink)
        assert said["tcp_flows"] == 2
        assert sum(flow["goodput_mbps"] * flow["seconds"] for flow in flows) * 1e6 / 8 <= said["tcp_bytes"]


def test_prague_like_shares_between_its_flows(build: Build, tmp_path: Path) -> None:
    with Bed(build(san=True), tmp_path, NARROW) as bed:
        sink = bed.sink("--every", "2")
        flows = bed.traffic("prague-like", 2.0, "--flows", "2")
        assert len(flows) == 2 and all(flow["note"] == "test traffic, not TCP Prague" for flow in flows)
        for flow in flows:
            assert flow["goodput_mbps"] > 0.2 and 0 < flow["alpha"] < 1 and flow["lost"] == 0
            assert 0 < flow["delivered_ce"] < flow["delivered"] <= flow["sent"]
        said = heard(bed, sink)
        assert said["ect1"] + said["ce"] == said["udp"] and said["ect0"] == said["not_ect"] == 0


@pytest.mark.slow
def test_prague_like_slows_down_by_losses(build: Build, tmp_path: Path) -> None:
    """A queue without marks and a short buffer: it must live by its losses, far below what it started to try."""
    config = NARROW | {"variant": 0, "limit_packets": 20, "alpha": 0, "beta": 0}
    with Bed(build(san=True), tmp_path, config) as bed:
        bed.sink()
        (flow,) = bed.traffic("prague-like", 1.5)
        assert flow["lost"] > 0 and flow["delivered_ce"] == 0
        assert flow["goodput_mbps"] > 2.0 and flow["lost"] < flow["sent"] / 4


def test_prague_like_keeps_to_its_highest_rate(build: Build, tmp_path: Path) -> None:
    with Bed(build(san=True), tmp_path, UNSHAPED) as bed:
        bed.sink()
        (flow,) = bed.traffic("prague-like", 0.5, "--rate-max", "2000000", "--size", "1000")
        assert 0.2 < flow["goodput_mbps"] <= 2.0 and flow["lost"] == 0


def test_prague_like_lives_without_answers(build: Build, tmp_path: Path) -> None:
    """Nobody answers: it sends its start, and then two packets now and then."""
    with Bed(build(san=True), tmp_path, UNSHAPED) as bed:
        silent = bed.sink("--seconds", "60")
        silent.send_signal(signal.SIGSTOP)
        (flow,) = bed.traffic("prague-like", 0.6)
        assert flow["delivered"] == 0 and 10 <= flow["sent"] < 200
        silent.send_signal(signal.SIGCONT)


def test_a_sender_that_is_interrupted_still_reports(build: Build, tmp_path: Path) -> None:
    kinds = {"tcp": [], "prague-like": ["--rate-max", "1000000"], "blast": ["--pps", "100"], "ping": []}
    with Bed(build(san=True), tmp_path, UNSHAPED) as bed:
        bed.sink()
        flows = [bed.send(kind, 600.0, *arguments) for kind, arguments in kinds.items()]
        time.sleep(0.4)
        for kind, flow in zip(kinds, flows, strict=True):
            flow.send_signal(signal.SIGINT)
            (said,) = bed.result(flow)
            assert said["kind"] == kind and said.get("seconds", 1.0) < 60.0


ERRORS = {
    "tcp": (["tcp", "--seconds", "1"], "tcp: --to ADDR:PORT and --seconds are needed"),
    "no seconds": (["ping", "--to", "127.0.0.1:9"], "ping: --to ADDR:PORT and --seconds are needed"),
    "sink": (["sink"], "sink: --bind ADDR:PORT is needed"),
    "address": (["ping", "--to", "nowhere:5", "--seconds", "1"], "nowhere:5: not an IPv4 ADDRESS:PORT"),
    "port": (["ping", "--to", "127.0.0.1:70000", "--seconds", "1"], "--port 70000: must be a whole number"),
    "for ever": (["ping", "--to", "127.0.0.1:9", "--seconds", "inf"], "--seconds inf: must be above 0"),
    "nan": (["ping", "--to", "127.0.0.1:9", "--seconds", "nan"], "--seconds nan: must be above 0"),
    "ecn": (["ping", "--to", "127.0.0.1:9", "--seconds", "1", "--ecn", "yes"], "--ecn yes: ect1, ect0 or none"),
    "pps": (["blast", "--to", "127.0.0.1:9", "--seconds", "1"], "blast: --pps is needed"),
    "size": (["ping", "--to", "127.0.0.1:9", "--seconds", "1", "--size", "9"], "--size 9: must be a whole number"),
    "cc": (["tcp", "--to", "127.0.0.1:9", "--seconds", "1", "--cc", "best"], "--cc best: this kernel does not have"),
    "more": (["ping", "--to", "127.0.0.1:9", "--seconds", "1", "x"], "x: too many arguments"),
    "refused": (["tcp", "--to", "127.0.0.1:9", "--seconds", "1"], "cannot connect: "),
}


@pytest.mark.parametrize(("arguments", "says"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_in_one_line(build: Build, arguments: list[str], says: str) -> None:
    program = build(san=True) / "l4s-traffic"
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("l4s-traffic: ") and says in done.stderr


def test_help(build: Build) -> None:
    program = str(build(san=True) / "l4s-traffic")
    for arguments in (["--help"], ["tcp", "--help"]):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "not TCP Prague" in done.stdout
    assert subprocess.run([program], capture_output=True, check=False).returncode == 2


@pytest.mark.slow
def test_ten_slow_flows_keep_the_queue_short(build: Build, tmp_path: Path) -> None:
    """Ten flows and a CUBIC one at 8 Mbit/s: packets shrink, so that L neither stands nor overflows.

    Before they did, each flow sent at least two full packets in 25 ms: together more than the link can carry.
    """
    with Bed(build(), tmp_path, {"variant": 2, "rate_bps": 8_000_000, "delay default": 10_000_000}) as bed:
        bed.sink()
        senders = [bed.send("tcp", 9.0), bed.send("prague-like", 9.0, "--flows", "10")]
        time.sleep(4.0)  # how they start is another matter
        before = bed.stats()["l4s"]
        _, flows = (bed.result(sender) for sender in senders)
        after = bed.stats()["l4s"]
    assert after["drops"] == before["drops"] and after["packets"] > before["packets"] + 1000
    assert sum(flow["packet_length"] < 1500 for flow in flows) >= 5
    assert all(flow["packet_length"] >= 150 and flow["goodput_mbps"] > 0.02 for flow in flows)


def test_prague_like_starts_slowly(build: Build, tmp_path: Path) -> None:
    """At 100 kbit/s with short packets, and without slow start: it hurts nobody who is there already."""
    with Bed(build(san=True), tmp_path, UNSHAPED) as bed:
        silent = bed.sink("--seconds", "60")
        silent.send_signal(signal.SIGSTOP)
        (flow,) = bed.traffic("prague-like", 0.5)
        silent.send_signal(signal.SIGCONT)
    assert flow["delivered"] == 0 and 1 <= flow["sent"] <= 10 and flow["packet_length"] == 156
