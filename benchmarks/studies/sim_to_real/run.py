"""Compare the simulated testbed with the real one: three collections of the authors, and scenarios for them.

    python benchmarks/studies/sim_to_real/run.py  # 10 runs of 60 s, as the authors'; half a minute
    python benchmarks/studies/sim_to_real/run.py --seeds 2 --seconds 20 --out /tmp/here

Writes sim_to_real.json, sim_to_real.md and two pictures into `results` beside this script. The real figures, their
sources and tolerances are in `real.toml`, of three collections by name; all simulated figures are measured by
the run. A miss is reported with its cause. The shared extract of consecutive kernel rows (see
`l4s_gym.evaluation.demo.find_pools`) is compared feature by feature where it is present.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import ks_2samp, wasserstein_distance

from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.data.pools import load_rows
from l4s_gym.evaluation.demo import POOL_FILES, find_pools
from l4s_gym.evaluation.origin import origin
from l4s_gym.markdown import table
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario, load

TICK_US: Final = 10_000
SAMPLE_NS: Final = 100_000_000
LOG_ROWS: Final = 1 << 17
CONTROLS: Final = ("cubic", "newreno", "dctcp")
FEATURES: Final = (
    "current_queue_delay", "drop_probability", "burst_allowance", "accumulated_probability", "length_in_bytes",
    "packet_length", "queue_type",
)  # fmt: skip

Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Run:
    """One run: its log (T,), its length, and by congestion control goodput in Mbit/s, resent packets, RTTs in ms."""

    log: Records
    seconds: float
    goodput: dict[str, float]
    resent: dict[str, int]
    rtt_ms: dict[str, npt.NDArray[np.float64]]


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure of the testbed, as `real.toml` explains it."""

    figure: str
    real: float
    of: str
    what: str = "mean"
    value: float = 0.0
    scale: float = 1.0
    off: float | None = None
    percent: float | None = None
    reason: str = ""

    def measure(self, runs: Sequence[Run]) -> float:
        """Return the same figure of simulated runs."""
        kind, _, control = self.of.partition(" ")
        if kind == "rows":
            return float(np.mean([600.0 * len(run.log) / run.seconds for run in runs]))
        if kind in ("goodput", "resent"):
            return float(np.mean([getattr(run, kind)[control] for run in runs]))
        values = np.concatenate([run.rtt_ms[control] if kind == "rtt" else run.log[kind] for run in runs])
        if self.what == "share":
            return 100.0 * float(np.mean(values == self.value))
        if self.what.startswith("p"):
            return float(np.percentile(values, float(self.what[1:]))) * self.scale
        known = {"mean": values.mean(dtype=np.float64), "sd": values.std(dtype=np.float64), "max": values.max()}
        return float(known[self.what]) * self.scale


class Collection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A collection of the authors, and the scenario that simulates it."""

    scenario: str
    title: str
    target: tuple[Target, ...]


class Real(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `real.toml`."""

    source: dict[str, str]
    reason: dict[str, str]
    text: dict[str, str]
    collection: tuple[Collection, ...]


@dataclass(frozen=True)
class Row:
    """A comparison: the simulated figure over all runs, and its range over single ones."""

    collection: str
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
        scenario.horizon_s,
        {name: float(goodput[which].sum()) for name, which in of.items() if which.any()},
        {name: int(flow["resent"][which].sum()) for name, which in of.items()},
        {name: srtt_ms[:, which][srtt_ms[:, which] > 0.0] for name, which in of.items() if which.any()},
    )


REAL: Final = msgspec.toml.decode(Path(__file__).with_name("real.toml").read_bytes(), type=Real)
PANELS: Final = {"current_queue_delay": "us", "drop_probability": "1/(2^31 - 1)", "length_in_packets": "packets"}
VARIANTS: Final[dict[str, dict[str, float]]] = {
    "rows cost nothing": {"link.row_ms": 0.0},
    "0.4 ms": {"link.row_ms": 0.4},
    "0.9 ms": {"link.row_ms": 0.9},
    "no pauses": {"link.pause_ms": 0.0},
    "weights 1 : 1": {"options.dualpi2_freebsd.drr_weight": 1},
}


