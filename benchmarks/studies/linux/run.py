"""Compare the simulator with real Linux: `dualpi2_linux`, CUBIC and Prague beside measured figures.

    python benchmarks/studies/linux/run.py  # about half a minute on one core
    python benchmarks/studies/linux/run.py --seeds 1 --seconds 10 --out /tmp/here

Writes linux.json and linux.md into `results` beside this script. The real figures come from the given sources; the
simulated ones are measured by the run. The 30 overload cases come from a table that is not part of this repository
(`--overload-table FILE`); without it the rest is compared.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation.origin import origin
from l4s_gym.markdown import table
from l4s_gym.sim import layout, measure, scenario
from l4s_gym.sim.batch import Batch

HERE: Final = Path(__file__).resolve().parent
OVERLOAD: Final = Path("../shared/data/linux_dualpi2_overload/overload_100m_20ms.csv")
QDISC: Final = "sch_dualpi2 of Linux 7.3 in User Mode Linux with virtual time; htb, RTT 20 ms, 25 s after 5 s"
TEAM: Final = "the L4S team's overload experiments (repository L4STeam/l4steam.github.io, 43b12da)"
REFERENCE: Final = "prague_cc of the L4S team (UDP, 1400 B) under independent marks"
TCP_PRAGUE: Final = "the L4S team's Linux, one TCP Prague flow, 20 Mbit/s"
LINK_LAYER: Final = 1500 / 1514
"""htb counts 14 bytes of Ethernet header for each packet; the simulator's link counts IP lengths."""
UDP_PRAGUE: Final = {"kind": "prague", "packet_length": 1428}
NEAR: Final = 0.10
WITHIN: Final = 0.25
LARGE_MBPS: Final = 5.0
"""Goodputs above this are judged one by one."""

SEED: Final = "one run of 25 s in each: single simulated runs differ by as much"
ALONE: Final = (
    "one flow alone hangs on the step at 1 ms: how long its queue stands there depends on how the sender's packets are "
    "bunched (segmentation offload, the sender's qdisc), which is not modelled"
)
SMALL: Final = (
    "a flow of a few packets a round trip: real Linux finds a lost retransmission by time (RACK, tail loss probe), the "
    "simulated sender by its timeout"
)
BUNCHES: Final = (
    "real senders bunch their packets (iperf3 sends UDP each ms, TCP in segments of several packets), simulated ones "
    "space them evenly"
)
OFTEN: Final = "p' near 1: the queue that is overloaded has no other choice than to drop, and C waits for what L leaves"


@dataclass(frozen=True)
class Row:
    """A comparison: the real figure, the simulated one (mean of the seeds), the allowed difference, and the verdict."""

    section: str
    case: str
    figure: str
    real: float
    simulated: float
    allowed: float | None
    verdict: str
    cause: str
    source: str

    @property
    def ratio(self) -> float:
        """Simulated over real."""
        return self.simulated / self.real if self.real else float("nan")


def judge(
    section: str, case: str, figure: str, real: float, simulated: float, source: str, allowed: float | None,
    cause: str = "",
) -> Row:  # fmt: skip
    """Return a row with its verdict; a miss has its cause."""
    verdict = "shown"
    if allowed is not None:
        verdict = "pass" if abs(simulated / real - 1.0) <= allowed else "miss"
    far = real > 0.0 and not 0.5 <= simulated / real <= 2.0
    note = (cause or "unexplained") if verdict == "miss" or far else ""
    return Row(section, case, figure, real, simulated, allowed, verdict, note, source)


@dataclass(frozen=True)
class Result:
    """Results of the runs of one case, means over the seeds.

    Attributes:
        goodput_mbps: Payload of each flow.
        rate_mbps: IP packets of each flow.
        delay_ms: Delay of classes C and L: `mean`, `p50`, `p99`.
        marks: Share of the packets of C and L that were marked.
    """

    goodput_mbps: list[float]
    rate_mbps: list[float]
    delay_ms: dict[str, dict[str, float]]
    marks: dict[str, float]


