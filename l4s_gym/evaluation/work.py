"""The pieces of a sweep, as a worker runs them: the training of an agent, and a cell."""

from __future__ import annotations

import functools
import math
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import l4s_gym
from l4s_gym import parallel
from l4s_gym.agents import AgentSpec, saved, training
from l4s_gym.agents.protocol import check_form
from l4s_gym.agents.registry import KINDS
from l4s_gym.data import minari_io
from l4s_gym.data.files import atomic_folder, locked
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness
from l4s_gym.evaluation.entry import Protocol
from l4s_gym.forms import PACKET
from l4s_gym.schema import SCHEMA_VERSION
from l4s_gym.sim import fingerprint, jit, scenario, traces
from l4s_gym.tables import checksum, option_paths

SPREAD: Final = 1.7
"""Scenarios that are decided in one batch: the rate of the fastest by that of the slowest."""
LARGEST: Final = 64
"""Episodes in such a batch."""
LONGEST_S: Final = 300.0
"""How long a cell should last at most, s, as `Cost` has it."""


@dataclass(frozen=True)
class Cost:
    """What a decision takes on one core, roughly, beside the simulation (`benchmarks/studies/schedule` measures it).

    It tells long cells from short ones. The last digit of an agent that is asked from Python may depend on what is in
    its batch, so this is a constant of the package, and not measured where a sweep runs.

    Attributes:
        call_us: For a batch of any size, us: 0 where the engine decides.
        episode_us: For each of its episodes, us.
        training_s: A training, s.
    """

    call_us: float = 0.0
    episode_us: float = 0.0
    training_s: float = 0.0


PACKET_US: Final = 0.2
"""The simulation of a packet with its native law, us."""
PACKETS: Final = 83.0
"""In a second, by Mbit/s of the link."""
COSTS: Final = {
    "native": Cost(),
    "rule": Cost(episode_us=0.1),
    "network": Cost(episode_us=3.2, training_s=80.0),
    "dt": Cost(2900.0, 490.0, 40.0),
    "llm": Cost(300.0, 110.0, 200.0),
    "asked": Cost(100.0, 10.0, 80.0),
}
"""By kind of agent. Learners of this package that are not listed are `network`s in the engine; others are `asked`."""


@dataclass(frozen=True)
class Training:
    """One agent to be trained.

    Attributes:
        learner: Name of the learner.
        dataset: Id of the dataset; "": it needs none.
        data: Checksum of the dataset.
        config: Of the learner, with the seed.
        seed: The seed.
        home: Folder of the agent's folder.
        scenarios: In which an online learner learns.
        teacher: The training of the agent that teaches it; None: it has none.
    """

    learner: str
    dataset: str
    data: str
    config: Mapping[str, Any]
    seed: int
    home: Path
    scenarios: str = ""
    teacher: Training | None = None

    @property
    def folder(self) -> Path:
        """The agent's folder."""
        return self.home / f"{self.learner}-{self.seed}"

    @property
    def record(self) -> Path:
        """What is written when it is done."""
        return self.home / f"trained-{self.seed}.json"

    @property
    def key(self) -> str:
        """What tells it from others."""
        return str(self.record)

    @property
    def place(self) -> str:
        """Which it is, in words."""
        return f"training, seed {self.seed}"

    @property
    def weight(self) -> float:
        """How long it takes, roughly, s."""
        return COSTS[kind_of(AgentSpec.of_folder(self.folder, kind=self.learner))].training_s

    @property
    def parcel(self) -> parallel.Parcel:
        """The files of the dataset, or of the teacher."""
        if self.teacher is not None:
            teacher = self.teacher.folder
            return f"agent {AgentSpec.of_folder(teacher).digest()}", lambda: pack(teacher)
        if not self.dataset:
            return "no dataset", dict
        folder = minari_io.dataset_folder(self.dataset)
        return f"dataset {self.data}", lambda: pack(folder)


def _simulator() -> str:
    return checksum([l4s_gym.__version__, SCHEMA_VERSION, fingerprint.FINGERPRINT, jit.source_digest()])


