"""Settings from dictionaries and files: what is wrong is said in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.agents.llm import config
from l4s_gym.agents.llm.config import BackboneConfig, EncoderConfig, Feature, LLMConfig
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
    plain = config.to_dict(made)
    assert config.from_dict(plain) == made
    assert made.encoder.size == 17
    assert ("freeze" in plain["backbone"]) == (freeze is not None)  # TOML knows no None


def test_only_pretrained_weights_are_frozen_by_default() -> None:
    assert not BackboneConfig().frozen
    assert BackboneConfig(pretrained="somewhere").frozen
    assert BackboneConfig(freeze=True).frozen
    assert not BackboneConfig(pretrained="somewhere", freeze=False).frozen


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'window = 7\n[backbone]\nfamily = "llama"\nheads = 2\n[lora]\nrank = 3\ntargets = ["q_proj"]\n'
        '[encoder]\nkernels = [1, 4]\nunknown = ""\n[[encoder.features]]\nname = "a"\nkind = "series"\n'
    )
    made = config.load(path)
    assert (made.window, made.backbone.family, made.lora.targets) == (7, "llama", ("q_proj",))
    assert made.encoder.features == (Feature("a", "series"),)


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
        config.from_dict(values)
    assert "\n" not in str(caught.value)


def test_errors_of_files(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    with pytest.raises(L4SError, match="cannot be read"):
        config.load(path)
    path.write_text("window = = 3")
    with pytest.raises(L4SError, match="is no TOML"):
        config.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(L4SError, match="is UTF-16 text"):
        config.load(path)
    path.write_text("window = -1")
    with pytest.raises(L4SError, match=r"config\.toml.*window"):
        config.load(path)
