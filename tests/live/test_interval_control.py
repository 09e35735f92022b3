"""An agent of an interval form in control of a queue made of logged rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import cli
from l4s_gym.agents.protocol import options_of
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.errors import L4SError
from l4s_gym.forms import FORMS
from l4s_gym.live.interval_control import IntervalController
from l4s_gym.live.router import VARIANTS, parameters
from l4s_gym.sim.scenario import from_dict
from l4s_gym.tables import option_paths
from tests.bridge.conftest import Serve, serve  # noqa: F401


class Mover:
    """Acts by one value, keeps what it sees, and may do something at some act."""

    name, rule = "mover", "-"

    def __init__(self, form: str, value: float = 1.0, at: int = -1, then: Any = None) -> None:
        self.form, self.value, self.at, self.then = form, value, at, then
        self.training: dict[str, Any] = {"control_interval_ms": 5.0}
        self.seen: list[Any] = []
        self.rewards: list[float] = []

    def reset(self, n: int, seed: int) -> None:
        assert n == 1

    def act(self, obs: Any, rewards: Any) -> Any:
        self.seen.append(obs.copy())
        self.rewards.append(float(rewards[0]))
        if len(self.seen) == self.at:
            self.then()
        return np.full((1, len(FORMS[self.form].low)), self.value)

    def cost(self) -> dict[str, float]:
        return {}


class Tuner(Mover):
    """For `module:attribute`."""

    def __init__(self) -> None:
        super().__init__("parameters")


@pytest.mark.parametrize("form", ["probability", "parameters"])
def test_an_agent_acts_each_interval(serve: Serve, form: str) -> None:  # noqa: F811
    server, agent = serve(), Mover(form, at=4)
    controller = IntervalController(Client(server.path), agent, reward="power")
    agent.then = controller.stop
    done = controller.run()
    assert (done.form, done.control_interval_ms, done.asks, done.answered, done.sessions) == (form, 5.0, 4, 4, 1)
    assert {each.shape for each in agent.seen} == {(1, len(FORMS[form].features))} and min(agent.rewards) > 0
    if form == "parameters":
        most = [round(wire.FACTOR * high) for _, high in server.law.values()]
        assert server.queue.laws == [[*most, 15]] * 4
    else:
        assert server.queue.probabilities == [[1 << 31, 1 << 31, 15]] * 4
    assert done.law == {"sets": 4, "expired": 0, "refused": 0}
    assert server.controller is None and set(server.commands).isdisjoint({wire.DECIDE, wire.DIRECT})


def test_a_queue_started_anew_is_controlled_again(serve: Serve) -> None:  # noqa: F811
    server, agent = serve(), Mover("parameters", at=3)

    def restart() -> None:
        with server.lock:
            server.restart()
        agent.at, agent.then = 6, controller.stop

    controller = IntervalController(Client(server.path), agent)
    agent.then = restart
    done = controller.run()
    assert done.sessions >= 2 and server.queue.laws and done.shares is not None


class Tuned(Mover):
    """Trained over a law with options."""

    def __init__(self) -> None:
        super().__init__("parameters")
        self.training["options"] = {"dualpi2_rfc9332": {"target_ms": 3.2, "beta": 12.0}}


def test_an_agent_needs_the_law_over_which_it_was_trained(serve: Serve) -> None:  # noqa: F811
    agent = Tuned()
    scenario = from_dict({"name": "x", "sources": [{"kind": "cubic"}]}).replace(**option_paths(options_of(agent)))
    told = parameters(scenario, "dualpi2_rfc9332")
    told = {name: told[name] for name in wire.LAW_VALUES["rfc9332"]}
    server = serve(variant="rfc9332", law_values=told)
    assert IntervalController(Client(server.path), agent).run(0.05).answered > 0
    for variant, law_values, said in (
        ("rfc9332", told | {"target_us": 15000}, "target_us is 15000, not 3200. Start the queue"),
        ("rfc9332", {}, "too old to tell"),
        ("linux", told, "it is linux, not dualpi2_rfc9332"),
    ):
        server.variant, server.law_values = variant, law_values
        server.queue.laws.clear()
        with pytest.raises(L4SError, match=rf"mover: was trained over another law.*{said}.*live up --agent"):
            IntervalController(Client(server.path), agent).run()
        assert server.controller is None and not server.queue.laws
    assert IntervalController(Client(server.path), Mover("parameters")).run(0.05).answered > 0  # it takes any


@pytest.mark.parametrize("aqm", VARIANTS)
def test_all_that_a_queue_tells_of_its_law_follows_from_the_simulator_s_options(aqm: str) -> None:
    scenario = from_dict({"name": "x", "sources": [{"kind": "cubic"}]})
    assert set(wire.LAW_VALUES[wire.VARIANTS[VARIANTS[aqm]]]) <= set(parameters(scenario, aqm))


def test_errors_are_clear(serve: Serve) -> None:  # noqa: F811
    server = serve()
    for value in (1.5, np.nan):
        with pytest.raises(L4SError, match=r"mover: acts by .* takes an array \(1, 5\) of numbers from -1 to 1"):
            IntervalController(Client(server.path), Mover("parameters", value)).run()
        assert server.controller is None
    with pytest.raises(L4SError, match="holds for 1000 ms"):
        IntervalController(Client(server.path), Mover("parameters"), control_interval_ms=1000.0).run()
    with pytest.raises(L4SError, match="control_interval_ms=0"):
        IntervalController(Client(server.path), Mover("parameters"), control_interval_ms=0.0)
    server.prob_high = (0.0, 0.0)
    with pytest.raises(BridgeError, match="prob_c_high"):
        IntervalController(Client(server.path), Mover("probability")).run()
    server.rate_bps = 0
    with pytest.raises(L4SError, match="does not know the rate"):
        IntervalController(Client(server.path), Mover("parameters")).run()


def test_the_command(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    server, out, agent = serve(), tmp_path / "run.json", f"{__name__}:Tuner"
    command = ["live", "control", agent, "--socket", str(server.path), "--seconds", "0.3", "--out", str(out)]
    assert cli.main([*command, "--control-interval-ms", "20"]) == 0
    said, err = capsys.readouterr()
    assert err == "" and "each 20 ms" in said and "common socket" not in said
    data = json.loads(out.read_text())
    assert data["form"] == "parameters" and data["control_interval_ms"] == 20.0 and data["answered"] > 0
    for who, option, instead in (
        (agent, "--decision-interval", "--control-interval-ms"),
        ("threshold", "--control-interval-ms", "--decision-interval"),
    ):
        assert cli.main(["live", "control", who, "--socket", str(server.path), option, "10"]) != 0
        assert f"use {instead}" in capsys.readouterr().err
