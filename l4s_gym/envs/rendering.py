"""What `render` shows: the recent past of both queues as a line of text or a picture."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS
from l4s_gym.sim import layout


def probability(env: Any, queue: Any) -> float:
    """Base probability of the discipline, 0 to 1, for the queue with the larger one."""
    if env["aqm"] == layout.FREEBSD:
        return float(queue["drop_prob"].max()) / (2**31 - 1)
    if env["aqm"] == layout.LINUX:
        return float(env["prob_fixed"]) / (2**32 - 1)
    if env["aqm"] == layout.RFC9332:
        return float(env["prob"]) / 2**32
    return float(queue["prob"].max())


class History:
    """The last decisions: time (s), delay of C and L (ms), packets in C and L, probability, action."""

    def __init__(self, length: int = 4000) -> None:
        self._rows: deque[tuple[float, float, float, int, int, float, int]] = deque(maxlen=length)

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()

    def add(self, env: Any, queue: Any, action: int) -> None:
        """Note the state of both queues and the action."""
        delays = np.where(queue["class_packets"] > 0, queue["class_delay_ns"], 0) * 1e-6
        packets = queue["packets"]
        self._rows.append(
            (
                float(env["now_ns"]) * 1e-9,
                float(delays[0]),
                float(delays[1]),
                int(packets[0]),
                int(packets[1]),
                probability(env, queue),
                action,
            )
        )

    def text(self) -> str:
        """One line: time, both queues, probability, the last action."""
        if not self._rows:
            return "no decision yet"
        time_s, delay_c, delay_l, in_c, in_l, prob, action = self._rows[-1]
        return (
            f"t={time_s:8.3f} s  C {in_c:4d} packets {delay_c:7.2f} ms  L {in_l:4d} packets {delay_l:7.2f} ms  "
            f"p={prob:.4f}  {ACTIONS[action]}"
        )

    def picture(self) -> npt.NDArray[np.uint8]:
        """(480, 640, 3) uint8."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise L4SError("render_mode='rgb_array' draws with matplotlib: pip install 'l4s-gym[report]'") from None
        figure = Figure(figsize=(6.4, 4.8), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        delay, prob, decisions = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 1])
        rows = np.array(self._rows, float).reshape(-1, 7)
        time_s = rows[:, 0]
        delay.plot(time_s, rows[:, 1], label="C", color="tab:orange", lw=1)
        delay.plot(time_s, rows[:, 2], label="L", color="tab:blue", lw=1)
        delay.set_ylabel("delay (ms)")
        delay.legend(loc="upper left", ncols=2, fontsize=8)
        prob.plot(time_s, rows[:, 5], color="tab:green", lw=1)
        prob.set_ylabel("probability")
        prob.set_ylim(bottom=0.0)
        for code, color in ((1, "tab:red"), (2, "tab:purple")):
            chosen = rows[:, 6] == code
            decisions.scatter(time_s[chosen], np.full(chosen.sum(), code), s=6, marker="|", color=color)
        decisions.set_yticks([1, 2], ["drop", "mark"])
        decisions.set_ylim(0.5, 2.5)
        decisions.set_xlabel("time (s)")
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
