"""Interface of a queue discipline: one module, or one object of a user's own.

A discipline is a `Discipline`: a name, an options structure in the units of its own law, rows that describe its state,
and compiled functions that the engine calls (decorated with `l4s_gym.sim.jit.jit`). `env` is the environment's record
(`layout.ENV`), `index` a queue (0 C or the only one, 1 L), `p` a packet (`memory.packet_at`). Whatever a function
keeps as state is in its own records, which `records` opens. `l4s_gym/sim/red.py` is a short example, and
`examples/pi2.py` one from outside: ``aqm="pi2:PI2"``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from l4s_gym.errors import L4SError
from l4s_gym.sim.layout import Row, dtype_of
from l4s_gym.sim.memory import own_records

Positive = Annotated[float, Meta(gt=0.0, le=1e9)]
NonNegative = Annotated[float, Meta(ge=0.0, le=1e9)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Interval = Annotated[float, Meta(ge=0.001, le=1e9)]
Gain = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]


class NoOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a discipline without options."""


class Path(NamedTuple):
    """Facts about the link for the setup of a discipline.

    Attributes:
        rate_bps: Rate, bit/s (of a trace: its mean).
        packet_bytes: Length of the longest packets that the sources send, bytes.
        buffer_bytes: Size of the buffer, bytes.
    """

    rate_bps: float
    packet_bytes: int
    buffer_bytes: float


class Tuned(NamedTuple):
    """A field of a discipline that may be scaled while it runs.

    Attributes:
        name: Of the field, among those that `setup` returns.
        least: Smallest value with which the law works as it should.
        most: Largest one; all within these bounds stay within what the law's arithmetic holds.
    """

    name: str
    least: int
    most: int


