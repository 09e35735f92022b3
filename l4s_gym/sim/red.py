"""RED with the gentle slope and ECN (Floyd and Jacobson 1993; RFC 2309; RFC 3168 section 7).

Thresholds are in packets; the engine derives them from delays at the link's rate.
"""

from __future__ import annotations

from typing import Any

from l4s_gym.schema import DROP, ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.events import uniform
from l4s_gym.sim.jit import jit, public


@public
def update_average(average: float, packets: int, idle_packets: float, weight: float = 0.002) -> float:
    """The moving average of the queue length, at an arrival.

    Args:
        average: Average so far, packets.
        packets: Queue length now, packets.
        idle_packets: How many packets could have been sent while the queue was empty.
        weight: Weight of a new sample.
    """
    if idle_packets > 0.0:
        average *= (1.0 - weight) ** idle_packets
    return average + weight * (packets - average)


@public
def probability(average: float, min_th: float, max_th: float, max_p: float = 0.1) -> float:
    """Initial hit probability: 0 below `min_th`, `max_p` at `max_th`, 1 at 2 x `max_th` (gentle)."""
    if average < min_th:
        return 0.0
    if average < max_th:
        return max_p * (average - min_th) / (max_th - min_th)
    if average < 2.0 * max_th:
        return max_p + (1.0 - max_p) * (average - max_th) / max_th
    return 1.0


@public
def spread(prob: float, since_action: int) -> float:
    """Probability after `since_action` packets without a hit, so that hits are evenly spread (1993, section 4)."""
    return 1.0 if since_action * prob >= 1.0 else prob / (1.0 - since_action * prob)


@jit
def decide(env: Any, q: Any, ecn: int) -> int:
    """The engine's call at enqueue."""
    idle = 0.0
    if q.packets == 0:
        idle = (env.now_ns - q.idle_ns) / (env.ns_per_byte * 1500.0)
    q.average = update_average(q.average, q.packets, idle, env.red_weight)
    q.prob = probability(q.average, env.red_min, env.red_max, env.red_max_p)
    if q.prob <= 0.0:
        q.since_action = -1
        return ENQUEUE
    q.since_action += 1
    if q.prob < 1.0 and uniform(env) >= spread(q.prob, q.since_action):
        return ENQUEUE
    q.since_action = 0
    return DROP if ecn == NOT_ECT or q.prob >= 1.0 else MARK
