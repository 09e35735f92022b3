"""Is the simulated testbed like the real one? `l4s-llm-testbed-vm` beside the authors' log, goodput and delays.

    python benchmarks/sim_to_real.py                        # 10 runs of 60 s, as the authors'; about a minute
    python benchmarks/sim_to_real.py --seeds 2 --seconds 20 --out /tmp/here

Writes sim_to_real.json, sim_to_real.md and pictures into `results` beside this script. What is real here are data
with their source; everything simulated is measured by the run. The shared extract of consecutive kernel rows (see
`l4s_gym.evaluation.demo.find_pools`) is compared feature by feature where it is present.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tyro
from gymnasium.utils import seeding
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import ks_2samp, wasserstein_distance

from l4s_gym.data.files import atomic_write
from l4s_gym.data.pools import load_rows
from l4s_gym.evaluation.demo import POOL_FILES, find_pools
from l4s_gym.evaluation.origin import origin
from l4s_gym.schema import DROP, ENQUEUE, MARK, MAX_PROB
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario, load

SCENARIO: Final = "l4s-llm-testbed-vm"
TICK_US: Final = 10_000
SAMPLE_NS: Final = 100_000_000
LOG_ROWS: Final = 1 << 17
LOG: Final = "notebook output over the log of 10 runs of 60 s, 543,423 rows (repository LLM_Gen_Exp_Pool)"
SECOND_LOG: Final = "the same for the 10 Mbit/s, 20 ms log, 536,448 rows"
IPERF: Final = "iperf3 receivers, mean of 10 runs (repository FreeBSD-L4S-Experiments)"
RESENT: Final = "iperf3's retransmits in runs 1 (61), 2 (40) and 6 (95) (repository FreeBSD-L4S-Experiments)"
SIFTR: Final = "siftr's smoothed RTT, weighted by time (repository FreeBSD-L4S-Experiments)"
CONTROLS: Final = ("cubic", "newreno", "dctcp")
FEATURES: Final = (
    "current_queue_delay", "drop_probability", "burst_allowance", "accumulated_probability", "length_in_bytes",
    "packet_length", "queue_type",
)  # fmt: skip

Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Run:
    """One run: its log (T,), and by congestion control goodput in Mbit/s, resent packets, samples of the RTT in ms."""

    log: Records
    goodput: dict[str, float]
    resent: dict[str, int]
    rtt_ms: dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Target:
    """A figure of the testbed: how it is taken from the runs, its value, how far off it may be, and why it is."""

    figure: str
    real: float
    measure: Callable[[Sequence[Run]], float]
    source: str
    off: float | None = None
    relative: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """A comparison, as it is written: the simulated figure over all runs, and its range over single ones."""

    section: str
    figure: str
    real: float
    simulated: float
    low: float
    high: float
    allowed: str
    verdict: str
    reason: str
    source: str


def simulate(scenario: Scenario, seed: int) -> Run:
    """Run a scenario, sampling the smoothed RTTs ten times a second."""
    batch = Batch(scenario, log_rows=LOG_ROWS)
    batch.reset(0, seeding.np_random(seed)[0])
    flow, parts, samples = batch.flow[0], [], []
    batch.stop_at(0, SAMPLE_NS)
    while (status := batch.advance_one()) not in (layout.TRUNCATED, layout.TERMINATED):
        if status == layout.LOG_FULL:
            parts.append(batch.drain_log(0))
        else:
            samples.append(flow["srtt_ns"].copy())
            batch.stop_at(0, int(batch.env["now_ns"][0]) + SAMPLE_NS)
    parts.append(batch.drain_log(0, everything=True))
    srtt_ms = np.array(samples) * 1e-6
    of = {name: flow["cc"] == layout.CCS.index(name) for name in CONTROLS}
    goodput = flow["goodput_bytes"] * 8e-6 / scenario.horizon_s
    return Run(
        np.concatenate(parts),
        {name: float(goodput[which].sum()) for name, which in of.items() if which.any()},
        {name: int(flow["resent"][which].sum()) for name, which in of.items()},
        {name: srtt_ms[:, which][srtt_ms[:, which] > 0.0] for name, which in of.items() if which.any()},
    )


# -- figures


def _column(runs: Sequence[Run], name: str) -> npt.NDArray[np.float64]:
    return np.concatenate([run.log[name] for run in runs]).astype(np.float64)


def share(name: str, value: float) -> Callable[[Sequence[Run]], float]:
    """Per cent of the rows whose field has this value."""
    return lambda runs: 100.0 * float(np.mean(_column(runs, name) == value))


def statistic(name: str, what: Callable[[npt.NDArray[np.float64]], Any], scale: float = 1.0) -> Any:
    """A statistic of a field over all rows."""
    return lambda runs: float(what(_column(runs, name))) * scale


def goodput(name: str) -> Callable[[Sequence[Run]], float]:
    """Mean goodput of a congestion control, Mbit/s."""
    return lambda runs: float(np.mean([run.goodput[name] for run in runs]))


def resent(name: str) -> Callable[[Sequence[Run]], float]:
    """Packets that a congestion control sends again in a run."""
    return lambda runs: float(np.mean([run.resent[name] for run in runs]))


def rtt(name: str, q: float) -> Callable[[Sequence[Run]], float]:
    """Quantile of the smoothed RTT, ms."""
    return lambda runs: float(np.percentile(np.concatenate([run.rtt_ms[name] for run in runs]), q))


def mean_rtt(name: str) -> Callable[[Sequence[Run]], float]:
    """Mean of the smoothed RTT, ms."""
    return lambda runs: float(np.mean(np.concatenate([run.rtt_ms[name] for run in runs])))


def rows_of_ten_minutes(runs: Sequence[Run], *, seconds: float) -> float:
    """Rows in 10 runs of 60 s."""
    return float(np.mean([len(run.log) for run in runs]) * 600.0 / seconds)


EDGE: Final = (
    "the share of zeros is nearly one half, so that the median lies at the edge between zero and a queue that has "
    "built up: some points fewer zeros move it by tens of ms"
)
TAIL: Final = (
    "the log's long queues are longer (largest delay 910 ms, sd 118 ms). The simulated pauses are equally long and as "
    "rare as the log's number of rows allows; the 6000 public rows show more of them, and one of 157 ms"
)
START: Final = (
    "The real rows are those of a router that is slower than its link from the first second on: some 100 rows pile up, "
    "and then the queue drains at once. The simulated one does the same, less often."
)
COST: Final = (
    "A packet costs three rows (its two crossings, and two of half an ACK). Near 0.9 ms the processor that has also to "
    "pause does about what the link does, and the router goes to and fro between two states: a queue that stands, and "
    "one that drains at each service. The log shows both. So the figures depend on this number, and more so on the "
    "pauses (last column: none): the real rows say 0.87 to 0.93 ms."
)
FLOWS: Final = (
    "iperf3's files of these runs say one flow each. Two flows of CUBIC and NewReno (`-P 2`) are those of an earlier "
    "collection in the same repository, whose goodputs and RTTs (365 to 514 ms) are others."
)
PAUSES: Final = (
    "Pauses: standstills that last at least 30 ms longer than their rows at the scenario's cost, in the time that the "
    "rebuilt clock covers. One that meets an empty pipe is not seen, so that the simulated rows show fewer than there "
    "are (one in 0.44 s). More of them would be closer to the start of a run, but they would leave no time for as many "
    "rows as the log has."
)
p75: Final = partial(np.percentile, q=75)
MAIN: Final = (
    Target("L rows, %", 17.5, share("queue_type", 1), LOG, 10.0),
    Target("rows of 1500 bytes, %", 62.9, share("packet_length", 1500), LOG, 10.0),
    Target("delay 0, %", 49.1, share("current_queue_delay", 0), LOG, 10.0, False, EDGE),
    Target("probability 0, %", 62.0, share("drop_probability", 0), LOG, 10.0),
    Target("delay, median, ms", 10.0, statistic("current_queue_delay", np.median, 1e-3), LOG, 20.0, False, EDGE),
    Target("delay, p75, ms", 150.0, statistic("current_queue_delay", p75, 1e-3), LOG, 20.0, False, TAIL),
    Target("goodput of CUBIC, Mbit/s", 1.384, goodput("cubic"), IPERF, 0.25, True),
    Target("goodput of NewReno, Mbit/s", 0.487, goodput("newreno"), IPERF, 0.25, True),
    Target("goodput of DCTCP, Mbit/s", 1.177, goodput("dctcp"), IPERF, 0.25, True),
    Target("packets of CUBIC sent again in a run", (61 + 40 + 95) / 3, resent("cubic"), RESENT),
    Target("delay, mean, ms", 87.4, statistic("current_queue_delay", np.mean, 1e-3), LOG),
    Target("delay, sd, ms", 118.0, statistic("current_queue_delay", np.std, 1e-3), LOG),
    Target("delay, largest, ms", 910.0, statistic("current_queue_delay", np.max, 1e-3), LOG),
    Target("queue, mean, packets", 87.5, statistic("length_in_packets", np.mean), LOG),
    Target("queue, p75, packets", 135.0, statistic("length_in_packets", p75), LOG),
    Target("queue, largest, packets", 506.0, statistic("length_in_packets", np.max), LOG),
    Target("queue, mean, bytes", 82307.0, statistic("length_in_bytes", np.mean), LOG),
    Target("queue, p75, bytes", 123466.0, statistic("length_in_bytes", p75), LOG),
    Target("burst allowance 150 ms, %", 58.1, share("burst_allowance", 150_000), LOG),
    Target("burst allowance 0, %", 10.5, share("burst_allowance", 0), LOG),
    Target("probability, p75, 1/(2^31 - 1)", 551157.0, statistic("drop_probability", p75), LOG),
    Target("probability, largest", 1.161e9 / MAX_PROB, statistic("drop_probability", np.max, 1 / MAX_PROB), LOG),
    Target("accumulated probability 0, %", 62.4, share("accumulated_probability", 0), LOG),
    Target("rows of 52 bytes, %", 27.9, share("packet_length", 52), LOG),
    Target("action, mean (0 enqueue, 1 drop, 2 mark)", 0.00873, statistic("action", np.mean), LOG),
    *(
        Target(f"RTT of {name}, p{q:.0f}, ms", real, rtt(name, q), SIFTR)
        for name, reals in (("cubic", (1106, 1655)), ("newreno", (1064, 1549)), ("dctcp", (935, 1455)))
        for q, real in zip((50.0, 95.0), reals, strict=True)
    ),
)
SECOND: Final = (
    Target("goodput of CUBIC, Mbit/s", 2.014, goodput("cubic"), IPERF),
    Target("goodput of DCTCP, Mbit/s", 2.467, goodput("dctcp"), IPERF),
    Target("RTT of CUBIC, mean, ms", 404.0, mean_rtt("cubic"), SIFTR),
    Target("RTT of DCTCP, mean, ms", 360.0, mean_rtt("dctcp"), SIFTR),
    Target("enqueue, %", 99.24, share("action", ENQUEUE), SECOND_LOG),
    Target("drop, %", 0.63, share("action", DROP), SECOND_LOG),
    Target("mark, %", 0.13, share("action", MARK), SECOND_LOG),
)  # fmt: skip


def compare(section: str, targets: Sequence[Target], runs: Sequence[Run]) -> list[Row]:
    """Each figure over all runs, beside the testbed's."""
    out = []
    for t in targets:
        value = t.measure(runs)
        singles = [t.measure([run]) for run in runs]
        allowed, verdict = "", "shown"
        if t.off is not None:
            allowed = f"{100 * t.off:.0f} %" if t.relative else f"{t.off:g}"
            verdict = "pass" if abs(value - t.real) <= t.off * (t.real if t.relative else 1.0) else "miss"
        reason = t.reason if verdict == "miss" else ""
        out.append(
            Row(section, t.figure, t.real, value, min(singles), max(singles), allowed, verdict, reason, t.source)
        )
    return out


