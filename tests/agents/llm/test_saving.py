"""Saving and loading: equal logits, readable by peft, whole or not at all; and sending to a hub."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.agents import saved
from l4s_gym.agents.llm.settings import LoraConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from l4s_gym.agents.llm import saving  # noqa: E402
from l4s_gym.agents.llm.fast import optimize  # noqa: E402


def _logits(model: Any, batch: Any) -> Any:
    with torch.no_grad():
        return model(*batch)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "t5", "t5d"])
def test_equal_logits(family: str, rank: int, make_model: Any, make_batch: Any, tmp_path: Path) -> None:
    """Of weights that no seed gives (all were changed), merged or not; the generator is left alone."""
    model, batch = make_model(family, lora=LoraConfig(rank=rank), freeze=rank > 0), make_batch()
    saving.save(model, tmp_path / "agent", training={"dataset": "d", "seed": 3, "metrics": {"loss": 0.5}})
    before = torch.get_rng_state()
    loaded = saving.load(tmp_path / "agent")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(_logits(loaded.model, batch), _logits(model, batch))
    assert loaded.model.config == model.config and not loaded.model.training
    assert loaded.training == {"dataset": "d", "seed": 3, "metrics": {"loss": 0.5}}
    merged = saving.load(tmp_path / "agent").model
    merged.backbone.merge()
    torch.testing.assert_close(_logits(merged, batch), _logits(model, batch), atol=1e-4, rtol=0)
    assert not merged.backbone.adapted
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert [parameter.requires_grad for parameter in loaded.model.parameters()] == trained


def test_a_pretrained_backbone_is_named_not_stored(make_config: Any, make_batch: Any, tmp_path: Path) -> None:
    from l4s_gym.agents.llm.backbones import random_config
    from l4s_gym.agents.llm.network import DecisionModel

    base = tmp_path / "base"
    transformers.AutoModel.from_config(random_config(make_config().backbone)).save_pretrained(base)
    model = DecisionModel(make_config(pretrained=str(base))).eval()
    saving.save(model, tmp_path / "agent")
    names = set(saved.read(tmp_path / "agent").tensors)
    assert names and not any(name.startswith("backbone") for name in names)
    batch = make_batch()
    assert torch.equal(_logits(saving.load(tmp_path / "agent").model, batch), _logits(model, batch))
    tuned = DecisionModel(make_config(pretrained=str(base), freeze=False, lora=LoraConfig())).eval()
    with torch.no_grad():
        tuned.backbone.core.ln_f.bias.add_(1)
    saving.save(tuned, tmp_path / "tuned")
    assert torch.equal(_logits(saving.load(tmp_path / "tuned").model, batch), _logits(tuned, batch))


def test_the_commit_of_a_model_from_the_hub_is_kept(make_model: Any, tmp_path: Path) -> None:
    model = make_model()
    model.backbone.commit = "0123abc"
    saving.save(model, tmp_path / "agent")
    meta = json.loads((tmp_path / "agent" / saved.ABOUT).read_text())
    assert meta["config"]["backbone"]["revision"] == "0123abc"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # names that peft takes from transformers
def test_peft_reads_the_adapter(make_model: Any, tmp_path: Path) -> None:
    import peft

    model = make_model("llama")
    saving.save(model, tmp_path / "agent")
    plain = make_model("llama", lora=LoraConfig()).backbone.core
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "agent" / saved.ADAPTER)
    read = peft.get_peft_model_state_dict(adapted)
    expected = saving.adapter_tensors(model)
    assert set(read) == set(expected) and len(read) == 8
    assert all(torch.equal(read[name], expected[name]) for name in read)


def test_the_folder(make_model: Any, tmp_path: Path) -> None:
    """What is in it, and what the card says; nothing else is left behind when it is replaced."""
    for seed in (1, 2):
        saving.save(
            make_model(), tmp_path / "deep" / "agent", training={"dataset": "l4s/x-v0", "seed": seed}, card="More.\n"
        )
    folder = tmp_path / "deep" / "agent"
    assert sorted(each.name for each in folder.iterdir()) == [
        "README.md",
        "adapter",
        "agent.json",
        "weights.safetensors",
    ]
    assert sorted(each.name for each in (folder / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert list(folder.parent.iterdir()) == [folder]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: l4s-gym\n") and card.endswith("More.\n")
    assert "| seed | 2 |" in card and "| dataset | l4s/x-v0 |" in card and "LoRA of rank 2" in card
    assert str(tmp_path) not in card


def test_failing_to_save_leaves_the_old(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, in the middle; values that are no JSON; a folder of somebody else; a merged model."""
    model = make_model()
    saving.save(model, tmp_path / "agent", training={"seed": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(L4SError, match=r"No space left on device.*free some space"):
            saving.save(model, tmp_path / "agent", training={"seed": 2})
    for bad in (float("nan"), object()):
        with pytest.raises(L4SError, match=r"training: .*: give finite numbers"):
            saving.save(model, tmp_path / "agent", training={"seed": bad})
    assert saving.load(tmp_path / "agent").training == {"seed": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["agent"]
    spoiled = make_model()
    with torch.no_grad():
        spoiled.head.bias[1] = torch.inf
    with pytest.raises(L4SError, match=r"head.bias is not finite"):
        saving.save(spoiled, tmp_path / "agent")
    assert saving.load(tmp_path / "agent").training == {"seed": 1}
    other = tmp_path / "other"
    other.mkdir()
    saving.save(model, other)  # empty
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    with pytest.raises(L4SError, match="holds something that is no agent"):
        saving.save(model, tmp_path / "home")
    model.backbone.merge()
    with pytest.raises(L4SError, match="save it before that"):
        saving.save(model, tmp_path / "agent")
    plain = make_model(lora=LoraConfig())
    optimize(plain)
    with pytest.raises(L4SError, match="save it before that"):
        saving.save(plain, tmp_path / "agent")


def _damage(folder: Path, what: str) -> None:
    meta, weights = folder / saved.ABOUT, folder / saved.WEIGHTS
    adapter = folder / saved.ADAPTER_WEIGHTS
    plain = json.loads(meta.read_text())
    match what:
        case "no meta":
            meta.unlink()
        case "no json":
            meta.write_text("{")
        case "kind":
            meta.write_text(json.dumps(plain | {"kind": "bc"}))
        case "schema":
            meta.write_text(json.dumps(plain | {"schema_version": 99}))
        case "setting":
            meta.write_text(json.dumps(plain | {"config": plain["config"] | {"wndow": 3}}))
        case "size":
            plain["config"]["backbone"]["layers"] = 1
            meta.write_text(json.dumps(plain))
        case "rank":
            plain["config"]["lora"]["rank"] = 3
            meta.write_text(json.dumps(plain))
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-10])
        case "flip" | "flip adapter":
            path = weights if what == "flip" else adapter
            data = path.read_bytes()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "no weights":
            weights.unlink()
        case "no adapter":
            adapter.unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no meta", "agent.json: cannot be read"),
        ("no json", "agent.json: is damaged"),
        ("kind", "is an agent of kind 'bc', not 'llm'"),
        ("schema", "version 99 of the schema, not 1"),
        ("setting", "did you mean 'window'"),
        ("size", "do not fit the configuration"),
        ("rank", "do not fit the configuration"),
        ("cut", "weights.safetensors: is damaged"),
        ("flip", "weights.safetensors: is damaged .checksum differs"),
        ("flip adapter", "adapter_model.safetensors: is damaged .checksum differs"),
        ("no weights", "weights.safetensors: cannot be read"),
        ("no adapter", "adapter_model.safetensors: cannot be read"),
    ],
)
def test_damaged_folders(what: str, message: str, make_model: Any, tmp_path: Path) -> None:
    saving.save(make_model(), tmp_path / "agent")
    _damage(tmp_path / "agent", what)
    with pytest.raises(L4SError, match=message) as caught:
        saving.load(tmp_path / "agent")
    assert "\n" not in str(caught.value)


