"""Figures 17 and 18: trainable parameters and memory of the backbones.

The paper's numbers beside them are those that the script of its figures draws (`captions.toml` says where it is).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trials
from figure import Figure, Place
from l4s_gym.agents.llm.settings import BackboneConfig, LoraConfig
from trials import ANSWERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

Row = dict[str, Any]

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito: told apart by the colour-blind."""
RANK: Final = 128
RANKS: Final = (8, 32, 64, 128, 256)
REAL: Final[dict[str, BackboneConfig]] = {
    "Llama-2-7B": BackboneConfig(
        "llama", hidden=4096, layers=32, heads=32, feedforward=11008, positions=4096, vocabulary=32000
    ),
    "OPT-1.3B": BackboneConfig("opt", hidden=2048, layers=24, heads=32, positions=2048, vocabulary=50272),
    "GPT-2": BackboneConfig("gpt2", hidden=768, layers=12, heads=12, vocabulary=50257),
    "T5-base": BackboneConfig("t5", hidden=768, layers=12, heads=12, feedforward=3072, vocabulary=32128, decoder=True),
}
"""The paper's backbones, in their real sizes."""
PAPER: Final[dict[str, Sequence[float]]] = {
    "parameters": (6674456576, 1340923904, 125e6, 220e6),
    "trainable": (67108864, 25165824, 125e6, 220e6),
    "memory_gb": (23.919, 7.005, 3.569, 2.321),
    "answer_ms": (39.15, 39.50, 41.44, 41.14),
    "training_h": (14.41, 0.2990, 0.1796, 0.3226),
}
"""Of each of `REAL`; GPT-2 and T5 were trained as a whole."""
FULL_LLAMA: Final = {"memory_gb": 65.88, "answer_ms": 200.0}
"""Llama-2-7B trained as a whole."""
WINDOW_TOKENS: Final = 60
"""Keys and values that an agent remembers: 20 steps of 3 tokens."""
_STATE: Final = 4 + 4 + 8
"""Bytes of a trained parameter in float32: weight, gradient, and AdamW's two moments."""


def short(value: float) -> str:
    """A number on a bar."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def bars(axes: Axes, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], colour: int = 0) -> None:
    """Grouped bars on a logarithmic axis, each with its value; None: there is no bar."""
    width = 0.84 / len(series)
    axes.set_yscale("log")
    for k, (name, values) in enumerate(series.items()):
        there = [(i, value) for i, value in enumerate(values) if value is not None]
        x = [i + (k - (len(series) - 1) / 2) * width for i, _ in there]
        drawn = axes.bar(x, [value for _, value in there], width, label=name, color=COLOURS[colour + k])
        axes.bar_label(drawn, [short(value) for _, value in there], fontsize=7, rotation=90, padding=2)
    every = [value for values in series.values() for value in values if value is not None]
    if every:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, min(every) / 3), max(high, 30 * max(every)))  # room for the values and the legend
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="upper right")


# -- 17: parameters


def parameters(config: BackboneConfig, rank: int = 0) -> tuple[int, int]:
    """Parameters of a backbone that are trained, and all; no memory is taken. Rank 0: trained as a whole."""
    import torch

    from l4s_gym.agents.llm.backbones import Backbone, count

    with torch.device("meta"):
        found = count(Backbone(replace(config, freeze=rank > 0), LoraConfig(rank=rank)))
    return found.trainable, found.total


def draw_parameters(rows: Sequence[Row], picture: Picture) -> None:
    """Left the numbers, right the shares by rank."""
    left, right = picture.subplots(1, 2, width_ratios=(1.4, 1))
    series = {
        "whole": [row["trained_whole"] / 1e6 for row in rows],
        f"LoRA, rank {RANK}": [row["trained_lora"][str(RANK)] / 1e6 for row in rows],
        "the paper's": [row["paper_trainable"] / 1e6 for row in rows],
    }
    bars(left, [row["model"] for row in rows], series)
    left.set(ylabel="parameters that are trained, million", title="by way of training")
    for colour, row in zip(COLOURS, rows, strict=False):
        ranks = [int(rank) for rank in row["trained_lora"]]
        share = [
            100 * row["trained_lora"][str(rank)] / (row["parameters"] + row["trained_lora"][str(rank)])
            for rank in ranks
        ]
        right.plot(ranks, share, "o-", color=colour, label=row["model"])
    right.set(xscale="log", yscale="log", xlabel="LoRA's rank", ylabel="share of all parameters, %")
    right.set_xticks(ranks, map(str, ranks))
    right.minorticks_off()
    right.grid(alpha=0.3)
    right.legend(fontsize=8)


def trainable(place: Place) -> Figure:
    """Figure 17: trainable parameters at the real sizes."""
    rows: list[Row] = []
    ranks = (RANK,) if place.quick else RANKS
    for number, (name, config) in enumerate(REAL.items()):
        whole, total = parameters(config)
        lora = {str(rank): parameters(config, rank)[0] for rank in ranks}
        paper = {f"paper_{key}": PAPER[key][number] for key in ("parameters", "trainable")}
        rows.append({"model": name, "parameters": total, "trained_whole": whole, "trained_lora": lora, **paper})
    return Figure("17", {"rows": rows}, partial(draw_parameters, rows))


# -- 18: memory


def training_bytes(trained: float, frozen: float, frozen_bytes: int = 4) -> float:
    """Weights, gradients and AdamW's moments; without activations, and what the library needs."""
    return trained * _STATE + frozen * frozen_bytes


