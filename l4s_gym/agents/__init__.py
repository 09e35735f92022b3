"""Everything that decides: rules, trained agents, and anybody's own."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, Final

from l4s_gym.agents.protocol import (
    NO_RULE,
    RULES,
    Agent,
    DecisionRule,
)
from l4s_gym.agents.rules import EnqueueAgent, PolicyAgent, RandomAgent, ThresholdAgent
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import load

__all__ = [
    "NO_RULE",
    "RULES",
    "Agent",
    "DecisionRule",
    "EnqueueAgent",
    "PolicyAgent",
    "RandomAgent",
    "ThresholdAgent",
    "make",
]

NAMES: Final = ("random", "threshold", "enqueue", "FOLDER", "KIND:FOLDER", "MODULE:ATTRIBUTE", "FILE.py:ATTRIBUTE")
PLAIN: Final[dict[str, type[Any]]] = {"random": RandomAgent, "threshold": ThresholdAgent, "enqueue": EnqueueAgent}
"""The agents that a name alone makes."""


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


def _foreign(spec: str) -> Agent:
    """Somebody's own agent: an object, or what a class or function without arguments returns."""
    found = load(spec, "agent")
    if callable(found) and (isinstance(found, type) or not isinstance(found, Agent)):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise L4SError(
                f"agent {spec!r}: {spec.rpartition(':')[2]} takes arguments ({error}): give an object with the "
                "methods of l4s_gym.agents.Agent, or a class or function without arguments that makes it"
            ) from None
        except ValueError:  # written in C, it has no signature that can be read
            pass
        found = found()
    if not isinstance(found, Agent):
        lacking = [name for name in ("name", "rule", "reset", "act", "cost") if not hasattr(found, name)]
        raise L4SError(f"agent {spec!r}: is no agent: {type(found).__name__} lacks {', '.join(lacking)}")
    return found


def _saved(spec: str) -> Agent | None:
    """A saved agent, if the spec names one: ``[KIND:]FOLDER[,option=value...]``."""
    from l4s_gym.agents import saved

    kind, colon, rest = spec.partition(":")
    known = bool(colon) and kind in saved.KINDS
    folder, *parts = (rest if known else spec).split(",")
    if not known and not (folder and (os.sep in folder or Path(folder).is_dir())):
        return None
    if not folder:
        raise L4SError(f"agent {spec!r}: names no folder: give {kind}:FOLDER")
    options = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise L4SError(f"agent {spec!r}: {part!r} is not name=value")
        options[name] = value
    return saved.load(folder, options, kind=kind if known else None)


def make(spec: str) -> Agent:
    """An agent by name.

    | spec | agent |
    |---|---|
    | `random`, `enqueue`, `threshold` | the rules |
    | `threshold:l_us=500,c_us=10000` | with thresholds of its own |
    | `runs/x`, `bc:runs/x` | a saved agent by its folder, of any kind or of the one that is named |
    | `runs/x,rule=diffuse` | with another decision rule (and other options of its kind) |
    | `MODULE:ATTRIBUTE` | anybody's own: an object, or a class or function without arguments that makes it |
    | `FILE.py:ATTRIBUTE` | the same, from a file |

    A folder in the current one that is named like a rule is written `./random`.

    Raises:
        L4SError: There is no such agent, or it cannot be made.
    """
    name, colon, rest = spec.partition(":")
    if name in PLAIN:
        names = ("l_us", "c_us") if name == "threshold" else ()
        made: Agent = PLAIN[name](**_options(spec, rest, names))
        return made
    if name == "native":
        raise L4SError(f"agent {spec!r}: runs inside the engine: give it to the evaluation, there is nothing to make")
    if spec.rpartition(":")[0].endswith(".py"):
        return _foreign(spec)
    found = _saved(spec)
    if found is not None:
        return found
    if not colon or not rest or not name:
        raise unknown("agent", spec, NAMES)
    return _foreign(spec)
