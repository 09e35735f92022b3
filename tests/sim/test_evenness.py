"""The evenness of the flows, and the reward `fair` that is made of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gymnasium.utils import seeding

from l4s_gym import rewards
from l4s_gym.schema import ECT_1
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.evenness import evenness
from l4s_gym.sim.scenario import Scenario, from_dict, load

SECOND = 10**9


def total(batch: Batch, reward: str) -> Any:
    """Returns of a reward so far, (n,)."""
    return batch.env["totals"] @ np.array(rewards.engine_form(reward)[1])


@pytest.mark.parametrize(
    ("bytes_", "seconds", "expected"),
    [
        ((600, 600), (1, 1), 1.0),
        ((1500, 500), (1, 1), math.sqrt(0.75)),  # 1.5 and 0.5 of the mean
        ((300, 500), (3, 1), 5**0.25 / 2),  # three flows of 100 and one of 500: the mean is 200
        ((0, 500), (1, 1), 0.0),
        ((500, 0), (1, 1), 0.0),
        ((0, 0), (1, 1), 0.0),
        ((0, 500), (0, 1), 1.0),
        ((500, 0), (1, 0), 1.0),
        ((0, 0), (0, 0), 1.0),
    ],
)
def test_evenness_by_hand(bytes_: tuple[int, int], seconds: tuple[int, int], expected: float) -> None:
    assert evenness(*bytes_, *(SECOND * each for each in seconds)) == pytest.approx(expected, rel=1e-12)


def test_a_scripted_case(scenario: Any) -> None:
    """One segment a round trip of 10 ms (two C flows) and of 40 ms (one L flow): goodputs of 4, 4 and 1."""
    fast = {"rtt_ms": 10.0, "receive_window": 1, "ack_every": 1}
    sources = {"kind": "cubic", "count": 2, **fast}, {"kind": "dctcp", **fast, "rtt_ms": 40.0}
    batch = Batch(scenario(*sources, horizon_s=3.0, link={"rate_mbps": 1000.0}))
    batch.reset(0, np.random.default_rng(0))
    for end_s, expected in ((0.06, 1.0), (2.5, 4 ** (2 / 3) / 3)):
        batch.stop_at(0, round(end_s * SECOND))
        assert batch.advance_one() == layout.STOPPED
        assert batch.env["evenness"][0] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", ["cubic", "prague"])
def test_fair_is_balance_where_one_class_is_present(scenario: Any, native: Any, kind: str) -> None:
    web = {"kind": "web", "cc": "cubic" if kind == "prague" else "prague"}
    batch = native(scenario({"kind": kind, "count": 2}, web, {"kind": "cbr", "rate_mbps": 1.0}, horizon_s=4.0))
    assert batch.env["totals"][0, 0] == pytest.approx(batch.env["totals"][0, 1], rel=1e-12)
    assert total(batch, "fair")[0] == pytest.approx(total(batch, "balance")[0], rel=1e-12)


def slow_fair(chosen: Scenario, aqm: str | None) -> tuple[float, float]:
    """The component `evenness` by looking at the flows each 62.5 ms, and as the engine has it."""
    batch = Batch(chosen, aqm=aqm)
    batch.reset(0, seeding.np_random(7)[0])
    flow = batch.flow[0]
    bulk = (flow["app"] == layout.BULK) & (flow["mss"] > 0)
    classes = [bulk & (flow["ecn"] != ECT_1), bulk & (flow["ecn"] == ECT_1)]
    starts = flow["app_at"].copy()
    goodputs, even, used, found = [np.zeros(len(flow))], 1.0, 0.0, 0.0
    while True:
        at = len(goodputs) * layout.BUCKET_NS
        batch.stop_at(0, at - 1)
        status = batch.advance_one()
        found += even * (batch.env["totals"][0, 0] - used)
        used = batch.env["totals"][0, 0]
        if status != layout.STOPPED:
            return found, float(batch.env["totals"][0, 1])
        goodputs.append(flow["goodput_bytes"].astype(np.float64))
        before = goodputs[max(len(goodputs) - 1 - layout.BUCKETS, 0)]
        ends = np.where(flow["done"], flow["began_ns"] + np.rint(flow["completion_s"] * 1e9), at)
        ran = np.clip(np.minimum(ends, at) - np.maximum(starts, at - SECOND), 0.0, None)
        got = np.array([(goodputs[-1] - before)[each].sum() for each in classes])
        time = np.array([ran[each].sum() for each in classes])
        even = 1.0
        if (time > 0).all():
            x, w = got / time, time / time.sum()
            even = float(np.exp(w @ np.log(x)) / (w @ x)) if (got > 0).all() else 0.0


FINITE = {
    **{"name": "finite", "horizon_s": 6.0, "warmup_s": 0.0, "link": {"rate_mbps": 12.0}},
    "sources": [
        {"kind": "cubic", "count": 2, "stagger_s": 1.0, "transfer_bytes": 800_000},
        {"kind": "prague", "count": 3, "start_s": 0.7, "stagger_s": 2.0, "transfer_bytes": 600_000},
        {"kind": "newreno", "ecn": "ect1", "start_s": 3.0},
    ],
}


@pytest.mark.parametrize(
    ("name", "aqm"),
    [
        *[("finite", None), ("l4s-llm-testbed", None), ("web", "dualpi2_rfc9332"), ("lte", "fq_codel")],
        *[("mixed", "pie"), ("overload", "dualpi2_linux"), ("l4s-llm-testbed-vm", None)],
    ],
)
def test_the_engine_agrees_with_a_slow_reference(name: str, aqm: str | None) -> None:
    chosen = from_dict(FINITE) if name == "finite" else load(name).replace(horizon_s=4.0)
    expected, found = slow_fair(chosen, aqm)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found > 0.0


def test_starving_a_class_pays_by_balance_and_costs_by_fair() -> None:
    """A coupling of 12 marks L as if it were aggressive, and starves it."""
    plain = load("grid-12m-20ms").replace(horizon_s=10.0)
    starving = plain.replace(**{"options.dualpi2_rfc9332.coupling": 12.0})
    batch = Batch([plain, starving], 4, aqm="dualpi2_rfc9332")
    for i in range(4):
        batch.reset(i, np.random.default_rng(i // 2), which=i % 2)
    batch.advance()
    for seed in (0, 2):
        native, starved = slice(seed, seed + 1), slice(seed + 1, seed + 2)
        assert total(batch, "balance")[starved] > total(batch, "balance")[native] + 0.1
        assert total(batch, "fair")[starved] < total(batch, "fair")[native] - 0.5


def test_random_policies_keep_it_a_share() -> None:
    batch = Batch(load("mixed").replace(horizon_s=3.0), 8, decider=layout.PROBABILITY)
    rng = np.random.default_rng(1)
    for i in range(8):
        batch.reset(i, rng)
    before = batch.env["totals"].copy()
    for step in range(1, 60):
        for i in range(8):
            batch.stop_at(i, step * 50_000_000)
        batch.env["p_l"], batch.env["p_c"] = rng.random((2, 8)) ** 3
        batch.advance()
        grown, before = batch.env["totals"] - before, batch.env["totals"].copy()
        assert ((batch.env["evenness"] >= 0.0) & (batch.env["evenness"] <= 1.0)).all()
        assert (grown >= 0.0).all() and (grown[:, 1] <= grown[:, 0] + 1e-12).all()
    assert before[:, 1].sum() < 0.99 * before[:, 0].sum()
