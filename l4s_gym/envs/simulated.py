"""What the simulated environments share: rendering, copies, snapshots."""

from __future__ import annotations

from typing import Any, TypeVar

import gymnasium as gym

from l4s_gym.envs.rendering import RenderMode, View
from l4s_gym.envs.snapshots import Snapshots
from l4s_gym.sim.batch import Batch

ObsType = TypeVar("ObsType")
ActType = TypeVar("ActType")


class SimulatedEnv(Snapshots, gym.Env[ObsType, ActType]):
    """An environment on a batch of one; a subclass makes the batch, then calls `_watch`."""

    batch: Batch
    _view: View | None
    _parts = ("batch", "_view")

    def _watch(self, render_mode: RenderMode | None, fps: float) -> None:
        """Render in a mode, so many pictures for each simulated second."""
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": fps}
        self._view = None if render_mode is None else View(self.batch, render_mode, fps)

    def _identity(self) -> dict[str, str]:
        return self.batch.identity

    def render(self) -> Any:
        """`ansi`: a line on both queues. `rgb_array`: (480, 640, 3) uint8: delays, hits, use of the link, by time."""
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
