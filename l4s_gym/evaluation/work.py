"""The pieces of a sweep, as a worker runs them: the training of an agent, and a cell."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import l4s_gym
from l4s_gym.agents import AgentSpec, saved, training
from l4s_gym.agents.protocol import check_form
from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation import harness
from l4s_gym.evaluation.entry import Protocol
from l4s_gym.forms import INTERVAL_MS, PACKET
from l4s_gym.schema import SCHEMA_VERSION
from l4s_gym.sim import fingerprint, jit, scenario, traces
from l4s_gym.tables import checksum

SPREAD: Final = 1.7
"""Scenarios that are decided in one batch: the rate of the fastest by that of the slowest."""
LARGEST: Final = 64
"""Episodes in such a batch."""
_US: Final = {"native": 0.2, "rule": 0.1, "llm": 200.0, "dt": 200.0}
"""Microseconds a packet, roughly: what tells long cells from short ones."""


@dataclass(frozen=True)
class Training:
    """One agent to be trained.

    Attributes:
        learner: Name of the learner.
        dataset: Id of the dataset.
        config: Of the learner, with the seed.
        seed: The seed.
        home: Folder of the agent's folder.
    """

    learner: str
    dataset: str
    config: Mapping[str, Any]
    seed: int
    home: Path

    @property
    def folder(self) -> Path:
        """The agent's folder."""
        return self.home / f"{self.learner}-{self.seed}"

    @property
    def record(self) -> Path:
        """What is written when it is done."""
        return self.home / f"trained-{self.seed}.json"


@dataclass(frozen=True)
class Cell:
    """An agent on scenarios of a suite whose rates are similar, decided for in one batch.

    Attributes:
        agent: The agent or discipline that decides.
        digest: Checksum of it.
        suite: The suite.
        names: Scenarios.
        seeds: Of the episodes.
        agent_seed: Of the agent's draws.
        seconds: Length of an episode.
        reward: Name of the reward.
        decision_interval: The agent is asked at each n-th packet.
        options: Of disciplines, as `Experiment.options`.
        form: The form in which the agent decides.
        control_interval_ms: Length of its control intervals.
        files: Content of the agent's files, for machines that do not share our disks.
    """

    agent: AgentSpec
    digest: str
    suite: str
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    agent_seed: int
    seconds: float
    reward: str
    decision_interval: int
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    form: str = PACKET
    control_interval_ms: float = INTERVAL_MS
    files: Mapping[str, bytes] = field(default_factory=dict)

    @functools.cached_property
    def key(self) -> str:
        """Checksum of all that the results depend on."""
        numbers = [self.seeds, self.agent_seed, self.seconds, self.reward, self.decision_interval]
        numbers += [self.options] if self.options else []
        numbers += [self.form, self.control_interval_ms] if self.form != PACKET else []
        return checksum([self.digest, _simulator(), *map(scenario.digest, self.names), *numbers])

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"{self.suite}: {', '.join(self.names)}"

    def weight(self, kind: str) -> float:
        """How long it takes, roughly, us; kind: `native`, `rule`, or a learner's name."""
        fastest = max(rate_mbps(name) for name in self.names)  # the batch keeps its size until it ends
        seconds = len(self.names) * self.seconds * len(self.seeds)
        packets = fastest * 83.0 * seconds
        if self.form != PACKET:
            return packets * _US["native"] + 1e3 * seconds / self.control_interval_ms * _US.get(kind, 2.0)
        return packets * (_US["native"] + (0.0 if kind == "native" else _US.get(kind, 2.0) / self.decision_interval))


def _simulator() -> str:
    return checksum([l4s_gym.__version__, SCHEMA_VERSION, fingerprint.FINGERPRINT, jit.source_digest()])


def rate_mbps(name: str) -> float:
    """Rate of a scenario's link, Mbit/s; of a trace, the mean."""
    link = scenario.load(name).link
    return traces.load(link.trace).mean_bps * 1e-6 if link.kind == "trace" else link.rate_mbps


def as_run(name: str, seconds: float, options: Mapping[str, Mapping[str, Any]]) -> scenario.Scenario:
    """A scenario with the length that an episode has on the board, and options of disciplines instead of its own."""
    own = {f"options.{aqm}.{option}": value for aqm, table in options.items() for option, value in table.items()}
    return scenario.load(name).replace(horizon_s=seconds, **own)


def batches(protocol: Protocol, size: str, suite: str, most: int = LARGEST) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Scenarios of a suite that are decided for in one batch, and the number of the first: by rate, then by name."""
    names = sorted((n for s, n in protocol.cells(size) if s == suite), key=lambda name: (rate_mbps(name), name))
    seeds = protocol.size(size).seeds
    first = 0
    for k in range(1, len(names) + 1):
        full = (k - first + 1) * seeds > most
        if k == len(names) or full or rate_mbps(names[k]) > SPREAD * rate_mbps(names[first]):
            yield first, tuple(names[first:k])
            first = k


def _one_thread() -> None:
    """Let PyTorch run on one thread: it is faster, and sums in one order."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


def train(job: Training) -> dict[str, Any]:
    """Train an agent, or go on with its training; `traceback` in place of the rest where it fails."""
    try:
        learner = training.learner(job.learner)
        _one_thread()
        resume = (job.folder / training.CHECKPOINT).is_file()
        if not resume and job.folder.exists():
            shutil.rmtree(job.folder)  # of a training that was killed before its first checkpoint
        done = learner.train(job.dataset, dict(job.config), job.folder, resume=resume)
        cost = saved.load(job.folder).cost()
        found = {
            "seed": job.seed,
            "seconds": done["seconds"],
            "parameters": cost["parameters"],
            "trainable_parameters": cost["trainable_parameters"],
            "metrics": done.get("metrics", {}),
            "weights": done.get("weights", ""),
            "peak_memory_bytes": training.peak_memory(),
        }
    except Exception:
        return {"traceback": traceback.format_exc()}
    with atomic_write(job.record) as file:
        file.write(json.dumps(found).encode())
    return found


def evaluate(cell: Cell) -> dict[str, Any]:
    """Results of a cell and the time it took; `traceback` in place of both where it fails."""
    try:
        with _unpacked(cell) as spec:
            chosen = [as_run(name, cell.seconds, cell.options) for name in cell.names]
            decides = spec if spec.native else spec.make()
            if not isinstance(decides, AgentSpec):
                check_form(decides, cell.form)
            _one_thread()
            results = harness.evaluate_many(
                decides,
                chosen,
                seeds=cell.seeds,
                agent_seed=cell.agent_seed,
                reward=cell.reward,
                decision_interval=cell.decision_interval,
                control_interval_ms=None if cell.form == PACKET else cell.control_interval_ms,
                threads=1,
            )
    except Exception:
        return {"traceback": traceback.format_exc()}
    return {"wall_s": results[0].wall_s, "results": [result.as_dict() for result in results]}


@contextmanager
def _unpacked(cell: Cell) -> Iterator[AgentSpec]:
    """The agent, with its files on this machine."""
    if not cell.files:
        yield cell.agent
        return
    with TemporaryDirectory() as folder:
        yield cell.agent.unpack(cell.files, Path(folder))
