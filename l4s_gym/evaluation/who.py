"""Who decides in an experiment: the agent's spec taken apart, so that it can be told from others and sent elsewhere."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from l4s_gym.agents import PLAIN, saved
from l4s_gym.data.files import sha256
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.entry import NATIVE, checksum, timeless


@dataclass(frozen=True)
class Who:
    """A spec of `l4s_gym.agents.make`, or `native:<aqm>`: ``<head><path><tail>``.

    Attributes:
        head: What comes before the path, such as `bc:`.
        path: A saved agent's folder, or a Python file; None: the spec names none.
        tail: What comes after, such as `,rule=diffuse` or `:MyAgent`; without a path, the whole spec.
    """

    head: str
    path: Path | None
    tail: str

    @classmethod
    def parse(cls, spec: str) -> Who:
        """From a spec."""
        file, colon, attribute = spec.rpartition(":")
        if colon and file.endswith(".py"):
            return cls("", Path(file), f":{attribute}")
        kind, colon, rest = spec.partition(":")
        head = f"{kind}:" if colon and kind in saved.KINDS else ""
        folder, comma, options = (rest if head else spec).partition(",")
        if head or (not spec.startswith(NATIVE) and Path(folder).is_dir()):
            return cls(head, Path(folder), comma + options)
        return cls("", None, spec)

    @property
    def spec(self) -> str:
        """The spec."""
        return f"{self.head}{self.path or ''}{self.tail}"

    @property
    def native(self) -> bool:
        """Whether a discipline decides."""
        return self.path is None and self.tail.startswith(NATIVE)

    def digest(self) -> str:
        """Checksum of what decides: weights, configuration, source and options.

        Raises:
            L4SError: There is nothing of this name.
        """
        if self.path is not None and self.path.suffix == ".py":
            return checksum([self.tail, _sha256(self.path)])
        if self.path is not None:
            saved.read(self.path)
            about = json.loads((self.path / saved.ABOUT).read_bytes())
            return checksum([self.tail, timeless(about)])
        if self.native:
            return checksum(self.tail)
        name = self.tail.partition(":")[0]
        if name in PLAIN:
            return checksum([self.tail, _sha256(Path(inspect.getfile(PLAIN[name])))])
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None or found.origin is None or not Path(found.origin).is_file():
            raise L4SError(
                f"agent {self.spec!r}: no module {name!r}: put its folder on PYTHONPATH, or give FILE.py:NAME"
            )
        return checksum([self.tail, _sha256(Path(found.origin))])

    def pack(self) -> dict[str, bytes]:
        """The content of its files, for a machine that does not have them."""
        if self.path is None:
            return {}
        if self.path.is_file():
            return {self.path.name: self.path.read_bytes()}
        names = (saved.ABOUT, saved.WEIGHTS)
        return {f"{self.path.resolve().name}/{name}": (self.path / name).read_bytes() for name in names}

    def unpack(self, files: Mapping[str, bytes], folder: Path) -> Who:
        """The same, with its files in another folder."""
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        return replace(self, path=folder / next(iter(files)).partition("/")[0])


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise L4SError(f"{path}: cannot be read ({error.strerror}): check the path of the agent") from error
