"""Where a result comes from: every result file bears it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from l4s_gym import __version__
from l4s_gym.data.files import atomic_write
from l4s_gym.sim import fingerprint

_FROM_ROOT: Final = re.compile(r"(?<![^,:=])/(?!/)[^,:=]*")


def origin() -> dict[str, Any]:
    """Where a result comes from: versions, fingerprint of the simulator, host, command, time."""
    versions = {"l4s-gym": __version__, "python": platform.python_version()}
    for name in ("numpy", "numba", "gymnasium", "torch", "d3rlpy", "minari", "scikit-learn", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    program = str(Path(sys.argv[0]).resolve())
    return {
        "versions": versions,
        "simulator": fingerprint.FINGERPRINT,
        "host": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "system": platform.system(),
        },
        "command": shlex.join(map(_from_here, [program, *sys.argv[1:]])),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _from_here(argument: str) -> str:
    """An argument of a command without the folders of this machine.

    A path from the root, also after a comma, colon or equals sign, becomes its part below the current folder,
    else its last name.
    """
    here = Path.cwd()

    def shorter(found: re.Match[str]) -> str:
        path = Path(found[0])
        return str(path.relative_to(here)) if path.is_relative_to(here) else path.name

    return _FROM_ROOT.sub(shorter, argument)


def append_run(path: Path, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Append a run to a file of results, which are never edited; all of its runs, as they will be read."""
    runs = [*(json.loads(path.read_text()) if path.exists() else []), run]
    content = json.dumps(runs, indent=1, default=_without_folders) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content.encode())
    found: list[dict[str, Any]] = json.loads(content)
    return found


def _without_folders(value: object) -> str:
    """The name of a path: where a machine keeps its files says nothing to a reader."""
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"{value!r}: cannot be written as JSON")


def write_run(out: Path, name: str, run: Mapping[str, Any], page: str) -> None:
    """Append a run to NAME.json in the folder `out`, replace the page NAME.md there, and print where the run is."""
    path = out / f"{name}.json"
    runs = append_run(path, run)
    with atomic_write(out / f"{name}.md") as file:
        file.write(page.encode())
    print(f"run {len(runs)} in {path}")


def cpu_model() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
