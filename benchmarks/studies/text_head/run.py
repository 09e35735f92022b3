"""Compare the text head with the linear head: validity, correctness and cost of the answers.

        python benchmarks/studies/text_head/run.py --work runs/heads  # existing agents are not trained again

The same random backbone is trained on the same dataset for the same numbers of optimiser steps, with three heads:

- `linear`: three logits after 20 steps of three tokens each (the agent as it is);
- `linear-1`: the same, but with one step, which is also the content of the text head's prompt;
- `text`: the state in words, and the answer written by the language-model head, one token for each byte.

A sequence of `linear` has 40 labels, a prompt of `text` one: equal steps are neither equal numbers of labels nor
equal cost; both are in the table. Latencies are given in wall time and in processor time, since the
first says little on a shared machine.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from l4s_gym import agents
from l4s_gym.agents.llm.text import ANSWER_TOKENS, parse, prompt
from l4s_gym.agents.llm.train import RESULT, train
from l4s_gym.agents.logged import Stretch, cut
from l4s_gym.agents.metrics import classification, decisions
from l4s_gym.agents.protocol import DecisionRule
from l4s_gym.agents.training import CHECKPOINT, config_file, load_config, read_dataset
from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.evaluation.harness import evaluate
from l4s_gym.evaluation.origin import origin
from l4s_gym.markdown import table
from l4s_gym.sim import scenario

RESULTS: Final = Path(__file__).resolve().parent / "results"
Head = Literal["linear", "linear-1", "text"]
SETTINGS: Final[dict[str, tuple[str, ...]]] = {
    "linear": (),
    "linear-1": ("model.window=1", "model.encoder.kernels=[1]"),
    "text": ("model.head=text",),
}
RULES: Final = ("argmax", "sample")
CALLS: Final = 200
_BATCH: Final = 64


@dataclass(frozen=True)
class Options:
    """Options of training and measurement.

    Attributes:
        dataset: Id of a Minari dataset.
        heads: Heads to train.
        steps: Numbers of optimiser steps; an agent is trained from the start for each.
        asked: Held-out steps that each agent is asked about.
        seeds: Seeds of the closed loop.
        seconds: Length of an episode of the closed loop, half of it warm-up. Only the agents with the most steps run.
        work: Folder of the agents; existing ones are used, stopped trainings continue.
        out: Files to write, `.json` and `.md`.
    """

    dataset: str = "l4s/dualpi2/testbed-small-v0"
    heads: tuple[Head, ...] = ("linear", "linear-1", "text")
    steps: tuple[int, ...] = (100, 300, 1000)
    asked: int = 500
    seeds: tuple[int, ...] = (0, 1)
    seconds: float = 1.0
    work: Path = Path("runs/text_head")
    out: Path = RESULTS / "text_head"


def trained(options: Options, head: str, steps: int) -> tuple[Path, dict[str, Any]]:
    """Return the folder and result of an agent, which is trained if it is missing."""
    out = options.work / f"{head}-{steps}"
    if not (out / RESULT).is_file():
        settings = [f"train.steps={steps}", "train.warmup=50", "train.eval_steps=200", f"train.eval_every={steps}"]
        config = load_config("llm", config_file("llm"), small=True, settings=[*settings, *SETTINGS[head]])
        train(options.dataset, config, out, resume=(out / CHECKPOINT).is_file(), say=print)
    return out, json.loads((out / RESULT).read_text())


def held_out(options: Options, stretches: list[list[int]]) -> tuple[Trajectory, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the held-out steps, and which of them are used, evenly spaced."""
    logged = Trajectory.joined(cut(read_dataset(options.dataset), [Stretch(*each) for each in stretches]))
    return logged, np.unique(np.linspace(0, len(logged) - 1, options.asked).astype(np.int64))


