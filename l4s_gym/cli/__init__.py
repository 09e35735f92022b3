"""The command line `l4s-gym`.

Exit status: 0 success, 1 failure, 2 bad input (one line says how to fix it), 130 interrupted.
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
from l4s_gym.cli.certify import certify as _certify
from l4s_gym.cli.common import STDOUT, Settings, check_output, chosen_scenario, console, progress_bar, say
from l4s_gym.data.files import printable
from l4s_gym.errors import L4SError

app = App()
_ABOUT = """L4S queue management: simulate queues, read kernel logs, train and evaluate agents, run a real queue.

--version prints the versions of the program and of the simulator."""
GROUPS = {"log": "l4s_gym.cli.log", "datasets": "l4s_gym.cli.datasets", "live": "l4s_gym.cli.live"}
"""Each group of commands and its module, which has an `app`."""


def _check_seeds(*seeds: int) -> None:
    for seed in seeds:
        if seed < 0:
            raise L4SError(f"seed {seed}: give 0 or more")


@app.command
def scenarios(suite: str | None = None, name: str | None = None, trace: str | None = None) -> None:
    """List the scenarios that come with the package.

    Args:
        suite: List only the scenarios of one suite: train, test or shift.
        name: Print all fields of this scenario as JSON instead.
        trace: Show the rate of a link trace over time instead: lte, wifi, leo, or a file.
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
        table.add_row(each, " ".join(scenario.suites_of(each)), rate, str(s.n_flows), s.description)
    console.print(table)


@app.command
def disciplines(name: str | None = None) -> None:
    """List the queue disciplines with their options and default values.

    Args:
        name: List only this one; module:attribute for your own.
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
        aqm: Queue discipline: a name that `l4s-gym disciplines` lists, or module:attribute; default: the scenario's.
        seed: Seed of the run: the same seed gives the same run.
        seconds: Simulated seconds; default: the scenario's length.
        settings: Change fields of the scenario, such as link.rate_mbps=40 or options.pie.target_ms=10.
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
        keep_log, keep_packets = log is not None, packets is not None
        run = native.simulate(chosen, aqm, seed, log=keep_log, packets=keep_packets, sample_ms=step_ms, progress=report)
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
    """List the fields that queue disciplines and congestion controls can read and write, with their units.

    Args:
        record: Which record.
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
    """Inspect, convert and audit decision logs: `l4s-gym log --help`."""


@app.command
def datasets() -> None:
    """List, build, show, download and upload datasets: `l4s-gym datasets --help`."""


@app.command
def live() -> None:
    """Start, control, record and diagnose a real queue: `l4s-gym live --help`."""


@app.command
def evaluate(
    agents: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="AGENT [AGENT ...]")],
    scenario: str = "l4s-llm-testbed",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    aqm: str | None = None,
    reward: str = "fair",
    decision_interval: int = 1,
    control_interval_ms: float | None = None,
    seconds: float | None = None,
    settings: Settings = (),
    out: Path | None = None,
    allow_stale: bool = False,
) -> None:
    """Run agents in the simulator and print how they compare.

    Args:
        agents: native:AQM, random, threshold, enqueue, zero, the folder of a saved agent, or your own module:attribute.
        scenario: Name of a scenario, or path of a TOML file.
        seeds: One episode is run for each seed.
        aqm: Queue discipline that runs below the agents; default: the scenario's.
        reward: balance, fair, power or l4s_llm, or weights: used=1,evenness=0.5,delay_c=-0.25,delay_l=-0.25.
        decision_interval: The agent decides every n-th packet, the queue discipline the others.
        control_interval_ms: Control interval of agents that set probabilities or parameters, simulated milliseconds;
            default: the one that they were trained for, or 16.
        seconds: Simulated seconds of an episode; default: the scenario's length.
        settings: Change fields of the scenario, such as link.rate_mbps=40 or options.pie.target_ms=10.
        out: Write the results to this JSON file.
        allow_stale: Accept agents that were trained on data of another version of the simulator; the results say so.
    """
    from l4s_gym.evaluation import harness, report
    from l4s_gym.sim import fingerprint

    _check_seeds(*seeds)
    if decision_interval < 1:
        raise L4SError(f"--decision-interval {decision_interval}: give 1 or more")
    chosen = chosen_scenario(scenario, seconds, settings)
    results: list[harness.Result] = []
    stale: list[str] = []
    for who in agents:
        with fingerprint.allow_stale(allow_stale) as stale_:
            agent, _ = harness.resolve(who)
        if agent is not None:
            _agents.say_other_training(agent, aqm or chosen.aqm, decision_interval)
        with progress_bar(f"evaluating {who}") as show:
            results += harness.evaluate(
                who if agent is None else agent,
                chosen,
                seeds=seeds,
                aqm=aqm,
                reward=reward,
                decision_interval=decision_interval,
                control_interval_ms=control_interval_ms,
                progress=show,
            )
        stale += stale_
    for text in stale:
        say(text)
    console.print(report.table(results, f"{chosen.name}, {len(seeds)} seeds, reward {reward}"))
    if out is not None:
        report.write_json(out, results, stale=stale)
        console.print(f"results: {out}", highlight=False, soft_wrap=True)


app.command(_agents.train)
app.command(_agents.distil)
app.command(name="test")(_agents.examine)
app.command(_agents.compress)
app.command(_leaderboard.leaderboard)
app.command(_certify)


@app.command
def demo(out: Path = Path("runs/demo"), pools: Path | None = None, steps: int = 2000, jobs: int | None = None) -> None:
    """Run everything once, in small: read logs, build datasets, train agents, compare them, write a report.

    Args:
        out: Folder for datasets, agents, results and report.
        pools: Folder with the experience pools of the L4S-LLM authors, else $L4S_GYM_POOLS; default: the simulated log
            of the package.
        steps: Gradient steps for each agent.
        jobs: Number of processes; default: one for each core.
    """
    from l4s_gym.evaluation.demo import run_demo

    start = time.monotonic()
    run_demo(out, pools=pools, steps=steps, jobs=jobs, say=say, progress=progress_bar)
    say(f"{time.monotonic() - start:.0f} s in all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
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
    """Run one command; return the exit status."""
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
