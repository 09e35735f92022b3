"""Measure real packets through the Linux router, against the simulator's prediction, its limits, and with agents.

    sudo python benchmarks/studies/live/run.py          # twelve minutes; writes into results
    sudo python benchmarks/studies/live/run.py --quick  # half a minute; writes nothing without --out
    sudo python benchmarks/studies/live/run.py --only shared control

One CUBIC flow with ECN (Linux's TCP) against one ECT(1) flow (our own paced Prague-like UDP source, for tests)
at a round trip of 20 ms. There are no assertions; figures of a shared machine vary between runs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from l4s_gym import agents
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import Client
from l4s_gym.bridge.figures import Figures, read
from l4s_gym.cli.arguments import command_line
from l4s_gym.evaluation import native
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.live import programs
from l4s_gym.live.control import Controller
from l4s_gym.live.plan import inside
from l4s_gym.live.router import PORT, UNSHAPED
from l4s_gym.live.testbed import LiveTestbed
from l4s_gym.markdown import table
from l4s_gym.sim.scenario import Scenario, from_dict

RESULTS: Final = Path(__file__).resolve().parent / "results"
RATES_MBPS: Final = (8, 40, 200)
AQMS: Final = ("dualpi2_rfc9332", "dualpi2_freebsd")
INTERVALS: Final = (1, 10, 100)
SIMULATED_SEEDS: Final = (0, 1, 2, 3, 4)
LIVE_SEED: Final = 1
SMALL: Final = 100
"""Length of a small packet, bytes."""
ROWS_PPS: Final = 100_000
WAYS: Final = (
    "Python by the daemon",
    "Python by the router",
    "compiled by the daemon",
    "compiled by the router",
    "compiled by the router, spinning",
)
ASKED_MBPS: Final = 40.0
"""Rate at which the ways to ask an agent are compared; each packet is asked about."""
SECTIONS: Final = ("shared", "ceiling", "latency", "rows", "control")
Section = Literal["shared", "ceiling", "latency", "rows", "control"]


def shared_scenario(rate_mbps: float, aqm: str, seconds: float, steps: Sequence[tuple[float, float]] = ()) -> Scenario:
    """Return a scenario with one CUBIC and one Prague flow from the start on; the start is part of all figures."""
    tree = {
        "name": f"shared-{rate_mbps:g}m-20ms",
        "aqm": aqm,
        "horizon_s": seconds,
        "warmup_s": 0.0,
        "link": {"rate_mbps": float(rate_mbps), "steps": [list(step) for step in steps]},
        "sources": [
            {"kind": "cubic", "rtt_ms": 20.0, "stagger_s": 0.0},
            {"kind": "prague", "rtt_ms": 20.0, "stagger_s": 0.0},
        ],
    }
    return from_dict(tree)


def empty_scenario() -> Scenario:
    """Return a router that neither shapes nor delays, without traffic."""
    source = {"kind": "cubic", "rtt_ms": 1e-6, "stagger_s": 0.0}
    return from_dict({"name": "unshaped", "aqm": "dualpi2_rfc9332", "sources": [source]})


# -- shared: live beside simulated


def mean_mbps(scenario: Scenario) -> float:
    """Return the mean rate of the link."""
    times, factors = zip((0.0, 1.0), *scenario.link.steps, strict=True)
    lengths = np.diff([*times, scenario.horizon_s])
    return scenario.link.rate_mbps * float(np.average(factors, weights=lengths))


def live_shared(
    scenario: Scenario,
    seed: int,
    meanwhile: Callable[[LiveTestbed], None] | None = None,
    model: Path | None = None,
    values: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the figures of a live run; `meanwhile` takes as long as the run, and by default waits."""
    with LiveTestbed(scenario, seed=seed, model=model, values=values) as bed:
        start, before_s = read(bed.stats()), bed.cpu_s("router")
        bed.start_flows()
        if meanwhile is None:
            bed.wait(bed.seconds)
        else:
            meanwhile(bed)
        end, cpu_s = read(bed.stats()), bed.cpu_s("router") - before_s
        result = bed.finish()
    rates = {flow["label"]: flow for flow in result.flows}
    capacity = mean_mbps(scenario) * 1e6 / 8 * (end.seconds - start.seconds)
    classic, l4s = rates["cubic"]["goodput_mbps"], rates["prague-like"]["goodput_mbps"]
    return {
        "delay_ms": {
            name: {"mean": c.mean_ms, "p50": c.p50_ms, "p95": c.p95_ms, "p99": c.p99_ms, "max": c.max_ms}
            for name, c in zip("CL", end.classes, strict=True)
        },
        "goodput_mbps": {"C": classic, "L": l4s},
        "ratio": l4s / classic if classic else None,
        "utilisation": end.served_bytes / capacity,
        "mark_rate": {name: c.marks / max(c.packets, 1) for name, c in zip("CL", end.classes, strict=True)},
        "drop_rate": {name: c.drops / max(c.packets, 1) for name, c in zip("CL", end.classes, strict=True)},
        "marked": {name: c.marks for name, c in zip("CL", end.classes, strict=True)},
        "echoed": {"C": rates["cubic"].get("delivered_ce"), "L": rates["prague-like"].get("delivered_ce")},
        "late_us": end.late_us,
        "lost_outside": end.lost_outside,
        "decided": dict(end.decided),
        "router_us": 1e6 * cpu_s / max(sum(c.served_packets for c in end.classes), 1),
    }


