"""What decisions and training steps of the LLM agent cost in time; random weights cost what others do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from l4s_gym.agents.llm import fast

if TYPE_CHECKING:
    from l4s_gym.agents.llm.network import DecisionModel
    from l4s_gym.agents.llm.train import Trainer


def stream(n: int, steps: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Random returns-to-go (n,), observations (n, 8) and previous actions (n,), of each step."""
    g = torch.Generator().manual_seed(0)
    return [
        (torch.rand(n, generator=g), torch.rand(n, 8, generator=g), torch.randint(3, (n,), generator=g))
        for _ in range(steps)
    ]


@torch.inference_mode()
def decide(
    model: DecisionModel, n: int, steps: int, device: str = "cpu", *, whole: bool = False
) -> tuple[list[float], torch.Tensor]:
    """Time decisions of a model.

    Args:
        model: In `eval` mode.
        n: Queues that are decided at once.
        steps: Decisions, after a first window of others.
        device: Of PyTorch.
        whole: Forward the whole window for each, as a decision transformer without a cache does.

    Returns:
        Milliseconds of each decision, and all their logits (steps, n, 3).
    """
    window, step = model.config.window, fast.start(model, n)
    data = [tuple(x.to(device) for x in step) for step in stream(n, window + steps)]
    took, logits = [], []
    for k, (returns, observations, previous) in enumerate(data):
        start = time.perf_counter()
        if whole:
            rows = data[max(k + 1 - window, 0) : k + 1]
            r, o, a = (torch.stack([row[i] for row in rows], 1) for i in range(3))
            mask = torch.ones(r.shape, dtype=torch.bool, device=device)
            found = model(r, o, a, torch.arange(len(rows), device=device).expand(n, -1), mask)[:, -1]
        else:
            found = step(returns, observations, previous)
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(1e3 * (time.perf_counter() - start))
        logits.append(found.float().cpu())
    return took[window:], torch.stack(logits[window:])


def act(agent: Any, n: int, steps: int) -> list[float]:
    """Milliseconds of each whole decision of an LLM agent for n queues, after a first window of others."""
    window = agent.model.config.window
    agent.reset(n, 0)
    took = []
    for returns, observations, _ in stream(n, window + steps):
        given = observations.numpy(), returns.double().numpy()
        start = time.perf_counter()
        agent.act(*given)
        took.append(1e3 * (time.perf_counter() - start))
    return took[window:]


def figures(took: list[float], name: str = "") -> dict[str, float]:
    """Median, 99th percentile and least of some milliseconds."""
    p50, p99 = np.percentile(took, [50, 99])
    return {f"{name}p50_ms": float(p50), f"{name}p99_ms": float(p99), f"{name}min_ms": min(took)}


def training_steps(trainer: Trainer, steps: int, warm_up: int) -> tuple[list[float], int]:
    """Seconds of each of some optimiser steps after others, and the tokens that they read."""
    tokens, took = 0, []
    for step in range(warm_up + steps):
        if step == warm_up:
            tokens = trainer.tokens
        start = time.perf_counter()
        trainer.update()  # it reads the loss, so a GPU is done
        took.append(time.perf_counter() - start)
    return took[warm_up:], trainer.tokens - tokens
