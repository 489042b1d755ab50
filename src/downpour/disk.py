"""Files of saved tables: written so that they are there, and known again by size and hash."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

from downpour.errors import SavedRunError
from downpour.row_batches import read_rows, row_batches, rows_schema

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from downpour.plan.specs import SparseTableSpec
    from downpour.transport import SparseState


def write_rows(folder: Path, spec: SparseTableSpec, rows: SparseState) -> dict[str, Any]:
    """Write a table's rows to a Parquet file; what a manifest says of it, for `read_rows_file`."""
    file = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', spec.name)}.{spec.id}.parquet"
    with parquet.ParquetWriter(folder / file, rows_schema(spec)) as writer:
        for batch in row_batches(spec, rows):
            writer.write_table(pa.Table.from_batches([batch]).replace_schema_metadata(None))
    return {"file": file, "rows": len(rows.keys), "step": rows.step, "log_decay": rows.log_decay}


def read_rows_file(folder: Path, spec: SparseTableSpec, saved: Mapping[str, Any]) -> SparseState:
    """The rows that `write_rows` wrote. SavedRunError where their number is another."""
    table = parquet.read_table(folder / saved["file"])
    if table.num_rows != saved["rows"]:
        raise SavedRunError(
            f"{folder / saved['file']} has {table.num_rows} rows, its manifest says {saved['rows']}"
        )
    return read_rows(spec, table, step=saved["step"], log_decay=saved["log_decay"])


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
