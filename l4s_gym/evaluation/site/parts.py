"""The parts of the report that are plain HTML: they are there without a script and without pictures."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import msgspec
import numpy as np

from l4s_gym.agents.protocol import NO_RULE
from l4s_gym.evaluation import ranking
from l4s_gym.evaluation.board import Refusal, Row, Table, grouped
from l4s_gym.evaluation.entry import Entry
from l4s_gym.evaluation.site import data
from l4s_gym.evaluation.statistics import Interval
from l4s_gym.schema import ACTIONS

Value = Interval | float | str | None
Cell = tuple[str, float | str | None]
"""HTML, and what to sort by."""


@dataclass(frozen=True)
class Column:
    """A column of the board.

    Attributes:
        group: Heading over several columns.
        title: Heading.
        about: What it is, in a sentence.
        get: Of a row and a suite.
        form: Format of a number.
        scale: The number is multiplied by it.
        align: `n` for numbers; empty for words.
        more: Whether it is shown on demand only.
    """

    group: str
    title: str
    about: str
    get: Callable[[Row, str], Value]
    form: str = "z.1f"
    scale: float = 1.0
    align: str = "n"
    more: bool = False

    @property
    def kind(self) -> str:
        """Classes of its cells."""
        return f"{self.align} more-column" if self.more else self.align

    def cell(self, row: Row, suite: str) -> Cell:
        """The cell of a row."""
        value = self.get(row, suite)
        if value is None:
            return '<span class="none">&ndash;</span>', None
        if isinstance(value, str):
            return escape(value), value
        if not isinstance(value, Interval):
            return self._text(value), value
        text = self._text(value.value)
        if value.low is not None and value.high is not None:
            text += f' <span class="ci">[{self._text(value.low)}, {self._text(value.high)}]</span>'
        return text, value.value

    def _text(self, value: float) -> str:
        return count(value) if self.form == "count" else f"{value * self.scale:{self.form}}"


def count(value: float) -> str:
    """A large number in short: 1,234 or 12.3 M."""
    if value < 1e5:
        return f"{value:,.0f}"
    unit, name = (1e9, "G") if value >= 1e9 else (1e6, "M") if value >= 1e6 else (1e3, "k")
    return f"{value / unit:.3g}&nbsp;{name}"


_BETTER: Final = "Probability of a better score than DualPI2 of RFC 9332 on the same traffic."


_RATIO: Final = "Goodput of an L4S by that of a Classic flow, geometric mean."
_FORM: Final = "What is decided: packets (/n: each n-th), or for intervals probabilities or parameters of DualPI2."
_IMBALANCE: Final = "Mean of |ln(L/C)| of the goodputs of an L4S and a Classic flow: 0 is equal, 0.69 a factor of two."


def _score(suite: str) -> Callable[[Row, str], Value]:
    return lambda row, _: row.scores.get(suite)


def _metric(name: str) -> Callable[[Row, str], Value]:
    return lambda row, suite: row.metrics.get(suite, {}).get(name)


def _latency(name: str) -> Callable[[Row, str], Value]:
    return lambda row, _: row.latency_us[name] if row.latency_us else None


def _rule(row: Row, _: str) -> Value:
    return None if row.rule == NO_RULE else row.rule


def _learned(row: Row, _: str) -> Value:
    return row.how


COLUMNS: Final = (
    Column("Normalised score", "test", "0 is random, 100 is DualPI2 of RFC 9332.", _score("test")),
    Column("Normalised score", "shift", "The same on unseen scenarios.", _score("shift")),
    Column("Normalised score", "dyn", "The same where rate, load or capacity vary.", _score("dyn")),
    Column("L delay, ms", "p50", "Median sojourn time of the L4S queue.", _metric("delay_l_p50_ms"), "z.2f"),
    Column("L delay, ms", "p99", "Its 99th percentile.", _metric("delay_l_p99_ms"), "z.2f"),
    Column("C delay, ms", "p50", "Median sojourn time of the Classic queue.", _metric("delay_c_p50_ms")),
    Column("C delay, ms", "p99", "Its 99th percentile.", _metric("delay_c_p99_ms")),
    Column("Link", "used, %", "Share of the link's capacity that was used.", _metric("utilisation"), "z.1f", 100.0),
    Column("Flows", "imbalance", _IMBALANCE, _metric("imbalance"), "z.2f"),
    Column("Decision", "form", _FORM, lambda row, _: row.decides or None, align=""),
    Column("Decision", "p50, &micro;s", "Median time of a decision; not of native ones.", _latency("p50"), "z.0f"),
    Column("Score, more", "P(better)", _BETTER, lambda row, _: row.improvement, "z.2f", more=True),
    Column("Score, more", "mean", "Mean over episodes.", lambda row, suite: row.means.get(suite), more=True),
    Column("Score, more", "median", "Of the median scenario.", lambda row, suite: row.medians.get(suite), more=True),
    Column("Score, more", "gap", "Test minus shift.", lambda row, _: row.gap, more=True),
    Column(
        "Score, more",
        "below 100",
        "Optimality gap: how far episodes fall short of DualPI2 of RFC 9332, on average; more counts as equal.",
        lambda row, suite: row.shortfall.get(suite),
        more=True,
    ),
    Column("Decides", "rule", "How probabilities become decisions.", _rule, align="", more=True),
    Column(
        "Decides", "p99, &micro;s", "99th percentile of the time of a decision.", _latency("p99"), "z.0f", more=True
    ),
    Column("Flows", "L/C rate", _RATIO, _metric("goodput_ratio"), "z.2f", more=True),
    Column("Flows", "Jain", "Jain's index of the goodputs: 1 is equal.", _metric("jain"), "z.3f", more=True),
    Column("Packets, %", "marked", "Marked by offered.", _metric("mark_rate"), "z.2f", 100.0, more=True),
    Column("Packets, %", "dropped", "Dropped by offered.", _metric("drop_rate"), "z.2f", 100.0, more=True),
    Column("Size", "parameters", "Of the model.", lambda row, _: row.parameters or None, "count", more=True),
    Column(
        "Size", "trained", "Of these, trained.", lambda row, _: row.trainable_parameters or None, "count", more=True
    ),
    Column(
        "Size",
        "learned",
        "From logs (offline), in closed loop (online), or not; and the weights that a language model started from.",
        _learned,
        align="",
        more=True,
    ),
    Column("Size", "training, s", "Time of one training.", lambda row, _: row.training_s, "count", more=True),
)
"""Those that a reader sees first, then those of `more`."""


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of a board: all, but for a suite that nobody ran."""
    return [each for each in COLUMNS if each.title != "dyn" or any("dyn" in row.scores for row in rows)]


