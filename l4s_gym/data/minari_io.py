"""Minari datasets: written as a whole or not at all, checked when written, and read back as episodes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, Required, TypedDict, Unpack

import gymnasium as gym
import numpy as np

from l4s_gym import forms, schema
from l4s_gym.data.files import atomic_folder
from l4s_gym.data.steps import EXTRAS, MISSING, REWARD, Steps, StreamRun, rows_of_trajectory, runs_of_stream
from l4s_gym.data.storage import (
    INFOS,
    MAIN,
    Shard,
    arrays_of,
    check_files,
    link_shards,
    readable,
    row_of,
    shard_name,
    write_shard,
)
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.rewards import COMPONENTS
from l4s_gym.sim import fingerprint

if TYPE_CHECKING:
    from l4s_gym.data.stream import RowStream

Progress = Callable[[int], None]

_ID_FORM: Final = "l4s/dualpi2/<name>-v0"
_NAMESPACE: Final = "Decisions of L4S DualPI2 and other queue disciplines, from kernel logs and from a simulator"
_SPACE: Final = 1 << 16
"""Bytes."""
_OWN: Final = ("id", "total_steps", "consecutive", "source", "absent")


def import_minari(name: str = "minari") -> Any:
    """Import Minari or one of its modules.

    Raises:
        L4SError: It is not installed, or the home directory in its path is unknown.
    """
    place = os.environ.get("MINARI_DATASETS_PATH", os.path.expanduser("~"))
    if place.startswith("~"):
        raise L4SError(f"datasets: the home directory {place!r} is unknown: set MINARI_DATASETS_PATH to a folder")
    return optional(name, "data")


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables in the block; afterwards they are as before."""
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def datasets_in(folder: Path) -> Iterator[None]:
    """Use a folder, which is made, for Minari's datasets in the block: Minari reads its variable at each call."""
    folder.mkdir(parents=True, exist_ok=True)
    with environment({"MINARI_DATASETS_PATH": str(folder.resolve())}):
        yield


def observed_by(form: str) -> tuple[str, ...]:
    """Return the names of the features that an action form (`l4s_gym.forms`) observes."""
    return tuple(each.name for each in forms.get(form).features) or schema.OBSERVED


def action_names(form: str) -> tuple[str, ...]:
    """Return the names of the actions of packets, or of what the numbers of an action set."""
    if form == "parameters":
        from l4s_gym.envs.tune import PARAMETERS  # loads the simulator

        return PARAMETERS
    return schema.ACTIONS if form == PACKET else ("probability_c", "probability_l")


@cache
def _spaces(form: str) -> tuple[gym.spaces.Box, Any]:
    """The spaces of a form, only to be read: to make them takes longer than to read an episode's actions."""
    return forms.get(form).spaces


def check_episode(episode: Trajectory, where: str, form: str = PACKET) -> None:
    """Check shapes, types and ranges of an episode of an action form; `where` names it in the error.

    Raises:
        L4SError: Something is wrong.
    """
    steps, stored = len(episode.actions), arrays_of(form)
    given = {name: (getattr(episode, name), stored[name]) for name in ("observations", "actions", "rewards")}
    if form == PACKET:
        unknown = episode.missing.get(MISSING, np.zeros(steps + 1, bool))
        applied = episode.actions if episode.applied is None else episode.applied
        given |= {"missing": (unknown, stored["infos/missing"]), "applied": (applied, stored["actions"])}
    if not steps:
        raise L4SError(f"{where}: has no step: leave it out")
    for name, (array, as_) in given.items():
        shape, dtype = (steps + as_.more, *as_.shape), np.dtype(as_.dtype)
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            got = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise L4SError(f"{where}: {name} must be an array {shape} of {dtype.name}, not {got}")
    for name in ("observations", "rewards"):
        infinite = np.argwhere(~np.isfinite(given[name][0]))
        if infinite.size:
            row = infinite[0].tolist()
            raise L4SError(f"{where}: {name} at {row} is not finite: replace it, or drop the row")
    observed, action = _spaces(form)
    for name in ("actions", "applied") if form == PACKET else ():
        values = given[name][0]
        bad = np.flatnonzero((values < 0) | (values >= action.n))
        if bad.size:
            raise L4SError(f"{where}: {name} at {bad[0]} is {values[bad[0]]}, not one of 0, 1, 2")
    if form != PACKET:
        beyond = np.argwhere(~((episode.actions >= action.low) & (episode.actions <= action.high)))
        if beyond.size:
            index = tuple(beyond[0].tolist())
            raise L4SError(f"{where}: actions at {list(index)} is {episode.actions[index]:g}, outside the action space")
    outside = np.argwhere((episode.observations < 0) | (episode.observations > observed.high))
    if outside.size:
        index, column = outside[0].tolist()
        raise L4SError(
            f"{where}: {episode.features[column]} of observation {index} is {episode.observations[index, column]:g}, "
            f"outside 0 to {observed.high[column]:g}"
            + (": scale it by schema.scale_observation" if form == PACKET else "")
        )


