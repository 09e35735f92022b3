"""A policy in the engine decides as its agent does outside, draw for draw; and writes down what it did."""

from __future__ import annotations

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.utils import seeding

from l4s_gym import L4SError, rewards
from l4s_gym.agents import DecisionRule, PolicyAgent, RandomAgent, ThresholdAgent
from l4s_gym.agents.protocol import Actions, Agent, Floats, Observations, generators, policy_of
from l4s_gym.evaluation import harness, native
from l4s_gym.schema import OBS_HIGH, OBS_SCALE
from l4s_gym.sim import engine, events, layout, scenario
from l4s_gym.sim.batch import Batch, Trajectories
from l4s_gym.sim.policy import Integers, Network, Policy, Trees
from l4s_gym.tables import timeless
from tests.bridge.test_model import random_layers

BIAS = np.array([3.0, 0.0, 1.0], np.float32)
"""So that random networks enqueue most packets, as agents do."""


class Outside:
    """An agent whose policy nobody knows of."""

    def __init__(self, agent: Agent) -> None:
        self.name, self.rule, self._agent = agent.name, agent.rule, agent

    def reset(self, n: int, seed: int) -> None:
        self._agent.reset(n, seed)

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        return self._agent.act(obs, rewards)

    def cost(self) -> dict[str, float]:
        return self._agent.cost()


def network(*hidden: int, activation: str = "relu", seed: int = 0) -> Network:
    """A network of random weights."""
    rng = np.random.default_rng(seed)
    sizes = [8, *hidden, 3]
    layers = [
        (rng.normal(0.0, 1.2 / np.sqrt(m), (n, m)).astype(np.float32), rng.normal(0.0, 0.1, n).astype(np.float32))
        for m, n in itertools.pairwise(sizes)
    ]
    layers[-1][1][:] += BIAS
    mean, scale = rng.random(8).astype(np.float32), (0.2 + rng.random(8)).astype(np.float32)
    return Network(tuple(layers), activation, mean, scale)


