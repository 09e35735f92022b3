"""Scenarios and traces: loading, refusing with one clear line, drawing, Mahimahi's semantics."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.errors import L4SError
from l4s_gym.evaluation.entry import read_protocol
from l4s_gym.evaluation.native import simulate
from l4s_gym.sim import scenario as scenarios
from l4s_gym.sim import setup, traces
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario, from_dict, load

Build = Callable[..., Scenario]
ONE = {"kind": "cubic"}
VALID = 'description = "one flow"\nhorizon_s = 1.0\n[link]\nrate_mbps = 4.0\n[[sources]]\nkind = "newreno"\n'


def refused(text: str, tmp_path: Path) -> str:
    """The error of a scenario file: one line."""
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(L4SError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- loading


@pytest.mark.parametrize("name", scenarios.names())
def test_shipped_scenarios(name: str) -> None:
    chosen = load(name)
    assert chosen.name == name
    assert chosen.description
    size = setup.sizes(chosen)
    assert size.flows == chosen.largest().n_flows
    alone = ("steps", "overload", "l4s-llm-testbed-2024-8m", "l4s-llm-testbed-2024-10m")
    assert bool(scenarios.suites_of(name)) != (name in alone)


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(VALID)
    chosen = load(path)
    assert (chosen.name, chosen.link.rate_mbps, chosen.n_flows) == ("mine", 4.0, 1)
    assert load(str(path)) == chosen
    assert load(chosen) is chosen


def test_bad_toml(tmp_path: Path) -> None:
    assert "bad.toml: is no TOML" in refused("[link\n", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rate_mbps = nan", "rate_mbps"),
        ("rate_mbps = inf", "rate_mbps"),
        ("rate_mbps = 0.0", "rate_mbps"),
        ("rate_mbps = -1.0", "rate_mbps"),
        ('rate_mbps = "fast"', "rate_mbps"),
        ("buffer_ms = nan", "buffer_ms"),
        ("limit_packets = -1", "limit_packets"),
        ("hz = 0", "hz"),
        ("passes = 0", "passes"),
        ("rate = 8.0", "unknown setting of link 'rate': did you mean"),
        ('kind = "dumynet"', "link.kind: unknown value 'dumynet': did you mean 'dummynet'? choose one of constant,"),
        ('kind = "trace"', "link.trace names none"),
        ("steps = [[2.0, 0.5], [1.0, 1.0]]", "in order of time"),
        ("steps = [[nan, 0.5]]", "steps"),
        ("steps = [[1.0, 0.0]]", "steps"),
    ],
)
def test_bad_link(line: str, message: str, tmp_path: Path) -> None:
    assert message in refused(f'[link]\n{line}\n[[sources]]\nkind = "cubic"\n', tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('kind = "cubi"', "sources.kind: unknown value 'cubi': did you mean 'cubic'? choose one of cbr,"),
        ('kind = "cubic"\nrtt_ms = nan', "rtt_ms"),
        ('kind = "cubic"\nrtt_ms = -5.0', "rtt_ms"),
        ('kind = "cubic"\ncount = -1', "count"),
        ('kind = "cubic"\ncount = 0', "no flows"),
        (
            'kind = "cubic"\necn = "ect2"',
            "unknown value 'ect2': did you mean 'ect1'? choose one of ect0,",
        ),
        ('kind = "cubic"\npacket_length = 20', "packet_length"),
        ('kind = "cubic"\nwindow = 20', "unknown setting of sources 'window': did you mean 'receive_window'"),
        ('kind = "cbr"\nrate_mbps = nan', "rate_mbps"),
        ('kind = "web"\nsize_bytes = [100, 10]', "smallest, then the largest"),
        ("count = 1", "kind"),
    ],
)
def test_bad_source(line: str, message: str, tmp_path: Path) -> None:
    assert message in refused(f"[[sources]]\n{line}\n", tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dualpi2_rfc9332.target_ms", math.nan, "target_ms"),
        ("dualpi2_rfc9332.alpha", math.nan, "alpha"),
        ("pie.beta", math.inf, "beta"),
        ("pie.tupdate_ms", 0.0, "tupdate_ms"),
        ("dualpi2_linux.tupdate_ms", 1e-9, "tupdate_ms"),
        ("dualpi2_freebsd.classic_weight", 1.5, "classic_weight"),
        ("dualpi2_linux.classic_protection", 101, "classic_protection"),
        ("dualpi2_linux.classic_protection", 0.1, "classic_protection"),
        ("red.max_p", 1.5, "max_p"),
        ("dualpi2_rfc9332.scheduler", "fair", "options.dualpi2_rfc9332.scheduler: unknown value 'fair': choose one of"),
        ("dualpi2_linux.alpha", 0.16, "options.dualpi2_linux.alpha: Expected `int`"),  # RFC 9332's, in Hz
        ("dualpi2_freebsd.beta", 3.2, "options.dualpi2_freebsd.beta: Expected `int`"),
        ("alpha", 0.16, "write options.pie.alpha or options.dualpi2_freebsd.alpha or "),
        ("th_len", 1, "options.th_len: each discipline has options of its own: write options.dualpi2_rfc9332.th_len"),
        ("dualpi2_linux.min_th_us", 1.0, "option of dualpi2_linux (it is one of dualpi2_rfc9332) 'min_th_us': "),
        ("codel.target", 1.0, "unknown option of codel 'target': did you mean 'target_ms'? choose one of interval_ms,"),
        (
            "dualpi2_linu.alpha",
            41,
            "discipline with options 'dualpi2_linu': did you mean 'dualpi2_linux'",
        ),
        ("fifo.limit", 1, "'fifo': choose one of cobalt, codel, curvy_red"),
    ],
)
def test_bad_options(name: str, value: Any, message: str) -> None:
    aqm, _, option = name.partition(".")
    options = {aqm: {option: value}} if option else {aqm: value}
    refusals: list[Callable[[], Scenario]] = [lambda: from_dict({"name": "x", "sources": [ONE], "options": options})]
    refusals.append(lambda: from_dict({"name": "x", "sources": [ONE]}).replace(**{f"options.{name}": value}))
    for refusal in refusals:
        with pytest.raises(L4SError, match=re.escape(message)):
            refusal()


def test_each_discipline_reads_its_own_options() -> None:
    """The gains of one law, whose unit is another's no more, leave those of the others as they were."""
    tables = {"dualpi2_rfc9332": {"alpha": 0.32, "beta": 6.4}, "dualpi2_linux": {"alpha": 82}}
    chosen = from_dict({"name": "x", "sources": [ONE], "options": tables})
    env = {aqm: setup.aqm_fields(chosen, aqm) for aqm in ("dualpi2_freebsd", "dualpi2_rfc9332", "dualpi2_linux")}
    assert (env["dualpi2_freebsd"]["alpha"], env["dualpi2_freebsd"]["beta"]) == (1024, 10240)
    assert (env["dualpi2_rfc9332"]["alpha_q"], env["dualpi2_rfc9332"]["beta_q"]) == (90072, 1_801_440)
    assert (env["dualpi2_linux"]["alpha"], env["dualpi2_linux"]["beta"]) == (88, 879)


