"""From experiments to entries: datasets, trainings, and cells, which are what runs at once and is kept when it is done.

Everything lies in a work folder under names that tell its content apart, so that a sweep that was killed goes on where
it was, and two experiments share what they have in common.

| in the work folder | what it is |
|---|---|
| `agents/<checksum>/<learner>-<seed>` | a trained agent, or its checkpoint |
| `agents/<checksum>/trained-<seed>.json` | what its training took, once it is done |
| `cells/<checksum>.json` | results of an agent in some scenarios of a suite |
"""

from __future__ import annotations

import itertools
import json
import operator
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

import l4s_gym
from l4s_gym import parallel
from l4s_gym.agents import AgentSpec, training
from l4s_gym.data.build import ensure
from l4s_gym.data.files import atomic_write
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import entry as records
from l4s_gym.evaluation import work
from l4s_gym.evaluation.entry import FORMAT, Entry, Experiment, Failure, Protocol, TrainedAgent, environment
from l4s_gym.evaluation.harness import reference_scores
from l4s_gym.evaluation.origin import origin
from l4s_gym.evaluation.work import Cell, Job, Training
from l4s_gym.sim import fingerprint
from l4s_gym.sim.batch import compile_engine
from l4s_gym.sim.scenario import digest, load_all
from l4s_gym.tables import checksum

ShowProgress = Callable[[str], AbstractContextManager[Callable[[float], None]]]


@dataclass(eq=False)
class Part:
    """What an experiment has of one of its trainings.

    Attributes:
        experiment: The experiment.
        job: The training; None: it has none.
        cells: The cells of its agent.
    """

    experiment: Experiment
    job: Training | None
    cells: list[Cell] = field(default_factory=list)

    @property
    def train_seed(self) -> int | None:
        """Seed of the training."""
        return None if self.job is None else self.job.seed

    def know(self) -> None:
        """Note the digest of the agent, which is there now."""
        digest = self.cells[0].agent.digest()
        self.cells = [replace(cell, digest=digest) for cell in self.cells]


