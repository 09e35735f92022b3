"""Speed and memory of reading logged decisions, building datasets and drawing windows.

    python benchmarks/studies/data_speed/run.py                     # all sections
    python benchmarks/studies/data_speed/run.py --only text binary  # some
    python benchmarks/studies/data_speed/run.py --only memory --rows 1e6 1e7 1e8 --text-rows 1e6 1e7

The rows are those of the simulated testbed, repeated in files of a temporary folder (13.5 GB for 1e8 binary
rows). Figures of a shared machine vary between runs: the best of some runs shows what the code can do, the median what
to expect. There are no assertions: targets are shown beside the figures.
"""

from __future__ import annotations

import gzip
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from l4s_gym.cli.arguments import command_line
from l4s_gym.data import recipes
from l4s_gym.data.build import build as build_dataset
from l4s_gym.data.convert import convert
from l4s_gym.data.logs import known_fields, write_log
from l4s_gym.data.minari_io import datasets_in
from l4s_gym.data.records import RecordWriter
from l4s_gym.data.simulated import simulate_log
from l4s_gym.data.stream import open_stream
from l4s_gym.data.windows import Windows
from l4s_gym.evaluation.origin import append_run, origin

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "data_speed.json"
PREFIX = "Jul 10 12:00:00 router kernel: "

# In a process of its own: rows, seconds, and the most memory that the process ever held, in MB.
PASS = """
import sys, time
from l4s_gym.data.causal import CausalStream
from l4s_gym.data.convert import convert
from l4s_gym.data.stream import RunSplitter, open_stream
what, path, out = sys.argv[1:]
start = time.perf_counter()
if what == "parquet":
    rows = convert(path, "parquet", out, overwrite=True).rows
elif what == "minari":
    from l4s_gym.data.minari_io import create_from_stream
    about = {"algorithm_name": "none", "description": "for the measurement of speed", "overwrite": True}
    rows = create_from_stream("l4s/dualpi2/speed-v0", open_stream(path), **about).total_steps
else:
    stream = open_stream(path)
    splitter, causal, rows = RunSplitter(stream.present), CausalStream(stream.present), 0
    for block in stream.blocks():
        splitter.starts(block), causal.observe(block)
        rows += len(block)
seconds = time.perf_counter() - start
# Not ru_maxrss: that one counts what the parent held when it started this process.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(rows, seconds, int(peak) / 1024)
"""


@dataclass(frozen=True)
class Options:
    """Options of the measurement.

    Attributes:
        only: Sections; default: all.
        repeats: Runs of each figure.
        rows: Numbers of binary rows whose peak memory is measured.
        text_rows: Numbers of text rows whose peak memory is measured.
        folder: Folder for the temporary files.
        out: JSON file to which this run is appended.
    """

    only: tuple[str, ...] = ()
    repeats: int = 5
    rows: tuple[float, ...] = (1e6, 1e7, 1e8)
    text_rows: tuple[float, ...] = (1e6, 1e7)
    folder: Path | None = None
    out: Path = RESULTS


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median, least and greatest of some runs."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def show(name: str, figure: dict[str, Any], target: str = "") -> None:
    """Print one line of the report."""
    best, median = figure["max"] / 1e6, figure["median"] / 1e6
    print(f"{name:<44} best {best:6.2f}, median {median:6.2f} M rows/s  {target}", flush=True)


def some_rows() -> Any:
    """Return a run of the testbed, some ten thousand rows."""
    return simulate_log("l4s-llm-testbed", seconds=60.0)


def make_text(path: Path, rows: int) -> Path:
    """Write a log of `rows` lines."""
    part = path.with_name("part.log")
    write_log(part, some_rows(), prefix=PREFIX)
    lines = part.read_bytes().splitlines(keepends=True)
    whole, rest = divmod(rows, len(lines))
    with path.open("wb") as file:
        for _ in range(whole):
            file.write(b"".join(lines))
        file.write(b"".join(lines[:rest]))
    part.unlink()
    return path


def make_binary(path: Path, rows: int) -> Path:
    """Write `rows` binary records."""
    some = some_rows()
    whole, rest = divmod(rows, len(some))
    with RecordWriter(path, known_fields(some)) as writer:
        for _ in range(whole):
            writer.write(some)
        writer.write(some[:rest])
    return path


def rate(action: Callable[[], int], repeats: int) -> dict[str, Any]:
    """Return the rows per second of some runs, after one that is not counted."""
    action()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        rates.append(action() / (time.perf_counter() - start))
    return spread(rates)


def read(path: Path) -> int:
    """Read all blocks; return the number of rows."""
    return sum(len(block) for block in open_stream(path).blocks())


def text(options: Options, folder: Path) -> dict[str, Any]:
    """Measure kernel logs, plain and compressed, with a prefix of syslog."""
    plain = make_text(folder / "speed.log", 1_000_000)
    packed = folder / "speed.log.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes(), 6))
    found: dict[str, Any] = {"bytes_per_row": plain.stat().st_size / 1e6}
    found |= {path.name: rate(partial(read, path), options.repeats) for path in (plain, packed)}
    show("text log", found["speed.log"], "target 1")
    show("text log, .gz", found["speed.log.gz"])
    return found


