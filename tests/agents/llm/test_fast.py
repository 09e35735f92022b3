"""GPT-2 in fewer operations: the same logits; in fewer bits: nearly the same."""

from __future__ import annotations

from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.agents.llm.settings import BackboneConfig, EncoderConfig, Feature, LLMConfig, LoraConfig

torch = pytest.importorskip("torch")

from l4s_gym.agents.llm.fast import Compiled, optimize, start  # noqa: E402
from l4s_gym.agents.llm.network import DecisionModel  # noqa: E402


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("layout", ["fused", "features"])
@pytest.mark.parametrize("rank", [0, 2])
def test_equal_logits(plain: bool, layout: str, rank: int, make_model: Any, make_batch: Any, stream: Any) -> None:
    """In one pass and step by step, past the window and the positions."""
    model = make_model(layout=layout, lora=LoraConfig(rank=rank), return_scale=3.0)
    gaps, batch = make_batch(rows=3, steps=40), make_batch(rows=3, steps=40, share=0.0)
    with torch.no_grad():
        whole, steps = model(*gaps), stream(model, batch)
        optimize(model)
        torch.testing.assert_close(model(*gaps), whole, atol=1e-4, rtol=0)
    assert isinstance(start(model, 3), Compiled)
    torch.testing.assert_close(stream(model, batch, plain=plain), steps, atol=1e-4, rtol=0)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_not_compiled() -> None:
    """Many queues, low precision, large models, states of other kinds, and whoever says so."""
    features = (Feature("load", "series"), Feature("image", "image", (4, 4)))
    encoder = EncoderConfig(features=features, hidden=8, unknown="")
    for config, precision, n, fits in (
        (LLMConfig(), "float32", 2, True),
        (LLMConfig(), "float32", 3, False),
        (LLMConfig(), "bfloat16", 1, False),
        (LLMConfig(backbone=BackboneConfig(hidden=320, layers=1)), "float32", 1, False),
        (LLMConfig(encoder=encoder), "float32", 1, False),
    ):
        model = DecisionModel(config)
        assert not isinstance(start(model, n), Compiled)
        optimize(model, precision)
        step, plain = start(model, n), start(model, n, model.step)
        assert isinstance(step, Compiled) == fits
        assert not isinstance(plain, Compiled)
        values = torch.zeros(n), torch.zeros(n, config.encoder.size), torch.zeros(n, dtype=torch.long)
        torch.testing.assert_close(step(*values), plain(*values), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("precision", "close"), [("bfloat16", 0.1), ("int8", 0.3)])
def test_fewer_bits(precision: str, close: float, make_model: Any, make_batch: Any, stream: Any) -> None:
    model, batch = make_model(hidden=32), make_batch(share=0.0, steps=20)
    exact = stream(model, batch)
    optimize(model, precision)
    got = stream(model, batch)
    assert got.dtype == torch.float32
    difference = float((got - exact).square().mean().sqrt() / exact.std())
    assert 1e-6 < difference < close


@pytest.mark.parametrize("plain", [True, False])
def test_the_window_of_one_step(plain: bool, make_model: Any, make_batch: Any, stream: Any) -> None:
    model, batch = make_model(window=1), make_batch(share=0.0, steps=6)
    exact = stream(model, batch)
    optimize(model)
    torch.testing.assert_close(stream(model, batch, plain=plain), exact, atol=1e-4, rtol=0)


def test_inference_mode_comes_and_goes(make_model: Any, make_batch: Any, stream: Any) -> None:
    """Memory that was made in PyTorch's inference mode cannot be written outside; the model sees to that."""
    model, batch = make_model(), make_batch(share=0.0, steps=12)
    optimize(model)
    exact = stream(model, batch)
    step = start(model, 2, model.step)
    for k in range(12):
        with torch.inference_mode(k % 3 == 0):
            logits = step(batch.returns[:, k], batch.observations[:, k], batch.actions[:, k - 1])
    torch.testing.assert_close(logits, exact[:, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["opt", "llama", "mistral", "qwen2", "qwen3", "t5", "t5d", "gpt_neox"])
def test_eight_bits_for_all_families(family: str, make_model: Any, make_batch: Any, stream: Any) -> None:
    """Of float32 and of bfloat16."""
    lora = LoraConfig() if family == "gpt_neox" else LoraConfig(rank=2)
    for dtype in ("float32", "bfloat16"):
        model, batch = make_model(family, hidden=32, dtype=dtype, lora=lora), make_batch(share=0.0, steps=20)
        exact = stream(model, batch)
        optimize(model, "int8")
        left = {module.in_features for module in model.backbone.modules() if type(module) is torch.nn.Linear}
        assert left == {128}  # the second layer of each feed-forward pair
        got = stream(model, batch)
        difference = float((got - exact).square().mean().sqrt() / exact.std())
        assert 1e-6 < difference < 0.3


def test_other_families_are_merged(make_model: Any, make_batch: Any, stream: Any) -> None:
    model, batch = make_model("llama"), make_batch(share=0.0, steps=6)
    exact = stream(model, batch)
    optimize(model)
    torch.testing.assert_close(stream(model, batch), exact, atol=1e-4, rtol=0)
    assert not model.backbone.adapted
    scaled = make_model()
    scaled.backbone.core.config.scale_attn_weights = False
    with pytest.raises(L4SError, match="no fast form of 'gpt2' with its options"):
        optimize(scaled, "int8")
    with pytest.raises(L4SError, match="unknown precision 'int4'"):
        optimize(make_model(), "int4")
