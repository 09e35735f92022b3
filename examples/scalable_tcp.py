"""Scalable TCP (Kelly, 2003): a congestion control of one's own, which needs no change of l4s_gym.

Each acknowledged packet adds 0.01 to the window, each loss or mark takes an eighth of it. Where a share p of the
packets is marked, the window is thus 0.01 / (0.125 p) on average, whatever the round-trip time; 0.087 / p, as
only the first mark of a round trip counts.

    l4s-gym simulate --set "sources.*.kind=examples/scalable_tcp.py:CONTROL"

In a scenario's TOML, `kind = "examples/scalable_tcp.py:CONTROL"` is by the path of the file, and with its folder on
PYTHONPATH `kind = "scalable_tcp:CONTROL"` does as well, in every command, `gym.make` and other processes.
"""

from typing import Any

from l4s_gym.sim.control import CongestionControl

GAIN = 0.01
CUT = 0.125
CUTS = 0
"""Where in `flow.own` we count the reductions."""


def restart(flow: Any, now_ns: int) -> None:
    """A new connection."""
    flow.own[CUTS] = 0.0


def on_ack(flow: Any, acked: int, now_ns: int) -> None:
    """Grow: slow start and the receive window are the engine's business."""
    flow.cwnd += GAIN * acked


def cut(flow: Any, now_ns: int) -> None:
    """A loss or a mark, once a round trip."""
    flow.cwnd = max((1.0 - CUT) * flow.cwnd, 2.0)
    flow.ssthresh = flow.cwnd
    flow.own[CUTS] += 1.0


CONTROL = CongestionControl("scalable-tcp", restart=restart, on_ack=on_ack, on_loss=cut, on_ecn=cut)
