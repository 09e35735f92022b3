"""An agent sets parameters of a live queue's law each 100 ms, and is killed or stopped in the middle.

    sudo python benchmarks/studies/live_parameters/run.py          # two minutes; writes into results
    sudo python benchmarks/studies/live_parameters/run.py --quick  # half a minute; writes nothing without --out

One CUBIC flow with ECN (Linux's TCP) against one ECT(1) flow (a paced Prague-like UDP source) at 40 Mbit/s and a round
trip of 20 ms, under RFC 9332. The agent's actions are random over the whole range that the operator allows.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from l4s_gym.bridge import wire
from l4s_gym.bridge.client import Client
from l4s_gym.cli.arguments import command_line
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.live.testbed import LiveTestbed
from l4s_gym.markdown import table
from l4s_gym.sim.scenario import from_dict

RESULTS: Final = Path(__file__).resolve().parent / "results"
RATE_MBPS: Final = 40.0
WARMUP_S: Final = 5.0
LIFETIME_MS: Final = 300
ENDS: Final = {"": None, "killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
"""What happens to the agent; without one the law runs as the operator set it."""
AGENT: Final = """
import sys
import gymnasium as gym
env = gym.make("l4s_gym:L4S-DualPI2-Live-v0", form="parameters", control_interval_ms=100,
               socket=sys.argv[1], lifetime_ms=float(sys.argv[2]), horizon_s=1e6)
env.action_space.seed(1)
env.reset()
while True:
    env.step(env.action_space.sample())
