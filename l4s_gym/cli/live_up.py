"""`l4s-gym live up`: run a real queue on this machine for a time or until Ctrl-C, then remove all of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from l4s_gym.cli.common import Settings, chosen_scenario, console, say
from l4s_gym.errors import L4SError

if TYPE_CHECKING:
    from rich.table import Table

    from l4s_gym.bridge.figures import Figures
    from l4s_gym.live.testbed import LiveResult, LiveTestbed


def up(
    scenario: str = "l4s-llm-testbed",
    aqm: str | None = None,
    agent: str | None = None,
    model: Path | None = None,
    settings: Settings = (),
    seconds: float | None = None,
    seed: int = 1,
    socket: Path | None = None,
    flows: bool = True,
    kernel: Path | None = None,
    spin: bool = False,
    shield: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=NUMBER")] = (),
    out: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Start a real queue on this machine: network namespaces, router, daemon, test traffic. Needs Linux and root.

    Everything is removed at the end: after the scenario's time, after Ctrl-C, when the terminal closes, and even when
    this process is killed.

    Args:
        scenario: Name of a scenario, or path of a TOML file.
        aqm: dualpi2_freebsd, dualpi2_rfc9332 or dualpi2_linux; default: the scenario's.
        agent: Give the law the options over which this agent was trained, as `l4s-gym live control` needs it: the
            folder of a saved agent, or module:attribute for your own. It does not control yet.
        model: Let an integer model decide inside the router: the folder of a student (`l4s-gym distil`), which the law
            gets the options of too, or a file (`l4s-gym live model`). SIGHUP makes the router read it again.
        settings: Change fields of the scenario, such as link.rate_mbps=40 or options.dualpi2_rfc9332.target_ms=3.2.
        seconds: How long to run; default: the scenario's length.
        seed: Seed of what the scenario draws, of the start times of the flows, and of the router's random numbers.
        socket: Socket for agents and readers; default: /run/l4s-gym/live.sock.
        flows: Start the scenario's flows; with --no-flows the queue waits for your own traffic.
        kernel: Folder of the programs; default: $L4S_GYM_KERNEL, the checkout (built if needed), or PATH.
        spin: Let the router poll instead of sleeping: exact timing, at the cost of a whole core.
        shield: Change a limit on what agents may do; may be repeated. c_us, l_us: largest delay of C and L; drops:
            share of packets that they may drop (in 1/65536), among the last `window` packets; hold_us: how long the
            native law decides after a limit was reached; hits: drops and marks relative to the native law (in 1/256, 0:
            no limit).
        out: Folder for the results (live.json).
        dry_run: Print the commands without running them.
    """
    from l4s_gym.agents.saved import MODEL
    from l4s_gym.bridge.client import default_address
    from l4s_gym.live.testbed import LiveTestbed
    from l4s_gym.tables import option_paths

    if seed < 0:
        raise L4SError(f"--seed {seed}: give 0 or more")
    chosen = chosen_scenario(scenario, None, settings)
    if model is not None and model.is_dir():
        agent, model = agent or os.path.join(model, ""), model / MODEL
        if not model.is_file():
            raise L4SError(f"{model}: not found: an agent decides in the router as a student (`l4s-gym distil`)")
    if agent is not None and (options := _options(agent)):
        chosen, aqm = chosen.replace(**option_paths(options)), aqm or next(iter(options))
    bed = LiveTestbed(
        chosen,
        aqm=aqm,
        seconds=seconds,
        seed=seed,
        address=Path(socket or default_address()),
        group=os.environ.get("SUDO_GID", ""),
        kernel=kernel,
        spin=spin,
        values=_bounds(shield),
        model=model,
        dry_run=dry_run,
    )
    if dry_run:
        say(bed.plan.text(bed.seconds, flows=flows))
        return
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with _ended_by_signals(), bed:
        for note in bed.config.notes:
            say(f"note: {note}")
        say(f"{bed.config.scenario.name}, {bed.config.aqm}, for {bed.seconds:g} s: agents and readers at {bed.socket}")
        if flows:
            bed.start_flows()
        else:
            names = bed.plan.names
            say(f"senders: ip netns exec {names.senders} COMMAND")
            say(f"receivers, at {bed.receiver}: ip netns exec {names.receivers} COMMAND")
        with suppress(KeyboardInterrupt):
            _watch(bed)
        result = bed.finish()
        if said := bed.said("router"):
            say(f"the router said: {said}")
    _print(result)
    if out is not None:
        path = _write(result, out)
        say(f"results: {path}")


def _options(agent: str) -> dict[str, dict[str, Any]]:
    """The options over which an agent was trained."""
    from l4s_gym import agents
    from l4s_gym.agents.protocol import options_of
    from l4s_gym.sim import fingerprint

    with fingerprint.allow_stale():  # only its options are used
        return options_of(agents.make(agent))


