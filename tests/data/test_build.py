"""Recipes and builds: deterministic, resumable, whole or absent, with a card that tells the truth."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from l4s_gym import L4SError, schema
from l4s_gym.data import build, card, minari_io, recipes
from l4s_gym.data.files import locked
from l4s_gym.data.simulated import Behaviour, SimulatedRun
from l4s_gym.data.storage import h5py, mapped
from l4s_gym.evaluation.harness import evaluate
from l4s_gym.sim import scenario

pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'l4s-gym[report]'")

ROOT = Path(__file__).parents[2]
TOML = """
title = "Tiny"
description = "For tests."
scenarios = ["l4s-llm-testbed", "overload"]
faults = ["It is tiny."]
[[behaviours]]
aqm = "dualpi2_freebsd"
[[behaviours]]
aqm = "dualpi2_linux"
explore = 0.25
[small]
episodes = 5
seconds = 1.0
per_shard = 2
[full]
episodes = 12
seconds = 20.0
per_shard = 1
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of datasets of its own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path


@pytest.fixture
def recipe(place: Path) -> recipes.Recipe:
    """The recipe `tiny`."""
    (place / "recipes" / "tiny").mkdir(parents=True)
    (place / "recipes" / "tiny" / recipes.FILE).write_text(TOML)
    return recipes.load("tiny", place / "recipes")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("shard-*"))}


def make(recipe: recipes.Recipe, **options: Any) -> Any:
    return build.build(recipe, "small", **{"workers": 1, **options})


def test_a_build_is_a_valid_dataset_of_the_recipe(recipe: recipes.Recipe, place: Path) -> None:
    shares: list[float] = []
    made = make(recipe, progress=shares.append)
    minari_io.validate(made)
    assert made.id == "l4s/dualpi2/tiny-small-v0"
    assert shares == [pytest.approx(k / 3) for k in (1, 2, 3)]
    notes = list(made.storage.get_episode_metadata(range(5)))
    assert [note["scenario"] for note in notes] == ["l4s-llm-testbed", "overload"] * 2 + ["l4s-llm-testbed"]
    assert [note["aqm"] for note in notes] == ["dualpi2_freebsd"] * 2 + ["dualpi2_linux"] * 2 + ["dualpi2_freebsd"]
    assert [note["seed"] for note in notes] == [0, 1, 2, 3, 4]
    drawn = [made[k].infos["decided_by"].mean() for k in range(5)]
    assert drawn[:2] == [0, 0] and 0.1 < drawn[2] < 0.4 and 0.2 < drawn[3] < 0.3
    stored = made.storage.metadata
    assert stored["algorithm_name"] == "dualpi2_freebsd, dualpi2_linux with 0.25 random"
    assert stored["reward"] == "fair" and stored["recipe"]["title"] == "Tiny"
    env = made.recover_environment(eval_env=True)
    assert env.spec.kwargs == {"scenario": "l4s-llm-testbed", "aqm": "dualpi2_freebsd", "reward": "fair"}
    folder = place / "datasets" / "l4s" / "dualpi2"
    assert sorted(path.name for path in folder.iterdir()) == ["namespace_metadata.json", "tiny-small-v0"]
    sums = "l4s/dualpi2/tiny-small-v0/SHA256SUMS"
    subprocess.run(["sha256sum", "-c", sums], cwd=place / "datasets", check=True, capture_output=True)


@pytest.mark.slow
def test_processes_and_seeds_decide_nothing_and_everything(recipe: recipes.Recipe, place: Path) -> None:
    one = digests(Path(make(recipe).spec.data_path))
    assert digests(Path(make(recipe, workers=2, overwrite=True).spec.data_path)) == one
    (place / "recipes" / "tiny" / recipes.FILE).write_text("seed = 1\n" + TOML)
    other = digests(Path(make(recipes.load("tiny", place / "recipes"), overwrite=True).spec.data_path))
    assert not set(one.values()) & set(other.values())


def test_the_card_counts_what_is_there(recipe: recipes.Recipe) -> None:
    made = make(recipe)
    episodes = list(made.iterate_episodes())
    actions = np.concatenate([episode.actions for episode in episodes])
    known = card.facts(recipe, "small", Path(made.spec.data_path), None)
    assert known["actions"] == np.bincount(actions, minlength=3).tolist()
    assert known["steps"] == made.total_steps == len(actions)
    assert known["reward"]["return_mean"] == pytest.approx(np.mean([episode.rewards.sum() for episode in episodes]))
    delays = np.concatenate([e.observations[:-1] for e in episodes])
    for queue, name in enumerate(card.QUEUES):
        ms = delays[delays[:, 0] == queue, 3] * 100.0
        quantiles = known["delay_ms"][name]
        assert quantiles[50] == pytest.approx(np.quantile(ms, 0.5, method="inverted_cdf"), rel=0.03, abs=0.02)
    text = card.render(recipe, {"small": known})
    for part in (f"{made.total_steps:,}", "It is tiny.", "CC BY 4.0", "dualpi2_linux with 0.25 random"):
        assert part in text
    assert card.picture({"small": known})[:4] == b"\x89PNG"


