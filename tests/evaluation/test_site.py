"""The report holds what the entries say, and nothing that reaches out of the page."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from l4s_gym.errors import L4SError
from l4s_gym.evaluation import board, site
from l4s_gym.evaluation.entry import Entry
from l4s_gym.evaluation.series import Series
from l4s_gym.evaluation.site import data, parts
from l4s_gym.evaluation.statistics import Interval

FILES = resources.files("l4s_gym.evaluation.site")


class Reader(HTMLParser):
    """The page as elements and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._tag = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._tag, []).append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]

    def data(self) -> Any:
        return json.loads(next(text for text in self.texts["script"] if text.startswith("{")))


@pytest.fixture(scope="module")
def rows(board_entries: list[Entry]) -> list[board.Row]:
    return board.rows(board_entries)


@pytest.fixture(scope="module")
def page(board_entries: list[Entry], rows: list[board.Row]) -> str:
    return site.page(board_entries, rows)


def test_it_reaches_out_for_nothing(page: str) -> None:
    reader = Reader(page)
    assert not [tag for tag, attrs in reader.tags if tag in ("link", "img", "iframe") or "src" in attrs]
    assert all(link.startswith("#") for link in reader.attributes("href"))
    assert {link[1:] for link in reader.attributes("href")} <= set(reader.attributes("id"))
    policy = next(text for text in reader.attributes("content") if "default-src" in text)
    assert policy.startswith("default-src 'none'") and "http" not in policy


def test_ids_are_unique(page: str) -> None:
    ids = Reader(page).attributes("id")
    assert len(ids) == len(set(ids))


def test_the_drawing_library_is_the_file_that_is_stated() -> None:
    stated = tomllib.loads((FILES / "vendor" / "plotly.toml").read_text())
    content = (FILES / site.DRAWING).read_bytes()
    assert hashlib.sha256(content).hexdigest() == stated["sha256"]
    assert f"v{stated['version']}".encode() in content[:200]
    assert b"</script" not in content and b"<!--" not in content
    assert "Permission is hereby granted" in (FILES / "vendor" / "plotly-LICENSE.txt").read_text()


def test_each_agent_has_a_row_and_an_origin(page: str, rows: list[board.Row]) -> None:
    ids = Reader(page).attributes("id")
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    assert body.count("<tr") == len(rows)
    for row in rows:
        assert f"from-{row.name}" in ids and f'href="#from-{row.name}"' in body


def test_the_board_without_a_script_says_what_the_rows_say(page: str, rows: list[board.Row]) -> None:
    row = next(row for row in rows if row.name == "bc--diffuse")
    test = row.scores["test"]
    assert test.low is not None and test.high is not None
    line = next(line for line in page.split("<tr") if 'href="#from-bc--diffuse"' in line)
    assert f'{test.value:.1f} <span class="ci">[{test.low:.1f}, {test.high:.1f}]</span>' in line
    delay = row.metrics["test"]["delay_l_p99_ms"]
    assert delay is not None and f">{delay.value:.2f} <span" in line


def test_a_failed_agent_costs_its_own_row_only(page: str, rows: list[board.Row], board_entries: list[Entry]) -> None:
    (failed,) = (entry for entry in board_entries if entry.failed)
    assert failed.failed is not None and failed.failed.traceback.splitlines()[-1] in page
    assert page.count('class="failed"') == 1
    drawn = {agent["id"] for agent in Reader(page).data()["agents"]}
    assert drawn == {row.name for row in rows} - {failed.id}


def test_cells_are_those_of_the_rows_that_are_drawn(page: str, rows: list[board.Row]) -> None:
    found = Reader(page).data()
    assert set(found["cells"]) == set(found["suites"]) == {"train", "test", "shift"}
    place = [column.title for column in parts.columns(rows)].index("used, %")
    for suite, cells in found["cells"].items():
        whole = [row for row in rows if row.failed is None]
        used = [row.metrics[suite]["utilisation"] for row in whole]
        assert [line[place][1] for line in cells] == [interval.value if interval else None for interval in used]


def test_curves_are_means_of_the_runs_quantiles(page: str, board_entries: list[Entry]) -> None:
    curves = Reader(page).data()["curves"]
    entry = next(entry for entry in board_entries if entry.id == "bc--diffuse")
    name = next(key for key in curves if key.startswith("shift/")).removeprefix("shift/")
    runs = [r["delay_quantiles"]["L"] for r in entry.results if (r["suite"], r["scenario"]) == ("shift", name)]
    assert len(runs) == 15  # 3 trainings, 5 seeds
    assert curves[f"shift/{name}"][entry.id]["L"] == pytest.approx(np.mean(runs, axis=0), rel=1e-3)


def test_a_class_that_never_came_through_has_no_curve(board_entries: list[Entry]) -> None:
    entry = next(entry for entry in board_entries if entry.id == "random--uniform")
    blocked = {"offered": 5, "dropped": 5}
    results = [{**r, "classes": {**r["classes"], "L": blocked}} for r in entry.results]
    curves = data.delay_curves([msgspec.structs.replace(entry, results=tuple(results))])
    assert {tuple(found[entry.id]) for found in curves.values()} == {("C",)}


