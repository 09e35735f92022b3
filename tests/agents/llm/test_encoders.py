"""Encoders: causal, each feature by weights of its own, and open to modalities that L4S does not have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.agents.llm.settings import EncoderConfig, Feature

torch = pytest.importorskip("torch")

from l4s_gym.agents.llm import encoders  # noqa: E402
from l4s_gym.agents.llm.encoders import ENCODERS, StateEncoder, expand, register  # noqa: E402


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    before = dict(ENCODERS)
    yield
    ENCODERS.clear()
    ENCODERS.update(before)


def _encode(encoder: StateEncoder, values: Any, mask: Any = None, missing: Any = None) -> Any:
    """Embeddings (B, K, features, width) of sequences (B, K, F) that begin with their first step."""
    mask = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask
    known = encoder.known(mask, missing)
    pad = (0, 0, encoder.reach, 0)
    values = torch.nn.functional.pad(encoder.clean(values, known), pad)
    with torch.no_grad():
        return encoder(values, torch.nn.functional.pad(known, pad), missing)


def test_each_feature_has_weights_of_its_own() -> None:
    """A change of one feature changes its own embedding alone; equal features have different embeddings."""
    encoder = StateEncoder(EncoderConfig(hidden=8), 12)
    values = torch.full((1, 6, 8), 0.3)
    before = _encode(encoder, values)
    assert before.shape == (1, 6, 8, 12)
    for index in range(8):
        changed = values.clone()
        changed[0, 3, index] = 0.9
        moved = (_encode(encoder, changed) - before).abs().amax((0, 1, 3)) > 1e-6
        assert moved.tolist() == [each == index for each in range(8)]
        others = [other for other in range(8) if other != index]
        assert all(not torch.allclose(before[0, 5, index], before[0, 5, other]) for other in others)


def test_scalars_see_their_step_and_series_the_past() -> None:
    """A change at step 10 reaches step 10 of a scalar, and steps 10 to 18 of a series whose longest kernel is 9."""
    config = EncoderConfig(hidden=8)
    encoder = StateEncoder(config, 12)
    values = torch.rand(1, 30, 8)
    changed = values.clone()
    changed[0, 10] += 0.5
    moved = (_encode(encoder, changed) - _encode(encoder, values)).abs().amax((0, 3)) > 1e-6  # (K, features)
    for index, feature in enumerate(config.features):
        last = 10 if feature.kind == "scalar" else 18
        assert moved[:, index].nonzero().flatten().tolist() == list(range(10, last + 1)), feature.name


def test_series_are_convolutions_of_all_lengths() -> None:
    """The one operation is equal to PyTorch's convolutions of each length."""
    config = EncoderConfig(
        features=(Feature("a", "series"), Feature("b", "series")), hidden=6, kernels=(2, 3, 5), unknown=""
    )
    encoder = encoders.SeriesEncoder(config.features, config)
    values, known = torch.rand(2, 4 + 7, 2), torch.rand(2, 4 + 7, 2) < 0.8
    got = encoder(values, known)
    assert got.shape == (2, 7, 2, 6)
    for index in range(2):
        inputs = torch.cat((expand(values[..., index]), known[..., index, None].float()), -1).mT  # (B, 3, K)
        for part, length in enumerate((2, 3, 5)):
            channels = slice(2 * part, 2 * part + 2)
            kernel = encoder.weight[index, 5 - length :, :, channels].permute(2, 1, 0)  # (out, in, length)
            result = torch.nn.functional.conv1d(inputs[..., 5 - length :], kernel, encoder.bias[index, channels])
            expected = torch.nn.functional.gelu(result).mT
            torch.testing.assert_close(got[:, :, index, channels], expected)


def test_missing_values_have_an_embedding_of_their_own() -> None:
    encoder = StateEncoder(EncoderConfig(hidden=8), 12)
    values = torch.rand(1, 12, 8)
    missing = torch.zeros(1, 12, dtype=torch.bool)
    missing[0, 4] = True
    poisoned = values.clone()
    poisoned[0, 4, 4] = torch.nan
    before, after = _encode(encoder, values), _encode(encoder, poisoned, missing=missing)
    assert torch.isfinite(after).all()
    assert encoder.unknown is not None
    torch.testing.assert_close(after[0, 4, 4], encoder.unknown.detach())
    same = (after == before).all(-1)[0]  # (K, features)
    assert same[:, [0, 1, 2, 3, 5, 6, 7]].all()
    assert same[:4, 4].all() and not same[4:12, 4].any()  # later steps know that it is missing


def test_hidden_steps_are_not_read() -> None:
    """Whatever stands in a hidden step; and the past of the first step shown does not matter."""
    encoder = StateEncoder(EncoderConfig(hidden=8), 12)
    values = torch.rand(1, 12, 8)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, :5] = False
    other = values.clone()
    other[0, :5] = torch.nan
    shown = _encode(encoder, values, mask)[:, 5:]
    assert torch.equal(_encode(encoder, other, mask)[:, 5:], shown)
    torch.testing.assert_close(_encode(encoder, values[:, 5:]), shown)


