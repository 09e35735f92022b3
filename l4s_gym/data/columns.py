"""Columns of files from other tools: their names for our fields, and how a pool's columns without names are identified.

A pickled experience pool has no names. Pools of 7 and of 9 features have one form each. Those of 8 are the 9 without
one, mostly without `packet_length`, and their byte column is `length_in_bytes` in some and `total_bytes` in others. The
The data shows which. Of two different rows of a queue, the later one

| has | of `total_bytes` | of `length_in_bytes` |
|---|---|---|
| more | always, as each packet has bytes | where none left |
| as much, or at least half of it | never | often |
| less than half | where the count restarts, at a new run | where the queue drains |

Rows that a pool repeats count once. The column before the bytes is `average_dequeue_time` if it is 0 throughout, as
this kernel leaves it. The last one is `packet_length` if all of it is the size of packets and it falls often, or never
changes; and `total_drops` if it falls at new runs only. What fits no form has to be named by the user.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, OBSERVED, PRINTED

Floats = npt.NDArray[np.float64]

AUTHORS: Final = {
    "qdelay_reference": "qdelay_ref",
    "alpha_coefficient": "alpha",
    "beta_coefficient": "beta",
    "previous_queue_delay": "queue_delay_old",
    "measurement_start_time": "measurement_start",
    "queue_length": "length_in_packets",
    "dequeue_action": "action",
}
"""Names that the authors of L4S-LLM use, and ours."""
INDEX: Final = ("", "Unnamed: 0")
"""Headers of row-number columns that pandas puts before the others."""


def field_of(name: str) -> str:
    """Return our name of a field, or the name itself."""
    return AUTHORS.get(name, name)


def known_header(names: Sequence[str]) -> bool:
    """Return whether these are the headers of a csv file of rows."""
    own = names[len(names) - len(without_index(names)) :]
    return len(own) > 1 and all(field_of(name) in BY_NAME for name in own)


def without_index(names: Sequence[str]) -> list[str]:
    """Return the headers without those of leading row numbers."""
    first = next((place for place, name in enumerate(names) if name not in INDEX), len(names))
    return list(names[first:])


def _alike(word: str, other: str) -> bool:
    shorter, longer = sorted((word, other), key=len)
    begins = len(shorter) >= 3 and longer.startswith(shorter)
    return begins or difflib.SequenceMatcher(None, word, other).ratio() >= 0.75


def unknown_field(kind: str, name: str, choices: Iterable[str]) -> L4SError:
    """Return the error for an unknown field name; it hints at the right name only if this one looks misspelt."""
    known, words = sorted(choices), name.lower().split("_")
    near = [
        other
        for other in known
        if len(words) == len(other.split("_")) and all(map(_alike, words, other.split("_")))
    ]  # fmt: skip
    hint = f"did you mean {near[0]!r}? " if len(near) == 1 else ""
    return L4SError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(known)}")


# -- columns without names

_NINE: Final = tuple(f.name for f in PRINTED if f.name in OBSERVED or f.name == "average_dequeue_time")
FEATURES: Final = {
    7: tuple(name for name in OBSERVED if name != "total_drops"),
    8: tuple(name for name in _NINE if name != "packet_length"),
    9: _NINE,
}
"""Names of the features of the forms of the pools, in order; of 8, those of the form with `length_in_bytes`."""
LEFT_OUT: Final = "-"
"""Stands for the name of a column that is not read."""

_AFTER_SUM: Final = FEATURES[9].index("average_dequeue_time")
_FEWEST_PAIRS: Final = 50
_FEWEST_HELD: Final = 3
_MOST_OF_A_COUNT: Final = 0.001
_MOST_RESTARTS: Final = 0.02
_LEAST_OF_A_LENGTH: Final = 0.01
_PACKETS: Final = (20, 65_535)
"""Bytes of the shortest and the longest packet."""


def named_columns(named: Sequence[str], width: int) -> tuple[str, ...]:
    """Return the names that the user gave, as ours or the authors'.

    Raises:
        L4SError: A name is no field, comes twice or is the action, or there is not one for each feature.
    """
    names = tuple(field_of(name.strip()) for name in named)
    for name in names:
        if name not in BY_NAME and name != LEFT_OUT:
            raise unknown_field("column", name, [*BY_NAME, LEFT_OUT])
    given = [name for name in names if name != LEFT_OUT]
    if len(set(given)) != len(given) or "action" in given:
        raise L4SError(f"columns {','.join(names)}: a field comes twice, or action, stored apart in a pool: correct it")
    if len(names) != width:
        raise L4SError(f"columns {','.join(names)}: are {len(names)}, but the pool has {width} features: name all")
    return names


def columns_of(states: Floats) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the columns of a pool's states (T, d), and how they were found if several forms exist.

    Raises:
        L4SError: The form is unknown, or the data does not show which it is.
    """
    width = states.shape[1]
    if width not in FEATURES:
        raise L4SError(f"has states of shape ({width},): pools of 7, 8 or 9 features are known, others need --columns")
    return (FEATURES[width], None) if width != 8 else _eight(states)


