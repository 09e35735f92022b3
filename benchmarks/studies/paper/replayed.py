"""The paper's way to compare: logged rows, through which an agent jumps; and an agent trained on the pool, as logged.

What the authors do, by their public code: an agent is asked at each row, takes the likeliest action, and at each 10th
or 100th decision jumps to the row of that queue and action whose packet length is nearest to the queue's length (the
mode `nearest` of `l4s_gym.envs.replay`, column `packet_length`), where it also forgets what it saw. Else the next
logged row comes, whatever it decides. "Native" are the logged rows in their order. 10 ms are added to each delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import pool
from figure import Place
from l4s_gym import agents
from l4s_gym.agents.llm.settings import resolved
from l4s_gym.agents.protocol import Agent
from l4s_gym.data.files import sha256
from l4s_gym.data.minari_io import create_from_stream, dataset_folder, datasets_in
from l4s_gym.data.pools import Rows, load_rows
from l4s_gym.data.stream import open_stream
from l4s_gym.envs.replay import ReplaySource
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.entry import Experiment, Training, read_protocol
from l4s_gym.evaluation.harness import QUANTILES
from l4s_gym.evaluation.sweep import Sweep
from l4s_gym.rewards import l4s_llm

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DECISIONS: Final = 3600
"""As many as in the authors' code."""
ADDED_MS: Final = 10.0
"""What is added to each delay."""
MBIT: Final = 1024 * 1034
"""What the authors divide bits by."""
NATIVE: Final = "native"
LLM: Final = "LLM"
ENQUEUE: Final = "always enqueue"
RANDOM: Final = "random"
PUBLISHED: Final = {NATIVE: (0.010, 0.0391, 0.14), LLM: (0.020, 0.0228, 0.07)}
"""Delays of the published comparison, s: median, mean and 95 % quantile."""
_DIGITS: Final = (3, 4, 2)
_STEPS: Final = 400


@dataclass(frozen=True)
class Replay:
    """The rows that somebody came through.

    Attributes:
        who: Who decided.
        every: A jump every so many decisions; 0: none.
        visited: Numbers of the rows (N,).
        records: What is logged there (N,).
        misses: Jumps for which the log has no row of that queue and action.
    """

    who: str
    every: int
    visited: Ints
    records: npt.NDArray[np.void]
    misses: int

    @property
    def label(self) -> str:
        """What it is called in a picture."""
        return f"{self.who} every {self.every}" if self.every else self.who

    @property
    def delay_ms(self) -> Floats:
        """Delays (N,), with what the authors add."""
        return np.asarray(self.records["current_queue_delay"] * 1e-3 + ADDED_MS, np.float64)

    @property
    def throughput(self) -> Floats:
        """What the authors call throughput, Mbit/s (N,): of one packet, during its delay."""
        return np.asarray(self.records["packet_length"] * 8.0 / MBIT / (self.delay_ms * 1e-3), np.float64)

    @property
    def reward(self) -> Floats:
        """The paper's reward (N,)."""
        return reward(self.records)

    def about(self) -> dict[str, Any]:
        """Plain data: how many rows it saw, and the figures of the delay as they were published."""
        found = {"who": self.who, "every": self.every, "decisions": len(self.visited)}
        found |= {"rows": len(np.unique(self.visited)), "misses": self.misses}
        seconds = self.delay_ms * 1e-3
        figures = (np.median(seconds), seconds.mean(), np.quantile(seconds, 0.95))
        return found | dict(zip(("median_s", "mean_s", "p95_s"), map(float, figures), strict=True))


def reward(records: npt.NDArray[np.void]) -> Floats:
    """The paper's reward of packets (T,)."""
    return np.asarray(l4s_llm(records["packet_length"], records["current_queue_delay"]), np.float64)


def published_as(about: dict[str, Any]) -> str | None:
    """Of whom these figures were published, to their last digit; None: of nobody."""
    found = (about["median_s"], about["mean_s"], about["p95_s"])
    for who, values in PUBLISHED.items():
        if all(round(x, digits) == value for x, digits, value in zip(found, _DIGITS, values, strict=True)):
            return who
    return None


def spread(values: Floats, digits: int = 4) -> list[float]:
    """Quantiles of values (N,) at `harness.QUANTILES`."""
    return [float(f"{x:.{digits}g}") for x in np.quantile(values, QUANTILES)]


