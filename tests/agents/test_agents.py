"""All agents against their protocol, the decision rules' statistics, and the imitator's training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from l4s_gym import L4SError, agents
from l4s_gym.agents import DecisionRule, EnqueueAgent, RandomAgent, ThresholdAgent
from l4s_gym.data.pools import make_rows
from l4s_gym.data.simulated import simulate_log
from l4s_gym.data.steps import episodes_from_rows

OWN = """
import numpy as np
class Own:
    name, rule = "own", "-"
    def reset(self, n, seed): self.n = n
    def act(self, obs, rewards): return np.ones(self.n, np.int64)
    def cost(self): return {"parameters": 0.0, "trainable_parameters": 0.0}
class Space:
    made = Own()
instance = Own()
def build(): return Own()
def fails(): return 3
number = 4


def decide(obs, rewards):
    return 0


class Needs(Own):
    def __init__(self, thing):
        super().__init__()
"""


@pytest.fixture(scope="module")
def buffer() -> Any:
    """A small replay buffer; the test is skipped without d3rlpy."""
    from l4s_gym.data.d3rlpy_io import import_d3rlpy, replay_buffer

    try:
        import_d3rlpy()
    except L4SError as error:
        pytest.skip(str(error))
    return replay_buffer(episodes_from_rows(make_rows(simulate_log("l4s-llm-testbed", seconds=3.0))))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module of somebody's own."""
    (tmp_path / "own_agent.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_agent", raising=False)
    return "own_agent"


def _observations(n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    obs = np.random.default_rng(seed).random((n, 8)).astype(np.float32)
    obs[:, 0] = np.arange(n) % 2
    return obs


# -- the protocol


def test_the_rules() -> None:
    obs = np.zeros((4, 8), np.float32)
    obs[:, 0] = [0, 0, 1, 1]
    obs[:, 3] = [0.14, 0.16, 0.009, 0.011]  # 14, 16, 0.9, 1.1 ms
    threshold, enqueue = ThresholdAgent(), EnqueueAgent()
    threshold.reset(4, 0)
    enqueue.reset(4, 0)
    assert threshold.act(obs, np.zeros(4)).tolist() == [0, 2, 0, 2]
    assert enqueue.act(obs, np.zeros(4)).tolist() == [0, 0, 0, 0]
    tight = agents.make("threshold:l_us=500,c_us=10000")
    tight.reset(4, 0)
    assert tight.name == "threshold:l_us=500,c_us=10000"
    assert tight.act(obs, np.zeros(4)).tolist() == [2, 2, 2, 2]
    for wrong in ((0.5, 0.5), (0.5, 0.5, 0.5), (1.5, -0.5, 0.0)):
        with pytest.raises(L4SError, match="give three of sum 1"):
            RandomAgent(wrong)
    with pytest.raises(L4SError, match="0 or more"):
        ThresholdAgent(l_us=-1)


def test_what_the_rules_do_in_intervals() -> None:
    obs = np.zeros((2, 29), np.float32)
    drawn, idle = agents.make("random:form=parameters"), agents.make("zero:form=probability")
    drawn.reset(2, 0)
    idle.reset(2, 0)
    assert (idle.act(obs[:, :12], np.zeros(2)) == -1.0).all()
    values = np.stack([drawn.act(obs, np.zeros(2)) for _ in range(500)])  # (500, 2, 5), uniform in [-1, 1]
    np.testing.assert_allclose(values.mean(0), 0.0, atol=0.1)
    np.testing.assert_allclose(values.std(0), 3**-0.5, atol=0.05)
    with pytest.raises(L4SError, match=r"observations of shape \(2, 8\): expected \(2, 29\)"):
        drawn.act(obs[:, :8], np.zeros(2))


def test_a_form_that_is_none() -> None:
    agent = EnqueueAgent()
    assert agents.form_of(agent) == "packet"
    agent.form = "packets"  # type: ignore[attr-defined]
    with pytest.raises(L4SError, match="did you mean 'packet'"):
        agents.form_of(agent)


def test_an_agents_draws_are_not_those_of_the_environment() -> None:
    rule = DecisionRule("sample")
    rule.reset(1, 7)
    drawn = [rule._uniform()[0] for _ in range(8)]
    assert not set(drawn) & set(np.random.Generator(np.random.PCG64(7)).random(64))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("randon", "did you mean 'random'"),
        ("", "unknown agent"),
        ("bc:", "names no folder"),
        ("bc:/no/such/folder", "cannot be read"),
        ("native:fifo", "inside the engine"),
        ("enqueue:x=1", "takes no options"),
        ("threshold:l=1", "l_us"),
        ("threshold:l_us=fast", "not l_us=<number>"),
        ("random:form=parameter", "did you mean 'parameters'"),
        ("random:rate=1", "form"),
        ("zero:form=packet", "zero: form=packet: give probability or parameters"),
        ("no_such_module:agent", "no module 'no_such_module'"),
        ("own_agent:missing", "missing"),
        ("own_agent:fails", "int lacks name"),
        ("own_agent:number", "int lacks name"),
        ("own_agent:decide", r"decide takes arguments \(missing .*: give an object with the methods of .*, or a class"),
        ("own_agent:Needs", "Needs takes arguments"),
    ],
)
def test_bad_specs(own: str, spec: str, message: str) -> None:
    with pytest.raises(L4SError, match=message):
        agents.make(spec)


@pytest.mark.parametrize("attribute", ["Own", "instance", "build", "Space.made"])
def test_anybodys_own(own: str, attribute: str) -> None:
    assert agents.make(f"{own}:{attribute}").name == "own"


# -- decision rules

P = np.array([0.86, 0.04, 0.10])


