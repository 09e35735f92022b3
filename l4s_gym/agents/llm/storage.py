"""Saved LLM agents: a folder with the adapter as peft writes it, our own parts, configuration and card.

| file | in it |
|---|---|
| `agent.json` | kind, versions, configuration, what is known about the training |
| `weights.safetensors` | encoders, embeddings, head; and the backbone, unless it is pretrained and was frozen |
| `adapter/` | LoRA's weights and configuration, readable by peft |
| `README.md` | the card |

A pretrained frozen backbone is named by its hub name or folder, and its commit. A random one is saved although its
seed is known: generators of random numbers differ between versions of PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import l4s_gym
from l4s_gym.agents.llm.backbones import Backbone, one_line
from l4s_gym.agents.llm.config import LLMConfig, from_dict, to_dict
from l4s_gym.agents.llm.lora import count, import_peft
from l4s_gym.agents.llm.text import Model, build
from l4s_gym.data.files import PathLike, read_error
from l4s_gym.errors import L4SError
from l4s_gym.schema import SCHEMA_VERSION

KIND: Final = "llm"
META: Final = "agent.json"
WEIGHTS: Final = "weights.safetensors"
ADAPTER: Final = "adapter"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"  # peft's name
CARD: Final = "README.md"


@dataclass(frozen=True)
class Loaded:
    """A saved model.

    Attributes:
        model: A `DecisionModel` or `TextModel`, in `eval` mode.
        training: What was told about its training (plain values).
        path: Its folder.
    """

    model: Any
    training: dict[str, Any]
    path: Path


def own_tensors(model: Model) -> dict[str, Tensor]:
    """What `weights.safetensors` holds: names are the same with and without adapters."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
    backbone = model.config.backbone
    if not (backbone.pretrained and backbone.frozen):
        for name, tensor in model.backbone.core.state_dict().items():
            if ".lora_" not in name:
                tensors["backbone." + name.replace(".base_layer.", ".")] = tensor
    # Each its own memory: words that T5's parts share are stored twice.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def set_own_tensors(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Put `own_tensors` back.

    Raises:
        RuntimeError: One is missing, left over, or of another shape.
    """
    names = {}
    for name in model.state_dict():
        if not name.startswith("backbone."):
            names[name] = name
    core = model.backbone.core
    inner = {
        name: "backbone." + name.replace(".base_layer.", ".") for name in core.state_dict() if ".lora_" not in name
    }
    backbone = model.config.backbone
    expected = set(names) | (set() if backbone.pretrained and backbone.frozen else set(inner.values()))
    if expected != set(tensors):
        raise RuntimeError(f"other tensors than expected: {', '.join(sorted(expected ^ set(tensors))[:3])}")
    model.load_state_dict({name: tensors[name] for name in names}, strict=False)
    if not (backbone.pretrained and backbone.frozen):
        core.load_state_dict({name: tensors[stored] for name, stored in inner.items()}, strict=False)


def adapter_tensors(model: Model) -> dict[str, Tensor]:
    """LoRA's weights, named as peft names them; none without adapters."""
    if not model.backbone.adapted:
        return {}
    import_peft()
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model.backbone.model, save_embedding_layers=False)
    return state


