"""Saved LLM agents: a folder with the adapter as peft writes it, our own parts, configuration and card.

`l4s_gym.agents.saved` lists the files. `weights.safetensors` holds encoders, embeddings and head; and the backbone,
unless it is pretrained and was frozen.

A pretrained frozen backbone is named by its hub name, folder or wheel, its commit, and its digest, which is checked
when the agent is loaded. A random one is saved although its
seed is known: generators of random numbers differ between versions of PyTorch.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from l4s_gym.agents import saved
from l4s_gym.agents.llm import pretrained
from l4s_gym.agents.llm.backbones import Backbone, count, one_line
from l4s_gym.agents.llm.exported import GRAPH, ExportedModel
from l4s_gym.agents.llm.settings import LLMConfig, from_dict, to_dict
from l4s_gym.agents.llm.text import Model, build
from l4s_gym.data.files import PathLike
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.schema import SCHEMA_VERSION

KIND: Final = "llm"
DECIDES: Final = {
    PACKET: "Decides for each packet whether to enqueue, drop or mark it.",
    "probability": "Sets the probabilities of C and L from time to time.",
    "parameters": "Sets the parameters of DualPI2 from time to time.",
}
"""What a card says of an agent, by its form."""


@dataclass(frozen=True)
class Loaded:
    """A saved model.

    Attributes:
        model: A `DecisionModel`, `TextModel`, `IntervalModel` or `ExportedModel`, in `eval` mode.
        training: Facts about its training (plain values).
        path: Its folder.
    """

    model: Any
    training: dict[str, Any]
    path: Path


def _names(model: Model) -> dict[str, str]:
    """Return the saved tensors of the backbone and their names: the same with and without adapters."""
    backbone = model.config.backbone
    if backbone.pretrained and backbone.frozen:
        return {}
    names = [name for name in model.backbone.core.state_dict() if ".lora_" not in name]
    return {name: "backbone." + name.replace(".base_layer.", ".") for name in names}


def _own_tensors(model: Model) -> dict[str, Tensor]:
    """Return the tensors of `weights.safetensors`."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
    inner = model.backbone.core.state_dict()
    return tensors | {stored: inner[name] for name, stored in _names(model).items()}


