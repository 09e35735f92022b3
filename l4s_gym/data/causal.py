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
from l4s_gym.data.stream import join, take
from l4s_gym.errors import L4SError
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
_ACCUMULATED: Final = OBSERVED.index("accumulated_probability")
_DROPS: Final = OBSERVED.index("total_drops")

BEFORE: Final = {"accumulated_probability": "accumulated_probability_before", "total_drops": "interval_drops"}
"""Observed fields, and where their values before the decision are recorded."""
UNKNOWN: Final = BY_NAME["accumulated_probability_before"].high
"""Stands in `accumulated_probability_before` for a value that is not known: no sum comes near it."""


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
    whole = bool(q.complete.all())  # of a log: the evidence for reduced rows is not needed
    state = full.astype(np.int8) if whole else np.where(q.complete, full, _guard_reduced(q))
    guarded, stepped, unknown = state == 1, state == 0, state == -1
    hit = q.action != ENQUEUE

    previous, known = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
    for look in (_previous_complete,) if whole else (_previous_complete, _previous_reduced):
        value, certain = look(rows, q)
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
    return causal_observation(rows)[:, _ACCUMULATED]


def causal_observation(rows: Rows) -> Floats:
    """What the kernel knew before each decision.

    Returns:
        The `OBSERVED` fields in kernel units, shape (T, 8) float64: the accumulated probability before the
        decision, and the drops of the current control interval. NaN where missing.
    """
    return CausalStream(rows.present).observe(rows.records)


def as_logged_observation(rows: Rows) -> Floats:
    """The fields as printed, for reproducing earlier work: they give away most of the drops.

    Returns:
        The `OBSERVED` fields in kernel units, shape (T, 8) float64: the accumulated probability after the
        decision, and the drops since the start. NaN for fields that the source lacks.
    """
    return CausalStream(rows.present, as_logged=True).observe(rows.records)


def observable(present: frozenset[str], as_logged: bool = False) -> list[str]:
    """The `OBSERVED` fields that can be told, at least of some rows, from the fields that a source bears."""
    return [name for name in OBSERVED if name in present or (not as_logged and BEFORE.get(name) in present)]


class CausalStream:
    """What the kernel knew before each decision, for rows that come block by block.

    Of a log the values of a row follow from the row and its queue's row before, so the blocks may be cut anywhere.
    Rows without parameters (pools, csv files) are judged by whole stretches of rows: they must come in one block.

    Args:
        present: Names of the fields that the source bears.
        as_logged: Give the fields as printed instead (see `as_logged_observation`).
    """

    def __init__(self, present: frozenset[str], as_logged: bool = False) -> None:
        self.present, self.as_logged = present, as_logged
        rebuilt = "accumulated_probability" in present and "accumulated_probability_before" not in present
        self._whole = rebuilt and "tupdate" not in present and not as_logged
        self._rebuilt = rebuilt
        self._counted = "total_drops" in present and "interval_drops" not in present
        self._ended = False
        self._last: dict[int, Records] = {}  # the last row (1,) of each queue
        self._base: dict[int, int] = {}  # its drops when the control interval started

    def observe(self, records: Records) -> Floats:
        """The `OBSERVED` fields before each decision, in kernel units.

        Args:
            records: Records (T,) that follow those of the last call.

        Returns:
            Shape (T, 8); NaN where missing.

        Raises:
            L4SError: Rows without parameters came in several blocks.
        """
        raw = np.full((len(records), len(OBSERVED)), np.nan)
        for column, name in enumerate(OBSERVED):
            if name in self.present:
                raw[:, column] = records[name]
        if self.as_logged or not len(records):
            return raw
        if self._whole and self._ended:
            raise L4SError("rows without parameters can be judged as a whole only: give all of them at once")
        self._ended = True
        raw[:, [_ACCUMULATED, _DROPS]] = np.nan
        if "accumulated_probability_before" in self.present:
            before = records["accumulated_probability_before"]
            raw[:, _ACCUMULATED] = np.where(before == UNKNOWN, np.nan, before)
        if "interval_drops" in self.present:
            raw[:, _DROPS] = records["interval_drops"]
        for queue in (CLASSIC, L4S) if self._rebuilt or self._counted else ():
            index = np.flatnonzero(records["queue_type"] == queue)
            if index.size:
                self._observe_queue(queue, take(records, index), raw, index)
        return raw

    def _observe_queue(self, queue: int, part: Records, raw: Floats, index: Ints) -> None:
        """Set what has to be rebuilt in the rows ``index`` of a queue."""
        last = self._last.get(queue, part[:0])
        rows = join([last, part])
        if self._rebuilt:
            before, missing = _rebuild_queue(rows)
            raw[index, _ACCUMULATED] = np.where(missing, np.nan, before)[len(last) :]
        if self._counted:
            drops, self._base[queue] = _interval_drops(rows, self._base.get(queue))
            raw[index, _DROPS] = drops[len(last) :]
        self._last[queue] = part[-1:].copy()


def _interval_drops(part: Records, base: int | None) -> tuple[Ints, int]:
    """Drops of a queue since the controller's last update, rebuilt from the total.

    An update shows as a change of probability, old delay or burst allowance; one that changes none of them
    goes unseen. An activation and a renewed allowance change them too, but leave the allowance full, which no
    update does.

    Args:
        part: Rows of one queue (n,).
        base: The total when the first row's interval started; None: it starts with that row.

    Returns:
        The drops (n,), and the total when the last row's interval started.
    """
    total = part["total_drops"].astype(np.int64)
    first = np.zeros(len(part), bool)
    for name in ("drop_probability", "queue_delay_old", "burst_allowance"):
        first[1:] |= part[name][1:] != part[name][:-1]
    first &= part["burst_allowance"] < np.where(part["max_burst"] > 0, part["max_burst"], _FULL_BURST)
    first[1:] |= np.diff(total) < 0  # a new run
    start = np.maximum.accumulate(np.where(first, np.arange(len(part)), 0))
    bases = np.where(start > 0, total[start], total[0] if base is None else base)
    return total - bases, int(bases[-1])


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
