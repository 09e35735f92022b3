"""Backbones: of any size from a configuration, from a folder, cut short, and others than those that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.agents.llm.settings import FAMILIES, BackboneConfig, LoraConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from l4s_gym.agents.llm import backbones  # noqa: E402
from l4s_gym.agents.llm.backbones import Backbone, banded  # noqa: E402

NONE = LoraConfig()
TINY = {"hidden": 16, "layers": 3, "heads": 2, "positions": 48, "dropout": 0.0}


def _pass(backbone: Backbone, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 6, backbone.width, generator=generator)
    mask = banded(torch.ones(2, 6, dtype=torch.bool), 3, 2, backbone.dtype)
    with torch.no_grad():
        return backbone.eval()(x, mask, torch.arange(6)[None])


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_as_asked(family: str) -> None:
    backbone = Backbone(BackboneConfig(family=family, **TINY), NONE)  # type: ignore[arg-type]
    sizes = backbone.core.config
    assert (backbone.family, backbone.width) == (family, 16)
    assert (sizes.hidden_size, sizes.num_hidden_layers, sizes.num_attention_heads) == (16, 3, 2)
    assert _pass(backbone).shape == (2, 6, 16)
    assert backbone.positions == {"gpt2": "learned", "opt": "learned", "t5": "bias"}.get(family, "rotary")


@pytest.mark.parametrize("family", [*FAMILIES, "t5d"])
def test_it_is_the_model_of_transformers(family: str) -> None:
    """With a plain causal mask, the hidden states are those of the library's own causal pass (T5: of its decoder)."""
    size = TINY | {"layers": 1} if family == "t5d" else TINY  # earlier tokens of a second layer have seen more there
    config = BackboneConfig(family=family.rstrip("d"), decoder=family == "t5d", **size)  # type: ignore[arg-type]
    backbone = Backbone(config, NONE).eval()
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    mask = banded(torch.ones(2, 6, dtype=torch.bool), 1, 6, torch.float32)
    with torch.no_grad():
        got = backbone(x, mask, torch.arange(6)[None])
        if family == "t5d":
            encoded = backbone.core.encoder(inputs_embeds=x, attention_mask=mask.expand(2, 1, 6, 6)).last_hidden_state
            for k in range(6):  # each token sees what has been encoded up to it
                seen = {"inputs_embeds": x[:, : k + 1], "encoder_hidden_states": encoded[:, : k + 1]}
                torch.testing.assert_close(got[:, k], backbone.core.decoder(**seen).last_hidden_state[:, k])
            return
        if family == "t5":
            parts = [backbone.core(inputs_embeds=x[:, :1]).last_hidden_state]  # alone, both directions are one
            torch.testing.assert_close(got[:, :1], parts[0])
            return
        torch.testing.assert_close(got, backbone.core(inputs_embeds=x).last_hidden_state)


def test_leaving_early() -> None:
    """After layer 2 of 3: the same layers as the whole, and the final normalisation."""
    for family in (*FAMILIES, "t5d"):
        options: dict[str, Any] = {"family": family.rstrip("d"), "decoder": family == "t5d"}
        whole = Backbone(BackboneConfig(**options, **TINY), NONE)  # type: ignore[arg-type]
        short = Backbone(BackboneConfig(**options, exit_layer=2, **TINY), NONE)  # type: ignore[arg-type]
        assert not torch.allclose(_pass(whole), _pass(short))
        names = set(dict(short.core.named_parameters()))
        gone = set(dict(whole.core.named_parameters())) - names
        assert gone and all(".2." in name for name in gone)
        for name, parameter in short.core.named_parameters():
            assert torch.equal(parameter, whole.core.get_parameter(name))
    with pytest.raises(L4SError, match=r"4 layers are to stay \(exit_layer, keep of a recipe\), of 3"):
        Backbone(BackboneConfig(exit_layer=4, **TINY), NONE)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "t5", "t5d"])
