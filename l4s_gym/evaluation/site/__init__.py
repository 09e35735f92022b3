"""The report: one HTML file that opens from disk, asks nothing of the network, and holds its data, script and style."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence, Set
from html import escape
from importlib import resources
from pathlib import Path
from typing import Final

from l4s_gym.data.files import atomic_write
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.board import CLASSES, DECIDED, Refusal, Row, Table, oracle_line
from l4s_gym.evaluation.entry import Entry
from l4s_gym.evaluation.series import Series
from l4s_gym.evaluation.site import data, parts
from l4s_gym.evaluation.statistics import Interval

TITLE: Final = "L4S DualPI2 leaderboard"
LARGEST_BYTES: Final = 5_000_000
DRAWING: Final = "vendor/plotly-basic.min.js"
SCRIPTS: Final = ("base", "board", "draw", "figures", "compare", "start")


def _file(name: str) -> str:
    return (resources.files("l4s_gym.evaluation.site") / name).read_text(encoding="utf-8")


def _json(value: object) -> str:
    """JSON that cannot end the element of the page that it is in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _boxes(titles: Mapping[str, str], there: Set[str]) -> str:
    """Check boxes of a filter, for what there is."""
    return "".join(
        f'<label><input type="checkbox" value="{name}" checked>{text}</label>'
        for name, text in titles.items()
        if name in there
    )


def page(
    entries: Sequence[Entry],
    rows: Sequence[Row],
    tables: Sequence[Table] = (),
    series: Sequence[Series] = (),
    refused: Sequence[Refusal] = (),
    title: str = TITLE,
    oracle: Mapping[str, Interval] = {},
) -> str:
    """The report as HTML; `write` describes the arguments."""
    by_name = {entry.id: entry for entry in entries}
    missing = {row.name for row in rows} - set(by_name)
    if missing or not rows:
        raise L4SError(f"report: no entry of {min(missing, default='anybody')}: give those that the rows are made of")
    kinds = {entry.id: data.kind(entry) for entry in entries}
    whole = [row for row in rows if row.failed is None]
    ordered = [by_name[row.name] for row in rows]
    names = data.suites(rows) or ["test"]
    found = data.page_data(entries, rows, series, oracle)
    found["cells"] = parts.cells(whole, names)
    kinds_there = {kind: text for kind, text in data.KINDS.items() if kind in kinds.values()}
    return string.Template(_file("page.html")).substitute(
        title=escape(title),
        agents=len(rows),
        runs=f"{sum(len(entry.results) for entry in entries):,}",
        time=escape(max((str(entry.origin.get("time", "")) for entry in entries), default="")[:10]),
        style=_file("style.css"),
        drawing=_file(DRAWING),
        script="".join(_file(f"script/{name}.js") for name in SCRIPTS),
        data=_json(found),
        suites="".join(f'<option value="{name}">{escape(data.SUITES[name])}</option>' for name in names),
        kinds="".join(
            f'<label><input type="checkbox" value="{kind}" checked><span class="kind {kind}"></span>{text}</label>'
            for kind, text in kinds_there.items()
        ),
        classes=_boxes(CLASSES, {row.learned for row in rows}),
        forms=_boxes(DECIDED, {row.form for row in rows}),
        comparisons="".join(map(parts.comparison, tables)),
        board=parts.board(rows, kinds, names[0]),
        lacking=parts.lacking(rows, refused),
        oracle=f'<p class="note">{escape(oracle_line(oracle))}</p>' if oracle else "",
        definitions=parts.definitions(),
        online=parts.online(rows, names[0]),
        online_suite=names[0],
        heat=parts.heat_maps(by_name[row.name] for row in whole),
        offline=parts.offline(ordered),
        protocol=parts.protocol_facts(entries),
        provenance="".join(parts.provenance(entry) for entry in entries),
    )


def write(
    folder: Path,
    entries: Sequence[Entry],
    rows: Sequence[Row],
    tables: Sequence[Table] = (),
    series: Sequence[Series] = (),
    refused: Sequence[Refusal] = (),
    title: str = TITLE,
    oracle: Mapping[str, Interval] = {},
) -> Path:
    """Write the report as `index.html`, atomically.

    Args:
        folder: Where; it is made.
        entries: What the report is of, failed ones too.
        rows: Of the board, best first; each belongs to an entry.
        tables: Comparisons of them.
        series: Time series of some agents (`l4s_gym.evaluation.series`), named as entries.
        refused: Entries that are not on the board.
        title: Of the page.
        oracle: Scores by suite of the best static setting for each scenario, drawn as dotted lines.

    Returns:
        Path of the page.

    Raises:
        L4SError: A row has no entry, there are no rows, or the page would be larger than `LARGEST_BYTES`.
    """
    content = page(entries, rows, tables, series, refused, title, oracle).encode()
    if len(content) > LARGEST_BYTES:
        raise L4SError(f"report: {len(content)} bytes, more than {LARGEST_BYTES}: give fewer entries or time series")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    with atomic_write(path) as file:
        file.write(content)
    return path
