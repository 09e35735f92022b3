"""A discipline of one's own: the example, from a folder outside the package, wherever a discipline is named."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.evaluation.leaderboard import added
from l4s_gym.sim import measure, scenario
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import from_dict, load

EXAMPLE = Path(__file__).parents[2] / "examples" / "pi2.py"
BOTH = [{"kind": "cubic", "rtt_ms": 10.0}, {"kind": "dctcp", "rtt_ms": 10.0}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, with the example in it, from which modules are imported."""
    shutil.copy(EXAMPLE, tmp_path / "pi2.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pi2", raising=False)
    return tmp_path


@pytest.fixture
def command(folder: Path) -> Callable[..., str]:
    """Run `l4s-gym` in that folder."""

    def run(*args: str) -> str:
        path = os.pathsep.join([str(Path(scenario.__file__).parents[2]), str(folder)])
        done = subprocess.run(
            [sys.executable, "-m", "l4s_gym.cli", *args],
            cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def settled(aqm: str, **options: Any) -> measure.Summary:
    tree = {"name": "x", "horizon_s": 15.0, "link": {"rate_mbps": 20.0}, "sources": BOTH, "options": {"own": options}}
    batch = Batch(from_dict(tree), aqm=aqm)
    batch.reset(0, np.random.default_rng(1))
    batch.stop_at(0, 5_000_000_000)
    batch.advance_one()
    batch.reset_counters(0)
    batch.advance_one()
    return measure.summary(batch, 0)


def test_the_example_controls_the_queue(folder: Path) -> None:
    """At its target, with equal rates of both classes; its options are its own."""
    found = settled("pi2:PI2")
    assert found["utilisation"] > 0.95 and 8.0 < found["delay_ms"]["C"]["mean"] < 25.0
    classic, scalable = found["goodput_mbps"]
    assert 0.5 < scalable / classic < 2.0
    assert settled("pi2:PI2", target_ms=5.0)["delay_ms"]["C"]["mean"] < 0.6 * found["delay_ms"]["C"]["mean"]


def test_environments_take_it(folder: Path) -> None:
    env: Any = gym.make("l4s_gym:L4S-DualPI2-v0", aqm="pi2:PI2").unwrapped
    env.reset(seed=3)
    for _ in range(500):
        env.step(0)
    others = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    for one in others:
        assert one.batch.env["hooks_at"][0] == one.batch._hooks[0] != env.batch.env["hooks_at"][0]
    seen = [[one.step(0)[0].tolist() for _ in range(200)] for one in (env, *others)]
    assert seen[0] == seen[1] == seen[2]
    many = gym.make_vec("l4s_gym:L4S-DualPI2-v0", 3, aqm="pi2:PI2")
    many.reset(seed=3)
    many.step(np.zeros(3, np.int64))


def test_scenarios_and_commands_take_it(folder: Path, command: Callable[..., str]) -> None:
    (folder / "mine.toml").write_text(
        'aqm = "pi2:PI2"\nhorizon_s = 4.0\n[options.own]\ntarget_ms = 5.0\n[[sources]]\nkind = "cubic"\n'
    )
    chosen = load(folder / "mine.toml")
    digest = scenario.digest(chosen)
    assert chosen.options.own == {"target_ms": 5.0} and chosen.replace(**{"options.own.beta_hz": 1.0}).options.own
    (folder / "pi2.py").write_text((folder / "pi2.py").read_text() + "\n")
    assert scenario.digest(chosen) != digest
    assert "pi2:PI2" in command("simulate", "mine.toml")
    command("evaluate", "native:pi2:PI2", "--scenario", "mine.toml", "--seeds", "0", "--out", "told.json")
    assert "pi2:PI2" in (folder / "told.json").read_text()
    entry = added("native:pi2:PI2")
    assert (entry.agent, entry.id) == ("native:pi2:PI2", "native--pi2-PI2")


@pytest.mark.parametrize(
    ("code", "spec", "message"),
    [
        ("PI2 = 3", "bad:PI2", "of type int: give a l4s_gym.sim.discipline.Discipline"),
        ("", "bad:PI2", "has no attribute 'PI2'"),
        ("", "nowhere:PI2", "no module 'nowhere'"),
        (
            "from pi2 import *\nPI2 = replace(PI2, update=lambda env, index: env.nothing)",
            "bad:PI2",
            "cannot be compiled",
        ),
    ],
)
def test_what_is_wrong_is_told(folder: Path, code: str, spec: str, message: str) -> None:
    (folder / "bad.py").write_text("from dataclasses import replace\n" + code)
    with pytest.raises(L4SError, match=message):
        Batch(load("l4s-llm-testbed"), aqm=spec)
    sys.modules.pop("bad", None)


def test_its_options_are_checked(folder: Path) -> None:
    tree = {"name": "x", "aqm": "pi2:PI2", "sources": BOTH, "options": {"own": {"target": 5.0}}}
    with pytest.raises(L4SError, match="target"):
        from_dict(tree)
