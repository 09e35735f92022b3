"""Event times in a tournament tree, clocks, and random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import DUMMYNET
from l4s_gym.sim.memory import load64, packet_at, queue_at, store64


@jit
def set_time(env: Any, slot: int, time_ns: int) -> None:
    """Set the time of a slot: O(log slots); it stops where nothing changes."""
    tree = env.tree_at
    node = env.leaves + slot
    store64(tree + (node << 3), time_ns)
    node >>= 1
    while node >= 1:
        pair = tree + (node << 4)
        earliest = min(load64(pair), load64(pair + 8))
        at = tree + (node << 3)
        if load64(at) == earliest:
            return
        store64(at, earliest)
        node >>= 1


@jit
def get_time(env: Any, slot: int) -> int:
    """Return the time of a slot."""
    return load64(env.tree_at + ((env.leaves + slot) << 3))


@jit
def first_time(env: Any) -> int:
    """Return the earliest time of all slots."""
    return load64(env.tree_at + 8)


@jit
def first_slot(env: Any) -> int:
    """Return the slot with the earliest time; among equals the lowest."""
    tree = env.tree_at
    leaves = env.leaves
    earliest = load64(tree + 8)
    node = 1
    while node < leaves:
        node <<= 1
        node += load64(tree + (node << 3)) != earliest  # no branch: the processor could not predict it
    return node - leaves


@jit
def clock_ns(env: Any) -> int:
    """Return the discipline's clock: the kernel's moves by whole ticks (AQM_UNOW), the others' is exact."""
    if env.tick_ns > 0:
        return env.clock_ns if env.link == DUMMYNET else env.now_ns - env.now_ns % env.tick_ns
    return env.now_ns


@jit
def head_delay_ns(env: Any, index: int) -> int:
    """Return the age of the head of a queue, 0 where it is empty."""
    head = queue_at(env, index).head
    return 0 if head < 0 else clock_ns(env) - packet_at(env, head).enqueued_ns


@jit
def _mix(z: Any) -> Any:
    """Return the output of splitmix64 for a state (Steele, Lea, Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@jit
def random_u64(env: Any) -> Any:
    """Return the next number of the environment's generator, for decisions about packets."""
    env.rng = env.rng + np.uint64(0x9E3779B97F4A7C15)
    return _mix(env.rng)


@jit
def host_uniform(env: Any) -> float:
    """Return a uniform number in [0, 1) of the hosts' generator, which is separate from the queue's."""
    env.host_rng = env.host_rng + np.uint64(0x9E3779B97F4A7C15)
    return np.float64(_mix(env.host_rng) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@jit
def random31(env: Any) -> int:
    """Return a uniform integer in [0, 2^31), as the kernel's random()."""
    return np.int64(random_u64(env) >> np.uint64(33))  # type: ignore[return-value]


@jit
def random32(env: Any) -> int:
    """Return a uniform integer in [0, 2^32), as Linux' get_random_u32()."""
    return np.int64(random_u64(env) >> np.uint64(32))  # type: ignore[return-value]


@jit
def uniform(env: Any) -> float:
    """Return a uniform number in [0, 1)."""
    return np.float64(random_u64(env) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@intrinsic
def _pcg64(typingctx: Any, address: Any) -> Any:
    """Return the next number of the PCG64 (O'Neill 2014, XSL RR) with state and increment (128 bits) at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        place = builder.inttoptr(args[0], wide.as_pointer())
        step = builder.gep(place, [ir.Constant(ir.IntType(32), 1)])
        factor = ir.Constant(wide, 0x2360ED051FC65DA44385DF649FCCF645)
        state = builder.add(builder.mul(builder.load(place, align=8), factor), builder.load(step, align=8))
        builder.store(state, place, align=8)
        high = builder.trunc(builder.lshr(state, ir.Constant(wide, 64)), word)
        mixed = builder.xor(high, builder.trunc(state, word))
        turn = builder.lshr(high, ir.Constant(word, 58))
        back = builder.and_(builder.neg(turn), ir.Constant(word, 63))
        return builder.or_(builder.lshr(mixed, turn), builder.shl(mixed, back))

    return types.uint64(types.int64), codegen


@jit
def pcg64_uniform(address: int) -> float:
    """Return a uniform number in [0, 1), as `numpy.random.Generator.random` draws it from the PCG64 at an address."""
    return np.float64(_pcg64(address) >> np.uint64(11)) * (1.0 / 9007199254740992.0)
