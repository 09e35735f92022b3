"""Inspect, convert and audit decision logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from l4s_gym.cli.arguments import App
from l4s_gym.cli.common import progress_bar, say
from l4s_gym.errors import L4SError

app = App()
Paths = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PATH [PATH ...]")]
Columns = Annotated[str | None, tyro.conf.arg(metavar="NAME,NAME,...")]


def _names(columns: str | None) -> list[str] | None:
    return None if columns is None else columns.split(",")


@app.command
def inspect(paths: Paths, columns: Columns = None) -> None:
    """Summarise decision logs: rows, skipped lines, actions, quantiles, and how far the fields give the action away.

    Args:
        paths: Kernel logs or binary records (plain, .gz, .bz2, .xz, .zst; rotations are put in order), an experience
            pool (.json, .pkl), Parquet (.parquet) or rows (.csv).
        columns: Names of the features of a pickled pool, in order, "-" for one to ignore; default: found from the data.
    """
    from l4s_gym.data.inspect import inspect_rows
    from l4s_gym.data.pools import rows_of
    from l4s_gym.data.stream import open_stream
    from l4s_gym.sim import fingerprint

    with progress_bar("reading") as show:
        stream = open_stream(paths, columns=_names(columns), progress=show)
        rows = rows_of(stream)
    if stream.report is not None:
        say(stream.report.summary())
    if stream.simulator:
        say(f"{stream.source}: {fingerprint.reason(stream.simulator) or f'of simulator {stream.simulator}'}")
    say(inspect_rows(rows))


@app.command
def convert(
    paths: Paths,
    to: Literal["minari", "pool", "parquet", "rec", "csv"],
    out: Path | None = None,
    columns: Columns = None,
    as_logged: bool = False,
    id: str | None = None,
    algorithm: str = "dualpi2_freebsd",
    description: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert decision logs to another format; memory use does not grow with the log.

    Args:
        paths: Kernel logs or binary records (plain, .gz, .bz2, .xz, .zst; rotations are put in order), an experience
            pool (.json, .pkl), Parquet (.parquet) or rows (.csv).
        to: A Minari dataset, an experience pool (JSON), Parquet, binary records, or CSV in kernel units.
        out: The new file: .json, .parquet, .rec or .csv (a pool and records may be compressed: .rec.zst).
        columns: Names of the features of a pickled pool, in order, "-" for one to ignore; default: found from the data.
        as_logged: Take the fields as printed, which reveal most drops, instead of their values before the decision.
        id: Id of the Minari dataset: l4s/dualpi2/NAME-v0.
        algorithm: What made the decisions; stored in the Minari dataset.
        description: What the data is; stored in the Minari dataset.
        overwrite: Replace a file or dataset that exists.
    """
    from l4s_gym.data.convert import check_target
    from l4s_gym.data.convert import convert as convert_

    if to == "minari":
        if id is None or out is not None:
            raise L4SError("--to minari: goes to Minari's folder: give --id l4s/dualpi2/NAME-v0, and no --out")
        _to_minari(paths, _names(columns), id, as_logged, algorithm, description, overwrite)
        return
    if out is None or id is not None:
        raise L4SError(f"--to {to}: writes a file: give --out PATH, and no --id")
    check_target(to, out, as_logged=as_logged, overwrite=overwrite)
    with progress_bar(f"writing {out.name}") as show:
        named = _names(columns)
        done = convert_(paths, to, out, columns=named, as_logged=as_logged, overwrite=overwrite, progress=show)
    if done.report is not None:
        say(done.report.summary())
    for note in done.notes:
        say(note)
    say(f"{done.rows} rows, {done.runs} {'run' if done.runs == 1 else 'runs'}: {done.path}")


def _to_minari(
    paths: tuple[Path, ...],
    columns: list[str] | None,
    id: str,
    as_logged: bool,
    algorithm: str,
    description: str | None,
    overwrite: bool,
) -> None:
    from l4s_gym.data.convert import notes_of
    from l4s_gym.data.minari_io import create_from_stream
    from l4s_gym.data.stream import open_stream

    with progress_bar(f"writing {id}") as show:
        stream = open_stream(paths, columns=columns, progress=show)
        dataset = create_from_stream(
            id,
            stream,
            as_logged=as_logged,
            description=description or f"Logged decisions: {stream.source}",
            algorithm_name=algorithm,
            overwrite=overwrite,
        )
    if stream.report is not None:
        say(stream.report.summary())
    for note in notes_of(stream):
        say(note)
    folder = dataset.storage.data_path
    say(f"{dataset.total_steps} steps, {dataset.total_episodes} episodes: {id} in {folder}")


@app.command
def audit(
    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH [PATH ...] | DATASET_ID")],
    rows: int = 200_000,
    columns: Columns = None,
    json: Path | None = None,
) -> None:
    """Check whether the features of a log, pool or dataset reveal its actions (label leakage).

    A classifier predicts the actions of rows that it has not seen. Where the queue discipline drops or marks at random,
    it can be certain only if a feature was written after the decision, or is missing because of it.

    Args:
        paths: Decision logs of any kind, as for `inspect`; or a Minari dataset, l4s/dualpi2/NAME-v0.
        rows: Use at most this many rows, in evenly spaced parts.
        columns: Names of the features of a pickled pool, in order, "-" for one to ignore; default: found from the data.
        json: Write all results to this JSON file.
    """
    from json import dumps

    from l4s_gym.data.audit import audit as audit_
    from l4s_gym.data.files import atomic_write
    from l4s_gym.data.inspect import sample_dataset, sample_stream
    from l4s_gym.data.stream import open_stream

    if rows < 100:
        raise L4SError(f"--rows {rows}: give 100 or more")
    if len(paths) == 1 and paths[0].startswith("l4s/dualpi2/") and not Path(paths[0]).exists():
        sample = sample_dataset(paths[0], rows)
    else:
        with progress_bar("reading") as show:
            sample = sample_stream(open_stream(paths, columns=_names(columns), progress=show), rows)
    found = audit_(sample)
    say(found.table())
    if json is not None:
        with atomic_write(json) as file:
            file.write(dumps(found.as_dict(), indent=2).encode())
