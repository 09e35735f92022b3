"""Adapters: where they sit, how many parameters they have (the paper's numbers), and what they leave alone."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.agents.llm.settings import FAMILIES, BackboneConfig, LoraConfig

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from l4s_gym.agents.llm.backbones import Backbone, Counts, count  # noqa: E402

LLAMA_2_7B = BackboneConfig(
    family="llama", hidden=4096, layers=32, heads=32, feedforward=11008, positions=4096, vocabulary=32000, freeze=True
)
OPT_1_3B = BackboneConfig(
    family="opt", hidden=2048, layers=24, heads=32, feedforward=8192, positions=2048, vocabulary=50272, freeze=True
)


@pytest.mark.parametrize(
    ("config", "trainable", "total"),
    [(LLAMA_2_7B, 67_108_864, 6_674_452_480), (OPT_1_3B, 25_165_824, 1_340_923_904)],
    ids=["Llama-2-7B", "OPT-1.3B"],
)
def test_the_papers_numbers(config: BackboneConfig, trainable: int, total: int) -> None:
    """Queries and values at rank 128: 67 million (1 %), and 25 million. Without memory for the weights."""
    with torch.device("meta"):
        backbone = Backbone(config, LoraConfig(rank=128))
    counts = count(backbone)
    assert counts.trainable == trainable
    assert counts.total == total
    assert {name.split(".")[-4] for name, p in backbone.named_parameters() if p.requires_grad} == {"q_proj", "v_proj"}


def test_the_whole_agent_of_the_papers_size(make_config: Any) -> None:
    """Encoders and head add little to the 67 million."""
    import dataclasses

    from l4s_gym.agents.llm.network import DecisionModel
    from l4s_gym.agents.llm.settings import EncoderConfig

    config = dataclasses.replace(
        make_config(), backbone=LLAMA_2_7B, lora=LoraConfig(rank=128), encoder=EncoderConfig(), window=20
    )
    with torch.device("meta"):
        counts = count(DecisionModel(config))
    assert 67_108_864 < counts.trainable < 75_000_000
    assert str(counts).endswith(f"({100 * counts.trainable / counts.total:.2f} %)")


def test_counts_are_printed() -> None:
    assert str(Counts(67_108_864, 6_674_452_480)) == "67,108,864 of 6,674,452,480 parameters are trained (1.01 %)"


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_begin_as_nothing_and_leave_the_weights(family: str, make_config: Any, make_batch: Any) -> None:
    """A fresh adapter changes no logits; training it changes only itself."""
    from l4s_gym.agents.llm.network import DecisionModel

    torch.manual_seed(0)
    plain = DecisionModel(make_config(family, lora=LoraConfig(), freeze=True)).eval()
    adapted = DecisionModel(make_config(family, lora=LoraConfig(rank=2, dropout=0.0), freeze=True)).eval()
    own = {name: value for name, value in plain.state_dict().items() if not name.startswith("backbone")}
    adapted.load_state_dict(own, strict=False)
    batch = make_batch(steps=6)
    with torch.no_grad():
        torch.testing.assert_close(adapted(*batch), plain(*batch))
    before = {name: parameter.clone() for name, parameter in adapted.backbone.named_parameters()}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 1.0)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(*batch).square().sum().backward()
        optimizer.step()
    changed = {name for name, p in adapted.backbone.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


def test_targets_by_name() -> None:
    tiny: dict[str, Any] = {"hidden": 16, "layers": 1, "heads": 2, "positions": 48}
    backbone = Backbone(BackboneConfig(**tiny), LoraConfig(rank=2, targets=("c_proj", "c_fc")))
    assert sum(".lora_A" in name for name, _ in backbone.named_parameters()) == 3
    with pytest.raises(L4SError, match="'gpt2' has no modules q_proj: choose of c_attn, c_fc, c_proj"):
        Backbone(BackboneConfig(**tiny), LoraConfig(rank=2, targets=("q_proj",)))


def test_rank_alpha_and_dropout() -> None:
    tiny: dict[str, Any] = {"hidden": 16, "layers": 1, "heads": 2, "positions": 48}
    for alpha, scale in ((0, 2.0), (8, 4.0)):
        backbone = Backbone(BackboneConfig(**tiny), LoraConfig(rank=2, alpha=alpha, dropout=0.25))
        layer = backbone.core.h[0].attn.c_attn
        assert layer.scaling["default"] == scale
        assert layer.lora_dropout["default"].p == 0.25
        assert layer.lora_A["default"].weight.shape == (2, 16)


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(L4SError, match=r"pip install 'l4s-gym\[llm\]'"):
        Backbone(BackboneConfig(hidden=16, layers=1, heads=2), LoraConfig(rank=2))
