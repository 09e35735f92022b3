"""The testbed's router and its hosts' FreeBSD, element by element (`l4s_gym.sim.router`, `l4s-llm-testbed-vm`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from l4s_gym.evaluation.native import simulate
from l4s_gym.schema import CE, DROP, ECT_1, ENQUEUE, MARK
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario, load

Build = Callable[..., Scenario]
Run = Callable[..., Batch]
Acted = Callable[..., tuple[Batch, Any]]
PIPE = {"kind": "dummynet", "hz": 100, "rate_mbps": 8.0, "pipe_delay_ms": 10.0, "limit_packets": 10_240}
ONE = {"kind": "newreno", "rtt_ms": 1.0, "transfer_bytes": 1448, "ack_every": 1, "start_s": 0.003}


# -- the pipe


@pytest.mark.parametrize(("delay_ms", "expected_s"), [(10.0, 0.0205 - 0.003), (15.0, 0.0305 - 0.003)])
def test_an_idle_pipe(delay_ms: float, expected_s: float, scenario: Build, native: Run) -> None:
    """Served at once in the tick that began at 0; out after the delay in ticks and one for its serialisation."""
    run = native(scenario({**ONE, "rtt_ms": 0.5}, link={**PIPE, "pipe_delay_ms": delay_ms}))
    assert run.flow["completion_s"][0, 0] == pytest.approx(expected_s, abs=1e-7)
    assert run.queue["left_delay_ns"].sum() == 0.0


def test_four_crossings_of_an_idle_pipe(scenario: Build, native: Run) -> None:
    # Two ticks a crossing, 40 ms to the receiver; its ACK comes 0.5 ms into a tick and needs 40 ms from its start.
    run = native(scenario(ONE, link={**PIPE, "passes": 2, "acks_in_queue": True}))
    assert run.flow["completion_s"][0, 0] == pytest.approx(0.0805 - 0.003, abs=1e-7)
    assert run.env["sent"][0] == run.env["delivered"][0] == 4
    assert run.env["served_bytes"][0] == 2 * (1500 + 52)


def test_credit_left_in_a_tick(scenario: Build) -> None:
    """As rows 76 to 85 of the shared extract: seven packets pass, the eighth finds nobody waiting, and then some."""
    early = {"kind": "newreno", "rtt_ms": 1.0, "transfer_bytes": 1, "start_s": 0.001}
    burst = {"kind": "dctcp", "rtt_ms": 1.0, "start_s": 0.0105, "transfer_bytes": 14_480}
    log = simulate(scenario(early, burst, link=PIPE), log=True).records
    rows = log[log["flow_id"] == 1]
    assert rows["length_in_bytes"].tolist() == [*([0] * 8), 1500, 3000]
    later = simulate(scenario({**burst, "start_s": 0.0305}, link=PIPE), log=True).records
    # A tick that nothing came before begins without credit: one packet passes.
    assert later["length_in_bytes"].tolist() == [0, 0, *range(1500, 13_500, 1500)]


def test_the_pipe_keeps_its_rate(scenario: Build) -> None:
    run = simulate(scenario({"kind": "cbr", "rate_mbps": 12.0}, link=PIPE), "fifo", log=True)
    assert run.batch.env["served_bytes"][0] == pytest.approx(8e6 / 8 * 10.0, rel=0.01)
    assert set((run.records["current_queue_delay"] % 10_000).tolist()) == {0}


def test_a_mark_of_the_first_crossing_sends_to_c(scenario: Build, acted: Acted) -> None:
    one = {**ONE, "kind": "dctcp"}
    _, log = acted(scenario(one, link={**PIPE, "passes": 2, "acks_in_queue": True}), {0: MARK})
    assert log["ecn"][:2].tolist() == [ECT_1, CE]
    assert log["queue_type"].tolist() == [1, 0, 0, 0]


# -- the processor


def changes(log: Any) -> int:
    """How often the pipe was served: at each time the delay that is shown, or what waits, falls."""
    return int((np.diff(log["length_in_packets"].astype(int)) < 0).sum())


def test_printing_keeps_the_pipe_waiting(scenario: Build) -> None:
    """While packets wait in the ring, `softclock` waits for the time slice: a tenth of a second, not each tick."""
    flood = {"kind": "cbr", "rate_mbps": 16.0}
    fast = simulate(scenario(flood, link={**PIPE, "row_ms": 0.1}, horizon_s=2.0), log=True).records
    slow = simulate(scenario(flood, link={**PIPE, "row_ms": 1.0}, horizon_s=2.0), log=True).records
    assert changes(fast) > 150
    assert 15 <= changes(slow) <= 20
    assert len(slow) == pytest.approx(2000, rel=0.01)
    # The clock jumps by the ticks that were missed, so the delays do, and so do the credit and what it serves.
    assert slow["current_queue_delay"].max() >= 90_000
    assert np.diff(slow["length_in_packets"].astype(int)).min() < -50
    # One in a hundred updates: the controller's timer waits, too.
    assert len(np.unique(slow["drop_probability"])) < len(np.unique(fast["drop_probability"])) / 3


def test_a_short_slice_serves_each_tick(scenario: Build) -> None:
    flood = {"kind": "cbr", "rate_mbps": 16.0}
    log = simulate(scenario(flood, link={**PIPE, "row_ms": 1.0, "slice_ms": 10.0}, horizon_s=2.0), log=True).records
    assert changes(log) > 150


@pytest.mark.parametrize(("cards", "low", "high"), [((1, 2), 0.49, 0.51), ((1, 1), 0.0, 0.2)])
def test_network_cards_share_the_processor(cards: tuple[int, int], low: float, high: float, scenario: Build) -> None:
    few, many = ({"kind": "cbr", "rate_mbps": mbps, "stagger_s": 0.05} for mbps in (8.0, 72.0))
    sources = [{**few, "card": cards[0]}, {**many, "card": cards[1]}]
    log = simulate(scenario(*sources, link={**PIPE, "row_ms": 1.0}, horizon_s=5.0), log=True).records
    assert low < np.mean(log["flow_id"] == 0) < high


def test_a_full_ring_loses_packets(scenario: Build, native: Run) -> None:
    flood = {"kind": "cbr", "rate_mbps": 80.0, "card": 1}
    run = native(scenario(flood, link={**PIPE, "row_ms": 1.0}, horizon_s=2.0))
    env, flow = run.env[0], run.flow[0, 0]
    assert env["ring_size"].tolist() == [0, 1024, 0, 0]
    assert flow["drops"] - env["dropped"] == flow["packets"] - env["sent"] - 1024 > 5_000


def test_an_agent_decides_in_the_order_of_the_processor(scenario: Build, acted: Acted) -> None:
    link = {**PIPE, "passes": 2, "acks_in_queue": True, "row_ms": 0.5}
    chosen = scenario({"kind": "cubic", "count": 2, "rtt_ms": 1.0}, link=link, horizon_s=3.0)
    _, asked = acted(chosen, {})
    assert len(asked) > 1000
    assert (np.diff(asked["time_us"].astype(np.int64)) >= 499).all()
    assert (asked["decided_by"] == 1).all()


def test_pauses(scenario: Build) -> None:
    """Nothing is printed for their length, and the clock jumps; one each 70 + 370 ms on average."""
    link = {**PIPE, "row_ms": 0.1, "pause_ms": 70.0, "pause_gap_ms": 370.0}
    log = simulate(scenario({"kind": "cbr", "rate_mbps": 4.0}, link=link, horizon_s=60.0), log=True).records
    gaps = np.diff(log["time_us"].astype(np.int64))
    long = gaps[gaps > 60_000]
    assert len(long) == pytest.approx(60.0 / 0.44, rel=0.25)
    assert long.min() >= 69_000
    assert log["current_queue_delay"].max() >= 60_000


# -- the hosts


def test_slop_of_the_timeout(scenario: Build, acted: Acted) -> None:
    """The last packet is lost: the transfer takes the retransmission timer's slop longer."""
    one = {"kind": "newreno", "rtt_ms": 50.0, "transfer_bytes": 3 * 1448, "ack_every": 1, "min_rto_ms": 1.0}
    took = []
    for slop_ms in (0.0, 200.0):
        batch, _ = acted(scenario({**one, "rto_slop_ms": slop_ms}), {2: DROP})
        assert batch.flow["timeouts"][0, 0] == 1
        took.append(float(batch.flow["completion_s"][0, 0]))
    assert took[1] - took[0] == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("length", [0, 12])
