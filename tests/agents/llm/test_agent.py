"""The LLM agent in use: it decides as its model says, alike alone and in a batch, before and after it was saved."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

for _name in ("torch", "transformers", "peft", "accelerate", "h5py", "minari"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'l4s-gym[llm,data]'")

import torch  # noqa: E402

from l4s_gym import L4SError, agents  # noqa: E402
from l4s_gym.agents import Agent  # noqa: E402
from l4s_gym.agents.imbalance import Imbalance  # noqa: E402
from l4s_gym.agents.llm import saving  # noqa: E402
from l4s_gym.agents.llm.agent import LLMAgent, open_agent  # noqa: E402
from l4s_gym.agents.llm.data import Correction, Target  # noqa: E402
from l4s_gym.agents.llm.network import DecisionModel  # noqa: E402
from l4s_gym.agents.llm.settings import from_dict  # noqa: E402
from l4s_gym.agents.llm.train import train  # noqa: E402
from l4s_gym.data.trajectory import Trajectory  # noqa: E402
from l4s_gym.tables import convert  # noqa: E402
from tests.agents.llm.toys import MODEL, config, dataset, seldom  # noqa: E402

STEPS = 25
"""More than the window, so that what is cached is evicted."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained agent with adapters; its runs have the returns 60, 100, 210 and 160."""
    root = tmp_path_factory.mktemp("agent")
    given = config(steps=12, imbalance={"kind": "weights"})
    given["model"] = MODEL | {"lora": {"rank": 2}, "backbone": MODEL["backbone"] | {"freeze": True}}
    train(dataset(root / "data", [60, 50, 70, 40], seldom), given, root / "tiny")
    return root / "tiny"


def _model(**changes: Any) -> DecisionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DecisionModel(from_dict(MODEL | changes)).eval()


def _observations(n: int, step: int) -> npt.NDArray[np.float32]:
    obs = np.stack([np.random.default_rng([i, step]).random(8) for i in range(n)]).astype(np.float32)
    obs[:, 0] = (np.arange(n) + step) % 2
    obs.flags.writeable = False
    return obs


def _play(agent: Agent, n: int, seed: int = 3) -> npt.NDArray[np.int64]:
    """Actions (STEPS, n); observations and rewards depend on the number of the environment alone."""
    agent.reset(n, seed)
    taken = [agent.act(_observations(n, step), np.arange(n) / 10.0 + step) for step in range(STEPS)]
    assert all(action.dtype == np.int64 and action.shape == (n,) for action in taken)
    return np.stack(taken)


@pytest.mark.parametrize("rule", agents.RULES)
def test_a_batch_decides_as_each_alone(folder: Path, rule: str) -> None:
    agent = agents.make(f"llm:{folder},rule={rule}")
    assert isinstance(agent, Agent)
    assert (agent.rule, agent.name) == (rule, "llm:tiny")
    together = _play(agent, 3)
    np.testing.assert_array_equal(_play(agent, 3), together)
    np.testing.assert_array_equal(_play(agent, 1)[:, 0], together[:, 0])
    agent.reset(3, 3)
    p = np.stack([agent.probabilities(_observations(3, step), np.zeros(3)) for step in range(STEPS)])  # type: ignore[attr-defined]
    agent.reset(1, 3)
    alone = np.stack([agent.probabilities(_observations(1, step), np.zeros(1)) for step in range(STEPS)])  # type: ignore[attr-defined]
    np.testing.assert_allclose(alone[:, 0], p[:, 0], atol=1e-5)
    np.testing.assert_allclose(p.sum(-1), 1.0)


