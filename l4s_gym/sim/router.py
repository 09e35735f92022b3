"""The testbed's router: dummynet's pipe as FreeBSD runs it, on one processor that prints a line for each packet.

The pipe follows `sys/netpfil/ipfw/ip_dn_io.c` of FreeBSD 14 (`dummynet_io`, `serve_sched`, `transmit_event`,
`dummynet_task`), with `net.inet.ip.dummynet.io_fast` at its default, 0:

- a packet for an idle pipe is served at once; on the first packet of a tick the credit starts at 0, else what
  is left of it counts, so that some 10 ms worth of packets pass without waiting;
- the credit is bits; it may fall below zero, and then the pipe is busy for the ticks that pay for it, and the last
  packet of the batch leaves so much later;
- a served packet waits `delay` ticks in the delay line, and leaves when the task runs;
- the task runs once a tick. Where it runs late, its clock (and so every delay in the log) jumps by the ticks that
  were missed, and the credit grows by as much.

The authors' files do not say how the router's processor behaved; their log does. In the public consecutive rows
(`benchmarks/studies/sim_to_real`), where the clock can be rebuilt, up to about eighty packets enter a pipe that is not
served for 30 to 190 ms, the controllers' updates (every 15 ms) stop as well, and then the queue drains at once.
So it is modelled as one processor (VirtualBox's default), shared by three threads of the kernel:

- the network cards' (`taskqgroup`, `PI_SOFT`) takes packets from the rings one by one through ipfw into the pipe,
  up to 16 of one card, then of the next (`iflib.c`): the hosts, each at its own card, have equal shares of it;
- `softclock` (`PI_SOFT` as well) starts the task and the controllers' updates. Equals do not preempt each other: it
  waits until the rings are empty or that thread's time slice is over (`sched_ule.c`: a tenth of a second);
- the task's (`PI_NET`, more urgent) sends what is due, before anything else runs: packets of the first crossing
  meet the rule again on the way out and enter the pipe once more.

At each entry the modified scheduler prints its log line with the pipe locked; `row_ns` is the time for that.

The same rows also show pauses in which almost nothing is printed: the machine, or its console, stops.
They come at no fixed time (`benchmarks/studies/sim_to_real` measures length and gaps); `pause_ns` is their length, and
the gaps are drawn. Nothing runs in a pause, and the clock jumps after it.
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.sim.jit import jit
from l4s_gym.sim.memory import flow_at, packet_at
from l4s_gym.sim.packets import release

CARDS: Final = 4
LINE: Final = CARDS
OUT: Final = CARDS + 1
"""Lists of packets: the rings of the network cards, then the delay line, then what the task sends."""
RING: Final = 1024
"""Packets that a network card holds (if_em's default); further packets are lost before the queue sees them."""
BUDGET: Final = 16
"""Packets that the thread takes from one network card before it looks at the next (iflib's `rx_budget`)."""


@jit
def _push(env: Any, k: int, p: int) -> None:
    """Append a packet to a list."""
    packet_at(env, p).next = -1
    if env.list_tail[k] >= 0:
        packet_at(env, env.list_tail[k]).next = p
    else:
        env.list_head[k] = p
    env.list_tail[k] = p


@jit
def _pull(env: Any, k: int) -> int:
    """Remove the head of a list, or -1."""
    p = env.list_head[k]
    if p >= 0:
        env.list_head[k] = packet_at(env, p).next
        if env.list_head[k] < 0:
            env.list_tail[k] = -1
    return p


@jit
def waits_in_ring(env: Any) -> bool:
    """Return whether the packet that arrives waits in the ring of its network card until the processor takes it."""
    if env.called == 2:
        env.called = 1
        return False
    p = env.arriving
    env.arriving = -1
    a = packet_at(env, p)
    k = 0 if a.ack else flow_at(env, a.flow).card
    if env.ring_size[k] == RING:
        flow_at(env, a.flow).drops += 1
        release(env, p)
        return True
    _push(env, k, p)
    env.ring_size[k] += 1
    env.in_rings += 1
    if env.called == 0:  # an idle processor takes it at once
        env.link_at = env.now_ns
    return True


@jit
def leave_ring(env: Any) -> int:
    """Return the next packet from the network cards, or -1: up to `BUDGET` of one card, then the next one's turn."""
    if env.in_rings == 0:
        return -1
    while env.budget == 0 or env.list_head[env.card] < 0:
        env.card = (env.card + 1) % CARDS
        env.budget = BUDGET
    env.budget -= 1
    env.in_rings -= 1
    env.ring_size[env.card] -= 1
    return _pull(env, env.card)


@jit
def enter_line(env: Any, p: int) -> None:
    """Put a served packet into the delay line."""
    packet_at(env, p).due_ns = env.clock_ns + env.pipe_ns
    _push(env, LINE, p)


@jit
def transmit(env: Any) -> None:
    """Move due packets from the delay line to the packets to be sent; stop at the first that is not due."""
    while env.list_head[LINE] >= 0 and packet_at(env, env.list_head[LINE]).due_ns <= env.clock_ns:
        _push(env, OUT, _pull(env, LINE))


@jit
def leave_out(env: Any) -> int:
    """Return the next packet that the task sends, or -1."""
    return _pull(env, OUT)


@jit
def is_occupied(env: Any) -> bool:
    """Return whether `softclock` has to wait: a line is being printed, or packets with priority wait."""
    return env.called != 0 and (env.link_at > env.now_ns or env.list_head[OUT] >= 0 or env.in_rings > 0)
