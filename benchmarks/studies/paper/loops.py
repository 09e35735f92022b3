"""The closed loop beside the paper's replays: native DualPI2, the LLM agents and others on the testbed's traffic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

import l4s_gym
from figure import Place
from jobs import kept
from l4s_gym import agents
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import leaderboard, series, sweep
from l4s_gym.evaluation.cells import METRICS
from l4s_gym.evaluation.entry import Entry, Experiment, Protocol, Size, read_protocol
from l4s_gym.evaluation.native import simulate
from l4s_gym.forms import PACKET
from l4s_gym.sim.measure import CLASSES
from l4s_gym.sim.scenario import load
from l4s_gym.tables import checksum
from replayed import LLM, NATIVE, backbone_of, reward

Results = Sequence[dict[str, Any]]

TESTBED: Final = "l4s-llm-testbed"
PRAGUE: Final = "l4s-llm-testbed-prague"
INTERVALS: Final = (10, 100)
_EXPERIMENTS: Final = {0: "native/dualpi2_freebsd", **{every: f"llm/gpt2-every{every}" for every in INTERVALS}}
_SCALABLE: Final = ("dctcp", "prague")


@dataclass(frozen=True)
class Loop:
    """One who decides on one scenario, in closed loop.

    Attributes:
        label: Name in pictures.
        entry: What its experiment came to.
        scenario: Name of the scenario.
        spec: Of who decides.
        seconds: Length of an episode.
    """

    label: str
    entry: Entry
    scenario: str
    spec: str
    seconds: float

    @property
    def results(self) -> Results:
        """Of each seed, `harness.Result` as plain data."""
        return [result for result in self.entry.results if result["scenario"] == self.scenario]

    @property
    def every(self) -> int:
        """The agent is asked at each so many packets; 0: nobody but the native discipline."""
        how = self.entry.experiment
        return 0 if how.native else how.decision_interval

    @property
    def form(self) -> str:
        """In which it decides."""
        return self.entry.experiment.form

    def values(self, measure: Callable[[dict[str, Any]], Any]) -> npt.NDArray[np.float64]:
        """A figure of each seed (n,)."""
        return np.array([measure(result) for result in self.results], np.float64)

    def decided(self) -> float:
        """Share of the packets that the agent decided on; all where it says how the law decides."""
        if self.form != PACKET:
            return 1.0
        offered = self.values(lambda r: sum(c["offered"] for c in r["classes"].values()))
        return float((self.values(lambda r: r["decisions"]) / offered).mean()) if self.every else 0.0

    def line(self, step_ms: float) -> series.Series:
        """Time series of the first seed."""
        chosen = load(self.scenario).replace(horizon_s=self.seconds)
        seed = self.results[0]["seed"]
        return series.record(
            self.spec, chosen, seed, name=self.label, decision_interval=max(self.every, 1), step_ms=step_ms
        )

    def rewards(self, work: Path) -> npt.NDArray[np.float64]:
        """Mean of the paper's reward over all packets, of each seed (n,); only of who decides about packets.

        They are kept in the work folder: an agent that decides otherwise has other returns.
        """
        about = [self.spec, self.scenario, self.seconds, self.values(RETURN).tolist(), l4s_gym.__version__]
        return kept(work / "paper" / f"rewards-{checksum(about)[:16]}.npy", self._rewards)

    def _rewards(self) -> npt.NDArray[np.float64]:
        found = []
        for result in self.results:
            agent = agents.make(self.spec) if self.every else None
            chosen = load(self.scenario).replace(horizon_s=self.seconds)
            run = simulate(chosen, seed=result["seed"], agent=agent, decision_interval=max(self.every, 1), log=True)
            found.append(float(reward(run.records).mean()))
        return np.array(found)


def delay(queue: str, name: str) -> Callable[[dict[str, Any]], Any]:
    """A delay of a result, ms."""
    return lambda result: result["delay_ms"][queue][name]


def goodput(queue: str) -> Callable[[dict[str, Any]], float]:
    """Goodput of the Classic or of the L4S flows of a result, Mbit/s."""

    def get(result: dict[str, Any]) -> float:
        kinds = [source.kind for source in load(result["scenario"]).sources for _ in range(source.count)]
        wanted = [(kind in _SCALABLE) == (queue == CLASSES[1]) for kind in kinds]
        return float(sum(rate for rate, want in zip(result["goodput_mbps"], wanted, strict=True) if want))

    return get


def utilisation(result: dict[str, Any]) -> float:
    """Utilisation of the link, %."""
    return 100.0 * float(result["utilisation"])


RETURN: Final = METRICS["episode_return"]


def protocol(quick: bool) -> Protocol:
    """The benchmark's, on the testbed's two scenarios alone, in episodes of full length."""
    size = Size(2.0 if quick else 60.0, 2 if quick else 10, ("test",), (TESTBED, PRAGUE))
    return msgspec.structs.replace(read_protocol(), quick=size)


def experiment(every: int, quick: bool, llm: str = "gpt2") -> Experiment:
    """An experiment of the benchmark, with one train seed and a backbone of `pool.BACKBONES`; 0: native."""
    (found,) = leaderboard.experiments([_EXPERIMENTS[every]])
    if found.training is None:
        return found
    few = ("train.steps=2", "train.eval_steps=100", "train.eval_every=2") if quick else ()
    settings = (*found.training.settings, *backbone_of(llm), *few)
    how = msgspec.structs.replace(found.training, seeds=(0,), settings=settings)
    return msgspec.structs.replace(found, training=how, variant=f"{llm}-every{every}")


def other(text: str) -> Experiment:
    """The experiment of NAME=SPEC.

    Raises:
        L4SError: It has no such form.
    """
    name, equals, spec = text.partition("=")
    if not equals or not spec:
        raise L4SError(f"--agents {text}: give NAME=SPEC, such as onestep=runs/onestep")
    return msgspec.structs.replace(leaderboard.added(spec), name=name, variant="given")


def run(place: Place, scenario: str, intervals: Sequence[int] = INTERVALS) -> list[Loop]:
    """Native DualPI2, the LLM agent at each interval, and others; what is in the work folder is not run again.

    Raises:
        L4SError: One of them fails.
    """
    rules = protocol(place.quick)
    wanted = {NATIVE: experiment(0, place.quick)}
    wanted |= {f"{LLM} every {every}": experiment(every, place.quick, place.llm) for every in intervals}
    wanted |= {each.name: each for each in map(other, place.agents)}
    entries = sweep.run(list(wanted.values()), rules, "quick", place.work, jobs=0, progress=place.progress)
    return [_loop(label, each, scenario, rules, place) for label, each in zip(wanted, entries, strict=True)]


def _loop(label: str, each: Entry, scenario: str, rules: Protocol, place: Place) -> Loop:
    if each.failed is not None:
        raise L4SError(f"{each.id}: {each.failed.brief}: correct it, and make the figure again")
    spec = series.spec_of(each, rules, place.work) or ""
    return Loop(label, each, scenario, spec, rules.quick.seconds)
