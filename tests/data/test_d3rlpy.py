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
from l4s_gym.data.d3rlpy_io import check_buffer, import_d3rlpy, quiet, replay_buffer
from l4s_gym.data.episodes import Episode

try:
    d3rlpy = import_d3rlpy()
except L4SError as error:
    pytest.skip(str(error), allow_module_level=True)


def _episode(first: int, steps: int, missing: tuple[int, ...] = (), consecutive: bool = True) -> Episode:
    """An episode in which everything tells its step: observation, action and reward."""
    number = np.arange(first, first + steps + 1)
    observations = np.zeros((steps + 1, 8), np.float32)
    observations[:, 5] = number
    flags = np.zeros(steps + 1, bool)
    flags[list(missing)] = True
    actions = number[:-1] % 3
    return Episode(observations, actions, number[:-1].astype(np.float64), flags, consecutive, "made", actions)


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
