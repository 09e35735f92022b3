"""Does the pretraining of a language model help to decide over queues?

    python benchmarks/studies/pretraining/run.py          # hours on two cores; goes on where it was stopped
    python benchmarks/studies/pretraining/run.py --quick  # minutes: a few steps of each on small datasets
    python benchmarks/studies/pretraining/run.py --models random small --forms parameters --seeds 2

Five models of the same data, several trainings each: SmolLM2's first layers with its own weights and with random ones
(both frozen, with LoRA), random ones that are trained whole, a small transformer, and a perceptron. In the form
`parameters` they are trained as `l4s-gym train llm` trains them on control intervals, and judged by R2 within held-out
groups and in closed loop; about packets they are imitators, judged by held-out cross-entropy. Each training leaves a
file in the work folder.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import torch

from l4s_gym.agents import onestep, training
from l4s_gym.agents.llm.agent import open_agent
from l4s_gym.agents.llm.interval_train import Trainer
from l4s_gym.agents.llm.intervals import IntervalAgent
from l4s_gym.agents.llm.settings import settings
from l4s_gym.agents.llm.train import RESULT, train
from l4s_gym.agents.metrics import classification
from l4s_gym.cli.arguments import command_line
from l4s_gym.cli.common import progress_bar
from l4s_gym.data import minari_io
from l4s_gym.data.files import atomic_write
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import statistics
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.markdown import table

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

from jobs import kept_row
from score import scores

RESULTS: Final = Path(__file__).resolve().parent / "results"
Model = Literal["pretrained", "random", "whole", "small", "mlp"]
Form = Literal["parameters", "packet"]
MODELS: Final[dict[str, str]] = {
    "pretrained": "SmolLM2, pretrained, frozen + LoRA",
    "random": "its shape, random, frozen + LoRA",
    "whole": "its shape, random, trained whole",
    "small": "small transformer from scratch",
    "mlp": "perceptron",
}
SETTINGS: Final[dict[str, tuple[str, ...]]] = {
    "pretrained": ("preset=smollm2", "model.backbone.exit_layer={layers}"),
    "random": ("preset=smollm2-shape", "presets.smollm2-shape.model.backbone.layers={layers}"),
    "whole": (
        "preset=smollm2-shape",
        "presets.smollm2-shape.model.backbone.layers={layers}",
        "presets.smollm2-shape.model.backbone.freeze=false",
        "presets.smollm2-shape.model.lora.rank=0",
    ),
    "small": (
        "model.backbone.family=llama",
        "model.backbone.hidden=64",
        "model.backbone.layers=2",
        "model.backbone.heads=4",
        "model.backbone.dropout=0",
    ),
}
RATES: Final = {"whole": 3e-4}
"""Learning rates other than 1e-3."""
QUICK: Final = {"critics": 2, "critic_steps": 20, "groups": 4, "actor_steps": 20}
"""Of critics and actor in a quick run."""
MEASURE: Final = {"parameters": "R2 within held-out groups", "packet": "held-out cross-entropy, nats"}
SCORE: Final = "score"
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Options of the study.

    Attributes:
        models: Which models.
        forms: What they decide.
        sizes: Steps of the datasets. Of control intervals, what makes fewer than two groups of episodes is left out.
        seeds: Trainings of each model, form and size.
        layers: First layers of SmolLM2, and of its shape.
        steps: Optimiser steps of a transformer about control intervals.
        packet_steps: Optimiser steps of a transformer about packets.
        parameters: Dataset of the form `parameters`, in groups.
        packet: Dataset of the form `packet`.
        held: Groups of episodes (of packets: steps) that no model learns from: those at the start of a dataset.
        held_packets: Steps of packets that no model learns from, likewise.
        loop: Whether agents of control intervals decide in closed loop too: the board's size `quick`.
        quick: A few steps of each, on the small datasets, one training each, one layer.
        work: Folder of what is done.
        out: Folder of the results.
    """

    models: tuple[Model, ...] = ("pretrained", "random", "whole", "small", "mlp")
    forms: tuple[Form, ...] = ("parameters", "packet")
    sizes: tuple[int, ...] = (10_000, 100_000, 600_000)
    seeds: int = 5
    layers: int = 6
    steps: int = 300
    packet_steps: int = 150
    parameters: str = "l4s/dualpi2/held-v0"
    packet: str = "l4s/dualpi2/testbed-v0"
    held: int = 40
    held_packets: int = 4000
    loop: bool = True
    quick: bool = False
    work: Path = Path("runs/pretraining")
    out: Path = RESULTS


def quickened(options: Options) -> Options:
    """The options of a look in minutes."""
    return replace(
        options,
        sizes=(40_000,),
        seeds=1,
        layers=1,
        steps=3,
        packet_steps=3,
        parameters="l4s/dualpi2/held-small-v0",
        packet="l4s/dualpi2/testbed-small-v0",
        held=2,
        held_packets=400,
        work=options.work / "quick",
        out=options.work / "quick" if options.out == RESULTS else options.out,
    )


