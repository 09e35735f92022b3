"""The paper's figures 11 to 16, and `generalisation`: the published replay, the page, and all of them end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import captions
import figure
import generalisation
import loops
import panels
import queues
import replayed
from l4s_gym import agents
from l4s_gym.data.pools import make_rows
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import sweep
from l4s_gym.evaluation.entry import Size, read_protocol
from l4s_gym.evaluation.harness import QUANTILES
from l4s_gym.evaluation.ranking import Row
from l4s_gym.evaluation.statistics import Interval
from l4s_gym.schema import RECORD

PAPER = Path(__file__).parents[2] / "benchmarks" / "studies" / "paper"
LOG = [(10_000, 1500), (0, 1500), (40_000, 40), (20_000, 1500)]
"""Delay (us) and packet length (B) of logged rows, all enqueued in C."""


def small_log() -> Any:
    records = np.zeros(len(LOG), RECORD)
    records["current_queue_delay"], records["packet_length"] = np.array(LOG).T
    return make_rows(records)


def test_replay_values() -> None:
    found = replayed.walk(small_log(), replayed.NATIVE, None, 0)
    assert found.visited.tolist() == [0, 1, 2, 3]
    assert found.delay_ms.tolist() == [20.0, 10.0, 50.0, 30.0]
    np.testing.assert_allclose(found.throughput[:2], [12_000 / (1024 * 1034) / 0.02, 12_000 / (1024 * 1034) / 0.01])
    np.testing.assert_allclose(found.reward[1:3], [1.5, 40 / 41_000])
    assert found.about()["median_s"] == pytest.approx(0.025)


def test_replay_jumps() -> None:
    found = replayed.walk(small_log(), replayed.ENQUEUE, agents.make("enqueue"), 2, decisions=4)
    # A queue of 0 bytes and a packet of 1500 make 1500: the first such row; of 40 bytes, the row of 40 bytes.
    assert found.visited.tolist() == [0, 0, 1, 0]
    assert found.about()["rows"] == 2


def test_an_agent_forgets_at_a_jump() -> None:
    class Counting:
        name, rule, resets = "counting", "-", 0

        def reset(self, n: int, seed: int) -> None:
            self.resets += 1

        def act(self, obs: Any, rewards: Any) -> Any:
            return np.zeros(1, np.int64)

        def cost(self) -> dict[str, float]:
            return {}

    agent = Counting()
    replayed.walk(small_log(), "counting", agent, 2, decisions=4)
    assert agent.resets == 3  # the start, and the jumps of decisions 0 and 2


def test_the_published_figures(pools_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the first rows, and of who enqueues everything and jumps at each 100th."""
    monkeypatch.setenv("L4S_GYM_POOLS", str(pools_dir))
    rows = replayed.logged_rows()
    assert replayed.published_as(replayed.walk(rows, "x", None, 0).about()) == replayed.NATIVE
    every100, every10 = (replayed.walk(rows, "x", agents.make("enqueue"), every) for every in (100, 10))
    assert replayed.published_as(every100.about()) == replayed.LLM
    assert replayed.published_as(every10.about()) is None


def test_without_pools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("L4S_GYM_POOLS", raising=False)
    with pytest.raises(L4SError, match="L4S_GYM_POOLS"):
        replayed.logged_rows()


def test_numbers_of_a_replay_and_of_a_loop() -> None:
    replay = {"rows": "log", "who": {"native": {"who": "native", "rows": 3600, "mean": 39.07, "line": [1.0]}}}
    values = {"native": [1.0, 2.0, 3.0], "LLM every 10": [2.0, 3.0, 4.0]}
    who = {name: {"use": each, "delay_ms": {"C": each}, "quantiles": {"C": [1.0]}} for name, each in values.items()}
    loop = {"scenario": "web", "decided": {"native": 0.0, "LLM every 10": 0.1}, "who": who}
    first, second = captions.tables({"replay": replay, "loop": loop})
    assert first.endswith("| name | rows | mean |\n| --- | --- | --- |\n| native | 3,600 | 39.07 |")
    assert "| use | use, less native | delay ms C | delay ms C, less native |" in second
    assert "| native | 0 | 2 (-0.484 to 4.48) | - |" in second
    assert "| LLM every 10 | 10 | 3 (0.516 to 5.48) | 1 (1 to 1) | 3" in second


def test_the_page_is_that_of_the_results(tmp_path: Path) -> None:
    results = PAPER / "results"
    for path in results.glob("*.json"):
        (tmp_path / path.name).symlink_to(path)
    stale = re.compile(r"^\*What is simulated here .*\n\n", re.M)  # as it is here
    page = stale.sub("", captions.write(tmp_path).read_text())
    assert page == stale.sub("", (results / "figures.md").read_text())
    assert page.count("\n## ") == page.count("<details") == len(list(results.glob("*.png")))


def test_goodput_by_flows() -> None:
    result = {"scenario": loops.TESTBED, "goodput_mbps": [1.0] * 8 + [3.0]}
    assert loops.goodput("C")(result) == 8.0
    assert loops.goodput("L")(result) == 3.0


def test_experiments_are_the_benchmark_s_own() -> None:
    normal = loops.experiment(10, False)
    assert normal.training is not None
    assert normal.training.seeds == (0,)
    assert not normal.training.settings  # else the leaderboard's agents would not be found
    assert loops.experiment(0, False).agent == "native:dualpi2_freebsd"


