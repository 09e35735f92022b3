"""Agents in control of the live router beside native disciplines and the simulator: does its order hold?

    sudo python benchmarks/studies/live/agents.py --agent onestep=runs/onestep llm=runs/llm,every=500ms
    sudo python benchmarks/studies/live/agents.py --agent tree=runs/onestep-tree --rates 8 40 100 1000  # a student
    sudo python benchmarks/studies/live/agents.py --quick --agent zero=zero:form=parameters  # a minute; writes nothing

One CUBIC flow with ECN (Linux's TCP) against one ECT(1) flow (our paced, Prague-like UDP source), RTT 20 ms; half-way
the link falls to half its rate. Each run is kept in the work folder, so that a study that was stopped goes on. Figures
of a shared machine vary between runs; there are no assertions.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

import run as study
from l4s_gym.agents import AgentSpec, form_of
from l4s_gym.agents.protocol import options_of
from l4s_gym.agents.saved import MODEL
from l4s_gym.bridge.client import Client
from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness, leaderboard
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.live.control import Controller, RewardMeter
from l4s_gym.live.interval_control import IntervalController
from l4s_gym.live.testbed import LiveTestbed
from l4s_gym.markdown import table
from l4s_gym.rewards import BALANCE, WEIGHTS
from l4s_gym.sim import fingerprint
from l4s_gym.sim.scenario import Scenario
from l4s_gym.tables import checksum, option_paths

RATES_MBPS: Final = (8.0, 40.0, 100.0)
APART: Final = 0.01
"""A difference of scores that is no noise."""
STEP: Final = (0.5, 0.5)
"""When the rate changes, by the length of a run, and the factor."""
AQM: Final = "dualpi2_rfc9332"
FREE: Final = {"shield_hits": 0, "shield_c_us": 0, "shield_l_us": 0, "shield_drops": 65536}
"""The shield's bounds where nothing is bounded."""
DISCIPLINES: Final = ("native/dualpi2_rfc9332", "native/dualpi2_tuned", "native/dualpi2_linux")
DELAYS: Final = {name: weight for name, weight in WEIGHTS[BALANCE].items() if name.startswith("delay")}
Row = dict[str, Any]


@dataclass(frozen=True)
class Decider:
    """Who decides.

    Attributes:
        name: In the tables.
        spec: Of an agent or a discipline.
        every: What it decides about: each n-th packet.
        interval_ms: Or control intervals; None: of the length for which it was trained.
        options: Of the disciplines: those of an experiment, or those over which an agent was trained.
        free: Whether the shield of the router is off, as in the simulator.
    """

    name: str
    spec: str
    every: int = 1
    interval_ms: float | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    free: bool = False

    @property
    def native(self) -> str | None:
        """The discipline, if one decides."""
        return AgentSpec.parse(self.spec).native

    @property
    def model(self) -> Path | None:
        """The model of a student, which decides inside the router."""
        folder = AgentSpec.parse(self.spec).path
        path = None if folder is None else folder / MODEL
        return path if path is not None and path.is_file() else None

    def scenario(self, rate_mbps: float, seconds: float) -> Scenario:
        """What it runs on."""
        steps = ((STEP[0] * seconds, STEP[1]),)
        made = study.shared_scenario(rate_mbps, self.native or AQM, seconds, steps)
        return made.replace(**option_paths(self.options))


def decider(text: str) -> Decider:
    """Read NAME=SPEC, with `,every=N` or `,every=500ms` and then `,free` behind it.

    Raises:
        L4SError: It has no such form.
    """
    match = re.fullmatch(r"([\w.-]+)=(.+?)(?:,every=(\d+)|,every=(\d+(?:\.\d+)?)ms)?(,free)?", text)
    if match is None or ",every=" in match[2]:
        raise L4SError(
            f"--agent {text}: give NAME=SPEC, such as onestep=runs/onestep, then ,every=10 or ,every=500ms, then ,free"
        )
    interval_ms, free = float(match[4]) if match[4] else None, match[5] is not None
    name = f"{match[1]}-free" if free else match[1]
    return Decider(name, match[2], int(match[3] or 1), interval_ms, free=free)


