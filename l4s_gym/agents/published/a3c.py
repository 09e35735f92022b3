"""A3C, here A2C: an actor sets the base probability of DualPI2, or scales its parameters.

D. Satish, J. Kua, S. R. Pokhrel: Active queue management in L4S with asynchronous advantage actor-critic: a FreeBSD
networking stack perspective. Future Internet 16(8), 2024. See `agents/a3c/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from l4s_gym import forms
from l4s_gym.agents import onestep
from l4s_gym.agents.protocol import Floats, Observations, check_batch
from l4s_gym.agents.published.common import Config, Published
from l4s_gym.agents.published.coupling import coupled
from l4s_gym.errors import L4SError

FORMS: Final = ("probability", "parameters")


class A3CConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration; the defaults are the full setting.

    Attributes:
        form: `probability`: the action is the base probability, from which C and L are coupled; `parameters`: it scales
            the five parameters of the native law.
        steps: Steps of each environment in a round; episodes go on from one to the next, of `seconds` each.
        rollout: Steps of each environment between two updates.
        hidden: Units of each of the two hidden layers of actor and critic.
        learning_rate: Of RMSprop.
        gamma: Discount per step.
        entropy: Weight of the entropy, which keeps the actor exploring.
        log_std: Logarithm of the deviation of what it chooses, at the start.
    """

    form: str = "probability"
    steps: int = 1000
    rollout: int = 10
    hidden: int = 64
    learning_rate: float = 7e-4
    gamma: float = 0.99
    entropy: float = 1e-3
    log_std: float = -1.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise L4SError(f"configuration of a3c: form = {self.form!r}: give {' or '.join(FORMS)}")


class A3CAgent(Published):
    """Does what is the mean of the trained distribution."""

    kind = "a3c"
    configuration: ClassVar[type[Any]] = A3CConfig

    def __init__(self, tensors: Mapping[str, Any], settings: Mapping[str, Any], training: Mapping[str, Any]) -> None:
        self.form = str(settings["form"])
        super().__init__(tensors, settings, training)
        self._layers = onestep.layers(tensors)

    def act(self, obs: Observations, rewards: Floats) -> Floats:
        """Return actions (n, K); rewards are not used."""
        check_batch(obs, self.n, self.form)
        x = np.log1p(obs.astype(np.float64))
        for k, (weight, bias) in enumerate(self._layers):
            x = (x[:, None, :] * weight).sum(axis=-1) + bias  # each row for itself, however many there are
            x = np.tanh(x) if k + 1 < len(self._layers) else np.clip(x, -1.0, 1.0)
        return applied(self.form, x)


def applied(form: str, chosen: Floats) -> Floats:
    """Return the actions of a form (n, K) for what the actor chose: factors (n, 5), or base probabilities (n, 1)."""
    if form == "parameters":
        return chosen
    return coupled(10.0 ** (4.0 * chosen[:, 0] - 4.0))  # the base probability, 10^-4 to 1, squared


def choices(form: str) -> int:
    """Return how many numbers the actor chooses."""
    return len(forms.get(form).low) if form == "parameters" else 1
