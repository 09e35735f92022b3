"""No link carries more than its rate over any window; rates and packets at both ends of what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l4s_gym.errors import L4SError
from l4s_gym.evaluation.native import simulate
from l4s_gym.sim import disciplines, layout, measure, setup
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.disciplines import AQMS
from l4s_gym.sim.scenario import Scenario, from_dict
from tests.sim.test_invariants import LINK, SOURCE

Build = Callable[..., Scenario]
KINDS = ("constant", "trace", "tick", "dummynet")
STEPS = [[0.001 * k, (0.1, 4.0, 1.0)[k % 3]] for k in range(1, 60)]
PAIRS = "0 0.4\n0.003 0\n0.0155 80\n0.0201 3.3\n0.03 0.02\n0.05 12\n"


def check_windows(batch: Batch, times_ns: list[int]) -> None:
    """From each time to the next, and at the end, no more is carried than the link could carry."""
    for time_ns in times_ns:
        batch.stop_at(0, time_ns)
        over = batch.advance_one() != layout.STOPPED
        carried, capacity = batch.carried_bytes(0), batch.capacity_bytes(0)
        assert 0.0 <= carried <= capacity * (1 + 1e-9) + 1e-3
        assert 0.0 <= measure.summary(batch, 0)["utilisation"] <= 1.0
        if over:
            return
        batch.reset_counters(0)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    link=LINK,
    sources=st.lists(SOURCE, min_size=1, max_size=3),
    aqm=st.sampled_from(AQMS),
    pairs=st.booleans(),
    gaps_ns=st.lists(st.sampled_from([1, 777, 50_000, 1_000_000, 10_000_000, 77_777_777]), min_size=1, max_size=12),
)
def test_utilisation_is_never_above_1(
    link: dict[str, Any],
    sources: list[dict[str, Any]],
    aqm: str,
    pairs: bool,
    gaps_ns: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "utilisation.txt"
    path.write_text(PAIRS)
    tree = {"link": {"trace": str(path) if pairs else "lte", **link}, "sources": sources, "aqm": aqm}
    batch = Batch(from_dict({"name": "random", "horizon_s": 0.5, **tree}))
    batch.reset(0, np.random.default_rng(0))
    check_windows(batch, [*np.cumsum([100_000_000, *gaps_ns]).tolist(), 10**9])


@pytest.mark.parametrize("steps", [[], STEPS], ids=["even", "stepped"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_fills_every_window(kind: str, steps: list[list[float]], scenario: Build) -> None:
    """Windows of all lengths; over long ones nothing of the capacity is lost."""
    link = {"kind": kind, "rate_mbps": 2.0, "trace": "lte", "hz": 700, "steps": steps, "limit_packets": 300}
    batch = Batch(scenario({"kind": "cbr", "rate_mbps": 60.0}, link=link, aqm="fifo"))
    batch.reset(0, np.random.default_rng(0))
    gaps = np.random.default_rng(1).choice([1, 333, 40_000, 700_000, 6_000_000], 400)
    check_windows(batch, np.cumsum(gaps).tolist())
    batch.stop_at(0, 4 * 10**9)
    assert batch.advance_one() == layout.STOPPED
    assert measure.summary(batch, 0)["utilisation"] > 0.995


@pytest.mark.parametrize("kind", ["constant", "tick", "dummynet"])
def test_the_rate_that_counts_is_that_of_each_moment(kind: str, scenario: Build) -> None:
    """Steps at every ms: a packet that began at the high rate, or a tick that ends in it, does not carry on with it."""
    steps = [[0.001 * k, 0.1 if k % 2 else 4.0] for k in range(1, 1000)]
    link = {"kind": kind, "rate_mbps": 1.0, "hz": 500, "steps": steps, "limit_packets": 300}
    batch = Batch(scenario({"kind": "cbr", "rate_mbps": 60.0}, link=link, aqm="fifo", horizon_s=1.0))
    batch.reset(0, np.random.default_rng(0))
    assert batch.advance_one() == layout.TRUNCATED
    capacity = batch.capacity_bytes(0)
    assert capacity == pytest.approx(2.05e6 / 8, rel=0.01)
    # dummynet counts the ticks for which it is busy at the rate that it had when they began.
    assert batch.carried_bytes(0) == pytest.approx(capacity, rel=0.15 if kind == "dummynet" else 0.02)
    # Batches may be ahead of the rate by a tick and a packet.
    assert batch.env["served_bytes"][0] <= capacity + (1500 if kind == "constant" else 2 * 1500 + 4e6 / 8 * 0.002)


@pytest.mark.parametrize(("mbps", "length"), [(400_000.0, 60), (400_000.0, 1500), (12.7, 60), (70_000.0, 61)])
def test_the_fraction_of_a_nanosecond_is_kept(mbps: float, length: int, scenario: Build) -> None:
    packet_ns = length * 8e3 / mbps
    seconds = 100_000 * packet_ns * 1e-9
    flood = {"kind": "cbr", "rate_mbps": 2 * mbps, "packet_length": length, "rtt_ms": 0.001}
    chosen = scenario(flood, link={"rate_mbps": mbps, "limit_packets": 50}, aqm="fifo", horizon_s=seconds)
    batch = simulate(chosen, sample_ms=1e3 * seconds / 4).batch
    assert batch.env["delivered"][0] == pytest.approx(100_000, abs=2)


def test_the_slowest_link(scenario: Build) -> None:
    """A packet takes 214 ms; the buffer holds two."""
    chosen = scenario({"kind": "newreno"}, link={"rate_mbps": 0.056}, aqm="fifo", horizon_s=60.0)
    assert 0.95 < simulate(chosen, sample_ms=1000.0).summary["utilisation"] <= 1.0
    for aqm in AQMS:
        assert simulate(chosen, aqm, sample_ms=1000.0).batch.env["delivered"][0] > 50


@pytest.mark.parametrize("aqm", AQMS)
def test_the_fastest_link(aqm: str, scenario: Build) -> None:
    # Where each flow has its share of the buffer, a burst of 1000 packets costs all of them a resent packet: a timeout.
    window = 100.0 if disciplines.get(aqm).flow_queues else 1000.0
    flows = {"kind": "cubic", "count": 4, "rtt_ms": 0.05, "initial_window": window, "packet_length": 9000}
    link = {"rate_mbps": 400_000.0, "buffer_ms": 0.1}
    summary = simulate(scenario(flows, link=link, aqm=aqm, horizon_s=0.004), sample_ms=0.1).summary
    assert 0.5 < summary["utilisation"] <= 1.0


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"link": {"rate_mbps": 0.0559}}, r"link\.rate_mbps: a rate of 0\.0559 Mbit/s; a link has 0\.056 to 400000"),
        ({"link": {"rate_mbps": 400_001.0}}, r"link\.rate_mbps: a rate of 400001 Mbit/s"),
        ({"link": {"rate_mbps": float("nan")}}, r"link\.rate_mbps: a rate of nan"),
        ({"link": {"rate_mbps": 1.0, "steps": [[1.0, 0.05]]}}, r"link\.steps: a rate of 0\.05 Mbit/s"),
        ({"link": {"rate_mbps": 1e5, "steps": [[1.0, 5.0]]}}, r"link\.steps: a rate of 500000 Mbit/s"),
        ({"randomise": {"link.rate_mbps": {"low": 0.01, "high": 1.0}}}, r"randomise\.link\.rate_mbps: a rate of 0\.01"),
        ({"randomise": {"link.rate_mbps": {"choices": [1.0, 1e6]}}}, r"randomise\.link\.rate_mbps: a rate of 1e\+06"),
        (
            {"link": {"steps": [[1.0, 0.1]]}, "randomise": {"link.rate_mbps": {"low": 0.1, "high": 9.0}}},
            r"link\.steps: a rate of 0\.01",
        ),
    ],
)
def test_rates_that_no_link_has(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(L4SError, match=message) as caught:
        from_dict({"name": "x", "sources": [{"kind": "cubic"}], **tree})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mbps", [0.056, 400_000.0])
def test_rates_at_both_ends(mbps: float) -> None:
    assert from_dict({"name": "x", "sources": [{"kind": "cubic"}], "link": {"rate_mbps": mbps}}).link.rate_mbps == mbps


# -- packets of any length


@pytest.mark.parametrize("length", [60, 100, 150, 576, 1500])
@pytest.mark.parametrize("kind", ["newreno", "cubic", "dctcp"])
def test_packets_of_any_length_fill_the_link(kind: str, length: int, scenario: Build) -> None:
    chosen = scenario(
        {"kind": kind, "rtt_ms": 100.0, "packet_length": length}, aqm="fifo", horizon_s=40.0, warmup_s=20.0
    )
    assert simulate(chosen).summary["utilisation"] > 0.99


def test_a_buffer_in_packets_is_of_the_flows_packets(scenario: Build) -> None:
    """The testbed's kernel counts packets: 250 ms at 8 Mbit/s are 167 of 1500 B, 1667 of 150 B."""
    limits = []
    for lengths in ([1500], [150], [150, 1500]):
        chosen = scenario(*({"kind": "cubic", "packet_length": length} for length in lengths))
        limits.append(int(setup.build(chosen, "dualpi2_freebsd", len(lengths))[0]["limit_packets"][0]))
    assert limits == [167, 1667, 167]