def run(
    rate_mbps: float, sources: list[dict[str, Any]], seeds: int, warmup_s: float, seconds: float, aqm: str,
    *, marks: float | None = None, **options: Any,
) -> Result:  # fmt: skip
    """Simulate a case with several seeds; with `marks`, random marks of this probability replace the discipline."""
    tree = {
        "name": "linux", "sources": sources, "horizon_s": warmup_s + seconds,
        "options": {aqm: options} if options else {},
        "link": {"rate_mbps": rate_mbps},
    }  # fmt: skip
    decider = layout.NATIVE if marks is None else layout.PROBABILITY
    batch = Batch(scenario.from_dict(tree), seeds, aqm=aqm, decider=decider)
    for k in range(seeds):
        batch.reset(k, np.random.default_rng(k))
        batch.env["p_l"][k] = batch.env["p_c"][k] = marks or 0.0
        batch.stop_at(k, round(warmup_s * 1e9))
    batch.advance()
    for k in range(seeds):
        batch.reset_counters(k)
    batch.advance()
    summaries = [measure.summary(batch, k) for k in range(seeds)]
    goodput = np.mean([s["goodput_mbps"] for s in summaries], axis=0)
    headers = batch.flow["received"].mean(0) * 52 * 8e-6 / seconds
    delays = {
        name: {key: float(np.mean([s["delay_ms"][name][key] for s in summaries])) for key in ("mean", "p50", "p99")}
        for name in measure.CLASSES
    }
    marked = {name: float(np.mean([s["classes"][name]["mark_rate"] for s in summaries])) for name in measure.CLASSES}
    return Result(goodput.tolist(), (goodput + headers).tolist(), delays, marked)


# -- sections


MIXED: Final = {  # Mbit/s: C mean, C p99, C marks, L mean, L p99, L marks, C Mbit/s, L Mbit/s
    4: (16.8, 36.8, 0.0117, 1.69, 5.3, 0.74, 3.52, 0.43),
    8: (15.6, 29.5, 0.0041, 0.93, 2.84, 0.46, 6.42, 1.50),
    40: (14.4, 22.0, 0.0010, 0.21, 0.58, 0.050, 13.1, 26.6),
}
ALONE_MS: Final = (("cubic", 8, 15.3), ("cubic", 40, 13.0), ("prague", 8, 0.57), ("prague", 40, 0.41))


def qdisc(seeds: int, seconds: float) -> Iterator[Row]:
    """Compare CUBIC and UDP Prague through the real qdisc, together and alone."""
    cubic = {"kind": "cubic", "rtt_ms": 20.0}
    for rate, (c_mean, c_p99, c_marks, l_mean, l_p99, l_marks, c_rate, l_rate) in MIXED.items():
        result = run(
            rate * LINK_LAYER, [cubic, {**UDP_PRAGUE, "rtt_ms": 20.0}], seeds, 5.0, 25.0 * seconds, "dualpi2_linux"
        )
        c, l4s = result.delay_ms["C"], result.delay_ms["L"]
        for figure, real, value, allowed in (
            ("C delay, mean, ms", c_mean, c["mean"], NEAR),
            ("C delay, p99, ms", c_p99, c["p99"], WITHIN),
            ("C marks", c_marks, result.marks["C"], None),
            ("L delay, mean, ms", l_mean, l4s["mean"], NEAR),
            ("L delay, p99, ms", l_p99, l4s["p99"], WITHIN),
            ("L marks", l_marks, result.marks["L"], WITHIN),
            ("C rate, Mbit/s", c_rate, result.rate_mbps[0], WITHIN),
            ("L rate, Mbit/s", l_rate, result.rate_mbps[1], WITHIN),
        ):
            yield judge("CUBIC + UDP Prague", f"{rate} Mbit/s", figure, real, value, QDISC, allowed, SEED)
    for kind, rate, real in ALONE_MS:
        source = cubic if kind == "cubic" else {**UDP_PRAGUE, "rtt_ms": 20.0}
        result = run(rate * LINK_LAYER, [source], seeds, 5.0, 25.0 * seconds, "dualpi2_linux")
        name = "C" if kind == "cubic" else "L"
        value = result.delay_ms[name]["mean"]
        yield judge("alone", f"{kind}, {rate} Mbit/s", f"{name} delay, mean, ms", real, value, QDISC, NEAR, ALONE)


