"""Decision logs of the simulator: a native run of a scenario, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from gymnasium.utils import seeding

from l4s_gym.data.logs import Records
from l4s_gym.schema import RECORD
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario, load

Progress = Callable[[float], None]

LOG_ROWS: Final = 1 << 16
"""Rows that the engine holds at a time; more than any queue of the scenarios holds packets."""
AT_DEQUEUE: Final = ("codel", "dualpi2_rfc9332", "dualpi2_linux")
"""Disciplines that decide when a packet leaves: rows of packets still queued at the end bear no decision."""
_REPORTS: Final = 100


def simulate_blocks(
    scenario: str | Path | Scenario,
    aqm: str | None = None,
    seed: int = 0,
    *,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> Iterator[Records]:
    """Run a scenario with its queue discipline deciding by itself, and hand out the log as it grows.

    Args:
        scenario: Name, path of a TOML file, or scenario.
        aqm: Discipline; None: the scenario's.
        seed: That of `reset(seed=)` of the environment: the same run.
        seconds: Length of the run; None: the scenario's horizon.
        progress: Called with the share of the run that is done, some hundred times.

    Yields:
        Records (T,) in the order of arrival, at most `LOG_ROWS` at a time; one row per packet offered.

    Raises:
        L4SError: Unknown scenario or discipline, or a queue outgrew the log.
    """
    chosen = load(scenario)
    if seconds is not None:
        chosen = chosen.replace(horizon_s=seconds)
    batch = Batch(chosen, aqm=aqm, log_rows=LOG_ROWS)
    batch.reset(0, seeding.np_random(seed)[0])
    step_ns = max(round(chosen.horizon_s * 1e9 / _REPORTS), 1)
    if progress is not None:
        batch.stop_at(0, step_ns)
    status = layout.RUNNING
    while status not in (layout.TERMINATED, layout.TRUNCATED):
        status = batch.advance_one()
        if status == layout.LOG_FULL:
            yield batch.drain_log(0)
        elif status == layout.STOPPED and progress is not None:
            now_ns = int(batch.env["now_ns"][0])
            progress(now_ns * 1e-9 / chosen.horizon_s)
            batch.stop_at(0, now_ns + step_ns)
    yield batch.drain_log(0, everything=batch.aqm not in AT_DEQUEUE)
    if progress is not None:
        progress(1.0)


def simulate_log(
    scenario: str | Path | Scenario,
    aqm: str | None = None,
    seed: int = 0,
    *,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> Records:
    """The whole log of `simulate_blocks`, which describes the arguments: records (T,)."""
    blocks = simulate_blocks(scenario, aqm, seed, seconds=seconds, progress=progress)
    return np.concatenate([np.zeros(0, RECORD), *blocks])
