"""Run what is missing on the leaderboard, and write it: the command `l4s-gym leaderboard`, with the committed entries.

python benchmarks/leaderboard.py                                     # all experiments, standard size
python benchmarks/leaderboard.py --add my_agent.py:MyAgent           # an agent of your own
python benchmarks/leaderboard.py --check results/native--pie.json    # is this entry what it says?
"""

from __future__ import annotations

import sys
from pathlib import Path

from l4s_gym.cli import main
from l4s_gym.data.files import atomic_write

RESULTS = Path(__file__).resolve().parent / "results"

if __name__ == "__main__":
    given = sys.argv[1:]
    committed = [] if any(name in given for name in ("--results", "--check", "--size")) else ["--results", str(RESULTS)]
    status = main(["leaderboard", *committed, *given])
    if committed and not given and status == 0:  # all of it: what the README shows
        with atomic_write(RESULTS / "leaderboard.md") as file:
            file.write(Path("runs/leaderboard/leaderboard.md").read_bytes())
    sys.exit(status)
