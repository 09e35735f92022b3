"""The documentation says what the code says."""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields

import l4s_gym
from l4s_gym import schema
from l4s_gym.cli import GROUPS, main
from l4s_gym.envs.dualpi2 import DualPI2Env
from l4s_gym.envs.prob import DualPI2ProbEnv
from l4s_gym.envs.tune import HIGHEST, LOWEST, DualPI2TuneEnv
from l4s_gym.sim import disciplines, intervals, layout, measure, scenario

ROOT = Path(__file__).parents[1]
SITE: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "hooks.py"), run_name="hooks")
WRITTEN = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
PAGES = {path: (ROOT / path).read_text() for path in {*WRITTEN, *SITE["included"]()}}
NEEDS_DATA, NEEDS_QUEUE = ("minari",), ("-Live-", "-Replay-")


def test_the_record_is_documented_as_it_is() -> None:
    assert schema.markdown_table() in (ROOT / "datasets" / "README.md").read_text()


def test_the_page_of_the_environment_names_every_feature() -> None:
    page = DualPI2Env.__doc__ or ""
    for number, name in enumerate(schema.OBSERVED):
        assert f"| {number} | {name}" in page


def test_the_pages_of_intervals_have_the_tables_of_their_features() -> None:
    for cls, features in ((DualPI2ProbEnv, intervals.INTERVAL), (DualPI2TuneEnv, intervals.FEATURES)):
        page = inspect.cleandoc(cls.__doc__ or "")
        assert f"{intervals.markdown_table(features)}\n\n" in page
        assert f"`Box({len(features)},) float32`" in page


def test_the_page_of_parameters_has_their_bounds() -> None:
    for k, bounds in enumerate(zip(LOWEST, HIGHEST, strict=True)):
        assert re.search(
            rf"^ *\| {k} \| [^|]+ \| {bounds[0]:g} \| {bounds[1]:g} \|", DualPI2TuneEnv.__doc__ or "", re.M
        )


def test_the_page_of_the_environment_names_every_statistic() -> None:
    page = (DualPI2Env.__doc__ or "").partition("## Statistics")[2]
    assert all(f"`{name}`" in page for name in measure.Summary.__annotations__)


def test_the_pages_of_environments_are_those_of_the_registered_ones() -> None:
    assert set(SITE["environments"]()) >= {*l4s_gym.ENV_IDS, l4s_gym.REPLAY_ID, l4s_gym.LIVE_ID}


def test_tables_name_everything_that_ships() -> None:
    tables = {name: table() for name, table in SITE["TABLES"].items()}
    assert all(f"| `{name}` |" in tables["scenarios"] for name in scenario.names())
    assert all(f"`{name}`" in tables["congestion_controls"] for name in layout.CCS[1:])
    assert all(f"`{path.name}`" in tables["examples"] for path in (ROOT / "examples").glob("*.py"))
    for each in disciplines.BUILT_IN:
        part = tables["disciplines"].partition(f"## `{each.name}`")[2].partition("\n## ")[0]
        assert each.title[1:] in part
        for option in fields(each.options):
            row = rf"\| `{option.name}` \| \S+.* \| [^|]*\w"
            assert re.search(row, part), f"{each.name}.{option.name} has no words"
        assert part.count("| `") >= len(each.records.env_rows) + len(each.records.queue_rows)


def test_every_table_has_a_place() -> None:
    used = re.findall(r"^\{\{ (\w+) \}\}$", "\n".join(PAGES.values()), re.M)
    assert sorted(used) == sorted(SITE["TABLES"])


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_to_files(page: str) -> None:
    generated = {f"docs/environments/{name}.md" for name in SITE["environments"]()}
    for target in SITE["links"](PAGES[page]):
        path = Path(os.path.normpath(Path(page).parent / target))
        assert (ROOT / path).exists() or path.as_posix() in generated, target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 7000


