"""The pictures of the docs, made anew: `python docs/pictures.py`."""

from __future__ import annotations

import io
from pathlib import Path

import gymnasium as gym
import matplotlib
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
    animation(IMAGES / "queues.webp")
    delays(IMAGES / "delays.png")
    for name in SCENARIOS:
        run = native.simulate(scenario.load(name).replace(horizon_s=SECONDS), "dualpi2_rfc9332")
        picture = Image.open(io.BytesIO(native.picture(run, f"{name}, dualpi2_rfc9332, seed 0")))
        picture.convert("RGB").quantize(64).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
