"""Read the router's statistics (`l4s-router --stats`), with units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from l4s_gym.errors import L4SError

CLASSES: Final = {"C": "classic", "L": "l4s"}
DECIDERS: Final = ("native", "agent", "fallback")


@dataclass(frozen=True)
class ClassFigures:
    """One class of packets, by the codepoint with which they came (L: ECT(1) and CE), since the router's start.

    Attributes:
        packets: Offered.
        marks: Of them marked.
        drops: Of them dropped.
        served_packets: Sent on.
        served_bytes: The same in bytes.
        mean_ms: Sojourn times, from arrival until the link takes the packet. Quantiles are right to 1/8.
    """

    packets: int
    marks: int
    drops: int
    served_packets: int
    served_bytes: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @property
    def delay_sum_ms(self) -> float:
        """Sum of the sojourn times."""
        return self.mean_ms * self.served_packets


@dataclass(frozen=True)
class Figures:
    """Counters of the router since its start.

    Attributes:
        seconds: Since the start.
        classes: C, L.
        decided: Packets by who decided: `native`, `agent` (or a model), `fallback` (asked about, no answer in time).
        refused: Decisions by why they were refused.
        trips: How often the shield took a queue back.
        latency_us: From ask to answer as the packet path saw it: `p50`, `p99`; 0 without decisions.
        late_us: Deliveries behind their schedule: `p50`, `p99`, `max`.
        rows_sent: To whoever reads the router's socket.
        rows_lost: Because that reader was slow.
        lost_outside: Packets that never came into the queue, or were not taken behind it: no memory, malformed.
    """

    seconds: float
    classes: tuple[ClassFigures, ClassFigures]
    decided: dict[str, int]
    refused: dict[str, int]
    trips: int
    latency_us: dict[str, float]
    late_us: dict[str, float]
    rows_sent: int
    rows_lost: int
    lost_outside: int

    @property
    def served_bytes(self) -> int:
        """Bytes served of both classes."""
        return sum(each.served_bytes for each in self.classes)


def _class(counts: Mapping[str, Any]) -> ClassFigures:
    sojourn = counts["sojourn_ns"]
    return ClassFigures(
        packets=counts["packets"],
        marks=counts["marks"],
        drops=counts["drops"],
        served_packets=counts["served_packets"],
        served_bytes=counts["served_bytes"],
        mean_ms=sojourn["mean"] * 1e-6,
        p50_ms=sojourn["p50"] * 1e-6,
        p95_ms=sojourn["p95"] * 1e-6,
        p99_ms=sojourn["p99"] * 1e-6,
        max_ms=sojourn["max"] * 1e-6,
    )


def read(stats: Mapping[str, Any]) -> Figures:
    """Read the router's JSON.

    Raises:
        L4SError: It is of another version of the router.
    """
    try:
        decisions, late = stats["decisions"], stats["late_ns"]
        outside = ("malformed", "oversized", "pool_missed", "write_failed")
        return Figures(
            seconds=stats["seconds"],
            classes=(_class(stats[CLASSES["C"]]), _class(stats[CLASSES["L"]])),
            decided={who: decisions[who] for who in DECIDERS},
            refused=dict(decisions["refused"]),
            trips=decisions["shield_trips"],
            latency_us={"p50": decisions["latency_p50_us"], "p99": decisions["latency_p99_us"]},
            late_us={name: late[name] * 1e-3 for name in ("p50", "p99", "max")},
            rows_sent=stats["device"]["rows_sent"],
            rows_lost=stats["device"]["rows_lost"],
            lost_outside=sum(stats[way][name] for way in ("forward", "reverse") for name in outside),
        )
    except KeyError as error:
        raise L4SError(
            f"the router's statistics lack {error}: router and l4s_gym are of different versions; `make -C kernel`"
        ) from None
