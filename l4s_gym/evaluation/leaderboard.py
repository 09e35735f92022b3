"""The leaderboard: which experiments are run, which entries are there already, and whether an entry may stand there."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from l4s_gym import shipped
from l4s_gym.agents import AgentSpec, form_of
from l4s_gym.agents.protocol import control_interval_ms
from l4s_gym.data.build import checksum as dataset_checksum
from l4s_gym.data.build import recipe_of, recorded_checksum
from l4s_gym.data.files import atomic_write
from l4s_gym.data.recipes import scenario_of
from l4s_gym.errors import L4SError, unknown
from l4s_gym.evaluation import board, series, sweep
from l4s_gym.evaluation import entry as records
from l4s_gym.evaluation.board import Refusal
from l4s_gym.evaluation.entry import Entry, Experiment, Protocol
from l4s_gym.evaluation.origin import origin
from l4s_gym.evaluation.results import arrow, read_all, write
from l4s_gym.evaluation.series import Series
from l4s_gym.evaluation.statistics import Interval
from l4s_gym.forms import PACKET
from l4s_gym.sim import fingerprint, scenario
from l4s_gym.tables import timeless

REFERENCES: Final = ("random/uniform", "native/dualpi2_rfc9332")
"""Experiments that the scores of all others refer to."""
ERRORS: Final = 5.0
"""On another machine, a mean return that is rerun is to be so many standard errors from the one of the entry."""


def experiments(names: Sequence[str] = (), folder: Path | None = None) -> list[Experiment]:
    """Experiments by name.

    Args:
        names: `<agent>/<variant>`, `<agent>` for all its variants, or a TOML file; none: all of the folder.
        folder: Of experiments; None: those that ship.

    Raises:
        L4SError: There is none of a name.
    """
    place = folder or shipped.folder("benchmarks") / "experiments"
    known = {f"{path.parent.name}/{path.stem}": path for path in sorted(place.glob("*/*.toml"))}
    found: dict[str, Experiment] = {}
    for name in names or known:
        of_agent = [path for each, path in known.items() if each.partition("/")[0] == name]
        paths = of_agent or [known[name] if name in known else Path(name)]
        if not paths[0].is_file():
            raise unknown("experiment", name, [*known, *{each.partition("/")[0] for each in known}])
        for path in paths:
            found[str(path.resolve())] = records.read_experiment(path)
    return list(found.values())


def added(spec: str) -> Experiment:
    """The experiment of somebody's own agent, by its spec."""
    parsed = AgentSpec.parse(spec)
    name, variant = parsed.experiment
    how: dict[str, Any] = {}
    if parsed.native is None:
        with suppress(Exception):  # an agent that cannot be made fails when it runs, and costs its own row
            agent = parsed.make()
            if (form := form_of(agent)) != PACKET:
                how = {"form": form, "control_interval_ms": control_interval_ms(agent)}
            if getattr(agent, "training", {}).get("online"):
                how["trained"] = "online"
    return Experiment(title=spec, agent=spec, name=_slug(name) or "agent", variant=_slug(variant) or "default", **how)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-._")


def datasets(entries: Sequence[Entry]) -> dict[str, str]:
    """Checksums that the datasets of entries should have, as far as they are known here."""
    found = {}
    for name in {name for each in entries for name in each.datasets}:
        known = recorded_checksum(name)
        if known is None:
            try:
                known = dataset_checksum(name)
            except L4SError:
                continue
        found[name] = known
    return found


def check_training(experiment: Experiment, protocol: Protocol | None = None) -> None:
    """Refuse an agent that was trained where it is tested, or over other laws than the one it would be asked over.

    Args:
        experiment: How it was trained.
        protocol: Whose ranges hold, if it has some; None: no ranges.

    Raises:
        L4SError: Its dataset, or where it learned online, is outside of the suite `train`, or of the ranges; or it
            decides about packets, and no behaviour of its dataset has the probabilities that it would see.
    """
    ranges = protocol.ranges if protocol else None
    train = protocol.members("train") if protocol else scenario.suite("train")
    how = experiment.training
    if how is None:
        return
    seen: dict[str, tuple[scenario.Scenario, ...]] = {}
    recipes = {each.dataset: recipe_of(each.dataset) for each in how.every if each.dataset}
    for each in how.every:
        if each.scenarios:
            seen[f"scenarios {each.scenarios!r}"] = scenario.load_all(each.scenarios)
        if recipe := recipes.get(each.dataset):
            names = {*recipe.scenarios, *recipe.small.scenarios, *recipe.full.scenarios}
            seen[f"dataset {each.dataset!r}"] = tuple(scenario_of(name, 0) for name in names)
    for source, members in seen.items():
        for one in members:
            if ranges.outside(one) if ranges else one.name not in train:
                remedy = "train on the suite train only"
                raise L4SError(f"{experiment.id}: {source} has {one.name!r}, which is to be unseen: {remedy}")
    if experiment.form == PACKET and (recipe := recipes.get(how.dataset)):
        for under in {experiment.aqm} if experiment.aqm else {scenario.load(name).aqm for name in train}:
            if under not in recipe.laws:
                known = " or ".join(f'"{law}"' for law in recipe.laws)
                raise L4SError(
                    f"{experiment.id}: dataset {how.dataset!r} has the probabilities of other laws than {under}: "
                    f"give aqm = {known}"
                )


