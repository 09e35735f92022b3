"""Minari datasets: written as a whole or not at all, checked when written, and read back as episodes."""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from l4s_gym import schema
from l4s_gym.data.episodes import REWARD, Episode
from l4s_gym.errors import L4SError

Progress = Callable[[int], None]

ENV_ID: Final = "l4s_gym:L4S-DualPI2-v0"
_ID_FORM: Final = "l4s/dualpi2/<name>-v0"


def _import(name: str = "minari") -> Any:
    """Minari or one of its modules.

    Raises:
        L4SError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise L4SError(f"{name}: cannot be imported ({error}): pip install 'l4s-gym[data]'") from error


def check_episode(episode: Episode, where: str) -> None:
    """Check shapes, types and ranges of an episode; `where` names it in the error.

    Raises:
        L4SError: Something is wrong.
    """
    steps = len(episode.actions)
    expected: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "observations": ((steps + 1, len(schema.OBSERVED)), np.float32),
        "actions": ((steps,), np.int64),
        "rewards": ((steps,), np.float64),
        "missing": ((steps + 1,), np.bool_),
        "applied": ((steps,), np.int64),
    }
    if not steps:
        raise L4SError(f"{where}: has no step: leave it out")
    for name, (shape, dtype) in expected.items():
        array: npt.NDArray[Any] = getattr(episode, name)
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            got = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise L4SError(f"{where}: {name} must be an array {shape} of {np.dtype(dtype).name}, not {got}")
    for name in ("observations", "rewards"):
        infinite = np.argwhere(~np.isfinite(getattr(episode, name)))
        if infinite.size:
            row = infinite[0].tolist()
            raise L4SError(f"{where}: {name} at {row} is not finite: replace it, or drop the row")
    for name in ("actions", "applied"):
        values = getattr(episode, name)
        bad = np.flatnonzero((values < 0) | (values >= len(schema.ACTIONS)))
        if bad.size:
            raise L4SError(f"{where}: {name} at {bad[0]} is {values[bad[0]]}, not one of 0, 1, 2")
    outside = np.argwhere((episode.observations < 0) | (episode.observations > schema.OBS_HIGH))
    if outside.size:
        index, column = outside[0].tolist()
        raise L4SError(
            f"{where}: {schema.OBSERVED[column]} of observation {index} is {episode.observations[index, column]:g}, "
            f"outside 0 to {schema.OBS_HIGH[column]:g}: scale it by schema.scale_observation"
        )


def _buffer(episode: Episode) -> Any:
    """The episode as Minari's buffer; as in the environment, info t + 1 tells what became of action t."""
    steps = len(episode)
    applied = np.concatenate([np.zeros(1, np.int64), episode.applied])
    truncations = np.zeros(steps, np.bool_)
    truncations[-1] = True
    return _import("minari.data_collector").EpisodeBuffer(
        observations=episode.observations,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=np.zeros(steps, np.bool_),
        truncations=truncations,
        infos={"missing": episode.missing, "applied_action": applied},
    )


def _specs(env_kwargs: Mapping[str, Any], reward: str) -> tuple[Any, Any]:
    """Specs of the environment that bears the dataset's reward, and of that for evaluation."""
    specs = []
    for kwargs in ({**env_kwargs, "reward": reward}, env_kwargs):
        env: Any = gym.make(ENV_ID, **kwargs)
        specs.append(env.spec)
        env.close()
    return specs[0], specs[1]


def _dataset_path(dataset_id: str) -> tuple[str, Path]:
    """Namespace and folder of a dataset.

    Raises:
        L4SError: The id is not well-formed, or has no namespace or no version.
    """
    minari = _import("minari.dataset.minari_dataset")
    match = minari.DATASET_ID_RE.fullmatch(dataset_id)
    if match is None or not match["namespace"] or not match["version"]:
        raise L4SError(f"dataset id {dataset_id!r}: is not of the form {_ID_FORM} (letters, digits, -, _)")
    return match["namespace"], _import("minari.storage.datasets_root_dir").get_dataset_path(dataset_id)


