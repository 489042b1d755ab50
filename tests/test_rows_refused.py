"""What a server refuses of whole tables, and that it then changes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from downpour.errors import DownpourError, NonFiniteError, RefusedError, TableError
from downpour.remote.endpoint import Endpoint
from downpour.row_batches import PASSED, row_batches
from downpour.serving.service import Service
from tests.one_shard import DEPLOYMENT, FOREIGN, OWN, fill, held, hosted, new_server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.serving.flight_server import FlightServer

INF = float("inf")
SPEC = DEPLOYMENT.plan.sparse_table("plain")


def all_rows() -> pa.Table:
    server = new_server()
    fill(server)
    state = server.export("plain")
    return pa.Table.from_batches(row_batches(SPEC, state))


ROWS = all_rows()
PAST = json.loads(ROWS.schema.metadata[PASSED])


def having(name: str, values: Any) -> pa.Table:
    place = ROWS.schema.get_field_index(name)
    return ROWS.set_column(place, ROWS.schema.field(name), [values])


def passed(**changed: Any) -> pa.Table:
    return ROWS.replace_schema_metadata({PASSED: json.dumps({**PAST, **changed})})


def lists(values: list[Any]) -> pa.Array:
    return pa.array(values * len(OWN), ROWS.schema.field("weights").type)


PUTS: dict[str, tuple[str, pa.Table, type[DownpourError], str]] = {
    "an unknown table": ("rows", ROWS, TableError, "no sparse table 'rows' here.* plain, ctr"),
    "a dense table": ("dense", ROWS, TableError, "no sparse table 'dense' here"),
    "another table": ("ctr", ROWS, TableError, "table 'ctr': rows must have columns key: uint64"),
    "fewer columns": ("plain", ROWS.drop_columns("state"), TableError, "rows must have columns"),
    "other names": ("plain", ROWS.rename_columns([*"abc"]), TableError, "must have columns"),
    "other types": (
        "plain", ROWS.set_column(0, "key", ROWS["key"].cast(pa.int64())), TableError, "got key: i",
    ),
    "foreign keys": ("plain", having("key", FOREIGN), TableError, "belongs to shard 1, this is"),
    "keys twice": ("plain", having("key", OWN[[0] * 12]), TableError, "must differ in key"),
    "null keys": ("plain", having("key", pa.nulls(12, pa.uint64())), TableError, "no nulls"),
    "null weights": ("plain", having("weights", lists([None])), TableError, "have no nulls"),
    "null elements": ("plain", having("weights", lists([[None] * 4])), RefusedError, "malformed"),
    "NaN": ("plain", having("weights", lists([[np.nan] * 4])), NonFiniteError, "weights hold NaN"),
    "an infinite state": ("plain", having("state", lists([[INF] * 4])), NonFiniteError, "state"),
    "no past": ("plain", ROWS.replace_schema_metadata({}), TableError, "lack the steps"),
    "no JSON": ("plain", ROWS.replace_schema_metadata({PASSED: "{"}), TableError, "lack the st"),
    "a past too deep": (
        "plain", ROWS.replace_schema_metadata({PASSED: "[" * 10**5}), TableError, "lack the steps",
    ),
    "a step below 0": ("plain", passed(step=-1), TableError, "step -1 is no whole number >= 0"),
    "half a step": ("plain", passed(step=0.5), TableError, "step 0.5 is no whole number >= 0"),
    "a decay that is NaN": ("plain", passed(log_decay=np.nan), TableError, "log_decay nan is no"),
    "a decay to nothing": ("plain", passed(log_decay=-INF), TableError, "log_decay -inf is no"),
    "a stream that is cut": ("plain", passed(rows=13), TableError, "says 13 rows, and 12 came"),
    "a number of rows below 0": ("plain", passed(rows=-1), TableError, "rows -1 is no whole nu"),
    "a growth": ("plain", passed(log_decay=0.1), TableError, "no finite number <= 0"),
}  # fmt: skip


def put(server: FlightServer, table: bytes, rows: pa.Table) -> None:
    endpoint = Endpoint(server.address)
    with endpoint.connect(5.0) as client:
        descriptor = fl.FlightDescriptor.for_command(table)
        try:
            writer, _ = client.do_put(descriptor, rows.schema)
            try:
                writer.write_table(rows)
            finally:
                writer.close()
        except (pa.ArrowException, OSError) as error:
            raise endpoint.typed(error, "rows", 20.0) from None


@pytest.fixture(scope="module")
def server() -> Iterator[FlightServer]:
    with hosted() as started:
        yield started


@pytest.mark.parametrize("name", PUTS)
def test_rows_that_are_not_a_tables_are_refused_and_the_right_ones_taken(name: str) -> None:
    table, rows, kind, message = PUTS[name]
    with serving(Service(DEPLOYMENT, 0)) as server:
        before = held(server)
        with pytest.raises(kind, match=message):
            put(server, table.encode(), rows)
        assert held(server) == before
        put(server, b"plain", ROWS)
        state = server.service.hosted.export("plain")
        assert pa.Table.from_batches(row_batches(SPEC, state)).equals(ROWS)


def test_rows_are_put_into_an_empty_table_only(server: FlightServer) -> None:
    before = held(server)
    with pytest.raises(TableError, match="restore needs an empty table"):
        put(server, b"plain", ROWS)
    assert held(server) == before


@pytest.mark.parametrize("name", [b"", b"dense", b"\xff\xfe", b"x" * 5000], ids=len)
def test_no_other_tables_are_given(name: bytes, server: FlightServer) -> None:
    endpoint = Endpoint(server.address)
    with endpoint.connect(5.0) as client, pytest.raises(fl.FlightServerError) as caught:
        client.do_get(fl.Ticket(name)).read_all()
    error = endpoint.typed(caught.value, "rows", 20.0)
    assert type(error) is TableError
    assert "no sparse table" in str(error)
