"""The end of slow start before a loss: HyStart as in Linux, and HyStart++ (RFC 9406).

HyStart (Ha and Rhee 2011; `tcp_cubic.c` of Linux) ends it when ACKs have arrived back to back for half the least RTT
of the path, or when the RTT of a round has grown. HyStart++ uses the RTT alone, and tests for five rounds,
with a quarter of the growth, whether the end was right.
"""

from __future__ import annotations

from typing import Any, Final

from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import NEVER

STANDARD, HYSTART, HYSTART_PP = range(3)
KINDS: Final = ("standard", "hystart", "hystart++")
LOW_WINDOW: Final = 16.0
"""Linux: below this window slow start always goes on, packets."""
ACK_GAP_NS: Final = 2_000_000
"""Linux: ACKs at most this far apart belong to one train."""
SAMPLES: Final = 8
"""RTT samples of a round before its least value counts."""
LEAST_RISE_NS: Final = 4_000_000
MOST_RISE_NS: Final = 16_000_000
CSS_ROUNDS: Final = 5


@jit
def restart(f: Any) -> None:
    """Set the state of a new connection, or after a timeout."""
    f.ss_end = -1
    f.ss_least_ns = NEVER
    f.css_rounds = 0


@jit
def _rise_ns(rtt_ns: int) -> int:
    return min(max(rtt_ns >> 3, LEAST_RISE_NS), MOST_RISE_NS)


@jit
def _hystart(f: Any, now_ns: int) -> bool:
    """Return whether Linux's HyStart ends slow start now."""
    if f.cwnd < LOW_WINDOW:
        return False
    if now_ns - f.ss_last_ns <= ACK_GAP_NS:
        f.ss_last_ns = now_ns
        train_ns = f.min_rtt_ns if f.paced else f.min_rtt_ns >> 1
        if now_ns - f.ss_began_ns > train_ns:
            return True
    return f.ss_samples > SAMPLES and f.ss_least_ns > f.min_rtt_ns + _rise_ns(f.min_rtt_ns)


@jit
def _hystart_pp(f: Any) -> bool:
    """Return whether HyStart++ ends slow start now (RFC 9406 section 4.2)."""
    if f.ss_samples < SAMPLES:
        return False
    if f.css_rounds > 0:
        if f.ss_least_ns < f.css_base_ns:
            f.css_rounds = 0
        return f.css_rounds > CSS_ROUNDS
    if f.ss_before_ns < NEVER and f.ss_least_ns >= f.ss_before_ns + _rise_ns(f.ss_before_ns):
        f.css_base_ns = f.ss_least_ns
        f.css_rounds = 1
    return False


@jit
def note_rtt(f: Any, rtt_ns: int, now_ns: int) -> None:
    """Process the RTT of an ACK in slow start: to end it, set the threshold to the window."""
    if f.una > f.ss_end:  # a new round
        f.ss_end = f.nxt
        f.ss_began_ns = now_ns
        f.ss_last_ns = now_ns
        f.ss_before_ns = f.ss_least_ns
        f.ss_least_ns = NEVER
        f.ss_samples = 0
        if f.css_rounds > 0:
            f.css_rounds += 1
    f.ss_least_ns = min(f.ss_least_ns, rtt_ns)
    f.ss_samples += 1
    leaves = _hystart(f, now_ns) if f.slow_start == HYSTART else _hystart_pp(f)
    if leaves:
        f.ssthresh = f.cwnd
        f.css_rounds = 0
