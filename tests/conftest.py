"""For all tests: no downloads, no windows, one thread a worker; and where the public pools lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before anything imports NumPy, torch or matplotlib.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def pools_dir() -> Path:
    """The folder of the public experience pools, beside the repository; the test is skipped without it."""
    folder = ROOT.parent / "shared" / "data" / "freebsd_experience_pools"
    if not folder.is_dir():
        pytest.skip(f"the public pools are not at {folder}: their licence is not stated, so they are not committed")
    return folder


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], list[Any]]:
    """Makes the three episodes of a dataset as `l4s-gym datasets build` does, from behaviours (TOML) and seconds."""
    pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'l4s-gym[report]'")
    from l4s_gym.data import build, minari_io, recipes

    def make(behaviours: str, seconds: float) -> list[Any]:
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
        (tmp_path / "recipes" / "tiny").mkdir(parents=True)
        size = f"{{episodes = 3, seconds = {seconds}}}"
        (tmp_path / "recipes" / "tiny" / recipes.FILE).write_text(f"""
title = "Tiny"
description = "For tests."
scenarios = ["l4s-llm-testbed"]
behaviours = [{behaviours}]
small = {size}
full = {size}
""")
        made = build.build(recipes.load("tiny", tmp_path / "recipes"), "small", workers=1)
        return list(minari_io.read_episodes(made))

    return make
