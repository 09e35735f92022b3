"""Senders, receivers and links against what can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from l4s_gym.evaluation.native import simulate
from l4s_gym.schema import CE, DROP, ECT_0, ECT_1, MARK, NOT_ECT
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario

Build = Callable[..., Scenario]
Run = Callable[..., Batch]
Acted = Callable[..., tuple[Batch, Any]]
CONTROLS = ("newreno", "cubic", "dctcp", "prague")
MSS, ACK = 1500, 52


def with_probabilities(scenario: Scenario, p_l: float, p_c: float, *, even: bool = False, seed: int = 0) -> Batch:
    """Run with fixed probabilities: ECT packets are marked, others dropped."""
    batch = Batch(scenario, decider=layout.PROBABILITY)
    batch.reset(0, np.random.default_rng(seed))
    batch.env["p_l"], batch.env["p_c"], batch.env["even"] = p_l, p_c, int(even)
    assert batch.advance_one() in (layout.TERMINATED, layout.TRUNCATED)
    return batch


def seconds(length: int, mbps: float = 8.0) -> float:
    return length * 8e-6 / mbps


# -- round-trip times


@pytest.mark.parametrize("rtt_ms", [0.1, 10.0, 200.0])
def test_rtt_of_an_idle_path(rtt_ms: float, scenario: Build, native: Run) -> None:
    one = {"kind": "newreno", "rtt_ms": rtt_ms, "transfer_bytes": 1448, "ack_every": 1}
    flow = native(scenario(one)).flow[0, 0]
    expected = rtt_ms * 1e-3 + seconds(MSS)
    assert flow["rtt_count"] == 1
    assert flow["rtt_sum_ns"] * 1e-9 == pytest.approx(expected, abs=1e-8)
    assert flow["completion_s"] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("acks", [False, True])
def test_rtt_and_counts_of_several_passes(passes: int, acks: bool, scenario: Build, native: Run) -> None:
    one = {"kind": "newreno", "rtt_ms": 12.0, "transfer_bytes": 1448, "ack_every": 1}
    run = native(scenario(one, link={"rate_mbps": 8.0, "passes": passes, "acks_in_queue": acks}))
    expected = 0.012 + passes * (seconds(MSS) + (seconds(ACK) if acks else 0.0))
    assert run.flow[0, 0]["completion_s"] == pytest.approx(expected, abs=1e-7)
    assert run.env["sent"][0] == run.env["delivered"][0] == passes * (2 if acks else 1)
    assert run.env["served_bytes"][0] == passes * (MSS + (ACK if acks else 0))


def test_slow_start(scenario: Build, native: Run) -> None:
    # Windows of 1, 2 and 4 packets: three round trips, and 1 + 1 + 4 serialisations on the critical path.
    one = {"kind": "newreno", "rtt_ms": 50.0, "transfer_bytes": 7 * 1448, "ack_every": 1, "initial_window": 1.0}
    assert native(scenario(one)).flow[0, 0]["completion_s"] == pytest.approx(0.15 + 6 * seconds(MSS), abs=1e-7)


def test_receive_window_limits_the_rate(scenario: Build, native: Run) -> None:
    one = {"kind": "cubic", "rtt_ms": 50.0, "receive_window": 4, "ack_every": 1}
    run = native(scenario(one, horizon_s=20.0))
    assert run.flow[0, 0]["received"] / 20.0 == pytest.approx(4 / (0.05 + seconds(MSS)), rel=0.01)


@pytest.mark.parametrize(("every", "expected_s"), [(1, 0.0115), (2, 0.0515)])
def test_delayed_ack_timer(every: int, expected_s: float, scenario: Build, native: Run) -> None:
    one = {"kind": "newreno", "rtt_ms": 10.0, "transfer_bytes": 1448, "ack_every": every, "delayed_ack_ms": 40.0}
    assert native(scenario(one)).flow[0, 0]["completion_s"] == pytest.approx(expected_s, abs=1e-7)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_acks_per_packet(every: int, scenario: Build, native: Run) -> None:
    one = {"kind": "newreno", "transfer_bytes": 400 * 1448, "ack_every": every, "receive_window": 16}
    flow = native(scenario(one)).flow[0, 0]
    assert flow["received"] == 400
    assert flow["rtt_count"] == pytest.approx(400 / every, rel=0.02)


def test_timeouts_back_off(scenario: Build) -> None:
    # Nothing arrives: 1, 2, 4, 8 s, so timeouts after 1, 3, 7 and 15 s.
    one = {"kind": "newreno", "transfer_bytes": 1448, "ecn": "not-ect"}
    run = with_probabilities(scenario(one, horizon_s=30.0), 1.0, 1.0)
    assert run.flow["timeouts"][0, 0] == 4
    assert run.flow["packets"][0, 0] == 5
    assert run.env["delivered"][0] == 0


# -- throughput


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("mbps", [4.0, 40.0])
def test_a_single_flow_fills_the_link(kind: str, mbps: float, scenario: Build) -> None:
    chosen = scenario({"kind": kind, "rtt_ms": 20.0}, link={"rate_mbps": mbps}, horizon_s=30.0, warmup_s=10.0)
    aqm = "dualpi2_rfc9332" if kind in ("dctcp", "prague") else "fifo"
    summary = simulate(chosen, aqm).summary
    # At 4 Mbit/s L's ramp is shorter than a packet: a lone Prague keeps a little below the link.
    least = 0.92 if kind == "prague" and mbps == 4.0 else 0.95
    assert least < summary["utilisation"] <= 1.0 + 1e-3
    # All that is carried is payload but for headers and, rarely, what is sent twice.
    assert summary["goodput_mbps"][0] == pytest.approx(mbps * summary["utilisation"] * 1448 / 1500, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "p", "even", "constant", "power"),
    [
        ("newreno", 0.01, True, 1.19, 0.5),
        ("newreno", 0.01, False, 1.29, 0.5),
        ("dctcp", 0.05, True, 2.00, 1.0),
        ("dctcp", 0.05, False, 1.0 + math.sqrt(3.0), 1.0),
    ],
)
def test_window_laws(kind: str, p: float, even: bool, constant: float, power: float, scenario: Build) -> None:
    """Packets per RTT under a fixed mark probability: 1.22 / sqrt(p) of Reno, 2 / p of DCTCP.

    With random marks DCTCP's rounds of one RTT start at a mark, and the next mark takes 1 / p packets more:
    x = p W solves x / 2 * x / (x + 1) = 1.
    """
    one = {"kind": kind, "rtt_ms": 40.0, "ack_every": 1}
    run = with_probabilities(scenario(one, link={"rate_mbps": 1000.0}, horizon_s=400.0), p, p, even=even)
    flow = run.flow[0, 0]
    window = flow["received"] * (flow["rtt_sum_ns"] / flow["rtt_count"]) / 400e9
    assert window == pytest.approx(constant / p**power, rel=0.12)


@pytest.mark.parametrize("kind", CONTROLS)
def test_heavy_loss_keeps_the_window_small(kind: str, scenario: Build) -> None:
    """A sender that goes from timeout to timeout reduces each time."""
    one = {"kind": kind, "rtt_ms": 20.0, "ecn": "not-ect"}
    run = with_probabilities(scenario(one, link={"rate_mbps": 100.0}, horizon_s=120.0), 0.35, 0.35)
    flow = run.flow[0, 0]
    assert flow["timeouts"] > 20
    assert flow["packets"] * 0.02 / 120.0 < 3.0


# -- loss recovery


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("p", [0.05, 0.3])
@pytest.mark.parametrize("ecn", ["not-ect", ""])
@pytest.mark.parametrize("link", [{}, {"passes": 2, "acks_in_queue": True}], ids=["once", "twice"])
def test_every_byte_arrives(kind: str, p: float, ecn: str, link: dict[str, Any], scenario: Build) -> None:
    size = 150_001
    many = {"kind": kind, "count": 3, "transfer_bytes": size, "ecn": ecn, "min_rto_ms": 20.0}
    run = with_probabilities(scenario(many, link={"rate_mbps": 50.0, **link}, horizon_s=5000.0), p, p, seed=4)
    assert run.status[0] == layout.TERMINATED
    assert run.flow["goodput_bytes"][0].tolist() == [size] * 3
    assert run.flow["completed"][0].tolist() == [1] * 3
    if ecn or link:
        assert run.env["dropped"][0] > 10
    if not ecn:
        assert run.queue["marked"][0].sum() > 10


@pytest.mark.parametrize("kind", CONTROLS)
def test_one_loss_is_repaired_without_a_timeout(kind: str, scenario: Build, acted: Acted) -> None:
    one = {"kind": kind, "transfer_bytes": 100 * 1448, "rtt_ms": 20.0}
    run, log = acted(scenario(one), {30: DROP})
    flow = run.flow[0, 0]
    assert (flow["drops"], flow["resent"], flow["timeouts"]) == (1, 1, 0)
    assert flow["reductions"] == 1
    assert flow["goodput_bytes"] == 100 * 1448
    assert len(log) == 101


@pytest.mark.parametrize(("kind", "first", "again"), [("newreno", ECT_0, NOT_ECT), ("cubic", ECT_0, NOT_ECT),
                                                      ("dctcp", ECT_1, NOT_ECT), ("prague", ECT_1, ECT_1)])  # fmt: skip
def test_codepoint_of_retransmissions(kind: str, first: int, again: int, scenario: Build, acted: Acted) -> None:
    one = {"kind": kind, "transfer_bytes": 60 * 1448}
    _, log = acted(scenario(one), {20: DROP, 21: DROP, 22: DROP})
    codes = log["ecn"].tolist()
    assert len(codes) == 63
    assert codes.count(again) == (63 if again == first else 3)
    assert codes.count(first) == (63 if again == first else 60)


# -- marks


@pytest.mark.parametrize("echo", ["rfc3168", "accurate"])
@pytest.mark.parametrize("kind", ["newreno", "cubic"])
def test_marks_reduce_once_a_round_trip(kind: str, echo: str, scenario: Build, acted: Acted) -> None:
    one = {"kind": kind, "transfer_bytes": 200 * 1448, "echo": echo, "rtt_ms": 50.0, "receive_window": 20}
    for marks in ({40: MARK}, {40: MARK, 41: MARK, 42: MARK}):
        run, log = acted(scenario(one), marks)
        flow = run.flow[0, 0]
        assert flow["reductions"] == 1
        assert flow["ce_count"] == flow["marks"] == len(marks)
        assert flow["resent"] == 0
        assert (log["applied_action"] == MARK).sum() == len(marks)


def test_latched_echo_overestimates_the_marks(scenario: Build) -> None:
    """RFC 3168's echo lasts until CWR: DCTCP reads more marks than there were; the accurate one counts."""
    alpha = {}
    for echo in ("accurate", "rfc3168"):
        one = {"kind": "dctcp", "rtt_ms": 30.0, "echo": echo, "count": 10}
        run = with_probabilities(scenario(one, link={"rate_mbps": 1000.0}, horizon_s=60.0), 0.05, 0.0)
        alpha[echo] = float(run.flow["ce_alpha"][0].mean())
    assert alpha["accurate"] == pytest.approx(0.05, rel=0.4)
    assert alpha["rfc3168"] > 1.5 * alpha["accurate"]


