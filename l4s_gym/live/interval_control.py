"""An agent of an interval form controls a live queue: each control interval it sets parameters, or probabilities."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym import rewards
from l4s_gym.agents import Agent
from l4s_gym.agents.protocol import control_interval_ms as interval_of
from l4s_gym.agents.protocol import form_of
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.bridge.wire import Law
from l4s_gym.errors import L4SError
from l4s_gym.forms import FORMS
from l4s_gym.live.control import Controller
from l4s_gym.live.parameters import SETTERS, Observer, check_law, check_lifetime, lifetime_of


class IntervalController(Controller):
    """Lets an agent of an interval form control a live queue, which never waits for it.

    Args:
        client: Not connected yet: `run` does that.
        agent: Of the form `parameters` or `probability`.
        control_interval_ms: How often it acts; None: as it was trained.
        lifetime_ms: For so long an action holds without another one; None: three intervals.
        reward: What the agent is told; None: nothing, zeros.
        **options: `patience_s`, `seed`, `clock`, as of `Controller`.
    """

    def __init__(
        self,
        client: Client,
        agent: Agent,
        *,
        control_interval_ms: float | None = None,
        lifetime_ms: float | None = None,
        reward: rewards.Reward | None = None,
        **options: Any,
    ) -> None:
        if reward is not None:
            rewards.check_timed(reward)
        interval_ms = interval_of(agent) if control_interval_ms is None else control_interval_ms
        if not 0.0 < interval_ms < 1e9:
            raise L4SError(f"control_interval_ms={interval_ms!r}: give a positive number of milliseconds")
        self._lifetime_ms = lifetime_of(lifetime_ms, interval_ms)
        super().__init__(client, agent, lifetime_ms=self._lifetime_ms, reward=reward, **options)
        self._form = FORMS[form_of(agent)]
        self._set, self._interval_s = SETTERS[self._form.name], 1e-3 * interval_ms
        self._began: Law | None = None
        self.done.form, self.done.control_interval_ms = self._form.name, interval_ms

    def _attach(self) -> None:
        super()._attach()
        hello = self._client.hello
        check_law(hello, self._agent)
        check_lifetime(hello, self._lifetime_ms, 1e3 * self._interval_s)
        if not hello.rate_bps:
            raise L4SError(
                f"{self._client.address}: the server does not know the rate of the link, which observations need: "
                "configure it there"
            )
        self._observe, self._session = Observer(self._form.features), hello.session
        self._began = self._old = self._client.law()
        self._due_s = time.monotonic() + self._interval_s

    def _step(self, timeout_s: float) -> None:
        self._news(max(min(self._due_s - time.monotonic(), timeout_s), 0.0))
        if time.monotonic() < self._due_s:
            return
        try:
            new = self._client.law()
            if self._client.hello.session == self._session:
                self._act(new)
        except BridgeError as error:
            if error.code != wire.E_NOT_CONTROLLER:
                raise
            self._attach()

    def _act(self, new: Law) -> None:
        """Observe the interval that is over, and set what the agent wants."""
        self.done.asks += 1
        if self._meter is not None:
            self._earned[0] = self._meter.integral(self._old.entry["law"], new.entry["law"])
        obs, self._old = self._observe(self._old, new)[None], new
        self._set(self._client, self._checked(self._agent.act(obs, self._earned)), self._lifetime_ms)
        self.done.answered += 1
        self._due_s = max(self._due_s + self._interval_s, time.monotonic())

    def _checked(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The one action (K,) among an agent's."""
        wanted, shape = np.asarray(actions, np.float64), (1, len(self._form.low))
        if wanted.shape != shape or not (abs(wanted) <= 1.0).all():
            raise L4SError(
                f"agent {self._agent.name}: acts by {actions!r}; the form {self._form.name!r} takes an array {shape} "
                "of numbers from -1 to 1"
            )
        chosen: npt.NDArray[np.float64] = wanted[0]
        return chosen

    def _end(self) -> None:
        try:
            if self._client.connected and self._began is not None:
                now = self._client.law()
                self.done.law = {n: getattr(now, n) - getattr(self._began, n) for n in ("sets", "expired", "refused")}
        except BridgeError:
            pass  # gone
        finally:
            super()._end()
