"""Open loop: a queue discipline behind a link, with given packets instead of senders.

For packets of a capture, and to compare a discipline with another implementation, record for record.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import carray

from l4s_gym.errors import L4SError
from l4s_gym.sim import disciplines, layout, link
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.events import get_time
from l4s_gym.sim.jit import entry, jit
from l4s_gym.sim.layout import NEVER, SLOT_UPDATE_C, SLOT_UPDATE_L
from l4s_gym.sim.memory import env_record, packet_at, pointer
from l4s_gym.sim.options import Options
from l4s_gym.sim.packets import allocate, renew
from l4s_gym.sim.scenario import Link, Scenario, Source

ARRIVAL: Final = np.dtype(
    [("time_ns", "i8"), ("length", "i4"), ("flow", "i4"), ("ecn", "i4"), ("action", "i4")], align=True
)
"""A packet that arrives: time, IP length in bytes, flow, ECN codepoint, action (-1: the discipline decides)."""
_FLOWS = 256


@jit
def _run_until(env: Any, time_ns: int, rest: bool) -> None:
    """Handle all events up to a time: the link's first, then the updates. `rest`: only while packets are queued."""
    while True:
        slot = SLOT_UPDATE_C if get_time(env, SLOT_UPDATE_C) <= get_time(env, SLOT_UPDATE_L) else SLOT_UPDATE_L
        due = get_time(env, slot)
        if min(due, env.link_at) > time_ns or (rest and env.busy == 0):
            return
        if env.link_at <= due:
            env.now_ns = env.link_at
            link.on_link(env)
        else:
            env.now_ns = due
            disciplines.update(env, slot)


@entry
def _offer(address: int, arrivals_at: int, count: int) -> int:
    env = env_record(address)
    rows = carray(pointer(arrivals_at), (count, 3), np.int64)
    for k in range(count):
        _run_until(env, rows[k, 0], False)
        env.now_ns = rows[k, 0]
        if env.in_flight >= env.pool - 1:
            return k
        p = allocate(env)
        renew(env, p, rows[k, 1] >> 32, 0)
        a = packet_at(env, p)
        a.len = rows[k, 1] & 0xFFFF
        a.ecn = rows[k, 2] & 0xFFFF
        link.enqueue_or_drop(env, p, rows[k, 2] >> 32)
    _run_until(env, NEVER, True)
    return count


def open_loop(rate_mbps: float, *, options: Options | None = None, limit_packets: int = 0) -> Scenario:
    """Make a scenario for `offer`: a link of constant rate and no senders.

    Args:
        rate_mbps: Rate of the link.
        options: Options of the disciplines.
        limit_packets: Buffer in packets; 0: 250 ms.
    """
    short = Source(kind="cbr", count=_FLOWS - 1, packet_length=60, start_s=1e6)
    full = Source(kind="cbr", packet_length=1500, start_s=1e6)
    chosen = Link(rate_mbps=rate_mbps, limit_packets=limit_packets)
    return Scenario("open-loop", (short, full), horizon_s=1e6, link=chosen, options=options or Options())


def offer(
    scenario: Scenario, arrivals: npt.NDArray[np.void], *, aqm: str | None = None, seed: int = 0
) -> npt.NDArray[np.void]:
    """Offer packets to a queue discipline.

    Args:
        scenario: Made by `open_loop`.
        arrivals: Packets (T,) `ARRIVAL`, in order of time; flows below 256, lengths of 60 B or more.
        aqm: Discipline; None: the scenario's.
        seed: State of the generator at the start.

    Returns:
        A row of the decision log for each packet, (T,) `schema.RECORD`; at the end the queues are empty.

    Raises:
        L4SError: The times run backwards, or more packets are queued than the buffer's pool holds.
    """
    rows = np.ascontiguousarray(arrivals, ARRIVAL)
    if len(rows) == 0 or (np.diff(rows["time_ns"]) < 0).any() or rows["time_ns"][0] < 0:
        raise L4SError("arrivals: give at least one, in order of time, from 0 on")
    if not ((rows["flow"] >= 0) & (rows["flow"] < _FLOWS)).all():
        raise L4SError(f"arrivals: flows are numbers from 0 to {_FLOWS - 1}")
    batch = Batch(scenario, aqm=aqm, log_rows=len(rows))
    batch.reset(0, np.random.default_rng(seed))
    batch.env["rng"] = seed
    done = _offer(batch.address, rows.ctypes.data, len(rows))
    if done < len(rows):
        raise L4SError(f"arrivals[{done}]: no room in the packet pool; give longer packets or a smaller buffer")
    assert batch.status[0] != layout.POOL_EMPTY
    return batch.drain_log(0, everything=True)
