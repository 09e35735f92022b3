"""Rewards stand once: the engine and the pages of the environments follow the table."""

from __future__ import annotations

from typing import Any

import pytest

from l4s_gym import L4SError, rewards
from l4s_gym.envs.dualpi2 import DualPI2Env
from l4s_gym.envs.replay import DualPI2ReplayEnv
from l4s_gym.live.environment import DualPI2LiveEnv
from l4s_gym.sim import layout
from l4s_gym.sim.setup import REFERENCE_NS


def test_they_are_what_the_table_says() -> None:
    assert tuple(rewards.FORMULAS) == rewards.NAMES
    assert tuple(rewards.COMPONENTS) == layout.COMPONENTS
    for name, reference_ns in zip(("delay_c", "delay_l"), REFERENCE_NS, strict=True):
        assert f"delay / (delay + {reference_ns * 1e-6:g} ms)" in rewards.COMPONENTS[name]
        assert f"minus {-rewards.WEIGHTS['fair'][name]} x" in rewards.FORMULAS["fair"]


def test_the_engine_has_them() -> None:
    assert rewards.engine_form("balance") == (layout.WEIGHTED, (1.0, 0.0, -0.25, -0.25))
    assert rewards.engine_form("fair") == (layout.WEIGHTED, (0.0, 1.0, -0.25, -0.25))
    assert rewards.engine_form("power")[0] == layout.POWER
    assert rewards.engine_form("l4s_llm")[0] == layout.L4S_LLM
    assert rewards.engine_form({"delay_l": -1}) == (layout.WEIGHTED, (0.0, 0.0, 0.0, -1.0))


def test_the_pages_say_what_they_are() -> None:
    pages = {env: " ".join(str(env.__doc__).split()) for env in (DualPI2Env, DualPI2LiveEnv, DualPI2ReplayEnv)}
    assert all(formula in pages[DualPI2Env] for formula in rewards.FORMULAS.values())
    assert all(f"`{name}`" in pages[DualPI2Env] for name in rewards.COMPONENTS)
    live = [name for name in rewards.NAMES if name != "fair"]
    assert ", ".join(f"`{name}`" for name in live) in pages[DualPI2LiveEnv]
    assert rewards.FORMULAS["l4s_llm"] in pages[DualPI2ReplayEnv]


def test_weights_and_text_are_one_reward() -> None:
    text = "used=1.0,delay_c=-0.25"
    weights = {"delay_c": -0.25, "used": 1}
    for given in (weights, {**weights, "evenness": 0.0}, "delay_c=-.25, used=1"):
        assert rewards.canonical(given) == text == rewards.canonical(text)
    assert rewards.canonical({"used": 0.1}) != rewards.canonical({"used": 0.1000000000000001})
    assert [rewards.canonical(name) for name in rewards.NAMES] == list(rewards.NAMES)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("balanc", "unknown reward 'balanc': did you mean 'balance'"),
        ({"use": 1.0}, "unknown component of a reward 'use': did you mean 'used'"),
        ("used=1,used=2", "used has two weights"),
        ("used=1,delay_c", "weight '' of delay_c: give a number"),
        ("used=much", "weight 'much' of used: give a number"),
        ({"used": float("inf")}, "weight inf of used: give a number"),
        ({"used": None}, "weight None of used: give a number"),
        ({"used": 0.0}, "all weights are 0"),
        ({}, "all weights are 0"),
    ],
)
def test_rewards_are_checked(given: Any, text: str) -> None:
    with pytest.raises(L4SError, match=text):
        rewards.canonical(given)


def test_rewards_belong_to_places() -> None:
    for reward in (*rewards.NAMES[:3], {"used": 1.0}):
        rewards.check_timed(reward)
    with pytest.raises(L4SError, match="native:pie: reward 'l4s_llm' belongs to decisions about single packets"):
        rewards.check_timed("l4s_llm", "native:pie: ")
    assert rewards.check_live({"used": 1}) == "used=1.0" and rewards.check_live("power") == "power"
    for reward in ("fair", {"evenness": 0.5, "used": 0.5}):
        with pytest.raises(L4SError, match="a real queue does not know the goodput of its flows; use 'balance'"):
            rewards.check_live(reward)
