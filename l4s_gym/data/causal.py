"""What the kernel knew before it decided.

The log prints the accumulated probability *after* the decision: it is 0 after a random hit, so most
dropped packets can be told from the row itself. Here the value before the decision is rebuilt, row by row,
from the kernel's rule (a packet takes one step of the sum, unless it is guarded):

    if (queue_delay_old < qdelay_ref / 2 and prob < 20 %) or length_in_bytes <= 1600: enqueue, sum untouched
    if prob == 0: sum = 0;  sum += prob
    sum < 0.85: enqueue;  sum >= 8.5: hit, sum kept;  else hit with probability prob: sum = 0
    after the line was printed: a packet that is really dropped, and an activation, set the sum to 0

A row tells the value itself where it was guarded (unchanged) or not reset (minus its own step). After a reset
only the same queue's previous row tells it, and only if that row is the packet just before. What cannot be
proved is marked missing. The rule is that of the testbed's kernel; for a log of a simulator whose quirks
were switched off, use the recorded `accumulated_probability_before`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym.data.logs import Records
from l4s_gym.data.pools import Rows
from l4s_gym.schema import (
    ACTIONS,
    BY_NAME,
    CLASSIC,
    DROP,
    ENQUEUE,
    L4S,
    MAX_PROB,
    OBSERVED,
)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

LOW: Final = MAX_PROB * 85 // 100
"""No hit below this sum (0.85)."""
HIGH: Final = MAX_PROB * 85 // 10
"""Always a hit from this sum on (8.5)."""
GUARD_BYTES: Final = 1600
GUARD_PROB: Final = MAX_PROB // 5
FLAG_RATE_ESTIMATION: Final = 8
FLAG_DERANDOMISE: Final = 16
ACTIVE: Final = 1

_FULL_BURST: Final = BY_NAME["burst_allowance"].scale
_FLOAT32: Final = 2.0**-22
"""Relative error of a difference of numbers that went through float32."""
_MOST_STEPS: Final = 8


class _Queue(NamedTuple):
    """Columns of one queue's rows, each (n,): integers as int64."""

    after: Ints
    prob: Ints
    step: Ints
    action: Ints
    burst: Ints
    queue_bytes: Ints
    length: Ints
    real_drop: Bools
    complete: Bools
    derandomised: Bools
    tolerance: Floats


