"""Entries of a benchmark that nobody ran: a simple model of agents, drawn from a seed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest

from l4s_gym.evaluation import entry, harness
from l4s_gym.sim import scenario

FIRST_SEED = {"train": 0, "test": 1000, "shift": 2000, "dyn": 3000}
DYN = ("leo", "lte", "web", "wifi")


@dataclass(frozen=True)
class Player:
    """An agent of the model.

    Attributes:
        agent: Name of its folder.
        variant: Name of its file.
        quality: Return by that of native DualPI2, 0 being that of random decisions.
        shift: Change of the quality in the suite `shift`.
        rule: Decision rule.
        interval: Decision interval.
        trainings: How many trained agents; 0: it is not trained.
        unlike: Standard deviation of the quality between trainings.
        form: In which it decides.
    """

    agent: str
    variant: str
    quality: float
    shift: float = 0.0
    rule: str = "-"
    interval: int = 1
    trainings: int = 0
    unlike: float = 0.02
    form: str = "packet"

    @property
    def native(self) -> bool:
        return self.agent == "native"

    @property
    def experiment(self) -> entry.Experiment:
        training = None
        if self.trainings:
            training = entry.Training(self.agent, "l4s/dualpi2/testbed-small-v0", seeds=tuple(range(self.trainings)))
        spec = f"native:{self.variant}" if self.native else f"rule={self.rule}" if training else self.agent
        how = {} if self.form == "packet" else {"form": self.form, "control_interval_ms": 100.0}
        return entry.Experiment(self.title, spec, self.interval, training, self.agent, self.variant, **how)  # type: ignore[arg-type]

    @property
    def title(self) -> str:
        return f"{self.variant} of {self.agent}, as a model"


PLAYERS = (
    Player("native", "dualpi2_rfc9332", 1.0),
    Player("random", "uniform", 0.0),
    Player("native", "pie", 0.8),
    Player("native", "fifo", 0.6),
    Player("bc", "diffuse", 1.06, -0.04, "diffuse", trainings=3),
    Player("bc", "argmax", 0.65, rule="argmax", trainings=3),
    Player("llm", "gpt2", 0.97, -0.25, "sample", interval=10, trainings=2, unlike=0.1),
    Player("cql", "kernel", 1.0, 0.0, "argmax", trainings=1),
    Player("zero", "parameters", 1.0, form="parameters"),
)


def synthetic_result(
    player: Player, suite: str, name: str, seed: int, train_seed: int | None, rng: np.random.Generator, quality: float
) -> dict[str, Any]:
    """One episode; the better the agent, the higher utilisation and the shorter delays."""
    traffic = np.random.default_rng(zlib.crc32(f"{name} {seed}".encode())).normal()
    good = quality + 0.01 * traffic + 0.02 * rng.normal()
    scale = {"C": 15.0, "L": 1.0}
    levels = np.array(harness.QUANTILES)
    delays = {c: (base / max(good, 0.2) * (0.2 + levels + 2.0 * levels**20)) for c, base in scale.items()}

    def delay(values: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
        at = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {"mean": float(values.mean()), **{key: float(np.interp(q, levels, values)) for key, q in at.items()}}

    offered = {"C": 9000, "L": 3000}
    marked, dropped = round(300 * max(good, 0.1)), round(60 / max(good, 0.1))
    rates = {"mark_rate": marked / 12000, "drop_rate": dropped / 12000}
    classes: Any = {
        c: {"offered": n, "dropped": dropped, "dropped_ect": 0, "marked": marked, **rates} for c, n in offered.items()
    }
    size = {"parameters": 70000.0, "trainable_parameters": 70000.0} if player.trainings else {}
    result = harness.Result(
        agent=f"native:{player.variant}" if player.native else player.agent,
        rule=player.rule,
        scenario=name,
        aqm=player.variant if player.native else "dualpi2_freebsd",
        seed=seed,
        reward="balance",
        episode_return=0.2 + 8.0 * good,
        decisions=12000 // player.interval,
        utilisation=float(np.clip(0.97 * good, 0.02, 1.0)),
        delay_ms={c: delay(values) for c, values in delays.items()},
        delay_quantiles={c: values.tolist() for c, values in delays.items()},
        delay_sd_ms={c: float(values.std()) for c, values in delays.items()},
        mark_rate=2 * rates["mark_rate"],
        drop_rate=2 * rates["drop_rate"],
        goodput_mbps=[3.0, 3.0 * good],
        goodput_ratio=None if name == "overload" else 1.0 + 2.0 * abs(1.0 - good),
        jain=1.0 / (1.0 + (1.0 - good) ** 2),
        classes=classes,
        latency_us=None if player.native else {"p50": 100.0 + 10 * rng.random(), "p99": 300.0},
        cost={} if player.native else size,
        wall_s=1.0,
    )
    return {"suite": suite, "train_seed": train_seed, **result.as_dict()}


def synthetic_entry(
    player: Player,
    *,
    scenarios: int | None = None,
    runs: int = 5,
    suites: Sequence[str] = ("train", "test", "shift"),
    seed: int = 0,
) -> entry.Entry:
    """What a player comes to.

    Args:
        player: The agent.
        scenarios: How many of each suite; None: all.
        runs: Seeds of each scenario.
        suites: Which suites.
        seed: Of the draws.
    """
    rng = np.random.default_rng([seed, zlib.crc32(f"{player.agent} {player.variant}".encode())])
    experiment = player.experiment
    results = []
    for train_seed in experiment.train_seeds:
        quality = player.quality + (player.unlike * rng.normal() if player.trainings else 0.0)
        for suite in suites:
            level = quality + (player.shift if suite == "shift" else 0.0)
            for name in (DYN if suite == "dyn" else scenario.suite(suite))[:scenarios]:
                for run in range(runs):
                    run_seed = FIRST_SEED[suite] + run
                    results.append(synthetic_result(player, suite, name, run_seed, train_seed, rng, level))
    confusion = [[900, 5, 20], [3, 40, 2], [25, 1, 70]]
    training = [
        entry.TrainedAgent(s, 60.0 + s, 70000.0, 70000.0, {"accuracy": 0.95, "confusion": confusion}, 1 << 28)
        for s in (experiment.training.seeds if experiment.training else ())
    ]
    return entry.Entry(
        format=entry.FORMAT,
        agent=player.agent,
        variant=player.variant,
        title=player.title,
        experiment=experiment,
        size="quick",
        protocol_digest="0" * 64,
        environment=entry.environment([result["scenario"] for result in results]),
        datasets={experiment.training.dataset: "1" * 64} if experiment.training else {},
        origin={
            "versions": {"l4s-gym": "0.0.0", "python": "3.11.0"},
            "host": {"cpu": "none", "cores": 1, "machine": "model", "system": "model"},
            "command": "synthetic_entries",
            "time": "2000-01-01T00:00:00Z",
        },
        training=tuple(training),
        results=tuple(results),
        failed=None,
        wall_s=1.0,
    )


def synthetic_entries(
    players: Sequence[Player] = PLAYERS,
    *,
    scenarios: int | None = 4,
    runs: int = 5,
    suites: Sequence[str] = ("train", "test", "shift"),
    failed: bool = True,
    seed: int = 0,
) -> list[entry.Entry]:
    """A whole board; with `failed`, an entry (`dt--crash`) that failed half-way is among them."""
    found = [synthetic_entry(p, scenarios=scenarios, runs=runs, suites=suites, seed=seed) for p in players]
    if failed:
        crash = Player("dt", "crash", 0.9, rule="sample", trainings=2)
        whole = synthetic_entry(crash, scenarios=scenarios, runs=runs, suites=suites, seed=seed)
        failure = entry.Failure("test grid-12m-20ms", "Traceback (most recent call last):\nValueError: it is a model")
        half = whole.results[: len(whole.results) // 2]
        found.append(msgspec.structs.replace(whole, results=half, failed=failure))
    return found


@pytest.fixture(scope="session")
def board_entries() -> list[entry.Entry]:
    """`synthetic_entries` as they come."""
    return synthetic_entries()
