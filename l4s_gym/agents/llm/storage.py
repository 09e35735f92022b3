"""Saved LLM agents: a folder with the adapter (as peft writes it), our own parts, configuration and card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4s_gym.agents.llm.model import DecisionModel
from l4s_gym.data.files import PathLike

KIND = "llm"


@dataclass(frozen=True)
class Loaded:
    """A saved model.

    Attributes:
        model: In `eval` mode.
        training: What was told about its training (plain values).
        path: Its folder.
    """

    model: DecisionModel
    training: dict[str, Any]
    path: Path


def save(
    model: DecisionModel, folder: PathLike, *, training: Mapping[str, Any] | None = None, card: str = ""
) -> Path:
    """Write a model to a folder, which is replaced as a whole or not at all.

    Args:
        model: The model; not merged.
        folder: Where.
        training: Plain values about its training (dataset id, steps, seed, metrics, decision rule, target return).
        card: Text for the model card, below its head.

    Raises:
        L4SError: The folder cannot be written.
    """
    raise NotImplementedError


def load(folder: PathLike, *, merge: bool = False) -> Loaded:
    """Read a model that was saved; nothing in the folder is executed.

    Args:
        folder: Where it is.
        merge: Merge the adapter into the weights, for speed.

    Raises:
        L4SError: It is not there, is damaged, or of another version.
    """
    raise NotImplementedError
