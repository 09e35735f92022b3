"""What the wheel holds, what is no package, and what no committed file may say."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import l4s_gym

ROOT = Path(__file__).parents[1]
NO_PACKAGES = ("agents", "benchmarks", "datasets", "docs", "examples", "kernel", "tests")
MACHINE_PATH = re.compile(r"""(?<![\w.:/-])/(?:work|root|home/\w+)/|"command": "[^"]*[ ,:=]/(?!/)""")


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """The repository's files, relative to its root: the committed ones and those that git would add."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout: which files belong to the repository is unknown")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [Path(name) for name in sorted(set(done.stdout.split("\0")) - {""}) if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of a copy of the repository, and the wheel that is built from it; without network."""
    try:
        importlib.metadata.version("build")
        setuptools = int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: pip install -e '.[dev]'")
    if setuptools < 77:
        pytest.skip(f"setuptools {setuptools} is too old to build without isolation: pip install -e '.[dev]'")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for file in files:
        target = copy / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> set[str]:
    """The names in the wheel."""
    (path,) = built.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_wheel_holds_the_package_alone(wheel: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert top == {"l4s_gym", f"l4s_gym-{l4s_gym.__version__}.dist-info"}


def test_wheel_holds_all_of_the_package(wheel: set[str], files: list[Path]) -> None:
    expected = {file.as_posix() for file in files if file.parts[0] == "l4s_gym"}
    assert expected <= wheel, "missing in [tool.setuptools.package-data]"
    assert "l4s_gym/py.typed" in wheel
    for folder, suffix in (("l4s_gym/scenarios", ".toml"), ("l4s_gym/scenarios/traces", ".txt")):
        assert [name for name in wheel if name.rpartition("/")[0] == folder and name.endswith(suffix)]


def test_wheel_holds_what_commands_need_of_other_folders(wheel: set[str], files: list[Path]) -> None:
    kinds = {"agents": ("config.toml",), "datasets": ("recipe.toml", "facts.json", "SHA256SUMS")}
    needed = {file for file in files if file.parts[0] in kinds and file.name in kinds[file.parts[0]]}
    needed |= {file for file in files if file.match("benchmarks/protocol*.toml") or file.match("experiments/*/*.toml")}
    needed |= {file for file in files if file.match("benchmarks/oracle.json")}
    shipped = {name.removeprefix("l4s_gym/shipped/") for name in wheel if name.startswith("l4s_gym/shipped/")}
    assert shipped == {"__init__.py"} | {file.as_posix() for file in needed}


def test_sdist_holds_neither_tests_nor_results(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert "datasets/mixed/recipe.toml" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks/results"))]


def commands(folder: Path, *lines: str) -> list[tuple[int, str]]:
    """Exit status and output of commands of `l4s-gym` in a folder, with an environment that knows no checkout."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "NUMBA_CACHE_DIR")}
    env |= {"MINARI_DATASETS_PATH": str(folder / "minari"), "PATH": f"{folder}/venv/bin{os.pathsep}{env['PATH']}"}
    found = []
    for line in lines:
        command = ["l4s-gym", *line.split()]
        done = subprocess.run(command, cwd=folder / "empty", env=env, capture_output=True, text=True, check=False)
        found.append((done.returncode, done.stdout + done.stderr))
    return found


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(built: Path, tmp_path: Path) -> None:
    for needed in ("d3rlpy", "minari", "matplotlib"):
        pytest.importorskip(needed, reason=f"needs {needed}: pip install 'l4s-gym[all]'")
    venv.create(tmp_path / "venv")
    (tmp_path / "empty").mkdir()
    (place,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (place / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # but not what its .pth files name
    (path,) = built.glob("*.whl")
    python = tmp_path / "venv" / "bin" / "python"
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([str(python), *pip, str(path)], check=True)
    version, *done, refused = commands(
        tmp_path,
        "--version",
        "scenarios",
        "simulate --seconds 1",
        "datasets list",
        "datasets build testbed --size small",
        "train bc --dataset l4s/dualpi2/testbed-small-v0 --small --set steps=20",
        "leaderboard threshold --size quick --jobs 0",
        "datasets build web --record",
    )
    assert version[1].startswith(f"l4s-gym {l4s_gym.__version__}, simulator ")
    for code, text in (version, *done):
        assert code == 0, text
    assert "testbed small" in done[2][1] and "threshold--default" in done[-1][1]
    assert refused[0] == 2 and "--record: the recipes that ship stay as they are" in refused[1]
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"runs"}


@pytest.mark.slow
def test_twine_accepts_wheel_and_sdist(built: Path) -> None:
    pytest.importorskip("twine", reason="needs twine: pip install twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_folder_of_the_package_has_an_init(files: list[Path]) -> None:
    folders = {file.parent for file in files if file.parts[0] == "l4s_gym" and file.suffix == ".py"}
    assert not [folder for folder in folders if folder / "__init__.py" not in files]


def test_other_folders_are_no_packages() -> None:
    assert not [init for folder in NO_PACKAGES for init in (ROOT / folder).rglob("__init__.py")]


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert l4s_gym.__version__ == project == citation[1]


def test_ci_runs_on_the_pythons_of_the_classifiers() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    pythons = [each.rpartition(" ")[2] for each in named if re.search(r":: 3\.\d+$", each)]
    matrix = re.search(r"python: (\[.*\])", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert matrix is not None and json.loads(matrix[1]) == pythons


def test_no_file_names_a_path_of_some_machine(files: list[Path]) -> None:
    found = []
    for file in files:
        try:
            text = (ROOT / file).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{file}:{n}" for n, line in enumerate(text.splitlines(), 1) if MACHINE_PATH.search(line)]
    assert not found
