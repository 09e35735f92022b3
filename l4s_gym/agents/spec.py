"""Parse an agent spec, so that the agent can be made, hashed and sent to other machines.

| spec | form | agent |
|---|---|---|
| `random`, `enqueue`, `threshold` | `rule` | the rules |
| `threshold:l_us=500,c_us=10000` | `rule` | with thresholds of its own |
| `native:pie` | `native` | a discipline, which runs inside the engine |
| `runs/x`, `bc:runs/x` | `saved` | a saved agent by its folder, of any kind or of the one that is named |
| `runs/x,rule=diffuse` | `saved` | with another decision rule (and other options of its kind) |
| `MODULE:ATTRIBUTE:runs/x` | `saved` | of a kind from elsewhere, see `l4s_gym.agents.registry` |
| `FILE.py:ATTRIBUTE` | `file` | anybody's own: an object, or a class or function without arguments that makes it |
| `MODULE:ATTRIBUTE` | `module` | the same, from a module |

A name of the table above comes first: a folder that is named like a rule is written `./random`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

from l4s_gym import extras
from l4s_gym.agents import saved
from l4s_gym.agents.protocol import Agent
from l4s_gym.agents.registry import KINDS, UNTRAINED, kind_of
from l4s_gym.errors import L4SError, unknown
from l4s_gym.tables import checksum, timeless

_NATIVE: Final = "native"
_NAMES: Final = (*UNTRAINED, "FOLDER", "KIND:FOLDER", "MODULE:ATTRIBUTE", "FILE.py:ATTRIBUTE")


@dataclass(frozen=True)
class AgentSpec:
    """A spec, taken apart.

    Attributes:
        form: See the table above.
        name: The rule, `native`, the kind of a saved agent ("": any), or the module.
        path: A saved agent's folder, or a Python file; None: the spec names none.
        rest: What comes after, such as `,rule=diffuse`, `:pie` or `:MyAgent`.
    """

    form: Literal["rule", "native", "saved", "file", "module"]
    name: str
    path: Path | None
    rest: str

    @classmethod
    def parse(cls, spec: str) -> Self:
        """From text. Whether there is such an agent is seen when it is made."""
        name, colon, rest = spec.partition(":")
        if name in UNTRAINED or (colon and name == _NATIVE):
            return cls("native" if name == _NATIVE else "rule", name, None, colon + rest)
        file, colon, attribute = spec.rpartition(":")
        if file.endswith(".py"):
            return cls("file", "", Path(file), f":{attribute}")
        outside = ":".join(spec.split(":")[:2]) if ":" in file else ""
        kind = name if colon and name in KINDS else outside
        folder, comma, options = (spec.removeprefix(f"{kind}:") if kind else spec).partition(",")
        if kind or (folder and (os.sep in folder or Path(folder).is_dir())):
            return cls("saved", kind, Path(folder) if folder else None, comma + options)
        return cls("module", file, None, f":{attribute}") if colon else cls("module", spec, None, "")

    @classmethod
    def of_folder(cls, folder: Path, options: str = "", kind: str = "") -> Self:
        """Of a saved agent, with options such as ``rule=diffuse``."""
        return cls("saved", kind, folder, f",{options}" if options else "")

    def __str__(self) -> str:
        """The spec as text."""
        head = f"{self.name}:" if self.name and self.form == "saved" else self.name
        path = "" if self.path is None else str(self.path)
        if self.form == "saved" and path and not head and os.sep not in path:
            path = os.path.join(".", path)
        return f"{head}{path}{self.rest}"

    @property
    def native(self) -> str | None:
        """Name of the discipline that decides; None: an agent does."""
        return self.rest.removeprefix(":") if self.form == "native" else None

    @property
    def experiment(self) -> tuple[str, str]:
        """Name and variant of its experiment."""
        name = self.name
        if self.path is not None:
            name = self.path.stem if self.form == "file" else self.path.resolve().name
        return name, self.rest

    def make(self) -> Agent:
        """The agent.

        Raises:
            L4SError: There is no such agent, or it cannot be made.
        """
        if self.form == "rule":
            kind, names = UNTRAINED[self.name]
            made: Agent = kind(**_numbers(str(self), self.rest.removeprefix(":"), names))
            return made
        if self.form == "native":
            raise L4SError(f"agent {str(self)!r}: runs inside the engine: give it to the evaluation")
        if self.form != "saved":
            return _foreign(self._known())
        return saved.load(self._folder(), _options(str(self), self.rest), kind=self.name or None)

    def digest(self) -> str:
        """Checksum of what decides: weights, configuration, source and options.

        Raises:
            L4SError: There is nothing of this name.
        """
        if self.form == "saved":
            path = saved.read(self._folder()).path
            return checksum([self.rest, timeless(json.loads((path / saved.ABOUT).read_bytes()))])
        if self.native is not None and ":" not in self.native:
            return checksum(str(self))
        if self.form == "rule":
            source = Path(inspect.getfile(UNTRAINED[self.name][0])).read_bytes()
        else:
            where = (self.native, "discipline") if self.native else (self._known(), "agent")
            source = extras.source_code(*where)
        return checksum([f"{self.name}{self.rest}", hashlib.sha256(source).hexdigest()])

    def files(self) -> dict[str, Path]:
        """The files of the agent; by their names on a machine that does not have them."""
        if self.path is None:
            return {}
        if self.form == "file":
            return {self.path.name: self.path}
        return {f"{self.path.resolve().name}/{name}": self.path / name for name in saved.files(self.path)}

    def pack(self) -> dict[str, bytes]:
        """The content of its files by name, for `unpack`."""
        return {name: path.read_bytes() for name, path in self.files().items()}

    def unpack(self, files: Mapping[str, bytes], folder: Path) -> Self:
        """The same, with its files in another folder."""
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return replace(self, path=folder / next(iter(files)).partition("/")[0])

    def _folder(self) -> Path:
        """The folder of a saved agent, whose kind is known then.

        Raises:
            L4SError: The spec names no folder, or there is no such kind.
        """
        if self.path is None:
            raise L4SError(f"agent {str(self)!r}: names no folder: give {self.name}:FOLDER")
        if self.name:
            kind_of(self.name)
        return self.path

    def _known(self) -> str:
        """`MODULE:ATTRIBUTE` or `FILE.py:ATTRIBUTE`.

        Raises:
            L4SError: It is neither.
        """
        if len(self.rest) < 2 or not (self.name or self.path):
            raise unknown("agent", str(self), _NAMES)
        return str(self)


def _numbers(spec: str, text: str, names: tuple[str, ...]) -> dict[str, float]:
    """The numbers of ``name=value,...``."""
    numbers: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in names:
            raise unknown(f"option of {spec!r}", name, names) if names else L4SError(f"{spec!r}: takes no options")
        try:
            numbers[name] = float(value)
        except ValueError:
            raise L4SError(f"{spec!r}: {part!r} is not {name}=<number>") from None
    return numbers


def _options(spec: str, text: str) -> dict[str, str]:
    """The options of ``,name=value,...`` as they were written."""
    options = {}
    for part in text.split(",")[1:]:
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise L4SError(f"agent {spec!r}: {part!r} is not name=value")
        options[name] = value
    return options


def _foreign(spec: str) -> Agent:
    """Somebody's own agent: an object, or what a class or function without arguments returns."""
    found = extras.load(spec, "agent")
    if callable(found) and (isinstance(found, type) or not isinstance(found, Agent)):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise L4SError(
                f"agent {spec!r}: {spec.rpartition(':')[2]} takes arguments ({error}): give an object with the "
                "methods of l4s_gym.agents.Agent, or a class or function without arguments that makes it"
            ) from None
        except ValueError:  # written in C, it has no signature that can be read
            pass
        found = found()
    if not isinstance(found, Agent):
        lacking = [name for name in ("name", "rule", "reset", "act", "cost") if not hasattr(found, name)]
        raise L4SError(f"agent {spec!r}: is no agent: {type(found).__name__} lacks {', '.join(lacking)}")
    return found
