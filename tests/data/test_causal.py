"""The rebuilt accumulated probability against a model that knows it, and against the real rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym.data.causal import (
    UNKNOWN,
    CausalStream,
    as_logged_observation,
    causal_accumulated,
    causal_observation,
    leak_share,
    observable,
)
from l4s_gym.data.columns import FEATURES
from l4s_gym.data.evidence import COUNTERS, REQUIRED, SUFFICIENT
from l4s_gym.data.inspect import inspect_rows
from l4s_gym.data.logs import NAMES_23, NAMES_24
from l4s_gym.data.pools import load_rows, make_rows
from l4s_gym.data.simulated import simulate_log
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, DROP, ENQUEUE, MARK, MAX_PROB, OBSERVED, RECORD
from tests.data.conftest import make_kernel_log, rebuild_accumulated


def _wrong(records: Any, truth: Any) -> tuple[int, float]:
    before, missing = rebuild_accumulated(records)
    return int((before != truth)[~missing].sum()), float(missing.mean())


@pytest.mark.parametrize("print_after_reset", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_complete_log(kernel_log: Any, printed_only: Any, seed: int, print_after_reset: bool) -> None:
    log = kernel_log(seed, load=1.1 + 0.1 * seed, swing=0.2 * seed, print_after_reset=print_after_reset)
    truth = log["accumulated_probability_before"]
    wrong, missing = _wrong(printed_only(log), truth)
    assert wrong == 0
    assert missing < 0.002


def test_the_model_covers_all_cases(kernel_log: Any) -> None:
    logs = np.concatenate([kernel_log(seed, load=1.1 + 0.1 * seed, swing=0.2 * seed) for seed in range(6)])
    hit, after = logs["action"] != ENQUEUE, logs["accumulated_probability"]
    assert (logs["action"] == MARK).sum() > 20
    assert (hit & (after == 0)).sum() > 100  # random hits
    assert (hit & (after >= 18253610999)).sum() > 20  # by the 8.5 rule
    assert ((logs["action"] == DROP) & (logs["applied_action"] == ENQUEUE)).sum() > 5  # withheld
    assert len(np.unique(logs["measurement_start"])) > 20  # activations


@pytest.mark.parametrize("seed", range(6))
def test_lost_rows(kernel_log: Any, printed_only: Any, seed: int) -> None:
    log = kernel_log(seed, limit=60 if seed % 2 else 400, load=1.5)
    keep = np.random.default_rng(seed).random(len(log)) > 0.2
    truth = log["accumulated_probability_before"][keep]
    wrong, missing = _wrong(printed_only(log)[keep], truth)
    assert wrong == 0
    assert missing < 0.05


@pytest.mark.parametrize("limit", [30, 60])
def test_head_drops(kernel_log: Any, printed_only: Any, limit: int) -> None:
    log = kernel_log(3, limit=limit, load=2.0)
    wrong, missing = _wrong(printed_only(log), log["accumulated_probability_before"])
    assert wrong == 0
    assert missing < 0.05


def test_without_derandomisation(kernel_log: Any, printed_only: Any) -> None:
    log = kernel_log(1, flags=3)
    wrong, missing = _wrong(printed_only(log), log["accumulated_probability_before"])
    assert (wrong, missing) == (0, 0.0)


def test_runs_one_after_the_other(kernel_log: Any, printed_only: Any) -> None:
    logs = np.concatenate([kernel_log(seed, 700) for seed in range(8)])
    wrong, missing = _wrong(printed_only(logs), logs["accumulated_probability_before"])
    assert wrong == 0
    assert missing < 0.005


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("features", [7, 9])
def test_reduced_rows(kernel_log: Any, printed_only: Any, features: int, single: bool) -> None:
    """Rows as the pools have them, consecutive: exact, or right to float32."""
    for seed in range(4):
        log = kernel_log(seed, load=1.1 + 0.2 * seed)
        truth = log["accumulated_probability_before"].astype(np.int64)
        rows = printed_only(log, keep=(*FEATURES[features], "action"))
        if single:
            for name in ("drop_probability", "accumulated_probability"):
                rows[name] = np.minimum(rows[name].astype(np.float32).astype(np.uint64), 1 << 50)
            rows["drop_probability"] = np.minimum(rows["drop_probability"], MAX_PROB)
        before, missing = rebuild_accumulated(rows)
        error = np.abs(before - truth)[~missing]
        assert error.max() <= (2.0**-22 * truth.max() if single else 0)
        assert missing.mean() < 0.1


def test_an_agents_rows_are_missing(kernel_log: Any) -> None:
    log = kernel_log(0, 500)
    log["decided_by"] = 1
    assert rebuild_accumulated(log)[1].all()


def test_by_hand() -> None:
    p = MAX_PROB // 2
    rows = np.zeros(5, RECORD)
    for name, value in {"qdelay_ref": 15000, "tupdate": 15000, "flags": 19, "status_flags": 3}.items():
        rows[name] = value
    rows["queue_delay_old"], rows["drop_probability"], rows["packet_length"] = 20000, p, 1500
    rows["length_in_bytes"] = [9000, 10500, 12000, 1500, 9000]
    rows["total_packets"] = [7, 8, 9, 10, 11]
    rows["total_bytes"] = 1500 * rows["total_packets"]
    rows["accumulated_probability"] = [p, 0, p, p, 0]  # enqueue, drop, enqueue, guarded, mark: too early for a hit
    rows["action"] = [0, DROP, 0, 0, MARK]
    rows["total_drops"] = [0, 0, 1, 1, 1]
    before, missing = rebuild_accumulated(rows)
    assert before.tolist() == [0, p, 0, p, p]
    assert not missing.any()
    rows["total_packets"][1:] += 1  # now a row is lost before the drop
    before, missing = rebuild_accumulated(rows)
    assert missing.tolist() == [False, True, False, False, False]
    rows["accumulated_probability"][2] = p // 2  # a step cannot leave less, and the next row contradicts it
    assert rebuild_accumulated(rows)[1].tolist() == [False, True, True, True, False]


def test_cleared_by_probability_zero(kernel_log: Any, printed_only: Any) -> None:
    """A packet with probability 0 clears the sum: only the row before it tells what it found."""
    log = printed_only(kernel_log(5, 3000))
    before = (log["accumulated_probability"] > 0) & (log["action"] == ENQUEUE) & (log["status_flags"] == 3)
    first = int(np.flatnonzero(before)[-1])
    rows = log[[first, first]]
    rows["total_packets"][1] += 1
    rows["total_bytes"][1] += rows["packet_length"][0]
    rows["queue_delay_old"], rows["length_in_bytes"] = 20_000, 30_000
    rows["drop_probability"][1] = rows["accumulated_probability"][1] = 0
    value, missing = rebuild_accumulated(rows)
    assert not missing.any() and value[1] == log["accumulated_probability"][first] > 0
    rows["total_bytes"][1] += 1
    assert rebuild_accumulated(rows)[1].tolist() == [False, True]


def test_observations(kernel_log: Any, printed_only: Any) -> None:
    log = kernel_log(2)
    recorded, rebuilt = make_rows(log), make_rows(printed_only(log))
    assert recorded.has_before and not rebuilt.has_before
    truth, causal, logged = causal_observation(recorded), causal_observation(rebuilt), as_logged_observation(rebuilt)
    assert causal.shape == logged.shape == (len(log), 8)
    known = ~np.isnan(causal).any(1)
    assert known.mean() > 0.99
    drops = OBSERVED.index("total_drops")
    # Updates that change nothing go unseen: the count of the interval is right but for a few rows.
    assert (causal[:, drops] == truth[:, drops]).mean() > 0.99
    truth[:, drops] = causal[:, drops]
    np.testing.assert_array_equal(causal[known], truth[known])
    np.testing.assert_array_equal(logged, np.stack([log[name].astype(float) for name in OBSERVED], 1))
    assert truth[:, drops].max() > 0


def test_absent_columns_are_nan(kernel_log: Any, printed_only: Any) -> None:
    rows = printed_only(kernel_log(0, 300), keep=(*FEATURES[7], "action"))
    observed = causal_observation(make_rows(rows, present=(*FEATURES[7], "action")))
    assert np.isnan(observed[:, OBSERVED.index("total_drops")]).all()
    bare = make_rows(rows, present=("queue_type", "action"))
    assert np.isnan(causal_accumulated(bare)).all()
    assert "not in the source" in inspect_rows(bare)


def test_empty() -> None:
    before, missing = rebuild_accumulated(np.zeros(0, RECORD))
    assert before.shape == missing.shape == (0,)
    assert "0 rows" in inspect_rows(make_rows(np.zeros(0, RECORD)))


@pytest.mark.parametrize("name", ["exp_pool_l4s_train_7feat.pkl", "exp_pool_l4s_train_9feat.pkl"])
def test_leak_of_the_real_pools(pools_dir: Any, name: str) -> None:
    """As logged, the drops can be told from the row; before the decision they cannot."""
    rows = load_rows(pools_dir / name)
    logged = leak_share(rows.records, rows.records["accumulated_probability"])
    assert logged == {"enqueue": 0.0, "drop": pytest.approx(198 / 369), "mark": pytest.approx(9 / 60)}
    before = causal_accumulated(rows)
    causal = leak_share(rows.records, before)
    assert causal["drop"] == causal["mark"] == 0.0 < causal["enqueue"]
    assert np.isnan(before).mean() < 0.02
    # A hit needs a sum of at least 0.85.
    hit = (rows.records["action"] != ENQUEUE) & ~np.isnan(before)
    assert (before[hit] + rows.records["drop_probability"][hit] >= 0.85 * MAX_PROB * (1 - 1e-6)).all()
    text = inspect_rows(rows)
    assert "drop 53.66%" in text and "queue C: 2290 rows" in text


def test_real_rows_follow_the_rule(pools_dir: Any) -> None:
    """Between two rows of a queue the sum grows by exactly the drop probability, or stays, or is 0.

    The real rows went through float32: exactly means to the spacing of the larger number.
    """
    rows = load_rows(pools_dir / "consecutive_rows_first6000.csv")
    odd = []
    for queue in (0, 1):
        part = rows.records[rows.records["queue_type"] == queue]
        after, prob = part["accumulated_probability"].astype(np.int64), part["drop_probability"].astype(np.int64)
        grown = np.diff(after)
        steps = np.abs(grown - prob[1:]) <= np.spacing(after[1:].astype(np.float32))
        stays = (grown == 0) & ((part["length_in_bytes"][1:] <= 1600) | (prob[1:] == 0))
        rest = ~(steps | stays | (after[1:] == 0))
        odd += (grown[rest] / prob[1:][rest]).tolist()
    assert odd == [pytest.approx(2.0)]  # one lost row
    before, missing = rebuild_accumulated(rows.records, rows.present)
    assert missing.mean() < 0.02
    step = rows.records["accumulated_probability"].astype(np.int64) - before
    prob = rows.records["drop_probability"]
    assert ((step == 0) | (step == prob) | (prob == 0))[~missing].all()


# -- fields that the source lacks


EIGHT = FEATURES[8]
"""Without the length of the packets."""
EIGHT_TOTAL = tuple("total_bytes" if name == "length_in_bytes" else name for name in EIGHT)


@cache
def _all_logs() -> Any:
    """Logs with random hits, hits by the 8.5 rule, withheld drops, activations, and packets lost at the head."""
    plain = [make_kernel_log(seed, load=1.1 + 0.1 * seed, swing=0.2 * seed) for seed in range(6)]
    return np.concatenate([*plain, *(make_kernel_log(seed, limit=60, load=2.0) for seed in range(2))])


def _bearing(records: Any, present: frozenset[str], fill: int = 0) -> Any:
    """Records with something in the fields that they do not have."""
    records = records.copy()
    for name in set(NAMES_24) - present:
        low, high = (0, 2) if name == "action" else (BY_NAME[name].low, BY_NAME[name].high)
        records[name] = np.random.default_rng(fill).integers(low, high, len(records)) if fill else 0
    for name in set(BY_NAME) - set(NAMES_24):
        records[name] = 0
    return records


def _rebuilt(present: frozenset[str]) -> tuple[Any, Any]:
    """Missing rows, of all logs; what is not missing is right, and does not depend on what lies in other fields."""
    log = _all_logs()
    before, missing = rebuild_accumulated(_bearing(log, present), present)
    np.testing.assert_array_equal(before[~missing], log["accumulated_probability_before"][~missing])
    other = rebuild_accumulated(_bearing(log, present, fill=1), present)
    np.testing.assert_array_equal(other[0], before)
    np.testing.assert_array_equal(other[1], missing)
    return missing, log["action"] != ENQUEUE


NEEDED = {
    "burst_allowance": "hits",  # whether a logged drop was executed
    "length_in_bytes": "enqueued",  # the guard
    "total_packets": "hits",  # which row is the next packet's
    "total_drops": "hits",  # whether a packet was lost at the head
    "status_flags": "hits",  # activations
    "measurement_start": "hits",
    **dict.fromkeys(REQUIRED, "all"),
}
"""Fields without which more is missing, and in which rows. What the others tell, others tell too."""


@pytest.mark.parametrize("name", NAMES_24)
def test_a_field_that_is_absent_is_not_read(name: str) -> None:
    missing, hit = _rebuilt(frozenset(NAMES_24) - {name})
    full, _ = _rebuilt(frozenset(NAMES_24))
    assert not (full & ~missing).any()
    more = missing & ~full
    rows = {"hits": hit, "enqueued": ~hit, "all": np.ones(len(hit), bool)}.get(NEEDED.get(name, ""), ~hit & hit)
    assert more[rows].any() == rows.any()
    assert missing.all() or missing.mean() < 0.06


@pytest.mark.parametrize("name", ["qdelay_ref", "queue_delay_old", "flags"])
def test_each_guard_has_other_evidence(name: str) -> None:
    """Without the delay's guard, or the flags, the rest of a log still proves nearly all."""
    missing, _ = _rebuilt(frozenset(NAMES_24) - {name})
    assert missing.mean() < 0.003


