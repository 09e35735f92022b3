"""From a scenario to the engine's records: units, defaults of the disciplines, sizes of the arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym.errors import L4SError
from l4s_gym.schema import ECT_0, ECT_1, NOT_ECT
from l4s_gym.sim import congestion, disciplines, layout, options, prague, slowstart, traces
from l4s_gym.sim.control import LARGE, CongestionControl
from l4s_gym.sim.discipline import Discipline, Path
from l4s_gym.sim.layout import NEVER
from l4s_gym.sim.router import CARDS, RING
from l4s_gym.sim.scenario import Scenario, Source

ENDLESS = 1 << 30
"""Segments of an endless transfer (an hour at 3 Gbit/s); segment numbers are 32 bits wide."""
_ECN = {"not-ect": NOT_ECT, "ect0": ECT_0, "ect1": ECT_1}
REFERENCE_NS = (15e6, 1e6)
"""Reference delays of C and L in the rewards: DualPI2's target, and its L step (RFC 9332)."""
_LINKS = {"constant": layout.CONSTANT, "trace": layout.TRACE, "tick": layout.TICK, "dummynet": layout.DUMMYNET}
_TICKING = ("tick", "dummynet")
MOST_PACKETS = 1 << 24
"""Largest packet pool, 1 GiB an environment."""


@dataclass(frozen=True)
class Sizes:
    """Array sizes that hold every episode of a scenario: flows, packets, window, leaves of the tree."""

    flows: int
    packets: int
    window: int
    leaves: int


def _power_of_two(number: float) -> int:
    return 1 << max(math.ceil(math.log2(max(number, 2.0))), 1)


def longest_packet(scenario: Scenario) -> int:
    """Return the length of the longest packets that the sources send, bytes (a buffer in packets holds these)."""
    return max(source.packet_length for source in scenario.sources)


def buffer_bytes(scenario: Scenario) -> float:
    """Return the size of the buffer, bytes."""
    if scenario.link.limit_packets:
        return float(scenario.link.limit_packets * longest_packet(scenario))
    return max(scenario.link.buffer_ms * mean_rate_bps(scenario) / 8e3, 2.0 * max(longest_packet(scenario), 1500))


def mean_rate_bps(scenario: Scenario) -> float:
    """Return rate of the link, bit/s (of a trace: its mean)."""
    if scenario.link.kind != "trace":
        return scenario.link.rate_mbps * 1e6
    rate = traces.load(scenario.link.trace).mean_bps
    if not layout.LEAST_MBPS * 1e6 <= rate <= layout.MOST_MBPS * 1e6:
        raise L4SError(
            f"scenario {scenario.name!r}: link.trace: {scenario.link.trace} has a mean of {rate * 1e-6:g} Mbit/s; "
            f"a link has {layout.LEAST_MBPS:g} to {layout.MOST_MBPS:.0f} (56 kbit/s to 400 Gbit/s)"
        )
    return rate


def path_bytes(scenario: Scenario) -> float:
    """Return the most bytes that the path holds, without the buffer."""
    link = scenario.link
    rtt_s = max(source.rtt_ms for source in scenario.sources) * 1e-3
    peak = max([1.0, *(factor for _, factor in link.steps)]) * mean_rate_bps(scenario)
    if link.kind == "trace":
        peak = traces.load(link.trace).peak_bps
        rtt_s = max(rtt_s, traces.PEAK_S)
    if link.kind in _TICKING:
        rtt_s += 8.0 / link.hz
    if link.kind == "dummynet":
        rtt_s += 4e-3 * link.pipe_delay_ms
    return peak * rtt_s / 8.0


def receive_window(scenario: Scenario, source: Source) -> int:
    """Return the receive window of a flow, packets of its own length: a quarter more than path and buffer hold."""
    path_and_buffer = path_bytes(scenario) + buffer_bytes(scenario)
    return source.receive_window or math.ceil(1.25 * path_and_buffer / source.packet_length) + 32


