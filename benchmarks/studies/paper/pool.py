"""The authors' training pool, as the figures of trainings use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import offline
from l4s_gym.agents.training import load_config
from l4s_gym.data.minari_io import datasets_in
from l4s_gym.data.pools import load_rows
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.demo import POOL_FILES, find_pools

FAMILIES: Final = ("gpt2", "opt", "llama", "t5")
BACKBONES: Final[dict[str, tuple[str, ...]]] = {
    **{family: (f"preset={family}",) for family in FAMILIES},
    "smollm2": ("preset=smollm2",),
    "smollm2-6": ("preset=smollm2", "model.backbone.exit_layer=6"),
}
"""Settings by name: small ones of random weights, and the pretrained SmolLM2-135M with LoRA, whole or its first six
layers."""
READINGS: Final = ("as logged", "causal")
BLOCKS: Final = 10
HELD: Final = (4, 9)
"""Every fifth block is held out."""
EPOCHS: Final = 80
"""As in the run commands of the authors' github.com/deol-satish/1LLM (`--num-epochs 80`)."""
BATCH: Final = 8
"""Sequences of 40 steps."""


@dataclass(frozen=True)
class Pool:
    """A reading of the pool.

    Attributes:
        blocks: Its rows.
        ids: Datasets of the blocks that are trained on.
        folder: Where these lie.
    """

    blocks: Trajectory
    ids: Sequence[str]
    folder: Path

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """Which rows are held out (T,)."""
        return np.isin(self.blocks.run_of_step, HELD)

    @property
    def rows(self) -> int:
        """Rows that are trained on."""
        return int((~self.held).sum())


def _file(name: str) -> Path:
    folder = find_pools(None)
    if folder is None or not (folder / name).is_file():
        raise L4SError(
            f"figures of the paper: {name} of the authors' pools is not here: give its folder in $L4S_GYM_POOLS"
        )
    return folder / name


def training() -> Path:
    """The authors' training pool.

    Raises:
        L4SError: It is not at hand.
    """
    return _file(POOL_FILES[0])


def consecutive() -> Path:
    """The authors' consecutive rows.

    Raises:
        L4SError: They are not at hand.
    """
    return _file(POOL_FILES[1])


def read(work: Path, reading: str) -> Pool:
    """Read the pool, and write what is trained on as datasets into a work folder.

    Raises:
        L4SError: The pools are not at hand.
    """
    rows = load_rows(training())
    blocks = offline.read_blocks(rows, BLOCKS, as_logged=reading == "as logged")
    place = work / "datasets"
    with datasets_in(place):
        ids = offline.write_datasets(blocks, f"paper-{reading.replace(' ', '-')}")
    return Pool(blocks, [name for number, name in enumerate(ids) if number not in HELD], place)


def config_of(backbone: str, *settings: str) -> dict[str, Any]:
    """Configuration of the training of one of `BACKBONES` on all rows that it is given."""
    always = ("train.allow_gaps=true", "train.held_out=0.0", f"train.batch_size={BATCH}")
    return load_config("llm", small=True, settings=[*BACKBONES[backbone], *always, *settings])
