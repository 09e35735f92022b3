"""Summary of a log, pool or dataset as text; and samples of those that do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.causal import BEFORE, CausalStream, causal_accumulated, leak_share, observable
from l4s_gym.data.evidence import REQUIRED
from l4s_gym.data.logs import Records
from l4s_gym.data.pools import Rows
from l4s_gym.data.report import Missing
from l4s_gym.data.stream import RowStream
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, BY_NAME, CLASSIC, DECIDED_BY, L4S, MAX_PROB, OBSERVED, unscale_observation

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROWS: Final = 200_000
_LOGGED: Final = ("logged_accumulated_probability", "logged_total_drops")
NAMES: Final = (*OBSERVED, *_LOGGED)
"""Names of the features."""
_STRETCHES: Final = 50
_ACCUMULATED: Final = OBSERVED.index("accumulated_probability")

_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_SHOWN: Final = {
    "current_queue_delay": ("delay, ms", 1000.0),
    "drop_probability": ("probability, %", MAX_PROB / 100),
    "length_in_bytes": ("queue, B", 1.0),
    "packet_length": ("packet, B", 1.0),
}
"""Field -> heading with the shown unit, and the divisor of the stored integer."""


def _shares(column: npt.NDArray[Any], names: Sequence[str]) -> str:
    """Count the values of a column by their names."""
    counts = np.bincount(column, minlength=len(names))
    return ", ".join(f"{name} {n} ({n / len(column):.2%})" for name, n in zip(names, counts, strict=True))


def _queue_lines(name: str, part: Records, rows: Rows) -> list[str]:
    """Return the lines of text about one queue."""
    share = len(part) / max(len(rows), 1)
    lines = [f"queue {name}: {len(part)} rows ({share:.1%})"]
    if not len(part):
        return lines
    lines.append(f"  {_shares(part['action'], ACTIONS) if 'action' in rows.present else 'actions: not in the source'}")
    if "decided_by" in rows.present:
        lines.append(f"  decided by: {_shares(part['decided_by'], DECIDED_BY)}")
    lines.append(f"  {'':16}{'mean':>11}" + "".join(f"{f'p{100 * q:g}':>11}" for q in _QUANTILES))
    for field, (heading, divisor) in _SHOWN.items():
        if field not in rows.present:
            lines.append(f"  {heading:16}{'-':>11}")
            continue
        values = part[field] / divisor
        numbers = (values.mean(), *np.quantile(values, _QUANTILES))
        lines.append(f"  {heading:16}" + "".join(f"{number:>11.5g}" for number in numbers))
    return lines


def _leak_lines(rows: Rows) -> list[str]:
    """Return lines on how well the accumulated probability reveals the decision, as logged and before the decision."""
    if not {"accumulated_probability", BEFORE["accumulated_probability"]} & rows.present:
        return ["accumulated probability: not in the source"]
    if "accumulated_probability" not in observable(rows.present):
        lacks = ", ".join(sorted(REQUIRED - rows.present))
        return [f"accumulated probability before the decision: unknown, as the source lacks {lacks}"]
    before = causal_accumulated(rows)
    origin = "recorded" if rows.has_before else "rebuilt"
    if not rows.present >= {"action", "drop_probability"}:
        return [f"accumulated probability before the decision: {origin}, missing in {np.isnan(before).sum()} rows"]
    missing = Missing()
    missing.add(rows.records["action"], np.isnan(before))
    lines = [f"accumulated probability before the decision: {origin}, {missing}"]
    lines += [missing.warning] if missing.warning else []
    lines += ["share of rows with accumulated probability 0 and drop probability above 0:"]
    shown = [("before", before)]
    if "accumulated_probability" in rows.present:
        shown.insert(0, ("as logged", rows.records["accumulated_probability"].astype(np.float64)))
    for heading, values in shown:
        shares = leak_share(rows.records, values)
        lines.append(f"  {heading:12}" + "  ".join(f"{name} {share:.2%}" for name, share in shares.items()))
    return lines


def inspect_rows(rows: Rows) -> str:
    """Describe rows as text: per queue the counts, actions and quantiles, then what the log reveals of the actions.

    Args:
        rows: Rows of any source.

    Returns:
        Lines of text without a final newline.
    """
    absent = [name for name in BY_NAME if name not in rows.present]
    lines = [f"{rows.source}: {len(rows)} rows, {len(rows.present)} of {len(BY_NAME)} fields"]
    if absent:
        lines.append(f"absent: {', '.join(absent)}")
    lines += rows.notes
    if "queue_type" not in rows.present:
        lines += _queue_lines("not told", rows.records, rows)
        return "\n".join(lines + _leak_lines(rows))
    for name, queue in (("C", CLASSIC), ("L", L4S)):
        lines += _queue_lines(name, rows.records[rows.records["queue_type"] == queue], rows)
    return "\n".join(lines + _leak_lines(rows))


# -- samples


@dataclass(frozen=True)
class Sample:
    """Rows in the order of their source.

    Attributes:
        source: Where they come from.
        actions: 0, 1, 2, shape (T,).
        tables: Name of a set of features -> values in kernel units (T, d), NaN where unknown. The first columns are the
            `OBSERVED` fields; if there are more, the rest of `NAMES`.
    """

    source: str
    actions: Ints
    tables: Mapping[str, Floats]


def sample_stream(stream: RowStream, rows: int = ROWS) -> Sample:
    """Sample the rows of a log or pool, as logged and as known before the decision.

    Args:
        stream: The rows, read to the end.
        rows: Most rows to keep: evenly spaced stretches of consecutive rows.

    Raises:
        L4SError: The source has no actions.
    """
    if "action" not in stream.present:
        raise L4SError(f"{stream.source}: has no actions: give logged decisions")
    logged, before = (CausalStream(stream.present, as_logged=as_logged) for as_logged in (True, False))

    stretch, every, seen = max(rows // _STRETCHES, 1), 1, 0
    kept: list[tuple[int, Floats]] = []  # number of the stretch, and rows of it
    for records in stream.blocks():
        columns = [records["action"][:, None], logged.observe(records), before.observe(records)]
        block = np.concatenate(columns, axis=1, dtype=np.float64)
        # Cut where a stretch ends.
        for part in np.split(block, np.arange(-seen % stretch, len(block), stretch)):
            if seen // stretch % every == 0:
                kept.append((seen // stretch, part.copy()))  # a view would keep the whole block in memory
            seen += len(part)
        while sum(len(part) for _, part in kept) > rows:
            every *= 2
            kept = [(number, part) for number, part in kept if number % every == 0]
    table = np.concatenate([np.zeros((0, 1 + 2 * len(OBSERVED))), *(part for _, part in kept)])
    names = ("as logged", "before the decision")
    halves = np.split(table[:, 1:], 2, axis=1)
    return Sample(stream.source, table[:, 0].astype(np.int64), dict(zip(names, halves, strict=True)))


def sample_dataset(dataset: Any, rows: int = ROWS) -> Sample:
    """Sample the steps of a dataset: its observations, and these with the logged fields beside them.

    Args:
        dataset: A `minari.MinariDataset` of `minari_io.create`, or its id.
        rows: About the number of steps to keep: evenly spaced stretches of consecutive steps.
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