def sizes(scenario: Scenario) -> Sizes:
    """Return array sizes for a scenario."""
    large = scenario.largest()
    flows = large.n_flows
    windows = [max(receive_window(large, source), source.largest_window) for source in large.sources]
    window = max(windows)
    # ACKs may be short: count path and buffer in the shortest packets.
    shortest = min(52 if large.link.acks_in_queue else source.packet_length for source in large.sources)
    stored = int(buffer_bytes(large) / shortest) if not large.link.limit_packets else large.link.limit_packets
    in_path = 4 * math.ceil(path_bytes(large) / min(source.packet_length for source in large.sources)) + 64 * flows
    pairs = zip(large.sources, windows, strict=True)
    in_windows = sum(2 * size * source.count for source, size in pairs)
    packets = stored + in_path + 256
    if all(source.kind not in ("cbr", "onoff") for source in large.sources):  # these have no window
        packets = min(packets, stored + 2 * in_windows + 64 * flows + 256)
    if large.link.kind == "dummynet":
        packets += CARDS * RING + math.ceil((path_bytes(large) + buffer_bytes(large)) / longest_packet(large))
    if packets > MOST_PACKETS:
        raise L4SError(
            f"scenario {scenario.name!r}: path and buffer hold up to {packets} packets, more than {MOST_PACKETS}; "
            "lower rate, RTT or buffer, or set receive_window"
        )
    return Sizes(flows, packets, _power_of_two(window + 1), _power_of_two(layout.SLOT_FLOWS + 2 * flows))


def largest(several: Sequence[Sizes]) -> Sizes:
    """Return array sizes that hold each of several scenarios."""
    return Sizes(*(max(numbers) for numbers in zip(*(astuple(sizes) for sizes in several), strict=True)))


def aqm_fields(scenario: Scenario, aqm: str) -> dict[str, Any]:
    """Return the values of a discipline's own fields; the log shows the testbed's values for fields that it lacks."""
    discipline = disciplines.get(aqm)
    chosen = options.of(scenario.options, discipline, disciplines.is_plugged(aqm))
    path = Path(mean_rate_bps(scenario), longest_packet(scenario), buffer_bytes(scenario))
    try:
        own = discipline.setup(chosen, path)
    except L4SError as error:
        raise L4SError(f"scenario {scenario.name!r}: options.{discipline.name}.{error}") from None
    shown = {"max_burst_us": 150_000, "max_ecn_threshold": 819, "flags": 19, "tupdate_us": 16_000, "target_us": 15_000}
    return {**shown, **own}


