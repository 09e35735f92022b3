"""Start a real queue, let an agent control it, record it, diagnose it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table
from rich.text import Text

from l4s_gym.cli.arguments import App
from l4s_gym.cli.common import check_output, console, progress_bar, say
from l4s_gym.cli.live_up import up
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET

if TYPE_CHECKING:
    from l4s_gym.agents import Agent
    from l4s_gym.bridge.client import Client
    from l4s_gym.live.control import Controller, Run
    from l4s_gym.live.doctor import Evidence, Finding

app = App()

app.command(up)


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C or SIGTERM, so that the work ends cleanly; a second one interrupts it."""

    def handle(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else handler)
        stop()

    before: dict[int, Any] = {}
    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command
def control(
    agent: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="AGENT")],
    socket: Path | None = None,
    decision_interval: int | None = None,
    control_interval_ms: float | None = None,
    seconds: float | None = None,
    lifetime_ms: float | None = None,
    reward: str | None = None,
    seed: int = 0,
    direct: bool = True,
    out: Path | None = None,
) -> None:
    """Let an agent control a real queue; after Ctrl-C the queue's own law decides again.

    Args:
        agent: random, threshold, enqueue, the folder of a saved agent, or module:attribute for your own.
        socket: Socket of the queue; default: $L4S_GYM_SOCKET, or /run/l4s-gym/live.sock.
        decision_interval: The agent decides every n-th packet (1, 10, 100), the queue's own law the others; default: 1.
            For agents of the form packet.
        control_interval_ms: For agents of the forms parameters and probability: they act each so many milliseconds;
            default: as they were trained, else 16.
        seconds: How long to control it; default: until Ctrl-C.
        lifetime_ms: An answer is valid for this long after the question (default: 100); what is set each control
            interval holds for this long without being set again (default: three intervals).
        reward: Reward that the agent is told: balance, power or l4s_llm; default: always 0.
        seed: Seed of the agent's random decisions.
        direct: Talk to the queue directly, not through the daemon, if the queue offers it.
        out: Write the results to this JSON file.
    """
    from l4s_gym import agents
    from l4s_gym.bridge.client import Client
    from l4s_gym.sim import fingerprint

    if seconds is not None and not seconds > 0:
        raise L4SError(f"--seconds {seconds:g}: give a positive number")
    if out is not None:
        check_output(out)
    with fingerprint.allow_stale() as stale:  # the queue is real: nothing of the installed simulator is beside it
        made = agents.make(agent)
    for text in stale:
        say(text)
    intervals: dict[str, Any] = {"decision_interval": decision_interval, "control_interval_ms": control_interval_ms}
    given = {"lifetime_ms": lifetime_ms, **intervals}
    options = {name: value for name, value in given.items() if value is not None}
    controller = _controller(Client(socket, direct=direct), made, reward=reward, seed=seed, **options)
    with _stopped_by_signals(controller.stop), progress_bar(f"{agent} controls") as show:
        done = controller.run(seconds, show)
    if direct and not done.direct and done.sessions and done.form == PACKET:
        say("asked by the common socket: this queue gave none of its own")
    _print_run(done)
    if out is not None:
        _write_json(out, done.as_dict())


def _controller(client: Client, agent: Agent, **options: Any) -> Controller:
    """The controller of the agent's form."""
    from l4s_gym.agents.protocol import form_of
    from l4s_gym.live.control import Controller
    from l4s_gym.live.interval_control import IntervalController

    form = form_of(agent)
    wrong, right = ("control_interval_ms", "decision_interval")[:: 1 if form == PACKET else -1]
    if wrong in options:
        option, instead = (f"--{name.replace('_', '-')}" for name in (wrong, right))
        raise L4SError(f"{option}: {agent.name} decides in the form {form!r}: use {instead}")
    return (Controller if form == PACKET else IntervalController)(client, agent, **options)


