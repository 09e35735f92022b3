"""Sequences of logged decisions for the model: corpus of datasets, batches, augmentation, and returns-to-go.

All data that the LLM agent reads from datasets (`Windows`) and from logs in memory (`Trajectory`) goes through here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.agents.llm.settings import Augment, Task, TrainConfig
from l4s_gym.agents.llm.tasks import labels
from l4s_gym.agents.logged import Stretch, split
from l4s_gym.data import minari_io
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.data.windows import Windows
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, ENQUEUE, OBS_HIGH, OBSERVED
from l4s_gym.sim import fingerprint

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Batch = dict[str, npt.NDArray[Any]]

CONTINUOUS: Final = np.array([name != "queue_type" for name in OBSERVED])
"""Features to which noise is added (8,)."""
_INPUTS: Final = ("returns_to_go", "observations", "actions", "timesteps", "mask", "missing")
_DRAW: Final = 0x647261
_LOOKS: Final = 4096


def tensors(batch: Batch, device: Any) -> dict[str, Tensor]:
    """Return a batch as tensors on a device."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in batch.items()}


def logits_of(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return logits (B, K, 3) of a batch; `missing` may be left out."""
    out: Tensor = model(*(batch.get(name) for name in _INPUTS))
    return out


# -- returns-to-go


@dataclass(frozen=True)
class Target:
    """The return that the agent tries to reach.

    Attributes:
        value: Return at the start of an episode, in the reward's unit.
        low: Smallest return-to-go given to the model.
        high: Largest return-to-go given to the model.
        fixed: Whether it stays constant when rewards come in.
    """

    value: float
    low: float = -np.inf
    high: float = np.inf
    fixed: bool = False

    def __post_init__(self) -> None:
        if not np.isfinite(self.value):
            raise L4SError(f"llm: target={self.value}: give a finite return")


class ReturnsToGo:
    """Return-to-go for the model at each decision: first the target, then what is left of it.

    After reward r, the return-to-go R becomes (R - r) / gamma, as in the training data, and is kept within the bounds
    of the target: an episode that is worse or longer than all of the training data would else ask for a value that
    the model has never seen.
    """

    def __init__(self, target: Target, n: int, gamma: float) -> None:
        """Start `n` episodes."""
        self.left, self._target, self._gamma, self._first = np.full(n, target.value), target, gamma, True

    def after(self, rewards: npt.ArrayLike) -> Floats:
        """Return the next returns-to-go (n,), after the rewards since the last decision; first ones are ignored."""
        if not self._first and not self._target.fixed:
            left = (self.left - np.asarray(rewards, np.float64)) / self._gamma if self._gamma else self.left
            self.left = np.clip(left, self._target.low, self._target.high)
        self._first = False
        return self.left


def sequences(logged: Trajectory, returns: Floats, ends: Ints, length: int) -> Batch:
    """Return a batch (B, K, ...) of the `length` steps up to logged steps (B,); `returns` (T,) are those of all."""
    batch = logged.windows(ends, length)
    rows = np.maximum(ends[:, None] + np.arange(1 - length, 1), 0)
    return batch | {"returns_to_go": np.where(batch["mask"], returns[rows], 0.0).astype(np.float32)}


def covering(index: Ints, starts: Ints, most: int) -> tuple[Ints, Ints]:
    """Return sequences that end with at most `most` of the steps (B,): their last steps (n,), and each step's one."""
    stops = starts[np.searchsorted(starts, index, side="right")] - 1
    ends, tile = [-1], np.zeros(len(index), np.int64)
    for place in np.argsort(index, kind="stable").tolist():
        step = int(index[place])
        if step > ends[-1]:
            ends.append(min(step + most - 1, int(stops[place])))
        tile[place] = len(ends) - 2
    return np.array(ends[1:], np.int64), tile


# -- one batch changed, one loss undone


def augment(batch: Batch, config: Augment, rng: np.random.Generator) -> Batch:
    """Change a batch so that the model depends less on irrelevant details; labels and returns stay.

    - *Offset*: a random number is added to a sequence's timesteps. A discipline does not know how old its
      episode is, and an evaluation may run longer than the training data.
    - *Noise*: the continuous features are multiplied by 1 + noise * z. A feature that is 0 stays 0: an empty queue
      stays an empty queue. `queue_type` is never changed.
    - *Dropout*: timesteps are hidden (masked), so that the model can handle lost records. The last step of a
      sequence stays; hidden steps are not part of the loss.

    Args:
        batch: `observations` (B, K, 8), `timesteps` (B, K), `mask` (B, K), and more.
        config: How much.
        rng: Generator of the changes.

    Returns:
        A copy; unchanged arrays are shared.
    """
    changed = dict(batch)
    mask = batch["mask"].astype(bool)  # (B, K)
    if config.noise:
        factor = 1.0 + config.noise * rng.standard_normal(batch["observations"].shape)  # (B, K, 8)
        factor[..., ~CONTINUOUS] = 1.0
        noisy = batch["observations"].astype(np.float64) * factor
        changed["observations"] = np.clip(noisy, 0.0, OBS_HIGH).astype(np.float32)
    if config.offset:
        offset = rng.integers(config.offset + 1, size=(len(mask), 1))
        changed["timesteps"] = np.where(mask, batch["timesteps"].astype(np.int64) + offset, 0)
    if config.dropout:
        hidden = rng.random(mask.shape) < config.dropout
        hidden[:, -1] = False
        changed["mask"] = mask & ~hidden
    return changed


@dataclass(frozen=True)
class Correction:
    """Converts the probabilities of a model back to those of the data.

    `l4s_gym.agents.imbalance` says how rare actions are treated and how the shift is undone. One thing differs here:
    `sample` draws whole windows around drops and marks, and all their steps are part of the loss. So the labels that
    were part of it are counted, and the ratios of their shares to the data's replace the weights.

    Attributes:
        imbalance: Treatment of rare actions in training, with the shares of the data; default: no shift.
        seen: Share of each action among the steps of the loss (3,).
    """

    imbalance: Imbalance = field(default_factory=Imbalance)
    seen: tuple[float, ...] = ()

    def __call__(self, probabilities: npt.ArrayLike) -> Floats:
        """Return probabilities (..., 3) of the data, from those of the model."""
        p = np.asarray(probabilities, np.float64)
        if self.imbalance.kind != "sample" or not self.imbalance.correction:
            return self.imbalance.correct(p)
        shares, seen = np.array(self.imbalance.shares), np.array(self.seen)
        known = (shares > 0.0) & (seen > 0.0)
        raw = p * np.where(known, shares / np.where(known, seen, 1.0), 1.0)
        return np.asarray(raw / raw.sum(axis=-1, keepdims=True), np.float64)

    @classmethod
    def counted(cls, imbalance: Imbalance, counts: npt.ArrayLike) -> Correction:
        """Make it from the counts of the labels (3,) that were part of the loss."""
        seen = np.asarray(counts, np.float64)
        return cls(imbalance, tuple((seen / max(seen.sum(), 1.0)).tolist()))


# -- datasets


@dataclass(frozen=True)
class Part:
    """One dataset.

    Attributes:
        name: Its id.
        windows: Its sequences: `Windows`, or an `Experience`.
        weight: Its share of the draws.
        train: Stretches to train on, in order: (n, 3), episode, first step, and the step after the last.
        held: Stretches held out, in the same form.
        ends: Number of training steps up to and including each row of `train` (n,).
        rare: Training steps at which each action other than `enqueue` was taken; only
            if batches are drawn by them.
    """

    name: str
    windows: Any
    weight: float
    train: Ints
    held: Ints
    ends: Ints
    rare: Mapping[int, Ints]

    def index(self, step: Ints) -> Ints:
        """Convert numbers of training steps (n,) to indices among all steps of the dataset."""
        place = np.searchsorted(self.ends, step, side="right")
        episode, _, stop = self.train[place].T
        found: Ints = self.windows.starts[episode] + stop - (self.ends[place] - step)
        return found

    def last(self, index: Ints) -> Ints:
        """Return the index of the last training step in the episode of each training step (n,)."""
        at = self.windows.starts[self.train[:, 0]]
        place = np.searchsorted(at + self.train[:, 1], index, side="right") - 1
        found: Ints = (at + self.train[:, 2])[place] - 1
        return found


def _check(source: Any, rewards: dict[str, str]) -> tuple[Any, str]:
    """Return a dataset with our schema, and its simulator; its reward is added to `rewards`."""
    dataset = minari_io.load(source) if isinstance(source, str) else source
    simulator = minari_io.check_simulator(dataset)
    minari_io.check_schema(dataset)
    rewards[dataset.id] = str(dataset.storage.metadata.get("reward"))
    return dataset, simulator


class Corpus:
    """Training sequences and held-out episodes of one or several datasets.

    Batch number s of process p has its own generator, seeded with seed, s and p: a resumed run needs no other state to
    continue as if it had not been stopped.

    Args:
        sources: Datasets (ids or `minari.MinariDataset`), or a mapping of ids to weights; default: equal weights.
        config: Length of the sequences, split, treatment of rare actions, seed.
        gamma: Discount of the returns-to-go.

    Attributes:
        parts: The datasets.
        shares: Shares of the actions among the training steps, with the weights of the datasets (3,).
        imbalance: The configured one, with these shares.
        scale: Largest absolute return-to-go of the training data: returns are divided by it for the model.
        low: Smallest return-to-go of the training data.
        high: Largest return-to-go of the training data.
        returns: Returns of the training episodes (E,).
        simulator: Fingerprint of the simulator that made the datasets (`fingerprint.combined`).

    Raises:
        L4SError: A dataset cannot be used, or the rewards differ.
    """

    def __init__(self, sources: Any, config: TrainConfig, gamma: float) -> None:
        self.config = config
        rewards: dict[str, str] = {}
        simulators: list[str] = []
        self.parts: list[Part] = []
        for source, weight in _weights(sources):
            dataset, simulator = _check(source, rewards)
            simulators.append(simulator)
            windows = Windows(
                dataset, config.length, gamma=gamma, allow_gaps=config.allow_gaps, stride=config.decision_interval
            )
            self.parts.append(self._part(source if isinstance(source, str) else str(source.id), windows, weight))
        self.simulator = fingerprint.combined(simulators)
        if len(set(rewards.values())) > 1:
            which = ", ".join(f"{name}: {reward}" for name, reward in rewards.items())
            raise L4SError(f"datasets of different rewards cannot be mixed ({which}): build them with the same one")
        counts = [self._counts(part) for part in self.parts]
        self.shares: Floats = sum(part.weight * c / c.sum() for part, c in zip(self.parts, counts, strict=True))
        self.imbalance = replace(config.imbalance, shares=tuple(self.shares.tolist()))
        wanted = self.imbalance.weights * self.shares
        self._classes = wanted / wanted.sum()
        self._measure()

    def _measure(self) -> None:
        """Find the returns of the training data."""
        self.returns = np.concatenate(
            [_returns(part, part.windows.starts[part.train[:, 0]] + part.train[:, 1]) for part in self.parts]
        )
        looks = [self.returns] + [
            _returns(part, part.index(np.linspace(0, part.ends[-1] - 1, _LOOKS).astype(np.int64)))
            for part in self.parts
        ]
        every = np.concatenate(looks)
        if not np.isfinite(every).all():
            raise L4SError("rewards of the training data are not all finite: write the dataset again")
        self.low, self.high = float(every.min()), float(every.max())
        self.scale = float(np.abs(every).max()) or 1.0

    def _part(self, name: str, windows: Any, weight: float) -> Part:
        steps = windows.layout.steps.tolist()
        if self.config.held_out:
            chosen = split(steps, self.config.held_out, self.config.seed)
        else:
            chosen = [Stretch(number, 0, length) for number, length in enumerate(steps)], []
        train, held = (np.array(each, np.int64).reshape(-1, 3) for each in chosen)
        rare: dict[int, Ints] = {}
        if self.config.imbalance.kind == "sample":
            for action in range(len(ACTIONS)):
                if action != ENQUEUE:
                    rare[action] = np.concatenate([
                        windows.starts[episode]
                        + start
                        + np.flatnonzero(windows.episode_actions(episode)[start:stop] == action)
                        for episode, start, stop in train.tolist()
                    ])  # fmt: skip
        return Part(name, windows, weight, train, held, np.cumsum(train[:, 2] - train[:, 1]), rare)

    def _counts(self, part: Part) -> Floats:
        counts = [
            np.bincount(part.windows.episode_actions(episode)[start:stop], minlength=len(ACTIONS))
            for episode, start, stop in part.train.tolist()
        ]
        total: Floats = np.sum(counts, axis=0, dtype=np.float64)
        if total[len(ACTIONS) :].any() or not total.sum():
            raise L4SError(f"dataset {part.name!r}: has no steps, or actions other than 0, 1, 2: write it again")
        return total

    def draw(self, step: int, process: int = 0) -> tuple[Batch, np.random.Generator]:
        """Draw batch `step` (B, K, ...) of a process; return it and its generator for further draws."""
        rng = np.random.default_rng([self.config.seed, step, process, _DRAW])
        of = rng.choice(len(self.parts), self.config.batch_size, p=[part.weight for part in self.parts])
        found: list[Batch] = []
        for number in np.unique(of).tolist():
            part = self.parts[number]
            ends = self._ends(part, int((of == number).sum()), rng)
            found.append(part.windows.arrays(ends))
        batch = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        return batch, rng

    def _ends(self, part: Part, size: int, rng: np.random.Generator) -> Ints:
        """Draw the last steps of `size` sequences."""
        index = part.index(rng.integers(part.ends[-1], size=size))
        if not part.rare:
            return index
        wanted = rng.choice(len(ACTIONS), size, p=self._classes)
        later = rng.integers(self.config.length, size=size)  # so that it may be anywhere in the sequence
        for action, steps in part.rare.items():
            chosen = np.flatnonzero(wanted == action)
            if len(steps) and len(chosen):
                hit = steps[rng.integers(len(steps), size=len(chosen))]
                room = (part.last(hit) - hit) // self.config.decision_interval
                index[chosen] = hit + np.minimum(later[chosen], room) * self.config.decision_interval
        return index

    def held_out(self, size: int) -> Iterator[tuple[Batch, npt.NDArray[np.bool_]]]:
        """Yield batches of at most `size` sequences over the held-out episodes, and which of their steps to evaluate.

        Each step is evaluated at most once, with at least half a sequence before it if its episode has that many.
        At most about `eval_steps` steps, evenly spaced over the tiles of a dataset. With a stride, each n-th step of an
        episode, from its first one on.
        """
        length = self.config.length
        new_steps = max(length // 2, 1)
        whole = sum(int((part.held[:, 2] - part.held[:, 1]).sum()) for part in self.parts)
        for part in self.parts:
            ends, fresh = _held_tiles(part, length, new_steps)
            share = (part.held[:, 2] - part.held[:, 1]).sum() / max(whole, 1)
            most = max(int(self.config.eval_steps * share) // new_steps, 1)
            if len(ends) > most:
                kept = np.linspace(0, len(ends) - 1, most).astype(np.int64)
                ends, fresh = ends[kept], fresh[kept]
            for at in range(0, len(ends), size):
                batch: Batch = dict(part.windows.arrays(ends[at : at + size]))
                new = np.arange(length) >= length - fresh[at : at + size, None]
                yield batch, new & batch["mask"].astype(bool)

    def about(self) -> list[dict[str, Any]]:
        """Return plain data on the datasets, for the agent's card."""
        return [
            {
                "dataset": part.name,
                "weight": part.weight,
                "train_steps": int(part.ends[-1]),
                "train_stretches": len(part.train),
                "held_out": [
                    [int(part.windows.layout.numbers[episode]), start, stop]
                    for episode, start, stop in part.held.tolist()
                ],
            }
            for part in self.parts
        ]


class Experience(Corpus):
    """Training sequences and held-out episodes of another task (`l4s_gym.agents.llm.tasks`); its own `windows`, too.

    Args:
        episodes: Of one task.
        config: As of `Corpus`; no action counts more than another, and no noise is added.
        gamma: Discount of the returns-to-go.
        task: What is decided.
    """

    stride = 1

    def __init__(self, episodes: Sequence[Trajectory], config: TrainConfig, gamma: float, task: Task) -> None:
        config.imbalance.check("llm: another task than queues", "none")
        if config.augment.noise:
            raise L4SError("llm: another task than queues: leave augment.noise at 0")
        self.config, self.imbalance, self.simulator = config, config.imbalance, fingerprint.KERNEL_LOG
        joined = Trajectory.joined(episodes, drop_missing=False)
        self._all, self._to_go = replace(joined, actions=labels(task, joined.actions)), joined.returns_to_go(gamma)
        self.shares, self.starts, steps = np.zeros(0), joined.starts, np.diff(joined.starts)
        self.layout = SimpleNamespace(steps=steps, numbers=np.arange(len(steps)))
        self.parts = [self._part("experience", self, 1.0)]
        self._measure()

    def arrays(self, ends: Ints) -> Batch:
        """Return the sequences that end at steps (B,)."""
        return sequences(self._all, self._to_go, ends, self.config.length)


def _weights(sources: Any) -> list[tuple[Any, float]]:
    """Return datasets with their shares of the draws."""
    if isinstance(sources, Mapping):
        pairs = [(source, float(weight)) for source, weight in sources.items()]
    elif isinstance(sources, Sequence) and not isinstance(sources, str):
        pairs = [(source, 1.0) for source in sources]
    else:
        pairs = [(sources, 1.0)]
    total = sum(weight for _, weight in pairs)
    if not pairs or not all(weight > 0 for _, weight in pairs) or not np.isfinite(total):
        raise L4SError("datasets: give at least one, and weights of more than 0")
    return [(source, weight / total) for source, weight in pairs]


def _returns(part: Part, index: Ints) -> Floats:
    """Return the returns-to-go at steps (n,)."""
    parts = [part.windows.arrays(index[at : at + 256])["returns_to_go"][:, -1] for at in range(0, len(index), 256)]
    found: Floats = np.concatenate(parts).astype(np.float64)
    return found


def _held_tiles(part: Part, length: int, most: int) -> tuple[Ints, Ints]:
    """Return the last steps of sequences that cover the held-out episodes, and how many steps at each end are new."""
    ends, fresh = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    stride = part.windows.stride
    for episode, start, stop in part.held.tolist():
        steps = -(-(stop - start) // stride)
        first = min(length if start == 0 else most, steps)  # the first sequence has nothing before it
        last = np.unique(np.minimum(np.arange(first, steps + most, most), steps))
        ends.append(part.windows.starts[episode] + start + (last - 1) * stride)
        fresh.append(np.diff(last, prepend=0))
    return np.concatenate(ends), np.concatenate(fresh)
