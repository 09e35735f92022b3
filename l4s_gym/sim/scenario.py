"""Scenarios: link, sources and discipline of a simulation, as frozen structures read from TOML.

A scenario names the link, the sources, the queue discipline with its options, and the fields
that are drawn at random for each episode. The ones that ship are in `l4s_gym/scenarios`; `load` also takes a path.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
from msgspec import Meta, Struct

from l4s_gym import shipped
from l4s_gym.data.files import printable
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import source_code
from l4s_gym.sim import disciplines, options, traces
from l4s_gym.sim.discipline import Count, Fraction, NonNegative, Positive
from l4s_gym.sim.layout import APPS, CCS, LEAST_MBPS, MOST_MBPS
from l4s_gym.sim.options import Options
from l4s_gym.tables import convert, option_paths, parse_toml, read_toml

KINDS = (*CCS[1:], *APPS[1:])
"""Kinds of sources by name."""
Ecn = Literal["not-ect", "ect0", "ect1"]
Suite = Literal["train", "test", "shift", "dyn"]
SUITES: tuple[str, ...] = get_args(Suite)
DRAWN = 64
"""Number of scenarios in `random:train`."""
FIXED = ("aqm", "link.kind", "link.trace")
"""Fields that cannot be drawn for an episode: the arrays of a batch are made for them."""


class Link(Struct, frozen=True, forbid_unknown_fields=True):
    """The bottleneck.

    Attributes:
        kind: `constant` (with optional `steps`), `trace` (see `l4s_gym.sim.traces`), `tick` (served at the ticks of a
            kernel) or `dummynet` (the testbed's router, see `l4s_gym.sim.router`).
        rate_mbps: Rate in Mbit/s, 0.056 to 400,000 (also after each step); a trace brings its own.
        steps: Pairs (time in s, factor of the rate), in order of time.
        trace: Name of a shipped trace, or path of a file: Mahimahi's form, or pairs of seconds and Mbit/s.
        hz: Kernel ticks per second, for `tick` and `dummynet`.
        pipe_delay_ms: Delay of the pipe at each crossing, for `dummynet`; rounded up to ticks.
        row_ms: Processor time of the router for each packet offered, for `dummynet`.
        slice_ms: Longest time that the network card's thread keeps `softclock` waiting, for `dummynet`.
        pause_ms: Length of the pauses of the router's processor, for `dummynet`; 0: none.
        pause_gap_ms: Mean time from the end of one such pause to the next (exponential).
        passes: Number of times that each packet crosses the queue (2: the testbed's rule matched twice).
        acks_in_queue: Whether the ACKs cross the same queue.
        buffer_ms: Buffer in milliseconds at `rate_mbps` (RFC 9332 recommends 250).
        limit_packets: Buffer in packets; 0: as `buffer_ms` says.
    """

    kind: Literal["constant", "trace", "tick", "dummynet"] = "constant"
    rate_mbps: float = 8.0
    steps: tuple[tuple[NonNegative, Positive], ...] = ()
    trace: str = ""
    hz: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    pipe_delay_ms: Positive = 10.0
    row_ms: NonNegative = 0.0
    slice_ms: NonNegative = 100.0
    pause_ms: NonNegative = 0.0
    pause_gap_ms: Positive = 400.0
    passes: Annotated[int, Meta(ge=1, le=4)] = 1
    acks_in_queue: bool = False
    buffer_ms: Positive = 250.0
    limit_packets: Count = 0


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """One or several equal flows.

    Attributes:
        kind: `newreno`, `cubic`, `dctcp`, `prague`, `cbr`, `onoff`, `web`; or `MODULE:ATTRIBUTE`
            or `FILE.py:ATTRIBUTE`, a `l4s_gym.sim.control.CongestionControl` of your own: its code is run.
        count: Number of flows.
        rtt_ms: Base round-trip time.
        ecn: Codepoint of its packets; empty: ECT(1) for DCTCP and Prague, ECT(0) for the others, Not-ECT
            for `cbr` and `onoff`.
        echo: `rfc3168` (latched until CWR), `accurate` (RFC 9768), or empty: accurate for DCTCP and Prague.
        start_s: Start of the flow.
        stagger_s: The start is drawn uniformly from an interval of this length.
        transfer_bytes: Size of a finite transfer; -1: endless.
        rate_mbps: Rate of `cbr`, and of `onoff` while on.
        on_s: Mean time on (exponential).
        off_s: Mean time off, or think time of a `web` user (exponential).
        cc: Congestion control of `web`, as in `kind`.
        size_bytes: Smallest and largest page of `web` (bounded Pareto).
        size_shape: Shape of that distribution.
        packet_length: IP length of a full packet, bytes; 52 of them are headers.
        ack_every: Segments per ACK; 0: 2, and 1 for UDP Prague.
        delayed_ack_ms: Longest delay of an ACK.
        initial_window: Window of a new connection, packets.
        min_rto_ms: Least time that the timeout adds to the smoothed RTT (Linux); FreeBSD: least timeout.
        rto_slop_ms: Added to the timeout that RFC 6298 computes (FreeBSD: `tcp_rexmit_slop`, 200).
        sack_length: Length that a SACK option adds to an ACK, bytes; 0: all ACKs have one length.
        card: Network card of the router at which the source sits, for `dummynet`; the receivers sit at card 0.
        initial_threshold: Slow-start threshold at the start, packets (FreeBSD's host cache); 0: none.
        beta: Factor of the window after a loss; 0: 0.5, CUBIC 0.7.
        beta_ecn: Factor of the window after a classic ECN signal; 0: as `beta` (RFC 8511 suggests 0.8).
        friendly: Slope of CUBIC's Reno-friendly window; 0: 3 (1 - beta) / (1 + beta) of RFC 9438.
        slope_one: Whether that slope becomes 1 above the earlier window (RFC 9438 section 4.3).
        freebsd: Whether the sender is FreeBSD 14's base stack (CUBIC, NewReno, DCTCP): its CUBIC, its proportional rate
            reduction after losses and ECN signals, its timeouts.
        receive_window: Packets; 0: enough for any window that fits path and buffer.
        largest_window: Largest receive window, which grows by half as in FreeBSD; 0: it stays as it is.
        paced: Whether packets are sent at the window's rate instead of as ACKs come in: Prague by its own rule,
            others by Linux's (1.2 times the window per RTT, twice in the first half of slow start); None: Prague only.
        holds: Whether the window stays as it is for the round after the reduction that answers a mark, as Linux's TCP
            does (`TCP_CA_CWR`); None: for CUBIC and NewReno of Linux. DCTCP grows on, so its law is 2 / p (RFC 9332).
        slow_start: When slow start ends before a loss: `standard` (never), `hystart` (as Linux's CUBIC), `hystart++`
            (RFC 9406), or empty: `hystart` for CUBIC of Linux, `standard` for the others.
        variant: Prague: `udp` (the L4S team's reference) or `tcp` (slow start, two packets at least in flight).
        jitter_us: Each packet takes up to this much longer for a hop (uniform), and starts up to this much later, as
            hosts do.
    """

    kind: str
    count: Annotated[int, Meta(ge=0, le=4096)] = 1
    rtt_ms: Positive = 10.0
    ecn: Ecn | Literal[""] = ""
    echo: Literal["rfc3168", "accurate", ""] = ""
    start_s: NonNegative = 0.0
    stagger_s: NonNegative = 0.1
    transfer_bytes: Annotated[int, Meta(ge=-1, le=1 << 50)] = -1
    rate_mbps: Positive = 1.0
    on_s: Positive = 1.0
    off_s: Positive = 1.0
    cc: str = "cubic"
    size_bytes: tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=1)]] = (5_000, 2_000_000)
    size_shape: Positive = 1.2
    packet_length: Annotated[int, Meta(ge=60, le=9000)] = 1500
    ack_every: Annotated[int, Meta(ge=0, le=64)] = 0
    delayed_ack_ms: Positive = 40.0
    initial_window: Annotated[float, Meta(ge=1.0, le=1000.0)] = 10.0
    min_rto_ms: Positive = 200.0
    rto_slop_ms: NonNegative = 0.0
    sack_length: Annotated[int, Meta(ge=0, le=36)] = 0
    card: Annotated[int, Meta(ge=0, le=3)] = 0
    initial_threshold: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    beta: Fraction = 0.0
    beta_ecn: Fraction = 0.0
    friendly: NonNegative = 0.0
    slope_one: bool = True
    freebsd: bool = False
    receive_window: Count = 0
    largest_window: Annotated[int, Meta(ge=0, le=1 << 15)] = 0
    paced: bool | None = None
    holds: bool | None = None
    slow_start: Literal["standard", "hystart", "hystart++", ""] = ""
    variant: Literal["udp", "tcp"] = "udp"
    jitter_us: Annotated[float, Meta(ge=0.0, le=1e5)] = 5.0

    def __post_init__(self) -> None:
        for field, value, choices in (("kind", self.kind, KINDS), ("cc", self.cc, CCS[1:])):
            if value not in choices and not all(value.rpartition(":")):
                raise L4SError(f"sources.{field}: {unknown('value', value, choices)}, or MODULE:ATTRIBUTE")


class _Drawn(float):
    """A number that was drawn: for a field of whole numbers, its integer part."""


class Draw(Struct, frozen=True, forbid_unknown_fields=True):
    """How a field is drawn for each episode: uniformly in a range (or in its logarithm), or from choices."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[float | int | str, ...] = ()

    def sample(self, rng: np.random.Generator) -> float | int | str:
        """Draw one value."""
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.log:
            return _Drawn(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return _Drawn(rng.uniform(self.low, self.high))

    def largest(self) -> float | int | str:
        """Return the largest value that can be drawn (for the size of the arrays)."""
        numbers = [choice for choice in self.choices if not isinstance(choice, str)]
        return max(numbers) if numbers else (self.choices[0] if self.choices else _Drawn(self.high))

    def smallest(self) -> float | int | str:
        """Return the smallest value that can be drawn."""
        numbers = [choice for choice in self.choices if not isinstance(choice, str)]
        return min(numbers) if numbers else (self.choices[0] if self.choices else _Drawn(self.low))


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario.

    Attributes:
        name: Name, as `gym.make(..., scenario=name)` takes it.
        description: One line.
        horizon_s: Time after which an episode is truncated.
        warmup_s: Start of the episode that the statistics leave out.
        aqm: Default discipline, or `module:attribute` of one of your own (`l4s_gym.sim.discipline`).
        link: The bottleneck.
        sources: The flows.
        options: Options of the disciplines, a table for each (`l4s_gym.sim.options`).
        randomise: Path of a field (`link.rate_mbps`, `sources.0.rtt_ms`, `sources.*.rtt_ms`) -> `Draw`.
    """

    name: str
    sources: tuple[Source, ...]
    description: str = ""
    horizon_s: Annotated[float, Meta(gt=0.0, le=1e6)] = 60.0
    warmup_s: NonNegative = 5.0
    aqm: str = "dualpi2_freebsd"
    link: Link = Link()
    options: Options = Options()
    randomise: dict[str, Draw] = {}

    def __post_init__(self) -> None:
        options.of(self.options, disciplines.get(self.aqm), disciplines.is_plugged(self.aqm))
        if not any(source.count for source in self.sources):
            raise L4SError(f"scenario {self.name!r}: no flows; give at least one source with count >= 1")
        times = [time for time, _ in self.link.steps]
        if times != sorted(times):
            raise L4SError(f"scenario {self.name!r}: link.steps must be in order of time")
        if self.link.kind == "trace" and not self.link.trace:
            raise L4SError(f"scenario {self.name!r}: link.kind is 'trace' but link.trace names none")
        for source in self.sources:
            if source.size_bytes[0] > source.size_bytes[1]:
                raise L4SError(f"scenario {self.name!r}: size_bytes must be the smallest, then the largest page")
        for path, draw in self.randomise.items():
            if path in FIXED:
                raise L4SError(f"scenario {self.name!r}: randomise.{path} cannot be drawn; write one scenario for each")
            if any(isinstance(choice, float) and not math.isfinite(choice) for choice in draw.choices):
                raise L4SError(f"scenario {self.name!r}: randomise.{path}: a choice is not a number")
            if (not draw.choices and not 0.0 <= draw.low <= draw.high) or (draw.log and draw.low <= 0.0):
                raise L4SError(f"scenario {self.name!r}: randomise.{path}: give 0 <= low <= high, or choices")
        self._check_rates()

    def _check_rates(self) -> None:
        """Check that every rate that the link may get is within the bounds of a link."""
        rates: list[tuple[str, Any]] = [("link.rate_mbps", self.link.rate_mbps)]
        if "link.rate_mbps" in self.randomise:
            draw = self.randomise["link.rate_mbps"]
            rates += [("randomise.link.rate_mbps", rate) for rate in (draw.smallest(), draw.largest())]
        rates = [(field, rate) for field, rate in rates if not isinstance(rate, str)]
        rates += [("link.steps", rate * factor) for _, rate in rates for _, factor in self.link.steps]
        for field, rate in rates:
            if not LEAST_MBPS <= float(f"{rate:.9g}") <= MOST_MBPS:  # a product may differ in its last digit
                raise L4SError(
                    f"scenario {self.name!r}: {field}: a rate of {rate:g} Mbit/s; a link has {LEAST_MBPS:g} to "
                    f"{MOST_MBPS:.0f} (56 kbit/s to 400 Gbit/s)"
                )

    @property
    def own_laws(self) -> tuple[str, ...]:
        """Congestion controls of a user's own that a flow may use."""
        laws = [law for source in self.sources for law in (source.kind, source.cc)]
        for path, draw in self.randomise.items():
            if path.endswith((".kind", ".cc")):
                laws += [str(choice) for choice in draw.choices]
        return tuple(sorted({law for law in laws if ":" in law}))

    def own_code(self, aqm: str) -> bytes:
        """Return the content of their files, and of that of the discipline if it is a user's own, joined."""
        code = b"".join(source_code(spec, "congestion control") for spec in self.own_laws)
        return code + (source_code(aqm, "discipline") if disciplines.is_plugged(aqm) else b"")

    def replace(self, **changes: Any) -> Scenario:
        """Return a copy with fields replaced; dotted paths name inner fields (`**{"link.rate_mbps": 40}`)."""
        return _with_paths(self, changes)

    def sample(self, rng: np.random.Generator) -> Scenario:
        """Return the scenario of one episode, with its random fields drawn."""
        if not self.randomise:
            return self
        return _with_paths(self, {path: draw.sample(rng) for path, draw in self.randomise.items()})

    def largest(self) -> Scenario:
        """Return the scenario with every random field at its largest and packets at their shortest: most memory."""
        return _with_paths(
            self,
            {
                path: draw.smallest() if path.endswith(".packet_length") else draw.largest()
                for path, draw in self.randomise.items()
            },
        )

    @property
    def n_flows(self) -> int:
        """Number of flows."""
        return sum(source.count for source in self.sources)


def _assign(tree: Any, path: list[str], value: Any, whole: str) -> None:
    if not path:
        raise L4SError(f"no field {whole!r}: name a field of the source")
    head, rest = path[0], path[1:]
    if isinstance(tree, list):
        if head != "*" and not (head.isdigit() and int(head) < len(tree)):
            raise L4SError(f"no field {whole!r}: {head!r} is not one of the {len(tree)} sources")
        for index in range(len(tree)) if head == "*" else [int(head)]:
            _assign(tree[index], rest, value, whole)
    elif not isinstance(tree, dict):
        raise L4SError(f"no field {whole!r}: {head!r} is inside a single value")
    elif head not in tree and whole != f"options.own.{head}":
        raise unknown(f"field in {whole!r}", head, list(tree))
    elif rest:
        _assign(tree[head], rest, value, whole)
    else:
        kind = int if isinstance(tree.get(head), int) else float
        tree[head] = kind(value) if isinstance(value, _Drawn) else value


def _with_paths(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    tree = msgspec.to_builtins(scenario)
    tree["sources"] = list(tree["sources"])
    for path, value in changes.items():
        plain = value if isinstance(value, _Drawn) else msgspec.to_builtins(value)
        if path.startswith("options."):
            options.check(*path.split(".")[1:])
        _assign(tree, path.split("."), plain, path)
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Scenario:
    """Make a scenario from plain data; an error names the field."""
    place = f"scenario {tree.get('name', '?')!r}"
    try:
        options.check_tables(tree.get("options"))
    except L4SError as error:
        raise L4SError(f"{place}: {error}") from None
    return convert(Scenario, dict(tree), place)


def _folder() -> Any:
    return resources.files("l4s_gym") / "scenarios"


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of the scenarios that ship."""
    return tuple(sorted(item.name[:-5] for item in _folder().iterdir() if item.name.endswith(".toml")))


def suite(name: str) -> tuple[str, ...]:
    """Return the names of the scenarios of a suite of the benchmark's protocol (`SUITES`)."""
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return tuple(protocol()["suites"]["train" if name == "test" else name])


def suites_of(name: str) -> tuple[str, ...]:
    """Return the suites that contain a scenario."""
    return tuple(each for each in SUITES if name in suite(each))


@functools.cache
def protocol() -> dict[str, Any]:
    """Return the benchmark's protocol, as its file has it."""
    return read_toml(shipped.folder("benchmarks") / "protocol.toml")


@functools.cache
def _load_shipped(name: str) -> Scenario:
    return from_dict({"name": name, **parse_toml((_folder() / f"{name}.toml").read_bytes(), name)})


@functools.cache
def _load_drawn(seed: int) -> Scenario:
    from l4s_gym.sim.ranges import training  # which makes scenarios

    return training().draw(seed)


def _drawn(name: str) -> list[str]:
    """Return the names of the scenarios of `random:train` or `random:train:COUNT`."""
    suite, *rest = name.split(":")[1:]
    if suite != "train":
        raise unknown("set of random scenarios", name, ("random:train",))
    count = ":".join(rest) if rest else str(DRAWN)
    if not re.fullmatch("[1-9][0-9]{0,4}", count):
        raise L4SError(f"scenario {name!r}: give a number from 1 to 99999, such as random:train:{DRAWN}")
    return [f"random-{seed}" for seed in range(int(count))]


Given = str | Path | Scenario | Mapping[str, Any]
Scenarios = Given | Sequence[Given]
"""Types that `load` accepts, and `load_all`."""
OptionTables = Mapping[str, Mapping[str, Any]]
"""Options of disciplines, in tables of their names."""


def load(scenario: Given) -> Scenario:
    """Load a scenario by name, path of a TOML file or dictionary of its fields; return a `Scenario` as it is.

    `random-SEED` is drawn within the ranges for training of the benchmark's protocol.

    Raises:
        L4SError: Unknown name, unreadable file, unknown or invalid field.
    """
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, Mapping):
        return from_dict({"name": "given", **scenario})
    if not isinstance(scenario, str | Path):
        raise L4SError(f"scenario {scenario!r}: give a name, the path of a TOML file, or a dictionary of fields")
    if isinstance(scenario, str) and scenario in names():
        return _load_shipped(scenario)
    if isinstance(scenario, str) and (drawn := re.fullmatch("random-([0-9]{1,9})", scenario)):
        return _load_drawn(int(drawn[1]))
    path = Path(scenario)
    if path.suffix != ".toml":
        raise unknown("scenario", str(scenario), names())
    if not path.is_file():
        raise L4SError(f"{path}: no such scenario file; `l4s-gym scenarios` lists the ones that ship")
    return from_dict({"name": printable(path.stem), **read_toml(path)})


def load_all(
    scenarios: Scenarios, horizon_s: float | None = None, options: OptionTables | None = None
) -> tuple[Scenario, ...]:
    """Load scenarios, one of which is used in each episode.

    Args:
        scenarios: One as `load` takes it, `suite:NAME` for all of a suite, `random:train` for `DRAWN` random ones
            (`random-0` and on; `random:train:COUNT` for another number), or a list of these.
        horizon_s: Time after which an episode is truncated; None: the scenario's.
        options: In place of the scenario's.

    Raises:
        L4SError: As `load`; unknown suite or option; no scenario, or two with the same name.
    """
    several: Sequence[Any] = scenarios if isinstance(scenarios, list | tuple) else [scenarios]
    found: list[Scenario] = []
    for each in several:
        kind, _, name = each.partition(":") if isinstance(each, str) else ("", "", "")
        members = suite(name) if kind == "suite" else _drawn(each) if kind == "random" else (each,)
        found += [load(member) for member in members]
    if not found:
        raise L4SError("scenario: the list is empty: give at least one")
    called = [each.name for each in found]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise L4SError(f"scenario: two are called {twice!r}: give each once, with a name of its own")
    if options:
        if not isinstance(options, Mapping) or not all(isinstance(table, Mapping) for table in options.values()):
            raise L4SError(f'options={options!r}: give a table for each discipline, as {{"pie": {{"target_ms": 10}}}}')
        found = [each.replace(**option_paths(options)) for each in found]
    if horizon_s is None:
        return tuple(found)
    rest = [{path: draw for path, draw in each.randomise.items() if path != "horizon_s"} for each in found]
    return tuple(s.replace(horizon_s=horizon_s, randomise=drawn) for s, drawn in zip(found, rest, strict=True))


def digest(scenario: str | Path | Scenario) -> str:
    """Return the SHA-256 of a scenario: its fields as JSON with sorted names, its trace's content, a user's own code.

    Only option tables that differ from their defaults count: a new discipline changes no digest.
    """
    chosen = load(scenario)
    tree, defaults = msgspec.to_builtins(chosen), msgspec.to_builtins(Options())
    tree["options"] = {name: table for name, table in tree["options"].items() if table != defaults[name]}
    content = msgspec.json.encode(tree, order="deterministic") + chosen.own_code(chosen.aqm)
    if chosen.link.kind == "trace":
        content += traces.load(chosen.link.trace).content()
    return hashlib.sha256(content).hexdigest()
