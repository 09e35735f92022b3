"""Speed of the simulator and the environments: medians and spread, with other simulators measured in the same run.

        python benchmarks/studies/speed/run.py                                # everything but ns-3
    python benchmarks/studies/speed/run.py --ns3-python peers/bin/python  # and ns-3 (see peers/ns3.py)
        python benchmarks/studies/speed/run.py --against 4124192              # and another commit, alternating

Absolute figures of a shared machine vary by a factor of two between runs; the ratios are from one run, with the
sides measured alternately, and CPU time excludes the machine's other work. There are no assertions: targets are
shown beside the figures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from l4s_gym.cli.arguments import command_line
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.origin import append_run, origin
from l4s_gym.sim.workers import cores

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
RESULTS = HERE / "results" / "speed.json"
PAPER = "l4s-llm-testbed"
OURS, CARTPOLE = "L4S-DualPI2-v0", "CartPole-v1"
FIRST_STEP = (
    "import resource, time; t = time.perf_counter(); "
    "import gymnasium as gym; e = gym.make('l4s_gym:L4S-DualPI2-v0'); e.reset(seed=0); e.step(0); "
    "print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)
BUSY = "while True: pass"
CLOCKS = ("wall", "cpu")


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median, least and greatest of some runs."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def show(label: str, figure: dict[str, Any], scale: float, unit: str, target: str) -> None:
    """Print one line of the report: by wall time, and by CPU time of all threads."""
    low, mid, high = (figure["wall"][key] / scale for key in ("min", "median", "max"))
    by_cpu = f"by CPU time {figure['cpu']['median'] / scale:.2f}"
    print(
        f"{label:<46} {mid:8.2f} {unit:<14} [{low:.2f} .. {high:.2f}]  {by_cpu}  {target and 'target '}{target}",
        flush=True,
    )


class Side:
    """A source tree, measured in a separate process."""

    def __init__(self, name: str, tree: Path) -> None:
        self.name = name
        self.env = {**os.environ, "PYTHONPATH": str(tree)}
        command = [sys.executable, str(HERE / "side.py")]
        # The compiled code is kept, so that the measured process loads it, as a user's does.
        subprocess.run([*command, "--compile"], env=self.env, check=True)
        pipe = subprocess.PIPE
        asked = subprocess.run([*command, "--disciplines"], env=self.env, check=True, stdout=pipe, text=True)
        self.disciplines: list[str] = json.loads(asked.stdout)
        self._process = subprocess.Popen(command, env=self.env, stdin=pipe, stdout=pipe, text=True)

    def sample(self, row: str, **arguments: Any) -> dict[str, float]:
        """Return one sample of `speed_side.SAMPLES`."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([row, arguments]) + "\n")
        process.stdin.flush()
        found: dict[str, float] = json.loads(process.stdout.readline())
        return found

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextlib.contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """Extract the files of a commit of this repository to a temporary folder."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if done.returncode:
        raise L4SError(f"--against {commit}: {done.stderr.decode().strip()}: name a commit of this repository")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)


@contextlib.contextmanager
def busy_machine(programs: int) -> Iterator[None]:
    """Run `programs` other programs that compute without end."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(programs)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


