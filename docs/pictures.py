"""The pictures of the docs, made anew: `python docs/pictures.py`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
from PIL import Image

from l4s_gym.evaluation import native
from l4s_gym.sim import disciplines, scenario

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).resolve().parent / "images"
SCENARIOS = ("l4s-llm-testbed", "steps", "wifi", "overload")
SECONDS = 30.0


def animation(path: Path) -> None:
    """Both queues while the loop of the README decides, around the moment at which the link loses 3/4 of its rate."""
    fps, start_s, end_s = 4, 18, 25
    env = gym.make("l4s_gym:L4S-DualPI2-v0", scenario="steps", render_mode="rgb_array_list", render_fps=fps)
    obs, _ = env.reset(seed=0)
    frames: list[Image.Image] = []
    while len(frames) < fps * end_s:
        action = 2 if obs[3] > (0.01 if obs[0] else 0.15) else 0
        obs, *_ = env.step(action)
        frames += [Image.fromarray(frame) for frame in env.render()]
    shown = frames[fps * start_s :]
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=150, loop=0, lossless=True, method=6)


COLOURS = """
.back { fill: #ffffff } .ink { fill: #1f2328 } .grid { stroke: #d8dee4 }
.c { --line: #bc4c00 } .l { --line: #0969da } .drop { --line: #cf222e }
@media (prefers-color-scheme: dark) {
  .back { fill: #0d1117 } .ink { fill: #e6edf3 } .grid { stroke: #30363d }
  .c { --line: #f0883e } .l { --line: #58a6ff } .drop { --line: #ff7b72 }
}
"""
WIDTH, HEIGHT, LEFT, RIGHT, PANEL = 860, 432, 60, 846, 92


def both_queues(path: Path) -> None:
    """Delay of each queue, marks and drops, as the link's rate falls: an SVG with colours for light and dark pages."""
    begin_s, end_s, step_s = 15, 30, 0.05
    chosen = scenario.load("steps").replace(horizon_s=float(end_s))
    s = native.simulate(chosen, "dualpi2_rfc9332", sample_ms=1e3 * step_s).samples
    s = s[s["time_s"] > begin_s]
    mean_ms, p99_ms = native.mean_delay_ms(s), s["p99_ms"]
    marked, dropped = s["marked"] / step_s, s["dropped"].sum(1) / step_s
    panels: list[tuple[str, float, list[tuple[str, str, float, Any]]]] = [
        (title, most, [(css, "99th percentile", 0.45, p99_ms[:, k]), (css, "mean", 1.0, mean_ms[:, k])])
        for k, (title, most, css) in enumerate(
            (("Classic queue (C): delay, ms", 60.0, "c"), ("L4S queue (L): delay, ms", 6.0, "l"))
        )
    ]
    marks = [(css, f"marked in {css.upper()}", 1.0, marked[:, k]) for k, css in enumerate("cl")]
    panels.append(("Packets per second:", 600.0, [("drop", "dropped", 1.0, dropped), *marks]))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">'
        f"<style>{COLOURS}polyline {{ fill: none; stroke: var(--line) }} tspan {{ fill: var(--line) }}</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
    ]

    def x(time_s: float) -> float:
        return LEFT + (RIGHT - LEFT) * (time_s - begin_s) / (end_s - begin_s)

    def write(text: str, at: float, y: float, anchor: str = "start") -> None:
        out.append(f'<text class="ink" x="{at:.0f}" y="{y:.0f}" text-anchor="{anchor}">{text}</text>')

    for row, (title, most, curves) in enumerate(panels):
        top = 34 + row * (PANEL + 40)
        names = (
            f' <tspan class="{css}" opacity="{min(opacity + 0.2, 1.0):g}" dx="8">{name}</tspan>'
            for css, name, opacity, _ in curves[::-1]
        )
        write(title + "".join(names), LEFT, top - 8)
        for value in (0.0, most / 2, most):
            y = top + PANEL * (1 - value / most)
            out.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.0f}" y2="{y:.0f}"/>')
            write(f"{value:g}", LEFT - 8, y + 4, "end")
        for css, _, opacity, values in curves:
            heights = top + PANEL * (1 - np.clip(np.nan_to_num(values), 0.0, most) / most)
            points = " ".join(f"{x(t):.1f},{height:.1f}" for t, height in zip(s["time_s"], heights, strict=True))
            out.append(f'<polyline class="{css}" stroke-width="1.3" opacity="{opacity}" points="{points}"/>')
        if row < 2:
            peak_ms = mean_ms[:, row].max()
            note = f"the link falls from 40 to 10 Mbit/s: mean up to {peak_ms:.0f} ms, cut off here"
            write(note, x(20) + 18, top + 12)
    for second in range(begin_s, end_s + 1, 5):
        write(f"{second} s", x(second), HEIGHT - 14, "end" if second == end_s else "middle")
    path.write_text("\n".join([*out, "</svg>", ""]))


def delays(path: Path) -> None:
    """Median to 99th percentile of the delays of both classes, under each discipline."""
    figure, axes = plt.subplots(figsize=(7.0, 0.6 + 0.32 * len(disciplines.AQMS)), layout="constrained")
    for row, aqm in enumerate(reversed(disciplines.AQMS)):
        summary = native.simulate(scenario.load("grid-40m-20ms").replace(horizon_s=SECONDS), aqm).summary
        for shift, (name, colour) in zip((0.15, -0.15), {"C": "tab:orange", "L": "tab:blue"}.items(), strict=True):
            found = summary["delay_ms"][name]
            label = name if row == 0 else None
            axes.plot([found["p50"], found["p99"]], [row + shift] * 2, color=colour, lw=4, label=label)
    axes.set_yticks(range(len(disciplines.AQMS)), reversed(disciplines.AQMS))
    axes.set(xscale="log", xlabel="delay, ms: median to 99th percentile")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Make all of them."""
    IMAGES.mkdir(exist_ok=True)
    both_queues(IMAGES / "both-queues.svg")
    animation(IMAGES / "queues.webp")
    delays(IMAGES / "delays.png")
    for name in SCENARIOS:
        run = native.simulate(scenario.load(name).replace(horizon_s=SECONDS), "dualpi2_rfc9332", sample_ms=100.0)
        picture = Image.open(io.BytesIO(native.picture(run, f"{name}, dualpi2_rfc9332, seed 0")))
        picture.convert("RGB").quantize(64).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
