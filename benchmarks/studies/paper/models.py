"""Figures 9 and 10: loss and accuracy of backbones while they are trained on the authors' pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

import l4s_gym
import sizes
import times
from figure import Figure, Place
from jobs import kept
from l4s_gym.data.minari_io import datasets_in
from l4s_gym.schema import ACTIONS
from l4s_gym.tables import checksum
from pool import (
    BACKBONES,
    BATCH,
    BLOCKS,
    EPOCHS,
    FAMILIES,
    HELD,
    READINGS,
    Pool,
    config_of,
    read,
)
from sizes import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

PARTS: Final = ("train", "held out")
MEASURES: Final = ("cross_entropy", "accuracy", "macro_f1")
SEED: Final = 0
LOOKS: Final = 40
"""At both parts, during a training."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """What became of the trainings.

    Attributes:
        epochs: Passes over the training rows at each look (L,).
        values: By family and reading: of each look, part and measure (L, 2, 3).
        shares: By reading and part: share of each action.
        config: Of a training, without the family.
    """

    epochs: Floats
    values: Mapping[tuple[str, str], Floats]
    shares: Mapping[str, Mapping[str, Sequence[float]]]
    config: Mapping[str, Any]

    def majority(self, reading: str, part: str) -> dict[str, float]:
        """What always saying the most frequent action, or the shares of the training rows, comes to."""
        trained, here = (np.array(self.shares[reading][name]) for name in (PARTS[0], part))
        top = int(trained.argmax())
        f1 = 2 * here[top] / (1 + here[top]) / int((here > 0).sum())
        return {"cross_entropy": float(-(here * np.log(trained)).sum()), "accuracy": float(here[top]), "macro_f1": f1}


def training_of(family: str, rows: int, *, quick: bool) -> dict[str, Any]:
    """Configuration of a training: as many passes over the rows as the authors make."""
    steps = 4 if quick else round(EPOCHS * rows / (BATCH * 40))
    more = (f"train.steps={steps}", f"train.warmup={min(100, steps // 4)}", f"train.seed={SEED}")
    return config_of(family, *more, f"model.backbone.seed={SEED}")


def curve(config: Mapping[str, Any], pool: Pool, looks: int) -> Floats:
    """Train; the measures of both parts before, during and after it (L, 2, 3), evenly spaced."""
    import torch

    from l4s_gym.agents.llm.agent import LLMAgent
    from l4s_gym.agents.llm.data import Target
    from l4s_gym.agents.llm.train import Trainer
    from l4s_gym.agents.metrics import classification

    parts = [pool.blocks.select([b for b in range(BLOCKS) if (b in HELD) == held]) for held in (False, True)]
    found = []
    with datasets_in(pool.folder), torch.random.fork_rng(devices=[]):
        trainer = Trainer(pool.ids, config)
        agent = LLMAgent(trainer.model, Target(0.0), training={"config": trainer.plain})
        for until in np.linspace(0, trainer.train.steps, looks + 1).round().astype(int).tolist():
            while trainer.step < until:
                trainer.update()
            for part in parts:
                p = agent.logged_probabilities(part, np.arange(len(part)))
                judged = classification(p, part.actions)
                found.append([judged[name] for name in MEASURES])
    return np.array(found).reshape(looks + 1, len(parts), len(MEASURES))


def curves(place: Place) -> Curves:
    """Train what is not kept in the work folder."""
    families, looks = place.backbones or FAMILIES[: 1 if place.quick else None], 2 if place.quick else LOOKS
    work = place.work / "paper"
    pools = {reading: read(work, reading) for reading in READINGS}
    values: dict[tuple[str, str], Floats] = {}
    with place.progress("trainings of figures 9 and 10") as show:
        for family in families:
            for reading, pool in pools.items():
                config = training_of(family, pool.rows, quick=place.quick)
                content = [getattr(pool.blocks, name).tolist() for name in ("observations", "actions", "rewards")]
                key = checksum([*content, config, looks, HELD, l4s_gym.__version__])[:16]
                values[family, reading] = kept(work / f"curve-{key}.npy", partial(curve, config, pool, looks))
                show(len(values) / len(families) / len(pools))
    shares = {
        reading: {
            part: (np.bincount(pool.blocks.actions[which], minlength=len(ACTIONS)) / which.sum()).tolist()
            for part, which in zip(PARTS, (~pool.held, pool.held), strict=True)
        }
        for reading, pool in pools.items()
    }
    train = config["train"]
    epochs = np.linspace(0, train["steps"], looks + 1).round() * BATCH * train["length"] / pool.rows
    return Curves(epochs, values, shares, {**config, "preset": "of each backbone"})


def draw(found: Curves, picture: Picture, *, measure: str, label: str, reported: Mapping[str, float]) -> None:
    """One panel for each reading; full lines are the training rows, dashed ones those held out."""
    number = MEASURES.index(measure)
    panels = picture.subplots(1, len(READINGS), sharey=True)
    for axes, reading in zip(panels, READINGS, strict=True):
        for (family, which), values in found.values.items():
            if which == reading:
                colour = COLOURS[list(BACKBONES).index(family)]
                axes.plot(found.epochs, values[:, 0, number], color=colour, label=family)
                axes.plot(found.epochs, values[:, 1, number], "--", color=colour, lw=1.0)
        for style, part in zip(("-", "--"), PARTS, strict=True):
            level, word = found.majority(reading, part)[measure], "always enqueue" if number else "shares of actions"
            axes.axhline(level, color="0.5", ls=style, lw=0.8, label=f"{word}, {part}")
        for name, level in reported.items():
            axes.axhline(level, color="black", ls=":", lw=1.0, label=name)
        axes.set(title=reading, xlabel="passes over the training rows")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(label)
    panels[1].legend(fontsize=8, title="full: training; dashed: held out", title_fontsize=8)


def of_curves(place: Place, name: str, drawn: Mapping[str, Any]) -> Figure:
    """The figure of a measure."""
    found = curves(place)
    data = {
        "seed": SEED,
        "config": found.config,
        "held_out_blocks": HELD,
        "blocks": BLOCKS,
        "shares": found.shares,
        "epochs": found.epochs.tolist(),
        "measures": MEASURES,
        "parts": PARTS,
        "curves": [
            {"family": family, "reading": reading, "values": values.tolist()}
            for (family, reading), values in found.values.items()
        ],
    }
    return Figure(name, data, partial(draw, found, **drawn), (10.0, 4.5))


def loss(place: Place) -> Figure:
    """Figure 9: loss over epochs."""
    return of_curves(place, "9", {"measure": "cross_entropy", "label": "cross-entropy, nats", "reported": {}})


def accuracy(place: Place) -> Figure:
    """Figure 10: accuracy over epochs."""
    reported = {"the paper's Llama-2-7B, training": 0.9756}
    return of_curves(place, "10", {"measure": "accuracy", "label": "accuracy", "reported": reported})


FIGURES: Final[dict[str, Callable[[Place], Figure]]] = {"9": loss, "10": accuracy, **sizes.FIGURES, **times.FIGURES}
"""Number -> what makes it."""
