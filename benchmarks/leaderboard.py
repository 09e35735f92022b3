"""Run the missing episodes of the leaderboard and write it: `l4s-gym leaderboard` with the committed entries.

python benchmarks/leaderboard.py                                     # all experiments, standard size
python benchmarks/leaderboard.py native bc --size full               # some of the full size, on a board of its own
python benchmarks/leaderboard.py --add my_agent.py:MyAgent           # an agent of your own
python benchmarks/leaderboard.py --check results/native--pie.json    # check an entry
"""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path

from l4s_gym.cli import main
from l4s_gym.data.files import atomic_write

RESULTS = Path(__file__).resolve().parent / "results"
FOLDERS = {"standard": RESULTS, "full": RESULTS / "full"}
"""By size, where the committed entries lie."""
README = RESULTS.parents[1] / "README.md"
BLOCK = re.compile(r"(?<=<!-- board -->\n).*?(?=<!-- end of board -->)", re.S)
SHOWN = ("#", "agent", "form", "test", "shift", "dyn", "C p50 / p99 ms", "L p50 / p99 ms", "util %")


ALWAYS = {"llm--smollm2-parameters", "native--dualpi2_tuned", "native--dualpi2_rfc9332"}
"""Entries that the README shows wherever they stand."""


def first_rows(board: str, rows: int = 3) -> str:
    """Return the first rows of the board's table and `ALWAYS`, in the columns that the README shows."""
    first = next(part for part in board.split("\n\n") if part.startswith("|"))
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines()]
    columns = [table[0].index(name) for name in SHOWN]
    shown = [row for at, row in enumerate(table) if at < 2 + rows or row[1] in ALWAYS]
    lines = [f"| {' | '.join(row[k] for k in columns)} |\n" for row in shown]
    return re.sub("-{3,}", "--", "".join(lines))


if __name__ == "__main__":
    given = sys.argv[1:]
    size = dict(pairwise(given)).get("--size", "standard")
    folder = None if {"--results", "--check"} & {*given} else FOLDERS.get(size)
    status = main(["leaderboard", *(["--results", str(folder)] if folder else []), *given])
    if folder and status == 0 and (not given or (size == "full" and "--out" not in given)):
        with atomic_write(folder / "leaderboard.md") as file:
            file.write(Path("runs/leaderboard/leaderboard.md").read_bytes())
    if folder and status == 0 and not given:  # the README shows the first rows
        rows = first_rows((folder / "leaderboard.md").read_text())
        README.write_text(BLOCK.sub(lambda _: rows, README.read_text()))
    sys.exit(status)
