"""Logged decisions as steps: what was observed, done and earned, one packed row a packet.

The stretch between the records of a log and the episodes of a dataset. A step's row holds what belongs to one
packet; an episode of T steps is T + 1 rows, the last of which is the final observation only.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.causal import CausalStream
from l4s_gym.data.logs import Records
from l4s_gym.data.report import Missing
from l4s_gym.errors import L4SError
from l4s_gym.rewards import L4S_LLM, l4s_llm
from l4s_gym.schema import BY_NAME, DROP, ENQUEUE, OBS_HIGH, OBS_SCALE, OBSERVED, scale_observation

Steps = npt.NDArray[np.void]

REWARD: Final = L4S_LLM
"""Name of the reward of logged rows."""
_ACTIVE: Final = 1
_ACCUMULATED: Final = OBSERVED.index("accumulated_probability")

EXTRAS: Final = ("decided_by", "time_us", "logged_accumulated_probability", "logged_total_drops")
"""What is kept beside the observations: who decided (`schema.DECIDED_BY`), the clock, and the two observed fields
that the log prints otherwise than they were before the decision, as logged, in kernel units. 0 where the source
lacks them."""

STEP: Final[np.dtype[np.void]] = np.dtype(
    [
        ("observation", "f4", (len(OBSERVED),)),
        ("reward", "f8"),
        ("time_us", "i8"),
        ("logged_accumulated_probability", "i8"),
        ("logged_total_drops", "i8"),
        ("action", "i1"),
        ("applied", "i1"),
        ("decided_by", "i1"),
        ("missing", "?"),
    ]
)
"""One row: the scaled observation, the reward of the step, `EXTRAS`, what was decided, what was applied, and whether
the accumulated probability before the decision is unknown (and shown as 0)."""


def logged_rewards(records: Records) -> npt.NDArray[np.float64]:
    """`REWARD` of each record (T,)."""
    rewards: npt.NDArray[np.float64] = l4s_llm(records["packet_length"], records["current_queue_delay"])
    return rewards


def reward_warning(present: frozenset[str]) -> str | None:
    """A line of warning where a source lacks a field of `REWARD`, which is then computed with 0."""
    absent = [name for name in ("packet_length", "current_queue_delay") if name not in present]
    if not absent:
        return None
    return f"warning: the source lacks {' and '.join(absent)}, so the rewards mean nothing: learn from the actions only"


def applied_actions(records: Records, present: frozenset[str]) -> npt.NDArray[np.uint8]:
    """What was done to the packets (T,): recorded, or else the logged action unless the kernel withheld a drop.

    A source without `burst_allowance` does not tell whether a drop was withheld: it counts as done.
    """
    if "applied_action" in present:
        applied: npt.NDArray[np.uint8] = records["applied_action"]
        return applied
    active = (records["status_flags"] & _ACTIVE > 0) | ("status_flags" not in present)
    withheld = (records["action"] == DROP) & ((records["burst_allowance"] > 0) | ~active)
    return np.where(withheld, np.uint8(ENQUEUE), records["action"])


class StepMaker:
    """Turns the records of one source into steps, block by block.

    Args:
        present: Names of the fields that the source bears.
        as_logged: Observe the fields as printed, which give most drops away, instead of those before the decision.
        source: Where the records come from, for errors.
        missing: Counts the rows whose accumulated probability is not known.
    """

    def __init__(
        self,
        present: frozenset[str],
        *,
        as_logged: bool = False,
        source: str = "records",
        missing: Missing | None = None,
    ) -> None:
        if "action" not in present:
            raise L4SError(f"{source}: bears no actions: give logged decisions")
        self.present = present
        self._causal = CausalStream(present, as_logged, missing)
        self._recorded = present >= set(BY_NAME) and not as_logged

    def make(self, records: Records, rewards: npt.NDArray[np.float64] | None = None) -> Steps:
        """Steps of the next records.

        Args:
            records: Records (T,) that follow those of the last call.
            rewards: Reward of each step (T,); None: `REWARD`, from the step's own row.

        Returns:
            `STEP` (T,).
        """
        steps = np.zeros(len(records), STEP)
        if self._recorded and rewards is not None:
            from l4s_gym.data.recorded import fill_steps

            fill_steps(records, rewards, OBS_SCALE, OBS_HIGH.astype(np.float64), steps)
            return steps
        raw = self._causal.observe(records)  # (T, 8)
        steps["missing"] = np.isnan(raw[:, _ACCUMULATED])
        np.nan_to_num(raw, copy=False)
        steps["observation"] = scale_observation(raw)
        if rewards is None:
            rewards = logged_rewards(records)
        steps["reward"] = rewards
        steps["action"] = records["action"]
        steps["applied"] = applied_actions(records, self.present)
        for name in ("decided_by", "time_us"):
            steps[name] = records[name]
        steps["logged_accumulated_probability"] = records["accumulated_probability"]
        steps["logged_total_drops"] = records["total_drops"]
        return steps
