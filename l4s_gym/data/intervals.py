"""Episodes of control intervals, to store: actions drawn at random, simulated many at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import gymnasium as gym
import msgspec
import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.data.steps import Steps, StreamRun
from l4s_gym.data.storage import row_of
from l4s_gym.forms import INTERVAL_MS
from l4s_gym.rewards import COMPONENTS, DEFAULT
from l4s_gym.sim.scenario import Scenario

Actions = npt.NDArray[np.float32]
Law = Literal["uniform", "mixed"]

FLAVOURS: Final = ("plain", "constant", "changing")
"""Of an episode: the form's idle action, or another one, throughout; an action that changes at random times."""
PLAIN, CONSTANT, CHANGING = FLAVOURS


@dataclass(frozen=True)
class IntervalRun:
    """An episode to simulate.

    Attributes:
        scenario: What to simulate; its `horizon_s` is the length.
        aqm: Discipline; None: the scenario's.
        seed: As in `reset(seed=)` of the environment.
        actions: One for each interval (T, K).
        flavour: Which of `FLAVOURS`.
        form: Action form.
        control_interval_ms: Length of a step.
        reward: Name of the reward.
    """

    scenario: Scenario
    aqm: str | None
    seed: int
    actions: Actions
    flavour: str
    form: str
    control_interval_ms: float = INTERVAL_MS
    reward: str = DEFAULT

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the environment, but for the scenario."""
        named = {} if self.aqm is None else {"aqm": self.aqm}
        return {"control_interval_ms": self.control_interval_ms, "reward": self.reward, **named}

    @property
    def about(self) -> dict[str, Any]:
        """Attributes of the episode: all that it takes to play it again with its actions."""
        return {
            "scenario": self.scenario.name,
            "scenario_json": msgspec.json.encode(self.scenario),  # as bytes: texts are shortened
            "aqm": self.aqm or self.scenario.aqm,
            "flavour": self.flavour,
            "seed": self.seed,
            "seconds": self.scenario.horizon_s,
            "control_interval_ms": self.control_interval_ms,
            "consecutive": True,
            "source": "simulated",
            "absent": "",
        }


def steps_of(seconds: float, control_interval_ms: float) -> int:
    """Return the number of control intervals, of which the last may be a part of one, in an episode."""
    return math.ceil(round(seconds * 1e9) / round(control_interval_ms * 1e6))


def draw_times(steps: int, every: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draw the steps (T,) after whose start an action is drawn again: after 2/3 to 4/3 of `every` steps each time."""
    at = np.cumsum(rng.uniform(2.0 / 3.0, 4.0 / 3.0, math.ceil(1.5 * steps / every)) * every)
    return np.isin(np.arange(steps), np.ceil(at))


def drawn_actions(
    low: Sequence[float],
    high: Sequence[float],
    drawn: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    law: Law = "uniform",
) -> Actions:
    """Draw the actions of an episode; returns (T, K).

    Args:
        low: Lower bounds of the numbers of an action (K,).
        high: Upper bounds (K,).
        drawn: Whether the action of a step is drawn again (T,); that of the first always is.
        rng: Source of the draws.
        law: Distribution of the numbers between their bounds. `mixed`: half of the actions are drawn by the arcsine law
            instead, whose numbers are often near the bounds.
    """
    number = np.cumsum(drawn) - drawn[0]
    share = rng.random((int(number[-1]) + 1, len(low)))
    if law == "mixed":
        share = np.where(rng.random((len(share), 1)) < 0.5, np.sin(0.5 * np.pi * share) ** 2, share)
    held: Actions = (low + np.subtract(high, low) * share).astype(np.float32)[number]
    return held


def play(runs: Sequence[IntervalRun]) -> Iterator[StreamRun]:
    """Simulate episodes, which differ in scenario, discipline, seed and actions only; yield them in order.

    All of one discipline are simulated at once, in a vector environment. Each is what it is alone.
    """
    rows: dict[int, Steps] = {}
    for aqm in dict.fromkeys(run.aqm for run in runs):
        members = [i for i, run in enumerate(runs) if run.aqm == aqm]
        rows.update(zip(members, _played([runs[i] for i in members]), strict=True))
    for i, run in enumerate(runs):
        yield StreamRun(run.about, iter([rows[i]]))


def _played(runs: Sequence[IntervalRun]) -> list[Steps]:
    """Simulate episodes of one discipline; return the rows of each, (T + 1,)."""
    first, scenarios = runs[0], {run.scenario.name: run.scenario for run in runs}
    env = forms.get(first.form).vector_class(
        len(runs), list(scenarios.values()), **first.arguments, copy=False, num_threads=1
    )
    options = {"scenario": [run.scenario.name for run in runs]}
    observation, _ = env.reset(seed=[run.seed for run in runs], options=options)
    actions = np.stack([run.actions for run in runs])
    rows = np.zeros((len(runs), actions.shape[1] + 1), row_of(first.form))
    rows["observation"][:, 0], rows["action"][:, :-1] = observation, actions
    ends, going = np.zeros(len(runs), np.int64), np.ones(len(runs), bool)
    for step in range(actions.shape[1]):
        observation, reward, terminated, truncated, info = env.step(actions[:, step])
        rows["reward"][:, step], rows["observation"][:, step + 1] = reward, observation
        for name in COMPONENTS:
            rows[name][:, step] = info["components"][name]
        ends[going] = step + 1
        going &= ~(terminated | truncated)
        if not going.any():
            break
    return [each[: end + 1] for each, end in zip(rows, ends.tolist(), strict=True)]


def environment(about: Mapping[str, Any], form: str, **arguments: Any) -> Any:
    """Return the environment in which an episode was played: reset with its `seed`, its actions give its rewards.

    Args:
        about: The episode's metadata (`IntervalRun.about`).
        form: Its action form.
        **arguments: More arguments of the environment.
    """
    return gym.make(
        f"l4s_gym:{forms.get(form).env_id}",
        scenario=msgspec.json.decode(about["scenario_json"]),
        aqm=str(about["aqm"]),
        control_interval_ms=float(about["control_interval_ms"]),
        **arguments,
    )
