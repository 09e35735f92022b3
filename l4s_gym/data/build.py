"""Datasets built from recipes: shard by shard, in parallel, resumable, published as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from l4s_gym import parallel, rewards, shipped
from l4s_gym.data import card, minari_io, recipes
from l4s_gym.data.files import atomic_write, link_or_copy, locked, sha256
from l4s_gym.data.recipes import Recipe, Task, digest, tasks
from l4s_gym.data.storage import Shard, read_shard, shard_name, write_shard
from l4s_gym.errors import L4SError, unknown
from l4s_gym.sim import fingerprint
from l4s_gym.sim.batch import compile_engine

Progress = Callable[[float], None]
Scores = Callable[[Recipe], dict[str, Any]]


def make_shard(task: Task, folder: Path) -> Shard:
    """Simulate the episodes of a shard and write its file."""
    return write_shard(folder / shard_name(task.shard), task.first, task.runs(), task.recipe.form)


def _shard_bytes(task: Task) -> bytes:
    """Return a shard as bytes, for workers that may not share our disks."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return (Path(folder) / make_shard(task, Path(folder)).name).read_bytes()


def _make(todo: Sequence[Task], folder: Path, workers: int, ray: str) -> Iterator[None]:
    """Make shards, each of which is then complete in the folder."""
    done: Iterator[parallel.Done[Any]]
    if ray:
        done = parallel.on_ray(_shard_bytes, todo, ray)
    elif workers == 1 or len(todo) <= 1:
        done = ((number, make_shard(task, folder)) for number, task in enumerate(todo))
    else:
        compile_engine()  # once, not in each process
        done = parallel.on_processes(partial(make_shard, folder=folder), todo, workers)
    for number, made in done:
        if isinstance(made, BaseException):
            raise made
        if ray:
            with atomic_write(folder / shard_name(todo[number].shard)) as file:
                file.write(made)
        yield


def _finished(folder: Path, todo: Sequence[Task]) -> list[Task]:
    """List the shards that an earlier build has completed."""
    done = []
    for task in todo:
        with suppress(OSError, KeyError):
            read_shard(folder / shard_name(task.shard))
            done.append(task)
    return done


def code_permalink() -> str | None:
    """Return the commit of the checkout that runs: a link if it has a remote, else its Software Heritage identifier."""
    here = shipped.checkout()
    if here is None:
        return None

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit, remote = git("rev-parse", "HEAD"), git("remote", "get-url", "origin")
    except OSError:
        return None
    if not commit:
        return None
    return f"{remote.removesuffix('.git')}/tree/{commit}" if remote.startswith("https://") else f"swh:1:rev:{commit}"


def checksums(folder: Path, dataset_id: str, pattern: str = "shard-*.hdf5") -> list[str]:
    """Return the lines of SHA256SUMS for the shards, with paths from the root of Minari's datasets."""
    return [f"{sha256(path)}  {dataset_id}/data/{path.name}" for path in sorted(folder.glob(pattern))]


