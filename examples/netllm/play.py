"""Episodes of the three environments by policies: functions from one observation to an action."""

from __future__ import annotations

import numpy as np


def play(env, policy, seeds):
    """Return the sum of the rewards of each episode, and its steps, (len(seeds),) each."""
    sums, steps = np.zeros(len(seeds)), np.zeros(len(seeds), int)
    for number, seed in enumerate(seeds):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            sums[number] += reward
            steps[number] += 1
            over = terminated or truncated
    return sums, steps


def table(make, settings, policies, seeds=range(1000, 1020), each_step=False) -> str:
    """Return a table in Markdown: the mean of the episodes' rewards (or of each step's) by policy and setting."""
    lines = ["| | " + " | ".join(settings) + " |", "|---" * (1 + len(settings)) + "|"]
    for name, policy in policies.items():
        found = [play(make(setting), policy, seeds) for setting in settings]
        means = [(sums / (steps if each_step else 1)).mean() for sums, steps in found]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines)