def configuration(options: Options, model: str, seed: int) -> dict[str, Any]:
    """Of a training of `llm`."""
    rate = RATES.get(model, 1e-3)
    intervals: tuple[str, ...] = ("intervals.observed=false",)  # what they tell has to come from the transformer
    intervals += (f"intervals.steps={options.steps}", f"intervals.learning_rate={rate}")
    packets = (
        *("model.window=8", "train.length=16", "train.batch_size=8", "train.warmup=10", f"train.learning_rate={rate}"),
        *(f"train.{name}={options.packet_steps}" for name in ("steps", "eval_every", "checkpoint_every")),
        "train.eval_steps=100",
    )
    seeds = (f"train.seed={seed}", f"model.backbone.seed={seed}")
    if options.quick:
        intervals += tuple(f"intervals.onestep.{name}={value}" for name, value in QUICK.items())
    own = tuple(each.format(layers=options.layers) for each in SETTINGS[model])
    return training.load_config("llm", settings=(*own, *intervals, *packets, *seeds))


# -- control intervals


@cache
def groups(dataset: str, episodes: int) -> list[Trajectory]:
    """The first episodes of a dataset in groups."""
    found = minari_io.load(dataset)
    minari_io.check_simulator(found)
    return list(islice(minari_io.read_valid(found), episodes))


def group_size(episodes: Sequence[Trajectory]) -> int:
    """Episodes of a group."""
    return sum(each.about["seed"] == episodes[0].about["seed"] for each in episodes)


def intervals(options: Options, model: str, size: int, seed: int) -> Row | None:
    """Train a model of control intervals; None: the data is too small."""
    first = groups(options.parameters, 64)
    members, length = group_size(first), len(first[0])
    learned = size // (length * members)
    if learned < 2:
        return None
    held = options.held * members
    every = groups(options.parameters, held + max(options.sizes) // length)
    data = [*every[held : held + learned * members], *every[:held]]
    interval_ms = float(data[0].about["control_interval_ms"])
    about = {"control_interval_ms": interval_ms, "options": training.options_of(data)}
    if model == "mlp":
        config = onestep.configure({"seed": seed} | (QUICK if options.quick else {}))
        found = onestep.Groups.of(data, 1e3 * config.horizon_s / interval_ms)
        work, scale = onestep.improvement(found, interval_ms, np.arange(len(found.actions)) >= learned, config)
        critics = [work.critic(number) for number in range(config.critics)]
        tensors = onestep.tensors_of(work.actor(critics), scale)
        agent: Any = onestep.OneStepAgent(tensors, msgspec.to_builtins(config), about)
        r2 = work.r2(critics)
        trained = agent.cost()["trainable_parameters"]
    else:
        config_, shared = settings(configuration(options, model, seed))
        trainer = Trainer(data, replace(config_, form="parameters"), shared.seed, interval_ms, learned)
        trained = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
        for _ in range(options.steps):
            trainer.update()
        r2 = trainer.improve(training.Stop(), lambda _: None)["r2"]
        agent = IntervalAgent(trainer.model, training=about)
    row: Row = {"value": r2, "trained": trained}
    return row | ({SCORE: float(scores(agent, options.quick).mean())} if options.loop else {})


# -- packets


@cache
def packets(dataset: str, steps: int) -> list[Trajectory]:
    """The first steps of a dataset, as episodes."""
    found: list[Trajectory] = []
    stored = minari_io.load(dataset)
    minari_io.check_simulator(stored)
    for episode in minari_io.read_valid(stored):
        left = steps - sum(map(len, found))
        found.append(episode.cut(0, min(left, len(episode))))
        if left <= len(episode):
            break
    return found


def about_packets(options: Options, model: str, size: int, seed: int) -> Row:
    """Train an imitator about packets."""
    first, *rest = packets(options.packet, max(options.sizes) + 100_000)
    held = first.cut(0, options.held_packets)
    data: list[Trajectory] = []
    for episode in (*rest, first.cut(options.held_packets, len(first))):
        left = size - sum(map(len, data))
        if left > 0:
            data.append(episode.cut(0, min(left, len(episode))))
    if model == "mlp":
        learner: Any = training.learner("bc")
        config = training.load_config("bc", small=True, settings=[f"seed={seed}"])
        if options.quick:
            config["steps"] = options.packet_steps
        agent, _ = learner.fit(Trajectory.joined(data), learner.configure(config))
        trained = agent.cost()["trainable_parameters"]
    else:
        out = options.work / f"packet-{model}-{size}-{seed}"
        with minari_io.datasets_in(options.work / "datasets"):
            id_ = f"l4s/dualpi2/pretraining-{size}-v0"
            if not minari_io.dataset_folder(id_).is_dir():
                minari_io.create(id_, data, algorithm_name="dualpi2_freebsd", description=f"Of {options.packet}.")
            if not (out / RESULT).is_file():
                resume = (out / training.CHECKPOINT).is_file()
                train(id_, configuration(options, model, seed), out, resume=resume)
        agent = open_agent(out)
        trained = agent.cost()["trainable_parameters"]
    p = agent.logged_probabilities(held, np.arange(len(held)))
    return {"value": classification(p, held.actions)["cross_entropy"], "trained": trained}


# -- all of it


TRAIN: Final[dict[str, Callable[[Options, str, int, int], Row | None]]] = {
    "parameters": intervals,
    PACKET: about_packets,
}


def measured(options: Options, form: str, model: str, size: int, seed: int) -> Row:
    """Train and measure, or read what was measured before with these options."""
    same = {name: value for name, value in asdict(options).items() if name not in ("models", "forms", "seeds", "out")}
    digest = hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()[:8]
    path = options.work / f"{form}-{model}-{size}-{seed}-{digest}.json"
    about = {"form": form, "model": model, "size": size, "seed": seed}
    return kept_row(path, lambda: about | (TRAIN[form](options, model, size, seed) or {}))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval by Student's t; NaN of a single value."""
    found = statistics.linear(np.array(values)[:, None]).interval()
    return found.value, float("nan") if found.high is None else found.high - found.value


def cell(values: Sequence[float], digits: int) -> str:
    """A mean with its interval."""
    if not values:
        return "-"
    middle, half = interval(values)
    return f"{middle:.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")