def valid(entries: Sequence[Entry], protocol: Protocol, size: str) -> tuple[list[Entry], list[Refusal]]:
    """The entries that may stand side by side (failed ones too, as rows without figures), and why others may not."""
    good, refused = [], []
    known = datasets(entries)
    for each in entries:
        try:
            if each.size != size:
                raise L4SError(f"{each.id}: size: is {each.size}, not {size}: run it again")
            check_training(each.experiment, protocol)
            if each.failed is None:
                records.validate(each, protocol, known)
            good.append(each)
        except L4SError as error:
            refused.append(Refusal(each.id, str(error).removeprefix(f"{each.id}: ")))
    return good, refused


def fill(
    wanted: Sequence[Experiment], protocol: Protocol, size: str, results: Path, work: Path, **how: Any
) -> tuple[list[Entry], list[Refusal]]:
    """Run the experiments that have no entry yet, and write their entries; those that failed are run once more.

    Args:
        wanted: The experiments.
        protocol: The protocol.
        size: Of the protocol.
        results: Folder of entries, which are only added to.
        work: The work folder of the sweep.
        how: As `sweep.run` takes it.

    Returns:
        All entries of the folder that may stand side by side, and why others may not.

    Raises:
        L4SError: There is an entry of that name already, of another experiment, protocol or version.
    """
    arrow()  # missing, it is told before hours of work
    for experiment in wanted:
        check_training(experiment, protocol)
    there = {each.id: each for each in read_all(results)} if results.is_dir() else {}
    todo = []
    for experiment in wanted:
        old = there.get(experiment.id)
        if old is None or old.failed is not None:
            todo.append(experiment)
            continue
        reasons = [each.reason for each in valid([old], protocol, size)[1]]
        if old.experiment != experiment:
            reasons.append("experiment: is another one")
        if reasons:
            remedy = "entries are not replaced: give another name, move it away, or give another --results"
            raise L4SError(f"{results / old.id}.json: is there already ({reasons[0]}): {remedy}")
    for each in sweep.run(todo, protocol, size, work, **how) if todo else []:
        write(each, results)
    return valid(read_all(results), protocol, size)


class Oracle(Struct, frozen=True):
    """What `benchmarks/studies/tuned/oracle.py` found, as far as the report shows it.

    Attributes:
        size: Of the protocol.
        protocol_digest: `Protocol.digest`.
        simulator: Its fingerprint.
        scores: Suite -> score, and both ends of its interval.
    """

    size: str
    protocol_digest: str
    simulator: str
    scores: dict[str, tuple[float, float | None, float | None]]


def oracle(protocol: Protocol, size: str, say: Callable[[str], None] = print) -> dict[str, Interval]:
    """Scores by suite of the best static setting of DualPI2 for each scenario; empty where none is known.

    Args:
        protocol: The protocol.
        size: Of the protocol.
        say: Told why the scores are left out, if they are of another simulator or protocol.
    """
    path = shipped.folder("benchmarks") / "oracle.json"
    if not path.is_file():
        return {}
    found: Oracle = records.decoded(path, Oracle)
    if found.size != size:
        return {}
    why = fingerprint.reason(found.simulator)
    if found.protocol_digest != protocol.digest(size):
        why = why or "is of another protocol"
    if why:
        say(f"oracle: left out: {why}: run benchmarks/studies/tuned/oracle.py")
        return {}
    return {suite: Interval(*score) for suite, score in found.scores.items()}


