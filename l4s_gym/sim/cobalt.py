"""COBALT with the flow fairness of CAKE (sch_cake): CoDel whose count decays, and BLUE, in the queue of each flow.

CoDel marks or drops; BLUE drops even ECN packets, and acts on flows that overrun the buffer. A queue that has run
empty stays on a separate list until both are at rest. The link itself replaces CAKE's shaper.

Not modelled: tins (there is one, `besteffort`), fairness between hosts (`flows`), the shaper and its overheads, the
filter of ACKs; what `l4s_gym.sim.fair_queueing` leaves out. Real numbers replace the kernel's reciprocal roots: its
own starts at 0, so that the first signal of a queue comes at once instead of an interval after the delay has exceeded
the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from l4s_gym.schema import DROP, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim import fair_queueing
from l4s_gym.sim.discipline import Discipline, NonNegative, Path, Positive, records
from l4s_gym.sim.dualpi2_linux import PSCHED_MTU
from l4s_gym.sim.events import uniform
from l4s_gym.sim.fair_queueing import DECAYING, NONE
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import packet_at, queue_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `cobalt`.

    Attributes:
        target_ms: Target delay.
        interval_ms: Interval, CAKE's `rtt`.
        tuned: Adapt both, and a flow's quantum, to the link's rate, as CAKE does to its `bandwidth`.
    """

    target_ms: NonNegative = 5.0
    interval_ms: Positive = 100.0
    tuned: bool = True


STATE: Final = records(
    "cobalt",
    (
        *fair_queueing.ENV_ROWS,
        ("target_ns", "i8", "ns", "Target delay."),
        ("interval_ns", "i8", "ns", "Interval."),
        ("frame_ns", "i8", "ns", "Link time of a full frame; 0: not used."),
    ),
    (
        *fair_queueing.QUEUE_ROWS,
        ("count", "i8", "-", "CoDel's count, which sets its signal rate; 0: it is at rest."),
        ("next_ns", "i8", "ns", "Time of CoDel's next signal; at rest, the end of its rest."),
        ("dropping", "i1", "flag", "Whether the delay is above the target."),
        ("prob", "f8", "1", "BLUE's drop probability."),
        ("blue_ns", "i8", "ns", "Time of the last change of `prob`."),
    ),
)
of_env, of_queue = STATE.of_env, STATE.of_queue
RISE: Final = 1 / 256
"""Increase of BLUE's probability while the buffer overflows, at most once in a target's time."""
FALL: Final = 1 / 4096
"""Decrease of BLUE's probability while the queue is empty, at most once in a target's time."""
LEAST_QUANTUM: Final = 300


