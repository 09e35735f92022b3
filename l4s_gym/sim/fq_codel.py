"""FQ-CoDel (RFC 8290): CoDel in the queue of each flow, and fair queueing between them.

As in Linux (sch_fq_codel), a queue counts as short by the bytes of all queues, and a threshold for L4S
(`ce_threshold` with `ce_threshold_selector 0x1/0x3`) may mark at once. Not modelled: what Linux adds to CoDel's count
for packets that a full buffer drops; its memory limit; what `l4s_gym.sim.fair_queueing` leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from l4s_gym.schema import DROP, ECT_1, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim import codel, fair_queueing
from l4s_gym.sim.discipline import Discipline, NonNegative, Path, Positive, records
from l4s_gym.sim.fair_queueing import NEW, NONE, OLD
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import packet_at, queue_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `fq_codel`.

    Attributes:
        target_ms: CoDel's target delay.
        interval_ms: CoDel's interval.
        quantum: Bytes of frames that a flow may send in one turn.
        ce_threshold_ms: Mark ECT(1) packets that have waited longer, whatever CoDel does; 0: off.
    """

    target_ms: NonNegative = 5.0
    interval_ms: Positive = 100.0
    quantum: Annotated[int, Meta(ge=256, le=1_000_000)] = 1514
    ce_threshold_ms: NonNegative = 0.0


STATE: Final = records(
    "fq_codel",
    (
        *fair_queueing.ENV_ROWS,
        *codel.PARAMETERS,
        ("ce_threshold_ns", "i8", "ns", "Delay above which ECT(1) packets are marked; 0: off."),
        ("lost", "i8", "packets", "Packets that the longest queue has dropped while over the limit; 0: not over it."),
        ("lost_from", "i8", "queue", "The longest queue at that time."),
        ("lost_down_to", "i8", "B", "Half of the bytes that it held then."),
    ),
    (*fair_queueing.QUEUE_ROWS, *codel.STATES),
)
of_env, of_queue = STATE.of_env, STATE.of_queue
BATCH: Final = 64
"""Most packets dropped from the longest queue at once."""


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record, times in ns."""
    return {
        **codel.setup(codel.Options(options.target_ms, options.interval_ms), path),
        "quantum": options.quantum,
        "ce_threshold_ns": round(1e6 * options.ce_threshold_ms),
    }


@public
def exceeds_ce_threshold(ecn: int, sojourn_ns: int, ce_threshold_ns: int) -> bool:
    """Return whether to mark a packet at once, for a threshold above 0."""
    return ecn == ECT_1 and 0 < ce_threshold_ns < sojourn_ns


@public
def loses_more(lost: int, queue_bytes: int, down_to_bytes: int) -> bool:
    """Return whether the longest queue drops another packet: half of its bytes, but at most `BATCH` packets.

    Args:
        lost: Packets that it has lost, 1 or more.
        queue_bytes: What it holds now.
        down_to_bytes: Half of what it held.
    """
    return lost < BATCH and queue_bytes > down_to_bytes


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide at dequeue."""
    my, ecn, delay_ns = of_env(env), packet_at(env, p).ecn, queue_at(env, index).delay_ns
    if codel.is_hit(my, of_queue(env, index), delay_ns, env.bytes, env.now_ns):
        return MARK if ecn != NOT_ECT else DROP
    return MARK if exceeds_ce_threshold(ecn, delay_ns, my.ce_threshold_ns) else ENQUEUE


@jit
def emptied(env: Any, index: int) -> int:
    """Return the list for an empty queue: a new one joins the old ones, so that it cannot starve them (section 4.2)."""
    mine = of_queue(env, index)
    mine.first_above_ns = 0
    mine.dropping = 0
    return OLD if mine.on == NEW and of_env(env).first[OLD] > 0 else NONE


@jit
def fullest(env: Any) -> int:
    """Return the longest queue in bytes, until it has dropped half of them or `BATCH` packets (section 4.1)."""
    my = of_env(env)
    if my.lost > 0 and not loses_more(my.lost, queue_at(env, my.lost_from).bytes, my.lost_down_to):
        my.lost = 0
    if my.lost == 0:
        if not fair_queueing.is_over(env):
            return -1
        my.lost_from = fair_queueing.longest(env)
        my.lost_down_to = queue_at(env, my.lost_from).bytes - (queue_at(env, my.lost_from).bytes >> 1)
    my.lost += 1
    fair_queueing.note_overflow(env, my.lost_from)
    return my.lost_from


FQ_CODEL: Final = Discipline(
    name="fq_codel",
    title="FQ-CoDel, RFC 8290",
    options=Options,
    records=STATE,
    setup=setup,
    decide_at_dequeue=decide,
    fullest=fullest,
    **fair_queueing.hooks(STATE, fair_queueing.mover(STATE), emptied),
)
