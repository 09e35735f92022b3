"""Table of agents: the rules, and the kinds that are trained, saved and loaded.

Another package adds a kind of agent to `KINDS` before use, or names it as `MODULE:ATTRIBUTE` of an `AgentKind`
where a kind is expected: ``l4s-gym train mine:KIND ...``, ``l4s-gym evaluate mine:KIND:runs/x``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from l4s_gym import extras
from l4s_gym.agents.published.pfed import PfedAgent
from l4s_gym.agents.rules import EnqueueAgent, ThresholdAgent, ZeroAgent, random_agent
from l4s_gym.errors import L4SError, unknown
from l4s_gym.forms import PACKET

UNTRAINED: Final[dict[str, tuple[Callable[..., Any], tuple[str, ...]]]] = {
    "random": (random_agent, ("form",)),
    "threshold": (ThresholdAgent, ("l_us", "c_us")),
    "enqueue": (EnqueueAgent, ()),
    "zero": (ZeroAgent, ("form",)),
    "pfed": (PfedAgent, ("target_ms", "horizon_ms")),
}
"""Agents made from a name alone: what makes it, and its options: numbers, but for `form`."""


@dataclass(frozen=True)
class AgentKind:
    """A kind of agent that is trained, saved and loaded. Its modules are imported on first use.

    Attributes:
        learner: `MODULE` or `MODULE:OBJECT`, a `l4s_gym.agents.training.Learner`.
        loader: `MODULE:FUNCTION`, called as ``function(saved, **options)`` with the options as text.
        tiny: Configuration of a training that takes a second, for tests.
        form: Action form (`l4s_gym.forms`) of the data that it is trained on; of several, the one of its tests.
        online: It learns in closed loop, on scenarios in place of a dataset.
        starts_offline: An online kind that begins with a dataset, if one is given too.
    """

    learner: str
    loader: str
    tiny: Mapping[str, Any]
    form: str = PACKET
    online: bool = False
    starts_offline: bool = False

    def load_learner(self) -> Any:
        """Import the learner.

        Raises:
            ModuleNotFoundError: A package that it needs is not installed.
        """
        return pkgutil.resolve_name(self.learner)

    def load_loader(self) -> Any:
        """Import the loader; errors as `load_learner`."""
        return pkgutil.resolve_name(self.loader)


_TINY_ONLINE: Final = {"envs": 2, "episode_s": 1.0, "rounds": 3, "round_steps": 20, "hidden": [4]}
_TINY: Final = {"steps": 12, "batch_size": 16, "hidden": [16]}


def _d3rlpy(learner: str, agent: str) -> AgentKind:
    return AgentKind(f"l4s_gym.agents.d3rlpy_learners:{learner}", f"l4s_gym.agents.d3rlpy_agents:{agent}.of", _TINY)


def _published(learner: str, agent: str, tiny: Mapping[str, Any], form: str) -> AgentKind:
    home, brief = "l4s_gym.agents.published", {"rounds": 4, "envs": 2, "seconds": 1.0, **tiny}
    return AgentKind(f"{home}.{learner}:LEARNER", f"{home}.{agent}.of", brief, form, online=True)


def _continuous(learner: str, agent: str = "ActorAgent", **more: Any) -> AgentKind:
    module = "l4s_gym.agents.continuous"
    tiny = {**_TINY, "decision_interval": 5, **more}
    return AgentKind(f"{module}:{learner}", f"{module}:{agent}.of", tiny, "parameters")


KINDS: dict[str, AgentKind] = {
    "bc": _d3rlpy("BC", "BCAgent"),
    "bcq": _d3rlpy("BCQ", "BCQAgent"),
    "cql": _d3rlpy("CQL", "ValueAgent"),
    "dqn": _d3rlpy("DQN", "ValueAgent"),
    "double_dqn": _d3rlpy("DOUBLE_DQN", "ValueAgent"),
    "sac": _d3rlpy("SAC", "SACAgent"),
    "dt": AgentKind(
        "l4s_gym.agents.transformer:DT",
        "l4s_gym.agents.transformer:DTAgent.of",
        {**_TINY, "algorithm": {"num_layers": 1, "context_size": 4, "max_timestep": 50}},
    ),
    "bc_continuous": _continuous("BC"),
    "cql_continuous": _continuous("CQL"),
    "iql": _continuous("IQL"),
    "td3_bc": _continuous("TD3_BC"),
    "dt_continuous": _continuous("DT", "ContinuousDTAgent", algorithm={"num_layers": 1, "context_size": 4}),
    "onestep": AgentKind(
        "l4s_gym.agents.onestep",
        "l4s_gym.agents.onestep:OneStepAgent.of",
        {"critics": 2, "critic_hidden": [8], "critic_steps": 6, "groups": 4, "actor_steps": 6, "held_out": 0.5},
        "parameters",
    ),
    "ppo": AgentKind(
        "l4s_gym.agents.sb3_learners:PPO",
        "l4s_gym.agents.sb3_agents:load_ppo",
        {**_TINY_ONLINE, "algorithm": {"n_steps": 10, "batch_size": 20}},
        "parameters",
        online=True,
    ),
    "sac_online": AgentKind(
        "l4s_gym.agents.sb3_learners:SAC",
        "l4s_gym.agents.sb3_agents:SACAgent.of",
        {**_TINY_ONLINE, "algorithm": {"buffer_size": 60, "learning_starts": 10, "batch_size": 8}},
        "parameters",
        online=True,
    ),
    "es": AgentKind(
        "l4s_gym.agents.evolution",
        "l4s_gym.agents.evolution:EvolvedAgent.of",
        {"generations": 4, "pairs": 2, "episodes": 2, "episode_s": 0.4, "actor_hidden": [4]},
        "parameters",
        online=True,
        starts_offline=True,
    ),
    "student": AgentKind(
        "l4s_gym.agents.distil",
        "l4s_gym.agents.student:StudentAgent.of",
        {"teacher": "zero:form=parameters", "labels": 400, "rounds": 2, "seconds": 1.0, "leaves": [2]},
        "parameters",
        online=True,
    ),
    "a3c": _published("a2c", "a3c:A3CAgent", {"steps": 20, "hidden": 4}, "probability"),
    "dqn_aqm": _published("dqn_aqm", "dqn_aqm:DqnAgent", {"packets": 500, "hidden": 4, "steps": 3}, PACKET),
    "qp_aqm": _published("qp_aqm", "qp_aqm:QPAgent", {"levels": 4}, "probability"),
    "iaqm": _published(
        "iaqm",
        "iaqm:IaqmAgent",
        {"hidden": 2, "period_s": 0.2, "levels": 3, "predictor_rounds": 2, "predictor_steps": 2},
        "parameters",
    ),
    "llm": AgentKind(
        "l4s_gym.agents.llm.train",
        "l4s_gym.agents.llm.agent:load",
        {
            "model": {
                "window": 4,
                "backbone": {"hidden": 16, "layers": 1, "heads": 2, "positions": 48},
                "encoder": {"hidden": 8},
            },
            "train": {"steps": 12, "batch_size": 8, "length": 8, "eval_every": 12, "eval_steps": 500},
        },
    ),
}
"""The kinds by name."""


def kind_of(name: str) -> AgentKind:
    """Return a kind by its name in `KINDS`, or by `MODULE:ATTRIBUTE`, which is then added to `KINDS`.

    Raises:
        L4SError: There is no such kind.
    """
    if name not in KINDS:
        if ":" not in name:
            raise unknown("kind of agent", name, tuple(KINDS))
        found = extras.load(name, "kind of agent")
        if not isinstance(found, AgentKind):
            raise L4SError(f"kind of agent {name!r}: is a {type(found).__name__}: give an AgentKind")
        KINDS[name] = found
    return KINDS[name]
