"""The rewards: their names, what they are in words, and how Python computes them.

The engine's own, compiled form is `l4s_gym.sim.observation.reward_so_far`; it numbers them as they stand here.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

from l4s_gym.errors import L4SError, unknown
from l4s_gym.sim.layout import DELAY_WEIGHT

Name = Literal["balance", "power", "l4s_llm"]
NAMES: Final[tuple[Name, ...]] = get_args(Name)
BALANCE, POWER, L4S_LLM = NAMES
FORMULAS: Final[dict[Name, str]] = {
    "balance": "seconds of link time used, minus 0.25 x the integral of each class's normalised delay, delay / (delay "
    "+ reference) with references C 15 ms and L 1 ms",
    "power": "seconds of link time used, each packet's share divided by (1 + its delay / reference)",
    "l4s_llm": "packet_length / (current_queue_delay + 1000) of the packet that was decided, the paper's code",
}
"""In words. The first two are integrals over the time since the last decision; the last belongs to a single packet, and
is the only one that needs no clock."""


def check(name: str) -> None:
    """Refuse a name that is none.

    Raises:
        L4SError: There is no such reward.
    """
    if name not in NAMES:
        raise unknown("reward", name, NAMES)


def check_timed(name: str, whose: str = "") -> None:
    """Refuse a reward that is no integral over time, where nobody decides about single packets.

    Raises:
        L4SError: It belongs to single packets.
    """
    if name == L4S_LLM:
        raise L4SError(f"{whose}reward {L4S_LLM!r} belongs to decisions about single packets; use 'balance' or 'power'")


def balance(served_s: float, delay_s: float) -> float:
    """`balance`, from the link time used and the integrals of both classes' normalised delays."""
    return served_s - DELAY_WEIGHT * delay_s


def l4s_llm(packet_length: Any, current_queue_delay: Any) -> Any:
    """`l4s_llm` of packets, from their lengths (B) and the delays of their queues (us): numbers, or arrays."""
    return packet_length / (current_queue_delay + 1000.0)
