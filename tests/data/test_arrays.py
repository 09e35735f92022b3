"""Episodes as arrays on the disk: the same numbers as through Minari, without a copy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.data import arrays, minari_io
from l4s_gym.data.pools import make_rows
from l4s_gym.data.steps import MISSING, episodes_from_rows
from l4s_gym.data.storage import MAIN
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.schema import OBSERVED

pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
h5py = pytest.importorskip("h5py", reason="needs h5py: pip install 'l4s-gym[data]'")

ID = "l4s/dualpi2/arrays-v0"
ABOUT: dict[str, Any] = {"algorithm_name": "dualpi2_freebsd", "description": "for tests"}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_log: Any) -> list[Trajectory]:
    """A dataset of three runs, of which the second has missing values."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    logs = [kernel_log(seed, 90 + seed) for seed in (1, 2, 3)]
    made = episodes_from_rows([make_rows(log) for log in logs])
    made[1].missing[MISSING][[0, 5, 6, 91]] = True
    minari_io.create(ID, made, **ABOUT)
    return made


def test_episodes_are_those_of_minari(made: list[Trajectory]) -> None:
    dataset = minari_io.load(ID)
    found = arrays.episodes(ID)
    assert [e.about["id"] for e in found] == [0, 1, 2]
    for e, stored, source in zip(found, dataset.iterate_episodes(), made, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(e, name), getattr(stored, name), strict=True)
        np.testing.assert_array_equal(e.missing[MISSING], source.missing[MISSING])
        np.testing.assert_array_equal(e.applied, stored.infos["applied_action"][1:])
        assert {*e.extras, "missing", "applied_action"} == set(stored.infos)
        for name, values in e.extras.items():
            np.testing.assert_array_equal(values, stored.infos[name], strict=True)
        assert e.consecutive is source.consecutive is True


def test_nothing_is_copied_and_nothing_can_be_written(made: list[Trajectory]) -> None:
    found = arrays.episodes(ID)
    for e in found:
        views: list[Any] = [e.observations, e.actions, e.rewards, e.applied, e.missing[MISSING], *e.extras.values()]
        for array in views:
            assert not array.flags.owndata
            assert not array.flags.writeable
    base: Any = found[0].observations
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_some_episodes_of_a_dataset(made: list[Trajectory]) -> None:
    chosen = minari_io.load(ID).filter_episodes(lambda e: len(e.actions) == len(made[2]))
    (e,) = arrays.episodes(chosen)
    assert e.about["id"] == 2
    np.testing.assert_array_equal(e.actions, made[2].actions)


def test_gaps_must_be_allowed(made: list[Trajectory]) -> None:
    loose = [made[0], replace(made[1], consecutive=False, absent=("total_drops", "packet_length"))]
    dataset = minari_io.create(ID, loose, overwrite=True, **ABOUT)
    with pytest.raises(L4SError, match=r"within episode 1, .* allow_gaps=True"):
        arrays.open_layout(dataset).check_gaps()
    found = arrays.episodes(dataset)
    assert [e.consecutive for e in found] == [True, False]
    assert [e.absent for e in found] == [(), loose[1].absent]
    assert found[1].valid.any(axis=0).tolist() == [name not in loose[1].absent for name in OBSERVED]


def test_a_foreign_dataset_is_refused(made: list[Trajectory], tmp_path: Path) -> None:
    with h5py.File(tmp_path / MAIN, "w") as file:
        group = file.create_group("episode_0")
        group.attrs.update({"total_steps": 3, "consecutive": True})
        group.create_dataset("observations", (4, 8), "<f4", chunks=(2, 8), compression="gzip")
    spec, stored = SimpleNamespace(data_path=tmp_path), SimpleNamespace(metadata={})
    foreign = SimpleNamespace(id="foreign", episode_indices=[0], spec=spec, storage=stored)
    with pytest.raises(L4SError, match=r"episode 0: observations is not stored in one piece of <f4"):
        arrays.open_layout(foreign, ("observations",))
    with pytest.raises(L4SError, match=r"episode 0: cannot be read .*: write it by minari_io.create"):
        arrays.open_layout(foreign)
    with pytest.raises(L4SError, match="not found"):
        arrays.episodes("l4s/dualpi2/none-v0")


def test_a_dataset_that_was_moved(made: list[Trajectory]) -> None:
    layout = arrays.open_layout(ID)
    Path(layout.files[0]).unlink()
    with pytest.raises(L4SError, match="was the dataset moved"):
        layout.map_files()