def _metadata(reward: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What says how to read the numbers, from the schema, and what the caller says; values of None are left out."""
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "observation_fields": list(schema.OBSERVED),
        "observation_scales": schema.OBS_SCALE.tolist(),
        "observation_units": [schema.BY_NAME[name].unit for name in schema.OBSERVED],
        "action_names": list(schema.ACTIONS),
        "reward": reward,
        **{name: value for name, value in extra.items() if value is not None},
    }


def _write(storage: Any, episodes: Iterable[Episode], progress: Progress | None) -> list[dict[str, Any]]:
    """Check and write the episodes one by one; the metadata of each."""
    notes: list[dict[str, Any]] = []

    def buffers() -> Iterator[Any]:
        for number, episode in enumerate(episodes):
            check_episode(episode, f"episode {number}")
            # The name alone: the path says where somebody keeps their files.
            source = PurePath(episode.source).name or episode.source
            notes.append({"consecutive": episode.consecutive, "source": source, "absent": ",".join(episode.absent)})
            yield _buffer(episode)
            if progress is not None:
                progress(number + 1)

    storage.update_episodes(buffers())
    if not notes:
        raise L4SError("dataset: no episodes: give at least one")
    storage.update_episode_metadata(notes)
    return notes


def _put(new: Path, target: Path, overwrite: bool) -> None:
    """Move a finished folder to its place; with `overwrite`, instead of the one that is there."""
    old = new.with_name(f"{new.name}.old")
    if overwrite and target.exists():
        os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError as error:
        if old.exists():
            os.rename(old, target)
        raise L4SError(f"{target}: cannot be written ({error.strerror}): another process made it?") from error
    shutil.rmtree(old, ignore_errors=True)


def create(
    dataset_id: str,
    episodes: Iterable[Episode],
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    algorithm_name: str,
    description: str,
    author: str = "l4s-gym contributors",
    author_email: str | None = None,
    code_permalink: str | None = None,
    reward: str = REWARD,
    ref_min_score: float | None = None,
    ref_max_score: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Write episodes as a Minari dataset (HDF5), a check of each before it is written.

    All is written to a hidden folder beside its place and moved there when it is complete, so a failure leaves
    no dataset and does not occupy the id.

    Args:
        dataset_id: ``l4s/dualpi2/<name>-v0``.
        episodes: The episodes; an iterator is read as a stream.
        env_kwargs: Arguments of `L4S-DualPI2-v0` that say where the data comes from. `recover_environment`
            makes it with the dataset's reward, `recover_environment(eval_env=True)` exactly so.
        algorithm_name: Who decided.
        description: What the data is.
        author: Name of who made it.
        author_email: Where to write to.
        code_permalink: Link to the code that made it.
        reward: Name of the reward of the episodes (`balance`, `power`, `l4s_llm`).
        ref_min_score: Return of the random agent, for normalised scores.
        ref_max_score: Return of the reference.
        metadata: More entries of the dataset's metadata (plain JSON).
        overwrite: Replace the dataset of this id.
        progress: Called with the number of episodes written.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        L4SError: Bad id, the id is taken, an episode is not valid, or the environment does not take `env_kwargs`.
    """
    minari = _import()
    namespace, target = _dataset_path(dataset_id)
    if target.exists() and not overwrite:
        raise L4SError(f"dataset {dataset_id!r}: exists already: give overwrite=True or another name or version")
    spec, eval_spec = _specs(dict(env_kwargs or {}), reward)
    extra = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "eval_env_spec": eval_spec.to_json(),
        "algorithm_name": algorithm_name,
        "description": description,
        "author": {author},
        "author_email": None if author_email is None else {author_email},
        "code_permalink": code_permalink,
        "requirements": [f"l4s-gym>={_version()}"],
        "ref_min_score": ref_min_score,
        "ref_max_score": ref_max_score,
        **(metadata or {}),
    }
    namespaces = _import("minari.namespace")
    if namespace not in namespaces.list_local_namespaces():
        namespaces.create_namespace(namespace)
    new = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        (new / "data").mkdir(parents=True)
        storage = _import("minari.dataset.minari_storage").MinariStorage.new(
            new / "data",
            observation_space=gym.spaces.Box(np.zeros(len(schema.OBSERVED), np.float32), schema.OBS_HIGH),
            action_space=gym.spaces.Discrete(len(schema.ACTIONS)),
            env_spec=spec,
            data_format="hdf5",
        )
        storage.update_metadata(_metadata(reward, extra))
        notes = _write(storage, episodes, progress)
        storage.update_metadata({"consecutive": all(note["consecutive"] for note in notes)})
        _put(new, target, overwrite)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return minari.load_dataset(dataset_id)


