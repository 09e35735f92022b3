"""Conversion of logged decisions between file formats, as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from l4s_gym.data.files import PathLike
from l4s_gym.data.report import LogReport
from l4s_gym.data.steps import reward_warning
from l4s_gym.data.stream import FORMATS, Progress, RowStream, function, open_stream
from l4s_gym.errors import L4SError

Target = Literal["pool", "parquet", "rec", "csv"]


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: The file.
        rows: Number of rows.
        runs: Number of runs.
        report: What was read and skipped; None for kinds that have no report.
        notes: Further remarks: how columns were identified, and warnings.
    """

    path: Path
    rows: int
    runs: int
    report: LogReport | None
    notes: tuple[str, ...] = ()


def notes_of(stream: RowStream) -> tuple[str, ...]:
    """Return the remarks on a stream that was made into observations and rewards."""
    found = (stream.missing.warning, reward_warning(stream.present))
    return (*stream.notes, *(note for note in found if note is not None))


def check_target(target: Target, out: Path, *, as_logged: bool = False, overwrite: bool = False) -> None:
    """Check the target before anything is read.

    Raises:
        L4SError: The name does not fit the kind, the file exists, or ``as_logged`` has no meaning for this kind.
    """
    endings = FORMATS[target].endings
    if not out.name.endswith(endings):
        raise L4SError(f"{out}: is not the name of a {target} file: end it in {endings[0]}")
    if as_logged and target != "pool":
        raise L4SError(f"{target}: keeps all fields as they are: leave out --as-logged")
    if out.exists() and not overwrite:
        raise L4SError(f"{out}: exists: choose another name, or give --overwrite")


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
    pool = target == "pool"
    rows, runs = function(FORMATS[target].writes)(stream, path, **({"as_logged": as_logged} if pool else {}))
    return Converted(path, rows, runs, stream.report, notes_of(stream) if pool else stream.notes)