@dataclasses.dataclass
class Bench:
    """Measures rows on all sides alternately, and prints and keeps them."""

    sides: list[Side]
    repeats: int
    data: dict[str, Any]

    def row(self, key: str, title: str, unit: str, samples: Samples, target: str = "", **ratio_targets: str) -> None:
        """Measure the rates of some samples alternately, and the ratios of the first to the others.

        Args:
            key: Key in the results.
            title: Title in the report.
            unit: Unit of the rates: `M ...` is a million, `k ...` a thousand.
            samples: Name -> function that takes a sample.
            target: Target of the first.
            **ratio_targets: Name of another -> target of the ratio to it.
        """
        scale = {"M": 1e6, "k": 1e3}[unit[0]]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in samples}
        for k in range(self.repeats + 1):
            for name, sample in samples.items():
                taken = sample()
                if k:  # the first one is the warm-up
                    found[name].append(taken)
        first = next(iter(found))
        out: dict[str, Any] = {}
        for name, runs in found.items():
            out[name] = {clock: spread([run["work"] / run[f"{clock}_s"] for run in runs]) for clock in CLOCKS}
            label, aim = (title, target) if name == first else (f"  {name}", "")
            show(label, out[name], scale, unit, aim)
        for other in [name for name in found if name != first]:
            pairs = list(zip(found[first], found[other], strict=True))
            out[f"ratio to {other}"] = ratio = {
                clock: spread([a["work"] / a[f"{clock}_s"] / (b["work"] / b[f"{clock}_s"]) for a, b in pairs])
                for clock in CLOCKS
            }
            show(f"  ratio to {other}", ratio, 1.0, "x", ratio_targets.get(other, ""))
        self.data[key] = out

    def of(self, row: str, **arguments: Any) -> Samples:
        """Return the same sample on every side."""
        return {side.name: functools.partial(side.sample, row, **arguments) for side in self.sides}


Samples = dict[str, Callable[[], dict[str, float]]]