def test_sack_option_in_the_queue(length: int, scenario: Build, acted: Acted) -> None:
    one = {"kind": "newreno", "rtt_ms": 50.0, "transfer_bytes": 20 * 1448, "sack_length": length}
    _, log = acted(scenario(one, link={"rate_mbps": 8.0, "acks_in_queue": True}), {3: DROP})
    assert set(log["packet_length"].tolist()) == {1500, 52, 52 + length}


def test_host_cache_ends_slow_start(scenario: Build, native: Run) -> None:
    one = {"kind": "newreno", "rtt_ms": 100.0, "initial_threshold": 18.0}
    cwnd = [
        float(native(scenario(s, horizon_s=1.0)).flow["cwnd"][0, 0]) for s in (one, {**one, "initial_threshold": 0})
    ]
    assert 18.0 < cwnd[0] < 27.0
    assert cwnd[1] > 60.0


def test_receive_window_grows_by_half(scenario: Build, native: Run) -> None:
    one = {"kind": "newreno", "rtt_ms": 100.0, "receive_window": 45, "largest_window": 200}
    sizes = []
    for seconds in (0.15, 1.0, 5.0):
        run = native(scenario(one, link={"rate_mbps": 40.0}, horizon_s=seconds), "fifo")
        sizes.append(int(run.flow["rwnd"][0, 0]))
    assert sizes[0] == 45
    assert sizes[1] in (67, 100, 150, 200)
    assert sizes[2] == 200
    # A path that never brings 3/8 of the buffer in half an RTT leaves it as it is.
    slow = native(scenario(one, link={"rate_mbps": 1.0}, horizon_s=5.0), "fifo")
    assert slow.flow["rwnd"][0, 0] == 45


