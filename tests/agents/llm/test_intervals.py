"""The LLM agent about control intervals: its windows, what it learns, and that it decides as it was trained to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

for _name in ("torch", "transformers", "peft", "h5py", "minari"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'l4s-gym[llm,data]'")

import torch  # noqa: E402

from l4s_gym import L4SError, netllm  # noqa: E402
from l4s_gym.agents.llm import saving  # noqa: E402
from l4s_gym.agents.llm.agent import open_agent  # noqa: E402
from l4s_gym.agents.llm.interval_train import Trainer, Windows  # noqa: E402
from l4s_gym.agents.llm.intervals import GRAIN, IntervalAgent, IntervalModel  # noqa: E402
from l4s_gym.agents.llm.settings import BackboneConfig, Intervals, LLMConfig, LoraConfig, from_dict, to_dict  # noqa: E402
from l4s_gym.agents.llm.train import train  # noqa: E402
from l4s_gym.agents.onestep import Config as OneStep  # noqa: E402
from l4s_gym.agents.training import Stop, load_config  # noqa: E402
from l4s_gym.data.trajectory import Trajectory  # noqa: E402
from tests.agents.test_onestep import BEST, FEATURES, group  # noqa: E402

APART, INTERVAL_MS = 5, 16.0


def config(family: str = "llama", form: str = "parameters", **intervals: Any) -> LLMConfig:
    """A tiny model that decides at each 5th control interval and sees three decisions."""
    one = OneStep(
        critics=2,
        critic_steps=1000,
        critic_hidden=(32, 32),
        groups=64,
        actor_steps=150,
        learning_rate=1e-2,
        memory_s=(),
        horizon_s=0.08,
        pessimism=0.1,
        smoothing_s=0.16,
    )
    given = {"asked_ms": APART * INTERVAL_MS, "window": 3, "features": 16, "steps": 300, "warmup": 5, "onestep": one}
    return LLMConfig(
        backbone=BackboneConfig(family=family, hidden=16, layers=1, heads=2, positions=16, dropout=0.0),
        lora=LoraConfig(rank=2),
        form=form,
        intervals=Intervals(**given | intervals),  # type: ignore[arg-type]
    )


def play(model: IntervalModel, seen: Any) -> Any:
    """Actions (T, K) of an agent that sees some observations (T, F)."""
    agent = IntervalAgent(model, training={"control_interval_ms": INTERVAL_MS})
    agent.reset(1, 0)
    return np.concatenate([agent.act(each[None], np.zeros(1)) for each in seen])


def noise(steps: int, seed: int = 0) -> Any:
    """Observations (T, F)."""
    return np.random.default_rng(seed).random((steps, len(FEATURES))).astype(np.float32)


def test_windows_hold_what_was_known() -> None:
    rng = np.random.default_rng(0)
    episodes = [episode for number in range(2) for episode in group(number, 3, rng)]
    at = np.array([3, 8, 13, 18])
    windows = Windows.of(episodes, np.array([5, 0]), np.array([19, 0]), config(window=4), APART, INTERVAL_MS)
    assert windows.lengths.tolist() == [4, 1]
    np.testing.assert_allclose(windows.seen[0], np.log1p(episodes[5].observations[[4, 9, 14, 19]]), rtol=1e-6)
    np.testing.assert_array_equal(windows.before[0], episodes[5].actions[at])
    np.testing.assert_allclose(windows.returns[0], episodes[5].rewards[0])
    np.testing.assert_array_equal(windows.before[1, 0], np.zeros(5))  # at the start: the native law
    assert not windows.seen[1, 1:].any()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_follows_a_window_is_not_read(family: str) -> None:
    torch.manual_seed(0)
    model = IntervalModel(config(family, observed=family == "gpt2")).eval()
    tokens = torch.randn(2, 3, len(FEATURES) + 6)
    short = model.features(tokens[:, :2], torch.tensor([1, 2]))
    assert short.shape == (2, 16 + len(FEATURES) if family == "gpt2" else 16)
    tokens[0, 1:], tokens[1, 2:] = 9.0, 9.0
    torch.testing.assert_close(model.features(tokens, torch.tensor([1, 2])), short)
    assert not short[1].allclose(model.features(tokens, torch.tensor([2, 3]))[1])


def test_decisions_are_those_of_the_training() -> None:
    """An agent sees the windows that are cut out of its own episode, and its actions move to its choices."""
    torch.manual_seed(0)
    chosen, seen = config(), noise(30)
    model = IntervalModel(chosen).eval()
    actions = play(model, seen)
    episode = Trajectory(seen, actions, np.zeros(30), features=FEATURES)
    asked = np.arange(0, 30, APART)
    windows = Windows.of([episode], asked * 0, asked, chosen, APART, INTERVAL_MS)
    with torch.no_grad():
        tokens = model.tokens(windows.seen, windows.before, windows.returns)
        wanted = chosen.intervals.onestep.reach * model.actor(model.features(tokens, torch.tensor(windows.lengths)))
        wanted = wanted.numpy()
    action, told = None, []
    for step in range(30):
        choice = wanted[step // APART]
        action = choice if action is None else action + 0.1 * (choice - action)
        told.append(action)
    np.testing.assert_allclose(actions, told, atol=1.0 / GRAIN)
    assert np.ptp(wanted, axis=0).min() > 1.0 / GRAIN


@pytest.fixture(scope="module")
def episodes() -> list[Trajectory]:
    rng = np.random.default_rng(0)
    return [episode for number in range(100) for episode in group(number, 4, rng)]


@pytest.mark.slow
def test_it_improves_on_the_data(episodes: list[Trajectory]) -> None:
    made = config(steps=200, windows=1500, learning_rate=1e-2)
    trainer = Trainer(episodes, made, 0, INTERVAL_MS)
    for _ in range(200):
        trainer.update()
    said: list[str] = []
    metrics = trainer.improve(Stop(), said.append)
    assert len(said) == 2 and len(metrics["r2_of_each"]) == 2
    assert metrics["r2"] > 0.7 and metrics["steps"] == len(trainer.held) * 4
    for episode, best in zip(episodes[::4][:2], (-BEST, BEST), strict=True):
        assert ((play(trainer.model, episode.observations)[-1] - best) ** 2).sum() < 0.4 * (BEST**2).sum()


def test_an_imitator_does_what_brought_the_return_that_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    data = []
    for _ in range(60):
        actions = np.repeat(rng.uniform(-0.9, 0.9, (4, 5)), 10, axis=0).astype(np.float32)
        data.append(Trajectory(noise(41), actions, actions[:, 0].astype(float), features=FEATURES))
    made = config(objective="imitation", steps=150, learning_rate=1e-2, quantile=0.95)
    trainer = Trainer(data, made, 0, INTERVAL_MS)
    first = np.mean([trainer.update() for _ in range(10)])
    last = np.mean([trainer.update() for _ in range(140)][-10:])
    assert last < 0.9 * first
    assert trainer.imitated()["r2"] > 0.1  # one of five numbers can be foreseen, by the return alone
    tried = [IntervalAgent(trainer.model, target=target) for target in (None, -0.8)]
    assert tried[0].target == pytest.approx(0.8, abs=0.1)
    high, low = (agent.act(noise(1), np.zeros(1))[0] for agent in tried)
    assert high[0] > 0.4 and low[0] < -0.4


def test_a_configuration_is_kept() -> None:
    made = config("gpt2", objective="imitation")
    assert from_dict(msgspec.json.decode(msgspec.json.encode(to_dict(made)))) == made
    assert "encoder" not in to_dict(made) and "intervals" not in to_dict(LLMConfig())


def test_the_file_says_the_defaults() -> None:
    given = load_config("llm")["intervals"]
    assert from_dict({"intervals": given}).intervals == Intervals()


SHORT: dict[str, Any] = {
    "model": {"backbone": {"hidden": 16, "layers": 1, "heads": 2, "positions": 16}},
    "train": {"seed": 3},
    "intervals": {"objective": "imitation", "asked_ms": 100, "window": 2, "steps": 4, "batch_size": 8, "features": 4},
}


def test_the_calls_of_netllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    agents = ("random:form=probability", "random:form=parameters")
    one, two = (
        netllm.rl_collect("steps", agent, 3, f"l4s/dualpi2/drawn-{number}-v0", seconds=3.0)
        for number, agent in enumerate(agents)
    )
    given = SHORT | {"intervals": SHORT["intervals"] | {"onestep": {"horizon_s": 0.2}}}
    agent = netllm.adapt(one, given, tmp_path / "agent", target=0.01)
    assert isinstance(agent, IntervalAgent)
    assert (agent.form, agent.target, agent.training["asked_ms"]) == ("probability", 0.01, 96.0)
    assert agent.training["config"]["model"]["intervals"]["onestep"]["seed"] == 3
    (result,) = netllm.test(agent, ["steps"], seeds=(0,), seconds=0.5)
    assert result.agent == "llm:agent" and np.isfinite(result.episode_return)
    assert netllm.test(tmp_path / "agent", ["steps"], seeds=(0,), seconds=0.2)[0].decisions > 0
    (quantized,) = netllm.test(open_agent(tmp_path / "agent", dtype="int8"), ["steps"], seeds=(0,), seconds=0.2)
    assert np.isfinite(quantized.episode_return)
    with pytest.raises(L4SError, match="rule, fixed, compile and correct are for agents of packets"):
        open_agent(tmp_path / "agent", rule="diffuse")
    with pytest.raises(L4SError, match="give a return"):
        open_agent(tmp_path / "agent", target="much")
    with pytest.raises(L4SError, match=f"{one.id}.*train on it alone"):
        train([one, two], given, tmp_path / "both")
    with pytest.raises(L4SError, match=f"{two.id}.*no two groups"):
        train(two.id, {**given, "intervals": {"objective": "onestep"}}, tmp_path / "groups")
    card = (tmp_path / "agent" / "README.md").read_text()
    assert saving.DECIDES["probability"] in card and "R2" in card
