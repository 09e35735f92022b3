"""Saved agents: a folder that others can load, written as a whole, and checked when it is read.

| file | what is in it |
|---|---|
| `agent.json` | kind, versions, configuration, how it was trained, checksum of the weights |
| `weights.safetensors` | the tensors; reading them runs no code |
| `README.md` | the card |
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from l4s_gym.data.files import PathLike, read_error
from l4s_gym.errors import L4SError, unknown
from l4s_gym.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import torch

    from l4s_gym.agents.protocol import Agent

ABOUT: Final = "agent.json"
WEIGHTS: Final = "weights.safetensors"
CARD: Final = "README.md"
CHECKPOINT: Final = "checkpoint"
"""What begins with this in the folder belongs to an unfinished training, and goes when the agent is written."""
_OLD: Final = "bc.npz"

KINDS: dict[str, str] = {
    "bc": "l4s_gym.agents.d3rlpy_agents:load",
    "bcq": "l4s_gym.agents.d3rlpy_agents:load",
    "cql": "l4s_gym.agents.d3rlpy_agents:load",
    "dqn": "l4s_gym.agents.d3rlpy_agents:load",
    "double_dqn": "l4s_gym.agents.d3rlpy_agents:load",
    "sac": "l4s_gym.agents.d3rlpy_agents:load",
    "dt": "l4s_gym.agents.transformer:load",
    "llm": "l4s_gym.agents.llm.agent:load",
}
"""Kind of a saved agent: MODULE:FUNCTION, called as ``function(saved, **options)`` with options as they were written.

Another package adds its own before it loads them.
"""


@dataclass(frozen=True)
class Saved:
    """A saved agent as it was read.

    Attributes:
        kind: Which of `KINDS`.
        config: Its configuration, plain.
        training: How it was trained: dataset, steps, seed, metrics, ...
        path: The folder.
        version: Of l4s_gym that wrote it.
    """

    kind: str
    config: dict[str, Any]
    training: dict[str, Any]
    path: Path
    version: str

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, read when first asked for.

        Raises:
            L4SError: The file is damaged.
        """
        path = self.path / WEIGHTS
        store = _safetensors()
        try:
            found: dict[str, torch.Tensor] = store.load_file(path)
        except OSError as error:
            raise read_error(path, error) from error
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise L4SError(f"{path}: is damaged ({error}): fetch it again, or train it again") from error
        return found


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        remedy = "pip install 'l4s-gym[baselines]' or 'l4s-gym[llm]'"
        raise L4SError(f"safetensors: cannot be imported ({error}): {remedy}") from error


