"""Train the imitator `bc` on logged decisions.

python agents/bc/train.py --rows kernel.log --steps 10000 --out runs/bc
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from l4s_gym.agents.bc import train_bc
from l4s_gym.data import minari_io
from l4s_gym.data.d3rlpy_io import replay_buffer
from l4s_gym.data.episodes import episodes_from_rows
from l4s_gym.data.pools import load_rows
from l4s_gym.errors import L4SError


@dataclass(frozen=True)
class Options:
    """Train a behaviour-cloning agent; give --rows or --dataset."""

    rows: tuple[Path, ...] = ()
    """Kernel logs, binary records (.rec), pools (.json, .pkl), Parquet or csv files."""
    dataset: str | None = None
    """Id of a Minari dataset, such as l4s/dualpi2/testbed-v0."""
    steps: int = 10_000
    """Gradient steps."""
    batch_size: int = 256
    seed: int = 0
    keep_missing: bool = False
    """Train on steps too whose accumulated probability is unknown (shown as 0)."""
    out: Path = Path("runs/bc")
    """Folder of the agent."""


def main(options: Options) -> None:
    if bool(options.rows) == bool(options.dataset):
        raise L4SError("train: give either --rows or --dataset")
    if options.dataset:
        source = minari_io.load(options.dataset)
    else:
        source = episodes_from_rows([load_rows(path) for path in options.rows])
    buffer = replay_buffer(source, drop_missing=not options.keep_missing)
    print(f"{len(buffer.episodes)} episodes, {buffer.transition_count} transitions")
    start = time.monotonic()

    def report(step: int, steps: int) -> None:
        if step % max(steps // 10, 1) == 0:
            print(f"step {step}/{steps}, {time.monotonic() - start:.0f} s", flush=True)

    agent = train_bc(buffer, steps=options.steps, seed=options.seed, batch_size=options.batch_size, progress=report)
    print(f"{agent.save(options.out)}: {agent.cost()['parameters']:.0f} parameters")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except L4SError as error:
        sys.exit(f"error: {error}")
