"""Reader of the public experience pools, which are pickles, by an interpreter that cannot run code.

A pickle is a program. This interpreter knows the instructions that build lists, numbers and arrays, and stand-ins
for the few global names that a pool uses; it imports and calls nothing, so a crafted file cannot
run anything.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import re
import struct
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from l4s_gym import schema
from l4s_gym.data import columns
from l4s_gym.data.files import PathLike, printable, read_error
from l4s_gym.data.pools import MAX_POOL_BYTES, Rows, single, to_records
from l4s_gym.data.stream import Progress, RowStream
from l4s_gym.errors import L4SError

_ATTRIBUTES: Final = ("states", "actions", "rewards", "dones")


class _Global:
    """A global name that a pool may use; `Machine` decides what it stands for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


_GLOBALS: Final = {
    ("utils.exp_pool", "ExperiencePool"): _Global("pool"),
    ("__main__", "ExperiencePool"): _Global("pool"),  # a class that was defined in a notebook
    ("numpy", "ndarray"): _Global("ndarray"),
    ("numpy", "dtype"): _Global("dtype"),
    **{
        (module, name): _Global(name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    },
}


class _Type:
    """A numeric dtype under construction."""

    def __init__(self, code: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]|b1", code):
            raise L4SError(f"holds an array of type {printable(code)}: only numbers are read")
        self.code, self.order = code, "="

    def build(self, state: Any) -> None:
        """Take the byte order from NumPy's state of a dtype."""
        if len(state) < 5 or state[1] not in ("<", ">", "=", "|") or state[2:5] != (None, None, None):
            raise L4SError("holds an array of a structured type: only numbers are read")
        self.order = state[1]

    def read(self, data: object, count: int) -> npt.NDArray[Any]:
        """Return bytes as an array (count,) of this type."""
        dtype = np.dtype(self.order + self.code)
        if not isinstance(data, bytes) or len(data) != count * dtype.itemsize:
            raise L4SError("holds an array whose size is not that of its data: fetch the file again")
        return np.frombuffer(data, dtype)


class Array:
    """A numeric array under construction."""

    value: npt.NDArray[Any] | None = None

    def build(self, state: Any) -> None:
        """Take shape, type and data from NumPy's state of an array."""
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Type) or not all(isinstance(n, int) and n >= 0 for n in shape) or len(shape) > 2:
            raise L4SError("holds something that is not an array of numbers: fetch the file again")
        self.value = dtype.read(data, math.prod(shape)).reshape(shape, order="F" if fortran else "C")


class Instance:
    """The experience pool under construction."""

    attributes: dict[Any, Any] | None = None

    def build(self, state: Any) -> None:
        """Take the attributes."""
        if not isinstance(state, dict):
            raise L4SError("is not an experience pool: fetch the file again")
        self.attributes = state


_PUSH: Final = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
)
_CONSTANT: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Final = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GET: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})


class Machine:
    """A stack machine for the part of the pickle language that makes data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Interpret a whole pickle and return what it leaves on the stack."""
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            name = opcode.name
            if name in _PUSH:
                self.stack.append(argument)
            elif name in _GET:
                self.stack.append(self.memo[cast(int, argument)])
            elif name in _PUT:
                self.memo[len(self.memo) if name == "MEMOIZE" else cast(int, argument)] = self.stack[-1]
            elif name in _CONSTANT:
                self.stack.append(_CONSTANT[name])
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name in _TUPLES:
                self.stack.append(tuple(self.pop(_TUPLES[name])))
            elif name == "MARK":
                self.marks.append(len(self.stack))
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                self.build(name, argument)
        raise ValueError("no end")

    def pop(self, count: int) -> list[Any]:
        """Take the last ``count`` values off the stack."""
        if count > len(self.stack):
            raise IndexError("stack is empty")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def to_mark(self) -> list[Any]:
        """Take the values since the last mark off the stack."""
        return self.pop(len(self.stack) - self.marks.pop())

    def build(self, name: str, argument: Any) -> None:
        """Execute an instruction that makes a value from the top of the stack."""
        if name in ("APPEND", "APPENDS"):
            values = self.pop(1) if name == "APPEND" else self.to_mark()
            self.typed(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self.pop(2) if name == "SETITEM" else self.to_mark()
            self.typed(dict).update(zip(values[::2], values[1::2], strict=True))
        elif name in ("TUPLE", "LIST"):
            values = self.to_mark()
            self.stack.append(tuple(values) if name == "TUPLE" else values)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.stack.append(self.find(*(argument.split(" ", 1) if name == "GLOBAL" else self.pop(2))))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self.pop(2)
            self.stack.append(self.make(function, arguments))
        elif name == "BUILD":
            (state,) = self.pop(1)
            target = self.stack[-1]
            if not isinstance(target, Array | _Type | Instance):
                raise L4SError("sets the state of something that is no array or pool: nothing was executed")
            target.build(state)
        else:
            raise L4SError(f"uses the pickle instruction {name}, which no pool needs: nothing was executed")

    def typed(self, kind: type) -> Any:
        """Return the value on top of the stack, which must be of the given type."""
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"{kind.__name__} expected")
        return self.stack[-1]

    def find(self, module: object, name: object) -> _Global:
        """Return the stand-in for a global name; refuse all but the few of a pool."""
        found = _GLOBALS.get((str(module), str(name)))
        if found is None:
            shown = printable(f"{module}.{name}")
            raise L4SError(f"names the global {shown}, which no pool needs: not executed, do not trust it")
        return found

    def make(self, function: object, arguments: Any) -> Any:
        """Return what a call in the pickle stands for."""
        kind = function.kind if isinstance(function, _Global) else None
        if kind == "pool" and arguments == ():
            return Instance()
        if kind == "_reconstruct":
            return Array()
        if kind == "dtype":
            return _Type(arguments[0])
        if kind == "scalar":
            dtype, data = arguments
            if isinstance(dtype, _Type):
                return dtype.read(data, 1)[0].item()
        raise L4SError(f"calls {kind or type(function).__name__}: nothing was executed, do not trust it")


