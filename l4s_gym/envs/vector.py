"""The native vector environment: the same compiled step over a batch, on all cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from l4s_gym.envs.dualpi2 import check_interval, load_scenario, observation_space, refuse_arguments
from l4s_gym.envs.snapshots import Snapshots
from l4s_gym.errors import L4SError, unknown
from l4s_gym.sim import engine, layout, measure
from l4s_gym.sim.batch import Batch

# Gymnasium 1.0.0 has no such enumeration: it knows no other mode than the next step's.
_ENUM: Any = getattr(gym.vector, "AutoresetMode", None)
_MODES: dict[str, Any] = {name: getattr(_ENUM, name.upper(), name) for name in ("next_step", "same_step", "disabled")}


class DualPI2VectorEnv(Snapshots, VectorEnv[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[Any]]):
    """`num_envs` copies of `L4S-DualPI2-v0` (its page tells spaces, rewards and arguments).

    Environment i after `reset(seed=s)` is a single environment after `reset(seed=s + i)`. With `copy=False`
    the arrays that `step` returns are the engine's own (`buffers`), overwritten by the next step.

    `autoreset_mode`: `next_step` (an ended environment starts anew at the next step, whose action is ignored),
    `same_step` (at once; the last observation and info are in `infos["final_obs"]` and `infos["final_info"]`), or
    `disabled` (reset by hand: `reset(options={"reset_mask": mask})`). Infos are those of Gymnasium's `SyncVectorEnv`:
    an array a key, nested like the single environment's info, each with a mask `_key` of who has it.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": _MODES["next_step"]}
    _parts = ("batch",)
    _values = ("_rngs", "_ended")

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | dict[str, Any] = "l4s-llm-testbed",
        aqm: str | None = None,
        decision_interval: int = 1,
        reward: str = "balance",
        render_mode: str | None = None,
        autoreset_mode: str = "next_step",
        copy: bool = True,
        **unexpected: Any,
    ) -> None:
        if unexpected:
            refuse_arguments(type(self).__name__, unexpected)
        if render_mode is not None:
            raise L4SError(f"render_mode {render_mode!r}: the vector environment draws nothing; use gym.make")
        name = str(getattr(autoreset_mode, "name", autoreset_mode)).lower()
        if name not in _MODES:
            raise unknown("autoreset_mode", autoreset_mode, tuple(_MODES))
        if num_envs < 1:
            raise L4SError(f"num_envs={num_envs}: give 1 or more")
        self.metadata = {**self.metadata, "autoreset_mode": _MODES[name]}
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space = observation_space()
        self.single_action_space = gym.spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.batch = Batch(
            load_scenario(scenario),
            num_envs,
            aqm=aqm,
            decider=layout.AGENT,
            interval=check_interval(decision_interval),
            reward=reward,
        )
        self._mode = name
        self._copy = copy
        self._rngs: list[np.random.Generator] = []
        self._ended = np.zeros(num_envs, bool)
        self._all = np.ones(num_envs, bool)

    def _identity(self) -> dict[str, str]:
        return {**self.batch.identity, "autoreset_mode": self._mode}

    @property
    def buffers(self) -> dict[str, npt.NDArray[Any]]:
        """The engine's contiguous arrays: obs (N, 8) float32, reward (N,) float64, action and status (N,) int64."""
        b = self.batch
        return {"obs": b.obs, "reward": b.reward, "action": b.action, "status": b.status}

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start all episodes, or those of `options["reset_mask"]`; seeds are `seed + i` or one each."""
        mask = np.asarray((options or {}).get("reset_mask", self._all), bool)
        if mask.shape != (self.num_envs,) or not mask.any():
            raise L4SError(f"reset_mask: give {self.num_envs} booleans, at least one of them true")
        if not self._rngs and not mask.all():
            raise L4SError("reset_mask: start all environments once before resetting some of them")
        seeds: Sequence[int | None]
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise L4SError(f"{len(seeds)} seeds for {self.num_envs} environments: give one each, or a single number")
        if not self._rngs:
            self._rngs = [seeding.np_random(s)[0] for s in seeds]
        else:
            for i in np.flatnonzero(mask).tolist():
                if seeds[i] is not None:
                    self._rngs[i] = seeding.np_random(seeds[i])[0]
        for i in np.flatnonzero(mask).tolist():
            self._start(i)
        self._ended[mask] = False
        return self._observations(), self._infos()

    def _start(self, i: int) -> None:
        """Begin an episode of environment `i` and run to its first decision."""
        self.batch.reset(i, self._rngs[i])
        engine.advance(self.batch.address, self.batch.stride, i, i + 1, 0)
        self.batch.reward[i] = 0.0

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[
        npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]
    ]:
        """Apply one action each; (N,) integers of 0, 1, 2."""
        batch = self.batch
        if not self._rngs:
            raise gym.error.ResetNeeded("step: the environments have not been started; call reset() first")
        given = np.asarray(actions)
        if given.shape != (self.num_envs,) or given.dtype.kind not in "iu" or (given.astype(np.uint64) > 2).any():
            raise L4SError(f"actions: give {self.num_envs} integers of 0 (enqueue), 1 (drop) or 2 (mark)")
        batch.action[:] = given
        restarted = self._ended
        any_restarted = restarted.any()
        if any_restarted:
            if self._mode == "disabled":
                which = np.flatnonzero(restarted).tolist()
                raise gym.error.ResetNeeded(f"step: environments {which} have ended; reset them with reset_mask")
            for i in np.flatnonzero(restarted).tolist():
                batch.reset(i, self._rngs[i])
        batch.advance()
        if any_restarted:
            batch.reward[restarted] = 0.0
        status = batch.status
        terminated = status == layout.TERMINATED
        truncated = status == layout.TRUNCATED
        ended = terminated | truncated
        if not ended.any():
            self._ended = ended
            return self._observations(), self._take(batch.reward), terminated, truncated, self._infos()
        infos: dict[str, Any] = {}
        rewards = self._take(batch.reward)
        if self._mode == "same_step":
            rewards = batch.reward.copy()
            final = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(ended).tolist():
                final[i] = batch.obs[i].copy()
                infos = self._add_info(infos, {"final_info": self._last_info(i)}, i)
                self._start(i)
            infos |= {"final_obs": final, "_final_obs": ended.copy()}
            self._ended = np.zeros(self.num_envs, bool)
            infos |= self._infos()
        else:
            infos = self._infos()
            for i in np.flatnonzero(ended).tolist():
                infos = self._add_info(infos, self._last_info(i), i)
            self._ended = ended
        return self._observations(), rewards, terminated, truncated, infos

    def _last_info(self, i: int) -> dict[str, Any]:
        """The single environment's info at the end of an episode."""
        return {"applied_action": int(self.batch.applied[i]), "statistics": measure.summary(self.batch, i)}

    def _take(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array.copy() if self._copy else array

    def _observations(self) -> npt.NDArray[np.float32]:
        return self._take(self.batch.obs)

    def _infos(self) -> dict[str, Any]:
        return {"applied_action": self.batch.applied.copy(), "_applied_action": self._all.copy()}