def test_cubic_of_freebsd_before_its_first_loss(scenario: Build) -> None:
    """Flat for K = (18 x 0.3 / 0.4)^(1/3) = 2.4 s after slow start, then it runs away (so iperf3 saw it)."""
    one = {"kind": "cubic", "rtt_ms": 300.0, "initial_threshold": 18.0, "receive_window": 3000}
    windows = {}
    for freebsd in (True, False):
        batch = Batch(scenario({**one, "freebsd": freebsd}, link={"rate_mbps": 100.0}), aqm="fifo")
        batch.reset(0, np.random.default_rng(0))
        seen = []
        for second in (2, 4, 6):
            batch.stop_at(0, second * 10**9)
            batch.advance_one()
            seen.append(float(batch.flow["cwnd"][0, 0]))
        windows[freebsd] = seen
    flat, grown, away = windows[True]
    assert 18.0 <= flat < 21.0
    assert away > 2.0 * grown > 2.5 * flat
    # RFC 9438 starts to grow at once.
    assert windows[False][0] > flat + 2.5


@pytest.mark.parametrize(("freebsd", "window", "plateau"), [(True, 0.5, 0.7), (False, 0.7, 1.0)])
def test_first_loss_of_cubic(freebsd: bool, window: float, plateau: float, scenario: Build, acted: Acted) -> None:
    one = {"kind": "cubic", "rtt_ms": 100.0, "initial_threshold": 18.0, "freebsd": freebsd}
    batch, _ = acted(scenario(one, link={"rate_mbps": 100.0}, horizon_s=0.8), {60: DROP})
    flow = batch.flow[0, 0]
    assert flow["reductions"] == 1
    assert flow["ssthresh"] == pytest.approx(window * flow["prior"])
    assert flow["w_max"] == pytest.approx(plateau * flow["prior"])


