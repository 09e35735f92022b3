"""The law of losses that every sender obeys, as `benchmarks/fidelity.py` measures it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "fidelity.py"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("fidelity", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_goodput_falls_with_loss(quick: bool, script: Any) -> None:
    rows = list(script.losses(quick))
    assert len(rows) == 2 * len(script.SENDERS) * (1 if quick else 3)
    assert [(row.case, row.quantity, row.measured) for row in rows if row.verdict != "pass"] == []
