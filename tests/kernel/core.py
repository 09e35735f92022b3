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


class Link:
    """A core that the test drives by hand: one packet at a time, no link."""

    def __init__(self, core: Core, **values: int) -> None:
        self.lib, self.now = core._lib, 1_000_000_000
        self.core = ctypes.create_string_buffer(int(self.lib.harness_core_size()))
        self.packets: list[Any] = []
        self.lib.l4s_set_law.restype = self.lib.l4s_set_prob.restype = ctypes.c_bool
        variant = values.get("variant", TESTBED)
        self.lib.l4s_init(self.core, core.params(variant, **values).ctypes.data_as(ctypes.c_void_p),
                          ctypes.c_uint64(1), ctypes.c_uint64(self.now))  # fmt: skip

    def offer(self, ecn: int = 2, length: int = 1500, after_ns: int = 1_000_000) -> Any:
        self.now += after_ns
        packet = ctypes.create_string_buffer(256)
        ctypes.c_uint32.from_buffer(packet, 16).value = length
        ctypes.c_uint8.from_buffer(packet, 24).value = ecn
        self.lib.l4s_update(self.core, ctypes.c_uint64(self.now))
        self.lib.l4s_offer(self.core, packet, ctypes.c_uint64(self.now))
        self.packets.append(packet)
        return self.row()

    def take(self) -> int:
        action = ctypes.c_int()
        self.lib.l4s_take(self.core, ctypes.c_uint64(self.now), ctypes.byref(action))
        return action.value

    def row(self, packet: int = -1) -> Any:
        """Row of a packet as it is now; -1: of the last one."""
        return np.frombuffer(self.packets[packet].raw, RECORD, 1, 29)[0]

    def set_model(self, model: bytes | None) -> None:
        """Load a checked model; None: none."""
        self.model = None if model is None else ctypes.create_string_buffer(model, len(model))
        self.lib.l4s_set_model(self.core, self.model, ctypes.c_uint64(self.now))

    def set_rate(self, rate_bps: int) -> None:
        self.lib.harness_rate(self.core, ctypes.c_uint64(rate_bps))

    def attach(self, interval: int = 1) -> None:
        self.lib.l4s_attach(self.core, ctypes.c_uint64(interval))

    def detach(self) -> None:
        self.lib.l4s_detach(self.core)

    def set_law(self, factors: Sequence[int], lifetime_ms: int = 100) -> bool:
        done: bool = self.lib.l4s_set_law(
            self.core, (ctypes.c_uint32 * 5)(*factors), ctypes.c_uint32(lifetime_ms), ctypes.c_uint64(self.now)
        )
        return done

    def set_prob(self, p_c: float, p_l: float, lifetime_ms: int = 100) -> bool:
        prob = (ctypes.c_uint32 * 2)(*(round(p * (1 << 31)) for p in (p_c, p_l)))
        done: bool = self.lib.l4s_set_prob(self.core, prob, ctypes.c_uint32(lifetime_ms), ctypes.c_uint64(self.now))
        return done

    def configure(self, p: npt.NDArray[np.uint64]) -> None:
        self.lib.l4s_configure(self.core, p.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(self.now))

    def params(self, core: Core) -> dict[str, int]:
        """Those in force: what `struct l4s_core` begins with."""
        return dict(zip(core.ranges, np.frombuffer(self.core.raw, np.uint64, len(core.ranges)).tolist(), strict=True))

    def decide(
        self, sequence: int, action: int, *, queue: int = 0, lives_ns: int = 10_000_000, given_ns: int = 0
    ) -> int:
        times = [("expires_ns", "u8"), ("given_ns", "u8")]
        decision = np.zeros(1, [("sequence", "u8"), *times, ("queue", "u1"), ("action", "u1"), ("", "V6")])
        decision[0] = (sequence, self.now + lives_ns, self.now + given_ns, queue, action, b"")
        return int(self.lib.l4s_decide(self.core, decision.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(self.now)))
