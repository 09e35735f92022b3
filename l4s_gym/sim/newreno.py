"""NewReno (RFC 5681, RFC 6582): all functions of a `CongestionControl` are the defaults."""

from __future__ import annotations

from typing import Final

from l4s_gym.sim.control import CongestionControl

CONTROL: Final = CongestionControl("newreno", holds=True, freebsd=True)
