"""Parse an agent spec, so that the agent can be made, hashed and sent to other machines.

| spec | form | agent |
|---|---|---|
| `random`, `enqueue`, `threshold`, `zero` | `rule` | a rule |
| `random:form=parameters` | `rule` | a rule that decides in another form (`l4s_gym.forms`) |
| `threshold:l_us=500,c_us=10000` | `rule` | a rule with its own thresholds |
| `native:pie` | `native` | a discipline, which runs inside the engine |
| `runs/x`, `bc:runs/x` | `saved` | a saved agent by its folder, of any kind or of the one that is named |
| `runs/x,rule=diffuse` | `saved` | with another decision rule (and other options of its kind) |
| `MODULE:ATTRIBUTE:runs/x` | `saved` | of a kind from another package, see `l4s_gym.agents.registry` |
| `FILE.py:ATTRIBUTE` | `file` | your own: an object, or a class or function without arguments that makes it |
| `MODULE:ATTRIBUTE` | `module` | the same, from a module |

A name of the table above comes first: write `./random` for a folder with the name of a rule.
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
    """A parsed spec.

    Attributes:
        form: See the table above.
        name: The rule, `native`, the kind of a saved agent ("": any), or the module.
        path: A saved agent's folder, or a Python file; None: the spec has none.
        rest: The remaining text, such as `,rule=diffuse`, `:pie` or `:MyAgent`.
    """

    form: Literal["rule", "native", "saved", "file", "module"]
    name: str
    path: Path | None
    rest: str

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Parse a spec; `make` finds out whether there is such an agent."""
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
        """Make the spec of a saved agent, with options such as ``rule=diffuse``."""
        return cls("saved", kind, folder, f",{options}" if options else "")

    def __str__(self) -> str:
        """Return the spec as text."""
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
        """Make the agent.

        Raises:
            L4SError: There is no such agent, or it cannot be made.
        """
        if self.form == "rule":
            kind, names = UNTRAINED[self.name]
            made: Agent = kind(**_settings(str(self), self.rest.removeprefix(":"), names))
            return made
        if self.form == "native":
            raise L4SError(f"agent {str(self)!r}: runs inside the engine: give it to the evaluation")
        if self.form != "saved":
            return _foreign(self._known())
        return saved.load(self._folder(), _options(str(self), self.rest), kind=self.name or None)

    def digest(self) -> str:
        """Return a checksum of weights, configuration, source and options.

        Raises:
            L4SError: There is nothing with this name.
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
        """Return the files of the agent by the names that they have on another machine."""
        if self.path is None:
            return {}
        if self.form == "file":
            return {self.path.name: self.path}
        return {f"{self.path.resolve().name}/{name}": self.path / name for name in saved.files(self.path)}

    def pack(self) -> dict[str, bytes]:
        """Return the content of its files by name, for `unpack`."""
        return {name: path.read_bytes() for name, path in self.files().items()}

    def unpack(self, files: Mapping[str, bytes], folder: Path) -> Self:
        """Return the same spec, with its files in another folder."""
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return replace(self, path=folder / next(iter(files)).partition("/")[0])

    def _folder(self) -> Path:
        """Return the folder of a saved agent, whose kind is then known.

        Raises:
            L4SError: The spec names no folder, or there is no such kind.
        """
        if self.path is None:
            raise L4SError(f"agent {str(self)!r}: names no folder: give {self.name}:FOLDER")
        if self.name:
            kind_of(self.name)
        return self.path

    def _known(self) -> str:
        """Return `MODULE:ATTRIBUTE` or `FILE.py:ATTRIBUTE`.

        Raises:
            L4SError: It is neither.
        """
        if len(self.rest) < 2 or not (self.name or self.path):
            raise unknown("agent", str(self), _NAMES)
        return str(self)


def _settings(spec: str, text: str, names: tuple[str, ...]) -> dict[str, float | str]:
    """Parse ``name=value,...``: the value of `form` is text, all others are numbers."""
    found: dict[str, float | str] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in names:
            raise unknown(f"option of {spec!r}", name, names) if names else L4SError(f"{spec!r}: takes no options")
        try:
            found[name] = value if name == "form" else float(value)
        except ValueError:
            raise L4SError(f"{spec!r}: {part!r} is not {name}=<number>") from None
    return found


def _options(spec: str, text: str) -> dict[str, str]:
    """Parse the options of ``,name=value,...`` as text."""
    options = {}
    for part in text.split(",")[1:]:
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise L4SError(f"agent {spec!r}: {part!r} is not name=value")
        options[name] = value
    return options


def _foreign(spec: str) -> Agent:
    """Load an agent from outside: an object, or what a class or function without arguments returns."""
    found = extras.load(spec, "agent")
    if callable(found) and (isinstance(found, type) or not isinstance(found, Agent)):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise L4SError(
                f"agent {spec!r}: {spec.rpartition(':')[2]} takes arguments ({error}): give an object with the "
                "methods of l4s_gym.agents.Agent, or a class or function without arguments that makes it"
            ) from None
        except ValueError:  # written in C, its signature cannot be read
            pass
        found = found()
    if not isinstance(found, Agent):
        lacking = [name for name in ("name", "rule", "reset", "act", "cost") if not hasattr(found, name)]
        raise L4SError(f"agent {spec!r}: is no agent: {type(found).__name__} lacks {', '.join(lacking)}")
    return found