def _sync(path: Path) -> None:
    with suppress(OSError):  # not every system can open a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_target(folder: PathLike) -> None:
    """Refuse a folder that holds something else than an agent or its unfinished training.

    Raises:
        L4SError: It does, or it is a file.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise L4SError(f"{folder}: is a file: name a folder")
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if names and not names & {ABOUT, _OLD} and not any(name.startswith(CHECKPOINT) for name in names):
        raise L4SError(f"{folder}: holds something that is no agent ({min(names)}): name a new folder")


def write(
    folder: PathLike,
    *,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
    card: str = "",
) -> Path:
    """Write an agent: a reader sees the old folder or the new one, each whole.

    What else lies in the folder of an older agent (logs of its training, say) is kept, but for checkpoints.

    Args:
        folder: Its folder; the folders above are made.
        kind: One of `KINDS`.
        config: Plain data.
        tensors: PyTorch tensors by name; copies are stored, so they may share memory.
        training: Plain data.
        card: Text of the card.

    Returns:
        The folder.

    Raises:
        L4SError: It cannot be written; what was there before is as it was.
    """
    import torch

    from l4s_gym import __version__

    if kind not in KINDS:
        raise unknown("kind of agent", kind, tuple(KINDS))
    check_target(folder)
    target = Path(os.path.realpath(folder))
    new = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    store = _safetensors()
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise L4SError(f"{folder}: is not written, {name} is not finite: train with a smaller learning rate")
    try:
        new.mkdir(parents=True)
        flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        store.save_file(flat, new / WEIGHTS)
        about = {
            "kind": kind,
            "schema_version": SCHEMA_VERSION,
            "version": __version__,
            "config": config,
            "training": training or {},
            "weights_sha256": _digest(new / WEIGHTS),
        }
        (new / ABOUT).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
        (new / CARD).write_text(card or f"# {kind}\nAn agent of l4s-gym; `{ABOUT}` says how it was trained.\n")
        for name in (WEIGHTS, ABOUT, CARD, ""):
            _sync(new / name)
        _put(new, target)
    except OSError as error:
        reason = error.strerror or error
        raise L4SError(f"{folder}: cannot be written ({reason}): free some space or choose another folder") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise L4SError(f"{folder}: cannot be written ({error}): free some space or choose another folder") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return target


def _put(new: Path, target: Path) -> None:
    """Put a finished folder in the place of another."""
    old = new.with_suffix(".old")
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    if old.exists():
        for entry in old.iterdir():
            if entry.name not in (ABOUT, WEIGHTS, CARD, _OLD) and not entry.name.startswith(CHECKPOINT):
                os.rename(entry, target / entry.name)
        shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def read(folder: PathLike) -> Saved:
    """Read an agent; nothing in the folder is executed.

    Raises:
        L4SError: There is none, it is damaged, or of another kind or version than is known here.
    """
    path = Path(folder)
    about = _about(path)
    if about["schema_version"] != SCHEMA_VERSION:
        version = about["schema_version"]
        raise L4SError(f"{path}: is of version {version} of the schema, not {SCHEMA_VERSION}: train it again")
    if about["kind"] not in KINDS:
        raise L4SError(f"{path}: {unknown('kind of agent', about['kind'], tuple(KINDS))}")
    try:
        digest = about.get("weights_sha256")
        if digest is not None and digest != _digest(path / WEIGHTS):
            raise L4SError(f"{path / WEIGHTS}: is damaged (checksum differs): fetch it again, or train it again")
    except OSError as error:
        raise read_error(path / WEIGHTS, error) from error
    kept = {name: about[name] for name in ("kind", "config", "training", "version")}
    return Saved(**kept, path=path)


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads((path / ABOUT).read_bytes())
    except FileNotFoundError as error:
        if (path / _OLD).is_file():
            remedy = f"train it again: l4s-gym train bc --dataset ID --out {path}"
            raise L4SError(f"{path / _OLD}: is of an older format: {remedy}") from error
        if path.is_dir() and any(entry.name.startswith(CHECKPOINT) for entry in path.iterdir()):
            raise L4SError(f"{path}: its training is not finished: go on by `l4s-gym train ... --resume`") from error
        raise L4SError(f"{path / ABOUT}: cannot be read, there is no such file: name the folder of an agent") from error
    except OSError as error:
        raise read_error(path / ABOUT, error) from error
    except ValueError as error:
        raise L4SError(f"{path / ABOUT}: is damaged ({error}): fetch it again, or train it again") from error
    types = {
        "kind": str,
        "schema_version": int,
        "version": str,
        "config": dict,
        "training": dict,
    }
    if not isinstance(about, dict):
        about = {}
    for name, wanted in types.items():
        if not isinstance(about.get(name), wanted):
            raise L4SError(f"{path / ABOUT}: is damaged ({name} is missing): fetch it again, or train it again")
    return about


def load(folder: PathLike, options: Mapping[str, str] | None = None, *, kind: str | None = None) -> Agent:
    """Make the agent of a folder.

    Args:
        folder: Its folder.
        options: Passed to the loader of its kind, such as ``{"rule": "diffuse"}``.
        kind: What it has to be.

    Raises:
        L4SError: As `read`; it is of another kind; the loader refuses an option.
    """
    saved = read(folder)
    if kind is not None and saved.kind != kind:
        raise L4SError(f"{folder}: is an agent of kind {saved.kind!r}, not {kind!r}: write {saved.kind}:{folder}")
    module, _, name = KINDS[saved.kind].partition(":")
    try:
        loader: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise L4SError(f"{folder}: an agent of kind {saved.kind!r} needs {error.name}: install it") from error
    try:
        agent: Any = loader(saved, **(options or {}))
    except (KeyError, RuntimeError) as error:
        raise L4SError(f"{folder}: does not fit the installed version ({error}): train it again") from error
    shown = [f",{option}={value}" for option, value in (options or {}).items() if option != "rule"]
    agent.name = f"{saved.kind}:{os.path.basename(os.path.realpath(folder))}{''.join(shown)}"
    agent.training = saved.training
    made: Agent = agent
    return made
