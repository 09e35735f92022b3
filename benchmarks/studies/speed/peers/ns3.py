"""Compare the simulator with ns-3: the same dumbbells, side by side, in agreement and in speed.

ns-3 takes part as a C++ program (`dumbbell.cc`) compiled against the headers and libraries of the PyPI package `ns3`,
so that no Python of its own slows it down. That package may live in another environment:

    python -m venv peers && peers/bin/pip install ns3
    python benchmarks/studies/speed/peers/ns3.py --ns3-python peers/bin/python

The queue delay of ns-3 is the sojourn time in its queue disc. Its link holds one packet more in front of the one being
sent, so that ns-3 reports up to one transmission time (1.5 ms at 8 Mbit/s) less than a queue without such a link.

What differs, and what stands in for it:

- Its NewReno grows once per ACK (half a segment per round trip under delayed ACKs); ours counts segments (RFC 3465),
  and so does ns-3's `linuxreno`, which is its counterpart here.
- Its DCTCP loses marks. When the CE state changes while an ACK is delayed, the receiver sends that ACK with the number
  from before the waiting segment, so that it acknowledges nothing; the sender takes no ECE from such an ACK, and the
  next one covers the marked segment without ECE. Nearly half of CoDel's marks are lost there (629 of 1,399 in six
  seconds of `shippeddctcp-codel`; RFC 8257 section 3.2 loses none), and the queue stands at 22 ms instead of 9. PIE
  raises its probability until the delay is right, and hides this. It also cuts by alpha / 2 on a loss, where RFC 8257
  halves like any TCP. `rfcdctcp` (in `dumbbell.cc`) mends both and is our DCTCP's counterpart.
- Its window does not grow in the round trip after a mark is answered (as in Linux; no RFC asks for it); ours does.
  DCTCP spends 64 % of its round trips so: W p is 1.3 packets under PIE where ours is 2.4, and ours takes twice the
  marks. With growth held there, ours agrees (mean delay in ms and mark rate, ours / ns-3): `dctcp-codel` 9.3 / 9.0 and
  .038 / .038, `dctcp-pie` .046 / .046, `mix-red` 28.3 / 28.9 and .085 / .089, `mix-codel` 15.6 / 17.0 and .132 / .133.
- Its CoDel sets the time of the next mark from now, not from when this one was due (RFC 8289: `drop_next_`); that
  moves DCTCP's delay by at most .2 ms.
- Its RED spaces hits 1 / p to 2 / p packets apart by default; here it spaces them as ours does (`Wait`).
"""

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn, TypedDict, cast

from gymnasium.utils import seeding

from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation.origin import origin
from l4s_gym.sim import measure, scenario
from l4s_gym.sim.batch import Batch

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "dumbbell.cc"
RESULTS = HERE.parent / "results" / "ns3.json"
CACHE = Path.home() / ".cache" / "l4s-gym"
MODULES = ("core", "network", "internet", "point-to-point", "traffic-control", "applications")
FLAGS = ("-std=c++20", "-O2", "-DNDEBUG")
INSTALL = """install it in a virtual environment and name that one's interpreter:
    python -m venv peers && peers/bin/pip install ns3
    python benchmarks/studies/speed/peers/ns3.py --ns3-python peers/bin/python"""
LOCATE_NS3 = """
import importlib.metadata, json
dist = importlib.metadata.distribution("ns3")
print(json.dumps([dist.version, str(dist.locate_file("ns3"))]))
"""


class FlowResult(TypedDict):
    """One flow: its congestion control and what its receiver got after the warm-up."""

    cc: str
    goodput_mbps: float


class Result(TypedDict):
    """One run, counted after the warm-up; `bottleneck_packets` and `wall_s` cover the whole run."""

    flows: list[FlowResult]
    class_goodput_mbps: dict[str, float]
    mean_qdelay_ms: float
    p99_qdelay_ms: float
    offered_packets: int
    drops: int
    marks: int
    drop_rate: float
    mark_rate: float
    utilisation: float
    bottleneck_packets: int
    wall_s: float