def _plain(values: object, name: str) -> npt.NDArray[np.float64]:
    """Return a list of numbers or short arrays, or one array, as float64."""
    if isinstance(values, Array):
        values = values.value
    elif isinstance(values, list):
        values = [value.value if isinstance(value, Array) else value for value in values]
        # Short ones only: a small file can refer to one large array many times.
        short = len(schema.FIELDS)
        if not all(isinstance(v, int | float) or (isinstance(v, np.ndarray) and v.size <= short) for v in values):
            raise L4SError(f"{name} is not a table of numbers: fetch the file again")
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise L4SError(f"{name} is not a table of numbers: fetch the file again") from error


def _parse_pool(data: bytes, source: str, named: Sequence[str] | None) -> Rows:
    root = Machine().run(data)
    if not isinstance(root, Instance) or root.attributes is None or set(root.attributes) != set(_ATTRIBUTES):
        raise L4SError(f"is not an experience pool with {', '.join(_ATTRIBUTES)}: fetch the file again")
    states, actions, rewards, dones = (_plain(root.attributes[name], name) for name in _ATTRIBUTES)
    if not len(states):
        raise L4SError("is an empty pool, it holds no step: give another one")
    if states.ndim != 2:
        raise L4SError(f"has states of shape {states.shape[1:]}: give a pool of rows of features")
    if any(column.shape != states.shape[:1] for column in (actions, rewards, dones)):
        raise L4SError(f"has {len(states)} states, but not as many actions, rewards and dones: fetch the file again")
    names, note = columns.columns_of(states) if named is None else (columns.named_columns(named, states.shape[1]), None)
    read = {name: states[:, column] for column, name in enumerate(names) if name != columns.LEFT_OUT}
    notes = () if note is None else (note,)
    return Rows(to_records(read | {"action": actions}), frozenset([*read, "action"]), source, notes)


def load_pickle(path: PathLike, *, columns: Sequence[str] | None = None, max_bytes: int = MAX_POOL_BYTES) -> Rows:
    """Read an experience pool without running anything from the file.

    Args:
        path: Pickle of an ``ExperiencePool``, of ``utils.exp_pool`` or of a notebook.
        columns: Names of the features, in order, `columns.LEFT_OUT` for one that is not read; None: as in
            `l4s_gym.data.columns`.
        max_bytes: Larger files are refused.

    Returns:
        Its states and actions. The numbers were stored as float32: probabilities have a relative error of about 6e-8.

    Raises:
        L4SError: The file cannot be read, is too large, uses any other global name, is not a pool, or the form of its
            columns is unknown.
    """
    try:
        size = os.path.getsize(path)
        if size > max_bytes:
            raise L4SError(f"{path}: has {size} bytes, more than {max_bytes}: raise max_bytes if you trust it")
        with open(path, "rb") as file:
            data = file.read(max_bytes)
    except OSError as error:
        raise read_error(path, error) from error
    try:
        return _parse_pool(data, os.path.basename(path), columns)
    except L4SError as error:
        raise L4SError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise L4SError(f"{path}: is not a whole pickle of a pool ({printable(error)}): fetch it again") from error


def open_pickle(
    paths: Sequence[PathLike], *, progress: Progress | None = None, columns: Sequence[str] | None = None
) -> RowStream:
    """Return the pool of `load_pickle` as a stream."""
    (path,) = paths
    return single(load_pickle(path, columns=columns), progress)
