"""Traces of links: both forms, what is malformed, mean rates, and links that follow them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l4s_gym.errors import L4SError
from l4s_gym.sim import layout, setup, traces
from l4s_gym.sim import scenario as scenarios
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario

Build = Callable[..., Scenario]
MS = 1_000_000
FLOOD = {"kind": "cbr", "rate_mbps": 40.0}


def opportunities(text: str) -> traces.Trace:
    trace = traces.parse(text)
    assert isinstance(trace, traces.Trace)
    return trace


def schedule(text: str) -> traces.Schedule:
    trace = traces.parse(text)
    assert isinstance(trace, traces.Schedule)
    return trace


def flooded(chosen: Scenario) -> Batch:
    batch = Batch(chosen)
    batch.reset(0, np.random.default_rng(0))
    assert batch.advance_one() == layout.TRUNCATED
    return batch


# -- Mahimahi's form


def test_lines_of_the_first_milliseconds() -> None:
    """Line 0 of a round and the last line of the one before are the same instant in Mahimahi."""
    trace = opportunities("0\n0\n1\n1\n2\n")
    assert trace.period_ns == 2 * MS
    assert trace.opportunities_ns.tolist() == [0, 500_000, 1_000_000, 1_333_333, 1_666_666]
    assert trace.mean_bps == pytest.approx(5 * 1504 * 8 / 2e-3)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60).map(sorted).filter(lambda times: times[-1] > 0))
def test_opportunities_are_those_of_mahimahi(times: list[int]) -> None:
    trace = opportunities("\n".join(map(str, times)))
    assert trace.period_ns == times[-1] * MS
    assert (np.diff(trace.opportunities_ns) >= 0).all()
    assert trace.opportunities_ns[0] >= 0 and trace.opportunities_ns[-1] < trace.period_ns
    assert trace.mean_bps == pytest.approx(len(times) * 1504 * 8e3 / times[-1])
    # In Mahimahi line t of round k comes at k x period + t ms; here within the millisecond that ends there.
    there = [k * times[-1] + time for k in range(4) for time in times]
    for ms in range(1, 3 * times[-1] + 1):
        assert trace.opportunities_in((ms - 1) * MS, ms * MS) == there.count(ms)


def test_an_opportunity_of_line_0_is_used(scenario: Build, tmp_path: Path) -> None:
    path = tmp_path / "early"
    path.write_text("0\n0\n1\n1\n2\n")
    batch = flooded(scenario(FLOOD, link={"kind": "trace", "trace": str(path)}, horizon_s=0.1, aqm="fifo"))
    assert batch.capacity_bytes(0) == 250 * 1504
    assert batch.carried_bytes(0) == pytest.approx(250 * 1504, abs=2 * 1504)


# -- pairs of seconds and Mbit/s


@pytest.mark.parametrize(
    "text",
    [
        "0 10\n1 20\n2 0\n",
        "0,10\n1,20\n2,0\n",
        "seconds,Mbit/s\n0, 10\n1, 20\n2, 0\n",
        "time rate\n0\t10\n\n1   20 # fast\n2.0 0.0\n",
        "# recorded\r\n0 10\r\n1 20\r\n2 0",
        "100.0 10\n101.0 20\n102.0 0\n",
    ],
)
def test_pairs(text: str) -> None:
    """Times count from the first line; the last rate holds as long as the one before it."""
    trace = schedule(text)
    assert trace.starts_ns.tolist() == [0, 10**9, 2 * 10**9]
    assert trace.rates_bps.tolist() == [10_000_000, 20_000_000, 0]
    assert trace.period_ns == 3 * 10**9
    assert trace.mean_bps == 10e6
    assert trace.rates_bps_in(3).tolist() == [10e6, 20e6, 0.0]
    assert trace.peak_bps == 20e6


def test_a_single_pair_is_a_constant_rate() -> None:
    assert schedule("0 5.5").mean_bps == 5.5e6


def test_of_two_rates_at_one_time_the_last_holds() -> None:
    assert schedule("0 1\n1 2\n1 4\n2 3").rates_bps.tolist() == [1_000_000, 4_000_000, 3_000_000]


PIECES = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([0.0, 0.0, 0.001, 0.06, 1.5, 7.25, 33.0])), min_size=2, max_size=12
).filter(lambda pieces: sum(rate for _, rate in pieces) > 0)


def pairs(pieces: list[tuple[int, float]]) -> str:
    starts = itertools.accumulate([0, *(held for held, _ in pieces[:-1])])
    return "\n".join(f"{start / 1000} {rate}" for start, (_, rate) in zip(starts, pieces, strict=True))


@settings(max_examples=300, deadline=None)
@given(PIECES)
def test_the_mean_of_pairs(pieces: list[tuple[int, float]]) -> None:
    trace = schedule(pairs(pieces))
    held = [held for held, _ in pieces]
    held[-1] = held[-2]
    rates = [rate for _, rate in pieces]
    mean = np.dot(held, rates) / sum(held) * 1e6
    assert trace.period_ns == sum(held) * MS
    assert trace.mean_bps == pytest.approx(mean)
    assert trace.carried_bytes(np.array([0, trace.period_ns, 5 * trace.period_ns])) == pytest.approx(
        np.array([0, 1, 5]) * mean * sum(held) * 1e-3 / 8
    )
    assert trace.rates_bps_in(7).mean() == pytest.approx(mean)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=PIECES, length=st.sampled_from([60, 576, 1500]))
def test_a_flooded_link_carries_the_mean(
    pieces: list[tuple[int, float]], length: int, scenario: Build, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(pairs(pieces))
    trace = traces.load(str(path))
    if trace.mean_bps < 56e3:
        return
    chosen = scenario(
        {**FLOOD, "packet_length": length}, link={"kind": "trace", "trace": str(path)}, horizon_s=3.0, aqm="fifo"
    )
    batch = flooded(chosen)
    should = trace.carried_bytes(np.array([3 * 10**9]))[0]
    assert batch.capacity_bytes(0) == pytest.approx(should)
    assert should - 2 * length - 40e6 / 8 * 1e-3 <= batch.carried_bytes(0) <= should * (1 + 1e-9)


def test_an_outage_stops_the_packet_that_is_sent(scenario: Build, tmp_path: Path) -> None:
    """1500 B at 1 Mbit/s are 12 ms: 5 before the outage of 20 ms, 7 after it."""
    path = tmp_path / "gap.txt"
    path.write_text("0 1\n0.005 0\n0.025 1\n0.5 1\n")
    one = {"kind": "cbr", "rate_mbps": 0.001, "rtt_ms": 0.001}
    batch = Batch(scenario(one, link={"kind": "trace", "trace": str(path)}, aqm="fifo"))
    batch.reset(0, np.random.default_rng(0))
    left = []
    for at_ms in (5, 15, 25, 31, 33):
        batch.stop_at(0, at_ms * MS)
        batch.advance_one()
        left.append(batch.carried_bytes(0))
    assert left == pytest.approx([625, 625, 625, 1375, 1500])
    assert batch.env["delivered"][0] == 1


# -- what is malformed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\nx\n", r"trace:2: 'x' is not a time in whole milliseconds"),
        ("1\n²\n", r"trace:2: '²' is not"),
        ("1\n1 2\n", r"trace:2: '1 2' is not"),
        ("3\n2\n", r"trace:2: time 2 is before"),
        ("1\n3\n2\n", r"trace:3: time 2 is before"),
        ("# with a comment\n3\n2\n", r"trace:3: time 2 is before"),
        ("99999999999\n", r"trace:1: time 9+: a trace is at most"),
        ("9" * 4000, r"trace:1: time 9+: a trace is at most"),
        ("", "empty"),
        (" \n# nothing\n", "empty"),
        ("0 1\n1\n", r"trace:2: '1' is not a pair"),
        ("0 1 2\n", r"trace:1: '0 1 2' is not"),
        ("0 1\n1 2 3\n", r"trace:2: '1 2 3' is not a pair"),
        ("0 1\n1,2,\n", r"trace:2: '1,2,' is not a pair"),
        ("0 1\n1 fast\n", r"trace:2: '1 fast' is not a pair"),
        ("time rate\nMbit/s s\n0 1\n", r"trace:2: 'Mbit/s s' is not a pair"),
        ("time 1\n", r"trace:1: 'time 1' is not a pair"),
        ("0 1\n1_0 2\n", r"trace:2: '1_0 2' is not a pair"),
        ("time rate\n", "no rate above 0"),
        ("0 0\n1 0\n", "no rate above 0"),
        ("0 1e-9\n", "no rate of a bit/s"),
        ("0 nan\n", r"trace:1: rate nan"),
        ("nan nan\n", r"trace:1: time nan"),
        ("0 1\n\ninf 1\n", r"trace:3: time inf"),
        ("0 inf\n", r"trace:1: rate inf"),
        ("0 1\n1 -2\n", r"trace:2: rate -2"),
        ("-1 1\n", r"trace:1: time -1"),
        ("0 400001\n", r"trace:1: rate 400001: give Mbit/s, from 0 to 400000"),
        ("0 1\n2 1\n1 1\n", r"trace:3: time 1 is before"),
        ("0 1\n1e300 1\n", r"trace:2: time 1e\+300: a trace is at most"),
        ("0 1\n1e-8 1\n", "lasts at least a millisecond"),
    ],
)
def test_malformed(text: str, message: str) -> None:
    with pytest.raises(L4SError, match=message) as caught:
        traces.parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("0123456789.,-e nax#\n\r\t\x00²"), max_size=30))
def test_whatever_is_read_is_a_trace_or_one_clear_line(text: str) -> None:
    try:
        trace = traces.parse(text, "file")
    except L4SError as error:
        assert str(error).startswith("file:") and "\n" not in str(error)
    else:
        assert trace.period_ns > 0 and trace.mean_bps > 0.0 and len(trace) > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\n2\n\xff\xfe\n", r"odd\.txt:3: is not text in UTF-8"),
        (b"\x00\x01\x02", r"odd\.txt:1: '\\x00\\x01\\x02' is not a time"),
        (b"\x7fELF\x02\x01", r"odd\.txt:1: "),
        (b"1\ntwo\n", r"odd\.txt:2: 'two'"),
    ],
)
def test_files_that_are_no_traces(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_bytes(content)
    with pytest.raises(L4SError, match=message):
        traces.load(str(tmp_path / "odd.txt"))


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf0,8\n1,8\n")
    assert traces.load(str(tmp_path / "bom.csv")).mean_bps == 8e6


def test_a_mean_rate_that_no_link_has(scenario: Build, tmp_path: Path) -> None:
    (tmp_path / "slow.txt").write_text("0 0.05\n1 0.05\n")
    chosen = scenario(FLOOD, link={"kind": "trace", "trace": str(tmp_path / "slow.txt")})
    with pytest.raises(L4SError, match=r"link\.trace: .*slow\.txt has a mean of 0\.05 Mbit/s; a link has 0\.056"):
        Batch(chosen)


# -- scenarios


def test_digests_tell_traces_apart(scenario: Build, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    found = set()
    for text in ("0 8\n1 4\n", "0 8\n1 5\n", "0 8\n2 4\n", "1\n2\n"):
        path.write_text(text)
        found.add(scenarios.digest(scenario(FLOOD, link={"kind": "trace", "trace": str(path)})))
    assert len(found) == 4


def test_the_receive_window_holds_a_traces_peak(scenario: Build, tmp_path: Path) -> None:
    """A second at 40 Mbit/s in each ten of 1 Mbit/s: the window is not that of the mean."""
    path = tmp_path / "peaks.csv"
    path.write_text("0,40\n1,1\n10,40\n11,1\n20,40\n21,1\n")
    chosen = scenario({"kind": "cubic", "rtt_ms": 200.0}, link={"kind": "trace", "trace": str(path)})
    window = setup.receive_window(chosen, chosen.sources[0])
    assert window * 1500 * 8 / 0.2 > 40e6
    assert setup.sizes(chosen).window > window


def test_fast_links_do_not_overflow() -> None:
    """200 Gbit/s for a second is 2e20 when it is counted in bits times nanoseconds."""
    assert traces.parse("0,2e5\n1,2e5\n").mean_bps == pytest.approx(2e11)
