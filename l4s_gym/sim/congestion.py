"""Congestion controls of window-based senders behind one set of calls, for the transport.

Each one that ships is a module of its name in `layout.CCS` with a `CONTROL`; a user's own is called by address. Prague
has a window, a rate and recoveries of its own: the transport calls `l4s_gym.sim.prague` itself.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError
from l4s_gym.extras import load
from l4s_gym.sim.control import CongestionControl
from l4s_gym.sim.jit import jit, written
from l4s_gym.sim.layout import CCS
from l4s_gym.sim.memory import load64
from l4s_gym.sim.plugin import call_void, callback

CONTROLS: Final[dict[str, CongestionControl]] = {
    name: importlib.import_module(f"l4s_gym.sim.{name}").CONTROL for name in CCS if name != "none"
}
CUBIC: Final = CCS.index("cubic")
DCTCP: Final = CCS.index("dctcp")
PRAGUE: Final = CCS.index("prague")
OWN: Final = len(CCS)
"""Number of a user's own congestion control, whose function addresses are in the table at `law_at`."""
_HOOKS: Final = {
    "restart": "void(flow, int64)",
    "on_ack": "void(flow, int64, int64)",
    "on_loss": "void(flow, int64)",
    "on_timeout": "void(flow, int64)",
    "on_ecn": "void(flow, int64)",
    "on_marks": "void(flow, int64, int64)",
}


def find(spec: str) -> CongestionControl:
    """Find a congestion control by its name, or a user's own as ``MODULE:ATTRIBUTE``.

    Raises:
        L4SError: There is none.
    """
    if ":" not in spec:
        return CONTROLS[spec]
    found = load(spec, "congestion control")
    if not isinstance(found, CongestionControl):
        raise L4SError(
            f"congestion control {spec!r}: is {type(found).__name__}: give a l4s_gym.sim.control.CongestionControl"
        )
    return found


@functools.cache
def _table(control: CongestionControl) -> npt.NDArray[np.int64]:
    """Return the function addresses of a user's own one, (6,); the cache keeps the table in place."""
    return np.array([callback(getattr(control, hook), kind) for hook, kind in _HOOKS.items()], np.int64)


def law_at(spec: str) -> int:
    """Return the address of the function table of a user's own congestion control; 0 for one that ships."""
    return int(_table(find(spec)).ctypes.data) if ":" in spec else 0


def _dispatch(hook: str) -> Any:
    """Make a function that calls the flow's congestion control; tests check that the compiler makes it one jump."""
    given = ", ".join(["f", "a", "b"][: _HOOKS[hook].count(",") + 1])
    own = {f"_{CCS.index(name)}": getattr(control, hook) for name, control in CONTROLS.items()}
    lines = [f"if f.cc == {name[1:]}: return {name}({given})" for name in own]
    place = f"load64(f.law_at + {8 * list(_HOOKS).index(hook)})"
    lines += [f"return _call({place}, ({given},))"]
    return written(hook, given, lines, {**own, "_call": call_void, "load64": load64})


_avoid, _lose, _time_out, _answer_marks = map(_dispatch, ("on_ack", "on_loss", "on_timeout", "on_ecn"))
restart: Final = _dispatch("restart")
"""`(flow, now_ns)`: set the state of a new connection."""
on_marks: Final = _dispatch("on_marks")
"""`(flow, acked, marked)`: packets newly reported by an ACK, and those among them that carried CE."""


@jit
def on_ack(f: Any, acked: int, now_ns: int) -> None:
    """Grow the window for `acked` packets newly reported by an ACK of new data (RFC 5681 section 3.1).

    Slow start counts every packet, and a quarter of them in the conservative phase of RFC 9406.
    """
    if f.cwnd < f.ssthresh:
        f.cwnd = min(f.cwnd + (0.25 * acked if f.css_rounds > 0 else acked), f.ssthresh)
    else:
        _avoid(f, acked, now_ns)
    f.cwnd = min(f.cwnd, float(f.rwnd))


@jit
def on_loss(f: Any, now_ns: int) -> None:
    """Reduce the window on a loss; the caller calls it once per recovery."""
    f.reductions += 1
    _lose(f, now_ns)


@jit
def on_ecn(f: Any, now_ns: int) -> None:
    """Reduce the window on marks; the caller calls it once per round trip."""
    f.reductions += 1
    _answer_marks(f, now_ns)


@jit
def on_timeout(f: Any, now_ns: int) -> None:
    """Set a new threshold, and start again from one packet."""
    _time_out(f, now_ns)
    f.cwnd = 1.0
