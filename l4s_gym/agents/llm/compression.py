"""Compression of an LLM agent of control intervals by a recipe of steps, from what the agent does in closed loop.

The agent plays first; what it reads and decides there is what the steps learn from and are judged by: structured
pruning by attribution, early exit, weights of 8 or 4 bits (chosen by sensitivity, recovered by training in that
precision), distillation, a small transformer in its place, and a search over shapes. The result runs in ONNX Runtime.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional

from l4s_gym.agents import online, saved
from l4s_gym.agents import training as shared
from l4s_gym.agents.llm import saving
from l4s_gym.agents.llm.exported import GRAPH, READ, ExportedModel, export
from l4s_gym.agents.llm.fast import as_linear
from l4s_gym.agents.llm.intervals import IntervalAgent, IntervalModel
from l4s_gym.agents.llm.settings import LLMConfig, to_dict
from l4s_gym.agents.llm.steps import AT_ONCE, STEPS, Work, products, quantised
from l4s_gym.agents.protocol import control_interval_ms, options_of
from l4s_gym.errors import L4SError, unknown
from l4s_gym.tables import convert

Played = tuple[Tensor, Tensor, Tensor, Tensor]
COMPRESSED: Final = "compressed"
"""Key of an agent's training under which the steps and figures stand."""
_Share = Annotated[float, Meta(ge=0.0, lt=1.0)]
_Size = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True)
class Sample:
    """What the agent plays.

    Attributes:
        scenarios: As `l4s_gym.sim.scenario.load_all` takes them.
        envs: Environments at once.
        seconds: Simulated length of each, s.
        held_out: Share of the environments by which steps are judged, and that they do not learn from.
    """

    scenarios: str = "random:train"
    envs: _Size = 96
    seconds: Annotated[float, Meta(gt=0.0)] = 30.0
    held_out: _Share = 0.25


@dataclass(frozen=True)
class Recipe:
    """A compression.

    Attributes:
        sample: What the agent plays.
        steps: Tables, each with the `kind` of a step (`STEPS`) and its settings, in order.
        seed: Of episodes, weights and batches.
    """

    sample: Sample = field(default_factory=Sample)
    steps: tuple[dict[str, Any], ...] = ()
    seed: Annotated[int, Meta(ge=0)] = 0


def parsed(table: Mapping[str, Any], place: str) -> tuple[Recipe, list[Any]]:
    """Return a recipe and its steps from plain values.

    Raises:
        L4SError: Something in it makes no sense; `place` is where it comes from.
    """
    recipe = convert(Recipe, table, place)
    steps = []
    for number, each in enumerate(recipe.steps, 1):
        kind = str(each.get("kind"))
        if kind not in STEPS:
            raise unknown(f"kind of step {number} in {place}", kind, tuple(STEPS))
        rest = {name: value for name, value in each.items() if name != "kind"}
        steps.append(convert(STEPS[kind], rest, f"{place}, step {number} ({kind})"))
    return recipe, steps


def record(agent: IntervalAgent, sample: Sample, seed: int) -> Played:
    """Let an agent play; return its windows (M, N, S), their lengths (M,), what it chose (M, K), and what is held out.

    Decisions are those of the network, before they are rounded and averaged.
    """
    interval_ms, n = control_interval_ms(agent), sample.envs
    env = online.environment(
        agent.form, sample.scenarios, n, sample.seconds, options_of(agent),
        control_interval_ms=interval_ms, autoreset_mode="disabled",
    )  # fmt: skip
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def watch(model: Any, given: tuple[Tensor, Tensor], told: Tensor) -> None:
        tokens, lengths = given
        room = model.config.intervals.window - tokens.shape[1]
        found.append((functional.pad(tokens, (0, 0, 0, room)), lengths, told))

    hook = agent.model.register_forward_hook(watch)
    try:
        obs, _ = env.reset(seed=online.seeds(np.random.default_rng(seed), n).tolist())
        agent.reset(n, seed)
        rewards = np.zeros(n)
        for _ in range(round(1e3 * sample.seconds / interval_ms)):
            obs, rewards, *_ = env.step(agent.act(obs.copy(), rewards))
    finally:
        hook.remove()
        env.close()
    tokens, lengths, told = (torch.cat(part).clone() for part in zip(*found, strict=True))
    out = np.random.default_rng(seed).permutation(n) < round(sample.held_out * n)
    held = torch.as_tensor(np.tile(out, len(found)))
    if held.all() or not held.any():
        raise L4SError("compress: held_out leaves none to learn from, or holds none out: change it or envs")
    return tokens, lengths, told, held


