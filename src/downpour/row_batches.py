"""Rows of a sparse table as Arrow has them, on disk and on the wire: a row a key, keys rising.

Columns `key`, `weights`, the rule's `state` if it has one, and what CTR rows count.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from downpour.accessor import CtrAccessor
from downpour.errors import TableError
from downpour.tables import STATISTICS
from downpour.transport import SparseState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.plan.specs import SparseTableSpec

BATCH_ROWS = 1 << 20
BATCH_BYTES = 8 << 20
PASSED = b"downpour.passed"  # metadata: the number of rows, the steps that passed, their decay


def rows_schema(
    spec: SparseTableSpec, state: SparseState | None = None, num_rows: int | None = None
) -> pa.Schema:
    """The columns of a table; with its state, what `read_rows` needs besides as metadata.

    num_rows: of all parts, where the state is only one of them.
    """
    accessor = spec.accessor
    number = pa.from_numpy_dtype(accessor.numpy_dtype)
    columns = {
        "key": pa.uint64(),
        "weights": pa.list_(number, accessor.dim),
        **({"state": pa.list_(number, accessor.state_dim)} if accessor.state_dim else {}),
        **{name: pa.from_numpy_dtype(STATISTICS[name]) for name in _statistics(spec)},
    }
    if state is None:
        return pa.schema(columns)
    num_rows = len(state.keys) if num_rows is None else num_rows
    passed = json.dumps({"rows": num_rows, "step": state.step, "log_decay": state.log_decay})
    return pa.schema(columns, {PASSED: passed.encode()})


def batch_rows(spec: SparseTableSpec) -> int:
    """How many rows of a table are a batch of at most BATCH_ROWS and about BATCH_BYTES."""
    accessor = spec.accessor
    row_bytes = 8 + (accessor.dim + accessor.state_dim) * accessor.numpy_dtype.itemsize
    return max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))


def row_batches(spec: SparseTableSpec, state: SparseState) -> Iterator[pa.RecordBatch]:
    """The rows in batches of `batch_rows`; one empty batch where there is none."""
    schema, size = rows_schema(spec, state), batch_rows(spec)
    for start in range(0, max(len(state.keys), 1), size):
        part = slice(start, start + size)
        columns = [pa.array(state.keys[part]), _lists(state.weights[part])]
        columns += [_lists(state.state[part])] if spec.accessor.state_dim else []
        if state.statistics is not None:
            columns += [pa.array(state.statistics[name][part].copy()) for name in _statistics(spec)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def read_rows(
    spec: SparseTableSpec,
    table: pa.Table,
    *,
    step: int | None = None,
    log_decay: float = 0.0,
) -> SparseState:
    """The state that `row_batches` wrote; the steps passed as given, or from the metadata.

    Raises TableError for other columns, and where rows are missing.
    """
    check_columns(spec, table.schema)
    if any(column.null_count for column in table.columns):
        raise TableError(f"table {spec.name!r}: rows must have no nulls")
    if step is None:
        num_rows, step, log_decay = passed_of(spec, table.schema)
        check_rows(spec, num_rows, table.num_rows)
    return SparseState(
        table.column("key").to_numpy(),
        _floats(spec, table, "weights", spec.accessor.dim),
        _floats(spec, table, "state", spec.accessor.state_dim),
        step,
        log_decay,
        _read_statistics(spec, table),
    )


def empty_rows(spec: SparseTableSpec, num_rows: int, *, step: int, log_decay: float) -> SparseState:
    """Room for so many rows of a table, for `copy_rows`."""
    accessor = spec.accessor
    return SparseState(
        np.empty(num_rows, np.uint64),
        np.empty((num_rows, accessor.dim), accessor.numpy_dtype),
        np.empty((num_rows, accessor.state_dim), accessor.numpy_dtype),
        step,
        log_decay,
        np.empty(num_rows, STATISTICS) if _statistics(spec) else None,
    )


def copy_rows(part: SparseState, rows: SparseState, start: int) -> None:
    """Write rows into others, from place `start` on."""
    places = slice(start, start + len(part.keys))
    rows.keys[places], rows.weights[places] = part.keys, part.weights
    rows.state[places] = part.state
    if part.statistics is not None and rows.statistics is not None:
        rows.statistics[places] = part.statistics


def check_columns(spec: SparseTableSpec, schema: pa.Schema) -> None:
    """Raise TableError for other columns than a table's."""
    expected = rows_schema(spec)
    if not schema.equals(expected):
        raise TableError(
            f"table {spec.name!r}: rows must have columns {_said(expected)}, got "
            f"{_said(schema):.500}"
        )


def passed_of(spec: SparseTableSpec, schema: pa.Schema) -> tuple[int, int, float]:
    """Number of rows, and the step and log_decay that they have passed.

    TableError where metadata lacks them.
    """
    try:
        passed = json.loads((schema.metadata or {})[PASSED])
        num_rows, step, log_decay = passed["rows"], passed["step"], float(passed["log_decay"])
        for name, number in (("rows", num_rows), ("step", step)):
            if type(number) is not int or not 0 <= number < 2**53:
                raise ValueError(f"{name} {number!r:.40} is no whole number >= 0")
        if not -math.inf < log_decay <= 0.0:
            raise ValueError(f"log_decay {log_decay} is no finite number <= 0")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TableError(
            f"table {spec.name!r}: rows lack the steps that they have passed, or their number "
            f"({error!s:.200})"
        ) from None
    return num_rows, step, log_decay


def check_rows(spec: SparseTableSpec, said: int, came: int) -> None:
    """Raise TableError where other rows came than were said to: a stream that is cut just ends."""
    if said != came:
        raise TableError(
            f"table {spec.name!r}: its metadata says {said:,} rows, and {came:,} came; nothing was "
            "changed"
        )


def _floats(spec: SparseTableSpec, table: pa.Table, name: str, width: int) -> Any:
    if not width:
        return np.zeros((table.num_rows, 0), spec.accessor.numpy_dtype)
    flat = table.column(name).combine_chunks().flatten()
    return flat.to_numpy().reshape(-1, width)


def _statistics(spec: SparseTableSpec) -> tuple[str, ...]:
    """The columns of what CTR rows count."""
    return STATISTICS.names or () if isinstance(spec.accessor, CtrAccessor) else ()


def _read_statistics(spec: SparseTableSpec, table: pa.Table) -> Any:
    names = _statistics(spec)
    if not names:
        return None
    statistics = np.empty(table.num_rows, STATISTICS)
    for name in names:
        statistics[name] = table.column(name).to_numpy()
    return statistics


def _lists(floats: np.ndarray[Any, Any]) -> pa.Array:
    flat = np.ascontiguousarray(floats).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), floats.shape[1])


def _said(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
