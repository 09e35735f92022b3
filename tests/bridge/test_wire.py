"""The wire protocol in Python is that of the C header."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.bridge import wire
from l4s_gym.bridge.header import header_path, record_header
from l4s_gym.schema import RECORD
from tests.bridge.server import log_of

CORE = header_path().parent
STRUCTS = {
    "l4s_hello": wire.HELLO_BODY,
    "l4s_row": wire.ROW_BODY,
    "l4s_event_body": wire.EVENT_BODY,
    "l4s_status": wire.STATUS_BODY,
    "l4s_error": wire.ERROR_BODY,
    "l4s_law": wire.LAW_BODY,
    "l4s_command": wire.COMMAND,
    "l4s_record": RECORD,
}


def constants() -> dict[str, int]:
    """The enums and the numbers of the wire header, comments left out."""
    text = re.sub(r"/\*.*?\*/", "", (CORE / "l4s_wire.h").read_text(), flags=re.S)
    pairs = re.findall(r"\bL4S_(\w+) = (\d+)", text) + re.findall(r"#define L4S_(\w+) (\w+)\b", text)
    return {name: int(value, 0) for name, value in pairs}


def test_the_record_header_is_made_from_the_schema() -> None:
    assert header_path().read_text() == record_header()


def test_constants() -> None:
    c = constants()
    for name in ("HELLO", "ROW", "ASK", "EVENT", "STATUS", "ERROR", "LAW"):
        assert c.pop(name) == getattr(wire, name)
    for number, name in enumerate(wire.COMMANDS[1:], 1):
        assert c.pop(name) == getattr(wire, name) == number
    for name in [each for each in c if each.startswith("E_")]:
        assert c.pop(name) == getattr(wire, name)
    events = {name: c.pop(name) for name in list(c) if name.startswith("EVENT_")}
    assert set(events.values()) | {1, 2, 3} == set(wire.EVENTS)
    assert events["EVENT_DEVICE_LOST"] == wire.DEVICE_LOST and events["EVENT_DEVICE_BACK"] == wire.DEVICE_BACK
    sizes = {"WIRE_MAGIC": wire.MAGIC, "WIRE_VERSION": wire.VERSION, "ENTRY_SIZE": wire.ENTRY_SIZE}
    assert c == sizes | {"COMMAND_SIZE": wire.COMMAND_SIZE, "NO_PROB": wire.NO_PROB}


def test_names_of_the_core() -> None:
    core = (CORE / "l4s_core.h").read_text()
    body = re.sub(r"/\*.*?\*/", "", re.findall(r"enum l4s_refusal \{(.*?)\}", core, re.S)[0], flags=re.S)
    names = [name.strip().removeprefix("L4S_").lower() for name in body.split(",")]
    assert names == [*wire.REFUSALS, "refusals"]
    shield = re.findall(r"\bX\((shield_\w+)", core)
    assert tuple(shield) == wire.SHIELD
    bounds = re.findall(r"\bX\(law_(\w+)_(?:low|high)", core)
    assert tuple(bounds[::2]) == tuple(bounds[1::2]) == wire.LAW_PARAMETERS
    assert f"#define L4S_SAME {wire.FACTOR}\t" in core
    assert f"#define L4S_ANSWERS {wire.ANSWERS}\n" in core


def test_layout_by_the_compiler(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    lines = []
    for struct, dtype in {**STRUCTS, "l4s_entry": wire.ENTRY}.items():
        lines.append(f'printf("{struct} . %zu %zu\\n", (size_t)0, sizeof(struct {struct}));')
        for name in dtype.names or ():
            place = f"u.{name}" if name in wire.BODIES and struct == "l4s_entry" else name
            member = f"((struct {struct} *)0)->{place}"
            lines.append(f'printf("{struct} {name} %zu %zu\\n", offsetof(struct {struct}, {place}), sizeof({member}));')
    program = "\n".join(lines)
    source = tmp_path / "layout.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "l4s_wire.h"\nint main(void) {{\n{program}\nreturn 0; }}\n'
    )
    subprocess.run([compiler, "-std=c11", f"-I{CORE}", "-o", tmp_path / "layout", source], check=True)
    told = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout
    found = {(line.split()[0], line.split()[1]): tuple(map(int, line.split()[2:])) for line in told.splitlines()}
    expected: dict[tuple[str, str], tuple[int, ...]] = {}
    for struct, dtype in {**STRUCTS, "l4s_entry": wire.ENTRY}.items():
        expected[struct, "."] = (0, dtype.itemsize)
        for name, (inner, offset, *_) in (dtype.fields or {}).items():
            expected[struct, name] = (int(offset), inner.itemsize)
    assert found == expected


def test_rows_there_and_back() -> None:
    records = log_of(1000)
    entries = wire.rows(records)
    back = wire.decode(entries.tobytes())
    assert len(back) == 1000 and (back["kind"] == wire.ROW).all() and (back["magic"] == wire.MAGIC).all()
    np.testing.assert_array_equal(wire.records_of(back), records)
    np.testing.assert_array_equal(back["row"]["record"]["sequence"], records["sequence"])
    mixed = wire.join([back[:3], wire.entry(wire.EVENT), back[3:5]])
    assert mixed["kind"].tolist() == [2, 2, 2, 4, 2, 2]
    np.testing.assert_array_equal(wire.records_of(wire.select(mixed, wire.ROW)), records[:5])


def test_commands() -> None:
    raw = wire.command(wire.DECIDE, tag=7, sequence=1 << 40, queue=1, action=2, expires_us=99)
    assert len(raw) == wire.COMMAND_SIZE
    command = np.frombuffer(raw, wire.COMMAND)[0]
    assert (command["magic"], command["version"], command["kind"]) == (wire.MAGIC, wire.VERSION, wire.DECIDE)
    assert (command["sequence"], command["queue"], command["action"]) == (1 << 40, 1, 2)
    assert (command["expires_us"], command["tag"], command["reserved"]) == (99, 7, 0)
    shield = np.frombuffer(wire.command(wire.CONFIGURE, 1, 2, 3, 4, 5), wire.COMMAND)[0]
    assert shield["args"].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]


def test_hello_there_and_back() -> None:
    law = {name: (0.25, 1.0 + n) for n, name in enumerate(wire.LAW_PARAMETERS)}
    bounds: dict[str, Any] = {"law": law, "law_lifetime_ms": 700, "prob_high": (1.0, 0.25)}
    bounds["law_values"] = {name: 10 + n for n, name in enumerate(wire.LAW_VALUES["rfc9332"])}
    hello = wire.Hello(1 << 60, 5, 8_000_000, "rfc9332", 4096, "router", direct=True, **bounds)
    entry = wire.hello_entry(hello)[0]
    assert wire.hello_fault(entry) is None
    assert wire.read_hello(entry) == hello
    entry["hello"]["law_value"] = 0  # an older server
    assert wire.read_hello(entry).law_values == {}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("magic", 1, "does not speak the protocol"),
        ("kind", wire.ROW, "does not speak the protocol"),
        ("version", 2, "version 2 of the protocol, not 1"),
        ("entry_size", 100, "entries of 100 bytes"),
        ("schema_version", 9, "version 9 of the record"),
        ("record_size", 7, "another layout"),
        ("layout", 0, "another layout"),
    ],
)
def test_hello_of_another_kind(name: str, value: int, said: str) -> None:
    entry: Any = wire.hello_entry(wire.Hello(1, 2, 3, "testbed", 4, "x"))
    target = entry if name in ("magic", "kind", "version") else entry["hello"]
    target[name] = value
    assert said in str(wire.hello_fault(entry[0]))


def test_names_of_servers_are_made_printable() -> None:
    entry = wire.hello_entry(wire.Hello(1, 2, 3, "testbed", 4, "x"))
    entry["hello"]["name"] = b"\x1b[31mred\xff"
    entry["hello"]["variant"] = 9
    hello = wire.read_hello(entry[0])
    assert hello.name.isprintable() and "red" in hello.name
    assert hello.variant == "9"
