"""Packets that were made elsewhere, offered to a discipline behind a link."""

from __future__ import annotations

import numpy as np
import pytest

from l4s_gym.errors import L4SError
from l4s_gym.schema import ECT_1
from l4s_gym.sim.disciplines import AQMS
from l4s_gym.sim.drive import ARRIVAL, offer, open_loop


def arrivals(count: int, gap_ns: int, length: int = 1000, ecn: int = 2) -> np.ndarray:
    packets = np.zeros(count, ARRIVAL)
    packets["time_ns"] = np.arange(count) * gap_ns
    packets["length"], packets["ecn"], packets["action"] = length, ecn, -1
    return packets


def test_a_packet_waits_for_those_before_it() -> None:
    rows = offer(open_loop(8.0), arrivals(3, 0))  # 1 ms each on the link
    assert rows["sequence"].tolist() == [0, 1, 2]
    assert rows["length_in_packets"].tolist() == [0, 0, 1]  # the first is on the link at once
    later = offer(open_loop(8.0), np.concatenate([arrivals(3, 0), arrivals(1, 0)]))
    assert later["length_in_bytes"].tolist() == [0, 0, 1000, 2000]


@pytest.mark.parametrize("aqm", AQMS)
def test_a_link_that_is_not_full_does_nothing_to_packets(aqm: str) -> None:
    rows = offer(open_loop(8.0), arrivals(2000, 1_100_000), aqm=aqm)
    assert not rows["applied_action"].any()


def test_overload_of_l_is_marked_and_a_foreign_action_is_taken() -> None:
    packets = arrivals(2000, 800_000, ecn=ECT_1)
    packets["action"][[10, 11]] = 1, 2
    rows = offer(open_loop(8.0), packets, aqm="dualpi2_rfc9332")
    assert rows["applied_action"][[10, 11]].tolist() == [1, 2]
    assert rows["decided_by"].sum() == 2
    assert (rows["applied_action"][100:] == 2).mean() > 0.2


def test_runs_are_repeatable() -> None:
    packets = arrivals(3000, 700_000)
    once, again = (offer(open_loop(8.0), packets, seed=3) for _ in range(2))
    assert once.tobytes() == again.tobytes()


@pytest.mark.parametrize(
    ("field", "values", "what"),
    [("time_ns", [5, 4], "order of time"), ("time_ns", [-1, 4], "from 0"), ("flow", [0, 256], "flows")],
)
def test_wrong_arrivals_are_refused(field: str, values: list[int], what: str) -> None:
    packets = arrivals(2, 1)
    packets[field] = values
    with pytest.raises(L4SError, match=what):
        offer(open_loop(8.0), packets)
