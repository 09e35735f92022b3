"""The figures of the L4S-LLM paper, made anew: as its authors made them, and in the closed loop."""

from __future__ import annotations

from collections.abc import Callable

from l4s_gym.evaluation.paper import models, queues
from l4s_gym.evaluation.paper.figure import Figure, Place

FIGURES: dict[str, Callable[[Place], Figure]] = {**models.FIGURES, **queues.FIGURES}
"""Name -> what makes it."""
