"""DQN-AQM: a deep Q-network marks or enqueues each packet, from its queue's backlog and delay.

M. Kim, M. Jaseemuddin, A. Anpalagan: Deep reinforcement learning based active queue management for IoT networks.
Journal of Network and Systems Management 29(3), 2021. See `agents/dqn_aqm/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Final, Self

import numpy as np

from l4s_gym.agents import saved
from l4s_gym.agents.d3rlpy_agents import seeded
from l4s_gym.agents.protocol import Actions, DecisionRule, Floats, Observations, check_batch, generators
from l4s_gym.agents.published.common import Config, Learner, Published, seeds
from l4s_gym.data.trajectory import Ints, Trajectory
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.schema import ENQUEUE, MARK, OBS_SCALE, OBSERVED
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch, Trajectories
from l4s_gym.sim.policy import Network, Policy
from l4s_gym.sim.scenario import load_all

_DELAY, _BYTES = (OBSERVED.index(name) for name in ("current_queue_delay", "length_in_bytes"))
INPUTS: Final = (0, _BYTES, _DELAY)
"""What the network sees: the queue, its bytes, its delay."""
UNITS: Final = np.array([1.0, 15_000.0 / OBS_SCALE[_BYTES], 5_000.0 / OBS_SCALE[_DELAY]], np.float32)
"""In which units it sees them, as observations."""
CHOICES: Final = (ENQUEUE, MARK)
"""What its outputs are about."""
_NEVER: Final = -1e9


class DqnConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration; the defaults are the full setting.

    Attributes:
        packets: Packets of each episode in a round; episodes go on from one to the next, of `seconds` each.
        hidden: Units of each of the two hidden layers.
        c_ms: Desired delay of C, ms.
        l_ms: Desired delay of L, ms.
        weight: Weight of the delay in the reward, the rest being that of what is enqueued.
        gamma: Discount per packet of a queue.
        steps: Gradient steps in a round.
        batch_size: Transitions in each.
        learning_rate: Learning rate of Adam.
        target_every: Gradient steps between two updates of the target network.
    """

    envs: int = 16
    packets: int = 20_000
    hidden: int = 64
    c_ms: float = 15.0
    l_ms: float = 1.0
    weight: float = 0.5
    gamma: float = 0.99
    steps: int = 500
    batch_size: int = 128
    learning_rate: float = 1e-3
    target_every: int = 10


class DqnAgent(Published):
    """Takes the action of the higher value; decides in the engine too."""

    kind, form = "dqn_aqm", PACKET
    configuration: ClassVar[type[Any]] = DqnConfig

    def __init__(
        self,
        tensors: Mapping[str, Any],
        settings: Mapping[str, Any],
        training: Mapping[str, Any],
        rule: str = "argmax",
    ) -> None:
        self.rule = rule
        self._rule = DecisionRule(rule)
        super().__init__(tensors, settings, training)

    @classmethod
    def of(cls, stored: saved.Saved, rule: str = "argmax", **options: str) -> Self:
        """Make the agent from what was saved; errors as `Published.of`."""
        stored.check(options, "rule")
        return cls(stored.tensors, stored.config, stored.training, rule)

    @cached_property
    def policy(self) -> Policy:
        """The values of the actions: with `sample` and `diffuse`, their softmax decides."""
        return Policy((network(self._tensors),), self.rule)

    def as_policy(self) -> Policy:
        """Return its policy, for the engine."""
        return self.policy

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        self._rule.reset(n, seed)

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Return actions (n,); rewards are not used."""
        check_batch(obs, self._rule.n)
        return self._rule.decide(self.policy.probabilities(obs), obs[:, 0])

    def logged_probabilities(self, logged: Trajectory, index: Ints) -> Floats:
        """Return the probabilities (B, 3) at logged steps (B,)."""
        return self.policy.probabilities(logged.observations[index])


def network(tensors: Mapping[str, Any]) -> Network:
    """Return the network of a module's `state_dict` as one of all fields and all actions, of which it never drops."""
    names = sorted({name.partition(".")[0] for name in tensors})
    layers = [tuple(tensors[f"{name}.{part}"].numpy().copy() for part in ("weight", "bias")) for name in names]
    first, last = layers[0][0], layers[-1]
    wide = np.zeros((len(first), len(OBSERVED)), np.float32)
    wide[:, INPUTS] = first
    weight, bias = np.zeros((3, last[0].shape[1]), np.float32), np.full(3, _NEVER, np.float32)
    weight[CHOICES, :], bias[list(CHOICES)] = last
    scale = np.ones(len(OBSERVED), np.float32)
    scale[list(INPUTS)] = UNITS
    return Network(((wide, layers[0][1]), *layers[1:-1], (weight, bias)), "relu", None, scale)