def test_saved_and_loaded_it_decides_the_same(folder: Path, tmp_path: Path) -> None:
    before = open_agent(folder)
    model = saving.load(folder).model  # not merged
    saving.save(model, tmp_path / "again", training=before.training)
    after = open_agent(tmp_path / "again")
    np.testing.assert_array_equal(_play(before, 3), _play(after, 3))
    unmerged = LLMAgent(model, before.target, correction=before.correction)
    for agent in (before, after, unmerged):
        agent.reset(2, 0)
    for step in range(STEPS):
        given = _observations(2, step), np.zeros(2)
        p = before.probabilities(*given)
        np.testing.assert_array_equal(after.probabilities(*given), p)
        np.testing.assert_allclose(unmerged.probabilities(*given), p, atol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_step_by_step_it_says_what_one_pass_says(gamma: float) -> None:
    """With all that it was told: observations, its own actions, and what is left of the target."""
    model = _model(gamma=gamma, return_scale=7.0)
    agent = LLMAgent(model, Target(20.0, -5.0, 21.0))
    agent.reset(2, 0)
    rewards = np.random.default_rng(0).random((STEPS, 2)) * 3.0
    given = np.stack([_observations(2, step) for step in range(STEPS)], 1)
    found, actions, left = [], [], [np.full(2, 20.0)]
    for step in range(STEPS):
        if step:
            left.append(np.clip((left[-1] - rewards[step]) / gamma, -5.0, 21.0))
        p = agent.probabilities(given[:, step], rewards[step])
        found.append(p)
        actions.append(p.argmax(1))
        agent.took(actions[-1])
    with torch.no_grad():
        logits = model(
            torch.tensor(np.stack(left, 1), dtype=torch.float32),
            torch.tensor(given),
            torch.tensor(np.stack(actions, 1)),
            torch.arange(STEPS).repeat(2, 1),
            torch.ones(2, STEPS, dtype=torch.bool),
        )
    np.testing.assert_allclose(np.stack(found, 1), torch.softmax(logits, -1).numpy(), atol=1e-5)
    assert np.isin(left, [-5.0, 21.0]).any()  # a bound was reached


def test_the_target_comes_from_the_training_data(folder: Path) -> None:
    agent = open_agent(folder)
    runs = {40: 160.0, 50: 100.0, 60: 60.0, 70: 210.0}
    (held,) = agent.training["datasets"][0]["held_out"]
    kept = [value for steps, value in runs.items() if steps != held[2]]
    assert agent.target.value == pytest.approx(np.quantile(kept, 0.9))
    assert agent.target.high == max(kept)
    assert 0 < agent.target.low <= 4
    beyond = open_agent(folder, target="500")
    assert (beyond.target.value, beyond.target.high) == (500.0, 500.0)
    fixed = open_agent(folder, fixed="1")
    for each in (fixed, agent):
        each.reset(1, 0)
        for step in range(4):
            each.act(_observations(1, step), np.array([3.0]))
    assert fixed._told.left[0] == fixed.target.value
    assert agent._told.left[0] == agent.target.value - 9.0  # what came before the first decision does not count


def test_probabilities_are_corrected(folder: Path) -> None:
    corrected, raw = open_agent(folder), open_agent(folder, correct="0")
    assert corrected.correction.imbalance.kind == "weights"
    for agent in (corrected, raw):
        agent.reset(1, 0)
    given = _observations(1, 0), np.zeros(1)
    p, q = corrected.probabilities(*given), raw.probabilities(*given)
    np.testing.assert_allclose(corrected.correction(q), p)
    assert p[0, 0] > q[0, 0]
    assert convert(Correction, asdict(corrected.correction), "") == corrected.correction
    assert raw.correction.imbalance.kind == Imbalance().kind == "none"


def test_cost(folder: Path) -> None:
    agent = open_agent(folder)
    cost = agent.cost()
    assert cost["parameters"] > cost["trainable_parameters"] > 0
    assert cost["trainable_parameters"] == agent.training["trainable_parameters"]
    agent.reset(1, 0)
    given = _observations(1, 0), np.zeros(1)
    p = agent.probabilities(*given)
    for dtype in ("bf16", "int8"):
        less = open_agent(folder, dtype=dtype)
        assert less.cost() == cost
        less.reset(1, 0)
        found = less.probabilities(*given)
        np.testing.assert_allclose(found, p, atol=0.03)
        assert not np.array_equal(found, p)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_other_backbones_decide_too(family: str, tmp_path: Path) -> None:
    model = _model(backbone=MODEL["backbone"] | {"family": family}, lora={"rank": 2})
    saving.save(model, tmp_path / "agent")
    plain = LLMAgent(model, Target(0.0))
    others = [open_agent(tmp_path / "agent", dtype=dtype) for dtype in ("bf16", "int8")]
    for agent in (plain, *others):
        agent.reset(2, 0)
    for step in range(3):
        given = _observations(2, step), np.zeros(2)
        expected = plain.probabilities(*given)
        for other in others:
            np.testing.assert_allclose(other.probabilities(*given), expected, atol=0.03)


def test_misuse_is_refused(folder: Path, tmp_path: Path) -> None:
    agent = open_agent(folder)
    with pytest.raises(L4SError, match="reset"):
        agent.act(_observations(1, 0), np.zeros(1))
    agent.reset(1, 0)
    with pytest.raises(L4SError, match="reset"):
        agent.act(_observations(2, 0), np.zeros(2))
    with pytest.raises(L4SError, match="1 or more"):
        agent.reset(0, 0)
    for spec, message in (
        ("llm:", "names no folder"),
        (f"llm:{folder},role=argmax", "did you mean 'rule'"),
        (f"llm:{folder},rule=most", "decision rule"),
        (f"llm:{folder},target=high", "give a return"),
        (f"llm:{folder},target=nan", "finite"),
        (f"llm:{folder},fixed=perhaps", "give 1 or 0"),
        (f"llm:{folder},dtype=fp8", "unknown dtype"),
        (f"llm:{folder},device=cuda:77", "device"),
        (f"llm:{tmp_path / 'no'}", "cannot be read"),
    ):
        with pytest.raises(L4SError, match=message):
            agents.make(spec)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_of_logged_steps_it_says_what_it_says_when_it_decides(gamma: float) -> None:
    """Where a sequence reaches back to the start; and each step is told of its own episode alone."""
    model = _model(gamma=gamma)
    agent = LLMAgent(model, Target(0.0))
    agent.length = 2 * STEPS
    rng = np.random.default_rng(0)
    lengths = [STEPS, 9, STEPS]
    starts = np.cumsum([0, *lengths])
    steps = int(starts[-1])
    obs = np.concatenate([_observations(1, step) for step in range(steps)])
    logged = Trajectory(obs, rng.integers(0, 3, steps), rng.random(steps), starts)
    expected = np.zeros((steps, 3))
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        weights = gamma ** np.arange(stop - start)
        returns = [float(logged.rewards[t:stop] @ weights[: stop - t]) for t in range(start, stop)]
        agent.target = Target(returns[0])
        agent.reset(1, 0)
        for t in range(start, stop):
            expected[t] = agent.probabilities(obs[t : t + 1], logged.rewards[t - 1 : t] if t > start else np.zeros(1))[
                0
            ]
            agent.took(logged.actions[t : t + 1])
    index = rng.permutation(steps)
    np.testing.assert_allclose(agent.logged_probabilities(logged, index), expected[index], atol=1e-5)
    few = np.array([30, 3, 3])
    np.testing.assert_allclose(agent.logged_probabilities(logged, few), expected[few], atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own modules
def test_compiled_it_decides_the_same(folder: Path) -> None:
    plain, compiled = open_agent(folder, rule="argmax"), open_agent(folder, rule="argmax", compile=True)
    np.testing.assert_array_equal(_play(plain, 1), _play(compiled, 1))