def compare(collection: Collection, runs: Sequence[Run]) -> list[Row]:
    """Compare each figure over all runs with the testbed's."""
    out = []
    for t in collection.target:
        value = t.measure(runs)
        singles = [t.measure([run]) for run in runs]
        allowed, verdict = "", "shown"
        if t.off is not None or t.percent is not None:
            allowed = f"{t.off:g}" if t.off is not None else f"{t.percent:g} %"
            off = t.off if t.off is not None else (t.percent or 0.0) / 100 * t.real
            verdict = "pass" if abs(value - t.real) <= off else "miss"
        reason = REAL.reason.get(t.reason, "not known") if verdict == "miss" else ""
        span = min(singles), max(singles)
        source = REAL.source.get(t.of.split()[0], REAL.source["log"])
        out.append(Row(collection.title, t.figure, t.real, value, *span, allowed, verdict, reason, source))
    return out


# -- start of a run, row by row


def compare_rows(real: Records, simulated: Sequence[Records]) -> list[dict[str, Any]]:
    """Compare features of consecutive rows: quantiles, Kolmogorov-Smirnov and Wasserstein distances."""
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
    """Return the packets and ticks between two services of a pipe that was not empty, (K, 2).

    Also return the number of ticks of the clock in all.

    The rows have no time, but the bytes that a packet finds show which packet left last, and the delay is that
    packet's: it left that many ticks after its arrival. This gives a clock (a lower bound: idle time is not seen).
    """
    waiting: list[list[tuple[int, int]]] = [[], []]  # for each queue: clock at arrival, bytes
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


def compare_standstills(runs: Sequence[Records], row_ms: float) -> dict[str, Any]:
    """Return the time per row while nothing is served, ms: quartiles over standstills of 20 rows or more; pauses."""
    parts, clocks = zip(*(standstills(rows) for rows in runs), strict=True)
    gaps, seconds = np.vstack(parts), sum(clocks) * TICK_US * 1e-6
    lasted_ms = gaps[:, 1] * TICK_US * 1e-3
    long = gaps[:, 0] >= 20
    over_ms = lasted_ms - gaps[:, 0] * row_ms
    pauses = over_ms[over_ms >= 30.0]
    return {
        "number": int(long.sum()),
        "ms_per_row": [float(q) for q in np.percentile(lasted_ms[long] / gaps[long, 0], (25, 50, 75))],
        "longest_ms": float(lasted_ms.max(initial=0.0)),
        "pauses": len(pauses),
        "pause_ms": float(pauses.mean()) if len(pauses) else 0.0,
        "every_s": seconds / max(len(pauses), 1),
    }


# -- pictures


