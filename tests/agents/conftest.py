"""A tiny simulated dataset, and agents of every kind that were trained on it for a moment."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.agents.registry import KINDS
from l4s_gym.data.pools import make_rows
from l4s_gym.data.simulated import simulate_log
from l4s_gym.data.steps import episodes_from_rows
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.forms import PACKET

DATASET = "l4s/dualpi2/tiny-v0"
GROUPS = """
title = "Tiny"
description = "For tests."
form = "parameters"
scenarios = ["random:train"]
eval_scenario = "lte"
group = 2
[[behaviours]]
aqm = "dualpi2_rfc9332"
[small]
episodes = 8
seconds = 2.0
[full]
episodes = 8
seconds = 2.0
"""
"""Recipe of a dataset of control intervals."""
NEEDS = {"llm": "peft"} | dict.fromkeys(("ppo", "sac_online", "a3c"), "stable_baselines3")
NEEDS |= dict.fromkeys(("es", "dqn_aqm", "qp_aqm", "iaqm", "student"), "torch")
TINY: dict[str, dict[str, Any]] = {
    name: dict(kind.tiny) for name, kind in KINDS.items() if importlib.util.find_spec(NEEDS.get(name, "l4s_gym"))
}
if "llm" in TINY:
    TINY["llm+text"] = {
        "model": {"head": "text", "backbone": {"hidden": 16, "layers": 1, "heads": 2, "positions": 256}},
        "train": {"steps": 12, "batch_size": 8, "eval_every": 12, "eval_steps": 200},
    }
    TINY["llm+parameters"] = {
        "model": {"backbone": {"hidden": 16, "layers": 1, "heads": 2, "positions": 48}, "lora": {"rank": 2}},
        "train": {"seed": 0},
        "intervals": {
            "asked_ms": 48,
            "window": 3,
            "features": 8,
            "steps": 12,
            "windows": 40,
            "batch_size": 4,
            "onestep": KINDS["onestep"].tiny,
        },
    }
if "ppo" in TINY:
    TINY |= {f"ppo+{form}": {**TINY["ppo"], "form": form} for form in ("packet", "probability")}
"""Kinds of agents that can be trained here, and the configuration of a tiny one. What follows a + sets apart agents of
one kind (`kind_of`)."""


def kind_of(name: str) -> str:
    """The kind of an entry of `TINY`."""
    return name.partition("+")[0]


def form_for(name: str) -> str:
    """The form of an entry of `TINY`."""
    if name.endswith("+parameters"):
        return "parameters"
    form: str = TINY[name].get("form", KINDS[kind_of(name)].form)
    return form


ONLINE = [name for name in TINY if KINDS[kind_of(name)].online]
"""Entries of `TINY` that learn in closed loop."""


@pytest.fixture(scope="module")
def episodes() -> list[Trajectory]:
    """Three runs, of four seconds each, in which every action is taken."""
    runs = [simulate_log("l4s-llm-testbed", seed=seed, seconds=4.0) for seed in range(3)]
    return [episode for run in runs for episode in episodes_from_rows(make_rows(run))]


@pytest.fixture(scope="module")
def dataset(episodes: list[Trajectory], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Id of a dataset of these runs; the test is skipped without Minari or d3rlpy."""
    from l4s_gym.data import minari_io
    from l4s_gym.data.d3rlpy_io import import_d3rlpy

    try:
        import_d3rlpy()
        minari_io.import_minari()
    except L4SError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("datasets")))
        minari_io.create(
            DATASET,
            episodes,
            env_kwargs={"scenario": "l4s-llm-testbed", "aqm": "dualpi2_freebsd"},
            algorithm_name="dualpi2_freebsd",
            description="For tests.",
        )
        yield DATASET


@pytest.fixture(scope="module")
def dataset_for(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What an agent of a name in `TINY` is trained on: a dataset's id, in its form, or scenarios if it is online."""
    made: dict[str, str] = {PACKET: dataset}

    def get(name: str) -> str:
        if name in ONLINE:
            return "suite:train"
        form = form_for(name)
        if form not in made:
            from l4s_gym.data import build, recipes

            folder = tmp_path_factory.mktemp("recipes")
            (folder / "groups").mkdir()
            (folder / "groups" / recipes.FILE).write_text(GROUPS)
            made[form] = build.build(recipes.load("groups", folder), "small", workers=1).id
        return made[form]

    return get


@pytest.fixture(scope="module")
def trained(dataset_for: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny agent of a name in `TINY`, trained when it is first asked for.

    What its training left among temporary files lies beside it, in a folder whose name ends in .tmp.
    """
    from l4s_gym.agents import training

    held: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("agents")

    def get(name: str) -> Path:
        if name not in held:
            data = dataset_for(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tempfile, "tempdir", str(root / f"{name}.tmp"))
                (root / f"{name}.tmp").mkdir()
                training.learner(kind_of(name)).train(data, TINY[name], root / name)
            held[name] = root / name
        return held[name]

    return get
