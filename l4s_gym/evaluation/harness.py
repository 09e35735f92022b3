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

from l4s_gym import forms, rewards
from l4s_gym.agents import AgentSpec
from l4s_gym.agents import protocol as agents
from l4s_gym.agents.protocol import Agent, Floats, generators, policy_of
from l4s_gym.agents.rules import random_agent
from l4s_gym.data.recipes import Recipe
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET
from l4s_gym.schema import ACTIONS
from l4s_gym.sim import disciplines, layout, measure
from l4s_gym.sim.batch import Batch, Outputs, run_on
from l4s_gym.sim.jit import entry
from l4s_gym.sim.scenario import Scenario, load
from l4s_gym.sim.workers import cores

LATENCY_CALLS, LATENCY_S = 300, 1.0
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
        decisions: Decisions that the agent took after the warm-up, about packets or control intervals (a native
            discipline: packets offered).
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
    raise _refused(agent, found, f"{n} integers from 0 to {_ACTIONS - 1}")


def _refused(agent: Agent, found: npt.NDArray[Any], wanted: str) -> L4SError:
    """The error of an agent that returned something else than it should."""
    numbers = found.size > 0 and found.dtype.kind in "biuf"
    what = f"{found.dtype} of shape {found.shape}" + (f", {found.min()} to {found.max()}" if numbers else "")
    return L4SError(f"agent {agent.name}: act returned {what}: return {wanted}")


