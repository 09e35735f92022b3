"""The benchmark on the authors' pool: its page is that of its results, and it runs from one end to the other."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import L4SError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "studies" / "pool" / "run.py"


@pytest.fixture(scope="module")
def pool() -> Any:
    """The script as a module."""
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("pool_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_the_results_say(pool: Any) -> None:
    results = SCRIPT.parent / "results"
    last = json.loads((results / "pool.json").read_text())[-1]
    assert pool.markdown(last) == (results / "pool.md").read_text()


def test_each_training_has_a_name_of_its_own(pool: Any) -> None:
    cell = pool.Cell("llm-t5", "pool-causal", (0,), 3, 200)
    others = [cell._replace(agent="llm-opt"), cell._replace(seed=4), cell._replace(steps=100), cell._replace(held=(1,))]
    assert len({each.name for each in (cell, *others)}) == 5
    assert cell.config()["train"]["seed"] == 3


@pytest.mark.slow
def test_quick_run_from_end_to_end(pools_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("d3rlpy")
    pytest.importorskip("accelerate")
    command = [sys.executable, str(SCRIPT), "--quick", "--pools", str(pools_dir), "--processes", "1"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]

    def run() -> dict[str, float]:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return {str(path): path.stat().st_mtime for path in (tmp_path / "work").rglob("*.npy")}

    first = run()
    runs = json.loads((tmp_path / "out" / "pool.json").read_text())
    models = {(r["model"], r["reading"]) for r in runs[0]["results"]}
    assert {("majority", "causal"), ("bc", "as logged"), ("llm-llama", "causal")} <= models
    assert all(r["figures"]["accuracy"]["low"] <= r["figures"]["accuracy"]["high"] for r in runs[0]["results"])
    assert (tmp_path / "out" / "pool.png").stat().st_size > 10_000

    assert run() == first  # nothing is trained again
    both = json.loads((tmp_path / "out" / "pool.json").read_text())
    assert both[0] == runs[0] and both[1]["results"] == both[0]["results"]


def test_without_the_pools_it_says_what_to_do(pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(L4SError, match="--pools"):
        pool.main(pools=tmp_path)
    monkeypatch.setattr(pool, "find_pools", lambda given: None)
    with pytest.raises(L4SError, match="L4S_GYM_POOLS"):
        pool.main()


def test_unknown_agents_are_named(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the pools are not at hand: names are looked at first."""
    monkeypatch.setattr(pool, "find_pools", lambda given: None)
    with pytest.raises(L4SError, match="llm-gpt2"):
        pool.main(agents=("llm-gpt3",))
