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

import json
import os
import random
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import l4s_gym
from l4s_gym import parallel
from l4s_gym.agents import AgentSpec, training
from l4s_gym.data.build import ensure
from l4s_gym.data.files import atomic_write
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import work
from l4s_gym.evaluation.entry import FORMAT, Entry, Experiment, Failure, Protocol, TrainedAgent, environment
from l4s_gym.evaluation.harness import reference_scores
from l4s_gym.evaluation.origin import origin
from l4s_gym.evaluation.work import Cell, Training
from l4s_gym.sim import fingerprint
from l4s_gym.sim.batch import compile_engine
from l4s_gym.tables import checksum

ShowProgress = Callable[[str], AbstractContextManager[Callable[[float], None]]]


class Sweep:
    """The state of a sweep; see `run`."""

    def __init__(self, protocol: Protocol, size: str, work: Path, *, jobs: int, ray: str) -> None:
        self.protocol, self.size, self.work = protocol, size, work
        self.jobs, self.ray = jobs, ray
        self.datasets: dict[str, str] = {}
        self.failed: dict[str, Failure] = {}  # by experiment
        self.done: dict[str, Any] = {}  # by key of a cell, or path of a training's record
        self.plan: dict[str, tuple[list[Training], list[tuple[int | None, Cell]]]] = {}  # by experiment

    def need_datasets(self, experiments: Sequence[Experiment], progress: ShowProgress) -> None:
        """Find or build the datasets, and note their checksums.

        Raises:
            L4SError: One is stale.
        """
        for experiment in experiments:
            if experiment.training is None or experiment.training.dataset in self.datasets:
                continue
            name = experiment.training.dataset
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
        how = experiment.training
        if how is None:
            return []
        jobs = []
        plain = training.load_config(how.learner, small=how.small, settings=how.settings)
        names = ("train.seed", "model.backbone.seed") if "train" in plain else ("seed",)
        data = [how.dataset, self.datasets[how.dataset]]
        about = [how.learner, *data, plain, l4s_gym.__version__, fingerprint.FINGERPRINT]
        home = self.work / "agents" / checksum(about)[:16]
        for seed in how.seeds:
            settings = [*how.settings, *(f"{name}={seed}" for name in names)]
            config = training.load_config(how.learner, small=how.small, settings=settings)
            jobs.append(Training(how.learner, how.dataset, config, seed, home))
        return jobs

    def cells(self, experiment: Experiment, train_seed: int | None) -> list[Cell]:
        """The cells of an experiment, whose trainings are planned, and one of its train seeds."""
        if train_seed is None:
            agent = AgentSpec.parse(experiment.agent)
        else:
            (job,) = (job for job in self.plan[experiment.id][0] if job.seed == train_seed)
            agent = AgentSpec.of_folder(job.folder, experiment.agent, job.learner)
        digest, files = agent.digest(), agent.pack() if self.ray else {}
        chosen = self.protocol.size(self.size)
        found = []
        for suite in chosen.suites:
            seeds = tuple(self.protocol.seeds(suite, self.size))
            most = 1 if experiment.native else work.LARGEST
            for first, names in work.batches(self.protocol, self.size, suite, most):
                found.append(
                    Cell(
                        agent=agent,
                        digest=digest,
                        suite=suite,
                        names=names,
                        seeds=seeds,
                        agent_seed=seeds[0] + first * len(seeds),
                        seconds=chosen.seconds,
                        reward=self.protocol.reward,
                        decision_interval=experiment.decision_interval,
                        options=experiment.options,
                        form=experiment.form,
                        control_interval_ms=experiment.control_interval_ms,
                        files=files,
                    )
                )
        return found

    def train(self, experiments: Sequence[Experiment], progress: ShowProgress) -> None:
        """Train what is not trained yet."""
        owners: dict[Path, list[Experiment]] = {}
        jobs: dict[Path, Training] = {}
        for experiment in self._alive(experiments):
            with self._blamed(experiment, "training"):
                self.plan[experiment.id] = self.trainings(experiment), []
            for job in self.plan.get(experiment.id, ([], []))[0]:
                jobs[job.record] = job
                owners.setdefault(job.record, []).append(experiment)
        todo = []
        for path, job in jobs.items():
            if (found := _read(path)) is not None:
                self.done[str(path)] = found
            else:
                job.home.mkdir(parents=True, exist_ok=True)
                todo.append(job)
        if not todo:
            return
        with progress(f"training {len(todo)} agents") as show:
            for count, (number, made) in enumerate(parallel.on_processes(work.train, todo, self.jobs, fresh=True), 1):
                job = todo[number]
                result = _result(made)
                if "traceback" in result:
                    for experiment in owners[job.record]:
                        self._fail(experiment, f"training, seed {job.seed}", result["traceback"])
                self.done[str(job.record)] = result
                show(count / len(todo))

    def evaluate(self, experiments: Sequence[Experiment], progress: ShowProgress) -> None:
        """Run the cells that are not there yet, long ones first."""
        (self.work / "cells").mkdir(parents=True, exist_ok=True)
        owners: dict[str, list[Experiment]] = {}
        wanted: dict[str, tuple[float, Cell]] = {}
        for experiment in self._alive(experiments):
            kind = "native" if experiment.native else experiment.training.learner if experiment.training else "rule"
            with self._blamed(experiment, "agent"):
                planned = self.plan[experiment.id][1]
                for train_seed in experiment.train_seeds:
                    planned += [(train_seed, cell) for cell in self.cells(experiment, train_seed)]
                for _, cell in planned:
                    wanted[cell.key] = cell.weight(kind), cell
                    owners.setdefault(cell.key, []).append(experiment)
        todo: deque[tuple[str, float, Cell]] = deque()
        for key, (weight, cell) in sorted(wanted.items(), key=lambda item: -item[1][0]):
            if (found := _read(self._path(key))) is not None:
                self.done[key] = found
            else:
                todo.append((key, weight, cell))
        if not todo:
            return
        total, finished = sum(weight for _, weight, _ in todo), 0.0
        each = [cell for _, _, cell in todo]
        compile_engine()  # once, not in each process
        if self.ray:
            outcomes = parallel.on_ray(work.evaluate, each, self.ray)
        else:
            outcomes = parallel.on_processes(work.evaluate, each, self.jobs)
        with progress(f"running {len(todo)} cells") as show:
            for number, made in outcomes:
                key, weight, cell = todo[number]
                result = _result(made)
                if "traceback" in result:
                    for experiment in owners[key]:
                        self._fail(experiment, cell.place, result["traceback"])
                else:
                    content = json.dumps(result).encode()
                    with atomic_write(self._path(key)) as file:
                        file.write(content)
                    self.done[key] = json.loads(content)
                finished += weight
                show(finished / total)

    def entry(self, experiment: Experiment) -> Entry:
        """What an experiment came to."""
        jobs, planned = self.plan.get(experiment.id, ([], []))
        made = [self.done[str(job.record)] for job in jobs]
        trained = [TrainedAgent(**each) for each in made if "traceback" not in each]
        rows: list[dict[str, Any]] = []
        wall_s = sum(each.seconds for each in trained)
        for train_seed, cell in planned:
            found = self.done.get(cell.key, {"results": [], "wall_s": 0.0})
            wall_s += found["wall_s"]
            rows += [{"suite": cell.suite, "train_seed": train_seed, **row} for row in found["results"]]
        order = {cell: k for k, cell in enumerate(self.protocol.cells(self.size))}
        rows.sort(key=lambda row: (row["train_seed"] or 0, order[row["suite"], row["scenario"]], row["seed"]))
        how = experiment.training
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
            datasets={how.dataset: self.datasets[how.dataset]} if how and how.dataset in self.datasets else {},
            origin=origin(),
            training=tuple(trained),
            results=tuple(rows),
            failed=self.failed.get(experiment.id),
            wall_s=wall_s,
        )

    def _path(self, key: str) -> Path:
        return self.work / "cells" / f"{key}.json"

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
    sweep.train([experiment], silent)
    if experiment.id in sweep.failed:
        raise L4SError(f"{experiment.id}: {sweep.failed[experiment.id].brief}")
    cell = rng.choice(sweep.cells(experiment, train_seed))
    say(f"{experiment.id}: runs {cell.place} again")
    made = work.evaluate(cell)
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
        ray: Address of a Ray cluster, or `local`: the cells run there (trainings run here).
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
    sweep.train(experiments, progress)
    sweep.evaluate(experiments, progress)
    return [sweep.entry(experiment) for experiment in experiments]
