"""Convert a scenario to the configuration of the Linux router and of the test traffic: parameters, delays, flows.

Units and defaults are those of the simulator (`l4s_gym.sim.setup`), so that both run the same scenario. Fields that a
live queue cannot follow are an error; differences are listed in the notes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from l4s_gym.errors import L4SError
from l4s_gym.sim.scenario import Scenario, Source
from l4s_gym.sim.setup import build

TESTBED: Final = 0
RFC9332: Final = 1
LINUX: Final = 2
VARIANTS: Final = {"dualpi2_freebsd": TESTBED, "dualpi2_rfc9332": RFC9332, "dualpi2_linux": LINUX}
"""Disciplines that the core in C has."""

SENDERS: Final = "10.77.1."
RECEIVER: Final = "10.77.2.1"
PORT: Final = 5201
MOST_SOURCES: Final = 60
"""The router keeps so many delays."""
MOST_FLOWS: Final = 256
UNSHAPED: Final = 0
"""The rate of a router that does not shape."""

_COMMON: Final = (
    "target_us", "tupdate_us", "limit_packets", "limit_bytes", "max_burst_us", "max_ecn_threshold", "flags"
)  # fmt: skip
_EITHER: Final = ("alpha", "beta", "classic_weight", "shift_ns")
_TESTBED: Final = (*_EITHER, "quirks", "drr_weight", "step_ns")
_RFC9332: Final = (*_EITHER, "coupling", "alpha_q", "beta_q", "min_th_ns", "range_ns", "th_len", "p_c_max")
_LINUX: Final = ("step_ns", "step_packets", "min_qlen_step", "drop_on_overload", "classic_protection")
_OWN: Final = {TESTBED: _TESTBED, RFC9332: _RFC9332, LINUX: _LINUX}
"""Parameters of each variant that bear the names of the simulator's fields."""
_LINUX_NAMES: Final = {"pi2_alpha": "alpha", "pi2_beta": "beta", "coupling_factor": "coupling"}
"""Those of Linux that do not: there these fields have other units than elsewhere."""
_TCP: Final = {"cubic": "cubic", "newreno": "reno"}
_ECN: Final = {"": "none", "not-ect": "none", "ect0": "ect0", "ect1": "ect1"}


