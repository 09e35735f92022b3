"""Places of the top-level folders `agents`, `benchmarks` and `datasets`; a wheel has copies of what commands need."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

_HERE: Final = Path(str(resources.files(__name__)))


def checkout() -> Path | None:
    """Return the repository of this package; None: it was installed from a wheel, which has its own copies."""
    return None if (_HERE / "datasets").is_dir() else _HERE.parents[1]


def folder(name: str) -> Path:
    """Return a top-level folder of the repository, or the wheel's copy of the part that commands need."""
    return (checkout() or _HERE) / name
