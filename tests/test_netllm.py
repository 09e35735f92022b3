"""NetLLM's three calls, one after the other, on the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

for _name in ("torch", "transformers", "peft", "accelerate", "h5py", "minari"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'l4s-gym[llm,data]'")

from l4s_gym import L4SError, netllm  # noqa: E402
from l4s_gym.data.arrays import episodes  # noqa: E402
from l4s_gym.data.minari_io import validate  # noqa: E402
from l4s_gym.evaluation.harness import evaluate  # noqa: E402
from l4s_gym.sim.fingerprint import FINGERPRINT  # noqa: E402
from l4s_gym.sim.scenario import load  # noqa: E402
from tests.agents.llm.toys import config  # noqa: E402

SECONDS = 2.0


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Minari puts its datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path


def test_collect_adapt_test(root: Path) -> None:
    """From a discipline's decisions to an agent in closed loop."""
    data = netllm.rl_collect("l4s-llm-testbed", "native:dualpi2_freebsd", 2, "l4s/dualpi2/native-v0", seconds=SECONDS)
    validate(data)
    assert (data.id, data.total_episodes) == ("l4s/dualpi2/native-v0", 2)
    one, two = episodes(data)
    assert one.actions.size != two.actions.size or not np.array_equal(one.observations, two.observations)
    agent = netllm.adapt("l4s/dualpi2/native-v0", config(steps=4, held_out=0.5), root / "agent", rule="diffuse")
    assert agent.rule == "diffuse"
    assert agent.training["dataset"] == "l4s/dualpi2/native-v0"
    assert agent.training["simulator"] == data.storage.metadata["simulator"] == FINGERPRINT
    assert 0 < agent.target.value <= SECONDS
    results = netllm.test(agent, ["l4s-llm-testbed", "steps"], seeds=(0, 1), seconds=0.2)
    assert [(r.scenario, r.seed) for r in results] == [(s, k) for s in ("l4s-llm-testbed", "steps") for k in (0, 1)]
    assert all(r.agent == "llm:agent" and np.isfinite(r.episode_return) for r in results)
    (again,) = netllm.test(root / "agent", ["steps"], seeds=(0,), seconds=0.2, decision_interval=10)
    assert 0 < again.decisions < results[2].decisions


def test_what_an_agent_collects_is_what_it_is_given(root: Path) -> None:
    """The return of a collected episode is that of the evaluation with the same seed."""
    data = netllm.rl_collect("l4s-llm-testbed", "random", 2, "l4s/dualpi2/random-v0", seed=5, seconds=SECONDS)
    validate(data)
    scenario = load("l4s-llm-testbed").replace(horizon_s=SECONDS)
    found = evaluate("random", scenario, seeds=(5, 6))
    for episode, result in zip(episodes(data), found, strict=True):
        # The evaluation counts what is earned before the first decision too.
        assert episode.rewards.sum() == pytest.approx(result.episode_return, abs=0.02)
        assert set(episode.actions.tolist()) == {0, 1, 2}
        assert episode.known.all()
        assert (episode.extras["decided_by"][:-1] == 1).all()


def test_an_environment_may_be_given(root: Path) -> None:
    env = gym.make("l4s_gym:L4S-DualPI2-v0", scenario="steps", reward="power", decision_interval=10)
    env = gym.wrappers.TimeLimit(env, 40)
    data = netllm.rl_collect(env, "threshold", 1, "l4s/dualpi2/env-v0", overwrite=True)
    (episode,) = episodes(data)
    assert len(episode.actions) == 40
    assert data.storage.metadata["reward"] == "power"
    assert data.storage.metadata["simulator"] == FINGERPRINT


def test_misuse_is_refused(root: Path) -> None:
    given: dict[str, Any] = {"seconds": 0.1}
    for arguments, message in (
        (("l4s-llm-testbed", "native:red5", 1, "l4s/dualpi2/x-v0"), "did you mean 'red'"),
        (("l4s-llm-testbed", "native:red", 0, "l4s/dualpi2/x-v0"), "1 or more"),
        (("l4s-llm-testbad", "native:red", 1, "l4s/dualpi2/x-v0"), "l4s-llm-testbed"),
        (("l4s-llm-testbed", "randon", 1, "l4s/dualpi2/x-v0"), "did you mean 'random'"),
        (("l4s-llm-testbed", "native:red", 1, "x"), "not of the form"),
    ):
        with pytest.raises(L4SError, match=message):
            netllm.rl_collect(*arguments, **given)
    with pytest.raises(L4SError, match="engine"):
        netllm.rl_collect(gym.make("l4s_gym:L4S-DualPI2-v0"), "native:red", 1, "l4s/dualpi2/x-v0")
    with pytest.raises(L4SError, match="suite"):
        netllm.test("random", "tests")
