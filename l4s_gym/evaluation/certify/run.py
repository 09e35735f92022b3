"""All that is measured of an agent's stability; what is done is kept, so that it goes on where it was stopped."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.agents import AgentSpec
from l4s_gym.agents.protocol import Agent, form_of, options_of
from l4s_gym.data.files import atomic_write
from l4s_gym.envs.tune import HIGHEST, LOWEST, factors
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.certify import chance, fluid, gains, loop, response
from l4s_gym.evaluation.entry import Protocol, read_experiment, read_protocol
from l4s_gym.evaluation.harness import resolve
from l4s_gym.evaluation.origin import origin
from l4s_gym.forms import PACKET
from l4s_gym.sim import disciplines, fingerprint, layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.dualpi2_rfc9332 import Options
from l4s_gym.sim.scenario import OptionTables, Scenario, from_dict, load
from l4s_gym.tables import option_paths

RESULT: Final = "certify.json"
FIRST_SEED: Final = 20_000
"""Of the episodes; the benchmark has smaller ones, and what learns online draws larger ones."""
SEEDS: Final = 1000
"""Most episodes of a scenario."""
FROM_S: Final = 4.0
"""What is told of an episode starts here, but for the longest waits."""
STEP_MS: Final = 20.0
LAGS_MS: Final = (100.0, 500.0)
"""dt of the drift."""
REFERENCES_MS: Final = (15.0, 1.0)
"""Delays of C and L that the rewards count as one."""
BOUNDS: Final = (2.0, 4.0)
"""B, in targets or references."""
LAW: Final = "dualpi2_rfc9332"
POINTS: Final = ("grid-12m-20ms", "grid-40m-20ms", "grid-12m-50ms", "grid-12m-100ms")
"""Operating points of the response."""
ONSET_MBPS, ONSET_FLOWS = 12.0, 4
GAINS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Factors of both gains at which oscillation is looked for."""
SINE: Final = math.sqrt(0.5)
"""Deviation by mean of a sine that just reaches 0."""
Progress = Callable[[float], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        seconds: Length of an episode.
        seeds: Episodes of each scenario.
        suites: Size of the benchmark's protocol whose scenarios are run.
        observations: At which Jacobians are taken.
        points: Operating points of the response.
        response_seeds: Episodes at each.
        draws: Points of the box whose margins are computed.
        rtts_ms: Base RTTs of the margins.
        onset_ms: Base RTTs at which oscillation is looked for.
        onset_seeds: Episodes of each gain.
    """

    seconds: float = 20.0
    seeds: int = 20
    suites: str = "standard"
    observations: int = 48
    points: tuple[str, ...] = POINTS
    response_seeds: int = 60
    draws: int = 100
    rtts_ms: tuple[int, ...] = fluid.RTTS_MS
    onset_ms: tuple[int, ...] = (10, 20, 50, 100)
    onset_seeds: int = 6


QUICK: Final = Size(10.0, 5, "quick", 8, POINTS[:1], 20, 12, (10, 50), (20,), 3)
SIZES: Final = {"quick": QUICK, "standard": Size()}


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        spec: An agent, or `native:` and a discipline.
        options: Of disciplines, a table for each, in place of the scenarios'.
        decision_interval: Of an agent about packets.
        control_interval_ms: Of an agent of control intervals; None: the one of its training.
        name: In the report.
    """

    spec: str
    options: OptionTables = field(default_factory=dict)
    decision_interval: int = 1
    control_interval_ms: float | None = None
    name: str = ""

    @classmethod
    def of(cls, given: str, name: str = "") -> Subject:
        """Return the subject of a spec, or of the file of an experiment that trains nothing.

        Raises:
            L4SError: The experiment trains agents.
        """
        if not given.endswith(".toml"):
            return cls(given, name=name or given.rpartition("/")[2])
        found = read_experiment(Path(given))
        if found.training is not None:
            raise L4SError(f"{given}: trains agents: give the folder of one")
        return cls(found.agent, found.options, found.decision_interval, found.interval_ms, name or found.id)

    def scenario(self, name: str | Scenario, seconds: float | None = None) -> Scenario:
        """Return a scenario with these options."""
        changes = {} if seconds is None else {"horizon_s": seconds}
        return load(name).replace(**option_paths(self.options), **changes)


class Certificate:
    """The measurements of a subject.

    Attributes:
        subject: Of what.
        size: How much.
        parts: What is measured, by name: plain data.
    """

    def __init__(self, subject: Subject, size: Size, folder: Path) -> None:
        """Read what is there already.

        Raises:
            L4SError: There is no such agent; the folder has the results of something else.
        """
        self.subject, self.size, self._path = subject, size, folder / RESULT
        agent, native = resolve(subject.spec)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)  # more are slower for such small batches
        self.agent: Agent | None = agent
        self.who: Any = native or agent
        self.form = PACKET if agent is None else form_of(agent)
        interval = {} if self.form == PACKET else {"control_interval_ms": subject.control_interval_ms}
        packets = {"decision_interval": subject.decision_interval} if agent is not None and self.form == PACKET else {}
        self._how: dict[str, Any] = {**interval, **packets}
        asked = json.loads(
            json.dumps(
                {
                    "subject": asdict(subject),
                    "size": asdict(size),
                    "digest": AgentSpec.parse(subject.spec).digest() if agent else "",
                }
            )
        )
        self.about = {**asked, "simulator": fingerprint.FINGERPRINT}
        self.parts: dict[str, Any] = {}
        if self._path.exists():
            kept = json.loads(self._path.read_text())
            if kept["about"] != self.about:
                raise L4SError(f"{self._path}: is of another agent, size or version: name another folder (--out)")
            self.parts = kept["parts"]

    @property
    def law(self) -> Options | None:
        """The operator's values of the law that decides; None: it is not that of RFC 9332."""
        tables = dict(self.subject.options)
        if self.agent is not None:
            if self.form != "parameters":
                return None
            tables |= options_of(self.agent)
        elif self.who != LAW:
            return None
        return msgspec.convert(tables.get(LAW, {}), Options)

    def save(self) -> None:
        """Write what is measured."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"about": self.about, "origin": origin(), "parts": self.parts}
        with atomic_write(self._path) as file:
            file.write((json.dumps(content, indent=1, default=float) + "\n").encode())

    def run(self, protocol: Protocol, progress: Progress | None = None, say: Say | None = None) -> None:
        """Measure what is not there yet."""
        jobs: list[tuple[str, Callable[[], Any]]] = []
        for number, name in enumerate(sorted({name for _, name in protocol.cells(self.size.suites)})):
            first = FIRST_SEED + SEEDS * number  # no two episodes have one seed
            jobs.append((f"episodes {name}", partial(self.episodes, name, first)))
        jobs += [(f"response {name}", partial(self.respond, name)) for name in self.size.points]
        jobs.append(("gains", self.gains))
        if self.law is not None:
            jobs.append(("margins", self.margins))
            jobs += [(f"onset {rtt_ms} ms", partial(self.onset, rtt_ms)) for rtt_ms in self.size.onset_ms]
        for number, (name, job) in enumerate(jobs):
            if name not in self.parts:
                start = time.monotonic()
                found = job()
                self.parts[name] = {**found, "seconds": round(time.monotonic() - start, 2)}
                self.save()
                if say is not None:
                    say(f"{name}: {self.parts[name]['seconds']:.1f} s")
            if progress is not None:
                progress((number + 1) / len(jobs))

    # -- the parts

    def episodes(self, name: str, first_seed: int) -> dict[str, Any]:
        """Return what the episodes of a scenario tell."""
        scenario, size = self.subject.scenario(name, self.size.seconds), self.size
        seeds = [first_seed + k for k in range(size.seeds)]
        met, acted = _Some(size.observations), _Some(size.observations)

        def decided(obs: Any, actions: Any) -> None:
            met.add(obs)
            acted.add(np.asarray(actions, np.float64).reshape(len(obs), -1))

        def touch(batch: Batch, i: int, now_ns: int) -> None:
            if batch.decider == layout.POLICY:
                met.add(batch.obs[i : i + 1])

        seen = loop.watch(self.who, scenario, seeds, step_ms=STEP_MS, decided=decided, touch=touch, **self._how)
        first = round(FROM_S / seen.step_s)
        rows = []
        for i, seed in enumerate(seeds):
            target_ms = float(seen.target_ms[i])
            delay_ms = seen.delay_ms[first:, i]
            row: dict[str, Any] = {"seed": seed, "target_ms": target_ms, "used": float(seen.used[i])}
            row["moment_ms"] = [chance.at_a_moment(delay_ms[:, k], 0, seed) for k in (0, 1)]
            row["late_ms"] = np.nanmax(delay_ms, 0, initial=0.0).tolist()
            row["longest_ms"] = seen.longest_ms[i].tolist()
            for lag_ms in LAGS_MS:
                sums, counts = chance.tally(
                    delay_ms[:, 0] / max(target_ms, 1e-3), round(1e-3 * lag_ms / seen.step_s) or 1
                )
                row[f"drift_{lag_ms:g}ms"] = [sums.tolist(), counts.tolist()]
            rows.append(row)
        return {"episodes": rows, "step_s": seen.step_s, "observations": met.rows(), "actions": acted.rows()}

    def respond(self, name: str) -> dict[str, Any]:
        """Return the response at an operating point."""
        seeds = [FIRST_SEED + k for k in range(self.size.response_seeds)]
        return response.measure(self.who, self.subject.scenario(name), seeds, **self._how)

    def gains(self) -> dict[str, Any]:
        """Return the bounds of the model's Lipschitz constant."""
        if self.agent is None:
            return {"why": "a discipline has no model"}
        upper = gains.bounds(self.agent)
        observations = self.observations()
        found: dict[str, Any] = {"upper": asdict(upper), "features": _features(self.form)}
        if self.form != PACKET and hasattr(self.agent, "shares"):  # an LLM agent's
            from l4s_gym.evaluation.certify import transformer

            spec = AgentSpec.parse(self.subject.spec)
            memory: Any = self.agent
            return found | {"transformer": transformer.measure(spec.path, observations, memory.shares)}
        lower = gains.measure(self.agent, observations)
        return found | {"lower": None if lower is None else asdict(lower)}

    def observations(self) -> npt.NDArray[np.float32]:
        """Return some observations that were met (P, F), of all scenarios."""
        return np.array(_mixed(self.parts, "observations", self.size.observations), np.float32)

    def margins(self) -> dict[str, Any]:
        """Return the margins on paper: of the operator's values, over the box, and of what the agent set."""
        law = self.law
        assert law is not None
        rng = np.random.default_rng(0)
        box = np.exp(rng.uniform(np.log(LOWEST), np.log(HIGHEST), (self.size.draws, len(LOWEST))))
        chosen = (
            np.array(_mixed(self.parts, "actions", self.size.draws)) if self.form == "parameters" else np.zeros((0, 5))
        )
        rows = []
        for rtt_ms in self.size.rtts_ms:
            for scalable in (False, True):
                own = fluid.worst(law, scalable, rtt_ms, np.ones(5).tolist())
                row: dict[str, Any] = {"rtt_ms": rtt_ms, "scalable": scalable, **own._asdict()}
                row["largest_gain"] = fluid.largest_gain(law, scalable, rtt_ms)
                for what, points in (("box", box), ("set", factors(chosen))):
                    found = [fluid.worst(law, scalable, rtt_ms, each) for each in points]
                    if found:
                        phases = [each.phase_deg for each in found]
                        row[what] = {
                            "points": len(found),
                            "stable": float(np.mean([each.stable for each in found])),
                            "phase_deg": np.quantile(phases, [0.0, 0.5, 1.0]).tolist(),
                            "gain_db": np.quantile([each.gain_db for each in found], [0.0, 0.5, 1.0]).tolist(),
                        }
                rows.append(row)
        return {"law": msgspec.to_builtins(law), "rows": rows}

    def onset(self, rtt_ms: float) -> dict[str, Any]:
        """Return at which factor of both gains p' begins to swing down to 0, in the simulator and on paper."""
        law = self.law
        assert law is not None
        where: dict[str, Any] = {"rates_mbps": (ONSET_MBPS,), "flows": (ONSET_FLOWS,)}
        swings, used = [], []
        for gain in GAINS:
            options = msgspec.to_builtins(law) | {"alpha": gain * law.alpha, "beta": gain * law.beta}
            sources = [{"kind": "newreno", "count": ONSET_FLOWS, "rtt_ms": rtt_ms}]
            scenario = from_dict(
                {
                    "name": "onset",
                    "aqm": LAW,
                    "horizon_s": 25.0,
                    "link": {"rate_mbps": ONSET_MBPS},
                    "sources": sources,
                    "options": {LAW: options},
                }
            )
            seeds = [FIRST_SEED + k for k in range(self.size.onset_seeds)]
            seen = loop.watch(LAW, scenario, seeds, step_ms=STEP_MS, more={"p": loop.base_probabilities})
            p = seen.more["p"][len(seen.more["p"]) // 3 :]
            swings.append(float((p.std(0) / np.maximum(p.mean(0), 1e-9)).mean()))
            used.append(float(seen.used.mean()))
        fine = np.geomspace(GAINS[0], GAINS[-1], 15 * len(GAINS) + 1)
        return {
            "rtt_ms": rtt_ms,
            "rate_mbps": ONSET_MBPS,
            "flows": ONSET_FLOWS,
            "gains": list(GAINS),
            "swings": swings,
            "used": used,
            "simulated": crossing(GAINS, swings, SINE),
            "theory": fluid.largest_gain(law, False, rtt_ms, fine, **where) or None,
        }


def crossing(x: Sequence[float], y: Sequence[float], level: float) -> float | None:
    """Return where a curve first reaches a level, between its points by logarithms of x; None: nowhere."""
    for k, value in enumerate(y):
        if value >= level:
            if k == 0:
                return float(x[0])
            part = (level - y[k - 1]) / (value - y[k - 1])
            return float(x[k - 1] * (x[k] / x[k - 1]) ** part)
    return None


class _Some:
    """Some of the rows that it is given, each equally likely (reservoir)."""

    def __init__(self, most: int) -> None:
        self._most, self._seen, self._rng = most, 0, np.random.default_rng(0)
        self._kept: list[Any] = []

    def add(self, rows: Any) -> None:
        """Take rows (n, F)."""
        for row in rows:
            self._seen += 1
            if len(self._kept) < self._most:
                self._kept.append(np.array(row))
            elif (k := int(self._rng.integers(self._seen))) < self._most:
                self._kept[k] = np.array(row)

    def rows(self) -> list[list[float]]:
        """Return what was kept."""
        return [np.asarray(row, np.float64).tolist() for row in self._kept]


def _mixed(parts: Mapping[str, Any], what: str, most: int) -> list[Any]:
    """Return some rows of all scenarios, equally many of each."""
    lists = [part[what] for name, part in parts.items() if name.startswith("episodes ") and part[what]]
    each = -(-most // len(lists)) if lists else 0
    return [row for rows in lists for row in rows[:each]][: most or None]


def _features(form: str) -> list[str]:
    from l4s_gym.schema import OBSERVED

    return [each.name for each in forms.get(form).features] or list(OBSERVED)


def certify(
    subject: Subject, size: Size, folder: Path, progress: Progress | None = None, say: Say | None = None
) -> Certificate:
    """Measure a subject; the folder keeps what is done.

    Args:
        subject: Of what.
        size: How much.
        folder: For the results.
        progress: Called with the share that is done.
        say: Called with a line after each part.
    """
    found = Certificate(subject, size, folder)
    if found.agent is None:
        disciplines.get(found.who)
    found.run(read_protocol(), progress, say)
    return found
