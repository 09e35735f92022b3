"""Intelligent AQM: an LSTM foresees ECN marks, and tabular Q-learning tunes the target by the congestion foreseen.

C. A. Gomez, X. Wang, A. Shami: Intelligent active queue management using explicit congestion notification. GLOBECOM
2019. See `agents/iaqm/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from l4s_gym import forms
from l4s_gym.agents.d3rlpy_agents import seeded
from l4s_gym.agents.protocol import Floats, Observations, check_batch, check_count
from l4s_gym.agents.published.common import Config, Episodes, Learner, Published
from l4s_gym.agents.published.coupling import AT
from l4s_gym.extras import optional

_STREAM: Final = 0x69617165
"""Separates the draws of the exploration from those of the episodes."""


class IaqmConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration; the defaults are the full setting.

    Attributes:
        window: Intervals that the predictor looks back.
        hidden: Units of the LSTM.
        period_s: Time for which a target is held, s.
        levels: Levels of foreseen congestion, the states.
        targets: Targets to choose from, the actions.
        learning_rate: Of the Q-learning.
        gamma: Its discount per period.
        epsilon: Share of the periods whose target is drawn, in training.
        predictor_rounds: First rounds, in which targets are drawn and the predictor is trained.
        predictor_steps: Gradient steps in each of these.
    """

    window: int = 10
    hidden: int = 8
    period_s: float = 1.0
    levels: int = 10
    targets: int = 11
    learning_rate: float = 0.5
    gamma: float = 0.8
    epsilon: float = 0.5
    predictor_rounds: int = 4
    predictor_steps: int = 300


def marks(obs: Observations) -> Floats:
    """Return the bytes marked in the last interval, in units of the link's capacity (n,)."""
    seen = obs.astype(np.float64)
    c, l4s = (seen[:, AT[f"marked_{q}"]] * seen[:, AT[f"offered_{q}"]] for q in "cl")
    return np.asarray(c + l4s)


def lstm(arrays: Mapping[str, Floats], x: Floats) -> Floats:
    """Return what follows after windows (B, W) of a series, as PyTorch's LSTM with a linear output does (B,)."""
    hidden = arrays["weight_hh_l0"].shape[1]
    h = c = np.zeros((len(x), hidden))
    for now in x.T:
        gates = now[:, None] * arrays["weight_ih_l0"][:, 0] + arrays["bias_ih_l0"] + arrays["bias_hh_l0"]
        gates += (h[:, None, :] * arrays["weight_hh_l0"]).sum(axis=-1)  # each row for itself
        i, f, g, o = np.split(gates, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
    return np.asarray((h * arrays["weight"]).sum(axis=-1) + arrays["bias"])


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x))


class IaqmAgent(Published):
    """Holds each target of the native law for a period."""

    kind, form = "iaqm", "parameters"
    configuration: ClassVar[type[Any]] = IaqmConfig

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes, with the operator's target; errors as `Published.reset`."""
        check_count(n)
        self.n, self.calls = n, 0
        self.period: int = max(round(self.config.period_s / self.interval_s), 1)
        self._marks = np.zeros((n, self.period + self.config.window - 1))  # the newest last
        self._action = np.zeros((n, len(forms.get(self.form).low)))

    def see(self, obs: Observations) -> bool:
        """Take in what was seen of an interval; return whether it was the last one of a period."""
        self._marks = np.roll(self._marks, -1, axis=1)
        self._marks[:, -1] = marks(obs)
        self.calls += 1
        return self.calls % self.period == 0

    def foreseen(self) -> Floats:
        """Return the mean of the marks that were foreseen in the last period (n,)."""
        windows = sliding_window_view(self._marks, self.config.window, axis=1)  # (n, P, W)
        flat = lstm(self.arrays, windows.reshape(-1, self.config.window))
        return np.asarray(flat.reshape(self.n, -1).mean(axis=1))

    def state(self) -> npt.NDArray[np.int64]:
        """Return the levels of foreseen congestion (n,)."""
        return np.searchsorted(self.arrays["edges"], self.foreseen())

    def hold(self, chosen: npt.NDArray[np.int64]) -> None:
        """Set the targets of the next period, by their numbers (n,)."""
        self._action[:, 0] = np.linspace(-1.0, 1.0, self.config.targets)[chosen]

    def act(self, obs: Observations, rewards: Floats) -> Floats:
        """Return actions (n, 5); rewards are not used."""
        check_batch(obs, self.n, self.form)
        if self.see(obs):
            self.hold(self.arrays["q"][self.state()].argmax(axis=1))
        return self._action.copy()


