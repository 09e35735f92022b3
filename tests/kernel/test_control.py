"""Whatever goes wrong beside a live queue, traffic goes on: every fault of the soak, once, under sanitizers.

The router and the daemon are those with AddressSanitizer and UBSan; what they found stands at their end.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from l4s_gym.live.testbed import LiveTestbed

from .conftest import Build

SOAK = Path(__file__).parents[2] / "benchmarks" / "studies" / "soak" / "run.py"
FAST = ("agent killed", "agent stalled", "bad decisions", "daemon killed")


def load_soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


soak = load_soak()


@pytest.fixture(scope="module")
def bed(namespaces: None, build: Build) -> Iterator[LiveTestbed]:
    """One testbed under traffic for all faults; at its end no sanitizer has found anything."""
    with soak.open_testbed(build(san=True), 600.0) as made:
        made.start_flows()
        made.wait(1.5)
        yield made
        texts = {}
        statuses = {}
        for name in ("daemon", "router"):
            statuses[name] = made.stop(name)
            texts[name] = made.path(name, "err").read_text(errors="replace")
    for name, text in texts.items():
        assert "Sanitizer" not in text and "runtime error" not in text, text
        assert statuses[name] == 0, (name, text)


def check_agent_killed(facts: dict[str, Any]) -> None:
    assert facts["agent"] > 0


def check_agent_stalled(facts: dict[str, Any]) -> None:
    assert facts["agent"] > 0 and facts["fallback"] > 0


def check_garbage(facts: dict[str, Any]) -> None:
    assert facts["closed"] == 3  # noise, an unknown kind, zeros; half a command and silence only wait


def check_bad_decisions(facts: dict[str, Any]) -> None:
    for why in ("expired", "unasked", "malformed", "out_of_order"):
        assert facts[why] > 0, (why, facts)


def check_daemon_killed(facts: dict[str, Any]) -> None:
    assert facts["agent"] > 0


def check_slow_reader(facts: dict[str, Any]) -> None:
    assert facts["rows"] > 0 and facts["lost"] == 0


def check_socket_removed(facts: dict[str, Any]) -> None:
    assert facts["packets"] > 0


def check_two_controllers(facts: dict[str, Any]) -> None:
    assert facts["refused"] == 3 and facts["interval"] == 1


def check_all_enqueued(facts: dict[str, Any]) -> None:
    assert facts["trips"] > 0 and facts["shielded"] > 0


check_all_dropped = check_all_enqueued


@pytest.mark.parametrize("fault", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in soak.FAULTS])
def test_traffic_goes_on(bed: LiveTestbed, fault: str) -> None:
    outcome = soak.suffer(bed, fault)
    # Stopped traffic would carry nothing; what a fault costs is the soak's to judge, on a machine of its own.
    assert outcome.share > 0.3, outcome
    assert outcome.during > 0.0, outcome
    assert sum(outcome.decided.values()) > 0
    assert 0.0 < outcome.native <= 1.0
    globals()[f"check_{fault.replace(' ', '_')}"](outcome.facts)
    bed.check()


def test_a_leak_is_seen() -> None:
    flat = [{"router": {"fds": 9, "rss_kib": 5000}} for _ in range(12)]
    assert soak.growth(flat) == {"router": {"fds": 0, "rss_kib": 0}}
    rising = [{"router": {"fds": 9 + n, "rss_kib": 5000 + 100 * n}} for n in range(12)]
    assert soak.growth(rising)["router"]["fds"] > 0 and soak.growth(rising)["router"]["rss_kib"] > 0


@pytest.mark.slow
def test_a_short_soak_writes_its_verdict(namespaces: None, build: Build, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    soak.main(seconds=6.0, kernel=build(), out=out)
    (run,) = json.loads(out.read_text())
    assert all(run["verdict"].values()) and run["faults"] >= 2
    assert set(run["growth"]) == {"router", "daemon", "client"}