def deciders(agents: Sequence[str]) -> list[Decider]:
    """Return the native disciplines, and the agents.

    Raises:
        L4SError: Two have one name, or an agent cannot be made.
    """
    native = [Decider(each.variant, each.agent, options=each.options) for each in leaderboard.experiments(DISCIPLINES)]
    asked = [decider(text) for text in agents]
    names = [each.name for each in native + asked]
    if twice := {name for name in names if names.count(name) > 1}:
        raise L4SError(f"--agent {min(twice)}: is there already: give another name")
    return native + [
        each if each.native is not None else replace(each, options=options_of(AgentSpec.parse(each.spec).make()))
        for each in asked
    ]


# -- runs


def evenness(goodput: dict[str, float]) -> float:
    """Geometric by arithmetic mean of the goodputs of both flows: 1 where they are equal."""
    c, l4s = goodput["C"], goodput["L"]
    return 2.0 * float(np.sqrt(c * l4s)) / max(c + l4s, 1e-9)


def live(who: Decider, rate_mbps: float, seconds: float, seed: int) -> Row:
    """Return the figures of a live run."""
    more: Row = {}
    inside = who.native is not None or who.model is not None
    agent: Any = None if inside else AgentSpec.parse(who.spec).make()  # before anything flows: loading may take seconds

    def decide(bed: LiveTestbed) -> None:
        with Client(bed.socket) as client:
            before = client.law()
        if inside:
            bed.wait(bed.seconds)
        else:
            client = Client(bed.socket, direct=form_of(agent) == PACKET)
            if form_of(agent) == PACKET:
                told = Controller(client, agent, decision_interval=who.every, reward=BALANCE, seed=seed)
            else:
                told = IntervalController(client, agent, control_interval_ms=who.interval_ms, reward=BALANCE, seed=seed)
            more["control"] = told.run(bed.seconds).as_dict()
            bed.check()
        with Client(bed.socket) as client:
            after = client.law()
        meter = RewardMeter(DELAYS, round(rate_mbps * 1e6))
        more["law"] = {name: getattr(after, name) - getattr(before, name) for name in ("sets", "expired")}
        more["delays"] = meter.integral(before.entry["law"], after.entry["law"]) / bed.seconds

    found = study.live_shared(who.scenario(rate_mbps, seconds), seed, decide, who.model, FREE if who.free else None)
    score = found["utilisation"] * evenness(found["goodput_mbps"]) + more["delays"]
    return found | more | {"score": score}


def simulated(who: Decider, rate_mbps: float, seconds: float, seed: int) -> Row:
    """Return the same figures of a simulated run."""
    how: Row = (
        {} if who.native is not None else {"decision_interval": who.every, "control_interval_ms": who.interval_ms}
    )
    scenario = who.scenario(rate_mbps, seconds)
    (r,) = harness.evaluate(who.spec, scenario, seeds=(seed,), reward=BALANCE, **how)
    goodput = dict(zip("CL", r.goodput_mbps, strict=True))
    used = r.utilisation * study.mean_mbps(scenario) / rate_mbps  # a reward counts by the rate at the start
    return {
        "delay_ms": r.delay_ms,
        "goodput_mbps": goodput,
        "ratio": r.goodput_ratio,
        "utilisation": r.utilisation,
        "mark_rate": {name: each["mark_rate"] for name, each in r.classes.items()},
        "drop_rate": {name: each["drop_rate"] for name, each in r.classes.items()},
        "score": r.utilisation * evenness(goodput) + r.episode_return / seconds - used,
    }


WAYS: Final[dict[str, Callable[[Decider, float, float, int], Row]]] = {"live": live, "simulated": simulated}


def kept(work: Path, way: str, who: Decider, rate_mbps: float, seconds: float, seed: int) -> Row:
    """Return a run of `WAYS`, from its file where it was made before."""
    about = [AgentSpec.parse(who.spec).digest(), who.every, who.interval_ms, who.options, seconds, STEP]
    about += ["free"] if who.free and way == "live" else []
    key = checksum([*about, fingerprint.FINGERPRINT if way == "simulated" else ""])[:12]
    path = work / f"{way}-{rate_mbps:g}m-{who.name}-{seed}-{key}.json"
    if not path.is_file():
        found = WAYS[way](who, rate_mbps, seconds, seed)
        work.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(found).encode())
        print(f"{path.stem}: {words(found)}", flush=True)
    made: Row = json.loads(path.read_text())
    return made


