"""The search for a setting of DualPI2 by CMA-ES, and what a setting is worth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.files import atomic_write
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness
from l4s_gym.evaluation.work import as_run
from l4s_gym.extras import optional
from l4s_gym.sim import fingerprint, scenario
from l4s_gym.sim.dualpi2_rfc9332 import Options as Law
from l4s_gym.sim.scenario import Scenario

AQM: Final = "dualpi2_rfc9332"
PARAMETERS: Final = {
    "target_ms": (1.0, 60.0),
    "tupdate_ms": (2.0, 64.0),
    "alpha": (0.01, 2.5),
    "beta": (0.2, 50.0),
    "coupling": (0.5, 16.0),
    "min_th_us": (100.0, 6400.0),
    "range_us": (50.0, 6400.0),
    "classic_weight": (0.01, 0.5),
}
"""Options of the law, and between what values they are searched."""
DEFAULTS: Final = {name: getattr(Law(), name) for name in PARAMETERS}
"""Their values in the RFC."""
CHECKED: Final = 500
"""From so many seeds after the first of `train` on, seeds that no search sees."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Search:
    """How it is searched."""

    reward: str = "fair"
    """Name or weights of the reward."""
    seconds: float = 20.0
    """Length of an episode."""
    seeds: int = 3
    """Episodes of each scenario, the same for each setting."""
    budget: int = 1000
    """Settings that are tried."""
    population: int = 16
    """Settings of a generation."""
    seed: int = 1
    """Of the search, 1 or more."""


class Task:
    """Some scenarios, and what the references come to in them."""

    def __init__(self, names: Sequence[str], how: Search, first_seed: int) -> None:
        self.names, self.how = list(names), how
        self.seeds = range(first_seed, first_seed + how.seeds)
        self.random = self._returns("random", {})
        self.native = self._returns(f"native:{AQM}", {})

    def _returns(self, who: str, setting: Mapping[str, float]) -> Floats:
        """Mean return in each scenario."""
        chosen: list[str | Scenario] = [as_run(name, self.how.seconds, {AQM: setting}) for name in self.names]
        found = harness.evaluate_many(who, chosen, seeds=self.seeds, reward=self.how.reward)
        returns: Floats = np.array([each.episode_return for each in found]).reshape(len(chosen), len(self.seeds))
        return np.asarray(returns.mean(1))

    def scores(self, setting: Mapping[str, float]) -> Floats:
        """Normalised score of a setting in each scenario."""
        return 100.0 * (self._returns(f"native:{AQM}", setting) - self.random) / (self.native - self.random)


def setting_of(logs: npt.ArrayLike) -> dict[str, float]:
    """The options at a point of the search, to four digits."""
    return {name: float(f"{math.exp(x):.4g}") for name, x in zip(PARAMETERS, np.asarray(logs), strict=True)}


def search(task: Task, start: Mapping[str, float], work: Path) -> dict[str, float]:
    """The mean of the search's distribution at its end, as a setting; what was tried stands in the file `work`.

    CMA-ES is asked and told again what is in the file, which brings it to where it was.

    Raises:
        L4SError: `cma` is not installed; the file is of another search.
    """
    try:
        cma = optional("cma")
    except L4SError:
        requirements = Path(__file__).with_name("requirements.txt")
        raise L4SError(f"cma: is not installed: pip install -r {requirements}") from None
    how = task.how
    about: dict[str, Any] = {"reward": how.reward, "seconds": how.seconds, "seeds": [*task.seeds], "start": dict(start)}
    about |= {"population": how.population, "seed": how.seed, "simulator": fingerprint.FINGERPRINT}
    about["scenarios"] = {name: scenario.digest(name) for name in task.names}
    tried: dict[str, Any] = json.loads(work.read_text()) if work.exists() else {"about": about, "generations": []}
    if tried["about"] != about:
        raise L4SError(f"{work}: is of another search: give another --work")
    low, high = np.log(list(PARAMETERS.values())).T
    options = {"popsize": how.population, "seed": how.seed, "bounds": [low.tolist(), high.tolist()], "verbose": -9}
    strategy = cma.CMAEvolutionStrategy([math.log(start[name]) for name in PARAMETERS], 0.5, options)
    for number in range(-(-how.budget // how.population)):
        points = strategy.ask()
        if number == len(tried["generations"]):
            scores = [float(task.scores(setting_of(point)).mean()) for point in points]
            tried["generations"].append({"points": np.asarray(points).tolist(), "scores": scores})
            work.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(work) as file:
                file.write(json.dumps(tried).encode())
            print(f"{(number + 1) * how.population} settings: best of these {max(scores):.1f}", flush=True)
        known = tried["generations"][number]
        if not np.allclose(points, known["points"]):
            raise L4SError(f"{work}: was made with another version of cma: give another --work")
        strategy.tell(points, [-score for score in known["scores"]])
    return setting_of(strategy.result.xfavorite)
