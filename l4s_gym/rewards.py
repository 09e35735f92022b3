"""The rewards: their names, what they are in words, and how Python computes them.

A reward is given by its name, or by weights of its components (`COMPONENTS`), which are integrals over the time since
the last decision, in seconds: `{"used": 1.0, "delay_c": -0.25}`, or as text `used=1,delay_c=-.25`.
The engine's own, compiled form is `l4s_gym.sim.observation.reward_so_far`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from l4s_gym.errors import L4SError, unknown
from l4s_gym.sim import layout

Name = Literal["fair", "balance", "power", "l4s_llm"]
NAMES: Final[tuple[Name, ...]] = get_args(Name)
FAIR, BALANCE, POWER, L4S_LLM = NAMES
DEFAULT: Final = FAIR
"""Of the environments and the board."""
Reward = str | Mapping[str, float]
"""A name, or weights of the components: a mapping, or text."""
COMPONENTS: Final[dict[str, str]] = {
    "used": "link time used",
    "evenness": "link time used, each packet's share times the evenness E of the bulk flows",
    "delay_c": "normalised delay of C, delay / (delay + 15 ms), times the time",
    "delay_l": "normalised delay of L, delay / (delay + 1 ms), times the time",
}
"""In words; each is in seconds and at least 0."""
WEIGHTS: Final[dict[str, dict[str, float]]] = {
    BALANCE: {"used": 1.0, "delay_c": -0.25, "delay_l": -0.25},
    FAIR: {"evenness": 1.0, "delay_c": -0.25, "delay_l": -0.25},
}
"""Of the components in the rewards that are a weighted sum of them."""
FORMULAS: Final[dict[Name, str]] = {
    "fair": "seconds of link time used times the evenness E, minus 0.25 x the integral of each class's normalised "
    "delay, delay / (delay + reference) with references C 15 ms and L 1 ms. Over 60 s it is at most 60. E = "
    "exp(sum w_k ln x_k) / sum w_k x_k, in which x_k is the goodput per bulk flow of class k over the last second and "
    "w_k the class's share of these flows; it is 1 where only one class is present",
    "balance": "the same without E",
    "power": "seconds of link time used, each packet's share divided by (1 + its delay / reference)",
    "l4s_llm": "packet_length / (current_queue_delay + 1000) of the packet that was decided, the paper's code",
}
"""In words. All but the last are integrals over the time since the last decision; the last belongs to a single packet,
and is the only one that needs no clock."""


def _weights(pairs: list[tuple[str, Any]]) -> dict[str, float]:
    """Check weights, and bring them into the order of `COMPONENTS`; those that are 0 are left out."""
    found: dict[str, float] = {}
    for name, value in pairs:
        if name not in COMPONENTS:
            raise unknown("component of a reward", name, tuple(COMPONENTS))
        if name in found:
            raise L4SError(f"reward: {name} has two weights: give one")
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise L4SError(f"reward: weight {value!r} of {name}: give a number, such as used=1,delay_c=-0.25")
    if not any(found.values()):
        raise L4SError("reward: all weights are 0: give at least one other, such as used=1,delay_c=-0.25")
    return {name: found[name] for name in COMPONENTS if found.get(name)}


def weights_of(reward: Reward) -> dict[str, float] | None:
    """Weights of the components in a reward, those of 0 left out; None: it is no sum of them.

    Raises:
        L4SError: There is no such reward or component, or a weight is no number.
    """
    if not isinstance(reward, str):
        return _weights(list(reward.items()))
    if "=" in reward:
        parts = [part.partition("=") for part in reward.split(",")]
        return _weights([(name.strip(), value) for name, _, value in parts])
    if reward not in NAMES:
        raise unknown("reward", reward, NAMES)
    return WEIGHTS.get(reward)


def canonical(reward: Reward) -> str:
    """A reward as text, the same for the same weights: its name, or such as `used=1.0,delay_c=-0.25`.

    Raises:
        L4SError: As `weights_of`.
    """
    weights = weights_of(reward)
    if isinstance(reward, str) and reward in NAMES:
        return reward
    return ",".join(f"{name}={weight!r}" for name, weight in (weights or {}).items())


def engine_form(reward: Reward) -> tuple[int, tuple[float, ...]]:
    """The kind of a reward in the engine, and its weights of `layout.COMPONENTS`."""
    weights = weights_of(reward)
    kind = layout.WEIGHTED if weights else layout.POWER if reward == POWER else layout.L4S_LLM
    return kind, tuple((weights or {}).get(name, 0.0) for name in layout.COMPONENTS)


def check_timed(reward: Reward, whose: str = "") -> None:
    """Refuse a reward that is no integral over time, where nobody decides about single packets.

    Raises:
        L4SError: It belongs to single packets.
    """
    if canonical(reward) == L4S_LLM:
        raise L4SError(
            f"{whose}reward {L4S_LLM!r} belongs to decisions about single packets; use 'balance', 'fair' or 'power'"
        )


def check_live(reward: Reward) -> str:
    """Refuse a reward that takes the goodput of the flows, which a real queue does not know; `canonical` of any other.

    Raises:
        L4SError: It has the component `evenness`, or is none.
    """
    if "evenness" in (weights_of(reward) or {}):
        raise L4SError(
            f"reward {canonical(reward)!r}: a real queue does not know the goodput of its flows; "
            "use 'balance', 'power', 'l4s_llm', or weights of used, delay_c and delay_l"
        )
    return canonical(reward)


def total(weights: Mapping[str, float], components: Mapping[str, float]) -> float:
    """Weighted sum of components."""
    return sum(weight * components[name] for name, weight in weights.items())


def l4s_llm(packet_length: Any, current_queue_delay: Any) -> Any:
    """`l4s_llm` of packets, from their lengths (B) and the delays of their queues (us): numbers, or arrays."""
    return packet_length / (current_queue_delay + 1000.0)
