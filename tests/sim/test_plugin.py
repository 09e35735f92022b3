"""A user's own functions that compiled code calls by their address."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from l4s_gym.errors import L4SError
from l4s_gym.sim import layout, plugin
from l4s_gym.sim.jit import public
from l4s_gym.sim.memory import env_record, flow_at


@public
def enter(address: int, at: int, window: int) -> tuple[int, float]:
    env = env_record(address)
    flow = flow_at(env, 0)
    plugin.call_void(at, (env, flow, window))
    return flow.pipe, flow.cwnd


def test_records_are_opened_and_written() -> None:
    def own(env: Any, flow: Any, window: int) -> None:
        flow.cwnd = window + 0.5
        flow.pipe = env.now_ns

    env, flow = np.zeros(1, layout.ENV), np.zeros(1, layout.FLOW)
    env["now_ns"], env["flow_at"] = 7, flow.ctypes.data
    at = plugin.callback(own, "void(env, flow, int64)")
    assert enter(env.ctypes.data, at, 3) == (7, 3.5)
    assert flow["cwnd"][0] == 3.5
    assert plugin.callback(own, "void(env, flow, int64)") == at


@public
def whole(at: int, number: int, flag: bool) -> Any:
    return plugin.call_int(at, (number, flag))


@public
def real(at: int, number: int, factor: float) -> Any:
    return plugin.call_float(at, (np.int32(number), np.float32(factor)))


def test_numbers_go_and_come_with_64_bits() -> None:
    @numba.njit  # type: ignore[untyped-decorator]
    def difference(number: int, flag: int) -> int:
        return (1 << 40) + number - flag

    assert whole(plugin.callback(difference, "int64(int64, int64)"), 5, True) == (1 << 40) + 4
    assert real(plugin.callback(lambda number, factor: number * factor, "float64(int64, float64)"), -3, 0.5) == -1.5


def plain(x: int) -> int:
    return x


def misspelt(flow: Any) -> None:
    flow.cwdn = 1.0


def calls_plain(flow: Any) -> None:
    flow.cwnd = plain(1)


def two(flow: Any, more: int) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (misspelt, "misspelt: cannot be compiled as void.flow.*\n.*cwdn"),
        (calls_plain, "calls_plain.*\n.*'plain'"),
        (two, "two: cannot be compiled.*\n.*1 argument"),
        (3, "3: is no function"),
    ],
)
def test_errors_name_the_function_and_numbas_reason(function: Any, message: str) -> None:
    with pytest.raises(L4SError, match=message) as caught:
        plugin.callback(function, "void(flow)")
    assert len(str(caught.value).splitlines()) <= 8
