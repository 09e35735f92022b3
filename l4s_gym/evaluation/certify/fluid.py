"""The loop of DualPI2 on paper: its gain and phase margins under any parameters.

It is the loop of De Schepper et al. 2016 ("PI2: a linearized AQM for both classic and scalable TCP"), linearised about
its equilibrium as Hollot et al. 2002 do. With R = base RTT + target, W the window in packets, k the coupling and
e = exp(-sR), the queue delay answers to the base probability p' by

    Reno (p = p'^2):    sqrt(2)/R e / ((s + (1 + e)/(RW)) (s + 1/R) + (1 - e)/(R^2 W))
    scalable (p = kp'): k/(2R)    e / ((s + e/(RW))       (s + 1/R) + (1 - e)/(R^2 W))

(with a minus sign), and p' to the delay by (alpha + beta (1 - exp(-sT)))/(sT), which is the controller with the hold
between two updates. Stable is a loop whose Nyquist curve does not go round -1.

Where probabilities are small, W is the window of the equilibrium, C R / N; it is never below 2.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym.sim.dualpi2_rfc9332 import Options

Floats = npt.NDArray[np.float64]
RTTS_MS: Final = (5, 10, 20, 50, 100)
RATES_MBPS: Final = (4.0, 12.0, 40.0, 120.0, 200.0)
FLOWS: Final = (1, 10)
PACKET_BITS: Final = 12e3
STEPS: Final = np.geomspace(0.1, 10.0, 61)
"""Factors of both gains that are tried."""


class Margins(NamedTuple):
    """How far a loop is from instability.

    Attributes:
        stable: Whether it is stable.
        phase_deg: Phase margin at the last gain crossover.
        gain_db: Gain margin at the first phase crossover.
    """

    stable: bool
    phase_deg: float
    gain_db: float


@functools.cache
def omegas(law: Options) -> Floats:
    """Return angular frequencies, 1/s, up to half of the controller's rate."""
    return np.geomspace(1e-3, np.pi / (1e-3 * law.tupdate_ms), 1500)


def loop(law: Options, scalable: bool, rtt_s: float, window: float, factors: Sequence[float]) -> Any:
    """Return the open loop at each of `omegas` (complex).

    Args:
        law: The operator's values.
        scalable: Whether the senders are scalable; else they are Reno.
        rtt_s: R.
        window: W, packets.
        factors: Of target, both gains and coupling; further ones are not used.
    """
    s = 1j * omegas(law)
    delay, update = np.exp(-s * rtt_s), 1e-3 * law.tupdate_ms
    controller = (law.alpha * factors[1] + law.beta * factors[2] * (1 - np.exp(-s * update))) / (s * update)
    own, gain = (delay, law.coupling * factors[3] / 2) if scalable else (1 + delay, np.sqrt(2))
    slow = (s + own / (rtt_s * window)) * (s + 1 / rtt_s) + (1 - delay) / (rtt_s**2 * window)
    return controller * gain / rtt_s * delay / slow


def is_stable(curve: Any) -> bool:
    """Return whether the Nyquist curve of a loop with one integrator does not go round -1: 1 + L turns by a quarter."""
    turned = np.unwrap(np.angle(1 + curve))
    return bool(abs(turned[-1] - turned[0] - np.pi / 2) < np.pi / 2)


def margins(curve: Any) -> Margins:
    """Return the margins of an open loop."""
    phase, gain = np.unwrap(np.angle(curve)), np.abs(curve)
    phase -= 2 * np.pi * np.round((phase[0] + np.pi / 2) / (2 * np.pi))
    above = np.flatnonzero(gain >= 1.0)
    beyond = np.flatnonzero(phase <= -np.pi)
    phase_deg = 180.0 + np.degrees(phase[above[-1]]) if len(above) else np.inf
    gain_db = float(-20 * np.log10(gain[beyond[0]])) if len(beyond) else np.inf
    return Margins(is_stable(curve), float(phase_deg), gain_db)


def worst(
    law: Options,
    scalable: bool,
    rtt_ms: float,
    factors: Sequence[float],
    rates_mbps: Iterable[float] = RATES_MBPS,
    flows: Iterable[int] = FLOWS,
) -> Margins:
    """Return the smallest margins over some rates and numbers of flows; stable: at all of them.

    Args:
        law: The operator's values.
        scalable: See `loop`.
        rtt_ms: Base RTT.
        factors: See `loop`.
        rates_mbps: Rates of the link.
        flows: Numbers of flows.
    """
    rtt_s = 1e-3 * (rtt_ms + law.target_ms * factors[0])
    windows = {max(rate * 1e6 * rtt_s / PACKET_BITS / n, 2.0) for rate, n in itertools.product(rates_mbps, flows)}
    found = [margins(loop(law, scalable, rtt_s, window, factors)) for window in windows]
    stable, phases, gains = zip(*found, strict=True)
    return Margins(all(stable), min(phases), min(gains))


def largest_gain(law: Options, scalable: bool, rtt_ms: float, steps: Floats | None = None, **where: Any) -> float:
    """Return the largest of some factors of both gains (`STEPS`) with which the loop is stable; 0: with none."""
    tried = STEPS if steps is None else steps
    stable = [factor for factor in tried if worst(law, scalable, rtt_ms, (1.0, factor, factor, 1.0), **where).stable]
    return float(max(stable, default=0.0))