def _run_of(episode: Trajectory, form: str) -> StreamRun:
    """Return an episode in memory as a run to store."""
    e = episode
    # The name alone: the full path would reveal where the user keeps files.
    source = PurePath(e.source).name or e.source
    about = {**e.about, "consecutive": e.consecutive, "source": source, "absent": ",".join(e.absent)}
    return StreamRun(about, iter([rows_of_trajectory(e) if form == PACKET else _interval_rows(e, form)]))


def _interval_rows(run: Trajectory, form: str) -> Steps:
    """Return the rows of an episode of control intervals (T + 1,); what it lacks is 0."""
    rows = np.zeros(len(run) + 1, row_of(form))
    rows["observation"] = run.observations
    rows["action"][:-1], rows["reward"][:-1] = run.actions, run.rewards
    for name in COMPONENTS:
        if name in run.extras:
            rows[name][:-1] = run.extras[name][1:]
    return rows


def _specs(form: str, env_kwargs: Mapping[str, Any], eval_kwargs: Mapping[str, Any], reward: str) -> tuple[Any, Any]:
    """Return the specs of the environment with the dataset's reward, and of the one for evaluation."""
    specs = []
    for kwargs in ({**env_kwargs, "reward": reward}, eval_kwargs):
        env: Any = gym.make(f"l4s_gym:{forms.get(form).env_id}", **kwargs)
        specs.append(env.spec)
        env.close()
    return specs[0], specs[1]


def _dataset_path(dataset_id: str) -> tuple[str, Path]:
    """Split a dataset id into its namespace and its folder.

    Raises:
        L4SError: The id is not well-formed, or has no namespace or no version.
    """
    minari = import_minari("minari.dataset.minari_dataset")
    match = minari.DATASET_ID_RE.fullmatch(dataset_id)
    if match is None or not match["namespace"] or not match["version"]:
        raise L4SError(f"dataset id {dataset_id!r}: is not of the form {_ID_FORM} (letters, digits, -, _)")
    return match["namespace"], import_minari("minari.storage.datasets_root_dir").get_dataset_path(dataset_id)


def dataset_folder(dataset_id: str) -> Path:
    """Return the folder of a dataset, present or not; errors as `create`."""
    return _dataset_path(dataset_id)[1]


def ensure_namespace(namespace: str) -> None:
    """Make a namespace if it is missing."""
    namespaces = import_minari("minari.namespace")
    if namespace not in namespaces.list_local_namespaces():
        try:
            namespaces.create_namespace(namespace, description=_NAMESPACE)
        except ValueError:  # another process made it first
            if namespace not in namespaces.list_local_namespaces():
                raise


def schema_metadata(reward: str, extra: Mapping[str, Any], form: str = PACKET) -> dict[str, Any]:
    """Return metadata that says how to read the numbers, from the form and `extra`; values of None are left out."""
    told = {"observation_scales": schema.OBS_SCALE.tolist()} if form == PACKET else {"form": form}
    units = [each.unit for each in forms.get(form).features]
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "observation_fields": list(observed_by(form)),
        "observation_units": units or [schema.BY_NAME[name].unit for name in schema.OBSERVED],
        "action_names": list(action_names(form)),
        **told,
        "reward": reward,
        **{name: value for name, value in extra.items() if value is not None},
    }


