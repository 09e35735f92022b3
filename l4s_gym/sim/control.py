"""The form of a congestion control, for the ones that ship (each a module of its name) and for a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from l4s_gym.sim.jit import jit

MIN_WINDOW: Final = 2.0
"""Least window after a reduction, packets."""
LARGE: Final = 1e9
"""A slow-start threshold that is none, packets."""


@jit
def restart_nothing(f: Any, now_ns: int) -> None:
    """No state of its own."""


@jit
def grow_as_reno(f: Any, acked: int, now_ns: int) -> None:
    """A packet a round (RFC 5681 section 3.1)."""
    f.cwnd += acked / f.cwnd


@jit
def reduce_by_beta(f: Any, now_ns: int) -> None:
    """The window times `beta`."""
    f.cwnd = max(f.cwnd * f.beta, MIN_WINDOW)
    f.ssthresh = f.cwnd


@jit
def reduce_by_beta_ecn(f: Any, now_ns: int) -> None:
    """The window times `beta_ecn` (RFC 8511)."""
    f.cwnd = max(f.cwnd * f.beta_ecn, MIN_WINDOW)
    f.ssthresh = f.cwnd


@jit
def lower_threshold(f: Any, now_ns: int) -> None:
    """The window times `beta` as threshold (RFC 5681 section 3.1)."""
    f.ssthresh = max(f.cwnd * f.beta, MIN_WINDOW)


@jit
def ignore_marks(f: Any, acked: int, marked: int) -> None:
    """No count of marks."""


@dataclass(frozen=True)
class CongestionControl:
    """What an acknowledgement, a mark and a loss do to the window, and what a sender does by default.

    The functions are compiled by Numba and return nothing. Their first argument is the flow, a record of `layout.FLOW`
    (`l4s-gym fields flow`): they read what they like, and set `cwnd` and `ssthresh` in packets and their own state; a
    user's own has the 14 numbers `flow.own`, which are 0 at first. The transport does the rest: slow start below
    `ssthresh` (set it to 0 in `restart` for a law without), recovery of losses, timeouts, pacing at the window's rate,
    and keeping `cwnd` at or below the receive window. What is left out is NewReno's.

    Attributes:
        name: Name, as a source's `kind` has it.
        restart: `(flow, now_ns)`: a new connection; `cwnd` is the initial window.
        on_ack: `(flow, acked, now_ns)`: an ACK of new data has brought news of `acked` packets, above `ssthresh`.
        on_loss: `(flow, now_ns)`: once a recovery.
        on_timeout: `(flow, now_ns)`: set `ssthresh`; `cwnd` is 1 afterwards.
        on_ecn: `(flow, now_ns)`: packets were marked, once a round trip and not while losses are recovered.
        on_marks: `(flow, acked, marked)`: of a scalable one, each ACK: packets that arrived, and those among them that
            bore CE.
        scalable: Whether it answers to the share of marks (RFC 9331): ECT(1) and an accurate echo by default.
        beta: Default of the source's `beta`.
        holds: Default of the source's `holds` (Linux).
        paced: Default of the source's `paced`.
        ect_resent: Whether what is sent again is ECN-capable too.
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
