"""Time series of one run: what each queue and class did in every step of time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import l4s_gym
from l4s_gym.agents import protocol as agents
from l4s_gym.agents.protocol import NO_RULE, Agent, form_of
from l4s_gym.data.files import atomic_write, read_error
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness
from l4s_gym.evaluation.entry import Entry, Protocol
from l4s_gym.evaluation.native import counts_of, mean_delay_ms, sample_of, simulate
from l4s_gym.evaluation.origin import origin
from l4s_gym.evaluation.sweep import Sweep
from l4s_gym.evaluation.work import as_run
from l4s_gym.forms import PACKET
from l4s_gym.sim import fingerprint, layout
from l4s_gym.sim.measure import CLASSES
from l4s_gym.sim.scenario import Scenario, load

Values = dict[str, list[float | None]]
DIGITS = 4
"""Significant digits that are kept."""
SHOWN = ("l4s-llm-testbed", "lte")
"""Scenarios of which the report shows a run."""
LONGEST_S = 120.0


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
        marks_per_s: By class: packets marked a second (K,).
        drops_per_s: By class: packets dropped a second (K,).
        goodput_mbps: Payload delivered to the Classic and to the L4S flows (K,).
    """

    name: str
    rule: str
    scenario: str
    seed: int
    step_ms: float
    delay_ms: Values
    marks_per_s: Values
    drops_per_s: Values
    goodput_mbps: Values

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def _by_class(values: npt.NDArray[Any]) -> Values:
    """(K, 2) by class, to `DIGITS`; None for NaN."""
    rounded = [[None if np.isnan(x) else float(f"{x:.{DIGITS}g}") for x in column] for column in values.T.tolist()]
    return dict(zip(CLASSES, rounded, strict=True))


def record(
    who: str | Agent,
    scenario: str | Scenario = "l4s-llm-testbed",
    seed: int = 0,
    *,
    name: str | None = None,
    aqm: str | None = None,
    decision_interval: int = 1,
    control_interval_ms: float | None = None,
    step_ms: float = 100.0,
    progress: Callable[[float], None] | None = None,
) -> Series:
    """Run an agent or a native discipline, and keep its time series: the run of `harness.evaluate` with this seed.

    Args:
        who: As in `harness.evaluate`.
        scenario: Name, path, or scenario.
        seed: Seed of the episode.
        name: What the series is called; None: as the agent.
        aqm: Discipline under an agent; None: the scenario's own.
        decision_interval: Ask the agent at each n-th packet.
        control_interval_ms: As in `harness.evaluate`.
        step_ms: Length of a step; with control intervals, the whole number of them that is next to it.
        progress: Called with the share that is done.
    """
    chosen = load(scenario)
    agent, native = harness.resolve(who)
    if agent is not None and form_of(agent) != PACKET:
        interval_ms = agents.control_interval_ms(agent) if control_interval_ms is None else control_interval_ms
        every = max(round(step_ms / interval_ms), 1)
        step_ms = every * interval_ms
        samples = _of_intervals(agent, chosen, aqm, seed, interval_ms, every)
    else:
        samples = simulate(
            chosen,
            native or aqm,
            seed,
            agent=agent,
            decision_interval=decision_interval,
            sample_ms=step_ms,
            progress=progress,
        ).samples
    whole = np.diff(samples["time_s"], prepend=0.0) > 0.999e-3 * step_ms  # the last one may be cut short
    s = samples[whole]
    per_s = 1e3 / step_ms
    return Series(
        name=name or (agent.name if agent is not None else str(who)),
        rule=NO_RULE if agent is None else agent.rule,
        scenario=chosen.name,
        seed=seed,
        step_ms=step_ms,
        delay_ms=_by_class(mean_delay_ms(s)),
        marks_per_s=_by_class(s["marked"] * per_s),
        drops_per_s=_by_class(s["dropped"] * per_s),
        goodput_mbps=_by_class(s["goodput_bytes"] * 8e-6 * per_s),
    )


