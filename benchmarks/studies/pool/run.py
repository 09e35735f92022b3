"""Compare models that predict the kernel's decisions in the authors' training pool, on five held-out blocks.

        python benchmarks/studies/pool/run.py  # 80 trainings; a stopped run continues
    python benchmarks/studies/pool/run.py --quick --work /tmp/work --out /tmp/here

Appends to pool.json and writes pool.md and pool.png into `results` beside this script. Each model is trained on four
contiguous blocks and tested on the fifth; the five results together are one figure over all rows. Readings: `as
logged`, with the accumulated probability as printed, after the decision; `causal`, with its value before.

A repeat of an agent trains on each of the five choices of four blocks, each with its own seed. The models of
scikit-learn draw no random numbers. The agents' settings are those of `[small]` in their `config.toml`, except
for the batch size of llm and the number of gradient steps, which was chosen by a curve on the ends of four blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from l4s_gym.agents.metrics import classification, reliability
from l4s_gym.agents.training import load_config
from l4s_gym.cli.arguments import command_line
from l4s_gym.data.causal import as_logged_observation
from l4s_gym.data.files import atomic_write
from l4s_gym.data.pools import Rows, load_rows
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError, unknown
from l4s_gym.evaluation.demo import POOL_FILES, find_pools
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.markdown import table
from l4s_gym.schema import ACTIONS, ENQUEUE, OBSERVED

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

import offline
from jobs import kept, spread

RESULTS: Final = Path(__file__).parent / "results"
OTHER_POOL: Final = "exp_pool_l4s_train_9feat.pkl"
BLOCKS: Final = 5
STRETCH: Final = 50
"""Rows of a stretch of the bootstrap: five of the pool's groups of ten."""
SEED: Final = 0
PAST: Final = 20
"""Actions before a row that a control sees: the same number as in the agents' windows."""
STEPS: Final = {"bc": 300, "dt": 200, "llm": 200}
"""Gradient steps of each kind; chosen by the curve."""
BATCH: Final = 8
"""Sequences of 40 steps in a batch of llm: half of the small setting's, to save time."""
CURVE: Final = {"bc": (50, 100, 200, 300, 400, 800), "dt": (50, 100, 200, 400), "llm": (100, 200, 400)}
CURVED: Final = ("bc", "dt", "llm-llama")
AGENTS: Final = ("bc", "dt", "llm-gpt2", "llm-opt", "llm-llama", "llm-t5")
MEMORY: Final = AGENTS[1:]
BOOSTING: Final = offline.TABULAR[-1]
READINGS: Final = ("as logged", "causal")
WITHOUT: Final = "without the accumulated probability"
ACTIONS_ALONE: Final = f"the last {PAST} actions alone"
WITH_ACTIONS: Final = f"causal, and the last {PAST} actions"
RULE: Final = "the kernel's rule"

Floats = npt.NDArray[np.float64]


class Run(NamedTuple):
    """Folder of the answers, and number of processes."""

    work: Path
    processes: int


class Answer(NamedTuple):
    """Answers of a model on a reading: probabilities of each repeat (R, T, 3)."""

    model: str
    reading: str
    probabilities: Floats


class Cell(NamedTuple):
    """A training: agent, blocks of a reading, held-out blocks, seed and steps."""

    agent: str
    data: str
    held: tuple[int, ...]
    seed: int
    steps: int

    @property
    def kind(self) -> str:
        """Kind of the agent: the learner's name."""
        return self.agent.partition("-")[0]

    @property
    def name(self) -> str:
        """Name of its files, which depends on the configuration."""
        digest = hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.agent}-{self.data}-{'.'.join(map(str, self.held))}-{self.seed}-{self.steps}-{digest}"

    def config(self) -> dict[str, Any]:
        """Configuration of the training."""
        if self.kind != "llm":
            settings = [f"steps={self.steps}", f"seed={self.seed}", "allow_gaps=true"]
            return load_config(self.kind, small=True, settings=settings)
        train = {
            "batch_size": BATCH,
            "steps": self.steps,
            "seed": self.seed,
            "allow_gaps": "true",
            "held_out": 0.0,
            "eval_every": self.steps,
        }
        settings = [f"preset={self.agent.partition('-')[2]}", *(f"train.{key}={value}" for key, value in train.items())]
        return load_config("llm", small=True, settings=settings)


def answer(cell: Cell, blocks: Trajectory, work: Path) -> Floats:
    """Train an agent; return its probabilities (n, 3) for the held-out rows."""
    ids = offline.dataset_ids(cell.data, blocks)
    return offline.agent_probabilities(cell.kind, cell.config(), blocks, cell.held, ids, work / cell.name)


