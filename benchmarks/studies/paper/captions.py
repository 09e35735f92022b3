"""The page of the figures: what is said of each by hand (`captions.toml`), and the numbers that are drawn as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation import statistics
from l4s_gym.evaluation.statistics import Interval
from l4s_gym.markdown import table
from l4s_gym.sim import fingerprint
from l4s_gym.tables import read_toml

DRAWN: Final = ("line", "quantiles")
"""Curves, which are in the picture."""
Row = dict[str, Any]


def interval(values: npt.NDArray[np.float64]) -> Interval:
    """Mean over seeds (n,), and its 95 % interval."""
    return statistics.linear(values[:, None]).interval()


def text(found: Interval, form: str = ".3g") -> str:
    """An interval in words."""
    if found.low is None or found.high is None:
        return format(found.value, form)
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


def write(folder: Path) -> Path:
    """Write `figures.md` of all figures in a folder, in order: picture and two sentences, and the rest folded."""
    said = read_toml(Path(__file__).with_suffix(".toml"))
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    parts = ["# The figures of the L4S-LLM paper, made anew", f"The paper: {said['source']}."]
    for stem in sorted(said.keys() & records.keys(), key=list(said).index):
        parts += _section(stem, records[stem], said[stem], said["differs"])
    path = folder / "figures.md"
    with atomic_write(path) as file:
        file.write(("\n\n".join(parts) + "\n").encode())
    return path


def _section(stem: str, record: Mapping[str, Any], said: Mapping[str, str], differs: Mapping[str, str]) -> list[str]:
    old = fingerprint.reason(record.get("simulator", fingerprint.NONE))
    return [
        f"## {stem.replace('_', ' ').capitalize()}. {said['title']}\n![{said['title']}]({stem}.png)",
        "A quick run, which says nothing." if record["quick"] else said["says"],
        *([f"*What is simulated here {old}.*"] if old else []),
        '<details markdown="1">\n<summary>Numbers, what the paper has, and what differs</summary>',
        *tables(record["data"]),
        f"- **Paper:** {said['paper']}\n- **What differs:** {differs.get(said['differs'], said['differs'])}\n"
        f"- `{record['command']}`",
        "</details>",
    ]


def tables(data: Mapping[str, Any]) -> list[str]:
    """The tables of a figure as Markdown, each with a line of what it is."""
    found: dict[str, Sequence[Row]]
    if "curves" in data:
        found = {"After the last pass": [_of_curve(each) for each in data["curves"]]}
    elif "loop" in data:
        replay, loop = data["replay"], data["loop"]
        found = {f"Replay of {replay['rows']}": _named(replay["who"])}
        found[f"Closed loop on {loop['scenario']}, means and 95 % intervals"] = _of_loop(loop)
    else:
        named = {name: _named(rows) if isinstance(rows, dict) else rows for name, rows in data.items()}
        found = {name.capitalize().replace("_gb", ", GB"): rows for name, rows in named.items()}
    return [f"{name}:\n\n{_table(rows)}" for name, rows in found.items() if isinstance(rows, list)]


def _named(rows: Mapping[str, Row]) -> list[Row]:
    return [{"name": name, **{key: each for key, each in row.items() if key != "who"}} for name, row in rows.items()]


def _of_curve(curve: Mapping[str, Any]) -> Row:
    values = np.array(curve["values"])  # (L, 2, 3)
    found = {"reading": curve["reading"], "backbone": curve["family"]}
    for k, measure in enumerate(("cross-entropy", "accuracy", "macro-F1")):
        found |= {f"{measure}, trained": values[-1, 0, k], f"{measure}, held out": values[-1, 1, k]}
    return found | {"its least cross-entropy": values[:, 1, 0].min()}


def _of_loop(loop: Mapping[str, Any]) -> list[Row]:
    """Who decides, and differences to native, who is the first, on the same traffic."""
    each = {who: dict(_flat(row)) for who, row in loop["who"].items()}
    native, found = next(iter(each.values())), []
    for who, row in each.items():
        found.append({"name": who, "decides on, %": 100.0 * loop["decided"][who]})
        for name, values in row.items():
            less = None if row is native else interval(np.subtract(values, native[name]))
            found[-1] |= {name: interval(np.array(values)), f"{name}, less native": less}
    return found


def _flat(row: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those of tables in it too."""
    for name, value in row.items():
        full = f"{above} {name}".strip().replace("_", " ")
        if isinstance(value, dict) and value.keys() == {"value", "low", "high"}:
            yield full, Interval(**value)
        elif isinstance(value, dict) and name not in DRAWN:
            yield from _flat(value, full)
        elif name not in DRAWN:
            yield full, value


def _table(rows: Sequence[Row]) -> str:
    plain = [dict(_flat(row)) for row in rows]
    head = list(dict.fromkeys(name for row in plain for name in row))
    return "\n".join(table(head, [[_cell(row.get(name)) for name in head] for row in plain]))


def _cell(value: Any) -> str:
    if isinstance(value, Interval):
        return text(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
