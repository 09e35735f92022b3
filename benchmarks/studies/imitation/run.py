"""Compare every agent with the kernel that it was trained on, as a forecaster and in the closed loop.

    python benchmarks/studies/imitation/run.py          # hours on two cores; appends to results/imitation.json
        python benchmarks/studies/imitation/run.py --quick  # minutes, a part of all; writes into the work folder
    python benchmarks/studies/imitation/run.py --datasets testbed --agents bc dt

Each agent is trained in its `small` setting, as by `l4s-gym train`. The datasets are simulated, so the kernel's
own probabilities are known at each step: the study measures the distance from them, on the held-out episode,
and the agent in the closed loop under each decision rule. Finished trainings and measurements are kept in the work
folder: a stopped run continues from there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import distances
from l4s_gym.agents import RULES, make, saved, training
from l4s_gym.agents.logged import offline_probabilities
from l4s_gym.cli.arguments import command_line
from l4s_gym.data import build, minari_io, recipes
from l4s_gym.data.files import atomic_write
from l4s_gym.errors import L4SError, unknown
from l4s_gym.evaluation import harness
from l4s_gym.evaluation.origin import append_run, origin
from l4s_gym.markdown import table
from l4s_gym.schema import ACTIONS
from l4s_gym.sim.disciplines import AQMS
from l4s_gym.sim.scenario import load

RESULTS: Final = Path(__file__).resolve().parent / "results"
LLM: Final = "llm-"
IMITATORS: Final = ("bc", "dt", "llm-gpt2", "llm-opt", "llm-llama", "llm-t5")
VALUES: Final = ("cql", "bcq", "dqn", "double_dqn", "sac")
KERNEL: Final = "native:dualpi2_freebsd"
BESIDE: Final = (*(f"native:{aqm}" for aqm in AQMS), "random", "threshold", "enqueue")
FIGURES: Final[dict[str, tuple[str, str, Callable[[harness.Result], float | None]]]] = {
    "return": ("return", ".2f", lambda r: r.episode_return),
    "drop": ("drop %", ".2f", lambda r: 100 * r.drop_rate),
    "mark": ("mark %", ".2f", lambda r: 100 * r.mark_rate),
    "c_p50": ("C p50 ms", ".1f", lambda r: r.delay_ms["C"]["p50"]),
    "c_p99": ("C p99 ms", ".0f", lambda r: r.delay_ms["C"]["p99"]),
    "l_p50": ("L p50 ms", ".1f", lambda r: r.delay_ms["L"]["p50"]),
    "l_p99": ("L p99 ms", ".0f", lambda r: r.delay_ms["L"]["p99"]),
    "utilisation": ("util %", ".1f", lambda r: 100 * r.utilisation),
    "ratio": ("L/C", ".2f", lambda r: r.goodput_ratio),
}
JUDGED: Final = ("return", "drop", "mark", "c_p50", "l_p50")
"""An agent is distinguished from the kernel if the 95 % interval of the difference in one of these excludes 0."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Options of training and measurement.

    Attributes:
        datasets: Recipes whose small dataset is used, and built if it is missing.
        agents: Agents trained on each.
        seconds: Length of the closed loop, including the scenario's warm-up, which is left out of the figures.
        seeds: Seeds of the closed loop.
        steps: Most held-out steps used.
        work: Folder of agents and finished measurements.
        out: Folder of the results.
        quick: A small part of everything, as a test: the figures have no meaning.
    """

    datasets: tuple[str, ...] = ("testbed", "testbed-prague")
    agents: tuple[str, ...] = ("bc", "dqn", "double_dqn", "cql", "bcq", "sac", "dt", *IMITATORS[2:])
    seconds: float = 20.0
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 20_000
    work: Path = Path("runs/imitation")
    out: Path = RESULTS
    quick: bool = False


class Clock:
    """Prints progress and the remaining time, from the mean time of finished jobs of the same kind, or of all."""

    def __init__(self, jobs: Sequence[str]) -> None:
        self._left = list(jobs)
        self._took: dict[str, list[float]] = {}

    def run(self, kind: str, what: str, job: Callable[[], tuple[Any, bool]]) -> Any:
        """Run a job that returns its result and whether it was computed now; return the result."""
        start = time.monotonic()
        found, fresh = job()
        took = time.monotonic() - start
        self._left.remove(kind)
        if fresh:
            for name in (kind, kind.split(maxsplit=1)[0]):
                self._took.setdefault(name, []).append(took)
        rest = sum(
            float(np.mean(self._took.get(k) or self._took.get(k.split(maxsplit=1)[0], [0.0]))) for k in self._left
        )
        kept = f"{took:.0f} s" if fresh else "kept from before"
        print(f"{what}: {kept}; {len(self._left)} jobs left, about {rest / 60:.0f} min", flush=True)
        return found


def cached(folder: Path, key: dict[str, Any], measure: Callable[[], Any]) -> tuple[Any, bool]:
    """Return a measurement, made once for its key; and whether it was made now."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    path = folder / "measured" / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())["found"], False
    found = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps({"key": key, "found": found}).encode())
    return found, True