def build(
    recipe: Recipe,
    size: str,
    *,
    workers: int | None = None,
    ray: str = "",
    overwrite: bool = False,
    scores: Scores | None = None,
    record: Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """Build a dataset of a recipe, or go on with a build that was stopped.

    Shards are made in a hidden folder beside the dataset's place, each complete or absent; a build with other numbers
    or of another version of the simulator starts anew. The dataset appears when all shards are complete.

    Args:
        recipe: What to build.
        size: `small` or `full`.
        workers: Processes; None: one a core.
        ray: Address of a Ray cluster (or `local`), instead of processes.
        overwrite: Replace the dataset if it is there.
        scores: Measures the reference scores (`l4s_gym.evaluation.harness.reference_scores`); None: they are not.
        record: Folder of the recipe, whose card, picture, facts and checksums are brought up to date.
        progress: Called with the share of the shards that are made.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        L4SError: The dataset is there already, or another process builds it.
    """
    card.check_pictures()
    dataset_id = recipe.dataset_id(size)
    target = minari_io.dataset_folder(dataset_id)
    if target.exists() and not overwrite:
        minari_io.check_simulator(minari_io.load(dataset_id))
        raise L4SError(f"dataset {dataset_id!r}: exists already: use it, or give --overwrite")
    staging = target.with_name(f".{target.name}.build")
    staging.mkdir(parents=True, exist_ok=True)
    with locked(staging, f"{staging}: another process builds this dataset: wait for it"):
        _clear(staging, target, digest(recipe, size))
        every = tasks(recipe, size)
        done = _finished(staging, every)
        todo = [task for task in every if task not in done]
        for count, _ in enumerate(_make(todo, staging, workers or os.cpu_count() or 1, ray), len(done) + 1):
            if progress is not None:
                progress(count / len(every))
        with ThreadPoolExecutor(1) as aside:
            sums = aside.submit(checksums, staging, dataset_id)
            facts = card.facts(recipe, size, staging, scores(recipe) if scores is not None else None)

        def fill(data: Path) -> list[Shard]:
            for task in every:
                link_or_copy(staging / shard_name(task.shard), data / shard_name(task.shard))
            card.write(data.parent, recipe, {size: facts})
            (data.parent / "SHA256SUMS").write_text("\n".join(sums.result()) + "\n")
            return [read_shard(data / shard_name(task.shard)) for task in every]

        made_dataset = minari_io.publish(dataset_id, fill, overwrite=overwrite, **_about(recipe, size, facts))
        shutil.rmtree(staging)
        if record is not None:
            card.record(record, recipe, size, facts, sums.result())
    return made_dataset


def _clear(staging: Path, target: Path, key: str) -> None:
    """Remove what killed builds left while they published, and shards of another recipe."""
    for path in target.parent.glob(f".{target.name}.*"):
        if path != staging:
            shutil.rmtree(path)
    mark = staging / "digest"
    if not mark.exists() or mark.read_text() != key:
        for path in staging.iterdir():
            if path.name != "lock":
                path.unlink()
        with atomic_write(mark) as file:
            file.write(key.encode())
    for path in staging.glob(".*.tmp"):
        path.unlink()


def _about(recipe: Recipe, size: str, facts: dict[str, Any]) -> minari_io.About:
    """Return the metadata of a built dataset."""
    scores = facts["scores"]
    means = {name: float(np.mean(scores[name])) for name in ("random", "native")} if scores else {}
    return {
        "form": recipe.form,
        "env_kwargs": recipe.environment((recipe.size(size).scenarios or recipe.scenarios)[0]),
        "eval_kwargs": {**recipe.environment(recipe.evaluated_on), "reward": rewards.DEFAULT},
        "algorithm_name": ", ".join(recipe.behaviour_names()),
        "description": f"{recipe.title}. {recipe.description}",
        "code_permalink": code_permalink(),
        "reward": recipe.reward,
        "ref_min_score": means.get("random"),
        "ref_max_score": means.get("native"),
        "simulator": facts["simulator"],
        "metadata": {
            "recipe": json.loads(json.dumps(_plain(recipe))),
            "size": size,
            "reference_scores": scores,
            "licence": card.LICENCE,
        },
    }


def _plain(recipe: Recipe) -> Any:
    import msgspec

    return msgspec.to_builtins(recipe)


def _of_id(dataset_id: str) -> tuple[Recipe, str]:
    """Return the recipe and size that make a dataset.

    Raises:
        L4SError: None does.
    """
    known: dict[str, tuple[Recipe, str]] = {}
    for name in recipes.names():
        recipe = recipes.load(name)
        known |= {recipe.dataset_id(size): (recipe, size) for size in recipes.SIZES}
    if dataset_id not in known:
        raise unknown("dataset", dataset_id, list(known))
    return known[dataset_id]


def recipe_of(dataset_id: str) -> Recipe | None:
    """Return the recipe that makes a dataset; None: no recipe makes it."""
    try:
        return _of_id(dataset_id)[0]
    except L4SError:
        return None


def checksum(dataset_id: str) -> str:
    """Return SHA-256 of the list of a dataset's files with their own checksums."""
    folder = minari_io.dataset_folder(dataset_id) / "data"
    lines = checksums(folder, dataset_id) or checksums(folder, dataset_id, "*.hdf5")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def recorded_checksum(dataset_id: str) -> str | None:
    """Return the value of `checksum` recorded by the recipes; None: not recorded, or for an older simulator."""
    try:
        recipe, size = _of_id(dataset_id)
    except L4SError:
        return None
    folder = recipes.folder() / recipe.name
    sums, facts = folder / "SHA256SUMS", folder / card.FACTS
    measured = json.loads(facts.read_text()).get(size, {}) if facts.is_file() else {}
    if fingerprint.reason(card.simulator_in(measured)) or not sums.is_file():
        return None
    lines = sums.read_text().splitlines()
    own = sorted((line for line in lines if line.split()[-1].startswith(f"{dataset_id}/")), key=lambda x: x.split()[-1])
    return hashlib.sha256("\n".join(own).encode()).hexdigest() if own else None


def ensure(dataset_id: str, **options: Any) -> str:
    """Build a dataset if it is not on this machine, with these options of `build`; return its checksum.

    Raises:
        L4SError: It is neither here nor made by a recipe, or it is here and stale.
    """
    if minari_io.dataset_folder(dataset_id).exists():
        minari_io.check_simulator(minari_io.load(dataset_id))
    else:
        recipe, size = _of_id(dataset_id)
        build(recipe, size, **options)
    return checksum(dataset_id)