def reward(before: Observations, action: Ints, after: Observations, config: DqnConfig) -> Floats:
    """Return the published reward of actions (B,) between two observations of a queue (B, 8), in its desired delay."""
    desired_us = 1e3 * np.where(after[:, 0] > 0.5, config.l_ms, config.c_ms)
    delay = after[:, _DELAY] * OBS_SCALE[_DELAY] / desired_us
    enqueued = np.where((action == ENQUEUE) & (delay < 1.0), 0.0, delay - 1.0)
    found = config.weight * (1.0 - delay) + (1.0 - config.weight) * enqueued
    empty = (before[:, _BYTES] == 0.0) & (action != ENQUEUE)
    return np.clip(np.where(empty, -1.0, found), -1.0, 1.0)


class DqnWork:
    """Rounds of packets that the network decides about, some of them by chance, and of gradient steps on these."""

    def __init__(self, scenarios: str, config: DqnConfig) -> None:
        self._torch = torch = optional("torch", "baselines", "llm")
        self._config, self.steps = config, 0
        with seeded(config.seed):
            h = config.hidden
            layers = torch.nn.Linear(len(INPUTS), h), torch.nn.Linear(h, h), torch.nn.Linear(h, len(CHOICES))
            self._module = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
        self._optimiser = torch.optim.Adam(self._module.parameters(), config.learning_rate)
        self._batch = Batch(
            load_all(scenarios, config.seconds), config.envs, decider=layout.POLICY, policy=self._explorer(1.0)
        )

    def _explorer(self, epsilon: float) -> Policy:
        """Return the policy of the values, of which a share is drawn from both actions."""
        never = (1.0, 1e12, 1.0)
        share = 1.5 * epsilon / (1.0 + 0.5 * epsilon)  # of three, of which one is never taken
        return Policy((network(self.tensors()),), "sample", temperature=1e-6, epsilon=share, weights=never)

    def tensors(self) -> dict[str, Any]:
        """Return the network."""
        return {name: part.detach().clone() for name, part in self._module.state_dict().items()}

    def _play(self, number: int) -> tuple[Observations, Ints, Observations]:
        """Play a round; return transitions of the queues (B, 8), (B,), (B, 8)."""
        config, batch = self._config, self._batch
        given = seeds(config, number)
        episodes = [np.random.default_rng(each) for each in given]
        batch.decide_by(self._explorer(1.0 / (number / 5 + 1.0)))
        batch.start_policy(generators(config.envs, given[0]))
        for i, rng in enumerate(episodes):
            batch.reset(i, rng)
        found = Trajectories.of(config.packets, config.envs)
        batch.rollout(found, episodes)
        before, after = [], []
        for i in range(config.envs):
            over = np.cumsum(found.end[:, i] != 0) - (found.end[:, i] != 0)  # number of the episode
            for queue in (0.0, 1.0):
                at = np.flatnonzero(found.obs[:, i, 0] == queue)
                same = over[at[1:]] == over[at[:-1]]
                before.append(at[:-1][same] * config.envs + i)
                after.append(at[1:][same] * config.envs + i)
        flat = found.obs.reshape(-1, len(OBSERVED))
        one, two = np.concatenate(before), np.concatenate(after)
        return flat[one], found.action.reshape(-1)[one], flat[two]

    def round(self, number: int) -> dict[str, float]:
        """Play the packets, and learn from them."""
        torch, config = self._torch, self._config
        before, action, after = self._play(number)
        self.steps += config.packets * config.envs
        paid = torch.tensor(reward(before, action, after, config), dtype=torch.float32)
        x, y = (torch.tensor(part[:, INPUTS] / UNITS) for part in (before, after))
        chosen = torch.tensor((action == MARK).astype(np.int64))
        with seeded(1_000_000 * config.seed + number):
            for step in range(config.steps):
                if step % config.target_every == 0:
                    target = {name: part.clone() for name, part in self._module.state_dict().items()}
                k = torch.randint(len(x), (config.batch_size,))
                with torch.no_grad():
                    best = torch.func.functional_call(self._module, target, (y[k],)).max(1).values
                told = self._module(x[k]).gather(1, chosen[k, None])[:, 0]
                loss = ((told - paid[k] - config.gamma * best) ** 2).mean()
                self._optimiser.zero_grad()
                loss.backward()
                self._optimiser.step()
        return {"loss": loss.item(), "reward_per_packet": float(paid.mean()), "marked": float(chosen.double().mean())}

    def state(self) -> dict[str, Any]:
        """Return the state."""
        return {"module": self.tensors(), "optimiser": self._optimiser.state_dict(), "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self._module.load_state_dict(state["module"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.steps = int(state["steps"])


LEARNER: Final = Learner(DqnAgent, DqnWork)
