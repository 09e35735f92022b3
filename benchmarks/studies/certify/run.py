"""What holds of the L4S-LLM paper's statements about stability, for disciplines and agents; bounds for the shield.

    python benchmarks/studies/certify/run.py runs/onestep --quick runs/llm

The disciplines of RFC 9332, as it is and tuned, stand beside the agents. Each report is in its own folder of
`runs/certify`, as `l4s-gym certify` makes it; the script goes on where it was stopped, and writes what is told of all
into `results`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import tyro

from l4s_gym.cli.arguments import command_line
from l4s_gym.evaluation import native
from l4s_gym.evaluation.certify import page, run, statements
from l4s_gym.evaluation.entry import read_protocol
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.markdown import table

RESULTS: Final = Path(__file__).resolve().parent / "results"
NATIVE: Final = Path(__file__).resolve().parents[2] / "experiments" / "native"
WINDOW: Final = 128
"""Packets of the shield's window, as shipped."""
SHARES: Final = (0.0625, 0.125, 0.25, 0.5)
DISCIPLINES: Final = {"RFC 9332": "native:dualpi2_rfc9332", "RFC 9332 tuned": str(NATIVE / "dualpi2_tuned.toml")}


def windows(given: str) -> dict[str, list[float]]:
    """Return the largest share of drops in any window of the shield, of an episode of each scenario, by queue."""
    subject = run.Subject.of(given)
    size = run.SIZES["standard"]
    found: dict[str, list[float]] = {"C": [], "L": []}
    for name in sorted({name for _, name in read_protocol().cells(size.suites)}):
        scenario = subject.scenario(name, size.seconds)
        played = native.simulate(scenario, run.LAW, run.FIRST_SEED, packets=True).packets
        for k, queue in enumerate("CL"):
            dropped = played["dropped"][played["l4s"] == bool(k)]
            whole = dropped[: len(dropped) // WINDOW * WINDOW].reshape(-1, WINDOW)
            found[queue].append(float(whole.mean(1).max(initial=0.0)))
    return found


def told(parts: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a report."""
    responses = {
        name: {key: value for key, value in part.items() if key not in ("response", "error", "seeds")}
        for name, part in statements.with_prefix(parts, "response ").items()
    }
    return {
        "statements": [each.__dict__ for each in statements.all_of(parts)],
        "episodes": len(statements.episodes(parts)),
        "chances": [
            {**each.__dict__, "moment": each.moment.__dict__, "packet": each.packet.__dict__}
            for each in statements.above(parts)
        ],
        "shield": {
            queue: {f"{ms:g}": found.__dict__ for ms, found in statements.beyond(parts, k, page.SHIELD_MS[k])}
            for k, queue in enumerate("CL")
        },
        "drift": {f"{lag:g}": [band.__dict__ for band in statements.drift(parts, lag)] for lag in run.LAGS_MS},
        "responses": responses,
        "gains": parts["gains"],
        "margins": parts.get("margins"),
        "onset": statements.with_prefix(parts, "onset "),
        "seconds": sum(part["seconds"] for part in parts.values()),
    }


def tables(data: dict[str, Any]) -> str:
    """Return the results in words."""
    found: dict[str, dict[str, Any]] = data["reports"]
    lines = ["# Stability", ""]
    for name, each in found.items():
        lines += [f"## {name}: {each['episodes']} episodes, {each['seconds']:.0f} s", ""]
        rows = [
            [one[key] or "PI2" for key in ("equation", "says", "verdict", "number", "how")]
            for one in each["statements"]
        ]
        lines += [*table(("equation", "statement", "verdict", "number", "how"), rows), ""]
    lines += ["## The largest share of drops in any window of 128 packets: episodes above", ""]
    rows = [
        [name, *(f"{sum(x > share for x in each[queue])}/{len(each[queue])}" for queue in "CL" for share in SHARES)]
        for name, each in data["windows"].items()
    ]
    heads = [f"{queue} > {share:g}" for queue in "CL" for share in SHARES]
    lines += [*table(("law", *heads), rows), ""]
    lines += ["## How likely any packet of an episode waits longer (95 % interval)", ""]
    heads = [f"{queue} > {ms} ms" for queue in "CL" for ms in next(iter(found.values()))["shield"][queue]]
    rows = [
        [
            name,
            *(
                f"{c['hits']}/{c['trials']} [{c['low']:.3f}, {c['high']:.3f}]"
                for queue in "CL"
                for c in each["shield"][queue].values()
            ),
        ]
        for name, each in found.items()
    ]
    lines += [*table(("agent", *heads), rows), "", "## Onset of oscillation: factor of both gains", ""]
    rows = [
        [
            name,
            f"{part['rtt_ms']:g}",
            *("-" if part[key] is None else f"{part[key]:.2f}" for key in ("simulated", "theory")),
        ]
        for name, each in found.items()
        for part in each["onset"].values()
    ]
    lines += [
        *table(("law of", "RTT ms", "simulator", "linearised loop"), rows),
        "",
        "## Slowest mode of the response",
        "",
    ]
    rows = [
        [
            name,
            point,
            f"{part['radius_100ms']:.3f}",
            *("-" if part[key] is None else f"{part[key]:.2f}" for key in ("decay_s", "frequency_hz")),
            part["order"],
        ]
        for name, each in found.items()
        for point, part in each["responses"].items()
    ]
    lines += table(("agent", "point", "radius in 100 ms", "decay s", "frequency Hz", "order"), rows)
    return "\n".join(lines) + "\n"


def main(
    agents: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[AGENT ...]")] = (),
    quick: tuple[str, ...] = (),
    small: bool = False,
    work: Path = Path("runs/certify"),
    out: Path = RESULTS,
) -> None:
    """Measure, and write the results.

    Args:
        agents: Beside the disciplines.
        quick: Agents that are measured in the small size.
        small: Measure all in the small size.
        work: Folder of the reports.
        out: Folder of the results.
    """
    sizes = {each: run.SIZES["quick" if small or each in quick else "standard"] for each in (*agents, *quick)}
    full = run.SIZES["quick" if small else "standard"]
    jobs = [(name, given, full) for name, given in DISCIPLINES.items()]
    jobs += [(run.Subject.of(given).name, given, size) for given, size in sizes.items()]
    reports = {}
    for name, given, size in jobs:
        folder = work / name.replace(" ", "-")
        done = run.certify(run.Subject.of(given, name), size, folder, say=partial(print, name, flush=True))
        page.write(folder)
        reports[name] = told(done.parts)
    drops = {name: windows(given) for name, given in DISCIPLINES.items()}
    data = json.loads(json.dumps({**origin(), "reports": reports, "windows": drops}, default=float))
    write_run(out, "certify", data, tables(data))


if __name__ == "__main__":
    command_line(main)
