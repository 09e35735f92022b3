"""Behaviour cloning with d3rlpy: the simplest imitation of the queue discipline.

Maximum likelihood without class weights: the probabilities are calibrated, so
`sample` and `diffuse` mark and drop as often as the discipline did. d3rlpy's penalty on the size of the logits
(`beta`, 0.5 by default) would pull them towards 1/3 and is off.

`train_bc` trains on a replay buffer in memory; `l4s-gym train bc` on a dataset, with checkpoints and metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from l4s_gym.agents.d3rlpy_agents import BCAgent
from l4s_gym.agents.d3rlpy_learners import BC
from l4s_gym.data.d3rlpy_io import import_d3rlpy
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, OBSERVED

__all__ = ["BCAgent", "train_bc"]

Progress = Callable[[int, int], None]


def _logged(buffer: Any) -> Trajectory:
    """Return the steps of a replay buffer."""
    info = buffer.dataset_info
    if tuple(info.observation_signature.shape[0]) != (len(OBSERVED),) or info.action_size != len(ACTIONS):
        raise L4SError("bc: the buffer is not of 8 features and 3 actions: make it by d3rlpy_io.replay_buffer")
    return Trajectory(
        observations=np.concatenate([episode.observations for episode in buffer.episodes]),
        actions=np.concatenate([episode.actions[:, 0] for episode in buffer.episodes]).astype(np.int64),
        rewards=np.concatenate([episode.rewards[:, 0] for episode in buffer.episodes]).astype(np.float64),
        starts=np.cumsum([0, *(len(episode.actions) for episode in buffer.episodes)]).astype(np.int64),
    )


def train_bc(
    buffer: Any,
    *,
    steps: int,
    seed: int,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    rule: str = "sample",
    progress: Progress | None = None,
) -> BCAgent:
    """Train an imitator on the CPU; the same buffer, arguments and seed give the same agent.

    Args:
        buffer: A replay buffer of `l4s_gym.data.d3rlpy_io.replay_buffer`.
        steps: Gradient steps.
        seed: Seed of the weights and the batches.
        batch_size: Steps in a batch.
        learning_rate: Learning rate of Adam.
        rule: Decision rule of the agent.
        progress: Called after each gradient step with its number and `steps`.

    Returns:
        The agent. Its observations are standardised with mean and deviation of the buffer's.

    Raises:
        L4SError: d3rlpy is not installed, or an argument makes no sense.
    """
    import_d3rlpy()
    if steps < 1 or batch_size < 1:
        raise L4SError(f"bc: steps={steps}, batch_size={batch_size}: give 1 or more")
    logged = _logged(buffer)
    algorithm = {"learning_rate": learning_rate}
    config = BC.configure(
        {"steps": steps, "seed": seed, "batch_size": batch_size, "rule": rule, "algorithm": algorithm}
    )
    report = None if progress is None else (lambda step, _: progress(step, steps))
    agent, seconds = BC.fit(logged, config, report=report)
    assert isinstance(agent, BCAgent)
    agent.training = {"dataset_steps": len(logged), "steps": steps, "seed": seed, "seconds": round(seconds, 3)}
    return agent
