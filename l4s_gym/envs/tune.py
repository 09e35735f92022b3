"""`L4S-DualPI2-Tune-v0`: each step is a control interval; the action scales the parameters of the native law."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.envs.intervals import Applied, IntervalEnv, IntervalVectorEnv
from l4s_gym.envs.rendering import FPS, RenderMode
from l4s_gym.errors import L4SError
from l4s_gym.forms import FORMS, INTERVAL_MS
from l4s_gym.rewards import DEFAULT, Reward
from l4s_gym.sim import disciplines, layout
from l4s_gym.sim.discipline import tuned_fields
from l4s_gym.sim.scenario import OptionTables, Scenarios, load_all

PARAMETERS: Final = ("target", "alpha", "beta", "coupling", "threshold")
"""What the five numbers of an action scale, in their order."""
LOWEST: Final = np.array([0.13, 0.25, 0.5, 0.5, 0.15])
HIGHEST: Final = np.array([4.0, 2.0, 6.0, 4.2, 6.8])
"""Factors at -1 and at 1."""


def factors(
    actions: npt.ArrayLike, lowest: npt.ArrayLike = LOWEST, highest: npt.ArrayLike = HIGHEST
) -> npt.NDArray[np.float64]:
    """Convert actions in [-1, 1] to factors (..., 5): linear in their logarithm on either side of 0, where they are 1.

    Args:
        actions: (..., 5).
        lowest: Factors at -1 (5,), to the bit.
        highest: Factors at 1 (5,), to the bit.
    """
    a = np.asarray(actions, np.float64)
    return np.where(a > 0.0, np.power(highest, a), np.power(lowest, -a))


class _Parameters(Applied):
    form = FORMS["parameters"]
    asks = f"five numbers in [-1, 1], for {', '.join(PARAMETERS)}"
    decider = layout.NATIVE
    _given: npt.NDArray[np.int64]
    """The operator's values in each environment (n, 5)."""

    def _simulate(self, scenario: Scenarios, n: int, *rest: Any, aqm: str | None = None, **more: Any) -> None:
        names = sorted({aqm or each.aqm for each in load_all(scenario)})
        tunes = [disciplines.get(name).tune for name in names]
        if not all(tunes) or len(names) > 1:
            known = " or ".join(repr(each.name) for each in disciplines.BUILT_IN if each.tune)
            raise L4SError(f"aqm: {', '.join(names)}: give one whose parameters can be scaled: {known}")
        self._tune = tunes[0]
        self._given = np.zeros((n, len(PARAMETERS)), np.int64)
        super()._simulate(scenario, n, *rest, aqm=aqm, **more)

    def _fields(self) -> list[npt.NDArray[np.int64]]:
        """Return the fields that are scaled, each (n,), in the engine's memory."""
        own, env = self.batch.own, self.batch.env
        return [(own if each.name in (own.dtype.names or ()) else env)[each.name] for each in self._tune]

    def _begin(self, i: int) -> None:
        super()._begin(i)
        self._given[i] = [field[i] for field in self._fields()]
        tuned_fields(self._tune, self._given[i], np.ones(len(PARAMETERS)))  # refuses what cannot be scaled

    def _write(self, actions: npt.NDArray[np.float64]) -> None:
        values = tuned_fields(self._tune, self._given, factors(actions))
        for field, column in zip(self._fields(), values.T, strict=True):
            field[:] = column


