"""A headless Chromium of the system; the tests are skipped without it, or without Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from l4s_gym.evaluation import board, site
from l4s_gym.evaluation.series import Series
from l4s_gym.evaluation.statistics import Interval
from l4s_gym.sim.scenario import SUITES
from tests.evaluation.conftest import synthetic_entries

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")


def synthetic_series(name: str, scenario: str, seed: int) -> Series:
    """Waves, with steps in which nothing left."""
    rng = np.random.default_rng(seed)

    def values(scale: float) -> dict[str, list[float | None]]:
        return {cls: [scale * float(x) for x in rng.random(100)] for cls in "CL"}

    delay = values(10.0)
    delay["L"][10:20] = [None] * 10
    return Series(name, "-", scenario, 1000, 100.0, delay, values(50.0), values(2.0), values(4.0))


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of entries that nobody ran."""
    entries = synthetic_entries(scenarios=3, suites=SUITES)
    rows = board.rows(entries)
    names = ["native--dualpi2_rfc9332", "bc--diffuse"]
    series = [synthetic_series(name, scenario, k) for scenario in ("lte", "web") for k, name in enumerate(names)]
    refused = [board.Refusal("x--y", "protocol digest is another")]
    folder, tables = tmp_path_factory.mktemp("site") / "report", board.comparisons(rows)
    oracle = {"test": Interval(121.0, 120.0, 122.0), "shift": Interval(118.0)}
    return site.write(folder, entries, rows, tables, series, refused, oracle=oracle)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; a page of it is closed with its context."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Without its sandbox, which root does not get: the only page that it opens is the one written here.
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()
