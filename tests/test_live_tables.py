"""Live tables of servers, read by clients that know nothing of Downpour."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow.flight as fl

from downpour.remote.connect import connect
from tests.fault_runs import PLAN, push, rows
from tests.geo_runs import TABLE
from tests.servers import servers


def test_polars_reads_all_shards_of_a_live_table() -> None:
    keys = np.arange(40)
    with servers(2) as addresses, connect(PLAN, addresses) as ps:
        push(ps, keys)
        frames = []
        for address in addresses:
            with fl.connect(address) as other:
                table = other.do_get(fl.Ticket(TABLE.encode())).read_all()
            frames.append(pl.DataFrame(pl.from_arrow(table)))
        whole = pl.concat(frames)
        assert whole["key"].n_unique() == whole.height == len(keys)
        assert whole["weights"].arr.first().to_list() == [0.0] * len(keys)
        assert rows(ps, keys) == [0.0] * len(keys)