def test_a_mark_of_a_not_ect_packet_is_a_drop(scenario: Build, acted: Acted) -> None:
    one = {"kind": "newreno", "transfer_bytes": 60 * 1448, "ecn": "not-ect"}
    run, log = acted(scenario(one), {20: MARK, 30: MARK})
    assert np.flatnonzero(log["action"] == MARK).tolist() == [20, 30]
    assert log["applied_action"][[20, 30]].tolist() == [DROP, DROP]
    assert (run.env["dropped"][0], run.queue["marked"][0].sum(), run.flow["ce_count"][0, 0]) == (2, 0, 0)
    assert run.flow["goodput_bytes"][0, 0] == 60 * 1448


def test_ce_stays_in_the_second_pass(scenario: Build, acted: Acted) -> None:
    one = {"kind": "dctcp", "transfer_bytes": 20 * 1448, "receive_window": 4}
    _, log = acted(scenario(one, link={"rate_mbps": 8.0, "passes": 2}), {0: MARK})
    assert (log["ecn"] == CE).sum() == 1
    assert log["queue_type"][log["ecn"] == CE].tolist() == [0]  # the testbed's kernel puts CE into C


# -- applications


def test_cbr_rate(scenario: Build, native: Run) -> None:
    run = native(scenario({"kind": "cbr", "rate_mbps": 1.2}, horizon_s=10.0))
    assert run.flow["packets"][0, 0] == 1000  # one every 10 ms from 0 on; the horizon itself is not reached
    assert run.env["delivered"][0] == 1000
    fractional = native(scenario({"kind": "cbr", "rate_mbps": 7.0, "packet_length": 333}, horizon_s=10.0))
    assert fractional.flow["packets"][0, 0] == pytest.approx(7e7 / (8 * 333), abs=2)


