"""Rewards stand once: the engine's numbers and the pages of the environments follow the table."""

from __future__ import annotations

import pytest

from l4s_gym import L4SError, rewards
from l4s_gym.envs.dualpi2 import DualPI2Env
from l4s_gym.envs.replay import DualPI2ReplayEnv
from l4s_gym.live.environment import DualPI2LiveEnv
from l4s_gym.sim import layout


def test_the_engine_numbers_them_as_they_stand() -> None:
    assert rewards.NAMES == layout.REWARDS == tuple(rewards.FORMULAS)
    assert rewards.NAMES[layout.L4S_LLM] == rewards.L4S_LLM
    assert f"minus {layout.DELAY_WEIGHT} x" in rewards.FORMULAS["balance"]


def test_the_pages_say_what_they_are() -> None:
    pages = {env: " ".join(str(env.__doc__).split()) for env in (DualPI2Env, DualPI2LiveEnv, DualPI2ReplayEnv)}
    assert all(formula in pages[DualPI2Env] for formula in rewards.FORMULAS.values())
    assert ", ".join(f"`{name}`" for name in rewards.NAMES) in pages[DualPI2LiveEnv]
    assert rewards.FORMULAS["l4s_llm"] in pages[DualPI2ReplayEnv]


def test_names_are_checked() -> None:
    with pytest.raises(L4SError, match="did you mean 'balance'"):
        rewards.check("balanc")
    for name in (rewards.BALANCE, rewards.POWER):
        rewards.check_timed(name)
    with pytest.raises(L4SError, match="native:pie: reward 'l4s_llm' belongs to decisions about single packets"):
        rewards.check_timed("l4s_llm", "native:pie: ")
