"""Agents that learn online: common episodes, where they start, scaled environments, and how they are marked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.agents import evolution, onestep, online, saved, training
from l4s_gym.agents.registry import KINDS
from l4s_gym.evaluation import leaderboard
from tests.agents.conftest import ONLINE, TINY, kind_of

torch = pytest.importorskip("torch")
ES = evolution.configure(KINDS["es"].tiny)
Trained = Callable[[str], Path]


@pytest.mark.parametrize("kind", [name for name in ONLINE if "+" not in name])
def test_the_file_has_the_defaults(kind: str) -> None:
    learner: Any = training.learner(kind)
    assert learner.configure(training.load_config(kind)) == learner.configure({})


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("es", {"pairs": 0}, "1 or more"),
        ("es", {"sigma": 0.0}, "more than 0"),
        ("es", {"averaged": 1.5}, "at most 1"),
        ("es", {"onestep": {"criticz": 1}}, "did you mean 'critics'"),
        ("ppo", {"form": "packets"}, "did you mean 'packet'"),
        ("ppo", {"rule": "most"}, "decision rule"),
        ("ppo", {"envs": 0}, "above 0"),
        ("ppo", {"algorithm": {"gama": 0.9}}, "did you mean 'gamma'"),
        ("sac_online", {"form": "packet"}, "form of sac_online"),
        ("a3c", {"form": "packet"}, "probability or parameters"),
        ("iaqm", {"levels": 0}, "more than 0"),
        ("qp_aqm", {"level": 3}, "did you mean 'levels'"),
    ],
)
def test_bad_configurations(kind: str, config: dict[str, Any], message: str) -> None:
    if kind not in TINY:
        pytest.skip("needs Stable-Baselines3")
    learner: Any = training.learner(kind)
    with pytest.raises(L4SError, match=message):
        learner.configure(config)


@pytest.mark.parametrize("name", ONLINE)
def test_it_is_marked(name: str, trained: Trained) -> None:
    about = json.loads((trained(name) / saved.ABOUT).read_text())["training"]
    assert about["online"] is True and about["scenarios"] == "suite:train"
    assert leaderboard.added(f"{kind_of(name)}:{trained(name)}").learned == "online"


def test_checkpoints_are_written_at_each_tenth() -> None:
    done: list[int] = []
    kept: list[int] = []

    def do(number: int) -> str:
        done.append(number)
        return ""

    online.rounds(do, lambda: kept.append(len(done)), 4, 30)
    assert done == list(range(4, 30))
    assert [4 + count for count in kept] == [6, 9, 12, 15, 18, 21, 24, 27]


def test_seeds_are_not_the_benchmarks() -> None:
    assert online.seeds(np.random.default_rng(0), 1000).min() >= 10**6


# -- the evolution strategy


def test_actors_of_a_generation_have_the_same_episodes() -> None:
    """Actors with the same weights get the same returns; the one that has none is the native law, as is the start."""
    work = evolution._Training("suite:train", ES, {})
    start = work.begin()
    rows = np.tile(evolution.flat(start), (work.actors, 1))
    returns = work.returns(start, rows, np.random.default_rng(1))
    assert returns.shape == (5, 2) and len(set(returns[0])) == 2
    np.testing.assert_array_equal(returns, np.tile(returns[:1], (5, 1)))
    rows[:-1] += np.random.default_rng(2).normal(size=rows[:-1].shape)
    other = work.returns(start, rows, np.random.default_rng(1))
    np.testing.assert_array_equal(other[-1], returns[-1])
    assert len(set(other[:, 0])) == 5


def test_it_climbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Returns that fall with the distance from a place: the strategy comes nearer to it."""
    work = evolution._Training("suite:train", evolution.configure({**KINDS["es"].tiny, "pairs": 8}), {})
    place = np.linspace(-1.0, 1.0, 30)

    def returns(tensors: Any, members: Any, rng: Any) -> Any:
        return (10.0 - ((members - place) ** 2).sum(axis=1))[:, None]

    monkeypatch.setattr(work, "returns", returns)
    rows = np.zeros((4, len(place)))
    for number in range(60):
        evolution._climb(rows, work.generation({}, rows[0], number)[0], number, 0.05)
    assert ((rows[0] - place) ** 2).sum() < 0.5 * (place**2).sum()