@dataclasses.dataclass(frozen=True)
class Case:
    """One dumbbell: a bottleneck, its queue discipline and the flows over it.

    Attributes:
        name: Name in the table and in the results.
        rate_mbps: Rate of the bottleneck (Mbit/s).
        rtt_ms: Base round-trip time of every flow (ms).
        aqm: `fifo`, `red`, `codel` or `pie`.
        flows: Number of flows by congestion control: `cubic`, `newreno`, `linuxreno`, `dctcp`, `rfcdctcp`.
        limit_packets: Buffer limit (packets of 1500 bytes).
        duration_s: Simulated time, warm-up included (s).
        warmup_s: Time before which nothing is counted (s).
        seed: Seed of the run.
        ecn: Whether flows negotiate ECN and the AQM marks; DCTCP negotiates it in any case.
        red_min_th: RED's lower threshold (packets).
        red_max_th: RED's upper threshold (packets).
        red_qw: Weight of RED's average.
        red_max_p: RED's probability at the upper threshold; gentle above it.
    """

    name: str
    rate_mbps: float
    rtt_ms: float
    aqm: str
    flows: dict[str, int]
    limit_packets: int
    duration_s: float = 60.0
    warmup_s: float = 10.0
    seed: int = 1
    ecn: bool = True
    red_min_th: float = 10.0
    red_max_th: float = 30.0
    red_qw: float = 0.002
    red_max_p: float = 0.1

    def arguments(self) -> list[str]:
        """Gives the arguments of the ns-3 program."""
        values = dataclasses.asdict(self) | {"flows": ",".join(f"{cc}:{n}" for cc, n in self.flows.items())}
        del values["name"]
        return [f"--{key}={int(value) if isinstance(value, bool) else value}" for key, value in values.items()]


def packets(rate_mbps: float, delay_ms: float) -> int:
    """Converts a queue delay into packets of 1500 bytes."""
    return round(rate_mbps * 1e3 * delay_ms / (8 * 1500))


def make_case(label: str, rate_mbps: float, rtt_ms: float, aqm: str, flows: dict[str, int]) -> Case:
    """Makes a case with a buffer of 250 ms and RED's thresholds at 15 and 45 ms."""
    low, high, limit = (packets(rate_mbps, delay_ms) for delay_ms in (15, 45, 250))
    name = f"{label}-{aqm}"
    return Case(name, rate_mbps, rtt_ms, aqm, flows, limit, red_min_th=low, red_max_th=high)


CASES = [
    *(
        make_case("mix", 8, 10, aqm, {"cubic": 2, "linuxreno": 2, "rfcdctcp": 1})
        for aqm in ("fifo", "red", "codel", "pie")
    ),
    *(make_case("newreno", 40, 20, aqm, {"linuxreno": 4}) for aqm in ("fifo", "codel", "pie")),
    *(make_case("cubic", 40, 20, aqm, {"cubic": 4}) for aqm in ("fifo", "codel", "pie")),
    *(make_case("dctcp", 40, 20, aqm, {"rfcdctcp": 4}) for aqm in ("codel", "pie")),  # nothing marks in a FIFO
    make_case("shippeddctcp", 40, 20, "codel", {"dctcp": 4}),
]