def test_the_readme_shows_the_board() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "leaderboard.py"), run_name="script")
    rows = script["first_rows"]((ROOT / "benchmarks" / "results" / "leaderboard.md").read_text())
    assert rows in PAGES["README.md"]
    assert script["BLOCK"].sub(lambda _: rows, PAGES["README.md"]) == PAGES["README.md"]


def commands() -> list[str]:
    """The calls of `l4s-gym` in all blocks of commands."""
    blocks = "\n".join(re.findall(r"```(?:sh|bash)\n(.*?)```", "\n".join(PAGES.values()), re.S))
    found = re.findall(r"^(?:.*&& |[A-Z_]+=\S+ )?(?:sudo )?(?:\S*/)?l4s-gym (.*)$", blocks.replace("\\\n", ""), re.M)
    return sorted({line.partition("  #")[0].strip() for line in found})


@functools.cache
def help_of(command: tuple[str, ...]) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        assert main([*command, "--help"]) == 0
    return text.getvalue()


@pytest.mark.parametrize("command", commands())
def test_every_command_exists_with_its_options(command: str) -> None:
    words = shlex.split(command)
    asked = tuple(words[:2] if words[0] in GROUPS else words[:1])
    known = re.findall(r"--[a-z-]+", help_of(asked))
    assert {word for word in words if word.startswith("--")} <= {*known, "--help", "--version"}


def blocks() -> list[Any]:
    """The blocks of Python in the pages that are written here, and in those of the environments."""
    out = []
    pages = {page: PAGES[page] for page in WRITTEN} | SITE["environments"]()
    for page, text in pages.items():
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.S)):
            if not any(name in block for name in NEEDS_DATA):  # those run with the commands that make the data
                out.append(pytest.param(block, id=f"{page}-{number}"))
    return out


def run(command: list[str], folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MINARI_DATASETS_PATH": str(folder / "datasets")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", blocks())
def test_every_block_of_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(block, "block", "exec")
    if any(name in block for name in NEEDS_QUEUE):
        return  # of a queue or a log that is not there
    monkeypatch.chdir(tmp_path)
    exec(code, {})


@pytest.mark.slow
@pytest.mark.parametrize(("page", "title"), [("docs/first-steps.md", "Data"), ("datasets/README.md", "Load")])
def test_what_is_said_of_data_runs_as_written(page: str, title: str, tmp_path: Path) -> None:
    for extra in ("minari", "torch", "d3rlpy", "sklearn"):
        pytest.importorskip(extra, reason="needs all extras")
    section = PAGES[page].partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    parts = re.findall(r"```(sh|python)\n(.*?)```", section, re.S)
    shell = "".join(block for language, block in parts if language == "sh") or "l4s-gym datasets build testbed\n"
    python = "".join(block for language, block in parts if language == "python")
    assert python
    run(["bash", "-e", "-c", shell], tmp_path)
    run([sys.executable, "-c", python], tmp_path)


@pytest.mark.slow
def test_the_site_builds_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs MkDocs: make docs")
    pytest.importorskip("mkdocstrings", reason="needs mkdocstrings: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(ROOT / "mkdocs.yml")]
    run([*command, "-d", str(tmp_path / "site")], tmp_path)
    html = {path: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert {path.stem for path in html} >= set(SITE["environments"]())
    for path, text in html.items():
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(https?:[^\" >]*)", text)
        assert loaded == [], path
        assert "<p>{{" not in text, path


@pytest.mark.parametrize(
    "path",
    [
        "benchmarks/studies/speed/run.py",
        "benchmarks/studies/fidelity/run.py",
        "benchmarks/studies/speed/peers/ns3.py",
        "benchmarks/studies/data_speed/run.py",
        "benchmarks/studies/sim_to_real/run.py",
    ],
)
def test_the_docs_name_the_benchmarks(path: str) -> None:
    assert any(path in PAGES[page] for page in WRITTEN)
    assert (ROOT / path).is_file()
