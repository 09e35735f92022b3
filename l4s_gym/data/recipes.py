"""Recipes of the published datasets: scenarios, behaviours and sizes, read from TOML.

A recipe is a folder `datasets/<name>/` with `recipe.toml`; it makes `l4s/dualpi2/<name>-v0` (size `full`) and
`l4s/dualpi2/<name>-small-v0` (size `small`). An episode depends only on the recipe and the episode's number.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from l4s_gym import rewards, shipped
from l4s_gym.data.simulated import Behaviour, SimulatedRun
from l4s_gym.errors import L4SError, unknown
from l4s_gym.schema import SCHEMA_VERSION
from l4s_gym.sim import jit, scenario
from l4s_gym.sim.disciplines import AQMS
from l4s_gym.tables import convert, read_toml

SIZES: Final = ("small", "full")
FILE: Final = "recipe.toml"
VERSION: Final = 0
PREFIX: Final = "l4s/dualpi2/"
if TYPE_CHECKING:
    _Aqm = str
else:
    _Aqm = Literal["", *AQMS]


class Size(Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a recipe to make.

    Attributes:
        episodes: Number of episodes.
        seconds: Simulated length of each.
        per_shard: Episodes per file.
        scenarios: Scenarios that replace the recipe's.
    """

    episodes: Annotated[int, Meta(ge=1, le=1_000_000)]
    seconds: Annotated[float, Meta(gt=0.0, le=1e6)]
    per_shard: Annotated[int, Meta(ge=1)] = 8
    scenarios: tuple[str, ...] = ()


class BehaviourSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """The policy that decides: a discipline (empty: the scenario's), and the share of actions drawn at random."""

    aqm: _Aqm = ""
    explore: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """A dataset to make.

    Attributes:
        title: One line.
        description: What the data is and what it is for.
        scenarios: Scenarios, used one after another.
        behaviours: Policies that decide; the next one is used after each round of all scenarios.
        small: The size for tests and first steps.
        full: The published size.
        eval_scenario: Where agents trained on it are evaluated; the first scenario if empty.
        seed: Seed of the first episode; the others count up.
        reward: Name of the reward.
        faults: Known faults, a sentence each.
        name: Name of the folder.
    """

    title: str
    description: str
    scenarios: Annotated[tuple[str, ...], Meta(min_length=1)]
    behaviours: Annotated[tuple[BehaviourSpec, ...], Meta(min_length=1)]
    small: Size
    full: Size
    eval_scenario: str = ""
    seed: Annotated[int, Meta(ge=0)] = 0
    reward: rewards.Name = rewards.DEFAULT
    faults: tuple[str, ...] = ()
    name: str = ""

    def size(self, size: str) -> Size:
        """Return the numbers of `small` or `full`."""
        if size not in SIZES:
            raise unknown("size", size, SIZES)
        return self.small if size == "small" else self.full

    def dataset_id(self, size: str) -> str:
        """Return the id of the dataset of a size."""
        self.size(size)
        return f"{PREFIX}{self.name}{'-small' if size == 'small' else ''}-v{VERSION}"

    @property
    def evaluated_on(self) -> str:
        """The scenario of evaluation."""
        return self.eval_scenario or self.scenarios[0]

    def behaviour_names(self) -> list[str]:
        """Return the behaviours in words."""
        return [
            "uniformly random"
            if b.explore == 1.0
            else f"{b.aqm or 'scenario'}" + (f" with {b.explore:g} random" if b.explore else "")
            for b in self.behaviours
        ]


@dataclass(frozen=True)
class Task:
    """A shard to be made: the numbers of its episodes."""

    recipe: Recipe
    size: str
    shard: int

    @property
    def first(self) -> int:
        """Number of its first episode."""
        return self.shard * self.recipe.size(self.size).per_shard

    def runs(self) -> list[SimulatedRun]:
        """Return its episodes."""
        chosen = self.recipe.size(self.size)
        names = chosen.scenarios or self.recipe.scenarios
        runs = []
        for number in range(self.first, min(self.first + chosen.per_shard, chosen.episodes)):
            turn, place = divmod(number, len(names))
            who = self.recipe.behaviours[turn % len(self.recipe.behaviours)]
            simulated = scenario.load(names[place]).replace(horizon_s=chosen.seconds)
            behaviour = Behaviour(who.aqm or None, who.explore)
            runs.append(SimulatedRun(simulated, behaviour, self.recipe.seed + number, self.recipe.reward))
        return runs


def tasks(recipe: Recipe, size: str) -> list[Task]:
    """Return the shards of a dataset, in order."""
    chosen = recipe.size(size)
    return [Task(recipe, size, shard) for shard in range(-(-chosen.episodes // chosen.per_shard))]


def digest(recipe: Recipe, size: str) -> str:
    """Return a digest of a dataset's recipe: its own numbers, the scenarios, the simulator and the schema."""
    chosen = recipe.size(size)
    parts = [recipe, size, SCHEMA_VERSION, jit.source_digest()]
    parts += [scenario.load(name) for name in chosen.scenarios or recipe.scenarios]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def folder(given: Path | None = None) -> Path:
    """Return the given folder of recipes, or the one that ships.

    Raises:
        L4SError: The folder has no recipe.
    """
    place = given or shipped.folder("datasets")
    if not any(place.glob(f"*/{FILE}")):
        raise L4SError(f"recipes: no NAME/{FILE} in {place}: give a folder that has some (--recipes FOLDER)")
    return place


def names(given: Path | None = None) -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.parent.name for path in folder(given).glob(f"*/{FILE}"))


def load(name: str, given: Path | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name: Name of its folder.
        given: Folder of recipes; see `folder`.

    Raises:
        L4SError: No recipe has this name, or it is not valid (the error says where).
    """
    if name not in names(given):
        raise unknown("dataset", name, names(given))
    path = folder(given) / name / FILE
    recipe = convert(Recipe, read_toml(path), str(path))
    used = {*recipe.scenarios, *recipe.small.scenarios, *recipe.full.scenarios, recipe.evaluated_on}
    for each in sorted(used):
        scenario.load(each)
    return msgspec.structs.replace(recipe, name=name)