def test_onoff_duty_cycle(scenario: Build, native: Run) -> None:
    source = {"kind": "onoff", "rate_mbps": 2.0, "on_s": 0.1, "off_s": 0.3, "count": 4}
    run = native(scenario(source, link={"rate_mbps": 100.0}, horizon_s=200.0))
    sent_mbps = run.flow["packets"][0] * MSS * 8e-6 / 200.0
    # Mean of about 500 exponential cycles for each of four: 2 % standard error.
    assert sent_mbps.mean() == pytest.approx(2.0 * 0.1 / 0.4, rel=0.08)


@pytest.mark.parametrize("cc", CONTROLS)
def test_web_pages(cc: str, scenario: Build, native: Run) -> None:
    low, high = 2_000, 50_000
    source = {"kind": "web", "cc": cc, "count": 5, "off_s": 0.1, "size_bytes": (low, high), "rtt_ms": 10.0}
    run = native(scenario(source, link={"rate_mbps": 100.0}, horizon_s=20.0))
    flow = run.flow[0]
    assert (flow["completed"] > 50).all()
    mean_size = flow["goodput_bytes"] / flow["completed"]
    assert ((mean_size > low) & (mean_size < high)).all()
    # A page takes a few round trips, and 40 ms more where its last ACK is delayed.
    assert (flow["completion_s"] / flow["completed"] < 0.15).all()
    cycle = flow["completion_s"] / flow["completed"] + 0.1
    assert (flow["completed"] * cycle).mean() == pytest.approx(20.0, rel=0.15)