def train_all(cells: Sequence[Cell], data: Mapping[str, Trajectory], run: Run) -> dict[Cell, Floats]:
    """Return the agents' answers; finished trainings are not repeated."""
    for name, blocks in data.items():
        offline.write_datasets(blocks, name)
    jobs = [
        partial(kept, run.work / f"{cell.name}.npy", partial(answer, cell, data[cell.data], run.work)) for cell in cells
    ]
    return dict(zip(cells, spread("trainings", jobs, run.processes), strict=True))


def curve(
    blocks: Trajectory, agents: Sequence[str], plan: Mapping[str, Sequence[int]], run: Run
) -> list[dict[str, Any]]:
    """Return the cross-entropy by gradient steps, on the ends of the blocks that remain without the first."""
    inner = offline.ends_of_others(blocks, 0)
    held = tuple(range(1, len(inner.starts) - 1, 2))
    cells = [Cell(agent, "pool-curve", held, 0, steps) for agent in agents for steps in plan[agent.partition("-")[0]]]
    found = train_all(cells, {"pool-curve": inner}, run)
    actions = inner.select(held).actions
    return [
        {
            "agent": cell.agent,
            "steps": cell.steps,
            "cross_entropy": classification(found[cell], actions)["cross_entropy"],
        }
        for cell in cells
    ]


def trained(
    data: Mapping[str, Trajectory], repeats: Mapping[str, int], steps: Mapping[str, int], run: Run
) -> list[Answer]:
    """Return the agents' answers, for each reading."""
    cells = [
        Cell(
            agent,
            f"pool-{reading.replace(' ', '-')}",
            (block,),
            repeat * BLOCKS + block,
            steps[agent.partition("-")[0]],
        )
        for repeat in range(max(repeats.values()))  # one of each first
        for agent, count in repeats.items()
        if repeat < count
        for reading in data
        for block in range(BLOCKS)
    ]
    named = {f"pool-{reading.replace(' ', '-')}": blocks for reading, blocks in data.items()}
    found = train_all(cells, named, run)
    answers = []
    for agent, count in repeats.items():
        for reading, name in zip(data, named, strict=True):
            mine = [found[cell] for cell in cells if (cell.agent, cell.data) == (agent, name)]
            whole = [np.concatenate(mine[at : at + BLOCKS]) for at in range(0, count * BLOCKS, BLOCKS)]
            answers.append(Answer(agent, reading, np.stack(whole)))
    return answers


# -- models of one row, and controls


def tabular_answers(asked: Sequence[tuple[str, str, Floats]], blocks: Trajectory, run: Run) -> list[Answer]:
    """Return the answers of models on readings (T, d)."""
    jobs = []
    for kind, _, values in asked:
        digest = hashlib.sha256(kind.encode() + values.tobytes()).hexdigest()[:16]
        jobs.append(
            partial(kept, run.work / f"{digest}.npy", partial(offline.tabular_probabilities, kind, values, blocks))
        )
    found = zip(asked, spread("models of one row", jobs, run.processes), strict=True)
    return [Answer(kind, reading, p[None]) for (kind, reading, _), p in found]


def untrained(rows: Rows, keep: npt.NDArray[np.bool_], data: Mapping[str, Trajectory], run: Run) -> list[Answer]:
    """Return the answers of scikit-learn's models, and of the controls."""
    causal = data["causal"]
    tables = {reading: blocks.observations.astype(np.float64) for reading, blocks in data.items()}
    past = offline.past_actions(causal, PAST)
    asked = [(kind, reading, tables[reading]) for reading in data for kind in offline.TABULAR]
    asked += [(kind, WITHOUT, offline.without_accumulated(causal)) for kind in offline.TABULAR[1:]]
    asked += [(BOOSTING, ACTIONS_ALONE, past), (BOOSTING, WITH_ACTIONS, np.hstack([tables["causal"], past]))]
    answers = tabular_answers(asked, causal, run)
    return [*answers, Answer(RULE, "causal", offline.kernel_rule(rows, keep, causal)[None])]