@dataclass(frozen=True)
class Cell:
    """An agent on scenarios of a suite whose rates are similar, decided for in one batch.

    Attributes:
        agent: The agent or discipline that decides.
        digest: Checksum of it; "" while it is not trained.
        kind: Of the agent, in `COSTS`.
        suite: The suite.
        names: Scenarios.
        seeds: Of the episodes in each of them.
        agent_seed: Of the agent's draws in the first episode.
        seconds: Length of an episode.
        reward: Name of the reward.
        decision_interval: The agent is asked at each n-th packet.
        options: Of disciplines, as `Experiment.options`.
        form: The form in which the agent decides.
        control_interval_ms: Length of its control intervals; None: it decides about packets.
        aqm: As `Experiment.aqm`.
        simulator: What else the results depend on: versions and sources.
    """

    agent: AgentSpec
    digest: str
    kind: str
    suite: str
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    agent_seed: int
    seconds: float
    reward: str
    decision_interval: int
    options: scenario.OptionTables = field(default_factory=dict)
    form: str = PACKET
    control_interval_ms: float | None = None
    aqm: str = ""
    simulator: str = field(default_factory=_simulator)

    @functools.cached_property
    def key(self) -> str:
        """Checksum of all that the results depend on."""
        numbers = [self.seeds, self.agent_seed, self.seconds, self.reward, self.decision_interval]
        numbers += [self.options] if self.options else []
        numbers += [self.form, self.control_interval_ms] if self.form != PACKET else []
        numbers += [self.aqm] if self.aqm else []
        return checksum([self.digest, self.simulator, *map(scenario.digest, self.names), *numbers])

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"{self.suite}: {', '.join(self.names)}"

    @property
    def weight(self) -> float:
        """How long it takes, roughly, s."""
        fastest = max(rate_mbps(name) for name in self.names)  # the batch keeps its size until it ends
        every = packets_between(fastest, self.decision_interval, self.control_interval_ms)
        return lasts_s(self.kind, fastest, self.seconds, every, len(self.names) * len(self.seeds))

    @property
    def parcel(self) -> parallel.Parcel:
        """The files of the agent."""
        return f"agent {self.digest}", self.agent.pack


Job = Training | Cell


def is_training(job: Job) -> bool:
    """Whether it is one: its process is not used again, so that the memory it took is its own."""
    return isinstance(job, Training)


def turn(job: Job) -> tuple[bool, float]:
    """What is run first has the least: trainings, and the longest."""
    return not is_training(job), -job.weight


def kind_of(agent: AgentSpec, form: str = PACKET) -> str:
    """Which of `COSTS` an agent has that decides in a form; of control intervals, the engine decides about none.

    Raises:
        L4SError: It is a saved agent that cannot be read.
    """
    kind: str = agent.form
    if agent.path is not None and agent.form == "saved":
        kind = agent.name or saved.read(agent.path).kind
    kind = kind if kind in COSTS else "network" if kind in KINDS and ":" not in kind else "asked"
    return kind if form == PACKET or COSTS[kind].call_us else "asked"


def packets_between(rate_mbps: float, decision_interval: int, control_interval_ms: float | None) -> float:
    """Packets between two decisions, roughly."""
    return decision_interval if control_interval_ms is None else 1e-3 * PACKETS * rate_mbps * control_interval_ms


def lasts_s(kind: str, rate_mbps: float, seconds: float, every: float, episodes: int) -> float:
    """How long some episodes take that are decided in one batch, at each `every`-th packet, roughly, s."""
    cost = COSTS[kind]
    decisions = PACKETS * rate_mbps * seconds / every
    return 1e-6 * decisions * (cost.call_us + episodes * (cost.episode_us + PACKET_US * every))


def rate_mbps(name: str) -> float:
    """Rate of a scenario's link, Mbit/s; of a trace, the mean."""
    link = scenario.load(name).link
    return traces.load(link.trace).mean_bps * 1e-6 if link.kind == "trace" else link.rate_mbps


def as_run(name: str, seconds: float, options: scenario.OptionTables) -> scenario.Scenario:
    """A scenario with the length that an episode has on the board, and options of disciplines instead of its own."""
    return scenario.load(name).replace(horizon_s=seconds, **option_paths(options))


def batches(
    protocol: Protocol,
    size: str,
    suite: str,
    kind: str,
    decision_interval: int = 1,
    control_interval_ms: float | None = None,
) -> Iterator[tuple[int, tuple[str, ...], tuple[int, ...]]]:
    """The cells of an agent in a suite: number of the first episode, scenarios by rate and name, and seeds.

    Where the engine decides, an episode costs the same alone: a cell is one scenario. An agent that is asked from
    Python decides for scenarios of similar rates at once, up to `LARGEST` episodes, as a decision is much cheaper so. A
    cell that would last more than `LONGEST_S` has fewer episodes, down to one; but where an agent is asked not so few
    that the calls cost more than what they do for the episodes.
    """
    cost, seconds = COSTS[kind], protocol.size(size).seconds
    seeds = tuple(protocol.seeds(suite, size))
    names = sorted((n for s, n in protocol.cells(size) if s == suite), key=lambda name: (rate_mbps(name), name))

    def most(name: str) -> int:
        """Episodes in the batch of a scenario."""
        every = packets_between(rate_mbps(name), decision_interval, control_interval_ms)
        fixed, each = (lasts_s(kind, rate_mbps(name), seconds, every, n) for n in (0, 1))
        fits = int((LONGEST_S - fixed) / (each - fixed))
        useful = math.ceil(cost.call_us / cost.episode_us) if cost.call_us else 1
        return min(max(fits, useful), LARGEST if cost.call_us else len(seeds))

    first = 0
    for k in range(1, len(names) + 1):
        full = k == len(names) or (k - first + 1) * len(seeds) > most(names[k])
        if full or rate_mbps(names[k]) > SPREAD * rate_mbps(names[first]):
            part = min(most(names[k - 1]), len(seeds))
            for i in range(0, len(seeds), part):
                yield first * len(seeds) + i, tuple(names[first:k]), seeds[i : i + part]
            first = k


