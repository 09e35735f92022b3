"""From a scenario to commands: units are the simulator's, what cannot be done is refused, the plan is complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import cli
from l4s_gym.agents.student import StudentAgent
from l4s_gym.bridge.figures import read
from l4s_gym.cli.live_up import status_line
from l4s_gym.errors import L4SError
from l4s_gym.live import programs
from l4s_gym.live.router import LINUX, RFC9332, TESTBED, UNSHAPED, VARIANTS, live_config
from l4s_gym.live.testbed import LiveTestbed
from l4s_gym.sim import scenario
from tests.kernel.models import constant

HEADER = Path(__file__).parents[2] / "kernel" / "core" / "l4s_core.h"


def header_parameters() -> dict[str, tuple[int, int, int]]:
    """Default, lowest and highest of every parameter of the core, from its header."""
    found = re.findall(r"\bX\((\w+), (\d+), (\d+), (\d+),", HEADER.read_text())
    return {name: (int(normal), int(low), int(high)) for name, normal, low, high in found}


def make(*sources: dict[str, Any], **fields: Any) -> scenario.Scenario:
    return scenario.from_dict({"name": "made", "sources": list(sources or ({"kind": "cubic"},)), **fields})


def test_every_value_is_a_parameter_of_the_core_and_in_its_range() -> None:
    known = header_parameters()
    assert len(known) > 25
    for aqm in VARIANTS:
        values = live_config(scenario.load("l4s-llm-testbed"), aqm).router.values
        for name, value in values.items():
            assert name in known, name
            assert known[name][1] <= value <= known[name][2], (name, value)


def test_defaults_of_scenario_and_core_agree() -> None:
    known = header_parameters()
    own = {"limit_packets", "limit_bytes", "variant", "tupdate_us"}  # by the scenario's buffer, and by variant
    for aqm, unused in (("dualpi2_freebsd", set()), ("dualpi2_linux", set()), ("dualpi2_rfc9332", {"alpha", "beta"})):
        own |= unused
        values = live_config(make(), aqm).router.values
        assert {name: value for name, value in values.items() if name not in own} == {
            name: known[name][0] for name in values if name not in own
        }


def test_variant_rate_delay_and_buffer_follow_the_scenario() -> None:
    chosen = make({"kind": "cubic", "rtt_ms": 20.0}, {"kind": "prague", "rtt_ms": 5.0}, link={"rate_mbps": 40.0})
    testbed, rfc = live_config(chosen, "dualpi2_freebsd").router, live_config(chosen, "dualpi2_rfc9332").router
    assert (testbed.values["variant"], rfc.values["variant"]) == (TESTBED, RFC9332)
    assert testbed.values["limit_packets"] == 834  # 250 ms of 40 Mbit/s
    assert rfc.values["limit_bytes"] == 1_250_000 and rfc.values["limit_packets"] == 0
    assert rfc.rate_bps == 40_000_000
    assert list(rfc.delays_ns.values()) == [10_000_000, 2_500_000]
    assert testbed.values["drr_weight"] == 2
    equal = make(options={"dualpi2_freebsd": {"drr_weight": 1}})
    assert "drr_weight 1\n" in live_config(equal, "dualpi2_freebsd").router.text()
    options = make(
        options={"dualpi2_rfc9332": {"alpha": 0.32, "coupling": 1.5, "classic_weight": 0.1, "target_ms": 5.0}}
    )
    values = live_config(options, "dualpi2_rfc9332").router.values
    assert [values[name] for name in ("alpha_q", "coupling", "classic_weight", "target_us")] == [90072, 384, 6554, 5000]
    options = make(options={"dualpi2_linux": {"alpha": 82, "coupling": 3, "classic_protection": 25, "step_packets": 4}})
    linux = live_config(options, "dualpi2_linux").router.values
    names = ("variant", "pi2_alpha", "pi2_beta", "coupling_factor", "classic_protection", "step_packets", "tupdate_us")
    assert [linux[name] for name in names] == [LINUX, 88, 879, 3, 25, 4, 16_000]


def test_steps_become_rates_at_times() -> None:
    router = live_config(scenario.load("steps"), "dualpi2_rfc9332").router
    assert router.rate_at == ((20_000_000_000, 10_000_000), (40_000_000_000, 40_000_000))
    assert "rate_at 20000000000 10000000\n" in router.text()


def test_random_fields_are_drawn_by_the_seed() -> None:
    chosen = make(randomise={"link.rate_mbps": {"low": 4.0, "high": 200.0}})
    rates = [live_config(chosen, "dualpi2_rfc9332", seed).router.rate_bps for seed in (1, 1, 2)]
    assert rates[0] == rates[1] != rates[2]


def test_flows_of_every_kind() -> None:
    chosen = make(
        {"kind": "cubic", "count": 2},
        {"kind": "newreno", "start_s": 3.0, "stagger_s": 0.0},
        {"kind": "dctcp"},
        {"kind": "prague"},
        {"kind": "cbr", "rate_mbps": 1.2, "packet_length": 1500, "ecn": "ect1"},
    )
    config = live_config(chosen, "dualpi2_rfc9332")
    assert [flow.label for flow in config.flows] == ["cubic", "cubic", "newreno", "prague-like", "prague-like", "cbr"]
    assert config.flows[2].arguments(10.0)[-4:] == ["--seconds", "7.000", "--cc", "reno"]
    assert config.flows[5].options == ("--pps", "100", "--size", "1500", "--ecn", "ect1")
    assert len({flow.address for flow in config.flows}) == 5
    assert any("DCTCP" in note and "Prague-like" in note for note in config.notes)
    assert config.tcp_ecn
    assert not live_config(make({"kind": "cubic", "ecn": "not-ect"}), "dualpi2_rfc9332").tcp_ecn


@pytest.mark.parametrize(
    ("chosen", "aqm", "says"),
    [
        (make(), "pie", "dualpi2_freebsd, dualpi2_rfc9332, dualpi2_linux"),
        (scenario.load("wifi"), "dualpi2_rfc9332", "'constant'"),
        (scenario.load("l4s-llm-testbed-vm"), "dualpi2_freebsd", "l4s-llm-testbed"),
        (make(link={"passes": 2}), None, "passes 1"),
        (make({"kind": "web"}), None, "use cubic"),
        (make({"kind": "onoff"}), None, "use cubic"),
        (make({"kind": "cubic", "ecn": "ect1"}), None, "leave ecn out"),
        (make({"kind": "prague", "ecn": "ect0"}), None, "leave ecn out"),
        (make({"kind": "cubic", "transfer_bytes": 10}), None, "leave transfer_bytes out"),
        (make({"kind": "cubic"}, {"kind": "cubic", "ecn": "not-ect"}), None, "do not mix"),
        (make(*[{"kind": "cubic"}] * 61), None, "at most 60 sources"),
    ],
)
def test_what_a_live_queue_cannot_do_is_refused_with_a_remedy(
    chosen: scenario.Scenario, aqm: str | None, says: str
) -> None:
    with pytest.raises(L4SError, match=re.escape(says)):
        live_config(chosen, aqm)


def test_every_shipped_scenario_runs_or_is_refused() -> None:
    refused = set()
    for name in scenario.names():
        try:
            live_config(scenario.load(name))
        except L4SError:
            refused.add(name)
    testbed = {f"l4s-llm-testbed-{name}" for name in ("vm", "2024-8m", "2024-10m")}
    assert refused == {*testbed, "leo", "lte", "web", "wifi"}


def test_the_dry_run_needs_nothing_and_prints_every_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = str(tmp_path / "x.sock")
    assert cli.main(["live", "up", "--dry-run", "--seconds", "7", "--socket", where, "--aqm", "dualpi2_rfc9332"]) == 0
    out = capsys.readouterr().out
    assert out.count("ip netns add") == 2
    for part in ("l4s-router --config", "l4s-bridged --device unix:", "l4s-traffic sink", "--seconds 6.9", where):
        assert part in out
    assert out.count("l4s-traffic tcp") == 8 and out.count("l4s-traffic prague-like") == 1
    assert "alpha_q 45036\n" in out
    assert not Path(where).exists()


def test_the_law_of_an_agent_or_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["live", "up", "--dry-run", "--agent", "tests.live.test_interval_control:Tuned"]) == 0
    out = capsys.readouterr().out  # the scenario's own discipline is that of the testbed
    assert "variant 1\n" in out and "target_us 3200\n" in out and "beta_q 3377700\n" in out
    settings = ["--set", "options.dualpi2_freebsd.target_ms=3.2"]
    assert cli.main(["live", "up", "--dry-run", "--agent", "threshold", *settings]) == 0
    out = capsys.readouterr().out
    assert "variant 0\n" in out and "target_us 3200\n" in out


def test_a_student_decides_in_the_router_over_the_law_of_its_teacher(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    teacher = {"options": {"dualpi2_rfc9332": {"target_ms": 3.2}}}
    model = constant("parameters", *[0.0] * 5, interval_ms=500.0)
    student = StudentAgent(model, {"to": "tree"}, teacher).save(tmp_path / "student")
    assert cli.main(["live", "up", "--dry-run", "--model", str(student)]) == 0
    out = capsys.readouterr().out
    assert f"--model {student / 'model.bin'}" in out and "variant 1\n" in out and "target_us 3200\n" in out
    assert cli.main(["live", "up", "--dry-run", "--model", "tree.bin"]) == 0
    assert f"--model {Path('tree.bin').absolute()}" in capsys.readouterr().out
    assert cli.main(["live", "up", "--dry-run", "--model", str(tmp_path)]) == 2
    assert "`l4s-gym distil`" in capsys.readouterr().err


def test_bounds_of_the_shield_are_the_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["live", "up", "--dry-run", "--shield", "hits=0", "--shield", "c_us=90000"]) == 0
    out = capsys.readouterr().out
    assert "shield_hits 0\n" in out and "shield_c_us 90000\n" in out
    for wrong, says in (("speed=3", "unknown bound 'speed'"), ("hits", "whole number"), ("hits=-1", "whole number")):
        assert cli.main(["live", "up", "--dry-run", "--shield", wrong]) == 2
        assert says in capsys.readouterr().err


def test_flows_that_start_after_the_end_are_not_in_the_plan() -> None:
    bed = LiveTestbed(make({"kind": "cubic", "start_s": 20.0}, {"kind": "prague"}), seconds=5.0, dry_run=True)
    assert bed.plan.text(5.0).count("--cc cubic") == 0
    assert bed.plan.sending(5.0) == [1]


def test_values_replace_the_scenarios() -> None:
    bed = LiveTestbed(make(), values={"rate_bps": UNSHAPED, "shield_l_us": 7}, dry_run=True)
    text = bed.config.router.text()
    assert "rate_bps 0\n" in text and "shield_l_us 7\n" in text


def test_a_bad_length_is_refused() -> None:
    with pytest.raises(L4SError, match="positive"):
        LiveTestbed(make(), seconds=0.0, dry_run=True)


def test_programs_are_found_where_they_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "source", lambda: None)
    monkeypatch.delenv(programs.FOLDER, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(L4SError, match="make -C kernel"):
        programs.find()
    for name in programs.PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert programs.find()["l4s-router"] == tmp_path / "l4s-router"
    assert programs.find(tmp_path)["l4s-router"] == tmp_path / "l4s-router"
    (tmp_path / "l4s-traffic").unlink()
    monkeypatch.setenv(programs.FOLDER, str(tmp_path))
    with pytest.raises(L4SError, match="l4s-traffic"):
        programs.find()


def test_a_checkout_builds_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "source", lambda: tmp_path)
    monkeypatch.delenv(programs.FOLDER, raising=False)
    makefile = tmp_path / "Makefile"
    makefile.write_text("all:\n\tmkdir build\n\tfor name in router bridged traffic; do \\\n")
    makefile.write_text(makefile.read_text() + "\t    printf '#!/bin/sh\\n' >build/l4s-$$name; \\\n")
    makefile.write_text(makefile.read_text() + "\t    chmod +x build/l4s-$$name; done\n")
    assert programs.find() == {name: tmp_path / "build" / name for name in programs.PROGRAMS}
    makefile.write_text("all:\n\tfalse\n")  # not run again: everything is there
    assert set(programs.find()) == set(programs.PROGRAMS)
    (tmp_path / "build" / "l4s-router").unlink()
    with pytest.raises(L4SError, match="C compiler"):
        programs.find()


def stats(**changes: Any) -> dict[str, Any]:
    """The router's statistics, as it writes them."""
    hist = {"count": 100, "mean": 2_000_000, "p50": 1_000_000, "p95": 4_000_000, "p99": 5_000_000, "max": 9_000_000}
    way = dict.fromkeys(("packets", "bytes", "delivered", "delivered_bytes"), 0)
    way |= {"malformed": 1, "oversized": 0, "pool_missed": 2, "write_failed": 0}
    one = {"packets": 110, "bytes": 0, "marks": 11, "drops": 10, "served_packets": 100, "served_bytes": 125_000}
    return {
        "seconds": 1.0,
        "variant": 1,
        "rate_bps": 8_000_000,
        "forward": way,
        "reverse": way,
        "classic": one | {"sojourn_ns": hist},
        "l4s": one | {"sojourn_ns": hist},
        "late_ns": hist,
        "decisions": {"native": 150, "agent": 50, "fallback": 20, "refused": {"expired": 3}, "shield_trips": 1}
        | {"latency_p50_us": 400, "latency_p99_us": 900},
        "device": {"connections": 1, "refused": 0, "rows_sent": 5, "asks_sent": 0, "rows_lost": 7},
    } | changes


