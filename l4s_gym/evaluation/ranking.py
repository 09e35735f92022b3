"""Entries of the benchmark in, rows of the board with normalised scores and intervals out.

The normalised score of an episode is 0 for the mean return of random decisions on that scenario, and 100 for that of
native DualPI2 (RFC 9332). `statistics` says what the intervals mean. What an entry lacks is never averaged over: a
suite with missing episodes has no score, and the row says what is missing.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from l4s_gym.errors import L4SError
from l4s_gym.evaluation import entry as records
from l4s_gym.evaluation import statistics
from l4s_gym.evaluation.cells import MEASURES, NATIVE, RANDOM, Suite, bounds, by_key, reference, suites
from l4s_gym.evaluation.entry import Entry, Protocol
from l4s_gym.evaluation.statistics import Floats, Interval
from l4s_gym.forms import INTERVAL_MS, PACKET
from l4s_gym.sim import fingerprint

MAIN: Final = "test"
"""The suite by which rows are sorted."""
THRESHOLDS: Final = tuple(2.5 * k for k in range(53))
"""Scores of the performance profiles."""


@dataclass(frozen=True)
class Row:
    """An entry on the board. Dictionaries are by suite and lack the suites that the entry does not have in full.

    Attributes:
        name: Id of the entry.
        agent: Its agent.
        variant: Its variant.
        title: One line.
        decision_interval: The agent is asked at each n-th packet.
        rule: Decision rule, "-" without one.
        trainings: How many trained agents; 0: nothing was trained.
        learned: How the agent learned: `none`, `offline`, `online`.
        form: In which the agent decides (`l4s_gym.forms`); "" where a discipline does.
        control_interval_ms: Of the forms that decide for control intervals: their length.
        aqm: As `Experiment.aqm`.
        scores: Normalised score: interquartile mean over episodes, mean over trainings.
        means: The same with the mean over episodes.
        medians: The same with the median over scenarios of the mean over their episodes.
        over_native: That score less the one of native DualPI2.
        gap: Score of `test` less that of `shift`; None without both.
        shortfall: Optimality gap: how far episodes fall short of a score of 100, on average; more counts as 100.
        profiles: Performance profiles: shares of the episodes above each of `THRESHOLDS`, and both ends of their bands.
        improvement: Probability of a better return than native DualPI2 on the same traffic, in `test`; None without,
            and for native DualPI2 itself.
        improvements: The same by suite.
        metrics: Means of `MEASURES`, over the scenarios in which native DualPI2 has them; None: not in all of these.
            Of `goodput_ratio`, it is the geometric mean.
        differences: The same less native DualPI2's on the same traffic; of `goodput_ratio`, of the logarithms.
        latency_us: Time of one decision, p50 and p99, medians over the runs; None inside the engine.
        parameters: Number of parameters.
        trainable_parameters: Those of them that were trained.
        training_s: Time of one training, mean; None without.
        weights: Weights that a language model started from; else empty.
        failed: Why it has no figures; None: it has.
        lacks: What else is missing, in words.
    """

    name: str
    agent: str
    variant: str
    title: str
    decision_interval: int
    rule: str
    trainings: int
    learned: records.Trained = "none"
    form: str = PACKET
    control_interval_ms: float = INTERVAL_MS
    aqm: str = ""
    scores: dict[str, Interval] = field(default_factory=dict)
    means: dict[str, Interval] = field(default_factory=dict)
    medians: dict[str, Interval] = field(default_factory=dict)
    over_native: dict[str, Interval] = field(default_factory=dict)
    gap: Interval | None = None
    shortfall: dict[str, Interval] = field(default_factory=dict)
    profiles: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    improvement: Interval | None = None
    improvements: dict[str, Interval] = field(default_factory=dict)
    metrics: dict[str, dict[str, Interval | None]] = field(default_factory=dict)
    differences: dict[str, dict[str, Interval | None]] = field(default_factory=dict)
    latency_us: dict[str, float] | None = None
    parameters: float = 0.0
    trainable_parameters: float = 0.0
    training_s: float | None = None
    weights: str = ""
    failed: str | None = None
    lacks: tuple[str, ...] = ()

    @property
    def decides(self) -> str:
        """The form, with n of each n-th packet, the discipline underneath, or the interval; "" for a discipline."""
        if self.aqm:
            return f"{self.form}, {self.aqm}"
        if self.form in ("", PACKET):
            return self.form + (f" /{self.decision_interval}" if self.form and self.decision_interval > 1 else "")
        return f"{self.form} {self.control_interval_ms:g} ms"

    @property
    def how(self) -> str:
        """Class of the entry, and the weights of a language model."""
        return f"{self.learned}, weights {self.weights}" if self.weights else self.learned


@dataclass(frozen=True)
class Refusal:
    """An entry that cannot stand beside the others, and why."""

    name: str
    reason: str


def scores(returns: Floats, native: Floats, random: Floats) -> Floats:
    """Score, what it is above native DualPI2's, optimality gap, mean, median: (..., runs, tasks) thrice -> (..., 5).

    The references are drawn anew with the rest: they are estimates from as many episodes as everything else.
    """
    scaled = statistics.normalised(returns, random, native)
    score = statistics.iqm(scaled)
    over = score - statistics.iqm(statistics.normalised(native, random, native))
    others = [measure(scaled) for measure in (statistics.optimality_gap, statistics.mean, statistics.median)]
    return np.stack([score, over, *others], -1)


def check(
    entries: Sequence[Entry], protocol: Protocol | None = None, datasets: Mapping[str, str] | None = None
) -> tuple[list[Entry], list[Refusal]]:
    """Which entries can be compared.

    Args:
        entries: All, native DualPI2's among them.
        protocol: The current one, with the installed environment; None: those of native DualPI2's entry.
        datasets: Id -> current checksum; of others, that of the first entry that has it.

    Returns:
        The entries of the installed simulator that agree in protocol, environment, scenarios and datasets; and the
        others with the first reason.

    Raises:
        L4SError: Native DualPI2's entry is missing.
    """
    like = reference(entries, NATIVE)
    version, digest, there = like.protocol, like.protocol_digest, like.environment
    if protocol is not None:
        version, digest = protocol.version, protocol.digest(like.size)
        there = records.environment(list(there.scenarios))
    known = dict(datasets or {})
    kept: list[Entry] = []
    refused: list[Refusal] = []
    for each in entries:
        if reason := _reason(each, like.size, version, digest, there, known) or (
            "is there twice" if each.id in {one.id for one in kept} else None
        ):
            refused.append(Refusal(each.id, reason))
        else:
            kept.append(each)
            known = {**each.datasets, **known}
    return kept, refused


def _reason(
    each: Entry, size: str, version: int, digest: str, there: records.Environment, datasets: Mapping[str, str]
) -> str | None:
    """Why an entry cannot be compared; None: it can."""
    if each.protocol != version:
        return records.another_protocol(each, version)
    if stale := fingerprint.reason(each.environment.simulator):
        return stale
    pairs: list[tuple[str, object, object]] = [
        ("size", each.size, size),
        ("protocol digest", each.protocol_digest, digest),
        ("version of the environment", each.environment.version, there.version),
        ("version of the schema", each.environment.schema_version, there.schema_version),
    ]
    ours = there.scenarios
    pairs += [(f"scenario {name!r}", theirs, ours.get(name)) for name, theirs in each.environment.scenarios.items()]
    pairs += [(f"dataset {name!r}", theirs, datasets.get(name, theirs)) for name, theirs in each.datasets.items()]
    return next((f"{what} is {theirs}, not {ours}" for what, theirs, ours in pairs if theirs != ours), None)


def rows(entries: Sequence[Entry], *, seed: int = 0, resamples: int = statistics.RESAMPLES) -> list[Row]:
    """The rows of the board, best score of `test` first, then those without, then those that failed.

    Args:
        entries: Entries that can be compared (see `check`), with the references `NATIVE` and `RANDOM` among them.
        seed: Of the bootstrap; each row has draws of its own, whatever other rows there are.
        resamples: Of the bootstrap.

    Raises:
        L4SError: A reference is missing, failed or lacks episodes; an entry or an episode is there twice.
    """
    plan = suites(reference(entries, NATIVE), reference(entries, RANDOM))
    if len({each.id for each in entries}) < len(entries):
        raise L4SError("board: an entry is there twice: sort them out with board.check")
    found = [_row(each, plan, seed, resamples) for each in entries]

    def order(row: Row) -> tuple[bool, bool, float, str]:
        score = row.scores.get(MAIN)
        return row.failed is not None, score is None, -score.value if score else 0.0, row.name

    return sorted(found, key=order)


def _row(each: Entry, plan: Sequence[Suite], seed: int, resamples: int) -> Row:
    experiment, training = each.experiment, each.training
    first: dict[str, Any] = each.results[0] if each.results else {"rule": "-", "cost": {}}
    times = [result["latency_us"] for result in each.results if result["latency_us"]]
    row = Row(
        name=each.id,
        agent=each.agent,
        variant=each.variant,
        title=each.title,
        decision_interval=experiment.decision_interval,
        rule=first["rule"],
        trainings=len(experiment.training.seeds) if experiment.training else 0,
        learned=experiment.learned,
        form="" if experiment.native else experiment.form,
        control_interval_ms=experiment.control_interval_ms,
        aqm=experiment.aqm,
        latency_us={key: float(np.median([time[key] for time in times])) for key in ("p50", "p99")} if times else None,
        parameters=first["cost"].get("parameters", 0.0),
        trainable_parameters=first["cost"].get("trainable_parameters", 0.0),
        training_s=float(np.mean([one.seconds for one in training])) if training else None,
        weights=each.weights,
    )
    if each.failed is not None:
        return replace(row, failed=each.failed.brief)
    return _filled(row, each, plan, np.random.default_rng([seed, zlib.crc32(each.id.encode())]), resamples)


def _filled(row: Row, each: Entry, plan: Sequence[Suite], rng: np.random.Generator, resamples: int) -> Row:
    """The row with its figures."""
    cells, train_seeds = by_key(each), each.experiment.train_seeds
    estimates: dict[str, statistics.Estimate] = {}
    improvements, metrics, differences, profiles = {}, {}, {}, {}
    lacks = ["one training only: the intervals do not say how another would do"] if row.trainings == 1 else []
    for suite in plan:
        returns = suite.array(cells, train_seeds, MEASURES["episode_return"])
        if missing := int(np.isnan(returns).sum()):
            lacks.append(f"{suite.name}: {missing} of {returns.size} episodes are missing")
            continue
        references = suite.native["episode_return"], suite.random
        if each.id != NATIVE:
            won = statistics.linear(statistics.wins(returns, references[0]))
            improvements[suite.name] = won.share_interval()
        scaled = [statistics.normalised(array, *reversed(references)) for array in (returns, *references)]
        estimates[suite.name] = statistics.bootstrap(scaled, scores, rng=rng, resamples=resamples)
        profile = statistics.performance_profile(scaled[0], np.array(THRESHOLDS))
        if np.isfinite(profile[1]).all():
            profiles[suite.name] = tuple(tuple(part.tolist()) for part in profile)
        own = {name: suite.array(cells, train_seeds, get) for name, get in MEASURES.items()}
        metrics[suite.name], differences[suite.name], undefined = _metrics(own, suite)
        lacks += [f"{suite.name}: {text}" for text in undefined]
    both = {"test", "shift"} <= estimates.keys()
    return replace(
        row,
        scores={name: found[0].interval() for name, found in estimates.items()},
        means={name: found[3].interval() for name, found in estimates.items()},
        medians={name: found[4].interval() for name, found in estimates.items()},
        over_native={name: found[1].interval() for name, found in estimates.items()},
        shortfall={name: found[2].interval().within(0.0, np.inf) for name, found in estimates.items()},
        profiles=profiles,
        gap=(estimates["test"][0] - estimates["shift"][0]).interval() if both else None,
        improvement=improvements.get(MAIN),
        improvements=improvements,
        metrics=metrics,
        differences=differences,
        lacks=tuple(lacks),
    )


def online(board: Sequence[Row], suite: str = MAIN) -> dict[str, list[float]]:
    """Expected Online Performance: the score of the best of n configurations that are tried, n = 1, 2, ...

    Configurations are the learned rows of an agent; `all learned` are those of all. Agents with one are left out.
    """
    rows = [row for row in board if row.trainings and suite in row.scores]
    groups = {name: [row for row in rows if row.agent == name] for name in sorted({row.agent for row in rows})}
    return {
        name: statistics.expected_online_performance([row.scores[suite].value for row in group]).tolist()
        for name, group in {**groups, "all learned": rows}.items()
        if len(group) > 1
    }


def _metrics(
    own: Mapping[str, Floats], suite: Suite
) -> tuple[dict[str, Interval | None], dict[str, Interval | None], list[str]]:
    """Means of the metrics (trainings, runs, tasks), differences to native DualPI2, and what is undefined."""
    means: dict[str, Interval | None] = {}
    differences: dict[str, Interval | None] = {}
    without: dict[tuple[int, int], list[str]] = {}
    for name, values in own.items():
        tasks = np.isfinite(suite.native[name]).all(0)
        kept = values[..., tasks]
        means[name] = differences[name] = None
        if bad := int(np.isnan(kept).sum()):
            without.setdefault((bad, kept.size), []).append(name)
        elif kept.size:
            means[name] = statistics.linear(kept).interval().within(*bounds(name))
            differences[name] = statistics.linear(kept - suite.native[name][:, tasks]).interval()
    if log := means["goodput_ratio"]:
        ends = (None if each is None else float(np.exp(each)) for each in (log.low, log.high))
        means["goodput_ratio"] = Interval(float(np.exp(log.value)), *ends)
    undefined = [f"no {', '.join(names)} in {bad} of {size} episodes" for (bad, size), names in without.items()]
    return means, differences, undefined
