"""The three action forms: what an agent decides, and how often it is asked.

| form | an action is | asked |
|---|---|---|
| `packet` | what happens to one packet: enqueue, drop, mark | at each n-th packet (`decision_interval`) |
| `probability` | the probabilities of C and L | each control interval (`control_interval_ms`) |
| `parameters` | factors of the native law's parameters | each control interval |

The environments' pages say what the numbers of an action and of an observation are.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import registry

from l4s_gym import ENV_IDS, schema
from l4s_gym.errors import unknown

if TYPE_CHECKING:
    from l4s_gym.sim.intervals import Feature

PACKET: Final = "packet"
INTERVAL_MS: Final = 16.0
"""Control interval where none is given."""


@dataclass(frozen=True)
class Form:
    """One action form.

    Attributes:
        name: Its key in `FORMS`.
        env_id: Its environment.
        low: Lower bounds of the numbers of an action (K,); empty for packets, whose action is one of three.
        high: Upper bounds (K,).
        idle: The action that does nothing (K,): no marks and drops but those of the native L queue, or the native law
            as it is.
        observed: `MODULE:TUPLE` of the features of an observation; "": that of a packet (`l4s_gym.schema`).
    """

    name: str
    env_id: str
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    idle: tuple[float, ...] = ()
    observed: str = ""

    @property
    def vector_class(self) -> Any:
        """The vector environment, imported on first use."""
        return pkgutil.resolve_name(str(registry[self.env_id].vector_entry_point))

    @property
    def features(self) -> tuple[Feature, ...]:
        """What is observed of an interval (F); empty for packets."""
        found: tuple[Feature, ...] = pkgutil.resolve_name(self.observed) if self.observed else ()
        return found

    @property
    def spaces(self) -> tuple[spaces.Box, Any]:
        """The spaces of an observation and of an action."""
        highest = np.array([each.high for each in self.features], np.float32) if self.observed else schema.OBS_HIGH
        observed = spaces.Box(np.zeros_like(highest), highest)
        if not self.low:
            return observed, spaces.Discrete(len(schema.ACTIONS))
        return observed, spaces.Box(np.array(self.low, np.float32), np.array(self.high, np.float32))


FORMS: Final[dict[str, Form]] = {
    each.name: each
    for each in (
        Form(PACKET, ENV_IDS[0]),
        Form("probability", ENV_IDS[1], (-1.0,) * 2, (1.0,) * 2, (-1.0,) * 2, "l4s_gym.sim.intervals:INTERVAL"),
        Form("parameters", ENV_IDS[2], (-1.0,) * 5, (1.0,) * 5, (0.0,) * 5, "l4s_gym.sim.intervals:FEATURES"),
    )
}
"""The forms by name."""


def get(name: str) -> Form:
    """Return a form by its name.

    Raises:
        L4SError: There is no such form.
    """
    if name not in FORMS:
        raise unknown("form", name, tuple(FORMS))
    return FORMS[name]