def tcp_prague(seeds: int, seconds: float) -> Iterator[Row]:
    """Compare one TCP Prague flow at several RTTs."""
    for rtt_ms, real in ((5, 0.83), (20, 0.82), (40, 0.41), (80, 0.25)):
        source = {"kind": "prague", "variant": "tcp", "rtt_ms": float(rtt_ms)}
        result = run(20 * LINK_LAYER, [source], seeds, 10.0, 60.0 * seconds, "dualpi2_linux")
        value = result.delay_ms["L"]["mean"]
        yield judge("TCP Prague", f"RTT {rtt_ms} ms", "L delay, mean, ms", real, value, TCP_PRAGUE, NEAR, ALONE)


REFERENCE_MBPS: Final = {0.01: (121.0, 122.0), 0.1: (11.0, 11.0), 0.3: (2.78, 2.84), 0.7: (0.50, 0.49)}


def reference(seeds: int, seconds: float) -> Iterator[Row]:
    """Compare UDP Prague's rate at a constant probability of marks."""
    for p, reals in REFERENCE_MBPS.items():
        for rtt_ms, real in zip((5, 20), reals, strict=True):
            source = {"kind": "prague", "packet_length": 1400, "rtt_ms": float(rtt_ms)}
            result = run(1000.0, [source], seeds, 20.0, 100.0 * seconds, "fifo", marks=p)
            case = f"p = {p:g}, RTT {rtt_ms} ms"
            yield judge("reference Prague", case, "rate, Mbit/s", real, result.rate_mbps[0], REFERENCE, 0.05)


def _case(row: dict[str, str]) -> tuple[str, list[dict[str, Any]], int]:
    """Return an overload case: its name, its sources (Prague, CUBIC, then UDP), and the share of C."""
    not_ect, ect1 = float(row["udp_not_ect_mbps"]), float(row["udp_ect1_mbps"])
    protection = int(row["classic_protection_percent"])
    path = {"rtt_ms": 20.0}
    sources: list[dict[str, Any]] = [
        {**path, "kind": "prague", "variant": "tcp"}, {**path, "kind": "cubic", "ecn": "not-ect"}
    ]  # fmt: skip
    for ecn, mbps in (("not-ect", not_ect), ("ect1", ect1)):
        if mbps:  # the nominal rate assumes 1200 bytes of payload
            udp = {**path, "kind": "cbr", "ecn": ecn, "rate_mbps": mbps * 1228 / 1200, "packet_length": 1228}
            sources.append(udp)
    return f"C {protection} %, UDP {not_ect:g} Not-ECT, {ect1:g} ECT(1)", sources, protection


def overload(table: list[dict[str, str]], seeds: int, seconds: float) -> Iterator[Row]:
    """Compare TCP Prague and CUBIC beside unresponsive UDP at 100 Mbit/s."""
    ratios = []
    for row in table:
        case, sources, share = _case(row)
        result = run(
            100 * LINK_LAYER, sources, seeds, 10.0, 30.0 * seconds, "dualpi2_linux", classic_protection=share
        )  # fmt: skip
        reals = [float(row[f"{name}_goodput_mbps"]) for name in ("prague", "cubic")]
        for name, real, value in zip(("Prague", "CUBIC"), reals, result.goodput_mbps[:2], strict=True):
            if real > 0.0:
                allowed = WITHIN if real > LARGE_MBPS else None
                yield judge("overload", case, f"{name} goodput, Mbit/s", real, value, TEAM, allowed, cause=SMALL)
        if min(reals) > LARGE_MBPS:
            ratios.append(result.goodput_mbps[0] / result.goodput_mbps[1] * reals[1] / reals[0])
        # Delays of L have two decimals, and most are below 0.2 ms: they get no verdict.
        for name, kinds, allowed, cause in (
            ("C", ("cubic", "udp_not_ect"), WITHIN, OFTEN), ("L", ("prague", "udp_ect1"), None, BUNCHES)
        ):  # fmt: skip
            measured = [float(row[f"{kind}_delay_mean_ms"]) for kind in kinds if row[f"{kind}_delay_mean_ms"]]
            if measured:
                real, value = statistics.fmean(measured), result.delay_ms[name]["mean"]
                yield judge("overload", case, f"{name} delay, mean, ms", real, value, TEAM, allowed, cause=cause)
    if ratios:
        value = statistics.median(ratios)
        yield judge("overload", "both above 5 Mbit/s", "Prague/CUBIC of the real ratio, median", 1.0, value, TEAM, 0.15)


