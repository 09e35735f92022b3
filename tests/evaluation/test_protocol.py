"""The protocol: what its episodes and suites hold, what is drawn from its ranges; entries of two protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import msgspec
import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.evaluation import board, entry, harness, leaderboard, sweep
from l4s_gym.evaluation.entry import Entry, Experiment, Protocol, Training
from l4s_gym.evaluation.results import read_all
from l4s_gym.sim import scenario, traces
from l4s_gym.sim.ranges import Ranges, link_kind, rates_mbps
from l4s_gym.sim.scenario import load

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT / "benchmarks" / "archive" / "protocol-1"
RULES = entry.read_protocol()
assert RULES.ranges is not None
RANGES: Ranges = RULES.ranges
DYN = RULES.members("dyn")
OUTAGE_MS = 50


def outages_s(trace: str, until_s: float) -> list[float]:
    """When a trace carries nothing for `OUTAGE_MS`."""
    ms = np.arange(round(until_s * 1e3) + 1)
    still = np.diff(traces.load(trace).carried_bytes(ms * 1_000_000)) == 0.0
    runs = np.convolve(still, np.ones(OUTAGE_MS), "valid") == OUTAGE_MS
    return [float(at) for at in np.flatnonzero(np.diff(runs, prepend=False) & runs) * 1e-3]


def events_s(name: str) -> list[float]:
    """When something changes in a scenario: a flow starts, the rate steps, a trace has its first outage after 1 s."""
    chosen = load(name)
    found = [source.start_s for source in chosen.sources] + [time for time, _ in chosen.link.steps]
    if chosen.link.kind == "trace":
        found += [time for time in outages_s(chosen.link.trace, 60.0) if time > 1.0][:1]
    return [time for time in found if time > 0.0]


@pytest.mark.parametrize("size", entry.SIZES)
def test_whatever_happens_in_a_scenario_happens_in_its_episode(size: str) -> None:
    seconds = RULES.size(size).seconds
    for _, name in RULES.cells(size):
        assert all(time < 0.8 * seconds for time in events_s(name)), name
    measured = [
        time for _, name in RULES.cells("standard") for time in events_s(name) if load(name).link.kind != "trace"
    ]
    assert len(measured) >= 4 and min(measured) > load("steps-early").warmup_s  # the statistics see them


def test_events_are_found() -> None:
    assert events_s("steps") == [20.0, 40.0] and events_s("overload") == [10.0, 20.0]
    assert events_s("leo") == [15.0] and len(events_s("lte")) == 1 and events_s("wifi") == []


def test_suites_lie_inside_and_outside_of_the_ranges() -> None:
    ways = {suite: {name: RANGES.outside(load(name)) for name in RULES.members(suite)} for suite in scenario.SUITES}
    assert RULES.members("train") == RULES.members("test")
    assert not any(ways["test"].values())
    assert all(ways["shift"].values())
    assert {way for found in ways["shift"].values() for way in found} > {
        *("rate_mbps", "rtt_ms", "classic_flows", "l4s_flows", "unresponsive", "sources", "links"),
    }
    assert {bool(found) for found in ways["dyn"].values()} == {True, False}
    assert all(name in (*RULES.members("test"), *RULES.members("shift")) for name in DYN)
    assert all(set(RULES.members(suite)) & {name for _, name in RULES.cells("standard")} for suite in scenario.SUITES)


@pytest.mark.parametrize(
    ("changes", "way"),
    [
        ({"link.rate_mbps": 7.0}, "rate_mbps"),
        ({"link.steps": ((3.0, 0.1),)}, "rate_mbps"),
        ({"sources.0.rtt_ms": 51.0}, "rtt_ms"),
        ({"sources.0.count": 9}, "classic_flows"),
        ({"sources.1.count": 5}, "l4s_flows"),
        ({"sources.1.count": 0}, "l4s_flows"),
        ({"sources.1.start_s": 11.0}, "start_s"),
        ({"link.kind": "tick"}, "links"),
        ({"sources.0.ecn": "ect1"}, ""),
        ({"randomise": {"sources.0.rtt_ms": {"low": 9.0, "high": 20.0}}}, "rtt_ms"),
        ({"randomise": {"link.rate_mbps": {"low": 9.0, "high": 200.0}}}, "rate_mbps"),
        ({"randomise": {"sources.0.kind": {"choices": ["cubic", "cbr"]}}}, "sources"),
    ],
)
def test_ways_to_be_outside(changes: dict[str, object], way: str) -> None:
    assert RANGES.outside(load("grid-12m-20ms").replace(**changes)) == ((way,) if way else ())


def test_drawn_scenarios_lie_inside_and_are_the_same_again() -> None:
    drawn = [RANGES.draw(seed) for seed in range(400)]
    assert [load(f"random-{seed}") for seed in range(5)] == drawn[:5]  # the ranges of the current protocol
    assert len({scenario.digest(each.replace(name="x", horizon_s=1.0)) for each in drawn}) == len(drawn)
    assert not [each for each in drawn if RANGES.outside(each)]
    shares = {kind: sum(link_kind(each) == kind for each in drawn) / len(drawn) for kind in RANGES.links}
    assert all(abs(share - RANGES.links[kind]) < 0.1 for kind, share in shares.items())
    # The whole of each range is drawn.
    rates = np.log([rate for each in drawn for rate in rates_mbps(each)])
    assert rates.min() < np.log(8.5) and rates.max() > np.log(110.0)
    assert {source.kind for each in drawn for source in each.sources} == set(RANGES.sources)
    counts = [sum(s.count for s in each.sources if s.kind in ("cubic", "newreno")) for each in drawn]
    assert set(counts) == set(range(9))


def test_an_environment_of_drawn_scenarios() -> None:
    drawn = [RANGES.draw(seed) for seed in range(4)]
    with gym.make("L4S-DualPI2-v0", scenario=drawn, horizon_s=1.0) as env:
        names = {env.reset(seed=seed)[1]["scenario"] for seed in range(12)}
        assert names <= {each.name for each in drawn} and len(names) > 1
        for _ in range(100):
            env.step(0)
    stepped = next(each for each in (RANGES.draw(seed) for seed in range(100)) if each.link.steps)
    (result,) = harness.evaluate("native:dualpi2_rfc9332", stepped.replace(horizon_s=2.0), seeds=[0])
    assert 0.1 < result.utilisation <= 1.0


def test_bad_ranges() -> None:
    with pytest.raises(L4SError, match=r"ranges\.rtt_ms: give the lowest and the highest"):
        msgspec.structs.replace(RANGES, rtt_ms=(50.0, 10.0))


def test_datasets_of_the_ranges_may_be_trained_on() -> None:
    for dataset, good in (("testbed", True), ("mixed", True), ("tuned", True), ("grid", False), ("overload", False)):
        how: dict[str, Any] = {"mixed": {"aqm": "dualpi2_rfc9332"}, "tuned": {"form": "parameters"}}.get(dataset, {})
        trained = Training("bc", f"l4s/dualpi2/{dataset}-small-v0")
        experiment = Experiment("BC", "", training=trained, name="bc", **how)
        if good:
            leaderboard.check_training(experiment, RULES)
        else:
            with pytest.raises(L4SError, match="to be unseen"):
                leaderboard.check_training(experiment, RULES)
    for where, good in (("random:train", True), ("suite:train", True), ("suite:shift", False), ("wifi", False)):
        experiment = Experiment("PPO", "", training=Training("ppo", scenarios=where), name="ppo")
        if good:
            leaderboard.check_training(experiment, RULES)
        else:
            with pytest.raises(L4SError, match=f"scenarios '{where}' has .*, which is to be unseen"):
                leaderboard.check_training(experiment, RULES)


def test_a_teacher_is_named_by_its_experiment(tmp_path: Path) -> None:
    """Its training is read with the student's, and held to the same ranges."""
    student = 'title = "S"\nagent = ""\n[training]\nlearner = "student"\nscenarios = "suite:train"\nteacher = "{}"\n'
    files = {
        "bc/grid": 'title = "T"\nagent = ""\n[training]\nlearner = "bc"\ndataset = "l4s/dualpi2/grid-small-v0"\n',
        "bc/argmax": 'title = "T"\nagent = "rule=argmax"\n[training]\nlearner = "bc"\ndataset = "l4s/x-v0"\n',
        "random/plain": 'title = "R"\nagent = "random"\n',
        **{f"student/{name}": student.format(f"bc/{name}") for name in ("grid", "argmax", "nobody")},
        "student/plain": student.format("random/plain"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.toml").write_text(text)
    taught = entry.read_experiment(tmp_path / "student" / "grid.toml")
    assert taught.training is not None and isinstance(taught.training.teacher, Training)
    assert [each.learner for each in taught.training.every] == ["student", "bc"]
    with pytest.raises(L4SError, match=r"dataset 'l4s/dualpi2/grid-small-v0' has .*, which is to be unseen"):
        leaderboard.check_training(taught, RULES)
    for name, message in (
        ("plain", "teacher 'random/plain': name an experiment that trains"),
        ("argmax", "without options"),
        ("nobody", "cannot be read"),
    ):
        with pytest.raises(L4SError, match=message):
            entry.read_experiment(tmp_path / "student" / f"{name}.toml")


# -- versions


def test_digests_of_versions_differ() -> None:
    old = entry.read_protocol(ARCHIVE / "protocol.toml")
    assert (old.version, RULES.version) == (1, 2)
    same = msgspec.structs.replace(old, version=2)
    wider = msgspec.structs.replace(RULES, ranges=msgspec.structs.replace(RANGES, rtt_ms=(5.0, 50.0)))
    assert len({each.digest("full") for each in (old, same, RULES, wider)}) == 4


def test_the_archive_is_whole() -> None:
    """Its entries are read, are of its protocol, and are refused only for the simulator that they are of."""
    rules = entry.read_protocol(ARCHIVE / "protocol.toml")
    found = read_all(ARCHIVE / "results")
    assert {each.protocol_digest for each in found} == {rules.digest("standard")} and len(found) == 10
    with pytest.raises(L4SError, match="simulator"):
        entry.validate(found[0], rules)


def test_a_suite_that_is_run_is_stated(tmp_path: Path) -> None:
    text = (ROOT / "benchmarks" / "protocol.toml").read_text()
    path = tmp_path / "protocol.toml"
    path.write_text(text.replace('dyn = ["steps', 'train = ["steps', 1).replace("train = [\n", "test = [\n", 1))
    with pytest.raises(L4SError, match="suites: lacks dyn"):
        entry.read_protocol(path)


def test_entries_of_another_protocol_are_no_part_of_the_table(board_entries: list[Entry]) -> None:
    old = [msgspec.structs.replace(each, protocol=2) if each.agent == "bc" else each for each in board_entries]
    kept, refused = board.check(old)
    reason = "is of protocol 2, this board is of protocol 1: each has a board of its own (--protocol FILE)"
    assert {(each.name, each.reason) for each in refused} == {("bc--diffuse", reason), ("bc--argmax", reason)}
    text = board.markdown(board.rows(kept, resamples=50), kept, refused)
    assert f"- bc--argmax, bc--diffuse: not on the board: {reason}." in text and "| bc--" not in text
    with pytest.raises(L4SError, match="is of protocol 1, this board is of protocol 2"):
        entry.validate(board_entries[0], RULES)


# -- options of a native discipline

TUNED = {"dualpi2_rfc9332": {"target_ms": 2.0, "coupling": 1.6}}


def test_options_of_a_discipline_change_the_cells(tmp_path: Path) -> None:
    size = entry.Size(0.5, 2, ("test",), ("l4s-llm-testbed",))
    rules = Protocol("fair", {"test": 100}, size, size, size)
    plain = Experiment("As it is", "native:dualpi2_rfc9332", name="native", variant="plain")
    tuned = Experiment("Tuned", "native:dualpi2_rfc9332", name="native", variant="tuned", options=TUNED)
    entries = sweep.run([plain, tuned], rules, "quick", tmp_path, jobs=0)
    assert len(list((tmp_path / "cells").iterdir())) == 2
    alone = load("l4s-llm-testbed").replace(
        horizon_s=0.5, **{"options.dualpi2_rfc9332.target_ms": 2.0, "options.dualpi2_rfc9332.coupling": 1.6}
    )
    wanted = harness.evaluate("native:dualpi2_rfc9332", alone, seeds=(100, 101))
    found = [[row["episode_return"] for row in each.results] for each in entries]
    assert found[1] == [each.episode_return for each in wanted] != found[0]


@pytest.mark.parametrize(
    ("agent", "options", "text"),
    [
        ("random", "[options.dualpi2_rfc9332]\ntarget_ms = 2.0", "are for an agent `native:dualpi2_rfc9332` alone"),
        ("native:pie", "[options.dualpi2_rfc9332]\ntarget_ms = 2.0", "are for an agent `native:dualpi2_rfc9332` alone"),
        ("native:pie", "[options.dualpi2_rfc9332]\ntarget = 2.0", "did you mean 'target_ms'"),
        ("native:pie", "[options.pi]\ntarget_ms = 2.0", "did you mean 'pie'"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, agent: str, options: str, text: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f'title = "X"\nagent = "{agent}"\n{options}\n')
    with pytest.raises(L4SError, match=text):
        entry.read_experiment(path)


# -- how an agent learned


@pytest.mark.parametrize(
    ("fields", "learned"),
    [
        ({"agent": "native:pie"}, "none"),
        ({"agent": "threshold"}, "none"),
        ({"agent": "rule=argmax", "training": Training("bc", "l4s/dualpi2/testbed-small-v0")}, "offline"),
        ({"agent": "bc:runs/x"}, "offline"),
        ({"agent": "mine.py:Mine", "trained": "online"}, "online"),
    ],
)
def test_how_an_agent_learned(fields: dict[str, object], learned: str) -> None:
    assert Experiment("X", **fields).learned == learned  # type: ignore[arg-type]