def test_randomised_options() -> None:
    drawn = {"options.dualpi2_linux.alpha": {"low": 10.0, "high": 90.0}}
    chosen = from_dict({"name": "x", "sources": [ONE], "randomise": drawn})
    alphas = {chosen.sample(np.random.default_rng(seed)).options.dualpi2_linux.alpha for seed in range(9)}
    assert len(alphas) > 5 and all(isinstance(alpha, int) and 10 <= alpha <= 90 for alpha in alphas)
    wrong = from_dict({"name": "x", "sources": [ONE], "randomise": {"options.alpha": {"low": 0.0, "high": 1.0}}})
    with pytest.raises(L4SError, match=r"options\.alpha: each discipline has options of its own"):
        wrong.sample(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (VALID.encode("utf-16"), "bad.toml: is UTF-16 text: save it as UTF-8"),
        (VALID.encode("utf-16-be"), "bad.toml: is UTF-16 text: save it as UTF-8"),
        (f"{VALID}# f\xfcr\n".encode("latin-1"), "bad.toml:7: byte 0xfc is not UTF-8: save it as UTF-8"),
    ],
)
def test_other_encodings(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(L4SError, match=re.escape(message)):
        load(path)


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mark.toml"
    path.write_text(VALID, encoding="utf-8-sig")
    assert load(path).link.rate_mbps == 4.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"aqm": "dualpi2_linu"}, "did you mean 'dualpi2_linux'"),
        ({"horizon_s": math.nan}, "horizon_s"),
        ({"horizon_s": 0.0}, "horizon_s"),
        ({"warmup_s": math.nan}, "warmup_s"),
        ({"sources": []}, "no flows"),
        ({"sources": 3}, "sources"),
        ({"randomise": {"link.rate_mbps": {"low": 2.0, "high": 1.0}}}, "low <= high"),
        ({"randomise": {"link.rate_mbps": {"low": math.nan, "high": 1.0}}}, "low <= high"),
        ({"randomise": {"link.rate_mbps": {"high": 1.0, "log": True}}}, "low <= high"),
        ({"randomise": {"link.rate_mbps": {"choices": [math.nan]}}}, "not a number"),
        ({"randomise": {"link.trace": {"choices": ["lte", "wifi"]}}}, "cannot be drawn"),
        ({"randomise": {"aqm": {"choices": ["fifo", "red"]}}}, "cannot be drawn"),
    ],
)
def test_bad_scenario(more: dict[str, Any], message: str) -> None:
    with pytest.raises(L4SError, match=message):
        from_dict({"name": "x", "sources": [ONE], **more})