class About(TypedDict, total=False):
    """Metadata of a dataset beside what the schema says.

    Attributes:
        form: Action form (`l4s_gym.forms`) of the episodes; left out: packets.
        env_kwargs: Arguments of the form's environment that say where the data comes from. `recover_environment`
            makes it with the dataset's reward, `recover_environment(eval_env=True)` with `eval_kwargs`.
        eval_kwargs: Arguments of the environment for evaluation; as `env_kwargs` if left out.
        algorithm_name: Name of the policy that decided.
        description: What the data is.
        author: Name of the author.
        author_email: Address of the author.
        code_permalink: Link to the code that made the data.
        reward: Name of the reward of the episodes.
        ref_min_score: Return of the random agent, for normalised scores.
        ref_max_score: Return of the reference.
        simulator: Fingerprint of the simulator of the data, or `fingerprint.KERNEL_LOG`; left out: the installed one
            if `env_kwargs` name a scenario, else a log.
        metadata: More entries of the dataset's metadata (plain JSON).
    """

    form: str
    env_kwargs: Mapping[str, Any]
    eval_kwargs: Mapping[str, Any]
    algorithm_name: Required[str]
    description: Required[str]
    author: str
    author_email: str | None
    code_permalink: str | None
    reward: str
    ref_min_score: float | None
    ref_max_score: float | None
    simulator: str
    metadata: Mapping[str, Any]


def publish(
    dataset_id: str, fill: Callable[[Path], Sequence[Shard]], *, overwrite: bool = False, **about: Unpack[About]
) -> Any:
    """Make a Minari dataset from shards.

    All files are written to a hidden folder beside the final place and moved there when complete, so a failure leaves
    no dataset and does not occupy the id.

    Args:
        dataset_id: ``l4s/dualpi2/<name>-v0``.
        fill: Puts the shards into the given folder, and returns them in order. Other files that it puts
            into the folder above (a card) are published too.
        overwrite: Replace the dataset of this id.
        **about: Metadata, see `About`.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        L4SError: Bad id, the id is taken, no episodes, or the environment does not take its arguments.
    """
    minari = import_minari()
    namespace, target = _dataset_path(dataset_id)
    if target.exists() and not overwrite:
        raise L4SError(f"dataset {dataset_id!r}: exists already: give overwrite=True or another name or version")
    reward, form = about.get("reward", REWARD), about.get("form", PACKET)
    env_kwargs = about.get("env_kwargs", {})
    spec, eval_spec = _specs(form, env_kwargs, about.get("eval_kwargs", env_kwargs), reward)
    interval_ms = None if form == PACKET else env_kwargs.get("control_interval_ms", forms.INTERVAL_MS)
    email = about.get("author_email")
    made_with = fingerprint.FINGERPRINT if "scenario" in env_kwargs else fingerprint.KERNEL_LOG
    extra = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "simulator": about.get("simulator", made_with),
        "eval_env_spec": eval_spec.to_json(),
        "algorithm_name": about["algorithm_name"],
        "description": about["description"],
        "author": {about.get("author", "l4s-gym contributors")},
        "author_email": None if email is None else {email},
        "code_permalink": about.get("code_permalink"),
        "requirements": [f"l4s-gym>={_version()}"],
        "ref_min_score": about.get("ref_min_score"),
        "ref_max_score": about.get("ref_max_score"),
        "control_interval_ms": interval_ms,
        **about.get("metadata", {}),
    }
    ensure_namespace(namespace)
    with atomic_folder(target, overwrite=overwrite) as new:
        (new / "data").mkdir()
        episodes, steps = link_shards(new / "data", fill(new / "data"))
        if not episodes:
            raise L4SError(f"dataset {dataset_id!r}: no episodes: give at least one run of two rows")
        _check_space(new)
        (new / "data" / MAIN).replace(new / MAIN)
        observed, action = forms.get(form).spaces
        storage = import_minari("minari.dataset.minari_storage").MinariStorage.new(
            new / "data",
            observation_space=observed,
            action_space=action,
            env_spec=spec,
            data_format="hdf5",
        )
        (new / MAIN).replace(new / "data" / MAIN)  # Minari makes an empty file of this name
        notes = storage.get_episode_metadata(range(episodes))
        storage.update_metadata(
            {
                **schema_metadata(reward, extra, form),
                "total_episodes": episodes,
                "total_steps": steps,
                "consecutive": all(bool(note["consecutive"]) for note in notes),
                "dataset_size": storage.get_size(),
            }
        )
    return minari.load_dataset(dataset_id)