@pytest.mark.parametrize("absent", [(), *((name,) for name in (*EIGHT, "action"))])
@pytest.mark.parametrize("form", [FEATURES[7], EIGHT, EIGHT_TOTAL, FEATURES[9]])
def test_a_field_that_a_pool_lacks_is_not_read(form: tuple[str, ...], absent: tuple[str, ...]) -> None:
    missing, _ = _rebuilt(frozenset((*form, "action")) - set(absent))
    assert missing.all() == bool(REQUIRED & set(absent))


def test_some_columns_of_a_csv_file(tmp_path: Any) -> None:
    """Queue, probability, sum and action alone: the leaky value is not shown as the one before the decision."""
    names = ("queue_type", "drop_probability", "accumulated_probability", "action")
    log = make_kernel_log(2)
    path = tmp_path / "rows.csv"
    np.savetxt(path, np.stack([log[name] for name in names], 1), "%d", ",", header=",".join(names), comments="")
    rows = load_rows(path)
    before = causal_accumulated(rows)
    known = ~np.isnan(before)
    assert known.mean() < 0.1
    np.testing.assert_array_equal(before[known], log["accumulated_probability_before"][known])
    hit = log["action"] != ENQUEUE
    assert not known[hit & (log["accumulated_probability"] == 0)].any()
    assert "missing in 0.00%" not in inspect_rows(rows)