@pytest.mark.parametrize("path", ["link.rate", "link.rate_mbps.x", "sources.7.rtt_ms", "sources.0.rtt", "link.steps.0"])
def test_randomised_field_that_does_not_exist(path: str) -> None:
    chosen = from_dict({"name": "x", "sources": [ONE], "randomise": {path: {"low": 1.0, "high": 2.0}}})
    with pytest.raises(L4SError):
        Batch(chosen)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(L4SError, match="unknown scenario 'l4s-llm-testbad': did you mean 'l4s-llm-testbed'"):
        load("l4s-llm-testbad")
    with pytest.raises(L4SError, match="no such scenario file"):
        load(tmp_path / "none.toml")
    with pytest.raises(L4SError, match="unknown suite 'tests': did you mean 'test'"):
        scenarios.suite("tests")
    with pytest.raises(L4SError, match="unknown discipline 'pi2'"):
        Batch(load("web"), aqm="pi2")
    with pytest.raises(L4SError, match="unknown trace 'ltee': did you mean 'lte'"):
        Batch(from_dict({"name": "x", "sources": [ONE], "link": {"kind": "trace", "trace": "ltee"}}))


def test_more_packets_than_memory() -> None:
    with pytest.raises(L4SError, match="lower rate, RTT or buffer"):
        Batch(from_dict({"name": "x", "sources": [{**ONE, "rtt_ms": 1000.0}], "link": {"rate_mbps": 4e5}}))


# -- replacing and drawing


def test_replace() -> None:
    chosen = load("l4s-llm-testbed")
    other = chosen.replace(**{"link.rate_mbps": 40, "sources.0.rtt_ms": 7.0, "sources.*.ack_every": 1, "horizon_s": 2})
    assert other.link.rate_mbps == 40.0
    assert [source.rtt_ms for source in other.sources] == [7.0, 20.0, 20.0]
    assert [source.ack_every for source in other.sources] == [1, 1, 1]
    assert chosen.link.rate_mbps == 8.0
    for path in ("link.rte_mbps", "sources.9.rtt_ms", "sources.x.rtt_ms", "sources.0", "link.rate_mbps.x", "nothing"):
        with pytest.raises(L4SError):
            chosen.replace(**{path: 1.0})
    with pytest.raises(L4SError, match="rate_mbps"):
        chosen.replace(**{"link.rate_mbps": math.nan})


def test_randomised_fields() -> None:
    chosen = load("mixed")
    drawn = [chosen.sample(np.random.default_rng(seed)) for seed in range(60)]
    rates = [each.link.rate_mbps for each in drawn]
    assert 8.0 <= min(rates) < 15.0 and 60.0 < max(rates) <= 120.0
    assert {each.sources[2].kind for each in drawn} == {"dctcp", "prague"}
    assert {each.sources[0].count for each in drawn} == {0, 1, 2, 4}
    assert chosen.sample(np.random.default_rng(7)) == drawn[7]
    size = setup.sizes(chosen)
    for each in drawn:
        assert each.n_flows <= size.flows
        assert max(setup.receive_window(each, source) for source in each.sources) < size.window
        assert setup.sizes(each.replace(randomise={})).packets <= size.packets
    assert load("web").sample(np.random.default_rng(0)) is load("web")


def test_a_drawn_zero_does_not_outgrow_the_scoreboard(scenario: Build) -> None:
    chosen = scenario(ONE, randomise={"sources.0.receive_window": {"choices": [0, 4]}})
    batch = Batch(chosen)
    for seed in range(6):
        batch.reset(0, np.random.default_rng(seed))
        batch.advance_one()
        assert batch.flow["rwnd"][0, 0] < batch.score.shape[2]


# -- suites


def test_suites() -> None:
    suites = {name: set(scenarios.suite(name)) for name in scenarios.SUITES}
    assert all(suites.values())
    assert suites["train"] == suites["test"]
    assert not suites["shift"] & (suites["train"] | suites["test"])
    links = {name: {(load(s).link, load(s).sources) for s in members} for name, members in suites.items()}
    assert not links["shift"] & links["train"]
    assert suites == {name: set(read_protocol().members(name)) for name in scenarios.SUITES}


