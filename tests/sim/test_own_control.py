"""Congestion controls of a user's own, and the form that the ones that ship have too."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from l4s_gym import cli
from l4s_gym.errors import L4SError
from l4s_gym.sim import congestion, layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.control import CongestionControl
from l4s_gym.sim.disciplines import BUILT_IN
from l4s_gym.sim.scenario import KINDS, Scenario, Source, digest, from_dict

Build = Callable[..., Scenario]
EXAMPLE = Path(__file__).parents[2] / "examples" / "scalable_tcp.py"

CLONES = {name: replace(congestion.CONTROLS[name], name="own") for name in ("newreno", "cubic", "dctcp")}
cubic, dctcp, newreno = (CLONES[name] for name in sorted(CLONES))


def misspelt(flow: Any, now_ns: int) -> None:
    flow.cwdn = 1.0


wrong = CongestionControl("wrong", on_loss=misspelt)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example in a folder of its own, from where it is run; its spec."""
    shutil.copy(EXAMPLE, tmp_path / "scalable_of_mine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "scalable_of_mine", raising=False)
    return "scalable_of_mine:CONTROL"


def started(chosen: Scenario, n: int = 1, **options: Any) -> Batch:
    batch = Batch(chosen, n, **options)
    for k in range(n):
        batch.reset(k, np.random.default_rng(k))
    return batch


def end_of(batch: Batch) -> dict[str, Any]:
    """All that the flows have, but by whose functions they have got it."""
    names = set(layout.FLOW.names or ()) - {"cc", "law_at", "padding"}
    return {"events": int(batch.env["events"][0]), **{name: batch.flow[name][0].tolist() for name in names}}


def test_the_example_obeys_its_law(outside: str, scenario: Build) -> None:
    """A mean over packets: p / (1 + p w) of them, one a round trip, take from the window what all add to it."""
    for p in (0.002, 0.005):
        chosen = scenario({"kind": outside, "rtt_ms": 20.0}, link={"rate_mbps": 1000.0}, horizon_s=120.0)
        batch = started(chosen, 2, aqm="fifo", decider=layout.PROBABILITY)
        batch.env["p_l"] = batch.env["p_c"] = p
        for k in range(2):
            batch.stop_at(k, 20_000_000_000)
        batch.advance()
        for k in range(2):
            batch.reset_counters(k)
        batch.advance()
        flow = batch.flow[:, 0]
        assert flow["window_sum"].sum() / flow["window_count"].sum() == pytest.approx(0.08 / (1.0 - 0.08) / p, rel=0.03)
        assert (flow["own"][:, 0] > flow["reductions"]).all()


@pytest.mark.parametrize("name", CLONES)
def test_called_by_address_is_the_same(name: str, scenario: Build) -> None:
    """What ships and the same functions as a user's own make the same packets, with losses, marks and timeouts."""
    ends = []
    for kind in (name, f"{__name__}:{name}"):
        web = {"kind": "web", "cc": kind, "count": 3, "off_s": 0.2}
        chosen = scenario({"kind": kind, "count": 2, "rtt_ms": 30.0}, web, link={"rate_mbps": 4.0, "buffer_ms": 20.0})
        for aqm in ("fifo", "dualpi2_rfc9332"):
            batch = started(chosen, aqm=aqm)
            batch.advance_one()
            ends.append(end_of(batch))
        assert batch.flow["timeouts"].any()
    assert ends[:2] == ends[2:]


def test_a_copy_has_addresses_of_its_own(outside: str, scenario: Build) -> None:
    batch = started(scenario({"kind": outside}, {"kind": "cubic"}, horizon_s=4.0), aqm="pie")
    batch.stop_at(0, 1_000_000_000)
    batch.advance_one()
    assert batch.state()["flow"].view(layout.FLOW)["law_at"].ravel().tolist() == [1, 0]
    kept = congestion._table(congestion.find(outside))
    saved = pickle.dumps(batch)
    congestion._table.cache_clear()  # as in another process
    copy = pickle.loads(saved)
    assert copy.flow["law_at"][0, 0] not in (0, kept.ctypes.data)
    for each in (batch, copy):
        each.advance_one()
    assert end_of(batch) == end_of(copy)


def test_which_flow_has_it_may_be_drawn(outside: str) -> None:
    tree = {"name": "x", "horizon_s": 1.0, "sources": [{"kind": "cubic", "cc": outside}]}
    batch = started(from_dict({**tree, "randomise": {"sources.0.kind": {"choices": ["dctcp", "web"]}}}), 8)
    batch.advance()
    assert set(batch.state()["flow"].view(layout.FLOW)["law_at"].ravel()) == {0, 1}
    assert set(batch.flow["cc"][:, 0]) == {congestion.DCTCP, congestion.OWN}
    assert ((batch.flow["law_at"][:, 0] != 0) == (batch.flow["cc"][:, 0] == congestion.OWN)).all()


def test_a_digest_is_of_the_code_too(outside: str, scenario: Build) -> None:
    chosen = scenario({"kind": outside})
    before, file = digest(chosen), Path("scalable_of_mine.py")
    assert before == digest(chosen) != digest(scenario({"kind": "cubic"}))
    file.write_text(file.read_text().replace("GAIN = 0.01", "GAIN = 0.02"))
    assert digest(chosen) != before


def test_from_the_command_line(outside: str, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (outside, "./scalable_of_mine.py:CONTROL"):
        assert cli.main(["simulate", "--seconds", "6", "--set", f"sources.*.kind={kind}"]) == 0
        assert "own 9 x" in capsys.readouterr().out


def test_in_an_environment_by_a_scenarios_file(outside: str) -> None:
    Path("mine.toml").write_text(f'[[sources]]\nkind = "{outside}"\n')
    for made in (gym.make, gym.make_vec):
        env: Any = made("l4s_gym:L4S-DualPI2-v0", scenario="mine.toml")
        env.reset(seed=0)
        for _ in range(100):
            env.step(env.action_space.sample() * 0)
        env.close()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "no_such_module:X"}, "congestion control 'no_such_module:X': no module 'no_such_module'"),
        ({"kind": "no/such.py:X"}, "there is no file no/such.py"),
        ({"kind": "math:nothing"}, "'math' has no attribute 'nothing': give MODULE:ATTRIBUTE"),
        ({"kind": "math:pi"}, "is float: give a l4s_gym.sim.control.CongestionControl"),
        ({"kind": "web", "cc": "math:pi"}, "is float"),
        ({"kind": f"{__name__}:wrong"}, "misspelt: cannot be compiled as void.flow, int64.*\n.*cwdn"),
        ({"kind": f"{__name__}:cubic", "freebsd": True}, "FreeBSD's stack has no such sender"),
        ({"kind": "newreno:"}, "unknown value 'newreno:': did you mean 'newreno'.*, or MODULE:ATTRIBUTE"),
        ({"kind": "web", "cc": "web"}, "sources.cc: unknown value 'web'"),
    ],
)
def test_errors(source: dict[str, Any], message: str) -> None:
    with pytest.raises(L4SError, match=message):
        started(from_dict({"name": "x", "sources": [source]}))


def test_what_ships_is_told() -> None:
    assert [control.name for control in congestion.CONTROLS.values()] == [*layout.CCS[1:]]
    assert all(f"`{kind}`" in str(Source.__doc__) for kind in KINDS)


@pytest.mark.parametrize(
    "rows", [*layout.ROWS.values(), *((*each.records.env_rows, *each.records.queue_rows) for each in BUILT_IN)]
)
def test_every_field_has_words(rows: tuple[layout.Row, ...]) -> None:
    assert all(unit and words.endswith(".") for *_, unit, words in rows)
    assert len({name for name, *_ in rows}) == len(rows)


def test_the_command_line_tells_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fields", "flow"]) == 0
    assert "Congestion window." in capsys.readouterr().out