@pytest.mark.slow
def test_record_keeps_the_other_size(recipe: recipes.Recipe, place: Path) -> None:
    made = make(recipe)
    known = card.facts(recipe, "small", Path(made.spec.data_path), None)
    folder = place / "recipes" / "tiny"
    card.record(folder, recipe, "small", known, build.checksums(Path(made.spec.data_path), made.id))
    card.record(folder, recipe, "full", {**known, "id": recipe.dataset_id("full")}, ["0  l4s/dualpi2/tiny-v0/data/x"])
    before = (folder / "card.md").read_text()
    card.record(folder, recipe, "small", known, build.checksums(Path(made.spec.data_path), made.id))
    assert (folder / "card.md").read_text() == before
    assert len((folder / "SHA256SUMS").read_text().splitlines()) == 4
    assert "tiny-small-v0" in before and "tiny-v0" in before


def test_an_existing_dataset_is_kept(recipe: recipes.Recipe) -> None:
    make(recipe)
    with pytest.raises(L4SError, match="exists already"):
        make(recipe)


def test_a_failed_build_resumes(recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digests(Path(make(recipe).spec.data_path))
    calls: list[int] = []
    real = build.make_shard

    def failing(task: recipes.Task, folder: Path) -> Any:
        calls.append(task.shard)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return real(task, folder)

    monkeypatch.setattr(build, "make_shard", failing)
    with pytest.raises(RuntimeError, match="killed"):
        make(recipe, overwrite=True)
    assert digests(Path(minari_io.load(recipe.dataset_id("small")).spec.data_path)) == whole  # the old one is there
    assert digests(Path(make(recipe, overwrite=True).spec.data_path)) == whole
    assert calls == [0, 1, 2, 2]  # the shards that were complete are not made again


def test_shards_of_another_recipe_are_not_used(recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = build.make_shard
    staging = minari_io.dataset_folder(recipe.dataset_id("small")).with_name(".tiny-small-v0.build")
    staging.mkdir(parents=True)
    real(recipes.Task(recipe, "small", 0), staging)
    (staging / "digest").write_text("of another simulator")
    made: list[int] = []

    def counted(task: recipes.Task, folder: Path) -> Any:
        made.append(task.shard)
        return real(task, folder)

    monkeypatch.setattr(build, "make_shard", counted)
    make(recipe)
    assert made == [0, 1, 2]


def test_one_build_at_a_time(recipe: recipes.Recipe) -> None:
    staging = minari_io.dataset_folder(recipe.dataset_id("small")).with_name(".tiny-small-v0.build")
    staging.mkdir(parents=True)
    with locked(staging, "held by the test"), pytest.raises(L4SError, match="another process builds this dataset"):
        make(recipe)


KILLED = """
import sys
from pathlib import Path
from l4s_gym.data import build, recipes
if __name__ == "__main__":
    recipe = recipes.load("tiny", Path(sys.argv[1]))
    build.build(recipe, "full", workers=2, overwrite=True)
"""


@pytest.mark.slow
def test_killing_a_build_at_any_point_leaves_no_half_dataset(recipe: recipes.Recipe, place: Path) -> None:
    """The process group is killed after growing times, until it is done before; then the bytes are those of one go."""
    script = place / "killed.py"
    script.write_text(KILLED)
    target = minari_io.dataset_folder(recipe.dataset_id("full"))
    delay_s, kills, ended = 1.0, 0, False
    while not ended:
        process = subprocess.Popen([sys.executable, str(script), str(place / "recipes")], start_new_session=True)
        try:
            assert process.wait(delay_s) == 0
            ended = True
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.2)
        if target.exists():
            minari_io.validate(minari_io.load(recipe.dataset_id("full")))
        delay_s += 0.4
    assert kills > 2
    resumed = digests(target / "data")
    assert len(resumed) == 12
    build.build(recipe, "full", workers=1, overwrite=True)
    assert digests(target / "data") == resumed
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == ["tiny-v0"]


@pytest.mark.parametrize("name", recipes.names(ROOT / "datasets"))
def test_recipes_that_ship_are_whole(name: str) -> None:
    recipe = recipes.load(name, ROOT / "datasets")
    folder = ROOT / "datasets" / name
    minari_io.dataset_folder(recipe.dataset_id("full"))  # a valid id
    assert {path.name for path in folder.iterdir()} == {
        "recipe.toml",
        "card.md",
        "card.png",
        "facts.json",
        "SHA256SUMS",
    }
    known = json.loads((folder / "facts.json").read_text())
    small, full = (80_000, 10_000_000) if recipe.form == "packet" else (50_000, 500_000)
    assert known["full"]["steps"] >= full
    assert small <= known["small"]["steps"] <= 200_000
    assert len(recipes.tasks(recipe, "full")) >= 8
    assert (folder / "card.md").read_text() == card.render(recipe, known)
    for size, measured in known.items():
        listed = [line for line in (folder / "SHA256SUMS").read_text().splitlines() if f"{measured['id']}/" in line]
        assert len(listed) == len(recipes.tasks(recipe, size))
        assert len(measured["scores"]["random"]) == len(measured["scores"]["native"]) == 5


@pytest.mark.parametrize("name", ["testbed", "links"])
def test_the_small_size_is_what_its_checksums_say(name: str) -> None:
    """The simulator of this version makes the published bytes (of the published version of HDF5)."""
    recipe = recipes.load(name, ROOT / "datasets")
    made = make(recipe)
    sums = (ROOT / "datasets" / name / "SHA256SUMS").read_text().splitlines()
    assert set(build.checksums(Path(made.spec.data_path), made.id)) <= set(sums)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"overload"', '"overlod"', "unknown scenario 'overlod': did you mean 'overload'"),
        ("episodes = 5", "episodes = 0", r"recipe.toml: small.episodes: .*>= 1"),
        ("explore = 0.25", "explor = 0.25", "unknown setting of behaviours 'explor': did you mean 'explore'"),
        ("explore = 0.25", "explore = ", "is no TOML"),
        ("dualpi2_linux", "dualpi3", r"recipe.toml: behaviours.aqm: unknown value 'dualpi3': did you mean"),
    ],
)
def test_bad_recipes_are_refused(recipe: recipes.Recipe, place: Path, old: str, new: str, message: str) -> None:
    (place / "recipes" / "tiny" / recipes.FILE).write_text(TOML.replace(old, new))
    with pytest.raises(L4SError, match=message):
        recipes.load("tiny", place / "recipes")