def test_blocks_may_be_cut_where_the_counters_are() -> None:
    for name in SUFFICIENT - REQUIRED:
        with pytest.raises(L4SError, match="as a whole"):
            stream = CausalStream(frozenset(NAMES_24) - {name})
            for _ in range(2):
                stream.observe(_all_logs()[:50])
    assert SUFFICIENT >= COUNTERS and frozenset(NAMES_23) >= SUFFICIENT


def windows_of(records: Any, before: int = 5) -> Any:
    """Rows before each change of action, as the authors cut their pools: windows overlap, so rows are repeated."""
    changes = np.flatnonzero(np.diff(records["action"].astype(int))) + 1
    return np.concatenate([np.arange(max(0, change - before), change) for change in changes.tolist()])


def as_float32(records: Any) -> Any:
    """Records as they come out of a pool."""
    records = records.copy()
    for name in ("drop_probability", "accumulated_probability", "total_bytes"):
        records[name] = np.minimum(records[name].astype(np.float32).astype(np.uint64), 1 << 62)
    records["drop_probability"] = np.minimum(records["drop_probability"].astype(np.int64), MAX_PROB)
    return records


@pytest.mark.parametrize("form", [FEATURES[7], EIGHT, EIGHT_TOTAL, FEATURES[9]])
def test_overlapping_windows(form: tuple[str, ...]) -> None:
    """A row that is repeated does not follow the later one above it."""
    log = _all_logs()[:24_000]
    index = windows_of(log)
    present = frozenset((*form, "action"))
    before, missing = rebuild_accumulated(_bearing(as_float32(log[index]), present), present)
    truth = log["accumulated_probability_before"][index].astype(np.int64)
    assert (np.abs(before - truth)[~missing] <= 2.0**-22 * truth[~missing]).all()
    assert missing.mean() < (0.4 if "total_bytes" in form else 0.1)
    dropped = log["action"][index] == DROP
    assert missing[dropped].mean() < 0.25


