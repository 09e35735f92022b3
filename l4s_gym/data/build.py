"""Datasets from recipes: shard by shard, in parallel, resumable, published as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

from l4s_gym.data import card, minari_io
from l4s_gym.data.files import atomic_write, link_or_copy, locked
from l4s_gym.data.recipes import Recipe, Task, digest, tasks
from l4s_gym.data.storage import Shard, read_shard, shard_name, write_shard
from l4s_gym.errors import L4SError
from l4s_gym.sim.batch import compile_engine

Progress = Callable[[float], None]

SCORE_SEEDS: Final = (0, 1, 2, 3, 4)
REFERENCE: Final = "native:dualpi2_rfc9332"
"""The upper reference score of all datasets, so that normalised scores mean the same everywhere."""


def make_shard(task: Task, folder: Path) -> Shard:
    """Simulate the episodes of a shard and write its file."""
    return write_shard(folder / shard_name(task.shard), task.first, task.runs())


def _shard_bytes(task: Task) -> bytes:
    """A shard as bytes, for workers that may not share our disks."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return (Path(folder) / make_shard(task, Path(folder)).name).read_bytes()


def _on_processes(todo: Sequence[Task], folder: Path, workers: int) -> Iterator[int]:
    if workers == 1 or len(todo) <= 1:
        for task in todo:
            make_shard(task, folder)
            yield task.shard
        return
    compile_engine()  # once, not in each process
    # Not forked: this process may hold threads of the simulator.
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=get_context("spawn")) as pool:
        made = {pool.submit(make_shard, task, folder): task.shard for task in todo}
        try:
            for done in as_completed(made):
                done.result()
                yield made[done]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _on_ray(todo: Sequence[Task], folder: Path, address: str) -> Iterator[int]:
    try:
        import ray
    except ImportError as error:
        raise L4SError(f"ray: cannot be imported ({error}): pip install 'l4s-gym[scale]'") from error
    ours = not ray.is_initialized()
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, SystemExit) as error:  # it exits where nothing answers
        remedy = "start one (`ray start --head`) and give its HOST:PORT, or give `local`"
        raise L4SError(f"ray: no cluster at {address!r} ({error}): {remedy}") from error
    make = ray.remote(_shard_bytes)
    made = {make.remote(task): task.shard for task in todo}
    try:
        while made:
            (done,), _ = ray.wait(list(made), num_returns=1)
            with atomic_write(folder / shard_name(made[done])) as file:
                file.write(ray.get(done))
            yield made.pop(done)
    finally:
        if ours:
            ray.shutdown()


def _finished(folder: Path, todo: Sequence[Task]) -> list[Task]:
    """Shards that an earlier build has completed."""
    done = []
    for task in todo:
        with suppress(OSError, KeyError):
            read_shard(folder / shard_name(task.shard))
            done.append(task)
    return done


def reference_scores(recipe: Recipe, progress: Progress | None = None) -> dict[str, Any]:
    """Returns of the random agent and of native DualPI2 (RFC 9332) where agents are evaluated, over `SCORE_SEEDS`."""
    from l4s_gym.evaluation.harness import evaluate

    scores: dict[str, Any] = {"scenario": recipe.evaluated_on, "reward": "balance", "seeds": list(SCORE_SEEDS)}
    for k, (name, who) in enumerate((("random", "random"), ("native", REFERENCE))):
        results = evaluate(who, recipe.evaluated_on, seeds=SCORE_SEEDS)
        scores[name] = [result.episode_return for result in results]
        if progress is not None:
            progress((k + 1) / 2)
    return scores


def code_permalink() -> str | None:
    """The commit of the code that runs: a link if it has a remote, else its Software Heritage identifier."""

    def git(*args: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit, remote = git("rev-parse", "HEAD"), git("remote", "get-url", "origin")
    except OSError:
        return None
    if not commit:
        return None
    return f"{remote.removesuffix('.git')}/tree/{commit}" if remote.startswith("https://") else f"swh:1:rev:{commit}"


def checksums(folder: Path, dataset_id: str) -> list[str]:
    """Lines of SHA256SUMS for the shards, with paths from the root of Minari's datasets."""
    lines = []
    for path in sorted(folder.glob("shard-*.hdf5")):
        with open(path, "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {dataset_id}/data/{path.name}")
    return lines


def build(
    recipe: Recipe,
    size: str,
    *,
    workers: int | None = None,
    ray: str = "",
    overwrite: bool = False,
    scores: bool = True,
    record: Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """Build a dataset of a recipe, or go on with a build that was stopped.

    Shards are made in a hidden folder beside the dataset's place, each complete or absent; a build of other numbers
    or of another version of the simulator starts anew. The dataset appears when all is there.

    Args:
        recipe: What to build.
        size: `small` or `full`.
        workers: Processes; None: one a core.
        ray: Address of a Ray cluster (or `local`), instead of processes.
        overwrite: Replace the dataset if it is there.
        scores: Whether to measure the reference scores.
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
        raise L4SError(f"dataset {dataset_id!r}: exists already: use it, or give --overwrite")
    staging = target.with_name(f".{target.name}.build")
    staging.mkdir(parents=True, exist_ok=True)
    with locked(staging, f"{staging}: another process builds this dataset: wait for it"):
        _clear(staging, target, digest(recipe, size))
        every = tasks(recipe, size)
        done = _finished(staging, every)
        todo = [task for task in every if task not in done]
        made = _on_ray(todo, staging, ray) if ray else _on_processes(todo, staging, workers or os.cpu_count() or 1)
        for count, _ in enumerate(made, len(done) + 1):
            if progress is not None:
                progress(count / len(every))
        with ThreadPoolExecutor(1) as aside:
            sums = aside.submit(checksums, staging, dataset_id)
            facts = card.facts(recipe, size, staging, reference_scores(recipe) if scores else None)

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
    """Remove what builds left that were killed while they published, and shards of another recipe."""
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
    """Metadata of a built dataset."""
    scores = facts["scores"]
    means = {name: float(np.mean(scores[name])) for name in ("random", "native")} if scores else {}
    return {
        "env_kwargs": {"scenario": (recipe.size(size).scenarios or recipe.scenarios)[0]},
        "eval_kwargs": {"scenario": recipe.evaluated_on, "reward": "balance"},
        "algorithm_name": ", ".join(recipe.behaviour_names()),
        "description": f"{recipe.title}. {recipe.description}",
        "code_permalink": code_permalink(),
        "reward": recipe.reward,
        "ref_min_score": means.get("random"),
        "ref_max_score": means.get("native"),
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
