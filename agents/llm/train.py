"""Train an LLM agent, on one process or by `accelerate launch` on several.

python agents/llm/train.py --dataset l4s/dualpi2/testbed-v0 --small --out runs/llm
accelerate launch agents/llm/train.py --dataset l4s/dualpi2/testbed-v0 --set preset=paper --out runs/llm-7b
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from l4s_gym.agents.llm.train import train
from l4s_gym.agents.training import check_folder, load_config
from l4s_gym.cli.arguments import command_line
from l4s_gym.errors import L4SError
from l4s_gym.sim.fingerprint import allow_stale


@dataclass(frozen=True)
class Options:
    """Train an LLM agent."""

    dataset: tuple[str, ...]
    """Ids of Minari datasets, such as l4s/dualpi2/testbed-v0; with a weight: ID=3."""
    out: Path = Path("runs/llm")
    """Folder of the agent."""
    config: Path | None = None
    """Configuration instead of agents/llm/config.toml."""
    small: bool = False
    """The setting for two cores and a few minutes."""
    set: tuple[str, ...] = ()
    """Settings that come last, such as preset=llama or train.steps=500."""
    resume: bool = False
    """Go on from the checkpoint in the folder."""
    allow_stale: bool = False
    """Take datasets of another simulator too; the agent says so."""


def weighted(text: str) -> tuple[str, float]:
    name, equals, weight = text.partition("=")
    try:
        return name, float(weight) if equals else 1.0
    except ValueError:
        raise L4SError(f"--dataset {text}: give ID or ID=WEIGHT") from None


def say(text: str) -> None:
    print(text, flush=True)


def main(options: Options) -> None:
    check_folder(options.out, resume=options.resume)  # reading the data may take minutes
    config = load_config("llm", options.config, small=options.small, settings=options.set)
    with allow_stale(options.allow_stale):
        train(dict(map(weighted, options.dataset)), config, options.out, resume=options.resume, say=say)


if __name__ == "__main__":
    main(command_line(Options))