def _source_fields(scenario: Scenario, source: Source) -> dict[str, Any]:
    """Return the flow record of a source."""
    unresponsive = source.kind in ("cbr", "onoff")
    cc = "none" if unresponsive else (source.cc if source.kind == "web" else source.kind)
    control = CongestionControl(cc) if unresponsive else congestion.find(cc)
    if source.freebsd and ":" in cc:
        raise L4SError(f"scenario {scenario.name!r}: {cc}: FreeBSD's stack has no such sender: leave freebsd out")
    scalable = control.scalable
    beta = source.beta or control.beta
    default_ecn = "ect1" if scalable else ("not-ect" if unresponsive else "ect0")
    accurate = scalable if not source.echo else source.echo == "accurate"
    crossings = scenario.link.passes * (2 if scenario.link.acks_in_queue else 1)
    if scenario.link.kind == "dummynet":  # between two crossings a packet stays in the router
        crossings = 2 if scenario.link.acks_in_queue else 1
    finite = source.transfer_bytes >= 0 and not unresponsive and source.kind != "web"
    low, high = source.size_bytes
    return {
        "app": {"cbr": layout.CBR, "onoff": layout.ONOFF, "web": layout.WEB}.get(source.kind, layout.BULK),
        "cc": congestion.OWN if ":" in cc else layout.CCS.index(cc),
        "law_at": congestion.law_at(cc),
        "scalable": int(scalable),
        "ecn": _ECN[source.ecn or default_ecn],
        "accurate": int(accurate),
        "ect_resent": int(control.ect_resent),
        "paced": int(control.paced if source.paced is None else source.paced),
        "holds": int(control.holds and not source.freebsd if source.holds is None else source.holds),
        "variant": prague.VARIANTS.index(source.variant),
        "shrinks": int(not finite and source.kind != "web"),
        "slow_start": slowstart.KINDS.index(
            source.slow_start or ("standard" if source.freebsd else control.slow_start)
        ),
        "hop_ns": round(source.rtt_ms * 1e6 / crossings),
        "jitter_ns": round(source.jitter_us * 1e3),
        "mss": source.packet_length,
        "packet_len": source.packet_length,
        "ack_every": source.ack_every or (1 if cc == "prague" and source.variant == "udp" else 2),
        "delack_ns": round(source.delayed_ack_ms * 1e6),
        "rwnd": receive_window(scenario, source),
        "min_rto_ns": round(source.min_rto_ms * 1e6),
        "slop_ns": round(source.rto_slop_ms * 1e6),
        "sack_length": source.sack_length,
        "card": source.card,
        "freebsd": int(source.freebsd and control.freebsd),
        "largest_rwnd": source.largest_window,
        "initial_ssthresh": source.initial_threshold or LARGE,
        "initial_window": source.initial_window,
        "rate_bps": source.rate_mbps * 1e6,
        "mean_on_ns": source.on_s * 1e9,
        "mean_off_ns": source.off_s * 1e9,
        "size_shape": source.size_shape,
        "size_min": float(source.transfer_bytes if finite else low),
        "size_max": float(high),
        "finite": int(finite),
        "slope_one": int(source.slope_one),
        "beta": beta,
        "beta_ecn": source.beta_ecn or beta,
        "cubic_c": 0.4,
        "friendly": source.friendly or 3.0 * (1.0 - beta) / (1.0 + beta),
        "gain": 1.0 / 16.0,
        "limit_seq": ENDLESS,
        "last_len": source.packet_length,
        "start_ns": round(source.start_s * 1e9),
    }


