"""Find out why a testbed marks no packets: checks of rows, of a live queue's counters, and of this machine's settings.

Each check says what it saw and what to do about it, or `unknown` if it cannot tell. Rows come from a live queue or from
any log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from l4s_gym.bridge import wire
from l4s_gym.bridge.client import Client
from l4s_gym.bridge.wire import Hello, Status
from l4s_gym.data.steps import applied_actions
from l4s_gym.data.stream import Records, join
from l4s_gym.schema import BY_NAME, CE, DROP, ECT_1, L4S, MARK, MAX_PROB, NOT_ECT

Verdict = Literal["ok", "warn", "fail", "unknown"]

MOST_ROWS: Final = 2_000_000
"""Largest number of rows that are checked."""
LONGEST: Final = 1514
"""Bytes of the longest packet on an Ethernet with an MTU of 1500 B, including the header that some kernels count."""
_FEW: Final = 50
_FLAG_ECN: Final = 1
_MANY_DROPS: Final = 0.1
"""Share of the packets; nine flows on the testbed's 8 Mbit/s lose 7 %."""
_OVERLOAD: Final = 0.2
_RARE: Final = 12
_CHANCE: Final = 1e-4


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes:
        name: Of the check.
        verdict: ok, warn, fail, or unknown where there is not enough evidence.
        seen: What was seen.
        remedy: What to do about it; empty where nothing is to be done.
    """

    name: str
    verdict: Verdict
    seen: str
    remedy: str = ""


@dataclass(frozen=True)
class Evidence:
    """Rows (T,), and the names of the fields that their source bears."""

    records: Records
    present: frozenset[str]

    def __len__(self) -> int:
        return len(self.records)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "none"


def watch(
    client: Client,
    seconds: float,
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Evidence:
    """Read the rows of a live queue for some seconds; if it is restarted meanwhile, those since the restart."""
    client.subscribe(True)
    started, count = clock(), 0
    parts: list[Records] = []
    while (passed := clock() - started) < seconds and count < MOST_ROWS:
        entries = client.entries(min(seconds - passed, 0.2))
        hellos = np.flatnonzero(entries["kind"] == wire.HELLO)
        if len(hellos):
            parts, count = [], 0
            entries = wire.take(entries, np.arange(len(entries)) > hellos[-1])
        parts.append(wire.records_of(wire.select(entries, wire.ROW)))
        count += len(parts[-1])
        if progress is not None:
            progress(passed / seconds)
    client.subscribe(False)
    return Evidence(join(parts), frozenset(BY_NAME))


# -- checks of rows


def check_traffic(e: Evidence) -> Finding:
    """Are packets offered to the queue at all?"""
    if not len(e):
        remedy = "send traffic through it: see routes, and that the rule (ipfw show) or the router's devices match it"
        return Finding("traffic", "fail", "no packet was offered to the queue", remedy)
    verdict: Verdict = "ok" if len(e) >= _FEW else "warn"
    remedy = "" if verdict == "ok" else "watch for longer, or send more: the other checks need rows"
    return Finding("traffic", verdict, f"{len(e)} packets", remedy)


def check_marks(e: Evidence) -> Finding:
    """Does the queue mark?"""
    if len(e) < _FEW:
        return Finding("marks", "unknown", f"{len(e)} rows")
    marks = int((applied_actions(e.records, e.present) == MARK).sum())
    if marks:
        return Finding("marks", "ok", f"{_share(marks, len(e))} marked")
    return Finding("marks", "fail", f"none of {len(e)} packets was marked", "see the other checks for the reason")


def check_ecn(e: Evidence) -> Finding:
    """Do senders use ECN?"""
    remedy = "switch ECN on at both ends: sysctl net.ipv4.tcp_ecn=1 (Linux), net.inet.tcp.ecn.enable=1 (FreeBSD)"
    if "ecn" not in e.present:
        return Finding("ECN", "unknown", "the rows do not tell the codepoints: record them (l4s-gym live record)")
    data = e.records["packet_length"] >= 576  # pure acknowledgments are Not-ECT in classic ECN
    if int(data.sum()) < _FEW:
        return Finding("ECN", "unknown", f"{int(data.sum())} packets of data")
    ect = int((e.records["ecn"][data] != NOT_ECT).sum())
    seen = f"{_share(ect, int(data.sum()))} of the data packets are ECN-capable"
    return Finding("ECN", "ok" if ect else "fail", seen, "" if ect else remedy)


def check_aqm_ecn(e: Evidence) -> Finding:
    """Is the law allowed to mark?"""
    if not {"flags", "max_ecn_threshold"} <= e.present or not len(e):
        return Finding("marking allowed", "unknown", "the rows do not tell the flags of the queue")
    if not (e.records["flags"] & _FLAG_ECN).any():
        return Finding("marking allowed", "fail", "the queue's flags say: no ECN", "set flag 1 (ecn) of the scheduler")
    if "ecn" not in e.present:
        return Finding("marking allowed", "ok", "the flags allow it")
    high = e.records["drop_probability"] >= e.records["max_ecn_threshold"].astype(np.int64) * (MAX_PROB // 8192)
    drops = int(((e.records["action"] == DROP) & high & (e.records["ecn"] != NOT_ECT)).sum())
    seen = f"{_share(drops, len(e))} were ECN-capable, and dropped because of max_ecn_threshold"
    if drops > len(e) // 20 and not (applied_actions(e.records, e.present) == MARK).any():
        return Finding("marking allowed", "fail", seen, "offer less load, or raise max_ecn_threshold")
    return Finding("marking allowed", "ok", seen if drops else "the flags allow it")


def check_ect1(e: Evidence) -> Finding:
    """Is there anything in ECT(1)?"""
    if "ecn" not in e.present:
        return Finding("ECT(1)", "unknown", "the rows do not tell the codepoints: record them (l4s-gym live record)")
    if len(e) < _FEW:
        return Finding("ECT(1)", "unknown", f"{len(e)} rows")
    count = int((e.records["ecn"] == ECT_1).sum())
    if count:
        return Finding("ECT(1)", "ok", f"{_share(count, len(e))} packets")
    remedy = "start a scalable sender: DCTCP with net.inet.tcp.cc.dctcp.ect1=1 (FreeBSD), TCP or UDP Prague"
    return Finding("ECT(1)", "fail", "no packet is ECT(1): L4S traffic is missing", remedy)


def check_l_queue(e: Evidence) -> Finding:
    """Is queue L used?"""
    if len(e) < _FEW:
        return Finding("queue L", "unknown", f"{len(e)} rows")
    in_l = e.records["queue_type"] == L4S
    if in_l.any():
        return Finding("queue L", "ok", f"{_share(int(in_l.sum()), len(e))} packets")
    if "ecn" in e.present and (e.records["ecn"] == ECT_1).any():
        return Finding("queue L", "fail", "ECT(1) packets go to C", "use a dual queue: sched type l4s, not another one")
    remedy = "send ECT(1), and see that no device on the way clears the ECN field"
    return Finding("queue L", "fail", "all packets go to C", remedy)


def check_offloads(e: Evidence) -> Finding:
    """Are offloads off: do packets arrive as they were on the wire?"""
    if "packet_length" not in e.present or not len(e):
        return Finding("offloads", "unknown", "the rows do not tell the length of the packets")
    long = int((e.records["packet_length"] > LONGEST).sum())
    if not long:
        return Finding("offloads", "ok", f"no packet is longer than {int(e.records['packet_length'].max())} B")
    remedy = (
        "switch offloads off on hosts and router: ethtool -K IF gro off gso off tso off lro off (Linux), "
        "ifconfig IF -tso -lro -txcsum -rxcsum (FreeBSD)"
    )
    seen = f"{_share(long, len(e))} packets are longer than {LONGEST} B, up to {int(e.records['packet_length'].max())}"
    return Finding("offloads", "fail", seen, remedy)


def check_bottleneck(e: Evidence) -> Finding:
    """Is this queue the bottleneck: do packets wait in it?"""
    if len(e) < _FEW:
        return Finding("bottleneck", "unknown", f"{len(e)} rows")
    records = e.records
    standing = float((records["length_in_bytes"] > 0).mean())
    probability = int(records["drop_probability"].max()) / MAX_PROB
    delay_ms = float(np.quantile(records["current_queue_delay"], 0.95)) * 1e-3
    target_ms = float(records["qdelay_ref"].max()) * 1e-3 if "qdelay_ref" in e.present else 15.0
    seen = (
        f"{100 * standing:.0f} % of the packets found a queue, 95 % of the delays are up to {delay_ms:.1f} ms "
        f"(target {target_ms:g}), probability up to {100 * probability:.2g} %"
    )
    if probability > 0:
        return Finding("bottleneck", "ok", seen)
    if standing < 0.05:
        remedy = "the queue never stands: set the pipe's bandwidth below that of every other link on the way"
        return Finding("bottleneck", "fail", seen, remedy)
    if delay_ms < target_ms / 2:
        remedy = "delays stay far below the target: offer more load (more flows, larger windows), or a slower pipe"
        return Finding("bottleneck", "fail", seen, remedy)
    remedy = "the law does not answer to the delay: see its parameters (alpha, beta, tupdate), watch for longer"
    return Finding("bottleneck", "warn", seen, remedy)


def _dropped(e: Evidence) -> tuple[int, int]:
    """Return packets dropped and packets offered, from the queues' counters, which include drops of a full buffer."""
    actions = applied_actions(e.records, e.present)
    found = int((actions == DROP).sum()), len(e)
    if not {"queue_type", "total_drops", "total_packets"} <= e.present:
        return found
    counts = [0, 0]
    for queue in (0, 1):
        records = e.records[e.records["queue_type"] == queue]
        for place, name in enumerate(("total_drops", "total_packets")):
            steps = np.diff(records[name].astype(np.int64))
            counts[place] += int(steps[steps > 0].sum())  # a queue that was started anew counts from 0
    return max(found, (counts[0], counts[1]), key=lambda pair: pair[0] / max(pair[1], 1))