def _one_thread() -> None:
    """Let PyTorch run on one thread: it is faster, and sums in one order."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


def run(job: Job, files: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """Train an agent, or run a cell; `traceback` in place of what came out where it fails.

    Args:
        job: What to do.
        files: Of `job.parcel`, where this machine may not share the disks of the one that asks.

    Returns:
        Of a cell `results` and `wall_s`; of a training what its record says, and with `files` given the agent's files.
    """
    try:
        if isinstance(job, Cell):
            return evaluate(job, files)
        return train(job) if files is None else _train_away(job, files)
    except Exception:
        return {"traceback": traceback.format_exc()}


def train(job: Training) -> dict[str, Any]:
    """Train an agent, or go on with its training; what its record says."""
    learner = training.learner(job.learner)
    _one_thread()
    resume = (job.folder / training.CHECKPOINT).is_file()
    if not resume and job.folder.exists():
        shutil.rmtree(job.folder)  # of a training that was killed before its first checkpoint
    source, more = training.sources(job.learner, job.dataset, job.scenarios)
    taught = {"teacher": str(job.teacher.folder)} if job.teacher else {}
    done = learner.train(source, {**job.config, **taught}, job.folder, resume=resume, **more)
    cost = saved.load(job.folder).cost()
    return {
        "seed": job.seed,
        "seconds": done["seconds"],
        "parameters": cost["parameters"],
        "trainable_parameters": cost["trainable_parameters"],
        "metrics": done.get("metrics", {}),
        "weights": done.get("weights", ""),
        "peak_memory_bytes": training.peak_memory(),
    }


def _train_away(job: Training, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Train on a machine of a cluster: in its cache, where an interrupted training is gone on with."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "l4s-gym"
    data = cache / "datasets" / job.data
    away = replace(job, home=cache / "trainings" / f"{job.home.name}-{job.seed}")
    away.home.mkdir(parents=True, exist_ok=True)
    try:
        with locked(away.home, f"{away.home}: another process trains this agent: wait for it"):
            with minari_io.datasets_in(data):
                if job.dataset:
                    unpack(files, minari_io.dataset_folder(job.dataset))
                if job.teacher:
                    teacher = replace(job.teacher, home=away.home / "teacher")
                    unpack(files, teacher.folder)
                    away = replace(away, teacher=teacher)
                found = train(away)
            found["files"] = pack(away.folder)
            shutil.rmtree(away.home)
    except KeyboardInterrupt:  # the machine is shut down: the cluster is to take it for a dead process
        os._exit(1)
    return found


def evaluate(cell: Cell, files: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """Results of a cell and the time it took; `files` of the agent, where its own paths are of another machine."""
    if cell.simulator != _simulator():
        raise L4SError("this machine has another version of l4s-gym than the one that asks: install the same on all")
    with TemporaryDirectory() as folder:
        spec = cell.agent.unpack(files, Path(folder)) if files else cell.agent
        chosen = [as_run(name, cell.seconds, cell.options) for name in cell.names]
        decides = spec if spec.native else spec.make()
        if not isinstance(decides, AgentSpec):
            check_form(decides, cell.form, cell.control_interval_ms)
        _one_thread()
        results = harness.evaluate_many(
            decides,
            chosen,
            seeds=cell.seeds,
            agent_seed=cell.agent_seed,
            aqm=cell.aqm or None,
            reward=cell.reward,
            decision_interval=cell.decision_interval,
            control_interval_ms=cell.control_interval_ms,
            threads=1,
        )
    return {"wall_s": results[0].wall_s, "results": [result.as_dict() for result in results]}


def pack(folder: Path) -> dict[str, bytes]:
    """Content of all files of a folder, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Make a folder of `pack`, if it is not there."""
    if folder.exists():
        return
    try:
        with atomic_folder(folder, overwrite=False) as new:
            for name, content in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content)
    except L4SError:
        if not folder.exists():  # else another process made it first
            raise
