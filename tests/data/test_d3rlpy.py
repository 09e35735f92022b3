"""The adapter to d3rlpy: every step with its own observation, in every episode."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.data import minari_io
from l4s_gym.data.d3rlpy_io import ReturnSlicer, check_buffer, import_d3rlpy, quiet, replay_buffer
from l4s_gym.data.pools import make_rows
from l4s_gym.data.simulated import simulate_log
from l4s_gym.data.steps import MISSING, episodes_from_rows
from l4s_gym.data.trajectory import Trajectory

try:
    d3rlpy = import_d3rlpy()
except L4SError as error:
    pytest.skip(str(error), allow_module_level=True)


def _episode(first: int, steps: int, missing: tuple[int, ...] = (), consecutive: bool = True) -> Trajectory:
    """An episode in which everything tells its step: observation, action and reward."""
    number = np.arange(first, first + steps + 1)
    observations = np.zeros((steps + 1, 8), np.float32)
    observations[:, 5] = number
    flags = np.zeros(steps + 1, bool)
    flags[list(missing)] = True
    actions = number[:-1] % 3
    rewards = number[:-1].astype(np.float64)
    return Trajectory(observations, actions, rewards, missing={MISSING: flags}, consecutive=consecutive)


def _check_transitions(buffer: Any) -> list[int]:
    """Check that all parts of all transitions are of one step; the steps, in order."""
    steps = []
    for episode in buffer.episodes:
        for index in range(episode.transition_count):
            t = buffer.transition_picker(episode, index)
            step = int(t.observation[5])
            assert int(t.next_observation[5]) == step + 1
            assert int(t.action[0]) == step % 3
            assert float(t.reward[0]) == step
            assert t.terminal == 0.0
            steps.append(step)
    return steps


def test_no_episode_is_shifted() -> None:
    episodes = [_episode(first, 10) for first in range(0, 500, 100)]
    buffer = replay_buffer(episodes)
    assert _check_transitions(buffer) == [first + k for first in range(0, 500, 100) for k in range(9)]
    assert buffer.dataset_info.action_size == 3
    assert buffer.dataset_info.action_space == d3rlpy.ActionSpace.DISCRETE
    batch = buffer.sample_transition_batch(32)
    assert batch.observations.shape == (32, 8)
    assert batch.actions.shape == (32, 1)


def test_three_actions_even_if_fewer_were_seen() -> None:
    one = _episode(0, 10)
    buffer = replay_buffer([replace(one, actions=np.zeros(10, np.int64))])
    assert buffer.dataset_info.action_size == 3


def test_a_run_is_cut_where_steps_are_missing() -> None:
    buffer = replay_buffer([_episode(0, 12, missing=(0, 4, 5, 7))])
    # Steps 1-3 and 8-11 are stretches of their own; step 6 alone has no transition.
    assert _check_transitions(buffer) == [1, 2, 8, 9, 10]
    whole = replay_buffer([_episode(0, 12, missing=(0, 4, 5, 7))], drop_missing=False)
    assert _check_transitions(whole) == list(range(11))


def test_loose_rows_are_thinned() -> None:
    buffer = replay_buffer([_episode(0, 12, missing=(0, 4, 5, 7), consecutive=False)])
    (episode,) = buffer.episodes
    assert episode.observations[:, 5].tolist() == [1, 2, 3, 6, 8, 9, 10, 11]
    assert episode.actions[:, 0].tolist() == [1, 2, 0, 0, 2, 0, 1, 2]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(L4SError, match="drop_missing=False"):
        replay_buffer([_episode(0, 3, missing=(0, 1, 2, 3))])
    with pytest.raises(L4SError, match="no episode has two steps"):
        replay_buffer([], drop_missing=False)


def test_the_check_finds_a_shift() -> None:
    episodes = [_episode(0, 10), _episode(100, 10)]
    buffer = replay_buffer(episodes)
    with pytest.raises(L4SError, match="episode 1 differs"):
        check_buffer(buffer, [episodes[0], _episode(101, 10)])
    with pytest.raises(L4SError, match="has 2 episodes, not 1"):
        check_buffer(buffer, episodes[:1])


def test_a_dataset_gives_the_same_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episodes = [_episode(first, 10, missing=(3,)) for first in (0, 100, 200)]
    dataset = minari_io.create("l4s/dualpi2/steps-v0", episodes, algorithm_name="none", description="for tests")
    buffer = replay_buffer(dataset)
    check_buffer(buffer, episodes)
    assert _check_transitions(buffer) == _check_transitions(replay_buffer(episodes))


SOURCES = ("simulated", "kernel")


@pytest.fixture(params=SOURCES)
def dataset(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_log: Any, printed_only: Any
) -> Any:
    """A small Minari dataset: of the simulator, and of a kernel log of which rows were lost."""
    pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    if request.param == "simulated":
        logs = [simulate_log("l4s-llm-testbed", seed=seed, seconds=1.5) for seed in (0, 1)]
    else:
        kept = np.random.default_rng(0).random(700) > 0.02
        logs = [printed_only(kernel_log(seed, 700))[kept] for seed in (1, 2)]
    episodes = episodes_from_rows([make_rows(log) for log in logs])
    name = f"l4s/dualpi2/{request.param}-v0"
    return minari_io.create(name, episodes, algorithm_name="dualpi2_freebsd", description="for tests")


def _train(config: Any, buffer: Any, steps: int) -> Any:
    """The algorithm after some gradient steps on the CPU."""
    with quiet():
        algo = config.create(device=False)
        log = d3rlpy.logging.NoopAdapterFactory()
        options = {"n_steps_per_epoch": steps, "show_progress": False, "logger_adapter": log}
        algo.fit(buffer, n_steps=steps, **options)
    return algo


def _weights(algo: Any) -> list[Any]:
    return [
        value.clone()
        for module in vars(algo.impl.modules).values()
        if hasattr(module, "parameters")
        for value in module.state_dict().values()
    ]


@pytest.mark.parametrize("name", ["DiscreteBC", "DiscreteCQL"])
def test_algorithms_train_on_our_datasets(dataset: Any, name: str) -> None:
    buffer = replay_buffer(dataset)
    check_buffer(buffer, list(minari_io.read_episodes(dataset)))
    config = getattr(d3rlpy.algos, f"{name}Config")(batch_size=16)
    algo = _train(config, buffer, 5)
    before = _weights(algo)
    with quiet():
        losses = [algo.update(buffer.sample_transition_batch(16)) for _ in range(10)]
    assert all(np.isfinite(list(loss.values())).all() for loss in losses)
    assert any((old != new).any() for old, new in zip(before, _weights(algo), strict=True))
    assert algo.action_size == 3
    assert set(algo.predict(buffer.episodes[0].observations[:50]).tolist()) <= {0, 1, 2}


def test_decision_transformers_train_on_our_datasets(dataset: Any) -> None:
    longest = max(map(len, (e.actions for e in minari_io.read_episodes(dataset))))
    config = d3rlpy.algos.DiscreteDecisionTransformerConfig(
        batch_size=8, context_size=4, max_timestep=100, num_heads=1, num_layers=1,
        encoder_factory=d3rlpy.models.VectorEncoderFactory([16], exclude_last_activation=True),
    )  # fmt: skip
    assert longest > config.max_timestep  # d3rlpy's own slicer would run past the embeddings
    buffer = replay_buffer(dataset, drop_missing=False, slicer=ReturnSlicer(config.max_timestep))
    algo = _train(config, buffer, 5)
    before = _weights(algo)
    with quiet():
        losses = [algo.update(buffer.sample_trajectory_batch(8, 4)) for _ in range(5)]
    assert all(np.isfinite(list(loss.values())).all() for loss in losses)
    assert any((old != new).any() for old, new in zip(before, _weights(algo), strict=True))
    actor = algo.as_stateful_wrapper(target_return=1.0, action_sampler=d3rlpy.algos.GreedyTransformerActionSampler())
    assert actor.predict(buffer.episodes[0].observations[0], 0.0) in {0, 1, 2}


def test_the_slicer_is_that_of_d3rlpy_but_for_the_wrapped_timesteps() -> None:
    buffer = replay_buffer([_episode(0, 12), _episode(100, 30)])
    ours, theirs = ReturnSlicer(10), d3rlpy.dataset.BasicTrajectorySlicer()
    for episode in buffer.episodes:
        for end in range(episode.size()):
            for size in (1, 5, 20):
                got, expected = ours(episode, end, size), theirs(episode, end, size)
                for name in ("observations", "actions", "rewards", "returns_to_go", "terminals", "masks"):
                    one, other = getattr(got, name), getattr(expected, name)
                    np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=name)
                    assert (one.shape, one.dtype) == (other.shape, other.dtype), name
                wrapped = np.where(expected.masks > 0, (expected.timesteps - 1) % 10 + 1, 0)
                np.testing.assert_array_equal(got.timesteps, wrapped)
                assert len(got) == size
    with pytest.raises(L4SError, match="max_timestep 0"):
        ReturnSlicer(0)


def test_the_reader_of_d3rlpy_shifts_later_episodes(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for our adapter. Should `assert not` fail, d3rlpy has mended it."""
    import gymnasium as gym
    import minari

    # It needs an environment with a limit on the steps, which ours has not.
    monkeypatch.setattr(minari.MinariDataset, "recover_environment", lambda self: gym.make("CartPole-v1"))
    with quiet():
        theirs, _ = d3rlpy.datasets.get_minari(dataset.id)
    ours = replay_buffer(dataset, drop_missing=False)
    first, second = theirs.episodes
    np.testing.assert_array_equal(first.observations, ours.episodes[0].observations)
    np.testing.assert_array_equal(second.actions, ours.episodes[1].actions)
    source = list(minari_io.read_episodes(dataset))
    assert not np.array_equal(second.observations, source[1].observations[:-1]), (
        "d3rlpy.datasets.get_minari no longer shifts: drop the note in l4s_gym/data/d3rlpy_io.py, and this test"
    )
    shifted = np.concatenate([source[0].observations[-1:], source[1].observations[:-2]])
    np.testing.assert_array_equal(second.observations, shifted)


def test_d3rlpy_is_quiet_only_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    replay_buffer([_episode(0, 10)])
    with quiet():
        d3rlpy.logging.LOG.info("not shown")
    assert capsys.readouterr() == ("", "")
    d3rlpy.logging.LOG.info("shown")
    assert "shown" in capsys.readouterr().out


def test_without_d3rlpy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    with pytest.raises(L4SError, match=r"pip install 'l4s-gym\[baselines\]'"):
        replay_buffer([_episode(0, 10)])
