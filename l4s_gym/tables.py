"""Read TOML files, check their settings, convert them to dataclasses; checksums of what they say."""

from __future__ import annotations

import codecs
import functools
import hashlib
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from l4s_gym.data.files import PathLike, read_error
from l4s_gym.errors import L4SError, unknown

TIMES: Final = ("origin", "wall_s", "latency_us", "seconds", "tokens_per_s", "peak_memory_bytes")
"""Fields, at any depth, that differ between two runs of the same: all others are the same to the bit."""
_T = TypeVar("_T")


def convert(kind: type[_T], values: Any, place: str) -> _T:
    """Convert plain values to a configuration, and check the types and limits of its fields.

    Args:
        kind: Dataclass or `msgspec.Struct` to convert to.
        values: Plain values; missing ones take their defaults. A string in place of a table is the table's `kind`.
        place: Where the values come from, for errors.

    Raises:
        L4SError: A setting does not exist, or has no fitting value.
    """
    if getattr(getattr(kind, "__struct_config__", None), "forbid_unknown_fields", False):
        with suppress(msgspec.ValidationError):  # what follows is slow, and tells what is wrong
            return msgspec.convert(values, kind)
    try:
        return msgspec.convert(_named(kind, values, place, ()), kind)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, L4SError):
            raise L4SError(f"{place}: {str(cause).removeprefix(f'{place}: ')}") from None
        what, _, path = str(error).partition(" - at `$.")
        where = f"{path.rstrip('`')}: " if path else ""
        raise L4SError(f"{place}: {where}{what}: correct the setting") from None


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    """Return the types of the fields of a structure; empty for other types."""
    structure = isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, msgspec.Struct))
    return get_type_hints(kind) if structure else {}


@functools.cache
def _choices(kind: Any) -> tuple[str, ...]:
    """Return the strings of a `Literal`, or of a union of them; empty for other types."""
    if get_origin(kind) is Literal:
        return tuple(each for each in get_args(kind) if isinstance(each, str))
    parts = [_choices(each) for each in get_args(kind) if each is not type(None)]
    return tuple(word for part in parts for word in part) if get_origin(kind) in _UNIONS and all(parts) else ()


_UNIONS = (type(int | str), get_origin(int | Literal["a"]))


def _named(kind: Any, values: Any, place: str, path: tuple[str, ...]) -> Any:
    """Turn strings into tables, and refuse unknown names of fields and unknown choices."""
    fields = _fields(kind)
    if isinstance(values, str):
        choices = _choices(kind)
        if choices and values not in choices:
            error = unknown("value", values, tuple(each for each in choices if each))
            raise L4SError(": ".join([place, *([".".join(path)] if path else []), str(error)]))
        return {"kind": values} if "kind" in fields else values
    if fields and isinstance(values, Mapping):
        for name in values:
            if name not in fields:
                error = unknown(f"setting of {path[-1] if path else place}", name, tuple(fields))
                raise L4SError(f"{place}: {error}") if path else error
        return {name: _named(fields[name], value, place, (*path, name)) for name, value in values.items()}
    inner = get_args(kind)
    if isinstance(values, Mapping) and get_origin(kind) is dict:
        return {name: _named(inner[1], value, place, (*path, str(name))) for name, value in values.items()}
    if isinstance(values, list | tuple) and inner:
        several = [*inner[:-1]] if inner[-1] is Ellipsis else list(inner)
        kinds = several if len(several) == len(values) else several[:1] * len(values)
        return [_named(each, value, place, path) for each, value in zip(kinds, values, strict=True)]
    return values


def read_toml(path: PathLike) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        L4SError: It cannot be read, or is no TOML.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise read_error(path, error) from error
    return parse_toml(content, str(path))


def parse_toml(content: bytes, place: str) -> dict[str, Any]:
    """Parse the content of a TOML file, UTF-8 with or without a byte-order mark.

    Raises:
        L4SError: It is no TOML.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]:
        raise L4SError(f"{place}: is UTF-16 text: save it as UTF-8")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise L4SError(f"{place}:{line}: byte {content[error.start]:#04x} is not UTF-8: save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise L4SError(f"{place}: is no TOML ({error}): correct it") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """Split ``a.b=value`` into name and value; a value that is not TOML is a string.

    Raises:
        L4SError: It has no such form.
    """
    name, equals, value = text.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        raise L4SError(f"--set {text}: give key=value, such as steps=1000 or imbalance.kind=sample")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return ".".join(keys), parsed


def option_paths(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Options of disciplines, a table for each, as `Scenario.replace` takes them."""
    return {f"options.{aqm}.{name}": value for aqm, table in tables.items() for name, value in table.items()}


def checksum(value: Any) -> str:
    """SHA-256 of the JSON of a value."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def timeless(value: Any) -> Any:
    """Plain data of a value without what differs between two runs of the same (`TIMES`)."""
    plain = msgspec.to_builtins(value)
    if isinstance(plain, dict):
        return {name: timeless(item) for name, item in plain.items() if name not in TIMES}
    return [timeless(item) for item in plain] if isinstance(plain, list | tuple) else plain