# -- training


def config_of(agent: str, quick: bool) -> tuple[str, training.Plain]:
    """Return the learner of an agent and its small setting."""
    if agent.startswith(LLM):
        few = ("train.steps=4", "train.eval_every=4", "train.eval_steps=400") if quick else ()
        return "llm", training.load_config("llm", small=True, settings=(f"preset={agent.removeprefix(LLM)}", *few))
    brief = ("steps=40", "held_out_steps=400") if quick else ()
    return agent, training.load_config(agent, small=True, settings=brief)


def train(agent: str, dataset_id: str, folder: Path, quick: bool) -> tuple[Path, bool]:
    """Return the folder of the trained agent, and whether it was trained now."""
    name, config = config_of(agent, quick)
    steps = config["train"]["steps"] if name == "llm" else config["steps"]
    if (folder / saved.ABOUT).exists():
        about = saved.read(folder).training
        if (about["dataset"], about["steps"]) != (dataset_id, steps):
            raise L4SError(f"{folder}: was trained otherwise ({about['dataset']}, {about['steps']} steps): remove it")
        return folder, False
    resume = folder.is_dir() and any(folder.glob(f"{saved.CHECKPOINT}*"))
    file = processor_file(folder)
    before = json.loads(file.read_text()) if resume and file.exists() else 0.0
    start = time.process_time()
    try:
        training.learner(name).train(dataset_id, config, folder, resume=resume)
    finally:
        if folder.is_dir() and (not resume or before):  # else the start of the training was not measured
            file.write_text(json.dumps(before + time.process_time() - start))
    return folder, True


def processor_file(folder: Path) -> Path:
    """Return the file for the processor time of a training: other programs may have used the machine too."""
    return folder.with_name(f"{folder.name}.processor.json")


# -- measuring


def offline(folder: Path, held: distances.HeldOut, steps: int) -> Row:
    """Compare an agent with the kernel on held-out steps."""
    agent = make(str(folder))
    about: dict[str, Any] = agent.training  # type: ignore[attr-defined]
    held.check(about, agent.name)
    index = held.logged.some(steps)
    p = offline_probabilities(agent, held.logged, index)
    assert p is not None
    row = distances.compare(p, held.probabilities[index], held.logged.actions[index])
    file = processor_file(folder)
    processor = json.loads(file.read_text()) if file.exists() else None
    took = {"training_seconds": about["seconds"], "training_processor_seconds": processor}
    return {**took, "parameters": agent.cost()["parameters"], **row}


def references(held: distances.HeldOut, steps: int) -> dict[str, Row]:
    """Compare a constant prediction of the shares of the actions, and the kernel itself."""
    index = held.logged.some(steps)
    q, actions = held.probabilities[index], held.logged.actions[index]
    constant = np.tile(held.shares, (len(index), 1))
    return {"constant": distances.compare(constant, q, actions), "the kernel itself": distances.compare(q, q, actions)}


def loop(who: str, scenario: str, options: Options) -> list[Row]:
    """Run the closed loop: one row per seed."""
    chosen = load(scenario).replace(horizon_s=options.seconds)
    results = harness.evaluate(who, chosen, seeds=options.seeds)
    return [{"seed": r.seed, "rule": r.rule} | {name: get(r) for name, (_, _, get) in FIGURES.items()} for r in results]


def of_dataset(name: str, options: Options, clock: Clock) -> Row:
    """Train and measure all agents on a dataset."""
    recipe = recipes.load(name)
    dataset_id, scenario = recipe.dataset_id("small"), recipe.evaluated_on
    if not minari_io.dataset_folder(dataset_id).exists():
        build.build(recipe, "small")
    held = distances.HeldOut.of(training.read_dataset(dataset_id))
    made = recipes.digest(recipe, "small")
    settings = {"scenario": scenario, "seconds": options.seconds, "seeds": options.seeds, "simulator": made}
    rows, loops = references(held, options.steps), []

    def do_loop(label: str, who: str, rule: str, weights: str) -> None:
        key = {"loop": label, "rule": rule, "weights": weights, **settings}
        job = partial(cached, options.work, key, partial(loop, who, scenario, options))
        found = clock.run(f"loop {label}", f"{name}: closed loop of {label} {rule}".rstrip(), job)
        loops.append({"agent": label, "rule": found[0]["rule"], "runs": found})

    for who in BESIDE:
        do_loop(who, who, "", "")
    for agent in options.agents:
        folder = options.work / name / agent
        job = partial(train, agent, dataset_id, folder, options.quick)
        clock.run(f"train {agent}", f"{name}: training of {agent}", job)
        weights = hashlib.sha256((folder / saved.ABOUT).read_bytes()).hexdigest()
        key = {"offline": agent, "weights": weights, "dataset": made, "steps": options.steps}
        job = partial(cached, options.work, key, partial(offline, folder, held, options.steps))
        rows[agent] = clock.run(f"offline {agent}", f"{name}: forecasts of {agent}", job)
        for rule in RULES:
            do_loop(agent, f"{folder},rule={rule}", rule, weights)
    return {"dataset": dataset_id, "scenario": scenario, "offline": rows, "loops": loops}


