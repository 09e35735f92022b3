"""Interface of a congestion control, for the ones that ship (each a module of its name) and for a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from l4s_gym.sim.jit import jit

MIN_WINDOW: Final = 2.0
"""Least window after a reduction, packets."""
LARGE: Final = 1e9
"""A slow-start threshold that means none, packets."""


@jit
def restart_nothing(f: Any, now_ns: int) -> None:
    """Set no state."""


@jit
def grow_as_reno(f: Any, acked: int, now_ns: int) -> None:
    """Grow by one packet per round (RFC 5681 section 3.1)."""
    f.cwnd += acked / f.cwnd


@jit
def reduce_by_beta(f: Any, now_ns: int) -> None:
    """Multiply the window by `beta`."""
    f.cwnd = max(f.cwnd * f.beta, MIN_WINDOW)
    f.ssthresh = f.cwnd


@jit
def reduce_by_beta_ecn(f: Any, now_ns: int) -> None:
    """Multiply the window by `beta_ecn` (RFC 8511)."""
    f.cwnd = max(f.cwnd * f.beta_ecn, MIN_WINDOW)
    f.ssthresh = f.cwnd


@jit
def lower_threshold(f: Any, now_ns: int) -> None:
    """Set the threshold to `beta` times the window (RFC 5681 section 3.1)."""
    f.ssthresh = max(f.cwnd * f.beta, MIN_WINDOW)


@jit
def ignore_marks(f: Any, acked: int, marked: int) -> None:
    """Count no marks."""


@dataclass(frozen=True)
class CongestionControl:
    """A congestion control: its response to an ACK, a mark and a loss, and a sender's defaults.

    The functions are compiled by Numba and return nothing. Their first argument is the flow, a record of `layout.FLOW`
    (`l4s-gym fields flow`): they may read all fields, and set `cwnd` and `ssthresh` in packets and their own state; a
    user's own has the 14 numbers `flow.own`, which are 0 at first. The transport does the rest: slow start below
    `ssthresh` (set it to 0 in `restart` for a law without), recovery of losses, timeouts, pacing at the window's rate,
    and keeping `cwnd` at or below the receive window. The default of a function is NewReno's.

    Attributes:
        name: Name, as a source's `kind` has it.
        restart: `(flow, now_ns)`: set up a new connection; `cwnd` is the initial window.
        on_ack: `(flow, acked, now_ns)`: an ACK of new data newly reports `acked` packets, above `ssthresh`.
        on_loss: `(flow, now_ns)`: reduce the window, once per recovery.
        on_timeout: `(flow, now_ns)`: set `ssthresh`; `cwnd` is 1 afterwards.
        on_ecn: `(flow, now_ns)`: packets were marked; once per round trip and not while losses are recovered.
        on_marks: `(flow, acked, marked)`: for a scalable one, each ACK: packets that arrived, and those among them that
            carried CE.
        scalable: Whether it responds to the share of marks (RFC 9331): ECT(1) and an accurate echo by default.
        beta: Default of the source's `beta`.
        holds: Default of the source's `holds` (Linux).
        paced: Default of the source's `paced`.
        ect_resent: Whether packets sent again are ECN-capable too.
        slow_start: Default of the source's `slow_start` (Linux).
        freebsd: Whether FreeBSD's base stack has it (`l4s_gym.sim.freebsd_tcp`).
    """

    name: str
    restart: Callable[..., None] = restart_nothing
    on_ack: Callable[..., None] = grow_as_reno
    on_loss: Callable[..., None] = reduce_by_beta
    on_timeout: Callable[..., None] = lower_threshold
    on_ecn: Callable[..., None] = reduce_by_beta_ecn
    on_marks: Callable[..., None] = ignore_marks
    scalable: bool = False
    beta: float = 0.5
    holds: bool = False
    paced: bool = False
    ect_resent: bool = False
    slow_start: str = "standard"
    freebsd: bool = False
