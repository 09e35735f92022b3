"""Recipes of the published datasets: scenarios, behaviours and sizes, read from TOML.

A recipe is a folder `datasets/<name>/` with `recipe.toml`; it makes `l4s/dualpi2/<name>-v0` (size `full`) and
`l4s/dualpi2/<name>-small-v0` (size `small`). An episode depends only on the recipe and the episode's number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from l4s_gym import rewards, shipped
from l4s_gym.data import intervals
from l4s_gym.data.simulated import Behaviour, SimulatedRun
from l4s_gym.data.storage import Run
from l4s_gym.errors import L4SError, unknown
from l4s_gym.forms import FORMS, INTERVAL_MS, PACKET
from l4s_gym.schema import SCHEMA_VERSION
from l4s_gym.sim import jit, scenario
from l4s_gym.sim.disciplines import AQMS
from l4s_gym.sim.options import check_tables
from l4s_gym.sim.ranges import training
from l4s_gym.tables import convert, option_paths, read_toml

SIZES: Final = ("small", "full")
FILE: Final = "recipe.toml"
VERSION: Final = 0
PREFIX: Final = "l4s/dualpi2/"
RANDOM: Final = "random:train"
"""The name of scenarios that are drawn anew for each episode."""
if TYPE_CHECKING:
    _Aqm = str
    _Form = str
else:
    _Aqm = Literal["", *AQMS]
    _Form = Literal[*FORMS]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


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
    """The policy that decides: a discipline, with actions drawn at random.

    Attributes:
        aqm: The discipline; empty: the scenario's.
        explore: Of packets: share of the actions that are drawn.
        low: Of control intervals: lower bounds between which the numbers of an action are drawn; empty: those of the
            action space.
        high: Upper bounds, likewise.
        law: Of control intervals: how they are drawn (`intervals.drawn_actions`).
        redraw_s: Of control intervals: mean time after which the action is drawn again, after 2/3 to 4/3 of it each
            time; 0: it is held for the episode.
        plain: Of control intervals: share of the episodes with the form's idle action instead, evenly spread.
        options: Of the discipline, in place of the scenario's.
    """

    aqm: _Aqm = ""
    explore: Share = 0.0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    law: intervals.Law = "uniform"
    redraw_s: Annotated[float, Meta(ge=0.0)] = 0.0
    plain: Share = 0.0
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.options:
            check_tables({self.aqm: self.options})

    def __str__(self) -> str:
        """The behaviour in words."""
        if self.explore == 1.0:
            return "uniformly random"
        words = [f"{self.explore:g} random"] if self.explore else []
        words += [f"actions drawn each {self.redraw_s:g} s on average"] if self.redraw_s else []
        words += ["options of its own"] if self.options else []
        return (self.aqm or "scenario") + (f" with {' and '.join(words)}" if words else "")


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """A dataset to make.

    Attributes:
        title: One line.
        description: What the data is and what it is for.
        scenarios: Scenarios, used one after another; `random:train` is a new one for each episode, drawn within the
            benchmark's ranges for training.
        behaviours: Policies that decide; the next one is used after each round of all scenarios.
        small: The size for tests and first steps.
        full: The published size.
        eval_scenario: Where agents trained on it are evaluated; the first scenario if empty.
        seed: Seed of the first episode; the others count up.
        reward: Name of the reward.
        faults: Known faults, a sentence each.
        form: Action form (`l4s_gym.forms`).
        control_interval_ms: Length of a step, where the form has control intervals.
        group: Of control intervals: so many episodes in a row have the same scenario, the same seed, and the same times
            at which actions are drawn, and differ in the actions only.
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
    form: _Form = PACKET
    control_interval_ms: Annotated[float, Meta(gt=0.0, lt=1e6)] = INTERVAL_MS
    group: Annotated[int, Meta(ge=1)] = 1
    name: str = ""

    def __post_init__(self) -> None:
        own = FORMS[self.form]
        if self.form == PACKET and self.group > 1:
            raise L4SError("group: is for a form with control intervals")
        for each in self.behaviours:
            if self.form == PACKET and (each.low or each.high or each.redraw_s or each.plain):
                raise L4SError("behaviours: low, high, redraw_s and plain are for a form with control intervals")
            if self.form != PACKET and each.explore:
                raise L4SError("behaviours: explore is for the form packet: give low and high")
            low, high = each.low or own.low, each.high or own.high
            pairs = [
                *zip(own.low, low, strict=False),
                *zip(low, high, strict=False),
                *zip(high, own.high, strict=False),
            ]
            if not len(low) == len(high) == len(own.low) or not all(a <= b for a, b in pairs):
                raise L4SError(f"behaviours: low and high: give {len(own.low)} numbers each, within the action space")
        if self.evaluated_on == RANDOM:
            raise L4SError(f"eval_scenario: give one, as {RANDOM} is another scenario each time")

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

    @property
    def laws(self) -> tuple[str, ...]:
        """The disciplines whose probabilities the observations have; the first one is under the environment."""
        own = scenario.load(self.evaluated_on).aqm
        return tuple(dict.fromkeys(each.aqm or own for each in self.behaviours))

    def environment(self, scenarios: str) -> dict[str, Any]:
        """Return the arguments of the environment of the data's first law, with its options, in some scenarios."""
        law = self.behaviours[0]
        chosen: dict[str, Any] = {"scenario": scenarios}
        if law.options:
            chosen["options"] = {law.aqm: law.options}
        if law.aqm:
            chosen["aqm"] = law.aqm
        if self.form != PACKET:
            chosen["control_interval_ms"] = self.control_interval_ms
        return chosen

    def behaviour_names(self) -> list[str]:
        """Return the behaviours in words."""
        held = " with actions held for an episode"
        return [f"{each}{'' if self.form == PACKET or each.redraw_s else held}" for each in self.behaviours]


