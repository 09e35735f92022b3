"""Run an agent or a native discipline on a scenario over seeds, and measure what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from l4s_gym import rewards
from l4s_gym.agents import AgentSpec
from l4s_gym.agents.protocol import Agent, Floats, generators, policy_of
from l4s_gym.data.intervals import random_returns
from l4s_gym.data.recipes import Recipe
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET
from l4s_gym.schema import ACTIONS
from l4s_gym.sim import disciplines, layout, measure
from l4s_gym.sim.batch import Batch, Outputs, run_on
from l4s_gym.sim.jit import entry
from l4s_gym.sim.scenario import Scenario, load
from l4s_gym.sim.workers import cores

LATENCY_CALLS = 300
STRETCH = 2000
"""Decisions that a policy takes in each episode before Python sees to progress and Ctrl-C."""
QUANTILES = (
    *(0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99),
    *(0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999, 1.0),
)
"""Probabilities of `Result.delay_quantiles`: enough to draw the distribution, dense in the tail."""
_ACTIONS = len(ACTIONS)
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Result:
    """One agent, one scenario, one seed.

    Attributes:
        agent: Name, as `native:<aqm>` or as the agent calls itself.
        rule: Decision rule of the agent (`sample`, `argmax`, `diffuse`), or "-".
        scenario: Name of the scenario.
        aqm: Discipline underneath.
        seed: Seed of the episode.
        reward: The reward, as `l4s_gym.rewards.canonical` has it.
        episode_return: Sum of the rewards of the whole episode, warm-up included.
        decisions: Decisions that the agent took after the warm-up (a native discipline: packets offered).
        utilisation: Share of the link's capacity that was used, after the warm-up (as all that follows).
        delay_ms: By class C and L: mean, p50, p95, p99, max of the sojourn times.
        delay_quantiles: By class, the quantiles at `QUANTILES`, ms, to four digits (the bins are 3 % wide).
        delay_sd_ms: By class, their standard deviation.
        mark_rate: Marks by packets offered.
        drop_rate: Drops by packets offered.
        goodput_mbps: Payload delivered, per flow.
        goodput_ratio: Mean goodput of the L4S flows by that of the Classic flows; None without both.
        jain: Jain's index of the goodputs.
        classes: Counts by class.
        latency_us: Time of one call of the agent's `act` for one environment: p50 and p99; None: there is no agent.
        cost: What the agent says of its size.
        wall_s: Time that the run took, shared by the episodes that ran side by side.
    """

    agent: str
    rule: str
    scenario: str
    aqm: str
    seed: int
    reward: str
    episode_return: float
    decisions: int
    utilisation: float
    delay_ms: dict[str, measure.Delay]
    delay_quantiles: dict[str, list[float]]
    delay_sd_ms: dict[str, float]
    mark_rate: float
    drop_rate: float
    goodput_mbps: list[float]
    goodput_ratio: float | None
    jain: float
    classes: dict[str, measure.ClassSummary]
    latency_us: dict[str, float] | None
    cost: dict[str, float]
    wall_s: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def quantiles_ms(hist: npt.NDArray[np.integer]) -> list[float]:
    """Quantiles of a delay histogram at `QUANTILES`, ms."""
    return [float(f"{measure.quantile(hist, q) * 1e-6:.4g}") for q in QUANTILES]


def _stop_after_warmup(batch: Batch) -> None:
    for i in range(batch.n):
        batch.stop_after_warmup(i)


def _settle(batches: Sequence[Batch], out: Outputs, total: Floats, open_: npt.NDArray[np.bool_]) -> None:
    """What follows a step that is not the next decision everywhere: rewards, ends, and the end of the warm-up.

    Args:
        batches: One after the other, as in `out`.
        out: Of all batches.
        total: Returns so far (n,); those of this step are added.
        open_: Which episodes have not ended (n,); brought up to date.
    """
    for batch in batches if out.status.max() == layout.POOL_EMPTY or (out.status == layout.STOPPED).any() else ():
        batch.check_status()
        batch.leave_warmup()
    np.add(total, out.reward, out=total, where=open_)
    np.less(out.status, layout.TERMINATED, out=open_)


@entry
def _next(status: npt.NDArray[np.int64], reward: Floats, total: Floats, open_: npt.NDArray[np.bool_]) -> bool:
    """Add the rewards of a step, if it is the next decision of all episodes that have not ended."""
    for i in range(len(status)):
        if open_[i] and status[i] != layout.DECISION:
            return False
    for i in range(len(status)):
        if open_[i]:
            total[i] += reward[i]
    return True


@entry
def _take(found: npt.NDArray[np.int64], action: npt.NDArray[np.int64]) -> bool:
    """Copy actions; False: one is none."""
    good = True
    for i in range(len(action)):
        action[i] = found[i]
        good &= 0 <= found[i] < _ACTIONS
    return good


def _decide(agent: Agent, out: Outputs) -> None:
    """Ask the agent, which anybody may have written, and write its actions to where the engine reads them."""
    found = np.asarray(agent.act(out.obs, out.reward))
    n = len(out.action)
    if found.shape == (n,) and found.dtype.kind in "iu" and _take(found.astype(np.int64, copy=False), out.action):
        return
    what = f"{found.dtype} of shape {found.shape}" + (f", {found.min()} to {found.max()}" if found.size else "")
    raise L4SError(f"agent {agent.name}: act returned {what}: return {n} integers from 0 to {_ACTIONS - 1}")


def _run(batches: Sequence[Batch], out: Outputs, agent: Agent, progress: Progress | None) -> npt.NDArray[np.float64]:
    """Run all episodes of some batches to their ends, one decision of each at a time; the returns, (n,)."""
    total, open_ = np.zeros(len(out.status)), np.ones(len(out.status), bool)
    for batch in batches:
        _stop_after_warmup(batch)
    calls = 0
    while True:
        for batch in batches:
            batch.advance_unchecked()
        if not _next(out.status, out.reward, total, open_):  # seldom
            _settle(batches, out, total, open_)
            if not open_.any():
                return total
        _decide(agent, out)
        calls += 1
        if progress is not None and calls % 1000 == 0:
            progress(_done(batches))


def _done(batches: Sequence[Batch]) -> float:
    """Share of the episodes that is done: of the one that is furthest behind."""
    return min(float((b.env["now_ns"] / b.env["horizon_ns"]).min()) for b in batches)


def _run_inside(
    batches: Sequence[Batch], out: Outputs, executor: Executor | None, progress: Progress | None
) -> npt.NDArray[np.float64]:
    """As `_run`, where the engine decides by itself: the discipline, or a policy."""
    total, open_ = np.zeros(len(out.status)), np.ones(len(out.status), bool)
    for batch in batches:
        _stop_after_warmup(batch)
    while open_.any():
        for batch in batches:
            batch.rule["left"] = STRETCH
        run_on(batches, executor)
        _settle(batches, out, total, open_)
        if progress is not None:
            progress(_done(batches))
    return total


def latency_us(agent: Agent, observations: npt.NDArray[np.float32]) -> dict[str, float]:
    """Time of one decision for one environment, us: median and 99th percentile of `LATENCY_CALLS` calls."""
    agent.reset(1, 0)
    reward = np.zeros(1)
    times = []
    for k in range(LATENCY_CALLS):
        row = observations[k % len(observations)][None]
        start = time.perf_counter_ns()
        agent.act(row, reward)
        times.append((time.perf_counter_ns() - start) * 1e-3)
    kept = times[LATENCY_CALLS // 10 :]
    return {"p50": float(np.percentile(kept, 50)), "p99": float(np.percentile(kept, 99))}


def resolve(who: str | AgentSpec | Agent) -> tuple[Agent | None, str | None]:
    """An agent, or else the name of the native discipline that decides.

    Raises:
        L4SError: There is no such agent or discipline.
    """
    spec = AgentSpec.parse(who) if isinstance(who, str) else who
    if not isinstance(spec, AgentSpec):
        return spec, None
    if spec.native is None:
        return spec.make(), None
    disciplines.get(spec.native)
    return None, spec.native


def evaluate(
    who: str | Agent,
    scenario: str | Scenario = "l4s-llm-testbed",
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    aqm: str | None = None,
    reward: rewards.Reward = rewards.DEFAULT,
    decision_interval: int = 1,
    progress: Progress | None = None,
) -> list[Result]:
    """Evaluate in closed loop; the seeds run side by side.

    Args:
        who: The spec of an agent or discipline (`l4s_gym.agents.spec`), or an agent.
        scenario: Name, path, or scenario.
        seeds: Seeds of the episodes; each is that of `reset(seed=)` of a single environment.
        aqm: Discipline under an agent; None: the scenario's own.
        reward: Name or weights of the reward, see `l4s_gym.rewards`.
        decision_interval: Ask the agent at each n-th packet.
        progress: Called with the share of the episodes that is done.

    Returns:
        One result a seed.

    Raises:
        L4SError: Unknown agent, discipline, scenario or reward; no seeds.
    """
    return evaluate_many(
        who, [scenario], seeds=seeds, aqm=aqm, reward=reward, decision_interval=decision_interval, progress=progress
    )


def reference_scores(recipe: Recipe) -> dict[str, Any]:
    """Returns of the random agent and of native DualPI2 (RFC 9332) where agents of a dataset are evaluated.

    All datasets have the same references, so that normalised scores mean the same everywhere; those of control
    intervals also have `random_actions`: actions drawn from their action space.
    """
    seeds = [0, 1, 2, 3, 4]
    scores: dict[str, Any] = {"scenario": recipe.evaluated_on, "reward": rewards.DEFAULT, "seeds": seeds}
    for name, who in (("random", "random"), ("native", "native:dualpi2_rfc9332")):
        scores[name] = [result.episode_return for result in evaluate(who, recipe.evaluated_on, seeds=seeds)]
    if recipe.form != PACKET:
        scores["random_actions"] = random_returns(
            recipe.form, load(recipe.evaluated_on), seeds, recipe.control_interval_ms
        )
    return scores


def evaluate_many(
    who: str | AgentSpec | Agent,
    scenarios: Sequence[str | Scenario],
    *,
    seeds: Sequence[int],
    agent_seed: int | None = None,
    aqm: str | None = None,
    reward: rewards.Reward = rewards.DEFAULT,
    decision_interval: int = 1,
    progress: Progress | None = None,
    threads: int | None = None,
) -> list[Result]:
    """Evaluate in several scenarios at once.

    An agent with a policy (`l4s_gym.agents.protocol.policy_of`) decides inside the engine, with the same draws. Any
    other is asked for all episodes at once, as a decision is much cheaper in a larger batch. Each episode is what it is
    alone, as far as the agent's arithmetic does not depend on the size of its batch.

    Args:
        who: As in `evaluate`.
        scenarios: Best of similar numbers of packets: the batch keeps its size until the last episode ends.
        seeds: As in `evaluate`; the same for each scenario.
        agent_seed: The agent's draws in episode i of scenario k are those of seed `agent_seed + k * len(seeds) + i`;
            None: the first of the seeds.
        aqm: As in `evaluate`.
        reward: As in `evaluate`.
        decision_interval: As in `evaluate`.
        progress: As in `evaluate`.
        threads: Threads that run episodes in which nobody outside the engine is asked; None: one a core.

    Returns:
        One result for each scenario and seed, in this order.
    """
    if not seeds:
        raise L4SError("seeds: give at least one")
    chosen = [load(scenario) for scenario in scenarios]
    agent, native = resolve(who)
    if agent is None:
        rewards.check_timed(reward, f"{who}: ")
    n = len(seeds)
    first = seeds[0] if agent_seed is None else agent_seed
    if agent is not None:
        agent.reset(n * len(chosen), first)
    policy = None if agent is None else policy_of(agent)
    decider = layout.NATIVE if agent is None else layout.AGENT if policy is None else layout.POLICY
    options: dict[str, Any] = {"decider": decider, "interval": decision_interval, "reward": reward, "policy": policy}
    options["aqm"] = native or aqm
    out = Outputs.of(n * len(chosen))
    batches = [Batch(s, n, outputs=out.part(k * n, (k + 1) * n), **options) for k, s in enumerate(chosen)]
    for k, batch in enumerate(batches):
        for i, seed in enumerate(seeds):
            batch.reset(i, seeding.np_random(seed)[0])
        if policy is not None:
            batch.start_policy(generators(n, first + k * n))
    start = time.perf_counter()
    if agent is not None and policy is None:
        returns = _run(batches, out, agent, progress)
    else:
        count = threads or cores()
        with ThreadPoolExecutor(count) if count > 1 else nullcontext() as executor:
            returns = _run_inside(batches, out, executor, progress)
    wall_s = time.perf_counter() - start
    timed = None if agent is None else latency_us(agent, out.obs.copy())
    about: dict[str, Any] = {
        "agent": str(who) if agent is None else agent.name,
        "rule": "-" if agent is None else agent.rule,
        "reward": rewards.canonical(reward),
        "latency_us": timed,
        "cost": {} if agent is None else agent.cost(),
        "wall_s": wall_s,
    }
    return [
        _result(batch, i, seed, float(total[i]), agent is not None, about)
        for batch, total in zip(batches, returns.reshape(len(chosen), n), strict=True)
        for i, seed in enumerate(seeds)
    ]


def _result(batch: Batch, i: int, seed: int, episode_return: float, asked: bool, about: dict[str, Any]) -> Result:
    """What episode `i` of a batch came to."""
    s = measure.summary(batch, i)
    hists = dict(zip(measure.CLASSES, batch.hist[i], strict=True))
    return Result(
        scenario=batch.scenario_of(i).name,
        aqm=batch.aqm_of(i),
        seed=int(seed),
        episode_return=episode_return,
        decisions=int(batch.env["decisions"][i] if asked else sum(c["offered"] for c in s["classes"].values())),
        utilisation=s["utilisation"],
        delay_ms=s["delay_ms"],
        delay_quantiles={name: quantiles_ms(hist) for name, hist in hists.items()},
        delay_sd_ms={name: measure.deviation(hist) * 1e-6 for name, hist in hists.items()},
        mark_rate=s["mark_rate"],
        drop_rate=s["drop_rate"],
        goodput_mbps=s["goodput_mbps"],
        goodput_ratio=s["goodput_ratio"],
        jain=s["jain"],
        classes=s["classes"],
        **about,
    )
