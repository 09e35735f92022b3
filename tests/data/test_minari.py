"""Minari datasets: what is written is what is read, bad input is refused, and a failure leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError, schema
from l4s_gym.data import minari_io
from l4s_gym.data.logs import write_log
from l4s_gym.data.pools import load_rows, make_rows
from l4s_gym.data.steps import EXTRAS, MISSING, episodes_from_rows
from l4s_gym.data.stream import open_stream
from l4s_gym.data.trajectory import Trajectory

minari = pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
pytest.importorskip("h5py", reason="needs h5py: pip install 'l4s-gym[data]'")

ID = "l4s/dualpi2/tiny-v0"
ABOUT: dict[str, Any] = {"algorithm_name": "dualpi2_freebsd", "description": "for tests"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of datasets of its own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def episodes(kernel_log: Any) -> list[Trajectory]:
    """Two runs of different lengths."""
    return episodes_from_rows([make_rows(kernel_log(seed, 80 + seed), f"/far/away/{seed}.log") for seed in (1, 2)])


def _ids() -> set[str]:
    return set(minari.list_local_datasets())


def _same(one: Trajectory, other: Trajectory) -> None:
    for name in ("observations", "actions", "rewards", "known", "applied"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert (one.consecutive, one.absent) == (other.consecutive, other.absent)


def test_round_trip(episodes: list[Trajectory]) -> None:
    counted: list[int] = []
    made = minari_io.create(ID, episodes, progress=counted.append, **ABOUT)
    read = minari_io.load(ID)
    minari_io.validate(made)
    minari_io.validate(read)
    assert counted == [1, 2]
    assert read.total_steps == sum(map(len, episodes))
    for one, other in zip(minari_io.read_episodes(read), episodes, strict=True):
        _same(one, other)
    assert [e.source for e in minari_io.read_episodes(read)] == ["1.log", "2.log"]
    data = read[1]
    assert data.truncations.tolist() == [False] * (len(episodes[1]) - 1) + [True]
    assert not data.terminations.any()
    assert len(data.observations) == len(data.infos["applied_action"]) == len(data.actions) + 1
    assert data.infos["applied_action"][1:].tolist() == np.asarray(episodes[1].applied).tolist()


def test_metadata_says_how_to_read_it(episodes: list[Trajectory]) -> None:
    scores: dict[str, Any] = {"ref_min_score": 1.0, "ref_max_score": 2.0, "metadata": {"card": "text"}}
    stored = minari_io.create(ID, episodes, **ABOUT, **scores).storage.metadata
    assert stored["schema_version"] == schema.SCHEMA_VERSION
    assert stored["observation_fields"] == list(schema.OBSERVED)
    assert stored["observation_scales"] == schema.OBS_SCALE.tolist()
    assert stored["reward"] == "l4s_llm"
    assert stored["consecutive"] is True
    assert (stored["ref_min_score"], stored["ref_max_score"], stored["card"]) == (1.0, 2.0, "text")
    assert ID in _ids()
    assert "l4s/dualpi2" in minari.namespace.list_local_namespaces()


def test_pools_are_not_consecutive(episodes: list[Trajectory]) -> None:
    loose = [replace(episodes[0], consecutive=False, absent=("total_drops",)), episodes[1]]
    made = minari_io.create(ID, iter(loose), **ABOUT)  # an iterator does too
    assert made.storage.metadata["consecutive"] is False
    _same(next(minari_io.read_episodes(made)), loose[0])


@pytest.mark.parametrize("as_logged", [False, True])
def test_a_stream_gives_the_same_episodes(
    place: Path, kernel_log: Any, as_logged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = [kernel_log(seed, 3000 + 500 * seed) for seed in (1, 2, 3)]
    write_log(place / "runs.log", np.concatenate([logs[0], np.delete(logs[1], 1700), logs[2]]))
    monkeypatch.setattr("l4s_gym.data.logs._BLOCK", 1 << 16)  # several blocks a run
    whole = episodes_from_rows(load_rows(place / "runs.log"), as_logged=as_logged)
    made = minari_io.create_from_stream(ID, open_stream(place / "runs.log"), as_logged=as_logged, **ABOUT)
    minari_io.validate(made)
    assert [e.consecutive for e in whole] == [True, False, True]
    for one, other in zip(minari_io.read_episodes(made), whole, strict=True):
        _same(one, other)
        for name in EXTRAS:
            np.testing.assert_array_equal(one.extras[name], other.extras[name])
    assert made.storage.metadata["as_logged"] is as_logged


RECOVER = """
import sys, minari
dataset = minari.load_dataset(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("l4s_gym")]
for evaluate, reward in ((False, "l4s_llm"), (True, None)):
    env = dataset.recover_environment(eval_env=evaluate)
    assert env.spec.id == "L4S-DualPI2-v0"
    assert env.spec.kwargs.get("reward") == reward, env.spec.kwargs
    assert env.spec.kwargs["scenario"] == "web"
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space
    assert env.observation_space == dataset.observation_space
    assert env.action_space == dataset.action_space
