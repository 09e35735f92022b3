"""The script that measures what integer models cost in the core, in short."""

from __future__ import annotations

import json
import platform
import runpy
import shutil
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs l4s-gym[data]")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "studies" / "kernel_models" / "run.py"


@pytest.mark.slow
def test_models_are_measured(tmp_path: Path) -> None:
    if shutil.which("cc") is None or shutil.which("make") is None or platform.machine() != "x86_64":
        pytest.skip("needs a C compiler and make, on x86-64")
    script = runpy.run_path(str(SCRIPT), run_name="script")
    script["main"](script["Options"](seconds=3.0, leaves=8, repeats=2, out=tmp_path / "out.json"))
    rows = json.loads((tmp_path / "out.json").read_text())[0]["results"]
    assert [row["model"] for row in rows][:3] == ["tree", "linear", "mlp 64-64"]
    assert all(row["vector_ns"] > 0 and row["general_ns"] > 0 and 0 < row["bytes"] <= 100_000 for row in rows)
