"""CoDel by RFC 8289 section 5, with ECN marking instead of drops; it acts at dequeue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from l4s_gym.schema import DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.discipline import Discipline, NonNegative, Path, Positive, records
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.layout import Row
from l4s_gym.sim.memory import packet_at, queue_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `codel`.

    Attributes:
        target_ms: Target delay.
        interval_ms: Interval.
    """

    target_ms: NonNegative = 5.0
    interval_ms: Positive = 100.0


PARAMETERS: Final[tuple[Row, ...]] = (
    ("target_ns", "i8", "ns", "Target delay."),
    ("interval_ns", "i8", "ns", "Interval."),
)
STATES: Final[tuple[Row, ...]] = (
    ("first_above_ns", "i8", "ns", "When the delay will have been above target for an interval; 0: it is below."),
    ("drop_next_ns", "i8", "ns", "Time of the next drop."),
    ("count", "i8", "packets", "Packets dropped since the dropping state began."),
    ("last_count", "i8", "packets", "`count` when the dropping state began."),
    ("dropping", "i1", "flag", "Whether it is in the dropping state."),
)
STATE: Final = records("codel", PARAMETERS, STATES)


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record: target and interval in ns."""
    target_us = round(1e3 * options.target_ms)
    return {
        "target_us": target_us,
        "target_ns": 1000 * target_us,
        "interval_ns": round(1e6 * options.interval_ms),
    }


@public
def control_law(time_ns: int, count: int, interval_ns: int = 100_000_000) -> int:
    """Return the time of the next drop: `time_ns + interval_ns / sqrt(count)`, ns."""
    return time_ns + int(interval_ns / math.sqrt(count))


@public
def ok_to_drop(
    sojourn_ns: int, queue_bytes: int, now_ns: int, first_above_ns: int, target_ns: int, interval_ns: int
) -> tuple[bool, int]:
    """Return whether the delay has been above target for an interval: (ok, new first_above_time)."""
    if sojourn_ns < target_ns or queue_bytes <= 1500:
        return False, 0
    if first_above_ns == 0:
        return False, now_ns + interval_ns
    return now_ns >= first_above_ns, first_above_ns


@jit
def is_hit(my: Any, mine: Any, sojourn_ns: int, queue_bytes: int, now_ns: int) -> bool:
    """Return whether to drop or mark the packet just dequeued: RFC 8289's `deque` and `dodequeue`, by one packet.

    Args:
        my: Record with `PARAMETERS`.
        mine: The queue's record with `STATES`.
        sojourn_ns: Sojourn of the packet, ns.
        queue_bytes: Bytes in the queue without it.
        now_ns: Time.
    """
    ok, mine.first_above_ns = ok_to_drop(
        sojourn_ns, queue_bytes, now_ns, mine.first_above_ns, my.target_ns, my.interval_ns
    )
    if mine.dropping:
        if not ok:
            mine.dropping = 0
        elif now_ns >= mine.drop_next_ns:
            mine.count += 1
            mine.drop_next_ns = control_law(mine.drop_next_ns, mine.count, my.interval_ns)
            return True
        return False
    if ok:
        mine.dropping = 1
        delta = mine.count - mine.last_count
        recent = now_ns - mine.drop_next_ns < 16 * my.interval_ns
        mine.count = delta if delta > 1 and recent else 1
        mine.drop_next_ns = control_law(now_ns, mine.count, my.interval_ns)
        mine.last_count = mine.count
    return ok


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide at dequeue, for each packet: after a drop the next one is decided too."""
    q = queue_at(env, index)
    if not is_hit(STATE.of_env(env), STATE.of_queue(env, index), q.delay_ns, q.bytes, env.now_ns):
        return ENQUEUE
    return MARK if packet_at(env, p).ecn != NOT_ECT else DROP


CODEL: Final = Discipline(
    name="codel", title="CoDel, RFC 8289", options=Options, records=STATE, setup=setup, decide_at_dequeue=decide
)
