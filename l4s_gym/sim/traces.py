"""Traces of real links: when a link could deliver packets, or at which rate.

Two forms of text files are read; blank lines and text after a `#` are skipped. Traces of both forms repeat.

- **Mahimahi's**: each line is the millisecond of one delivery opportunity, which carries one MTU. As in Mahimahi, the
  last line is the length of the trace, so that an opportunity of line 0 comes together with those of the last line.
- **Pairs**: each line is a time in seconds and a rate in Mbit/s, with blanks or a comma between them, and one header
  line of two words may come first. A rate holds until the next line; the last one holds as long as the one before it
  did (a single one: forever). Times count from the first line.

The traces that ship are generated (`generate`) and are labelled so: they have the character of LTE, Wi-Fi and LEO
links, they are not recordings.

Recorded traces are in public repositories; respect their licences. Mahimahi's form: `traces/` of
github.com/ravinet/mahimahi (GPL-3), github.com/Soheil-ab/Cellular-Traces-NYC (no licence). Pairs:
github.com/confiwent/Real-world-bandwidth-traces (MIT), github.com/SIGCOMM21-5G/artifact. Others, such as the csv files
of github.com/uccmisl/5Gdataset (GPL-3), need their columns of time and rate cut out. `l4s-gym scenarios --trace FILE`
shows what a file holds, and `link = { kind = "trace", trace = "FILE" }` in a scenario uses it.
"""

from __future__ import annotations

import functools
import io
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError, unknown
from l4s_gym.sim.layout import MOST_MBPS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
MTU_BYTES = 1504
KINDS = ("lte", "wifi", "leo")
PEAK_S = 0.1
"""Duration of the highest rate that counts as the peak of a trace."""
LONGEST_S = 1_000_000
"""Longest trace."""


