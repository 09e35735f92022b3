"""The closed loop's Jacobian around an operating point, measured in the simulator with common random numbers.

An episode runs several times with the same random numbers. In its copies something of the state is changed at one
moment, up in one copy and down in another: the base probability p' of the law, or the congestion windows of all flows.
Half the difference of two such copies, by the change, is the derivative of what follows. Single packets soon fall
otherwise, so only its mean over many seeds means something: the response of the mean motion, a few outputs at a few
dozen moments.

A queue has hidden state (packets under way, the senders' averages), so a matrix that maps the few outputs from one
moment to the next is not the Jacobian. The smallest linear system with these responses is: the eigensystem
realisation algorithm (Juang & Pappa 1985) takes it from the singular vectors of the Hankel matrix of the responses. Its
order is the number of singular values above those of pure noise, which is the same responses with random signs by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.agents.protocol import Agent
from l4s_gym.evaluation.certify import loop
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario

Floats = npt.NDArray[np.float64]
OUTPUTS: Final = ("delay of C", "base probability", "ln mean window")
PROBABILITY: Final = 0.2
"""Change of p', as a share of its mean."""
WINDOWS: Final = 0.2
"""Change of ln of all windows."""
MOST: Final = 6
"""Highest order of the system."""
_FLIPS: Final = 20
_RESAMPLES: Final = 100
_ONE: Final = 1 << 32
_COPIES: Final = 5
"""As it is; windows up, down; p' up, down."""


@dataclass(frozen=True)
class Modes:
    """The linear system of some responses.

    Attributes:
        order: Its order; 0: nothing is above the noise.
        radius: Spectral radius of its matrix from one look to the next.
        values: Its eigenvalues (order,) complex.
        singular: Singular values of the Hankel matrix.
        noise: Largest singular value of noise.
    """

    order: int
    radius: float
    values: npt.NDArray[np.complex128]
    singular: Floats
    noise: float


def hankel(responses: Floats) -> tuple[Floats, Floats]:
    """Return the Hankel matrix of responses (K, outputs, inputs), and that of a step later."""
    half = (len(responses) - 1) // 2
    index = np.arange(half)[:, None] + np.arange(half)

    def matrix(shift: int) -> Floats:
        blocks = responses[index + shift]  # (half, half, outputs, inputs)
        rows, columns = half * blocks.shape[2], half * blocks.shape[3]
        return np.asarray(blocks.transpose(0, 2, 1, 3).reshape(rows, columns))

    return matrix(0), matrix(1)


def realise(responses: Floats, order: int) -> npt.NDArray[np.complex128]:
    """Return the eigenvalues of the linear system of an order whose responses (K, outputs, inputs) these are."""
    first, later = hankel(responses)
    u, s, vt = np.linalg.svd(first, full_matrices=False)
    root = np.sqrt(s[:order])
    matrix = (u[:, :order] / root).T @ later @ (vt[:order].T / root)
    return np.asarray(np.linalg.eigvals(matrix), np.complex128)


def modes(responses: Floats, rng: np.random.Generator) -> Modes:
    """Return the system of the mean of responses (seeds, K, outputs, inputs)."""
    signs = rng.choice([-1.0, 1.0], (_FLIPS, len(responses)))
    noise = max(np.linalg.norm(hankel(np.einsum("s,s...->...", sign, responses) / len(sign))[0], 2) for sign in signs)
    mean = responses.mean(0)
    singular = np.asarray(np.linalg.svd(hankel(mean)[0], compute_uv=False), np.float64)
    order = min(int((singular > noise).sum()), MOST)
    values = realise(mean, order) if order else np.zeros(0, np.complex128)
    return Modes(order, float(np.abs(values).max(initial=0.0)), values, singular, float(noise))


