"""Trainings and answers whose time and memory figures 18 to 20 show, each measured in a process of its own."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

import l4s_gym
from figure import Place
from jobs import kept
from l4s_gym.agents import training
from l4s_gym.agents.llm.settings import LLMConfig, resolved, settings
from l4s_gym.data.minari_io import datasets_in
from l4s_gym.evaluation.origin import cpu_model
from l4s_gym.parallel import on_processes
from l4s_gym.tables import checksum
from pool import FAMILIES, config_of, read

GPT2: Final = "gpt2, 124 M"
SMALL: Final = tuple(f"{family}, small" for family in FAMILIES)
SHAPES: Final = (*SMALL, GPT2)
TRAINED: Final = {"full": 0, "LoRA": 8}
"""Ways of training, and the rank for small backbones."""
RANK: Final = 128
"""For the backbone of GPT-2's size."""
ANSWERS: Final = ("plain, in words", "LoRA, whole window", "LoRA, cached", "merged, as used")
"""Ways of answering."""


class Trained(NamedTuple):
    """What a training took.

    Attributes:
        step_s: Median of an optimiser step.
        labels: Of a step.
        peak_bytes: Most memory, beyond what the process held after training a toy; 0: not known.
        trainable: Parameters that are trained.
        parameters: All of them.
    """

    step_s: float
    labels: float
    peak_bytes: float
    trainable: float
    parameters: float


class Answered(NamedTuple):
    """What answers took.

    Attributes:
        p50_ms: Median.
        p99_ms: 99th percentile.
        min_ms: Least.
        tokens: That are written for an answer; 0: none are.
        peak_bytes: Most memory, beyond what the process held after a toy answered; 0: not known.
    """

    p50_ms: float
    p99_ms: float
    min_ms: float
    tokens: float
    peak_bytes: float


@dataclass(frozen=True)
class Trial:
    """Something to measure.

    Attributes:
        shape: One of `SHAPES`.
        way: One of `TRAINED` or `ANSWERS`.
        steps: Optimiser steps, or answers.
        folder: Of the datasets.
        ids: Of the datasets.
    """

    shape: str
    way: str
    steps: int
    folder: Path
    ids: tuple[str, ...]

    def config(self, toy: bool = False) -> dict[str, Any]:
        """Of the training; of a toy of the same family."""
        family = self.shape.partition(",")[0]
        size: dict[str, int] = {"hidden": 768, "layers": 12, "heads": 12, "vocabulary": 50257}
        if toy:
            size = {"hidden": 16, "layers": 1, "heads": 2}
        elif self.shape != GPT2:
            size = {}
        more = [f"model.backbone.{name}={value}" for name, value in size.items()]
        if toy or self.shape == GPT2:
            more.append("train.batch_size=2")
        if self.way == "LoRA" or self.way.startswith(("LoRA", "merged")):
            rank = 2 if toy else RANK if self.shape == GPT2 else TRAINED["LoRA"]
            more += [f"model.lora.rank={rank}", "model.backbone.freeze=true"]
        return config_of(family, *more)

    @property
    def key(self) -> str:
        """Checksum of what the result depends on, this machine too."""
        about = [resolved(self.config()), self.way, self.steps, cpu_model(), l4s_gym.__version__]
        return checksum([*about, importlib.metadata.version("torch")])[:16]


def model_config(trial: Trial, toy: bool) -> LLMConfig:
    """Of the agent that answers."""
    llm, _ = settings(trial.config(toy))
    return replace(llm, head="text", window=1) if trial.way == ANSWERS[0] else llm


def held(anew: bool = False) -> int:
    """Most memory that this process has held, bytes; `anew`: from now on, where Linux lets it."""
    if anew:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return training.peak_memory()


def trained(trial: Trial) -> list[float]:
    """Measure a training, in a process that did nothing before."""
    import torch

    from cost import training_steps
    from l4s_gym.agents.llm.train import Trainer

    torch.set_num_threads(1)
    with datasets_in(trial.folder):
        training_steps(Trainer(trial.ids, trial.config(toy=True)), 1, 1)
        before = held(anew=True)
        trainer = Trainer(trial.ids, trial.config())
    took, _ = training_steps(trainer, trial.steps, 1)
    labels, counts = trainer.train.batch_size * trainer.train.length, trainer.counts
    memory = held() - before
    return list(Trained(float(np.median(took)), labels, memory, counts.trainable, counts.total))


def answered(trial: Trial) -> list[float]:
    """Measure answers, in a process that did nothing before."""
    import torch

    import cost
    from l4s_gym.agents.llm import fast
    from l4s_gym.agents.llm.agent import LLMAgent
    from l4s_gym.agents.llm.data import Target
    from l4s_gym.agents.llm.text import TextAgent, build

    torch.set_num_threads(1)

    def times(toy: bool, steps: int) -> tuple[list[float], float]:
        torch.manual_seed(0)
        model: Any = build(model_config(trial, toy)).eval()
        if trial.way == ANSWERS[0]:
            agent = TextAgent(model, Target(0.0))
            took = cost.act(agent, 1, steps)
            return took, agent.counts["tokens"] / agent.counts["asked"]
        if trial.way == ANSWERS[1]:
            return cost.decide(model, 1, steps, whole=True)[0], 0.0
        if trial.way == ANSWERS[3]:
            fast.optimize(model)
        return cost.act(LLMAgent(model, Target(0.0)), 1, steps), 0.0

    times(True, 2)
    before = held(anew=True)
    took, tokens = times(False, trial.steps)
    return [*cost.figures(took).values(), tokens, float(held() - before)]


def measured(place: Place, trials: Sequence[Trial], job: Callable[[Trial], list[float]]) -> list[list[float]]:
    """Results of trials, one after the other; those in the work folder are not measured again."""
    files = [place.work / "paper" / f"trial-{trial.key}.npy" for trial in trials]
    todo = [number for number, file in enumerate(files) if not file.is_file()]
    with place.progress(f"{len(todo)} measurements") as show:
        each = [trials[number] for number in todo]
        for done, (number, found) in enumerate(on_processes(job, each, 1, fresh=lambda _: True), 1):
            if isinstance(found, BaseException):
                raise found
            kept(files[todo[number]], partial(np.array, found))
            show(done / len(todo))
    return [np.load(file).tolist() for file in files]


def trainings(place: Place) -> dict[tuple[str, str], Trained]:
    """What trainings took, by shape and way."""
    pool = read(place.work / "paper", "causal")
    trials = [
        Trial(shape, way, 2 if place.quick else 3 if shape == GPT2 else 30, pool.folder.resolve(), tuple(pool.ids))
        for shape in (SMALL[:1] if place.quick else SHAPES)
        for way in TRAINED
    ]
    found = measured(place, trials, trained)
    return {(trial.shape, trial.way): Trained(*values) for trial, values in zip(trials, found, strict=True)}


def answers(place: Place) -> dict[tuple[str, str], Answered]:
    """What answers took, by shape and way; T5's encoder writes none."""
    trials = [
        Trial(shape, way, 3 if place.quick else 10 if shape == GPT2 else 100, place.work.resolve(), ())
        for shape in (SMALL[:1] if place.quick else SHAPES)
        for way in ANSWERS
        if not (way == ANSWERS[0] and shape.startswith("t5"))
    ]
    found = measured(place, trials, answered)
    return {(trial.shape, trial.way): Answered(*values) for trial, values in zip(trials, found, strict=True)}