# -- start of a run, row by row


def compare_rows(real: Records, simulated: Sequence[Records]) -> list[dict[str, Any]]:
    """Features of consecutive rows: quantiles, Kolmogorov-Smirnov and Wasserstein distances."""
    out = []
    for name in FEATURES:
        a, b = real[name].astype(np.float64), np.concatenate([rows[name] for rows in simulated]).astype(np.float64)
        entry: dict[str, Any] = {"feature": name, "ks": float(ks_2samp(a, b).statistic)}
        entry["wasserstein"] = float(wasserstein_distance(a, b))
        for key, values in (("real", a), ("simulated", b)):
            quantiles = {f"p{q}": float(np.percentile(values, q)) for q in (25, 50, 75, 95)}
            entry[key] = {"mean": float(values.mean()), "zero": float(np.mean(values == 0.0)), **quantiles}
        out.append(entry)
    return out


def standstills(rows: Records) -> tuple[npt.NDArray[np.float64], int]:
    """Packets that entered between two services of a pipe that was not empty, and ticks between the two, (K, 2).

    Also the ticks that the clock went in all.

    The rows bear no time, but the bytes that a packet finds tell which packet has left last, and the delay shown is
    that one's: it left so many ticks after it came. So a clock is rebuilt (its least value: idle time is not seen).
    """
    waiting: list[list[tuple[int, int]]] = [[], []]  # of each queue: clock at arrival, bytes
    clock, last, found = 0, None, []
    for j, row in enumerate(rows):
        queue, size = waiting[row["queue_type"]], int(row["length_in_bytes"])
        total, gone = sum(length for _, length in queue), None
        while total > size:
            gone = queue.pop(0)
            total -= gone[1]
        if total != size:  # a row was lost
            queue[:] = [(clock, size)]
        elif gone is not None:
            served = gone[0] + int(row["current_queue_delay"]) // TICK_US
            if last is not None and served - last[1] >= 2:
                found.append((j - last[0], served - last[1]))
            last = (j, served) if size > 0 and served >= clock else None
            clock = max(clock, served)
        queue.append((clock, int(row["packet_length"])))
    return np.array(found, np.float64).reshape(-1, 2), clock


