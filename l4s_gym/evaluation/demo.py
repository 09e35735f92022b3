"""The main job end to end: kernel rows, Minari datasets, trained agents, closed-loop leaderboard, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from l4s_gym.data import minari_io
from l4s_gym.data.inspect import inspect_rows
from l4s_gym.data.pools import load_rows
from l4s_gym.data.steps import episodes_from_rows
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import board, leaderboard
from l4s_gym.evaluation.entry import Entry, Experiment, Training, read_protocol
from l4s_gym.evaluation.sweep import ShowProgress
from l4s_gym.sim import fingerprint

POOL_FILES = ("exp_pool_l4s_train_7feat.pkl", "consecutive_rows_first6000.csv")
SIMULATED = "l4s/dualpi2/testbed-small-v0"
WINNER = "onestep"
"""The learner whose score is compared with native DualPI2 in the end."""
HELD = "l4s/dualpi2/held-small-v0"
"""What it learns from."""


def bundled_log() -> Path:
    """A log that the simulator wrote: 8 s of `l4s-llm-testbed`, seed 0."""
    return Path(str(resources.files("l4s_gym") / "data" / "bundled" / "sim-testbed.log.gz"))


def find_pools(given: Path | None) -> Path | None:
    """Folder of the authors' pools: the given one, or `$L4S_GYM_POOLS`; None: they are not there."""
    if given is not None and not (given / POOL_FILES[0]).is_file():
        raise L4SError(f"--pools {given}: no {POOL_FILES[0]} there; leave --pools out to use the bundled log")
    variable = os.environ.get("L4S_GYM_POOLS")
    place = given or (Path(variable) if variable else None)
    return place if place is not None and (place / POOL_FILES[0]).is_file() else None


def rows_dataset(pools: Path | None, say: Callable[[str], None]) -> str:
    """Make a dataset of the kernel's rows, or of the bundled log where they are not at hand; its id."""
    if pools is None:
        say("kernel rows: the authors' pools are not here (--pools FOLDER); a log of the simulator takes their place")
        name, rows = "bundled-log", [load_rows(bundled_log())]
        algorithm, text, simulator = "dualpi2_freebsd", "A log written by the simulator", fingerprint.FINGERPRINT
    else:
        say(f"kernel rows: {pools}")
        name, rows = "kernel-rows", [load_rows(pools / each) for each in POOL_FILES if (pools / each).is_file()]
        algorithm, text = "FreeBSD 14 dummynet l4s", "Rows of the testbed's kernel (authors' pools), read causally"
        simulator = fingerprint.KERNEL_LOG
    say(inspect_rows(rows[0]))
    dataset = minari_io.create(
        f"l4s/dualpi2/{name}-v0",
        episodes_from_rows(rows),
        env_kwargs={"scenario": "l4s-llm-testbed", "aqm": "dualpi2_freebsd"},
        algorithm_name=algorithm,
        description=text,
        simulator=simulator,
        overwrite=True,
    )
    return str(dataset.id)


def experiments(rows: str, steps: int) -> list[Experiment]:
    """Who is on the demo's board: the disciplines, the simple rules, and agents that train in a moment."""

    def trained(learner: str, variant: str, title: str, dataset: str, *settings: str, **more: str | int) -> Experiment:
        how = Training(learner, dataset, small=True, settings=settings)
        return Experiment(title, training=how, name=learner, variant=variant, **{"agent": "rule=sample"} | more)  # type: ignore[arg-type]

    bc = f"steps={steps}"
    llm = (f"train.steps={max(steps // 10, 1)}", "train.eval_steps=5000")
    kernel, cloned = rows.rsplit("/", maxsplit=1)[-1].removesuffix("-v0"), "Behaviour cloning of the testbed's kernel"
    return [
        *leaderboard.experiments(["native", "random", "threshold"]),
        trained("bc", kernel, "Behaviour cloning of logged rows", rows, bc),
        trained("bc", "simulated", f"{cloned}, simulated", SIMULATED, bc),
        trained(
            "bc", "simulated-argmax", f"{cloned}, simulated, always the likeliest", SIMULATED, bc, agent="rule=argmax"
        ),
        trained(
            "llm",
            "every10",
            "LLM agent, asked at each 10th packet, hardly trained",
            SIMULATED,
            *llm,
            decision_interval=10,
        ),
        Experiment(
            "One step of policy improvement, sets the parameters of the tuned DualPI2",
            "",
            training=Training(WINNER, HELD),
            name=WINNER,
            variant="held",
            form="parameters",
            control_interval_ms=500.0,
        ),
    ]


def standing(entries: Sequence[Entry]) -> str:
    """Whether `WINNER` is better than native DualPI2 in each suite, as the board says."""
    row = next(each for each in board.rows(entries) if each.agent == WINNER)
    if row.failed:
        return f"{WINNER} against native DualPI2: no result, it failed"
    told = []
    for suite, over in row.over_native.items():
        verdict = "cannot be told apart" if not over.sure else "above" if over.value > 0.0 else "below"
        told.append(f"{suite} {board.span(over, sign='+')} {verdict}")
    return f"{WINNER} against native DualPI2: {', '.join(told)}"


def run_demo(
    out: Path, *, pools: Path | None, steps: int, jobs: int | None, say: Callable[[str], None], progress: ShowProgress
) -> list[Entry]:
    """Run it all, in the size `quick`; datasets, agents, entries and the report lie in `out`."""
    rules = read_protocol()
    out = out.resolve()
    (out / "datasets").mkdir(parents=True, exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str(out / "datasets")
    wanted = experiments(rows_dataset(find_pools(pools), say), steps)
    entries = leaderboard.produce(wanted, rules, "quick", out, jobs=jobs, say=say, progress=progress)
    say(standing(entries))
    return entries
