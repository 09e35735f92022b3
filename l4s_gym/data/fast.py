"""Compiled loops over long logs: reading their lines, and making steps of what was recorded before the decision.

In a module of their own, so that only long logs wait for the compiler.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.compiled import kept

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@partial(kept, nogil=True)
def scan(
    buffer: Bytes, at: int, start: Bytes, end: Bytes, forms: Ints, rows: Bytes, lines: Ints, left: Ints, state: Ints
) -> int:
    """Convert the lines of a block that are well-formed; the others are left to the general parser.

    Works until the block ends or an output is full; then call it again with what it returned.

    Args:
        buffer: Whole lines (b,), each with its newline.
        at: Where to begin, the first byte of a line.
        start: The bytes before a record; the last one is its only comma.
        end: The bytes after a record, of which the first is a comma.
        forms: For the forms of 24 and 23 fields and each field: its offset and size in a row, the smallest and the
            largest value as printed, and what is stored for 0, shape (2, 24, 5).
        rows: Set to the rows of the records, little-endian, and 0 in the rest of a row, (n, bytes of a row).
        lines: Set to the line of each row and to the number of its fields, (n, 2).
        left: Set to the lines that are left: number, first byte and newline, (m, 3).
        state: Lines, rows, and lines left so far, (3,).

    Returns:
        Where to go on: the length of the buffer once it is done.
    """
    numbers = np.empty(24, np.int64)
    line, row, skipped = state[0], state[1], state[2]
    size = len(buffer)
    while at < size and row < len(rows) and skipped < len(left):
        first = at
        while buffer[at] != 44 and buffer[at] != 10:
            at += 1
        good = buffer[at] == 44 and at + 1 - first >= len(start)
        if good:
            for offset in range(len(start)):
                good = good and buffer[at + 1 - len(start) + offset] == start[offset]
        count, parsed = 0, 0
        while good and count <= 24:
            at += 1
            begin, number = at, np.int64(0)
            digit = np.int64(buffer[at]) - 48
            # 18 digits cannot overflow; longer numbers are left.
            while 0 <= digit <= 9 and at - begin < 18:
                number = number * 10 + digit
                at += 1
                digit = np.int64(buffer[at]) - 48
            good = buffer[at] == 44 and at > begin and (buffer[begin] != 48 or at == begin + 1) and count < 24
            if good:
                numbers[count] = number
                count += 1
                # What follows the last number is the end and the newline.
                if count >= 23 and buffer[at + 1] > 57:
                    parsed = count
                    break
        if parsed:
            for offset in range(len(end)):
                good = good and buffer[at] == end[offset]  # a newline stops the match before the buffer ends
                at += good
            good = good and buffer[at] == 10
            form = forms[24 - parsed]
            for field in range(parsed):
                good = good and form[field, 2] <= numbers[field] <= form[field, 3]
            if good:
                for byte in range(rows.shape[1]):
                    rows[row, byte] = 0
                for field in range(parsed):
                    value = numbers[field] + form[field, 4]
                    place = form[field, 0]
                    for byte in range(form[field, 1]):
                        rows[row, place + byte] = value & 255
                        value >>= 8
                lines[row, 0] = line
                lines[row, 1] = parsed
                row += 1
        while buffer[at] != 10:
            at += 1
        if not (parsed and good):
            left[skipped, 0], left[skipped, 1], left[skipped, 2] = line, first, at
            skipped += 1
        at += 1
        line += 1
    state[0], state[1], state[2] = line, row, skipped
    return at


@partial(kept, nogil=True)
def fill_steps(records: Any, rewards: Floats, scale: Floats, high: Floats, steps: Any) -> None:
    """Fill steps as `StepMaker.make` does, from records that hold what was known before the decision.

    The simulator records it, and makes datasets of tens of millions of rows: NumPy, with one pass a field, is too slow.

    Args:
        records: `schema.RECORD` (T,).
        rewards: Rewards (T,).
        scale: `schema.OBS_SCALE` (8,).
        high: `schema.OBS_HIGH` (8,).
        steps: `steps.STEP` (T,), written.
    """
    raw = np.empty(8, np.float64)
    for i in range(len(records)):
        r = records[i]
        s = steps[i]
        raw[0] = r.queue_type
        raw[1] = r.burst_allowance
        raw[2] = r.drop_probability
        raw[3] = r.current_queue_delay
        raw[4] = r.accumulated_probability_before
        raw[5] = r.length_in_bytes
        raw[6] = r.interval_drops
        raw[7] = r.packet_length
        for k in range(8):
            s.observation[k] = min(raw[k] / scale[k], high[k])
        s.reward = rewards[i]
        s.time_us = r.time_us
        s.logged_accumulated_probability = r.accumulated_probability
        s.logged_total_drops = r.total_drops
        s.action = r.action
        s.applied = r.applied_action
        s.decided_by = r.decided_by
        s.missing = False
