"""A disk that takes no more: an error that names the file, wherever it comes, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import resource, signal
from l4s_gym.data import minari_io, storage
from l4s_gym.data.files import atomic_folder, atomic_write
from l4s_gym.data.steps import STEP
from l4s_gym.errors import L4SError

class Run:
    about = {"consecutive": True}
    def blocks(self):
        for _ in range(10):
            yield np.zeros(int(rows), STEP)

what, folder, rows, limit = sys.argv[1:]
folder = Path(folder)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    if what == "shard":
        storage.write_shard(folder / "s.hdf5", 0, [Run(), Run(), Run()])
    elif what == "links":
        storage.link_shards(folder, [storage.Shard("s.hdf5", 0, 500, 1)])
    elif what == "folder":
        with atomic_folder(folder / "x") as new:
            minari_io._check_space(new)
    else:
        with atomic_write(folder / "x.bin") as file:
            file.write(bytes(1 << 20))
    print("written")
except L4SError as error:
    print(error)
"""


def run(what: str, folder: Path, rows: int, limit: int) -> str:
    command = [sys.executable, "-c", PROGRAM, what, str(folder), str(rows), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("rows", "limit"),
    [(50, 0), (50, 3000), (50, 100_000), (500, 1_000_000), (2000, 1_024_000), (2000, 5_050_000), (20_000, 1_000_000)],
)
def test_a_shard(tmp_path: Path, rows: int, limit: int) -> None:
    """While arrays are written, while the file is closed, and while what waits is written."""
    expected = f"{tmp_path / 's.hdf5'}: cannot be written (File too large): free some space, or choose another place"
    assert run("shard", tmp_path, rows, limit) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("what", "name"), [("links", "main_data.hdf5"), ("folder", "x"), ("file", "x.bin")])
def test_other_files(tmp_path: Path, what: str, name: str) -> None:
    assert run(what, tmp_path, 1, 20_000).startswith(f"{tmp_path / name}: cannot be written (File too large): free")
    assert list(tmp_path.iterdir()) == []


def test_with_room(tmp_path: Path) -> None:
    assert run("shard", tmp_path, 2000, 1 << 30) == "written"
    assert [path.name for path in tmp_path.iterdir()] == ["s.hdf5"]
