"""`l4s-gym datasets`: each command, its errors with their remedies, and Minari's own commands on what it builds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import cli
from l4s_gym.cli.common import console
from l4s_gym.data import build, minari_io, recipes

minari = pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'l4s-gym[report]'")

Capture = pytest.CaptureFixture[str]
ID = "l4s/dualpi2/tiny-small-v0"
ROOT = Path(__file__).parents[2]
SCENARIO = 'horizon_s = 1.0\n[[sources]]\nkind = "prague"\n'
RECIPE = """
title = "{name}"
description = "For tests."
scenarios = ["{scenario}"]
[[behaviours]]
aqm = "dualpi2_freebsd"
[[behaviours]]
explore = 1.0
[small]
episodes = 3
seconds = 1.0
per_shard = 2
[full]
episodes = 4
seconds = 1.0
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of the test's own: `datasets`, `recipes`."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.delenv("MINARI_REMOTE", raising=False)
    monkeypatch.setattr(console, "width", 160)
    (tmp_path / "mine.toml").write_text(SCENARIO)
    for name in ("tiny", "wee"):
        (tmp_path / "recipes" / name).mkdir(parents=True)
        text = RECIPE.format(name=name, scenario=tmp_path / "mine.toml")
        (tmp_path / "recipes" / name / recipes.FILE).write_text(text)
    return tmp_path