def test_the_heat_map_is_the_median_of_held_out_runs(board_entries: list[Entry]) -> None:
    entry = next(entry for entry in board_entries if entry.id == "llm--gpt2")
    grid = data.grid(entry)
    assert grid
    for (rate, rtt), value in grid.items():
        name = f"grid-{rate}m-{rtt}ms"
        ratios = [r["goodput_ratio"] for r in entry.results if r["scenario"] == name and r["suite"] != "train"]
        assert value == pytest.approx(np.median(ratios))
    html = parts.heat_maps([entry])
    assert html.count('<th scope="row">') == len({rate for rate, _ in grid})
    assert html.count('class="more"') + html.count('class="less"') == len(grid)


def test_confusion_adds_up_over_trainings(board_entries: list[Entry]) -> None:
    entry = next(entry for entry in board_entries if entry.id == "bc--diffuse")
    html = parts.offline([entry])
    total = np.sum([t.metrics["confusion"] for t in entry.training], axis=0)
    assert f"{100 * total[1, 1] / total[1].sum():.1f}&nbsp;%<small>{total[1, 1]}</small>" in html


def test_what_people_write_stays_text(board_entries: list[Entry], rows: list[board.Row], page: str) -> None:
    evil = '</script><script>alert("1")</script> & "quotes"'
    origin = {**board_entries[0].origin, "command": evil}
    entries = [msgspec.structs.replace(entry, title=evil, origin=origin) for entry in board_entries]
    lines = [replace(row, title=evil, rule=evil, lacks=(evil,)) for row in rows]
    made = Reader(
        site.page(
            entries,
            lines,
            [board.Table(evil, [evil], [[evil, evil]], evil)],
            refused=[board.Refusal(evil, evil)],
            title=evil,
        )
    )
    assert [tag for tag, _ in made.tags].count("script") == [tag for tag, _ in Reader(page).tags].count("script")
    for tag in ("h1", "small", "td", "li", "code"):
        assert evil in "".join(made.texts[tag])


def test_series_and_comparisons_are_in_it(board_entries: list[Entry], rows: list[board.Row], tmp_path: Path) -> None:
    values: Any = {"C": [1.0, None], "L": [2.0, 3.0]}
    series = Series("bc--diffuse", "diffuse", "lte", 7, 100.0, values, values, values, values)
    path = site.write(
        tmp_path / "report", board_entries, rows, [board.Table("Two", ["a", "b"], [["x", "1 < 2"]], "Note.")], [series]
    )
    assert [item.name for item in path.parent.iterdir()] == ["index.html"]
    text = path.read_text()
    assert Reader(text).data()["series"] == [series.as_dict()]
    assert '<tr><th scope="row">x</th><td>1 &lt; 2</td></tr>' in text and "Note.</p>" in text


def test_the_oracle_is_no_row(board_entries: list[Entry], rows: list[board.Row], page: str) -> None:
    oracle = {"test": Interval(119.7, 119.0, 120.4), "shift": Interval(121.25)}
    text = site.page(board_entries, rows, oracle=oracle)
    found = Reader(text).data()
    assert found.pop("oracle") == {"test": [119.7, 119.0, 120.4], "shift": [121.2, None, None]}
    assert found == {name: value for name, value in Reader(page).data().items() if name != "oracle"}
    line = "for each scenario, which no agent is told: test 119.7 [119.0, 120.4], shift 121.2 [?]."
    assert line in text and line in board.markdown(rows, board_entries, oracle=oracle)
    assert "Oracle" not in page and "Oracle" not in board.markdown(rows, board_entries)


def test_the_same_entries_make_the_same_page(board_entries: list[Entry], rows: list[board.Row], page: str) -> None:
    assert site.page(board_entries, rows) == page


def test_one_suite_one_untrained_agent(board_entries: list[Entry]) -> None:
    few = []
    for entry in board_entries:
        if entry.id in ("native--dualpi2_rfc9332", "random--uniform"):
            results = tuple(r for r in entry.results if r["suite"] == "shift" and "grid" not in r["scenario"])
            results = results or tuple(r for r in entry.results if r["suite"] == "shift")
            few.append(msgspec.structs.replace(entry, results=results))
    found = Reader(site.page(few, board.rows(few))).data()
    assert list(found["suites"]) == ["shift"] and len(found["agents"]) == 2


def test_errors_say_what_is_missing(
    board_entries: list[Entry], rows: list[board.Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(L4SError, match=re.escape(f"no entry of {min(row.name for row in rows)}")):
        site.page([], rows)
    with pytest.raises(L4SError, match="no entry of anybody"):
        site.page(board_entries, [])
    monkeypatch.setattr(site, "LARGEST_BYTES", 1000)
    with pytest.raises(L4SError, match="more than 1000"):
        site.write(tmp_path, board_entries, rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (99_999, "99,999"), (123_456, "123&nbsp;k"), (7e7, "70&nbsp;M")],
)
def test_large_numbers_in_short(value: float, text: str) -> None:
    assert parts.count(value) == text


def test_a_cell_without_an_interval(rows: list[board.Row]) -> None:
    column = parts.Column("", "", "", lambda *_: Interval(-0.001))
    assert column.cell(rows[0], "test") == ("0.0", -0.001)
    nothing = parts.Column("", "", "", lambda *_: None)
    assert nothing.cell(rows[0], "test")[1] is None
