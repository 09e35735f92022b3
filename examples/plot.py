"""A figure for a paper: distribution of the queue delay under three disciplines, as PDF.

    python examples/plot.py --out delay.pdf

Needs `pip install 'l4s-gym[report]'`.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

from l4s_gym.evaluation import native
from l4s_gym.sim import scenario

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.backend_bases import FigureCanvasBase

AQMS = ("codel", "pie", "dualpi2_rfc9332")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="grid-40m-20ms")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("delay.pdf"))
    given = parser.parse_args()
    if given.out.suffix.removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        parser.error(f"{given.out}: unknown ending: use .pdf, .svg or .png")
    chosen = scenario.load(given.scenario).replace(horizon_s=given.seconds)

    plt.rcParams.update({"font.size": 8, "pdf.fonttype": 42})  # fonts that journals take
    figure, axes = plt.subplots(figsize=(3.4, 2.2), layout="constrained")
    for colour, aqm in enumerate(AQMS):
        samples = native.simulate(chosen, aqm, seed=0, sample_ms=5.0).samples
        samples = samples[samples["time_s"] > min(chosen.warmup_s, given.seconds / 2)]
        for queue, style in enumerate("-:"):
            delay_ms = np.sort(samples["delay_ms"][:, queue])
            share = np.arange(1, len(delay_ms) + 1) / len(delay_ms)
            axes.plot(np.maximum(delay_ms, 0.01), share, style, color=f"C{colour}", label=f"{aqm}, {'CL'[queue]}")
    axes.set(xscale="log", xlabel="queue delay, ms", ylabel="share of the time", ylim=(0, 1))
    axes.legend(fontsize=6)
    figure.savefig(given.out)
    print(given.out)


if __name__ == "__main__":
    main()
