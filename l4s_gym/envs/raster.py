"""Draw with NumPy alone: rectangles, curves, and text in a font of 5 x 7 dots."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
"""(height, width, 3) RGB."""
Colour = tuple[int, int, int]

_DOTS: Final = """
0 0E11131519110E  1 040C040404040E  2 0E11010204081F  3 1F02040201110E  4 02060A121F0202  5 1F101E0101110E
6 0608101E11110E  7 1F010204080808  8 0E11110E11110E  9 0E11110F01020C  . 00000000000C0C  , 000000000C0408
% 18190204081303  - 0000001F000000  : 000C0C000C0C00  / 00010204081000  _ 0000000000001F  = 00001F001F0000
A 0E1111111F1111  B 1E11111E11111E  C 0E11101010110E  D 1C12111111121C  E 1F10101E10101F  F 1F10101E101010
G 0E11101711110F  H 1111111F111111  I 0E04040404040E  J 0702020202120C  K 11121418141211  L 1010101010101F
M 111B1515111111  N 11111915131111  O 0E11111111110E  P 1E11111E101010  Q 0E11111115120D  R 1E11111E141211
S 0F10100E01011E  T 1F040404040404  U 1111111111110E  V 11111111110A04  W 1111111515150A  X 11110A040A1111
Y 1111110A040404  Z 1F01020408101F  a 00000E010F110F  b 1010161911111E  c 00000E1010110E  d 01010D1311110F
e 00000E111F100E  f 0609081C080808  g 000F11110F010E  h 10101619111111  i 04000C0404040E  j 0200060202120C
k 10101214181412  l 0C04040404040E  m 00001A15151111  n 00001619111111  o 00000E1111110E  p 00001E111E1010
q 00000D130F0101  r 00001619101010  s 00000E100E011E  t 08081C08080906  u 0000111111130D  v 00001111110A04
w 0000111115150A  x 0000110A040A11  y 000011110F010E  z 00001F0204081F
"""
"""Each character and its seven rows, two hexadecimal digits of five dots each, the leftmost the highest bit."""


@functools.cache
def _letters() -> dict[str, npt.NDArray[np.bool_]]:
    """Character -> (7, 6) dots, the last column empty."""
    words = _DOTS.split()
    bits = np.array([16, 8, 4, 2, 1, 0])
    rows = [np.frombuffer(bytes.fromhex(code), np.uint8) for code in words[1::2]]
    return {char: (row[:, None] & bits) != 0 for char, row in zip(words[::2], rows, strict=True)}


def text(frame: Frame, x: int, y: int, words: str, colour: Colour, *, scale: int = 1) -> int:
    """Write a line of text; it is cut off at the edge of the frame, and unknown characters are blank.

    Args:
        frame: Drawn on.
        x: Left edge, px.
        y: Upper edge, px.
        words: One line.
        colour: RGB.
        scale: Pixels of a dot; a letter is 6 x 7 dots wide and high.

    Returns:
        The right edge, px.
    """
    letters = _letters()
    empty = np.zeros((7, 6), bool)
    if words:
        dots = np.hstack([letters.get(char, empty) for char in words]).repeat(scale, 0).repeat(scale, 1)
        place = frame[max(y, 0) : y + dots.shape[0], max(x, 0) : x + dots.shape[1]]
        place[dots[max(-y, 0) :, max(-x, 0) :][: place.shape[0], : place.shape[1]]] = colour
    return x + 6 * scale * len(words)


def curve(frame: Frame, x: int, rows: npt.NDArray[np.integer], colour: Colour, *, width: int = 2) -> None:
    """Draw a curve with one point for each column.

    Args:
        frame: Drawn on.
        x: Column of the first point, px.
        rows: Row of each point within the frame (T,), px.
        colour: RGB.
        width: Thickness, px.
    """
    if not len(rows):
        return
    before = np.concatenate([rows[:1], rows[:-1]])
    low, high = np.minimum(rows, before), np.maximum(rows, before) + width
    top = int(low.min())
    row = np.arange(top, int(high.max()))[:, None]
    place = frame[top : int(high.max()), x : x + len(rows)]
    place[((row >= low) & (row < high))[: place.shape[0]]] = colour
