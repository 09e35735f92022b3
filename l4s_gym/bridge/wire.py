"""The wire protocol as NumPy types: entries that a server sends, commands that it takes.

The layout is that of `kernel/core/l4s_wire.h`; the record in it is `schema.RECORD`. All numbers are little-endian.
What a server sends is a plain array of `ENTRY`, so thousands of entries are decoded at once and nothing is unpacked
one by one: ``entries["row"]["record"]["sequence"]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.records import layout_digest
from l4s_gym.data.stream import Records
from l4s_gym.schema import MAX_PROB, RECORD, SCHEMA_VERSION

Entries = npt.NDArray[np.void]

MAGIC: Final = 0x344C
VERSION: Final = 1
ENTRY_SIZE: Final = 192
COMMAND_SIZE: Final = 64
RECORD_AT: Final = 16
"""Bytes before the body of an entry, which begins with the record in ROW and ASK."""

# Kinds of entries.
HELLO, ROW, ASK, EVENT, STATUS, ERROR, LAW = range(1, 8)
# Kinds of commands.
SUBSCRIBE, ATTACH, DETACH, DECIDE, CONFIGURE, GET_STATUS, DIRECT, SET_LAW, GET_LAW, SET_PROB = range(1, 11)
COMMANDS: Final = (
    "?", "SUBSCRIBE", "ATTACH", "DETACH", "DECIDE", "CONFIGURE", "GET_STATUS", "DIRECT", "SET_LAW", "GET_LAW",
    "SET_PROB",
)  # fmt: skip
ASK_HEAD: Final = MAGIC | VERSION << 16 | ASK << 24
"""First four bytes of an ASK."""
# Codes of errors.
(
    E_MALFORMED, E_BUSY, E_NOT_CONTROLLER, E_REFUSED, E_NO_DEVICE, E_TOO_MANY, E_NOT_OFFERED, E_OUT_OF_BOUNDS,
) = range(1, 9)  # fmt: skip

EVENTS: Final = {
    1: "the shield took a queue back: delay",
    2: "the shield took a queue back: drops",
    3: "the shield gave a queue free",
    16: "a controller came",
    17: "the controller left",
    18: "the daemon lost the queue",
    19: "the daemon has the queue again",
}
"""Kinds of events, in words."""
DEVICE_LOST: Final = 18
DEVICE_BACK: Final = 19
REFUSALS: Final = ("accepted", "detached", "malformed", "expired", "out_of_order", "unasked", "shielded")
"""Why decisions are refused: `enum l4s_refusal`."""
VARIANTS: Final = ("testbed", "rfc9332", "linux")
AT_ARRIVAL: Final = VARIANTS[:1]
"""Variants that decide at arrival; the others at departure."""

ANSWERS: Final = 4
"""Answers of a queue that wait for its packets, one each: where more come, the oldest go."""

SHIELD: Final = (
    "shield_c_us", "shield_l_us", "shield_drops", "shield_window", "shield_hold_us",
    "shield_hits",
)  # fmt: skip
"""Bounds of the shield: arguments of CONFIGURE, and what STATUS says is in force, in order."""

LAW_PARAMETERS: Final = ("target", "alpha", "beta", "coupling", "threshold")
"""Parameters of the native law that a controller may set: arguments of SET_LAW, in order. `threshold` is the foot of
L's ramp, or its step."""
FACTOR: Final = 65536
"""The factor 1 of the operator's value in SET_LAW."""
LAW_VALUES: Final = {
    "testbed": (
        "target_us", "tupdate_us", "alpha", "beta", "step_ns", "drr_weight", "quirks", "max_burst_us",
        "max_ecn_threshold",
    ),
    "rfc9332": (
        "target_us", "tupdate_us", "alpha_q", "beta_q", "coupling", "min_th_ns", "range_ns", "classic_weight", "th_len",
        "p_c_max", "shift_ns",
    ),
    "linux": (
        "target_us", "tupdate_us", "pi2_alpha", "pi2_beta", "coupling_factor", "step_ns", "step_packets",
        "classic_protection", "min_qlen_step", "drop_on_overload",
    ),
}  # fmt: skip
"""Parameters of each variant's law and scheduler whose values HELLO tells, in order, by the names that the queue's
configuration has for them."""
CERTAIN: Final = 1 << 31
"""The probability 1 in SET_PROB."""
NO_PROB: Final = (1 << 32) - 1
"""In LAW: no probability is set."""

