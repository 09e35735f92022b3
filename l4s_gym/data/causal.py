"""What the kernel knew before it decided.

The log prints the accumulated probability *after* the decision: it is 0 after a random drop or mark, so most dropped
packets can be recognised from the row itself. Here the value before the decision is rebuilt, row by row,
from the kernel's rule (`l4s_gym.data.behaviour`): a packet takes one step of the sum, unless it is guarded.

A row gives the value itself where it was guarded (unchanged) or not reset (minus its own step). After a reset only the
same queue's previous row gives it, and only if that row is the packet just before. What cannot be
proved is marked missing, and a field that the source lacks proves nothing (`l4s_gym.data.evidence`). The rule is
that of the testbed's kernel; for a log of a simulator whose quirks were switched off, use the recorded
`accumulated_probability_before`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.behaviour import HIGH, LOW, before_from_row
from l4s_gym.data.evidence import REQUIRED, SUFFICIENT, columns, guarded, previous
from l4s_gym.data.logs import Records
from l4s_gym.data.pools import Rows
from l4s_gym.data.report import Missing
from l4s_gym.data.stream import join, take
from l4s_gym.errors import L4SError
from l4s_gym.schema import (
    ACTIONS,
    BY_NAME,
    CLASSIC,
    ENQUEUE,
    L4S,
    OBSERVED,
)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_FEWEST_JUDGED: Final = 200
_WHOLE: Final = 0.999
"""Share of a log's judged rows above which it counts as complete (see `evidence`)."""
_FULL_BURST: Final = BY_NAME["burst_allowance"].scale
_ACCUMULATED: Final = OBSERVED.index("accumulated_probability")
_DROPS: Final = OBSERVED.index("total_drops")

BEFORE: Final = {"accumulated_probability": "accumulated_probability_before", "total_drops": "interval_drops"}
"""Observed fields, and where their values before the decision are recorded."""
UNKNOWN: Final = BY_NAME["accumulated_probability_before"].high
"""Stands in `accumulated_probability_before` for a value that is not known: no sum comes near it."""
_NEEDS: Final = {
    "accumulated_probability": REQUIRED,
    "total_drops": frozenset({"queue_type", "total_drops", "drop_probability", "burst_allowance"}),
}
"""Fields needed to rebuild the value of any row at all."""


def _rebuild_queue(rows: Records, present: frozenset[str]) -> tuple[Ints, Bools]:
    """Rebuild the accumulated probability before each decision of a queue (n,), 0 where unknown, and where it is known.

    Rows with all fields of a log are judged by the kernel's counters; others by weaker evidence (`evidence`). Values
    that went through float32 are right to its precision. Rows that an agent decided do not follow the kernel's rule and
    are missing.
    """
    q = columns(rows, present)
    state = guarded(rows, q, present)
    held, stepped, unknown = state == 1, state == 0, state == -1
    hit = q.action != ENQUEUE

    found, known, proved = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    before = previous(rows, q, present)
    own = before_from_row(q.after, q.step, held)
    judged = before.near & (stepped & ~hit & (q.prob > 0))[1:]
    fits = np.abs(own[1:] - before.value) <= q.tolerance[1:]
    # Where the rows that give the sum themselves each follow the row above, assume it for the others too.
    whole = judged.sum() >= _FEWEST_JUDGED and fits[judged].mean() >= _WHOLE
    likely = before.likely | (before.near & whole)
    known[1:], proved[1:] = likely, before.certain
    found[1:][likely] = before.value[likely]

    # From the row itself.
    kept = np.where(hit, q.after >= HIGH, (q.after < HIGH) | ~q.derandomised)
    from_row = (held & ~hit) | (stepped & (q.prob > 0) & kept & (own >= 0))
    # ... unless the row before says otherwise.
    from_row &= ~proved | (np.abs(own - found) <= q.tolerance)

    # From the row before: cleared by probability 0, or by a hit, which needs a large enough sum.
    could_hit = (q.prob > 0) & (~q.derandomised | (found + q.step + q.tolerance >= LOW))
    reset = (q.after == 0) & np.where(hit, stepped & could_hit, (q.prob == 0) & ~held)
    either = np.minimum(np.abs(found - q.after), np.abs(found - (q.after - q.step))) <= q.tolerance
    from_previous = known & (reset | (unknown & ~hit & (q.prob > 0) & either))

    missing = ~(from_row | from_previous) | (rows["decided_by"] != 0)
    return np.where(missing, 0, np.where(from_row, own, found)), missing


