"""The real figures of the testbed's collections, and how simulated runs are held against them."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.schema import RECORD
from l4s_gym.sim.scenario import load

PATH = Path(__file__).parents[2] / "benchmarks" / "studies" / "sim_to_real" / "run.py"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'l4s-gym[report]'")
    pytest.importorskip("scipy", reason="needs SciPy: pip install 'l4s-gym[baselines]'")
    spec = importlib.util.spec_from_file_location("sim_to_real", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def real_of(script: Any, rows: int) -> dict[str, float]:
    """The real figures of the collection whose log has so many rows."""
    found = [c for c in script.REAL.collection if f"log of {rows:,} rows" in c.title]
    assert len(found) == 1
    return {t.figure: t.real for t in found[0].target} | {"rate": load(found[0].scenario).link.rate_mbps}


def test_each_log_is_with_the_runs_that_it_was_made_in(script: Any) -> None:
    paper, five, two = (real_of(script, rows) for rows in (543_423, 536_448, 745_016))
    assert (paper["rate"], paper["goodput of NewReno, Mbit/s"]) == (8.0, 0.487)
    assert (five["rate"], five["drop, %"], five["goodput of DCTCP, Mbit/s"]) == (8.0, 0.63, 1.90)
    assert (two["rate"], two["drop, %"], two["goodput of DCTCP, Mbit/s"]) == (10.0, 0.34, 2.467)


def test_a_printed_row_costs_what_it_did_in_the_collection(script: Any) -> None:
    links = [load(c.scenario).link for c in script.REAL.collection]
    assert [link.row_ms for link in links] == [0.9, 0.4, 0.4]
    assert {(link.pause_ms, link.pause_gap_ms) for link in links} == {(70.0, 370.0)}


def test_every_figure_can_be_measured(script: Any) -> None:
    for collection in script.REAL.collection:
        run = script.simulate(load(collection.scenario).replace(horizon_s=5.0), 0)
        for row in script.compare(collection, [run]):
            assert math.isfinite(row.simulated), row.figure
            assert row.low == row.simulated == row.high
            assert row.source
        for target in collection.target:
            assert not target.reason or target.reason in script.REAL.reason
            assert target.off is None or target.percent is None


def test_a_figure_outside_of_what_is_allowed_is_a_miss_with_its_cause(script: Any) -> None:
    log = np.zeros(100, RECORD)
    log["action"][:2] = 1
    run = script.Run(log, 60.0, {"cubic": 1.3}, {"cubic": 0}, {"cubic": np.array([100.0])})

    def row(**changes: Any) -> Any:
        target = script.Target(figure="x", real=1.0, reason="lost", **changes)
        return script.compare(script.Collection(scenario="", title="", target=(target,)), [run])[0]

    near = row(of="action", what="share", value=1, off=1.0)
    assert (near.simulated, near.verdict, near.reason) == (2.0, "pass", "")
    assert row(of="action", what="share", value=1, off=0.5).verdict == "miss"
    far = row(of="goodput cubic", percent=25)
    assert (far.verdict, far.allowed, far.reason) == ("miss", "25 %", script.REAL.reason["lost"])
    assert row(of="goodput cubic", percent=40).verdict == "pass"
    assert row(of="rows").verdict == "shown" and row(of="rows").simulated == 1000.0
    assert row(of="rtt cubic", what="p50").simulated == 100.0
