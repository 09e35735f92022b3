"""The steps of a training of the LLM agent: batches, losses, the model's weights, metrics and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from l4s_gym.agents.llm import checkpoint, config
from l4s_gym.agents.llm.augment import Batch, augment
from l4s_gym.agents.llm.corpus import Corpus
from l4s_gym.agents.llm.losses import Correction, sequence_loss
from l4s_gym.agents.llm.schedule import TrainConfig, warmup_cosine
from l4s_gym.agents.llm.settings import resolved, settings
from l4s_gym.agents.llm.text import build
from l4s_gym.agents.metrics import classification
from l4s_gym.agents.training import peak_memory
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional

_BETAS: Final = (0.9, 0.95)


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
    """What a training has learnt so far, and how it learns more.

    Args:
        sources: Datasets, see `Corpus`.
        given: Configuration, see `settings`.
    """

    def __init__(self, sources: Any, given: Mapping[str, Any]) -> None:
        llm, self.train = settings(given)
        self.writes = llm.head == "text"
        if self.writes:  # a prompt is of one step, and the shift of another loss cannot be undone in what is written
            self.train.imbalance.check("llm: head = 'text'", "none")
            self.train = replace(self.train, length=1)
        self.accelerator: Any = optional("accelerate", "llm").Accelerator()
        self.main, self.processes = bool(self.accelerator.is_main_process), int(self.accelerator.num_processes)
        self.corpus = Corpus(sources, self.train, llm.gamma)
        if "return_scale" not in resolved(given)["model"]:
            llm = replace(llm, return_scale=self.corpus.scale)
        self.llm = llm
        self.plain = _plain({"model": config.to_dict(llm), "train": asdict(self.train)})
        torch.manual_seed(self.train.seed)
        model: Any = build(llm)
        self.counts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer_of(model, self.train))
        self.step, self.tokens = 0, 0
        self.seen = np.zeros(3)

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
                imbalance = self.corpus.imbalance
                share = sequence_loss(logits, part["actions"], mine, imbalance, normalised=self.writes) / total
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
        self.seen += np.bincount(batch["actions"][counted].cpu().numpy(), minlength=3)
        self.step += 1
        return figures

    def counted(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Steps that are part of the loss (B, K) bool."""
        return batch["mask"] & ~batch["missing"] if self.train.drop_missing else batch["mask"]

    # -- the held-out episodes

    def correction(self) -> Correction:
        """From the labels of all processes so far."""
        seen = torch.tensor(self.seen)
        if self.processes > 1:
            seen = self.accelerator.reduce(seen.to(self.accelerator.device), "sum").cpu()
        return Correction.counted(self.corpus.imbalance, seen.numpy())

    @torch.no_grad()
    def look(self) -> dict[str, Any]:
        """Metrics on the held-out episodes; empty if there are none. Each process computes all of them."""
        found, labels, valid = [np.zeros((0, 3))], [np.zeros(0, np.int64)], [np.zeros(0)]
        self.model.eval()
        for drawn, new in self.corpus.held_out(self.train.batch_size):
            batch = tensors(drawn, self.accelerator.device)
            with self.autocast():
                logits = logits_of(self.model, batch)
            chosen = self.counted(batch).cpu().numpy() & new
            found.append(torch.softmax(logits.double(), -1).cpu().numpy()[chosen])
            labels.append(batch["actions"].cpu().numpy()[chosen])
            if self.writes:
                valid.append(logits.double().exp().sum(-1).cpu().numpy()[chosen])
        p, actions = np.concatenate(found), np.concatenate(labels)
        if not len(actions):
            return {}
        metrics = classification(self.correction()(p), actions)
        return metrics | {"valid": float(np.concatenate(valid).mean())} if self.writes else metrics

    # -- all of it

    def save(self, path: Path, **more: Any) -> None:
        """Write a checkpoint, with what more the caller wants to know when it goes on; all processes call it."""
        seen = torch.tensor(self.seen[None], device=self.accelerator.device)
        if self.processes > 1:
            seen = self.accelerator.gather(seen)
        about = {"step": self.step, "tokens": self.tokens, "seen": seen.cpu().tolist(), **more}
        checkpoint.save(path, self.accelerator, self.model, self.optimizer, self._same() | _plain(about))

    def load(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint; what more was written into it."""
        about = checkpoint.load(path, self.accelerator, self.model, self.optimizer, **self._same())
        self.step, self.tokens = about["step"], about["tokens"]
        self.seen = np.array(about["seen"][int(self.accelerator.process_index)], np.float64)
        return about

    def _same(self) -> dict[str, Any]:
        """What a checkpoint has to have in common with the run that goes on from it."""
        return {
            "simulator": self.corpus.simulator,
            "config": self.plain,
            "datasets": _plain(self.corpus.about()),
            "processes": self.processes,
        }

    def any(self, asked: bool) -> bool:
        """Whether any process was asked to stop, so that all do."""
        if self.processes == 1:
            return asked
        flag = torch.tensor([float(asked)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)

    def about(self) -> dict[str, Any]:
        """What was trained, on what and where, as plain data."""
        device, corpus = self.accelerator.device, self.corpus
        with self.autocast() as context:
            precision = "fp32" if context is None else "bf16"
        return {
            "dataset": ", ".join(part.name for part in corpus.parts),
            "datasets": corpus.about(),
            "simulator": corpus.simulator,
            "held_out": corpus.parts[0].held.tolist() if len(corpus.parts) == 1 else [],
            "config": self.plain,
            "stride": self.train.stride,
            "steps": self.step,
            "seed": self.train.seed,
            **self.counts,
            "tokens": self.tokens,
            "peak_memory_bytes": _peak_memory(device),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "processes": self.processes,
            "precision": precision,
            "torch": torch.__version__,
            "returns": {
                "target": float(np.quantile(corpus.returns, self.train.quantile)),
                "low": corpus.low,
                "high": corpus.high,
            },
            "correction": self.correction().as_dict(),
        }

    def whole_model(self) -> Any:
        """The model with all its weights, on the main process."""
        if not checkpoint.sharded(self.accelerator):
            return self.accelerator.unwrap_model(self.model)
        state = self.accelerator.get_state_dict(self.model)
        if not self.main:
            return None
        whole = build(self.llm)
        whole.load_state_dict(state)
        return whole


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _peak_memory(device: torch.device) -> int:
    """Of the device, or of this process; bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_memory()
