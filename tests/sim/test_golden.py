"""Golden runs: every counter of each discipline on six scenarios, to the last packet.

They say that a change of the code left the simulation as it was. A change that is meant to alter it comes with
new numbers: `python tests/sim/test_golden.py --write`, and the difference in `golden.json` is looked at.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import load

GOLDEN = Path(__file__).with_name("golden.json")
SEED = 2026
SCENARIOS = {
    "l4s-llm-testbed": 10.0,
    "l4s-llm-testbed-vm": 60.0,
    "web": 10.0,
    "lte": 60.0,
    "overload": 30.0,
    "steps": 60.0,
}
"""Scenario and its length, s: long enough for what it is about."""


def golden_run(scenario: str, aqm: str) -> dict[str, int]:
    """The integer counters of one run."""
    chosen = load(scenario).replace(horizon_s=SCENARIOS[scenario])
    batch = Batch(chosen, aqm=aqm)
    batch.reset(0, np.random.default_rng(SEED))
    assert batch.advance_one() == layout.TRUNCATED
    env, queue, flow = batch.env[0], batch.queue[0], batch.flow[0]
    counters = {name: int(env[name]) for name in ("sent", "delivered", "dropped", "events", "served_bytes")}
    for cls, name in enumerate("cl"):
        counters[f"marked_{name}"] = int(queue["marked"][cls])
        counters[f"dropped_{name}"] = int(queue["dropped"][cls])
    counters["goodput_bytes"] = int(flow["goodput_bytes"].sum())
    counters["resent"] = int(flow["resent"].sum())
    return counters


@pytest.mark.parametrize("aqm", layout.AQMS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_golden(scenario: str, aqm: str) -> None:
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())
    assert golden_run(scenario, aqm) == golden[scenario][aqm]


def test_golden_runs_differ() -> None:
    golden: dict[str, dict[str, dict[str, int]]] = json.loads(GOLDEN.read_text())
    assert list(golden) == list(SCENARIOS)
    for runs in golden.values():
        assert len({json.dumps(counters) for counters in runs.values()}) == len(layout.AQMS)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: python {sys.argv[0]} --write")
    written = {scenario: {aqm: golden_run(scenario, aqm) for aqm in layout.AQMS} for scenario in SCENARIOS}
    text = json.dumps(written, indent=1)
    # One run, one line.
    GOLDEN.write_text(re.sub(r"\n {3,}|\n  (?=\})", " ", text) + "\n")
