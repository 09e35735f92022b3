"""The report in a browser: it draws, sorts and filters, is fit for screen readers, and asks nothing of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PICTURES = (
    *("plot-trade-off", "plot-cdf-L", "plot-cdf-C", "plot-series-L", "plot-series-C"),
    *("plot-gap", "plot-cost", "plot-profile"),
)
DESKTOP, PHONE = 1280, 360


@pytest.fixture(scope="module")
def open_page(browser: Browser, report: Path) -> Iterator[Callable[..., Page]]:
    """Opens the report; afterwards, no page has said anything to the console or asked for anything but itself."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_(width: int = DESKTOP, scheme: Any = "light", **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) == {report.as_uri()}


@pytest.fixture(scope="module")
def page(open_page: Callable[..., Page]) -> Page:
    """One page for the tests that leave it as they find it."""
    return open_page()


def column(page: Page, title: str) -> list[str]:
    """Texts of a column of the board, shown rows only, in order."""
    script = """title => {
        const heads = [...document.querySelectorAll("#board thead tr:last-child th")];
        const at = heads.findIndex(head => head.textContent === title);
        const rows = [...document.querySelectorAll("#board tbody tr")].filter(row => !row.hidden);
        return rows.map(row => row.cells[at]?.firstChild?.textContent.trim() ?? "");
    }"""
    found: list[str] = page.evaluate(script, title)
    return found


def agents(page: Page) -> list[str]:
    """Names of the agents that the board shows, in order."""
    return page.locator("#board tbody tr:not([hidden]) th a").all_inner_texts()


def press(page: Page, title: str) -> str | None:
    """Press a heading of the board; its `aria-sort`."""
    head = page.locator("#board thead tr:last-child th").filter(has=page.get_by_role("button", name=title, exact=True))
    head.first.get_by_role("button").click()
    return head.first.get_attribute("aria-sort")


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_are_drawn_and_named(page: Page, picture: str) -> None:
    place = page.locator(f"#{picture}")
    assert place.locator("svg.main-svg").count() > 0
    assert place.locator(".scatterlayer .trace").count() > 1
    assert place.get_attribute("role") == "img" and place.get_attribute("aria-label")


@pytest.mark.parametrize(("picture", "along", "expected"), [("gap", "x", [121, 118]), ("cost", "y", [121])])
def test_the_oracle_is_a_dotted_line(page: Page, picture: str, along: str, expected: list[float]) -> None:
    script = """([id, along]) => {
        const { shapes, annotations } = document.querySelector(id).layout;
        const named = annotations.filter(({ text }) => text.startsWith("oracle, ")).map(each => each[along]);
        const at = value => each => each.line.dash === "dot" && [0, 1].every(k => each[along + k] === value);
        return named.filter(value => shapes.some(at(value)));
    }"""
    assert page.evaluate(script, [f"#plot-{picture}", along]) == expected
    assert "Oracle (dotted lines in the report): the best static setting" in page.locator("#board-section").inner_text()


def test_headings_sort(page: Page) -> None:
    assert press(page, "agent") == "ascending"
    assert agents(page) == sorted(agents(page))
    assert press(page, "agent") == "descending"
    assert agents(page) == sorted(agents(page), reverse=True)
    assert press(page, "used, %") == "descending"
    shown = [float(text) for text in column(page, "used, %")[:-1]]
    assert shown == sorted(shown, reverse=True)
    assert agents(page)[-1] == "dt--crash"  # it has no figures: last, whichever way
    assert press(page, "used, %") == "ascending" and agents(page)[-1] == "dt--crash"
    assert page.locator("#board [aria-sort]").count() == 1
    assert press(page, "test") == "descending"


