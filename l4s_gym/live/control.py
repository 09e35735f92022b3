"""An agent controls a live queue.

The queue never waits: an answer is used for the next packet of the same queue that has no answer yet, and if none comes
in time the native law decides. An agent that is slow or gone therefore loses decisions, but never delays packets.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import itemgetter
from struct import Struct
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym import rewards
from l4s_gym.agents import Agent
from l4s_gym.agents.protocol import form_of
from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.bridge.wire import Status
from l4s_gym.data.causal import BEFORE, UNKNOWN
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET
from l4s_gym.schema import DECIDED_BY, OBS_HIGH, OBS_SCALE, OBSERVED, RECORD

Progress = Callable[[float], None]

LIFETIME_MS: Final = 100.0
PATIENCE_S: Final = 10.0
_COLUMNS: Final = tuple(BEFORE.get(name, name) for name in OBSERVED)
_SCALES: Final = tuple(zip(OBS_SCALE.tolist(), OBS_HIGH.tolist(), strict=True))
_WAIT_S: Final = 0.2
"""Seconds between two looks at the clock while waiting for packets."""


class Ask(NamedTuple):
    """The parts of an ASK entry (a question of the queue) that an answer needs.

    Attributes:
        raw: The observed features before the decision, in kernel units, by the names of `OBSERVED`.
        sequence: Number of the packet.
        time_us: When it was asked, on the queue's clock.
        entries: Bytes of this entry and of those that it came with.
        at: Its place among them.
    """

    raw: tuple[int, ...]
    sequence: int
    time_us: int
    entries: bytes
    at: int

    @property
    def queue(self) -> int:
        """0 C or 1 L."""
        return self.raw[0]

    @property
    def entry(self) -> Any:
        """The question as an element of `Entries`."""
        return wire.decode(self.entries)[self.at]

    @property
    def observation(self) -> npt.NDArray[np.float32]:
        """Return the observation (1, 8): the same as `scale_observation`, in a fifth of the time."""
        seen = [min(value / scale, high) for value, (scale, high) in zip(self.raw, _SCALES, strict=True)]
        return np.array([seen], np.float32)


def _form() -> tuple[Struct, Callable[[tuple[int, ...]], tuple[int, ...]]]:
    """An entry of which its head, `_COLUMNS`, sequence and time are taken; and what puts them in that order."""
    assert RECORD.fields is not None
    names = (*_COLUMNS, "sequence", "time_us")
    offsets = {name: wire.RECORD_AT + RECORD.fields[name][1] for name in names}
    order = sorted(names, key=offsets.__getitem__)
    form, at = "<I", 4
    for name in order:
        form += f"{offsets[name] - at}x{' BH I   Q'[RECORD[name].itemsize]}"
        at = offsets[name] + RECORD[name].itemsize
    return Struct(f"{form}{wire.ENTRY_SIZE - at}x"), itemgetter(0, *(1 + order.index(name) for name in names))


_FORM, _ORDERED = _form()


def asks_of(entries: bytes) -> list[Ask]:
    """Decode the ASK entries among the bytes of complete entries; unknown features are 0."""
    found = []
    for at, values in enumerate(_FORM.iter_unpack(entries)):
        head, *raw, sequence, time_us = _ORDERED(values)
        if head != wire.ASK_HEAD:
            continue
        if UNKNOWN in raw:
            raw = [0 if value == UNKNOWN else value for value in raw]
        found.append(Ask(tuple(raw), sequence, time_us, entries, at))
    return found


class Asks:
    """Questions that wait for this agent: the newest of each queue, as many as the queue keeps answers.

    Answers to older ones would only be pushed out by those to newer ones.

    Attributes:
        skipped: How many were older.
    """

    def __init__(self) -> None:
        self._waiting: list[Ask] = []
        self.skipped = 0

    def add(self, asks: list[Ask]) -> None:
        """Add questions."""
        self._waiting += asks
        if len(self._waiting) <= wire.ANSWERS:
            return
        kept, count = [], Counter[int]()
        for ask in reversed(self._waiting):
            count[ask.queue] += 1
            if count[ask.queue] <= wire.ANSWERS:
                kept.append(ask)
        self.skipped += len(self._waiting) - len(kept)
        self._waiting = kept[::-1]

    def take(self) -> Ask | None:
        """Remove and return the oldest question."""
        return self._waiting.pop(0) if self._waiting else None

    def clear(self) -> None:
        """Remove all questions."""
        self._waiting.clear()
        self.skipped = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)


class RewardMeter:
    """Computes the simulator's rewards from the totals in the rows.

    Args:
        kind: The reward, see `l4s_gym.rewards.check_live`.
        rate_bps: Of the link; 0 where it is not known.

    Raises:
        L4SError: No such reward, or it takes what is not known here.
    """

    def __init__(self, kind: rewards.Reward, rate_bps: int) -> None:
        kind = rewards.check_live(kind)
        if kind != rewards.L4S_LLM and rate_bps <= 0:
            raise L4SError(
                f"reward {kind!r}: the server does not know the rate of the link: "
                f"configure it there, or use reward={rewards.L4S_LLM!r}"
            )
        self.kind = kind
        self._weights = rewards.weights_of(kind)
        self._s_per_byte = 8.0 / rate_bps if rate_bps > 0 else 0.0

    def between(self, before: Any, after: Any) -> float:
        """Return the reward between an answered question and a later one.

        Args:
            before: An element of `Entries`.
            after: Another one, of the same session.
        """
        old, new = before["row"], after["row"]
        if self.kind == rewards.L4S_LLM:
            record = old["record"]
            return float(rewards.l4s_llm(record["packet_length"], record["current_queue_delay"]))
        return self.integral(old, new)

    def integral(self, old: Any, new: Any) -> float:
        """Return a reward that is an integral over time, between two bodies of entries with the same totals."""
        if self._weights is None:
            return (int(new["power_bytes"]) - int(old["power_bytes"])) / 65536 * self._s_per_byte
        served_s = (int(new["served_bytes"]) - int(old["served_bytes"])) * self._s_per_byte
        delays_s = {name: 1e-9 * (int(new[f"{name}_ns"]) - int(old[f"{name}_ns"])) for name in ("delay_c", "delay_l")}
        return rewards.total(self._weights, {"used": served_s, **delays_s})


@dataclass(frozen=True)
class Shares:
    """What happened between two looks at the counters.

    Attributes:
        packets: Offered.
        by_agent: Of them decided by the agent (or a loaded model).
        decided_by: Share of them by who decided: `schema.DECIDED_BY`.
        marks: Share that was marked.
        drops: Share that was dropped.
        refused: Decisions that were refused, by reason.
        shield_trips: How often the shield took a queue back.
        latency_p50_us: From ask to answer, as the server counts it: median.
        latency_p99_us: The same, 99th percentile.
    """

    packets: int
    by_agent: int
    decided_by: dict[str, float]
    marks: float
    drops: float
    refused: dict[str, int]
    shield_trips: int
    latency_p50_us: int
    latency_p99_us: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def shares(before: Status, after: Status) -> Shares:
    """What happened between two looks at the counters of one session; of a new session, all that it counted."""
    if sum(after.packets) < sum(before.packets):
        before = Status(
            **{**asdict(after), "packets": (0, 0), "agent": (0, 0), "fallback": (0, 0), "drops": (0, 0)}
            | {"marks": (0, 0), "trips": (0, 0), "refused": dict.fromkeys(after.refused, 0)}
        )

    def grown(name: str) -> int:
        total: int = sum(getattr(after, name)) - sum(getattr(before, name))
        return total

    packets, agent, fallback = grown("packets"), grown("agent"), grown("fallback")
    whole = max(packets, 1)
    refused = {name: count - before.refused[name] for name, count in after.refused.items()}
    by = ((packets - agent - fallback) / whole, agent / whole, fallback / whole)
    return Shares(
        packets=packets,
        by_agent=agent,
        decided_by=dict(zip(DECIDED_BY, by, strict=True)),
        marks=grown("marks") / whole,
        drops=grown("drops") / whole,
        refused=refused,
        shield_trips=grown("trips"),
        latency_p50_us=after.latency_p50_us,
        latency_p99_us=after.latency_p99_us,
    )


@dataclass
class Run:
    """Result of a controller's run.

    Attributes:
        agent: Its name.
        decision_interval: Asked about each n-th packet.
        asks: Asks that came.
        answered: Of them answered; the others were older than several of the same queue when they were read.
        lost: Entries lost on the way because this process was slow.
        direct: Whether they came by a socket of the queue's own.
        form: Of the agent: in an interval form, asks are intervals, and answered are those in which something was set.
        control_interval_ms: Length of an interval; None: it decides about packets.
        law: In an interval form, how often what was set was taken (`sets`), expired, and was refused, as the queue
            counts it; of the last session; None where it could not be read.
        sessions: How often it attached: more than once where daemon or queue were started anew.
        seconds: For how long.
        shares: Of the last session; None where the counters could not be read at the end.
    """

    agent: str
    decision_interval: int
    form: str = PACKET
    control_interval_ms: float | None = None
    law: dict[str, int] | None = None
    asks: int = 0
    answered: int = 0
    lost: int = 0
    direct: bool = False
    sessions: int = 0
    seconds: float = 0.0
    shares: Shares | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Controller:
    """Lets an agent control a live queue.

    Args:
        client: Not connected yet: `run` does that.
        agent: Of the agents protocol.
        decision_interval: Ask about each n-th packet.
        lifetime_ms: For how long after the ask an answer may still be used.
        reward: What the agent is told; None: nothing, zeros.
        patience_s: For how long a server that has gone is looked for.
        seed: Of the agent.
        clock: Tells the time, s, by which `run` ends.

    Attributes:
        done: What it did so far.
    """

    def __init__(
        self,
        client: Client,
        agent: Agent,
        *,
        decision_interval: int = 1,
        lifetime_ms: float = LIFETIME_MS,
        reward: rewards.Reward | None = None,
        patience_s: float = PATIENCE_S,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not lifetime_ms > 0:
            raise L4SError(f"lifetime_ms={lifetime_ms!r}: give a positive number of milliseconds")
        if reward is not None:
            rewards.check_live(reward)
        self._client, self._agent = client, agent
        self._interval: int | None = decision_interval if form_of(agent) == PACKET else None
        self._lifetime_us = max(round(lifetime_ms * 1e3), 1)
        self._reward, self._patience_s, self._seed = reward, patience_s, seed
        self._clock = clock
        self._stopped = False
        self._meter: RewardMeter | None = None
        self._earned = np.zeros(1)
        self._asks = Asks()
        self._last: Any = None
        self._before: Status | None = None
        self.done = Run(agent.name, decision_interval)

    def stop(self) -> None:
        """Make `run` give the control back and return soon; for signal handlers and other threads."""
        self._stopped = True

    def run(self, seconds: float | None = None, progress: Progress | None = None) -> Run:
        """Control until the time is over, or `stop`; the queue is detached then, also after an exception.

        Raises:
            BridgeError: The server is gone, or somebody else controls.
        """
        self._agent.reset(1, self._seed)
        started = self._clock()
        try:
            self._connect()
            started = self._clock()
            while not self._stopped and (seconds is None or self._clock() - started < seconds):
                self._turn(_WAIT_S if seconds is None else min(_WAIT_S, seconds))
                if progress is not None and seconds is not None:
                    progress((self._clock() - started) / seconds)
        finally:
            self.done.seconds = self._clock() - started
            self._end()
        return self.done

    def _turn(self, timeout_s: float) -> None:
        try:
            self._step(timeout_s)
        except BridgeError as error:
            if error.code == wire.E_NO_DEVICE:
                time.sleep(min(timeout_s, self._patience_s))  # until the daemon has its queue again, and says HELLO
            elif error.closed and not error.code:
                self._connect()
            else:
                raise

    def _step(self, timeout_s: float) -> None:
        """Wait for what comes, and answer."""
        wait_s = 0.0 if self._asks else timeout_s
        if (came := self._client.asks(wait_s)) is not None:
            self._answer(came)
            return
        self._answer(wire.encode(self._news(wait_s)))

    def _news(self, wait_s: float) -> wire.Entries:
        """What has come; where the queue was started anew or the control is gone, attach, and what came after it."""
        entries = self._client.entries(wait_s)
        kinds = entries["kind"]
        anew = (kinds == wire.HELLO) | ((kinds == wire.EVENT) & (entries["event"]["kind"] == wire.DEVICE_BACK))
        if anew.any():  # what came before is of another clock
            entries = wire.take(entries, np.arange(len(entries)) > np.flatnonzero(anew)[-1])
            self._attach()
        elif ((kinds == wire.ERROR) & (entries["error"]["code"] == wire.E_NOT_CONTROLLER)).any():
            self._attach()
        return entries

    def _answer(self, came: bytes) -> None:
        """Read what has arrived, and answer one question."""
        asks = asks_of(came)
        self.done.asks += len(asks)
        self._asks.add(asks)
        ask = self._asks.take()
        if ask is None:
            return
        self._earned[0] = 0.0
        if self._meter is not None:
            if self._last is not None:
                self._earned[0] = self._meter.between(self._last, ask.entry)
            self._last = ask.entry
        action = int(self._agent.act(ask.observation, self._earned)[0])
        self._client.decide(ask.sequence, ask.queue, action, ask.time_us + self._lifetime_us)
        self.done.answered += 1

    def _connect(self) -> None:
        """Connect and attach; where there was a connection before, wait for a server that is being restarted."""
        again = self.done.sessions > 0
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                self._client.connect()
                self._attach()
                return
            except BridgeError as error:
                self._client.close()
                # Busy: the old connection may not have been noticed to be gone yet.
                passing = error.code in (0, wire.E_NO_DEVICE, wire.E_BUSY)
                if not again or not passing or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _attach(self) -> None:
        self._last = None
        self._asks.clear()
        self._before = self._client.attach(self._interval)
        self.done.direct = self._client.direct
        self._meter = None if self._reward is None else RewardMeter(self._reward, self._client.hello.rate_bps)
        self.done.sessions += 1

    def _end(self) -> None:
        self.done.lost = self._client.lost
        try:
            if self._client.connected and self._before is not None:
                self.done.shares = shares(self._before, self._client.detach())
        except BridgeError:
            pass  # gone: a controller that goes has detached
        finally:
            self._client.close()