def start_times(side: Side, repeats: int) -> dict[str, Any]:
    """Measure from the start of the imports to the first step, with an empty cache (which compiles) and a full one."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**side.env, "NUMBA_CACHE_DIR": folder}

        def first_step() -> dict[str, float]:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, "-c", FIRST_STEP], env=env, capture_output=True, text=True, check=True
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall_s, peak_kb = map(float, done.stdout.split())
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_kb / 1024}

        cold = first_step()
        kept_kb = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1024
        warm = [first_step() for _ in range(repeats)]
    return {"cold": cold, "kept_kb": kept_kb, "warm": {key: spread([run[key] for run in warm]) for key in cold}}


def show_start(side: Side, start: dict[str, Any]) -> None:
    """Print two lines of the report."""
    cold, warm = start["cold"], {key: value["median"] for key, value in start["warm"].items()}
    for name, run, target in (("cold (compiles)", cold, "target 15 s CPU"), ("warm", warm, "target 1.5 s")):
        print(
            f"{f'first step, {name}, {side.name}':<46} {run['wall_s']:8.2f} s, CPU {run['cpu_s']:.2f} s, "
            f"{run['peak_mb']:.0f} MB  {target}",
            flush=True,
        )
    print(f"  compiled code on disk {start['kept_kb']:.0f} kB")


def against_ns3(ns3_python: Path) -> tuple[Samples, str]:
    """Measure bottleneck packets of both on the paper's flows at 8 Mbit/s under PIE; also return ns-3's version."""
    spec = importlib.util.spec_from_file_location("peer", HERE / "peers" / "ns3.py")
    assert spec is not None
    assert spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = peer
    spec.loader.exec_module(peer)
    program, version = peer.build(ns3_python)
    case = peer.make_case("paper", 8, 20, "pie", {"cubic": 4, "linuxreno": 4, "dctcp": 1})

    def sample(run: Callable[..., Any], *more: Any) -> dict[str, float]:
        done = run(case, *more)
        # ns-3 gives only wall time; it computes all the time.
        return {"work": done["bottleneck_packets"], "wall_s": done["wall_s"], "cpu_s": done["wall_s"]}

    ours, theirs = functools.partial(sample, peer.run_ours), functools.partial(sample, peer.run_ns3, program)
    return {"ours": ours, "ns-3": theirs}, version


def grid() -> Iterator[dict[str, Any]]:
    """Yield rates and numbers of flows (CUBIC and DCTCP in equal parts, 20 ms)."""
    for rate in (1, 10, 100, 1000):
        for flows in (1, 4, 16, 64):
            half = (flows + 1) // 2
            yield {
                "name": f"{rate} Mbit/s, {flows} flows",
                "horizon_s": max(min(60.0, 600.0 / rate), 3.0),
                "aqm": "dualpi2_rfc9332",
                "link": {"rate_mbps": float(rate)},
                "sources": [
                    {"kind": "cubic", "count": half, "rtt_ms": 20.0},
                    {"kind": "dctcp", "count": flows - half, "rtt_ms": 20.0},
                ],
            }


def measure(bench: Bench, ns3_python: Path | None, quick: bool) -> None:
    """Measure all rows."""
    ours, packets, decisions = bench.sides[0], "M packets/s", "M decisions/s"
    for aqm in ours.disciplines:
        sides = [side for side in bench.sides if aqm in side.disciplines]
        samples: Samples = {side.name: functools.partial(side.sample, "native", what=PAPER, aqm=aqm) for side in sides}
        bench.row(f"native {aqm}", f"native episodes, {PAPER}, {aqm}", packets, samples, "8")
    if ns3_python is not None:
        samples, bench.data["ns-3 version"] = against_ns3(ns3_python)
        bench.row("ns-3", "the paper's flows, PIE", packets, samples, **{"ns-3": "450"})
    count = 20_000 if quick else 100_000
    samples = bench.of("steps", env_id=OURS, count=count)
    samples[CARTPOLE] = lambda: ours.sample("steps", env_id=CARTPOLE, count=count)
    bench.row("single", "steps through gym.make with its defaults", "k steps/s", samples, **{CARTPOLE: "4"})
    count = 300 if quick else 1000
    for n, target in ((64, ""), (256, "12"), (1024, "8"), (4096, "4")):
        for threads in (False, True) if n > 64 else (False,):
            key = f"vector {n}, {'threads' if threads else 'one thread'}"
            samples = bench.of("vector", n=n, threads=threads, count=count * 256 // max(n, 256))
            bench.row(key, key, decisions, samples, target if threads else "")
    samples = {
        f"{n} {name}": functools.partial(ours.sample, "intervals", n=n, vector=n == 64, count=count // 5)
        for n, name in ((64, "side by side"), (1, "alone"))
    }
    bench.row("intervals", "control intervals, vector of 64", "k steps/s", samples)
    with busy_machine(cores()):
        for side in bench.sides:
            samples = {
                name: functools.partial(side.sample, "vector", n=1024, threads=name == "threads", count=4 * count)
                for name in ("threads", "one thread")
            }
            key = f"vector 1024, busy machine, {side.name}"
            bench.row(key, key, decisions, samples, **{"one thread": "1"})
    bench.data["start"] = {}
    for side in bench.sides:
        bench.data["start"][side.name] = start_times(side, 3 if quick else bench.repeats)
        show_start(side, bench.data["start"][side.name])
    bench.repeats = 2 if quick else 3
    for chosen in grid():
        bench.row(chosen["name"], f"  native, {chosen['name']}", packets, bench.of("native", what=json.dumps(chosen)))


def main(
    ns3_python: Path | None = None,
    repeats: int = 7,
    out: Path = RESULTS,
    quick: bool = False,
    against: str | None = None,
) -> None:
    """Measure and write the results.

    Args:
        ns3_python: Interpreter of an environment that has the package `ns3`; without it ns-3 is left out.
        repeats: Runs of each figure.
        out: JSON file to which this run is appended.
        quick: Fewer, shorter runs.
        against: Another commit of this repository, measured beside this tree.
    """
    data: dict[str, Any] = origin()
    with contextlib.ExitStack() as stack:
        trees = {"ours": ROOT}
        if against is not None:
            trees[against] = stack.enter_context(tree_of(against))
        sides = [Side(name, tree) for name, tree in trees.items()]
        for side in sides:
            stack.callback(side.close)
        measure(Bench(sides, 3 if quick else repeats, data), ns3_python, quick)
    runs = append_run(out, data)
    print(f"run {len(runs)} in {out}")


if __name__ == "__main__":
    command_line(main)
