"""Mahimahi packet-delivery traces: each line is the millisecond of one delivery opportunity.

An opportunity carries one MTU; the trace repeats after its last line. The traces that ship are generated
(`generate`) and are labelled so: they have the character of LTE, Wi-Fi and LEO links, they are not
recordings.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError, unknown

MTU_BYTES = 1504
KINDS = ("lte", "wifi", "leo")


@dataclass(frozen=True)
class Trace:
    """A trace.

    Attributes:
        opportunities_ns: (K,) int64, times within one period, not decreasing.
        period_ns: Length of the trace.
    """

    opportunities_ns: npt.NDArray[np.int64]
    period_ns: int

    @property
    def mean_bps(self) -> float:
        """Mean rate, bit/s."""
        return len(self.opportunities_ns) * MTU_BYTES * 8e9 / self.period_ns

    def opportunities_in(self, start_ns: int, end_ns: int) -> int:
        """Number of opportunities in [start_ns, end_ns)."""

        def before(time_ns: int) -> int:
            cycles, offset = divmod(time_ns, self.period_ns)
            return cycles * len(self.opportunities_ns) + int(np.searchsorted(self.opportunities_ns, offset))

        return before(end_ns) - before(start_ns)


def parse(text: str, place: str = "trace") -> Trace:
    """Read a trace; a line that is not a non-decreasing whole number is an error that names it."""
    times: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.split("#")[0].strip()
        if not content:
            continue
        if not content.isdigit():
            raise L4SError(f"{place}:{number}: {content!r} is not a time in whole milliseconds")
        if times and int(content) < times[-1]:
            raise L4SError(f"{place}:{number}: time {content} is before the line above; sort the trace")
        times.append(int(content))
    if not times or times[-1] == 0:
        raise L4SError(f"{place}: no delivery opportunity after time 0; a trace needs at least one")
    # The k-th of n opportunities of one millisecond comes k/n into it.
    ms = np.array(times, np.int64)
    _, first, count = np.unique(ms, return_index=True, return_counts=True)
    rank = np.arange(len(ms)) - np.repeat(first, count)
    return Trace((ms - 1).clip(0) * 1_000_000 + rank * 1_000_000 // np.repeat(count, count), int(ms[-1]) * 1_000_000)


def _folder() -> Path:
    return Path(str(resources.files("l4s_gym") / "scenarios" / "traces"))


@functools.lru_cache(maxsize=64)
def load(name: str) -> Trace:
    """A shipped trace by name, or a file by path.

    Raises:
        L4SError: No such trace, or a malformed one.
    """
    path = _folder() / f"{name}.txt"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise unknown("trace", name, sorted(item.stem for item in _folder().glob("*.txt")))
    return parse(path.read_text(), str(path.name))


def generate(kind: str, seconds: int = 30, seed: int = 0) -> str:
    """A generated trace.

    `lte`: log-rate as a slow mean-reverting walk around 12 Mbit/s with outages of some 100 ms; `wifi`: 20
    Mbit/s in bursts of aggregated frames with contention gaps; `leo`: 24 Mbit/s with a handover every 15 s
    and a new level after each.

    Returns:
        The text of a Mahimahi trace that says in its first lines that it is generated.
    """
    if kind not in KINDS:
        raise unknown("kind of trace", kind, KINDS)
    rng = np.random.default_rng(seed)
    rate = np.zeros(seconds * 1000)  # Mbit/s for each millisecond
    if kind == "lte":
        level, outage = 0.0, 0
        for ms in range(len(rate)):
            level += -level / 2000.0 + 0.025 * rng.normal()
            outage = outage - 1 if outage > 0 else (int(rng.integers(50, 250)) if rng.random() < 1 / 8000 else 0)
            rate[ms] = 0.0 if outage else 12.0 * math.exp(level)
    elif kind == "wifi":
        ms = 0
        while ms < len(rate):
            gap = int(rng.exponential(1.5))
            burst = 1 + int(rng.integers(1, 4))
            rate[ms + gap : ms + gap + burst] = 20.0 * (gap + burst) / burst * rng.uniform(0.6, 1.4)
            ms += gap + burst
    else:
        level = 24.0
        for ms in range(len(rate)):
            phase = ms % 15_000
            if phase == 0:
                level = rng.uniform(12.0, 36.0)
            rate[ms] = 0.0 if phase < 60 else level * (1.0 + 0.1 * math.sin(phase / 900.0))
    packets = np.diff(np.floor(np.cumsum(rate) * 1e6 / 1e3 / (MTU_BYTES * 8)), prepend=0.0).astype(int)
    times = np.repeat(np.arange(1, len(rate) + 1), packets)
    head = f"# generated, not recorded: {kind}-like link, seed {seed}, {seconds} s (l4s_gym.sim.traces.generate)\n"
    return head + "\n".join(map(str, times)) + "\n"
