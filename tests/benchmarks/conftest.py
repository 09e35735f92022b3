"""What studies share, and the parts of those that have several, can be imported by the tests."""

from __future__ import annotations

import sys
from pathlib import Path

for _name in ("shared", "imitation", "paper", "tuned"):
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "studies" / _name))
