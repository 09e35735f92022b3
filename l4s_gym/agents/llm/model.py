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

from l4s_gym.agents.llm.config import LLMConfig


@dataclass
class State:
    """What a batch of queues remembers between steps.

    Attributes:
        cache: Keys and values of the last `window - 1` groups, of the backbone's own type.
        steps: Steps since each queue's start or reset (n,), int64: the next step's timestep.
        values: Last observations that the encoders look back at (n, reach, F), 0 where there were none.
        known: Which of their features are known (n, reach, features), bool.
        groups: Groups in the cache.
        position: Next position, in tokens, of backbones whose positions are relative.
    """

    cache: Any
    steps: Tensor
    values: Tensor
    known: Tensor
    groups: int = 0
    position: int = 0


class DecisionModel(nn.Module):
    """The decision transformer.

    Attributes:
        config: What it is made of.
    """

    def __init__(self, config: LLMConfig) -> None:
        """Build it: a random backbone from its seed, or a pretrained one from the hub or a folder.

        Encoders, projections and head are drawn from PyTorch's global generator (`torch.manual_seed`).

        Raises:
            L4SError: transformers or peft is missing, or the backbone does not exist or cannot be used.
        """
        super().__init__()
        self.config = config

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
        raise NotImplementedError

    def start(self, n: int) -> State:
        """Begin with `n` queues, each at timestep 0."""
        raise NotImplementedError

    def step(
        self,
        state: State,
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
        raise NotImplementedError

    def merge(self) -> None:
        """Merge LoRA's adapters into the weights, for use; training ends with this. Without adapters: nothing."""
        raise NotImplementedError

    def parameters_to_train(self) -> list[nn.Parameter]:
        """Those that are not frozen."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