def windows(scenario: Scenario, actions: dict[int, int], every_ms: int = 10) -> list[tuple[float, float, int]]:
    """Window, threshold and `recover_fs` of flow 0, sampled."""
    batch = Batch(scenario, decider=layout.AGENT)
    batch.reset(0, np.random.default_rng(0))
    flow, seen, at_ns = batch.flow[0, 0], [], every_ms * 1_000_000
    batch.stop_at(0, at_ns)
    while (status := batch.advance_one()) != layout.TRUNCATED:
        if status == layout.DECISION:
            batch.action[0] = actions.get(int(batch.env["decisions"][0]), ENQUEUE)
        else:
            seen.append((float(flow["cwnd"]), float(flow["ssthresh"]), int(flow["recover_fs"])))
            at_ns += every_ms * 1_000_000
            batch.stop_at(0, at_ns)
    return seen


def test_reduction_after_ecn(scenario: Build) -> None:
    """A mark lowers the window step by step; a later one is measured against the flight of the first, and raises it."""
    one = {"kind": "newreno", "rtt_ms": 100.0, "freebsd": True, "echo": "rfc3168", "receive_window": 3000}
    fast = {"link": {"rate_mbps": 200.0}, "horizon_s": 2.5}
    once = windows(scenario(one, **fast), {8: MARK})
    first = next(fs for _, _, fs in once if fs > 0)
    assert 10 <= first <= 24
    assert min(c for c, s, _ in once if s < 1e6) <= once[-1][1] + 2.0
    later = windows(scenario({**one, "initial_threshold": 200.0}, **fast), {8: MARK, 400: MARK})
    assert later[-1][2] == first  # stale: an ECN signal does not set it
    grown = next(k for k, (_, s, _) in enumerate(later) if k > 0 and later[k - 1][1] < 1e6 and s != later[k - 1][1])
    assert max(c for c, _, _ in later[grown:]) > later[grown][1] * 1.5


def test_full_receive_window_and_a_loss(scenario: Build) -> None:
    """Nothing new may be sent while the hole is open, so nothing is in flight when it closes: two packets then."""
    one = {"kind": "newreno", "rtt_ms": 100.0, "receive_window": 20}
    least = []
    for freebsd in (True, False):
        chosen = scenario({**one, "freebsd": freebsd}, link={"rate_mbps": 200.0}, horizon_s=2.0)
        seen = windows(chosen, {100: DROP})
        least.append(min(c for c, s, _ in seen if s < 1e6))
    assert least[0] <= 3.0
    assert least[1] == 10.0


# -- the scenario


def test_the_log_is_the_kernels(scenario: Build) -> None:
    """What the real log shows of the machine: whole ticks, zeros and long queues side by side, few actions."""
    log = simulate(load("l4s-llm-testbed-vm").replace(horizon_s=60.0), seed=1, log=True).records
    assert set((log["current_queue_delay"] % 10_000).tolist()) == {0}
    assert log["current_queue_delay"].max() >= 150_000
    assert 0.02 < np.mean(log["current_queue_delay"] == 0) < 0.98
    assert np.mean(log["action"] != ENQUEUE) < 0.05
    assert {1500, 52, 64} <= set(log["packet_length"].tolist())


@pytest.mark.parametrize("aqm", ["dualpi2_rfc9332", "dualpi2_linux", "pie", "dualpi2_freebsd"])
def test_a_late_update_is_made_up(aqm: str) -> None:
    """The processor is busy with lines again and again; the control law goes on, up to some ticks late."""
    run = simulate(load("l4s-llm-testbed-vm").replace(horizon_s=10.0), aqm, seed=1)
    assert run.batch.env["updates"][0] > 10.0 / 0.2
