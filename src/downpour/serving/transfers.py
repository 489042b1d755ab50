"""Whole tables on their way over Flight, a bounded part at a time: `do_get` and `do_put`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from downpour.errors import RefusedError
from downpour.row_batches import (
    BATCH_BYTES,
    check_columns,
    check_rows,
    passed_of,
    read_rows,
    row_batches,
    rows_schema,
)
from downpour.serving.flight_stream import received_bytes
from downpour.sizes import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from downpour.plan.specs import SparseTableSpec
    from downpour.serving.held import Held, Peer
    from downpour.serving.hosted import Hosted
    from downpour.transport import SparseState

ORDER_BYTES = 4  # of a row while a table is read; to sort it takes 24, for one export at a time
COPIES = 3  # of a part on its way: rows, columns, and what gRPC has of them


class Reading:
    """An iterator of all rows of a table as record batches, keys rising: those it has as of now.

    Each batch is as of one moment, when it is asked for. What it holds is given back when `its` is
    closed. RefusedError where there is no room.
    """

    def __init__(
        self, hosted: Hosted, spec: SparseTableSpec, held: Held, peer: Peer, its: ExitStack
    ) -> None:
        table = hosted.server.sparse[spec.name]
        # Of all connections alone: a table of any size may be read.
        its.enter_context(held.holding("the order of the rows", ORDER_BYTES * len(table)))
        batch_bytes = min(len(table) * table.row_bytes, 2 * BATCH_BYTES)
        its.enter_context(held.holding("reading a table", COPIES * batch_bytes, peer))
        num_rows, none, parts = hosted.export_parts(spec.name)
        self.schema = rows_schema(spec, none, num_rows)
        self._batches = (batch for part in parts for batch in row_batches(spec, part))
        self._held, self._peer = held, peer

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pa.RecordBatch:
        batch = next(self._batches)  # the one before has been sent
        self._held.moved(self._peer, sent=batch.nbytes)
        return batch


def fill(hosted: Hosted, spec: SparseTableSpec, reader: Any, held: Held, peer: Peer) -> None:
    """Fill an empty table with the chunks of rows that come.

    Raises RefusedError or TableError as soon as one cannot be taken; then the table stays empty.
    """
    try:
        check_columns(spec, reader.schema)
        num_rows, step, log_decay = passed_of(spec, reader.schema)
        parts = _parts(spec, reader, held, peer, num_rows, step=step, log_decay=log_decay)
        hosted.restore(spec.name, parts, step=step, log_decay=log_decay)
    except pa.ArrowException as error:
        raise RefusedError(f"these rows are malformed: {error}") from None


def _parts(
    spec: SparseTableSpec, reader: Any, held: Held, peer: Peer, num_rows: int, **passed: Any
) -> Iterator[SparseState]:
    most, came = max(held.limits.message_bytes, 2 * BATCH_BYTES), 0  # clients send BATCH_BYTES
    while True:
        try:
            batch = reader.read_chunk().data
        except StopIteration:
            check_rows(spec, num_rows, came)
            return
        if batch is None:
            raise RefusedError("rows come as record batches, got a message without one")
        num_bytes = received_bytes(batch)
        held.moved(peer, heard=num_bytes)
        if num_bytes > most:
            raise RefusedError(
                f"table {spec.name!r}: a record batch may have {bytes_text(most)}, got "
                f"{bytes_text(num_bytes)}; send fewer rows at once, or start servers with a larger "
                "--max-message-mb"
            )
        with held.holding("these rows", COPIES * num_bytes, peer):
            batch.validate(full=True)  # what comes over the wire may lead out of its buffers
            came += batch.num_rows
            yield read_rows(spec, pa.Table.from_batches([batch]), **passed)
