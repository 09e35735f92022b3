"""What online learners share: their native vector environment, seeds, the scale of observations, and the rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.agents import training as shared
from l4s_gym.agents.onestep import scale_of
from l4s_gym.agents.protocol import Floats
from l4s_gym.sim import fingerprint
from l4s_gym.sim.scenario import OptionTables


def environment(
    form: str,
    scenarios: str,
    n: int,
    episode_s: float,
    options: OptionTables | None = None,
    **more: Any,
) -> Any:
    """Return the native vector environment of a form, with one thread and the engine's own arrays.

    Args:
        form: Its name.
        scenarios: What is drawn from for each episode, as `load_all` takes it.
        n: Number of environments.
        episode_s: Length of an episode, s.
        options: Of disciplines, in place of the scenarios'.
        more: Other arguments of the environment.
    """
    how = {"horizon_s": episode_s, "options": options, "copy": False, "num_threads": 1, **more}
    return forms.get(form).vector_class(n, scenarios, **how)


def statistics(env: Any, form: str, steps: int, rng: np.random.Generator) -> tuple[Floats, Floats, float]:
    """Return mean and deviation (F,) of observations in a short run, and the mean reward of a step.

    In the forms of control intervals they are those of ln(1 + observation).

    Half of the environments do nothing (the form's idle action), the others something that is drawn once and held; of
    packets, each action that is not to enqueue is drawn anew, for one in a hundred.
    """
    chosen, n = forms.get(form), env.num_envs
    seen = [env.reset(seed=rng.integers(2**31, size=n).tolist())[0].copy()]
    rewards: list[float] = []
    if chosen.low:
        actions = np.where(np.arange(n)[:, None] % 2, rng.uniform(chosen.low, chosen.high, (n, len(chosen.low))), 0.0)
        actions[::2] = chosen.idle
    for _ in range(steps):
        if not chosen.low:
            actions = np.where(rng.random(n) < 0.01 * (np.arange(n) % 2), rng.integers(1, 3, n), 0)
        obs, reward, *_ = env.step(actions)
        seen.append(obs.copy())
        rewards.append(float(reward.mean()))
    values = np.concatenate(seen).astype(np.float64)
    values = np.log1p(values) if chosen.low else values
    return *scale_of(values), float(np.mean(rewards))


def seeds(rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
    """Draw seeds of episodes (n,), none of which is one of the benchmark's, which are small."""
    return rng.integers(10**6, 2**31, n)


def about(scenarios: str, form: str, seed: int) -> dict[str, Any]:
    """Return what `training` of `agent.json` says of an online training, beside its own figures."""
    told = {"online": True, "scenarios": scenarios, "simulator": fingerprint.FINGERPRINT}
    return {**told, "form": form, "seed": seed}


def rounds(
    do: Callable[[int], str],
    keep: Callable[[], None],
    first: int,
    count: int,
    *,
    progress: shared.Progress | None = None,
    say: shared.Say | None = None,
    name: str = "round",
) -> None:
    """Do the rounds of a training, with a checkpoint at each tenth of it and where Ctrl-C stops it.

    Args:
        do: Does the round of a number, from 0 on; returns what there is to say of it.
        keep: Writes the checkpoint.
        first: Rounds that were done before.
        count: Rounds in all.
        progress: As `l4s_gym.agents.training.Learner` has it.
        say: Likewise.
        name: What a round is called.

    Raises:
        KeyboardInterrupt: It was stopped, between two rounds.
    """
    with shared.interruptible() as stop:
        for done in range(first + 1, count + 1):
            told = do(done - 1)
            if say is not None and done % max(count // 20, 1) == 0:
                say(f"{name} {done}/{count}: {told}")
            if progress is not None:
                progress(done / count)
            if done < count and (stop.asked or done % max(count // 10, 1) == 0):
                keep()
            if done < count and stop.asked:
                raise KeyboardInterrupt
