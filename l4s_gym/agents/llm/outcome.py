"""What a training leaves: the agent's folder, with the result and the logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from l4s_gym.agents.llm import storage
from l4s_gym.agents.llm.text import Model

RESULT: Final = "result.json"


def place(out: Path, model: Model, result: Mapping[str, Any]) -> None:
    """Put the agent, with the result and the logs, in the place of the checkpoint."""
    kept = {name: value for name, value in result.items() if name != "history"}
    text = json.dumps(result, indent=2) + "\n"
    storage.save(model, out, training=kept, card=_card(result), files={RESULT: text})


def _card(result: Mapping[str, Any]) -> str:
    """What was trained on what, and what came out, as Markdown."""
    rows = [f"| {each['dataset']} | {each['weight']:.3g} | {each['train_steps']:,} |" for each in result["datasets"]]
    lines = ["## Trained on", "| dataset | weight | steps |", "|---|---|---|", *rows, ""]
    held = result["metrics"]
    if held:
        recall = ", ".join(f"{name} {value:.3f}" for name, value in held["recall"].items() if value is not None)
        lines += [
            "## On held-out episodes",
            f"Of {held['steps']:,} steps: cross-entropy {held['cross_entropy']:.4f} nats, accuracy "
            f"{held['accuracy']:.4f} (always the most frequent action: {held['majority']:.4f}), macro-F1 "
            f"{held['macro_f1']:.3f}; recall: {recall}.",
            "",
        ]
    lines += [
        f"{result['steps']:,} steps in {result['seconds']:.0f} s on {result['device']} "
        f"({result['precision']}, {result['tokens_per_s']:,.0f} tokens/s, {result['peak_memory_bytes'] / 1e9:.2f} GB).",
        "",
    ]
    return "\n".join(lines)
