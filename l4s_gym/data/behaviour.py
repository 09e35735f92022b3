"""The rule by which the testbed's kernel decides, for arrays of logged rows.

    if (queue_delay_old < qdelay_ref / 2 and prob < 20 %) or length_in_bytes <= 1600: enqueue, sum untouched
    if prob == 0: sum = 0;  sum += prob
    sum < 0.85: enqueue;  sum >= 8.5: drop or mark, sum kept;  else so with probability prob (squared in C): sum = 0
    after the line was printed: a packet that is really dropped, and an activation, set the sum to 0

`l4s_gym.sim.dualpi2_freebsd` decides so, packet by packet. The record has everything that the rule uses except the
random numbers, so the probabilities of each logged decision are known exactly, and an imitator can be compared with
the distribution instead of the one draw that was logged.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, BY_NAME, DROP, ENQUEUE, L4S, MARK, MAX_PROB, NOT_ECT

Records = npt.NDArray[np.void]
Floats = npt.NDArray[np.float64]

GUARD_BYTES: Final = 1600
GUARD_PROB: Final = MAX_PROB // 5
LOW: Final = MAX_PROB * 85 // 100
"""No drop or mark below this sum (0.85)."""
HIGH: Final = MAX_PROB * 85 // 10
"""Always a drop or mark from this sum on (8.5)."""
ACTIVE: Final = 1
"""The bit of `status_flags` that says that the controller is active."""
_RANDOM: Final = MAX_PROB + 1
"""Number of values that the kernel's `random()` draws from: 0 to 2^31 - 1."""


def guard(prob: Any, delay_old_us: Any, queue_bytes: Any, ref_us: Any) -> Any:
    """Return whether a packet is enqueued without a look at the probability (scalars or arrays)."""
    return ((delay_old_us < ref_us // 2) & (prob < GUARD_PROB)) | (queue_bytes <= GUARD_BYTES)


def before_from_row(after: Any, step: Any, guarded: Any) -> Any:
    """Return the sum before the decision, from a row that was not reset (scalars or arrays)."""
    return np.where(guarded, after, after - step)


def after_row(after: Any, real_drop: Any, activated: Any) -> Any:
    """Return the sum after the packet, which the queue's next packet finds (scalars or arrays)."""
    return np.where(real_drop | activated, 0, after)


def hit_probability(before: Any, prob: Any, drawn: Any, guarded: Any) -> Floats:
    """Return the probability of a drop or mark (T,).

    Args:
        before: The sum before this packet's step (T,).
        prob: The step, 1/(2^31 - 1) (T,).
        drawn: Probability of a drop or mark where it depends on the random numbers (T,).
        guarded: Packets for which the probability is not looked at (T,).
    """
    total = np.where(prob == 0, 0, before + prob)
    return np.where(guarded | (total < LOW), 0.0, np.where(total >= HIGH, 1.0, drawn))


def action_probabilities(records: Records, explore: float = 0.0) -> Floats:
    """Return the probabilities of the decisions of `dualpi2_freebsd`, with all its quirks.

    A decision is what is logged as `action`. That a drop is withheld, or that the buffer overflows later and loses the
    head of a queue, is not part of it.

    Args:
        records: Rows (T,) of a simulated log.
        explore: Share of the packets for which one of the three actions is drawn evenly instead.

    Returns:
        Probabilities of enqueue, drop and mark (T, 3).

    Raises:
        L4SError: An accumulated probability is unknown (the log is not a simulated one); `explore` is no share.
    """
    if not 0.0 <= explore <= 1.0:
        raise L4SError(f"explore={explore}: give a share from 0 to 1")
    before = records["accumulated_probability_before"]
    if (before == BY_NAME["accumulated_probability_before"].high).any():
        raise L4SError("records: an accumulated probability is unknown: give a log of the simulator")
    prob = records["drop_probability"].astype(np.int64)
    delay, ref, queue_bytes = (
        records[name].astype(np.int64) for name in ("queue_delay_old", "qdelay_ref", "length_in_bytes")
    )
    once = prob / _RANDOM
    drawn = np.where(records["queue_type"] == L4S, once, once * once)
    hit = hit_probability(before.astype(np.int64), prob, drawn, guard(prob, delay, queue_bytes, ref))
    withheld = (records["status_flags"] & ACTIVE == 0) | (records["burst_allowance"] > 0)
    may_mark = (records["ecn"] != NOT_ECT) & (prob < records["max_ecn_threshold"].astype(np.int64) << 18)
    marks = ~withheld & may_mark
    found = np.zeros((len(records), len(ACTIONS)))
    found[:, ENQUEUE] = 1.0 - hit
    found[:, DROP] = np.where(marks, 0.0, hit)
    found[:, MARK] = np.where(marks, hit, 0.0)
    return (1.0 - explore) * found + explore / len(ACTIONS)