def simulated_shared(scenario: Scenario, seed: int) -> dict[str, Any]:
    """Return the same figures of a simulated run."""
    s = native.simulate(scenario, seed=seed).summary
    classic, l4s = s["goodput_mbps"]
    return {
        "delay_ms": s["delay_ms"],
        "goodput_mbps": {"C": classic, "L": l4s},
        "ratio": l4s / classic if classic else None,
        "utilisation": s["utilisation"],
        "mark_rate": {name: c["mark_rate"] for name, c in s["classes"].items()},
        "drop_rate": {name: c["drop_rate"] for name, c in s["classes"].items()},
    }


def median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure over runs of one shape."""
    return {
        name: median([run[name] for run in runs])
        if isinstance(value, dict)
        else statistics.median([run[name] for run in runs if run[name] is not None] or [0])
        for name, value in runs[0].items()
    }


def shared(rates: Sequence[float], seconds: float, runs: int) -> list[dict[str, Any]]:
    """Measure each rate under each discipline, live and simulated; return medians, and each live run."""
    scenarios = [(rate, aqm, shared_scenario(rate, aqm, seconds)) for rate in rates for aqm in AQMS]
    live: list[list[dict[str, Any]]] = [[] for _ in scenarios]
    for seed in range(LIVE_SEED, LIVE_SEED + runs):  # one after another: a disturbance affects one run of each
        for (*_, scenario), found in zip(scenarios, live, strict=True):
            found.append(live_shared(scenario, seed))
    rows = []
    for (rate, aqm, scenario), found in zip(scenarios, live, strict=True):
        simulated = median([simulated_shared(scenario, seed) for seed in SIMULATED_SEEDS])
        row: dict[str, Any] = {"rate_mbps": rate, "aqm": aqm, "live": median(found), "simulated": simulated}
        row["live_runs"] = found
        rows.append(row)
        for who in ("live", "simulated"):
            d, g = row[who]["delay_ms"], row[who]["goodput_mbps"]
            print(
                f"{rate:>4} Mbit/s {aqm:<16} {who:<10} C {d['C']['mean']:7.2f} ms {g['C']:7.2f} Mbit/s, "
                f"L {d['L']['mean']:6.2f} ms {g['L']:7.2f} Mbit/s, {100 * row[who]['utilisation']:.1f} %",
                flush=True,
            )
    return rows


# -- what the router can do


@contextmanager
def unshaped() -> Iterator[LiveTestbed]:
    """Open a testbed with a router that neither shapes nor delays."""
    with LiveTestbed(empty_scenario(), values={"rate_bps": UNSHAPED}) as bed:
        yield bed


def delivered(bed: LiveTestbed) -> int:
    """Return the number of packets that the router has sent towards the receiver."""
    return int(bed.stats()["forward"]["delivered"])


def ceiling(seconds: float) -> dict[str, Any]:
    """Measure bulk TCP, and small packets, through a router that does not shape."""
    to = ("--seconds", str(seconds), "--bind", "10.77.1.1")
    with unshaped() as bed:
        where = ("--to", f"{bed.receiver}:{PORT}", *to)
        bulk = bed.traffic("tcp", *where, "--cc", "cubic", "--flows", "4", seconds=seconds)
        start, began = delivered(bed), time.monotonic()
        blast = ("--pps", "1000000", "--size", str(SMALL), "--ecn", "ect1")
        bed.traffic("blast", *where, *blast, seconds=seconds)
        pps = (delivered(bed) - start) / (time.monotonic() - began)
        lost = read(bed.stats()).lost_outside
    found = {"bulk_mbps": sum(flow["goodput_mbps"] for flow in bulk), "small_pps": pps, "lost_outside": lost}
    print(f"unshaped: {found['bulk_mbps']:.0f} Mbit/s of TCP, {pps:.0f} packets of {SMALL} B a second")
    return found


def latency(seconds: float) -> dict[str, Any]:
    """Measure round trips of packets through the router, and of questions and answers between it and an agent."""
    return round_trips(seconds) | {"asks": [looped(ASKED_MBPS, 1, way, seconds) for way in WAYS]}


def round_trips(seconds: float) -> dict[str, Any]:
    """Measure round trips of small packets, also through a plain pair of devices between the same ends."""
    with unshaped() as bed:
        n = bed.plan.names
        for command in (
            ["ip", "link", "add", "plain", "netns", n.senders, "type", "veth", "peer", "plain", "netns", n.receivers],
            ["ip", "-n", n.senders, "addr", "add", "10.78.0.1/30", "dev", "plain"],
            ["ip", "-n", n.receivers, "addr", "add", "10.78.0.2/30", "dev", "plain"],
            ["ip", "-n", n.senders, "link", "set", "plain", "up"],
            ["ip", "-n", n.receivers, "link", "set", "plain", "up"],
        ):
            subprocess.run(command, check=True)
        traffic = bed.plan.programs["l4s-traffic"]
        listen = inside(n.receivers, traffic, "sink", "--bind", f"10.78.0.2:{PORT}")
        sink = subprocess.Popen(listen, stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.3)
            found = {}
            for name, address in (("router", bed.receiver), ("plain", "10.78.0.2")):
                arguments = ("ping", "--to", f"{address}:{PORT}", "--seconds", str(seconds))
                found[name] = bed.traffic(*arguments, seconds=seconds)[-1]
        finally:
            sink.terminate()
            sink.wait()
    added = {q: found["router"][f"rtt_{q}_us"] - found["plain"][f"rtt_{q}_us"] for q in ("p50", "p99")}
    print(f"added to a round trip: p50 {added['p50']:.0f} us, p99 {added['p99']:.0f} us")
    return found | {"added_us": added}


class Reader(threading.Thread):
    """Reads rows, and counts them and the gaps in their numbers."""

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self.socket, self.over = socket, threading.Event()
        self.ready = threading.Event()
        self.rows = self.lost = self.gaps = 0

    def run(self) -> None:
        """Read until `over`."""
        with Client(self.socket) as client:
            client.subscribe(True)
            client.status()  # the subscription is in force
            self.ready.set()
            while not self.over.is_set():
                self._count(client)
            while self._count(client):
                pass

    def _count(self, client: Client) -> int:
        rows = wire.select(client.entries(0.2), wire.ROW)
        self.rows += len(rows)
        self.lost = client.lost
        return len(rows)


def row_loss(seconds: float, pps: int = ROWS_PPS) -> dict[str, Any]:
    """Return the rows that a reader of the daemon misses while small packets arrive at a high rate."""
    with unshaped() as bed:
        reader = Reader(bed.socket)
        reader.start()
        try:
            reader.ready.wait(10.0)
            before = read(bed.stats())
            blast = ("--pps", str(pps), "--size", str(SMALL), "--ecn", "ect1", "--seconds", str(seconds))
            sent = bed.traffic("blast", "--to", f"{bed.receiver}:{PORT}", *blast, seconds=seconds)
            bed.wait(0.5)
        finally:
            reader.over.set()
            reader.join()
        after = read(bed.stats())
    offered = sum(c.packets for c in after.classes) - sum(c.packets for c in before.classes)
    found = {
        "pps": offered / seconds,
        "offered": offered,
        "rows": reader.rows,
        "lost_by_router": after.rows_lost,
        "lost_by_daemon": reader.lost - after.rows_lost,
        "sent": sum(flow["sent"] for flow in sent),
    }
    found["missing"] = offered - reader.rows
    print(
        f"{found['pps']:.0f} packets/s for {seconds:g} s: {reader.rows} of {offered} rows, {reader.lost} told as lost"
    )
    return found


# -- an agent in the loop


def decide(bed: LiveTestbed, way: str, interval: int, seconds: float) -> dict[str, Any]:
    """Run the threshold agent, in Python or compiled, asked by the daemon or by the router itself."""
    if way.startswith("Python"):
        client = Client(bed.socket, direct=way == WAYS[1])
        return Controller(client, agents.make("threshold"), decision_interval=interval).run(seconds).as_dict()
    program = str(programs.find(names=("l4s-agent",))["l4s-agent"])
    command = [
        program,
        "--socket",
        str(bed.socket),
        "--decision-interval",
        str(interval),
        "--seconds",
        str(round(seconds)),
    ]
    options = {WAYS[2]: ["--daemon"], WAYS[3]: [], WAYS[4]: ["--spin"]}[way]
    done = subprocess.run([*command, *options], check=True, capture_output=True)
    return dict(json.loads(done.stdout))


def looped(rate: float, interval: int, way: str, seconds: float) -> dict[str, Any]:
    """Return who decided, and how fast, while a CUBIC and a Prague flow share the link."""
    with LiveTestbed(shared_scenario(rate, AQMS[0], seconds + 10.0), seed=LIVE_SEED) as bed:
        bed.start_flows()
        bed.wait(1.0)
        before = read(bed.stats())
        done = decide(bed, way, interval, seconds)
        row: dict[str, Any] = {"rate_mbps": rate, "interval": interval, "way": way}
        row |= loop_figures(before, read(bed.stats()), rate)
    shares = ", ".join(f"{who} {100 * part:.1f} %" for who, part in row["decided"].items())
    print(
        f"{rate:>4} Mbit/s, every {interval:>3}, {way}: latency p50 {row['latency_us']['p50']:.0f} us, "
        f"p99 {row['latency_us']['p99']:.0f} us; {shares}; answered in time {100 * row['in_time']:.1f} %",
        flush=True,
    )
    return row | done


def control(rates: Sequence[float], seconds: float) -> list[dict[str, Any]]:
    """Measure the threshold agent in Python, asked about every packet, every 10th and every 100th."""
    return [looped(rate, interval, WAYS[1], seconds) for rate in rates for interval in INTERVALS]


def loop_figures(before: Figures, after: Figures, rate_mbps: float) -> dict[str, Any]:
    """Return who decided between two readings, and how fast."""
    decided = {who: after.decided[who] - before.decided[who] for who in after.decided}
    total = max(sum(decided.values()), 1)
    refused = {why: after.refused[why] - before.refused[why] for why in after.refused}
    return {
        "decided": {who: count / total for who, count in decided.items()},
        "latency_us": after.latency_us,
        "refused": refused,
        "in_time": (decided["agent"] + refused["shielded"]) / total,
        "trips": after.trips - before.trips,
        "utilisation": (after.served_bytes - before.served_bytes) * 8e-6 / rate_mbps / (after.seconds - before.seconds),
        "packets": total,
    }


# -- in words


def shared_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = (
        "Mbit/s", "AQM", "", "C mean ms", "C p50", "C p99", "L mean ms", "L p50", "L p99", "C Mbit/s", "L Mbit/s",
        "L/C", "used %", "C marked %", "L marked %", "C dropped %", "L dropped %",
    )  # fmt: skip
    lines = []
    for row in rows:
        for who in ("live", "simulated"):
            f = row[who]
            d, g = f["delay_ms"], f["goodput_mbps"]
            delays = [f"{d[name][q]:.2f}" for name in "CL" for q in ("mean", "p50", "p99")]
            rates = [f"{g['C']:.2f}", f"{g['L']:.2f}", f"{f['ratio'] or 0.0:.2f}", f"{100 * f['utilisation']:.1f}"]
            hits = [f"{100 * f[what][name]:.2f}" for what in ("mark_rate", "drop_rate") for name in "CL"]
            lines.append([f"{row['rate_mbps']:g}", row["aqm"].removeprefix("dualpi2_"), who, *delays, *rates, *hits])
    return table(head, lines)


def echo_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        live = row["live"]
        marks = [f"{live[what][name]:.0f}" for name in "CL" for what in ("marked", "echoed")]
        late = [f"{live['late_us'][q]:.0f}" for q in ("p50", "p99", "max")]
        lines.append([f"{row['rate_mbps']:g}", row["aqm"].removeprefix("dualpi2_"), *marks, *late])
    head = ("Mbit/s", "AQM", "C marked", "C echoed", "L marked", "L echoed", "late p50 us", "late p99", "late max")
    return table(head, lines)


def control_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        latency_us = [f"{row['latency_us'][q]:.0f}" for q in ("p50", "p99")]
        decided = [f"{100 * row['decided'][who]:.1f}" for who in ("agent", "native", "fallback")]
        refused = ", ".join(f"{why} {count}" for why, count in row["refused"].items() if count) or "-"
        asks = [str(row["asks"]), str(row["answered"])]
        lines.append([f"{row['rate_mbps']:g}", str(row["interval"]), *latency_us, *decided, *asks, refused])
    head = ("Mbit/s", "asked every", "p50 us", "p99 us", "agent %", "native %", "fallback %", "asks", "answered",
            "refused")  # fmt: skip
    return table(head, lines)


def asks_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        latency_us = [f"{row['latency_us'][q]:.0f}" for q in ("p50", "p99")]
        lines.append([row["way"], *latency_us, f"{100 * row['in_time']:.1f}", f"{100 * row['decided']['agent']:.1f}"])
    return table(("who, and asked by whom", "p50 us", "p99 us", "answered in time %", "agent decided %"), lines)


def markdown(data: dict[str, Any]) -> str:
    """Return the report."""
    host = data["host"]
    lines = [
        "# Live",
        "",
        "Written by `python benchmarks/studies/live/run.py`; all figures are in `live.json`. "
        f"Machine: {host['cores']} cores, {host['cpu']}, shared by router, daemon, senders, receivers and agent. "
        f"Runs of {data['seconds']:g} s, {len(data['seeds']['live'])} of each pair of rate and discipline.",
    ]
    if rows := data.get("shared"):
        lines += ["", "## A CUBIC flow with ECN and an ECT(1) flow share the link, RTT 20 ms", "", SHARED_TEXT, ""]
        lines += [*shared_table(rows), "", ECHO_TEXT, "", *echo_table(rows)]
    if found := data.get("ceiling"):
        lines += ["", "## What the router can do", ""]
        lines += [
            f"- Ceiling without shaping: {found['bulk_mbps']:.0f} Mbit/s of TCP (4 flows), "
            f"{found['small_pps']:.0f} packets of {SMALL} bytes a second."
        ]
    if found := data.get("latency"):
        added, plain = found["added_us"], found["plain"]
        lines += [
            f"- Added to a round trip (two crossings), without shaping and delay: p50 {added['p50']:.0f} us, "
            f"p99 {added['p99']:.0f} us, over a plain pair of devices (p50 {plain['rtt_p50_us']:.0f} us, "
            f"p99 {plain['rtt_p99_us']:.0f} us)."
        ]
        if rows := found.get("asks"):
            lines += ["", ASKS_TEXT.format(rate=ASKED_MBPS), "", *asks_table(rows), ""]
    if found := data.get("rows"):
        lines += [
            f"- Rows at {found['pps']:.0f} packets/s: a reader at the daemon got {found['rows']} of "
            f"{found['offered']} that came to the router ({found['sent']} were sent); missing {found['missing']}."
        ]
    if rows := data.get("control"):
        lines += ["", "## An agent in the loop", "", CONTROL_TEXT, "", *control_table(rows)]
    return "\n".join(lines) + "\n"


SHARED_TEXT: Final = """\
Both rows of a pair are the same scenario: *live* is real packets (Linux's CUBIC with ECN; in place of Prague a paced \
UDP source of our own with Prague's laws, which is test traffic and no TCP), *simulated* the simulator's CUBIC and \
Prague; both are medians, of the runs and seeds that `live.json` names. The start of the flows is part of all figures. \
Delays are sojourn times in the queue; the live quantiles are right to 1/8, the simulated to 3 %. Marks and drops are \
shares of the packets offered.

