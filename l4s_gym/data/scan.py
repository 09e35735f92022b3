"""The fast path of the log parser: compiled, for lines that hold one whole record and no other comma.

Apart from `l4s_gym.data.logs`, so that only long logs wait for the compiler.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def scan(buffer: Bytes, start: Bytes, end: Bytes, bounds: Ints, values: Ints, fields: Ints) -> int:
    """Parse the lines of a block that are well-formed; the others are left to the general parser.

    Args:
        buffer: Whole lines (b,), each with its newline.
        start: The bytes before a record; the last one is its only comma.
        end: The bytes after a record, of which the first is a comma.
        bounds: Smallest and largest value of each field for the forms of 24 and 23 fields, (2, 2, 24).
        values: Set to the numbers as printed, (24, n).
        fields: Set to the number of fields of each line, 0 if it is left, (n,).

    Returns:
        Number of lines n.
    """
    line, at = 0, 0
    while at < len(buffer):
        first = at
        while buffer[at] != 44 and buffer[at] != 10:
            at += 1
        good = buffer[at] == 44 and at + 1 - first >= len(start)
        for offset in range(len(start)):
            good = good and buffer[at + 1 - len(start) + offset] == start[offset]
        count, parsed = 0, 0
        while good and count <= 24:
            at += 1
            begin, number = at, np.int64(0)
            # 18 digits cannot overflow; longer numbers are left.
            while 48 <= buffer[at] <= 57 and at - begin < 18:
                number = number * 10 + np.int64(buffer[at] - 48)
                at += 1
            good = buffer[at] == 44 and at > begin and (buffer[begin] != 48 or at == begin + 1) and count < 24
            if good:
                values[count, line] = number
                count += 1
                # What follows the last number is the end and the newline.
                if buffer[at + 1] > 57 and (count == 24 or count == 23):
                    parsed = count
                    break
        if parsed:
            for offset in range(len(end)):
                good = good and buffer[at] == end[offset]  # a newline stops the match before the buffer ends
                at += good
            good = good and buffer[at] == 10
            form = 24 - parsed
            for column in range(parsed):
                number = values[column, line]
                good = good and bounds[form, 0, column] <= number <= bounds[form, 1, column]
            if not good:
                parsed = 0
        fields[line] = parsed
        while buffer[at] != 10:
            at += 1
        at += 1
        line += 1
    return line