def check_overload(e: Evidence) -> Finding:
    """Do the senders slow down, or are they unresponsive, so that the queue drops the excess?"""
    if len(e) < _FEW:
        return Finding("overload", "unknown", f"{len(e)} rows")
    drops, offered = _dropped(e)
    delay_ms = float(np.median(e.records["current_queue_delay"])) * 1e-3
    seen = f"{_share(drops, offered)} dropped, delay {delay_ms:.1f} ms at the median"
    share = drops / max(offered, 1)
    if share < _MANY_DROPS:
        return Finding("overload", "ok", seen)
    remedy = (
        "more comes than the link carries, and marks do not slow it down: offer less, or give the link a higher rate"
    )
    return Finding("overload", "fail" if share >= _OVERLOAD else "warn", seen, remedy)


def check_hz(e: Evidence) -> Finding:
    """Is the clock fine enough?"""
    delays = e.records["current_queue_delay"].astype(np.int64)
    delays = delays[delays > 0]
    if len(delays) < _FEW:
        return Finding("clock", "unknown", f"{len(delays)} delays above 0")
    ticks: tuple[tuple[int, Verdict], ...] = ((10_000, "fail"), (1_000, "warn"))
    for tick_us, verdict in ticks:
        off = np.minimum(delays % tick_us, tick_us - delays % tick_us)
        if float((off <= 2).mean()) >= 0.99:
            seen = f"the delays are multiples of {tick_us // 1000} ms: the clock moves at {1_000_000 // tick_us} Hz"
            remedy = "set kern.hz=1000 or more in /boot/loader.conf, or tick_ns=0 for stamps finer than a tick"
            return Finding("clock", verdict, seen, remedy)
    return Finding("clock", "ok", f"delays step finer than 1 ms ({int(np.median(delays))} us at the median)")


