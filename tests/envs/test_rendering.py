"""What `render` shows, and when: pictures by simulated time, without matplotlib; a window where pygame is there."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import l4s_gym
from l4s_gym.envs import raster
from l4s_gym.envs.dualpi2 import DualPI2Env
from l4s_gym.envs.rendering import COLUMN_NS, COLUMNS, FPS, draw
from l4s_gym.errors import L4SError

ENV_ID = l4s_gym.ENV_IDS[0]


def make(env_id: str = ENV_ID, **kwargs: Any) -> Any:
    """The bare environment."""
    return gym.make(env_id, disable_env_checker=True, **kwargs).unwrapped


def steps(env: Any, count: int) -> Iterator[int]:
    """So many steps; the simulated time after each, ns."""
    action = 0 if isinstance(env.action_space, gym.spaces.Discrete) else np.zeros(env.action_space.shape, np.float32)
    for _ in range(count):
        env.step(action)
        yield int(env.batch.env["now_ns"][0])


def test_gymnasium_checks_without_what_extras_bring() -> None:
    """A plain install has neither matplotlib nor pygame; the check covers every render mode."""
    code = (
        "import sys, warnings\n"
        "sys.modules.update(matplotlib=None, pygame=None, PIL=None)\n"
        "import gymnasium as gym, l4s_gym\n"
        "from gymnasium.utils.env_checker import check_env\n"
        "warnings.simplefilter('error')\n"
        "for env_id in l4s_gym.ENV_IDS:\n"
        "    env = gym.make(env_id).unwrapped\n"
        "    check_env(env)\n"
        "    assert env.metadata['render_modes'] == ['ansi', 'rgb_array', 'rgb_array_list']\n"
        "warnings.simplefilter('ignore')\n"
        "try:\n"
        "    gym.make(l4s_gym.ENV_IDS[0], render_mode='human').reset()\n"
        "except gym.error.DependencyNotInstalled as error:\n"
        "    assert 'pip install' in str(error)\n"
        "else:\n"
        "    raise AssertionError('a window without pygame')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_text(env_id: str) -> None:
    env = make(env_id, render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "no decision yet"
    now_ns = list(steps(env, 100))[-1]
    assert env.render().startswith(f"t={now_ns * 1e-9:8.3f} s  C ")


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
@pytest.mark.parametrize("fps", [FPS, 7.5])
def test_a_picture_for_each_frame_of_simulated_time(env_id: str, fps: float) -> None:
    env = make(env_id, render_mode="rgb_array", render_fps=fps)
    assert env.metadata["render_fps"] == fps
    env.reset(seed=0)
    last, frame = env.render(), -1
    assert (last.shape, last.dtype) == ((480, 640, 3), np.uint8)
    kept = last.copy()
    number = int(env.batch.env["now_ns"][0] * 1e-9 * fps)
    changes = 0
    for now_ns in steps(env, 600):
        frame = int(now_ns * 1e-9 * fps)
        shown = env.render()
        assert (shown is last) == (frame == number)
        changes += shown is not last
        last, number = shown, frame
    assert changes > 3
    assert not np.array_equal(last, kept)
    with pytest.raises(ValueError, match="read-only"):
        last[0] = 0
    env.reset(seed=0)
    assert np.array_equal(env.render(), kept)


@pytest.mark.parametrize("env_id", l4s_gym.ENV_IDS)
def test_a_list_of_pictures(env_id: str) -> None:
    env, one = (make(env_id, render_mode=mode) for mode in ("rgb_array_list", "rgb_array"))
    env.reset(seed=0)
    one.reset(seed=0)
    expected = [one.render()]
    for _ in steps(one, 600):
        if one.render() is not expected[-1]:
            expected.append(one.render())
    assert len(list(steps(env, 600))) == 600
    pictures = env.render()
    assert len(pictures) == len(expected) > 3
    assert all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=True))
    assert env.render() == []


def test_the_picture_shows_the_last_seconds() -> None:
    """Full use is at the top of its panel, an empty link at the bottom; a drop and a mark have strips of their own."""
    time_s = np.arange(1, COLUMNS + 1) * COLUMN_NS * 1e-9
    samples = np.zeros((COLUMNS, 11))
    samples[:, 4] = time_s * 1e6
    blank = draw(samples, "empty", 1.0, 0)
    busy = samples.copy()
    busy[:, 3] = busy[:, 4]
    assert np.flatnonzero((draw(busy, "empty", 1.0, 0) != blank).any((1, 2))).min() < 380
    for column, colour in ((9, "red"), (10, "purple")):
        hit = samples.copy()
        hit[300:, column] = 1.0
        changed = (draw(hit, "empty", 1.0, 0) != blank).any(2)
        assert np.flatnonzero(changed.any(0)).tolist() == [64 + 300], colour
        assert changed.sum() == 14
    assert not np.array_equal(draw(samples[:0], "empty", 1.0, 0), blank)


def test_letters() -> None:
    frame = np.full((20, 60, 3), 255, np.uint8)
    assert raster.text(frame, 1, 2, "1%", (0, 0, 0)) == 13
    dots = (frame == 0).all(2)
    assert dots[2:9, 1:6].astype(int).tolist() == [
        [0, 0, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 1, 1, 0],
    ]
    assert not dots[:, 12:].any()
    for x, y in ((-3, -3), (55, 15), (200, 200), (-200, 0)):  # cut off at the edges
        raster.text(frame, x, y, "8?", (0, 0, 0), scale=2)


def test_rendering_without_a_mode_warns() -> None:
    env = make()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_a_window_needs_pygame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(L4SError, match=r"pip install 'l4s-gym\[render\]'"):
        DualPI2Env(render_mode="human")


def test_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame", reason="needs pygame: pip install 'l4s-gym[render]'")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown: list[Any] = []
    env = make(render_mode="human", render_fps=1000.0)
    monkeypatch.setattr(type(env._view._window), "show", lambda _, frame: shown.append(frame))
    env.reset(seed=0)
    assert len(shown) == 1
    frames = {int(now_ns * 1e-6) for now_ns in steps(env, 50)}
    assert env.render() is None
    assert abs(len(shown) - len(frames)) <= 1
    monkeypatch.undo()
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    list(steps(env, 5))
    copied = copy.deepcopy(env)  # its window is not open yet
    assert copied._view._window._window is None
    list(steps(copied, 5))
    for one in (copied, env, env):
        one.close()
