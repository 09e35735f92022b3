"""Senders in a closed loop around the FreeBSD module's instances, in simulated time, with a controller of any kind.

Two flows for each instance: C by additive increase and CUBIC's decrease, L by DCTCP's law in ECT(1). A lost packet is
noticed a round trip later, as if by SACK. That is all a sender has here; it is enough to see what a link is used for.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from l4s_gym.bridge import wire
from l4s_gym.schema import CE, ECT_0, ECT_1

from .module import Device, Module, command

RTT_NS: Final = 20_000_000
LENGTH: Final = 1500
LIFETIME_US: Final = 100_000

PACKETS: Final = 60_000
"""Numbers of packets, which start over."""
Packet = tuple[int, int, int]
"""Number, time of arrival (ns), queue."""
Waiting = deque[Packet]

Choice = Callable[[float, int], int]
"""Action of a controller at a time (s) for a queue (0 C, 1 L)."""


@dataclass
class Flow:
    """A sender.

    Attributes:
        ecn: Its codepoint: ECT(0) or ECT(1).
        window: Packets that it may have under way.
        flying: Packets that are.
        alpha: DCTCP's, of a flow in ECT(1).
        acked: Packets since the last round.
        marked: Of them marked.
        cut_ns: Time of its last decrease.
    """

    ecn: int
    window: float = 10.0
    flying: int = 0
    alpha: float = 0.0
    acked: int = 0
    marked: int = 0
    cut_ns: int = -RTT_NS
    round_ns: int = 0

    def hear(self, now_ns: int, *, marked: bool = False, lost: bool = False) -> None:
        """A packet was acknowledged, or is known to be lost."""
        self.flying -= 1
        self.acked, self.marked = self.acked + 1, self.marked + marked
        if now_ns - self.round_ns >= RTT_NS:
            self.alpha += (self.marked / self.acked - self.alpha) / 16.0
            self.acked = self.marked = 0
            self.round_ns = now_ns
        if not marked and not lost:
            self.window += 1.0 / self.window
        elif now_ns - self.cut_ns >= RTT_NS:
            self.cut_ns = now_ns
            factor = 1.0 - self.alpha / 2.0 if self.ecn == ECT_1 and not lost else 0.7
            self.window = max(self.window * factor, 2.0)


@dataclass
class Share:
    """What a class got.

    Attributes:
        served: Packets.
        delay_ns: Sum of their sojourn times.
        worst_ns: The longest one.
    """

    served: int = 0
    delay_ns: int = 0
    worst_ns: int = 0

    def mbps(self, seconds: float) -> float:
        """Rate, Mbit/s."""
        return self.served * LENGTH * 8e-6 / seconds

    @property
    def mean_ms(self) -> float:
        """Mean sojourn time, ms."""
        return self.delay_ns * 1e-6 / max(self.served, 1)


@dataclass
class Instance:
    """One scheduler with its link and its two flows."""

    number: int
    flows: tuple[Flow, Flow] = field(default_factory=lambda: (Flow(ECT_0), Flow(ECT_1)))
    busy: bool = False
    queued: tuple[Waiting, Waiting] = field(default_factory=lambda: (deque(), deque()))
    shares: tuple[Share, Share] = field(default_factory=lambda: (Share(), Share()))


class Loop:
    """Instances 1 to n of a loaded module in a closed loop; the controller is asked about the first one's packets."""

    def __init__(self, module: Module, instances: int = 2, rate_mbps: float = 20.0) -> None:
        self.module = module
        self.instances = [Instance(number) for number in range(1, instances + 1)]
        self.packet_ns = round(LENGTH * 8e3 / rate_mbps)
        self._events: list[tuple[int, int, Instance, str, Any]] = []
        self._count = self._packets = 0
        for each in self.instances:
            module.config(each.number, bandwidth=round(rate_mbps * 1e6))
            for flow in each.flows:
                self._at(module.now_ns, each, "send", flow)

    def _at(self, time_ns: int, instance: Instance, kind: str, what: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (time_ns, self._count, instance, kind, what))

    def run(
        self, seconds: float, device: Device | None = None, choose: Choice | None = None
    ) -> list[tuple[Share, Share]]:
        """Let it run; what C and L of each instance got meanwhile."""
        for each in self.instances:
            each.shares = (Share(), Share())
        end = self.module.now_ns + round(seconds * 1e9)
        while self._events and self._events[0][0] <= end:
            time_ns, _, instance, kind, what = heapq.heappop(self._events)
            self.module.advance(time_ns - self.module.now_ns)
            if kind == "send":
                self._send(instance, what, device, choose)
            elif kind == "free":
                instance.busy = False
                self._serve(instance)
            else:
                flow, marked, lost = what
                flow.hear(time_ns, marked=marked, lost=lost)
                self._send(instance, flow, device, choose)
        return [each.shares for each in self.instances]

    def _send(self, instance: Instance, flow: Flow, device: Device | None, choose: Choice | None) -> None:
        now = self.module.now_ns
        queue = int(flow.ecn == ECT_1)
        while flow.flying < int(flow.window):
            flow.flying += 1
            self._packets = (self._packets + 1) % PACKETS
            if self.module.arrive(LENGTH, flow=self._packets, ecn=flow.ecn, number=instance.number):
                instance.queued[queue].append((self._packets, now, queue))
            else:
                waits = len(instance.queued[queue]) * self.packet_ns
                self._at(now + RTT_NS + waits, instance, "hear", (flow, False, True))
            if device is not None and choose is not None:
                self._answer(device, choose)
            self._serve(instance)

    def _answer(self, device: Device, choose: Choice) -> None:
        now_s = self.module.now_ns * 1e-9
        for ask in device.read_all():
            if ask["kind"] != wire.ASK:
                continue
            record = ask["row"]["record"]
            queue = int(record["queue_type"])
            expires_us = int(record["time_us"]) + LIFETIME_US
            numbers = {"sequence": int(record["sequence"]), "queue": queue, "action": choose(now_s, queue)}
            device.write(command(wire.DECIDE, expires_us=expires_us, **numbers))

    def _serve(self, instance: Instance) -> None:
        if instance.busy:
            return
        now = self.module.now_ns
        sent = self.module.dequeue(instance.number)
        if sent is None:
            self._lose(instance, [waiting.popleft() for waiting in instance.queued for _ in range(len(waiting))])
            return
        instance.busy = True
        packet, lost = self._find(instance, sent.flow)
        self._lose(instance, lost)
        _, came, queue = packet
        share = instance.shares[queue]
        share.served += 1
        share.delay_ns += now - came
        share.worst_ns = max(share.worst_ns, now - came)
        self._at(now + self.packet_ns, instance, "free", None)
        flow = instance.flows[queue]
        self._at(now + self.packet_ns + RTT_NS, instance, "hear", (flow, sent.ecn == CE, False))

    @staticmethod
    def _find(instance: Instance, number: int) -> tuple[Packet, list[Packet]]:
        """The packet that has left; those of its queue that came before it were dropped in the queue."""
        for waiting in instance.queued:
            for place, packet in enumerate(waiting):
                if packet[0] == number:
                    lost = [waiting.popleft() for _ in range(place)]
                    return waiting.popleft(), lost
        raise AssertionError(f"packet {number} left twice")

    def _lose(self, instance: Instance, packets: list[Packet]) -> None:
        for _, _, queue in packets:
            self._at(self.module.now_ns + RTT_NS, instance, "hear", (instance.flows[queue], False, True))