def run(capsys: Capture, *args: object) -> str:
    """What a command prints that succeeds."""
    code = cli.main(["datasets", *map(str, args)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def refuse(capsys: Capture, *args: object) -> str:
    """The one line of a command that is refused."""
    code = cli.main(["datasets", *map(str, args)])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


def row(table: str, name: str) -> list[str]:
    """Cells of the first row of a printed table that begins with a name."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    return next(cells for cells in rows if cells[0] == name)[1:]


@pytest.mark.parametrize("command", [(), ("list",), ("build",), ("show",), ("download",), ("upload",)])
def test_help(command: tuple[str, ...], capsys: Capture) -> None:
    text = run(capsys, *command, "--help")
    assert "usage: " + " ".join(("l4s-gym", "datasets", *command)) in text and "{None}" not in text


def test_build_list_show(place: Path, capsys: Capture) -> None:
    folder = place / "recipes"
    assert row(run(capsys, "list", "--recipes", folder), ID) == ["tiny small", "-", "-", "-"]
    built = run(capsys, "build", "tiny", "--workers", 1, "--recipes", folder, "--record")
    dataset = minari_io.load(ID)
    assert built.startswith(f"{ID}: {dataset.total_steps:,} steps in ") and " steps/s): " in built
    assert str(place / "datasets" / ID) in built
    assert f"{folder / 'tiny'}: card, picture, facts and checksums are up to date" in built
    assert (folder / "tiny" / "SHA256SUMS").read_text() == (place / "datasets" / ID / "SHA256SUMS").read_text()
    assert (folder / "tiny" / "card.md").read_text() == (place / "datasets" / ID / "README.md").read_text()
    assert json.loads((folder / "tiny" / "facts.json").read_text())["small"]["steps"] == dataset.total_steps

    listed = run(capsys, "list", "--recipes", folder)
    assert row(listed, ID)[:2] == ["tiny small", f"{dataset.total_steps:,}"]
    assert row(listed, "l4s/dualpi2/wee-v0") == ["wee full", "-", "-", "-"]
    assert row(run(capsys, "list", "--recipes", ROOT / "datasets"), ID)[0] == "-"  # here, without a recipe

    shown = run(capsys, "show", ID)
    assert row(shown, "steps") == [f"{dataset.total_steps:,}"]
    assert row(shown, "behaviour") == ["dualpi2_freebsd, uniformly random"]
    assert "mean returns" in row(shown, "random, native")[0]
    assert row(shown, "checksums") == ["SHA256SUMS, not compared (--verify)"]
    decided = sum(int(part.split()[1].replace(",", "")) for part in row(shown, "actions")[0].split(", "))
    assert decided == dataset.total_steps
    verified = run(capsys, "show", ID, "--verify")
    assert (row(verified, "checksums"), row(verified, "content")) == (["2 files as in SHA256SUMS"], ["valid"])


def tiny(place: Path, **options: Any) -> Any:
    """The dataset, without its reference scores."""
    recipe = recipes.load("tiny", place / "recipes")
    return build.build(recipe, "small", **{"workers": 1, **options})


def test_what_is_here_is_kept(place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(place)
    monkeypatch.setattr("l4s_gym.evaluation.harness.reference_scores", lambda recipe: None)
    refused = refuse(capsys, "build", "tiny", "--recipes", place / "recipes")
    assert f"{ID!r}: exists already: use it, or give --overwrite" in refused
    everything = run(capsys, "build", "all", "--workers", 1, "--recipes", place / "recipes")
    assert "wee-small-v0: " in everything and ID not in everything
    assert run(capsys, "build", "all", "--recipes", place / "recipes") == ""
    assert ID in run(capsys, "build", "tiny", "--overwrite", "--workers", 1, "--recipes", place / "recipes")
    shown = run(capsys, "show", ID)
    assert row(shown, "random, native") == ["not measured"]


def test_damage_is_found(place: Path, capsys: Capture) -> None:
    path = Path(tiny(place).storage.data_path) / "shard-00001.hdf5"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "shard-00001.hdf5 differs from SHA256SUMS: download it with --force, or build it with --overwrite" in refuse(
        capsys, "show", ID, "--verify"
    )
    (path.parents[1] / "SHA256SUMS").unlink()
    path.write_bytes(data[: len(data) // 2])
    assert "cannot be read" in refuse(capsys, "show", ID, "--verify")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("build", "tini", "--recipes", "recipes"), "unknown dataset 'tini': did you mean 'tiny'?"),
        (("build", "--recipes", "recipes"), "name at least one of tiny, wee, or all"),
        (("build", "tiny", "--workers", "0", "--recipes", "recipes"), "--workers 0: give 1 or more"),
        (("build", "tiny", "--recipes", "datasets"), "recipes: no NAME/recipe.toml in datasets"),
        (("list", "--recipes", "nowhere"), "recipes: no NAME/recipe.toml in nowhere"),
        (("show", "tiny"), "is not of the form l4s/dualpi2/<name>-v0"),
        (("show", "l4s/dualpi2/mixed-v0"), "`l4s-gym datasets build mixed --size full`"),
        (("show", "l4s/dualpi2/mixed-small-v0"), "`l4s-gym datasets download l4s/dualpi2/mixed-small-v0 --remote hf"),
        (("show", "l4s/dualpi2/other-v0"), "`l4s-gym datasets list` tells those that can be built"),
        (("download", "mixed", "--remote", "hf://lab"), "is not of the form l4s/dualpi2/<name>-v0"),
        (("download", "l4s/dualpi2/mixed-v0", "--remote", "lab"), "'lab': is not of the form hf://ORG or gcp://BUCKET"),
        (("upload", "l4s/dualpi2/mixed-v0"), "give --remote hf://ORG, or set MINARI_REMOTE"),
        (("upload", "l4s/dualpi2/mixed-v0", "--remote", "hf://lab"), "'l4s/dualpi2/mixed-v0': not found in"),
    ],
)
def test_bad_input(args: tuple[str, ...], message: str, place: Path, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.chdir(place)
    assert message in refuse(capsys, *args)


def test_minari_lists_and_shows_it(place: Path) -> None:
    testing: Any = pytest.importorskip("typer.testing")
    from minari.cli import app

    tiny(place)
    for args in (["list", "local"], ["show", ID]):
        shown = testing.CliRunner().invoke(app, args, env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        assert "tiny-small-v0" in shown.output


@pytest.mark.slow
def test_the_script_builds_from_anywhere(place: Path) -> None:
    def script(*args: str) -> tuple[int, str]:
        command = [sys.executable, str(ROOT / "datasets" / "build.py"), *args]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, text = script("mixd")
    assert code == 2 and "did you mean 'mixed'" in text
    code, text = script("wee", "--workers", "1", "--recipes", "recipes")
    assert code == 0 and text.startswith("l4s/dualpi2/wee-small-v0: ")


@pytest.mark.slow
def test_the_python_of_the_readme_runs(place: Path) -> None:
    pytest.importorskip("d3rlpy", reason="needs d3rlpy: pip install 'l4s-gym[baselines]'")
    tiny(place)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "datasets" / "README.md").read_text(), re.S)
    assert len(blocks) == 3
    program = "\n".join(blocks).replace("testbed-small-v0", "tiny-small-v0")
    program += "\nprint(buffer.transition_count, next(iter(loader))['actions'].shape)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(", 20])")


def test_every_command_of_the_readme_exists(capsys: Capture) -> None:
    text = (ROOT / "datasets" / "README.md").read_text()
    commands = {tuple(line.split()[1:3]) for line in text.splitlines() if line.startswith("l4s-gym ")}
    assert {("datasets", "build"), ("datasets", "upload"), ("log", "convert")} <= commands
    for command in sorted(commands):
        assert cli.main([*command, "--help"]) == 0
    capsys.readouterr()
    recipes_here = {path.parent.name for path in (ROOT / "datasets").glob(f"*/{recipes.FILE}")}
    assert recipes_here == set(re.findall(r"^\| `([a-z-]+)` \|", text.split("## Build")[0], re.M))


@pytest.mark.slow
def test_ray_gives_the_same_bytes(place: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'l4s-gym[scale]'")
    program = """
import sys
from pathlib import Path
from l4s_gym.data import build, recipes
recipe = recipes.load("tiny", Path("recipes"))
for options in ({"workers": 1}, {"ray": "local"}):
    made = build.build(recipe, "small", overwrite=True, **options)
    print(repr(Path(made.storage.data_path, "..", "SHA256SUMS").read_text()))
"""
    # A process of its own: Ray starts threads and servers, and leaves sockets to the garbage collector.
    command = [sys.executable, "-c", program]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(place), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    processes, ray = done.stdout.splitlines()
    assert processes == ray and processes.count("shard-") == 2


@pytest.mark.slow
def test_ray_without_a_cluster(place: Path, capsys: Capture) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'l4s-gym[scale]'")
    refused = refuse(capsys, "build", "tiny", "--ray", "auto", "--recipes", place / "recipes")
    assert "ray: no cluster at 'auto'" in refused and "give `local`" in refused