HELLO_BODY: Final = np.dtype(
    [
        ("schema_version", "<u2"), ("record_size", "<u2"), ("entry_size", "<u2"), ("command_size", "<u2"),
        ("layout", "u1", (8,)), ("session", "<u8"), ("clock_us", "<u8"), ("rate_bps", "<u8"), ("ring_entries", "<u4"),
        ("variant", "u1"), ("direct", "u1"), ("reserved", "u1", (2,)), ("name", "S32"),
        ("law_low", "<u4", (5,)), ("law_high", "<u4", (5,)), ("law_lifetime_ms", "<u4"),
        ("prob_high", "<u4", (2,)), ("law_value", "<u4", (11,)),
    ]
)  # fmt: skip
ROW_BODY: Final = np.dtype(
    [
        ("record", RECORD), ("reserved", "u1"), ("served_bytes", "<u8"), ("power_bytes", "<u8"),
        ("delay_c_ns", "<u8"), ("delay_l_ns", "<u8"),
    ]
)  # fmt: skip
EVENT_BODY: Final = np.dtype([("time_us", "<u8"), ("value", "<u8"), ("kind", "u1"), ("queue", "u1")])
STATUS_BODY: Final = np.dtype(
    [
        ("clock_us", "<u8"), ("packets", "<u8", (2,)), ("agent", "<u8", (2,)), ("fallback", "<u8", (2,)),
        ("drops", "<u8", (2,)), ("marks", "<u8", (2,)), ("lost", "<u8"), ("refused", "<u4", (7,)),
        ("trips", "<u4", (2,)), ("interval", "<u4"), ("latency_p50_us", "<u4"), ("latency_p99_us", "<u4"),
        ("held", "u1"), ("model", "u1"), ("controls", "u1"), ("reserved", "u1"), ("shield", "<u4", (6,)),
    ]
)  # fmt: skip
ERROR_BODY: Final = np.dtype([("code", "<u2"), ("command", "u1"), ("reserved", "u1"), ("text", "S160")])
LAW_BODY: Final = np.dtype(
    [
        ("clock_us", "<u8"), ("rate_bps", "<u8"), ("offered_bytes", "<u8", (2,)), ("left_ns", "<u8", (2,)),
        ("served_bytes", "<u8"), ("power_bytes", "<u8"), ("delay_c_ns", "<u8"), ("delay_l_ns", "<u8"),
        ("offered", "<u4", (2,)), ("left", "<u4", (2,)), ("marks", "<u4", (2,)), ("drops", "<u4", (2,)),
        ("queued_bytes", "<u4", (2,)), ("prob", "<u4"), ("factor", "<u4", (5,)), ("lasts_ms", "<u4"), ("sets", "<u4"),
        ("expired", "<u4"), ("refused", "<u4"), ("set_prob", "<u4", (2,)), ("flows", "<u2", (2,)),
    ]
)  # fmt: skip
BODIES: Final = {
    "hello": HELLO_BODY, "row": ROW_BODY, "event": EVENT_BODY, "status": STATUS_BODY, "error": ERROR_BODY,
    "law": LAW_BODY,
}  # fmt: skip

ENTRY: Final[np.dtype[np.void]] = np.dtype(
    {
        "names": ["magic", "version", "kind", "lost", "tag", *BODIES],
        "formats": ["<u2", "u1", "u1", "<u4", "<u8", *BODIES.values()],
        "offsets": [0, 2, 3, 4, 8, *[RECORD_AT] * len(BODIES)],
        "itemsize": ENTRY_SIZE,
    }
)
"""One entry; the bodies share their memory, and `kind` says which one is valid."""

COMMAND: Final[np.dtype[np.void]] = np.dtype(
    [
        ("magic", "<u2"), ("version", "u1"), ("kind", "u1"), ("queue", "u1"), ("action", "u1"), ("reserved", "<u2"),
        ("tag", "<u8"), ("sequence", "<u8"), ("expires_us", "<u8"), ("args", "<u4", (8,)),
    ]
)  # fmt: skip

