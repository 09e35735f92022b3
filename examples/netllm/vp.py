"""Viewport prediction: where the viewer of a 360-degree video will look in the next two seconds.

`Viewer` is a Gymnasium environment around generated head movement: slow drift, quick turns (saccades) most of which
end at a hot spot of the video, and the hot spot as an image. `read_views` reads recorded ones. `POLICIES` are the usual
predictions.

    python examples/netllm/vp.py  # the predictions in all settings
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces

RATE_HZ = 5
HISTORY = 10
AHEAD = 10
STEPS = 60
PIXELS = 32
UNIT_DEG = 30.0
"""Angles are observed and predicted in this unit."""


@dataclass(frozen=True)
class Setting:
    """What head movements are drawn from.

    Attributes:
        drift: Speed of the slow movement, degrees a second (standard deviation).
        turn: Quick turns a second.
        follow: Share of the turns that end at the hot spot.
        speed: Speed of the hot spot, degrees a second.
        jump: Jumps of the hot spot a second.
        views: Recorded viewers, (samples, 2) degrees each, in place of drawn ones; there is no hot spot then.
    """

    drift: float = 6.0
    turn: float = 0.3
    follow: float = 0.7
    speed: float = 10.0
    jump: float = 0.1
    views: tuple[np.ndarray, ...] = ()


SETTINGS = {
    "same": Setting(),
    "unseen viewers": Setting(drift=12.0, turn=0.6, follow=0.5),
    "unseen video": Setting(speed=25.0, jump=0.3),
    "unseen both": Setting(drift=12.0, turn=0.6, follow=0.5, speed=25.0, jump=0.3),
}


def turned(degrees):
    """Return differences of yaw and pitch (..., 2) as the shorter way round, -180 to 180 degrees of yaw."""
    return np.stack(((degrees[..., 0] + 180.0) % 360.0 - 180.0, degrees[..., 1]), axis=-1)


def draw_views(setting: Setting, rng: np.random.Generator, samples: int):
    """Draw yaw and pitch (samples, 2) of a viewer and of the hot spot, degrees."""
    view, spot = np.zeros((samples, 2)), np.zeros((samples, 2))
    low, high = np.array([-1e9, -60.0]), np.array([1e9, 60.0])
    goal, slow = np.zeros(2), np.zeros(2)
    spot[0] = rng.uniform((-90.0, -30.0), (90.0, 30.0))
    way = setting.speed * rng.standard_normal(2) * (1.0, 0.3)
    for at in range(1, samples):
        way = 0.95 * way + 0.31 * setting.speed * rng.standard_normal(2) * (1.0, 0.3)
        spot[at] = np.clip(spot[at - 1] + way / RATE_HZ, low, high)
        if rng.random() < setting.jump / RATE_HZ:
            spot[at] = spot[at] * (1.0, 0.0) + rng.uniform((-90.0, -30.0), (90.0, 30.0))
        if rng.random() < setting.turn / RATE_HZ:
            anywhere = view[at - 1] * (1.0, 0.0) + rng.normal(0.0, (45.0, 15.0))
            goal = spot[at] if rng.random() < setting.follow else anywhere
            goal = view[at - 1] + turned(goal - view[at - 1])
        slow = 0.8 * slow + 0.6 * setting.drift * rng.standard_normal(2) * (1.0, 0.5)
        goal = goal + slow / RATE_HZ
        view[at] = np.clip(view[at - 1] + 0.5 * (goal - view[at - 1]), low, high)
    return view, spot


class Viewer(gym.Env):
    """A viewer whose direction is predicted five times a second.

    | observation | shape | |
    |---|---|---|
    | `yaw` | (10,) | of the last 2 s relative to now, the newest last, in 30 degrees |
    | `pitch` | (10,) | as yaw |
    | `elevation` | () | pitch now, in 30 degrees |
    | `saliency` | (32, 32) | the hot spot around the direction of view: rows pitch 90 to -90, columns yaw -180 to 180 |

    The action is the predicted movement, yaw and pitch relative to now, at each of the next 10 samples (2 s), in 30
    degrees. The reward is minus the mean absolute error in degrees, and `info["right"]` the right answer. An episode
    has 60 steps.

    Args:
        setting: A `Setting`, or the name of one in `SETTINGS`.
    """

    def __init__(self, setting: Setting | str = "same") -> None:
        self.setting = SETTINGS[setting] if isinstance(setting, str) else setting
        series = spaces.Box(-100.0, 100.0, (HISTORY,), np.float32)
        self.observation_space = spaces.Dict(
            {
                "yaw": series,
                "pitch": series,
                "elevation": spaces.Box(-100.0, 100.0, (), np.float32),
                "saliency": spaces.Box(0.0, 1.0, (PIXELS, PIXELS), np.float32),
            }
        )
        self.action_space = spaces.Box(-100.0, 100.0, (AHEAD, 2), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        rng, samples = self.np_random, HISTORY + STEPS + AHEAD
        if self.setting.views:
            whole = np.asarray(self.setting.views[rng.integers(len(self.setting.views))], np.float64)
            start = int(rng.integers(max(len(whole) - samples, 0) + 1))
            self.view, self.spot = whole[np.minimum(start + np.arange(samples), len(whole) - 1)], None
        else:
            self.view, self.spot = draw_views(self.setting, rng, samples)
        self.at = HISTORY - 1
        return self._observation(), {"right": self._right()}

    def _right(self):
        return (turned(self.view[self.at + 1 : self.at + 1 + AHEAD] - self.view[self.at]) / UNIT_DEG).astype(np.float32)

    def _observation(self):
        now = self.view[self.at]
        past = turned(self.view[self.at + 1 - HISTORY : self.at + 1] - now) / UNIT_DEG
        image = np.zeros((PIXELS, PIXELS))
        if self.spot is not None:
            yaw, pitch = turned(self.spot[self.at] - (now[0], 0.0))
            x = (np.arange(PIXELS) + 0.5) * 360.0 / PIXELS - 180.0
            y = 90.0 - (np.arange(PIXELS) + 0.5) * 180.0 / PIXELS
            near = turned(np.stack((x - yaw, x), axis=-1))[:, 0]
            image = np.exp(-0.5 * (near / 15.0) ** 2 - 0.5 * ((y - pitch)[:, None] / 10.0) ** 2)
        found = {"yaw": past[:, 0], "pitch": past[:, 1], "elevation": now[1] / UNIT_DEG, "saliency": image}
        return {name: np.array(value, np.float32) for name, value in found.items()}

    def step(self, action):
        error = float(np.abs(UNIT_DEG * (np.asarray(action, np.float64) - self._right())).mean())
        self.at += 1
        return self._observation(), -error, False, self.at == HISTORY - 1 + STEPS, {"right": self._right()}


_COLUMNS = np.cumsum([0, 1, HISTORY, PIXELS * PIXELS, HISTORY])
"""Where elevation, pitch, saliency and yaw begin in an observation that is flat, in the order of their names."""


def parts(rows):
    """Return the parts of flat observations (n, 1045) by name."""
    names = ("elevation", "pitch", "saliency", "yaw")
    found = {name: rows[:, at:to] for name, at, to in zip(names, _COLUMNS, _COLUMNS[1:], strict=False)}
    return found | {"elevation": rows[:, 0], "saliency": found["saliency"].reshape(-1, PIXELS, PIXELS)}


# -- the usual predictions: from one observation to the action

_PAST = np.arange(1 - HISTORY, 1.0)
_NEXT = np.arange(1.0, AHEAD + 1)


def stay(observation):
    """Predict no movement."""
    return np.zeros((AHEAD, 2), np.float32)


def velocity(observation):
    """Predict that the movement of the last sample goes on."""
    last = np.array([observation[name][-1] - observation[name][-2] for name in ("yaw", "pitch")])
    return (_NEXT[:, None] * last).astype(np.float32)


def regression(observation):
    """Predict by a line through the last 2 s."""
    slopes = [np.polyfit(_PAST, observation[name], 1) for name in ("yaw", "pitch")]
    return np.stack([np.polyval(each, _NEXT) for each in slopes], axis=-1).astype(np.float32)


POLICIES = {"stay": stay, "velocity": velocity, "regression": regression}


# -- viewers of your own


def read_views(path: str | Path) -> np.ndarray:
    """Read a recorded viewer as yaw and pitch (samples, 2) in degrees, five a second, for `Setting.views`.

    Takes a csv with a header: a column `time` in s, and `yaw` and `pitch` in degrees or `x`, `y`, `z` of the direction.

    Raises:
        ValueError: The file lacks them.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = [{name.strip().lower(): value for name, value in row.items()} for row in csv.DictReader(file)]
    if not rows or "time" not in rows[0]:
        raise ValueError(f"{path}: give a csv with a column time, and yaw and pitch or x, y and z")
    known = [name for name in ("time", "yaw", "pitch", "x", "y", "z") if name in rows[0]]
    column = {name: np.array([row[name] for row in rows], np.float64) for name in known}
    if {"x", "y", "z"} <= column.keys():
        column["yaw"] = np.degrees(np.arctan2(column["y"], column["x"]))
        column["pitch"] = np.degrees(np.arctan2(column["z"], np.hypot(column["x"], column["y"])))
    if not {"yaw", "pitch"} <= column.keys():
        raise ValueError(f"{path}: give columns yaw and pitch, or x, y and z")
    times = np.arange(column["time"][0], column["time"][-1] + 1e-9, 1.0 / RATE_HZ)
    yaw = np.unwrap(column["yaw"], period=360.0)
    return np.stack([np.interp(times, column["time"], values) for values in (yaw, column["pitch"])], axis=-1)


if __name__ == "__main__":
    from play import table

    print(table(Viewer, SETTINGS, POLICIES, each_step=True))
