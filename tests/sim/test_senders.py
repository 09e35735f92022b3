"""Senders against the laws that every one of them obeys, and against the rules of those that they follow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from l4s_gym.sim import layout, prague, setup, slowstart
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario, from_dict

Build = Callable[..., Scenario]


def with_probability(chosen: Scenario, p: float, n: int = 1, aqm: str = "fifo") -> Batch:
    """Runs in which each packet is marked (ECT) or lost (Not-ECT) by chance, measured after the warm-up."""
    batch = Batch(chosen, n, aqm=aqm, decider=layout.PROBABILITY)
    for k in range(n):
        batch.reset(k, np.random.default_rng(k))
        batch.env["p_l"][k] = batch.env["p_c"][k] = p
        batch.stop_at(k, round(chosen.warmup_s * 1e9))
    batch.advance()
    for k in range(n):
        batch.reset_counters(k)
    batch.advance()
    return batch


def test_a_full_buffer_is_no_reason_for_a_timeout(scenario: Build) -> None:
    """A drop-tail queue of 250 ms: each loss is found and mended by SACK, and nothing is sent twice."""
    for kind in ("newreno", "cubic"):
        chosen = scenario({"kind": kind, "rtt_ms": 20.0}, link={"rate_mbps": 4.0}, horizon_s=60.0)
        flow = with_probability(chosen, 0.0).flow[0, 0]
        assert flow["drops"] > 0
        assert flow["timeouts"] == 0
        assert flow["resent"] <= flow["drops"]


def test_order_in_the_file_is_no_advantage(scenario: Build) -> None:
    """120 flows that start at the same nanosecond: the first sixty have no more than the others."""
    for jitter_us in (0.0, 5.0):
        one = {"kind": "newreno", "count": 60, "stagger_s": 0.0, "jitter_us": jitter_us}
        batch = Batch(scenario(one, one, horizon_s=30.0), 4, aqm="fifo")
        for k in range(4):
            batch.reset(k, np.random.default_rng(k))
        batch.advance()
        first, last = batch.flow["goodput_bytes"].reshape(4, 2, 60).sum((0, 2))
        assert 0.8 < first / last < 1.25


def test_jitter_keeps_the_order_of_packets(scenario: Build) -> None:
    one = {"kind": "cubic", "rtt_ms": 10.0, "jitter_us": 2000.0}
    flow = with_probability(scenario(one, link={"rate_mbps": 50.0}, horizon_s=5.0), 0.0, aqm="dualpi2_rfc9332").flow[
        0, 0
    ]
    assert flow["received"] > 1000
    assert flow["resent"] == flow["drops"] == 0


# -- Prague


@pytest.mark.parametrize(
    ("p", "rtt_ms", "reference_mbps"),
    [
        *[(0.01, 5.0, 121.0), (0.01, 20.0, 122.0), (0.1, 5.0, 11.0), (0.1, 20.0, 11.0)],
        *[(0.3, 5.0, 2.78), (0.3, 20.0, 2.84), (0.7, 5.0, 0.50), (0.7, 20.0, 0.49)],
    ],
)
def test_rate_of_prague(p: float, rtt_ms: float, reference_mbps: float, scenario: Build) -> None:
    """Rates of the L4S team's prague_cc (UDP, 1400 B) under independent marks, within 5 %."""
    one = {"kind": "prague", "packet_length": 1400, "rtt_ms": rtt_ms}
    chosen = scenario(one, link={"rate_mbps": 1000.0}, horizon_s=80.0, warmup_s=20.0)
    batch = with_probability(chosen, p, 1 if p < 0.05 else 4)
    carried = batch.flow["goodput_bytes"][:, 0] + batch.flow["received"][:, 0] * 52
    assert carried.mean() * 8e-6 / 60.0 == pytest.approx(reference_mbps, rel=0.05)


def test_udp_prague_starts_slowly_and_shrinks(scenario: Build) -> None:
    """It starts at 100 kbit/s with packets of about 150 bytes, two in 25 ms, and never blocks itself."""
    one = {"kind": "prague", "rtt_ms": 10.0}
    batch = Batch(scenario(one, link={"rate_mbps": 100.0}), aqm="dualpi2_rfc9332")
    batch.reset(0, np.random.default_rng(0))
    batch.stop_at(0, 9_000_000)
    batch.advance_one()
    flow = batch.flow[0, 0]
    assert flow["packets"] == 1
    assert 150 <= flow["packet_len"] <= 160
    assert flow["ce_alpha"] == 0.0
    for stop_s, least_mbps, most_mbps in ((0.2, 2.0, 6.0), (1.0, 8.0, 40.0), (5.0, 80.0, 104.0)):
        batch.stop_at(0, round(stop_s * 1e9))
        batch.advance_one()
        assert least_mbps < flow["pace_bps"] * 1e-6 < most_mbps
        assert flow["pipe"] <= max(1.03 * flow["cwnd"] * flow["mss"] / flow["packet_len"] + 1.0, 2.0)


def test_many_pragues_go_below_two_packets_a_round_trip(scenario: Build) -> None:
    """Ten UDP Pragues and one CUBIC at 8 Mbit/s: little queue in L, nothing lost; TCP keeps two packets each."""
    sources = ({"kind": "prague", "count": 10, "rtt_ms": 20.0, "stagger_s": 1.0}, {"kind": "cubic", "rtt_ms": 20.0})
    delays = {}
    for variant in prague.VARIANTS:
        batch = Batch(scenario({**sources[0], "variant": variant}, sources[1], horizon_s=20.0), aqm="dualpi2_linux")
        batch.reset(0, np.random.default_rng(0))
        batch.stop_at(0, round(5e9))
        batch.advance_one()
        batch.reset_counters(0)
        batch.advance_one()
        l_queue = batch.queue[0, 1]
        delays[variant] = l_queue["left_delay_ns"] / l_queue["left"] * 1e-6
        if variant == "udp":
            assert l_queue["dropped"] == 0
    assert delays["udp"] < 2.1
    assert delays["tcp"] > 1.3 * delays["udp"]


