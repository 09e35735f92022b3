"""Results as a table for the terminal, as JSON with its origin, and as a page with a picture."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from l4s_gym.data.files import atomic_write
from l4s_gym.errors import L4SError
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


def picture(results: Sequence[Result]) -> bytes:
    """PNG: delays of both classes (median to 99th percentile), utilisation and rates of each agent."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise L4SError("the picture is drawn with matplotlib: pip install 'l4s-gym[report]'") from None
    groups = group(results)
    names = [agent if rule == "-" else f"{agent} ({rule})" for agent, rule in groups]
    at = np.arange(len(names))[::-1]
    figure = Figure(figsize=(11, 1.6 + 0.42 * len(names)), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharey=True, width_ratios=[3, 1.3, 1.7])

    def mean(get: Callable[[Result], float]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([np.mean([get(r) for r in rows]) for rows in groups.values()])

    for name, color, shift in (("C", "tab:orange", 0.16), ("L", "tab:blue", -0.16)):
        low = np.maximum(mean(lambda r, n=name: r.delay_ms[n]["p50"]), 0.01)  # type: ignore[misc]
        high = np.maximum(mean(lambda r, n=name: r.delay_ms[n]["p99"]), 0.01)  # type: ignore[misc]
        axes[0].hlines(at + shift, low, high, color=color, lw=3, alpha=0.5)
        axes[0].plot(low, at + shift, "o", color=color, ms=5, label=f"{name}: median to 99th percentile")
    axes[0].set_xscale("log")
    axes[0].set_xlabel("queue delay (ms)")
    axes[0].legend(fontsize=8, loc="best")
    axes[0].set_yticks(at, names)
    axes[1].barh(at, 100 * mean(lambda r: r.utilisation), color="tab:gray", height=0.6)
    axes[1].set_xlim(0, 105)
    axes[1].set_xlabel("utilisation (%)")
    marks, drops = 100 * mean(lambda r: r.mark_rate), 100 * mean(lambda r: r.drop_rate)
    axes[2].barh(at + 0.16, marks, height=0.3, color="tab:purple", label="marked")
    axes[2].barh(at - 0.16, drops, height=0.3, color="tab:red", label="dropped")
    axes[2].set_xlabel("packets (%)")
    axes[2].legend(fontsize=8)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def write_page(path: Path, results: Sequence[Result], title: str, notes: Sequence[str] = ()) -> None:
    """The leaderboard as one HTML file with the picture inside, atomically; and the picture beside it."""
    png = picture(results)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("agent", "rule", *(c[0] for c in COLUMNS)))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (agent, rule, *cells(group_))) + "</tr>"
        for (agent, rule), group_ in group(results).items()
    )
    remarks = "".join(f"<li>{html.escape(note)}</li>" for note in (*notes, NOTE))
    seeds = sorted({r.seed for r in results})
    page = f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em}}
table{{border-collapse:collapse}}td,th{{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right}}
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){{text-align:left}}img{{max-width:100%}}</style>
<h1>{html.escape(title)}</h1><p>Seeds {html.escape(", ".join(map(str, seeds)))}.</p>
<table><tr>{head}</tr>{rows}</table><ul>{remarks}</ul>
<img alt="delays, utilisation and rates of each agent" src="data:image/png;base64,{base64.b64encode(png).decode()}">
<pre>{html.escape(json.dumps(origin(), indent=1))}</pre>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(page.encode())
    with atomic_write(path.with_suffix(".png")) as file:
        file.write(png)
