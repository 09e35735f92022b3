"""What a student learns from: labels of a teacher in closed loop, where the student drives (data aggregation).

Ross, Gordon and Bagnell, "A reduction of imitation learning and structured prediction to no-regret online learning"
(AISTATS 2011): a student that learned from the teacher's own episodes leaves the states that it has seen. So it drives
the next episodes, and the teacher says at each step what it would have done; the student then learns from all rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.agents import online
from l4s_gym.agents.protocol import (
    RULES,
    Agent,
    DecisionRule,
    Floats,
    Observations,
    control_interval_ms,
    form_of,
    options_of,
    policy_of,
)
from l4s_gym.agents.training import trained_interval
from l4s_gym.schema import ACTIONS, DROP
from l4s_gym.sim import layout

MOST_ENVS: Final = 1024
"""Episodes side by side, at most."""
PACKET_ENVS: Final = 32
"""Likewise, where packets are decided about."""


def whole(labels: Floats) -> Floats:
    """Return the probabilities of all actions (n, 3) of those of drop and mark (n, 2)."""
    return np.concatenate([1.0 - labels.sum(1, keepdims=True), labels], 1)


class Teacher:
    """An agent that is asked what it would do.

    A label is the numbers of an action, or the probabilities of drop and mark. These are the agent's own; of one that
    takes the likeliest action, or that tells no probabilities, the action that it takes has probability 1.

    Attributes:
        agent: The agent.
        form: In which it decides.
        alone: Whether it decides from an observation alone, so that it need not see all of them.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent: Any = agent
        self.form = forms.get(form_of(agent))
        policy = None if self.form.low else policy_of(agent)
        self.alone = policy is not None
        self._told = hasattr(agent, "took")
        soft = agent.rule in RULES and agent.rule != "argmax"
        self._policy = policy if soft else None
        self._asks = soft and self._told
        self._rule = DecisionRule(agent.rule if self._policy or self._asks else "argmax")

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        self.agent.reset(n, seed)
        self._rule.reset(n, seed)

    def label(self, obs: Observations, rewards: Floats) -> Floats:
        """Return labels (n, K) of the next observations (n, F)."""
        if self.form.low:
            return np.asarray(self.agent.act(obs, rewards), np.float64)
        if self._policy is not None:
            found = self._policy.probabilities(obs)
        elif self._asks:
            found = np.asarray(self.agent.probabilities(obs, rewards), np.float64)
        else:
            found = np.eye(len(ACTIONS))[self.agent.act(obs, rewards)]
        return found[:, DROP:]

    def own(self, obs: Observations, labels: Floats) -> npt.NDArray[Any]:
        """Return its own actions, (n, K) or (n,), by its labels."""
        if self.form.low:
            return labels
        return self._rule.decide(whole(labels), obs[:, 0])

    def took(self, actions: npt.NDArray[Any]) -> None:
        """Say what was done instead."""
        if self._told:
            self.agent.took(actions)


@dataclass(frozen=True)
class Lessons:
    """Labelled episodes.

    Attributes:
        observations: (E, T, F).
        labels: (E, T, K); not a number after the end of an episode.
        returns: Return of each episode (E,).
    """

    observations: npt.NDArray[np.float32]
    labels: Floats
    returns: Floats

    @property
    def there(self) -> npt.NDArray[np.bool_]:
        """Which steps are there (E, T)."""
        return np.asarray(np.isfinite(self.labels).all(-1))

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Join the episodes of several rounds, which have equally many steps."""
        names = "observations", "labels", "returns"
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Plan:
    """What a round is.

    Attributes:
        envs: Episodes side by side.
        steps: Decisions in each of them.
        every: Of so many decisions one is labelled.
    """

    envs: int
    steps: int
    every: int = 1

    @classmethod
    def of(cls, teacher: Teacher, labels: int, rounds: int, seconds: float, packets: int) -> Self:
        """Plan rounds within a budget of labels.

        Args:
            teacher: The teacher.
            labels: How often it may be asked in all rounds.
            rounds: How many these are.
            seconds: Length of an episode, s, where control intervals are decided about.
            packets: Likewise in packets.
        """
        each = max(labels // rounds, 1)
        if teacher.form.low:
            steps = max(round(1e3 * seconds / control_interval_ms(teacher.agent)), 1)
            envs = min(max(each // steps, 2), MOST_ENVS)
            return cls(envs, max(min(steps, each // envs), 1))
        envs = min(PACKET_ENVS, max(each // 2, 2))
        if teacher.alone:
            return cls(envs, packets, -(-envs * packets // each))
        return cls(envs, max(min(packets, each // envs), 1))


class School:
    """The episodes in which a student learns.

    Attributes:
        interval_ms: Length of a control interval; 0: packets are decided about.
        law: Over what the student decides, as `training` of `agent.json` tells it: the teacher's interval and options.

    Args:
        teacher: Labels them.
        plan: What a round is.
        scenarios: What is drawn from for each episode.
        seconds: Length of an episode, s.
        seed: Of everything that is drawn.
    """

    def __init__(self, teacher: Teacher, plan: Plan, scenarios: str, seconds: float, seed: int) -> None:
        self.teacher, self.plan, self._seed = teacher, plan, seed
        about, form = teacher.agent, teacher.form
        interval: dict[str, Any] = {"control_interval_ms": control_interval_ms(about)}
        if not form.low:
            interval = {"decision_interval": trained_interval(getattr(about, "training", {}))}
        self.interval_ms = float(interval.get("control_interval_ms", 0.0))
        self.law = {**interval, "options": options_of(about)}
        mode = "disabled" if form.low else "same_step"
        self.env = online.environment(
            form.name, scenarios, plan.envs, seconds, self.law["options"], autoreset_mode=mode, **interval
        )

    def round(self, number: int, student: Agent | None, tell: Callable[[float], None] | None = None) -> Lessons:
        """Play a round.

        Args:
            number: Number of the round, which sets scenarios and traffic.
            student: Who drives; None: the teacher.
            tell: Called with the share of the round that is done.
        """
        plan, env, teacher = self.plan, self.env, self.teacher
        rng = np.random.default_rng([self._seed, number])
        first = int(rng.integers(2**31))
        for each in (teacher, student):
            if each is not None:
                each.reset(plan.envs, first)
        obs, _ = env.reset(seed=online.seeds(rng, plan.envs).tolist())
        reward, status = env.buffers["reward"], env.buffers["status"]
        seen: list[Observations] = []
        labels: list[Floats] = []
        total, open_ = np.zeros(plan.envs), np.ones(plan.envs, bool)
        for step in range(plan.steps):
            wanted = step % plan.every == 0
            if wanted or student is None or not teacher.alone:
                label = teacher.label(obs, reward)
            actions = teacher.own(obs, label) if student is None else student.act(obs, reward)
            teacher.took(actions)
            if wanted:
                seen.append(obs.copy())
                labels.append(np.where(open_[:, None], label, np.nan))
            if teacher.form.low:
                env.go_on(actions)
                np.add(total, reward, out=total, where=open_)
                np.less(status, layout.TERMINATED, out=open_)
            else:
                total += env.step(actions)[1]
            if tell is not None and step % (plan.steps // 100 + 1) == 0:
                tell(step / plan.steps)
        return Lessons(np.stack(seen, 1), np.stack(labels, 1), total)