def interval(responses: Floats, order: int, rng: np.random.Generator, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the spectral radius when the seeds are drawn anew (bootstrap)."""
    if not order:
        return 0.0, 1.0
    n = len(responses)
    found = [np.abs(realise(responses[rng.integers(n, size=n)].mean(0), order)).max() for _ in range(_RESAMPLES)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def measure(
    who: str | Agent,
    scenario: Scenario,
    seeds: Sequence[int],
    *,
    at_s: float = 5.0,
    for_s: float = 2.0,
    step_ms: float = 40.0,
    chunk: int = 20,
    **how: Any,
) -> dict[str, Any]:
    """Return the modes of a closed loop around an operating point, with the responses that they were made of.

    Args:
        who: As in `loop.watch`.
        scenario: Of constant traffic.
        seeds: One episode each.
        at_s: When the state is changed.
        for_s: How long the response is seen.
        step_ms: From one look to the next.
        chunk: Seeds that run side by side.
        how: Further arguments of `loop.watch`.
    """
    scenario = scenario.replace(horizon_s=at_s + for_s + 0.1)
    parts = [
        _responses(who, scenario, seeds[k : k + chunk], at_s, for_s, step_ms, how) for k in range(0, len(seeds), chunk)
    ]
    inputs = min(part[0].shape[-1] for part in parts)  # the probability only where it was changed in all seeds
    responses = np.concatenate([part[0][..., :inputs] for part in parts])
    states = np.concatenate([part[1] for part in parts], axis=1)  # (looks, seeds, outputs)
    spread = states.std((0, 1)) + 1e-12
    step_s = parts[0][2]
    scaled = responses / spread[:, None] * spread[[2, 1][:inputs]]  # as usual changes bring about
    rng = np.random.default_rng(0)
    found = modes(scaled, rng)
    low, high = interval(scaled, found.order, rng)
    slowest = found.values[np.abs(found.values).argmax()] if found.order else 0j
    rate = np.log(slowest) / step_s if found.order else complex(-np.inf)
    mean = responses.mean(0)
    return {
        "scenario": scenario.name,
        "seeds": list(seeds),
        "step_s": step_s,
        "inputs": ["windows", "base probability"][:inputs],
        "outputs": list(OUTPUTS),
        "state": states.mean((0, 1)).tolist(),
        "deviation": spread.tolist(),
        "order": found.order,
        "radius": found.radius,
        "radius_low": low,
        "radius_high": high,
        "radius_100ms": found.radius ** (0.1 / step_s),
        "decay_s": float(-1.0 / rate.real) if rate.real < 0 and np.isfinite(rate.real) else None,
        "frequency_hz": float(abs(rate.imag) / (2 * np.pi)) if found.order else None,
        "eigenvalues": [[float(value.real), float(value.imag)] for value in found.values],
        "singular": found.singular[: MOST + 2].tolist(),
        "noise": found.noise,
        "response": mean.tolist(),
        "error": (responses.std(0, ddof=1) / np.sqrt(len(responses))).tolist(),
    }


def _responses(
    who: str | Agent,
    scenario: Scenario,
    seeds: Sequence[int],
    at_s: float,
    for_s: float,
    step_ms: float,
    how: dict[str, Any],
) -> tuple[Floats, Floats, float]:
    """Return responses (seeds, K, outputs, inputs), states before (looks, seeds, outputs), and seconds of a step."""
    rows = [seed for seed in seeds for _ in range(_COPIES)]
    changed, size = np.zeros(len(rows), bool), np.zeros(len(rows))

    def touch(batch: Batch, i: int, now_ns: int) -> None:
        if changed[i] or now_ns < 1e9 * at_s:
            return
        changed[i] = True
        kind, own = i % _COPIES, batch.own
        if kind in (1, 2):
            batch.flow["cwnd"][i] *= np.exp(WINDOWS if kind == 1 else -WINDOWS)
        elif kind in (3, 4) and "prob" in (own.dtype.names or ()):
            before = int(own["prob"][i])
            own["prob"][i] = min(round(before * (1 + PROBABILITY if kind == 3 else 1 - PROBABILITY)), _ONE)
            size[i] = (int(own["prob"][i]) - before) / _ONE

    seen = loop.watch(
        who,
        scenario,
        rows,
        step_ms=step_ms,
        touch=touch,
        more={"p": loop.base_probabilities, "w": loop.mean_windows},
        **how,
    )
    x = np.stack([seen.delay_ms[..., 0], seen.more["p"], seen.more["w"]], -1)
    x = x.reshape(len(x), len(seeds), _COPIES, 3)
    first = math.ceil(round(at_s / seen.step_s, 6))  # the first look after the change; the list starts a step after 0
    after = x[first : first + round(for_s / seen.step_s)]
    inputs = [(after[:, :, 1] - after[:, :, 2]) / (2 * WINDOWS)]
    change = size.reshape(len(seeds), _COPIES)
    change = change[:, 3] - change[:, 4]
    if change.all():
        inputs.append((after[:, :, 3] - after[:, :, 4]) / change[:, None])
    return np.stack(inputs, -1).transpose(1, 0, 2, 3), x[first // 2 : first, :, 0], seen.step_s