def test_eight_features_know_as_much_as_nine(pools_dir: Any) -> None:
    """Of the authors' pool: that a queue grew by one packet tells what the packet's length told."""
    rows = load_rows(pools_dir / "exp_pool_l4s_train_9feat.pkl")
    before, missing = rebuild_accumulated(rows.records, rows.present)
    present = frozenset((*EIGHT, "action"))
    other, lost = rebuild_accumulated(_bearing(rows.records, present), present)
    np.testing.assert_array_equal(other[~missing & ~lost], before[~missing & ~lost])
    assert lost.mean() < 0.02
    assert lost[rows.records["action"] == DROP].mean() < 0.05


@pytest.mark.parametrize("lost", [0.0, 0.02])
@pytest.mark.parametrize("form", [FEATURES[7], EIGHT, FEATURES[9]])
def test_rows_of_a_log_that_lost_none_follow_each_other(form: tuple[str, ...], lost: float) -> None:
    """Hits after packets have left are told where the rows about them prove that none is lost, and only there."""
    log = _all_logs()[:24_000]
    log = log[np.random.default_rng(0).random(len(log)) >= lost]
    present = frozenset((*form, "action"))
    before, missing = rebuild_accumulated(_bearing(log, present), present)
    np.testing.assert_array_equal(before[~missing], log["accumulated_probability_before"][~missing])
    dropped = log["action"] == DROP
    assert missing[dropped].mean() < 0.1 if not lost else 0.1 < missing[dropped].mean() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("form", [NAMES_24, FEATURES[7], EIGHT, EIGHT_TOTAL, FEATURES[9]])
