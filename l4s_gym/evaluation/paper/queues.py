"""TODO"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l4s_gym.evaluation.paper.figure import Figure, Place

FIGURES: Final[dict[str, Callable[[Place], Figure]]] = {}