class DualPI2TuneEnv(_Parameters, IntervalEnv):
    """
    ## Description

    The simulator of `L4S-DualPI2-v0`, in which the native law decides every packet and the agent sets its parameters:
    for each control interval (16 ms by default) factors of target, gains, coupling and threshold of L. The L ramp and
    the drops in overload stay what they are, so a slow agent, and any action, leave a working queue.

    ## Action space

    `Box(-1, 1, (5,), float32)`: 0 is the operator's value, which the scenario's options give. Between -1, 0 and 1 the
    logarithm of the factor is linear.

    | # | parameter | factor at -1 | at 1 | option of `dualpi2_rfc9332` | of `dualpi2_linux` |
    |---|---|---|---|---|---|
    | 0 | target delay | 0.13 | 4 | `target_ms` | `target_ms` |
    | 1 | integral gain | 0.25 | 2 | `alpha` | `alpha` |
    | 2 | proportional gain | 0.5 | 6 | `beta` | `beta` |
    | 3 | coupling k | 0.5 | 4.2 | `coupling`, at least 1 | `coupling`, a whole number from 2 on |
    | 4 | threshold of L | 0.15 | 6.8 | `min_th_us`, the foot of the ramp | `step_ms` |

    Below these k the overload drops of L would never begin. The linearised loop is stable in a part of the box only, at
    an RTT of 100 ms not even with RFC 9332's own values; `benchmarks/studies/tune` shows which part, and that delays stay
    bounded in all of it. What unstable parameters cost is throughput.

    ## Observation space

    `Box(29,) float32`, over the last interval, C before L:

    | # | feature | what it is | unit of 1 | at most |
    | --- | --- | --- | --- | --- |
    | 0, 1 | `delay_c`, `delay_l` | mean sojourn of the packets that left | 15 ms, 1 ms | 100 |
    | 2, 3 | `queued_c`, `queued_l` | bytes queued at the end, at the link's mean rate | 15 ms, 1 ms | 100 |
    | 4, 5 | `offered_c`, `offered_l` | bytes offered | the link's mean capacity in the interval | 100 |
    | 6, 7 | `marked_c`, `marked_l` | share of the offered packets that was marked | 1 | 1 |
    | 8, 9 | `dropped_c`, `dropped_l` | share of the offered packets that was dropped | 1 | 1 |
    | 10 | `used` | bytes served | the link's mean capacity in the interval | 10 |
    | 11 | `probability` | base probability of the discipline | 1 | 1 |
    | 12, 13 | `delay_c_250ms`, `delay_l_250ms` | mean sojourn of the packets that left, moving average over 0.25 s | 15 ms, 1 ms | 100 |
    | 14, 15 | `offered_c_250ms`, `offered_l_250ms` | bytes offered, moving average over 0.25 s | the link's mean capacity in the interval | 100 |
    | 16, 17 | `marked_c_250ms`, `marked_l_250ms` | share of the offered packets that was marked, moving average over 0.25 s | 1 | 1 |
    | 18 | `used_250ms` | bytes served, moving average over 0.25 s | the link's mean capacity in the interval | 10 |
    | 19, 20 | `delay_c_500ms`, `delay_l_500ms` | mean sojourn of the packets that left, moving average over 0.5 s | 15 ms, 1 ms | 100 |
    | 21, 22 | `offered_c_500ms`, `offered_l_500ms` | bytes offered, moving average over 0.5 s | the link's mean capacity in the interval | 100 |
    | 23, 24 | `marked_c_500ms`, `marked_l_500ms` | share of the offered packets that was marked, moving average over 0.5 s | 1 | 1 |
    | 25 | `used_500ms` | bytes served, moving average over 0.5 s | the link's mean capacity in the interval | 10 |
    | 26, 27 | `flows_c`, `flows_l` | ln(1 + flows that have offered packets in the last 0.5 s) | 1 | 10 |
    | 28 | `rate` | ln(mean rate of the link / 56 kbit/s) | 1 | 16 |

    The moving averages are exponential, with these time constants, and start at 0. The link's rate is known as it is at
    the start: nobody tells when it changes.

    ## Rewards, starting state, episode end, arguments, pictures, copies

    As `L4S-DualPI2-v0`, without the reward `l4s_llm`, `decision_interval` and `info_record`. `info["components"]` has
    the components of each step's reward; `l4s_gym.envs.multi.MultiObjective` makes them a reward vector. Further

    | argument | meaning |
    |---|---|
    | `aqm` | `dualpi2_rfc9332` (default) or `dualpi2_linux`; None: the scenario's own, which must be one of them |
    | `control_interval_ms` | length of an interval, simulated milliseconds |

    ## Version history

    - v0: first version.
    """

    _values = (*IntervalEnv._values, "_given")

    def __init__(
        self,
        scenario: Scenarios = "l4s-llm-testbed",
        aqm: str | None = "dualpi2_rfc9332",
        control_interval_ms: float = INTERVAL_MS,
        reward: Reward = DEFAULT,
        render_mode: RenderMode | None = None,
        render_fps: float = FPS,
        horizon_s: float | None = None,
        options: OptionTables | None = None,
    ) -> None:
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


class DualPI2TuneVectorEnv(_Parameters, IntervalVectorEnv):
    """`num_envs` copies of `L4S-DualPI2-Tune-v0`; its page describes spaces, rewards and arguments.

    Seeds, infos, `autoreset_mode`, `copy` and `num_threads` are those of `l4s_gym.envs.vector.DualPI2VectorEnv`.
    """

    _values = (*IntervalVectorEnv._values, "_given")

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenarios = "l4s-llm-testbed",
        aqm: str | None = "dualpi2_rfc9332",
        control_interval_ms: float = INTERVAL_MS,
        reward: Reward = DEFAULT,
        render_mode: str | None = None,
        autoreset_mode: str = "next_step",
        copy: bool = True,
        horizon_s: float | None = None,
        options: OptionTables | None = None,
        num_threads: int | None = None,
    ) -> None:
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