def _of_intervals(
    agent: Agent, scenario: Scenario, aqm: str | None, seed: int, interval_ms: float, every: int
) -> npt.NDArray[np.void]:
    """`native.SAMPLES` (K,), one each so many control intervals, where the agent decides for those."""
    env = harness.interval_env(agent, scenario.replace(warmup_s=0.0), [seed], aqm, interval_ms)
    agent.reset(1, seed)
    batch, seen = env.batch, env.buffers
    since, since_ns, samples = counts_of(batch), 0, []
    while batch.status[0] < layout.TERMINATED:
        for _ in range(every):
            env.go_on(agent.act(seen["obs"], seen["reward"]))
        samples.append(sample_of(batch, since, since_ns)[0])
        since, since_ns = counts_of(batch), int(batch.env["now_ns"][0])
    return np.concatenate(samples)


def write(path: Path, series: Sequence[Series], **same: str) -> None:
    """Series with their origin and what `read` is to compare, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps({**origin(), **same, "series": [s.as_dict() for s in series]}) + "\n").encode())


def read(path: Path, **same: str) -> list[Series]:
    """The series of a file that `write` wrote; none where something of `same` was another.

    Raises:
        L4SError: It cannot be read, or is no such file.
    """
    try:
        tree: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = [Series(**each) for each in tree["series"]]
        return found if all(tree.get(name) == value for name, value in same.items()) else []
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise L4SError(f"{path}: holds no time series ({error}): remove it, and it is written anew") from error


def of_board(
    entries: Sequence[Entry],
    protocol: Protocol,
    size: str,
    path: Path,
    work: Path,
    progress: Callable[[str], AbstractContextManager[Callable[[float], None]]],
) -> list[Series]:
    """One run of each entry on the scenarios `SHOWN`, with the first seed of `test`; what is in the file is kept.

    Args:
        entries: Trained ones are left out where the agent is not in the work folder, slow ones where a run would take
            longer than `LONGEST_S`.
        protocol: Length and seed of the runs.
        size: Of the protocol.
        path: File of the series; what is new is added to it.
        work: Work folder of the sweep.
        progress: Shows how far it is.
    """
    same = {"version": l4s_gym.__version__, "protocol_digest": protocol.digest(size)}
    same["simulator"] = fingerprint.FINGERPRINT
    found = read(path, **same) if path.is_file() else []
    there = {(each.name, each.scenario) for each in found}
    names = [name for suite, name in protocol.cells(size) if suite == "test" and name in SHOWN]
    before = len(found)
    seed, seconds = protocol.seeds("test", size)[0], protocol.size(size).seconds
    for entry in entries:
        for name in names:
            who = None if (entry.id, name) in there else spec_of(entry, protocol, work)
            if who is None or _seconds(entry, name) > LONGEST_S:
                continue
            experiment = entry.experiment
            chosen = as_run(name, seconds, experiment.options)
            with progress(f"one run of {entry.id} on {name}") as show:
                found.append(
                    record(
                        who,
                        chosen,
                        seed,
                        name=entry.id,
                        aqm=experiment.aqm or None,
                        decision_interval=experiment.decision_interval,
                        control_interval_ms=experiment.interval_ms,
                        progress=show,
                    )
                )
    if len(found) > before:
        write(path, found, **same)
    return found


def _seconds(entry: Entry, scenario: str) -> float:
    """How long a run takes, by what its entry says."""
    rows = [row for row in entry.results if row["scenario"] == scenario and row["latency_us"]]
    return max((row["decisions"] * row["latency_us"]["p50"] * 1e-6 for row in rows), default=0.0)


def spec_of(entry: Entry, protocol: Protocol, work: Path) -> str | None:
    """Spec of the first agent of an entry; None: it is not in the work folder."""
    if entry.experiment.training is None:
        return entry.experiment.agent
    sweep = Sweep(protocol, entry.size, work.resolve(), jobs=0, ray="")
    sweep.datasets = dict(entry.datasets)
    job = sweep.trainings(entry.experiment)[0]
    options = entry.experiment.agent
    return f"{job.folder},{options}".rstrip(",") if job.record.is_file() else None
