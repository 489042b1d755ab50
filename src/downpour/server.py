"""A server: one shard of every sparse table of a plan, and its share of the dense ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from downpour.errors import TableError
from downpour.tables import DenseTable, sparse_table
from downpour.transport import DenseState, DenseStats, SparseState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from downpour.accessor import Rates
    from downpour.plan.plan import Plan
    from downpour.tables import TableStats
    from downpour.transport import Floats, Keys, Rows

T = TypeVar("T")


def dense_home(table_id: int, num_shards: int) -> int:
    """The shard that holds a dense table."""
    return table_id % num_shards


class Server:
    """The tables of shard `shard` of `num_shards`; see `transport.Transport` for its calls.

    Needs no torch. The checks of what comes from outside are the client's and the tables' own.
    """

    def __init__(self, plan: Plan, *, shard: int = 0, num_shards: int = 1) -> None:
        self.sparse = {
            spec.name: sparse_table(spec.name, spec.accessor, seed=spec.seed)
            for spec in plan.sparse
        }
        self.dense = {
            spec.name: DenseTable(spec.name, spec.sections, spec.rule, spec.dtype)
            for spec in plan.dense
            if dense_home(spec.id, num_shards) == shard
        }
        self._has_weights: set[str] = set()

    def locate(self, table: str, keys: Keys, *, create: bool) -> Rows:
        """See Transport."""
        return _of(self.sparse, table).locate(keys, create=create)

    def read(self, table: str, keys: Keys, rows: Rows, out: Floats) -> None:
        """See Transport."""
        _of(self.sparse, table).read(keys, rows, out)

    def update(self, table: str, rows: Rows, pushes: Floats, *, step: int, lr: Rates) -> None:
        """See Transport."""
        _of(self.sparse, table).update(rows, pushes, step=step, lr=lr)

    def set(self, table: str, keys: Keys, weights: Floats) -> None:
        """See Transport."""
        _of(self.sparse, table).set(keys, weights)

    def init_dense(self, table: str, flat: Floats) -> bool:
        """See Transport."""
        if table in self._has_weights:
            return False
        _of(self.dense, table).set(flat)
        self._has_weights.add(table)
        return True

    def pull_dense(self, table: str, out: Floats) -> None:
        """See Transport."""
        _of(self.dense, table).pull(out)

    def push_dense(
        self, table: str, grad: Floats, *, step: int, lr: float, names: Collection[str]
    ) -> None:
        """See Transport."""
        _of(self.dense, table).push(grad, step=step, lr=lr, names=names)

    def export(self, table: str) -> SparseState:
        """See Transport."""
        own = _of(self.sparse, table)
        keys, weights, state, *statistics = own.export()
        return SparseState(keys, weights, state, own.step, own.log_decay, *statistics)

    def restore(self, table: str, state: SparseState) -> None:
        """See Transport."""
        own = _of(self.sparse, table)
        statistics = () if state.statistics is None else (state.statistics,)
        rows = (state.keys, state.weights, state.state, *statistics)
        own.restore(*rows, step=state.step, log_decay=state.log_decay)

    def export_dense(self, table: str) -> DenseState:
        """See Transport."""
        own = _of(self.dense, table)
        return DenseState(*own.export(), own.step)

    def restore_dense(self, table: str, state: DenseState) -> None:
        """See Transport."""
        _of(self.dense, table).restore(state.weights, state.state, state.updates, step=state.step)
        self._has_weights.add(table)

    def stats(self) -> dict[str, TableStats | DenseStats]:
        """See Transport."""
        sparse = {name: table.stats() for name, table in self.sparse.items()}
        dense = {
            name: DenseStats(table.size, table.num_bytes) for name, table in self.dense.items()
        }
        return {**sparse, **dense}


def _of(tables: Mapping[str, T], name: str) -> T:
    if name not in tables:
        raise TableError(f"no table {name!r} here; there are: {', '.join(tables) or 'none'}")
    return tables[name]