"""


class Watcher(threading.Thread):
    """Takes every row of a queue until it is stopped."""

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self._socket, self._over = socket, threading.Event()
        self._rows: list[wire.Entries] = []
        self.lost = 0

    def run(self) -> None:
        """Subscribe and read."""
        with Client(self._socket) as client:
            client.subscribe(True)
            while not self._over.is_set():
                self._rows.append(wire.select(client.entries(0.1), wire.ROW))
            self.lost = client.lost

    def stop(self) -> Any:
        """Return the bodies of the rows that came, in order of arrival at the queue."""
        self._over.set()
        self.join()
        rows = wire.join(self._rows)["row"]
        return rows[np.argsort(rows["record"]["sequence"])]


def figures(rows: Any) -> dict[str, Any]:
    """Rates and delays of a stretch of rows."""
    record = rows["record"]
    seconds = (int(record["time_us"][-1]) - int(record["time_us"][0])) / 1e6
    served = np.diff(rows["served_bytes"][[0, -1]].astype(np.int64))[0]
    found: dict[str, Any] = {"link_mbps": float(served * 8e-6 / seconds)}
    for cls, name in enumerate("CL"):
        own = record[record["queue_type"] == cls]
        found[name] = {
            "offered_mbps": float(own["packet_length"].sum() * 8e-6 / seconds),
            "delay_ms": float(own["current_queue_delay"].mean() / 1e3) if len(own) else None,
            "marked": float((own["applied_action"] == 2).mean()) if len(own) else None,
        }
    return found


def measure(end: str, seconds: float, kernel: Path | None) -> dict[str, Any]:
    """One run: `seconds` with the agent, then as long without."""
    tree = {
        "name": "live-parameters", "aqm": "dualpi2_rfc9332", "horizon_s": WARMUP_S + 2 * seconds + 30.0,
        "warmup_s": 0.0, "link": {"rate_mbps": RATE_MBPS},
        "sources": [{"kind": kind, "rtt_ms": 20.0, "stagger_s": 0.0} for kind in ("cubic", "prague")],
    }  # fmt: skip
    with LiveTestbed(from_dict(tree), kernel=kernel) as bed:
        bed.start_flows()
        bed.wait(WARMUP_S)
        watcher = Watcher(bed.socket)
        watcher.start()
        command = [sys.executable, "-c", AGENT, str(bed.socket), str(LIFETIME_MS)]
        agent = subprocess.Popen(command) if end else None
        with Client(bed.socket) as client:
            while agent is not None and client.law().sets == 0:
                bed.wait(0.1)
        started_us = time.monotonic_ns() // 1000
        bed.wait(seconds)
        with Client(bed.socket) as client:
            before = client.law()
        ended_us = time.monotonic_ns() // 1000
        if agent is not None and (how := ENDS[end]) is not None:
            agent.send_signal(how)
        bed.wait(seconds)
        with Client(bed.socket) as client:
            law = client.law()
        rows = watcher.stop()
        if agent is not None:
            agent.kill()
            agent.wait()
        bed.check()
    own = np.uint32(bed.config.router.values["target_us"])
    times, targets = rows["record"]["time_us"].astype(np.int64), rows["record"]["qdelay_ref"]
    last = np.flatnonzero(targets != own)
    served = np.interp(np.arange(ended_us - 1_000_000, ended_us + 1_000_001, 100_000), times, rows["served_bytes"])
    windows = np.diff(served) * 80e-6
    return {
        "agent": end or "none",
        "rows_lost": watcher.lost,
        "sets": before.sets,
        "expired": [before.expired, law.expired],
        "factors_after": law.factors,
        "changes_of_target_in_rows": int((np.diff(targets[times < ended_us].astype(np.int64)) != 0).sum()),
        "last_foreign_row_after_ms": float(times[last[-1]] - ended_us) / 1e3 if len(last) else None,
        "targets_ms": [float(targets.min() / 1e3), float(targets.max() / 1e3)],
        "link_mbps_100ms": {"before": windows[:10].tolist(), "after": windows[10:].tolist()},
        "with": figures(rows[(times >= started_us) & (times < ended_us)]),
        "after": figures(rows[times >= ended_us + 1000 * LIFETIME_MS]),
    }


def markdown(runs: list[dict[str, Any]]) -> str:
    """The report."""
    head = ["agent", "set", "expired", "targets seen, ms", "last row by another target, ms after",
            "least link Mbit/s of 100 ms, before and after", "C / L Mbit/s with, after",
            "C / L ms with, after"]  # fmt: skip
    body = []
    for run in runs:
        least = ", ".join(f"{min(run['link_mbps_100ms'][when]):.1f}" for when in ("before", "after"))
        cells: list[str] = []
        for name, digits in (("offered_mbps", 1), ("delay_ms", 2)):
            parts = [" / ".join(f"{run[when][c][name]:.{digits}f}" for c in "CL") for when in ("with", "after")]
            cells.append(", ".join(parts))
        late = run["last_foreign_row_after_ms"]
        seen = "{:.1f}-{:.1f}".format(*run["targets_ms"])
        last = "-" if late is None else f"{late:.1f}"
        body.append([run["agent"], str(run["sets"]), str(run["expired"][1]), seen, last, least, *cells])
    lines = [
        "# Parameters of a live queue, and the end of their agent", "",
        "Written by `python benchmarks/studies/live_parameters/run.py`; all figures are in `live_parameters.json`. "
        f"A setting holds for {LIFETIME_MS} ms. The law in force is read from the rows: each has the target in force "
        "when its packet came.",
        "", *table(head, body),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(
    seconds: float = 15.0, quick: bool = False, kernel: Path | None = None, out: Path | None = None, note: str = ""
) -> None:
    """Measure and write the results.

    Args:
        seconds: With the agent, and again as long after its end.
        quick: Three seconds each; writes nothing unless `out` is given.
        kernel: Folder of the programs; by default those of the checkout.
        out: Folder of live_parameters.json (appended) and live_parameters.md, by default `results` beside this script.
        note: What to remember of this run.
    """
    runs = [measure(end, 3.0 if quick else seconds, kernel) for end in ENDS]
    print(markdown(runs))
    out = out or (None if quick else RESULTS)
    if out is None:
        return
    write_run(out, "live_parameters", origin() | {"note": note, "seconds": seconds, "runs": runs}, markdown(runs))


if __name__ == "__main__":
    command_line(main)
