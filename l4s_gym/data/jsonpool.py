"""Experience pools as JSON: the paper's lists with a version and feature names; reading them runs no code.

    {"format": "l4s-gym experience pool", "schema_version": 1, "features": ["queue_type", ...], "as_logged": false,
     "states": [[0, 150000, ...], ...], "actions": [0, ...], "rewards": [0.06, ...], "dones": [false, ...]}

States are in kernel units: what the kernel knew before each decision, with `null` for an accumulated probability that
unknown; or, `as_logged`, the printed values. Actions are what the kernel decided: 0 enqueue, 1 drop, 2 mark.
The reward is that of the public pools, packet_length (B) / (current_queue_delay (us) + 1000). `dones` is true at the
last row of each run. For decisions of the simulator, `simulator` is its fingerprint.

Read back, the accumulated probability and the drops of the interval become the recorded
`accumulated_probability_before` (`causal.UNKNOWN` for `null`) and `interval_drops`: nothing is rebuilt. With several
runs, the row numbers have gaps between the runs, as a pool does not say whether rows are missing.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal

import msgspec
import numpy as np

from l4s_gym.data.causal import BEFORE, UNKNOWN, CausalStream, Floats, observable
from l4s_gym.data.files import PathLike, compressed_write, open_compressed, printable, read_error
from l4s_gym.data.pools import MAX_POOL_BYTES, Rows, single
from l4s_gym.data.records import bounds
from l4s_gym.data.steps import logged_rewards
from l4s_gym.data.stream import Progress, Records, RowStream, RunSplitter
from l4s_gym.errors import L4SError
from l4s_gym.schema import OBSERVED, RECORD, SCHEMA_VERSION

FORMAT: Final = "l4s-gym experience pool"

_Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON object."""

    format: Literal["l4s-gym experience pool"]
    schema_version: int
    features: list[str]
    as_logged: bool
    states: list[Annotated[list[_Whole | None], msgspec.Meta(min_length=1)]]
    actions: list[_Whole]
    rewards: list[float]
    dones: list[bool]
    simulator: str = ""


def _stored_names(features: Sequence[str], as_logged: bool) -> list[str]:
    """Return the record fields in which the features are stored."""
    return [name if as_logged else BEFORE.get(name, name) for name in features]


def _fill(pool: _File) -> tuple[Records, list[str]]:
    names = _stored_names(pool.features, pool.as_logged)
    records = np.zeros(len(pool.states), RECORD)
    for place, name in enumerate([*names, "action"]):
        column = [row[place] for row in pool.states] if place < len(names) else list(pool.actions)
        missing = None if name != BEFORE["accumulated_probability"] else UNKNOWN
        if missing is not None:
            column = [missing if value is None else value for value in column]
        low, high = bounds(name)
        bad = next((row for row, value in enumerate(column) if value is None or not low <= value <= high), None)
        if bad is not None:
            value = msgspec.json.encode(column[bad]).decode()
            raise L4SError(f"row {bad}: {name} is {value}, not a whole number from {low} to {high}: kernel units")
        records[name] = np.array(column, np.uint64)
    if any(pool.dones[:-1]):
        ends = [0, *(row + 1 for row, done in enumerate(pool.dones[:-1]) if done), len(records)]
        for first, end in pairwise(ends):
            records["sequence"][first:end] = 2 * np.arange(end - first) + 1
        names.append("sequence")
    return records, [*names, "action"]


def _parse(data: bytes, source: str) -> Rows:
    pool = msgspec.json.decode(data, type=_File)
    if pool.schema_version != SCHEMA_VERSION:
        raise L4SError(f"has version {pool.schema_version} of the schema, not {SCHEMA_VERSION}: convert the log again")
    if not pool.features or pool.features != [name for name in OBSERVED if name in pool.features]:
        raise L4SError(f"has features {', '.join(pool.features) or '(none)'}: give some of {', '.join(OBSERVED)}")
    if not pool.states:
        raise L4SError("holds no step: convert the log again")
    if any(len(column) != len(pool.states) for column in (pool.actions, pool.rewards, pool.dones)):
        raise L4SError(f"has {len(pool.states)} states, but not as many actions, rewards and dones: convert it again")
    if any(len(row) != len(pool.features) for row in pool.states):
        raise L4SError(f"has states of other than {len(pool.features)} features: convert the log again")
    records, names = _fill(pool)
    return Rows(records, frozenset(names), source, simulator=pool.simulator)