def gathered(rows: Sequence[Row], form: str, key: str) -> dict[str, dict[int, list[float]]]:
    """Figures by model and size, in the order of the seeds."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in sorted((row for row in rows if row["form"] == form and key in row), key=lambda row: row["seed"]):
        found.setdefault(row["model"], {}).setdefault(row["size"], []).append(row[key])
    return found


def tables(rows: Sequence[Row]) -> list[str]:
    """The tables: each model by size of the data, and what pretraining changes, seed by seed."""
    lines: list[str] = []
    parts = [("parameters", "value", 3), ("parameters", SCORE, 1), (PACKET, "value", 4)]
    for form, key, digits in parts:
        found = gathered(rows, form, key)
        if not found:
            continue
        sizes = sorted({size for by in found.values() for size in by})
        what = "score in closed loop (random decisions 0, RFC 9332 100)" if key == SCORE else MEASURE[form]
        body = [[MODELS[model], *(cell(by.get(size, []), digits) for size in sizes)] for model, by in found.items()]
        pairs = found.get("pretrained", {}), found.get("random", {})
        if all(pairs):
            gains = {
                n: np.subtract(pairs[0][n], pairs[1][n]).tolist() for n in sizes if n in pairs[0] and n in pairs[1]
            }
            body.append(["pretrained - random", *(cell(gains.get(size, []), digits) for size in sizes)])
        head = ["model", *(f"{size:,} steps" for size in sizes)]
        lines += [f"## {form}: {what}", "", *table(head, body, right=range(1, len(head))), ""]
    return lines


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw the figures by size of the data."""
    optional("matplotlib", "report")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = [("parameters", "value", MEASURE["parameters"]), ("parameters", SCORE, "score in closed loop")]
    parts += [(PACKET, "value", MEASURE[PACKET])]
    parts = [part for part in parts if gathered(rows, part[0], part[1])]
    figure = Figure(figsize=(5 * len(parts), 4), dpi=100, layout="constrained")
    axes: Any = figure.subplots(1, len(parts), squeeze=False)[0]
    for place, (form, key, title) in zip(axes, parts, strict=True):
        for number, (model, by) in enumerate(gathered(rows, form, key).items()):
            sizes = sorted(by)
            middles, halves = zip(*(interval(by[size]) for size in sizes), strict=True)
            shifted = np.array(sizes) * 1.06 ** (number - 2)  # so that bars do not hide each other
            place.errorbar(shifted, middles, np.nan_to_num(halves), marker="o", capsize=3, label=MODELS[model])
        place.set(xscale="log", xlabel="steps of data", title=f"{form}: {title}")
    axes[0].legend(fontsize=7)
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def page(run: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# Does pretraining help?", "", "Written by `benchmarks/studies/pretraining/run.py`; means over trainings"]
    lines[-1] += " with 95 % intervals (Student's t). All figures are in `pretraining.json`."
    lines += ["", "![By size of the data](pretraining.png)", "", *tables(run["rows"])]
    return "\n".join(lines)


def main(options: Options) -> None:
    """Train what is missing, measure, and write."""
    torch.set_num_threads(1)
    chosen = quickened(options) if options.quick else options
    jobs = [
        (form, model, size, seed)
        for seed in range(chosen.seeds)
        for form in chosen.forms
        for size in chosen.sizes
        for model in chosen.models
    ]
    if not jobs:
        raise L4SError("nothing to do: give models, forms, sizes and seeds")
    rows = []
    with progress_bar(f"{len(jobs)} trainings") as progress:
        for number, job in enumerate(jobs, 1):
            rows.append(measured(chosen, *job))
            progress(number / len(jobs))
    told = [row for row in rows if "value" in row]
    run = origin() | {"options": asdict(chosen), "rows": told}
    chosen.out.mkdir(parents=True, exist_ok=True)
    draw(chosen.out / "pretraining.png", told)
    write_run(chosen.out, "pretraining", run, page(run))
    print("\n".join(tables(told)))


if __name__ == "__main__":
    main(command_line(Options))
