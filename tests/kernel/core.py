"""The C core through ctypes: its parameters, and runs behind a link as `l4s_gym.sim.drive` makes them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.schema import RECORD
from l4s_gym.sim.drive import ARRIVAL

TESTBED, RFC9332, LINUX = range(3)
AQMS: Final = ("dualpi2_freebsd", "dualpi2_rfc9332", "dualpi2_linux")
"""Of each variant."""
UNSHIELDED: Final = {
    "shield_c_us": 0, "shield_l_us": 0, "shield_drops": 65536, "shield_hits": 0
}  # fmt: skip


FAULTS: Final = ("", "no model", "version", "size", "range")
"""`enum l4s_fault`."""


class Core:
    """`libl4s_core.so`."""

    def __init__(self, path: Path) -> None:
        self._lib = lib = ctypes.CDLL(str(path))
        lib.harness_parameter.restype = ctypes.c_char_p
        lib.harness_parameter.argtypes = [ctypes.c_int, *[ctypes.POINTER(ctypes.c_uint64)] * 2]
        lib.harness_drive.restype = ctypes.c_int64
        lib.harness_core_size.restype = ctypes.c_uint64
        pointer = ctypes.c_void_p
        lib.harness_drive.argtypes = [
            pointer, ctypes.c_uint64, ctypes.c_double, pointer, ctypes.c_int64, pointer, pointer, ctypes.c_uint64,
            pointer,
        ]  # fmt: skip
        lib.harness_outputs.argtypes = [pointer, ctypes.c_uint64, pointer, ctypes.c_int64, pointer]
        lib.l4s_params_default.argtypes = [pointer, ctypes.c_uint64]
        self.ranges: dict[str, tuple[int, int]] = {}
        low, high = ctypes.c_uint64(), ctypes.c_uint64()
        while name := lib.harness_parameter(len(self.ranges), ctypes.byref(low), ctypes.byref(high)):
            self.ranges[name.decode()] = low.value, high.value

    def params(self, variant: int = 0, /, **changes: int) -> npt.NDArray[np.uint64]:
        """`struct l4s_params`: the defaults of a variant with changes."""
        p = np.zeros(len(self.ranges), np.uint64)
        self._lib.l4s_params_default(p.ctypes.data, variant)
        for name, value in changes.items():
            p[list(self.ranges).index(name)] = value
        return p

    def check(self, p: npt.NDArray[np.uint64]) -> int:
        """Index of the first parameter out of range, or -1."""
        return int(self._lib.l4s_params_check(ctypes.c_void_p(p.ctypes.data)))

    def drive(
        self,
        p: npt.NDArray[np.uint64],
        arrivals: npt.NDArray[Any],
        *,
        rate_mbps: float,
        seed: int = 0,
        model: bytes | None = None,
        prob: Sequence[int] | None = None,
    ) -> npt.NDArray[np.void]:
        """Rows (T,) `schema.RECORD` of packets (T,) `ARRIVAL`; `prob`: set probabilities of C and L, 2^-31."""
        arrivals = np.ascontiguousarray(arrivals, ARRIVAL)
        rows = np.zeros(len(arrivals), RECORD)
        done = self._lib.harness_drive(
            p.ctypes.data, seed, rate_mbps * 1e6, arrivals.ctypes.data, len(arrivals), rows.ctypes.data,
            model, len(model or b""), None if prob is None else (ctypes.c_uint32 * 2)(*prob),
        )  # fmt: skip
        assert done == len(arrivals), "parameters out of range, or a wrong model"
        return rows

    def outputs(self, model: bytes, raw: npt.NDArray[np.int64]) -> tuple[str, npt.NDArray[np.uint32]]:
        """What is wrong with a model (one of `FAULTS`), and what it tells (T, 5) for raw features (T, F)."""
        out = np.zeros((len(raw), 5), np.uint32)
        aligned = ctypes.create_string_buffer(model, len(model))
        rows = np.ascontiguousarray(raw, np.uint64)
        fault = self._lib.harness_outputs(aligned, len(model), rows.ctypes.data, len(rows), out.ctypes.data)
        return FAULTS[fault], out
