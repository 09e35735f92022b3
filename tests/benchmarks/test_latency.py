"""The scripts that measure what decisions and training of the LLM agent cost, on tiny models."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

for _name in ("torch", "transformers", "peft", "accelerate", "h5py", "minari"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'l4s-gym[llm,data]'")

import torch  # noqa: E402

from l4s_gym import L4SError  # noqa: E402
from l4s_gym.agents.llm.settings import from_dict, settings  # noqa: E402
from tests.agents.llm.toys import MODEL, dataset, seldom  # noqa: E402

ROOT = Path(__file__).parents[2]


def _script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "studies" / name / "run.py"), run_name="script")


def test_decisions_are_measured(tmp_path: Path) -> None:
    script = _script("decision_latency")
    script["SHAPES"]["small"] = from_dict(MODEL)
    options = script["Options"](shapes=("small",), batches=(1, 3), threads=(1,), steps=5, out=tmp_path / "out.json")
    for runs in (1, 2):
        script["main"](options)
        found = json.loads(options.out.read_text())
        assert len(found) == runs
    rows = found[-1]["results"]
    assert [(row["batch"], row["way"]) for row in rows] == [(n, way) for n in (1, 3) for way in script["WAYS"]]
    for row in rows:
        assert ("act_p50_ms" in row) == (row["way"] != "full")
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p99_ms"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said(tmp_path: Path) -> None:
    script = _script("decision_latency")
    with pytest.raises(SystemExit, match="no GPU here"):
        script["main"](script["Options"](shapes=("llama-2-7b",), device="cuda", out=tmp_path / "out.json"))
    script = _script("training_cost")
    with pytest.raises(L4SError, match="no GPU here"):
        script["main"](script["Options"]("l4s/none-v0", out=tmp_path / "out.json"))
    script = _script("gpu")
    with pytest.raises(L4SError, match="no GPU here"):
        script["main"](script["Options"](out=tmp_path))
    assert not list(tmp_path.iterdir())


def test_training_is_measured(tmp_path: Path) -> None:
    script = _script("training_cost")
    settings = ("model.backbone.hidden=16", "model.lora.rank=2", "model.backbone.freeze=true", "train.length=20")
    options = script["Options"]("toy", True, (*settings, "train.batch_size=4"), 3, 2.0, tmp_path / "out.json")
    run = script["main"](options, dataset(tmp_path / "data", [60, 50, 70, 40], seldom))
    (written,) = json.loads(options.out.read_text())
    assert written["tokens_per_s"] == run["tokens_per_s"] > 0
    assert 0 < run["trainable_parameters"] < run["parameters"]
    assert run["config"]["model"]["lora"]["rank"] == 2 and run["peak_memory_gb"] is None
    assert run["hours"] == pytest.approx(2 * run["steps_of_a_pass"] * run["step_s"] / 3600)
    assert run["steps_of_a_pass"] == pytest.approx(170 / 80, rel=0.3)  # without a held-out episode


def test_both_shapes_are_measured_as_toys(tmp_path: Path) -> None:
    script = _script("gpu")
    rows = dataset(tmp_path / "data", [60, 50], seldom)
    run = script["main"](script["Options"](toy=True, out=tmp_path / "out"), rows)
    assert list(run["shapes"]) == ["SmolLM2-135M", "Llama-2-7B"]
    for row in run["shapes"].values():
        assert 0 < row["trainable"] < row["parameters"] < 100_000
        assert row["tokens_per_s"] > 0 and row["peak_gb"] is None
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p99_ms"]
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "say nothing" in page and "| the paper's Llama-2-7B" in page and "Target" not in page


@pytest.mark.parametrize(("shape", "layers", "rank"), [("SmolLM2-135M", 30, 16), ("Llama-2-7B", 32, 128)])
def test_the_shapes_are_whole(shape: str, layers: int, rank: int) -> None:
    llm, train = settings(_script("gpu")["config_of"](shape, toy=False))
    assert (llm.backbone.layers, llm.lora.rank, llm.backbone.dtype) == (layers, rank, "bfloat16")
    assert llm.backbone.frozen and train.precision == "bf16"
