"""One queue that marks above a threshold, as switches do for DCTCP (RFC 8257); only a full buffer drops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from l4s_gym.schema import ENQUEUE, MARK, NOT_ECT
from l4s_gym.sim.discipline import Count, Discipline, NonNegative, Path, records
from l4s_gym.sim.dualpi2_linux import exceeds_step
from l4s_gym.sim.jit import jit
from l4s_gym.sim.memory import packet_at, queue_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `step`.

    Attributes:
        threshold_ms: ECN packets that have waited longer are marked at dequeue.
        threshold_packets: ECN packets that leave more packets behind are marked, instead of `threshold_ms`; 0: by time.
    """

    threshold_ms: NonNegative = 1.0
    threshold_packets: Count = 0


STATE: Final = records(
    "step",
    (
        ("step_ns", "i8", "ns", "Threshold."),
        ("step_packets", "i8", "packets", "Threshold in packets; 0: use the time."),
    ),
)


def setup(options: Options, path: Path) -> Mapping[str, Any]:
    """Return the fields of the record: thresholds in ns and in packets."""
    return {"step_ns": round(1e6 * options.threshold_ms), "step_packets": options.threshold_packets}


@jit
def decide(env: Any, index: int, p: int) -> int:
    """Decide at dequeue."""
    my, q = STATE.of_env(env), queue_at(env, index)
    above = exceeds_step(q.delay_ns, q.packets, my.step_ns, my.step_packets)
    return MARK if above and packet_at(env, p).ecn != NOT_ECT else ENQUEUE


STEP: Final = Discipline(
    name="step",
    title="one queue with a step threshold, as for DCTCP",
    options=Options,
    records=STATE,
    setup=setup,
    decide_at_dequeue=decide,
)
