"""Offline reinforcement learning of the LLM agent: logged decisions, conditioned on the return that followed.

The input is a sequence of steps (return-to-go, state, action); at each step the loss is the cross-entropy of the action
that was taken there. Accelerate runs it on one CPU process, on one or several GPUs, and sharded (FSDP).

A checkpoint holds the trained weights, the optimiser, the step, and the labels counted so far. The learning rate
follows from the step; batches, noise and dropout of a step are drawn by generators that are seeded by the seed, the
step and the process. So a resumed run goes on as if it had not been stopped. The weights of a sharded model are written
by Accelerate, each process its part, to a folder beside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from l4s_gym.agents.imbalance import Imbalance
from l4s_gym.agents.llm import saving, tasks
from l4s_gym.agents.llm.backbones import count
from l4s_gym.agents.llm.data import Corpus, Correction, Experience, augment, logits_of, tensors
from l4s_gym.agents.llm.settings import TrainConfig, resolved, settings, to_dict
from l4s_gym.agents.llm.text import build
from l4s_gym.agents.metrics import classification
from l4s_gym.agents.training import (
    CHECKPOINT,
    Progress,
    Say,
    interruptible,
    load_checkpoint,
    peak_memory,
    save_checkpoint,
    start_folder,
)
from l4s_gym.data import minari_io
from l4s_gym.data.files import PathLike, put_in_place
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET

RESULT: Final = "result.json"
LOGS: Final = "logs"
SHARDED: Final = "checkpoint-sharded"
_BETAS: Final = (0.9, 0.95)


def sequence_loss(
    logits: torch.Tensor,
    actions: torch.Tensor,
    counted: torch.Tensor,
    imbalance: Imbalance,
    *,
    normalised: bool = False,
) -> torch.Tensor:
    """Return the sum of the losses of the counted steps.

    Args:
        logits: (B, K, 3).
        actions: Labels (B, K) int64.
        counted: Steps that are part of the loss (B, K) bool.
        imbalance: The loss, with the shares of the data.
        normalised: The logits are log-probabilities, of sum 1 or less: the rest is another outcome's.
    """
    labels = actions[counted]  # (N,)
    log_p = logits.float()[counted] if normalised else torch.log_softmax(logits.float()[counted], -1)
    each = functional.nll_loss(log_p, labels, reduction="none")  # (N,)
    if imbalance.kind == "focal":
        # Not 0 at p = 1: the power's derivative there would be infinite or undefined.
        each = each * (-torch.expm1(-each)).clamp_min(1e-6) ** imbalance.gamma
    elif imbalance.kind == "weights":
        weights = torch.as_tensor(imbalance.weights, dtype=each.dtype, device=each.device)
        each = each * weights[labels]
    return each.sum()


def optimizer_of(model: torch.nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the trained weights; only matrices decay."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in free if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in free if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=train.learning_rate, betas=_BETAS)


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained weights and the buffers of their modules, by name."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


class Trainer:
    """State of a training, and its steps.

    Args:
        sources: Datasets, see `Corpus`.
        given: Configuration, see `settings`.
    """

    def __init__(self, sources: Any, given: Mapping[str, Any]) -> None:
        llm, self.train = settings(given)
        self.writes, self.numbers = llm.head == "text", llm.task is not None and llm.task.head == "regression"
        if self.writes:  # a prompt is of one step, and the shift of another loss cannot be undone in what is written
            self.train.imbalance.check("llm: head = 'text'", "none")
            self.train = replace(self.train, length=1)
        self.accelerator: Any = optional("accelerate", "llm").Accelerator()
        self.main, self.processes = bool(self.accelerator.is_main_process), int(self.accelerator.num_processes)
        self.sharded = str(getattr(self.accelerator.distributed_type, "value", "")) == "FSDP"
        if llm.task is None:
            self.corpus = Corpus(sources, self.train, llm.gamma)
        else:
            self.corpus = Experience(sources, self.train, llm.gamma, llm.task)
        if "return_scale" not in resolved(given)["model"]:
            llm = replace(llm, return_scale=self.corpus.scale)
        self.llm = llm
        self.plain = _plain({"model": to_dict(llm), "train": asdict(self.train)})
        torch.manual_seed(self.train.seed)
        model: Any = build(llm)
        self.counts, self.weights = count(model), model.backbone.weights
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer_of(model, self.train))
        self.step, self.tokens = 0, 0
        self.seen = np.zeros(3)

    # -- one step

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that sets the precision of the model's computations."""
        kind = self.accelerator.device.type
        bf16 = self.train.precision == "bf16"
        if self.train.precision == "auto":
            bf16 = kind == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(kind, torch.bfloat16) if bf16 else nullcontext()

    def update(self) -> dict[str, float]:
        """Run one optimiser step; return its loss and the norm of the gradient."""
        train, process = self.train, int(self.accelerator.process_index)
        drawn, rng = self.corpus.draw(self.step, process)
        batch = tensors(augment(drawn, train.augment, rng), self.accelerator.device)
        if not torch.isfinite(batch["observations"]).all():
            raise L4SError("training data: observations are not all finite: write the dataset again")
        torch.manual_seed(int(rng.integers(1 << 62)))  # of the dropout
        counted = self.counted(batch)
        total, rate = counted.sum().clamp_min(1), train.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimizer.zero_grad()
        parts = np.array_split(np.arange(train.batch_size), train.accumulate)
        loss = torch.zeros((), device=self.accelerator.device)
        for number, rows in enumerate(parts):
            part = {name: values[rows[0] : rows[-1] + 1] for name, values in batch.items()}
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.autocast():
                    logits = logits_of(self.model, part)
                mine = counted[rows[0] : rows[-1] + 1]
                share = self._loss(logits, part["actions"], mine) / total
                self.accelerator.backward(share)
            loss += share.detach()
            tokens = self.accelerator.unwrap_model(self.model).read if self.writes else 0
            self.tokens += tokens or int(part["mask"].sum()) * self.llm.step_tokens
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), train.clip)
        figures = {"loss": float(loss), "gradient_norm": float(norm), "learning_rate": rate}
        if not np.isfinite(figures["loss"]) or not np.isfinite(figures["gradient_norm"]):
            remedy = "give a smaller learning_rate; the last checkpoint is as it was"
            raise L4SError(f"training: the loss or its gradient is not finite at step {self.step}: {remedy}")
        self.optimizer.step()
        if self.llm.task is None:
            self.seen += np.bincount(batch["actions"][counted].cpu().numpy(), minlength=3)
        self.step += 1
        return figures

    def counted(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return which steps are part of the loss (B, K) bool."""
        known = self.train.drop_missing and "missing" in batch
        return batch["mask"] & ~batch["missing"] if known else batch["mask"]

    def _loss(self, told: torch.Tensor, actions: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """Return the sum of the losses of the counted steps; of numbers, their mean absolute errors."""
        if self.numbers:
            return functional.l1_loss(told.float()[counted], actions[counted], reduction="sum") / told.shape[-1]
        return sequence_loss(told, actions, counted, self.corpus.imbalance, normalised=self.writes)

    # -- the held-out episodes

    def correction(self) -> Correction:
        """Return the correction from the labels of all processes so far."""
        seen = torch.tensor(self.seen)
        if self.processes > 1:
            seen = self.accelerator.reduce(seen.to(self.accelerator.device), "sum").cpu()
        return Correction.counted(self.corpus.imbalance, seen.numpy())

    @torch.no_grad()
    def look(self) -> dict[str, Any]:
        """Compute metrics on the held-out episodes; empty if there are none. Each process computes all of them."""
        found, labels, valid = [], [], [np.zeros(0)]
        self.model.eval()
        for drawn, new in self.corpus.held_out(self.train.batch_size):
            batch = tensors(drawn, self.accelerator.device)
            with self.autocast():
                logits = logits_of(self.model, batch)
            chosen = self.counted(batch).cpu().numpy() & new
            told = logits.double() if self.numbers else torch.softmax(logits.double(), -1)
            found.append(told.cpu().numpy()[chosen])
            labels.append(batch["actions"].cpu().numpy()[chosen])
            if self.writes:
                valid.append(logits.double().exp().sum(-1).cpu().numpy()[chosen])
        if not sum(map(len, labels)):
            return {}
        p, actions = np.concatenate(found), np.concatenate(labels)
        if self.llm.task is not None:
            return tasks.metrics(self.llm.task, p, actions)
        metrics = classification(self.correction()(p), actions)
        return metrics | {"valid": float(np.concatenate(valid).mean())} if self.writes else metrics

    # -- all of it

    def save(self, path: Path, **more: Any) -> None:
        """Write a checkpoint with the caller's data `more`; all processes call it.

        Raises:
            L4SError: It cannot be written; the previous one is unchanged.
        """
        seen = torch.tensor(self.seen[None], device=self.accelerator.device)
        if self.processes > 1:
            seen = self.accelerator.gather(seen)
        about = {"step": self.step, "tokens": self.tokens, "seen": seen.cpu().tolist(), **more}
        state = self._same() | _plain(about)
        if self.sharded:
            new = path.with_name(f"{SHARDED}.new")
            self.accelerator.save_state(str(new))
            self.accelerator.wait_for_everyone()
            if self.main:
                put_in_place(new, path.with_name(SHARDED))
        else:
            model = self.accelerator.unwrap_model(self.model)
            state |= {"model": trained(model), "optimizer": self.optimizer.state_dict()}
        if self.main:
            save_checkpoint(path, state)
        self.accelerator.wait_for_everyone()

    def load(self, path: Path) -> dict[str, Any]:
        """Continue from a checkpoint without running code from it; return the caller's data in it.

        Raises:
            L4SError: There is none, it is damaged, or it is of another run.
        """
        state = load_checkpoint(path, **self._same())
        try:
            if self.sharded:
                self.accelerator.load_state(str(path.with_name(SHARDED)))
            else:
                model, weights = self.accelerator.unwrap_model(self.model), state.pop("model")
                if trained(model).keys() != weights.keys():
                    raise KeyError("it has other weights")
                model.load_state_dict(weights, strict=False)
                self.optimizer.load_state_dict(state.pop("optimizer"))
        except (KeyError, RuntimeError, ValueError, OSError) as error:
            raise L4SError(f"{path}: does not fit the model ({error}): train without --resume") from error
        self.step, self.tokens = state["step"], state["tokens"]
        self.seen = np.array(state["seen"][int(self.accelerator.process_index)], np.float64)
        return state

    def _same(self) -> dict[str, Any]:
        """Return what a checkpoint must have in common with the run that continues from it."""
        return {
            "simulator": self.corpus.simulator,
            "config": self.plain,
            "datasets": _plain(self.corpus.about()),
            "processes": self.processes,
        }

    def any(self, asked: bool) -> bool:
        """Return whether any process was asked to stop, so that all do."""
        if self.processes == 1:
            return asked
        flag = torch.tensor([float(asked)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)

    def about(self) -> dict[str, Any]:
        """Return plain data on the training: data, configuration and machine."""
        device, corpus = self.accelerator.device, self.corpus
        gpu = device.type == "cuda"
        with self.autocast() as context:
            precision = "fp32" if context is None else "bf16"
        return {
            "dataset": ", ".join(part.name for part in corpus.parts),
            "datasets": corpus.about(),
            "simulator": corpus.simulator,
            "held_out": corpus.parts[0].held.tolist() if len(corpus.parts) == 1 else [],
            "config": self.plain,
            "decision_interval": self.train.decision_interval,
            "weights": self.weights,
            "steps": self.step,
            "seed": self.train.seed,
            "parameters": self.counts.total,
            "trainable_parameters": self.counts.trainable,
            "tokens": self.tokens,
            "peak_memory_bytes": int(torch.cuda.max_memory_allocated(device)) if gpu else peak_memory(),
            "device": torch.cuda.get_device_name(device) if gpu else "cpu",
            "processes": self.processes,
            "precision": precision,
            "torch": torch.__version__,
            "returns": {
                "target": float(np.quantile(corpus.returns, self.train.quantile)),
                "low": corpus.low,
                "high": corpus.high,
            },
            "correction": _plain(asdict(self.correction())),
        }

    def whole_model(self) -> Any:
        """Return the model with all its weights, on the main process."""
        if not self.sharded:
            return self.accelerator.unwrap_model(self.model)
        state = self.accelerator.get_state_dict(self.model)
        if not self.main:
            return None
        whole = build(self.llm)
        whole.load_state_dict(state)
        return whole


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


class _Run:
    """A training from its start or checkpoint to the agent's folder, with its messages and logs."""

    def __init__(self, trainer: Trainer, out: Path, say: Say | None) -> None:
        self.trainer, self.out, self._say = trainer, out, say
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self._board: Any = None

    def say(self, text: str) -> None:
        """Tell the user, once for all processes."""
        if self._say is not None and self.trainer.main:
            self._say(text)

    @contextmanager
    def logs(self) -> Iterator[None]:
        """Open TensorBoard's file, if TensorBoard is installed, from the next step on."""
        if self.trainer.main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.say("tensorboard is not installed: no logs for it are written (pip install tensorboard)")
            else:
                self._board = SummaryWriter(str(self.out / LOGS), purge_step=self.trainer.step)
        try:
            yield
        finally:
            if self._board is not None:
                self._board.close()

    def log(self, part: str, figures: Mapping[str, Any]) -> None:
        """Log the numbers among the figures, if there is a file."""
        if self._board is not None:
            for name, value in figures.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{part}/{name}", value, self.trainer.step)

    def go(self, *, resume: bool, progress: Progress | None) -> dict[str, Any]:
        """Train and save; return the result."""
        path = self._open(resume)
        trainer, last = self.trainer, self.trainer.train.steps
        start, before = time.monotonic(), self.seconds
        first, fresh = trainer.step, trainer.tokens
        with interruptible() as stop, self.logs():
            while trainer.step < last:
                figures = trainer.update()
                spent = time.monotonic() - start
                self.seconds = before + spent
                done = trainer.step == last
                self.log("train", figures)
                if done or trainer.step % trainer.train.eval_every == 0:
                    self._evaluate(figures, spent / (trainer.step - first) * (last - trainer.step))
                if progress is not None:
                    progress(trainer.step / last)
                stopped = trainer.any(stop.asked)
                if stopped or done or trainer.step % trainer.train.checkpoint_every == 0:
                    trainer.save(path, seconds=self.seconds, history=self.history)
                if stopped and not done:
                    self.say(f"stopped after step {trainer.step}: go on with --resume")
                    raise KeyboardInterrupt
        seconds = time.monotonic() - start
        speed = (trainer.tokens - fresh) * trainer.processes / seconds if seconds else 0.0
        return self._finish(speed)

    def _open(self, resume: bool) -> Path:
        """Prepare the folder, or load its checkpoint; return the checkpoint's path."""
        trainer = self.trainer
        path = start_folder(self.out, resume=resume) if trainer.main or resume else self.out / CHECKPOINT
        trainer.accelerator.wait_for_everyone()
        if resume:
            about = trainer.load(path)
            self.seconds, self.history = about["seconds"], about["history"]
            self.say(f"goes on after step {trainer.step}")
        shares = ", ".join(f"{100 * share:.2f} %" for share in trainer.corpus.shares)
        actions = f" (enqueue, drop, mark: {shares})" if shares else ""
        self.say(
            f"{trainer.counts.trainable:,} of {trainer.counts.total:,} parameters are trained, "
            f"on {sum(int(part.ends[-1]) for part in trainer.corpus.parts):,} steps{actions}"
        )
        return path

    def _evaluate(self, figures: Mapping[str, float], left_s: float) -> None:
        """Evaluate on the held-out episodes, if there are any; log and report the metrics."""
        trainer, held_out = self.trainer, self.trainer.look()
        self.history.append({"step": trainer.step, **figures, "metrics": held_out})
        self.log("held_out", held_out)
        text = f"step {trainer.step}/{trainer.train.steps}, loss {figures['loss']:.4f}"
        if held_out and trainer.llm.task is not None:
            text += "; held out: " + saving.listed(held_out)
        elif held_out:
            recall = " ".join("-" if value is None else f"{value:.3f}" for value in held_out["recall"].values())
            text += (
                f"; held out: cross-entropy {held_out['cross_entropy']:.4f}, accuracy {held_out['accuracy']:.4f} "
                f"(majority {held_out['majority']:.4f}), macro-F1 {held_out['macro_f1']:.3f}, recall {recall}"
            )
            if "valid" in held_out:
                text += f", valid answers {100 * held_out['valid']:.2f} %"
        self.say(f"{text}; {left_s:.0f} s left")

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
            kept = {name: value for name, value in result.items() if name != "history"}
            files = {RESULT: json.dumps(result, indent=2) + "\n"}
            saving.save(model, self.out, training=kept, card=saving.training_card(result), files=files)
            self.say(f"agent: {self.out}")
        trainer.accelerator.wait_for_everyone()
        return result


def _of_intervals(sources: Any) -> tuple[Any, str]:
    """Return the dataset and its form if its actions are of an interval form; else no form.

    Raises:
        L4SError: It is one of several.
    """
    given = list(sources) if isinstance(sources, Mapping | Sequence) and not isinstance(sources, str) else [sources]
    found = [minari_io.load(each) if isinstance(each, str) else each for each in given]
    other = [each for each in found if minari_io.form_of(each) != PACKET]
    if not other:
        return None, ""
    if len(found) > 1:
        raise L4SError(f"dataset {other[0].id!r}: is of control intervals: train on it alone")
    return other[0], minari_io.form_of(other[0])


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
        sources: A dataset, several, or a mapping of ids to weights; of control intervals one alone
            (`l4s_gym.agents.llm.interval_train`); of another task its episodes (`l4s_gym.agents.llm.tasks`).
        given: Configuration, see `settings`.
        out: Folder of the agent; it first holds the checkpoint, and at the end also the logs and `RESULT`.
        resume: Continue from the checkpoint in `out`, as if the run had not been stopped.
        progress: Called after each step with the share of the training that is done.
        say: Told what happens, line by line.

    Returns:
        The result, as in `RESULT`.

    Raises:
        L4SError: A setting, dataset or folder cannot be used, an extra is missing, or the loss is not finite.
        KeyboardInterrupt: It was stopped by Ctrl-C or SIGTERM, and left a checkpoint.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    if others := isinstance(sources, Sequence) and all(isinstance(each, Trajectory) for each in sources):
        given = tasks.configured(given, sources)
    dataset, form = (None, "") if others else _of_intervals(sources)
    with torch.random.fork_rng(devices):  # the caller's random state stays unchanged
        if form:
            from l4s_gym.agents.llm import interval_train

            llm, shared = settings(given)
            llm, simulator = replace(llm, form=form), minari_io.check_simulator(dataset)
            return interval_train.train(
                dataset, llm, shared.seed, Path(out), simulator=simulator, resume=resume, progress=progress, say=say
            )
        return _Run(Trainer(sources, given), Path(out), say).go(resume=resume, progress=progress)
