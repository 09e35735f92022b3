"""Native vector environments: the compiled step runs over a whole batch, on all cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from l4s_gym import schema
from l4s_gym.envs.dualpi2 import check_interval, in_kernel_units, observation_space, refuse_arguments
from l4s_gym.envs.simulated import chosen_scenario, flag, read_options, whole
from l4s_gym.envs.snapshots import Snapshots
from l4s_gym.errors import L4SError, unknown
from l4s_gym.rewards import DEFAULT, Reward
from l4s_gym.sim import engine, layout, measure
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import OptionTables, Scenarios, load_all

Actions = TypeVar("Actions", bound=npt.NDArray[Any])

# Gymnasium 1.0.0 has no such enumeration: it knows no other mode than the next step's.
_ENUM: Any = getattr(gym.vector, "AutoresetMode", None)
_MODES: dict[str, Any] = {name: getattr(_ENUM, name.upper(), name) for name in ("next_step", "same_step", "disabled")}


class SimulatedVectorEnv(Snapshots, VectorEnv[npt.NDArray[np.float32], Actions, npt.NDArray[Any]]):
    """Base class of the vector environments; a subclass calls `_arrange`, creates the batch, defines the methods below."""

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": _MODES["next_step"]}
    batch: Batch
    _parts: ClassVar[tuple[str, ...]] = ("batch",)
    _values: ClassVar[tuple[str, ...]] = ("_rngs", "_ended")

    @property
    def _obs(self) -> npt.NDArray[np.float32]:
        """The observations, (N, F)."""
        raise NotImplementedError

    def _apply(self, actions: Actions) -> None:
        """Check the actions and pass them to the engine."""
        raise NotImplementedError

    def _begin(self, i: int) -> None:
        """Simulate environment `i`, which was just reset, until its first observation."""
        raise NotImplementedError

    def _advance(self) -> int:
        """Simulate each environment that has not ended until its next observation; return the highest status."""
        raise NotImplementedError

    def _infos(self) -> dict[str, Any]:
        """Return the infos of a step."""
        return {}

    def _step_infos(self, stepped: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Return the infos of the environments (N,) that have made a step, and not just started."""
        return {}

    def _last_info(self, i: int) -> dict[str, Any]:
        """Return the info of one environment at the end of its episode."""
        return {"statistics": measure.summary(self.batch, i)}

    def _arrange(
        self,
        num_envs: int,
        action: gym.Space[Any],
        observation: gym.Space[Any],
        render_mode: str | None,
        autoreset_mode: Any,
        copy: bool,
    ) -> None:
        """Check the arguments and set the attributes of a Gymnasium vector environment."""
        if render_mode is not None:
            raise L4SError(f"render_mode {render_mode!r}: the vector environment draws nothing; use gym.make")
        name = str(getattr(autoreset_mode, "name", autoreset_mode)).lower()
        if name not in _MODES:
            raise unknown("autoreset_mode", autoreset_mode, tuple(_MODES))
        self.num_envs = whole("num_envs", num_envs)
        self.metadata = {**self.metadata, "autoreset_mode": _MODES[name]}
        self.render_mode = None
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space = batch_space(observation, num_envs)
        self.action_space = batch_space(action, num_envs)
        self._mode = name
        self._copy = flag("copy", copy)
        self._rngs: list[np.random.Generator] = []
        self._ended = np.zeros(num_envs, bool)
        self._all = np.ones(num_envs, bool)

    def _identity(self) -> dict[str, str]:
        return {**self.batch.identity, "autoreset_mode": self._mode}

    @property
    def buffers(self) -> dict[str, npt.NDArray[Any]]:
        """The engine's own contiguous arrays: obs (N, F) float32, reward (N,) float64, action and status (N,) int64."""
        b = self.batch
        return {"obs": self._obs, "reward": b.reward, "action": b.action, "status": b.status}

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start all episodes, or those of `options["reset_mask"]`; seeds are `seed + i` or one each.

        `options["scenario"]` names the scenario of all, or is a list of one name each.
        """
        given = read_options(options, ("scenario", "reset_mask"))
        named = given.get("scenario")
        if isinstance(named, list | tuple):
            if len(named) != self.num_envs:
                raise L4SError(f"scenario: {len(named)} names for {self.num_envs} environments: give one each, or one")
            which = [chosen_scenario({"scenario": name}, self.batch) for name in named]
        else:
            which = [chosen_scenario(given, self.batch)] * self.num_envs
        mask = np.asarray(given.get("reset_mask", self._all), bool)
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
            for i in mask.nonzero()[0].tolist():
                if seeds[i] is not None:
                    self._rngs[i] = seeding.np_random(seeds[i])[0]
        started = mask.nonzero()[0].tolist()
        for i in started:
            self._start(i, which[i])
        self._ended[mask] = False
        return self._take(self._obs), self._tell_scenarios(self._infos(), started)

    def _start(self, i: int, which: int | None = None) -> None:
        """Start an episode of environment `i`; the scenario is drawn if its number is not given."""
        self.batch.reset(i, self._rngs[i], which)
        self.batch.stop_after_warmup(i)
        self._begin(i)
        self.batch.reward[i] = 0.0

    def _tell_scenarios(self, infos: dict[str, Any], started: list[int]) -> dict[str, Any]:
        """Add the scenarios of the episodes that have just started to the infos."""
        for i in started:
            infos = self._add_info(infos, {"scenario": self.batch.scenario_of(i).name}, i)
        return infos

    def step(
        self, actions: Actions
    ) -> tuple[
        npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]
    ]:
        """Apply one action to each environment, (N, ...)."""
        batch = self.batch
        if not self._rngs:
            raise gym.error.ResetNeeded("step: the environments have not been started; call reset() first")
        self._apply(actions)
        started: list[int] = self._ended.nonzero()[0].tolist()
        if started and self._mode == "disabled":
            raise gym.error.ResetNeeded(f"step: environments {started} have ended; reset them with reset_mask")
        highest = self._advance()
        for i in started:
            self._start(i)
        if highest < layout.TERMINATED and not started:  # none has ended
            none = np.zeros(self.num_envs, bool)
            stepped = self._infos() | self._step_infos(self._all)
            return self._take(self._obs), self._take(batch.reward), none, none.copy(), stepped
        status = batch.status
        terminated = status == layout.TERMINATED
        truncated = status == layout.TRUNCATED
        ended = terminated | truncated
        rewards = self._take(batch.reward)
        infos: dict[str, Any] = {}
        which = ended.nonzero()[0].tolist()
        if which and self._mode == "same_step":
            rewards = batch.reward.copy()
            final = np.full(self.num_envs, None, object)
            for i in which:
                final[i] = self._obs[i].copy()
                infos = self._add_info(infos, {"final_info": self._last_info(i)}, i)
                self._start(i)
            infos |= {"final_obs": final, "_final_obs": ended}
            self._ended = np.zeros(self.num_envs, bool)
            infos |= self._tell_scenarios(self._infos() | self._step_infos(~ended), which)
        else:
            infos = self._tell_scenarios(self._infos() | self._step_infos(~self._ended), started)
            for i in which:
                infos = self._add_info(infos, self._last_info(i), i)
            self._ended = ended
        return self._take(self._obs), rewards, terminated, truncated, infos

    def _take(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array.copy() if self._copy else array


class DualPI2VectorEnv(SimulatedVectorEnv[npt.NDArray[np.int64]]):
    """`num_envs` copies of `L4S-DualPI2-v0`, whose page describes spaces, rewards and arguments.

    Environment i after `reset(seed=s)` is a single environment after `reset(seed=s + i)`.

    | argument | meaning |
    |---|---|
    | `copy` | False: the arrays that `step` returns are the engine's own (`buffers`), overwritten by the next step |
    | `num_threads` | threads that step the batch; None: all cores, for 128 environments or more |
    | `autoreset_mode` | what follows the end of an episode |

    `autoreset_mode`: `next_step` (an environment that has ended is reset in the next step, whose action is ignored),
    `same_step` (it is reset at once; the last observation and info are in `infos["final_obs"]` and
    `infos["final_info"]`), or `disabled` (call `reset(options={"reset_mask": mask})`). Infos have the form of
    Gymnasium's `SyncVectorEnv`: one array for each key, nested like the info of a single environment, and a mask
    `_key` of the environments that have it. `scenario` is given for environments that have just started.
    """

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenarios = "l4s-llm-testbed",
        aqm: str | None = None,
        decision_interval: int = 1,
        reward: Reward = DEFAULT,
        render_mode: str | None = None,
        autoreset_mode: str = "next_step",
        copy: bool = True,
        info_record: bool = False,
        horizon_s: float | None = None,
        options: OptionTables | None = None,
        num_threads: int | None = None,
        **unexpected: Any,
    ) -> None:
        if unexpected:
            refuse_arguments(type(self).__name__, unexpected)
        self._arrange(num_envs, gym.spaces.Discrete(3), observation_space(), render_mode, autoreset_mode, copy)
        self._info_record = flag("info_record", info_record)
        self.batch = Batch(
            load_all(scenario, horizon_s, options),
            num_envs,
            aqm=aqm,
            decider=layout.AGENT,
            interval=check_interval(decision_interval),
            reward=reward,
            num_threads=num_threads,
        )

    @property
    def _obs(self) -> npt.NDArray[np.float32]:
        return self.batch.obs

    def _apply(self, actions: npt.NDArray[np.int64]) -> None:
        given = np.asarray(actions)
        fits = given.shape == (self.num_envs,) and given.dtype.kind in "iu"
        if not fits or not engine.accept(np.ascontiguousarray(given, np.int64), self.batch.action):
            raise L4SError(f"actions: give {self.num_envs} integers of 0 (enqueue), 1 (drop) or 2 (mark)")

    def _begin(self, i: int) -> None:
        engine.advance(self.batch.address, self.batch.stride, i, i + 1, 0)
        self.batch.leave_warmup()

    def _advance(self) -> int:
        highest = self.batch.advance()
        return highest if highest == layout.DECISION else self.batch.leave_warmup()

    def _infos(self) -> dict[str, Any]:
        infos: dict[str, Any] = {"applied_action": self.batch.applied.copy(), "_applied_action": self._all.copy()}
        if self._info_record:
            raw = np.rint(schema.unscale_observation(self.batch.obs)).astype(np.int64)
            infos["record"] = dict(zip(schema.OBSERVED, raw.T, strict=True))
            infos["record"] |= {f"_{name}": self._all.copy() for name in schema.OBSERVED}
            infos["_record"] = self._all.copy()
        return infos

    def _last_info(self, i: int) -> dict[str, Any]:
        info = {"applied_action": int(self.batch.applied[i]), **super()._last_info(i)}
        if self._info_record:
            info["record"] = in_kernel_units(self.batch.obs[i])
        return info
