"""What the tests of logs and pools share: random records, a small model of the kernel, the real files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from l4s_gym.data.causal import BEFORE, CausalStream
from l4s_gym.data.evidence import REQUIRED
from l4s_gym.data.logs import NAMES_23, NAMES_24
from l4s_gym.schema import (
    DROP,
    ENQUEUE,
    EXTENSION,
    FIELDS,
    MARK,
    MAX_PROB,
    OBSERVED,
    PRINTED,
    RECORD,
)


def make_random_records(count: int, seed: int = 0) -> Any:
    """Valid records (count,) with values over the whole range of each printed field."""
    rng = np.random.default_rng(seed)
    records = np.zeros(count, RECORD)
    for field in PRINTED:
        if field.name == "action":
            records["action"] = rng.integers(0, 3, count)
            continue
        # Sizes of all magnitudes, with the bounds among them.
        high = np.exp(rng.uniform(0, np.log(float(field.high - field.low + 1)), count)) - 1
        values = np.minimum(high.astype(np.uint64), np.uint64(field.high - field.low)) + np.uint64(field.low)
        values[rng.random(count) < 0.05] = field.high
        values[rng.random(count) < 0.05] = field.low
        records[field.name] = values
    return records


@pytest.fixture
def random_records() -> Callable[..., Any]:
    """`make_random_records`."""
    return make_random_records


class _ModelQueue:
    """One queue with the controller's state (kernel units)."""

    def __init__(self) -> None:
        self.packets: deque[tuple[int, int]] = deque()
        self.bytes = self.offered = self.offered_bytes = self.drops = self.since_update = 0
        self.prob = self.accu = self.burst = self.delay = self.old = self.started = 0
        self.active = False

    def serve(self, budget: int, now: int) -> int:
        """Send whole packets; what is left of the budget."""
        while self.packets and budget >= self.packets[0][0]:
            length, arrived = self.packets.popleft()
            budget -= length
            self.bytes -= length
            self.delay = (now - arrived) // 10_000 * 10_000
        if not self.packets:
            self.active = False
        return budget

    def update(self) -> None:
        """A slow controller up to 25 %: the sum then passes 0.85 and 8.5 often."""
        if not self.packets:
            self.delay = 0
        change = (self.delay - 15_000) * 150 + (self.delay - self.old) * 1500
        self.prob = min(max(self.prob + change, 0), MAX_PROB // 4)
        self.old = self.delay
        self.burst = max(self.burst - 15_000, 0)
        self.since_update = 0

    def decide(self, rng: np.random.Generator, l4s: bool, ecn: bool, flags: int) -> tuple[int, bool]:
        """The kernel's rule: (logged action, whether it is applied); sets `accu`."""
        if (self.old < 7500 and self.prob < MAX_PROB // 5) or self.bytes <= 1600:
            return ENQUEUE, True
        if self.prob == 0:
            self.accu = 0
        if flags & 16:
            self.accu += self.prob
            if self.accu < int(0.85 * MAX_PROB):
                return ENQUEUE, True
        if not (flags & 16 and self.accu >= int(8.5 * MAX_PROB)):
            if not all(rng.integers(1 << 31) < self.prob for _ in range(1 if l4s else 2)):
                return ENQUEUE, True
            self.accu = 0
        if not self.active or self.burst > 0:
            return DROP, False
        return (MARK, True) if ecn and self.prob < 819 << 18 else (DROP, True)


def make_kernel_log(seed: int, count: int = 4000, **options: Any) -> Any:
    """A copy of the log of `_kernel_log`, which is made once."""
    return _kernel_log(seed, count, **options).copy()


@cache
def _kernel_log(
    seed: int,
    count: int = 4000,
    *,
    flags: int = 19,
    limit: int = 10240,
    print_after_reset: bool = False,
    load: float = 1.1,
    swing: float = 0.9,
) -> Any:
    """Records (count,) of a two-queue model of the testbed's kernel, with the truth in the extension.

    Args:
        seed: Seed.
        count: Packets.
        flags: Controller flags (16: derandomisation).
        limit: Packets in both queues; the head of the longer one is dropped beyond.
        print_after_reset: Print the sum after a real drop cleared it (the kernel prints it before).
        load: Mean offered load over capacity.
        swing: Its variation, so that queues fill and drain.
    """
    rng = np.random.default_rng(seed)
    queues = (_ModelQueue(), _ModelQueue())
    rows: list[dict[str, int]] = []
    now, next_tick, next_update = 0, 10_000, 15_000
    for number in range(count):
        now += int(rng.exponential(1500 / (load + swing * np.sin(number / 150))))
        while min(next_tick, next_update) <= now:
            if next_tick <= next_update:
                left = queues[0].serve(5_000, next_tick)
                queues[0].serve(queues[1].serve(5_000 + left, next_tick), next_tick)
                next_tick += 10_000
            else:
                for q in queues:
                    if q.active:
                        q.update()
                next_update += 15_000
        index = int(rng.random() < 0.35)
        q, length = queues[index], int(rng.choice([52, 53, 1500], p=[0.2, 0.1, 0.7]))
        before = q.accu
        printed = {
            "burst_allowance": q.burst, "drop_probability": q.prob, "current_queue_delay": q.delay,
            "queue_delay_old": q.old, "measurement_start": q.started, "status_flags": 3 if q.active else 0,
            "total_packets": q.offered, "total_bytes": q.offered_bytes, "length_in_packets": len(q.packets),
            "length_in_bytes": q.bytes, "total_drops": q.drops, "packet_length": length, "queue_type": index,
            "qdelay_ref": 15_000, "tupdate": 15_000, "max_burst": 150_000, "max_ecn_threshold": 819, "alpha": 1024,
            "beta": 10240, "flags": flags, "interval_drops": q.since_update,
            "sequence": number,
        }  # fmt: skip
        action, applied = q.decide(rng, index == 1, bool(index or rng.random() < 0.1), flags)
        dropped = action == DROP and applied
        if dropped and print_after_reset:
            q.accu = 0
        printed |= {"accumulated_probability": q.accu, "action": action, "accumulated_probability_before": before}
        rows.append(printed | {"applied_action": action if applied else ENQUEUE})
        q.offered += 1
        q.offered_bytes += length
        if dropped:
            q.accu = 0
            q.drops += 1
            q.since_update += 1
        else:
            q.packets.append((length, now))
            q.bytes += length
        if not q.active and (q.packets or not dropped):
            q.prob = q.old = q.accu = 0
            q.burst, q.started, q.active = 150_000, now // 10_000 * 10_000, True
        if q.prob == 0 and q.delay < 7500 and q.old < 7500:
            q.burst = 150_000
        if sum(len(each.packets) for each in queues) > limit:
            longer = max(queues, key=lambda each: len(each.packets))
            longer.bytes -= longer.packets.popleft()[0]
            longer.drops += 1
            longer.since_update += 1
            longer.accu = 0
    records = np.zeros(count, RECORD)
    for name in rows[0] if rows else ():
        records[name] = [row[name] for row in rows]
    return records


@pytest.fixture
def kernel_log() -> Callable[..., Any]:
    """`make_kernel_log`."""
    return make_kernel_log


@pytest.fixture
def printed_only() -> Callable[..., Any]:
    """A function that clears our own extension, as in a log."""

    def clear(records: Any, keep: tuple[str, ...] | None = None) -> Any:
        records = records.copy()
        for field in EXTENSION if keep is None else FIELDS:
            if keep is None or field.name not in keep:
                records[field.name] = 0
        return records

    return clear


def rebuild_accumulated(records: Any, present: frozenset[str] | None = None) -> tuple[Any, Any]:
    """The accumulated probability before each decision (T,), rebuilt, 0 where missing; and whether it is (T,).

    Args:
        records: Records (T,) in the order of the log; what was recorded before the decision is not looked at.
        present: Names of the fields that they have; None: those of a log if all rows have a `tupdate`, else those
            that are not 0 throughout.
    """
    if present is None and len(records) and (records["tupdate"] > 0).all():
        present = frozenset(NAMES_24 if records["packet_length"].any() else NAMES_23)
    elif present is None:
        present = REQUIRED | {name for name in NAMES_24 if records[name].any()}
    observed = CausalStream(present - set(BEFORE.values())).observe(records)[
        :, OBSERVED.index("accumulated_probability")
    ]
    return np.nan_to_num(observed).astype(np.int64), np.isnan(observed)
