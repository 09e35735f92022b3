"""Samples of logs and datasets that fit in memory: rows with their features, in kernel units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.causal import CausalStream
from l4s_gym.data.stream import RowStream
from l4s_gym.errors import L4SError
from l4s_gym.schema import OBSERVED, unscale_observation

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROWS: Final = 200_000
_LOGGED: Final = ("logged_accumulated_probability", "logged_total_drops")
NAMES: Final = (*OBSERVED, *_LOGGED)
"""Names of the features."""
_STRETCHES: Final = 50
_ACCUMULATED: Final = OBSERVED.index("accumulated_probability")


@dataclass(frozen=True)
class Sample:
    """Rows in the order of their source.

    Attributes:
        source: Where they come from.
        actions: 0, 1, 2, shape (T,).
        tables: Name of a set of features: values in kernel units (T, d), NaN where unknown. The first columns are the
            `OBSERVED` fields; if there are more, the rest of `NAMES`.
    """

    source: str
    actions: Ints
    tables: Mapping[str, Floats]


def sample_stream(stream: RowStream, rows: int = ROWS) -> Sample:
    """Rows of a log or pool, as logged and as known before the decision.

    Args:
        stream: The rows, read to the end.
        rows: At most so many are kept: evenly spaced stretches of consecutive rows.

    Raises:
        L4SError: The source bears no actions.
    """
    if "action" not in stream.present:
        raise L4SError(f"{stream.source}: bears no actions: give logged decisions")
    logged, before = (CausalStream(stream.present, as_logged=as_logged) for as_logged in (True, False))

    stretch, every, seen = max(rows // _STRETCHES, 1), 1, 0
    kept: list[tuple[int, Floats]] = []  # number of the stretch, and rows of it
    for records in stream.blocks():
        columns = [records["action"][:, None], logged.observe(records), before.observe(records)]
        block = np.concatenate(columns, axis=1, dtype=np.float64)
        # Cut where a stretch ends.
        for part in np.split(block, np.arange(-seen % stretch, len(block), stretch)):
            if seen // stretch % every == 0:
                kept.append((seen // stretch, part.copy()))  # a view would hold the whole block
            seen += len(part)
        while sum(len(part) for _, part in kept) > rows:
            every *= 2
            kept = [(number, part) for number, part in kept if number % every == 0]
    table = np.concatenate([np.zeros((0, 1 + 2 * len(OBSERVED))), *(part for _, part in kept)])
    names = ("as logged", "before the decision")
    halves = np.split(table[:, 1:], 2, axis=1)
    return Sample(stream.source, table[:, 0].astype(np.int64), dict(zip(names, halves, strict=True)))


def sample_dataset(dataset: Any, rows: int = ROWS) -> Sample:
    """Steps of a dataset: its observations, and these with the logged fields beside them.

    Args:
        dataset: A `minari.MinariDataset` of `minari_io.create`, or its id.
        rows: About so many are kept: evenly spaced stretches of consecutive steps.
    """
    from l4s_gym.data.arrays import episodes

    found = episodes(dataset)
    every = -(-sum(len(e.actions) for e in found) // rows)
    stretch = max(rows // _STRETCHES, 1)
    cuts = [
        (e, slice(at, min(at + stretch, len(e.actions)))) for e in found for at in range(0, len(e.actions), stretch)
    ]
    parts: list[Floats] = []
    for e, cut in cuts[::every]:
        seen = unscale_observation(e.observations[cut])
        seen[e.missing[OBSERVED[_ACCUMULATED]][cut], _ACCUMULATED] = np.nan
        logged = [e.extras[name][cut, None] for name in _LOGGED]
        parts.append(np.concatenate([e.actions[cut, None], seen, *logged], axis=1, dtype=np.float64))
    table = np.concatenate(parts)
    tables = {"observations": table[:, 1 : 1 + len(OBSERVED)], "observations and logged fields": table[:, 1:]}
    return Sample(dataset if isinstance(dataset, str) else dataset.id, table[:, 0].astype(np.int64), tables)