def _version() -> str:
    from l4s_gym import __version__

    return __version__


def load(dataset_id: str) -> Any:
    """A `minari.MinariDataset` of this machine; it is not checked (`validate`).

    Raises:
        L4SError: There is none of this id, or its files are damaged.
    """
    minari = _import()
    _, path = _dataset_path(dataset_id)
    if not path.is_dir():
        raise L4SError(f"dataset {dataset_id!r}: not found in {path.parent}: see `minari list local`, or download it")
    try:
        return minari.load_dataset(dataset_id)
    except (ValueError, KeyError, OSError, AssertionError) as error:
        raise L4SError(f"dataset {dataset_id!r}: cannot be read ({error}): write or download it again") from error


def read_episodes(dataset: Any) -> Iterator[Episode]:
    """The episodes of a dataset, one after the other as they are read.

    Args:
        dataset: A `minari.MinariDataset` of `create`.

    Raises:
        L4SError: An episode lacks our infos.
    """
    notes = dataset.storage.get_episode_metadata(dataset.episode_indices)
    for data, note in zip(dataset.iterate_episodes(), notes, strict=True):
        if not {"missing", "applied_action"} <= set(data.infos or ()):
            raise L4SError(f"dataset {dataset.id!r}: episode {data.id} lacks infos: it is not one of `create`")
        yield Episode(
            observations=data.observations,
            actions=data.actions,
            rewards=data.rewards,
            missing=data.infos["missing"],
            consecutive=bool(note["consecutive"]),
            source=str(note["source"]),
            applied=data.infos["applied_action"][1:],
            absent=tuple(name for name in str(note["absent"]).split(",") if name),
        )


def validate(dataset: Any) -> None:
    """Check a dataset: the schema, counts, alignment (T + 1 observations and infos), types, ranges, ends.

    Args:
        dataset: A `minari.MinariDataset`.

    Raises:
        L4SError: The first thing that is wrong.
    """
    where = f"dataset {dataset.id!r}"
    stored = dataset.storage.metadata
    for name, value in _metadata(str(stored.get("reward")), {}).items():
        if stored.get(name) != value:
            raise L4SError(f"{where}: {name} is {stored.get(name)!r}, not {value!r}: convert its rows again")
    steps = 0
    for data, episode in zip(dataset.iterate_episodes(), read_episodes(dataset), strict=True):
        place = f"{where}, episode {data.id}"
        if len(data.infos["applied_action"]) != len(data.actions) + 1:
            raise L4SError(f"{place}: applied_action must have one entry more than there are actions")
        check_episode(episode, place)
        truncated = np.arange(len(episode)) == len(episode) - 1
        if data.terminations.any() or not np.array_equal(data.truncations, truncated):
            raise L4SError(f"{place}: must be truncated at its last step, and end nowhere else")
        steps += len(episode)
    if steps != dataset.total_steps:
        raise L4SError(f"{where}: has {steps} steps, but says {dataset.total_steps}: write it again")
