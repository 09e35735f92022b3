"""Compression: each step does what it says, few bits are those of ONNX Runtime, and what is left decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _name in ("torch", "transformers", "peft", "onnx", "onnxruntime", "onnxscript", "optuna"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'l4s-gym[llm,compress]'")

import torch  # noqa: E402

from l4s_gym import L4SError, agents, cli  # noqa: E402
from l4s_gym.agents.llm import compression, saving  # noqa: E402
from l4s_gym.agents.llm.exported import GRAPH, READ, ExportedModel, coarse, export, linear  # noqa: E402
from l4s_gym.agents.llm.intervals import IntervalModel  # noqa: E402
from l4s_gym.agents.llm.settings import BackboneConfig, Intervals, LLMConfig, LoraConfig  # noqa: E402
from l4s_gym.agents.llm.steps import (  # noqa: E402
    Distil,
    Feedforward,
    Heads,
    Layers,
    Quantise,
    Search,
    Student,
    Window,
    Without,
    Work,
    products,
    quantised,
)
from l4s_gym.agents.onestep import Config as OneStep  # noqa: E402
from l4s_gym.agents.protocol import options_of  # noqa: E402
from l4s_gym.data.files import sha256  # noqa: E402
from l4s_gym.tables import read_toml  # noqa: E402

WINDOW = 3


def config(family: str = "llama", rank: int = 0, layers: int = 2) -> LLMConfig:
    """The first two layers, of two heads of keys and values each, and of 128 feed-forward units."""
    kv = 2 if family == "llama" else 0
    one = OneStep(memory_s=(), actor_hidden=(8,))
    sizes: dict[str, Any] = {"hidden": 64, "layers": layers, "heads": 4, "kv_heads": kv, "feedforward": 128}
    return LLMConfig(
        backbone=BackboneConfig(family=family, dropout=0.0, freeze=False, exit_layer=2, positions=16, **sizes),
        lora=LoraConfig(rank=rank),
        form="parameters",
        intervals=Intervals(window=WINDOW, features=16, observed=False, onestep=one),
    )


def work(family: str = "llama", layers: int = 2) -> Work:
    """A model whose decisions depend on all of its layers, and what it decided in 160 windows."""
    torch.manual_seed(0)
    model = compression.plain(IntervalModel(config(family, layers=layers)))
    for layer in linear(model).values():
        layer.weight.data *= 5.0
    tokens = torch.randn(160, WINDOW, len(model.mean) + 6)
    lengths = torch.randint(1, WINDOW + 1, (160,))
    with torch.no_grad():
        actions = model(tokens, lengths)
    return Work(model, tokens, lengths, actions, torch.arange(160) % 4 == 0)


def done(one: Work, *steps: Any) -> Work:
    """The work after some steps."""
    for step in steps:
        step.apply(one, 0, lambda _: None)
    return one


def opened(one: Work) -> ExportedModel:
    """The model as ONNX Runtime runs it."""
    graph = export(one.model, one.window, one.bits)
    tensors = {name: getattr(one.model, name) for name in READ}
    return ExportedModel(one.model.config, tensors | {GRAPH: torch.frombuffer(bytearray(graph), dtype=torch.uint8)})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_matters_least_is_left_out(family: str) -> None:
    """A head and feed-forward units whose outputs are nearly 0 go first, and the decisions hardly change."""
    one, llama = work(family), family == "llama"
    layers = linear(one.model)
    last = next(layers[name] for name in layers if name.endswith("1.self_attn.o_proj" if llama else "1.attn.c_proj"))
    down = next(layers[name] for name in layers if name.endswith("0.mlp.down_proj" if llama else "0.mlp.c_proj"))
    last.weight.data[:, :32] *= 1e-4  # two heads
    down.weight.data[:, 64:] *= 1e-4
    with torch.no_grad():
        one.actions = one.told(torch.arange(160))
    before = sum(layer.weight.numel() for layer in layers.values())
    done(one, Heads(0.25), Feedforward(0.25))
    left = sum(layer.weight.numel() for layer in linear(one.model).values())
    heads = 64 * (32 + 16 + 16 + 32 if llama else 3 * 32 + 32)
    assert before - left == heads + 64 * 64 * (3 if llama else 2)
    assert last.in_features == 32 and down.in_features == 64
    assert one.loss() < 1e-5


@pytest.mark.parametrize("layers", [2, 4])
def test_windows_and_layers_that_stay(layers: int) -> None:
    one = work(layers=layers)
    tokens, lengths = done(one, Window(2)).windows(torch.arange(8))
    assert tokens.shape[1] == 2 and lengths.max() == 2
    for row in range(8):
        n = int(one.lengths[row])
        assert torch.equal(tokens[row, : lengths[row]], one.tokens[row, max(n - 2, 0) : n])
    assert one.loss() > 0.0
    with pytest.raises(L4SError, match=r"3 layers are to stay .*, of 2"):
        done(one, Layers(3))
    assert len(done(one, Layers(1)).model.backbone.core.layers) == 1
    with pytest.raises(L4SError, match="keep = 3: there are 2 decisions"):
        done(one, Window(3))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_few_bits_are_those_of_the_runtime(bits: int) -> None:
    """Training sees what ONNX Runtime will compute; what was rounded once stays as it is."""
    one = done(work(), Quantise(bits=bits), Distil(steps=2))
    layer = linear(one.model)["backbone.model.layers.0.mlp.up_proj"]
    torch.testing.assert_close(coarse(layer.weight, bits), layer.weight, rtol=1e-5, atol=1e-7)
    assert len(set(layer.weight[0, :32].tolist())) <= (16 if bits == 4 else 32)
    model, rows = opened(one), torch.arange(40)
    with quantised(one.model, one.bits), torch.no_grad():  # one window at a time: as it is in use
        told = torch.cat([one.told(row[None]) for row in rows])
    assert float((model(*one.windows(rows)) - told).abs().max()) < 2e-2 * float(one.actions.std())
    assert 1e-7 < one.loss(model) < 0.2


def test_sensitive_layers_keep_more_bits() -> None:
    one = work()
    names = list(linear(one.model))
    linear(one.model)[names[0]].weight.data[:, ::32] *= 30.0  # one weight of each block makes the others coarse
    with torch.no_grad():
        one.actions = one.told(torch.arange(160))
    found = done(one, Quantise(bits=4, spared=1 / len(names))).bits
    assert found == {name: 8 if name == names[0] else 4 for name in names}
    assert names[0] not in done(one, Quantise(bits=8, spared=1 / len(names))).bits
    with pytest.raises(L4SError, match="bits = 3: give 4 or 8"):
        done(one, Quantise(bits=3))


def test_a_small_transformer_learns_the_decisions() -> None:
    one = done(work(), Student(hidden=32, layers=1, heads=2, feedforward=32))
    before = one.loss()
    assert done(one, Distil(steps=60, learning_rate=3e-3)).loss() < 0.7 * before


def test_without_the_language_model_decisions_are_all_the_same() -> None:
    one = done(work(), Without())
    told = one.told(torch.arange(20))
    assert torch.equal(told, told[:1].expand(20, -1)) and one.loss() >= 0.9


def test_the_search_takes_the_cheapest_within_the_limit() -> None:
    said: list[str] = []
    one = work()
    whole = products(one)
    Search(trials=4, population=2, steps=1, limit=2.0).apply(one, 0, said.append)
    trials = [float(line.split(" misses")[1].split(", ")[1].split()[0].replace(",", "")) for line in said[:4]]
    assert products(one) == min(trials) < whole
    with pytest.raises(L4SError, match="no trial missed less than limit"):
        Search(trials=1, steps=1, limit=1e-9).apply(one, 0, said.append)


def test_an_agent_from_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = IntervalModel(config(rank=2))
    training = {"control_interval_ms": 100.0, "form": "parameters", "options": {"dualpi2_rfc9332": {"target_ms": 3.0}}}
    saving.save(model, tmp_path / "whole", training=training)
    recipe = tmp_path / "recipe.toml"
    steps = '[[steps]]\nkind = "feedforward"\nshare = 0.5\n[[steps]]\nkind = "quantise"\nbits = 4\n'
    recipe.write_text(f"[sample]\nscenarios = 'mixed'\nenvs = 4\nseconds = 1.0\n{steps}")
    out = tmp_path / "small"
    assert cli.main(["compress", str(tmp_path / "whole"), "--recipe", str(recipe), "--out", str(out)]) == 0
    assert "ms a decision" in capsys.readouterr().out
    whole: Any = agents.make(str(tmp_path / "whole"))
    small: Any = agents.make(str(out))
    about = small.training["compressed"]
    assert [step["kind"] for step in about["steps"]] == ["feedforward", "quantise"]
    assert small.cost()["parameters"] == about["parameters"] < whole.cost()["parameters"]
    assert options_of(small) == training["options"]
    rng = np.random.default_rng(0)
    for agent in (whole, small):
        agent.reset(3, 0)
    for _ in range(6):
        obs = rng.random((3, 29)).astype(np.float32)
        assert np.abs(small.act(obs, np.zeros(3)) - whole.act(obs, np.zeros(3))).max() < 0.3
    with pytest.raises(L4SError, match="has its own precision"):
        agents.make(f"{out},dtype=int8")
    digest = sha256(out / "weights.safetensors")
    assert cli.main(["compress", str(out), "--recipe", str(recipe), "--out", str(tmp_path / "again")]) == 2
    assert "is compressed already" in capsys.readouterr().err
    recipe.write_text('[[steps]]\nkind = "prune"\n')
    assert cli.main(["compress", str(tmp_path / "whole"), "--recipe", str(recipe), "--out", str(out)]) == 2
    assert "kind of step 1" in capsys.readouterr().err
    assert sha256(out / "weights.safetensors") == digest  # nothing was lost


def test_the_shipped_recipe_can_be_read() -> None:
    from l4s_gym import shipped

    for path in (shipped.folder("agents") / "llm" / "compress").glob("*.toml"):
        assert compression.parsed(read_toml(path), str(path))[1]
