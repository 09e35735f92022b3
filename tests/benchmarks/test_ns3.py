"""The comparison with ns-3, without ns-3: both sides know each case and each of its congestion controls."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

PEERS = Path(__file__).parents[2] / "benchmarks" / "studies" / "speed" / "peers"
SCRIPT: dict[str, Any] = runpy.run_path(str(PEERS / "ns3.py"), run_name="script")
KNOWN_TO_NS3 = set(
    re.findall(r'^    \{"(\w+)", "(?:ns3::)?\w+"\},$', (PEERS / "dumbbell.cc").read_text(), re.MULTILINE)
)


@pytest.mark.parametrize("case", SCRIPT["CASES"], ids=lambda case: case.name)
def test_both_sides_know_a_case(case: Any) -> None:
    ours = SCRIPT["our_scenario"](case)
    assert [source.count for source in ours.sources] == list(case.flows.values())
    assert set(case.flows) <= KNOWN_TO_NS3


def test_dctcp_is_compared_with_its_rfc() -> None:
    """ns-3's own receiver loses marks, and its sender cuts by alpha / 2 on a loss: one case shows it as it is."""
    names = [case.name for case in SCRIPT["CASES"] if "dctcp" in case.flows]
    assert names == ["shippeddctcp-codel"]
