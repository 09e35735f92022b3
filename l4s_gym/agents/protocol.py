"""The interface of agents, and the rules that turn probabilities into decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.errors import L4SError, unknown
from l4s_gym.forms import INTERVAL_MS, PACKET
from l4s_gym.schema import ACTIONS, DROP, ENQUEUE, MARK, OBSERVED
from l4s_gym.sim import layout

if TYPE_CHECKING:
    from l4s_gym.sim.policy import Policy

Observations = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Actions = npt.NDArray[np.int64]
Values = npt.NDArray[np.floating[Any]]
"""Actions of an interval form, (n, K)."""

RULES: Final = layout.RULES
NO_RULE: Final = "-"
_STREAM: Final = 0x616374
"""Separates the random draws of agents from those of environments with the same seed."""
_BLOCK: Final = 1024


@runtime_checkable
class Agent(Protocol):
    """Decides for a batch of environments, each in one form (`l4s_gym.forms`): one packet, or one control interval.

    Forms other than `packet` are named by another attribute, ``form: str`` (`form_of`).

    The arrays given to `act` belong to the caller and change after the call: copy them to keep them.

    An agent that decides from the observation by a network, by trees or by a rule may have another method,
    ``as_policy() -> l4s_gym.sim.policy.Policy | None``. The evaluation then decides by that policy inside the engine,
    ten times as fast, and does not call `act`; so both must give equal decisions, with the draws of `DecisionRule`. A
    subclass with its own `act` is asked by `act` again (`policy_of`). `l4s_gym.agents.PolicyAgent` is the
    agent of any policy.

    Attributes:
        name: Name in results.
        rule: How probabilities become decisions: one of `RULES`, or `NO_RULE` for an agent without any.
    """

    name: str
    rule: str

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes; environment i decides as a single one does after `reset(1, seed + i)`."""
        ...

    def act(self, obs: Observations, rewards: Floats) -> npt.NDArray[Any]:
        """Decide.

        Args:
            obs: Observations of the form's environment, float32: (n, 8) of packets, (n, 12) for probabilities, (n, 29)
                for parameters.
            rewards: Rewards since the last decision (n,) float64.

        Returns:
            About packets, actions (n,) int64: 0 enqueue, 1 drop, 2 mark. In the other forms the numbers of the
            form's actions, (n, 2) or (n, 5) float32 or float64, from -1 to 1.
        """
        ...

    def cost(self) -> dict[str, float]:
        """Return the costs of a decision: `parameters`, `trainable_parameters`, and more."""
        ...


def form_of(agent: Agent) -> str:
    """Return the form in which an agent decides, a key of `l4s_gym.forms.FORMS`.

    Raises:
        L4SError: It names a form that is none.
    """
    return forms.get(getattr(agent, "form", PACKET)).name


def check_form(agent: Agent, wanted: str, interval_ms: float | None = None) -> None:
    """Check that an agent decides in a form, and that it was not trained for another control interval.

    Raises:
        L4SError: It decides in another form, or was trained for another interval.
    """
    if (found := form_of(agent)) != wanted:
        raise L4SError(f"agent {agent.name}: decides in the form {found!r}, not {wanted!r}")
    trained_ms = getattr(agent, "training", {}).get("control_interval_ms")
    if interval_ms and trained_ms and interval_ms != trained_ms:
        trained = f"was trained for control intervals of {trained_ms:g} ms, not {interval_ms:g} ms"
        raise L4SError(f"agent {agent.name}: {trained}: set control_interval_ms to that")


def control_interval_ms(agent: Agent) -> float:
    """Return the control interval for an agent of an interval form: the one it was trained for, or `INTERVAL_MS`."""
    return float(getattr(agent, "training", {}).get("control_interval_ms", INTERVAL_MS))


def options_of(agent: Agent) -> dict[str, dict[str, Any]]:
    """Return the options of disciplines over which an agent was trained, a table for each; empty: the scenarios'."""
    return dict(getattr(agent, "training", {}).get("options", {}))


def policy_of(agent: Agent) -> Policy | None:
    """Return the policy that decides for an agent inside the engine; None: call its `act`.

    `act` is also called if a subclass, or code from outside, has replaced it.
    """
    asked: Any = agent  # the method is optional
    for names in (getattr(agent, "__dict__", {}), *map(vars, type(agent).__mro__)):
        if "as_policy" in names:
            found: Policy | None = asked.as_policy()
            return found
        if "act" in names:
            return None
    return None


