"""What the measurements say of the L4S-LLM paper's statements about stability, equations 6 to 10 of its appendix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from l4s_gym.evaluation.certify import chance
from l4s_gym.evaluation.certify.run import BOUNDS, LAGS_MS, REFERENCES_MS

Verdict = Literal["holds", "fails", "undecided", "does not apply"]
Parts = Mapping[str, Any]
NO_MODEL: Final = "a discipline has no model"


@dataclass(frozen=True)
class Statement:
    """One statement.

    Attributes:
        equation: Of the paper's appendix; "": of the linearised loop.
        says: What it says.
        verdict: Whether it holds.
        number: The number that decides.
        how: How it was found, or why it cannot be decided.
    """

    equation: str
    says: str
    verdict: Verdict
    number: str
    how: str


def with_prefix(parts: Parts, prefix: str) -> dict[str, Any]:
    """Return the parts whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}


def episodes(parts: Parts) -> list[dict[str, Any]]:
    """Return all episodes of all scenarios."""
    return [row for part in with_prefix(parts, "episodes ").values() for row in part["episodes"]]


def drift(parts: Parts, lag_ms: float) -> list[chance.Band]:
    """Return the drift by band of all episodes."""
    tallies = np.array([row[f"drift_{lag_ms:g}ms"] for row in episodes(parts)])  # (E, 2, bands)
    return chance.bands(tallies[:, 0], tallies[:, 1])


@dataclass(frozen=True)
class Above:
    """How likely a delay is above a bound.

    Attributes:
        queue: C or L.
        bound: In words.
        bound_ms: The bound; None: it differs between scenarios.
        moment: At one moment of an episode.
        packet: For any packet of an episode, the start included.
    """

    queue: str
    bound: str
    bound_ms: float | None
    moment: chance.Chance
    packet: chance.Chance


def above(parts: Parts, bounds: Sequence[float] = BOUNDS) -> list[Above]:
    """Return the chances of a delay above the bounds: of C in targets of the law and in references, of L in these."""
    rows, found = episodes(parts), []
    for k, queue, what in ((0, "C", "target"), (0, "C", "reference"), (1, "L", "reference")):
        units = np.array([row["target_ms"] if what == "target" else REFERENCES_MS[k] for row in rows])
        same = bool((units == units[0]).all())
        if what == "target" and same and units[0] == REFERENCES_MS[0]:
            continue
        for bound in bounds:
            hits = [np.array([row[name][k] for row in rows]) > bound * units for name in ("moment_ms", "longest_ms")]
            counted = [chance.clopper_pearson(int(each.sum()), len(rows)) for each in hits]
            unit = f" of {REFERENCES_MS[k]:g} ms" if what == "reference" else f" of {units[0]:g} ms" if same else ""
            ms = float(bound * units[0]) if same else None
            found.append(Above(queue, f"{bound:g} {what}s{unit}", ms, *counted))
    return found


def beyond(parts: Parts, queue: int, bounds_ms: Sequence[float]) -> list[tuple[float, chance.Chance]]:
    """Return how likely any packet of an episode waits longer than each of some bounds."""
    longest = np.array([row["longest_ms"][queue] for row in episodes(parts)])
    return [(each, chance.clopper_pearson(int((longest > each).sum()), len(longest))) for each in bounds_ms]


def all_of(parts: Parts) -> list[Statement]:
    """Return the statements about what was measured."""
    return [
        *_lipschitz(parts["gains"]),
        _adapted(parts["gains"]),
        _loop(with_prefix(parts, "response ")),
        *_margins(parts),
        *_lyapunov(parts),
        _convergence(with_prefix(parts, "response ")),
        *_bounded(parts),
    ]


def _lipschitz(gains: Parts) -> list[Statement]:
    says = "the Lipschitz constant of a transformer layer is below 1"
    if "upper" not in gains:
        return [Statement("6", says, "does not apply", "-", NO_MODEL)]
    found = []
    if "transformer" in gains:
        norms = [layer["norm"] for layer in gains["transformer"]["with LoRA"]["layers"]]
        how = "largest singular value of each layer's Jacobian at a window of observations: a bound from below"
        verdict: Verdict = "fails" if max(norms) > 1.0 else "undecided"
        found.append(Statement("6", says, verdict, f"{min(norms):.3g} to {max(norms):.3g} by layer", how))
    upper, lower = gains["upper"]["held"], gains.get("lower") or gains.get("transformer", {}).get("with LoRA")
    least = None if not lower else lower["held"]
    says = "the same of the whole model, from observations to actions"
    number = f"{'?' if least is None else f'{least:.3g}'} to {'no finite bound' if upper is None else f'{upper:.3g}'}"
    verdict = "fails" if least and least > 1.0 else "holds" if upper is not None and upper < 1.0 else "undecided"
    why = gains["upper"]["why"]
    return [*found, Statement("6", says, verdict, number, f"from sampled Jacobians, and from the weights; {why}")]


