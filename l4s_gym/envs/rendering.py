"""Rendering: a line of text, or a picture of the last seconds, drawn every 1 / fps simulated seconds."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from l4s_gym.envs.raster import Colour, Frame, curve, text
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import optional
from l4s_gym.schema import ACTIONS
from l4s_gym.sim.batch import Batch

RenderMode = Literal["ansi", "rgb_array", "rgb_array_list", "human"]
FPS: Final = 25
"""Pictures for each simulated second."""


def metadata() -> dict[str, Any]:
    """Return the metadata of the simulated environments; the mode `human` is left out if pygame is missing."""
    modes = [mode for mode in get_args(RenderMode) if mode != "human" or importlib.util.find_spec("pygame")]
    return {"render_modes": modes, "render_fps": FPS}


class Window:
    """A pygame window; a copy of it is not open."""

    def __init__(self, fps: float) -> None:
        """Show at most `fps` pictures per second."""
        self._fps = fps
        self._pygame: Any = None
        self._window: Any = None
        self._clock: Any = None
        optional("pygame", "render")

    def __reduce__(self) -> tuple[type[Window], tuple[float]]:
        return Window, (self._fps,)

    def show(self, frame: Frame) -> None:
        """Show a picture, at most `fps` per second."""
        if self._window is None:
            self._open(frame)
        pygame = self._pygame
        self._window.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        self._clock.tick(self._fps)
        pygame.display.flip()

    def _open(self, frame: Frame) -> None:
        pygame = self._pygame = optional("pygame", "render")
        try:
            pygame.display.init()
            self._window = pygame.display.set_mode((frame.shape[1], frame.shape[0]))
        except pygame.error as error:
            raise L4SError(f"render_mode='human': no window opens ({error}): use 'rgb_array'") from None
        pygame.display.set_caption("l4s-gym")
        self._clock = pygame.time.Clock()

    def close(self) -> None:
        """Close the window."""
        if self._window is not None:
            self._pygame.display.quit()
            self._window = None


class View:
    """Samples one environment while it runs, and renders it.

    The picture shows the last `COLUMNS` x `COLUMN_NS` of simulated time. A column is sampled when its time is over:
    largest delay of each class, base probability of the discipline, and counters from the start of the episode.
    """

    def __init__(self, batch: Batch, mode: RenderMode, fps: float = FPS) -> None:
        """Start with an empty picture.

        Args:
            batch: A batch of one environment.
            mode: How to render.
            fps: Pictures for each simulated second.
        """
        if mode not in get_args(RenderMode):
            raise unknown("render_mode", mode, get_args(RenderMode))
        if not 0.0 < fps <= 1e6:
            raise L4SError(f"render_fps={fps!r}: give a positive number of pictures for each simulated second")
        self._batch, self._mode, self._fps = batch, mode, fps
        self._samples = np.zeros((COLUMNS, len(_SAMPLES)))
        self._window = Window(fps) if mode == "human" else None
        self._frames: list[Frame] = []
        self._clear()

    def start(self) -> None:
        """Forget the last episode."""
        self._clear()
        self._frames = []
        if self._mode in ("human", "rgb_array_list"):
            self._advance()

    def _clear(self) -> None:
        self._samples[:] = 0.0
        self._column = 0
        self._peak = np.zeros(2)
        self._counted, self._earlier = np.zeros(8), np.zeros(8)
        self._since = 0
        self._action: int | None = None
        self._shown = -1
        self._frame: Frame | None = None

    def note(self, action: int) -> None:
        """Sample the environment after a step."""
        self._action = action
        if self._mode == "ansi":
            return
        batch = self._batch
        queue = batch.queue[0]
        np.maximum(self._peak, np.where(queue["class_packets"] > 0, queue["class_delay_ns"], 0), out=self._peak)
        column = int(batch.first_env["now_ns"]) // COLUMN_NS
        if column > self._column:
            first = max(self._column, column - COLUMNS)
            self._samples[np.arange(first, column) % COLUMNS] = self._sample()
            self._column = column
            self._peak[:] = 0.0
        if self._mode != "rgb_array":
            self._advance()

    def _sample(self) -> list[float]:
        """Return a sample, in the order of `_SAMPLES`."""
        batch = self._batch
        env, queue = batch.first_env, batch.queue[0]
        hit = queue["marked"] + queue["dropped"]
        if env["since_ns"] != self._since:  # the engine counts from 0 again
            self._since, self._earlier = int(env["since_ns"]), self._counted
        counted = [env["served_bytes"], batch.capacity_bytes(0), *queue["offered"], *hit]
        self._counted = self._earlier + np.array([*counted, queue["dropped"].sum(), queue["marked"].sum()], float)
        return [*(self._peak * 1e-6), batch.base_probability(0), *self._counted]

    def _advance(self) -> None:
        """Draw a picture if one is due, and show or keep it."""
        number = int(int(self._batch.first_env["now_ns"]) * 1e-9 * self._fps)
        if number == self._shown:
            return
        self._shown = number
        self._frame = self._draw()
        self._frame.flags.writeable = False  # until the next one it is handed out as it is
        if self._window is not None:
            self._window.show(self._frame)
        elif self._mode == "rgb_array_list":
            self._frames.append(self._frame)

    def render(self) -> str | Frame | list[Frame] | None:
        """Return what the environment's `render` returns."""
        if self._mode == "ansi":
            return self._text()
        if self._mode == "human":
            return None
        self._advance()
        if self._mode == "rgb_array":
            return self._frame
        frames, self._frames = self._frames, []
        return frames

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()

    def state(self) -> dict[str, Any]:
        """Return what a snapshot stores."""
        return {
            "samples": self._samples.copy(),
            "column": self._column,
            "peak": self._peak.copy(),
            "counted": self._counted,
            "earlier": self._earlier,
            "since": self._since,
            "action": self._action,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Return to a state; None: start with an empty picture."""
        self._clear()
        if state is None:
            self._column = int(self._batch.first_env["now_ns"]) // COLUMN_NS
        else:
            self._samples[:] = state["samples"]
            self._column, self._peak, self._action = state["column"], state["peak"].copy(), state["action"]
            self._counted, self._earlier, self._since = state["counted"], state["earlier"], state["since"]

    def _text(self) -> str:
        """Return one line: time, both queues, probability, last action."""
        if self._action is None:
            return "no decision yet"
        env, queue = self._batch.first_env, self._batch.queue[0]
        delay_c, delay_l = np.where(queue["class_packets"] > 0, queue["class_delay_ns"], 0) * 1e-6
        in_c, in_l = self._batch.queued(0, "packets")
        return (
            f"t={float(env['now_ns']) * 1e-9:8.3f} s  C {in_c:4d} packets {delay_c:7.2f} ms  "
            f"L {in_l:4d} packets {delay_l:7.2f} ms  p={self._batch.base_probability(0):.4f}  {ACTIONS[self._action]}"
        )

    def _draw(self) -> Frame:
        """(480, 640, 3) uint8."""
        batch = self._batch
        first = max(self._column - COLUMNS, 0)
        samples = self._samples[np.arange(first, self._column) % COLUMNS]
        return draw(
            samples, f"{batch.scenario_of(0).name}  {batch.aqm_of(0)}", float(batch.first_env["now_ns"]) * 1e-9, first
        )


# -- the picture

COLUMN_NS: Final = 20_000_000
"""Simulated time of a column of the picture."""
COLUMNS: Final = 560
_SAMPLES: Final = (
    *("delay_c_ms", "delay_l_ms", "probability", "served_bytes", "capacity_bytes"),
    *("offered_c", "offered_l", "hit_c", "hit_l", "dropped", "marked"),
)
_OVER: Final = 25
"""Shares are means over so many columns (0.5 s)."""
_HEIGHT, _WIDTH, _LEFT = 480, 640, 64
_WHITE: Final[Colour] = (255, 255, 255)
_INK: Final[Colour] = (40, 40, 40)
_GRID: Final[Colour] = (222, 222, 222)
_C: Final[Colour] = (214, 96, 0)
_L: Final[Colour] = (0, 96, 200)
_BASE: Final[Colour] = (0, 140, 70)
_DROP: Final[Colour] = (200, 0, 30)
_MARK: Final[Colour] = (130, 60, 190)
_PANELS: Final = {"delay": (60, 150), "hit": (248, 90), "used": (376, 50)}
"""Upper edge and height of each panel, px."""
_DECADES: Final = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Lines of the delay panel, ms."""


@functools.cache
def _background() -> Frame:
    """Draw what is the same in every picture: frames, grid, titles."""
    frame = np.full((_HEIGHT, _WIDTH, 3), _WHITE, np.uint8)
    for name, title in (("delay", "delay, ms"), ("hit", "hit, %"), ("used", "link used, %")):
        top, height = _PANELS[name]
        text(frame, 4, top - 28, title, _INK, scale=2)
        for line in range(5 if name == "delay" else 3):
            at = top + round(line * (height - 1) / (4 if name == "delay" else 2))
            frame[at, _LEFT : _LEFT + COLUMNS] = _GRID
            if name != "hit":
                label = f"{_DECADES[4 - line]:g}" if name == "delay" else f"{100 - 50 * line}"
                text(frame, _LEFT - 4 - 12 * len(label), at - 7, label, _INK, scale=2)
    for row, (word, colour) in enumerate((("drop", _DROP), ("mark", _MARK))):
        text(frame, _LEFT - 52, 440 + 18 * row, word, colour, scale=2)
    frame.flags.writeable = False
    return frame


def draw(samples: npt.NDArray[np.float64], title: str, time_s: float, first: int) -> Frame:
    """Draw a picture of sampled columns.

    Args:
        samples: Of each column, in order of time (T, 11), at most `COLUMNS` of them.
        title: First line.
        time_s: Now.
        first: Number of the first column since the start of the episode.

    Returns:
        (480, 640, 3) uint8.
    """
    frame = _background().copy()
    text(frame, 4, 8, title[:38], _INK, scale=2)
    now = f"t {time_s:.2f} s"
    text(frame, _WIDTH - 4 - 12 * len(now), 8, now, _INK, scale=2)
    left = _LEFT + COLUMNS - len(samples)
    for column in range(-first % 50, len(samples), 50):  # a line each second
        for top, height in _PANELS.values():
            frame[top : top + height, left + column] = _GRID
    if not len(samples):
        return frame
    value = dict(zip(_SAMPLES, samples.T, strict=True))
    used = 100.0 * _share(value["served_bytes"], value["capacity_bytes"])
    hit_c, hit_l = (100.0 * _share(value[f"hit_{q}"], value[f"offered_{q}"]) for q in "cl")
    base = 100.0 * value["probability"]
    most = max(hit_c.max(), hit_l.max(), base.max())
    scale = next((limit for limit in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0) if most <= limit), 100.0)
    top, height = _PANELS["hit"]
    for at, label in ((top, f"{scale:g}"), (top + height - 1, "0")):
        text(frame, _LEFT - 4 - 12 * len(label), at - 7, label, _INK, scale=2)
    for panel, place, lines in (
        ("delay", _log_height, (("C", value["delay_c_ms"], _C), ("L", value["delay_l_ms"], _L))),
        ("hit", lambda v: v / scale, (("C", hit_c, _C), ("L", hit_l, _L), ("base", base, _BASE))),
        ("used", lambda v: v / 100.0, (("", used, _INK),)),
    ):
        top, height = _PANELS[panel]
        right = 220
        for name, values, colour in lines:
            high = np.clip(place(values), 0.0, 1.0)
            curve(frame, left, top + np.rint((1.0 - high) * (height - 2)).astype(int), colour)
            right = text(frame, right, top - 28, f"{name} {values[-1]:.3g}", colour, scale=2) + 24
    for row, (name, colour) in enumerate((("dropped", _DROP), ("marked", _MARK))):
        some = np.diff(value[name], prepend=0.0 if first == 0 else value[name][0]) > 0
        frame[440 + 18 * row : 454 + 18 * row, left : left + len(samples)][:, some] = colour
    return frame


def _log_height(delay_ms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the height in the delay panel: 0 at 0.1 ms, 1 at 1000 ms, logarithmic."""
    height: npt.NDArray[np.float64] = np.log10(np.maximum(delay_ms, _DECADES[0]) / _DECADES[0]) / 4.0
    return height


def _share(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the growth of one counter divided by that of another, over the last `_OVER` columns."""
    before = np.maximum(np.arange(len(part)) - _OVER, 0)
    share: npt.NDArray[np.float64] = (part - part[before]) / np.maximum(whole - whole[before], 1.0)
    return share
