"""`L4S-DualPI2-Live-v0`: the environment on a real queue."""

from __future__ import annotations

import time
from typing import Any, Final, NoReturn, SupportsFloat, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from l4s_gym import rewards
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import TIMEOUT_S, BridgeError, Client
from l4s_gym.envs.dualpi2 import Observation, check_interval, observation_space
from l4s_gym.errors import L4SError
from l4s_gym.live.control import LIFETIME_MS, Ask, Asks, RewardMeter, asks_of, shares
from l4s_gym.schema import OBSERVED

NOBODY: Final = "another controller came, or the queue was started anew"
ActType = TypeVar("ActType")


def check_positive(**arguments: float) -> None:
    """Refuse arguments that are no positive numbers."""
    for name, value in arguments.items():
        if not 0.0 < value < 1e9:
            raise L4SError(f"{name}={value!r}: give a positive number")


class LiveEnv(gym.Env[Observation, ActType]):
    """What the action forms of a live queue share: the connection, and control of the queue for an episode."""

    metadata: dict[str, Any] = {"render_modes": []}

    def _open(self, client: Client, reward: str, horizon_s: float) -> None:
        """Set the environment up, called by the subclass with a client that is not connected yet."""
        self.render_mode = None
        self._client, self._reward = client, reward
        self._horizon_us = round(horizon_s * 1e6)
        self._started = self._active = False  # active: from reset to the end of the episode

    def _take(self, decision_interval: int | None) -> None:
        """Take control of the queue; None: without being asked about packets."""
        if self._active:
            self._leave()
        self._started = False
        self._reconnect()
        self._before = self._client.attach(decision_interval)
        self._active = True
        try:
            self._meter = RewardMeter(self._reward, self._client.hello.rate_bps)
        except L4SError:
            self._leave()
            raise
        self._session, self._lost = self._client.hello.session, self._client.lost

    def _reconnect(self) -> None:
        """Connect; if connected already, drop the messages that came since the last episode."""
        if self._client.connected:
            try:
                self._client.entries()
            except BridgeError:
                self._client.close()
        if not self._client.connected:
            self._client.connect()

    def _check_active(self) -> None:
        if not self._active:
            what = "the episode has ended" if self._started else "the environment has not been started"
            raise gym.error.ResetNeeded(f"step: {what}; call reset() first")

    def _leave(self) -> dict[str, Any] | None:
        """Give the control back; return what happened since the reset, or None if the server cannot tell."""
        self._active = False
        try:
            return shares(self._before, self._client.detach()).as_dict()
        except BridgeError:
            self._client.close()
            return None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse to be copied and pickled."""
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: it controls a real queue, whose state is not here, and "
            "it has one controller at a time; close this one and make another with gym.make"
        )

    def close(self) -> None:
        """Give the control back and close the connection."""
        if self._active and self._client.connected:
            self._leave()
        self._started = self._active = False
        self._client.close()


class DualPI2LiveEnv(LiveEnv[int]):
    """## Description

    `L4S-DualPI2-v0` on a real queue: the FreeBSD module through the daemon `l4s-bridged`, or the Linux router
    (`sudo l4s-gym live up`). A step answers a packet that the queue asked about, and waits for the next.

    The queue never waits for the agent. The observed packet has already been decided; the action is used for the
    *next* packet of the same queue, if it arrives in time (within `lifetime_ms` of the question). Otherwise the
    native law decides. A shield in the queue limits the delays, and how often the agent drops and marks (by
    default, as often as the native law would), and takes the control away if a limit is exceeded.
    `info["statistics"]` tells at the end which share of the packets the agent decided.

    ## Action space, observation space

    As `L4S-DualPI2-v0`: `Discrete(3)` (0 enqueue, 1 drop, 2 mark), and `Box(8,) float32` from the state before
    the decision. With `info_record=True`, `info["record"]` has the raw integers by name.

    ## Rewards

    As `L4S-DualPI2-v0`: `balance`, `power`, `l4s_llm`, computed from the counters of the queue. The first two need
    the rate of the link, which the server reports.

    ## Starting state

    The current state of the queue. `reset` takes control and waits for the first packet; `seed` has no effect
    (the environment is registered as nondeterministic).

    ## Episode end

    Never `terminated`. `truncated` after `horizon_s` on the queue's clock, or if no packet came for `timeout_s`, the
    connection was lost, or the queue was restarted: `info["reason"]` tells which. The queue is then detached
    (the native law decides) until the next `reset`. `info["statistics"]` has packets, shares by who decided (kernel,
    agent, fallback: asked about and not answered in time), refused decisions by reason, trips of the shield,
    latency from ask to answer in us (p50, p99).

    ## Info of a step

    | key | meaning |
    |---|---|
    | `skipped` | questions skipped since the last step, because they were too old: the agent is slower than the queue |
    | `lost` | messages lost in this episode, because the agent was too slow to read them |

    ## Arguments

    | argument | meaning |
    |---|---|
    | `socket` | path of the Unix socket; None: `$L4S_GYM_SOCKET`, or `/run/l4s-gym/live.sock` |
    | `decision_interval` | the agent decides every n-th packet (1, 10, 100), the queue the others |
    | `reward` | `balance`, `power`, `l4s_llm`, or weights such as `{"used": 1.0, "delay_l": -0.25}`, without `evenness` |
    | `horizon_s` | length of an episode |
    | `lifetime_ms` | an action is valid for this long after the question |
    | `timeout_s` | longest wait for the server and for packets |
    | `info_record` | put the raw record into `info` |
    | `direct` | talk to the queue directly, not through the daemon, if the queue offers it |
    | `form` | `packet`; `parameters`, `probability`: see below |

    ## The form `parameters`

    `form="parameters"`: the native law decides every packet, and each `control_interval_ms` (100) the agent sets
    parameters of it, which hold for `lifetime_ms` (three intervals). Without another action, or without the agent,
    the law then goes on with the operator's parameters: traffic never depends on the agent.

    The action is `Box(-1, 1, (5,), float32)`: target delay, alpha, beta, coupling k, L threshold. 0 is the operator's
    value, -1 and 1 are the lowest and the highest one that the operator allows, log-linear on each side. What the law
    does not have (coupling and L threshold in the testbed's kernel) is left alone.

    The observation is `Box(29,) float32`, that of `L4S-DualPI2-Tune-v0`, from the counters of the queue, except that
    "the link's capacity" is that at the end of the interval, and that the queue tells flows apart by a hash of 256
    values: of 20 flows about one is not counted, of more more. A step waits until its interval is over, on this
    machine's clock. `reset` waits for one interval of the operator's law.

    The arguments are `socket`, `control_interval_ms`, `reward` (`balance`, `power`), `horizon_s`, `lifetime_ms`,
    `timeout_s`. `info` has `factors` (in force, of the operator's values) and `lost`, and at the end `reason` and
    `statistics`, with `law`: how often parameters were set, expired, and refused.

    ## The form `probability`

    `form="probability"`: as `parameters`, but the agent sets the probabilities of C and L, as in `L4S-DualPI2-Prob-v0`:
    its action `Box(-1, 1, (2,), float32)` and its observation `Box(12,) float32`. L's own ramp or step still marks, and
    from p_C = 25 % on ECT packets are dropped too. Probabilities above the operator's bounds (`prob_c_high`,
    `prob_l_high` of the queue) are cut to them. The shield's bounds hold as for decisions about packets: by default the
    agent marks and drops no more often than the native law would, which decides about the rest. `info` has
    `probabilities` (in force; None: the law decides) in place of `factors`. Only `even=True` of the simulated form is
    missing: packets are hit at random.

    To control a queue on another machine, forward the socket: `ssh -N -L /tmp/live.sock:/run/l4s-gym/live.sock router`.

    ## Version history

    - v0: first version.
    """

    def __init__(
        self,
        socket: str | None = None,
        decision_interval: int = 1,
        reward: rewards.Reward = rewards.BALANCE,
        horizon_s: float = 60.0,
        lifetime_ms: float = LIFETIME_MS,
        timeout_s: float = TIMEOUT_S,
        info_record: bool = False,
        direct: bool = True,
    ) -> None:
        reward = rewards.check_live(reward)
        check_positive(horizon_s=horizon_s, lifetime_ms=lifetime_ms, timeout_s=timeout_s)
        self._open(Client(socket, timeout_s=timeout_s, direct=direct), reward, horizon_s)
        self.action_space = gym.spaces.Discrete(3)  # type: ignore[assignment]  # its elements are int64
        self.observation_space = observation_space()
        self._interval, self._lifetime_us = check_interval(decision_interval), max(round(lifetime_ms * 1e3), 1)
        self._timeout_s, self._info_record = timeout_s, info_record
        self._ask: Ask | None = None  # the one that is observed; None: no episode
        self._asks = Asks()  # those after it

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Take control of the queue, and wait for the first packet.

        Raises:
            BridgeError: There is no server, somebody else controls, or no packet comes.
        """
        super().reset(seed=seed)
        self._asks.clear()
        self._ask = None
        self._take(self._interval)
        ask, reason = self._next()
        if ask is None:
            self._leave()
            raise BridgeError(
                f"{self._client.address}: {reason}: see that traffic flows through the queue (l4s-gym live doctor)"
            )
        self._ask, self._start_us, self._started = ask, ask.time_us, True
        return ask.observation[0], self._info()

    def step(
        self, action: int | np.integer | npt.NDArray[np.integer]
    ) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Send the action for the observed packet, and wait for the next packet."""
        if (isinstance(action, np.ndarray) and action.ndim > 0) or (action != 0 and action != 1 and action != 2):
            raise L4SError(f"action {action!r}: give 0 (enqueue), 1 (drop) or 2 (mark)")
        self._check_active()
        assert self._ask is not None
        answered = self._ask
        try:
            expires_us = answered.time_us + self._lifetime_us
            self._client.decide(answered.sequence, answered.queue, int(action), expires_us)
            ask, reason = self._next()
        except BridgeError as error:
            ask, reason = None, str(error)
        reward = 0.0
        if ask is not None:
            reward = self._meter.between(answered.entry, ask.entry)
            self._ask = ask
            if ask.time_us - self._start_us >= self._horizon_us:
                reason = "horizon"
        info = self._info()
        if reason is not None:
            info["reason"], info["statistics"] = reason, self._leave()
        return self._ask.observation[0], reward, False, reason is not None, info

    def _next(self) -> tuple[Ask | None, str | None]:
        """Return the next ASK, or None and the reason."""
        deadline = time.monotonic() + self._timeout_s
        while (left := deadline - time.monotonic()) > 0:
            wait_s = 0.0 if self._asks else left
            if (came := self._client.asks(wait_s)) is None:
                entries = self._client.entries(wait_s)
                lost = (entries["kind"] == wire.ERROR) & (entries["error"]["code"] == wire.E_NOT_CONTROLLER)
                lost |= (entries["kind"] == wire.EVENT) & (entries["event"]["kind"] == wire.DEVICE_LOST)
                if lost.any() or self._client.hello.session != self._session:
                    return None, NOBODY
                came = wire.encode(entries)
            self._asks.add(asks_of(came))
            if (ask := self._asks.take()) is not None:
                return ask, None
        return None, f"no packet came in {self._timeout_s:g} s"

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"skipped": self._asks.skipped, "lost": self._client.lost - self._lost}
        self._asks.skipped = 0
        if self._info_record:
            info["record"] = self.record()
        return info

    def record(self) -> dict[str, int]:
        """Return the observed features of the packet, in kernel units."""
        if self._ask is None:
            raise gym.error.ResetNeeded("record: the environment has not been started; call reset() first")
        return dict(zip(OBSERVED, self._ask.raw, strict=True))

    def close(self) -> None:
        """Give the control back and close the connection."""
        super().close()
        self._ask = None