def binary(options: Options, folder: Path) -> dict[str, Any]:
    """Measure binary records with the check of bounds, and conversions of them."""
    plain = make_binary(folder / "speed.rec", 2_000_000)
    convert(plain, "rec", folder / "speed.rec.zst")
    convert(plain, "parquet", folder / "speed.parquet")
    found = {}
    for path in (plain, folder / "speed.rec.zst", folder / "speed.parquet"):
        found[path.name] = rate(partial(read, path), options.repeats) | {"bytes": path.stat().st_size}
        show(f"{path.name}, {path.stat().st_size / 2e6:.1f} B/row", found[path.name], "target 5" * (path == plain))
    for kind, name in (("rec", "new.rec"), ("parquet", "new.parquet")):

        def write(kind: Any = kind, name: str = name) -> int:
            return convert(plain, kind, folder / name, overwrite=True).rows

        found[f"convert to {kind}"] = rate(write, options.repeats)
        show(f"binary to {kind}", found[f"convert to {kind}"])
    return found


def one_pass(what: str, path: Path) -> dict[str, float]:
    """Measure a full pass in a separate process."""
    out = path.with_name("pass.parquet")
    command = [sys.executable, "-c", PASS, what, str(path), str(out)]
    with datasets_in(path.parent):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    out.unlink(missing_ok=True)
    rows, seconds, peak = map(float, done.stdout.split())
    print(
        f"{path.suffix[1:]:>4} {rows:12.0f} rows, {what:<8} {rows / seconds / 1e6:6.2f} M rows/s {peak:8.0f} MB",
        flush=True,
    )
    return {"rows": rows, "seconds": seconds, "peak_mb": peak}


def memory(options: Options, folder: Path) -> dict[str, Any]:
    """Measure peak memory by size: of a pass (blocks, runs, causal observations), and of conversions."""
    found: dict[str, Any] = {}
    cases = [("log", make_text, rows) for rows in options.text_rows]
    cases += [("rec", make_binary, rows) for rows in options.rows]
    for suffix, make, rows in cases:
        path = make(folder / f"memory.{suffix}", int(rows))
        passes = ("observe", "parquet", "minari") if rows <= 1e7 else ("observe",)
        found[f"{suffix} {rows:g}"] = {what: one_pass(what, path) for what in passes}
        path.unlink()
    return found


def build(options: Options, folder: Path) -> dict[str, Any]:
    """Measure the build of datasets of 10^7 steps on all cores, without reference scores."""
    found = {}
    with datasets_in(folder):
        for recipe in map(recipes.load, ("testbed", "grid", "mixed")):
            rates, steps = [], 0
            for _ in range(3):
                start = time.perf_counter()
                steps = build_dataset(recipe, "full", overwrite=True).total_steps
                rates.append(steps / (time.perf_counter() - start))
            show(f"build of {recipe.dataset_id('full')}", spread(rates), "target 1")
            found[recipe.name] = {"steps": steps, "steps_per_s": spread(rates)}
            shutil.rmtree(folder / "l4s")
    return found


def windows(options: Options, folder: Path) -> dict[str, Any]:
    """Measure the drawing of windows for a decision transformer from a dataset of about 10^6 steps."""
    recipe = msgspec.structs.replace(recipes.load("testbed"), small=recipes.Size(episodes=23, seconds=60.0))

    def ms(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)

    with datasets_in(folder):
        dataset = build_dataset(recipe, "small")
        drawer, rng = Windows(dataset, 20), np.random.default_rng(0)
        drawn = [rng.integers(len(drawer), size=256) for _ in range(100)]
        found = {
            "steps": len(drawer),
            "episode_steps": len(dataset[7].actions),
            "minari_episode_ms": statistics.median(ms(lambda: dataset[7]) for _ in range(20)),
            "open_ms": statistics.median(ms(lambda: Windows(dataset, 20)) for _ in range(5)),
            "batch_256_ms": statistics.median(ms(partial(drawer.batch, i)) for i in drawn),
        }
    for name, value in found.items():
        print(f"{'windows: ' + name:<44} {value:,.1f}", flush=True)
    return found


SECTIONS: dict[str, Callable[[Options, Path], dict[str, Any]]] = {
    "text": text,
    "binary": binary,
    "memory": memory,
    "build": build,
    "windows": windows,
}
"""Section -> function that measures, prints and returns figures for the results file."""


def main(options: Options) -> None:
    """Measure and append the results."""
    chosen = options.only or tuple(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        sys.exit(f"no section {', '.join(sorted(unknown))}: choose among {', '.join(SECTIONS)}")
    data: dict[str, Any] = origin()
    for name in chosen:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="data-speed-") as folder:
            data[name] = SECTIONS[name](options, Path(folder))
    runs = append_run(options.out, data)
    print(f"run {len(runs)} in {options.out}")


if __name__ == "__main__":
    main(command_line(Options))