What to expect to differ: router and hosts share the processors of one machine. While the router is kept waiting, \
packets gather before it and then come in a burst, which is marked (L marked, L p99); at 200 Mbit/s a pause of 5 ms is \
a burst of 80 packets, and costs the flows rate. How long it is kept waiting stands in the next table. \
`freebsd` is the testbed's kernel with its quirks: without a step and a working coupling its L queue is as long as \
C's, and its round robin gives L two thirds."""

ECHO_TEXT: Final = """\
Marks that the router set beside those that the senders heard of. The ECT(1) source counts CE packets, so both figures \
are the same but for what is under way at the end. TCP's is `tcpi_delivered_ce`, packets acknowledged with ECE: by \
RFC 3168 the receiver repeats ECE until the sender's CWR arrives, so one mark is heard for a round trip's packets. \
*Late* is how far behind their schedule packets left the router."""

ASKS_TEXT: Final = """\
The threshold agent asked about every packet at {rate:g} Mbit/s, in Python and compiled (`l4s-agent`), through the \
daemon and by the router itself. *Answered in time* are packets for which an answer was there; of them the shield \
leaves those marks to the native law that are more than its own (`shield_hits`):"""

CONTROL_TEXT: Final = """\
The threshold agent in Python asked about each n-th packet, by the router itself. Latency is from the ask to the \
answer as the packet path saw it. An answer is used for one packet, the queue's next that has none yet: so at most \
every n-th packet is the agent's, all others are the native law's. *Fallback* are packets that were asked about when \
the ask before was not answered, and no earlier answer was left. The agent passes over asks that are older than the \
newest four of their queue; *answered* counts the others."""


