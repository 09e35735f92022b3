"""Environments in which each step is a control interval, single and vector; a form defines the actions."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from l4s_gym import rewards
from l4s_gym.envs.rendering import FPS, RenderMode, metadata
from l4s_gym.envs.simulated import SimulatedEnv
from l4s_gym.envs.vector import SimulatedVectorEnv
from l4s_gym.errors import L4SError
from l4s_gym.forms import Form
from l4s_gym.schema import ENQUEUE
from l4s_gym.sim import layout, measure
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.intervals import Intervals
from l4s_gym.sim.scenario import OptionTables, Scenarios, load_all

Floats = npt.NDArray[np.float32]


class Applied:
    """Base class of the action forms as they are applied in the simulator: a subclass says how.

    An environment inherits from its form first, then from `IntervalEnv` or `IntervalVectorEnv`.
    """

    form: ClassVar[Form]
    """Bounds of an action, and what is observed."""
    asks: ClassVar[str]
    """Description of an action, for errors."""
    decider: ClassVar[int]
    """Who decides about packets, `layout.NATIVE` or `layout.PROBABILITY`."""
    batch: Batch
    intervals: Intervals
    _interval_ns: int

    def _write(self, actions: npt.NDArray[np.float64]) -> None:
        """Write checked actions (n, K) into the records of the batch."""
        raise NotImplementedError

    def _begin(self, i: int) -> None:
        """Prepare environment `i`, which was just reset, for a new episode."""
        self.intervals.start(i)

    def _made(self) -> dict[str, Any]:
        """Return the arguments of the form that a snapshot must have in common."""
        return {}

    def _simulate(
        self,
        scenario: Scenarios,
        n: int,
        control_interval_ms: Any,
        horizon_s: float | None,
        reward: rewards.Reward,
        options: OptionTables | None = None,
        **more: Any,
    ) -> None:
        """Create the batch and its control intervals."""
        real = isinstance(control_interval_ms, int | float | np.integer | np.floating)
        if not real or not 0.0 < control_interval_ms < 1e6:
            raise L4SError(f"control_interval_ms={control_interval_ms!r}: give a positive number of milliseconds")
        rewards.check_timed(reward)
        self.batch = Batch(load_all(scenario, horizon_s, options), n, decider=self.decider, reward=reward, **more)
        self._interval_ns = round(control_interval_ms * 1e6)
        self.intervals = Intervals(self.batch, self._interval_ns, self.form.features)

    def _identity(self) -> dict[str, str]:
        made = {"control_interval_ns": self._interval_ns, **self._made()}
        return {**super()._identity(), **{name: str(value) for name, value in made.items()}}  # type: ignore[misc]

    def _check(self, given: Any, *rows: int) -> npt.NDArray[np.float64]:
        """Check actions (*rows, K) and return them as an array."""
        try:
            actions = np.asarray(given, np.float64)
        except (TypeError, ValueError):
            actions = np.full(0, np.nan)
        low, high = self.form.low, self.form.high
        fits = actions.shape == (*rows, len(low))
        if not fits or not ((actions >= low) & (actions <= high)).all():
            what = f"actions: give {rows[0]} rows, each of" if rows else f"action {given!r}: give"
            raise L4SError(f"{what} {self.asks}")
        return actions

    def _components(self, i: int) -> dict[str, float]:
        """Return the components of the reward of environment `i` in the last step, s."""
        return dict(zip(layout.COMPONENTS, self.intervals.components[i].tolist(), strict=True))


class IntervalEnv(Applied, SimulatedEnv[Floats, Floats]):
    """A single environment with control intervals."""

    metadata: dict[str, Any] = metadata()
    _parts = (*SimulatedEnv._parts, "intervals")
    _values: ClassVar[tuple[str, ...]] = ("_np_random", "_np_random_seed", "_ready")

    def _open(
        self, scenario: Scenarios, *, render_mode: RenderMode | None = None, render_fps: float = FPS, **arguments: Any
    ) -> None:
        """Set the environment up, called by the subclass; `arguments` are those of `_simulate`."""
        self.observation_space, self.action_space = self.form.spaces
        self._ready = False
        self._simulate(scenario, 1, **arguments)
        self._watch(render_mode, render_fps)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start an episode; `seed` fixes everything random."""
        self._start(seed, options)
        self._begin(0)
        self._ready = True
        if self._view is not None:
            self._view.start()
        return self.intervals.obs[0].copy(), {"scenario": self.scenario.name}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Apply an action, and simulate one control interval."""
        if not self._ready:
            raise gym.error.ResetNeeded("step: the environment has not been started or has ended; call reset() first")
        self._write(self._check(action)[None])
        self.intervals.advance()
        if self._view is not None:
            self._view.note(ENQUEUE)
        status = int(self.batch.status[0])
        info: dict[str, Any] = {"components": self._components(0)}
        if status != layout.STOPPED:
            self._ready = False
            info["statistics"] = measure.summary(self.batch, 0)
        reward = float(self.batch.reward[0])
        over = status == layout.TERMINATED, status == layout.TRUNCATED
        return self.intervals.obs[0].copy(), reward, *over, info


class IntervalVectorEnv(Applied, SimulatedVectorEnv[Floats]):
    """A vector environment with control intervals."""

    _parts = (*SimulatedVectorEnv._parts, "intervals")

    def _open(
        self, num_envs: int, scenario: Scenarios, render_mode: str | None, mode: str, copy: bool, **arguments: Any
    ) -> None:
        """Set the environment up, called by the subclass; `arguments` are those of `_simulate`."""
        observation, action = self.form.spaces
        self._arrange(num_envs, action, observation, render_mode, mode, copy)
        self._simulate(scenario, num_envs, **arguments)

    @property
    def _obs(self) -> Floats:
        return self.intervals.obs

    def _apply(self, actions: Floats) -> None:
        self._write(self._check(actions, self.num_envs))

    def _advance(self) -> int:
        return self.intervals.advance()

    def go_on(self, actions: Floats) -> None:
        """Apply actions (N, K), and simulate an interval of each episode that has not ended: `step` without the rest."""
        self._apply(actions)
        self._advance()

    def _step_infos(self, stepped: npt.NDArray[np.bool_]) -> dict[str, Any]:
        if not stepped.any():
            return {}
        columns = np.where(stepped[:, None], self.intervals.components, 0.0).T
        infos: dict[str, Any] = dict(zip(layout.COMPONENTS, columns, strict=True))
        infos |= {f"_{name}": stepped.copy() for name in layout.COMPONENTS}
        return {"components": infos, "_components": stepped.copy()}

    def _last_info(self, i: int) -> dict[str, Any]:
        return {"components": self._components(i), **super()._last_info(i)}