ONCE: Final = (
    "match each packet once, where it leaves: `ipfw add queue 1 ip from any to any out recv IF1 xmit IF2`, "
    "not `ip from any to any`"
)


def check_twice(e: Evidence) -> Finding:
    """Is each packet offered more than once?

    Two signs are sound. A packet that this queue marked, and that comes back, comes as CE: where nothing upstream
    marks, CE on arrival is the second pass. And what is offered twice is counted twice: lengths that are rare in a flow
    then have even counts. (That a flow's pattern comes again is no sign: acknowledgments clock it so every round trip.)
    """
    by_ce = _twice_by_ce(e)
    by_length = _twice_by_length(e)
    for verdict in ("fail", "ok", "warn"):
        for finding in (by_ce, by_length):
            if finding.verdict == verdict:
                return finding
    return Finding("offered twice", "unknown", f"{by_ce.seen}; {by_length.seen}")


def _twice_by_ce(e: Evidence) -> Finding:
    name = "offered twice"
    if "ecn" not in e.present:
        return Finding(name, "unknown", "the rows do not tell the codepoints")
    ce = e.records["ecn"] == CE
    marks = (applied_actions(e.records, e.present) == MARK) & ~ce
    count, marked = int(ce.sum()), int(marks.sum())
    if marked < 10:
        seen = f"only {marked} marks"
        return Finding(name, "warn" if count else "unknown", seen + (f", and {count} CE on arrival" if count else ""))
    if not count:
        return Finding(name, "ok", f"{marked} packets were marked, and none comes back as CE")
    seen = f"{marked} packets were marked, and {count} come as CE"
    if count >= 0.1 * marked:
        return Finding(name, "fail", seen, f"{ONCE}; or another queue on the way marks, too")
    return Finding(name, "warn", seen, "another queue on the way marks, too: is it meant to?")