def _decide_intervals(agent: Agent, form: forms.Form, obs: agents.Observations, reward: Floats) -> agents.Values:
    """Ask an agent of an interval form."""
    found = np.asarray(agent.act(obs, reward))
    shape = len(obs), len(form.low)
    if found.shape == shape and found.dtype.kind == "f" and ((found >= form.low) & (found <= form.high)).all():
        return found
    ends = ", ".join(f"{low:g} to {high:g}" for low, high in sorted({*zip(form.low, form.high, strict=True)}))
    raise _refused(agent, found, f"floats of shape {shape}, from {ends}")


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
    """Time of one decision for one environment, us: median and 99th percentile.

    Of `LATENCY_CALLS` calls, or of fewer, the first `LATENCY_S` seconds of them.
    """
    agent.reset(1, 0)
    reward = np.zeros(1)
    times, left_us = [], 1e6 * LATENCY_S
    for k in range(LATENCY_CALLS):
        row = observations[k % len(observations)][None]
        start = time.perf_counter_ns()
        agent.act(row, reward)
        times.append((time.perf_counter_ns() - start) * 1e-3)
        left_us -= times[-1]
        if left_us < 0.0:
            break
    kept = times[len(times) // 10 :]
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
    control_interval_ms: float | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Evaluate in closed loop; the seeds run side by side.

    Args:
        who: The spec of an agent or discipline (`l4s_gym.agents.spec`), or an agent.
        scenario: Name, path, or scenario.
        seeds: Seeds of the episodes; each is that of `reset(seed=)` of a single environment.
        aqm: Discipline under an agent; None: the scenario's own, or RFC 9332 where the agent sets parameters that this
            one does not have.
        reward: Name or weights of the reward, see `l4s_gym.rewards`.
        decision_interval: Ask the agent at each n-th packet.
        control_interval_ms: Of an agent that decides for control intervals: their length, simulated ms; None: the one
            that it was trained for, or `l4s_gym.forms.INTERVAL_MS`.
        progress: Called with the share of the episodes that is done.

    Returns:
        One result a seed.

    Raises:
        L4SError: Unknown agent, discipline, scenario or reward; no seeds; an interval of another form.
    """
    return evaluate_many(
        who,
        [scenario],
        seeds=seeds,
        aqm=aqm,
        reward=reward,
        decision_interval=decision_interval,
        control_interval_ms=control_interval_ms,
        progress=progress,
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
        agent, every_ms = random_agent(recipe.form), recipe.control_interval_ms
        played = evaluate(agent, recipe.evaluated_on, seeds=seeds, control_interval_ms=every_ms)
        scores["random_actions"] = [result.episode_return for result in played]
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
    control_interval_ms: float | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> list[Result]:
    """Evaluate in several scenarios at once.

    An agent with a policy (`l4s_gym.agents.protocol.policy_of`) decides inside the engine, with the same draws. Any
    other is asked for all episodes at once, as a decision is much cheaper in a larger batch. Each episode is what it is
    alone, as far as the agent's arithmetic does not depend on the size of its batch.

    An agent of an interval form is asked in the environment of its form. The statistics then begin with the first
    interval that starts after the warm-up.

    Args:
        who: As in `evaluate`.
        scenarios: Best of similar numbers of packets: the batch keeps its size until the last episode ends.
        seeds: As in `evaluate`; the same for each scenario.
        agent_seed: The agent's draws in episode i of scenario k are those of seed `agent_seed + k * len(seeds) + i`;
            None: the first of the seeds.
        aqm: As in `evaluate`.
        reward: As in `evaluate`.
        decision_interval: As in `evaluate`.
        control_interval_ms: As in `evaluate`.
        progress: As in `evaluate`.
        threads: Threads that run episodes in which nobody outside the engine is asked; None: one a core.

    Returns:
        One result for each scenario and seed, in this order.
    """
    if not seeds:
        raise L4SError("seeds: give at least one")
    chosen = [load(scenario) for scenario in scenarios]
    agent, native = resolve(who)
    n = len(seeds)
    first = seeds[0] if agent_seed is None else agent_seed
    form = PACKET if agent is None else agents.form_of(agent)
    if agent is None:
        rewards.check_timed(reward, f"{who}: ")
    else:
        wrong = control_interval_ms is not None if form == PACKET else decision_interval != 1
        if wrong:
            name = "control_interval_ms" if form == PACKET else "decision_interval"
            raise L4SError(f"{name}: agent {agent.name} decides in the form {form!r}: leave it out")
        agent.reset(n * len(chosen), first)
    start = time.perf_counter()
    if agent is None or form == PACKET:
        batches, obs, returns = _run_packets(
            agent, native or aqm, chosen, seeds, first, reward, decision_interval, progress, threads
        )
        asked = [batch.env["decisions"] for batch in batches]
    else:
        batches, obs, returns, asked = _run_intervals(
            agent, aqm, chosen, seeds, reward, control_interval_ms, progress, threads
        )
    wall_s = time.perf_counter() - start
    about: dict[str, Any] = {
        "agent": str(who) if agent is None else agent.name,
        "rule": "-" if agent is None else agent.rule,
        "reward": rewards.canonical(reward),
        "latency_us": None if agent is None else latency_us(agent, obs),
        "cost": {} if agent is None else agent.cost(),
        "wall_s": wall_s,
    }
    return [
        _result(batch, i, seed, float(total[i]), None if agent is None else int(count[i]), about)
        for batch, total, count in zip(batches, returns.reshape(len(chosen), n), asked, strict=True)
        for i, seed in enumerate(seeds)
    ]


def _run_packets(
    agent: Agent | None,
    aqm: str | None,
    chosen: Sequence[Scenario],
    seeds: Sequence[int],
    first: int,
    reward: rewards.Reward,
    interval: int,
    progress: Progress | None,
    threads: int | None,
) -> tuple[list[Batch], agents.Observations, Floats]:
    """Run where packets are decided about; batches, last observations and returns of all episodes."""
    n = len(seeds)
    policy = None if agent is None else policy_of(agent)
    decider = layout.NATIVE if agent is None else layout.AGENT if policy is None else layout.POLICY
    options: dict[str, Any] = {"decider": decider, "interval": interval, "reward": reward, "policy": policy}
    out = Outputs.of(n * len(chosen))
    batches = [Batch(s, n, outputs=out.part(k * n, (k + 1) * n), aqm=aqm, **options) for k, s in enumerate(chosen)]
    for k, batch in enumerate(batches):
        for i, seed in enumerate(seeds):
            batch.reset(i, seeding.np_random(seed)[0])
        if policy is not None:
            batch.start_policy(generators(n, first + k * n))
    if agent is not None and policy is None:
        return batches, out.obs, _run(batches, out, agent, progress)
    count = threads or cores()
    with ThreadPoolExecutor(count) if count > 1 else nullcontext() as executor:
        return batches, out.obs, _run_inside(batches, out, executor, progress)


def _run_intervals(
    agent: Agent,
    aqm: str | None,
    chosen: Sequence[Scenario],
    seeds: Sequence[int],
    reward: rewards.Reward,
    interval_ms: float | None,
    progress: Progress | None,
    threads: int | None,
) -> tuple[list[Batch], agents.Observations, Floats, list[npt.NDArray[np.int64]]]:
    """Run where control intervals are decided about; as `_run_packets`, and the intervals after the warm-up (n,)."""
    form, n = forms.get(agents.form_of(agent)), len(seeds)
    interval_ms = agents.control_interval_ms(agent) if interval_ms is None else interval_ms
    envs = [interval_env(agent, each, seeds, aqm, interval_ms, reward=reward, num_threads=threads) for each in chosen]

    def seen(name: str) -> Any:
        return np.concatenate([env.buffers[name] for env in envs])

    total, open_ = np.zeros(n * len(envs)), np.ones(n * len(envs), bool)
    batches: list[Batch] = [env.batch for env in envs]
    calls = 0
    while open_.any():
        actions = _decide_intervals(agent, form, seen("obs"), seen("reward"))
        for k, env in enumerate(envs):
            env.go_on(actions[k * n : (k + 1) * n])
        np.add(total, seen("reward"), out=total, where=open_)
        np.less(seen("status"), layout.TERMINATED, out=open_)
        calls += 1
        if progress is not None and calls % 50 == 0:
            progress(_done(batches))
    interval_ns = round(1e6 * interval_ms)
    asked = [-((batch.env["since_ns"] - batch.env["now_ns"]) // interval_ns) for batch in batches]
    return batches, seen("obs"), total, asked


def interval_env(
    agent: Agent, scenario: Scenario, seeds: Sequence[int], aqm: str | None, interval_ms: float, **more: Any
) -> Any:
    """The vector environment of an agent of an interval form, with an episode started for each seed.

    Without `aqm`, the discipline is the scenario's own, or RFC 9332 where the form sets parameters that this one lacks.
    Options over which the agent was trained (`l4s_gym.agents.protocol.options_of`) replace the scenario's.
    """
    form, options = forms.get(agents.form_of(agent)), agents.options_of(agent)
    if aqm is None and form.name == "parameters" and not disciplines.get(scenario.aqm).tune:
        aqm = "dualpi2_rfc9332"
    how: dict[str, Any] = {"control_interval_ms": interval_ms, "autoreset_mode": "disabled", "copy": False}
    env = form.vector_class(len(seeds), scenario, aqm=aqm, options=options, **how, **more)
    env.reset(seed=list(seeds))
    return env


def _result(batch: Batch, i: int, seed: int, episode_return: float, asked: int | None, about: dict[str, Any]) -> Result:
    """What episode `i` of a batch came to; `asked`: decisions of the agent, if there is one."""
    s = measure.summary(batch, i)
    hists = dict(zip(measure.CLASSES, batch.hist[i], strict=True))
    return Result(
        scenario=batch.scenario_of(i).name,
        aqm=batch.aqm_of(i),
        seed=int(seed),
        episode_return=episode_return,
        decisions=sum(c["offered"] for c in s["classes"].values()) if asked is None else asked,
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
