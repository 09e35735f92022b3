"""The decision transformer: from returns, observations and actions to the logits of the next action.

Each step is a group of tokens: the previous action, the return-to-go, the state (one token, or one for each
feature). In order, that is the sequence R, s, a, R, s, a, ...; the action before the first step is a token of its
own for "none". The logits of a step are read at its last state token, so they depend on returns and observations up
to the step and on actions before it.

A token attends to the earlier tokens of its own group and of the `window - 1` groups before it, in training as in
use: keys and values of older groups can be dropped, and step-by-step inference gives the logits of one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l4s_gym.agents.llm.backbones import Backbone, banded
from l4s_gym.agents.llm.encoders import StateEncoder, expand
from l4s_gym.agents.llm.settings import LLMConfig
from l4s_gym.agents.llm.tasks import Head
from l4s_gym.errors import L4SError


@dataclass
class State:
    """Memory of a batch of queues between steps.

    Attributes:
        cache: Keys and values of the last `window - 1` groups, of the backbone's own type.
        steps: Steps since the start (n, 1), int64: the next step's timestep.
        values: Last observations that the encoders use (n, reach, F), 0 where there were none.
        known: Which of their features are known (n, reach, features), bool: all after `reach` steps.
        complete: Known features of one step (n, 1, features): all.
        groups: Groups in the cache.
        position: Next position, in tokens, of backbones whose positions are relative.
    """

    cache: Any
    steps: Tensor
    values: Tensor
    known: Tensor
    complete: Tensor
    groups: int = 0
    position: int = 0


class DecisionModel(nn.Module):
    """The decision transformer.

    Attributes:
        config: Its configuration.
    """

    places: Tensor

    def __init__(self, config: LLMConfig) -> None:
        """Build the model: a random backbone from its seed, or a pretrained one from the hub or a folder.

        Encoders, projections, adapters and head are drawn from PyTorch's global generator (`torch.manual_seed`).

        Raises:
            L4SError: transformers or peft is missing, or the backbone does not exist or cannot be used.
        """
        super().__init__()
        self.config = config
        self.backbone: Any = Backbone(config.backbone, config.lora)
        width = self.backbone.width
        self.encoder = StateEncoder(config.encoder, width)
        self.embed_return = nn.Linear(2, width)
        self.embed_action = nn.Embedding(config.told + 1, width)  # the last one: none
        self.embed_time = nn.Embedding(config.encoder.max_timestep, width)
        for table in (self.embed_action, self.embed_time):  # with variance 1, learning stalls
            nn.init.normal_(table.weight, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.head: Any = nn.Linear(width, config.actions) if config.task is None else Head(config, width)
        tokens, limit = config.step_tokens, self.backbone.limit
        self._cycle = limit // tokens if self.backbone.positions == "learned" else 0
        if self.backbone.positions == "learned" and self._cycle < config.window:
            need = config.window * tokens
            raise L4SError(f"llm: the window takes {need} positions, the backbone has {limit}: shorten the window")
        places = torch.arange(self._cycle * tokens).view(-1, tokens)
        self.register_buffer("places", places, persistent=False)
        self._limit = max(limit, 4 * config.window * tokens)
        self._last: Tensor | None = None

    def _embed(
        self,
        returns: Tensor,
        values: Tensor,
        known: Tensor,
        previous: Tensor,
        timesteps: Tensor,
        missing: Tensor | None = None,
    ) -> Tensor:
        """Embed the tokens of steps.

        Args:
            returns: (B, K).
            values: (B, reach + K, F), 0 where unknown.
            known: (B, reach + K, features).
            previous: The previous actions (B, K); `config.told` for none.
            timesteps: (B, K).
            missing: (B, K), or None.

        Returns:
            (B, K, tokens of a step, width).
        """
        state = self.encoder(values, known, missing)  # (B, K, features, width)
        if self.config.layout == "fused":
            state = state.sum(2, keepdim=True)
        to_go = self.embed_return(expand(returns / self.config.return_scale))
        tokens = torch.cat((self.embed_action(previous)[:, :, None], to_go[:, :, None], state), 2)
        time = self.embed_time(timesteps % self.config.encoder.max_timestep)
        embedded: Tensor = self.norm(tokens + time[:, :, None])
        return embedded

    def _positions(self, timesteps: Tensor, first: int) -> Tensor:
        """Return positions (B or 1, K * tokens) of steps at timesteps (B, K), or counted from `first`."""
        tokens, steps = self.config.step_tokens, timesteps.shape[1]
        if self._cycle:
            return F.embedding(timesteps % self._cycle, self.places).flatten(1)
        return torch.arange(first, first + steps * tokens, device=timesteps.device)[None]

    def _before(self, actions: Tensor) -> Tensor:
        """Return what is told of earlier actions (B, K, ...): (B, K) int64."""
        if self.config.task is None:
            return actions
        told = self.config.told
        return actions % told if told else torch.zeros(actions.shape[:2], dtype=torch.long, device=actions.device)

    def _tell(self, hidden: Tensor, observations: Tensor) -> Tensor:
        """Return what the head makes of steps (B, K, width) and their observations (B, K, D)."""
        found: Tensor = self.head(hidden) if self.config.task is None else self.head(hidden, observations)
        return found

    def forward(
        self,
        returns: Tensor,
        observations: Tensor,
        actions: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        missing: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of each step's action.

        Args:
            returns: Return-to-go (B, K), float32; divided by `config.return_scale` here.
            observations: (B, K, F) float32, F = 8; of another task the columns of `tasks.flat`.
            actions: (B, K) int64; of another task `tasks.labels`. That of step t is visible from step t + 1 on only.
            timesteps: Steps since the start of the run (B, K), int64; consecutive within a row.
            mask: (B, K) bool: False hides a step (padding on either side, or temporal dropout) from all others.
            missing: (B, K) bool: True where the feature `config.encoder.unknown` is unknown; its value is not read.

        Returns:
            (B, K, 3) float32; those of hidden steps have no meaning. Of another task: what its head tells.
        """
        reach, none = self.encoder.reach, self.config.told
        known = self.encoder.known(mask, missing)
        values = self.encoder.clean(observations[..., : self.config.encoder.size], known)
        values, known = F.pad(values, (0, 0, reach, 0)), F.pad(known, (0, 0, reach, 0))
        acted = F.pad(mask[:, :-1], (1, 0))  # whether the step before is visible
        previous = torch.where(acted, F.pad(self._before(actions)[:, :-1], (1, 0)), none)
        tokens = self._embed(torch.where(mask, returns, 0.0), values, known, previous, timesteps, missing)
        shown = mask[..., None].repeat(1, 1, tokens.shape[2])  # (B, K, tokens)
        shown[..., 0] |= acted
        attention = banded(shown.flatten(1), tokens.shape[2], self.config.window, self.backbone.dtype)
        hidden = self.backbone(tokens.flatten(1, 2), attention, self._positions(timesteps, 0))
        return self._tell(hidden.view(tokens.shape)[:, :, -1], observations)

    def start(self, n: int) -> State:
        """Start `n` queues, all at timestep 0."""
        device, encoder, reach = self.norm.weight.device, self.config.encoder, self.encoder.reach
        count = len(encoder.features)
        return State(
            cache=self.backbone.new_cache(),
            steps=torch.zeros(n, 1, dtype=torch.long, device=device),
            values=torch.zeros(n, reach, encoder.size, device=device),
            known=torch.zeros(n, reach, count, dtype=torch.bool, device=device),
            complete=torch.ones(n, 1, count, dtype=torch.bool, device=device),
        )

    def _last_rows(self, device: torch.device) -> Tensor:
        """Return the mask rows of a step (1, 1, tokens, window * tokens); a shorter cache uses the last columns."""
        tokens, window, dtype = self.config.step_tokens, self.config.window, self.backbone.dtype
        if self._last is None or self._last.device != device or self._last.dtype != dtype:
            visible = torch.ones(1, window * tokens, dtype=torch.bool, device=device)
            self._last = banded(visible, tokens, window, dtype)[:, :, -tokens:].contiguous()
        return self._last

    @torch.no_grad()
    def step(self, state: State, returns: Tensor, observations: Tensor, previous: Tensor) -> Tensor:
        """Compute the logits of the next action of each queue, and change the state; call it in `eval` mode.

        Args:
            state: From `start`.
            returns: Return-to-go (n,), float32.
            observations: (n, F) float32, nothing missing.
            previous: Actions of the last step (n,) int64, or `tasks.labels`; not read at the first step.

        Returns:
            (n, 3) float32: those of `forward` over all steps since the start.
        """
        config, tokens, timesteps = self.config, self.config.step_tokens, state.steps
        observations = observations[:, None]
        values = torch.cat((state.values, observations[..., : config.encoder.size]), 1)
        known = torch.cat((state.known, state.complete), 1)
        previous = self._before(previous[:, None])
        if not state.groups:
            previous = torch.where(timesteps > 0, previous, config.told)
        embedded = self._embed(returns[:, None], values, known, previous, timesteps)[:, 0]
        if self.backbone.positions == "rotary" and state.position + tokens > self._limit:
            first = state.position - state.groups * tokens
            if state.groups:
                self.backbone.shift(state.cache, first)
            state.position -= first
        positions = self._positions(timesteps, state.position)
        mask = self._last_rows(timesteps.device)[..., -(state.groups + 1) * tokens :]
        hidden = self.backbone(embedded, mask, positions, state.cache)
        state.groups = min(state.groups + 1, config.window - 1)
        state.cache = self.backbone.forget(state.cache, state.groups * tokens)
        state.position += tokens
        state.steps = timesteps + 1
        state.values, state.known = values[:, 1:], known[:, 1:]
        return self._tell(hidden[:, -1:], observations)[:, 0]
