"""Saved agents: a folder that can be shared, written as a whole, and checked when it is read.

| file | what is in it |
|---|---|
| `agent.json` | kind, versions, simulator, configuration, how it was trained, checksum of the weights |
| `weights.safetensors` | the tensors; reading them runs no code |
| `model.bin` | in place of the tensors: the integer model of a student, as a router loads it |
| `adapter/` | LoRA's weights and configuration as peft writes them, if the agent has any |
| `README.md` | the card |
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from l4s_gym.agents.registry import KINDS, kind_of
from l4s_gym.data.files import PathLike, atomic_folder, printable, read_error, sha256
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import optional
from l4s_gym.schema import SCHEMA_VERSION
from l4s_gym.sim import fingerprint

if TYPE_CHECKING:
    import torch

    from l4s_gym.agents.protocol import Agent

ABOUT: Final = "agent.json"
WEIGHTS: Final = "weights.safetensors"
MODEL: Final = "model.bin"
ADAPTER: Final = "adapter"
ADAPTER_WEIGHTS: Final = f"{ADAPTER}/adapter_model.safetensors"
"""Name of the adapter folder, as peft has it."""
CARD: Final = "README.md"
CHECKPOINT: Final = "checkpoint"
"""Prefix of files of an unfinished training, which are removed when the agent is written."""
_OLD: Final = "bc.npz"
_OWN: Final = (ABOUT, WEIGHTS, MODEL, ADAPTER, CARD, _OLD)
_DIGESTS: Final = {"weights_sha256": WEIGHTS, "adapter_sha256": ADAPTER_WEIGHTS, "model_sha256": MODEL}
"""Entry of `ABOUT` and the file whose checksum it is."""


@dataclass(frozen=True)
class Saved:
    """A saved agent as read from its folder.

    Attributes:
        kind: Name in `registry.KINDS`.
        config: Its configuration, plain.
        training: How it was trained: dataset, steps, seed, metrics, ...
        path: The folder.
        version: Version of l4s_gym that wrote it.
    """

    kind: str
    config: dict[str, Any]
    training: dict[str, Any]
    path: Path
    version: str

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, read on first use.

        Raises:
            L4SError: The file is damaged.
        """
        return read_tensors(self.path / WEIGHTS)

    def check(self, options: Mapping[str, str], *known: str) -> None:
        """Check that there is a configuration, and that options are known ones.

        Raises:
            L4SError: There is none, or one is not.
        """
        for option in options:
            if option not in known:
                raise unknown(f"option of {self.kind}", option, known)
        if not self.config:
            raise L4SError(f"{self.path}: has no configuration: train it again")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file by name.

    Raises:
        L4SError: The file is damaged.
    """
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
    return optional("safetensors.torch", "baselines", "llm")


def check_name(folder: PathLike) -> None:
    """Refuse a name that safetensors and TensorBoard cannot handle.

    Raises:
        L4SError: It is not UTF-8.
    """
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:
        raise L4SError(f"{printable(folder)}: the name is not UTF-8: name another folder") from None


def check_target(folder: PathLike) -> None:
    """Refuse a folder that holds anything other than an agent or its unfinished training.

    Raises:
        L4SError: It does, or it is a file.
    """
    path = Path(folder)
    check_name(path)
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
    fill: Callable[[Path], None] | None = None,
) -> Path:
    """Write an agent's folder, which is replaced as a whole or not at all (`files.put_in_place`).

    Other files in the folder of an older agent (such as logs of its training) are kept, except checkpoints.

    Args:
        folder: Its folder; the folders above are made.
        kind: Name in `registry.KINDS`.
        config: Plain data.
        tensors: PyTorch tensors by name, or none; copies are stored, so they may share memory.
        training: Plain data; `simulator` in it: fingerprint of the simulator that made the training's data.
        card: Text of the card.
        fill: Puts more files into the given folder.

    Returns:
        The folder.

    Raises:
        L4SError: It cannot be written; an older agent is unchanged.
    """
    from l4s_gym import __version__

    kind_of(kind)
    check_target(folder)
    check_finite(folder, tensors)
    store = _safetensors() if tensors else None
    try:
        with atomic_folder(folder, keep=_kept) as new:
            flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
            if store is not None:
                store.save_file(flat, new / WEIGHTS)
            if fill is not None:
                fill(new)
            about = {
                "kind": kind,
                "schema_version": SCHEMA_VERSION,
                "version": __version__,
                "simulator": fingerprint.FINGERPRINT,
                "config": config,
                "training": training or {},
                **{name: sha256(new / file) for name, file in _DIGESTS.items() if (new / file).exists()},
            }
            (new / ABOUT).write_text(_json(about, folder), "utf-8")
            text = card or f"# {kind}\nAn agent of l4s-gym; `{ABOUT}` says how it was trained.\n"
            (new / CARD).write_text(text, "utf-8")
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason = getattr(error, "strerror", None) or error
        raise L4SError(f"{folder}: cannot be written ({reason}): free some space or choose another folder") from error
    return Path(os.path.realpath(folder))


def files(folder: PathLike) -> list[str]:
    """Return the names of the files of a saved agent in this folder."""
    path = Path(folder)
    parts = [part for name in _OWN for part in (path / name, *sorted((path / name).rglob("*"))) if part.is_file()]
    return [part.relative_to(path).as_posix() for part in parts]


def check_finite(folder: PathLike, tensors: Mapping[str, Any]) -> None:
    """Refuse weights that are not finite.

    Raises:
        L4SError: A tensor is not finite; the error names it.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise L4SError(f"{folder}: is not written, {name} is not finite: train with a smaller learning rate")


