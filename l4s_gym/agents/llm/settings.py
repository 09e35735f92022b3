"""The configuration of a training run: the tables `model` and `train`, and presets of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from l4s_gym.agents.llm import config
from l4s_gym.agents.llm.schedule import TrainConfig
from l4s_gym.agents.training import merged
from l4s_gym.errors import L4SError, unknown
from l4s_gym.tables import convert

TABLES: Final = ("model", "train")


def settings(given: Mapping[str, Any]) -> tuple[config.LLMConfig, TrainConfig]:
    """The parts of a configuration.

    Args:
        given: The tables `model` (`LLMConfig`) and `train` (`TrainConfig`); a `preset`, which names one of the tables
            in `presets`, whose settings then come last.

    Raises:
        L4SError: Another name, or a setting that is wrong.
    """
    tables = resolved(given)
    return config.from_dict(tables["model"], "model"), convert(TrainConfig, tables["train"], "train")


def resolved(given: Mapping[str, Any]) -> dict[str, Any]:
    """The tables `model` and `train` of a configuration, the preset's settings put in."""
    for name in given:
        if name not in (*TABLES, "preset", "presets"):
            raise unknown("table of the configuration", name, (*TABLES, "preset", "presets"))
    found: dict[str, Any] = {name: given.get(name, {}) for name in TABLES}
    presets = given.get("presets", {})
    chosen = given.get("preset", "")
    if chosen:
        if chosen not in presets:
            raise unknown("preset", chosen, tuple(presets))
        for name, table in presets[chosen].items():
            if name not in TABLES:
                raise unknown(f"table of preset {chosen!r}", name, TABLES)
            found[name] = merged(found[name], table)
    for name in TABLES:
        if not isinstance(found[name], Mapping):
            raise L4SError(f"configuration: {name} = {found[name]!r}: give a table")
    return found
