"""`L4S-DualPI2-Live-v0` in control intervals: an agent sets parameters of a real queue's law, or probabilities."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from l4s_gym import forms, rewards
from l4s_gym.agents import Agent
from l4s_gym.agents.protocol import options_of
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import TIMEOUT_S, BridgeError, Client
from l4s_gym.bridge.wire import Hello, Law
from l4s_gym.envs.prob import probabilities
from l4s_gym.envs.tune import factors
from l4s_gym.errors import L4SError, unknown
from l4s_gym.live.environment import NOBODY, DualPI2LiveEnv, LiveEnv, check_positive
from l4s_gym.live.router import VARIANTS, parameters
from l4s_gym.sim.intervals import AVERAGES_S, INTERVAL, Feature, high
from l4s_gym.sim.layout import LEAST_MBPS
from l4s_gym.sim.scenario import from_dict
from l4s_gym.tables import option_paths

Floats = npt.NDArray[np.float32]

INTERVAL_MS: Final = 100.0
LIVES_INTERVALS: Final = 3
"""For so many control intervals an action holds unless told otherwise."""
_REFERENCE_NS: Final = (15e6, 1e6)
"""Unit of delays of C and L."""


def factors_of(action: npt.NDArray[np.floating], bounds: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The factors that an action (5,) from -1 to 1 means, by the names of `wire.LAW_PARAMETERS`."""
    return dict(zip(bounds, factors(action, *zip(*bounds.values(), strict=True)).tolist(), strict=True))


def set_parameters(client: Client, action: npt.NDArray[np.floating], lifetime_ms: int) -> Law:
    """Set what an action (5,) means."""
    return client.set_law(**factors_of(action, client.hello.law), lifetime_ms=lifetime_ms)


def set_probabilities(client: Client, action: npt.NDArray[np.floating], lifetime_ms: int) -> Law:
    """Set what an action (2,) means, or the operator's bounds where it means more."""
    p_c, p_l = np.minimum(probabilities(np.asarray(action, np.float64)), client.hello.prob_high).tolist()
    return client.set_probabilities(p_c, p_l, lifetime_ms=lifetime_ms)


SETTERS: Final = {"parameters": set_parameters, "probability": set_probabilities}
"""How an action of each interval form is set."""


def _grown(old: Law, new: Law, name: str, cls: int) -> int:
    """Growth of a count of packets."""
    grown: int = getattr(new, name)[cls] - getattr(old, name)[cls]
    return grown % (1 << 32)


def lifetime_of(lifetime_ms: float | None, interval_ms: float) -> int:
    """Return for how long an action holds, ms; None: `LIVES_INTERVALS`."""
    if lifetime_ms is None:
        lifetime_ms = LIVES_INTERVALS * interval_ms
    check_positive(lifetime_ms=lifetime_ms)
    return max(round(lifetime_ms), 1)


def check_lifetime(hello: Hello, lifetime_ms: float, interval_ms: float) -> None:
    """Check that what is set holds until it is set again.

    Raises:
        L4SError: Its lifetime, or the operator's longest one, ends before.
    """
    lives_ms = min(lifetime_ms, hello.law_lifetime_ms)
    if lives_ms <= interval_ms:
        raise L4SError(
            f"an action holds for {lives_ms:g} ms, no longer than control_interval_ms={interval_ms:g}: "
            "give a shorter interval, or a longer lifetime_ms (the operator's: law_lifetime_ms of the queue)"
        )


def check_law(hello: Hello, agent: Agent) -> None:
    """Check that a queue has the law over which an agent was trained, if that had options (`options_of`).

    Raises:
        L4SError: It has another law, or other parameters, or does not tell them.
    """
    options = options_of(agent)
    if not options:
        return
    scenario = from_dict({"name": agent.name, "sources": [{"kind": "cubic"}]}).replace(**option_paths(options))
    laws = {wire.VARIANTS[VARIANTS[aqm]]: parameters(scenario, aqm) for aqm in options if aqm in VARIANTS}
    wanted = laws.get(hello.variant, {})
    if not wanted:
        wrong = [f"it is {hello.variant}, not {' or '.join(options)}"]
    elif not hello.law_values:
        wrong = ["it is too old to tell its parameters"]
    else:
        most = np.iinfo(np.uint32).max
        told = hello.law_values.items()
        wrong = [f"{name} is {value}, not {wanted[name]}" for name, value in told if value != min(wanted[name], most)]
    if wrong:
        raise L4SError(
            f"agent {agent.name}: was trained over another law than this queue's: {'; '.join(wrong)}. Start the queue "
            "with the agent's: `l4s-gym live up --agent AGENT`, or set these parameters in the router's configuration, "
            "or by the FreeBSD module's sysctls"
        )


