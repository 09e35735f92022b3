"""Decision logs of the simulator: a native run of a scenario, as records, and as an episode with its rewards.

A run of the testbed's discipline can be simulated again for the probabilities behind its decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from l4s_gym.data.behaviour import action_probabilities
from l4s_gym.data.logs import Records
from l4s_gym.data.steps import REWARD, STEP, StepMaker, Steps
from l4s_gym.data.trajectory import Floats, Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.rewards import DEFAULT
from l4s_gym.schema import BY_NAME, RECORD
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario, load

Progress = Callable[[float], None]

LOG_ROWS: Final = 1 << 14
"""Rows that the engine holds at a time: few, to stay in the processor's cache, but more than the packets in any queue
of a scenario whose discipline decides when they leave."""
_REPORTS: Final = 100
AQM: Final = "dualpi2_freebsd"
"""The discipline of the testbed's kernel, whose rule is `behaviour`."""


@dataclass(frozen=True)
class Behaviour:
    """The policy of a simulated run.

    Attributes:
        aqm: Discipline; None: the scenario's.
        explore: Share of the packets for which one of the three actions is drawn evenly instead.
    """

    aqm: str | None = None
    explore: float = 0.0


def _run(
    scenario: Scenario, behaviour: Behaviour, seed: int, reward: str, progress: Progress | None
) -> Iterator[tuple[Records, npt.NDArray[np.float64]]]:
    """Yield the log as it grows, and the reward from the start to each arrival.

    At the end comes one more pair, with no record and the reward to the end of the run.
    """
    batch = Batch(scenario, aqm=behaviour.aqm, explore=behaviour.explore, reward=reward, log_rows=LOG_ROWS)
    batch.reset(0, seeding.np_random(seed)[0])
    step_ns = max(round(scenario.horizon_s * 1e9 / _REPORTS), 1)
    if progress is not None:
        batch.stop_at(0, step_ns)
    # Where packets are decided at dequeue, rows of those still queued at the end have no decision.
    status, complete = layout.RUNNING, batch.discipline_of(0).decide_at_dequeue is None
    while status not in (layout.TERMINATED, layout.TRUNCATED):
        status = batch.advance_one()
        if status == layout.LOG_FULL:
            yield batch.drain(0, everything=complete)
        elif status == layout.STOPPED and progress is not None:
            now_ns = int(batch.env["now_ns"][0])
            progress(now_ns * 1e-9 / scenario.horizon_s)
            batch.stop_at(0, now_ns + step_ns)
    yield batch.drain(0, everything=complete)
    yield np.zeros(0, RECORD), batch.env["taken"].copy()
    if progress is not None:
        progress(1.0)


def simulate_blocks(
    scenario: str | Path | Scenario,
    aqm: str | None = None,
    seed: int = 0,
    *,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> Iterator[Records]:
    """Run a scenario with its queue discipline in control, and yield the log as it grows.

    Args:
        scenario: Name, path of a TOML file, or scenario.
        aqm: Discipline; None: the scenario's.
        seed: As in `reset(seed=)` of the environment: the same run.
        seconds: Length of the run; None: the scenario's horizon.
        progress: Called with the share of the run that is done, some hundred times.

    Yields:
        Records (T,) in the order of arrival, at most `LOG_ROWS` at a time; one row per packet offered.

    Raises:
        L4SError: Unknown scenario or discipline, or a queue outgrew the log.
    """
    chosen = load(scenario)
    if seconds is not None:
        chosen = chosen.replace(horizon_s=seconds)
    for records, _ in _run(chosen, Behaviour(aqm), seed, DEFAULT, progress):
        yield records


def simulate_log(
    scenario: str | Path | Scenario,
    aqm: str | None = None,
    seed: int = 0,
    *,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> Records:
    """Return the whole log of `simulate_blocks`, with the same arguments: records (T,)."""
    blocks = simulate_blocks(scenario, aqm, seed, seconds=seconds, progress=progress)
    return np.concatenate([np.zeros(0, RECORD), *blocks])


class SimulatedRun:
    """A simulated run in its stored form: one step a packet, with the environment's reward between two arrivals.

    Args:
        scenario: What to simulate; its `horizon_s` is the length of the run.
        behaviour: The policy that decides.
        seed: As in `reset(seed=)` of the environment: without exploration, the same run.
        reward: Name of the reward.
    """

    def __init__(self, scenario: Scenario, behaviour: Behaviour, seed: int, reward: str = DEFAULT) -> None:
        self._scenario, self._behaviour, self._seed, self._reward = scenario, behaviour, seed, reward

    @property
    def about(self) -> Mapping[str, Any]:
        """Attributes of the episode."""
        return {
            "scenario": self._scenario.name,
            "aqm": self._behaviour.aqm or self._scenario.aqm,
            "explore": self._behaviour.explore,
            "seed": self._seed,
            "seconds": self._scenario.horizon_s,
            "consecutive": True,
            "source": "simulated",
            "absent": "",
        }

    def records(self) -> Iterator[Records]:
        """Yield its log (T,) in order, as it grows."""
        for records, _ in _run(self._scenario, self._behaviour, self._seed, DEFAULT, None):
            yield records

    def blocks(self) -> Iterator[Steps]:
        """Yield rows `steps.STEP` in order; the reward of a step is earned until the next arrival."""
        maker = StepMaker(frozenset(BY_NAME), source=self._scenario.name)
        engine_reward = DEFAULT if self._reward == REWARD else self._reward
        held, before = np.zeros(0, STEP), 0.0
        for records, earned in _run(self._scenario, self._behaviour, self._seed, engine_reward, None):
            if len(held) and len(earned):  # the reward of a step is known when the next packet has arrived
                if self._reward != REWARD:
                    held["reward"] = earned[0] - before
                yield held
            if len(records):
                rewards = None if self._reward == REWARD else np.diff(earned, append=np.nan)
                steps = maker.make(records, rewards)
                held, before = steps[-1:], float(earned[-1])
                yield steps[:-1]


def episode_probabilities(episode: Trajectory) -> Floats:
    """Return the probabilities of the decisions of a simulated episode, from a second simulation of it.

    Args:
        episode: A complete one of a dataset that `l4s-gym datasets build` made, decided by `dualpi2_freebsd`.

    Returns:
        Probabilities of enqueue, drop and mark (T, 3).

    Raises:
        L4SError: It is not such an episode, or the simulator does not give the same rows again.
    """
    about = episode.about
    if not {"scenario", "aqm", "explore", "seed", "seconds"} <= set(about) or str(about["aqm"]) != AQM:
        raise L4SError(f"episode of {episode.source!r}: was not simulated with {AQM}: its probabilities are not known")
    scenario = load(str(about["scenario"])).replace(horizon_s=float(about["seconds"]))
    if scenario.options.dualpi2_freebsd.quirks_off:
        raise L4SError(f"scenario {scenario.name!r}: switches quirks off: only the kernel's own decisions are known")
    explore = float(about["explore"])
    run = SimulatedRun(scenario, Behaviour(AQM, explore), int(about["seed"]))
    records = np.concatenate(list(run.records()))
    same = (
        len(records) == len(episode) + 1
        and np.array_equal(records["action"][:-1], episode.actions)
        and np.array_equal(records["time_us"], episode.extras["time_us"])
    )
    if not same:
        raise L4SError(f"episode of {episode.source!r}: the simulator now gives other rows: build the dataset again")
    return action_probabilities(records[:-1], explore)
