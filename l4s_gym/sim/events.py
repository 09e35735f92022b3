"""Event times in a tournament tree, and random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from l4s_gym.sim.jit import jit
from l4s_gym.sim.memory import tree_of


@jit
def set_time(w: Any, slot: int, time_ns: int) -> None:
    """Set the time of a slot: O(log slots), and it stops where nothing changes."""
    tree = tree_of(w)
    node = w.leaves + slot
    tree[node] = time_ns
    node >>= 1
    while node >= 1:
        earliest = min(tree[2 * node], tree[2 * node + 1])
        if tree[node] == earliest:
            return
        tree[node] = earliest
        node >>= 1


@jit
def get_time(w: Any, slot: int) -> int:
    """Time of a slot."""
    return tree_of(w)[w.leaves + slot]


@jit
def first_slot(w: Any) -> int:
    """The slot with the earliest time; among equals the lowest."""
    tree = tree_of(w)
    leaves = w.leaves
    earliest = tree[1]
    node = 1
    while node < leaves:
        node <<= 1
        node += tree[node] != earliest  # no branch: it would be a coin toss for the processor
    return node - leaves


@jit
def random_u64(env: Any) -> Any:
    """Next number of the environment's splitmix64 generator (Steele, Lea, Flood 2014)."""
    env.rng = env.rng + np.uint64(0x9E3779B97F4A7C15)
    z = env.rng
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@jit
def random31(env: Any) -> int:
    """Uniform integer in [0, 2^31), as the kernel's random()."""
    return np.int64(random_u64(env) >> np.uint64(33))  # type: ignore[return-value]


@jit
def random32(env: Any) -> int:
    """Uniform integer in [0, 2^32), as Linux' get_random_u32()."""
    return np.int64(random_u64(env) >> np.uint64(32))  # type: ignore[return-value]


@jit
def uniform(env: Any) -> float:
    """Uniform number in [0, 1)."""
    return np.float64(random_u64(env) >> np.uint64(11)) * (1.0 / 9007199254740992.0)