def main(
    seconds: float = 30.0,
    runs: int = 3,
    only: tuple[Section, ...] = SECTIONS,
    quick: bool = False,
    out: Path | None = None,
) -> None:
    """Measure and write the results.

    Args:
        seconds: Length of each run.
        runs: Live runs beside the simulator, for the median.
        only: Sections.
        quick: One rate, short runs; writes nothing unless `out` is given.
        out: Folder of live.json (appended) and live.md, `results` beside this script by default.
    """
    out = out or (None if quick else RESULTS)
    seconds, runs = (min(seconds, 3.0), 1) if quick else (seconds, runs)
    rates = RATES_MBPS[:1] if quick else RATES_MBPS
    short = min(seconds, 10.0)
    data: dict[str, Any] = origin() | {
        "seconds": seconds,
        "seeds": {"live": list(range(LIVE_SEED, LIVE_SEED + runs)), "simulated": SIMULATED_SEEDS},
    }
    measures: dict[Section, Callable[[], Any]] = {
        "shared": lambda: shared(rates, seconds, runs),
        "ceiling": lambda: ceiling(short),
        "latency": lambda: latency(short),
        "rows": lambda: row_loss(short, ROWS_PPS // 10 if quick else ROWS_PPS),
        "control": lambda: control(rates[:2], short),
    }
    for name in only:
        data[name] = measures[name]()
    if out is None:
        return
    write_run(out, "live", data, markdown(data))


if __name__ == "__main__":
    command_line(main)
