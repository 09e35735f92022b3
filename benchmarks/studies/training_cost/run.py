"""Cost of training the LLM agent: tokens/s, peak memory, hours for passes over a dataset.

    python benchmarks/studies/training_cost/run.py --dataset l4s/dualpi2/testbed-v0                # on a GPU
    python benchmarks/studies/training_cost/run.py --dataset l4s/dualpi2/testbed-small-v0 --small  # or a CPU

It runs some training steps (LoRA of rank 128 on frozen Llama-2-7B in bfloat16, with random weights:
they cost the same) and saves no agent. It also prints the figures of the L4S-LLM paper, from other hardware.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from l4s_gym.agents.llm.train import Trainer
from l4s_gym.agents.training import load_config
from l4s_gym.cli.arguments import command_line
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.origin import append_run, origin

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

from cost import training_steps

RESULTS: Final = Path(__file__).resolve().parent / "results" / "training_cost.json"
PAPER: Final = "the paper, Llama-2-7B with LoRA on two A40: 23.9 GB, 22.3 h"
_WARM_UP: Final = 2


@dataclass(frozen=True)
class Options:
    """Options of the measurement.

    Attributes:
        dataset: Id of a Minari dataset.
        small: The small agent, for a CPU, instead of the paper's.
        set: Settings that override others, such as train.batch_size=16.
        steps: Optimiser steps that are measured, after two warm-up steps.
        passes: Passes over the dataset's training part for the estimate in hours.
        out: JSON file to which this run is appended.
    """

    dataset: str
    small: bool = False
    set: tuple[str, ...] = ()
    steps: int = 20
    passes: float = 1.0
    out: Path = RESULTS


def measure(options: Options, source: Any) -> dict[str, Any]:
    """Return the figures of some steps on a dataset."""
    preset = () if options.small else ("preset=paper-shape",)
    config = load_config("llm", None, small=options.small, settings=(*preset, *options.set))
    trainer = Trainer(source, config)
    seconds, tokens = training_steps(trainer, options.steps, _WARM_UP)
    train = trainer.train
    data = sum(int(part["train_steps"]) for part in trainer.corpus.about())
    each = train.batch_size * train.length
    return {
        "parameters": trainer.counts.total,
        "trainable_parameters": trainer.counts.trainable,
        "config": trainer.plain,
        "step_s": float(np.median(seconds)),
        "tokens_per_s": tokens / sum(seconds),
        "steps_of_a_pass": data / each,
        "passes": options.passes,
        "hours": options.passes * data / each * float(np.median(seconds)) / 3600,
    }


def main(options: Options, source: Any = None) -> dict[str, Any]:
    """Measure, print, append."""
    gpu = torch.cuda.is_available()
    if not gpu and not options.small:
        raise L4SError("no GPU here: the paper's shape takes one of some 24 GB: give --small, or run this where one is")
    found = measure(options, options.dataset if source is None else source)
    device = torch.cuda.get_device_name() if gpu else "cpu"
    memory = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
    run = {**origin(), "device": device, "peak_memory_gb": memory, **found}
    run["options"] = {name: value for name, value in asdict(options).items() if name != "out"}
    append_run(options.out, run)
    print(
        f"{device}: {found['trainable_parameters']:,} of {found['parameters']:,} parameters are trained, "
        f"{found['step_s']:.2f} s a step, {found['tokens_per_s']:,.0f} tokens/s, "
        + (f"at most {memory:.1f} GB, " if memory is not None else "")
        + f"{found['hours']:.2f} h for {options.passes:g} passes of {found['steps_of_a_pass']:,.0f} steps"
    )
    print(PAPER)
    return run


if __name__ == "__main__":
    main(command_line(Options))