def coarse(values: Floats, group: int = 10) -> list[float]:
    """Means of groups of neighbours (N,) -> (N // group,): what a line shows of so many."""
    n = len(values) // group * group
    return [float(f"{x:.4g}") for x in values[:n].reshape(-1, group).mean(1)]


def walk(rows: Rows, who: str, agent: Agent | None, every: int, decisions: int = DECISIONS) -> Replay:
    """Go through logged rows.

    Args:
        rows: The rows.
        who: What the result is called.
        agent: Who decides; None: the logged rows in their order.
        every: A jump every so many decisions.
        decisions: At most so many.
    """
    if agent is None:
        first = np.arange(min(decisions, len(rows)))
        return Replay(who, 0, first, rows.records[first], 0)
    source = ReplaySource(rows, "nearest", column="packet_length", decision_interval=every, observe="as_logged")
    visited: list[int] = []
    earned = np.zeros(1)
    agent.reset(1, 0)
    while len(visited) < decisions:
        visited.append(source.index)
        action = agent.act(source.observation()[None], earned)[0]
        earned = np.array([source.reward()])
        jumps = source.decisions % every == 0
        if source.step(action):
            break
        if jumps:
            agent.reset(1, len(visited))
    index = np.array(visited, np.int64)
    return Replay(who, every, index, rows.records[index], source.no_candidate)


# -- what is replayed, and the agent that was trained on the pool


def logged_rows() -> Rows:
    """The authors' consecutive rows, with the fields that their training pool has."""
    rows = load_rows(pool.consecutive())
    return as_pool(rows)


def as_pool(rows: Rows) -> Rows:
    """Rows without what the training pool lacks: to the agent it is 0, as it was in training."""
    return Rows(rows.records, rows.present - {"total_drops"}, rows.source)


def backbone_of(llm: str) -> tuple[str, ...]:
    """Settings of a backbone beside those of the benchmark's agents, which have that of GPT-2."""
    return () if llm == "gpt2" else pool.BACKBONES[llm]


def experiment(dataset: str, quick: bool, llm: str) -> Experiment:
    """How the agent of the pool is trained: on all of it, as the authors did."""
    settings = ["train.allow_gaps=true", "train.held_out=0.0", f"train.steps={2 if quick else _STEPS}"]
    settings += backbone_of(llm)
    how = Training("llm", dataset, small=True, settings=tuple(settings), seeds=(0,))
    return Experiment("LLM agent, trained on the pool as logged", "rule=argmax,fixed=1", 1, how, "llm", "pool")


def pool_agent(place: Place) -> tuple[Agent, dict[str, Any]]:
    """The agent of the pool, trained if it is not in the work folder; and what is to be said of it.

    Raises:
        L4SError: The pool is not here, or the training fails.
    """
    path = pool.training()
    dataset = f"l4s/dualpi2/pool-as-logged-{sha256(path)[:8]}-v0"
    sweep = Sweep(read_protocol(), "quick", place.work.resolve(), jobs=0, ray="")
    how = experiment(dataset, place.quick, place.llm)
    with datasets_in(place.work / "datasets"):
        if not dataset_folder(dataset).exists():
            text = "The authors' training pool, as logged"
            stream = open_stream(path)
            create_from_stream(dataset, stream, as_logged=True, algorithm_name="dualpi2_freebsd", description=text)
        sweep.need_datasets([how], place.progress)
        sweep.run([how], place.progress, evaluate=False)
    if how.id in sweep.failed:
        raise L4SError(f"{how.id}: {sweep.failed[how.id].brief}: see there")
    (job,) = sweep.trainings(how)
    agent = agents.make(f"{job.folder},{how.agent}")
    made = sweep.done[str(job.record)]
    about: dict[str, Any] = {
        "file": path.name,
        "sha256": sha256(path),
        "config": {name: table for name, table in resolved(job.config).items() if name in ("model", "train")},
        "agent": how.agent,
    }
    return agent, about | {key: made[key] for key in ("weights", "seconds", "parameters", "seed")}


def replays(rows: Rows, agent: Agent, intervals: Sequence[int], quick: bool) -> list[Replay]:
    """Native, then for each interval the LLM, who always enqueues, and who draws."""
    decisions = 400 if quick else DECISIONS
    found = [walk(rows, NATIVE, None, 0, decisions)]
    for every in intervals:
        for who, decides in ((LLM, agent), (ENQUEUE, agents.make("enqueue")), (RANDOM, agents.make("random"))):
            found.append(walk(rows, who, decides, every, decisions))
    return found