def measured(who: Sequence[Decider], rates: Sequence[float], seconds: float, runs: int, work: Path) -> list[Row]:
    """Return what each decider comes to at each rate, live and simulated; live runs take turns."""
    seeds = range(1, runs + 1)
    found: dict[tuple[float, str, str], list[Row]] = {}
    for way, rate, seed, each in itertools.product(WAYS, rates, seeds, who):
        found.setdefault((rate, each.name, way), []).append(kept(work, way, each, rate, seconds, seed))
    return [{"rate_mbps": rate, "who": name, "way": way, "runs": made} for (rate, name, way), made in found.items()]


# -- in words


MEASURES: Final[dict[str, Callable[[Row], float]]] = {
    "score": lambda r: r["score"],
    "C mean ms": lambda r: r["delay_ms"]["C"]["mean"],
    "C p99": lambda r: r["delay_ms"]["C"]["p99"],
    "L mean ms": lambda r: r["delay_ms"]["L"]["mean"],
    "L p99": lambda r: r["delay_ms"]["L"]["p99"],
    "C Mbit/s": lambda r: r["goodput_mbps"]["C"],
    "L Mbit/s": lambda r: r["goodput_mbps"]["L"],
    "L/C": lambda r: r["ratio"] or 0.0,
    "used %": lambda r: 100.0 * r["utilisation"],
    "C marked %": lambda r: 100.0 * r["mark_rate"]["C"],
    "L marked %": lambda r: 100.0 * r["mark_rate"]["L"],
}
OWN: Final[dict[str, Callable[[Row], float]]] = {
    "decided %": lambda r: 100.0 * r["decided"]["agent"] / max(sum(r["decided"].values()), 1),
    "set": lambda r: r["law"]["sets"],
    "expired": lambda r: r["law"]["expired"],
    "router us": lambda r: r["router_us"],
}
"""Measures of live runs alone."""
DRAWN: Final = ("score", "C mean ms", "L p99", "L/C")


def values(row: Row, name: str) -> list[float]:
    """A measure of each run."""
    return [MEASURES[name](each) for each in row["runs"]]


def words(found: Row) -> str:
    """A run in a line."""
    return ", ".join(f"{name} {get(found):.3g}" for name, get in MEASURES.items())


def scores(rows: Sequence[Row], rate: float, way: str) -> dict[str, float]:
    """Mean score of each at one rate, by name."""
    chosen = [row for row in rows if (row["rate_mbps"], row["way"]) == (rate, way)]
    return {row["who"]: float(np.mean(values(row, "score"))) for row in chosen}


def order(rows: Sequence[Row], rate: float, way: str) -> list[str]:
    """Names at one rate, the best score first."""
    found = scores(rows, rate, way)
    return sorted(found, key=lambda name: -found[name])


def agreement(rows: Sequence[Row], rate: float, apart: float = 0.0) -> tuple[int, int]:
    """Of the pairs at one rate whose simulated scores are more than `apart`: those in the same order live, and all."""
    one, other = (scores(rows, rate, way) for way in ("simulated", "live"))
    pairs = [(a, b) for a, b in itertools.combinations(one, 2) if abs(one[a] - one[b]) > apart]
    return sum((one[a] > one[b]) == (other[a] > other[b]) for a, b in pairs), len(pairs)


def markdown(data: Row) -> str:
    """Return the report."""
    rows: list[Row] = data["rows"]
    lines = [
        "# Agents on the live router", "",
        "Written by `python benchmarks/studies/live/agents.py`; all runs are in `agents.json`. "
        f"Means of {data['runs']} runs of {data['seconds']:g} s, live and simulated. Half-way the link falls to "
        f"{STEP[1]:g} of its rate.", "", TEXT,
    ]  # fmt: skip
    for rate in dict.fromkeys(row["rate_mbps"] for row in rows):
        body = []
        for row in rows:
            if row["rate_mbps"] == rate:
                cells = [f"{np.mean(values(row, name)):.3g}" for name in MEASURES]
                cells[0] += f" ± {np.std(values(row, 'score')):.1g}"
                own = [np.mean([get(run) for run in row["runs"]]) for get in OWN.values() if row["way"] == "live"]
                body.append([row["who"], row["way"], *cells, *([f"{each:.3g}" for each in own] or ["-"] * len(OWN))])
        body.sort(key=lambda cells: [each["name"] for each in data["who"]].index(cells[0]))
        (same, pairs), (same_apart, pairs_apart) = agreement(rows, rate), agreement(rows, rate, APART)
        lines += ["", f"## {rate:g} Mbit/s", "", *table(["who", "", *MEASURES, *OWN], body), ""]
        lines += [f"- {way}, best first: {', '.join(order(rows, rate, way))}" for way in WAYS]
        lines += [
            f"- {same} of {pairs} pairs stand in the same order live and simulated; of those that are more than "
            f"{APART:g} apart in the simulator, {same_apart} of {pairs_apart}."
        ]
    return "\n".join(lines) + "\n"