def jobs(options: Options) -> list[str]:
    """Return the kinds of the jobs to do."""
    own = [f"{kind} {agent}" for agent in options.agents for kind in ("train", "offline", *["loop"] * len(RULES))]
    return [*(f"loop {who}" for who in BESIDE), *own] * len(options.datasets)


# -- report


def offline_cells(agent: str, row: Row) -> list[str]:
    low, high = row["kl_interval"]
    took = [row.get(key) for key in ("training_seconds", "training_processor_seconds")]
    times = ["-" if value is None else f"{value:.0f}" for value in took]
    parts = [f"{row[key]:.4f}" for key in ("cross_entropy", "excess", "kl")]
    means = [f"{100 * row['mean_probabilities'][action]:.2f}" for action in ACTIONS[1:]]
    errors = [f"{row['ece'][action]:.4f}" for action in ACTIONS[1:]]
    return [agent, *times, *parts, f"{low:.4f} to {high:.4f}", *means, *errors, f"{100 * row['never']:.1f}"]


def means(found: Row, name: str) -> list[float]:
    """Return a figure of each seed, where it is defined."""
    return [run[name] for run in found["runs"] if run[name] is not None]


def loop_cells(found: Row, kernel: Row) -> list[str]:
    cells = [found["agent"], found["rule"]]
    for name, (_, form, _) in FIGURES.items():
        text = "-"
        if values := means(found, name):
            middle, low, _ = distances.mean_interval(values)
            text = format(middle, form)
            if name in ("return", "drop", "mark"):
                text += f" +- {format(middle - low, form)}"
        cells.append(text)
    difference, low, high = against(found, kernel)
    cells.insert(3, f"{difference:+.2f} ({low:+.2f} to {high:+.2f})")
    bounds = {FIGURES[name][0]: against(found, kernel, name)[1:] for name in JUDGED}
    told = ", ".join(title for title, (low, high) in bounds.items() if not low <= 0.0 <= high)
    return [*cells, told or "nothing"]


def against(found: Row, kernel: Row, name: str = "return") -> tuple[float, float, float]:
    """Return the difference of a figure from the kernel's, seed by seed: mean and 95 % interval."""
    return distances.mean_interval(np.subtract(means(found, name), means(kernel, name)))


HEAD: Final = """\
# Imitation
Written by `python benchmarks/studies/imitation/run.py`: the newest run of each dataset; all figures of all runs are in
`imitation.json`. Agents are trained in their `small` setting, once each (what another seed of the training would give
is not shown), on two of the three episodes of 60 s.

**Forecasts**: the third episode. The kernel draws random numbers; its probabilities q are known at each step
(`l4s_gym.data.behaviour`), and no expected cross-entropy is below their entropy. KL is the exact mean of
sum q ln(q / p) in nats; the excess is its estimate from the actions that were drawn; the interval (95 %) is that of the
mean over blocks of neighbouring steps. No agent reaches 0: the observation lacks the ECN field and the delay at the
last update, which the kernel uses. The probabilities of cql, bcq, dqn and double_dqn are a softmax of values: only
cql's conservative term (an imitator's loss) trains them as a forecast. Those of sac come from a policy that is trained
to be as random as possible. "Ruled out" is the share of the steps at which the agent gives no probability to a possible
action.

**Closed loop**: the agent decides about each packet, under each decision rule; means and 95 % intervals (Student's t)
over the seeds, and the difference from the kernel's return seed by seed. An agent is distinguished from the kernel if
such an interval excludes 0, for the return, the shares of drops and marks, or the median delay of C or L (so there are
five chances for a distinction by chance alone).
"""