def _adapted(gains: Parts) -> Statement:
    says = "the spectral radius of the Jacobian of the LoRA-adapted transformer is below 1"
    if "transformer" not in gains:
        return Statement("7", says, "does not apply", "-", "no transformer" if "upper" in gains else NO_MODEL)
    own, plain = (gains["transformer"][name]["backbone"]["radius"] for name in ("with LoRA", "without"))
    rows = gains["transformer"]["adapters"]
    part = max((row["lora"] / row["base"] for row in rows), default=0.0)
    how = f"at a window of observations; without LoRA {plain:.3g}; what LoRA adds has at most {100 * part:.0f} % of the"
    verdict: Verdict = "fails" if own > 1.0 else "undecided"
    return Statement("7", says, verdict, f"{own:.3g}", f"{how} norm of its weight")


def _loop(points: Parts) -> Statement:
    says = "the spectral radius of the closed loop's Jacobian is below 1 (in 100 ms)"
    known = {name: part for name, part in points.items() if part["order"]}
    if not known:
        return Statement("7", says, "undecided", "-", "no response is above the noise")
    radii = {
        name: [part[key] ** (0.1 / part["step_s"]) for key in ("radius", "radius_low", "radius_high")]
        for name, part in known.items()
    }
    worst = max(radii, key=lambda name: radii[name][0])
    sure, broken = all(each[2] < 1.0 for each in radii.values()), any(each[1] > 1.0 for each in radii.values())
    verdict: Verdict = "fails" if broken else "holds" if sure and len(known) == len(points) else "undecided"
    number = "{:.3g} [{:.3g}, {:.3g}]".format(*radii[worst])
    return Statement(
        "7", says, verdict, number, f"at {worst}, the largest of {len(points)} operating points; 95 % interval"
    )


def _margins(parts: Parts) -> list[Statement]:
    if "margins" not in parts:
        return []
    rows, found = parts["margins"]["rows"], []
    words = {"own": "the operator's values", "box": "all that an agent may set", "set": "what the agent set"}
    for what, title in words.items():
        if what != "own" and what not in rows[0]:
            continue
        shares = [float(row["stable"]) if what == "own" else row[what]["stable"] for row in rows]
        phases = [row["phase_deg"] if what == "own" else row[what]["phase_deg"][0] for row in rows]
        k = int(np.argmin(phases))
        where = f"RTT {rows[k]['rtt_ms']} ms, {'scalable' if rows[k]['scalable'] else 'Reno'}"
        number = f"margin {phases[k]:.0f} deg at {where}"
        bad = sorted({row["rtt_ms"] for row, share in zip(rows, shares, strict=True) if share < 1.0})
        how = f"not at an RTT of {', '.join(map(str, bad))} ms" if bad else f"at all RTTs up to {rows[-1]['rtt_ms']} ms"
        how += f", 4 to 200 Mbit/s, 1 and 10 flows; stable share of the worst {100 * min(shares):.0f} %"
        verdict: Verdict = "holds" if min(shares) == 1.0 else "fails"
        found.append(Statement("", f"the linearised loop is stable with {title}", verdict, number, how))
    return found


def _lyapunov(parts: Parts) -> list[Statement]:
    found = []
    for lag_ms in LAGS_MS:
        bands = [band for band in drift(parts, lag_ms) if band.episodes]
        edge = chance.falls_from(bands)
        rises = [band for band in bands if band.drift_low > 0.0]
        worst = max(bands, key=lambda band: band.drift)
        after = f"V = (delay / target - 1)^2 falls within {lag_ms:g} ms"
        number = f"+{worst.drift:.3g} from {worst.low:g} to {worst.high:g} targets" if rises else "-"
        how = f"{len(rises)} of {len(bands)} bands of delay in which it surely rises"
        every = all(band.falls for band in bands)
        found.append(
            Statement(
                "8", f"{after}, at any delay", "fails" if rises else "holds" if every else "undecided", number, how
            )
        )
        if edge is None:
            found.append(Statement("8", f"{after}, above some delay", "undecided", "-", "the highest band is not sure"))
        else:
            share = sum(band.share for band in bands if band.low >= edge)
            how = f"all bands from there on, together 95 % sure; {100 * share:.1f} % of the time is spent there"
            found.append(Statement("8", f"{after}, above some delay", "holds", f"from {edge:g} targets on", how))
    return found


def _convergence(points: Parts) -> Statement:
    says = "the return converges to that of the best policy as fast as the chain mixes"
    decays = [part["decay_s"] for part in points.values() if part["decay_s"]]
    number = f"the loop forgets in {max(decays):.2g} s" if decays else "-"
    return Statement(
        "9", says, "undecided", number, "nobody knows the best policy; the slowest mode of the loop stands for mixing"
    )


def _bounded(parts: Parts) -> list[Statement]:
    found = []
    for each in above(parts):
        n, packet = each.moment, 100 * each.packet.value
        says = f"P(delay of {each.queue} > {each.bound}) <= epsilon"
        how = f"{n.hits} of {n.trials} episodes at a moment drawn; any packet of an episode: {packet:.0f} %"
        found.append(Statement("10", says, "holds", f"epsilon = {n.high:.3g} (observed {n.value:.3g})", how))
    return found
