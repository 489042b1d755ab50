"""Files of saved tables: written so that they are there, and known again by size and hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from downpour.errors import DownpourError, SavedRunError
from downpour.manifest import reading
from downpour.row_batches import (
    batch_rows,
    copy_rows,
    empty_rows,
    read_rows,
    row_batches,
    rows_schema,
)
from downpour.tables.batches import is_finite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from downpour.plan.specs import SparseTableSpec
    from downpour.transport import Keys, SparseState


def write_rows(folder: Path, spec: SparseTableSpec, rows: SparseState) -> dict[str, Any]:
    """Write a table's rows to a Parquet file; what a manifest says of it, for `read_rows_file`."""
    file = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', spec.name)}.{spec.id}.parquet"
    with parquet.ParquetWriter(folder / file, rows_schema(spec)) as writer:
        for batch in row_batches(spec, rows):
            writer.write_table(pa.Table.from_batches([batch]).replace_schema_metadata(None))
    return {"file": file, "rows": len(rows.keys), "step": rows.step, "log_decay": rows.log_decay}


def read_rows_file(folder: Path, spec: SparseTableSpec, saved: Mapping[str, Any]) -> SparseState:
    """The rows that `write_rows` wrote. SavedRunError for a file that has others, or is damaged."""
    path = folder / saved["file"]
    with reading(path), parquet.ParquetFile(path) as file:
        num_rows = file.metadata.num_rows
        if num_rows != saved["rows"]:
            raise SavedRunError(f"{path} has {num_rows} rows, its manifest says {saved['rows']}")
        given = {"step": saved["step"], "log_decay": saved["log_decay"]}
        rows = empty_rows(spec, num_rows, **given)
        start = 0
        # A part at a time: in a server the memory that Arrow reads into is bounded (`bound_arrow`).
        for batch in file.iter_batches(batch_rows(spec), use_threads=False):
            part = read_rows(spec, pa.Table.from_batches([batch]), **given)
            copy_rows(part, rows, start)
            start += batch.num_rows
        if start != num_rows:
            raise SavedRunError(f"{path} has {start} rows, its footer says {num_rows}")
    return rows


def finite_rows(rows: SparseState) -> tuple[SparseState, Keys]:
    """Rows without those that hold NaN or infinity, and the keys of those."""
    parts = [rows.weights, rows.state]
    if rows.statistics is not None:
        parts += [rows.statistics[name][:, None] for name in ("show", "click", "delta_score")]
    if all(is_finite(part) for part in parts):
        return rows, rows.keys[:0]
    good = np.all([np.isfinite(part).all(axis=1) for part in parts], axis=0)
    kept = replace(
        rows,
        keys=rows.keys[good],
        weights=rows.weights[good],
        state=rows.state[good],
        statistics=None if rows.statistics is None else rows.statistics[good],
    )
    return kept, rows.keys[~good]


def fingerprint(path: Path) -> dict[str, Any]:
    """The size and the hash of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: Path, *, beside: Path | None = None) -> Iterator[None]:
    """Let an OSError name what was to be written: that of a full disk names no file.

    beside: a temporary file in its place, which nobody else knows of.
    """
    try:
        yield
    except OSError as error:
        is_told = error.filename is not None and error.filename != str(beside)
        if is_told or isinstance(error, DownpourError):
            raise
        if error.errno is None:
            raise OSError(f"{error}: {str(path)!r}") from error
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
