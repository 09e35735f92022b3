"""Golden runs: every counter of each discipline on six scenarios, to the last packet.

They say that a change of the code left the simulation as it was. A change that is meant to alter it comes with
new numbers: `python tests/sim/test_golden.py --write`, and the difference in `golden.json` is looked at. The same
command gives the simulator another fingerprint, by which whatever older ones made is told.

`--add NAME ...` adds the runs of new disciplines and leaves the rest, and the fingerprint, as they are: the others
still make what they made. `golden.json` says which the fingerprint covers; the next `--write` takes in all.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.sim import fingerprint, layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.disciplines import AQMS
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
COVERED = "fingerprint"
"""Key of the disciplines that the fingerprint covers, beside the scenarios."""


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


@pytest.mark.parametrize("aqm", AQMS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_golden(scenario: str, aqm: str) -> None:
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())
    assert golden_run(scenario, aqm) == golden[scenario][aqm]


def test_golden_runs_differ() -> None:
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())
    assert list(golden) == [*SCENARIOS, COVERED]
    for scenario in SCENARIOS:
        assert list(golden[scenario]) == list(AQMS)
        assert len({json.dumps(counters) for counters in golden[scenario].values()}) == len(AQMS)


def fingerprint_of(golden: dict[str, Any]) -> str:
    """What `l4s_gym.sim.fingerprint.FINGERPRINT` is to be."""
    covered = {scenario: {aqm: golden[scenario][aqm] for aqm in golden[COVERED]} for scenario in SCENARIOS}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:12]


def write(golden: dict[str, Any], runs: Path, module: Path) -> None:
    """Write the golden runs, one run a line, and their fingerprint into its module."""
    text = json.dumps(golden, indent=1)
    runs.write_text(re.sub(r"\n {3,}|\n  (?=\})", " ", text) + "\n")
    source = re.sub(r'(?<=^FINGERPRINT: Final = ")\w+', fingerprint_of(golden), module.read_text(), flags=re.M)
    module.write_text(source)


def test_the_fingerprint_is_that_of_the_golden_runs() -> None:
    assert fingerprint_of(json.loads(GOLDEN.read_text())) == fingerprint.FINGERPRINT


def test_the_command_that_writes_golden_runs_writes_the_fingerprint(tmp_path: Path) -> None:
    golden, module = json.loads(GOLDEN.read_text()), tmp_path / "fingerprint.py"
    before = Path(fingerprint.__file__).read_text()
    module.write_text(before)
    write(golden, tmp_path / "golden.json", module)
    assert (tmp_path / "golden.json").read_text() == GOLDEN.read_text() and module.read_text() == before
    golden["web"]["fifo"]["sent"] += 1
    write(golden, tmp_path / "golden.json", module)
    assert module.read_text() == before.replace(fingerprint.FINGERPRINT, fingerprint_of(golden)) != before


def test_what_is_added_leaves_the_fingerprint(tmp_path: Path) -> None:
    golden, module = json.loads(GOLDEN.read_text()), tmp_path / "fingerprint.py"
    before = Path(fingerprint.__file__).read_text()
    module.write_text(before)
    for scenario in SCENARIOS:
        golden[scenario]["new"] = golden[scenario]["fifo"]
    write(golden, tmp_path / "golden.json", module)
    assert module.read_text() == before
    golden[COVERED].append("new")
    write(golden, tmp_path / "golden.json", module)
    assert module.read_text() != before


def main(arguments: list[str]) -> None:
    """Write all runs anew, or add those of new disciplines."""
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())
    if arguments == ["--write"]:
        golden = {scenario: {} for scenario in SCENARIOS} | {COVERED: list(AQMS)}
        names = list(AQMS)
    elif arguments[:1] == ["--add"] and set(arguments[1:]) & set(golden[COVERED]) == set():
        names = arguments[1:]
    else:
        sys.exit(f"usage: python {sys.argv[0]} --write | --add NAME ... (of what the fingerprint does not cover)")
    for scenario in SCENARIOS:
        golden[scenario] |= {aqm: golden_run(scenario, aqm) for aqm in names}
    write(golden, GOLDEN, Path(fingerprint.__file__))


if __name__ == "__main__":
    main(sys.argv[1:])