class IaqmWork:
    """Training of the predictor, and then Q-learning of the tuner."""

    def __init__(self, scenarios: str, config: IaqmConfig) -> None:
        self._torch = optional("torch", "baselines", "llm")
        self._config, self._episodes = config, Episodes(IaqmAgent.form, scenarios, config, "power")
        self.steps = 0
        self._q = np.zeros((config.levels, config.targets))
        self._edges = np.zeros(config.levels - 1)
        with seeded(config.seed):
            self._lstm = self._torch.nn.LSTM(1, config.hidden, batch_first=True)
            self._out = self._torch.nn.Linear(config.hidden, 1)

    def tensors(self) -> dict[str, Any]:
        """Return predictor, edges of the levels, and table of values."""
        learned = self._lstm.state_dict() | {name: part[0] for name, part in self._out.state_dict().items()}
        learned = {name: part.detach().clone() for name, part in learned.items()}
        return learned | {"q": self._torch.tensor(self._q), "edges": self._torch.tensor(self._edges)}

    def round(self, number: int) -> dict[str, float]:
        """Play the episodes; train the predictor after them, or learn values along."""
        config = self._config
        rng = np.random.default_rng([config.seed, number, _STREAM])
        agent = IaqmAgent(self.tensors(), msgspec.to_builtins(config), {})
        agent.reset(config.envs, 0)
        tuned = number >= config.predictor_rounds
        chosen, before = np.full(config.envs, config.targets // 2), np.zeros(config.envs, np.int64)
        series, earned, total = [], np.zeros(config.envs), 0.0
        for obs, rewards in self._episodes.play(number, lambda _: agent._action):
            earned += rewards
            total += float(rewards.mean())
            series.append(marks(obs))
            if not agent.see(obs):
                continue
            state = agent.state() if tuned else before
            if tuned and agent.calls > agent.period:
                self._learn(before, chosen, earned / config.period_s, state)
            drawn = rng.integers(config.targets, size=config.envs)
            explore = rng.random(config.envs) < (config.epsilon if tuned else 1.0)
            chosen = np.where(explore, drawn, self._q[state].argmax(axis=1))
            agent.hold(chosen)
            before, earned = state, np.zeros(config.envs)
        self.steps += len(series) * config.envs
        found = {"reward_per_s": total / len(series) / agent.interval_s}
        return found if tuned else found | self._predict(np.stack(series, axis=1), number)

    def _learn(self, state: Any, action: Any, reward: Floats, after: Any) -> None:
        """Update the table by what each episode earned in a period."""
        rate, gamma = self._config.learning_rate, self._config.gamma
        for s, a, r, t in zip(state, action, reward, after, strict=True):
            self._q[s, a] += rate * (r + gamma * self._q[t].max() - self._q[s, a])

    def _predict(self, series: Floats, number: int) -> dict[str, float]:
        """Train the predictor on the marks of some episodes (n, T); set levels of equal count."""
        torch, window = self._torch, self._config.window
        x = torch.tensor(sliding_window_view(series, window + 1, axis=1).reshape(-1, window + 1), dtype=torch.float32)
        with seeded(1000 * self._config.seed + number):
            weights = [*self._lstm.parameters(), *self._out.parameters()]
            optimiser = torch.optim.Adam(weights, 1e-2)
            for _ in range(self._config.predictor_steps):
                batch = x[torch.randint(len(x), (256,))]
                told = self._out(self._lstm(batch[:, :-1, None])[0][:, -1])[:, 0]
                loss = ((told - batch[:, -1]) ** 2).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        agent = IaqmAgent(self.tensors(), msgspec.to_builtins(self._config), {})
        foreseen = lstm(agent.arrays, x[:, :-1].double().numpy()).reshape(len(series), -1)
        periods = np.array_split(foreseen, max(foreseen.shape[1] // agent.period, 1), axis=1)
        shares = np.arange(1, self._config.levels) / self._config.levels
        self._edges = np.quantile(np.stack([each.mean(axis=1) for each in periods]), shares)
        return {"r2": 1.0 - loss.item() / x[:, -1].var(correction=0).item()}

    def state(self) -> dict[str, Any]:
        """Return the state."""
        return self.tensors() | {"steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self._q, self._edges, self.steps = state["q"].numpy(), state["edges"].numpy(), int(state["steps"])
        self._lstm.load_state_dict({name: state[name] for name in self._lstm.state_dict()})
        self._out.load_state_dict({name: state[name][None] for name in self._out.state_dict()})


LEARNER: Final = Learner(IaqmAgent, IaqmWork)
