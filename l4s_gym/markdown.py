"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[int] = (), wide: bool = False
) -> list[str]:
    """The lines of a table.

    Args:
        head: Names of the columns.
        rows: Cells; a `|` in one is escaped.
        right: Columns that are aligned to the right.
        wide: Whether columns stand below each other in a terminal too.
    """
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) if wide else 0 for column in zip(*lines, strict=True)]
    rule = ["-" * (max(width, 3) - 1) + (":" if k in right else "-") for k, width in enumerate(widths)]
    padded = (
        [cell.rjust(w) if k in right else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in (lines[0], rule, *lines[1:])
    )
    return [f"| {' | '.join(row)} |" for row in padded]
