"""What a training leaves: the agent's folder, with the result and the logs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from l4s_gym.agents.llm import storage
from l4s_gym.agents.llm.journal import LOGS
from l4s_gym.agents.llm.text import Model
from l4s_gym.data.files import atomic_write
from l4s_gym.data.minari_io import put_in_place

RESULT: Final = "result.json"


def place(out: Path, model: Model, result: Mapping[str, Any]) -> None:
    """Put the agent's folder, with logs and result, in the place of the checkpoint's."""
    target = Path(os.path.realpath(out))
    new = target.with_name(f".{target.name}.agent")
    shutil.rmtree(new, ignore_errors=True)
    try:
        kept = {name: value for name, value in result.items() if name != "history"}
        storage.save(model, new, training=kept, card=_card(result))
        with atomic_write(new / RESULT) as file:
            file.write(json.dumps(result, indent=2).encode() + b"\n")
        if (target / LOGS).is_dir():
            shutil.copytree(target / LOGS, new / LOGS)
        put_in_place(new, target, overwrite=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


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
