"""Everything that decides: rules, trained agents, and anybody's own."""

from __future__ import annotations

import importlib
from typing import Any, Final

from l4s_gym.agents.protocol import (
    NO_RULE,
    RULES,
    Agent,
    DecisionRule,
)
from l4s_gym.agents.rules import EnqueueAgent, RandomAgent, ThresholdAgent
from l4s_gym.errors import L4SError, unknown

__all__ = [
    "NO_RULE",
    "RULES",
    "Agent",
    "DecisionRule",
    "EnqueueAgent",
    "RandomAgent",
    "ThresholdAgent",
    "make",
]

NAMES: Final = ("random", "threshold", "enqueue", "bc:FOLDER", "MODULE:ATTRIBUTE")
_PLAIN: Final[dict[str, type[Any]]] = {"random": RandomAgent, "threshold": ThresholdAgent, "enqueue": EnqueueAgent}


def _options(spec: str, text: str, names: tuple[str, ...]) -> dict[str, float]:
    """The numbers of ``name=value,...``."""
    options: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in names:
            raise unknown(f"option of {spec!r}", name, names) if names else L4SError(f"{spec!r}: takes no options")
        try:
            options[name] = float(value)
        except ValueError:
            raise L4SError(f"{spec!r}: {part!r} is not {name}=<number>") from None
    return options


def _foreign(spec: str, module: str, attribute: str) -> Agent:
    """Somebody's own agent: an object, or what a class or function without arguments returns."""
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except ModuleNotFoundError as error:
        remedy = "choose another name, or put its folder on PYTHONPATH"
        raise L4SError(f"agent {spec!r}: no module {error.name!r}: {remedy}") from error
    except AttributeError as error:
        raise L4SError(f"agent {spec!r}: {error}: give MODULE:ATTRIBUTE") from error
    if callable(found) and (isinstance(found, type) or not isinstance(found, Agent)):
        found = found()
    if not isinstance(found, Agent):
        lacking = [name for name in ("name", "rule", "reset", "act", "cost") if not hasattr(found, name)]
        raise L4SError(f"agent {spec!r}: is no agent: {type(found).__name__} lacks {', '.join(lacking)}")
    return found


def make(spec: str) -> Agent:
    """An agent by name.

    | spec | agent |
    |---|---|
    | `random`, `enqueue`, `threshold` | the rules |
    | `threshold:l_us=500,c_us=10000` | with thresholds of its own |
    | `bc:FOLDER`, `bc:FOLDER,rule=diffuse` | a trained imitator, sampling or by another decision rule |
    | `MODULE:ATTRIBUTE` | anybody's own: an object, or a class or function without arguments that makes it |

    Raises:
        L4SError: There is no such agent, or it cannot be made.
    """
    name, colon, rest = spec.partition(":")
    if name in _PLAIN:
        names = ("l_us", "c_us") if name == "threshold" else ()
        made: Agent = _PLAIN[name](**_options(spec, rest, names))
        return made
    if name == "bc":
        from l4s_gym.agents.bc import BCAgent

        folder, _, rule = rest.partition(",rule=")
        if not folder:
            raise L4SError(f"agent {spec!r}: names no folder: give bc:FOLDER")
        return BCAgent.load(folder, rule or "sample")
    if name == "native":
        raise L4SError(f"agent {spec!r}: runs inside the engine: give it to the evaluation, there is nothing to make")
    if not colon or not rest or not name:
        raise unknown("agent", spec, NAMES)
    return _foreign(spec, name, rest)