def compare_standstills(real: Records, simulated: Sequence[Records], row_ms: float) -> dict[str, Any]:
    """What a row takes while nothing is served: quartiles over the standstills of 20 rows or more, ms; and pauses."""
    out = {}
    for name, runs in (("real", [real]), ("simulated", simulated)):
        parts, clocks = zip(*(standstills(rows) for rows in runs), strict=True)
        gaps, seconds = np.vstack(parts), sum(clocks) * TICK_US * 1e-6
        long = gaps[gaps[:, 0] >= 20]
        quartiles = np.percentile(long[:, 1] * TICK_US * 1e-3 / long[:, 0], (25, 50, 75)) if len(long) else [0.0] * 3
        longest_ms = float(gaps[:, 1].max(initial=0.0)) * TICK_US * 1e-3
        over_ms = gaps[:, 1] * TICK_US * 1e-3 - gaps[:, 0] * row_ms
        pauses = over_ms[over_ms >= 30.0]
        out[name] = {
            "number": len(long),
            "ms_per_row": [float(q) for q in quartiles],
            "longest_ms": longest_ms,
            "pauses": len(pauses),
            "pause_ms": float(pauses.mean()) if len(pauses) else 0.0,
            "every_s": seconds / max(len(pauses), 1),
        }
    return out