def test_a_late_packet_undoes_the_reduction(scenario: Build) -> None:
    """What is marked in the first crossing goes to queue C in the second, and comes late: no loss."""
    one = {"kind": "prague", "rtt_ms": 10.0}
    other = {"kind": "cubic", "count": 2, "rtt_ms": 10.0}
    chosen = scenario(one, other, link={"rate_mbps": 40.0, "passes": 2}, horizon_s=20.0)
    batch = Batch(chosen, aqm="dualpi2_freebsd")
    batch.reset(0, np.random.default_rng(0))
    batch.advance_one()
    flow = batch.flow[0, 0]
    assert flow["resent"] > flow["drops"]  # they were taken for lost
    assert flow["goodput_bytes"] > 0


def test_tcp_prague_halves_at_its_first_mark(scenario: Build) -> None:
    one = {"kind": "prague", "variant": "tcp", "rtt_ms": 20.0}
    batch = Batch(scenario(one, link={"rate_mbps": 100.0}), aqm="dualpi2_rfc9332")
    batch.reset(0, np.random.default_rng(0))
    flow, before = batch.flow[0, 0], 0.0
    while flow["reductions"] == 0:
        before = float(flow["cwnd"])
        batch.stop_at(0, int(batch.env["now_ns"][0]) + 100_000)
        batch.advance_one()
    assert before > 50.0
    assert flow["ssthresh"] == pytest.approx(before / 2.0, rel=0.1)
    assert flow["ce_alpha"] > 0.9


# -- the end of slow start, and pacing


def first_loss_window(build: Build, slow_start: str, rate_mbps: float, rtt_ms: float) -> tuple[float, int]:
    """Window at the end of slow start, relative to what the path itself holds, and the packets dropped until then."""
    one = {"kind": "cubic", "rtt_ms": rtt_ms, "slow_start": slow_start}
    batch = Batch(build(one, link={"rate_mbps": rate_mbps}, horizon_s=20.0), aqm="fifo")
    batch.reset(0, np.random.default_rng(0))
    flow = batch.flow[0, 0]
    batch.stop_at(0, 1_000_000)
    batch.advance_one()
    while flow["ssthresh"] > 1e8:
        batch.stop_at(0, int(batch.env["now_ns"][0]) + 1_000_000)
        batch.advance_one()
    return float(flow["ssthresh"]) / (rate_mbps * 1e6 * rtt_ms * 1e-3 / 12e3), int(flow["drops"])


@pytest.mark.parametrize(("rate_mbps", "rtt_ms"), [(20.0, 50.0), (100.0, 20.0), (100.0, 100.0)])
def test_hystart_leaves_slow_start_without_a_loss(rate_mbps: float, rtt_ms: float, scenario: Build) -> None:
    standard, lost = first_loss_window(scenario, "standard", rate_mbps, rtt_ms)
    assert lost > 0
    window, dropped = first_loss_window(scenario, "hystart", rate_mbps, rtt_ms)
    assert dropped == 0
    assert 0.5 < window < min(2.0, 0.5 * standard)
    window, dropped = first_loss_window(scenario, "hystart++", rate_mbps, rtt_ms)
    assert dropped < lost  # it grows on for five rounds, a quarter as fast
    assert 0.5 < window < standard


def test_hystart_is_on_for_linux_and_off_for_freebsd() -> None:
    """What a source's field says when it is left empty."""
    kinds = {}
    for kind in ("newreno", "cubic", "dctcp", "prague"):
        for freebsd in (False, True):
            source = {"kind": kind, "freebsd": freebsd}
            flow = setup.build(from_dict({"name": "x", "sources": [source]}), "fifo", 1).flow
            kinds[kind, freebsd] = slowstart.KINDS[int(flow["slow_start"][0])]
    assert kinds.pop(("cubic", False)) == "hystart"
    assert set(kinds.values()) == {"standard"}


def test_window_stays_for_a_round_after_a_mark(scenario: Build) -> None:
    """As Linux does: with the same losses of the window, each cycle of the sawtooth takes a round trip longer."""
    marks = {}
    for holds in (False, True):
        one = {"kind": "newreno", "rtt_ms": 20.0, "holds": holds, "ack_every": 1}
        chosen = scenario(one, link={"rate_mbps": 100.0}, horizon_s=40.0, warmup_s=5.0)
        batch = with_probability(chosen, 0.01, 4)
        marks[holds] = batch.flow["received"][:, 0].mean()
    assert marks[True] < 0.97 * marks[False]


def test_paced_tcp_sends_no_bursts(scenario: Build) -> None:
    """Pacing after Linux's rule takes the bursts of slow start apart: the queue that they build is smaller."""
    longest = {}
    for paced in (False, True):
        one = {"kind": "newreno", "rtt_ms": 40.0, "paced": paced, "transfer_bytes": 150_000}
        batch = with_probability(scenario(one, link={"rate_mbps": 100.0}), 0.0)
        longest[paced] = int(batch.queue["max_delay_ns"][0, 0])
        assert batch.flow["completed"][0, 0] == 1
    assert longest[True] < 0.5 * longest[False]
