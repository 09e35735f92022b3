"""Train agents and test them, on logged decisions and in the simulator."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from l4s_gym.cli.common import Settings, chosen_scenario, console, progress_bar, say
from l4s_gym.errors import L4SError

Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="AGENT")]


def train(
    agent: Name,
    dataset: str = "",
    scenarios: str = "",
    config: Path | None = None,
    out: Path | None = None,
    settings: Settings = (),
    small: bool = False,
    resume: bool = False,
    allow_stale: bool = False,
) -> None:
    """Train an agent offline on a dataset, or online in scenarios. Ctrl-C saves a checkpoint; --resume goes on from it.

    Args:
        agent: A kind of agents/README.md, such as onestep, llm or ppo, or module:attribute of your own.
        dataset: Id of a Minari dataset, such as l4s/dualpi2/testbed-small-v0.
        scenarios: For an agent that learns online: random:train or suite:train.
        config: Configuration (TOML); default: agents/AGENT/config.toml.
        out: Folder for the trained agent; default: runs/AGENT.
        settings: Change keys of the configuration, such as steps=2000 or imbalance.kind=sample.
        small: Use the small configuration: a few minutes on two cores.
        resume: Continue from the checkpoint in the folder; the result is the same as without the interruption.
        allow_stale: Accept a dataset of another version of the simulator; the agent then needs it too.
    """
    from l4s_gym.agents import training

    source, more = training.sources(agent, dataset, scenarios)
    chosen = training.load_config(agent, config, small=small, settings=settings)
    folder = out or Path("runs") / agent
    words = ["train", agent, "--out", str(folder)]
    words += (["--dataset", dataset] if dataset else []) + (["--scenarios", scenarios] if scenarios else [])
    words += [] if config is None else ["--config", str(config)]
    words += (["--set", *settings] if settings else []) + (["--small"] if small else [])
    done = _trained(agent, source, chosen, folder, words, resume=resume, allow_stale=allow_stale, **more)
    metrics = done.get("metrics") or {}
    if "accuracy" in metrics:
        console.print(_metrics_table({agent: metrics}, f"{agent} on {source}, held out: {metrics['steps']:,} steps"))
    steps = f", {done['steps']:,} steps" if "steps" in done else ""
    took = f" in {done['seconds']:.0f} s" if "seconds" in done else ""
    say(f"{folder}: {agent}{steps}{took}")


def compress(
    agent: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="AGENT")],
    recipe: Path,
    out: Path = Path("runs/compressed"),
) -> None:
    """Make an LLM agent of control intervals smaller and faster, by pruning, few bits and distillation.

    Args:
        agent: Folder of the agent.
        recipe: Steps (TOML), such as agents/llm/compress/small.toml; agents/llm/README.md describes them.
        out: Folder for the compressed agent.
    """
    from l4s_gym.agents.llm.compression import compress as compress_
    from l4s_gym.tables import read_toml

    with progress_bar(f"compressing {agent}") as show:
        done = compress_(agent, read_toml(recipe), out, place=str(recipe), say=say, progress=show)
    size = f"{done['parameters']:,} parameters, {done['bytes'] / 1e6:.1f} MB"
    took = f"{done['latency_p50_ms']} ms a decision (p99 {done['latency_p99_ms']} ms)"
    say(f"{out}: {size}, {took}, misses {100 * done['missed']:.2f} % of the variance of the agent's decisions")


def _trained(
    kind: str,
    source: str,
    config: dict[str, Any],
    folder: Path,
    words: list[str],
    *,
    resume: bool,
    allow_stale: bool,
    **more: Any,
) -> dict[str, Any]:
    """Train an agent with a progress bar; where it is stopped, say by which command to go on."""
    from l4s_gym.agents import training
    from l4s_gym.sim import fingerprint

    learner = training.learner(kind)
    training.check_folder(folder, resume=resume)  # reading the data may take minutes
    try:
        with fingerprint.allow_stale(allow_stale) as stale, progress_bar(f"training {kind}") as show:
            done = learner.train(source, config, folder, resume=resume, progress=show, say=say, **more)
    except KeyboardInterrupt:
        if folder.is_dir() and any(entry.name.startswith("checkpoint") for entry in folder.iterdir()):
            again = ["l4s-gym", *words, *(["--allow-stale"] if allow_stale else []), "--resume"]
            say(f"stopped; the checkpoint is in {folder}. To go on: {shlex.join(again)}")
        raise
    for text in stale:
        say(text)
    return done


def distil(
    agent: Name,
    to: Literal["tree", "forest", "mlp", "linear"] = "tree",
    out: Path | None = None,
    scenarios: str = "random:train",
    labels: int | None = None,
    config: Path | None = None,
    settings: Settings = (),
    small: bool = False,
    resume: bool = False,
    allow_stale: bool = False,
) -> None:
    """Teach an agent's decisions to an integer model that a queue's kernel runs by itself.

    Round by round the student drives episodes in the simulator, the agent labels them, and the student learns from all
    rounds. OUT is a saved agent, and OUT/model.bin in it the file for l4s-router --model. Ctrl-C saves a checkpoint;
    --resume goes on from it.

    Args:
        agent: The teacher: the folder of a saved agent, a rule such as threshold, or your own module:attribute.
        to: What the student is: a tree, a forest, a perceptron (int8), or a linear rule.
        out: Folder for the student; default: runs/student.
        scenarios: In which it learns: random:train or suite:train.
        labels: How often the teacher is asked in all: fewer for a slow one; default: that of the configuration.
        config: Configuration (TOML); default: agents/student/config.toml.
        settings: Change keys of the configuration, such as rounds=3 or hidden=[32].
        small: Use the small configuration.
        resume: Continue from the checkpoint in the folder; the result is the same as without the interruption.
        allow_stale: Accept an agent of another version of the simulator.
    """
    from l4s_gym.agents import training
    from l4s_gym.agents.student import KIND

    folder = out or Path("runs") / KIND
    chosen = training.load_config(KIND, config, small=small, settings=settings) | {"teacher": agent, "to": to}
    chosen |= {} if labels is None else {"labels": labels}
    words = ["distil", agent, "--to", to, "--out", str(folder), "--scenarios", scenarios]
    words += [] if labels is None else ["--labels", str(labels)]
    words += [] if config is None else ["--config", str(config)]
    words += (["--set", *settings] if settings else []) + (["--small"] if small else [])
    done = _trained(KIND, scenarios, chosen, folder, words, resume=resume, allow_stale=allow_stale)
    metrics = done["metrics"]
    table = Table(title=f"{to} and {done['teacher']}, where the student drives")
    columns = list(next(iter(metrics["agreement"].values())))
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, row in metrics["agreement"].items():
        table.add_row(name, *("-" if row[column] is None else f"{row[column]:.4f}" for column in columns))
    console.print(table)
    say("return of the teacher {:.4g}, of the student {:.4g}, in the same episodes".format(*metrics["returns"]))
    say(f"{folder}: {metrics['bytes']:,} bytes, {metrics['steps']:,} labels in {done['seconds']:.0f} s")


def examine(
    agents: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="AGENT [AGENT ...]")],
    dataset: str | None = None,
    scenario: str = "l4s-llm-testbed",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    aqm: str | None = None,
    reward: str = "fair",
    decision_interval: int = 1,
    control_interval_ms: float | None = None,
    seconds: float | None = None,
    settings: Settings = (),
    steps: int = 20_000,
    out: Path | None = None,
    allow_stale: bool = False,
) -> None:
    """Test agents: how well they predict logged decisions, and how they do in the simulator.

    Args:
        agents: The folder of a saved agent, random, threshold, enqueue, or module:attribute for your own.
        dataset: Dataset of logged decisions to predict; default: the one that the agent was trained on, of which only
            the held-out part is used.
        scenario: Scenario to simulate: a name, or the path of a TOML file.
        seeds: One episode is simulated for each seed.
        aqm: Queue discipline that runs below the agents; default: the scenario's.
        reward: balance, fair, power or l4s_llm, or weights: used=1,evenness=0.5,delay_c=-0.25,delay_l=-0.25.
        decision_interval: The agent decides every n-th packet, the queue discipline the others.
        control_interval_ms: Control interval of agents that set probabilities or parameters, simulated milliseconds;
            default: the one that they were trained for, or 16.
        seconds: Simulated seconds of an episode; default: the scenario's length.
        settings: Change fields of the scenario, such as link.rate_mbps=40 or options.pie.target_ms=10.
        steps: Predict at most this many logged decisions.
        out: Write all results to this JSON file.
        allow_stale: Accept agents and datasets of another version of the simulator; the results say so.
    """
    from l4s_gym import agents as agents_
    from l4s_gym.evaluation import harness, report
    from l4s_gym.evaluation.origin import origin
    from l4s_gym.sim import fingerprint

    if not agents:
        raise L4SError("test: name at least one agent")
    if min(seeds, default=0) < 0 or decision_interval < 1 or steps < 1:
        raise L4SError("test: --seeds takes numbers of 0 or more, --decision-interval and --steps 1 or more")
    chosen = chosen_scenario(scenario, seconds, settings)
    offline: dict[str, dict[str, Any]] = {}
    results: list[harness.Result] = []
    stale: list[str] = []
    for spec in agents:
        with fingerprint.allow_stale(allow_stale) as passed:
            agent = agents_.make(spec)
            found = _offline(agent, dataset, steps)
        stale += [text for text in passed if text not in stale]
        say_other_training(agent, aqm or chosen.aqm, decision_interval)
        if found is not None:
            label = f"{agent.name} ({agent.rule})"
            offline[spec if label in offline else label] = found
        with progress_bar(f"evaluating {agent.name}") as show:
            results += harness.evaluate(
                agent,
                chosen,
                seeds=seeds,
                aqm=aqm,
                reward=reward,
                decision_interval=decision_interval,
                control_interval_ms=control_interval_ms,
                progress=show,
            )
    for text in stale:
        say(text)
    if offline:
        console.print(_metrics_table(offline, "logged decisions"))
    console.print(report.table(results, f"{chosen.name}, {len(seeds)} seeds, reward {reward}"))
    if out is not None:
        from l4s_gym.data.files import atomic_write

        body = origin() | {"stale": stale, "offline": offline, "closed_loop": [result.as_dict() for result in results]}
        with atomic_write(out) as file:
            file.write(json.dumps(body, indent=2).encode() + b"\n")
        say(f"results: {out}")


def say_other_training(agent: Any, under: str, decision_interval: int) -> None:
    """Say where an agent is asked about packets otherwise than it was trained: how often, or over which discipline."""
    from l4s_gym.agents import form_of
    from l4s_gym.agents.training import trained_interval
    from l4s_gym.data.build import recipe_of
    from l4s_gym.forms import PACKET

    training = getattr(agent, "training", {})
    if form_of(agent) != PACKET:
        return
    trained = trained_interval(training)
    if trained not in (1, decision_interval):
        asked = f"{agent.name}: is asked at every {decision_interval}. packet"
        say(f"{asked}, and was trained for --decision-interval {trained}")
    recipe = recipe_of(str(training.get("dataset", "")))
    if recipe is not None and under not in recipe.laws:
        laws = " and ".join(recipe.laws)
        say(f"{agent.name}: is asked over {under}, and knows the probabilities of {laws}: give --aqm {recipe.laws[0]}")


def _offline(agent: Any, dataset: str | None, steps: int) -> dict[str, Any] | None:
    """Offline metrics of an agent; None if no dataset is known, or it does not decide about packets."""
    from l4s_gym.agents import form_of, metrics
    from l4s_gym.agents import logged as logged_
    from l4s_gym.agents.training import read_dataset, trained_interval
    from l4s_gym.data.trajectory import Trajectory
    from l4s_gym.forms import PACKET

    if form_of(agent) != PACKET:
        return None
    training = getattr(agent, "training", {})
    interval = trained_interval(training)
    trained_on = training.get("dataset")
    if isinstance(trained_on, list):  # a corpus of several has no part that is held out of all of them
        trained_on = trained_on[0] if len(trained_on) == 1 else None
    chosen = dataset or trained_on
    if chosen is None:
        return None
    episodes = read_dataset(chosen, "packet")
    stretches = [logged_.Stretch(*each) for each in training.get("held_out", ())]
    own = chosen == trained_on and bool(stretches)
    if own:
        if any(s.episode >= len(episodes) or s.stop > len(episodes[s.episode]) for s in stretches):
            raise L4SError(f"dataset {chosen!r}: is not what {agent.name} was trained on: it has other episodes")
        episodes = logged_.cut(episodes, stretches)
    logged = Trajectory.joined(episodes).strided(interval)
    index = logged.some(steps)
    probabilities = logged_.offline_probabilities(agent, logged, index)
    if probabilities is None:
        found = metrics.decisions(*logged_.offline_decisions(agent, logged, steps))
    else:
        found = metrics.classification(probabilities, logged.actions[index])
    return {"dataset": chosen, "part": "held out" if own else "all", **found}


def _metrics_table(rows: dict[str, dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    heads = ("cross-entropy", "constant", "accuracy %", "majority %", "macro-F1", "recall enqueue", "drop", "mark")
    for column in ("agent", *heads, "ECE drop", "mark", "Brier"):
        table.add_column(column, justify="left" if column == "agent" else "right")

    def cell(value: float | None, form: str = ".4f") -> str:
        return "-" if value is None else format(value, form)

    for name, m in rows.items():
        ece = m.get("ece", {})
        table.add_row(
            name,
            cell(m.get("cross_entropy")),
            cell(m.get("constant_cross_entropy")),
            cell(100 * m["accuracy"], ".2f"),
            cell(100 * m["majority"], ".2f"),
            cell(m["macro_f1"], ".3f"),
            *(cell(m["recall"][action], ".3f") for action in ("enqueue", "drop", "mark")),
            cell(ece.get("drop")),
            cell(ece.get("mark")),
            cell(m.get("brier")),
        )
    return table