def test_the_board_sorts_by_keyboard(page: Page) -> None:
    button = page.locator("#board").get_by_role("button", name="shift", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"
    press(page, "test")


def test_filters_hide_rows_and_say_so(page: Page) -> None:
    whole = len(agents(page))
    page.fill("#find", "DualPI2")
    assert agents(page) == ["native--dualpi2_rfc9332"]
    assert page.locator("#shown").inner_text() == f"1 of {whole} agents shown"
    page.fill("#find", "")
    page.uncheck("#filters input[value=native]")
    assert not [name for name in agents(page) if name.startswith("native--")]
    page.check("#filters input[value=native]")
    page.uncheck("#filters input[value=none]")
    assert agents(page) and not [name for name in agents(page) if name.startswith(("native--", "random--"))]
    page.check("#filters input[value=none]")
    page.uncheck("#filters input[value=packet]")  # disciplines are asked nothing, and stay
    assert {name.partition("--")[0] for name in agents(page)} == {"native", "zero"}
    page.check("#filters input[value=packet]")
    assert len(agents(page)) == whole


def test_another_suite_changes_board_and_picture(page: Page) -> None:
    before, drawn = column(page, "used, %"), page.locator("#plot-trade-off").get_attribute("aria-label")
    page.select_option("#board-suite", "shift")
    assert page.locator("#suite").input_value() == "shift"
    assert column(page, "used, %") != before
    assert page.locator("#plot-trade-off").get_attribute("aria-label") != drawn
    page.select_option("#suite", "test")
    assert column(page, "used, %") == before


def test_the_agents_that_are_compared_can_be_chosen(page: Page) -> None:
    boxes = page.locator("#choices input:checked")
    count = boxes.count()
    lines = page.locator("#plot-cdf-L .scatterlayer .trace")
    assert count == lines.count() > 2
    first = boxes.first.get_attribute("value")
    page.uncheck(f"#choices input[value={first}]")
    assert lines.count() == count - 1
    assert not page.locator(f'#heat table[data-agent="{first}"]').is_visible()
    page.check(f"#choices input[value={first}]")
    assert lines.count() == count
    assert page.locator(f'#heat table[data-agent="{first}"]').is_visible()


def test_every_picture_has_its_numbers_as_a_table(page: Page) -> None:
    for details in page.locator("details.numbers").all():
        details.locator("summary").click()
        details.locator("table").first.wait_for()
        cells = details.locator("td").all_inner_texts()
        assert cells and not [text for text in cells if "NaN" in text or "undefined" in text]
    assert page.locator("details.numbers table").count() == len(PICTURES)


def test_a_run_over_time_of_another_scenario(page: Page) -> None:
    page.select_option("#scenario", "web")
    assert " web " in (page.locator("#plot-series-L").get_attribute("aria-label") or "")
    assert "seed 1000" in page.locator("#series-note").inner_text()


@pytest.mark.parametrize(
    ("width", "scheme", "options"),
    [
        (DESKTOP, "light", {}),
        pytest.param(
            *(PHONE, "dark", {"runOnly": ["color-contrast", "target-size", "meta-viewport"]}), marks=pytest.mark.slow
        ),
    ],
)
def test_screen_readers_and_width(open_page: Callable[..., Page], width: int, scheme: str, options: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = open_page(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.wait_for_function(f"document.querySelectorAll('details.numbers table').length == {len(PICTURES)}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # A picture is one image with a name: what it is drawn from is hidden from screen readers, and slow to look at.
    page.evaluate("document.querySelectorAll('.plot').forEach(each => each.replaceChildren())")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"], **options}).response
    assert len(found["passes"]) >= (2 if options else 20)
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found["violations"]] == []


@pytest.mark.slow
def test_theme_follows_the_system_and_the_button(open_page: Callable[..., Page]) -> None:
    page = open_page(scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    text = "getComputedStyle(document.querySelector('#plot-gap .xtick text')).fill"
    dark = page.evaluate(ground), page.evaluate(text)
    button = page.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    light = page.evaluate(ground), page.evaluate(text)
    assert light[0] != dark[0] and light[1] != dark[1]
    page.reload()
    assert page.evaluate(ground) == light[0]


@pytest.mark.parametrize("script", [True, False])
def test_the_board_fits_and_shows_more_on_demand(open_page: Callable[..., Page], script: bool) -> None:
    page = open_page(java_script_enabled=script)
    heads = page.locator("#board thead tr:last-child th:visible")
    few = heads.count()
    board = page.locator("#board").bounding_box()
    assert board is not None and board["width"] <= 1229
    assert "dyn" in heads.all_inner_texts()
    page.check("#all-columns")
    assert heads.count() == page.locator("#board thead tr:last-child th").count() > few


def test_a_link_to_an_entry_opens_it(page: Page) -> None:
    page.locator("#board a", has_text="crash").first.click()
    page.wait_for_selector("#from-dt--crash[open]")
    assert "ValueError" in page.locator("#from-dt--crash pre").first.inner_text()


def test_tables_do_without_a_script(open_page: Callable[..., Page]) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#board tbody tr").count() == 10
    assert page.locator("#heat table").count() == 9
    assert page.locator("noscript").is_visible()