def answer_bytes(config: BackboneConfig, total: float) -> float:
    """Weights in bfloat16, and the window's keys and values."""
    return 2 * (total + 2 * config.layers * config.hidden * WINDOW_TOKENS)


def computed(name: str) -> Row:
    """Memory of a backbone of `REAL` by arithmetic, GB."""
    config = REAL[name]
    whole, total = parameters(config)
    lora, _ = parameters(config, RANK)
    found = {
        "trained as a whole, float32": training_bytes(whole, total - whole),
        f"LoRA {RANK}, frozen weights float32": training_bytes(lora, total),
        f"LoRA {RANK}, frozen weights bfloat16": training_bytes(lora, total, 2),
        "answering, bfloat16": answer_bytes(config, total),
    }
    return {way: size / 1e9 for way, size in found.items()}


def draw_memory(here: Sequence[Row], real: Mapping[str, Row], picture: Picture) -> None:
    """Left what was measured, right what was computed."""
    left, right = picture.subplots(1, 2, width_ratios=(1, 1.4))
    shapes = list(dict.fromkeys(row["shape"] for row in here))
    ways = list(dict.fromkeys(row["way"] for row in here))
    size = {(row["shape"], row["way"]): row["peak_gb"] or None for row in here}
    bars(left, [s.replace(", ", "\n") for s in shapes], {w: [size.get((s, w)) for s in shapes] for w in ways})
    left.set(ylabel="memory, GB", title="measured here, beyond a toy")
    series: dict[str, Sequence[float | None]] = {
        way: [row[way] for row in real.values()] for way in next(iter(real.values()))
    }
    bars(right, list(real), series | {"the paper's": PAPER["memory_gb"]})
    right.plot([0], [FULL_LLAMA["memory_gb"]], "kx", label="the paper's, as a whole")
    right.set(ylabel="memory, GB", title="computed at the real sizes")
    right.legend(fontsize=8)


def memory(place: Place) -> Figure:
    """Figure 18: memory of training and of answering."""
    rows: list[Row] = []
    for (shape, way), t in trials.trainings(place).items():
        arithmetic = training_bytes(t.trainable, t.parameters - t.trainable) / 1e9
        rows.append(
            {"shape": shape, "way": f"training, {way}", "peak_gb": t.peak_bytes / 1e9, "computed_gb": arithmetic}
        )
    for (shape, way), a in trials.answers(place).items():
        if way == ANSWERS[-1]:
            rows.append({"shape": shape, "way": "answering", "peak_gb": a.peak_bytes / 1e9})
    real = {name: computed(name) for name in REAL}
    return Figure("18", {"measured": rows, "computed_gb": real}, partial(draw_memory, rows, real), (12.0, 5.0))


FIGURES: Final[dict[str, Callable[[Place], Figure]]] = {"17": trainable, "18": memory}
"""Number -> what makes it."""
