"""Compilation of the simulator: one decorator, a cache that notices every changed file, no fast-math."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
from numba import types

from l4s_gym.compiled import kept
from l4s_gym.sim.parts import PartCompiler, WholeCompiler

F = TypeVar("F", bound=Callable[..., Any])
_INTERNAL: Final[dict[str, Any]] = {
    **{"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True},
    "pipeline_class": PartCompiler,
}


@functools.cache
def source_digest() -> str:
    """Return the digest of all sources of the simulator and of the schema.

    Numba's cache looks only at the file of the function that is called: a change in a function that it
    calls would go unnoticed, and the old machine code would run on.
    """
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), here.parent / "schema.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _widened(kind: Any) -> Any:
    kind = types.unliteral(kind)
    small = isinstance(kind, types.Integer) and kind.bitwidth < 64
    return types.int64 if small else kind


def _internal(function: F, forceinline: bool) -> F:
    """Compile for 64-bit integers, to which all others are converted: else once for each width and each constant."""
    compiled = numba.njit(function, forceinline=forceinline, **_INTERNAL)
    if hasattr(compiled, "compile"):  # false if Numba is switched off
        compile_for = compiled.compile
        compiled.compile = lambda kinds: compile_for(tuple(map(_widened, kinds)))
    return cast(F, compiled)


def jit(function: F) -> F:
    """Compile a function for compiled code only, inlined in its callers: a call would cost more than most bodies."""
    return _internal(function, True)


def shared(function: F) -> F:
    """Compile as `jit`, but once and not inlined, for a large function with several callers.

    Inlined, `link.dequeue` would be ten times in the engine: twice the code, and not faster.
    """
    return _internal(function, False)  # explicit, else it would do as its caller does


def written(name: str, parameters: str, body: Sequence[str], names: Mapping[str, Any]) -> Any:
    """Compile a function from its text, as `jit` does.

    Args:
        name: Name of the function.
        parameters: Parameters as text.
        body: Lines of its body.
        names: The names that they use.
    """
    found = dict(names)
    exec("\n".join([f"def {name}({parameters}):", *(f"    {line}" for line in body)]), found)
    return jit(found[name])


def plain(function: F) -> F:
    """Return the Python function of a compiled one that reads fields as `env["name"]`: it accepts NumPy records too."""
    return cast(F, getattr(function, "py_func", function))


def public(function: F) -> F:
    """Compile a pure function that Python may call too."""
    return cast(F, numba.njit(function, error_model="numpy", forceinline=True, pipeline_class=WholeCompiler))


def entry(function: F) -> F:
    """Compile an entry point: cached on disk, and without the GIL, so that threads run in parallel."""
    return kept(function, source_digest(), error_model="numpy", nogil=True, pipeline_class=WholeCompiler)


def short_entry(function: F) -> F:
    """Compile an entry point that keeps the GIL: to release and take it costs as much as a packet."""
    return kept(function, source_digest(), error_model="numpy", pipeline_class=WholeCompiler)


def direct(compiled: F, *kinds: Any) -> F:
    """Return an entry point for fixed Numba argument types, which it no longer checks; compiled if needed."""
    compile_for: Callable[..., F] = getattr(compiled, "compile", lambda _: compiled)  # if Numba is switched off
    return compile_for(kinds)


@functools.cache
def address_of(compiled: Any, *kinds: Any) -> int:
    """Return the address of an entry point's machine code for these argument types, for calls by compiled code."""
    direct(compiled, *kinds)
    found = compiled.overloads[kinds]
    return int(found.library.get_pointer_to_function(found.fndesc.llvm_cfunc_wrapper_name))
