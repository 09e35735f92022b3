"""What the wheel holds, what is no package, and what no committed file may say."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import l4s_gym

ROOT = Path(__file__).parents[1]
NO_PACKAGES = ("agents", "benchmarks", "datasets", "docs", "examples", "kernel", "tests")
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|root|home/\w+)/")


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """The repository's files, relative to its root: the committed ones and those that git would add."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout: which files belong to the repository is unknown")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [Path(name) for name in sorted(set(done.stdout.split("\0")) - {""}) if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy of the repository, without network."""
    try:
        importlib.metadata.version("pip")
        setuptools = int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: pip install -e '.[dev]'")
    if setuptools < 77:
        pytest.skip(f"setuptools {setuptools} is too old to build without isolation: pip install -e '.[dev]'")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for file in files:
        target = copy / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(out), str(copy)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_wheel_holds_the_package_alone(wheel: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert top == {"l4s_gym", f"l4s_gym-{l4s_gym.__version__}.dist-info"}


def test_wheel_holds_all_of_the_package(wheel: set[str], files: list[Path]) -> None:
    expected = {file.as_posix() for file in files if file.parts[0] == "l4s_gym"}
    assert expected <= wheel, "missing in [tool.setuptools.package-data]"
    assert "l4s_gym/py.typed" in wheel
    for folder, suffix in (("l4s_gym/scenarios", ".toml"), ("l4s_gym/scenarios/traces", ".txt")):
        assert [name for name in wheel if name.rpartition("/")[0] == folder and name.endswith(suffix)]


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


def test_no_file_names_a_path_of_some_machine(files: list[Path]) -> None:
    found = []
    for file in files:
        try:
            text = (ROOT / file).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{file}:{n}" for n, line in enumerate(text.splitlines(), 1) if MACHINE_PATH.search(line)]
    assert not found
