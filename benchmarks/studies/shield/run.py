"""Measure the harm of a hostile agent to a real queue: goodput and delay of both classes, by bounds of the shield.

    sudo python benchmarks/studies/shield/run.py          # ten minutes; writes into results
    sudo python benchmarks/studies/shield/run.py --quick  # one minute; writes nothing without --out

One CUBIC flow (Linux's TCP, with ECN) and one ECT(1) flow (a paced Prague-like UDP source) share a router of 20 Mbit/s
at a round trip of 20 ms. After their start an agent attaches, asks for the widest bounds that the protocol
allows, and gives one of four answers to each question. The bounds are the operator's; `off` is what such an agent gets
if the operator sets none. The same agents run beside two instances of the FreeBSD module, in the simulated kernel and
in simulated time: the first instance is attacked, the second has no agent.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # the simulated kernel is driven as the tests drive it

from l4s_gym.bridge.figures import Figures, read
from l4s_gym.cli.arguments import command_line
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.live import programs
from l4s_gym.live.testbed import LiveTestbed
from l4s_gym.markdown import table
from l4s_gym.sim.scenario import from_dict

RESULTS: Final = Path(__file__).resolve().parent / "results"
RATE_MBPS: Final = 20.0
WARM_S: Final = 5.0
TRAFFIC: Final = {
    "name": "shield",
    "aqm": "dualpi2_rfc9332",
    "horizon_s": 600.0,
    "link": {"rate_mbps": RATE_MBPS},
    "sources": [
        {"kind": "cubic", "rtt_ms": 20.0, "stagger_s": 0.0},
        {"kind": "prague", "rtt_ms": 20.0, "stagger_s": 0.0},
    ],
}
OFF: Final = {"c_us": 0, "l_us": 0, "drops": 65536, "window": 65536, "hold_us": 1000, "hits": 0}
BEFORE: Final = {"c_us": 150_000, "l_us": 50_000, "drops": 16384, "hits": 0}
"""Bounds as shipped before drops and marks were bounded."""
BOUNDS: Final[dict[str, dict[str, int]]] = {
    "off": OFF,
    "before": BEFORE,
    **{f"hits {n}": {"hits": 256 * n} for n in (2, 4, 16)},
    "delay 50, 10 ms": {"c_us": 50_000, "l_us": 10_000},
    "shipped": {},
}
"""Bounds that replace the shipped ones."""
QUICK: Final = ("off", "shipped")
AGENTS: Final = {"enqueue all": 0, "drop all": 1, "mark all": 2, "alternating": 3}
"""Actions of `l4s-agent`; the last one lets the queue grow for a quarter of a second, then drops for as long."""
WIDEST: Final = "0,0,65536,65536,1000,0"
"""Bounds that an agent asks for."""


@contextmanager
def hostile(bed: LiveTestbed, action: int | None, kernel: Path | None) -> Iterator[None]:
    """Run an agent in a separate process; None: no agent."""
    if action is None:
        yield
        return
    program = str(programs.find(kernel, ("l4s-agent",))["l4s-agent"])
    command = [program, "--socket", str(bed.socket), "--action", str(action), "--shield", WIDEST]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def between(before: Figures, after: Figures) -> dict[str, Any]:
    """Return rates and delays of the classes between two readings."""
    seconds = after.seconds - before.seconds
    pairs = dict(zip("CL", zip(before.classes, after.classes, strict=True), strict=True))
    total = max(sum(after.decided.values()) - sum(before.decided.values()), 1)
    return {
        "mbps": {name: (b.served_bytes - a.served_bytes) * 8e-6 / seconds for name, (a, b) in pairs.items()},
        "delay_ms": {
            name: (b.delay_sum_ms - a.delay_sum_ms) / max(b.served_packets - a.served_packets, 1)
            for name, (a, b) in pairs.items()
        },
        "drops": {name: b.drops - a.drops for name, (a, b) in pairs.items()},
        "agent_share": (after.decided["agent"] - before.decided["agent"]) / total,
        "trips": after.trips - before.trips,
    }


def attack(action: int | None, bounds: dict[str, int], seconds: float, kernel: Path | None) -> dict[str, Any]:
    """Measure one run on the router."""
    values = {f"shield_{name}": value for name, value in bounds.items()}
    with LiveTestbed(from_dict(TRAFFIC), kernel=kernel, values=values, seconds=WARM_S + seconds + 30.0) as bed:
        bed.start_flows()
        bed.wait(WARM_S)
        with hostile(bed, action, kernel):
            before = read(bed.stats())
            bed.wait(seconds)
            return between(before, read(bed.stats()))


def router(names: tuple[str, ...], seconds: float, kernel: Path | None) -> list[dict[str, Any]]:
    """Measure every agent under every set of bounds, after the native law."""
    rows = [{"agent": "native", "bounds": ""} | attack(None, {}, seconds, kernel)]
    say(rows[0], rows[0])
    for name in names:
        for agent, action in AGENTS.items():
            found = attack(action, BOUNDS[name], seconds, kernel)
            rows.append({"agent": agent, "bounds": name} | found)
            say(rows[-1], rows[0])
    return rows


def freebsd(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Measure the same beside two instances of the module in the simulated kernel."""
    from tests.kernel.test_shield import HOSTILE, attacked

    subprocess.run(["make", "-s", "-C", str(ROOT / "kernel"), "build/libl4s_module.so"], check=True)
    library = ROOT / "kernel" / "build" / "libl4s_module.so"
    rows = []
    for name in ("", *names):
        for agent, choose in HOSTILE.items() if name else {"native": None}.items():
            values = {f"shield_{bound}": value for bound, value in BOUNDS.get(name, {}).items()}
            for number, figures in enumerate(attacked(library, choose, **values), 1):
                mbps, delays = dict(zip("CL", figures[:2], strict=True)), dict(zip("CL", figures[2:], strict=True))
                rows.append({"agent": agent, "bounds": name, "instance": number, "mbps": mbps, "delay_ms": delays})
                say(rows[-1], rows[number - 1])
    return rows


