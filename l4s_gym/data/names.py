"""Names of fields in files that others wrote, and hints for those that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME

AUTHORS: Final = {
    "qdelay_reference": "qdelay_ref",
    "alpha_coefficient": "alpha",
    "beta_coefficient": "beta",
    "previous_queue_delay": "queue_delay_old",
    "measurement_start_time": "measurement_start",
    "queue_length": "length_in_packets",
    "dequeue_action": "action",
}
"""Names of the authors of L4S-LLM: ours. Their other names are ours too."""
INDEX: Final = ("", "Unnamed: 0")
"""Heads of the columns that pandas puts before the others: numbers of the rows."""


def field_of(name: str) -> str:
    """Our name of a field, or the name itself."""
    return AUTHORS.get(name, name)


def known_header(names: Sequence[str]) -> bool:
    """Whether these are the heads of a csv file of rows."""
    own = names[len(names) - len(without_index(names)) :]
    return len(own) > 1 and all(field_of(name) in BY_NAME for name in own)


def without_index(names: Sequence[str]) -> list[str]:
    """The heads without those of leading numbers of the rows."""
    first = next((place for place, name in enumerate(names) if name not in INDEX), len(names))
    return list(names[first:])


def _alike(word: str, other: str) -> bool:
    shorter, longer = sorted((word, other), key=len)
    begins = len(shorter) >= 3 and longer.startswith(shorter)
    return begins or difflib.SequenceMatcher(None, word, other).ratio() >= 0.75


def unknown_field(kind: str, name: str, choices: Iterable[str]) -> L4SError:
    """An error for a name that is no field, with a hint if it is a misspelt one: another quantity is no remedy."""
    known, words = sorted(choices), name.lower().split("_")
    near = [
        other
        for other in known
        if len(words) == len(other.split("_")) and all(map(_alike, words, other.split("_")))
    ]  # fmt: skip
    hint = f"did you mean {near[0]!r}? " if len(near) == 1 else ""
    return L4SError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(known)}")
