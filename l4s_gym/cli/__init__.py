"""The command line `l4s-gym`.

Exit status: 0 done, 1 failed, 2 bad input (one line tells the remedy), 130 interrupted.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from l4s_gym.cli import agents as _agents
from l4s_gym.cli import leaderboard as _leaderboard
from l4s_gym.cli.arguments import App
from l4s_gym.cli.common import STDOUT, Settings, check_output, chosen_scenario, console, progress_bar, say
from l4s_gym.data.files import printable
from l4s_gym.errors import L4SError

app = App()
_ABOUT = "L4S DualPI2: simulate, work on logs, evaluate agents. --version tells that of program and simulator."
GROUPS = {"log": "l4s_gym.cli.log", "datasets": "l4s_gym.cli.datasets", "live": "l4s_gym.cli.live"}
"""Groups of commands, and their modules (each has an `app`)."""


def _check_seeds(*seeds: int) -> None:
    for seed in seeds:
        if seed < 0:
            raise L4SError(f"seed {seed}: give 0 or more")


@app.command
def scenarios(suite: str | None = None, name: str | None = None, trace: str | None = None) -> None:
    """List the scenarios that ship.

    Args:
        suite: Only those of `train`, `test` or `shift`.
        name: Show all fields of one scenario instead, as JSON.
        trace: Show the rate of a link's trace instead: a shipped one (lte, wifi, leo), or a file.
    """
    from l4s_gym.sim import scenario

    if trace is not None:
        from l4s_gym.cli.traces import show

        show(trace)
        return
    if name is not None:
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(scenario.load(name)))
        console.print(text.decode(), highlight=False, soft_wrap=True)
        return
    chosen = scenario.suite(suite) if suite else scenario.names()
    table = Table("name", "suites", "Mbit/s", "flows", "description")
    for each in chosen:
        s = scenario.load(each)
        rate = "trace" if s.link.kind == "trace" else f"{s.link.rate_mbps:g}"
        table.add_row(each, " ".join(s.suites), rate, str(s.n_flows), s.description)
    console.print(table)


@app.command
def disciplines(name: str | None = None) -> None:
    """List the queue disciplines, and their options with the defaults.

    Args:
        name: Only this one; module:attribute for one of your own.
    """
    from l4s_gym.sim import disciplines, options

    table = Table("discipline", "option", "default", "what it is")
    for each in [disciplines.get(name)] if name else disciplines.BUILT_IN:
        table.add_section()
        table.add_row(each.name, "", "", each.title)
        for option, (what, default) in options.words(each).items():
            table.add_row("", option, str(default), what)
    console.print(table)


@app.command
def simulate(
    scenario: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SCENARIO")] = "l4s-llm-testbed",
    aqm: str | None = None,
    seed: int = 0,
    seconds: float | None = None,
    settings: Settings = (),
    log: Path | None = None,
    series: Path | None = None,
    packets: Path | None = None,
    step_ms: float = 100.0,
    picture: Path | None = None,
) -> None:
    """Run a scenario under a queue discipline, and print delays, marks, drops and rates.

    Args:
        scenario: Name of a scenario, or path of a TOML file.
        aqm: Queue discipline, one that `l4s-gym disciplines` lists or module:attribute; the scenario's by default.
        seed: Seed of the episode.
        seconds: Length of the run instead of the scenario's.
        settings: Fields of the scenario, such as link.rate_mbps=40 or options.pie.target_ms=10.
        log: Write the decision log: text lines of the testbed's kernel, or all fields as binary records (.rec), which
            also name the simulator's version.
        series: Write a table with a row for each step of time (.csv, .csv.gz, .parquet): delay, marks and drops of each
            queue, rate and congestion window of each flow, utilisation of the link.
        packets: Write a table with a row for each packet (.csv, .csv.gz, .parquet): arrival, flow, queue, size, sojourn
            time, marked, dropped.
        step_ms: Length of a step of the series and of the picture, in simulated milliseconds.
        picture: Write a picture of delays, marks, drops, probability and rates (.png, .pdf, .svg).
    """
    from l4s_gym.data.files import atomic_write
    from l4s_gym.data.logs import write_log
    from l4s_gym.data.records import save_records
    from l4s_gym.data.stream import named_kind
    from l4s_gym.evaluation import export, native
    from l4s_gym.extras import optional
    from l4s_gym.sim import fingerprint

    _check_seeds(seed)
    if not 0.0 < step_ms <= 1e6:
        raise L4SError(f"--step-ms {step_ms:g}: give a positive number of milliseconds")
    for path, endings in ((log, ()), (series, export.ENDINGS), (packets, export.ENDINGS), (picture, native.PICTURES)):
        if path is not None:
            check_output(path, endings)
            if path.suffix == ".parquet":
                optional("pyarrow", "data")
            if path is picture:
                optional("matplotlib", "report")
    kind = None if log is None else named_kind(log)
    if kind not in (None, "log", "rec"):
        raise L4SError(f"{log}: is not written by `simulate`: write a .rec file, and `l4s-gym log convert` it")
    chosen = chosen_scenario(scenario, seconds, settings)
    with progress_bar(f"simulating {chosen.name}") as report:
        wanted = {"log": log is not None, "packets": packets is not None}
        run = native.simulate(chosen, aqm, seed, **wanted, sample_ms=step_ms, progress=report)
    title = f"{chosen.name}, {run.batch.aqm_of(0)}, seed {seed}"
    _print_run(run, title)
    if log is not None:
        if kind == "rec":
            save_records(log, run.records, simulator=fingerprint.FINGERPRINT)
        else:
            write_log(log, run.records)
        say(f"log: {len(run.records)} records in {log}")
    for path, make, rows in ((series, export.series, "steps"), (packets, export.packets, "packets")):
        if path is not None:
            table = make(run)
            export.write(path, table)
            say(f"{rows}: {len(next(iter(table.values())))} in {path}")
    if picture is not None:
        with atomic_write(picture) as file:
            file.write(native.picture(run, title, picture.suffix.lower()))
        say(f"picture: {picture}")


def _print_run(run: object, title: str) -> None:
    from l4s_gym.evaluation.native import Run
    from l4s_gym.sim import measure

    assert isinstance(run, Run)
    s = run.summary
    table = Table(title=title)
    for column in ("class", "packets", "mean ms", "p50", "p95", "p99", "max", "mark %", "drop %"):
        table.add_column(column, justify="right")
    for name, c in s["classes"].items():
        d = s["delay_ms"][name]
        delays = [f"{d[key]:.2f}" for key in ("mean", "p50", "p95", "p99", "max")]
        table.add_row(name, str(c["offered"]), *delays, f"{100 * c['mark_rate']:.2f}", f"{100 * c['drop_rate']:.2f}")
    console.print(table)
    flows: dict[str, list[float]] = {}
    for name, rate in zip(s["flows"], s["goodput_mbps"], strict=True):
        if not name.startswith(measure.UNUSED):
            flows.setdefault(name.rstrip("0123456789"), []).append(rate)
    ratio = "" if s["goodput_ratio"] is None else f", L4S / Classic {s['goodput_ratio']:.3g}"
    rates = ", ".join(f"{name} {len(r)} x {sum(r) / len(r):.3f}" for name, r in flows.items())
    console.print(
        f"utilisation {100 * s['utilisation']:.1f} %, goodput in Mbit/s per flow: {rates}{ratio}; "
        f"figures of {s['duration_s']:.3g} s after the warm-up",
        highlight=False,
        soft_wrap=True,
    )


@app.command
def fields(record: tyro.conf.Positional[Literal["environment", "queue", "flow", "packet"]] = "flow") -> None:
    """Show what disciplines and congestion controls read and write: the fields of the simulator's records, with units.

    Args:
        record: Whose fields.
    """
    from l4s_gym.sim import layout

    table = Table(title=record)
    for column in ("field", "type", "unit", "words"):
        table.add_column(column)
    for row in layout.ROWS[record]:
        table.add_row(*row)
    console.print(table)


@app.command
def log() -> None:
    """Work on decision logs: `l4s-gym log --help`."""


@app.command
def datasets() -> None:
    """List, build, show, download and upload datasets: `l4s-gym datasets --help`."""


@app.command
def live() -> None:
    """Run, control, record and examine a real queue: `l4s-gym live --help`."""


@app.command
def evaluate(
    agents: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="AGENT [AGENT ...]")],
    scenario: str = "l4s-llm-testbed",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    aqm: str | None = None,
    reward: str = "balance",
    interval: int = 1,
    seconds: float | None = None,
    settings: Settings = (),
    out: Path | None = None,
    allow_stale: bool = False,
) -> None:
    """Evaluate agents in closed loop and print a leaderboard.

    Args:
        agents: native:AQM, random, threshold, enqueue, the folder of a saved agent, or module:attribute of your own.
        scenario: Name or path.
        seeds: Seeds of the episodes.
        aqm: Discipline underneath the agents; the scenario's by default.
        reward: balance, power or l4s_llm.
        interval: Ask the agent at each interval-th packet.
        seconds: Length of the episodes instead of the scenario's.
        settings: Fields of the scenario, such as link.rate_mbps=40 or options.pie.target_ms=10.
        out: Write the results as JSON there.
        allow_stale: Take agents too that were trained on data of another simulator; the results say so.
    """
    from l4s_gym.evaluation import harness, report
    from l4s_gym.sim import fingerprint

    _check_seeds(*seeds)
    if interval < 1:
        raise L4SError(f"--interval {interval}: give 1 or more")
    chosen = chosen_scenario(scenario, seconds, settings)
    results: list[harness.Result] = []
    stale: list[str] = []
    for who in agents:
        with fingerprint.allow_stale(allow_stale) as stale_, progress_bar(f"evaluating {who}") as show:
            results += harness.evaluate(
                who, chosen, seeds=seeds, aqm=aqm, reward=reward, interval=interval, progress=show
            )
        stale += stale_
    for text in stale:
        say(text)
    console.print(report.table(results, f"{chosen.name}, {len(seeds)} seeds, reward {reward}"))
    if out is not None:
        report.write_json(out, results, stale=stale)
        console.print(f"results: {out}", highlight=False, soft_wrap=True)


app.command(_agents.train)
app.command(name="test")(_agents.examine)
app.command(_leaderboard.leaderboard)


@app.command
def demo(out: Path = Path("runs/demo"), pools: Path | None = None, steps: int = 2000, jobs: int | None = None) -> None:
    """The main job end to end: kernel rows, datasets, trained agents, the leaderboard in the quick size, report.

    Args:
        out: Folder of datasets, agents, entries and report.
        pools: Folder of the authors' experience pools; without it a bundled log of the simulator is used.
        steps: Gradient steps of each training.
        jobs: Processes; one a core by default.
    """
    from l4s_gym.evaluation.demo import run_demo

    start = time.monotonic()
    run_demo(out, pools=pools, steps=steps, jobs=jobs, say=say, progress=progress_bar)
    say(f"{time.monotonic() - start:.0f} s in all")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold anything
    try:
        code = _run(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # what is wrong with it is seen here, and not when Python ends
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # else who read it has enough, as `head`
            print(f"l4s-gym: {STDOUT}: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _version() -> str:
    from l4s_gym import __version__
    from l4s_gym.sim import fingerprint

    return f"l4s-gym {__version__}, simulator {fingerprint.FINGERPRINT}"


def _run(args: list[str]) -> int:
    """Run a command; the exit status."""
    try:
        if args[:1] == ["--version"]:
            say(_version())
        elif args[:1] and args[0] in GROUPS:
            module = importlib.import_module(GROUPS[args[0]])
            module.app.cli(prog=f"l4s-gym {args[0]}", args=args[1:], description=module.__doc__)
        else:
            app.cli(prog="l4s-gym", args=args, description=_ABOUT)
    except L4SError as error:
        print(f"l4s-gym: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename == STDOUT or isinstance(error, BrokenPipeError):
            raise
        place = f"{printable(error.filename)}: " if error.filename else ""
        print(f"l4s-gym: {place}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("l4s-gym: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code) if isinstance(stop.code, int) else 2
    return 0
