"""DCTCP (RFC 8257): a reduction by the share of marks; otherwise NewReno (section 3.5)."""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.sim.control import MIN_WINDOW, CongestionControl
from l4s_gym.sim.jit import jit


@jit
def restart(f: Any, now_ns: int) -> None:
    """Set the state of a new connection."""
    f.ce_alpha = 1.0
    f.acked_in_round = 0
    f.marked_in_round = 0


@jit
def on_marks(f: Any, acked: int, marked: int) -> None:
    """Update the moving average of the marked fraction, once per window of data (section 3.3)."""
    f.acked_in_round += acked
    f.marked_in_round += marked
    if f.una < f.round_end:
        return
    if f.acked_in_round > 0:
        fraction = min(f.marked_in_round / f.acked_in_round, 1.0)
        f.ce_alpha += f.gain * (fraction - f.ce_alpha)
    f.acked_in_round = 0
    f.marked_in_round = 0
    f.round_end = f.nxt


@jit
def on_ecn(f: Any, now_ns: int) -> None:
    """Reduce the window by alpha / 2."""
    f.cwnd = max(f.cwnd * (1.0 - f.ce_alpha / 2.0), MIN_WINDOW)
    f.ssthresh = f.cwnd


CONTROL: Final = CongestionControl(
    "dctcp", restart=restart, on_marks=on_marks, on_ecn=on_ecn, scalable=True, freebsd=True
)
