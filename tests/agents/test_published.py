"""Published agents: what each computes, against the formulas and against PyTorch. Training: `test_conformance`."""

from __future__ import annotations

import numpy as np
import pytest

from l4s_gym.agents.protocol import Observations
from l4s_gym.agents.published.coupling import AT, coupled
from l4s_gym.agents.published.pfed import PfedAgent
from l4s_gym.envs.prob import probabilities
from l4s_gym.forms import FORMS

torch = pytest.importorskip("torch", reason="needs torch: pip install 'l4s-gym[baselines]'")

from l4s_gym.agents.published import dqn_aqm, iaqm, qp_aqm  # noqa: E402
from l4s_gym.schema import ENQUEUE, MARK, OBS_SCALE  # noqa: E402


def seen(form: str, **features: float) -> Observations:
    """An observation (1, F) of an interval form, of zeros but for these."""
    obs = np.zeros((1, len(FORMS[form].features)), np.float32)
    for name, value in features.items():
        obs[0, AT[name]] = value
    return obs


def test_l_is_coupled_to_c() -> None:
    found = probabilities(coupled(np.array([0.0, 0.01, 0.36, 1.0])))
    np.testing.assert_allclose(found, [[0.0, 0.0], [0.01, 0.2], [0.36, 1.0], [1.0, 1.0]])


def test_pfed_foresees_traffic_that_alternates() -> None:
    agent = PfedAgent()
    rng = np.random.default_rng(0)
    missed, told = [], 0.0
    for step in range(400):
        amount = np.array([1.0 + 0.5 * (-1) ** step + 0.01 * rng.normal()])
        if step > 300:
            missed.append(abs(told - amount[0]))
        told = float(agent._foresee(amount)[0])
    assert np.mean(missed) < 0.05


def test_pfed_keeps_traffic_at_what_is_allowed() -> None:
    """At twice the capacity and the target's backlog, half is hit; with more backlog, more."""
    agent = PfedAgent(target_ms=15.0, horizon_ms=30.0)
    found = []
    for backlog in (1.0, 2.0, 0.0):
        agent.reset(1, 0)
        for _ in range(400):
            action = agent.act(seen("probability", offered_c=2.0, queued_c=backlog), np.zeros(1))
        found.append(probabilities(action)[0, 0])
    np.testing.assert_allclose(found, [0.5, 0.75, 0.25], atol=0.01)


def qp(q: np.ndarray, **settings: float) -> qp_aqm.QPAgent:
    """The agent of a table of values."""
    return qp_aqm.QPAgent({"q": torch.tensor(q)}, {"levels": len(q), **settings}, {})


def test_qp_aqm_acts_on_the_traffic_foreseen() -> None:
    """Less backlog is foreseen before little traffic, and red has two slopes."""
    low, high = np.zeros((2, 2, 2)), np.zeros((2, 2, 2))
    low[..., 0] = high[..., 1] = 1.0  # levels in the middle: 0.5 and 1.5 of the capacity
    found = []
    for table in (low, high):
        agent = qp(table, target_ms=16.0, average_s=1e-3)
        found.append(probabilities(agent.act(seen("probability", queued_c=16 / 15), np.zeros(1)))[0, 0])
    np.testing.assert_allclose(found, [0.0, 0.1], atol=1e-6)  # 8 and 24 ms, between thresholds of 8 and 24


def test_qp_aqm_adapts_its_highest_probability() -> None:
    agent = qp(np.zeros((2, 2, 2)), target_ms=5.0, average_s=0.05)
    found = []
    for _ in range(200):
        found.append(probabilities(agent.act(seen("probability", queued_c=0.9), np.zeros(1)))[0, 0])
    assert found[-1] > found[20] > 0.0


def test_the_lstm_is_pytorchs() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, out = torch.nn.LSTM(1, 5, batch_first=True), torch.nn.Linear(5, 1)
    arrays = {name: part.detach().double().numpy() for name, part in module.named_parameters()}
    arrays |= {name: part.detach().double().numpy()[0] for name, part in out.named_parameters()}
    x = np.random.default_rng(0).random((7, 10))
    with torch.no_grad():
        wanted = out(module(torch.tensor(x[..., None], dtype=torch.float32))[0][:, -1])[:, 0]
    np.testing.assert_allclose(iaqm.lstm(arrays, x), wanted.numpy(), atol=1e-6)


def test_iaqm_learns_which_target_pays() -> None:
    work = iaqm.IaqmWork("suite:train", iaqm.IaqmConfig(envs=2, levels=2, targets=3, gamma=0.1))
    for _ in range(50):
        for action in range(3):
            work._learn([0], [action], np.array([float(action == 1)]), [1])
    np.testing.assert_allclose(work._q, [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], atol=1e-6)


def test_dqn_aqm_decides_by_its_network_and_never_drops() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    obs = np.random.default_rng(0).random((200, 8)).astype(np.float32)
    with torch.no_grad():
        x = torch.tensor(obs[:, dqn_aqm.INPUTS] / dqn_aqm.UNITS)
        spread = module(x)[:, 1] - module(x)[:, 0]
        module[2].bias[1] -= spread.sort().values[99:101].mean()  # so that both are taken
        values = module(x).numpy()
    agent = dqn_aqm.DqnAgent(module.state_dict(), {}, {})
    agent.reset(200, 0)
    wanted = np.where(values[:, 1] > values[:, 0], MARK, ENQUEUE)
    np.testing.assert_array_equal(agent.act(obs, np.zeros(200)), wanted)
    assert 0 < (wanted == MARK).sum() < 200


def test_the_reward_of_dqn_aqm() -> None:
    """Half of the desired delay left pays .25 if nothing was done; an action at an empty queue costs 1."""
    config = dqn_aqm.DqnConfig()
    before, after = np.zeros((6, 8), np.float32), np.zeros((6, 8), np.float32)
    before[:5, dqn_aqm._BYTES] = 1.0
    after[3, 0] = 1.0
    after[:, dqn_aqm._DELAY] = 1e3 * np.array([7.5, 7.5, 30.0, 0.5, 150.0, 0.0]) / OBS_SCALE[dqn_aqm._DELAY]
    action = np.array([ENQUEUE, MARK, ENQUEUE, ENQUEUE, MARK, MARK])
    np.testing.assert_allclose(
        dqn_aqm.reward(before, action, after, config), [0.25, 0.0, 0.0, 0.25, 0.0, -1.0], atol=1e-6
    )
    heavy = dqn_aqm.reward(before, action, after, dqn_aqm.DqnConfig(weight=0.9))
    assert heavy[2] == pytest.approx(-0.8) and heavy[4] == -1.0


def test_a3c_does_what_stable_baselines_would() -> None:
    pytest.importorskip("stable_baselines3", reason="needs stable-baselines3: pip install 'l4s-gym[online]'")
    from l4s_gym.agents.published.a2c import A2CWork
    from l4s_gym.agents.published.a3c import A3CAgent, A3CConfig

    for form in ("probability", "parameters"):
        work = A2CWork("suite:train", A3CConfig(envs=2, form=form, hidden=4))
        agent = A3CAgent(work.tensors(), {"form": form}, {})
        obs = np.random.default_rng(0).random((3, len(FORMS[form].features))).astype(np.float32)
        agent.reset(3, 0)
        chosen = work._model.predict(np.log1p(obs), deterministic=True)[0].astype(np.float64)
        wanted = chosen if form == "parameters" else coupled(10.0 ** (4.0 * chosen[:, 0] - 4.0))
        np.testing.assert_allclose(agent.act(obs, np.zeros(3)), wanted, atol=1e-4)