def test_pretrained_from_a_folder(family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A model that transformers saved: with its weights, frozen, in its own size; Mistral's with its own window."""
    decoder = family == "t5d"
    own = {"sliding_window": 4} if family == "mistral" else {}
    sizes = backbones.random_config(BackboneConfig(family="t5" if decoder else family, vocabulary=20, **TINY))  # type: ignore[arg-type]
    for name, value in own.items():
        setattr(sizes, name, value)
    torch.manual_seed(5)
    transformers.AutoModel.from_config(sizes).save_pretrained(tmp_path / "model")
    capfd.readouterr()
    made = Backbone(BackboneConfig(family="gpt2", pretrained=str(tmp_path / "model")), NONE)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()
    assert made.family == sizes.model_type and made.width == 16
    assert not any(parameter.requires_grad for parameter in made.parameters())
    torch.manual_seed(5)
    original = transformers.AutoModel.from_config(sizes)
    words = original.get_input_embeddings().weight
    for name, parameter in made.core.named_parameters():
        whole = original.get_parameter(name)
        assert torch.equal(parameter, whole[:1] if whole is words else whole)  # word embeddings are never read
    assert made.core.get_input_embeddings().weight.shape == (1, 16)
    assert isinstance(made.core, transformers.T5EncoderModel) == (family in ("t5", "t5d"))


def test_a_pretrained_model_decides_step_by_step(
    tmp_path: Path, make_config: Any, make_batch: Any, stream: Any
) -> None:
    """With a window of its own that is shorter than ours: ours counts."""
    from l4s_gym.agents.llm.network import DecisionModel

    sizes = backbones.random_config(BackboneConfig(family="mistral", **TINY))  # type: ignore[arg-type]
    sizes.sliding_window = 4
    model = transformers.AutoModel.from_config(sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.25)
    model.save_pretrained(tmp_path / "model")
    decision = DecisionModel(make_config(pretrained=str(tmp_path / "model"))).eval()
    batch = make_batch(share=0.0, steps=30)
    with torch.no_grad():
        torch.testing.assert_close(stream(decision, batch), decision(*batch), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gpt_neox", "phi", "gemma2"])
def test_other_families(family: str, make_model: Any, make_batch: Any, stream: Any) -> None:
    """By name, checked when they are made: partly rotated heads, parallel layers, layers with windows of their own."""
    model, batch = make_model(family, lora=LoraConfig()), make_batch(share=0.0, steps=40)
    with torch.no_grad():
        torch.testing.assert_close(stream(model, batch), model(*batch), atol=1e-4, rtol=0)


def test_a_backbone_that_ignores_the_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not among the known: the check sees that step by step is not one pass."""
    plain = Backbone.forward

    def ignores(self: Any, embeddings: Any, mask: Any, positions: Any, cache: Any = None) -> Any:
        return plain(self, embeddings, torch.zeros_like(mask), positions, cache)

    monkeypatch.setattr(Backbone, "forward", ignores)
    with pytest.raises(L4SError, match="step by step it differs"):
        Backbone(BackboneConfig(family="gpt_neox", **TINY), NONE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gtp2", "unknown family 'gtp2': did you mean 'gpt2'"),
        ("bloom", "of no known kind|does not take|step by step"),
        ("mamba", "of no known kind|does not take|step by step"),
        ("bert", "of no known kind|does not take|step by step|cannot be used"),
        ("vit", "cannot be used|no known kind|does not take"),
        pytest.param("clip", "cannot be used|no known kind|does not take", marks=pytest.mark.slow),
    ],
)
def test_families_that_cannot_be_used(family: str, message: str) -> None:
    with pytest.raises(L4SError, match=message) as caught:
        Backbone(BackboneConfig(family=family, **TINY), NONE)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    """No folder, an empty folder, a name on a hub that cannot be reached (the tests are offline)."""
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "none"), str(tmp_path / "empty"), "nobody/nothing"):
        with pytest.raises(L4SError, match="cannot be loaded") as caught:
            Backbone(BackboneConfig(pretrained=name), NONE)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_truncated_weights(size: int, tmp_path: Path) -> None:
    sizes = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    transformers.GPT2Model(sizes).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(L4SError, match=r"cannot be loaded \(.*: give the folder of a downloaded model") as caught:
        Backbone(BackboneConfig(pretrained=str(tmp_path)), NONE)
    assert "\n" not in str(caught.value)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(L4SError, match=r"pip install 'l4s-gym\[llm\]'"):
        Backbone(BackboneConfig(), NONE)
