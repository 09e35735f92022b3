"""The LLM agent about control intervals: a transformer over the last decisions, and an actor on what it tells of them.

A decision is one token: what is observed, the action before, and the return that is asked for. At each decision the
whole window is read anew; the transformer makes some features of it, and the actor an action of the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from l4s_gym import forms
from l4s_gym.agents.llm import fast
from l4s_gym.agents.llm.backbones import Backbone, Counts, banded, count, placed
from l4s_gym.agents.llm.settings import LLMConfig
from l4s_gym.agents.onestep import BOUND, Memory, MovingAverage, network, standardised
from l4s_gym.agents.protocol import NO_RULE, Floats, Observations, check_batch, check_count, control_interval_ms
from l4s_gym.errors import L4SError

GRAIN: Final = 64
"""Choices are rounded to multiples of 1 / GRAIN, so that rounding errors that depend on the batch do not show."""


def every(config: LLMConfig, control_interval_ms: float) -> int:
    """Return the number of control intervals from one decision to the next."""
    return max(round(config.intervals.asked_ms / control_interval_ms), 1)


class Reader(nn.Module):
    """What a model of control intervals reads.

    Attributes:
        config: Its configuration.
        mean: Mean of what is seen (`l4s_gym.agents.onestep.Memory`) (S,).
        std: Its deviation (S,).
        returns: Mean and deviation of the returns that followed in training, and the target (3,).
    """

    mean: Tensor
    std: Tensor
    returns: Tensor

    def __init__(self, config: LLMConfig) -> None:
        """Read nothing yet in any scale."""
        super().__init__()
        self.config, form = config, forms.get(config.form)
        observed = len(form.features) * (1 + len(config.intervals.onestep.memory_s))
        self._keep("mean", observed, 0.0)
        self._keep("std", observed, 1.0)
        self._keep("returns", 3, 0.0)

    def _keep(self, name: str, size: int, value: float) -> None:
        self.register_buffer(name, torch.full((size,), value, dtype=torch.float64))

    @property
    def reach(self) -> float:
        """Largest number of an action that is chosen."""
        intervals = self.config.intervals
        return intervals.onestep.reach if intervals.objective == "onestep" else 1.0

    def tokens(self, seen: npt.NDArray[Any], before: Floats, returns: Floats) -> Tensor:
        """Return decisions as the model reads them.

        Args:
            seen: What is seen (..., S).
            before: Actions of the control interval before (..., K).
            returns: Returns that followed, or that are asked for (...).

        Returns:
            (..., S + K + 1) float32.
        """
        seen = standardised(seen, self.mean.cpu().numpy(), self.std.cpu().numpy())
        mean, std, _ = self.returns.tolist()
        wanted = (returns - mean) / std if std else np.zeros(returns.shape)
        return torch.as_tensor(np.concatenate((seen, before, wanted[..., None]), -1), dtype=torch.float32)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return actions (B, K), from -1 to 1, for windows (B, N, S + K + 1) of some lengths (B,) int64.

        What follows after the length of a window is not read.
        """
        raise NotImplementedError


