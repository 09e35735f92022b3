"""One run of a scenario: summary, time series, packets, the decision log, and a picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from l4s_gym.agents.protocol import Agent, check_form, generators, policy_of
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.schema import CE, DROP, ECT_1, MARK, RECORD
from l4s_gym.sim import layout, measure
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario

LOG_ROWS = 1 << 16
SAMPLES = np.dtype(
    [
        *[("time_s", "f8"), ("delay_ms", "f8", 2), ("packets", "i8", 2), ("prob", "f8"), ("served_mbps", "f8")],
        # Since the last sample; `measured`: the summary counts it.
        *[("elapsed_s", "f8"), ("measured", "?"), ("capacity_bytes", "f8")],
        # By class C and L (goodput: of Classic and of L4S flows).
        *[("offered", "i8", 2), ("offered_bytes", "i8", 2), ("marked", "i8", 2), ("dropped", "i8", 2)],
        *[("left", "i8", 2), ("left_delay_ns", "f8", 2), ("p99_ms", "f8", 2), ("goodput_bytes", "i8", 2)],
    ]
)
_COUNTERS = ("offered", "offered_bytes", "marked", "dropped", "left", "left_delay_ns")
FLOW_SAMPLES = np.dtype(
    [("cwnd", "f8"), ("srtt_ns", "f8"), ("goodput_bytes", "i8"), ("marks", "i8"), ("drops", "i8")]  # the last 3: counts
)
_FLOW_COUNTERS = FLOW_SAMPLES.names[2:] if FLOW_SAMPLES.names else ()
PACKETS = np.dtype(
    [
        *[("time_us", "i8"), ("flow", "i4"), ("l4s", "?"), ("size_bytes", "i4")],
        *[("sojourn_ns", "i8"), ("marked", "?"), ("dropped", "?")],
    ]
)
PICTURES: Final = (".png", ".pdf", ".svg")
"""How the name of a picture may end."""


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        batch: The batch of one, at its end.
        summary: Figures after the warm-up.
        samples: (K,) `SAMPLES`, one every `sample_ms`; the first step may be shorter: one ends with the warm-up.
        records: (T,) `schema.RECORD`; empty without a log.
        flows: (K, F) `FLOW_SAMPLES`, at the same times.
        packets: (P,) `PACKETS`, one for each packet offered; `sojourn_ns` is below 0 where the packet has not left the
            queue. Empty unless asked for.
    """

    batch: Batch
    summary: measure.Summary
    samples: npt.NDArray[np.void]
    records: npt.NDArray[np.void]
    flows: npt.NDArray[np.void]
    packets: npt.NDArray[np.void]


