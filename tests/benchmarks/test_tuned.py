"""The search for the tuned DualPI2: it goes on where it was stopped, and writes what the board can run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import oracle
import search
from l4s_gym import shipped
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import leaderboard, sweep
from l4s_gym.evaluation.entry import read_experiment, read_protocol
from l4s_gym.tables import timeless

FILE = Path(__file__).parents[2] / "benchmarks" / "studies" / "tuned" / "run.py"
HEADROOM = {"target_ms": 2.0, "tupdate_ms": 3.9, "alpha": 0.04, "beta": 16.7, "coupling": 1.6, "classic_weight": 0.05}


ORACLE = """
version = 2
reward = "fair"
[first_seed]
train = 0
test = 100
shift = 200
[suites]
train = ["l4s-llm-testbed", "lte"]
shift = ["grid-4m-20ms"]
[quick]
seconds = 4.0
seeds = 2
suites = ["test", "shift"]
[standard]
seconds = 4.0
seeds = 2
suites = ["test"]
[full]
seconds = 4.0
seeds = 2
suites = ["test"]
"""


class Strategy:
    """Stands for CMA-ES: draws around the best point so far."""

    def __init__(self, start: list[float], sigma: float, how: dict[str, Any]) -> None:
        self.rng, self.best, self.sigma, self.how = np.random.default_rng(how["seed"]), (np.inf, start), sigma, how

    def ask(self) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
        low, high = self.how["bounds"]
        points = self.rng.normal(self.best[1], self.sigma, (self.how["popsize"], len(low)))
        return list(np.clip(points, low, high))

    def tell(self, points: list[Any], values: list[float]) -> None:
        self.best = min([self.best, *zip(values, map(list, points), strict=True)])

    @property
    def result(self) -> Any:
        return SimpleNamespace(xfavorite=self.best[1])


@pytest.fixture(scope="module")
def tuned() -> Any:
    """The study as a module."""
    spec = importlib.util.spec_from_file_location("tuned", FILE)
    assert spec is not None and spec.loader is not None
    sys.modules["tuned"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options(tuned: Any, tmp_path: Path) -> Any:
    rules = tmp_path / "protocol.toml"
    size = "seconds = 1.0\nseeds = 1\nsuites = ['train']\n"
    sizes = "".join(f"[{name}]\n{size}" for name in ("quick", "standard", "full"))
    members = '[suites]\ntrain = ["l4s-llm-testbed", "lte", "grid-120m-20ms"]\n'
    rules.write_text(f'version = 2\nreward = "balance"\n[first_seed]\ntrain = 0\n{members}{sizes}')
    small = {"seconds": 1.0, "seeds": 1, "budget": 6, "population": 2}
    places = {"work": tmp_path / "work.json", "out": tmp_path / "out.json", "experiment": tmp_path / "tuned.toml"}
    return tuned.Options(protocol=rules, **small, **places)


def test_a_search_that_was_stopped_comes_to_the_same(
    tuned: Any, options: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cma", SimpleNamespace(CMAEvolutionStrategy=Strategy))
    tuned.main(options)
    whole = json.loads(options.work.read_text())
    assert len(whole["generations"]) == 3 and set(whole["about"]["scenarios"]) == {"l4s-llm-testbed", "lte"}
    found = read_experiment(options.experiment)
    assert set(found.options["dualpi2_rfc9332"]) == set(search.PARAMETERS) and found.native
    (run,) = json.loads(options.out.read_text())
    assert run["setting"] == found.options["dualpi2_rfc9332"]
    # Stopped after the first generation.
    options.work.write_text(json.dumps(whole | {"generations": whole["generations"][:1]}))
    capsys.readouterr()
    tuned.main(options)
    assert json.loads(options.work.read_text()) == whole
    assert json.loads(options.out.read_text())[1]["setting"] == run["setting"]
    assert capsys.readouterr().out.count("settings: best of these") == 2
    options.work.write_text(json.dumps(whole | {"about": whole["about"] | {"reward": "power"}}))
    with pytest.raises(L4SError, match="is of another search: give another --work"):
        tuned.main(options)


def test_scores_are_100_for_the_defaults() -> None:
    task = search.Task(["l4s-llm-testbed", "lte"], search.Search(seconds=1.0, seeds=2), 0)
    assert task.scores({}) == pytest.approx([100.0, 100.0])
    assert task.scores(search.DEFAULTS) == pytest.approx([100.0, 100.0])
    other = task.scores(HEADROOM)
    assert np.all(np.isfinite(other)) and np.all(np.abs(other - 100.0) > 0.1)
    start = list(search.DEFAULTS.values())
    assert list(search.setting_of(np.log(start)).values()) == pytest.approx(start, rel=1e-3)
    for name, (low, high) in search.PARAMETERS.items():
        assert low < search.DEFAULTS[name] < high and low <= HEADROOM.get(name, low) <= high


def test_without_cma_it_says_what_to_install(tuned: Any, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(L4SError, match=r"cma: is not installed: pip install -r .*tuned/requirements\.txt"):
        tuned.main(options)


def test_the_oracle_is_a_board_entry_with_a_setting_for_each_scenario(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="needs PyArrow: pip install 'l4s-gym[data]'")
    monkeypatch.setitem(sys.modules, "cma", SimpleNamespace(CMAEvolutionStrategy=Strategy))
    rules, start = tmp_path / "protocol.toml", tmp_path / "native" / "dualpi2_tuned.toml"
    rules.write_text(ORACLE)
    start.parent.mkdir()
    table = "".join(f"{name} = {value}\n" for name, value in (search.DEFAULTS | HEADROOM).items())
    start.write_text(f'title = "Tuned"\nagent = "native:{search.AQM}"\n[options.{search.AQM}]\n{table}')
    options = oracle.Options(rules, "quick", seeds=2, budget=4, population=2, tuned=start)
    out, file = tmp_path / "out", tmp_path / "oracle.json"
    oracle.main(dataclasses.replace(options, work=tmp_path / "work", out=out, shipped=file))
    (run,) = json.loads((out / "oracle.json").read_text())
    assert list(run["settings"]) == ["l4s-llm-testbed", "lte", "grid-4m-20ms"]
    assert list(run["scores"]) == ["fair", oracle.LIGHTER] and "native--dualpi2_oracle" in run["scores"]["fair"]
    assert f"By the reward `{oracle.LIGHTER}`" in (out / "oracle.md").read_text()

    # With the tuned setting everywhere, it is the tuned entry: the board's seeds, and nothing else.
    protocol = read_protocol(rules)
    wanted = [*leaderboard.experiments(["native/dualpi2_rfc9332"]), read_experiment(start)]
    native, tuned = sweep.run(wanted, protocol, "quick", tmp_path / "work", jobs=0)
    same = oracle.entry_of(dict.fromkeys(run["settings"], tuned.experiment.options[search.AQM]), protocol, native)
    assert [timeless(row) for row in same.results] == [timeless(row) for row in tuned.results]

    # The report takes it, unless it is of something else.
    monkeypatch.setattr(shipped, "folder", lambda name: tmp_path)
    said: list[str] = []
    found = leaderboard.oracle(protocol, "quick", said.append)
    assert {suite: score.value for suite, score in found.items()} == {
        suite: score for suite, (score, _, _) in run["scores"]["fair"]["native--dualpi2_oracle"].items()
    }
    assert leaderboard.oracle(protocol, "full", said.append) == {} and said == []
    assert leaderboard.oracle(msgspec.structs.replace(protocol, reward="power"), "quick", said.append) == {}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"simulator": "0" * 12}))
    assert leaderboard.oracle(protocol, "quick", said.append) == {}
    assert "is of another protocol" in said[0] and "simulator" in said[1]
    assert all(line.endswith("run benchmarks/studies/tuned/oracle.py") for line in said)
