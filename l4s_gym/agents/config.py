"""Configurations: plain values, such as a table of TOML, checked and made what they are of."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from l4s_gym.data.files import PathLike, read_error
from l4s_gym.errors import L4SError, unknown

_T = TypeVar("_T")


def convert(kind: type[_T], values: Any, place: str) -> _T:
    """What a configuration says, with the types and limits that its fields are annotated with.

    Args:
        kind: A dataclass or `msgspec.Struct`, of others and of plain types.
        values: Plain values; what is left out has its default. A word in the place of a table is the table's `kind`.
        place: Where they come from, for errors.

    Raises:
        L4SError: A setting does not exist, or has no fitting value.
    """
    try:
        return msgspec.convert(_named(kind, values, place), kind)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, L4SError):
            raise L4SError(f"{place}: {str(cause).removeprefix(f'{place}: ')}") from None
        what, _, path = str(error).partition(" - at `$.")
        where = f"{path.rstrip('`')}: " if path else ""
        raise L4SError(f"{place}: {where}{what}: correct the setting") from None


def _named(kind: Any, values: Any, place: str) -> Any:
    """The values, words as tables; names that are no fields, which msgspec lets pass in dataclasses, are refused."""
    structure = isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, msgspec.Struct))
    hints = get_type_hints(kind) if structure else {}
    if isinstance(values, str) and "kind" in hints:
        values = {"kind": values}
    if hints and isinstance(values, Mapping):
        for name in values:
            if name not in hints:
                raise unknown(f"setting of {place}", name, tuple(hints))
        return {name: _named(hints[name], value, name) for name, value in values.items()}
    if isinstance(values, list | tuple) and get_args(kind):
        return [_named(get_args(kind)[0], each, place) for each in values]
    return values


def read_toml(path: PathLike) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        L4SError: It cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise read_error(path, error) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise L4SError(f"{path}: is no TOML ({error}): correct it") from error