def _check_space(folder: Path) -> None:
    """Refuse a full disk before Minari writes its few kilobytes with HDF5, which would end the program.

    Raises:
        OSError: It is full.
    """
    trial = folder / "trial"
    try:
        with open(trial, "wb") as file:
            file.write(bytes(_SPACE))
    finally:
        trial.unlink(missing_ok=True)


def create(
    dataset_id: str,
    episodes: Iterable[Trajectory],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    **about: Unpack[About],
) -> Any:
    """Write episodes as a Minari dataset (HDF5); each is checked before it is written; see `publish`.

    Args:
        dataset_id: ``l4s/dualpi2/<name>-v0``.
        episodes: The episodes; an iterator is read as a stream.
        overwrite: Replace the dataset of this id.
        progress: Called with the number of episodes written.
        **about: Metadata, see `About`.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        L4SError: As `publish`, or an episode is not valid.
    """
    form = about.get("form", PACKET)

    def runs() -> Iterator[StreamRun]:
        for number, episode in enumerate(episodes):
            check_episode(episode, f"episode {number}", form)
            yield _run_of(episode, form)
            if progress is not None:
                progress(number + 1)

    return publish(
        dataset_id, lambda data: [write_shard(data / shard_name(0), 0, runs(), form)], overwrite=overwrite, **about
    )


def create_from_stream(
    dataset_id: str,
    stream: RowStream,
    *,
    as_logged: bool = False,
    overwrite: bool = False,
    **about: Unpack[About],
) -> Any:
    """Write a stream of logged decisions as a Minari dataset, one episode a run, in bounded memory; see `publish`.

    Args:
        dataset_id: ``l4s/dualpi2/<name>-v0``.
        stream: The rows.
        as_logged: Observe the fields as printed, which give most drops away, instead of those before the decision.
        overwrite: Replace the dataset of this id.
        **about: Metadata, see `About`.
    """
    about.setdefault("metadata", {"as_logged": as_logged})
    about.setdefault("simulator", stream.simulator or fingerprint.KERNEL_LOG)

    def fill(data: Path) -> list[Shard]:
        return [write_shard(data / shard_name(0), 0, runs_of_stream(stream, as_logged=as_logged))]

    return publish(dataset_id, fill, overwrite=overwrite, **about)


def _version() -> str:
    from l4s_gym import __version__

    return __version__


def load(dataset_id: str) -> Any:
    """Load a `minari.MinariDataset` of this machine without a check (`validate`).

    Raises:
        L4SError: There is none of this id, or its files are damaged.
    """
    minari = import_minari()
    _, path = _dataset_path(dataset_id)
    if not path.is_dir():
        raise L4SError(f"dataset {dataset_id!r}: not found in {path.parent}: see `minari list local`, or download it")
    try:
        dataset = minari.load_dataset(dataset_id)
    except (ValueError, KeyError, OSError, AssertionError, AttributeError, TypeError) as error:
        raise L4SError(f"dataset {dataset_id!r}: cannot be read ({error}): write or download it again") from error
    if (path / "data" / MAIN).is_file():
        check_files(path / "data")
    return dataset


def form_of(dataset: Any) -> str:
    """Return the action form (`l4s_gym.forms`) of a dataset (`minari.MinariDataset`)."""
    return str(dataset.storage.metadata.get("form", PACKET))


def check_form(dataset: Any, wanted: str) -> None:
    """Refuse a dataset (`minari.MinariDataset`) of another action form.

    Raises:
        L4SError: It is of another.
    """
    if (form := form_of(dataset)) != wanted:
        raise L4SError(f"dataset {dataset.id!r}: its actions are of the form {form!r}, not {wanted!r}: use another")


