"""`l4s-gym scenarios --trace FILE`: show the rate of a link trace."""

from __future__ import annotations

from typing import Final

import numpy as np

from l4s_gym.cli.common import say
from l4s_gym.sim import traces

COLUMNS: Final = 72
ROWS: Final = 8


def show(name: str) -> None:
    """Print period, mean rate, range of rates, and a bar chart of the rate over time."""
    trace = traces.load(name)
    period_s = trace.period_ns * 1e-9
    windows = max(int(period_s), 20)
    rates = trace.rates_bps_in(windows) * 1e-6
    what = "delivery opportunities" if isinstance(trace, traces.Trace) else "rates"
    say(f"{name}: {len(trace)} {what}, {period_s:.6g} s, then it repeats")
    say(f"mean {trace.mean_bps * 1e-6:.4g} Mbit/s")
    say(
        f"over windows of {period_s / windows:.3g} s: {rates.min():.4g} to {rates.max():.4g} Mbit/s, "
        f"nothing in {np.mean(rates == 0.0):.1%} of them"
    )
    for line in picture(trace.rates_bps_in(COLUMNS) * 1e-6, period_s):
        say(line)


def picture(rates_mbps: traces.Floats, period_s: float) -> list[str]:
    """Return the lines of a bar chart of rates (K,) over time."""
    top = max(float(rates_mbps.max()), 1e-9)
    heights = np.ceil(rates_mbps / top * ROWS - 1e-9)
    labels = [f"{top:.4g}", *[""] * (ROWS - 2), "Mbit/s"]
    width = max(map(len, labels))
    lines = [
        f"{label:>{width}} |" + "".join("#" if height >= ROWS - row else " " for height in heights).rstrip()
        for row, label in enumerate(labels)
    ]
    end = f"{period_s:.4g} s"
    return [*lines, f"{'0':>{width}} +" + "-" * len(heights), f"{'':>{width}}  0 s{end:>{len(heights) - 3}}"]