def _set_own_tensors(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Set them from a file; RuntimeError: one is missing, unexpected, or of another shape."""
    expected = _own_tensors(model).keys()
    if expected != tensors.keys():
        raise RuntimeError(f"other tensors than expected: {', '.join(sorted(expected ^ tensors.keys())[:3])}")
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.")}
    model.load_state_dict(own, strict=False)
    inner = {name: tensors[stored] for name, stored in _names(model).items()}
    model.backbone.core.load_state_dict(inner, strict=False)


def adapter_tensors(model: Model) -> dict[str, Tensor]:
    """Return LoRA's weights by peft's names; empty without adapters."""
    if not model.backbone.adapted:
        return {}
    peft = optional("peft", "llm")
    state: dict[str, Tensor] = peft.get_peft_model_state_dict(model.backbone.model, save_embedding_layers=False)
    return state


def _set_adapter_tensors(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Set them from a file; RuntimeError: one is missing, unexpected, or of another shape."""
    expected = adapter_tensors(model)
    if {name: t.shape for name, t in expected.items()} != {name: t.shape for name, t in tensors.items()}:
        raise RuntimeError("another adapter than expected")
    optional("peft", "llm").set_peft_model_state_dict(model.backbone.model, dict(tensors))


def _reads(config: LLMConfig) -> dict[str, str]:
    """Return what a card says of the model's input and output."""
    if config.form != PACKET:
        return {"objective": config.intervals.objective, "window": f"{config.intervals.window} decisions"}
    more = {"layout": f"{config.layout}, window of {config.window} steps"} if config.head == "linear" else {}
    return {"head": config.head, **more}


def _card(config: LLMConfig, model: Model, training: Mapping[str, Any], text: str) -> str:
    """Return the model card."""
    backbone = config.backbone
    original = pretrained.original(backbone.pretrained)
    base = f"base_model: {original}\n" if original.count("/") == 1 else ""
    name = backbone.pretrained or f"random {backbone.family}, {backbone.layers} layers of width {backbone.hidden}"
    shown = {key: value for key, value in training.items() if isinstance(value, str | int | float | bool)}
    facts = {
        "backbone": f"{name} {backbone.revision}".strip(),
        "weights": model.backbone.weights,
        "adapters": f"LoRA of rank {config.lora.rank}" if config.lora.rank else "none",
        "parameters": str(count(model)),
        **_reads(config),
        "schema": f"version {SCHEMA_VERSION}",
    }
    rows = facts | dict(sorted(shown.items())) | facts  # facts come first, and count
    table = "\n".join(f"| {key} | {value} |".replace("\n", " ") for key, value in rows.items())
    task = config.task
    about = "another task" if task else "L4S DualPI2"
    decides = f"Its head: {task.head}, of shape {task.shape}." if task else DECIDES[config.form]
    return (
        f"---\nlibrary_name: l4s-gym\ntags: [l4s, aqm, dualpi2, decision-transformer, offline-rl]\n{base}---\n"
        f"# LLM agent for {about}\n{decides}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        '```python\nfrom l4s_gym.agents.llm import saving\n\nmodel = saving.load("FOLDER").model\n```\n'
        f"{text}"
    )


def listed(metrics: Mapping[str, Any]) -> str:
    """Return numbers with their names, as text."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.5g}" for name, value in metrics.items())


def training_card(result: Mapping[str, Any]) -> str:
    """Return the training data and its results as Markdown."""
    rows = [f"| {each['dataset']} | {each['weight']:.3g} | {each['train_steps']:,} |" for each in result["datasets"]]
    lines = ["## Trained on", "| dataset | weight | steps |", "|---|---|---|", *rows, ""]
    held = result["metrics"]
    if held and "recall" not in held:
        lines += ["## On held-out episodes", listed(held) + ".", ""]
    elif held:
        recall = ", ".join(f"{name} {value:.3f}" for name, value in held["recall"].items() if value is not None)
        lines += [
            "## On held-out episodes",
            f"Of {held['steps']:,} steps: cross-entropy {held['cross_entropy']:.4f} nats, accuracy "
            f"{held['accuracy']:.4f} (always the most frequent action: {held['majority']:.4f}), macro-F1 "
            f"{held['macro_f1']:.3f}; recall: {recall}.",
            "",
        ]
    lines += [
        f"{result['steps']:,} steps in {result['seconds']:.0f} s on {result['device']} "
        f"({result['precision']}, {result['tokens_per_s']:,.0f} tokens/s, {result['peak_memory_bytes'] / 1e9:.2f} GB).",
        "",
    ]
    return "\n".join(lines)


def save(
    model: Model,
    folder: PathLike,
    *,
    training: Mapping[str, Any] | None = None,
    card: str = "",
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write a model to a folder, see `saved.write`.

    Args:
        model: The model, not merged.
        folder: The folder.
        training: Plain values about its training (dataset id, steps, seed, metrics, decision rule, target return).
        card: Text for the model card, below its head.
        files: Content of more files by name.

    Returns:
        The folder.

    Raises:
        L4SError: The folder cannot be written, or the model is merged.
    """
    if not isinstance(model.backbone, Backbone) or (model.config.lora.rank and not model.backbone.adapted):
        raise L4SError(f"{folder}: the model is merged or optimized: save it before that")
    config, backbone = model.config, model.backbone
    revision = config.backbone.revision or backbone.commit
    config = replace(config, backbone=replace(config.backbone, revision=revision, digest=backbone.digest))

    def fill(new: Path) -> None:
        for name, text in (files or {}).items():
            (new / name).write_text(text, "utf-8")
        if model.backbone.adapted:
            saved.check_finite(folder, adapter_tensors(model))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the warning that a random backbone has no name
                model.backbone.model.save_pretrained(new / saved.ADAPTER, save_embedding_layers=False)
            (new / saved.ADAPTER / saved.CARD).unlink(missing_ok=True)  # an empty template

    return saved.write(
        folder,
        kind=KIND,
        config=to_dict(config),
        tensors=_own_tensors(model),
        training=training,
        card=_card(config, model, training or {}, card),
        fill=fill,
    )


def load(folder: PathLike | saved.Saved) -> Loaded:
    """Load a saved model without running code from the folder.

    Args:
        folder: The folder, or what was read of it.

    Raises:
        L4SError: It is missing, damaged, or of another version.
    """
    found = folder if isinstance(folder, saved.Saved) else saved.read(folder, KIND)
    config = from_dict(found.config, str(found.path / saved.ABOUT))
    if GRAPH in found.tensors:
        return Loaded(ExportedModel(config, found.tensors).eval(), found.training, found.path)
    with torch.random.fork_rng(devices=[]):
        model = build(config)
    try:
        _set_own_tensors(model, found.tensors)
        if config.lora.rank:
            _set_adapter_tensors(model, saved.read_tensors(found.path / saved.ADAPTER_WEIGHTS))
    except RuntimeError as error:
        reason = one_line(error)
        raise L4SError(f"{found.path}: weights do not fit the configuration ({reason}): train it again") from error
    return Loaded(model.eval(), found.training, found.path)


def fetch(repo_id: str, revision: str = "") -> Path:
    """Download a model from the hub; files that are here already are not downloaded again.

    Args:
        repo_id: `OWNER/NAME`.
        revision: Commit, tag or branch; empty: the newest.

    Returns:
        The folder in the hub's cache, for `load` or `agents.make`.

    Raises:
        L4SError: There is none, or the hub cannot be reached.
    """
    hub = optional("huggingface_hub", "llm")
    try:
        return Path(hub.snapshot_download(repo_id, revision=revision or None))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise L4SError(f"hub: {repo_id}: {one_line(error)}: check name, revision and connection") from error


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    training: Mapping[str, Any] | None = None,
    card: str = "",
    private: bool = False,
    message: str = "Upload the agent",
) -> str:
    """Upload a model to the hub; `huggingface_hub` takes the token from its login or the environment.

    Args:
        model: The model, not merged.
        repo_id: `OWNER/NAME`; made if there is none.
        training: As in `save`.
        card: As in `save`.
        private: Whether a new repository is private.
        message: Commit message.

    Returns:
        Its address.

    Raises:
        L4SError: The hub refuses or cannot be reached.
    """
    hub = optional("huggingface_hub", "llm")
    with tempfile.TemporaryDirectory() as temporary:
        folder = save(model, Path(temporary) / "agent", training=training, card=card)
        try:
            api = hub.HfApi()
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
            raise L4SError(f"hub: {repo_id}: {one_line(error)}: check name, token and connection") from error
    return str(url)
