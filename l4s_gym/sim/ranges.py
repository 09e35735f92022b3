"""Ranges of scenarios: what may be drawn for training, and in which ways another scenario lies outside of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Final

import numpy as np
from msgspec import Meta, Struct

from l4s_gym.errors import L4SError
from l4s_gym.sim import traces
from l4s_gym.sim.layout import APPS
from l4s_gym.sim.scenario import Scenario, Source, from_dict, protocol
from l4s_gym.tables import convert

Range = tuple[float, float]
CLASSIC: Final = ("cubic", "newreno")
L4S: Final = ("dctcp", "prague")
SOME: Final = 0.25
"""Probability of what only some of the drawn scenarios have: web users, an on/off sender, groups that start late."""
LONGEST_S: Final = 60.0
"""Until when the rate of a drawn link changes."""


class Ranges(Struct, frozen=True, forbid_unknown_fields=True):
    """Ranges, both ends included.

    Attributes:
        rate_mbps: Rate of the link, after each of its steps too; of a trace, the mean.
        rtt_ms: Base round-trip times.
        classic_flows: Number of long flows of class C.
        l4s_flows: Number of long flows of class L.
        web_users: Number of web users of each class.
        start_s: When flows start.
        unresponsive: Rate of the senders that do not respond, by the lowest rate of the link.
        sources: Kinds of sources.
        links: Kinds of links, and their shares among the drawn ones: `constant`, `steps` (a constant link whose rate
            changes at once), another kind, or the name of a trace.
    """

    rate_mbps: Range
    rtt_ms: Range
    classic_flows: tuple[int, int]
    l4s_flows: tuple[int, int]
    web_users: tuple[int, int]
    start_s: Range
    unresponsive: Range
    sources: Annotated[tuple[str, ...], Meta(min_length=1)]
    links: dict[str, Annotated[float, Meta(gt=0.0)]]

    def __post_init__(self) -> None:
        for name in self.__struct_fields__[:-2]:
            low, high = getattr(self, name)
            if not 0.0 <= low <= high < math.inf:
                raise L4SError(f"ranges.{name}: give the lowest and the highest value, 0 or more")

    def outside(self, scenario: Scenario) -> tuple[str, ...]:
        """Names of the ranges that a scenario leaves, with whatever its episodes draw; empty: it lies inside."""
        low = scenario.replace(**{path: draw.smallest() for path, draw in scenario.randomise.items()})
        found = [name for each in (low, scenario.largest()) for name in self._left(each)]
        kinds = {
            str(kind) for path, draw in scenario.randomise.items() if path.endswith(".kind") for kind in draw.choices
        }
        found += ["sources"] if kinds - set(self.sources) else []
        return tuple(dict.fromkeys(found))

    def _left(self, scenario: Scenario) -> Iterator[str]:
        rates = rates_mbps(scenario)
        there = [source for source in scenario.sources if source.count]
        users, counts = [0, 0], [0, 0]
        for source in there:
            if source.kind == "web":
                users[source.cc in L4S] += source.count
            elif source.kind not in APPS:
                counts[is_l4s(source)] += source.count
        deaf = sum(source.rate_mbps * source.count for source in there if source.kind in ("cbr", "onoff"))
        values: dict[str, list[Any]] = {
            "rate_mbps": rates,
            "rtt_ms": [source.rtt_ms for source in there],
            "classic_flows": counts[:1],
            "l4s_flows": counts[1:],
            "web_users": users if any(users) else [],
            "start_s": [source.start_s for source in there],
            "unresponsive": [deaf / min(rates)] if deaf else [],
        }
        for name, found in values.items():
            low, high = getattr(self, name)
            if any(not low * (1.0 - 1e-6) <= value <= high * (1.0 + 1e-6) for value in found):
                yield name
        if {source.kind for source in there} - set(self.sources):
            yield "sources"
        if link_kind(scenario) not in self.links:
            yield "links"

    def draw(self, seed: int) -> Scenario:
        """A scenario within the ranges, drawn at random, called `random-SEED`; the same one for the same seed."""
        rng = np.random.default_rng(seed)
        kinds = list(self.links)
        shares = np.array([self.links[kind] for kind in kinds])
        link = self._link(kinds[rng.choice(len(kinds), p=shares / shares.sum())], rng)
        groups: list[dict[str, Any]] = []
        for laws, flows in ((CLASSIC, self.classic_flows), (L4S, self.l4s_flows)):
            chosen = [law for law in laws if law in self.sources]
            split = rng.multinomial(rng.integers(flows[0], flows[1] + 1), rng.dirichlet(np.ones(len(chosen))))
            groups += [{"kind": law, "count": int(count)} for law, count in zip(chosen, split, strict=True) if count]
        if "web" in self.sources and rng.random() < SOME:
            users = rng.integers(self.web_users[0], self.web_users[1] + 1, 2)
            groups += [
                {"kind": "web", "cc": cc, "count": int(n)} for cc, n in zip(("cubic", "prague"), users, strict=True)
            ]
        if "onoff" in self.sources and rng.random() < SOME:
            lowest = min(rates_mbps(from_dict({"name": "link", "link": link, "sources": groups})))
            groups.append({"kind": "onoff", "rate_mbps": float(rng.uniform(*self.unresponsive)) * lowest})
        for group in groups:
            group["rtt_ms"] = _log_uniform(self.rtt_ms, rng)
            group["start_s"] = float(rng.uniform(*self.start_s)) if rng.random() < SOME else self.start_s[0]
        return from_dict({"name": f"random-{seed}", "description": "Drawn", "link": link, "sources": groups})

    def _link(self, kind: str, rng: np.random.Generator) -> dict[str, Any]:
        """The link of a drawn scenario."""
        if kind not in ("constant", "steps"):
            return {"kind": "trace", "trace": kind}
        rates, times, gap_s = [_log_uniform(self.rate_mbps, rng)], [0.0], rng.uniform(2.0, 10.0)
        while kind == "steps" and (at := times[-1] + rng.exponential(gap_s)) < LONGEST_S:
            times.append(at)
            rates.append(_log_uniform(self.rate_mbps, rng))
        steps = [(at, rate / max(rates)) for at, rate in zip(times, rates, strict=True)] if kind == "steps" else []
        return {"kind": "constant", "rate_mbps": max(rates), "steps": steps}  # the buffer is that of the highest rate


@functools.cache
def training() -> Ranges:
    """The ranges of the benchmark's protocol, within which `random-SEED` and `random:train` are drawn."""
    return convert(Ranges, protocol()["ranges"], "protocol: ranges")


def _log_uniform(ends: Range, rng: np.random.Generator) -> float:
    return float(np.clip(math.exp(rng.uniform(*np.log(ends))), *ends))


def is_l4s(source: Source) -> bool:
    """Whether the packets of a source are of class L."""
    return source.ecn == "ect1" or (not source.ecn and source.kind in L4S)


def link_kind(scenario: Scenario) -> str:
    """`constant`, `steps`, `tick`, `dummynet`, or the name of the trace."""
    link = scenario.link
    return link.trace if link.kind == "trace" else "steps" if link.steps else link.kind


def rates_mbps(scenario: Scenario) -> list[float]:
    """Rates that the link of a scenario has, one after the other; of a trace, the mean."""
    link = scenario.link
    if link.kind == "trace":
        return [traces.load(link.trace).mean_bps * 1e-6]
    return [link.rate_mbps, *(link.rate_mbps * factor for _, factor in link.steps)]
