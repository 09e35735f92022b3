"""Training and decisions of the LLM agent on a GPU, beside the paper's figures: one command of at most eight minutes.

    python benchmarks/studies/gpu/run.py        # on one GPU of 40 GB or more
    python benchmarks/studies/gpu/run.py --toy  # tiny models on any machine; writes nothing without --out

The shapes of SmolLM2-135M and Llama-2-7B, frozen in bfloat16, with LoRA. The weights are random, which cost what others
do, so neither hub nor wheel is needed. A model is trained for some steps, then its adapters are merged, and it decides
packet by packet with keys and values kept.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from l4s_gym.agents.llm import fast
from l4s_gym.agents.llm.settings import resolved
from l4s_gym.agents.llm.train import Trainer
from l4s_gym.agents.training import load_config, merged
from l4s_gym.cli.arguments import command_line
from l4s_gym.data.build import ensure
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.markdown import table

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

from cost import decide, figures, training_steps

RESULTS: Final = Path(__file__).resolve().parent / "results"
DATASET: Final = "l4s/dualpi2/testbed-small-v0"
LIMIT_S: Final = 480.0
"""A shape is not begun when half of it is over."""
PASSES: Final = 80
"""Over the rows of the paper's pool, as its authors train."""
POOL_ROWS: Final = 2490
TARGET_MS: Final = 5.0
"""For a decision of Llama-2-7B's shape."""
PAPER: Final = {"trainable": 67_108_864, "peak_gb": 23.91, "hours": 22.3, "p50_ms": 39.1}
"""Llama-2-7B with LoRA of rank 128 on two A40."""
SHAPES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "SmolLM2-135M": (
        "",
        {
            "model": {
                "backbone": {
                    "family": "llama", "hidden": 576, "layers": 30, "heads": 9, "kv_heads": 3, "feedforward": 1536,
                    "vocabulary": 49152, "dtype": "bfloat16", "freeze": True,
                },
                "lora": {"rank": 16},
            },
            "train": {"batch_size": 32, "length": 40, "precision": "bf16"},
        },
    ),
    "Llama-2-7B": ("preset=paper-shape", {}),
}  # fmt: skip
"""Preset of the LLM agent's configuration, and what is different from it."""
TOY: Final = {
    "model": {
        "backbone": {"hidden": 24, "layers": 2, "heads": 3, "kv_heads": 3, "feedforward": 32, "vocabulary": 16},
        "lora": {"rank": 2},
    },
    "train": {"batch_size": 4, "accumulate": 1, "length": 8},
}
"""What makes a shape tiny."""


@dataclass(frozen=True)
class Options:
    """Options of the measurement.

    Attributes:
        toy: Tiny models and few steps, on any machine.
        steps: Optimiser steps that are measured, after two others.
        decisions: That are measured, after a window of others.
        out: Folder of gpu.json (appended) and gpu.md; `results` beside this script by default.
    """

    toy: bool = False
    steps: int = 20
    decisions: int = 200
    out: Path | None = None


def config_of(shape: str, *, toy: bool) -> dict[str, Any]:
    """Return the configuration of a shape."""
    preset, different = SHAPES[shape]
    config = merged(resolved(load_config("llm", settings=(preset,) if preset else ())), different)
    return merged(config, TOY) if toy else config


def measure(shape: str, options: Options, source: Any) -> dict[str, Any]:
    """Return the figures of a shape: of training, then of decisions one at a time."""
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    start = time.monotonic()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with torch.device(device):  # 7 billion random weights take minutes on a CPU
        trainer = Trainer(source, config_of(shape, toy=options.toy))
    train, built_s = trainer.train, time.monotonic() - start
    took, tokens = training_steps(trainer, 2 if options.toy else options.steps, 2)
    steps_of_pass = POOL_ROWS / (train.batch_size * train.length)
    row: dict[str, Any] = {
        "parameters": trainer.counts.total,
        "trainable": trainer.counts.trainable,
        "batch": [train.batch_size, train.length],
        "built_s": built_s,
        "step_s": float(np.median(took)),
        "tokens_per_s": tokens / sum(took),
        "hours": PASSES * steps_of_pass * float(np.median(took)) / 3600,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else None,
    }
    model = trainer.accelerator.unwrap_model(trainer.model)
    del trainer
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    fast.optimize(model)
    row |= figures(decide(model, 1, 5 if options.toy else options.decisions, device)[0])
    row["decision_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
    return row


def markdown(run: dict[str, Any]) -> str:
    """Return the page."""

    def number(row: dict[str, Any], name: str, form: str) -> str:
        return "-" if row.get(name) is None else format(row[name], form)

    head = ("shape", "trained parameters", "tokens/s", "step s", "peak GB", f"hours for {PASSES} passes",
            "decision p50 ms", "p99 ms", "peak GB, deciding")  # fmt: skip
    forms = {"trainable": ",", "tokens_per_s": ",.0f", "step_s": ".3f", "peak_gb": ".1f", "hours": ".2f",
             "p50_ms": ".2f", "p99_ms": ".2f", "decision_peak_gb": ".1f"}  # fmt: skip
    rows: dict[str, dict[str, Any]] = {**run["shapes"], "the paper's Llama-2-7B, two A40": PAPER}
    body = [[name, *(number(row, key, form) for key, form in forms.items())] for name, row in rows.items()]
    lines = ["# The LLM agent on a GPU", "", f"Device: {run['device']}. {run['seconds']:.0f} s in all.", ""]
    if run["toy"]:
        lines += ["Tiny models in place of the shapes: the figures say nothing.", ""]
    lines += [*table(head, body), ""]
    if (large := run["shapes"].get("Llama-2-7B")) and not run["toy"]:
        verdict = "met" if large["p50_ms"] <= TARGET_MS else "missed"
        lines += [f"Target for a decision of Llama-2-7B's shape: {TARGET_MS:g} ms at the median; {verdict}.", ""]
    return "\n".join(lines)


def main(options: Options, source: Any = None) -> dict[str, Any]:
    """Measure, print, append.

    Args:
        options: Of the command line.
        source: A dataset; None: the small one of the testbed, which is built if it is not here.
    """
    if not options.toy and not torch.cuda.is_available():
        raise L4SError("no GPU here: give --toy to see that it works, or run it where PyTorch finds one")
    start = time.monotonic()
    if source is None:
        ensure(DATASET)
        source = DATASET
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    run: dict[str, Any] = origin() | {"toy": options.toy, "device": device, "shapes": {}}
    for name in SHAPES:
        if time.monotonic() - start > LIMIT_S / 2:
            print(f"{name}: left out, {LIMIT_S / 2:.0f} s are over")
            continue
        row = measure(name, options, source)
        run["shapes"][name] = row
        print(
            f"{name}: {row['tokens_per_s']:,.0f} tokens/s, decision p50 {row['p50_ms']:.2f} ms, "
            f"{time.monotonic() - start:.0f} s so far",
            flush=True,
        )
    run["seconds"] = time.monotonic() - start
    print(markdown(run))
    out = options.out or (None if options.toy else RESULTS)
    if out is not None:
        write_run(out, "gpu", run, markdown(run))
    return run


if __name__ == "__main__":
    main(command_line(Options))
