"""Variables of the environment that hold for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables in the block; afterwards they are as before."""
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def datasets_in(folder: Path) -> Iterator[None]:
    """Let Minari's datasets lie in a folder, which is made, in the block: Minari reads its variable at each call."""
    folder.mkdir(parents=True, exist_ok=True)
    with environment({"MINARI_DATASETS_PATH": str(folder.resolve())}):
        yield