def counts_of(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """What was counted since the counters were reset, by class C and L."""
    flow = batch.flow[0]
    scalable = flow["ecn"] == ECT_1
    goodput = [int(flow["goodput_bytes"][of].sum()) for of in (~scalable, scalable)]
    counts = {name: batch.queue[0][name].copy() for name in _COUNTERS}
    counts |= {f"flow {name}": flow[name].copy() for name in _FLOW_COUNTERS}
    sizes = {"carried_bytes": batch.carried_bytes(0), "capacity_bytes": batch.capacity_bytes(0)}
    counts |= {name: np.array([size]) for name, size in sizes.items()}
    return {**counts, "goodput_bytes": np.array(goodput), "hist": batch.hist[0].copy()}


def sample_of(
    batch: Batch, since: dict[str, npt.NDArray[Any]], since_ns: int
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """The state, and what was counted since the last sample: (1,) `SAMPLES`, (1, F) `FLOW_SAMPLES`."""
    env, queue, flow = batch.env[0], batch.queue[0], batch.flow[0]
    sample, flows = np.zeros(1, SAMPLES), np.zeros((1, len(flow)), FLOW_SAMPLES)
    counts = {name: value - since[name] for name, value in counts_of(batch).items()}
    elapsed_s = (int(env["now_ns"]) - since_ns) / 1e9
    sample["time_s"] = env["now_ns"] * 1e-9
    sample["elapsed_s"] = elapsed_s
    sample["delay_ms"] = np.where(queue["class_packets"] > 0, queue["class_delay_ns"], 0) * 1e-6
    sample["packets"] = batch.queued(0, "packets")
    sample["prob"] = batch.base_probability(0)
    sample["served_mbps"] = float(counts.pop("carried_bytes")[0]) * 8e-6 / elapsed_s if elapsed_s > 0.0 else 0.0
    sample["p99_ms"] = [measure.quantile(hist, 0.99) * 1e-6 for hist in counts.pop("hist")]
    flows["cwnd"], flows["srtt_ns"] = flow["cwnd"], flow["srtt_ns"]
    for name in _FLOW_COUNTERS:
        flows[name] = counts.pop(f"flow {name}")
    for name, value in counts.items():
        sample[name] = value
    return sample, flows


def _drain(batch: Batch, everything: bool) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Take the finished rows of the log, as records (T,) and as `PACKETS` (T,)."""
    sojourn_ns = batch.log_sojourns[0].copy()
    records = batch.drain_log(0, everything=everything)
    packets = np.zeros(len(records), PACKETS)
    packets["time_us"], packets["flow"] = records["time_us"], records["flow_id"]
    l4s = records["queue_type"] == 1 if batch.discipline_of(0).dual else np.isin(records["ecn"], (ECT_1, CE))
    packets["l4s"], packets["size_bytes"] = l4s, records["packet_length"]
    packets["sojourn_ns"] = sojourn_ns[: len(records)]
    packets["marked"] = records["applied_action"] == MARK
    packets["dropped"] = (records["applied_action"] == DROP) | (packets["sojourn_ns"] == layout.PUSHED_OUT)
    return records, packets


def simulate(
    scenario: Scenario,
    aqm: str | None = None,
    seed: int = 0,
    *,
    agent: Agent | None = None,
    decision_interval: int = 1,
    log: bool = False,
    packets: bool = False,
    sample_ms: float = 20.0,
    progress: Callable[[float], None] | None = None,
) -> Run:
    """Run a scenario, its queue discipline deciding by itself or an agent over it.

    Args:
        scenario: What to simulate.
        aqm: Discipline; None: the scenario's.
        seed: That of `reset(seed=)` of the environment: the same run.
        agent: Who decides, about packets; None: the discipline.
        decision_interval: Ask the agent at each n-th packet.
        log: Whether to keep the decision log (one row per packet offered).
        packets: Whether to keep what became of each packet.
        sample_ms: Distance of the samples.
        progress: Called with the share that is done, some hundred times.
    """
    if not 0.0 < sample_ms <= 1e6:
        raise L4SError(f"sample_ms={sample_ms}: give a positive number of milliseconds")
    if agent is not None:
        check_form(agent, PACKET)
    policy = None if agent is None else policy_of(agent)
    decider = layout.NATIVE if agent is None else layout.AGENT if policy is None else layout.POLICY
    rows = LOG_ROWS if log or packets else 0
    batch = Batch(scenario, aqm=aqm, decider=decider, interval=decision_interval, policy=policy, log_rows=rows)
    batch.reset(0, seeding.np_random(seed)[0])
    if agent is not None:
        agent.reset(1, seed)
    if policy is not None:
        batch.start_policy(generators(1, seed))
        batch.rule["left"] = layout.NEVER
    step_ns = round(sample_ms * 1e6)
    warmup_ns = batch.warmup_ns(0)
    warm = warmup_ns == 0
    at = warmup_ns % step_ns or step_ns
    since, since_ns, reward = counts_of(batch), 0, np.zeros(1)
    samples: list[tuple[npt.NDArray[np.void], npt.NDArray[np.void]]] = []
    records, kept = [np.zeros(0, RECORD)], [np.zeros(0, PACKETS)]

    def drain(everything: bool) -> None:
        for wanted, parts, found in zip((log, packets), (records, kept), _drain(batch, everything), strict=True):
            if wanted:
                parts.append(found)

    batch.stop_at(0, at)
    while True:
        status = batch.advance_one()
        reward += batch.reward
        if status == layout.LOG_FULL:
            drain(everything=False)
            continue
        if status == layout.DECISION and agent is not None:
            batch.action[:] = agent.act(batch.obs, reward)
            reward[:] = 0.0
            continue
        samples.append(sample_of(batch, since, since_ns))
        samples[-1][0]["measured"] = warm
        if status != layout.STOPPED:
            break
        if not warm and at >= warmup_ns:
            warm = True
            batch.reset_counters(0)
        since, since_ns = counts_of(batch), at
        at += step_ns
        batch.stop_at(0, at)
        if progress is not None and len(samples) % 32 == 0:
            progress(at / batch.env[0]["horizon_ns"])
    complete = batch.discipline_of(0).decide_at_dequeue is None
    if rows:
        drain(everything=complete)
    if packets and not complete:  # those still queued: not decided, so not in the log
        kept.append(_drain(batch, everything=True)[1])
    steps, flows = (np.concatenate(blocks) for blocks in zip(*samples, strict=True))
    summary = measure.summary(batch, 0)
    return Run(batch, summary, steps, np.concatenate(records), flows, np.concatenate(kept))


def mean_delay_ms(samples: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """Mean sojourn of the packets that left in each step, by class (K, 2); NaN where none did."""
    left = samples["left"]
    mean_ns = np.divide(samples["left_delay_ns"], left, out=np.full(left.shape, np.nan), where=left > 0)
    return np.asarray(mean_ns * 1e-6)


def picture(run: Run, title: str, kind: str = ".png") -> bytes:
    """Picture of a run: delay of C and of L on an axis each, marks and drops, base probability, rates.

    Args:
        run: The run.
        title: Of the picture.
        kind: One of `PICTURES`.
    """
    figure = optional("matplotlib.figure", "report").Figure(figsize=(10, 10), dpi=110, layout="constrained")
    axes: Any = figure.subplots(5, 1, sharex=True, height_ratios=[3, 3, 2, 2, 2])
    s = run.samples
    time_s, mean_ms = s["time_s"], mean_delay_ms(s)
    p99_ms = np.where(s["left"] > 0, s["p99_ms"], np.nan)
    per_s = 1.0 / np.maximum(s["elapsed_s"], 1e-9)[:, None]
    marks_per_s, drops_per_s, goodput_mbps = (
        s["marked"] * per_s,
        s["dropped"] * per_s,
        s["goodput_bytes"] * 8e-6 * per_s,
    )
    for k, (name, color) in enumerate((("C", "tab:orange"), ("L", "tab:blue"))):
        axes[k].plot(time_s, p99_ms[:, k], color=color, lw=0.8, alpha=0.4, label="99th percentile")
        axes[k].plot(time_s, mean_ms[:, k], color=color, lw=0.9, label="mean")
        axes[k].set_ylabel(f"{name} delay (ms)")
        axes[k].set_ylim(bottom=0.0)
        axes[2].plot(time_s, marks_per_s[:, k], color=color, lw=0.8, label=f"{name} marked")
        axes[2].plot(time_s, drops_per_s[:, k], color=color, lw=1.2, ls=":", label=f"{name} dropped")
        axes[4].plot(time_s, goodput_mbps[:, k], color=color, lw=0.8, label=f"goodput of {name} flows")
    axes[3].plot(time_s, s["prob"], color="tab:green", lw=0.8, label="base probability")
    axes[4].plot(time_s, s["served_mbps"], color="tab:gray", lw=0.8, label="link", zorder=1)
    for panel, label in zip(axes[2:], ("packets/s", "probability", "rate (Mbit/s)"), strict=True):
        panel.set_ylabel(label)
    for panel in axes:
        panel.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=4, fontsize="small", frameon=False)
    axes[0].set_title(title, loc="left")
    axes[4].set_xlabel("time (s)")
    buffer = io.BytesIO()
    dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # none, so that a run's picture is the same again
    figure.savefig(buffer, format=kind.removeprefix("."), metadata=dates.get(kind))
    return buffer.getvalue()
