"""Fair queueing as in FQ-CoDel and CAKE: deficit round robin over the flows' queues, lists of new and of old ones.

A queue that becomes active joins the new ones, which are served before the old ones; once it has sent its quantum it
joins the old ones, and while it stays active it is served with them one after another (RFC 8290 section 4). Packets
count with their link header.

Each flow has its own queue, and its ACKs, if they cross the bottleneck too, have another, as their addresses
and ports are swapped. Not modelled: queues that a hash gives to several flows.
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.schema import DROP
from l4s_gym.sim.discipline import Records
from l4s_gym.sim.dualpi2_linux import LINK_HEADER
from l4s_gym.sim.events import head_delay_ns
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import Row
from l4s_gym.sim.memory import log_at, packet_at, queue_at

FLOWS: Final = 2
"""Number of the first flow's queue."""
NONE, NEW, OLD, DECAYING = range(4)
"""Lists that a queue may be on; only CAKE has the last one."""
ENV_ROWS: Final[tuple[Row, ...]] = (
    ("quantum", "i8", "B", "Bytes that a queue may send in one turn."),
    ("first", "(4,)i8", "queue", "First queue of each of the lists `NEW`, `OLD`, `DECAYING`; 0: none."),
    ("last", "(4,)i8", "queue", "Their last."),
)
QUEUE_ROWS: Final[tuple[Row, ...]] = (
    ("deficit", "i8", "B", "Bytes that the queue may still send in this turn."),
    ("before", "i8", "queue", "Previous queue in its list; 0: none."),
    ("after", "i8", "queue", "Next queue in its list; 0: none."),
    ("on", "i8", "-", "List that contains the queue."),
)


def mover(state: Records) -> Any:
    """Compile `env`, `index`, `to`: take a queue off its list, and append it to another one or to `NONE`.

    Args:
        state: State of a discipline, with `ENV_ROWS` and `QUEUE_ROWS`.
    """
    of_env, of_queue = state.of_env, state.of_queue

    @jit
    def move(env: Any, index: int, to: int) -> None:
        my, mine = of_env(env), of_queue(env, index)
        if mine.on != NONE:
            if mine.before > 0:
                of_queue(env, mine.before).after = mine.after
            else:
                my.first[mine.on] = mine.after
            if mine.after > 0:
                of_queue(env, mine.after).before = mine.before
            else:
                my.last[mine.on] = mine.before
        mine.on = to
        if to != NONE:
            mine.before, mine.after = my.last[to], 0
            if mine.before > 0:
                of_queue(env, mine.before).after = index
            else:
                my.first[to] = index
            my.last[to] = index

    return move


def hooks(state: Records, move: Any, emptied: Any) -> dict[str, Any]:
    """Return the hooks of fair queueing for a discipline (`l4s_gym.sim.discipline.Discipline`).

    Args:
        state: State of the discipline, with `ENV_ROWS` and `QUEUE_ROWS`.
        move: Its `mover`.
        emptied: Compiled: `env`, `index` -> list for an empty queue whose turn has come.
    """
    of_env, of_queue = state.of_env, state.of_queue

    @jit
    def after_enqueue(env: Any, index: int, p: int) -> None:
        mine = of_queue(env, index)
        if mine.on == NONE or mine.on == DECAYING:
            move(env, index, NEW)
            mine.deficit = of_env(env).quantum

    @jit
    def pick(env: Any) -> int:
        my = of_env(env)
        while True:
            index = my.first[NEW] if my.first[NEW] > 0 else my.first[OLD]
            if index == 0:
                return -1
            mine = of_queue(env, index)
            if mine.deficit <= 0:
                mine.deficit += my.quantum
                move(env, index, OLD)
            elif queue_at(env, index).packets == 0:
                move(env, index, emptied(env, index))
            else:
                return index

    @jit
    def after_dequeue(env: Any, index: int, p: int, action: int) -> None:
        if action != DROP:
            of_queue(env, index).deficit -= packet_at(env, p).len + LINK_HEADER

    return {
        "flow_queues": True,
        "classify": classify,
        "has_room": has_room,
        "after_enqueue": after_enqueue,
        "pick": pick,
        "after_dequeue": after_dequeue,
        "update": update,
    }


@jit
def classify(env: Any, p: int) -> int:
    """Return the queue of the packet's flow, or of its ACKs."""
    a = packet_at(env, p)
    return FLOWS + a.flow + a.ack * env.n_flows


@jit
def has_room(env: Any, p: int) -> int:
    """Let every packet in: if the buffer is then over its limit, the longest queue drops."""
    return 1


@jit
def is_over(env: Any) -> bool:
    """Return whether the buffer is over its limit."""
    return (env.limit_packets > 0 and env.packets > env.limit_packets) or (
        env.limit_bytes > 0 and env.bytes > env.limit_bytes
    )


@jit
def longest(env: Any) -> int:
    """Return the queue with the most bytes."""
    found = FLOWS
    for index in range(FLOWS + 1, env.n_queues):
        if queue_at(env, index).bytes > queue_at(env, found).bytes:
            found = index
    return found


@jit
def note_overflow(env: Any, index: int) -> None:
    """Show in the log that the head of a queue, which was enqueued, is dropped."""
    a = packet_at(env, queue_at(env, index).head)
    if a.record >= 0:
        log_at(env, a.record).applied_action = DROP


@jit
def update(env: Any, index: int) -> int:
    """Return the age of the oldest head, for the statistics."""
    oldest = 0
    for k in range(FLOWS, env.n_queues):
        oldest = max(oldest, head_delay_ns(env, k))
    return oldest
