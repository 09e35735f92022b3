"""How the simulator is compiled: one decorator, a cache that notices every changed file, no fast-math."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from l4s_gym.compiled import kept

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def source_digest() -> str:
    """Digest of all sources of the simulator and of the schema.

    Numba's cache looks only at the file of the function that is called: a change in a function that it
    calls would go unnoticed, and the old machine code would run on.
    """
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), here.parent / "schema.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def jit(function: F) -> F:
    """Compile a function that only compiled code calls (without a wrapper for Python: 8 s less in all)."""
    compiled = numba.njit(function, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
    return cast(F, compiled)


def plain(function: F) -> F:
    """The Python function behind a compiled one that reads fields as `env["name"]`: it takes NumPy's records too."""
    return cast(F, getattr(function, "py_func", function))


def public(function: F) -> F:
    """Compile a pure function that Python may call too."""
    return cast(F, numba.njit(function, error_model="numpy"))


def entry(function: F) -> F:
    """Compile an entry point: cached on disk, and without the GIL, so that threads run side by side."""
    return kept(function, source_digest(), error_model="numpy", nogil=True)
