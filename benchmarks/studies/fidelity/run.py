"""Compare the simulator with published laws: windows, losses, delay, rate ratios, utilisation, overload.

    python benchmarks/studies/fidelity/run.py          # everything, some minutes; writes results/fidelity.json
    python benchmarks/studies/fidelity/run.py --quick  # a part in half a minute; writes nothing without --out

Sources of the targets: RFC 9332 (DualPI2, Reno 1.22 / sqrt(p), scalable 2 / p), RFC 8312 (CUBIC), RFC 9331;
the constants for evenly spaced and for random marks come from a model that steps by round trips, which a
packet-level simulation need not match. Tolerances were set beforehand. A miss is reported with its cause.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation.origin import origin
from l4s_gym.sim import layout, scenario
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.measure import Summary, summary

SEED: Final = 1
AQMS: Final = ("dualpi2_rfc9332", "dualpi2_linux")
UPDATE_NS: Final = 16_000_000
PRAGUE_S: Final = 0.025
"""Least virtual round trip of Prague."""
RENO: Final = {"kind": "newreno"}
AIMD: Final = {"kind": "newreno", "beta": 0.7, "beta_ecn": 0.7}
CUBIC: Final = {"kind": "cubic", "slope_one": False}
DCTCP: Final = {"kind": "dctcp"}
PRAGUE: Final = {"kind": "prague"}
VERDICTS: Final = ("pass", "miss", "shown")
RTTS_MS: Final = (5, 10, 20, 50, 100)

ROUND: Final = (
    "a cut makes RFC 3168 ignore the marks of a whole further round, in the model only those of the same one: "
    "W grows by up to p W / 2"
)
SCALABLE: Final = (
    "one cut a round, and then the wait for the next mark: x = W p solves x / 2 = 1 + 1 / x, 2.73, for random marks; "
    "even marks lock to a cut in 2 marks (2.00) or in 3 (sqrt 6 = 2.45)"
)


@dataclass
class Row:
    """One comparison: a measured value against [low, high]; `shown` if there is no target."""

    section: str
    discipline: str
    case: str
    quantity: str
    target: str
    low: float | None
    high: float | None
    measured: float
    verdict: str
    note: str = ""


def judge(
    section: str, aqm: str, case: str, quantity: str, target: str, measured: float,
    low: float | None = None, high: float | None = None, cause: str = "", judged: bool = True,
) -> Row:  # fmt: skip
    """Return a row with its verdict; the cause is kept for a miss or for a row without verdict."""
    inside = (low is None or measured >= low) and (high is None or measured <= high)
    verdict = ("pass" if inside else "miss") if judged else "shown"
    note = "" if verdict == "pass" else (cause or ("" if verdict == "shown" else "unexplained"))
    return Row(section, aqm.removeprefix("dualpi2_"), case, quantity, target, low, high, measured, verdict, note)


def simulate(
    rate_mbps: float, sources: list[dict[str, Any]], aqm: str, warmup_s: float, measured_s: float, *,
    decider: int = layout.NATIVE, limit_packets: int = 0, **options: Any,
) -> Batch:  # fmt: skip
    """Run an environment through its warm-up; its counters are then zero."""
    tree = {
        "name": "fidelity", "sources": sources, "horizon_s": warmup_s + measured_s,
        "options": {aqm: options} if options else {},
        "link": {"rate_mbps": rate_mbps, "limit_packets": limit_packets},
    }  # fmt: skip
    batch = Batch(scenario.from_dict(tree), aqm=aqm, decider=decider)
    batch.reset(0, np.random.default_rng(SEED))
    if decider == layout.NATIVE:
        warm(batch, warmup_s)
    return batch


def spare(aqm: str) -> dict[str, int]:
    """Return the option that spares a packet alone in L: on slow links it is older than the step by itself."""
    return {"min_qlen_step": 1} if aqm == "dualpi2_linux" else {"th_len": 1}


def warm(batch: Batch, until_s: float) -> None:
    """Run on to a time and reset the counters."""
    batch.stop_at(0, round(until_s * 1e9))
    batch.advance_one()
    batch.reset_counters(0)


def finish(batch: Batch) -> Summary:
    """Run to the horizon; return what happened since the warm-up."""
    batch.advance_one()
    return summary(batch, 0)


def finish_watching(batch: Batch) -> tuple[Summary, npt.NDArray[np.float64]]:
    """Run as `finish`; return also p' after each update of the controller, (updates,)."""
    start = int(batch.env["now_ns"][0]) // UPDATE_NS + 1
    seen = []
    for k in range(start, int(batch.env["horizon_ns"][0] - 1) // UPDATE_NS + 1):
        batch.stop_at(0, k * UPDATE_NS + 1)
        if batch.advance_one() != layout.STOPPED:
            break
        seen.append(batch.base_probability(0))
    return finish(batch), np.array(seen, np.float64)


# -- window laws


@dataclass(frozen=True)
class Law:
    """W p^exponent (rtt)^... = constant: the law of a sender's window at a constant probability of marks.

    Attributes:
        even: Constant for evenly spaced marks at p = 5e-4 and at 1e-2.
        random: The same for random marks; empty: unknown.
    """

    name: str
    source: dict[str, Any]
    rtt_ms: float
    formula: str
    even: tuple[float, float]
    random: tuple[float, float] | tuple[()]
    cause: str
    exponent: float = 0.5

    def window(self, p: float) -> float:
        """Return the approximate window by the law, packets."""
        scale = (self.rtt_ms * 1e-3) ** 0.75 if self.exponent == 0.75 else 1.0
        return self.even[0] * scale / math.pow(p, self.exponent)

    def reference(self, p: float, even: bool) -> float | None:
        """Return the constant at p, interpolated in log p."""
        ends = self.even if even else self.random
        if not ends:
            return None
        part = min(max(math.log(p / 5e-4) / math.log(1e-2 / 5e-4), 0.0), 1.0)
        return ends[0] + part * (ends[1] - ends[0])


LAWS: Final = (
    Law("Reno", RENO, 50, "1.22/sqrt(p)", (1.21, 1.15), (1.30, 1.27), ROUND),
    Law("CUBIC, friendly", CUBIC, 10, "1.22/sqrt(p)", (1.21, 1.15), (1.26, 1.24), ROUND),
    Law("AIMD(1, 0.7)", AIMD, 50, "1.68/sqrt(p)", (1.65, 1.55), (1.73, 1.68), ROUND),
    Law("DCTCP", DCTCP, 50, "2/p", (2.0, 2.0), (2.24, 2.24), SCALABLE, 1.0),
    Law("Prague, rate x 25 ms", PRAGUE, 10, "2/p", (2.0, 2.0), (2.24, 2.24), SCALABLE, 1.0),
    Law("CUBIC, cubic", CUBIC, 200, "1.054 (RTT/p)^.75", (1.054, 1.054), (), "the constant is for even marks", 0.75),
)


def _law_window(law: Law, p: float, even: bool, cycles: int, samples: int) -> tuple[float, float, float]:
    """Return the mean window in packets, mean packets a second, and the fraction marked, at mark probability p."""
    rtt_s = law.rtt_ms * 1e-3
    scalable, prague = law.exponent == 1.0, law.source["kind"] == "prague"
    if scalable:  # the window moves by a packet a round: it needs 2 / p rounds to settle
        round_s = max(rtt_s, PRAGUE_S) if prague else rtt_s
        settle_s = 2.0 / p * round_s
        warmup_s, measured_s = 2.0 * settle_s + 100.0 * round_s, max(settle_s, cycles * round_s)
    else:
        measured_s = cycles / p / law.window(p) * rtt_s
        warmup_s = 0.1 * measured_s + 2.0
    source = {**law.source, "rtt_ms": law.rtt_ms, "receive_window": 16384}
    batch = simulate(1e5, [source], "fifo", warmup_s, measured_s, decider=layout.PROBABILITY, limit_packets=40_000)
    env, flow = batch.env[0], batch.flow[0]
    env["p_l"] = env["p_c"] = p
    env["even"] = int(even)
    if scalable and p < 5e-3:  # slow start would end far from it: begin at the law's window
        batch.stop_at(0, round(3e8))
        batch.advance_one()
        flow["cwnd"][0] = flow["ssthresh"][0] = 2.0 / p * (min(rtt_s / PRAGUE_S, 1.0) if prague else 1.0)
        flow["ce_alpha"][0] = p
    warm(batch, warmup_s)
    jitter = np.random.default_rng(SEED)
    outstanding = 0
    for k in range(samples):
        batch.stop_at(0, round(1e9 * (warmup_s + measured_s * (k + jitter.random()) / samples)))
        batch.advance_one()
        outstanding += int(flow["pipe"][0])
    batch.advance_one()
    received = int(flow["received"][0])
    return outstanding / samples, received / measured_s, int(flow["marks"][0]) / received


def window_laws(quick: bool) -> Iterator[Row]:
    """Compare section `windows`: mean packets in flight at a constant probability of marks."""
    probabilities = (2e-3, 1e-2, 5e-2) if quick else (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
    cycles, samples = (200, 600) if quick else (1000, 2000)
    for law in LAWS:
        for p in probabilities:
            low_p = 5e-3 if quick else {"prague": 2e-3}.get(law.source["kind"], 0.0)
            if (law.exponent == 1.0 and p < low_p) or (law.exponent == 0.75 and p > 2e-3):
                continue
            for even in (True, False):
                window, rate, marked = _law_window(law, p, even, cycles, samples)
                size = rate * PRAGUE_S if law.source["kind"] == "prague" else window
                scale = (law.rtt_ms * 1e-3) ** 0.75 if law.exponent == 0.75 else 1.0
                constant = size * marked**law.exponent / scale
                reference = law.reference(p, even)
                judged = p <= 0.05 and window >= 10.0 and reference is not None
                case = f"{law.name} p={p:g} {'even' if even else 'random'}"
                yield judge(
                    "windows", "fifo", case, f"W={window:.1f}, constant",
                    f"{reference:.2f} +-10 %" if reference else law.formula, constant,
                    0.9 * reference if reference else None, 1.1 * reference if reference else None,
                    law.cause if judged or reference is None else "outside p <= 0.05 and W >= 10", judged,
                )  # fmt: skip


# -- losses


LOSSES: Final = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.03, 0.06, 0.1, 0.14, 0.2, 0.25, 0.3, 0.35)
FREEBSD: Final = {"freebsd": True, "min_rto_ms": 30.0, "rto_slop_ms": 200.0}
SENDERS: Final[dict[str, dict[str, Any]]] = {
    "NewReno": RENO,
    "CUBIC": {"kind": "cubic"},
    "DCTCP": DCTCP,
    "UDP Prague": PRAGUE,
    "TCP Prague": {**PRAGUE, "variant": "tcp"},
    **{f"{name} of FreeBSD": {"kind": name.lower(), **FREEBSD} for name in ("NewReno", "CUBIC", "DCTCP")},
}
MSS_BITS: Final = 1448 * 8


def loss_law_mbps(source: dict[str, Any], p: float, rtt_ms: float) -> float:
    """Return the highest goodput at independent losses of probability p: a window per RTT (Prague: at least 25 ms).

    The window: 1.31 / sqrt(p) of Reno, AIMD(1, 0.7)'s 1.73 / sqrt(p) or 1.17 (RTT / p)^.75 of CUBIC. UDP Prague grows
    by a millisecond of queue a round if no loss has come for long, which is more than a packet above 11 Mbit/s; TCP
    Prague keeps two packets in flight, even at the shortest round trip.
    """
    rtt_s = max(rtt_ms * 1e-3, PRAGUE_S if source["kind"] == "prague" else 0.0)
    window = 1.31 / math.sqrt(p)
    if source["kind"] == "cubic":
        window = max(1.73 / math.sqrt(p), 1.17 * (rtt_s / p) ** 0.75)
    rate = window * MSS_BITS * 1e-6 / rtt_s
    if source["kind"] != "prague":
        return rate
    if source.get("variant") == "tcp":
        return max(rate, 2.0 * MSS_BITS * 1e-3 / rtt_ms)
    return rate * (1.9 if rate > 11.0 else 1.0)


def _lossy(source: dict[str, Any], p: float, rtt_ms: float, run_s: float, seeds: int) -> tuple[float, float]:
    """Return the goodput of one flow over 1 Gbit/s with independent losses, Mbit/s: mean and standard error."""
    tree = {
        "name": "fidelity", "sources": [{"ecn": "not-ect", **_n(source, 1, rtt_ms)}], "horizon_s": 5.0 + run_s,
        "link": {"rate_mbps": 1000.0},
    }  # fmt: skip
    batch = Batch(scenario.from_dict(tree), seeds, aqm="fifo", decider=layout.PROBABILITY)
    for k in range(seeds):
        batch.reset(k, np.random.default_rng(SEED + k))
        batch.env["p_l"][k] = batch.env["p_c"][k] = p
        batch.stop_at(k, round(5e9))
    batch.advance()
    for k in range(seeds):
        batch.reset_counters(k)
    batch.advance()
    rates = batch.flow["goodput_bytes"][:, 0] * 8e-6 / run_s
    return float(rates.mean()), float(rates.std(ddof=1)) / math.sqrt(seeds)


def losses(quick: bool) -> Iterator[Row]:
    """Compare section `losses`: goodput falls as losses rise, and stays below the window law (3 standard errors)."""
    run_s, seeds = (20.0, 6) if quick else (60.0, 8)
    for name, source in SENDERS.items():
        for rtt_ms in (20,) if quick else (5, 20, 50):
            before, spread_before, rise, excess = math.inf, 0.0, -math.inf, -math.inf
            for p in (1e-2, 0.1, 0.14, 0.2, 0.25, 0.35) if quick else LOSSES:
                mean, spread = _lossy(source, p, rtt_ms, run_s, seeds)
                law = 1.05 * loss_law_mbps(source, p, rtt_ms)
                rise = max(rise, (mean - 3.0 * math.hypot(spread, spread_before)) / before)
                excess = max(excess, (mean - 3.0 * spread) / law)
                before, spread_before = mean, spread
            case = f"{name}, {rtt_ms} ms"
            yield judge("losses", "fifo", case, "goodput at the next p", "<= that at the last", rise, None, 1.0)
            yield judge("losses", "fifo", case, "goodput", "<= the window law", excess, None, 1.0)


# -- queue delay


def _n(source: dict[str, Any], count: int, rtt_ms: float) -> dict[str, Any]:
    return {**source, "count": count, "rtt_ms": rtt_ms}


def controller(quick: bool) -> Iterator[Row]:
    """Compare section `delay`: the PI controller holds its target on average; delay of C."""
    cases: list[tuple[str, float, list[dict[str, Any]]]] = [
        ("10 CUBIC, 40 Mb/s, 20 ms", 40, [_n(CUBIC, 10, 20)]),
        ("5 CUBIC + 5 Prague, 40 Mb/s, 20 ms", 40, [_n(CUBIC, 5, 20), _n(PRAGUE, 5, 20)]),
        ("5 CUBIC + 5 DCTCP, 40 Mb/s, 20 ms", 40, [_n(CUBIC, 5, 20), _n(DCTCP, 5, 20)]),
        ("10 AIMD + 10 Prague, 120 Mb/s, 10 ms", 120, [_n(AIMD, 10, 10), _n(PRAGUE, 10, 10)]),
        ("1 CUBIC, 4 Mb/s, 10 ms", 4, [_n(CUBIC, 1, 10)]),
        ("1 AIMD, 40 Mb/s, 10 ms", 40, [_n(AIMD, 1, 10)]),
        ("1 CUBIC, 40 Mb/s, 20 ms", 40, [_n(CUBIC, 1, 20)]),
        ("1 CUBIC, 40 Mb/s, 50 ms", 40, [_n(CUBIC, 1, 50)]),
        ("1 CUBIC, 40 Mb/s, 100 ms", 40, [_n(CUBIC, 1, 100)]),
    ]
    for aqm in AQMS:
        for name, rate, sources in cases[:5] if quick else cases:
            batch = simulate(rate, sources, aqm, 20.0, 60.0 if quick else 100.0)
            result, p = finish_watching(batch)
            mean_ms = float(batch.env["update_delay_ns"][0] / batch.env["updates"][0]) * 1e-6
            zero = float(np.mean(p <= 0.0))
            why = f"p' is 0 at {100 * zero:.0f} % of the updates: the queue is short after each cut"
            yield judge("delay", aqm, name, "mean at updates, ms", "15.0 +-0.3, p' > 0", mean_ms, 14.7, 15.3,
                        why, judged=zero == 0.0)  # fmt: skip
            delay = result["delay_ms"]["C"]
            slow = f"a packet takes {12 / rate:.1f} ms: at its dequeue it is older by half of it than the sampled head"
            yield judge("delay", aqm, name, "C mean, ms", "10 .. 16", delay["mean"], 10.0, 16.0, why if zero else slow)
            yield judge("delay", aqm, name, "C P99, ms", "<= 40", delay["p99"], None, 40.0)
            if p.max() < 0.5:
                lost = sum(c["dropped_ect"] for c in result["classes"].values())
                yield judge("delay", aqm, name, f"ECT lost, p' <= {p.max():.2f}", "0", lost, None, 0.0)


def l_queue(quick: bool) -> Iterator[Row]:
    """Compare section `L delay`: sojourn in the L queue."""
    sets: list[tuple[str, list[dict[str, Any]]]] = [
        ("2 Prague", [PRAGUE, PRAGUE]), ("2 CUBIC + 2 Prague", [CUBIC, CUBIC, PRAGUE, PRAGUE])
    ]  # fmt: skip
    for aqm in AQMS:
        for rate in (40,) if quick else (40, 120, 200):
            for name, sources in sets:
                batch = simulate(rate, [_n(s, 1, 20) for s in sources], aqm, 10.0, 20.0 if quick else 60.0)
                delay = finish(batch)["delay_ms"]["L"]
                case = f"{name}, {rate} Mb/s, 20 ms"
                alone = "L alone: the marks that hold the load come from the ramp or step itself, at 0.8 .. 1.2 ms"
                yield judge("L delay", aqm, case, "median, ms", "<= 0.5", delay["p50"], None, 0.5, alone)
                yield judge("L delay", aqm, case, "mean, ms", "<= 1", delay["mean"], None, 1.0, alone)
                yield judge("L delay", aqm, case, "P99, ms", "<= 2", delay["p99"], None, 2.0)
        for name, source in (("DCTCP", DCTCP), ("Prague", PRAGUE)):
            batch = simulate(4, [_n(CUBIC, 1, 10), _n(source, 1, 10)], aqm, 10.0, 60.0, **spare(aqm))
            mean = finish(batch)["delay_ms"]["L"]["mean"]
            why = "a paced packet waits for little more than the rest of a C packet that is being sent, 1.5 ms"
            case = f"1 CUBIC + 1 {name}, 4 Mb/s, 10 ms"
            yield judge("L delay", aqm, case, "mean, ms", "3 .. 6", mean, 3.0, 6.0, why)


# -- rate ratios


@dataclass(frozen=True)
class Pair:
    """Competing flows: rows are r_L / r_C for `RTTS_MS`, with the constant of C's law."""

    name: str
    l4s: dict[str, Any]
    classic: dict[str, Any]
    constant: float
    rows: tuple[tuple[float, float], ...]
    grid: tuple[float, float]


PAIRS: Final = (
    Pair("DCTCP : CUBIC", DCTCP, CUBIC, 1.22,
         ((2.53, 2.98), (1.66, 1.95), (1.19, 1.40), (0.90, 1.05), (0.80, 0.94)), (0.4, 4.2)),
    Pair("DCTCP : AIMD", DCTCP, AIMD, 1.68, tuple((r, r) for r in (1.84, 1.20, 0.86, 0.65, 0.58)), (0.4, 4.2)),
    Pair("Prague : AIMD", PRAGUE, AIMD, 1.68, tuple((r, r) for r in (0.56, 0.70, 0.98, 0.90, 0.80)), (0.4, 1.5)),
)  # fmt: skip


PACED: Final = replace(PAIRS[0], name="paced DCTCP : CUBIC", l4s={**DCTCP, "paced": True})


def _ratio(pair: Pair, aqm: str, rate: float, rtt_ms: float, n: int, run_s: float) -> tuple[float, str]:
    """Return the rate ratio per flow, and the factor that moves it furthest from the row.

    r_L / r_C = [x_L / 2] [c / x_C] [2 sqrt(p_C) / p_L] [R_C / row's] times the row, where x_L = r_L vrtt p_L
    and x_C = r_C R_C sqrt(p_C) are the measured constants of the windows.
    """
    step = spare(aqm) if rate < 12 else {}
    sources = [_n(pair.classic, n, rtt_ms), _n(pair.l4s, n, rtt_ms)]
    batch = simulate(rate, sources, aqm, 30.0, run_s, **step)
    finish(batch)
    flow = batch.flow[0]
    packets = flow["received"].reshape(2, n).sum(1)
    marks = np.maximum(flow["marks"].reshape(2, n).sum(1) + flow["drops"].reshape(2, n).sum(1), 1)
    rtt = flow["rtt_sum_ns"].reshape(2, n).sum(1) / np.maximum(flow["rtt_count"].reshape(2, n).sum(1), 1) * 1e-9
    p = marks / np.maximum(packets, 1)
    per_flow = packets / run_s / n
    prague = pair.l4s["kind"] == "prague"
    x_l = per_flow[1] * max(rtt[1], PRAGUE_S if prague else 0.0) * p[1]
    x_c = per_flow[0] * rtt[0] * p[0] ** 0.5
    coupling = p[1] / (2.0 * p[0] ** 0.5)
    expected_s = 0.85e-3 * (rtt_ms + 15.0)
    small = per_flow[1] * rtt[1] < 3.0
    lag = f"L's window is {per_flow[1] * rtt[1]:.1f} packets and delayed ACKs stretch its RTT to {rtt[1] * 1e3:.0f} ms"
    swing = "p' swings with C's sawteeth" if coupling < 1.0 else "L's own ramp or step marks on top, bursts above all"
    factors = {
        lag if small else f"L's constant r vrtt p is {x_l:.2f}, not 2 (see the window laws)": x_l / 2.0,
        f"C's constant is {x_c:.2f}, not {pair.constant}": pair.constant / x_c,
        f"{swing}: p_L is {coupling:.2f} x 2 sqrt(p_C)": 1.0 / coupling,
        f"C's RTT is {rtt[0] * 1e3:.0f}, not {expected_s * 1e3:.0f} ms": rtt[0] / expected_s,
    }
    ranked = sorted(factors, key=lambda text: -abs(math.log(max(factors[text], 1e-9))))
    return float(per_flow[1] / per_flow[0]), "; ".join(ranked[:2])


def ratios(quick: bool) -> Iterator[Row]:
    """Compare section `ratio`: rates of L and C flows against each other, and over a grid of rates and round trips."""
    run_s = 30.0 if quick else 90.0
    for aqm in AQMS:
        for pair in PAIRS:
            for n, rate in ((5, 120),) if quick else ((5, 120), (1, 40)):
                for rtt_ms, (low, high) in zip(RTTS_MS, pair.rows, strict=True):
                    if quick and rtt_ms not in (10, 50):
                        continue
                    ratio, why = _ratio(pair, aqm, rate, rtt_ms, n, run_s)
                    target = f"{low:.2f}" if low == high else f"{low:.2f}..{high:.2f}"
                    yield judge("ratio", aqm, f"{n}:{n} {pair.name}, {rate} Mb/s, {rtt_ms} ms", "r_L / r_C",
                                f"{target} x/1.4", ratio, low / 1.4, high * 1.4, why)  # fmt: skip
    for aqm in () if quick else AQMS:
        for pair in (PAIRS[0], PACED, PAIRS[2]):
            for rate in (4, 12, 40, 120, 200):
                for rtt_ms in RTTS_MS:
                    ratio, why = _ratio(pair, aqm, rate, rtt_ms, 1, 70.0)
                    low, high = pair.grid
                    yield judge("grid", aqm, f"1:1 {pair.name}, {rate} Mb/s, {rtt_ms} ms", "r_L / r_C",
                                f"{low} .. {high}", ratio, low, high, why)  # fmt: skip


# -- utilisation


def utilisation(quick: bool) -> Iterator[Row]:
    """Compare section `utilisation`: at 40 Mb/s."""
    fluid: tuple[tuple[str, dict[str, Any], tuple[float, ...]], ...] = (
        ("Reno", RENO, (1.0, 1.0, 0.993, 0.912, 0.846)),
        ("AIMD(1, 0.7)", AIMD, (1.0, 1.0, 1.0, 0.991, 0.947)),
    )
    cases = [
        (f"1 {name}, {rtt_ms} ms", [_n(source, 1, rtt_ms)], target)
        for name, source, targets in fluid
        for rtt_ms, target in zip(RTTS_MS, targets, strict=True)
    ]
    for rtt_ms in (20, 50):
        cases += [
            (f"1 AIMD + 1 Prague, {rtt_ms} ms", [_n(AIMD, 1, rtt_ms), _n(PRAGUE, 1, rtt_ms)], 0.97),
            (f"1 CUBIC + 1 DCTCP, {rtt_ms} ms", [_n(CUBIC, 1, rtt_ms), _n(DCTCP, 1, rtt_ms)], 0.97),
            (f"5 CUBIC, {rtt_ms} ms", [_n(CUBIC, 5, rtt_ms)], 0.97),
            (f"1 Prague, {rtt_ms} ms", [_n(PRAGUE, 1, rtt_ms)], 0.95),
            (f"1 DCTCP, {rtt_ms} ms", [_n(DCTCP, 1, rtt_ms)], 0.95),
        ]
    for aqm in AQMS:
        for name, sources, target in cases[3::5] if quick else cases:
            result = finish(simulate(40, sources, aqm, 40.0, 60.0 if quick else 160.0))
            yield judge("utilisation", aqm, name, "utilisation", f">= {target:.3f} - 0.03", result["utilisation"],
                        target - 0.03)  # fmt: skip


# -- overload


def overload(quick: bool) -> Iterator[Row]:
    """Compare section `overload`: unresponsive senders at 1.5 times the capacity of 40 Mb/s, and below p' = 0.5."""
    cbr = {"kind": "cbr", "rtt_ms": 20}
    half = [{**cbr, "ecn": "ect1", "rate_mbps": 30.0}, {**cbr, "ecn": "not-ect", "rate_mbps": 30.0}]
    others = [_n(CUBIC, 2, 20), _n(PRAGUE, 2, 20)]
    cases = [
        ("ECT(1) CBR 1.5 x C", [{**cbr, "ecn": "ect1", "rate_mbps": 60.0}]),
        ("Not-ECT CBR 1.5 x C", [{**cbr, "ecn": "not-ect", "rate_mbps": 60.0}]),
        ("both, 0.75 x C each", half),
        ("ECT(1) CBR 1.5 x C + 2 CUBIC + 2 Prague", [{**cbr, "ecn": "ect1", "rate_mbps": 60.0}, *others]),
        ("Not-ECT CBR 1.5 x C + 2 CUBIC + 2 Prague", [{**cbr, "ecn": "not-ect", "rate_mbps": 60.0}, *others]),
    ]
    for aqm in AQMS:
        for name, sources in cases:
            batch = simulate(40, sources, aqm, 30.0, 30.0 if quick else 60.0)
            result, p = finish_watching(batch)
            mean_ms = float(batch.env["update_delay_ns"][0] / batch.env["updates"][0]) * 1e-6
            load = sum(int(q["offered_bytes"]) for q in batch.queue[0]) * 8e-6 / result["duration_s"]
            expected = 1.0 - 40.0 / load
            yield judge("overload", aqm, name, "drop rate", f"1 - C/load = {expected:.3f} +-3 %", result["drop_rate"],
                        0.97 * expected, 1.03 * expected)  # fmt: skip
            yield judge("overload", aqm, name, "mean p'", f"{expected**0.5:.3f} +-3 %", float(p.mean()),
                        0.97 * expected**0.5, 1.03 * expected**0.5)  # fmt: skip
            yield judge("overload", aqm, name, "larger delay, ms", "15 +-20 %", mean_ms, 12.0, 18.0)
            drops = [c["drop_rate"] for c in result["classes"].values() if c["offered"]]
            if len(drops) > 1:
                few = min(c["offered"] for c in result["classes"].values())
                why = "the responsive flows send in bursts, in slow start after timeouts, that raise p' themselves; "
                yield judge("overload", aqm, name, "drop rate C / L", "1 +-10 %", drops[0] / max(drops[1], 1e-9),
                            0.9, 1.1, f"{why}the smaller class has {few} packets")  # fmt: skip
        sources = [{**cbr, "ecn": "not-ect", "rate_mbps": 40.0}, *others]
        result, p = finish_watching(simulate(40, sources, aqm, 30.0, 30.0 if quick else 60.0))
        lost = sum(c["dropped_ect"] for c in result["classes"].values())
        yield judge("overload", aqm, "Not-ECT CBR 1 x C + 2 CUBIC + 2 Prague", f"ECT lost, p' <= {p.max():.2f}", "0",
                    lost, None, 0.0, "p' passes 0.5", judged=bool(p.max() < 0.5))  # fmt: skip


# -- report


def _print(row: Row) -> None:
    text = f"{row.section:<12}{row.discipline:<9}{row.case:<44}{row.quantity:<22}{row.target:<26}{row.measured:>9.3f}"
    print(f"{text}  {row.verdict}{'  ' + row.note if row.note else ''}", flush=True)


def main(quick: bool = False, out: Path | None = None) -> None:
    """Compare the simulator with the published laws.

    Args:
        quick: A selection that takes half a minute.
        out: JSON file (default: results/fidelity.json beside this script; none with --quick).
    """
    start = time.perf_counter()
    rows: list[Row] = []
    sections: dict[str, float] = {}
    for section in (window_laws, losses, controller, l_queue, ratios, utilisation, overload):
        began = time.perf_counter()
        for row in section(quick):
            rows.append(row)
            _print(row)
        sections[section.__name__] = round(time.perf_counter() - began, 1)
    counts = {
        name: {verdict: sum(row.section == name and row.verdict == verdict for row in rows) for verdict in VERDICTS}
        for name in dict.fromkeys(row.section for row in rows)
    }
    for name, count in counts.items():
        print(f"{name:<12}" + ", ".join(f"{number} {verdict}" for verdict, number in count.items()))
    print(f"{time.perf_counter() - start:.0f} s")
    target = out or (None if quick else Path(__file__).parent / "results" / "fidelity.json")
    if target is None:
        return
    report = {
        **origin(),
        "seeds": [SEED],
        "seconds": sections,
        "counts": counts,
        "rows": [asdict(row) for row in rows],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        file.write((json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    command_line(main)
