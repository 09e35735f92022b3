"""How each reward orders the queue disciplines, and whether the order by `fair` hangs on how evenness is measured.

    python benchmarks/studies/objective/run.py  # a minute; appends to results/objective.json

Every discipline runs alone on all scenarios of the protocol's `train`, random decisions and the threshold rule over the
default one; "coupling 12" is RFC 9332 with a coupling factor that starves L. An episode is looked at each 62.5 ms: what
it earned, and what the bulk flows of each class got in the second before. From this series each variant of `fair` is
computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from l4s_gym.agents.protocol import generators, policy_of
from l4s_gym.cli.arguments import command_line
from l4s_gym.evaluation import harness
from l4s_gym.evaluation.entry import read_protocol
from l4s_gym.evaluation.origin import append_run, origin
from l4s_gym.evaluation.work import as_run
from l4s_gym.sim import layout, measure
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.disciplines import AQMS
from l4s_gym.sim.scenario import Scenario

RESULTS: Final = Path(__file__).resolve().parent / "results" / "objective.json"
RANDOM, NATIVE, STARVING = "random", "native:dualpi2_rfc9332", "native:dualpi2_rfc9332, coupling 12"
ROWS: Final = (RANDOM, "threshold", *(f"native:{name}" for name in AQMS), STARVING)
Floats = npt.NDArray[np.float64]


def geometric(x: Floats, w: Floats) -> Floats:
    """Geometric by arithmetic mean of the goodputs x (..., 2) with weights w (..., 2): as in the engine."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp((w * np.log(x)).sum(-1)) / (w * x).sum(-1))


def harmonic(x: Floats, w: Floats) -> Floats:
    """Harmonic by arithmetic mean."""
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / ((w / x).sum(-1) * (w * x).sum(-1)))


def log_ratio(x: Floats, w: Floats) -> Floats:
    """exp(-|ln(x_L / x_C)|): the smaller goodput by the larger, whatever the numbers of flows."""
    return np.asarray(x.min(-1) / x.max(-1))


EVENNESS: Final[dict[str, Callable[[Floats, Floats], Floats]]] = {
    "fair": geometric,
    "fair, harmonic": harmonic,
    "fair, log ratio": log_ratio,
    "fair, weights .1, .25": geometric,
}


def evenness(got: Floats, ran: Floats, mean: Callable[[Floats, Floats], Floats]) -> Floats:
    """E of windows in which the classes got so many bytes in so much flow time, both (..., 2)."""
    both, fed = np.all(ran > 0, -1), np.all(got > 0, -1)
    x, w = got / np.maximum(ran, 1.0), ran / np.maximum(ran.sum(-1, keepdims=True), 1.0)
    found = mean(np.where((both & fed)[..., None], x, 1.0), np.where(both[..., None], w, 0.5))
    return np.where(both, np.where(fed, found, 0.0), 1.0)


def series(who: str, chosen: Scenario, seeds: int) -> tuple[Batch, dict[str, Floats]]:
    """Run the episodes of a row of the table.

    Returns:
        The batch at the end; of each bucket what was earned in it (`totals`), and what the classes got in the second
        before it began (`second_bytes`, `second_ns`), all (K, n, ...).
    """
    agent, native = harness.resolve(who)
    policy = None
    if agent is not None:
        agent.reset(seeds, 0)
        policy = policy_of(agent)
    batch = Batch(
        chosen,
        seeds,
        aqm=native,
        decider=layout.NATIVE if policy is None else layout.POLICY,
        policy=policy,
        reward="power",
        num_threads=1,
    )
    for seed in range(seeds):
        batch.reset(seed, seeding.np_random(seed)[0])
    if policy is not None:
        batch.start_policy(generators(seeds, 0))
        batch.rule["left"] = layout.NEVER
    rows: list[dict[str, Floats]] = []
    while not rows or (batch.status == layout.STOPPED).all():
        for i in range(seeds):
            batch.stop_at(i, (len(rows) + 1) * layout.BUCKET_NS - 1)
        before = batch.env["totals"].copy()
        batch.advance()
        row = {name: batch.env[name].astype(np.float64) for name in ("totals", "second_bytes", "second_ns")}
        rows.append({**row, "totals": row["totals"] - before})
    return batch, {name: np.array([row[name] for row in rows]) for name in rows[0]}


def returns(who: str, chosen: Scenario, seeds: int) -> tuple[dict[str, float], float]:
    """Mean returns of a row in a scenario by each reward, and mean |ln(L/C)| of the goodputs (NaN without both)."""
    if who == STARVING:
        chosen, who = chosen.replace(**{"options.dualpi2_rfc9332.coupling": 12.0}), NATIVE
    batch, seen = series(who, chosen, seeds)
    used, even, delay_c, delay_l = seen["totals"].sum(0).T
    found = {"balance": used - 0.25 * (delay_c + delay_l), "power": batch.env["taken"].copy()}
    for name, mean in EVENNESS.items():
        share = evenness(seen["second_bytes"], seen["second_ns"], mean)
        weight_c = 0.1 if name.endswith(".25") else 0.25
        found[name] = (seen["totals"][..., 0] * share).sum(0) - weight_c * delay_c - 0.25 * delay_l
    np.testing.assert_allclose(found["fair"], even - 0.25 * (delay_c + delay_l), rtol=1e-9)
    ratios = [measure.goodput_ratio(batch, i) for i in range(seeds)]
    uneven = np.mean([abs(np.log(max(ratio, 1e-3))) if ratio is not None else np.nan for ratio in ratios])
    return {name: float(value.mean()) for name, value in found.items()}, float(uneven)


def main(seconds: float = 20.0, seeds: int = 5, out: Path = RESULTS) -> None:
    """Run all rows of the table.

    Args:
        seconds: Length of an episode.
        seeds: Episodes of each scenario.
        out: Where the results go.
    """
    chosen = [as_run(name, seconds, {}) for name in read_protocol().members("train")]
    means: dict[str, dict[str, dict[str, float]]] = {}
    uneven: dict[str, float] = {}
    for who in ROWS:
        found = {each.name: returns(who, each, seeds) for each in chosen}
        means[who] = {name: by_reward for name, (by_reward, _) in found.items()}
        uneven[who] = float(np.nanmean([value for _, value in found.values()]))
        print(who, flush=True)
    names = [*means[NATIVE][chosen[0].name]]
    scores = {
        who: {name: float(np.mean([normalised(means, who, each.name, name) for each in chosen])) for name in names}
        for who in ROWS
    }
    run: dict[str, Any] = {**origin(), "seconds": seconds, "seeds": seeds}
    append_run(out, {**run, "scores": scores, "uneven": uneven, "returns": means})
    for who in sorted(ROWS, key=lambda who: scores[who]["fair"]):
        print(f"{who:40}", *(f"{scores[who][name]:8.1f}" for name in names), f"{uneven[who]:6.2f}")


def normalised(means: dict[str, dict[str, dict[str, float]]], who: str, where: str, reward: str) -> float:
    """Score in a scenario: 0 random decisions, 100 native RFC 9332."""
    low, high = means[RANDOM][where][reward], means[NATIVE][where][reward]
    return 100.0 * (means[who][where][reward] - low) / (high - low)


if __name__ == "__main__":
    command_line(main)