def _twice_by_length(e: Evidence) -> Finding:
    name = "offered twice"
    if "packet_length" not in e.present:
        return Finding(name, "unknown", "the rows do not tell the length of the packets")
    flow = e.records["flow_id"] if "flow_id" in e.present else np.zeros(len(e), np.uint32)
    key = flow.astype(np.int64) << 16 | e.records["packet_length"]
    _, counts = np.unique(key, return_counts=True)
    rare = counts[counts <= _RARE]
    even = int((rare % 2 == 0).sum())
    seen = f"{even} of {len(rare)} rare lengths come an even number of times"
    # By chance as many would be even with this probability, at one half each.
    chance = sum(math.comb(len(rare), k) for k in range(even, len(rare) + 1)) / 2 ** len(rare)
    if chance < _CHANCE and even >= 0.8 * len(rare):
        return Finding(name, "fail", seen, ONCE)
    if len(rare) >= 20 and even <= 0.6 * len(rare):
        return Finding(name, "ok", seen)
    return Finding(name, "unknown", seen)


ROW_CHECKS: Final[tuple[Callable[[Evidence], Finding], ...]] = (
    check_traffic,
    check_marks,
    check_ecn,
    check_aqm_ecn,
    check_ect1,
    check_l_queue,
    check_offloads,
    check_bottleneck,
    check_overload,
    check_hz,
    check_twice,
)


# -- checks of a live queue


def check_lost(e: Evidence, lost: int | None = None) -> Finding:
    """Did all rows come? A live queue tells what was `lost`; of a log the numbers tell."""
    if lost == 0:
        return Finding("rows", "ok", "none was lost")
    if lost is not None:
        seen = f"{lost} rows were lost on the way: the figures here are of the others"
        return Finding("rows", "warn", seen, "a reader is too slow: record to a fast disk, or give it a processor")
    if "sequence" not in e.present or len(e) < 2 or not e.records["sequence"].any():
        return Finding("rows", "unknown", "the rows are not numbered")
    sequence = np.sort(e.records["sequence"].astype(np.int64))
    gaps = int(np.maximum(np.diff(sequence) - 1, 0).sum())
    if gaps > 0:
        return Finding("rows", "warn", f"{gaps} rows are missing", "the log was cut or rotated: give all its parts")
    return Finding("rows", "ok", "none is missing")


def check_control(status: Status) -> Finding:
    """Who decides?"""
    held = [name for name, holds in zip("CL", status.held, strict=True) if holds]
    if held:
        remedy = "the agent breaks the bounds: see its delays and drops, or set others (shield_* of the queue)"
        return Finding("controller", "fail", f"the shield holds {' and '.join(held)}", remedy)
    if sum(status.trips):
        return Finding("controller", "warn", f"the shield took a queue back {sum(status.trips)} times", "see the agent")
    if status.interval and not status.model:
        asked = sum(status.agent) + sum(status.fallback)
        late = sum(status.fallback)
        if asked >= _FEW and late > 0.1 * asked:
            seen = f"{_share(late, asked)} asks were not answered in time, p99 {status.latency_p99_us} us"
            return Finding("controller", "warn", seen, "ask less often (--decision-interval 10), or use a faster agent")
        return Finding("controller", "ok", f"an agent controls, asked about each {status.interval}. packet")
    return Finding("controller", "ok", "a loaded model decides" if status.model else "nobody: the native law decides")


def check_rate(hello: Hello, e: Evidence) -> Finding:
    """Is the link as fast as the server says?"""
    if not hello.rate_bps or len(e) < _FEW:
        return Finding("rate", "unknown", "the server does not know the rate of the link, or there are few rows")
    kept = applied_actions(e.records, e.present) != DROP
    span_s = float(e.records["time_us"].max() - e.records["time_us"].min()) * 1e-6
    if span_s <= 0:
        return Finding("rate", "unknown", "all rows are of one moment")
    used = float(e.records["packet_length"][kept].sum()) * 8.0 / span_s / hello.rate_bps
    seen = f"{100 * used:.0f} % of {hello.rate_bps / 1e6:g} Mbit/s"
    if used < 0.5:
        return Finding("rate", "warn", seen, "the link is idle half of the time: offer more load")
    return Finding("rate", "ok", seen)


def examine(
    e: Evidence, *, hello: Hello | None = None, status: Status | None = None, lost: int | None = None
) -> list[Finding]:
    """Run all checks of rows, and those of a live queue if there is one."""
    found = [check(e) for check in ROW_CHECKS]
    found.append(check_lost(e, lost))
    if hello is not None:
        found.append(check_rate(hello, e))
    if status is not None:
        found.append(check_control(status))
    return found


def healthy(found: Sequence[Finding]) -> bool:
    """Return whether nothing has to be fixed."""
    return all(finding.verdict in ("ok", "unknown") for finding in found)