class _Steps(NamedTuple):
    """How a column changes from one row to the next of a queue.

    Attributes:
        pairs: Pairs of rows.
        held: Pairs whose later row has at least half as much.
        anew: Pairs whose later row has less than half.
        falls: Pairs whose later row has less.
    """

    pairs: int
    held: int
    anew: int
    falls: int


def _steps(rows: Floats, column: int) -> _Steps:
    counts = np.zeros(4, np.int64)
    for queue in (0, 1):
        value = rows[rows[:, 0] == queue, column]
        old, new = value[:-1], value[1:]
        small = new < old / 2
        counts += (len(new), int(((new <= old) & ~small).sum()), int(small.sum()), int((new < old).sum()))
    return _Steps(*counts.tolist())


def _form(rows: Floats) -> str | None:
    """Return the feature that the 8 lack, from different rows (n, 8); None if it cannot be found."""
    last, steps = rows[:, -1], _steps(rows, -1)
    sizes = _PACKETS[0] <= last.min() and last.max() <= _PACKETS[1]
    falls = steps.falls / max(steps.pairs, 1)
    if sizes and (falls >= _LEAST_OF_A_LENGTH or (last == last[0]).all()):
        return "total_drops" if not rows[:, _AFTER_SUM].any() else "average_dequeue_time"
    return "packet_length" if falls <= _MOST_RESTARTS and not rows[:, _AFTER_SUM].any() else None


def _eight(states: Floats) -> tuple[tuple[str, ...], str]:
    _, first = np.unique(states, axis=0, return_index=True)
    rows = states[np.sort(first)]
    lacks = _form(rows)
    remedy = f"name all columns, such as --columns {','.join(FEATURES[8])}"
    if lacks is None:
        raise L4SError(f"has 8 features, and the data does not show which of the usual 9 is missing: {remedy}")
    names = tuple(name for name in FEATURES[9] if name != lacks)
    place = names.index("length_in_bytes")
    pairs, held, anew, _ = _steps(rows, place)
    column, of = f"column {place + 1} of 8 (the 9 without {lacks})", f"of {pairs} pairs of different rows of a queue"
    if held >= max(_FEWEST_HELD, _LEAST_OF_A_LENGTH * pairs):
        return names, f"{column} is length_in_bytes: {of}, the later one has as much or up to half less in {held}"
    if pairs >= _FEWEST_PAIRS and held <= _MOST_OF_A_COUNT * pairs and anew <= _MOST_RESTARTS * pairs:
        counted = (*names[:place], "total_bytes", *names[place + 1 :])
        return (
            counted,
            f"{column} is total_bytes: {of}, the later one has more in {pairs - held - anew}, begins anew in {anew}",
        )
    raise L4SError(
        f"cannot tell whether {column} is length_in_bytes or total_bytes ({of}, the later one has as much or up to "
        f"half less in {held}, less than half in {anew}): {remedy}, or with total_bytes"
    )