def written(agent: Any, logged: Trajectory, index: Any, rule: str) -> dict[str, Any]:
    """Measure answers to the prompts of logged steps: how many are valid, and how the decisions fit the log."""
    prompts = [prompt(logged.observations[step], logged.returns[step]) for step in index.tolist()]
    draws = np.random.default_rng(0).random((len(prompts), ANSWER_TOKENS))
    parts = [slice(at, at + _BATCH) for at in range(0, len(prompts), _BATCH)]
    found = [agent.model.ask(prompts[part], draws[part] if rule == "sample" else None) for part in parts]
    valid = np.concatenate([each.valid for each in found])
    texts = Counter(text for each in found for text in each.texts)
    return {
        "valid": float(valid.mean()),
        "tokens": float(np.concatenate([each.tokens for each in found]).mean()),
        "invalid_examples": [text for text, _ in texts.most_common() if parse(text) is None][:5],
        **decisions(np.concatenate([each.actions for each in found]), logged.actions[index]),
    }


def chosen(p: Any, logged: Trajectory, index: Any, rule: str) -> dict[str, Any]:
    """Measure the same for probabilities (T, 3): each is a valid answer without tokens."""
    decide = DecisionRule(rule)
    decide.reset(1, 0)
    queue = logged.observations[index, 0]
    taken = [int(decide.decide(p[k, None], queue[k, None])[0]) for k in range(len(index))]
    return {"valid": 1.0, "tokens": 0.0, **decisions(taken, logged.actions[index])}


