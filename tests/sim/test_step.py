"""One queue with a step threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.schema import DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.drive import ARRIVAL, offer, open_loop
from l4s_gym.sim.options import Options
from l4s_gym.sim.step import Options as StepOptions

MS = 1_000_000


def waits(times_ns: list[int]) -> tuple[list[int], list[int]]:
    """How long each packet of a 1 ms link waits (ns), and how many it leaves behind."""
    starts: list[int] = []
    free = 0
    for time in times_ns:
        starts.append(max(time, free))
        free = starts[-1] + MS
    behind = [sum(time <= start for time in times_ns[k + 1 :]) for k, start in enumerate(starts)]
    return [start - time for start, time in zip(starts, times_ns, strict=True)], behind


def actions(times_ns: list[int], ecn: list[int], **options: Any) -> npt.NDArray[np.int64]:
    packets = np.zeros(len(times_ns), ARRIVAL)
    packets["time_ns"], packets["length"], packets["ecn"], packets["action"] = times_ns, 1500, ecn, -1
    scenario = open_loop(12.0, options=Options(step=StepOptions(**options)), limit_packets=200)
    return offer(scenario, packets, aqm="step")["applied_action"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    packets=st.lists(st.tuples(st.integers(1, 2_500_000), st.integers(0, 3)), min_size=1, max_size=60),
    threshold=st.sampled_from([0.0, 1.0, 2.5, 7.0]),
)
def test_marks_iff_above(packets: list[tuple[int, int]], threshold: float) -> None:
    gaps, ecn = zip(*packets, strict=True)
    times = np.cumsum(gaps).tolist()
    waited, behind = waits(times)
    marked = [wait > threshold * MS and codepoint != NOT_ECT for wait, codepoint in zip(waited, ecn, strict=True)]
    assert (actions(times, list(ecn), threshold_ms=threshold) == np.where(marked, MARK, ENQUEUE)).all()
    if threshold >= 1.0:
        full = [left > int(threshold) and codepoint != NOT_ECT for left, codepoint in zip(behind, ecn, strict=True)]
        got = actions(times, list(ecn), threshold_packets=int(threshold))
        assert (got == np.where(full, MARK, ENQUEUE)).all()


@pytest.mark.parametrize("ecn", [NOT_ECT, 1])
def test_only_a_full_buffer_drops(ecn: int) -> None:
    got = actions(list(range(1, 301)), [ecn] * 300)
    assert (got == DROP).tolist() == [False] * 201 + [True] * 99  # one is on the link
    assert (got == MARK).sum() == (199 if ecn else 0)
