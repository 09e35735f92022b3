"""Test a live queue with faults in random order under traffic, and watch for leaks.

    sudo python benchmarks/studies/soak/run.py                             # ten minutes; appends to results/soak.json
    sudo python benchmarks/studies/soak/run.py --seconds 60 --out /tmp/soak.json
    sudo python benchmarks/studies/soak/run.py --kernel kernel/build-asan  # with sanitizers: make -C kernel SAN=1

Agents are killed, stalled, send garbage and bad decisions; the daemon is killed and started again; readers do not read;
the socket is removed; two controllers attach; agents enqueue or drop everything until the shield trips. Traffic
must go on during all of it, and descriptors and memory of router, daemon and this client must not grow: this is judged
in the second half, in which the daemon is not restarted. (Sanitizers keep freed memory: with them the memory is
not judged, but leaks at the end are.)
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.bridge.figures import Figures, read
from l4s_gym.cli.arguments import command_line
from l4s_gym.evaluation.origin import append_run, origin
from l4s_gym.live.testbed import LiveTestbed
from l4s_gym.sim import scenario

RESULTS: Final = Path(__file__).resolve().parent / "results" / "soak.json"
RATE_MBPS: Final = 8.0
TRAFFIC: Final = {
    "name": "soak",
    "aqm": "dualpi2_rfc9332",
    "link": {"rate_mbps": RATE_MBPS},
    "sources": [
        {"kind": "cubic", "count": 2, "rtt_ms": 10.0},
        {"kind": "prague", "rtt_ms": 10.0},
        {"kind": "cbr", "rate_mbps": 1.0, "rtt_ms": 10.0, "ecn": "ect0"},
    ],
}
LEAST_SHARE: Final = 0.7
"""Least share of the link's rate in the window after a fault."""
MOST_GROWTH_KIB: Final = 512
"""Differences that sockets' buffers and allocators may cause."""


@dataclass
class Outcome:
    """Effect of a fault.

    Attributes:
        fault: Its name.
        share: Share of the link's rate that was served in the window after it.
        during: The same share during the fault.
        decided: Packets since the fault's start, by who decided: `native`, `agent`, `fallback`.
        facts: Observations: refusals, trips, rows lost.
    """

    fault: str
    share: float
    during: float
    decided: dict[str, int]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def native(self) -> float:
        """Share of the packets that the native law decided about."""
        return 1.0 - self.decided["agent"] / max(sum(self.decided.values()), 1)


# -- faults


