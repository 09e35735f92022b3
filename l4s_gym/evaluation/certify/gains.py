"""How much what an agent does can change with what it observes: bounds of its Lipschitz constant.

From above, of a perceptron: the product of the spectral norms of its layers, with the scale of its inputs in the first
one. From below: the largest spectral norm among Jacobians at observations that the agent met in closed loop. Norms are
Euclidean, observations in the units of the environment's page, actions from -1 to 1 or probabilities.

An agent with a memory has two such constants: `held`, of an observation that stays changed, and `now`, of one that is
changed once, in the action that follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.agents.onestep import Perceptron
from l4s_gym.agents.protocol import Agent, form_of, policy_of
from l4s_gym.forms import PACKET
from l4s_gym.schema import ENQUEUE
from l4s_gym.sim.policy import Network, Policy

Floats = npt.NDArray[np.float64]
Outputs = Callable[[Sequence[npt.NDArray[np.float32]]], Floats]
"""What an agent does (n, K) after some observations (n, F) of n episodes."""
WARM: Final = 20
"""Observations before the one that is changed."""
_STEP: Final = 1e-3


@dataclass(frozen=True)
class Bounds:
    """Bounds from above.

    Attributes:
        held: Of an observation that stays changed; None: there is none.
        now: Of one that is changed once; None likewise.
        norms: Spectral norms of the layers, the first with the scale of its inputs (as for `held`).
        why: Why there is none, or what is to be known.
    """

    held: float | None
    now: float | None
    norms: tuple[float, ...] = ()
    why: str = ""


def norm(matrix: Floats) -> float:
    """Return the spectral norm of a matrix."""
    return float(np.linalg.norm(matrix, 2))


def bounds(agent: Agent) -> Bounds:
    """Return the bounds from above that an agent's weights give."""
    found = getattr(agent, "perceptron", None)
    if found is not None:
        return of_perceptron(found())
    policy = policy_of(agent)
    if policy is not None:
        return of_policy(policy)
    if hasattr(agent, "model"):
        why = "self-attention has no finite constant on unbounded inputs, and a product of norms over its layers says"
        return Bounds(None, None, why=f"{why} nothing on bounded ones: from below only")
    return Bounds(None, None, why="its weights are not at hand: from below only")


def of_perceptron(given: Perceptron) -> Bounds:
    """Return the bounds of an actor: ln(1 + x) has slopes of 1 at most, and so have tanh, ReLU and the bounds."""
    first, *rest = given.weights
    scaled = (first / given.std).reshape(len(first), len(given.shares), -1)  # (outputs, 1 + M, F)
    norms = [norm(scaled.sum(1)), *map(norm, rest)]
    product = given.factor * float(np.prod(norms[1:]))
    now = product * given.share * norm(np.tensordot(scaled, given.shares, (1, 0)))
    return Bounds(product * norms[0], now, tuple(norms), "`now`: once an episode runs, from its 16th decision on")


def of_policy(policy: Policy) -> Bounds:
    """Return the bounds of the probabilities of a policy about packets: the softmax has slopes of 1/2 at most."""
    if not all(isinstance(part, Network) for part in policy.parts):
        return Bounds(None, None, why="trees jump at their thresholds: no finite constant")
    if policy.mask is not None or policy.weights is not None or policy.gamma or not policy.softmax:
        return Bounds(None, None, why="its probabilities are masked or corrected afterwards: from below only")
    found = [_network(part) for part in policy.parts if isinstance(part, Network)]
    total = (1.0 - policy.epsilon) / (2.0 * policy.temperature) * float(np.mean([np.prod(norms) for norms in found]))
    return Bounds(total, total, tuple(found[0]), "of the probabilities; a decision that is drawn jumps")


def _network(part: Network) -> list[float]:
    scale = 1.0 if part.scale is None else np.asarray(part.scale, np.float64)
    weights = [np.asarray(weight, np.float64) for weight, _ in part.layers]
    return [norm(weights[0] / scale), *map(norm, weights[1:])]


def outputs_of(agent: Agent) -> Outputs | None:
    """Return the map from observations to what an agent does; None: it gives decisions only."""
    policy = policy_of(agent)
    if policy is not None:
        return lambda seen: policy.probabilities(seen[-1])
    asked: Any = agent
    if form_of(agent) != PACKET:

        def act(seen: Sequence[npt.NDArray[np.float32]]) -> Floats:
            agent.reset(len(seen[0]), 0)
            for each in seen:
                found = np.array(agent.act(each, np.zeros(len(each))), np.float64)
            return found

        return act
    if not (hasattr(asked, "probabilities") and hasattr(asked, "took")):
        return None

    def probabilities(seen: Sequence[npt.NDArray[np.float32]]) -> Floats:
        agent.reset(len(seen[0]), 0)
        for each in seen:
            found = np.array(asked.probabilities(each, np.zeros(len(each))), np.float64)
            asked.took(np.full(len(each), ENQUEUE, np.int64))
        return found

    return probabilities


def jacobians(outputs: Outputs, x: npt.NDArray[np.float32], high: Floats, warm: int = WARM) -> tuple[Floats, Floats]:
    """Return the Jacobians `held` and `now` (K, F) after an observation (F,) that stayed the same for a while.

    Args:
        outputs: Of `outputs_of`.
        x: The observation.
        high: Upper bounds of the observations (F,).
        warm: For how many decisions before it stayed the same.
    """
    step = _STEP * (1.0 + x.astype(np.float64))
    up, down = np.minimum(x + step, high).astype(np.float32), np.maximum(x - step, 0.0).astype(np.float32)
    rows = np.tile(x, (2 * len(x), 1))
    at = np.arange(len(x))
    rows[2 * at, at], rows[2 * at + 1, at] = up, down
    plain = np.tile(x, (2 * len(x), 1))
    width = np.maximum(up.astype(np.float64) - down, 1e-12)
    found = [outputs([*before, rows]) for before in ([rows] * warm, [plain] * warm)]
    held, now = ((each[::2] - each[1::2]) / width[:, None] for each in found)
    return held.T, now.T


@dataclass(frozen=True)
class Sampled:
    """Bounds from below.

    Attributes:
        held: Largest spectral norm of the Jacobians `held`.
        now: The same of `now`.
        held_median: Their median.
        now_median: The same of `now`.
        features: Largest slope by feature, of any output (F,), `held`.
        points: Number of observations.
    """

    held: float
    now: float
    held_median: float
    now_median: float
    features: list[float]
    points: int


def sampled(found: Sequence[tuple[Floats, Floats]]) -> Sampled:
    """Return the bounds of some Jacobians `held` and `now` (K, F)."""
    held, now = ([norm(pair[k]) for pair in found] for k in (0, 1))
    features = np.abs([pair[0] for pair in found]).max((0, 1))
    return Sampled(max(held), max(now), float(np.median(held)), float(np.median(now)), features.tolist(), len(found))


def measure(agent: Agent, observations: npt.NDArray[np.float32]) -> Sampled | None:
    """Return the bounds from below at some observations (P, F); None: there are none."""
    outputs = outputs_of(agent)
    if outputs is None or not len(observations):
        return None
    high = forms.get(form_of(agent)).spaces[0].high.astype(np.float64)
    return sampled([jacobians(outputs, x, high) for x in observations])
