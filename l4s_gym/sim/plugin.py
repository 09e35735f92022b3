"""A user's own compiled functions, called by address, so that the engine is not compiled again for them.

Each is compiled once per process: the first in 0.5 s, each other in 50 ms. A call takes 5 ns; if the same function
were compiled into its caller, 2 ns (update of a flow's window, CPU time on a machine of 2 cores).
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, Final

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaError
from numba.extending import intrinsic

from l4s_gym.errors import L4SError
from l4s_gym.sim.memory import RECORDS

_TYPES: Final = {"void": types.void, "int64": types.int64, "float64": types.float64, **RECORDS}
_REASON_LINES: Final = 6
"""Lines of Numba's own message that an error quotes."""


@functools.cache
def _compiled(function: Callable[..., Any], signature: str) -> Any:
    """Return the callback; the cache keeps its machine code in memory."""
    plain = getattr(function, "py_func", function)  # the Python function of a compiled one
    name = getattr(plain, "__qualname__", repr(plain))
    if not inspect.isfunction(plain):
        raise L4SError(f"{name}: is no function: give one that Numba can compile, {signature}")
    returns, _, args = signature.rstrip(")").partition("(")
    kinds = _TYPES[returns](*(_TYPES[each] for each in args.split(", ")))
    try:
        return numba.cfunc(kinds, error_model="numpy")(plain)
    except (NumbaError, TypeError) as error:
        plainly = re.sub("\x1b\\[[0-9;]*m", "", str(error))  # without colours
        said = [line for line in plainly.splitlines() if line.strip() and "nopython mode pipeline" not in line]
        reason = "\n  ".join(said[:_REASON_LINES])
        raise L4SError(
            f"{plain.__module__}.{name}: cannot be compiled as {signature}: correct it\n  {reason}"
        ) from None


def callback(function: Callable[..., Any], signature: str) -> int:
    """Return the address of a user's function, compiled by Numba for calls by compiled code.

    Args:
        function: Plain Python, or compiled with `numba.njit`; functions that it calls must be so compiled. An exception
            in it is printed, and it then returns 0.
        signature: Such as ``"int64(env, queue, int64)"``, of `void`, `int64`, `float64`, and of the records of
            `l4s_gym.sim.memory`, whose fields it reads and writes.

    Raises:
        L4SError: It cannot be compiled; the error quotes the reason.
    """
    return int(_compiled(function, signature).address)


def _sent_as(kind: Any) -> Any:
    """Return the type in which an argument is passed: numbers with 64 bits, records as they are."""
    if isinstance(kind, types.Integer | types.Boolean):
        return types.int64
    return types.float64 if isinstance(kind, types.Float) else kind


def _caller(returns: Any) -> Any:
    @intrinsic
    def call(typingctx: Any, address: Any, args: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            given = list(signature.args[1])
            sent = [_sent_as(kind) for kind in given]
            parts = cgutils.unpack_tuple(builder, values[1], len(given))
            cast = [context.cast(builder, *each) for each in zip(parts, given, sent, strict=True)]
            function = ir.FunctionType(context.get_value_type(returns), [context.get_value_type(kind) for kind in sent])
            return builder.call(builder.inttoptr(values[0], function.as_pointer()), cast)

        return returns(types.int64, args), codegen

    return call


call_void = _caller(types.void)
"""Call the function at an address from compiled code, `call_void(address, (flow, acked))`."""
call_int = _caller(types.int64)
"""Call as `call_void`, with an int64 result."""
call_float = _caller(types.float64)
"""Call as `call_void`, with a float64 result."""
