"""The seam between a client and one server: what can be asked of a shard, whatever the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from downpour.accessor import Rates
    from downpour.tables import TableStats, Transaction

    Keys: TypeAlias = NDArray[np.uint64]
    Rows: TypeAlias = NDArray[np.int64]
    Floats: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class DenseStats:
    """The elements of a dense table and the bytes of its weights and rule state."""

    size: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Shrunk:
    """How many rows of a table were kept by a shrink, and how many deleted."""

    kept: int
    deleted: int


@dataclass(frozen=True, slots=True)
class SparseState:
    """Rows of a sparse table: keys [n] rising, weights [n, dim], rule state [n, state_dim].

    `statistics` [n] are those of CTR rows, a structured array (see `CtrTable.export`), or None.
    """

    keys: Keys
    weights: Floats
    state: Floats
    step: int
    log_decay: float
    statistics: NDArray[np.void] | None = None


@dataclass(frozen=True, slots=True)
class DenseState:
    """A dense table: weights [size], and by parameter the rule's state and number of updates.

    Of one server they are its share of the table, and `state` and `updates` are by part.
    """

    weights: Floats
    state: Mapping[str, Floats]
    updates: Mapping[str, int]
    step: int


class Transport(Protocol):
    """One server's shard of every sparse table, and its share of the dense ones.

    A share is the server's parts of a dense table one after the other, a block [size] (see
    `plan.sections`); a server without a part does not have the table. An embedded `Server` is its
    own transport. Keys are stored keys (their id space mixed in), uint64 [n], all different. Every
    call but `stats` raises TableError for a table that the server does not have. A call that raises
    has changed no value; `within` a transaction a change is undone with it.
    """

    def locate(self, table: str, keys: Keys, *, create: bool) -> Rows:
        """The server's row number of each key; without `create` -1 where there is none."""

    def read(self, table: str, keys: Keys, rows: Rows, out: Floats) -> None:
        """Located rows as of now, [n, pull_dim]; row -1 gives the initial row."""

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
        """One step of the table's rules on located rows; also without any, so that time passes.

        `pushes` [n, push_dim] are gradients, of CTR rows with slot, show, click and places before.
        """

    def set(self, table: str, keys: Keys, weights: Floats) -> None:
        """Write rows of any keys, the last one of each; the rule's state is the initial one."""

    def init_dense(self, table: str, flat: Floats) -> bool:
        """Give a share its first weights [size]; False if it has them already."""

    def set_dense(self, table: str, flat: Floats, names: Collection[str]) -> None:
        """Replace the weights of these parameters by those of the share's flat [size].

        The rule's state stays. A parameter of the table that has no part here is passed over.
        """

    def pull_dense(self, table: str, out: Floats) -> None:
        """The weights of a share, [size]."""

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
        """One step of the rule with the share's grad [size], on these parameters alone.

        A parameter of the table that has no part here is passed over.
        """

    def export(self, table: str) -> SparseState:
        """All rows of a sparse table's shard."""

    def restore(self, table: str, state: SparseState) -> None:
        """Fill an empty shard with rows that belong to it."""

    def clear(self, table: str) -> None:
        """Forget all rows of a sparse table's shard; its steps and its decay begin anew."""

    def shrink(self, table: str) -> Shrunk:
        """Let a day pass for a shard of CTR rows. TableError for a table of other rows.

        After this and `clear` keys have other row numbers.
        """

    def export_dense(self, table: str) -> DenseState:
        """A share with its rule's state, by part."""

    def restore_dense(self, table: str, state: DenseState) -> None:
        """Make a share what was exported of it."""

    def stats(self) -> dict[str, TableStats | DenseStats]:
        """Rows and bytes of each table."""