def all_rows(folder: Path, run: Run) -> list[dict[str, Any]]:
    """Measure two models on all rows in kernel units, as in earlier figures; no row is left out."""
    found = []
    for file in (POOL_FILES[0], OTHER_POOL):
        if not (folder / file).is_file():
            continue
        rows = load_rows(folder / file)
        blocks = offline.read_blocks(rows, BLOCKS, as_logged=True, keep=np.ones(len(rows), np.bool_))
        logged = as_logged_observation(rows)
        names = [name for name, column in zip(OBSERVED, logged.T, strict=True) if not np.isnan(column).any()]
        known = logged[:, [OBSERVED.index(name) for name in names]]
        readings = {"as logged": known, WITHOUT: np.delete(known, names.index("accumulated_probability"), axis=1)}
        asked = [(kind, reading, values) for reading, values in readings.items() for kind in offline.TABULAR[1:]]
        for model, reading, p in tabular_answers(asked, blocks, run):
            each = [blocks.run_of_step == block for block in range(BLOCKS)]
            parts = [classification(p[0, held], blocks.actions[held]) for held in each]
            mean = {name: float(np.mean([part[name] for part in parts])) for name in ("accuracy", "macro_f1")}
            mean |= {name: float(np.mean([part["recall"][name] for part in parts])) for name in ACTIONS}
            found.append({"file": file, "model": model, "reading": reading, "rows": len(rows), "of_blocks": mean})
    return found


# -- results


class Truth(NamedTuple):
    """Reference for answers: actions (T,), the majority model's answer (T, 3), rows with a random outcome (T,)."""

    actions: npt.NDArray[np.int64]
    base: Floats
    chance: npt.NDArray[np.bool_]


def judged(answer: Answer, truth: Truth, causal: Floats | None, draws: int) -> dict[str, Any]:
    """Return the figures of an answer with their intervals, and the reliability diagram of a drop or mark.

    Args:
        answer: The answer.
        truth: The reference.
        causal: Answers of the same model on the causal reading, to compare the accuracy with; None: no comparison.
        draws: Draws of the bootstrap; the same stretches for each answer.
    """
    model, reading, p = answer
    actions, base, chance = truth

    def sure(rows: Any, beside: Floats) -> Mapping[str, Mapping[str, float]]:
        rng = np.random.default_rng(SEED)
        return offline.with_intervals(p[:, rows], actions[rows], beside[rows], length=STRETCH, draws=draws, rng=rng)

    hits = reliability(1.0 - p[:, :, ENQUEUE].ravel(), np.tile(actions != ENQUEUE, len(p)), 10)
    found = {
        "model": model,
        "reading": reading,
        "repeats": len(p),
        "figures": sure(slice(None), base),
        "chance": sure(chance, base)["accuracy_gain"],
        "hits": [values.tolist() for values in hits],
    }
    if causal is not None:
        found["column"] = sure(slice(None), causal)["accuracy_gain"]
    return found


def judge_all(answers: Sequence[Answer], truth: Truth, draws: int, run: Run) -> list[dict[str, Any]]:
    """Judge all answers by `judged`."""
    causal = {a.model: a.probabilities[0] for a in answers if a.reading == "causal" and a.model in offline.TABULAR[1:]}
    jobs = [
        partial(judged, a, truth, causal.get(a.model) if a.reading == "as logged" else None, draws) for a in answers
    ]
    return spread("intervals", jobs, run.processes)


def interval(figure: Mapping[str, float], digits: int = 3) -> str:
    """Return a figure with its interval as text."""
    mean, low, high = (f"{figure[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low} to {high})"


TITLES: Final = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    **{f"recall_{name}": f"recall {name}" for name in ACTIONS},
    "cross_entropy": "cross-entropy",
    "ece": "ECE",
    "brier": "Brier",
}


