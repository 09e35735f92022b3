"""List, build, show, download and upload datasets."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Column, Table

from l4s_gym import shipped
from l4s_gym.cli.arguments import App
from l4s_gym.cli.common import console, progress_bar, say
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET

app = App()
Names = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME [NAME ...]")]
Id = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]
Size = Literal["small", "full"]


def _buildable(folder: Path | None) -> dict[str, tuple[str, str]]:
    """Return recipe and size of each dataset that can be built; empty without a folder of recipes."""
    from l4s_gym.data import recipes

    every = [recipes.load(name, folder) for name in recipes.names(folder)]
    return {recipe.dataset_id(size): (recipe.name, size) for recipe in every for size in recipes.SIZES}


@app.command(name="list")
def list_(
    remote: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[hf://ORG]")] = None,
    recipes: Path | None = None,
) -> None:
    """List datasets: those with a recipe, those on this machine, those of a remote; and which are out of date.

    Args:
        remote: Also list this remote: hf://ORG or gcp://BUCKET; without a value, $MINARI_REMOTE, else hf://l4s-gym.
        recipes: Folder of recipes instead of those of the package.
    """
    from l4s_gym.data import minari_io
    from l4s_gym.data import remote as remotes
    from l4s_gym.sim import fingerprint

    def stale(stored: dict[str, Any]) -> str:
        return "stale" if fingerprint.reason(minari_io.simulator_in(stored)) else ""

    buildable, here = _buildable(recipes), remotes.here()
    if remote is not None and len(remote) > 1:
        raise L4SError("--remote: give one place at most")
    there = {} if remote is None else remotes.listed("".join(remote))
    table = Table(
        Column("dataset", no_wrap=True), "recipe", "steps", "MB", "state", *([] if remote is None else ["remote"])
    )
    for each in [*buildable, *sorted({*here, *there} - set(buildable))]:
        stored = here.get(each)
        cells = ["-", "-", "-"]
        if stored:
            cells = [f"{stored['total_steps']:,}", f"{stored['dataset_size']:,.1f}", stale(stored) or "here"]
        published = [] if remote is None else ["-"]
        if each in there:
            published = [f"{there[each]['total_steps']:,} steps {stale(there[each])}".strip()]
        table.add_row(each, " ".join(buildable.get(each, "-")), *cells, *published)
    console.print(table)


@app.command
def build(
    names: Names,
    size: Size = "small",
    workers: int | None = None,
    ray: str = "",
    overwrite: bool = False,
    record: bool = False,
    recipes: Path | None = None,
) -> None:
    """Build datasets from their recipes; a build that was interrupted continues.

    Args:
        names: Names of recipes, or `all` for every dataset that is not on this machine yet.
        size: small (built in minutes) or full (the published size).
        workers: Number of processes; default: one for each core.
        ray: Build on a Ray cluster: its address, or `local`.
        overwrite: Replace a dataset that exists.
        record: Update card, picture, facts and checksums beside the recipe; in a checkout, or with --recipes.
        recipes: Folder of recipes instead of those of the package.
    """
    from l4s_gym.data import minari_io
    from l4s_gym.data import recipes as recipes_
    from l4s_gym.data import remote as remotes
    from l4s_gym.sim import fingerprint

    if workers is not None and workers < 1:
        raise L4SError(f"--workers {workers}: give 1 or more")
    if record and recipes is None and shipped.checkout() is None:
        raise L4SError("--record: the recipes that ship stay as they are: give --recipes FOLDER")
    if not names:
        raise L4SError(f"datasets build: name at least one of {', '.join(recipes_.names(recipes))}, or all")
    chosen = [recipes_.load(name, recipes) for name in (recipes_.names(recipes) if "all" in names else names)]
    if "all" in names and not overwrite:
        here = {name for name, each in remotes.here().items() if not fingerprint.reason(minari_io.simulator_in(each))}
        chosen = [recipe for recipe in chosen if recipe.dataset_id(size) not in here]
    for recipe in chosen:
        _build(recipe, size, workers, ray, overwrite, recipes_.folder(recipes) / recipe.name if record else None)


def _build(recipe: Any, size: Size, workers: int | None, ray: str, overwrite: bool, record: Path | None) -> None:
    from l4s_gym.data import build as builder
    from l4s_gym.data import minari_io
    from l4s_gym.evaluation.harness import reference_scores

    dataset_id, start = recipe.dataset_id(size), time.perf_counter()
    with progress_bar(f"building {dataset_id}") as show:
        dataset = builder.build(
            recipe,
            size,
            workers=workers,
            ray=ray,
            overwrite=overwrite,
            scores=reference_scores,
            record=record,
            progress=show,
        )
    seconds = max(time.perf_counter() - start, 1e-9)
    folder = minari_io.dataset_folder(dataset_id)
    rate = dataset.total_steps / seconds
    say(f"{dataset_id}: {dataset.total_steps:,} steps in {seconds:.1f} s ({rate:,.0f} steps/s): {folder}")
    if record is not None:
        say(f"{record}: card, picture, facts and checksums are up to date")


@app.command
def show(id: Id, verify: bool = False) -> None:
    """Show a dataset: origin, size, actions, scores, licence.

    Args:
        id: Id of the dataset: l4s/dualpi2/NAME-v0.
        verify: Read all of it: compare the checksums, and check types, ranges and lengths.
    """
    from l4s_gym.data import minari_io
    from l4s_gym.data import remote as remotes

    folder = minari_io.dataset_folder(id)
    if not folder.is_dir():
        raise L4SError(f"dataset {id!r}: is not in {folder.parent}: {_how_to_get(id)}")
    dataset = minari_io.load(id)
    compared = remotes.verify(id) if verify else 0
    table = Table(title=id, show_header=False)
    for name, value in _facts(dataset, folder, compared if verify else None).items():
        table.add_row(name, value)
    console.print(table)


def _how_to_get(dataset_id: str) -> str:
    """Say how to get a dataset."""
    download = f"l4s-gym datasets download {dataset_id} --remote hf://ORG"
    if dataset_id in (buildable := _buildable(None)):
        name, size = buildable[dataset_id]
        return f"`l4s-gym datasets build {name} --size {size}`, or `{download}` where it is published"
    return f"`l4s-gym datasets list` tells those that can be built; `{download}` fetches one that is published"


def _facts(dataset: Any, folder: Path, compared: int | None) -> dict[str, str]:
    """Rows of the table; `compared`: number of verified files, None if nothing was verified."""
    from l4s_gym import schema
    from l4s_gym.data import minari_io
    from l4s_gym.data import remote as remotes
    from l4s_gym.sim import fingerprint

    stored = dataset.storage.metadata
    form = minari_io.form_of(dataset)
    if form == PACKET:
        counts = remotes.count_actions(folder / "data")
        total = max(sum(counts), 1)
        actions = [f"{name} {n:,} ({n / total:.2%})" for name, n in zip(schema.ACTIONS, counts, strict=True)]
    else:
        actions = [*minari_io.action_names(form), f"each {stored['control_interval_ms']:g} ms"]
    scores = [stored.get("ref_min_score"), stored.get("ref_max_score")]
    sums = (folder / remotes.SUMS).exists()
    state = f"{remotes.SUMS}, not compared (--verify)" if sums else "none"
    simulator = minari_io.simulator_in(stored)
    stale = fingerprint.reason(simulator)
    specs = {name: json.loads(stored[name])["kwargs"] for name in ("env_spec", "eval_env_spec") if name in stored}
    rows = {
        "what": stored.get("description"),
        "behaviour": stored.get("algorithm_name"),
        "environment": ", ".join(f"{k}={v}" for k, v in specs.get("env_spec", {}).items()),
        "evaluated on": ", ".join(f"{k}={v}" for k, v in specs.get("eval_env_spec", {}).items()),
        "form": form,
        "episodes": f"{dataset.total_episodes:,}",
        "steps": f"{dataset.total_steps:,}",
        "actions": ", ".join(actions),
        "reward": stored.get("reward"),
        "random, native": "not measured" if None in scores else f"{scores[0]:.2f}, {scores[1]:.2f} (mean returns)",
        "size": f"{stored.get('dataset_size', 0):,.1f} MB",
        "licence": stored.get("licence") or "not stated",
        "made by": stored.get("code_permalink"),
        "checksums": f"{compared} files as in {remotes.SUMS}" if compared else state,
        "content": "valid" if compared is not None else "not checked (--verify)",
        "simulator": f"{stale}: {minari_io.build_again(stored)}" if stale else simulator,
        "folder": str(folder),
    }
    return {name: str(value or "-").strip() for name, value in rows.items()}


@app.command
def download(id: Id, remote: str = "", token: str = "", force: bool = False) -> None:
    """Download a dataset and check it; a damaged or incomplete download changes nothing.

    Args:
        id: l4s/dualpi2/NAME-v0.
        remote: hf://ORG or gcp://BUCKET; default: $MINARI_REMOTE, else hf://l4s-gym (nothing is published there yet).
        token: Access token of the hub, for private datasets; default: that of `hf auth login`.
        force: Replace a dataset that exists.
    """
    from l4s_gym.data import minari_io
    from l4s_gym.data import remote as remotes
    from l4s_gym.sim import fingerprint

    dataset = remotes.download(id, remote, token=token, force=force)
    say(f"{id}: {dataset.total_steps:,} steps, complete and valid: {minari_io.dataset_folder(id)}")
    if stale := fingerprint.reason(minari_io.simulator_in(dataset.storage.metadata)):
        say(f"{id}: {stale}: {minari_io.build_again(dataset.storage.metadata)}")


@app.command
def upload(id: Id, remote: str = "", token: str = "") -> None:
    """Check a dataset and publish it with its card and checksums.

    Args:
        id: l4s/dualpi2/NAME-v0.
        remote: hf://ORG or gcp://BUCKET; $MINARI_REMOTE by default.
        token: Access token of the hub; default: that of `hf auth login`, or $HF_TOKEN.
    """
    from l4s_gym.data import remote as remotes

    remotes.upload(id, remote, token=token)
    say(f"{id}: is published on {remote or os.environ['MINARI_REMOTE']}")