def test_it_starts_with_the_offline_agent(dataset_for: Callable[[str], str], trained: Trained, tmp_path: Path) -> None:
    dataset, out = dataset_for("onestep"), tmp_path / "es"
    config = {**KINDS["es"].tiny, "generations": 1, "learning_rate": 1e-12, "onestep": KINDS["onestep"].tiny}
    done = training.learner("es").train("suite:train", config, out, dataset=dataset)  # type: ignore[call-arg]
    assert (done["dataset"], done["control_interval_ms"]) == (dataset, 16.0)
    found, offline = saved.read(out).tensors, saved.read(trained("onestep")).tensors
    assert found.keys() == offline.keys()
    for name, tensor in offline.items():
        torch.testing.assert_close(found[name], tensor)
    assert not (out / evolution.START).exists()


# -- Stable-Baselines3


def test_environments_are_those_of_the_form() -> None:
    pytest.importorskip("stable_baselines3")
    from l4s_gym.agents import sb3_learners

    config = sb3_learners.PPO.configure(KINDS["ppo"].tiny)
    envs = sb3_learners._environments("suite:train", config)
    envs.rng = np.random.default_rng(3)
    first = envs.reset()
    seeds = online.seeds(np.random.default_rng(3), 2).tolist()
    own = online.environment(
        "parameters", "suite:train", 2, 1.0, control_interval_ms=100.0, autoreset_mode="same_step", copy=True
    )
    obs, _ = own.reset(seed=seeds)
    np.testing.assert_array_equal(first, onestep.scaled(obs, envs.mean, envs.std).astype(np.float32))
    assert np.abs(first).max() <= 3.0
    ended = np.zeros(2, bool)
    while not ended.any():
        actions = np.full((2, 5), 0.5, np.float32)
        envs.step_async(actions)
        seen, rewards, ended, infos = envs.step_wait()
        obs, true, _, truncated, more = own.step(actions)
        np.testing.assert_array_equal(ended, truncated)
        np.testing.assert_allclose(rewards / rewards.sum(), true / true.sum(), rtol=1e-5)
        np.testing.assert_array_equal(seen, onestep.scaled(obs, envs.mean, envs.std).astype(np.float32))
    i = int(np.flatnonzero(ended)[0])
    last = onestep.scaled(more["final_obs"][i], envs.mean, envs.std).astype(np.float32)
    np.testing.assert_array_equal(infos[i]["terminal_observation"], last)
    assert infos[i]["TimeLimit.truncated"]


def test_the_saved_actor_is_the_trained_one() -> None:
    """What decides without Stable-Baselines3 has the weights of what was trained with it."""
    pytest.importorskip("stable_baselines3")
    from l4s_gym.agents import sb3_learners
    from l4s_gym.agents.sb3_agents import PPOAgent, PPOPacketAgent

    for form, learner in (
        ("parameters", sb3_learners.PPO),
        ("packet", sb3_learners.PPO),
        ("parameters", sb3_learners.SAC),
    ):
        config = learner.configure({**KINDS[learner.kind].tiny, "form": form})
        envs = sb3_learners._environments("suite:train", config)
        model = learner._model(envs, config)
        seen = envs.reset()
        raw = envs.env.buffers["obs"].copy()
        tensors = {**sb3_learners.actor(model), "mean": torch.tensor(envs.mean), "std": torch.tensor(envs.std)}
        if form == "packet":
            found = PPOPacketAgent(tensors, {"rule": "sample"}, {}).policy.probabilities(raw)
            true = model.policy.get_distribution(torch.tensor(seen)).distribution.probs.detach().numpy()
        else:
            agent = PPOAgent(tensors, {}, {"form": form})
            agent.reset(2, 0)
            found, true = agent.act(raw, np.zeros(2)), model.predict(seen, deterministic=True)[0]
        np.testing.assert_allclose(found, true, atol=1e-5)
