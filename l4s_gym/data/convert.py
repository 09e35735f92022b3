"""Logged decisions of any kind into files of another kind, as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from l4s_gym.data.files import PathLike
from l4s_gym.data.jsonpool import write_pool
from l4s_gym.data.parquet import write_parquet
from l4s_gym.data.pools import write_csv
from l4s_gym.data.records import RecordWriter
from l4s_gym.data.report import LogReport
from l4s_gym.data.steps import reward_warning
from l4s_gym.data.stream import Progress, RowStream, RunSplitter, open_stream
from l4s_gym.errors import L4SError

Target = Literal["pool", "parquet", "rec", "csv"]
SUFFIXES: Final[dict[Target, tuple[str, ...]]] = {
    "pool": (".json", ".json.gz", ".json.bz2", ".json.xz", ".json.zst"),
    "parquet": (".parquet",),
    "rec": (".rec", ".rec.gz", ".rec.bz2", ".rec.xz", ".rec.zst"),
    "csv": (".csv",),
}
"""How the names of the files end, by which they are told when they are read."""


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: The file.
        rows: Number of rows.
        runs: Number of runs.
        report: What was read and skipped; None for kinds that have no report.
        notes: What else to know of it: how columns were told, and warnings.
    """

    path: Path
    rows: int
    runs: int
    report: LogReport | None
    notes: tuple[str, ...] = ()


def notes_of(stream: RowStream) -> tuple[str, ...]:
    """What to know of a stream that was made into observations and rewards."""
    found = (stream.missing.warning, reward_warning(stream.present))
    return (*stream.notes, *(note for note in found if note is not None))


def write_records(stream: RowStream, path: PathLike) -> tuple[int, int]:
    """Write a stream as binary records; the file is replaced as a whole or not at all.

    Returns:
        Numbers of rows and of runs.
    """
    splitter, runs = RunSplitter(stream.present), 0
    with RecordWriter(path, stream.present, stream.simulator) as writer:
        for block in stream.blocks():
            runs += len(splitter.starts(block))
            writer.write(block)
    return writer.rows, runs


def check_target(target: Target, out: Path, *, as_logged: bool = False, overwrite: bool = False) -> None:
    """Refuse what cannot or must not be written, before anything is read.

    Raises:
        L4SError: The name does not fit the kind, the file exists, or ``as_logged`` says nothing of this kind.
    """
    if not out.name.endswith(SUFFIXES[target]):
        raise L4SError(f"{out}: is not a name by which a {target} file is told: end it in {SUFFIXES[target][0]}")
    if as_logged and target != "pool":
        raise L4SError(f"{target}: keeps all fields as they are: leave out --as-logged")
    if out.exists() and not overwrite:
        raise L4SError(f"{out}: exists: choose another name, or say --overwrite")


def convert(
    paths: PathLike | Sequence[PathLike],
    target: Target,
    out: PathLike,
    *,
    columns: Sequence[str] | None = None,
    as_logged: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Convert logged decisions.

    Args:
        paths: Files of any kind (`stream.open_stream`).
        target: Kind of the new file: experience pool (JSON), Parquet, binary records, or CSV.
        out: The new file; it appears as a whole or not at all.
        columns: As `open_stream`.
        as_logged: For a pool: the printed values instead of those before the decision.
        overwrite: Whether an existing file may be replaced.
        progress: Called with the share that is done.

    Raises:
        L4SError: As `open_stream` and `check_target`.
    """
    path = Path(out)
    check_target(target, path, as_logged=as_logged, overwrite=overwrite)
    stream = open_stream(paths, columns=columns, progress=progress)
    if target == "pool":
        rows, runs = write_pool(stream, path, as_logged=as_logged)
        return Converted(path, rows, runs, stream.report, notes_of(stream))
    rows, runs = {"parquet": write_parquet, "rec": write_records, "csv": write_csv}[target](stream, path)
    return Converted(path, rows, runs, stream.report, stream.notes)