@public
def tune(target_ns: int, interval_ns: int, rate_bps: float) -> tuple[int, int, int, int]:
    """Adapt CAKE's parameters to a rate (`cake_set_rate`): (target, interval, time of a frame, ns; quantum).

    Args:
        target_ns: Target for fast links, ns.
        interval_ns: Interval for fast links, ns.
        rate_bps: Rate, bit/s.
    """
    frame_ns = int(PSCHED_MTU * 8e9 / rate_bps)
    target = max(frame_ns * 3 // 2, target_ns)
    quantum = max(min(int(rate_bps / 8) >> 12, PSCHED_MTU), LEAST_QUANTUM)
    return target, max(interval_ns + target - target_ns, 2 * target), frame_ns, quantum


@public
def control_law(time_ns: int, count: int, interval_ns: int = 100_000_000) -> int:
    """Return the time of the next signal: `time_ns + interval_ns / sqrt(count)`; if count is 0, an interval later."""
    return time_ns + int(interval_ns / math.sqrt(max(count, 1)))


@public
def serve(
    count: int,
    next_ns: int,
    dropping: bool,
    now_ns: int,
    sojourn_ns: int,
    ecn: int,
    blue: bool,
    target_ns: int = 5_000_000,
    interval_ns: int = 100_000_000,
    frame_ns: int = 0,
) -> tuple[int, int, int, bool]:
    """Decide about a packet that leaves its queue (`cobalt_should_drop`), and update the state.

    Args:
        count: CoDel's count.
        next_ns: Time of its next signal, ns.
        dropping: Whether the delay was above the target.
        now_ns: Time, ns.
        sojourn_ns: Sojourn of the packet, ns.
        ecn: Its codepoint.
        blue: Whether BLUE drops it.
        target_ns: Target, ns.
        interval_ns: Interval, ns.
        frame_ns: Time of a frame, ns: a sojourn of four of them is never too long.

    Returns:
        Action, count, next_ns, dropping.
    """
    above = sojourn_ns > target_ns and sojourn_ns > 4 * frame_ns
    due, late = count > 0 and now_ns >= next_ns, now_ns > next_ns
    if above:
        if not dropping:
            next_ns = control_law(now_ns, count, interval_ns)
        count = max(count, 1)
    action = ENQUEUE
    if due and above:
        action = MARK if ecn != NOT_ECT else DROP
        count += 1
        next_ns = control_law(next_ns, count, interval_ns)
        late = now_ns > next_ns
    elif due:
        while count > 0 and now_ns >= next_ns:
            count -= 1
            next_ns = control_law(next_ns, count, interval_ns)
        late = now_ns > next_ns
    if blue:
        action = DROP
    if count == 0:
        next_ns = now_ns + interval_ns
    elif late and action != DROP:
        next_ns = now_ns
    return action, count, next_ns, above


@public
def rest(count: int, next_ns: int, now_ns: int, interval_ns: int = 100_000_000) -> tuple[int, int]:
    """Return CoDel's state after a check of an empty queue (`cobalt_queue_empty`): (count, next_ns)."""
    if count > 0 and now_ns >= next_ns:
        return count - 1, control_law(next_ns, count - 1, interval_ns)
    return count, next_ns


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record, times in ns."""
    target, interval = round(1e6 * options.target_ms), round(1e6 * options.interval_ms)
    frame, quantum = 0, PSCHED_MTU
    if options.tuned:
        target, interval, frame, quantum = tune(target, interval, path.rate_bps)
    times = {"target_us": target // 1000, "target_ns": target, "interval_ns": interval, "frame_ns": frame}
    return {**times, "quantum": quantum}


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide at dequeue; the last packet of a queue is never dropped."""
    my, mine, q, ecn = of_env(env), of_queue(env, index), queue_at(env, index), packet_at(env, p).ecn
    blue = mine.prob > 0.0 and uniform(env) < mine.prob
    count, next_ns, dropping = mine.count, mine.next_ns, mine.dropping != 0
    action, mine.count, mine.next_ns, above = serve(
        count, next_ns, dropping, env.now_ns, q.delay_ns, ecn, blue, my.target_ns, my.interval_ns, my.frame_ns
    )
    mine.dropping = int(above)
    if action == DROP and q.packets == 0:
        return MARK if mine.count > count > 0 and ecn != NOT_ECT else ENQUEUE
    return action


@jit
def _steer(env: Any, index: int, change: float) -> None:
    """Change BLUE's probability, once in a target's time."""
    mine = of_queue(env, index)
    if env.now_ns - mine.blue_ns > of_env(env).target_ns:
        mine.prob = min(max(mine.prob + change, 0.0), 1.0)
        mine.blue_ns = env.now_ns


@jit
def emptied(env: Any, index: int) -> int:
    """Reduce BLUE's probability and the count; the queue leaves the lists once both are at rest."""
    mine = of_queue(env, index)
    if mine.prob > 0.0:
        _steer(env, index, -FALL)
    mine.dropping = 0
    mine.count, mine.next_ns = rest(mine.count, mine.next_ns, env.now_ns, of_env(env).interval_ns)
    return DECAYING if mine.prob > 0.0 or mine.count > 0 or env.now_ns < mine.next_ns else NONE


@jit
def fullest(env: Any) -> int:
    """Return the longest queue in bytes while the buffer is over its limit; steer its AQM (`cobalt_queue_full`)."""
    if not fair_queueing.is_over(env):
        return -1
    index = fair_queueing.longest(env)
    _steer(env, index, RISE)
    mine = of_queue(env, index)
    mine.dropping = 1
    mine.next_ns = env.now_ns
    mine.count = max(mine.count, 1)
    fair_queueing.note_overflow(env, index)
    return index


_move = fair_queueing.mover(STATE)
_fair = fair_queueing.hooks(STATE, _move, emptied)
_pick = _fair.pop("pick")


@jit
def pick(env: Any) -> int:
    """Pick the next queue; one queue that comes to rest is checked before each packet while any waits."""
    if env.packets == 0:
        return -1
    resting = of_env(env).first[DECAYING]
    if resting > 0:
        _move(env, resting, emptied(env, resting))
    return _pick(env)


@jit
def base_probability(env: Any, index: int) -> int:
    """Return BLUE's probability, 1/(2^31 - 1)."""
    return int(of_queue(env, index).prob * MAX_PROB)


COBALT: Final = Discipline(
    name="cobalt",
    title="CAKE's COBALT and flow fairness, sch_cake",
    options=Options,
    records=STATE,
    setup=setup,
    decide_at_dequeue=decide,
    fullest=fullest,
    pick=pick,
    base_probability=base_probability,
    **_fair,
)