def absent_in(note: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the features that an episode's source lacks, from its metadata."""
    return tuple(name for name in str(note.get("absent", "")).split(",") if name)


def read_episodes(dataset: Any) -> Iterator[Trajectory]:
    """Yield the episodes of a dataset one by one as they are read.

    Args:
        dataset: A `minari.MinariDataset` of `create`.

    Raises:
        L4SError: An episode lacks our infos.
    """
    with readable(Path(dataset.spec.data_path)):
        for _, episode in _episodes(dataset):
            yield episode


def _episodes(dataset: Any) -> Iterator[tuple[Any, Trajectory]]:
    """Yield the episodes of a dataset as Minari reads them, and as ours."""
    notes = dataset.storage.get_episode_metadata(dataset.episode_indices)
    form = form_of(dataset)
    features = observed_by(form)
    every = {} if form == PACKET else {"control_interval_ms": dataset.storage.metadata["control_interval_ms"]}
    for data, note in zip(dataset.iterate_episodes(), notes, strict=True):
        if not set(INFOS if form == PACKET else ["components"]) <= set(data.infos or ()):
            raise L4SError(f"dataset {dataset.id!r}: episode {data.id} lacks infos: it is not one of `create`")
        extras = data.infos if form == PACKET else data.infos["components"]
        more: dict[str, Any] = {"extras": {name: extras[name] for name in (EXTRAS if form == PACKET else COMPONENTS)}}
        if form == PACKET:
            more |= {"missing": {MISSING: data.infos["missing"]}, "applied": data.infos["applied_action"][1:]}
        yield (
            data,
            Trajectory(
                observations=data.observations,
                actions=data.actions,
                rewards=data.rewards,
                consecutive=bool(note["consecutive"]),
                source=str(note["source"]),
                absent=absent_in(note),
                about=every | {name: value for name, value in note.items() if name not in _OWN},
                features=features,
                **more,
            ),
        )


def check_schema(dataset: Any) -> None:
    """Raise if the metadata of a dataset (`minari.MinariDataset`) contradicts this version's schema."""
    stored = dataset.storage.metadata
    for name, value in schema_metadata(str(stored.get("reward")), {}, form_of(dataset)).items():
        if stored.get(name) != value:
            raise L4SError(
                f"dataset {dataset.id!r}: {name} is {stored.get(name)!r}, not {value!r}: convert its rows again"
            )


def simulator_in(stored: Mapping[str, Any]) -> str:
    """Return which simulator made a dataset, from its metadata, in the form of `fingerprint.check`."""
    if "simulator" in stored:
        return str(stored["simulator"])
    kwargs = json.loads(stored["env_spec"])["kwargs"] if "env_spec" in stored else {}
    return fingerprint.NONE if "recipe" in stored or "scenario" in kwargs else fingerprint.KERNEL_LOG


def check_simulator(dataset: Any) -> str:
    """Refuse a dataset (`minari.MinariDataset`) of another simulator than the installed one; return its simulator.

    Raises:
        L4SError: The dataset is stale.
    """
    stored = getattr(getattr(dataset, "storage", None), "metadata", None) or {}
    simulator = simulator_in(stored)
    fingerprint.check(f"dataset {getattr(dataset, 'id', '?')!r}", simulator, build_again(stored))
    return simulator


def build_again(stored: Mapping[str, Any]) -> str:
    """Return the remedy for a stale dataset with this metadata."""
    if "recipe" not in stored:
        return "make it again, as it was made"
    return f"build it again: l4s-gym datasets build {stored['recipe']['name']} --size {stored['size']} --overwrite"


def validate(dataset: Any) -> None:
    """Check a dataset: the schema, counts, alignment (T + 1 observations and infos), types, ranges, ends.

    Args:
        dataset: A `minari.MinariDataset`.

    Raises:
        L4SError: The first thing that is wrong.
    """
    for _ in read_valid(dataset):
        pass


def read_valid(dataset: Any) -> Iterator[Trajectory]:
    """Yield the episodes as `read_episodes` does, each after the checks of `validate`."""
    where = f"dataset {dataset.id!r}"
    check_schema(dataset)
    steps, form = 0, form_of(dataset)
    with readable(Path(dataset.spec.data_path)):
        for data, episode in _episodes(dataset):
            place = f"{where}, episode {data.id}"
            for name in ("applied_action",) if form == PACKET else ():
                if len(data.infos[name]) != len(data.actions) + 1:
                    raise L4SError(f"{place}: {name} must have one entry more than there are actions")
            check_episode(episode, place, form)
            truncated = np.arange(len(episode)) == len(episode) - 1
            if data.terminations.any() or not np.array_equal(data.truncations, truncated):
                raise L4SError(f"{place}: must be truncated at its last step, and end nowhere else")
            steps += len(episode)
            yield episode
    if steps != dataset.total_steps:
        raise L4SError(f"{where}: has {steps} steps, but says {dataset.total_steps}: write it again")