class IntervalModel(Reader):
    """The transformer between two linear layers, and the actor.

    Attributes:
        size: Number of features D.
        center: Mean of the features (D,).
        spread: Their deviation (D,).
    """

    center: Tensor
    spread: Tensor

    def __init__(self, config: LLMConfig) -> None:
        """Build the model; all but the backbone is drawn from PyTorch's global generator.

        Raises:
            L4SError: The backbone cannot be used.
        """
        super().__init__(config)
        actions, told, observed = len(forms.get(config.form).low), config.intervals.features, len(self.mean)
        self.size = features = told + (observed if config.intervals.observed else 0)
        self.backbone: Any = Backbone(config.backbone, config.lora)
        width, limit = self.backbone.width, self.backbone.limit
        if self.backbone.positions == "learned" and limit < config.intervals.window:
            raise L4SError(f"llm: the window takes {config.intervals.window} positions, the backbone has {limit}")
        self.embed = nn.Sequential(nn.Linear(observed + actions + 1, width), nn.LayerNorm(width))
        self.tell = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, told), nn.Tanh())
        self.actor: Any = network((features, *config.intervals.onestep.actor_hidden, actions), nn.Tanh())
        self._keep("center", features, 0.0)
        self._keep("spread", features, 1.0)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return actions, as `Reader.forward` does."""
        found: Tensor = self.actor(self.features(tokens, lengths))
        return found

    def hidden(self, embedded: Tensor) -> Tensor:
        """Compute the hidden states (B, N, width) of embedded windows (B, N, width)."""
        steps, device = embedded.shape[1], embedded.device
        mask = banded(torch.ones(1, steps, dtype=torch.bool, device=device), 1, steps, self.backbone.dtype)
        found: Tensor = self.backbone(embedded, mask, torch.arange(steps, device=device)[None])
        return found

    def features(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Compute the features of windows.

        Args:
            tokens: (B, N, S + K + 1); what follows after the length of a window is not read.
            lengths: Decisions in each window (B,) int64.

        Returns:
            (B, D), standardised once `center` and `spread` are known.
        """
        hidden = self.hidden(self.embed(tokens))
        rows = torch.arange(len(tokens), device=tokens.device)
        last = hidden[rows, lengths - 1]
        found: Tensor = self.tell(last)
        if self.config.intervals.observed:
            found = torch.cat((found, tokens[rows, lengths - 1, : len(self.mean)]), -1)
        return ((found - self.center) / self.spread).float().clamp(-BOUND, BOUND)


class IntervalAgent:
    """A trained model; each action is the moving average of what it chose, which holds until it is asked again.

    Attributes:
        model: In `eval` mode.
        target: The return that is asked for: the discounted mean of the rewards from now on, a control interval.
        training: How it was trained.
    """

    rule = NO_RULE

    def __init__(
        self,
        model: Reader,
        *,
        target: float | None = None,
        name: str = "llm",
        device: str = "cpu",
        dtype: str = "",
        parameters: Counts | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a model fast, which can then not be trained.

        Args:
            model: The model.
            target: The return to ask for; None: that of its training.
            name: Name in results.
            device: PyTorch device.
            dtype: Precision of the backbone, as in `fast.optimize`.
            parameters: Number of parameters in training; None: those of the model.
            training: How it was trained.
        """
        self.training, self.name, self.form = dict(training or {}), name, model.config.form
        self._counts = parameters or count(model)
        if isinstance(model, IntervalModel):
            fast.optimize(model, dtype)
        self.model, self._device = placed(model, device), device
        self.target = float(model.returns[2]) if target is None else target
        interval_ms, intervals = control_interval_ms(self), model.config.intervals
        self._every = every(model.config, interval_ms)
        self._memory = Memory(interval_ms, intervals.onestep.memory_s)
        self._average = MovingAverage(interval_ms, intervals.onestep.smoothing_s)
        self.reset(1, 0)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes.

        Raises:
            L4SError: `n` is not positive.
        """
        check_count(n)
        self.n, self._calls = n, 0
        self._memory.reset()
        self._average.reset()
        self._window: list[Tensor] = []
        self._before = np.tile(np.array(forms.get(self.form).idle, np.float64), (n, 1))
        self._chosen = self._before

    def act(self, obs: Observations, rewards: Floats) -> Floats:
        """Return actions (n, K); rewards are not used."""
        check_batch(obs, self.n, self.form)
        seen = self._memory(obs)
        if self._calls % self._every == 0:
            token = self.model.tokens(seen, self._before, np.full(self.n, self.target))
            self._window = [*self._window, token][-self.model.config.intervals.window :]
            self._chosen = self._choose(self._window)
        self._calls += 1
        self._before = self._average(self._chosen)
        return self._before.copy()

    def _choose(self, window: Sequence[Tensor]) -> Floats:
        lengths = torch.full((self.n,), len(window), device=self._device)
        with torch.inference_mode():
            chosen = self.model(torch.stack(list(window), 1).to(self._device), lengths)
        found: Floats = self.model.reach * np.round(chosen.double().cpu().numpy() * GRAIN) / GRAIN
        return found

    @property
    def shares(self) -> list[float]:
        """Shares with which an observation enters the averages of what is seen."""
        return self._memory.shares

    def cost(self) -> dict[str, float]:
        """Return the numbers of parameters, and the number of decisions that it sees."""
        return self._counts.cost() | {"window": float(self.model.config.intervals.window)}
