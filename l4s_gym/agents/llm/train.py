"""Data-driven reinforcement learning of the LLM agent: logged decisions, conditioned on the return that followed.

A sequence of steps (return-to-go, state, action) goes in, and at each step the loss is the cross-entropy of the action
that was taken there. Accelerate runs it on one CPU process, on one or several GPUs, and sharded (FSDP).
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from l4s_gym.agents.llm import checkpoint, config, storage
from l4s_gym.agents.llm.augment import Batch, augment
from l4s_gym.agents.llm.corpus import Corpus
from l4s_gym.agents.llm.losses import Correction, sequence_loss
from l4s_gym.agents.llm.model import DecisionModel
from l4s_gym.agents.llm.schedule import TrainConfig, from_dict, warmup_cosine
from l4s_gym.agents.metrics import classification
from l4s_gym.agents.training import CHECKPOINT, interruptible, start_folder
from l4s_gym.data.files import PathLike, atomic_write
from l4s_gym.data.minari_io import put_in_place
from l4s_gym.errors import L4SError, unknown

Progress = Callable[[float], None]
Say = Callable[[str], None]

RESULT: Final = "result.json"
LOGS: Final = "logs"
TABLES: Final = ("model", "train")
_BETAS: Final = (0.9, 0.95)


def _accelerate() -> Any:
    try:
        return importlib.import_module("accelerate")
    except ImportError as error:
        raise L4SError(f"accelerate: cannot be imported ({error}): pip install 'l4s-gym[llm]'") from error


def settings(given: Mapping[str, Any]) -> tuple[config.LLMConfig, TrainConfig]:
    """The parts of a configuration.

    Args:
        given: The tables `model` (`LLMConfig`) and `train` (`TrainConfig`); a `preset`, which names one of the tables
            in `presets`, whose settings then come last.

    Raises:
        L4SError: Another name, or a setting that is wrong.
    """
    tables = resolved(given)
    return config.from_dict(tables["model"], "model"), from_dict(TrainConfig, tables["train"], "train")


def resolved(given: Mapping[str, Any]) -> dict[str, Any]:
    """The tables `model` and `train` of a configuration, the preset's settings put in."""
    for name in given:
        if name not in (*TABLES, "preset", "presets"):
            raise unknown("table of the configuration", name, (*TABLES, "preset", "presets"))
    found: dict[str, Any] = {name: given.get(name, {}) for name in TABLES}
    presets = given.get("presets", {})
    chosen = given.get("preset", "")
    if chosen:
        if chosen not in presets:
            raise unknown("preset", chosen, tuple(presets))
        for name, table in presets[chosen].items():
            if name not in TABLES:
                raise unknown(f"table of preset {chosen!r}", name, TABLES)
            found[name] = _merged(found[name], table)
    for name in TABLES:
        if not isinstance(found[name], Mapping):
            raise L4SError(f"configuration: {name} = {found[name]!r}: give a table")
    return found


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base`, with what `more` says instead; tables are merged."""
    merged = dict(base)
    for name, value in more.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def optimizer_of(model: torch.nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the weights that are trained; only matrices decay."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in free if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in free if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=train.learning_rate, betas=_BETAS)


def tensors(batch: Batch, device: Any) -> dict[str, torch.Tensor]:
    """A batch of `Windows` on a device."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in batch.items()}


def logits_of(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits (B, K, 3) of a batch of `Windows`."""
    out: torch.Tensor = model(
        batch["returns_to_go"],
        batch["observations"],
        batch["actions"],
        batch["timesteps"],
        batch["mask"],
        batch["missing"],
    )
    return out


class Trainer:
    """A training run.

    Args:
        sources: Datasets, see `Corpus`.
        given: Configuration, see `settings`.
        out: Folder of the run, and of the agent when it is done.
        say: Told what happens, line by line.
    """

    def __init__(self, sources: Any, given: Mapping[str, Any], out: PathLike, say: Say | None = None) -> None:
        llm, self.train = settings(given)
        if llm.head != "linear":
            raise L4SError(f'model: head {llm.head!r} has no logits of actions: give head = "linear"')
        self.accelerator: Any = _accelerate().Accelerator()
        self.main = bool(self.accelerator.is_main_process)
        self.out, self._say = Path(out), say
        self.path = self.out / CHECKPOINT
        self.corpus = Corpus(sources, self.train, llm.gamma)
        if "return_scale" not in resolved(given)["model"]:
            llm = replace(llm, return_scale=self.corpus.scale)
        self.llm = llm
        self.plain = _plain({"model": config.to_dict(llm), "train": asdict(self.train)})
        torch.manual_seed(self.train.seed)
        model = DecisionModel(llm)
        self.counts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer_of(model, self.train))
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.seen = np.zeros(3)
        self.history: list[dict[str, Any]] = []
        self._writer: Any = None

    # -- one step

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which the model computes."""
        kind = self.accelerator.device.type
        bf16 = self.train.precision == "bf16"
        if self.train.precision == "auto":
            bf16 = kind == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(kind, torch.bfloat16) if bf16 else nullcontext()

    def update(self) -> dict[str, float]:
        """One optimiser step; its loss and the norm of the gradient."""
        train, process = self.train, int(self.accelerator.process_index)
        drawn, rng = self.corpus.draw(self.step, process)
        batch = tensors(augment(drawn, train.augment, rng), self.accelerator.device)
        if not torch.isfinite(batch["observations"]).all():
            raise L4SError("training data: observations are not all finite: write the dataset again")
        torch.manual_seed(int(rng.integers(1 << 62)))  # of the dropout
        counted = self.counted(batch)
        total = counted.sum().clamp_min(1)
        rate = train.learning_rate * warmup_cosine(train.steps, train.warmup, train.final)(self.step)
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
                share = sequence_loss(logits, part["actions"], mine, self.corpus.imbalance) / total
                self.accelerator.backward(share)
            loss += share.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), train.clip)
        figures = {"loss": float(loss), "gradient_norm": float(norm), "learning_rate": rate}
        if not np.isfinite(figures["loss"]) or not np.isfinite(figures["gradient_norm"]):
            remedy = "give a smaller learning_rate; the last checkpoint is as it was"
            raise L4SError(f"training: the loss or its gradient is not finite at step {self.step}: {remedy}")
        self.optimizer.step()
        self.seen += np.bincount(batch["actions"][counted].cpu().numpy(), minlength=3)
        self.tokens += int(batch["mask"].sum()) * self.llm.step_tokens
        self.step += 1
        return figures

    def counted(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Steps that are part of the loss (B, K) bool."""
        return batch["mask"] & ~batch["missing"] if self.train.drop_missing else batch["mask"]

    # -- the held-out episodes

    def correction(self) -> Correction:
        """From the labels of all processes so far."""
        seen = torch.tensor(self.seen)
        if self.accelerator.num_processes > 1:
            seen = self.accelerator.reduce(seen.to(self.accelerator.device), "sum").cpu()
        return Correction.counted(self.corpus.imbalance, seen.numpy())

    @torch.no_grad()
    def look(self) -> dict[str, Any]:
        """Metrics on the held-out episodes; empty if there are none. Each process computes all of them."""
        found, labels = [np.zeros((0, 3))], [np.zeros(0, np.int64)]
        self.model.eval()
        for drawn, new in self.corpus.held_out(self.train.batch_size):
            batch = tensors(drawn, self.accelerator.device)
            with self.autocast():
                logits = logits_of(self.model, batch)
            chosen = self.counted(batch).cpu().numpy() & new
            found.append(torch.softmax(logits.double(), -1).cpu().numpy()[chosen])
            labels.append(batch["actions"].cpu().numpy()[chosen])
        p, actions = np.concatenate(found), np.concatenate(labels)
        if not len(actions):
            return {}
        return classification(self.correction()(p), actions)

    # -- the run

    def run(self, *, resume: bool = False, progress: Progress | None = None) -> dict[str, Any]:
        """Train, from the start or from a checkpoint, and save the agent; the result as plain data.

        Raises:
            L4SError: The folder cannot be used, or training fails.
            KeyboardInterrupt: It was stopped; there is a checkpoint of the last step.
        """
        self._open(resume)
        start, before = time.monotonic(), self.seconds
        first, fresh = self.step, self.tokens
        with interruptible() as stop, self._logs():
            while self.step < self.train.steps:
                figures = self.update()
                self.seconds = before + time.monotonic() - start
                done = self.step == self.train.steps
                self._log({f"train/{name}": value for name, value in figures.items()})
                if done or self.step % self.train.eval_every == 0:
                    self._evaluate(figures, self._left(start, first))
                if progress is not None:
                    progress(self.step / self.train.steps)
                stopped = self._any(stop.asked)
                if stopped or done or self.step % self.train.checkpoint_every == 0:
                    self._checkpoint()
                if stopped and not done:
                    self.say(f"stopped after step {self.step}: go on with --resume")
                    raise KeyboardInterrupt
        seconds = time.monotonic() - start
        speed = (self.tokens - fresh) * self.accelerator.num_processes / seconds if seconds else 0.0
        return self._finish(speed)

    def say(self, text: str) -> None:
        """Tell the user, once and not from each process."""
        if self._say is not None and self.main:
            self._say(text)

    def _open(self, resume: bool) -> None:
        path = start_folder(self.out, resume=resume) if self.main or resume else self.path
        self.accelerator.wait_for_everyone()
        if resume:
            about = checkpoint.load(path, self.accelerator, self.model, self.optimizer, **self._same())
            self.step, self.tokens, self.seconds = about["step"], about["tokens"], about["seconds"]
            self.seen = np.array(about["seen"][int(self.accelerator.process_index)], np.float64)
            self.history = about["history"]
            self.say(f"goes on after step {self.step}")
        shares = ", ".join(f"{100 * share:.2f} %" for share in self.corpus.shares)
        self.say(
            f"{self.counts['trainable_parameters']:,} of {self.counts['parameters']:,} parameters are trained, on "
            f"{sum(int(part.ends[-1]) for part in self.corpus.parts):,} steps (enqueue, drop, mark: {shares})"
        )

    def _same(self) -> dict[str, Any]:
        """What a checkpoint has to have in common with the run that goes on from it."""
        processes = int(self.accelerator.num_processes)
        return {"config": self.plain, "datasets": _plain(self.corpus.about()), "processes": processes}

    def _checkpoint(self) -> None:
        seen = torch.tensor(self.seen[None], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            seen = self.accelerator.gather(seen)
        counts = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds, "seen": seen.cpu().tolist()}
        about = self._same() | _plain(counts | {"history": self.history})
        checkpoint.save(self.path, self.accelerator, self.model, self.optimizer, about)

    def _any(self, asked: bool) -> bool:
        """Whether any process was asked to stop, so that all do."""
        if self.accelerator.num_processes == 1:
            return asked
        flag = torch.tensor([float(asked)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)

    def _left(self, start: float, first: int) -> float:
        """Seconds that the rest will take."""
        return (time.monotonic() - start) / max(self.step - first, 1) * (self.train.steps - self.step)

    def _evaluate(self, figures: Mapping[str, float], left: float) -> None:
        found = self.look()
        self.history.append({"step": self.step, **figures, "metrics": found})
        text = f"step {self.step}/{self.train.steps}, loss {figures['loss']:.4f}"
        if found:
            self._log({f"held_out/{name}": value for name, value in found.items() if isinstance(value, float)})
            recall = " ".join("-" if value is None else f"{value:.3f}" for value in found["recall"].values())
            text += (
                f"; held out: cross-entropy {found['cross_entropy']:.4f}, accuracy {found['accuracy']:.4f} "
                f"(majority {found['majority']:.4f}), macro-F1 {found['macro_f1']:.3f}, recall {recall}"
            )
        self.say(f"{text}; {left:.0f} s left")

    @contextmanager
    def _logs(self) -> Iterator[None]:
        """TensorBoard's file, where TensorBoard is installed."""
        if self.main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.say("tensorboard is not installed: no logs for it are written (pip install tensorboard)")
            else:
                self._writer = SummaryWriter(str(self.out / LOGS), purge_step=self.step)
        try:
            yield
        finally:
            if self._writer is not None:
                self._writer.close()
            self._writer = None

    def _log(self, figures: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, self.step)

    # -- the agent

    def _finish(self, speed: float) -> dict[str, Any]:
        device = self.accelerator.device
        cuda = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) if cuda else _peak_memory()
        with self.autocast() as context:
            precision = "fp32" if context is None else "bf16"
        held = self.history[-1]["metrics"] if self.history else {}
        result: dict[str, Any] = {
            "dataset": ", ".join(part.name for part in self.corpus.parts),
            "datasets": self.corpus.about(),
            "held_out": self.corpus.parts[0].held.tolist() if len(self.corpus.parts) == 1 else [],
            "config": self.plain,
            "steps": self.step,
            "seed": self.train.seed,
            "metrics": held,
            "history": self.history,
            **self.counts,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "tokens_per_s": speed,
            "peak_memory_bytes": int(peak),
            "device": torch.cuda.get_device_name(device) if cuda else "cpu",
            "processes": int(self.accelerator.num_processes),
            "precision": precision,
            "torch": torch.__version__,
            "returns": {
                "target": float(np.quantile(self.corpus.returns, self.train.quantile)),
                "low": self.corpus.low,
                "high": self.corpus.high,
            },
            "correction": self.correction().as_dict(),
        }
        model = self._whole_model()
        if self.main:
            kept = {name: value for name, value in result.items() if name != "history"}
            self._place(model, kept, result)
            self.say(f"agent: {self.out}")
        self.accelerator.wait_for_everyone()
        return result

    def _place(self, model: Any, kept: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Put the agent's folder, with logs and result, in the place of the checkpoint's."""
        target = Path(os.path.realpath(self.out))
        new = target.with_name(f".{target.name}.agent")
        shutil.rmtree(new, ignore_errors=True)
        try:
            storage.save(model, new, training=kept, card=_card(result))
            with atomic_write(new / RESULT) as file:
                file.write(json.dumps(result, indent=2).encode() + b"\n")
            if (target / LOGS).is_dir():
                shutil.copytree(target / LOGS, new / LOGS)
            put_in_place(new, target, overwrite=True)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _whole_model(self) -> Any:
        """The model with all its weights, on the main process."""
        if not checkpoint.sharded(self.accelerator):
            return self.accelerator.unwrap_model(self.model)
        state = self.accelerator.get_state_dict(self.model)
        if not self.main:
            return None
        whole = DecisionModel(self.llm)
        whole.load_state_dict(state)
        return whole


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _peak_memory() -> int:
    """Of this process, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _card(result: Mapping[str, Any]) -> str:
    """What was trained on what, and what came out, as Markdown."""
    rows = [f"| {each['dataset']} | {each['weight']:.3g} | {each['train_steps']:,} |" for each in result["datasets"]]
    lines = ["## Trained on", "| dataset | weight | steps |", "|---|---|---|", *rows, ""]
    held = result["metrics"]
    if held:
        recall = ", ".join(f"{name} {value:.3f}" for name, value in held["recall"].items() if value is not None)
        lines += [
            "## On held-out episodes",
            f"Of {held['steps']:,} steps: cross-entropy {held['cross_entropy']:.4f} nats, accuracy "
            f"{held['accuracy']:.4f} (always the most frequent action: {held['majority']:.4f}), macro-F1 "
            f"{held['macro_f1']:.3f}; recall: {recall}.",
            "",
        ]
    lines += [
        f"{result['steps']:,} steps in {result['seconds']:.0f} s on {result['device']} "
        f"({result['precision']}, {result['tokens_per_s']:,.0f} tokens/s, {result['peak_memory_bytes'] / 1e9:.2f} GB).",
        "",
    ]
    return "\n".join(lines)


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
        return Trainer(sources, given, out, say).run(resume=resume, progress=progress)


@contextmanager
def _own_generators() -> Iterator[None]:
    """Leave the caller's random numbers as they are."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