# -- report


def verdicts(rows: list[Row]) -> list[str]:
    """Return the share of flows above 5 Mbit/s within 25 %, and the figures off by more than a factor of two."""
    flows = [r for r in rows if r.section == "overload" and "goodput" in r.figure and r.real > LARGE_MBPS]
    delays = [r for r in rows if r.section == "overload" and r.figure.startswith("C delay")]
    lines = []
    for name, these in (("flows above 5 Mbit/s", flows), ("mean delays of C", delays)):
        if these:
            near = sum(abs(r.ratio - 1.0) <= WITHIN for r in these)
            lines.append(f"overload: {near} of {len(these)} {name} within 25 %")
    beyond = [r for r in rows if r.real > 0.0 and not 0.5 <= r.ratio <= 2.0]
    lines += [
        f"beyond a factor of two: {r.section}, {r.case}, {r.figure}: {r.ratio:.2f} of the real one" for r in beyond
    ]
    judged = [r for r in rows if r.verdict != "shown"]
    lines.append(f"{sum(r.verdict == 'pass' for r in judged)} of {len(judged)} judged figures pass")
    return lines


def _cells(r: Row) -> list[str]:
    allowed = f"{100 * r.allowed:.0f} %" if r.allowed is not None else ""
    return [r.case, r.figure, f"{r.real:.4g}", f"{r.simulated:.4g}", f"{r.ratio:.2f}", allowed, r.verdict, r.cause]


def markdown(rows: list[Row]) -> str:
    """Return the report."""
    lines = ["# Real Linux beside the simulator", "", "Written by `python benchmarks/studies/linux/run.py`.", ""]
    lines += [f"- {line}" for line in verdicts(rows)]
    for section in dict.fromkeys(row.section for row in rows):
        of = [row for row in rows if row.section == section]
        lines += ["", f"## {section}", "", f"Source: {of[0].source}.", ""]
        head = ("case", "figure", "real", "simulated", "ratio", "allowed", "verdict", "why it is off")
        lines += table(head, map(_cells, of))
    return "\n".join(lines) + "\n"


def main(seeds: int = 4, seconds: float = 1.0, overload_table: Path = OVERLOAD, out: Path = HERE / "results") -> None:
    """Compare the simulator with measurements of real Linux.

    Args:
        seeds: Runs of each case.
        seconds: Factor of the duration of each case.
        overload_table: The overload cases as csv.
        out: Folder of the results.
    """
    began = time.perf_counter()
    table: list[dict[str, str]] = []
    if overload_table.is_file():
        with overload_table.open(newline="") as lines:
            table = list(csv.DictReader(lines))
    else:
        print(f"{overload_table} is not here (--overload-table FILE): the overload cases are not compared")
    sections: list[Callable[[int, float], Iterator[Row]]] = [
        qdisc, tcp_prague, reference, lambda n, s: overload(table, n, s)
    ]  # fmt: skip
    rows = []
    for section in sections:
        for row in section(seeds, seconds):
            rows.append(row)
            text = (
                f"{row.section:<20}{row.case:<38}{row.figure:<28}{row.real:>8.3g}{row.simulated:>9.3g}{row.ratio:>7.2f}"
            )
            print(f"{text}  {row.verdict}", flush=True)
    for line in verdicts(rows):
        print(line)
    report = {**origin(), "seeds": list(range(seeds)), "seconds": seconds, "rows": [asdict(row) for row in rows]}
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "linux.json") as target:
        target.write((json.dumps(report, indent=1) + "\n").encode())
    with atomic_write(out / "linux.md") as target:
        target.write(markdown(rows).encode())
    print(f"{time.perf_counter() - began:.0f} s; {out / 'linux.md'}")


if __name__ == "__main__":
    command_line(main)
