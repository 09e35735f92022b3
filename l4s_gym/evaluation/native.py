"""One run of a scenario: summary, time series for a picture, and the decision log."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from l4s_gym.agents.protocol import Agent, generators, policy_of
from l4s_gym.errors import L4SError
from l4s_gym.schema import ECT_1, RECORD
from l4s_gym.sim import layout, measure
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import Scenario

LOG_ROWS = 1 << 16
SAMPLES = np.dtype(
    [
        *[("time_s", "f8"), ("delay_ms", "f8", 2), ("packets", "i8", 2), ("prob", "f8"), ("served_mbps", "f8")],
        # Since the last sample, by class C and L (goodput: of Classic and of L4S flows).
        *[("marked", "i8", 2), ("dropped", "i8", 2), ("left", "i8", 2)],
        *[("left_delay_ns", "f8", 2), ("goodput_bytes", "i8", 2)],
    ]
)
_COUNTERS = ("marked", "dropped", "left", "left_delay_ns")


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        batch: The batch of one, at its end.
        summary: Figures after the warm-up.
        samples: (K,) `SAMPLES`, one every `sample_ms`.
        records: (T,) `schema.RECORD`; empty without a log.
    """

    batch: Batch
    summary: measure.Summary
    samples: npt.NDArray[np.void]
    records: npt.NDArray[np.void]


def _counts(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """What was counted since the counters were reset, by class C and L."""
    flow = batch.flow[0]
    scalable = flow["ecn"] == ECT_1
    goodput = [int(flow["goodput_bytes"][of].sum()) for of in (~scalable, scalable)]
    counts = {name: batch.queue[0][name].copy() for name in _COUNTERS}
    return {**counts, "goodput_bytes": np.array(goodput), "carried_bytes": np.array([batch.carried_bytes(0)])}


def _sample(batch: Batch, since: dict[str, npt.NDArray[Any]], sample_ms: float) -> npt.NDArray[np.void]:
    """The state, and what was counted since the last sample; (1,) `SAMPLES`."""
    env, queue = batch.env[0], batch.queue[0]
    sample = np.zeros(1, SAMPLES)
    counts = {name: value - since[name] for name, value in _counts(batch).items()}
    sample["time_s"] = env["now_ns"] * 1e-9
    sample["delay_ms"] = np.where(queue["class_packets"] > 0, queue["class_delay_ns"], 0) * 1e-6
    sample["packets"] = batch.queued(0, "packets")
    sample["prob"] = batch.base_probability(0)
    sample["served_mbps"] = float(counts.pop("carried_bytes")[0]) * 8e-6 / (sample_ms * 1e-3)
    for name, value in counts.items():
        sample[name] = value
    return sample


def simulate(
    scenario: Scenario,
    aqm: str | None = None,
    seed: int = 0,
    *,
    agent: Agent | None = None,
    decision_interval: int = 1,
    log: bool = False,
    sample_ms: float = 20.0,
    progress: Callable[[float], None] | None = None,
) -> Run:
    """Run a scenario, its queue discipline deciding by itself or an agent over it.

    Args:
        scenario: What to simulate.
        aqm: Discipline; None: the scenario's.
        seed: That of `reset(seed=)` of the environment: the same run.
        agent: Who decides; None: the discipline.
        decision_interval: Ask the agent at each n-th packet.
        log: Whether to keep the decision log (one row per packet offered).
        sample_ms: Distance of the samples.
        progress: Called with the share that is done, some hundred times.
    """
    if not 0.0 < sample_ms <= 1e6:
        raise L4SError(f"sample_ms={sample_ms}: give a positive number of milliseconds")
    policy = None if agent is None else policy_of(agent)
    decider = layout.NATIVE if agent is None else layout.AGENT if policy is None else layout.POLICY
    rows = LOG_ROWS if log else 0
    batch = Batch(scenario, aqm=aqm, decider=decider, interval=decision_interval, policy=policy, log_rows=rows)
    batch.reset(0, seeding.np_random(seed)[0])
    if agent is not None:
        agent.reset(1, seed)
    if policy is not None:
        batch.start_policy(generators(1, seed))
        batch.rule["left"] = layout.NEVER
    step_ns = round(sample_ms * 1e6)
    warmup_ns = round(min(scenario.warmup_s, scenario.horizon_s / 2) * 1e9)
    warm = False
    at = step_ns
    samples, since, reward = [], _counts(batch), np.zeros(1)
    parts: list[npt.NDArray[np.void]] = []
    batch.stop_at(0, at)
    while True:
        status = batch.advance_one()
        reward += batch.reward
        if status == layout.LOG_FULL:
            parts.append(batch.drain_log(0))
            continue
        if status == layout.DECISION and agent is not None:
            batch.action[:] = agent.act(batch.obs, reward)
            reward[:] = 0.0
            continue
        samples.append(_sample(batch, since, sample_ms))
        if status != layout.STOPPED:
            break
        if not warm and at >= warmup_ns:
            warm = True
            batch.reset_counters(0)
        since = _counts(batch)
        at += step_ns
        batch.stop_at(0, at)
        if progress is not None and len(samples) % 32 == 0:
            progress(at / batch.env[0]["horizon_ns"])
    if log:
        parts.append(batch.drain_log(0, everything=batch.discipline_of(0).decide_at_dequeue is None))
    records = np.concatenate(parts) if parts else np.zeros(0, RECORD)
    return Run(batch, measure.summary(batch, 0), np.concatenate(samples), records)


def picture(run: Run, title: str) -> bytes:
    """PNG of a run: delays, packets queued, probability, and the rate that is served."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise L4SError("the picture is drawn with matplotlib: pip install 'l4s-gym[report]'") from None
    figure = Figure(figsize=(10, 8), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.subplots(4, 1, sharex=True, height_ratios=[2, 1, 1, 1])
    s = run.samples
    for k, (name, color) in enumerate((("C", "tab:orange"), ("L", "tab:blue"))):
        axes[0].plot(s["time_s"], s["delay_ms"][:, k], color=color, lw=0.8, label=name)
        axes[1].plot(s["time_s"], s["packets"][:, k], color=color, lw=0.8)
    axes[0].set_ylabel("delay (ms)")
    axes[0].legend(loc="upper right", ncols=2)
    axes[0].set_title(title)
    axes[1].set_ylabel("packets")
    axes[2].plot(s["time_s"], s["prob"], color="tab:green", lw=0.8)
    axes[2].set_ylabel("probability")
    axes[3].plot(s["time_s"], s["served_mbps"], color="tab:gray", lw=0.6)
    axes[3].set_ylabel("served (Mbit/s)")
    axes[3].set_xlabel("time (s)")
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()
