"""RED with the gentle slope and ECN (Floyd and Jacobson 1993; RFC 2309; RFC 3168 section 7).

Thresholds are in packets; `setup` derives them from delays at the link's rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from l4s_gym.schema import DROP, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim.discipline import Discipline, Fraction, Path, Positive, records
from l4s_gym.sim.events import uniform
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import packet_at, queue_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `red`.

    Attributes:
        min_ms: Lower threshold, as the delay at the link's rate.
        max_ms: Upper threshold, as the delay at the link's rate.
        max_p: Probability at the upper threshold.
        weight: Weight of a new sample.
    """

    min_ms: Positive = 15.0
    max_ms: Positive = 45.0
    max_p: Fraction = 0.1
    weight: Fraction = 0.002


STATE: Final = records(
    "red",
    (
        ("least", "f8", "packets", "Lower threshold."),
        ("most", "f8", "packets", "Upper threshold."),
        ("max_p", "f8", "1", "Probability at the upper threshold."),
        ("weight", "f8", "1", "Weight of a new sample."),
        ("average", "f8", "packets", "Moving average of the queue's length."),
        ("prob", "f8", "1", "Initial probability of a drop or mark."),
        ("since_action", "i8", "packets", "Packets since the last drop or mark; -1: average below the threshold."),
    ),
)
of_env = STATE.of_env


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record: thresholds in packets, from delays at the link's rate."""
    packet_s = path.packet_bytes * 8 / path.rate_bps
    return {
        "least": options.min_ms * 1e-3 / packet_s,
        "most": options.max_ms * 1e-3 / packet_s,
        "max_p": options.max_p,
        "weight": options.weight,
        "since_action": -1,
    }


@public
def update_average(average: float, packets: int, idle_packets: float, weight: float = 0.002) -> float:
    """Return the moving average of the queue length, at an arrival.

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
    """Return the initial probability of a drop or mark: 0 below `min_th`, `max_p` at `max_th`, 1 at 2 x `max_th`."""
    if average < min_th:
        return 0.0
    if average < max_th:
        return max_p * (average - min_th) / (max_th - min_th)
    if average < 2.0 * max_th:
        return max_p + (1.0 - max_p) * (average - max_th) / max_th
    return 1.0


@public
def spread(prob: float, since_action: int) -> float:
    """Return the probability after `since_action` packets without drop or mark; it spreads them evenly (section 4)."""
    return 1.0 if since_action * prob >= 1.0 else prob / (1.0 - since_action * prob)


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide at enqueue."""
    q, my = queue_at(env, index), of_env(env)
    idle = 0.0
    if q.packets == 0:
        idle = (env.now_ns - q.idle_ns) / (env.ns_per_byte * 1500.0)
    my.average = update_average(my.average, q.packets, idle, my.weight)
    my.prob = probability(my.average, my.least, my.most, my.max_p)
    if my.prob <= 0.0:
        my.since_action = -1
        return ENQUEUE
    my.since_action += 1
    if my.prob < 1.0 and uniform(env) >= spread(my.prob, my.since_action):
        return ENQUEUE
    my.since_action = 0
    return DROP if packet_at(env, p).ecn == NOT_ECT or my.prob >= 1.0 else MARK


@jit
def base_probability(env: Any, index: int) -> int:
    """Return the initial probability, 1/(2^31 - 1)."""
    return int(of_env(env).prob * MAX_PROB)


RED: Final = Discipline(
    name="red",
    title="RED with the gentle slope (Floyd and Jacobson 1993)",
    options=Options,
    records=STATE,
    setup=setup,
    decide_at_enqueue=decide,
    base_probability=base_probability,
)
