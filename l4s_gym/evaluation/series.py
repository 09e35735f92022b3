"""Time series of one run: what each queue and class did in every step of time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.agents.protocol import NO_RULE, Agent
from l4s_gym.data.files import atomic_write, read_error
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness
from l4s_gym.evaluation.native import simulate
from l4s_gym.evaluation.origin import origin
from l4s_gym.sim.measure import CLASSES
from l4s_gym.sim.scenario import Scenario, load

Values = dict[str, list[float | None]]
DIGITS = 4
"""Significant digits that are kept."""


@dataclass(frozen=True)
class Series:
    """One run of one agent on one scenario, K steps of `step_ms` each, warm-up included.

    Attributes:
        name: Of the entry (`<agent>--<variant>`), or of the agent.
        rule: Decision rule, or "-".
        scenario: Name of the scenario.
        seed: Seed of the episode.
        step_ms: Length of a step.
        delay_ms: By class C and L: mean sojourn time of the packets that left in the step (K,); None where none left.
        mark_rate: By class: marks by packets offered (K,); None where none came.
        drop_rate: By class: drops by packets offered (K,); None where none came.
        goodput_mbps: Payload delivered to the Classic and to the L4S flows (K,).
    """

    name: str
    rule: str
    scenario: str
    seed: int
    step_ms: float
    delay_ms: Values
    mark_rate: Values
    drop_rate: Values
    goodput_mbps: Values

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def _rounded(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [float(f"{x:.{DIGITS}g}") if np.isfinite(x) else None for x in values.tolist()]


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Values:
    """(K, 2) by (K, 2), by class; None where the whole is 0."""
    values = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return {cls: _rounded(values[:, k]) for k, cls in enumerate(CLASSES)}


def record(
    who: str | Agent,
    scenario: str | Scenario = "l4s-llm-testbed",
    seed: int = 0,
    *,
    name: str | None = None,
    aqm: str | None = None,
    interval: int = 1,
    step_ms: float = 100.0,
    progress: Callable[[float], None] | None = None,
) -> Series:
    """Run an agent or a native discipline, and keep its time series: the run of `harness.evaluate` with this seed.

    Args:
        who: `native:<aqm>`, a name that `l4s_gym.agents.make` knows, or an agent.
        scenario: Name, path, or scenario.
        seed: Seed of the episode.
        name: What the series is called; None: as the agent.
        aqm: Discipline under an agent; None: the scenario's own.
        interval: Ask the agent at each interval-th packet.
        step_ms: Length of a step.
        progress: Called with the share that is done.
    """
    chosen = load(scenario)
    agent, native = harness.resolve(who)
    run = simulate(
        chosen, native or aqm, seed, agent=agent, interval=interval, sample_ms=step_ms, progress=progress
    )  # fmt: skip
    whole = np.diff(run.samples["time_s"], prepend=0.0) > 0.999e-3 * step_ms  # the last one may be cut short
    s = run.samples[whole]
    goodput = s["goodput_bytes"] * 8e-3 / step_ms  # Mbit/s
    return Series(
        name=name or (agent.name if agent is not None else str(who)),
        rule=NO_RULE if agent is None else agent.rule,
        scenario=chosen.name,
        seed=seed,
        step_ms=step_ms,
        delay_ms=_share(s["left_delay_ns"] * 1e-6, s["left"]),
        mark_rate=_share(s["marked"], s["offered"]),
        drop_rate=_share(s["dropped"], s["offered"]),
        goodput_mbps={cls: _rounded(goodput[:, k]) for k, cls in enumerate(CLASSES)},
    )


def write(path: Path, series: Sequence[Series]) -> None:
    """Series with their origin, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps({**origin(), "series": [s.as_dict() for s in series]}) + "\n").encode())


def read(path: Path) -> list[Series]:
    """The series of a file that `write` wrote.

    Raises:
        L4SError: It cannot be read, or is no such file.
    """
    try:
        tree: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return [Series(**each) for each in tree["series"]]
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise L4SError(f"{path}: holds no time series ({error}): write it anew") from error
