"""For all tests: no downloads, no windows, one thread a worker; and where the public pools lie."""

from __future__ import annotations

import os
from pathlib import Path

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