TEXT: Final = """\
*Score* is u E - 0.25 n_C - 0.25 n_L: use of the link u times the evenness E of the two flows' goodputs over the \
whole run (their geometric by their arithmetic mean), less the mean normalised delays; ± is the standard deviation \
of the runs. That is the reward `fair`, but for E, which that takes over the last second. Agents are told `balance`, \
the same without E, for a real queue does not know the goodput of its flows. Nobody is told that the rate falls. An \
agent that decides about packets is asked by the router and never waited for. The shield leaves those of its marks \
and drops to the native law that are more than that law's own; where a name ends in `-free` it is off. In the \
simulator each question is answered, without a shield. A student decides inside the router. *Decided* are packets by \
an agent or a model, *set* is how often one set parameters or probabilities, *expired* how often these ran out \
before the next came; *router* is the router's processor time a packet."""


def draw(data: Row) -> bytes:
    """Return a picture: full marks are live runs, rings the simulator's."""
    optional("matplotlib", "report")
    from matplotlib.figure import Figure

    names = [each["name"] for each in data["who"]]
    rates = list(dict.fromkeys(row["rate_mbps"] for row in data["rows"]))
    picture = Figure(figsize=(11.0, len(rates) * (0.7 + 0.28 * len(names))), layout="constrained")
    panels = picture.subplots(len(rates), len(DRAWN), squeeze=False, sharey=True)
    for number, rate in enumerate(rates):
        for axes, name in zip(panels[number], DRAWN, strict=True):
            for row in data["rows"]:
                if row["rate_mbps"] == rate:
                    full = row["way"] == "live"
                    x, y = values(row, name), names.index(row["who"]) + (-0.12 if full else 0.12)
                    axes.plot(x, [y] * len(x), "o", color="C0" if full else "C1", mfc=None if full else "none", ms=5)
            axes.set(title=f"{name}, {rate:g} Mbit/s", yticks=range(len(names)), yticklabels=names)
            axes.grid(alpha=0.3)
        panels[number][0].invert_yaxis()
    picture.supxlabel("full: live runs; rings: simulated", fontsize=9)
    image = io.BytesIO()
    picture.savefig(image, format="png", dpi=110)
    return image.getvalue()


def main(
    agent: tuple[str, ...] = (),
    rates: tuple[float, ...] = RATES_MBPS,
    seconds: float = 60.0,
    runs: int = 3,
    work: Path = Path("runs/live-agents"),
    quick: bool = False,
    out: Path | None = None,
) -> None:
    """Measure and write the results.

    Args:
        agent: NAME=SPEC, with `,every=10` each 10th packet, with `,every=500ms` each half a second, with `,free` at the
            end without the router's shield.
        rates: Of the link, Mbit/s, before they fall.
        seconds: Length of each run.
        runs: Live and simulated, of each decider at each rate.
        work: Folder of finished runs, which are not made again.
        quick: 8 Mbit/s, one run of four seconds; writes no results unless `out` is given.
        out: Folder of agents.json (appended), agents.md and agents.png, `results` beside this script by default.
    """
    if quick:
        rates, seconds, runs = (8.0,), min(seconds, 4.0), 1
    who = deciders(agent)
    print(f"{len(who) * len(rates) * runs} live runs of {seconds:g} s, and as many simulated")
    rows = measured(who, rates, seconds, runs, work)
    about = [
        {name: getattr(each, name) for name in ("name", "spec", "every", "interval_ms", "options", "free")}
        for each in who
    ]
    data: Row = origin() | {"seconds": seconds, "runs": runs, "who": about, "rows": rows}
    print(markdown(data))
    out = out or (None if quick else study.RESULTS)
    if out is None:
        return
    write_run(out, "agents", data, markdown(data))
    with atomic_write(out / "agents.png") as file:
        file.write(draw(data))


if __name__ == "__main__":
    command_line(main)