def markdown(newest: dict[str, Row]) -> str:
    """Return the tables and their explanation."""
    lines = [HEAD, "![reliability and decisions](imitation.png)", ""]
    for name, data in newest.items():
        itself = data["offline"]["the kernel itself"]
        does = itself["behaviour"]
        kernel = next(found for found in data["loops"] if found["agent"] == KERNEL)
        lines += [
            f"## {name}",
            "",
            f"`{data['dataset']}`, {itself['steps']:,} held-out steps; the kernel's entropy is {itself['entropy']:.4f} "
            f"nats; it drops {100 * does['drop']:.2f} % and marks {100 * does['mark']:.2f} %.",
            "",
        ]
        head = ["agent", "trained in s", "processor s", "cross-entropy", "excess", "KL", "KL, 95 %"]
        head += ["mean drop %", "mean mark %", "ECE drop", "ECE mark", "ruled out %"]
        ranked = sorted(data["offline"].items(), key=lambda item: float(item[1]["kl"]))
        lines += [*table(head, [offline_cells(agent, row) for agent, row in ranked]), ""]
        lines += [f"Closed loop on `{data['scenario']}`, {data['seconds']:g} s, seeds {data['seeds']}:", ""]
        titles = [title for title, _, _ in FIGURES.values()]
        head = ["agent", "rule", titles[0], "against the kernel", *titles[1:], "distinguished by"]
        lines += [*table(head, [loop_cells(found, kernel) for found in data["loops"]]), ""]
    return "\n".join(lines)


def draw(path: Path, newest: dict[str, Row]) -> None:
    """Draw reliability diagrams of drop and mark, and how often each agent acts under each rule."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5 * len(newest)), dpi=80, layout="constrained")
    axes: Any = figure.subplots(len(newest), 3, squeeze=False)
    for row, (name, data) in zip(axes, newest.items(), strict=True):
        for place, action in zip(row, ACTIONS[1:], strict=False):
            draw_reliability(place, data["offline"], action)
            place.set_title(f"{name}: {action}")
        draw_actions(row[2], data["loops"])
    axes[0, 0].legend(fontsize=8)
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def draw_reliability(place: Any, rows: dict[str, Row], action: str) -> None:
    """Draw the share of drops or marks by mean prediction, in bins of equal mass."""
    place.plot([0, 1], [0, 1], color="black", lw=0.6)
    for agent, row in rows.items():
        if agent == "constant":
            continue
        predicted, shares, _ = row["reliability"][action]
        group = VALUES if agent in VALUES else IMITATORS
        style = {"color": f"C{group.index(agent)}", "lw": 0.9} if agent in group else {"color": "black", "lw": 2.0}
        place.plot(predicted, shares, "o:" if agent in VALUES else "o-", ms=3, label=agent, **style)
    for set_scale in (place.set_xscale, place.set_yscale):
        set_scale("symlog", linthresh=1e-3)
    place.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted", ylabel="share that was drawn")


def draw_actions(place: Any, loops: Sequence[Row]) -> None:
    """Draw the share of packets dropped or marked, by agent and rule; the line is the kernel."""
    agents = [name for name in dict.fromkeys(found["agent"] for found in loops) if name in (*IMITATORS, *VALUES)]
    for found in loops:
        acts = float(np.mean(np.add(means(found, "drop"), means(found, "mark"))))
        if found["agent"] == KERNEL:
            place.axvline(acts, color="black", lw=1)
        elif found["agent"] in agents:
            kind = RULES.index(found["rule"])
            label = found["rule"] if found["agent"] == agents[0] else None
            place.plot(acts, agents.index(found["agent"]), "osD"[kind], color=f"C{kind}", ms=6, alpha=0.7, label=label)
    place.set_yticks(range(len(agents)), agents)
    place.set(xlabel="dropped or marked in the closed loop (%)", title="line: the kernel")
    place.legend(fontsize=8)


def main(options: Options) -> None:
    """Train, measure, append, report."""
    known = (*IMITATORS, *VALUES)
    for agent in options.agents:
        if agent not in known:
            raise unknown("agent", agent, known)
    if options.quick:
        options = replace(options, seconds=2.0, seeds=(0, 1), steps=400, work=options.work / "quick")
        options = replace(options, out=options.work)
    clock, found = Clock(jobs(options)), {}
    for name in options.datasets:
        found[name] = of_dataset(name, options, clock) | {"seconds": options.seconds, "seeds": options.seeds}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "imitation.json"
    run = {**origin(), "threads": torch.get_num_threads(), "quick": options.quick, "datasets": found}
    runs = append_run(path, run)
    newest = {name: data for run in runs for name, data in run["datasets"].items()}
    with atomic_write(options.out / "imitation.md") as file:
        file.write(markdown(newest).encode())
    draw(options.out / "imitation.png", newest)
    print(options.out / "imitation.md")


if __name__ == "__main__":
    main(command_line(Options))
