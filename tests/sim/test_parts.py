"""Parts of compiled functions that are linked once."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from l4s_gym.sim.jit import address_of, entry, jit, public, short_entry


@jit
def _twice(x: int) -> int:
    return 2 * x


@jit
def _four_times(x: int) -> int:
    return _twice(_twice(x))


@public
def _eight_times(x: int) -> int:
    return _four_times(x) + _four_times(x)


@entry
def _all(x: int) -> int:
    return _twice(x) + _four_times(x) + _eight_times(x)


@short_entry
def _fourteen(x: int) -> int:
    return _all(x)


def test_parts_that_call_parts_run_in_every_kind_of_entry_point() -> None:
    assert _eight_times(3) == 24
    assert _all(3) == 42
    assert _fourteen(3) == 42


def test_a_users_own_functions_call_parts() -> None:
    @numba.njit  # type: ignore[untyped-decorator]
    def between(x: int) -> int:
        return _four_times(x) + 1

    @numba.njit  # type: ignore[untyped-decorator]
    def own(x: int) -> int:
        return int(between(x) + _twice(x) + _all(x))

    assert own(3) == 13 + 6 + 42
    assert numba.cfunc("int64(int64)")(own.py_func).ctypes(3) == 61


def test_integers_of_all_widths_share_one_compile() -> None:
    @jit
    def negated(x: int) -> int:
        return -x

    @numba.njit  # type: ignore[untyped-decorator]
    def of_all(a: int, b: int) -> tuple[int, int, int]:
        return negated(a), negated(b), negated(7)

    assert of_all(np.int8(-128), np.uint32(4_000_000_000)) == (128, -4_000_000_000, -7)
    assert len(negated.overloads) == 1  # type: ignore[attr-defined]


def test_python_cannot_call_a_part() -> None:
    assert _four_times.overloads or _all(1)  # type: ignore[attr-defined]
    with pytest.raises((TypeError, IndexError)):
        _four_times(3)


def test_machine_code_has_an_address() -> None:
    assert address_of(_fourteen, numba.int64) == address_of(_fourteen, numba.int64) != 0
