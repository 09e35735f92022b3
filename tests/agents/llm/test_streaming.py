"""Deciding step by step gives the logits of one pass with the banded mask, for every family, without end."""

from __future__ import annotations

from typing import Any

import pytest

from l4s_gym.agents.llm.settings import EncoderConfig

torch = pytest.importorskip("torch")

FAMILIES = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "t5", "t5d")
TOLERANCE = 1e-4


def _logits(model: Any, batch: Any) -> Any:
    with torch.no_grad():
        return model(*batch)


def _differ(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("layout", ["fused", "features"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_equals_one_pass(family: str, layout: str, make_model: Any, make_batch: Any, stream: Any) -> None:
    """Past the window, and past the positions: 26 steps are 78 or 260 tokens, the table has 48."""
    model, batch = make_model(family, layout=layout), make_batch(share=0.0, steps=26)
    whole = _logits(model, batch)
    assert torch.isfinite(whole).all() and whole.std() > 0.1
    assert _differ(stream(model, batch), whole) < TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "t5d"])
def test_the_comparison_can_fail(family: str, make_model: Any, make_batch: Any, stream: Any) -> None:
    """One pass over the last window alone, or another window, gives other logits by far: attention reaches back."""
    model, batch = make_model(family), make_batch(share=0.0, steps=40)
    streamed = stream(model, batch)
    last = _logits(model, batch.cut(steps=slice(-4, None)))
    assert _differ(streamed[:, -1], last[:, -1]) > 100 * TOLERANCE
    wider = make_model(family, window=5)
    assert _differ(_logits(wider, batch), streamed) > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_positions_matter_only_as_they_should(family: str, make_model: Any, make_batch: Any) -> None:
    """The table of GPT-2 repeats after 16 steps of 3 tokens; rotary positions count differences only."""
    encoder = EncoderConfig(hidden=8, max_timestep=8)  # repeats too, and divides 16
    model, batch = make_model(family, encoder=encoder), make_batch(share=0.0, steps=12)
    logits = _logits(model, batch)
    assert _differ(_logits(model, batch._replace(timesteps=batch.timesteps + 16)), logits) < TOLERANCE
    other = _differ(_logits(model, batch._replace(timesteps=batch.timesteps + 8)), logits)
    assert other > 100 * TOLERANCE if family == "gpt2" else other < TOLERANCE


def test_a_window_of_one_step(make_model: Any, make_batch: Any, stream: Any) -> None:
    """Nothing is cached; the encoders still look back."""
    model, batch = make_model(window=1), make_batch(share=0.0, steps=20)
    assert _differ(stream(model, batch), _logits(model, batch)) < TOLERANCE


def test_rotary_positions_are_turned_back(
    make_model: Any, make_batch: Any, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Often enough that this test would see it; and it is this that keeps the logits."""
    from l4s_gym.agents.llm.backbones import Backbone

    calls = []
    shift = Backbone.shift

    def counted(self: Any, cache: Any, distance: int) -> None:
        calls.append(distance)
        shift(self, cache, distance)

    model, batch = make_model("llama"), make_batch(share=0.0, steps=60)
    monkeypatch.setattr(Backbone, "shift", counted)
    assert _differ(stream(model, batch), _logits(model, batch)) < TOLERANCE
    assert len(calls) >= 3 and min(calls) > 0
    monkeypatch.setattr(Backbone, "shift", lambda *_: None)
    assert _differ(stream(model, batch), _logits(model, batch)) > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5d"])
def test_a_batch_equals_its_rows(family: str, make_model: Any, make_batch: Any, stream: Any) -> None:
    model, batch = make_model(family), make_batch(share=0.0, rows=3, steps=14)
    together = stream(model, batch)
    alone = torch.cat([stream(model, batch.cut(slice(row, row + 1))) for row in range(3)])
    assert _differ(together, alone) < TOLERANCE


def test_the_cache_does_not_grow(make_model: Any, make_batch: Any) -> None:
    model, batch = make_model(), make_batch(share=0.0, steps=30)
    state = model.start(2)
    for k in range(30):
        model.step(state, batch.returns[:, k], batch.observations[:, k], batch.actions[:, k])
    assert state.cache.get_seq_length() == 3 * model.config.step_tokens
    assert state.steps.tolist() == [[30], [30]]


def test_merged_adapters_decide_the_same(make_model: Any, make_batch: Any, stream: Any) -> None:
    for family in ("gpt2", "llama", "t5"):
        model, batch = make_model(family), make_batch(share=0.0, steps=20)
        before = stream(model, batch)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        model.backbone.merge()
        assert not model.backbone.adapted
        assert sum(parameter.numel() for parameter in model.parameters()) < parameters
        assert _differ(stream(model, batch), before) < TOLERANCE
        model.backbone.merge()  # nothing left to do
