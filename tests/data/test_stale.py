"""Datasets and records say which simulator made them, and those of another one are not used unseen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError, cli, shipped
from l4s_gym.agents import training
from l4s_gym.cli.common import console
from l4s_gym.data import arrays, build, card, minari_io, recipes
from l4s_gym.data.convert import convert
from l4s_gym.data.d3rlpy_io import replay_buffer
from l4s_gym.data.logs import write_log
from l4s_gym.data.pools import make_rows
from l4s_gym.data.records import save_records
from l4s_gym.data.simulated import simulate_log
from l4s_gym.data.steps import episodes_from_rows
from l4s_gym.data.stream import open_stream
from l4s_gym.data.windows import Windows
from l4s_gym.evaluation.origin import origin
from l4s_gym.sim import fingerprint
from l4s_gym.sim.fingerprint import KERNEL_LOG, NONE, StaleError

pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'l4s-gym[report]'")

Capture = pytest.CaptureFixture[str]
ID = "l4s/dualpi2/tiny-small-v0"
LATER = "0123456789ab"
AGAIN = "l4s-gym datasets build tiny --size small --overwrite"
RECIPE = """
title = "Tiny"
description = "For tests."
scenarios = ["web"]
behaviours = [{}]
small = { episodes = 2, seconds = 1.0 }
full = { episodes = 2, seconds = 1.0 }
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> recipes.Recipe:
    """The recipe `tiny`, in a folder `datasets` of its own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(console, "width", 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "folder", Path)
    (tmp_path / "datasets" / "tiny").mkdir(parents=True)
    (tmp_path / "datasets" / "tiny" / recipes.FILE).write_text(RECIPE)
    return recipes.load("tiny")


@pytest.fixture
def built(recipe: recipes.Recipe) -> Any:
    """Its dataset."""
    return build.build(recipe, "small", workers=1, record=Path("datasets/tiny"))


@pytest.fixture
def later(built: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its dataset, and another simulator that is installed by now."""
    monkeypatch.setattr(fingerprint, "FINGERPRINT", LATER)
    return built


def run(capsys: Capture, *args: object) -> tuple[int, str]:
    """Exit status and output of a command."""
    code = cli.main([*map(str, args)])
    out, err = capsys.readouterr()
    return code, out + err


def test_a_dataset_bears_the_fingerprint_everywhere(built: Any) -> None:
    assert built.storage.metadata["simulator"] == fingerprint.FINGERPRINT == origin()["simulator"]
    facts = json.loads(Path("datasets/tiny/facts.json").read_text())
    assert facts["small"]["simulator"] == fingerprint.FINGERPRINT
    assert f"| fingerprint of the simulator | {fingerprint.FINGERPRINT} |" in Path("datasets/tiny/card.md").read_text()
    assert build.recorded_checksum(ID) == build.ensure(ID)


def test_what_says_nothing_is_old_if_it_is_simulated(built: Any) -> None:
    stored = {name: value for name, value in built.storage.metadata.items() if name != "simulator"}
    assert minari_io.simulator_in(stored) == NONE
    assert minari_io.simulator_in({name: stored[name] for name in stored if name != "recipe"}) == NONE
    assert minari_io.simulator_in({"env_spec": json.dumps({"kwargs": {"reward": "balance"}})}) == KERNEL_LOG
    assert card.simulator_in({}) == NONE


USES: dict[str, Callable[[Any], Any]] = {
    "training": lambda _: training.read_dataset(ID),
    "arrays": lambda _: arrays.episodes(ID),
    "windows": Windows,
    "d3rlpy": replay_buffer,
    "a sweep": lambda _: build.ensure(ID),
}


@pytest.mark.parametrize("use", USES)
def test_a_stale_dataset_is_not_used(later: Any, use: str) -> None:
    if use == "d3rlpy":
        pytest.importorskip("d3rlpy")
    with pytest.raises(StaleError, match=f"dataset '{ID}': is stale: .*{LATER}: build it again: {AGAIN}$"):
        USES[use](later)
    with fingerprint.allow_stale() as passed:
        assert USES[use](later)
    assert len(passed) == 1


