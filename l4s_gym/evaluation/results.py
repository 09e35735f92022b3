"""Entries in files: a JSON with what an entry is and its means, and a Parquet file with its episodes.

`<folder>/<id>.json` bears the checksum of `<folder>/episodes/<id>.parquet`. The Parquet files of a folder have the same
columns, so that they are one data set to other tools: ``pandas.read_parquet("benchmarks/results/episodes")``. Each
entry has a file of its own: adding one touches no other, whoever writes at the same time or merges two branches.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from l4s_gym.data.files import atomic_write, read_error, sha256
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.cells import METRICS
from l4s_gym.evaluation.entry import FORMAT, Entry, Head, decoded
from l4s_gym.extras import optional
from l4s_gym.sim.measure import CLASSES

Means = dict[str, dict[str, dict[str, float | None]]]
_VERSION: Final = b"l4s_gym.format"
_FORMAT: Final = str(FORMAT).encode()


class Episodes(Struct, frozen=True, forbid_unknown_fields=True):
    """Which episodes an entry has: how many, and the SHA-256 of their file."""

    count: int
    sha256: str


class _File(Head, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The JSON of an entry.

    Attributes:
        episodes: Its Parquet file.
        means: Of `METRICS`, by suite and scenario; `means`.
    """

    episodes: Episodes
    means: Means


def arrow() -> tuple[Any, Any]:
    """PyArrow and its Parquet.

    Raises:
        L4SError: It is not installed.
    """
    return optional("pyarrow", "data"), optional("pyarrow.parquet", "data")


def _schema() -> Any:
    """Arrow's schema of an episode: the id of the entry, `suite`, `train_seed`, and the fields of `harness.Result`."""
    pa, _ = arrow()
    text, whole, real = pa.string(), pa.int64(), pa.float64()

    def struct(names: str, kind: Any) -> Any:
        return pa.struct([(name, kind) for name in names.split()])

    def by_class(kind: Any) -> Any:
        return struct(" ".join(CLASSES), kind)

    counts = [*struct("offered dropped dropped_ect marked", whole), *struct("mark_rate drop_rate", real)]
    columns = {
        "entry": text,
        "suite": text,
        "train_seed": whole,
        "agent": text,
        "rule": text,
        "scenario": text,
        "aqm": text,
        "seed": whole,
        "reward": text,
        "episode_return": real,
        "decisions": whole,
        "utilisation": real,
        "delay_ms": by_class(struct("mean p50 p95 p99 max", real)),
        "delay_quantiles": by_class(pa.list_(real)),
        "delay_sd_ms": by_class(real),
        "mark_rate": real,
        "drop_rate": real,
        "goodput_mbps": pa.list_(real),
        "goodput_ratio": real,
        "jain": real,
        "classes": by_class(pa.struct(counts)),
        "latency_us": struct("p50 p99", real),
        "cost": pa.map_(text, real),
        "wall_s": real,
    }
    return pa.schema(columns, metadata={_VERSION: _FORMAT})


def means(results: Sequence[dict[str, Any]]) -> Means:
    """Means of `METRICS` over the episodes that have them, by suite and scenario, to six digits; None: none has."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results:
        cells.setdefault((row["suite"], row["scenario"]), []).append(row)
    found: Means = {}
    for (suite, scenario), rows in cells.items():
        columns = {name: [get(row) for row in rows] for name, get in METRICS.items()}
        found.setdefault(suite, {})[scenario] = {name: _mean(values) for name, values in columns.items()}
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None and math.isfinite(value)]
    # The exact sum is the same on each machine.
    return float(f"{math.fsum(there) / len(there):.6g}") if there else None


def read(path: Path) -> Entry:
    """An entry, by the path of its JSON.

    Raises:
        L4SError: A file cannot be read or is not valid; the episodes are not those that the JSON was written with.
    """
    found: _File = decoded(path, _File)
    if (found.experiment.name, found.experiment.variant) != (found.agent, found.variant):
        raise L4SError(f"{path}: is of {found.id}, its experiment of {found.experiment.id}: run it again")
    rows = _read_episodes(_episodes_of(path), found)
    if means(rows) != found.means:
        raise L4SError(f"{path}: means: are not those of its episodes: run it again")
    head = {name: getattr(found, name) for name in Head.__struct_fields__}
    return Entry(**head, results=tuple(rows))


def _episodes_of(path: Path) -> Path:
    return path.parent / "episodes" / f"{path.stem}.parquet"


def _read_episodes(path: Path, found: _File) -> list[dict[str, Any]]:
    pa, pq = arrow()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise read_error(path, error) from error
    if hashlib.sha256(content).hexdigest() != found.episodes.sha256:
        raise L4SError(f"{path}: sha256: is not the one in {found.id}.json: take both files from the same place")
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise L4SError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]}): run it again") from error
    if not table.schema.equals(_schema()) or (table.schema.metadata or {}).get(_VERSION) != _FORMAT:
        raise L4SError(f"{path}: has other columns than those of format {FORMAT}: run it again with this version")
    rows = table.to_pylist()
    if {row.pop("entry") for row in rows} - {found.id} or len(rows) != found.episodes.count:
        raise L4SError(f"{path}: does not hold the {found.episodes.count} episodes of {found.id}: run it again")
    return [{**row, "cost": dict(row["cost"] or ())} for row in rows]


def read_all(folder: Path) -> list[Entry]:
    """The entries of a folder, by name."""
    return [read(path) for path in sorted(folder.glob("*--*.json"))]


def write(entry: Entry, folder: Path) -> Path:
    """Write both files of an entry; the path of its JSON, which is there only if the episodes are.

    Raises:
        L4SError: PyArrow is not installed; the agent says of its cost what is no number.
    """
    pa, pq = arrow()
    path = folder / f"{entry.id}.json"
    episodes = _episodes_of(path)
    try:
        table = pa.Table.from_pylist([{"entry": entry.id, **row} for row in entry.results], _schema())
    except (pa.ArrowException, TypeError) as error:
        raise L4SError(f"{entry.id}: results: {error}: let the agent's `cost` give numbers") from error
    episodes.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with atomic_write(episodes) as file:
        # Nearly all values are different: dictionaries and statistics of columns would only add to the size.
        pq.write_table(
            table, file, compression="zstd", compression_level=19, use_dictionary=False, write_statistics=False
        )
    plain = msgspec.to_builtins(entry)
    plain["episodes"] = msgspec.to_builtins(Episodes(len(plain.pop("results")), sha256(episodes)))
    plain["means"] = means(entry.results)
    with atomic_write(path) as file:
        file.write((json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())
    return path