_PACK: Final = Struct("<HBBBBHQQQ8I").pack


HEADS: Final = Struct(f"<II{ENTRY_SIZE - 8}x").iter_unpack
"""First four bytes, and `lost`, of each of whole entries' bytes."""

_PLAIN: Final = np.dtype((np.void, ENTRY_SIZE))
"""An entry as plain bytes, which NumPy copies faster than field by field."""


@dataclass(frozen=True)
class Hello:
    """The first message of a server.

    Attributes:
        session: Another number after each start of the queue: sequence numbers and totals start over.
        clock_us: Its clock, of `time_us` and of the expiry of decisions, when it said so.
        rate_bps: Of the link, as configured; 0 where it is not known.
        variant: One of `VARIANTS`.
        ring_entries: Entries that wait for a slow reader before the oldest are lost.
        name: Of the server.
        direct: Whether a controller can have a socket of the queue's own: `DIRECT`.
        law: The operator's bounds of each factor of `set_law`, by the names of `LAW_PARAMETERS`; both 1 where the law
            has no such parameter. Empty: the queue takes none.
        law_lifetime_ms: Longest life of what `set_law` and `set_probabilities` set.
        prob_high: The operator's bounds of `set_probabilities`, C and L; both 0: the queue takes none.
        law_values: The operator's parameters, by the names of `LAW_VALUES`, each at most 2^32 - 1. Empty: the queue
            does not tell them.
    """

    session: int
    clock_us: int
    rate_bps: int
    variant: str
    ring_entries: int
    name: str
    direct: bool = False
    law: dict[str, tuple[float, float]] = field(default_factory=dict)
    law_lifetime_ms: int = 0
    prob_high: tuple[float, float] = (0.0, 0.0)
    law_values: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """Counters since the start of the queue; pairs are C, L.

    Attributes:
        clock_us: Clock of the queue.
        packets: Offered.
        agent: Of them decided by the controller or the model.
        fallback: Asked about and not answered in time: decided by the native law.
        drops: Dropped.
        marks: Marked.
        lost: Rows lost to this reader.
        refused: Decisions that were refused, by reason: `REFUSALS` without the first.
        trips: How often the shield took the queue back.
        interval: Decision interval; 0: nobody is asked.
        latency_p50_us: From ask to answer, median.
        latency_p99_us: The same, 99th percentile.
        held: Which queues the shield holds.
        model: Whether a model is loaded.
        controls: Whether you are the controller.
        shield: Bounds in force, by the names of `SHIELD`: the operator's, or tighter ones of the controller.
    """

    clock_us: int
    packets: tuple[int, int]
    agent: tuple[int, int]
    fallback: tuple[int, int]
    drops: tuple[int, int]
    marks: tuple[int, int]
    lost: int
    refused: dict[str, int]
    trips: tuple[int, int]
    interval: int
    latency_p50_us: int
    latency_p99_us: int
    held: tuple[bool, bool]
    model: bool
    controls: bool
    shield: dict[str, int]


@dataclass(frozen=True)
class Law:
    """What a controller has set that is in force, and what the queue has done since its start.

    Pairs are C, L. Counts of packets start over after 2^32.

    Attributes:
        factors: Of the operator's values, by the names of `LAW_PARAMETERS`.
        set_prob: Probabilities of C and L that decide in the law's place; None: the law decides.
        lasts_ms: For so long still; 0: the operator's hold.
        sets: How often parameters or probabilities were set.
        expired: How often their lifetime ended.
        refused: How often they were out of the operator's bounds.
        clock_us: Clock of the queue.
        rate_bps: Of the link, as configured; 0 where it is not known.
        offered_bytes: Bytes that arrived.
        offered: Packets that arrived.
        left: Packets sent.
        left_ns: Sum of their sojourns, ns.
        marks: Packets marked.
        drops: Packets dropped.
        queued_bytes: Bytes in the queue.
        flows: Flows that offered a packet in the last half second; of many, some may count as one.
        prob: Probability of the law, 0 to 1; in the testbed's variant that of C.
        entry: The element of `Entries` that says so.
    """

    factors: dict[str, float]
    set_prob: tuple[float, float] | None
    lasts_ms: int
    sets: int
    expired: int
    refused: int
    clock_us: int
    rate_bps: int
    offered_bytes: tuple[int, int]
    offered: tuple[int, int]
    left: tuple[int, int]
    left_ns: tuple[int, int]
    marks: tuple[int, int]
    drops: tuple[int, int]
    queued_bytes: tuple[int, int]
    flows: tuple[int, int]
    prob: float
    entry: Any = field(repr=False, compare=False)


