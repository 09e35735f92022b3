"""What figures 11 to 16 say: sentences made of measured numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from figure import NOT_GIVEN
from loops import Loop, interval, text
from replayed import ENQUEUE, LLM, NATIVE, PUBLISHED, RANDOM, Replay, published_as

Measures = Mapping[str, tuple[Callable[[dict[str, Any]], Any], str, tuple[float, float]]]
"""Name -> measure of a result, unit, and between which values it is."""

LEFT: Final = "as the authors compare: replay of logged rows"
RIGHT: Final = "closed loop"
LOGGED: Final = "the first 6,000 rows stand for all of the authors' evaluation log"


def label(replay: Replay) -> str:
    """What a replay is called in a picture."""
    return f"{replay.who} every {replay.every}" if replay.every else replay.who


def same_rows(found: Sequence[Replay], every: int) -> float:
    """Share of the decisions at which the LLM is at the same row as who always enqueues."""
    llm, other = (next(r.visited for r in found if (r.who, r.every) == (who, every)) for who in (LLM, ENQUEUE))
    n = min(len(llm), len(other))
    return float((llm[:n] == other[:n]).mean())


def paper_delays() -> str:
    """The published delays."""
    each = (f"{who} {median:g}, {mean:g}, {p95:g}" for who, (median, mean, p95) in PUBLISHED.items())
    figures = "; ".join(each)
    return f"delay in s, 10 ms added, median, mean, 95 %: {figures}. At which interval, and the rest, is {NOT_GIVEN}"


def _listed(parts: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def replay(data: Mapping[str, Any], *, rewards: bool = False, throughput: bool = False) -> str:
    """The replays in words; of the delay, or of another value."""
    who: Mapping[str, dict[str, Any]] = data["who"]
    actions = ", ".join(f"{count} {name}" for name, count in data["actions"].items())
    start = f"**Replay** of {who[NATIVE]['decisions']} rows ({data['rows']}: {actions}). "
    delays = not (rewards or throughput)
    if delays:
        each = {name: f"{a['median_s']:.3f}, {a['mean_s']:.4f}, {a['p95_s']:.3f}" for name, a in who.items()}
        start += f"Delay in s (median, mean, 95 %): {_listed(each)}. "
        start += "".join(
            f"{name} has the figures published for {p}. " for name, a in who.items() if (p := published_as(a))
        )
    else:
        value = "reward (B/us)" if rewards else "throughput (Mbit/s)"
        start += (
            f"Mean of the paper's {value}: {_listed({name: format(a['mean'], '.3g') for name, a in who.items()})}. "
        )
    for every, share in data["same"].items():
        start += f"{LLM} every {every} is where '{ENQUEUE}' is in {100 * share:.1f} % of the decisions. "
    start += f"Different rows that they come to: {_listed({name: str(a['rows']) for name, a in who.items()})}. "
    base, sign = who[NATIVE]["mean"], -1.0 if delays else 1.0
    blind = [name for name, a in who.items() if name.startswith((ENQUEUE, RANDOM)) and sign * (a["mean"] - base) > 0.0]
    what = "a lower mean delay" if delays else "a higher mean"
    if blind:
        return f"{start}Without looking, these come to {what} than native: {', '.join(blind)}."
    return f"{start}Nobody who does not look comes to {what} than native."


def closed(found: Sequence[Loop], measures: Measures) -> str:
    """The closed loops in words: means with 95 % intervals, and differences to native on the same traffic."""
    native = found[0]
    n, share = len(native.results), {loop.label: f"{100 * loop.decided():.1f} %" for loop in found if loop.every}
    start = f"**Closed loop**, {n} episodes of {native.seconds:g} s of {native.scenario} (95 % intervals; "
    parts = [f"{start}the agent decides on: {_listed(share)} of the packets)."]
    for name, (measure, unit, bounds) in measures.items():
        values = {loop.label: loop.values(measure) for loop in found}
        parts.append(of_values(f"{name}{f' ({unit})' if unit else ''}", values, bounds))
    return " ".join(parts)


def of_values(
    name: str, values: Mapping[str, npt.NDArray[np.float64]], bounds: tuple[float, float] = (-np.inf, np.inf)
) -> str:
    """Means over seeds with intervals by label, native first, and differences to it."""
    each = {who: text(interval(x).within(*bounds), ".4g") for who, x in values.items()}
    less = {who: text(interval(x - values[NATIVE]), "+.3g") for who, x in values.items() if who != NATIVE}
    return f"{name[0].upper()}{name[1:]}: {_listed(each)}; less native: {_listed(less)}."


def differs(agent: Mapping[str, Any], loop: Mapping[str, Any], rows: str = LOGGED) -> str:
    """What is different from the paper; rows: what is replayed."""
    first, last = loop["seeds"][0], loop["seeds"][-1]
    return (
        f"GPT-2 shapes with random initial weights ({agent['parameters']:,.0f} parameters on the left) instead of "
        f"Llama-2-7B, one training each. Left: the agent is trained as logged on all of {agent['file']}; {rows}; "
        "where no row has the action, the next row comes. Right: the authors compare in no closed loop; the agent is "
        "trained on the simulated testbed, between its decisions native DualPI2 (FreeBSD) decides. Beside it: "
        f"'{ENQUEUE}', the most frequent action of the pool, and '{RANDOM}' decisions. Seeds of the episodes: {first} "
        f"to {last}; lines show the start of the first."
    )
