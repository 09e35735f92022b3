"""The decision transformer against d3rlpy's own wrapper and slicer, and what its loss counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError, agents
from l4s_gym.data.d3rlpy_io import ReturnSlicer, replay_buffer
from l4s_gym.data.trajectory import Trajectory

Trained = Callable[[str], Path]


def test_decisions_are_those_of_d3rlpys_wrapper(trained: Trained) -> None:
    from l4s_gym.agents.transformer import DTAgent

    agent = agents.make(f"{trained('dt')},rule=argmax,target=3.5")
    assert isinstance(agent, DTAgent)
    rng = np.random.default_rng(0)
    steps, n = 120, 3  # beyond max_timestep, 50
    observations = rng.random((steps, n, 8)).astype(np.float32)
    rewards = rng.random((steps, n))
    seen: list[Any] = []

    def sampler(logits: Any) -> int:
        seen.append(logits)
        return int(np.argmax(logits))

    expected = np.empty((steps, n), np.int64)
    for i in range(n):
        wrapper = agent.algo.as_stateful_wrapper(target_return=3.5, action_sampler=sampler)
        for step in range(steps):
            wrapper._timestep = step % agent.max_timestep + 1  # it would stay at the last one
            expected[step, i] = wrapper.predict(observations[step, i], float(rewards[step, i]))
    agent.reset(n, 0)
    last: list[Any] = []
    inner = agent._last
    agent._last = lambda window: last.append(inner(window)) or last[-1]  # type: ignore[method-assign, func-returns-value]
    found = np.stack([agent.act(observations[step], rewards[step]) for step in range(steps)])
    np.testing.assert_array_equal(found, expected)
    logits = np.stack(seen).reshape(n, steps, 3).astype(np.float64)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(np.stack(last, axis=1), p / p.sum(axis=-1, keepdims=True), atol=1e-6)


def test_windows_are_the_slicers(episodes: list[Trajectory], dataset: str) -> None:
    from l4s_gym.agents.transformer import DT

    logged = Trajectory.joined(episodes)
    config = DT.configure({"algorithm": {"context_size": 6, "max_timestep": 50}})
    slicer = ReturnSlicer(50)
    buffer = replay_buffer(episodes, slicer=slicer)
    assert len(buffer.episodes) == len(logged.starts) - 1
    places = [(0, 0), (0, 3), (0, 700), (1, 0), (1, 5), (2, len(buffer.episodes[2].actions) - 1)]
    index = np.array([logged.starts[episode] + end for episode, end in places])
    batch = DT.batch(logged, index, config)
    for k, (episode, end) in enumerate(places):
        window = slicer(buffer.episodes[episode], end, 6)
        for name in ("observations", "actions", "rewards", "returns_to_go", "timesteps", "masks"):
            np.testing.assert_allclose(getattr(batch, name)[k], getattr(window, name), rtol=1e-6, err_msg=name)


def test_transitions_are_the_buffers(episodes: list[Trajectory], dataset: str) -> None:
    from l4s_gym.agents.d3rlpy_learners import CQL

    logged, buffer = Trajectory.joined(episodes), replay_buffer(episodes)
    steps = CQL.steps_to_draw(logged)
    assert len(steps) == sum(len(episode.actions) - 1 for episode in buffer.episodes)
    batch = CQL.batch(logged, logged.starts[1] + np.array([0, 41]), CQL.configure({}))
    for k, step in enumerate((0, 41)):
        one = buffer.transition_picker(buffer.episodes[1], step)
        for name in ("observation", "action", "reward", "next_observation", "next_action"):
            np.testing.assert_allclose(getattr(batch, f"{name}s")[k], getattr(one, name), rtol=1e-6)
        assert one.terminal == batch.terminals[k, 0] == 0.0


def test_an_observation_alone_says_nothing(trained: Trained) -> None:
    agent: Any = agents.make(str(trained("dt")))
    with pytest.raises(L4SError, match="window"):
        agent.probabilities(np.zeros((1, 8), np.float32))
    with pytest.raises(L4SError, match="target=much: give a number"):
        agents.make(f"{trained('dt')},target=much")


@pytest.mark.parametrize("kind", ["none", "sample"])
def test_padding_is_no_enqueue(kind: str, dataset: str, episodes: list[Trajectory]) -> None:
    """The loss of a window of one step is that of its step, whatever stands in the padding."""
    import torch

    from l4s_gym.agents.imbalance import Imbalance
    from l4s_gym.agents.transformer import DT
    from l4s_gym.data.d3rlpy_io import quiet
    from tests.agents.conftest import TINY

    logged = Trajectory.joined(episodes)
    config = DT.configure(TINY["dt"] | {"imbalance": {"kind": kind}})
    with quiet():
        algo = DT.build(logged, config)
    DT.set_loss(algo, Imbalance.of(kind).fitted(logged.actions), config)
    algo.impl.modules.transformer.eval()
    from d3rlpy.torch_utility import TorchTrajectoryMiniBatch

    made = DT.batch(logged, logged.starts[:1], config)
    batch = TorchTrajectoryMiniBatch.from_batch(made, "cpu", algo.observation_scaler, None, algo.reward_scaler)
    first = algo.impl.compute_loss(batch)
    batch.actions[:, :-1] = 2.0
    assert torch.equal(algo.impl.compute_loss(batch), first)
    batch.actions[:, -1] = 2.0
    assert not torch.equal(algo.impl.compute_loss(batch), first)
