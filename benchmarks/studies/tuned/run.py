"""Find one setting of DualPI2 (RFC 9332) that is good on the whole suite `train`, by CMA-ES.

    pip install -r benchmarks/studies/tuned/requirements.txt
    python benchmarks/studies/tuned/run.py                       # goes on where it was stopped
    python benchmarks/studies/tuned/run.py --experiment benchmarks/experiments/native/dualpi2_tuned.toml

What is searched are the logarithms of the parameters in `search.PARAMETERS`, from their defaults on. What is maximised
is the mean over scenarios of the normalised score (0: random decisions, 100: the defaults), with the same seeds for
each setting. Nothing outside of `train` is run. The setting is the mean of the search's distribution at its end, which
is no lucky draw; its score is told for seeds of `train` that the search has not seen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation.entry import read_protocol
from l4s_gym.evaluation.origin import append_run, origin
from l4s_gym.evaluation.work import rate_mbps
from search import AQM, CHECKED, DEFAULTS, Search, Task, search


@dataclass(frozen=True)
class Options(Search):
    """How it is searched, and where."""

    protocol: Path | None = None
    """File of the protocol, whose suite `train` is used."""
    most_mbps: float = 40.0
    """Scenarios of a higher rate are left out: they take most of the time."""
    work: Path = Path("runs/tuned.json")
    """What was tried so far: the search goes on from it."""
    experiment: Path | None = None
    """Where the setting is written as an experiment of the board."""
    out: Path = Path(__file__).resolve().parent / "results" / "tuned.json"
    """Where the figures go."""


def main(options: Options) -> None:
    protocol = read_protocol(options.protocol)
    names = [name for name in protocol.members("train") if rate_mbps(name) <= options.most_mbps]
    first = protocol.first_seed["train"]
    setting = search(Task(names, options, first), DEFAULTS, options.work)
    checked = Task(names, options, first + CHECKED).scores(setting)
    title = f"DualPI2 (RFC 9332), tuned on train for the reward {options.reward}"
    table = "".join(f"{name} = {value}\n" for name, value in setting.items())
    text = f'title = "{title}"\nagent = "native:{AQM}"\n\n[options.{AQM}]\n{table}'
    print(text)
    for name, score in zip(names, checked, strict=True):
        print(f"{name}: {score:.1f}")
    print(f"mean score on seeds of train that the search has not seen: {checked.mean():.1f}")
    settings = {name: asdict(options)[name] for name in ("reward", "budget", "seconds", "seeds")}
    scores = dict(zip(names, checked.tolist(), strict=True))
    append_run(options.out, {**origin(), **settings, "setting": setting, "scores": scores})
    if options.experiment is not None:
        with atomic_write(options.experiment) as file:
            file.write(text.encode())


if __name__ == "__main__":
    main(command_line(Options, description=__doc__))