def decode(data: bytes | bytearray | memoryview) -> Entries:
    """Decode the bytes of complete entries to an array (n,), without a copy."""
    return np.frombuffer(data, ENTRY)


def encode(entries: Entries) -> bytes:
    """Encode entries or commands to bytes."""
    return entries.tobytes()


def take(entries: Entries, index: npt.NDArray[Any]) -> Entries:
    """Return ``entries[index]`` for an array of indices or a mask, faster than NumPy does."""
    taken: Entries = entries.view(_PLAIN)[index].view(ENTRY)
    return taken


def select(entries: Entries, kind: int) -> Entries:
    """The entries of a kind, copied."""
    return take(entries, entries["kind"] == kind)


def join(parts: list[Entries]) -> Entries:
    """Concatenate entries."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.empty(0, _PLAIN), *(part.view(_PLAIN) for part in parts)]).view(ENTRY)


def records_of(entries: Entries) -> Records:
    """The records (n,) of ROW and ASK entries, contiguous and writable."""
    raw = entries.view(np.uint8).reshape(len(entries), ENTRY_SIZE)
    body: Records = raw[:, RECORD_AT : RECORD_AT + RECORD.itemsize].copy().view(RECORD)[:, 0]
    return body


def entry(kind: int, count: int = 1, *, tag: int = 0, lost: int = 0) -> Entries:
    """New entries (count,) of a kind with an empty body."""
    made = np.zeros(count, ENTRY)
    made["magic"], made["version"], made["kind"], made["tag"], made["lost"] = MAGIC, VERSION, kind, tag, lost
    return made


def rows(records: Records, kind: int = ROW) -> Entries:
    """ROW or ASK entries of records (n,), with totals of 0."""
    made = entry(kind, len(records))
    raw = made.view(np.uint8).reshape(len(made), ENTRY_SIZE)
    plain = np.ascontiguousarray(records).view(np.uint8).reshape(len(made), -1)
    raw[:, RECORD_AT : RECORD_AT + RECORD.itemsize] = plain
    return made


def hello_entry(hello: Hello) -> Entries:
    """The entry of a HELLO, for servers."""
    made = entry(HELLO)
    body = made["hello"]
    body["schema_version"], body["record_size"] = SCHEMA_VERSION, RECORD.itemsize
    body["entry_size"], body["command_size"] = ENTRY_SIZE, COMMAND_SIZE
    body["layout"] = np.frombuffer(layout_digest(), np.uint8)
    for name in ("session", "clock_us", "rate_bps", "ring_entries", "direct"):
        body[name] = getattr(hello, name)
    body["law_lifetime_ms"] = hello.law_lifetime_ms
    body["prob_high"] = np.round(FACTOR * np.array(hello.prob_high))
    if hello.law:
        body["law_low"], body["law_high"] = np.round(FACTOR * np.array([*hello.law.values()])).T
    for index, value in enumerate(hello.law_values.values()):
        body["law_value"][:, index] = value
    body["variant"], body["name"] = VARIANTS.index(hello.variant), hello.name.encode()[:31]
    return made


def command(
    kind: int,
    *args: int,
    tag: int = 0,
    sequence: int = 0,
    queue: int = 0,
    action: int = 0,
    expires_us: int = 0,
) -> bytes:
    """The bytes of one command: what `COMMAND` says, but in a hundredth of the time that NumPy takes for one."""
    every = (*args, *(0,) * (8 - len(args)))
    return _PACK(MAGIC, VERSION, kind, queue, action, 0, tag, sequence, expires_us, *every)


def hello_fault(hello: Any) -> str | None:
    """What a HELLO entry (one element of `Entries`) says that does not fit this library; None: all fits."""
    if hello["magic"] != MAGIC or hello["kind"] != HELLO:
        return "does not speak the protocol"
    body = hello["hello"]
    if hello["version"] != VERSION:
        return f"speaks version {hello['version']} of the protocol, not {VERSION}"
    if body["entry_size"] != ENTRY_SIZE or body["command_size"] != COMMAND_SIZE:
        return f"has entries of {body['entry_size']} bytes, not {ENTRY_SIZE}"
    if body["schema_version"] != SCHEMA_VERSION:
        return f"has version {body['schema_version']} of the record, not {SCHEMA_VERSION}"
    if body["record_size"] != RECORD.itemsize or bytes(body["layout"]) != layout_digest():
        return f"has records of another layout ({body['record_size']} bytes; here {RECORD.itemsize})"
    return None


def read_hello(hello: Any) -> Hello:
    """A HELLO entry (one element of `Entries`) that has no fault."""
    body = hello["hello"]
    variant = int(body["variant"])
    return Hello(
        session=int(body["session"]),
        clock_us=int(body["clock_us"]),
        rate_bps=int(body["rate_bps"]),
        variant=VARIANTS[variant] if variant < len(VARIANTS) else str(variant),
        ring_entries=int(body["ring_entries"]),
        name=text_of(body["name"]),
        direct=bool(body["direct"]),
        law=_bounds(body) if body["law_lifetime_ms"] else {},
        law_lifetime_ms=int(body["law_lifetime_ms"]),
        prob_high=(int(body["prob_high"][0]) / FACTOR, int(body["prob_high"][1]) / FACTOR),
        law_values=_values(body["law_value"].tolist(), variant),
    )


def _bounds(body: Any) -> dict[str, tuple[float, float]]:
    low, high = (body[name].astype(np.float64) / FACTOR for name in ("law_low", "law_high"))
    return dict(zip(LAW_PARAMETERS, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def _values(told: list[int], variant: int) -> dict[str, int]:
    names = LAW_VALUES[VARIANTS[variant]] if variant < len(VARIANTS) and any(told) else ()
    return dict(zip(names, told, strict=False))


def read_law(entry: Any) -> Law:
    """A LAW entry (one element of `Entries`)."""
    body = entry["law"]
    pairs = ("offered_bytes", "offered", "left", "left_ns", "marks", "drops", "queued_bytes", "flows")
    numbers = ("lasts_ms", "sets", "expired", "refused", "clock_us", "rate_bps")
    values: dict[str, Any] = {name: int(body[name]) for name in numbers}
    values |= {name: tuple(body[name].tolist()) for name in pairs}
    factors = dict(zip(LAW_PARAMETERS, (body["factor"] / FACTOR).tolist(), strict=True))
    set_prob = None if body["set_prob"][0] == NO_PROB else tuple((body["set_prob"] / CERTAIN).tolist())
    return Law(factors=factors, set_prob=set_prob, prob=int(body["prob"]) / MAX_PROB, entry=entry, **values)


def read_status(entry: Any) -> Status:
    """A STATUS entry (one element of `Entries`)."""
    body = entry["status"]

    def pair(name: str) -> tuple[int, int]:
        return int(body[name][0]), int(body[name][1])

    return Status(
        clock_us=int(body["clock_us"]),
        packets=pair("packets"),
        agent=pair("agent"),
        fallback=pair("fallback"),
        drops=pair("drops"),
        marks=pair("marks"),
        lost=int(body["lost"]),
        refused=dict(zip(REFUSALS[1:], body["refused"].tolist()[1:], strict=True)),
        trips=pair("trips"),
        interval=int(body["interval"]),
        latency_p50_us=int(body["latency_p50_us"]),
        latency_p99_us=int(body["latency_p99_us"]),
        held=(bool(body["held"] & 1), bool(body["held"] & 2)),
        model=bool(body["model"]),
        controls=bool(body["controls"]),
        shield=dict(zip(SHIELD, body["shield"].tolist(), strict=True)),
    )


def text_of(raw: bytes) -> str:
    """Decode a NUL-padded text of the wire, safe to print."""
    from l4s_gym.data.files import printable

    return printable(bytes(raw).decode("utf-8", "replace"))
