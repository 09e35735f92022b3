"""DualPI2 of Linux behind a link: which packets its rules reach, and in which order they leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from l4s_gym.errors import L4SError
from l4s_gym.schema import CE, DROP, ECT_0, ECT_1, ENQUEUE, MARK, NOT_ECT, RECORD
from l4s_gym.sim import drive
from l4s_gym.sim import dualpi2_linux as linux
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.drive import ARRIVAL, open_loop
from l4s_gym.sim.dualpi2_linux import Options as LinuxOptions
from l4s_gym.sim.options import Options
from l4s_gym.sim.scenario import from_dict

MS = 1_000_000
FIRST = (1500, NOT_ECT)
"""A packet that finds the link idle: the others wait behind it."""


def queued(*packets: tuple[int, int], prob: int = 0, rate_mbps: float = 12.0, **options: Any) -> npt.NDArray[np.void]:
    """Rows of packets (IP length, codepoint) that wait together behind one that is being sent.

    Args:
        *packets: In order of arrival, all while the first one takes 1 ms of the link at 12 Mbit/s.
        prob: p' from the start on; it stays.
        rate_mbps: Rate of the link.
        **options: Options of the discipline.
    """
    linux = LinuxOptions(alpha=0, beta=0, **options)
    scenario = open_loop(rate_mbps, options=Options(dualpi2_linux=linux), limit_packets=1000)
    arrivals = np.zeros(len(packets) + 1, ARRIVAL)
    arrivals["length"], arrivals["ecn"] = np.transpose([FIRST, *packets])
    arrivals["time_ns"], arrivals["action"] = np.arange(len(arrivals)), -1
    batch = Batch(scenario, aqm="dualpi2_linux", log_rows=len(arrivals))
    batch.reset(0, np.random.default_rng(0))
    batch.own["prob"] = prob
    assert drive._offer(batch.address, arrivals.ctypes.data, len(arrivals)) == len(arrivals)
    return batch.drain_log(0, everything=True)[1:].view(RECORD)


@pytest.mark.parametrize(
    ("lengths", "hit"),
    [
        ((1500, 1500, 52), [False] * 3),
        ((1400,) * 4, [True, False, False, False]),
        ((1500,) * 3, [True, False, False]),  # two frames of 1514 are left, two IP packets would be too little
        ((1499,) * 3, [False] * 3),
        ((100,) * 30, [True] * 3 + [False] * 27),  # 27 frames are left behind the third, 3078 B
    ],
)
@pytest.mark.parametrize("ecn", [NOT_ECT, ECT_1])
def test_the_backlog_is_what_is_left_behind_the_packet(lengths: tuple[int, ...], hit: list[bool], ecn: int) -> None:
    rows = queued(*[(length, ecn) for length in lengths], prob=linux.MAX_PROB, step_ms=1e9)
    assert (rows["applied_action"] != ENQUEUE).tolist() == hit


def test_both_queues_make_the_backlog() -> None:
    rows = queued((1500, ECT_0), (1500, ECT_0), (1500, ECT_1), prob=linux.MAX_PROB, step_ms=1e9)
    assert rows["applied_action"].tolist() == [ENQUEUE, ENQUEUE, DROP]  # L goes first, with two frames behind it


@pytest.mark.parametrize(
    ("options", "marked"),
    [
        ({"step_ms": 1.5}, [False, True, True, True]),  # the k-th leaves after k ms
        ({"step_ms": 1.5, "min_qlen_step": 3}, [False, False, False, True]),  # as many in L when it came
        ({"step_packets": 1}, [True, True, False, False]),  # as many in L when it has left
        ({"step_packets": 3}, [False] * 4),
        ({"step_packets": 1, "step_ms": 1e9}, [True, True, False, False]),
        ({"step_packets": 1, "min_qlen_step": 1}, [False, True, False, False]),
    ],
)
def test_the_step_is_by_time_or_in_packets(options: dict[str, Any], marked: list[bool]) -> None:
    rows = queued(*[(1500, ECT_1)] * 4, **options)
    assert (rows["applied_action"] == MARK).tolist() == marked


def test_the_step_is_for_l_alone() -> None:
    assert (queued(*[(1500, ECT_0)] * 9, step_ms=0.0)["applied_action"] == ENQUEUE).all()
    assert (queued(*[(1500, CE)] * 9, step_ms=0.0)["applied_action"] == MARK).all()


@pytest.mark.parametrize("coupling", [0.5, 1.7, 256.0])
def test_coupling_is_a_whole_number_of_a_byte(coupling: float) -> None:
    with pytest.raises(L4SError, match=r"options\.dualpi2_linux\.coupling: Expected `int`"):
        from_dict({"name": "x", "sources": [{"kind": "cubic"}], "options": {"dualpi2_linux": {"coupling": coupling}}})