def _decide(rule: str, steps: int, queue: Callable[[int], int] = lambda t: 0) -> npt.NDArray[np.int64]:
    decider = DecisionRule(rule)
    decider.reset(4, 0)
    batch = np.tile(P, (4, 1))
    return np.stack([decider.decide(batch, np.full(4, queue(t))) for t in range(steps)])


def test_sample_draws_with_the_probabilities() -> None:
    taken = _decide("sample", 5000)
    shares = np.bincount(taken.ravel(), minlength=3) / taken.size
    assert (np.abs(shares - P) < 5 * np.sqrt(P * (1 - P) / taken.size)).all()
    assert not np.array_equal(taken[:, 0], taken[:, 1])


def test_sample_never_takes_what_is_impossible() -> None:
    decider = DecisionRule("sample")
    decider.reset(2, 1)
    batch = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    taken = np.stack([decider.decide(batch, np.zeros(2)) for _ in range(3000)])
    assert (taken[:, 0] == 1).all()
    assert set(taken[:, 1]) == {0, 2}


def test_argmax_never_marks_below_one_half() -> None:
    assert not _decide("argmax", 50).any()


def test_diffuse_keeps_the_shares_and_spaces_evenly() -> None:
    taken = _decide("diffuse", 5000)
    counts = np.stack([(taken == action).sum(axis=0) for action in range(3)])
    assert (np.abs(counts - 5000 * P[:, None]) <= 1.5).all()
    gaps = np.diff(np.flatnonzero(taken[:, 0]))
    assert set(gaps) <= {7, 8}  # 1 / 0.14 = 7.14


def test_diffuse_keeps_queues_apart() -> None:
    alternating = _decide("diffuse", 2000, lambda t: t % 2)
    alone = _decide("diffuse", 1000)
    for queue in (0, 1):
        np.testing.assert_array_equal(alternating[queue::2], alone)


def test_unknown_rules_and_wrong_batches_are_refused() -> None:
    with pytest.raises(L4SError, match="did you mean 'sample'"):
        DecisionRule("sampel")
    with pytest.raises(L4SError, match="reset was for"):
        DecisionRule("sample").decide(np.tile(P, (2, 1)), np.zeros(2))


# -- the imitator


def test_training_is_deterministic_and_leaves_the_generators_alone(buffer: Any) -> None:
    import torch

    from l4s_gym.agents.bc import train_bc

    obs, steps = _observations(50), []
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    one = train_bc(buffer, steps=5, seed=3, progress=lambda step, total: steps.append((step, total)))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert steps == [(k, 5) for k in range(1, 6)]
    np.testing.assert_array_equal(one.probabilities(obs), train_bc(buffer, steps=5, seed=3).probabilities(obs))
    other = train_bc(buffer, steps=5, seed=4).probabilities(obs)
    assert not np.array_equal(one.probabilities(obs), other)
    np.testing.assert_allclose(other.sum(axis=1), 1.0, atol=1e-6)


def test_training_lowers_the_cross_entropy_and_is_calibrated(buffer: Any) -> None:
    from l4s_gym.agents.bc import train_bc

    obs = np.concatenate([episode.observations for episode in buffer.episodes])
    labels = np.concatenate([episode.actions[:, 0] for episode in buffer.episodes])
    shares = np.bincount(labels, minlength=3) / len(labels)
    probabilities = train_bc(buffer, steps=150, seed=0).probabilities(obs)
    cross_entropy = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert cross_entropy < -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert np.abs(probabilities.mean(axis=0) - shares).max() < 0.05


def test_save_and_load(buffer: Any, tmp_path: Path) -> None:
    from l4s_gym.agents.bc import BCAgent, train_bc

    obs = _observations(50)
    agent = train_bc(buffer, steps=3, seed=0)
    assert agent.save(tmp_path / "new" / "bc") == tmp_path / "new" / "bc"
    loaded = BCAgent.load(tmp_path / "new" / "bc", rule="diffuse")
    np.testing.assert_array_equal(loaded.probabilities(obs), agent.probabilities(obs))
    assert (loaded.rule, loaded.name, loaded.cost()) == ("diffuse", "bc:bc", agent.cost())
    assert loaded.cost()["parameters"] == 68_867
    loaded.save(tmp_path / "new" / "bc")  # again, over itself
    assert len(list((tmp_path / "new" / "bc").iterdir())) == 3
    with pytest.raises(L4SError, match="decision rule"):
        BCAgent.load(tmp_path / "new" / "bc", rule="most")


def test_bad_training_is_refused(buffer: Any) -> None:
    from l4s_gym.agents.bc import train_bc
    from l4s_gym.data.d3rlpy_io import import_d3rlpy, quiet

    with pytest.raises(L4SError, match="1 or more"):
        train_bc(buffer, steps=0, seed=0)
    d3rlpy = import_d3rlpy()
    narrow = d3rlpy.dataset.Episode(np.zeros((5, 3), np.float32), np.zeros((5, 1)), np.zeros((5, 1), np.float32), False)
    with quiet():
        wrong = d3rlpy.dataset.ReplayBuffer(d3rlpy.dataset.InfiniteBuffer(), episodes=[narrow])
    with pytest.raises(L4SError, match="8 features"):
        train_bc(wrong, steps=1, seed=0)


def test_episodes_need_not_have_every_action(buffer: Any) -> None:
    from l4s_gym.agents.bc import train_bc
    from l4s_gym.data.d3rlpy_io import replay_buffer

    (episode,) = episodes_from_rows(make_rows(simulate_log("l4s-llm-testbed", seconds=1.0)))
    plain = replace(episode, actions=np.zeros(len(episode), np.int64))
    assert train_bc(replay_buffer([plain]), steps=2, seed=0).probabilities(_observations(3)).shape == (3, 3)
