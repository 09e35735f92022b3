"""A log, pool or dataset at a glance, as text."""

from __future__ import annotations

from typing import Final

import numpy as np

from l4s_gym.data.causal import BEFORE, causal_accumulated, leak_share, observable
from l4s_gym.data.evidence import REQUIRED
from l4s_gym.data.logs import Records
from l4s_gym.data.pools import Rows
from l4s_gym.data.report import Missing
from l4s_gym.schema import ACTIONS, BY_NAME, CLASSIC, L4S, MAX_PROB

_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_SHOWN: Final = {
    "current_queue_delay": ("delay, ms", 1000.0),
    "drop_probability": ("probability, %", MAX_PROB / 100),
    "length_in_bytes": ("queue, B", 1.0),
    "packet_length": ("packet, B", 1.0),
}
"""Field: heading with the shown unit, and what the stored integer is divided by."""


def _queue_lines(name: str, part: Records, rows: Rows) -> list[str]:
    """The lines of one queue."""
    share = len(part) / max(len(rows), 1)
    lines = [f"queue {name}: {len(part)} rows ({share:.1%})"]
    if not len(part):
        return lines
    actions = "actions: not in the source"
    if "action" in rows.present:
        counts = np.bincount(part["action"], minlength=len(ACTIONS))
        actions = ", ".join(f"{action} {n} ({n / len(part):.2%})" for action, n in zip(ACTIONS, counts, strict=True))
    lines += [f"  {actions}", f"  {'':16}{'mean':>11}" + "".join(f"{f'p{100 * q:g}':>11}" for q in _QUANTILES)]
    for field, (heading, divisor) in _SHOWN.items():
        if field not in rows.present:
            lines.append(f"  {heading:16}{'-':>11}")
            continue
        values = part[field] / divisor
        numbers = (values.mean(), *np.quantile(values, _QUANTILES))
        lines.append(f"  {heading:16}" + "".join(f"{number:>11.6g}" for number in numbers))
    return lines


def _leak_lines(rows: Rows) -> list[str]:
    """How far the accumulated probability tells the decision, as logged and before the decision."""
    if not {"accumulated_probability", BEFORE["accumulated_probability"]} & rows.present:
        return ["accumulated probability: not in the source"]
    if "accumulated_probability" not in observable(rows.present):
        lacks = ", ".join(sorted(REQUIRED - rows.present))
        return [f"accumulated probability before the decision: cannot be told, as the source lacks {lacks}"]
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
    """Describe rows as text: per queue the counts, actions and quantiles, then what the log gives away.

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
