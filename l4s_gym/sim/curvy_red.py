"""The coupled dual queue with Curvy RED (RFC 9332 appendix B), in floating point as in its first pass.

A ramp over the averaged delay of C gives the root of the probability in C; a ramp 2^coupling times as steep gives the
probability in L, which also marks above a threshold. L is dropped only by a full buffer. The listing in the appendix
has 500 ms as the delay below which C is left alone, twice the delay of its full buffer (250 ms); here it is 0.5 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from l4s_gym.schema import DROP, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim.discipline import Discipline, NonNegative, Path, records
from l4s_gym.sim.dualpi2_rfc9332 import SCHEDULER, classify, schedule
from l4s_gym.sim.events import uniform
from l4s_gym.sim.jit import jit, public
from l4s_gym.sim.memory import packet_at, queue_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `curvy_red`.

    Attributes:
        smoothing: A new delay of C enters the average with the weight 2^-smoothing (g_C).
        ramp: C's ramp rises from 0 to 1 over 2^ramp seconds (S_C).
        coupling: L's ramp is 2^coupling times as steep (k').
        least_ms: Delay of C below which C packets are never dropped or marked (minTh).
        step_ms: L packets that have waited longer are marked (T).
        shift_ms: L goes first unless C's head has waited this much longer (tshift); 0: always.
    """

    smoothing: Annotated[int, Meta(ge=0, le=30)] = 5
    ramp: Annotated[int, Meta(ge=-20, le=10)] = -1
    coupling: Annotated[int, Meta(ge=0, le=8)] = 1
    least_ms: NonNegative = 0.5
    step_ms: NonNegative = 1.0
    shift_ms: NonNegative = 50.0


STATE: Final = records(
    "curvy_red",
    (
        *SCHEDULER,
        ("weight", "f8", "1", "Weight of a new delay in the average."),
        ("ramp_c_ns", "f8", "ns", "Length of C's ramp."),
        ("ramp_l_ns", "f8", "ns", "Length of L's ramp."),
        ("least_ns", "f8", "ns", "Average delay at which both begin."),
        ("step_ns", "i8", "ns", "Step threshold of L."),
        ("average_ns", "f8", "ns", "Average delay of C."),
    ),
)
of_env = STATE.of_env


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record: powers of two as numbers, times in ns."""
    o = options
    return {
        "weight": 2.0**-o.smoothing,
        "ramp_c_ns": 1e9 * 2.0**o.ramp,
        "ramp_l_ns": 1e9 * 2.0 ** (o.ramp - o.coupling),
        "least_ns": 1e6 * o.least_ms,
        "step_ns": round(1e6 * o.step_ms),
        "shift_ns": round(1e6 * o.shift_ms),
    }


@public
def update_average(average_ns: float, sojourn_ns: int, weight: float = 1 / 32) -> float:
    """Return the average delay of C after a packet has left it, ns."""
    return average_ns + weight * (sojourn_ns - average_ns)


@public
def on_ramp(average_ns: float, ramp_ns: float = 5e8, least_ns: float = 5e5) -> float:
    """Return the height of a ramp at C's average delay: the probability in L, or its root in C (above 1: always)."""
    return max(average_ns - least_ns, 0.0) / ramp_ns


@public
def decide_classic(root: float, ecn: int, random_1: float, random_2: float) -> int:
    """Decide about a C packet: compare the root of the probability with the larger of two numbers in [0, 1)."""
    if root <= max(random_1, random_2):
        return ENQUEUE
    return DROP if ecn == NOT_ECT else MARK


@public
def decide_l4s(probability: float, sojourn_ns: int, random: float, step_ns: int = 1_000_000) -> int:
    """Decide about an L packet: the step, or the coupled probability against one number in [0, 1)."""
    return MARK if sojourn_ns > step_ns or probability > random else ENQUEUE


@jit
def _number(env: Any, height: float) -> float:
    """Return a random number in [0, 1), where one is needed."""
    return uniform(env) if height > 0.0 else 0.0


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide at dequeue; the delay of a C packet enters the average before its decision."""
    my, delay_ns = of_env(env), queue_at(env, index).delay_ns
    if index == 1:
        probability = on_ramp(my.average_ns, my.ramp_l_ns, my.least_ns)
        return decide_l4s(probability, delay_ns, _number(env, probability), my.step_ns)
    root = on_ramp(update_average(my.average_ns, delay_ns, my.weight), my.ramp_c_ns, my.least_ns)
    return decide_classic(root, packet_at(env, p).ecn, _number(env, root), _number(env, root))


@jit
def after_dequeue(env: Any, index: int, p: int, action: int) -> None:
    """Add every C packet to the average, also if an agent decided about it."""
    if index == 0:
        my = of_env(env)
        my.average_ns = update_average(my.average_ns, queue_at(env, 0).delay_ns, my.weight)


@jit
def pick(env: Any) -> int:
    """Pick the queue by time-shifted FIFO."""
    return schedule(env, of_env(env))


@jit
def base_probability(env: Any, index: int) -> int:
    """Return the root of C's probability, 1/(2^31 - 1)."""
    my = of_env(env)
    return int(min(on_ramp(my.average_ns, my.ramp_c_ns, my.least_ns), 1.0) * MAX_PROB)


CURVY_RED: Final = Discipline(
    name="curvy_red",
    title="dual queue with Curvy RED, RFC 9332 appendix B",
    options=Options,
    records=STATE,
    setup=setup,
    dual=True,
    classify=classify,
    decide_at_dequeue=decide,
    pick=pick,
    after_dequeue=after_dequeue,
    base_probability=base_probability,
)
