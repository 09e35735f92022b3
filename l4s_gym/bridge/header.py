"""The decision record as a C header, made from the schema: ``python -m l4s_gym.bridge.header``.

Writes `kernel/core/l4s_record.h` of the checkout, which the tests compare with the schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from l4s_gym import shipped
from l4s_gym.data.records import layout_digest
from l4s_gym.schema import FIELDS, RECORD, SCHEMA_VERSION

_C_TYPES: Final = {"u1": "uint8_t", "u2": "uint16_t", "u4": "uint32_t", "u8": "uint64_t"}


def record_header() -> str:
    """Text of `l4s_record.h`: the packed struct of `schema.RECORD`, its size and the digest of its layout."""
    digest = ", ".join(f"0x{byte:02x}" for byte in layout_digest())
    units = {field.name: "0, 1, 2" if field.name == "action" else field.unit for field in FIELDS}
    members = "\n".join(f"\t{_C_TYPES[field.dtype]} {field.name}; /* {units[field.name]} */" for field in FIELDS)
    return f"""\
/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The decision record, little-endian and packed. Made from l4s_gym/schema.py
 * by `python -m l4s_gym.bridge.header`: change it there.
 */
#ifndef L4S_RECORD_H
#define L4S_RECORD_H

#include "l4s_types.h"

#define L4S_SCHEMA_VERSION {SCHEMA_VERSION}
#define L4S_RECORD_SIZE {RECORD.itemsize}
#define L4S_LAYOUT {{ {digest} }}

/* actions: 0 enqueue, 1 drop, 2 mark */
struct L4S_PACKED l4s_record {{
{members}
}};

#endif
"""


def header_path() -> Path:
    """Place of the header in a checkout of the repository."""
    return shipped.folder("kernel") / "core" / "l4s_record.h"


if __name__ == "__main__":
    header_path().write_text(record_header())