def _write_json(out: Path, data: dict[str, Any]) -> None:
    import json

    from l4s_gym.data.files import atomic_write
    from l4s_gym.evaluation.origin import origin

    with atomic_write(out) as file:
        file.write((json.dumps({**origin(), **data}, indent=1) + "\n").encode())
    say(f"results: {out}")


def _print_run(done: Run) -> None:
    packets = done.form == PACKET
    each = f"{done.decision_interval}. packet" if packets else f"{done.control_interval_ms:g} ms"
    table = Table(title=f"{done.agent}, each {each}, {done.seconds:.1f} s")
    table.add_column("what")
    table.add_column("value", justify="right")
    if packets:
        table.add_row("asks, answered", f"{done.asks}, {done.answered}")
        table.add_row("asked by", "a socket of the queue's own" if done.direct else "the common socket")
    else:
        table.add_row("form", done.form)
        table.add_row("intervals, acted in", f"{done.asks}, {done.answered}")
        if done.law is not None:
            table.add_row("of its settings expired, refused", f"{done.law['expired']}, {done.law['refused']}")
    table.add_row("lost on the way", str(done.lost))
    table.add_row("sessions", str(done.sessions))
    s = done.shares
    if s is None:
        table.add_row("counters of the queue", "not to be had: it was gone at the end")
    else:
        table.add_row("packets", str(s.packets))
        for who, share in s.decided_by.items():
            table.add_row(f"decided by {who}", f"{100 * share:.2f} %")
        table.add_row("marked, dropped", f"{100 * s.marks:.2f} %, {100 * s.drops:.2f} %")
        table.add_row("ask to answer, p50, p99", f"{s.latency_p50_us} us, {s.latency_p99_us} us")
        refused = ", ".join(f"{count} {reason}" for reason, count in s.refused.items() if count)
        table.add_row("decisions refused", refused or "0")
        table.add_row("shield trips", str(s.shield_trips))
    console.print(table)


@app.command
def record(
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    socket: Path | None = None,
    seconds: float | None = None,
    rows: int | None = None,
    rotate_mb: float | None = None,
) -> None:
    """Record the decisions of a real queue to a file, until Ctrl-C.

    Args:
        out: The file: binary records with all fields (.rec, compressed: .rec.zst), or lines of the testbed's kernel log
            with 24 of the fields (.log).
        socket: Socket of the queue; default: $L4S_GYM_SOCKET, or /run/l4s-gym/live.sock.
        seconds: How long to record; default: until Ctrl-C.
        rows: Stop after this many rows.
        rotate_mb: Start a new file (OUT-0001.rec, OUT-0002.rec, ...) after this many MB of rows.
    """
    from l4s_gym.bridge.client import Client
    from l4s_gym.bridge.recorder import Recorder

    recorder = Recorder(Client(socket), out, rotate_mb=rotate_mb)
    with _stopped_by_signals(recorder.stop), progress_bar(f"recording {out.name}") as show:
        done = recorder.run(seconds, rows, show)
    say(done.summary())
    if done.failed:
        raise SystemExit(1)


@app.command
def doctor(
    socket: Path | None = None,
    seconds: float = 5.0,
    log: tuple[Path, ...] = (),
    namespace: str | None = None,
    interface: str | None = None,
) -> None:
    """Find out why a testbed marks no packets. Exit status 0: no problem found; 1: something has to be fixed.

    Args:
        socket: Socket of the queue; default: $L4S_GYM_SOCKET, or /run/l4s-gym/live.sock. Without a socket, only
            the settings of this machine are checked.
        seconds: How long to watch the queue.
        log: Check these logs instead (kernel logs, binary records, ...).
        namespace: Also check the settings of this network namespace.
        interface: Also check the offloads of this network interface.
    """
    from l4s_gym.live import doctor as checks
    from l4s_gym.live import machine

    if not seconds > 0:
        raise L4SError(f"--seconds {seconds:g}: give a positive number")
    if log:
        found = checks.examine(_logged(log))
    elif (missing := _no_socket(socket)) is not None:
        found = [missing, machine.testbed_check()]
    else:
        with progress_bar("watching the queue") as show:
            found = _watched(socket, seconds, show)
    if not log or namespace or interface:
        ecn_seen = namespace is None and any(each.name == "ECN" and each.verdict == "ok" for each in found)
        found += machine.local_checks(namespace=namespace, interface=interface, ecn_seen=ecn_seen)
    _print_findings(found)
    if not checks.healthy(found):
        raise SystemExit(1)


