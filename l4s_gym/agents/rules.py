"""Agents without training: the lower bounds of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from l4s_gym import forms
from l4s_gym.agents.protocol import (
    NO_RULE,
    Actions,
    Agent,
    DecisionRule,
    Floats,
    Observations,
    Values,
    check_batch,
    check_count,
    generators,
)
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET
from l4s_gym.schema import ACTIONS, ENQUEUE, L4S, MARK, OBS_SCALE, OBSERVED, unscale_observation

if TYPE_CHECKING:
    from l4s_gym.sim.policy import Policy

_DELAY = OBSERVED.index("current_queue_delay")


class _Untrained:
    """An agent without parameters."""

    name: str
    rule = NO_RULE

    def __init__(self) -> None:
        self.n = 1

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        check_count(n)
        self.n = n

    def cost(self) -> dict[str, float]:
        """Return no parameters."""
        return {"parameters": 0.0, "trainable_parameters": 0.0}


class EnqueueAgent(_Untrained):
    """Enqueues every packet: a FIFO per queue."""

    name = "enqueue"

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Return actions (n,): all 0."""
        check_batch(obs, self.n)
        return np.full(self.n, ENQUEUE, np.int64)

    def as_policy(self) -> Policy:
        """Return the same policy for the engine."""
        from l4s_gym.sim.policy import Policy, Trees

        return Policy((Trees.constant((1.0, 0.0, 0.0)),), "argmax", softmax=False)


class RandomAgent(_Untrained):
    """Draws each action with fixed probabilities and ignores the observation."""

    name = "random"
    rule = "sample"

    def __init__(self, probabilities: Sequence[float] = (1 / 3, 1 / 3, 1 / 3)) -> None:
        """Set the probabilities of enqueue, drop and mark.

        Raises:
            L4SError: They are not three numbers that add up to 1.
        """
        super().__init__()
        self._p = np.asarray(probabilities, np.float64)
        if self._p.shape != (len(ACTIONS),) or not (self._p >= 0).all() or abs(self._p.sum() - 1.0) > 1e-6:
            raise L4SError(f"probabilities {tuple(probabilities)}: give three of sum 1, of {', '.join(ACTIONS)}")
        self._rule = DecisionRule("sample")

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes; the draws of environment i are those of seed + i."""
        super().reset(n, seed)
        self._rule.reset(n, seed)
        self._batch = np.tile(self._p, (n, 1))

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Draw actions (n,)."""
        check_batch(obs, self.n)
        return self._rule.decide(self._batch, obs[:, 0])

    def as_policy(self) -> Policy:
        """Return the same policy for the engine."""
        from l4s_gym.sim.policy import Policy, Trees

        return Policy((Trees.constant(self._p),), "sample", softmax=False)


