"""An agent of your own on the leaderboard: marks with a probability that grows with the delay of the packet's queue.

    l4s-gym evaluate examples/own_agent.py:Ramp native:dualpi2_rfc9332 --seeds 0 1 --seconds 20
    l4s-gym leaderboard --add examples/own_agent.py:Ramp --size quick --out runs/ramp

Any object with `name`, `rule`, `reset`, `act` and `cost` will do; nothing is to be registered.
"""

import numpy as np

from l4s_gym.agents import DecisionRule
from l4s_gym.schema import L4S, MARK, OBSERVED, unscale_observation

QUEUE, DELAY = OBSERVED.index("queue_type"), OBSERVED.index("current_queue_delay")
FOOT_US = np.array([5_000.0, 500.0])
"""Delay of C and L from which packets are marked."""
TOP_US = np.array([60_000.0, 1_500.0])
"""Delay from which every packet is marked."""


class Ramp:
    """Decides for n environments at once."""

    name = "ramp"
    rule = "diffuse"  # how probabilities become decisions: evenly spaced, not drawn

    def reset(self, n, seed):
        self.decisions = DecisionRule(self.rule)
        self.decisions.reset(n, seed)

    def act(self, obs, rewards):
        """Actions (n,) for observations (n, 8); `rewards` (n,) are those since the last decision."""
        queue = (obs[:, QUEUE] == L4S).astype(int)
        delay_us = unscale_observation(obs)[:, DELAY]
        ramp = np.clip((delay_us - FOOT_US[queue]) / (TOP_US - FOOT_US)[queue], 0.0, 1.0)
        probabilities = np.zeros((len(obs), 3))
        probabilities[:, MARK] = np.where(queue == L4S, ramp, ramp**2)  # Classic senders halve their window
        probabilities[:, 0] = 1.0 - probabilities[:, MARK]
        return self.decisions.decide(probabilities, queue)

    def cost(self):
        return {"parameters": 4.0, "trainable_parameters": 0.0}