def causal_accumulated(rows: Rows) -> Floats:
    """Return the accumulated probability before each decision (T,), recorded or else rebuilt; NaN where missing."""
    return causal_observation(rows)[:, _ACCUMULATED]


def causal_observation(rows: Rows) -> Floats:
    """Return the observed fields as they were before each decision.

    Returns:
        The `OBSERVED` fields in kernel units, shape (T, 8) float64: the accumulated probability before the
        decision, and the drops of the current control interval. NaN where missing.
    """
    return CausalStream(rows.present).observe(rows.records)


def as_logged_observation(rows: Rows) -> Floats:
    """Return the fields as printed, for reproducing earlier work: they reveal most of the drops.

    Returns:
        The `OBSERVED` fields in kernel units, shape (T, 8) float64: the accumulated probability after the
        decision, and the drops since the start. NaN for fields that the source lacks.
    """
    return CausalStream(rows.present, as_logged=True).observe(rows.records)


def observable(present: frozenset[str], as_logged: bool = False) -> list[str]:
    """Return the `OBSERVED` fields that can be known, at least for some rows, from the fields that a source has."""
    if as_logged:
        return [name for name in OBSERVED if name in present]
    return [name for name in OBSERVED if BEFORE.get(name) in present or present >= _NEEDS.get(name, {name})]


class CausalStream:
    """Observed fields before each decision, for rows that come block by block.

    In a log the values of a row follow from the row and its queue's row before, so blocks may be cut anywhere.
    Rows that lack a field of `SUFFICIENT` (pools, csv files) are judged by whole stretches of rows: they must come in
    one block.

    Args:
        present: Names of the fields that the source has.
        as_logged: Give the fields as printed instead (see `as_logged_observation`).
        missing: Counts the rows whose accumulated probability is not known, if the rows have actions.
    """

    def __init__(self, present: frozenset[str], as_logged: bool = False, missing: Missing | None = None) -> None:
        self.present, self.as_logged, self.missing = present, as_logged, missing
        self._rebuilt, self._counted = (present >= _NEEDS[name] and BEFORE[name] not in present for name in BEFORE)
        self._whole = self._rebuilt and not present >= SUFFICIENT and not as_logged
        self._ended = False
        self._last: dict[int, Records] = {}  # the last row (1,) of each queue
        self._base: dict[int, int] = {}  # its drops when the control interval started

    def observe(self, records: Records) -> Floats:
        """Return the `OBSERVED` fields before each decision, in kernel units.

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
        if self.missing is not None and "action" in self.present:
            self.missing.add(records["action"], np.isnan(raw[:, _ACCUMULATED]))
        return raw

    def _observe_queue(self, queue: int, part: Records, raw: Floats, index: Ints) -> None:
        """Set what has to be rebuilt in the rows ``index`` of a queue."""
        last = self._last.get(queue, part[:0])
        rows = join([last, part])
        if self._rebuilt:
            before, missing = _rebuild_queue(rows, self.present)
            raw[index, _ACCUMULATED] = np.where(missing, np.nan, before)[len(last) :]
        if self._counted:
            drops, self._base[queue] = _interval_drops(rows, self.present, self._base.get(queue))
            raw[index, _DROPS] = drops[len(last) :]
        self._last[queue] = part[-1:].copy()


def _interval_drops(part: Records, present: frozenset[str], base: int | None) -> tuple[Ints, int]:
    """Rebuild the drops of a queue since the controller's last update from the total.

    An update shows as a change of probability, old delay or burst allowance; one that changes none of them
    goes unseen. An activation and a renewed allowance change them too, but leave the allowance full, which no
    update does.

    Args:
        part: Rows of one queue (n,).
        present: Names of the fields that they have: without the old delay more updates go unseen.
        base: The total when the first row's interval started; None: it starts with that row.

    Returns:
        The drops (n,), and the total when the last row's interval started.
    """
    total = part["total_drops"].astype(np.int64)
    first = np.zeros(len(part), bool)
    for name in present & {"drop_probability", "queue_delay_old", "burst_allowance"}:
        first[1:] |= part[name][1:] != part[name][:-1]
    first &= part["burst_allowance"] < np.where(part["max_burst"] > 0, part["max_burst"], _FULL_BURST)
    first[1:] |= np.diff(total) < 0  # a new run
    start = np.maximum.accumulate(np.where(first, np.arange(len(part)), 0))
    bases = np.where(start > 0, total[start], total[0] if base is None else base)
    return total - bases, int(bases[-1])


def leak_share(records: Records, accumulated: npt.ArrayLike) -> dict[str, float]:
    """Return how often the accumulated probability is 0 although the drop probability is not, by action.

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