def scenario_of(name: str, seed: int) -> scenario.Scenario:
    """Return a scenario of a recipe for the episode of a seed."""
    return scenario.load(f"random-{seed}" if name == RANDOM else name)


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

    def runs(self) -> Iterable[Run]:
        """Return its episodes."""
        chosen = self.recipe.size(self.size)
        numbers = range(self.first, min(self.first + chosen.per_shard, chosen.episodes))
        if self.recipe.form == PACKET:
            return [self._packets(number) for number in numbers]
        return intervals.play([self._intervals(number) for number in numbers])

    def _episode(self, number: int) -> tuple[scenario.Scenario, BehaviourSpec, int]:
        """Return scenario and behaviour of an episode, and how many of the behaviour's episodes are before it."""
        chosen = self.recipe.size(self.size)
        names, behaviours = chosen.scenarios or self.recipe.scenarios, self.recipe.behaviours
        turn, place = divmod(number, len(names))
        round_, who = divmod(turn, len(behaviours))
        behaviour = behaviours[who]
        own = option_paths({behaviour.aqm: behaviour.options})
        simulated = scenario_of(names[place], self.recipe.seed + number).replace(horizon_s=chosen.seconds, **own)
        return simulated, behaviour, round_ * len(names) + place

    def _packets(self, number: int) -> SimulatedRun:
        simulated, who, _ = self._episode(number)
        behaviour = Behaviour(who.aqm or None, who.explore)
        return SimulatedRun(simulated, behaviour, self.recipe.seed + number, self.recipe.reward)

    def _intervals(self, number: int) -> intervals.IntervalRun:
        recipe, box = self.recipe, FORMS[self.recipe.form]
        group, member = divmod(number, recipe.group)
        simulated, who, before = self._episode(group)
        seed, before = recipe.seed + group, before * recipe.group + member
        steps = intervals.steps_of(simulated.horizon_s, recipe.control_interval_ms)
        drawn = np.zeros(steps, bool)
        if who.redraw_s:
            times = np.random.default_rng([seed, 1])  # not the numbers that draw the scenario
            drawn = intervals.draw_times(steps, 1e3 * who.redraw_s / recipe.control_interval_ms, times)
        rng = np.random.default_rng([seed, 2, member])
        actions = intervals.drawn_actions(who.low or box.low, who.high or box.high, drawn, rng, who.law)
        flavour = intervals.CHANGING if who.redraw_s else intervals.CONSTANT
        if math.floor((before + 1) * who.plain) > math.floor(before * who.plain):
            flavour, actions = intervals.PLAIN, np.full_like(actions, box.idle)
        how = recipe.form, recipe.control_interval_ms, recipe.reward
        return intervals.IntervalRun(simulated, who.aqm or None, seed, actions, flavour, *how)


def tasks(recipe: Recipe, size: str) -> list[Task]:
    """Return the shards of a dataset, in order."""
    chosen = recipe.size(size)
    return [Task(recipe, size, shard) for shard in range(-(-chosen.episodes // chosen.per_shard))]


def digest(recipe: Recipe, size: str) -> str:
    """Return a digest of a dataset's recipe: its own numbers, the scenarios, the simulator and the schema."""
    chosen = recipe.size(size)
    parts = [recipe, size, SCHEMA_VERSION, jit.source_digest()]
    parts += [training() if name == RANDOM else scenario.load(name) for name in chosen.scenarios or recipe.scenarios]
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
        scenario_of(each, 0)
    return msgspec.structs.replace(recipe, name=name)