def report(
    out: Path,
    entries: Sequence[Entry],
    refused: Sequence[Refusal] = (),
    series: Sequence[Series] = (),
    say: Callable[[str], None] = print,
    oracle: Mapping[str, Interval] = {},
) -> None:
    """Print the board, and write it as Markdown and as a page; `site.write` describes the arguments."""
    from l4s_gym.evaluation import site

    rows = board.rows(entries)
    say(board.brief(rows))
    out.mkdir(parents=True, exist_ok=True)
    text = out / "leaderboard.md"
    with atomic_write(text) as file:
        file.write(board.markdown(rows, entries, refused, oracle).encode())
    say(f"board: {text}")
    say(f"report: {site.write(out, entries, rows, board.comparisons(rows), series, refused, oracle=oracle)}")


def produce(
    wanted: Sequence[Experiment],
    protocol: Protocol,
    size: str,
    out: Path,
    *,
    results: Path | None = None,
    work: Path | None = None,
    jobs: int | None = None,
    ray: str = "",
    say: Callable[[str], None] = print,
    progress: sweep.ShowProgress = sweep.silent,
) -> list[Entry]:
    """Run what is missing, and write board and report.

    Args:
        wanted: Experiments.
        protocol: The protocol.
        size: Of the protocol.
        out: Folder of the report.
        results: Folder of entries; None: in `out`.
        work: The work folder; None: in `out`.
        jobs: Processes.
        ray: Address of a Ray cluster.
        say: Told what was refused or failed, the board, and where it was written.
        progress: Shows how far it is.

    Returns:
        The entries on the board.
    """
    kept, folder = results or out / "entries", work or out / "work"
    entries, refused = fill(wanted, protocol, size, kept, folder, jobs=jobs, ray=ray, progress=progress)
    for refusal in refused:
        say(f"refused: {refusal.name}: {refusal.reason}")
    for each in entries:
        if each.failed is not None:
            say(f"failed: {each.id}: {each.failed.brief}")
    whole = [each for each in entries if each.failed is None]
    runs = series.of_board(whole, protocol, size, kept / "series.json", folder, progress)
    report(out, entries, refused, runs, say, oracle(protocol, size, say))
    return entries


def rerun(
    entry: Entry, protocol: Protocol, work: Path, seed: int | None = None, say: Callable[[str], None] = print
) -> None:
    """Run some cells of an entry again, drawn at random, and compare: on the same machine to the bit.

    On another machine, where a sum may end in another digit and a packet be marked that was not, the mean return in
    each scenario has to be within `ERRORS` standard errors.

    Args:
        entry: Validated.
        protocol: The protocol.
        work: Folder for the trained agents; one that is not there is trained.
        seed: Of the draw; None: another one each time.
        say: Told what is run.

    Raises:
        L4SError: It comes out otherwise.
    """
    rng = random.Random(seed)
    train_seed = rng.choice(entry.experiment.train_seeds)
    experiment = entry.experiment
    if experiment.training is not None:
        how = msgspec.structs.replace(experiment.training, seeds=(train_seed,))
        experiment = msgspec.structs.replace(experiment, training=how)
    place, rows = sweep.one_cell(experiment, protocol, entry.size, work, train_seed, rng, say)
    theirs = {
        row["scenario"]: [r for r in entry.results if (r["suite"], r["scenario"]) == (place, row["scenario"])]
        for row in rows
    }
    same_machine = all(entry.origin.get(name) == origin()[name] for name in ("host", "versions"))
    differ = False
    for name, all_of_it in theirs.items():
        mine = [row for row in rows if row["scenario"] == name]
        seeds = [row["seed"] for row in mine]
        old = [row for row in all_of_it if row["train_seed"] == train_seed and row["seed"] in seeds]
        pairs = zip(mine, old, strict=True)
        other = [new["seed"] for new, was in pairs if timeless(new) != timeless({k: was[k] for k in new})]
        if other and same_machine:
            where = f"{place}, {name}, seed {other[0]}"
            raise L4SError(f"{entry.id}: {where}: comes out otherwise when it is rerun")
        if other:
            _compare(entry.id, f"{place}, {name}", mine, all_of_it)
            differ = True
    say(f"{entry.id}: the same " + (f"within {ERRORS:g} standard errors" if differ else "to the bit"))


def _compare(who: str, where: str, mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> None:
    new, old = (np.array([row["episode_return"] for row in rows]) for rows in (mine, theirs))
    error = float(np.sqrt(np.var(old, ddof=1) / len(new) + np.var(old, ddof=1) / len(old))) if len(old) > 1 else 0.0
    if abs(float(new.mean() - old.mean())) > ERRORS * error + 1e-6 * abs(float(old.mean())):
        found = f"a mean return of {new.mean():.6g}, not {old.mean():.6g} +- {error:.2g}"
        raise L4SError(f"{who}: {where}: comes out otherwise when it is rerun: {found}")
