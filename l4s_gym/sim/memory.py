"""Access to an environment's rows by the addresses in its `ENV` record.

The compiled functions pass one pointer. A view of an array would be about seven words in each call, and a
tuple of ten views made the engine six times slower.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

from l4s_gym.schema import RECORD
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import ENV, FLOW, HIST_BINS, PACKET, QUEUE, RULE


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """Convert an integer address to a pointer, for `numba.carray`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@intrinsic
def load64(typingctx: Any, address: Any) -> Any:
    """Return the int64 at an address (an array's element would need a test for a negative index)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), codegen


@intrinsic
def store64(typingctx: Any, address: Any, value: Any) -> Any:
    """Write an int64 to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _prefetch(typingctx: Any, address: Any) -> Any:
    """Prefetch the cache line at an address for writing; an invalid address does no harm."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_at, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_at, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", (byte_at,), kind)
        builder.call(function, [builder.inttoptr(args[0], byte_at), number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@jit
def prefetch(address: int, size: int) -> None:
    """Prefetch some bytes into the cache while other work goes on."""
    for line in range(address, address + size, 64):
        _prefetch(line)


@intrinsic
def atomic_load64(typingctx: Any, address: Any) -> Any:
    """Return the int64 at an address, as last written by another thread."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store64(typingctx: Any, address: Any, value: Any) -> Any:
    """Write an int64 that other threads see."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store_atomic(args[1], place, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def leading_zeros(typingctx: Any, number: Any) -> Any:
    """Return the number of leading zero bits of an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen


class NamedRecord(types.Record):  # type: ignore[misc]
    """A record type with a short name.

    Numba's own name of a record spells out every field, some 6 kB here, and that name becomes part of the
    symbol of every function that takes one.
    """

    def __init__(self, label: str, dtype: np.dtype[np.void]) -> None:
        plain = numba.from_dtype(dtype)
        super().__init__([(name, field._asdict()) for name, field in plain.fields.items()], plain.size, plain.aligned)
        self.name = label

    def __repr__(self) -> str:  # Numba asks at each step: a list of all fields took 5 % of the compile time
        return str(self.name)

    def typeof(self, key: str) -> Any:
        """Return the type of a field."""
        if key not in self.fields:
            raise TypingError(f"{self.name} has no field {key!r}")
        return super().typeof(key)


register_model(NamedRecord)(models.RecordModel)


RECORDS: Final = {
    label: NamedRecord(label, dtype)
    for label, dtype in (
        ("env", ENV),
        ("queue", QUEUE),
        ("flow", FLOW),
        ("packet", PACKET),
        ("record", RECORD),
        ("rule", RULE),
    )
}


def _opener(record: NamedRecord) -> Any:
    """Make a compiled function that opens the record at an address."""

    @intrinsic
    def open_record(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.int64), codegen

    return open_record


def opener(label: str, dtype: np.dtype[np.void]) -> Any:
    """Make a compiled function that opens the record of `dtype` at an address; each `dtype` has a label."""
    return _opener(NamedRecord(label, dtype))


def own_records(name: str, env: np.dtype[np.void], queue: np.dtype[np.void]) -> tuple[Any, Any]:
    """Make compiled openers of a discipline's own state.

    Args:
        name: Name of the discipline.
        env: Type of its record of an environment.
        queue: Type of its record of each queue.

    Returns:
        `env` -> the environment's record; `env`, `index` -> the queue's.
    """
    label = f"{name}.{hashlib.sha256(repr((env.descr, queue.descr)).encode()).hexdigest()[:12]}"
    open_env, open_queue = opener(f"{label}.env", env), opener(f"{label}.queue", queue)
    size = queue.itemsize

    @jit
    def of_env(env: Any) -> Any:
        return open_env(env.own_at)

    @jit
    def of_queue(env: Any, index: int) -> Any:
        return open_queue(env.own_queue_at + index * size)

    return of_env, of_queue


env_record = _opener(RECORDS["env"])
_queue_record = _opener(RECORDS["queue"])
_flow_record = _opener(RECORDS["flow"])
_packet_record = _opener(RECORDS["packet"])
_log_record = _opener(RECORDS["record"])
_rule_record = _opener(RECORDS["rule"])
_QUEUE_SIZE = QUEUE.itemsize
_FLOW_SIZE = FLOW.itemsize
_PACKET_SIZE = PACKET.itemsize
_LOG_SIZE = RECORD.itemsize


@jit
def queue_at(env: Any, index: int) -> Any:
    """Open queue 0 (C, or the only one), 1 (L), or from 2 on the queues of flows and their ACKs: `QUEUE` record."""
    return _queue_record(env.queue_at + index * _QUEUE_SIZE)


@jit
def flow_at(env: Any, i: int) -> Any:
    """Open flow `i`: `FLOW` record."""
    return _flow_record(env.flow_at + i * _FLOW_SIZE)


@jit
def packet_at(env: Any, p: int) -> Any:
    """Open packet `p` of the pool: `PACKET` record."""
    return _packet_record(env.packet_at + p * _PACKET_SIZE)


@jit
def log_at(env: Any, row: int) -> Any:
    """Open a row of the decision log: `schema.RECORD`."""
    return _log_record(env.log_at + row * _LOG_SIZE)


@jit
def rule_of(env: Any) -> Any:
    """Open the state of the policy's decision rule: `RULE` record."""
    return _rule_record(env.rule_at)


@jit
def rewards_of(env: Any) -> Any:
    """Open the rewards from the start of the episode to the arrival of each logged packet: (log_capacity,) float64."""
    return carray(pointer(env.rewards_at), (env.log_capacity,), np.float64)


@jit
def sojourns_of(env: Any) -> Any:
    """Open the sojourns of logged packets, ns, or `WAITING` or `PUSHED_OUT`: (log_capacity,) int64."""
    return carray(pointer(env.sojourns_at), (env.log_capacity,), np.int64)


@jit
def board_of(env: Any, i: int) -> Any:
    """Open the scoreboard of flow `i`: (window,) uint8."""
    return carray(pointer(env.score_at + i * np.int64(env.window)), (np.int64(env.window),), np.uint8)


@jit
def hist_of(env: Any, index: int) -> Any:
    """Open the sojourn histogram of a class: (HIST_BINS,) int32."""
    return carray(pointer(env.hist_at + index * HIST_BINS * 4), (HIST_BINS,), np.int32)


@jit
def trace_of(env: Any) -> Any:
    """Open delivery opportunities (trace_len,) or pairs of time and factor (2 trace_len,): int64."""
    return carray(pointer(env.trace_row), (2 * env.trace_len,), np.int64)


@jit
def obs_of(env: Any) -> Any:
    """Open the observation: (8,) float32."""
    return carray(pointer(env.obs_at), (8,), np.float32)
