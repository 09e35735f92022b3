"""What a saved agent decides by is what d3rlpy's modules give, in the engine and outside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from l4s_gym import L4SError, agents
from l4s_gym.agents.protocol import policy_of
from l4s_gym.agents.rules import PolicyAgent
from l4s_gym.sim.policy import Network, Policy
from tests.sim.test_policy import observations, same

Trained = Callable[[str], Path]
KINDS = ("bc", "bcq", "cql", "dqn", "double_dqn", "sac")


def made(spec: str, trained: Trained) -> Any:
    """The agent of a kind with its options."""
    kind, comma, options = spec.partition(",")
    return agents.make(f"{trained(kind)}{comma}{options}")


def by_torch(agent: Any, obs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities (n, 3) by d3rlpy's own modules."""
    import torch

    modules = agent.algo.impl.modules.get_torch_modules()
    with torch.no_grad():
        x = agent.algo.observation_scaler.transform(torch.from_numpy(obs))
        if agent.kind == "bc":
            return agent.imbalance.correct(modules["imitator"](x).probs.double().numpy())  # type: ignore[no-any-return]
        if agent.kind == "sac":
            p = modules["policy"](x).probs.double()
        else:
            logits = torch.stack([critic(x).q_value for critic in modules["q_funcs"]]).mean(dim=0).double()
            if agent.kind == "bcq":
                log_p = modules["imitator"](x).logits
                below = log_p - log_p.max(dim=1, keepdim=True).values
                logits = logits.masked_fill(below <= math.log(agent.algo.config.action_flexibility), -torch.inf)
            p = torch.softmax(logits / agent.temperature, dim=1)
        found: npt.NDArray[np.float64] = ((1.0 - agent.epsilon) * p + agent.epsilon / 3).numpy()
        return found


@pytest.mark.parametrize("spec", [*KINDS, *(f"{kind},temperature=0.01,epsilon=0.1" for kind in KINDS[1:])])
def test_probabilities_are_d3rlpys(spec: str, trained: Trained) -> None:
    agent: Any = made(spec, trained)
    obs = observations(300)
    np.testing.assert_allclose(agent.probabilities(obs), by_torch(agent, obs), rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(agent.as_policy().probabilities(obs), agent.probabilities(obs))


@pytest.mark.parametrize("imbalance", [{"kind": "sample"}, {"kind": "focal"}, {"kind": "weights", "correction": False}])
def test_corrections(imbalance: dict[str, Any], trained: Trained) -> None:
    agent: Any = agents.make(str(trained("bc")))
    agent.imbalance = agent.imbalance.of(imbalance).fitted(np.repeat([0, 1, 2], [90, 3, 7]))
    obs = observations(100)
    wanted = agent.probabilities(obs)
    np.testing.assert_allclose(wanted, by_torch(agent, obs), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(agent.as_policy().probabilities(obs), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    "spec", [*KINDS, "bc,rule=argmax", "bc,rule=diffuse", "cql,rule=sample,epsilon=0.05", "bcq,rule=diffuse"]
)
def test_episodes_in_the_engine_are_those_outside(spec: str, trained: Trained) -> None:
    same(made(spec, trained), ("web", "l4s-llm-testbed"), seeds=range(5))  # 10 episodes


def test_who_has_no_policy(trained: Trained) -> None:
    assert policy_of(agents.make(str(trained("dt")))) is None


def test_what_else_a_network_has_is_refused(trained: Trained) -> None:
    import torch

    agent: Any = agents.make(str(trained("bc")))
    agent._modules["imitator"]._encoder._layers.append(torch.nn.LayerNorm(16))
    with pytest.raises(L4SError, match="layers layernorm, relu between linear ones"):
        agent.as_policy()


def test_a_network_of_somebodys_own() -> None:
    torch = pytest.importorskip("torch")
    act, obs = torch.nn.Tanh(), observations(100)
    module = torch.nn.Sequential(torch.nn.Linear(8, 5), act, torch.nn.Linear(5, 70), act, torch.nn.Linear(70, 3))
    wanted = torch.softmax(module(torch.from_numpy(obs)).detach(), dim=1).numpy()
    np.testing.assert_allclose(Policy((Network.of(module),)).probabilities(obs), wanted, rtol=2e-5, atol=1e-7)


def test_the_agent_of_any_policy(trained: Trained) -> None:
    agent: Any = agents.make(str(trained("bc")))
    again, obs = PolicyAgent(agent.as_policy(), "again"), observations(40)
    for each in (agent, again):
        each.reset(len(obs), 3)
    np.testing.assert_array_equal(again.act(obs, np.zeros(40)), agent.act(obs, np.zeros(40)))
    assert again.cost() == agent.cost()
