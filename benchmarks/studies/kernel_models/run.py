"""Time and size of integer models in the kernel's core, with vector registers and without.

    python benchmarks/studies/kernel_models/run.py  # a minute; appends a run

The core is compiled twice: as the Linux router has it, with vector registers (AVX2), and as a kernel must, with general
registers alone. Rows of packets are those of a simulated log, on which the tree is fitted; the rows of intervals are
random. Layers have random weights: half of what is between them is 0 after ReLU, as in trained ones. A time is the
least of 64 outputs one after the other, over many such blocks, so that other programs on the machine disturb little.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from l4s_gym.agents import fitting
from l4s_gym.agents.distil import Config
from l4s_gym.bridge.layers import rounded_layer
from l4s_gym.bridge.model import Cells, Inputs, Layers, Lines, Memory, Model
from l4s_gym.cli.arguments import command_line
from l4s_gym.data.simulated import simulate_log
from l4s_gym.evaluation.origin import append_run, origin
from l4s_gym.forms import FORMS
from l4s_gym.schema import BY_NAME

ROOT: Final = Path(__file__).resolve().parents[3]
RESULTS: Final = Path(__file__).resolve().parent / "results" / "kernel_models.json"
WAYS: Final = {"vector": "-DL4S_SIMD", "general": "-mgeneral-regs-only"}
"""Compiler flags of the core."""
GOALS_NS: Final = {
    ("tree", "vector"): 20.0, ("tree", "general"): 20.0,
    ("mlp 64-64", "vector"): 1000.0, ("mlp 64-64", "general"): 2500.0,
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Options of the measurement.

    Attributes:
        seconds: Length of the log.
        leaves: Leaves of the tree.
        repeats: Blocks of 64 outputs for each time.
        out: JSON file to which this run is appended.
    """

    seconds: float = 30.0
    leaves: int = 256
    repeats: int = 20_000
    out: Path = RESULTS


def layers_of(rng: np.random.Generator, *sizes: int) -> Layers:
    """Layers of random weights."""
    pairs = ((rng.normal(0.0, 1.2 / np.sqrt(m), (n, m)), rng.normal(0.0, 0.2, n)) for m, n in pairwise(sizes))
    return Layers(*map(tuple, zip(*(rounded_layer(*pair) for pair in pairs), strict=True)))


def models(options: Options) -> dict[str, tuple[Model, Any]]:
    """Return models by name, each with rows of raw features."""
    rng = np.random.default_rng(0)
    log = fitting.logged_rows([simulate_log("l4s-llm-testbed", seconds=options.seconds)], frozenset(BY_NAME))
    rows = fitting.joined(log)
    raw, config = rows.seen, Config(to="tree", leaves=(options.leaves,))
    found = {"tree": (fitting.fit(config, "packet", 0.0, rows, rows).model, raw)}
    cells = Inputs(scaled=Cells.fitted(raw))
    for name, hidden in (("linear", ()), ("mlp 64-64", (64, 64))):
        found[name] = Model("packet", cells, layers_of(rng, 8, *hidden, 3)), raw
    high = [each.high for each in FORMS["parameters"].features]
    seen = (np.expm1(rng.uniform(0.0, np.log1p(high), (1000, len(high)))) * (1 << 20)).astype(np.int64)
    averages_s = (2.0, 8.0)
    lines = Inputs(averages_s, Lines.fitted(Memory("parameters", averages_s, 500.0).all(seen)))
    for name, hidden in (("linear, parameters", ()), ("mlp 64-64, parameters", (64, 64))):
        found[name] = Model("parameters", lines, layers_of(rng, 3 * len(high), *hidden, 5), 500.0), seen
    return found


def core_of(way: str, folder: Path) -> Any:
    """Return the core, compiled in a way."""
    build = folder / way
    target = build / "libl4s_core.so"
    subprocess.run(
        ["make", "-s", "-C", str(ROOT / "kernel"), f"BUILD={build}", f"SIMD={WAYS[way]}", str(target)], check=True
    )
    core = ctypes.CDLL(str(target))
    core.harness_time.restype = ctypes.c_double
    core.harness_time.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    return core


def measure(core: Any, model: Model, raw: Any, repeats: int) -> float:
    """Return the time of an output, ns."""
    data, rows = model.pack(), np.ascontiguousarray(raw, np.uint64)
    file = ctypes.create_string_buffer(data, len(data))
    assert core.l4s_model_check(file, ctypes.c_uint64(len(data))) == 0
    return float(core.harness_time(file, rows.ctypes.data, len(rows), repeats))


def main(options: Options) -> None:
    """Measure, print, append."""
    load, results = os.getloadavg()[0], []
    table = Table("model", "bytes", *(f"{way} registers, ns" for way in WAYS), "goals")
    with tempfile.TemporaryDirectory() as folder:
        cores = {way: core_of(way, Path(folder)) for way in WAYS}
        for name, (model, raw) in models(options).items():
            took = {way: measure(core, model, raw, options.repeats) for way, core in cores.items()}
            row = {"model": name, "bytes": len(model.pack()), **{f"{way}_ns": ns for way, ns in took.items()}}
            results.append(row)
            goals = [f"{GOALS_NS[name, way]:g}" for way in WAYS if (name, way) in GOALS_NS]
            table.add_row(name, str(row["bytes"]), *(f"{ns:.0f}" for ns in took.values()), ", ".join(goals))
    Console(width=120).print(table)
    append_run(options.out, {**origin(), "load": load, "results": results})
    print(options.out.name)


if __name__ == "__main__":
    main(command_line(Options))