def load_json_pool(path: PathLike, *, max_bytes: int = MAX_POOL_BYTES) -> Rows:
    """Read an experience pool of `write_pool`.

    Args:
        path: JSON file, plain or compressed.
        max_bytes: Largest size, decompressed; larger files are refused.

    Raises:
        L4SError: The file cannot be read, is too large, or is not such a pool.
    """
    try:
        with open_compressed(path) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise read_error(path, error) from error
    if len(data) > max_bytes:
        raise L4SError(f"{path}: has more than {max_bytes} bytes: raise max_bytes if you trust it")
    try:
        return _parse(data, os.path.basename(path))
    except (L4SError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        remedy = "" if isinstance(error, L4SError) else ": expected a pool such as `l4s-gym log convert` writes"
        raise L4SError(f"{path}: {printable(error)}{remedy}") from error


def open_pool(paths: Sequence[PathLike], *, progress: Progress | None = None) -> RowStream:
    """Return the pool of `load_json_pool` as a stream."""
    (path,) = paths
    return single(load_json_pool(path), progress)


def _states(records: Records, raw: Floats, features: Sequence[str], as_logged: bool) -> list[tuple[int | None, ...]]:
    """Return rows of whole numbers; None where the accumulated probability is unknown."""
    if as_logged:
        return list(zip(*(records[name].tolist() for name in features), strict=True))
    columns = []
    for feature, stored in zip(features, _stored_names(features, as_logged), strict=True):
        # In floating point the largest value may have been rounded up, and it means `UNKNOWN`.
        most = bounds(stored)[1] - (stored == BEFORE["accumulated_probability"])
        values = raw[:, OBSERVED.index(feature)].tolist()
        columns.append([None if math.isnan(value) else min(int(value), most) for value in values])
    return list(zip(*columns, strict=True))


class _Column:
    """A JSON list that is written piece by piece."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._any = False

    def extend(self, values: list[Any]) -> None:
        if values:
            self.file.write((b"," if self._any else b"") + msgspec.json.encode(values)[1:-1])
            self._any = True


def write_pool(stream: RowStream, path: PathLike, *, as_logged: bool = False) -> tuple[int, int]:
    """Write a stream as an experience pool; the file is replaced as a whole or not at all.

    Memory is bounded: the lists grow in temporary files beside the target, and are joined at the end.

    Args:
        stream: Logged decisions.
        path: JSON file; compressed if its name ends in .gz, .bz2, .xz or .zst.
        as_logged: Write the printed values, which reveal most drops, instead of those before the decision.

    Returns:
        The number of rows and of runs.

    Raises:
        L4SError: The stream has no actions, or holds no row.
    """
    if "action" not in stream.present:
        raise L4SError(f"{stream.source}: has no actions: give logged decisions")
    causal, splitter = CausalStream(stream.present, as_logged, stream.missing), RunSplitter(stream.present)
    features = observable(stream.present, as_logged)
    rows = runs = 0
    folder = Path(os.path.realpath(path)).parent
    with ExitStack() as stack:
        out = stack.enter_context(compressed_write(path))
        spool = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(3)]
        actions, rewards, dones = map(_Column, spool)
        states = _Column(out)
        head = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "features": features,
            "as_logged": as_logged,
            **({"simulator": stream.simulator} if stream.simulator else {}),
        }
        out.write(msgspec.json.encode(head)[:-1] + b',"states":[')
        for block in stream.blocks():
            starts = splitter.starts(block)
            ends = np.zeros(len(block) + 1, bool)
            ends[starts] = True
            dones.extend(ends[0 if rows else 1 : -1].tolist())
            states.extend(_states(block, causal.observe(block), features, as_logged))
            actions.extend(block["action"].tolist())
            rewards.extend(logged_rewards(block).tolist())
            rows, runs = rows + len(block), runs + len(starts)
        if not rows:
            raise L4SError(f"{stream.source}: holds no row: give logged decisions")
        dones.extend([True])
        for name, column in (("actions", actions), ("rewards", rewards), ("dones", dones)):
            out.write(f'],"{name}":['.encode())
            column.file.seek(0)
            shutil.copyfileobj(column.file, out)
        out.write(b"]}\n")
    return rows, runs
