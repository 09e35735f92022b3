"""What is particular to d3rlpy's agents of control intervals; what all agents do is in `test_conformance.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError, agents
from l4s_gym.agents import continuous, onestep, training
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.forms import FORMS
from tests.agents.conftest import TINY

pytest.importorskip("d3rlpy")
ACTORS = {"bc_continuous": continuous.BC, "cql_continuous": continuous.CQL}
ACTORS |= {"iql": continuous.IQL, "td3_bc": continuous.TD3_BC}


def steps(form: str = "parameters", runs: int = 4, length: int = 40) -> Trajectory:
    """Runs at random, in which each number of an action is a function of the first feature."""
    rng, features = np.random.default_rng(0), FORMS[form].features
    observations = rng.lognormal(size=(runs * length, len(features))).astype(np.float32)
    first = np.tanh(np.log1p(observations[:, :1]) - 0.7)
    return Trajectory(
        observations,
        np.repeat(first, len(FORMS[form].low), axis=1).astype(np.float32),
        rng.random(runs * length),
        np.arange(runs + 1) * length,
        features=tuple(each.name for each in features),
    )


def fitted(learner: Any, logged: Trajectory, **settings: Any) -> tuple[Any, Trajectory]:
    config = learner.configure({"batch_size": 32, "hidden": [16], "decision_interval": 1} | settings)
    prepared = learner.prepared(logged, config, 0.016)
    agent = learner.fit(prepared, config)[0]
    agent.training = {"form": "parameters" if logged.actions.shape[1] == 5 else "probability"}
    agent.training["control_interval_ms"] = 16.0
    return agent, prepared


def test_observations_are_scaled_as_for_onestep() -> None:
    torch = pytest.importorskip("torch")
    seen = np.random.default_rng(0).lognormal(size=(50, 3), sigma=3.0).astype(np.float32)
    mean, std = np.array([0.5, 1.0, 2.0]), np.array([1.0, 0.1, 2.0])
    scaler = continuous.log_scaler()(mean.astype(np.float32), std.astype(np.float32))
    found: Any = scaler.transform(torch.from_numpy(seen)).numpy()
    np.testing.assert_allclose(found, onestep.scaled(seen, mean, std + 1e-3), atol=1e-4)
    assert np.abs(found).max() == 3.0


@pytest.mark.parametrize("form", ["parameters", "probability"])
@pytest.mark.parametrize("kind", ACTORS)
def test_numpy_decides_as_d3rlpy(kind: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    of = continuous.ActorAgent.of_algorithm

    def noted(algo: Any, *about: Any) -> Any:
        built.append(algo)
        return of(algo, *about)

    monkeypatch.setattr(continuous.ActorAgent, "of_algorithm", noted)
    agent, logged = fitted(ACTORS[kind], steps(form), steps=3)
    found = agent.logged_actions(logged, np.arange(20))
    np.testing.assert_allclose(found, built[0].predict(logged.observations[:20]), atol=1e-5)
    assert found.shape == (20, len(FORMS[form].low))


def test_what_can_be_imitated_is_imitated() -> None:
    agent, logged = fitted(continuous.BC, steps(), steps=200, algorithm={"learning_rate": 1e-2})
    found = continuous.BC.judged(agent, logged, np.arange(len(logged)))
    assert found["r2"] > 0.7
    assert found["squared_error"] == pytest.approx((1.0 - found["r2"]) * found["constant_squared_error"])


def test_actions_are_held_and_smoothed() -> None:
    agent, logged = fitted(continuous.BC, steps(), steps=1, decision_interval=3, smoothing_s=0.032)
    agent.reset(1, 0)
    seen = [agent.act(logged.observations[[k]], np.zeros(1))[0] for k in range(6)]
    chosen = agent.choose(logged.observations[[0, 3]])
    np.testing.assert_array_equal(seen[0], chosen[0])
    np.testing.assert_allclose(seen[2], chosen[0])
    np.testing.assert_allclose(seen[3], 0.5 * (chosen[0] + chosen[1]))
    np.testing.assert_allclose(seen[4], 0.25 * chosen[0] + 0.75 * chosen[1])


def test_rewards_ahead_stay_within_a_run() -> None:
    logged = steps(runs=2, length=3)
    logged.rewards[:] = [1.0, 2.0, 6.0, 10.0, 20.0, 30.0]
    np.testing.assert_allclose(continuous.rewards_ahead(logged, 2), [1.5, 4.0, 6.0, 15.0, 25.0, 30.0])
    config = continuous.DT.configure({"horizon_s": 0.032, "decision_interval": 1})
    found = continuous.DT.prepared(logged, config, 0.016).extras["ahead"]
    np.testing.assert_allclose(found, np.array([1.5, 4.0, 6.0, 15.0, 25.0, 30.0]) / 0.016, rtol=1e-6)


def test_the_transformer_sees_in_closed_loop_what_it_saw_in_training() -> None:
    small = {"num_layers": 1, "context_size": 4}
    agent, logged = fitted(continuous.DT, steps(length=8), steps=20, algorithm=small, target_return=50.0)
    logged.extras["ahead"][:] = 50.0
    agent.reset(1, 0)
    for step in range(8):
        logged.actions[step] = agent.act(logged.observations[[step]], np.zeros(1))[0]
    np.testing.assert_allclose(agent.logged_actions(logged, np.arange(8)), logged.actions[:8], atol=1e-5)


def test_the_target_of_the_transformer_is_an_option(trained: Callable[[str], Path]) -> None:
    folder = trained("dt_continuous")
    seen, chosen = np.ones((1, 29), np.float32), []
    for spec in (f"{folder}", f"{folder},target=0.95", f"{folder},target=-50"):
        agent = agents.make(spec)
        agent.reset(1, 0)
        chosen.append(agent.act(seen, np.zeros(1)))
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert np.abs(chosen[0] - chosen[2]).max() > 1e-6
    with pytest.raises(L4SError, match="give a number"):
        agents.make(f"{folder},target=much")


def test_packets_are_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(L4SError, match="are of the form 'packet', not 'parameters'"):
        training.learner("iql").train(dataset, TINY["iql"], tmp_path / "agent")