def by_hand(given: Network, obs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Scores (n, 3) by matrix products of float64."""
    assert given.mean is not None and given.scale is not None
    x = (obs.astype(np.float64) - given.mean) / given.scale
    for k, (weights, bias) in enumerate(given.layers):
        x = x @ weights.T.astype(np.float64) + bias
        if k < len(given.layers) - 1:
            x = np.tanh(x) if given.activation == "tanh" else np.maximum(x, 0.0)
    return np.asarray(x, np.float64)


def softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e: npt.NDArray[np.float64] = np.exp(scores - scores.max(axis=1, keepdims=True))
    e /= e.sum(axis=1, keepdims=True)
    return e


def observations(n: int) -> npt.NDArray[np.float32]:
    obs = np.random.default_rng(1).random((n, 8)).astype(np.float32) * np.minimum(OBS_HIGH, 3.0)
    obs[:, 0] = np.arange(n) % 2
    return obs.astype(np.float32)


TREE = Trees(
    feature=[0, 3, 2, 0, 0, 0, 0],
    threshold=[0.5, 0.05, 0.01, 0.0, 0.0, 0.0, 0.0],
    left=[1, 3, 5, -1, -1, -1, -1],
    right=[2, 4, 6, -1, -1, -1, -1],
    value=[[0] * 3] * 3 + [[0.97, 0.01, 0.02], [0.7, 0.1, 0.2], [0.9, 0.0, 0.1], [0.4, 0.1, 0.5]],
)
POLICIES = {
    "256-256": Policy((network(256, 256),)),
    "argmax": Policy((network(16),), "argmax"),
    "diffuse": Policy((network(33, activation="tanh"),), "diffuse"),
    "linear": Policy((network(),), epsilon=0.1, temperature=2.0),
    "critics": Policy((network(24, seed=1), network(24, seed=2)), temperature=0.5),
    "masked": Policy((network(24, seed=1),), mask=network(7, 9, 11, seed=2), flexibility=0.3),
    "corrected": Policy((network(64),), "diffuse", weights=(0.9, 3.0, 1.7)),
    "focal": Policy((network(64),), gamma=2.0),
    "tree": Policy((TREE,), softmax=False),
    "integers": Policy((Integers(random_layers("packet", 16)),), softmax=False),
}

# -- probabilities


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("hidden", [(), (1,), (37,), (256, 256), (16, 5, 130)])
def test_networks_are_matrix_products(hidden: tuple[int, ...], activation: str) -> None:
    given, obs = network(*hidden, activation=activation), observations(50)
    found = Policy((given,)).probabilities(obs)
    np.testing.assert_allclose(found, softmax(by_hand(given, obs)), rtol=3e-5, atol=1e-7)
    alone = np.concatenate([Policy((given,)).probabilities(row[None]) for row in obs])
    np.testing.assert_array_equal(alone, found)


def test_heads() -> None:
    obs, nets = observations(50), [network(24, seed=seed) for seed in (1, 2)]
    scores = [by_hand(each, obs) for each in nets]
    found = Policy(tuple(nets), temperature=0.5, epsilon=0.3).probabilities(obs)
    np.testing.assert_allclose(found, 0.7 * softmax((scores[0] + scores[1]) / 2 / 0.5) + 0.1, rtol=3e-5, atol=1e-7)
    masked = np.where(scores[1] - scores[1].max(axis=1, keepdims=True) <= np.log(0.3), -np.inf, scores[0])
    assert np.isinf(masked).any()
    found = Policy((nets[0],), mask=nets[1], flexibility=0.3).probabilities(obs)
    np.testing.assert_allclose(found, softmax(masked), rtol=3e-5, atol=1e-7)


def test_trees_are_added_up() -> None:
    obs = observations(200)
    classic, late, likely = obs[:, 0] <= 0.5, obs[:, 3] > 0.05, obs[:, 2] > 0.01
    value = np.asarray(TREE.value)
    leaf = np.where(classic, 3 + late, 5 + likely)
    assert len(set(leaf.tolist())) >= 3
    np.testing.assert_array_equal(Policy((TREE,), softmax=False).probabilities(obs), value[leaf])
    boosted = Trees(TREE.feature, TREE.threshold, TREE.left, TREE.right, TREE.value, roots=[0, 1, 2])
    scores = value[leaf] + value[3 + late] + value[5 + likely]
    np.testing.assert_allclose(Policy((boosted,)).probabilities(obs), softmax(scores), rtol=1e-12)


def test_trees_of_scikit_learn() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    obs = observations(400)
    actions = np.where(obs[:, 3] > 0.5, 2, 0)  # no drops: a class that the trees do not know
    forest = ensemble.RandomForestClassifier(5, min_samples_leaf=20, random_state=0).fit(obs, actions)
    found = Policy((Trees.of(forest),), softmax=False).probabilities(obs)
    np.testing.assert_allclose(found[:, [0, 2]], forest.predict_proba(obs), atol=1e-12)
    assert not found[:, 1].any()


def test_wrong_policies_are_refused() -> None:
    good = network(4)
    with pytest.raises(L4SError, match="activation"):
        network(4, activation="gelu")
    with pytest.raises(L4SError, match="layers of shapes"):
        Network((good.layers[0],))
    with pytest.raises(L4SError, match="decision rule"):
        Policy((good,), "most")
    with pytest.raises(L4SError, match="more than 0"):
        Policy((), "sample")
    for broken in ({"left": [0, 1, 2]}, {"feature": [8, 0, 0]}, {"roots": [3]}, {"right": [3, -1, -1]}):
        plain: dict[str, Any] = {"feature": [0, 0, 0], "threshold": [0.5, 0, 0], "left": [1, -1, -1]}
        plain |= {"right": [2, -1, -1], "value": np.eye(3), **broken}
        with pytest.raises(L4SError, match="is wrong"):
            Policy((Trees(**plain),)).probabilities(observations(1))
    with pytest.raises(L4SError, match="only there"):
        Batch(scenario.load("web"), policy=POLICIES["tree"])


# -- decisions


def test_models_of_other_forms_are_refused() -> None:
    with pytest.raises(L4SError, match="the engine asks models of packets alone"):
        Policy((Integers(random_layers("probability")),), softmax=False).probabilities(observations(1))


def test_draws_are_numpys() -> None:
    def drawn(at: int) -> float:
        return events.pcg64_uniform(at)

    state, draw = np.zeros(4, np.uint64), numba.njit(drawn)
    batch = Batch(scenario.load("web"), 2, decider=layout.POLICY, policy=POLICIES["tree"])
    batch.start_policy(generators(2, 7))
    for i, rng in enumerate(generators(2, 7)):
        state[:] = batch.rule["generator"][i]
        assert [draw(state.ctypes.data) for _ in range(1000)] == rng.random(1000).tolist()
    with pytest.raises(L4SError, match="MT19937"):
        batch.start_policy([np.random.Generator(np.random.MT19937(0))] * 2)


def same(agent: Agent, names: tuple[str, ...] = ("web", "steps", "mixed"), **options: Any) -> None:
    """Evaluations of an agent in the engine and outside it are equal."""
    chosen = [scenario.load(name).replace(horizon_s=0.7) for name in names]
    options = {"seeds": (3, 4, 5, 6), "agent_seed": 11, **options}
    assert policy_of(agent) is not None
    inside = harness.evaluate_many(agent, chosen, **options)
    asked = harness.evaluate_many(Outside(agent), chosen, **options)
    for mine, theirs in zip(inside, asked, strict=True):
        assert mine.episode_return == pytest.approx(theirs.episode_return, rel=1e-9, abs=1e-12)
        found, wanted = ({**timeless(each.as_dict()), "episode_return": 0.0} for each in (mine, theirs))
        assert found == wanted
    assert sum(result.decisions for result in inside) > 100


@pytest.mark.parametrize("name", POLICIES)
def test_decisions_in_the_engine_are_those_outside(name: str) -> None:
    same(PolicyAgent(POLICIES[name], name))


@pytest.mark.parametrize("agent", [RandomAgent((0.95, 0.02, 0.03)), ThresholdAgent(), ThresholdAgent(333.3, 7777.0)])
def test_the_rules_in_the_engine(agent: Agent) -> None:
    same(agent)


@pytest.mark.parametrize("reward", [*rewards.NAMES, "evenness=1,delay_l=-.1"])
def test_intervals_and_rewards(reward: str) -> None:
    agent = PolicyAgent(POLICIES["tree"])
    same(agent, reward=reward, decision_interval=7)
    same(agent, ("l4s-llm-testbed-vm", "lte"), reward=reward, aqm="dualpi2_linux")


def test_a_threshold_rounds_as_the_rule_does() -> None:
    for limit_us in (1.0, 333.3, 1000.0, 7777.0, 15_000.0):
        agent = ThresholdAgent(limit_us, limit_us)
        near = np.float32(limit_us / OBS_SCALE[3])
        obs = np.zeros((9, 8), np.float32)
        obs[4:, 3] = near
        for k in range(4):
            obs[k, 3] = np.nextafter(obs[k - 1, 3] if k else near, np.float32(0.0))
            obs[k + 5, 3] = np.nextafter(obs[k + 4, 3], np.float32(9.0))
        obs[:, 0] = np.arange(9) % 2
        agent.reset(9, 0)
        found = agent.as_policy().probabilities(obs).argmax(axis=1)
        np.testing.assert_array_equal(found, agent.act(obs, np.zeros(9)))


def test_threads_stretches_and_progress_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, chosen = PolicyAgent(POLICIES["256-256"]), [scenario.load("web").replace(horizon_s=0.7)] * 2
    shares: list[float] = []
    one = harness.evaluate_many(agent, chosen, seeds=(0, 1, 2), threads=1)
    monkeypatch.setattr(harness, "STRETCH", 50)
    many = harness.evaluate_many(agent, chosen, seeds=(0, 1, 2), threads=3, progress=shares.append)
    for mine, other in zip(one, many, strict=True):
        assert mine.episode_return == pytest.approx(other.episode_return, rel=1e-12)
        assert mine.decisions == other.decisions and mine.delay_quantiles == other.delay_quantiles
    assert len(shares) > 5 and shares == sorted(shares) and shares[-1] == 1.0


def test_an_act_of_ones_own_is_asked() -> None:
    class Own(RandomAgent):
        def act(self, obs: Observations, rewards: Floats) -> Actions:
            return np.zeros(len(obs), np.int64)

    class Both(Own):
        def as_policy(self) -> Policy:
            return POLICIES["tree"]

    agent = RandomAgent()
    assert policy_of(agent) is not None and policy_of(Own()) is None and policy_of(Both()) is POLICIES["tree"]
    agent.act = Own().act  # type: ignore[method-assign]
    assert policy_of(agent) is None
    (own,) = harness.evaluate(Own(), scenario.load("web").replace(horizon_s=0.5), seeds=[0])
    assert own.mark_rate == 0.0


def test_a_run_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LOG_ROWS", 300)
    agent, chosen = PolicyAgent(POLICIES["tree"]), scenario.load("l4s-llm-testbed").replace(horizon_s=3.0)
    mine, asked = (native.simulate(chosen, seed=3, agent=each, log=True) for each in (agent, Outside(agent)))
    assert len(mine.records) > 600 and set(mine.records["decided_by"].tolist()) == {1}
    np.testing.assert_array_equal(mine.records, asked.records)
    np.testing.assert_array_equal(mine.samples, asked.samples)


# -- trajectories

LENGTHS = {"web": 0.15, "mixed": 0.3}


def stepped(name: str, policy: Policy, steps: int, n: int) -> Trajectories:
    """As `rollout`, by hand."""
    batch = Batch(scenario.load(name).replace(horizon_s=LENGTHS[name]), n, decider=layout.AGENT)
    rngs = [seeding.np_random(i)[0] for i in range(n)]
    rule, out = DecisionRule(policy.rule), Trajectories.of(steps, n)
    rule.reset(n, 5)
    for i in range(n):
        batch.reset(i, rngs[i])
    batch.advance()
    for t in range(steps):
        out.obs[t] = batch.obs
        out.probabilities[t] = policy.probabilities(batch.obs)
        out.action[t] = batch.action[:] = rule.decide(out.probabilities[t], batch.obs[:, 0])
        batch.advance()
        out.reward[t] = batch.reward
        for i in np.flatnonzero(batch.status != layout.DECISION).tolist():
            out.end[t, i] = batch.status[i]
            batch.reset(i, rngs[i])
            engine.advance(batch.address, batch.stride, i, i + 1, 0)
    return out


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("which", ["256-256", "diffuse"])
def test_a_rollout_is_what_steps_by_hand_are(name: str, which: str) -> None:
    policy, n, steps = POLICIES[which], 3, 1200
    chosen = scenario.load(name).replace(horizon_s=LENGTHS[name])
    batch = Batch(chosen, n, decider=layout.POLICY, policy=policy)
    batch.start_policy(generators(n, 5))
    rngs = [seeding.np_random(i)[0] for i in range(n)]
    wanted = stepped(name, policy, 2 * steps, n)
    assert (wanted.end != 0).sum() > n
    found = Trajectories.of(steps, n)
    with ThreadPoolExecutor(2) as threads:
        for part, executor in ((slice(0, steps), None), (slice(steps, None), threads)):
            batch.rollout(found, rngs, executor=executor)
            for field in Trajectories._fields:
                np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field)[part], field)
            batch = pickle.loads(pickle.dumps(batch))  # a copy goes on as the original would


def test_the_next_weights_of_a_training() -> None:
    always = [Policy((Trees.constant(np.eye(3)[action]),), softmax=False) for action in range(3)]
    batch = Batch(scenario.load("mixed"), 2, decider=layout.POLICY, policy=always[0])
    batch.start_policy(generators(2, 0))
    rngs = generators(2, 1)
    out = Trajectories.of(5, 2)
    identities = set()
    for action in (0, 2, 1):
        batch.decide_by(always[action])
        identities.add(batch.identity["policy"])  # its state fits no other policy
        batch.rollout(out, rngs)
        assert (out.action == action).all() and (out.probabilities == np.eye(3)[action]).all()
    assert len(identities) == 3


def test_wrong_rollouts_are_refused() -> None:
    batch = Batch(scenario.load("web"), 2, decider=layout.POLICY, policy=POLICIES["tree"])
    with pytest.raises(L4SError, match=r"rollout: obs float32 \(5, 3, 8\): give float32 \(5, 2, 8\)"):
        batch.rollout(Trajectories.of(5, 3), generators(2, 0))
    with pytest.raises(L4SError, match="decider="):
        Batch(scenario.load("web"), 2).rollout(Trajectories.of(5, 2), generators(2, 0))