# -- traces


def opportunities(text: str) -> traces.Trace:
    trace = traces.parse(text)
    assert isinstance(trace, traces.Trace)
    return trace


def test_trace_times() -> None:
    trace = opportunities("# a comment\n1\n1\n1\n1\n\n3 # the third millisecond\n5\n")
    # The k-th of n opportunities of a millisecond comes k/n into it; the trace lasts to its last line.
    assert trace.opportunities_ns.tolist() == [0, 250_000, 500_000, 750_000, 2_000_000, 4_000_000]
    assert trace.period_ns == 5_000_000
    assert trace.mean_bps == pytest.approx(6 * 1504 * 8 / 5e-3)


def test_trace_repeats() -> None:
    trace = opportunities("1\n3\n")
    assert [trace.opportunities_in(0, ms * 1_000_000) for ms in (0, 1, 2, 3, 4, 6, 300)] == [0, 1, 1, 2, 3, 4, 200]
    assert trace.opportunities_in(2_000_000, 3_000_001) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\nx\n", "trace:2: 'x' is not a time"),
        ("1\n\n2.5\n", "trace:3: '2.5' is not a time"),
        ("1\n-2\n", "trace:2"),
        ("5\n6\n4\n", "trace:3: time 4 is before"),
        ("", "no delivery opportunity"),
        ("# nothing\n0\n0\n", "no delivery opportunity"),
    ],
)
def test_malformed_traces(text: str, message: str) -> None:
    with pytest.raises(L4SError, match=message):
        traces.parse(text)


def test_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("1\ntwo\n")
    with pytest.raises(L4SError, match=r"mine\.txt:2"):
        traces.load(str(path))


@pytest.mark.parametrize("kind", traces.KINDS)
def test_shipped_traces_say_that_they_are_generated(kind: str) -> None:
    path = Path(scenarios.__file__).parents[1] / "scenarios" / "traces" / f"{kind}.txt"
    head = path.read_text().splitlines()[0]
    assert head.startswith(f"# generated, not recorded: {kind}-like")
    assert traces.generate(kind, seconds=30, seed=1) == path.read_text()


@pytest.mark.parametrize(("kind", "mbps"), [("lte", 12.0), ("wifi", 20.0), ("leo", 24.0)])
def test_generated_traces(kind: str, mbps: float) -> None:
    text = traces.generate(kind, seconds=30, seed=5)
    trace = traces.parse(text)
    assert trace.mean_bps * 1e-6 == pytest.approx(mbps, rel=0.5)
    assert traces.generate(kind, seconds=30, seed=5) == text
    assert traces.generate(kind, seconds=30, seed=6) != text
    with pytest.raises(L4SError, match="unknown kind of trace"):
        traces.generate("5g")


def test_trace_link_keeps_to_its_opportunities(scenario: Build, tmp_path: Path) -> None:
    """In every interval no more than the opportunities' bytes leave, and a flood uses all of them."""
    path = tmp_path / "bursty.txt"
    path.write_text("\n".join(["10"] * 5 + ["40"] * 2 + ["100"]))
    flood = {"kind": "cbr", "rate_mbps": 10.0}
    for length in (200, 1500, 4000):
        chosen = scenario(
            {**flood, "packet_length": length}, link={"kind": "trace", "trace": str(path)}, horizon_s=1.0, aqm="fifo"
        )
        run = simulate(chosen, sample_ms=5.0)
        carried = run.samples["served_mbps"] * 5e-3 / 8e-6
        offered = traces.load(str(path)).carried_bytes(np.arange(len(carried) + 1) * 5_000_000)
        gone = np.cumsum(carried)
        # The opportunity of a sample's own nanosecond has been used.
        assert (gone <= offered[1:] + 1504).all()
        assert (gone[10:] >= offered[10:-1] - 2 * length).all()


def test_unused_opportunities_are_lost(scenario: Build, tmp_path: Path) -> None:
    path = tmp_path / "even.txt"
    path.write_text("\n".join(str(ms) for ms in range(1, 101)))
    late = {"kind": "cbr", "rate_mbps": 100.0, "start_s": 0.5}
    run = simulate(scenario(late, link={"kind": "trace", "trace": str(path)}, horizon_s=1.0, aqm="fifo"))
    assert run.batch.env["served_bytes"][0] == pytest.approx(500 * 1504, abs=3000)