def set_adapter_tensors(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Put `adapter_tensors` back.

    Raises:
        RuntimeError: One is missing, left over, or of another shape.
    """
    import_peft()
    from peft import set_peft_model_state_dict

    expected = adapter_tensors(model)
    if {name: t.shape for name, t in expected.items()} != {name: t.shape for name, t in tensors.items()}:
        raise RuntimeError("another adapter than expected")
    set_peft_model_state_dict(model.backbone.model, dict(tensors))


def card(config: LLMConfig, model: Model, training: Mapping[str, Any], text: str) -> str:
    """The model card."""
    backbone = config.backbone
    base = f"base_model: {backbone.pretrained}\n" if backbone.pretrained.count("/") == 1 else ""
    name = backbone.pretrained or f"random {backbone.family}, {backbone.layers} layers of width {backbone.hidden}"
    shown = {key: value for key, value in training.items() if isinstance(value, str | int | float | bool)}
    facts = [
        ("backbone", f"{name} {backbone.revision}".strip()),
        ("adapters", f"LoRA of rank {config.lora.rank}" if config.lora.rank else "none"),
        ("parameters", str(count(model))),
        ("head", config.head),
        *([("layout", f"{config.layout}, window of {config.window} steps")] if config.head == "linear" else []),
        ("schema", f"version {SCHEMA_VERSION}"),
        *((key, str(value)) for key, value in sorted(shown.items())),
    ]
    rows = "\n".join(f"| {key} | {value} |".replace("\n", " ") for key, value in facts)
    return (
        f"---\nlibrary_name: l4s-gym\ntags: [l4s, aqm, dualpi2, decision-transformer, offline-rl]\n{base}---\n"
        "# LLM agent for L4S DualPI2\n"
        "Decides for each packet whether to enqueue, drop or mark it.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        '```python\nfrom l4s_gym.agents.llm import storage\n\nmodel = storage.load("FOLDER").model\n```\n'
        f"{text}"
    )


def _write(model: Model, folder: Path, training: Mapping[str, Any], text: str) -> None:
    """All files, into an empty folder."""
    config = model.config
    if model.backbone.commit and not config.backbone.revision:
        config = replace(config, backbone=replace(config.backbone, revision=model.backbone.commit))
    save_file(own_tensors(model), folder / WEIGHTS)
    if model.backbone.adapted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a random backbone has no name
            model.backbone.model.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
        (folder / ADAPTER / CARD).unlink(missing_ok=True)  # an empty form
    meta = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "version": l4s_gym.__version__,
        "config": to_dict(config),
        "training": dict(training),
        "weights_sha256": _digest(folder / WEIGHTS),
    }
    if model.backbone.adapted:
        meta["adapter_sha256"] = _digest(folder / ADAPTER / ADAPTER_WEIGHTS)
    (folder / META).write_text(json.dumps(meta, indent=2, allow_nan=False) + "\n", "utf-8")
    (folder / CARD).write_text(card(config, model, training, text), "utf-8")
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def save(model: Model, folder: PathLike, *, training: Mapping[str, Any] | None = None, card: str = "") -> Path:
    """Write a model to a folder, which is replaced as a whole or not at all.

    Args:
        model: The model; not merged.
        folder: Where.
        training: Plain values about its training (dataset id, steps, seed, metrics, decision rule, target return).
        card: Text for the model card, below its head.

    Returns:
        The folder.

    Raises:
        L4SError: The folder cannot be written, or the model is merged.
    """
    if (model.config.lora.rank and not model.backbone.adapted) or not isinstance(model.backbone, Backbone):
        raise L4SError(f"{folder}: the model is merged or optimized: save it before")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise L4SError(f"{folder}: is not written, {name} is not finite: train with a smaller learning rate")
    target = Path(os.path.realpath(folder))
    if target.exists() and not (target / META).is_file() and not _empty(target):
        raise L4SError(f"{folder}: holds something else: choose another folder")
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    old = fresh.with_suffix(".old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        _write(model, fresh, training or {}, card)
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(fresh, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise L4SError(f"{folder}: cannot be written ({reason}): make room or choose another folder") from error
    except (TypeError, ValueError) as error:
        raise L4SError(f"{folder}: training: {error}: give finite numbers, strings, lists and dictionaries") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return Path(folder)


def _empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    try:
        meta = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:
        raise L4SError(f"{path}: is damaged ({error}): train it again") from error
    if not isinstance(meta, dict) or meta.get("kind") != KIND or not isinstance(meta.get("config"), dict):
        raise L4SError(f"{path}: is not of an LLM agent: choose another folder")
    if meta.get("schema_version") != SCHEMA_VERSION:
        raise L4SError(f"{path}: is not of version {SCHEMA_VERSION} of the schema: train it again")
    return meta


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Tensors of a file whose checksum is known, or not."""
    try:
        if digest is not None and digest != _digest(path):
            raise L4SError(f"{path}: is damaged (checksum differs): fetch it again, or train it again")
        tensors: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise read_error(path, error) from error
    except SafetensorError as error:
        raise L4SError(f"{path}: is damaged ({error}): train it again") from error
    return tensors


def load(folder: PathLike, *, merge: bool = False) -> Loaded:
    """Read a model that was saved; nothing in the folder is executed.

    Args:
        folder: Where it is.
        merge: Merge the adapter into the weights, for speed.

    Raises:
        L4SError: It is not there, is damaged, or of another version.
    """
    path = Path(folder)
    meta = _meta(path)
    config = from_dict(meta["config"], str(path / META))
    tensors = _read(path / WEIGHTS, meta.get("weights_sha256"))
    with torch.random.fork_rng(devices=[]):
        model = build(config)
    try:
        set_own_tensors(model, tensors)
        if config.lora.rank:
            set_adapter_tensors(model, _read(path / ADAPTER / ADAPTER_WEIGHTS, meta.get("adapter_sha256")))
    except RuntimeError as error:
        raise L4SError(f"{path}: weights do not fit the configuration ({one_line(error)}): train it again") from error
    model.eval()
    if merge:
        model.merge()
    return Loaded(model, dict(meta.get("training") or {}), path)


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    training: Mapping[str, Any] | None = None,
    card: str = "",
    private: bool = False,
    message: str = "Upload the agent",
) -> str:
    """Send a model to the hub; `huggingface_hub` takes the token from its login or the environment.

    Args:
        model: The model; not merged.
        repo_id: `OWNER/NAME`; made if there is none.
        training: As in `save`.
        card: As in `save`.
        private: Whether a new repository is private.
        message: Of the commit.

    Returns:
        Its address.

    Raises:
        L4SError: The hub refuses or cannot be reached.
    """
    import huggingface_hub

    with tempfile.TemporaryDirectory() as temporary:
        folder = save(model, Path(temporary) / "agent", training=training, card=card)
        try:
            api = huggingface_hub.HfApi()
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise L4SError(f"hub: {repo_id}: {one_line(error)}: check name, token and connection") from error
    return str(url)
