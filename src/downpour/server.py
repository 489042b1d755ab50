"""A server: one shard of every sparse table of a plan, and its parts of the dense ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from downpour.errors import TableError
from downpour.plan.sections import DEFAULT_SECTIONS, split
from downpour.tables import CtrTable, DenseTable, Section, SparseTable, sparse_table
from downpour.transport import DenseState, DenseStats, Shrunk, SparseState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from downpour.accessor import Rates
    from downpour.plan.plan import Plan
    from downpour.plan.sections import Part, Sections
    from downpour.tables import TableStats, Transaction
    from downpour.transport import Floats, Keys, Rows

T = TypeVar("T")


class Server:
    """The tables of shard `shard` of `num_shards`; see `transport.Transport` for its calls.

    `sections` says which parts of dense tables are here; a table of which none is here it does not
    have. Needs no torch. The checks of what comes from outside are the client's and the tables'
    own.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        shard: int = 0,
        num_shards: int = 1,
        sections: Sections = DEFAULT_SECTIONS,
    ) -> None:
        self.sparse = {
            spec.name: sparse_table(spec.name, spec.accessor, seed=spec.seed)
            for spec in plan.sparse
        }
        self.dense: dict[str, DenseTable] = {}
        self.parts: dict[str, dict[str, list[str]]] = {}  # of a table, by parameter
        for spec in plan.dense:
            own = [it for it in split(spec, num_shards, sections) if it.server == shard]
            if own:
                self.dense[spec.name] = DenseTable(
                    spec.name, _sections_of(own), spec.rule, spec.dtype
                )
                parts: dict[str, list[str]] = {section.name: [] for section in spec.sections}
                for part in own:
                    parts[part.parameter].append(part.name)
                self.parts[spec.name] = parts
        self._has_weights: set[str] = set()

    def locate(self, table: str, keys: Keys, *, create: bool) -> Rows:
        """See Transport."""
        return _of(self.sparse, table).locate(keys, create=create)

    def read(self, table: str, keys: Keys, rows: Rows, out: Floats) -> None:
        """See Transport."""
        _of(self.sparse, table).read(keys, rows, out)

    def update(
        self,
        table: str,
        rows: Rows,
        pushes: Floats,
        *,
        step: int,
        lr: Rates,
        within: Transaction | None = None,
    ) -> None:
        """See Transport."""
        _of(self.sparse, table).update(rows, pushes, step=step, lr=lr, within=within)

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

    def set_dense(self, table: str, flat: Floats, names: Collection[str]) -> None:
        """See Transport."""
        own = _of(self.dense, table)
        here = self._parts_here(table, names)
        if table not in self._has_weights and len(here) < len(own.sections):
            raise TableError(
                f"dense table {table!r} has no weights yet; set all of it, or parameters once "
                "a worker has given it its first ones"
            )
        own.set(flat, here)
        self._has_weights.add(table)

    def pull_dense(self, table: str, out: Floats) -> None:
        """See Transport."""
        _of(self.dense, table).pull(out)

    def push_dense(
        self,
        table: str,
        grad: Floats,
        *,
        step: int,
        lr: float,
        names: Collection[str],
        within: Transaction | None = None,
    ) -> None:
        """See Transport."""
        own = _of(self.dense, table)
        own.push(grad, step=step, lr=lr, names=self._parts_here(table, names), within=within)

    def _parts_here(self, table: str, names: Collection[str]) -> list[str]:
        """The parts that are here of parameters of a table."""
        parts = self.parts[table]
        for name in names:
            if name not in parts:
                raise TableError(
                    f"dense table {table!r} has no section {name!r}, it has: {', '.join(parts)}"
                )
        return [part for name in names for part in parts[name]]

    def export(self, table: str) -> SparseState:
        """See Transport."""
        own = _of(self.sparse, table)
        keys, weights, state, *statistics = own.export()
        return SparseState(keys, weights, state, own.step, own.log_decay, *statistics)

    def fresh(self, table: str, *, step: int = 0, log_decay: float = 0.0) -> SparseTable | CtrTable:
        """A table as this one, without rows: it may be filled, and then take this one's place.

        Who still has the old one reads it to its end.
        """
        own = _of(self.sparse, table)
        made = sparse_table(table, own.accessor, seed=own.seed)
        made.step, made.log_decay = step, log_decay
        return made

    def restore(self, table: str, state: SparseState) -> None:
        """See Transport. A new table takes the place of the empty one, as in `clear`.

        So one that cannot be filled leaves it empty.
        """
        own = _of(self.sparse, table)
        own.require_empty()
        filled = self.fresh(table)
        statistics = () if state.statistics is None else (state.statistics,)
        rows = (state.keys, state.weights, state.state, *statistics)
        filled.restore(*rows, step=state.step, log_decay=state.log_decay)
        self.sparse[table] = filled

    def clear(self, table: str) -> None:
        """See Transport. A new table takes the place of the old one, as in `shrink`."""
        self.sparse[table] = self.fresh(table)

    def shrink(self, table: str) -> Shrunk:
        """See Transport."""
        own = _of(self.sparse, table)
        if not isinstance(own, CtrTable):
            raise TableError(
                f"table {table!r} cannot shrink: its rows count no show and click, by which a "
                "shrink deletes; give it a CtrAccessor, or empty it with clear"
            )
        self.sparse[table], deleted = own.shrunk()
        return Shrunk(len(self.sparse[table]), deleted)

    def has_weights(self, table: str) -> bool:
        """Whether a dense table was given its first weights."""
        return table in self._has_weights

    @property
    def is_new(self) -> bool:
        """Whether no table holds anything yet."""
        tables = (*self.sparse.values(), *self.dense.values())
        has_rows = any(len(table) for table in self.sparse.values())
        return not (self._has_weights or has_rows or any(table.step for table in tables))

    def adopt(self, other: Server) -> None:
        """Take over the tables of a server of the same plan and shard."""
        self.sparse.update(other.sparse)
        self.dense.update(other.dense)
        self._has_weights = other._has_weights

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


def _sections_of(parts: Sequence[Part]) -> list[Section]:
    """Parts one after the other."""
    sections, offset = [], 0
    for part in parts:
        sections.append(Section(part.name, offset, part.size, part.shape))
        offset += part.size
    return sections


def _of(tables: Mapping[str, T], name: str) -> T:
    if name not in tables:
        raise TableError(f"no table {name!r} here; there are: {', '.join(tables) or 'none'}")
    return tables[name]