def models(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows of Markdown."""
    lines = []
    for r in results:
        title = r["model"] if r["reading"] in READINGS else f"{r['model']}: {r['reading']}"
        cells = [interval(r["figures"][name]) if name in r["figures"] else "-" for name in TITLES]
        lines.append([title, "-" if r["model"] == RULE else BLOCKS * r["repeats"], *cells])
    return table(["model", "trainings", *TITLES.values()], lines)


def gains(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the gains of models; `chance`: on the rows whose outcome by the kernel's rule is random."""
    rows = []
    for r in results:
        figures = (r["figures"]["accuracy_gain"], r["chance"], r["figures"]["cross_entropy_gain"], r.get("column"))
        rows.append([r["model"], r["reading"], *(interval(each) if each else "-" for each in figures)])
    return table(["model", "reading", "accuracy", "accuracy, chance", "cross-entropy", "by the logged column"], rows)


PAPER: Final = """\
| reported, not measured here | accuracy | macro-F1 |
|---|---|---|
| the paper: Llama-2-7B, a *training* accuracy | 0.9756 | - |
| the paper: three other models | 0.82 to 0.83 | - |
| always "enqueue", all 2,490 rows | 0.828 | - |
| this project before: gradient boosting as logged, five blocks, all rows | 0.988 | 0.922 |
| this project before: the same without the accumulated probability | 0.800 | 0.499 |
| this project before: logistic regression as logged, the same | 0.826 | 0.440 |
"""
READ_SO: Final = f"""\
Figures are of all rows, each answered by a model that did not see its block; in brackets 95 % intervals of a bootstrap
over stretches of {STRETCH} consecutive rows (rows are not independent) and over repeats, where there are several. They
do not hold what another training set of this size would change. Macro-F1 and recall are of the most probable action.
ECE: expected calibration error in bins of equal mass, mean over the actions; Brier: squared distance of the
probabilities to the action.

Rows are left out, for every model and reading alike, where the accumulated probability before the decision cannot be
rebuilt, and where the same row stands in two blocks. The pool's rows are not consecutive: the windows of dt and llm
span its gaps, but never reach from one block into another. These agents see the actions that were logged before, and
the return that the log then reached. The backbones of llm are small and random, not pretrained. The rule is
`l4s_gym.data.causal`'s; nothing of it is trained but the ratio of drops to marks.
"""


def markdown(data: Mapping[str, Any]) -> str:
    """Return the page."""
    pool, results = data["pool"], data["results"]
    counts = ", ".join(f"{count:,} {name}" for name, count in pool["actions"].items())
    out = pool["left_out"]
    lines = [
        "# What foresees the kernel's decisions",
        f"`{data['command']}`, {data['time']}. The authors' training pool: {pool['rows']:,} rows; {pool['kept']:,} "
        f"({counts}) without the {out['unknown']} whose accumulated probability before the decision is unknown and the "
        f"{out['copied']} copied into another block. {BLOCKS} contiguous blocks, held out in turn.",
        "",
        "What follows from it: [the page of the study](../README.md).",
        "",
        "![accuracy with intervals, and reliability of the probability of a hit](pool.png)",
    ]
    for reading in READINGS:
        lines += ["", f"## {reading.capitalize()}", *models([r for r in results if r["reading"] == reading])]
    lines += ["", "## Controls", *models([r for r in results if r["reading"] not in READINGS])]
    lines += ["", "## Gained over always saying the shares of the training rows", *gains(results)]
    lines += ["", READ_SO, "## Beside it", PAPER]
    lines += ["The same now, on all rows, in kernel units; means over the blocks:", ""]
    rows = []
    for r in data["all_rows"]:
        accuracy, macro_f1, *recall = (f"{value:.3f}" for value in r["of_blocks"].values())
        rows.append([r["file"], r["model"], r["reading"], accuracy, macro_f1, " ".join(recall)])
    lines += table(["file", "model", "reading", "accuracy", "macro-F1", "recall enqueue, drop, mark"], rows)
    rows = []
    for agent in dict.fromkeys(each["agent"] for each in data["curve"]):
        points = [f"{c['steps']}: {c['cross_entropy']:.3f}" for c in data["curve"] if c["agent"] == agent]
        rows.append([agent, ", ".join(points), data["steps"][agent.partition("-")[0]]])
    lines += ["", "## Number of gradient steps", CURVE_TEXT, ""]
    lines += table(["agent", "steps: cross-entropy", "taken"], rows)
    return "\n".join(lines) + "\n"


CURVE_TEXT: Final = """\
One number for each kind of agent, chosen once: without the first block, the causal reading, trained on four fifths of
each block, cross-entropy on their last fifths. (These last fifths are part of the blocks that are held out elsewhere:
so much the choice of this number has seen.) One backbone stands for all of llm. Where more steps were better than those
taken, time decided: such an agent is undertrained.
"""


def picture(data: Mapping[str, Any]) -> Figure:
    """Draw accuracy with intervals, and reliability diagrams of a drop or mark."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, *right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    models = list(dict.fromkeys(r["model"] for r in data["results"] if r["reading"] in READINGS))
    for shift, reading, colour in ((-0.15, "as logged", "tab:red"), (0.15, "causal", "tab:blue")):
        those = [r for r in data["results"] if r["reading"] == reading]
        y = [models.index(r["model"]) + shift for r in those]
        mean, low, high = (
            np.array([r["figures"]["accuracy"][name] for r in those]) for name in ("mean", "low", "high")
        )
        left.errorbar(
            mean,
            y,
            xerr=(np.maximum(mean - low, 0), np.maximum(high - mean, 0)),
            fmt="o",
            ms=4,
            color=colour,
            label=reading,
        )
    alone = next(r for r in data["results"] if r["reading"] == ACTIONS_ALONE)["figures"]["accuracy"]["mean"]
    left.axvline(alone, color="grey", ls=":", label=ACTIONS_ALONE)
    left.set(yticks=range(len(models)), yticklabels=models, xlabel="accuracy on held-out blocks")
    left.invert_yaxis()
    left.legend(fontsize=8)
    for axes, reading in zip(right, READINGS, strict=True):
        axes.plot([0, 1], [0, 1], color="grey", lw=0.8)
        for r in data["results"]:
            if r["reading"] == reading and r["model"] != "majority":
                axes.plot(r["hits"][0], r["hits"][1], f".-C{models.index(r['model'])}", lw=1, label=r["model"])
        axes.set(xlabel="probability of a drop or mark", ylabel="share of drops and marks", title=reading)
    right[1].legend(fontsize=7)
    return figure


def write(data: Mapping[str, Any], out: Path) -> None:
    """Append to pool.json; write the page and the picture."""
    write_run(out, "pool", data, markdown(data))
    with atomic_write(out / "pool.png") as file:
        FigureCanvasAgg(picture(data)).print_png(file)


def main(
    pools: Path | None = None,
    work: Path = Path("runs/pool"),
    out: Path | None = None,
    agents: tuple[str, ...] = AGENTS,
    repeats: int = 3,
    memory_repeats: int = 1,
    processes: int = 2,
    draws: int = 500,
    quick: bool = False,
) -> None:
    """Measure and write the results.

    Args:
        pools: Folder of the authors' pools; else $L4S_GYM_POOLS.
        work: Folder of finished trainings, which are not done again.
        out: Folder of pool.json (appended), pool.md and pool.png; `results` beside this script by default.
        agents: Agents to train; a later run uses what is in `work`.
        repeats: Repeats of bc.
        memory_repeats: Repeats of dt and llm.
        processes: Trainings at a time, each on one thread.
        draws: Draws of the bootstrap.
        quick: Two agents and a few steps, as a test; writes nothing unless `out` is given.
    """
    for agent in agents:
        if agent not in AGENTS:
            raise unknown("agent", agent, AGENTS)
    folder = find_pools(pools)
    if folder is None:
        raise L4SError("pool: the authors' pools are not here: give their folder by --pools or in $L4S_GYM_POOLS")
    out = out or (None if quick else RESULTS)
    rows = load_rows(folder / POOL_FILES[0])
    digest = hashlib.sha256((folder / POOL_FILES[0]).read_bytes()).hexdigest()
    place = work / digest[:8]
    place.mkdir(parents=True, exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str(place.resolve() / "datasets")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # for the processes that are started

    reasons = offline.left_out(rows, BLOCKS)
    keep = ~np.logical_or.reduce(list(reasons.values()))
    data = {r: offline.read_blocks(rows, BLOCKS, as_logged=r == "as logged", keep=keep) for r in READINGS}
    actions = data["causal"].actions
    count = {agent: memory_repeats if agent in MEMORY else repeats for agent in agents}
    steps, plan = STEPS, CURVE
    if quick:
        count, steps, draws = {"bc": 1, "llm-llama": 1}, dict.fromkeys(STEPS, 2), 5
        plan = dict.fromkeys(CURVE, (2,))
    result: dict[str, Any] = origin() | {
        "pool": {
            "file": POOL_FILES[0],
            "sha256": digest,
            "rows": len(rows),
            "left_out": {reason: int(which.sum()) for reason, which in reasons.items()},
            "kept": len(actions),
            "actions": {name: int((actions == k).sum()) for k, name in enumerate(ACTIONS)},
        },
        "blocks": BLOCKS,
        "stretch": STRETCH,
        "draws": draws,
        "bootstrap_seed": SEED,
        "seeds": "repeat * 5 + block",
        "steps": steps,
        "configs": {agent: Cell(agent, "", (), 0, steps[agent.partition("-")[0]]).config() for agent in count},
    }
    run = Run(place, processes)
    answers = untrained(rows, keep, data, run) + trained(data, count, steps, run)
    curved = tuple(agent for agent in count if agent in CURVED)
    result["curve"] = curve(data["causal"], curved, plan, run)
    base, rule = (next(a for a in answers if a.model == model).probabilities[0] for model in ("majority", RULE))
    chance = (rule[:, ENQUEUE] > 0.0) & (rule[:, ENQUEUE] < 1.0)
    result["chance"] = {name: int((chance & (actions == k)).sum()) for k, name in enumerate(ACTIONS)}
    result["results"] = judge_all(answers, Truth(actions, base, chance), draws, run)
    result["all_rows"] = all_rows(folder, run)
    if out is not None:
        write(result, out)


if __name__ == "__main__":
    command_line(main)
