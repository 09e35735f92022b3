"""What every figure has: a picture, the numbers in it, and a caption that says what the paper has and what differs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation.origin import origin
from l4s_gym.evaluation.sweep import ShowProgress, silent
from l4s_gym.extras import optional
from l4s_gym.sim import fingerprint

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

PAPER: Final = "Satish, Pokhrel, Kua and Walid, Distilling Large Language Models for Network AQM, arXiv:2501.16734"
NOT_GIVEN: Final = "not given here"
"""In place of a number of the paper that is only to be seen in its picture."""


@dataclass(frozen=True)
class Place:
    """Where figures are made.

    Attributes:
        work: Folder of trained agents and finished parts; what is there is not made again.
        out: Folder of the figures.
        quick: So little of everything that it takes seconds: the figures say nothing.
        progress: Shows how far it is.
        say: Told what is done.
    """

    work: Path
    out: Path
    quick: bool = False
    progress: ShowProgress = silent
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, made anew.

    Attributes:
        name: Number in the paper, or a word.
        title: One line.
        paper: The paper's numbers, or `NOT_GIVEN`.
        found: What is seen here: sentences with measured numbers.
        differs: What is different from the paper.
        data: All that is drawn, and seeds and configuration.
        draw: Draws on an empty picture.
        size: Of the picture, inches.
    """

    name: str
    title: str
    paper: str
    found: str
    differs: str
    data: Mapping[str, Any]
    draw: Callable[[Picture], None]
    size: tuple[float, float] = field(default=(9.0, 4.5))

    @property
    def stem(self) -> str:
        """Name of its files, without the ending."""
        return f"figure_{self.name}" if self.name.isdigit() else self.name

    def save(self, place: Place) -> None:
        """Write picture and numbers, and bring the page of all captions up to date."""
        optional("matplotlib", "report")
        from matplotlib.figure import Figure as Picture

        picture = Picture(figsize=self.size, layout="constrained")
        self.draw(picture)
        image = io.BytesIO()
        picture.savefig(image, format="png", dpi=110)
        about = {"name": self.name, "title": self.title, "paper": self.paper, "found": self.found}
        about["differs"] = self.differs
        record = {**origin(), "quick": place.quick, "source": PAPER, **about, "data": self.data}
        place.out.mkdir(parents=True, exist_ok=True)
        for ending, content in (
            ("png", image.getvalue()),
            ("json", json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"),
        ):
            with atomic_write(place.out / f"{self.stem}.{ending}") as file:
                file.write(content)
        captions(place.out)


def captions(folder: Path) -> Path:
    """Write `figures.md`: the captions of all figures in a folder, in order."""
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    order = sorted(records, key=lambda stem: (int(n) if (n := records[stem]["name"]).isdigit() else 1000, stem))
    parts = ["# The figures of the L4S-LLM paper, made anew", f"The paper: {PAPER}."]
    for stem in order:
        record = records[stem]
        name = f"Figure {record['name']}" if record["name"].isdigit() else record["name"].capitalize()
        quick = " (a quick run: it says nothing)" if record["quick"] else ""
        old = fingerprint.reason(record.get("simulator", fingerprint.NONE))
        stale = [f"*What is simulated here {old}.*"] if old else []
        parts += [
            f"## {name}{quick}. {record['title']}\n![{record['title']}]({stem}.png)",
            *stale,
            record["found"],
            f"- **Paper:** {record['paper']}\n- **What differs:** {record['differs']}\n- `{record['command']}`",
        ]
    path = folder / "figures.md"
    with atomic_write(path) as file:
        file.write(("\n\n".join(parts) + "\n").encode())
    return path