class Sweep:
    """The state of a sweep; see `run`."""

    def __init__(self, protocol: Protocol, size: str, work: Path, *, jobs: int, ray: str) -> None:
        self.protocol, self.size, self.work = protocol, size, work
        self.jobs, self.ray = jobs, ray
        self.datasets: dict[str, str] = {}
        self.failed: dict[str, Failure] = {}  # by experiment
        self.owners: dict[str, list[Experiment]] = {}  # by key of a training or cell
        self.done: dict[str, Any] = {}  # by key of a training or cell
        self.plan: dict[str, list[Part]] = {}  # by experiment

    def need_datasets(self, experiments: Sequence[Experiment], progress: ShowProgress) -> None:
        """Find or build the datasets, and note their checksums.

        Raises:
            L4SError: One is stale.
        """
        wanted = [(each, how.dataset) for each in experiments if each.training for how in each.training.every]
        for experiment, name in wanted:
            if not name or name in self.datasets:
                continue
            try:
                with progress(f"dataset {name}") as show:
                    self.datasets[name] = ensure(
                        name, workers=max(self.jobs, 1), ray=self.ray, scores=reference_scores, progress=show
                    )
            except fingerprint.StaleError:
                raise  # it fails nobody: nothing is to be run before it is built again
            except Exception:
                self.failed[experiment.id] = Failure(f"dataset {name}", traceback.format_exc())

    def trainings(self, experiment: Experiment) -> list[Training]:
        """The trainings of an experiment."""
        return [] if experiment.training is None else self._trainings(experiment.training)

    def _trainings(self, how: records.Training) -> list[Training]:
        """Trainings, each after the one of its teacher."""
        jobs = []
        teachers: list[Training] = []
        if isinstance(how.teacher, records.Training):
            teachers = self._trainings(msgspec.structs.replace(how.teacher, seeds=how.seeds))
        plain = training.load_config(how.learner, small=how.small, settings=how.settings)
        names = ("train.seed", "model.backbone.seed") if "train" in plain else ("seed",)
        data = self.datasets[how.dataset] if how.dataset else ""
        about = [how.learner, how.dataset, data, plain, l4s_gym.__version__, fingerprint.FINGERPRINT]
        about += [how.scenarios, *map(digest, load_all(how.scenarios))] if how.scenarios else []
        about += [teachers[0].home.name] if teachers else []
        home = self.work / "agents" / checksum(about)[:16]
        for seed, teacher in itertools.zip_longest(how.seeds, teachers):
            settings = [*how.settings, *(f"{name}={seed}" for name in names)]
            config = training.load_config(how.learner, small=how.small, settings=settings)
            jobs.append(Training(how.learner, how.dataset, data, config, seed, home, how.scenarios, teacher))
        return jobs

    def parts(self, experiment: Experiment) -> list[Part]:
        """The trainings of an experiment and their cells, whose agents need not be there yet."""
        chosen, found = self.protocol.size(self.size), []
        jobs: list[Training | None] = [*self.trainings(experiment)]
        for job in jobs or [None]:
            if job is None:
                agent = AgentSpec.parse(experiment.agent)
            else:
                agent = AgentSpec.of_folder(job.folder, experiment.agent, job.learner)
            part, kind = Part(experiment, job), work.kind_of(agent, experiment.form)
            for suite in chosen.suites:
                batches = work.batches(
                    self.protocol, self.size, suite, kind, experiment.decision_interval, experiment.interval_ms
                )
                for first, names, seeds in batches:
                    part.cells.append(
                        Cell(
                            agent=agent,
                            digest="",
                            kind=kind,
                            suite=suite,
                            names=names,
                            seeds=seeds,
                            agent_seed=self.protocol.first_seed[suite] + first,
                            seconds=chosen.seconds,
                            reward=self.protocol.reward,
                            decision_interval=experiment.decision_interval,
                            options=experiment.options,
                            form=experiment.form,
                            control_interval_ms=experiment.interval_ms,
                            aqm=experiment.aqm,
                        )
                    )
            found.append(part)
        return found

    def run(self, experiments: Sequence[Experiment], progress: ShowProgress, *, evaluate: bool = True) -> None:
        """Train, and with `evaluate` run the cells, as far as it is not done: trainings first, long ones first.

        The cells of an agent are added when it is trained, a student when its teacher is.
        """
        for experiment in self._alive(experiments):
            with self._blamed(experiment, "planning"):
                self.plan[experiment.id] = self.parts(experiment)
        parts = [part for planned in self.plan.values() for part in planned]
        todo, taught = self._taught(
            self._missing((part.experiment, part.job) for part in parts if part.job is not None)
        )
        trained = [part for part in parts if part.job is None or part.job.key in self.done]
        waiting = [part for part in parts if part not in trained] if evaluate else []
        todo += self._ready(trained if evaluate else [])
        left = total = sum(job.weight for job in [*todo, *taught, *(cell for part in waiting for cell in part.cells)])
        if not todo:
            return
        with progress(f"running {len(todo)} trainings and cells, and the cells of agents to be trained") as show:
            for number, made in self._results(todo):
                job, result = todo[number], _result(made)
                left -= job.weight
                if "traceback" in result:
                    for experiment in self.owners[job.key]:
                        self._fail(experiment, job.place, result["traceback"])
                else:
                    self.done[job.key] = self._kept(job, result)
                ready = [part for part in waiting if part.job == job]
                cells = self._ready(ready if job.key in self.done else [])
                left += sum(cell.weight for cell in cells)
                left -= sum(cell.weight for part in ready for cell in part.cells)
                todo += [each for each in taught if each.teacher == job and job.key in self.done] + cells
                show(1.0 - left / total)

    def _taught(self, jobs: Iterable[Job]) -> tuple[list[Job], list[Training]]:
        """What of some jobs can be begun, with the teachers to be trained; and the students of these."""
        students = [job for job in jobs if isinstance(job, Training) and job.teacher is not None]
        owned = ((owner, job.teacher) for job in students for owner in self.owners[job.key] if job.teacher)
        todo = [job for job in jobs if job not in students] + self._missing(owned)
        waiting = [job for job in students if job.teacher and job.teacher.key not in self.done]
        return todo + [job for job in students if job not in waiting], waiting

    def _results(self, todo: Sequence[Job]) -> Iterator[parallel.Done[dict[str, Any]]]:
        """Run what is to be done, which may grow."""
        if self.ray:
            parcel = operator.attrgetter("parcel")
            return parallel.on_ray(work.run, todo, self.ray, parcel=parcel, fresh=work.is_training, key=work.turn)
        compile_engine()  # once, not in each process
        return parallel.on_processes(work.run, todo, self.jobs, fresh=work.is_training, key=work.turn)

    def _ready(self, parts: Iterable[Part]) -> list[Job]:
        """The cells to be run of agents that are there."""
        wanted: list[tuple[Experiment, Job]] = []
        for part in parts:
            if part.experiment.id not in self.failed:
                with self._blamed(part.experiment, "agent"):
                    part.know()
                    wanted += [(part.experiment, cell) for cell in part.cells]
        return self._missing(wanted)

    def _missing(self, wanted: Iterable[tuple[Experiment, Job]]) -> list[Job]:
        """What of it is neither done nor to be done already."""
        new: list[Job] = []
        for experiment, job in wanted:
            owners = self.owners.setdefault(job.key, [])
            owners.append(experiment)
            if len(owners) > 1:
                continue
            if (found := _read(self._path(job))) is not None:
                self.done[job.key] = found
            else:
                new.append(job)
        return new

    def _kept(self, job: Job, result: dict[str, Any]) -> Any:
        """Keep a result, and return it as it is read back."""
        if files := result.pop("files", None):  # of a training on another machine
            assert isinstance(job, Training)
            shutil.rmtree(job.folder, ignore_errors=True)  # of one that was begun here
            work.unpack(files, job.folder)
        path, content = self._path(job), json.dumps(result).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
        return json.loads(content)

    def entry(self, experiment: Experiment) -> Entry:
        """What an experiment came to."""
        parts = self.plan.get(experiment.id, [])
        trained = [TrainedAgent(**self.done[p.job.key]) for p in parts if p.job is not None and p.job.key in self.done]
        rows: list[dict[str, Any]] = []
        wall_s = sum(each.seconds for each in trained)
        for part in parts if all(p.job is None or p.job.key in self.done for p in parts) else []:
            for cell in part.cells:
                found = self.done.get(cell.key, {"results": [], "wall_s": 0.0})
                wall_s += found["wall_s"]
                about = {"suite": cell.suite, "train_seed": part.train_seed}
                rows += [{**about, **row} for row in found["results"]]
        order = {cell: k for k, cell in enumerate(self.protocol.cells(self.size))}
        rows.sort(key=lambda row: (row["train_seed"] or 0, order[row["suite"], row["scenario"]], row["seed"]))
        names = [how.dataset for how in experiment.training.every] if experiment.training else []
        return Entry(
            format=FORMAT,
            agent=experiment.name,
            variant=experiment.variant,
            title=experiment.title,
            experiment=experiment,
            size=self.size,  # type: ignore[arg-type]  # checked by the protocol
            protocol=self.protocol.version,
            protocol_digest=self.protocol.digest(self.size),
            environment=environment([name for _, name in self.protocol.cells(self.size)]),
            datasets={name: self.datasets[name] for name in names if name in self.datasets},
            origin=origin(),
            training=tuple(trained),
            results=tuple(rows),
            failed=self.failed.get(experiment.id),
            wall_s=wall_s,
        )

    def _path(self, job: Job) -> Path:
        return job.record if isinstance(job, Training) else self.work / "cells" / f"{job.key}.json"

    def _alive(self, experiments: Iterable[Experiment]) -> list[Experiment]:
        return [experiment for experiment in experiments if experiment.id not in self.failed]

    def _fail(self, experiment: Experiment, where: str, text: str) -> None:
        if experiment.id not in self.failed or where < self.failed[experiment.id].where:
            self.failed[experiment.id] = Failure(where, text)

    @contextmanager
    def _blamed(self, experiment: Experiment, where: str) -> Iterator[None]:
        """An error in the block is this experiment's own, but for agents that are stale."""
        try:
            yield
        except fingerprint.StaleError:
            raise
        except Exception:
            self._fail(experiment, where, traceback.format_exc())