def check_count(n: int) -> None:
    """Check a number of environments.

    Raises:
        L4SError: It is not positive.
    """
    if n < 1:
        raise L4SError(f"n={n}: give 1 or more environments")


def generators(n: int, seed: int) -> list[np.random.Generator]:
    """Return the generators of an agent's draws: environment i has that of seed + i."""
    return [np.random.default_rng([seed + i, _STREAM]) for i in range(n)]


class DecisionRule:
    """Turns action probabilities into decisions.

    - `sample`: draws. Environment i has its own stream, that of seed + i.
    - `argmax`: the most probable action; of equally probable ones the first. An imitator of a random mark whose
      probability never exceeds 1/2 then never marks.
    - `diffuse`: error diffusion, as PIE's derandomisation. For each environment and queue the probabilities of
      drop and mark add up; when their sum reaches 1, the larger of the two is done, and 1 is subtracted. So
      both keep their shares, and the decisions are evenly spaced.
    """

    def __init__(self, rule: str) -> None:
        """Choose a rule; `reset` starts it.

        Raises:
            L4SError: There is no such rule.
        """
        if rule not in RULES:
            raise unknown("decision rule", rule, RULES)
        self.rule = rule
        self.reset(1, 0)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes.

        Raises:
            L4SError: `n` is not positive.
        """
        check_count(n)
        self.n = n
        self._rows = np.arange(n)
        self._debt = np.zeros((n, 2, len(ACTIONS)))  # environment, queue, action
        self._rngs = generators(n, seed) if self.rule == "sample" else []
        self._draws = np.zeros((0, n))
        self._next = 0

    def decide(self, probabilities: Floats, queue: npt.NDArray[np.generic] | None) -> Actions:
        """Decide for a batch.

        Args:
            probabilities: Probabilities of the three actions (n, 3), each row of sum 1.
            queue: Queue of each packet (n,), 0 C or 1 L: the first column of the observation. None: the decisions are
                of another task, of any number of choices, and the rule is not `diffuse`.

        Returns:
            Actions (n,) int64.

        Raises:
            L4SError: The size of the batch differs from that of `reset`.
        """
        wanted = self.n, probabilities.shape[-1] if queue is None else len(ACTIONS)
        if probabilities.shape != wanted:
            raise L4SError(f"probabilities of shape {probabilities.shape}: reset was for {wanted}")
        if self.rule == "argmax":
            return np.asarray(probabilities.argmax(axis=1), np.int64)
        if self.rule == "sample":
            edges = np.cumsum(probabilities, axis=1)
            below = self._uniform()[:, None] * edges[:, -1:] >= edges[:, :-1]
            return np.asarray(below.sum(axis=1), np.int64)
        assert queue is not None
        return self._diffuse(probabilities, queue)

    def _uniform(self) -> Floats:
        """Return a number in [0, 1) for each environment, (n,)."""
        if self._next == len(self._draws):
            self._draws = np.stack([rng.random(_BLOCK) for rng in self._rngs], axis=1)
            self._next = 0
        self._next += 1
        row: Floats = self._draws[self._next - 1]
        return row

    def _diffuse(self, probabilities: Floats, queue: npt.NDArray[np.generic]) -> Actions:
        place = self._rows, queue.astype(np.int64)
        debt = self._debt[place] + probabilities  # (n, 3)
        debt[:, ENQUEUE] = 0.0
        hit = debt.sum(axis=1) >= 1.0
        chosen = np.where(debt[:, MARK] > debt[:, DROP], MARK, DROP)
        actions = np.where(hit, chosen, ENQUEUE).astype(np.int64)
        debt[self._rows[hit], chosen[hit]] -= 1.0
        self._debt[place] = debt
        return actions


def check_batch(obs: Observations, n: int, form: str = PACKET) -> None:
    """Check that the observations are of the form, and as many as `reset` was told.

    Raises:
        L4SError: They have another shape than (n, F).
    """
    wanted = n, len(forms.get(form).features or OBSERVED)
    if obs.shape != wanted:
        raise L4SError(f"observations of shape {obs.shape}: expected {wanted}; call reset with the number of episodes")
