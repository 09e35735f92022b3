"""Figures 9, 10 and 17 to 20: what is computed is right, what is said follows from the numbers, and all of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError

pytest.importorskip("torch", reason="needs torch: pip install 'l4s-gym[llm]'")
pytest.importorskip("peft", reason="needs peft: pip install 'l4s-gym[llm]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'l4s-gym[report]'")

from matplotlib.figure import Figure as Picture

import captions
import models
import pool
import sizes
import trials
from figure import Place
from l4s_gym.agents.metrics import classification
from l4s_gym.data.minari_io import datasets_in
from trials import ANSWERS, GPT2, SHAPES, TRAINED, Trial


@pytest.fixture
def curves() -> models.Curves:
    """Two looks at one family: it overfits, as logged less than causal."""
    rows = {"as logged": [[[1.1, 0.2, 0.1]] * 2, [[0.1, 0.97, 0.9], [0.6, 0.81, 0.5]]]}
    rows["causal"] = [[[1.1, 0.2, 0.1]] * 2, [[0.2, 0.91, 0.7], [1.3, 0.75, 0.4]]]
    shares = {reading: {"train": [0.8, 0.1, 0.1], "held out": [0.75, 0.05, 0.2]} for reading in pool.READINGS}
    values = {("opt", reading): np.array(each) for reading, each in rows.items()}
    return models.Curves(np.array([0.0, 80.0]), values, shares, {})


def test_the_majority_is_that_of_a_model_of_shares(curves: models.Curves) -> None:
    actions = np.repeat([0, 1, 2], [15, 1, 4])
    judged = classification(np.tile([0.8, 0.1, 0.1], (20, 1)), actions)
    assert curves.majority("causal", "held out") == pytest.approx({name: judged[name] for name in models.MEASURES})


def test_the_numbers_are_those_of_the_curves(curves: models.Curves) -> None:
    rows = [
        {"family": who, "reading": reading, "values": each.tolist()} for (who, reading), each in curves.values.items()
    ]
    (table,) = captions.tables({"curves": rows})
    assert "| as logged | opt | 0.1 | 0.6 | 0.97 | 0.81 | 0.9 | 0.5 | 0.6 |" in table
    assert "| causal | opt | 0.2 | 1.3 | 0.91 | 0.75 | 0.7 | 0.4 | 1.1 |" in table


@pytest.mark.parametrize("measure", models.MEASURES)
def test_curves_are_drawn_for_each_reading(curves: models.Curves, measure: str) -> None:
    picture = Picture()
    models.draw(curves, picture, measure=measure, label="y", reported={"paper": 0.9})
    for axes, reading in zip(picture.axes, pool.READINGS, strict=True):
        drawn = np.array([np.asarray(line.get_ydata()) for line in axes.lines[:2]])
        assert np.array_equal(drawn, curves.values["opt", reading][:, :, models.MEASURES.index(measure)].T)


def test_a_training_is_as_many_passes_as_the_authors() -> None:
    train = models.training_of("llama", 2000, quick=False)["train"]
    assert train["steps"] * train["batch_size"] * train["length"] == pytest.approx(pool.EPOCHS * 2000, rel=0.01)
    assert models.training_of("llama", 2000, quick=True)["train"]["steps"] < 10


def test_parameters_of_the_papers_backbones() -> None:
    """Llama and OPT agree with the paper to the number; the whole of them is trained but the word embeddings."""
    for name, trained in zip(("Llama-2-7B", "OPT-1.3B"), sizes.PAPER["trainable"], strict=False):
        config = sizes.REAL[name]
        whole, total = sizes.parameters(config)
        lora, with_lora = sizes.parameters(config, 128)
        assert lora == trained == with_lora - total
        assert total - whole == config.vocabulary * config.hidden


def test_memory_by_arithmetic() -> None:
    assert sizes.training_bytes(10, 0) == 10 * (4 + 4 + 4 + 4)
    assert sizes.training_bytes(1, 100, 2) == 216
    config = sizes.REAL["GPT-2"]
    assert sizes.answer_bytes(config, 1e6) == 2e6 + 2 * 2 * 12 * 768 * 60
    gb = sizes.computed("GPT-2")
    assert list(gb.values()) == sorted(gb.values(), reverse=True)
    assert gb["answering, bfloat16"] == pytest.approx(0.25, abs=0.01)


def test_bars_leave_out_what_is_not_there() -> None:
    axes = Picture().subplots()
    sizes.bars(axes, ["a", "b"], {"x": [1.0, None], "y": [20.0, 3000.0]})
    assert [bar.get_height() for bars in axes.containers for bar in bars] == [1.0, 20.0, 3000.0]
    assert [text.get_text() for text in axes.texts] == ["1", "20.0", "3,000"]
    low, high = axes.get_ylim()
    assert low < 1.0 and high > 3000.0
    sizes.bars(Picture().subplots(), ["a"], {"x": [None]})


def test_trials_are_told_apart() -> None:
    each = [Trial(shape, way, 3, Path(), ()) for shape in SHAPES for way in (*TRAINED, *ANSWERS)]
    models_of: dict[str, Any] = {trial.key: trial.config()["model"] for trial in each}
    assert len(models_of) == len(each)
    assert Trial("opt, small", "LoRA", 4, Path(), ()).key not in models_of
    assert Trial("opt, small", "LoRA", 3, Path("elsewhere"), ()).key in models_of
    big = Trial(GPT2, "LoRA", 3, Path(), ()).config()["model"]
    assert (big["backbone"]["hidden"], big["lora"]["rank"], big["backbone"]["freeze"]) == (768, trials.RANK, True)
    assert "lora" not in Trial(GPT2, "full", 3, Path(), ()).config()["model"]
    assert trials.model_config(each[len(TRAINED)], toy=True).head == "text"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the memory")
def test_most_memory_from_now_on() -> None:
    """In a process of its own: what the tests before have freed would fall beside what is measured."""
    code = (
        "import numpy as np; import trials\n"
        "first = np.ones(30_000_000); del first; before = trials.held(anew=True)\n"
        "second = np.ones(10_000_000); print(trials.held() - before)"
    )
    here = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True, check=True)
    assert 79_000_000 < int(done.stdout) < 200_000_000


def test_datasets_lie_elsewhere_for_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", "before")
    with datasets_in(tmp_path):
        assert os.environ["MINARI_DATASETS_PATH"] == str(tmp_path)
    assert os.environ["MINARI_DATASETS_PATH"] == "before"
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    with pytest.raises(ZeroDivisionError), datasets_in(tmp_path):
        _ = 1 / 0
    assert "MINARI_DATASETS_PATH" not in os.environ


def test_without_the_pools_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pool, "find_pools", lambda given: None)
    with pytest.raises(L4SError, match="L4S_GYM_POOLS"):
        models.loss(Place(tmp_path, tmp_path))


@pytest.mark.slow
def test_all_of_them_from_end_to_end(pools_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("minari", "h5py", "accelerate"):
        pytest.importorskip(name)
    monkeypatch.setenv("L4S_GYM_POOLS", str(pools_dir))
    place = Place(tmp_path / "work", tmp_path / "out", quick=True)

    def run() -> dict[str, float]:
        for make in models.FIGURES.values():
            make(place).save(place)
        return {str(path): path.stat().st_mtime for path in place.work.rglob("*.npy")}

    first = run()
    assert len(first) == len(pool.READINGS) + len(TRAINED) + len(ANSWERS)
    for name in models.FIGURES:
        assert (place.out / f"figure_{name}.png").stat().st_size > 10_000
    record = json.loads((place.out / "figure_10.json").read_text())
    assert record["quick"] and len(record["data"]["curves"]) == len(pool.READINGS)
    memory = json.loads((place.out / "figure_18.json").read_text())["data"]["measured"]
    assert {row["way"] for row in memory} == {"training, full", "training, LoRA", "answering"}
    assert "**Paper:**" in (place.out / "figures.md").read_text()
    assert run() == first  # nothing is measured again
