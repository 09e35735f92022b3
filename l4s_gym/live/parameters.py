"""`L4S-DualPI2-Live-v0` with the form `parameters`: an agent sets parameters of the native law of a real queue."""

from __future__ import annotations

import time
from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from l4s_gym import rewards
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import TIMEOUT_S, BridgeError, Client
from l4s_gym.bridge.wire import Law
from l4s_gym.envs.tune import factors
from l4s_gym.errors import L4SError, unknown
from l4s_gym.live.environment import NOBODY, DualPI2LiveEnv, LiveEnv, check_positive
from l4s_gym.sim.intervals import INTERVAL, high

Floats = npt.NDArray[np.float32]

INTERVAL_MS: Final = 100.0
LIVES_INTERVALS: Final = 3
"""For so many control intervals an action holds unless told otherwise."""
_REFERENCE_NS: Final = (15e6, 1e6)
"""Unit of delays of C and L."""


def factors_of(action: npt.NDArray[np.floating], bounds: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The factors that an action (5,) from -1 to 1 means, by the names of `wire.LAW_PARAMETERS`."""
    return dict(zip(bounds, factors(action, *zip(*bounds.values(), strict=True)).tolist(), strict=True))


def _grown(old: Law, new: Law, name: str, cls: int) -> int:
    """Growth of a count of packets."""
    grown: int = getattr(new, name)[cls] - getattr(old, name)[cls]
    return grown % (1 << 32)


def observation_of(old: Law, new: Law) -> Floats:
    """What was seen between two looks at a queue whose rate is known, (12,): as `sim.intervals` does."""
    capacity = max(new.rate_bps * (new.clock_us - old.clock_us) / 8e6, 1.0)
    seen = np.zeros(len(INTERVAL))
    for cls, reference_ns in enumerate(_REFERENCE_NS):
        packets = max(_grown(old, new, "offered", cls), 1)
        left = max(_grown(old, new, "left", cls), 1)
        seen[cls::2][:5] = (
            (new.left_ns[cls] - old.left_ns[cls]) / left / reference_ns,
            new.queued_bytes[cls] / (new.rate_bps * reference_ns / 8e9),
            (new.offered_bytes[cls] - old.offered_bytes[cls]) / capacity,
            _grown(old, new, "marks", cls) / packets,
            _grown(old, new, "drops", cls) / packets,
        )
    served = int(new.entry["law"]["served_bytes"]) - int(old.entry["law"]["served_bytes"])
    seen[10:] = served / capacity, new.prob
    return np.clip(seen, 0.0, high(INTERVAL)).astype(np.float32)


class DualPI2LiveLawEnv(LiveEnv[Floats]):
    """The form `parameters` of `L4S-DualPI2-Live-v0`, whose page describes it.

    Args:
        socket: Path of the Unix socket; None: `$L4S_GYM_SOCKET`, or `/run/l4s-gym/live.sock`.
        control_interval_ms: Length of a step.
        reward: `balance`, `power`, or weights of `used`, `delay_c` and `delay_l`.
        horizon_s: Length of an episode.
        lifetime_ms: An action holds for so long without another one; None: three intervals.
        timeout_s: Longest wait for the server.
    """

    def __init__(
        self,
        socket: str | None = None,
        control_interval_ms: float = INTERVAL_MS,
        reward: rewards.Reward = rewards.BALANCE,
        horizon_s: float = 60.0,
        lifetime_ms: float | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        rewards.check_timed(reward)
        reward = rewards.check_live(reward)
        lifetime_ms = LIVES_INTERVALS * control_interval_ms if lifetime_ms is None else lifetime_ms
        check_positive(
            control_interval_ms=control_interval_ms, horizon_s=horizon_s, lifetime_ms=lifetime_ms, timeout_s=timeout_s
        )
        self._open(Client(socket, timeout_s=timeout_s), reward, horizon_s)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (len(wire.LAW_PARAMETERS),))
        self.observation_space = gym.spaces.Box(np.zeros(len(INTERVAL), np.float32), high(INTERVAL))
        self._interval_s, self._lifetime_ms = control_interval_ms / 1e3, max(round(lifetime_ms), 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Take control of the queue, and wait for one interval of the operator's law.

        Raises:
            BridgeError: There is no server, somebody else controls, or the queue takes no parameters.
        """
        super().reset(seed=seed)
        self.close()  # HELLO of a new connection has the bounds of now
        self._take(None)
        lives_ms = min(self._lifetime_ms, self._client.hello.law_lifetime_ms)
        if lives_ms <= 1e3 * self._interval_s:
            self._leave()
            raise L4SError(
                f"an action holds for {lives_ms} ms, no longer than control_interval_ms={1e3 * self._interval_s:g}: "
                "give a shorter interval, or a longer lifetime_ms (the operator's: law_lifetime_ms of the queue)"
            )
        self._began = old = self._client.law()
        self._due_s = time.monotonic()
        self._last = self._wait()
        self._seen = observation_of(old, self._last)
        self._started = True
        return self._seen.copy(), self._info()

    def _wait(self) -> Law:
        """Wait until the interval is over; one that begins late makes the next ones late."""
        self._due_s = max(self._due_s + self._interval_s, time.monotonic())
        time.sleep(max(self._due_s - time.monotonic(), 0.0))
        self._client.entries()
        return self._client.law()

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Set parameters of the law, and wait until the interval is over."""
        wanted = np.asarray(action, np.float64)
        if wanted.shape != self.action_space.shape or not (abs(wanted) <= 1.0).all():
            raise L4SError(f"action {action!r}: give five numbers from -1 to 1")
        self._check_active()
        old, reason = self._last, None
        try:
            self._client.set_law(**factors_of(wanted, self._client.hello.law), lifetime_ms=self._lifetime_ms)
            new = self._wait()
            if self._client.hello.session != self._session:
                raise BridgeError("", wire.E_NOT_CONTROLLER)
            self._seen = observation_of(old, new)
            if new.clock_us - self._began.clock_us >= self._horizon_us:
                reason = "horizon"
        except BridgeError as error:
            new, reason = old, NOBODY if error.code == wire.E_NOT_CONTROLLER else str(error)
        self._last = new
        info = self._info()
        if reason is not None:
            info["reason"], info["statistics"] = reason, self._leave()
            if info["statistics"] is not None:
                counted = ("sets", "expired", "refused")
                info["statistics"]["law"] = {n: getattr(new, n) - getattr(self._began, n) for n in counted}
        reward = self._meter.integral(old.entry["law"], new.entry["law"])
        return self._seen.copy(), reward, False, reason is not None, info

    def _info(self) -> dict[str, Any]:
        return {"factors": dict(self._last.factors), "lost": self._client.lost - self._lost}


FORMS: Final[dict[str, type[LiveEnv[Any]]]] = {"packet": DualPI2LiveEnv, "parameters": DualPI2LiveLawEnv}


def live_env(form: str = "packet", **arguments: Any) -> LiveEnv[Any]:
    """Make the environment of a form."""
    if form not in FORMS:
        raise unknown("form", form, list(FORMS))
    return FORMS[form](**arguments)


live_env.__doc__ = DualPI2LiveEnv.__doc__