# -- pictures


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def _cdf(axes: Any, values: npt.NDArray[np.float64], label: str, **style: Any) -> None:
    points = np.percentile(values, np.linspace(0, 100, 401))
    axes.step(points, np.linspace(0, 1, 401), where="post", label=label, **style)


def draw_cdf(path: Path, runs: Sequence[Run], name: str, scale: float, label: str, known: dict[float, float]) -> None:
    """Distribution of a field over all rows, beside what is known of the real log: value -> share below or at it."""
    figure = Figure(figsize=(5.5, 3.6), dpi=90, layout="constrained")
    axes = figure.subplots()
    for run in runs:
        _cdf(axes, run.log[name] * scale, "", color="tab:blue", lw=0.4, alpha=0.5)
    _cdf(axes, _column(runs, name) * scale, "simulated (thin: single runs)", color="tab:blue", lw=1.6)
    axes.plot(list(known), list(known.values()), "o", color="tab:orange", label="real log: known quantiles")
    if name == "drop_probability":
        axes.set_xscale("symlog", linthresh=1e-5)
    axes.set(xlabel=label, ylabel="share of the rows", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    _save(figure, path)


def draw_time(path: Path, run: Run) -> None:
    """Delay and probability over the time of one run."""
    figure = Figure(figsize=(8, 4.2), dpi=90, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for queue, color, label in ((0, "tab:orange", "C"), (1, "tab:blue", "L")):
        rows = run.log[run.log["queue_type"] == queue]
        upper.plot(rows["time_us"] * 1e-6, rows["current_queue_delay"] * 1e-3, color=color, lw=0.5, label=label)
        lower.plot(rows["time_us"] * 1e-6, rows["drop_probability"] / MAX_PROB, color=color, lw=0.5)
    upper.set_ylabel("delay (ms)")
    upper.legend(loc="upper right", ncols=2)
    lower.set(xlabel="time (s)", ylabel="probability")
    _save(figure, path)


def draw_start(path: Path, real: Records, simulated: Records) -> None:
    """The first rows of a run: delay and bytes queued, real and simulated."""
    figure = Figure(figsize=(8, 5), dpi=80, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, (rows, title) in enumerate(((real, "real"), (simulated, "simulated, first seed"))):
        for queue, color, label in ((0, "tab:orange", "C"), (1, "tab:blue", "L")):
            at = np.flatnonzero(rows["queue_type"] == queue)
            axes[0, column].plot(at, rows["current_queue_delay"][at] * 1e-3, color=color, lw=0.6, label=label)
            axes[1, column].plot(at, rows["length_in_bytes"][at] * 1e-3, color=color, lw=0.6)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel("row")
    axes[0, 0].set_ylabel("delay (ms)")
    axes[0, 0].legend(loc="upper left", ncols=2)
    axes[1, 0].set_ylabel("queue (kB)")
    _save(figure, path)


# -- report


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def _row(r: Row) -> list[str]:
    span = f"{r.low:.4g} to {r.high:.4g}"
    return [r.figure, f"{r.real:.6g}", f"{r.simulated:.4g}", span, r.allowed, r.verdict, r.reason]


def _feature(e: dict[str, Any]) -> list[str]:
    a, b = e["real"], e["simulated"]
    pairs = [f"{a[k]:.4g} / {b[k]:.4g}" for k in ("mean", "p50", "p75", "p95")]
    zeros = f"{100 * a['zero']:.1f} / {100 * b['zero']:.1f}"
    return [e["feature"], f"{e['ks']:.3f}", f"{e['wasserstein']:.4g}", zeros, *pairs]


def _cases(cases: list[dict[str, Any]]) -> list[str]:
    """Figures as rows, cases as columns."""
    real = {t.figure: f"{t.real:.6g}" for t in MAIN}
    body = [
        [name, real.get(name, ""), *(f"{case['figures'][name]:.4g}" for case in cases)] for name in cases[0]["figures"]
    ]
    return _table(["", "real", *(case["case"] for case in cases)], body)


def markdown(rows: Sequence[Row], flows: list[dict[str, Any]], cost: list[dict[str, Any]], start: Any) -> str:
    """The tables."""
    lines = [
        "# Sim to real", "",
        "Written by `python benchmarks/sim_to_real.py`; the sources of the real figures are in `sim_to_real.json`.",
        "The range is that of single runs. Allowed: percentage points, ms, or per cent of the real figure.", "",
    ]  # fmt: skip
    for section in dict.fromkeys(row.section for row in rows):
        head = ["figure", "real", "simulated", "range", "allowed", "verdict", "why it is off"]
        lines += [f"## {section}", "", *_table(head, [_row(row) for row in rows if row.section == section])]
    lines += ["## How many flows of CUBIC, NewReno and DCTCP", "", FLOWS, "", *_cases(flows)]
    lines += [
        "## What a printed row costs the router's processor, ms (the scenario has 0.9)",
        "",
        COST,
        "",
        *_cases(cost),
    ]
    if start:
        head = ["feature", "KS", "Wasserstein", "zeros, %", "mean", "p50", "p75", "p95"]
        lines += [f"## The first {start['rows']} rows of a run, real / simulated", "", START, ""]
        lines += _table(head, [_feature(entry) for entry in start["features"]])
        lines += ["Standstills of 20 rows or more between two services of a pipe that is not empty:", ""]
        head = ["", "number", "ms a row, p25", "p50", "p75", "longest standstill, ms"]
        cells = [
            [name, str(e["number"]), *(f"{q:.2f}" for q in e["ms_per_row"]), f"{e['longest_ms']:.0f}"]
            for name, e in start["standstills"].items()
        ]
        lines += [*_table(head, cells), PAUSES, ""]
        head = ["", "pauses", "mean, ms", "one in, s"]
        cells = [
            [name, str(e["pauses"]), f"{e['pause_ms']:.0f}", f"{e['every_s']:.2f}"]
            for name, e in start["standstills"].items()
        ]
        lines += _table(head, cells)
    return "\n".join(lines)


def main(seeds: int = 10, seconds: float = 60.0, out: Path | None = None, pools: Path | None = None) -> None:
    """Compare the simulated testbed with the real one.

    Args:
        seeds: Runs of each case.
        seconds: Length of a run.
        out: Folder of the results (default: results beside this script).
        pools: Folder of the authors' pools (default: where they usually are).
    """
    began = time.perf_counter()
    out = out or Path(__file__).parent / "results"
    (out / "sim_to_real").mkdir(parents=True, exist_ok=True)
    base = load(SCENARIO).replace(horizon_s=seconds)
    second = base.replace(**{"link.rate_mbps": 10.0, "link.pipe_delay_ms": 20.0, "sources.1.count": 0})
    flows = {f"{n} + {n} + 1": base.replace(**{"sources.0.count": n, "sources.1.count": n}) for n in (2, 4)}
    costs = {f"{ms:g}": base.replace(**{"link.row_ms": ms}) for ms in (0.0, 0.87, 0.93, 1.0)}
    costs["0.9, no pauses"] = base.replace(**{"link.pause_ms": 0.0})
    quiet = "10 Mbit/s, 20 ms, CUBIC + DCTCP: the router prints nothing"
    loud = "10 Mbit/s, 20 ms, CUBIC + DCTCP: the router prints as in the 8 Mbit/s runs"
    cases = {
        "base": base,
        loud: second,
        quiet: second.replace(**{"link.row_ms": 0.0, "link.pause_ms": 0.0}),
        **flows,
        **costs,
    }
    results: dict[str, list[Run]] = {}
    for name, scenario in cases.items():
        results[name] = []
        for seed in range(seeds):
            results[name].append(simulate(scenario, seed))
            print(f"\r{len(results)}/{len(cases)} cases, {seed + 1}/{seeds} runs ", end="", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    runs = results["base"]
    amount = Target("rows in 10 runs of 60 s", 543423.0, partial(rows_of_ten_minutes, seconds=seconds), LOG)
    rows = compare("8 Mbit/s, 10 ms, CUBIC + NewReno + DCTCP", [*MAIN, amount], runs)
    rows += [row for name in (quiet, loud) for row in compare(name, SECOND, results[name])]
    brief = [*MAIN[:9], *(t for t in MAIN if t.figure.startswith("burst") or "p50" in t.figure), amount]

    def table(names: dict[str, str]) -> list[dict[str, Any]]:
        return [{"case": c, "figures": {t.figure: t.measure(results[n]) for t in brief}} for c, n in names.items()]

    by_flows = table({"1 + 1 + 1": "base", "2 + 2 + 1": "2 + 2 + 1", "4 + 4 + 1": "4 + 4 + 1"})
    by_cost = table(
        {name: "base" if name == "0.9" else name for name in ("0", "0.87", "0.9", "0.93", "1", "0.9, no pauses")}
    )
    folder, start = find_pools(pools), None
    if folder is not None and (folder / POOL_FILES[1]).is_file():
        real = load_rows(folder / POOL_FILES[1]).records
        firsts = [run.log[: len(real)] for run in runs]
        start = {"rows": len(real), "source": POOL_FILES[1], "features": compare_rows(real, firsts)}
        start["standstills"] = compare_standstills(real, firsts, base.link.row_ms)
        draw_start(out / "sim_to_real" / "start.png", real, firsts[0])
    else:
        print("the authors' consecutive rows are not here (--pools FOLDER): the start of a run is not compared")
    known = {target.figure: target.real for target in MAIN}
    delays = {
        0.0: known["delay 0, %"] / 100,
        10.0: 0.5,
        known["delay, p75, ms"]: 0.75,
        known["delay, largest, ms"]: 1.0,
    }
    p75_real = known["probability, p75, 1/(2^31 - 1)"] / MAX_PROB
    probabilities = {0.0: known["probability 0, %"] / 100, p75_real: 0.75, known["probability, largest"]: 1.0}
    packets = {known["queue, p75, packets"]: 0.75, known["queue, largest, packets"]: 1.0}
    for name, field, scale, label, points in (
        ("delay", "current_queue_delay", 1e-3, "queue delay (ms)", delays),
        ("probability", "drop_probability", 1 / MAX_PROB, "probability", probabilities),
        ("queue", "length_in_packets", 1.0, "packets queued", packets),
    ):
        draw_cdf(out / "sim_to_real" / f"{name}.png", runs, field, scale, label, points)
    draw_time(out / "sim_to_real" / "time.png", runs[0])
    for row in rows:
        text = f"{row.figure:<44}{row.real:>12.5g}{row.simulated:>12.5g}  {row.verdict}"
        print(f"{text}: {row.reason}" if row.reason else text)
    report = {
        **origin(),
        "scenario": SCENARIO,
        "seeds": list(range(seeds)),
        "seconds": seconds,
        "rows": [asdict(row) for row in rows],
        "flows": by_flows,
        "row_ms": by_cost,
        "start": start,
    }
    with atomic_write(out / "sim_to_real.json") as file:
        file.write((json.dumps(report, indent=1) + "\n").encode())
    with atomic_write(out / "sim_to_real.md") as file:
        file.write(markdown(rows, by_flows, by_cost, start).encode())
    print(f"{time.perf_counter() - began:.0f} s; {out / 'sim_to_real.md'}")


if __name__ == "__main__":
    tyro.cli(main)