def test_sending_to_a_hub(make_model: Any, make_batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole folder, by `huggingface_hub`; what was sent loads. Refusals are one clear error."""
    import shutil

    import huggingface_hub

    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> str:
            calls.append(("create", options | {"repo_id": repo_id}))
            return f"https://hub/{repo_id}"

        def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
            calls.append(("upload", options))
            shutil.copytree(folder_path, tmp_path / "sent")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = make_model()
    assert saving.push_to_hub(model, "me/agent", training={"seed": 1}, private=True) == "https://hub/me/agent"
    assert [name for name, _ in calls] == ["create", "upload"]
    assert calls[0][1] == {"repo_id": "me/agent", "private": True, "exist_ok": True}
    assert calls[1][1]["repo_id"] == "me/agent"
    loaded = saving.load(tmp_path / "sent")
    batch = make_batch()
    assert torch.equal(_logits(loaded.model, batch), _logits(model, batch)) and loaded.training == {"seed": 1}

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("401 Client Error.\nUnauthorized")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(L4SError, match=r"hub: me/agent: 401 Client Error. Unauthorized: check name, token"):
        saving.push_to_hub(model, "me/agent")


def test_half_precision_is_kept(make_model: Any, make_batch: Any, tmp_path: Path) -> None:
    model = make_model("llama", dtype="bfloat16")
    saving.save(model, tmp_path / "agent")
    loaded = saving.load(tmp_path / "agent").model
    assert loaded.backbone.dtype == torch.bfloat16
    assert torch.equal(_logits(loaded, make_batch()), _logits(model, make_batch()))
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(model.config)
