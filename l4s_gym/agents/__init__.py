"""Agents: rules, trained agents, and agents from outside."""

from __future__ import annotations

from l4s_gym.agents.protocol import (
    NO_RULE,
    RULES,
    Agent,
    DecisionRule,
    form_of,
)
from l4s_gym.agents.rules import EnqueueAgent, PolicyAgent, RandomAgent, ThresholdAgent
from l4s_gym.agents.spec import AgentSpec

__all__ = [
    "NO_RULE",
    "RULES",
    "Agent",
    "AgentSpec",
    "DecisionRule",
    "EnqueueAgent",
    "PolicyAgent",
    "RandomAgent",
    "ThresholdAgent",
    "form_of",
    "make",
]


def make(spec: str) -> Agent:
    """Make an agent from its spec, see `l4s_gym.agents.spec`.

    Raises:
        L4SError: There is no such agent, or it cannot be made.
    """
    return AgentSpec.parse(spec).make()
