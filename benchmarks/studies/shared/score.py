"""Scores of an agent in the board's size `quick`, for studies that score many agents."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from l4s_gym.evaluation import harness, statistics
from l4s_gym.evaluation.entry import read_protocol
from l4s_gym.evaluation.work import as_run


def played(agent: Any, brief: bool) -> Any:
    """Returns (runs, scenarios) in the board's size `quick`; if `brief`, in a second of its first scenario."""
    protocol, found = read_protocol(), []
    for suite, name in list(protocol.cells("quick"))[: 1 if brief else None]:
        run = as_run(name, 1.0 if brief else protocol.quick.seconds, {})
        seeds = protocol.seeds(suite, "quick")[: 1 if brief else None]
        results = harness.evaluate_many(agent, [run], seeds=seeds, reward=protocol.reward)
        found.append([result.episode_return for result in results])
    return np.array(found).T


@cache
def references(brief: bool) -> tuple[Any, Any]:
    """Returns of random decisions and of RFC 9332."""
    return played("random", brief), played("native:dualpi2_rfc9332", brief)


def scores(agent: Any, brief: bool) -> Any:
    """Scores (runs, scenarios): 0 random decisions, 100 RFC 9332."""
    return statistics.normalised(played(agent, brief), *references(brief))
