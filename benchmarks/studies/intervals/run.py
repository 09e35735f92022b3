"""Coverage of the board's 95 % intervals, on simulated boards whose true values are known.

    python benchmarks/studies/intervals/run.py  # results/intervals.json
    python benchmarks/studies/intervals/run.py --boards 100

The noise of the model is that of the simulator: episodes of one scenario differ by 0.3 to 8 % of the distance from
random decisions to native DualPI2, also for native DualPI2 and random decisions themselves. "plain" is the percentile
bootstrap that draws all runs of each task, with trainings as further runs, for comparison. "improvement" covers more
than asked if most scenarios are won or lost in every run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation import ranking, statistics
from l4s_gym.evaluation.origin import origin
from l4s_gym.evaluation.statistics import Floats

RESULTS = Path(__file__).resolve().parent / "results" / "intervals.json"


@dataclass(frozen=True)
class Case:
    """A simulated board: its size, and the behaviour of its agent.

    Attributes:
        tasks: Scenarios.
        runs: Seeds of each.
        trainings: Trained agents.
        unlike: Standard deviation of the score between trainings.
        shared: Correlation between the agent's and native DualPI2's scores on the same traffic.
        skewed: Log-normal noise instead of normal noise.
    """

    tasks: int
    runs: int
    trainings: int = 1
    unlike: float = 0.0
    shared: float = 0.3
    skewed: bool = False


CASES = {
    "standard, not trained": Case(15, 10),
    "standard, not trained, shift": Case(20, 10),
    "standard, not trained, skewed": Case(15, 10, skewed=True),
    "standard, not trained, traffic shared": Case(15, 10, shared=0.9),
    "standard, 3 trainings alike": Case(15, 10, 3),
    "standard, 3 trainings": Case(15, 10, 3, unlike=1.0),
    "standard, 3 trainings unlike": Case(15, 10, 3, unlike=10.0),
    "standard, 5 trainings unlike, skewed": Case(15, 10, 5, unlike=5.0, skewed=True),
    "quick, not trained": Case(4, 5),
    "quick, 3 trainings": Case(4, 5, 3, unlike=3.0),
}


class Board:
    """Draws the returns of an agent, of native DualPI2 and of random decisions; their true means are known."""

    def __init__(self, case: Case, rng: np.random.Generator) -> None:
        self.case = case
        self.rng = rng
        self.level = rng.permutation(np.linspace(60.0, 120.0, case.tasks))
        self.sd = rng.permutation(np.geomspace(0.3, 8.0, case.tasks))

    def _noise(self, *shape: int) -> Floats:
        """Draw noise of mean 0 and the standard deviation of each task (..., tasks)."""
        noise = self.rng.normal(size=(*shape, self.case.tasks))
        if self.case.skewed:
            noise = (np.exp(0.8 * noise) - np.exp(0.32)) / np.sqrt(np.expm1(0.64) * np.exp(0.64))
        return self.sd * noise

    def draw(self, trainings: int, runs: int) -> tuple[Floats, Floats, Floats]:
        """Draw returns (trainings, runs, tasks), and those of native DualPI2 and random decisions (runs, tasks)."""
        traffic = self._noise(runs)
        shared, own = np.sqrt(self.case.shared), np.sqrt(1.0 - self.case.shared)
        # Half of the effect of a training on the score is the same for all tasks.
        unlike = self.case.unlike * np.sqrt(0.5)
        training = self.rng.normal(size=(trainings, 1, 1)) + self.rng.normal(size=(trainings, 1, self.case.tasks))
        returns = self.level + unlike * training + shared * traffic + own * self._noise(trainings, runs)
        return returns, 100.0 + shared * traffic + own * self._noise(runs), self._noise(runs)

    def truth(self) -> dict[str, float]:
        """Return the values that the board estimates, from many trainings and runs."""
        sums = np.zeros(3)
        rounds = 50
        for _ in range(rounds):
            returns, native, _ = self.draw(40 if self.case.unlike else 1, 2000)
            score = statistics.iqm(returns)  # Already normalised: the references' means are 0 and 100 here.
            over = score - statistics.iqm(native)
            sums += [score.mean(), over.mean(), statistics.wins(returns, native).mean()]
        return dict(zip(("score", "over native", "improvement"), (sums / rounds).tolist(), strict=True))


def plain(returns: Floats, native: Floats, random: Floats, rng: np.random.Generator, resamples: int) -> Any:
    """Return the ends of the percentile bootstrap of the score, with the references taken as known."""
    scores = statistics.normalised(returns, random, native).reshape(-1, returns.shape[-1])
    picks = rng.integers(len(scores), size=(resamples, *scores.shape))
    return np.quantile(statistics.iqm(scores[picks, np.arange(scores.shape[1])]), [0.025, 0.975])


def measure(case: Case, boards: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return the share of boards whose intervals hold the true value, and the mean width of the intervals."""
    rng = np.random.default_rng(seed)
    model = Board(case, rng)
    truth = model.truth()
    held = dict.fromkeys((*truth, "score, plain"), 0)
    width = dict.fromkeys(held, 0.0)
    for _ in range(boards):
        arrays = model.draw(case.trainings, case.runs)
        found = statistics.bootstrap(arrays, ranking.scores, rng=rng, resamples=resamples)
        won = statistics.linear(statistics.wins(arrays[0], arrays[1])).share_interval()
        ends = {
            "score": found[0].interval(),
            "over native": found[1].interval(),
            "improvement": won,
            "score, plain": statistics.Interval(0.0, *plain(*arrays, rng, resamples)),
        }
        for name, interval in ends.items():
            assert interval.low is not None
            assert interval.high is not None
            held[name] += interval.low <= truth[name.removesuffix(", plain")] <= interval.high
            width[name] += interval.high - interval.low
    return {
        "case": asdict(case),
        "truth": truth,
        "coverage": {name: count / boards for name, count in held.items()},
        "width": {name: total / boards for name, total in width.items()},
    }


def main(boards: int = 1000, resamples: int = 200, seed: int = 0, out: Path = RESULTS) -> None:
    """Measure the coverage of all cases.

    Args:
        boards: Simulated boards of each case.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of all draws.
        out: File for the results.
    """
    found = {}
    for name, case in CASES.items():
        found[name] = measure(case, boards, resamples, seed)
        print(name, {key: f"{100 * value:.1f} %" for key, value in found[name]["coverage"].items()}, flush=True)
    how = {"boards": boards, "resamples": resamples, "seed": seed, "level": statistics.LEVEL}
    data = {**origin(), **how, "cases": found}
    with atomic_write(out) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())


if __name__ == "__main__":
    command_line(main)