class Profile:
    """Common part of both forms of a trace: the amount that a link could carry.

    Attributes:
        period_ns: Length of the trace, which then repeats.
    """

    period_ns: int

    def _within(self, times_ns: Ints) -> Floats:
        """Return the bytes carried from the start to times within the first period."""
        raise NotImplementedError

    def content(self) -> bytes:
        """Return the trace as bytes, for digests."""
        raise NotImplementedError

    def carried_bytes(self, times_ns: Ints) -> Floats:
        """Return the bytes that a link that is never idle carries from the start to some times."""
        cycles, offsets = np.divmod(times_ns, self.period_ns)
        per_cycle = self._within(np.array([self.period_ns]))[0]
        return np.asarray(cycles * per_cycle + self._within(offsets), np.float64)

    @property
    def mean_bps(self) -> float:
        """Mean rate, bit/s."""
        return float(self._within(np.array([self.period_ns]))[0]) * 8e9 / self.period_ns

    @functools.cached_property
    def peak_bps(self) -> float:
        """Highest rate over `PEAK_S`, bit/s."""
        step = max(round(PEAK_S * 1e8), self.period_ns // 100_000)
        edges = np.arange(-(-self.period_ns // step) + 11, dtype=np.int64) * step
        carried = self.carried_bytes(edges)
        return float((carried[10:] - carried[:-10]).max()) * 8e9 / (10 * step)

    def rates_bps_in(self, windows: int) -> Floats:
        """Return the mean rates in `windows` equal parts of the period, bit/s."""
        edges = np.arange(windows + 1, dtype=np.int64) * self.period_ns // windows
        return np.asarray(np.diff(self.carried_bytes(edges)) * 8e9 / np.diff(edges), np.float64)


@dataclass(frozen=True)
class Trace(Profile):
    """A trace of delivery opportunities of `MTU_BYTES`.

    Attributes:
        opportunities_ns: (K,) int64, times within one period, not decreasing.
        period_ns: Length of the trace.
    """

    opportunities_ns: Ints
    period_ns: int

    def __len__(self) -> int:
        return len(self.opportunities_ns)

    def _within(self, times_ns: Ints) -> Floats:
        return np.asarray(np.searchsorted(self.opportunities_ns, times_ns) * MTU_BYTES, np.float64)

    def content(self) -> bytes:
        """Return the opportunities; the last line gives the period."""
        return self.opportunities_ns.tobytes()

    def opportunities_in(self, start_ns: int, end_ns: int) -> int:
        """Return the number of opportunities in [start_ns, end_ns)."""

        def before(time_ns: int) -> int:
            cycles, offset = divmod(time_ns, self.period_ns)
            return cycles * len(self.opportunities_ns) + int(np.searchsorted(self.opportunities_ns, offset))

        return before(end_ns) - before(start_ns)


@dataclass(frozen=True)
class Schedule(Profile):
    """A trace of rates, each of which holds until the next one.

    Attributes:
        starts_ns: (K,) int64, times within one period, increasing from 0 on.
        rates_bps: (K,) int64, bit/s; 0: an outage.
        period_ns: Length of the trace.
    """

    starts_ns: Ints
    rates_bps: Ints
    period_ns: int

    def __len__(self) -> int:
        return len(self.starts_ns)

    def _within(self, times_ns: Ints) -> Floats:
        ends = np.append(self.starts_ns, self.period_ns)
        per_ns = self.rates_bps / 8e9  # bytes; in floating point, since rate times length exceeds 64 bits
        carried = np.append(0.0, np.cumsum(per_ns * np.diff(ends)))
        at = np.searchsorted(self.starts_ns, times_ns, side="right") - 1
        return np.asarray(carried[at] + per_ns[at] * (times_ns - self.starts_ns[at]))

    def content(self) -> bytes:
        """Return times, rates and period."""
        return np.concatenate([self.starts_ns, self.rates_bps, [self.period_ns]]).tobytes()


def parse(text: str, place: str = "trace") -> Trace | Schedule:
    """Read a trace in either form, chosen by its first line; an error names the malformed line."""
    first = next(_lines(text), None)
    if first is None:
        raise L4SError(f"{place}: empty: no delivery opportunity and no rate")
    return _schedule(text, place) if len(_columns(first[1])) == 2 else _opportunities(text, place)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbers and the content of the lines that are not blank."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        content = line.split("#", 1)[0].strip()
        if content:
            yield number, content


def _columns(content: str) -> list[str]:
    return [word.strip() for word in content.split(",")] if "," in content else content.split()


def _times_ms(text: str, place: str) -> Ints:
    """Parse the lines of Mahimahi's form: whole milliseconds that do not decrease."""
    if set(text) <= set("0123456789\r\n"):  # recorded traces are so, with up to millions of lines: ten times faster
        found = np.fromstring(text, np.int64, sep=" ")
        if (np.diff(found, prepend=0) >= 0).all() and found[-1] <= 1000 * LONGEST_S:
            return found
    times = array("q")
    last = 0
    for number, content in _lines(text):
        if not (content.isascii() and content.isdigit()):
            raise L4SError(f"{place}:{number}: {content[:40]!r} is not a time in whole milliseconds")
        time = int(content) if len(content) < 20 else 1000 * LONGEST_S + 1
        if time < last:
            raise L4SError(f"{place}:{number}: time {time} is before the line above; sort the trace")
        if time > 1000 * LONGEST_S:
            raise L4SError(f"{place}:{number}: time {content[:40]}: a trace is at most {LONGEST_S} s long")
        last = time
        times.append(time)
    return np.array(times, np.int64)


def _opportunities(text: str, place: str) -> Trace:
    times = _times_ms(text, place)
    last = int(times[-1])
    if last == 0:
        raise L4SError(f"{place}: no delivery opportunity after time 0; a trace needs at least one")
    # Line t is in the millisecond that ends at t; that of line 0 is the last one of the period before. The k-th of n
    # opportunities of one millisecond comes k/n into it.
    ms = np.sort((times - 1) % last)
    _, first, count = np.unique(ms, return_index=True, return_counts=True)
    rank = np.arange(len(ms)) - np.repeat(first, count)
    return Trace(ms * 1_000_000 + rank * 1_000_000 // np.repeat(count, count), last * 1_000_000)


def _number(word: str) -> float | None:
    """Return a number, perhaps NaN; None for another word."""
    try:
        return float(word) if word.isascii() and "_" not in word else None
    except ValueError:
        return None


def _schedule(text: str, place: str) -> Schedule:
    starts, rates = array("d"), array("d")
    header = True
    for number, content in _lines(text):
        words = _columns(content)
        time, rate = map(_number, words) if len(words) == 2 else (None, None)
        if header and len(words) == 2 and time is None and rate is None:
            header = False
            continue
        header = False
        if time is None or rate is None:
            raise L4SError(f"{place}:{number}: {content[:40]!r} is not a pair of seconds and Mbit/s")
        if not 0.0 <= time < math.inf:
            raise L4SError(f"{place}:{number}: time {time:g}: give seconds, 0 or more")
        if not 0.0 <= rate <= MOST_MBPS:
            raise L4SError(f"{place}:{number}: rate {rate:g}: give Mbit/s, from 0 to {MOST_MBPS:.0f}")
        if starts and time < starts[-1]:
            raise L4SError(f"{place}:{number}: time {time:g} is before the line above; sort the trace")
        if starts and time - starts[0] > LONGEST_S:
            raise L4SError(f"{place}:{number}: time {time:g}: a trace is at most {LONGEST_S} s long")
        starts.append(time)
        rates.append(rate)
    if not any(rates):
        raise L4SError(f"{place}: no rate above 0; a trace needs at least one")
    starts_ns = np.rint((np.array(starts) - starts[0]) * 1e9).astype(np.int64)
    kept = np.append(np.diff(starts_ns) > 0, True)  # of several rates at one time, the last one holds
    starts_ns = starts_ns[kept]
    rates_bps = np.rint(np.array(rates)[kept] * 1e6).astype(np.int64)
    held = int(starts_ns[-1] - starts_ns[-2]) if len(starts_ns) > 1 else 1_000_000_000
    period_ns = int(starts_ns[-1]) + held
    if period_ns < 1_000_000:
        raise L4SError(f"{place}: {period_ns} ns long; a trace lasts at least a millisecond")
    if not rates_bps.any():
        raise L4SError(f"{place}: no rate of a bit/s; a trace needs at least one")
    return Schedule(starts_ns, rates_bps, period_ns)


def _folder() -> Path:
    return Path(str(resources.files("l4s_gym") / "scenarios" / "traces"))


def load(name: str) -> Trace | Schedule:
    """Load a shipped trace by name, or a file by path.

    Raises:
        L4SError: No such trace, or a malformed one.
    """
    shipped = sorted(item.stem for item in _folder().glob("*.txt"))
    path = _folder() / f"{name}.txt" if name in shipped else Path(name)
    if not path.is_file():
        raise unknown("trace", name, shipped)
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=64)
def _read(path: Path, _changed_ns: int, _size: int) -> Trace | Schedule:
    """Read the trace in a file; the cache reads it again after a change."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise L4SError(f"{path}:{line}: is not text in UTF-8") from None
    return parse(text, str(path))


def generate(kind: str, seconds: int = 30, seed: int = 0) -> str:
    """Generate a trace.

    `lte`: log-rate as a slow mean-reverting walk around 12 Mbit/s with outages of some 100 ms; `wifi`: 20
    Mbit/s in bursts of aggregated frames with contention gaps; `leo`: 24 Mbit/s with a handover every 15 s
    and a new level after each.

    Returns:
        The text of a Mahimahi trace whose first lines say that it is generated.
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
