"""Small datasets and configurations for the tests of the LLM agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from l4s_gym.data.minari_io import schema_metadata
from l4s_gym.data.steps import STEP
from l4s_gym.data.storage import link_shards, shard_name, write_shard

MODEL: dict[str, Any] = {
    "window": 5,
    "backbone": {"family": "gpt2", "hidden": 32, "layers": 2, "heads": 2, "positions": 128, "dropout": 0.1},
    "encoder": {"hidden": 8, "kernels": [1, 3]},
}
TRAIN: dict[str, Any] = {
    "steps": 30,
    "batch_size": 8,
    "length": 12,
    "learning_rate": 3e-3,
    "warmup": 3,
    "eval_every": 15,
    "checkpoint_every": 10,
}

Rule = Callable[[Any, np.random.Generator], Any]


def config(**train: Any) -> dict[str, Any]:
    """A small configuration, with changes of `train`."""
    return {"model": MODEL, "train": TRAIN | train}


def dataset(folder: Path, lengths: list[int], act: Rule, *, seed: int = 0, name: str = "toy", **fixed: float) -> Any:
    """What `Windows` reads of a Minari dataset: runs whose actions are ``act(observations, rng)``.

    The number of the run is the reward of each of its steps; `fixed` are features by number (``f7=0.5``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    runs = []
    for number, steps in enumerate(lengths):
        rows = np.zeros(steps + 1, STEP)
        rows["observation"] = rng.random((steps + 1, 8))
        rows["observation"][:, 0] = rng.integers(0, 2, steps + 1)
        for feature, value in fixed.items():
            rows["observation"][:, int(feature[1:])] = value
        rows["action"] = act(rows["observation"], rng)
        rows["reward"] = number + 1
        runs.append(rows)
    store(folder, runs)
    return SimpleNamespace(
        id=name,
        episode_indices=list(range(len(runs))),
        spec=SimpleNamespace(data_path=folder),
        runs=runs,
        storage=SimpleNamespace(metadata=schema_metadata("balance", {})),
    )


def store(folder: Path, runs: list[Any]) -> None:
    """Write runs of rows `STEP` to a folder."""
    about = {"consecutive": True}
    stored: Any = [SimpleNamespace(about=about, blocks=lambda r=r: iter([r])) for r in runs]
    link_shards(folder, [write_shard(folder / shard_name(0), 0, stored)])


def by_feature(observations: Any, rng: np.random.Generator) -> Any:
    """Mark where the delay is high."""
    del rng
    return np.where(observations[:, 3] > 0.5, 2, 0)


def by_chance(observations: Any, rng: np.random.Generator) -> Any:
    """Nothing that could be known."""
    return rng.integers(0, 3, len(observations))


def seldom(observations: Any, rng: np.random.Generator) -> Any:
    """Drops and marks, 3 and 7 in 100 steps, twice as often where the delay is high."""
    u = rng.random(len(observations)) / np.where(observations[:, 3] > 0.5, 1.3333, 0.6667)
    return np.where(u < 0.03, 1, np.where(u < 0.1, 2, 0))