def test_the_backbone_is_chosen_and_others_are_named() -> None:
    chosen = loops.experiment(10, False, "smollm2-6")
    assert chosen.training is not None
    assert chosen.training.settings == ("preset=smollm2", "model.backbone.exit_layer=6")
    assert chosen.id == "llm--smollm2-6-every10"
    on_pool = replayed.experiment("l4s/x-v0", True, "smollm2-6").training
    assert on_pool is not None and on_pool.settings[-2:] == chosen.training.settings
    other = loops.other("still=zero:form=parameters")
    assert (other.name, other.agent, other.form) == ("still", "zero:form=parameters", "parameters")
    for wrong in ("zero", "zero="):
        with pytest.raises(L4SError, match="give NAME=SPEC"):
            loops.other(wrong)


def test_closed_loops_have_the_times_of_their_steps_and_keep_what_was_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = msgspec.structs.replace(read_protocol(), quick=Size(1.0, 1, ("test",), (loops.TESTBED,)))
    wanted = [loops.other("still=zero:form=parameters"), loops.other("open=enqueue")]
    entries = sweep.run(wanted, rules, "quick", tmp_path, jobs=0)
    first, second = (loops.Loop(each.agent, each, loops.TESTBED, each.experiment.agent, 1.0) for each in entries)
    line = queues._lines(first, "delay_ms", 30.0)  # two of its intervals, of 16 ms each, are nearest
    assert line["time_s"] == pytest.approx([0.032 * k for k in range(1, 32)])
    assert len(line["C"]) == 31
    assert (first.form, first.every, second.form, second.every) == ("parameters", 1, "packet", 1)
    found = second.rewards(tmp_path)
    assert len(found) == 1 and found[0] > 0
    monkeypatch.setattr(loops, "simulate", None)
    assert second.rewards(tmp_path).tolist() == found.tolist()


def test_panels_draw_what_is_given() -> None:
    matplotlib = pytest.importorskip("matplotlib.figure")
    axes = matplotlib.Figure().subplots(4)
    quantiles = [float(x) for x in np.linspace(0.0, 1.0, len(QUANTILES))]
    panels.lines(axes[0], {"native": ([0.0, 1.0], [2.0, None])}, ylabel="y")
    panels.boxes(axes[1], {"native": quantiles, "LLM every 10": quantiles}, ylabel="y")
    panels.cdf(axes[2], {"native C": quantiles, "native L": quantiles}, xlabel="x")
    panels.means(axes[3], {"native": [1.0, 2.0], "LLM every 10": [3.0]}, ylabel="y")
    assert len(axes[0].lines[0].get_xdata()) == 2
    assert [t.get_text() for t in axes[3].get_xticklabels()] == ["native", "LLM\nevery 10"]
    assert axes[2].lines[0].get_linestyle() != axes[2].lines[1].get_linestyle()


def test_who_is_compared() -> None:
    def row(agent: str, gap: Interval | None, trainings: int = 0) -> Row:
        scores = {"test": Interval(90.0, 80.0, 100.0), "shift": Interval(70.0)}
        return Row(f"{agent}--x", agent, "x", "t", 1, "-", trainings, scores=scores, gap=gap)

    rows = [row("native", Interval(20.0, 10.0, 30.0)), row("llm", Interval(-1.0, -9.0, 7.0), 1), row("bc", None)]
    kept = generalisation.compared([*rows, row("random", Interval(1.0))])
    assert [each.agent for each in kept] == ["native", "llm"]
    plain = [generalisation._plain(each, ("name",)) for each in kept]
    assert "| native--x | 90 (80 to 100) | 70 | 20 (10 to 30) |" in captions.tables({"rows": plain})[0]


def test_generalisation_needs_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l4s_gym.shipped.folder", lambda name: tmp_path)
    with pytest.raises(L4SError, match=r"leaderboard\.py"):
        generalisation.generalisation(figure.Place(tmp_path, tmp_path))


@pytest.mark.slow
def test_all_of_them(tmp_path: Path, pools_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L4S_GYM_POOLS", str(pools_dir))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    others = ("still=zero:form=parameters",)
    place = figure.Place(tmp_path / "work", tmp_path / "out", quick=True, llm="llama", agents=others)
    for name, make in queues.FIGURES.items():
        made = make(place)
        made.save(place)
        record = json.loads((place.out / f"{made.stem}.json").read_text())
        assert record["quick"]
        assert record["name"] == name
        assert (place.out / f"{made.stem}.png").stat().st_size > 10_000
        if "loop" in record["data"]:
            assert record["data"]["loop"]["decided"]["still"] == 1.0
            weights = record["data"]["loop"]["weights"]
            assert set(weights.values()) == {record["data"]["replay"]["agent"]["weights"]} == {"random"}
            assert "still" not in weights
            assert record["data"]["replay"]["agent"]["config"]["model"]["backbone"]["family"] == "llama"
            assert record["data"]["loop"]["experiments"]["still"]["agent"] == "zero:form=parameters"
    trained = len(list((place.work / "agents").glob("*/trained-*.json")))
    assert trained == 2  # one on the pool, one on the simulated testbed, for all figures together
    assert (place.out / "figures.md").read_text().count("## ") == len(queues.FIGURES)
