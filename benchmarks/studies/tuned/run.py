"""Find one setting of DualPI2 (RFC 9332) that is good on the whole suite `train`, by CMA-ES.

    pip install -r benchmarks/studies/tuned/requirements.txt
    python benchmarks/studies/tuned/run.py                       # goes on where it was stopped
    python benchmarks/studies/tuned/run.py --experiment benchmarks/experiments/native/dualpi2_tuned.toml

What is searched are the logarithms of the parameters in `PARAMETERS`, from their defaults on. What is maximised is the
mean over scenarios of the normalised score (0: random decisions, 100: the defaults), with the same seeds for each
setting. Nothing outside of `train` is run. The setting is the mean of the search's distribution at its end, which is no
lucky draw; its score is told for seeds of `train` that the search has not seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness
from l4s_gym.evaluation.entry import read_protocol
from l4s_gym.evaluation.origin import append_run, origin
from l4s_gym.evaluation.work import as_run, rate_mbps
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
CHECKED: Final = 500
"""From so many seeds after the first of `train` on, seeds that the search does not see."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """How it is searched."""

    reward: str = "fair"
    """Name of the reward."""
    protocol: Path | None = None
    """File of the protocol, whose suite `train` is used."""
    most_mbps: float = 40.0
    """Scenarios of a higher rate are left out: they take most of the time."""
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
    work: Path = Path("runs/tuned.json")
    """What was tried so far: the search goes on from it."""
    experiment: Path | None = None
    """Where the setting is written as an experiment of the board."""
    out: Path = Path(__file__).resolve().parent / "results" / "tuned.json"
    """Where the figures go."""


class Task:
    """The scenarios, and what the references come to in them."""

    def __init__(self, options: Options, seeds: Sequence[int]) -> None:
        self.options, self.seeds = options, seeds
        chosen = read_protocol(options.protocol).members("train")
        self.names = [name for name in chosen if rate_mbps(name) <= options.most_mbps]
        self.random = self._returns("random", {})
        self.native = self._returns(f"native:{AQM}", {})

    def _returns(self, who: str, setting: dict[str, float]) -> Floats:
        """Mean return in each scenario."""
        chosen: list[str | Scenario] = [as_run(name, self.options.seconds, {AQM: setting}) for name in self.names]
        found = harness.evaluate_many(who, chosen, seeds=self.seeds, reward=self.options.reward)
        return np.array([each.episode_return for each in found]).reshape(len(chosen), len(self.seeds)).mean(1)

    def scores(self, setting: dict[str, float]) -> Floats:
        """Normalised score of a setting in each scenario."""
        return 100.0 * (self._returns(f"native:{AQM}", setting) - self.random) / (self.native - self.random)


def setting_of(logs: npt.ArrayLike) -> dict[str, float]:
    """The options at a point of the search, to four digits."""
    return {name: float(f"{math.exp(x):.4g}") for name, x in zip(PARAMETERS, np.asarray(logs), strict=True)}


def search(options: Options, task: Task) -> dict[str, float]:
    """The setting, and nothing else: what was tried stands in `options.work`.

    CMA-ES is asked and told again what is in the file, which brings it to where it was.

    Raises:
        L4SError: `cma` is not installed; the file is of another search.
    """
    try:
        cma = optional("cma")
    except L4SError:
        requirements = Path(__file__).with_name("requirements.txt")
        raise L4SError(f"cma: is not installed: pip install -r {requirements}") from None
    names = ("reward", "seconds", "seeds", "population", "seed")
    about = {name: getattr(options, name) for name in names} | {"simulator": fingerprint.FINGERPRINT}
    about["scenarios"] = {name: scenario.digest(name) for name in task.names}
    tried = json.loads(options.work.read_text()) if options.work.exists() else {"about": about, "generations": []}
    if tried["about"] != about:
        raise L4SError(f"{options.work}: is of another search: give another --work")
    low, high = np.log(list(PARAMETERS.values())).T
    start = [math.log(getattr(Law(), name)) for name in PARAMETERS]
    how = {"popsize": options.population, "seed": options.seed, "bounds": [low.tolist(), high.tolist()], "verbose": -9}
    strategy = cma.CMAEvolutionStrategy(start, 0.5, how)
    for number in range(-(-options.budget // options.population)):
        points = strategy.ask()
        if number == len(tried["generations"]):
            scores = [float(task.scores(setting_of(point)).mean()) for point in points]
            tried["generations"].append({"points": np.asarray(points).tolist(), "scores": scores})
            options.work.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(options.work) as file:
                file.write(json.dumps(tried).encode())
            print(f"{(number + 1) * options.population} settings: best of these {max(scores):.1f}", flush=True)
        known = tried["generations"][number]
        if not np.allclose(points, known["points"]):
            raise L4SError(f"{options.work}: was made with another version of cma: give another --work")
        strategy.tell(points, [-score for score in known["scores"]])
    return setting_of(strategy.result.xfavorite)


def main(options: Options) -> None:
    first = read_protocol(options.protocol).first_seed["train"]
    task = Task(options, range(first, first + options.seeds))
    setting = search(options, task)
    checked = Task(options, range(first + CHECKED, first + CHECKED + options.seeds)).scores(setting)
    title = f"DualPI2 (RFC 9332), tuned on train for the reward {options.reward}"
    table = "".join(f"{name} = {value}\n" for name, value in setting.items())
    text = f'title = "{title}"\nagent = "native:{AQM}"\n\n[options.{AQM}]\n{table}'
    print(text)
    for name, score in zip(task.names, checked, strict=True):
        print(f"{name}: {score:.1f}")
    print(f"mean score on seeds of train that the search has not seen: {checked.mean():.1f}")
    settings = {"reward": options.reward, "budget": options.budget, "seconds": options.seconds, "seeds": options.seeds}
    scores = dict(zip(task.names, checked.tolist(), strict=True))
    append_run(options.out, {**origin(), **settings, "setting": setting, "scores": scores})
    if options.experiment is not None:
        with atomic_write(options.experiment) as file:
            file.write(text.encode())


if __name__ == "__main__":
    main(command_line(Options, description=__doc__))
