"""PPO (Schulman et al., 2017) in one file, on the native vector environment: it decides about every packet.

    python examples/ppo.py --steps 2000000

Prints the mean reward of a step as it learns, and compares the result with DualPI2 of RFC 9332. Needs PyTorch.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch
from torch.distributions import Categorical

from l4s_gym.evaluation.harness import evaluate

SCENARIO, ENVS, LENGTH, EPOCHS, BATCH = "l4s-llm-testbed", 64, 256, 4, 2048
GAMMA, LAMBDA, CLIP, ENTROPY, RATE, SCALE = 0.999, 0.95, 0.2, 0.003, 1e-3, 1000.0  # a step's reward is about a ms


def mlp(out):
    Linear, Tanh = torch.nn.Linear, torch.nn.Tanh
    return torch.nn.Sequential(Linear(8, 64), Tanh(), Linear(64, 64), Tanh(), Linear(64, out))


class Policy(torch.nn.Module):
    """Actor and critic; with the methods of an agent, so that it is evaluated as any other."""

    name, rule = "ppo", "sample"

    def __init__(self):
        super().__init__()
        self.actor, self.critic = mlp(3), mlp(1)
        with torch.no_grad():
            self.actor[-1].weight *= 0.1
            self.actor[-1].bias[:] = torch.tensor([4.0, 0.0, 1.0])  # at first mostly "enqueue": drops starve senders

    def reset(self, n, seed):
        torch.manual_seed(seed)

    @torch.no_grad()
    def act(self, obs, rewards):
        return Categorical(logits=self.actor(torch.tensor(obs))).sample().numpy()

    def cost(self):
        return {"parameters": float(sum(p.numel() for p in self.actor.parameters()))}


def collect(envs, policy, obs, ended):
    """`LENGTH` steps of all environments; a step right after an episode's end only starts the next one."""
    keep = []
    for _ in range(LENGTH):
        with torch.no_grad():
            chosen = Categorical(logits=policy.actor(torch.tensor(obs)))
            action = chosen.sample()
            row = [torch.tensor(obs), action, chosen.log_prob(action), policy.critic(torch.tensor(obs))[:, 0]]
        obs, reward, terminated, truncated, _ = envs.step(action.numpy())
        valid, ended = ~ended, terminated | truncated
        keep.append([*row, *map(torch.tensor, (np.float32(SCALE * reward), valid, ended))])
    return obs, ended, [torch.stack(column) for column in zip(*keep, strict=True)]


def advantages(policy, obs, values, rewards, ends):
    """Generalised advantage estimates (T, N). Episodes end by time, so the last observation's value counts."""
    with torch.no_grad():
        after = torch.cat([values[1:], policy.critic(torch.tensor(obs))[None, :, 0]])
    delta, out, total = rewards + GAMMA * after - values, torch.zeros_like(values), 0.0
    for t in reversed(range(LENGTH)):
        out[t] = total = delta[t] + GAMMA * LAMBDA * ~ends[t] * total
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2_000_000)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    torch.set_num_threads(1)  # faster for networks this small
    envs = gym.make_vec("l4s_gym:L4S-DualPI2-v0", ENVS, "vector_entry_point", scenario=SCENARIO)
    policy = Policy()
    adam = torch.optim.Adam(policy.parameters(), RATE)
    (obs, _), ended = envs.reset(seed=0), np.zeros(ENVS, bool)
    for update in range(max(steps // (ENVS * LENGTH), 1)):
        obs, ended, (seen, actions, logs, values, rewards, valid, ends) = collect(envs, policy, obs, ended)
        gains = advantages(policy, obs, values, rewards, ends)
        x, a, log, gain, goal = seen[valid], actions[valid], logs[valid], gains[valid], (gains + values)[valid]
        for index in (part for _ in range(EPOCHS) for part in torch.randperm(len(x)).split(BATCH)):
            now = Categorical(logits=policy.actor(x[index]))
            ratio = (now.log_prob(a[index]) - log[index]).exp()
            g = (gain[index] - gain.mean()) / (gain.std() + 1e-8)
            loss = -torch.min(ratio * g, ratio.clamp(1 - CLIP, 1 + CLIP) * g).mean() - ENTROPY * now.entropy().mean()
            loss = loss + 0.5 * (policy.critic(x[index])[:, 0] - goal[index]).square().mean() / goal.var().clamp(1.0)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            adam.step()
        if update % 10 == 0:
            done = (update + 1) * ENVS * LENGTH
            print(f"{done:9} steps, mean reward {rewards[valid].mean() / SCALE:.6f} s", flush=True)
    for who in (policy, "native:dualpi2_rfc9332"):
        returns = [result.episode_return for result in evaluate(who, SCENARIO, seeds=[1000, 1001, 1002])]
        print(getattr(who, "name", who), "return", np.round(returns, 2))


if __name__ == "__main__":
    main()