@dataclass(frozen=True)
class RouterConfig:
    """The configuration of the router.

    Attributes:
        values: Parameters of the core, by their names in `L4S_PARAMETERS`.
        rate_bps: Of the link; `UNSHAPED`: as fast as it goes.
        delays_ns: One-way delay of each direction, by the sender's address.
        rate_at: Pairs (time since the first packet ns, rate bit/s).
        seed: Of the core's random numbers.
    """

    values: dict[str, int]
    rate_bps: int
    delays_ns: dict[str, int]
    rate_at: tuple[tuple[int, int], ...] = ()
    seed: int = 1

    def text(self) -> str:
        """Return the content of the configuration file."""
        lines = [f"{name} {value}" for name, value in self.values.items()]
        lines.append(f"rate_bps {self.rate_bps}")
        lines += [f"delay {address} {delay}" for address, delay in self.delays_ns.items()]
        lines += [f"rate_at {time} {rate}" for time, rate in self.rate_at]
        lines.append(f"seed {self.seed}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Flow:
    """The sender of one flow.

    Attributes:
        label: What it is, as the tables show it.
        source: Number of the source in the scenario.
        address: Where it sends from.
        start_s: Start, after that of the run.
        command: What it does, of `l4s-traffic`.
        options: Further arguments.
    """

    label: str
    source: int
    address: str
    start_s: float
    command: str
    options: tuple[str, ...] = ()

    def arguments(self, seconds: float) -> list[str]:
        """Return the arguments of `l4s-traffic` for a run that ends after `seconds`."""
        left = max(seconds - self.start_s, 0.1)
        fixed = [self.command, "--to", f"{RECEIVER}:{PORT}", "--bind", self.address, "--seconds", f"{left:.3f}"]
        return [*fixed, *self.options]


@dataclass(frozen=True)
class LiveConfig:
    """A scenario as a live queue runs it.

    Attributes:
        scenario: The scenario, its random fields drawn.
        aqm: Discipline.
        router: The router's configuration.
        flows: The senders.
        mtu: Largest IP packet, bytes.
        tcp_ecn: Whether TCP asks for ECN.
        notes: What differs from the scenario.
    """

    scenario: Scenario
    aqm: str
    router: RouterConfig
    flows: tuple[Flow, ...]
    mtu: int
    tcp_ecn: bool
    notes: tuple[str, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses of the senders."""
        return tuple(self.router.delays_ns)


def parameters(scenario: Scenario, aqm: str) -> dict[str, int]:
    """Return the parameters of the C core for a scenario, as in the simulator."""
    template = build(scenario, aqm, scenario.n_flows)
    values = {name: record[name][0] for record in (template.env, template.own) for name in record.dtype.names or ()}
    variant = VARIANTS[aqm]
    fields = {name: name for name in _COMMON + _OWN[variant]} | (_LINUX_NAMES if variant == LINUX else {})
    return {"variant": variant} | {name: int(values[field]) for name, field in fields.items()}


def _check_link(scenario: Scenario, aqm: str) -> None:
    link = scenario.link
    place = f"scenario {scenario.name!r} on a live queue"
    if aqm not in VARIANTS:
        raise L4SError(f"{place}: discipline {aqm!r} is not in the router; choose one of {', '.join(VARIANTS)}")
    if link.kind != "constant":
        raise L4SError(
            f"{place}: the router cannot do link.kind {link.kind!r}: it shapes to a constant rate with steps; "
            "set link.kind to 'constant' (the paper's flows: l4s-llm-testbed), or simulate it"
        )
    if link.passes != 1 or link.acks_in_queue:
        raise L4SError(
            f"{place}: data crosses the router's queue once and ACKs do not; set passes 1, acks_in_queue off"
        )
    if len(scenario.sources) > MOST_SOURCES or scenario.n_flows > MOST_FLOWS:
        raise L4SError(f"{place}: at most {MOST_SOURCES} sources and {MOST_FLOWS} flows")


def _sender(source: Source, index: int, place: str, notes: dict[str, None]) -> tuple[str, str, tuple[str, ...]]:
    """Return label, command and options of the flows of a source."""
    where = f"{place}: sources.{index} ({source.kind})"
    if source.kind not in (*_TCP, "prague", "dctcp", "cbr"):
        raise L4SError(
            f"{where}: there is no such sender here; use cubic, newreno, prague, dctcp or cbr, or simulate it"
        )
    if source.kind == "cbr":
        pps = max(round(source.rate_mbps * 1e6 / (8 * source.packet_length)), 1)
        options = ("--pps", str(pps), "--size", str(source.packet_length), "--ecn", _ECN[source.ecn])
        return "cbr", "blast", options
    if source.transfer_bytes >= 0:
        raise L4SError(f"{where}: transfers do not end here; leave transfer_bytes out, or simulate it")
    if source.kind in ("dctcp", "prague"):
        if source.ecn not in ("", "ect1"):
            raise L4SError(f"{where}: the scalable sender sends ECT(1); leave ecn out")
        what = "the DCTCP flows: Linux has none here, so" if source.kind == "dctcp" else "the Prague flows:"
        notes[f"{what} a paced Prague-like UDP source of our own sends in their place (test traffic, not TCP)"] = None
        return "prague-like", "prague-like", ("--size", str(source.packet_length))
    if source.ecn == "ect1":
        raise L4SError(f"{where}: Linux's TCP sends ECT(0); leave ecn out, or use prague for ECT(1)")
    notes["TCP is Linux's: its windows, timers and delayed ACKs, not those of the scenario"] = None
    return source.kind, "tcp", ("--cc", _TCP[source.kind])


def live_config(scenario: Scenario, aqm: str | None = None, seed: int = 1, **values: int) -> LiveConfig:
    """What router and senders are told.

    Args:
        scenario: What to run.
        aqm: Discipline; None: the scenario's.
        seed: Of the draws of the scenario, the starts of the flows, and the core.
        **values: Parameters of the core instead of the scenario's, and `rate_bps`.

    Raises:
        L4SError: The scenario asks for what a live queue cannot do.
    """
    rng = np.random.default_rng(seed)
    chosen = scenario.sample(rng)
    aqm = aqm or chosen.aqm
    _check_link(chosen, aqm)
    place = f"scenario {chosen.name!r} on a live queue"
    notes: dict[str, None] = {}
    flows: list[Flow] = []
    delays: dict[str, int] = {}
    tcp = {source.ecn == "not-ect" for source in chosen.sources if source.count and source.kind in _TCP}
    if len(tcp) > 1:
        raise L4SError(f"{place}: TCP flows all ask for ECN here or none does; do not mix 'not-ect' with others")
    for index, source in enumerate(chosen.sources):
        if not source.count:
            continue
        address = f"{SENDERS}{index + 1}"
        delays[address] = round(source.rtt_ms * 1e6 / 2)
        label, command, options = _sender(source, index, place, notes)
        starts = source.start_s + source.stagger_s * rng.random(source.count)
        flows += [Flow(label, index, address, float(start), command, options) for start in starts]
    rate = values.pop("rate_bps", round(chosen.link.rate_mbps * 1e6))
    steps = tuple((round(time * 1e9), round(rate * factor)) for time, factor in chosen.link.steps)
    router = RouterConfig(parameters(chosen, aqm) | values, rate, delays, steps, seed)
    mtu = max(source.packet_length for source in chosen.sources if source.count)
    return LiveConfig(chosen, aqm, router, tuple(flows), mtu, tcp != {True}, tuple(notes))