def _fill(record: Any, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        record[name] = value


class Template(NamedTuple):
    """Records of a new episode, and the stagger of each flow's start.

    Attributes:
        env: (1,) `layout.ENV`.
        queue: (Q,) `layout.QUEUE`.
        own: (1,) the discipline's own record.
        own_queue: (Q,) the discipline's own records of the queues.
        flow: (F,) `layout.FLOW`.
        stagger_ns: (F,).
    """

    env: npt.NDArray[np.void]
    queue: npt.NDArray[np.void]
    own: npt.NDArray[np.void]
    own_queue: npt.NDArray[np.void]
    flow: npt.NDArray[np.void]
    stagger_ns: npt.NDArray[np.float64]


def n_queues(discipline: Discipline, n_flows: int) -> int:
    """Return the number of queues: C and L, and perhaps one for each flow and one for its ACKs."""
    return 2 + 2 * n_flows if discipline.flow_queues else 2


def own_sizes(discipline: Discipline, n_flows: int) -> tuple[int, int, int]:
    """Return the number of queues, bytes of the discipline's own record, and bytes of its record of a queue."""
    queues, kinds = n_queues(discipline, n_flows), discipline.records
    return queues, kinds.env.itemsize, queues * kinds.queue.itemsize


def build(scenario: Scenario, aqm: str, n_flows: int) -> Template:
    """Build the records of a new episode.

    Args:
        scenario: The scenario of the episode (already sampled).
        aqm: Name of the discipline.
        n_flows: Rows of the flow array.
    """
    discipline = disciplines.get(aqm)
    link = scenario.link
    rate = mean_rate_bps(scenario)
    env = np.zeros(1, layout.ENV)
    queues = n_queues(discipline, n_flows)
    trace = traces.load(link.trace) if link.kind == "trace" else None
    limit_packets = link.limit_packets
    if discipline.most_packets and not limit_packets:
        stored = math.ceil(buffer_bytes(scenario) / longest_packet(scenario))
        limit_packets = min(discipline.most_packets, max(stored, 2))
    schedule = isinstance(trace, traces.Schedule)
    finite = [s.transfer_bytes >= 0 and s.kind not in ("cbr", "onoff", "web") for s in scenario.sources]
    _fill(
        env[0],
        {
            "horizon_ns": round(scenario.horizon_s * 1e9),
            "n_flows": n_flows,
            "finite": int(all(f for f, s in zip(finite, scenario.sources, strict=True) if s.count)),
            "unfinished": sum(s.count for f, s in zip(finite, scenario.sources, strict=True) if f),
            "arriving": -1,
            "sending": -1,
            "free": -1,
            "interval": 1,
            "link": layout.CONSTANT if schedule else _LINKS[link.kind],
            "rate_bps": rate,
            "base_rate_bps": rate,
            "ns_per_byte": 8e9 / rate,
            "used_ns": -1.0,
            "sending_packet": -1,
            "link_at": NEVER,
            "tick_ns": round(1e9 / link.hz) if link.kind in _TICKING else 0,
            "pipe_ns": math.ceil(link.pipe_delay_ms * link.hz / 1000) * round(1e9 / link.hz),
            "row_ns": round(link.row_ms * 1e6),
            "slice_ns": round(link.slice_ms * 1e6),
            "pause_ns": round(link.pause_ms * 1e6),
            "pause_gap_ns": round(link.pause_gap_ms * 1e6),
            "pause_at": NEVER if link.pause_ms == 0.0 else -1,
            "idle_at": -1,
            "list_head": -1,
            "list_tail": -1,
            "n_queues": queues,
            "queue_timers": int(discipline.queue_timers),
            "passes": link.passes,
            "acks_queued": int(link.acks_in_queue),
            "trace_len": len(trace) if trace else len(link.steps),
            "trace_period_ns": trace.period_ns if trace else 0,
            "aqm": disciplines.number_of(discipline),
            "dual": int(discipline.dual),
            "limit_packets": limit_packets,
            "limit_bytes": 0 if limit_packets else round(buffer_bytes(scenario)),
            "per_ref_c": 1.0 / REFERENCE_NS[0],
            "per_ref_l": 1.0 / REFERENCE_NS[1],
            "s_per_byte": 8.0 / rate,
            "evenness": 1.0,
            "bucket_end_ns": min(layout.BUCKET_NS, round(scenario.horizon_s * 1e9)),
        },
    )
    queue = np.zeros(queues, layout.QUEUE)
    queue["head"] = queue["tail"] = -1
    own, own_queue = np.zeros(1, discipline.records.env), np.zeros(queues, discipline.records.queue)
    for name, value in aqm_fields(scenario, aqm).items():
        next(each for each in (own, own_queue, env) if name in (each.dtype.names or ()))[name] = value
    flow = np.zeros(n_flows, layout.FLOW)
    for name in ("rto_at", "delack_at", "pace_at", "app_at"):
        flow[name] = NEVER
    for name in ("transit_head", "transit_tail", "sack1", "sack2", "sack3"):
        flow[name] = -1
    stagger = np.zeros(n_flows)
    row = 0
    for source in scenario.sources:
        if source.count:
            _fill(flow[row], _source_fields(scenario, source))
            flow["app_at"][row] = flow["start_ns"][row]
            flow[row : row + source.count] = flow[row]
            stagger[row : row + source.count] = source.stagger_s * 1e9
            row += source.count
    return Template(env, queue, own, own_queue, flow, stagger)


def trace_array(scenario: Scenario) -> npt.NDArray[np.int64]:
    """Return the array that the engine reads as `trace`.

    Delivery opportunities; or pairs of time in ns and rate: in bit/s for a trace, as a factor in 1e-6 for `link.steps`.
    """
    if scenario.link.kind == "trace":
        trace = traces.load(scenario.link.trace)
        if isinstance(trace, traces.Trace):
            return trace.opportunities_ns
        return np.column_stack([trace.starts_ns, trace.rates_bps]).ravel()
    pairs = [(round(time * 1e9), round(factor * 1e6)) for time, factor in scenario.link.steps]
    return np.array(pairs or [(0, 0)], np.int64).ravel()