def test_figures_have_the_units_that_they_say() -> None:
    figures = read(stats())
    assert figures.classes[0].mean_ms == pytest.approx(2.0) and figures.classes[1].p99_ms == pytest.approx(5.0)
    assert figures.served_bytes == 250_000
    assert figures.decided == {"native": 150, "agent": 50, "fallback": 20}
    assert figures.late_us["max"] == pytest.approx(9000.0)
    assert (figures.lost_outside, figures.rows_lost, figures.trips) == (6, 7, 1)
    with pytest.raises(L4SError, match="make -C kernel"):
        read({name: value for name, value in stats().items() if name != "l4s"})


def test_the_status_line_tells_what_went_on_since_the_last_one() -> None:
    before, now = stats(), stats(seconds=3.0)
    now["classic"] = now["classic"] | {"served_bytes": 1_125_000, "served_packets": 200, "packets": 220, "marks": 33}
    now["classic"]["sojourn_ns"] = now["classic"]["sojourn_ns"] | {"mean": 6_000_000}
    now["decisions"] = now["decisions"] | {"agent": 125, "fallback": 45}
    line = status_line(read(before), read(now), 7.4)
    assert "C   4.00 Mbit/s  10.00 ms  20.0 % marked 0 dropped" in line
    assert "L   0.00 Mbit/s   0.00 ms" in line
    assert "decided by agent 75 %, fallback 25 %" in line and line.endswith("7 s left")
