"""PPO of Stable-Baselines3 on the environment of control intervals: two probabilities every 16 ms.

    pip install stable-baselines3
    python examples/sb3.py --steps 200000

Stable-Baselines3 is no dependency of l4s-gym.
"""

import argparse

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

ID = "l4s_gym:L4S-DualPI2-Prob-v0"
SCENARIO = {"scenario": "l4s-llm-testbed"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    torch.set_num_threads(1)  # faster for networks this small
    envs = make_vec_env(ID, n_envs=8, seed=0, env_kwargs=SCENARIO)
    scaled = VecNormalize(envs, norm_obs=False, gamma=0.99)
    model = PPO("MlpPolicy", scaled, n_steps=512, batch_size=512, verbose=1, device="cpu")
    model.learn(parser.parse_args().steps)
    scaled.training = scaled.norm_reward = False
    mean, deviation = evaluate_policy(model, scaled, n_eval_episodes=8)
    print(f"return {mean:.2f} +- {deviation:.2f}")


if __name__ == "__main__":
    main()