def latency_ms(agent: Any, observations: Any) -> dict[str, float]:
    """Return the time of one decision: median and 99th percentile of wall time, and median of processor time."""
    agent.reset(1, 0)
    clock, processor = [], []
    for k in range(CALLS):
        row = observations[k % len(observations)][None]
        began, used = time.perf_counter(), time.thread_time()
        agent.act(row, np.zeros(1))
        processor.append(1e3 * (time.thread_time() - used))
        clock.append(1e3 * (time.perf_counter() - began))
    kept, used_ms = clock[CALLS // 10 :], processor[CALLS // 10 :]
    p50, p99 = np.percentile(kept, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "processor_p50": float(np.median(used_ms))}


def played(agent: Any, options: Options) -> list[dict[str, Any]]:
    """Run episodes in closed loop; return them with the number of invalid answers."""
    runs: list[Any] = []
    reset = agent.reset

    def noted(n: int, seed: int) -> None:
        reset(n, seed)
        runs.append(getattr(agent, "counts", {}))

    agent.reset = noted
    chosen_ = scenario.load("l4s-llm-testbed").replace(horizon_s=options.seconds)
    results = evaluate(agent, chosen_, seeds=options.seeds)
    names = ("agent", "rule", "scenario", "seed", "episode_return", "utilisation", "delay_ms", "mark_rate", "drop_rate")
    return [
        {name: result.as_dict()[name] for name in (*names, "decisions")} | {"answers": dict(runs[0])}
        for result in results
    ]


def measure(options: Options, head: str, steps: int) -> dict[str, Any]:
    """Return all figures of one head after one number of steps."""
    folder, result = trained(options, head, steps)
    logged, index = held_out(options, result["held_out"])
    kept = ("parameters", "trainable_parameters", "tokens", "seconds", "seed", "held_out")
    row: dict[str, Any] = {"head": head, "steps": steps, "config": result["config"]}
    row["training"] = {name: result[name] for name in kept}
    row["training"]["labels"] = steps * result["config"]["train"]["batch_size"] * result["config"]["train"]["length"]
    for rule in RULES:
        agent: Any = agents.make(f"{folder},rule={rule}")
        p = agent.logged_probabilities(logged, index)
        row["offline"] = classification(p, logged.actions[index])
        ask = written(agent, logged, index, rule) if head == "text" else chosen(p, logged, index, rule)
        row[rule] = {"decisions": ask, "latency_ms": latency_ms(agent, logged.observations[index])}
        if steps == max(options.steps):
            row[rule]["closed_loop"] = played(agent, options)
        print(f"{head}, {steps} steps, {rule}: {100 * ask['valid']:.1f} % valid", flush=True)
    return row


def offline_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the offline results as Markdown."""
    heads = (
        "head", "steps", "labels", "training s", "rule", "valid %", "tokens an answer", "accuracy %", "majority %",
        "macro-F1", "cross-entropy", "p50 ms", "p99 ms", "processor p50 ms",
    )  # fmt: skip
    lines = []
    for row in rows:
        for rule in RULES:
            d, ms = row[rule]["decisions"], row[rule]["latency_ms"]
            cells = (
                row["head"], f"{row['steps']:,}", f"{row['training']['labels']:,}", f"{row['training']['seconds']:.0f}",
                rule, f"{100 * d['valid']:.1f}", f"{d['tokens']:.1f}", f"{100 * d['accuracy']:.1f}",
                f"{100 * d['majority']:.1f}", f"{d['macro_f1']:.3f}", f"{row['offline']['cross_entropy']:.3f}",
                f"{ms['p50']:.1f}", f"{ms['p99']:.1f}", f"{ms['processor_p50']:.1f}",
            )  # fmt: skip
            lines.append(cells)
    return table(heads, lines, right=range(1, len(heads)))


def loop_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the closed-loop results as Markdown: means over the seeds, delays too."""
    heads = ("head", "rule", "decisions", "invalid %", "return", "used %", "C ms", "L ms", "marked %", "dropped %")
    lines = []
    for name, rule, runs in [
        (row["head"], rule, row[rule]["closed_loop"]) for row in rows for rule in RULES if "closed_loop" in row[rule]
    ]:
        answers = runs[0]["answers"]
        invalid = f"{100 * answers['invalid'] / answers['asked']:.2f}" if answers.get("asked") else "0"
        used, marked, dropped = (
            f"{100 * np.mean([run[key] for run in runs]):.2f}" for key in ("utilisation", "mark_rate", "drop_rate")
        )
        delays = [f"{np.mean([run['delay_ms'][queue]['mean'] for run in runs]):.1f}" for queue in ("C", "L")]
        returned = f"{np.mean([run['episode_return'] for run in runs]):.3f}"
        count = f"{sum(run['decisions'] for run in runs):,}"
        cells = (name, rule, count, invalid, returned, used, *delays, marked, dropped)
        lines.append(cells)
    return table(heads, lines, right=range(2, len(heads)))


def main(options: Options) -> None:
    """Train missing agents, measure, write."""
    torch.set_num_threads(1)
    rows = [measure(options, head, steps) for head in options.heads for steps in options.steps]
    body = origin() | {
        "dataset": options.dataset,
        "asked": options.asked,
        "seeds": list(options.seeds),
        "seconds": options.seconds,
        "rows": rows,
    }
    with atomic_write(options.out.with_suffix(".json")) as file:
        file.write(json.dumps(body, indent=2).encode() + b"\n")
    lines = [
        "# Text head and linear head",
        "",
        f"Written by `python benchmarks/studies/text_head/run.py`; all figures are in `{options.out.name}.json`. "
        f"Dataset: {options.dataset}. One thread of {body['host']['cpu']}, which others used too.",
        "",
        f"## {options.asked:,} held-out decisions",
        "",
        *offline_table(rows),
        "",
        "Cross-entropy is that of the action given a valid answer. An invalid answer counts as `enqueue`. Latencies "
        "are of one decision of the whole agent, one environment.",
        "",
        f"## Closed loop: l4s-llm-testbed, {options.seconds:g} s, {len(options.seeds)} seeds, after the most steps",
        "",
        *loop_table(rows),
        "",
    ]
    with atomic_write(options.out.with_suffix(".md")) as file:
        file.write("\n".join(lines).encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main(command_line(Options))