def fail(message: str) -> NoReturn:
    """Says what to do about a missing requirement, and exits with code 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def locate_ns3(ns3_python: Path) -> tuple[str, Path]:
    """Finds the version and the folder of the package `ns3` that an interpreter has."""
    try:
        # -I keeps this folder off the import path, where a script has the name of the package.
        command = [str(ns3_python), "-I", "-c", LOCATE_NS3]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        fail(f"cannot run {ns3_python} ({error.strerror}); if ns-3 is missing, {INSTALL}")
    if done.returncode:
        fail(f"the package ns3 is not installed for {ns3_python}; {INSTALL}")
    version, folder = json.loads(done.stdout)
    return version, Path(folder)


def build(ns3_python: Path) -> tuple[Path, str]:
    """Compiles the ns-3 program unless it is there already.

    Args:
        ns3_python: Interpreter whose environment has the package `ns3`.

    Returns:
        The program and the version of ns-3.
    """
    version, folder = locate_ns3(ns3_python)
    # The folder counts as well: the program finds its libraries there.
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version.encode(), os.fsencode(folder), repr(FLAGS).encode()]))
    program = CACHE / f"ns3-dumbbell-{key.hexdigest()[:16]}"
    if program.exists():
        return program, version
    compiler = shutil.which("g++")
    if compiler is None:
        fail("g++ is missing: install a C++20 compiler (Debian: apt install g++)")
    core = next(folder.glob("lib*/libns3*-core.so"), None)
    if core is None or not (folder / "include" / "ns3" / "core-module.h").exists():
        fail(f"ns3 {version} in {folder} bears no C++ headers or libraries: install its wheel (pip install ns3)")
    prefix = core.stem.removeprefix("lib").removesuffix("core")
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = program.with_suffix(f".{os.getpid()}")
    command = [compiler, *FLAGS, f"-I{folder / 'include'}", str(SOURCE), "-o", str(partial), f"-L{core.parent}"]
    command += [f"-Wl,-rpath,{core.parent}", *(f"-l{prefix}{module}" for module in MODULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"compiling {SOURCE.name} against ns3 {version} failed:\n{done.stderr[-4000:]}")
    partial.rename(program)
    return program, version


def run_ns3(case: Case, program: Path) -> Result:
    """Runs a case in ns-3."""
    done = subprocess.run([str(program), *case.arguments()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ns-3 failed on {case.name}:\n{done.stderr[-4000:]}")
    return cast(Result, json.loads(done.stdout))


def our_scenario(case: Case) -> scenario.Scenario:
    """The case as a scenario of this project."""
    kinds = {"linuxreno": "newreno", "rfcdctcp": "dctcp"}
    per_packet_ms = 1500 * 8 / (case.rate_mbps * 1e3)
    ecn = {} if case.ecn else {"ecn": "not-ect"}
    return scenario.from_dict(
        {
            "name": case.name,
            "horizon_s": case.duration_s,
            "warmup_s": case.warmup_s,
            "aqm": case.aqm,
            "link": {"rate_mbps": case.rate_mbps, "limit_packets": case.limit_packets},
            "sources": [
                {"kind": kinds.get(cc, cc), "count": n, "rtt_ms": case.rtt_ms, **ecn} for cc, n in case.flows.items()
            ],
            "options": {
                "red": {
                    "min_ms": case.red_min_th * per_packet_ms,
                    "max_ms": case.red_max_th * per_packet_ms,
                    "weight": case.red_qw,
                    "max_p": case.red_max_p,
                },
                "pie": {"derandomise": False},  # as ns-3's default
            },
        }
    )


def run_ours(case: Case) -> Result:
    """Runs a case in this project's simulator."""
    batch = Batch(our_scenario(case))
    batch.reset(0, seeding.np_random(case.seed)[0])
    batch.stop_at(0, round(case.warmup_s * 1e9))
    start = time.perf_counter()
    batch.advance_one()
    batch.reset_counters(0)
    batch.advance_one()
    wall_s = time.perf_counter() - start
    s = measure.summary(batch, 0)
    names = [cc for cc, n in case.flows.items() for _ in range(n)]
    flows: list[FlowResult] = [
        {"cc": cc, "goodput_mbps": mbps} for cc, mbps in zip(names, s["goodput_mbps"], strict=True)
    ]
    hist = batch.hist[0].sum(axis=0)
    left = batch.queue["left"][0].sum()
    offered = sum(c["offered"] for c in s["classes"].values())
    return {
        "flows": flows,
        "class_goodput_mbps": {cc: sum(f["goodput_mbps"] for f in flows if f["cc"] == cc) for cc in case.flows},
        "mean_qdelay_ms": float(batch.queue["left_delay_ns"][0].sum()) / left * 1e-6,
        "p99_qdelay_ms": measure.quantile(hist, 0.99) * 1e-6,
        "offered_packets": offered,
        "drops": sum(c["dropped"] for c in s["classes"].values()),
        "marks": sum(c["marked"] for c in s["classes"].values()),
        "drop_rate": s["drop_rate"],
        "mark_rate": s["mark_rate"],
        "utilisation": s["utilisation"],
        "bottleneck_packets": int(batch.env["delivered"][0]),
        "wall_s": wall_s,
    }


