"""What the columns of a public experience pool are: a pickle bears no names.

Of 7 and of 9 features there is one form each. Of 8 there are two, both the 9 without `packet_length`: the 7th column is
`length_in_bytes` in the one and `total_bytes` in the other. The data tells which. Of two different rows of a queue,

| the later one | of `total_bytes` | of `length_in_bytes` |
|---|---|---|
| has more | always, as each packet has bytes | where none left |
| has as much, or at least half of it | never | often |
| has less than half | where the count begins anew, at a new run | where the queue drains |

Rows that a pool repeats count once. What fits neither column of the table has to be named by the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.logs import NAMES_24
from l4s_gym.data.names import field_of, unknown_field
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, OBSERVED

_NINE: Final = tuple(name for name in NAMES_24 if name in OBSERVED or name == "average_dequeue_time")
FEATURES: Final = {
    7: tuple(name for name in OBSERVED if name != "total_drops"),
    8: tuple(name for name in _NINE if name != "packet_length"),
    9: _NINE,
}
"""Names of the features of the forms of the pools, in order; of 8, those of the form with `length_in_bytes`."""
LEFT_OUT: Final = "-"
"""Stands for the name of a column that is not read."""

_BYTES: Final = FEATURES[8].index("length_in_bytes")
_DEQUEUE_TIME: Final = FEATURES[8].index("average_dequeue_time")
_FEWEST_PAIRS: Final = 50
_FEWEST_HELD: Final = 3
_MOST_OF_A_COUNT: Final = 0.001
_MOST_RESTARTS: Final = 0.02
_LEAST_OF_A_LENGTH: Final = 0.01

Floats = npt.NDArray[np.float64]


def named_columns(named: Sequence[str], width: int) -> tuple[str, ...]:
    """Names that the user gave, ours or the authors'.

    Raises:
        L4SError: One is no field, comes twice or is the action, or they are not as many as there are features.
    """
    names = tuple(field_of(name.strip()) for name in named)
    for name in names:
        if name not in BY_NAME and name != LEFT_OUT:
            raise unknown_field("column", name, [*BY_NAME, LEFT_OUT])
    given = [name for name in names if name != LEFT_OUT]
    if len(set(given)) != len(given) or "action" in given:
        raise L4SError(f"columns {','.join(names)}: a field comes twice, or action, which a pool holds apart: mend it")
    if len(names) != width:
        raise L4SError(f"columns {','.join(names)}: are {len(names)}, but the pool has {width} features: name all")
    return names


def columns_of(states: Floats) -> tuple[tuple[str, ...], str | None]:
    """Names of the columns of a pool's states (T, d), and how it was told where there is more than one form.

    Raises:
        L4SError: No form is known, or it cannot be told.
    """
    width = states.shape[1]
    if width not in FEATURES:
        raise L4SError(f"has states of shape ({width},): pools of 7, 8 or 9 features are known, others need --columns")
    return (FEATURES[width], None) if width != 8 else _eight(states)


def _eight(states: Floats) -> tuple[tuple[str, ...], str]:
    names = FEATURES[8]
    remedy = f"name all columns, such as --columns {','.join(names)}"
    if states[:, _DEQUEUE_TIME].any():
        raise L4SError(f"has 8 features, of which the 6th is not {names[_DEQUEUE_TIME]}, as it is not 0: {remedy}")
    _, first = np.unique(states, axis=0, return_index=True)
    rows = states[np.sort(first)]
    pairs = held = anew = 0
    for queue in (0, 1):
        value = rows[rows[:, 0] == queue, _BYTES]
        rises, small = value[1:] > value[:-1], value[1:] < value[:-1] / 2
        pairs, held, anew = pairs + len(rises), held + int((~rises & ~small).sum()), anew + int(small.sum())
    of = f"of {pairs} pairs of different rows of a queue"
    if held >= max(_FEWEST_HELD, _LEAST_OF_A_LENGTH * pairs):
        return names, f"the 7th of 8 features is length_in_bytes: {of} {held} have as much or less, but not a restart's"
    if pairs >= _FEWEST_PAIRS and held <= _MOST_OF_A_COUNT * pairs and anew <= _MOST_RESTARTS * pairs:
        other = (*names[:_BYTES], "total_bytes", *names[_BYTES + 1 :])
        return other, f"the 7th of 8 features is total_bytes: {of} {pairs - held - anew} have more, {anew} begin anew"
    raise L4SError(
        f"has 8 features, and it cannot be told whether the 7th is length_in_bytes or total_bytes ({of} it stays or "
        f"falls in {held}, and falls below half in {anew}): {remedy}, or with total_bytes"
    )