def _read(path: Path) -> Any:
    """A result that is there, or None."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _result(made: dict[str, Any] | BaseException) -> dict[str, Any]:
    """What a worker returned; that it died is a failure too, that somebody pressed Ctrl-C is not."""
    if isinstance(made, KeyboardInterrupt):
        raise made
    return {"traceback": f"{type(made).__name__}: {made}"} if isinstance(made, BaseException) else made


def one_cell(
    experiment: Experiment,
    protocol: Protocol,
    size: str,
    work_folder: Path,
    train_seed: int | None,
    rng: random.Random,
    say: Callable[[str], None],
) -> tuple[str, list[dict[str, Any]]]:
    """Run one cell of an experiment, drawn at random, whatever is in the work folder of it; its suite and results.

    Raises:
        L4SError: It fails.
    """
    sweep = Sweep(protocol, size, work_folder.resolve(), jobs=0, ray="")
    sweep.need_datasets([experiment], silent)
    sweep.run([experiment], silent, evaluate=False)
    if experiment.id in sweep.failed:
        raise L4SError(f"{experiment.id}: {sweep.failed[experiment.id].brief}")
    (cells,) = (part.cells for part in sweep.plan[experiment.id] if part.train_seed == train_seed)
    cell = rng.choice(cells)
    say(f"{experiment.id}: runs {cell.place} again")
    made = work.run(cell)
    if "traceback" in made:
        raise L4SError(f"{experiment.id}: {Failure(cell.place, made['traceback']).brief}")
    return cell.suite, json.loads(json.dumps(made["results"]))


@contextmanager
def silent(_: str) -> Iterator[Callable[[float], None]]:
    """Shows nothing."""
    yield lambda share: None


def run(
    experiments: Sequence[Experiment],
    protocol: Protocol,
    size: str,
    work: Path,
    *,
    jobs: int | None = None,
    ray: str = "",
    progress: ShowProgress = silent,
) -> list[Entry]:
    """Run experiments, or go on with a sweep that was stopped.

    A training or agent that fails costs its own entry only (`Entry.failed`). Where it runs, in how many processes and
    after how many interruptions changes nothing but the fields in `l4s_gym.tables.TIMES`.

    Args:
        experiments: What is run.
        protocol: What is the same for all.
        size: Of the protocol.
        work: The work folder.
        jobs: Processes; None: one a core; 0: in this process.
        ray: Address of a Ray cluster, or `local`: trainings and cells run there.
        progress: Shows how far it is.

    Returns:
        An entry for each experiment.
    """
    ids = [experiment.id for experiment in experiments]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise L4SError(f"experiments: {min(twice)} is there twice: give one of them another name")
    protocol.size(size)
    sweep = Sweep(protocol, size, work.resolve(), jobs=(os.cpu_count() or 1) if jobs is None else jobs, ray=ray)
    sweep.need_datasets(experiments, progress)
    sweep.run(experiments, progress)
    return [sweep.entry(experiment) for experiment in experiments]