def tuned_fields(
    tune: tuple[Tuned, ...], given: npt.NDArray[np.int64], factors: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Values of the fields `tune` for factors of the operator's values, rounded and held within their bounds.

    Args:
        tune: K fields.
        given: The operator's values (..., K).
        factors: (..., K).

    Raises:
        L4SError: An operator's value lies outside the bounds.
    """
    least, most = (np.array(bounds) for bounds in list(zip(*tune, strict=True))[1:])
    outside = (given < least) | (given > most)
    if outside.any():
        each = tune[int(np.nonzero(outside)[-1][0])]
        raise L4SError(f"{each.name}: the operator's value must be from {each.least} to {each.most} to be scaled")
    return np.clip(np.rint(given * factors).astype(np.int64), least, most)


class Records(NamedTuple):
    """A discipline's own state.

    Attributes:
        env: NumPy type of its record of an environment.
        queue: NumPy type of its record of each queue.
        of_env: Compiled: `env` -> the environment's record.
        of_queue: Compiled: `env`, `index` -> the queue's record.
        env_rows: The fields of an environment, with descriptions.
        queue_rows: The fields of a queue.
    """

    env: np.dtype[np.void]
    queue: np.dtype[np.void]
    of_env: Any
    of_queue: Any
    env_rows: tuple[Row, ...]
    queue_rows: tuple[Row, ...]


def records(name: str, env: tuple[Row, ...] = (), queue: tuple[Row, ...] = ()) -> Records:
    """Make the types and openers of a discipline's own state.

    Args:
        name: Name of the discipline.
        env: Fields that an environment has once, parameters among them.
        queue: Fields that each queue has.
    """
    env_type, queue_type = dtype_of(env), dtype_of(queue)
    return Records(env_type, queue_type, *own_records(name, env_type, queue_type), env, queue)


@dataclass(frozen=True, kw_only=True, eq=False)
class Discipline:
    """A queue discipline; every function is optional, and its default is given after "Without".

    Attributes:
        name: Name in scenarios and commands.
        title: One line: its kind and its source.
        options: Structure of its options.
        records: Types and openers of its own state.
        setup: Options, link -> values of its own fields (a queue's field: the start of all queues), and of the fields
            of `layout.ENV` that rows of the log show: `target_us`, `tupdate_us`, `max_burst_us`, `alpha`, `beta`, ...
        dual: Whether it has the queues C and L; if not, packets are classed C and L for the statistics only.
        flow_queues: Whether each flow has a queue of its own, from queue 2 on, and then each flow's ACKs have one.
        queue_timers: Whether it starts a control timer for each queue by itself; else one runs from the start.
        most_packets: Largest buffer in packets, which are then counted instead of bytes; 0: in bytes.
        classify: env, p -> queue of an arriving packet. Without: 0.
        decide_at_enqueue: env, index, p -> action for a packet that arrives. It may set `env.logged` if the log
            must show another one. Without: enqueue.
        decide_at_dequeue: env, index, p -> action for a packet that has been taken from its queue, whose sojourn is
            `queue_at(env, index).delay_ns`. Without: enqueue (leave it as it is).
        note_foreign_decision: env, index, action: an agent has decided instead.
        after_decision: env, index, action: after any decision and its row of the log.
        after_enqueue: env, index, p: the packet has joined its queue.
        has_room: env, p -> whether there is room for an arriving packet (1 or 0). Without: within the buffer.
        fullest: env -> queue that loses its head while the buffer is over its limit, or -1; asked until it returns
            -1. Without: the longer one while the buffer is over a limit in packets.
        pick: env -> queue to serve next, or -1. Without: queue 0 while it holds packets.
        after_dequeue: env, index, p, action: a packet has left its queue, and was dropped if `action` says so.
        update: env, index -> queue delay, ns, for the statistics: each `tupdate_us`. Without: the older head's age.
        base_probability: env, index -> the controller's probability, 1/(2^31 - 1). Without: 0.
        accumulated_probability: env, index -> its accumulated probability, 1/(2^31 - 1). Without: 0.
        burst_allowance_us: env, index -> time left in which nothing is dropped, us. Without: 0.
        current_delay_us: env, index -> queue delay that it uses, us. Without: sojourn of the last packet that left.
        old_delay_us: env, index -> queue delay at the last update, us. Without: 0.
        threshold_l4s: env, p -> probability by which L's own threshold or ramp marks a packet that has been taken from
            L, 2^-32. Without: RFC 9332's ramp with its defaults.
        tune: The fields that `L4S-DualPI2-Tune-v0` scales. Without: it does not take the discipline.
    """

    name: str
    title: str
    options: type[Struct] = NoOptions
    records: Records
    setup: Callable[[Any, Path], Mapping[str, Any]] = lambda options, path: {}
    dual: bool = False
    flow_queues: bool = False
    queue_timers: bool = False
    most_packets: int = 0
    classify: Any = None
    decide_at_enqueue: Any = None
    decide_at_dequeue: Any = None
    note_foreign_decision: Any = None
    after_decision: Any = None
    after_enqueue: Any = None
    has_room: Any = None
    fullest: Any = None
    pick: Any = None
    after_dequeue: Any = None
    update: Any = None
    base_probability: Any = None
    accumulated_probability: Any = None
    burst_allowance_us: Any = None
    current_delay_us: Any = None
    old_delay_us: Any = None
    threshold_l4s: Any = None
    tune: tuple[Tuned, ...] = ()


HOOKS: Final = {
    **{
        "classify": "env, p",
        "has_room": "env, p",
        "fullest": "env",
        "pick": "env",
        "after_dequeue": "env, index, p, action",
    },
    **dict.fromkeys(("decide_at_enqueue", "decide_at_dequeue", "after_enqueue"), "env, index, p"),
    **dict.fromkeys(("note_foreign_decision", "after_decision"), "env, index, action"),
    **dict.fromkeys(("update", "base_probability", "accumulated_probability"), "env, index"),
    **dict.fromkeys(("burst_allowance_us", "current_delay_us", "old_delay_us"), "env, index"),
    "threshold_l4s": "env, p",
}
"""The functions of a discipline and their parameters, in the order of their addresses."""
VOID: Final = ("note_foreign_decision", "after_decision", "after_enqueue", "after_dequeue")
"""Hooks that return nothing."""
