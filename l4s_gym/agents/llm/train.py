"""Data-driven reinforcement learning of the LLM agent: logged decisions, conditioned on the return that followed.

A sequence of steps (return-to-go, state, action) goes in, and at each step the loss is the cross-entropy of the action
that was taken there. Accelerate runs it on one CPU process, on one or several GPUs, and sharded (FSDP).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from l4s_gym.agents.llm.journal import Journal
from l4s_gym.agents.llm.outcome import RESULT, place
from l4s_gym.agents.llm.settings import settings
from l4s_gym.agents.llm.trainer import Trainer
from l4s_gym.agents.training import CHECKPOINT, Progress, Say, interruptible, start_folder
from l4s_gym.data.files import PathLike

__all__ = ["RESULT", "Progress", "Say", "Trainer", "settings", "train"]


def train(
    sources: Any,
    given: Mapping[str, Any],
    out: PathLike,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Train an LLM agent and save it.

    Args:
        sources: A dataset, several, or a mapping of ids to weights.
        given: Configuration, see `settings`.
        out: Folder of the agent; until it is done it holds the checkpoint, and afterwards the logs and `RESULT` too.
        resume: Go on from the checkpoint in `out`, as if the run had not been stopped.
        progress: Called after each step with the share of the training that is done.
        say: Told what happens, line by line.

    Returns:
        The result, as `RESULT` has it.

    Raises:
        L4SError: A setting, dataset or folder cannot be used, an extra is missing, or the loss is not finite.
        KeyboardInterrupt: It was stopped by Ctrl-C or SIGTERM, and left a checkpoint.
    """
    with _own_generators():
        return _Run(Trainer(sources, given), Path(out), say).go(resume=resume, progress=progress)


@contextmanager
def _own_generators() -> Iterator[None]:
    """Leave the caller's random numbers as they are."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


class _Run:
    """A training from its start, or from its checkpoint, to the agent's folder."""

    def __init__(self, trainer: Trainer, out: Path, say: Say | None) -> None:
        self.trainer, self.out = trainer, out
        self.journal = Journal(out, say, main=trainer.main)
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []

    def go(self, *, resume: bool, progress: Progress | None) -> dict[str, Any]:
        """Train and save; the result."""
        path = self._open(resume)
        trainer, last = self.trainer, self.trainer.train.steps
        start, before = time.monotonic(), self.seconds
        first, fresh = trainer.step, trainer.tokens
        with interruptible() as stop, self.journal.open(trainer.step):
            while trainer.step < last:
                figures = trainer.update()
                spent = time.monotonic() - start
                self.seconds = before + spent
                done = trainer.step == last
                self.journal.log("train", figures, trainer.step)
                if done or trainer.step % trainer.train.eval_every == 0:
                    self._evaluate(figures, spent / (trainer.step - first) * (last - trainer.step))
                if progress is not None:
                    progress(trainer.step / last)
                stopped = trainer.any(stop.asked)
                if stopped or done or trainer.step % trainer.train.checkpoint_every == 0:
                    trainer.save(path, seconds=self.seconds, history=self.history)
                if stopped and not done:
                    self.journal.say(f"stopped after step {trainer.step}: go on with --resume")
                    raise KeyboardInterrupt
        seconds = time.monotonic() - start
        speed = (trainer.tokens - fresh) * trainer.processes / seconds if seconds else 0.0
        return self._finish(speed)

    def _open(self, resume: bool) -> Path:
        """Prepare the folder, or go on from its checkpoint, whose path it gives."""
        trainer = self.trainer
        path = start_folder(self.out, resume=resume) if trainer.main or resume else self.out / CHECKPOINT
        trainer.accelerator.wait_for_everyone()
        if resume:
            about = trainer.load(path)
            self.seconds, self.history = about["seconds"], about["history"]
            self.journal.say(f"goes on after step {trainer.step}")
        shares = ", ".join(f"{100 * share:.2f} %" for share in trainer.corpus.shares)
        self.journal.say(
            f"{trainer.counts['trainable_parameters']:,} of {trainer.counts['parameters']:,} parameters are trained, "
            f"on {sum(int(part.ends[-1]) for part in trainer.corpus.parts):,} steps (enqueue, drop, mark: {shares})"
        )
        return path

    def _evaluate(self, figures: Mapping[str, float], left_s: float) -> None:
        trainer, found = self.trainer, self.trainer.look()
        self.history.append({"step": trainer.step, **figures, "metrics": found})
        self.journal.evaluated(trainer.step, trainer.train.steps, figures["loss"], found, left_s)

    def _finish(self, tokens_per_s: float) -> dict[str, Any]:
        trainer = self.trainer
        result = {
            **trainer.about(),
            "metrics": self.history[-1]["metrics"] if self.history else {},
            "history": self.history,
            "seconds": self.seconds,
            "tokens_per_s": tokens_per_s,
        }
        model = trainer.whole_model()
        if trainer.main:
            place(self.out, model, result)
            self.journal.say(f"agent: {self.out}")
        trainer.accelerator.wait_for_everyone()
        return result