def test_empty_transfer_is_done_at_once(scenario: Build, native: Run) -> None:
    run = native(scenario({"kind": "cubic", "transfer_bytes": 0, "count": 2}))
    assert run.status[0] == layout.TERMINATED
    assert run.env["sent"][0] == 0


# -- links


def test_tick_link(scenario: Build) -> None:
    """The kernel serves at its ticks: delays are multiples of one, an idle pipe costs one, the rate is kept."""
    chosen = scenario({"kind": "cbr", "rate_mbps": 12.0}, link={"kind": "tick", "hz": 100, "rate_mbps": 8.0})
    run = simulate(chosen, "fifo", log=True)
    delays = run.records["current_queue_delay"]
    assert set((delays % 10_000).tolist()) == {0}
    assert delays.max() > 100_000
    assert run.batch.env["served_bytes"][0] == pytest.approx(8e6 / 8 * 10.0, rel=0.01)
    one = {"kind": "newreno", "rtt_ms": 20.0, "transfer_bytes": 1448, "ack_every": 1}
    idle = simulate(scenario(one, link={"kind": "tick", "hz": 100, "rate_mbps": 8.0})).batch.flow[0, 0]
    assert idle["completion_s"] == pytest.approx(0.02 + 0.01, abs=1e-7)


def test_stepped_rate(scenario: Build) -> None:
    link = {"rate_mbps": 8.0, "steps": [[4.0, 0.25], [8.0, 2.0]]}
    run = simulate(scenario({"kind": "cbr", "rate_mbps": 50.0}, link=link), "fifo", sample_ms=500.0)
    served = run.samples["served_mbps"]
    for part, mbps in ((served[2:8], 8.0), (served[9:16], 2.0), (served[17:20], 16.0)):
        assert part == pytest.approx(np.full(len(part), mbps), rel=0.03)
    assert run.summary["utilisation"] == pytest.approx(1.0, abs=0.01)


def test_utilisation_of_a_known_load(scenario: Build) -> None:
    run = simulate(scenario({"kind": "cbr", "rate_mbps": 3.0}, link={"rate_mbps": 12.0}))
    assert run.summary["utilisation"] == pytest.approx(0.25, rel=0.01)
    assert run.summary["delay_ms"]["C"]["max"] == 0.0
    assert math.isclose(sum(run.summary["goodput_mbps"]), 3.0 * 1448 / 1500, rel_tol=0.01)
