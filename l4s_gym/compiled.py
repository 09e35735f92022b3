"""Cache compiled functions on disk; if that fails, print one line that says why and what to do.

Numba's own cache raises an exception if its folder cannot be written, the disk is full or a file is damaged.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
from numba.core import caching

F = TypeVar("F", bound=Callable[..., Any])
_DIGEST: Final = hashlib.sha256().digest_size
_REMEDY: Final = "set NUMBA_CACHE_DIR to a folder with some space that can be written"
_said: set[str] = set()


def kept(function: F, stamp: str = "", **options: Any) -> F:
    """Compile a function and cache its machine code on disk.

    Args:
        function: The function; it is compiled at its first call.
        stamp: Version of the sources; cached code with another stamp is not used. (Numba looks only at the file of the
            function, not at what it calls.)
        **options: Options of `numba.njit`.
    """
    compiled = numba.njit(function, **options)
    if not hasattr(compiled, "_cache"):  # Numba is switched off
        return cast(F, compiled)
    given = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = os.path.expanduser(given)
    try:
        compiled._cache = _Cache(function) if not _unnamed(numba.config.CACHE_DIR) else _Nowhere()
        compiled._cache.stamp(stamp)
    except (RuntimeError, OSError):
        compiled._cache = _Nowhere()
    finally:
        numba.config.CACHE_DIR = given
    return cast(F, compiled)


def is_kept(compiled: Any) -> bool:
    """Return whether the machine code of a function made by `kept` is on disk."""
    return bool(getattr(getattr(compiled, "_cache", None), "holds", bool)())


def _unnamed(place: str) -> bool:
    """Return whether `~` in a path could not be expanded; used as it is, it would make a folder called `~`."""
    return place.startswith("~")


def _say(text: str) -> None:
    if text not in _said and multiprocessing.parent_process() is None:
        print(f"l4s-gym: {text}", file=sys.stderr, flush=True)
    _said.add(text)


class _Nowhere(caching.NullCache):  # type: ignore[misc]
    """A cache that stores nothing, used when no folder can be written."""

    def stamp(self, text: str) -> None:
        pass

    def load_overload(self, sig: Any, target_context: Any) -> None:
        _say(f"compiled code is not kept, no folder can be written: it is compiled at each start; {_REMEDY}")


class _UserWide(caching.UserWideCacheLocator):  # type: ignore[misc]
    @classmethod
    def from_function(cls, py_func: Any, py_file: Any) -> Any:
        return None if _unnamed(os.path.expanduser("~")) else super().from_function(py_func, py_file)


class _Impl(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes: Final = [
        _UserWide if each is caching.UserWideCacheLocator else each
        for each in caching.CompileResultCacheImpl._locator_classes
    ]


class _Files(caching.IndexDataCacheFile):  # type: ignore[misc]
    """Cache files with a checksum, so that damaged machine code is never run."""

    def _dump(self, obj: Any) -> bytes:
        data: bytes = super()._dump(obj)
        return hashlib.sha256(data).digest() + data

    def _load_index(self) -> Any:
        try:
            with open(self._index_path, "rb") as file:
                version = pickle.load(file)
                data = file.read()
        except FileNotFoundError:
            return {}
        if version != self._version:
            return {}
        stamp, overloads = self._checked(data)
        return overloads if stamp == self._source_stamp else {}

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            return self._checked(file.read())

    @staticmethod
    def _checked(data: bytes) -> Any:
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            raise ValueError("damaged")
        return pickle.loads(data[_DIGEST:])


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache, with every failure reported instead of raised."""

    _impl_class = _Impl
    _cache_file: Any

    def stamp(self, text: str) -> None:
        """Use cached code only if it was stored with the same stamp."""
        old = self._cache_file
        self._cache_file = _Files(old._cache_path, f"{self._impl.filename_base}.checked", (old._source_stamp, text))

    def holds(self) -> bool:
        try:
            return bool(self._cache_file._load_index())
        except Exception:
            return False

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # whatever a damaged file makes of the reader
            if isinstance(error, OSError):
                return self._failed(error)
            _say(f"{self._cache_file._index_path}: is damaged: the function is compiled again")
        try:
            self.flush()
        except OSError as error:
            self._failed(error)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        cause = getattr(error, "strerror", None) or error
        _say(f"{self.cache_path}: compiled code is not kept there ({cause}): it is compiled at each start; {_REMEDY}")
        self.disable()