print("recovered")
"""


def test_the_environment_is_recovered_without_importing_us(episodes: list[Trajectory]) -> None:
    minari_io.create(ID, episodes, env_kwargs={"scenario": "web"}, **ABOUT)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RECOVER, ID], env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "recovered"


def _with(episode: Trajectory, name: str, index: Any, value: Any) -> Trajectory:
    array = getattr(episode, name).copy()
    array[index] = value
    return replace(episode, **{name: array})


BAD: dict[str, Callable[[Trajectory], Trajectory]] = {
    "actions at 3 is 7": lambda e: _with(e, "actions", 3, 7),
    "actions at 0 is -1": lambda e: _with(e, "actions", 0, -1),
    "applied at 2 is 3": lambda e: _with(e, "applied", 2, 3),
    r"observations at \[4, 1\] is not finite": lambda e: _with(e, "observations", (4, 1), np.nan),
    r"rewards at \[5\] is not finite": lambda e: _with(e, "rewards", 5, np.inf),
    "queue_type of observation 2 is 1.5": lambda e: _with(e, "observations", (2, 0), 1.5),
    "burst_allowance of observation 0 is -1": lambda e: _with(e, "observations", (0, 1), -1),
    "observations must be an array .* float32, not .* float64": lambda e: replace(
        e, observations=e.observations.astype(np.float64)
    ),
    "observations must be an array": lambda e: replace(e, observations=e.observations[:-1]),
    "rewards must be an array": lambda e: replace(e, rewards=e.rewards[:-1]),
    "actions must be an array": lambda e: replace(e, actions=e.actions[:, None]),
    "missing must be an array": lambda e: replace(e, missing={MISSING: e.missing[MISSING][:-1]}),
    "has no step": lambda e: replace(e, actions=e.actions[:0]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_episodes_are_refused_and_leave_nothing(place: Path, episodes: list[Trajectory], message: str) -> None:
    with pytest.raises(L4SError, match=f"episode 1: {message}"):
        minari_io.create(ID, [episodes[0], BAD[message](episodes[1])], **ABOUT)
    assert not _ids()
    assert not [file for file in place.rglob("*") if file.is_file() and file.name != "namespace_metadata.json"]
    minari_io.create(ID, episodes, **ABOUT)  # the id is still free
    assert _ids() == {ID}


@pytest.mark.parametrize("name", ["tiny-v0", "l4s/dualpi2/tiny", "l4s/dualpi2/../x-v0", "l4s/dualpi2/a.b-v0", ""])
def test_bad_ids_are_refused(episodes: list[Trajectory], name: str) -> None:
    with pytest.raises(L4SError, match="not of the form l4s/dualpi2/<name>-v0"):
        minari_io.create(name, episodes, **ABOUT)
    with pytest.raises(L4SError, match="not of the form"):
        minari_io.load(name)


def test_bad_environments_and_no_episodes_are_refused(episodes: list[Trajectory]) -> None:
    with pytest.raises(L4SError, match="unknown scenario"):
        minari_io.create(ID, episodes, env_kwargs={"scenario": "no such"}, **ABOUT)
    with pytest.raises(L4SError, match="no episodes"):
        minari_io.create(ID, [], **ABOUT)
    assert not _ids()
    with pytest.raises(L4SError, match="not found"):
        minari_io.load(ID)


def test_an_existing_dataset_is_kept_unless_overwritten(place: Path, episodes: list[Trajectory]) -> None:
    minari_io.create(ID, episodes[:1], **ABOUT)
    with pytest.raises(L4SError, match="exists already"):
        minari_io.create(ID, episodes, **ABOUT)

    def failing() -> Iterator[Trajectory]:
        yield episodes[1]
        assert len(minari_io.load(ID)) == 1  # the old one is there until the new one is complete
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        minari_io.create(ID, failing(), overwrite=True, **ABOUT)
    minari_io.validate(minari_io.load(ID))
    assert len(minari_io.load(ID)) == 1
    assert len(minari_io.create(ID, episodes, overwrite=True, **ABOUT)) == 2
    assert len(minari_io.load(ID)) == 2
    assert [path.name for path in (place / "l4s/dualpi2").iterdir() if path.is_dir()] == ["tiny-v0"]


def test_a_failed_move_keeps_the_old_dataset(
    place: Path, episodes: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    minari_io.create(ID, episodes[:1], **ABOUT)
    rename, calls = os.rename, list[Any]()

    def second_fails(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(L4SError, match="No space left"):
        minari_io.create(ID, episodes, overwrite=True, **ABOUT)
    assert len(minari_io.load(ID)) == 1
    assert [path.name for path in (place / "l4s/dualpi2").iterdir() if path.is_dir()] == ["tiny-v0"]


def test_validate_finds_what_was_changed_later(episodes: list[Trajectory]) -> None:
    import h5py

    made = minari_io.create(ID, episodes, **ABOUT)
    with h5py.File(Path(made.spec.data_path) / "main_data.hdf5", "a") as file:
        file["episode_1/actions"][3] = 9
    with pytest.raises(L4SError, match=r"episode 1: actions at 3 is 9"):
        minari_io.validate(minari_io.load(ID))
    made = minari_io.create(ID, episodes, overwrite=True, **ABOUT)
    with h5py.File(Path(made.spec.data_path) / "main_data.hdf5", "a") as file:
        file["episode_0/terminations"][-1] = True
    with pytest.raises(L4SError, match="truncated at its last step"):
        minari_io.validate(minari_io.load(ID))
    made.storage.update_metadata({"schema_version": 0})
    with pytest.raises(L4SError, match="schema_version is 0, not 1"):
        minari_io.validate(minari_io.load(ID))


def test_without_minari_the_error_says_what_to_install(
    episodes: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(L4SError, match=r"pip install 'l4s-gym\[data\]'"):
        minari_io.create(ID, episodes, **ABOUT)
