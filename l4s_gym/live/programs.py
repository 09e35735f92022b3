"""Find the programs of the kernel side: in a given folder, built in a checkout, or installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from l4s_gym import shipped
from l4s_gym.errors import L4SError

PROGRAMS: Final = ("l4s-router", "l4s-bridged", "l4s-traffic")
FOLDER: Final = "L4S_GYM_KERNEL"
"""Environment variable that names the folder of the programs."""


def source() -> Path | None:
    """The folder `kernel` of a checkout, or None where the package is installed without one."""
    folder = shipped.folder("kernel")
    return folder if (folder / "Makefile").is_file() else None


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if not os.access(folder / name, os.X_OK)]


def _build(kernel: Path) -> Path:
    done = subprocess.run(["make", "-C", str(kernel)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise L4SError(f"make -C {kernel} failed: {last}; it needs make and a C compiler (Debian: build-essential)")
    return kernel / "build"


def find(folder: Path | None = None, names: Sequence[str] = PROGRAMS) -> dict[str, Path]:
    """Find programs by their names.

    Args:
        folder: Where they are; None: `$L4S_GYM_KERNEL`, else the checkout (built where it is missing), else `PATH`.
        names: Which.

    Raises:
        L4SError: One is missing, and how to get it.
    """
    if folder is None and os.environ.get(FOLDER):
        folder = Path(os.environ[FOLDER])
    if folder is not None:
        if missing := _missing(folder, names):
            raise L4SError(
                f"{folder}: there is no {missing[0]}: `make -C kernel BUILD={folder}` in a checkout makes it"
            )
        return {name: (folder / name).resolve() for name in names}
    kernel = source()
    if kernel is not None:
        built = kernel / "build"
        if _missing(built, names):
            built = _build(kernel)
        if missing := _missing(built, names):
            raise L4SError(f"{kernel}: `make` makes no {missing[0]}: bring the checkout up to date")
        return {name: built / name for name in names}
    found = {name: shutil.which(name) for name in names}
    for name, path in found.items():
        if path is None:
            raise L4SError(
                f"{name}: not found; run `make -C kernel && sudo make -C kernel install` in a checkout of l4s-gym, "
                f"or set {FOLDER} to the folder of the programs"
            )
    return {name: Path(path) for name, path in found.items() if path is not None}
