"""Compiled functions that are kept on disk: no state of the disk ends a program."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = """
import numba
from l4s_gym.compiled import is_kept, kept

def one(x):
    return x + 1

one = kept(one, "stamp", nogil=True)
two = kept(lambda x: x + 2)
if __name__ == "__main__":
    print(is_kept(one), one(1), two(1), len(one.stats.cache_hits))
"""
FRESH = "False 2 3 0\n"
AGAIN = "True 2 3 1\n"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a program, beside which nothing can be kept."""
    (tmp_path / "program.py").write_text(SOURCE)
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / "home").mkdir()
    tmp_path.chmod(0o777)
    return tmp_path


def run(place: Path, env: dict[str, str], limit: int | None = None) -> tuple[str, list[str]]:
    """What the program prints, and the lines of stderr."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_", "HOME"))}

    def prepare() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-B", "program.py"],
        cwd=place,
        env={**keep, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=prepare,
    )
    assert done.returncode == 0, done.stderr
    assert not (place / "~").exists()
    return done.stdout, done.stderr.splitlines()


def test_kept(place: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(place / "cache")}
    assert run(place, cache) == (FRESH, [])
    assert run(place, cache) == (AGAIN, [])
    (place / "program.py").write_text(SOURCE.replace('"stamp"', '"other"'))
    assert run(place, cache)[0] == FRESH


@pytest.mark.parametrize(
    "env",
    [
        {"HOME": "/dev/null", "NUMBA_CACHE_DIR": "~/x"},
        *(pytest.param({"HOME": home}, marks=pytest.mark.slow) for home in ("/dev/null", "~")),
    ],
)
def test_no_place(place: Path, env: dict[str, str]) -> None:
    out, (line,) = run(place, env)
    assert out == FRESH
    assert line.startswith("l4s-gym: compiled code is not kept, no folder can be written: ")
    assert "set NUMBA_CACHE_DIR to a folder" in line


def test_a_home_is_found(place: Path) -> None:
    env = {"HOME": str(place / "home"), "NUMBA_CACHE_DIR": "~/cache"}
    assert run(place, env) == (FRESH, [])
    assert run(place, env) == (AGAIN, [])
    assert (place / "home" / "cache").is_dir()


def test_no_room(place: Path) -> None:
    out, (line,) = run(place, {"NUMBA_CACHE_DIR": str(place / "cache")}, limit=0)
    assert out == FRESH
    assert "compiled code is not kept there (File too large)" in line and "set NUMBA_CACHE_DIR" in line


def flip(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


@pytest.mark.parametrize("suffix", [pytest.param(".nbi", marks=pytest.mark.slow), ".nbc"])
@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(cut, marks=pytest.mark.slow) for cut in (lambda _: b"", lambda d: d[:-9], lambda d: d[:3])),
        flip,
    ],
)
def test_damaged_files(place: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    cache = {"NUMBA_CACHE_DIR": str(place / "cache")}
    run(place, cache)
    (path,) = (place / "cache").rglob(f"*one*{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    out, (line,) = run(place, cache)
    assert out.endswith(" 2 3 0\n")
    assert "is damaged: the function is compiled again" in line
    assert run(place, cache) == (AGAIN, [])
