"""Records as Parquet: a column for each field of the schema, and the number of the run, for use with any tool.

Units and meanings are in the metadata of the columns. An unknown accumulated probability is null.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from l4s_gym.data.causal import UNKNOWN
from l4s_gym.data.files import PathLike, atomic_write
from l4s_gym.data.logs import RANGE
from l4s_gym.data.records import out_of_bounds
from l4s_gym.data.report import COUNTED, Tally
from l4s_gym.data.stream import BLOCK_ROWS, Blocks, Progress, Records, RowStream, RunSplitter, regroup, take
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.schema import BY_NAME, FIELDS, RECORD, SCHEMA_VERSION

RUN: Final = "run"
_VERSION: Final = b"l4s_gym.schema_version"
_SIMULATOR: Final = b"l4s_gym.simulator"
_NULLABLE: Final = "accumulated_probability_before"


def _arrow() -> tuple[Any, Any]:
    return optional("pyarrow", "data"), optional("pyarrow.parquet", "data")


def _schema(present: frozenset[str], simulator: str = "") -> Any:
    """Return Arrow's schema of the fields that a source has, and of the run; `simulator` as in `RowStream`."""
    pa, _ = _arrow()
    fields = [
        pa.field(
            spec.name,
            pa.from_numpy_dtype(np.dtype(spec.dtype)),
            nullable=spec.name == _NULLABLE,
            metadata={"unit": "0, 1, 2" if spec.name == "action" else spec.unit, "doc": spec.doc},
        )
        for spec in FIELDS
        if spec.name in present
    ]
    run = pa.field(RUN, pa.int32(), nullable=False, metadata={"unit": "index", "doc": "Number of the run, from 0."})
    metadata = {_VERSION: str(SCHEMA_VERSION)} | ({_SIMULATOR: simulator} if simulator else {})
    return pa.schema([*fields, run], metadata=metadata)


def write_parquet(stream: RowStream, path: PathLike) -> tuple[int, int]:
    """Write a stream as Parquet; the file is replaced as a whole or not at all.

    Args:
        stream: Logged decisions.
        path: The file.

    Returns:
        Numbers of rows and of runs.
    """
    pa, pq = _arrow()
    schema = _schema(stream.present, stream.simulator)
    splitter, rows, runs = RunSplitter(stream.present), 0, 0
    # Without dictionaries the file is smaller, and written twice as fast: most columns have many values.
    options = {"compression": "zstd", "use_dictionary": False}
    with atomic_write(path) as file, pq.ParquetWriter(file, schema, **options) as writer:
        for block in regroup(stream.blocks()):
            begins = np.zeros(len(block), np.int32)
            begins[splitter.starts(block)] = 1
            columns = []
            for name in schema.names[:-1]:
                column = np.ascontiguousarray(block[name])
                columns.append(pa.array(column, mask=column == UNKNOWN if name == _NULLABLE else None))
            columns.append(pa.array(runs - 1 + np.cumsum(begins, dtype=np.int32)))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=BLOCK_ROWS)
            rows, runs = rows + len(block), runs + int(begins.sum())
    return rows, runs


def _to_records(batch: Any) -> Records:
    """Convert a batch of columns to records (T,)."""
    records = np.zeros(batch.num_rows, RECORD)
    for name in batch.schema.names:
        if name in BY_NAME:
            column = batch.column(name)
            if column.null_count:
                if name != _NULLABLE:
                    raise L4SError(f"{name} is null in {column.null_count} rows: fill it, or leave the column out")
                column = column.fill_null(UNKNOWN)
            records[name] = column.to_numpy(zero_copy_only=False)
    return records


def open_parquet(paths: Sequence[PathLike], *, progress: Progress | None = None) -> RowStream:
    """Open a Parquet file of `write_parquet` as a stream; rows out of the schema's bounds are skipped and counted.

    Raises:
        L4SError: The file cannot be read or is not such a file.
    """
    (path,) = paths
    pa, pq = _arrow()
    damage = (OSError, pa.ArrowException, ValueError)

    def refuse(error: Exception) -> L4SError:
        return L4SError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]}): convert the log again")

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        version = (schema.metadata or {}).get(_VERSION)
        simulator = (schema.metadata or {}).get(_SIMULATOR, b"").decode("ascii")
    except damage as error:
        raise refuse(error) from error
    if version != str(SCHEMA_VERSION).encode():
        file.close()
        raise L4SError(f"{path}: is not of version {SCHEMA_VERSION} of our schema: write it by `l4s-gym log convert`")
    present = frozenset(name for name in schema.names if name in BY_NAME)
    if not schema.equals(_schema(present)):
        file.close()
        raise L4SError(f"{path}: has columns of other names or types than ours: convert the log again")

    def blocks() -> Blocks:
        tally = Tally(present >= COUNTED)
        try:
            with file:
                for batch in file.iter_batches(BLOCK_ROWS):
                    records = _to_records(batch)
                    bad = out_of_bounds(records, present)
                    for row in np.flatnonzero(bad).tolist():
                        tally.skip(os.fspath(path), tally.lines + row + 1, RANGE)
                    tally.lines += len(records)
                    if progress is not None:
                        progress(tally.lines / max(file.metadata.num_rows, 1))
                    tally.add(records := take(records, ~bad) if bad.any() else records)
                    if len(records):
                        yield records
        except L4SError as error:
            raise L4SError(f"{path}: {error}") from error
        except damage as error:
            raise refuse(error) from error
        return tally.report([os.fspath(path)], "rows")

    return RowStream(os.path.basename(path), present, blocks(), simulator)
