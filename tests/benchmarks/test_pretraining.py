"""The study of pretraining: what it has done it does not do again, and what its tables say."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _name in ("torch", "transformers", "peft", "d3rlpy", "minari", "scipy", "matplotlib"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'l4s-gym[all]'")

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks" / "studies" / "pretraining" / "run.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(FILE), run_name="script")


def test_it_goes_on_where_it_was_stopped(script: dict[str, Any], tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def trained(options: Any, model: str, size: int, seed: int) -> dict[str, Any] | None:
        asked.append((model, size, seed))
        if size == 10:
            return None
        return {"value": 0.25 * (model == "pretrained") + 0.1 * seed, "score": 100.0 + seed, "trained": 7}

    script["TRAIN"]["parameters"] = trained  # the table that its functions look into
    options = script["Options"](
        models=("pretrained", "random"),
        forms=("parameters",),
        sizes=(10, 1000),
        seeds=2,
        work=tmp_path / "work",
        out=tmp_path / "out",
    )
    script["main"](replace(options, seeds=1))
    assert len(asked) == 4
    script["main"](options)
    assert len(asked) == len(set(asked)) == 8
    script["main"](replace(options, steps=9))  # another training
    assert len(asked) == 16
    page = (tmp_path / "out" / "pretraining.md").read_text()
    assert "| SmolLM2, pretrained, frozen + LoRA | 0.300 ± 0.635 |" in page
    assert "| pretrained - random | 0.250 ± 0.000 |" in page  # seed by seed
    assert "100.5 ± 6.4" in page and "10 steps" not in page.replace("1,000 steps", "")
    first, second, _ = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert len(first["rows"]) == 2 and len(second["rows"]) == 4
    assert second["command"] and second["versions"]["torch"] and second["options"]["seeds"] == 2
    assert (tmp_path / "out" / "pretraining.png").stat().st_size > 1000


def test_configurations_are_those_of_their_names(script: dict[str, Any]) -> None:
    from l4s_gym.agents.llm.settings import settings

    options = script["Options"](layers=3)
    made = {model: settings(script["configuration"](options, model, 4)) for model in script["SETTINGS"]}
    assert {model: (m.backbone.frozen, m.lora.rank) for model, (m, _) in made.items()} == {
        "pretrained": (True, 16),
        "random": (True, 16),
        "whole": (False, 0),
        "small": (False, 0),
    }
    assert made["pretrained"][0].backbone.exit_layer == made["random"][0].backbone.layers == 3
    assert made["whole"][0].backbone.layers == 3 and made["small"][0].backbone.hidden == 64
    for model, train in made.values():
        assert (model.intervals.steps, train.steps, train.seed) == (300, 150, 4)
        assert model.backbone.seed == model.intervals.onestep.seed == 4


def test_intervals_are_students(script: dict[str, Any]) -> None:
    assert script["interval"]([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 1.9632), abs=1e-4)
    assert np.isnan(script["interval"]([1.0])[1])


@pytest.mark.slow
def test_the_study_in_little(tmp_path: Path) -> None:
    from l4s_gym.data import build, recipes

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MINARI_DATASETS_PATH": str(tmp_path / "datasets")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
        for name in ("held", "testbed"):
            build.build(recipes.load(name), "small", workers=1)
    command = [sys.executable, str(FILE), "--quick", "--models", "random", "small", "mlp", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads((tmp_path / "quick" / "pretraining.json").read_text())
    assert len(run["rows"]) == 6 and all(np.isfinite(row["value"]) for row in run["rows"])
