"""What every figure has: a picture, and the numbers in it. What is said of it stands in `captions.toml`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import captions
from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation.origin import origin
from l4s_gym.evaluation.sweep import ShowProgress, silent
from l4s_gym.extras import optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture


@dataclass(frozen=True)
class Place:
    """Where figures are made.

    Attributes:
        work: Folder of trained agents and finished parts; what is there is not made again.
        out: Folder of the figures.
        quick: So little of everything that it takes seconds: the figures say nothing.
        backbones: Of figures 9 and 10, names in `pool.BACKBONES`; empty: those of random weights.
        llm: Backbone of the LLM agents in figures 11 to 16.
        agents: Others that are beside them in the closed loop, NAME=SPEC each.
        progress: Shows how far it is.
        say: Told what is done.
    """

    work: Path
    out: Path
    quick: bool = False
    backbones: tuple[str, ...] = ()
    llm: str = "gpt2"
    agents: tuple[str, ...] = ()
    progress: ShowProgress = silent
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, made anew.

    Attributes:
        name: Number in the paper, or a word.
        data: All that is drawn, and seeds and configuration.
        draw: Draws on an empty picture.
        size: Of the picture, inches.
    """

    name: str
    data: Mapping[str, Any]
    draw: Callable[[Picture], None]
    size: tuple[float, float] = field(default=(9.0, 4.5))

    @property
    def stem(self) -> str:
        """Name of its files, without the ending."""
        return f"figure_{self.name}" if self.name.isdigit() else self.name

    def save(self, place: Place) -> None:
        """Write picture and numbers, and bring the page of all figures up to date."""
        optional("matplotlib", "report")
        from matplotlib.figure import Figure as Picture

        picture = Picture(figsize=self.size, layout="constrained")
        self.draw(picture)
        image = io.BytesIO()
        picture.savefig(image, format="png", dpi=110)
        record = {**origin(), "quick": place.quick, "name": self.name, "data": self.data}
        place.out.mkdir(parents=True, exist_ok=True)
        for ending, content in (
            ("png", image.getvalue()),
            ("json", json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"),
        ):
            with atomic_write(place.out / f"{self.stem}.{ending}") as file:
                file.write(content)
        captions.write(place.out)