def _no_socket(socket: Path | None) -> Finding | None:
    """Return a finding if no socket was named and the default one does not exist."""
    from l4s_gym.bridge.client import ADDRESS, default_address
    from l4s_gym.live.doctor import Finding

    if socket is not None or default_address() != ADDRESS or os.path.exists(ADDRESS):
        return None
    remedy = "for the queue itself: `sudo l4s-gym live up`, or the daemon `l4s-bridged`, or --socket"
    return Finding("queue", "unknown", f"no socket at {ADDRESS}: only this machine was examined", remedy)


def _logged(log: tuple[Path, ...]) -> Evidence:
    from l4s_gym.data.stream import join, open_stream
    from l4s_gym.live.doctor import MOST_ROWS, Evidence

    stream = open_stream(log)
    parts, count = [], 0
    for block in stream.blocks():
        if count < MOST_ROWS:
            parts.append(block.copy())
            count += len(block)
    return Evidence(join(parts), stream.present)


def _watched(socket: Path | None, seconds: float, show: Callable[[float], None]) -> list[Finding]:
    from l4s_gym.bridge.client import Client
    from l4s_gym.live import doctor as checks

    with Client(socket) as client:
        records = checks.watch(client, seconds, show)
        status = client.status()
        return checks.examine(records, hello=client.hello, status=status, lost=client.lost)


def _print_findings(found: list[Finding]) -> None:
    table = Table("check", "", "seen", "remedy")
    for each in found:
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}.get(each.verdict, "dim")
        table.add_row(each.name, Text(each.verdict, style=colour), each.seen, each.remedy)
    console.print(table)


@app.command
def model(
    rows: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="ROWS [ROWS ...]")],
    out: Path,
    to: Literal["tree", "forest", "mlp", "linear"] = "tree",
    leaves: int | None = None,
    decided_by: Literal["kernel", "agent", "fallback"] = "kernel",
) -> None:
    """Train an integer model on logged decisions, for a queue to run by itself (l4s-router --model FILE).

    A model of an agent is better made in closed loop: `l4s-gym distil`.

    Args:
        rows: Kernel logs, binary records (.rec) or Parquet files, in order of time.
        out: File for the model.
        to: What it is: a tree, a forest, a perceptron, or a linear rule.
        leaves: Number of leaves of a tree; default: the one that foresees best what is held out.
        decided_by: Learn from the decisions of the queue's own law (kernel), of an agent, or of the fallback.
    """
    import numpy as np

    from l4s_gym.agents import fitting
    from l4s_gym.agents.distil import Config
    from l4s_gym.data.files import atomic_write
    from l4s_gym.data.stream import open_stream

    check_output(out)
    config = Config(to=to) if leaves is None else Config(to=to, leaves=(leaves,))
    with progress_bar("reading") as show:
        stream = open_stream(rows, progress=show)
        runs = fitting.logged_rows(stream.blocks(), stream.present, decided_by)
    train, held = fitting.parted(runs, config.held_out)
    made = fitting.fit(config, PACKET, 0.0, train, held)
    with atomic_write(out) as file:
        file.write(made.model.pack())
    every = fitting.joined(runs)
    shares = np.concatenate([each.mean(axis=0) for each in (every.labels, fitting.told(made.model, every.seen))])
    drop, mark, own_drop, own_mark = 100 * shares
    say(
        f"{len(every.seen)} rows with {drop:.2f} % drops and {mark:.2f} % marks, the model {own_drop:.2f} % and "
        f"{own_mark:.2f} %"
    )
    say(f"{to} of {made.size}, divergence {made.loss:.4f} nat on what is held out: {out}")
