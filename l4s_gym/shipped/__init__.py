"""Where the top-level folders `agents`, `benchmarks` and `datasets` are; a wheel has copies of what commands need."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

_HERE: Final = Path(str(resources.files(__name__)))


def checkout() -> Path | None:
    """The repository that this package belongs to; None: it was installed from a wheel, and the copies lie here."""
    return None if (_HERE / "datasets").is_dir() else _HERE.parents[1]


def folder(name: str) -> Path:
    """A top-level folder of the repository, or the copy in the wheel of what commands need of it."""
    return (checkout() or _HERE) / name