def plain(model: IntervalModel) -> IntervalModel:
    """Return a model of which every layer is a linear one of float32: adapters are merged, and GPT-2's turned."""
    model.backbone.merge()
    model.backbone.float()
    model.requires_grad_(False).eval()
    core = model.backbone.core
    for name, module in list(core.named_modules()):
        if type(module).__name__ == "Conv1D":
            parent, _, own = name.rpartition(".")
            setattr(core.get_submodule(parent), own, as_linear(module))
    return model


def compress(
    folder: Path | str,
    recipe: Mapping[str, Any],
    out: Path,
    *,
    place: str = "recipe",
    played: Played | None = None,
    say: shared.Say | None = None,
    progress: shared.Progress | None = None,
) -> dict[str, Any]:
    """Compress a saved agent by a recipe, and save what is left.

    Args:
        folder: The agent's folder.
        recipe: Plain values of a `Recipe`.
        out: Folder of the compressed agent.
        place: Where the recipe comes from, for errors.
        played: What the agent does, from `record`; None: it plays the recipe's sample.
        say: Told what happens, line by line.
        progress: Called with the share that is done.

    Returns:
        What is written of it: the steps with the held-out loss after each, and the figures (`figures`).

    Raises:
        L4SError: The agent is not one of control intervals, or the recipe makes no sense.
    """
    tell, report = say or (lambda _: None), progress or (lambda _: None)
    chosen, steps = parsed(recipe, place)
    saved.check_target(out)
    loaded = saving.load(folder)
    if not isinstance(loaded.model, IntervalModel):
        what = "is compressed already" if isinstance(loaded.model, ExportedModel) else "decides about packets"
        raise L4SError(f"{folder}: {what}: give an LLM agent of control intervals as it was trained")
    if played is None:
        agent = IntervalAgent(copy.deepcopy(loaded.model), training=loaded.training)
        played = record(agent, chosen.sample, chosen.seed)
    with torch.random.fork_rng(devices=[]):
        work = Work(plain(loaded.model), *played)
        tell(f"{len(work.actions):,} decisions of the agent, {len(work.held):,} of them held out")
        done = []
        for number, (step, table) in enumerate(zip(steps, chosen.steps, strict=True)):
            report(0.1 + 0.8 * number / len(steps))
            began = time.monotonic()
            step.apply(work, chosen.seed, tell)
            with quantised(work.model, work.bits):
                done.append({**table, "missed": work.loss(), "seconds": round(time.monotonic() - began, 1)})
            tell(f"{step.kind}: misses {done[-1]['missed']:.4f} of the decisions' variance")
    config = replace(loaded.model.config, intervals=replace(loaded.model.config.intervals, window=work.window))
    graph = export(work.model, work.window, work.bits)
    tensors = {name: getattr(work.model, name) for name in READ} | {
        GRAPH: torch.frombuffer(bytearray(graph), dtype=torch.uint8)
    }
    about = {"steps": done, "seed": chosen.seed, "sample": vars(chosen.sample), **figures(work, config, tensors)}
    size = about["parameters"]
    training = {**loaded.training, "parameters": size, "trainable_parameters": size, COMPRESSED: about}
    saved.write(out, kind=saving.KIND, config=to_dict(config), tensors=tensors, training=training)
    report(1.0)
    return about


def figures(work: Work, config: LLMConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return parameters, bytes, products of a decision, its time (ms) and the held-out loss of an exported model."""
    model = ExportedModel(config, tensors)
    rows = work.held[torch.linspace(0, len(work.held) - 1, min(len(work.held), 4 * AT_ONCE)).long()]
    times = []
    for row in rows:
        given = work.windows(row[None])
        began = time.perf_counter()
        model(*given)
        times.append(1e3 * (time.perf_counter() - began))
    p50, p99 = np.percentile(times, (50, 99))
    words = work.model.backbone.core.get_input_embeddings().weight  # are not read
    return {
        "parameters": sum(each.numel() for each in work.model.parameters() if each is not words),
        "bytes": len(tensors[GRAPH]),
        "products": products(work),
        "latency_p50_ms": round(float(p50), 3),
        "latency_p99_ms": round(float(p99), 3),
        "missed": work.loss(model, rows),
    }
