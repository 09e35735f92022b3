"""`L4S-DualPI2-Prob-v0`: each step is a control interval; the action is two probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.envs.intervals import Applied, IntervalEnv, IntervalVectorEnv
from l4s_gym.envs.rendering import FPS, RenderMode
from l4s_gym.envs.simulated import flag
from l4s_gym.forms import FORMS, INTERVAL_MS
from l4s_gym.rewards import DEFAULT, Reward
from l4s_gym.sim import layout
from l4s_gym.sim.scenario import OptionTables, Scenarios


def probabilities(actions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert actions in [-1, 1] to probabilities: 10^-4 to 1 on a log scale, and 0 at -1."""
    return np.where(actions > -1.0, 10.0 ** (2.0 * actions - 2.0), 0.0)


class _Probabilities(Applied):
    form = FORMS["probability"]
    asks = "two numbers in [-1, 1], for C and for L"
    decider = layout.PROBABILITY
    _even: bool

    def _write(self, actions: npt.NDArray[np.float64]) -> None:
        records = self.batch.env
        records["p_c"], records["p_l"] = probabilities(actions).T
        records["even"], records["guarded"] = self._even, True

    def _made(self) -> dict[str, Any]:
        return {"even": self._even}


class DualPI2ProbEnv(_Probabilities, IntervalEnv):
    """
    ## Description

    The simulator of `L4S-DualPI2-v0` as a continuous control problem. For each control interval (16 ms by
    default) the agent sets the mark or drop probability of queue C (ECT packets are marked, others are dropped) and
    the mark probability of queue L, as a PI controller would. As in RFC 9332, L's own ramp or threshold (RFC 9332's
    ramp where the discipline has none) still marks where it asks for more than the agent, and from p_C = 25 % on ECT
    packets are dropped too: in C those that p_C hits, in L as many, and the rest of L is marked.

    ## Action space

    `Box(-1, 1, (2,), float32)` for C and L, each a probability on a log scale: 10^(2a - 2), from 10^-4 to 1; a = -1 is
    exactly 0. Packets of C are hit as they arrive, those of L as they leave; at random, or evenly (RFC 9332's
    `recur()`) with `even=True`.

    ## Observation space

    `Box(12,) float32`, over the last interval, C before L:

    | # | feature | what it is | unit of 1 | at most |
    | --- | --- | --- | --- | --- |
    | 0, 1 | `delay_c`, `delay_l` | mean sojourn of the packets that left | 15 ms, 1 ms | 100 |
    | 2, 3 | `queued_c`, `queued_l` | bytes queued at the end, at the link's mean rate | 15 ms, 1 ms | 100 |
    | 4, 5 | `offered_c`, `offered_l` | bytes offered | the link's mean capacity in the interval | 100 |
    | 6, 7 | `marked_c`, `marked_l` | share of the offered packets that was marked | 1 | 1 |
    | 8, 9 | `dropped_c`, `dropped_l` | share of the offered packets that was dropped | 1 | 1 |
    | 10 | `used` | bytes served | the link's mean capacity in the interval | 10 |
    | 11 | `probability` | base probability of the discipline | 1 | 1 |

    The link's rate is known as it is at the start: nobody tells when it changes.

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
        control_interval_ms: float = INTERVAL_MS,
        reward: Reward = DEFAULT,
        even: bool = False,
        render_mode: RenderMode | None = None,
        render_fps: float = FPS,
        horizon_s: float | None = None,
        options: OptionTables | None = None,
    ) -> None:
        self._even = flag("even", even)
        self._open(
            scenario,
            aqm=aqm,
            control_interval_ms=control_interval_ms,
            horizon_s=horizon_s,
            options=options,
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
        control_interval_ms: float = INTERVAL_MS,
        reward: Reward = DEFAULT,
        even: bool = False,
        render_mode: str | None = None,
        autoreset_mode: str = "next_step",
        copy: bool = True,
        horizon_s: float | None = None,
        options: OptionTables | None = None,
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
            options=options,
            reward=reward,
            num_threads=num_threads,
        )
