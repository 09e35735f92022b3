"""The coupled dual queue with Curvy RED (RFC 9332 appendix B)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.evaluation.native import simulate
from l4s_gym.schema import DROP, ECT_0, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim import curvy_red
from l4s_gym.sim.discipline import Path
from l4s_gym.sim.scenario import Scenario, from_dict
from l4s_gym.sim.setup import aqm_fields

Build = Callable[..., Scenario]
MS = 1_000_000
many = settings(max_examples=300, deadline=None, derandomize=True)
UNIT = st.floats(0, 1, exclude_max=True)


@given(st.floats(0, 1e9), st.integers(0, 10**9))
@many
def test_average(average: float, sojourn: int) -> None:
    assert curvy_red.update_average(average, sojourn) == pytest.approx(sojourn / 32 + average * 31 / 32)
    assert curvy_red.update_average(average, sojourn, 1.0) == pytest.approx(sojourn)


@given(st.floats(0, 1e9))
@many
def test_ramps_are_coupled(average: float) -> None:
    """p_C = (p_L / 2)^2 with the defaults: C's root is half of L's probability."""
    fields = curvy_red.setup(curvy_red.Options(), Path(1e7, 1500, 1e5))
    root = curvy_red.on_ramp(average, fields["ramp_c_ns"], fields["least_ns"])
    assert root == pytest.approx(max(average - 5e5, 0.0) / 5e8)
    assert curvy_red.on_ramp(average, fields["ramp_l_ns"], fields["least_ns"]) == pytest.approx(2 * root)


def test_options_are_powers_of_two() -> None:
    table = {"smoothing": 3, "ramp": -2, "coupling": 2, "least_ms": 0.0, "step_ms": 0.5, "shift_ms": 10.0}
    options = {"curvy_red": table}
    chosen = from_dict({"name": "x", "sources": [{"kind": "cubic"}], "options": options})
    fields = aqm_fields(chosen, "curvy_red")
    assert (fields["weight"], fields["ramp_c_ns"], fields["ramp_l_ns"]) == (0.125, 2.5e8, 6.25e7)
    assert (fields["least_ns"], fields["step_ns"], fields["shift_ns"]) == (0.0, 500_000, 10_000_000)


@given(st.floats(0, 1.5), UNIT, UNIT)
@many
def test_c_is_squared_and_l_is_not(height: float, first: float, second: float) -> None:
    hit = height > first and height > second
    assert curvy_red.decide_classic(height, ECT_0, first, second) == (MARK if hit else ENQUEUE)
    assert curvy_red.decide_classic(height, NOT_ECT, first, second) == (DROP if hit else ENQUEUE)
    assert curvy_red.decide_l4s(height, MS, first) == (MARK if height > first else ENQUEUE)
    assert curvy_red.decide_l4s(height, MS + 1, first) == MARK


@pytest.mark.parametrize("l4s", ["dctcp", "prague"])
def test_flows_of_both_queues_share_the_link(l4s: str, scenario: Build) -> None:
    flows: list[dict[str, Any]] = [{"kind": "cubic", "rtt_ms": 20.0}, {"kind": l4s, "rtt_ms": 20.0}]
    link = {"rate_mbps": 40.0}
    summary = simulate(scenario(*flows, link=link, horizon_s=60.0, warmup_s=20.0), "curvy_red", 1).summary
    classic, scalable = summary["goodput_mbps"]
    assert 0.5 < classic / scalable < 2.0
    assert summary["delay_ms"]["L"]["p99"] < 4.0 < summary["delay_ms"]["C"]["mean"]
    assert summary["classes"]["L"]["dropped"] == 0 < summary["classes"]["L"]["marked"]
    assert summary["utilisation"] > 0.95


def test_probability_is_shown_when_an_agent_decides(scenario: Build) -> None:
    """The average goes on while the decisions come from outside."""
    from l4s_gym.sim import layout
    from l4s_gym.sim.batch import Batch

    flood = {"kind": "cbr", "rate_mbps": 30.0, "rtt_ms": 10.0}
    batch = Batch(scenario(flood, link={"rate_mbps": 20.0}), aqm="curvy_red", decider=layout.PROBABILITY)
    batch.reset(0, np.random.default_rng(0))
    batch.advance()
    assert batch.base_probability(0) == pytest.approx((250 - 0.5) / 500, rel=0.1)
