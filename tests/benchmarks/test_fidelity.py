"""The law of losses that every sender obeys, as `benchmarks/studies/fidelity/run.py` measures it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parents[2] / "benchmarks" / "studies" / "fidelity" / "run.py"), run_name="script"
)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_goodput_falls_with_loss(quick: bool) -> None:
    rows = list(SCRIPT["losses"](quick))
    assert len(rows) == 2 * len(SCRIPT["SENDERS"]) * (1 if quick else 3)
    assert [(row.case, row.quantity, row.measured) for row in rows if row.verdict != "pass"] == []
