"""Report on rows that were read: how many, what was skipped and why, and what is missing between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.schema import ACTIONS, CLASSIC, ENQUEUE, L4S

REPEATED: Final = "last message repeated"
OTHER: Final = "other message"
COUNTED: Final = frozenset({"queue_type", "total_packets"})
"""Fields that reveal lost rows, repeated rows and new runs."""
_EXAMPLES: Final = 20


@dataclass(frozen=True)
class LogReport:
    """Report on a log that was read.

    Attributes:
        files: The files, in the order in which they were read.
        lines: Lines read; of binary records and tables, rows.
        records: Valid records returned.
        records_23: Those of the older form without `packet_length` (stored as 0).
        skipped: Number of skipped lines or fragments, by reason.
        examples: The first skipped lines that look like records: (path, line or row from 1, reason).
        gaps: Packets of queues C and L that have no row between two successive rows of the queue.
        restarts: Number of times that `total_packets` of queues C and L decreased (a new run).
        duplicates: Number of times that it did not change.
        unit: What `lines` counts: "lines" or "rows".
    """

    files: tuple[str, ...]
    lines: int
    records: int
    records_23: int
    skipped: dict[str, int]
    examples: tuple[tuple[str, int, str], ...]
    gaps: tuple[int, int]
    restarts: tuple[int, int]
    duplicates: tuple[int, int]
    unit: str = "lines"

    @property
    def fields(self) -> int:
        """23 if all records have the older form, else 24."""
        return 23 if self.records and self.records == self.records_23 else 24

    def summary(self) -> str:
        """Return the report as a few lines of text."""
        form = f" ({self.fields} fields)" if self.unit == "lines" else ""
        text = [f"{self.records} records{form} in {self.lines} {self.unit} of {len(self.files)} file(s)"]
        if 0 < self.records_23 < self.records:
            text.append(f"  {self.records_23} of them have 23 fields (no packet_length)")
        text += [f"  skipped {count}: {reason}" for reason, count in sorted(self.skipped.items())]
        text += [f"    {path}:{line}: {reason}" for path, line, reason in self.examples]
        for name, counts in (("lost rows", self.gaps), ("restarts", self.restarts), ("repeated rows", self.duplicates)):
            if any(counts):
                text.append(f"  {name}: C {counts[0]}, L {counts[1]}")
        return "\n".join(text)


@dataclass
class Tally:
    """The growing report of rows that are read block by block.

    `counted` says whether they have the counters of their queues.
    """

    counted: bool = True
    lines: int = 0
    records: int = 0
    records_23: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, int, str]] = field(default_factory=list)
    gaps: list[int] = field(default_factory=lambda: [0, 0])
    restarts: list[int] = field(default_factory=lambda: [0, 0])
    duplicates: list[int] = field(default_factory=lambda: [0, 0])
    _last: dict[int, int] = field(default_factory=dict)

    def skip(self, path: str, line: int, reason: str, count: int = 1) -> None:
        """Count something that is skipped."""
        self.skipped[reason] = self.skipped.get(reason, 0) + count
        if reason not in (OTHER, REPEATED) and len(self.examples) < _EXAMPLES:
            self.examples.append((path, line, reason))

    def take_faults(self, faults: Tally, path: str, first: int) -> None:
        """Count what was skipped in a part of a file; its lines are numbered from 0, its first line is ``first``."""
        for reason, count in faults.skipped.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + count
        room = max(_EXAMPLES - len(self.examples), 0)
        self.examples += [(path, first + line, reason) for _, line, reason in faults.examples[:room]]

    def add(self, records: npt.NDArray[np.void]) -> None:
        """Count records (T,) that follow those of the last call, and how their counters change."""
        self.records += len(records)
        for queue in (CLASSIC, L4S) if self.counted else ():
            total = records["total_packets"][records["queue_type"] == queue].astype(np.int64)
            if not len(total):
                continue
            if queue in self._last:
                total = np.concatenate([[self._last[queue]], total])
            self._last[queue] = int(total[-1])
            step = np.diff(total)
            if (step == 1).all():
                continue
            lost = step[step > 1] - 1
            self.gaps[queue] += (int((lost >> 32).sum()) << 32) + int((lost & 0xFFFFFFFF).sum())  # no overflow
            self.restarts[queue] += int((step < 0).sum())
            self.duplicates[queue] += int((step == 0).sum())

    def report(self, files: Sequence[str], unit: str = "lines") -> LogReport:
        """Return the report so far."""
        steps = (tuple(self.gaps), tuple(self.restarts), tuple(self.duplicates))
        gaps, restarts, duplicates = ((c, q) for c, q in steps)
        return LogReport(
            files=tuple(files),
            lines=self.lines,
            records=self.records,
            records_23=self.records_23,
            skipped=self.skipped,
            examples=tuple(self.examples),
            gaps=gaps,
            restarts=restarts,
            duplicates=duplicates,
            unit=unit,
        )


@dataclass
class Missing:
    """Number of rows, by action, whose accumulated probability before the decision is unknown.

    It is unknown mostly for drops and marks. So a model that sees that a value is missing, or sees 0 in its place, sees
    the action.

    Attributes:
        rows: Rows of each action (3,).
        missing: Those of them without the value (3,).
    """

    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(ACTIONS), np.int64))
    missing: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(ACTIONS), np.int64))

    def add(self, actions: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> None:
        """Count rows with these actions (T,), of which some lack the value (T,)."""
        self.rows += np.bincount(actions, minlength=len(ACTIONS))
        self.missing += np.bincount(actions[missing], minlength=len(ACTIONS))

    @property
    def shares(self) -> dict[str, float]:
        """Return the share of the rows of each action without the value; NaN without such rows."""
        return {
            name: float(missing / rows) if rows else float("nan")
            for name, missing, rows in zip(ACTIONS, self.missing, self.rows, strict=True)
        }

    @property
    def uneven(self) -> bool:
        """Whether it is missing more or less often in drops or marks than in enqueued packets.

        By more than a hundredth, and by more than three standard deviations of what chance alone would make.
        """
        share = self.missing / np.maximum(self.rows, 1)
        even = self.missing.sum() / max(self.rows.sum(), 1)
        spread = 3 * np.sqrt(even * (1 - even) / np.maximum(self.rows, 1))
        far = (np.abs(share - share[ENQUEUE]) > 0.01) & (np.abs(share - even) > spread) & (self.rows > 0)
        return bool(self.rows[ENQUEUE] and np.delete(far, ENQUEUE).any())

    def __str__(self) -> str:
        """Return the shares as text."""
        shown = (f"{name} {share:.2%}" for name, share in self.shares.items() if not np.isnan(share))
        return f"missing in {self.missing.sum() / max(self.rows.sum(), 1):.2%} of the rows ({', '.join(shown)})"

    @property
    def warning(self) -> str | None:
        """A line of warning if the missing values reveal the action."""
        if not self.uneven:
            return None
        return (
            f"warning: the accumulated probability before the decision is {self}: that it is missing tells the action, "
            "so leave such rows out, and do not tell the model which they were"
        )
