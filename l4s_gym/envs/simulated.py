"""Base class of the simulated environments: arguments, choice of the scenario, rendering, copies, snapshots."""

from __future__ import annotations

import numbers
from typing import Any, ClassVar, TypeVar

import gymnasium as gym

from l4s_gym.envs.rendering import RenderMode, View
from l4s_gym.envs.snapshots import Snapshots
from l4s_gym.errors import L4SError, unknown
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario

ObsType = TypeVar("ObsType")
ActType = TypeVar("ActType")


def whole(name: str, value: Any, unit: str = "") -> int:
    """Check that an argument is a whole number, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise L4SError(f"{name}={value!r}: give a whole number{unit}, 1 or more")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """Check that an argument is true or false."""
    if value not in (False, True):
        raise L4SError(f"{name}={value!r}: give True or False")
    return bool(value)


def read_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """Check the options of `reset`; unknown ones are an error."""
    if not isinstance(options, dict | None):
        raise L4SError(f"options={options!r}: give a dictionary")
    for name in options or {}:
        if name not in known:
            raise unknown("option of reset", name, known)
    return options or {}


def chosen_scenario(options: dict[str, Any], batch: Batch) -> int | None:
    """Return the number of the scenario named in the options of `reset`; None if none is named."""
    if "scenario" not in options:
        return None
    names = tuple(scenario.name for scenario in batch.scenarios)
    if options["scenario"] not in names:
        raise unknown("scenario in options", options["scenario"], names)
    return names.index(options["scenario"])


class SimulatedEnv(Snapshots, gym.Env[ObsType, ActType]):
    """An environment that simulates a batch of one; a subclass creates the batch, then calls `_watch`."""

    batch: Batch
    _view: View | None
    _parts: ClassVar[tuple[str, ...]] = ("batch", "_view")

    @property
    def scenario(self) -> Scenario:
        """The scenario of the episode, as it is before its random fields are drawn."""
        return self.batch.scenario_of(0)

    def _watch(self, render_mode: RenderMode | None, fps: float) -> None:
        """Set the render mode, and the pictures per simulated second."""
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": fps}
        self._view = None if render_mode is None else View(self.batch, render_mode, fps)

    def _start(self, seed: int | None, options: dict[str, Any] | None) -> None:
        """Reset the batch."""
        which = chosen_scenario(read_options(options, ("scenario",)), self.batch)
        super().reset(seed=seed)
        self.batch.reset(0, self.np_random, which)
        self.batch.stop_after_warmup(0)

    def _identity(self) -> dict[str, str]:
        return self.batch.identity

    def render(self) -> Any:
        """Render: `ansi` a line of text, `rgb_array` (480, 640, 3) uint8: delays, drops and marks, utilisation over time."""
        if self._np_random is None:
            raise gym.error.ResetNeeded("render: the environment has not been started; call reset() first")
        if self._view is None:
            gym.logger.warn("render() needs render_mode='ansi', 'rgb_array' or 'human' in gym.make")
            return None
        return self._view.render()

    def close(self) -> None:
        """Close the window of `human`."""
        if self._view is not None:
            self._view.close()