def _kept(name: str) -> bool:
    """Return whether a file of the older agent's folder is kept."""
    return name not in _OWN and not name.startswith(CHECKPOINT)


def _json(about: Mapping[str, Any], folder: PathLike) -> str:
    try:
        return json.dumps(about, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise L4SError(f"{folder}: training: {error}: give finite numbers, strings, lists and dictionaries") from error


def read(folder: PathLike, kind: str | None = None) -> Saved:
    """Read an agent; nothing in the folder is executed.

    Args:
        folder: Its folder.
        kind: Kind that it must have.

    Raises:
        L4SError: There is none, it is damaged or stale, or its kind or version is unknown here.
    """
    path = Path(folder)
    about = _about(path)
    if about["schema_version"] != SCHEMA_VERSION:
        version = about["schema_version"]
        raise L4SError(f"{path}: is of version {version} of the schema, not {SCHEMA_VERSION}: train it again")
    if about["kind"] not in KINDS:
        raise L4SError(f"{path}: {unknown('kind of agent', about['kind'], tuple(KINDS))}")
    if kind is not None and about["kind"] != kind:
        found = about["kind"]
        raise L4SError(f"{folder}: is an agent of kind {found!r}, not {kind!r}: write {found}:{folder}")
    fingerprint.check(str(path), _simulator(about), _train_again(about, path))
    for name, file in _DIGESTS.items():
        try:
            if name in about and about[name] != sha256(path / file):
                raise L4SError(f"{path / file}: is damaged (checksum differs): fetch it again, or train it again")
        except OSError as error:
            raise read_error(path / file, error) from error
    return Saved(**{name: about[name] for name in ("kind", "config", "training", "version")}, path=path)


def _simulator(about: Mapping[str, Any]) -> str:
    """Return which simulator made an agent's training data; if unknown, the one installed at that time."""
    return str(about["training"].get("simulator", about.get("simulator", fingerprint.NONE)))


def _train_again(about: Mapping[str, Any], path: Path) -> str:
    """Return the remedy for a stale agent."""
    found = {name: about["training"].get(name) for name in ("dataset", "scenarios")}
    given = "".join(f" --{name} {value}" for name, value in found.items() if value and isinstance(value, str))
    return f"train it again: l4s-gym train {about['kind']}{given} --out {path}" if given else "train it again"


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
    """Load the agent of a folder.

    Args:
        folder: Its folder.
        options: Passed to the loader of its kind, such as ``{"rule": "diffuse"}``.
        kind: Kind that it must have.

    Raises:
        L4SError: As `read`; it is of another kind; the loader refuses an option.
    """
    check_name(folder)
    saved = read(folder, kind)
    try:
        loader = KINDS[saved.kind].load_loader()
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