def metrics(result: Result) -> dict[str, float]:
    """Picks what the table compares."""
    values = {f"{cc}_mbps": mbps for cc, mbps in sorted(result["class_goodput_mbps"].items())}
    for key in ("mean_qdelay_ms", "p99_qdelay_ms", "drop_rate", "mark_rate", "utilisation"):
        values[key] = result[key]
    return values | {"packets_per_s": result["bottleneck_packets"] / result["wall_s"]}


def mean_metrics(results: list[Result]) -> dict[str, float]:
    """Averages the compared values over seeds."""
    rows = [metrics(result) for result in results]
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} if rows else {}


def print_case(name: str, ours: list[Result], ns3: list[Result]) -> None:
    """Prints one case of the table: ours, ns-3 and their ratio."""
    left, right = mean_metrics(ours), mean_metrics(ns3)
    print(f"{name:<28}{'ours':>14}{'ns-3':>14}{'ratio':>10}")
    for key, peer in right.items():
        own = f"{left[key]:.6g}" if left else "-"
        ratio = f"{left[key] / peer:.3f}" if left and peer else "-"
        print(f"  {key:<26}{own:>14}{peer:>14.6g}{ratio:>10}")
    print(flush=True)


def main(
    ns3_python: Path = Path(sys.executable),
    seeds: tuple[int, ...] = (1,),
    cases: tuple[str, ...] = (),
    ours: bool = True,
    out: Path = RESULTS,
) -> None:
    """Compares the simulator with ns-3.

    Args:
        ns3_python: Interpreter whose environment has the package `ns3`.
        seeds: Seeds of each case; the table shows means.
        cases: Names of the cases to run; all when empty.
        ours: Whether to run our simulator too.
        out: JSON file of the results.
    """
    unknown = sorted(set(cases) - {case.name for case in CASES})
    if unknown:
        fail(f"unknown cases {', '.join(unknown)}; known: {', '.join(case.name for case in CASES)}")
    program, version = build(ns3_python)
    rows = []
    for case in CASES:
        if cases and case.name not in cases:
            continue
        runs = [dataclasses.replace(case, seed=seed) for seed in seeds]
        peer = [run_ns3(run, program) for run in runs]
        own = [run_ours(run) for run in runs] if ours else []
        print_case(case.name, own, peer)
        rows.append({"case": dataclasses.asdict(case), "seeds": seeds, "ours": own, "ns3": peer})
    # The path of the other environment says nothing to a reader.
    chosen = ["--seeds", *map(str, seeds)] + (["--cases", *cases] if cases else []) + ([] if ours else ["--no-ours"])
    facts = origin()
    facts["versions"]["ns3"] = version
    facts["command"] = shlex.join(
        ["python", "benchmarks/studies/speed/peers/ns3.py", "--ns3-python", "PYTHON", *chosen]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file:
        file.write((json.dumps({**facts, "results": rows}, indent=1) + "\n").encode())
    print(f"wrote {out}")


if __name__ == "__main__":
    command_line(main)
