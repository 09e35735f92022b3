"""Training of the LLM agent about control intervals, from windows of decisions.

First the transformer learns, with a small network on its features: for `onestep` a critic, which tells the differences
of the returns within a group from what one of its episodes shows (`l4s_gym.agents.onestep`), for `imitation` the actor,
from windows that end where actions were drawn. Then, for `onestep`, the features stay as they are, and critics and
actor are trained on them as the agent `onestep` trains them on observations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from l4s_gym import forms
from l4s_gym.agents import training as shared
from l4s_gym.agents.d3rlpy_agents import seeded
from l4s_gym.agents.llm import saving
from l4s_gym.agents.llm.backbones import count
from l4s_gym.agents.llm.intervals import IntervalModel, every
from l4s_gym.agents.llm.settings import LLMConfig, TrainConfig, to_dict
from l4s_gym.agents.llm.train import optimizer_of, trained
from l4s_gym.agents.onestep import Groups, Improvement, Memory, held_out, means_to_go, network, scale_of, standardised
from l4s_gym.agents.protocol import Floats
from l4s_gym.data.trajectory import Ints, Trajectory
from l4s_gym.errors import L4SError

_AT_ONCE: Final = 64
"""Windows of a pass without gradient."""


@dataclass(frozen=True)
class Windows:
    """Windows of episodes: N decisions each, padded at the end.

    Attributes:
        seen: What is seen (`l4s_gym.agents.onestep.Memory`) (M, N, S).
        before: Actions of the control interval before (M, N, K).
        returns: Discounted means of the rewards that followed (M, N).
        lengths: Decisions in each window (M,).
    """

    seen: Any
    before: Floats
    returns: Floats
    lengths: Any

    @classmethod
    def of(
        cls,
        episodes: Sequence[Trajectory],
        episode: Ints,
        step: Ints,
        config: LLMConfig,
        apart: int,
        interval_ms: float,
    ) -> Windows:
        """Cut out windows.

        Args:
            episodes: The episodes.
            episode: In which the windows are (M,).
            step: Where they end (M,).
            config: Configuration of the model.
            apart: Control intervals from one decision to the next.
            interval_ms: Control interval.
        """
        form, size, averages = forms.get(config.form), config.intervals.window, config.intervals.onestep.memory_s
        memory = Memory(interval_ms, averages)
        seen = np.zeros((len(step), size, len(form.features) * (1 + len(averages))), np.float32)
        before, returns = np.zeros((len(step), size, len(form.low))), np.zeros((len(step), size))
        lengths = np.minimum(step // apart + 1, size)
        gamma = math.exp(-interval_ms / (1e3 * config.intervals.onestep.horizon_s))
        order = np.argsort(episode, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(episode[order])) + 1):
            whole = episodes[episode[rows[0]]]
            all_seen, followed = memory.all(whole.observations[: step[rows].max() + 1]), means_to_go(whole, gamma)
            for row in rows:
                at = step[row] - apart * np.arange(lengths[row])[::-1]
                seen[row, : len(at)], returns[row, : len(at)] = all_seen[at], followed[at]
                before[row, : len(at)] = np.where((at > 0)[:, None], whole.actions[at - 1], form.idle)
        return cls(seen, before, returns, lengths)


def changes(episodes: Sequence[Trajectory], horizon: float, apart: int) -> tuple[Ints, Ints]:
    """Find where actions changed, at most once in about `apart` steps: in which episode (M,), and at which step (M,).

    There, what is seen does not tell the action yet, so that an imitator has to foresee it.
    """
    steps = []
    for each in episodes:
        changed = np.r_[True, (each.actions[1:] != each.actions[:-1]).any(axis=1)]
        at = np.flatnonzero(changed & (np.arange(len(each)) <= max(len(each) - round(horizon) // 2, 0)))
        steps.append(at[np.unique(at // apart, return_index=True)[1]])
    return np.repeat(np.arange(len(episodes)), list(map(len, steps))), np.concatenate(steps)


class Trainer:
    """A training of the transformer, and what follows from it.

    Args:
        episodes: The data.
        config: Of the model, in the form of the data.
        seed: Of weights, batches and windows.
        interval_ms: Control interval of the data.
        learned: Number of groups (of an imitator: episodes), the first ones, that it learns from, and the others are
            held out; None: the share `held_out` of them, at random, is held out.
    """

    def __init__(
        self,
        episodes: Sequence[Trajectory],
        config: LLMConfig,
        seed: int,
        interval_ms: float,
        learned: int | None = None,
    ) -> None:
        chosen = config.intervals
        self.config, self.seed, self.improves = config, seed, chosen.objective == "onestep"
        apart, horizon = every(config, interval_ms), 1e3 * chosen.onestep.horizon_s / interval_ms
        if self.improves:
            self.groups = Groups.of(episodes, horizon)
            episodes = [each for group in self.groups.episodes for each in group]
            count, size, steps = self.groups.advantages.shape
            row = np.random.default_rng(seed).permutation(count * size * steps)[: chosen.windows]
            episode, self.step_of = row // steps, row % steps
            self.unit, units = episode // size, count
            self.labels = torch.as_tensor(self.groups.labels[self.unit, :, self.step_of])
            self.actions = torch.as_tensor(self.groups.actions[self.unit])
        else:
            episode, self.step_of = changes(episodes, horizon, apart)
            self.unit, units = episode, len(episodes)
            self.actions = torch.as_tensor(
                np.array([episodes[number].actions[at] for number, at in zip(episode, self.step_of, strict=True)])
            )
        self.windows = Windows.of(episodes, episode, self.step_of, config, apart, interval_ms)
        share = chosen.onestep.held_out
        self._held = held_out(units, share, seed) if learned is None else np.arange(units) >= learned
        held = self._held[self.unit]
        self.rows, self.held = np.flatnonzero(~held), np.flatnonzero(held)
        if not len(self.rows):
            raise L4SError("one episode or group alone: use a dataset with more, or a smaller held_out")
        torch.manual_seed(seed)
        self.model = IntervalModel(config)
        self._standardise()
        self.critic: Any = network((self.model.size + self.actions.shape[-1], *chosen.onestep.critic_hidden, 1))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.both = nn.ModuleList((self.model, self.critic)).to(self.device)
        self.schedule = TrainConfig(
            steps=chosen.steps,
            learning_rate=chosen.learning_rate,
            weight_decay=chosen.weight_decay,
            warmup=chosen.warmup,
        )
        self.optimizer = optimizer_of(self.both, self.schedule)
        self.step = self.tokens = 0

    def _standardise(self) -> None:
        windows, model = self.windows, self.model
        real = np.arange(windows.returns.shape[1]) < windows.lengths[:, None]  # (M, N)
        for buffer, values in zip((model.mean, model.std), scale_of(windows.seen[real]), strict=True):
            buffer.copy_(torch.tensor(values))
        if not self.improves:
            returns = windows.returns[real]
            target = np.quantile(returns, self.config.intervals.quantile)
            model.returns.copy_(torch.tensor([returns.mean(), returns.std() + 1e-12, target]))

    def _features(self, rows: Any) -> Tensor:
        """Return the features of some windows (B, D)."""
        windows = self.windows
        tokens = self.model.tokens(windows.seen[rows], windows.before[rows], windows.returns[rows])
        lengths = torch.as_tensor(windows.lengths[rows])
        tokens = tokens[:, : int(lengths.max())].to(self.device)
        self.tokens += int(lengths.sum())
        return self.model.features(tokens, lengths.to(self.device))

    def _loss(self, rows: Any) -> Tensor:
        """Return the mean loss over some windows."""
        features, actions = self._features(rows), self.actions[rows].to(self.device)
        if not self.improves:
            told: Tensor = self.model.actor(features)
            return functional.mse_loss(told, actions)
        seen = features[:, None].expand(-1, actions.shape[1], -1)
        values: Tensor = self.critic(torch.cat((seen, actions), -1))[..., 0]
        return functional.mse_loss(values - values.mean(1, keepdim=True), self.labels[rows].to(self.device))

    def update(self) -> float:
        """Run one optimiser step; return its loss.

        Raises:
            L4SError: It is not finite.
        """
        rng = np.random.default_rng([self.seed, self.step])
        torch.manual_seed(int(rng.integers(1 << 62)))  # of the dropout
        self.both.train()
        loss = self._loss(self.rows[rng.integers(len(self.rows), size=self.config.intervals.batch_size)])
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.both.parameters(), self.schedule.clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise L4SError(f"training: the loss is not finite at step {self.step}: give a smaller learning_rate")
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def features(self, rows: Any) -> Floats:
        """Return the features of some windows (n, D), in `eval` mode."""
        self.both.eval()
        parts = [self._features(rows[at : at + _AT_ONCE]).cpu() for at in range(0, len(rows), _AT_ONCE)]
        return torch.cat(parts).numpy()

    def improve(self, stop: shared.Stop, say: shared.Say) -> dict[str, Any]:
        """Train critics and the actor on the features as they are now; return the metrics.

        Raises:
            KeyboardInterrupt: It was to stop.
        """
        model, chosen = self.model, self.config.intervals.onestep
        x = self.features(np.arange(len(self.unit)))
        model.center.copy_(torch.as_tensor(x.mean(axis=0)))
        model.spread.copy_(torch.as_tensor(x.std(axis=0) + 1e-3))
        x = standardised(x, model.center.numpy(), model.spread.numpy())
        work = Improvement(self.groups, x, self.unit, self.step_of, self._held, chosen, self.config.form)
        critics = []
        for number in range(chosen.critics):
            critics.append(work.critic(number))
            say(f"critic {number + 1}/{chosen.critics}: R2 {work.r2(critics[-1:]):.3f} on held-out groups")
            if stop.asked:
                raise KeyboardInterrupt
        model.actor.load_state_dict(work.actor(critics).state_dict())
        return {
            "steps": len(self.held) * self.actions.shape[1],
            "r2": work.r2(critics),
            "r2_of_each": [work.r2([each]) for each in critics],
        }

    @torch.no_grad()
    def imitated(self) -> dict[str, Any]:
        """Return the metrics of an imitator: the share of the variance of held-out actions that it explains."""
        true = self.actions[self.held].numpy()
        told = self.model.actor(torch.as_tensor(self.features(self.held)).to(self.device)).cpu().numpy()
        return {"steps": len(true), "r2": float(1.0 - ((told - true) ** 2).mean() / true.var())}


def train(
    dataset: Any,
    config: LLMConfig,
    seed: int,
    out: Path,
    *,
    simulator: str,
    resume: bool = False,
    progress: shared.Progress | None = None,
    say: shared.Say | None = None,
) -> dict[str, Any]:
    """Train an agent and save it.

    Args:
        dataset: The dataset (`minari.MinariDataset`).
        config: Of the model, in the form of the data.
        seed: Of weights and batches.
        out: Folder of the agent.
        simulator: Which made the data.
        resume: Continue from the checkpoint in `out`.
        progress: Called with the share of the training that is done.
        say: Told what happens, line by line.

    Returns:
        What is written as `training`.

    Raises:
        L4SError: The dataset or folder cannot be used, or the loss is not finite.
        KeyboardInterrupt: It was interrupted, and left a checkpoint.
    """
    from l4s_gym.data import minari_io

    tell, report, chosen = say or (lambda _: None), progress or (lambda _: None), config.intervals
    episodes = list(minari_io.read_valid(dataset))
    interval_ms = float(episodes[0].about["control_interval_ms"])
    try:
        with seeded(seed):
            trainer, options = Trainer(episodes, config, seed, interval_ms), shared.options_of(episodes)
    except L4SError as error:
        raise L4SError(f"dataset {dataset.id!r}: {error}") from error
    counts, steps = count(trainer.model), sum(map(len, episodes))
    path = shared.start_folder(out, resume=resume)
    plain = {"model": to_dict(config), "train": {"seed": seed}}
    same = {"simulator": simulator, "config": plain, "dataset": dataset.id}
    start = time.monotonic()
    if resume:
        state = shared.load_checkpoint(path, **same)
        trainer.model.load_state_dict(state["model"], strict=False)
        trainer.critic.load_state_dict(state["critic"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.step, trainer.tokens = state["step"], state["tokens"]
        start -= state["seconds"]
    tell(f"{counts}, on {len(trainer.rows):,} windows of {steps:,} steps")

    def keep() -> None:
        about = {"step": trainer.step, "tokens": trainer.tokens, "seconds": time.monotonic() - start}
        weights = {"model": trained(trainer.model), "critic": trainer.critic.state_dict()}
        shared.save_checkpoint(path, {**same, **about, **weights, "optimizer": trainer.optimizer.state_dict()})

    losses = []
    with seeded(seed), shared.interruptible() as stop:
        while trainer.step < chosen.steps:
            losses.append(trainer.update())
            done = trainer.step == chosen.steps
            if done or trainer.step % chosen.say_every == 0:
                tell(f"step {trainer.step}/{chosen.steps}, mean loss {np.mean(losses):.4f}")
                losses.clear()
            report(0.9 * trainer.step / chosen.steps)
            if stop.asked or done or trainer.step % chosen.checkpoint_every == 0:
                keep()
            if stop.asked:
                tell(f"stopped after step {trainer.step}: go on with --resume")
                raise KeyboardInterrupt
        metrics = trainer.improve(stop, tell) if trainer.improves else trainer.imitated()
    gpu = trainer.device.type == "cuda"
    result = {
        "dataset": dataset.id,
        "simulator": simulator,
        "dataset_steps": steps,
        "form": config.form,
        "control_interval_ms": interval_ms,
        "options": options,
        "asked_ms": interval_ms * every(config, interval_ms),
        "config": plain,
        "weights": trainer.model.backbone.weights,
        "steps": trainer.step,
        "seed": seed,
        "parameters": counts.total,
        "trainable_parameters": counts.trainable,
        "tokens": trainer.tokens,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if gpu else shared.peak_memory(),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start, 3),
        "metrics": metrics,
    }
    card = f"## On held-out episodes\nR2 {metrics['r2']:.3f}, of {metrics['steps']:,} actions.\n"
    saving.save(trainer.model, out, training=result, card=card)
    report(1.0)
    return result
