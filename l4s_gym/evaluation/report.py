"""Results as a table for the terminal, and as JSON with its origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation.harness import Result
from l4s_gym.evaluation.origin import origin

Column = tuple[str, Callable[[Result], float | None], str]
COLUMNS: tuple[Column, ...] = (
    ("return", lambda r: r.episode_return, "{:.2f}"),
    ("C p50 ms", lambda r: r.delay_ms["C"]["p50"], "{:.2f}"),
    ("C p99 ms", lambda r: r.delay_ms["C"]["p99"], "{:.1f}"),
    ("L p50 ms", lambda r: r.delay_ms["L"]["p50"], "{:.2f}"),
    ("L p99 ms", lambda r: r.delay_ms["L"]["p99"], "{:.1f}"),
    ("util %", lambda r: 100 * r.utilisation, "{:.1f}"),
    ("L/C goodput", lambda r: r.goodput_ratio, "{:.2f}"),
    ("mark %", lambda r: 100 * r.mark_rate, "{:.2f}"),
    ("drop %", lambda r: 100 * r.drop_rate, "{:.2f}"),
    ("decision us", lambda r: r.latency_us["p50"] if r.latency_us else None, "{:.0f}"),
)
NOTE = (
    "Mean over the seeds and, for the return, its standard deviation. Delays are sojourn times by traffic class; "
    "rates are shares of the packets offered; L/C goodput is per flow; decision us is the median time of one "
    "decision for one environment ('engine': inside the compiled simulator)."
)


def group(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by agent and rule, best mean return first."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.agent, result.rule), []).append(result)
    order = sorted(groups, key=lambda key: -float(np.mean([r.episode_return for r in groups[key]])))
    return {key: groups[key] for key in order}


def cells(results: Sequence[Result]) -> list[str]:
    """One row of the table: means over seeds."""
    row = []
    for name, get, form in COLUMNS:
        values = [value for r in results if (value := get(r)) is not None]
        if not values:
            row.append("engine" if name == "decision us" else "-")
            continue
        text = form.format(float(np.mean(values)))
        if name == "return" and len(values) > 1:
            text += " +- " + form.format(float(np.std(values, ddof=1)))
        row.append(text)
    return row


def table(results: Sequence[Result], title: str) -> Table:
    """The leaderboard for a terminal."""
    out = Table(title=title, caption=NOTE, caption_justify="left")
    out.add_column("agent", min_width=22, overflow="fold")
    out.add_column("rule")
    for name, _, _ in COLUMNS:
        out.add_column(name, justify="right")
    for (agent, rule), rows in group(results).items():
        out.add_row(agent, rule, *cells(rows))
    return out


def write_json(path: Path, results: Sequence[Result], **more: Any) -> None:
    """Results with their origin, atomically."""
    data = {**origin(), **more, "results": [r.as_dict() for r in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())