def test_unknown_recipes_and_sizes_are_refused(recipe: recipes.Recipe, place: Path) -> None:
    with pytest.raises(L4SError, match="unknown dataset 'tinny': did you mean 'tiny'"):
        recipes.load("tinny", place / "recipes")
    with pytest.raises(L4SError, match="unknown size 'huge'"):
        recipe.size("huge")
    with pytest.raises(L4SError, match="recipes: no NAME"):
        recipes.folder(place)


def steps_of(run: SimulatedRun) -> Any:
    return np.concatenate(list(run.blocks()))


@pytest.mark.parametrize(("reward", "aqm"), [("balance", "dualpi2_freebsd"), ("power", "dualpi2_linux")])
def test_rewards_add_up_to_the_return(reward: str, aqm: str) -> None:
    chosen = scenario.load("mixed").replace(horizon_s=8.0)
    steps = steps_of(SimulatedRun(chosen, Behaviour(aqm), 3, reward))
    (result,) = evaluate(f"native:{aqm}", chosen, seeds=[3], reward=reward)
    assert steps["reward"].sum() == pytest.approx(result.episode_return, rel=1e-9)


@pytest.mark.parametrize("reward", ["balance", "power", "l4s_llm"])
def test_a_run_is_what_the_environment_gives(reward: str) -> None:
    """A FIFO decides nothing: its log has the observations and rewards of an agent that enqueues everything."""
    chosen = scenario.load("l4s-llm-testbed").replace(horizon_s=2.0)
    steps = steps_of(SimulatedRun(chosen, Behaviour("fifo"), 5, reward))
    env = gym.make("l4s_gym:L4S-DualPI2-v0", scenario=chosen, aqm="fifo", reward=reward)
    obs, _ = env.reset(seed=5)
    for t in range(len(steps) - 1):
        np.testing.assert_array_equal(steps["observation"][t], obs)
        obs, got, terminated, truncated, _ = env.step(schema.ENQUEUE)
        assert not (terminated or truncated)
        assert steps["reward"][t] == pytest.approx(got, abs=1e-12)
    assert env.step(schema.ENQUEUE)[3]


def test_long_runs_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = scenario.load("overload").replace(horizon_s=5.0)
    whole = steps_of(SimulatedRun(chosen, Behaviour("dualpi2_rfc9332", 0.1), 1))
    monkeypatch.setattr("l4s_gym.data.simulated.LOG_ROWS", 1500)
    blocks = list(SimulatedRun(chosen, Behaviour("dualpi2_rfc9332", 0.1), 1).blocks())
    assert len(blocks) > 3
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_shares_of_drawn_actions(place: Path) -> None:
    chosen = scenario.load("overload").replace(horizon_s=20.0)
    every = steps_of(SimulatedRun(chosen, Behaviour("fifo", 1.0), 0))
    assert every["decided_by"].all()
    assert np.allclose(np.bincount(every["action"]) / len(every), 1 / 3, atol=0.02)
    none = steps_of(SimulatedRun(chosen, Behaviour("fifo", 0.0), 0))
    assert not none["decided_by"].any() and not none["action"].any()


def test_stored_arrays_are_mapped_without_a_copy(recipe: recipes.Recipe) -> None:
    made = make(recipe)
    with h5py().File(Path(made.spec.data_path) / "main_data.hdf5", "r") as file:
        views = []
        for name in ("observations", "rewards", "infos/time_us", "infos/missing"):
            views.append(mapped(file["episode_3"][name]))
            assert isinstance(views[-1].base, np.memmap) and views[-1].ctypes.data % 64 == 0
            np.testing.assert_array_equal(views[-1], file["episode_3"][name][()])
    assert not views[-1].flags.writeable
    assert len({id(view.base) for view in views}) == 1  # one map a file: each takes one of few file descriptors