def _bounds(given: tuple[str, ...]) -> dict[str, int]:
    """Parameters of the core from NAME=NUMBER; the router checks their ranges."""
    from l4s_gym.bridge.wire import SHIELD
    from l4s_gym.errors import unknown

    found = {}
    for text in given:
        name, _, number = text.partition("=")
        if f"shield_{name}" not in SHIELD:
            raise unknown("bound", name, [each.removeprefix("shield_") for each in SHIELD])
        if not (number.isascii() and number.isdigit()):
            raise L4SError(f"--shield {text}: give {name}=NUMBER, a whole number")
        found[f"shield_{name}"] = int(number)
    return found


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block with an exception on SIGTERM and SIGHUP, so that everything is removed."""

    def end(number: int, _: FrameType | None) -> None:
        for each in before:  # a second one does not disturb the taking down
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(bed: LiveTestbed) -> None:
    """Wait for the end; on a terminal, show a status line."""
    from rich.live import Live
    from rich.text import Text

    from l4s_gym.bridge.figures import read

    limit = time.monotonic() + bed.seconds
    if not console.is_terminal:
        bed.wait(bed.seconds)
        return
    before = read(bed.stats())
    with Live(Text("..."), console=console, transient=True, auto_refresh=False) as live:
        while (left := limit - time.monotonic()) > 0.0:
            bed.wait(min(left, 1.0))
            now = read(bed.stats())
            live.update(Text(status_line(before, now, limit - time.monotonic())), refresh=True)
            before = now


def status_line(before: Figures, now: Figures, left: float) -> str:
    """Return the status line between two readings: rate, delay and marks of each queue, and who decided."""
    elapsed = max(now.seconds - before.seconds, 1e-9)
    parts = []
    for name, a, b in zip(("C", "L"), before.classes, now.classes, strict=True):
        rate = (b.served_bytes - a.served_bytes) * 8e-6 / elapsed
        served = b.served_packets - a.served_packets
        delay = (b.delay_sum_ms - a.delay_sum_ms) / served if served else 0.0
        marks = 100.0 * (b.marks - a.marks) / max(b.packets - a.packets, 1)
        parts.append(f"{name} {rate:6.2f} Mbit/s {delay:6.2f} ms {marks:5.1f} % marked {b.drops - a.drops} dropped")
    decided = {who: now.decided[who] - before.decided[who] for who in now.decided}
    total = max(sum(decided.values()), 1)
    parts.append("decided by " + ", ".join(f"{who} {100 * n / total:.0f} %" for who, n in decided.items() if n))
    return " | ".join([*parts, f"{max(left, 0.0):.0f} s left"])


def _print(result: LiveResult) -> None:
    from l4s_gym.bridge.figures import read

    figures = read(result.router)
    console.print(class_table(figures, f"{result.scenario}, {result.aqm}, {result.seconds:.0f} s"))
    if result.flows:
        console.print(flow_table(result))
    total = max(sum(figures.decided.values()), 1)
    shares = ", ".join(f"{who} {100 * count / total:.1f} %" for who, count in figures.decided.items())
    say(f"decided by: {shares}; rows lost: {figures.rows_lost}")
    if (law := result.router["law"])["sets"]:
        say(f"the law was set {law['sets']} times, by an agent or a model; expired: {law['expired']}")


def class_table(figures: Figures, title: str) -> Table:
    """Delays, marks and drops of each class."""
    from rich.table import Table

    table = Table(title=title)
    for column in ("class", "packets", "mean ms", "p50", "p95", "p99", "max", "mark %", "drop %"):
        table.add_column(column, justify="right")
    for name, c in zip(("C", "L"), figures.classes, strict=True):
        delays = [f"{d:.2f}" for d in (c.mean_ms, c.p50_ms, c.p95_ms, c.p99_ms, c.max_ms)]
        offered = max(c.packets, 1)
        rates = [f"{100 * c.marks / offered:.2f}", f"{100 * c.drops / offered:.2f}"]
        table.add_row(name, str(c.packets), *delays, *rates)
    return table


def flow_table(result: LiveResult) -> Table:
    """Return what each sender reports: rate, round-trip time, marks."""
    from rich.table import Table

    table = Table(title="flows")
    for column in ("flow", "started s", "Mbit/s", "RTT ms", "marks echoed"):
        table.add_column(column, justify="right")
    for flow in result.flows:
        rate, rtt, marks = (flow.get(name) for name in ("goodput_mbps", "srtt_us", "delivered_ce"))
        table.add_row(
            str(flow["label"]),
            f"{flow['start_s']:.2f}",
            "-" if rate is None else f"{rate:.3f}",
            "-" if rtt is None else f"{rtt * 1e-3:.1f}",
            "-" if marks is None else str(marks),
        )
    return table


def _write(result: LiveResult, folder: Path) -> Path:
    import msgspec

    from l4s_gym.data.files import atomic_write
    from l4s_gym.evaluation.origin import origin

    path = folder / "live.json"
    text = msgspec.json.format(msgspec.json.encode(origin() | result.as_dict()))
    with atomic_write(path) as file:
        file.write(text + b"\n")
    return path