class ThresholdAgent(_Untrained):
    """Marks a packet if the delay of its queue is above the queue's threshold."""

    name = "threshold"

    def __init__(self, l_us: float = 1000.0, c_us: float = 15_000.0) -> None:
        """Set the thresholds of the queues L and C, us.

        Raises:
            L4SError: One of them is negative.
        """
        super().__init__()
        if not (l_us >= 0.0 and c_us >= 0.0):
            raise L4SError(f"threshold: l_us={l_us:g}, c_us={c_us:g}: give 0 or more microseconds")
        self.name = "threshold" if (l_us, c_us) == (1000.0, 15_000.0) else f"threshold:l_us={l_us:g},c_us={c_us:g}"
        self._l_us, self._c_us = l_us, c_us

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Return actions (n,): 2 above the threshold, else 0."""
        check_batch(obs, self.n)
        delay_us = unscale_observation(obs)[:, _DELAY]
        limit_us = np.where(obs[:, 0] == L4S, self._l_us, self._c_us)
        return np.where(delay_us > limit_us, MARK, ENQUEUE).astype(np.int64)

    def as_policy(self) -> Policy:
        """Return the same policy for the engine: a tree that tests the queue, and then its delay."""
        from l4s_gym.sim.policy import Policy, Trees

        # Delays as observations, so that float32 rounds both sides alike.
        limits = [_largest(limit_us) for limit_us in (self._c_us, self._l_us)]
        enqueue, mark = np.eye(len(ACTIONS))[[ENQUEUE, MARK]]
        tree = Trees(
            feature=[0, _DELAY, _DELAY, 0, 0],
            threshold=[0.5, *limits, 0.0, 0.0],
            left=[1, 3, 3, -1, -1],
            right=[2, 4, 4, -1, -1],
            value=[enqueue, enqueue, enqueue, enqueue, mark],
        )
        return Policy((tree,), "argmax", softmax=False)


def _largest(delay_us: float) -> float:
    """Return the largest observation (float32) of a delay that does not exceed this one."""
    scale = OBS_SCALE[_DELAY]
    found = np.nextafter(np.float32(delay_us / scale), np.float32(np.inf))
    while np.float64(found) * scale > delay_us:
        found = np.nextafter(found, np.float32(-np.inf))
    return float(found)


class _IntervalRule(_Untrained):
    """A rule in a form whose actions are numbers."""

    def __init__(self, rule: str, form: str) -> None:
        """Choose the form.

        Raises:
            L4SError: There is no such form, or its actions are no numbers.
        """
        super().__init__()
        self._form = forms.get(form)
        if not self._form.low:
            names = " or ".join(name for name, each in forms.FORMS.items() if each.low)
            raise L4SError(f"{rule}: form={form}: give {names}")
        self.form = form
        self.name = f"{rule}:form={form}"


class UniformAgent(_IntervalRule):
    """Draws each action uniformly from the form's box and ignores the observation."""

    def __init__(self, form: str) -> None:
        """Choose the form; errors as `ZeroAgent`."""
        super().__init__("random", form)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes; the draws of environment i are those of seed + i."""
        super().reset(n, seed)
        self._rngs = generators(n, seed)

    def act(self, obs: Observations, rewards: Floats) -> Values:
        """Draw actions (n, K)."""
        check_batch(obs, self.n, self.form)
        return np.stack([rng.uniform(self._form.low, self._form.high) for rng in self._rngs])


class ZeroAgent(_IntervalRule):
    """Does nothing in its form: probabilities of 0, which leave the native L queue only, or the native law as it is."""

    def __init__(self, form: str = "parameters") -> None:
        """Choose the form.

        Raises:
            L4SError: There is no such form, or it is `packet`, where `enqueue` does nothing.
        """
        super().__init__("zero", form)

    def act(self, obs: Observations, rewards: Floats) -> Values:
        """Return actions (n, K), all `Form.idle`."""
        check_batch(obs, self.n, self.form)
        return np.tile(np.array(self._form.idle), (self.n, 1))


def random_agent(form: str = PACKET) -> Agent:
    """Return the agent that draws its actions: each action of a packet with 1/3, numbers uniformly."""
    return RandomAgent() if form == PACKET else UniformAgent(form)


class PolicyAgent:
    """The agent of any policy: a tree, a trained network, or a rule."""

    def __init__(self, policy: Policy, name: str = "policy") -> None:
        self.name = name
        self.policy = policy
        self.rule = policy.rule
        self._rule = DecisionRule(policy.rule)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes; the draws of environment i are those of seed + i."""
        self._rule.reset(n, seed)

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Return actions (n,) by the policy's decision rule."""
        check_batch(obs, self._rule.n)
        return self._rule.decide(self.policy.probabilities(obs), obs[:, 0])

    def as_policy(self) -> Policy:
        """Return its policy."""
        return self.policy

    def cost(self) -> dict[str, float]:
        """Return the number of weights of networks and of nodes of trees."""
        count = float(sum(part.parameters for part in self.policy.parts))
        return {"parameters": count, "trainable_parameters": count}