def cells(rows: Sequence[Row], suites: Sequence[str]) -> dict[str, list[list[Cell]]]:
    """All cells of the board: suite -> row -> column."""
    chosen = columns(rows)
    return {suite: [[column.cell(row, suite) for column in chosen] for row in rows] for suite in suites}


def board(rows: Sequence[Row], kinds: Mapping[str, str], suite: str) -> str:
    """The board as a table, with the figures of one suite."""
    chosen = columns(rows)
    groups = Counter((column.group, " class='more-column'" if column.more else "") for column in chosen)
    over = "".join(f'<th scope="colgroup" colspan="{n}"{kind}>{name}</th>' for (name, kind), n in groups.items())
    under = "".join(
        f'<th scope="col" class="{column.kind}" title="{escape(column.about)}">'
        f'<button type="button">{column.title}</button></th>'
        for column in chosen
    )
    body = "".join(_row(row, kinds[row.name], suite, chosen) for row in rows)
    return (
        f'<table id="board"><caption class="hidden">Agents by score; delays, rates and fairness are of the chosen '
        f"suite</caption><thead><tr><td></td>{over}</tr>"
        f'<tr><th scope="col"><button type="button">agent</button></th>{under}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _row(row: Row, kind: str, suite: str, chosen: Sequence[Column]) -> str:
    name = escape(row.name)
    anchor, breakable = f"#from-{name}", name.replace("--", "--<wbr>").replace("_", "_<wbr>")
    head = (
        f'<th scope="row" data-v="{name.lower()}"><span class="kind {kind}"></span><span class="hidden">'
        f'{data.KINDS[kind]}: </span><a href="{anchor}">{breakable}</a><small>{escape(row.title)}</small></th>'
    )
    about = f'data-kind="{kind}" data-learned="{row.learned}" data-form="{row.form}"'
    if row.failed is not None:
        where = f'failed: see <a href="{anchor}">where it comes from</a>'
        return f'<tr {about} class="failed">{head}<td colspan="{len(chosen)}">{where}</td></tr>'
    cells = []
    for column in chosen:
        html, value = column.cell(row, suite)
        cells.append(f'<td class="{column.kind}" data-v="{"" if value is None else escape(str(value))}">{html}</td>')
    return f"<tr {about}>{head}{''.join(cells)}</tr>"


def comparison(table: Table) -> str:
    """A table of the comparisons, with its note."""
    title, head = escape(table.title), "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    body = ""
    for first, *others in table.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return (
        f'<h3>{title}</h3><div class="scroll" tabindex="0" role="region" aria-label="{title}"><table><thead><tr>'
        f'{head}</tr></thead><tbody>{body}</tbody></table></div><p class="note">{escape(table.note)}</p>'
    )


def lacking(rows: Iterable[Row], refused: Sequence[Refusal]) -> str:
    """What is not on the board, and why."""
    items = [f"{row.name}: {text}" for row in rows for text in row.lacks]
    items += grouped(refused)
    if not items:
        return ""
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<details><summary>What is missing ({len(items)})</summary><ul>{listed}</ul></details>"


def online(board: Sequence[Row], suite: str) -> str:
    """The score of the best of n configurations that are tried, as a table."""
    found = ranking.online(board, suite)
    if not found:
        return "<p>No learned agent has several configurations.</p>"
    most = max(map(len, found.values()))
    head = "".join(f'<th scope="col" class="n">{n}</th>' for n in range(1, most + 1))
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="n">{scores[n]:.1f}</td>' if n < len(scores) else "<td></td>" for n in range(most))
        + "</tr>"
        for name, scores in found.items()
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Best of several configurations"><table>'
        '<caption class="hidden">Expected score of the best of n configurations</caption>'
        f'<thead><tr><th scope="col">agent</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def definitions() -> str:
    """What the columns mean."""
    terms = "".join(f"<dt>{c.group}: {c.title}</dt><dd>{escape(c.about)}</dd>" for c in COLUMNS)
    return f"<dl>{terms}</dl>"


def _tint(value: float, most: float) -> str:
    """Strength of a background, per cent."""
    return f"--x:{100 * min(abs(value) / most, 1.0):.0f}%"


def heat_maps(entries: Iterable[Entry]) -> str:
    """The L/C goodput ratio over rate and round-trip time: a table for each agent."""
    grids = {entry.id: found for entry in entries if (found := data.grid(entry))}
    rates = sorted({rate for found in grids.values() for rate, _ in found})
    rtts = sorted({rtt for found in grids.values() for _, rtt in found})
    head = "".join(f'<th scope="col">{rtt}</th>' for rtt in rtts)

    def cell(ratio: float | None) -> str:
        if ratio is None:
            return '<td class="none">&ndash;</td>'
        shift = math.log2(max(ratio, 1e-3))  # 8 times and more is the full colour
        side = "more" if shift > 0 else "less"
        return f'<td class="{side}" style="{_tint(shift, 3.0)}">{ratio:{".2f" if ratio < 9.995 else ".1f"}}</td>'

    def table(name: str, found: Mapping[tuple[int, int], float | None]) -> str:
        rows = "".join(
            f'<tr><th scope="row">{rate}</th>{"".join(cell(found.get((rate, rtt))) for rtt in rtts)}</tr>'
            for rate in rates
        )
        return (
            f'<table class="heat" data-agent="{escape(name)}"><caption>{escape(name)}</caption>'
            f'<thead><tr><th scope="col">Mbit/s <span class="axis">\\ ms</span></th>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )

    return "".join(table(*each) for each in grids.items()) or "<p>No entry holds scenarios of the grid.</p>"


def _mean(metrics: Sequence[Mapping[str, Any]], *path: str) -> float | None:
    """Mean of a figure over the trainings that have it."""
    values = []
    for each in metrics:
        value: Any = each
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            values.append(float(value))
    return float(np.mean(values)) if values else None


_OFFLINE: Final = (
    ("cross-entropy, nats", ("cross_entropy",), ".4f"),
    ("of constant shares, nats", ("constant_cross_entropy",), ".4f"),
    ("accuracy, %", ("accuracy",), ".2f"),
    ("majority class, %", ("majority",), ".2f"),
    ("macro-F1", ("macro_f1",), ".3f"),
    *((f"recall of {name}, %", ("recall", name), ".1f") for name in ACTIONS),
    *((f"calibration error of {name}, %", ("ece", name), ".3f") for name in ACTIONS),
)


def offline(entries: Iterable[Entry]) -> str:
    """How well each trained agent foresees the logged decisions: figures, and confusion matrices."""
    trained = {entry.id: found for entry in entries if (found := [t.metrics for t in entry.training if t.metrics])}
    if not trained:
        return "<p>No entry holds offline metrics.</p>"
    head = "".join(f'<th scope="col" class="n">{title}</th>' for title, _, _ in _OFFLINE)

    def figure(metrics: Sequence[Mapping[str, Any]], path: tuple[str, ...], form: str, percent: bool) -> str:
        value = _mean(metrics, *path)
        return "&ndash;" if value is None else f"{value * (100 if percent else 1):{form}}"

    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f'<td class="n">{figure(metrics, path, form, title.endswith("%"))}</td>' for title, path, form in _OFFLINE
        )
        + "</tr>"
        for name, metrics in trained.items()
    )
    matrices = "".join(_confusion(name, metrics) for name, metrics in trained.items())
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Offline metrics"><table>'
        f'<caption class="hidden">Offline metrics, means over the trainings</caption><thead><tr><th scope="col">agent'
        f"</th>{head}</tr></thead><tbody>{rows}</tbody></table></div><h3>Confusion</h3><p>Rows are what the log holds, "
        "columns what the agent finds most probable; per cent of the row, and steps, over all trainings.</p>"
        f'<div class="small-multiples">{matrices}</div>'
    )