def test_small_probabilities_are_told_apart() -> None:
    low, high = expand(torch.tensor([0.001, 0.01]))
    assert high[1] - low[1] > 0.2
    assert expand(torch.tensor([-2.0]))[0, 1] == -expand(torch.tensor([2.0]))[0, 1]


@pytest.mark.parametrize(
    ("feature", "relevant"),
    [
        (Feature("view", "image", (6, 5)), 30),
        (Feature("view", "image", (2, 4, 4)), 32),
        (Feature("net", "graph", (3, 5)), 15),
    ],
)
def test_images_and_graphs(feature: Feature, relevant: int, make_model: Any) -> None:
    """Modalities that L4S does not use, beside one that it does: all columns reach the logits, and train."""
    config = EncoderConfig(features=(Feature("load", "series"), feature), hidden=8, unknown="")
    model = make_model(encoder=config)
    assert config.size == 1 + relevant
    observations = torch.rand(2, 5, config.size, requires_grad=True)
    time = torch.arange(5).repeat(2, 1)
    logits = model(torch.zeros(2, 5), observations, torch.zeros_like(time), time, torch.ones(2, 5, dtype=torch.bool))
    logits[:, 2].sum().backward()
    assert observations.grad is not None
    assert (observations.grad[:, 2] != 0).all()
    assert (observations.grad[:, 3:] == 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.encoders.parameters())


def test_a_graph_is_not_a_list() -> None:
    """Renaming the nodes leaves the code as it is; cutting an edge does not."""
    feature = Feature("net", "graph", (3, 5))
    encoder = encoders.GraphEncoder((feature,), EncoderConfig(features=(feature,), hidden=8, unknown=""))
    adjacency = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    nodes = torch.rand(3, 2)
    known = torch.ones(1, 1, 1, dtype=torch.bool)

    def code(adjacency: Any, nodes: Any) -> Any:
        return encoder(torch.cat((adjacency, nodes), 1)[None, None, None], known)

    order = [2, 0, 1]
    torch.testing.assert_close(code(adjacency, nodes), code(adjacency[order][:, order], nodes[order]))
    assert not torch.allclose(code(adjacency, nodes), code(adjacency * torch.tensor([1.0, 1, 0]), nodes))


def test_a_modality_from_outside(registry: None, make_model: Any, stream: Any, tmp_path: Any) -> None:
    """Registered by name: it trains, is saved, loaded, and decides step by step."""
    from l4s_gym.agents.llm import saving

    class Spectrum(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        reach = 2

        def __init__(self, features: tuple[Feature, ...], config: EncoderConfig) -> None:
            super().__init__()
            self.net = torch.nn.Linear(3 * features[0].size, config.hidden)

        def forward(self, values: Any, known: Any) -> Any:
            return self.net(values.unfold(1, 3, 1).flatten(-2))

    register("spectrum", Spectrum)
    config = EncoderConfig(
        features=(Feature("radio", "spectrum", (4,)), Feature("load", "series")), hidden=8, unknown=""
    )
    model = make_model(encoder=config)
    rows = (torch.randn(2, 12), torch.rand(2, 12, 5), torch.randint(0, 3, (2, 12)))
    time, mask = torch.arange(12).repeat(2, 1), torch.ones(2, 12, dtype=torch.bool)
    with torch.no_grad():
        logits = model(*rows, time, mask)
        state = model.start(2)
        steps = [model.step(state, rows[0][:, k], rows[1][:, k], rows[2][:, k - 1]) for k in range(12)]
    torch.testing.assert_close(torch.stack(steps, 1), logits, atol=1e-4, rtol=0)
    saving.save(model, tmp_path / "agent")
    with torch.no_grad():
        torch.testing.assert_close(saving.load(tmp_path / "agent").model(*rows, time, mask), logits)
    del ENCODERS["spectrum"]
    with pytest.raises(L4SError, match="register it first"):
        saving.load(tmp_path / "agent")


def test_errors(registry: None) -> None:
    with pytest.raises(L4SError, match=r"unknown kind of encoder .* 'serie': did you mean 'series'"):
        StateEncoder(EncoderConfig(features=(Feature("a", "serie"),), unknown=""), 8)
    with pytest.raises(L4SError, match="registered already"):
        register("scalar", encoders.ImageEncoder)
    register("scalar", encoders.ScalarEncoder)  # the same again
    for feature, message in [
        (Feature("a", "scalar", (3,)), "a scalar has none"),
        (Feature("a", "series", (3,)), "a series has none"),
        (Feature("a", "vector", (3, 2)), "give .length"),
        (Feature("a", "image", (3,)), "give .height, width"),
        (Feature("a", "graph", (3, 3)), "give .nodes"),
    ]:
        with pytest.raises(L4SError, match=message):
            StateEncoder(EncoderConfig(features=(feature,), unknown=""), 8)
    with pytest.raises(L4SError, match="less than the 4 kernels"):
        StateEncoder(EncoderConfig(hidden=3), 8)
