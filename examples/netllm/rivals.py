"""A learned rival of the adapted transformer for each task: small, and trained here.

| task | rival | in place of |
|---|---|---|
| bitrates | PPO of Stable-Baselines3 on links that change more and more often | GENET |
| scheduling | a graph policy by REINFORCE, whose baseline is the mean over episodes with the same jobs | Decima |
| viewports | an LSTM over the view, with what a convolution makes of the saliency | TRACK |

Each function returns a policy from one observation to an action, as the classical algorithms are.
"""

from __future__ import annotations

from dataclasses import replace

import abr
import cjs
import gymnasium as gym
import numpy as np
import torch
import vp
from torch import nn
from torch.nn import functional as F

from l4s_gym.agents.llm.encoders import GraphEncoder
from l4s_gym.agents.llm.settings import EncoderConfig, Feature

STAGES = 4
"""Stages of PPO's curriculum."""


def ppo_curriculum(seed: int, steps: int):
    """Train PPO in stages of links that change more and more often.

    Args:
        seed: Of weights, links and actions.
        steps: Steps of the environment in all.
    """
    from stable_baselines3 import PPO

    def flat(setting):
        return lambda: gym.wrappers.FlattenObservation(abr.Streaming(setting))

    full, model = abr.SETTINGS["same"], None
    for stage in range(1, STAGES + 1):
        share = stage / STAGES
        setting = replace(full, switch=share * full.switch, noise=share * full.noise)
        if model is None:
            net = {"net_arch": [64, 64]}
            options = {"n_steps": 480, "batch_size": 240, "gamma": 0.95, "ent_coef": 0.01, "policy_kwargs": net}
            model = PPO("MlpPolicy", flat(setting)(), seed=seed, device="cpu", learning_rate=1e-3, **options)
        else:
            model.set_env(flat(setting)())
        model.learn(steps // STAGES, reset_num_timesteps=False)
    space = abr.Streaming().observation_space
    return lambda observation: int(model.predict(gym.spaces.flatten(space, observation), deterministic=True)[0])


class GraphPolicy(nn.Module):
    """Scores of each stage and number of executors, from two rounds of messages on the graphs of the jobs."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        values = len(cjs.VALUES)
        feature = Feature("stages", "graph", (cjs.NODES, cjs.NODES + values))
        self.graph = GraphEncoder((feature,), EncoderConfig((feature,), hidden=hidden, unknown=""))
        self.whole, self.item = nn.Linear(hidden + 1, hidden), nn.Linear(hidden + values, hidden)
        self.out = nn.Linear(hidden, len(cjs.COUNTS))

    def forward(self, free, graph, mask):
        """Return log-probabilities (B, nodes * counts) of the choices."""
        nodes = self.graph.nodes(graph[:, None, None])[:, 0, 0]  # (B, nodes, hidden)
        whole = self.whole(torch.cat((nodes.mean(1), free[:, None]), -1))
        found = self.out(torch.tanh(self.item(torch.cat((nodes, graph[..., cjs.NODES :]), -1)) + whole[:, None]))
        return found.masked_fill(mask[..., None] == 0, -1e9).flatten(1).log_softmax(-1)


def _tensors(observations):
    graphs = [np.concatenate((o["stages"]["adjacency"], o["stages"]["nodes"]), axis=1) for o in observations]
    free, mask = np.stack([o["free"] for o in observations]), np.stack([o["action_mask"] for o in observations])
    return torch.from_numpy(free), torch.from_numpy(np.stack(graphs)), torch.from_numpy(mask)


def graph_reinforce(seed: int, updates: int, episodes: int = 8):
    """Train a graph policy by REINFORCE.

    Args:
        seed: Of weights, jobs and actions.
        updates: Updates of the policy.
        episodes: Episodes with the same jobs for each update.
    """
    torch.manual_seed(seed)
    model = GraphPolicy()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    envs = [cjs.Cluster() for _ in range(episodes)]
    for update in range(updates):
        seen = [env.reset(seed=(seed + 1) * 100_000 + update)[0] for env in envs]
        logged = [([], [], [], []) for _ in envs]  # observations, choices, rewards, times
        live = list(range(episodes))
        while live:
            with torch.no_grad():
                chosen = torch.multinomial(model(*_tensors([seen[each] for each in live])).exp(), 1)[:, 0].tolist()
            for number, choice in zip(list(live), chosen, strict=True):
                observations, choices, rewards, times = logged[number]
                observations.append(seen[number])
                choices.append(choice)
                times.append(envs[number].now)
                seen[number], reward, over, _, _ = envs[number].step(divmod(choice, len(cjs.COUNTS)))
                rewards.append(reward)
                if over:
                    live.remove(number)
        left = [np.cumsum(rewards[::-1])[::-1] for _, _, rewards, _ in logged]
        steady = [[np.interp(times, other[3], left[at], right=0.0) for at, other in enumerate(logged)]
                  for _, _, _, times in logged]  # fmt: skip
        gain = np.concatenate([mine - np.mean(all_, axis=0) for mine, all_ in zip(left, steady, strict=True)])
        gain = torch.from_numpy((gain / (gain.std() + 1e-6)).astype(np.float32))
        told = model(*_tensors([each for observations, *_ in logged for each in observations]))
        choices = torch.tensor([each for _, choices, _, _ in logged for each in choices])
        entropy = -(told.exp() * told.clamp_min(-50.0)).sum(-1).mean()
        share = 0.05 * (1.0 - update / updates)
        loss = -(told.gather(1, choices[:, None])[:, 0] * gain).mean() - share * entropy
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    def policy(observation):
        with torch.no_grad():
            return divmod(int(model(*_tensors([observation]))[0].argmax()), len(cjs.COUNTS))

    return policy


class ViewNet(nn.Module):
    """An LSTM over the view, and a convolution of the saliency, to the movement that follows."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, hidden, batch_first=True)
        self.image = nn.Sequential(
            nn.Conv2d(1, 16, 5, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, hidden), nn.ReLU()
        )
        self.out = nn.Sequential(nn.Linear(2 * hidden + 1, hidden), nn.ReLU(), nn.Linear(hidden, 20))

    def forward(self, view, elevation, saliency):
        _, (last, _) = self.lstm(view)
        return self.out(torch.cat((last[0], self.image(saliency[:, None]), elevation[:, None]), -1))


def lstm_saliency(seed: int, episodes, steps: int):
    """Train an LSTM on the right answers.

    Args:
        seed: Of weights and batches.
        episodes: Episodes (`l4s_gym.data.trajectory.Trajectory`) of right answers.
        steps: Updates.
    """
    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), ViewNet()
    rows = torch.from_numpy(np.concatenate([each.observations[:-1] for each in episodes]))
    right = torch.from_numpy(np.concatenate([each.actions.reshape(len(each), -1) for each in episodes]))

    def parts(given):
        return torch.stack((given["yaw"], given["pitch"]), -1), given["elevation"], given["saliency"]

    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        index = rng.integers(len(rows), size=256)
        loss = F.l1_loss(model(*parts(vp.parts(rows[index]))), right[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()

    def policy(observation):
        with torch.no_grad():
            told = model(*parts({name: torch.from_numpy(each)[None] for name, each in observation.items()}))
        return told.reshape(10, 2).numpy()

    return policy
