"""The queue disciplines that ship, and how the engine calls the one that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import load
from l4s_gym.schema import ENQUEUE, MAX_PROB
from l4s_gym.sim import plugin, router
from l4s_gym.sim.cobalt import COBALT
from l4s_gym.sim.codel import CODEL
from l4s_gym.sim.curvy_red import CURVY_RED
from l4s_gym.sim.discipline import HOOKS, VOID, Discipline
from l4s_gym.sim.dualpi2_freebsd import DUALPI2_FREEBSD
from l4s_gym.sim.dualpi2_linux import DUALPI2_LINUX
from l4s_gym.sim.dualpi2_rfc9332 import DUALPI2_RFC9332, laqm
from l4s_gym.sim.events import head_delay_ns, set_time
from l4s_gym.sim.fifo import FIFO
from l4s_gym.sim.fifo import has_room as fits_buffer
from l4s_gym.sim.fq_codel import FQ_CODEL
from l4s_gym.sim.jit import entry, jit, written
from l4s_gym.sim.layout import DUMMYNET, NEVER, SLOT_UPDATE_C
from l4s_gym.sim.memory import env_record, load64, queue_at
from l4s_gym.sim.pie import PIE
from l4s_gym.sim.red import RED
from l4s_gym.sim.step import STEP

BUILT_IN: Final[tuple[Discipline, ...]] = (
    *(FIFO, RED, CODEL, PIE, DUALPI2_FREEBSD, DUALPI2_RFC9332, DUALPI2_LINUX),
    *(FQ_CODEL, COBALT, CURVY_RED, STEP),
)
AQMS: Final = tuple(each.name for each in BUILT_IN)


PLUGGED: Final = len(BUILT_IN)
"""Number of a discipline from outside; its functions are called by address."""


def is_plugged(name: str) -> bool:
    """Return whether a name is that of a discipline from outside: `module:attribute`."""
    return ":" in name


def get(name: str) -> Discipline:
    """Return the discipline of a name, or that of `module:attribute`.

    Raises:
        L4SError: There is none.
    """
    if is_plugged(name):
        found = load(name, "discipline")
        if not isinstance(found, Discipline):
            raise L4SError(
                f"discipline {name!r}: is of type {type(found).__name__}: give a l4s_gym.sim.discipline.Discipline"
            )
        return found
    for each in BUILT_IN:
        if each.name == name:
            return each
    raise unknown("discipline", name, (*AQMS, "module:attribute"))


def number_of(discipline: Discipline) -> int:
    """Return the discipline's number in the field `aqm` of `layout.ENV`."""
    return BUILT_IN.index(discipline) if discipline in BUILT_IN else PLUGGED


def addresses(discipline: Discipline) -> npt.NDArray[np.int64]:
    """Compile the functions of a discipline from outside, and return their addresses (0: it has none)."""
    out = np.zeros(len(HOOKS), np.int64)
    if discipline in BUILT_IN:
        return out
    for k, (hook, parameters) in enumerate(HOOKS.items()):
        function = getattr(discipline, hook)
        if function is not None:
            arguments = ", ".join(["env", *["int64"] * parameters.count(",")])
            out[k] = plugin.callback(function, f"{'void' if hook in VOID else 'int64'}({arguments})")
    return out


def _dispatch(hook: str, default: Callable[..., Any]) -> Any:
    """Make one compiled function that calls a hook of the running discipline, or else the default."""
    own = {f"_{k}": getattr(each, hook) for k, each in enumerate(BUILT_IN) if getattr(each, hook)}
    given, place = HOOKS[hook], f"load64(env.hooks_at + {8 * list(HOOKS).index(hook)})"
    lines = [f"if env.aqm == {name[1:]}: return {name}({given})" for name in own]
    lines += [f"if env.aqm == {PLUGGED} and {place} != 0: return _call({place}, ({given},))"]
    lines += [f"return _default({given})"]
    call = plugin.call_void if hook in VOID else plugin.call_int
    return written(hook, given, lines, {**own, "_default": default, "_call": call, "load64": load64})


@jit
def _nothing_at(env: Any, index: int, what: int) -> None:
    """Do nothing: the default of a hook."""


@jit
def _nothing_after(env: Any, index: int, p: int, action: int) -> None:
    """Do nothing: the default of a hook."""


@jit
def _enqueue(env: Any, index: int, p: int) -> int:
    return ENQUEUE


@jit
def _zero(env: Any, index: int) -> int:
    return 0


@jit
def _only_queue(env: Any, p: int) -> int:
    return 0


@jit
def _longer(env: Any) -> int:
    if env.limit_packets == 0 or env.packets <= env.limit_packets:
        return -1
    return 1 if queue_at(env, 1).packets > queue_at(env, 0).packets else 0


@jit
def _first(env: Any) -> int:
    return 0 if queue_at(env, 0).packets > 0 else -1


@jit
def _older(env: Any, index: int) -> int:
    return max(head_delay_ns(env, 0), head_delay_ns(env, 1))


@jit
def _sojourn_us(env: Any, index: int) -> int:
    return queue_at(env, index).delay_ns // 1000


@jit
def _ramp(env: Any, p: int) -> int:
    q = queue_at(env, 1)
    return laqm(q.delay_ns, 800_000, 400_000) if q.packets > 0 else 0


# `l4s_gym.sim.discipline.Discipline` describes each hook and its default.
classify = _dispatch("classify", _only_queue)
decide_at_enqueue = _dispatch("decide_at_enqueue", _enqueue)
decide_at_dequeue = _dispatch("decide_at_dequeue", _enqueue)
note_foreign_decision = _dispatch("note_foreign_decision", _nothing_at)
after_decision = _dispatch("after_decision", _nothing_at)
after_enqueue = _dispatch("after_enqueue", _nothing_at)
has_room = _dispatch("has_room", fits_buffer)
fullest = _dispatch("fullest", _longer)
pick = _dispatch("pick", _first)
after_dequeue = _dispatch("after_dequeue", _nothing_after)
_update = _dispatch("update", _older)
base_probability = _dispatch("base_probability", _zero)
accumulated_probability = _dispatch("accumulated_probability", _zero)
burst_allowance_us = _dispatch("burst_allowance_us", _zero)
current_delay_us = _dispatch("current_delay_us", _sojourn_us)
old_delay_us = _dispatch("old_delay_us", _zero)
threshold_l4s = _dispatch("threshold_l4s", _ramp)


@jit
def update(env: Any, slot: int) -> None:
    """Handle the control timer: update now, or once the router's `softclock` has the processor."""
    if env.link == DUMMYNET and router.is_occupied(env):
        env.late |= 1 << (slot - SLOT_UPDATE_C)
        set_time(env, slot, NEVER)
    else:
        control(env, slot)


@jit
def control(env: Any, slot: int) -> None:
    """Update the probability once, and start a new control interval."""
    index = slot - SLOT_UPDATE_C
    env.update_delay_ns += _update(env, index)
    env.updates += 1
    if env.queue_timers:
        queue_at(env, index).interval_drops = 0
    else:
        for k in range(env.n_queues):
            queue_at(env, k).interval_drops = 0
    set_time(env, slot, env.now_ns + env.tupdate_us * 1000)


@jit
def probability(env: Any) -> float:
    """Return the base probability of the discipline, 0 to 1, for the queue with the largest."""
    largest = 0
    for index in range(env.n_queues):
        largest = max(largest, base_probability(env, index))
    return largest / MAX_PROB


@entry
def shown_probability(address: int) -> float:
    """Return `probability` of the environment at an address."""
    return probability(env_record(address))