def test_commands_refuse_what_is_stale_and_lists_show_it(later: Any, capsys: Capture, recipe: recipes.Recipe) -> None:
    for refused in (
        ("log", "audit", ID),
        ("datasets", "upload", ID, "--remote", "hf://lab"),
        ("datasets", "build", "tiny"),
        ("datasets", "build", "all"),
    ):
        code, text = run(capsys, *refused)
        assert code == 2 and "is stale" in text and text.count("\n") == 1 and text.endswith(f"{AGAIN}\n")
    shown = run(capsys, "datasets", "list")[1]
    assert [line.split("│")[-2].strip() for line in shown.splitlines() if "tiny" in line] == ["stale", "-"]
    assert AGAIN in run(capsys, "datasets", "show", ID)[1]
    assert build.recorded_checksum(ID) is None  # those of another simulator are not asked for
    build.build(recipe, "small", workers=1, overwrite=True)
    shown = run(capsys, "datasets", "list")[1]
    assert [line.split("│")[-2].strip() for line in shown.splitlines() if "tiny" in line] == ["here", "-"]
    assert minari_io.load(ID).storage.metadata["simulator"] == LATER


def test_logs_of_a_kernel_are_never_stale(recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "l4s/dualpi2/log-v0"
    write_log("kernel.log", simulate_log("web", seconds=1.0))
    made = minari_io.create_from_stream(name, open_stream("kernel.log"), algorithm_name="kernel", description="A log.")
    monkeypatch.setattr(fingerprint, "FINGERPRINT", LATER)
    assert minari_io.check_simulator(made) == KERNEL_LOG
    assert training.read_dataset(name) and build.ensure(name)


def test_episodes_of_a_scenario_are_simulated(recipe: recipes.Recipe) -> None:
    episodes = episodes_from_rows(make_rows(simulate_log("web", seconds=1.0)))
    about: dict[str, Any] = {"algorithm_name": "x", "description": "For tests."}
    for kwargs, simulator in (({"scenario": "web"}, fingerprint.FINGERPRINT), ({}, KERNEL_LOG)):
        made = minari_io.create("l4s/dualpi2/a-v0", episodes, env_kwargs=kwargs, overwrite=True, **about)
        assert made.storage.metadata["simulator"] == simulator
    made = minari_io.create("l4s/dualpi2/b-v0", episodes, simulator="older", **about)
    with pytest.raises(StaleError, match=r"simulator older, .*: make it again, as it was made$"):
        training.read_dataset(made.id)


def test_records_of_the_simulator_say_so_in_every_kind_of_file(
    recipe: recipes.Recipe, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, "simulate", "web", "--seconds", "1", "--log", "a.rec")[0] == 0
    for source, kind, target in (("a.rec", "parquet", "b.parquet"), ("b.parquet", "pool", "c.json")):
        convert(source, kind, target)  # type: ignore[arg-type]
    convert("b.parquet", "rec", "d.rec")
    assert Path("d.rec").read_bytes() == Path("a.rec").read_bytes()
    made = fingerprint.FINGERPRINT
    for name in ("a.rec", "b.parquet", "c.json"):
        assert open_stream(name).simulator == made
        assert f"{name}: of simulator {made}" in run(capsys, "log", "inspect", name)[1]
    records = np.memmap("a.rec", np.uint8, "r")
    assert int(records[8]) == 48 and bytes(records[32:48]).rstrip(b"\0").decode() == made
    monkeypatch.setattr(fingerprint, "FINGERPRINT", LATER)
    assert "is stale" in run(capsys, "log", "inspect", "b.parquet")[1]
    stream = open_stream("c.json")
    stored = minari_io.create_from_stream("l4s/dualpi2/c-v0", stream, algorithm_name="x", description="A pool.")
    with pytest.raises(StaleError, match=f"simulator {made}"):
        minari_io.check_simulator(stored)


def test_records_of_two_simulators_are_not_one_stream(recipe: recipes.Recipe) -> None:
    records = simulate_log("web", seconds=0.5)
    save_records("0.rec", records, simulator="one")
    save_records("1.rec", records, simulator="other")
    with pytest.raises(L4SError, match=r"1.rec: is of another simulator than 0.rec: read it by itself"):
        open_stream(["0.rec", "1.rec"])
    save_records("1.rec", records, simulator="one")
    assert sum(len(block) for block in open_stream(["0.rec", "1.rec"]).blocks()) == 2 * len(records)
