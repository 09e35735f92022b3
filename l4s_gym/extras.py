"""Import optional libraries, and objects of the user that are named as module:attribute."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any

from l4s_gym.errors import L4SError


def optional(module: str, *extras: str) -> Any:
    """Import a module that may not be installed.

    Args:
        module: Name of the module.
        extras: Extras of this package that install it, for the error.

    Raises:
        L4SError: It cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = " or ".join(f"'l4s-gym[{extra}]'" for extra in extras)
        raise L4SError(f"{module}: cannot be imported ({error}): pip install {remedy}") from error


def silence_gym() -> None:
    """Let the old `gym`, which d3rlpy and Stable-Baselines3 import, come without its banner."""
    with suppress(ImportError):
        importlib.import_module("gym_notices.notices").notices.clear()


@functools.cache
def _file(path: Path) -> Any:
    """Import a file as a module."""
    described = importlib.util.spec_from_file_location(path.stem, path)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def load(spec: str, what: str) -> Any:
    """Import an object of the user.

    Args:
        spec: ``MODULE:ATTRIBUTE``, or ``FILE.py:ATTRIBUTE``.
        what: What the object is, for errors.

    Raises:
        L4SError: There is no such module, file or attribute.
    """
    module, _, attribute = spec.rpartition(":")
    try:
        if module.endswith(".py"):
            found = _file(_path(spec, what))
        else:
            found = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except ModuleNotFoundError as error:
        raise _missing(spec, what, error.name) from error
    except AttributeError as error:
        raise L4SError(f"{what} {spec!r}: {error}: give MODULE:ATTRIBUTE") from error
    return found


def source_code(spec: str, what: str) -> bytes:
    """Read the file that defines an object of the user; arguments and errors as in `load`."""
    return _path(spec, what).read_bytes()


def _path(spec: str, what: str) -> Path:
    module = spec.rpartition(":")[0]
    if module.endswith(".py"):
        path = Path(module).absolute()
        if not path.is_file():
            raise L4SError(f"{what} {spec!r}: there is no file {module}: check the path")
        return path
    try:
        found = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError) as error:  # the latter of `__main__`
        raise _missing(spec, what, module) from error
    if found is None or not found.has_location:
        raise _missing(spec, what, module)
    return Path(str(found.origin))


def _missing(spec: str, what: str, module: str | None) -> L4SError:
    return L4SError(f"{what} {spec!r}: no module {module!r}: choose another name, or put its folder on PYTHONPATH")