def guard(prob: Any, delay_old_us: Any, queue_bytes: Any, ref_us: Any) -> Any:
    """Whether a packet is enqueued without a look at the probability. Scalars or arrays."""
    return ((delay_old_us < ref_us // 2) & (prob < GUARD_PROB)) | (queue_bytes <= GUARD_BYTES)


def before_from_row(after: Any, step: Any, guarded: Any) -> Any:
    """The sum before the decision, from a row that was not reset. Scalars or arrays."""
    return np.where(guarded, after, after - step)


def after_row(after: Any, real_drop: Any, activated: Any) -> Any:
    """The sum once the packet was dealt with: what the queue's next packet finds. Scalars or arrays."""
    return np.where(real_drop | activated, 0, after)


def _columns(rows: Records) -> _Queue:
    def integers(name: str) -> Ints:
        return rows[name].astype(np.int64)

    # Rows of pools and csv files bear no parameters; a real update period is never 0.
    complete = rows["tupdate"] > 0
    active = (rows["status_flags"] & ACTIVE > 0) | ~complete
    derandomised = (rows["flags"] & FLAG_DERANDOMISE > 0) | ~complete
    after, prob, action, burst = map(
        integers, ("accumulated_probability", "drop_probability", "action", "burst_allowance")
    )
    return _Queue(
        after=after,
        prob=prob,
        step=np.where(derandomised, prob, 0),
        action=action,
        burst=burst,
        queue_bytes=integers("length_in_bytes"),
        length=integers("packet_length"),
        # A drop that is logged during the burst allowance, or while the controller rests, is not executed.
        real_drop=(action == DROP) & (burst == 0) & active,
        complete=complete,
        derandomised=derandomised,
        tolerance=np.where(complete, 0.0, after * _FLOAT32),
    )


def _follows_complete(rows: Records) -> Bools:
    """(n - 1,) whether row i + 1 is the queue's packet right after row i, by the kernel's own counters."""
    step = np.diff(rows["total_packets"].astype(np.int64))
    grown = np.diff(rows["total_bytes"].astype(np.int64))
    length = rows["packet_length"][:-1]
    follows: Bools = (step == 1) & ((length == 0) | (grown == length))
    return follows


def _previous_complete(rows: Records, q: _Queue) -> tuple[Ints, Bools]:
    """(n,) the sum that each packet found, from the row before it, and whether that is certain."""
    old, new = rows[:-1], rows[1:]
    drops = np.diff(rows["total_drops"].astype(np.int64)) - q.real_drop[:-1]
    was_active = old["status_flags"] & ACTIVE > 0
    moved = old["measurement_start"] != new["measurement_start"]
    # With rate estimation the clock of the measurement moves by itself.
    moves_alone = new["flags"] & FLAG_RATE_ESTIMATION > 0
    activated = ~was_active & moved & ~moves_alone
    value = after_row(q.after[:-1], q.real_drop[:-1], activated)
    # Other than by its own packet a queue loses packets at its head, which may reset the sum. A queue that was
    # inactive may have been activated within the same tick of the clock.
    plain = (drops == 0) & ((was_active & ~moved) | activated)
    certain = _follows_complete(rows) & (drops >= 0) & (plain | (value == 0)) & (old["decided_by"] == 0)
    return value, certain & q.complete[:-1] & q.complete[1:]


def _previous_reduced(rows: Records, q: _Queue) -> tuple[Ints, Bools]:
    """The same for rows without counters: certain if queue, controller and drops fit one packet's step."""
    grown = np.where(q.real_drop[:-1], 0, q.length[:-1])
    same = (np.diff(q.prob) == 0) & (np.diff(q.burst) == 0)
    delay = rows["current_queue_delay"]
    follows = same & (delay[1:] == delay[:-1]) & (np.diff(q.queue_bytes) == grown) & (q.length[:-1] > 0)
    if rows["total_drops"].any():
        follows &= np.diff(rows["total_drops"].astype(np.int64)) == q.real_drop[:-1]
    follows &= rows[1:] != rows[:-1]  # the pools repeat rows
    value = after_row(q.after[:-1], q.real_drop[:-1], False)
    # While the probability stays 0 the sum stays 0, however many packets lie between.
    idle = same & (q.prob[1:] == 0) & (q.burst[1:] > 0) & (value == 0)
    return value, (follows | idle) & ~q.complete[:-1] & ~q.complete[1:]


def _guard_reduced(q: _Queue) -> npt.NDArray[np.int8]:
    """(n,) 1 guarded, 0 not, -1 unknown, for rows that lack the delay at the last update.

    That delay is constant between two updates, and so is the probability: if the sum has moved within such a
    stretch of rows, none of its rows was guarded by the delay.
    """
    state = np.full(len(q.after), -1, np.int8)
    change = np.abs(np.diff(q.after)).astype(np.float64)
    steps = np.rint(change / np.maximum(q.prob[1:], 1))
    tolerance = np.maximum(q.tolerance[1:], q.tolerance[:-1])
    same = (np.diff(q.prob) == 0) & (np.diff(q.burst) == 0) & (q.prob[1:] > 4 * tolerance)
    multiple = same & (steps <= _MOST_STEPS) & (np.abs(change - steps * q.prob[1:]) <= tolerance)
    reset = same & ((q.after[1:] == 0) | (q.after[:-1] == 0))
    stretch = np.concatenate([[0], np.cumsum(~(multiple | reset))])
    moved = q.action != ENQUEUE
    moved[1:] |= multiple & (steps > 0)
    state[np.bincount(stretch, moved, minlength=stretch[-1] + 1)[stretch] > 0] = 0
    # Margin: such a probability may have been rounded up to the threshold.
    state[q.prob >= GUARD_PROB + 64] = 0
    state[q.action != ENQUEUE] = 0
    held = (q.prob == 0) & (q.after > 0)  # a step with probability 0 would have cleared the sum
    held |= (q.prob > 0) & (q.after == 0) & (q.action == ENQUEUE)  # a step would have left its own size
    # A full allowance means no update since it was granted, which happens only with small delays.
    held |= (q.prob == 0) & (q.burst >= _FULL_BURST)
    state[held | (q.queue_bytes <= GUARD_BYTES)] = 1
    return state


def _rebuild_queue(rows: Records) -> tuple[Ints, Bools]:
    """`rebuild_accumulated` for the rows of one queue."""
    q = _columns(rows)
    full = guard(q.prob, rows["queue_delay_old"].astype(np.int64), q.queue_bytes, rows["qdelay_ref"].astype(np.int64))
    state = np.where(q.complete, full, _guard_reduced(q))
    guarded, stepped, unknown = state == 1, state == 0, state == -1
    hit = q.action != ENQUEUE

    previous, known = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
    for value, certain in (_previous_complete(rows, q), _previous_reduced(rows, q)):
        previous[1:][certain] = value[certain]
        known[1:] |= certain

    # From the row itself.
    own = before_from_row(q.after, q.step, guarded)
    kept = np.where(hit, q.after >= HIGH, (q.after < HIGH) | ~q.derandomised)
    from_row = (guarded & ~hit) | (stepped & (q.prob > 0) & kept & (own >= 0))
    # ... unless the row before says otherwise.
    from_row &= ~known | (np.abs(own - previous) <= q.tolerance)

    # From the row before: cleared by probability 0, or by a hit, which needs a large enough sum.
    could_hit = (q.prob > 0) & (~q.derandomised | (previous + q.step + q.tolerance >= LOW))
    reset = (q.after == 0) & np.where(hit, stepped & could_hit, (q.prob == 0) & ~guarded)
    either = np.minimum(np.abs(previous - q.after), np.abs(previous - (q.after - q.step))) <= q.tolerance
    from_previous = known & (reset | (unknown & ~hit & (q.prob > 0) & either))

    missing = ~(from_row | from_previous) | (rows["decided_by"] != 0)
    return np.where(missing, 0, np.where(from_row, own, previous)), missing


def rebuild_accumulated(records: Records) -> tuple[Ints, Bools]:
    """Rebuild the accumulated probability before each decision from the logged values after it.

    Complete records use the kernel's counters; records without parameters (`tupdate` 0: pools and csv files)
    use weaker evidence, and values that went through float32 are right to its precision. Rows that an agent
    decided do not follow the kernel's rule and are missing.

    Args:
        records: Records (T,) in the order of the log, both queues.

    Returns:
        The values (T,) int64 in 1/(2^31-1), 0 where missing; and whether they are missing (T,).
    """
    before, missing = np.zeros(len(records), np.int64), np.ones(len(records), bool)
    for queue in (CLASSIC, L4S):
        index = np.flatnonzero(records["queue_type"] == queue)
        if index.size:
            before[index], missing[index] = _rebuild_queue(records[index])
    return before, missing


def causal_accumulated(rows: Rows) -> Floats:
    """The accumulated probability before each decision (T,), recorded or else rebuilt; NaN where missing."""
    if rows.has_before:
        return rows.records["accumulated_probability_before"].astype(np.float64)
    if "accumulated_probability" not in rows.present:
        return np.full(len(rows), np.nan)
    before, missing = rebuild_accumulated(rows.records)
    return np.where(missing, np.nan, before)


def interval_drops(rows: Rows) -> Floats:
    """Drops of the queue since the controller's last update (T,), recorded or else rebuilt from the total.

    An update shows as a change of probability, old delay or burst allowance; one that changes none of them
    goes unseen. An activation and a renewed allowance change them too, but leave the allowance full, which no
    update does. NaN if the rows bear no count of drops.
    """
    records = rows.records
    if "interval_drops" in rows.present:
        return records["interval_drops"].astype(np.float64)
    drops = np.full(len(records), np.nan)
    if "total_drops" not in rows.present:
        return drops
    for queue in (CLASSIC, L4S):
        index = np.flatnonzero(records["queue_type"] == queue)
        part = records[index]
        total = part["total_drops"].astype(np.int64)
        first = np.zeros(len(part), bool)
        for name in ("drop_probability", "queue_delay_old", "burst_allowance"):
            first[1:] |= part[name][1:] != part[name][:-1]
        first &= part["burst_allowance"] < np.where(part["max_burst"] > 0, part["max_burst"], _FULL_BURST)
        first[1:] |= np.diff(total) < 0  # a new run
        start = np.maximum.accumulate(np.where(first, np.arange(len(part)), 0))
        drops[index] = total - total[start]
    return drops


def _observation(rows: Rows, replaced: dict[str, Floats]) -> Floats:
    raw = np.full((len(rows), len(OBSERVED)), np.nan)
    for column, name in enumerate(OBSERVED):
        if name in replaced:
            raw[:, column] = replaced[name]
        elif name in rows.present:
            raw[:, column] = rows.records[name]
    return raw


def causal_observation(rows: Rows) -> Floats:
    """What the kernel knew before each decision.

    Returns:
        The `OBSERVED` fields in kernel units, shape (T, 8) float64: the accumulated probability before the
        decision, and the drops of the current control interval. NaN where missing.
    """
    return _observation(
        rows, {"accumulated_probability": causal_accumulated(rows), "total_drops": interval_drops(rows)}
    )


def as_logged_observation(rows: Rows) -> Floats:
    """The fields as printed, for reproducing earlier work: they give away most of the drops.

    Returns:
        The `OBSERVED` fields in kernel units, shape (T, 8) float64: the accumulated probability after the
        decision, and the drops since the start. NaN for fields that the source lacks.
    """
    return _observation(rows, {})


def leak_share(records: Records, accumulated: npt.ArrayLike) -> dict[str, float]:
    """How often the accumulated probability is 0 although the drop probability is not, by action.

    Args:
        records: Records (T,).
        accumulated: Accumulated probability (T,), as logged or before the decision; NaN where missing.

    Returns:
        For each action, the share of its rows that are not missing; NaN if there are none.
    """
    values = np.asarray(accumulated, np.float64)
    told = (values == 0) & (records["drop_probability"] > 0)
    shares = {}
    for action, name in enumerate(ACTIONS):
        chosen = (records["action"] == action) & ~np.isnan(values)
        shares[name] = float(told[chosen].mean()) if chosen.any() else float("nan")
    return shares
