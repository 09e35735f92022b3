"""The decision transformer: returns, observations and actions in, logits of the next action out.

Each step is a group of tokens: the previous action, the return-to-go, the state (one token, or one for each
feature). Read on, that is the sequence R, s, a, R, s, a, ...; the action before the first step is a token of its
own for "none". The logits of a step are read at its last state token, so they depend on returns and observations up
to the step and on actions before it.

A token attends to the earlier tokens of its own group and of the `window - 1` groups before it, in training as in
use: keys and values of older groups can be forgotten, and deciding step by step gives the logits of one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l4s_gym.agents.llm.attention import banded, ragged, single
from l4s_gym.agents.llm.backbones import Backbone
from l4s_gym.agents.llm.config import LLMConfig
from l4s_gym.agents.llm.encoders import StateEncoder, expand
from l4s_gym.agents.llm.small import Small, fits
from l4s_gym.errors import L4SError


@dataclass
class State:
    """What a batch of queues remembers between steps.

    Attributes:
        cache: Keys and values of the last `window - 1` groups, of the backbone's own type.
        steps: Steps since each queue's start or reset (n,), int64: the next step's timestep.
        values: Last observations that the encoders look back at (n, reach, F), 0 where there were none.
        known: Which of their features are known (n, reach, features), bool.
        complete: Those of a step that has none missing (n, 1, features): True.
        groups: Groups in the cache.
        position: Next position, in tokens, of backbones whose positions are relative.
        ragged: For so many steps to come, queues with fewer steps than others are in the batch.
    """

    cache: Any
    steps: Tensor
    values: Tensor
    known: Tensor
    complete: Tensor
    groups: int = 0
    position: int = 0
    ragged: int = 0


class DecisionModel(nn.Module):
    """The decision transformer.

    Attributes:
        config: What it is made of.
    """

    places: Tensor

    def __init__(self, config: LLMConfig) -> None:
        """Build it: a random backbone from its seed, or a pretrained one from the hub or a folder.

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
        self.embed_action = nn.Embedding(config.actions + 1, width)  # the last one: none
        self.embed_time = nn.Embedding(config.encoder.max_timestep, width)
        for table in (self.embed_action, self.embed_time):  # of variance 1 they would drown the state: learning stalls
            nn.init.normal_(table.weight, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.actions)
        tokens, limit = config.step_tokens, self.backbone.limit
        self._cycle = limit // tokens if self.backbone.positions == "learned" else 0
        if self.backbone.positions == "learned" and self._cycle < config.window:
            need = config.window * tokens
            raise L4SError(f"llm: the window takes {need} positions, the backbone has {limit}: shorten the window")
        places = torch.arange(self._cycle * tokens).view(-1, tokens)
        self.register_buffer("places", places, persistent=False)
        self._limit = max(limit, 4 * config.window * tokens)
        self._single: Tensor | None = None

    def _embed(
        self,
        returns: Tensor,
        values: Tensor,
        known: Tensor,
        previous: Tensor,
        timesteps: Tensor,
        missing: Tensor | None,
    ) -> Tensor:
        """The tokens of steps.

        Args:
            returns: (B, K).
            values: (B, reach + K, F), 0 where they are not known.
            known: (B, reach + K, features).
            previous: The actions before (B, K); `config.actions` for none.
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
        """Positions (B or 1, K * tokens) of steps at timesteps (B, K), or counted from `first`."""
        tokens, steps = self.config.step_tokens, timesteps.shape[1]
        if self._cycle:
            return F.embedding(timesteps % self._cycle, self.places).flatten(1)
        return torch.arange(first, first + steps * tokens, device=timesteps.device)[None]

    def forward(
        self,
        returns: Tensor,
        observations: Tensor,
        actions: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        missing: Tensor | None = None,
    ) -> Tensor:
        """Logits of each step's action.

        Args:
            returns: Return-to-go (B, K), float32; divided by `config.return_scale` here.
            observations: (B, K, F) float32, F = 8.
            actions: (B, K) int64. The action of step t is seen from step t + 1 on only.
            timesteps: Steps since the start of the run (B, K), int64; consecutive within a row.
            mask: (B, K) bool: False hides a step (padding on either side, or temporal dropout) from all others.
            missing: (B, K) bool: True where the feature `config.encoder.unknown` is not known; its value is not read.

        Returns:
            (B, K, 3) float32; those of hidden steps mean nothing.
        """
        reach, none = self.encoder.reach, self.config.actions
        known = self.encoder.known(mask, missing)
        values = self.encoder.clean(observations, known)
        values, known = F.pad(values, (0, 0, reach, 0)), F.pad(known, (0, 0, reach, 0))
        acted = F.pad(mask[:, :-1], (1, 0))  # whether the step before is there
        previous = torch.where(acted, F.pad(actions[:, :-1], (1, 0)), none)
        tokens = self._embed(torch.where(mask, returns, 0.0), values, known, previous, timesteps, missing)
        shown = mask[..., None].repeat(1, 1, tokens.shape[2])  # (B, K, tokens)
        shown[..., 0] |= acted
        dtype = self.backbone.dtype
        attention = banded(shown.flatten(1), tokens.shape[2], self.config.window, dtype)
        hidden = self.backbone(tokens.flatten(1, 2), attention, self._positions(timesteps, 0))
        logits: Tensor = self.head(hidden.view(tokens.shape)[:, :, -1])
        return logits

    def start(self, n: int, *, small: bool = True) -> State | Small:
        """Begin with `n` queues, each at timestep 0.

        Args:
            n: Number of queues.
            small: A small model that was made fast decides for a few queues in compiled code; False: in PyTorch.
        """
        if small and fits(self, n):
            return Small(self, n)
        device, encoder, reach = self.head.weight.device, self.config.encoder, self.encoder.reach
        count = len(encoder.features)
        return State(
            cache=self.backbone.new_cache(),
            steps=torch.zeros(n, dtype=torch.long, device=device),
            values=torch.zeros(n, reach, encoder.size, device=device),
            known=torch.zeros(n, reach, count, dtype=torch.bool, device=device),
            complete=torch.ones(n, 1, count, dtype=torch.bool, device=device),
        )

    def _reset(self, state: State, reset: Tensor) -> None:
        """Let queues begin anew."""
        state.steps = torch.where(reset, 0, state.steps)
        state.values = torch.where(reset[:, None, None], 0.0, state.values)
        state.known = state.known & ~reset[:, None, None]
        if bool(reset.any()):
            state.ragged = self.config.window

    def _step_mask(self, state: State) -> Tensor:
        """The mask (n or 1, 1, tokens, cached and new tokens) of the next step."""
        tokens, window = self.config.step_tokens, self.config.window
        device, dtype = state.steps.device, self.backbone.dtype
        if self._single is None or self._single.device != device or self._single.dtype != dtype:
            self._single = single(tokens, window, dtype, device)
        mask = self._single[..., -(state.groups + 1) * tokens :]
        if state.ragged:
            state.ragged -= 1
            return ragged(mask, state.steps, tokens)
        return mask

    @torch.no_grad()
    def step(
        self,
        state: State | Small,
        returns: Tensor,
        observations: Tensor,
        previous_actions: Tensor,
        reset: Tensor | None = None,
        missing: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next action of each queue; changes the state. Call it in `eval` mode.

        Args:
            state: Of `start`.
            returns: Return-to-go (n,), float32.
            observations: (n, F) float32.
            previous_actions: (n,) int64: what was done at the last step; not read at a queue's first step.
            reset: (n,) bool: queues that begin anew with this step; the others go on.
            missing: (n,) bool: as in `forward`.

        Returns:
            (n, 3) float32: those of `forward` over all steps since the reset.
        """
        if isinstance(state, Small):
            return state.step(returns, observations, previous_actions, reset, missing)
        config, tokens = self.config, self.config.step_tokens
        if reset is not None:
            self._reset(state, reset)
        values, known, timesteps = observations[:, None], state.complete, state.steps[:, None]
        if missing is not None:
            missing = missing[:, None]
            known = self.encoder.known(known[..., 0], missing)
            values = self.encoder.clean(values, known)
        values, known = torch.cat((state.values, values), 1), torch.cat((state.known, known), 1)
        previous = previous_actions[:, None]
        if reset is not None or not state.groups:
            previous = torch.where(timesteps > 0, previous, config.actions)
        embedded = self._embed(returns[:, None], values, known, previous, timesteps, missing)[:, 0]
        if self.backbone.positions == "rotary" and state.position + tokens > self._limit:
            first = state.position - state.groups * tokens
            if state.groups:
                self.backbone.shift(state.cache, first)
            state.position -= first
        positions = self._positions(timesteps, state.position)
        hidden = self.backbone(embedded, self._step_mask(state), positions, state.cache)
        state.groups = min(state.groups + 1, config.window - 1)
        state.cache = self.backbone.forget(state.cache, state.groups * tokens)
        state.position += tokens
        state.steps = state.steps + 1
        state.values, state.known = values[:, 1:], known[:, 1:]
        logits: Tensor = self.head(hidden[:, -1])
        return logits

    def merge(self) -> None:
        """Merge LoRA's adapters into the weights, for use; training ends with this. Without adapters: nothing."""
        self.backbone.merge()

    def optimize(self, precision: str = "float32") -> None:
        """Make deciding fast: adapters merged, and GPT-2 in fewer operations; training and saving end with this.

        Args:
            precision: `float32`, `bfloat16` or `int8` (GPT-2 only; int8 on the CPU).

        Raises:
            L4SError: Another family in another precision than it has.
        """
        from l4s_gym.agents.llm.fast import FastGPT2

        self.requires_grad_(False)
        self.eval()
        self.encoder.fold()
        if precision == "float32" and self.backbone.family != "gpt2":
            self.merge()
            return
        self.backbone = FastGPT2(self.backbone, precision)
        self._single = None

    def parameters_to_train(self) -> list[nn.Parameter]:
        """Those that are not frozen."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