def test_drawn_lengths_fit_the_arrays(scenario: Build) -> None:
    draw = {"choices": [60, 1500, 9000]}
    chosen = scenario({"kind": "cubic", "count": 3, "rtt_ms": 40.0}, randomise={"sources.0.packet_length": draw})
    size = setup.sizes(chosen)
    for length in (60, 1500, 9000):
        each = chosen.replace(randomise={}, **{"sources.0.packet_length": length})
        assert setup.sizes(each).packets <= size.packets
        assert setup.receive_window(each, each.sources[0]) < size.window
    batch = Batch(chosen, aqm="fifo")
    for seed in range(6):
        batch.reset(0, np.random.default_rng(seed))
        assert batch.advance_one() == layout.TRUNCATED


@pytest.mark.parametrize("link", [{}, {"acks_in_queue": True, "passes": 2}, {"kind": "tick"}, {"kind": "dummynet"}])
def test_short_packets_fit_the_pool(link: dict[str, Any], scenario: Build) -> None:
    chosen = scenario(
        *({"kind": kind, "rtt_ms": 100.0, "packet_length": 60} for kind in ("newreno", "prague", "web")),
        {"kind": "cbr", "rate_mbps": 30.0, "packet_length": 60},
        link={"rate_mbps": 20.0, **link},
        horizon_s=3.0,
    )
    for aqm in ("fifo", "dualpi2_freebsd"):
        simulate(chosen, aqm)


def test_the_shortest_packet() -> None:
    with pytest.raises(L4SError, match="packet_length"):
        from_dict({"name": "x", "sources": [{"kind": "cubic", "packet_length": 59}]})


def test_a_pool_for_short_packets_on_a_long_path_is_named() -> None:
    source = {"kind": "cubic", "rtt_ms": 500.0, "packet_length": 60}
    with pytest.raises(L4SError, match="lower rate, RTT or buffer, or set receive_window"):
        Batch(from_dict({"name": "x", "sources": [source], "link": {"rate_mbps": 10_000.0}}))
