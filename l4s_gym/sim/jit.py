"""How the simulator is compiled: one decorator, a cache that notices every changed file, no fast-math."""

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
    """Digest of all sources of the simulator and of the schema.

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
    """Compiled for integers of 64 bits, which all others become: else once for each width and each constant."""
    compiled = numba.njit(function, forceinline=forceinline, **_INTERNAL)
    if hasattr(compiled, "compile"):  # Numba is not switched off
        compile_for = compiled.compile
        compiled.compile = lambda kinds: compile_for(tuple(map(_widened, kinds)))
    return cast(F, compiled)


def jit(function: F) -> F:
    """Compile a function that only compiled code calls, as a part of its callers: a call costs more than most do."""
    return _internal(function, True)


def shared(function: F) -> F:
    """As `jit`, for a large function with several callers: compiled once, and called.

    Inlined, `link.dequeue` would stand in the engine ten times: twice the code, and no faster.
    """
    return _internal(function, False)  # said, or it would do as its caller does


def written(name: str, parameters: str, body: Sequence[str], names: Mapping[str, Any]) -> Any:
    """A function from its text, as `jit` compiles it.

    Args:
        name: Of the function.
        parameters: As the text has them.
        body: Its lines.
        names: What they call.
    """
    found = dict(names)
    exec("\n".join([f"def {name}({parameters}):", *(f"    {line}" for line in body)]), found)
    return jit(found[name])


def plain(function: F) -> F:
    """The Python function behind a compiled one that reads fields as `env["name"]`: it takes NumPy's records too."""
    return cast(F, getattr(function, "py_func", function))


def public(function: F) -> F:
    """Compile a pure function that Python may call too."""
    return cast(F, numba.njit(function, error_model="numpy", forceinline=True, pipeline_class=WholeCompiler))


def entry(function: F) -> F:
    """Compile an entry point: cached on disk, and without the GIL, so that threads run side by side."""
    return kept(function, source_digest(), error_model="numpy", nogil=True, pipeline_class=WholeCompiler)


def short_entry(function: F) -> F:
    """An entry point that keeps the GIL: to give it away and take it back costs as much as a packet."""
    return kept(function, source_digest(), error_model="numpy", pipeline_class=WholeCompiler)


def direct(compiled: F, *kinds: Any) -> F:
    """An entry point for arguments of these types of Numba, at which it then looks no more; compiled if need be."""
    compile_for: Callable[..., F] = getattr(compiled, "compile", lambda _: compiled)  # where Numba is switched off
    return compile_for(kinds)


@functools.cache
def address_of(compiled: Any, *kinds: Any) -> int:
    """Address of an entry point's machine code for arguments of these types, which compiled code may call."""
    direct(compiled, *kinds)
    found = compiled.overloads[kinds]
    return int(found.library.get_pointer_to_function(found.fndesc.llvm_cfunc_wrapper_name))
