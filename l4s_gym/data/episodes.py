"""Episodes from logged decisions: one per run, with what the kernel knew before each decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.causal import as_logged_observation, causal_observation
from l4s_gym.data.logs import Records
from l4s_gym.data.pools import Rows
from l4s_gym.errors import L4SError
from l4s_gym.schema import CLASSIC, DROP, ENQUEUE, L4S, OBSERVED, scale_observation

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

REWARD: Final = "l4s_llm"
"""Name of the reward of logged rows: packet_length (B) / (current_queue_delay (us) + 1000)."""
_REWARD_DELAY_US: Final = 1000
_ACCUMULATED: Final = OBSERVED.index("accumulated_probability")
_ACTIVE: Final = 1


@dataclass(frozen=True)
class Episode:
    """A run of decisions. Step t saw observation t, took action t, and led to observation t + 1.

    Attributes:
        observations: Scaled as the environment's, shape (T + 1, 8) float32.
        actions: What was decided: 0 enqueue, 1 drop, 2 mark, shape (T,) int64.
        rewards: Shape (T,) float64.
        missing: Whether the accumulated probability is unknown, and shown as 0, shape (T + 1,) bool.
        consecutive: Whether each row is the packet right after the one before.
        source: Where the rows come from.
        applied: What was done to the packets, shape (T,) int64.
        absent: Observed fields that the source lacks; they are 0 throughout.
    """

    observations: npt.NDArray[np.float32]
    actions: Ints
    rewards: Floats
    missing: Bools
    consecutive: bool
    source: str
    applied: Ints
    absent: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of steps T."""
        return len(self.actions)


def run_starts(rows: Rows) -> list[int]:
    """Indices of the rows with which runs start, the first included.

    A run starts where the sequence number does not go up, or else where `total_packets` of a queue goes back.
    Rows without these fields are one run.
    """
    records = rows.records
    if "sequence" in rows.present and records["sequence"].any():
        return [0, *(np.flatnonzero(np.diff(records["sequence"].astype(np.int64)) <= 0) + 1).tolist()]
    starts = [0]
    if "total_packets" not in rows.present:
        return starts
    back: list[tuple[int, int]] = []  # (row that went back, row of the same queue before it)
    for queue in (CLASSIC, L4S):
        index = np.flatnonzero(records["queue_type"] == queue)
        fell = np.flatnonzero(np.diff(records["total_packets"][index].astype(np.int64)) < 0)
        back += zip(index[fell + 1].tolist(), index[fell].tolist(), strict=True)
    for row, before in sorted(back):
        if before >= starts[-1]:  # else it is the other queue's first row of the same run
            starts.append(row)
    return starts


def _consecutive(records: Records, present: frozenset[str]) -> bool:
    """Whether no row of a run is lost or repeated, as far as its counters tell; False without counters."""
    if "sequence" in present and records["sequence"].any():
        return bool((np.diff(records["sequence"].astype(np.int64)) == 1).all())
    if "total_packets" not in present:
        return False
    queues = (records["total_packets"][records["queue_type"] == queue] for queue in (CLASSIC, L4S))
    return all(bool((np.diff(total.astype(np.int64)) == 1).all()) for total in queues)


def _applied(rows: Rows) -> Ints:
    """(T,) what was done to the packets: recorded, or else the logged action unless the kernel withheld a drop."""
    records = rows.records
    if "applied_action" in rows.present:
        return records["applied_action"].astype(np.int64)
    active = (records["status_flags"] & _ACTIVE > 0) | ("status_flags" not in rows.present)
    withheld = (records["action"] == DROP) & ((records["burst_allowance"] > 0) | ~active)
    return np.where(withheld, ENQUEUE, records["action"]).astype(np.int64)


def _split(rows: Rows, as_logged: bool) -> Iterator[Episode]:
    if "action" not in rows.present:
        raise L4SError(f"{rows.source}: bears no actions: give logged decisions")
    if not len(rows):
        return
    records = rows.records
    raw = as_logged_observation(rows) if as_logged else causal_observation(rows)
    missing = np.isnan(raw[:, _ACCUMULATED])
    observations = scale_observation(np.nan_to_num(raw, nan=0.0))  # (T, 8)
    rewards = records["packet_length"] / (records["current_queue_delay"] + float(_REWARD_DELAY_US))
    actions, applied = records["action"].astype(np.int64), _applied(rows)
    absent = tuple(name for name in OBSERVED if name not in rows.present)
    starts = run_starts(rows)
    for first, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        if end - first < 2:  # one row is an observation without a step
            continue
        steps = slice(first, end - 1)
        yield Episode(
            observations=observations[first:end],
            actions=actions[steps],
            rewards=rewards[steps],
            missing=missing[first:end],
            consecutive=_consecutive(records[first:end], rows.present),
            source=rows.source,
            applied=applied[steps],
            absent=absent,
        )


def episodes_from_rows(rows: Rows | Sequence[Rows], *, as_logged: bool = False) -> list[Episode]:
    """Cut logged decisions into episodes, one per run; the last row of a run is its final observation.

    The reward is that of the public pools, `REWARD`, from the step's own row. Rows of a pool are not
    consecutive: a pool is one episode that says so.

    Args:
        rows: Logged decisions, of one source or of several.
        as_logged: Observe the fields as printed, which give most drops away, instead of those before the decision.

    Returns:
        The episodes, in the order of the rows; runs of a single row are left out.

    Raises:
        L4SError: A source bears no actions, or no run has two rows.
    """
    sources = [rows] if isinstance(rows, Rows) else list(rows)
    episodes = [episode for source in sources for episode in _split(source, as_logged)]
    if not episodes:
        names = ", ".join(source.source for source in sources) or "rows"
        raise L4SError(f"{names}: no run of two rows or more: an episode needs a step and what follows it")
    return episodes
