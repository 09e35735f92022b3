"""A closed loop with a look at its queues every few milliseconds: agents of every form, and disciplines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from l4s_gym.agents import protocol
from l4s_gym.agents.protocol import Agent, generators, policy_of
from l4s_gym.evaluation.harness import interval_env
from l4s_gym.forms import PACKET
from l4s_gym.sim import engine, layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.intervals import Intervals
from l4s_gym.sim.scenario import Scenario

Floats = npt.NDArray[np.float64]
Figure = Callable[[Batch], Floats]
"""A figure of each episode of a batch (n, ...)."""
Touch = Callable[[Batch, int, int], None]
"""Called with a batch, an episode and the time, ns, after a look at the episode."""
Decided = Callable[[Any, Any], None]
"""Called with observations and actions after an agent has decided."""


def delays_ms(batch: Batch) -> Floats:
    """Return the delays of C and L (n, 2), ms.

    It is the sojourn of the class's packet that left last, and of a queue of its own at least the time that its first
    packet has waited; 0 where nothing of the class is queued.
    """
    queue = batch.queue
    found_ns = np.where(queue["class_packets"] > 0, queue["class_delay_ns"], 0)
    dual = batch.env["dual"][:, None].astype(bool) & (queue["packets"] > 0)
    rows = np.arange(batch.n)[:, None]
    waited_ns = batch.env["now_ns"][:, None] - batch.packet["enqueued_ns"][rows, np.maximum(queue["head"], 0)]
    return np.asarray(1e-6 * np.maximum(found_ns, np.where(dual, waited_ns, 0)))


def base_probabilities(batch: Batch) -> Floats:
    """Return the base probability of the discipline (n,), 0 to 1."""
    return np.array([batch.base_probability(i) for i in range(batch.n)])


def mean_windows(batch: Batch) -> Floats:
    """Return ln of the mean congestion window of the flows that have one (n,)."""
    flow = batch.flow
    has = (flow["cc"] > 0) & (flow["running"] > 0)
    total = np.where(has, flow["cwnd"], 0.0).sum(1)
    return np.asarray(np.log(np.maximum(total / np.maximum(has.sum(1), 1), 1e-3)))


@dataclass
class Watched:
    """What was seen of n episodes at T looks.

    Attributes:
        scenario: Its name.
        seeds: Of the episodes (n).
        step_s: From one look to the next, s.
        target_ms: The operator's target of each episode (n,), ms.
        delay_ms: Of C and L (T, n, 2), see `delays_ms`.
        more: Other figures by name (T, n), as asked for.
        longest_ms: Longest that a packet of C and L waited in each episode, as it left or at a look (n, 2), ms.
        used: Share of the link's capacity that was used (n,).
    """

    scenario: str
    seeds: list[int]
    step_s: float
    target_ms: Floats
    delay_ms: Floats
    more: dict[str, Floats]
    longest_ms: Floats
    used: Floats


class _Looks:
    """Looks at the episodes of a batch each `step_ns`."""

    def __init__(self, batch: Batch, step_ns: int, more: dict[str, Figure], touch: Touch | None) -> None:
        self.batch, self.step_ns, self._touch = batch, step_ns, touch
        self._more = {"delay_ms": delays_ms, **more}
        self.count = np.zeros(batch.n, np.int64)
        self.most = (int(batch.env["horizon_ns"].min()) - 1) // step_ns  # an episode that ends does not stop
        self.seen: dict[str, Floats] = {
            name: np.full((self.most, *make(batch).shape), np.nan) for name, make in self._more.items()
        }

    def next(self, i: int) -> None:
        """Make episode `i` stop at its next look."""
        self.batch.stop_at(i, (int(self.count[i]) + 1) * self.step_ns)

    def look(self, rows: Sequence[int]) -> None:
        """Look at some episodes, which have stopped."""
        found = {name: make(self.batch) for name, make in self._more.items()}
        for i in rows:
            k = int(self.count[i])
            self.count[i] += 1
            if k < self.most:
                for name, values in found.items():
                    self.seen[name][k, i] = values[i]
                if self._touch is not None:
                    self._touch(self.batch, i, (k + 1) * self.step_ns)
            self.next(i)

    def stopped(self) -> list[int]:
        """Return the episodes that have stopped for a look."""
        found: list[int] = np.flatnonzero(self.batch.status == layout.STOPPED).tolist()
        return found


class _InParts:
    """A batch whose `advance` runs an interval in parts, with a look after each."""

    def __init__(self, looks: _Looks, parts: int) -> None:
        self._looks, self._parts = looks, parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._looks.batch, name)

    def advance(self) -> int:
        looks, batch = self._looks, self._looks.batch
        total, highest = np.zeros(batch.n), 0
        for _ in range(self._parts):
            runs = batch.status < layout.TERMINATED
            for i in np.flatnonzero(runs).tolist():
                looks.next(i)
            highest = batch.advance()
            np.add(total, batch.reward, out=total, where=runs)
            looks.look(looks.stopped())
        batch.reward[:] = total
        return highest


def watch(
    who: str | Agent,
    scenario: Scenario,
    seeds: Sequence[int],
    *,
    step_ms: float = 20.0,
    aqm: str | None = None,
    control_interval_ms: float | None = None,
    decision_interval: int = 1,
    more: dict[str, Figure] | None = None,
    touch: Touch | None = None,
    decided: Decided | None = None,
) -> Watched:
    """Run episodes of a scenario, and look at their queues.

    Equal seeds give equal episodes: the random numbers of traffic and engine, and the draws of agents that decide
    inside the engine, are those of the seed.

    Args:
        who: Name of a discipline, or an agent.
        scenario: What is simulated; all of it is seen, the warm-up too.
        seeds: Of the episodes.
        step_ms: From one look to the next; for an agent of control intervals the nearest part of an interval.
        aqm: Discipline under an agent, as in `harness.evaluate`.
        control_interval_ms: As in `harness.evaluate`.
        decision_interval: As in `harness.evaluate`.
        more: Other figures to look at, by name: from a batch to (n,).
        touch: Called after each look at an episode; it may change the batch.
        decided: Called after each decision of an agent outside the engine.
    """
    scenario = scenario.replace(warmup_s=0.0)  # nothing is reset on the way
    agent = None if isinstance(who, str) else who
    extra = more or {}
    if agent is not None and protocol.form_of(agent) != PACKET:
        interval_ms = protocol.control_interval_ms(agent) if control_interval_ms is None else control_interval_ms
        parts = max(round(interval_ms / step_ms), 1)
        env = interval_env(agent, scenario, seeds, aqm, interval_ms, num_threads=1)
        looks = _Looks(env.batch, round(1e6 * interval_ms / parts), extra, touch)
        targets = _targets_ms(env.batch)
        env.intervals = Intervals(_InParts(looks, parts), round(1e6 * interval_ms), env.form.features)  # type: ignore[arg-type]
        for i in range(env.batch.n):
            env.intervals.start(i)
        agent.reset(len(seeds), seeds[0])
        reward = np.zeros(len(seeds))
        while (env.batch.status < layout.TERMINATED).any():
            obs = env.buffers["obs"]
            actions = np.asarray(agent.act(obs, reward))
            if decided is not None:
                decided(obs, actions)
            env.go_on(actions)
            reward = env.batch.reward.copy()
        return _watched(scenario, seeds, looks, targets)
    policy = None if agent is None else policy_of(agent)
    decider = layout.NATIVE if agent is None else layout.AGENT if policy is None else layout.POLICY
    name = who if isinstance(who, str) else aqm
    batch = Batch(
        scenario, len(seeds), aqm=name, decider=decider, interval=decision_interval, policy=policy, num_threads=1
    )
    for i, seed in enumerate(seeds):
        batch.reset(i, seeding.np_random(seed)[0])
    if policy is not None:
        batch.start_policy([generators(1, seed)[0] for seed in seeds])
        batch.rule["left"] = layout.NEVER
    looks, targets = _Looks(batch, round(1e6 * step_ms), extra, touch), _targets_ms(batch)
    for i in range(batch.n):
        looks.next(i)
    if agent is not None and policy is None:
        agent.reset(len(seeds), seeds[0])
    while True:
        batch.advance()
        while stopped := looks.stopped():
            looks.look(stopped)
            if decider != layout.AGENT:
                break
            for i in stopped:  # up to their next decisions
                earned = batch.reward[i]
                engine.advance(batch.address, batch.stride, i, i + 1, 0)
                batch.reward[i] += earned
        if (batch.status >= layout.TERMINATED).all():
            return _watched(scenario, seeds, looks, targets)
        if decider == layout.AGENT and agent is not None:
            batch.action[:] = agent.act(batch.obs, batch.reward)
            if decided is not None:
                decided(batch.obs, batch.action)


def _targets_ms(batch: Batch) -> Floats:
    return np.asarray(1e-3 * batch.env["target_us"])


def _watched(scenario: Scenario, seeds: Sequence[int], looks: _Looks, targets: Floats) -> Watched:
    batch, seen = looks.batch, dict(looks.seen)
    delays, longest = seen.pop("delay_ms"), 1e-6 * batch.queue["max_delay_ns"].astype(np.float64)
    # What is dropped as it leaves has waited too.
    longest = np.maximum(longest, np.nan_to_num(delays).max(0, initial=0.0))
    used = [min(batch.carried_bytes(i) / max(batch.capacity_bytes(i), 1.0), 1.0) for i in range(batch.n)]
    return Watched(
        scenario.name,
        list(seeds),
        1e-9 * looks.step_ns,
        targets,
        delays,
        seen,
        longest,
        np.array(used),
    )
