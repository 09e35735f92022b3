"""The report: one HTML file that opens from disk, asks nothing of the network, and holds its data, script and style."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Final

from l4s_gym.data.files import atomic_write
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.board import Row
from l4s_gym.evaluation.entry import Entry
from l4s_gym.evaluation.series import Series
from l4s_gym.evaluation.site import data, parts

TITLE: Final = "L4S DualPI2 leaderboard"
LARGEST_BYTES: Final = 5_000_000
DRAWING: Final = "vendor/plotly-basic.min.js"


@dataclass(frozen=True)
class Finding:
    """Something that the results show.

    Attributes:
        title: One line.
        text: Paragraphs, an empty line between two; plain text.
        source: File or command that it comes from; empty: the entries of this report.
    """

    title: str
    text: str
    source: str = ""

    def html(self) -> str:
        """As a section."""
        paragraphs = "".join(f"<p>{escape(' '.join(part.split()))}</p>" for part in self.text.split("\n\n"))
        source = f'<p class="source">From <code>{escape(self.source)}</code></p>' if self.source else ""
        return f"<section><h3>{escape(self.title)}</h3>{paragraphs}{source}</section>"


def _file(name: str) -> str:
    return (resources.files("l4s_gym.evaluation.site") / name).read_text(encoding="utf-8")


def _json(value: object) -> str:
    """JSON that cannot end the element of the page that it is in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def page(
    entries: Sequence[Entry],
    rows: Sequence[Row],
    findings: Sequence[Finding] = (),
    series: Sequence[Series] = (),
    title: str = TITLE,
) -> str:
    """The report as HTML; `write` describes the arguments."""
    missing = {data.identity(row) for row in rows} - {entry.id for entry in entries}
    if missing or not rows:
        raise L4SError(f"report: no entry for {min(missing)}" if missing else "report: no agents: give their entries")
    kinds = {entry.id: data.kind(entry) for entry in entries}
    labels = {data.identity(row): data.label(row) for row in rows}
    names = data.suites(rows) or ["test"]
    found = data.page_data(entries, rows, series)
    found["cells"] = parts.cells([row for row in rows if row.failed is None], names)
    kinds_there = {kind: text for kind, text in data.KINDS.items() if kind in kinds.values()}
    return string.Template(_file("page.html")).substitute(
        title=escape(title),
        agents=len(rows),
        runs=f"{sum(len(entry.results) for entry in entries):,}",
        time=escape(max((str(entry.origin.get("time", "")) for entry in entries), default="")[:10]),
        style=_file("style.css"),
        drawing=_file(DRAWING),
        script=_file("page.js"),
        data=_json(found),
        suites="".join(f'<option value="{name}">{escape(data.SUITES[name])}</option>' for name in names),
        kinds="".join(
            f'<label><input type="checkbox" value="{kind}" checked><span class="kind {kind}"></span>{text}</label>'
            for kind, text in kinds_there.items()
        ),
        findings="".join(finding.html() for finding in findings) or "<p>None are stated.</p>",
        board=parts.board(rows, kinds, names[0]),
        definitions=parts.definitions(),
        heat=parts.heat_maps(entries, labels) or "<p>No entry holds scenarios of the grid.</p>",
        offline=parts.offline(entries, labels),
        protocol=parts.protocol_facts(entries),
        provenance=parts.provenance(entries, labels),
    )


def write(
    folder: Path,
    entries: Sequence[Entry],
    rows: Sequence[Row],
    findings: Sequence[Finding] = (),
    series: Sequence[Series] = (),
    title: str = TITLE,
) -> Path:
    """Write the report as `index.html`, atomically.

    Args:
        folder: Where; it is made.
        entries: What the report is of, failed ones too.
        rows: Of the board, best first; each belongs to an entry.
        findings: What is said about them.
        series: Time series of some agents (`l4s_gym.evaluation.series`), named as entries.
        title: Of the page.

    Returns:
        Path of the page.

    Raises:
        L4SError: A row has no entry, there are no rows, or the page would be larger than `LARGEST_BYTES`.
    """
    content = page(entries, rows, findings, series, title).encode()
    if len(content) > LARGEST_BYTES:
        raise L4SError(f"report: {len(content)} bytes, more than {LARGEST_BYTES}: give fewer entries or time series")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    with atomic_write(path) as file:
        file.write(content)
    return path
