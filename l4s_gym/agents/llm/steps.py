"""Steps of the compression of a model of control intervals, and the model on its way.

A step changes the model, the number of decisions that it reads, or the bits of its layers. Each learns from what the
agent decided in closed loop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from l4s_gym.agents import training as shared
from l4s_gym.agents.llm.backbones import cut
from l4s_gym.agents.llm.exported import BITS, BLOCK, coarse, coarse_input, linear
from l4s_gym.agents.llm.intervals import IntervalModel
from l4s_gym.agents.llm.settings import BackboneConfig, LoraConfig, TrainConfig
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional

_Share = Annotated[float, Meta(ge=0.0, lt=1.0)]
_Size = Annotated[int, Meta(ge=1)]
AT_ONCE: Final = 128
"""Windows of a batch that nothing is learnt from."""
_ATTRIBUTED: Final = 512
"""Windows by which parts are judged."""


class Work:
    """A model on its way.

    Attributes:
        model: The model, without adapters, and all of its layers are linear ones.
        window: Decisions that it reads.
        bits: Bits of the layers that are not in float32, by name.
    """

    def __init__(self, model: IntervalModel, tokens: Tensor, lengths: Tensor, actions: Tensor, held: Tensor) -> None:
        self.model, self.window = model, model.config.intervals.window
        self.tokens, self.lengths, self.actions = tokens, lengths, actions
        self.learned, self.held = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
        self.bits: dict[str, int] = {}

    def windows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last decisions of some windows, moved to their start, and their number."""
        lengths = self.lengths[rows].clamp_max(self.window)
        at = (self.lengths[rows] - lengths)[:, None] + torch.arange(self.window)
        at = at.clamp_max(self.tokens.shape[1] - 1)
        return self.tokens[rows[:, None], at], lengths

    def told(self, rows: Tensor) -> Tensor:
        """Return the model's actions in some windows (B, K)."""
        found: Tensor = self.model(*self.windows(rows))
        return found

    @torch.no_grad()
    def loss(self, model: Callable[..., Tensor] | None = None, rows: Tensor | None = None) -> float:
        """Return the share of the variance of the agent's held-out decisions that is missed."""
        rows, wrong = self.held if rows is None else rows, 0.0
        for part in torch.split(rows, AT_ONCE):
            found = (model or self.model)(*self.windows(part))
            wrong += float(((found - self.actions[part]) ** 2).sum())
        return wrong / float(((self.actions[rows] - self.actions[rows].mean(0)) ** 2).sum())

    def some(self, n: int, seed: int) -> Tensor:
        """Draw windows to learn from."""
        drawn = np.random.default_rng(seed).integers(len(self.learned), size=n)
        return self.learned[torch.as_tensor(drawn)]

    def attribution(self, units: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        """Return how much the decisions depend on parts of the inputs of some layers.

        The mean over windows and random directions of the decisions of the squared derivative by a factor of the part.

        Args:
            units: Number of parts of the inputs of each of these layers, by name.
            seed: Of windows and directions.
        """
        layers = {name: layer for name, layer in linear(self.model).items() if name in units}
        sums = {name: torch.zeros(count) for name, count in units.items()}
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.split(self.some(_ATTRIBUTED, seed), AT_ONCE):
            factors = {name: torch.ones(len(rows), len(each), requires_grad=True) for name, each in sums.items()}
            hooks = [
                layer.register_forward_pre_hook(_scaled(factors[name], layer.in_features))
                for name, layer in layers.items()
            ]
            told = self.told(rows)
            direction = torch.randint(0, 2, told.shape, generator=generator) * 2.0 - 1.0
            found = torch.autograd.grad((told * direction).sum(), list(factors.values()))
            for hook in hooks:
                hook.remove()
            for name, each in zip(factors, found, strict=True):
                sums[name] += (each**2).sum(0)
        return sums


def _blocks(model: nn.Module, *last: str) -> dict[str, Any]:
    """Return the blocks whose last layer has one of some names, by the full name of that layer."""
    named = dict(model.named_modules())
    return {name: named[name.rpartition(".")[0]] for name in linear(model) if name.endswith(last)}


def _scaled(factors: Tensor, size: int) -> Callable[..., Any]:
    """Return a hook that multiplies each part of a layer's inputs (B, N, size) by its factor (B, units)."""
    return lambda _, given: (given[0] * factors.repeat_interleave(size // factors.shape[1], 1)[:, None],)


def _keep(scores: Mapping[str, Tensor], share: float, multiple: int) -> dict[str, Tensor]:
    """Return the numbers of the parts to keep: the best of all layers, in each a multiple, one multiple at least."""
    every = torch.cat(list(scores.values()))
    limit = every.sort().values[min(round(share * len(every)), len(every) - 1)]
    found = {}
    for name, each in scores.items():
        wanted = max(round(int((each >= limit).sum()) / multiple), 1) * multiple
        found[name] = each.argsort(descending=True)[:wanted].sort().values
    return found


def _narrow(layer: nn.Linear, keep: Tensor, dim: int) -> None:
    """Keep some outputs (dim 0) or inputs (dim 1) of a layer."""
    layer.weight = nn.Parameter(layer.weight.detach().index_select(dim, keep).clone())
    if dim == 0:
        layer.out_features = len(keep)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[keep].clone())
    else:
        layer.in_features = len(keep)


def _columns(units: Tensor, width: int) -> Tensor:
    """Return the columns of units of a width each."""
    return (units[:, None] * width + torch.arange(width)).flatten()


@dataclass(frozen=True)
class Layers:
    """Early exit: the layers behind some are left out.

    Attributes:
        keep: Layers that stay.
    """

    kind: ClassVar[str] = "layers"
    keep: _Size

    def apply(self, work: Work, seed: int, say: shared.Say) -> None:
        """Do it."""
        cut(work.model.backbone.core, self.keep)


@dataclass(frozen=True)
class Window:
    """Fewer decisions are read.

    Attributes:
        keep: Decisions that stay, the last ones.
    """

    kind: ClassVar[str] = "window"
    keep: _Size

    def apply(self, work: Work, seed: int, say: shared.Say) -> None:
        """Do it."""
        if self.keep > work.window:
            raise L4SError(f"compress: window: keep = {self.keep}: there are {work.window} decisions: give less")
        work.window = self.keep


@dataclass(frozen=True)
class Heads:
    """Heads of attention that matter least are left out; those that share keys and values go together.

    Attributes:
        share: Share of them; one stays in each layer.
    """

    kind: ClassVar[str] = "heads"
    share: _Share

    def apply(self, work: Work, seed: int, say: shared.Say) -> None:
        """Do it."""
        blocks, layers = _blocks(work.model, ".o_proj", ".attn.c_proj"), linear(work.model)
        shared_by = {name: getattr(each, "num_key_value_groups", 1) for name, each in blocks.items()}
        units = {name: layers[name].in_features // (each.head_dim * shared_by[name]) for name, each in blocks.items()}
        for name, keep in _keep(work.attribution(units, seed), self.share, 1).items():
            attention, width = blocks[name], blocks[name].head_dim
            if name.endswith(".o_proj"):
                queries = _columns(keep, width * shared_by[name])
                _narrow(attention.q_proj, queries, 0)
                _narrow(attention.o_proj, queries, 1)
                for part in (attention.k_proj, attention.v_proj):
                    _narrow(part, _columns(keep, width), 0)
            else:
                columns, old = _columns(keep, width), attention.split_size
                _narrow(attention.c_attn, torch.cat([columns + part * old for part in range(3)]), 0)
                _narrow(attention.c_proj, columns, 1)
                attention.split_size, attention.num_heads = len(columns), len(keep)


@dataclass(frozen=True)
class Feedforward:
    """Units of the feed-forward layers that matter least are left out, in blocks that 4 bits can hold.

    Attributes:
        share: Share of them.
    """

    kind: ClassVar[str] = "feedforward"
    share: _Share

    def apply(self, work: Work, seed: int, say: shared.Say) -> None:
        """Do it."""
        blocks, layers = _blocks(work.model, ".down_proj", ".mlp.c_proj"), linear(work.model)
        units = {name: layers[name].in_features for name in blocks}
        for name, keep in _keep(work.attribution(units, seed), self.share, BLOCK).items():
            block = blocks[name]
            for layer in [block.c_fc] if name.endswith(".c_proj") else [block.gate_proj, block.up_proj]:
                _narrow(layer, keep, 0)
            _narrow(layers[name], keep, 1)


@dataclass(frozen=True)
class Quantise:
    """Weights of 4 or 8 bits; a step `distil` behind it trains the model in that precision.

    Attributes:
        bits: 4 or 8.
        spared: Share of the layers, those that change the decisions most, that get twice the bits (of 8: stay float32).
    """

    kind: ClassVar[str] = "quantise"
    bits: int = 8
    spared: _Share = 0.0

    def apply(self, work: Work, seed: int, say: shared.Say) -> None:
        """Do it."""
        if self.bits not in BITS:
            raise L4SError(f"compress: quantise: bits = {self.bits}: give 4 or 8")
        names = [name for name, layer in linear(work.model).items() if layer.in_features % BLOCK == 0]
        count_ = round(self.spared * len(names))
        spared: set[str] = set()
        if count_:
            rows = work.some(2 * AT_ONCE, seed)
            losses = {}
            for name in names:
                with quantised(work.model, {name: self.bits}):
                    losses[name] = work.loss(rows=rows)
            spared = set(sorted(names, key=losses.__getitem__)[-count_:])
            say(f"most sensitive: {', '.join(sorted(spared)[:4])}{' ...' if count_ > 4 else ''}")
        bits = {name: 2 * self.bits if name in spared else self.bits for name in names}
        work.bits = {name: each for name, each in bits.items() if each in BITS}


class _Coarse(nn.Module):
    """A weight in few bits, whose gradient is that of the weight itself."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as these bits hold it."""
        return weight + (coarse(weight, self.bits) - weight).detach()


def _coarse_given(bits: int) -> Callable[..., Any]:
    """Return a hook that gives a layer its inputs in 8 bits, whose gradient is that of the inputs themselves."""
    return lambda _, given: (given[0] + (coarse_input(given[0], bits) - given[0]).detach(),)


@contextmanager
def quantised(model: nn.Module, bits: Mapping[str, int], keep: bool = False) -> Iterator[None]:
    """Let layers compute as they will in few bits; with `keep`, their weights then stay so."""
    layers = {name: layer for name, layer in linear(model).items() if name in bits}
    hooks = []
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", _Coarse(bits[name]))
        hooks.append(layer.register_forward_pre_hook(_coarse_given(bits[name])))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=keep)


@dataclass(frozen=True)
class Distil:
    """All weights are trained towards the decisions of the agent, in the bits that they have by then.

    Attributes:
        steps: Optimiser steps.
        learning_rate: The highest; it grows over a tenth of the steps, and falls to a tenth.
        batch_size: Windows in a batch.
    """

    kind: ClassVar[str] = "distil"
    steps: _Size = 300
    learning_rate: Annotated[float, Meta(gt=0.0)] = 1e-4
    batch_size: _Size = 64

    def apply(self, work: Work, seed: int, say: shared.Say) -> None:
        """Do it."""
        schedule = TrainConfig(steps=self.steps, learning_rate=self.learning_rate, warmup=max(self.steps // 10, 1))
        model = work.model.train().requires_grad_(True)
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)  # no words are read
        with quantised(model, work.bits, keep=True):
            chosen = [each for each in model.parameters() if each.requires_grad]
            optimizer = torch.optim.AdamW(chosen, self.learning_rate, weight_decay=0.0)
            losses = []
            for step in range(self.steps):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.rate(step)
                rows = work.some(self.batch_size, seed + 1000 * (step + 1))
                loss = functional.mse_loss(work.told(rows), work.actions[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(chosen, 1.0)
                optimizer.step()
                losses.append(float(loss.detach()))
                if (step + 1) % max(self.steps // 4, 1) == 0:
                    say(f"distil: step {step + 1}/{self.steps}, loss {np.mean(losses):.5f}")
                    losses.clear()
        model.requires_grad_(False).eval()


@dataclass(frozen=True)
class Student:
    """A small transformer in the place of the language model; a step `distil` behind it trains it.

    Attributes:
        hidden: Width.
        layers: Layers.
        heads: Heads of attention.
        feedforward: Width of the feed-forward layers.
    """

    kind: ClassVar[str] = "student"
    hidden: _Size = 64
    layers: _Size = 2
    heads: _Size = 4
    feedforward: _Size = 256

    def apply(self, work: Work, seed: int, say: shared.Say) -> None:
        """Do it."""
        sizes: dict[str, Any] = {
            "hidden": self.hidden,
            "layers": self.layers,
            "heads": self.heads,
            "feedforward": self.feedforward,
        }
        backbone = BackboneConfig(family="llama", dropout=0.0, seed=seed, **sizes)
        config = replace(work.model.config, backbone=backbone, lora=LoraConfig())
        torch.manual_seed(seed)
        small = IntervalModel(config)
        for name, buffer in work.model.named_buffers(recurse=False):
            getattr(small, name).copy_(buffer)
        small.actor.load_state_dict(work.model.actor.state_dict())
        work.model = small.requires_grad_(False).eval()


@dataclass(frozen=True)
class Without:
    """What the language model tells is replaced by its mean: what is left decides without it."""

    kind: ClassVar[str] = "without"

    def apply(self, work: Work, seed: int, say: shared.Say) -> None:
        """Do it."""
        last: Any = work.model.tell[1]
        told = len(last.bias)
        last.weight.data.zero_()
        last.bias.data = torch.atanh(work.model.center[:told].clamp(-0.999, 0.999)).float()


@dataclass(frozen=True)
class Search:
    """An evolutionary search (NSGA-II by Optuna) over layers, heads, feed-forward units and decisions that are read.

    Each trial is pruned and trained for a while; of those within the limit, that with the fewest products is taken.

    Attributes:
        trials: Number of trials.
        population: Trials of a generation.
        steps: Optimiser steps of a trial.
        limit: Largest share of the variance of held-out decisions that may be missed.
    """

    kind: ClassVar[str] = "search"
    trials: _Size = 40
    population: _Size = 10
    steps: _Size = 60
    limit: Annotated[float, Meta(gt=0.0)] = 0.05

    def apply(self, work: Work, seed: int, say: shared.Say) -> None:
        """Do it."""
        optuna = optional("optuna", "compress")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        layers = int(work.model.backbone.core.config.num_hidden_layers)

        def shape(trial: Any) -> list[Any]:
            return [
                Layers(trial.suggest_int("layers", 1, layers)),
                Window(trial.suggest_int("window", 1, work.window)),
                Heads(trial.suggest_float("heads", 0.0, 0.8)),
                Feedforward(trial.suggest_float("feedforward", 0.0, 0.9)),
            ]

        def tried(trial: Any) -> tuple[float, float]:
            own = copy.copy(work)
            own.model = copy.deepcopy(work.model)
            for step in (*shape(trial), Distil(self.steps)):
                step.apply(own, seed, lambda _: None)
            found = own.loss(), float(products(own))
            figures = f"misses {found[0]:.4f}, {found[1]:,.0f} products"
            say(f"trial {trial.number + 1}/{self.trials}: {trial.params}: {figures}")
            return found

        sampler = optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        study.optimize(tried, n_trials=self.trials)
        good = [each for each in study.trials if each.values[0] <= self.limit]
        if not good:
            raise L4SError(f"compress: search: no trial missed less than limit = {self.limit}: give more of both")
        best = min(good, key=lambda each: each.values[1])
        say(f"search: {best.params}")
        for step in shape(optuna.trial.FixedTrial(best.params)):
            step.apply(work, seed, say)


STEPS: Final[dict[str, Any]] = {
    each.kind: each for each in (Layers, Window, Heads, Feedforward, Quantise, Distil, Student, Without, Search)
}
"""The kinds of steps."""


def products(work: Work) -> int:
    """Return the multiplications by weights of one decision."""
    return work.window * sum(each.weight.numel() for each in linear(work.model).values())
