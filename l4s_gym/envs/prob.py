"""`L4S-DualPI2-Prob-v0`: one step is one control interval, the action a pair of probabilities."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from l4s_gym.envs.dualpi2 import load_scenario
from l4s_gym.envs.rendering import FPS, RenderMode, metadata
from l4s_gym.envs.simulated import SimulatedEnv
from l4s_gym.errors import L4SError
from l4s_gym.schema import ENQUEUE
from l4s_gym.sim import layout, measure
from l4s_gym.sim.batch import Batch

_HIGH = np.array([100, 100, 100, 100, 100, 100, 1, 1, 1, 1, 10, 1], np.float32)


class DualPI2ProbEnv(SimulatedEnv[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """
    ## Description

    The simulator of `L4S-DualPI2-v0` as a continuous control problem: for each control interval (16 ms by
    default) the agent sets the mark probability of queue L and the mark or drop probability of queue C
    (ECT packets are marked, others dropped), as a PI controller would.

    ## Action space

    `Box(0, 1, (2,), float32)`: probability for L, probability for C. Packets are hit at random, or evenly
    (RFC 9332's `recur()`) with `even=True`.

    ## Observation space

    `Box(12,) float32`, over the last interval, C before L:

    | # | feature | unit of 1 | at most |
    |---|---|---|---|
    | 0, 1 | mean sojourn of the packets that left | 15 ms, 1 ms | 100 |
    | 2, 3 | bytes queued at the end (without queues C and L: as C) | one reference delay (15 ms, 1 ms) at the link's rate | 100 |
    | 4, 5 | bytes offered | the link's capacity in the interval | 100 |
    | 6, 7 | share of offered packets marked | 1 | 1 |
    | 8, 9 | share of offered packets dropped | 1 | 1 |
    | 10 | bytes served | the link's mean capacity in the interval | 10 |
    | 11 | base probability of the discipline underneath | 1 | 1 |

    ## Rewards, starting state, episode end, arguments, pictures, copies

    As `L4S-DualPI2-v0`, rewards `balance` and `power`; `control_interval_ms` instead of `decision_interval`.

    ## Version history

    - v0: first version.
    """

    metadata: dict[str, Any] = metadata()
    _values = ("_np_random", "_np_random_seed", "_ready", "_before")

    def __init__(
        self,
        scenario: str | dict[str, Any] = "l4s-llm-testbed",
        aqm: str | None = None,
        control_interval_ms: float = 16.0,
        reward: str = "balance",
        even: bool = False,
        render_mode: RenderMode | None = None,
        render_fps: float = FPS,
    ) -> None:
        if not 0.0 < control_interval_ms < 1e6:
            raise L4SError(f"control_interval_ms={control_interval_ms!r}: give a positive number of milliseconds")
        if reward == "l4s_llm":
            raise L4SError("reward 'l4s_llm' belongs to single packets; use 'balance' or 'power'")
        self.action_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)
        self.observation_space = gym.spaces.Box(np.zeros(12, np.float32), _HIGH, dtype=np.float32)
        self.batch = Batch(load_scenario(scenario), aqm=aqm, decider=layout.PROBABILITY, reward=reward)
        self._even = int(even)
        self._interval_ns = round(control_interval_ms * 1e6)
        self._ready = False
        self._before = np.zeros((7, 2))
        self._watch(render_mode, render_fps)

    def _identity(self) -> dict[str, str]:
        return {**super()._identity(), "control_interval_ns": str(self._interval_ns), "even": str(self._even)}

    def _counters(self) -> npt.NDArray[np.float64]:
        q = self.batch.queue[0]
        names = ("left_delay_ns", "left", "offered_bytes", "offered", "marked", "dropped")
        served = np.full(2, self.batch.carried_bytes(0))
        return np.array([*(q[name].astype(float) for name in names), served])  # (7, 2)

    def _observe(self, elapsed_ns: int) -> npt.NDArray[np.float32]:
        env = self.batch.env[0]
        now = self._counters()
        delay, left, arrived, offered, marked, dropped, served = now - self._before
        self._before = now
        capacity = max(float(env["base_rate_bps"]) * elapsed_ns / 8e9, 1.0)
        reference = np.array([1.0 / env["per_ref_c"], 1.0 / env["per_ref_l"]])
        per_reference = float(env["base_rate_bps"]) * reference / 8e9
        packets = np.maximum(offered, 1.0)
        obs: npt.NDArray[np.float64] = np.concatenate(
            [
                delay / np.maximum(left, 1.0) / reference,
                self.batch.queued(0, "bytes") / per_reference,
                arrived / capacity,
                marked / packets,
                dropped / packets,
                [served[0] / capacity, self.batch.base_probability(0)],
            ]
        )
        return np.clip(obs, 0.0, _HIGH).astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode; `seed` fixes everything random."""
        super().reset(seed=seed)
        self.batch.reset(0, self.np_random)
        self.batch.env["even"] = self._even
        self._before = self._counters()
        self._ready = True
        if self._view is not None:
            self._view.start()
        return self._observe(1), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Set both probabilities and run for one control interval."""
        if not self._ready:
            raise gym.error.ResetNeeded("step: the environment has not been started or has ended; call reset() first")
        try:
            given = np.asarray(action, np.float64)
        except (TypeError, ValueError):
            given = np.full(0, np.nan)
        if given.shape != (2,) or not ((given >= 0.0) & (given <= 1.0)).all():
            raise L4SError(f"action {action!r}: give two probabilities in [0, 1], for L and for C")
        batch = self.batch
        batch.env["p_l"], batch.env["p_c"] = given
        start = int(batch.env["now_ns"][0])
        batch.stop_at(0, start + self._interval_ns)
        status = batch.advance_one()
        if self._view is not None:
            self._view.note(ENQUEUE)
        over = status in (layout.TERMINATED, layout.TRUNCATED)
        info: dict[str, Any] = {}
        if over:
            self._ready = False
            info["statistics"] = measure.summary(batch, 0)
        obs = self._observe(int(batch.env["now_ns"][0]) - start)
        reward = float(batch.reward[0])
        return obs, reward, status == layout.TERMINATED, status == layout.TRUNCATED, info