def test_logs_of_the_simulator(form: tuple[str, ...]) -> None:
    """With the testbed's clock, by which packets leave in batches: 0 wrong; hits missing with fewer fields than all."""
    log = _simulated()
    present = frozenset((*form, "action"))
    before, missing = rebuild_accumulated(_bearing(log, present), present)
    np.testing.assert_array_equal(before[~missing], log["accumulated_probability_before"][~missing])
    assert missing.mean() < 0.03
    assert missing[log["action"] != ENQUEUE].mean() < 0.05


@cache
def _simulated() -> Any:
    return np.concatenate([simulate_log("l4s-llm-testbed-vm", seed=seed, seconds=20.0) for seed in range(2)])


# -- block by block


def observed_in_blocks(rows: Any, cuts: list[int], as_logged: bool) -> Any:
    """The observations, made in blocks that are cut anywhere."""
    stream = CausalStream(rows.present, as_logged)
    blocks = np.split(rows.records, sorted(min(cut, len(rows)) for cut in cuts))
    return np.concatenate([stream.observe(block) for block in blocks])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 7),
    st.lists(st.integers(0, 900), max_size=12),
    st.sampled_from(["recorded", "rebuilt", "lost", "old"]),
    st.booleans(),
)
def test_blocks_change_nothing(seed: int, cuts: list[int], form: str, as_logged: bool) -> None:
    log = _logs(seed)
    if form == "lost":
        log = log[np.random.default_rng(seed).random(len(log)) > 0.2]
    names = {"recorded": tuple(BY_NAME), "old": NAMES_23}.get(form, NAMES_24)
    for name in BY_NAME:
        if name not in names:
            log[name] = 0
    rows = make_rows(log, present=names)
    whole = as_logged_observation(rows) if as_logged else causal_observation(rows)
    np.testing.assert_array_equal(observed_in_blocks(rows, cuts, as_logged), whole)
    if form == "rebuilt" and not as_logged:
        before, missing = rebuild_accumulated(log)
        np.testing.assert_array_equal(whole[:, 4], np.where(missing, np.nan, before))


@cache
def _made(seed: int) -> Any:
    return np.concatenate([make_kernel_log(seed + n, 300, load=1.3, swing=0.3 * n, limit=300) for n in range(3)])


def _logs(seed: int) -> Any:
    """Three runs one after the other."""
    return _made(seed).copy()


def test_every_single_row_as_a_block() -> None:
    rows = make_rows(_logs(1), present=NAMES_24)
    whole = causal_observation(rows)
    np.testing.assert_array_equal(observed_in_blocks(rows, list(range(len(rows))), False), whole)


def test_rows_without_parameters_come_at_once(kernel_log: Any) -> None:
    present = frozenset((*FEATURES[7], "action"))
    rows = make_rows(kernel_log(0, 50), present=tuple(present))
    stream = CausalStream(present)
    assert stream.observe(rows.records[:0]).shape == (0, 8)
    stream.observe(rows.records)
    with pytest.raises(L4SError, match="as a whole"):
        stream.observe(rows.records)
    logged = CausalStream(present, as_logged=True)
    assert len(logged.observe(rows.records)) == len(logged.observe(rows.records))
    assert observable(present) == [name for name in OBSERVED if name != "total_drops"]


def test_what_is_not_known_stays_so(kernel_log: Any) -> None:
    log = kernel_log(0, 50)
    log["accumulated_probability_before"][7] = UNKNOWN
    assert np.flatnonzero(np.isnan(causal_accumulated(make_rows(log)))).tolist() == [7]
    present = frozenset({"queue_type", "accumulated_probability_before", "interval_drops"})
    assert observable(present) == ["queue_type", "accumulated_probability", "total_drops"]
    assert observable(present, as_logged=True) == ["queue_type"]