@contextmanager
def agent(
    bed: LiveTestbed, action: int | None = None, interval: int = 1, bounds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a controller in a separate process, by thresholds, or with one constant action; `bounds` of the shield."""
    program = str(Path(bed.plan.programs["l4s-router"]).with_name("l4s-agent"))
    command = [program, "--socket", str(bed.socket), "--decision-interval", str(interval), "--lifetime-us", "500000"]
    if action is not None:
        command += ["--action", str(action)]
    if bounds:
        command += ["--shield", ",".join(map(str, bounds))]
    none = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=none, stdout=none, stderr=none)
    try:
        until(lambda: status(bed).interval == interval, "the agent has not come")
        yield process
    finally:
        process.kill()
        process.wait()


def until(ready: Callable[[], bool], text: str, seconds: float = 10.0) -> None:
    """Wait for a condition; raise an error if it does not come true."""
    limit = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > limit:
            raise TimeoutError(text)
        time.sleep(0.02)


def status(bed: LiveTestbed) -> wire.Status:
    """Return the queue's counters, by a short connection of a reader."""
    with Client(bed.socket) as client:
        return client.status()


def agent_killed(bed: LiveTestbed) -> dict[str, Any]:
    """Kill the agent during its work: the queue is free for the next one."""
    with agent(bed) as process:
        bed.wait(0.6)
        before = status(bed)
        process.kill()
        until(lambda: status(bed).interval == 0, "the dead agent still controls")
    return {"agent": sum(before.agent)}


def agent_stalled(bed: LiveTestbed) -> dict[str, Any]:
    """Stop the agent while it is asked: its questions go to the fallback."""
    with agent(bed) as process:
        bed.wait(0.4)
        before = status(bed)
        process.send_signal(signal.SIGSTOP)
        bed.wait(0.6)
        after = status(bed)
        process.send_signal(signal.SIGCONT)
        bed.wait(0.2)
    return {"agent": sum(before.agent), "fallback": sum(after.fallback) - sum(before.fallback)}


def garbage(bed: LiveTestbed) -> dict[str, Any]:
    """Open connections that send noise, half a command, and nothing at all."""
    closed = 0
    for data in (os.urandom(640), wire.command(wire.GET_STATUS)[:33], wire.command(99), b"\0" * 64, b""):
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(2.0)
            link.connect(str(bed.socket))
            link.sendall(data)
            bed.wait(0.05)
            with_end = len(data) >= wire.COMMAND_SIZE
            while with_end:
                try:
                    with_end = bool(link.recv(1 << 16))
                except (ConnectionResetError, TimeoutError) as error:
                    with_end = False
                    closed -= isinstance(error, TimeoutError)
            closed += len(data) >= wire.COMMAND_SIZE
    return {"closed": closed}


def bad_decisions(bed: LiveTestbed) -> dict[str, Any]:
    """Send decisions that are expired, out of order, unasked for or malformed: they are counted, and not applied."""
    before = status(bed).refused
    with Client(bed.socket) as client:
        client.attach(1)
        last = 0
        limit = time.monotonic() + 0.8
        while time.monotonic() < limit:
            asks = wire.records_of(wire.select(client.entries(0.1), wire.ASK))
            for ask in asks[:4]:
                sequence, queue, now = int(ask["sequence"]), int(ask["queue_type"]), int(ask["time_us"])
                action = 2 if int(ask["current_queue_delay"]) > (1000 if queue else 15000) else 0
                client.decide(sequence, queue, 0, now)  # already expired
                client.decide(sequence + 1_000_000, queue, 0, now + 10**6)
                client.decide(sequence, 7, 9, now + 10**6)
                client.decide(sequence, queue, action, now + 10**6)
                client.decide(last, queue, 0, now + 10**6)
                last = sequence
        after = client.status().refused
    return {name: after[name] - before[name] for name in after}


def daemon_killed(bed: LiveTestbed) -> dict[str, Any]:
    """Kill the daemon with an agent attached, and restart it."""
    with agent(bed) as process:
        bed.wait(0.3)
        bed.stop("daemon", signal.SIGKILL)
        bed.wait(0.4)
        process.wait(5.0)  # its connection is over
    bed.start_daemon()
    until(lambda: reaches(bed), "the daemon has no queue")
    with agent(bed):
        bed.wait(0.3)
        return {"agent": sum(status(bed).agent)}


def reaches(bed: LiveTestbed) -> bool:
    """Return whether the daemon answers for the queue."""
    try:
        status(bed)
    except BridgeError:
        return False
    return True


def slow_reader(bed: LiveTestbed) -> dict[str, Any]:
    """Attach a reader that does not read, beside one that does: the second loses no rows."""
    with Client(bed.socket) as slow, Client(bed.socket) as good:
        slow.subscribe(True)
        good.subscribe(True)
        rows = 0
        limit = time.monotonic() + 1.2
        while time.monotonic() < limit:
            rows += len(wire.select(good.entries(0.1), wire.ROW))
        return {"rows": rows, "lost": good.lost}


def socket_removed(bed: LiveTestbed) -> dict[str, Any]:
    """Remove the socket's file: connections stay, and a restart of the daemon makes it again."""
    with Client(bed.socket) as client:
        bed.socket.unlink()
        bed.wait(0.2)
        packets = sum(client.status().packets)
    bed.stop("daemon")
    bed.start_daemon()
    until(lambda: reaches(bed), "the daemon has no queue")
    return {"packets": packets}


def two_controllers(bed: LiveTestbed) -> dict[str, Any]:
    """Attach a second controller: it is refused, and the first one stays."""
    with agent(bed):
        refused = 0
        with Client(bed.socket) as second:
            for _ in range(3):
                try:
                    second.attach(10)
                except BridgeError as error:
                    refused += error.code == wire.E_BUSY
            interval = second.status().interval
        bed.wait(0.3)
    return {"refused": refused, "interval": interval}


def _shielded(bed: LiveTestbed, action: int, c_us: int, l_us: int, drops: int) -> dict[str, Any]:
    before = status(bed)
    with agent(bed, action, bounds=(c_us, l_us, drops, 128, 2_000_000, 0)):
        bed.wait(1.5)
        after = status(bed)
    return {
        "trips": sum(after.trips) - sum(before.trips),
        "shielded": after.refused["shielded"] - before.refused["shielded"],
    }


def all_enqueued(bed: LiveTestbed) -> dict[str, Any]:
    """Run an agent that enqueues everything: delay grows until the shield takes control."""
    return _shielded(bed, 0, c_us=40_000, l_us=20_000, drops=16384)


def all_dropped(bed: LiveTestbed) -> dict[str, Any]:
    """Run an agent that drops everything but may drop nothing: the shield takes control."""
    return _shielded(bed, 1, c_us=150_000, l_us=50_000, drops=0)


FAULTS: Final[dict[str, Callable[[LiveTestbed], dict[str, Any]]]] = {
    "agent killed": agent_killed,
    "agent stalled": agent_stalled,
    "garbage": garbage,
    "bad decisions": bad_decisions,
    "daemon killed": daemon_killed,
    "slow reader": slow_reader,
    "socket removed": socket_removed,
    "two controllers": two_controllers,
    "all enqueued": all_enqueued,
    "all dropped": all_dropped,
}
RESTARTS: Final = ("daemon killed", "socket removed")
"""Faults after which another daemon runs."""


# -- measurement


def share(before: Figures, after: Figures) -> float:
    """Return the share of the link's rate that was served between two times."""
    served = after.served_bytes - before.served_bytes
    return served * 8e-6 / RATE_MBPS / max(after.seconds - before.seconds, 1e-9)


def suffer(bed: LiveTestbed, name: str, window_s: float = 1.0) -> Outcome:
    """Cause a fault under traffic; return what was served during it, and in the window after it."""
    start = read(bed.stats())
    facts = FAULTS[name](bed)
    end = read(bed.stats())
    bed.wait(window_s)
    after = read(bed.stats())
    decided = {who: after.decided[who] - start.decided[who] for who in after.decided}
    return Outcome(name, share(end, after), share(start, end), decided, facts)


def open_testbed(kernel: Path | None, seconds: float) -> LiveTestbed:
    """Open the testbed of the faults: two CUBIC flows, a Prague-like one, and one that never slows down."""
    values = {"ring": 1024, "packets": 2048}  # small: soon all in use, so that later growth is a leak
    return LiveTestbed(scenario.from_dict(TRAFFIC), seconds=seconds, kernel=kernel, values=values)


def usage(pid: int) -> dict[str, int]:
    """Return descriptors and resident memory (KiB) of a process."""
    fields = Path(f"/proc/{pid}/status").read_text().split()
    return {"fds": len(os.listdir(f"/proc/{pid}/fd")), "rss_kib": int(fields[fields.index("VmRSS:") + 1])}


def watched(bed: LiveTestbed) -> dict[str, dict[str, int]]:
    """Return `usage` of router, daemon, and this process, after the same last connection each time."""
    for _ in range(2):  # a connection is forgotten when the next one comes
        status(bed)
        time.sleep(0.05)
    pids = {"router": bed.processes["router"].pid, "daemon": bed.processes["daemon"].pid, "client": os.getpid()}
    return {name: usage(pid) for name, pid in pids.items()}


def growth(samples: list[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Return the growth from the median of the first third to that of the last, by process."""
    third = max(len(samples) // 3, 1)

    def middle(part: list[dict[str, dict[str, int]]], who: str, what: str) -> int:
        return sorted(sample[who][what] for sample in part)[len(part) // 2]

    return {
        who: {what: middle(samples[-third:], who, what) - middle(samples[:third], who, what) for what in usages}
        for who, usages in samples[0].items()
    }


def suffer_all(bed: LiveTestbed, names: Sequence[str], until_s: float, rng: random.Random) -> Iterator[Outcome]:
    """Cause faults in random order, equally often, until a time of the clock."""
    order: list[str] = []
    while time.monotonic() < until_s:
        order = order or rng.sample(list(names), len(names))
        yield suffer(bed, order.pop())


def soak(bed: LiveTestbed, seconds: float, seed: int) -> dict[str, Any]:
    """Cause faults for a time; return outcomes, growth and verdict."""
    rng = random.Random(seed)
    outcomes: list[Outcome] = []
    samples = []
    start = time.monotonic()
    lasting = [name for name in FAULTS if name not in RESTARTS]
    for half, names in enumerate((list(FAULTS), lasting), 1):
        for outcome in suffer_all(bed, names, start + half * seconds / 2, rng):
            outcomes.append(outcome)
            used = watched(bed)
            if half == 2:
                samples.append(used)
            print(f"{outcome.fault:<16} then {100 * outcome.share:5.1f} % of the rate, {used}", flush=True)
    grown = growth(samples)
    worst = min(outcomes, key=lambda outcome: outcome.share)
    sanitized = b"__asan_init" in Path(bed.plan.programs["l4s-router"]).read_bytes()
    verdict = {
        "traffic_went_on": worst.share > LEAST_SHARE,
        "no_descriptor_leak": all(one["fds"] <= 0 for one in grown.values()),
        "no_memory_leak": sanitized or all(one["rss_kib"] <= MOST_GROWTH_KIB for one in grown.values()),
    }
    return {
        "seed": seed,
        "sanitized": sanitized,
        "faults": len(outcomes),
        "worst": asdict(worst),
        "growth": grown,
        "first": samples[0],
        "last": samples[-1],
        "verdict": verdict,
        "outcomes": [asdict(outcome) | {"native": outcome.native} for outcome in outcomes],
    }


def main(
    seconds: float = 600.0, seed: int = 1, kernel: Path | None = None, out: Path = RESULTS, note: str = ""
) -> None:
    """Run the faults over and over, and write the results.

    Args:
        seconds: Duration.
        seed: Seed of the order.
        kernel: Folder of the programs; by default those of the checkout.
        out: JSON file to which this run is appended.
        note: Note on this run.
    """
    with open_testbed(kernel, seconds + 120.0) as bed:
        bed.start_flows()
        bed.wait(2.0)
        data = origin() | {"note": note, "seconds": seconds} | soak(bed, seconds, seed)
        data["status"] = {name: bed.stop(name) for name in ("daemon", "router")}
        data["said"] = {name: bed.said(name) for name in ("daemon", "router")}
    data["verdict"]["no_crash"] = all(status == 0 for status in data["status"].values())
    runs = append_run(out, data)
    print(f"{data['verdict']}: {data['faults']} faults; run {len(runs)} in {out}")
    if not all(data["verdict"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    command_line(main)