class Observer:
    """Observes a queue whose rate is known in intervals, as `sim.intervals` does.

    Args:
        features: What is observed (F): `INTERVAL`, or all `FEATURES`.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = tuple(features)
        self._averages = {each.name: 0.0 for each in features if each.name.endswith("ms")}

    def __call__(self, old: Law, new: Law) -> Floats:
        """Return what was seen between two looks, (F,)."""
        values = dict(zip((each.name for each in INTERVAL), _interval(old, new), strict=True))
        values |= {f"flows_{c}": np.log1p(flows) for c, flows in zip("cl", new.flows, strict=True)}
        values["rate"] = np.log(max(new.rate_bps, 1) / (1e6 * LEAST_MBPS))
        for tau_s in AVERAGES_S:
            weight, end = -np.expm1(-1e-6 * (new.clock_us - old.clock_us) / tau_s), f"_{1e3 * tau_s:.0f}ms"
            for name in self._averages:
                if name.endswith(end):
                    self._averages[name] += weight * (values[name.removesuffix(end)] - self._averages[name])
        values |= self._averages
        seen = [values[each.name] for each in self._features]
        clipped: npt.NDArray[np.float32] = np.clip(seen, 0.0, high(self._features)).astype(np.float32)
        return clipped


def _interval(old: Law, new: Law) -> npt.NDArray[np.float64]:
    """The features `INTERVAL` (12,) between two looks."""
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
    return np.clip(seen, 0.0, high(INTERVAL))


class LiveIntervalEnv(LiveEnv[Floats]):
    """What `parameters` and `probability` of `L4S-DualPI2-Live-v0` share; its page describes them.

    Args:
        socket: Path of the Unix socket; None: `$L4S_GYM_SOCKET`, or `/run/l4s-gym/live.sock`.
        control_interval_ms: Length of a step.
        reward: `balance`, `power`, or weights of `used`, `delay_c` and `delay_l`.
        horizon_s: Length of an episode.
        lifetime_ms: An action holds for so long without another one; None: three intervals.
        timeout_s: Longest wait for the server.
    """

    form: ClassVar[forms.Form]
    """Of an action."""

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
        check_positive(control_interval_ms=control_interval_ms, horizon_s=horizon_s, timeout_s=timeout_s)
        self._lifetime_ms = lifetime_of(lifetime_ms, control_interval_ms)
        self._open(Client(socket, timeout_s=timeout_s), reward, horizon_s)
        self.observation_space, self.action_space = self.form.spaces
        self._interval_s = control_interval_ms / 1e3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Take control of the queue, and wait for one interval of the operator's law.

        Raises:
            BridgeError: There is no server, somebody else controls, or the queue takes nothing of this form.
        """
        super().reset(seed=seed)
        self.close()  # HELLO of a new connection has the bounds of now
        self._take(None)
        try:
            check_lifetime(self._client.hello, self._lifetime_ms, 1e3 * self._interval_s)
        except L4SError:
            self._leave()
            raise
        self._observe = Observer(self.form.features)
        self._began = old = self._client.law()
        self._due_s = time.monotonic()
        self._last = self._wait()
        self._seen = self._observe(old, self._last)
        self._started = True
        return self._seen.copy(), self._info()

    def _wait(self) -> Law:
        """Wait until the interval is over; one that begins late makes the next ones late."""
        self._due_s = max(self._due_s + self._interval_s, time.monotonic())
        time.sleep(max(self._due_s - time.monotonic(), 0.0))
        self._client.entries()
        return self._client.law()

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Set what the action means, and wait until the interval is over."""
        wanted = np.asarray(action, np.float64)
        if wanted.shape != self.action_space.shape or not (abs(wanted) <= 1.0).all():
            raise L4SError(f"action {action!r}: give {len(self.form.low)} numbers from -1 to 1")
        self._check_active()
        old, reason = self._last, None
        try:
            self._set(self._client, wanted, self._lifetime_ms)
            new = self._wait()
            if self._client.hello.session != self._session:
                raise BridgeError("", wire.E_NOT_CONTROLLER)
            self._seen = self._observe(old, new)
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

    @staticmethod
    @abstractmethod
    def _set(client: Client, action: npt.NDArray[np.floating], lifetime_ms: int) -> Law:
        """Set what an action means."""

    def _info(self) -> dict[str, Any]:
        return {**self._in_force(), "lost": self._client.lost - self._lost}

    @abstractmethod
    def _in_force(self) -> dict[str, Any]:
        """What is in force, for `info`."""


class DualPI2LiveLawEnv(LiveIntervalEnv):
    """The form `parameters`."""

    form = forms.FORMS["parameters"]
    _set = staticmethod(set_parameters)

    def _in_force(self) -> dict[str, Any]:
        return {"factors": dict(self._last.factors)}


class DualPI2LiveProbEnv(LiveIntervalEnv):
    """The form `probability`."""

    form = forms.FORMS["probability"]
    _set = staticmethod(set_probabilities)

    def _in_force(self) -> dict[str, Any]:
        return {"probabilities": self._last.set_prob}


FORMS: Final[dict[str, type[LiveEnv[Any]]]] = {
    "packet": DualPI2LiveEnv,
    "probability": DualPI2LiveProbEnv,
    "parameters": DualPI2LiveLawEnv,
}


def live_env(form: str = "packet", **arguments: Any) -> LiveEnv[Any]:
    """Make the environment of a form."""
    if form not in FORMS:
        raise unknown("form", form, list(FORMS))
    return FORMS[form](**arguments)


live_env.__doc__ = DualPI2LiveEnv.__doc__
