"""The replay of logged rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from l4s_gym.data.causal import causal_observation
from l4s_gym.data.columns import FEATURES
from l4s_gym.data.pools import Rows, load_rows, make_rows
from l4s_gym.envs.replay import ReplaySource
from l4s_gym.errors import L4SError
from l4s_gym.schema import DROP, ENQUEUE, MARK, RECORD, scale_observation


def rows_of(queue: list[int], length: list[int], packet: list[int], action: list[int]) -> Rows:
    """Rows with the given columns."""
    records = np.zeros(len(queue), RECORD)
    records["queue_type"], records["length_in_bytes"] = queue, length
    records["packet_length"], records["action"] = packet, action
    return make_rows(records, present=(*FEATURES[7], "action"))


def test_follow(kernel_log: Any, printed_only: Any) -> None:
    rows = make_rows(printed_only(kernel_log(0, 400)))
    source = ReplaySource(rows)
    raw = causal_observation(rows)
    for index in range(400):
        assert source.index == index and not source.done
        assert source.missing == np.isnan(raw[index]).any()
        observation = source.observation()
        assert observation.shape == (8,) and observation.dtype == np.float32
        np.testing.assert_array_equal(observation, scale_observation(np.nan_to_num(raw[index])))
        assert source.record()["total_packets"] == rows.records["total_packets"][index]
        delay = int(rows.records["current_queue_delay"][index])
        assert source.reward() == pytest.approx(int(rows.records["packet_length"][index]) / (delay + 1000))
        assert source.step(index % 3) == (index == 399)
    with pytest.raises(L4SError, match="reset"):
        source.step(0)
    source.reset(5)
    assert (source.index, source.done) == (5, False)


def brute_force(rows: Rows, index: int, action: int, column: str) -> int | None:
    """The nearest row by looking at each."""
    records = rows.records
    target = int(records["length_in_bytes"][index]) + (0 if action == DROP else int(records["packet_length"][index]))
    best = None
    for row in range(len(rows)):
        if records["queue_type"][row] == records["queue_type"][index] and records["action"][row] == action:
            distance = abs(int(records[column][row]) - target)
            if best is None or distance < best[0]:
                best = distance, row
    return None if best is None else best[1]


@pytest.mark.parametrize("column", ["length_in_bytes", "packet_length"])
def test_nearest_is_nearest(column: Any) -> None:
    rng = np.random.default_rng(1)
    lists = [rng.integers(0, high, 150).tolist() for high in (2, 40, 9, 3)]
    rows = rows_of(*lists)
    source = ReplaySource(rows, "nearest", column=column)
    for index in range(150):
        source.reset(index)
        for action in (ENQUEUE, DROP, MARK):
            assert source.nearest(action) == brute_force(rows, index, action, column)


def test_jumps() -> None:
    #                      0     1     2     3     4     5
    rows = rows_of([0] * 6, [1000, 2500, 1000, 2600, 900, 0], [1500, 1500, 52, 52, 52, 52], [0, 0, 1, 1, 2, 0])
    repaired = ReplaySource(rows, "nearest")
    repaired.step(ENQUEUE)
    assert repaired.index == 1  # the logged action: no jump
    repaired.step(DROP)
    assert repaired.index == 4  # row 3 is nearest to 2500 B, and row 4 follows on it
    published = ReplaySource(rows, "nearest", column="packet_length")
    published.step(ENQUEUE)
    assert published.index == 0  # 2500 B of queue against packets of at most 1500 B: always the first of those
    published.step(DROP)
    assert published.index == 2
    assert not published.done


def test_every_nth_decision_and_no_candidate() -> None:
    rows = rows_of([0] * 20, [0] * 20, [100] * 20, [0] * 19 + [1])
    source = ReplaySource(rows, "nearest", column="packet_length", decision_interval=4)
    path = [source.index]
    for _ in range(8):
        source.step(ENQUEUE)
        path.append(source.index)
    assert path == [0, 0, 1, 2, 3, 0, 1, 2, 3]
    source.reset()
    source.step(MARK)
    assert (source.index, source.no_candidate) == (1, 1)
    source.reset()
    assert source.no_candidate == 0
    assert sum(1 for _ in iter(lambda: source.step(ENQUEUE), True)) == 19  # ends after as many decisions as rows
    end = ReplaySource(rows, "nearest")
    assert end.step(DROP) and end.index == 0  # the row after the last one


def test_bad_arguments() -> None:
    rows = rows_of([0], [0], [0], [0])
    arguments: Any
    for arguments in ({"mode": "nearer"}, {"column": "length"}, {"decision_interval": 0}, {"observe": "all"}):
        with pytest.raises(L4SError):
            ReplaySource(rows, **arguments)
    with pytest.raises(L4SError, match="no rows"):
        ReplaySource(rows_of([], [], [], []))
    with pytest.raises(L4SError, match="lacks"):
        ReplaySource(make_rows(rows.records, present=("action",)), "nearest")
    source = ReplaySource(rows)
    for action in (3, -1, 0.5):
        with pytest.raises(L4SError, match="action"):
            source.step(action)  # type: ignore[arg-type]
    with pytest.raises(L4SError, match="start"):
        source.reset(1)
    assert source.step(np.int64(1))


def test_real_pool(pools_dir: Any) -> None:
    """The published convention goes round on the few rows with the largest packets."""
    rows = load_rows(pools_dir / "exp_pool_l4s_train_7feat.pkl")
    visited = {}
    column: Any
    for column in ("packet_length", "length_in_bytes"):
        source = ReplaySource(rows, "nearest", column=column)
        visited[column] = {source.index}
        for number in range(100):
            if source.step(number % 3):
                break
            visited[column].add(source.index)
    assert len(visited["packet_length"]) <= 6 < len(visited["length_in_bytes"])