def _confusion(name: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    found = [each["confusion"] for each in metrics if "confusion" in each]
    if not found:
        return ""
    total = np.sum(found, axis=0)
    head = "".join(f'<th scope="col">{action}</th>' for action in ACTIONS)
    rows = ""
    for action, line in zip(ACTIONS, total, strict=True):
        whole = int(line.sum())
        shares = [100.0 * int(n) / whole if whole else None for n in line]
        rows += f'<tr><th scope="row">{action}</th>' + "".join(
            f'<td class="less" style="{_tint(share or 0.0, 100.0)}">'
            f"{'&ndash;' if share is None else f'{share:.1f}&nbsp;%'}<small>{count(int(n))}</small></td>"
            for share, n in zip(shares, line, strict=True)
        )
        rows += "</tr>"
    return (
        f'<table class="heat"><caption>{escape(name)}</caption><thead><tr><th scope="col">logged <span class="axis">'
        f"\\ said</span></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in pairs) + "</dl>"


def _ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 as 0 to 2, 5."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def protocol_facts(entries: Sequence[Entry]) -> str:
    """What all entries share, or where they differ."""
    runs: dict[str, tuple[set[str], set[int]]] = {}
    for entry in entries:
        for result in entry.results:
            scenarios, seeds = runs.setdefault(result["suite"], (set(), set()))
            scenarios.add(result["scenario"])
            seeds.add(result["seed"])
    pairs = [
        ("Size", ", ".join(sorted({entry.size for entry in entries}))),
        ("Protocol", ", ".join(sorted({f"{e.protocol} <code>{e.protocol_digest[:16]}</code>" for e in entries}))),
        ("Environment", ", ".join(sorted({f"l4s-gym {entry.environment.version}" for entry in entries}))),
    ]
    for suite in data.SUITES:
        if suite in runs:
            scenarios, seeds = runs[suite]
            pairs.append((f"Suite {suite}", f"{len(scenarios)} scenarios, seeds {_ranges(seeds)}"))
    return _facts(pairs)


def provenance(entry: Entry) -> str:
    """Where an entry comes from."""
    origin = entry.origin
    host = origin.get("host", {})
    pairs = [
        ("Command", f"<code>{escape(str(origin.get('command', '')))}</code>"),
        ("Time", escape(str(origin.get("time", ""))) + f", {count(entry.wall_s)} s of training and runs"),
        ("Host", escape(f"{host.get('cpu', '?')}, {host.get('cores', '?')} cores, {host.get('system', '')}")),
        ("Versions", escape(", ".join(f"{name} {version}" for name, version in origin.get("versions", {}).items()))),
        ("Protocol", f"<code>{escape(entry.protocol_digest)}</code>"),
    ]
    if entry.training:
        pairs.append(("Trainings", f"seeds {_ranges(t.seed for t in entry.training)}"))
    pairs += [(f"Dataset {escape(name)}", f"<code>{escape(digest)}</code>") for name, digest in entry.datasets.items()]
    text = json.dumps(msgspec.to_builtins(entry.experiment), indent=1)
    failed = ""
    if entry.failed is not None:
        failed = (
            f"<p>Failed in {escape(entry.failed.where)}:</p>"
            f'<pre tabindex="0" aria-label="Traceback">{escape(entry.failed.traceback)}</pre>'
        )
    note = " (failed)" if entry.failed is not None else ""
    return (
        f'<details class="entry" id="from-{escape(entry.id)}"><summary>{escape(entry.id)}{note}</summary>'
        f"<p>{escape(entry.title)}</p>{failed}{_facts(pairs)}"
        f'<pre tabindex="0" aria-label="Experiment">{escape(text)}</pre></details>'
    )
