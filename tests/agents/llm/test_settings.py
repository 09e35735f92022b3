"""Settings from dictionaries: what is wrong is said in one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.agents.llm.settings import BackboneConfig, EncoderConfig, Feature, LLMConfig, from_dict, to_dict
from l4s_gym.schema import OBSERVED


def test_defaults_are_the_papers_layout() -> None:
    default = LLMConfig()
    assert default.window == 20
    kinds = {feature.name: feature.kind for feature in default.encoder.features}
    assert tuple(kinds) == OBSERVED
    assert [name for name, kind in kinds.items() if kind == "scalar"] == [
        "queue_type", "burst_allowance", "total_drops", "packet_length",
    ]  # fmt: skip
    assert default.encoder.size == 8
    assert default.step_tokens == 3
    assert dataclasses.replace(default, layout="features").step_tokens == 10


@pytest.mark.parametrize("freeze", [None, True, False])
def test_plain_values_and_back(freeze: bool | None) -> None:
    encoder = EncoderConfig(features=(Feature("load"), Feature("view", "image", (4, 4))), unknown="", kernels=(2,))
    made = LLMConfig(backbone=BackboneConfig(family="opt", freeze=freeze), encoder=encoder, layout="features")
    plain = to_dict(made)
    assert from_dict(plain) == made
    assert made.encoder.size == 17
    assert ("freeze" in plain["backbone"]) == (freeze is not None)  # TOML knows no None


def test_only_pretrained_weights_are_frozen_by_default() -> None:
    assert not BackboneConfig().frozen
    assert BackboneConfig(pretrained="somewhere").frozen
    assert BackboneConfig(freeze=True).frozen
    assert not BackboneConfig(pretrained="somewhere", freeze=False).frozen


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"windw": 3}, "unknown setting of llm 'windw': did you mean 'window'"),
        ({"backbone": {"famly": "gpt2"}}, "unknown setting of backbone 'famly'"),
        ({"encoder": {"features": [{"nam": "a"}]}}, "unknown setting of features 'nam'"),
        ({"window": 0}, "llm: window: Expected `int` >= 1"),
        ({"window": "20"}, "llm: window: Expected `int`, got `str`"),
        ({"layout": "flat"}, "llm: layout: unknown value 'flat': choose one of features, fused"),
        ({"gamma": 1.5}, "gamma"),
        ({"return_scale": 0.0}, "return_scale"),
        ({"backbone": {"hidden": 10, "heads": 4}}, "hidden=10 is no multiple of heads=4"),
        ({"backbone": {"kv_heads": 3}}, "no multiple of kv_heads=3"),
        ({"backbone": {"decoder": True}}, "decoder is for T5"),
        ({"backbone": {"dropout": 1.0}}, "dropout"),
        ({"backbone": 3}, "llm: backbone: Expected `object`"),
        ({"encoder": {"unknown": "packet"}}, "did you mean 'packet_length'"),
        ({"encoder": {"features": []}}, "one at least"),
        ({"encoder": {"features": [{"name": "a"}, {"name": "a"}], "unknown": ""}}, "name each once"),
        ({"encoder": {"kernels": []}}, "no kernels"),
    ],
)
def test_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(L4SError, match=message) as caught:
        from_dict(values)
    assert "\n" not in str(caught.value)
