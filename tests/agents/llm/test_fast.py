"""GPT-2 in fewer operations: the same logits; in fewer bits: nearly the same."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.agents.llm.config import BackboneConfig, EncoderConfig, Feature, LLMConfig, LoraConfig

torch = pytest.importorskip("torch")

from l4s_gym.agents.llm.model import DecisionModel  # noqa: E402
from l4s_gym.agents.llm.small import Small  # noqa: E402


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("layout", ["fused", "features"])
@pytest.mark.parametrize("rank", [0, 2])
def test_equal_logits(small: bool, layout: str, rank: int, make_model: Any, make_batch: Any, stream: Any) -> None:
    """In one pass and step by step, past the window and the positions, with queues that begin anew."""
    model = make_model(layout=layout, lora=LoraConfig(rank=rank), return_scale=3.0)
    batch = make_batch(rows=3, steps=40)
    resets = torch.zeros(40, 3, dtype=torch.bool)
    resets[9, 1] = resets[30, 2] = True
    with torch.no_grad():
        whole, steps, begun = model(*batch), stream(model, batch), stream(model, batch, resets)
        model.optimize()
        torch.testing.assert_close(model(*batch), whole, atol=1e-4, rtol=0)
    model.start = functools.partial(model.start, small=small)
    assert isinstance(model.start(3), Small) == small
    torch.testing.assert_close(stream(model, batch), steps, atol=1e-4, rtol=0)
    torch.testing.assert_close(stream(model, batch, resets), begun, atol=1e-4, rtol=0)
    assert not model.parameters_to_train()


def test_what_is_not_small() -> None:
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
        assert not isinstance(model.start(n), Small)
        model.optimize(precision)
        assert isinstance(model.start(n), Small) == fits
        state = model.start(n, small=False)
        assert not isinstance(state, Small)
        size = config.encoder.size
        values = torch.zeros(n), torch.zeros(n, size), torch.zeros(n, dtype=torch.long)
        torch.testing.assert_close(model.step(model.start(n), *values), model.step(state, *values), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("precision", "close"), [("bfloat16", 0.1), ("int8", 0.3)])
def test_fewer_bits(precision: str, close: float, make_model: Any, make_batch: Any, stream: Any) -> None:
    model, batch = make_model(hidden=32), make_batch(steps=20)
    exact = stream(model, batch)
    model.optimize(precision)
    got = stream(model, batch)
    assert got.dtype == torch.float32
    difference = float((got - exact).square().mean().sqrt() / exact.std())
    assert 1e-6 < difference < close


@pytest.mark.parametrize("small", [True, False])
def test_the_window_of_one_step(small: bool, make_model: Any, make_batch: Any, stream: Any) -> None:
    model, batch = make_model(window=1), make_batch(steps=6)
    exact = stream(model, batch)
    model.optimize()
    model.start = functools.partial(model.start, small=small)
    torch.testing.assert_close(stream(model, batch), exact, atol=1e-4, rtol=0)


def test_inference_mode_comes_and_goes(make_model: Any, make_batch: Any, stream: Any) -> None:
    """Memory that was made in PyTorch's inference mode cannot be written outside; the model sees to that."""
    model, batch = make_model(), make_batch(steps=12)
    model.optimize()
    exact = stream(model, batch)
    state = model.start(2, small=False)
    for k in range(12):
        with torch.inference_mode(k % 3 == 0):
            values = (batch.returns[:, k], batch.observations[:, k], batch.actions[:, k - 1])
            logits = model.step(state, *values, missing=batch.missing[:, k])
    torch.testing.assert_close(logits, exact[:, -1], atol=1e-4, rtol=0)


def test_other_families_are_merged(make_model: Any, make_batch: Any, stream: Any) -> None:
    model, batch = make_model("llama"), make_batch(steps=6)
    exact = stream(model, batch)
    model.optimize()
    torch.testing.assert_close(stream(model, batch), exact, atol=1e-4, rtol=0)
    assert not model.backbone.adapted
    with pytest.raises(L4SError, match="no fast form of 'llama'"):
        model.optimize("int8")
    with pytest.raises(L4SError, match="precision 'int4': choose one of"):
        make_model().optimize("int4")
