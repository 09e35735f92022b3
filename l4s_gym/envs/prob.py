"""`L4S-DualPI2-Prob-v0`: each step is a control interval; the action is two probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.envs.intervals import Form, IntervalEnv, IntervalVectorEnv
from l4s_gym.envs.rendering import FPS, RenderMode
from l4s_gym.envs.simulated import flag
from l4s_gym.rewards import Reward
from l4s_gym.sim import layout
from l4s_gym.sim.scenario import Scenarios


class _Probabilities(Form):
    low, high = np.zeros(2), np.ones(2)
    asks = "two probabilities in [0, 1], for L and for C"
    decider = layout.PROBABILITY
    _even: bool

    def _write(self, actions: npt.NDArray[np.float64]) -> None:
        records = self.batch.env
        records["p_l"], records["p_c"] = actions.T
        records["even"] = self._even

    def _made(self) -> dict[str, Any]:
        return {"even": self._even}


class DualPI2ProbEnv(_Probabilities, IntervalEnv):
    """
    ## Description

    The simulator of `L4S-DualPI2-v0` as a continuous control problem. For each control interval (16 ms by
    default) the agent sets the mark probability of queue L, and the mark or drop probability of queue C
    (ECT packets are marked, others are dropped), as a PI controller would.

    ## Action space

    `Box(0, 1, (2,), float32)`: probability for L, probability for C. Packets are hit at random, or evenly
    (RFC 9332's `recur()`) with `even=True`.

    ## Observation space

    `Box(12,) float32`, over the last interval, C before L:

    | # | feature | unit of 1 | at most |
    |---|---|---|---|
    | 0, 1 | mean sojourn of the packets that left | 15 ms, 1 ms | 100 |
    | 2, 3 | bytes queued at the end | one reference delay (15 ms, 1 ms) at the link's rate | 100 |
    | 4, 5 | bytes offered | the link's capacity in the interval | 100 |
    | 6, 7 | share of offered packets marked | 1 | 1 |
    | 8, 9 | share of offered packets dropped | 1 | 1 |
    | 10 | bytes served | the link's mean capacity in the interval | 10 |
    | 11 | base probability of the discipline below the agent | 1 | 1 |

    ## Rewards, starting state, episode end, arguments, pictures, copies

    As `L4S-DualPI2-v0`, without the reward `l4s_llm`, `decision_interval` and `info_record`. `info["components"]` has
    the components of each step's reward; `l4s_gym.envs.multi.MultiObjective` makes them a reward vector. Further

    | argument | meaning |
    |---|---|
    | `control_interval_ms` | length of an interval, simulated milliseconds |
    | `even` | hit packets evenly, not at random |

    ## Version history

    - v0: first version.
    """

    def __init__(
        self,
        scenario: Scenarios = "l4s-llm-testbed",
        aqm: str | None = None,
        control_interval_ms: float = 16.0,
        reward: Reward = "balance",
        even: bool = False,
        render_mode: RenderMode | None = None,
        render_fps: float = FPS,
        horizon_s: float | None = None,
    ) -> None:
        self._even = flag("even", even)
        self._open(
            scenario,
            aqm=aqm,
            control_interval_ms=control_interval_ms,
            horizon_s=horizon_s,
            reward=reward,
            render_mode=render_mode,
            render_fps=render_fps,
        )


class DualPI2ProbVectorEnv(_Probabilities, IntervalVectorEnv):
    """`num_envs` copies of `L4S-DualPI2-Prob-v0`; its page describes spaces, rewards and arguments.

    Seeds, infos, `autoreset_mode`, `copy` and `num_threads` are those of `l4s_gym.envs.vector.DualPI2VectorEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenarios = "l4s-llm-testbed",
        aqm: str | None = None,
        control_interval_ms: float = 16.0,
        reward: Reward = "balance",
        even: bool = False,
        render_mode: str | None = None,
        autoreset_mode: str = "next_step",
        copy: bool = True,
        horizon_s: float | None = None,
        num_threads: int | None = None,
    ) -> None:
        self._even = flag("even", even)
        self._open(
            num_envs,
            scenario,
            render_mode,
            autoreset_mode,
            copy,
            aqm=aqm,
            control_interval_ms=control_interval_ms,
            horizon_s=horizon_s,
            reward=reward,
            num_threads=num_threads,
        )