def draw_log(path: Path, runs: Sequence[Run], targets: Sequence[Target]) -> None:
    """Draw distributions over all rows, with the known quantiles of the real log."""
    figure = Figure(figsize=(12, 3.6), dpi=90, layout="constrained")
    for axes, field in zip(figure.subplots(1, 3, sharey=True), PANELS, strict=True):
        each = [run.log[field] for run in runs]
        for values, width in [*((one, 0.4) for one in each), (np.concatenate(each), 1.6)]:
            points = np.percentile(values, np.linspace(0, 100, 401))
            axes.step(points, np.linspace(0, 1, 401), where="post", color="tab:blue", lw=width)
        for t in targets:
            if t.of == field and t.what in ("share", "p50", "p75", "max"):
                level = {"share": t.real / 100, "max": 1.0}.get(t.what) or float(t.what[1:]) / 100
                axes.plot(0.0 if t.what == "share" else t.real / t.scale, level, "o", color="tab:orange")
        if field == "drop_probability":
            axes.set_xscale("symlog", linthresh=1e4)
        axes.set(xlabel=f"{field} ({PANELS[field]}; orange: the real log)", ylabel="share of the rows", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    _save(figure, path)


def draw_start(path: Path, real: Records, simulated: Records) -> None:
    """Draw the first rows of a run: delay and bytes queued, real and simulated."""
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


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def compare_start(runs: Sequence[Run], row_ms: float, out: Path, pools: Path | None) -> dict[str, Any] | None:
    """Compare the first rows of the paper's collection with the public ones, if those are present."""
    folder = find_pools(pools)
    if folder is None or not (folder / POOL_FILES[1]).is_file():
        print("the authors' consecutive rows are not here (--pools FOLDER): the start of a run is not compared")
        return None
    real = load_rows(folder / POOL_FILES[1]).records
    firsts = [run.log[: len(real)] for run in runs]
    draw_start(out / "start.png", real, firsts[0])
    gaps = {"real": compare_standstills([real], row_ms), "simulated": compare_standstills(firsts, row_ms)}
    return {"rows": len(real), "source": POOL_FILES[1], "features": compare_rows(real, firsts), "standstills": gaps}


# -- report


def _row(r: Row) -> list[str]:
    span = f"{r.low:.4g} to {r.high:.4g}"
    return [r.figure, f"{r.real:.6g}", f"{r.simulated:.4g}", span, r.allowed, r.verdict, r.reason]


def _feature(e: dict[str, Any]) -> list[str]:
    a, b = e["real"], e["simulated"]
    pairs = [f"{a[k]:.4g} / {b[k]:.4g}" for k in ("mean", "p50", "p75", "p95")]
    zeros = f"{100 * a['zero']:.1f} / {100 * b['zero']:.1f}"
    return [e["feature"], f"{e['ks']:.3f}", f"{e['wasserstein']:.4g}", zeros, *pairs]


def markdown(rows: Sequence[Row], variants: dict[str, dict[str, dict[str, float]]], start: Any) -> str:
    """Return the tables."""
    lines = [
        "# Sim to real", "",
        "Written by `python benchmarks/studies/sim_to_real/run.py`; "
        "the sources of the real figures are in `sim_to_real.json`.",
        "The range is that of single runs. Allowed: percentage points, ms, or per cent of the real figure.",
        REAL.text["uncovered"], "",
    ]  # fmt: skip
    for c in REAL.collection:
        mine = [row for row in rows if row.collection == c.title]
        head = ["figure", "real", f"`{c.scenario}`", "range", "allowed", "verdict", "why it is off"]
        lines += [f"## {c.title}", "", *table(head, [_row(row) for row in mine]), ""]
    lines += [
        "## Other routers: what a printed row costs, pauses, weights of the round robin",
        "",
        REAL.text["cost"],
        "",
    ]
    for c in REAL.collection:
        cases, body = variants[c.title], []
        for row in (row for row in rows if row.collection == c.title and row.allowed):
            others = [f"{case[row.figure]:.4g}" for case in cases.values()]
            body.append([row.figure, f"{row.real:.6g}", f"{row.simulated:.4g}", *others])
        lines += [f"{c.title}:", "", *table(["", "real", "as it is", *cases], body), ""]
    if start:
        head = ["feature", "KS", "Wasserstein", "zeros, %", "mean", "p50", "p75", "p95"]
        lines += [f"## The first {start['rows']} rows of a run, real / simulated", "", REAL.text["start"], ""]
        lines += [*table(head, [_feature(entry) for entry in start["features"]]), ""]
        lines += ["Standstills of 20 rows or more between two services of a pipe that is not empty:", ""]
        head = ["", "number", "ms a row, p25", "p50", "p75", "longest, ms", "pauses", "mean, ms", "one in, s"]
        cells = [
            [name, str(e["number"]), *(f"{q:.2f}" for q in e["ms_per_row"]), f"{e['longest_ms']:.0f}",
             str(e["pauses"]), f"{e['pause_ms']:.0f}", f"{e['every_s']:.2f}"]
            for name, e in start["standstills"].items()
        ]  # fmt: skip
        lines += [*table(head, cells), "", REAL.text["pauses"], ""]
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
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    variants: dict[str, dict[str, dict[str, float]]] = {}
    start = None
    for c in REAL.collection:
        base = load(c.scenario).replace(horizon_s=seconds)
        runs = [simulate(base, seed) for seed in range(seeds)]
        rows += compare(c, runs)
        variants[c.title] = {}
        for name, changes in VARIANTS.items():
            if (changed := base.replace(**changes)) != base:
                others = [simulate(changed, seed) for seed in range(seeds)]
                variants[c.title][name] = {t.figure: t.measure(others) for t in c.target}
        print(f"{time.perf_counter() - began:.0f} s: {c.title}")
        if c is REAL.collection[0]:
            draw_log(out / "log.png", runs, c.target)
            start = compare_start(runs, base.link.row_ms, out, pools)
    for row in rows:
        text = f"{row.figure:<44}{row.real:>12.5g}{row.simulated:>12.5g}  {row.verdict}"
        print(f"{text}: {row.reason}" if row.reason else text)
    report = {
        **origin(), "scenarios": {c.title: c.scenario for c in REAL.collection}, "seeds": list(range(seeds)),
        "seconds": seconds, "rows": [asdict(row) for row in rows], "variants": variants, "start": start,
    }  # fmt: skip
    with atomic_write(out / "sim_to_real.json") as file:
        file.write((json.dumps(report, indent=1) + "\n").encode())
    with atomic_write(out / "sim_to_real.md") as file:
        file.write(markdown(rows, variants, start).encode())
    print(f"{time.perf_counter() - began:.0f} s; {out / 'sim_to_real.md'}")


if __name__ == "__main__":
    command_line(main)
