"""Which token sees which: additive attention masks of the banded causal kind, for a whole pass and for one step."""

from __future__ import annotations

import torch
from torch import Tensor


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, the most negative number elsewhere (not -inf: a row without any would become NaN)."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def banded(visible: Tensor, tokens: int, window: int, dtype: torch.dtype) -> Tensor:
    """The mask of a whole pass.

    Args:
        visible: (B, N) bool: whether other tokens may see a token. Each sees itself, so that no row is empty.
        tokens: Tokens of a step; N is a multiple.
        window: A token sees those of its own step and of the `window - 1` steps before.
        dtype: Of the mask.

    Returns:
        (B, 1, N, N), additive.
    """
    index = torch.arange(visible.shape[1], device=visible.device)
    group = index // tokens
    causal = index[:, None] >= index
    near = group[:, None] - group < window
    self_seen = index[:, None] == index
    allowed = (causal & near) & visible[:, None, :] | self_seen  # (B, N, N)
    return _additive(allowed[:, None], dtype)


def single(tokens: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The mask of one step whose cache is full.

    Its last S columns are that of a cache with fewer steps.

    Returns:
        (1, 1, tokens, window * tokens), additive.
    """
    allowed = torch.ones(1, 1, tokens, window * tokens, dtype=torch.bool, device=device)
    allowed[..., -tokens:] = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    return _additive(allowed, dtype)


def ragged(mask: Tensor, steps: Tensor, tokens: int) -> Tensor:
    """The mask of one step for queues that began at different times.

    Args:
        mask: That for one age (1, 1, tokens, S).
        steps: Steps in the cache that belong to each queue (n,); older ones are hidden.
        tokens: Tokens of a step.

    Returns:
        (n, 1, tokens, S), additive.
    """
    groups = mask.shape[-1] // tokens
    age = torch.arange(groups - 1, -1, -1, device=mask.device).repeat_interleave(tokens)  # (S,): 0 is this step
    hidden = age > steps[:, None]  # (n, S)
    return mask.masked_fill(hidden[:, None, None, :], torch.finfo(mask.dtype).min)
