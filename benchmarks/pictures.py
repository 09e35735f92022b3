"""Pictures of the report: the whole page on desktop and phone, light and dark, and the figure of the README.

python benchmarks/pictures.py                          # runs/leaderboard/index.html -> runs/leaderboard/pictures/
python benchmarks/pictures.py --readme                 # and benchmarks/results/leaderboard-{light,dark}.png

Needs Playwright (`pip install playwright`) and an installed Chromium.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from l4s_gym.cli.arguments import command_line
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional

HERE = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WIDTHS = {"desktop": 1280, "phone": 390}


def main(report: Path = Path("runs/leaderboard/index.html"), readme: bool = False) -> None:
    """Take the pictures.

    Args:
        report: The page.
        readme: Take the pictures of the README too.
    """
    sync_api = optional("playwright.sync_api", "dev")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        raise L4SError("no Chromium here: apt-get install chromium")
    if not report.is_file():
        raise L4SError(f"{report}: there is no such page: run python benchmarks/leaderboard.py first")
    out = report.parent / "pictures"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for scheme in SCHEMES:
            for name, width in WIDTHS.items():
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page.goto(report.resolve().as_uri())
                page.screenshot(path=out / f"{name}-{scheme}.png", full_page=True)
                if readme and name == "desktop":
                    figure = page.locator("#trade-off figure")
                    figure.screenshot(path=HERE / "results" / f"leaderboard-{scheme}.png")
                page.close()
        browser.close()
    print(f"pictures: {out}")


if __name__ == "__main__":
    command_line(main, description=__doc__)