def total(row: dict[str, Any]) -> float:
    """Return the Mbit/s of both classes together."""
    return float(sum(row["mbps"].values()))


def cells(row: dict[str, Any], native: dict[str, Any]) -> list[str]:
    """Return a row of the report."""
    who = [row["agent"], row["bounds"] or "-", *([str(row["instance"])] if "instance" in row else [])]
    rates = [f"{row['mbps'][name]:.2f}" for name in "CL"]
    delays = [f"{row['delay_ms'][name]:.2f}" for name in "CL"]
    more = [f"{100 * row['agent_share']:.0f}", str(row["trips"])] if "trips" in row else []
    return [*who, *rates, f"{100 * total(row) / total(native):.0f}", *delays, *more]


def say(row: dict[str, Any], native: dict[str, Any]) -> None:
    """Print a row when it is done."""
    print(" | ".join(cells(row, native)), flush=True)


def markdown(data: dict[str, Any]) -> str:
    """Return the report."""
    lines = [
        "# The shield",
        "",
        "Written by `python benchmarks/studies/shield/run.py`; all figures are in `shield.json`. "
        "Rates are what the link carried "
        "of each class after the agent came; *of native* is their sum beside that without an agent. Delays are means.",
    ]
    for title, rows, extra in (
        ("Router, 20 Mbit/s, real packets", data["router"], ["agent decided %", "trips"]),
        ("Two instances of the FreeBSD module, simulated kernel", data["freebsd"], []),
    ):
        instance = ["instance"] if title.startswith("Two") else []
        head = ["agent", "bounds", *instance, "C Mbit/s", "L Mbit/s", "of native %", "C ms", "L ms", *extra]
        body = [cells(row, rows[row["instance"] - 1 if instance else 0]) for row in rows]
        lines += ["", f"## {title}", "", *table(head, body)]
    return "\n".join(lines) + "\n"


def main(
    seconds: float = 8.0, quick: bool = False, kernel: Path | None = None, out: Path | None = None, note: str = ""
) -> None:
    """Measure and write the results.

    Args:
        seconds: Length of each attack.
        quick: Only two sets of bounds; writes nothing unless `out` is given.
        kernel: Folder of the programs; by default those of the checkout.
        out: Folder of shield.json (appended) and shield.md, `results` beside this script by default.
        note: Note on this run.
    """
    names = QUICK if quick else tuple(BOUNDS)
    out = out or (None if quick else RESULTS)
    data: dict[str, Any] = origin() | {
        "note": note,
        "seconds": seconds,
        "bounds": {name: BOUNDS[name] for name in names},
    }
    data["freebsd"] = freebsd(names)
    data["router"] = router(names, seconds, kernel)
    if out is None:
        return
    write_run(out, "shield", data, markdown(data))


if __name__ == "__main__":
    command_line(main)
